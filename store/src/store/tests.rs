use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use posture::identity::{IdentifierKind, Trust};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use super::*;
use crate::fixture::{allowed, at, decision, identity, key, ruling};
use crate::learned::LEARNED;
use crate::ruling::RulingKind;
use crate::scripted::bounded;
use crate::sent::Sender;
use crate::sqlite::{BackupError, MIGRATIONS, OpenError, back_up, examine};

fn settings(path: PathBuf) -> Settings {
    Settings { path: Some(path), bind_keys: true, ..Settings::none() }
}

async fn open(path: &Path) -> Result<Store, OpenError> {
    Store::open(&settings(path.to_owned()), Arc::<AtomicU64>::default()).await.map_err(|error| match error {
        database::OpenError::File(error) => error,
        database::OpenError::Server(error) => panic!("{error}"),
    })
}

async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}

async fn connected(path: &Path) -> (Writer, Arc<AtomicU64>, Store) {
    let dropped = Arc::<AtomicU64>::default();
    let (work, _) = mpsc::channel(1);
    let settings = Settings { path: Some(path.to_owned()), ..bounded() };
    let (writer, store) = Store::connect(&settings, moka::sync::Cache::new(0), work, Arc::clone(&dropped) as _).await.unwrap();
    (writer.unwrap(), dropped, store)
}

/// The connection of a writer to its SQLite file.
fn connection(writer: &mut Writer) -> &mut SqliteConnection {
    writer.records().sqlite().unwrap().connection()
}

#[tokio::test]
async fn makes_folder_and_file_for_their_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/stepward.db");
    let store = open(&path).await.unwrap();
    store.keep(&ruling("A", None), &[]).await.unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path().join("a")), 0o700);
    for suffix in ["", "-wal", "-shm", ".lock"] {
        assert_eq!(mode(&folder.path().join(format!("a/b/stepward.db{suffix}"))), 0o600, "{suffix}");
    }
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let _store = open(&path).await.unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }) && error.to_string().contains("a store of its own"), "{error}");
}

#[tokio::test]
async fn refuses_a_database_of_something_else_and_leaves_it_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    sqlx::raw_sql("CREATE TABLE things (name TEXT)").execute(&mut raw(&path).await).await.unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn refuses_a_file_of_a_later_release_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    open(&path).await.unwrap().close().await;
    sqlx::raw_sql("PRAGMA user_version = 700").execute(&mut raw(&path).await).await.unwrap();
    let error = open(&path).await.unwrap_err().to_string();
    let said = format!("has schema 700, and this release knows {}", MIGRATIONS.len());
    assert!(error.contains(&said) && error.contains("use the release that wrote it"), "{error}");
}

#[tokio::test]
async fn refuses_a_damaged_file_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    std::fs::write(&path, "these are no pages of a database. ".repeat(400)).unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }) && error.to_string().contains("move it aside"), "{error}");
}

#[tokio::test]
async fn refuses_a_file_whose_locks_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let store = open(&path).await.unwrap();
    store.keep(&ruling("A", None), &[]).await.unwrap();
    store.close().await;
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn refuses_a_place_that_cannot_be_written_to() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    std::fs::create_dir(folder.path().join("folder.db")).unwrap();
    for name in ["file/stepward.db", "folder.db"] {
        let error = open(&folder.path().join(name)).await.unwrap_err();
        assert!(matches!(error, OpenError::NotWritable { .. }) && error.to_string().contains("[store] path"), "{name}: {error}");
    }
}

