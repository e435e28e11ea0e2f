//! Step 6: which device a request is about, and how well that is proven.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::spki::SubjectPublicKeyInfoRef;

use crate::outcome::Denial;
use crate::webhook::Webhook;

/// What an identifier is. Part of every lookup, since a serial number of one kind may be a name of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IdentifierKind {
    /// Serial number of the maker.
    Serial,
    /// Apple's unique device identifier.
    Udid,
    /// Serial number of a YubiKey.
    Yubico,
    /// What the attestation key's certificate of a TPM names.
    Tpm,
    /// Host name.
    Hostname,
    /// Mail address of a person.
    Email,
}

impl IdentifierKind {
    /// All kinds.
    pub const ALL: &'static [Self] = &[Self::Serial, Self::Udid, Self::Yubico, Self::Tpm, Self::Hostname, Self::Email];

    /// As the configuration spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::Udid => "udid",
            Self::Yubico => "yubico",
            Self::Tpm => "tpm",
            Self::Hostname => "hostname",
            Self::Email => "email",
        }
    }

    /// Longest identifier, in bytes: a DNS name or mail address for names, 64 for the rest.
    const fn longest(self) -> usize {
        match self {
            Self::Hostname | Self::Email => 254,
            Self::Serial | Self::Udid | Self::Yubico | Self::Tpm => 64,
        }
    }
}

/// The identifier of a device: as it was stated, and in the form in which it is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId {
    kind: IdentifierKind,
    stated: String,
    normal: String,
}

impl DeviceId {
    /// Checks and normalises an identifier.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_INVALID`] where it is blank, too long or has control characters: it goes into queries and logs.
    pub fn new(kind: IdentifierKind, stated: &str) -> Result<Self, Denial> {
        let normal = normal(stated);
        if normal.is_empty() || stated.len() > kind.longest() || stated.chars().any(char::is_control) {
            return Err(Denial::IDENTIFIER_INVALID);
        }
        Ok(Self { kind, stated: stated.to_owned(), normal: normal.into_owned() })
    }

    /// What it is.
    pub const fn kind(&self) -> IdentifierKind {
        self.kind
    }

    /// As it was stated.
    pub fn stated(&self) -> &str {
        &self.stated
    }

    /// As it is compared.
    pub fn normal(&self) -> &str {
        &self.normal
    }
}

/// The form in which identifiers are compared: ASCII white space off both ends, ASCII letters in upper case.
pub fn normal(stated: &str) -> Cow<'_, str> {
    let trimmed = stated.trim_ascii();
    if trimmed.bytes().any(|byte| byte.is_ascii_lowercase()) { Cow::Owned(trimmed.to_ascii_uppercase()) } else { Cow::Borrowed(trimmed) }
}

/// How well it is proven that the request comes from the device, best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// The request says so.
    Claimed,
    /// A certificate that step-ca accepted says so (X5C).
    Certificate,
    /// The device's hardware attested it.
    Attested,
}

impl Trust {
    /// All levels, best last.
    pub const ALL: &'static [Self] = &[Self::Claimed, Self::Certificate, Self::Attested];

    /// For logs and policies.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Certificate => "certificate",
            Self::Attested => "attested",
        }
    }
}

/// A device, and how well it is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which one.
    pub device: DeviceId,
    /// How well.
    pub trust: Trust,
}

/// A public key, by the SHA-256 of the form in which a certificate has it: SubjectPublicKeyInfo of RFC 5280, DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Of a SubjectPublicKeyInfo; `None` where it is none.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        SubjectPublicKeyInfoRef::from_der(der).ok().map(|_| Self(Sha256::digest(der).into()))
    }

    /// Of a certificate, DER, that somebody else has verified.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_INVALID`] where the certificate cannot be read.
    pub fn of_certificate(der: &[u8]) -> Result<Self, Denial> {
        let certificate = Certificate::from_der(der).map_err(|_| Denial::IDENTIFIER_INVALID)?;
        let key = certificate.tbs_certificate().subject_public_key_info().to_der().map_err(|_| Denial::IDENTIFIER_INVALID)?;
        Ok(Self(Sha256::digest(key).into()))
    }

    /// Of a digest that was kept.
    pub const fn of_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Where a webhook finds the device's identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `attestationData.permanentIdentifier`.
    Attested,
    /// A field of the certificate request, or of the certificate made of it.
    Claimed(Field),
    /// A field of the certificate that authorized an X5C request.
    Certificate(Field),
}

/// A field that can name a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `subject.cn`
    SubjectCommonName,
    /// `subject.serial_number`
    SubjectSerialNumber,
    /// `san.dns`
    SanDns,
    /// `san.email`
    SanEmail,
    /// `san.ip`
    SanIp,
    /// `san.uri`
    SanUri,
    /// `ssh.key_id`
    SshKeyId,
    /// `ssh.principal`
    SshPrincipal,
}

