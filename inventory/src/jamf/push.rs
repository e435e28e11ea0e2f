//! Webhooks of Jamf Pro, in JSON. They name devices by serial number, by unique device identifier, or only by the id of a record.
//! No event is believed: it only drops what is remembered.

use http::HeaderMap;
use posture::record::Form;
use serde_json::Value;

use super::record::provider_id;
use crate::inventory::{Change, NotAnEvent, Subject};
use crate::strict;

/// Reads one event. An event that touches no device gives no change.
///
/// # Errors
/// [`NotAnEvent`], also for an event in XML.
pub fn parse(_: &HeaderMap, body: &[u8]) -> Result<Vec<Change>, NotAnEvent> {
    if body.len() > LONGEST {
        return Err(NotAnEvent("the event is larger than 1 MiB"));
    }
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
    if body.first() == Some(&b'<') {
        return Err(NotAnEvent("the event is XML: choose JSON as the content type of the webhook in Jamf Pro"));
    }
    let event: Value = strict::read(body).map_err(|_| NotAnEvent("the event is not JSON"))?;
    let name = event.pointer("/webhook/webhookEvent").and_then(Value::as_str).ok_or(NotAnEvent("there is no webhook.webhookEvent"))?;
    let event = event.get("event").filter(|event| event.is_object()).ok_or(NotAnEvent("there is no event"))?;
    // Jamf's own pages spell ComputerCheckIn in two ways.
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "computerpolicyfinished"
        | "computerpatchpolicycompleted"
        | "jssstartup"
        | "jssshutdown"
        | "mobiledevicepushsent"
        | "patchsoftwaretitleupdated"
        | "pushsent"
        | "scepchallenge"
        | "smartgroupusermembershipchange" => Ok(Vec::new()),
        "smartgroupcomputermembershipchange" => Ok(members(event, Form::Computer)),
        "smartgroupmobiledevicemembershipchange" => Ok(members(event, Form::MobileDevice)),
        "restapioperation" => Ok(operation(event)),
        _ => {
            let form = form(&name);
            let device = event.get("computer").filter(|computer| computer.is_object()).unwrap_or(event);
            let changes = changes(device, form, REVOKING.contains(&name.as_str()));
            if changes.is_empty() && form.is_some() { Err(NotAnEvent("the event names no device")) } else { Ok(changes) }
        }
    }
}

/// The kind of device that an event is about, by the event's name.
fn form(name: &str) -> Option<Form> {
    if name.starts_with("computer") {
        Some(Form::Computer)
    } else if name.starts_with("mobiledevice") {
        Some(Form::MobileDevice)
    } else {
        None
    }
}

/// Changes of a device, one for each of its names.
fn changes(device: &Value, form: Option<Form>, revoking: bool) -> Vec<Change> {
    let identifiers = ["serialNumber", "udid"].into_iter().filter_map(|key| identifier(device.get(key)?)).map(Subject::Identifier);
    let id = form.and_then(|form| Some(Subject::ProviderId(provider_id(form, &number(device.get("jssID")?)?))));
    identifiers.chain(id).map(|device| Change { device, revoking }).collect()
}

/// Changes of the devices that joined or left a smart group. A policy may refuse the group, so joining revokes as much as
/// leaving.
fn members(event: &Value, form: Form) -> Vec<Change> {
    let list = |key: &str| event.get(key).and_then(Value::as_array);
    let all = ["groupAddedDevicesIds", "groupRemovedDevicesIds", "groupAddedDevices", "groupRemovedDevices"].map(list);
    let [added_ids, removed_ids, added, removed] = all;
    let count: usize = all.into_iter().flatten().map(Vec::len).sum();
    if added_ids.is_none() || removed_ids.is_none() || count > MOST {
        return everything();
    }
    let ids: Option<Vec<String>> = added_ids.into_iter().chain(removed_ids).flatten().map(number).collect();
    // An entry that cannot be read may be any device.
    let Some(ids) = ids else { return everything() };
    let ids = ids.into_iter().map(|id| Change { device: Subject::ProviderId(provider_id(form, &id)), revoking: true });
    let named = added.into_iter().chain(removed).flatten().flat_map(|device| changes(device, None, true));
    ids.chain(named).collect()
}

