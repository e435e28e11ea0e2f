//! Step 6: which device a request is about, and how well that is proven.

mod names;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use self::names::{Half, Names};
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

    /// The loosest form of an identifier, for locks and placeholders only: as [`normal`], and a UDID without any of its dashes,
    /// wherever they are. Nothing else loses its dashes: `A-1` and `A1` are two serial numbers.
    pub fn without_any_dashes(self, stated: &str) -> Cow<'_, str> {
        let normal = normal(stated);
        if self == Self::Udid && normal.contains('-') { Cow::Owned(normal.replace('-', "")) } else { normal }
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
        if kind.without_any_dashes(stated).is_empty() || stated.len() > kind.longest() || stated.chars().any(char::is_control) {
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

    /// As it is compared; UDIDs compare by [`same`], for which the dashes of their form do not count either.
    pub fn normal(&self) -> &str {
        &self.normal
    }
}

/// Whether two texts are one identifier of this kind: case does not count, nor do the dashes of a unique device identifier's form.
pub fn same(kind: IdentifierKind, one: &str, other: &str) -> bool {
    let (one, other) = (normal(one), normal(other));
    if kind == IdentifierKind::Udid { undashed(&one) == undashed(&other) } else { one == other }
}

/// A unique device identifier without the dashes that its form has. Dashes elsewhere belong to it: it is another one.
pub fn undashed(udid: &str) -> Cow<'_, str> {
    let dashed = |lengths: &[usize]| {
        let parts = || udid.split('-');
        parts().map(str::len).eq(lengths.iter().copied()) && parts().all(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    if UDID_SHAPES.iter().any(|lengths| dashed(lengths)) { Cow::Owned(udid.replace('-', "")) } else { Cow::Borrowed(udid) }
}

/// Lengths of the parts between the dashes of a unique device identifier: that of newer devices of Apple, and a UUID.
pub const UDID_SHAPES: [&[usize]; 2] = [&[8, 16], &[8, 4, 4, 4, 12]];

/// The form in which texts are compared as identifiers: ASCII white space off both ends, ASCII letters in upper case.
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
    /// `authorizationPrincipal`: whom step-ca took the request's token to be of. [`Trust::Certificate`] where an X5C
    /// certificate with that common name came along, else [`Trust::Claimed`].
    Principal,
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
    /// What counts is all that the body says will be signed, or is asked to be.
    ///
    /// # Errors
    /// A [`Denial`] where it names none, several, an impossible one, or two that disagree, and where its subject alternative
    /// names cannot be read. With an attestation, whatever else names the device must be it: the common names of a request,
    /// which may be empty, and every permanent identifier. A template may change the subject afterwards, so a certificate's
    /// common name is not compared; what it is has to be the same in every field that tells it.
    pub fn identify(self, webhook: &Webhook<'_>, kind: IdentifierKind) -> Result<Identity, Denial> {
        let attested = webhook.attestation_data.as_ref().map(|data| data.permanent_identifier.as_ref());
        for half in halves(webhook) {
            let named = half.permanent_identifiers()?;
            if let Some(attested) = attested {
                conforms(half, &named, attested)?;
            }
        }
        let (stated, trust) = match self {
            Self::Attested => (attested.ok_or(Denial::ATTESTATION_MISSING)?.to_owned(), Trust::Attested),
            Self::Claimed(field) => (claimed(webhook, field)?, Trust::Claimed),
            Self::Certificate(field) => (certified(webhook, field)?, Trust::Certificate),
            Self::Principal => principal(webhook)?,
        };
        Ok(Identity { device: DeviceId::new(kind, &stated)?, trust })
    }
}

fn halves<'w>(webhook: &'w Webhook<'w>) -> impl Iterator<Item = Half<'w>> {
    let request = webhook.x509_certificate_request.as_ref().map(Half::Request);
    request.into_iter().chain(webhook.x509_certificate.as_ref().map(Half::Certificate))
}

fn conforms(half: Half<'_>, named: &[String], attested: &str) -> Result<(), Denial> {
    let common_names = Names::of(half, Field::SubjectCommonName)?;
    let fits = match half {
        Half::Request(_) => common_names.all().all(|name| name == attested),
        Half::Certificate(_) => common_names.agree(),
    };
    if fits && named.iter().all(|name| normal(name) == normal(attested)) { Ok(()) } else { Err(Denial::IDENTIFIER_MISMATCH) }
}

fn claimed(webhook: &Webhook<'_>, field: Field) -> Result<String, Denial> {
    match field {
        Field::SshKeyId => present(webhook.ssh().and_then(|ssh| ssh.key_id.as_deref())),
        Field::SshPrincipal => webhook.ssh().map(|ssh| Names::of_list(&ssh.principals)).unwrap_or_default().one(),
        _ => halves(webhook).next().map(|half| Names::of(half, field)).transpose()?.unwrap_or_default().one(),
    }
}

fn certified(webhook: &Webhook<'_>, field: Field) -> Result<String, Denial> {
    let raw = webhook.x5c_certificate.as_ref().ok_or(Denial::IDENTIFIER_MISSING)?;
    let der = STANDARD.decode(raw.raw.as_bytes()).map_err(|_| Denial::IDENTIFIER_INVALID)?;
    field.of_certificate(&der)
}

/// Of an X5C token, step-ca says the common name of its certificate; whose the token is otherwise, a cloud says.
fn principal(webhook: &Webhook<'_>) -> Result<(String, Trust), Denial> {
    let principal = present(webhook.authorization_principal.as_deref())?;
    if webhook.x5c_certificate.is_none() {
        return Ok((principal, Trust::Claimed));
    }
    let certified = certified(webhook, Field::SubjectCommonName)?;
    if certified == principal { Ok((principal, Trust::Certificate)) } else { Err(Denial::IDENTIFIER_MISMATCH) }
}

impl Field {
    /// Reads the field of a certificate, DER, that somebody else has verified.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_MISSING`], [`Denial::IDENTIFIER_AMBIGUOUS`] where there is more than one,
    /// [`Denial::IDENTIFIER_INVALID`] where the certificate cannot be read.
    pub fn of_certificate(self, der: &[u8]) -> Result<String, Denial> {
        // What a second reader cannot read, nobody has to believe.
        Certificate::from_der(der).map_err(|_| Denial::IDENTIFIER_INVALID)?;
        Names::of_certificate(der, self)?.one()
    }
}

fn present(value: Option<&str>) -> Result<String, Denial> {
    value.filter(|value| !value.is_empty()).map(str::to_owned).ok_or(Denial::IDENTIFIER_MISSING)
}
