//! Roles of clients over TCP, by which they may make calls at a listener. Without a role there is no call, not even of the services
//! that are for all.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Either};
use posture::caller::Peer;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::client::{Guest, Refusals, first_names};
use crate::config::{Entrance, Role, Tcp};
use crate::runtime::Runtime;

/// Role that a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// A certain role.
    Role(Role),
    /// Any role at all.
    Any,
}

/// Returns the role that a call needs at a listener, by its path; `None`: there is no such call.
fn need(entrance: Entrance, path: &str) -> Option<Need> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    Some(match (entrance, service, method) {
        (Entrance::Query, "stepward.v1.PostureService", "Check" | "BatchCheck") => Need::Role(Role::Check),
        (Entrance::Query, "stepward.v1.PostureService", "Lookup") => Need::Role(Role::Lookup),
        (Entrance::Query, "stepward.v1.PostureService", "Watch") => Need::Role(Role::Watch),
        (Entrance::Query, "envoy.service.auth.v3.Authorization", "Check") => Need::Role(Role::Authorize),
        (Entrance::Query, "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection", _) => Need::Any,
        (Entrance::Filter, "stepward.v1.FilterService", "Attach") => Need::Role(Role::Filter),
        (Entrance::Query | Entrance::Filter, "grpc.health.v1.Health", _) => Need::Any,
        _ => return None,
    })
}

/// Checks that a client has a role at this moment: a reload gives and takes roles.
///
/// # Errors
/// `PERMISSION_DENIED`, with what is wanting.
pub fn may(runtime: &Runtime, entrance: Entrance, guest: &Guest, role: Role) -> Result<(), Status> {
    judge(entrance, entrance.of(&runtime.config()), &guest.peer, Need::Role(role)).map_err(|(_, status)| status)
}

/// Returns whether a client may make any call of a listener at this moment.
pub(super) fn has_any(runtime: &Runtime, entrance: Entrance, guest: &Guest) -> bool {
    judge(entrance, entrance.of(&runtime.config()), &guest.peer, Need::Any).is_ok()
}

/// Checks that a client has the role that a call needs.
///
/// # Errors
/// The reason in one word, and the status that the client is told.
fn judge(entrance: Entrance, tcp: Option<&Tcp>, peer: &Peer, need: Need) -> Result<(), (&'static str, Status)> {
    let roles: Vec<Role> = tcp.into_iter().flat_map(|tcp| tcp.roles(peer)).collect();
    let unknown = match entrance {
        Entrance::Query => "no [[query.client]] has a name of this certificate",
        Entrance::Filter => "`names` in [filter] has no name of this certificate",
    };
    let denied = |reason, why: String| Err((reason, Status::permission_denied(why)));
    match need {
        _ if !peer.is_for_clients() => {
            denied("usage", "this certificate is not for clients: its extended key usage has no clientAuth".to_owned())
        }
        _ if roles.is_empty() => denied("name", format!("{unknown}: {}", first_names(peer))),
        Need::Role(role) if !roles.contains(&role) => {
            let has: Vec<_> = Role::OF_QUERIES.iter().filter(|role| roles.contains(role)).map(|role| role.as_str()).collect();
            denied("role", format!("this call needs the role `{}`, and this client has {}", role.as_str(), has.join(", ")))
        }
        Need::Role(_) | Need::Any => Ok(()),
    }
}

/// Layer that checks roles before all services of the listener.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    entrance: Entrance,
    runtime: Arc<Runtime>,
    refusals: Arc<Refusals>,
}

impl Gate {
    pub(super) const fn new(entrance: Entrance, runtime: Arc<Runtime>, refusals: Arc<Refusals>) -> Self {
        Self { entrance, runtime, refusals }
    }

    /// Returns the client of a call and the role that it needs, for [`Self::look`] to be made again.
    fn admit(&self, request: &http::Request<Body>) -> Result<(Arc<Guest>, Need), Status> {
        let Some(guest) = request.extensions().get::<Arc<Guest>>() else {
            return Err(Status::internal("it is not known who asks"));
        };
        // The router would refuse an unknown call as well, but not one that was added there and forgotten here.
        let Some(need) = need(self.entrance, request.uri().path()) else { return Err(Status::unimplemented("there is no such call")) };
        self.look(guest, need)?;
        Ok((Arc::clone(guest), need))
    }

    fn look(&self, guest: &Guest, need: Need) -> Result<(), Status> {
        judge(self.entrance, self.entrance.of(&self.runtime.config()), &guest.peer, need).map_err(|(reason, status)| {
            self.refusals.count(reason, guest.address, status.message());
            status
        })
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, service: S) -> Gated<S> {
        Gated { gate: self.clone(), service }
    }
}

/// Services behind a [`Gate`].
#[derive(Clone, Debug)]
pub(super) struct Gated<S> {
    gate: Gate,
    service: S,
}

