//! The blame for failures, and the place of a call in the line.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

const OWN: [Unavailable; 7] = [
    Unavailable::Protocol,
    Unavailable::Rejected,
    Unavailable::Forbidden,
    Unavailable::FilterIgnored,
    Unavailable::TooLarge,
    Unavailable::ServerError(None),
    Unavailable::Network,
];

fn names(name: &str, many: usize) -> impl Iterator<Item = String> {
    (0..many).map(move |number| format!("{name}{number}"))
}

/// A stand that knows the devices of `known`; the service has `others` as well.
async fn stand_with(known: &[String], others: impl Iterator<Item = String>) -> Stand {
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 100, unknown_per_minute: 600 });
    stand.keeps(known.iter().cloned().chain(others));
    for name in known {
        assert_eq!(stand.says(name).await, "found live", "{name}");
    }
    after(301).await;
    stand.script.asked.lock().unwrap().clear();
    stand
}

impl Stand {
    async fn asks_by(&self, way: Way, name: &str) -> Looked {
        self.cache.lookup(&Question { way, ..question(name, Fields::NONE) }, Terms::default()).await
    }

    /// Number of calls about devices whose names begin so.
    fn asked(&self, name: &str) -> usize {
        self.script.asked.lock().unwrap().iter().filter(|asked| asked.starts_with(name)).count()
    }

    /// Asks for all of these devices every second by queries, as a watch does.
    fn watch(&self, names: Vec<String>) -> tokio::task::JoinHandle<()> {
        let cache = Arc::clone(&self.cache);
        tokio::spawn(async move {
            loop {
                let asks = names.iter().map(|name| {
                    let question = Question { way: Way::Query, ..question(name, Fields::NONE) };
                    let cache = &cache;
                    async move { cache.lookup(&question, Terms::default()).await }
                });
                futures::future::join_all(asks).await;
                after(1).await;
            }
        })
    }
}

/// Checks a service that cannot say about some known devices, while new devices come and known ones were removed.
async fn some_fail(answer: Option<Answer>, bad: usize, good: usize, most_calls: usize) {
    let known: Vec<_> = names("BAD", bad).chain(names("GOOD", good)).chain(names("GONE", 30)).collect();
    let stand = stand_with(&known, names("NEW", 30)).await;
    stand.odd("BAD", answer.clone());
    let watch = stand.watch(names("BAD", bad).collect());
    after(20).await;
    stand.script.records.lock().unwrap().retain(|name, _| !name.starts_with("GONE"));
    for number in 0..30 {
        assert_eq!(stand.says(&format!("NEW{number}")).await, "found live", "{answer:?} {number}");
        let gone = stand.says(&format!("GONE{number}")).await;
        assert!(gone.starts_with("missing") || gone == "found cached", "{answer:?} {number}: {gone}");
        assert_ne!(gone, "found stale");
        assert_eq!(stand.cache.circuit(), Circuit::Closed, "{answer:?} {number}");
        after(1).await;
    }
    watch.abort();
    let calls = stand.asked("BAD");
    assert!(calls <= most_calls * bad, "{answer:?}: {calls} calls about {bad} devices");
}

