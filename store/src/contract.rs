//! What every database under a store does alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clock::{Proven, Span};
use posture::identity::{DeviceId, IdentifierKind, Identity, Trust};
use posture::time::UnixTime;
use serde_json::{Value, json};

use crate::decision::{Decision, LONGEST_CHECKS, Wanted};
use crate::error::StoreError;
use crate::fixture::{Backend, SECOND, START, allowed, at, decision, identity, key, ruling};
use crate::id::DecisionId;
use crate::mark::{FIRST_COVERED, MOST_COVERED, Mark};
use crate::ruling::{Ruling, RulingKind};
use crate::sent::Sender;
use crate::store::{QUEUE, Store};
use crate::writer::Writer;

/// Runs each promise on each database.
macro_rules! promises {
    ($($name:ident,)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::fixture::Backend::Sqlite).await;
            })*
        }

        mod postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::fixture::Backend::Postgres).await;
            })*
        }
    };
}

promises! {
    what_was_kept_is_there_after_the_next_start,
    lists_decisions_newest_first_of_one_device_or_all,
    e14_decisions_are_found_by_their_webhook_and_what_came_of_them,
    a_full_queue_drops_and_counts_and_holds_nobody_up,
    decisions_go_when_they_are_too_old_or_too_many,
    a_key_is_known_for_the_device_of_the_last_allow_unless_that_was_proven_less,
    a_key_is_forgotten_after_its_retention_and_outlives_its_decision,
    a_key_is_known_as_soon_as_it_was_allowed_and_after_the_next_start,
    a_clock_that_jumps_ahead_costs_no_more_than_the_oldest_decisions,
    a_long_record_is_cut_and_says_so,
    a8_pairs_of_identifiers_are_bounded_and_the_oldest_go,
    g1_a_sweep_by_a_clock_that_jumped_deletes_no_ruling_and_proves_no_key_old,
    g1_the_proven_time_outlives_the_process_and_an_old_store_has_the_greatest_that_it_saw,
    g9_a_lock_that_is_owed_is_tried_once_more_at_the_end,
    b7_keys_are_bounded_for_each_device_and_in_all_and_the_oldest_go,
    g8_a_start_finds_what_was_sent_lately_though_the_clock_was_set,
    g6_the_decisions_that_were_written_first_go_first_though_the_clock_is_behind,
    every_text_comes_back_byte_for_byte,
    a_device_of_any_name_has_its_key_alone,
    rulings_are_kept_and_forgotten_once_with_what_they_cover,
    a_ruling_ends_at_the_same_time_in_every_store_even_at_the_edges_of_time,
    covers_are_learned_of_locks_that_are_there,
    what_a_lock_came_to_cover_before_it_was_written_is_written_with_it,
    a_pair_that_is_seen_again_becomes_the_newest,
    of_many_partners_those_seen_first_and_last_are_found,
    a_decision_is_written_once_and_in_its_place,
    what_was_sent_is_found_among_many_decisions_up_to_a_bound,
    callers_are_told_apart_by_all_of_their_names,
    a_key_that_is_allowed_often_in_one_batch_is_known_as_if_they_came_one_by_one,
    the_oldest_keys_go_first,
    ids_are_ordered_by_their_bytes,
    an_answer_that_nobody_waits_for_any_more_is_not_given_to_the_next,
}

async fn what_was_kept_is_there_after_the_next_start(backend: Backend) {
    let stand = backend.stand().await;
    let store = stand.open().await;
    let (forever, ended, goes_on) = (ruling("A", None), ruling("B", Some(200)), ruling("C", Some(201)));
    for ruling in [&forever, &ended, &goes_on] {
        store.keep(ruling, &[]).await.unwrap();
    }
    let decision = decision(100, "A");
    store.record(decision.clone());
    store.close().await;
    drop(store);
    let store = stand.open().await;
    let mut rulings = store.rulings(Span::at(at(200))).await.unwrap();
    rulings.sort_by(|one, other| one.device.cmp(&other.device));
    assert_eq!(rulings, [forever.clone(), goes_on]);
    let record: Value = serde_json::from_str(&store.decision(decision.id).await.unwrap().unwrap()).unwrap();
    assert_eq!(record["id"], decision.id.to_string());
    assert_eq!((&record["at"], &record["device"]["identifier"]), (&json!("2100-01-01T00:01:40Z"), &json!("A")));
    assert_eq!((&record["answers"][0]["age_ms"], &record["checks"][0]["outcome"]), (&json!(12), &json!("failed")));
    store.forget(&[forever.id]).await.unwrap();
    assert_eq!(store.rulings(Span::at(at(201))).await.unwrap(), []);
}

async fn lists_decisions_newest_first_of_one_device_or_all(backend: Backend) {
    let stand = backend.stand().await;
    let store = stand.open().await;
    let all: Vec<_> = (0..6).map(|number| decision(number, if number % 2 == 0 { "A" } else { "B" })).collect();
    for decision in &all {
        store.record(decision.clone());
    }
    store.record(Decision { device: None, ..decision(6, "") });
    let list = async |wanted: Wanted| -> Vec<i64> {
        let found = store.decisions(&Wanted { limit: wanted.limit.max(1), ..wanted }).await.unwrap();
        found.iter().map(|summary| summary.id.at().as_nanos() / SECOND - START).collect()
    };
    assert_eq!(list(Wanted { limit: 100, ..Wanted::default() }).await, [6, 5, 4, 3, 2, 1, 0]);
    assert_eq!(list(Wanted { limit: 2, ..Wanted::default() }).await, [6, 5]);
    assert_eq!(list(Wanted { limit: 9, device: Some("A".to_owned()), ..Wanted::default() }).await, [4, 2, 0]);
    assert_eq!(list(Wanted { limit: 9, device: Some("A".to_owned()), since: Some(at(2)), ..Wanted::default() }).await, [4, 2]);
    assert_eq!(list(Wanted { limit: 9, before: Some(all[3].id), since: Some(at(1)), ..Wanted::default() }).await, [2, 1]);
    let summary = &store.decisions(&Wanted { limit: 1, ..Wanted::default() }).await.unwrap()[0];
    assert_eq!((summary.device.as_str(), summary.decision.as_str(), summary.code.as_str()), ("", "deny", "not_managed"));
    assert_eq!(store.decision(DecisionId::first(at(9))).await.unwrap(), None);
}

