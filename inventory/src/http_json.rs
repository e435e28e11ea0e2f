//! An inventory that answers with JSON over HTTP (`type = "http"`): the configuration says how to ask it, and where in its answer
//! a device's fields stand, as JSON pointers (RFC 6901).

mod event;
mod settings;
mod shape;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::settings::{SecretSource, Section};
use async_trait::async_trait;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, Method};
use posture::identity::{DeviceId, IdentifierKind, normal, same};
use posture::record::{Fields, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::{Answer, Unavailable};
use crate::http::{Client, Endpoint, LOOKUP, PAGE, RECORDS, Reply, secret_header};
use crate::inventory::{Change, Finding, Inventory, Listed, Listing, NotAnEvent, Question};
use crate::setup::{Defaults, Setup};
use crate::shown::Totals;
pub use settings::{HeaderSource, List, NotFoundBody, Path, Settings};
pub use shape::{Pointer, Shape};

/// The service's word in `type = "…"`.
pub(crate) const NAME: &str = "http";

impl Setup for Settings {
    fn name(&self) -> &'static str {
        NAME
    }

    fn defaults() -> Defaults {
        // Every inventory has an address of its own.
        Defaults { base_url: None, connections: 10, per_second: 20 }
    }

    fn read(section: &mut Section<'_>, base: &std::path::Path) -> Option<Self> {
        Self::of(section, base)
    }

    fn secrets(&self) -> Vec<&SecretSource> {
        self.sources()
    }

    fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Arc<dyn Inventory>, String> {
        let mut headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
        let mut secrets = secrets.iter();
        let mut next = |name: &str, prefix: &str| secret_header(name, prefix, secrets.next());
        if self.token.is_some() {
            headers.insert(http::header::AUTHORIZATION, next("token", "Bearer ")?);
        }
        for (name, source) in &self.headers {
            let value = match source {
                HeaderSource::Text(text) => {
                    HeaderValue::from_str(text).map_err(|_| format!("header `{name}` holds characters that no header can"))?
                }
                HeaderSource::Secret(_) => next(name.as_str(), "")?,
            };
            headers.insert(name.clone(), value);
        }
        Ok(Arc::new(HttpJson { client: Client::new(endpoint)?, settings: self.clone(), headers }))
    }

    fn fields(&self) -> Fields {
        self.known()
    }
}

/// A customer's own inventory.
#[derive(Debug)]
pub struct HttpJson {
    client: Client,
    settings: Settings,
    /// Headers of every request. Those with secrets are marked as sensitive, so they do not print.
    headers: HeaderMap,
}

#[async_trait]
impl Inventory for HttpJson {
    fn fields(&self) -> Fields {
        self.settings.known()
    }

    fn asks(&self, kind: IdentifierKind) -> bool {
        kind == self.settings.kind
    }

    fn minds_spelling(&self) -> bool {
        true
    }

    async fn lookup(&self, question: &Question) -> Answer {
        let identifier = question.device.stated().trim_ascii();
        // An identifier of dots alone would lead to another path.
        if !self.asks(question.device.kind()) || matches!(identifier, "." | "..") {
            return Answer::InvalidIdentifier;
        }
        self.find(&question.device, identifier, question.deadline).await.unwrap_or_else(Answer::Unavailable)
    }

    fn listing(&self) -> Listing {
        if self.settings.list.is_some() { Listing::Whole } else { Listing::None }
    }

    fn item_kind(&self) -> Option<IdentifierKind> {
        Some(self.settings.kind)
    }

