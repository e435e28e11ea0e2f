//! Fleet: `fleetdm/fleet`, `docs/REST API`, sections Hosts and Authentication.
//!
//! Quirks: the identifier of the lookup matches the host name, the UUID and the serial number alike, and the first host that
//! fits is the answer; text compares as MySQL's `utf8mb4_unicode_ci` does; the list searches parts of words; labels and
//! policies stand in the list only where they are asked for; hosts without management have a null enrolment.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Map, Value, json};

use crate::server::{Answer, Seen, Service, decoded};
use crate::{Device, User};

/// Fleet. Its token is `secret`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fleet {
    /// A server from before `populate_labels`: its lists have no labels.
    pub lists_without_labels: bool,
}

impl Service for Fleet {
    fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
        if request.header("authorization") != Some("Bearer secret") {
            return error(401, "Authentication required", "Authentication required");
        }
        let Some(path) = below(&request.path) else { return error(404, "Resource Not Found", "unknown route") };
        if request.method != Method::GET {
            return error(405, "Method Not Allowed", "method");
        }
        let hosts = hosts(devices);
        if let Some(identifier) = path.strip_prefix("/identifier/") {
            let wanted = decoded(identifier);
            let found = hosts
                .iter()
                .find(|host| ignore_filter || ["hostname", "uuid", "hardware_serial"].iter().any(|field| same(&host[*field], &wanted)));
            return found.map_or_else(|| not_found(&wanted), |host| Answer::json(json!({"host": host})));
        }
        let search = request.query("query").filter(|_| !ignore_filter).unwrap_or_default().to_lowercase();
        let matches = |host: &&Value| {
            let fields = ["hostname", "uuid", "hardware_serial", "primary_ip"];
            fields.iter().any(|field| host[*field].as_str().unwrap_or_default().to_lowercase().contains(&search))
        };
        let mut found: Vec<&Value> = hosts.iter().filter(matches).collect();
        match path {
            "/count" => Answer::json(json!({"count": found.len()})),
            "" => {
                if request.query("order_key") == Some("id") {
                    found.sort_by_key(|host| host["id"].as_u64());
                }
                if request.query("order_direction") == Some("desc") {
                    found.reverse();
                }
                let number = |name| request.query(name).and_then(|number| number.parse::<usize>().ok());
                let size = number("per_page").filter(|size| *size > 0).unwrap_or(100);
                let page = found.into_iter().skip(number("page").unwrap_or(0) * size).take(size);
                let hosts: Vec<Value> = page.map(|host| self.listed(host, request)).collect();
                Answer::json(json!({"hosts": hosts}))
            }
            id => {
                let id = id.trim_start_matches('/');
                let number: Option<u64> = id.parse().ok();
                let found = hosts.iter().find(|host| host["id"].as_u64() == number);
                found.map_or_else(|| not_found(id), |host| Answer::json(json!({"host": host})))
            }
        }
    }

    fn asked(&self, request: &Seen) -> Option<String> {
        let identifier = below(&request.path)?.strip_prefix("/identifier/").map(decoded);
        identifier.or_else(|| request.query("query").map(str::to_owned))
    }
}

impl Fleet {
    /// A host as the list shows it: less than the host itself.
    fn listed(&self, host: &Value, request: &Seen) -> Value {
        let mut host = host.clone();
        let map = host.as_object_mut().unwrap();
        for (field, asked) in [("labels", "populate_labels"), ("policies", "populate_policies")] {
            let shown = request.query(asked) == Some("true") && !(field == "labels" && self.lists_without_labels);
            if !shown {
                map.remove(field);
            }
        }
        for field in ["disk_encryption_enabled", "end_users"] {
            map.remove(field);
        }
        if let Some(mdm) = map.get_mut("mdm").and_then(Value::as_object_mut) {
            mdm.remove("device_status");
            mdm.remove("pending_action");
        }
        host
    }
}

/// What follows `/hosts`, in both spellings of the version.
fn below(path: &str) -> Option<&str> {
    path.strip_prefix("/api/v1/fleet/hosts").or_else(|| path.strip_prefix("/api/latest/fleet/hosts"))
}

