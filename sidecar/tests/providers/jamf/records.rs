//! Tests of what a record says.

use std::time::Duration;

use fakes::device::User;
use fakes::jamf::id;
use fakes::{Device, Fault};
use inventory::{Answer, Listed, Unavailable};
use posture::identity::IdentifierKind;
use posture::record::{Compliance, Fact, Field, Fields, Form, Group};
use posture::time::UnixTime;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{found, list, paths, plainly, text, two};

#[tokio::test]
async fn a_computer_is_read_whole() {
    let (_, stand) = two().await;
    let record = stand.record("C02X").await;
    let device = Device::computer("C02X");
    assert_eq!(record.provider_id, format!("computer:{}", id(&device)));
    assert_eq!(record.form, Fact::Value(Form::Computer));
    assert_eq!((&record.serial, &record.udid), (&text("C02X"), &text(&device.udid)));
    assert_eq!((&record.name, &record.platform), (&text("Computer C02X"), &text("Mac")));
    assert_eq!((&record.os_version, &record.os_build, &record.model), (&text("15.4.1"), &text("24E263"), &text("Mac15,3")));
    assert_eq!((&record.managed, &record.supervised), (&Fact::Value(true), &Fact::Value(true)));
    assert_eq!(record.ownership, text("AutomatedDeviceEnrollment"));
    assert_eq!(record.compliance, Fact::Value(Compliance::Compliant));
    assert_eq!(record.groups.value().unwrap().len(), 1);
    assert_eq!(record.groups.value().unwrap()[0].name, "All Managed");
    assert_eq!((&record.lost, &record.compromised, &record.encrypted), (&Fact::Absent, &Fact::Value(false), &Fact::Value(true)));
    assert_eq!(record.attestation, text("SUCCESS"));
    assert_eq!((&record.user.id, &record.user.name), (&text("ada"), &text("Ada Lovelace")));
    assert_eq!(
        (&record.user.email, &record.user.department, &record.user.title),
        (&text("ada@example.org"), &text("Engines"), &Fact::Absent)
    );
    assert_eq!(record.last_seen, Fact::Value(UnixTime::parse("2026-11-24T08:00:00.123Z").unwrap()));
    assert_eq!(record.enrolled_at, Fact::Value(UnixTime::parse("2026-01-02T03:04:05.678Z").unwrap()));
    assert_eq!(record.inventory_at, record.last_seen);
    let never = Fields::of(&[Field::WipePending, Field::UserActive, Field::Data]);
    assert_eq!(stand.inventory.fields().without(record.known()), Fields::NONE, "every field that it promises");
    assert!(!record.known().meets(never));
}

#[tokio::test]
async fn a_mobile_device_is_read_whole() {
    let (_, stand) = two().await;
    let record = stand.record("F2LX").await;
    assert_eq!(record.provider_id, format!("mobile:{}", id(&Device::phone("F2LX"))));
    assert_eq!((&record.form, &record.platform), (&Fact::Value(Form::MobileDevice), &text("iOS")));
    assert_eq!((&record.os_version, &record.os_build, &record.model), (&text("18.4"), &text("22E240"), &text("iPhone17,3")));
    assert_eq!((&record.lost, &record.compromised, &record.encrypted), (&Fact::Value(false), &Fact::Value(false), &Fact::Value(true)));
    assert_eq!((&record.user.name, &record.user.email), (&text("Ada Lovelace"), &text("ada@example.org")));
    assert_eq!((&record.user.department, &record.ownership), (&text("Engines"), &text("Institutional")));
    assert_eq!(stand.inventory.fields().without(record.known()), Fields::NONE);
}

#[tokio::test]
async fn compliance_and_departments_are_asked_for_only_where_they_are_needed() {
    let (_, stand) = two().await;
    let record = found(plainly(&stand, "C02X").await);
    assert_eq!((&record.compliance, &record.user.department), (&Fact::Unknown, &Fact::Unknown));
    assert_eq!(paths(&stand).len(), 2);
    stand.fake.forget();
    for _ in 0..3 {
        let need = Fields::of(&[Field::UserDepartment]);
        let record = found(stand.ask(IdentifierKind::Serial, "C02X", need).await);
        assert_eq!((&record.compliance, &record.user.department), (&Fact::Unknown, &text("Engines")));
    }
    let departments = paths(&stand).into_iter().filter(|path| path == "/api/v1/departments").count();
    assert_eq!(departments, 1, "they are kept");
}

#[tokio::test]
async fn names_of_departments_that_do_not_come_do_not_cost_the_answer() {
    let (_, stand) = two().await;
    stand.fake.pass_next(2);
    stand.fake.fail(Some(Fault::Hang));
    let started = Instant::now();
    let record = found(stand.ask(IdentifierKind::Serial, "C02X", Fields::of(&[Field::UserDepartment])).await);
    assert_eq!((&record.user.department, &record.user.id), (&Fact::Unknown, &text("ada")));
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
}

