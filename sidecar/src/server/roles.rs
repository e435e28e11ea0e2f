//! Which calls a client over TCP may make. Without a role there is no call, not even of the services that are for all.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Either};
use posture::caller::Name;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::tls::{Guest, Refusals};
use crate::config::Role;
use crate::runtime::Runtime;

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// This role.
    Role(Role),
    /// Any role at all.
    Any,
}

/// What a call needs, by its path; `None`: it is no call that there is.
fn need(path: &str) -> Option<Need> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    Some(match (service, method) {
        ("stepward.v1.PostureService", "Check" | "BatchCheck") => Need::Role(Role::Check),
        ("stepward.v1.PostureService", "Lookup") => Need::Role(Role::Lookup),
        ("stepward.v1.PostureService", "Watch") => Need::Role(Role::Watch),
        ("envoy.service.auth.v3.Authorization", "Check") => Need::Role(Role::Authorize),
        ("grpc.health.v1.Health" | "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection", _) => Need::Any,
        _ => return None,
    })
}

/// Whether a client has a role at this moment: a reload gives and takes them.
///
/// # Errors
/// `PERMISSION_DENIED`, with what is wanting.
pub fn may(runtime: &Runtime, guest: &Guest, role: Role) -> Result<(), Status> {
    judge(runtime, guest, Need::Role(role)).map_err(|(_, status)| status)
}

/// Whether a client may make any call at this moment.
pub(super) fn has_any(runtime: &Runtime, guest: &Guest) -> bool {
    judge(runtime, guest, Need::Any).is_ok()
}

/// # Errors
/// The reason in one word, and what the client is told.
fn judge(runtime: &Runtime, guest: &Guest, need: Need) -> Result<(), (&'static str, Status)> {
    let config = Arc::clone(&runtime.snapshot().config);
    let roles: Vec<Role> = config.query.tcp.iter().flat_map(|tcp| tcp.roles(&guest.peer)).collect();
    let denied = |reason, why: String| Err((reason, Status::permission_denied(why)));
    match need {
        _ if !guest.peer.is_for_clients() => {
            denied("usage", "this certificate is not for clients: its extended key usage has no clientAuth".to_owned())
        }
        _ if roles.is_empty() => {
            denied("name", format!("no [[query.client]] has a name of this certificate: {}", names(guest.peer.names())))
        }
        Need::Role(role) if !roles.contains(&role) => {
            let has: Vec<_> = Role::ALL.iter().filter(|role| roles.contains(role)).map(|role| role.as_str()).collect();
            denied("role", format!("this call needs the role `{}`, and this client has {}", role.as_str(), has.join(", ")))
        }
        Need::Role(_) | Need::Any => Ok(()),
    }
}

/// The first of them: a certificate may have hundreds, and they go into a header.
fn names(names: &[Name]) -> String {
    names.iter().take(4).map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Stands before all services of the listener.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    runtime: Arc<Runtime>,
    refusals: Arc<Refusals>,
}

impl Gate {
    pub(super) const fn new(runtime: Arc<Runtime>, refusals: Arc<Refusals>) -> Self {
        Self { runtime, refusals }
    }

    /// Whose call it is and what it needs, for [`Self::look`] to be made again.
    fn admit(&self, request: &http::Request<Body>) -> Result<(Arc<Guest>, Need), Status> {
        let Some(guest) = request.extensions().get::<Arc<Guest>>() else {
            return Err(Status::internal("it is not known who asks"));
        };
        // The router would find no such call either, but one that was added and forgotten here.
        let Some(need) = need(request.uri().path()) else { return Err(Status::unimplemented("there is no such call")) };
        self.look(guest, need)?;
        Ok((Arc::clone(guest), need))
    }

    fn look(&self, guest: &Guest, need: Need) -> Result<(), Status> {
        judge(&self.runtime, guest, need).map_err(|(reason, status)| {
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
    use envoy_types::pb::envoy::service::auth::v3::authorization_server;
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_call_of_the_services_has_a_role() {
        let described = FileDescriptorSet::decode(proto::POSTURE).unwrap();
        let [file] = &described.file[..] else { panic!("{described:?}") };
        let [service] = &file.service[..] else { panic!("{:?}", file.service) };
        assert!(service.method.len() >= 4, "{:?}", service.method);
        for method in &service.method {
            let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
            assert!(matches!(need(&path), Some(Need::Role(_))), "{path}");
        }
        // Of this there is no description; a call that is new would have to be implemented in `authz.rs`.
        let path = format!("/{}/Check", authorization_server::SERVICE_NAME);
        assert_eq!(need(&path), Some(Need::Role(Role::Authorize)));
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
            assert_eq!(need(path), None, "{path}");
        }
    }
}
