use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engine::cache::{self, Cache, Lifetimes, Limits, Schedule, Terms, Wanted};
use fakes::kandji::{Kandji, Knobs};
use fakes::{Device, Fake, Fault};
use inventory::{Answer, Change, Listed, Listing, Question, Source, State, Subject, Unavailable, Way};
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::{Compliance, Fact, Field, Fields, Form, Group, Record, User};
use posture::time::UnixTime;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Stand, documented};

const LINES: &str = "type = \"kandji\"\nbase_url = \"{url}\"\ntoken = { env = \"SECRET\" }\n";

/// A provider that asks a tenant without surprises.
pub(crate) async fn stand() -> Stand {
    tenant(|_| ()).await.0
}

async fn tenant(change: impl FnOnce(&mut Knobs)) -> (Stand, Kandji) {
    tenant_with("compliance_from_status = true", change).await
}

async fn tenant_with(setting: &str, change: impl FnOnce(&mut Knobs)) -> (Stand, Kandji) {
    let kandji = Kandji::with(change);
    (Stand::open(Fake::start(kandji.clone()).await, &format!("{LINES}{setting}")), kandji)
}

fn paths(stand: &Stand) -> Vec<String> {
    stand.fake.lookups().into_iter().map(|seen| seen.path).collect()
}

/// Makes `number` devices whose serial numbers begin with `start`.
fn many(start: &str, number: usize) -> Vec<Device> {
    (0..number).map(|number| Device::computer(&format!("{start}{number:05}"))).collect()
}

async fn row(stand: &Stand, serial: &str) -> Answer {
    stand.ask(IdentifierKind::Serial, serial, Fields::NONE).await
}

fn is_found(answer: &Answer, serial: &str) -> bool {
    matches!(answer, Answer::Found(record) if record.serial == Fact::Value(serial.to_owned()))
}

fn at(text: &str) -> Fact<UnixTime> {
    Fact::Value(UnixTime::parse(text).unwrap())
}

async fn list(stand: &Stand, since: Option<UnixTime>, need: Fields) -> (Result<Listed, Unavailable>, Vec<Record>) {
    let (sender, mut receiver) = mpsc::channel(10_000);
    let listed = stand.inventory.list(since, need, sender).await;
    let mut records = Vec::new();
    while let Ok(page) = receiver.try_recv() {
        records.extend(page);
    }
    (listed, records)
}

#[tokio::test]
async fn reads_every_field() {
    let (stand, _) = tenant(|_| ()).await;
    stand.fake.add(Device::computer("C02XL0GYJGH5").in_groups(&["Blue"]));
    let record = stand.record("C02XL0GYJGH5").await;
    assert_eq!(record.known(), stand.inventory.fields());
    assert_eq!(record.form, Fact::Value(Form::Computer));
    assert_eq!((&record.managed, &record.supervised, &record.lost), (&Fact::Value(true), &Fact::Value(true), &Fact::Value(false)));
    assert_eq!(record.compliance, Fact::Value(Compliance::Compliant));
    assert_eq!(record.udid, Fact::Value("00008103-0000C02XL0GYJGH5".to_owned()));
    assert_eq!(record.encrypted, Fact::Value(true));
    assert_eq!(record.user.department, Fact::Value("Engines".to_owned()));
    assert_eq!(record.user.title, Fact::Value("Engineer".to_owned()));
    assert_eq!(record.last_seen, at("2026-11-24T08:00:00.123Z"));
    assert_eq!(record.enrolled_at, at("2022-12-13T19:14:20.455640Z"));
    let Fact::Value(groups) = &record.groups else { panic!("{record:?}") };
    assert!(groups.contains(&Group { id: String::new(), name: "Blue".to_owned() }), "{groups:?}");
    assert!(groups.iter().any(|group| group.name == "Staff" && !group.id.is_empty()), "{groups:?}");
}

#[tokio::test]
async fn a_part_of_a_serial_number_is_another_device() {
    let (stand, _) = tenant(|_| ()).await;
    stand.fake.add(Device::computer("ABC1234"));
    assert_eq!(row(&stand, "ABC123").await, Answer::NotFound);
    assert_eq!(stand.fake.asked(), ["ABC123"]);
}

#[tokio::test]
async fn finds_the_exact_one_among_hundreds_that_contain_it() {
    let knobs: [fn(&mut Knobs); 5] = [
        |_| (),
        |knobs| knobs.wrapped = true,
        |knobs| knobs.total = false,
        |knobs| (knobs.total, knobs.cap) = (false, 100),
        |knobs| knobs.cap = 100,
    ];
    for change in knobs {
        let (stand, kandji) = tenant(change).await;
        let mut devices = many("ABC123", 650);
        devices.push(Device::computer("ABC123"));
        stand.fake.set(devices);
        let answer = row(&stand, "ABC123").await;
        assert!(is_found(&answer, "ABC123"), "{answer:?} {:?}", kandji.knobs());
        stand.fake.remove("ABC123");
        assert_eq!(row(&stand, "ABC123").await, Answer::NotFound, "{:?}", kandji.knobs());
    }
}

