//! gRPC service for any Envoy in front of any service: `envoy.service.auth.v3.Authorization`.
//!
//! The client certificate names the device, and the route names the policy that judges it. The route's `context_extensions` are
//! `policy`, and where they differ from the defaults `identity` (`subject.cn`), `identifier` (`serial`) and `prefix` (what stands
//! before the identifier in that field). With `public_key` for `identity`, the device is the one that a webhook about the
//! certificate's key was allowed for. A missing or unknown value is a 403.

use std::collections::HashMap;
use std::sync::Arc;

use inventory::http::escaped;
use percent_encoding::percent_decode_str;
use posture::caller::{self, LARGEST_CERTIFICATE};
use posture::identity::{DeviceId, Field, IdentifierKind, Identity, PublicKey, Trust};
use posture::outcome::{Denial, Refusal};
use posture::policy::RequestKind;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use proto::envoy::authorization_server::Authorization;
use proto::envoy::check_response::HttpResponse;
use proto::envoy::header_value_option::HeaderAppendAction;
use proto::envoy::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpStatus, OkHttpResponse,
};
use serde_json::json;
use store::StoreError;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use crate::calls::deadline;
use crate::runtime::Runtime;
use engine::decide::{self, Asker, Decision};
use engine::gate::Outcome;
use engine::metrics::{AuthorizationLabels, Word};
use engine::samples::Samples;

/// The service on `query.sock`.
#[derive(Debug)]
pub struct Guard {
    runtime: Arc<Runtime>,
    /// Limit on log lines about routes that ask by `public_key` while no key is bound to a device.
    unbound: Samples,
}

impl Guard {
    /// Makes the service, which judges by the runtime's policies.
    pub fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime, unbound: Samples::default() }
    }
}

/// Question of an Envoy, read from its route and the client certificate.
struct Asked {
    policy: Arc<str>,
    identity: Identity,
    caller: Option<String>,
}

/// Reason for which a client is not let in.
enum Away {
    /// The client is denied by what is known.
    Denied(Denial),
    /// No decision can be made at present.
    Refused(Refusal),
}

impl From<Denial> for Away {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

#[tonic::async_trait]
impl Authorization for Guard {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let deadline = deadline(&request);
        let AttributeContext { source, mut context_extensions } = request.into_inner().attributes.unwrap_or_default();
        let certificate = source.map(|source| source.certificate).unwrap_or_default();
        context_extensions.retain(|name, _| EXTENSIONS.contains(&name.as_str()));
        context_extensions.shrink_to_fit();
        let asked = match self.read(&context_extensions, &certificate, deadline).await {
            Ok(asked) => asked,
            Err(Away::Denied(denial)) => return Ok(Response::new(self.deny(None, None, &denial))),
            Err(Away::Refused(refusal)) => return Ok(Response::new(self.refuse(None, None, refusal))),
        };
        let Asked { policy, identity, caller } = asked;
        let asker = Asker { identity, kind: RequestKind::ExtAuthz, webhook: None, caller, hint: None, deadline, explain: false };
        let device = asker.identity.device.clone();
        let plan = || self.runtime.snapshot().plan_for(&policy, &device);
        let decision = decide::decide(plan, &asker, &self.runtime.engine.locks, &self.runtime.engine.metrics).await;
        Ok(Response::new(self.response(&policy, &asker.identity.device, &decision)))
    }
}