/// Changes by an operation through Jamf's API. An operation on a group does not name its members.
fn operation(event: &Value) -> Vec<Change> {
    let text = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
    let object: String = text("objectTypeName").chars().filter(char::is_ascii_alphabetic).collect();
    if text("restAPIOperationType") == "get" {
        return Vec::new();
    }
    let form = match object.as_str() {
        "computer" => Form::Computer,
        "mobiledevice" => Form::MobileDevice,
        group if group.contains("group") && !group.contains("user") => return everything(),
        _ => return Vec::new(),
    };
    let id = event.get("objectID").and_then(number);
    id.map_or_else(everything, |id| vec![Change { device: Subject::ProviderId(provider_id(form, &id)), revoking: true }])
}

fn everything() -> Vec<Change> {
    vec![Change { device: Subject::Everything, revoking: true }]
}

fn identifier(value: &Value) -> Option<String> {
    let text = value.as_str()?.trim_ascii();
    let fits = !text.is_empty() && text.len() <= LONGEST_IDENTIFIER && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned())
}

/// Reads an id: a number, or one written as text.
fn number(value: &Value) -> Option<String> {
    let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())?;
    (number > 0).then(|| number.to_string())
}

const LONGEST: usize = 1 << 20;
const LONGEST_IDENTIFIER: usize = 64;

/// Most devices that one event may name; an event with more counts for all devices.
const MOST: usize = 4096;

