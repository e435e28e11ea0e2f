//! Tests of what is Fleet's own.

use std::time::Duration;

use engine::cache::Wanted;
use fakes::fleet::Fleet;
use fakes::{Device, Fake, Fault};
use inventory::{Answer, Listing, State, Unavailable};
use posture::identity::IdentifierKind;
use posture::record::{Compliance, Fact, Field, Fields, Form, Record};
use posture::time::UnixTime;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::{Stand, ask_for};

pub(crate) async fn stand() -> Stand {
    of(Fleet::default()).await
}

async fn of(fleet: Fleet) -> Stand {
    Stand::open(Fake::start(fleet).await, "type = \"fleet\"\nbase_url = \"{url}\"\ntoken = { env = \"SECRET\" }")
}

async fn listed(stand: &Stand, need: Fields) -> (Vec<Record>, Result<bool, Unavailable>) {
    let (sender, mut pages) = mpsc::channel(1000);
    let end = stand.inventory.list(None, need, sender).await.map(|listed| listed.complete);
    let mut records = Vec::new();
    while let Some(page) = pages.recv().await {
        records.extend(page);
    }
    (records, end)
}

#[tokio::test]
async fn reads_a_whole_record() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A"), Device::phone("F4GA")]);
    let record = stand.record("c02a").await;
    assert_eq!(record.serial, Fact::Value("C02A".to_owned()));
    assert_eq!(record.form, Fact::Value(Form::Computer));
    assert_eq!(record.os_version, Fact::Value("15.4.1".to_owned()));
    assert_eq!(record.managed, Fact::Value(true));
    assert_eq!(record.ownership, Fact::Value("On (automatic)".to_owned()));
    assert_eq!(record.compliance, Fact::Value(Compliance::Compliant));
    assert_eq!(record.groups.value().unwrap()[0].name, "All Managed");
    assert_eq!((&record.lost, &record.wipe_pending, &record.encrypted), (&Fact::Value(false), &Fact::Value(false), &Fact::Value(true)));
    assert_eq!(record.user.id, Fact::Value("ada@example.org".to_owned()));
    assert!(record.last_seen.value().is_some() && record.enrolled_at.value().is_some());
    assert!(stand.inventory.fields().without(record.known()).is_empty(), "{:?}", stand.inventory.fields().without(record.known()));
    assert_eq!(stand.record("F4GA").await.form, Fact::Value(Form::MobileDevice));
}

#[tokio::test]
async fn a_host_that_is_named_like_a_serial_number_is_not_that_device() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("IMPOSTOR").with("hostname", json!("C02A"))]);
    assert_eq!(stand.serial("C02A").await, Answer::NotFound);
}

#[tokio::test]
async fn a_host_that_is_named_like_a_serial_number_does_not_hide_that_device() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("IMPOSTOR").with("hostname", json!("C02A")), Device::computer("C02A")]);
    assert_eq!(stand.record("C02A").await.serial, Fact::Value("C02A".to_owned()));
}

#[tokio::test]
async fn a_uuid_counts_only_where_one_was_asked_for() {
    let stand = stand().await;
    let device = Device { udid: "4C4C4544-0000".to_owned(), ..Device::computer("C02A") };
    stand.fake.set(vec![device]);
    assert_eq!(stand.serial("4C4C4544-0000").await, Answer::NotFound);
    let found = stand.ask(IdentifierKind::Udid, "4c4c4544-0000", stand.inventory.fields()).await;
    assert!(matches!(found, Answer::Found(_)), "{found:?}");
    assert_eq!(stand.ask(IdentifierKind::Udid, "C02A", stand.inventory.fields()).await, Answer::NotFound);
}

#[tokio::test]
async fn other_kinds_of_identifiers_ask_nobody() {
    let stand = stand().await;
    for kind in [IdentifierKind::Hostname, IdentifierKind::Email, IdentifierKind::Yubico, IdentifierKind::Tpm] {
        assert_eq!(stand.ask(kind, "computer-c02a.local", Fields::NONE).await, Answer::InvalidIdentifier);
    }
    for dots in [".", "..", " .. "] {
        assert_eq!(stand.serial(dots).await, Answer::InvalidIdentifier);
    }
    assert!(stand.fake.lookups().is_empty());
}

