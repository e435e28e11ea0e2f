//! Kandji's answers about a device as a [`Record`].

use posture::record::{Compliance, Fact, Field, Fields, Form, Group, Record, User};
use serde_json::Value;

use crate::lenient;

/// Fields that a row of the list has.
pub(super) const ROW: Fields = Fields::of(&[
    Field::ProviderId,
    Field::Form,
    Field::Serial,
    Field::Name,
    Field::Platform,
    Field::OsVersion,
    Field::OsBuild,
    Field::Model,
    Field::Managed,
    Field::Groups,
    Field::Lost,
    Field::UserId,
    Field::UserName,
    Field::UserEmail,
    Field::UserActive,
    Field::EnrolledAt,
    Field::LastSeen,
]);

/// Fields that need the details of a device.
pub(super) const DETAILS: Fields = Fields::of(&[Field::Udid, Field::Supervised, Field::Ownership, Field::Encrypted]);

/// Fields that need the directory of people.
pub(super) const PERSON: Fields = Fields::of(&[Field::UserDepartment, Field::UserTitle]);

/// Fields that need the states of library items and parameters.
pub(super) const STATUS: Fields = Fields::of(&[Field::Compliance]);

/// Kandji's id of a device: letters, digits, dashes and underscores, so that it can stand in a path as it is.
pub(super) fn id(row: &Value) -> Option<&str> {
    let id = row.get("device_id")?.as_str()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (!id.is_empty() && id.len() <= 64 && id.bytes().all(plain)).then_some(id)
}

/// Returns whether Kandji says outright that the device was removed.
pub(super) fn is_removed(row: &Value) -> bool {
    lenient::flag(row.get("is_removed")) == Fact::Value(true)
}

/// A row of the list as a record.
pub(super) fn of_row(row: &Value) -> Record {
    let text = |name| lenient::text(row.get(name));
    let platform = text("platform");
    let enabled = flag(row.get("mdm_enabled"));
    let removed = flag(row.get("is_removed"));
    Record {
        provider_id: id(row).unwrap_or_default().to_owned(),
        form: match platform.value().map(String::as_str) {
            Some("Mac") => Fact::Value(Form::Computer),
            Some("iPhone" | "iPad" | "AppleTV") => Fact::Value(Form::MobileDevice),
            _ => Fact::Unknown,
        },
        serial: text("serial_number"),
        name: text("device_name"),
        platform,
        os_version: text("os_version"),
        os_build: text("supplemental_build_version"),
        model: text("model"),
        managed: match (enabled, removed) {
            (Some(false), _) | (_, Some(true)) => Fact::Value(false),
            (Some(true), Some(false)) => Fact::Value(true),
            _ => Fact::Unknown,
        },
        groups: groups(row),
        lost: match row.get("lost_mode_status").and_then(Value::as_str).map(str::trim) {
            Some("") => Fact::Value(false),
            Some(status) if status.eq_ignore_ascii_case("enabled") => Fact::Value(true),
            // No description lists the other states, such as one in which lost mode is about to be switched on.
            _ => Fact::Unknown,
        },
        user: user(row.get("user")),
        enrolled_at: lenient::time(row.get("last_enrollment")),
        last_seen: lenient::time(row.get("last_check_in")),
        ..Record::default()
    }
}

/// Adds the facts in the details of a device.
pub(super) fn add_details(record: &mut Record, details: &Value) {
    let at = |section: &str, field: &str| details.get(section).and_then(|section| section.get(field));
    let uuid = at("hardware_overview", "uuid").or_else(|| at("hardware_overview", "udid"));
    record.udid = lenient::text(uuid);
    record.supervised = known(flag(at("mdm", "supervised")));
    record.encrypted = known(flag(at("filevault", "filevault_enabled")));
    record.ownership = match flag(at("automated_device_enrollment", "auto_enrolled")) {
        Some(true) => Fact::Value("automated_device_enrollment".to_owned()),
        Some(false) => Fact::Value("manual".to_owned()),
        None => Fact::Unknown,
    };
}

/// The verdict of the states of library items and parameters: one that failed is enough, and so is one that is undecided.
pub(super) fn compliance(status: &Value) -> Fact<Compliance> {
    let list = |name| status.get(name).and_then(Value::as_array);
    let (Some(items), Some(parameters)) = (list("library_items"), list("parameters")) else { return Fact::Unknown };
    let mut verdict = None;
    for entry in items.iter().chain(parameters) {
        let state = entry.get("status").and_then(Value::as_str).unwrap_or_default().to_ascii_uppercase();
        match state.as_str() {
            "PASS" | "SUCCESS" | "REMEDIATED" => verdict = verdict.or(Some(Compliance::Compliant)),
            // Items in these states do not apply to the device.
            "AVAILABLE" | "EXCLUDED" | "INCOMPATIBLE" => {}
            "ERROR" | "FAILED" => return Fact::Value(Compliance::NonCompliant),
            // Other states are undecided: WARNING, a muted alert, and words that are new.
            _ => verdict = Some(Compliance::Undetermined),
        }
    }
    Fact::Value(verdict.unwrap_or(Compliance::Undetermined))
}