#[tokio::test]
async fn e14_a_backup_of_a_running_store_is_whole_and_can_be_put_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let at_ = |name: &str| folder.path().join(name);
    let store = open(&at_("stepward.db")).await.unwrap();
    store.keep(&ruling("A", None), &[]).await.unwrap();
    store.record(decision(1, "A"));
    store.flush().await;
    let bytes = back_up(&at_("stepward.db"), &at_("backup.db")).await.unwrap();
    let made = at_("backup.db").metadata().unwrap();
    assert_eq!((bytes, made.permissions().mode() & 0o777), (made.len(), 0o600));
    assert!(!at_("backup.db.new").exists());
    assert!(matches!(back_up(&at_("stepward.db"), &at_("backup.db")).await, Err(BackupError::Taken)), "nothing is written over");
    assert!(matches!(back_up(&at_("nothing.db"), &at_("other.db")).await, Err(BackupError::Missing)));
    assert!(matches!(back_up(&at_("stepward.db"), &at_("no/folder.db")).await, Err(BackupError::NotWritable(_))));
    assert!(!at_("other.db").exists());
    // The service has noticed nothing, and goes on.
    store.keep(&ruling("B", None), &[]).await.unwrap();
    store.look_after().await;
    assert_eq!(store.trouble(), None);
    store.close().await;
    drop(store);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(beside(&at_("stepward.db"), suffix));
    }
    std::fs::rename(at_("backup.db"), at_("stepward.db")).unwrap();
    let store = open(&at_("stepward.db")).await.unwrap();
    assert_eq!(store.rulings(Span::at(at(100))).await.unwrap().iter().map(|ruling| ruling.device.clone()).collect::<Vec<_>>(), ["A"]);
    assert_eq!(store.decisions(&Wanted { limit: 9, ..Wanted::default() }).await.unwrap().len(), 1);
    // A stopped store can be copied as well.
    store.close().await;
    drop(store);
    back_up(&at_("stepward.db"), &at_("stopped.db")).await.unwrap();
}

#[tokio::test]
async fn e18_a_backup_to_a_name_that_is_not_utf_8_is_refused_before_anything_is_written() {
    use std::os::unix::ffi::OsStringExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let _store = open(&path).await.unwrap();
    let to = folder.path().join("to");
    std::fs::create_dir(&to).unwrap();
    let name = std::ffi::OsString::from_vec(b"\xffodd.db".to_vec());
    let error = back_up(&path, &to.join(name)).await.unwrap_err();
    assert!(matches!(error, BackupError::NotText) && error.to_string().contains("choose another name"), "{error}");
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 0);
}

#[tokio::test]
async fn g9_a_store_that_is_named_by_a_link_is_where_the_link_leads() {
    let folder = tempfile::tempdir().unwrap();
    let [links, disk] = ["links", "disk"].map(|name| folder.path().join(name));
    for folder in [&links, &disk] {
        std::fs::create_dir(folder).unwrap();
    }
    let (link, other, file) = (links.join("stepward.db"), links.join("other.db"), disk.join("stepward.db"));
    std::os::unix::fs::symlink("../disk/stepward.db", &link).unwrap();
    std::os::unix::fs::symlink("stepward.db", &other).unwrap();
    // The link leads to nothing in the first round, and to the store in the second.
    for found in 0..2 {
        examine(&link).unwrap();
        let store = open(&link).await.unwrap();
        assert_eq!((store.path(), store.rulings(Span::at(at(0))).await.unwrap().len()), (Some(&*file), found));
        store.keep(&ruling("A", None), &[]).await.unwrap();
        assert!(matches!(open(&other).await.unwrap_err(), OpenError::InUse { .. }), "by another link as well");
        store.close().await;
        drop(store);
    }
    assert!(link.is_symlink() && std::fs::read_dir(&links).unwrap().count() == 2, "nothing is made beside the link");
    let circle = links.join("circle.db");
    std::os::unix::fs::symlink("circle.db", &circle).unwrap();
    assert!(matches!(examine(&circle), Err(OpenError::NotWritable { .. })));
    assert!(matches!(open(&circle).await, Err(OpenError::NotWritable { .. })));
}

#[tokio::test]
async fn a_disk_that_takes_nothing_costs_records_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    for (name, sabotage, mend) in [
        ("full.db", "PRAGMA max_page_count = 1", "PRAGMA max_page_count = 100000"),
        ("read_only.db", "PRAGMA query_only = 1", "PRAGMA query_only = 0"),
    ] {
        let (mut writer, dropped, store) = connected(&folder.path().join(name)).await;
        let batch: Vec<_> = (0..40).map(|number| Box::new(decision(number, "A"))).collect();
        sqlx::raw_sql(sabotage).execute(connection(&mut writer)).await.unwrap();
        writer.write(&batch).await;
        assert_eq!(dropped.load(Ordering::Relaxed), 40, "{name}");
        let trouble = store.trouble().unwrap();
        assert!(trouble.starts_with("decisions are made and not kept, 40 since the start: "), "e10: {trouble}");
        sqlx::raw_sql(mend).execute(connection(&mut writer)).await.unwrap();
        writer.write(&batch).await;
        assert_eq!((dropped.load(Ordering::Relaxed), writer.stored()), (40, 40), "{name}");
        sqlx::raw_sql(sabotage).execute(&mut *store.database().unwrap().sqlite().unwrap().connection().await).await.unwrap();
        let error = store.keep(&ruling(&"A".repeat(20_000), None), &[]).await.unwrap_err();
        assert!(matches!(error, StoreError::Full | StoreError::ReadOnly), "{error:?}");
    }
}

