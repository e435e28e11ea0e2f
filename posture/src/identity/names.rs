//! All names of one sort in a request or a certificate, from every field in which step-ca sends them.
//!
//! step-ca sends a request three times: as fields, as DER of its parts (`rawSubject`, `extensions`), and whole (`raw`). For a
//! certificate that a template made it sends the fields, and with them what is signed in place of some: `extraNames`,
//! `rawSubject`, and a subjectAltName among `extensions`. Each of these is an account of the same names. A device is taken
//! from them only if all accounts agree, since any one of them may be what is signed.

use std::borrow::Cow;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::asn1::{AnyRef, ObjectIdentifier};

use super::device::normal;
use super::field::Field;
use crate::certificate::{self, COMMON_NAME, Certificate, Request, SERIAL_NUMBER, SUBJECT_ALT_NAME, Unreadable};
use crate::outcome::Denial;
use crate::webhook::{ExtraName, Many, San, X509};

/// The X.509 request or certificate in a webhook's body; `raw` is PKCS#10 for a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Half<'w> {
    Request(&'w X509<'w>),
    Certificate(&'w X509<'w>),
}

/// Names of one sort: one list for each account, in the account's order, without empty names.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<Vec<String>>);

impl Names {
    /// Collects the names in a field of the subject or of the subject alternative names, from every account.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_INVALID`] if an account cannot be read.
    pub(super) fn of(half: Half<'_>, field: Field) -> Result<Self, Denial> {
        match field {
            Field::SubjectCommonName => half.subject(COMMON_NAME),
            Field::SubjectSerialNumber => half.subject(SERIAL_NUMBER),
            Field::SanDns | Field::SanEmail | Field::SanIp | Field::SanUri => half.sans(field),
            Field::SshKeyId | Field::SshPrincipal => Ok(Self::default()),
        }
    }

    /// Collects the names in a field of a DER certificate, which is the only account.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_INVALID`] if the certificate cannot be read.
    pub(super) fn of_certificate(der: &[u8], field: Field) -> Result<Self, Denial> {
        let certificate = Certificate::from_der(der)?;
        Ok(Self(vec![match field {
            Field::SubjectCommonName => attributes(certificate.subject(), COMMON_NAME)?,
            Field::SubjectSerialNumber => attributes(certificate.subject(), SERIAL_NUMBER)?,
            Field::SanDns | Field::SanEmail | Field::SanIp | Field::SanUri => extension(certificate.extension(SUBJECT_ALT_NAME)?, field)?,
            Field::SshKeyId | Field::SshPrincipal => Vec::new(),
        }]))
    }

    /// Collects the names in a list, which is the only account.
    pub(super) fn of_list(list: &Many<'_>) -> Self {
        Self(vec![without_empty(list)])
    }

    /// The names of all accounts.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flatten().map(String::as_str)
    }

    /// The one name on which all accounts agree. Names that are equal to a look-up count as one.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_MISSING`] if there is no name, [`Denial::IDENTIFIER_AMBIGUOUS`] if there are two, and
    /// [`Denial::IDENTIFIER_MISMATCH`] if one account has a name and another has none.
    pub(super) fn one(self) -> Result<String, Denial> {
        let mut names = self.all();
        let first = names.next().ok_or(Denial::IDENTIFIER_MISSING)?;
        if names.any(|other| normal(other) != normal(first)) {
            return Err(Denial::IDENTIFIER_AMBIGUOUS);
        }
        if self.0.iter().any(Vec::is_empty) {
            return Err(Denial::IDENTIFIER_MISMATCH);
        }
        Ok(first.to_owned())
    }

    /// Returns whether all accounts have the same names.
    pub(super) fn agree(&self) -> bool {
        let has = |account: &Vec<String>, name: &str| account.iter().any(|other| normal(other) == normal(name));
        self.all().all(|name| self.0.iter().all(|account| has(account, name)))
    }
}

impl<'w> Half<'w> {
    const fn x509(self) -> &'w X509<'w> {
        let (Self::Request(x509) | Self::Certificate(x509)) = self;
        x509
    }

