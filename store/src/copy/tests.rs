use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clock::{Proven, Span};
use posture::identity::{IdentifierKind, Trust};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::Notify;

use super::*;
use crate::decision::{Decision, Wanted};
use crate::fixture::{Backend, Stand, allowed, at, cluster, decision, key, ruling};
use crate::mark::Mark;
use crate::overview::{Contents, Migrated};
use crate::postgres::{Server, scripted};
use crate::ruling::{Ruling, RulingKind};
use crate::settings::Settings;
use crate::sqlite::MIGRATIONS;

/// A place in which nothing is yet.
async fn empty(backend: Backend) -> (Place, Stand) {
    let stand = backend.stand().await;
    (Place::of(&stand.settings).unwrap(), stand)
}

/// Texts that a database could take for something else, and some by chance.
fn texts() -> Vec<String> {
    let mut runner = TestRunner::deterministic();
    let any = "\\PC{0,20}|[\0\u{1a}01'\"\\\\;$?%{}\u{202e}é\u{10ffff}]{0,12}";
    let by_chance = (0..100).map(|_| any.new_tree(&mut runner).unwrap().current());
    crate::contract::texts().into_iter().chain(by_chance).collect()
}

/// Writes rows of every kind, decisions in another order than that of their times.
async fn fill(stand: &Stand) {
    let (mut writer, _, store) = stand.connected().await;
    for (number, text) in texts().into_iter().enumerate() {
        let lock =
            Ruling { device: text.clone(), reason: text.clone(), made_by: text.clone(), ..ruling("", (number % 2 == 0).then_some(900)) };
        store.keep(&lock, &[Mark(i64::MAX), Mark(i64::MIN), Mark(number as i64)]).await.unwrap();
        let made = Decision {
            webhook: text.clone(),
            code: text.clone(),
            caller: (number % 3 > 0).then(|| text.clone()),
            inputs: text.clone(),
            request_id: Some(text.clone()),
            ..decision(500 - number as i64, &text)
        };
        store.record(made.clone());
        let mut made = made;
        made.bound();
        writer.write(&[Box::new(made)]).await;
    }
    let exempt = Ruling {
        proven_until: Some(at(7)),
        corrected: -5,
        identifier_kind: Some(IdentifierKind::Udid),
        kind: RulingKind::Exemption,
        ..ruling("exempt", Some(9))
    };
    store.keep(&exempt, &[]).await.unwrap();
    let gone = ruling("gone", None);
    store.keep(&gone, &[Mark(1)]).await.unwrap();
    store.forget(&[gone.id]).await.unwrap();
    for (number, text) in ["A", "B\u{e9}", "'; drop table keys; --"].into_iter().enumerate() {
        writer.write(&[Box::new(allowed(number as i64, key(), text, Trust::Attested))]).await;
    }
    let pairs: Vec<_> = (0..600).map(|number| (Mark(number % 500), Mark(-number % 500))).collect();
    writer.records().learn(&pairs, &[]).await.unwrap();
    writer.records().learn(&pairs[3..5], &[]).await.unwrap();
    writer.records().keep_proven(Proven { time: at(77), corrected: -3 }).await.unwrap();
}

/// Writes so many decisions.
async fn decide(stand: &Stand, many: i64) {
    let (mut writer, ..) = stand.connected().await;
    let batch: Vec<_> = (0..many).map(|number| Box::new(decision(number, "A"))).collect();
    for portion in batch.chunks(500) {
        writer.write(portion).await;
    }
}