#[tokio::test]
async fn an_identifier_is_one_literal_whatever_stands_in_it() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A"), Device::computer("a/../b")]);
    for nasty in ["X','Y", "a&b=c", "#", "%00", "../x", "?query=1", "*", "ü 漢", "C02A/", "C02A\\"] {
        stand.fake.forget();
        assert_eq!(stand.serial(nasty).await, Answer::NotFound, "{nasty}");
        assert_eq!(stand.fake.asked(), [nasty]);
    }
    assert_eq!(stand.record("A/../B").await.serial, Fact::Value("a/../b".to_owned()));
}

#[tokio::test]
async fn two_hosts_with_one_serial_number_are_ambiguous() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A"), Device::computer("C02A")]);
    assert_eq!(stand.serial("C02A").await, Answer::Ambiguous);
}

#[tokio::test]
async fn an_unknown_device_costs_one_request_and_a_known_one_two() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A"), Device::computer("IMPOSTOR").with("hostname", json!("C02A"))]);
    assert_eq!(stand.serial("C02B").await, Answer::NotFound);
    assert_eq!(stand.fake.lookups().len(), 1);
    stand.record("C02A").await;
    assert_eq!(stand.fake.lookups().len(), 3);
    assert_eq!(stand.fake.asked(), ["C02B", "C02A"]);
}

#[tokio::test]
async fn d13a_a_serial_number_is_found_whatever_its_case_and_its_absence_counts_for_each() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02XL0GYJGH5")]);
    let cache = stand.cache();
    assert!(matches!(stand.ask_through(&cache, "c02xl0gyjgh5").await, Answer::Found(_)));
    assert!(matches!(stand.ask_through(&cache, "C02XL0GYJGH5").await, Answer::Found(_)));
    stand.fake.forget();
    assert_eq!(stand.ask_through(&cache, "c02none").await, Answer::NotFound);
    assert_eq!(stand.ask_through(&cache, "C02NONE").await, Answer::NotFound);
    assert_eq!(stand.fake.asked(), ["c02none"], "the search does not mind the case, so that one answer is that of every spelling");
}

#[tokio::test]
async fn d13b_a_host_of_another_team_is_not_there_and_hides_none() {
    let stand = of(Fleet { team: Some(1), ..Fleet::default() }).await;
    let of_team = |team: u64, serial: &str| Device::computer(serial).with("team_id", json!(team));
    let foreign = (0..5).map(|number| of_team(2, &format!("FOREIGN{number}")));
    stand.fake.set(foreign.chain([of_team(2, "X").with("hostname", json!("C02A")), of_team(1, "C02A")]).collect());
    let cache = stand.cache();
    for number in 0..5 {
        assert_eq!(stand.ask_through(&cache, &format!("FOREIGN{number}")).await, Answer::NotFound);
    }
    assert!(matches!(stand.ask_through(&cache, "C02A").await, Answer::Found(_)));
}

#[tokio::test]
async fn d13b_the_doctor_says_that_a_token_sees_one_team_alone() {
    let stand = of(Fleet { team: Some(7), ..Fleet::default() }).await;
    let findings = stand.inventory.probe(Instant::now() + Duration::from_secs(3)).await;
    let teams = findings.iter().find(|finding| finding.check == "teams").unwrap();
    assert!(teams.state == State::Doubtful && teams.detail.contains("`Team 7`") && !teams.fix.is_empty(), "{teams:?}");
}

#[tokio::test]
async fn d13c_what_the_list_lacks_is_asked_of_the_host_itself() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A"), Device { user: None, ..Device::computer("C02B") }]);
    let cache = stand.cache();
    let wanted = Fields::of(&[Field::Managed, Field::Encrypted]);
    cache.want(Wanted { fields: wanted, kinds: vec![IdentifierKind::Serial] });
    cache.sweep(true).await.unwrap();
    stand.fake.forget();
    let managed = ask_for(&cache, "C02A", Fields::of(&[Field::Managed])).await;
    assert_eq!((managed.managed.clone(), stand.fake.lookups().len()), (Fact::Value(true), 0), "the list has it");
    let encrypted = ask_for(&cache, "C02A", wanted).await;
    assert_eq!((encrypted.encrypted.clone(), stand.fake.lookups().len()), (Fact::Value(true), 2));
    ask_for(&cache, "C02A", wanted).await;
    assert_eq!(stand.fake.lookups().len(), 2, "and then it is remembered");
}

