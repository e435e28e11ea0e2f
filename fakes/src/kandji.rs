//! Kandji, now Iru, after `openapi.json` of `MScottBlake/kandji-openapi` and the answers recorded in `JupiterOne/graph-kandji`.
//!
//! Quirks: the filter for serial numbers also finds parts of them; the list is a bare array of at most 300; no user is `""`;
//! dates come in two forms; details have `"True"` and `"False"`; the next page of people is named on the console's host.
//!
//! A field in [`Device::raw`] replaces the field of that name of the device in the list; with `details.` before it (such as
//! `details.mdm.supervised`) one of its details, and with `prism.` before it one of its row in Prism.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use http::Method;
use serde_json::{Map, Value, json};

use crate::Device;
use crate::server::{Answer, Seen, Service, decoded};

/// A tenant of Kandji, whose token is `secret`. Clones share its state, so that a test can change the settings of a running tenant.
#[derive(Clone, Debug, Default)]
pub struct Kandji(Arc<Mutex<Knobs>>);

/// The settings of a tenant.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// Whether the list of devices is wrapped in `{count, next, previous, results}`.
    pub wrapped: bool,
    /// Whether the list of devices has their number in `x-total-count`.
    pub total: bool,
    /// Most rows in a page of devices.
    pub cap: usize,
    /// Whether the filter for serial numbers is case-sensitive.
    pub case_sensitive: bool,
    /// Requests left in this hour; `None` omits the headers.
    pub left: Option<u64>,
    /// Seconds until the hour is over.
    pub reset: u64,
    /// Whether Prism pages by cursor instead of by offset.
    pub cursor: bool,
    /// Requests for which the token has no permission, by their names in the description: `List Users`.
    pub forbidden: BTreeSet<&'static str>,
    /// The audit log, oldest first.
    pub events: Vec<Value>,
    /// People in the directory besides those who have a device.
    pub people: Vec<Value>,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            wrapped: false,
            total: true,
            cap: 300,
            case_sensitive: false,
            left: Some(9_964),
            reset: 1_800,
            cursor: false,
            forbidden: BTreeSet::new(),
            events: Vec::new(),
            people: Vec::new(),
        }
    }
}

impl Kandji {
    /// A tenant with changed settings.
    pub fn with(change: impl FnOnce(&mut Knobs)) -> Self {
        let tenant = Self::default();
        change(&mut tenant.knobs());
        tenant
    }

    /// The tenant's settings.
    pub fn knobs(&self) -> MutexGuard<'_, Knobs> {
        self.0.lock().unwrap()
    }

    /// An event about a device, for the audit log.
    pub fn event(action: &str, component: &str, device_id: &str, occurred_at: &str) -> Value {
        json!({
            "id": format!("{action}-{component}-{device_id}-{occurred_at}"), "action": action, "actor_id": "admin", "actor_type": "user",
            "metadata": {}, "new_state": {}, "occurred_at": occurred_at, "target_component": component, "target_id": device_id,
            "target_type": "device",
        })
    }
}

impl Service for Kandji {
    fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
        let mut knobs = self.knobs();
        if request.header("authorization") != Some("Bearer secret") {
            return Answer::status(401, json!({"detail": "Invalid token."}));
        }
        let left = match knobs.left {
            Some(0) => return limits(Answer::status(429, json!({"message": "API rate limit exceeded"})), 0, knobs.reset),
            Some(left) => {
                knobs.left = Some(left - 1);
                Some(left - 1)
            }
            None => None,
        };
        let answer = route(&knobs, request, devices, ignore_filter);
        match left {
            Some(left) => limits(answer, left, knobs.reset),
            None => answer,
        }
    }

    fn asked(&self, request: &Seen) -> Option<String> {
        (request.path == "/api/v1/devices").then(|| request.query("serial_number").map(str::to_owned))?
    }
}

