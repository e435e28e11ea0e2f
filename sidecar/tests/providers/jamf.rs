//! Jamf Pro: what is its own.

use std::sync::Arc;
use std::time::Duration;

use fakes::device::User;
use fakes::jamf::{Jamf, event, id, webhook};
use fakes::{Device, Fake, Fault};
use http::HeaderMap;
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::{Compliance, Fact, Field, Fields, Form, Group, Record};
use posture::time::UnixTime;
use serde_json::{Value, json};
use sidecar::provider::inventory::{Change, Listed, Question, State, Subject};
use sidecar::provider::{Answer, Unavailable};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Stand;

const LINES: &str = "type = \"jamf\"\nbase_url = \"{url}\"\nclient_id = \"client\"\nclient_secret = { env = \"SECRET\" }";

/// Jamf Pro with no device in it.
pub(crate) async fn stand() -> Stand {
    with(&Jamf::new()).await
}

async fn with(jamf: &Jamf) -> Stand {
    Stand::open(Fake::start(jamf.clone()).await, LINES)
}

/// With one computer, `C02X`, and one phone, `F2LX`.
async fn two() -> (Jamf, Stand) {
    let jamf = Jamf::new();
    let stand = with(&jamf).await;
    stand.fake.set(vec![Device::computer("C02X"), Device::phone("F2LX")]);
    (jamf, stand)
}

impl Stand {
    async fn hinted(&self, serial: &str, hint: Form) -> Answer {
        let device = DeviceId::new(IdentifierKind::Serial, serial).unwrap();
        let deadline = Instant::now() + Duration::from_secs(3);
        self.inventory.lookup(&Question { device, need: Fields::NONE, hint: Some(hint), deadline }).await
    }

    async fn plainly(&self, serial: &str) -> Answer {
        self.ask(IdentifierKind::Serial, serial, Fields::NONE).await
    }

    fn paths(&self) -> Vec<String> {
        self.fake.lookups().into_iter().map(|seen| seen.path).collect()
    }

    async fn list(&self, since: Option<UnixTime>) -> (Vec<Record>, Result<Listed, Unavailable>) {
        let (sender, mut pages) = mpsc::channel(1000);
        let listed = self.inventory.list(since, self.inventory.fields(), sender).await;
        let mut records = Vec::new();
        while let Some(page) = pages.recv().await {
            records.extend(page);
        }
        (records, listed)
    }
}

fn found(answer: Answer) -> Arc<Record> {
    match answer {
        Answer::Found(record) => record,
        other => panic!("{other:?}"),
    }
}

fn text(text: &str) -> Fact<String> {
    Fact::Value(text.to_owned())
}

#[tokio::test]
async fn an_empty_inventory_has_no_device() {
    assert_eq!(stand().await.serial("C02X").await, Answer::NotFound);
}

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
async fn a_device_is_found_by_its_udid_of_either_kind() {
    let (_, stand) = two().await;
    for device in [Device::computer("C02X"), Device::phone("F2LX")] {
        let record = found(stand.ask(IdentifierKind::Udid, &device.udid.to_lowercase(), Fields::NONE).await);
        assert_eq!(record.serial, Fact::Value(device.serial));
    }
    assert_eq!(stand.ask(IdentifierKind::Udid, "C02X", Fields::NONE).await, Answer::NotFound);
    assert_eq!(stand.ask(IdentifierKind::Hostname, "C02X", Fields::NONE).await, Answer::InvalidIdentifier);
}

#[tokio::test]
async fn a_wildcard_is_never_asked_for() {
    let (jamf, stand) = two().await;
    for serial in ["C02*", "*", "X\" or general.name==\"*"] {
        assert_eq!(stand.serial(serial).await, Answer::InvalidIdentifier, "{serial}");
    }
    assert_eq!(jamf.filters(), [""; 0]);
}