async fn copied(from: &Place, to: &Place) -> Result<Vec<Copied>, CopyError> {
    copy(from, to, &mut |_| ()).await
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn refused(from: &Place, to: &Place) -> String {
    chain(&copied(from, to).await.unwrap_err())
}

/// What a service finds.
async fn seen(stand: &Stand) -> impl PartialEq + std::fmt::Debug + use<> {
    let (mut writer, _, store) = stand.connected().await;
    let mut covers = store.covers().await.unwrap();
    covers.sort();
    let decisions = store.decisions(&Wanted { limit: 1000, ..Wanted::default() }).await.unwrap();
    let mut records = Vec::new();
    for summary in &decisions {
        records.push(store.decision(summary.id).await.unwrap().unwrap());
    }
    let sent: Vec<_> = store.sent(Duration::from_secs(3600), 1000).await.unwrap().into_iter().map(|sent| format!("{sent:?}")).collect();
    let proven = writer.records().proven().await.unwrap().map(|proven| (proven.time, proven.corrected));
    let links = store.links(1000).await.unwrap();
    // What was written first goes first.
    writer.records().delete_oldest(3).await.unwrap();
    let left: Vec<_> = store.decisions(&Wanted { limit: 1000, ..Wanted::default() }).await.unwrap();
    (store.rulings(Span::at(at(0))).await.unwrap(), covers, decisions, records, sent, proven, links, left)
}

#[tokio::test]
async fn a_store_is_the_same_in_every_database_that_it_is_copied_to() {
    for (first, second) in [(Backend::Sqlite, Backend::Postgres), (Backend::Postgres, Backend::Sqlite)] {
        let (one, one_stand) = empty(first).await;
        fill(&one_stand).await;
        let (other, other_stand) = empty(second).await;
        let there = copied(&one, &other).await.unwrap();
        let rows = |table: &str| there.iter().find(|copied| copied.table == table).map(|copied| copied.rows);
        assert_eq!((rows("rulings"), rows("keys"), rows("clock")), (Some(texts().len() as u64 + 1), Some(3), Some(1)));
        assert_eq!((rows("decisions"), rows("links"), rows("forgotten")), (Some(texts().len() as u64 + 3), Some(500), None));
        let (back, back_stand) = empty(first).await;
        let again = copied(&other, &back).await.unwrap();
        assert_eq!(there, again);
        let (like, like_stand) = empty(first).await;
        let alike = copied(&one, &like).await.unwrap();
        assert_eq!(alike.iter().filter(|copied| copied.table != "forgotten").copied().collect::<Vec<_>>(), there);
        let original = seen(&one_stand).await;
        for stand in [&other_stand, &back_stand, &like_stand] {
            assert_eq!(seen(stand).await, original);
        }
    }
}

#[tokio::test]
async fn a_ruling_that_was_forgotten_stays_so_on_another_server() {
    let (one, one_stand) = empty(Backend::Postgres).await;
    let (_, _, store) = one_stand.connected().await;
    let lock = ruling("A", None);
    store.keep(&lock, &[]).await.unwrap();
    store.forget(&[lock.id]).await.unwrap();
    drop(store);
    let (other, other_stand) = empty(Backend::Postgres).await;
    copied_once_unused(&one, &other).await;
    let (_, _, store) = other_stand.connected().await;
    store.keep(&lock, &[]).await.unwrap();
    assert_eq!(store.rulings(Span::at(at(0))).await.unwrap(), []);
    let pairs = [(Mark(1), Mark(2))];
    assert!(store.links(1).await.unwrap().is_empty() && store.link(&pairs));
}

/// Copies a store once its server has noticed that the connections of a test are gone.
async fn copied_once_unused(from: &Place, to: &Place) -> Vec<Copied> {
    loop {
        match copied(from, to).await {
            Err(CopyError::From(PlaceError::Server(postgres::WholeError::InUse { .. }))) => tokio::task::yield_now().await,
            Err(CopyError::To(PlaceError::Server(postgres::WholeError::InUse { .. }))) => tokio::task::yield_now().await,
            done => return done.unwrap(),
        }
    }
}

#[tokio::test]
async fn pairs_that_are_seen_after_a_copy_are_the_newest() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let (one, one_stand) = empty(Backend::Sqlite).await;
        fill(&one_stand).await;
        let (other, other_stand) = empty(backend).await;
        copied(&one, &other).await.unwrap();
        let (mut writer, _, store) = other_stand.connected().await;
        let newest = (Mark(5), Mark(7777));
        writer.records().learn(&[newest], &[]).await.unwrap();
        assert_eq!(store.links(1).await.unwrap(), [newest], "{backend:?}");
    }
}

