//! Rulings in a store that hangs, fails or has no room.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use store::Settings;
use store::scripted::{self, Holder, unattended};

use super::super::*;

const SECOND: i64 = 1_000_000_000;

/// The year 2100: what the store's own clock finds too old is of no concern here.
const START: i64 = 4_102_444_800;

fn at(seconds: i64) -> UnixTime {
    UnixTime::from_nanos((START + seconds) * SECOND)
}

fn ruling(device: &str, until: Option<i64>) -> Ruling {
    Ruling { until: until.map(at), ..Ruling::new(RulingKind::Lock, None, device, "a reason", "uid 0", at(100), None) }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

async fn open(path: &Path) -> Store {
    let settings = Settings { path: Some(path.to_owned()), bind_keys: true, ..Settings::none() };
    Store::open(&settings, Arc::<std::sync::atomic::AtomicU64>::default()).await.unwrap()
}

/// A copy of a store as it is if the process is killed now.
fn killed(path: &Path, name: &str) -> PathBuf {
    let copy = path.with_file_name(name);
    for suffix in ["", "-wal", "-shm", ".lock"] {
        std::fs::copy(beside(path, suffix), beside(&copy, suffix)).unwrap();
    }
    copy
}

/// The devices of all rulings that a start finds.
async fn found_by_a_start(path: &Path) -> Vec<String> {
    let store = open(path).await;
    store.rulings(Span::at(at(0))).await.unwrap().into_iter().map(|ruling| ruling.device).collect()
}

fn exemption(device: &str) -> Ruling {
    Ruling::new(RulingKind::Exemption, None, device, "a reason", "uid 0", at(100), Some(Duration::from_secs(3600)))
}

fn holds(locks: &Locks, device: &str) -> bool {
    locks.list(at(100)).iter().any(|ruling| ruling.device == device)
}

/// A store whose rulings are written as slowly as a test wants: they wait while the second connection holds the file to write.
async fn slow(path: &Path) -> (impl Debug, Store, Holder) {
    let (writer, store) = unattended(path).await.unwrap();
    run(&store, "PRAGMA busy_timeout = 600000").await;
    (writer, store, Holder::connect(path).await.unwrap())
}

/// Runs a statement on the connection of rulings, behind everything that waits there.
async fn run(store: &Store, sql: &str) {
    scripted::run(store, sql).await.unwrap();
}

/// Runs a future while the store does not answer; whoever waits for the store times out at once.
async fn while_it_hangs<T>(holder: &mut Holder, asked: impl Future<Output = T>) -> T {
    holder.hold().await.unwrap();
    tokio::time::pause();
    let said = asked.await;
    tokio::time::resume();
    holder.release().await.unwrap();
    said
}

#[tokio::test]
async fn g9_a_lock_that_found_no_room_is_written_later_and_said_until_then() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let (_writer, store) = unattended(&path).await.unwrap();
    let locks = Locks::load(store.clone(), at(0)).await.unwrap();
    run(&store, "PRAGMA max_page_count = 1").await;
    let [kept, taken_back] = ["A", "B"].map(|device| Ruling { device: device.repeat(20_000), ..ruling(device, None) });
    for ruling in [&kept, &taken_back] {
        let error = locks.lock(ruling.clone()).await.unwrap().unwrap_err();
        assert!(matches!(error, StoreError::Full) && locks.is_owed(ruling), "{error}");
    }
    store.look_after().await;
    assert!(store.trouble().unwrap().contains("2 locks would not survive a restart"), "{:?}", store.trouble());
    let which = Which::Id(RulingKind::Lock, taken_back.id);
    assert_eq!(locks.take_back(&which, "uid 0", at(0)).await.unwrap().len(), 1);
    run(&store, "PRAGMA max_page_count = 100000").await;
    store.look_after().await;
    assert_eq!((store.trouble(), locks.is_owed(&kept)), (None, false));
    assert_eq!(store.rulings(Span::at(at(0))).await.unwrap(), [kept], "and what was taken back is not written");
}

#[tokio::test]
async fn g13_a_lock_that_was_not_taken_back_in_time_holds_after_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let (_writer, store, mut holder) = slow(&path).await;
    let locks = Locks::load(store.clone(), at(0)).await.unwrap();
    let lock = ruling("A", None);
    locks.lock(lock.clone()).await.unwrap().unwrap();
    let which = Which::Id(RulingKind::Lock, lock.id);
    let refused = while_it_hangs(&mut holder, Box::pin(locks.take_back(&which, "uid 0", at(100)))).await;
    assert!(matches!(refused, Err(StoreError::Slow)), "{refused:?}");
    // The statement comes behind whatever is still being written.
    run(&store, "SELECT 1").await;
    assert!(holds(&locks, "A") && !locks.is_owed(&lock));
    assert_eq!(found_by_a_start(&killed(&path, "killed.db")).await, ["A"]);
    assert_eq!(locks.take_back(&which, "uid 0", at(100)).await.unwrap().len(), 1);
    assert_eq!(found_by_a_start(&killed(&path, "again.db")).await, [""; 0]);
}