#[tokio::test]
async fn compliance_has_every_state() {
    let (jamf, stand) = two().await;
    for (compliant, expected) in
        [(Some(true), Compliance::Compliant), (Some(false), Compliance::NonCompliant), (None, Compliance::Undetermined)]
    {
        for serial in ["C02X", "F2LX"] {
            stand.fake.change(serial, |device| device.compliant = compliant);
            assert_eq!(stand.record(serial).await.compliance, Fact::Value(expected));
        }
    }
    stand.fake.change("C02X", |device| *device = device.clone().with("compliance", json!([])));
    assert_eq!(stand.record("C02X").await.compliance, Fact::Absent);
    stand.fake.change("C02X", |device| *device = device.clone().with("compliance", json!([{"complianceState": "SPLENDID"}])));
    assert_eq!(stand.record("C02X").await.compliance, Fact::Unknown);
    let entry = |id: Value| json!([{"deviceId": id, "applicable": true, "complianceState": "COMPLIANT"}]);
    let own = stand.record("C02X").await.provider_id.trim_start_matches("computer:").to_owned();
    for (id, good) in [(json!(own), true), (json!(null), true), (json!("4711"), false), (json!(4711), false), (json!([own]), false)] {
        stand.fake.change("C02X", |device| *device = device.clone().with("compliance", entry(id.clone())));
        match stand.serial("C02X").await {
            Answer::Found(record) if good => assert_eq!(record.compliance, Fact::Value(Compliance::Compliant), "{id}"),
            other => assert!(!good && other == Answer::Unavailable(Unavailable::Protocol), "{id}: {other:?}"),
        }
    }
    jamf.set(|knobs| knobs.compliance = false);
    assert_eq!(stand.record("C02X").await.compliance, Fact::Unknown, "it was never set up");
}

#[tokio::test]
async fn a_need_that_cannot_be_met_is_no_answer_and_a_department_only_unknown() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| knobs.privileges.retain(|privilege| !privilege.contains("Compliance") && !privilege.contains("Departments")));
    assert_eq!(stand.serial("C02X").await, Answer::Unavailable(Unavailable::Forbidden));
    for _ in 0..3 {
        let record = found(stand.ask(IdentifierKind::Serial, "C02X", Fields::of(&[Field::UserDepartment])).await);
        assert_eq!(record.user.department, Fact::Unknown);
    }
    assert_eq!(paths(&stand).iter().filter(|path| *path == "/api/v1/departments").count(), 1, "it is not asked in vain for each device");
}

#[tokio::test]
async fn a_record_that_is_broken_is_read_as_far_as_it_goes() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| {
        knobs.broken.insert("F2LX".to_owned());
    });
    let record = stand.record("F2LX").await;
    assert_eq!((&record.groups, &record.lost), (&Fact::Unknown, &Fact::Unknown), "no groups were told, which is not to have none");
    assert_eq!((&record.compromised, &record.user.id), (&Fact::Unknown, &Fact::Unknown));
    assert_eq!(record.managed, Fact::Value(true));
    let asked: Vec<_> = stand.fake.lookups().iter().filter_map(|seen| seen.query("exception-handling").map(str::to_owned)).collect();
    assert_eq!(asked, ["LENIENT"]);
}

#[tokio::test]
async fn a_server_that_fails_is_not_asked_twice_by_every_lookup() {
    let (jamf, stand) = two().await;
    stand.fake.fail(Some(Fault::Status(500)));
    for _ in 0..5 {
        assert_eq!(plainly(&stand, "F2LX").await, Answer::Unavailable(Unavailable::ServerError(None)));
    }
    let lenient = stand.fake.lookups().iter().filter(|seen| seen.query("exception-handling").is_some()).count();
    assert_eq!((lenient, stand.fake.lookups().len()), (1, 11), "it did not help, so it is no record that is broken");
    stand.fake.fail(None);
    found(plainly(&stand, "F2LX").await);
    jamf.set(|knobs| _ = knobs.broken.insert("F2LX".to_owned()));
    assert_eq!(plainly(&stand, "F2LX").await, Answer::Unavailable(Unavailable::ServerError(None)), "for a minute");
}

#[tokio::test]
async fn a_broken_record_spoils_neither_another_device_nor_the_list() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| {
        knobs.broken.insert("BROKEN".to_owned());
    });
    stand.fake.add(Device::phone("BROKEN"));
    assert!(found(plainly(&stand, "F2LX").await).knows(Field::Groups));
    let (records, listed) = list(&stand, None).await;
    assert_eq!((records.len(), listed), (3, Ok(Listed { complete: true })));
    assert!(records.iter().filter(|record| record.serial == text("F2LX")).all(|record| record.knows(Field::Groups)));
    stand.fake.fail(Some(Fault::FilterIgnored));
    assert!(found(plainly(&stand, "F2LX").await).knows(Field::Groups), "the other one fails the whole answer once");
}

