//! A host of Fleet as a record.

use posture::record::{Compliance, Fact, Field, Fields, Form, Record, User};
use posture::time::UnixTime;
use serde_json::Value;

use crate::lenient::{groups, latest, text, time};

/// The management that makes a host a managed one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ManagedBy {
    /// Fleet's own management, by the word of its server.
    #[default]
    Fleet,
    /// Any management, by the word of the agent on the host.
    Any,
}

/// Fields that a host can have.
pub(super) const FIELDS: Fields = Fields::of(&[
    Field::ProviderId,
    Field::Form,
    Field::Serial,
    Field::Udid,
    Field::Name,
    Field::Platform,
    Field::OsVersion,
    Field::OsBuild,
    Field::Model,
    Field::Managed,
    Field::Ownership,
    Field::Compliance,
    Field::Groups,
    Field::Lost,
    Field::WipePending,
    Field::Encrypted,
    Field::UserId,
    Field::UserName,
    Field::EnrolledAt,
    Field::LastSeen,
    Field::InventoryAt,
]);

/// Fields that the list has only in some versions and editions, or never.
pub(super) const SINGLE: Fields =
    Fields::of(&[Field::Groups, Field::Compliance, Field::Lost, Field::WipePending, Field::Encrypted, Field::UserId, Field::UserName]);

/// The record of a host, from the list or on its own; fields that the list leaves out are unknown.
pub(super) fn record(host: &Value, managed_by: ManagedBy) -> Record {
    let mdm = host.get("mdm");
    let enrolment = mdm.and_then(|mdm| mdm.get("enrollment_status"));
    Record {
        provider_id: host.get("id").map(Value::to_string).unwrap_or_default(),
        form: form(host.get("platform")),
        serial: text(host.get("hardware_serial")),
        udid: text(host.get("uuid")),
        name: text(host.get("display_name").or_else(|| host.get("computer_name"))),
        platform: text(host.get("platform")),
        os_version: version(host),
        os_build: text(host.get("build")),
        model: text(host.get("hardware_model")),
        managed: match managed_by {
            ManagedBy::Fleet => managed_by_fleet(mdm.and_then(|mdm| mdm.get("connected_to_fleet")), enrolment),
            ManagedBy::Any => managed(enrolment),
        },
        ownership: text(enrolment),
        compliance: compliance(host.get("policies")),
        groups: groups(host.get("labels")),
        lost: lock(mdm),
        wipe_pending: wipe(mdm),
        encrypted: encrypted(host.get("disk_encryption_enabled")),
        user: user(host.get("end_users")),
        enrolled_at: moment(host.get("last_enrolled_at")),
        last_seen: seen(host),
        inventory_at: moment(host.get("detail_updated_at")),
        ..Record::default()
    }
}

fn form(platform: Option<&Value>) -> Fact<Form> {
    match platform.and_then(Value::as_str) {
        Some("ios" | "ipados" | "android") => Fact::Value(Form::MobileDevice),
        None | Some("") => Fact::Unknown,
        Some(_) => Fact::Value(Form::Computer),
    }
}

/// Version of the operating system: `macOS 15.4.1` has `15.4.1`, `Windows 11 Pro 23H2 10.0.22631.3447` its last number. The 11
/// alone would count as newer than any version of Windows, so it makes the version unknown.
fn version(host: &Value) -> Fact<String> {
    let Some(system) = host.get("os_version").and_then(Value::as_str) else { return Fact::Unknown };
    let is_version =
        |word: &&str| word.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())) && word.len() <= 64;
    let windows = host.get("platform").and_then(Value::as_str) == Some("windows");
    match system.split_whitespace().rev().find(is_version) {
        Some(version) if !windows || version.split('.').count() >= 3 => Fact::Value(version.to_owned()),
        _ => Fact::Unknown,
    }
}

