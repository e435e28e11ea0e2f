//! Rulings of several services on one server.

use std::sync::atomic::AtomicU64;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use store::scripted::Cluster;
use store::{Heard, Server, Settings, Sharing, Told};
use tokio::sync::OnceCell;

use super::*;
use crate::fleet::Fleet;
use crate::follow::follow;

/// Longest time for a look.
const SHORT: Duration = Duration::from_secs(1);

async fn cluster() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    CLUSTER.get_or_init(async || Cluster::start(&[]).await.unwrap()).await
}

fn settings(server: &Server, name: &str, stale_limit: Duration) -> Settings {
    Settings { server: Some(server.clone()), sharing: Sharing { name: name.to_owned(), stale_limit }, ..Settings::none() }
}

async fn open(server: &Server, name: &str) -> Store {
    Store::open(&settings(server, name, Duration::from_secs(60)), Arc::<AtomicU64>::default()).await.unwrap()
}

async fn of(store: Store) -> Arc<Locks> {
    Arc::new(Locks::load(store, clock::now()).await.unwrap())
}

/// Two services on one new store.
async fn two() -> (Server, Arc<Locks>, Arc<Locks>) {
    let server = cluster().await.database().await.unwrap();
    let (one, other) = (of(open(&server, "one").await).await, of(open(&server, "other").await).await);
    (server, one, other)
}

/// Heeds everything that is new.
async fn hear(locks: &Locks) {
    while locks.hear(&Fleet::default(), Duration::from_secs(5)).await.unwrap() {}
}

fn made(kind: RulingKind, device: &str) -> Ruling {
    Ruling::new(kind, None, device, "a reason", "uid 0", clock::now(), Some(Duration::from_secs(3600)))
}

fn exemption_of(device: &str) -> Which {
    Which::MadeBy(RulingKind::Exemption, Some(IdentifierKind::Serial), device.to_owned())
}

fn is_locked(locks: &Locks, device: &str) -> bool {
    locked(locks, device, clock::now())
}

fn is_exempt(locks: &Locks, device: &str) -> bool {
    exempt(locks, device, clock::now())
}

/// The news that all rulings were read.
fn told(all: Rulings) -> News {
    News { heard: all.heard, more: false, told: Told::All(all) }
}

/// Runs a statement on the database.
async fn sql(server: &Server, sql: &str) {
    cluster().await.run(server.to_string().rsplit_once('/').unwrap().1, sql).await.unwrap();
}

