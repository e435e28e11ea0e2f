//! The inputs of a policy.

use crate::identity::{IdentifierKind, Trust};
use crate::record::Record;
use crate::time::UnixTime;
use crate::webhook::Kind;

/// Everything by which a policy judges.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Record of the device, `device` in expressions.
    pub record: &'a Record,
    /// Time at which the inventory gave the record.
    pub fetched_at: UnixTime,
    /// Proof that the request comes from the device, `trust`.
    pub trust: Trust,
    /// The request, `request`.
    pub request: Request<'a>,
    /// The caller, `caller`.
    pub caller: Caller<'a>,
    /// The time of the judgement, `now`.
    pub now: UnixTime,
}

/// The request that is judged, `request` in expressions.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Id of the webhook, if a webhook asks.
    pub webhook: Option<&'a str>,
    /// Kind of the request.
    pub kind: RequestKind,
    /// Identifier of the device, as it was stated.
    pub identifier: &'a str,
    /// Kind of the identifier.
    pub identifier_kind: IdentifierKind,
}

/// The kind of a request: who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A webhook of step-ca.
    Webhook(Kind),
    /// A posture query.
    Query,
    /// Envoy's external authorization.
    ExtAuthz,
}

impl RequestKind {
    /// The kind's name in policies, such as `query`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook(kind) => kind.as_str(),
            Self::Query => "query",
            Self::ExtAuthz => "ext_authz",
        }
    }
}

/// The caller of the request, `caller` in expressions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller<'a> {
    /// Name by which the caller was admitted, such as `dns:ca.example.org`.
    pub name: Option<&'a str>,
    /// All names of the caller's certificate.
    pub names: &'a [String],
}