#[tokio::test]
async fn whatever_is_asked_for_stays_one_literal() {
    let (jamf, stand) = two().await;
    for serial in
        ["X',Y", "X' or 1 eq 1", "a&b=c", "#", "%00", "../", "(a,b)", "X\",udid==\"Y", "\\", "\\\"", "x;y=in=(z)", "{{.}}", "a+b c"]
    {
        assert_eq!(stand.plainly(serial).await, Answer::NotFound, "{serial}");
        let literals = jamf.literals();
        assert!(literals.iter().rev().take(2).all(|literals| *literals == Some(vec![serial.to_owned()])), "{serial}: {literals:?}");
    }
}

#[tokio::test]
async fn a_hint_asks_one_kind_first_and_the_other_where_it_has_none() {
    let (_, stand) = two().await;
    found(stand.hinted("C02X", Form::Computer).await);
    assert_eq!(stand.paths(), ["/api/v4/computers-inventory"]);
    stand.fake.forget();
    found(stand.hinted("C02X", Form::MobileDevice).await);
    assert_eq!(stand.paths(), ["/api/v2/mobile-devices/detail", "/api/v4/computers-inventory"]);
    assert_eq!(stand.hinted("NONE", Form::Computer).await, Answer::NotFound);
}

#[tokio::test]
async fn one_serial_number_of_both_kinds_is_ambiguous() {
    let (_, stand) = two().await;
    stand.fake.add(Device::phone("C02X"));
    assert_eq!(stand.plainly("C02X").await, Answer::Ambiguous);
}

#[tokio::test]
async fn two_records_of_one_serial_number_are_ambiguous() {
    let (_, stand) = two().await;
    stand.fake.add(Device { id: "77".to_owned(), managed: false, ..Device::computer("c02x") });
    assert_eq!(stand.plainly("C02X").await, Answer::Ambiguous);
}

#[tokio::test]
async fn a_device_that_was_found_does_not_wait_for_the_other_kind() {
    let (_, stand) = two().await;
    stand.plainly("C02X").await;
    stand.fake.fail_next(1, Fault::Hang);
    let started = Instant::now();
    // Whichever of the two requests came first hangs.
    match stand.plainly("C02X").await {
        Answer::Found(_) => assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed()),
        other => assert_eq!(other, Answer::Unavailable(Unavailable::Timeout)),
    }
}

#[tokio::test]
async fn only_the_kinds_that_are_set_are_asked_for() {
    let jamf = Jamf::new();
    jamf.set(|knobs| knobs.privileges.retain(|privilege| *privilege == "Read Computers"));
    let stand = Stand::open(Fake::start(jamf).await, &format!("{LINES}\nkinds = [\"computer\"]"));
    stand.fake.set(vec![Device::computer("C02X"), Device::phone("F2LX")]);
    found(stand.plainly("C02X").await);
    assert_eq!(stand.plainly("F2LX").await, Answer::NotFound);
    assert!(stand.paths().iter().all(|path| path == "/api/v4/computers-inventory"));
}

#[tokio::test]
async fn a_privilege_that_is_missing_is_never_a_device_that_is_missing() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| knobs.privileges.retain(|privilege| *privilege == "Read Computers"));
    found(stand.plainly("C02X").await);
    assert_eq!(stand.plainly("F2LX").await, Answer::Unavailable(Unavailable::Forbidden));
    assert_eq!(stand.hinted("F2LX", Form::MobileDevice).await, Answer::Unavailable(Unavailable::Forbidden));
    assert_eq!(stand.hinted("F2LX", Form::Computer).await, Answer::Unavailable(Unavailable::Forbidden));
}

#[tokio::test]
async fn compliance_and_departments_are_asked_for_only_where_they_are_needed() {
    let (_, stand) = two().await;
    let record = found(stand.plainly("C02X").await);
    assert_eq!((&record.compliance, &record.user.department), (&Fact::Unknown, &Fact::Unknown));
    assert_eq!(stand.paths().len(), 2);
    stand.fake.forget();
    for _ in 0..3 {
        let need = Fields::of(&[Field::UserDepartment]);
        let record = found(stand.ask(IdentifierKind::Serial, "C02X", need).await);
        assert_eq!((&record.compliance, &record.user.department), (&Fact::Unknown, &text("Engines")));
    }
    let departments = stand.paths().into_iter().filter(|path| path == "/api/v1/departments").count();
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
    assert_eq!(stand.paths().iter().filter(|path| *path == "/api/v1/departments").count(), 1, "it is not asked in vain for each device");
}

