use std::sync::LazyLock;
use std::time::Duration;

use posture::identity::normal;
use posture::record::{Alias, Fact, Record};
use proptest::prelude::*;
use store::{FIRST_COVERED, MOST_COVERED, Settings};

use super::links::{PAIRS, Pairs};
use super::*;
use crate::metrics::Metrics;

mod kept;
mod shared;

const SECOND: i64 = 1_000_000_000;
const UDID: &str = "00008030-001A2B3C4D5E6F70";
const UUID: &str = "6F1C2B3A-0D4E-4F5A-8B6C-7D8E9F0A1B2C";

/// A whole second close to now, since the store's own housekeeping reads the system's clock.
static START: LazyLock<i64> = LazyLock::new(|| clock::now().as_nanos() / SECOND * SECOND);

fn at(nanos: i64) -> UnixTime {
    UnixTime::from_nanos(*START + nanos)
}

/// Lets so many seconds pass, by the monotonic clock too.
async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

fn ruling(kind: RulingKind, device: &str, ttl: Option<u64>) -> Ruling {
    Ruling::new(kind, None, device, "a reason", "uid 0", at(0), ttl.map(Duration::from_secs))
}

fn serial(text: &str) -> DeviceId {
    DeviceId::new(IdentifierKind::Serial, text).unwrap()
}

/// The ruling for a request that states this serial number.
fn standing(locks: &Locks, stated: &str, now: UnixTime) -> Standing {
    locks.standing(&serial(stated), NO_OTHERS, now)
}

fn locked(locks: &Locks, stated: &str, now: UnixTime) -> bool {
    matches!(standing(locks, stated, now), Standing::Locked(_))
}

fn exempt(locks: &Locks, stated: &str, now: UnixTime) -> bool {
    matches!(standing(locks, stated, now), Standing::Exempt(_))
}

fn locks_of(device: &str) -> Which {
    Which::MadeBy(RulingKind::Lock, None, device.to_owned())
}

async fn lock(locks: &Locks, device: &str, ttl: Option<u64>) {
    let kept = locks.lock(ruling(RulingKind::Lock, device, ttl)).await.unwrap();
    assert!(matches!(kept, Ok(()) | Err(StoreError::None)), "{kept:?}");
}

async fn store(path: &std::path::Path) -> Store {
    let settings = Settings { path: Some(path.to_owned()), ..Settings::none() };
    Store::open(&settings, Arc::<Metrics>::default()).await.unwrap()
}

#[tokio::test]
async fn a_lock_holds_in_any_case_and_for_a_udid_with_or_without_dashes() {
    let locks = Locks::default();
    for device in [" c02xl0gyjgh5 ", UDID, &UUID.to_lowercase().replace('-', "")] {
        lock(&locks, device, None).await;
    }
    for same in ["C02XL0GYJGH5", "c02xl0gyjgh5", UDID, &UDID.replace('-', ""), &UDID.to_lowercase(), UUID, &UUID.to_lowercase()] {
        assert!(locked(&locks, same, at(0)), "{same}");
    }
    for other in ["C02XL0GYJGH", "C02-XL0GYJGH5", "0000803-0001A2B3C4D5E6F70", &UUID.replacen('-', "", 1)] {
        assert!(!locked(&locks, other, at(0)), "{other}");
    }
}

