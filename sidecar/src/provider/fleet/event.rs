//! What Fleet pushes: its automations for failing policies, vulnerabilities and host status, and its activities
//! (`fleetdm/fleet`, `articles/automations.md` and `docs/Contributing/reference/audit-logs.md`).

use serde_json::Value;

use crate::provider::inventory::{Change, NotAnEvent, Subject};
use crate::provider::strict;

/// Reads one event. Which of them it is shows in its members.
pub(super) fn parse(body: &[u8]) -> Result<Vec<Change>, NotAnEvent> {
    let event: Value = strict::read(body).map_err(|_| NotAnEvent("not JSON"))?;
    if event.get("policy").is_some_and(Value::is_object) {
        return hosts(event.get("hosts"), true);
    }
    if let Some(vulnerability) = event.get("vulnerability") {
        return hosts(vulnerability.get("hosts_affected"), false);
    }
    if let Some(activity) = event.get("type").and_then(Value::as_str) {
        return self::activity(activity, event.get("details").unwrap_or(&Value::Null));
    }
    let silent = event.get("data").and_then(|data| data.get("unseen_hosts"));
    if silent.is_some() {
        return Ok(vec![Change { device: Subject::Everything, revoking: false }]);
    }
    Err(NotAnEvent("neither a policy, a vulnerability, a host status nor an activity"))
}

fn hosts(hosts: Option<&Value>, revoking: bool) -> Result<Vec<Change>, NotAnEvent> {
    let hosts = hosts.and_then(Value::as_array).ok_or(NotAnEvent("it lists no hosts"))?;
    if hosts.len() > MOST {
        return Ok(vec![Change { device: Subject::Everything, revoking }]);
    }
    let ids = hosts.iter().map(|host| id(host.get("id")).ok_or(NotAnEvent("a host has no id")));
    ids.map(|id| Ok(Change { device: Subject::ProviderId(id?), revoking })).collect()
}

/// Most activities are about no host, and change nothing here. One may name its host by id, by serial number, or by both,
/// and older servers leave the id out.
///
/// # Errors
/// [`NotAnEvent`] where it names a host in a form that cannot be read: nobody would know that one changed.
fn activity(activity: &str, details: &Value) -> Result<Vec<Change>, NotAnEvent> {
    let revoking = ["mdm_unenrolled", "locked_host", "wiped_host", "deleted_host"].contains(&activity);
    let said = |name: &str| details.get(name).filter(|said| !said.is_null());
    let many = match said("host_ids") {
        None => &[],
        Some(Value::Array(many)) => many.as_slice(),
        Some(_) => return Err(NotAnEvent(UNREADABLE)),
    };
    if many.len() > MOST {
        return Ok(vec![Change { device: Subject::Everything, revoking }]);
    }
    let ids = said("host_id").into_iter().chain(many);
    let ids: Vec<String> = ids.map(|host| id(Some(host)).ok_or(NotAnEvent(UNREADABLE))).collect::<Result<_, _>>()?;
    let serial = match said("host_serial") {
        None => None,
        Some(Value::String(serial)) => Some(serial).filter(|serial| !serial.trim().is_empty()),
        Some(_) => return Err(NotAnEvent(UNREADABLE)),
    };
    let serial = serial.map(|serial| Subject::Identifier(serial.clone()));
    Ok(ids.into_iter().map(Subject::ProviderId).chain(serial).map(|device| Change { device, revoking }).collect())
}

fn id(value: Option<&Value>) -> Option<String> {
    let value = value?;
    let whole = |number: f64| (number.fract() == 0.0 && (0.0..EXACT).contains(&number)).then(|| format!("{number:.0}"));
    match value {
        Value::String(text) => text.trim().parse::<u64>().ok().map(|id| id.to_string()),
        Value::Number(number) => number.as_u64().map(|id| id.to_string()).or_else(|| whole(number.as_f64()?)),
        _ => None,
    }
}

const UNREADABLE: &str = "it names a host in a form that cannot be read";

