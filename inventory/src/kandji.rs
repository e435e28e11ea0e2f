//! Kandji, now Iru (`type = "kandji"`). Sources: `MScottBlake/kandji-openapi`, `openapi.json`, and the answers recorded in
//! `JupiterOne/graph-kandji`.
//!
//! A lookup asks for the serial number. Kandji also finds it as a part of longer ones, so every row is compared and the search is
//! read to its end. Kandji cannot search by any other identifier of a device.

mod api;
mod audit;
mod budget;
mod pages;
mod probe;
mod record;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use posture::identity::{IdentifierKind, normal};
use posture::record::{Fact, Fields, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use serde_json::Value;
use settings::{SecretSource, Section};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::{Answer, Unavailable};
use crate::http::{Endpoint, LOOKUP, PAGE, RECORDS};
use crate::inventory::{Finding, Inventory, Listed, Listing, Logged, Question};
use crate::leftovers::Leftovers;
use crate::lenient;
use crate::setup::{Defaults, Setup};
use crate::shown::{Row, Shown};
use api::{Api, LIMIT, next_cursor, page_deadline, rfc3339};
use pages::Pages;

/// The service's word in `type = "…"`.
pub(crate) const NAME: &str = "kandji";

/// `[provider.<name>]` with `type = "kandji"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Source of an API token.
    pub token: SecretSource,
    /// Whether `device.compliance` is made of the states of library items and parameters; default false, since it costs a request
    /// for each device.
    pub compliance_from_status: bool,
    /// Whether the list of all devices has the fields of each device's details; default false, since it costs a request for each
    /// device.
    pub list_details: bool,
}

impl Setup for Settings {
    fn name(&self) -> &'static str {
        NAME
    }

    fn defaults() -> Defaults {
        // Every tenant has an address of its own, and 10,000 requests an hour, which a higher rate of lookups would spend.
        Defaults { base_url: None, connections: 10, per_second: 2 }
    }

    fn read(section: &mut Section<'_>, base: &Path) -> Option<Self> {
        let compliance_from_status = section.flag("compliance_from_status").unwrap_or_default();
        let list_details = section.flag("list_details").unwrap_or_default();
        Some(Self { token: SecretSource::required(section, "token", base)?, compliance_from_status, list_details })
    }

    fn fields(&self) -> Fields {
        let status = if self.compliance_from_status { record::STATUS } else { Fields::NONE };
        record::ROW.union(record::DETAILS).union(record::PERSON).union(status)
    }

    fn secrets(&self) -> Vec<&SecretSource> {
        vec![&self.token]
    }

    fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Arc<dyn Inventory>, String> {
        Ok(Arc::new(Kandji { settings: self.clone(), api: Api::new(endpoint, secrets.first())? }))
    }
}

/// A tenant of Kandji.
#[derive(Debug)]
pub struct Kandji {
    settings: Settings,
    api: Api,
}

#[async_trait]
impl Inventory for Kandji {
    fn fields(&self) -> Fields {
        self.settings.fields()
    }

    fn asks(&self, kind: IdentifierKind) -> bool {
        kind == IdentifierKind::Serial
    }

    // No document says whether Kandji's filter minds the case of letters.
    fn minds_spelling(&self) -> bool {
        true
    }

    fn asks_in_upper_case(&self) -> bool {
        true
    }

    async fn lookup(&self, question: &Question) -> Answer {
        if !self.asks(question.device.kind()) {
            return Answer::InvalidIdentifier;
        }
        self.find(question).await.unwrap_or_else(Answer::Unavailable)
    }

    fn listing(&self) -> Listing {
        Listing::Incremental
    }

    fn lists(&self, need: Fields) -> Fields {
        need.both(record::ROW)
    }

