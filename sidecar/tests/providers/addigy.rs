use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fakes::addigy::{Addigy, Knobs};
use fakes::{Device, Fake, Fault};
use inventory::{Answer, Listed, Listing, State, Unavailable};
use posture::identity::IdentifierKind;
use posture::record::{Compliance, Fact, Field, Fields, Form, Group, Record};
use posture::time::UnixTime;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Stand, documented};

const LINES: &str = "type = \"addigy\"\nbase_url = \"{url}/api/v2\"\napi_key = { env = \"SECRET\" }\n";

/// A provider that asks an organisation without surprises.
pub(crate) async fn stand() -> Stand {
    organisation(|_| ()).await.0
}

async fn organisation(change: impl FnOnce(&mut Knobs)) -> (Stand, Addigy) {
    organisation_with("", change).await
}

async fn organisation_with(setting: &str, change: impl FnOnce(&mut Knobs)) -> (Stand, Addigy) {
    let addigy = Addigy::with(change);
    (Stand::open(Fake::start(addigy.clone()).await, &format!("{LINES}{setting}")), addigy)
}

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

async fn list(stand: &Stand, need: Fields) -> (Result<Listed, Unavailable>, Vec<Record>) {
    let (sender, mut receiver) = mpsc::channel(10_000);
    let listed = stand.inventory.list(None, need, sender).await;
    let mut records = Vec::new();
    while let Ok(page) = receiver.try_recv() {
        records.extend(page);
    }
    (listed, records)
}

fn failed() -> Value {
    json!({"type": "boolean", "value": null, "error_msg": "the fact could not be collected"})
}

#[tokio::test]
async fn reads_every_field() {
    for underscores in [false, true] {
        let (stand, addigy) = organisation(|knobs| knobs.underscores = underscores).await;
        addigy.knobs().policies = [("p1".to_owned(), "Staff".to_owned())].into();
        stand.fake.add(Device::computer("C02XL0GYJGH5").in_groups(&["p1"]));
        let record = stand.record("C02XL0GYJGH5").await;
        assert_eq!(record.known(), stand.inventory.fields());
        assert_eq!(record.provider_id, "agent-C02XL0GYJGH5");
        assert_eq!(record.form, Fact::Value(Form::Computer));
        assert_eq!((&record.managed, &record.supervised, &record.lost), (&Fact::Value(true), &Fact::Value(true), &Fact::Value(false)));
        assert_eq!((&record.compromised, &record.encrypted), (&Fact::Value(false), &Fact::Value(true)));
        assert_eq!(record.compliance, Fact::Value(Compliance::Compliant));
        assert_eq!(record.groups, Fact::Value(vec![Group { id: "p1".to_owned(), name: "Staff".to_owned() }]));
        assert_eq!(record.user.id, Fact::Value("ada".to_owned()));
        assert_eq!(record.user.email, Fact::Value("ada@example.org".to_owned()));
        assert_eq!(record.last_seen, at("2026-11-24T08:00:00.123Z"));
        assert_eq!(record.enrolled_at, at("2025-02-01T09:00:00.1234567Z"));
        assert_eq!(record.inventory_at, at("2026-11-24T07:55:01.5Z"));
    }
}

#[tokio::test]
async fn a_part_of_a_serial_number_is_another_device() {
    let stand = stand().await;
    stand.fake.add(Device::computer("ABC1234"));
    assert_eq!(row(&stand, "ABC123").await, Answer::NotFound);
    assert_eq!(stand.fake.asked(), ["ABC123"]);
}

#[tokio::test]
async fn no_items_are_no_devices() {
    let knobs: [fn(&mut Knobs); 3] = [|_| (), |knobs| knobs.no_page_count = true, |knobs| knobs.no_metadata = true];
    for change in knobs {
        let (stand, addigy) = organisation(change).await;
        assert_eq!(row(&stand, "C02").await, Answer::NotFound, "{:?}", addigy.knobs());
        stand.fake.add(Device::computer("C02"));
        assert!(is_found(&row(&stand, "C02").await, "C02"), "{:?}", addigy.knobs());
    }
    let (stand, _) = organisation(|_| ()).await;
    for body in ["{}", "{\"items\":{}}", "[]", "null", "{\"items\":\"\"}", "{\"items\":[{}]}", "{\"items\":[null]}"] {
        stand.fake.fail_next(1, Fault::Body(body.as_bytes().to_vec()));
        assert_eq!(row(&stand, "C02").await, Answer::Unavailable(Unavailable::Protocol), "{body}");
    }
}