#[tokio::test]
async fn d13c_a_list_that_has_the_encryption_is_believed() {
    let stand = of(Fleet { lists_encryption: true, ..Fleet::default() }).await;
    stand.fake.set(vec![Device::computer("C02A"), Device::computer("C02B").with("disk_encryption_enabled", json!(null))]);
    let cache = stand.cache();
    let wanted = Fields::of(&[Field::Encrypted]);
    cache.want(Wanted { fields: wanted, kinds: vec![IdentifierKind::Serial] });
    cache.sweep(true).await.unwrap();
    stand.fake.forget();
    assert_eq!(ask_for(&cache, "C02A", wanted).await.encrypted, Fact::Value(true));
    assert!(stand.fake.lookups().is_empty());
    assert_eq!(ask_for(&cache, "C02B", wanted).await.encrypted, Fact::Unknown);
    assert_eq!(stand.fake.lookups().len(), 2, "left out of the list, it may still be known of the host");
}

#[tokio::test]
async fn d13d_the_encryption_comes_however_the_host_was_found() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A"), Device::computer("C02B").with("disk_encryption_enabled", json!(null))]);
    for serial in ["C02A", "c02a"] {
        assert_eq!(stand.record(serial).await.encrypted, Fact::Value(true), "{serial}");
    }
    assert_eq!(stand.record("C02B").await.encrypted, Fact::Unknown);
}

#[tokio::test]
async fn d13e_an_agent_that_says_it_is_managed_is_not() {
    let stand = stand().await;
    stand.fake.set(vec![Device { managed: false, ..Device::computer("C02A") }.with("mdm", json!({"enrollment_status": "On (automatic)"}))]);
    assert_eq!(stand.record("C02A").await.managed, Fact::Value(false));
    let lines = "type = \"fleet\"\nbase_url = \"{url}\"\ntoken = { env = \"SECRET\" }\nmanaged_by = \"any\"";
    let any = Stand::open(Fake::start(Fleet::default()).await, lines);
    any.fake.set(vec![Device::computer("C02A").with("mdm", json!({"connected_to_fleet": false, "name": "Jamf"}))]);
    assert_eq!(any.record("C02A").await.managed, Fact::Value(true));
}

#[tokio::test]
async fn d13f_a_phone_was_seen_when_it_last_answered_its_management() {
    let stand = stand().await;
    let phone = Device::phone("F4GA").with("detail_updated_at", json!("2026-11-24T07:00:00Z"));
    stand.fake.set(vec![phone.with("last_mdm_checked_in_at", json!("2026-11-24T08:00:00Z"))]);
    assert_eq!(stand.record("F4GA").await.last_seen, Fact::Value(UnixTime::parse("2026-11-24T08:00:00Z").unwrap()));
    let (records, _) = listed(&stand, Fields::of(&[Field::LastSeen])).await;
    assert_eq!(records[0].last_seen, Fact::Value(UnixTime::parse("2026-11-24T07:00:00Z").unwrap()), "the list knows less, and enough");
}

#[tokio::test]
async fn d13h_a_list_has_device_states_where_the_edition_has_them() {
    let lost = || vec![Device { lost: true, ..Device::phone("F4GA") }];
    let need = Fields::of(&[Field::Lost]);
    let stand = stand().await;
    stand.fake.set(lost());
    let (records, end) = listed(&stand, need).await;
    assert_eq!((records[0].lost.clone(), end), (Fact::Value(true), Ok(true)));
    let (records, _) = listed(&stand, Fields::NONE).await;
    assert_eq!(records[0].lost, Fact::Unknown, "nobody needs it");
    let free = of(Fleet { free: true, ..Fleet::default() }).await;
    free.fake.set(lost());
    let (records, end) = listed(&free, need).await;
    assert_eq!((records[0].lost.clone(), end), (Fact::Unknown, Ok(true)));
    let cache = free.cache();
    cache.want(Wanted { fields: need, kinds: vec![IdentifierKind::Serial] });
    cache.sweep(true).await.unwrap();
    assert_eq!(ask_for(&cache, "F4GA", need).await.lost, Fact::Value(true), "each host by itself has it");
}

#[tokio::test]
async fn d13i_no_policies_are_the_same_in_a_list_and_on_the_host() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A").with("policies", json!([]))]);
    let undetermined = Fact::Value(Compliance::Undetermined);
    assert_eq!(stand.record("C02A").await.compliance, undetermined);
    let (records, _) = listed(&stand, Fields::of(&[Field::Compliance])).await;
    assert_eq!(records[0].compliance, undetermined);
}