/// Events after which not even an outage may be answered from earlier knowledge. A Mac's leaving is told only by a change of its
/// push capability, and a command that completed may have wiped a device or marked it lost.
const REVOKING: &[&str] = &["computerpushcapabilitychanged", "mobiledeviceunenrolled", "mobiledevicecommandcompleted"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(name: &str, event: &Value) -> Result<Vec<Change>, NotAnEvent> {
        let body = json!({"webhook": {"id": 1, "name": "x", "webhookEvent": name, "eventTimestamp": 1}, "event": event});
        parse(&HeaderMap::new(), body.to_string().as_bytes())
    }

    fn device() -> Value {
        json!({"serialNumber": "C02X", "udid": "AB-CD", "jssID": 5, "username": ""})
    }

    fn named(form: &str, revoking: bool) -> Vec<Change> {
        let subjects = [Subject::Identifier("C02X".into()), Subject::Identifier("AB-CD".into()), Subject::ProviderId(format!("{form}:5"))];
        subjects.map(|device| Change { device, revoking }).to_vec()
    }

    #[test]
    fn a_device_is_named_by_all_that_it_is_called() {
        assert_eq!(read("ComputerAdded", &device()), Ok(named("computer", false)));
        assert_eq!(read("ComputerInventoryCompleted", &device()), Ok(named("computer", false)));
        assert_eq!(read("MobileDeviceEnrolled", &device()), Ok(named("mobile", false)));
        assert_eq!(read("MobileDeviceUnEnrolled", &device()), Ok(named("mobile", true)));
        assert_eq!(read("MobileDeviceCommandCompleted", &device()), Ok(named("mobile", true)));
        assert_eq!(read("ComputerPushCapabilityChanged", &device()), Ok(named("computer", true)));
        let known = Change { device: Subject::Identifier("C02X".into()), revoking: false };
        assert_eq!(read("DeviceAddedToDEP", &json!({"serialNumber": "C02X"})), Ok(vec![known]));
    }

    #[test]
    fn a_check_in_has_its_computer_one_level_down() {
        let event = json!({"computer": device(), "trigger": "CLIENT_CHECKIN", "username": ""});
        assert_eq!(read("ComputerCheckIn", &event), Ok(named("computer", false)));
        assert_eq!(read("ComputerCheckin", &event), Ok(named("computer", false)));
    }

    #[test]
    fn a_smart_group_names_its_devices_by_id_only() {
        let event = json!({
            "name": "Compliant", "jssid": 7, "computer": true, "smartGroup": true,
            "groupAddedDevices": [], "groupAddedDevicesIds": [1, "2"], "groupRemovedDevices": [], "groupRemovedDevicesIds": [3],
        });
        let ids =
            |form: &str| ["1", "2", "3"].map(|id| Change { device: Subject::ProviderId(format!("{form}:{id}")), revoking: true }).to_vec();
        assert_eq!(read("SmartGroupComputerMembershipChange", &event), Ok(ids("computer")));
        assert_eq!(read("SmartGroupMobileDeviceMembershipChange", &event), Ok(ids("mobile")));
    }

    #[test]
    fn a_smart_group_that_names_one_in_a_form_that_cannot_be_read_is_about_all() {
        let event = |removed: Value| json!({"groupAddedDevicesIds": [1], "groupRemovedDevicesIds": [removed]});
        let name = "SmartGroupComputerMembershipChange";
        for odd in [json!({"id": 5}), json!("five"), json!(5.5), json!(null), json!(-5)] {
            assert_eq!(read(name, &event(odd.clone())), Ok(everything()), "{odd}");
        }
        assert_eq!(read(name, &event(json!(" 5"))).unwrap().len(), 2);
    }

    #[test]
    fn a_smart_group_that_names_nobody_or_thousands_is_about_all() {
        assert_eq!(read("SmartGroupComputerMembershipChange", &json!({"name": "x"})), Ok(everything()));
        let many: Vec<usize> = (1..6000).collect();
        let event = json!({"groupAddedDevicesIds": many, "groupRemovedDevicesIds": []});
        assert_eq!(read("SmartGroupComputerMembershipChange", &event), Ok(everything()));
    }

    #[test]
    fn an_operation_of_the_api_is_about_its_object() {
        let operation = |object: &str, id: Value| {
            read("RestAPIOperation", &json!({"objectTypeName": object, "objectID": id, "restAPIOperationType": "DELETE"}))
        };
        let change = |id: &str| Ok(vec![Change { device: Subject::ProviderId(id.to_owned()), revoking: true }]);
        assert_eq!(operation("Computer", json!(5)), change("computer:5"));
        assert_eq!(operation("Mobile Device", json!(5)), change("mobile:5"));
        assert_eq!(operation("Static Computer Group", json!(5)), Ok(everything()));
        assert_eq!(operation("Policy", json!(5)), Ok(Vec::new()));
    }

    #[test]
    fn events_about_no_device_and_events_to_come_are_taken_calmly() {
        for name in ["JSSStartup", "PushSent", "SmartGroupUserMembershipChange", "ComputerPolicyFinished", "SomethingNew"] {
            assert_eq!(read(name, &json!({"computer": {}})), Ok(Vec::new()), "{name}");
        }
        assert_eq!(read("SomethingNew", &device()).map(|changes| changes.len()), Ok(2));
    }

    #[test]
    fn refuses_what_is_no_event() {
        let deep = "[".repeat(1_000_000);
        let large = format!("{{\"webhook\":\"{}\"}}", "x".repeat(LONGEST));
        for body in [
            "",
            "{}",
            "[]",
            "null",
            "<JSSEvent/>",
            " <x>",
            "{\"webhook\":{\"webhookEvent\":\"ComputerAdded\"}}",
            &deep,
            &large,
            "\u{feff}{",
        ] {
            assert!(parse(&HeaderMap::new(), body.as_bytes()).is_err(), "{:.40}", body);
        }
        for event in
            [json!({}), json!({"serialNumber": ""}), json!({"serialNumber": "a\nb", "jssID": -1}), json!({"serialNumber": "x".repeat(65)})]
        {
            assert!(read("ComputerAdded", &event).is_err(), "{event}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_much(name in "[A-Za-z]{0,40}", event in "[ -~]{0,200}", cut in any::<prop::sample::Index>()) {
            let body = format!("{{\"webhook\":{{\"webhookEvent\":\"{name}\"}},\"event\":{event}}}");
            let _ = parse(&HeaderMap::new(), body.as_bytes());
            let end = cut.index(body.len());
            prop_assert!(parse(&HeaderMap::new(), &body.as_bytes()[..end]).is_err(), "half an event is none");
        }
    }

    #[test]
    fn g11_an_event_that_says_something_twice_is_none() {
        let event =
            br#"{"webhook":{"webhookEvent":"ComputerCheckIn"},"event":{"computer":{"serialNumber":"A","serialNumber":"B","jssID":7}}}"#;
        assert!(parse(&HeaderMap::new(), event).is_err());
    }
}
