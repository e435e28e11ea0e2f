//! Mosyle Business and Mosyle Manager (`type = "mosyle"`), from the API articles in their consoles and from clients of both.
//!
//! Mosyle answers for one family of systems at a time. Every family is asked, whichever is likely: a serial number that two
//! families have is ambiguous, and a device counts as absent only after all families were asked.

#![expect(clippy::disallowed_types, reason = "banned for wasm, where it is constant; the sidecar never runs there")]

mod login;
mod page;
mod record;
mod settings;
mod walk;

use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use ::settings::{SecretSource, Section};
use async_trait::async_trait;
use futures::future::join_all;
use posture::identity::{DeviceId, IdentifierKind, same};
use posture::record::{Fields, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::login::{ACCESS_TOKEN, MosyleLogin};
use self::page::Page;
use self::settings::BUSINESS;
pub use self::settings::{Product, Settings};
use self::walk::Walk;
use url::Url;

use crate::answer::{Answer, Unavailable};
use crate::http::{Client, Endpoint, LOOKUP, PAGE, RECORDS, Reply};
use crate::inventory::{Finding, Inventory, Listed, Listing, Question};
use crate::leftovers::Leftovers;
use crate::setup::{Defaults, Setup};
use crate::token::Tokens;

/// The service's word in `type = "…"`.
pub(crate) const NAME: &str = "mosyle";

impl Setup for Settings {
    fn name(&self) -> &'static str {
        NAME
    }

    fn defaults() -> Defaults {
        // The address is that of Business; Manager's takes its place unless the configuration gives another. Mosyle names no
        // limit, so the connections are few.
        Defaults { base_url: Some(BUSINESS), connections: 3, per_second: 20 }
    }

    fn read(section: &mut Section<'_>, base: &std::path::Path) -> Option<Self> {
        Self::of(section, base)
    }

    fn secrets(&self) -> Vec<&SecretSource> {
        self.sources()
    }

    fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Arc<dyn Inventory>, String> {
        let [access_token, password] = secrets else { return Err("access_token and password are needed".to_owned()) };
        let client = Client::new(endpoint)?;
        let login = MosyleLogin::new(client.apart(), self, access_token, password)?;
        Ok(Arc::new(Mosyle { client, settings: self.clone(), tokens: Tokens::new(login) }))
    }

    fn fields(&self) -> Fields {
        self.known()
    }

    fn address(&self, base_url: Url) -> Url {
        let given = base_url.as_str() != BUSINESS;
        if given { base_url } else { self.product.address().parse().unwrap_or(base_url) }
    }
}

/// A tenant of Mosyle.
#[derive(Debug)]
pub struct Mosyle {
    client: Client,
    settings: Settings,
    tokens: Tokens<MosyleLogin>,
}

#[async_trait]
impl Inventory for Mosyle {
    fn fields(&self) -> Fields {
        self.settings.known()
    }

    fn asks(&self, kind: IdentifierKind) -> bool {
        matches!(kind, IdentifierKind::Serial | IdentifierKind::Udid)
    }

    // No document says whether Mosyle's filter minds the case of letters.
    fn minds_spelling(&self) -> bool {
        true
    }

    fn asks_in_upper_case(&self) -> bool {
        true
    }

    async fn lookup(&self, question: &Question) -> Answer {
        let names = match question.device.kind() {
            IdentifierKind::Serial => Names { filter: "serial_numbers", field: "serial_number" },
            IdentifierKind::Udid => Names { filter: "deviceudids", field: "deviceudid" },
            _ => return Answer::InvalidIdentifier,
        };
        // Mosyle may refuse other characters as a wrong format, and that would look like an outage.
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_. ".contains(&byte);
        if !question.device.stated().trim_ascii().bytes().all(known) {
            return Answer::InvalidIdentifier;
        }
        self.find(&question.device, names, question.deadline).await.unwrap_or_else(Answer::Unavailable)
    }

    fn listing(&self) -> Listing {
        Listing::Whole
    }