#[tokio::test]
async fn d5_a_lock_holds_for_what_differs_in_what_cannot_be_seen_at_its_ends_and_an_exemption_does_not() {
    let locks = Locks::default();
    let looks = |text: &str| format!("\u{2800}{text}\u{200b}");
    for device in ["LAPTOP9", UDID] {
        let kind = Some(IdentifierKind::Udid).filter(|_| device == UDID);
        locks.exempt(ruling(RulingKind::Exemption, device, Some(60))).await.unwrap();
        assert!(exempt(&locks, device, at(0)) && !exempt(&locks, &looks(device), at(0)), "{device}");
        lock(&locks, device, None).await;
        let stated = DeviceId::new(kind.unwrap_or(IdentifierKind::Hostname), &looks(device)).unwrap();
        assert!(matches!(locks.standing(&stated, NO_OTHERS, at(0)), Standing::Locked(_)), "{device}");
        let other = looks(device);
        assert!(matches!(locks.standing(&serial("OTHER"), [(kind, other.as_str())], at(0)), Standing::Locked(_)), "{device}");
        assert!(!locked(&locks, &format!("A{}", looks(device)), at(0)), "what is inside makes it another text");
        assert_eq!(locks.take_back(&locks_of(&looks(device)), "", at(0)).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a1_a_udid_that_is_stated_as_one_is_the_same_wherever_its_dashes_are() {
    for kind in [None, Some(IdentifierKind::Udid)] {
        let locks = Locks::default();
        let ruling = Ruling::new(RulingKind::Lock, kind, UDID, "", "", at(0), None);
        locks.lock(ruling).await.unwrap().unwrap_err();
        learn(&locks, &[A_SERIAL, (Some(IdentifierKind::Udid), &UDID.replace('-', ""))]);
        let stated = |kind, text: &str| {
            let device = DeviceId::new(kind, text).unwrap();
            matches!(locks.standing(&device, NO_OTHERS, at(0)), Standing::Locked(_))
        };
        for other in ["0000-8030001A2B3C4D5E6F70", "00008030001A2B3C4D5E6F7-0", "-00008030-001a2b3c4d5e6f70", &UDID.replace('-', "")] {
            assert!(stated(IdentifierKind::Udid, other), "{other}");
        }
        assert!(stated(IdentifierKind::Serial, A_SERIAL.1), "and what it covers");
        assert!(!stated(IdentifierKind::Serial, "0000-8030001A2B3C4D5E6F70"), "a serial number is what it is");
    }
}

#[test]
fn only_what_has_the_shape_of_a_udid_loses_its_dashes() {
    for (given, expected) in [
        (UDID, "00008030001A2B3C4D5E6F70"),
        ("a-1", "A-1"),
        ("0000803g-001A2B3C4D5E6F70", "0000803G-001A2B3C4D5E6F70"),
        ("-00008030-001A2B3C4D5E6F70", "-00008030-001A2B3C4D5E6F70"),
        ("VMware-56 4d 12", "VMWARE-56 4D 12"),
    ] {
        assert_eq!(plain(given), expected);
    }
}

#[tokio::test]
async fn a_lock_on_any_identifier_of_the_record_holds() {
    let locks = Locks::default();
    lock(&locks, "mac-17.example.org", None).await;
    let record = Record {
        serial: Fact::Value("C02XL0GYJGH5".to_owned()),
        udid: Fact::Value(UUID.to_owned()),
        aliases: vec![Alias::of(IdentifierKind::Hostname, "Mac-17.example.org")],
        ..Record::default()
    };
    assert!(!locked(&locks, "C02XL0GYJGH5", at(0)));
    assert!(matches!(locks.standing(&serial("C02XL0GYJGH5"), record.identifiers(), at(0)), Standing::Locked(_)));
}

#[tokio::test(start_paused = true)]
async fn a_lock_ends_at_its_second_and_not_before() {
    let locks = Locks::default();
    lock(&locks, "A", Some(60)).await;
    pass(60).await;
    assert!(locked(&locks, "A", at(60 * SECOND - 1)));
    assert!(!locked(&locks, "A", at(60 * SECOND)));
    let later = Ruling::new(RulingKind::Lock, None, "B", "", "", at(1), Some(Duration::from_secs(60)));
    assert_eq!(later.until, Some(at(61 * SECOND)), "a fraction of a second is rounded up");
    assert_eq!(locks.list(at(60 * SECOND)), []);
}

#[tokio::test]
async fn of_several_locks_the_last_to_end_counts() {
    let locks = Locks::default();
    for ttl in [None, Some(1), Some(60)] {
        lock(&locks, "A", ttl).await;
    }
    assert!(locked(&locks, "A", at(3600 * SECOND)));
    assert_eq!(locks.take_back(&locks_of("a"), "uid 0", at(0)).await.unwrap().len(), 3);
    assert_eq!(standing(&locks, "A", at(0)), Standing::Ordinary);
}

#[tokio::test]
async fn a_lock_on_any_other_identifier_wins_over_an_exemption() {
    let locks = Locks::default();
    locks.exempt(ruling(RulingKind::Exemption, "A", Some(60))).await.unwrap();
    let with_b = || locks.standing(&serial("A"), [(Some(IdentifierKind::Udid), "B")], at(0));
    assert!(matches!(with_b(), Standing::Exempt(_)));
    assert!(!exempt(&locks, "A", at(60 * SECOND)));
    lock(&locks, "B", None).await;
    assert!(matches!(with_b(), Standing::Locked(_)));
    assert!(exempt(&locks, "A", at(0)), "of B nobody knows here");
}

#[tokio::test]
async fn a6_an_exemption_is_for_one_identifier_of_one_kind_and_a_lock_for_any_unless_it_says_which() {
    let stated = |kind: IdentifierKind, text: &str| DeviceId::new(kind, text).unwrap();
    let locks = Locks::default();
    locks.exempt(ruling(RulingKind::Exemption, "X", Some(60))).await.unwrap();
    lock(&locks, "Y", None).await;
    let of_a_kind = Ruling::new(RulingKind::Lock, Some(IdentifierKind::Udid), "Z", "", "", at(0), None);
    locks.lock(of_a_kind).await.unwrap().unwrap_err();
    for kind in IdentifierKind::ALL.iter().copied() {
        let standing = |text| locks.standing(&stated(kind, text), NO_OTHERS, at(0));
        assert_eq!(matches!(standing("X"), Standing::Exempt(_)), kind == IdentifierKind::Serial, "{kind}");
        assert!(matches!(standing("Y"), Standing::Locked(_)), "{kind}");
        assert_eq!(matches!(standing("Z"), Standing::Locked(_)), kind == IdentifierKind::Udid, "{kind}");
        let other = |text| locks.standing(&serial("A"), [(Some(kind), text)], at(0));
        assert_eq!(other("X"), Standing::Ordinary, "what stands in a record exempts nobody");
        assert!(matches!(other("Y"), Standing::Locked(_)), "{kind}");
        assert_eq!(matches!(other("Z"), Standing::Locked(_)), kind == IdentifierKind::Udid, "{kind}");
    }
    assert!(matches!(locks.standing(&serial("A"), [(None, "Z")], at(0)), Standing::Locked(_)), "it might be of that kind");
}

#[tokio::test]
async fn taking_back_one_kind_leaves_the_other() {
    let locks = Locks::default();
    locks.exempt(ruling(RulingKind::Exemption, "A", Some(60))).await.unwrap();
    lock(&locks, "A", None).await;
    lock(&locks, UUID, None).await;
    for device in ["a", &UUID.replace('-', "")] {
        assert_eq!(locks.take_back(&locks_of(device), "uid 0", at(0)).await.unwrap().len(), 1);
    }
    assert!(exempt(&locks, "A", at(0)));
    assert!(locks.take_back(&locks_of("A"), "uid 0", at(0)).await.unwrap().is_empty());
}

#[tokio::test]
async fn rulings_survive_a_restart_and_what_was_taken_back_does_not_return() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    {
        let locks = Locks::load(store(&path).await, at(0)).await.unwrap();
        lock(&locks, "A", None).await;
        lock(&locks, "B", Some(60)).await;
        lock(&locks, "C", None).await;
        locks.exempt(ruling(RulingKind::Exemption, "D", Some(3600))).await.unwrap();
        locks.take_back(&locks_of("c"), "uid 0", at(0)).await.unwrap();
    }
    let locks = Locks::load(store(&path).await, at(60 * SECOND)).await.unwrap();
    let mut held: Vec<_> = locks.list(at(60 * SECOND)).iter().map(|ruling| ruling.device.clone()).collect();
    held.sort();
    assert_eq!(held, ["A", "D"]);
    assert!(locked(&locks, "a", at(60 * SECOND)) && exempt(&locks, "d", at(60 * SECOND)));
}

#[tokio::test]
async fn a_lock_that_was_taken_back_before_it_was_written_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let locks = Locks::load(store(&path).await, at(0)).await.unwrap();
    let busy = locks.changing.lock().await;
    let unlocking = async { locks.take_back(&locks_of("A"), "uid 0", at(0)).await.unwrap().len() };
    let locking = async { locks.lock(ruling(RulingKind::Lock, "A", None)).await.unwrap().is_ok() };
    let release = async {
        assert!(locked(&locks, "A", at(0)), "it holds before it is written");
        drop(busy);
    };
    // Polled in this order: whoever unlocks is the first in the queue, and finds the lock in memory when its turn comes.
    assert_eq!(tokio::join!(biased; unlocking, locking, release), (1, true, ()));
    assert_eq!(locks.store().rulings(Span::at(at(0))).await.unwrap(), []);
    assert!(!locked(&locks, "A", at(0)));
}

#[tokio::test]
async fn a_lock_that_is_taken_back_while_the_store_is_asked_whom_it_covers_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let locks = Locks::load(store(&folder.path().join("stepward.db")).await, at(0)).await.unwrap();
    let lock = ruling(RulingKind::Lock, "A", None);
    let id = lock.id;
    let mut locking = std::pin::pin!(locks.lock(lock));
    assert!(futures::poll!(locking.as_mut()).is_pending() && locked(&locks, "A", at(0)), "the store is being asked");
    locks.remove(&[id]);
    assert!(matches!(locking.await, Ok(Ok(()))));
    assert_eq!(locks.store().rulings(Span::at(at(0))).await.unwrap(), []);
}

