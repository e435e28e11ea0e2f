//! Rows of Jamf Pro's inventories as records. A section that is missing or null leaves its facts unknown; a text that is null
//! within a section is absent.

use std::borrow::Cow;

use posture::record::{Fact, Form, Group, Record, User};
use posture::time::UnixTime;
use serde_json::Value;

use crate::lenient::latest;

/// One section of a row, where the server sent it.
#[derive(Clone, Copy)]
struct Part<'r>(Option<&'r Value>);

impl<'r> Part<'r> {
    fn of(row: &'r Value, section: &str) -> Self {
        Self(row.get(section).filter(|section| section.is_object()))
    }

    fn get(self, key: &str) -> Option<&'r Value> {
        self.0?.get(key)
    }

    fn text(self, key: &str) -> Fact<String> {
        match self.get(key) {
            Some(Value::Null) => Fact::Absent,
            Some(value) => spelled(value).map_or(Fact::Unknown, |text| Fact::text(Some(&text))),
            None => Fact::Unknown,
        }
    }

    fn flag(self, key: &str) -> Fact<bool> {
        self.get(key).and_then(Value::as_bool).map_or(Fact::Unknown, Fact::Value)
    }

    fn time(self, key: &str) -> Fact<UnixTime> {
        match self.text(key) {
            Fact::Value(text) => UnixTime::parse(&text).map_or(Fact::Unknown, Fact::Value),
            Fact::Absent => Fact::Absent,
            Fact::Unknown => Fact::Unknown,
        }
    }
}

/// A text, or a number where a text is expected.
pub(super) fn spelled(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        _ => None,
    }
}

/// The server's own id of a row.
pub(super) fn id(form: Form, row: &Value) -> Option<String> {
    let key = match form {
        Form::Computer => "id",
        Form::MobileDevice => "mobileDeviceId",
    };
    let id = spelled(row.get(key)?)?;
    // The characters are limited, since the id becomes part of an address.
    let plain = !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    plain.then(|| id.into_owned())
}

/// The record's [`Record::provider_id`]: computers and mobile devices are numbered apart, so a number alone can mean either.
pub(super) fn provider_id(form: Form, id: &str) -> String {
    match form {
        Form::Computer => format!("computer:{id}"),
        Form::MobileDevice => format!("mobile:{id}"),
    }
}

/// The serial number of a row, unchanged.
pub(super) fn serial(_: Form, row: &Value) -> Option<Cow<'_, str>> {
    spelled(row.get("hardware")?.get("serialNumber")?)
}

/// The unique device identifier of a row, unchanged.
pub(super) fn udid(form: Form, row: &Value) -> Option<Cow<'_, str>> {
    match form {
        Form::Computer => spelled(row.get("udid")?),
        Form::MobileDevice => spelled(row.get("general")?.get("udid")?),
    }
}

/// A row as a record, without the facts that cost a call of their own.
pub(super) fn of(form: Form, row: &Value, now: UnixTime) -> Record {
    let (record, ends) = match form {
        Form::Computer => (computer(row), "mdmProfileExpiration"),
        Form::MobileDevice => (mobile_device(row), "mdmProfileExpirationDate"),
    };
    // A device whose profile has ended takes no command any more, but its record still calls it managed.
    let ended = Part::of(row, "general").time(ends).value().is_some_and(|ends| *ends <= now);
    Record {
        provider_id: id(form, row).map_or_else(String::new, |id| provider_id(form, &id)),
        form: Fact::Value(form),
        managed: if ended { Fact::Value(false) } else { record.managed },
        ..record
    }
}

fn computer(row: &Value) -> Record {
    let (general, hardware, system) = (Part::of(row, "general"), Part::of(row, "hardware"), Part::of(row, "operatingSystem"));
    let (person, security) = (Part::of(row, "userAndLocation"), Part::of(row, "security"));
    Record {
        serial: hardware.text("serialNumber"),
        udid: Part(Some(row)).text("udid"),
        name: general.text("name"),
        platform: general.text("platform"),
        os_version: system.text("version"),
        os_build: system.text("build"),
        model: hardware.text("modelIdentifier"),
        managed: Part(general.get("remoteManagement")).flag("managed"),
        supervised: general.flag("supervised"),
        ownership: general.flag("enrolledViaAutomatedDeviceEnrollment").map(|automated| {
            let how = if automated { "AutomatedDeviceEnrollment" } else { "DeviceEnrollment" };
            how.to_owned()
        }),
        groups: groups(row.get("groupMemberships")),
        // Computers have no lost mode.
        lost: Fact::Absent,
        compromised: opened(security),
        encrypted: match system.get("fileVault2Status").and_then(Value::as_str) {
            Some("ALL_ENCRYPTED" | "BOOT_ENCRYPTED") => Fact::Value(true),
            Some("NOT_ENCRYPTED" | "SOME_ENCRYPTED") => Fact::Value(false),
            Some("NOT_APPLICABLE") => Fact::Absent,
            _ => Fact::Unknown,
        },
        attestation: security.text("attestationStatus"),
        user: User {
            id: person.text("username"),
            name: person.text("realname"),
            email: person.text("email"),
            title: person.text("position"),
            ..User::default()
        },
        enrolled_at: general.time("lastEnrolledDate"),
        // Each version of the inventory has some of these dates.
        last_seen: latest(CONTACTS.iter().filter(|key| general.get(key).is_some()).map(|key| general.time(key))),
        inventory_at: general.time("reportDate"),
        ..Record::default()
    }
}

