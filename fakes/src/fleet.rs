//! Fleet, after `docs/REST API` of `fleetdm/fleet`, sections Hosts and Authentication, and after its source, by name where a
//! rule is from there.
//!
//! Quirks: the look-up by identifier is case-sensitive, covers the hosts of all teams, and answers with the first host that
//! fits; the list searches for parts of words and ignores case; labels, policies and device states are in the list only if
//! they are asked for; the encryption is only in the host by its id; no policies are null in the list; hosts without
//! management have a null enrolment; a phone's `seen_time` is the time of its creation.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Map, Value, json};

use crate::server::{Answer, Seen, Service, decoded};
use crate::{Device, User};

/// A Fleet server, whose token is `secret`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fleet {
    /// Whether the server is older than `populate_labels`, so that its lists have no labels.
    pub lists_without_labels: bool,
    /// Whether the edition has no device states in lists: a request for them is told to pay.
    pub free: bool,
    /// Whether the server is of late 2026, so that its lists have the encryption.
    pub lists_encryption: bool,
    /// Team of the token's user; `None` for a global user. A device's `team_id` in [`Device::raw`] is its team.
    pub team: Option<u64>,
}

impl Service for Fleet {
    fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
        if request.header("authorization") != Some("Bearer secret") {
            return error(401, "Authentication required", "Authentication required");
        }
        if request.method != Method::GET {
            return error(405, "Method Not Allowed", "method");
        }
        if below(&request.path, "/me") == Some("") {
            return self.me();
        }
        let Some(path) = below(&request.path, "/hosts") else { return error(404, "Resource Not Found", "unknown route") };
        let hosts = hosts(devices);
        if let Some(identifier) = path.strip_prefix("/identifier/") {
            let wanted = decoded(identifier);
            // `HostByIdentifier`: the node key is a binary column, which makes the whole comparison binary.
            let fields = ["hostname", "osquery_host_id", "node_key", "uuid", "hardware_serial"];
            let fits = |host: &&Value| ignore_filter || fields.iter().any(|field| host[*field].as_str() == Some(&wanted));
            // Fleet searches first, and then checks whether the user may see the host that it found.
            return match hosts.iter().find(fits) {
                None => not_found(&wanted),
                Some(host) if !self.shows(host) => forbidden(),
                Some(host) => Answer::json(json!({"host": single(host, false)})),
            };
        }
        let search = request.query("query").filter(|_| !ignore_filter).unwrap_or_default().to_lowercase();
        let matches = |host: &&Value| self.shows(host) && is_found(host, &search);
        let mut found: Vec<&Value> = hosts.iter().filter(matches).collect();
        match path {
            "/count" => Answer::json(json!({"count": found.len()})),
            "" => {
                if self.free && request.query("include_device_status").is_some() {
                    return error(402, "Requires Fleet Premium license", "Requires Fleet Premium license");
                }
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
                match hosts.iter().find(|host| host["id"].as_u64() == number) {
                    None => not_found(id),
                    Some(host) if !self.shows(host) => forbidden(),
                    Some(host) => Answer::json(json!({"host": single(host, true)})),
                }
            }
        }
    }

    fn asked(&self, request: &Seen) -> Option<String> {
        let identifier = below(&request.path, "/hosts")?.strip_prefix("/identifier/").map(decoded);
        identifier.or_else(|| request.query("query").map(str::to_owned))
    }
}

impl Fleet {
    /// The user of the token (`GET /api/v1/fleet/me`).
    fn me(&self) -> Answer {
        let teams: Vec<Value> =
            self.team.iter().map(|team| json!({"id": team, "name": format!("Team {team}"), "role": "observer"})).collect();
        let role = if self.team.is_some() { Value::Null } else { json!("observer") };
        Answer::json(json!({"user": {"id": 1, "name": "Stepward", "api_only": true, "global_role": role, "teams": teams}}))
    }

    /// Whether the token's user may see a host.
    fn shows(&self, host: &Value) -> bool {
        self.team.is_none_or(|team| host["team_id"].as_u64() == Some(team))
    }

    /// A host in the list, which has fewer fields than the host alone.
    fn listed(&self, host: &Value, request: &Seen) -> Value {
        let mut host = single(host, self.lists_encryption);
        let map = host.as_object_mut().unwrap();
        let asked = |name: &str| request.query(name) == Some("true");
        if !asked("populate_labels") || self.lists_without_labels {
            map.remove("labels");
        }
        if !asked("populate_policies") {
            map.remove("policies");
        } else if map.get("policies").is_some_and(|policies| *policies == json!([])) {
            map.insert("policies".to_owned(), Value::Null);
        }
        // Only `HostDetail` has these.
        for field in ["end_users", "last_mdm_checked_in_at", "last_mdm_enrolled_at"] {
            map.remove(field);
        }
        if let Some(mdm) = map.get_mut("mdm").and_then(Value::as_object_mut).filter(|_| !asked("include_device_status")) {
            mdm.remove("device_status");
            mdm.remove("pending_action");
        }
        host
    }
}