#[test]
fn where_there_is_no_store_nothing_is_wrong_with_it() {
    assert!(fault(&Ok(())).is_none() && fault(&Err(StoreError::None)).is_none());
    assert!(matches!(fault(&Err(StoreError::Gone)), Some(StoreError::Gone)));
}

#[tokio::test]
async fn where_the_disk_fails_a_lock_holds_an_exemption_is_not_made_and_nothing_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let locks = Locks::load(store(&path).await, at(0)).await.unwrap();
    lock(&locks, "A", None).await;
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(locks.lock(ruling(RulingKind::Lock, "B", None)).await, Ok(Err(StoreError::Gone))));
    let exempted = locks.exempt(ruling(RulingKind::Exemption, "C", Some(60))).await;
    assert!(matches!(exempted, Err(RulingError::NotKept(StoreError::Gone))));
    assert!(matches!(locks.take_back(&locks_of("A"), "uid 0", at(0)).await, Err(StoreError::Gone)));
    assert!(locked(&locks, "A", at(0)) && locked(&locks, "B", at(0)) && !exempt(&locks, "C", at(0)));
}

#[tokio::test(start_paused = true)]
async fn one_device_has_a_bounded_number_of_rulings() {
    let locks = Locks::default();
    for _ in 0..MOST_OF_ONE {
        lock(&locks, "A", Some(1)).await;
    }
    assert!(matches!(locks.lock(ruling(RulingKind::Lock, "a", None)).await, Err(RulingError::TooManyOfOne)));
    pass(1).await;
    let later = Ruling::new(RulingKind::Lock, None, "A", "", "", at(SECOND), None);
    assert!(locks.lock(later).await.is_ok(), "those that have ended do not count");
    assert_eq!(locks.list(at(SECOND)).len(), 1);
}

proptest! {
    #[test]
    fn a_key_of_a_key_is_the_same_and_case_never_counts(text in "[0-9a-fA-F-]{0,40}|\\PC{0,70}") {
        let once = key(&text).into_owned();
        prop_assert_eq!(key(&once), once.as_str());
        let upper = text.to_ascii_uppercase();
        prop_assert_eq!(key(&upper), once.as_str());
    }
}

#[tokio::test]
async fn what_was_decided_before_a_lock_is_in_doubt_and_after_it_is_not() {
    let locks = Locks::default();
    let before = Instant::now();
    assert!(locks.quiet_since(before));
    locks.exempt(ruling(RulingKind::Exemption, "A", Some(60))).await.unwrap();
    assert!(locks.quiet_since(before), "an exemption denies nobody");
    lock(&locks, "B", None).await;
    assert!(!locks.quiet_since(before));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(locks.quiet_since(Instant::now()));
    let let_in = Instant::now();
    let exemptions = Which::MadeBy(RulingKind::Exemption, Some(IdentifierKind::Serial), "a".to_owned());
    assert_eq!(locks.take_back(&exemptions, "uid 0", at(0)).await.unwrap().len(), 1);
    assert!(!locks.quiet_since(let_in), "what the exemption let in is decided anew");
}

const A_UDID: (Option<IdentifierKind>, &str) = (Some(IdentifierKind::Udid), UUID);
const A_SERIAL: (Option<IdentifierKind>, &str) = (Some(IdentifierKind::Serial), "C02XL0GYJGH5");

fn learn(locks: &Locks, identifiers: &[(Option<IdentifierKind>, &str)]) {
    let record: Vec<_> = identifiers.iter().map(|(kind, text)| (*kind, normal(text).into_owned())).collect();
    locks.learned(&record);
}