impl Field {
    /// All fields.
    pub const ALL: &'static [Self] = &[
        Self::SubjectCommonName,
        Self::SubjectSerialNumber,
        Self::SanDns,
        Self::SanEmail,
        Self::SanIp,
        Self::SanUri,
        Self::SshKeyId,
        Self::SshPrincipal,
    ];

    /// As the configuration spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SubjectCommonName => "subject.cn",
            Self::SubjectSerialNumber => "subject.serial_number",
            Self::SanDns => "san.dns",
            Self::SanEmail => "san.email",
            Self::SanIp => "san.ip",
            Self::SanUri => "san.uri",
            Self::SshKeyId => "ssh.key_id",
            Self::SshPrincipal => "ssh.principal",
        }
    }
}

/// A word that is not one of a fixed set.
#[derive(Debug, thiserror::Error)]
#[error("`{given}` is none of {}", known.join(", "))]
pub struct UnknownWord {
    /// The word.
    pub given: String,
    /// The set.
    pub known: Vec<&'static str>,
}

impl FromStr for Field {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        one_of(text, Self::ALL, |field| field.as_str())
    }
}

impl FromStr for IdentifierKind {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        one_of(text, Self::ALL, |kind| kind.as_str())
    }
}

impl fmt::Display for IdentifierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn one_of<T: Copy>(text: &str, all: &[T], name: impl Fn(&T) -> &'static str) -> Result<T, UnknownWord> {
    all.iter()
        .copied()
        .find(|item| name(item) == text)
        .ok_or_else(|| UnknownWord { given: text.to_owned(), known: all.iter().map(name).collect() })
}

impl Source {
    /// Finds the device that a verified webhook is about.
    ///
    /// # Errors
    /// A [`Denial`] where it names none, several, an impossible one, or two that disagree: an attested identifier and a
    /// common name in a certificate request must be equal, and the common name may be empty. A template may change the
    /// subject afterwards, so a certificate is not compared.
    pub fn identify(self, webhook: &Webhook<'_>, kind: IdentifierKind) -> Result<Identity, Denial> {
        let attested = webhook.attestation_data.as_ref().map(|data| data.permanent_identifier.as_ref());
        let common_name = webhook.x509_certificate_request.as_ref().and_then(|request| request.subject.as_ref()?.common_name.as_deref());
        if let (Some(attested), Some(common_name)) = (attested, common_name)
            && !common_name.is_empty()
            && common_name != attested
        {
            return Err(Denial::IDENTIFIER_MISMATCH);
        }
        let (stated, trust) = match self {
            Self::Attested => (Cow::Borrowed(attested.ok_or(Denial::ATTESTATION_MISSING)?), Trust::Attested),
            Self::Claimed(field) => (Cow::Borrowed(claimed(webhook, field)?), Trust::Claimed),
            Self::Certificate(field) => (Cow::Owned(certified(webhook, field)?), Trust::Certificate),
        };
        Ok(Identity { device: DeviceId::new(kind, &stated)?, trust })
    }
}

fn claimed<'w>(webhook: &'w Webhook<'_>, field: Field) -> Result<&'w str, Denial> {
    let x509 = webhook.x509();
    let ssh = webhook.ssh();
    let subject = x509.and_then(|x509| x509.subject.as_ref());
    let many = match field {
        Field::SubjectCommonName => return present(subject.and_then(|subject| subject.common_name.as_deref())),
        Field::SubjectSerialNumber => return present(subject.and_then(|subject| subject.serial_number.as_deref())),
        Field::SshKeyId => return present(ssh.and_then(|ssh| ssh.key_id.as_deref())),
        Field::SanDns => x509.map(|x509| &x509.dns_names),
        Field::SanEmail => x509.map(|x509| &x509.email_addresses),
        Field::SanIp => x509.map(|x509| &x509.ip_addresses),
        Field::SanUri => x509.map(|x509| &x509.uris),
        Field::SshPrincipal => ssh.map(|ssh| &ssh.principals),
    };
    single(many.into_iter().flat_map(|many| many.0.iter().map(AsRef::as_ref)))
}

fn certified(webhook: &Webhook<'_>, field: Field) -> Result<String, Denial> {
    let raw = webhook.x5c_certificate.as_ref().ok_or(Denial::IDENTIFIER_MISSING)?;
    let der = STANDARD.decode(raw.raw.as_bytes()).map_err(|_| Denial::IDENTIFIER_INVALID)?;
    field.of_certificate(&der)
}

