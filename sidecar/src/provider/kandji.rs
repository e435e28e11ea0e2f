//! Kandji, now Iru (`type = "kandji"`): `MScottBlake/kandji-openapi`, `openapi.json`, and the answers recorded in
//! `JupiterOne/graph-kandji`.
//!
//! A lookup asks for the serial number, which Kandji finds as a part of others, so every row is compared and the search is
//! read to its end. Kandji cannot search for anything else that identifies a device.

mod audit;
mod budget;
mod pages;
mod probe;
mod record;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use posture::identity::{IdentifierKind, normal};
use posture::record::{Fact, Fields, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::errand::Errand;
use super::http::{Client, Endpoint, LOOKUP, PAGE, RECORDS, Reply};
use super::inventory::{Finding, Inventory, Listed, Listing, Logged, Question};
use super::leftovers::Leftovers;
use super::shown::{Row, Shown};
use super::{Answer, Unavailable, lenient};
use crate::config::{SecretSource, Section, one_secret};
use budget::Budget;
use pages::Pages;

/// `[provider.<name>]` with `type = "kandji"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// An API token.
    pub token: SecretSource,
    /// Whether `device.compliance` comes of the states of library items and parameters; default false, since it costs a
    /// request for each device.
    pub compliance_from_status: bool,
    /// Whether the list of all devices has the fields of each one's details; default false, since it costs a request for
    /// each device.
    pub list_details: bool,
}

impl Settings {
    /// Every tenant has an address of its own.
    pub const BASE_URL: Option<&'static str> = None;
    /// Requests at once.
    pub const CONNECTIONS: usize = 10;
    /// Lookups in a second: a tenant has 10,000 requests in an hour, which more would spend.
    pub const PER_SECOND: u32 = 2;

    pub(crate) fn read(section: &mut Section<'_>, base: &Path) -> Option<Self> {
        let compliance_from_status = section.flag("compliance_from_status").unwrap_or_default();
        let list_details = section.flag("list_details").unwrap_or_default();
        Some(Self { token: one_secret(section, "token", base)?, compliance_from_status, list_details })
    }

    /// Fields that a record can ever hold.
    pub fn fields(&self) -> Fields {
        let status = if self.compliance_from_status { record::STATUS } else { Fields::NONE };
        record::ROW.union(record::DETAILS).union(record::PERSON).union(status)
    }

    /// The token.
    pub fn secrets(&self) -> Vec<&SecretSource> {
        vec![&self.token]
    }

    /// Makes a client. Nothing is sent yet.
    ///
    /// # Errors
    /// In words for the operator.
    pub fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Kandji, String> {
        let token = secrets.first().map(Secret::expose).unwrap_or_default();
        let mut authorization = HeaderValue::from_bytes(&[b"Bearer ", token.trim_ascii()].concat())
            .map_err(|_| "the token holds characters that no header can".to_owned())?;
        authorization.set_sensitive(true);
        let client = Client::new(endpoint)?;
        Ok(Kandji { settings: self.clone(), client, authorization, budget: Budget::default() })
    }
}

/// A tenant of Kandji.
#[derive(Debug)]
pub struct Kandji {
    settings: Settings,
    client: Client,
    /// Marked as sensitive, so it does not print.
    authorization: HeaderValue,
    budget: Budget,
}

#[async_trait]
impl Inventory for Kandji {
    fn fields(&self) -> Fields {
        self.settings.fields()
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
        audit::changes(self, since).await
    }

    async fn probe(&self, deadline: Instant) -> Vec<Finding> {
        probe::probe(self, deadline).await
    }
}

