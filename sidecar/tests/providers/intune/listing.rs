//! Tests of the list of the whole inventory, and of what changed.

use fakes::intune::NextLink;
use fakes::{Device, Fault};
use inventory::Listed;
use tokio::sync::mpsc;

use super::*;

async fn list(stand: &Stand, since: Option<&str>, need: Fields) -> (Result<Listed, Unavailable>, Vec<Record>) {
    let (sender, mut pages) = mpsc::channel(1000);
    let since = since.map(|since| UnixTime::parse(since).unwrap());
    let result = stand.inventory.list(since, need, sender).await;
    let mut records = Vec::new();
    while let Some(page) = pages.recv().await {
        records.extend(page);
    }
    (result, records)
}

fn fleet(count: usize) -> Vec<Device> {
    (0..count).map(|number| Device::computer(&format!("C{number:04}"))).collect()
}

#[tokio::test]
async fn every_device_is_listed() {
    let (intune, stand) = with_devices(fleet(250)).await;
    intune.page_size(100);
    let (result, records) = list(&stand, None, Fields::NONE).await;
    assert_eq!(result, Ok(Listed { complete: true }));
    assert_eq!(records.len(), 250);
    assert_eq!(stand.fake.lookups().len(), 3);
    assert_eq!(records[7].udid, Fact::Unknown, "it is null in a list, which is not that there is none");
}

#[tokio::test]
async fn details_of_a_list_come_in_batches_each_object_once() {
    let (_, stand) = with_devices(fleet(50)).await;
    let (result, records) = list(&stand, None, Fields::of(&[Field::Groups, Field::UserDepartment])).await;
    assert_eq!(result, Ok(Listed { complete: true }));
    assert!(records.iter().all(|record| record.groups.is_known() && record.user.department == text("Engines")));
    assert_eq!(stand.fake.lookups().len(), 1 + 3, "50 devices and one user are 51 questions");
}

#[tokio::test]
async fn what_cannot_be_asked_of_one_device_is_unknown_of_it_alone() {
    let (intune, stand) = with_devices(fleet(3)).await;
    intune.permit(&[MANAGED_DEVICES, fakes::intune::USERS]);
    let (result, records) = list(&stand, None, Fields::of(&[Field::Groups, Field::UserDepartment])).await;
    assert_eq!((result, records.len()), (Ok(Listed { complete: true }), 3));
    assert!(records.iter().all(|record| record.groups == Fact::Unknown && record.user.department.is_known()));
    intune.fail_items("/users/", 429, fakes::RetryAfter::Seconds(9));
    let (result, _) = list(&stand, None, Fields::of(&[Field::UserDepartment])).await;
    assert_eq!(result, Err(Unavailable::RateLimited(Some(std::time::Duration::from_secs(9)))), "it is left alone");
}

#[tokio::test]
async fn d13c_what_could_not_be_asked_of_a_listed_device_is_asked_when_it_is_needed() {
    let (intune, stand) = with_devices(fleet(2)).await;
    let need = Fields::of(&[Field::Managed, Field::Groups]);
    let cache = stand.cache();
    cache.want(engine::cache::Wanted { fields: need, kinds: vec![IdentifierKind::Serial] });
    intune.permit(&[MANAGED_DEVICES]);
    cache.sweep(true).await.unwrap();
    intune.permit(&[MANAGED_DEVICES, fakes::intune::DEVICES, fakes::intune::GROUPS]);
    stand.fake.forget();
    let managed = crate::ask_for(&cache, "C0000", Fields::of(&[Field::Managed])).await;
    assert!(managed.managed.is_known() && stand.fake.lookups().is_empty(), "the list says that");
    assert!(crate::ask_for(&cache, "C0000", need).await.groups.is_known());
    assert_eq!(stand.fake.lookups().len(), 2, "one list and one batch");
    cache.sweep(true).await.unwrap();
    stand.fake.forget();
    assert!(crate::ask_for(&cache, "C0001", need).await.groups.is_known());
    assert!(stand.fake.lookups().is_empty(), "the details of this list are known");
}

#[tokio::test]
async fn what_changed_is_told_by_the_date_of_each_row() {
    let seen = |serial: &str, date: &str| Device { last_seen: Some(date.to_owned()), ..Device::computer(serial) };
    for fault in [None, Some(Fault::FilterIgnored)] {
        let (_, stand) = with_devices(vec![
            seen("OLD", "2026-11-01T00:00:00Z"),
            seen("THEN", "2026-11-02T00:00:00Z"),
            seen("NEW", "2026-11-03T00:00:00.5Z"),
        ])
        .await;
        stand.fake.fail(fault);
        let (result, records) = list(&stand, Some("2026-11-02T00:00:00Z"), Fields::NONE).await;
        assert_eq!(result, Ok(Listed { complete: false }), "what did not report is not among them");
        let serials: Vec<_> = records.iter().map(|record| record.serial.value().unwrap().as_str()).collect();
        assert_eq!(serials, ["THEN", "NEW"]);
        assert_eq!(stand.fake.lookups()[0].query("$filter"), Some("lastSyncDateTime gt 2026-11-01T23:59:59Z"));
    }
}

#[tokio::test]
async fn a3_a_device_that_comes_again_as_another_is_sent_twice_and_the_list_is_not_complete() {
    for (second, expected) in [("false", (1, true)), ("true", (2, false))] {
        let (_, stand) = with_devices(vec![]).await;
        let row = |encrypted: &str| format!(r#"{{"id":"1","serialNumber":"C02A","isEncrypted":{encrypted}}}"#);
        stand.fake.fail(Some(Fault::Body(format!(r#"{{"value":[{},{}]}}"#, row("false"), row(second)).into_bytes())));
        let (result, records) = list(&stand, None, Fields::NONE).await;
        assert_eq!((records.len(), result), (expected.0, Ok(Listed { complete: expected.1 })));
    }
}

#[tokio::test]
async fn a_list_that_breaks_off_is_not_complete() {
    let (intune, stand) = with_devices(fleet(30)).await;
    intune.page_size(10);
    stand.fake.pass_next(2);
    stand.fake.fail_next(1, Fault::Status(500));
    let (result, records) = list(&stand, None, Fields::NONE).await;
    assert_eq!((result, records.len()), (Err(Unavailable::ServerError(None)), 20));
    for wrong in [NextLink::Loop, NextLink::Foreign("mdm.example.org".to_owned())] {
        intune.next_link(wrong);
        assert_eq!(list(&stand, None, Fields::NONE).await.0, Err(Unavailable::Protocol));
    }
}

#[tokio::test]
async fn a_receiver_that_has_gone_ends_the_list() {
    let (intune, stand) = with_devices(fleet(30)).await;
    intune.page_size(10);
    let (sender, pages) = mpsc::channel(1);
    drop(pages);
    assert_eq!(stand.inventory.list(None, Fields::NONE, sender).await, Ok(Listed { complete: false }));
    assert_eq!(stand.fake.lookups().len(), 1);
}

#[tokio::test]
async fn an_empty_inventory_is_a_complete_list() {
    let (intune, stand) = with_devices(vec![]).await;
    assert_eq!(list(&stand, None, Fields::NONE).await.0, Ok(Listed { complete: true }));
    intune.permit(&[]);
    assert_eq!(list(&stand, None, Fields::NONE).await.0, Err(Unavailable::Forbidden));
}