async fn e14_decisions_are_found_by_their_webhook_and_what_came_of_them(backend: Backend) {
    let stand = backend.stand().await;
    let store = stand.open().await;
    let of = |seconds, device: &str, webhook: &str, decision_: &'static str, code: &str| Decision {
        webhook: webhook.to_owned(),
        decision: decision_,
        code: code.to_owned(),
        ..decision(seconds, device)
    };
    store.record(of(0, "A", "one", "allow", "allowed"));
    store.record(of(1, "A", "one", "deny", "device_lost"));
    store.record(of(2, "B", "two", "deny", "device_lost"));
    store.record(of(3, "B", "two", "refuse", "replay"));
    let list = async |device: Option<&str>, webhook: Option<&str>, decision: Option<&str>, code: Option<&str>| -> Vec<i64> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let wanted = Wanted {
            device: owned(device),
            webhooks: owned(webhook).into_iter().collect(),
            decision: owned(decision),
            code: owned(code),
            limit: 9,
            ..Wanted::default()
        };
        let found = store.decisions(&wanted).await.unwrap();
        found.iter().map(|summary| summary.id.at().as_nanos() / SECOND - START).collect()
    };
    assert_eq!(list(None, None, None, None).await, [3, 2, 1, 0]);
    assert_eq!(list(None, Some("two"), None, None).await, [3, 2]);
    assert_eq!(list(None, None, Some("deny"), None).await, [2, 1]);
    assert_eq!(list(None, None, None, Some("device_lost")).await, [2, 1]);
    assert_eq!(list(Some("A"), None, Some("deny"), None).await, [1]);
    assert_eq!(list(Some("B"), Some("one"), None, None).await, [0; 0]);
    assert_eq!(list(None, Some("two"), Some("refuse"), Some("replay")).await, [3]);
}

async fn a_full_queue_drops_and_counts_and_holds_nobody_up(backend: Backend) {
    let stand = backend.stand().await;
    let dropped = Arc::<AtomicU64>::default();
    let store = Store::open(&stand.unbounded(), Arc::clone(&dropped) as _).await.unwrap();
    // The test has a single thread, so the writer gets no turn until the test waits.
    for number in 0..QUEUE + 10 {
        store.record(decision(i64::try_from(number).unwrap(), "A"));
    }
    assert_eq!(dropped.load(Ordering::Relaxed), 10);
    let kept = store.decisions(&Wanted { limit: u32::MAX, ..Wanted::default() }).await.unwrap();
    assert_eq!(kept.len(), QUEUE);
    store.close().await;
    store.record(decision(1, "A"));
    assert_eq!(dropped.load(Ordering::Relaxed), 11);
}

async fn decisions_go_when_they_are_too_old_or_too_many(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let batch: Vec<_> = (0..2600).map(|number| Box::new(decision(number, "A"))).collect();
    writer.write(&batch).await;
    // Decisions before the second 1000 are too old, and of the rest only a thousand may stay.
    let now = at(2000);
    writer.has_aged(now, tokio::time::Instant::now());
    let mut steps = 1;
    while writer.delete_some(now).await.unwrap() {
        steps += 1;
    }
    assert_eq!((steps, writer.stored()), (3, 1000));
    let left = store.database().unwrap().decisions(&Wanted { limit: 5000, ..Wanted::default() }).await.unwrap();
    assert_eq!((left.len(), left.last().unwrap().id.at()), (1000, at(1600)));
    drop(store);
}

async fn a_key_is_known_for_the_device_of_the_last_allow_unless_that_was_proven_less(backend: Backend) {
    let stand = backend.stand().await;
    use Trust::{Attested, Certificate, Claimed};
    let key = key();
    let steps = [
        (0, ("a", Claimed), ("a", Claimed)),
        (10, ("b", Claimed), ("b", Claimed)),
        (20, ("b", Attested), ("b", Attested)),
        (30, ("a", Claimed), ("b", Attested)),
        (40, ("a", Certificate), ("b", Attested)),
        // The key is of the same device, in the form in which it is stated now.
        (50, ("B", Claimed), ("B", Attested)),
        (60, ("a", Attested), ("a", Attested)),
        (1060, ("c", Claimed), ("a", Attested)),
        // The binding of the attested device is beyond its retention.
        (1061, ("c", Claimed), ("c", Claimed)),
        (1070, ("c", Attested), ("c", Attested)),
        (2071, ("c", Claimed), ("c", Claimed)),
    ];
    let (mut writer, _, store) = stand.connected().await;
    for (seconds, (device, trust), (known, proven)) in steps {
        writer.write(&[Box::new(allowed(seconds, key, device, trust))]).await;
        assert_eq!(store.device_of(key, at(seconds)).await.unwrap(), Some(identity(known, proven)), "after {seconds}");
    }
    // The outcome is the same where the decisions come in one batch.
    for count in 1..=steps.len() {
        let stand = backend.stand().await;
        let (mut writer, _, store) = stand.connected().await;
        let batch: Vec<_> =
            steps[..count].iter().map(|(seconds, (device, trust), _)| Box::new(allowed(*seconds, key, device, *trust))).collect();
        writer.write(&batch).await;
        let (seconds, _, (known, proven)) = steps[count - 1];
        assert_eq!(store.device_of(key, at(seconds)).await.unwrap(), Some(identity(known, proven)), "{count} at once");
        assert_eq!(writer.stored(), u64::try_from(count).unwrap());
    }
}