#[tokio::test]
async fn a_copy_that_ends_at_any_moment_leaves_nothing_and_can_begin_anew() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let (one, one_stand) = empty(Backend::Sqlite).await;
        fill(&one_stand).await;
        decide(&one_stand, 1200).await;
        let (other, other_stand) = empty(backend).await;
        let mut steps = 0;
        loop {
            let (stop, mut left) = (Notify::new(), steps);
            let mut said = |_| {
                if left == 0 {
                    stop.notify_one();
                }
                left -= 1;
            };
            let is_done = tokio::select! {
                biased;
                () = stop.notified() => false,
                done = copy(&one, &other, &mut said) => done.is_ok(),
            };
            let found = other.overview().await.unwrap();
            if is_done || found.is_some() {
                // What is there is whole: only what comes after the last moment may be missing.
                let whole = one.overview().await.unwrap().unwrap();
                assert_eq!(found.unwrap().contents, whole.contents, "{backend:?} {steps}");
                break;
            }
            if let Place::File(path) = &other {
                assert_eq!(names(path.parent().unwrap()), [""; 0], "{steps}");
            }
            steps += 1;
        }
        assert!(steps > 15, "{steps}");
        assert_eq!(seen(&other_stand).await, seen(&one_stand).await);
    }
}

/// The files of a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_a_killed_copy_left_goes_and_one_that_is_under_way_is_left_alone() {
    let (one, one_stand) = empty(Backend::Postgres).await;
    fill(&one_stand).await;
    let (other, stand) = empty(Backend::Sqlite).await;
    let path = stand.settings.path.clone().unwrap();
    let left = PathBuf::from(format!("{}.copying", path.display()));
    std::fs::write(&left, vec![7; 100_000]).unwrap();
    std::fs::write(format!("{}-journal", left.display()), "nonsense").unwrap();
    let other_copy = std::fs::File::open(&left).unwrap();
    other_copy.lock().unwrap();
    assert!(refused(&one, &other).await.contains("is under way"));
    assert_eq!(std::fs::read(&left).unwrap(), [7; 100_000]);
    drop(other_copy);
    copied_once_unused(&one, &other).await;
    assert_eq!(names(path.parent().unwrap()), ["stepward.db"]);
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_row_that_the_copy_lost_or_has_otherwise_is_found() {
    let (one, stand) = empty(Backend::Sqlite).await;
    decide(&stand, 700).await;
    for (body, said) in [
        ("return null", "decisions has 700 rows, and the copy 699"),
        ("new.code = 'allowed'; return new", "decisions has 700 rows, and the copy 700 that differ"),
    ] {
        let (other, other_stand) = empty(Backend::Postgres).await;
        other.migrate().await.unwrap();
        let database = database(&other_stand);
        let trigger = format!(
            "create function public.fault() returns trigger language plpgsql as $$ begin {body}; end $$;
            create trigger fault before insert on stepward.decisions for each row when (new.seq = 650) execute function public.fault()"
        );
        cluster().await.run(&database, &trigger).await.unwrap();
        assert!(refused(&one, &other).await.contains(said), "{}", refused(&one, &other).await);
        assert_eq!(other.overview().await.unwrap().unwrap().contents, Contents::default());
    }
    let (other, other_stand) = empty(Backend::Sqlite).await;
    let path = other_stand.settings.path.clone().unwrap();
    let mut turned = false;
    let mut said = |progress: Progress| {
        if progress.comparing && !turned {
            let file = format!("{}.copying", path.display());
            let mut bytes = std::fs::read(&file).unwrap();
            let found = bytes.windows(11).rposition(|found| found == b"not_managed").unwrap();
            bytes[found] = b'N';
            std::fs::write(&file, bytes).unwrap();
            turned = true;
        }
    };
    let error = copy(&one, &other, &mut said).await.unwrap_err();
    assert!(chain(&error).contains("700 that differ"), "{}", chain(&error));
    assert_eq!(names(path.parent().unwrap()), [""; 0]);
}

