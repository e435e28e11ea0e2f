//! The outcome of a webhook: allowed with data, denied by the facts, or refused before the facts were asked.

use std::borrow::Cow;
use std::fmt;

use serde_json::value::RawValue;

/// The outcome of a webhook. [`crate::reply`] turns it into what step-ca reads.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// step-ca may go on, with this data for its templates.
    Allow(Data),
    /// The facts deny the request. step-ca passes code and message on to the client.
    Deny(Denial),
    /// The request was refused before the facts were asked, or could not be decided.
    Refuse(Refusal),
}

/// Data that a template finds under `.Webhooks.<name>`: one JSON value, already encoded and shared, not copied.
#[derive(Clone)]
pub struct Data(std::sync::Arc<str>);

impl Data {
    /// Empty data, `{}`: for an allowed device of which nothing else is known.
    pub fn empty() -> Self {
        Self("{}".into())
    }

    /// Takes an encoded JSON value as it is.
    ///
    /// # Errors
    /// Fails if the text is not one JSON value.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<&RawValue>(json).map(|value| Self(value.get().into()))
    }

    /// Encodes a value as JSON.
    ///
    /// # Errors
    /// Fails if the value has no JSON form, such as a map with keys that are not strings.
    pub fn from_value(value: &impl serde::Serialize) -> Result<Self, serde_json::Error> {
        serde_json::to_string(value).map(|json| Self(json.into()))
    }

    /// The data as JSON text.
    pub fn as_json(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Data {
    // The data holds people's names and addresses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Data({} bytes)", self.0.len())
    }
}

/// A denial by the facts. Code and message reach the client, as an ACME subproblem `urn:smallstep:acme:error:<code>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Stable code, in snake_case.
    pub code: Cow<'static, str>,
    /// Message for people, one sentence.
    pub message: Cow<'static, str>,
    /// Address of a page that says what to do, if the operator gave one.
    pub remediation_url: Option<Cow<'static, str>>,
}

