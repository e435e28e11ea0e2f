//! Addigy (`type = "addigy"`), API version 2. Sources: the clients `bart-lute/addigy-client-go`, `pliancy/addigy-node` and
//! `joelcodess/addigy-cli`, which follow its published description.
//!
//! A lookup asks for devices whose serial number contains the wanted one. The name of the operator for equality is not known, and
//! filters were seen to do nothing. So every row is compared, and the answer is read to its end.

mod api;
mod probe;
mod record;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use posture::identity::{IdentifierKind, normal};
use posture::record::{Fact, Field, Fields, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use serde_json::{Value, json};
use settings::{SecretSource, Section};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::{Answer, Unavailable};
use crate::http::{Endpoint, LOOKUP, PAGE, RECORDS};
use crate::inventory::{Finding, Inventory, Listed, Listing, Question};
use crate::setup::{Defaults, Setup};
use crate::shown::Totals;
use api::Api;
use record::Serial;
use rows::Rows;

/// The service's word in `type = "…"`.
pub(crate) const NAME: &str = "addigy";

/// `[provider.<name>]` with `type = "addigy"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Source of a key for API version 2.
    pub api_key: SecretSource,
    /// Whether the names of policies are asked for, so that groups can be named by them; default true.
    pub policy_names: bool,
}

impl Setup for Settings {
    fn name(&self) -> &'static str {
        NAME
    }

    fn defaults() -> Defaults {
        // All organisations share one address. Addigy publishes no limits.
        Defaults { base_url: Some("https://api.addigy.com/api/v2"), connections: 3, per_second: 20 }
    }

    fn read(section: &mut Section<'_>, base: &Path) -> Option<Self> {
        let policy_names = section.flag("policy_names").unwrap_or(true);
        Some(Self { api_key: SecretSource::required(section, "api_key", base)?, policy_names })
    }

    fn fields(&self) -> Fields {
        record::FIELDS
    }

    fn secrets(&self) -> Vec<&SecretSource> {
        vec![&self.api_key]
    }

    fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Arc<dyn Inventory>, String> {
        Ok(Arc::new(Addigy { settings: self.clone(), api: Api::new(endpoint, secrets.first())?, policies: Mutex::default() }))
    }
}

/// An organisation at Addigy.
#[derive(Debug)]
pub struct Addigy {
    settings: Settings,
    api: Api,
    /// Names of policies by id, each with the moment when it was asked for; an inner `None` where the name did not come.
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

    // No document says whether Addigy's filter minds the case of letters.
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
            let page = rows.next(&self.api, page_deadline(), PAGE).await?;
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
                // A total that changed meanwhile means that rows may have moved from page to page.
                let proven = totals.agreed().is_some() && page.total == Some(rows.ids.len());
                return Ok(Listed { complete: complete && proven });
            }
        }
        Ok(Listed { complete: false })
    }

    async fn probe(&self, deadline: Instant) -> Vec<Finding> {
        probe::probe(&self.api, self.settings.policy_names, deadline).await
    }
}

impl Addigy {
    async fn find(&self, question: &Question) -> Result<Answer, Unavailable> {
        let (stated, wanted) = (question.device.stated().trim_ascii(), question.device.normal());
        let mut found = self.matching(stated, wanted, question).await?;
        // No document says whether the filter minds the case of letters. Makers write serial numbers in upper case.
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
            let page = rows.next(&self.api, question.deadline, LOOKUP).await?;
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
            // Two fitting rows are ambiguous, whatever else there is: rows may be large.
            if found.len() > 1 {
                return Ok(found);
            }
            if page.last {
                // If the filter did nothing, the device is absent only where all rows were seen.
                let all = page.total == Some(rows.ids.len());
                return match (found.is_empty(), unreadable, foreign && !all) {
                    // The unreadable row may be the device, or another one with the same serial number.
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
        // An answer may be one page of several, so the other names are asked for while some still come.
        let mut more = !missing.is_empty();
        while more {
            let body = json!({ "policies": missing });
            let reply = self.api.post("/oa/policies/query", &body, deadline, PAGE).await?.ok()?;
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

fn page_deadline() -> Instant {
    Instant::now() + PAGE_TIME
}

/// Most pages of a search: 2,000 devices, where the filter does nothing.
const MOST_LOOKUP_PAGES: usize = 20;
/// Most pages of a list: a million devices.
const MOST_LIST_PAGES: usize = 10_000;
const PAGE_TIME: Duration = Duration::from_secs(30);
/// Time for which the name of a policy is used before it is asked for again.
const NAMES_LAST: Duration = Duration::from_secs(300);
/// Time for which a missing name of a policy is remembered.
const UNNAMED_LAST: Duration = Duration::from_secs(30);
/// Most names that are kept.
const MOST_POLICIES: usize = 10_000;