impl<S> Service<http::Request<Body>> for Gated<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<BoxFuture<'static, Result<S::Response, S::Error>>, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.gate.admit(&request) {
            Ok((guest, need)) => {
                let (gate, answer) = (self.gate.clone(), self.service.call(request));
                Either::Left(Box::pin(async move {
                    let answer = answer.await?;
                    // A reload may have taken the role while the answer was looked for.
                    Ok(gate.look(&guest, need).map_or_else(Status::into_http, |()| answer))
                }))
            }
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use posture::caller::Callers;
    use prost::Message as _;
    use prost_types::FileDescriptorSet;
    use proto::envoy::authorization_server;
    use proto::v1::filter_service_server;
    use settings::Environment;

    use super::*;
    use crate::config::Client;
    use crate::fixture;
    use crate::runtime::Configured;
    use engine::metrics::{Metrics, ReasonLabel};

    /// A client of this name.
    fn guest(name: &str) -> Arc<Guest> {
        Arc::new(Guest { peer: peer(name, rcgen::ExtendedKeyUsagePurpose::ClientAuth), address: ([127, 0, 0, 1], 1).into() })
    }

    /// A service over TCP that two clients may use, and its configuration.
    fn served(folder: &std::path::Path) -> (Arc<Runtime>, PathBuf) {
        let demo = folder.join("demo");
        fixture::make(&demo);
        let path = demo.join("stepward.toml");
        let query = r#"
[query]
address = "127.0.0.1:9445"
certificate = "tls/server.crt"
private_key = "tls/server.key"
client_ca = "tls/ca.crt"
[[query.client]]
names = ["dns:checks.example.org"]
roles = ["check"]
[[query.client]]
names = ["dns:looks.example.org"]
roles = ["lookup"]
"#;
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + query).unwrap();
        let source = Configured::new(Some("stepward.toml".into()), Environment::new(demo));
        (Arc::new(Runtime::start(Box::new(source), Arc::new(Metrics::default())).unwrap()), path)
    }

    #[tokio::test]
    async fn c_a_call_is_judged_before_it_is_made_and_before_its_answer_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let (runtime, path) = served(folder.path());
        let [checks, looks, nobody] = ["checks.example.org", "looks.example.org", "nobody.example.org"].map(guest);
        let at = Entrance::Query;
        assert!(may(&runtime, at, &checks, Role::Check).is_ok() && may(&runtime, at, &checks, Role::Lookup).is_err());
        assert!(has_any(&runtime, at, &checks) && has_any(&runtime, at, &looks) && !has_any(&runtime, at, &nobody));
        assert!(may(&runtime, Entrance::Filter, &checks, Role::Filter).is_err() && !has_any(&runtime, Entrance::Filter, &checks));
        let refusals = Arc::new(Refusals::new(at, Arc::clone(&runtime.engine.metrics)));
        let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        // A call to `/…/Lookup` has the role of its client taken away before its answer is there.
        let (count, reloaded) = (Arc::clone(&calls), Arc::clone(&runtime));
        let service = tower::service_fn(move |request: http::Request<Body>| {
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            if request.uri().path().ends_with("/Lookup") {
                let text = std::fs::read_to_string(&path).unwrap().replace("roles = [\"lookup\"]", "roles = [\"watch\"]");
                std::fs::write(&path, text).unwrap();
                assert!(reloaded.reload(&[]).iter().all(|reload| reload.outcome.is_ok()));
            }
            ready(Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty())))
        });
        let mut gated = Gate::new(at, Arc::clone(&runtime), refusals).layer(service);
        let mut call = async |guest: Option<&Arc<Guest>>, path: &str| {
            let mut request = http::Request::post(path).body(Body::empty()).unwrap();
            request.extensions_mut().extend(
                guest
                    .map(|guest| {
                        let mut extensions = http::Extensions::new();
                        extensions.insert(Arc::clone(guest));
                        extensions
                    })
                    .unwrap_or_default(),
            );
            std::future::poll_fn(|context| gated.poll_ready(context)).await.unwrap();
            let answer = gated.call(request).await.unwrap();
            (Status::from_header_map(answer.headers()).map(|status| status.code()), calls.swap(0, std::sync::atomic::Ordering::SeqCst))
        };
        use tonic::Code;
        let (check, lookup) = ("/stepward.v1.PostureService/Check", "/stepward.v1.PostureService/Lookup");
        assert_eq!(call(Some(&checks), check).await, (None, 1));
        assert_eq!(call(Some(&checks), "/grpc.health.v1.Health/Check").await, (None, 1));
        assert_eq!(call(Some(&checks), lookup).await, (Some(Code::PermissionDenied), 0));
        assert_eq!(call(Some(&nobody), check).await, (Some(Code::PermissionDenied), 0));
        assert_eq!(call(Some(&checks), "/stepward.v1.AdminService/Reload").await, (Some(Code::Unimplemented), 0));
        assert_eq!(call(None, check).await, (Some(Code::Internal), 0));
        let counted = |reason| runtime.engine.metrics.query_refusals.get_or_create(&ReasonLabel { reason }).get();
        assert_eq!((counted("role"), counted("name")), (1, 1));
        assert_eq!(call(Some(&looks), lookup).await, (Some(Code::PermissionDenied), 1), "its answer is not given any more");
        assert_eq!(counted("role"), 2);
    }

    #[test]
    fn every_call_of_the_services_has_a_role() {
        let described = FileDescriptorSet::decode(proto::POSTURE).unwrap();
        let [file] = &described.file[..] else { panic!("{described:?}") };
        let [service] = &file.service[..] else { panic!("{:?}", file.service) };
        assert!(service.method.len() >= 4, "{:?}", service.method);
        for method in &service.method {
            let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
            assert!(matches!(need(Entrance::Query, &path), Some(Need::Role(_))), "{path}");
        }
        // The service of Envoy's authorization has no description; a new call would have to be implemented in `authz.rs`.
        let path = format!("/{}/Check", authorization_server::SERVICE_NAME);
        assert_eq!(need(Entrance::Query, &path), Some(Need::Role(Role::Authorize)));
        let path = format!("/{}/Attach", filter_service_server::SERVICE_NAME);
        assert_eq!(need(Entrance::Filter, &path), Some(Need::Role(Role::Filter)));
    }

    #[test]
    fn what_is_no_call_needs_more_than_anybody_has() {
        for path in [
            "",
            "/",
            "*",
            "/stepward.v1.PostureService",
            "/stepward.v1.PostureService/",
            "/stepward.v1.PostureService/check",
            "/stepward.v1.PostureService/Check/",
            "//stepward.v1.PostureService/Check",
            "/stepward.v1.AdminService/Reload",
            "/stepward.v1.FilterService/Attach",
        ] {
            assert_eq!(need(Entrance::Query, path), None, "{path}");
        }
        for path in [
            "/stepward.v1.FilterService/attach",
            "/stepward.v1.FilterService/",
            "/stepward.v1.PostureService/Check",
            "/stepward.v1.AdminService/Reload",
            "/envoy.service.auth.v3.Authorization/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ] {
            assert_eq!(need(Entrance::Filter, path), None, "{path}");
        }
    }

    fn peer(name: &str, usage: rcgen::ExtendedKeyUsagePurpose) -> Peer {
        let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.extended_key_usages = vec![usage];
        Peer::from_der(parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der()).unwrap()
    }

    #[test]
    fn c_who_has_a_role_makes_its_calls_and_no_others_and_who_has_none_makes_no_call() {
        let client = |name: &str, roles: &[Role]| Client {
            names: Callers::Named(vec![format!("dns:{name}").parse().unwrap()]),
            roles: roles.to_vec(),
        };
        let tcp = Tcp {
            address: ([127, 0, 0, 1], 0).into(),
            certificate: PathBuf::new(),
            private_key: PathBuf::new(),
            client_ca: PathBuf::new(),
            clients: vec![client("checks", &[Role::Check, Role::Watch]), client("looks", &[Role::Lookup])],
        };
        let query = Some(&tcp);
        let said = |tcp, peer: &Peer, need| judge(Entrance::Query, tcp, peer, need).map_err(|(reason, status)| (reason, status.code()));
        let denied = |reason| Err((reason, tonic::Code::PermissionDenied));
        let [checks, looks, nobody] = ["checks", "looks", "nobody"].map(|name| peer(name, rcgen::ExtendedKeyUsagePurpose::ClientAuth));
        let server = peer("checks", rcgen::ExtendedKeyUsagePurpose::ServerAuth);
        for (role, of_checks, of_looks) in [
            (Role::Check, Ok(()), denied("role")),
            (Role::Watch, Ok(()), denied("role")),
            (Role::Lookup, denied("role"), Ok(())),
            (Role::Authorize, denied("role"), denied("role")),
            (Role::Filter, denied("role"), denied("role")),
        ] {
            let need = Need::Role(role);
            assert_eq!((said(query, &checks, need), said(query, &looks, need)), (of_checks, of_looks), "{role:?}");
            assert_eq!((said(query, &nobody, need), said(query, &server, need)), (denied("name"), denied("usage")), "{role:?}");
        }
        for (peer, expected) in [(&checks, Ok(())), (&looks, Ok(())), (&nobody, denied("name")), (&server, denied("usage"))] {
            assert_eq!(said(query, peer, Need::Any), expected);
        }
        assert_eq!(said(None, &checks, Need::Any), denied("name"), "nobody has a role where none is given");
        let (_, status) = judge(Entrance::Query, query, &checks, Need::Role(Role::Lookup)).unwrap_err();
        assert_eq!(status.message(), "this call needs the role `lookup`, and this client has check, watch");
        let (_, status) = judge(Entrance::Query, query, &nobody, Need::Any).unwrap_err();
        assert!(status.message().contains("dns:nobody"), "{status}");
        let (_, status) = judge(Entrance::Filter, None, &nobody, Need::Role(Role::Filter)).unwrap_err();
        let told = status.message();
        assert!(told.starts_with("`names` in [filter] has no name of this certificate: ") && told.contains("dns:nobody"), "{told}");
    }

    #[test]
    fn health_and_reflection_are_for_whoever_has_any_role() {
        for path in [
            "/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/Watch",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ] {
            assert_eq!(need(Entrance::Query, path), Some(Need::Any), "{path}");
        }
        assert_eq!(need(Entrance::Filter, "/grpc.health.v1.Health/Check"), Some(Need::Any));
    }
}