#[tokio::test]
async fn g13_an_exemption_that_was_not_made_in_time_is_none_after_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let (_writer, store, mut holder) = slow(&path).await;
    let locks = Locks::load(store.clone(), at(0)).await.unwrap();
    // The trigger stands for a process that ends before it takes back what came too late.
    run(&store, "CREATE TEMP TRIGGER stays BEFORE DELETE ON rulings BEGIN SELECT RAISE(FAIL, 'it stays'); END").await;
    let refused = while_it_hangs(&mut holder, Box::pin(locks.exempt(exemption("A")))).await;
    assert!(matches!(refused, Err(RulingError::NotKept(StoreError::Slow))), "{refused:?}");
    run(&store, "SELECT 1").await;
    assert!(!holds(&locks, "A"));
    assert_eq!(found_by_a_start(&killed(&path, "killed.db")).await, [""; 0]);
    locks.exempt(exemption("A")).await.unwrap();
    assert_eq!(found_by_a_start(&killed(&path, "again.db")).await, ["A"]);
}

#[tokio::test]
async fn g13_what_became_of_a_ruling_though_the_store_failed_in_the_middle_is_said_to_be_owed_and_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let (_writer, store) = unattended(&path).await.unwrap();
    let locks = Locks::load(store.clone(), at(0)).await.unwrap();
    let (lock, exempt, other) = (ruling("LOCKED", None), exemption("EXEMPT"), exemption("OTHER"));
    locks.lock(lock.clone()).await.unwrap().unwrap();
    locks.exempt(other.clone()).await.unwrap();
    assert_eq!((store.count_owed(), locks.why_not_kept(other.id)), (0, None));
    // The store answers, and refuses what is tried.
    run(&store, "CREATE TEMP TRIGGER stays BEFORE DELETE ON rulings BEGIN SELECT RAISE(FAIL, 'it stays'); END").await;
    run(&store, "CREATE TEMP TRIGGER comes BEFORE INSERT ON rulings BEGIN SELECT RAISE(FAIL, 'it does not come'); END").await;
    locks.exempt(exempt.clone()).await.unwrap();
    assert!(holds(&locks, "EXEMPT") && locks.why_not_kept(exempt.id).unwrap().contains("it does not come"));
    assert_eq!(store.trouble().unwrap().split(',').next(), Some("1 exemptions would not survive a restart"));
    for (kind, id) in [(RulingKind::Lock, lock.id), (RulingKind::Exemption, other.id)] {
        let which = Which::Id(kind, id);
        assert_eq!(locks.take_back(&which, "uid 0", at(100)).await.unwrap().len(), 1);
        assert!(locks.why_not_kept(id).unwrap().contains("it stays"));
    }
    assert!(!holds(&locks, "LOCKED") && !holds(&locks, "OTHER"));
    assert!(store.trouble().unwrap().contains("2 rulings that were taken back would be back after a restart"));
    assert_eq!(store.count_owed(), 3);
    // An exemption that is taken back before it was written is never written.
    let which = Which::Id(RulingKind::Exemption, exempt.id);
    assert_eq!(locks.take_back(&which, "uid 0", at(100)).await.unwrap().len(), 1);
    let late = exemption("LATE");
    locks.exempt(late.clone()).await.unwrap();
    run(&store, "DROP TRIGGER stays; DROP TRIGGER comes").await;
    store.look_after().await;
    assert_eq!((store.count_owed(), store.trouble(), locks.is_owed(&late)), (0, None, false));
    assert_eq!(found_by_a_start(&killed(&path, "killed.db")).await, ["LATE"]);
}

#[tokio::test]
async fn g13_an_exemption_ends_at_once_though_the_store_hangs_and_its_row_goes_once_it_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let (_writer, store, mut holder) = slow(&path).await;
    let locks = Locks::load(store.clone(), at(0)).await.unwrap();
    let exempt = exemption("A");
    locks.exempt(exempt.clone()).await.unwrap();
    let which = Which::Id(RulingKind::Exemption, exempt.id);
    let asked = Box::pin(async {
        let gone = locks.take_back(&which, "uid 0", at(100)).await.unwrap();
        assert!(!holds(&locks, "A") && locks.is_owed(&exempt) && store.trouble().is_some());
        let lock = ruling("B", None);
        let kept = locks.lock(lock.clone()).await.unwrap();
        assert!(matches!(kept, Err(StoreError::Slow)) && holds(&locks, "B"), "{kept:?}");
        (gone, lock)
    });
    let (gone, lock) = while_it_hangs(&mut holder, asked).await;
    assert_eq!(gone.len(), 1);
    // A write that was begun goes on by itself, and is then no longer owed.
    run(&store, "SELECT 1").await;
    store.look_after().await;
    assert!(!locks.is_owed(&exempt) && !locks.is_owed(&lock));
    assert_eq!(store.trouble(), None);
    assert_eq!(found_by_a_start(&killed(&path, "killed.db")).await, ["B"]);
}