#[tokio::test]
async fn a8_a_lock_covers_what_stood_in_one_record_with_it_whichever_came_first() {
    for learned_first in [true, false] {
        let locks = Locks::default();
        if learned_first {
            learn(&locks, &[A_SERIAL, A_UDID]);
        }
        // The lock is written as an operator writes it, without the dashes.
        lock(&locks, &UUID.to_lowercase().replace('-', ""), None).await;
        if !learned_first {
            assert!(!locked(&locks, A_SERIAL.1, at(0)));
            let before = Instant::now();
            learn(&locks, &[A_SERIAL, A_UDID]);
            assert!(!locks.quiet_since(before), "what was remembered as allowed is decided anew");
        }
        let Standing::Locked(by) = standing(&locks, A_SERIAL.1, at(0)) else { panic!("{learned_first}") };
        assert_eq!(by.device, UUID.to_lowercase().replace('-', ""), "the ruling is named");
        assert!(!locked(&locks, "OTHER", at(0)));
        let of_another_kind = DeviceId::new(IdentifierKind::Hostname, A_SERIAL.1).unwrap();
        assert_eq!(locks.standing(&of_another_kind, NO_OTHERS, at(0)), Standing::Ordinary);
        let gone = locks.take_back(&locks_of(UUID), "uid 0", at(0)).await.unwrap();
        assert_eq!((gone.len(), standing(&locks, A_SERIAL.1, at(0))), (1, Standing::Ordinary), "the cover goes with the lock");
        learn(&locks, &[A_SERIAL, A_UDID, (None, "alias")]);
        assert_eq!(standing(&locks, A_SERIAL.1, at(0)), Standing::Ordinary);
    }
}

#[tokio::test]
async fn a8_a_lock_covers_one_hop_and_no_chain() {
    let locks = Locks::default();
    learn(&locks, &[A_SERIAL, A_UDID]);
    learn(&locks, &[A_UDID, (Some(IdentifierKind::Serial), "ROGUE")]);
    lock(&locks, "rogue", None).await;
    assert_eq!(standing(&locks, A_SERIAL.1, at(0)), Standing::Ordinary, "a rogue record locks nobody by what it claims");
    let stated = DeviceId::new(IdentifierKind::Udid, UUID).unwrap();
    assert!(matches!(locks.standing(&stated, NO_OTHERS, at(0)), Standing::Locked(_)), "but what it claims itself");
    learn(&locks, &[A_SERIAL, (None, "alias")]);
    assert_eq!(standing(&locks, A_SERIAL.1, at(0)), Standing::Ordinary);
}

#[tokio::test(start_paused = true)]
async fn a8_a_lock_ends_for_what_it_covers_when_it_ends() {
    let locks = Locks::default();
    learn(&locks, &[A_SERIAL, A_UDID]);
    lock(&locks, UUID, Some(60)).await;
    pass(60).await;
    assert!(locked(&locks, A_SERIAL.1, at(60 * SECOND - 1)) && !locked(&locks, A_SERIAL.1, at(60 * SECOND)));
    lock(&locks, UUID, None).await;
    assert!(locked(&locks, A_SERIAL.1, at(60 * SECOND)));
}

#[tokio::test]
async fn a8_a_lock_of_one_kind_covers_what_stood_with_that_kind_only() {
    let locks = Locks::default();
    learn(&locks, &[A_SERIAL, (Some(IdentifierKind::Hostname), "x")]);
    learn(&locks, &[(Some(IdentifierKind::Serial), "other"), (Some(IdentifierKind::Udid), "x")]);
    let of_a_kind = Ruling::new(RulingKind::Lock, Some(IdentifierKind::Udid), "X", "", "", at(0), None);
    locks.lock(of_a_kind).await.unwrap().unwrap_err();
    assert!(locked(&locks, "OTHER", at(0)) && !locked(&locks, A_SERIAL.1, at(0)));
}

