//! The list of devices, page by page.

use posture::record::Fields;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::Api;
use super::record;
use crate::answer::Unavailable;
use crate::lenient;
use crate::shown::{Row, Shown};

/// A list of devices that is read page by page.
#[derive(Debug)]
pub(super) struct Rows {
    body: Value,
    /// Whether the question is about one serial number.
    one: bool,
    page: usize,
    /// Ids of the agents that were seen.
    pub(super) ids: Shown<String>,
}

/// A page of the list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) items: Vec<Value>,
    /// Number of devices on all pages, where the answer gives it.
    pub(super) total: Option<usize>,
    /// Whether this is the last page.
    pub(super) last: bool,
    /// Whether an agent came again, or an announced page brought no new one: another agent may have been missed.
    pub(super) gap: bool,
}

impl Rows {
    /// Begins a list of all devices, or of those whose serial number has this part.
    pub(super) fn new(serial: Option<&str>, need: Fields) -> Self {
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
    /// The errors of [`Api::post`] and [`crate::http::Reply::ok`]; [`Unavailable::Protocol`] where an agent has no id, or where
    /// another page comes than was asked for.
    pub(super) async fn next(&mut self, api: &Api, deadline: Instant, most: usize) -> Result<Page, Unavailable> {
        self.page = self.page.saturating_add(1);
        if let Some(page) = self.body.get_mut("page") {
            *page = json!(self.page);
        }
        let reply = api.post("/devices", &self.body, deadline, most).await?;
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
            // Both rows of a contradiction are sent, so that neither is believed.
            if again != Row::Slipped {
                new.push(item);
            }
        }
        let total = said("total");
        // A total below the number of shown rows contradicts them.
        if total.is_some_and(|total| total < shown) {
            return Err(Unavailable::Protocol);
        }
        let page_count = said("page_count").filter(|count| *count > 0);
        // Any sign of more pages is believed; without a sign either way, a page without new rows is the end.
        let more = match (page_count, total) {
            (Some(count), total) => self.page < count || total.is_some_and(|total| self.ids.len() < total),
            (None, Some(total)) => self.ids.len() < total,
            (None, None) => self.ids.len() > before,
        };
        let stuck = more && self.ids.len() == before;
        Ok(Page { items: new, total, last: !more || stuck, gap: gap || stuck })
    }
}

/// Rows on a page; clients of others use this number too, and Addigy names no limit.
const PER_PAGE: usize = 100;
