//! The way in for any Envoy in front of any service: `envoy.service.auth.v3.Authorization`.
//!
//! The device is who the client certificate says, and the route says by which policy it is judged, in its
//! `context_extensions`: `policy`, and where they differ from what is usual `identity` (`subject.cn`), `identifier`
//! (`serial`) and `prefix` (what stands before the identifier in that field). Whatever is missing or unknown is a 403.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::authorization_server::Authorization;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use envoy_types::pb::google::rpc::Status as RpcStatus;
use percent_encoding::percent_decode_str;
use posture::caller::Peer;
use posture::identity::{DeviceId, Field, IdentifierKind, Identity, Trust};
use posture::outcome::{Denial, Outcome};
use posture::policy::RequestKind;
use serde_json::json;
use tonic::{Code, Request, Response, Status};

use crate::decide::{self, Asker, Decision, Plan};
use crate::metrics::{AuthorizationLabels, Word};
use crate::provider::http::escaped;
use crate::query::deadline;
use crate::runtime::Runtime;

/// The service on `query.sock`.
#[derive(Debug)]
pub struct Guard {
    runtime: Arc<Runtime>,
}

impl Guard {
    /// Judges by the runtime's policies.
    pub fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime }
    }
}

/// What the route and the certificate say.
struct Asked {
    policy: Arc<str>,
    plan: Arc<Plan>,
    device: DeviceId,
    caller: Option<String>,
}

#[tonic::async_trait]
impl Authorization for Guard {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let deadline = deadline(&request);
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let certificate = attributes.source.map(|source| source.certificate).unwrap_or_default();
        let asked = match self.read(&attributes.context_extensions, &certificate) {
            Ok(asked) => asked,
            Err(denial) => {
                self.count("none", "deny", &denial);
                return Ok(Response::new(refused(403, &denial, Code::PermissionDenied, metadata("deny", &denial.code, None, None))));
            }
        };
        let Asked { policy, plan, device, caller } = asked;
        let identity = Identity { device, trust: Trust::Certificate };
        let asker = Asker { identity, kind: RequestKind::ExtAuthz, webhook: None, caller, hint: None, deadline, explain: false };
        let decision = decide::decide(&plan, &asker, &self.runtime.locks, &self.runtime.metrics).await;
        Ok(Response::new(self.response(&policy, &asker.identity.device, &decision)))
    }
}

impl Guard {
    /// # Errors
    /// Why nobody can be let in by this.
    fn read(&self, extensions: &HashMap<String, String>, certificate: &str) -> Result<Asked, Denial> {
        let name = extensions.get("policy").ok_or(Denial::POLICY_UNKNOWN)?;
        let snapshot = self.runtime.snapshot();
        let (policy, plan) = snapshot.plans.get_key_value(name.as_str()).ok_or(Denial::POLICY_UNKNOWN)?;
        let field = match extensions.get("identity") {
            None => Field::SubjectCommonName,
            Some(field) => field.parse().map_err(|_| Denial::POLICY_UNKNOWN)?,
        };
        let kind = match extensions.get("identifier") {
            None => IdentifierKind::Serial,
            Some(kind) => kind.parse().map_err(|_| Denial::POLICY_UNKNOWN)?,
        };
        // Envoy gives it percent-encoded.
        let pem = percent_decode_str(certificate).decode_utf8().map_err(|_| Denial::IDENTIFIER_INVALID)?;
        if pem.is_empty() {
            return Err(Denial::IDENTIFIER_MISSING);
        }
        let (peer, der) = Peer::from_pem(pem.as_bytes()).map_err(|_| Denial::IDENTIFIER_INVALID)?;
        let stated = field.of_certificate(&der)?;
        let stated = match extensions.get("prefix") {
            None => stated.as_str(),
            Some(prefix) => stated.strip_prefix(prefix.as_str()).ok_or(Denial::IDENTIFIER_MISSING)?,
        };
        let caller = peer.names().first().map(ToString::to_string);
        Ok(Asked { policy: Arc::clone(policy), plan: Arc::clone(plan), device: DeviceId::new(kind, stated)?, caller })
    }

    fn response(&self, policy: &str, device: &DeviceId, decision: &Decision) -> CheckResponse {
        match &decision.outcome {
            Outcome::Allow(data) => {
                let waived = decision.waived.as_ref();
                self.runtime
                    .metrics
                    .authorizations
                    .get_or_create(&AuthorizationLabels { policy: Word::from(policy), decision: "allow", reason: "allowed" })
                    .inc();
                let header = |name: &str, value: &str| HeaderValueOption {
                    header: Some(HeaderValue { key: name.to_owned(), value: escaped(value), ..HeaderValue::default() }),
                    append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
                    ..HeaderValueOption::default()
                };
                let mut headers = vec![
                    header("x-posture-device", device.normal()),
                    header("x-posture-policy", policy),
                    header("x-posture-decision", "allow"),
                ];
                // What does not fit into headers is left to those who ask by gRPC.
                if data.as_json().len() <= LARGEST_HEADER {
                    headers.push(header("x-posture-data", data.as_json()));
                }
                CheckResponse {
                    status: Some(RpcStatus { code: Code::Ok.into(), ..RpcStatus::default() }),
                    dynamic_metadata: Some(metadata("allow", waived.map_or("allowed", |denial| &*denial.code), Some(policy), Some(device))),
                    http_response: Some(HttpResponse::OkResponse(OkHttpResponse { headers, ..OkHttpResponse::default() })),
                }
            }
            Outcome::Deny(denial) => {
                self.count(policy, "deny", denial);
                refused(403, denial, Code::PermissionDenied, metadata("deny", &denial.code, Some(policy), Some(device)))
            }
            Outcome::Refuse(refusal) => {
                let (status, code, message) = posture::reply::public(*refusal);
                let denial = Denial { code: code.into(), message: message.into(), remediation_url: None };
                self.count(policy, "refuse", &denial);
                refused(status, &denial, Code::Unavailable, metadata("refuse", refusal.as_str(), Some(policy), Some(device)))
            }
        }
    }

    fn count(&self, policy: &str, decision: &'static str, denial: &Denial) {
        let reason = crate::evaluate::code(denial);
        self.runtime.metrics.authorizations.get_or_create(&AuthorizationLabels { policy: Word::from(policy), decision, reason }).inc();
    }
}

fn refused(status: u16, denial: &Denial, code: Code, metadata: Struct) -> CheckResponse {
    let body = json!({ "code": denial.code, "message": denial.message, "remediation_url": denial.remediation_url });
    let header = HeaderValue { key: "content-type".to_owned(), value: "application/json".to_owned(), ..HeaderValue::default() };
    CheckResponse {
        status: Some(RpcStatus { code: code.into(), ..RpcStatus::default() }),
        dynamic_metadata: Some(metadata),
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus { code: status.into() }),
            headers: vec![HeaderValueOption {
                header: Some(header),
                append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
                ..HeaderValueOption::default()
            }],
            body: body.to_string(),
        })),
    }
}

/// For access logs, in the namespace `envoy.filters.http.ext_authz`.
fn metadata(decision: &str, reason: &str, policy: Option<&str>, device: Option<&DeviceId>) -> Struct {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = [("decision", Some(decision)), ("reason", Some(reason)), ("policy", policy), ("device", device.map(DeviceId::normal))];
    Struct { fields: fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), text(value?)))).collect() }
}

/// Largest `data` that goes into a header, in bytes before it is escaped.
const LARGEST_HEADER: usize = 4096;