/// Adds the gateway's headers to an answer: the window with the least left gives `ratelimit-remaining`.
fn limits(answer: Answer, left: u64, reset: u64) -> Answer {
    let (remaining, reset) = if left < 49 { (left, reset) } else { (49, 1) };
    answer
        .with("x-ratelimit-limit-hour", "10000")
        .with("x-ratelimit-remaining-hour", left.to_string())
        .with("x-ratelimit-limit-second", "50")
        .with("x-ratelimit-remaining-second", "49")
        .with("ratelimit-limit", "50")
        .with("ratelimit-remaining", remaining.to_string())
        .with("ratelimit-reset", reset.to_string())
}

fn route(knobs: &Knobs, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
    let not_found = || Answer::status(404, json!({"detail": "Not found."}));
    if request.method != Method::GET {
        return Answer::status(405, json!({"detail": "Method not allowed."}));
    }
    let Some(path) = request.path.strip_prefix("/api/v1/") else { return not_found() };
    let parts: Vec<&str> = path.split('/').collect();
    let name = match parts.as_slice() {
        ["devices"] => "List Devices",
        ["devices", _] => "Get Device",
        ["devices", _, "details"] => "Get Device Details",
        ["devices", _, "status"] => "Get Device Status",
        ["users"] => "List Users",
        ["prism", "device_information"] => "Device information",
        ["audit", "events"] => "List audit events",
        _ => return not_found(),
    };
    if knobs.forbidden.contains(name) {
        return Answer::status(403, json!({"detail": "You do not have permission to perform this action."}));
    }
    let rows = rows(devices);
    match name {
        "List Devices" => list(knobs, request, rows, ignore_filter),
        "List Users" => people(knobs, request, devices),
        "Device information" => prism(knobs, request, &rows),
        "List audit events" => events(knobs, request),
        _ => {
            let id = decoded(parts[1]);
            let found = rows.into_iter().find(|(_, row)| row["device_id"] == id.as_str());
            found.map_or_else(not_found, |(device, row)| match name {
                "Get Device Details" => Answer::json(details(device, &row)),
                "Get Device Status" => Answer::json(status(device, &row)),
                _ => Answer::json(alone(row)),
            })
        }
    }
}

fn list(knobs: &Knobs, request: &Seen, rows: Vec<(&Device, Value)>, ignore_filter: bool) -> Answer {
    let folded = |text: &str| if knobs.case_sensitive { text.to_owned() } else { text.to_lowercase() };
    let wanted = |name: &str| request.query(name).filter(|_| !ignore_filter).unwrap_or_default().to_owned();
    let (serial, id) = (folded(&wanted("serial_number")), wanted("device_id"));
    let fits = |row: &Value| {
        folded(row["serial_number"].as_str().unwrap_or_default()).contains(&serial)
            && row["device_id"].as_str().unwrap_or_default().contains(&id)
    };
    let mut rows: Vec<Value> = rows.into_iter().map(|(_, row)| row).filter(fits).collect();
    if let Some(ordering) = request.query("ordering") {
        let field = ordering.trim_start_matches('-');
        rows.sort_by(|one, other| one[field].as_str().cmp(&other[field].as_str()));
        if ordering.starts_with('-') {
            rows.reverse();
        }
    }
    let count = rows.len();
    let offset = number(request, "offset").unwrap_or(0);
    let limit = number(request, "limit").unwrap_or(300).min(knobs.cap);
    let page: Vec<Value> = rows.into_iter().skip(offset).take(limit).collect();
    let next = (offset + page.len() < count).then(|| format!("https://tenant.api.kandji.io/api/v1/devices?offset={}", offset + page.len()));
    let answer = Answer::json(if knobs.wrapped {
        json!({"count": count, "next": next, "previous": null, "results": page})
    } else {
        Value::Array(page)
    });
    if knobs.total { answer.with("x-total-count", count.to_string()) } else { answer }
}