#[tokio::test(start_paused = true)]
async fn b5_known_devices_whose_records_cannot_be_had_stop_nobody_else_and_cost_few_calls() {
    for why in OWN {
        // Each identifier is left alone from its second failure on, for longer and longer.
        let most = if matches!(why, Unavailable::ServerError(_) | Unavailable::Network) { 16 } else { 9 };
        for (bad, good) in [(3, 1), (12, 12)] {
            some_fail(Some(Answer::Unavailable(why)), bad, good, most).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn b5_silence_about_some_known_devices_stops_nobody_else() {
    some_fail(None, 3, 3, 10).await;
}

#[tokio::test(start_paused = true)]
async fn b5_failures_of_one_identifier_at_a_time_let_no_old_record_of_another_answer() {
    // Nobody else is asked for, so that nothing says whether the devices fail or the service does.
    let known: Vec<_> = names("BAD", 3).chain(names("GONE", 5)).collect();
    for why in OWN {
        let stand = stand_with(&known, names("NEW", 5)).await;
        stand.odd("BAD", Some(Answer::Unavailable(why)));
        stand.script.records.lock().unwrap().retain(|name, _| !name.starts_with("GONE"));
        for name in names("BAD", 3) {
            assert_eq!(stand.says(&name).await, "found stale", "its own record");
        }
        for name in names("GONE", 5) {
            let said = stand.says(&name).await;
            assert!(said.starts_with("missing"), "{why:?} {name}: {said}");
        }
        // Of the devices that are still known, all fail, and a new one tries the service soon.
        for name in names("NEW", 5) {
            let mut said = stand.says(&name).await;
            for _ in 0..10 {
                if said == "paused" {
                    after(1).await;
                    said = stand.says(&name).await;
                }
            }
            assert_eq!(said, "found live", "{why:?} {name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn b5_new_devices_get_in_where_every_known_one_fails_by_itself() {
    let known: Vec<_> = names("BAD", 4).collect();
    for why in OWN {
        let stand = stand_with(&known, names("NEW", 100)).await;
        stand.odd("BAD", Some(Answer::Unavailable(why)));
        let watch = stand.watch(known.clone());
        for number in 0..60 {
            let said = stand.says(&format!("NEW{number}")).await;
            assert!(said == "found live" || (number < 30 && said == "paused"), "{why:?} {number}: {said}");
            after(1).await;
        }
        watch.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn b5_after_a_long_outage_no_invented_identifier_keeps_the_service_from_being_found_back() {
    let known: Vec<_> = names("GOOD", 3).collect();
    let stand = stand_with(&known, names("NEW", 1)).await;
    stand.fails(Some(Unavailable::ServerError(None)));
    stand.odd("ODD", Some(Answer::Unavailable(Unavailable::Rejected)));
    for number in 0..3000 {
        if number == 2000 {
            stand.fails(None);
        }
        let (cache, name) = (Arc::clone(&stand.cache), format!("ODD{number}"));
        tokio::spawn(async move { cache.lookup(&question(&name, Fields::NONE), Terms::default()).await });
        assert!(stand.says(&known[number % 3]).await.starts_with("found"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        if number == 2200 {
            assert_eq!(stand.says("NEW0").await, "found live");
        }
    }
    assert_eq!(stand.cache.circuit(), Circuit::Closed);
}

#[tokio::test(start_paused = true)]
async fn b5_invented_identifiers_that_fail_keep_no_new_device_out() {
    let known: Vec<_> = names("GOOD", 3).collect();
    for why in OWN {
        let stand = stand_with(&known, names("NEW", 30)).await;
        stand.odd("ODD", Some(Answer::Unavailable(why)));
        let cache = Arc::clone(&stand.cache);
        let flood = tokio::spawn(async move {
            for number in 0_u32.. {
                let (cache, name) = (Arc::clone(&cache), format!("ODD{number}"));
                tokio::spawn(async move { cache.lookup(&question(&name, Fields::NONE), Terms::default()).await });
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        for name in names("NEW", 30) {
            assert_eq!(stand.says(&name).await, "found live", "{why:?} {name}");
            assert_eq!(stand.cache.circuit(), Circuit::Closed);
            after(1).await;
        }
        flood.abort();
    }
}

/// The failures with which a service may answer about an invented identifier.
fn said_of_strangers() -> impl Iterator<Item = Option<Unavailable>> {
    let of_the_caller = [
        Unavailable::AuthRejected,
        Unavailable::RateLimited(None),
        Unavailable::RateLimited(Some(Duration::from_secs(300))),
        Unavailable::ServerError(Some(Duration::from_secs(300))),
    ];
    OWN.into_iter().chain(of_the_caller).map(Some).chain(std::iter::once(None))
}

#[tokio::test(start_paused = true)]
async fn b5_invented_identifiers_keep_no_new_device_out_where_no_other_is_known() {
    // Three cases: no device is known, as after a start; the one that is known is known to fail by itself; nobody was answered
    // since it failed. New devices are each asked for once, and nothing is known of them.
    for (case, why) in [0, 1, 2].into_iter().flat_map(|case| said_of_strangers().map(move |why| (case, why))) {
        let known: Vec<_> = names("BAD", case.min(1)).collect();
        let stand = stand_with(&known, names("NEW", 40)).await;
        stand.odd("BAD", Some(Answer::Unavailable(Unavailable::Protocol)));
        stand.odd("ODD", why.map(Answer::Unavailable));
        // The known device fails by itself: the service answered others since.
        for name in known.iter().chain(&known).filter(|_| case == 1) {
            stand.says(name).await;
            assert_eq!(stand.says("NOBODY").await.split(' ').next(), Some("missing"));
        }
        let cache = Arc::clone(&stand.cache);
        let flood = tokio::spawn(async move {
            for number in 0_u32.. {
                let name = if case == 2 && number % 5 == 0 { "BAD0".to_owned() } else { format!("ODD{number}") };
                let cache = Arc::clone(&cache);
                tokio::spawn(async move { cache.lookup(&question(&name, Fields::NONE), Terms::default()).await });
                tokio::time::sleep(if why.is_none() { Duration::from_secs(4) } else { Duration::from_millis(200) }).await;
            }
        });
        // The record of each device that was let in is forgotten at once, so that the next one is the first again.
        let mut out = 0;
        for name in names("NEW", 40) {
            let said = stand.says(&name).await;
            stand.cache.purge(Some(&question(&name, Fields::NONE).device));
            assert!(said == "found live" || said == "paused", "{why:?} {name}: {said}");
            out += usize::from(said == "paused");
            after(3).await;
        }
        flood.abort();
        // A request to be left alone counts for 5 s once a minute: 40 devices come in two minutes.
        let most = if matches!(why, Some(Unavailable::RateLimited(_))) { 4 } else { 0 };
        assert!(out <= most, "{why:?}, case {case}: {out} of 40 were kept out");
    }
}

#[tokio::test(start_paused = true)]
async fn b5_two_devices_that_fail_keep_no_new_device_out_where_no_other_is_known() {
    for why in OWN {
        let known: Vec<_> = names("BAD", 2).collect();
        let stand = stand_with(&known, names("NEW", 40)).await;
        stand.odd("BAD", Some(Answer::Unavailable(why)));
        let flood = |name: String| {
            let cache = Arc::clone(&stand.cache);
            tokio::spawn(async move {
                loop {
                    let cache = Arc::clone(&cache);
                    let name = name.clone();
                    tokio::spawn(async move { cache.lookup(&question(&name, Fields::NONE), Terms::default()).await });
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
        };
        let floods: Vec<_> = known.iter().cloned().map(flood).collect();
        after(30).await;
        // The record of each device that was let in is forgotten at once, so that no other is ever known.
        let mut out = 0;
        for name in names("NEW", 40) {
            let said = stand.says(&name).await;
            stand.cache.purge(Some(&question(&name, Fields::NONE).device));
            assert!(said == "found live" || said == "paused", "{why:?} {name}: {said}");
            out += usize::from(said == "paused");
            after(3).await;
        }
        floods.iter().for_each(tokio::task::JoinHandle::abort);
        assert!(out <= 4, "{why:?}: {out} of 40 were kept out");
    }
}

#[tokio::test(start_paused = true)]
async fn b5_a_service_that_answers_for_nobody_is_spared_whatever_the_failure_looks_like() {
    let known: Vec<_> = names("KNOWN", 15).collect();
    let silence = std::iter::once((None, Duration::from_secs(3600)));
    for (why, takes) in OWN.iter().flat_map(|why| [1, 60, 400].map(|takes| (Some(*why), Duration::from_millis(takes)))).chain(silence) {
        let stand = stand_with(&known, ["NEW".to_owned()].into_iter()).await;
        stand.fails(why);
        stand.takes(takes);
        let (began, mut asks) = (Instant::now(), Vec::new());
        for number in 0..2000_usize {
            let name = match number % 4 {
                0 | 2 => format!("KNOWN{}", number / 2 % 15),
                1 => "NEW".to_owned(),
                _ => format!("STRANGER{number}"),
            };
            let cache = Arc::clone(&stand.cache);
            asks.push(tokio::spawn(async move {
                let began = Instant::now();
                let looked = cache.lookup(&question(&name, Fields::NONE), Terms::default()).await;
                assert!(began.elapsed() <= Duration::from_millis(3400), "{name} {why:?}: {:?}", began.elapsed());
                let (found, known) = (matches!(looked.answer, Answer::Found(_)), name.starts_with("KNOWN"));
                assert_eq!(found, known, "{name} {why:?} {takes:?}: {:?}", looked.answer);
            }));
            tokio::time::sleep_until(began + Duration::from_millis(10) * u32::try_from(number + 1).unwrap()).await;
        }
        for ask in asks {
            ask.await.unwrap();
        }
        let calls = stand.asked("");
        assert!(calls <= 12, "{why:?} {takes:?}: {calls} calls");
        stand.fails(None);
        stand.takes(Duration::from_millis(50));
        let back = Instant::now();
        while stand.says("NEW").await != "found live" {
            assert!(back.elapsed() <= Duration::from_secs(9), "{why:?} {takes:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for name in &known {
            assert!(stand.says(name).await.starts_with("found"), "{name}");
        }
        assert_eq!(stand.cache.circuit(), Circuit::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn b5_a_service_that_fails_for_all_that_it_has_and_says_whom_it_has_not_is_asked_for_each_rarely() {
    let known: Vec<_> = names("KNOWN", 6).collect();
    let stand = stand_with(&known, std::iter::empty()).await;
    stand.odd("KNOWN", Some(Answer::Unavailable(Unavailable::TooLarge)));
    for round in 0..80 {
        let stranger = format!("STRANGER{round}");
        let all_known = async {
            for name in &known {
                assert_eq!(stand.says(name).await, "found stale");
            }
        };
        let (said, ()) = tokio::join!(stand.says(&stranger), all_known);
        assert!(said == "missing live" || (round < 20 && said == "paused"), "{round}: {said}");
        after(1).await;
    }
    let calls = stand.asked("KNOWN");
    assert!(calls <= 6 * 12, "{calls}");
}

#[tokio::test(start_paused = true)]
async fn b5_what_the_service_was_not_asked_is_no_answer_of_it() {
    let stand = Stand::new();
    stand.keeps((0..3).map(|number| format!("A{number}")));
    for number in 0..3 {
        assert_eq!(stand.says(&format!("A{number}")).await, "found live");
    }
    after(400).await;
    stand.odd("INVALID", Some(Answer::InvalidIdentifier));
    stand.odd("A", Some(Answer::Unavailable(Unavailable::AuthRejected)));
    for number in 0..3 {
        assert_eq!(stand.cache.circuit(), Circuit::Closed);
        assert_eq!(stand.says(&format!("A{number}")).await, "found stale");
        stand.ask("INVALID").await;
    }
    assert_eq!(stand.cache.circuit(), Circuit::Open);
}

#[tokio::test(start_paused = true)]
async fn b5_an_identifier_for_which_other_credentials_are_asked_opens_no_circuit() {
    let limits = Limits { per_second: 10_000, unknown_per_minute: 600_000 };
    let stand = Stand::with(Lifetimes::default(), limits);
    stand.keeps(std::iter::once("KNOWN".to_owned()));
    assert_eq!(stand.says("KNOWN").await, "found live");
    stand.odd("..", Some(Answer::Unavailable(Unavailable::AuthRejected)));
    for number in 0..30 {
        stand.ask(&format!("../{number}")).await;
        after(1).await;
    }
    assert_eq!(stand.cache.circuit(), Circuit::Closed);
    stand.keeps(["KNOWN", "NEW"].map(str::to_owned).into_iter());
    assert_eq!(stand.says("NEW").await, "found live");
}

#[tokio::test(start_paused = true)]
async fn b5_one_device_by_two_identifiers_is_one_witness() {
    let stand = stand_of(&[record("C02A"), record("C02B")]);
    assert_eq!(stand.says("C02A").await, "found live");
    assert!(matches!(stand.cache.lookup(&udid("udid-C02A"), Terms::default()).await.answer, Answer::Found(_)));
    after(301).await;
    stand.odd("C02A", Some(Answer::Unavailable(Unavailable::Protocol)));
    stand.odd("UDID-C02A", Some(Answer::Unavailable(Unavailable::Protocol)));
    stand.script.asked.lock().unwrap().clear();
    assert_eq!(stand.says("C02A").await, "found stale");
    assert_eq!(stand.cache.lookup(&udid("udid-C02A"), Terms::default()).await.source, Source::Stale);
    after(1).await;
    assert_eq!((stand.asked(""), stand.cache.circuit()), (2, Circuit::Closed), "nobody else has to be asked for");
}

#[tokio::test(start_paused = true)]
async fn g7_who_joins_the_call_of_a_query_has_the_place_of_a_webhook() {
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 8, unknown_per_minute: 120 });
    stand.keeps(names("NEW", 8));
    stand.takes(Duration::from_millis(1));
    let invented: Vec<_> = names("INVENTED", 30).chain(names("NEW", 8)).collect();
    let batch = futures::future::join_all(invented.iter().map(|name| stand.asks_by(Way::Query, name)));
    let webhooks = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let began = Instant::now();
        let names: Vec<_> = names("NEW", 8).collect();
        let said = futures::future::join_all(names.iter().map(|name| stand.says(name))).await;
        assert!(said.iter().all(|said| *said == "found live"), "{said:?}");
        began.elapsed()
    };
    let (_, took) = tokio::join!(batch, webhooks);
    assert!(took <= Duration::from_secs(2), "{took:?}");
    assert_eq!(stand.asked("NEW"), 8);
}

#[tokio::test(start_paused = true)]
async fn g7_who_joins_a_call_gets_every_field_that_its_own_question_needs() {
    let need = Fields::of(&[Field::Groups]);
    for later in [0, 10] {
        let stand = Stand::new();
        let plain = question("C02A", Fields::NONE);
        let first = stand.cache.lookup(&plain, Terms::default());
        let second = async {
            tokio::time::sleep(Duration::from_millis(later)).await;
            stand.cache.lookup(&question("C02A", need), Terms::default()).await
        };
        let (first, second) = tokio::join!(first, second);
        assert!(matches!(first.answer, Answer::Found(_)));
        assert!(matches!(second.answer, Answer::Found(record) if record.knows(Field::Groups)), "after {later} ms");
        assert_eq!(stand.calls(), if later == 0 { 1 } else { 2 }, "what was sent cannot ask for more");
    }
}

#[tokio::test(start_paused = true)]
async fn g7_a_refresh_beside_the_answer_leaves_the_last_place_to_whoever_waits_for_one() {
    let stand = Stand::new();
    stand.keeps(names("GOOD", 2).chain(names("NEW", 4)));
    assert_eq!(stand.says("GOOD0").await, "found live");
    after(250).await;
    stand.takes(Duration::from_secs(2));
    let new: Vec<_> = names("NEW", 4).collect();
    let asks = futures::future::join_all(new.iter().map(|name| stand.says(name)));
    let refreshed = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(stand.says("GOOD0").await, "found cached");
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!((stand.asked("NEW"), stand.asked("GOOD0")), (4, 1), "four of five are under way");
        after(3).await;
        stand.asked("GOOD0")
    };
    let (said, asked) = tokio::join!(asks, refreshed);
    assert_eq!((said, asked), (vec!["found live"; 4], 2));
}

#[tokio::test(start_paused = true)]
async fn b6_who_had_to_wait_long_for_a_turn_has_as_long_for_the_answer_as_others() {
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 1, unknown_per_minute: 600 });
    stand.keeps(names("NEW", 5).chain(names("OLD", 3)));
    let (new, old): (Vec<_>, Vec<_>) = (names("NEW", 5).collect(), names("OLD", 3).collect());
    for name in &old {
        assert_eq!(stand.says(name).await, "found live");
    }
    after(301).await;
    stand.takes(Duration::from_millis(2500));
    let known = async {
        // Known devices go first, so that the last new one has its turn after seven seconds.
        tokio::time::sleep(Duration::from_millis(500)).await;
        futures::future::join_all(old.iter().map(|name| stand.says(name))).await
    };
    tokio::join!(futures::future::join_all(new.iter().map(|name| stand.says(name))), known);
    after(8).await;
    let calls = stand.calls();
    for name in &new {
        assert_eq!(stand.says(name).await, "found cached", "{name}");
    }
    assert_eq!((calls, stand.calls()), (11, 11));
}

#[tokio::test(start_paused = true)]
async fn a_known_device_whose_record_was_revoked_is_no_guess() {
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 10_000, unknown_per_minute: 10 });
    assert_eq!(stand.says("C02A").await, "found live");
    let mut said = Vec::new();
    for number in 0..20 {
        said.push(stand.says(&format!("GUESS{number}")).await);
    }
    assert_eq!(said.last(), Some(&"out_of_budget"), "{said:?}");
    stand.cache.apply(&change(Subject::Identifier("C02A".to_owned()), true));
    assert_eq!(stand.says("C02A").await, "found live");
}

#[tokio::test(start_paused = true)]
async fn who_needs_more_than_a_call_asks_for_waits_for_it_and_asks_again() {
    let stand = Stand::new();
    stand.takes(Duration::from_secs(1));
    let more = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stand.cache.lookup(&question("C02A", Fields::of(&[Field::Groups])), Terms::default()).await
    };
    let looks = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        stand.calls()
    };
    let (said, looked, calls) = tokio::join!(stand.says("C02A"), more, looks);
    assert_eq!((said, calls, stand.calls()), ("found live", 1, 2), "there is one call a device at a time");
    assert!(matches!(looked.answer, Answer::Found(record) if record.knows(Field::Groups)));
}

#[tokio::test(start_paused = true)]
async fn b6_a_guess_that_took_many_requests_counts_as_many() {
    for (requests, most) in [(0, 60), (1, 60), (2, 60), (3, 30), (12, 10)] {
        let stand = Stand::with(Lifetimes::default(), Limits { per_second: 10_000, unknown_per_minute: 60 });
        *stand.script.requests.lock().unwrap() = requests;
        stand.takes(Duration::ZERO);
        assert_eq!(stand.says("C02A").await, "found live");
        let mut asked = 0;
        while stand.says(&format!("GUESS{asked}")).await == "missing live" {
            asked += 1;
        }
        assert_eq!(asked, most, "{requests} requests each");
        after(301).await;
        assert_eq!(stand.says("C02A").await, "found live", "known ones pay for nothing");
        assert_eq!(stand.says("GUESS").await, "missing live");
    }
}

/// Asks by webhooks for invented identifiers, `each` apart, and for new devices meanwhile.
async fn flood(limits: Limits, each: Duration) -> (usize, usize) {
    let stand = Stand::with(Lifetimes::default(), limits);
    stand.keeps(names("NEW", 40));
    let cache = Arc::clone(&stand.cache);
    let guesses = tokio::spawn(async move {
        for number in 0.. {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move { cache.lookup(&question(&format!("GUESS{number}"), Fields::NONE), Terms::default()).await });
            tokio::time::sleep(each).await;
        }
    });
    let (mut found, mut in_vain) = (0, 0);
    for name in names("NEW", 40) {
        tokio::time::sleep(Duration::from_millis(4730)).await;
        let began = Instant::now();
        let mut said = stand.says(&name).await;
        let waited = began.elapsed() > Duration::from_secs(1);
        if said != "found live" {
            said = stand.says(&name).await;
        }
        let is_found = said.starts_with("found");
        found += usize::from(is_found);
        in_vain += usize::from(waited && !is_found);
    }
    guesses.abort();
    (found, in_vain)
}

#[tokio::test(start_paused = true)]
async fn b6_guesses_take_no_more_than_half_of_the_turns_where_nothing_is_said() {
    assert_eq!([1, 2, 3, 4, 20, 10_000].map(Limits::guesses), [30, 60, 90, 120, 120, 120]);
    let kandji = Limits { per_second: 2, unknown_per_minute: Limits::guesses(2) };
    for (each, least) in [(1000, 40), (660, 20), (330, 8)] {
        let (found, in_vain) = flood(kandji, Duration::from_millis(each)).await;
        assert!(found >= least, "{each} ms apart: {found} of 40");
        assert_eq!(in_vain, 0, "{each} ms apart: whoever is let into the line is served by the second attempt");
    }
    // An operator who sets another number has it, and the line is still no longer than somebody can wait.
    let (found, in_vain) = flood(Limits { per_second: 2, unknown_per_minute: 600 }, Duration::from_millis(200)).await;
    assert!(found > 0 && in_vain == 0, "{found} of 40, {in_vain} in vain");
}

/// A hundred webhooks a second while the service is silent, each under way for up to `delay`; one of `each` is for a known
/// device.
async fn webhooks_in_silence(seed: u64, delay: u64, each: usize) {
    let known: Vec<_> = names("KNOWN", 15).collect();
    let stand = stand_with(&known, std::iter::empty()).await;
    stand.takes(Duration::from_secs(3600));
    let mut random = StdRng::seed_from_u64(seed);
    let mut asks = Vec::new();
    for number in 0..1200_usize {
        let device = match number % each {
            0 => known[number / each % known.len()].clone(),
            1 => "NEW".to_owned(),
            _ => format!("STRANGER{number}"),
        };
        let at = Duration::from_millis(10) * u32::try_from(number).unwrap() + Duration::from_millis(random.random_range(0..=delay));
        let (cache, began) = (Arc::clone(&stand.cache), Instant::now());
        asks.push(tokio::spawn(async move {
            tokio::time::sleep_until(began + at).await;
            let looked = cache.lookup(&question(&device, Fields::NONE), Terms::default()).await;
            (device, began.elapsed() - at, looked.answer)
        }));
    }
    for ask in asks {
        let (device, took, answer) = ask.await.unwrap();
        assert!(took <= Duration::from_millis(3400), "{device}: {took:?}");
        let found = matches!(answer, Answer::Found(_));
        assert_eq!(found, device.starts_with("KNOWN"), "{device} after {took:?}: {answer:?}, seed {seed}, delay {delay}, 1 of {each}");
    }
}

#[tokio::test(start_paused = true)]
async fn a12_in_silence_no_number_of_strangers_keeps_a_known_device_from_its_old_record() {
    for each in [2, 4, 8, 16, 50] {
        for (seed, delay) in (0..2).flat_map(|seed| [0, 30, 300, 2000].map(|delay| (seed, delay))) {
            webhooks_in_silence(seed, delay, each).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a12_in_silence_no_line_is_too_long_for_an_old_record() {
    let known: Vec<_> = names("KNOWN", 600).collect();
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 20, unknown_per_minute: 6000 });
    stand.keeps(known.iter().cloned());
    for name in &known {
        let mut tries = 0;
        while stand.says(name).await != "found live" {
            tries += 1;
            assert!(tries < 100, "{name} has no turn");
        }
    }
    after(301).await;
    let says = || futures::future::join_all(known.iter().map(|name| stand.says(name)));
    let said = says().await;
    assert!(said.contains(&"busy") && !said.contains(&"found stale"), "more than can have a turn, of a service that answers");
    after(301).await;
    stand.takes(Duration::from_secs(3600));
    let said = says().await;
    assert!(said.iter().all(|said| *said == "found stale"), "{said:?}");
}

/// A stand that knows these devices, of which GONE was removed since, before a service that takes so many calls at once and in
/// a second.
async fn with_one_gone(connections: usize, per_second: u32, known: &[&str]) -> (Stand, Arc<Cache>) {
    let stand = Stand::new();
    stand.keeps(known.iter().map(|name| (*name).to_owned()));
    for name in known {
        assert_eq!(stand.says(name).await, "found live", "{name}");
    }
    after(301).await;
    stand.script.records.lock().unwrap().remove("GONE");
    let limits = Limits { per_second, unknown_per_minute: 120 };
    let settings = Settings { cache: Lifetimes::default(), limits, connections, sync: Some(Schedule::default()) };
    let cache = Arc::new(stand.cache.with_settings(settings, stand.cache.inventory()));
    (stand, cache)
}

fn asks(cache: &Arc<Cache>, name: &str, way: Way) -> tokio::task::JoinHandle<Answer> {
    let (cache, question) = (Arc::clone(cache), Question { way, ..question(name, Fields::NONE) });
    tokio::spawn(async move { cache.lookup(&question, Terms::default()).await.answer })
}

#[tokio::test(start_paused = true)]
async fn a12_slow_identifiers_in_every_place_let_no_device_in_that_was_removed() {
    let slow = |takes| vec![("SLOW", Duration::from_millis(takes)), ("STRANGER", Duration::from_millis(takes))];
    for takes in [2500, 3_600_000] {
        // A query may have no more places than strangers, though one is free.
        for (connections, strangers, known, way) in
            [(1, 1, 0, Way::Webhook), (3, 2, 1, Way::Webhook), (5, 4, 1, Way::Webhook), (5, 4, 0, Way::Query), (20, 15, 5, Way::Webhook)]
        {
            let (stand, cache) = with_one_gone(
                connections,
                20,
                &[&["GONE", "GOOD0", "GOOD1"], &["SLOW0", "SLOW1", "SLOW2", "SLOW3", "SLOW4"][..known]].concat(),
            )
            .await;
            *stand.script.slow.lock().unwrap() = slow(takes);
            let _strangers: Vec<_> = (0..strangers).map(|number| asks(&cache, &format!("STRANGER{number}"), Way::Webhook)).collect();
            let _known: Vec<_> = (0..known).map(|number| asks(&cache, &format!("SLOW{number}"), Way::Webhook)).collect();
            tokio::time::sleep(Duration::from_millis(10)).await;
            let said = asks(&cache, "GONE", way).await.unwrap();
            assert!(!matches!(said, Answer::Found(_)), "{takes} ms, {strangers} strangers, {known} known, {way:?}: {said:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a12_who_waits_for_what_becomes_of_other_devices_is_asked_for_rather_than_let_in() {
    for takes in [2500, 3_600_000] {
        let (stand, cache) = with_one_gone(20, 20, &["BAD", "SLOW0", "SLOW1", "GONE", "GOOD0", "GOOD1"]).await;
        stand.odd("BAD", Some(Answer::Unavailable(Unavailable::ServerError(None))));
        stand.script.slow.lock().unwrap().push(("SLOW", Duration::from_millis(takes)));
        asks(&cache, "BAD", Way::Webhook).await.unwrap();
        let _slow = [asks(&cache, "SLOW0", Way::Webhook), asks(&cache, "SLOW1", Way::Webhook)];
        tokio::time::sleep(Duration::from_millis(100)).await;
        let began = Instant::now();
        assert_eq!(asks(&cache, "GONE", Way::Webhook).await.unwrap(), Answer::NotFound);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a12_known_devices_that_fail_at_once_and_spend_the_second_let_no_device_in_that_was_removed() {
    for (per_second, failing) in [(1, 3), (2, 5)] {
        let known = ["SLOW0", "GONE", "GOOD0", "GOOD1", "BAD0", "BAD1", "BAD2", "BAD3", "BAD4"];
        let (stand, cache) = with_one_gone(10, per_second, &known).await;
        stand.odd("BAD", Some(Answer::Unavailable(Unavailable::ServerError(None))));
        stand.script.slow.lock().unwrap().push(("SLOW", Duration::from_millis(2900)));
        // The devices' failures are their own, since others are answered after them.
        for number in 0..failing {
            for name in ["BAD", "NOBODY"] {
                asks(&cache, &format!("{name}{number}"), Way::Webhook).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1100)).await;
            }
        }
        after(5).await;
        let _slow = asks(&cache, "SLOW0", Way::Webhook);
        let _failing: Vec<_> = (0..failing).map(|number| asks(&cache, &format!("BAD{number}"), Way::Webhook)).collect();
        tokio::time::sleep(Duration::from_millis(10)).await;
        let said = asks(&cache, "GONE", Way::Webhook).await.unwrap();
        assert!(!matches!(said, Answer::Found(_)), "{per_second} in a second: {said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a12_who_finds_the_line_too_long_hears_so_soon() {
    let known: Vec<_> = names("KNOWN", 300).collect();
    let (_stand, cache) = with_one_gone(5, 20, &known.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let asked: Vec<_> = known.iter().map(|name| asks(&cache, name, Way::Webhook)).collect();
    tokio::time::sleep(LONG_LINE + Duration::from_millis(10)).await;
    let told = asked.iter().filter(|ask| ask.is_finished()).count();
    assert!(told > 150, "{told}");
}

#[tokio::test(start_paused = true)]
async fn a12_a_service_that_takes_as_long_as_anybody_waits_for_it_is_not_silent() {
    let (stand, cache) = with_one_gone(5, 20, &["GONE", "SLOW0", "GOOD0", "GOOD1", "GOOD2"]).await;
    *stand.script.slow.lock().unwrap() = vec![("SLOW", Duration::from_secs(3600)), ("STRANGER", Duration::from_secs(3600))];
    stand.takes(Duration::from_millis(1400));
    let _strangers: Vec<_> = (0..4).map(|number| asks(&cache, &format!("STRANGER{number}"), Way::Webhook)).collect();
    let _slow = asks(&cache, "SLOW0", Way::Webhook);
    tokio::time::sleep(Duration::from_millis(10)).await;
    let said = asks(&cache, "GONE", Way::Webhook).await.unwrap();
    assert!(!matches!(said, Answer::Found(_)), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn a12_a_witness_that_was_slow_lets_no_device_in_that_was_removed() {
    for _ in 0..8 {
        let (stand, cache) = with_one_gone(1, 20, &["GONE", "SLOW0", "SLOW1", "SLOW2", "SLOW3", "WAITS"]).await;
        *stand.script.slow.lock().unwrap() = vec![("SLOW", Duration::from_secs(3600)), ("STRANGER", Duration::from_secs(2))];
        let stranger = asks(&cache, "STRANGER", Way::Webhook);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let waits = asks(&cache, "WAITS", Way::Webhook);
        stranger.await.unwrap();
        waits.await.unwrap();
        after(1).await;
        let said = asks(&cache, "GONE", Way::Webhook).await.unwrap();
        assert_eq!(said, Answer::NotFound, "the service would answer at once");
    }
}