#[tokio::test]
async fn a_search_that_does_not_end_finds_nothing_and_misses_nothing() {
    let (stand, _) = tenant(|knobs| knobs.cap = 30).await;
    stand.fake.set(many("ABC123", 350));
    assert_eq!(row(&stand, "ABC123").await, Answer::Unavailable(Unavailable::FilterIgnored));
    assert_eq!(stand.fake.lookups().len(), 10);
}

#[tokio::test]
async fn devices_that_were_not_asked_for_prove_nothing() {
    let (stand, _) = tenant(|_| ()).await;
    stand.fake.set(many("DEF", 650));
    stand.fake.fail(Some(Fault::FilterIgnored));
    assert_eq!(row(&stand, "ABC123").await, Answer::Unavailable(Unavailable::FilterIgnored));
    stand.fake.add(Device::computer("ABC123"));
    assert!(is_found(&row(&stand, "ABC123").await, "ABC123"));
    stand.fake.fail(Some(Fault::WrongDevice));
    stand.fake.set(vec![Device::computer("C02")]);
    assert_eq!(row(&stand, "DEF").await, Answer::Unavailable(Unavailable::FilterIgnored));
}

#[tokio::test]
async fn finds_a_device_whatever_the_case_and_the_spaces() {
    for case_sensitive in [false, true] {
        let (stand, _) = tenant(|knobs| knobs.case_sensitive = case_sensitive).await;
        stand.fake.set(vec![Device::computer("C02XL0GYJGH5"), Device::computer(" F17ABC ")]);
        assert!(is_found(&row(&stand, "c02xl0gyjgh5").await, "C02XL0GYJGH5"));
        assert!(is_found(&row(&stand, " f17abc").await, "F17ABC"));
        assert_eq!(row(&stand, "С02XL0GYJGH5").await, Answer::NotFound, "the first letter is Cyrillic");
    }
}

#[tokio::test]
async fn d13_a_miss_by_one_spelling_says_nothing_of_another() {
    let (stand, _) = tenant(|knobs| knobs.case_sensitive = true).await;
    stand.fake.set(vec![Device::computer("VM-AB1"), Device::computer("VMware-56 4d")]);
    for (serial, guess) in [("VM-AB1", "vm-ab1"), ("VMware-56 4d", "vmware-56 4D"), ("VMware-56 4d", "VMWARE-56 4D")] {
        let cache = stand.cache();
        stand.ask_through(&cache, guess).await;
        assert!(is_found(&stand.ask_through(&cache, serial).await, serial), "{guess}");
    }
    assert!(is_found(&row(&stand, "vm-ab1").await, "VM-AB1"), "in upper case it is asked for whatever stands in it");
    let cache = stand.cache();
    let before = stand.fake.lookups().len();
    for _ in 0..3 {
        assert_eq!(stand.ask_through(&cache, "nobody-1").await, Answer::NotFound);
    }
    assert_eq!(stand.fake.lookups().len() - before, 2, "and one that was not found is remembered as it was spelled");
}

#[tokio::test]
async fn other_identifiers_cannot_be_searched_for() {
    let stand = stand().await;
    for kind in IdentifierKind::ALL.iter().filter(|kind| **kind != IdentifierKind::Serial) {
        assert_eq!(stand.ask(*kind, "00008103-C02", Fields::NONE).await, Answer::InvalidIdentifier, "{kind}");
    }
    assert!(stand.fake.lookups().is_empty());
}

#[tokio::test]
async fn asks_only_for_what_is_needed() {
    let (stand, _) = tenant(|_| ()).await;
    stand.fake.add(Device::computer("C02"));
    for (need, calls) in [
        (Fields::of(&[Field::Managed, Field::Groups, Field::UserEmail, Field::UserActive]), 1),
        (Fields::of(&[Field::Udid, Field::Supervised]), 2),
        (Fields::of(&[Field::UserDepartment]), 2),
        (Fields::of(&[Field::Compliance]), 2),
        (stand.inventory.fields(), 4),
    ] {
        stand.fake.forget();
        let answer = stand.ask(IdentifierKind::Serial, "C02", need).await;
        let Answer::Found(record) = answer else { panic!("{answer:?}") };
        assert!(need.without(record.known()).is_empty(), "{need:?}");
        assert_eq!(stand.fake.lookups().len(), calls, "{need:?} {:?}", paths(&stand));
    }
}

