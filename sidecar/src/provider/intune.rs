//! Devices from Microsoft Intune, through Microsoft Graph.
//!
//! A lookup is one filtered list; what the list does not hold (groups, the user's department, the UDID) is asked for in one
//! batch beside it, and only where somebody needs it. Graph may ignore a filter, so every row is compared here, and that a
//! device is not there is said only when the last page was seen.

mod details;
mod graph;
mod login;
mod probe;
mod row;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use posture::identity::{IdentifierKind, normal};
use posture::record::{Field, Fields, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use url::Url;

use super::http::{Client, Endpoint, LOOKUP, PAGE, RECORDS};
use super::inventory::{Finding, Inventory, Listed, Listing, Question};
use super::shown::{Row as Again, Shown};
use super::token::Tokens;
use super::{Answer, Unavailable};
use crate::config::{SecretSource, Section, base_url, one_secret};
use graph::{Graph, Query};
use login::Login;
use row::Row;

/// `[provider.<name>]` with `type = "intune"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory (tenant): its id or one of its domain names.
    pub tenant_id: String,
    /// Application (client) id.
    pub client_id: String,
    /// How the application proves itself.
    pub credential: Credential,
    /// Where tokens come from; default the public cloud's.
    pub login_url: Url,
    /// Microsoft Graph; where it is given it takes precedence over `base_url`.
    pub graph_url: Option<Url>,
    /// Version of the API; default v1.0.
    pub api_version: Version,
    /// What several records with one serial number mean; default that nobody can say.
    pub duplicates: Duplicates,
}

/// How an application proves itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// By a secret.
    Secret(SecretSource),
    /// By a signature.
    Certificate {
        /// The certificate that is registered for the application, PEM.
        certificate: PathBuf,
        /// Its RSA key, PEM.
        key: SecretSource,
    },
}

/// Version of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// What Microsoft recommends. It says neither whether a device is lost nor in what state its management is.
    V1,
    /// It says both.
    Beta,
}

impl Version {
    const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1.0",
            Self::Beta => "beta",
        }
    }

    const fn fields(self) -> Fields {
        match self {
            Self::V1 => FIELDS,
            Self::Beta => FIELDS.union(Fields::of(&[Field::Lost, Field::WipePending])),
        }
    }
}

/// What several records with one serial number mean: a device that enrolled again leaves its old record behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplicates {
    /// [`Answer::Ambiguous`].
    Ambiguous,
    /// The one that synchronised last counts, where every other one has an older date.
    Newest,
}

impl Settings {
    /// The public cloud's Graph.
    pub(crate) const BASE_URL: Option<&'static str> = Some("https://graph.microsoft.com");

    /// Far below Graph's limit of 2,000 requests in 20 s for one application.
    pub(crate) const CONNECTIONS: usize = 20;

    /// Lookups in a second.
    pub(crate) const PER_SECOND: u32 = 20;

    pub(crate) fn read(section: &mut Section<'_>, base: &Path) -> Option<Self> {
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

    pub(crate) fn fields(&self) -> Fields {
        self.api_version.fields()
    }

    pub(crate) fn secrets(&self) -> Vec<&SecretSource> {
        match &self.credential {
            Credential::Secret(secret) | Credential::Certificate { key: secret, .. } => vec![secret],
        }
    }

    pub(crate) fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Intune, String> {
        let secret = secrets.first().ok_or("the client secret or key is missing")?;
        let tokens = Endpoint { base_url: self.login_url.clone(), connections: 1, ..endpoint.clone() };
        let login = Login::new(self, Client::new(&tokens)?, &endpoint.base_url, secret)?;
        let graph = Graph::new(Client::new(endpoint)?, Tokens::new(login), self.api_version);
        Ok(Intune { graph, api_version: self.api_version, duplicates: self.duplicates })
    }
}

impl Credential {
    fn read(section: &mut Section<'_>, base: &Path) -> Option<Self> {
        let by_secret = section.has("client_secret");
        if !section.has("client_certificate") && !section.has("client_key") {
            return one_secret(section, "client_secret", base).map(Self::Secret);
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
        let key = one_secret(section, "client_key", base);
        if by_secret { None } else { Some(Self::Certificate { certificate: certificate?, key: key? }) }
    }
}

/// An id or a domain name: it becomes part of an address.
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

/// One of a few words, the first where the key is not there.
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

/// Microsoft Intune.
#[derive(Debug)]
pub struct Intune {
    graph: Graph,
    api_version: Version,
    duplicates: Duplicates,
}

#[async_trait]
impl Inventory for Intune {
    fn fields(&self) -> Fields {
        self.api_version.fields()
    }

    fn asks(&self, kind: IdentifierKind) -> bool {
        kind == IdentifierKind::Serial
    }

    // Nobody documents whether it does.
    fn minds_spelling(&self) -> bool {
        true
    }

    fn asks_in_upper_case(&self) -> bool {
        true
    }

    async fn lookup(&self, question: &Question) -> Answer {
        // Intune can be asked for serial numbers alone: it does not search by UDID.
        if !self.asks(question.device.kind()) {
            return Answer::InvalidIdentifier;
        }
        self.find(question).await.unwrap_or_else(Answer::Unavailable)
    }

    fn listing(&self) -> Listing {
        Listing::Incremental
    }

    fn lists(&self, need: Fields) -> Fields {
        need.without(details::FIELDS)
    }

    fn newer(&self, one: &Record, other: &Record) -> Option<Ordering> {
        let dates = (one.last_seen.value().filter(|_| self.duplicates == Duplicates::Newest)?, other.last_seen.value()?);
        Some(dates.0.cmp(dates.1))
    }

