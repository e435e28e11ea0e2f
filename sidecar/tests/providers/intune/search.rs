//! Tests of how a device is found, whatever Graph makes of the filter.

use std::time::Duration;

use fakes::intune::NextLink;
use fakes::{Device, Fake, Fault, RetryAfter};
use serde_json::{Value, json};

use super::*;

fn fleet(count: usize) -> Vec<Device> {
    (0..count).map(|number| Device::computer(&format!("C{number:04}"))).collect()
}

async fn quick(stand: &Stand, serial: &str) -> Answer {
    stand.ask(IdentifierKind::Serial, serial, Fields::NONE).await
}

#[tokio::test]
async fn serial_numbers_of_any_maker_are_one_literal() {
    for serial in [
        "To be filled by O.E.M.",
        "System Serial Number",
        "AB/CD-12 34",
        "O'Neill's",
        "'",
        "X' or 1 eq 1 or serialNumber eq 'Y",
        "a&b=c#d+e%20f",
        "%00",
        "../../users",
        "(A,B)",
        "*",
        "Größe",
    ] {
        let (intune, stand) = with_devices(vec![Device::computer(serial), Device::computer("C02A")]).await;
        match quick(&stand, serial).await {
            Answer::Found(record) => assert_eq!(record.serial, text(serial)),
            other => panic!("{serial}: {other:?}"),
        }
        assert_eq!(intune.literals(), [serial]);
        assert_eq!(stand.fake.lookups().len(), 1, "{serial}");
    }
}

#[tokio::test]
async fn many_devices_with_the_makers_default_are_ambiguous() {
    let devices = (0..3).map(|number| Device { id: format!("id-{number}"), ..Device::computer("To be filled by O.E.M.") }).collect();
    let (_, stand) = with_devices(devices).await;
    assert_eq!(stand.serial("To be filled by O.E.M.").await, Answer::Ambiguous);
}

#[tokio::test]
async fn upper_and_lower_case_are_the_same_device() {
    for exact in [false, true] {
        let (intune, stand) = with_devices(vec![Device::computer("C02A"), Device::computer("e14b")]).await;
        intune.exact_case(exact);
        assert!(matches!(quick(&stand, "c02a").await, Answer::Found(_)));
        assert!(matches!(quick(&stand, "e14b").await, Answer::Found(_)));
        assert_eq!(quick(&stand, "none").await, Answer::NotFound);
        assert_eq!(quick(&stand, "С02A").await, Answer::NotFound, "a Cyrillic letter is another one");
    }
}

#[tokio::test]
async fn a_device_behind_an_ignored_filter_is_found_on_a_later_page() {
    let (intune, stand) = with_devices(fleet(300)).await;
    intune.page_size(100);
    stand.fake.fail(Some(Fault::FilterIgnored));
    assert!(matches!(quick(&stand, "C0250").await, Answer::Found(record) if record.serial == text("C0250")));
    assert_eq!(stand.fake.lookups().len(), 3);
    assert_eq!(quick(&stand, "C9999").await, Answer::NotFound, "every page was seen");
}

#[tokio::test]
async fn an_ignored_filter_over_too_many_pages_is_no_answer() {
    let (intune, stand) = with_devices(fleet(30)).await;
    intune.page_size(1);
    stand.fake.fail(Some(Fault::FilterIgnored));
    assert_eq!(quick(&stand, "C0001").await, Answer::Unavailable(Unavailable::FilterIgnored), "another one may follow");
    assert_eq!(stand.fake.lookups().len(), 20);
    intune.page_size(3);
    stand.fake.delay(Duration::from_millis(600));
    assert_eq!(quick(&stand, "C0001").await, Answer::Unavailable(Unavailable::FilterIgnored), "the time is over");
}

