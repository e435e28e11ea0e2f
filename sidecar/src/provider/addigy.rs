//! Addigy (`type = "addigy"`), API version 2: the clients `bart-lute/addigy-client-go`, `pliancy/addigy-node` and
//! `joelcodess/addigy-cli`, which follow its published description.
//!
//! A lookup asks for devices whose serial number contains the one that is wanted. The name of an operator for equality is not
//! known, and filters were seen to do nothing. So every row is compared, and the answer is read to its end.

mod probe;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderValue;
use posture::identity::{IdentifierKind, normal};
use posture::record::{Fact, Field, Fields, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::http::{Client, Endpoint, LOOKUP, PAGE, RECORDS, Reply};
use super::inventory::{Finding, Inventory, Listed, Listing, Question};
use super::shown::{Row, Shown, Totals};
use super::{Answer, Unavailable, lenient};
use crate::config::{SecretSource, Section, one_secret};
use record::Serial;

/// `[provider.<name>]` with `type = "addigy"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A key of API version 2.
    pub api_key: SecretSource,
    /// Whether the names of policies are asked for, so that groups can be named by them; default true.
    pub policy_names: bool,
}

impl Settings {
    /// The one address that Addigy has.
    pub const BASE_URL: Option<&'static str> = Some("https://api.addigy.com/api/v2");
    /// Requests at once. Addigy publishes no limits.
    pub const CONNECTIONS: usize = 3;
    /// Lookups in a second.
    pub const PER_SECOND: u32 = 20;

    pub(crate) fn read(section: &mut Section<'_>, base: &Path) -> Option<Self> {
        let policy_names = section.flag("policy_names").unwrap_or(true);
        Some(Self { api_key: one_secret(section, "api_key", base)?, policy_names })
    }

    /// Fields that a record can ever hold.
    pub fn fields(&self) -> Fields {
        record::FIELDS
    }

    /// The key.
    pub fn secrets(&self) -> Vec<&SecretSource> {
        vec![&self.api_key]
    }

    /// Makes a client. Nothing is sent yet.
    ///
    /// # Errors
    /// In words for the operator.
    pub fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Addigy, String> {
        let key = secrets.first().map(Secret::expose).unwrap_or_default();
        let mut key = HeaderValue::from_bytes(key.trim_ascii()).map_err(|_| "the key holds characters that no header can".to_owned())?;
        key.set_sensitive(true);
        Ok(Addigy { settings: self.clone(), client: Client::new(endpoint)?, key, policies: Mutex::default() })
    }
}

/// An organisation at Addigy.
#[derive(Debug)]
pub struct Addigy {
    settings: Settings,
    client: Client,
    /// Marked as sensitive, so it does not print.
    key: HeaderValue,
    /// Names of policies by id, and when each was asked for; none where there is no such policy.
    policies: Mutex<BTreeMap<String, (Option<String>, Instant)>>,
}

#[async_trait]
impl Inventory for Addigy {
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
        Listing::Whole
    }

    async fn list(&self, _since: Option<UnixTime>, need: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        let mut rows = Rows::new(None, need);
        let mut totals = Totals::default();
        let mut complete = true;
        for _ in 0..MOST_LIST_PAGES {
            let page = rows.next(self, page_deadline(), PAGE).await?;
            totals.take(page.total.and_then(|total| u64::try_from(total).ok()));
            complete &= !page.gap;
            let mut records: Vec<Record> = page.items.iter().map(record::of_row).collect();
            for record in &mut records {
                self.name_groups(record, need, page_deadline()).await?;
            }
            if rows.ids.len() > RECORDS {
                return Ok(Listed { complete: false });
            }
            if !records.is_empty() && pages.send(records).await.is_err() {
                return Ok(Listed { complete: false });
            }
            if page.last {
                // A number that changed meanwhile means that rows may have moved from page to page.
                let proven = totals.agreed().is_some() && page.total == Some(rows.ids.len());
                return Ok(Listed { complete: complete && proven });
            }
        }
        Ok(Listed { complete: false })
    }

    async fn probe(&self, deadline: Instant) -> Vec<Finding> {
        probe::probe(self, deadline).await
    }
}