async fn a_key_is_forgotten_after_its_retention_and_outlives_its_decision(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let (old, new) = (key(), key());
    writer.write(&[Box::new(allowed(0, old, "A", Trust::Attested)), Box::new(allowed(2, new, "B", Trust::Attested))]).await;
    writer.records().delete_oldest(10).await.unwrap();
    assert!(store.device_of(old, at(1000)).await.unwrap().is_some());
    assert!(store.device_of(old, at(1001)).await.unwrap().is_none(), "also while it is not deleted yet");
    assert!(store.device_of(old, at(900)).await.unwrap().is_some());
    store.clock().unwrap().read(UnixTime::from_nanos(at(1000).as_nanos() + 500_000_000));
    assert!(store.device_of(old, at(900)).await.unwrap().is_none(), "g1: also where the system's clock was set back");
    writer.delete_some(at(1001)).await.unwrap();
    let left = writer.records().count_keys().await.unwrap();
    assert_eq!((left, store.device_of(new, at(1001)).await.unwrap()), (1, Some(identity("B", Trust::Attested))));
}

async fn a_key_is_known_as_soon_as_it_was_allowed_and_after_the_next_start(backend: Backend) {
    let stand = backend.stand().await;
    let store = stand.open().await;
    let (known, unknown) = (key(), key());
    store.record(allowed(0, known, "A", Trust::Certificate));
    let expected = Some(identity("A", Trust::Certificate));
    assert_eq!(store.device_of(known, at(0)).await.unwrap(), expected);
    assert_eq!(store.device_of(unknown, at(0)).await.unwrap(), None);
    store.close().await;
    drop(store);
    assert_eq!(stand.open().await.device_of(known, at(0)).await.unwrap(), expected);
    assert!(matches!(Store::none().device_of(known, at(0)).await, Err(StoreError::None)));
}

async fn a_clock_that_jumps_ahead_costs_no_more_than_the_oldest_decisions(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let batch: Vec<_> = (0..100).map(|number| Box::new(decision(number * 100, "A"))).collect();
    writer.write(&batch).await;
    let years = at(10 * 365 * 86_400);
    for now in [years, years, at(-5), years] {
        writer.delete_some(now).await.unwrap();
        assert!(writer.stored() >= 99, "{}: the service has just started, and hardly any time has passed since", writer.stored());
    }
    // Decisions are kept for a thousand seconds. Since the second 1000 102 s have passed, which age decisions by 2448 s at most.
    writer.has_aged(at(1000), tokio::time::Instant::now() - Duration::from_secs(102));
    for now in [years, at(3440), at(0)] {
        writer.delete_some(now).await.unwrap();
        assert_eq!(writer.stored(), 75);
    }
    drop(store);
}

async fn a_long_record_is_cut_and_says_so(backend: Backend) {
    let stand = backend.stand().await;
    let store = stand.open().await;
    let long = Decision {
        traceparent: Some("é".repeat(1000)),
        checks: Some(json!("x".repeat(LONGEST_CHECKS)).to_string()),
        ..decision(1, &"A".repeat(3000))
    };
    store.record(long.clone());
    let record = store.decision(long.id).await.unwrap().unwrap();
    let value: Value = serde_json::from_str(&record).unwrap();
    assert!(record.len() < 3000, "{}", record.len());
    assert_eq!((&value["checks"]["left_out"], &value["checks"]["bytes"]), (&json!("too long to be kept"), &json!(LONGEST_CHECKS + 2)));
}

async fn a8_pairs_of_identifiers_are_bounded_and_the_oldest_go(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let pairs: Vec<_> = (0..3000).map(|number| (Mark(number), Mark(-number - 1))).collect();
    assert!(store.link(&pairs));
    while writer.write_learned().await {}
    // The first pair is seen again, and so the newest.
    assert!(store.link(&pairs[..1]));
    writer.write_learned().await;
    while writer.delete_links(2400).await.unwrap() > 0 {}
    assert_eq!(writer.records().count_links().await.unwrap(), 2400);
    let partners = async |number| store.database().unwrap().partners(&[Mark(number)]).await.unwrap();
    assert_eq!((partners(0).await, partners(600).await), (vec![Mark(-1)], vec![]));
    assert_eq!((partners(601).await, partners(2999).await), (vec![Mark(-602)], vec![Mark(-3000)]));
}

async fn g1_a_sweep_by_a_clock_that_jumped_deletes_no_ruling_and_proves_no_key_old(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let lock = ruling("A", Some(30 * 86_400));
    let key = key();
    store.keep(&lock, &[Mark(1)]).await.unwrap();
    writer.delete_some(at(0)).await.unwrap();
    writer.write(&[Box::new(allowed(0, key, "a", Trust::Attested))]).await;
    for now in [60 * 86_400, -60 * 86_400, 60 * 86_400] {
        writer.delete_some(at(now)).await.unwrap();
    }
    writer.write(&[Box::new(allowed(60 * 86_400, key, "b", Trust::Claimed))]).await;
    assert_eq!(store.rulings(Span::at(at(0))).await.unwrap(), std::slice::from_ref(&lock));
    assert_eq!(store.covers().await.unwrap(), [(lock.id, Mark(1))]);
    assert_eq!(store.device_of(key, at(0)).await.unwrap(), Some(identity("a", Trust::Attested)), "who claims it has to wait");
    let day_30 = Span::at(at(30 * 86_400));
    for early in [Span { corrected: 1, ..day_30 }, Span::at(at(30 * 86_400 - 1))] {
        writer.records().delete_ended_rulings(early).await.unwrap();
        assert_eq!(store.rulings(early).await.unwrap(), std::slice::from_ref(&lock), "who corrects the clock moves its end");
    }
    if backend == Backend::Postgres {
        // The clock of a service may be ahead of those of the others, for whom the lock holds yet.
        let ahead = Span::at(at(31 * 86_400 - 1));
        writer.records().delete_ended_rulings(ahead).await.unwrap();
        assert_eq!(store.rulings(Span::at(at(0))).await.unwrap(), std::slice::from_ref(&lock), "it may hold by another clock");
        assert_eq!(store.rulings(day_30).await.unwrap(), [], "it is over by this one");
    }
    writer.records().delete_ended_rulings(if backend == Backend::Postgres { Span::at(at(31 * 86_400)) } else { day_30 }).await.unwrap();
    assert_eq!((store.rulings(Span::at(at(0))).await.unwrap(), store.covers().await.unwrap()), (vec![], vec![]));
}

