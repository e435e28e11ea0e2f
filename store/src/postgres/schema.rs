//! The schema: tables of this release, made or brought up to date at the start.

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Error};

use super::code::{NO_COLUMN, NO_TABLE, state};

/// What the database has.
pub(super) enum Found {
    /// The store of this id, with the schema of this release.
    Store(String),
    /// A store with the schema of a later release.
    Newer(i64),
    /// Tables of something else.
    Foreign,
}

/// Brings the schema to that of this release, wholly or not at all. Of several starts at once one does, and the others wait.
pub(super) async fn migrate(connection: &mut PgConnection) -> Result<Found, Error> {
    let mut step = connection.begin().await?;
    let found = make(&mut step).await?;
    if matches!(found, Found::Store(_)) {
        step.commit().await?;
    }
    Ok(found)
}

/// As [`migrate`], within the transaction of the caller, who commits it where a store is found.
pub(super) async fn make(step: &mut PgConnection) -> Result<Found, Error> {
    sqlx::query(WAIT_FOR_OTHERS).execute(&mut *step).await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *step).await?;
    let (schema, tables): (bool, bool) = sqlx::query_as(THERE).fetch_one(&mut *step).await?;
    if !schema {
        sqlx::query("create schema stepward").execute(&mut *step).await?;
    }
    if !tables {
        sqlx::raw_sql(VERSION_TABLE).execute(&mut *step).await?;
        let store = format!("{:032x}", rand::random::<u128>());
        sqlx::query("insert into stepward.schema_version (version, store) values (0, $1)").bind(store).execute(&mut *step).await?;
    }
    let found: Option<(i64, String)> = match sqlx::query_as(VERSION).fetch_optional(&mut *step).await {
        Err(error) if [NO_TABLE, NO_COLUMN].contains(&&*state(&error)) => return Ok(Found::Foreign),
        found => found?,
    };
    let Some((version, store)) = found else { return Ok(Found::Foreign) };
    let Some(missing) = usize::try_from(version).ok().and_then(|done| MIGRATIONS.get(done..)) else {
        return Ok(Found::Newer(version));
    };
    for script in missing {
        sqlx::raw_sql(*script).execute(&mut *step).await?;
    }
    Ok(Found::Store(store))
}

/// The version of the schema of this release.
pub(super) fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Scripts of the schema. Each ends by setting the version to its place in this list, counted from 1. A released script never
/// changes.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/postgres/0001_the_store.sql"),
    include_str!("../../migrations/postgres/0002_services_that_share.sql"),
    include_str!("../../migrations/postgres/0003_webhooks_decided_once.sql"),
    include_str!("../../migrations/postgres/0004_caches_of_several_services.sql"),
];

/// The lock under which a schema is changed: `STWP`, as the file of a store has it.
pub(super) const LOCK: i64 = 0x5354_5750;

/// A start waits for one that migrates, which may take longer than a statement of the service.
const WAIT_FOR_OTHERS: &str = "select set_config('statement_timeout', '60s', true), set_config('lock_timeout', '60s', true), set_config('idle_in_transaction_session_timeout', '60s', true)";

/// Whether the schema is there, and whether anything is in it. An empty one was made for us.
pub(super) const THERE: &str = "select exists (select from pg_namespace where nspname = 'stepward'),
    exists (select from pg_class join pg_namespace on pg_namespace.oid = relnamespace where nspname = 'stepward')";

/// The version of the schema, and a random id, by which a store is told from one that was made in its place.
const VERSION_TABLE: &str = "create table stepward.schema_version (
    one boolean not null primary key default true check (one),
    version bigint not null,
    store text not null
)";

pub(super) const VERSION: &str = "select version, store from stepward.schema_version";