    fn subject(self, id: ObjectIdentifier) -> Result<Names, Denial> {
        let x509 = self.x509();
        let mut accounts = Vec::new();
        if let Some(subject) = &x509.subject {
            let named = if id == COMMON_NAME { &subject.common_name } else { &subject.serial_number };
            let mut told: Vec<String> = named.iter().filter(|name| !name.is_empty()).map(|name| name.clone().into_owned()).collect();
            for extra in subject.extra_names.iter().flatten().filter(|extra| is_oid(&extra.kind, id)) {
                told.push(value(extra)?);
            }
            accounts.push(whole(told)?);
        }
        if let Some(der) = decoded(x509.raw_subject.as_ref())? {
            accounts.push(attributes(certificate::name(&der)?, id)?);
        }
        if let Some(der) = decoded(x509.raw.as_ref())? {
            let subject = match self {
                Self::Request(_) => Request::from_der(&der)?.subject(),
                Self::Certificate(_) => Certificate::from_der(&der)?.subject(),
            };
            accounts.push(attributes(subject, id)?);
        }
        Ok(Names(accounts))
    }

    fn sans(self, field: Field) -> Result<Names, Denial> {
        let x509 = self.x509();
        let by_type = match field {
            Field::SanDns => &x509.dns_names,
            Field::SanEmail => &x509.email_addresses,
            Field::SanIp => &x509.ip_addresses,
            _ => &x509.uris,
        };
        let mut told = without_empty(by_type);
        for san in x509.sans.iter().flatten().filter(|san| !san.value.is_empty()) {
            if field_of(san)? == Some(field) {
                told.push(san.value.clone().into_owned());
            }
        }
        if field == Field::SanIp {
            told = told.iter().map(|address| canonical(address)).collect::<Result<_, _>>()?;
        }
        let mut accounts = vec![told];
        self.each_extension(|names| {
            accounts.push(extension(names, field)?);
            Ok(())
        })?;
        Ok(Names(accounts))
    }