    async fn list(&self, since: Option<UnixTime>, need: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        match since {
            None => self.sweep(None, need, &pages).await,
            Some(since) => {
                let changed = self.changed(since).await?;
                if changed.len() > MOST_SINGLE {
                    self.sweep(Some(&changed), need, &pages).await?;
                } else {
                    self.each(&changed, need, &pages).await?;
                }
                Ok(Listed { complete: false })
            }
        }
    }

    async fn changes(&self, since: UnixTime) -> Result<Vec<Logged>, Unavailable> {
        audit::changes(&self.api, since).await
    }

    async fn probe(&self, deadline: Instant) -> Vec<Finding> {
        probe::probe(&self.api, self.settings.compliance_from_status, deadline).await
    }
}

impl Kandji {
    async fn find(&self, question: &Question) -> Result<Answer, Unavailable> {
        let (stated, wanted) = (question.device.stated().trim_ascii(), question.device.normal());
        let mut rows = self.matching(stated, wanted, question.deadline).await?;
        // The description does not say whether the filter minds the case of letters. Makers write serial numbers in upper case.
        if rows.is_empty() && stated != wanted {
            rows = self.matching(wanted, wanted, question.deadline).await?;
        }
        match rows.as_slice() {
            [] => Ok(Answer::NotFound),
            [row] => {
                let mut record = record::of_row(row);
                self.complete(&mut record, question.need, question.deadline).await?;
                Ok(Answer::Found(record.into()))
            }
            _ => Ok(Answer::Ambiguous),
        }
    }

    /// Rows with exactly this serial number: the current ones, or where there are none up to two removed ones. The search is read
    /// to its end, unless two are current.
    async fn matching(&self, literal: &str, wanted: &str, deadline: Instant) -> Result<Vec<Value>, Unavailable> {
        let mut pages = Pages::new(Some(literal));
        let (mut live, mut removed) = (Vec::new(), Vec::new());
        let (mut ids, mut foreign, mut unreadable) = (Shown::default(), false, false);
        for _ in 0..MOST_LOOKUP_PAGES {
            let page = pages.next(&self.api, deadline, LOOKUP).await?;
            if page.slipped {
                return Err(Unavailable::Protocol);
            }
            for row in page.rows {
                match lenient::text(row.get("serial_number")) {
                    Fact::Value(serial) if normal(&serial) == wanted => {
                        match ids.take(record::id(&row).ok_or(Unavailable::Protocol)?.to_owned(), &row) {
                            Row::New if !record::is_removed(&row) => live.push(row),
                            // Two removed rows say as much as all: rows may be large.
                            Row::New if removed.len() < 2 => removed.push(row),
                            Row::New | Row::Slipped => {}
                            Row::Contradiction => return Err(Unavailable::Protocol),
                        }
                    }
                    Fact::Value(serial) => foreign |= !normal(&serial).contains(wanted),
                    Fact::Absent => foreign = true,
                    Fact::Unknown => unreadable = true,
                }
            }
            // Two current rows are ambiguous, whatever else there is.
            if live.len() > 1 {
                return Ok(live);
            }
            if page.last {
                // A removed record is of an earlier enrolment where there is a current one.
                let found = if live.is_empty() { removed } else { live };
                return match (found.is_empty(), foreign, unreadable) {
                    // The answer was to another question.
                    (true, true, _) => Err(Unavailable::FilterIgnored),
                    // The unreadable row may be the device, or another one with the same serial number.
                    (_, _, true) => Err(Unavailable::Protocol),
                    _ => Ok(found),
                };
            }
        }
        Err(Unavailable::FilterIgnored)
    }