fn database(stand: &Stand) -> String {
    stand.settings.server.as_ref().unwrap().to_string().rsplit_once('/').unwrap().1.to_owned()
}

#[tokio::test]
async fn nothing_is_written_over() {
    let (one, one_stand) = empty(Backend::Sqlite).await;
    decide(&one_stand, 1).await;
    type Fill = fn(&Stand) -> std::pin::Pin<Box<dyn Future<Output = ()> + '_>>;
    let fills: [(&str, Fill); 4] = [
        ("rulings", |stand| Box::pin(async { stand.connected().await.2.keep(&ruling("A", None), &[]).await.unwrap() })),
        ("decisions", |stand| Box::pin(decide(stand, 1))),
        ("decisions, keys", |stand| {
            Box::pin(async { stand.connected().await.0.write(&[Box::new(allowed(1, key(), "A", Trust::Attested))]).await })
        }),
        ("links", |stand| Box::pin(async { stand.connected().await.0.records().learn(&[(Mark(1), Mark(2))], &[]).await.unwrap() })),
    ];
    for (tables, fill) in fills {
        let (other, stand) = empty(Backend::Postgres).await;
        fill(&stand).await;
        let before = other.overview().await.unwrap().unwrap().contents;
        let error = loop {
            match refused(&one, &other).await {
                error if error.contains("services use") => tokio::task::yield_now().await,
                error => break error,
            }
        };
        assert!(error.contains(&format!("has rows in {tables} already")) && error.contains("drop schema stepward cascade"), "{error}");
        assert_eq!(other.overview().await.unwrap().unwrap().contents, before);
    }
    for name in ["stepward.db", "stepward.db-wal", "stepward.db-shm"] {
        let (other, stand) = empty(Backend::Sqlite).await;
        let path = stand.settings.path.unwrap().with_file_name(name);
        std::fs::write(&path, "mine").unwrap();
        let error = refused(&one, &other).await;
        assert!(error.contains(&format!("{name} already, and nothing is written over")), "{error}");
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), names(path.parent().unwrap()).len()), ("mine", 1));
    }
}

#[tokio::test]
async fn a_store_in_which_a_service_was_only_started_takes_a_copy() {
    let (one, one_stand) = empty(Backend::Sqlite).await;
    fill(&one_stand).await;
    let (other, other_stand) = empty(Backend::Postgres).await;
    let (mut writer, ..) = other_stand.connected().await;
    writer.records().keep_proven(Proven { time: at(1), corrected: 9 }).await.unwrap();
    drop(writer);
    copied_once_unused(&one, &other).await;
    assert_eq!(seen(&other_stand).await, seen(&one_stand).await);
}

#[tokio::test]
async fn a_store_that_a_service_uses_is_not_copied_and_none_starts_meanwhile() {
    for (from, to) in [(Backend::Sqlite, Backend::Postgres), (Backend::Postgres, Backend::Sqlite)] {
        let (one, one_stand) = empty(from).await;
        let (other, _other_stand) = empty(to).await;
        let service = one_stand.connected().await;
        service.2.keep(&ruling("A", None), &[]).await.unwrap();
        let error = refused(&one, &other).await;
        assert!(error.contains("stop") && error.contains("first"), "{error}");
        assert_eq!(other.overview().await.unwrap(), None);
    }
    let (one, one_stand) = empty(Backend::Sqlite).await;
    decide(&one_stand, 1).await;
    let (other, other_stand) = empty(Backend::Postgres).await;
    let service = other_stand.connected().await;
    assert!(refused(&one, &other).await.contains("services use the store"));
    drop(service);
    let (one, one_stand) = empty(Backend::Sqlite).await;
    decide(&one_stand, 1).await;
    let Place::File(path) = &one else { panic!("it is in a file") };
    let reader = sqlite::copy::Reader::open(path).await.unwrap();
    let error = crate::Store::open(&one_stand.unbounded(), std::sync::Arc::<std::sync::atomic::AtomicU64>::default()).await.unwrap_err();
    assert!(error.to_string().contains("is used by another process"), "{error}");
    drop(reader);
    one_stand.connected().await;
}