    async fn list(&self, since: Option<UnixTime>, need: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        // Intune documents `gt` and `lt` for this property, so the moment itself is asked for by the second before it.
        let filter = since.map(|since| format!("lastSyncDateTime gt {}", row::date(since.saturating_sub(Duration::from_secs(1)))));
        let mut list = self.graph.devices(&Query { filter, top: Some(ROWS) }, LIST_PAGES, PAGE, false);
        let (mut count, mut shown, mut contradicted) = (0_usize, Shown::default(), false);
        while let Some(rows) = list.next(Instant::now() + PATIENCE).await? {
            count = count.saturating_add(rows.len());
            if count > RECORDS {
                return Ok(Listed { complete: false });
            }
            let mut rows = rows
                .into_iter()
                .filter(|row| {
                    let id = row.get("id").and_then(Value::as_str).unwrap_or_default();
                    let again = shown.take(id.to_owned(), row);
                    contradicted |= again == Again::Contradiction;
                    // Of a contradiction both are sent, so that neither is believed.
                    again != Again::Slipped
                })
                .map(|row| Row::read(row, self.api_version))
                .collect::<Result<Vec<_>, _>>()?;
            // The filter may have been ignored. A row without a date may have changed.
            rows.retain(|row| since.is_none_or(|since| row.record.last_seen.value().is_none_or(|seen| *seen >= since)));
            match details::complete(&self.graph, &mut rows, need, Instant::now() + DETAILS_PATIENCE).await {
                Ok(()) => {}
                // What could not be asked of one device stays unknown of it, and is asked for when it is needed.
                Err(error @ (Unavailable::Forbidden | Unavailable::Protocol | Unavailable::TooLarge | Unavailable::ServerError(_))) => {
                    tracing::debug!(error = error.as_str(), "some details of listed devices are not known");
                }
                Err(error) => return Err(error),
            }
            if pages.send(rows.into_iter().map(|row| row.record).collect()).await.is_err() {
                return Ok(Listed { complete: false });
            }
        }
        // What did not report is not among what changed, be it wiped or deleted.
        Ok(Listed { complete: since.is_none() && !contradicted })
    }

    async fn probe(&self, deadline: Instant) -> Vec<Finding> {
        probe::probe(&self.graph, deadline).await
    }
}

impl Intune {
    async fn find(&self, question: &Question) -> Result<Answer, Unavailable> {
        let stated = question.device.stated().trim_ascii();
        let mut rows = self.search(stated, question).await?;
        // Nobody documents whether `eq` minds the case of letters.
        if rows.is_empty() && stated != question.device.normal() {
            rows = self.search(question.device.normal(), question).await?;
        }
        let one = match rows.len() {
            0 => return Ok(Answer::NotFound),
            1 => rows.pop(),
            _ if self.duplicates == Duplicates::Newest => newest(rows),
            _ => None,
        };
        let Some(mut row) = one else { return Ok(Answer::Ambiguous) };
        details::complete(&self.graph, std::slice::from_mut(&mut row), question.need, question.deadline).await?;
        Ok(Answer::Found(row.record.into()))
    }

    /// Every record whose own serial number is the one in question, however Graph filtered.
    async fn search(&self, literal: &str, question: &Question) -> Result<Vec<Row>, Unavailable> {
        let filter = format!("serialNumber eq '{}'", literal.replace('\'', "''"));
        let mut pages = self.graph.devices(&Query { filter: Some(filter), top: None }, LOOKUP_PAGES, LOOKUP, true);
        let (mut fitting, mut others) = (BTreeMap::new(), false);
        loop {
            let rows = match pages.next(question.deadline).await {
                Ok(Some(rows)) => rows,
                Ok(None) => return Ok(fitting.into_values().collect()),
                Err(Unavailable::Timeout | Unavailable::TooLarge) if others => return Err(Unavailable::FilterIgnored),
                Err(error) => return Err(error),
            };
            for row in rows {
                let row = Row::read(row, self.api_version)?;
                if row.record.serial.value().is_some_and(|serial| normal(serial) == question.device.normal()) {
                    // A row may come again on the next page, when rows before it have gone meanwhile; as another one it
                    // contradicts itself.
                    match fitting.entry(row.record.provider_id.clone()) {
                        Entry::Vacant(place) => {
                            place.insert(row);
                        }
                        Entry::Occupied(known) if known.get().record == row.record => {}
                        Entry::Occupied(_) => return Err(Unavailable::Protocol),
                    }
                } else {
                    others = true;
                }
            }
        }
    }
}

/// The row that synchronised last, where that is certain.
fn newest(mut rows: Vec<Row>) -> Option<Row> {
    rows.sort_by_key(|row| row.record.last_seen.value().copied());
    let last = rows.pop()?;
    let date = last.record.last_seen.value()?;
    let older = |row: &Row| row.record.last_seen.value().is_some_and(|other| other < date);
    rows.iter().all(older).then_some(last)
}

/// What v1.0 can say.
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

/// Where the public cloud gives out tokens.
const PUBLIC_LOGIN: &str = "https://login.microsoftonline.com";

/// Pages that a lookup goes through when Graph ignores its filter: 20,000 devices.
const LOOKUP_PAGES: usize = 20;

/// Rows of a page of a list.
const ROWS: &str = "1000";

/// Pages of a list: ten million devices.
const LIST_PAGES: usize = 10_000;

/// How long one page of a list may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the details of one page may take: up to 150 batches.
const DETAILS_PATIENCE: Duration = Duration::from_secs(600);