#[tokio::test]
async fn d13j_a_database_that_fails_is_the_services_failure() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A")]);
    let failure = Unavailable::ServerError(None);
    stand.fake.fail(Some(Fault::Status(422)));
    assert_eq!(stand.serial("C02A").await, Answer::Unavailable(failure));
    assert_eq!(listed(&stand, Fields::NONE).await.1, Err(failure));
    let findings = stand.inventory.probe(Instant::now() + Duration::from_secs(3)).await;
    assert_eq!((findings[0].check.as_str(), findings[0].state), ("service", State::Bad));
    stand.fake.fail(None);
    stand.fake.pass_next(1);
    stand.fake.fail_next(1, Fault::Status(422));
    assert_eq!(stand.serial("C02A").await, Answer::Unavailable(failure), "be it for the host alone");
}

#[tokio::test]
async fn the_404_of_something_else_is_no_answer() {
    let stand = stand().await;
    for body in [Fault::Status(404), Fault::Html] {
        stand.fake.fail(Some(body));
        assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::Protocol));
    }
}

#[tokio::test]
async fn a_pending_host_is_not_managed_and_a_silent_one_unknown() {
    let stand = stand().await;
    for (status, expected) in [
        (json!("On (manual)"), Fact::Value(true)),
        (json!("Off"), Fact::Value(false)),
        (json!("Pending"), Fact::Value(false)),
        (json!(null), Fact::Unknown),
        (json!("Online"), Fact::Unknown),
    ] {
        stand.fake.set(vec![Device::computer("C02A").with("mdm", json!({"enrollment_status": status}))]);
        assert_eq!(stand.record("C02A").await.managed, expected, "{status}");
    }
}

#[tokio::test]
async fn looks_through_all_pages_where_the_search_is_not_applied() {
    let stand = stand().await;
    let others: Vec<Device> = (0..300).map(|number| Device::computer(&format!("X{number}"))).collect();
    stand.fake.set([others.clone(), vec![Device::computer("C02A")]].concat());
    stand.fake.fail(Some(Fault::FilterIgnored));
    assert!(matches!(stand.serial("C02A").await, Answer::Found(_)));
    stand.fake.set(others.clone());
    assert_eq!(stand.serial("C02A").await, Answer::NotFound);
    let many = (0..4).flat_map(|number| others.iter().map(move |device| Device::computer(&format!("{}{number}", device.serial))));
    stand.fake.set(many.collect());
    assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::FilterIgnored));
}

#[tokio::test]
async fn a_missing_serial_number_is_a_changed_schema_and_not_another_device() {
    let stand = stand().await;
    let nameless = Device::computer("C02A").with("hostname", json!("C02A")).with("hardware_serial", json!(null));
    stand.fake.set(vec![nameless]);
    assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::Protocol));
}

#[tokio::test]
async fn several_users_are_none_that_is_known() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A").with("end_users", json!([{"idp_username": "a"}, {"idp_username": "b"}]))]);
    assert_eq!(stand.record("C02A").await.user.id, Fact::Unknown);
    stand.fake.set(vec![Device { user: None, ..Device::computer("C02A") }]);
    assert_eq!(stand.record("C02A").await.user.id, Fact::Absent);
}

#[tokio::test]
async fn lists_every_host_in_pages() {
    let stand = stand().await;
    stand.fake.set((0..1200).map(|number| Device::computer(&format!("C{number}"))).collect());
    assert_eq!(stand.inventory.listing(), Listing::Whole);
    let (records, end) = listed(&stand, Fields::of(&[Field::Groups, Field::Compliance])).await;
    assert_eq!((records.len(), end), (1200, Ok(true)));
    assert!(records.iter().all(|record| record.knows(Field::Groups) && record.knows(Field::Compliance) && !record.knows(Field::Encrypted)));
    let (records, _) = listed(&stand, Fields::of(&[Field::Managed])).await;
    assert!(records.iter().all(|record| !record.knows(Field::Groups) && !record.knows(Field::Compliance) && record.knows(Field::Managed)));
}

#[tokio::test]
async fn a_server_that_lists_no_labels_leaves_groups_unknown() {
    let stand = of(Fleet { lists_without_labels: true, ..Fleet::default() }).await;
    stand.fake.set(vec![Device::computer("C02A")]);
    let (records, _) = listed(&stand, Fields::of(&[Field::Groups])).await;
    assert_eq!(records[0].groups, Fact::Unknown);
}