#[tokio::test]
async fn what_is_no_store_of_this_release_is_not_copied() {
    let (target, _stand) = empty(Backend::Postgres).await;
    let (missing, stand) = empty(Backend::Sqlite).await;
    assert!(refused(&missing, &target).await.contains("there is no store "));
    let path = stand.settings.path.clone().unwrap();
    let mut connection = raw(&path).await;
    sqlx::raw_sql("create table other (a)").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    assert!(refused(&missing, &target).await.contains("is a database of something else"));
    assert!(chain(&missing.overview().await.unwrap_err()).contains("is a database of something else"));
    std::fs::remove_file(&path).unwrap();
    of_schema(&path, 5).await;
    assert!(refused(&missing, &target).await.contains("has schema 5, and this release's is 11: run `stepward store migrate "));
    let mut connection = raw(&path).await;
    sqlx::raw_sql("pragma user_version = 99").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    assert!(refused(&missing, &target).await.contains("has schema 99, and this release knows 11 at most"));
    assert!(chain(&missing.overview().await.unwrap_err()).contains("use the release that wrote it"));
    assert!(chain(&missing.migrate().await.unwrap_err()).contains("use the release that wrote it"));

    let (file, _stand) = empty(Backend::Sqlite).await;
    let (server, stand) = empty(Backend::Postgres).await;
    assert!(refused(&server, &file).await.contains("there is no store postgres://"));
    cluster().await.run(&database(&stand), "create schema stepward; create table stepward.other (a int)").await.unwrap();
    for error in [refused(&server, &file).await, chain(&server.overview().await.unwrap_err()), chain(&server.migrate().await.unwrap_err())]
    {
        assert!(error.contains("that is no store"), "{error}");
    }
    let (server, stand) = empty(Backend::Postgres).await;
    server.migrate().await.unwrap();
    assert!(refused(&server, &server).await.contains("is the store that is to be copied"));
    cluster().await.run(&database(&stand), "update stepward.schema_version set version = 99").await.unwrap();
    for error in [refused(&server, &file).await, chain(&server.overview().await.unwrap_err()), chain(&server.migrate().await.unwrap_err())]
    {
        assert!(error.contains("has schema 99"), "{error}");
    }
    let away = Place::Server(Box::new(Server::parse("postgres://me@/stepward?host=/nowhere/at/all", None).unwrap()));
    let error = away.overview().await.unwrap_err();
    assert!(error.is_away() && chain(&error).contains("/nowhere/at/all:5432: "), "{}", chain(&error));
}

async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}