#[tokio::test]
async fn the_version_that_the_server_has_is_remembered() {
    let (jamf, stand) = two().await;
    for (versions, expected) in [(vec![3, 2, 1], "v3"), (vec![1], "v1"), (vec![4], "v4")] {
        jamf.set(|knobs| knobs.versions = versions.into_iter().collect());
        let record = found(stand.hinted("C02X", Form::Computer).await);
        assert_eq!(record.last_seen, Fact::Value(UnixTime::parse("2026-11-24T08:00:00.123Z").unwrap()), "{expected}");
        stand.fake.forget();
        found(stand.hinted("C02X", Form::Computer).await);
        assert_eq!(stand.paths(), [format!("/api/{expected}/computers-inventory")]);
    }
    jamf.set(|knobs| knobs.versions.clear());
    assert_eq!(stand.plainly("C02X").await, Answer::Unavailable(Unavailable::Protocol));
}

#[tokio::test]
async fn the_token_endpoint_that_the_server_has_is_remembered() {
    let (jamf, stand) = two().await;
    for (token, old_token) in [(false, true), (true, false), (false, true)] {
        jamf.set(|knobs| (knobs.token, knobs.old_token) = (token, old_token));
        jamf.revoke();
        stand.fake.forget();
        found(stand.hinted("C02X", Form::Computer).await);
        assert_eq!(stand.fake.logins(), 2, "the one that is gone, and the other");
        jamf.revoke();
        stand.fake.forget();
        found(stand.hinted("C02X", Form::Computer).await);
        assert_eq!(stand.fake.logins(), 1);
    }
    jamf.set(|knobs| (knobs.token, knobs.old_token) = (false, false));
    jamf.revoke();
    assert_eq!(stand.plainly("C02X").await, Answer::Unavailable(Unavailable::Protocol));
}

#[tokio::test]
async fn any_lifetime_of_a_token_works_without_a_login_for_every_lookup() {
    for lifetime in [json!(60), json!(0), json!(null), json!("1200"), json!("soon"), json!(-1), json!(1_000_000_000_000_u64), json!([])] {
        let (jamf, stand) = two().await;
        jamf.set(|knobs| knobs.expires_in = lifetime.clone());
        for _ in 0..5 {
            found(stand.plainly("C02X").await);
        }
        assert_eq!(stand.fake.logins(), 1, "{lifetime}");
    }
}

#[tokio::test]
async fn a_token_that_was_revoked_is_renewed_once_for_all() {
    let (jamf, stand) = two().await;
    found(stand.plainly("C02X").await);
    jamf.revoke();
    stand.fake.forget();
    let answers = futures::future::join_all((0..50).map(|_| stand.plainly("C02X"))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Found(_))));
    assert_eq!(stand.fake.logins(), 1);
}

#[tokio::test]
async fn wrong_credentials_are_told_apart_from_an_outage() {
    let fake = Fake::start(Jamf::new()).await;
    let stand = Stand::open(fake, &LINES.replace("\"client\"", "\"stranger\""));
    assert_eq!(stand.plainly("C02X").await, Answer::Unavailable(Unavailable::AuthRejected));
    let (_, stand) = two().await;
    for (fault, expected) in [
        (Fault::Body(b"{}".to_vec()), Unavailable::Protocol),
        (Fault::Html, Unavailable::Protocol),
        (Fault::Status(500), Unavailable::ServerError(None)),
        (Fault::Status(400), Unavailable::Protocol),
        (Fault::Body(b"{\"access_token\":\"\"}".to_vec()), Unavailable::Protocol),
        (Fault::Body(b"{\"access_token\":\"a\\nb\"}".to_vec()), Unavailable::Protocol),
    ] {
        stand.fake.fail_logins(Some(fault.clone()));
        assert_eq!(stand.plainly("C02X").await, Answer::Unavailable(expected), "{fault:?}");
    }
    stand.fake.fail_logins(None);
    found(stand.plainly("C02X").await);
}