    async fn list(&self, _since: Option<UnixTime>, _need: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        let list = self.settings.list.as_ref().ok_or(Unavailable::Unsupported)?;
        let (mut seen, mut count, mut nameless, mut totals) = (BTreeSet::new(), 0_u64, 0_u64, Totals::default());
        for page in 0..MOST_LIST_PAGES {
            let number = list.first_page.saturating_add(page);
            let request = self.client.get(list.path.url(&self.client, "{page}", &number.to_string()));
            let deadline = Instant::now() + LIST_PAGE_TIME;
            let answer = self.send(request, deadline, PAGE).await?.ok()?.json::<Value>()?;
            let total = list.total.as_ref().map(|total| shape::number(total.find(&answer))).transpose()?;
            let items = shape::items(&answer, &list.items)?;
            // A total below the number of shown items contradicts them.
            if total.is_some_and(|total| u64::try_from(items.len()).is_ok_and(|shown| total < shown)) {
                return Err(Unavailable::Protocol);
            }
            // An item that comes again on a later page has slipped there; two items of one page, or two that differ, are two
            // devices.
            let (mut records, mut new) = (Vec::new(), Vec::new());
            for item in items {
                // An item without identifier could be any device; it does not keep the others from being read.
                let Ok(identifier) = self.settings.shape.identifier(item) else {
                    nameless = nameless.saturating_add(1);
                    continue;
                };
                let key = (normal(identifier).into_owned(), digest(item));
                if !seen.contains(&key) {
                    records.push(self.settings.shape.record(item, self.settings.kind)?);
                    new.push(key);
                }
            }
            count = count.saturating_add(u64::try_from(records.len()).unwrap_or(u64::MAX));
            seen.extend(new);
            totals.take(total);
            let all = totals.agreed() == Some(count);
            // A page with nothing new is the end: some services answer a page number beyond the last with the last page.
            let last = all || records.is_empty() || !list.path.has("{page}");
            if count > RECORDS as u64 {
                return Ok(Listed { complete: false });
            }
            if !records.is_empty() && pages.send(records).await.is_err() {
                return Ok(Listed { complete: false });
            }
            if last {
                if nameless > 0 {
                    tracing::warn!(nameless, "items of the list have no `identifier`: they were passed over, and the list is not whole");
                }
                if nameless > 0 && count == 0 {
                    return Err(Unavailable::Protocol);
                }
                // Without a total an end cannot be told from a cut.
                return Ok(Listed { complete: all && nameless == 0 });
            }
        }
        Ok(Listed { complete: false })
    }

    fn parse_push(&self, _headers: &HeaderMap, body: &[u8]) -> Result<Vec<Change>, NotAnEvent> {
        event::parse(body)
    }

    async fn probe(&self, deadline: Instant) -> Vec<Finding> {
        let reply = match self.ask(PROBE, deadline).await {
            Ok(reply) => reply,
            Err(fault) => return vec![Finding::fault(fault, SECRET_FIX, RIGHT_FIX)],
        };
        let clock = reply.clock_skew().map(|(skew, ahead)| Finding::clock(skew, ahead));
        let absent = self.says_absent(&reply);
        let mut findings = match self.read(reply) {
            Ok(None) => vec![Finding::good("address", "it answers, and knows no device with the identifier of this test")],
            Ok(Some(answer)) => match self.matching(&answer, &normal(PROBE)) {
                Ok(_) => vec![Finding::good("address", "it answers, and devices can be read")],
                Err(Unavailable::FilterIgnored) => vec![Finding::bad(
                    "filter",
                    Unavailable::FilterIgnored.text(),
                    "let the service answer with the one device that `path` or `body` names, and with none where there is none",
                )],
                Err(fault) => vec![Finding::bad("schema", fault.text(), "compare `items` and `identifier` with an answer of the service")],
            },
            Err(fault) if absent => vec![Finding::bad(
                "not_found_body",
                fault.text(),
                "let the service itself say in JSON, at the very address of `path`, that there is no such device, or set `not_found_body`",
            )],
            Err(fault @ Unavailable::Rejected) => {
                vec![Finding::bad("request", fault.text(), "compare `method`, `path` and `body` with what the service takes")]
            }
            Err(fault) => vec![Finding::fault(fault, SECRET_FIX, RIGHT_FIX)],
        };
        findings.extend(clock);
        findings
    }
}