    async fn list(&self, _since: Option<UnixTime>, _need: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        let (mut complete, mut leftovers) = (true, Leftovers::default());
        for family in &self.settings.families {
            let mut walk = Walk::default();
            let mut count = None;
            while let Some(number) = walk.next {
                if walk.pages >= MOST_LIST_PAGES || walk.count > RECORDS as u64 {
                    return Ok(Listed { complete: false });
                }
                let page = self.page(family, None, number, Instant::now() + LIST_PAGE_TIME, PAGE).await?;
                // A changed count means that devices came or went, and then some may have slipped to another page.
                complete &= page.rows.is_none() || count.is_none() || count == page.rows;
                count = page.rows.or(count);
                let devices = walk.take(page)?;
                let read = |device| (record::is_deleted(device), record::record(device, family, &self.settings));
                let records = leftovers.sift(devices.iter().map(read));
                if !records.is_empty() && pages.send(records).await.is_err() {
                    return Ok(Listed { complete: false });
                }
            }
            // An answer without devices has no count, but says outright that there are none.
            complete &= !walk.contradicted && (walk.count == 0 || count == Some(walk.count));
        }
        let rest = leftovers.rest();
        if !rest.is_empty() && pages.send(rest).await.is_err() {
            return Ok(Listed { complete: false });
        }
        Ok(Listed { complete })
    }

    async fn probe(&self, deadline: Instant) -> Vec<Finding> {
        if let Err(fault) = self.tokens.current(deadline).await {
            return vec![Finding::fault(fault, LOGIN_FIX, LOGIN_FIX)];
        }
        let mut findings = vec![Finding::good("address", "it answers"), Finding::good("credentials", "the login is taken")];
        for family in &self.settings.families {
            let check = format!("privilege to list {family}");
            let filter = json!({"serial_numbers": [PROBE]});
            match self.send(family, Some(&filter), None, deadline, LOOKUP).await {
                Err(fault) => findings.push(Finding::fault(fault, LOGIN_FIX, RIGHT_FIX)),
                Ok(reply) => {
                    let clock = reply.clock_skew().map(|(skew, ahead)| Finding::clock(skew, ahead));
                    findings.push(match reply.ok().and_then(|reply| reply.json()).and_then(Page::read) {
                        Ok(_) => Finding::good(check, "devices can be read"),
                        Err(fault) => Finding::bad(check, fault.text(), RIGHT_FIX),
                    });
                    if findings.iter().all(|finding| finding.check != "clock") {
                        findings.extend(clock);
                    }
                }
            }
        }
        findings
    }
}

/// The spellings of a kind of identifier, in a filter and in a device.
#[derive(Clone, Copy)]
struct Names {
    filter: &'static str,
    field: &'static str,
}

impl Mosyle {
    async fn find(&self, device: &DeviceId, names: Names, deadline: Instant) -> Result<Answer, Unavailable> {
        let families = self.settings.families.iter();
        let asked = join_all(families.map(|family| self.fitting(family, device, names, deadline))).await;
        let mut fitting: Vec<(&str, Value)> = Vec::new();
        // Rows are compared by digest, since comparing each with each would take too long.
        let (digests, mut known) = (RandomState::new(), HashSet::new());
        for (family, found) in self.settings.families.iter().zip(asked) {
            // The same record in two families shows only that Mosyle ignored the family.
            let mut fresh: Vec<_> = found?.into_iter().map(|device| (digests.hash_one(&device), device)).collect();
            fresh.retain(|(digest, _)| !known.contains(digest));
            known.extend(fresh.iter().map(|(digest, _)| *digest));
            fitting.extend(fresh.into_iter().map(|(_, device)| (family.as_str(), device)));
        }
        // A device that was deleted and enrolled again has left a record behind.
        if fitting.iter().any(|(_, device)| !record::is_deleted(device)) {
            fitting.retain(|(_, device)| !record::is_deleted(device));
        }
        Ok(match fitting.as_slice() {
            [] => Answer::NotFound,
            [(family, device)] => Answer::Found(record::record(device, family, &self.settings).into()),
            _ => Answer::Ambiguous,
        })
    }