#[tokio::test]
async fn the_cookie_of_the_node_that_gave_the_token_is_sent_back() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| knobs.sticky = true);
    for _ in 0..3 {
        found(stand.plainly("C02X").await);
    }
    assert_eq!(stand.fake.logins(), 1);
}

#[tokio::test]
async fn a_server_that_starts_is_not_one_without_devices() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| knobs.starting = true);
    assert_eq!(stand.plainly("C02X").await, Answer::Unavailable(Unavailable::ServerError(None)));
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
async fn a_broken_record_spoils_neither_another_device_nor_the_list() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| {
        knobs.broken.insert("BROKEN".to_owned());
    });
    stand.fake.add(Device::phone("BROKEN"));
    assert!(found(stand.plainly("F2LX").await).knows(Field::Groups));
    let (records, listed) = stand.list(None).await;
    assert_eq!((records.len(), listed), (3, Ok(Listed { complete: true })));
    assert!(records.iter().filter(|record| record.serial == text("F2LX")).all(|record| record.knows(Field::Groups)));
    stand.fake.fail(Some(Fault::FilterIgnored));
    assert!(found(stand.plainly("F2LX").await).knows(Field::Groups), "the other one fails the whole answer once");
}

#[tokio::test]
async fn sections_that_are_missing_or_null_are_unknown() {
    let (_, stand) = two().await;
    for section in ["general", "operatingSystem", "userAndLocation", "security", "groupMemberships"] {
        for value in [Value::Null, json!(7), json!("x")] {
            stand.fake.set(vec![Device::computer("C02X").with(section, value)]);
            let record = found(stand.plainly("C02X").await);
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
async fn a_record_without_its_serial_number_is_not_taken_for_none() {
    let (_, stand) = two().await;
    stand.fake.fail(Some(Fault::Body(br#"{"totalCount":1,"results":[{"id":"1","mobileDeviceId":"1","hardware":null}]}"#.to_vec())));
    assert_eq!(stand.plainly("C02X").await, Answer::Unavailable(Unavailable::Protocol));
}

#[tokio::test]
async fn a_record_outlives_its_enrolment_and_says_so() {
    let (_, stand) = two().await;
    for serial in ["C02X", "F2LX"] {
        stand.fake.change(serial, |device| device.managed = false);
        assert_eq!(found(stand.plainly(serial).await).managed, Fact::Value(false));
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
            assert_eq!(found(stand.plainly(serial).await).last_seen, expected, "{last_seen:?}");
        }
    }
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
    ]);
    let of = async |serial: &str| found(stand.plainly(serial).await);
    let (c1, c2, c3) = (of("C1").await, of("C2").await, of("C3").await);
    assert_eq!((&c1.compromised, &c1.encrypted), (&Fact::Value(true), &Fact::Value(false)));
    assert_eq!((&c2.compromised, &c2.encrypted), (&Fact::Unknown, &Fact::Unknown));
    assert_eq!((&c3.compromised, &c3.supervised), (&Fact::Value(true), &Fact::Unknown));
    let (m1, m2, m3) = (of("M1").await, of("M2").await, of("M3").await);
    assert_eq!((&m1.lost, &m1.compromised), (&Fact::Value(true), &Fact::Value(true)));
    assert_eq!((&m2.lost, &m2.compromised, &m2.encrypted), (&Fact::Absent, &Fact::Absent, &Fact::Unknown));
    assert_eq!((&m3.managed, m3.provider_id.as_str()), (&Fact::Unknown, "mobile:17"));
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
        let record = found(stand.plainly(serial).await);
        let groups = record.groups.value().unwrap();
        assert!(groups.iter().map(|group| &group.name).eq(&many), "{serial}");
        assert!(groups.iter().all(|group| !group.id.is_empty()));
    }
    assert_eq!(found(stand.plainly("C2").await).groups, Fact::Value(vec![]));
    let odd = json!([{"groupId": 7, "groupName": "Numbered"}, {"groupName": "Nameless", "groupId": null}]);
    stand.fake.set(vec![Device::computer("C1").with("groupMemberships", odd)]);
    let expected =
        vec![Group { id: "7".to_owned(), name: "Numbered".to_owned() }, Group { id: String::new(), name: "Nameless".to_owned() }];
    assert_eq!(found(stand.plainly("C1").await).groups, Fact::Value(expected));
    stand.fake.set(vec![Device::computer("C1").with("groupMemberships", json!([{"groupName": "A", "groupId": "1"}, {}]))]);
    assert_eq!(found(stand.plainly("C1").await).groups, Fact::Unknown, "one of them cannot be read");
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

#[tokio::test]
async fn a_filter_that_is_ignored_hides_no_device_and_denies_none() {
    let (_, stand) = two().await;
    stand.fake.set((0..300).map(|number| Device { id: (number + 1).to_string(), ..Device::computer(&format!("C{number:04}")) }).collect());
    stand.fake.fail(Some(Fault::FilterIgnored));
    assert_eq!(found(stand.hinted("C0299", Form::Computer).await).serial, text("C0299"));
    assert_eq!(stand.hinted("C9999", Form::Computer).await, Answer::Unavailable(Unavailable::FilterIgnored));
    stand.fake.fail(Some(Fault::WrongDevice));
    assert_eq!(stand.hinted("C0001", Form::Computer).await, Answer::Unavailable(Unavailable::FilterIgnored));
}

#[tokio::test]
async fn a_filter_that_is_ignored_is_not_paged_after_for_ever() {
    let (_, stand) = two().await;
    stand.fake.set((0..3000).map(|number| Device { id: (number + 1).to_string(), ..Device::computer(&format!("C{number:04}")) }).collect());
    stand.fake.fail(Some(Fault::FilterIgnored));
    let device = DeviceId::new(IdentifierKind::Serial, "C9999").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let question = Question { device, need: Fields::NONE, hint: Some(Form::Computer), deadline };
    assert_eq!(stand.inventory.lookup(&question).await, Answer::Unavailable(Unavailable::FilterIgnored));
    assert!(stand.paths().len() <= 21, "{}", stand.paths().len());
}

#[tokio::test]
async fn a_count_without_its_rows_proves_nothing() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| knobs.total = Some(3));
    assert_eq!(stand.plainly("NONE").await, Answer::Unavailable(Unavailable::Protocol));
    stand.fake.fail(Some(Fault::Body(b"{\"results\":[]}".to_vec())));
    assert_eq!(stand.plainly("NONE").await, Answer::Unavailable(Unavailable::Protocol));
    stand.fake.fail(Some(Fault::Body(b"{\"totalCount\":0,\"results\":null}".to_vec())));
    assert_eq!(stand.plainly("NONE").await, Answer::Unavailable(Unavailable::Protocol));
}

fn fleet(computers: usize, phones: usize) -> Vec<Device> {
    let numbered = |number: usize, device: Device| Device { id: (number + 1).to_string(), ..device };
    let computers = (0..computers).map(|number| numbered(number, Device::computer(&format!("C{number:05}"))));
    computers.chain((0..phones).map(|number| numbered(number, Device::phone(&format!("M{number:05}"))))).collect()
}

#[tokio::test]
async fn the_whole_inventory_is_listed_and_proven_to_be_whole() {
    let (_, stand) = two().await;
    stand.fake.set(fleet(1100, 501));
    let (records, listed) = stand.list(None).await;
    assert_eq!(listed, Ok(Listed { complete: true }));
    assert_eq!(records.len(), 1601);
    let ids: std::collections::BTreeSet<_> = records.iter().map(|record| &record.provider_id).collect();
    assert_eq!(ids.len(), 1601, "computers and mobile devices have the same numbers");
    assert!(records.iter().all(|record| record.user.department == text("Engines")));
    let pages = stand.fake.lookups().into_iter().filter(|seen| seen.path.ends_with("computers-inventory")).count();
    assert_eq!(pages, 4, "one past the end");
}

#[tokio::test]
async fn a_list_with_a_gap_is_not_proven_to_be_whole() {
    let jamf = Jamf::new();
    let stand = Stand::open(Fake::start(jamf.clone()).await, &format!("{LINES}\nkinds = [\"computer\"]"));
    stand.fake.set(fleet(700, 0));
    jamf.set(|knobs| knobs.total = Some(701));
    assert_eq!(stand.list(None).await.1, Ok(Listed { complete: false }), "more were counted than came");
    jamf.set(|knobs| knobs.total = Some(2));
    let (records, listed) = stand.list(None).await;
    assert_eq!((records.len(), listed), (700, Ok(Listed { complete: true })), "the count is a floor");
    jamf.set(|knobs| (knobs.total, knobs.overlap) = (None, 3));
    let (records, listed) = stand.list(None).await;
    assert_eq!((records.len(), listed), (700, Ok(Listed { complete: true })), "what comes twice counts once");
    jamf.set(|knobs| knobs.overlap = 0);
    stand.fake.add(Device::computer("x").with("hardware", Value::Null));
    assert_eq!(stand.list(None).await.1, Ok(Listed { complete: false }), "one has no serial number");
}

#[tokio::test]
async fn a_server_that_gives_the_same_page_for_ever_is_left() {
    let (_, stand) = two().await;
    let row = br#"{"totalCount":9,"results":[{"id":"1","mobileDeviceId":"1","hardware":{"serialNumber":"C1"}}]}"#;
    stand.fake.fail(Some(Fault::Body(row.to_vec())));
    let (records, listed) = stand.list(None).await;
    assert_eq!((records.len(), listed), (2, Ok(Listed { complete: false })));
}

#[tokio::test]
async fn pages_that_are_too_large_are_asked_for_in_parts() {
    let jamf = Jamf::new();
    let stand = Stand::open(Fake::start(jamf).await, &format!("{LINES}\nkinds = [\"computer\"]"));
    stand.fake.set(fleet(600, 0));
    stand.fake.pass_next(1);
    stand.fake.fail_next(2, Fault::Huge(33 << 20));
    let (records, listed) = stand.list(None).await;
    assert_eq!((records.len(), listed), (600, Ok(Listed { complete: true })));
    let sizes: Vec<_> = stand.fake.lookups().iter().filter_map(|seen| seen.query("page-size").map(str::to_owned)).collect();
    assert_eq!(sizes, ["2000", "512", "256", "128", "128", "128", "128", "128", "128"]);
}

#[tokio::test]
async fn a_list_ends_with_its_receiver() {
    let (_, stand) = two().await;
    stand.fake.set(fleet(3000, 0));
    let (sender, pages) = mpsc::channel(1);
    drop(pages);
    assert_eq!(stand.inventory.list(None, Fields::NONE, sender).await, Ok(Listed { complete: false }));
    assert!(stand.paths().len() <= 3);
}

#[tokio::test]
async fn a_list_goes_on_after_a_fault_and_ends_with_what_stays() {
    let (jamf, stand) = two().await;
    stand.fake.fail_next(1, Fault::Status(502));
    assert_eq!(stand.list(None).await.1, Ok(Listed { complete: true }));
    jamf.set(|knobs| knobs.privileges.retain(|privilege| *privilege != "Read Mobile Devices"));
    let (records, listed) = stand.list(None).await;
    assert_eq!((records.len(), listed), (1, Err(Unavailable::Forbidden)), "what was sent is still good");
}

#[tokio::test]
async fn what_was_heard_of_since_is_listed_in_every_version() {
    let (jamf, stand) = two().await;
    for version in [4, 3, 1] {
        jamf.set(|knobs| knobs.versions = [version].into());
        for (since, expected) in [("2026-11-24T07:59:00Z", 2), ("2026-11-24T08:00:30Z", 2), ("2026-11-24T08:02:00Z", 0)] {
            let (records, listed) = stand.list(UnixTime::parse(since)).await;
            assert_eq!((records.len(), listed), (expected, Ok(Listed { complete: false })), "v{version} {since}");
        }
    }
    assert!(jamf.literals().iter().all(Option::is_some));
}

#[tokio::test]
async fn webhooks_of_the_server_name_the_records_of_its_inventory() {
    let (_, stand) = two().await;
    let read = |body: Value| stand.inventory.parse_push(&HeaderMap::new(), body.to_string().as_bytes());
    let phone = Device::phone("F2LX");
    let record = stand.record("F2LX").await;
    let subjects = |changes: Vec<Change>| changes.into_iter().map(|change| change.device).collect::<Vec<_>>();
    let gone = read(webhook("MobileDeviceUnEnrolled", event(&phone))).unwrap();
    assert!(gone.iter().all(|change| change.revoking));
    let named = subjects(gone);
    assert!(named.contains(&Subject::ProviderId(record.provider_id.clone())));
    assert!(named.contains(&Subject::Identifier("F2LX".to_owned())) && named.contains(&Subject::Identifier(phone.udid.clone())));
    let number: u64 = id(&Device::computer("C02X")).parse().unwrap();
    let members = json!({"groupAddedDevicesIds": [], "groupRemovedDevicesIds": [number], "name": "x", "jssid": 3});
    let computer = stand.record("C02X").await;
    let left = read(webhook("SmartGroupComputerMembershipChange", members)).unwrap();
    assert_eq!(left, [Change { device: Subject::ProviderId(computer.provider_id.clone()), revoking: true }]);
    assert!(stand.inventory.parse_push(&HeaderMap::new(), b"<JSSEvent/>").is_err());
}

#[tokio::test]
async fn doctor_names_each_privilege_that_is_missing() {
    let (jamf, stand) = two().await;
    let soon = || Instant::now() + Duration::from_secs(5);
    let findings = stand.inventory.probe(soon()).await;
    assert!(findings.iter().all(|finding| finding.state == State::Good), "{findings:?}");
    let checks: Vec<_> = findings.iter().map(|finding| finding.check.as_str()).collect();
    for check in ["address", "credentials", "privilege Read Computers", "privilege Read Mobile Devices", "privilege Read Departments"] {
        assert!(checks.contains(&check), "{check}: {checks:?}");
    }
    for missing in fakes::jamf::PRIVILEGES {
        jamf.set(|knobs| knobs.privileges = fakes::jamf::PRIVILEGES.iter().copied().filter(|name| name != missing).collect());
        let findings = stand.inventory.probe(soon()).await;
        let wrong: Vec<_> = findings.iter().filter(|finding| finding.state != State::Good).collect();
        assert_eq!(wrong.len(), 1, "{missing}: {findings:?}");
        assert!(wrong[0].check.ends_with(missing) && wrong[0].fix.contains(missing), "{wrong:?}");
    }
    jamf.set(|knobs| knobs.starting = true);
    assert!(stand.inventory.probe(soon()).await.iter().any(|finding| finding.check == "address" && finding.state == State::Bad));
}

#[tokio::test]
async fn doctor_tells_an_address_from_credentials() {
    let soon = || Instant::now() + Duration::from_secs(5);
    let stand = Stand::open(Fake::start(Jamf::new()).await, &LINES.replace("\"client\"", "\"stranger\""));
    let findings = stand.inventory.probe(soon()).await;
    let last = findings.last().unwrap();
    assert_eq!((last.check.as_str(), last.state), ("credentials", State::Bad));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stand = Stand::open(Fake::start(Jamf::new()).await, &LINES.replace("{url}", &format!("http://{nobody}")));
    let findings = stand.inventory.probe(soon()).await;
    assert_eq!((findings.len(), findings[0].check.as_str(), findings[0].state), (1, "address", State::Bad));
}

#[test]
#[allow(irrefutable_let_patterns, reason = "where no other service is built in")]
fn the_settings_of_step_posture_connector_are_there() {
    let remote = crate::remote(&format!(
        "{}\ndevice_group = \"Compliant iPads\"\ncomputer_group = \"12\"\ncomputer_enrich = true",
        LINES.replace("{url}", "https://x.example.org")
    ));
    let sidecar::provider::service::Service::Jamf(settings) = &remote.service else { panic!("{remote:?}") };
    assert_eq!((settings.device_group.as_deref(), settings.computer_group.as_deref()), (Some("Compliant iPads"), Some("12")));
    assert_eq!((settings.device_enrich, settings.computer_enrich), (false, true));
    assert_eq!((remote.endpoint.connections, settings.kinds.len()), (5, 2));
}