/// Makes a store as a release with this schema left it.
async fn of_schema(path: &Path, version: usize) {
    let mut connection = raw(path).await;
    sqlx::raw_sql("pragma application_id = 0x53545750").execute(&mut connection).await.unwrap();
    for script in &MIGRATIONS[..version] {
        sqlx::raw_sql(*script).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_migration_says_from_which_schema_to_which() {
    let to = MIGRATIONS.len() as i64;
    for version in 1..=MIGRATIONS.len() {
        let (place, stand) = empty(Backend::Sqlite).await;
        let path = stand.settings.path.clone().unwrap();
        of_schema(&path, version).await;
        let before = std::fs::read(&path).unwrap();
        let found = place.overview().await.unwrap().unwrap();
        assert_eq!((found.schema, found.known, found.services, found.contents), (version as i64, to, 0, Contents::default()));
        assert_eq!((std::fs::read(&path).unwrap(), names(path.parent().unwrap()).len()), (before, 1), "nothing is changed");
        assert_eq!(place.migrate().await.unwrap(), Migrated { from: Some(version as i64), to });
        assert_eq!(place.migrate().await.unwrap(), Migrated { from: Some(to), to });
        assert_eq!(names(path.parent().unwrap()), ["stepward.db", "stepward.db.lock"]);
        let service = stand.connected().await;
        assert!(chain(&place.migrate().await.unwrap_err()).contains("stop the service first"));
        drop(service);
    }
    let (place, stand) = empty(Backend::Sqlite).await;
    assert!(chain(&place.migrate().await.unwrap_err()).contains("there is no store"));
    assert!(!stand.settings.path.unwrap().exists());
    let (place, stand) = empty(Backend::Postgres).await;
    assert_eq!(place.overview().await.unwrap(), None);
    let Migrated { from, to } = place.migrate().await.unwrap();
    assert_eq!(from, None);
    assert_eq!(place.migrate().await.unwrap(), Migrated { from: Some(to), to });
    stand.connected().await;
}

#[tokio::test]
async fn the_overview_has_the_numbers_of_what_there_is() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let (place, stand) = empty(backend).await;
        fill(&stand).await;
        let found = place.overview().await.unwrap().unwrap();
        let texts = texts().len() as u64;
        let Contents { locks, exemptions, decisions, keys, links, oldest, newest } = found.contents;
        assert_eq!((locks, exemptions, decisions, keys, links), (texts, 1, texts + 3, 3, 500));
        assert_eq!((oldest.unwrap().at(), newest.unwrap().at()), (at(0), at(500)));
        assert!(found.bytes > 100_000 && found.place == place.to_string(), "{found:?}");
    }
    let (place, stand) = empty(Backend::Postgres).await;
    let _service = stand.connected().await;
    assert!(place.overview().await.unwrap().unwrap().services > 0);
}

#[tokio::test]
async fn a_file_with_a_log_is_copied_with_it_and_neither_changes() {
    let (_, stand) = empty(Backend::Sqlite).await;
    let (mut writer, _, store) = stand.connected().await;
    store.keep(&ruling("A", None), &[]).await.unwrap();
    writer.write(&[Box::new(decision(1, "A"))]).await;
    let (killed, killed_stand) = empty(Backend::Sqlite).await;
    let [from, to] = [&stand, &killed_stand].map(|stand| stand.settings.path.clone().unwrap());
    let beside = |path: &Path, suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    for suffix in ["", "-wal"] {
        std::fs::copy(beside(&from, suffix), beside(&to, suffix)).unwrap();
    }
    drop((writer, store));
    let read = || ["", "-wal"].map(|suffix| std::fs::read(beside(&to, suffix)).unwrap());
    let before = read();
    assert!(!before[1].is_empty());
    let (other, other_stand) = empty(Backend::Postgres).await;
    assert_eq!(killed.overview().await.unwrap().unwrap().contents.decisions, 1);
    copied(&killed, &other).await.unwrap();
    assert_eq!(read(), before);
    let (_, _, store) = other_stand.connected().await;
    assert_eq!(store.rulings(Span::at(at(0))).await.unwrap().len(), 1);
    // A log that is another file's is not laid over this one.
    std::fs::write(beside(&to, ".lock"), "of another start").unwrap();
    let (other, _other_stand) = empty(Backend::Postgres).await;
    assert!(refused(&killed, &other).await.contains("is not of the store"));
    assert_eq!(read(), before);
}

