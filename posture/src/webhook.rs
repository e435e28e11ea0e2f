//! The bodies that step-ca sends, for every kind of webhook (`webhook/types.go`).

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::key::PublicKey;
use crate::outcome::Refusal;
use crate::time::UnixTime;

/// The kind of a webhook: when step-ca calls it (`linkedca.Webhook_Kind`). The kind is declared, never guessed: step-ca
/// leaves an empty SCEP challenge out of the body, which then looks like another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Called before the template is rendered, to add data to it.
    Enriching,
    /// Called after the template is rendered, to allow the certificate.
    Authorizing,
    /// Called to check a SCEP challenge.
    ScepChallenge,
    /// Called to report a SCEP certificate that was issued, or was not.
    Notifying,
}

impl Kind {
    /// The kind's name in the configuration, such as `enriching`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enriching => "enriching",
            Self::Authorizing => "authorizing",
            Self::ScepChallenge => "scep_challenge",
            Self::Notifying => "notifying",
        }
    }
}

/// A body with a timestamp.
pub trait Stamp {
    /// The timestamp, if it is a date.
    fn timestamp(&self) -> Option<UnixTime>;
}

/// The timestamp of a body, and nothing else of it: all that the filter needs.
#[derive(Debug, Deserialize)]
pub struct Stamped<'b> {
    #[serde(borrow)]
    timestamp: Cow<'b, str>,
}

impl Stamp for Stamped<'_> {
    fn timestamp(&self) -> Option<UnixTime> {
        UnixTime::parse(&self.timestamp)
    }
}

/// A whole body, whatever its kind. Unknown fields are ignored, since step-ca adds some; a field that appears twice is refused.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Webhook<'b> {
    #[serde(borrow)]
    timestamp: Cow<'b, str>,
    /// Name of the provisioner; absent for X.509 and SSH in step-ca 0.30.2.
    #[serde(borrow, default)]
    pub provisioner_name: Option<Cow<'b, str>>,
    /// Result of the attestation; present only after a `device-attest-01` challenge.
    #[serde(borrow, default)]
    pub attestation_data: Option<AttestationData<'b>>,
    /// X.509 certificate request, in ENRICHING, SCEPCHALLENGE and NOTIFYING.
    #[serde(borrow, default)]
    pub x509_certificate_request: Option<X509<'b>>,
    /// X.509 certificate, in AUTHORIZING and NOTIFYING.
    #[serde(borrow, default)]
    pub x509_certificate: Option<X509<'b>>,
    /// SSH certificate request, in ENRICHING.
    #[serde(borrow, default)]
    pub ssh_certificate_request: Option<Ssh<'b>>,
    /// SSH certificate, in AUTHORIZING.
    #[serde(borrow, default)]
    pub ssh_certificate: Option<Ssh<'b>>,
    /// SCEP challenge, in SCEPCHALLENGE; absent if it is empty.
    #[serde(borrow, default)]
    pub scep_challenge: Option<Cow<'b, str>>,
    /// Id of the SCEP transaction, in SCEPCHALLENGE and NOTIFYING.
    #[serde(borrow, default, rename = "scepTransactionID")]
    pub scep_transaction_id: Option<Cow<'b, str>>,
    /// Code of the error, in NOTIFYING of a failure.
    #[serde(default)]
    pub scep_error_code: Option<i64>,
    /// Text of the error, in NOTIFYING of a failure.
    #[serde(borrow, default)]
    pub scep_error_description: Option<Cow<'b, str>>,
    /// Certificate that authorized the request; present for an X5C provisioner.
    #[serde(borrow, default, rename = "x5cCertificate")]
    pub x5c_certificate: Option<X5c<'b>>,
    /// Owner of the request's token, as step-ca understood it; present for X5C, AWS, GCP and Azure provisioners. For X5C it
    /// is the common name of [`Self::x5c_certificate`]; for the others it is an id of the instance, which the cloud's signed
    /// document states, or for SSH in GCP the instance's name or a mail address.
    #[serde(borrow, default)]
    pub authorization_principal: Option<Cow<'b, str>>,
}

/// The result of an attestation.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttestationData<'b> {
    /// The identifier that step-ca compared with the order.
    #[serde(borrow)]
    pub permanent_identifier: Cow<'b, str>,
}