impl Kandji {
    /// Asks for a path. No request is sent while the hour's are spent, nor for a device that nobody knows while what is left is for others.
    async fn get(&self, path: &str, query: &[(&str, &str)], deadline: Instant, most: usize) -> Result<Reply, Unavailable> {
        match Errand::current() {
            Some(errand) if !errand.is_known() => self.budget.for_a_stranger(),
            _ => self.budget.check(),
        }?;
        let request = self.client.get(self.client.url(path, query)).header(AUTHORIZATION, self.authorization.clone());
        let reply = self.client.send(request, deadline, most).await?;
        self.budget.note(&reply.headers);
        if reply.status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Unavailable::RateLimited(reply.retry_after().or_else(|| budget::reset(&reply.headers))));
        }
        Ok(reply)
    }

    async fn find(&self, question: &Question) -> Result<Answer, Unavailable> {
        let (stated, wanted) = (question.device.stated().trim_ascii(), question.device.normal());
        let mut rows = self.matching(stated, wanted, question.deadline).await?;
        // The description does not say whether the filter tells upper from lower case. Makers write serial numbers in upper case.
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

    /// The rows with exactly this serial number, from a search that was read to its end: those that count, two at most.
    async fn matching(&self, literal: &str, wanted: &str, deadline: Instant) -> Result<Vec<Value>, Unavailable> {
        let mut pages = Pages::new(Some(literal));
        let (mut live, mut removed) = (Vec::new(), Vec::new());
        let (mut ids, mut foreign, mut unreadable) = (Shown::default(), false, false);
        for _ in 0..MOST_LOOKUP_PAGES {
            let page = pages.next(self, deadline, LOOKUP).await?;
            if page.slipped {
                return Err(Unavailable::Protocol);
            }
            for row in page.rows {
                match lenient::text(row.get("serial_number")) {
                    Fact::Value(serial) if normal(&serial) == wanted => {
                        match ids.take(record::id(&row).ok_or(Unavailable::Protocol)?.to_owned(), &row) {
                            Row::New if !record::is_removed(&row) => live.push(row),
                            // Of those that were removed two say as much as all: rows may be large.
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
            // Two that are there are ambiguous, whatever else there is.
            if live.len() > 1 {
                return Ok(live);
            }
            if page.last {
                // A record that Kandji says is removed is of an earlier enrolment where there is another one.
                let found = if live.is_empty() { removed } else { live };
                return match (found.is_empty(), foreign, unreadable) {
                    // Whatever answered did not answer this question.
                    (true, true, _) => Err(Unavailable::FilterIgnored),
                    // It may be the device, or another one of the same serial number.
                    (_, _, true) => Err(Unavailable::Protocol),
                    _ => Ok(found),
                };
            }
        }
        Err(Unavailable::FilterIgnored)
    }

    /// Adds what costs requests of their own, where it is needed.
    async fn complete(&self, record: &mut Record, need: Fields, deadline: Instant) -> Result<(), Unavailable> {
        let id = record.provider_id.clone();
        let details = async {
            if !need.meets(record::DETAILS) {
                return Ok(None);
            }
            let details: Value = self.get(&format!("/api/v1/devices/{id}/details"), &[], deadline, LOOKUP).await?.ok()?.json()?;
            same_device(details.get("general").and_then(|general| general.get("device_id")), &id)?;
            Ok(Some(details))
        };
        let status = async {
            if !self.settings.compliance_from_status || !need.meets(record::STATUS) {
                return Ok(None);
            }
            let status: Value = self.get(&format!("/api/v1/devices/{id}/status"), &[], deadline, LOOKUP).await?.ok()?.json()?;
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

    /// The person of this address in the directory, where it is exactly one.
    async fn person(&self, email: &str, id: Option<&String>, deadline: Instant) -> Result<Option<Value>, Unavailable> {
        let mut found: Vec<Value> = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MOST_PEOPLE_PAGES {
            let mut query = vec![("email", email)];
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let mut page: Value = self.get("/api/v1/users", &query, deadline, LOOKUP).await?.ok()?.json()?;
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

    /// Sends all devices, or those of these ids.
    async fn sweep(&self, only: Option<&BTreeSet<String>>, need: Fields, sink: &mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        let mut pages = Pages::new(None);
        let (mut complete, mut ids, mut leftovers) = (true, Shown::default(), Leftovers::default());
        for _ in 0..MOST_LIST_PAGES {
            self.budget.spare()?;
            let page = pages.next(self, page_deadline(), PAGE).await?;
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
                    // Both are sent, so that neither is believed.
                    Row::Contradiction => complete = false,
                }
                if only.is_none_or(|only| only.contains(id)) {
                    let mut record = record::of_row(row);
                    if self.settings.list_details && need.meets(record::DETAILS) {
                        self.budget.spare()?;
                        self.complete(&mut record, record::DETAILS, page_deadline()).await?;
                        tokio::time::sleep(DETAILS_PACE).await;
                    }
                    // Of changes alone it is not known what took the place of a record.
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
            // A page without a device that is new would come for ever.
            if ids.len() == before || ids.len() > RECORDS {
                return Ok(Listed { complete: false });
            }
        }
        Ok(Listed { complete: false })
    }

    /// Sends the devices of these ids. One that is gone is not sent: that is for a complete list to find.
    async fn each(&self, ids: &BTreeSet<String>, need: Fields, sink: &mpsc::Sender<Vec<Record>>) -> Result<(), Unavailable> {
        for id in ids {
            self.budget.spare()?;
            let Some(row) = pages::one(self, id, page_deadline()).await? else { continue };
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

    /// Ids of the devices that Prism says changed. Its rows do not say whether a device was removed, so they are no records.
    async fn changed(&self, since: UnixTime) -> Result<BTreeSet<String>, Unavailable> {
        let filter = serde_json::json!({"updated_at": {"gte": rfc3339(since)?}}).to_string();
        let mut ids = BTreeSet::new();
        let (mut rows, mut cursor, mut cursors) = (0_usize, None::<String>, BTreeSet::new());
        for _ in 0..MOST_LIST_PAGES {
            self.budget.spare()?;
            let offset = rows.to_string();
            let from = cursor.as_deref().map_or(("offset", offset.as_str()), |cursor| ("cursor", cursor));
            let query = [("filter", filter.as_str()), ("sort_by", "device_id"), ("limit", LIMIT.1), from];
            let page: Value = self.get("/api/v1/prism/device_information", &query, page_deadline(), PAGE).await?.ok()?.json()?;
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

/// The cursor of a next page. Its address is not followed: for people it is on another host than the API.
fn next_cursor(next: Option<&Value>) -> Result<Option<String>, Unavailable> {
    match next {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(next)) => {
            let next: url::Url = next.parse().map_err(|_| Unavailable::Protocol)?;
            let cursor = next.query_pairs().find(|(name, _)| name == "cursor").map(|(_, cursor)| cursor.into_owned());
            cursor.map(Some).ok_or(Unavailable::Protocol)
        }
        Some(_) => Err(Unavailable::Protocol),
    }
}

/// Refuses an answer that says that it is about another device.
fn same_device(said: Option<&Value>, id: &str) -> Result<(), Unavailable> {
    if said.is_none_or(|said| said.as_str() == Some(id)) { Ok(()) } else { Err(Unavailable::Protocol) }
}

fn rfc3339(at: UnixTime) -> Result<String, Unavailable> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.as_nanos())).map_err(|_| Unavailable::Unsupported)?;
    at.format(&Rfc3339).map_err(|_| Unavailable::Unsupported)
}

fn page_deadline() -> Instant {
    Instant::now() + PAGE_TIME
}

/// Rows of a page: the most that Kandji gives.
const LIMIT: (usize, &str) = (300, "300");
/// Pages of a search: a serial number that is a part of this many others is none.
const MOST_LOOKUP_PAGES: usize = 10;
const MOST_PEOPLE_PAGES: usize = 5;
/// Pages of all devices: a million of them.
const MOST_LIST_PAGES: usize = 3_400;
/// Changed devices that are asked for one by one; more are cheaper to find among all.
const MOST_SINGLE: usize = 50;
const PAGE_TIME: Duration = Duration::from_secs(30);
/// Between two requests for details while all devices are listed: fewer than the hour allows.
const DETAILS_PACE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_next_page_is_a_cursor_and_never_an_address() {
        let next = |value: Value| next_cursor(Some(&value));
        assert_eq!(next(json!("https://elsewhere.example/x?a=1&cursor=cD0y%3D")), Ok(Some("cD0y=".to_owned())));
        assert_eq!(next(json!(null)), Ok(None));
        assert_eq!(next(json!("https://elsewhere.example/x")), Err(Unavailable::Protocol));
        assert_eq!(next(json!("cD0y")), Err(Unavailable::Protocol));
        assert_eq!(next(json!(7)), Err(Unavailable::Protocol));
        assert_eq!(next_cursor(None), Ok(None));
    }

    #[test]
    fn writes_times_as_kandji_reads_them() {
        assert_eq!(rfc3339(UnixTime::from_nanos(0)).unwrap(), "1970-01-01T00:00:00Z");
    }
}
