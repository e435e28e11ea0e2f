//! Every name of one sort that a request or a certificate has, whatever the field that step-ca sends it in.
//!
//! step-ca tells a request three times: in fields, in DER of its parts (`rawSubject`, `extensions`), and whole (`raw`). Of a
//! certificate that a template made it tells the fields, and beside them what is signed instead of some: `extraNames`,
//! `rawSubject`, and a subjectAltName among `extensions`. So there are several accounts of the same names. A device is taken
//! from them only where all say the same, since whichever is left out may be the one that is signed.

use std::borrow::Cow;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::asn1::{AnyRef, ObjectIdentifier};

use super::{Field, normal};
use crate::certificate::{self, COMMON_NAME, Certificate, Request, SERIAL_NUMBER, SUBJECT_ALT_NAME, Unreadable};
use crate::outcome::Denial;
use crate::webhook::{ExtraName, Many, San, X509};

/// The request or the certificate of a body; its `raw` is PKCS#10 or a certificate accordingly.
#[derive(Clone, Copy, Debug)]
pub(super) enum Half<'w> {
    Request(&'w X509<'w>),
    Certificate(&'w X509<'w>),
}

/// Names of one sort as the accounts tell them, each in its order; none of them is empty.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<Vec<String>>);

impl Names {
    /// Of a field of the subject, or of the subject alternative names.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_INVALID`] where an account cannot be read.
    pub(super) fn of(half: Half<'_>, field: Field) -> Result<Self, Denial> {
        match field {
            Field::SubjectCommonName => half.subject(COMMON_NAME),
            Field::SubjectSerialNumber => half.subject(SERIAL_NUMBER),
            Field::SanDns | Field::SanEmail | Field::SanIp | Field::SanUri => half.sans(field),
            Field::SshKeyId | Field::SshPrincipal => Ok(Self::default()),
        }
    }

    /// Of a certificate in DER.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_INVALID`] where it cannot be read.
    pub(super) fn of_certificate(der: &[u8], field: Field) -> Result<Self, Denial> {
        let certificate = Certificate::from_der(der)?;
        Ok(Self(vec![match field {
            Field::SubjectCommonName => attributes(certificate.subject(), COMMON_NAME)?,
            Field::SubjectSerialNumber => attributes(certificate.subject(), SERIAL_NUMBER)?,
            Field::SanDns | Field::SanEmail | Field::SanIp | Field::SanUri => extension(certificate.extension(SUBJECT_ALT_NAME)?, field)?,
            Field::SshKeyId | Field::SshPrincipal => Vec::new(),
        }]))
    }

    /// Of a list, where there is but one account.
    pub(super) fn of_list(list: &Many<'_>) -> Self {
        Self(vec![without_empty(list)])
    }

    /// All of them, whoever tells them.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flatten().map(String::as_str)
    }

    /// The one name that every account tells. Names that a look-up does not tell apart are one.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_MISSING`], [`Denial::IDENTIFIER_AMBIGUOUS`] where there are two, and
    /// [`Denial::IDENTIFIER_MISMATCH`] where one account tells a name and another tells none.
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

    /// Whether every account tells the same names.
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

    /// Every permanent identifier that the subject alternative names hold (RFC 4043).
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

    /// Hands over the subjectAltName extension of each account that has extensions.
    fn each_extension(self, mut take: impl FnMut(Option<&[u8]>) -> Result<(), Denial>) -> Result<(), Denial> {
        let x509 = self.x509();
        let mut named = x509.extensions.iter().flatten().filter(|extension| is_oid(&extension.id, SUBJECT_ALT_NAME));
        match (named.next(), named.next()) {
            (None, _) => {}
            (Some(only), None) => take(Some(&decoded(only.value.as_ref())?.ok_or(Denial::IDENTIFIER_INVALID)?))?,
            // Nobody can say which of the two is signed.
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

/// The value of an attribute; one that is no text names nobody, and is signed all the same.
fn value(extra: &ExtraName<'_>) -> Result<String, Denial> {
    extra.value.as_str().map(str::to_owned).ok_or(Denial::IDENTIFIER_INVALID)
}

fn attributes(name: AnyRef<'_>, id: ObjectIdentifier) -> Result<Vec<String>, Denial> {
    whole(certificate::attributes(name, id)?.into_iter().map(Cow::into_owned).collect())
}

/// The values of one attribute, without the empty ones, which name nobody. Beside another an empty one may be what counts: Go
/// takes the last.
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

/// Base64 that says something; nothing, as Go writes it, is `null` or empty.
fn decoded(text: Option<&Cow<'_, str>>) -> Result<Option<Vec<u8>>, Denial> {
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| STANDARD.decode(text.as_bytes())).transpose().map_err(|_| Denial::IDENTIFIER_INVALID)
}

/// Whether digits and dots are this OID, however many zeros lead.
fn is_oid(text: &str, id: ObjectIdentifier) -> bool {
    let arcs = text.split('.').map(|arc| arc.parse::<u64>().ok());
    arcs.eq(id.arcs().map(|arc| Some(arc.into())))
}

/// The field that a name of a template belongs to, as `x509util.SubjectAlternativeName` decides; `None`: to none.
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

/// What step-ca takes a name without a type for: an IP address, else a URI where it has a scheme and Go can parse it, else a
/// mail address where it has an `@`, else a DNS name. Where it has a scheme and Go might not parse it, nobody can say.
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

/// What follows the scheme; `None` where there is none (RFC 3986, 3.1).
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

/// Type of a subject alternative name that an attestation is about.
const PERMANENT_IDENTIFIER: &str = "permanentIdentifier";