#[tokio::test]
async fn compliance_is_a_field_only_where_the_configuration_says_how() {
    let (stand, _) = tenant_with("", |_| ()).await;
    assert!(!stand.inventory.fields().contains(Field::Compliance));
    stand.fake.add(Device::computer("C02"));
    assert_eq!(stand.record("C02").await.compliance, Fact::Unknown);
    assert!(paths(&stand).iter().all(|path| !path.ends_with("/status")), "{:?}", paths(&stand));
    let (stand, _) = tenant(|_| ()).await;
    stand
        .fake
        .set(vec![Device { compliant: Some(false), ..Device::computer("C02") }, Device { compliant: None, ..Device::computer("C03") }]);
    assert_eq!(stand.record("C02").await.compliance, Fact::Value(Compliance::NonCompliant));
    assert_eq!(stand.record("C03").await.compliance, Fact::Value(Compliance::Undetermined));
}

#[tokio::test]
async fn a_second_request_that_fails_fails_the_lookup_that_needs_it() {
    for (request, field) in
        [("Get Device Details", Field::Supervised), ("List Users", Field::UserDepartment), ("Get Device Status", Field::Compliance)]
    {
        let (stand, _) = tenant(|knobs| _ = knobs.forbidden.insert(request)).await;
        stand.fake.add(Device::computer("C02"));
        let answer = stand.ask(IdentifierKind::Serial, "C02", Fields::of(&[field])).await;
        assert_eq!(answer, Answer::Unavailable(Unavailable::Forbidden), "{request}");
        assert!(is_found(&row(&stand, "C02").await, "C02"), "{request}");
    }
}

#[tokio::test]
async fn tells_managed_removed_missing_and_lost_devices_apart() {
    let (stand, _) = tenant(|_| ()).await;
    stand.fake.set(vec![
        Device { managed: false, ..Device::computer("OFF") },
        Device::computer("REMOVED").with("is_removed", json!(true)),
        Device::computer("MISSING").with("is_missing", json!(true)),
        Device { lost: true, ..Device::phone("LOST") },
        Device::computer("ODD").with("mdm_enabled", json!("perhaps")).with("lost_mode_status", json!("PENDING")),
        Device::computer("BARE").with("mdm_enabled", Value::Null).with("details.mdm.supervised", json!("")),
        Device::computer("LOOSE").with("details.mdm.supervised", json!("False")),
    ]);
    for (serial, managed, lost, supervised) in [
        ("OFF", Fact::Value(false), Fact::Value(false), Fact::Value(true)),
        ("REMOVED", Fact::Value(false), Fact::Value(false), Fact::Value(true)),
        ("MISSING", Fact::Value(true), Fact::Value(false), Fact::Value(true)),
        ("LOST", Fact::Value(true), Fact::Value(true), Fact::Value(true)),
        ("ODD", Fact::Unknown, Fact::Unknown, Fact::Value(true)),
        ("BARE", Fact::Unknown, Fact::Value(false), Fact::Unknown),
        ("LOOSE", Fact::Value(true), Fact::Value(false), Fact::Value(false)),
    ] {
        let record = stand.record(serial).await;
        assert_eq!((&record.managed, &record.lost, &record.supervised), (&managed, &lost, &supervised), "{serial}");
    }
}

#[tokio::test]
async fn a_removed_record_gives_way_to_the_device_that_enrolled_again() {
    let (stand, _) = tenant(|_| ()).await;
    stand
        .fake
        .set(vec![Device::computer("C02").with("is_removed", json!(true)), Device { name: "New".to_owned(), ..Device::computer("C02") }]);
    assert_eq!(stand.record("C02").await.name, Fact::Value("New".to_owned()));
    stand.fake.add(Device::computer("C02"));
    assert_eq!(row(&stand, "C02").await, Answer::Ambiguous);
    stand.fake.change("C02", |device| _ = device.raw.insert("is_removed".to_owned(), json!(true)));
    assert_eq!(row(&stand, "C02").await, Answer::Ambiguous, "nobody can say which of them it was");
}

/// Makes a tenant whose search has these pages, each but the last followed by another one.
async fn search(pages: Vec<Vec<Value>>) -> Stand {
    let rows: Vec<Value> = pages.iter().flatten().cloned().collect();
    let fake = Fake::start(crate::Scripted(move |request: &fakes::Seen| {
        let offset = request.query("offset").and_then(|offset| offset.parse().ok()).unwrap_or(0);
        // End of the page that this row is in.
        let mut end = 0;
        for page in &pages {
            end += page.len();
            if end > offset + usize::from(offset > 0) {
                break;
            }
        }
        let next = (end < rows.len()).then_some("https://t.kandji.io/api/v1/devices?offset=1");
        fakes::server::Answer::json(json!({"count": rows.len(), "next": next, "results": rows.get(offset..end)}))
    }))
    .await;
    Stand::open(fake, LINES)
}