fn mobile_device(row: &Value) -> Record {
    let (general, hardware) = (Part::of(row, "general"), Part::of(row, "hardware"));
    let (person, security) = (Part::of(row, "userAndLocation"), Part::of(row, "security"));
    let platform = Part(Some(row)).text("deviceType");
    // The records of some kinds, such as Apple TVs, have no section on security, so its flags do not apply to them.
    let apart = platform.value().is_some_and(|platform| OTHERS.iter().any(|other| other.eq_ignore_ascii_case(platform)));
    let flag = |key: &str| if apart && security.0.is_none() { Fact::Absent } else { security.flag(key) };
    Record {
        serial: hardware.text("serialNumber"),
        udid: general.text("udid"),
        name: general.text("displayName"),
        os_version: general.text("osVersion"),
        os_build: general.text("osBuild"),
        model: hardware.text("modelIdentifier"),
        managed: general.flag("managed"),
        supervised: general.flag("supervised"),
        ownership: general.text("deviceOwnershipType"),
        groups: groups(row.get("groups")),
        lost: flag("lostModeEnabled"),
        compromised: flag("jailBreakDetected"),
        encrypted: security.flag("dataProtected"),
        attestation: security.text("attestationStatus"),
        user: User {
            id: person.text("username"),
            name: person.text("realName"),
            email: person.text("emailAddress"),
            department: person.text("department"),
            title: person.text("position"),
            active: Fact::Unknown,
        },
        enrolled_at: general.time("lastEnrolledDate"),
        // Before 11.30 there is only the date of the last inventory.
        last_seen: latest(MOBILE_CONTACTS.iter().filter(|key| general.get(key).is_some()).map(|key| general.time(key))),
        inventory_at: general.time("lastInventoryUpdateDate"),
        platform,
        ..Record::default()
    }
}

/// Says whether system integrity protection or secure boot was switched off.
fn opened(security: Part<'_>) -> Fact<bool> {
    let word = |key: &str| security.get(key).and_then(Value::as_str);
    match (word("sipStatus"), word("secureBootLevel")) {
        (Some("DISABLED"), _) | (_, Some("NO_SECURITY")) => Fact::Value(true),
        (Some("ENABLED"), _) => Fact::Value(false),
        _ => Fact::Unknown,
    }
}

/// Groups of a section; both inventories spell its entries the same.
fn groups(section: Option<&Value>) -> Fact<Vec<Group>> {
    let Some(Value::Array(entries)) = section else { return Fact::Unknown };
    let text = |entry: &Value, key: &str| entry.get(key).and_then(spelled).map(Cow::into_owned).unwrap_or_default();
    let groups = entries.iter().map(|entry| Group { id: text(entry, "groupId"), name: text(entry, "groupName") });
    let groups: Vec<_> = groups.collect();
    // An entry without id may be the very group that somebody asks about. The name may be missing: rules allow for it.
    if groups.iter().any(|group| group.id.is_empty()) { Fact::Unknown } else { Fact::Value(groups) }
}

/// Dates of a mobile device's last contact.
const MOBILE_CONTACTS: &[&str] = &["lastContactDate", "lastInventoryUpdateDate"];

/// Dates of a computer's last contact, by their versions and sorts.
const CONTACTS: &[&str] = &["lastContact", "lastContactTime", "lastCheckIn"];

/// Kinds of devices whose records have no section on security (`MobileDeviceTvOsInventory`); records of watchOS and visionOS have
/// it.
const OTHERS: &[&str] = &["tvOS", "appleTv"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[ -~]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{1,4}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    const PLACES: &[&str] = &[
        "general",
        "hardware",
        "operatingSystem",
        "userAndLocation",
        "security",
        "groupMemberships",
        "groups",
        "udid",
        "id",
        "mobileDeviceId",
        "deviceType",
        "managed",
        "remoteManagement",
        "supervised",
        "lastContact",
        "serialNumber",
        "sipStatus",
        "lostModeEnabled",
        "jailBreakDetected",
        "departmentId",
    ];

    proptest! {
        #[test]
        fn whatever_a_row_says_only_true_is_true(
            sections in prop::collection::btree_map(prop::sample::select(PLACES), any_json(), 0..8),
            fields in prop::collection::btree_map(prop::sample::select(PLACES), any_json(), 0..8),
        ) {
            let fields: Value = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<serde_json::Map<_, _>>().into();
            let mut row = json!({"general": fields, "hardware": fields, "security": fields});
            for (place, value) in sections {
                row[place] = value;
            }
            for form in [Form::Computer, Form::MobileDevice] {
                let record = of(form, &row, UnixTime::from_nanos(0));
                let key = if form == Form::Computer { "/general/remoteManagement/managed" } else { "/general/managed" };
                let said = row.pointer(key).and_then(Value::as_bool);
                prop_assert_eq!(record.managed.value().copied(), said);
                prop_assert_eq!(record.form, Fact::Value(form));
                prop_assert!(id(form, &row).is_none_or(|id| !id.contains(['/', '.', '?', '#', '%'])));
            }
        }
    }

    #[test]
    fn a_row_that_says_nothing_says_nothing() {
        let now = UnixTime::from_nanos(0);
        let record = of(Form::MobileDevice, &json!({}), now);
        assert_eq!(record, Record { form: Fact::Value(Form::MobileDevice), ..Record::default() });
        let record = of(Form::Computer, &json!({}), now);
        assert_eq!(record, Record { form: Fact::Value(Form::Computer), lost: Fact::Absent, ..Record::default() });
    }
}