#[tokio::test]
async fn finds_a_device_although_the_filter_does_nothing() {
    let knobs: [fn(&mut Knobs); 3] = [|_| (), |knobs| knobs.no_page_count = true, |knobs| knobs.cap = 50];
    for change in knobs {
        let (stand, addigy) = organisation(change).await;
        addigy.knobs().ignores_filters = true;
        let mut devices = many("DEF", 300);
        devices.push(Device::computer("DEF00250A"));
        stand.fake.set(devices);
        assert!(is_found(&row(&stand, "DEF00250A").await, "DEF00250A"), "{:?}", addigy.knobs());
        assert_eq!(row(&stand, "ABC123").await, Answer::NotFound, "all of them were seen: {:?}", addigy.knobs());
    }
}

#[tokio::test]
async fn devices_that_were_not_asked_for_prove_nothing_where_some_may_be_missing() {
    let (stand, _) = organisation(|knobs| (knobs.ignores_filters, knobs.no_metadata) = (true, true)).await;
    stand.fake.set(many("DEF", 250));
    assert_eq!(row(&stand, "ABC123").await, Answer::Unavailable(Unavailable::FilterIgnored));
    let (stand, _) = organisation(|knobs| (knobs.ignores_filters, knobs.cap) = (true, 10)).await;
    stand.fake.set(many("DEF", 250));
    assert_eq!(row(&stand, "ABC123").await, Answer::Unavailable(Unavailable::FilterIgnored));
    assert_eq!(stand.fake.lookups().len(), 20);
}

#[tokio::test]
async fn a_server_that_pages_in_circles_is_left() {
    let stand = stand().await;
    let page = |number: usize, extra: Value| {
        let row = json!({"agentid": "a", "facts": {"serial_number": {"value": "DEF", "error_msg": ""}}});
        let mut body = json!({"items": [row], "metadata": {"page": number, "page_count": 1_000_000, "total": 1_000_000}});
        if extra.is_object() {
            body["metadata"] = extra;
        }
        Fault::Body(body.to_string().into_bytes())
    };
    stand.fake.fail(Some(page(1, Value::Null)));
    assert_eq!(row(&stand, "DEF").await, Answer::Unavailable(Unavailable::Protocol), "page 2 says that it is page 1");
    stand.fake.fail(Some(page(0, json!({"total": 1_000_000}))));
    assert_eq!(row(&stand, "DEF").await, Answer::Unavailable(Unavailable::Protocol), "page 2 has nothing new");
    assert_eq!(stand.fake.lookups().len(), 4);
}

#[tokio::test]
async fn finds_a_device_whatever_the_case_and_the_spaces() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02XL0GYJGH5"), Device::computer(" F17ABC ")]);
    assert!(is_found(&row(&stand, "c02xl0gyjgh5").await, "C02XL0GYJGH5"));
    assert!(is_found(&row(&stand, " f17abc").await, "F17ABC"));
    assert_eq!(row(&stand, "С02XL0GYJGH5").await, Answer::NotFound, "the first letter is Cyrillic");
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
async fn asks_for_the_facts_that_are_needed() {
    let stand = stand().await;
    stand.fake.add(Device::computer("C02"));
    stand.ask(IdentifierKind::Serial, "C02", Fields::of(&[Field::Managed, Field::Lost])).await;
    let seen = stand.fake.lookups();
    assert_eq!(seen.len(), 1);
    let facts = seen[0].json()["desired_fact_identifiers"].clone();
    let facts: BTreeSet<_> = facts.as_array().unwrap().iter().map(|fact| fact.as_str().unwrap().to_owned()).collect();
    let expected = ["device_name", "has_mdm", "is_mdm_lost_mode_enabled", "mac_uuid", "serial_number", "udid"];
    assert_eq!(facts, expected.map(str::to_owned).into());
}

