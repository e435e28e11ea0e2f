//! The rule of silence in doubt and after a pause: who tries the service is chosen by chance, and somebody always does.

use super::*;

/// An answer to a witness is an answer, though no other call is under way.
#[tokio::test(start_paused = true)]
async fn a12_a_witness_that_was_asked_before_an_answer_says_nothing_though_only_witnesses_are_asked() {
    let turns = Arc::new(Turns::new(Limits { per_second: 20, unknown_per_minute: 60 }, 1));
    let who = |name: &str| {
        let mark = Mark::identifier(name);
        Who { asked: mark, device: mark }
    };
    let came = Instant::now();
    let later = || Instant::now() + HOUR;
    let first = turns.line_up_for_others(Role::Probe, who("a"), later()).turn().await.unwrap();
    first.waits_since(Some(Instant::now()));
    millis_later(600).await;
    let mut second = turns.line_up_for_others(Role::Probe, who("b"), later()).turn().await.unwrap();
    second.waits_since(Some(Instant::now()));
    millis_later(50).await;
    second.succeeded(true, false);
    drop(second);
    let third = turns.line_up_for_others(Role::Probe, who("c"), later()).turn().await.unwrap();
    third.waits_since(Some(Instant::now()));
    millis_later(1500).await;
    assert_ne!(turns.patience(came, Instant::now()), Patience::Over, "b was answered after a was asked");
    drop((first, third));
}

/// A service that failed for ten seconds and is well since: those who are refused from six seconds after that on.
async fn refused_since(fleet: u64, every: u64, why: Unavailable) -> usize {
    let known: Vec<_> = (0..fleet).map(|number| format!("D{number}X")).collect();
    let (stand, cache) = world(5, 20, &known).await;
    stand.fails(Some(why));
    let began = Instant::now();
    let mut waits = Vec::new();
    let mut number = 0;
    while began.elapsed() < Duration::from_secs(60) {
        if began.elapsed() >= Duration::from_secs(10) {
            stand.fails(None);
        }
        let (cache, name, came) = (Arc::clone(&cache), format!("D{}X", number % fleet), began.elapsed());
        waits.push(tokio::spawn(async move { (came, short(&webhook(&cache, &name).await.unwrap())) }));
        number += 1;
        millis_later(every).await;
    }
    let mut since = 0;
    for wait in waits {
        let (came, said) = wait.await.unwrap();
        since += usize::from(came > Duration::from_secs(16) && !said.starts_with("found"));
    }
    since
}

#[tokio::test(start_paused = true)]
async fn b5_a_service_that_is_back_is_asked_though_all_who_are_known_wait() {
    for why in [Unavailable::ServerError(None), Unavailable::Network] {
        for fleet in [2, 3, 6, 20] {
            for every in [200, 1000, 2500] {
                assert_eq!(refused_since(fleet, every, why).await, 0, "{why:?}, {fleet} known, one each {every} ms");
            }
        }
    }
}

/// Two devices that fail by themselves, one of them by two identifiers.
#[tokio::test(start_paused = true)]
async fn a12_two_devices_that_fail_open_no_circuit_by_another_identifier() {
    let mut wrong = Vec::new();
    for why in [Unavailable::ServerError(None), Unavailable::Protocol] {
        let known: Vec<_> = all(&["GONE", "BAD0", "BAD1"]).into_iter().chain((0..20).map(|number| format!("GOOD{number}"))).collect();
        let stand = Stand::new();
        stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
        stand.keeps(known.iter().cloned());
        for name in &known {
            assert_eq!(stand.says(name).await, "found live");
        }
        let udid = |name: &str| Question {
            device: DeviceId::new(IdentifierKind::Udid, &format!("udid-{name}")).unwrap(),
            ..question(name, Fields::NONE)
        };
        for name in ["BAD0", "BAD1"] {
            assert!(matches!(stand.cache.lookup(&udid(name), Terms::default()).await.answer, Answer::Found(_)));
        }
        after(301).await;
        stand.script.records.lock().unwrap().retain(|name, _| !name.starts_with("GONE"));
        let limits = Limits { per_second: 20, unknown_per_minute: 6000 };
        let settings = Settings { cache: Lifetimes::default(), limits, connections: 5, sync: Some(Schedule::default()) };
        let cache = Arc::new(stand.cache.with_settings(settings, stand.cache.inventory()));
        for name in ["BAD", "udid-BAD", "UDID-BAD", "UDIDBAD"] {
            stand.odd(name, Some(Answer::Unavailable(why)));
            stand.script.slow.lock().unwrap().push((name, Duration::from_millis(20)));
        }
        stand.script.slow.lock().unwrap().push(("STRANGER", HOUR));
        stand.script.asked.lock().unwrap().clear();
        let _strangers: Vec<_> = (0..3).map(|number| webhook(&cache, &format!("STRANGER{number}"))).collect();
        millis_later(5).await;
        let _bads = [webhook(&cache, "BAD0"), webhook(&cache, "BAD1")];
        millis_later(1).await;
        let again = ["BAD0", "BAD1"].map(|name| {
            let (cache, question) = (Arc::clone(&cache), udid(name));
            tokio::spawn(async move { cache.lookup(&question, Terms::default()).await })
        });
        millis_later(1).await;
        let _others: Vec<_> = (0..20).map(|number| webhook(&cache, &format!("GOOD{number}"))).collect();
        let said = short(&webhook(&cache, "GONE").await.unwrap());
        if said.starts_with("found") {
            wrong.push(why);
        }
        drop(again);
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Three devices that fail, and all others of a fleet of ninety, which come by themselves.
#[tokio::test(start_paused = true)]
async fn a12_three_devices_that_fail_open_no_circuit_where_all_others_wait() {
    let mut wrong = Vec::new();
    for good in [3, 10, 40, 90] {
        let known: Vec<_> =
            all(&["GONE", "BAD0", "BAD1", "BAD2"]).into_iter().chain((0..good).map(|number| format!("GOOD{number}"))).collect();
        let (stand, cache) = world(5, 20, &known).await;
        stand.odd("BAD", Some(Answer::Unavailable(Unavailable::ServerError(None))));
        *stand.script.slow.lock().unwrap() = vec![("BAD", Duration::from_millis(20)), ("STRANGER", HOUR)];
        let _strangers: Vec<_> = (0..3).map(|number| webhook(&cache, &format!("STRANGER{number}"))).collect();
        millis_later(5).await;
        let _bads: Vec<_> = (0..3).map(|number| webhook(&cache, &format!("BAD{number}"))).collect();
        millis_later(1).await;
        let _others: Vec<_> = (0..good).map(|number| asks(&cache, &format!("GOOD{number}"), Way::Query)).collect();
        let said = short(&webhook(&cache, "GONE").await.unwrap());
        if said.starts_with("found") {
            wrong.push((good, said, stand.script.asked.lock().unwrap().clone()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