#[tokio::test]
async fn what_is_ruled_at_one_service_holds_at_the_other_within_a_second_and_until_it_is_taken_back() {
    let (_, one, other) = two().await;
    let follows = [&one, &other].map(|locks| {
        let locks = Arc::clone(locks);
        tokio::spawn(async move { follow(&locks, &Fleet::default()).await })
    });
    learn(&other, &[A_SERIAL, A_UDID]);
    let mut soon = 0;
    for round in 0..20 {
        let began = Instant::now();
        one.lock(made(RulingKind::Lock, UUID)).await.unwrap().unwrap();
        one.exempt(made(RulingKind::Exemption, "E")).await.unwrap();
        assert_eq!(one.unheard().await.unwrap(), Vec::<String>::new(), "{round}");
        soon += usize::from(began.elapsed() < Duration::from_secs(1));
        assert!(is_locked(&other, UUID) && is_exempt(&other, "E"), "{round}");
        assert!(is_locked(&other, A_SERIAL.1), "{round}: what the other service alone knows is covered");
        // Each takes back what the other made.
        assert_eq!(other.take_back(&locks_of(UUID), "uid 0", clock::now()).await.unwrap().len(), 1, "{round}");
        assert_eq!(other.take_back(&exemption_of("E"), "uid 0", clock::now()).await.unwrap().len(), 1, "{round}");
        assert_eq!(other.unheard().await.unwrap(), Vec::<String>::new(), "{round}");
        assert!(!is_locked(&one, UUID) && !is_exempt(&one, "E") && !is_locked(&one, A_SERIAL.1), "{round}");
    }
    // A machine that is busy with other tests may take longer now and then.
    assert!(soon >= 15, "{soon} of 20 within a second");
    follows.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn what_a_lock_comes_to_cover_is_covered_everywhere() {
    let (_, one, other) = two().await;
    one.lock(made(RulingKind::Lock, UUID)).await.unwrap().unwrap();
    hear(&other).await;
    assert!(!is_locked(&other, A_SERIAL.1));
    // One service alone sees the record, after the lock was made.
    learn(&one, &[A_SERIAL, A_UDID]);
    one.store().flush().await;
    hear(&other).await;
    assert!(is_locked(&other, A_SERIAL.1));
}

#[tokio::test]
async fn who_does_not_hear_is_named_and_who_ended_is_not() {
    let (_, one, other) = two().await;
    one.lock(made(RulingKind::Lock, "A")).await.unwrap().unwrap();
    assert_eq!(one.store().unheard(Duration::ZERO).await.unwrap(), ["other"]);
    // The word comes with the next question.
    other.hear(&Fleet::default(), SHORT).await.unwrap();
    assert_eq!(one.store().unheard(Duration::ZERO).await.unwrap(), ["other"], "it heeded, and nobody knows yet");
    hear(&other).await;
    assert_eq!(one.store().unheard(Duration::ZERO).await.unwrap(), Vec::<String>::new());
    one.lock(made(RulingKind::Lock, "B")).await.unwrap().unwrap();
    other.store().close().await;
    assert_eq!(one.store().unheard(Duration::ZERO).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn who_starts_is_waited_for_from_before_it_reads_the_rulings() {
    let server = cluster().await.database().await.unwrap();
    let one = of(open(&server, "one").await).await;
    let starting = open(&server, "starting").await;
    let all = starting.all_rulings(Span::at(clock::now())).await.unwrap();
    one.lock(made(RulingKind::Lock, "A")).await.unwrap().unwrap();
    assert!(all.rulings.is_empty(), "the lock is not among what was read");
    assert_eq!(one.store().unheard(Duration::ZERO).await.unwrap(), ["starting"]);
    let (news, _) = starting.hear(all.heard, Heard::default(), Span::at(clock::now()), SHORT).await.unwrap();
    assert!(matches!(&news.told, Told::Changes(changes) if changes.made.len() == 1), "{news:?}");
}

#[tokio::test]
async fn what_was_taken_back_while_news_were_on_their_way_does_not_come_back_with_them() {
    let (_, one, other) = two().await;
    one.exempt(made(RulingKind::Exemption, "E")).await.unwrap();
    let heard = one.hearing().heard;
    let read = async || one.store().hear(heard, Heard::default(), one.span(clock::now()), SHORT).await.unwrap().0;
    let late = [read().await, read().await];
    assert_eq!(one.take_back(&exemption_of("E"), "uid 0", clock::now()).await.unwrap().len(), 1);
    for news in late {
        assert!(matches!(&news.told, Told::Changes(changes) if changes.made.len() == 1), "{:?}", news.told);
        one.heed(news);
        assert!(!is_exempt(&one, "E"), "not for a moment");
    }
    let all = Rulings { rulings: vec![made(RulingKind::Exemption, "F")], ..Rulings::default() };
    one.heed(told(all));
    assert!(is_exempt(&one, "F") && !is_exempt(&one, "E"));
    hear(&one).await;
    hear(&other).await;
    assert!(!is_exempt(&one, "E") && !is_exempt(&other, "E") && one.hearing().taken_back.is_empty());
}

#[tokio::test]
async fn a_lock_that_is_being_made_stays_where_all_rulings_are_read_anew() {
    let (_, one, _other) = two().await;
    let all = one.store().all_rulings(Span::at(clock::now())).await.unwrap();
    one.lock(made(RulingKind::Lock, "A")).await.unwrap().unwrap();
    // It was written after the rulings were read.
    one.heed(told(all));
    assert!(is_locked(&one, "A"));
    // One that was never heard of, since its store did not take it.
    one.insert(&Arc::new(made(RulingKind::Lock, "B"))).unwrap();
    let all = one.store().all_rulings(Span::at(clock::now())).await.unwrap();
    one.heed(told(all));
    assert!(is_locked(&one, "A") && is_locked(&one, "B"));
}

#[tokio::test]
async fn who_is_too_far_behind_reads_everything() {
    let (server, one, other) = two().await;
    for device in ["A", "B"] {
        one.lock(made(RulingKind::Lock, device)).await.unwrap().unwrap();
    }
    hear(&other).await;
    one.take_back(&locks_of("A"), "uid 0", clock::now()).await.unwrap();
    one.lock(made(RulingKind::Lock, "C")).await.unwrap().unwrap();
    sql(&server, "delete from stepward.news").await;
    assert!(is_locked(&other, "A"));
    let heard = other.hearing().heard;
    let (news, _) = other.store().hear(heard, Heard::default(), other.span(clock::now()), SHORT).await.unwrap();
    assert!(matches!(&news.told, Told::All(all) if !all.went_back), "{news:?}");
    hear(&other).await;
    assert!(!is_locked(&other, "A") && is_locked(&other, "B") && is_locked(&other, "C"));
}

#[tokio::test]
async fn a_lock_outlives_a_server_that_forgot_it_and_an_exemption_does_not() {
    let (server, one, other) = two().await;
    one.lock(made(RulingKind::Lock, "A")).await.unwrap().unwrap();
    one.lock(made(RulingKind::Lock, "TAKEN BACK")).await.unwrap().unwrap();
    hear(&other).await;
    // As a standby is that has every change but the last ones.
    sql(
        &server,
        "create schema before; create table before.news as table stepward.news; create table before.rulings as table stepward.rulings; \
        create table before.changes_of_rulings as table stepward.changes_of_rulings",
    )
    .await;
    learn(&other, &[(Some(IdentifierKind::Serial), "B"), A_SERIAL]);
    one.lock(made(RulingKind::Lock, "B")).await.unwrap().unwrap();
    one.exempt(made(RulingKind::Exemption, "E")).await.unwrap();
    one.take_back(&locks_of("TAKEN BACK"), "uid 0", clock::now()).await.unwrap();
    hear(&one).await;
    hear(&other).await;
    assert!(is_locked(&other, "B") && is_locked(&other, A_SERIAL.1) && is_exempt(&other, "E"));
    sql(
        &server,
        "truncate stepward.news, stepward.rulings, stepward.covers, stepward.changes_of_rulings, stepward.forgotten; \
        insert into stepward.news table before.news; insert into stepward.rulings table before.rulings; \
        insert into stepward.changes_of_rulings table before.changes_of_rulings",
    )
    .await;
    // Two others make as many changes as were lost, and more, before anybody looks.
    let third = of(open(&server, "third").await).await;
    for device in ["C", "D", "F"] {
        third.lock(made(RulingKind::Lock, device)).await.unwrap().unwrap();
    }
    // As many changes as `one` has heard of are others than those: by a look alone it has not heard of them.
    let heard = one.hearing().heard;
    let (news, _) = one.store().hear(heard, Heard::default(), one.span(clock::now()), SHORT).await.unwrap();
    assert!(matches!(&news.told, Told::All(all) if all.went_back), "{news:?}");
    assert!(third.store().unheard(Duration::ZERO).await.unwrap().contains(&"one".to_owned()));
    third.lock(made(RulingKind::Lock, "G")).await.unwrap().unwrap();
    for locks in [&one, &other] {
        hear(locks).await;
        assert!(["A", "B", "C", "G"].iter().all(|device| is_locked(locks, device)) && !is_exempt(locks, "E"));
        assert!(is_locked(locks, "TAKEN BACK"), "that it was taken back is lost, and a lock is on the safe side");
        locks.store().look_after().await;
    }
    hear(&third).await;
    assert!(is_locked(&third, "B") && is_locked(&third, A_SERIAL.1) && !is_exempt(&third, "E"));
    assert_eq!(third.list(clock::now()).iter().filter(|ruling| ruling.device == "B").count(), 1);
}

/// Makes the store forget every change that was made since, as a standby does that had not got them.
async fn remember(server: &Server) {
    sql(
        server,
        "create schema before; create table before.news as table stepward.news; create table before.rulings as table stepward.rulings; \
        create table before.covers as table stepward.covers; create table before.changes_of_rulings as table stepward.changes_of_rulings",
    )
    .await;
}

async fn go_back(server: &Server) {
    sql(
        server,
        "truncate stepward.news, stepward.rulings, stepward.covers, stepward.changes_of_rulings, stepward.forgotten; \
        insert into stepward.news table before.news; insert into stepward.rulings table before.rulings; \
        insert into stepward.covers table before.covers; insert into stepward.changes_of_rulings table before.changes_of_rulings",
    )
    .await;
}

#[tokio::test]
async fn what_the_store_took_and_lost_before_anybody_heard_of_it_is_written_again() {
    let (server, one, other) = two().await;
    one.lock(made(RulingKind::Lock, "TAKEN BACK")).await.unwrap().unwrap();
    hear(&one).await;
    hear(&other).await;
    remember(&server).await;
    learn(&one, &[(Some(IdentifierKind::Serial), "A"), A_SERIAL]);
    one.lock(made(RulingKind::Lock, "A")).await.unwrap().unwrap();
    one.exempt(made(RulingKind::Exemption, "E")).await.unwrap();
    one.take_back(&locks_of("TAKEN BACK"), "uid 0", clock::now()).await.unwrap();
    // To both services nothing has happened since they last looked.
    go_back(&server).await;
    hear(&other).await;
    assert!(!is_locked(&other, "A") && is_locked(&other, "TAKEN BACK"));
    hear(&one).await;
    assert!(is_locked(&one, "A") && !is_exempt(&one, "E") && !is_locked(&one, "TAKEN BACK"));
    one.store().look_after().await;
    hear(&other).await;
    assert!(is_locked(&other, "A") && is_locked(&other, A_SERIAL.1) && !is_exempt(&other, "E") && !is_locked(&other, "TAKEN BACK"));
    hear(&one).await;
    assert!(one.hearing().written().is_empty() && one.hearing().taken_back.is_empty());
    assert_eq!((one.store().count_owed(), one.list(clock::now()).len()), (0, 1));
}

#[tokio::test]
async fn a_change_that_is_told_no_more_has_every_ruling_read() {
    let (server, one, other) = two().await;
    for device in ["A", "B", "C"] {
        one.lock(made(RulingKind::Lock, device)).await.unwrap().unwrap();
    }
    sql(&server, "delete from stepward.news where version = 2").await;
    hear(&other).await;
    assert!(["A", "B", "C"].iter().all(|device| is_locked(&other, device)));
}

#[tokio::test]
async fn what_another_service_took_back_is_not_written_again() {
    let (server, one, other) = two().await;
    one.exempt(made(RulingKind::Exemption, "E")).await.unwrap();
    hear(&other).await;
    // Whether the store has it is not known here, as where its answer was lost.
    let ruling = Arc::clone(&one.list(clock::now())[0]);
    one.store().owe(&ruling, Vec::new());
    other.take_back(&exemption_of("E"), "uid 0", clock::now()).await.unwrap();
    // A day later the store remembers no more that it was taken back.
    sql(&server, "delete from stepward.forgotten").await;
    hear(&one).await;
    one.store().look_after().await;
    hear(&other).await;
    assert!(!is_exempt(&one, "E") && !is_exempt(&other, "E"));
}

#[tokio::test]
async fn without_news_for_too_long_nobody_is_let_in() {
    let mut cluster = Cluster::start(&[]).await.unwrap();
    let server = cluster.database().await.unwrap();
    let limit = Duration::from_secs(4);
    let store = Store::open(&settings(&server, "one", limit), Arc::<AtomicU64>::default()).await.unwrap();
    let locks = of(store).await;
    let follows = tokio::spawn({
        let locks = Arc::clone(&locks);
        async move { follow(&locks, &Fleet::default()).await }
    });
    tokio::time::sleep(limit * 2).await;
    assert!(!locks.are_stale() && locks.without_news().unwrap() < limit, "{:?}", locks.without_news());
    cluster.freeze().unwrap();
    let frozen = Instant::now();
    while !locks.are_stale() {
        assert!(frozen.elapsed() < limit * 4);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(frozen.elapsed() + SHORT > limit, "{:?}", frozen.elapsed());
    cluster.thaw().unwrap();
    while locks.are_stale() {
        assert!(frozen.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    follows.abort();
}

#[tokio::test]
async fn a_service_alone_on_its_file_is_never_without_news() {
    let folder = tempfile::tempdir().unwrap();
    let locks = Locks::load(store(&folder.path().join("stepward.db")).await, at(0)).await.unwrap();
    follow(&locks, &Fleet::default()).await;
    assert_eq!((locks.are_stale(), locks.without_news()), (false, None));
    assert_eq!(locks.unheard().await.unwrap(), Vec::<String>::new());
}

/// Something that happens at one of two services.
#[derive(Clone, Copy, Debug)]
enum Step {
    Make(RulingKind, u8),
    TakeBack(RulingKind, u8),
    /// It heeds what is new.
    Hear,
    /// It reads everything, as one does that is too far behind.
    HearAll,
    /// It reads everything, the other step happens, and it heeds what it read.
    HearAllLate(RulingKind, u8),
}

#[test]
fn both_services_agree_after_any_history_and_nothing_that_was_taken_back_where_it_was_known_holds_again() {
    let kind = || prop_oneof![Just(RulingKind::Lock), Just(RulingKind::Exemption)];
    let step = prop_oneof![
        3 => (kind(), 0..3_u8).prop_map(|(kind, device)| Step::Make(kind, device)),
        3 => (kind(), 0..3_u8).prop_map(|(kind, device)| Step::TakeBack(kind, device)),
        2 => Just(Step::Hear),
        1 => Just(Step::HearAll),
        1 => (kind(), 0..3_u8).prop_map(|(kind, device)| Step::HearAllLate(kind, device)),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (_, one, other) = runtime.block_on(two());
    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    runner
        .run(&vec((any::<bool>(), step), 1..24), |history| {
            runtime.block_on(async {
                // The rulings that nobody took back who knew of them.
                let mut there = BTreeMap::new();
                for (at_one, step) in history {
                    let locks = if at_one { &one } else { &other };
                    match step {
                        Step::Make(kind, device) => make(locks, kind, device, &mut there).await,
                        Step::TakeBack(kind, device) => take_back(locks, kind, device, &mut there).await,
                        Step::Hear => hear(locks).await,
                        Step::HearAll => {
                            let all = locks.store().all_rulings(Span::at(clock::now())).await.unwrap();
                            locks.heed(told(all));
                        }
                        Step::HearAllLate(kind, device) => {
                            let all = locks.store().all_rulings(Span::at(clock::now())).await.unwrap();
                            make(locks, kind, device, &mut there).await;
                            take_back(locks, kind, device, &mut there).await;
                            make(locks, kind, device, &mut there).await;
                            locks.heed(told(all));
                            let known = locks.list(clock::now());
                            let gone = known
                                .iter()
                                .find(|ruling| ruling.device == name(device) && !there.contains_key(&ruling.id) && ruling.kind == kind);
                            prop_assert_eq!(gone, None, "it was taken back here");
                            let made = there.values().filter(|(of, at)| (*of, *at) == (kind, device)).count();
                            prop_assert!(
                                made > 0 && known.iter().any(|ruling| there.contains_key(&ruling.id) && ruling.device == name(device))
                            );
                        }
                    }
                }
                hear(&one).await;
                hear(&other).await;
                hear(&one).await;
                let expected: Vec<_> = there.keys().copied().collect();
                for locks in [&one, &other] {
                    let known: Vec<_> = locks.list(clock::now()).iter().map(|ruling| ruling.id).collect();
                    prop_assert_eq!(&known, &expected);
                    let hearing = locks.hearing();
                    prop_assert_eq!(&hearing.known.iter().copied().collect::<Vec<_>>(), &expected);
                    prop_assert!(hearing.taken_back.is_empty());
                }
                // The next history begins where there is nothing.
                for (kind, device) in there.clone().into_values() {
                    take_back(&one, kind, device, &mut there).await;
                }
                hear(&one).await;
                hear(&other).await;
                Ok(())
            })
        })
        .unwrap();
}

fn name(device: u8) -> String {
    format!("D{device}")
}

async fn make(locks: &Locks, kind: RulingKind, device: u8, there: &mut BTreeMap<DecisionId, (RulingKind, u8)>) {
    let ruling = made(kind, &name(device));
    there.insert(ruling.id, (kind, device));
    match kind {
        RulingKind::Lock => locks.lock(ruling).await.unwrap().unwrap(),
        RulingKind::Exemption => locks.exempt(ruling).await.unwrap(),
    }
}

async fn take_back(locks: &Locks, kind: RulingKind, device: u8, there: &mut BTreeMap<DecisionId, (RulingKind, u8)>) {
    let which = match kind {
        RulingKind::Lock => locks_of(&name(device)),
        RulingKind::Exemption => exemption_of(&name(device)),
    };
    for ruling in locks.take_back(&which, "uid 0", clock::now()).await.unwrap() {
        there.remove(&ruling.id);
    }
}