async fn g1_the_proven_time_outlives_the_process_and_an_old_store_has_the_greatest_that_it_saw(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    assert_eq!(writer.records().proven().await.unwrap(), None);
    store.keep(&ruling("A", None), &[]).await.unwrap();
    let proven = |seconds, corrected| Proven { time: at(seconds), corrected };
    assert_eq!(writer.records().proven().await.unwrap(), Some(proven(100, 0)));
    writer.write(&[Box::new(decision(200, "A"))]).await;
    assert_eq!(writer.records().proven().await.unwrap(), Some(proven(200, 0)));
    writer.records().keep_proven(proven(50, 0)).await.unwrap();
    writer.records().keep_proven(proven(51, -7)).await.unwrap();
    assert_eq!(writer.records().proven().await.unwrap(), Some(proven(51, -7)));
}

async fn g9_a_lock_that_is_owed_is_tried_once_more_at_the_end(backend: Backend) {
    let stand = backend.stand().await;
    let store = stand.open().await;
    store.owe(&Arc::new(ruling("A", None)), Vec::new());
    store.close().await;
    assert_eq!(store.trouble(), None);
    drop(store);
    assert_eq!(stand.open().await.rulings(Span::at(at(0))).await.unwrap().len(), 1);
}

async fn b7_keys_are_bounded_for_each_device_and_in_all_and_the_oldest_go(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let count = async |writer: &mut Writer| writer.records().count_keys().await.unwrap();
    let other = key();
    writer.write(&[Box::new(allowed(0, other, "OTHER", Trust::Attested))]).await;
    let keys: Vec<_> = (0..100).map(|_| key()).collect();
    for (seconds, key) in (1..).zip(&keys) {
        writer.write(&[Box::new(allowed(seconds, *key, "A", Trust::Attested))]).await;
        assert!(count(&mut writer).await <= 1 + 4);
    }
    assert_eq!(store.device_of(keys[99], at(100)).await.unwrap(), Some(identity("A", Trust::Attested)));
    assert_eq!(store.device_of(keys[0], at(100)).await.unwrap(), None, "the oldest went");
    // A key that is allowed again is the newest, and a key that is now another device's is left to it.
    writer.write(&[Box::new(allowed(101, keys[96], "A", Trust::Attested)), Box::new(allowed(102, keys[97], "B", Trust::Attested))]).await;
    drop((writer, store));
    let (mut writer, _, store) = stand.connected().await;
    writer.write(&[Box::new(allowed(103, key(), "A", Trust::Attested)), Box::new(allowed(104, key(), "A", Trust::Attested))]).await;
    let known =
        async |number: usize| store.device_of(keys[number], at(104)).await.unwrap().map(|identity| identity.device.stated().to_owned());
    assert_eq!((known(96).await.as_deref(), known(97).await.as_deref()), (Some("A"), Some("B")), "after a start as well");
    assert_eq!((known(98).await, known(99).await.as_deref()), (None, Some("A")));
    assert!(store.device_of(other, at(100)).await.unwrap().is_some(), "one device takes nothing from another");
    let batch: Vec<_> = (0..200).map(|number| Box::new(allowed(200 + number, key(), &format!("D{number}"), Trust::Attested))).collect();
    writer.write(&batch).await;
    writer.has_aged(at(400), tokio::time::Instant::now());
    while writer.delete_some(at(400)).await.unwrap() {}
    assert_eq!(count(&mut writer).await, 100);
    assert_eq!(store.device_of(other, at(400)).await.unwrap(), None);
}

async fn g8_a_start_finds_what_was_sent_lately_though_the_clock_was_set(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let of = |seconds: i64, outcome: &'static str| Decision { decision: outcome, inputs: format!("{seconds}"), ..decision(seconds, "A") };
    let by_another = Decision { code: "replayed_by_another".into(), ..of(60, "refuse") };
    let unanswered = Decision { code: "provider_unavailable".into(), ..of(50, "refuse") };
    let batch = [of(0, "allow"), unanswered, by_another, of(70, "deny"), Decision { caller: None, ..of(80, "deny") }];
    writer.write(&batch.map(Box::new)).await;
    let window = Duration::from_secs(30);
    let sent = async |most: u32| -> Vec<String> {
        let sent = store.sent(window, most).await.unwrap();
        assert!(sent.iter().all(|sent| sent.webhook == "one" && sent.caller == Sender::of("dns:ca.example.org")));
        sent.into_iter().map(|sent| sent.inputs).collect()
    };
    assert_eq!(sent(100).await, ["70", "50"]);
    assert_eq!(sent(1).await, ["70"]);
    // The clock was set back by a day for two decisions, and what was written before is of the same minute.
    writer.write(&[Box::new(of(90 - 86_400, "allow")), Box::new(of(95 - 86_400, "allow"))]).await;
    assert_eq!(sent(100).await, ["-86305", "-86310", "70", "50"]);
    // The clock was ahead for one decision.
    writer.write(&[Box::new(of(96 + 3600, "allow")), Box::new(of(98, "allow"))]).await;
    assert_eq!(sent(100).await, ["98", "3696", "70"]);
    let stand = backend.stand().await;
    let (_writer, _, empty) = stand.connected().await;
    assert_eq!(empty.sent(window, 100).await.unwrap(), []);
}