#[tokio::test]
async fn a_fact_that_failed_is_unknown() {
    let stand = stand().await;
    stand.fake.set(vec![
        Device { managed: false, compliant: Some(false), lost: true, ..Device::computer("OFF") },
        Device { compliant: None, ..Device::computer("NULL") }.with("has_mdm", failed()).with("is_mdm_lost_mode_enabled", failed()),
        Device::computer("STALE").with("has_mdm", json!({"value": true, "error_msg": "timed out"})).with("is_compliant", json!("perhaps")),
        Device::computer("BARE")
            .with("has_mdm", Value::Null)
            .with("is_compliant", Value::Null)
            .with("is_mdm_lost_mode_enabled", Value::Null),
    ]);
    let off = stand.record("OFF").await;
    assert_eq!((&off.managed, &off.lost), (&Fact::Value(false), &Fact::Value(true)));
    assert_eq!(off.compliance, Fact::Value(Compliance::NonCompliant));
    for serial in ["NULL", "STALE", "BARE"] {
        let record = stand.record(serial).await;
        assert_eq!((&record.managed, &record.compliance), (&Fact::Unknown, &Fact::Unknown), "{serial}");
        assert_eq!(record.lost.is_known(), serial == "STALE", "{serial}");
    }
}

#[tokio::test]
async fn a_serial_number_that_could_not_be_collected_may_be_the_one() {
    let (stand, _) = organisation(|knobs| knobs.ignores_filters = true).await;
    stand.fake.set(vec![Device::computer("DEF"), Device::computer("C02").with("serial_number", failed())]);
    assert_eq!(row(&stand, "C02").await, Answer::Unavailable(Unavailable::Protocol));
    stand.fake.change("C02", |device| _ = device.raw.insert("serial_number".to_owned(), json!("")));
    assert_eq!(row(&stand, "C02").await, Answer::NotFound);
}

#[tokio::test]
async fn a3_a_serial_number_that_could_not_be_collected_may_be_a_double() {
    let item = |agent: &str, serial: Value| json!({"agentid": agent, "facts": {"serial_number": serial}});
    let one = item("a", json!({"value": "C02"}));
    for (other, expected) in [
        (failed(), Some(Unavailable::Protocol)),
        (json!({"value": "C02", "error_msg": "timed out"}), Some(Unavailable::Protocol)),
        (json!({"value": "C02B"}), None),
        (json!({"value": ""}), None),
    ] {
        let (first, second) = (one.clone(), item("b", other.clone()));
        for items in [[first.clone(), second.clone()], [second, first]] {
            let fake = Fake::start(crate::Scripted(move |_: &fakes::Seen| {
                fakes::server::Answer::json(json!({"items": items, "metadata": {"total": 2}}))
            }))
            .await;
            let stand = Stand::open(fake, LINES);
            match expected {
                Some(why) => assert_eq!(row(&stand, "C02").await, Answer::Unavailable(why), "{other}"),
                None => assert!(is_found(&row(&stand, "C02").await, "C02"), "{other}"),
            }
        }
    }
}

#[tokio::test]
async fn d13_a_miss_by_one_spelling_says_nothing_of_another() {
    let fake = Fake::start(crate::Scripted(move |request: &fakes::Seen| {
        let wanted = request.json()["query"]["filters"][0]["value"][0].as_str().unwrap().to_owned();
        let items: Vec<_> = ["VM-AB1", "VMware-56 4d"]
            .into_iter()
            .filter(|serial| serial.contains(&wanted))
            .map(|serial| json!({"agentid": serial, "facts": {"serial_number": {"value": serial}}}))
            .collect();
        fakes::server::Answer::json(json!({"metadata": {"total": items.len()}, "items": items}))
    }))
    .await;
    let stand = Stand::open(fake, LINES);
    for (serial, guess) in [("VM-AB1", "vm-ab1"), ("VMware-56 4d", "vmware-56 4D"), ("VMware-56 4d", "VMWARE-56 4D")] {
        let cache = stand.cache();
        stand.ask_through(&cache, guess).await;
        assert!(is_found(&stand.ask_through(&cache, serial).await, serial), "{guess}");
    }
    assert!(is_found(&row(&stand, "vm-ab1").await, "VM-AB1"), "in upper case it is asked for whatever stands in it");
}

