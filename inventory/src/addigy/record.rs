//! Addigy's facts about a device as a [`Record`].

use std::collections::BTreeMap;

use posture::identity::IdentifierKind;
use posture::record::{Alias, Compliance, Fact, Field, Fields, Form, Group, Record, User};
use posture::time::UnixTime;
use serde_json::Value;

use crate::answer::Unavailable;
use crate::lenient;

/// Each field that a record can hold, with the facts that it is made of.
const SOURCES: &[(Field, &[&str])] = &[
    (Field::ProviderId, &[]),
    (Field::Serial, &["serial_number"]),
    (Field::Udid, &["udid", "mac_uuid"]),
    (Field::Name, &["device_name"]),
    (Field::Form, &["os_platform"]),
    (Field::Platform, &["os_platform"]),
    (Field::OsVersion, &["os_version"]),
    (Field::OsBuild, &["build_version"]),
    (Field::Model, &["device_model_name"]),
    (Field::Managed, &["has_mdm"]),
    (Field::Supervised, &["is_supervised"]),
    (Field::Ownership, &["is_user_enrollment", "enrolled_via_dep"]),
    (Field::Compliance, &["is_compliant"]),
    (Field::Groups, &["policy_ids", "policy_id"]),
    (Field::Lost, &["is_mdm_lost_mode_enabled"]),
    (Field::Compromised, &["system_integrity_protection_enabled"]),
    (Field::Encrypted, &["filevault_enabled"]),
    (Field::UserId, &["current_user"]),
    (Field::UserEmail, &["identity_users"]),
    (Field::EnrolledAt, &["registration_date"]),
    (Field::LastSeen, &["last_online", "mdm_last_connected"]),
    (Field::InventoryAt, &[]),
];

/// Fields that a record can hold.
pub(super) const FIELDS: Fields = Fields::of(&[
    Field::ProviderId,
    Field::Serial,
    Field::Udid,
    Field::Name,
    Field::Form,
    Field::Platform,
    Field::OsVersion,
    Field::OsBuild,
    Field::Model,
    Field::Managed,
    Field::Supervised,
    Field::Ownership,
    Field::Compliance,
    Field::Groups,
    Field::Lost,
    Field::Compromised,
    Field::Encrypted,
    Field::UserId,
    Field::UserEmail,
    Field::EnrolledAt,
    Field::LastSeen,
    Field::InventoryAt,
]);

/// Names of the facts to ask for: Addigy sends few others. The identifiers are always among them, since a device can be locked by
/// each.
pub(super) fn facts(need: Fields) -> Vec<&'static str> {
    let need = need.union(Fields::of(&[Field::Serial, Field::Udid, Field::Name]));
    let mut facts: Vec<_> =
        SOURCES.iter().filter(|(field, _)| need.contains(*field)).flat_map(|(_, facts)| facts.iter().copied()).collect();
    facts.sort_unstable();
    facts.dedup();
    facts
}

/// Addigy's id of a device, that of its agent, in either spelling of the member.
pub(super) fn id(row: &Value) -> Option<&str> {
    let id = row.get("agentid").or_else(|| row.get("agent_id"))?.as_str()?.trim();
    (!id.is_empty() && id.len() <= 128).then_some(id)
}

/// The serial number of a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Serial {
    /// The row has this serial number.
    Text(String),
    /// The row has no serial number.
    None,
    /// The row may have a serial number that could not be collected or read.
    Unreadable,
}

pub(super) fn serial(row: &Value) -> Serial {
    let Some(fact) = row.get("facts").and_then(|facts| facts.get("serial_number")) else { return Serial::Unreadable };
    if failed(fact) {
        return Serial::Unreadable;
    }
    match lenient::text(fact.get("value")) {
        Fact::Value(serial) => Serial::Text(serial),
        Fact::Absent => Serial::None,
        Fact::Unknown => Serial::Unreadable,
    }
}