async fn g6_the_decisions_that_were_written_first_go_first_though_the_clock_is_behind(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let made = |at: std::ops::Range<i64>| at.map(|second| Box::new(decision(second, "A"))).collect::<Vec<_>>();
    writer.write(&made(0..1000)).await;
    writer.write(&made(-864_000..-863_980)).await;
    while writer.delete_some(at(-863_900)).await.unwrap() {}
    let kept = store.decisions(&Wanted { limit: 2000, ..Wanted::default() }).await.unwrap();
    assert_eq!(kept.len(), 1000);
    assert_eq!(kept.iter().filter(|kept| kept.id.at() < at(-863_900)).count(), 20);
    assert!(kept.iter().all(|kept| kept.id.at() < at(-863_900) || kept.id.at() >= at(20)));
}

async fn every_text_comes_back_byte_for_byte(backend: Backend) {
    let stand = backend.stand().await;
    let store = stand.open().await;
    for text in texts() {
        let lock = Ruling { device: text.clone(), reason: text.clone(), made_by: text.clone(), ..ruling("", None) };
        store.keep(&lock, &[]).await.unwrap();
        assert_eq!(store.rulings(Span::at(at(0))).await.unwrap(), std::slice::from_ref(&lock), "{text:?}");
        store.forget(&[lock.id]).await.unwrap();
        // What a stranger can make long is cut before it is kept.
        let bounded = text.get(..text.floor_char_boundary(512)).unwrap();
        let made = Decision {
            webhook: text.clone(),
            code: text.clone(),
            caller: Some(text.clone()),
            inputs: text.clone(),
            request_id: Some(text.clone()),
            traceparent: Some(text.clone()),
            decision: "allow",
            ..decision(1, &text)
        };
        store.record(made.clone());
        let record: Value = serde_json::from_str(&store.decision(made.id).await.unwrap().unwrap()).unwrap();
        for found in [&record["webhook"], &record["device"]["identifier"], &record["request_id"], &record["code"]] {
            assert_eq!(found.as_str(), Some(bounded), "{text:?}");
        }
        let wanted = Wanted {
            device: Some(bounded.to_owned()),
            webhooks: vec![bounded.to_owned(), "another".to_owned()],
            decision: Some("allow".to_owned()),
            code: Some(bounded.to_owned()),
            limit: 9,
            ..Wanted::default()
        };
        let [summary] = &store.decisions(&wanted).await.unwrap()[..] else { panic!("{text:?}") };
        assert_eq!(
            (summary.id, summary.device.as_str(), summary.webhook.as_str(), summary.code.as_str()),
            (made.id, bounded, bounded, bounded)
        );
        let none = Wanted { device: Some(format!("{bounded}\0")), ..wanted };
        assert_eq!(store.decisions(&none).await.unwrap(), []);
        let sent = &store.sent(Duration::from_secs(30), 1).await.unwrap()[0];
        assert_eq!((sent.webhook.as_str(), sent.inputs.as_str(), sent.caller), (bounded, bounded, Sender::of(&text)));
    }
    assert_eq!(store.decisions(&Wanted { limit: 100, ..Wanted::default() }).await.unwrap().len(), texts().len());
}

async fn a_device_of_any_name_has_its_key_alone(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let devices: Vec<_> = texts().iter().filter_map(|text| DeviceId::new(IdentifierKind::Serial, text).ok()).collect();
    assert!(devices.len() > 5, "{devices:?}");
    let keys: Vec<_> = devices.iter().map(|_| key()).collect();
    for (device, key) in devices.iter().zip(&keys) {
        let identity = Identity { device: device.clone(), trust: Trust::Certificate };
        writer.write(&[Box::new(Decision { key: Some((*key, identity)), ..decision(1, device.normal()) })]).await;
    }
    for (device, key) in devices.iter().zip(&keys) {
        let found = store.device_of(*key, at(1)).await.unwrap().unwrap();
        assert_eq!((found.device.stated(), found.trust), (device.stated(), Trust::Certificate));
        assert_eq!(writer.records().delete_key(&DeviceId::new(IdentifierKind::Serial, "ANOTHER").unwrap(), *key).await.unwrap(), 0);
        assert_eq!(writer.records().delete_key(device, *key).await.unwrap(), 1);
        assert_eq!(store.device_of(*key, at(1)).await.unwrap(), None);
    }
}

async fn rulings_are_kept_and_forgotten_once_with_what_they_cover(backend: Backend) {
    let stand = backend.stand().await;
    let store = stand.open().await;
    let (lock, other) = (ruling("A", None), ruling("B", None));
    let exemption =
        Ruling::new(RulingKind::Exemption, Some(IdentifierKind::Udid), "C", "", "uid 1", at(101), Some(Duration::from_secs(60)));
    let exemption = Ruling { proven_until: Some(at(7)), corrected: -3, ..exemption };
    let marks: Vec<_> = (0..1024).map(|number| Mark(number * 7 - 3000)).collect();
    for _ in 0..2 {
        store.keep(&lock, &marks).await.unwrap();
        store.keep(&other, &[Mark(1), Mark(1)]).await.unwrap();
        store.keep(&exemption, &[]).await.unwrap();
    }
    let mut expected = vec![lock.clone(), other.clone(), exemption.clone()];
    expected.sort_by_key(|ruling| ruling.id);
    assert_eq!(store.rulings(Span::at(at(0))).await.unwrap(), expected, "in the order of their ids");
    let covers = async || {
        let mut covers = store.covers().await.unwrap();
        covers.sort_unstable();
        covers
    };
    let mut all: Vec<_> = marks.iter().map(|mark| (lock.id, *mark)).chain([(other.id, Mark(1))]).collect();
    all.sort_unstable();
    assert_eq!(covers().await, all);
    // A later keep of the same id changes nothing.
    store.keep(&Ruling { reason: "another".to_owned(), ..lock.clone() }, &[]).await.unwrap();
    assert_eq!(store.rulings(Span::at(at(0))).await.unwrap(), expected);
    for _ in 0..2 {
        store.forget(&[lock.id, exemption.id, DecisionId::first(at(1))]).await.unwrap();
    }
    assert_eq!(store.rulings(Span::at(at(0))).await.unwrap(), std::slice::from_ref(&other));
    assert_eq!(covers().await, [(other.id, Mark(1))]);
    store.answers().await.unwrap();
    store.answers().await.unwrap();
    store.forget(&[]).await.unwrap();
    assert_eq!(store.trouble(), None);
}

