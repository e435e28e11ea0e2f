//! Addigy, API version 2, after the clients `bart-lute/addigy-client-go`, `pliancy/addigy-node` and `joelcodess/addigy-cli`,
//! which follow its published description.
//!
//! Quirks: a filter may do nothing; an empty list of items is `null`; a fact that could not be collected is null beside an
//! error; only the facts that a request names are in the answer; an agent's id is spelt `agentid` or `agent_id`; devices that
//! left long ago stay.
//!
//! A field in [`Device::raw`] is the value of the fact of that name; an object with `value` in it is the whole fact; null
//! removes it. A field that begins with `.` replaces one beside the facts, such as `.audit_date`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use http::Method;
use serde_json::{Map, Value, json};

use crate::Device;
use crate::server::{Answer, Seen, Service};

/// An organisation at Addigy, whose key is `secret`. Clones share its state, so that a test can change the settings of a
/// running fake.
#[derive(Clone, Debug, Default)]
pub struct Addigy(Arc<Mutex<Knobs>>);

/// The settings of an organisation.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// Whether filters have no effect.
    pub ignores_filters: bool,
    /// Whether ids are spelt `agent_id` and `org_id`.
    pub underscores: bool,
    /// Whether `page_count` is always 0.
    pub no_page_count: bool,
    /// Whether an answer has no metadata about pages.
    pub no_metadata: bool,
    /// Most rows in a page.
    pub cap: usize,
    /// Requests for which the key has no permission: `/devices`, `/oa/policies/query`.
    pub forbidden: BTreeSet<&'static str>,
    /// Names of policies by id; the groups of a device are such ids.
    pub policies: BTreeMap<String, String>,
    /// Whether policies come as `{items}` instead of a bare array.
    pub policies_in_items: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            ignores_filters: false,
            underscores: false,
            no_page_count: false,
            no_metadata: false,
            cap: 100,
            forbidden: BTreeSet::new(),
            policies: BTreeMap::new(),
            policies_in_items: false,
        }
    }
}

impl Addigy {
    /// An organisation with changed settings.
    pub fn with(change: impl FnOnce(&mut Knobs)) -> Self {
        let organisation = Self::default();
        change(&mut organisation.knobs());
        organisation
    }

    /// The organisation's settings.
    pub fn knobs(&self) -> MutexGuard<'_, Knobs> {
        self.0.lock().unwrap()
    }
}

impl Service for Addigy {
    fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
        let knobs = self.knobs();
        if request.header("x-api-key") != Some("secret") {
            return Answer::status(401, json!({"message": "Unauthorized"}));
        }
        let path = request.path.strip_prefix("/api/v2").unwrap_or_default().trim_end_matches('/');
        if knobs.forbidden.contains(path) {
            return Answer::status(403, json!({"message": "Forbidden"}));
        }
        match (&request.method, path) {
            (&Method::POST, "/devices") => query(&knobs, &request.json(), devices, ignore_filter || knobs.ignores_filters),
            (&Method::POST, "/oa/policies/query") => policies(&knobs, &request.json()),
            _ => Answer::status(404, json!({"message": "Not Found"})),
        }
    }

    fn asked(&self, request: &Seen) -> Option<String> {
        let body = request.json();
        let filter = body["query"]["filters"].as_array()?.iter().find(|filter| filter["audit_field"] == "serial_number")?;
        assert_eq!(filter["value"].as_array().map(Vec::len), Some(1), "one literal");
        filter["value"][0].as_str().map(str::to_owned)
    }
}

fn query(knobs: &Knobs, body: &Value, devices: &[Device], ignore_filter: bool) -> Answer {
    let Some(body) = body.as_object() else { return Answer::status(400, json!({"message": "invalid request body"})) };
    let desired: Vec<&str> =
        body.get("desired_fact_identifiers").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let filters: Vec<Value> = body.get("query").and_then(|query| query["filters"].as_array().cloned()).unwrap_or_default();
    let fits = |facts: &Map<String, Value>| {
        ignore_filter
            || filters.iter().all(|filter| {
                let value = facts.get(filter["audit_field"].as_str().unwrap_or_default()).map_or(&Value::Null, |fact| &fact["value"]);
                let value = value.as_str().unwrap_or_default().to_lowercase();
                let wanted = filter["value"].as_array().into_iter().flatten().filter_map(Value::as_str);
                filter["operation"] == "contains" && wanted.map(str::to_lowercase).any(|wanted| value.contains(&wanted))
            })
    };
    let mut used = BTreeMap::<String, usize>::new();
    let mut rows: Vec<(Map<String, Value>, Value)> = Vec::new();
    for device in devices {
        let wanted = if device.id.is_empty() { format!("agent-{}", device.serial) } else { device.id.clone() };
        let count = used.entry(wanted.clone()).or_default();
        *count += 1;
        let agent = if *count == 1 { wanted } else { format!("{wanted}-{count}") };
        let facts = facts(device);
        if fits(&facts) {
            let row = row(knobs, device, &agent, &facts, &desired);
            rows.push((facts, row));
        }
    }
    if let Some(field) = body.get("sort_field").and_then(Value::as_str) {
        let key =
            |facts: &Map<String, Value>| facts.get(field).and_then(|fact| fact["value"].as_str().map(str::to_owned)).unwrap_or_default();
        rows.sort_by_key(|(facts, _)| key(facts));
    }
    let whole = |name: &str, default: u64| body.get(name).and_then(Value::as_u64).unwrap_or(default).try_into().unwrap_or(usize::MAX);
    let (page, per_page) = (whole("page", 1).max(1), whole("per_page", 50).clamp(1, knobs.cap));
    let total = rows.len();
    let items: Vec<Value> = rows.into_iter().map(|(_, row)| row).skip((page - 1) * per_page).take(per_page).collect();
    let metadata = json!({
        "page": page, "page_count": if knobs.no_page_count { 0 } else { total.div_ceil(per_page) }, "per_page": per_page,
        "result_count": items.len(), "total": total,
    });
    let items = if items.is_empty() { Value::Null } else { Value::Array(items) };
    Answer::json(if knobs.no_metadata { json!({"items": items}) } else { json!({"items": items, "metadata": metadata}) })
}