/// An X.509 certificate request, or the certificate that a template made of one (`x509util` in `go.step.sm/crypto`).
///
/// A certificate that is not signed yet has no [`Self::raw`]; a signed one has only that and the key.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct X509<'b> {
    /// Subject; absent in a notification.
    #[serde(borrow)]
    pub subject: Option<Subject<'b>>,
    /// Subject, DER in base64. If a template gives it, it is signed instead of [`Self::subject`].
    #[serde(borrow)]
    pub raw_subject: Option<Cow<'b, str>>,
    /// DNS names among the subject alternative names.
    #[serde(borrow)]
    pub dns_names: Many<'b>,
    /// Mail addresses among the subject alternative names.
    #[serde(borrow)]
    pub email_addresses: Many<'b>,
    /// IP addresses among the subject alternative names.
    #[serde(borrow)]
    pub ip_addresses: Many<'b>,
    /// URIs among the subject alternative names.
    #[serde(borrow)]
    pub uris: Many<'b>,
    /// Subject alternative names of any type, which are signed in addition to those by type.
    #[serde(borrow)]
    pub sans: Option<Vec<San<'b>>>,
    /// Extensions. A subjectAltName among them is signed instead of all the names above.
    #[serde(borrow)]
    pub extensions: Option<Vec<Extension<'b>>>,
    /// Public key: SubjectPublicKeyInfo, DER in base64 (`x509.MarshalPKIXPublicKey`).
    #[serde(borrow)]
    pub public_key: Option<Cow<'b, str>>,
    /// The request, or the signed certificate, DER in base64.
    #[serde(borrow)]
    pub raw: Option<Cow<'b, str>>,
}

/// A subject alternative name with its type, as templates write it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct San<'b> {
    /// Type of the name: `dns`, `email`, `ip`, `uri`, `auto` or nothing for any of these, and others, such as
    /// `permanentIdentifier`.
    #[serde(borrow, rename = "type")]
    pub kind: Cow<'b, str>,
    /// The name, a single text.
    #[serde(borrow)]
    pub value: Cow<'b, str>,
    /// The name, for types that have several parts.
    pub asn1_value: serde_json::Value,
}

/// An X.509 extension.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Extension<'b> {
    /// OID of the extension, in digits and dots.
    #[serde(borrow)]
    pub id: Cow<'b, str>,
    /// Value of the extension, DER in base64.
    #[serde(borrow)]
    pub value: Option<Cow<'b, str>>,
}

impl X509<'_> {
    /// The public key; `None` if there is none, or none that a certificate could have.
    pub fn key(&self) -> Option<PublicKey> {
        PublicKey::from_spki(&STANDARD.decode(self.public_key.as_deref()?).ok()?)
    }
}

/// A subject, as far as it can name a device.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subject<'b> {
    /// Common name, OID 2.5.4.3.
    #[serde(borrow)]
    pub common_name: Option<Cow<'b, str>>,
    /// Serial number, OID 2.5.4.5.
    #[serde(borrow)]
    pub serial_number: Option<Cow<'b, str>>,
    /// Other attributes. One with the OID of a field above is signed instead of that field.
    #[serde(borrow)]
    pub extra_names: Option<Vec<ExtraName<'b>>>,
}

/// An attribute of a subject.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ExtraName<'b> {
    /// OID of the attribute, in digits and dots.
    #[serde(borrow, rename = "type")]
    pub kind: Cow<'b, str>,
    /// Value of the attribute: a string, or another type that templates can write.
    pub value: serde_json::Value,
}

/// An SSH certificate request, or the certificate that a template made of one.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ssh<'b> {
    /// Type of the certificate: `user` or `host`.
    #[serde(borrow, rename = "type")]
    pub certificate_type: Option<Cow<'b, str>>,
    /// Key id: `keyID` in a request, `keyId` in a certificate.
    #[serde(borrow, rename = "keyID", alias = "keyId")]
    pub key_id: Option<Cow<'b, str>>,
    /// Names for which the certificate is valid.
    #[serde(borrow)]
    pub principals: Many<'b>,
}

/// The certificate that authorized an X5C request.
#[derive(Debug, Deserialize)]
pub struct X5c<'b> {
    /// The certificate, DER in base64.
    #[serde(borrow)]
    pub raw: Cow<'b, str>,
}

/// A list of strings: Go writes `null` for an empty list, and `x509util.MultiString` reads a single string too.
#[derive(Debug, Default)]
pub struct Many<'b>(pub Vec<Cow<'b, str>>);

impl Stamp for Webhook<'_> {
    fn timestamp(&self) -> Option<UnixTime> {
        UnixTime::parse(&self.timestamp)
    }
}