async fn a_ruling_ends_at_the_same_time_in_every_store_even_at_the_edges_of_time(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let nanos = UnixTime::from_nanos;
    let until = |until: i64, corrected: i64| Ruling { until: Some(nanos(until)), corrected, ..ruling("A", None) };
    let cases = [
        until(i64::MAX, i64::MIN),
        until(i64::MAX, i64::MAX),
        until(i64::MIN, i64::MAX),
        until(0, 0),
        until(1000, 100),
        until(1000, -100),
        ruling("A", None),
    ];
    for ruling in &cases {
        store.keep(ruling, &[]).await.unwrap();
    }
    let spans =
        [(0, 0), (1000, 0), (999, 100), (1000, 150), (1099, 0), (1100, 0), (i64::MAX, 0), (i64::MAX, i64::MAX), (i64::MIN, i64::MIN)];
    let span = |(now, corrected): (i64, i64)| Span { corrected, ..Span::at(nanos(now)) };
    for now in spans.map(span) {
        let mut expected: Vec<_> = cases.iter().filter(|ruling| !ruling.has_ended(now)).cloned().collect();
        expected.sort_by_key(|ruling| ruling.id);
        // A sum beyond the greatest time is that time for a ruling, and a later one for a database.
        let found = store.rulings(now).await.unwrap();
        let missing: Vec<_> = expected.iter().filter(|ruling| !found.contains(ruling)).collect();
        assert!(missing.is_empty(), "{now:?}: {missing:?}");
        let extra: Vec<_> = found.iter().filter(|ruling| !expected.contains(ruling)).collect();
        assert!(extra.iter().all(|ruling| ruling.end(now) == Some(nanos(i64::MAX))), "{now:?}: {extra:?}");
    }
    // Where several services share the store, what has ended goes a day later.
    let late = if backend == Backend::Postgres { 86_400 * SECOND } else { 0 };
    writer.records().delete_ended_rulings(Span::at(nanos(1000 + late))).await.unwrap();
    let mut left: Vec<_> = store.rulings(Span::at(nanos(i64::MIN))).await.unwrap().into_iter().map(|ruling| ruling.until).collect();
    left.sort_unstable();
    let last = Some(nanos(i64::MAX));
    assert_eq!(left, [None, Some(nanos(1000)), last, last], "one of 1000 is to end at 1100");
}

async fn what_a_lock_came_to_cover_before_it_was_written_is_written_with_it(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let lock = Arc::new(ruling("A", None));
    store.owe(&lock, vec![Mark(1)]);
    store.cover(lock.id, &[Mark(2)]);
    // The task that writes covers comes before the lock is there.
    writer.write_learned().await;
    store.settle(&[lock.id]).await.unwrap();
    store.cover(lock.id, &[Mark(3)]);
    writer.write_learned().await;
    let mut found: Vec<_> = store.covers().await.unwrap().into_iter().map(|(id, mark)| (id, mark.0)).collect();
    found.sort_unstable();
    assert_eq!(found, [1, 2, 3].map(|mark| (lock.id, mark)));
}

async fn covers_are_learned_of_locks_that_are_there(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let (lock, gone) = (ruling("A", None), ruling("B", None));
    store.keep(&lock, &[Mark(1)]).await.unwrap();
    let covers: Vec<_> = [(lock.id, 1), (lock.id, 2), (gone.id, 3), (lock.id, 2)].map(|(id, mark)| (id, Mark(mark))).to_vec();
    for _ in 0..2 {
        writer.records().learn(&[], &covers).await.unwrap();
    }
    let many: Vec<_> = (100..1300).map(|mark| (lock.id, Mark(mark))).collect();
    writer.records().learn(&[], &many).await.unwrap();
    let mut found: Vec<_> = store.covers().await.unwrap().into_iter().map(|(id, mark)| (id, mark.0)).collect();
    found.sort_unstable();
    assert_eq!(found, [1, 2].into_iter().chain(100..1300).map(|mark| (lock.id, mark)).collect::<Vec<_>>());
    writer.records().delete_ended_rulings(Span::at(at(1_000_000))).await.unwrap();
    assert_eq!(store.covers().await.unwrap().len(), 1202, "a lock without an end has not ended");
}

async fn a_pair_that_is_seen_again_becomes_the_newest(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let pair = |one: i64, other: i64| (Mark(one), Mark(other));
    let all = async || store.links(100).await.unwrap();
    writer.records().learn(&[pair(9, 1), pair(3, 2), pair(5, 3), pair(3, 2)], &[]).await.unwrap();
    assert_eq!(all().await, [pair(3, 2), pair(5, 3), pair(9, 1)], "the second time counts");
    writer.records().learn(&[pair(5, 3), pair(1, 9), pair(9, 1)], &[]).await.unwrap();
    writer.records().learn(&[], &[]).await.unwrap();
    assert_eq!(all().await, [pair(9, 1), pair(1, 9), pair(5, 3), pair(3, 2)]);
    assert_eq!(store.links(2).await.unwrap(), [pair(9, 1), pair(1, 9)]);
    assert_eq!(store.links(0).await.unwrap(), []);
    assert_eq!((writer.records().count_links().await.unwrap(), writer.records().delete_links(1).await.unwrap()), (4, 1));
    assert_eq!(all().await, [pair(9, 1), pair(1, 9), pair(5, 3)], "the one that was seen the longest ago went");
    assert_eq!(writer.records().delete_links(100).await.unwrap(), 3);
}