fn row(knobs: &Knobs, device: &Device, agent: &str, facts: &Map<String, Value>, desired: &[&str]) -> Value {
    let shown: Map<String, Value> = if desired.is_empty() {
        facts
            .iter()
            .filter(|(name, _)| ["serial_number", "device_name"].contains(&name.as_str()))
            .map(|(name, fact)| (name.clone(), fact.clone()))
            .collect()
    } else {
        desired.iter().filter_map(|name| Some(((*name).to_owned(), facts.get(*name)?.clone()))).collect()
    };
    let (agent_name, organisation_name) = if knobs.underscores { ("agent_id", "org_id") } else { ("agentid", "orgid") };
    let mut row = json!({
        agent_name: agent, organisation_name: "organisation", "audit_date": "2026-11-24T07:55:01.5Z",
        "agent_audit_date": "2026-11-24T07:55:00Z", "facts": shown,
    });
    for (field, value) in &device.raw {
        if let Some(field) = field.strip_prefix('.') {
            row[field] = value.clone();
        }
    }
    row
}

/// The facts that Addigy has of a device.
fn facts(device: &Device) -> Map<String, Value> {
    let policies = json!(device.groups);
    let mut facts = Map::new();
    let mut add =
        |name: &str, kind: &str, value: Value| facts.insert(name.to_owned(), json!({"type": kind, "value": value, "error_msg": ""}));
    let computer = |value: Value| if device.mobile { Value::Null } else { value };
    add("serial_number", "string", json!(device.serial));
    add("udid", "string", json!(device.udid));
    add("mac_uuid", "string", computer(json!(device.udid)));
    add("device_name", "string", json!(device.name));
    add("device_model_name", "string", json!(if device.mobile { "iPhone 15" } else { "MacBook Air" }));
    add("os_platform", "string", json!(if device.mobile { "iOS" } else { "macOS" }));
    add("os_version", "string", json!(device.os_version));
    add("build_version", "string", json!("24E263"));
    add("has_mdm", "boolean", json!(device.managed));
    add("is_supervised", "boolean", json!(true));
    add("is_compliant", "boolean", json!(device.compliant));
    add("is_mdm_lost_mode_enabled", "boolean", json!(device.lost));
    add("is_user_enrollment", "boolean", json!(false));
    add("enrolled_via_dep", "boolean", json!(true));
    add("filevault_enabled", "boolean", computer(json!(true)));
    add("system_integrity_protection_enabled", "boolean", computer(json!(true)));
    add("policy_id", "string", json!(device.groups.first().cloned().unwrap_or_default()));
    add("policy_ids", "list", policies);
    add("current_user", "string", json!(device.user.as_ref().map(|user| &user.id).cloned().unwrap_or_default()));
    add("identity_users", "list", json!(device.user.iter().map(|user| &user.email).collect::<Vec<_>>()));
    add("last_online", "date", json!(device.last_seen));
    add("mdm_last_connected", "date", json!(device.last_seen));
    add("registration_date", "date", json!("2025-02-01T09:00:00.1234567Z"));
    for (name, value) in &device.raw {
        if name.starts_with('.') {
            continue;
        }
        match value {
            Value::Null => {
                facts.remove(name);
            }
            Value::Object(fact) if fact.contains_key("value") => {
                facts.insert(name.clone(), value.clone());
            }
            value => facts[name]["value"] = value.clone(),
        }
    }
    facts
}

fn policies(knobs: &Knobs, body: &Value) -> Answer {
    let wanted = body["policies"].as_array();
    let fits = |id: &str| wanted.is_none_or(|wanted| wanted.iter().any(|wanted| wanted == id));
    let found =
        knobs.policies.iter().filter(|(id, _)| fits(id)).map(|(id, name)| json!({"policyId": id, "name": name, "orgid": "organisation"}));
    let found: Vec<Value> = found.collect();
    Answer::json(if knobs.policies_in_items { json!({"items": found}) } else { Value::Array(found) })
}