#[tokio::test]
async fn a3_doubles_are_told_by_the_whole_answer() {
    let row = |id: &str, removed: bool, lost: bool| {
        let lost = if lost { "enabled" } else { "disabled" };
        json!({"device_id": id, "serial_number": "C02", "is_removed": removed, "lost_mode_status": lost, "device_name": id})
    };
    let (left, gone) = (row("a", true, false), row("b", true, false));
    for (pages, expected) in [
        (vec![vec![left.clone(), row("b", false, false)], vec![row("c", false, true)]], None),
        (vec![vec![left.clone(), gone.clone()], vec![row("c", false, false)]], Some("c")),
        (vec![vec![row("a", false, false), gone.clone()], vec![row("c", true, false)]], Some("a")),
        (vec![vec![left, gone], vec![row("c", true, false)]], None),
        (vec![vec![row("a", false, false), row("b", false, false)], vec![row("c", false, false)]], None),
    ] {
        let stand = search(pages).await;
        let answer = row_of(&stand).await;
        match expected {
            Some(name) => assert_eq!(answer, Ok(name.to_owned())),
            None => assert_eq!(answer, Err(Answer::Ambiguous)),
        }
    }
}

/// Returns the name of the device, or what was answered in its place.
async fn row_of(stand: &Stand) -> Result<String, Answer> {
    match row(stand, "C02").await {
        Answer::Found(record) => Ok(record.name.value().cloned().unwrap_or_default()),
        other => Err(other),
    }
}

#[tokio::test]
async fn a3_a_row_that_cannot_be_read_may_be_a_double() {
    let one = json!({"device_id": "a", "serial_number": "C02", "device_name": "a"});
    for (other, expected) in [
        (json!({"device_id": "b", "serial_number": ["C02"]}), Err(Answer::Unavailable(Unavailable::Protocol))),
        (json!({"device_id": "b", "serial_number": "C02B"}), Ok("a".to_owned())),
        (json!({"device_id": "b", "serial_number": ""}), Ok("a".to_owned())),
    ] {
        for rows in [vec![one.clone(), other.clone()], vec![other, one.clone()]] {
            assert_eq!(row_of(&search(vec![rows]).await).await, expected);
        }
    }
}

#[tokio::test]
async fn a3_a_removed_record_gives_way_in_a_list_as_in_an_answer() {
    let (stand, _) = tenant(|_| ()).await;
    let removed = || Device::computer("C02").with("is_removed", json!(true));
    let again = Device { name: "New".to_owned(), ..Device::computer("C02") };
    for (devices, names) in [
        (vec![removed(), again.clone()], vec!["New"]),
        (vec![again, removed(), removed()], vec!["New"]),
        (vec![removed()], vec![&*removed().name]),
        (vec![removed(), removed()], vec![&*removed().name, &*removed().name]),
    ] {
        stand.fake.set(devices);
        let (listed, records) = list(&stand, None, Fields::NONE).await;
        let listed_names: Vec<_> = records.iter().map(|record| record.name.value().unwrap().as_str()).collect();
        assert_eq!((listed, listed_names), (Ok(Listed { complete: true }), names));
    }
}

#[tokio::test]
async fn reads_users_in_every_form() {
    let (stand, _) = tenant(|_| ()).await;
    let user = |id: Value, archived: Value| json!({"email": "ada@example.org", "name": "Ada {{ .Ünïcode }} \"🚀\"", "id": id, "is_archived": archived});
    stand.fake.set(vec![
        Device { user: None, ..Device::computer("NOBODY") },
        Device::computer("NULL").with("user", Value::Null),
        Device::computer("INT").with("user", user(json!(1), json!(false))),
        Device::computer("UUID").with("user", user(json!("5344c996-8823-4b37-8d6e-8515fc7c3a0a"), json!(true))),
        Device::computer("ODD").with("user", json!(["ada"])),
        Device::computer("MAILLESS").with("user", json!({"name": "Ada", "id": 1})),
    ]);
    for serial in ["NOBODY", "NULL"] {
        stand.fake.forget();
        assert_eq!(stand.record(serial).await.user, User::none(), "{serial}");
        assert!(!paths(&stand).contains(&"/api/v1/users".to_owned()), "{:?}", paths(&stand));
    }
    let int = stand.record("INT").await;
    assert_eq!((&int.user.id, &int.user.active), (&Fact::Value("1".to_owned()), &Fact::Value(true)));
    assert_eq!(int.user.name, Fact::Value("Ada {{ .Ünïcode }} \"🚀\"".to_owned()));
    let uuid = stand.record("UUID").await;
    assert_eq!(uuid.user.id, Fact::Value("5344c996-8823-4b37-8d6e-8515fc7c3a0a".to_owned()));
    assert_eq!(uuid.user.active, Fact::Value(false));
    assert_eq!(stand.record("ODD").await.user, User::default());
    let mailless = stand.record("MAILLESS").await;
    assert_eq!((&mailless.user.email, &mailless.user.active, &mailless.user.department), (&Fact::Unknown, &Fact::Unknown, &Fact::Unknown));
}