#[tokio::test]
async fn every_table_is_copied_or_left_out_for_a_reason() {
    let copied: BTreeSet<&str> = TABLES.iter().map(|table| table.name).collect();
    let (file, stand) = empty(Backend::Sqlite).await;
    stand.connected().await;
    let Place::File(path) = &file else { panic!("it is in a file") };
    let mut connection = raw(path).await;
    let found: Vec<String> =
        sqlx::query_scalar("select name from sqlite_schema where type = 'table'").fetch_all(&mut connection).await.unwrap();
    // Whose the file is, and a row that means nothing.
    let left = BTreeSet::from(["owner", "attempt"]);
    let of_sqlite: BTreeSet<&str> = TABLES.iter().filter(|table| table.sqlite_order.is_some()).map(|table| table.name).collect();
    assert_eq!(found.iter().map(String::as_str).collect::<BTreeSet<_>>(), of_sqlite.union(&left).copied().collect());
    let (server, stand) = empty(Backend::Postgres).await;
    server.migrate().await.unwrap();
    let mut connection = cluster().await.connect(&database(&stand)).await.unwrap();
    let tables = "select tablename::text from pg_tables where schemaname = 'stepward'";
    let found: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut connection).await.unwrap();
    // A new store has its own id, counts its own changes, and has its own services, who tell each other. Who sent a webhook is in
    // the record of decisions too.
    let left = BTreeSet::from([
        "schema_version",
        "changes_of_rulings",
        "news",
        "replicas",
        "webhooks",
        "attempt",
        "count_of_notices",
        "notices",
        "leases",
        "lists",
        "pages",
    ]);
    assert_eq!(found.iter().map(String::as_str).collect::<BTreeSet<_>>(), copied.union(&left).copied().collect());
    for table in TABLES {
        let columns = format!(
            "select column_name::text from information_schema.columns where table_schema = 'stepward' and table_name = '{}'",
            table.name
        );
        let found: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(columns)).fetch_all(&mut connection).await.unwrap();
        // The number of a decision is given anew, and a new store remembers what was forgotten for a day of its own.
        let named = table.columns.iter().map(|column| column.name).chain(["seq", "one", "at"]);
        let named: BTreeSet<&str> = named.collect();
        assert!(found.iter().all(|column| named.contains(column.as_str())), "{}: {found:?}", table.name);
    }
}

#[tokio::test]
async fn a_dump_of_a_server_is_restored_as_the_guide_says() {
    let (_, stand) = empty(Backend::Postgres).await;
    fill(&stand).await;
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("stepward.dump");
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(scripted::program(program).unwrap()).args(args).env_clear().output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let url = cluster().await.url(&database(&stand));
    run("pg_dump", &["--schema=stepward", "--format=custom", "--file", dump.to_str().unwrap(), &url]);
    let kept = ruling("since", None);
    stand.connected().await.2.keep(&kept, &[]).await.unwrap();
    let (place, restored) = empty(Backend::Postgres).await;
    let url = cluster().await.url(&database(&restored));
    run("pg_restore", &["--exit-on-error", "--single-transaction", "--dbname", &url, dump.to_str().unwrap()]);
    assert_eq!(place.migrate().await.unwrap().from, place.overview().await.unwrap().map(|overview| overview.known));
    let (mut writer, _, store) = restored.connected().await;
    let rulings = store.rulings(Span::at(at(0))).await.unwrap();
    assert!(rulings.len() == texts().len() + 1 && !rulings.contains(&kept), "a lock that was made since is made anew");
    store.keep(&kept, &[]).await.unwrap();
    writer.write(&[Box::new(decision(1, "A"))]).await;
    assert_eq!(place.overview().await.unwrap().unwrap().contents.decisions, texts().len() as u64 + 4);
    // Over the store that there is.
    run("pg_restore", &["--clean", "--if-exists", "--exit-on-error", "--single-transaction", "--dbname", &url, dump.to_str().unwrap()]);
    assert_eq!(place.overview().await.unwrap().unwrap().contents.locks, texts().len() as u64);
}

/// The settings of a store at a place.
#[test]
fn the_place_of_a_service_is_its_server_or_its_file() {
    let server = Server::parse("postgres://me@db/stepward", None).unwrap();
    let settings = Settings { path: Some("/a".into()), ..Settings::none() };
    assert_eq!(Place::of(&settings), Some(Place::File("/a".into())));
    let settings = Settings { server: Some(server.clone()), ..settings };
    assert_eq!(Place::of(&settings), Some(Place::Server(Box::new(server))));
    assert_eq!(Place::of(&Settings::none()), None);
}
