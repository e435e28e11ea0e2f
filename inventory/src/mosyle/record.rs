//! A device of Mosyle as a record. Mosyle writes every scalar as text: `"1"` for true, seconds since 1970 for a date.

use posture::record::{Fact, Form, Record, User};
use serde_json::{Map, Value};

use super::settings::Settings;
use crate::lenient::{flag, groups, latest, text, time};
use crate::strict;

/// The record of a device that was found in a family of systems.
pub(super) fn record(device: &Value, family: &str, settings: &Settings) -> Record {
    let field = |name: &str| device.get(name);
    Record {
        provider_id: text(field("deviceudid")).value().cloned().unwrap_or_default(),
        form: form(field("os").and_then(Value::as_str).unwrap_or(family)),
        serial: text(field("serial_number")),
        udid: text(field("deviceudid")),
        name: text(field("device_name")),
        platform: text(field("os")),
        os_version: text(field("osversion")),
        os_build: text(field("BuildVersion")),
        model: text(field("device_model")),
        managed: managed(device, &settings.managed_statuses),
        supervised: flag(field("is_supervised")),
        ownership: text(field("enrollment_type")),
        groups: groups(field("tags")),
        lost: lost(field("lostmode_status")),
        compromised: compromised(field("SystemIntegrityProtectionEnabled")),
        attestation: text(field("DeviceAttestationStatus")),
        user: User { id: text(field("userid")), name: text(field("username")), email: text(field("useremail")), ..User::default() },
        enrolled_at: time(field("date_enroll")),
        last_seen: latest(["date_last_beat", "date_checkin"].into_iter().filter_map(field).map(|said| time(Some(said)))),
        inventory_at: time(field("date_info")),
        data: attributes(field("CustomDeviceAttributes"), &settings.attributes),
        ..Record::default()
    }
}

fn form(family: &str) -> Fact<Form> {
    match family {
        "mac" => Fact::Value(Form::Computer),
        "ios" | "ipados" | "tvos" | "visionos" => Fact::Value(Form::MobileDevice),
        _ => Fact::Unknown,
    }
}

/// Returns whether Mosyle says outright that a device was deleted.
pub(super) fn is_deleted(device: &Value) -> bool {
    flag(device.get("is_deleted")) == Fact::Value(true)
}

/// Says whether a device is managed: its status is one of `statuses`, and it was not deleted. Not every answer has `is_deleted`.
fn managed(device: &Value, statuses: &[String]) -> Fact<bool> {
    let deleted = match device.get("is_deleted") {
        None => Fact::Absent,
        value => flag(value),
    };
    let status = match device.get("status") {
        Some(Value::String(status)) if !status.trim().is_empty() => Some(statuses.iter().any(|known| known == status.trim())),
        _ => None,
    };
    match (status, deleted) {
        (Some(false), _) | (_, Fact::Value(true)) => Fact::Value(false),
        (Some(true), Fact::Value(false) | Fact::Absent) => Fact::Value(true),
        _ => Fact::Unknown,
    }
}

/// Reads lost mode; computers have none.
fn lost(status: Option<&Value>) -> Fact<bool> {
    match text(status) {
        Fact::Value(status) if status.eq_ignore_ascii_case("ENABLED") => Fact::Value(true),
        Fact::Value(status) if status.eq_ignore_ascii_case("DISABLED") => Fact::Value(false),
        Fact::Absent => Fact::Absent,
        _ => Fact::Unknown,
    }
}

/// Says whether a computer's system integrity protection is off; nothing is known of other devices.
fn compromised(protected: Option<&Value>) -> Fact<bool> {
    match flag(protected) {
        Fact::Value(protected) => Fact::Value(!protected),
        Fact::Absent | Fact::Unknown => Fact::Unknown,
    }
}

/// The wanted custom attributes, by the names under which the settings ask for them. Mosyle sends JSON inside a text.
fn attributes(value: Option<&Value>, wanted: &[String]) -> Fact<String> {
    if wanted.is_empty() {
        return Fact::Unknown;
    }
    let items: Vec<Value> = match value {
        Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) if text.trim().is_empty() => Vec::new(),
        Some(Value::String(text)) => match strict::read(text.as_bytes()) {
            Ok(items) => items,
            Err(_) => return Fact::Unknown,
        },
        _ => return Fact::Unknown,
    };
    let mut data = Map::new();
    for item in &items {
        let is = |name: &str| {
            ["Name", "CustomAttributeUniqueID", "UniqueID"].iter().any(|key| item.get(*key).and_then(Value::as_str) == Some(name))
        };
        if flag(item.get("IsDeleted")) == Fact::Value(true) {
            continue;
        }
        for name in wanted.iter().filter(|name| is(name)) {
            let value = item.get("Value").cloned().unwrap_or_default();
            // Two values for one attribute contradict each other.
            if data.insert(name.clone(), value.clone()).is_some_and(|before| before != value) {
                return Fact::Unknown;
            }
        }
    }
    let json = Value::Object(data).to_string();
    if json.len() <= LARGEST_DATA { Fact::Value(json) } else { Fact::Unknown }
}