#[tokio::test]
async fn a_department_is_that_of_exactly_this_person() {
    let person = |id: &str, email: &str, department: &str| json!({"id": id, "email": email, "department": department, "job_title": null});
    let crowd = |number: usize| (0..number).map(move |number| person("x", &format!("{number:04}-ada@example.org"), "Crowd"));
    let (stand, _) = tenant(|knobs| knobs.people = crowd(400).chain([person("ada-2", "ADA@example.org", "Second")]).collect()).await;
    stand.fake.add(Device::computer("C02"));
    let record = stand.record("C02").await;
    assert_eq!(
        record.user.department,
        Fact::Value("Engines".to_owned()),
        "of two with this address the one of this id, beyond the first page"
    );
    stand.fake.change("C02", |device| {
        device.raw = [("user".to_owned(), json!({"email": "ada@example.org", "id": "other"}))].into_iter().collect()
    });
    assert_eq!(stand.record("C02").await.user.department, Fact::Unknown, "of two with this address neither has this id");
    stand
        .fake
        .change("C02", |device| device.raw = [("user".to_owned(), json!({"email": "da@example.org", "id": "ada"}))].into_iter().collect());
    assert_eq!(stand.record("C02").await.user.department, Fact::Unknown, "a part of an address is somebody else");
}

#[tokio::test]
async fn reads_dates_in_every_form_seen() {
    let stand = stand().await;
    let expected = at("2022-12-13T19:14:20.455Z");
    for (value, expected) in [
        (json!("2022-12-13 19:14:20.455000+00:00"), &expected),
        (json!("2022-12-13T19:14:20.455000Z"), &expected),
        (json!("2022-12-13T19:14:20.455Z"), &expected),
        (json!("2022-12-13T20:14:20.4550000+01:00"), &expected),
        (json!(""), &Fact::Absent),
        (json!(null), &Fact::Absent),
        (json!("yesterday"), &Fact::Unknown),
        (json!(["2022"]), &Fact::Unknown),
    ] {
        stand.fake.set(vec![Device::computer("C02").with("last_check_in", value.clone()).with("last_enrollment", value.clone())]);
        let record = stand.record("C02").await;
        assert_eq!((&record.last_seen, &record.enrolled_at), (expected, expected), "{value}");
    }
}

#[tokio::test]
async fn a_record_without_an_id_or_a_serial_number_says_nothing() {
    let (stand, _) = tenant(|_| ()).await;
    for (field, value) in [("device_id", json!("../../users")), ("device_id", json!(7)), ("serial_number", json!(["C02"]))] {
        stand.fake.set(vec![Device::computer("C02").with(field, value.clone())]);
        stand.fake.fail(Some(Fault::FilterIgnored));
        assert_eq!(row(&stand, "C02").await, Answer::Unavailable(Unavailable::Protocol), "{field} {value}");
    }
}

#[tokio::test]
async fn a_spent_hour_is_not_asked_into() {
    let (stand, kandji) = tenant(|knobs| knobs.left = Some(1)).await;
    stand.fake.add(Device::computer("C02"));
    assert!(is_found(&row(&stand, "C02").await, "C02"), "the last answer of the hour is good");
    for _ in 0..10 {
        let answer = row(&stand, "C02").await;
        let Answer::Unavailable(Unavailable::RateLimited(Some(wait))) = answer else { panic!("{answer:?}") };
        assert!(wait > Duration::from_secs(1_700) && wait <= Duration::from_secs(1_800), "{wait:?}");
    }
    assert_eq!(stand.fake.lookups().len(), 1);
    assert_eq!(kandji.knobs().left, Some(0));
}

#[tokio::test]
async fn a_refusal_without_retry_after_is_waited_out_as_the_gateway_says() {
    let (stand, _) = tenant(|knobs| (knobs.left, knobs.reset) = (Some(0), 42)).await;
    assert_eq!(row(&stand, "C02").await, Answer::Unavailable(Unavailable::RateLimited(Some(Duration::from_secs(42)))));
}

#[tokio::test]
async fn a_refused_token_is_not_tried_again() {
    let (stand, _) = tenant(|_| ()).await;
    stand.fake.fail_next(1, Fault::Status(401));
    assert_eq!(row(&stand, "C02").await, Answer::Unavailable(Unavailable::AuthRejected));
    assert_eq!(stand.fake.lookups().len(), 1);
    assert!(!format!("{:?}", stand.inventory).contains("secret"));
}

#[tokio::test]
async fn lists_all_devices_and_proves_it() {
    let knobs: [fn(&mut Knobs); 4] =
        [|_| (), |knobs| knobs.wrapped = true, |knobs| knobs.total = false, |knobs| (knobs.total, knobs.cap) = (false, 100)];
    for change in knobs {
        let (stand, kandji) = tenant(change).await;
        assert_eq!(stand.inventory.listing(), Listing::Incremental);
        stand.fake.set(many("C02", 650));
        let (listed, records) = list(&stand, None, stand.inventory.fields()).await;
        assert_eq!(listed, Ok(Listed { complete: true }), "{:?}", kandji.knobs());
        let serials: std::collections::BTreeSet<_> = records.iter().filter_map(|record| record.serial.value()).collect();
        assert_eq!((records.len(), serials.len()), (650, 650));
        assert!(records.iter().all(|record| record.managed == Fact::Value(true) && record.udid == Fact::Unknown));
        stand.fake.set(vec![]);
        assert_eq!(list(&stand, None, Fields::NONE).await, (Ok(Listed { complete: true }), vec![]));
    }
}