impl Field {
    /// Reads the field of a certificate, DER, that somebody else has verified.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_MISSING`], [`Denial::IDENTIFIER_AMBIGUOUS`] where there is more than one,
    /// [`Denial::IDENTIFIER_INVALID`] where the certificate cannot be read.
    pub fn of_certificate(self, der: &[u8]) -> Result<String, Denial> {
        let certificate = Certificate::from_der(der).map_err(|_| Denial::IDENTIFIER_INVALID)?;
        let body = certificate.tbs_certificate();
        let attribute = |oid: ObjectIdentifier| {
            single(body.subject().iter().filter(|attribute| attribute.oid == oid).map(|attribute| attribute.value.value()))
                .and_then(|value| std::str::from_utf8(value).map(str::to_owned).map_err(|_| Denial::IDENTIFIER_INVALID))
        };
        let sans = || body.get_extension::<SubjectAltName>().map_err(|_| Denial::IDENTIFIER_INVALID);
        let san = |pick: fn(&GeneralName) -> Option<String>| {
            let sans = sans()?;
            single(sans.iter().flat_map(|(_, sans)| sans.0.iter().filter_map(pick)))
        };
        match self {
            Field::SubjectCommonName => attribute(ObjectIdentifier::new_unwrap("2.5.4.3")),
            Field::SubjectSerialNumber => attribute(ObjectIdentifier::new_unwrap("2.5.4.5")),
            Field::SanDns => san(|name| if let GeneralName::DnsName(name) = name { Some(name.to_string()) } else { None }),
            Field::SanEmail => san(|name| if let GeneralName::Rfc822Name(name) = name { Some(name.to_string()) } else { None }),
            Field::SanUri => {
                san(|name| if let GeneralName::UniformResourceIdentifier(name) = name { Some(name.to_string()) } else { None })
            }
            Field::SanIp | Field::SshKeyId | Field::SshPrincipal => Err(Denial::IDENTIFIER_MISSING),
        }
    }
}

fn present(value: Option<&str>) -> Result<&str, Denial> {
    value.filter(|value| !value.is_empty()).ok_or(Denial::IDENTIFIER_MISSING)
}