#[tokio::test]
async fn a_file_that_was_removed_or_replaced_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let (mut writer, dropped, store) = connected(&path).await;
    std::fs::remove_file(&path).unwrap();
    assert_eq!(store.trouble(), None);
    for _ in 0..2 {
        writer.write(&[Box::new(decision(1, "A"))]).await;
        assert!(matches!(store.keep(&ruling("A", None), &[]).await, Err(StoreError::Gone)));
        assert!(matches!(store.forget(&[DecisionId::first(at(1))]).await, Err(StoreError::Gone)));
        std::fs::write(&path, "").unwrap();
    }
    assert_eq!(dropped.load(Ordering::Relaxed), 2);
}

/// Writes decisions and their keys as earlier releases did.
async fn write_as_before(connection: &mut SqliteConnection, batch: &[Box<Decision>]) {
    for decision in batch {
        sqlx::query("INSERT INTO decisions (id, device, webhook, decision, code, record) VALUES (?, ?, ?, ?, ?, ?)")
            .bind(decision.id.to_string())
            .bind(&decision.device.as_ref().unwrap().identifier)
            .bind(&decision.webhook)
            .bind(decision.decision)
            .bind(&decision.code)
            .bind(decision.record().unwrap())
            .execute(&mut *connection)
            .await
            .unwrap();
        let Some((key, Identity { device, trust })) = &decision.key else { continue };
        assert_eq!(*trust, Trust::Attested);
        sqlx::query("INSERT INTO keys (sha256, kind, identifier, device, trust, allowed_at) VALUES (?, ?, ?, ?, 30, ?)")
            .bind(key.as_bytes().as_slice())
            .bind(device.kind().as_str())
            .bind(device.stated())
            .bind(device.normal())
            .bind(decision.at.as_nanos())
            .execute(&mut *connection)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_file_of_an_earlier_schema_gets_what_is_new_and_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let newest = MIGRATIONS.len();
    for schema in 1..newest {
        let path = folder.path().join(format!("{schema}.db"));
        let mut before = raw(&path).await;
        sqlx::raw_sql("PRAGMA application_id = 0x53545750").execute(&mut before).await.unwrap();
        for script in &MIGRATIONS[..schema] {
            sqlx::raw_sql(*script).execute(&mut before).await.unwrap();
        }
        let (lock, old, new) = (ruling("A", None), key(), key());
        let exemption = Ruling::new(RulingKind::Exemption, None, "B", "a reason", "uid 0", at(101), Some(Duration::from_secs(60)));
        for ruling in [&lock, &exemption] {
            // The row has no kind, as a release before the kinds of identifiers wrote it.
            sqlx::query("INSERT INTO rulings (id, kind, device, reason, made_by, made_at, until) VALUES (?, ?, ?, ?, ?, ?, ?)")
                .bind(ruling.id.to_string())
                .bind(ruling.kind.as_str())
                .bind(&ruling.device)
                .bind(&ruling.reason)
                .bind(&ruling.made_by)
                .bind(ruling.made_at.as_nanos())
                .bind(ruling.until.map(UnixTime::as_nanos))
                .execute(&mut before)
                .await
                .unwrap();
        }
        assert_eq!((lock.identifier_kind, exemption.identifier_kind), (None, Some(IdentifierKind::Serial)));
        // The first schema has no keys.
        let old = (schema > 1).then_some(old);
        let mut batch: Vec<_> = (0..50).map(|number| Box::new(decision(number, if number % 5 == 0 { "A" } else { "B" }))).collect();
        batch[0].key = old.map(|key| (key, identity("A", Trust::Attested)));
        write_as_before(&mut before, &batch).await;
        before.close().await.unwrap();
        let store = open(&path).await.unwrap();
        assert_eq!(store.rulings(Span::at(at(0))).await.unwrap(), [lock, exemption], "schema {schema}");
        store.record(allowed(50, new, "A", Trust::Claimed));
        let of_a = store.decisions(&Wanted { device: Some("A".to_owned()), limit: 100, ..Wanted::default() }).await.unwrap();
        let expected: Vec<_> = (0..=50).rev().step_by(5).map(|seconds| at(seconds).as_nanos()).collect();
        assert_eq!(of_a.iter().map(|summary| summary.id.at().as_nanos()).collect::<Vec<_>>(), expected, "schema {schema}");
        assert_eq!(store.device_of(new, at(50)).await.unwrap(), Some(identity("A", Trust::Claimed)));
        if let Some(old) = old {
            assert_eq!(store.device_of(old, at(50)).await.unwrap(), Some(identity("A", Trust::Attested)));
        }
    }
}

#[tokio::test]
async fn without_a_store_nothing_is_kept_and_that_is_said() {
    let store = Store::open(&Settings::none(), Arc::<AtomicU64>::default()).await.unwrap();
    store.record(decision(1, "A"));
    store.flush().await;
    store.close().await;
    assert!(!store.keeps_decisions() && store.path().is_none());
    assert!(matches!(store.decision(DecisionId::first(at(1))).await, Err(StoreError::None)));
    assert!(matches!(store.keep(&ruling("A", None), &[]).await, Err(StoreError::None)));
}

#[tokio::test]
async fn a8_what_cannot_be_written_waits_and_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, _, store) = connected(&folder.path().join("stepward.db")).await;
    sqlx::raw_sql("PRAGMA query_only = 1").execute(connection(&mut writer)).await.unwrap();
    let pairs: Vec<_> = (0..i64::try_from(LEARNED).unwrap()).map(|number| (Mark(number), Mark(-number - 1))).collect();
    assert!(store.link(&pairs[..1]) && !writer.write_learned().await);
    assert!(store.link(&pairs) && !store.link(&pairs[..1]), "there is no room for more");
    sqlx::raw_sql("PRAGMA query_only = 0").execute(connection(&mut writer)).await.unwrap();
    while writer.write_learned().await {}
    assert_eq!(writer.records().count_links().await.unwrap(), u64::try_from(LEARNED).unwrap());
    assert!(store.link(&pairs[..1]));
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