async fn of_many_partners_those_seen_first_and_last_are_found(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let partners = async |of: &[i64]| -> Vec<i64> {
        let of: Vec<_> = of.iter().map(|mark| Mark(*mark)).collect();
        store.partners(&of).await.unwrap().into_iter().map(|mark| mark.0).collect()
    };
    assert_eq!(partners(&[1]).await, [0; 0]);
    assert_eq!(partners(&[]).await, [0; 0]);
    let most = i64::try_from(MOST_COVERED).unwrap();
    let first = i64::try_from(FIRST_COVERED).unwrap();
    let pairs: Vec<_> = (0..most).map(|number| (Mark(if number % 2 == 0 { -1 } else { -2 }), Mark(most - number))).collect();
    writer.records().learn(&pairs, &[]).await.unwrap();
    assert_eq!(partners(&[-1, -2]).await, (0..most).map(|number| most - number).collect::<Vec<_>>());
    assert_eq!(partners(&[-2]).await, (0..most).filter(|number| number % 2 == 1).map(|number| most - number).collect::<Vec<_>>());
    let more: Vec<_> = (0..5000).map(|number| (Mark(-1), Mark(10_000 + number))).collect();
    writer.records().learn(&more, &[]).await.unwrap();
    let expected: Vec<_> = (0..first).map(|number| most - number).chain(15_000 - (most - first)..15_000).collect();
    assert_eq!(partners(&[-1, -2]).await, expected);
}