#[tokio::test]
async fn sections_that_are_missing_or_null_are_unknown() {
    let (_, stand) = two().await;
    for section in ["general", "operatingSystem", "userAndLocation", "security", "groupMemberships"] {
        for value in [Value::Null, json!(7), json!("x")] {
            stand.fake.set(vec![Device::computer("C02X").with(section, value)]);
            let record = found(plainly(&stand, "C02X").await);
            let unknown = match section {
                "general" => [Field::Managed, Field::LastSeen],
                "operatingSystem" => [Field::OsVersion, Field::Encrypted],
                "userAndLocation" => [Field::UserId, Field::UserEmail],
                "security" => [Field::Compromised, Field::Attestation],
                _ => [Field::Groups, Field::Groups],
            };
            assert!(unknown.iter().all(|field| !record.knows(*field)), "{section}");
        }
    }
}

#[tokio::test]
async fn a_record_outlives_its_enrolment_and_says_so() {
    let (_, stand) = two().await;
    for serial in ["C02X", "F2LX"] {
        stand.fake.change(serial, |device| device.managed = false);
        assert_eq!(found(plainly(&stand, serial).await).managed, Fact::Value(false));
    }
}

#[tokio::test]
async fn a_device_whose_profile_has_ended_is_not_managed_whatever_its_record_says() {
    let (_, stand) = two().await;
    for (serial, field) in [("C02X", "general.mdmProfileExpiration"), ("F2LX", "general.mdmProfileExpirationDate")] {
        for (ends, managed) in [
            (json!("2024-01-02T03:04:05Z"), Fact::Value(false)),
            (json!("2099-01-02T03:04:05Z"), Fact::Value(true)),
            (Value::Null, Fact::Value(true)),
            (json!("soon"), Fact::Value(true)),
        ] {
            stand.fake.change(serial, |device| _ = device.raw.insert(field.to_owned(), ends.clone()));
            assert_eq!(found(plainly(&stand, serial).await).managed, managed, "{serial} {ends}");
            let (records, _) = list(&stand, None).await;
            let listed = records.iter().find(|record| record.serial == text(serial)).unwrap();
            assert_eq!(listed.managed, managed, "{serial} {ends} in a list");
        }
    }
}

#[tokio::test]
async fn silence_is_told_as_it_is() {
    let (_, stand) = two().await;
    for serial in ["C02X", "F2LX"] {
        for (last_seen, expected) in [
            (Some("2024-12-24T08:00:00Z"), Fact::Value(UnixTime::parse("2024-12-24T08:00:00Z").unwrap())),
            (Some("2099-01-01T00:00:00.123+02:00"), Fact::Value(UnixTime::parse("2098-12-31T22:00:00.123Z").unwrap())),
            (None, Fact::Absent),
            (Some(""), Fact::Absent),
            (Some("yesterday"), Fact::Unknown),
            (Some("2026-11-24 08:00:00"), Fact::Unknown),
        ] {
            stand.fake.change(serial, |device| device.last_seen = last_seen.map(str::to_owned));
            assert_eq!(found(plainly(&stand, serial).await).last_seen, expected, "{last_seen:?}");
        }
    }
}

#[tokio::test]
async fn d2_a_mobile_device_was_seen_at_the_later_of_its_contacts() {
    let (jamf, stand) = two().await;
    let at = |text| Fact::Value(UnixTime::parse(text).unwrap());
    let of = async |contact: &str, inventory: &str| {
        let phone = Device::phone("M1").with("general.lastInventoryUpdateDate", json!(inventory));
        stand.fake.set(vec![Device { last_seen: Some(contact.to_owned()), ..phone }]);
        found(plainly(&stand, "M1").await).last_seen.clone()
    };
    assert_eq!(of("2026-11-24T08:00:00Z", "2026-11-01T00:00:00Z").await, at("2026-11-24T08:00:00Z"));
    assert_eq!(of("2026-11-01T00:00:00Z", "2026-11-24T08:00:00Z").await, at("2026-11-24T08:00:00Z"));
    jamf.set(|knobs| knobs.mobile_contact = false);
    assert_eq!(of("2026-11-24T08:00:00Z", "2026-11-01T00:00:00Z").await, at("2026-11-01T00:00:00Z"), "before 11.30 nothing else is said");
}

