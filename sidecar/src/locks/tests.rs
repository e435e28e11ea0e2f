use std::time::Duration;

use posture::record::{Fact, Record};
use proptest::prelude::*;

use super::*;
use crate::store::Settings;

const SECOND: i64 = 1_000_000_000;
const UDID: &str = "00008030-001A2B3C4D5E6F70";
const UUID: &str = "6F1C2B3A-0D4E-4F5A-8B6C-7D8E9F0A1B2C";

fn at(nanos: i64) -> UnixTime {
    // The year 2100: what has ended by the clock of the store's own housekeeping is of no concern here.
    UnixTime::from_nanos(4_102_444_800 * SECOND + nanos)
}

fn ruling(kind: RulingKind, device: &str, ttl: Option<u64>) -> Ruling {
    Ruling::new(kind, device, "a reason", "uid 0", at(0), ttl.map(Duration::from_secs))
}

async fn lock(locks: &Locks, device: &str, ttl: Option<u64>) {
    let kept = locks.lock(ruling(RulingKind::Lock, device, ttl)).await.unwrap();
    assert!(matches!(kept, Ok(()) | Err(StoreError::None)), "{kept:?}");
}

async fn store(path: &std::path::Path) -> Store {
    let settings = Settings { path: Some(path.to_owned()), ..Settings::none() };
    Store::open(&settings, Arc::default()).await.unwrap()
}

#[tokio::test]
async fn a_lock_holds_in_any_case_and_for_a_udid_with_or_without_dashes() {
    let locks = Locks::default();
    for device in [" c02xl0gyjgh5 ", UDID, &UUID.to_lowercase().replace('-', "")] {
        lock(&locks, device, None).await;
    }
    for same in ["C02XL0GYJGH5", "c02xl0gyjgh5", UDID, &UDID.replace('-', ""), &UDID.to_lowercase(), UUID, &UUID.to_lowercase()] {
        assert!(locks.of([same], at(0)).is_some(), "{same}");
    }
    for other in ["C02XL0GYJGH", "C02-XL0GYJGH5", "", "0000803-0001A2B3C4D5E6F70", &UUID.replacen('-', "", 1)] {
        assert!(locks.of([other], at(0)).is_none(), "{other}");
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
        assert_eq!(key(given), expected);
    }
}

#[tokio::test]
async fn a_lock_on_any_identifier_of_the_record_holds() {
    let locks = Locks::default();
    lock(&locks, "mac-17.example.org", None).await;
    let record = Record {
        serial: Fact::Value("C02XL0GYJGH5".to_owned()),
        udid: Fact::Value(UUID.to_owned()),
        aliases: vec!["Mac-17.example.org".to_owned()],
        ..Record::default()
    };
    assert!(locks.of(["C02XL0GYJGH5"], at(0)).is_none());
    assert!(locks.of(record.identifiers(), at(0)).is_some());
}

#[tokio::test]
async fn a_lock_ends_at_its_second_and_not_before() {
    let locks = Locks::default();
    lock(&locks, "A", Some(60)).await;
    assert!(locks.of(["A"], at(60 * SECOND - 1)).is_some());
    assert!(locks.of(["A"], at(60 * SECOND)).is_none());
    let later = Ruling::new(RulingKind::Lock, "B", "", "", at(1), Some(Duration::from_secs(60)));
    assert_eq!(later.until, Some(at(61 * SECOND)), "a fraction of a second is rounded up");
    assert_eq!(locks.list(at(60 * SECOND)), []);
}

#[tokio::test]
async fn of_several_locks_the_last_to_end_counts() {
    let locks = Locks::default();
    for ttl in [None, Some(1), Some(60)] {
        lock(&locks, "A", ttl).await;
    }
    assert!(locks.of(["A"], at(3600 * SECOND)).is_some());
    assert_eq!(locks.take_back(RulingKind::Lock, ["a"], "uid 0", at(0)).await.unwrap().len(), 3);
    assert_eq!(locks.standing(["A"], at(0)), Standing::Ordinary);
}

