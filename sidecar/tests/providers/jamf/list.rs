//! Tests of the list of the whole inventory, page by page.

use engine::cache::{Swept, Wanted};
use fakes::jamf::Jamf;
use fakes::{Device, Fake, Fault};
use inventory::{Listed, Unavailable};
use posture::identity::IdentifierKind;
use posture::record::{Compliance, Fact, Field, Fields};
use posture::time::UnixTime;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{Stand, ask_for};

use super::{LINES, list, paths, text, two};

fn fleet(computers: usize, phones: usize) -> Vec<Device> {
    let numbered = |number: usize, device: Device| Device { id: (number + 1).to_string(), ..device };
    let computers = (0..computers).map(|number| numbered(number, Device::computer(&format!("C{number:05}"))));
    computers.chain((0..phones).map(|number| numbered(number, Device::phone(&format!("M{number:05}"))))).collect()
}

#[tokio::test]
async fn the_whole_inventory_is_listed_and_proven_to_be_whole() {
    let (_, stand) = two().await;
    stand.fake.set(fleet(1100, 501));
    let (records, listed) = list(&stand, None).await;
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
    assert_eq!(list(&stand, None).await.1, Ok(Listed { complete: false }), "more were counted than came");
    jamf.set(|knobs| knobs.total = Some(2));
    let (records, listed) = list(&stand, None).await;
    assert_eq!((records.len(), listed), (700, Ok(Listed { complete: false })), "a count of fewer than one page has proves nothing");
    jamf.set(|knobs| (knobs.total, knobs.overlap) = (None, 3));
    let (records, listed) = list(&stand, None).await;
    assert_eq!((records.len(), listed), (700, Ok(Listed { complete: true })), "what comes twice counts once");
}

#[tokio::test]
async fn d3_a_record_without_a_serial_number_keeps_no_list_from_being_whole() {
    let (jamf, stand) = two().await;
    let personal = Device::phone("personal").with("hardware", Value::Null).with("general.deviceOwnershipType", json!("UserEnrollment"));
    stand.fake.add(personal);
    stand.fake.add(Device::computer("odd").with("hardware.serialNumber", json!({})));
    let (records, listed) = list(&stand, None).await;
    assert_eq!((records.len(), listed), (4, Ok(Listed { complete: true })));
    let cache = stand.cache();
    cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
    assert_eq!(cache.sweep(true).await, Ok(Swept { seen: 2, removed: 0 }), "nobody can ask for them");
    // A record that failed may be the one that the server left out.
    stand.fake.add(Device::phone("BROKEN"));
    jamf.set(|knobs| _ = knobs.broken.insert("BROKEN".to_owned()));
    assert_eq!(list(&stand, None).await.1, Ok(Listed { complete: false }));
}

#[tokio::test]
async fn d13c_compliance_is_not_in_a_list_and_is_asked_of_the_device_itself() {
    let (_, stand) = two().await;
    let need = Fields::of(&[Field::Managed, Field::Compliance, Field::UserDepartment]);
    let cache = stand.cache();
    cache.want(Wanted { fields: need, kinds: vec![IdentifierKind::Serial] });
    cache.sweep(true).await.unwrap();
    stand.fake.forget();
    let listed = ask_for(&cache, "C02X", Fields::of(&[Field::Managed, Field::UserDepartment])).await;
    assert!(listed.user.department.is_known() && stand.fake.lookups().is_empty(), "the list has these");
    assert_eq!(ask_for(&cache, "C02X", need).await.compliance, Fact::Value(Compliance::Compliant));
    assert!(!stand.fake.lookups().is_empty());
}

