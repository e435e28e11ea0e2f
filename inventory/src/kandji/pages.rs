//! The list of devices, page by page, so that a device that slips from one page to another is noticed.

use http::HeaderMap;
use serde_json::Value;
use tokio::time::Instant;

use super::api::{Api, LIMIT};
use super::record;
use crate::answer::Unavailable;
use crate::http::LOOKUP;
use crate::lenient;

/// A list of devices that is being read.
#[derive(Debug)]
pub(super) struct Pages<'a> {
    serial: Option<&'a str>,
    /// Number of rows that were read so far.
    seen: usize,
    /// Id of the last row.
    last: Option<String>,
}

/// A page of the list.
#[derive(Debug)]
pub(super) struct Page {
    /// The devices that were not on the pages before.
    pub(super) rows: Vec<Value>,
    /// Whether this is the last page.
    pub(super) last: bool,
    /// Whether rows moved since the page before, so that one may have been missed.
    pub(super) slipped: bool,
}

impl<'a> Pages<'a> {
    /// Begins a list of all devices, or of those whose serial number has this part.
    pub(super) const fn new(serial: Option<&'a str>) -> Self {
        Self { serial, seen: 0, last: None }
    }

    /// Reads the next page. In order of ids, it begins with the last row of the page before: if another row is there, a device
    /// before it went meanwhile and pulled others across the border.
    ///
    /// # Errors
    /// The errors of [`Api::get`] and [`crate::http::Reply::ok`]; [`Unavailable::Protocol`] where the page has no new row
    /// although more are announced.
    pub(super) async fn next(&mut self, api: &Api, deadline: Instant, most: usize) -> Result<Page, Unavailable> {
        let overlap = usize::from(self.last.is_some());
        let start = self.seen.saturating_sub(overlap);
        let offset = start.to_string();
        let mut query = vec![("limit", LIMIT.1), ("offset", offset.as_str()), ("ordering", "device_id")];
        query.extend(self.serial.map(|serial| ("serial_number", serial)));
        let reply = api.get("/api/v1/devices", &query, deadline, most).await?;
        let reply = if self.serial.is_some() { reply.about_one() } else { reply.ok() }?;
        let Body { mut rows, total, next } = Body::read(reply.json()?, &reply.headers)?;
        let received = rows.len();
        let slipped = self.last.is_some() && rows.first().and_then(record::id) != self.last.as_deref();
        if !slipped && overlap == 1 {
            rows.remove(0);
        }
        let end = start.saturating_add(received);
        let more = next || received >= LIMIT.0 || total.map_or(received >= FEW, |total| end < total);
        if more && rows.is_empty() {
            return Err(Unavailable::Protocol);
        }
        self.seen = end;
        self.last = rows.last().and_then(record::id).map(str::to_owned).or_else(|| self.last.take());
        Ok(Page { rows, last: !more, slipped })
    }
}

/// The list's row of the device with this id: Kandji's answer about a single device lacks the lost mode (`openapi.json`, Get
/// Device).
///
/// # Errors
/// The errors of [`Api::get`] and [`crate::http::Reply::about_one`]; [`Unavailable::Protocol`] where the device is not among the
/// rows and others may follow.
pub(super) async fn one(api: &Api, id: &str, deadline: Instant) -> Result<Option<Value>, Unavailable> {
    let query = [("limit", LIMIT.1), ("offset", "0"), ("device_id", id)];
    let reply = api.get("/api/v1/devices", &query, deadline, LOOKUP).await?.about_one()?;
    let Body { mut rows, total, next } = Body::read(reply.json()?, &reply.headers)?;
    let all = rows.len();
    rows.retain(|row| record::id(row) == Some(id));
    match (rows.pop(), rows.pop()) {
        (Some(row), None) => Ok(Some(row)),
        (None, _) if !next && total.is_none_or(|total| total <= all) => Ok(None),
        _ => Err(Unavailable::Protocol),
    }
}

/// The rows of an answer: a bare array, or one in `results`.
#[derive(Debug)]
struct Body {
    rows: Vec<Value>,
    /// Number of rows on all pages, where the answer gives it.
    total: Option<usize>,
    /// Whether the answer announces another page.
    next: bool,
}

impl Body {
    fn read(body: Value, headers: &HeaderMap) -> Result<Self, Unavailable> {
        let header = headers.get("x-total-count").and_then(|total| total.to_str().ok()?.trim().parse().ok());
        let (rows, total, next) = match body {
            Value::Array(rows) => (rows, header, false),
            Value::Object(_) if lenient::fails(&body) => return Err(Unavailable::Protocol),
            Value::Object(mut fields) => {
                let Some(Value::Array(rows)) = fields.remove("results") else { return Err(Unavailable::Protocol) };
                let count = fields.get("count").and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
                (rows, count.or(header), fields.get("next").is_some_and(|next| !next.is_null()))
            }
            _ => return Err(Unavailable::Protocol),
        };
        // Two counts that differ, or one below the number of rows, contradict each other.
        let agrees = total.is_none_or(|total| total >= rows.len()) && header.is_none_or(|header| Some(header) == total);
        if agrees && rows.iter().all(Value::is_object) { Ok(Self { rows, total, next }) } else { Err(Unavailable::Protocol) }
    }
}

/// Number of rows from which a page may be cut short, where the answer gives no total: fewer than any limit that Kandji's
/// description mentions.
const FEW: usize = 25;