impl Webhook<'_> {
    /// Checks that the body is of the kind that its webhook declares.
    ///
    /// # Errors
    /// [`Refusal::KindMismatch`] if the body is of another kind.
    pub fn check_kind(&self, kind: Kind) -> Result<(), Refusal> {
        let requests = usize::from(self.x509_certificate_request.is_some()) + usize::from(self.ssh_certificate_request.is_some());
        let certificates = usize::from(self.x509_certificate.is_some()) + usize::from(self.ssh_certificate.is_some());
        let scep_error = self.scep_error_code.is_some() || self.scep_error_description.is_some();
        let ssh = self.ssh_certificate_request.is_some() || self.ssh_certificate.is_some();
        let scep = self.scep_challenge.is_some() || self.scep_transaction_id.is_some() || scep_error;
        let fits = match kind {
            Kind::Enriching => requests == 1 && certificates == 0 && !scep,
            Kind::Authorizing => certificates == 1 && requests == 0 && !scep,
            Kind::ScepChallenge => requests == 1 && certificates == 0 && !ssh && !scep_error && self.attestation_data.is_none(),
            Kind::Notifying => requests == 1 && !ssh && self.scep_challenge.is_none() && self.attestation_data.is_none(),
        };
        if fits { Ok(()) } else { Err(Refusal::KindMismatch) }
    }

    /// The X.509 request or certificate in the body.
    pub fn x509(&self) -> Option<&X509<'_>> {
        self.x509_certificate_request.as_ref().or(self.x509_certificate.as_ref())
    }

    /// The SSH request or certificate in the body.
    pub fn ssh(&self) -> Option<&Ssh<'_>> {
        self.ssh_certificate_request.as_ref().or(self.ssh_certificate.as_ref())
    }
}