impl HttpJson {
    async fn find(&self, device: &DeviceId, identifier: &str, deadline: Instant) -> Result<Answer, Unavailable> {
        let Some(answer) = self.read(self.ask(identifier, deadline).await?)? else { return Ok(Answer::NotFound) };
        let fitting = self.matching(&answer, device.normal())?;
        Ok(match fitting.as_slice() {
            [] => Answer::NotFound,
            [one] => Answer::Found(self.settings.shape.record(one, self.settings.kind)?.into()),
            _ => Answer::Ambiguous,
        })
    }

    async fn ask(&self, identifier: &str, deadline: Instant) -> Result<Reply, Unavailable> {
        let url = self.settings.path.url(&self.client, "{identifier}", identifier);
        let request = if self.settings.method == Method::POST { self.client.post(url) } else { self.client.get(url) };
        let request = match &self.settings.body {
            Some(body) => request.json(&settings::filled(body, identifier)),
            None => request,
        };
        self.send(request, deadline, LOOKUP).await
    }

    async fn send(&self, request: reqwest::RequestBuilder, deadline: Instant, most: usize) -> Result<Reply, Unavailable> {
        self.client.send(request.headers(self.headers.clone()), deadline, most).await
    }

    /// The answer's JSON; `None` where its status says that there is no such device.
    fn read(&self, reply: Reply) -> Result<Option<Value>, Unavailable> {
        if self.says_absent(&reply) {
            // Other senders use the same statuses: a proxy before the service, for an address that leads nowhere, and the target
            // of a redirect.
            let its_own = !reply.redirected && self.settings.not_found_body.is_of(&reply);
            return if its_own { Ok(None) } else { Err(Unavailable::Protocol) };
        }
        reply.about_one()?.json().map(Some)
    }

    fn says_absent(&self, reply: &Reply) -> bool {
        self.settings.not_found_status.contains(&reply.status.as_u16())
    }

    /// The items with exactly this identifier.
    ///
    /// # Errors
    /// [`Unavailable::FilterIgnored`] where the answer leaves items out, by its total, or shows so many that it was not filtered:
    /// one of the rest may fit too. It is also the error where only items with other identifiers came: the service answered
    /// another question. [`Unavailable::Protocol`] where the answer has not the configured shape.
    fn matching<'a>(&self, answer: &'a Value, identifier: &str) -> Result<Vec<&'a Value>, Unavailable> {
        let shape = &self.settings.shape;
        let items = shape::items(answer, &shape.items)?;
        let (mut fitting, mut foreign) = (Vec::new(), false);
        for item in items {
            let known = normal(shape.identifier(item)?);
            if same(self.settings.kind, &known, identifier) {
                fitting.push(item);
            } else {
                // A search for a part of a text also finds longer texts.
                foreign |= !known.contains(identifier);
            }
        }
        let shown = u64::try_from(items.len()).unwrap_or(u64::MAX);
        let cut = match &shape.total {
            Some(total) => match shape::number(total.find(answer))? {
                // A total below the number of shown items contradicts them.
                total if total < shown => return Err(Unavailable::Protocol),
                total => total > shown,
            },
            None => shown > MOST_UNASKED,
        };
        if cut && fitting.len() < 2 || foreign && fitting.is_empty() { Err(Unavailable::FilterIgnored) } else { Ok(fitting) }
    }
}

/// Digest that tells an item from another one.
fn digest(item: &Value) -> [u8; 32] {
    Sha256::digest(item.to_string().as_bytes()).into()
}

/// An identifier that no device has.
const PROBE: &str = "STEPWARD-PROBE";
const SECRET_FIX: &str = "put a valid secret into the file of `token` or of the header that authenticates";
const RIGHT_FIX: &str = "let whoever has this secret read devices";
/// Most items of an answer without a total; more show that it was not filtered.
const MOST_UNASKED: u64 = 50;
const MOST_LIST_PAGES: u64 = 10_000;
const LIST_PAGE_TIME: Duration = Duration::from_secs(30);