/// A row as a record.
pub(super) fn of_row(row: &Value) -> Record {
    let facts = Facts(row.get("facts"));
    let platform = facts.text("os_platform");
    let udid = facts.text("udid");
    let hardware = facts.text("mac_uuid");
    Record {
        provider_id: id(row).unwrap_or_default().to_owned(),
        form: match platform.value().map(|platform| platform.to_ascii_lowercase()).as_deref() {
            Some("macos" | "mac os x" | "darwin") => Fact::Value(Form::Computer),
            Some("ios" | "ipados" | "tvos" | "visionos") => Fact::Value(Form::MobileDevice),
            _ => Fact::Unknown,
        },
        serial: facts.text("serial_number"),
        // Apple's unique device identifier of a Mac is the UUID of its hardware.
        aliases: hardware
            .value()
            .filter(|hardware| udid.value() != Some(*hardware))
            .map(|hardware| Alias::of(IdentifierKind::Udid, hardware))
            .into_iter()
            .collect(),
        udid,
        name: facts.text("device_name"),
        platform,
        os_version: facts.text("os_version"),
        os_build: facts.text("build_version"),
        model: facts.text("device_model_name"),
        managed: facts.flag("has_mdm"),
        supervised: facts.flag("is_supervised"),
        ownership: ownership(&facts),
        compliance: facts.flag("is_compliant").map(|compliant| if compliant { Compliance::Compliant } else { Compliance::NonCompliant }),
        groups: groups(&facts),
        lost: facts.flag("is_mdm_lost_mode_enabled"),
        compromised: facts.flag("system_integrity_protection_enabled").map(|enabled| !enabled),
        encrypted: facts.flag("filevault_enabled"),
        user: User { id: facts.text("current_user"), email: email(&facts), ..User::default() },
        enrolled_at: facts.time("registration_date"),
        last_seen: lenient::latest([facts.time("last_online"), facts.time("mdm_last_connected")]),
        inventory_at: lenient::time(row.get("audit_date")),
        ..Record::default()
    }
}

/// Names of policies by id, from a bare array or one in `items`.
pub(super) fn policies(answer: Value) -> Result<BTreeMap<String, String>, Unavailable> {
    if lenient::fails(&answer) {
        return Err(Unavailable::Protocol);
    }
    let policies = match answer {
        Value::Array(policies) => policies,
        Value::Null => Vec::new(),
        Value::Object(mut fields) => match fields.remove("items") {
            Some(Value::Array(policies)) => policies,
            Some(Value::Null) => Vec::new(),
            _ => return Err(Unavailable::Protocol),
        },
        _ => return Err(Unavailable::Protocol),
    };
    let text = |policy: &Value, name: &str| lenient::text(policy.get(name)).value().cloned();
    let named = |policy: &Value| Some((text(policy, "policyId").or_else(|| text(policy, "policy_id"))?, text(policy, "name")?));
    let mut names = BTreeMap::new();
    for (id, name) in policies.iter().filter_map(named) {
        // Two names for one policy contradict each other.
        if names.insert(id, name.clone()).is_some_and(|before| before != name) {
            return Err(Unavailable::Protocol);
        }
    }
    Ok(names)
}

/// The facts of a row. A fact that is missing, null, or could not be collected is unknown.
struct Facts<'a>(Option<&'a Value>);

impl Facts<'_> {
    fn value(&self, name: &str) -> Option<&Value> {
        let fact = self.0?.get(name)?;
        fact.get("value").filter(|value| !failed(fact) && !value.is_null())
    }

    fn text(&self, name: &str) -> Fact<String> {
        lenient::text(self.value(name))
    }

    fn time(&self, name: &str) -> Fact<UnixTime> {
        lenient::time(self.value(name))
    }

    fn flag(&self, name: &str) -> Fact<bool> {
        lenient::flag(self.value(name)).value().map_or(Fact::Unknown, |flag| Fact::Value(*flag))
    }
}

/// Returns whether a fact could not be collected; its value then counts for nothing.
fn failed(fact: &Value) -> bool {
    match fact.get("error_msg") {
        None | Some(Value::Null) => false,
        Some(Value::String(message)) => !message.trim().is_empty(),
        Some(_) => true,
    }
}

fn ownership(facts: &Facts<'_>) -> Fact<String> {
    match (facts.flag("is_user_enrollment"), facts.flag("enrolled_via_dep")) {
        (Fact::Value(true), _) => Fact::Value("user_enrollment".to_owned()),
        (_, Fact::Value(true)) => Fact::Value("automated_device_enrollment".to_owned()),
        (Fact::Value(false), Fact::Value(false)) => Fact::Value("manual".to_owned()),
        _ => Fact::Unknown,
    }
}

/// Policies of a device by id, since names cost a request. Without the whole list the groups are unknown.
fn groups(facts: &Facts<'_>) -> Fact<Vec<Group>> {
    let ids: Option<Vec<String>> =
        facts.value("policy_ids").and_then(Value::as_array).filter(|ids| ids.len() <= MOST_GROUPS).and_then(|ids| {
            let id = |id: &Value| id.as_str().map(|id| id.trim().to_owned());
            ids.iter().map(id).collect()
        });
    let Some(mut ids) = ids else { return Fact::Unknown };
    ids.extend(facts.text("policy_id").value().cloned());
    let mut groups: Vec<Group> = Vec::with_capacity(ids.len());
    for id in ids {
        if !id.is_empty() && groups.iter().all(|group| group.id != id) {
            groups.push(Group { id, name: String::new() });
        }
    }
    Fact::Value(groups)
}

/// The mail address of the one person whom Addigy Identity knows on the device.
fn email(facts: &Facts<'_>) -> Fact<String> {
    match facts.value("identity_users").and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => Fact::Absent,
        Some([Value::String(email)]) if email.contains('@') => Fact::text(Some(email)),
        _ => Fact::Unknown,
    }
}