/// Below it every whole number has a form with a fraction that is exactly it.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Hosts that one event names; beyond that it is taken to mean all of them.
const MOST: usize = 10_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changes(event: &Value) -> Vec<(Subject, bool)> {
        let changes = parse(event.to_string().as_bytes()).unwrap();
        changes.into_iter().map(|change| (change.device, change.revoking)).collect()
    }

    fn host(id: &str) -> Subject {
        Subject::ProviderId(id.to_owned())
    }

    #[test]
    fn reads_each_kind_of_event() {
        let policy = json!({"timestamp": "x", "policy": {"id": 1}, "hosts": [{"id": 1, "hostname": "a"}, {"id": 2}]});
        assert_eq!(changes(&policy), [(host("1"), true), (host("2"), true)]);
        let vulnerability = json!({"vulnerability": {"cve": "CVE-1", "hosts_affected": [{"id": 3}]}});
        assert_eq!(changes(&vulnerability), [(host("3"), false)]);
        let silent = json!({"text": "some are silent", "data": {"unseen_hosts": 1, "total_hosts": 2, "days_unseen": 3}});
        assert_eq!(changes(&silent), [(Subject::Everything, false)]);
    }

    #[test]
    fn reads_the_host_of_an_activity_by_each_of_its_names() {
        let gone = json!({"type": "mdm_unenrolled", "details": {"host_id": 42, "host_serial": "C02A", "enrollment_id": null}});
        assert_eq!(changes(&gone), [(host("42"), true), (Subject::Identifier("C02A".to_owned()), true)]);
        let here = json!({"type": "mdm_enrolled", "details": {"host_serial": "C02A"}});
        assert_eq!(changes(&here), [(Subject::Identifier("C02A".to_owned()), false)]);
        let wiped = json!({"type": "wiped_host", "details": {"host_id": 1}});
        assert_eq!(changes(&wiped), [(host("1"), true)]);
        let moved = json!({"type": "transferred_hosts", "details": {"host_ids": [1, 2]}});
        assert_eq!(changes(&moved), [(host("1"), false), (host("2"), false)]);
        let other = json!({"type": "user_logged_in", "details": {"public_ip": "192.0.2.1", "host_serial": ""}});
        assert_eq!(changes(&other), []);
        assert_eq!(changes(&json!({"type": "user_logged_in"})), []);
    }

    #[test]
    fn an_id_counts_in_every_form_and_one_that_cannot_be_read_is_refused() {
        for id in [json!("7"), json!(7.0), json!(" 7 ")] {
            assert_eq!(changes(&json!({"type": "wiped_host", "details": {"host_id": id}})), [(host("7"), true)]);
            assert_eq!(changes(&json!({"type": "wiped_host", "details": {"host_ids": [id]}})), [(host("7"), true)]);
            assert_eq!(changes(&json!({"policy": {}, "hosts": [{"id": id}]})), [(host("7"), true)]);
        }
        assert_eq!(changes(&json!({"type": "wiped_host", "details": {"host_id": null, "host_serial": "C02A"}})).len(), 1);
        for details in [
            json!({"host_id": {"id": 7}}),
            json!({"host_id": 7.5}),
            json!({"host_id": "seven"}),
            json!({"host_ids": 7}),
            json!({"host_ids": [null]}),
            json!({"host_serial": ["C02A"]}),
        ] {
            assert!(parse(json!({"type": "wiped_host", "details": details}).to_string().as_bytes()).is_err(), "{details}");
        }
    }

    #[test]
    fn an_event_of_very_many_hosts_means_all() {
        let many: Vec<Value> = (0..=MOST).map(|id| json!({"id": id})).collect();
        assert_eq!(changes(&json!({"policy": {}, "hosts": many})), [(Subject::Everything, true)]);
    }

    #[test]
    fn refuses_what_is_no_event() {
        for body in ["", "{", "[]", "{}", "null", r#"{"policy": {}}"#, r#"{"policy": {}, "hosts": [{"id": {}}]}"#, r#"{"data": {}}"#] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