/// Exactly one: of several names nobody can say which one is the device.
fn single<T>(values: impl IntoIterator<Item = T>) -> Result<T, Denial> {
    let mut values = values.into_iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value),
        (None, _) => Err(Denial::IDENTIFIER_MISSING),
        (Some(_), Some(_)) => Err(Denial::IDENTIFIER_AMBIGUOUS),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::PublicKeyData as _;

    use super::*;
    use crate::webhook::X509;

    fn identify(source: Source, fields: &str) -> Result<(String, Trust), Denial> {
        let body = format!(r#"{{"timestamp":"2026-11-23T00:00:00Z",{fields}}}"#);
        let webhook: Webhook<'_> = serde_json::from_str(&body).unwrap();
        source.identify(&webhook, IdentifierKind::Serial).map(|identity| (identity.device.normal().to_owned(), identity.trust))
    }

    const ATTESTED: &str = r#""attestationData":{"permanentIdentifier":"C02a"}"#;

    #[test]
    fn takes_the_attested_identifier() {
        assert_eq!(identify(Source::Attested, ATTESTED), Ok(("C02A".to_owned(), Trust::Attested)));
        assert_eq!(
            identify(Source::Attested, r#""x509CertificateRequest":{"subject":{"commonName":"C02A"}}"#),
            Err(Denial::ATTESTATION_MISSING)
        );
    }

    #[test]
    fn a_common_name_must_be_the_attested_identifier_or_empty() {
        let with = |name: &str| {
            identify(Source::Attested, &format!(r#"{ATTESTED},"x509CertificateRequest":{{"subject":{{"commonName":"{name}"}}}}"#))
        };
        assert!(with("C02a").is_ok());
        assert!(with("").is_ok());
        assert_eq!(with("C02A"), Err(Denial::IDENTIFIER_MISMATCH));
        assert_eq!(with("other"), Err(Denial::IDENTIFIER_MISMATCH));
    }

    #[test]
    fn a_template_may_change_the_subject_that_authorizing_sees() {
        assert!(
            identify(Source::Attested, &format!(r#"{ATTESTED},"x509Certificate":{{"subject":{{"commonName":"Alice's Mac"}}}}"#)).is_ok()
        );
    }

    #[test]
    fn a_claim_cannot_contradict_an_attestation() {
        let fields = format!(r#"{ATTESTED},"x509CertificateRequest":{{"subject":{{"commonName":"other"}}}}"#);
        assert_eq!(identify(Source::Claimed(Field::SubjectCommonName), &fields), Err(Denial::IDENTIFIER_MISMATCH));
    }

    #[test]
    fn takes_a_claimed_field_if_there_is_exactly_one() {
        let request = r#""x509CertificateRequest":{"subject":{"commonName":"a","serialNumber":"s"},"dnsNames":["d"],"emailAddresses":["e1","e2"],"uris":null,"ipAddresses":["192.0.2.1"]}"#;
        for (field, expected) in [
            (Field::SubjectCommonName, Ok("A")),
            (Field::SubjectSerialNumber, Ok("S")),
            (Field::SanDns, Ok("D")),
            (Field::SanIp, Ok("192.0.2.1")),
            (Field::SanEmail, Err(Denial::IDENTIFIER_AMBIGUOUS)),
            (Field::SanUri, Err(Denial::IDENTIFIER_MISSING)),
            (Field::SshKeyId, Err(Denial::IDENTIFIER_MISSING)),
            (Field::SshPrincipal, Err(Denial::IDENTIFIER_MISSING)),
        ] {
            assert_eq!(identify(Source::Claimed(field), request), expected.map(|id| (id.to_owned(), Trust::Claimed)), "{field:?}");
        }
        let ssh = r#""sshCertificateRequest":{"type":"host","keyID":"k","principals":["p"]}"#;
        assert_eq!(identify(Source::Claimed(Field::SshKeyId), ssh).unwrap().0, "K");
        assert_eq!(identify(Source::Claimed(Field::SshPrincipal), ssh).unwrap().0, "P");
    }

    #[test]
    fn takes_a_field_of_the_certificate_that_authorized_the_request() {
        let mut params = rcgen::CertificateParams::new(["host.example.org".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "c02a");
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let fields = format!(r#""x5cCertificate":{{"raw":"{}"}}"#, STANDARD.encode(certificate.der()));
        assert_eq!(identify(Source::Certificate(Field::SubjectCommonName), &fields), Ok(("C02A".to_owned(), Trust::Certificate)));
        assert_eq!(identify(Source::Certificate(Field::SanDns), &fields).unwrap().0, "HOST.EXAMPLE.ORG");
        assert_eq!(identify(Source::Certificate(Field::SanUri), &fields), Err(Denial::IDENTIFIER_MISSING));
        assert_eq!(
            identify(Source::Certificate(Field::SubjectCommonName), r#""x5cCertificate":{"raw":"AAAA"}"#),
            Err(Denial::IDENTIFIER_INVALID)
        );
        assert_eq!(
            identify(Source::Certificate(Field::SubjectCommonName), r#""x509CertificateRequest":{"subject":{"commonName":"c02a"}}"#),
            Err(Denial::IDENTIFIER_MISSING)
        );
    }

    #[test]
    fn refuses_identifiers_that_no_device_has() {
        for bad in ["", " ", "\t", "a\nb", "a\u{0}", "\u{85}", &"a".repeat(65)] {
            assert_eq!(DeviceId::new(IdentifierKind::Serial, bad), Err(Denial::IDENTIFIER_INVALID), "{bad:?}");
        }
        assert!(DeviceId::new(IdentifierKind::Hostname, &"a".repeat(65)).is_ok());
    }

    #[test]
    fn the_key_that_a_webhook_asks_for_is_that_of_the_certificate() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
            let sent = STANDARD.encode(key.subject_public_key_info());
            let body = format!(r#"{{"publicKey":"{sent}"}}"#);
            let x509: X509<'_> = serde_json::from_str(&body).unwrap();
            assert_eq!(x509.key(), Some(PublicKey::of_certificate(certificate.der()).unwrap()));
        }
    }

    #[test]
    fn what_no_certificate_can_have_is_no_key() {
        let der = rcgen::KeyPair::generate().unwrap().subject_public_key_info();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(&der));
        let long = [&der[..], b"a"].concat();
        for sent in ["", "!", "AAAA", &STANDARD.encode(pem), &STANDARD.encode(long), &STANDARD.encode(&der[..der.len() - 1])] {
            let body = format!(r#"{{"publicKey":"{sent}"}}"#);
            let x509: X509<'_> = serde_json::from_str(&body).unwrap();
            assert_eq!(x509.key(), None, "{sent}");
        }
        assert_eq!(serde_json::from_str::<X509<'_>>(r#"{"publicKey":null}"#).unwrap().key(), None);
        assert_eq!(PublicKey::of_certificate(b"no certificate"), Err(Denial::IDENTIFIER_INVALID));
    }

    #[test]
    fn look_alikes_are_not_the_same() {
        let normal = |text| DeviceId::new(IdentifierKind::Serial, text).unwrap().normal;
        assert_eq!(normal(" c02a "), "C02A");
        assert_ne!(normal("ſ1"), normal("S1"));
        assert_ne!(normal("\u{a0}C02A"), "C02A");
        assert_ne!(normal("С02A"), "C02A");
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(text in "\\PC{0,70}") {
            let once = normal(&text).into_owned();
            prop_assert_eq!(normal(&once), once.as_str());
        }
    }
}