/// Groups: the blueprint and the tags. If either is unreadable, the groups are unknown.
fn groups(row: &Value) -> Fact<Vec<Group>> {
    let mut groups = match lenient::groups(row.get("tags")) {
        Fact::Value(tags) => tags,
        Fact::Absent => Vec::new(),
        Fact::Unknown => return Fact::Unknown,
    };
    let (id, name) = (lenient::text(row.get("blueprint_id")), lenient::text(row.get("blueprint_name")));
    if !id.is_known() || !name.is_known() {
        return Fact::Unknown;
    }
    let part = |fact: Fact<String>| fact.value().cloned().unwrap_or_default();
    if id.value().is_some() || name.value().is_some() {
        groups.insert(0, Group { id: part(id), name: part(name) });
    }
    Fact::Value(groups)
}

/// Reads a user; `""` is nobody. The id is a number in older answers and a UUID in newer ones.
fn user(user: Option<&Value>) -> User {
    match user {
        Some(Value::Null) => User::none(),
        Some(Value::String(text)) if text.trim().is_empty() => User::none(),
        Some(Value::Object(fields)) => User {
            id: lenient::text(fields.get("id")),
            name: lenient::text(fields.get("name")),
            email: lenient::text(fields.get("email")),
            active: known(flag(fields.get("is_archived")).map(|archived| !archived)),
            ..User::default()
        },
        _ => User::default(),
    }
}

/// Reads true or false, also where it is spelt `"True"`; null and blank give `None`.
fn flag(value: Option<&Value>) -> Option<bool> {
    lenient::flag(value).value().copied()
}

fn known(flag: Option<bool>) -> Fact<bool> {
    flag.map_or(Fact::Unknown, Fact::Value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(field: &str, value: Value) -> Record {
        let mut row = json!({
            "device_id": "a", "serial_number": "C02", "mdm_enabled": true, "is_removed": false, "lost_mode_status": "", "tags": [],
            "blueprint_id": "b", "blueprint_name": "Staff", "user": "", "last_check_in": "",
        });
        row[field] = value;
        of_row(&row)
    }

    #[test]
    fn managed_is_only_what_is_enabled_and_not_removed() {
        for (field, value, expected) in [
            ("mdm_enabled", json!(true), Fact::Value(true)),
            ("mdm_enabled", json!("True"), Fact::Value(true)),
            ("mdm_enabled", json!(false), Fact::Value(false)),
            ("mdm_enabled", json!("False"), Fact::Value(false)),
            ("mdm_enabled", json!(null), Fact::Unknown),
            ("mdm_enabled", json!("perhaps"), Fact::Unknown),
            ("is_removed", json!(true), Fact::Value(false)),
            ("is_removed", json!(null), Fact::Unknown),
            ("is_removed", json!(""), Fact::Unknown),
            ("is_missing", json!(true), Fact::Value(true)),
        ] {
            assert_eq!(with(field, value.clone()).managed, expected, "{field} {value}");
        }
    }

    #[test]
    fn a_state_of_lost_mode_that_nobody_described_is_unknown() {
        for (value, expected) in [
            (json!(""), Fact::Value(false)),
            (json!("ENABLED"), Fact::Value(true)),
            (json!("PENDING"), Fact::Unknown),
            (json!(null), Fact::Unknown),
            (json!(false), Fact::Unknown),
        ] {
            assert_eq!(with("lost_mode_status", value.clone()).lost, expected, "{value}");
        }
    }

    #[test]
    fn one_failure_outweighs_all_that_passed() {
        let of = |states: &[&str]| {
            let items: Vec<_> = states.iter().map(|state| json!({"status": state})).collect();
            compliance(&json!({"library_items": items, "parameters": []}))
        };
        assert_eq!(of(&["PASS", "success", "AVAILABLE"]), Fact::Value(Compliance::Compliant));
        assert_eq!(of(&["PENDING", "PASS", "failed"]), Fact::Value(Compliance::NonCompliant));
        assert_eq!(of(&["ERROR"]), Fact::Value(Compliance::NonCompliant));
        for undecided in [&[][..], &["AVAILABLE"], &["PASS", "pending", "PASS"], &["WARNING"], &["PASS", "new word"], &["PASS", ""]] {
            assert_eq!(of(undecided), Fact::Value(Compliance::Undetermined), "{undecided:?}");
        }
        assert_eq!(compliance(&json!({"library_items": []})), Fact::Unknown);
        assert_eq!(compliance(&json!({"library_items": null, "parameters": []})), Fact::Unknown);
    }

    #[test]
    fn groups_are_unknown_as_soon_as_one_may_be_missing() {
        let named = |id: &str, name: &str| Group { id: id.to_owned(), name: name.to_owned() };
        assert_eq!(with("tags", json!(["x"])).groups, Fact::Value(vec![named("b", "Staff"), named("", "x")]));
        assert_eq!(with("blueprint_name", json!("")).groups, Fact::Value(vec![named("b", "")]));
        assert_eq!(with("tags", json!("all")).groups, Fact::Value(vec![named("b", "Staff"), named("", "all")]));
        assert_eq!(with("tags", json!({"x": 1})).groups, Fact::Unknown);
        assert_eq!(with("blueprint_id", json!([])).groups, Fact::Unknown);
        assert_eq!(of_row(&json!({"blueprint_id": "b", "blueprint_name": "Staff"})).groups, Fact::Unknown);
    }

    #[test]
    fn an_id_that_could_lead_elsewhere_is_none() {
        for (value, expected) in [
            (json!("d7532562-0fbd-47f5-9609-e41759bf01ef"), true),
            (json!("../users"), false),
            (json!("a/b"), false),
            (json!("a%2fb"), false),
            (json!(""), false),
            (json!(7), false),
        ] {
            assert_eq!(id(&json!({"device_id": value})).is_some(), expected, "{value}");
        }
    }
}
