//! Mosyle Business and Mosyle Manager (`type = "mosyle"`), from the API articles in their consoles and from clients of both.
//!
//! Mosyle answers for one family of systems at a time. So every family is asked, whatever is likely: a serial number that two
//! families know is ambiguous, and one that only some were asked for is not known to be absent.

#![expect(clippy::disallowed_types, reason = "banned for wasm, where it is constant; the sidecar never runs there")]

mod login;
mod page;
mod record;
mod settings;
mod walk;

use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use http::HeaderName;
use posture::identity::{DeviceId, IdentifierKind, same};
use posture::record::{Fields, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::login::MosyleLogin;
use self::page::Page;
pub use self::settings::{Product, Settings};
use self::walk::Walk;
use super::http::{Client, Endpoint, LOOKUP, PAGE, RECORDS, Reply};
use super::inventory::{Finding, Inventory, Listed, Listing, Question};
use super::leftovers::Leftovers;
use super::token::Tokens;
use super::{Answer, Unavailable};

impl Settings {
    /// Makes a client. Nothing is sent yet.
    ///
    /// # Errors
    /// In words for the operator.
    pub fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Mosyle, String> {
        let [access_token, password] = secrets else { return Err("access_token and password are needed".to_owned()) };
        let client = Client::new(endpoint)?;
        let login = MosyleLogin::new(client.apart(), self, access_token, password)?;
        Ok(Mosyle { client, settings: self.clone(), tokens: Tokens::new(login) })
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
        self.settings.fields()
    }

    fn asks(&self, kind: IdentifierKind) -> bool {
        matches!(kind, IdentifierKind::Serial | IdentifierKind::Udid)
    }

    // Nobody documents whether it does.
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
        // Mosyle may call other characters a wrong format, and that would look like an outage.
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
                // A count that changes says that devices came or went, and then some may have slipped to another page.
                complete &= page.rows.is_none() || count.is_none() || count == page.rows;
                count = page.rows.or(count);
                let devices = walk.take(page)?;
                let read = |device| (record::is_deleted(device), record::record(device, family, &self.settings));
                let records = leftovers.sift(devices.iter().map(read));
                if !records.is_empty() && pages.send(records).await.is_err() {
                    return Ok(Listed { complete: false });
                }
            }
            // None at all has no count, and that is said outright.
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

/// How a kind of identifier is spelt in a filter and in a device.
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
        // By digests, since each with each would be too many.
        let (digests, mut known) = (RandomState::new(), HashSet::new());
        for (family, found) in self.settings.families.iter().zip(asked) {
            // The same record under two families says only that the family was not minded.
            let mut fresh: Vec<_> = found?.into_iter().map(|device| (digests.hash_one(&device), device)).collect();
            fresh.retain(|(digest, _)| !known.contains(digest));
            known.extend(fresh.iter().map(|(digest, _)| *digest));
            fitting.extend(fresh.into_iter().map(|(_, device)| (family.as_str(), device)));
        }
        // What was deleted and enrolled again has left a record behind.
        if fitting.iter().any(|(_, device)| !record::is_deleted(device)) {
            fitting.retain(|(_, device)| !record::is_deleted(device));
        }
        Ok(match fitting.as_slice() {
            [] => Answer::NotFound,
            [(family, device)] => Answer::Found(record::record(device, family, &self.settings).into()),
            _ => Answer::Ambiguous,
        })
    }

    /// The devices of a family with exactly this identifier, from an answer that was complete: of those that were deleted two at most.
    async fn fitting(&self, family: &str, device: &DeviceId, names: Names, deadline: Instant) -> Result<Vec<Value>, Unavailable> {
        let stated = device.stated().trim_ascii();
        // Whether Mosyle minds the case is not known. A second spelling costs nothing.
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
                // Of those that were deleted two say as much as all: rows may be large.
                if !left || deleted <= 2 {
                    fitting.push(found);
                }
            }
            // Two that are there are ambiguous, whatever else there is.
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

/// Whether a device has exactly this identifier. That it has none is said with null.
fn exact(found: &Value, field: &str, device: &DeviceId) -> Result<bool, Unavailable> {
    match found.get(field) {
        Some(Value::String(stored)) => Ok(same(device.kind(), stored, device.stated())),
        Some(Value::Null) => Ok(false),
        _ => Err(Unavailable::Protocol),
    }
}

const ACCESS_TOKEN: HeaderName = HeaderName::from_static("accesstoken");
const PROBE: &str = "STEPWARD-PROBE";
const LOGIN_FIX: &str = "check access_token, email, password and product, and that this administrator may use the API";
const RIGHT_FIX: &str = "let the API integration read devices, and check `product`";
const MOST_LOOKUP_PAGES: usize = 10;
const MOST_LIST_PAGES: usize = 10_000;
const LIST_PAGE_TIME: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::settings::BUSINESS;
    use super::*;
    use crate::config::SecretSource;

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