impl Guard {
    /// Reads the policy and the device that a request is about.
    ///
    /// # Errors
    /// [`Away`] says why the client cannot be let in.
    async fn read(&self, extensions: &HashMap<String, String>, certificate: &str, deadline: Instant) -> Result<Asked, Away> {
        let policy = self.policy(extensions)?;
        // Base64 makes four letters of three bytes, and each may be escaped by two more.
        if certificate.len() / 5 > LARGEST_CERTIFICATE {
            return Err(Denial::IDENTIFIER_INVALID.into());
        }
        // Envoy percent-encodes the certificate.
        let pem = percent_decode_str(certificate).decode_utf8().map_err(|_| Denial::IDENTIFIER_INVALID)?;
        if pem.is_empty() {
            return Err(Denial::IDENTIFIER_MISSING.into());
        }
        let der = caller::der(pem.as_bytes()).map_err(|_| Denial::IDENTIFIER_INVALID)?;
        // A certificate with many names takes long to read, and its connection asks again and again: what was read is remembered.
        let peer = self.runtime.engine.peers.read(&der).ok_or(Denial::IDENTIFIER_INVALID)?;
        // Checked as for a caller of a webhook: Envoy lets a certificate pass that has no extended key usage at all.
        if !peer.is_for_clients() {
            return Err(Denial::CERTIFICATE_NOT_FOR_CLIENTS.into());
        }
        let identity = if extensions.get("identity").is_some_and(|identity| identity == PUBLIC_KEY) {
            // The record of the key has the kind of identifier and the whole identifier.
            if extensions.contains_key("identifier") || extensions.contains_key("prefix") {
                return Err(Denial::POLICY_UNKNOWN.into());
            }
            self.of_key(PublicKey::of_certificate(&der)?, deadline).await?
        } else {
            stated(extensions, &der)?
        };
        let identity = self.runtime.snapshot().placeholders.identity(identity)?;
        Ok(Asked { policy, identity, caller: peer.names().first().map(ToString::to_string) })
    }

    fn policy(&self, extensions: &HashMap<String, String>) -> Result<Arc<str>, Denial> {
        let name = extensions.get("policy").ok_or(Denial::POLICY_UNKNOWN)?;
        let snapshot = self.runtime.snapshot();
        let (policy, _) = snapshot.plans.get_key_value(name.as_str()).ok_or(Denial::POLICY_UNKNOWN)?;
        Ok(Arc::clone(policy))
    }

    /// Returns the device of a key, as well proven as it was when the key was allowed: the TLS handshake has proven the key.
    async fn of_key(&self, key: PublicKey, deadline: Instant) -> Result<Identity, Away> {
        let now = clock::now();
        if self.runtime.engine.store.binds_no_keys() && self.unbound.admits(std::time::Instant::now()).is_some() {
            tracing::warn!("a route asks by `public_key`, and no key is bound to a device: set `bind_keys = true` in [store]");
        }
        match tokio::time::timeout_at(deadline, self.runtime.engine.store.device_of(key, now)).await {
            Ok(Ok(Some(identity))) => Ok(identity),
            Ok(Ok(None) | Err(StoreError::None)) => Err(Denial::KEY_UNKNOWN.into()),
            Ok(Err(error)) => {
                tracing::error!(error = %error.text(), "the device of a key could not be read");
                Err(Away::Refused(Refusal::Internal))
            }
            Err(_) => Err(Away::Refused(Refusal::DeadlineExceeded)),
        }
    }

    fn response(&self, policy: &str, device: &DeviceId, decision: &Decision) -> CheckResponse {
        match &decision.outcome {
            Outcome::Allow(allowed) => {
                let data = allowed.data();
                let waived = decision.waived.as_ref();
                self.runtime
                    .engine
                    .metrics
                    .authorizations
                    .get_or_create(&AuthorizationLabels { policy: Word::from(policy), decision: "allow", reason: "allowed" })
                    .inc();
                let header = |name: &str, value: &str| HeaderValueOption {
                    header: Some(HeaderValue { key: name.to_owned(), value: escaped(value) }),
                    append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
                };
                let mut headers = vec![
                    header("x-posture-device", device.normal()),
                    header("x-posture-policy", policy),
                    header("x-posture-decision", "allow"),
                ];
                // Data that does not fit into a header is left to clients that ask by gRPC.
                if data.as_json().len() <= LARGEST_HEADER {
                    headers.push(header("x-posture-data", data.as_json()));
                }
                CheckResponse {
                    status: Some(proto::envoy::Status { code: Code::Ok.into() }),
                    dynamic_metadata: Some(metadata("allow", waived.map_or("allowed", |denial| &*denial.code), Some(policy), Some(device))),
                    http_response: Some(HttpResponse::OkResponse(OkHttpResponse { headers })),
                }
            }
            Outcome::Deny(denial) => self.deny(Some(policy), Some(device), denial),
            Outcome::Refuse(refusal) => self.refuse(Some(policy), Some(device), *refusal),
        }
    }