#[tokio::test]
async fn a8_what_was_learned_and_what_is_covered_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let restart = async |before: Option<Locks>| {
        if let Some(locks) = before {
            locks.store().close().await;
        }
        Locks::load(store(&path).await, at(0)).await.unwrap()
    };
    let locks = restart(None).await;
    learn(&locks, &[A_SERIAL, A_UDID]);
    // The pair was learned before the restart, and the lock is made after it.
    let locks = restart(Some(locks)).await;
    lock(&locks, UUID, None).await;
    assert!(locked(&locks, A_SERIAL.1, at(0)));
    // The lock was made before the restart, and what is learned now is kept as well.
    let locks = restart(Some(locks)).await;
    let other = DeviceId::new(IdentifierKind::Serial, "OTHER").unwrap();
    assert!(locks.possible(&other, at(0)).is_some(), "it might be about any device of which nothing is known");
    assert!(locked(&locks, A_SERIAL.1, at(0)));
    learn(&locks, &[A_UDID, (Some(IdentifierKind::Serial), "second")]);
    let locks = restart(Some(locks)).await;
    assert!(locked(&locks, A_SERIAL.1, at(0)) && locked(&locks, "SECOND", at(0)));
    assert_eq!(locks.take_back(&locks_of(UUID), "uid 0", at(0)).await.unwrap().len(), 1);
    let locks = restart(Some(locks)).await;
    assert!(!locked(&locks, A_SERIAL.1, at(0)) && !locked(&locks, "SECOND", at(0)));
    assert_eq!(locks.store().covers().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a8_what_a_lock_covers_is_bounded_and_holds_what_was_learned_first_and_last() {
    let invented = |number: usize| format!("INVENTED-{number}");
    for (before, after) in [(0, 3000), (3000, 0), (1500, 1500)] {
        let locks = Locks::default();
        let learn_invented = async |numbers: std::ops::Range<usize>| {
            for number in numbers {
                pass(1).await;
                learn(&locks, &[A_UDID, (Some(IdentifierKind::Serial), &invented(number))]);
            }
        };
        learn_invented(0..before).await;
        pass(1).await;
        learn(&locks, &[A_SERIAL, A_UDID]);
        lock(&locks, UUID, None).await;
        assert!(locked(&locks, A_SERIAL.1, at(0)), "{before}");
        learn_invented(before..before + after).await;
        let covered = (0..before + after).filter(|number| locked(&locks, &invented(*number), at(0))).count();
        assert_eq!(covered + usize::from(locked(&locks, A_SERIAL.1, at(0))), MOST_COVERED, "{before}");
        assert!(locked(&locks, &invented(0), at(0)) && locked(&locks, &invented(before + after - 1), at(0)));
        assert!(!locked(&locks, &invented(FIRST_COVERED + 1), at(0)), "{before}");
        // A device that reports its own identifier again is locked again.
        learn(&locks, &[A_SERIAL, A_UDID]);
        assert!(locked(&locks, A_SERIAL.1, at(0)), "{before}");
    }
    let locks = Locks::default();
    let record: Vec<_> = (0..100).map(|number| (None, format!("{number}"))).collect();
    let before = locks.pairs.lock().unwrap().len();
    locks.learned(&record);
    let added = locks.pairs.lock().unwrap().len() - before;
    assert_eq!(added, links::MOST_OF_A_RECORD * (links::MOST_OF_A_RECORD - 1));
}

const SIXTY_DAYS: i64 = 60 * 86_400 * SECOND;

#[tokio::test(start_paused = true)]
async fn g1_a_clock_that_runs_ahead_and_comes_back_ends_no_lock() {
    let locks = Locks::default();
    lock(&locks, "A", Some(30 * 86_400)).await;
    locks.exempt(ruling(RulingKind::Exemption, "E", Some(30 * 86_400))).await.unwrap();
    assert!(locked(&locks, "A", at(SIXTY_DAYS)), "it is not proven that it has ended");
    assert!(!exempt(&locks, "E", at(SIXTY_DAYS)), "nor that it has not");
    // Another lock is made meanwhile.
    let other = Ruling::new(RulingKind::Lock, None, "B", "", "", at(SIXTY_DAYS), None);
    locks.lock(other).await.unwrap().unwrap_err();
    assert!(locked(&locks, "A", at(0)) && exempt(&locks, "E", at(0)));
    // After an hour without a jump the clock is believed; a lock for thirty days still is one for thirty days.
    let later = |passed: i64| at(SIXTY_DAYS + passed * SECOND);
    assert!(locked(&locks, "A", at(SIXTY_DAYS)));
    pass(3600).await;
    assert!(locked(&locks, "A", later(3600)) && locked(&locks, "B", later(3600)) && !exempt(&locks, "E", later(3600)));
    assert_eq!(locks.list(later(3600))[0].until, Some(later(30 * 86_400)), "as it is listed");
    pass(30 * 86_400 - 3601).await;
    assert!(locked(&locks, "A", later(30 * 86_400 - 1)));
    pass(1).await;
    assert!(!locked(&locks, "A", later(30 * 86_400)) && locked(&locks, "B", later(30 * 86_400)));
}

#[tokio::test(start_paused = true)]
async fn g1_what_was_made_by_a_wrong_clock_ends_in_time_once_that_is_put_right() {
    for wrong in [SIXTY_DAYS, -SIXTY_DAYS] {
        let locks = Locks::default();
        let day = Some(Duration::from_secs(86_400));
        for kind in RulingKind::ALL {
            let made = locks.anchored(Ruling::new(*kind, None, kind.as_str(), "", "", at(wrong), day));
            match kind {
                RulingKind::Lock => locks.lock(made).await.unwrap().unwrap_err(),
                RulingKind::Exemption => {
                    locks.exempt(made).await.unwrap();
                    StoreError::None
                }
            };
        }
        assert!(locked(&locks, "lock", at(0)), "{wrong}");
        pass(3600).await;
        assert!(locked(&locks, "lock", at(3600 * SECOND)), "the clock is believed: {wrong}");
        // An exemption whose end is past by the believed clock may be one of a machine that slept.
        assert_eq!(exempt(&locks, "exemption", at(3600 * SECOND)), wrong > 0, "{wrong}");
        pass(82_799).await;
        assert!(locked(&locks, "lock", at(86_399 * SECOND)), "{wrong}");
        pass(1).await;
        assert_eq!(locked(&locks, "lock", at(86_400 * SECOND)), wrong > 0, "a lock ends no earlier than it says: {wrong}");
        assert!(!exempt(&locks, "exemption", at(86_400 * SECOND)), "{wrong}");
    }
    // The proven time was the wrong one.
    let locks = Locks::default();
    locks.span(at(SIXTY_DAYS));
    let made = locks.anchored(Ruling::new(RulingKind::Exemption, None, "A", "", "", at(0), Some(Duration::from_secs(7200))));
    locks.exempt(made).await.unwrap();
    assert!(exempt(&locks, "A", at(0)));
    pass(3600).await;
    assert!(exempt(&locks, "A", at(3600 * SECOND)));
    pass(3600).await;
    assert!(!exempt(&locks, "A", at(7200 * SECOND)));
}

#[tokio::test]
async fn exemptions_keep_no_lock_from_being_made() {
    let locks = Locks::default();
    for _ in 0..MOST_OF_ONE {
        locks.exempt(ruling(RulingKind::Exemption, "A", None)).await.unwrap();
    }
    assert!(matches!(locks.exempt(ruling(RulingKind::Exemption, "A", None)).await, Err(RulingError::TooManyOfOne)));
    lock(&locks, "A", None).await;
    assert!(locked(&locks, "A", at(0)));
}

#[tokio::test(start_paused = true)]
async fn g1_a_lock_ends_in_time_though_the_clock_jumped() {
    let locks = Locks::default();
    lock(&locks, "A", Some(60)).await;
    for jump in [SIXTY_DAYS, -SIXTY_DAYS] {
        assert!(locked(&locks, "A", at(jump)));
    }
    pass(60).await;
    assert!(!locked(&locks, "A", at(SIXTY_DAYS)));
    assert!(locked(&locks, "A", at(60 * SECOND - SIXTY_DAYS)), "by the system's clock it has not ended");
    assert!(!locked(&locks, "A", at(60 * SECOND)));
}

#[tokio::test(start_paused = true)]
async fn g1_an_exemption_holds_for_as_long_as_it_says_whichever_clock_is_wrong() {
    for jump in [SIXTY_DAYS, -SIXTY_DAYS] {
        let locks = Locks::default();
        assert_eq!(standing(&locks, "A", at(0)), Standing::Ordinary);
        locks.span(at(0));
        let made = Ruling::new(RulingKind::Exemption, None, "A", "", "", at(jump), Some(Duration::from_secs(4 * 3600)));
        locks.exempt(locks.anchored(made)).await.unwrap();
        assert!(exempt(&locks, "A", at(jump)), "{jump}");
        pass(600).await;
        assert!(exempt(&locks, "A", at(jump + 600 * SECOND)), "{jump}");
        // The clock is put right.
        assert!(exempt(&locks, "A", at(600 * SECOND)), "{jump}");
        pass(4 * 3600 - 601).await;
        assert!(exempt(&locks, "A", at((4 * 3600 - 1) * SECOND)), "{jump}");
        pass(1).await;
        assert!(!exempt(&locks, "A", at(4 * 3600 * SECOND)), "{jump}");
    }
}

#[tokio::test]
async fn g1_a_lock_outlives_starts_sweeps_and_other_locks_with_a_wrong_clock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let locks = Locks::load(store(&path).await, at(0)).await.unwrap();
    lock(&locks, "A", Some(30 * 86_400)).await;
    locks.store().close().await;
    drop(locks);
    // Two seconds pass, and another lock is made, with the wrong clock.
    let locks = Locks::load(store(&path).await, at(SIXTY_DAYS)).await.unwrap();
    assert!(locked(&locks, "A", at(SIXTY_DAYS)));
    let other = Ruling::new(RulingKind::Lock, None, "B", "", "", at(SIXTY_DAYS + SECOND), None);
    locks.lock(other).await.unwrap().unwrap();
    locks.store().close().await;
    drop(locks);
    let locks = Locks::load(store(&path).await, at(3 * SECOND)).await.unwrap();
    assert!(locked(&locks, "A", at(3 * SECOND)) && locked(&locks, "B", at(3 * SECOND)));
}