impl<'de: 'b, 'b> Deserialize<'de> for Many<'b> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;

        impl<'de> Visitor<'de> for Strings {
            type Value = Many<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a list of strings or null")
            }

            fn visit_unit<E>(self) -> Result<Many<'de>, E> {
                Ok(Many::default())
            }

            fn visit_borrowed_str<E>(self, one: &'de str) -> Result<Many<'de>, E> {
                Ok(Many(vec![Cow::Borrowed(one)]))
            }

            fn visit_str<E>(self, one: &str) -> Result<Many<'de>, E> {
                Ok(Many(vec![Cow::Owned(one.to_owned())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Many<'de>, A::Error> {
                let mut strings = Vec::new();
                while let Some(Text(text)) = list.next_element()? {
                    strings.push(text);
                }
                Ok(Many(strings))
            }
        }

        // `Cow<str>` alone would copy the strings inside a list.
        #[derive(Deserialize)]
        struct Text<'t>(#[serde(borrow)] Cow<'t, str>);

        deserializer.deserialize_any(Strings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(fields: &str) -> Vec<&'static str> {
        let body = format!(r#"{{"timestamp":"2026-11-23T00:00:00Z"{fields}}}"#);
        let webhook: Webhook<'_> = serde_json::from_str(&body).unwrap();
        [Kind::Enriching, Kind::Authorizing, Kind::ScepChallenge, Kind::Notifying]
            .into_iter()
            .filter(|kind| webhook.check_kind(*kind).is_ok())
            .map(Kind::as_str)
            .collect()
    }

    #[test]
    fn tells_the_kinds_apart() {
        const REQUEST: &str = r#","x509CertificateRequest":{"subject":{"commonName":"a"}}"#;
        const CERTIFICATE: &str = r#","x509Certificate":{"subject":{"commonName":"a"}}"#;
        const ATTESTED: &str = r#","attestationData":{"permanentIdentifier":"a"}"#;
        assert_eq!(kinds(&format!("{REQUEST}{ATTESTED}")), ["enriching"]);
        assert_eq!(kinds(&format!("{CERTIFICATE}{ATTESTED}")), ["authorizing"]);
        assert_eq!(kinds(r#","sshCertificateRequest":{"type":"user","keyID":"k","principals":["a"]}"#), ["enriching"]);
        assert_eq!(kinds(r#","sshCertificate":{"type":"user","keyId":"k","principals":null}"#), ["authorizing"]);
        assert_eq!(kinds(&format!(r#"{REQUEST},"scepChallenge":"s","scepTransactionID":"t""#)), ["scep_challenge"]);
        assert_eq!(kinds(&format!(r#"{REQUEST}{CERTIFICATE},"scepTransactionID":"t""#)), ["notifying"]);
        assert_eq!(kinds(&format!(r#"{REQUEST},"scepTransactionID":"t","scepErrorCode":2,"scepErrorDescription":"d""#)), ["notifying"]);
        assert_eq!(kinds(""), [""; 0]);
        assert_eq!(kinds(&format!("{REQUEST}{CERTIFICATE}{ATTESTED}")), [""; 0]);
    }

    #[test]
    fn each_part_that_only_one_kind_has_is_looked_at_by_itself() {
        const REQUEST: &str = r#","x509CertificateRequest":{}"#;
        for error in [r#","scepErrorCode":2"#, r#","scepErrorDescription":"d""#] {
            assert_eq!(kinds(&format!("{REQUEST}{error}")), ["notifying"], "{error}");
        }
        for scep in [r#","scepChallenge":"s""#, r#","scepTransactionID":"t""#] {
            assert!(!kinds(&format!("{REQUEST}{scep}")).contains(&"enriching"), "{scep}");
        }
        for ssh in [r#","sshCertificate":{}"#, r#","sshCertificateRequest":{}"#] {
            assert!(!kinds(ssh).contains(&"notifying") && !kinds(ssh).contains(&"scep_challenge"), "{ssh}");
            assert_eq!(kinds(&format!("{REQUEST}{ssh}")), [""; 0], "{ssh}");
        }
    }

    #[test]
    fn a_body_has_its_time_and_its_half() {
        let body = r#"{"timestamp":"1970-01-01T00:00:01Z","x509Certificate":{"subject":{"commonName":"c"}}}"#;
        let webhook: Webhook<'_> = serde_json::from_str(body).unwrap();
        assert_eq!(webhook.timestamp(), Some(UnixTime::from_nanos(1_000_000_000)));
        assert_eq!(webhook.x509().unwrap().subject.as_ref().unwrap().common_name.as_deref(), Some("c"));
        let both = r#"{"timestamp":"","x509Certificate":{},"x509CertificateRequest":{"subject":{"commonName":"r"}}}"#;
        let webhook: Webhook<'_> = serde_json::from_str(both).unwrap();
        assert_eq!(webhook.x509().unwrap().subject.as_ref().unwrap().common_name.as_deref(), Some("r"));
        assert!(serde_json::from_str::<Webhook<'_>>(r#"{"timestamp":""}"#).unwrap().x509().is_none());
    }

    #[test]
    fn an_empty_scep_challenge_cannot_be_told_from_others_so_the_kind_is_declared() {
        assert_eq!(kinds(r#","x509CertificateRequest":{},"scepTransactionID":"t""#), ["scep_challenge", "notifying"]);
        assert_eq!(kinds(r#","x509CertificateRequest":{}"#), ["enriching", "scep_challenge", "notifying"]);
    }

    #[test]
    fn leaves_unknown_fields_alone_and_refuses_known_ones_that_come_twice() {
        assert_eq!(kinds(r#","x509CertificateRequest":{"new":[1]},"newer":{"a":null}"#).len(), 3);
        for twice in [
            r#"{"timestamp":"","attestationData":{"permanentIdentifier":"a"},"attestationData":{"permanentIdentifier":"b"}}"#,
            r#"{"timestamp":"","attestationData":{"permanentIdentifier":"a","permanentIdentifier":"b"}}"#,
            r#"{"timestamp":"","x509CertificateRequest":{"subject":{"commonName":"a","commonName":"b"}}}"#,
        ] {
            assert!(serde_json::from_str::<Webhook<'_>>(twice).is_err(), "{twice}");
        }
    }

    #[test]
    fn reads_lists_as_go_writes_them() {
        let read = |json| serde_json::from_str::<X509<'_>>(json).unwrap().dns_names.0;
        assert_eq!(read(r#"{"dnsNames":null}"#), [""; 0]);
        assert_eq!(read(r#"{"dnsNames":"a"}"#), ["a"]);
        assert_eq!(read(r#"{"dnsNames":"\u0061"}"#), ["a"]);
        assert_eq!(read(r#"{"dnsNames":["a","\u0062"]}"#), ["a", "b"]);
        assert!(serde_json::from_str::<X509<'_>>(r#"{"dnsNames":[1]}"#).is_err());
        let error = serde_json::from_str::<X509<'_>>(r#"{"dnsNames":1}"#).unwrap_err().to_string();
        assert!(error.contains("expected a string, a list of strings or null"), "{error}");
    }

    #[test]
    fn f_the_key_id_is_read_as_a_request_and_as_a_certificate_spell_it_and_never_twice() {
        let read = |json| serde_json::from_str::<Ssh<'_>>(json).map(|ssh| ssh.key_id.map(Cow::into_owned));
        assert_eq!(read(r#"{"keyID":"a"}"#).unwrap().as_deref(), Some("a"));
        assert_eq!(read(r#"{"keyId":"b"}"#).unwrap().as_deref(), Some("b"));
        assert_eq!(read(r#"{"keyid":"c"}"#).unwrap(), None);
        for twice in [r#"{"keyID":"a","keyId":"b"}"#, r#"{"keyId":"a","keyId":"b"}"#] {
            assert!(read(twice).is_err(), "{twice}");
        }
    }
}
