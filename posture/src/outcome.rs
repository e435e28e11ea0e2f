//! What became of a webhook: allowed with data, denied by the facts, or refused before they were asked.

use std::borrow::Cow;
use std::fmt;

use serde_json::value::RawValue;

/// The end of a webhook. [`crate::reply`] turns it into what step-ca reads.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// step-ca may go on, with this data for its templates.
    Allow(Data),
    /// The facts say no. step-ca passes code and message on to the client.
    Deny(Denial),
    /// The request was not worth, or not able, to be decided.
    Refuse(Refusal),
}

/// What a template finds under `.Webhooks.<name>`: one JSON value, already encoded and shared, not copied.
#[derive(Clone)]
pub struct Data(std::sync::Arc<str>);

impl Data {
    /// `{}`: for a device of which nothing is known but that it may.
    pub fn empty() -> Self {
        Self("{}".into())
    }

    /// Takes JSON as it stands.
    ///
    /// # Errors
    /// Where the text is not one JSON value.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<&RawValue>(json).map(|value| Self(value.get().into()))
    }

    /// Encodes a value.
    ///
    /// # Errors
    /// Where it has no JSON form, such as a map with keys that are not strings.
    pub fn from_value(value: &impl serde::Serialize) -> Result<Self, serde_json::Error> {
        serde_json::to_string(value).map(|json| Self(json.into()))
    }

    /// The JSON text.
    pub fn as_json(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Data {
    // It holds people's names and addresses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Data({} bytes)", self.0.len())
    }
}

/// Why the facts say no. Both texts reach the client, as an ACME subproblem `urn:smallstep:acme:error:<code>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Stable, in snake_case.
    pub code: Cow<'static, str>,
    /// One sentence for people.
    pub message: Cow<'static, str>,
    /// Where a person can read what to do, if the operator gave an address.
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

            /// All that Stepward itself gives.
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
    /// Empty, too long, or with characters that no identifier has.
    IDENTIFIER_INVALID = "identifier_invalid", "the device identifier is not of a valid form";
    /// Names differ that must be the same: the attested identifier and another, or one and what overrides it.
    IDENTIFIER_MISMATCH = "identifier_mismatch", "the names in the request do not agree on the device";
    /// A check needs something that no inventory says.
    POSTURE_UNKNOWN = "posture_unknown", "not enough is known of the device to decide";
    /// A check could not be evaluated.
    POLICY_ERROR = "policy_error", "a rule of the policy cannot be applied to this device";
    /// `not_lost`
    DEVICE_LOST = "device_lost", "the device is reported lost";
    /// `not_wiping`
    DEVICE_WIPE_PENDING = "device_wipe_pending", "the device is about to be wiped or retired";
    /// `managed`
    DEVICE_UNMANAGED = "device_unmanaged", "the device is not under management";
    /// `trust`
    TRUST_INSUFFICIENT = "trust_insufficient", "it is not well enough proven that the request comes from the device";
    /// `max_age`
    RECORD_TOO_OLD = "record_too_old", "what is known of the device was fetched too long ago";
    /// `max_silence`
    DEVICE_SILENT = "device_silent", "the device has not been heard of for too long";
    /// `compliance`
    NOT_COMPLIANT = "not_compliant", "the device management does not call the device compliant";
    /// `min_os`
    OS_OUTDATED = "os_outdated", "the operating system of the device is too old";
    /// `groups_none`
    GROUP_FORBIDDEN = "group_forbidden", "the device is in a group that may not";
    /// `groups_all`, `groups_any`
    GROUP_REQUIRED = "group_required", "the device is not in a group that may";
    /// What a template would get is beyond all measure.
    DATA_TOO_LARGE = "data_too_large", "what is known of the device is too large for a certificate";
    /// An operator has locked the device.
    DEVICE_LOCKED = "device_locked", "the device is locked by an administrator";
    /// The route names no policy that there is.
    POLICY_UNKNOWN = "policy_unknown", "this route names no posture policy that there is";
    /// A client certificate's public key is none of a device.
    KEY_UNKNOWN = "key_unknown", "no device is known by the public key of this certificate";
    /// The extended key usage of a client certificate does not name client authentication.
    CERTIFICATE_NOT_FOR_CLIENTS = "certificate_not_for_clients", "the client certificate is not for client authentication";
    /// No source of challenges is configured.
    SCEP_CHALLENGE_UNSUPPORTED = "scep_challenge_unsupported", "no source of SCEP challenges is configured";
    /// The answer to every notification: step-ca does not read it.
    NOTIFICATION_RECORDED = "notification_recorded", "the notification was recorded";
}

