use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use posture::caller::{Callers, Peer};
use posture::outcome::{Data, Denial};
use proptest::prelude::*;

use super::*;

static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);

fn memory(max_entries: usize, max_bytes: usize) -> Arc<ReplayMemory> {
    Arc::new(ReplayMemory::new(Replay { max_entries, max_bytes, shared: false }))
}

fn roomy() -> Arc<ReplayMemory> {
    memory(1000, 1 << 20)
}

fn in_seconds(seconds: u64) -> Instant {
    *NOW + Duration::from_secs(seconds)
}

fn key(name: &str) -> Key {
    Key::new("webhook", name.as_bytes())
}

fn other_caller() -> Caller {
    let mut params = rcgen::CertificateParams::new(["other.example.org".to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    Callers::AnyVerified.admit(Some(&Peer::from_der(certificate.der()).unwrap())).unwrap()
}

fn anonymous() -> Sender {
    Sender::of(Caller::anonymous().as_str())
}

fn first(memory: &Arc<ReplayMemory>, name: &str, expires: u64) -> Ticket {
    match memory.begin_at(key(name), (&Caller::anonymous(), None), in_seconds(expires), *NOW) {
        Begin::First(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

fn begin(memory: &Arc<ReplayMemory>, webhook: &str, number: usize) -> Begin {
    memory.begin_at(Key::new(webhook, format!("{webhook} {number}").as_bytes()), (&Caller::anonymous(), None), in_seconds(30), *NOW)
}

fn allow(json: &str) -> Outcome {
    crate::gate::fixture::allowed(Data::from_json(json).unwrap())
}

fn shown(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Allow(allowed) => allowed.data().as_json().to_owned(),
        Outcome::Deny(denial) => denial.code.to_string(),
        Outcome::Refuse(refusal) => refusal.as_str().to_owned(),
    }
}

fn again(memory: &Arc<ReplayMemory>, name: &str, caller: &Caller, now: u64) -> String {
    match memory.begin_at(key(name), (caller, None), in_seconds(now + 100), in_seconds(now)) {
        Begin::First(_) => "first".to_owned(),
        Begin::Running(_) => "running".to_owned(),
        Begin::Done(outcome, _) => shown(&outcome),
        Begin::Refused(refusal) => refusal.as_str().to_owned(),
    }
}

#[test]
fn equal_bytes_from_the_same_caller_get_the_same_outcome() {
    let memory = roomy();
    first(&memory, "a", 30).finish(allow(r#"{"n":1}"#));
    first(&memory, "b", 30).finish(Outcome::Deny(Denial::DEVICE_NOT_FOUND));
    for now in [0, 1, 30] {
        assert_eq!(again(&memory, "a", &Caller::anonymous(), now), r#"{"n":1}"#);
        assert_eq!(again(&memory, "b", &Caller::anonymous(), now), "device_not_found");
    }
}

#[test]
fn another_caller_is_refused_in_flight_and_done() {
    let memory = roomy();
    let ticket = first(&memory, "a", 30);
    assert_eq!(again(&memory, "a", &other_caller(), 0), "replayed_by_another");
    ticket.finish(allow("{}"));
    assert_eq!(again(&memory, "a", &other_caller(), 0), "replayed_by_another");
    assert_eq!(again(&memory, "a", &Caller::anonymous(), 0), "{}");
}

#[test]
fn e4_bytes_that_were_sent_to_one_webhook_are_refused_under_the_id_of_another() {
    assert_ne!(Key::new("a", b"bc"), Key::new("ab", b"c"));
    assert_ne!(Key::new("a", b"b"), Key::new("b", b"b"));
    assert_eq!(Key::new("a", b"b"), Key::new("a", b"b"));
    let memory = roomy();
    let send = |id, caller: &Caller| memory.begin_at(Key::new(id, b"body"), (caller, None), in_seconds(30), *NOW);
    let other_id = |caller: &Caller| assert!(matches!(send("new", caller), Begin::Refused(Refusal::ReplayedByAnother)));
    let Begin::First(ticket) = send("old", &Caller::anonymous()) else { panic!("not the first") };
    // The webhook is in flight, then done, and sent by its own caller and by another one.
    other_id(&Caller::anonymous());
    other_id(&other_caller());
    ticket.finish(allow("{}"));
    other_id(&Caller::anonymous());
    other_id(&other_caller());
    assert!(matches!(send("old", &Caller::anonymous()), Begin::Done(Outcome::Allow(_), _)));
    // The process restarts, and the webhook has another id.
    let memory = roomy();
    assert!(memory.recall(Key::new("old", b"body"), anonymous(), Duration::from_secs(30)));
    let begin = |id| memory.begin(Key::new(id, b"body"), &Caller::anonymous(), None, Duration::from_secs(30));
    assert!(matches!(begin("new"), Begin::Refused(Refusal::ReplayedByAnother)));
    assert!(matches!(begin("old"), Begin::First(_)));
}

#[test]
fn an_entry_lives_until_its_time_has_passed_and_not_longer() {
    let memory = roomy();
    first(&memory, "a", 30).finish(allow("{}"));
    assert_eq!(memory.usage_at(in_seconds(30)).entries, 1);
    assert_eq!(memory.usage_at(in_seconds(31)), Usage { entries: 0, bytes: 0 });
    assert_eq!(again(&memory, "a", &other_caller(), 31), "first");
}

#[test]
fn g8_what_was_refused_is_decided_anew_for_its_caller_and_for_nobody_else() {
    let memory = roomy();
    for refusal in Refusal::ALL {
        let outcome = first(&memory, "a", 30).finish(Outcome::Refuse(*refusal));
        assert_eq!(shown(&outcome), refusal.as_str());
        assert_eq!(again(&memory, "a", &other_caller(), 0), "replayed_by_another");
    }
    // A ticket that is dropped is a refusal too.
    drop(first(&memory, "a", 30));
    assert_eq!(again(&memory, "a", &other_caller(), 0), "replayed_by_another");
    first(&memory, "a", 30).finish(allow("{}"));
    assert_eq!(again(&memory, "a", &Caller::anonymous(), 0), "{}");
    assert_eq!(memory.usage_at(in_seconds(31)), Usage { entries: 0, bytes: 0 });
}

#[test]
fn a_full_memory_refuses_what_is_new_and_keeps_what_it_has() {
    let memory = memory(2, 1 << 20);
    first(&memory, "a", 30).finish(allow("{}"));
    let running = first(&memory, "b", 60);
    assert_eq!(again(&memory, "c", &Caller::anonymous(), 0), "replay_memory_full");
    assert_eq!(again(&memory, "a", &Caller::anonymous(), 0), "{}");
    running.finish(allow("{}"));
    assert_eq!(again(&memory, "c", &Caller::anonymous(), 0), "replay_memory_full");
    // The first webhook has expired, and there is room.
    assert_eq!(again(&memory, "c", &Caller::anonymous(), 31), "first");
}

#[test]
fn an_outcome_for_which_there_is_no_room_is_given_out_and_decided_anew_for_its_caller_alone() {
    let memory = memory(1000, 4 * ENTRY_BYTES);
    let long = format!("\"{}\"", "x".repeat(2 * ENTRY_BYTES));
    assert_eq!(shown(&first(&memory, "a", 30).finish(allow(&long))), long);
    assert_eq!(memory.usage_at(*NOW).entries, 1);
    assert_eq!(again(&memory, "a", &other_caller(), 0), "replayed_by_another");
    assert_eq!(shown(&first(&memory, "a", 30).finish(allow("1"))), "1");
    assert_eq!(again(&memory, "a", &Caller::anonymous(), 0), "1");
}

#[test]
fn b_one_webhook_leaves_room_to_the_others() {
    let data = format!("\"{}\"", "x".repeat(4000));
    for (bounds, most) in [
        (Replay { max_entries: 64, max_bytes: 1 << 30, shared: false }, 32),
        (Replay { max_entries: 10_000, max_bytes: 1 << 20, shared: false }, 1000),
    ] {
        let memory = memory(bounds.max_entries, bounds.max_bytes);
        memory.set_bounds(bounds, &[vec!["one"], vec!["two"]]);
        let mut taken = 0;
        while let Begin::First(ticket) = begin(&memory, "one", taken) {
            ticket.finish(allow(&data));
            taken += 1;
        }
        // Beyond its share of bytes an allowed webhook is decided anew, which takes less.
        assert!(taken <= most && taken >= most.min(300), "{taken}");
        assert!(matches!(begin(&memory, "one", 0), Begin::Done(..)));
        let Begin::First(ticket) = begin(&memory, "two", 0) else { panic!("{taken}") };
        ticket.finish(allow(&data));
        assert!(matches!(begin(&memory, "two", 0), Begin::Done(..)));
        assert!(matches!(begin(&memory, "two", 1), Begin::First(_)));
        assert_eq!(memory.usage_at(in_seconds(31)).entries, taken.saturating_sub(EXPIRED_AT_ONCE - 2));
        while memory.usage_at(in_seconds(31)).entries > 0 {}
        assert!(memory.lock().shares.is_empty());
    }
}

#[test]
fn a_late_ticket_does_not_touch_the_entry_that_followed() {
    let memory = roomy();
    let late = first(&memory, "a", 1);
    assert_eq!(memory.usage_at(in_seconds(2)).entries, 0);
    let next = first(&memory, "a", 30);
    late.finish(allow("1"));
    assert_eq!(again(&memory, "a", &Caller::anonymous(), 0), "running");
    next.finish(allow("2"));
    assert_eq!(again(&memory, "a", &Caller::anonymous(), 0), "2");
}

#[tokio::test]
async fn a_ticket_that_is_dropped_tells_those_who_wait() {
    let memory = roomy();
    let ticket = first(&memory, "a", 30);
    let Begin::Running(waiter) = memory.begin_at(key("a"), (&Caller::anonymous(), None), in_seconds(30), *NOW) else {
        panic!("not running")
    };
    drop(ticket);
    assert_eq!(shown(&waiter.await.unwrap()), "internal");
    assert_eq!(again(&memory, "a", &Caller::anonymous(), 0), "first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_equal_webhooks_is_decided_once() {
    let memory = roomy();
    let evaluations = Arc::new(AtomicUsize::new(0));
    let asks = (0..1000).map(|_| {
        let (memory, evaluations) = (Arc::clone(&memory), Arc::clone(&evaluations));
        tokio::spawn(async move {
            match memory.begin_at(key("a"), (&Caller::anonymous(), None), in_seconds(30), *NOW) {
                Begin::First(ticket) => {
                    evaluations.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    shown(&ticket.finish(allow("1")))
                }
                Begin::Running(waiter) => shown(&waiter.await.unwrap()),
                Begin::Done(outcome, _) => shown(&outcome),
                Begin::Refused(refusal) => refusal.as_str().to_owned(),
            }
        })
    });
    for ask in asks.collect::<Vec<_>>() {
        assert_eq!(ask.await.unwrap(), "1");
    }
    assert_eq!(evaluations.load(Ordering::SeqCst), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Ask { body: u8, other: bool, life: u64 },
    Finish { body: u8, refused: bool },
    Pass { seconds: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0u8..6, any::<bool>(), 0u64..40).prop_map(|(body, other, life)| Step::Ask { body, other, life }),
        (0u8..6, any::<bool>()).prop_map(|(body, refused)| Step::Finish { body, refused }),
        (0u64..20).prop_map(|seconds| Step::Pass { seconds }),
    ];
    proptest::collection::vec(step, 0..120)
}

/// The state of a body in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Open,
    Refused,
    Decided,
}

proptest! {
    /// The model scans everything at each step; only bodies that nobody decides expire under a ticket.
    #[test]
    fn does_what_a_naive_memory_does(steps in steps()) {
        let memory = memory(4, 1 << 20);
        let callers = [Caller::anonymous(), other_caller()];
        // Each body's caller, end and state.
        let mut model: HashMap<u8, (usize, u64, Is)> = HashMap::new();
        let mut tickets: HashMap<u8, Ticket> = HashMap::new();
        let mut clock = 0;
        for step in steps {
            model.retain(|_, (_, expires, _)| *expires >= clock);
            match step {
                Step::Pass { seconds } => clock += seconds,
                Step::Ask { body, other, life } => {
                    let caller = usize::from(other);
                    let key = Key::new("w", &[body]);
                    let got = memory.begin_at(key, (&callers[caller], None), in_seconds(clock + life), in_seconds(clock));
                    match (model.get(&body), got) {
                        (None, Begin::First(ticket)) => {
                            prop_assert!(model.len() < 4);
                            model.insert(body, (caller, clock + life, Is::Open));
                            tickets.insert(body, ticket);
                        }
                        (Some((owner, _, Is::Refused)), Begin::First(ticket)) => {
                            prop_assert_eq!(*owner, caller);
                            model.entry(body).and_modify(|entry| entry.2 = Is::Open);
                            tickets.insert(body, ticket);
                        }
                        (None, Begin::Refused(Refusal::ReplayMemoryFull)) => prop_assert_eq!(model.len(), 4),
                        (Some((owner, ..)), Begin::Refused(Refusal::ReplayedByAnother)) => prop_assert_ne!(*owner, caller),
                        (Some((owner, _, Is::Open)), Begin::Running(_)) => prop_assert_eq!(*owner, caller),
                        (Some((owner, _, Is::Decided)), Begin::Done(outcome, _)) => {
                            prop_assert_eq!(*owner, caller);
                            prop_assert_eq!(shown(&outcome), body.to_string());
                        }
                        (model, got) => prop_assert!(false, "{:?} {:?}", model, got),
                    }
                }
                Step::Finish { body, refused } => {
                    if let Some(ticket) = tickets.remove(&body) {
                        let outcome = if refused { Outcome::Refuse(Refusal::ProviderUnavailable) } else { allow(&body.to_string()) };
                        ticket.finish(outcome);
                        if let Some(entry) = model.get_mut(&body) {
                            entry.2 = if refused { Is::Refused } else { Is::Decided };
                        }
                    }
                }
            }
            model.retain(|_, (_, expires, _)| *expires >= clock);
            prop_assert_eq!(memory.usage_at(in_seconds(clock)).entries, model.len());
        }
        drop(tickets);
        prop_assert_eq!(memory.usage_at(in_seconds(clock + 1000)), Usage { entries: 0, bytes: 0 });
    }
}

#[test]
fn an_entry_takes_no_more_than_it_is_counted_for() {
    // A hash table is between 7/16 and 7/8 full, with a byte of its own a slot; a B-tree's nodes are at least half full.
    let table = (size_of::<(Digested, Entry)>() + 1) * 16 / 7;
    let order = size_of::<(Moment, Digested)>() * 2;
    let allocations = 2 * 3 * size_of::<usize>();
    assert!(table + order + allocations <= ENTRY_BYTES, "{table} + {order} + {allocations}");
}

#[tokio::test(start_paused = true)]
async fn g8_a_step_of_the_systems_clock_makes_it_forget_nothing() {
    let memory = roomy();
    let keep = Duration::from_secs(40);
    let Begin::First(ticket) = memory.begin(key("a"), &Caller::anonymous(), None, keep) else { panic!() };
    ticket.finish(allow("1"));
    // The system's clock is not read; only what passes by the monotonic one counts.
    tokio::time::advance(keep).await;
    assert!(matches!(memory.begin(key("a"), &other_caller(), None, keep), Begin::Refused(Refusal::ReplayedByAnother)));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(matches!(memory.begin(key("a"), &other_caller(), None, keep), Begin::First(_)));
}

#[test]
fn g8_what_the_process_before_decided_is_decided_anew_for_its_caller_and_for_nobody_else() {
    let memory = memory(2, 1 << 20);
    let keep = Duration::from_secs(40);
    for _ in 0..2 {
        assert!(memory.recall(key("a"), anonymous(), keep));
    }
    let other = other_caller();
    assert!(memory.recall(key("b"), Sender::of(other.as_str()), keep) && !memory.recall(key("c"), anonymous(), keep));
    let begin = |name: &str, caller: &Caller| memory.begin(key(name), caller, None, keep);
    assert!(matches!(begin("a", &other), Begin::Refused(Refusal::ReplayedByAnother)));
    assert!(matches!(begin("b", &Caller::anonymous()), Begin::Refused(Refusal::ReplayedByAnother)));
    let Begin::First(ticket) = begin("a", &Caller::anonymous()) else { panic!() };
    assert!(matches!(begin("a", &Caller::anonymous()), Begin::Running(_)), "it is decided once");
    ticket.finish(Outcome::Refuse(Refusal::ProviderUnavailable));
    assert!(matches!(begin("a", &other), Begin::Refused(Refusal::ReplayedByAnother)), "it was decided once all the same");
    let Begin::First(ticket) = begin("a", &Caller::anonymous()) else { panic!() };
    ticket.finish(allow("1"));
    assert!(matches!(begin("a", &Caller::anonymous()), Begin::Done(..)));
    assert!(matches!(begin("a", &other), Begin::Refused(Refusal::ReplayedByAnother)));
    let bytes = memory.usage().bytes;
    assert!(bytes >= 2 * ENTRY_BYTES, "{bytes}");
}

#[test]
fn g8_what_nobody_knows_who_sent_it_before_the_start_is_taken_from_nobody() {
    let (memory, keep) = (memory(2, 1 << 20), Duration::from_secs(40));
    assert!(memory.recall(key("a"), Sender::Unknown, keep));
    for caller in [Caller::anonymous(), other_caller()] {
        assert!(matches!(memory.begin(key("a"), &caller, None, keep), Begin::Refused(Refusal::ReplayedByAnother)));
    }
}

#[test]
fn g8_half_of_the_memory_is_for_what_comes_after_the_start() {
    let (entry, keep) = (ENTRY_BYTES, Duration::from_secs(40));
    let memory = memory(1000, 4 * entry);
    assert!(memory.recall(key("a"), anonymous(), keep) && memory.recall(key("b"), anonymous(), keep));
    assert!(!memory.recall(key("c"), anonymous(), keep));
    assert_eq!(memory.usage().bytes, 2 * entry);
    assert_eq!(again(&memory, "c", &Caller::anonymous(), 0), "first");
}

#[test]
fn webhooks_have_shares_of_their_own() {
    let shares = (0..1000).map(|number| Key::new(&format!("webhook-{number}"), b"").webhook);
    assert_eq!(shares.collect::<std::collections::HashSet<_>>().len(), 1000);
}

#[test]
fn b_one_webhook_alone_has_all_of_the_memory_and_keeps_its_share_while_it_has_anything() {
    let memory = memory(3, 1 << 20);
    memory.set_bounds(Replay { max_entries: 3, max_bytes: 1 << 20, shared: false }, &[vec!["webhook"]]);
    let _held = [first(&memory, "a", 1), first(&memory, "b", 30), first(&memory, "c", 30)];
    assert_eq!(again(&memory, "d", &Caller::anonymous(), 0), "replay_memory_full");
    memory.set_bounds(Replay { max_entries: 4, max_bytes: 1 << 20, shared: false }, &[vec!["webhook"], vec!["other"]]);
    assert_eq!(memory.usage_at(in_seconds(2)).entries, 2);
    assert_eq!(again(&memory, "d", &Caller::anonymous(), 2), "replay_memory_full", "two of four are its share");
}

#[test]
fn e4_the_ids_of_one_webhook_have_one_share_of_the_memory() {
    let memory = memory(8, 1 << 20);
    memory.set_bounds(Replay { max_entries: 8, max_bytes: 1 << 20, shared: false }, &[vec!["one", "two", "three"], vec!["beside"]]);
    let mut held = Vec::new();
    for (id, number) in [("one", 0), ("two", 1), ("three", 2), ("one", 3)] {
        let Begin::First(ticket) = begin(&memory, id, number) else { panic!("{id} {number}") };
        held.push(ticket);
    }
    for (id, number) in [("one", 4), ("two", 4), ("three", 4)] {
        assert!(matches!(begin(&memory, id, number), Begin::Refused(Refusal::ReplayMemoryFull)), "half of eight are the share of all");
    }
    assert!(matches!(begin(&memory, "beside", 4), Begin::First(_)));
}

#[test]
fn g8_equal_bytes_with_another_mode_are_decided_anew() {
    let memory = roomy();
    let with = |mode, now| memory.begin_at(key("a"), (&Caller::anonymous(), mode), in_seconds(30), in_seconds(now));
    let (computer, mobile) = (Some(Mode::Computer), Some(Mode::MobileDevice));
    let Begin::First(ticket) = with(computer, 0) else { panic!("not the first") };
    assert!(matches!(with(mobile, 0), Begin::Refused(Refusal::ProviderUnavailable)), "what comes of it is for another mode");
    assert!(matches!(with(computer, 0), Begin::Running(_)));
    ticket.finish(allow(r#"{"large":"enough to be counted"}"#));
    assert!(matches!(with(computer, 1), Begin::Done(Outcome::Allow(_), _)));
    let full = memory.usage_at(in_seconds(1));
    let Begin::First(ticket) = with(mobile, 1) else { panic!("not decided anew") };
    assert!(memory.usage_at(in_seconds(1)).bytes < full.bytes, "what is forgotten takes no room");
    assert!(matches!(
        memory.begin_at(key("a"), (&other_caller(), mobile), in_seconds(30), *NOW),
        Begin::Refused(Refusal::ReplayedByAnother)
    ));
    ticket.finish(Outcome::Deny(Denial::DEVICE_LOCKED));
    assert!(matches!(with(mobile, 2), Begin::Done(Outcome::Deny(_), _)));
    assert!(matches!(with(None, 2), Begin::First(_)), "no mode is another one");
    assert_eq!(memory.usage_at(in_seconds(31)), Usage { entries: 0, bytes: 0 });
    assert!(memory.lock().shares.is_empty());
}
