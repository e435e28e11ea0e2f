use std::sync::atomic::AtomicU64;
use std::time::Instant;

use posture::identity::{IdentifierKind, Trust};
use posture::secret::Secret;

use super::scripted::Cluster;
use super::*;
use crate::database;
use crate::fixture::{Backend, Stand, allowed, at, cluster, decision, identity, key, ruling};
use crate::notices::{About, Noticed};
use crate::scripted::bounded;
use crate::settings::Settings;
use crate::store::{QUEUE, Store};
use crate::writer::HELD;

/// Longest time for which a caller of the store waits, and what a busy machine adds.
const PATIENCE: Duration = Duration::from_secs(12);

async fn open(server: &Server) -> Result<Store, OpenError> {
    let settings = Settings { server: Some(server.clone()), bind_keys: true, ..Settings::none() };
    Store::open(&settings, Arc::<AtomicU64>::default()).await.map_err(|error| match error {
        database::OpenError::Server(error) => error,
        database::OpenError::File(error) => panic!("{error}"),
    })
}

/// The whole chain of an error.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn name(server: &Server) -> String {
    server.to_string().rsplit_once('/').unwrap().1.to_owned()
}

async fn devices(store: &Store) -> Vec<String> {
    let mut devices: Vec<_> = store.rulings(Span::at(at(0))).await.unwrap().into_iter().map(|ruling| ruling.device).collect();
    devices.sort();
    devices
}

/// Asks again and again until there is an answer, which there has to be soon.
async fn soon<T>(mut ask: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{}", error.text()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn several_starts_at_once_make_the_schema_once() {
    let server = cluster().await.database().await.unwrap();
    let stores = futures::future::join_all((0..8).map(|_| open(&server))).await;
    let stores: Vec<_> = stores.into_iter().map(Result::unwrap).collect();
    stores[0].keep(&ruling("A", None), &[]).await.unwrap();
    assert_eq!(devices(&stores[7]).await, ["A"]);
    let mut connection = cluster().await.connect(&name(&server)).await.unwrap();
    let rows: Vec<(i64, String)> =
        sqlx::query_as("select version, store from stepward.schema_version").fetch_all(&mut connection).await.unwrap();
    assert_eq!((rows.len(), rows[0].0, rows[0].1.len()), (1, i64::try_from(schema::MIGRATIONS.len()).unwrap(), 32));
}

#[tokio::test]
async fn refuses_a_schema_of_a_later_release_and_leaves_it_as_it_was() {
    let server = cluster().await.database().await.unwrap();
    open(&server).await.unwrap().close().await;
    cluster().await.run(&name(&server), "update stepward.schema_version set version = 700").await.unwrap();
    let error = open(&server).await.unwrap_err();
    let said = format!("has schema 700, and this release knows {}", schema::MIGRATIONS.len());
    assert!(matches!(error, OpenError::Newer { found: 700, .. }) && error.to_string().contains(&said), "{error}");
    assert!(error.to_string().contains("use the release that wrote it"), "{error}");
}

#[tokio::test]
async fn refuses_a_schema_of_something_else_and_leaves_it_as_it_was() {
    for of_another in [
        "create table stepward.things (name text)",
        "create table stepward.schema_version (name text)",
        "create table stepward.schema_version (version bigint, store text)",
    ] {
        let server = cluster().await.database().await.unwrap();
        cluster().await.run(&name(&server), &format!("create schema stepward; {of_another}")).await.unwrap();
        let error = open(&server).await.unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }) && error.to_string().contains("choose another database"), "{error}");
        let mut connection = cluster().await.connect(&name(&server)).await.unwrap();
        let tables = "select count(*) from pg_class join pg_namespace on pg_namespace.oid = relnamespace where nspname = 'stepward'";
        let tables: i64 = sqlx::query_scalar(tables).fetch_one(&mut connection).await.unwrap();
        assert_eq!(tables, 1, "nothing was added: {of_another}");
    }
}

#[tokio::test]
async fn a_user_who_may_make_no_schema_needs_one_that_was_made_for_it() {
    let server = cluster().await.database().await.unwrap();
    let database = name(&server);
    cluster().await.run(&database, "create role of_little_power login").await.unwrap();
    let server = Server::parse(&cluster().await.url(&database).replace("stepward@", "of_little_power@"), None).unwrap();
    let error = open(&server).await.unwrap_err();
    assert!(chain(&error).contains("its user has to own the schema `stepward`"), "{}", chain(&error));
    cluster().await.run(&database, "create schema stepward authorization of_little_power").await.unwrap();
    let store = open(&server).await.unwrap();
    store.keep(&ruling("A", None), &[]).await.unwrap();
    assert_eq!(devices(&store).await, ["A"]);
}