const OTHER_UDID: (Option<IdentifierKind>, &str) = (Some(IdentifierKind::Udid), "4C4C4544-0043-5A10-8036-B4C04F4E3233");
const OTHER_SERIAL: (Option<IdentifierKind>, &str) = (Some(IdentifierKind::Serial), "C02B");

fn covered(locks: &Locks) -> usize {
    locks.covers.read().unwrap().all().len()
}

#[tokio::test(start_paused = true)]
async fn a8_a_lock_covers_what_it_did_when_another_is_made_ends_or_is_taken_back() {
    let locks = Locks::default();
    learn(&locks, &[A_SERIAL, A_UDID]);
    learn(&locks, &[OTHER_SERIAL, OTHER_UDID]);
    lock(&locks, UUID, None).await;
    lock(&locks, OTHER_UDID.1, Some(60)).await;
    assert!(locked(&locks, A_SERIAL.1, at(0)) && locked(&locks, OTHER_SERIAL.1, at(0)));
    pass(60).await;
    assert_eq!(covered(&locks), 2);
    // Locks that have ended go when another comes, with what they cover.
    let third = Ruling::new(RulingKind::Lock, None, "C", "", "", at(60 * SECOND), None);
    locks.lock(third).await.unwrap().unwrap_err();
    assert!(locked(&locks, A_SERIAL.1, at(60 * SECOND)) && !locked(&locks, OTHER_SERIAL.1, at(60 * SECOND)));
    assert_eq!(covered(&locks), 1);
    lock(&locks, OTHER_UDID.1, None).await;
    assert_eq!(locks.take_back(&locks_of(OTHER_UDID.1), "uid 0", at(60 * SECOND)).await.unwrap().len(), 1);
    assert!(locked(&locks, A_SERIAL.1, at(60 * SECOND)) && !locked(&locks, OTHER_SERIAL.1, at(60 * SECOND)));
    assert_eq!(covered(&locks), 1);
}

#[tokio::test]
async fn a1_what_a_lock_covers_is_told_apart_as_the_identifiers_are() {
    let locks = Locks::default();
    learn(&locks, &[(Some(IdentifierKind::Hostname), "host"), (Some(IdentifierKind::Udid), UDID), (Some(IdentifierKind::Serial), "AB-1")]);
    lock(&locks, "host", None).await;
    let stated = |kind, text: &str| {
        let device = DeviceId::new(kind, text).unwrap();
        matches!(locks.standing(&device, NO_OTHERS, at(0)), Standing::Locked(_))
    };
    assert!(stated(IdentifierKind::Udid, UDID) && stated(IdentifierKind::Udid, "0000-8030001A2B3C4D5E6F70"));
    assert!(stated(IdentifierKind::Serial, "ab-1") && !stated(IdentifierKind::Serial, "AB1"), "a serial number keeps its dashes");
}

#[tokio::test]
async fn a7_what_records_claim_takes_no_doubt_about_a_lock_away() {
    let [serial_of, udid_of] = [IdentifierKind::Serial, IdentifierKind::Udid].map(|kind| move |text| (Some(kind), text));
    let claims: [&[_]; 4] = [
        // Another device reports the locked identifier as its own: of the same kind, or of another one.
        &[serial_of("EVIL"), udid_of(UUID)],
        &[serial_of(UUID), udid_of("U-2")],
        // Another device claims the serial number that is let in; or that device has another identifier than the locked one.
        &[serial_of("STOLEN"), udid_of("U-3")],
        &[serial_of("STOLEN"), (None, "STOLEN.EXAMPLE.ORG")],
    ];
    for kind in [None, Some(IdentifierKind::Udid)] {
        let locks = Locks::default();
        locks.lock(Ruling::new(RulingKind::Lock, kind, UUID, "", "", at(0), None)).await.unwrap().unwrap_err();
        for record in claims {
            learn(&locks, record);
            assert!(locks.possible(&serial("STOLEN"), at(0)).is_some(), "{kind:?} {record:?}");
        }
    }
    let locks = Locks::default();
    locks.lock(Ruling::new(RulingKind::Lock, Some(IdentifierKind::Serial), "OTHER", "", "", at(0), None)).await.unwrap().unwrap_err();
    assert_eq!(locks.possible(&serial("STOLEN"), at(0)), None, "a serial number is no other one");
    let phone = DeviceId::new(IdentifierKind::Udid, UUID).unwrap();
    assert!(locks.possible(&phone, at(0)).is_some());
}