/// A host alone. Its encryption is only in the look-up by id, and is left out if it is not known (`Host` in
/// `server/fleet/hosts.go`); the credentials of its agent are never there.
fn single(host: &Value, encryption: bool) -> Value {
    let mut host = host.clone();
    let map = host.as_object_mut().unwrap();
    if !encryption || map.get("disk_encryption_enabled").is_some_and(Value::is_null) {
        map.remove("disk_encryption_enabled");
    }
    for field in ["osquery_host_id", "node_key"] {
        map.remove(field);
    }
    host
}

/// Whether the list's search finds a host: by a part of one of these fields, or by the mail address of a user if the text
/// looks like one (`hostSearchColumns`, `hostSearchLike`).
fn is_found(host: &Value, search: &str) -> bool {
    let fields = ["hostname", "computer_name", "display_name", "uuid", "hardware_serial", "primary_ip"];
    let users = host["end_users"].as_array().filter(|_| search.contains('@') && !search.contains(' '));
    let texts = fields.iter().map(|field| &host[*field]).chain(users.into_iter().flatten().map(|user| &user["idp_username"]));
    texts.filter_map(Value::as_str).any(|text| text.to_lowercase().contains(search))
}

/// The rest of a path after a route, in both spellings of the version.
fn below<'p>(path: &'p str, route: &str) -> Option<&'p str> {
    path.strip_prefix("/api/v1/fleet").or_else(|| path.strip_prefix("/api/latest/fleet"))?.strip_prefix(route)
}

fn forbidden() -> Answer {
    error(403, "forbidden", "forbidden")
}

fn not_found(wanted: &str) -> Answer {
    error(404, "Resource Not Found", &format!("host {wanted} was not found in the datastore"))
}

fn error(status: u16, message: &str, reason: &str) -> Answer {
    Answer::status(status, json!({"message": message, "errors": [{"name": "base", "reason": reason}], "uuid": "0"}))
}

/// All hosts, each with an id that does not change when another host is removed.
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
    // A phone has no agent that could be seen, so this is the time of its creation.
    let seen = if device.mobile { device.last_seen.as_ref().map(|_| CREATED.to_owned()) } else { device.last_seen.clone() };
    let mut host = json!({
        "id": id,
        "created_at": CREATED,
        "updated_at": device.last_seen,
        "detail_updated_at": device.last_seen,
        "last_enrolled_at": CREATED,
        "last_mdm_enrolled_at": device.managed.then_some(CREATED),
        "last_mdm_checked_in_at": device.last_seen.as_ref().filter(|_| device.managed),
        "seen_time": seen,
        "osquery_host_id": format!("osquery-{id}"),
        "node_key": format!("node-{id}"),
        "team_id": null,
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
            // Fleet's own server knows this, whatever the agent says.
            "connected_to_fleet": device.managed,
            "device_status": status,
            "pending_action": "",
        },
    });
    merge(host.as_object_mut().unwrap(), &device.raw);
    host
}

/// Time of creation of every host.
const CREATED: &str = "2026-01-05T05:09:44Z";

fn user(user: &User) -> Value {
    json!({
        "idp_username": user.email,
        "idp_full_name": user.name,
        "idp_groups": [],
        "other_emails": [],
    })
}

/// Puts a device's own fields in place; an object replaces only the members that it names.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(fleet: Fleet, devices: &[Device], path: &str, query: &[(&str, &str)]) -> Answer {
        let query = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let headers = [(http::header::AUTHORIZATION, http::HeaderValue::from_static("Bearer secret"))].into_iter().collect();
        let path = format!("/api/v1/fleet{path}");
        fleet.answer(&Seen { method: Method::GET, path, query, headers, body: bytes::Bytes::new() }, devices, false)
    }

    #[test]
    fn d13k_the_search_and_the_look_up_know_all_that_fleets_know() {
        let device = Device { name: "Ada's Mac".to_owned(), udid: "AB-1".to_owned(), ..Device::computer("C02A") }
            .with("display_name", json!("Shown"))
            .with("osquery_host_id", json!("osquery-7"));
        let devices = [device];
        let search = |text: &str| ask(Fleet::default(), &devices, "/hosts", &[("query", text)]).body["hosts"].as_array().unwrap().len();
        for text in ["c02a", "ada's", "shown", "b-1", "192.0.2", "ada@example"] {
            assert_eq!(search(text), 1, "{text}");
        }
        assert_eq!((search("osquery-7"), search("lovelace")), (0, 0));
        let look_up = |text: &str| ask(Fleet::default(), &devices, &format!("/hosts/identifier/{text}"), &[]).status;
        for (text, status) in [("C02A", 200), ("c02a", 404), ("AB-1", 200), ("osquery-7", 200), ("ada@example.org", 404)] {
            assert_eq!(look_up(text), status, "{text}");
        }
    }

    #[test]
    fn d13b_the_look_up_is_over_all_teams_and_the_list_over_those_of_the_user() {
        let devices = [Device::computer("C02A").with("team_id", json!(2))];
        let user = Fleet { team: Some(1), ..Fleet::default() };
        assert_eq!(ask(user, &devices, "/hosts/identifier/C02A", &[]).status, 403);
        assert_eq!(ask(user, &devices, "/hosts", &[]).body, json!({"hosts": []}));
        assert_eq!(ask(user, &devices, "/hosts/count", &[]).body, json!({"count": 0}));
    }
}