macro_rules! denials {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $message:literal;)*) => {
        impl Denial {
            $($(#[$doc])* pub const $name: Self = Self {
                code: Cow::Borrowed($code),
                message: Cow::Borrowed($message),
                remediation_url: None,
            };)*

            /// All denials that Stepward itself gives.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

denials! {
    /// No inventory has the device.
    DEVICE_NOT_FOUND = "device_not_found", "the device is in no inventory that this webhook asks";
    /// More than one record fits.
    DEVICE_AMBIGUOUS = "device_ambiguous", "more than one inventory record fits this device";
    /// The webhook wants an attested identifier and there is none.
    ATTESTATION_MISSING = "attestation_missing", "the request carries no attested device identifier";
    /// The field that names the device is not there.
    IDENTIFIER_MISSING = "identifier_missing", "the request does not name a device";
    /// The field that names the device has several values.
    IDENTIFIER_AMBIGUOUS = "identifier_ambiguous", "the request names more than one device";
    /// The identifier is empty, too long, or has characters that no identifier has.
    IDENTIFIER_INVALID = "identifier_invalid", "the device identifier is not of a valid form";
    /// Names differ that must be equal: the attested identifier and another one, or a name and one that overrides it.
    IDENTIFIER_MISMATCH = "identifier_mismatch", "the names in the request do not agree on the device";
    /// A check needs a field that no inventory states.
    POSTURE_UNKNOWN = "posture_unknown", "not enough is known of the device to decide";
    /// A check could not be evaluated.
    POLICY_ERROR = "policy_error", "a rule of the policy cannot be applied to this device";
    /// The check `not_lost` does not hold.
    DEVICE_LOST = "device_lost", "the device is reported lost";
    /// The check `not_wiping` does not hold.
    DEVICE_WIPE_PENDING = "device_wipe_pending", "the device is about to be wiped or retired";
    /// The check `managed` does not hold.
    DEVICE_UNMANAGED = "device_unmanaged", "the device is not under management";
    /// The check `trust` does not hold.
    TRUST_INSUFFICIENT = "trust_insufficient", "it is not well enough proven that the request comes from the device";
    /// The check `max_age` does not hold.
    RECORD_TOO_OLD = "record_too_old", "what is known of the device was fetched too long ago";
    /// The check `max_silence` does not hold.
    DEVICE_SILENT = "device_silent", "the device has not been heard of for too long";
    /// The check `compliance` does not hold.
    NOT_COMPLIANT = "not_compliant", "the device management does not call the device compliant";
    /// The check `min_os` does not hold.
    OS_OUTDATED = "os_outdated", "the operating system of the device is too old";
    /// The check `groups_none` does not hold.
    GROUP_FORBIDDEN = "group_forbidden", "the device is in a group that may not";
    /// The check `groups_all` or `groups_any` does not hold.
    GROUP_REQUIRED = "group_required", "the device is not in a group that may";
    /// The data for a template is too large.
    DATA_TOO_LARGE = "data_too_large", "what is known of the device is too large for a certificate";
    /// An operator has locked the device.
    DEVICE_LOCKED = "device_locked", "the device is locked by an administrator";
    /// The route names a policy that does not exist.
    POLICY_UNKNOWN = "policy_unknown", "this route names no posture policy that there is";
    /// The public key of the client certificate belongs to no known device.
    KEY_UNKNOWN = "key_unknown", "no device is known by the public key of this certificate";
    /// The extended key usage of a client certificate does not name client authentication.
    CERTIFICATE_NOT_FOR_CLIENTS = "certificate_not_for_clients", "the client certificate is not for client authentication";
    /// No source of challenges is configured.
    SCEP_CHALLENGE_UNSUPPORTED = "scep_challenge_unsupported", "no source of SCEP challenges is configured";
    /// The answer to every notification: step-ca does not read it.
    NOTIFICATION_RECORDED = "notification_recorded", "the notification was recorded";
}

/// Declares [`Refusal`]: each cause with its word, so that none is missing where all are gone through.
macro_rules! refusals {
    ($(#[$of_all:meta])* pub enum Refusal { $($(#[$doc:meta])* $name:ident => $word:literal,)* }) => {
        $(#[$of_all])*
        pub enum Refusal {
            $($(#[$doc])* $name,)*
        }

        impl Refusal {
            /// All refusals.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The cause as a word, for logs, metrics and the wire between filter and sidecar.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

refusals! {
    /// The reason why a request was refused before the facts were asked, or could not be decided.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub enum Refusal {
        // The caller must mend its request.
        /// The method is not POST.
        Method => "method",
        /// The path is not below `/webhook/`.
        Path => "path",
        /// The body is not JSON, or not of step-ca's schema.
        Malformed => "malformed",
        /// The body is of another kind than the webhook declares.
        KindMismatch => "kind_mismatch",
        /// The body is larger than the webhook's limit.
        TooLarge => "too_large",

        // The caller could not prove itself. All of these have one public text; only the log has the cause.
        /// The request has no `X-Smallstep-Webhook-ID`, or several.
        WebhookIdHeader => "webhook_id_header",
        /// The webhook id is not configured.
        WebhookUnknown => "webhook_unknown",
        /// The request has no `X-Smallstep-Signature`, several, or one that is not 64 lower-case hexadecimal digits.
        SignatureHeader => "signature_header",
        /// None of the webhook's secrets gives this signature.
        Signature => "signature",
        /// The bearer token or basic credentials that the webhook requires are missing or wrong.
        Credentials => "credentials",
        /// The timestamp is older than the window allows.
        TimestampPast => "timestamp_past",
        /// The timestamp is further ahead than the window allows.
        TimestampFuture => "timestamp_future",

        // The caller is known, and not allowed.
        /// The caller has no client certificate, or no name that this webhook allows.
        Caller => "caller",
        /// The same bytes came before, from another caller.
        ReplayedByAnother => "replayed_by_another",

        // The service cannot answer; step-ca tries once more.
        /// The filter has no keys from the sidecar yet.
        NoKeys => "no_keys",
        /// The sidecar is not connected, or its answer made no sense.
        SidecarUnavailable => "sidecar_unavailable",
        /// No answer came within the deadline.
        DeadlineExceeded => "deadline_exceeded",
        /// Too many requests are waiting.
        Overloaded => "overloaded",
        /// A provider is unavailable, and no usable record is cached.
        ProviderUnavailable => "provider_unavailable",
        /// The replay memory has no room for another webhook.
        ReplayMemoryFull => "replay_memory_full",
        /// The sidecar knows for too long nothing of what other services on its store rule.
        StoreStale => "store_stale",
        /// An internal fault.
        Internal => "internal",
    }
}

impl Refusal {
    /// Parses a cause that [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|refusal| refusal.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_refusal_reads_back() {
        let names: BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.as_str()).collect();
        assert_eq!(names.len(), Refusal::ALL.len());
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::parse(refusal.as_str()), Some(*refusal));
        }
        assert_eq!(Refusal::parse("allow"), None);
    }

    #[test]
    fn data_is_one_json_value() {
        assert_eq!(Data::from_json(" {\"a\":1} ").unwrap().as_json(), "{\"a\":1}");
        for bad in ["", "{", "{}{}", "{},\"allow\":true"] {
            assert!(Data::from_json(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn data_does_not_print() {
        assert_eq!(format!("{:?}", Data::from_json("\"private\"").unwrap()), "Data(9 bytes)");
    }
}
