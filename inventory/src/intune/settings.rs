//! `[provider.<name>]` with `type = "intune"`: the settings of a tenant.

use std::path::{Path, PathBuf};

use posture::record::{Field, Fields};
use settings::{SecretSource, Section};
use url::Url;

use crate::http::base_url;

/// `[provider.<name>]` with `type = "intune"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory (tenant): its id or one of its domain names.
    pub tenant_id: String,
    /// Id of the application (client).
    pub client_id: String,
    /// Credential by which the application logs in.
    pub credential: Credential,
    /// Address that gives tokens; default that of the public cloud.
    pub login_url: Url,
    /// Address of Microsoft Graph; it takes precedence over `base_url`.
    pub graph_url: Option<Url>,
    /// Version of the API; default v1.0.
    pub api_version: Version,
    /// Rule for several records with one serial number; default [`Duplicates::Ambiguous`].
    pub duplicates: Duplicates,
}

/// The credential by which an application logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A client secret.
    Secret(SecretSource),
    /// A signature by a certificate's key.
    Certificate {
        /// PEM file with the certificate that is registered for the application.
        certificate: PathBuf,
        /// Source of the certificate's RSA key, PEM.
        key: SecretSource,
    },
}

/// A version of Microsoft Graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The version that Microsoft recommends. It says neither whether a device is lost nor in what state its management is.
    V1,
    /// The beta, which says both.
    Beta,
}

impl Version {
    /// The version as it stands in addresses.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1.0",
            Self::Beta => "beta",
        }
    }

    /// Fields that a record can ever hold in this version.
    pub(super) const fn fields(self) -> Fields {
        match self {
            Self::V1 => FIELDS,
            Self::Beta => FIELDS.union(Fields::of(&[Field::Lost, Field::WipePending])),
        }
    }
}

/// The rule for several records with one serial number: a device that enrolled again leaves its old record behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplicates {
    /// The records are [`crate::answer::Answer::Ambiguous`].
    Ambiguous,
    /// The record that synchronised last counts, where every other one has an older date.
    Newest,
}

impl Settings {
    /// Reads the keys that are the service's own. Returns `None` where one is missing or wrong, after reporting it.
    pub(super) fn of(section: &mut Section<'_>, base: &Path) -> Option<Self> {
        let tenant_id = directory_name(section, "tenant_id", "tenant_id = \"<Directory (tenant) ID>\"");
        let client_id = directory_name(section, "client_id", "client_id = \"<Application (client) ID>\"");
        let credential = Credential::read(section, base);
        let login_url = match section.has("login_url") {
            true => section.text("login_url", base_url),
            false => PUBLIC_LOGIN.parse().ok(),
        };
        let (has_graph, graph_url) = (section.has("graph_url"), section.text("graph_url", base_url));
        let api_version = one_of(section, "api_version", &[("v1.0", Version::V1), ("beta", Version::Beta)]);
        let duplicates = one_of(section, "duplicates", &[("ambiguous", Duplicates::Ambiguous), ("newest", Duplicates::Newest)]);
        if has_graph && graph_url.is_none() {
            return None;
        }
        Some(Self {
            tenant_id: tenant_id?,
            client_id: client_id?,
            credential: credential?,
            login_url: login_url?,
            graph_url,
            api_version: api_version?,
            duplicates: duplicates?,
        })
    }

    /// Fields that a record can ever hold.
    pub(super) fn known(&self) -> Fields {
        self.api_version.fields()
    }

    /// Source of the client secret, or of the certificate's key.
    pub(super) fn sources(&self) -> Vec<&SecretSource> {
        match &self.credential {
            Credential::Secret(secret) | Credential::Certificate { key: secret, .. } => vec![secret],
        }
    }
}

impl Credential {
    fn read(section: &mut Section<'_>, base: &Path) -> Option<Self> {
        let by_secret = section.has("client_secret");
        if !section.has("client_certificate") && !section.has("client_key") {
            return SecretSource::required(section, "client_secret", base).map(Self::Secret);
        }
        if by_secret {
            let place = section.place().clone();
            section.report().mistake(&place, "the application has either `client_secret`, or `client_certificate` and `client_key`");
            section.take("client_secret");
        }
        if !section.has("client_certificate") {
            section.missing("client_certificate", "client_certificate = \"intune.crt\", which belongs to `client_key`");
        }
        let certificate = section.path("client_certificate", base);
        let key = SecretSource::required(section, "client_key", base);
        if by_secret { None } else { Some(Self::Certificate { certificate: certificate?, key: key? }) }
    }
}

/// Reads an id or a domain name. Its characters are limited, since it becomes part of an address.
fn directory_name(section: &mut Section<'_>, key: &'static str, example: &str) -> Option<String> {
    if !section.has(key) {
        section.missing(key, example);
    }
    section.text(key, |text| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        if text.is_empty() || text.len() > 253 || text.starts_with('.') || !text.bytes().all(good) {
            return Err(format!("`{text}` is neither an id nor a domain name"));
        }
        Ok(text.to_owned())
    })
}

/// Reads one of a few words; a missing key means the first.
fn one_of<T: Copy>(section: &mut Section<'_>, key: &'static str, words: &[(&str, T)]) -> Option<T> {
    if !section.has(key) {
        return words.first().map(|(_, value)| *value);
    }
    section.text(key, |text| {
        let names: Vec<_> = words.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let found = words.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found.ok_or_else(|| format!("`{text}` is not known; write {}", names.join(" or ")))
    })
}

/// Fields that a record of v1.0 holds.
const FIELDS: Fields = Fields::of(&[
    Field::ProviderId,
    Field::Form,
    Field::Serial,
    Field::Udid,
    Field::Name,
    Field::Platform,
    Field::OsVersion,
    Field::Model,
    Field::Managed,
    Field::Supervised,
    Field::Ownership,
    Field::Compliance,
    Field::Groups,
    Field::Compromised,
    Field::Encrypted,
    Field::UserId,
    Field::UserName,
    Field::UserEmail,
    Field::UserDepartment,
    Field::UserTitle,
    Field::UserActive,
    Field::EnrolledAt,
    Field::LastSeen,
]);

/// Address of the public cloud that gives tokens.
const PUBLIC_LOGIN: &str = "https://login.microsoftonline.com";
