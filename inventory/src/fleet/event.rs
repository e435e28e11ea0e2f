//! Events that Fleet pushes: its automations for failing policies, vulnerabilities and host status, and its activities
//! (`fleetdm/fleet`, `articles/automations.md` and `docs/Contributing/reference/audit-logs.md`).

use serde_json::Value;

use crate::inventory::{Change, NotAnEvent, Subject};
use crate::strict;

/// Reads one event. Its members show which sort it is.
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
    if let Some(data) = event.get("data").filter(|data| data.get("unseen_hosts").is_some()) {
        return silent(data);
    }
    Err(NotAnEvent("neither a policy, a vulnerability, a host status nor an activity"))
}

/// Changes of hosts that were silent for long. Newer servers name the hosts; older ones give only their number.
fn silent(data: &Value) -> Result<Vec<Change>, NotAnEvent> {
    match data.get("host_ids").filter(|ids| !ids.is_null()) {
        Some(Value::Array(ids)) if ids.len() <= MOST => ids
            .iter()
            .map(|host| Ok(Change { device: Subject::ProviderId(id(Some(host)).ok_or(NotAnEvent(UNREADABLE))?), revoking: false }))
            .collect(),
        None if data.get("unseen_hosts").and_then(Value::as_u64) == Some(0) => Ok(Vec::new()),
        None | Some(Value::Array(_)) => Ok(vec![Change { device: Subject::Everything, revoking: false }]),
        Some(_) => Err(NotAnEvent(UNREADABLE)),
    }
}

fn hosts(hosts: Option<&Value>, revoking: bool) -> Result<Vec<Change>, NotAnEvent> {
    let hosts = hosts.and_then(Value::as_array).ok_or(NotAnEvent("it lists no hosts"))?;
    if hosts.len() > MOST {
        return Ok(vec![Change { device: Subject::Everything, revoking }]);
    }
    let ids = hosts.iter().map(|host| id(host.get("id")).ok_or(NotAnEvent("a host has no id")));
    ids.map(|id| Ok(Change { device: Subject::ProviderId(id?), revoking })).collect()
}

/// Changes by an activity. Most activities are about no host, and give no change. One may name its host by id, by serial number,
/// or by both; some servers leave the id out, and a personal device has the id of its enrolment in the place of a serial number.
/// A revoking activity that names no host is about every host.
///
/// # Errors
/// [`NotAnEvent`] where a host is named in an unreadable form: its change would be missed.
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
    let identifier = |name: &str| match said(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.trim().is_empty()).map(|text| Subject::Identifier(text.clone()))),
        Some(_) => Err(NotAnEvent(UNREADABLE)),
    };
    let (serial, enrolment) = (identifier("host_serial")?, identifier("enrollment_id")?);
    // The id of an enrolment need not be the host's own name, so it alone names nobody.
    let nobody = ids.is_empty() && serial.is_none();
    let all = (revoking && nobody).then_some(Subject::Everything);
    let subjects = ids.into_iter().map(Subject::ProviderId).chain(serial).chain(enrolment).chain(all);
    Ok(subjects.map(|device| Change { device, revoking }).collect())
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

/// Bound below which every whole number has an exact `f64`.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Most hosts that one event can name; an event with more counts for all hosts.
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
    fn d13g_a_status_drops_the_hosts_that_it_names_and_no_others() {
        let silent = |data: Value| changes(&json!({"text": "some are silent", "data": data}));
        assert_eq!(silent(json!({"unseen_hosts": 1, "host_ids": [7]})), [(host("7"), false)]);
        assert_eq!(silent(json!({"unseen_hosts": 0, "host_ids": []})), []);
        assert_eq!(silent(json!({"unseen_hosts": 0})), []);
        assert_eq!(silent(json!({"unseen_hosts": 2, "host_ids": null})), [(Subject::Everything, false)]);
        assert_eq!(silent(json!({"unseen_hosts": 20_000, "host_ids": (0..20_000).collect::<Vec<u64>>()})), [(Subject::Everything, false)]);
        for ids in [json!("7"), json!([null]), json!([{"id": 7}])] {
            assert!(parse(json!({"data": {"unseen_hosts": 1, "host_ids": ids}}).to_string().as_bytes()).is_err(), "{ids}");
        }
    }

    #[test]
    fn d13g_an_end_that_names_nobody_is_every_hosts() {
        let gone = |details: Value| changes(&json!({"type": "mdm_unenrolled", "details": details}));
        let everything = (Subject::Everything, true);
        assert_eq!(gone(json!({"host_serial": "C02A", "enrollment_id": null})), [(Subject::Identifier("C02A".to_owned()), true)]);
        assert_eq!(gone(json!({"host_serial": "", "enrollment_id": null})), std::slice::from_ref(&everything));
        assert_eq!(
            gone(json!({"host_serial": "", "enrollment_id": "E-1"})),
            [(Subject::Identifier("E-1".to_owned()), true), everything.clone()]
        );
        assert_eq!(gone(json!({})), [everything]);
        assert_eq!(changes(&json!({"type": "mdm_enrolled", "details": {"host_serial": ""}})), []);
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