async fn a_decision_is_written_once_and_in_its_place(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let batch: Vec<_> = (0..600).map(|number| Box::new(Decision { inputs: number.to_string(), ..decision(-number, "A") })).collect();
    let insert =
        async |writer: &mut Writer, batch: &[Box<Decision>]| writer.records().insert(batch, Duration::from_secs(1000), None).await.unwrap();
    assert_eq!(insert(&mut writer, &batch[..500]).await, 500);
    let again: Vec<_> = batch[400..].iter().cloned().chain([batch[0].clone(), batch[599].clone()]).collect();
    assert_eq!(insert(&mut writer, &again).await, 100, "the others are there");
    assert_eq!(insert(&mut writer, &[]).await, 0);
    assert_eq!(writer.records().oldest().await.unwrap(), Some(batch[599].id));
    let sent = async |most| -> Vec<String> {
        store.sent(Duration::from_secs(100_000), most).await.unwrap().into_iter().map(|sent| sent.inputs).collect()
    };
    assert_eq!(sent(1000).await, (0..600).rev().map(|number| number.to_string()).collect::<Vec<_>>(), "as they were written");
    // By time the last that was written goes first, and by its place the first.
    assert_eq!(writer.records().delete_before(DecisionId::first(at(-597)), 10).await.unwrap(), 2);
    assert_eq!(writer.records().delete_before(DecisionId::first(at(-500)), 10).await.unwrap(), 10);
    assert_eq!(writer.records().delete_oldest(20).await.unwrap(), 20);
    assert_eq!(sent(1000).await, (20..588).rev().map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!((sent(3).await, sent(0).await.len()), (vec!["587".to_owned(), "586".to_owned(), "585".to_owned()], 1));
    assert_eq!(writer.records().delete_oldest(1000).await.unwrap(), 568);
    assert_eq!((writer.records().oldest().await.unwrap(), sent(1000).await.len()), (None, 0));
}

async fn what_was_sent_is_found_among_many_decisions_up_to_a_bound(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let of = |number: i64, seconds: i64| Box::new(Decision { inputs: number.to_string(), decision: "allow", ..decision(seconds, "A") });
    let write = async |writer: &mut Writer, batch: Vec<Box<Decision>>| {
        for portion in batch.chunks(512) {
            writer.write(portion).await;
        }
    };
    write(&mut writer, (0..2300).map(|number| of(number, 0)).collect()).await;
    let sent = async |most| store.sent(Duration::from_secs(30), most).await.unwrap();
    assert_eq!(sent(5000).await.len(), 2300);
    assert_eq!(sent(2250).await.last().unwrap().inputs, "50");
    // A thousand others in between are passed over, and one more is not.
    write(&mut writer, (0..1000).map(|number| of(number, -1000)).chain([of(7, 1)]).collect()).await;
    assert_eq!(sent(5000).await.len(), 2301);
    write(&mut writer, vec![of(8, -1000), of(9, 2)]).await;
    assert_eq!(sent(5000).await.len(), 2);
    // Neither a refusal nor what nobody sent is among them.
    let refused = Decision { decision: "refuse", code: "replay".to_owned(), ..*of(10, 3) };
    writer.write(&[Box::new(refused), Box::new(Decision { caller: None, ..*of(11, 3) })]).await;
    assert_eq!(sent(1).await[0].inputs, "9");
}

async fn callers_are_told_apart_by_all_of_their_names(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let callers = ["a".repeat(508), "a".repeat(509), "a".repeat(512), format!("{}b", "a".repeat(600)), "é".repeat(300), "\0".repeat(600)];
    let of = |(second, caller): (i64, &String)| Box::new(Decision { caller: Some(caller.clone()), ..decision(second, "A") });
    let mut batch: Vec<_> = (0..).zip(&callers).map(of).collect();
    batch.iter_mut().for_each(|decision| decision.bound());
    writer.write(&batch).await;
    let sent = store.sent(Duration::from_secs(30), 100).await.unwrap();
    let found: Vec<_> = sent.into_iter().rev().map(|sent| sent.caller).collect();
    assert_eq!(found, callers.iter().map(|caller| Sender::of(caller)).collect::<Vec<_>>());
}

async fn a_key_that_is_allowed_often_in_one_batch_is_known_as_if_they_came_one_by_one(backend: Backend) {
    use Trust::{Attested, Certificate, Claimed};
    let keys: Vec<_> = (0..3).map(|_| key()).collect();
    let trusts = [Claimed, Certificate, Attested];
    // A walk through devices, proofs and times, always the same one.
    let step = |number: usize| {
        let at = i64::try_from(number * 7 % 11 * 150).unwrap();
        Box::new(allowed(at, keys[number * 5 % 11 % 3], ["a", "b", "A"][number % 3], trusts[number * 5 % 7 % 3]))
    };
    let walk: Vec<_> = (0..60).map(step).collect();
    for retention in [Duration::from_secs(400), Duration::MAX] {
        for proven in [None, Some(at(700))] {
            let mut outcomes = Vec::new();
            for portion in [1, 7, 60] {
                let stand = backend.stand().await;
                let (mut writer, _, store) = stand.connected().await;
                for batch in walk.chunks(portion) {
                    writer.records().insert(batch, retention, proven).await.unwrap();
                }
                let mut known = Vec::new();
                for key in &keys {
                    known.push(store.database().unwrap().device_of(*key, UnixTime::from_nanos(i64::MIN)).await.unwrap());
                }
                outcomes.push((known, writer.records().count_keys().await.unwrap()));
            }
            assert!(outcomes[0].0.iter().all(Option::is_some));
            assert_eq!((&outcomes[1], &outcomes[2]), (&outcomes[0], &outcomes[0]), "{retention:?} {proven:?}");
        }
    }
}

async fn the_oldest_keys_go_first(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let keys: Vec<_> = (0..10).map(|_| key()).collect();
    let batch: Vec<_> =
        (0..).zip(&keys).map(|(second, key)| Box::new(allowed(second, *key, &format!("D{second}"), Trust::Claimed))).collect();
    writer.records().insert(&batch, Duration::from_secs(1000), None).await.unwrap();
    let left = async |writer: &mut Writer| writer.records().count_keys().await.unwrap();
    assert_eq!(writer.records().delete_keys_before(at(3), 2).await.unwrap(), 2);
    assert_eq!(writer.records().delete_keys_before(at(3), 2).await.unwrap(), 1);
    assert_eq!(writer.records().delete_keys_before(at(3), 2).await.unwrap(), 0);
    assert_eq!((left(&mut writer).await, writer.records().delete_oldest_keys(4).await.unwrap()), (7, 4));
    assert_eq!((store.device_of(keys[6], at(9)).await.unwrap(), left(&mut writer).await), (None, 3));
    assert!(store.device_of(keys[7], at(9)).await.unwrap().is_some());
}

async fn ids_are_ordered_by_their_bytes(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    // Letters are behind digits there, whatever a language says.
    let ids: Vec<DecisionId> = ["9", "A", "Z"].map(|letter| format!("01ARYZ6S4{letter}0000000000000000").parse().unwrap()).to_vec();
    let batch: Vec<_> = ids.iter().rev().map(|id| Box::new(Decision { id: *id, ..decision(0, "A") })).collect();
    writer.write(&batch).await;
    let list = async |wanted: Wanted| -> Vec<DecisionId> {
        store.decisions(&Wanted { limit: 9, ..wanted }).await.unwrap().into_iter().map(|summary| summary.id).collect()
    };
    assert_eq!(list(Wanted::default()).await, [ids[2], ids[1], ids[0]]);
    assert_eq!(list(Wanted { before: Some(ids[2]), ..Wanted::default() }).await, [ids[1], ids[0]]);
    assert_eq!(list(Wanted { before: Some(ids[1]), device: Some("A".to_owned()), ..Wanted::default() }).await, [ids[0]]);
    assert_eq!(list(Wanted { device: Some("a".to_owned()), ..Wanted::default() }).await, []);
    assert_eq!(writer.records().delete_before(ids[1], 9).await.unwrap(), 1);
}

async fn an_answer_that_nobody_waits_for_any_more_is_not_given_to_the_next(backend: Backend) {
    let stand = backend.stand().await;
    let (mut writer, _, store) = stand.connected().await;
    let batch: Vec<_> = (0..50).map(|number| Box::new(decision(number, &format!("D{number}")))).collect();
    writer.write(&batch).await;
    let database = store.database().unwrap();
    for (number, made) in batch.iter().enumerate() {
        // Each stops waiting at another moment.
        let given_up = tokio::time::timeout(Duration::from_micros(40 * u64::try_from(number).unwrap()), async {
            let wanted = Wanted { limit: 50, ..Wanted::default() };
            database.decision(batch[49 - number].id).await.unwrap();
            loop {
                database.decisions(&wanted).await.unwrap();
            }
        });
        let given_up: Result<(), _> = given_up.await;
        assert!(given_up.is_err());
        let record: Value = serde_json::from_str(&database.decision(made.id).await.unwrap().unwrap()).unwrap();
        assert_eq!(record["device"]["identifier"], format!("D{number}"));
    }
}

/// Texts that a statement, a database or a terminal could take for something else.
pub(crate) fn texts() -> Vec<String> {
    let mut texts: Vec<_> = [
        "'; drop table rulings; --",
        "'; drop schema stepward cascade; --",
        "\\'; \\\\ \\x27 \\0",
        "$1 $$ $tag$ ?1 :name @name",
        "{\"a\",NULL,'b'}",
        "%s %_ \\%",
        "NULL",
        "a\0b",
        "\0",
        "\u{1a}",
        "\u{1a}0\0\u{1a}1",
        "\u{202e}txt.exe",
        "é\u{301}\u{10ffff}\u{feff}",
        "two\nlines\r\ttab \u{1b}[31m",
        " C02XL0GYJGH5 ",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.extend(["long ".repeat(20_000), "\0".repeat(5000), "\u{1a}é".repeat(5000)]);
    texts
}