/// Letters of either case are the same, and spaces at the end do not count.
fn same(stored: &Value, wanted: &str) -> bool {
    let stored = stored.as_str().unwrap_or_default();
    !stored.is_empty() && stored.trim_end_matches(' ').to_lowercase() == wanted.trim_end_matches(' ').to_lowercase()
}

fn not_found(wanted: &str) -> Answer {
    error(404, "Resource Not Found", &format!("host {wanted} was not found in the datastore"))
}

fn error(status: u16, message: &str, reason: &str) -> Answer {
    Answer::status(status, json!({"message": message, "errors": [{"name": "base", "reason": reason}], "uuid": "0"}))
}

/// All hosts, each with an id of its own that does not change when another goes.
fn hosts(devices: &[Device]) -> Vec<Value> {
    let mut taken = BTreeSet::new();
    let number = |device: &Device| {
        let wanted = device.id.parse().unwrap_or_else(|_| number(&device.serial));
        (wanted..).find(|id| taken.insert(*id)).unwrap()
    };
    let numbers: Vec<u64> = devices.iter().map(number).collect();
    devices.iter().zip(numbers).map(|(device, id)| host(device, id)).collect()
}

fn number(text: &str) -> u64 {
    text.bytes().fold(17, |number: u64, byte| (number * 31 + u64::from(byte)) % 999_983)
}

fn host(device: &Device, id: u64) -> Value {
    let platform = if device.mobile { "ios" } else { "darwin" };
    let system = if device.mobile { "iOS" } else { "macOS" };
    let enrolment = if device.managed { "On (automatic)" } else { "Off" };
    let status = if device.lost { "locked" } else { "unlocked" };
    let labels: Vec<Value> = device
        .groups
        .iter()
        .map(|name| json!({"id": number(name), "name": name, "label_type": "regular", "label_membership_type": "dynamic"}))
        .collect();
    let response = match device.compliant {
        Some(true) => "pass",
        Some(false) => "fail",
        None => "",
    };
    let users: Vec<Value> = device.user.iter().map(user).collect();
    let mut host = json!({
        "id": id,
        "created_at": "2026-01-05T05:09:44Z",
        "updated_at": device.last_seen,
        "detail_updated_at": device.last_seen,
        "last_enrolled_at": "2026-01-05T05:09:44Z",
        "seen_time": device.last_seen,
        "hostname": format!("{}.local", device.name.to_lowercase().replace(' ', "-")),
        "computer_name": device.name,
        "display_name": device.name,
        "uuid": device.udid,
        "hardware_serial": device.serial,
        "hardware_model": if device.mobile { "iPhone16,1" } else { "Mac15,3" },
        "platform": platform,
        "os_version": format!("{system} {}", device.os_version),
        "build": "24E263",
        "primary_ip": "192.0.2.7",
        "disk_encryption_enabled": true,
        "end_users": users,
        "labels": labels,
        "policies": [{"id": 1, "name": "Disk encryption", "platform": platform, "response": response, "critical": false}],
        "issues": {"failing_policies_count": u8::from(device.compliant == Some(false)), "total_issues_count": 0},
        "mdm": {
            "enrollment_status": enrolment,
            "name": "Fleet",
            "server_url": "https://fleet.example.org/mdm/apple/mdm",
            "connected_to_fleet": device.managed,
            "device_status": status,
            "pending_action": "",
        },
    });
    merge(host.as_object_mut().unwrap(), &device.raw);
    host
}

fn user(user: &User) -> Value {
    json!({
        "idp_username": user.email,
        "idp_full_name": user.name,
        "idp_groups": [],
        "other_emails": [],
    })
}

/// Puts a device's own fields in place; of an object only those that it names.
fn merge(host: &mut Map<String, Value>, raw: &Map<String, Value>) {
    for (field, value) in raw {
        match (host.get_mut(field), value) {
            (Some(Value::Object(known)), Value::Object(changes)) => known.extend(changes.clone()),
            _ => {
                host.insert(field.clone(), value.clone());
            }
        }
    }
}
