//! Identifiers of devices, and how they are compared.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::word::{UnknownWord, one_of};
use crate::outcome::Denial;

/// The kind of a device identifier. It is part of every lookup, since one text may be the serial number of one device and the
/// name of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IdentifierKind {
    /// Serial number given by the manufacturer.
    Serial,
    /// Apple's unique device identifier.
    Udid,
    /// Serial number of a YubiKey.
    Yubico,
    /// Identifier in the certificate of a TPM's attestation key.
    Tpm,
    /// Host name.
    Hostname,
    /// Mail address of a person.
    Email,
}

impl IdentifierKind {
    /// All kinds.
    pub const ALL: &'static [Self] = &[Self::Serial, Self::Udid, Self::Yubico, Self::Tpm, Self::Hostname, Self::Email];

    /// The kind's name in the configuration, such as `serial`.
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

    /// The loosest form of an identifier, for locks and placeholders only: [`normal`], and for a UDID without any dashes,
    /// wherever they are. Other kinds keep their dashes: `A-1` and `A1` are two serial numbers.
    pub fn without_any_dashes(self, stated: &str) -> Cow<'_, str> {
        let normal = normal(stated);
        if self == Self::Udid && normal.contains('-') { Cow::Owned(normal.replace('-', "")) } else { normal }
    }

    /// Longest identifier of this kind, in bytes: a DNS name or mail address for names, 64 for the rest.
    const fn longest(self) -> usize {
        match self {
            Self::Hostname | Self::Email => 254,
            Self::Serial | Self::Udid | Self::Yubico | Self::Tpm => 64,
        }
    }
}

/// The identifier of a device, both as it was stated and in the form in which it is compared.
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
    /// [`Denial::IDENTIFIER_INVALID`] if the identifier is blank, too long or has control characters: it goes into queries
    /// and logs.
    pub fn new(kind: IdentifierKind, stated: &str) -> Result<Self, Denial> {
        let normal = normal(stated);
        if kind.without_any_dashes(stated).is_empty() || stated.len() > kind.longest() || stated.chars().any(char::is_control) {
            return Err(Denial::IDENTIFIER_INVALID);
        }
        Ok(Self { kind, stated: stated.to_owned(), normal: normal.into_owned() })
    }

    /// The identifier's kind.
    pub const fn kind(&self) -> IdentifierKind {
        self.kind
    }

    /// The identifier as it was stated.
    pub fn stated(&self) -> &str {
        &self.stated
    }

    /// The identifier in the form in which it is compared. UDIDs compare by [`same`], which also ignores the dashes of a
    /// UDID's form.
    pub fn normal(&self) -> &str {
        &self.normal
    }
}

/// Returns whether two texts are the same identifier of this kind: case is ignored, and so are the dashes of a UDID's form.
pub fn same(kind: IdentifierKind, one: &str, other: &str) -> bool {
    let (one, other) = (normal(one), normal(other));
    if kind == IdentifierKind::Udid { undashed(&one) == undashed(&other) } else { one == other }
}

/// A UDID without the dashes of its form. A UDID with dashes elsewhere is returned unchanged, since it is another identifier.
pub fn undashed(udid: &str) -> Cow<'_, str> {
    let dashed = |lengths: &[usize]| {
        let parts = || udid.split('-');
        parts().map(str::len).eq(lengths.iter().copied()) && parts().all(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    if UDID_SHAPES.iter().any(|lengths| dashed(lengths)) { Cow::Owned(udid.replace('-', "")) } else { Cow::Borrowed(udid) }
}

/// Lengths of the parts between a UDID's dashes: the form of newer Apple devices, and that of a UUID.
pub const UDID_SHAPES: [&[usize]; 2] = [&[8, 16], &[8, 4, 4, 4, 12]];

/// The form in which identifiers are compared: without ASCII white space at both ends, ASCII letters in upper case.
pub fn normal(stated: &str) -> Cow<'_, str> {
    let trimmed = stated.trim_ascii();
    if trimmed.bytes().any(|byte| byte.is_ascii_lowercase()) { Cow::Owned(trimmed.to_ascii_uppercase()) } else { Cow::Borrowed(trimmed) }
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