/// Says whether the host is under any management. Null is no answer: Fleet has not heard of any management, and some hosts have
/// none.
fn managed(enrolment: Option<&Value>) -> Fact<bool> {
    match enrolment.and_then(Value::as_str) {
        Some(status) if status == "On" || status.starts_with("On (") => Fact::Value(true),
        Some("Off" | "Pending") => Fact::Value(false),
        _ => Fact::Unknown,
    }
}

/// Says whether Fleet's own management has the host. The enrolment alone is the agent's word, and anybody with an enroll secret
/// runs an agent; the connection is what Fleet's server knows itself (`server/datastore/mysql/hosts.go`, `hostMDMSelect`).
fn managed_by_fleet(connected: Option<&Value>, enrolment: Option<&Value>) -> Fact<bool> {
    match (connected.and_then(Value::as_bool), managed(enrolment)) {
        (Some(false), _) | (_, Fact::Value(false)) => Fact::Value(false),
        (Some(true), Fact::Value(true)) => Fact::Value(true),
        _ => Fact::Unknown,
    }
}

/// Compliance by the host's policies: a failed one makes it non-compliant; an unanswered one, or no policy at all, leaves it
/// undetermined. A host without policies has null in a list, and an empty list in the answer about it alone.
fn compliance(policies: Option<&Value>) -> Fact<Compliance> {
    let policies = match policies {
        Some(Value::Null) => &[],
        Some(Value::Array(policies)) => policies.as_slice(),
        _ => return Fact::Unknown,
    };
    let responses = policies.iter().map(|policy| policy.get("response").and_then(Value::as_str));
    let (mut failing, mut open) = (false, policies.is_empty());
    for response in responses {
        match response {
            Some("pass") => {}
            Some("fail") => failing = true,
            Some("") => open = true,
            _ => return Fact::Unknown,
        }
    }
    Fact::Value(match (failing, open) {
        (true, _) => Compliance::NonCompliant,
        (false, true) => Compliance::Undetermined,
        (false, false) => Compliance::Compliant,
    })
}

/// State of the device, and the action that is pending; `None` where either cannot be read.
fn state(mdm: Option<&Value>) -> Option<(&str, &str)> {
    let part = |name| mdm.and_then(|mdm| mdm.get(name)).and_then(Value::as_str);
    let (status, pending) = (part("device_status")?, part("pending_action")?);
    let known = ["unlocked", "locked", "wiped"].contains(&status) && ["", "lock", "unlock", "wipe"].contains(&pending);
    known.then_some((status, pending))
}

/// Says whether the host is lost, which in Fleet means locked: a locked phone is in lost mode.
fn lock(mdm: Option<&Value>) -> Fact<bool> {
    state(mdm).map_or(Fact::Unknown, |(status, pending)| Fact::Value(status == "locked" || pending == "lock"))
}

fn wipe(mdm: Option<&Value>) -> Fact<bool> {
    state(mdm).map_or(Fact::Unknown, |(status, pending)| Fact::Value(status == "wiped" || pending == "wipe"))
}

/// Reads disk encryption; null means unknown here, not that there is none.
fn encrypted(value: Option<&Value>) -> Fact<bool> {
    value.and_then(Value::as_bool).map_or(Fact::Unknown, Fact::Value)
}

/// The one user of a host. With several users none is known.
fn user(users: Option<&Value>) -> User {
    match users {
        None => User::default(),
        Some(Value::Null) => nobody(),
        Some(Value::Array(users)) => match users.as_slice() {
            [] => nobody(),
            [one] => User { id: text(one.get("idp_username")), name: text(one.get("idp_full_name")), ..User::default() },
            _ => User::default(),
        },
        Some(_) => User::default(),
    }
}

fn nobody() -> User {
    User { id: Fact::Absent, name: Fact::Absent, ..User::default() }
}

