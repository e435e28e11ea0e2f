//! The rule of old records and of silence, against who owns a few devices that are slow or cannot be read, and against the marks that
//! devices have from times when the service was ill.

use super::*;

const GARBLED: Answer = Answer::Unavailable(Unavailable::Protocol);
const BROKEN: Answer = Answer::Unavailable(Unavailable::ServerError(None));

fn by_udid(cache: &Arc<Cache>, name: &str) -> tokio::task::JoinHandle<Looked> {
    let device = DeviceId::new(IdentifierKind::Udid, &format!("udid-{name}")).unwrap();
    let (cache, question) = (Arc::clone(cache), Question { device, ..question(name, Fields::NONE) });
    tokio::spawn(async move { cache.lookup(&question, Terms::default()).await })
}

fn good(many: usize) -> impl Iterator<Item = String> {
    (0..many).map(|number| format!("GOOD{number}"))
}

/// A world in which each of 30 good devices failed once, while others were answered, if they did.
async fn after_failures(failed: bool, others: &[&str]) -> (Stand, Arc<Cache>) {
    let known: Vec<_> = all(others).into_iter().chain(good(30)).collect();
    let (stand, cache) = world(5, 20, &known).await;
    for name in good(30).chain(others.contains(&"GONE").then(|| "GONE".to_owned())).filter(|_| failed) {
        *stand.script.odd.lock().unwrap() = vec![("GO", Some(BROKEN))];
        assert_eq!(short(&webhook(&cache, &name).await.unwrap()), "found Stale");
        stand.script.odd.lock().unwrap().clear();
        webhook(&cache, &format!("PLAIN{name}")).await.unwrap();
        after(1).await;
    }
    assert_eq!(cache.circuit(), Circuit::Closed);
    (stand, cache)
}

