//! Requests to Microsoft Graph: lists page by page, and several small questions in one batch.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use url::Url;

use super::login::Login;
use super::row::{self, SELECT};
use super::settings::Version;
use crate::answer::Unavailable;
use crate::http::{Client, PAGE, Reply};
use crate::lenient;
use crate::token::Tokens;

/// Microsoft Graph, with its login and the version of the API.
#[derive(Debug)]
pub(super) struct Graph {
    client: Client,
    tokens: Tokens<Login>,
    version: Version,
}

/// The managed devices that a list is to hold.
#[derive(Debug, Default)]
pub(super) struct Query {
    /// The query option `$filter`.
    pub(super) filter: Option<String>,
    /// The query option `$top`.
    pub(super) top: Option<&'static str>,
}

/// A page of a collection.
#[derive(Deserialize)]
pub(super) struct Page {
    /// Rows of the page.
    pub(super) value: Vec<Map<String, Value>>,
    /// Address of the next page; `None` on the last one.
    #[serde(rename = "@odata.nextLink")]
    pub(super) next: Option<String>,
    /// Number of rows on all pages, where Graph says it.
    #[serde(rename = "@odata.count")]
    count: Option<u64>,
}

impl Page {
    /// Reads a page from an answer. `before` is the number of rows on the pages before.
    ///
    /// # Errors
    /// [`Unavailable::Protocol`] for another form, an answer that reports a failure, a count below the rows that came, and on the
    /// last page a count above them.
    pub(super) fn read(body: Value, before: usize) -> Result<Self, Unavailable> {
        if lenient::fails(&body) {
            return Err(Unavailable::Protocol);
        }
        let page: Self = serde_json::from_value(body).map_err(|_| Unavailable::Protocol)?;
        let rows = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let (here, all) = (rows(page.value.len()), rows(page.value.len().saturating_add(before)));
        let agrees = page.count.is_none_or(|count| count >= here && (page.next.is_some() || count <= all));
        if agrees { Ok(page) } else { Err(Unavailable::Protocol) }
    }
}

impl Graph {
    pub(super) const fn new(client: Client, tokens: Tokens<Login>, version: Version) -> Self {
        Self { client, tokens, version }
    }

    pub(super) const fn tokens(&self) -> &Tokens<Login> {
        &self.tokens
    }

    /// The properties that are asked for, as the value of `$select`.
    pub(super) fn selected(&self) -> String {
        SELECT.iter().chain(row::own(self.version)).copied().collect::<Vec<_>>().join(",")
    }

    /// The managed devices, in at most `pages` pages of at most `bytes` bytes; `one` where the question is about one identifier.
    pub(super) fn devices(&self, query: &Query, pages: usize, bytes: usize, one: bool) -> Pages<'_> {
        Pages { graph: self, next: Some(self.devices_url(query)), seen: BTreeSet::new(), rows: 0, left: pages, bytes, one }
    }

    /// The rest of a collection, from an address that Graph itself gave after `rows` rows.
    ///
    /// # Errors
    /// [`Unavailable::Protocol`] where the address is of another host: that host would get the token.
    pub(super) fn follow(&self, address: &str, rows: usize, pages: usize) -> Result<Pages<'_>, Unavailable> {
        Ok(Pages { graph: self, next: Some(self.own(address)?), seen: BTreeSet::new(), rows, left: pages, bytes: PAGE, one: false })
    }

    /// Asks small questions in as many batches as they need, and returns the answers in their order. Addresses begin after the
    /// version.
    ///
    /// The batches go one after the other, since Microsoft counts every question in them: a sweep would use up what lookups need.
    ///
    /// # Errors
    /// The fault of a whole batch, or [`Unavailable::Protocol`] where an answer is missing.
    pub(super) async fn batch(&self, addresses: &[String], deadline: Instant) -> Result<Vec<Item>, Unavailable> {
        let mut items = Vec::new();
        for addresses in addresses.chunks(BATCH) {
            let requests = addresses.iter().enumerate().map(|(id, url)| json!({"id": id.to_string(), "method": "GET", "url": url}));
            let body = json!({ "requests": requests.collect::<Vec<_>>() });
            let url = self.url("/$batch", &[]);
            let request = |token: &crate::token::Token| self.client.post(url.clone()).bearer_auth(token.expose()).json(&body);
            let reply = self.tokens.send(&self.client, deadline, PAGE, request).await?;
            let mut answers: BTreeMap<String, Item> = logged(reply).ok()?.json::<Batch>()?.by_id()?;
            for id in 0..addresses.len() {
                items.push(answers.remove(&id.to_string()).ok_or(Unavailable::Protocol)?);
            }
        }
        Ok(items)
    }

    /// Sends a GET, and returns the whole answer, whatever its status.
    pub(super) async fn get(&self, url: &Url, deadline: Instant, bytes: usize) -> Result<Reply, Unavailable> {
        let request = |token: &crate::token::Token| self.client.get(url.clone()).bearer_auth(token.expose());
        Ok(logged(self.tokens.send(&self.client, deadline, bytes, request).await?))
    }

    pub(super) fn url(&self, path: &str, query: &[(&str, &str)]) -> Url {
        self.client.url(&format!("/{}{path}", self.version.as_str()), query)
    }

    fn devices_url(&self, query: &Query) -> Url {
        let selected = self.selected();
        let filter = query.filter.as_deref().map(|filter| ("$filter", filter));
        let top = query.top.map(|top| ("$top", top));
        let pairs: Vec<_> = [filter, Some(("$select", selected.as_str())), top].into_iter().flatten().collect();
        self.url("/deviceManagement/managedDevices", &pairs)
    }

    fn own(&self, address: &str) -> Result<Url, Unavailable> {
        // The length is bounded, since every address is kept to notice one that comes again.
        if address.len() > LONGEST_LINK {
            return Err(Unavailable::Protocol);
        }
        let url: Url = address.parse().map_err(|_| Unavailable::Protocol)?;
        if self.client.is_own(&url) { Ok(url) } else { Err(Unavailable::Protocol) }
    }
}