/// Moment when the host was last heard of, the latest of several signs. An agent reports all the time; iOS, iPadOS and Android
/// have none, so their `seen_time` stays at the host's creation, and their answers to the management count.
fn seen(host: &Value) -> Fact<UnixTime> {
    let signs = ["seen_time", "detail_updated_at", "last_mdm_checked_in_at"];
    latest(signs.iter().filter_map(|sign| host.get(*sign)).map(|said| moment(Some(said))))
}

/// Reads a date; Fleet writes the year 1 or 2000 for what has not happened.
fn moment(value: Option<&Value>) -> Fact<UnixTime> {
    let never = |text: &str| text.starts_with("0001-01-01T") || text.starts_with("2000-01-01T00:00:00");
    if value.and_then(Value::as_str).is_some_and(never) { Fact::Absent } else { time(value) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_an_enrolment_that_is_on_is_management() {
        for (status, expected) in [
            (json!("On"), Fact::Value(true)),
            (json!("On (automatic)"), Fact::Value(true)),
            (json!("On (manual)"), Fact::Value(true)),
            (json!("On (personal)"), Fact::Value(true)),
            (json!("Off"), Fact::Value(false)),
            (json!("Pending"), Fact::Value(false)),
            (json!("Onboarding"), Fact::Unknown),
            (json!("on"), Fact::Unknown),
            (json!(""), Fact::Unknown),
            (json!(null), Fact::Unknown),
            (json!(true), Fact::Unknown),
        ] {
            assert_eq!(managed(Some(&status)), expected, "{status}");
        }
    }

    #[test]
    fn finds_the_version_in_the_name_of_a_system() {
        for (platform, system, expected) in [
            ("darwin", "macOS 15.4.1", Some("15.4.1")),
            ("darwin", "macOS 13.5 (a)", Some("13.5")),
            ("ios", "iOS 18.4", Some("18.4")),
            ("ubuntu", "Ubuntu 20.04.3 LTS", Some("20.04.3")),
            ("windows", "Windows 11 Pro 23H2 10.0.22631.3447", Some("10.0.22631.3447")),
            ("windows", "Windows 11 Pro", None),
            ("arch", "Arch Linux rolling", None),
            ("darwin", "", None),
        ] {
            let version = version(&json!({"platform": platform, "os_version": system}));
            assert_eq!(version, expected.map_or(Fact::Unknown, |version| Fact::Value(version.to_owned())), "{system}");
        }
    }

    #[test]
    fn a_policy_without_an_answer_is_no_compliance() {
        let of = |responses: &[Value]| {
            let policies: Vec<Value> = responses.iter().map(|response| json!({"response": response})).collect();
            compliance(Some(&json!(policies)))
        };
        assert_eq!(of(&[json!("pass"), json!("pass")]), Fact::Value(Compliance::Compliant));
        assert_eq!(of(&[json!("pass"), json!("fail"), json!("")]), Fact::Value(Compliance::NonCompliant));
        assert_eq!(of(&[json!("pass"), json!("")]), Fact::Value(Compliance::Undetermined));
        assert_eq!(of(&[]), Fact::Value(Compliance::Undetermined));
        assert_eq!(of(&[json!("pass"), json!("skipped")]), Fact::Unknown);
        assert_eq!(of(&[json!(null)]), Fact::Unknown);
        assert_eq!(compliance(Some(&json!("none"))), Fact::Unknown);
        assert_eq!(compliance(None), Fact::Unknown);
    }

    #[test]
    fn d13i_a_host_without_policies_is_undetermined_in_a_list_as_by_itself() {
        assert_eq!(compliance(Some(&json!(null))), Fact::Value(Compliance::Undetermined));
        assert_eq!(compliance(Some(&json!([]))), Fact::Value(Compliance::Undetermined));
    }

    #[test]
    fn d13e_only_the_servers_word_is_fleets_management() {
        let of = |connected: Value, status: Value| {
            let host = json!({"id": 1, "mdm": {"connected_to_fleet": connected, "enrollment_status": status}});
            (record(&host, ManagedBy::Fleet).managed, record(&host, ManagedBy::Any).managed)
        };
        let (yes, no, unknown) = (Fact::Value(true), Fact::Value(false), Fact::Unknown);
        assert_eq!(of(json!(true), json!("On (automatic)")), (yes.clone(), yes.clone()));
        assert_eq!(of(json!(false), json!("On (automatic)")), (no.clone(), yes.clone()), "another management, or a forged one");
        assert_eq!(of(json!(null), json!("On (manual)")), (unknown.clone(), yes), "a server that does not say it");
        assert_eq!(of(json!(true), json!("Off")), (no.clone(), no.clone()));
        assert_eq!(of(json!(true), json!(null)), (unknown.clone(), unknown.clone()));
        assert_eq!(of(json!(null), json!("Pending")), (no.clone(), no));
        assert_eq!(of(json!("true"), json!("On (manual)")).0, unknown);
    }

    #[test]
    fn d2_the_latest_sign_of_life_counts() {
        let seen = |host: Value| record(&host, ManagedBy::Fleet).last_seen;
        let at = |text| Fact::Value(UnixTime::parse(text).unwrap());
        let phone = json!({
            "platform": "ios", "seen_time": "2026-02-01T00:00:00Z", "detail_updated_at": "2026-11-29T23:00:00Z",
            "last_mdm_checked_in_at": "2026-11-30T01:00:00Z",
        });
        assert_eq!(seen(phone.clone()), at("2026-11-30T01:00:00Z"));
        let mut listed = phone;
        listed.as_object_mut().unwrap().remove("last_mdm_checked_in_at");
        assert_eq!(seen(listed), at("2026-11-29T23:00:00Z"));
        assert_eq!(
            seen(json!({"seen_time": "2026-11-30T02:00:00Z", "detail_updated_at": "2000-01-01T00:00:00Z"})),
            at("2026-11-30T02:00:00Z")
        );
        assert_eq!(seen(json!({"seen_time": null, "detail_updated_at": "0001-01-01T00:00:00Z"})), Fact::Absent);
        assert_eq!(seen(json!({"seen_time": "soon", "detail_updated_at": null})), Fact::Unknown);
        assert_eq!(seen(json!({})), Fact::Unknown);
    }

    #[test]
    fn nothing_is_made_of_states_that_are_new() {
        for (status, pending, lost, wiped) in [
            ("unlocked", "", Fact::Value(false), Fact::Value(false)),
            ("locked", "", Fact::Value(true), Fact::Value(false)),
            ("unlocked", "lock", Fact::Value(true), Fact::Value(false)),
            ("locked", "unlock", Fact::Value(true), Fact::Value(false)),
            ("unlocked", "wipe", Fact::Value(false), Fact::Value(true)),
            ("wiped", "", Fact::Value(false), Fact::Value(true)),
            ("vanished", "", Fact::Unknown, Fact::Unknown),
            ("unlocked", "sing", Fact::Unknown, Fact::Unknown),
        ] {
            let mdm = json!({"device_status": status, "pending_action": pending});
            assert_eq!((lock(Some(&mdm)), wipe(Some(&mdm))), (lost, wiped), "{status} {pending}");
        }
        assert_eq!(lock(None), Fact::Unknown);
    }

    #[test]
    fn what_has_never_happened_has_no_time() {
        assert_eq!(moment(Some(&json!("2000-01-01T00:00:00Z"))), Fact::Absent);
        assert_eq!(moment(Some(&json!("0001-01-01T00:00:00Z"))), Fact::Absent);
        assert!(moment(Some(&json!("2026-11-24T08:00:00Z"))).value().is_some());
        assert_eq!(moment(None), Fact::Unknown);
    }

    #[test]
    fn an_empty_host_is_a_record_of_which_nothing_is_known() {
        assert_eq!(record(&json!({}), ManagedBy::default()).known(), Fields::NONE);
    }
}