#[tokio::test]
async fn g9_to_look_at_the_files_leaves_sqlites_locks_on_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let (_writer, _, store) = connected(&path).await;
    let index = std::fs::metadata(beside(&path, "-shm")).unwrap().ino();
    // A lock on byte 128 of the index says that it is in use: without that lock the next program begins the index anew.
    let in_use = || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let (own, of_index) = (format!(" {} ", std::process::id()), format!(":{index} 128 128"));
        locks.lines().any(|line| line.contains(&own) && line.contains(&of_index))
    };
    assert!(in_use());
    store.keep(&ruling("A", None), &[]).await.unwrap();
    store.look_after().await;
    assert!(in_use());
}

#[tokio::test]
async fn g9_a_store_of_which_any_file_was_removed_or_replaced_takes_nothing_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let path = folder.path().join(format!("of{suffix}.db"));
        let (_writer, _, store) = connected(&path).await;
        store.keep(&ruling("A", None), &[]).await.unwrap();
        store.look_after().await;
        assert_eq!(store.trouble(), None, "{suffix}");
        std::fs::remove_file(beside(&path, suffix)).unwrap();
        for _ in 0..2 {
            assert!(matches!(store.keep(&ruling("B", None), &[]).await, Err(StoreError::Gone)), "{suffix}");
            store.look_after().await;
            assert!(store.trouble().unwrap().contains(RECIPE), "{suffix}");
            std::fs::write(beside(&path, suffix), "another one").unwrap();
        }
    }
    let path = folder.path().join("emptied.db");
    let (_writer, _, store) = connected(&path).await;
    std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    assert!(matches!(store.keep(&ruling("B", None), &[]).await, Err(StoreError::Gone)));
}