#[tokio::test]
async fn a_list_that_lost_a_host_on_the_way_is_not_complete() {
    let stand = stand().await;
    let number = |number: u32| Device { id: number.to_string(), ..Device::computer(&format!("C{number}")) };
    stand.fake.set((1..=1200).map(number).collect());
    stand.fake.delay(Duration::from_millis(20));
    let (sender, mut pages) = mpsc::channel(1);
    let inventory = stand.inventory.clone();
    let listing = tokio::spawn(async move { inventory.list(None, Fields::NONE, sender).await });
    let first = pages.recv().await.unwrap();
    assert_eq!(first.len(), 500);
    // The 501st device is now the 500th, which was read already; another device keeps the count as it was.
    stand.fake.remove("C1");
    stand.fake.add(number(1201));
    while pages.recv().await.is_some() {}
    assert!(!listing.await.unwrap().unwrap().complete);
}

#[tokio::test]
async fn a_list_that_breaks_off_says_so() {
    let stand = stand().await;
    stand.fake.set((0..1200).map(|number| Device::computer(&format!("C{number}"))).collect());
    stand.fake.pass_next(3);
    stand.fake.fail_next(1, Fault::Status(502));
    let (records, end) = listed(&stand, Fields::NONE).await;
    assert_eq!((records.len(), end), (500, Err(Unavailable::ServerError(None))));
}

#[tokio::test]
async fn the_doctor_names_what_is_wrong() {
    let stand = stand().await;
    let soon = || Instant::now() + Duration::from_secs(3);
    assert!(stand.inventory.probe(soon()).await.iter().all(|finding| finding.state == State::Good));
    for (fault, check) in [(Fault::Status(401), "credentials"), (Fault::Status(403), "privilege"), (Fault::Html, "address")] {
        stand.fake.fail(Some(fault));
        let findings = stand.inventory.probe(soon()).await;
        let bad = findings.iter().find(|finding| finding.state == State::Bad).unwrap();
        assert_eq!(bad.check, check);
        assert!(!bad.fix.is_empty());
    }
}

#[tokio::test]
async fn the_token_is_in_no_text() {
    let stand = stand().await;
    assert!(!format!("{:?}", stand.inventory).contains("secret"));
}

#[tokio::test]
async fn b5_a_search_that_matches_more_than_it_lists_is_that_identifiers_own() {
    let stand = stand().await;
    let odd = ["0", "00", "000", "C", "C0", "C00"];
    let others = (0..1100).map(|number| format!("C000{number:05}"));
    stand.fake.set(others.chain(odd.map(str::to_owned)).map(|serial| Device::computer(&serial)).collect());
    let cache = stand.cache();
    for odd in odd {
        assert_eq!(stand.ask_through(&cache, odd).await, Answer::Unavailable(Unavailable::FilterIgnored), "{odd}");
    }
    assert!(matches!(stand.ask_through(&cache, "C00000007").await, Answer::Found(_)));
}

/// Fake of a Fleet that minds no page.
struct Endless;

impl fakes::Service for Endless {
    fn answer(&self, request: &fakes::Seen, _: &[Device], _: bool) -> fakes::server::Answer {
        if request.path.ends_with("/count") {
            return fakes::server::Answer::json(json!({"count": 100_000}));
        }
        let hosts: Vec<_> = (0..500).map(|id| json!({"id": id, "hardware_serial": format!("C{id}")})).collect();
        fakes::server::Answer::json(json!({ "hosts": hosts }))
    }
}

#[tokio::test]
async fn g10_a_list_that_comes_again_and_again_ends_as_incomplete() {
    let fake = Fake::start(Endless).await;
    let stand = Stand::open(fake, "type = \"fleet\"\nbase_url = \"{url}\"\ntoken = { env = \"SECRET\" }");
    let (records, end) = listed(&stand, Fields::NONE).await;
    assert_eq!((records.len(), end), (500, Ok(false)));
    assert_eq!(stand.fake.lookups().len(), 4, "the newest, the count, and two pages");
}

#[tokio::test]
async fn a3_a_host_that_comes_again_as_another_is_sent_twice_and_the_list_is_not_complete() {
    let host = |status: &str| json!({"id": 1, "hardware_serial": "C02A", "mdm": {"enrollment_status": status}});
    for (second, records) in [("On", 1), ("Off", 2)] {
        let fake = Fake::start(crate::Scripted(move |request: &fakes::Seen| {
            if request.path.ends_with("/count") {
                return fakes::server::Answer::json(json!({"count": 1}));
            }
            fakes::server::Answer::json(json!({"hosts": [host("On"), host(second)]}))
        }))
        .await;
        let stand = Stand::open(fake, "type = \"fleet\"\nbase_url = \"{url}\"\ntoken = { env = \"SECRET\" }");
        let (hosts, complete) = listed(&stand, Fields::NONE).await;
        assert_eq!((hosts.len(), complete), (records, Ok(records == 1)), "{second}");
    }
}