#[tokio::test]
async fn a_filter_that_is_refused_is_no_missing_device() {
    let (_, stand) = with_devices(vec![]).await;
    stand.fake.fail(Some(Fault::Status(400)));
    assert_eq!(quick(&stand, "C02A").await, Answer::Unavailable(Unavailable::Rejected));
    stand.fake.fail(Some(Fault::Body(br#"{"error":{"code":"BadRequest"}}"#.to_vec())));
    assert_eq!(quick(&stand, "C02A").await, Answer::Unavailable(Unavailable::Protocol));
    stand.fake.fail(Some(Fault::Body(br#"{"value":[{"id":"1","deviceName":"C02A"}]}"#.to_vec())));
    assert_eq!(quick(&stand, "C02A").await, Answer::Unavailable(Unavailable::Protocol), "its serial number is not said");
    stand.fake.fail(Some(Fault::Body(br#"{"value":null}"#.to_vec())));
    assert_eq!(quick(&stand, "C02A").await, Answer::Unavailable(Unavailable::Protocol));
    let deep = [&br#"{"value":"#[..], &[b'['; 1_000_000]].concat();
    stand.fake.fail(Some(Fault::Body(deep)));
    assert_eq!(quick(&stand, "C02A").await, Answer::Unavailable(Unavailable::Protocol));
}

#[tokio::test]
async fn the_name_of_a_device_is_not_its_serial_number() {
    let (_, stand) = with_devices(vec![Device { name: "C02A".to_owned(), ..Device::computer("C02B") }]).await;
    stand.fake.fail(Some(Fault::FilterIgnored));
    assert_eq!(quick(&stand, "C02A").await, Answer::NotFound);
}

#[tokio::test]
async fn a_link_that_leads_back_ends_the_search() {
    let (intune, stand) = with_devices(vec![Device::computer("C02A")]).await;
    intune.next_link(NextLink::Loop);
    assert_eq!(quick(&stand, "C02A").await, Answer::Unavailable(Unavailable::Protocol));
    assert_eq!(stand.fake.lookups().len(), 2);
}

#[tokio::test]
async fn another_host_gets_neither_question_nor_token() {
    let stranger = Fake::start(Intune::new()).await;
    let (intune, stand) = with_devices(fleet(3)).await;
    intune.page_size(1);
    intune.next_link(NextLink::Foreign(stranger.url().replace("http://", "")));
    stand.fake.fail(Some(Fault::FilterIgnored));
    assert_eq!(quick(&stand, "C0002").await, Answer::Unavailable(Unavailable::Protocol));
    assert!(stranger.lookups().is_empty() && stranger.logins() == 0);
}

#[tokio::test]
async fn odd_last_pages_and_rows_that_come_twice_do_no_harm() {
    for next_link in [NextLink::EmptyLast, NextLink::Overlapping] {
        let (intune, stand) = with_devices(fleet(9)).await;
        intune.page_size(3);
        intune.next_link(next_link.clone());
        stand.fake.fail(Some(Fault::FilterIgnored));
        for serial in ["C0000", "C0002", "C0008"] {
            assert!(matches!(quick(&stand, serial).await, Answer::Found(_)), "{next_link:?} {serial}");
        }
        assert_eq!(quick(&stand, "C0009").await, Answer::NotFound);
    }
}

fn enrolled(id: &str, seen: Value) -> Device {
    Device { id: id.to_owned(), ..Device::computer("C02A") }.with("lastSyncDateTime", seen)
}

#[tokio::test]
async fn a_device_that_enrolled_again_is_ambiguous() {
    let (_, stand) =
        with_devices(vec![enrolled("old", json!("2025-01-01T00:00:00Z")), enrolled("new", json!("2026-01-01T00:00:00Z"))]).await;
    assert_eq!(stand.serial("C02A").await, Answer::Ambiguous);
}

#[tokio::test]
async fn the_newest_of_several_counts_where_that_is_set_and_certain() {
    let (old, new) = (json!("2025-01-01T00:00:00Z"), json!("2026-01-01T00:00:00Z"));
    for (dates, found) in [
        (vec![old.clone(), new.clone()], true),
        (vec![new.clone(), old.clone()], true),
        (vec![new.clone(), new.clone(), old.clone()], false),
        (vec![new.clone(), json!("0001-01-01T00:00:00Z")], false),
        (vec![new.clone(), Value::Null], false),
    ] {
        let stand = with(&Intune::new(), "duplicates = \"newest\"").await;
        let rows = dates.iter().enumerate().map(|(number, date)| enrolled(&format!("id-{number}"), date.clone()));
        stand.fake.set(rows.collect());
        match stand.ask(IdentifierKind::Serial, "C02A", Fields::NONE).await {
            Answer::Found(record) if found => assert_eq!(record.last_seen, moment("2026-01-01T00:00:00Z")),
            other => assert!(!found && other == Answer::Ambiguous, "{dates:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn both_ways_of_asking_for_fewer_requests_are_understood() {
    let (_, stand) = with_devices(vec![Device::computer("C02A")]).await;
    for (after, understood) in [
        (RetryAfter::Absent, None),
        (RetryAfter::Seconds(7), Some(Duration::from_secs(7))),
        (RetryAfter::Malformed("later".to_owned()), None),
    ] {
        stand.fake.fail_next(1, Fault::RateLimited(after));
        assert_eq!(quick(&stand, "C02A").await, Answer::Unavailable(Unavailable::RateLimited(understood)));
    }
}

#[tokio::test]
async fn g11_a_record_that_comes_twice_and_differs_is_no_answer() {
    let (_, stand) = with_devices(vec![]).await;
    let answer = |second: &str| format!(r#"{{"value":[{{"id":"1","serialNumber":"C02A","isEncrypted":false}},{second}]}}"#).into_bytes();
    stand.fake.fail(Some(Fault::Body(answer(r#"{"id":"1","serialNumber":"C02A","isEncrypted":true}"#))));
    assert_eq!(quick(&stand, "C02A").await, Answer::Unavailable(Unavailable::Protocol));
    stand.fake.fail(Some(Fault::Body(br#"{"@odata.count":0,"value":[{"id":"1","serialNumber":"C02A"}]}"#.to_vec())));
    assert_eq!(quick(&stand, "C02A").await, Answer::Unavailable(Unavailable::Protocol));
    stand.fake.fail(Some(Fault::Body(br#"{"@odata.count":1,"value":[{"id":"1","serialNumber":"C02A"}]}"#.to_vec())));
    assert!(matches!(quick(&stand, "C02A").await, Answer::Found(_)));
    // The count is one more than was shown, and there is no page that would have it.
    for body in [r#"{"@odata.count":2,"value":[{"id":"1","serialNumber":"C02A"}]}"#, r#"{"@odata.count":1,"value":[]}"#] {
        stand.fake.fail(Some(Fault::Body(body.as_bytes().to_vec())));
        assert_eq!(quick(&stand, "C02A").await, Answer::Unavailable(Unavailable::Protocol), "{body}");
    }
}