#[test]
fn e19_whoever_is_called_for_a_lost_store_is_told_the_steps_and_where_they_stand() {
    let file = |name: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap();
    let alerts = file("deploy/prometheus/stepward.rules.yaml").split_whitespace().collect::<Vec<_>>().join(" ");
    let alert = alerts.split("- alert: ").find(|alert| alert.starts_with("StepwardStoreLost ")).unwrap();
    assert!(alert.contains(RECIPE), "{alert}");
    let guide = file("docs/locks.md");
    let (_, steps) = guide.split_once("\n## When the store is lost\n").unwrap();
    for word in ["`stepward locks`", "stop", "-wal", "-shm", "backup", "make anew"] {
        assert!(steps.split("\n## ").next().unwrap().contains(word), "{word}");
    }
    let damaged = StoreError::Damaged(sqlx::Error::PoolClosed);
    assert!(StoreError::Gone.text().contains(RECIPE) && damaged.text().contains(RECIPE), "{}", damaged.text());
}

#[tokio::test]
async fn g9_a_second_service_is_kept_out_though_the_lock_file_was_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let store = open(&path).await.unwrap();
    for _ in 0..2 {
        // In the second round the lock file is one that nobody uses.
        let _ = std::fs::remove_file(beside(&path, ".lock"));
        let error = open(&path).await.unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    }
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    store.close().await;
    drop(store);
    open(&path).await.unwrap();
}

#[tokio::test]
async fn g9_a_store_that_was_emptied_is_refused_and_one_that_was_removed_whole_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let store = open(&path).await.unwrap();
    store.keep(&ruling("A", None), &[]).await.unwrap();
    store.close().await;
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    let log = beside(&path, "-wal");
    for (emptied, logged) in [(true, false), (true, true), (false, true)] {
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_file(&log);
        if emptied {
            std::fs::write(&path, "").unwrap();
        }
        if logged {
            std::fs::write(&log, "what was not written yet").unwrap();
        }
        let error = open(&path).await.unwrap_err();
        assert!(matches!(error, OpenError::Emptied { .. }) && error.to_string().contains("put a backup in its place"), "{error}");
        assert_eq!((path.exists(), log.exists()), (emptied, logged), "nothing was changed");
    }
    // The steps are those that the message names.
    std::fs::remove_file(&log).unwrap();
    std::fs::write(&path, whole).unwrap();
    let store = open(&path).await.unwrap();
    assert_eq!(store.rulings(Span::at(at(100))).await.unwrap().len(), 1);
    store.close().await;
    drop(store);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(beside(&path, suffix));
    }
    std::fs::write(beside(&path, ".new"), "what a start left that was ended in the middle").unwrap();
    assert_eq!(open(&path).await.unwrap().rulings(Span::at(at(100))).await.unwrap(), []);
    assert!(!beside(&path, ".new").exists());
}

#[tokio::test]
async fn g8_callers_are_told_apart_by_all_of_their_names_and_what_an_earlier_release_has_cut_is_anybodys() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, _, store) = connected(&folder.path().join("stepward.db")).await;
    // The first caller is kept whole; of the others, two end in different letters behind what is kept, and one in a long letter.
    let callers = [
        "a".repeat(508),
        "a".repeat(509),
        "a".repeat(512),
        format!("{}b", "a".repeat(600)),
        format!("{}c", "a".repeat(600)),
        "é".repeat(300),
    ];
    let of = |(second, caller): (i64, &String)| Box::new(Decision { caller: Some(caller.clone()), ..decision(second, "A") });
    let mut batch: Vec<_> = (0..).zip(&callers).map(of).collect();
    batch.iter_mut().for_each(|decision| decision.bound());
    writer.write(&batch).await;
    let sent = async || -> Vec<Sender> {
        let sent = store.sent(Duration::from_secs(30), 100).await.unwrap();
        sent.into_iter().rev().map(|sent| sent.caller).collect()
    };
    let expected: Vec<_> = callers.iter().map(|caller| Sender::of(caller)).collect();
    assert_eq!(sent().await, expected);
    assert_ne!(expected[3], expected[4]);
    for digest in ["NULL", "x'00'"] {
        // Earlier releases wrote null; no release wrote the other digest.
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("UPDATE decisions SET caller = {digest}")))
            .execute(connection(&mut writer))
            .await
            .unwrap();
        let whole = if digest == "NULL" { expected[0] } else { Sender::Unknown };
        assert_eq!(sent().await, [&[whole][..], &[Sender::Unknown; 5]].concat());
    }
}