/// Why a request was turned away before the facts were asked, or could not be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    // The caller must mend its request.
    /// Not a POST.
    Method,
    /// Not below `/webhook/`.
    Path,
    /// Not JSON, or not of step-ca's schema.
    Malformed,
    /// Of another kind than the webhook declares.
    KindMismatch,
    /// Beyond the webhook's body limit.
    TooLarge,

    // The caller could not prove itself. One public text for all of them: only the log has the cause.
    /// No `X-Smallstep-Webhook-ID`, or several.
    WebhookIdHeader,
    /// An id that is not configured.
    WebhookUnknown,
    /// No `X-Smallstep-Signature`, several, or not 64 lower-case hexadecimal digits.
    SignatureHeader,
    /// None of the webhook's secrets gives this signature.
    Signature,
    /// The bearer token or basic credentials that the webhook requires are missing or wrong.
    Credentials,
    /// Older than the window.
    TimestampPast,
    /// Further ahead than the window.
    TimestampFuture,

    // The caller is known, and may not.
    /// No client certificate, or none of its names is allowed for this webhook.
    Caller,
    /// The same bytes came before, from somebody else.
    ReplayedByAnother,

    // We cannot answer; step-ca tries once more.
    /// The filter has no keys from the sidecar yet.
    NoKeys,
    /// The sidecar is away, or its answer made no sense.
    SidecarUnavailable,
    /// No answer within the deadline.
    DeadlineExceeded,
    /// Too many requests wait.
    Overloaded,
    /// A provider cannot say, and nothing usable is cached.
    ProviderUnavailable,
    /// No room to remember another webhook.
    ReplayMemoryFull,
    /// A fault of ours.
    Internal,
}

impl Refusal {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Method,
        Self::Path,
        Self::Malformed,
        Self::KindMismatch,
        Self::TooLarge,
        Self::WebhookIdHeader,
        Self::WebhookUnknown,
        Self::SignatureHeader,
        Self::Signature,
        Self::Credentials,
        Self::TimestampPast,
        Self::TimestampFuture,
        Self::Caller,
        Self::ReplayedByAnother,
        Self::NoKeys,
        Self::SidecarUnavailable,
        Self::DeadlineExceeded,
        Self::Overloaded,
        Self::ProviderUnavailable,
        Self::ReplayMemoryFull,
        Self::Internal,
    ];

    /// The cause, for logs, metrics and the wire between filter and sidecar.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Path => "path",
            Self::Malformed => "malformed",
            Self::KindMismatch => "kind_mismatch",
            Self::TooLarge => "too_large",
            Self::WebhookIdHeader => "webhook_id_header",
            Self::WebhookUnknown => "webhook_unknown",
            Self::SignatureHeader => "signature_header",
            Self::Signature => "signature",
            Self::Credentials => "credentials",
            Self::TimestampPast => "timestamp_past",
            Self::TimestampFuture => "timestamp_future",
            Self::Caller => "caller",
            Self::ReplayedByAnother => "replayed_by_another",
            Self::NoKeys => "no_keys",
            Self::SidecarUnavailable => "sidecar_unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Overloaded => "overloaded",
            Self::ProviderUnavailable => "provider_unavailable",
            Self::ReplayMemoryFull => "replay_memory_full",
            Self::Internal => "internal",
        }
    }

    /// The cause that [`Self::as_str`] wrote.
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