#[tokio::test]
async fn a_device_that_is_long_gone_shows_by_when_it_was_last_seen() {
    let stand = stand().await;
    stand.fake.add(Device { last_seen: Some("2024-12-01T00:00:00.5Z".to_owned()), ..Device::computer("GHOST") });
    let ghost = stand.record("GHOST").await;
    assert_eq!((&ghost.managed, &ghost.last_seen), (&Fact::Value(true), &at("2024-12-01T00:00:00.5Z")));
    stand.fake.add(Device::computer("GHOST"));
    assert_eq!(row(&stand, "GHOST").await, Answer::Ambiguous, "it was enrolled again, and its old record stays");
    stand.fake.set(vec![Device { last_seen: None, ..Device::computer("NEVER") }]);
    assert_eq!(stand.record("NEVER").await.last_seen, Fact::Unknown);
}

#[tokio::test]
async fn reads_dates_in_every_form() {
    let stand = stand().await;
    let expected = at("2022-12-13T19:14:20.5Z");
    for (value, expected) in [
        (json!("2022-12-13T19:14:20.5Z"), &expected),
        (json!("2022-12-13T19:14:20.500000Z"), &expected),
        (json!("2022-12-13T19:14:20.500000000+00:00"), &expected),
        (json!("2022-12-13 19:14:20.5+00:00"), &expected),
        (json!("0001-01-01T00:00:00Z"), &Fact::Unknown),
        (json!(""), &Fact::Absent),
        (json!("yesterday"), &Fact::Unknown),
        (json!({"value": null, "error_msg": ""}), &Fact::Unknown),
    ] {
        stand.fake.set(vec![Device::computer("C02").with("registration_date", value.clone())]);
        assert_eq!(&stand.record("C02").await.enrolled_at, expected, "{value}");
    }
}

#[tokio::test]
async fn reads_users_in_every_form() {
    let stand = stand().await;
    for (users, expected) in [
        (json!([]), Fact::Absent),
        (json!(["ada@example.org"]), Fact::Value("ada@example.org".to_owned())),
        (json!(["ünï{{.}}\"@example.org"]), Fact::Value("ünï{{.}}\"@example.org".to_owned())),
        (json!(["ada@example.org", "grace@example.org"]), Fact::Unknown),
        (json!([{"email": "ada@example.org"}]), Fact::Unknown),
        (json!(["ada"]), Fact::Unknown),
        (json!("ada@example.org"), Fact::Unknown),
    ] {
        stand.fake.set(vec![Device::computer("C02").with("identity_users", users.clone()).with("current_user", json!(""))]);
        let record = stand.record("C02").await;
        assert_eq!((&record.user.email, &record.user.id), (&expected, &Fact::Absent), "{users}");
    }
}

#[tokio::test]
async fn names_of_policies_are_asked_for_once_and_only_where_groups_are_needed() {
    for policies_in_items in [false, true] {
        let (stand, addigy) = organisation(|knobs| knobs.policies_in_items = policies_in_items).await;
        addigy.knobs().policies = [("p1".to_owned(), "Staff {{ä}}".to_owned())].into();
        stand.fake.set(vec![Device::computer("C02").in_groups(&["p1", "gone"]), Device::computer("C03").in_groups(&["p1"])]);
        let asked = || stand.fake.lookups().iter().filter(|seen| seen.path.ends_with("/oa/policies/query")).count();
        row(&stand, "C02").await;
        assert_eq!(asked(), 0);
        let group = |id: &str, name: &str| Group { id: id.to_owned(), name: name.to_owned() };
        for _ in 0..2 {
            assert_eq!(stand.record("C02").await.groups, Fact::Value(vec![group("p1", "Staff {{ä}}"), group("gone", "")]));
            assert_eq!(stand.record("C03").await.groups, Fact::Value(vec![group("p1", "Staff {{ä}}")]));
        }
        assert_eq!(asked(), 2, "once, and once more for the rest where one did not come");
    }
}