#[tokio::test]
async fn a_server_that_cannot_filter_by_the_last_contact_lists_what_was_collected_since() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| (knobs.mobile_contact, knobs.versions) = (false, [1, 2, 3].into()));
    let refused = || jamf.filters().iter().filter(|filter| filter.starts_with("lastContactDate")).count();
    let mut before = None;
    for _ in 0..2 {
        let (records, listed) = list(&stand, UnixTime::parse("2026-11-24T07:59:00Z")).await;
        assert_eq!((records.len(), listed), (2, Ok(Listed { complete: false })));
        assert!(records.iter().all(|record| record.last_seen.value().is_some()), "it is known when they were heard of");
        assert!(refused() > 0 && before.is_none_or(|before| before == refused()), "it is remembered");
        before = Some(refused());
    }
}

#[tokio::test]
async fn a3_a_computer_that_comes_again_as_another_is_sent_twice_and_the_list_is_not_complete() {
    let stand = Stand::open(Fake::start(Jamf::new()).await, &format!("{LINES}\nkinds = [\"computer\"]"));
    let row = |name: &str| format!(r#"{{"id":"1","general":{{"name":"{name}"}},"hardware":{{"serialNumber":"C1"}}}}"#);
    stand.fake.fail(Some(Fault::Body(format!(r#"{{"totalCount":2,"results":[{},{}]}}"#, row("a"), row("b")).into_bytes())));
    let (records, listed) = list(&stand, None).await;
    assert_eq!((records.len(), listed), (2, Ok(Listed { complete: false })));
    // On a page of its own too.
    let page = |name: &str| Fault::Body(format!(r#"{{"totalCount":2,"results":[{}]}}"#, row(name)).into_bytes());
    stand.fake.fail_next(1, page("a"));
    stand.fake.fail(Some(page("b")));
    let (records, listed) = list(&stand, None).await;
    assert_eq!((records.len(), listed), (2, Ok(Listed { complete: false })));
}

#[tokio::test]
async fn a_server_that_gives_the_same_page_for_ever_is_left() {
    let (_, stand) = two().await;
    let row = br#"{"totalCount":9,"results":[{"id":"1","mobileDeviceId":"1","hardware":{"serialNumber":"C1"}}]}"#;
    stand.fake.fail(Some(Fault::Body(row.to_vec())));
    let (records, listed) = list(&stand, None).await;
    assert_eq!((records.len(), listed), (2, Ok(Listed { complete: false })));
}

#[tokio::test]
async fn pages_that_are_too_large_are_asked_for_in_parts() {
    let jamf = Jamf::new();
    let stand = Stand::open(Fake::start(jamf).await, &format!("{LINES}\nkinds = [\"computer\"]"));
    stand.fake.set(fleet(600, 0));
    stand.fake.pass_next(1);
    stand.fake.fail_next(2, Fault::Huge(33 << 20));
    let (records, listed) = list(&stand, None).await;
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
    assert!(paths(&stand).len() <= 3);
}

#[tokio::test]
async fn a_list_goes_on_after_a_fault_and_ends_with_what_stays() {
    let (jamf, stand) = two().await;
    stand.fake.fail_next(1, Fault::Status(502));
    assert_eq!(list(&stand, None).await.1, Ok(Listed { complete: true }));
    jamf.set(|knobs| knobs.privileges.retain(|privilege| *privilege != "Read Mobile Devices"));
    let (records, listed) = list(&stand, None).await;
    assert_eq!((records.len(), listed), (1, Err(Unavailable::Forbidden)), "what was sent is still good");
}

#[tokio::test]
async fn what_was_heard_of_since_is_listed_in_every_version() {
    let (jamf, stand) = two().await;
    for version in [4, 3, 1] {
        jamf.set(|knobs| knobs.versions = [version].into());
        for (since, expected) in [("2026-11-24T07:59:00Z", 2), ("2026-11-24T08:00:30Z", 2), ("2026-11-24T08:02:00Z", 0)] {
            let (records, listed) = list(&stand, UnixTime::parse(since)).await;
            assert_eq!((records.len(), listed), (expected, Ok(Listed { complete: false })), "v{version} {since}");
        }
    }
    assert!(jamf.literals().iter().all(Option::is_some));
}
