use super::*;

const KNOWN_WEBHOOK: Class = Class { new: false, way: Way::Webhook };
const NEW_WEBHOOK: Class = Class { new: true, way: Way::Webhook };
const NEW_QUERY: Class = Class { new: true, way: Way::Query };

fn turns(connections: usize) -> Arc<Turns> {
    Arc::new(Turns::new(Limits { per_second: 1000, unknown_per_minute: 1000 }, connections))
}

fn who(name: &str) -> Who {
    Who { asked: Mark::identifier(name), device: Mark::identifier(name) }
}

/// The device of this name, by another identifier.
fn by_another(name: &str) -> Who {
    Who { asked: Mark::identifier(&format!("other than {name}")), ..who(name) }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(8)
}

async fn call(turns: &Arc<Turns>, class: Class, name: &str) -> Result<Permit, Unavailable> {
    turns.line_up(class, Some(who(name)), soon()).turn().await
}

async fn fails(turns: &Arc<Turns>, name: &str) {
    call(turns, KNOWN_WEBHOOK, name).await.unwrap().failed(Unavailable::Protocol, Instant::now());
}

#[tokio::test(start_paused = true)]
async fn g7_a_call_has_the_best_place_and_the_last_deadline_of_those_who_wait_for_it() {
    let turns = turns(1);
    let permit = call(&turns, KNOWN_WEBHOOK, "first").await.unwrap();
    let began = Instant::now();
    let query = turns.line_up(NEW_QUERY, Some(who("query")), began + Duration::from_secs(2));
    let webhook = turns.line_up(NEW_WEBHOOK, Some(who("webhook")), began + Duration::from_secs(4));
    turns.joined(query.number(), KNOWN_WEBHOOK, began + Duration::from_secs(6));
    let release = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        drop(permit);
    };
    let (first, second, ()) = tokio::join!(query.turn(), webhook.turn(), release);
    assert_eq!((first.unwrap().class, second.unwrap_err()), (KNOWN_WEBHOOK, Unavailable::Busy));
    assert_eq!(began.elapsed(), Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn b5_who_fails_by_itself_speaks_neither_for_nor_against_the_service() {
    let turns = turns(5);
    fails(&turns, "a").await;
    assert!(turns.can_speak(who("a")) && turns.can_speak(who("b")));
    call(&turns, KNOWN_WEBHOOK, "b").await.unwrap().succeeded(true, false);
    assert!(!turns.can_speak(who("a")) && turns.can_speak(who("b")));
    for (name, own) in [("a", true), ("b", false)] {
        let mut permit = call(&turns, KNOWN_WEBHOOK, name).await.unwrap();
        assert!(!permit.fails_by_itself());
        permit.failed(Unavailable::Protocol, Instant::now());
        assert_eq!(permit.fails_by_itself(), own, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a12_a_known_device_whose_last_answer_was_slow_is_a_worse_witness() {
    let turns = turns(5);
    for (class, name, slow, worth) in
        [(KNOWN_WEBHOOK, "a", true, Witness::Slow), (KNOWN_WEBHOOK, "a", false, Witness::Clean), (NEW_WEBHOOK, "b", true, Witness::Clean)]
    {
        call(&turns, class, name).await.unwrap().succeeded(true, slow);
        assert_eq!(turns.witness(who(name)), Some(worth), "{name} {slow}");
    }
}

#[tokio::test(start_paused = true)]
async fn b5_where_none_is_known_strangers_that_fail_by_themselves_raise_no_doubt() {
    let turns = turns(5);
    for name in ["a", "b", "c", "d"] {
        call(&turns, NEW_WEBHOOK, name).await.unwrap().failed(Unavailable::Protocol, Instant::now());
    }
    assert!(!turns.appoints(Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn b5_without_a_witness_doubts_by_strangers_or_by_too_few_are_dropped() {
    for (class, names, too_few) in [(NEW_WEBHOOK, &["a", "b", "c"][..], false), (KNOWN_WEBHOOK, &["a", "b"], true)] {
        let turns = turns(5);
        for name in names {
            call(&turns, class, name).await.unwrap().failed(Unavailable::Network, Instant::now());
        }
        assert!(turns.appoints(Instant::now()), "{names:?}");
        turns.has_no_witness(too_few);
        let inner = turns.lock();
        assert_eq!((inner.trial, inner.doubt.new.len()), (Trial::None, 0), "{names:?}");
        assert_eq!(inner.doubt.known.len(), if class.new { 0 } else { names.len() }, "who is known and failed speaks still");
    }
}

#[tokio::test(start_paused = true)]
async fn b5_a_service_in_doubt_is_asked_for_a_witness_and_others_wait() {
    let turns = turns(5);
    fails(&turns, "a").await;
    fails(&turns, "a").await;
    assert!(!turns.appoints(Instant::now()), "one device is one witness against the service");
    assert!(!turns.is_in_doubt());
    fails(&turns, "b").await;
    assert!(turns.is_in_doubt());
    assert!(turns.appoints(Instant::now()) && !turns.appoints(Instant::now()), "one is enough");
    assert_eq!((turns.witness(who("a")), turns.witness(who("c"))), (None, Some(Witness::Clean)));
    assert_eq!(turns.witness(by_another("a")), None, "a device is the same by another identifier");
    let waiting = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move { call(&turns, NEW_WEBHOOK, "new").await.map(drop) }
    });
    let mut witness = turns.line_up_for_others(Role::Witness, who("c"), soon()).turn().await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished());
    witness.succeeded(true, false);
    assert_eq!((waiting.await.unwrap(), turns.circuit(Instant::now())), (Ok(()), Circuit::Closed));
    fails(&turns, "a").await;
    fails(&turns, "b").await;
    assert!(!turns.appoints(Instant::now()), "their failures are their own");
}

#[tokio::test(start_paused = true)]
async fn b5_witnesses_that_fail_open_the_circuit_and_the_next_one_closes_it() {
    let turns = turns(5);
    fails(&turns, "a").await;
    fails(&turns, "b").await;
    for name in ["c", "d"] {
        assert_eq!(turns.circuit(Instant::now()), Circuit::Closed);
        assert!(turns.appoints(Instant::now()));
        turns.line_up_for_others(Role::Witness, who(name), soon()).turn().await.unwrap().failed(Unavailable::Protocol, Instant::now());
    }
    assert_eq!(turns.admit(KNOWN_WEBHOOK, Some(who("e")), Instant::now(), Duration::from_secs(8)), Err(Unavailable::Paused));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(turns.appoints(Instant::now()));
    drop(turns.line_up_for_others(Role::Witness, who("e"), soon()));
    assert!(turns.appoints(Instant::now()), "a try that was given up is another's");
    let mut witness = turns.line_up_for_others(Role::Witness, who("e"), soon()).turn().await.unwrap();
    witness.withdrawn();
    assert_eq!(turns.circuit(Instant::now()), Circuit::HalfOpen);
    drop(witness);
    tokio::time::sleep(REST).await;
    assert!(turns.appoints(Instant::now()), "one that says nothing of the service leaves it to the next");
    turns.line_up_for_others(Role::Witness, who("e"), soon()).turn().await.unwrap().succeeded(true, false);
    assert_eq!(turns.circuit(Instant::now()), Circuit::Closed);
    assert_eq!(turns.witness(who("a")), Some(Witness::Clean), "it failed with the service");
}

#[tokio::test(start_paused = true)]
async fn b5_where_no_witness_is_the_first_in_line_tries() {
    let turns = turns(5);
    fails(&turns, "a").await;
    fails(&turns, "b").await;
    assert!(turns.appoints(Instant::now()));
    turns.has_no_witness(false);
    call(&turns, NEW_WEBHOOK, "new").await.unwrap().failed(Unavailable::Protocol, Instant::now());
    assert_eq!(turns.circuit(Instant::now()), Circuit::Open);
}

#[tokio::test(start_paused = true)]
async fn b5_who_asks_for_a_known_device_in_doubt_waits_for_what_becomes_of_a_witness() {
    let turns = turns(5);
    fails(&turns, "a").await;
    fails(&turns, "b").await;
    assert!(turns.appoints(Instant::now()));
    let mut witness = turns.line_up_for_others(Role::Witness, who("c"), soon()).turn().await.unwrap();
    witness.waits_since(Some(Instant::now()));
    let waiting = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move { call(&turns, KNOWN_WEBHOOK, "d").await.map(drop) }
    });
    tokio::time::sleep(STALE_AFTER).await;
    let _second = asked(&turns, "e").await;
    tokio::time::sleep(STALE_AFTER).await;
    assert!(!waiting.is_finished(), "an old record is for its patience to give");
    witness.succeeded(true, false);
    assert_eq!(waiting.await.unwrap(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn b5_a_witness_waits_for_nobody_who_waits_for_it() {
    let turns = turns(5);
    fails(&turns, "a").await;
    fails(&turns, "b").await;
    assert!(turns.appoints(Instant::now()));
    let first = turns.line_up_for_others(Role::Witness, who("c"), soon()).turn().await.unwrap();
    let waits = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move { call(&turns, KNOWN_WEBHOOK, "d").await.map(drop) }
    });
    tokio::task::yield_now().await;
    // The first witness fails, and the second one comes after whoever waits.
    let mut first = first;
    first.failed(Unavailable::Protocol, Instant::now());
    drop(first);
    assert!(turns.appoints(Instant::now()));
    let began = Instant::now();
    let mut second = turns.line_up_for_others(Role::Witness, who("e"), soon()).turn().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    second.succeeded(true, false);
    drop(second);
    assert!(waits.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_could_have_no_turn_in_time_is_told_so_at_once() {
    let turns = Arc::new(Turns::new(Limits { per_second: 1, unknown_per_minute: 1000 }, 1));
    let _held = call(&turns, NEW_WEBHOOK, "first").await.unwrap();
    let _line: Vec<_> = ["second", "third"].map(|name| turns.line_up(NEW_WEBHOOK, Some(who(name)), soon())).into();
    let admits = |class, seconds| turns.admit(class, Some(who("new")), Instant::now(), Duration::from_secs(seconds));
    assert_eq!((admits(NEW_WEBHOOK, 2), admits(NEW_WEBHOOK, 3)), (Err(Unavailable::Busy), Ok(())));
    assert_eq!((admits(NEW_QUERY, 2), admits(KNOWN_WEBHOOK, 2)), (Err(Unavailable::Busy), Ok(())), "those of a better rank go first");
}

#[tokio::test(start_paused = true)]
async fn g7_who_is_joined_by_one_of_the_same_rank_keeps_the_place() {
    let turns = turns(1);
    let permit = call(&turns, KNOWN_WEBHOOK, "held").await.unwrap();
    let [first, second] = ["first", "second"].map(|name| turns.line_up(NEW_WEBHOOK, Some(who(name)), soon()));
    turns.joined(first.number(), NEW_WEBHOOK, soon());
    drop(permit);
    let second = tokio::spawn(second.turn());
    let permit = tokio::time::timeout(Duration::from_secs(1), first.turn()).await.unwrap().unwrap();
    assert!(!second.is_finished());
    drop(permit);
    drop(second.await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn b5_a_stranger_for_whom_the_service_asks_to_be_left_alone_counts_for_a_moment_and_once_a_minute() {
    const LONG: Unavailable = Unavailable::RateLimited(Some(Duration::from_secs(30)));
    let paused = |turns: &Arc<Turns>| turns.admit(KNOWN_WEBHOOK, None, Instant::now(), Duration::from_secs(8)).is_err();
    let known = turns(5);
    call(&known, KNOWN_WEBHOOK, "a").await.unwrap().failed(LONG, Instant::now());
    tokio::time::advance(Duration::from_secs(29)).await;
    assert!(paused(&known));
    for (after, expected) in [(STRANGERS - Duration::from_nanos(1), false), (STRANGERS, true)] {
        let turns = turns(5);
        let began = Instant::now();
        call(&turns, NEW_WEBHOOK, "a").await.unwrap().failed(LONG, began);
        assert!(paused(&turns));
        tokio::time::advance(LONGEST_STRANGER).await;
        assert!(!paused(&turns));
        turns.line_up_for_others(Role::Witness, who("c"), soon()).turn().await.unwrap().succeeded(true, false);
        tokio::time::advance(after - (Instant::now() - began)).await;
        call(&turns, NEW_WEBHOOK, "b").await.unwrap().failed(LONG, Instant::now());
        assert_eq!(paused(&turns), expected, "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn b5_what_a_service_asks_for_about_a_known_device_counts_though_a_stranger_was_told_so_before() {
    let long = Unavailable::RateLimited(Some(Duration::from_secs(30)));
    let turns = turns(5);
    let mut known = call(&turns, KNOWN_WEBHOOK, "known").await.unwrap();
    call(&turns, NEW_WEBHOOK, "stranger").await.unwrap().failed(long, Instant::now());
    known.failed(long, Instant::now());
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(turns.circuit(Instant::now()), Circuit::Open);
}

#[tokio::test(start_paused = true)]
async fn b5_nobody_with_a_known_device_waits_for_a_try_of_a_service_that_was_silent() {
    let turns = turns(5);
    for name in ["a", "b"] {
        fails(&turns, name).await;
    }
    for name in ["c", "d"] {
        assert!(turns.appoints(Instant::now()));
        turns.line_up_for_others(Role::Witness, who(name), soon()).turn().await.unwrap().failed(Unavailable::Timeout, Instant::now());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let admits = |class| turns.admit(class, None, Instant::now(), Duration::from_secs(8));
    assert_eq!(admits(KNOWN_WEBHOOK), Ok(()), "nobody tries");
    let [known, new] = [KNOWN_WEBHOOK, NEW_WEBHOOK].map(|class| turns.line_up(class, Some(who("e")), soon()).turn());
    assert!(turns.appoints(Instant::now()));
    assert_eq!(known.await.unwrap_err(), Unavailable::Paused, "nor who is in line already");
    assert!(tokio::time::timeout(Duration::from_secs(1), new).await.is_err());
    assert_eq!((admits(KNOWN_WEBHOOK), admits(NEW_WEBHOOK)), (Err(Unavailable::Paused), Ok(())));
}

#[tokio::test(start_paused = true)]
async fn b5_what_a_service_asks_a_witness_for_counts_though_a_stranger_was_told_so_before() {
    let long = Unavailable::RateLimited(Some(Duration::from_secs(30)));
    let turns = turns(5);
    call(&turns, NEW_WEBHOOK, "a").await.unwrap().failed(long, Instant::now());
    tokio::time::advance(LONGEST_STRANGER).await;
    assert!(turns.appoints(Instant::now()));
    turns.line_up_for_others(Role::Witness, who("c"), soon()).turn().await.unwrap().failed(long, Instant::now());
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(turns.circuit(Instant::now()), Circuit::Open);
}

#[tokio::test(start_paused = true)]
async fn b5_that_the_service_refuses_its_caller_for_one_device_counts_again_where_that_tries_for_all() {
    let turns = turns(5);
    call(&turns, KNOWN_WEBHOOK, "a").await.unwrap().failed(Unavailable::AuthRejected, Instant::now());
    assert_eq!(turns.circuit(Instant::now()), Circuit::Closed);
    turns.line_up_for_others(Role::Witness, who("a"), soon()).turn().await.unwrap().failed(Unavailable::AuthRejected, Instant::now());
    assert_eq!(turns.circuit(Instant::now()), Circuit::Open);
}

#[tokio::test(start_paused = true)]
async fn b5_who_did_not_fail_tries_before_one_who_did() {
    let turns = turns(5);
    fails(&turns, "a").await;
    fails(&turns, "b").await;
    assert!(turns.appoints(Instant::now()));
    turns.has_no_witness(false);
    let [failed, clean] = ["a", "c"].map(|name| turns.line_up(KNOWN_WEBHOOK, Some(who(name)), soon()));
    let failed = tokio::spawn(failed.turn());
    let began = Instant::now();
    let mut permit = clean.turn().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    permit.succeeded(true, false);
    assert!(failed.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn b5_who_failed_tries_once_others_had_the_time_to_come_and_nobody_who_waits_too_long() {
    const MOMENT: Duration = Duration::from_nanos(1);
    let turns = turns(5);
    fails(&turns, "a").await;
    fails(&turns, "b").await;
    let began = Instant::now();
    assert!(turns.appoints(began));
    turns.has_no_witness(false);
    let tries = |at: Instant| turns.lock().volunteer(at);
    tokio::time::advance(OTHERS_COME - Duration::from_secs(1)).await;
    let failed = turns.line_up(KNOWN_WEBHOOK, Some(by_another("a")), soon());
    let others_came = began + OTHERS_COME;
    assert_eq!([tries(others_came - MOMENT), tries(others_came)], [None, Some(failed.number())]);
    tokio::time::advance(Duration::from_millis(100)).await;
    let (clean, came) = (turns.line_up(KNOWN_WEBHOOK, Some(who("c")), soon()), Instant::now());
    assert_eq!([tries(came), tries(others_came)], [Some(clean.number()); 2], "who did not fail goes first");
    let too_late = came + STALE_AFTER;
    assert_eq!([tries(too_late - MOMENT), tries(too_late)], [Some(clean.number()), None], "nobody would have the answer in time");
    let new = turns.line_up(NEW_WEBHOOK, Some(who("d")), soon());
    assert_eq!(tries(too_late), Some(new.number()), "a new device has no old record");
}

#[tokio::test(start_paused = true)]
async fn b5_who_tries_where_no_witness_is_speaks_for_others_by_a_known_device_alone() {
    for (class, whom, place) in
        [(KNOWN_WEBHOOK, Whom::Witness, "[0, 0, 0, 0, 0, 0] [1, 1] 1 1 1"), (NEW_WEBHOOK, Whom::New, "[0, 0, 1, 0, 0, 0] [1, 0] 0 1 0")]
    {
        let turns = turns(5);
        fails(&turns, "a").await;
        fails(&turns, "b").await;
        assert!(turns.appoints(Instant::now()));
        turns.has_no_witness(false);
        let permit = call(&turns, class, "c").await.unwrap();
        assert_eq!((permit.role, permit.whom(), turns.left().as_str()), (Role::Volunteer, whom, place));
    }
}

#[tokio::test(start_paused = true)]
async fn b5_once_a_device_failed_no_more_are_asked_for_at_once_than_would_make_it_sure() {
    let turns = turns(9);
    fails(&turns, "a").await;
    let held = [call(&turns, KNOWN_WEBHOOK, "b").await, call(&turns, KNOWN_WEBHOOK, "c").await];
    let turn = turns.line_up(KNOWN_WEBHOOK, Some(who("d")), soon()).turn();
    let mut turn = pin!(turn);
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut turn).await.is_err());
    for permit in held {
        permit.unwrap().succeeded(true, false);
    }
    assert!(turn.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a12_where_all_failed_and_none_can_be_asked_an_old_record_answers_after_the_usual_time() {
    let turns = turns(5);
    fails(&turns, "a").await;
    fails(&turns, "b").await;
    assert!(turns.appoints(Instant::now()));
    turns.has_no_witness(false);
    let came = Instant::now();
    let seen = |millis| turns.patience(came, came + Duration::from_millis(millis));
    let until = |millis| Patience::Until(came + Duration::from_millis(millis));
    assert_eq!([0, 1450, 1499, 1500].map(seen), [until(100), until(1500), until(1500), Patience::Over]);
}

#[tokio::test(start_paused = true)]
async fn b5_two_tries_that_fail_are_enough_though_one_device_made_both() {
    let turns = turns(5);
    fails(&turns, "a").await;
    fails(&turns, "b").await;
    for circuit in [Circuit::Closed, Circuit::Open] {
        assert!(turns.appoints(Instant::now()));
        turns.line_up_for_others(Role::Witness, who("c"), soon()).turn().await.unwrap().failed(Unavailable::Protocol, Instant::now());
        assert_eq!(turns.circuit(Instant::now()), circuit);
    }
}

#[tokio::test(start_paused = true)]
async fn b5_what_becomes_of_another_call_leaves_the_try_to_whoever_was_appointed() {
    let turns = turns(5);
    let mut other = call(&turns, KNOWN_WEBHOOK, "x").await.unwrap();
    fails(&turns, "a").await;
    fails(&turns, "b").await;
    assert!(turns.appoints(Instant::now()));
    other.failed(Unavailable::Protocol, Instant::now());
    assert!(!turns.appoints(Instant::now()), "one tries at a time");
}

/// The step at which the patience of somebody who comes now ends, and after how many milliseconds.
async fn patience(turns: &Arc<Turns>) -> (Patience, u128) {
    let came = Instant::now();
    loop {
        let now = Instant::now();
        match turns.patience(came, now) {
            Patience::Until(again) if again < came + Duration::from_secs(3) => {
                assert!(again > now, "nobody looks twice in one moment");
                sleep_until(again).await;
            }
            patience => return (patience, came.elapsed().as_millis()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a12_a_witness_is_asked_where_a_service_that_is_asked_answers_nobody_or_no_known_device() {
    const NEVER: bool = false;
    let turns = turns(5);
    let asks_for_one = async |turns: &Arc<Turns>| patience(turns).await == (Patience::Witness, 500);
    assert!(!asks_for_one(&turns).await, "nobody asks");
    let feed = turns.line_up(KNOWN_WEBHOOK, None, soon()).turn().await.unwrap();
    assert!(!asks_for_one(&turns).await, "a feed takes its time");
    drop(feed);
    for (pending, answered, expected) in [
        (KNOWN_WEBHOOK, None, true),
        (NEW_WEBHOOK, None, true),
        (KNOWN_WEBHOOK, Some((NEW_WEBHOOK, None)), true),
        (KNOWN_WEBHOOK, Some((KNOWN_WEBHOOK, None)), NEVER),
        (NEW_WEBHOOK, Some((NEW_WEBHOOK, None)), NEVER),
        (NEW_WEBHOOK, Some((KNOWN_WEBHOOK, None)), NEVER),
        (NEW_WEBHOOK, Some((NEW_WEBHOOK, Some(Unavailable::Rejected))), NEVER),
        (NEW_WEBHOOK, Some((NEW_WEBHOOK, Some(Unavailable::Network))), true),
    ] {
        let mut pending = call(&turns, pending, "a").await.unwrap();
        let answers = async {
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(400)).await;
                match answered {
                    Some((class, None)) => call(&turns, class, "b").await.unwrap().succeeded(false, false),
                    Some((class, Some(why))) => call(&turns, class, "b").await.unwrap().failed(why, Instant::now()),
                    None => {}
                }
            }
        };
        let (found, ()) = tokio::join!(asks_for_one(&turns), answers);
        assert_eq!(found, expected, "{:?} {answered:?}", pending.class);
        pending.withdrawn();
    }
    assert!(!asks_for_one(&turns).await, "all calls have ended");
}

impl Turns {
    /// What of calls and witnesses is left over.
    pub(in crate::cache) fn left(&self) -> String {
        let inner = self.lock();
        let (silent, pending) = (inner.silence.map(|silence| silence.calls), inner.pending.known + inner.pending.new);
        format!("{:?} {silent:?} {} {pending} {}", inner.under_way, inner.beyond, inner.witnesses.len())
    }
}

/// A witness that is with the service from now on.
async fn asked(turns: &Arc<Turns>, name: &str) -> Permit {
    let witness = turns.line_up_for_others(Role::Probe, who(name), soon()).turn().await.unwrap();
    witness.waits_since(Some(Instant::now()));
    witness
}

#[tokio::test(start_paused = true)]
async fn a12_patience_is_over_where_two_witnesses_have_no_answer_either() {
    let turns = turns(1);
    let _held = call(&turns, NEW_WEBHOOK, "a").await.unwrap();
    assert_eq!(patience(&turns).await, (Patience::Witness, 500));
    let first = asked(&turns, "w1").await;
    assert_eq!(patience(&turns).await, (Patience::Witness, 500), "one may be slow by itself");
    let lined_up = turns.line_up_for_others(Role::Probe, who("w2"), soon());
    assert!(matches!(patience(&turns).await.0, Patience::Until(_)), "it has no turn yet");
    let second = lined_up.turn().await.unwrap();
    assert!(matches!(patience(&turns).await.0, Patience::Until(_)), "it is not with the service yet");
    second.waits_since(Some(Instant::now()));
    assert_eq!(patience(&turns).await, (Patience::Over, 1500));
    assert_eq!(patience(&turns).await, (Patience::Over, 500), "they had none when somebody came");
    second.waits_since(None);
    assert!(matches!(patience(&turns).await.0, Patience::Until(_)), "it waits for a place again");
    second.waits_since(Some(Instant::now()));
    // Others are answered: what these wait for is their own, and others are needed.
    turns.lock().ended_by(false).for_each(|silence| silence.answered(Instant::now()));
    second.waits_since(Some(Instant::now() + Duration::from_millis(1)));
    assert!(matches!(patience(&turns).await.0, Patience::Until(_)), "one of two speaks");
    drop(first);
    assert_eq!(patience(&turns).await, (Patience::Witness, 500));
    let _third = asked(&turns, "w3").await;
    assert_eq!(patience(&turns).await, (Patience::Over, 1500));
}

#[tokio::test(start_paused = true)]
async fn b5_who_waits_for_a_place_while_the_service_is_left_alone_waits_no_longer() {
    let turns = turns(5);
    let mut held = call(&turns, KNOWN_WEBHOOK, "a").await.unwrap();
    assert!(matches!(turns.patience(Instant::now(), Instant::now()), Patience::Until(_)));
    held.failed(Unavailable::RateLimited(None), Instant::now());
    assert_eq!(turns.patience(Instant::now(), Instant::now()), Patience::Over);
}

#[tokio::test(start_paused = true)]
async fn a12_one_witness_speaks_where_no_second_one_is_to_be_had() {
    let turns = turns(1);
    let _held = call(&turns, NEW_WEBHOOK, "a").await.unwrap();
    turns.has_no_more();
    assert_eq!(patience(&turns).await, (Patience::Witness, 500), "none is none");
    let first = asked(&turns, "w1").await;
    assert_eq!(patience(&turns).await, (Patience::Witness, 500), "it is looked for a second one again");
    turns.has_no_more();
    assert!(!turns.lacks_a_witness(Instant::now()), "however many wait, it is looked ten times in a second");
    assert_eq!(patience(&turns).await, (Patience::Over, 1000));
    drop(first);
    assert_eq!(patience(&turns).await, (Patience::Witness, 500));
}

#[tokio::test(start_paused = true)]
async fn a12_a_witness_that_was_asked_before_others_were_answered_does_not_speak_for_one_that_has_ended() {
    let turns = turns(2);
    let mut first = asked(&turns, "w1").await;
    let _held = call(&turns, NEW_WEBHOOK, "a").await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    first.failed(Unavailable::Timeout, Instant::now());
    call(&turns, KNOWN_WEBHOOK, "b").await.unwrap().succeeded(true, false);
    assert_eq!(patience(&turns).await, (Patience::Witness, 500));
    turns.has_no_more();
    for ends in
        [Permit::withdrawn as fn(&mut Permit), Permit::cannot_be_asked, |permit| permit.failed(Unavailable::Network, Instant::now())]
    {
        let mut second = asked(&turns, "w2").await;
        ends(&mut second);
        drop(second);
        turns.has_no_more();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let seen = turns.patience(Instant::now() - Duration::from_secs(2), Instant::now());
        assert_eq!(seen, Patience::Witness, "no witness that was asked since the last answer is under way");
    }
}

#[tokio::test(start_paused = true)]
async fn a12_a_witness_without_an_answer_keeps_nobody_from_a_place_that_is_free() {
    for (connections, stay, go) in [(5, &["b", "c", "d", "e"][..], KNOWN_WEBHOOK), (1, &[][..], NEW_WEBHOOK)] {
        let turns = turns(connections);
        let mut strangers = Vec::new();
        for name in stay {
            strangers.push(call(&turns, NEW_WEBHOOK, name).await.unwrap());
        }
        let mut ends = call(&turns, go, "a").await.unwrap();
        assert_eq!(patience(&turns).await, (Patience::Witness, 500));
        let witnesses = [asked(&turns, "w1").await, asked(&turns, "w2").await];
        tokio::time::sleep(Duration::from_secs(2)).await;
        ends.succeeded(true, false);
        drop(ends);
        let turn = turns.line_up(KNOWN_WEBHOOK, Some(who("next")), soon()).turn();
        let next = tokio::time::timeout(Duration::from_millis(10), turn).await.unwrap().unwrap();
        drop((next, strangers, witnesses));
        assert_eq!(turns.left(), "[0, 0, 0, 0, 0, 0] [0, 0] 0 0 0");
    }
}

#[tokio::test(start_paused = true)]
async fn a12_a_third_witness_takes_any_place_that_is_free() {
    let turns = turns(2);
    let witness = |name| turns.line_up_for_others(Role::Witness, who(name), soon()).turn();
    let _beyond = [witness("a").await.unwrap(), witness("b").await.unwrap()];
    let _ordinary = [witness("c").await.unwrap(), witness("d").await.unwrap()];
    assert!(tokio::time::timeout(Duration::from_secs(1), witness("e")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn b5_a_witness_behind_others_hears_that_a_place_beyond_is_free() {
    let turns = turns(1);
    let _held = call(&turns, NEW_WEBHOOK, "a").await.unwrap();
    let first = [asked(&turns, "w1").await, asked(&turns, "w2").await];
    let ahead = tokio::spawn(turns.line_up(KNOWN_WEBHOOK, Some(who("x")), soon()).turn());
    let third = tokio::spawn(turns.line_up_for_others(Role::Witness, who("w3"), soon()).turn());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!third.is_finished(), "there is no place");
    for mut witness in first {
        witness.withdrawn();
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(third.is_finished() && !ahead.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a12_a_known_device_that_waits_in_line_can_be_made_a_witness_once() {
    let turns = turns(1);
    let _held = call(&turns, NEW_WEBHOOK, "a").await.unwrap();
    let [new, known] = [("new", NEW_WEBHOOK), ("known", KNOWN_WEBHOOK)].map(|(name, class)| turns.line_up(class, Some(who(name)), soon()));
    let numbers = [new.number(), known.number()];
    let [new, known] = [new, known].map(|place| tokio::spawn(place.turn()));
    tokio::task::yield_now().await;
    assert_eq!(numbers.map(|number| turns.sends(number, Role::Probe)), [false, true], "anybody may invent a new one");
    assert!(!turns.sends(numbers[1], Role::Witness), "it is one already");
    assert_eq!(turns.spoken_for(), [who("known").device]);
    let permit = known.await.unwrap().unwrap();
    assert!(permit.whom() == Whom::Witness && permit.is_for_others() && !new.is_finished());
    assert!(!turns.sends(numbers[1], Role::Probe), "it had its turn");
    assert_eq!(turns.lock().witnesses.len(), 1);
    drop(permit);
    new.abort();
}

#[tokio::test(start_paused = true)]
async fn b5_after_a_witness_that_a_bound_of_ours_kept_from_being_asked_there_is_a_pause() {
    let turns = turns(5);
    fails(&turns, "a").await;
    fails(&turns, "b").await;
    assert!(turns.appoints(Instant::now()));
    let mut witness = turns.line_up_for_others(Role::Witness, who("w"), soon()).turn().await.unwrap();
    witness.withdrawn();
    drop(witness);
    assert!(!turns.appoints(Instant::now() + REST.saturating_sub(Duration::from_millis(1))));
    assert!(turns.appoints(Instant::now() + REST));
}

#[tokio::test(start_paused = true)]
async fn b5_a_device_that_cannot_be_asked_about_is_no_witness_until_it_is_answered() {
    let turns = turns(5);
    turns.line_up_for_others(Role::Witness, who("odd"), soon()).turn().await.unwrap().cannot_be_asked();
    assert!(turns.witness(who("odd")).is_none() && !turns.can_speak(who("odd")));
    call(&turns, NEW_WEBHOOK, "new").await.unwrap().cannot_be_asked();
    assert!(turns.witness(who("new")).is_some(), "a stranger's identifier is not remembered");
    call(&turns, KNOWN_WEBHOOK, "odd").await.unwrap().succeeded(true, false);
    assert_eq!(turns.witness(who("odd")), Some(Witness::Clean));
}

#[test]
fn b5_in_doubt_no_more_are_asked_for_at_once_than_would_make_it_sure() {
    let doubt = |known: usize, new: usize| {
        let marks = |many: usize| (0..many).map(|number| Mark::identifier(&number.to_string())).collect();
        Doubt { known: marks(known), new: marks(new), ..Doubt::default() }
    };
    for (known, new, of_known, of_new) in [(0, 0, 9, 9), (1, 0, 2, 2), (0, 1, 9, 2), (1, 1, 2, 1), (2, 0, 1, 1), (0, 3, 9, 0)] {
        let doubt = doubt(known, new);
        let room = |new: bool| (0..9).take_while(|pending| doubt.has_room(new, *pending)).count();
        assert_eq!((room(false), room(true)), (of_known, of_new), "{known} {new}");
    }
}