    /// The devices of a family with exactly this identifier, from a complete answer; of the deleted ones two at most.
    async fn fitting(&self, family: &str, device: &DeviceId, names: Names, deadline: Instant) -> Result<Vec<Value>, Unavailable> {
        let stated = device.stated().trim_ascii();
        // Mosyle may or may not mind the case. A second spelling costs nothing.
        let spellings: BTreeSet<&str> = BTreeSet::from([stated, device.normal()]);
        let mut spellings: Vec<&str> = spellings.into_iter().collect();
        spellings.sort_by_key(|spelling| *spelling != stated);
        let mut filter = serde_json::Map::new();
        filter.insert(names.filter.to_owned(), json!(spellings));
        let filter = Value::Object(filter);
        let (mut walk, mut fitting, mut live, mut deleted) = (Walk::default(), Vec::new(), 0, 0);
        while let Some(number) = walk.next {
            if walk.pages >= MOST_LOOKUP_PAGES {
                return Err(Unavailable::FilterIgnored);
            }
            for found in walk.take(self.page(family, Some(&filter), number, deadline, LOOKUP).await?)? {
                if !exact(&found, names.field, device)? {
                    continue;
                }
                let left = record::is_deleted(&found);
                if left {
                    deleted += 1;
                } else {
                    live += 1;
                }
                // Two deleted records say as much as all: rows may be large.
                if !left || deleted <= 2 {
                    fitting.push(found);
                }
            }
            // Two current records are ambiguous, whatever else there is.
            if live > 1 {
                break;
            }
        }
        Ok(fitting)
    }

    async fn page(
        &self,
        family: &str,
        filter: Option<&Value>,
        number: Option<u64>,
        deadline: Instant,
        most: usize,
    ) -> Result<Page, Unavailable> {
        let reply = self.send(family, filter, number, deadline, most).await?;
        Page::read(if filter.is_some() { reply.about_one() } else { reply.ok() }?.json()?)
    }

    async fn send(
        &self,
        family: &str,
        filter: Option<&Value>,
        number: Option<u64>,
        deadline: Instant,
        most: usize,
    ) -> Result<Reply, Unavailable> {
        let mut options = filter.and_then(Value::as_object).cloned().unwrap_or_default();
        options.insert("os".to_owned(), json!(family));
        if let Some(number) = number {
            options.insert("page".to_owned(), json!(number));
        }
        let login = self.tokens.login();
        let (path, body) = match self.settings.product {
            Product::Business => ("/devices", json!({"operation": "list", "options": options})),
            Product::Manager => ("/listdevices", json!({"accessToken": login.access_token(), "options": options})),
        };
        let url = self.client.url(path, &[]);
        let request = |token: &super::token::Token| {
            let request = self.client.post(url.clone()).bearer_auth(token.expose()).json(&body);
            match self.settings.product {
                Product::Business => request.header(ACCESS_TOKEN, login.access_header()),
                Product::Manager => request,
            }
        };
        self.tokens.send(&self.client, deadline, most, request).await
    }
}

/// Returns whether a device has exactly this identifier; null means that it has none.
fn exact(found: &Value, field: &str, device: &DeviceId) -> Result<bool, Unavailable> {
    match found.get(field) {
        Some(Value::String(stored)) => Ok(same(device.kind(), stored, device.stated())),
        Some(Value::Null) => Ok(false),
        _ => Err(Unavailable::Protocol),
    }
}

const PROBE: &str = "STEPWARD-PROBE";
const LOGIN_FIX: &str = "check access_token, email, password and product, and that this administrator may use the API";
const RIGHT_FIX: &str = "let the API integration read devices, and check `product`";
const MOST_LOOKUP_PAGES: usize = 10;
const MOST_LIST_PAGES: usize = 10_000;
const LIST_PAGE_TIME: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use ::settings::SecretSource;

    #[test]
    fn each_product_has_an_address_of_its_own() {
        for (product, given, expected) in [
            (Product::Business, BUSINESS, BUSINESS),
            (Product::Manager, BUSINESS, "https://managerapi.mosyle.com/v2"),
            (Product::Manager, "https://proxy.example.org/v2", "https://proxy.example.org/v2"),
        ] {
            let secret = || SecretSource::Env("A".to_owned());
            let settings = Settings {
                product,
                access_token: secret(),
                email: "a@example.org".to_owned(),
                password: secret(),
                managed_statuses: Vec::new(),
                families: Vec::new(),
                attributes: Vec::new(),
            };
            assert_eq!(settings.address(given.parse().unwrap()).as_str(), expected);
        }
    }
}