#[tokio::test]
async fn a14_the_name_of_a_policy_that_does_not_come_is_not_known() {
    let (stand, addigy) = organisation(|_| ()).await;
    addigy.knobs().policies = [("p66".to_owned(), "Quarantine".to_owned())].into();
    stand.fake.set(vec![Device::computer("C02").in_groups(&["p66"])]);
    let group = |name: &str| Fact::Value(vec![Group { id: "p66".to_owned(), name: name.to_owned() }]);
    assert_eq!(stand.record("C02").await.groups, group("Quarantine"));
    let (stand, _) = organisation(|_| ()).await;
    stand.fake.set(vec![Device::computer("C02").in_groups(&["p66"])]);
    assert_eq!(stand.record("C02").await.groups, group(""), "a rule by name denies, and one by id goes on");
    let (other, _) = organisation_with("policy_names = false", |_| ()).await;
    other.fake.set(vec![Device::computer("C02").in_groups(&["p66"])]);
    assert_eq!(other.record("C02").await.groups, group("p66"), "policies are called by their ids there");
}

#[tokio::test]
async fn names_of_policies_are_read_from_all_pages_of_an_answer() {
    let fake = Fake::start(crate::Scripted(|request: &fakes::Seen| {
        if request.path.ends_with("/oa/policies/query") {
            // The answer has one of the policies that were asked for.
            let id = request.json()["policies"][0].as_str().unwrap().to_owned();
            return fakes::server::Answer::json(json!({"items": [{"policyId": id, "name": format!("name of {id}")}]}));
        }
        let facts = json!({"serial_number": {"value": "C02"}, "policy_ids": {"value": ["p1", "p2", "p3"]}});
        fakes::server::Answer::json(json!({"items": [{"agentid": "a", "facts": facts}], "metadata": {"total": 1}}))
    }))
    .await;
    let stand = Stand::open(fake, LINES);
    let record = stand.record("C02").await;
    let names: Vec<_> = record.groups.value().unwrap().iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["name of p1", "name of p2", "name of p3"]);
}

#[tokio::test]
async fn a3_an_agent_that_comes_again_as_another_is_sent_twice_and_the_list_is_not_complete() {
    let row =
        |lost: bool| json!({"agentid": "a", "facts": {"serial_number": {"value": "C02"}, "is_mdm_lost_mode_enabled": {"value": lost}}});
    for (second, records) in [(false, 1), (true, 2)] {
        let fake = Fake::start(crate::Scripted(move |_: &fakes::Seen| {
            fakes::server::Answer::json(json!({"items": [row(false), row(second)], "metadata": {"total": 2}}))
        }))
        .await;
        let stand = Stand::open(fake, LINES);
        let (listed, complete) = crate::listed(&stand).await;
        assert_eq!((listed.len(), complete), (records, Ok(false)));
    }
}

#[tokio::test]
async fn b4_an_answer_beside_an_error_is_none() {
    let stand = stand().await;
    for body in [r#"{"items":null,"error":"upstream timeout"}"#, r#"{"items":[],"metadata":{"total":0},"errors":[{"message":"x"}]}"#] {
        stand.fake.fail(Some(Fault::Body(body.as_bytes().to_vec())));
        assert_eq!(row(&stand, "C02").await, Answer::Unavailable(Unavailable::Protocol), "{body}");
    }
}

#[tokio::test]
async fn a_key_without_policies_fails_only_those_who_need_groups() {
    let (stand, _) = organisation(|knobs| _ = knobs.forbidden.insert("/oa/policies/query")).await;
    stand.fake.add(Device::computer("C02"));
    assert_eq!(stand.serial("C02").await, Answer::Unavailable(Unavailable::Forbidden));
    assert!(is_found(&row(&stand, "C02").await, "C02"));
    let (stand, _) = organisation_with("policy_names = false", |knobs| _ = knobs.forbidden.insert("/oa/policies/query")).await;
    stand.fake.add(Device::computer("C02").in_groups(&["p1"]));
    assert_eq!(stand.record("C02").await.groups, Fact::Value(vec![Group { id: "p1".to_owned(), name: "p1".to_owned() }]));
}