#[tokio::test]
async fn a_device_that_may_have_slipped_between_pages_is_not_proven_gone() {
    let (stand, _) = tenant(|_| ()).await;
    let devices: Vec<_> =
        many("C02", 1_500).into_iter().enumerate().map(|(number, device)| Device { id: format!("{number:05}"), ..device }).collect();
    stand.fake.set(devices);
    let (sender, mut receiver) = mpsc::channel(1);
    let inventory = Arc::clone(&stand.inventory);
    let listing = tokio::spawn(async move { inventory.list(None, Fields::NONE, sender).await });
    receiver.recv().await.unwrap();
    stand.fake.remove("C0200000");
    while receiver.recv().await.is_some() {}
    assert_eq!(listing.await.unwrap(), Ok(Listed { complete: false }));
}

#[tokio::test]
async fn a_list_ends_with_its_receiver_and_leaves_requests_to_lookups() {
    let (stand, kandji) = tenant(|_| ()).await;
    stand.fake.set(many("C02", 650));
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    assert_eq!(stand.inventory.list(None, Fields::NONE, sender).await, Ok(Listed { complete: false }));
    assert_eq!(stand.fake.lookups().len(), 1);
    kandji.knobs().left = Some(1_001);
    let (listed, records) = list(&stand, None, Fields::NONE).await;
    assert!(matches!(listed, Err(Unavailable::RateLimited(Some(_)))), "{listed:?}");
    assert_eq!(records.len(), 300 + 299);
    assert!(is_found(&row(&stand, "C0200001").await, "C0200001"));
}

#[tokio::test]
async fn details_are_listed_only_where_the_configuration_says_so() {
    let (stand, _) = tenant_with("list_details = true", |_| ()).await;
    stand.fake.set(many("C02", 2));
    let (listed, records) = list(&stand, None, stand.inventory.fields()).await;
    assert_eq!(listed, Ok(Listed { complete: true }));
    assert!(records.iter().all(|record| record.udid.value().is_some()), "{records:?}");
    stand.fake.forget();
    list(&stand, None, Fields::NONE).await.0.unwrap();
    assert_eq!(paths(&stand), ["/api/v1/devices"]);
}

#[tokio::test]
async fn lists_what_changed_with_whole_records() {
    let since = UnixTime::parse("2026-11-24T09:00:00Z").unwrap();
    for cursor in [false, true] {
        let (stand, _) = tenant(|knobs| knobs.cursor = cursor).await;
        let mut devices = many("OLD", 400);
        devices.push(
            Device::computer("NEW").with("prism.updated_at", json!("2026-11-24T09:30:00.029349+00:00")).with("is_removed", json!(true)),
        );
        stand.fake.set(devices);
        let (listed, records) = list(&stand, Some(since), Fields::NONE).await;
        assert_eq!(listed, Ok(Listed { complete: false }));
        assert_eq!(records.len(), 1);
        assert_eq!((&records[0].serial, &records[0].managed), (&Fact::Value("NEW".to_owned()), &Fact::Value(false)));
        let changed = many("NEW", 400).into_iter().map(|device| device.with("prism.updated_at", json!("2026-11-24T09:30:00Z")));
        stand.fake.set(many("OLD", 400).into_iter().chain(changed).collect());
        stand.fake.forget();
        let (listed, records) = list(&stand, Some(since), Fields::NONE).await;
        assert_eq!((listed, records.len()), (Ok(Listed { complete: false }), 400));
        assert!(records.iter().all(|record| record.serial.value().unwrap().starts_with("NEW")));
        assert!(stand.fake.lookups().len() < 10, "{:?}", paths(&stand));
    }
}

#[tokio::test]
async fn a_device_that_changed_is_known_to_be_lost_as_in_every_list() {
    let (stand, _) = tenant(|_| ()).await;
    let changed = |device: Device| device.with("prism.updated_at", json!("2026-11-24T09:30:00Z"));
    stand.fake.set(vec![changed(Device { lost: true, ..Device::phone("F4GA") }), changed(Device::phone("F4GB")), Device::phone("F4GC")]);
    let (_, records) = list(&stand, UnixTime::parse("2026-11-24T09:00:00Z"), Fields::NONE).await;
    let lost: BTreeMap<_, _> = records.iter().map(|record| (record.serial.value().unwrap().as_str(), record.lost.clone())).collect();
    assert_eq!(lost, BTreeMap::from([("F4GA", Fact::Value(true)), ("F4GB", Fact::Value(false))]));
}