#[tokio::test]
async fn states_that_a_device_can_be_in_are_told() {
    let (_, stand) = two().await;
    stand.fake.set(vec![
        Device::computer("C1")
            .with("security.sipStatus", json!("DISABLED"))
            .with("operatingSystem.fileVault2Status", json!("NOT_ENCRYPTED")),
        Device::computer("C2").with("security.sipStatus", json!("NOT_COLLECTED")).with("operatingSystem.fileVault2Status", json!("NEW")),
        Device::computer("C3").with("security.secureBootLevel", json!("NO_SECURITY")).with("general.supervised", json!("yes")),
        Device { lost: true, ..Device::phone("M1").with("security.jailBreakDetected", json!(true)) },
        Device::phone("M2").with("deviceType", json!("tvOS")).with("security", Value::Null),
        Device::phone("M3").with("general.managed", Value::Null).with("mobileDeviceId", json!(17)),
        Device { lost: true, ..Device::phone("M4").with("deviceType", json!("watchOS")) },
        Device::phone("M5").with("deviceType", json!("visionOS")).with("security", Value::Null),
    ]);
    let of = async |serial: &str| found(plainly(&stand, serial).await);
    let (c1, c2, c3) = (of("C1").await, of("C2").await, of("C3").await);
    assert_eq!((&c1.compromised, &c1.encrypted), (&Fact::Value(true), &Fact::Value(false)));
    assert_eq!((&c2.compromised, &c2.encrypted), (&Fact::Unknown, &Fact::Unknown));
    assert_eq!((&c3.compromised, &c3.supervised), (&Fact::Value(true), &Fact::Unknown));
    let (m1, m2, m3) = (of("M1").await, of("M2").await, of("M3").await);
    assert_eq!((&m1.lost, &m1.compromised), (&Fact::Value(true), &Fact::Value(true)));
    assert_eq!((&m2.lost, &m2.compromised, &m2.encrypted), (&Fact::Absent, &Fact::Absent, &Fact::Unknown));
    assert_eq!((&m3.managed, m3.provider_id.as_str()), (&Fact::Unknown, "mobile:17"));
    // Watches and headsets have a section on security, which may have been left out.
    assert_eq!((of("M4").await.lost.clone(), of("M5").await.lost.clone()), (Fact::Value(true), Fact::Unknown));
}

#[tokio::test]
async fn groups_are_told_as_they_are() {
    let (_, stand) = two().await;
    let many: Vec<_> = (0..2000).map(|number| format!("Group {number} “ü” ")).collect();
    let names: Vec<_> = many.iter().map(String::as_str).collect();
    stand.fake.set(vec![
        Device::computer("C1").in_groups(&names),
        Device::phone("M1").in_groups(&names),
        Device::computer("C2").in_groups(&[]),
    ]);
    for serial in ["C1", "M1"] {
        let record = found(plainly(&stand, serial).await);
        let groups = record.groups.value().unwrap();
        assert!(groups.iter().map(|group| &group.name).eq(&many), "{serial}");
        assert!(groups.iter().all(|group| !group.id.is_empty()));
    }
    assert_eq!(found(plainly(&stand, "C2").await).groups, Fact::Value(vec![]));
    for nameless in [json!({"groupId": "66", "groupName": null}), json!({"groupId": "66"}), json!({"groupId": "66", "groupName": {}})] {
        let odd = json!([{"groupId": 7, "groupName": "Numbered"}, nameless]);
        stand.fake.set(vec![Device::computer("C1").with("groupMemberships", odd)]);
        let group = |id: &str, name: &str| Group { id: id.to_owned(), name: name.to_owned() };
        assert_eq!(found(plainly(&stand, "C1").await).groups, Fact::Value(vec![group("7", "Numbered"), group("66", "")]));
    }
    for unreadable in [json!({}), json!({"groupName": "Quarantine", "groupId": null}), json!({"groupName": "Quarantine"}), json!(null)] {
        let odd = json!([{"groupName": "A", "groupId": "1"}, unreadable]);
        stand.fake.set(vec![Device::computer("C1").with("groupMemberships", odd)]);
        assert_eq!(found(plainly(&stand, "C1").await).groups, Fact::Unknown, "one of them cannot be read");
    }
}

#[tokio::test]
async fn people_may_be_called_anything() {
    let (_, stand) = two().await;
    let name = format!("{{{{.Token}}}} \"Ä\" 🦊 \u{202e}</script>{}", "x".repeat(4096));
    let user = User { id: "ünï".to_owned(), name: name.clone(), email: String::new(), department: "R\"&D".to_owned() };
    stand.fake.set(vec![Device { user: Some(user), ..Device::computer("C1") }, Device { user: None, ..Device::phone("M1") }]);
    let user = stand.record("C1").await.user.clone();
    assert_eq!((user.id, user.name, user.email, user.department), (text("ünï"), Fact::Value(name), Fact::Absent, text("R\"&D")));
    let user = stand.record("M1").await.user.clone();
    assert_eq!((user.id, user.name, user.department), (Fact::Absent, Fact::Absent, Fact::Absent));
}