fn people(knobs: &Knobs, request: &Seen, devices: &[Device]) -> Answer {
    let users: BTreeMap<&str, _> =
        devices.iter().filter_map(|device| device.user.as_ref()).map(|user| (user.email.as_str(), user)).collect();
    let text = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    let mut all: Vec<Value> = users
        .values()
        .map(|user| {
            json!({
                "active": true, "archived": false, "department": text(&user.department), "deprecated_user_id": "29360",
                "device_count": 1, "email": user.email, "id": user.id, "job_title": "Engineer", "name": user.name,
            })
        })
        .collect();
    all.extend(knobs.people.iter().cloned());
    let email = request.query("email").unwrap_or_default().to_lowercase();
    all.retain(|user| user["email"].as_str().unwrap_or_default().to_lowercase().contains(&email));
    let from = number(request, "cursor").unwrap_or(0);
    let more = all.len() > from + 300;
    let next = more.then(|| format!("https://tenant.kandji.io/api/v1/users?cursor={}", from + 300));
    let page: Vec<Value> = all.into_iter().skip(from).take(300).collect();
    Answer::json(json!({"next": next, "previous": null, "results": page}))
}

fn prism(knobs: &Knobs, request: &Seen, rows: &[(&Device, Value)]) -> Answer {
    let filter: Value = match request.query("filter").map(serde_json::from_str) {
        Some(Ok(filter)) => filter,
        Some(Err(_)) => return Answer::status(400, json!({"detail": "filter is no JSON"})),
        None => json!({}),
    };
    let since = filter["updated_at"]["gte"].as_str().unwrap_or_default().to_owned();
    let all: Vec<Value> = rows.iter().map(|(device, row)| prism_row(device, row)).collect();
    // Both texts are RFC 3339 in UTC, and compare as texts down to the second.
    let fits = |row: &&Value| row["updated_at"].as_str().unwrap_or_default() >= since.as_str();
    let all: Vec<&Value> = all.iter().filter(fits).collect();
    let limit = number(request, "limit").unwrap_or(25).min(300);
    let from = number(request, if knobs.cursor { "cursor" } else { "offset" }).unwrap_or(0);
    let page: Vec<_> = all.iter().skip(from).take(limit).collect();
    let cursor = (knobs.cursor && from + page.len() < all.len()).then(|| (from + page.len()).to_string());
    Answer::json(json!({"cursor": cursor, "data": page, "limit": limit, "offset": from, "total": all.len()}))
}

fn events(knobs: &Knobs, request: &Seen) -> Answer {
    let since = request.query("start_date").unwrap_or_default();
    let mut all: Vec<&Value> = knobs.events.iter().filter(|event| event["occurred_at"].as_str().unwrap_or_default() >= since).collect();
    if request.query("sort_by").is_some_and(|order| order.starts_with('-')) {
        all.reverse();
    }
    let limit = number(request, "limit").unwrap_or(300).min(500);
    let from = number(request, "cursor").unwrap_or(0);
    let page: Vec<_> = all.iter().skip(from).take(limit).collect();
    let next = (from + page.len() < all.len())
        .then(|| format!("https://tenant.api.kandji.io/api/v1/audit/events?limit={limit}&cursor={}", from + page.len()));
    Answer::json(json!({"next": next, "previous": null, "results": page}))
}

/// The rows of the list, each with an id of its own.
fn rows(devices: &[Device]) -> Vec<(&Device, Value)> {
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    let mut id = |device: &Device| {
        let wanted = if device.id.is_empty() { made_up(&device.serial) } else { device.id.clone() };
        let count = used.entry(wanted.clone()).or_default();
        *count += 1;
        if *count == 1 { wanted } else { format!("{wanted}-{count}") }
    };
    devices.iter().map(|device| (device, row(device, &id(device)))).collect()
}

/// An id derived from a serial number, always the same (FNV-1a).
fn made_up(serial: &str) -> String {
    let hash = serial.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{:08x}-{:04x}-4000-8000-{:012x}", hash >> 32, hash & 0xffff, hash & 0xffff_ffff_ffff)
}