/// Most policies of one device.
const MOST_GROUPS: usize = 1_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(fact: &Value) -> Value {
        json!({"agentid": "a", "facts": {"has_mdm": fact, "serial_number": fact, "is_compliant": fact}})
    }

    #[test]
    fn the_fields_are_those_that_have_a_source() {
        assert_eq!(SOURCES.iter().map(|(field, _)| *field).collect::<Fields>(), FIELDS);
    }

    #[test]
    fn asks_for_the_facts_of_the_fields_and_for_each_once() {
        assert_eq!(facts(Fields::NONE), ["device_name", "mac_uuid", "serial_number", "udid"]);
        assert!(facts(FIELDS).contains(&"os_platform"));
        assert!(facts(Fields::of(&[Field::Platform, Field::Form])).iter().filter(|fact| **fact == "os_platform").count() == 1);
    }

    #[test]
    fn a_fact_that_failed_is_unknown_and_never_false() {
        for (fact, expected) in [
            (json!({"value": true, "error_msg": "", "type": "boolean"}), Fact::Value(true)),
            (json!({"value": false, "error_msg": null}), Fact::Value(false)),
            (json!({"value": "True"}), Fact::Value(true)),
            (json!({"value": "False"}), Fact::Value(false)),
            (json!({"value": null, "error_msg": "not collected"}), Fact::Unknown),
            (json!({"value": false, "error_msg": "not collected"}), Fact::Unknown),
            (json!({"value": true, "error_msg": {"code": 1}}), Fact::Unknown),
            (json!({"value": null, "error_msg": ""}), Fact::Unknown),
            (json!({"value": "", "error_msg": ""}), Fact::Unknown),
            (json!({"value": "perhaps"}), Fact::Unknown),
            (json!({"value": [true]}), Fact::Unknown),
            (json!({}), Fact::Unknown),
            (json!(true), Fact::Unknown),
            (json!(null), Fact::Unknown),
        ] {
            let record = of_row(&row(&fact));
            assert_eq!(record.managed, expected, "{fact}");
            assert_eq!(record.compliance.is_known(), expected.is_known(), "{fact}");
        }
    }

    #[test]
    fn a_serial_number_that_failed_may_be_any() {
        for (fact, expected) in [
            (json!({"value": "C02", "error_msg": ""}), Serial::Text("C02".to_owned())),
            (json!({"value": "", "error_msg": ""}), Serial::None),
            (json!({"value": null, "error_msg": ""}), Serial::None),
            (json!({"value": null, "error_msg": "timed out"}), Serial::Unreadable),
            (json!({"value": "C02", "error_msg": "timed out"}), Serial::Unreadable),
            (json!({"value": ["C02"]}), Serial::Unreadable),
        ] {
            assert_eq!(serial(&row(&fact)), expected, "{fact}");
        }
        assert_eq!(serial(&json!({"agentid": "a", "facts": null})), Serial::Unreadable);
    }

    #[test]
    fn a_group_that_cannot_be_read_makes_all_unknown() {
        let of = |ids: Value, id: Value| of_row(&json!({"facts": {"policy_ids": {"value": ids}, "policy_id": {"value": id}}})).groups;
        let group = |id: &str| Group { id: id.to_owned(), name: String::new() };
        assert_eq!(of(json!(["a", "b", "a"]), json!("b")), Fact::Value(vec![group("a"), group("b")]));
        assert_eq!(of(json!([]), json!("")), Fact::Value(vec![]));
        assert_eq!(of(json!(["a"]), json!("c")), Fact::Value(vec![group("a"), group("c")]));
        assert_eq!(of(json!(["a", 7]), json!("a")), Fact::Unknown);
        assert_eq!(of(json!(null), json!("a")), Fact::Unknown);
        assert_eq!(of(json!("a"), json!("a")), Fact::Unknown);
    }

    #[test]
    fn the_later_sign_of_life_counts() {
        let of = |online: Value, connected: Value| {
            of_row(&json!({"facts": {"last_online": {"value": online}, "mdm_last_connected": {"value": connected}}})).last_seen
        };
        let at = |text| Fact::Value(UnixTime::parse(text).unwrap());
        assert_eq!(of(json!("2024-01-01T00:00:00Z"), json!("2026-01-01T00:00:00.1234567Z")), at("2026-01-01T00:00:00.1234567Z"));
        assert_eq!(of(json!("2024-01-01T00:00:00Z"), json!(null)), at("2024-01-01T00:00:00Z"));
        assert_eq!(of(json!(null), json!("soon")), Fact::Unknown);
        assert_eq!(of(json!("0001-01-01T00:00:00Z"), json!(null)), Fact::Unknown);
    }
}