#[tokio::test(start_paused = true)]
async fn a7_only_a_lock_that_holds_may_be_about_a_device_of_which_nothing_is_known() {
    let locks = Locks::default();
    locks.exempt(Ruling { identifier_kind: Some(IdentifierKind::Udid), ..ruling(RulingKind::Exemption, UUID, None) }).await.unwrap();
    lock(&locks, OTHER_UDID.1, Some(60)).await;
    let device = serial("C02A");
    assert_eq!(locks.possible(&device, at(0)).map(|lock| lock.device.clone()).as_deref(), Some(OTHER_UDID.1));
    pass(60).await;
    assert_eq!(locks.possible(&device, at(60 * SECOND)), None);
}

#[tokio::test(start_paused = true)]
async fn what_was_decided_at_the_very_moment_of_a_lock_is_in_doubt() {
    let locks = Locks::default();
    lock(&locks, "A", None).await;
    assert!(!locks.quiet_since(Instant::now()));
    pass(1).await;
    assert!(locks.quiet_since(Instant::now()));
}

#[tokio::test]
async fn whoever_names_too_much_or_too_little_of_a_device_is_shown_what_may_be_meant() {
    let locks = Locks::default();
    lock(&locks, "C02XL0GYJGH5", None).await;
    lock(&locks, "OTHER", None).await;
    for given in ["c02xl0", "C02XL0GYJGH5", "serial C02XL0GYJGH5"] {
        let like: Vec<_> = locks.like(&locks_of(given), at(0), 9).iter().map(|ruling| ruling.device.clone()).collect();
        assert_eq!(like, ["C02XL0GYJGH5"], "{given}");
    }
    assert_eq!(locks.like(&locks_of("X"), at(0), 9).len(), 1);
    assert_eq!(locks.like(&locks_of("GH5 OTHER"), at(0), 9).len(), 1);
    assert_eq!(locks.like(&locks_of(""), at(0), 1).len(), 1, "no more than is wanted");
}

#[tokio::test]
async fn what_was_learned_before_there_was_a_store_is_kept_by_the_first_and_by_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first.db", "second.db"].map(|name| folder.path().join(name));
    let of_second = Locks::load(store(&second).await, at(0)).await.unwrap();
    lock(&of_second, "SECOND", None).await;
    of_second.store().close().await;
    drop(of_second);
    let locks = Locks::default();
    assert!(!locks.are_kept());
    learn(&locks, &[A_SERIAL, A_UDID]);
    locks.keep_in(Store::none(), at(0)).await.unwrap();
    locks.keep_in(store(&first).await, at(0)).await.unwrap();
    locks.keep_in(store(&second).await, at(0)).await.unwrap();
    assert!(locks.are_kept() && !locked(&locks, "SECOND", at(0)));
    let mark = |(kind, text): (Option<IdentifierKind>, &str)| Mark::of(kind, text);
    assert!(!locks.pairs.lock().unwrap().see((mark(A_SERIAL), mark(A_UDID)), 0), "it is kept already");
    locks.store().close().await;
    drop(locks);
    let locks = Locks::load(store(&first).await, at(0)).await.unwrap();
    lock(&locks, UUID, None).await;
    assert!(locked(&locks, A_SERIAL.1, at(0)));
}

#[tokio::test]
async fn a_pair_is_kept_once_and_again_where_it_was_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let locks = Locks::load(store(&folder.path().join("stepward.db")).await, at(0)).await.unwrap();
    let mark = |(kind, text): (Option<IdentifierKind>, &str)| Mark::of(kind, text);
    let pair = (mark(A_SERIAL), mark(A_UDID));
    learn(&locks, &[A_SERIAL, A_UDID]);
    let mut pairs = locks.pairs.lock().unwrap();
    assert!(!pairs.see(pair, 0));
    pairs.not_kept(pair);
    assert_eq!(pairs.partners(&[pair.0]).collect::<Vec<_>>(), [pair.1], "it holds meanwhile");
    assert!(pairs.see(pair, 0) && !pairs.see(pair, 0));
}

#[test]
fn a8_what_stood_with_an_identifier_is_covered_in_the_order_in_which_it_was_seen() {
    let (own, many) = (Mark(-1), i64::try_from(MOST_COVERED).unwrap());
    let first = i64::try_from(FIRST_COVERED).unwrap();
    let pairs = |seen: &mut dyn Iterator<Item = (i64, i32)>| {
        let mut pairs = Pairs::default();
        for (number, at) in seen {
            let _ = pairs.see((own, Mark(number)), at);
        }
        pairs
    };
    let in_order = |numbers: &mut dyn Iterator<Item = i64>| numbers.map(Mark).collect::<Vec<_>>();
    let at = |number: i64| i32::try_from(number).unwrap();
    // The lock covers as many as it can: in the order in which they were first seen, though one was seen again.
    let all = pairs(&mut (0..many).map(|number| (number, at(number))).chain([(first + 1, at(2 * many))]));
    assert_eq!(all.covered_by(&[own]), in_order(&mut (0..many)));
    // With one more, the one of the later ones that was not seen for longest is left out, and the last seen is the last.
    let beyond = pairs(&mut (0..=many).map(|number| (number, at(number))).chain([(first, at(2 * many))]));
    let expected = in_order(&mut (0..first).chain(first + 2..=many).chain([first]));
    assert_eq!(beyond.covered_by(&[own]), expected);
    // Pairs of a store come before all others, the last seen first.
    let mut recalled = Pairs::default();
    assert!(recalled.see((own, Mark(0)), 0));
    recalled.recall(&(0..=many).map(|number| (own, Mark(number))).collect::<Vec<_>>());
    assert_eq!(recalled.len(), MOST_COVERED + 1, "what is there already is not there twice");
    let expected = in_order(&mut (many - first + 1..=many).rev().chain((0..many - first).rev()));
    assert_eq!(recalled.covered_by(&[own]), expected);
}

