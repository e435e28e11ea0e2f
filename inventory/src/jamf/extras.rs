//! Facts that cost a call of their own: the names of departments, and a device's compliance.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use posture::record::{Compliance, Fact, Form};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::api::Api;
use super::record;
use crate::answer::Unavailable;
use crate::errand::Errand;
use crate::http::LOOKUP;

/// Names of departments by their ids: computers have only the ids. The names hardly change, so they are kept for a while.
#[derive(Debug, Default)]
pub(super) struct Departments {
    known: Mutex<Known>,
    /// The turn to fetch the names, held meanwhile.
    gate: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    names: Option<Arc<BTreeMap<String, String>>>,
    /// The moment when the names are fetched again, after a success or a failure.
    next: Option<Instant>,
}

#[derive(Deserialize)]
struct Page {
    #[serde(rename = "totalCount")]
    total: u64,
    results: Vec<Department>,
}

#[derive(Deserialize)]
struct Department {
    id: String,
    name: String,
}

impl Departments {
    /// All names; the earlier ones where they cannot be fetched now, `None` where they never could be.
    pub(super) async fn all(&self, api: &Api, deadline: Instant) -> Option<Arc<BTreeMap<String, String>>> {
        if let Some(names) = self.fresh() {
            return names;
        }
        // Earlier names do while another call fetches them, or a list, which takes its time.
        let known = self.lock().names.clone();
        if known.is_some() && self.gate.try_lock().is_err() {
            return known;
        }
        // The holder's request may wait for a place: that is no silence of the service.
        let waiting = Errand::current().as_ref().map(Errand::waits);
        let Ok(_turn) = timeout_at(deadline, self.gate.lock()).await else { return self.lock().names.clone() };
        drop(waiting);
        if let Some(names) = self.fresh() {
            return names;
        }
        let fetched = fetch(api, deadline).await;
        let mut known = self.lock();
        known.next = Some(Instant::now() + if fetched.is_ok() { KEPT } else { RETRY });
        if let Ok(names) = fetched {
            known.names = Some(Arc::new(names));
        }
        known.names.clone()
    }

    /// The names that are known, while they need not be fetched again; the inner `None` where there are none.
    #[expect(clippy::option_option, reason = "that nothing could be fetched is kept for a while too")]
    fn fresh(&self) -> Option<Option<Arc<BTreeMap<String, String>>>> {
        let known = self.lock();
        known.next.is_some_and(|next| Instant::now() < next).then(|| known.names.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn fetch(api: &Api, deadline: Instant) -> Result<BTreeMap<String, String>, Unavailable> {
    let mut names = BTreeMap::new();
    for number in 0..PAGES {
        let number = number.to_string();
        let query = [("page", number.as_str()), ("page-size", "2000"), ("sort", "id:asc")];
        let page: Page = api.get(DEPARTMENTS, &query, deadline, LOOKUP).await?.ok()?.json()?;
        let empty = page.results.is_empty();
        for department in page.results {
            // Two names for one department contradict each other.
            if names.insert(department.id, department.name.clone()).is_some_and(|before| before != department.name) {
                return Err(Unavailable::Protocol);
            }
        }
        if empty || names.len() as u64 >= page.total {
            break;
        }
    }
    Ok(names)
}

/// The department of a computer's user.
pub(super) fn department(row: &Value, names: Option<&BTreeMap<String, String>>) -> Fact<String> {
    match row.get("userAndLocation").and_then(|person| person.get("departmentId")) {
        Some(Value::Null) => Fact::Absent,
        // Jamf writes -1 where an id is needed and there is none.
        Some(Value::String(id)) if id.is_empty() || id == "-1" => Fact::Absent,
        Some(Value::String(id)) => names.and_then(|names| names.get(id)).map_or(Fact::Unknown, |name| Fact::text(Some(name))),
        _ => Fact::Unknown,
    }
}

/// The worst compliance that services connected to Jamf Pro give a device.
///
/// # Errors
/// [`Unavailable`]; a server on which compliance was never set up gives an unknown fact instead.
pub(super) async fn compliance(api: &Api, form: Form, row: &Value, deadline: Instant) -> Result<Fact<Compliance>, Unavailable> {
    let Some(id) = record::id(form, row) else { return Ok(Fact::Unknown) };
    let reply = api.get(&compliance_path(form, &id), &[], deadline, LOOKUP).await?;
    if reply.status == StatusCode::NOT_FOUND {
        return Ok(Fact::Unknown);
    }
    let entries: Vec<Value> = reply.ok()?.json()?;
    // An entry about another device makes the answer useless.
    let own =
        |entry: &Value| entry.get("deviceId").is_none_or(|said| said.is_null() || record::spelled(said).is_some_and(|said| said == id));
    if entries.iter().all(own) { Ok(worst(&entries)) } else { Err(Unavailable::Protocol) }
}

/// Path that gives the compliance of a device.
pub(super) fn compliance_path(form: Form, id: &str) -> String {
    let kind = match form {
        Form::Computer => "computer",
        Form::MobileDevice => "mobile",
    };
    format!("/api/v1/conditional-access/device-compliance-information/{kind}/{id}")
}

fn worst(entries: &[Value]) -> Fact<Compliance> {
    let applicable = entries.iter().filter(|entry| entry.get("applicable") != Some(&Value::Bool(false)));
    let states: Vec<_> = applicable.map(|entry| entry.get("complianceState").and_then(Value::as_str)).collect();
    let has = |state: &str| states.contains(&Some(state));
    if has("NON_COMPLIANT") {
        Fact::Value(Compliance::NonCompliant)
    } else if states.iter().any(|state| !matches!(state, Some("COMPLIANT" | "UNKNOWN"))) {
        Fact::Unknown
    } else if has("UNKNOWN") {
        Fact::Value(Compliance::Undetermined)
    } else if has("COMPLIANT") {
        Fact::Value(Compliance::Compliant)
    } else {
        Fact::Absent
    }
}

pub(super) const DEPARTMENTS: &str = "/api/v1/departments";
const PAGES: usize = 20;
const KEPT: Duration = Duration::from_secs(600);

/// Time until names are fetched again after a failure, so that a missing privilege does not cost every lookup a call.
const RETRY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_worst_word_on_compliance_counts() {
        let of =
            |states: &[&str]| worst(&states.iter().map(|state| json!({"applicable": true, "complianceState": state})).collect::<Vec<_>>());
        assert_eq!(of(&["COMPLIANT"]), Fact::Value(Compliance::Compliant));
        assert_eq!(of(&["COMPLIANT", "NON_COMPLIANT"]), Fact::Value(Compliance::NonCompliant));
        assert_eq!(of(&["COMPLIANT", "UNKNOWN"]), Fact::Value(Compliance::Undetermined));
        assert_eq!(of(&["COMPLIANT", "SPLENDID"]), Fact::Unknown);
        assert_eq!(of(&["NON_COMPLIANT", "SPLENDID"]), Fact::Value(Compliance::NonCompliant));
        assert_eq!(of(&[]), Fact::Absent);
        assert_eq!(worst(&[json!({"applicable": false, "complianceState": "NON_COMPLIANT"})]), Fact::Absent);
        assert_eq!(worst(&[json!({}), json!(7)]), Fact::Unknown);
    }
}