#[tokio::test]
async fn refuses_a_database_that_cannot_hold_every_text() {
    let cluster = cluster().await;
    cluster.run("postgres", "create database of_latin1 encoding 'LATIN1' locale 'C' template template0").await.unwrap();
    let error = open(&cluster.named("of_latin1").unwrap()).await.unwrap_err();
    assert!(chain(&error).contains("has the encoding LATIN1: make one with the encoding UTF8"), "{}", chain(&error));
}

#[tokio::test]
async fn what_a_server_says_is_told_apart() {
    let mut connection = cluster().await.connect("postgres").await.unwrap();
    let mut raised = async |state: &str| {
        let sql = format!("do $$ begin raise exception using errcode = '{state}', message = 'as said'; end $$");
        code::fault(sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap_err())
    };
    assert!(matches!(raised("53100").await, StoreError::Full));
    assert!(matches!(raised("25006").await, StoreError::Standby));
    for state in ["57014", "55P03"] {
        assert!(matches!(raised(state).await, StoreError::Slow), "{state}");
    }
    for state in ["42501", "28P01"] {
        assert!(matches!(raised(state).await, StoreError::Denied(_)), "{state}");
    }
    for state in ["08006", "57P01", "57P02", "25P03"] {
        assert!(matches!(raised(state).await, StoreError::Broken(_)), "{state}");
    }
    let other = raised("22000").await;
    assert!(matches!(other, StoreError::Failed(_)) && other.text().contains("as said"), "{}", other.text());
}

