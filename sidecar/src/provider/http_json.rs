//! Any inventory that answers with JSON over HTTP (`type = "http"`): the configuration says how it is asked, and where in its
//! answer a device's fields stand, as JSON pointers (RFC 6901).

mod event;
mod settings;
mod shape;

use std::collections::BTreeSet;
use std::time::Duration;

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

use super::http::{Client, Endpoint, LOOKUP, PAGE, RECORDS, Reply};
use super::inventory::{Change, Finding, Inventory, Listed, Listing, NotAnEvent, Question};
use super::shown::Totals;
use super::{Answer, Unavailable};
pub use settings::{HeaderSource, List, NotFoundBody, Path, Settings};
pub use shape::{Pointer, Shape};

impl Settings {
    /// Makes a client. Nothing is sent yet.
    ///
    /// # Errors
    /// In words for the operator.
    pub fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<HttpJson, String> {
        let mut headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
        let mut secrets = secrets.iter();
        let mut next = |name: &str, prefix: &[u8]| {
            let secret = secrets.next().map(Secret::expose).unwrap_or_default();
            let mut value = HeaderValue::from_bytes(&[prefix, secret.trim_ascii()].concat())
                .map_err(|_| format!("the secret of `{name}` holds characters that no header can"))?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        };
        if self.token.is_some() {
            headers.insert(http::header::AUTHORIZATION, next("token", b"Bearer ")?);
        }
        for (name, source) in &self.headers {
            let value = match source {
                HeaderSource::Text(text) => {
                    HeaderValue::from_str(text).map_err(|_| format!("header `{name}` holds characters that no header can"))?
                }
                HeaderSource::Secret(_) => next(name.as_str(), b"")?,
            };
            headers.insert(name.clone(), value);
        }
        Ok(HttpJson { client: Client::new(endpoint)?, settings: self.clone(), headers })
    }
}

/// An inventory of somebody's own.
#[derive(Debug)]
pub struct HttpJson {
    client: Client,
    settings: Settings,
    /// Those with secrets are marked as sensitive, so they do not print.
    headers: HeaderMap,
}

#[async_trait]
impl Inventory for HttpJson {
    fn fields(&self) -> Fields {
        self.settings.fields()
    }

    fn asks(&self, kind: IdentifierKind) -> bool {
        kind == self.settings.kind
    }

    fn minds_spelling(&self) -> bool {
        true
    }

    async fn lookup(&self, question: &Question) -> Answer {
        let identifier = question.device.stated().trim_ascii();
        // Dots alone, as a part of a path, mean another path.
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
            // Fewer than it shows: one of the two is not so.
            if total.is_some_and(|total| u64::try_from(items.len()).is_ok_and(|shown| total < shown)) {
                return Err(Unavailable::Protocol);
            }
            // The same item on a later page has slipped there; two of one page, or two that differ, are two devices.
            let (mut records, mut new) = (Vec::new(), Vec::new());
            for item in items {
                // Nobody can tell which device it is; the others are not kept from being read by it.
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
            // Nothing new is the end, also where a service answers every number of a page beyond the last with the last.
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
                // Without a total nobody can tell an end from a cut.
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

    /// The answer; `None` where its status says that there is no such device.
    fn read(&self, reply: Reply) -> Result<Option<Value>, Unavailable> {
        if self.says_absent(&reply) {
            // What stands before the service has the same statuses for an address that leads nowhere, and so has the service for
            // one that it sent the question on to.
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
    /// [`Unavailable::FilterIgnored`] where there are more than the answer shows, or so many that nobody filtered them: then
    /// there may be one more that fits. The same where others came in its place: whatever was answered, it was not this question.
    fn matching<'a>(&self, answer: &'a Value, identifier: &str) -> Result<Vec<&'a Value>, Unavailable> {
        let shape = &self.settings.shape;
        let items = shape::items(answer, &shape.items)?;
        let (mut fitting, mut foreign) = (Vec::new(), false);
        for item in items {
            let known = normal(shape.identifier(item)?);
            if same(self.settings.kind, &known, identifier) {
                fitting.push(item);
            } else {
                // A search for a part of a text finds longer ones as well.
                foreign |= !known.contains(identifier);
            }
        }
        let shown = u64::try_from(items.len()).unwrap_or(u64::MAX);
        let cut = match &shape.total {
            Some(total) => match shape::number(total.find(answer))? {
                // Fewer than it shows: one of the two is not so.
                total if total < shown => return Err(Unavailable::Protocol),
                total => total > shown,
            },
            None => shown > MOST_UNASKED,
        };
        if cut && fitting.len() < 2 || foreign && fitting.is_empty() { Err(Unavailable::FilterIgnored) } else { Ok(fitting) }
    }
}

/// Tells an item from another one.
fn digest(item: &Value) -> [u8; 32] {
    Sha256::digest(item.to_string().as_bytes()).into()
}

/// What no device is called.
const PROBE: &str = "STEPWARD-PROBE";
const SECRET_FIX: &str = "put a valid secret into the file of `token` or of the header that authenticates";
const RIGHT_FIX: &str = "let whoever has this secret read devices";
/// Items beside the one that was asked for that may stand in an answer which does not say how many there are.
const MOST_UNASKED: u64 = 50;
const MOST_LIST_PAGES: u64 = 10_000;
const LIST_PAGE_TIME: Duration = Duration::from_secs(30);