    /// Adds the needed facts that cost requests of their own.
    async fn complete(&self, record: &mut Record, need: Fields, deadline: Instant) -> Result<(), Unavailable> {
        let id = record.provider_id.clone();
        let details = async {
            if !need.meets(record::DETAILS) {
                return Ok(None);
            }
            let details: Value = self.api.get(&format!("/api/v1/devices/{id}/details"), &[], deadline, LOOKUP).await?.ok()?.json()?;
            same_device(details.get("general").and_then(|general| general.get("device_id")), &id)?;
            Ok(Some(details))
        };
        let status = async {
            if !self.settings.compliance_from_status || !need.meets(record::STATUS) {
                return Ok(None);
            }
            let status: Value = self.api.get(&format!("/api/v1/devices/{id}/status"), &[], deadline, LOOKUP).await?.ok()?.json()?;
            same_device(status.get("device_id"), &id)?;
            Ok(Some(status))
        };
        let email = record.user.email.clone();
        let person = async {
            match &email {
                Fact::Value(email) if need.meets(record::PERSON) => self.person(email, record.user.id.value(), deadline).await,
                _ => Ok(None),
            }
        };
        let (details, status, person) = tokio::try_join!(details, status, person)?;
        if let Some(details) = &details {
            record::add_details(record, details);
        }
        if let Some(status) = &status {
            record.compliance = record::compliance(status);
        }
        if let Some(person) = &person {
            record.user.department = lenient::text(person.get("department"));
            record.user.title = lenient::text(person.get("job_title"));
        }
        Ok(())
    }

    /// The person with this address in the directory, where there is exactly one.
    async fn person(&self, email: &str, id: Option<&String>, deadline: Instant) -> Result<Option<Value>, Unavailable> {
        let mut found: Vec<Value> = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MOST_PEOPLE_PAGES {
            let mut query = vec![("email", email)];
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let mut page: Value = self.api.get("/api/v1/users", &query, deadline, LOOKUP).await?.ok()?.json()?;
            let Some(Value::Array(people)) = page.get_mut("results").map(Value::take) else { return Err(Unavailable::Protocol) };
            let exact = |person: &Value| person.get("email").and_then(Value::as_str).is_some_and(|known| known.eq_ignore_ascii_case(email));
            found.extend(people.into_iter().filter(exact));
            let next = next_cursor(page.get("next"))?;
            if next.is_none() {
                // Two directories may have the address; the device names one of them by its id, the newer or the older.
                let named = |person: &Value| {
                    let fields = ["id", "deprecated_user_id"];
                    fields.iter().any(|field| id.is_some() && lenient::text(person.get(*field)).value() == id)
                };
                if found.len() > 1 {
                    found.retain(named);
                }
                return Ok(if found.len() == 1 { found.pop() } else { None });
            }
            if next == cursor {
                return Err(Unavailable::Protocol);
            }
            cursor = next;
        }
        Err(Unavailable::FilterIgnored)
    }

    /// Sends all devices, or those with the ids in `only`.
    async fn sweep(&self, only: Option<&BTreeSet<String>>, need: Fields, sink: &mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        let mut pages = Pages::new(None);
        let (mut complete, mut ids, mut leftovers) = (true, Shown::default(), Leftovers::default());
        for _ in 0..MOST_LIST_PAGES {
            self.api.spare()?;
            let page = pages.next(&self.api, page_deadline(), PAGE).await?;
            complete &= !page.slipped;
            let (mut records, before) = (Vec::with_capacity(page.rows.len()), ids.len());
            for row in &page.rows {
                let Some(id) = record::id(row) else {
                    complete = false;
                    continue;
                };
                let seen = ids.take(id.to_owned(), row);
                match seen {
                    Row::New => {}
                    Row::Slipped => continue,
                    // Both rows are sent, so that neither is believed.
                    Row::Contradiction => complete = false,
                }
                if only.is_none_or(|only| only.contains(id)) {
                    let mut record = record::of_row(row);
                    if self.settings.list_details && need.meets(record::DETAILS) {
                        self.api.spare()?;
                        self.complete(&mut record, record::DETAILS, page_deadline()).await?;
                        tokio::time::sleep(DETAILS_PACE).await;
                    }
                    // A list of changes does not show which record took the place of a removed one.
                    records.push((only.is_none() && seen == Row::New && record::is_removed(row), record));
                }
            }
            let mut records = leftovers.sift(records);
            if page.last {
                records.extend(std::mem::take(&mut leftovers).rest());
            }
            if !records.is_empty() && sink.send(records).await.is_err() {
                return Ok(Listed { complete: false });
            }
            if page.last {
                return Ok(Listed { complete });
            }
            // A page without a new device would come for ever.
            if ids.len() == before || ids.len() > RECORDS {
                return Ok(Listed { complete: false });
            }
        }
        Ok(Listed { complete: false })
    }