    fn deny(&self, policy: Option<&str>, device: Option<&DeviceId>, denial: &Denial) -> CheckResponse {
        self.count(policy, "deny", denial);
        refused(403, denial, Code::PermissionDenied, metadata("deny", &denial.code, policy, device))
    }

    fn refuse(&self, policy: Option<&str>, device: Option<&DeviceId>, refusal: Refusal) -> CheckResponse {
        let (status, code, message) = posture::reply::public(refusal);
        let denial = Denial { code: code.into(), message: message.into(), remediation_url: None };
        self.count(policy, "refuse", &denial);
        refused(status, &denial, Code::Unavailable, metadata("refuse", refusal.as_str(), policy, device))
    }

    fn count(&self, policy: Option<&str>, decision: &'static str, denial: &Denial) {
        let (policy, reason) = (Word::from(policy.unwrap_or("none")), engine::record::code(denial));
        self.runtime.engine.metrics.authorizations.get_or_create(&AuthorizationLabels { policy, decision, reason }).inc();
    }
}

/// The device that a field of the certificate names.
fn stated(extensions: &HashMap<String, String>, der: &[u8]) -> Result<Identity, Denial> {
    let field = match extensions.get("identity") {
        None => Field::SubjectCommonName,
        Some(field) => field.parse().map_err(|_| Denial::POLICY_UNKNOWN)?,
    };
    let kind = match extensions.get("identifier") {
        None => IdentifierKind::Serial,
        Some(kind) => kind.parse().map_err(|_| Denial::POLICY_UNKNOWN)?,
    };
    let stated = field.of_certificate(der)?;
    let stated = match extensions.get("prefix") {
        None => stated.as_str(),
        Some(prefix) => stated.strip_prefix(prefix.as_str()).ok_or(Denial::IDENTIFIER_MISSING)?,
    };
    Ok(Identity { device: DeviceId::new(kind, stated)?, trust: Trust::Certificate })
}

fn refused(status: u16, denial: &Denial, code: Code, metadata: Struct) -> CheckResponse {
    let body = json!({ "code": denial.code, "message": denial.message, "remediation_url": denial.remediation_url });
    let header = HeaderValue { key: "content-type".to_owned(), value: "application/json".to_owned() };
    CheckResponse {
        status: Some(proto::envoy::Status { code: code.into() }),
        dynamic_metadata: Some(metadata),
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus { code: status.into() }),
            headers: vec![HeaderValueOption { header: Some(header), append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into() }],
            body: body.to_string(),
        })),
    }
}

/// Makes the dynamic metadata for access logs, in the namespace `envoy.filters.http.ext_authz`.
fn metadata(decision: &str, reason: &str, policy: Option<&str>, device: Option<&DeviceId>) -> Struct {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = [("decision", Some(decision)), ("reason", Some(reason)), ("policy", policy), ("device", device.map(DeviceId::normal))];
    Struct { fields: fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), text(value?)))).collect() }
}

/// Keys that are read from the route's `context_extensions`.
const EXTENSIONS: [&str; 4] = ["policy", "identity", "identifier", "prefix"];

/// Value of `identity` where the certificate's key, and no field of it, says which device it is.
const PUBLIC_KEY: &str = "public_key";