#[test]
fn there_is_a_bounded_number_of_rulings_and_those_that_have_ended_do_not_count() {
    let mut index = Index::default();
    let span = Span::at(at(60 * SECOND));
    for number in 1..MOST {
        index.insert(Arc::new(Ruling { device: format!("D{number}"), ..ruling(RulingKind::Lock, "", None) }));
    }
    index.insert(Arc::new(ruling(RulingKind::Lock, "ENDED", Some(60))));
    let new = ruling(RulingKind::Lock, "NEW", None);
    assert!(index.room_for(&new, span).is_ok());
    index.insert(Arc::new(ruling(RulingKind::Lock, "LAST", None)));
    assert!(matches!(index.room_for(&new, span), Err(RulingError::TooMany)));
    assert!(index.room_for(&ruling(RulingKind::Exemption, "NEW", None), span).is_ok(), "kinds are counted apart");
}

#[test]
fn a8_a_pair_that_the_store_refuses_holds_however_many_are_known() {
    let mut pairs = Pairs::default();
    pairs.recall(&(1..=i64::try_from(PAIRS).unwrap()).map(|number| (Mark(0), Mark(number))).collect::<Vec<_>>());
    let pair = (Mark(1 << 40), Mark(2 << 40));
    assert!(pairs.see(pair, 1));
    pairs.not_kept(pair);
    assert_eq!(pairs.covered_by(&[pair.0]), [pair.1]);
}

#[tokio::test(start_paused = true)]
async fn g1_only_an_exemption_that_was_made_ahead_of_the_proven_time_ends_by_that() {
    let made = |kind, clock: i64| {
        let locks = Locks::default();
        locks.span(at(0));
        let ruling = Ruling::new(kind, None, "A", "", "", at(clock), Some(Duration::from_secs(3600)));
        let anchored = locks.anchored(ruling.clone());
        (anchored.until == ruling.until, anchored.proven_until.is_some())
    };
    assert_eq!(made(RulingKind::Exemption, 0), (true, false));
    assert_eq!(made(RulingKind::Exemption, SIXTY_DAYS), (true, true));
    assert_eq!(made(RulingKind::Lock, SIXTY_DAYS), (true, false));
    for kind in RulingKind::ALL {
        assert_eq!(made(*kind, -SIXTY_DAYS), (false, false));
    }
}

#[tokio::test]
async fn g1_an_exemption_that_ended_before_a_kill_does_not_hold_again_by_a_clock_that_was_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let locks = Locks::load(store(&path).await, at(0)).await.unwrap();
    for (device, ttl) in [("ENDED", 40), ("HOLDS", 600)] {
        let made = Ruling::new(RulingKind::Exemption, None, device, "", "", at(0), Some(Duration::from_secs(ttl)));
        locks.exempt(locks.anchored(made)).await.unwrap();
    }
    lock(&locks, "LOCKED", Some(40)).await;
    // The time in the store is that of a minute ago at most.
    locks.store().close().await;
    assert!(!exempt(&locks, "ENDED", at(50 * SECOND)));
    drop(locks);
    for back in [-30, 1, 20] {
        let locks = Locks::load(store(&path).await, at(back * SECOND)).await.unwrap();
        assert!(!exempt(&locks, "ENDED", at(back * SECOND)), "{back}");
        assert!(exempt(&locks, "HOLDS", at(back * SECOND)), "{back}");
        assert!(locked(&locks, "LOCKED", at(back * SECOND)), "{back}");
    }
}

#[tokio::test]
async fn a6_an_exemption_is_for_one_udid_and_a_lock_for_all_that_may_be_it() {
    let another = "0000-8030-001A-2B3C-4D5E-6F70";
    let stands = |locks: &Locks, text: &str| locks.standing(&DeviceId::new(IdentifierKind::Udid, text).unwrap(), NO_OTHERS, at(0));
    let exempt = Locks::default();
    exempt.exempt(Ruling::new(RulingKind::Exemption, Some(IdentifierKind::Udid), UDID, "", "", at(0), None)).await.unwrap();
    for text in [UDID, "00008030001a2b3c4d5e6f70"] {
        assert!(matches!(stands(&exempt, text), Standing::Exempt(_)), "{text}");
    }
    assert_eq!(stands(&exempt, another), Standing::Ordinary);
    let locks = Locks::default();
    lock(&locks, UDID, None).await;
    assert!(matches!(stands(&locks, another), Standing::Locked(_)));
}

#[tokio::test]
async fn a8_an_exemption_covers_nothing_and_a_lock_of_another_kind_covers_nothing_of_a_record() {
    let locks = Locks::default();
    locks.exempt(ruling(RulingKind::Exemption, A_SERIAL.1, None)).await.unwrap();
    let other = Ruling::new(RulingKind::Lock, Some(IdentifierKind::Hostname), A_SERIAL.1, "", "uid 0", at(0), None);
    locks.lock(other).await.unwrap().ok();
    learn(&locks, &[A_SERIAL, A_UDID]);
    assert_eq!(covered(&locks), 0);
    assert_eq!(locks.standing(&DeviceId::new(IdentifierKind::Udid, UUID).unwrap(), NO_OTHERS, at(0)), Standing::Ordinary);
}