    /// All permanent identifiers (RFC 4043) among the subject alternative names.
    pub(super) fn permanent_identifiers(self) -> Result<Vec<String>, Denial> {
        let mut found = Vec::new();
        let typed = self.x509().sans.iter().flatten().filter(|san| san.kind.eq_ignore_ascii_case(PERMANENT_IDENTIFIER));
        for san in typed {
            let parts = &san.asn1_value;
            let named = if parts.is_null() { Some(&*san.value) } else { parts.get("identifier").and_then(serde_json::Value::as_str) };
            found.extend(named.filter(|name| !name.is_empty()).map(str::to_owned));
        }
        self.each_extension(|names| {
            for san in names.map(certificate::sans).transpose()?.iter().flatten() {
                found.extend(san.permanent_identifier()?.map(Cow::into_owned));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Calls `take` with the subjectAltName extension of each account that has extensions.
    fn each_extension(self, mut take: impl FnMut(Option<&[u8]>) -> Result<(), Denial>) -> Result<(), Denial> {
        let x509 = self.x509();
        let mut named = x509.extensions.iter().flatten().filter(|extension| is_oid(&extension.id, SUBJECT_ALT_NAME));
        match (named.next(), named.next()) {
            (None, _) => {}
            (Some(only), None) => take(Some(&decoded(only.value.as_ref())?.ok_or(Denial::IDENTIFIER_INVALID)?))?,
            // Either of the two may be the one that is signed.
            (Some(_), Some(_)) => return Err(Denial::IDENTIFIER_INVALID),
        }
        if let Some(der) = decoded(x509.raw.as_ref())? {
            match self {
                Self::Request(_) => take(Request::from_der(&der)?.extension(SUBJECT_ALT_NAME)?)?,
                Self::Certificate(_) => take(Certificate::from_der(&der)?.extension(SUBJECT_ALT_NAME)?)?,
            }
        }
        Ok(())
    }
}

/// The value of an attribute; a value that is not a string is an error, since it is signed and names no device.
fn value(extra: &ExtraName<'_>) -> Result<String, Denial> {
    extra.value.as_str().map(str::to_owned).ok_or(Denial::IDENTIFIER_INVALID)
}

fn attributes(name: AnyRef<'_>, id: ObjectIdentifier) -> Result<Vec<String>, Denial> {
    whole(certificate::attributes(name, id)?.into_iter().map(Cow::into_owned).collect())
}

/// The values of one attribute, without empty ones. An empty value beside another is an error: Go takes the last value, which
/// may be the empty one.
fn whole(mut values: Vec<String>) -> Result<Vec<String>, Denial> {
    let had = values.len();
    values.retain(|value| !value.is_empty());
    if values.is_empty() || values.len() == had { Ok(values) } else { Err(Denial::IDENTIFIER_AMBIGUOUS) }
}

fn extension(value: Option<&[u8]>, field: Field) -> Result<Vec<String>, Denial> {
    let sans = value.map(certificate::sans).transpose()?.unwrap_or_default();
    let named = sans.into_iter().filter_map(|san| match (field, san) {
        (Field::SanDns, certificate::San::Dns(name)) => Some(name.to_owned()),
        (Field::SanEmail, certificate::San::Email(address)) => Some(address.to_owned()),
        (Field::SanIp, certificate::San::Ip(address)) => Some(address.to_canonical().to_string()),
        (Field::SanUri, certificate::San::Uri(uri)) => Some(uri.to_owned()),
        _ => None,
    });
    Ok(named.filter(|name| !name.is_empty()).collect())
}

fn without_empty(list: &Many<'_>) -> Vec<String> {
    list.0.iter().filter(|name| !name.is_empty()).map(|name| name.clone().into_owned()).collect()
}

/// Decodes base64; `None` for null or an empty text, which Go writes for nothing.
fn decoded(text: Option<&Cow<'_, str>>) -> Result<Option<Vec<u8>>, Denial> {
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| STANDARD.decode(text.as_bytes())).transpose().map_err(|_| Denial::IDENTIFIER_INVALID)
}

/// Returns whether the text is this OID in digits and dots, with or without leading zeros.
fn is_oid(text: &str, id: ObjectIdentifier) -> bool {
    let arcs = text.split('.').map(|arc| arc.parse::<u64>().ok());
    arcs.eq(id.arcs().map(|arc| Some(arc.into())))
}

/// The field to which a template's name belongs, by the rules of `x509util.SubjectAlternativeName`; `None` if it belongs to
/// no field.
fn field_of(san: &San<'_>) -> Result<Option<Field>, Denial> {
    let is = |kind: &str| san.kind.eq_ignore_ascii_case(kind);
    Ok(if is("dns") {
        Some(Field::SanDns)
    } else if is("email") {
        Some(Field::SanEmail)
    } else if is("ip") {
        Some(Field::SanIp)
    } else if is("uri") {
        Some(Field::SanUri)
    } else if is("auto") || san.kind.is_empty() {
        Some(guess(&san.value)?)
    } else {
        None
    })
}

/// The field that step-ca infers for a name without a type: an IP address, else a URI if it has a scheme and Go can parse it,
/// else a mail address if it has an `@`, else a DNS name. A name with a scheme that Go might not parse is an error.
fn guess(name: &str) -> Result<Field, Denial> {
    if name.parse::<IpAddr>().is_ok() {
        return Ok(Field::SanIp);
    }
    match rest_of_uri(name) {
        Some(rest) if is_plain(rest) => Ok(Field::SanUri),
        Some(_) => Err(Denial::IDENTIFIER_INVALID),
        None if name.contains('@') => Ok(Field::SanEmail),
        None => Ok(Field::SanDns),
    }
}

/// The part of a URI after its scheme; `None` if the text has no scheme (RFC 3986, 3.1).
fn rest_of_uri(name: &str) -> Option<&str> {
    let (scheme, rest) = name.split_once(':')?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    (scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && scheme.bytes().all(allowed)).then_some(rest)
}

fn is_plain(rest: &str) -> bool {
    let authority = rest.strip_prefix("//").and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let port = host.split_once(':').map_or("", |(_, port)| port);
    rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:/?#@!$&'()*+,;=".contains(&byte))
        && port.bytes().all(|byte| byte.is_ascii_digit())
}

fn canonical(address: &str) -> Result<String, Denial> {
    address.parse::<IpAddr>().map(|address| address.to_canonical().to_string()).map_err(|_| Denial::IDENTIFIER_INVALID)
}

impl From<Unreadable> for Denial {
    fn from(_: Unreadable) -> Self {
        Self::IDENTIFIER_INVALID
    }
}

/// Type of the subject alternative names that an attestation is about.
const PERMANENT_IDENTIFIER: &str = "permanentIdentifier";