#[tokio::test]
async fn a_write_of_a_ruling_that_arrives_after_it_was_taken_back_does_nothing() {
    let server = cluster().await.database().await.unwrap();
    let store = open(&server).await.unwrap();
    let lock = ruling("A", None);
    store.forget(&[lock.id]).await.unwrap();
    store.keep(&lock, &[Mark(1)]).await.unwrap();
    assert_eq!((devices(&store).await.len(), store.covers().await.unwrap()), (0, vec![]));
    // One that is under way when it is taken back is waited for.
    let lock = ruling("B", None);
    let mut slow = cluster().await.connect(&name(&server)).await.unwrap();
    sqlx::raw_sql("begin; update stepward.changes_of_rulings set version = version + 1").execute(&mut slow).await.unwrap();
    let (forgetting, ()) = tokio::join!(store.forget(std::slice::from_ref(&lock.id)), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let insert = format!(
            "insert into stepward.rulings (id, kind, device, reason, made_by, made_at, corrected) values ('{}', 'lock', 'B', '', '', 0, 0); commit",
            lock.id
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(&mut slow).await.unwrap();
    });
    forgetting.unwrap();
    assert_eq!(devices(&store).await.len(), 0);
    // What was forgotten is remembered for a day.
    cluster().await.run(&name(&server), "update stepward.forgotten set at = now() - interval '25 hours'").await.unwrap();
    let Opened { mut records, .. } = super::open(&server, &Sharing::DEFAULT, 0).await.unwrap();
    records.delete_ended_rulings(Span::at(at(0))).await.unwrap();
    let mut connection = cluster().await.connect(&name(&server)).await.unwrap();
    let left: i64 = sqlx::query_scalar("select count(*) from stepward.forgotten").fetch_one(&mut connection).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_ruling_waits_no_longer_than_its_caller_for_one_who_holds_the_rulings() {
    let server = cluster().await.database().await.unwrap();
    let store = open(&server).await.unwrap();
    let mut holder = cluster().await.connect(&name(&server)).await.unwrap();
    sqlx::raw_sql("begin; update stepward.changes_of_rulings set version = version + 1").execute(&mut holder).await.unwrap();
    let began = Instant::now();
    let lock = ruling("A", None);
    let (attempt, kept) = tokio::join!(store.answers(), store.keep(&lock, &[]));
    assert!(matches!((&attempt, &kept), (Err(StoreError::Slow), Err(StoreError::Slow))), "{attempt:?} {kept:?}");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert!(store.why_owed(lock.id).is_some());
    sqlx::raw_sql("rollback").execute(&mut holder).await.unwrap();
    store.settle(&[lock.id]).await.unwrap();
    assert_eq!((devices(&store).await.len(), store.trouble()), (1, None));
}

#[tokio::test]
async fn the_decisions_of_a_device_are_found_by_their_index_however_many_there_are() {
    let server = cluster().await.database().await.unwrap();
    let store = open(&server).await.unwrap();
    let mut connection = cluster().await.connect(&name(&server)).await.unwrap();
    sqlx::raw_sql(
        "insert into stepward.decisions (id, device, webhook, decision, code, inputs, record)
            select lpad(n::text, 26, '0'), case when n % 1000 = 0 then 'RARE' else 'D' || n % 3 end, 'one', 'allow', 'allowed', '', '{}'
            from generate_series(1, 30000) as n;
        analyze stepward.decisions;
        set plan_cache_mode = force_generic_plan",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    let sql = format!(
        "prepare of_a_device (text, text, bigint, text[], text, text, text) as {};
        prepare of_all (text, text, bigint, text[], text, text) as {};
        prepare sent (bigint, bigint) as {}",
        rows::OF_A_DEVICE,
        rows::OF_ALL,
        rows::SENT
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    for (asked, index) in [
        ("of_a_device('', '~', 10, null, null, null, 'RARE')", "decisions_of_a_device"),
        ("of_a_device('', '~', 10, null, 'deny', null, 'D1')", "decisions_of_a_device"),
        ("of_all('', '~', 10, null, null, null)", "decisions_id_key"),
        ("sent(9223372036854775807, 1000)", "decisions_pkey"),
    ] {
        let sql = format!("explain (costs off) execute {asked}");
        let plan: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap();
        let plan = plan.join("\n");
        assert!(plan.contains(&format!("using {index}")) && !plan.contains("Sort"), "{asked}: {plan}");
    }
    let wanted = Wanted { device: Some("RARE".to_owned()), limit: 100, ..Wanted::default() };
    assert_eq!(store.decisions(&wanted).await.unwrap().len(), 30);
}

#[tokio::test]
async fn a_store_that_was_put_in_the_place_of_another_is_not_taken_for_it() {
    let server = cluster().await.database().await.unwrap();
    let store = open(&server).await.unwrap();
    store.keep(&ruling("A", None), &[]).await.unwrap();
    cluster().await.run(&name(&server), "drop schema stepward cascade").await.unwrap();
    let ended = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}'", name(&server));
    for round in 0..2 {
        cluster().await.run("postgres", &ended).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let kept = store.keep(&ruling("B", None), &[]).await.unwrap_err();
        assert!(matches!(kept, StoreError::Another(_)) && kept.text().contains("is not the one that was opened"), "{round}: {kept:?}");
        assert!(store.rulings(Span::at(at(0))).await.is_err());
        if round == 0 {
            assert_eq!(devices(&open(&server).await.unwrap()).await.len(), 0, "another start makes a new one");
        }
    }
}

#[tokio::test]
async fn after_a_server_was_killed_every_operation_fails_in_time_and_then_works_again() {
    let mut cluster = Cluster::start(&[]).await.unwrap();
    let server = cluster.database().await.unwrap();
    let stand = Stand::of(Settings { server: Some(server), ..bounded() });
    let (mut writer, dropped, store) = stand.connected().await;
    store.keep(&ruling("A", None), &[]).await.unwrap();
    writer.write(&[Box::new(decision(1, "A"))]).await;
    assert_eq!((store.decisions(&Wanted { limit: 9, ..Wanted::default() }).await.unwrap().len(), devices(&store).await.len()), (1, 1));
    for _ in 0..2 {
        cluster.kill().unwrap();
        let began = Instant::now();
        // The connection may take a moment to break.
        while store.rulings(Span::at(at(0))).await.is_ok() {
            assert!(began.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let began = Instant::now();
        let error = store.answers().await.unwrap_err();
        assert!(matches!(error, StoreError::Away(_)) && error.text().starts_with("no server of the store can be used: /"), "{error:?}");
        assert!(store.keep(&ruling("B", None), &[]).await.is_err() && store.count_owed() > 0);
        assert!(store.decision(DecisionId::first(at(1))).await.is_err() && store.sent(Duration::from_secs(1), 1).await.is_err());
        assert!(store.device_of(key(), at(1)).await.is_err() && store.links(1).await.is_err());
        let before = dropped.load(Ordering::Relaxed);
        writer.write(&[Box::new(decision(2, "A"))]).await;
        assert_eq!(dropped.load(Ordering::Relaxed), before + 1);
        assert!(writer.records().oldest().await.is_err());
        assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
        cluster.revive().await.unwrap();
        soon(async || store.answers().await).await;
        store.look_after().await;
        assert_eq!(store.count_owed(), 0);
        soon(async || store.device_of(key(), at(1)).await).await;
        soon(async || store.links(1).await).await;
        soon(async || writer.records().oldest().await).await;
        writer.write(&[Box::new(decision(3, "A"))]).await;
        assert_eq!(dropped.load(Ordering::Relaxed), before + 1);
    }
    assert_eq!(devices(&store).await, ["A", "B", "B"]);
    let wanted = Wanted { limit: 9, ..Wanted::default() };
    assert_eq!(store.decisions(&wanted).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_server_that_answers_nothing_holds_nobody_longer_than_a_caller_waits() {
    let mut cluster = Cluster::start(&[]).await.unwrap();
    let server = cluster.database().await.unwrap();
    let stand = Stand::of(Settings { server: Some(server), ..bounded() });
    let (mut writer, dropped, store) = stand.connected().await;
    store.keep(&ruling("A", None), &[]).await.unwrap();
    cluster.freeze().unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    let wanted = Wanted { limit: 9, ..Wanted::default() };
    let (attempt, listed, known, ()) = tokio::join!(store.answers(), store.decisions(&wanted), store.device_of(key(), at(1)), async {
        writer.write(&[Box::new(decision(1, "A"))]).await
    },);
    assert!(attempt.is_err() && listed.is_err() && known.is_err());
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    cluster.thaw().unwrap();
    soon(async || store.answers().await).await;
}

#[tokio::test]
async fn a_standby_is_not_read_from_and_one_that_takes_writes_is_found_among_several() {
    let mut primary = Cluster::start(&["wal_level=replica", "max_wal_senders=4"]).await.unwrap();
    let first = open(&primary.named("postgres").unwrap()).await.unwrap();
    first.keep(&ruling("A", None), &[]).await.unwrap();
    let standby = primary.standby().await.unwrap();
    let error = open(&standby.named("postgres").unwrap()).await.unwrap_err();
    assert!(chain(&error).contains("it only reads, as a standby does"), "{}", chain(&error));
    let url = format!("postgres://stepward@/postgres?host={},{}", standby.folder().display(), primary.folder().display());
    let store = open(&Server::parse(&url, None).unwrap()).await.unwrap();
    store.keep(&ruling("B", None), &[]).await.unwrap();
    assert_eq!(devices(&store).await, ["A", "B"]);
    // The standby has it too, before it takes over.
    let mut connection = standby.connect("postgres").await.unwrap();
    let began = Instant::now();
    while sqlx::query_scalar::<_, i64>("select count(*) from stepward.rulings").fetch_one(&mut connection).await.unwrap() < 2 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    primary.kill().unwrap();
    let error = loop {
        match store.keep(&ruling("C", None), &[]).await {
            Ok(()) => assert!(began.elapsed() < PATIENCE),
            Err(StoreError::Away(error)) => break error,
            Err(_) => {}
        }
    };
    assert!(error.contains("only reads, as a standby does"), "{error}");
    sqlx::query("select pg_promote()").execute(&mut connection).await.unwrap();
    soon(async || store.answers().await).await;
    store.look_after().await;
    let found = devices(&store).await;
    assert!(found.len() >= 3 && found[..2] == ["A", "B"], "{found:?}");
}

#[tokio::test]
async fn a_server_that_was_told_to_take_no_writes_is_left() {
    let server = cluster().await.database().await.unwrap();
    let store = open(&server).await.unwrap();
    store.keep(&ruling("A", None), &[]).await.unwrap();
    let told = format!("alter database {} set default_transaction_read_only = on", name(&server));
    cluster().await.run("postgres", &told).await.unwrap();
    let ended = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}'", name(&server));
    cluster().await.run("postgres", &ended).await.unwrap();
    let began = Instant::now();
    loop {
        match store.rulings(Span::at(at(0))).await {
            Err(StoreError::Away(why)) => break assert!(why.contains("only reads"), "{why}"),
            _ => assert!(began.elapsed() < PATIENCE),
        }
    }
}

#[tokio::test]
async fn a_password_is_sent_and_never_printed() {
    let cluster = Cluster::start(&["password_encryption=scram-sha-256"]).await.unwrap();
    cluster.run("postgres", "create role guarded login superuser password 'canary'").await.unwrap();
    cluster.put("pg_hba.conf", "local all guarded scram-sha-256\nlocal all all trust\n").await.unwrap();
    let url = cluster.url("postgres").replace("stepward@", "guarded@");
    let server = |password: &str| Server::parse(&url, Some(Secret::new(password.as_bytes().to_vec()))).unwrap();
    let began = Instant::now();
    // The server reads its rules soon.
    let error = loop {
        match open(&server("wrong canary")).await {
            Ok(_) => assert!(began.elapsed() < PATIENCE),
            Err(error) => break error,
        }
    };
    let said = format!("{} {error:?}", chain(&error));
    assert!(said.contains("see [store] password") && !said.contains("canary"), "{said}");
    assert!(chain(&open(&Server::parse(&url, None).unwrap()).await.unwrap_err()).contains("guarded"));
    let store = open(&server("canary")).await.unwrap();
    store.keep(&ruling("A", None), &[]).await.unwrap();
    assert!(!format!("{store:?} {}", server("canary")).contains("canary"), "{store:?}");
}

#[tokio::test]
async fn a_server_by_tcp_proves_who_it_is_and_we_prove_who_we_are() {
    let files = tempfile::tempdir().unwrap();
    let of_a_file = |name: &str| files.path().join(name).display().to_string();
    let authority = Authority::new();
    std::fs::write(of_a_file("ca.pem"), authority.pem()).unwrap();
    std::fs::write(of_a_file("other.pem"), Authority::new().pem()).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cluster = Cluster::start(&[&format!("port={port}"), "listen_addresses=127.0.0.1"]).await.unwrap();
    let (certificate, key) = authority.certificate("localhost");
    for (name, text) in [
        ("server.crt", certificate.as_str()),
        ("server.key", key.as_str()),
        ("root.crt", authority.pem().as_str()),
        ("pg_hba.conf", "local all all trust\nhostssl all certified 127.0.0.1/32 cert\nhostssl all all 127.0.0.1/32 trust\n"),
        ("postgresql.auto.conf", "ssl = on\nssl_ca_file = 'root.crt'\n"),
    ] {
        cluster.put(name, text).await.unwrap();
    }
    cluster.run("postgres", "create role certified login superuser").await.unwrap();
    let (certificate, key) = authority.certificate("certified");
    std::fs::write(of_a_file("client.pem"), certificate).unwrap();
    std::fs::write(of_a_file("client.key"), key).unwrap();
    let opened = async |user: &str, host: &str, parameters: &str| {
        let url = format!("postgres://{user}@{host}:{port}/postgres?{parameters}");
        match open(&Server::parse(&url, None).unwrap()).await {
            Ok(store) => {
                store.answers().await.unwrap();
                String::new()
            }
            Err(error) => chain(&error),
        }
    };
    let (ca, other) = (format!("sslrootcert={}", of_a_file("ca.pem")), format!("sslrootcert={}", of_a_file("other.pem")));
    let client = format!("{ca}&sslcert={}&sslkey={}", of_a_file("client.pem"), of_a_file("client.key"));
    let began = Instant::now();
    // The server reads its settings soon.
    while !opened("stepward", "localhost", &ca).await.is_empty() {
        assert!(began.elapsed() < PATIENCE, "{}", opened("stepward", "localhost", &ca).await);
    }
    assert_eq!(opened("stepward", "127.0.0.1", &format!("{ca}&sslmode=verify-ca")).await, "");
    assert_eq!(opened("certified", "localhost", &client).await, "");
    for (user, host, parameters) in [
        ("stepward", "localhost", ""),
        ("stepward", "localhost", other.as_str()),
        ("stepward", "127.0.0.1", ca.as_str()),
        ("stepward", "127.0.0.1", "sslmode=verify-ca"),
        ("stepward", "localhost", "sslmode=disable"),
        ("certified", "localhost", ca.as_str()),
    ] {
        let error = opened(user, host, parameters).await;
        assert!(error.contains("no server of the store can be used"), "{user} {host} {parameters}: {error}");
    }
}

/// An authority that signs certificates.
struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(rcgen::CertifiedIssuer::self_signed(parameters, rcgen::KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate of this name, and its key.
    fn certificate(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        (parameters.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

#[tokio::test]
async fn a_store_is_on_the_backend_that_its_settings_name() {
    let stand = Backend::Postgres.stand().await;
    let store = stand.open().await;
    assert!(store.path().is_none() && store.keeps_decisions() && !store.is_lost());
    store.look_after().await;
    assert_eq!(store.trouble(), None);
}

#[tokio::test]
async fn decisions_wait_for_a_server_that_is_away_and_are_written_in_their_order_once() {
    let mut own = Cluster::start(&[]).await.unwrap();
    let settings = Settings { server: Some(own.named("postgres").unwrap()), bind_keys: true, ..Settings::none() };
    let dropped = Arc::<AtomicU64>::default();
    let store = Store::open(&settings, Arc::clone(&dropped) as _).await.unwrap();
    let mut number = 0;
    for _ in 0..2 {
        own.kill().unwrap();
        for _ in 0..1500 {
            store.record(decision(number, "A"));
            number += 1;
            if number % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let began = Instant::now();
        while !store.trouble().is_some_and(|trouble| trouble.contains("decisions wait to be kept: ")) {
            assert!(began.elapsed() < PATIENCE, "{:?}", store.trouble());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        own.revive().await.unwrap();
        let began = Instant::now();
        while store.trouble().is_some() {
            assert!(began.elapsed() < PATIENCE, "{:?}", store.trouble());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let kept = soon(async || store.decisions(&Wanted { limit: 5000, ..Wanted::default() }).await).await;
    let seconds: Vec<_> = kept.iter().map(|summary| summary.id.at()).collect();
    assert_eq!(seconds, (0..3000).rev().map(at).collect::<Vec<_>>());
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
    // What waits at the end of the service is lost, and is counted.
    own.kill().unwrap();
    let began = Instant::now();
    while store.trouble().is_none() {
        assert!(began.elapsed() < PATIENCE, "the server is killed");
        store.record(decision(number, "A"));
        number += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    store.close().await;
    let lost = dropped.load(Ordering::Relaxed);
    assert!(lost >= 1 && store.trouble().is_some_and(|trouble| trouble.contains("not kept")), "{lost}: {:?}", store.trouble());
}

#[tokio::test]
async fn of_the_decisions_that_wait_for_a_server_those_beyond_a_bound_are_counted() {
    let mut own = Cluster::start(&[]).await.unwrap();
    let settings = Settings { server: Some(own.named("postgres").unwrap()), bind_keys: true, ..Settings::none() };
    let dropped = Arc::<AtomicU64>::default();
    let store = Store::open(&settings, Arc::clone(&dropped) as _).await.unwrap();
    own.kill().unwrap();
    let all = HELD + QUEUE + 500;
    for number in 0..all {
        store.record(decision(i64::try_from(number).unwrap(), "A"));
        if number % 100 == 0 {
            // The writer takes them as fast as they come.
            store.flush().await;
        }
    }
    own.revive().await.unwrap();
    let count = async || Ok(own.number("postgres", "select count(*) from stepward.decisions").await.unwrap());
    let began = Instant::now();
    loop {
        let (kept, lost) = (soon(count).await, dropped.load(Ordering::Relaxed));
        if u64::try_from(kept).unwrap() + lost == u64::try_from(all).unwrap() {
            assert!(lost >= 500 && usize::try_from(kept).unwrap() >= HELD, "{kept} kept, {lost} lost");
            return;
        }
        assert!(began.elapsed() < PATIENCE * 3, "{kept} kept and {lost} lost, of {all}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
/// Tells notices, and returns their number.
async fn tell(store: &Store, notices: &[Notice]) -> i64 {
    let token = rand::random();
    store.tell(token, notices).await.unwrap();
    token
}

/// Reads what was told since.
async fn notices(store: &Store, heard: Heard) -> Notices {
    store.hear(Heard::default(), heard, Span::at(at(0)), Duration::from_secs(5)).await.unwrap().1
}

fn notice(provider: &str, about: About) -> Notice {
    Notice { provider: provider.to_owned(), about }
}

fn changed(mark: i64) -> Notice {
    notice("mdm", About::Device { mark, revoking: false })
}

#[tokio::test]
async fn what_one_service_tells_the_others_hear_in_order_and_it_hears_that_it_was_told() {
    let server = cluster().await.database().await.unwrap();
    let (one, other) = (open(&server).await.unwrap(), open(&server).await.unwrap());
    let began = other.last_notice().await.unwrap();
    assert_eq!(began, Heard::default());
    assert!(notices(&other, began).await.is_empty());
    let mut all: Vec<_> = crate::contract::texts().iter().map(|text| notice(text, About::PurgeAll)).collect();
    let texts = ["'; drop table notices; --", "a\0b", "\u{1a}0", "{\"a\",NULL}", "é\u{301}\u{10ffff}"];
    let devices = texts.iter().filter_map(|text| DeviceId::new(IdentifierKind::Serial, text).ok());
    all.extend(devices.map(|device| notice("mdm", About::Purge(device))));
    for revoking in [true, false] {
        all.extend([i64::MIN, -1, 0, i64::MAX].map(|mark| notice("mdm", About::Device { mark, revoking })));
        all.push(notice("", About::All { revoking }));
    }
    let token = tell(&one, &all).await;
    let read = notices(&other, began).await;
    let again = tell(&one, &[changed(7)]).await;
    assert!(!read.more);
    for (found, told) in [(&read.noticed, &all)] {
        let Noticed::These(others, own) = found else { panic!("{found:?}") };
        assert_eq!((others.len(), own.len()), (told.len(), 0));
        for (found, told) in others.iter().zip(told) {
            assert_eq!(found.provider, told.provider);
            match (&found.about, &told.about) {
                (About::Purge(found), About::Purge(told)) => assert_eq!((found.kind(), found.normal()), (told.kind(), told.normal())),
                (found, told) => assert_eq!(found, told),
            }
        }
    }
    assert_eq!(notices(&other, read.heard).await.noticed, Noticed::These(vec![changed(7)], vec![]));
    assert_eq!(notices(&one, began).await.noticed, Noticed::These(vec![], vec![token, again]));
    let last = other.last_notice().await.unwrap();
    assert!(notices(&other, last).await.is_empty() && last.version == all.len() as i64 + 1);
}

#[tokio::test]
async fn notices_are_told_in_the_order_in_which_they_are_committed() {
    let server = cluster().await.database().await.unwrap();
    let (one, other) = (open(&server).await.unwrap(), open(&server).await.unwrap());
    let mut slow = cluster().await.connect(&name(&server)).await.unwrap();
    // Whoever has counted and not committed is waited for.
    sqlx::raw_sql("begin; update stepward.count_of_notices set version = version + 1").execute(&mut slow).await.unwrap();
    let ended = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(notices(&other, Heard::default()).await.is_empty());
        sqlx::raw_sql("rollback").execute(&mut slow).await.unwrap();
    };
    let (first, second) = ([changed(1)], [changed(2)]);
    tokio::join!(tell(&one, &first), tell(&other, &second), ended);
    let Noticed::These(others, own) = notices(&other, Heard::default()).await.noticed else { panic!("nothing was lost") };
    assert_eq!((others, own.len()), (vec![changed(1)], 1));
}

#[tokio::test]
async fn notices_are_bounded_and_read_in_pieces_and_whoever_is_behind_is_told_so() {
    let server = cluster().await.database().await.unwrap();
    let (one, other) = (open(&server).await.unwrap(), open(&server).await.unwrap());
    let many = |from: i64, most: i64| (from..from + most).map(changed).collect::<Vec<_>>();
    tell(&one, &many(0, 3000)).await;
    let first = notices(&other, Heard::default()).await;
    let second = notices(&other, first.heard).await;
    assert!(first.more && !second.more);
    let found: Vec<_> = [&first, &second]
        .into_iter()
        .flat_map(|notices| if let Noticed::These(others, _) = &notices.noticed { others.clone() } else { panic!("nothing was lost") })
        .collect();
    assert_eq!(found, many(0, 3000));
    for round in 1..8 {
        tell(&one, &many(round * 3000, 3000)).await;
    }
    let mut connection = cluster().await.connect(&name(&server)).await.unwrap();
    let rows: i64 = sqlx::query_scalar("select count(*) from stepward.notices").fetch_one(&mut connection).await.unwrap();
    assert_eq!(rows, 20_000);
    let lost = notices(&other, second.heard).await;
    assert_eq!((lost.noticed, lost.more, lost.heard), (Noticed::Lost { went_back: false }, false, other.last_notice().await.unwrap()));
    // What was heard has to be the very notice, and none may be missing.
    let last = other.last_notice().await.unwrap();
    for (went_back, sql) in [
        (true, "update stepward.notices set token = token + 1 where version = 24000"),
        (false, "update stepward.notices set token = token - 1 where version = 24000; delete from stepward.notices where version = 24001"),
        (true, "update stepward.count_of_notices set version = 23000"),
    ] {
        tell(&one, &[changed(1), changed(2)]).await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        assert_eq!(notices(&other, last).await.noticed, Noticed::Lost { went_back }, "{sql}");
    }
}

#[tokio::test]
async fn a_notice_that_makes_no_sense_is_about_everything() {
    let server = cluster().await.database().await.unwrap();
    let (one, other) = (open(&server).await.unwrap(), open(&server).await.unwrap());
    tell(&one, &[changed(1), changed(2), changed(3)]).await;
    let sql = "update stepward.notices set what = 'of a later release' where version = 1;
        update stepward.notices set mark = null where version = 2;
        update stepward.notices set what = 'purged', kind = 'no kind', device = 'x' where version = 3";
    cluster().await.run(&name(&server), sql).await.unwrap();
    let all = || notice("mdm", About::PurgeAll);
    assert_eq!(notices(&other, Heard::default()).await.noticed, Noticed::These(vec![all(), all(), all()], vec![]));
}

fn begun(id: &str, kind: &str) -> Begun {
    Begun { id: id.to_owned(), kind: kind.to_owned(), provider: "mdm".to_owned(), since: None, started: 7 }
}

fn ended(id: &str, pages: i32) -> Ended {
    Ended { id: id.to_owned(), since: None, started: 7, complete: true, pages, records: 5 }
}

#[tokio::test]
async fn a_list_is_read_by_whoever_has_the_lease_and_seen_once_it_ended() {
    let server = cluster().await.database().await.unwrap();
    let (one, other) = (open(&server).await.unwrap(), open(&server).await.unwrap());
    let minute = Duration::from_secs(60);
    assert!(one.lease("kind", "a", minute).await.unwrap() && one.lease("kind", "a", minute).await.unwrap());
    assert!(!other.lease("kind", "b", minute).await.unwrap() && other.lease("another", "b", minute).await.unwrap());
    let began = other.last_notice().await.unwrap();
    one.begin_list(&begun("a", "kind")).await.unwrap();
    assert_eq!(notices(&other, began).await.noticed, Noticed::These(vec![notice("mdm", About::List("a".to_owned()))], vec![]));
    for number in 0..2 {
        one.write_page("a", number, &[1, 2]).await.unwrap();
    }
    assert!(one.write_page("a", 1, &[3]).await.is_err() && one.write_page("none", 0, &[3]).await.is_err());
    assert_eq!(other.ended_lists("kind").await.unwrap(), []);
    assert!(one.publish("kind", &ended("a", 2)).await.unwrap());
    assert_eq!((other.ended_lists("kind").await.unwrap(), other.ended_lists("another").await.unwrap()), (vec![ended("a", 2)], vec![]));
    assert_eq!((other.page("a", 1).await.unwrap(), other.page("a", 2).await.unwrap()), (Some(vec![1, 2]), None));
    one.release("kind", "a").await.unwrap();
    // One that lost its lease is never seen, and goes with the next that ends; one that ended stays for a while.
    assert!(other.lease("kind", "b", Duration::ZERO).await.unwrap());
    other.begin_list(&begun("b", "kind")).await.unwrap();
    assert!(!other.publish("kind", &ended("b", 0)).await.unwrap());
    assert!(one.lease("kind", "c", minute).await.unwrap());
    assert!(!other.lease("kind", "b", minute).await.unwrap());
    one.begin_list(&begun("c", "kind")).await.unwrap();
    assert!(!other.publish("kind", &ended("b", 0)).await.unwrap() && one.publish("kind", &ended("c", 0)).await.unwrap());
    assert_eq!(other.ended_lists("kind").await.unwrap(), [ended("c", 0), ended("a", 2)]);
    assert!(other.write_page("b", 0, &[1]).await.is_err(), "it is gone");
    cluster().await.run(&name(&server), "update stepward.lists set ended = ended - interval '16 minutes' where id = 'a'").await.unwrap();
    assert!(one.lease("kind", "d", Duration::ZERO).await.is_ok_and(|taken| !taken));
    one.release("kind", "c").await.unwrap();
    assert!(one.lease("kind", "d", minute).await.unwrap());
    one.begin_list(&begun("d", "kind")).await.unwrap();
    assert!(one.publish("kind", &ended("d", 0)).await.unwrap());
    assert_eq!(other.ended_lists("kind").await.unwrap(), [ended("d", 0), ended("c", 0)]);
    assert_eq!(other.page("a", 1).await.unwrap(), None);
}

#[tokio::test]
async fn a_key_that_one_service_writes_late_stays_that_of_the_later_allow() {
    let stand = Backend::Postgres.stand().await;
    let ((mut late, _, store), (mut other, ..)) = (stand.connected().await, stand.connected().await);
    let key = key();
    other.write(&[Box::new(allowed(10, key, "b", Trust::Attested))]).await;
    late.write(&[Box::new(allowed(5, key, "a", Trust::Attested))]).await;
    assert_eq!(store.device_of(key, at(10)).await.unwrap(), Some(identity("b", Trust::Attested)));
    late.write(&[Box::new(allowed(11, key, "a", Trust::Attested))]).await;
    assert_eq!(store.device_of(key, at(11)).await.unwrap(), Some(identity("a", Trust::Attested)));
}