#[tokio::test]
async fn d13c_details_and_states_are_asked_of_a_listed_device_itself() {
    let (stand, _) = tenant(|_| ()).await;
    stand.fake.set(many("C02", 2));
    let cache = stand.cache();
    let need = Fields::of(&[Field::Managed, Field::Encrypted, Field::Compliance, Field::UserDepartment]);
    cache.want(Wanted { fields: need, kinds: vec![IdentifierKind::Serial] });
    cache.sweep(true).await.unwrap();
    stand.fake.forget();
    crate::ask_for(&cache, "C0200000", Fields::of(&[Field::Managed])).await;
    assert!(stand.fake.lookups().is_empty(), "the list has it");
    let record = crate::ask_for(&cache, "C0200000", need).await;
    assert!(need.without(record.known()).is_empty() && stand.fake.lookups().len() == 4, "{record:?}");
}

#[tokio::test]
async fn what_changed_is_not_known_without_the_permission() {
    let (stand, _) = tenant(|knobs| _ = knobs.forbidden.insert("Device information")).await;
    assert_eq!(list(&stand, Some(UnixTime::from_nanos(0)), Fields::NONE).await.0, Err(Unavailable::Forbidden));
}

#[tokio::test]
async fn the_audit_log_tells_what_happened_to_devices() {
    let (stand, kandji) = tenant(|_| ()).await;
    let since = UnixTime::parse("2026-11-24T09:00:00Z").unwrap();
    kandji.knobs().events = vec![
        Kandji::event("delete", "", "before", "2026-11-24T08:00:00.000000Z"),
        Kandji::event("create", "", "enrolled", "2026-11-24T09:00:01.000000Z"),
        Kandji::event("update", "mdm", "removed", "2026-11-24T09:00:02.000000Z"),
        Kandji::event("delete", "", "deleted", "2026-11-24T09:00:03.000000Z"),
    ];
    let change = |id: &str, revoking| Change { device: Subject::ProviderId(id.to_owned()), revoking };
    let changes = stand.inventory.changes(since).await.unwrap();
    let changes: Vec<_> = changes.into_iter().map(|logged| logged.change).collect();
    assert_eq!(changes, [change("enrolled", false), change("removed", true), change("deleted", true)]);
    let many = |number: usize| (0..number).map(|number| Kandji::event("delete", "", &number.to_string(), "2026-11-24T09:00:00Z")).collect();
    kandji.knobs().events = many(1_200);
    assert_eq!(stand.inventory.changes(since).await.unwrap().len(), 1_200);
    kandji.knobs().events = many(10_001);
    let changes = stand.inventory.changes(since).await.unwrap();
    let rest = changes.last().map(|logged| &logged.change);
    assert_eq!(rest, Some(&Change { device: Subject::Everything, revoking: true }), "what cannot be read may be anything");
    kandji.knobs().forbidden.insert("List audit events");
    assert_eq!(stand.inventory.changes(since).await, Err(Unavailable::Forbidden));
}

#[tokio::test]
async fn an_event_of_a_device_that_is_not_named_counts_for_all() {
    let (stand, kandji) = tenant(|_| ()).await;
    let mut event = Kandji::event("delete", "", "d1", "2026-11-24T09:00:00Z");
    event["target_id"] = json!({"id": "d1"});
    event["new_state"] = json!(null);
    kandji.knobs().events = vec![event];
    let changes = stand.inventory.changes(UnixTime::from_nanos(0)).await.unwrap();
    let changes: Vec<_> = changes.into_iter().map(|logged| logged.change).collect();
    assert_eq!(changes, [Change { device: Subject::Everything, revoking: true }]);
}

#[tokio::test]
async fn a3_a_device_that_comes_again_as_another_is_sent_twice_and_the_list_is_not_complete() {
    for (second, records, complete) in [(false, 1, true), (true, 2, false)] {
        let row = |removed: bool| json!({"device_id": "d1", "serial_number": "C02A", "is_removed": removed});
        let fake = Fake::start(crate::Scripted(move |_: &fakes::Seen| fakes::server::Answer::json(json!([row(false), row(second)])))).await;
        let stand = Stand::open(fake, LINES);
        let (listed, end) = crate::listed(&stand).await;
        assert_eq!((listed.len(), end), (records, Ok(complete)));
    }
}

#[tokio::test]
async fn a_removal_in_the_audit_log_is_noticed_by_the_cache() {
    let (stand, kandji) = tenant(|_| ()).await;
    stand.fake.set(vec![Device { id: "d1".to_owned(), ..Device::computer("C02A") }]);
    let settings =
        cache::Settings { cache: Lifetimes::default(), limits: Limits::default(), connections: 10, sync: Some(Schedule::default()) };
    let cache = Arc::new(Cache::new("kandji", settings, Arc::clone(&stand.inventory), Arc::default(), Handle::current()));
    cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
    cache.sweep(true).await.unwrap();
    let device = DeviceId::new(IdentifierKind::Serial, "C02A").unwrap();
    let question =
        Question { device, need: Fields::NONE, hint: None, deadline: Instant::now() + Duration::from_secs(60), way: Way::Webhook };
    assert_eq!(cache.lookup(&question, Terms::default()).await.source, Source::Cached);
    stand.fake.remove("C02A");
    let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap();
    kandji.knobs().events.push(Kandji::event("delete", "", "d1", &now));
    assert_eq!((cache.read_feed().await, cache.read_feed().await), (Ok(1), Ok(0)));
    assert_eq!(cache.lookup(&question, Terms::default()).await.answer, Answer::NotFound);
}