/// Slow identifiers hold the places, and one more slow device that for known ones; then the device asks that was removed.
async fn with_all_places_held(stand: &Stand, cache: &Arc<Cache>) -> String {
    *stand.script.slow.lock().unwrap() = vec![("SLOW", Duration::from_millis(2500)), ("STRANGER", HOUR)];
    let _strangers: Vec<_> = (0..4).map(|number| webhook(cache, &format!("STRANGER{number}"))).collect();
    let _slow = webhook(cache, "SLOW2");
    millis_later(10).await;
    short(&webhook(cache, "GONE").await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn a12_a_device_that_cannot_be_read_has_no_old_record_though_the_line_is_too_long_for_another() {
    for flood in [20, 90, 125, 400] {
        let known: Vec<_> = all(&["BAD"]).into_iter().chain(good(600)).collect();
        let (stand, cache) = world(5, 20, &known).await;
        stand.odd("BAD", Some(GARBLED));
        stand.script.slow.lock().unwrap().push(("BAD", Duration::from_millis(20)));
        let bad = webhook(&cache, "BAD");
        millis_later(1).await;
        let _flood: Vec<_> = good(flood.min(125)).map(|name| webhook(&cache, &name)).collect();
        for name in good(flood).skip(125) {
            drop(webhook(&cache, &name));
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        assert_eq!(short(&bad.await.unwrap()), "protocol Live", "{flood}");
    }
}

#[tokio::test(start_paused = true)]
async fn b5_a_device_is_alone_where_a_bound_of_ours_keeps_others_from_being_asked_for() {
    let known: Vec<_> = all(&["BAD"]).into_iter().chain(good(30)).collect();
    let (_stand, cache) = world(5, 1, &known).await;
    let key = Key::of(&question("BAD", Fields::NONE).device);
    let is_alone = || cache.is_alone(&key, true, Unavailable::Protocol, Instant::now() + Duration::from_millis(100));
    let mut line: Vec<_> = good(10).map(|name| webhook(&cache, &name)).collect();
    millis_later(1).await;
    // Whoever had a turn has left the line.
    line.extend(good(20).skip(10).map(|name| webhook(&cache, &name)));
    millis_later(1).await;
    assert!(is_alone().await, "the line is too long");
}

#[tokio::test(start_paused = true)]
async fn a12_a_device_that_cannot_be_read_has_no_old_record_though_slow_ones_hold_every_place() {
    for (connections, strangers, slow) in [(5, 0, 0), (5, 4, 1), (5, 3, 2), (5, 0, 5), (1, 0, 1), (3, 2, 1), (10, 8, 2)] {
        for _ in 0..10 {
            let known: Vec<_> = all(&["BAD"]).into_iter().chain((0..slow).map(|number| format!("SLOW{number}"))).chain(good(40)).collect();
            let (stand, cache) = world(connections, 20, &known).await;
            stand.odd("BAD", Some(GARBLED));
            *stand.script.slow.lock().unwrap() = vec![("BAD", Duration::from_millis(20)), ("SLOW", HOUR), ("STRANGER", HOUR)];
            let mut held: Vec<_> = (0..strangers).map(|number| webhook(&cache, &format!("STRANGER{number}"))).collect();
            held.extend((1..slow).map(|number| webhook(&cache, &format!("SLOW{number}"))));
            millis_later(5).await;
            let bad = webhook(&cache, "BAD");
            millis_later(1).await;
            held.extend((slow > 0).then(|| webhook(&cache, "SLOW0")));
            let said = short(&bad.await.unwrap());
            assert!(!said.starts_with("found"), "{connections} {strangers} {slow}: {said}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a12_who_failed_once_is_a_witness_of_silence_all_the_same() {
    for (failed, hours) in [(false, 3), (true, 0), (true, 3), (true, 20)] {
        let mut wrong = 0;
        for _ in 0..4 {
            let (stand, cache) = after_failures(failed, &["GONE", "SLOW0", "SLOW1", "SLOW2"]).await;
            after(hours * 3600).await;
            wrong += usize::from(with_all_places_held(&stand, &cache).await.starts_with("found"));
        }
        // Two of 33 are slow and free, so chance chooses both once in five hundred times.
        assert!(wrong <= 1, "{failed} {hours}: {wrong} of 4");
    }
}

#[tokio::test(start_paused = true)]
async fn a12_who_failed_once_keeps_nobody_busy_where_the_service_is_silent() {
    let (stand, cache) = after_failures(true, &[]).await;
    after(3 * 3600).await;
    stand.takes(HOUR);
    let mut waits = Vec::new();
    for round in 0..20 {
        waits.extend(good(30).enumerate().filter(|(number, _)| number % 3 == round % 3).map(|(_, name)| webhook(&cache, &name)));
        after(1).await;
    }
    for wait in waits {
        assert_eq!(short(&wait.await.unwrap()), "found Stale");
    }
}

#[tokio::test(start_paused = true)]
async fn a12_where_most_were_slow_one_that_was_not_asked_then_is_no_better_witness() {
    for (slow, hours) in [(false, 3), (true, 0), (true, 3), (true, 20)] {
        let mut wrong = 0;
        for _ in 0..4 {
            let known: Vec<_> = all(&["GONE", "SLOW0", "SLOW1", "SLOW2"]).into_iter().chain(good(30)).collect();
            let (stand, cache) = world(5, 20, &known).await;
            stand.takes(Duration::from_millis(1700));
            stand.keeps(known.iter().cloned());
            for name in good(30).chain(["GONE".to_owned()]).filter(|_| slow) {
                webhook(&cache, &name).await.unwrap();
                after(1).await;
            }
            after(301).await;
            stand.script.records.lock().unwrap().remove("GONE");
            stand.takes(Duration::from_millis(50));
            webhook(&cache, "PLAIN").await.unwrap();
            after(hours * 3600).await;
            wrong += usize::from(with_all_places_held(&stand, &cache).await.starts_with("found"));
        }
        assert!(wrong <= 1, "{slow} {hours}: {wrong} of 4");
    }
}

#[tokio::test(start_paused = true)]
async fn b5_one_device_for_which_the_service_refuses_its_caller_opens_no_circuit() {
    let known: Vec<_> = all(&["GONE", "BAD"]).into_iter().chain(good(30)).collect();
    let (stand, cache) = world(5, 20, &known).await;
    stand.odd("BAD", Some(Answer::Unavailable(Unavailable::AuthRejected)));
    for _ in 0..6 {
        webhook(&cache, "BAD").await.unwrap();
        assert_eq!(cache.circuit(), Circuit::Closed);
    }
    assert_eq!(short(&webhook(&cache, "GONE").await.unwrap()), "not_found Live");
}

#[tokio::test(start_paused = true)]
async fn a12_three_that_fail_and_one_that_is_slow_open_no_circuit_where_all_others_failed_once() {
    let mut wrong = 0;
    for _ in 0..10 {
        let (stand, cache) = after_failures(true, &["GONE", "SLOW0", "BAD0", "BAD1", "BAD2"]).await;
        after(3600).await;
        stand.odd("BAD", Some(BROKEN));
        stand.script.slow.lock().unwrap().push(("SLOW", HOUR));
        ["BAD0", "BAD1", "BAD2"].iter().for_each(|name| drop(webhook(&cache, name)));
        millis_later(60).await;
        let _slow = webhook(&cache, "SLOW0");
        millis_later(4000).await;
        wrong += usize::from(short(&webhook(&cache, "GONE").await.unwrap()).starts_with("found"));
    }
    // The slow one is the witness by chance, once in thirty times.
    assert!(wrong <= 4, "{wrong} of 10");
}

/// Slow devices are asked for without end, by one identifier or by two, and others meanwhile: the seconds in which one of these was
/// refused twice.
async fn refused(connections: usize, slow: usize, two: bool) -> Vec<u64> {
    let known: Vec<_> = (0..slow).map(|number| format!("SLOW{number}")).chain(good(300)).collect();
    let stand = Stand::new();
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    stand.keeps(known.iter().cloned());
    for name in &known {
        assert_eq!(stand.says(name).await, "found live");
        if name.starts_with("SLOW") {
            assert!(matches!(by_udid(&stand.cache, name).await.unwrap().answer, Answer::Found(_)));
        }
    }
    after(301).await;
    let limits = Limits { per_second: 20, unknown_per_minute: 120 };
    let settings = Settings { cache: Lifetimes::default(), limits, connections, sync: Some(Schedule::default()) };
    let cache = Arc::new(stand.cache.with_settings(settings, stand.cache.inventory()));
    *stand.script.slow.lock().unwrap() = ["SLOW", "udid-SLOW", "UDID-SLOW", "UDIDSLOW", "STRANGER"].map(|name| (name, HOUR)).to_vec();
    let attack: Vec<_> = (0..slow)
        .flat_map(|number| [false, true].map(|udid| (number, udid)))
        .filter(|(_, udid)| two || !udid)
        .map(|(number, udid)| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move {
                loop {
                    let name = format!("SLOW{number}");
                    let asked = if udid { by_udid(&cache, &name) } else { webhook(&cache, &name) };
                    millis_later(100).await;
                    asked.abort();
                }
            })
        })
        .collect();
    after(1).await;
    // One good device each 400 ms, which step-ca asks for twice.
    let began = Instant::now();
    let mut waits = Vec::new();
    for number in 0..300 {
        let (cache, name, came) = (Arc::clone(&cache), format!("GOOD{number}"), began.elapsed().as_secs());
        waits.push(tokio::spawn(async move {
            for _ in 0..2 {
                if short(&webhook(&cache, &name).await.unwrap()).starts_with("found") {
                    return None;
                }
                millis_later(100).await;
            }
            Some(came)
        }));
        millis_later(400).await;
    }
    let refused = futures::future::join_all(waits).await.into_iter().filter_map(Result::unwrap).collect();
    attack.iter().for_each(tokio::task::JoinHandle::abort);
    refused
}

#[tokio::test(start_paused = true)]
async fn b5_slow_devices_by_two_identifiers_keep_others_out_for_some_seconds_alone() {
    for (connections, slow, two, most) in
        [(5, 0, false, 0), (5, 5, false, 4), (5, 5, true, 40), (3, 3, false, 4), (3, 3, true, 40), (1, 1, false, 4), (1, 1, true, 40)]
    {
        let refused = refused(connections, slow, two).await;
        let last = refused.last().copied().unwrap_or_default();
        assert!(refused.len() <= most && last <= 20, "{connections} {slow} {two}: {} of 300, the last after {last} s", refused.len());
    }
}

#[tokio::test(start_paused = true)]
async fn b5_in_a_lasting_outage_no_device_of_a_small_fleet_is_refused_twice() {
    let kinds = [
        (Unavailable::ServerError(None), 2500),
        (Unavailable::Network, 1400),
        (Unavailable::ServerError(None), 20),
        (Unavailable::Protocol, 1200),
        (Unavailable::Timeout, 3_600_000),
    ];
    for ((why, takes), fleet) in kinds.into_iter().flat_map(|kind| [1, 2, 4, 8].map(|fleet| (kind, fleet))) {
        let mut rolls = Rolls::new(fleet);
        let known: Vec<_> = (0..fleet).map(|number| format!("D{number}X")).collect();
        let (stand, cache) = world(5, 20, &known).await;
        stand.fails(Some(why));
        stand.takes(Duration::from_millis(takes));
        let began = Instant::now();
        let mut waits = Vec::new();
        while began.elapsed() < Duration::from_secs(600) {
            let (cache, name) = (Arc::clone(&cache), format!("D{}X", rolls.below(fleet)));
            let counts = began.elapsed() > Duration::from_secs(20);
            waits.push(tokio::spawn(async move {
                let first = short(&webhook(&cache, &name).await.unwrap()).starts_with("found");
                millis_later(100).await;
                counts && !first && !short(&webhook(&cache, &name).await.unwrap()).starts_with("found")
            }));
            millis_later(rolls.below(4000) + 1).await;
        }
        let (mut twice, all) = (0, waits.len());
        for wait in waits {
            twice += usize::from(wait.await.unwrap());
        }
        assert_eq!(twice, 0, "{why:?} after {takes} ms, {fleet} devices, of {all}");
    }
}

#[tokio::test(start_paused = true)]
async fn b5_who_could_not_be_read_before_an_outage_has_an_old_record_in_it() {
    for then in [Unavailable::Network, Unavailable::Protocol] {
        let known: Vec<_> = (0..40).map(|number| format!("D{number}X")).collect();
        let (stand, cache) = world(5, 20, &known).await;
        for (number, name) in known.iter().enumerate() {
            *stand.script.odd.lock().unwrap() = if number % 2 == 0 { vec![("D", Some(GARBLED))] } else { Vec::new() };
            webhook(&cache, name).await.unwrap();
            millis_later(200).await;
        }
        stand.script.odd.lock().unwrap().clear();
        stand.fails(Some(then));
        after(301).await;
        let mut refused = 0;
        for name in known.iter().cycle().take(4000) {
            refused += usize::from(!short(&webhook(&cache, name).await.unwrap()).starts_with("found"));
            millis_later(100).await;
        }
        assert_eq!(refused, 0, "{then:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a12_a_witness_is_slow_only_where_most_are() {
    let (_stand, cache) = world(5, 20, &all(&["ONE", "TWO", "SLOW0", "SLOW1", "SLOW2"])).await;
    let chosen = |slow: &[&str], but: &[&str]| {
        let marks = |names: &[&str]| names.iter().map(|name| cache.who(&Key::of(&question(name, Fields::NONE).device)).device).collect();
        let (slow, but): (Vec<_>, Vec<_>) = (marks(slow), marks(but));
        let worth = |who: Who| Some(if slow.contains(&who.device) { Witness::Slow } else { Witness::Clean });
        let asked = HashSet::new();
        (0..64).filter(|_| slow.contains(&cache.witness(&asked, &but, worth).unwrap().who.device)).count()
    };
    assert_eq!(chosen(&["SLOW0", "SLOW1"], &["SLOW2"]), 0, "two of four");
    assert!((16..64).contains(&chosen(&["SLOW0", "SLOW1", "SLOW2"], &[])), "three of five");
}

#[tokio::test(start_paused = true)]
async fn a12_a_witness_is_nobody_who_is_asked_for_already_or_cannot_be_asked_for() {
    let (stand, cache) = world(5, 20, &all(&["ONE"])).await;
    let one = Key::of(&question("ONE", Fields::NONE).device);
    *stand.script.by_serial_alone.lock().unwrap() = true;
    let witness = |asked: &[&Key]| cache.witness(&asked.iter().copied().collect(), &[], |_| Some(Witness::Clean)).map(|chosen| chosen.key);
    assert_eq!((witness(&[]), witness(&[&one])), (Some(one.clone()), None));
}

#[tokio::test(start_paused = true)]
async fn a12_a_witness_waits_for_its_turn_in_the_second() {
    let (stand, cache) = world(5, 1, &all(&["ONE", "TWO"])).await;
    let first = webhook(&cache, "ONE").await.unwrap();
    assert!(matches!(first.answer, Answer::Found(_)));
    let one = cache.who(&Key::of(&question("ONE", Fields::NONE).device)).device;
    let chosen = cache.witness(&HashSet::new(), &[one], |_| Some(Witness::Clean)).unwrap();
    cache.ask_witness(&cache.flights(), chosen, Role::Probe);
    millis_later(500).await;
    assert_eq!(stand.script.asked.lock().unwrap().len(), 1);
    millis_later(1000).await;
    assert_eq!(*stand.script.asked.lock().unwrap(), ["ONE", "TWO"]);
}

#[tokio::test(start_paused = true)]
async fn b5_in_the_place_of_a_witness_nobody_is_waited_for_who_is_new_or_answered() {
    let (stand, cache) = world(5, 20, &all(&["ONE", "TWO"])).await;
    webhook(&cache, "TWO").await.unwrap();
    stand.takes(HOUR);
    let _new = webhook(&cache, "NEW");
    millis_later(10).await;
    assert!(cache.flown(&[]).is_none());
    let _known = webhook(&cache, "ONE");
    millis_later(10).await;
    let (device, _) = cache.flown(&[]).unwrap();
    assert_eq!(device, cache.who(&Key::of(&question("ONE", Fields::NONE).device)).device);
    assert!(cache.flown(&[device]).is_none());
}

#[tokio::test(start_paused = true)]
async fn a12_who_is_with_the_service_is_no_witness_and_who_waits_in_line_can_be_one() {
    let (stand, cache) = world(1, 20, &all(&["WITH", "IN_LINE"])).await;
    stand.takes(HOUR);
    let _asked = [webhook(&cache, "WITH"), webhook(&cache, "IN_LINE")];
    millis_later(10).await;
    let flights = cache.flights();
    let [with, in_line] = ["WITH", "IN_LINE"].map(|name| Key::of(&question(name, Fields::NONE).device));
    assert_eq!(flights.len(), 2);
    assert_eq!(with_the_service(&flights), HashSet::from([&with]));
    assert!(!with_the_service(&flights).contains(&in_line));
}

/// Whoever is removed and failed once by itself is asked for, as long as one device is known that did not fail; so is whoever did not.
#[tokio::test(start_paused = true)]
async fn a12_who_failed_once_and_was_removed_is_asked_for_where_all_but_one_fail() {
    for (failed, clean) in [(true, 1), (false, 0), (false, 1)] {
        for _ in 0..20 {
            let known: Vec<_> = all(&["GONE", "BAD0", "BAD1", "BAD2"]).into_iter().chain(good(clean)).collect();
            let (stand, cache) = world(5, 20, &known).await;
            if failed {
                stand.odd("GONE", Some(BROKEN));
                webhook(&cache, "GONE").await.unwrap();
                stand.script.odd.lock().unwrap().clear();
                webhook(&cache, "PLAIN").await.unwrap();
                after(5).await;
            }
            stand.odd("BAD", Some(BROKEN));
            let _bad = ["BAD0", "BAD1", "BAD2"].map(|name| webhook(&cache, name));
            millis_later(60).await;
            let said = short(&webhook(&cache, "GONE").await.unwrap());
            assert!(!said.starts_with("found"), "{failed} {clean}: {said}");
        }
    }
}
