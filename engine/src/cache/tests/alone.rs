//! A device that no answer can be had about, while others are answered: an old record stands in for failures of the service
//! alone.

use super::*;

const GARBLED: Answer = Answer::Unavailable(Unavailable::Protocol);

/// Devices that were found two hours ago, so that their records are old.
async fn known(serials: &[&str]) -> Stand {
    let stand = Stand::new();
    stand.keeps(serials.iter().map(|serial| (*serial).to_owned()));
    for serial in serials {
        assert_eq!(stand.says(serial).await, "found live");
    }
    after(7200).await;
    stand
}

#[tokio::test(start_paused = true)]
async fn b5_a_device_that_cannot_be_read_has_no_old_record_where_another_one_can() {
    let stand = known(&["C02A", "C02B"]).await;
    stand.odd("C02A", Some(GARBLED));
    for _ in 0..10 {
        assert_eq!(stand.says("C02A").await, "protocol");
        after(1).await;
    }
    let looked = stand.ask("C02A").await;
    assert!(matches!(looked.evidence, Evidence::Alone(_)), "nor is the next provider asked in its place");
    let asked = |serial: &str| stand.script.asked.lock().unwrap().iter().filter(|name| *name == serial).count();
    assert_eq!(asked("C02A"), asked("C02B"), "the other one is asked for each time, to see whose failure it is");
    assert!(asked("C02A") < 8, "not each time that somebody wants to know");
}

#[tokio::test(start_paused = true)]
async fn b5_a_new_device_that_cannot_be_read_is_no_outage_where_another_one_can() {
    let stand = known(&["C02A"]).await;
    stand.odd("C02B", Some(GARBLED));
    assert!(matches!(stand.ask("C02B").await.evidence, Evidence::Silence(_)), "nobody was had for long");
    let calls = stand.calls();
    assert_eq!(stand.says("C02A").await, "found live");
    assert_eq!(stand.calls(), calls + 1, "an invented identifier makes nobody ask for others");
    after(1).await;
    assert!(matches!(stand.ask("C02B").await.evidence, Evidence::Alone(_)));
    after(3600).await;
    assert!(matches!(stand.ask("C02B").await.evidence, Evidence::Silence(_)));
}

#[tokio::test(start_paused = true)]
async fn b5_where_no_record_can_be_read_an_old_one_stands_in() {
    let stand = known(&["C02A", "C02B", "C02C"]).await;
    stand.odd("C02", Some(GARBLED));
    for round in 0..30 {
        // Such a service may still say that there is no such device, and nothing else.
        let says = stand.says(&format!("GUESS{round}")).await;
        assert!(["missing live", "paused"].contains(&says), "{says}");
        assert_eq!(stand.says(["C02A", "C02B", "C02C"][round % 3]).await, "found stale", "{round}");
        after(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn b5_a_device_without_another_to_compare_with_has_its_old_record() {
    let stand = known(&["C02A"]).await;
    stand.odd("C02A", Some(GARBLED));
    assert_eq!(stand.says("C02A").await, "found stale");
}

#[tokio::test(start_paused = true)]
async fn b5_a_failure_that_is_not_about_the_answer_leaves_the_old_record() {
    for why in [Unavailable::ServerError(None), Unavailable::Network, Unavailable::Timeout] {
        let stand = known(&["C02A", "C02B"]).await;
        stand.odd("C02A", Some(Answer::Unavailable(why)));
        assert_eq!(stand.says("C02A").await, "found stale", "{why:?}");
        assert_eq!(stand.says("C02B").await, "found live", "{why:?}");
        assert_eq!(stand.says("C02A").await, "found stale", "{why:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn b5_nobody_else_is_asked_for_by_whoever_has_no_time_left() {
    let stand = known(&["C02A", "C02B"]).await;
    let (calls, key) = (stand.calls(), Key::of(&question("C02A", Fields::NONE).device));
    for (millis, asks) in [(0, false), (1, true)] {
        let deadline = Instant::now() + Duration::from_millis(millis);
        // Where another one is asked and there is no time for its answer, that says nothing against the service.
        assert_eq!(stand.cache.is_alone(&key, true, Unavailable::Protocol, deadline).await, asks);
        after(1).await;
        assert_eq!(stand.calls(), calls + usize::from(asks), "{millis}");
    }
}

#[tokio::test(start_paused = true)]
async fn b5_an_identifier_that_nobody_knows_cannot_have_the_service_left_alone_for_long() {
    for (says, paused) in [
        (Unavailable::ServerError(Some(Duration::from_secs(300))), false),
        (Unavailable::RateLimited(Some(Duration::from_secs(300))), true),
    ] {
        let stand = known(&["C02A"]).await;
        stand.odd("GUESS", Some(Answer::Unavailable(says)));
        assert_eq!(stand.says("GUESS1").await, says.as_str());
        assert_eq!(stand.says("C02A").await, if paused { "found stale" } else { "found live" }, "{says:?}");
        after(6).await;
        stand.cache.purge(Some(&question("C02A", Fields::NONE).device));
        assert_eq!(stand.says("C02A").await, "found live", "{says:?}");
    }
    // A failure about a known device counts as it is said.
    let stand = known(&["C02A"]).await;
    stand.odd("C02A", Some(Answer::Unavailable(Unavailable::RateLimited(Some(Duration::from_secs(300))))));
    assert_eq!(stand.says("C02A").await, "found stale");
    after(200).await;
    assert_eq!(stand.says("NEW").await, "paused");
}

#[tokio::test(start_paused = true)]
async fn b5_a_device_that_cannot_be_read_stays_alone_whatever_keeps_it_from_being_asked() {
    let stand = known(&["C02A", "C02B"]).await;
    stand.odd("C02A", Some(GARBLED));
    assert_eq!(stand.says("C02A").await, "protocol");
    after(301).await;
    stand.odd("C02B", Some(Answer::Unavailable(Unavailable::RateLimited(Some(Duration::from_secs(60))))));
    assert_eq!(stand.says("C02B").await, "found stale");
    for _ in 0..5 {
        assert_eq!(stand.says("C02A").await, "paused", "it has no old record in an outage either");
        after(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn b5_witnesses_that_are_gone_or_cannot_be_asked_give_way_to_others() {
    let stand = known(&["C02A", "GONE1", "GONE2", "GONE3", "C02B"]).await;
    stand.script.records.lock().unwrap().retain(|serial, _| !serial.starts_with("GONE"));
    stand.odd("C02A", Some(GARBLED));
    for _ in 0..4 {
        assert_eq!(stand.says("C02A").await, "protocol");
        after(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn b5_one_rate_limit_for_invented_identifiers_is_not_followed_by_another_at_once() {
    let stand = known(&["C02A"]).await;
    stand.odd("GUESS", Some(Answer::Unavailable(Unavailable::RateLimited(Some(Duration::from_secs(300))))));
    assert_eq!(stand.says("GUESS1").await, "rate_limited");
    after(6).await;
    for number in 0..5 {
        stand.cache.purge(Some(&question("C02A", Fields::NONE).device));
        assert_eq!(stand.says("C02A").await, "found live", "{number}");
        stand.says(&format!("GUESS2{number}")).await;
        after(6).await;
    }
}