/// Most bytes of the attributes; they go into every answer to step-ca.
const LARGEST_DATA: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn statuses() -> Vec<String> {
        vec!["INSTALLED".to_owned(), "IN".to_owned()]
    }

    #[test]
    fn management_needs_a_status_that_is_known_and_no_deletion() {
        for (device, expected) in [
            (json!({"status": "INSTALLED", "is_deleted": "0"}), Fact::Value(true)),
            (json!({"status": "IN", "is_deleted": false}), Fact::Value(true)),
            (json!({"status": "IN", "is_deleted": ""}), Fact::Value(true)),
            (json!({"status": "IN", "is_deleted": null}), Fact::Value(true)),
            (json!({"status": "IN"}), Fact::Value(true)),
            (json!({"status": "IN", "is_deleted": "1"}), Fact::Value(false)),
            (json!({"status": "IN", "is_deleted": "maybe"}), Fact::Unknown),
            (json!({"status": "in", "is_deleted": "0"}), Fact::Value(false)),
            (json!({"status": "REMOVED", "is_deleted": "maybe"}), Fact::Value(false)),
            (json!({"status": null, "is_deleted": "0"}), Fact::Unknown),
            (json!({"status": "", "is_deleted": "0"}), Fact::Unknown),
            (json!({"status": 1, "is_deleted": "0"}), Fact::Unknown),
            (json!({"status": null, "is_deleted": "1"}), Fact::Value(false)),
            (json!({}), Fact::Unknown),
        ] {
            assert_eq!(managed(&device, &statuses()), expected, "{device}");
        }
    }

    #[test]
    fn reads_attributes_out_of_a_text_and_only_those_that_were_asked_for() {
        let list = json!([
            {"Name": "Desk", "CustomAttributeUniqueID": "desk", "Value": "4.12"},
            {"Name": "Challenge", "CustomAttributeUniqueID": "challenge", "Value": "hidden"},
            {"Name": "Old", "UniqueID": "old", "Value": "x", "IsDeleted": "1"},
        ]);
        let value = json!(list.to_string());
        let wanted = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(attributes(Some(&value), &wanted(&["desk", "Old", "none"])), Fact::Value(r#"{"desk":"4.12"}"#.to_owned()));
        assert_eq!(attributes(Some(&value), &[]), Fact::Unknown);
        assert_eq!(attributes(Some(&json!("")), &wanted(&["desk"])), Fact::Value("{}".to_owned()));
        for broken in [json!("{"), json!(list), json!("{\"a\":1}"), json!(7)] {
            assert_eq!(attributes(Some(&broken), &wanted(&["desk"])), Fact::Unknown, "{broken}");
        }
    }

    #[test]
    fn g11_an_attribute_that_is_said_twice_is_not_known() {
        let said = |text: &str| attributes(Some(&json!(text)), &["desk".to_owned()]);
        assert_eq!(said(r#"[{"Name":"desk","Value":"1"},{"Name":"desk","Value":"2"}]"#), Fact::Unknown);
        assert_eq!(said(r#"[{"Name":"desk","Value":"1","Value":"2"}]"#), Fact::Unknown);
        assert_eq!(said(r#"[{"Name":"desk","Value":"1"},{"Name":"desk","Value":"1"}]"#), Fact::Value(r#"{"desk":"1"}"#.to_owned()));
    }

    #[test]
    fn nothing_is_made_of_words_that_are_new() {
        assert_eq!(lost(Some(&json!("ENABLED"))), Fact::Value(true));
        assert_eq!(lost(Some(&json!("DISABLED"))), Fact::Value(false));
        assert_eq!(lost(Some(&json!(null))), Fact::Absent);
        assert_eq!(lost(Some(&json!("PENDING"))), Fact::Unknown);
        assert_eq!(lost(None), Fact::Unknown);
        assert_eq!(compromised(Some(&json!("0"))), Fact::Value(true));
        assert_eq!(compromised(Some(&json!("1"))), Fact::Value(false));
        assert_eq!(compromised(Some(&json!(null))), Fact::Unknown);
    }
}
