//! Devices from Microsoft Intune, through Microsoft Graph.
//!
//! A lookup is one filtered list; what the list does not hold (groups, the user's department, the UDID) is asked for in one batch
//! beside it, and only where somebody needs it. Graph may ignore a filter, so every row is compared here, and a device counts as
//! not found only after the last page.

mod details;
mod graph;
mod login;
mod probe;
mod row;
mod settings;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use ::settings::{SecretSource, Section};
use async_trait::async_trait;
use posture::identity::{IdentifierKind, normal};
use posture::record::{Fields, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use url::Url;

use crate::answer::{Answer, Unavailable};
use crate::http::{Client, Endpoint, LOOKUP, PAGE, RECORDS};
use crate::inventory::{Finding, Inventory, Listed, Listing, Question};
use crate::setup::{Defaults, Setup};
use crate::shown::{Row as Again, Shown};
use crate::token::Tokens;
use graph::{Graph, Query};
use login::Login;
use row::Row;

pub use settings::{Credential, Duplicates, Settings, Version};

/// The service's word in `type = "…"`.
pub(crate) const NAME: &str = "intune";

impl Setup for Settings {
    fn name(&self) -> &'static str {
        NAME
    }

    fn defaults() -> Defaults {
        // The address is Graph in the public cloud. The connections are far below its limit of 2,000 requests in 20 s for one
        // application.
        Defaults { base_url: Some("https://graph.microsoft.com"), connections: 20, per_second: 20 }
    }

    fn read(section: &mut Section<'_>, base: &std::path::Path) -> Option<Self> {
        Self::of(section, base)
    }

    fn secrets(&self) -> Vec<&SecretSource> {
        self.sources()
    }

    fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Arc<dyn Inventory>, String> {
        let secret = secrets.first().ok_or("the client secret or key is missing")?;
        let tokens = Endpoint { base_url: self.login_url.clone(), connections: 1, ..endpoint.clone() };
        let login = Login::new(self, Client::new(&tokens)?, &endpoint.base_url, secret)?;
        let graph = Graph::new(Client::new(endpoint)?, Tokens::new(login), self.api_version);
        Ok(Arc::new(Intune { graph, api_version: self.api_version, duplicates: self.duplicates }))
    }

    fn fields(&self) -> Fields {
        self.known()
    }

    fn address(&self, base_url: Url) -> Url {
        self.graph_url.clone().unwrap_or(base_url)
    }
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

    // No document says whether Graph's `eq` minds the case of letters.
    fn minds_spelling(&self) -> bool {
        true
    }

    fn asks_in_upper_case(&self) -> bool {
        true
    }

    async fn lookup(&self, question: &Question) -> Answer {
        // Intune searches by serial number alone, not by UDID.
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
        // Intune documents `gt` and `lt` for this property, so the filter names the second before `since`.
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
                    // Both rows of a contradiction are sent, so that neither is believed.
                    again != Again::Slipped
                })
                .map(|row| Row::read(row, self.api_version))
                .collect::<Result<Vec<_>, _>>()?;
            // Rows are compared again, since Graph may have ignored the filter. A row without a date may have changed.
            rows.retain(|row| since.is_none_or(|since| row.record.last_seen.value().is_none_or(|seen| *seen >= since)));
            match details::complete(&self.graph, &mut rows, need, Instant::now() + DETAILS_PATIENCE).await {
                Ok(()) => {}
                // A detail that could not be asked for stays unknown, and is asked for when it is needed.
                Err(error @ (Unavailable::Forbidden | Unavailable::Protocol | Unavailable::TooLarge | Unavailable::ServerError(_))) => {
                    tracing::debug!(error = error.as_str(), "some details of listed devices are not known");
                }
                Err(error) => return Err(error),
            }
            if pages.send(rows.into_iter().map(|row| row.record).collect()).await.is_err() {
                return Ok(Listed { complete: false });
            }
        }
        // A device that did not report, be it wiped or deleted, is not among what changed.
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
        // No document says whether `eq` minds the case of letters.
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
                    // A row may come again on the next page, when rows before it have gone meanwhile; if it differs then, it
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

/// The row that synchronised last; `None` where that is not certain.
fn newest(mut rows: Vec<Row>) -> Option<Row> {
    rows.sort_by_key(|row| row.record.last_seen.value().copied());
    let last = rows.pop()?;
    let date = last.record.last_seen.value()?;
    let older = |row: &Row| row.record.last_seen.value().is_some_and(|other| other < date);
    rows.iter().all(older).then_some(last)
}

/// Most pages that a lookup reads when Graph ignores its filter: 20,000 devices.
const LOOKUP_PAGES: usize = 20;

/// Number of rows on a page of a list.
const ROWS: &str = "1000";

/// Most pages of a list: ten million devices.
const LIST_PAGES: usize = 10_000;

/// Longest time for one page of a list.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longest time for the details of one page: up to 150 batches.
const DETAILS_PATIENCE: Duration = Duration::from_secs(600);