fn row(device: &Device, id: &str) -> Value {
    let user = device
        .user
        .as_ref()
        .map_or_else(|| json!(""), |user| json!({"email": user.email, "name": user.name, "id": user.id, "is_archived": false}));
    let mut row = json!({
        "device_id": id, "device_name": device.name, "model": if device.mobile { "iPhone 15" } else { "MacBook Air (M1, 2020)" },
        "serial_number": device.serial, "platform": if device.mobile { "iPhone" } else { "Mac" }, "os_version": device.os_version,
        "supplemental_build_version": "24E263", "supplemental_os_version_extra": "",
        "last_check_in": device.last_seen.clone().unwrap_or_default(), "user": user, "asset_tag": "",
        "blueprint_id": "dccade80-bddd-43ac-a9b7-000000000001", "blueprint_name": "Staff", "mdm_enabled": device.managed,
        "agent_installed": !device.mobile, "is_missing": false, "is_removed": false, "agent_version": "5.0.1",
        "first_enrollment": "2022-12-13 19:14:20.455640+00:00", "last_enrollment": "2022-12-13 19:14:20.455640+00:00",
        "lost_mode_status": if device.lost { "ENABLED" } else { "" }, "tags": device.groups,
    });
    replace(&mut row, device, |field| (!field.starts_with("details.") && !field.starts_with("prism.")).then_some(field));
    row
}

/// A device alone: Get Device in `openapi.json` has no lost mode.
fn alone(mut row: Value) -> Value {
    row.as_object_mut().unwrap().remove("lost_mode_status");
    row
}

fn details(device: &Device, row: &Value) -> Value {
    let spelt = |flag: bool| if flag { "True" } else { "False" };
    let mut details = json!({
        "general": {"device_id": row["device_id"], "device_name": row["device_name"], "assigned_user": row["user"]},
        "mdm": {"mdm_enabled": spelt(device.managed), "supervised": "True", "mdm_enabled_user": []},
        "filevault": {"filevault_enabled": if device.mobile { Value::Null } else { json!(true) }},
        "automated_device_enrollment": {"auto_enroll_eligible": true, "auto_enrolled": true},
        "kandji_agent": {"agent_installed": spelt(!device.mobile)},
        "hardware_overview": {"model_identifier": "Mac15,3", "serial_number": row["serial_number"], "uuid": device.udid},
        "lost_mode": {"lost_mode_status": row["lost_mode_status"]},
        "tags": row["tags"],
    });
    replace(&mut details, device, |field| field.strip_prefix("details."));
    details
}

fn status(device: &Device, row: &Value) -> Value {
    let last = match device.compliant {
        Some(true) => "success",
        Some(false) => "failed",
        None => "pending",
    };
    json!({
        "device_id": row["device_id"],
        "library_items": [
            {"id": 1, "name": "Browser", "status": "PASS", "type": "automatic-app"},
            {"id": 2, "name": "Wi-Fi", "status": last, "type": "profile"},
            {"id": 3, "name": "Optional", "status": "AVAILABLE", "type": "custom-app"},
        ],
        "parameters": [{"item_id": "p", "name": "Disable root", "status": "REMEDIATED"}],
    })
}

fn prism_row(device: &Device, row: &Value) -> Value {
    let mut prism = json!({
        "device_id": row["device_id"], "serial_number": row["serial_number"], "mdm_enabled": row["mdm_enabled"],
        "device__name": row["device_name"], "device__user_email": device.user.as_ref().map(|user| &user.email),
        "os_version": row["os_version"], "tags": null, "lost_mode_status": null, "blueprint_name": row["blueprint_name"],
        "last_checkin": device.last_seen, "updated_at": device.last_seen.clone().unwrap_or_default(),
    });
    replace(&mut prism, device, |field| field.strip_prefix("prism."));
    prism
}

/// Puts values of [`Device::raw`] at the paths that `of` returns for their names; a dot leads into an object.
fn replace(record: &mut Value, device: &Device, of: impl Fn(&str) -> Option<&str>) {
    for (field, value) in &device.raw {
        let Some(path) = of(field) else { continue };
        let mut place = &mut *record;
        for part in path.split('.') {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = place.as_object_mut().unwrap().entry(part).or_insert(Value::Null);
        }
        *place = value.clone();
    }
}

fn number(request: &Seen, name: &str) -> Option<usize> {
    request.query(name)?.parse().ok()
}