/// Largest `data` that goes into a header, in bytes before it is escaped.
const LARGEST_HEADER: usize = 4096;

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use posture::outcome::Data;
    use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, KeyPair};
    use settings::Environment;

    use super::*;
    use crate::fixture;
    use crate::runtime::Configured;
    use engine::metrics::Metrics;

    const DEVICE: &str = "C02XL0GYJGH5";

    struct Stand {
        _folder: tempfile::TempDir,
        guard: Guard,
    }

    /// Reply to Envoy: the status, the headers, and for a denial the body.
    struct Told {
        status: u32,
        code: i32,
        headers: Vec<(String, String)>,
        body: serde_json::Value,
        metadata: Vec<(String, String)>,
    }

    impl Told {
        fn of(response: CheckResponse) -> Self {
            let (status, headers, body) = match response.http_response.unwrap() {
                HttpResponse::OkResponse(ok) => (200, ok.headers, serde_json::Value::Null),
                HttpResponse::DeniedResponse(denied) => {
                    (denied.status.unwrap().code.try_into().unwrap(), denied.headers, serde_json::from_str(&denied.body).unwrap())
                }
            };
            assert!(headers.iter().all(|header| header.append_action() == HeaderAppendAction::OverwriteIfExistsOrAdd), "{headers:?}");
            let headers = headers.into_iter().map(|header| header.header.unwrap()).map(|header| (header.key, header.value)).collect();
            let text = |value: Value| if let Some(Kind::StringValue(text)) = value.kind { text } else { panic!("{value:?}") };
            let mut metadata: Vec<_> =
                response.dynamic_metadata.unwrap().fields.into_iter().map(|(name, value)| (name, text(value))).collect();
            metadata.sort();
            Self { status, code: response.status.unwrap().code, headers, body, metadata }
        }

        fn says(&self, name: &str) -> Option<&str> {
            self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
        }

        fn logs(&self) -> Vec<(&str, &str)> {
            self.metadata.iter().map(|(name, value)| (&**name, &**value)).collect()
        }
    }

    impl Stand {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let demo = folder.path().join("demo");
            fixture::make(&demo);
            let path = demo.join("stepward.toml");
            let text = std::fs::read_to_string(&path).unwrap() + "\n[policy.staff]\nproviders = [\"staff\"]\n";
            std::fs::write(&path, text).unwrap();
            let source = Configured::new(Some("stepward.toml".into()), Environment::new(demo));
            let runtime = Runtime::start(Box::new(source), Arc::new(Metrics::default())).unwrap();
            Self { _folder: folder, guard: Guard::new(Arc::new(runtime)) }
        }

        async fn asks(&self, extensions: &[(&str, &str)], certificate: String) -> Told {
            use proto::envoy::attribute_context::Peer;

            let context_extensions = extensions.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let source = Some(Peer { certificate });
            let attributes = Some(AttributeContext { source, context_extensions });
            Told::of(self.guard.check(Request::new(CheckRequest { attributes })).await.unwrap().into_inner())
        }

        fn counted(&self, policy: &str, decision: &'static str, reason: &'static str) -> u64 {
            let labels = AuthorizationLabels { policy: Word::from(policy), decision, reason };
            self.guard.runtime.engine.metrics.authorizations.get_or_create(&labels).get()
        }
    }

    fn certificate(name: &str, usage: Usage) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        utf8_percent_encode(&pem, NON_ALPHANUMERIC).to_string()
    }

    #[tokio::test]
    async fn a_device_that_may_is_let_in_and_the_service_is_told_of_it() {
        let stand = Stand::new();
        for extensions in [
            &[("policy", "staff"), ("unknown", "x")][..],
            &[("policy", "staff"), ("identity", "subject.cn"), ("identifier", "serial"), ("prefix", "")],
        ] {
            let told = stand.asks(extensions, certificate("c02xl0gyjgh5", Usage::ClientAuth)).await;
            assert_eq!((told.status, told.code), (200, 0));
            let said = ["x-posture-device", "x-posture-policy", "x-posture-decision"].map(|name| told.says(name).unwrap());
            assert_eq!(said, [DEVICE, "staff", "allow"]);
            assert!(told.says("x-posture-data").is_some_and(|data| !data.is_empty()));
            let logged = [("decision", "allow"), ("device", DEVICE), ("policy", "staff"), ("reason", "allowed")];
            assert_eq!(told.logs(), logged);
        }
        assert_eq!(stand.counted("staff", "allow", "allowed"), 2);
    }

    #[tokio::test]
    async fn c_what_is_missing_unknown_or_for_somebody_else_is_denied() {
        let stand = Stand::new();
        let good = || certificate(DEVICE, Usage::ClientAuth);
        let policy = ("policy", "staff");
        let cases = [
            (&[][..], good(), "policy_unknown"),
            (&[("policy", "other")][..], good(), "policy_unknown"),
            (&[policy][..], String::new(), "identifier_missing"),
            (&[policy][..], "no%20certificate".to_owned(), "identifier_invalid"),
            (&[policy][..], "%ff".to_owned(), "identifier_invalid"),
            (&[policy][..], "A".repeat(5 * LARGEST_CERTIFICATE + 5), "identifier_invalid"),
            (&[policy][..], certificate(DEVICE, Usage::ServerAuth), "certificate_not_for_clients"),
            (&[policy, ("identity", "nothing")][..], good(), "policy_unknown"),
            (&[policy, ("identifier", "nothing")][..], good(), "policy_unknown"),
            (&[policy, ("prefix", "mac-")][..], good(), "identifier_missing"),
            (&[policy, ("identity", "public_key")][..], good(), "key_unknown"),
            (&[policy, ("identity", "public_key"), ("identifier", "serial")][..], good(), "policy_unknown"),
            (&[policy, ("identity", "public_key"), ("prefix", "")][..], good(), "policy_unknown"),
            (&[policy][..], certificate("OTHER", Usage::ClientAuth), "device_not_found"),
        ];
        for (extensions, certificate, code) in cases {
            let told = stand.asks(extensions, certificate).await;
            assert_eq!((told.status, told.code, told.body["code"].as_str()), (403, 7, Some(code)), "{extensions:?}");
            assert!(told.body["message"].as_str().is_some_and(|message| !message.is_empty()));
            assert_eq!(told.headers, [("content-type".to_owned(), "application/json".to_owned())]);
            let logged = &[("decision", "deny"), ("device", "OTHER"), ("policy", "staff"), ("reason", code)];
            let nothing_of_the_device = [logged[0], logged[3]];
            assert_eq!(told.logs(), if code == "device_not_found" { &logged[..] } else { &nothing_of_the_device[..] });
        }
        assert_eq!((stand.counted("staff", "deny", "device_not_found"), stand.counted("none", "deny", "key_unknown")), (1, 1));
    }

    #[tokio::test]
    async fn a_certificate_that_is_large_is_read_as_any_other() {
        let stand = Stand::new();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, DEVICE);
        params.extended_key_usages = vec![Usage::ClientAuth];
        params.subject_alt_names =
            (0..250).map(|at| rcgen::SanType::DnsName(format!("{at}.many.names.example.org").try_into().unwrap())).collect();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert!((LARGEST_CERTIFICATE / 3..LARGEST_CERTIFICATE).contains(&certificate.der().len()), "{}", certificate.der().len());
        let escaped: String = certificate.pem().bytes().map(|byte| format!("%{byte:02X}")).collect();
        assert_eq!(stand.asks(&[("policy", "staff")], escaped).await.status, 200);
    }

    #[tokio::test]
    async fn who_cannot_be_judged_is_told_to_come_again() {
        let stand = Stand::new();
        let device = DeviceId::new(IdentifierKind::Serial, DEVICE).unwrap();
        let decision = Decision::of(Outcome::Refuse(Refusal::ProviderUnavailable));
        let told = Told::of(stand.guard.response("staff", &device, &decision));
        assert_eq!((told.status, told.code, told.body["code"].as_str()), (503, 14, Some("provider_unavailable")));
        let logged = [("decision", "refuse"), ("device", DEVICE), ("policy", "staff"), ("reason", "provider_unavailable")];
        assert_eq!(told.logs(), logged);
        assert_eq!(stand.counted("staff", "refuse", "provider_unavailable"), 1);
    }

    #[tokio::test]
    async fn data_beyond_what_a_header_bears_is_left_out() {
        let stand = Stand::new();
        let device = DeviceId::new(IdentifierKind::Serial, DEVICE).unwrap();
        for (length, there) in [(LARGEST_HEADER, true), (LARGEST_HEADER + 1, false)] {
            let data = Data::from_json(&format!("\"{}\"", "x".repeat(length - 2))).unwrap();
            let told = Told::of(stand.guard.response("staff", &device, &Decision::of(engine::gate::fixture::allowed(data))));
            assert_eq!((told.status, told.says("x-posture-data").is_some()), (200, there), "{length}");
        }
    }
}