/// A collection, page by page.
#[derive(Debug)]
pub(super) struct Pages<'g> {
    graph: &'g Graph,
    next: Option<Url>,
    /// Addresses of the pages so far: one that comes again would come for ever.
    seen: BTreeSet<Url>,
    /// Number of rows on the pages so far.
    rows: usize,
    left: usize,
    bytes: usize,
    /// Whether the question is about one identifier, so that a refusal may be about it.
    one: bool,
}

impl Pages<'_> {
    /// The rows of the next page; `None` after the last one.
    ///
    /// # Errors
    /// The errors of [`Tokens::send`] and of [`Reply::ok`] or [`Reply::about_one`]; [`Unavailable::Protocol`] for a link that
    /// leads back or to another host, [`Unavailable::TooLarge`] for too many pages.
    pub(super) async fn next(&mut self, deadline: Instant) -> Result<Option<Vec<Map<String, Value>>>, Unavailable> {
        let Some(url) = self.next.take() else { return Ok(None) };
        self.left = self.left.checked_sub(1).ok_or(Unavailable::TooLarge)?;
        let reply = self.graph.get(&url, deadline, self.bytes).await?;
        let judged = if self.one { reply.about_one() } else { reply.ok() };
        let page = Page::read(judged?.json()?, self.rows)?;
        self.rows = self.rows.saturating_add(page.value.len());
        self.seen.insert(url);
        if let Some(next) = page.next {
            let next = self.graph.own(&next)?;
            if self.seen.contains(&next) {
                return Err(Unavailable::Protocol);
            }
            self.next = Some(next);
        }
        Ok(Some(page.value))
    }
}

/// The answer to one question of a batch.
pub(super) struct Item {
    reply: Reply,
    body: Value,
}

impl Item {
    /// The body of the answer; `None` where Graph has no such object.
    ///
    /// # Errors
    /// The errors of [`Reply::ok`].
    pub(super) fn found(self) -> Result<Option<Value>, Unavailable> {
        if self.reply.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        self.reply.ok().map(|_| Some(self.body))
    }

    /// Status of the answer.
    pub(super) const fn status(&self) -> StatusCode {
        self.reply.status
    }
}

#[derive(Deserialize)]
struct Batch {
    responses: Vec<Response>,
}

#[derive(Deserialize)]
struct Response {
    id: String,
    status: u16,
    #[serde(default)]
    headers: Map<String, Value>,
    #[serde(default)]
    body: Value,
}

impl Batch {
    /// The answers by the id of their question.
    ///
    /// # Errors
    /// [`Unavailable::Protocol`] where one question has two answers.
    fn by_id(self) -> Result<BTreeMap<String, Item>, Unavailable> {
        let count = self.responses.len();
        let item = |response: Response| {
            let headers = response.headers.into_iter().filter_map(|(name, value)| {
                Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value.as_str()?).ok()?))
            });
            let status = StatusCode::from_u16(response.status).unwrap_or(StatusCode::BAD_GATEWAY);
            let reply = Reply { status, headers: headers.collect::<HeaderMap>(), body: Bytes::new(), redirected: false };
            (response.id, Item { reply: logged(reply), body: response.body })
        };
        let answers: BTreeMap<_, _> = self.responses.into_iter().map(item).collect();
        if answers.len() == count { Ok(answers) } else { Err(Unavailable::Protocol) }
    }
}

/// Logs the id of a failed request, for which Microsoft's support asks. The id names no device.
fn logged(reply: Reply) -> Reply {
    if reply.status != StatusCode::OK {
        let id = reply.headers.get("request-id").and_then(|id| id.to_str().ok()).unwrap_or("none");
        tracing::debug!(status = reply.status.as_u16(), request_id = id, "Microsoft Graph refused a request");
    }
    reply
}

/// Longest address of a next page, in bytes.
const LONGEST_LINK: usize = 8 << 10;

/// Most questions that one batch may hold.
const BATCH: usize = 20;