#[tokio::test]
async fn the_doctor_names_each_permission() {
    let (stand, kandji) = tenant(|_| ()).await;
    stand.fake.add(Device::computer("C02"));
    let probe = || async { stand.inventory.probe(Instant::now() + Duration::from_secs(3)).await };
    let checks: BTreeMap<_, _> = probe().await.into_iter().map(|finding| (finding.check, finding.state)).collect();
    for request in ["List Devices", "Get Device Details", "Get Device Status", "List Users", "Device information", "List audit events"] {
        assert_eq!(checks.get(&format!("permission {request}")), Some(&State::Good), "{request} {checks:?}");
    }
    kandji.knobs().forbidden.insert("List Users");
    let found = probe().await.into_iter().find(|finding| finding.check == "permission List Users").unwrap();
    assert_eq!(found.state, State::Doubtful);
    assert!(found.fix.contains("List Users") && found.detail.contains("department"), "{found:?}");
    kandji.knobs().forbidden.insert("List Devices");
    let found = probe().await;
    assert!(found.iter().any(|finding| finding.check == "permission List Devices" && finding.state == State::Bad), "{found:?}");
    for (fault, check) in
        [(Fault::Status(401), "credentials"), (Fault::Html, "address"), (Fault::Reset, "address"), (Fault::Status(404), "address")]
    {
        stand.fake.fail_next(1, fault.clone());
        let found = probe().await;
        assert!(found[0].check == check && found[0].state == State::Bad && !found[0].fix.is_empty(), "{fault:?} {found:?}");
    }
}

#[test]
fn the_example_in_the_document_is_read() {
    let remote = documented("kandji");
    assert_eq!(remote.endpoint.base_url.as_str(), "https://tenant.api.kandji.io/");
    assert!(remote.sync.is_some());
    // Lookups alone, without lists and events, stay below what a tenant may ask in an hour.
    assert!(remote.limits.per_second * 3600 <= 9000, "{}", remote.limits.per_second);
}

/// Fake of a Kandji that minds neither limit nor offset.
struct Endless;

impl fakes::Service for Endless {
    fn answer(&self, _: &fakes::Seen, _: &[Device], _: bool) -> fakes::server::Answer {
        let rows: Vec<_> = (0..300).map(|id| json!({"device_id": format!("d{id}"), "serial_number": format!("C{id}")})).collect();
        fakes::server::Answer::json(json!(rows))
    }
}

#[tokio::test]
async fn g10_a_list_that_comes_again_and_again_ends_as_incomplete() {
    let stand = Stand::open(Fake::start(Endless).await, LINES);
    let (listed, records) = list(&stand, None, Fields::NONE).await;
    assert!(!listed.unwrap().complete && !records.is_empty());
    assert!(stand.fake.lookups().len() <= 3, "{}", stand.fake.lookups().len());
}

#[tokio::test]
async fn a12_invented_identifiers_leave_known_devices_a_quarter_of_the_hour() {
    let (stand, kandji) = tenant(|_| ()).await;
    stand.fake.set(many("C02", 700));
    let cache = stand.cache();
    assert!(is_found(&stand.ask_through(&cache, "C0200000").await, "C0200000"));
    kandji.knobs().left = Some(40);
    for guess in ["C", "C0", "C02", "C020", "C0200"] {
        let answer = stand.ask_through(&cache, guess).await;
        assert_eq!(answer, Answer::Unavailable(Unavailable::OutOfBudget), "{guess}");
    }
    assert_eq!(kandji.knobs().left, Some(39), "it is known from an answer alone how many are left");
    stand.fake.remove("C0200000");
    cache.apply(&[Change { device: Subject::Everything, revoking: false }]);
    assert_eq!(stand.ask_through(&cache, "C0200000").await, Answer::NotFound, "the service can be asked");
}

#[tokio::test]
async fn b6_parts_of_serial_numbers_cost_no_more_requests_than_there_are_guesses() {
    let (stand, _) = tenant_with("[provider.it.limits]\nper_second = 1000\nunknown_per_minute = 10", |knobs| knobs.cap = 100).await;
    stand.fake.set(many("C02", 700));
    let cache = stand.cache();
    let mut refused = 0;
    for number in 0..10 {
        let answer = stand.ask_through(&cache, &"C0200"[..=number % 5]).await;
        refused += usize::from(answer == Answer::Unavailable(Unavailable::OutOfBudget));
    }
    let requests = stand.fake.lookups().len();
    assert!(requests <= 2 * 10 + 8, "{requests}");
    assert!(refused > 0);
}