impl Addigy {
    async fn post(&self, path: &str, body: &Value, deadline: Instant, most: usize) -> Result<Reply, Unavailable> {
        let request = self.client.post(self.client.url(path, &[])).header("x-api-key", self.key.clone()).json(body);
        self.client.send(request, deadline, most).await
    }

    async fn find(&self, question: &Question) -> Result<Answer, Unavailable> {
        let (stated, wanted) = (question.device.stated().trim_ascii(), question.device.normal());
        let mut found = self.matching(stated, wanted, question).await?;
        // Nothing says whether the filter tells upper from lower case. Makers write serial numbers in upper case.
        if found.is_empty() && stated != wanted {
            found = self.matching(wanted, wanted, question).await?;
        }
        match found.as_slice() {
            [] => Ok(Answer::NotFound),
            [row] => {
                let mut record = record::of_row(row);
                self.name_groups(&mut record, question.need, question.deadline).await?;
                Ok(Answer::Found(record.into()))
            }
            _ => Ok(Answer::Ambiguous),
        }
    }

    /// The rows with exactly this serial number, from an answer that was read to its end.
    async fn matching(&self, literal: &str, wanted: &str, question: &Question) -> Result<Vec<Value>, Unavailable> {
        let mut rows = Rows::new(Some(literal), question.need);
        let (mut found, mut foreign, mut unreadable) = (Vec::new(), false, false);
        for _ in 0..MOST_LOOKUP_PAGES {
            let page = rows.next(self, question.deadline, LOOKUP).await?;
            if page.gap {
                return Err(Unavailable::Protocol);
            }
            for row in page.items {
                match record::serial(&row) {
                    Serial::Text(serial) if normal(&serial) == wanted => found.push(row),
                    Serial::Text(serial) => foreign |= !normal(&serial).contains(wanted),
                    Serial::None => foreign = true,
                    Serial::Unreadable => unreadable = true,
                }
            }
            // Two are ambiguous, whatever else there is: rows may be large.
            if found.len() > 1 {
                return Ok(found);
            }
            if page.last {
                // Where the filter did nothing, the device is not there only if all of them were seen.
                let all = page.total == Some(rows.ids.len());
                return match (found.is_empty(), unreadable, foreign && !all) {
                    // It may be the device, or another one of the same serial number.
                    (_, true, _) => Err(Unavailable::Protocol),
                    (true, false, true) => Err(Unavailable::FilterIgnored),
                    _ => Ok(found),
                };
            }
        }
        Err(Unavailable::FilterIgnored)
    }

    /// Gives a record's groups the names of their policies, where groups are needed.
    async fn name_groups(&self, record: &mut Record, need: Fields, deadline: Instant) -> Result<(), Unavailable> {
        let Fact::Value(groups) = &mut record.groups else { return Ok(()) };
        if !self.settings.policy_names {
            groups.iter_mut().for_each(|group| group.name.clone_from(&group.id));
            return Ok(());
        }
        if !need.contains(Field::Groups) {
            return Ok(());
        }
        let mut missing: BTreeSet<String> = {
            let now = Instant::now();
            let known = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
            let lasts = |named: bool| if named { NAMES_LAST } else { UNNAMED_LAST };
            let fresh = |id: &String| {
                known.get(id).is_some_and(|(name, asked_at)| now.saturating_duration_since(*asked_at) < lasts(name.is_some()))
            };
            groups.iter().map(|group| &group.id).filter(|id| !fresh(id)).cloned().collect()
        };
        // An answer may be one page of several, so the rest is asked for while something comes.
        let mut more = !missing.is_empty();
        while more {
            let body = json!({ "policies": missing });
            let reply = self.post("/oa/policies/query", &body, deadline, PAGE).await?.ok()?;
            let names = record::policies(reply.json()?)?;
            let (now, asked) = (Instant::now(), missing.len());
            let mut known = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len().saturating_add(asked) > MOST_POLICIES {
                known.clear();
            }
            for id in &missing {
                known.insert(id.clone(), (names.get(id).cloned(), now));
            }
            missing.retain(|id| !names.contains_key(id));
            more = !missing.is_empty() && missing.len() < asked;
        }
        let known = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        for group in groups {
            if let Some((Some(name), _)) = known.get(&group.id) {
                group.name.clone_from(name);
            }
        }
        Ok(())
    }
}

