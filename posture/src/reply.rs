//! The reply to step-ca: the one place where an [`Outcome`] becomes a status and a body.
//!
//! step-ca reads the body of any status below 400, takes a 4xx as final, and sends the same bytes once more after a 5xx
//! (`authority/provisioner/webhook.go`, `DoWithContext`). So a denial is a 200 with a reason, a fault that cannot become
//! right is a 4xx, and one that may pass is a 503.

use serde::Serialize;

use crate::outcome::{Outcome, Refusal};

/// An HTTP reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status code.
    pub status: u16,
    /// Body, JSON.
    pub body: Vec<u8>,
}

impl Reply {
    /// Headers of every reply.
    pub const HEADERS: &'static [(&'static str, &'static str)] = &[("content-type", "application/json")];
}

/// The status, public code and public message of a refusal.
pub const fn public(refusal: Refusal) -> (u16, &'static str, &'static str) {
    use Refusal as R;
    match refusal {
        R::Method => (405, "method_not_allowed", "a webhook is a POST"),
        R::Path => (404, "not_found", "webhooks are below /webhook/, and ?mode= is mobiledevice or computer"),
        R::Malformed => (400, "malformed_body", "the body is not a step-ca webhook"),
        R::KindMismatch => (400, "kind_mismatch", "the body is of another kind than this webhook declares"),
        R::TooLarge => (413, "body_too_large", "the body is larger than this webhook accepts"),
        R::WebhookIdHeader
        | R::WebhookUnknown
        | R::SignatureHeader
        | R::Signature
        | R::Credentials
        | R::TimestampPast
        | R::TimestampFuture => (401, "unauthorized", "the request could not be authenticated"),
        R::Caller => (403, "caller_not_allowed", "this client certificate may not call this webhook"),
        R::ReplayedByAnother => (403, "replay_refused", "these bytes were already sent, by another caller or to another webhook"),
        R::ProviderUnavailable => (503, "provider_unavailable", "a device inventory cannot be reached"),
        R::Overloaded | R::ReplayMemoryFull => (503, "overloaded", "too many requests are waiting"),
        R::NoKeys | R::SidecarUnavailable | R::DeadlineExceeded | R::StoreStale | R::Internal => {
            (503, "unavailable", "no decision could be made in time")
        }
    }
}

/// The reply to an outcome.
pub fn reply(outcome: &Outcome) -> Reply {
    match outcome {
        // `Data` holds exactly one JSON value, so this is JSON without another check.
        Outcome::Allow(data) => Reply { status: 200, body: [r#"{"allow":true,"data":"#, data.as_json(), "}"].concat().into_bytes() },
        Outcome::Deny(denial) => encode(200, &Denied { allow: false, error: Error { code: &denial.code, message: &denial.message } }),
        Outcome::Refuse(refusal) => {
            let (status, code, message) = public(*refusal);
            // Both texts come from the table above and need no escaping; a forged request is not worth a serializer.
            let body = [r#"{"allow":false,"error":{"code":""#, code, r#"","message":""#, message, r#""}}"#].concat();
            Reply { status, body: body.into_bytes() }
        }
    }
}

#[derive(Serialize)]
struct Denied<'a> {
    allow: bool,
    error: Error<'a>,
}

#[derive(Serialize)]
struct Error<'a> {
    code: &'a str,
    message: &'a str,
}

fn encode(status: u16, body: &impl Serialize) -> Reply {
    match serde_json::to_vec(body) {
        Ok(body) => Reply { status, body },
        // Unreachable with the types above; an empty 503 would be a refusal too.
        Err(_) => Reply { status: 503, body: Vec::new() },
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use proptest::prelude::*;

    use super::*;
    use crate::outcome::{Data, Denial};

    fn shown(outcome: &Outcome) -> String {
        let reply = reply(outcome);
        format!("{} {}", reply.status, String::from_utf8(reply.body).unwrap())
    }

    #[test]
    fn allows_with_data() {
        assert_snapshot!(shown(&Outcome::Allow(Data::from_json(r#"{"user":{"name":"A \"B\""}}"#).unwrap())), @r#"200 {"allow":true,"data":{"user":{"name":"A \"B\""}}}"#);
        assert_snapshot!(shown(&Outcome::Allow(Data::empty())), @r#"200 {"allow":true,"data":{}}"#);
    }

    #[test]
    fn denies_with_a_reason_that_step_ca_reads() {
        assert_snapshot!(shown(&Outcome::Deny(Denial::DEVICE_NOT_FOUND)), @r#"200 {"allow":false,"error":{"code":"device_not_found","message":"the device is in no inventory that this webhook asks"}}"#);
    }

    #[test]
    fn refuses_in_one_table() {
        let table: String =
            Refusal::ALL.iter().map(|refusal| format!("{:20} {} {}\n", refusal.as_str(), public(*refusal).0, public(*refusal).1)).collect();
        assert_snapshot!(table, @r"
        method               405 method_not_allowed
        path                 404 not_found
        malformed            400 malformed_body
        kind_mismatch        400 kind_mismatch
        too_large            413 body_too_large
        webhook_id_header    401 unauthorized
        webhook_unknown      401 unauthorized
        signature_header     401 unauthorized
        signature            401 unauthorized
        credentials          401 unauthorized
        timestamp_past       401 unauthorized
        timestamp_future     401 unauthorized
        caller               403 caller_not_allowed
        replayed_by_another  403 replay_refused
        no_keys              503 unavailable
        sidecar_unavailable  503 unavailable
        deadline_exceeded    503 unavailable
        overloaded           503 overloaded
        provider_unavailable 503 provider_unavailable
        replay_memory_full   503 overloaded
        store_stale          503 unavailable
        internal             503 unavailable
        ");
    }

    #[test]
    fn a_refusal_is_written_as_a_denial_is() {
        for refusal in Refusal::ALL {
            let (status, code, message) = public(*refusal);
            assert_eq!(reply(&Outcome::Refuse(*refusal)), encode(status, &Denied { allow: false, error: Error { code, message } }));
        }
    }

    #[test]
    fn only_an_allow_says_allow() {
        let others = Refusal::ALL.iter().map(|refusal| Outcome::Refuse(*refusal)).chain(Denial::ALL.iter().cloned().map(Outcome::Deny));
        for outcome in others {
            let body: serde_json::Value = serde_json::from_slice(&reply(&outcome).body).unwrap();
            assert_eq!(body["allow"], false, "{outcome:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_in_a_denial_breaks_out_of_it(code in "\\PC{0,40}", message in "\\PC{0,40}") {
            let denied = reply(&Outcome::Deny(Denial { code: code.clone().into(), message: message.clone().into(), remediation_url: None }));
            let body: serde_json::Value = serde_json::from_slice(&denied.body).unwrap();
            prop_assert_eq!(body, serde_json::json!({"allow": false, "error": {"code": code, "message": message}}));
        }
    }
}