#[tokio::test]
async fn g9_a_log_that_is_cut_short_is_noticed_before_a_ruling_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    for (name, cut) in [("empty", 0), ("header", 40), ("half", 0)] {
        let path = folder.path().join(name);
        let (writer, _, store) = connected(&path).await;
        for number in 0..20 {
            store.keep(&ruling(&format!("A{number}"), None), &[]).await.unwrap();
        }
        let log = std::fs::File::options().write(true).open(beside(&path, "-wal")).unwrap();
        let length = log.metadata().unwrap().len();
        if name == "half" {
            // The file keeps its length, but what was written in its middle is gone.
            log.set_len(length / 2).unwrap();
            log.set_len(length).unwrap();
        } else {
            log.set_len(cut).unwrap();
            store.look_after().await;
            assert!(store.trouble().unwrap().contains("cut short"));
        }
        assert!(matches!(store.keep(&ruling("B", None), &[]).await, Err(StoreError::Gone)), "{name}");
        assert!(matches!(store.forget(&[DecisionId::new(at(0))]).await, Err(StoreError::Gone)), "{name}");
        drop((writer, store));
    }
}

#[tokio::test]
async fn g9_a_database_that_somebody_writes_to_in_place_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let (mut writer, _, store) = connected(&path).await;
    store.keep(&ruling("A", None), &[]).await.unwrap();
    // Neither pages that the store itself moves nor a log that was begun anew are taken for foreign writes.
    let batch: Vec<_> = (0..2000).map(|number| Box::new(decision(number, &"A".repeat(1000)))).collect();
    for batch in batch.chunks(500) {
        writer.write(batch).await;
        store.keep(&ruling("B", None), &[]).await.unwrap();
    }
    assert!(path.metadata().unwrap().len() > 1 << 20, "{:?}", path.metadata());
    let length = beside(&path, "-wal").metadata().unwrap().len();
    assert!(length < 16 << 20, "{length}");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(store.keep(&ruling("C", None), &[]).await, Err(StoreError::Gone)));
    store.look_after().await;
    assert!(store.trouble().unwrap().contains("written to by somebody else"));
}

#[tokio::test]
async fn g9_a_backup_beside_the_log_of_another_store_is_refused_and_what_the_message_says_leads_to_a_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    let store = open(&path).await.unwrap();
    store.keep(&ruling("A", None), &[]).await.unwrap();
    store.close().await;
    drop(store);
    let backup = std::fs::read(&path).unwrap();
    let killed = |name: &str| {
        let copy = folder.path().join(name);
        for suffix in ["", "-wal", "-shm", ".lock"] {
            std::fs::copy(beside(&path, suffix), beside(&copy, suffix)).unwrap();
        }
        copy
    };
    let store = open(&path).await.unwrap();
    for number in 0..200 {
        store.keep(&ruling(&format!("B{number}"), None), &[]).await.unwrap();
    }
    let (copy, whole) = (killed("copy.db"), killed("whole.db"));
    store.close().await;
    drop(store);
    assert_eq!(open(&whole).await.unwrap().rulings(Span::at(at(0))).await.unwrap().len(), 201, "what was killed goes on");
    std::fs::write(&copy, &backup).unwrap();
    let error = open(&copy).await.unwrap_err();
    assert!(matches!(error, OpenError::OfAnother { .. }) && error.to_string().contains("-wal is not of the store"), "{error}");
    for suffix in ["-wal", "-shm"] {
        std::fs::remove_file(beside(&copy, suffix)).unwrap();
    }
    assert_eq!(open(&copy).await.unwrap().rulings(Span::at(at(0))).await.unwrap().len(), 1);
}

#[tokio::test]
async fn g12_a_pipe_in_the_place_of_the_store_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepward.db");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let opened = tokio::time::timeout(Duration::from_secs(5), open(&path)).await;
    assert!(matches!(opened, Ok(Err(OpenError::NotWritable { .. }))));
}