/// Devices that are being read, page by page.
#[derive(Debug)]
struct Rows {
    body: Value,
    /// Whether one serial number is asked for.
    one: bool,
    page: usize,
    /// The agents that were seen.
    ids: Shown<String>,
}

/// A page of them.
#[derive(Debug)]
struct Page {
    items: Vec<Value>,
    /// How many there are on all pages, where it is said.
    total: Option<usize>,
    /// Whether there are no more.
    last: bool,
    /// Whether an agent was on a page before, or more were said to follow and none did: another may have been left out.
    gap: bool,
}

impl Rows {
    fn new(serial: Option<&str>, need: Fields) -> Self {
        let filters: Vec<Value> = serial
            .map(|serial| json!({"audit_field": "serial_number", "operation": "contains", "type": "string", "range_value": "", "value": [serial]}))
            .into_iter()
            .collect();
        let body = json!({
            "desired_fact_identifiers": record::facts(need), "page": 1, "per_page": PER_PAGE,
            "query": {"filters": filters, "policy_id": "", "search_any": ""}, "sort_direction": "asc", "sort_field": "serial_number",
        });
        Self { body, one: serial.is_some(), page: 0, ids: Shown::default() }
    }

    /// Reads the next page.
    ///
    /// # Errors
    /// As [`Client::send`] and [`Reply::ok`]; [`Unavailable::Protocol`] where an agent has no id, or where another page comes
    /// than was asked for.
    async fn next(&mut self, addigy: &Addigy, deadline: Instant, most: usize) -> Result<Page, Unavailable> {
        self.page = self.page.saturating_add(1);
        if let Some(page) = self.body.get_mut("page") {
            *page = json!(self.page);
        }
        let reply = addigy.post("/devices", &self.body, deadline, most).await?;
        let mut answer: Value = if self.one { reply.about_one() } else { reply.ok() }?.json()?;
        if lenient::fails(&answer) {
            return Err(Unavailable::Protocol);
        }
        let items = match answer.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            Some(Value::Null) => Vec::new(),
            _ => return Err(Unavailable::Protocol),
        };
        let said = |name: &str| answer.get("metadata")?.get(name)?.as_u64().and_then(|number| usize::try_from(number).ok());
        if said("page").is_some_and(|page| page != self.page && page != 0) {
            return Err(Unavailable::Protocol);
        }
        let (shown, before) = (items.len(), self.ids.len());
        let mut new = Vec::with_capacity(shown);
        let mut gap = false;
        for item in items {
            let id = record::id(&item).ok_or(Unavailable::Protocol)?;
            let again = self.ids.take(id.to_owned(), &item);
            gap |= again != Row::New;
            // Of a contradiction both are sent, so that neither is believed.
            if again != Row::Slipped {
                new.push(item);
            }
        }
        let total = said("total");
        // A count of fewer than there are contradicts them.
        if total.is_some_and(|total| total < shown) {
            return Err(Unavailable::Protocol);
        }
        let page_count = said("page_count").filter(|count| *count > 0);
        // What says that there are more is believed; where nothing says anything, an empty page is the end.
        let more = match (page_count, total) {
            (Some(count), total) => self.page < count || total.is_some_and(|total| self.ids.len() < total),
            (None, Some(total)) => self.ids.len() < total,
            (None, None) => self.ids.len() > before,
        };
        let stuck = more && self.ids.len() == before;
        Ok(Page { items: new, total, last: !more || stuck, gap: gap || stuck })
    }
}

fn page_deadline() -> Instant {
    Instant::now() + PAGE_TIME
}

/// Rows of a page; clients of others use it too, and Addigy names no limit.
const PER_PAGE: usize = 100;
/// Pages of a search: 2,000 devices, where the filter does nothing.
const MOST_LOOKUP_PAGES: usize = 20;
/// Pages of all devices: a million of them.
const MOST_LIST_PAGES: usize = 10_000;
const PAGE_TIME: Duration = Duration::from_secs(30);
/// How long the name of a policy is used before it is asked for again.
const NAMES_LAST: Duration = Duration::from_secs(300);
/// How long it is remembered that the name of a policy did not come.
const UNNAMED_LAST: Duration = Duration::from_secs(30);
/// Names that are kept.
const MOST_POLICIES: usize = 10_000;