#[tokio::test]
async fn a_lock_wins_over_an_exemption_of_any_other_identifier() {
    let locks = Locks::default();
    locks.exempt(ruling(RulingKind::Exemption, "A", Some(60))).await.unwrap();
    assert!(matches!(locks.standing(["A", "B"], at(0)), Standing::Exempt(_)));
    assert!(locks.exemption(["B", "A"], at(60 * SECOND)).is_none());
    lock(&locks, "B", None).await;
    assert!(locks.exemption(["A", "B"], at(0)).is_none());
    assert!(locks.of(["A", "B"], at(0)).is_some() && locks.of(["B", "A"], at(0)).is_some());
    assert!(locks.exemption(["A"], at(0)).is_some());
}

#[tokio::test]
async fn taking_back_one_kind_leaves_the_other() {
    let locks = Locks::default();
    locks.exempt(ruling(RulingKind::Exemption, "A", Some(60))).await.unwrap();
    lock(&locks, "A", None).await;
    lock(&locks, UUID, None).await;
    let gone = locks.take_back(RulingKind::Lock, ["a", &UUID.replace('-', "")], "uid 0", at(0)).await.unwrap();
    assert_eq!(gone.len(), 2);
    assert!(matches!(locks.standing(["A"], at(0)), Standing::Exempt(_)));
    assert!(locks.take_back(RulingKind::Lock, ["A"], "uid 0", at(0)).await.unwrap().is_empty());
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
        locks.take_back(RulingKind::Lock, ["c"], "uid 0", at(0)).await.unwrap();
    }
    let locks = Locks::load(store(&path).await, at(60 * SECOND)).await.unwrap();
    let mut held: Vec<_> = locks.list(at(60 * SECOND)).iter().map(|ruling| ruling.device.clone()).collect();
    held.sort();
    assert_eq!(held, ["A", "D"]);
    assert!(locks.of(["a"], at(60 * SECOND)).is_some() && locks.exemption(["d"], at(60 * SECOND)).is_some());
}

#[tokio::test]
async fn a_lock_that_was_taken_back_before_it_was_written_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let locks = Locks::load(store(&path).await, at(0)).await.unwrap();
    let busy = locks.changing.lock().await;
    let unlocking = async { locks.take_back(RulingKind::Lock, ["A"], "uid 0", at(0)).await.unwrap().len() };
    let locking = async { locks.lock(ruling(RulingKind::Lock, "A", None)).await.unwrap().is_ok() };
    let release = async {
        assert!(locks.of(["A"], at(0)).is_some(), "it holds before it is written");
        drop(busy);
    };
    // Polled in this order: whoever unlocks is the first in the queue, and finds the lock in memory when its turn comes.
    assert_eq!(tokio::join!(biased; unlocking, locking, release), (1, true, ()));
    assert_eq!(locks.store.rulings(at(0)).await.unwrap(), []);
    assert!(locks.of(["A"], at(0)).is_none());
}

#[tokio::test]
async fn where_the_disk_fails_a_lock_holds_an_exemption_is_not_made_and_nothing_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let locks = Locks::load(store(&path).await, at(0)).await.unwrap();
    lock(&locks, "A", None).await;
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(locks.lock(ruling(RulingKind::Lock, "B", None)).await, Ok(Err(StoreError::Gone))));
    let exempt = locks.exempt(ruling(RulingKind::Exemption, "C", Some(60))).await;
    assert!(matches!(exempt, Err(RulingError::NotKept(StoreError::Gone))));
    assert!(matches!(locks.take_back(RulingKind::Lock, ["A"], "uid 0", at(0)).await, Err(StoreError::Gone)));
    assert!(locks.of(["A"], at(0)).is_some() && locks.of(["B"], at(0)).is_some() && locks.exemption(["C"], at(0)).is_none());
}

#[tokio::test]
async fn one_device_has_a_bounded_number_of_rulings() {
    let locks = Locks::default();
    for _ in 0..MOST_OF_ONE {
        lock(&locks, "A", Some(1)).await;
    }
    assert!(matches!(locks.lock(ruling(RulingKind::Lock, "a", None)).await, Err(RulingError::TooManyOfOne)));
    let later = Ruling::new(RulingKind::Lock, "A", "", "", at(SECOND), None);
    assert!(locks.lock(later).await.is_ok(), "those that have ended do not count");
    assert_eq!(locks.list(at(0)).len(), 1);
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
    locks.take_back(RulingKind::Exemption, ["a"], "uid 0", at(0)).await.unwrap();
    assert!(!locks.quiet_since(let_in), "what the exemption let in is decided anew");
}