#[tokio::test]
async fn a_refused_key_is_not_tried_again() {
    let stand = stand().await;
    stand.fake.fail_next(1, Fault::Status(401));
    assert_eq!(row(&stand, "C02").await, Answer::Unavailable(Unavailable::AuthRejected));
    assert_eq!(stand.fake.lookups().len(), 1);
    assert!(!format!("{:?}", stand.inventory).contains("secret"));
}

#[tokio::test]
async fn lists_all_devices_and_proves_it() {
    let (stand, addigy) = organisation(|_| ()).await;
    assert_eq!(stand.inventory.listing(), Listing::Whole);
    stand.fake.set(many("C02", 450));
    let (listed, records) = list(&stand, stand.inventory.fields()).await;
    assert_eq!((listed, records.len()), (Ok(Listed { complete: true }), 450));
    assert!(records.iter().all(|record| record.managed == Fact::Value(true)));
    let names = stand.fake.lookups().iter().filter(|seen| seen.path.ends_with("/oa/policies/query")).count();
    assert_eq!(names, 1);
    addigy.knobs().no_page_count = true;
    assert_eq!(list(&stand, Fields::NONE).await.0, Ok(Listed { complete: true }));
    addigy.knobs().no_metadata = true;
    let (listed, records) = list(&stand, Fields::NONE).await;
    assert_eq!((listed, records.len()), (Ok(Listed { complete: false }), 450), "nothing says how many there are");
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    assert_eq!(stand.inventory.list(None, Fields::NONE, sender).await, Ok(Listed { complete: false }));
    stand.fake.set(vec![]);
    addigy.knobs().no_metadata = false;
    assert_eq!(list(&stand, Fields::NONE).await, (Ok(Listed { complete: true }), vec![]));
}

#[tokio::test]
async fn a_list_that_changed_while_it_was_read_is_not_complete() {
    let stand = stand().await;
    stand.fake.set(many("C02", 800));
    let (sender, mut receiver) = mpsc::channel(1);
    let inventory = std::sync::Arc::clone(&stand.inventory);
    let listing = tokio::spawn(async move { inventory.list(None, Fields::NONE, sender).await });
    receiver.recv().await.unwrap();
    stand.fake.remove("C0200000");
    while receiver.recv().await.is_some() {}
    assert_eq!(listing.await.unwrap(), Ok(Listed { complete: false }));
}

#[tokio::test]
async fn the_doctor_names_each_permission_and_tries_the_filter() {
    let (stand, addigy) = organisation(|_| ()).await;
    stand.fake.add(Device::computer("C02"));
    let probe = || async { stand.inventory.probe(Instant::now() + Duration::from_secs(3)).await };
    let checks: BTreeMap<_, _> = probe().await.into_iter().map(|finding| (finding.check, finding.state)).collect();
    for check in ["address", "credentials", "permission POST /devices", "filter", "permission POST /oa/policies/query"] {
        assert_eq!(checks.get(check), Some(&State::Good), "{check} {checks:?}");
    }
    addigy.knobs().ignores_filters = true;
    addigy.knobs().forbidden.insert("/oa/policies/query");
    let findings = probe().await;
    for check in ["filter", "permission POST /oa/policies/query"] {
        let found = findings.iter().find(|finding| finding.check == check).unwrap();
        assert!(found.state == State::Doubtful && !found.fix.is_empty(), "{found:?}");
    }
    addigy.knobs().forbidden.insert("/devices");
    let found = probe().await;
    assert!(found[0].check == "permission POST /devices" && found[0].state == State::Bad, "{found:?}");
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
    let remote = documented("addigy");
    assert_eq!(remote.endpoint.base_url.as_str(), "https://api.addigy.com/api/v2");
    assert!(remote.sync.is_some());
}