    /// Sends the devices with these ids. A device that is gone is not sent: only a complete list finds it missing.
    async fn each(&self, ids: &BTreeSet<String>, need: Fields, sink: &mpsc::Sender<Vec<Record>>) -> Result<(), Unavailable> {
        for id in ids {
            self.api.spare()?;
            let Some(row) = pages::one(&self.api, id, page_deadline()).await? else { continue };
            let mut record = record::of_row(&row);
            if self.settings.list_details && need.meets(record::DETAILS) {
                self.complete(&mut record, record::DETAILS, page_deadline()).await?;
            }
            if sink.send(vec![record]).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Ids of the devices that Prism reports as changed. Its rows do not say whether a device was removed, so they make no
    /// records.
    async fn changed(&self, since: UnixTime) -> Result<BTreeSet<String>, Unavailable> {
        let filter = serde_json::json!({"updated_at": {"gte": rfc3339(since)?}}).to_string();
        let mut ids = BTreeSet::new();
        let (mut rows, mut cursor, mut cursors) = (0_usize, None::<String>, BTreeSet::new());
        for _ in 0..MOST_LIST_PAGES {
            self.api.spare()?;
            let offset = rows.to_string();
            let from = cursor.as_deref().map_or(("offset", offset.as_str()), |cursor| ("cursor", cursor));
            let query = [("filter", filter.as_str()), ("sort_by", "device_id"), ("limit", LIMIT.1), from];
            let page: Value = self.api.get("/api/v1/prism/device_information", &query, page_deadline(), PAGE).await?.ok()?.json()?;
            let Some(data) = page.get("data").and_then(Value::as_array) else { return Err(Unavailable::Protocol) };
            for row in data {
                ids.insert(record::id(row).ok_or(Unavailable::Protocol)?.to_owned());
            }
            rows = rows.saturating_add(data.len());
            let next = page.get("cursor").and_then(Value::as_str).filter(|cursor| !cursor.is_empty()).map(str::to_owned);
            let total = page.get("total").and_then(Value::as_u64).and_then(|total| usize::try_from(total).ok());
            let more = next.is_some() || total.map_or(data.len() >= LIMIT.0, |total| rows < total);
            if data.is_empty() || !more {
                return Ok(ids);
            }
            if ids.len() > RECORDS {
                return Err(Unavailable::TooLarge);
            }
            if next.as_ref().is_some_and(|next| !cursors.insert(next.clone())) {
                return Err(Unavailable::Protocol);
            }
            cursor = next;
        }
        Err(Unavailable::TooLarge)
    }
}

/// Refuses an answer about another device.
fn same_device(said: Option<&Value>, id: &str) -> Result<(), Unavailable> {
    if said.is_none_or(|said| said.as_str() == Some(id)) { Ok(()) } else { Err(Unavailable::Protocol) }
}

/// Most pages of a search: no serial number is a part of this many others.
const MOST_LOOKUP_PAGES: usize = 10;
const MOST_PEOPLE_PAGES: usize = 5;
/// Most pages of a list: a million devices.
const MOST_LIST_PAGES: usize = 3_400;
/// Most changed devices that are asked for one by one; more are cheaper to find among all.
const MOST_SINGLE: usize = 50;
/// Time between two requests for details while all devices are listed: fewer than the hour allows.
const DETAILS_PACE: Duration = Duration::from_millis(500);
