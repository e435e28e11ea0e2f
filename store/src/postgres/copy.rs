//! A store on a server as a whole: read in one snapshot, and written in one transaction from the rows of another store.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row as _};
use tokio::time::timeout;

use super::code::{NO_COLUMN, NO_TABLE, fault, state};
use super::error::OpenError;
use super::link::{BOUND, Link, Purpose};
use super::schema::{self, Found};
use super::server::Server;
use super::text::{kept, read as text};
use crate::columns;
use crate::error::StoreError;
use crate::overview::{Contents, Migrated, Overview};
use crate::table::{Column, Kind, PAGE, Row, TABLES, Table, Value};

/// The reason why a store on a server cannot be read as a whole, brought up to date, or written.
#[derive(Debug, thiserror::Error)]
pub enum WholeError {
    /// The server has no store that a start would take.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no store.
    #[error("there is no store {0}")]
    Missing(String),
    /// Services are connected.
    #[error(
        "services use the store {server}, by {connections} connections: stop them first, since what they write meanwhile would be left out"
    )]
    InUse {
        /// The server's URL.
        server: String,
        /// Number of their connections.
        connections: u64,
    },
    /// Another program has the lock under which schemas are changed and stores are copied.
    #[error("another copy of the store {0} is under way, or a service is at its start: try again when it has ended")]
    Locked(String),
    /// The schema is that of an earlier release.
    #[error("the store {server} has schema {found}, and this release's is {known}: run `stepward store migrate` on it first")]
    Older {
        /// The server's URL.
        server: String,
        /// Schema of the store.
        found: i64,
        /// Schema of this release.
        known: i64,
    },
    /// The store has rows already.
    #[error(
        "the store {server} has rows in {tables} already, and nothing is written over: name another database, or remove this store by `drop schema stepward cascade`"
    )]
    NotEmpty {
        /// The server's URL.
        server: String,
        /// The tables with rows.
        tables: String,
    },
    /// Both places are one store.
    #[error("{0} is the store that is to be copied: name another database")]
    Same(String),
}

/// A store that is read, as of one moment.
#[derive(Debug)]
pub(crate) struct Reader {
    server: String,
    store: String,
    connection: PgConnection,
}

impl Reader {
    /// Opens a store that no service uses, and keeps services from starting with it until this is dropped.
    pub(crate) async fn open(server: &Server) -> Result<Self, WholeError> {
        let name = server.to_string();
        let failed = |source| failed(&name, source);
        let mut connection = connect(server).await.map_err(failed)?;
        begin(&mut connection, SNAPSHOT).await.map_err(failed)?;
        let is_free = sqlx::query_scalar("select pg_try_advisory_xact_lock_shared($1)").bind(schema::LOCK).fetch_one(&mut connection);
        if !within(is_free).await.map_err(failed)? {
            return Err(WholeError::Locked(name));
        }
        let store = match within(look(&mut connection)).await.map_err(failed)? {
            Looked::Store { version, store } => {
                let known = schema::known();
                match version {
                    found if found > known => return Err(OpenError::Newer { server: name, found, known }.into()),
                    found if found < known => return Err(WholeError::Older { server: name, found, known }),
                    _ => store,
                }
            }
            Looked::Nothing => return Err(WholeError::Missing(name)),
            Looked::Foreign => return Err(OpenError::Foreign { server: name }.into()),
        };
        let mut reader = Self { server: name, store, connection };
        reader.is_unused().await?;
        Ok(reader)
    }

    /// Id of the store.
    pub(crate) fn store(&self) -> &str {
        &self.store
    }

    /// Checks that no service is connected: one that had lost its connection for a moment may be back.
    pub(crate) async fn is_unused(&mut self) -> Result<(), WholeError> {
        is_unused(&mut self.connection, &self.server).await
    }

    /// Number of the rows of a table.
    pub(crate) async fn count(&mut self, table: &Table) -> Result<u64, WholeError> {
        let statement = AssertSqlSafe(format!("select count(*) from stepward.{}", table.name));
        let count = within(sqlx::query_scalar::<_, i64>(statement).fetch_one(&mut self.connection)).await;
        count.map(i64::unsigned_abs).map_err(|source| failed(&self.server, source))
    }

    /// The next rows of a table, behind the one in this place; none where there are no more.
    pub(crate) async fn page(&mut self, table: &Table, after: Option<&[Value]>) -> Result<Vec<Row>, WholeError> {
        within(page(&mut self.connection, table, after)).await.map_err(|source| failed(&self.server, source))
    }
}

/// A store that is written in one transaction, of which nothing is there unless it is kept.
#[derive(Debug)]
pub(crate) struct Writer {
    server: String,
    connection: PgConnection,
}

impl Writer {
    /// Begins a store in a database that has none, or an empty one. `source` is the id of the store that is copied.
    pub(crate) async fn make(server: &Server, source: Option<&str>) -> Result<Self, WholeError> {
        let name = server.to_string();
        let failed = |source| failed(&name, source);
        let mut connection = connect(server).await.map_err(failed)?;
        begin(&mut connection, "begin").await.map_err(failed)?;
        // The source has the same lock.
        if let Looked::Store { store, .. } = within(look(&mut connection)).await.map_err(failed)?
            && source == Some(&*store)
        {
            return Err(WholeError::Same(name));
        }
        // No service starts with the store before the transaction ends.
        let is_free = sqlx::query_scalar("select pg_try_advisory_xact_lock($1)").bind(schema::LOCK).fetch_one(&mut connection);
        if !within(is_free).await.map_err(failed)? {
            return Err(WholeError::Locked(name));
        }
        bring_up_to_date(&mut connection, &name).await?;
        is_unused(&mut connection, &name).await?;
        let mut full = Vec::new();
        for table in TABLES.iter().filter(|table| !table.of_a_start) {
            let statement = AssertSqlSafe(format!("select exists (select from stepward.{})", table.name));
            if within(sqlx::query_scalar(statement).fetch_one(&mut connection)).await.map_err(failed)? {
                full.push(table.name);
            }
        }
        if !full.is_empty() {
            return Err(WholeError::NotEmpty { server: name, tables: full.join(", ") });
        }
        for table in TABLES.iter().filter(|table| table.of_a_start) {
            let statement = AssertSqlSafe(format!("delete from stepward.{}", table.name));
            within(sqlx::query(statement).execute(&mut connection)).await.map_err(failed)?;
        }
        Ok(Self { server: name, connection })
    }

    /// Writes rows behind those that were written before.
    pub(crate) async fn write(&mut self, table: &Table, rows: &[Row]) -> Result<(), WholeError> {
        within(insert(&mut self.connection, table, rows)).await.map_err(|source| failed(&self.server, source))
    }

    /// The next rows of a table that was written, behind the one in this place.
    pub(crate) async fn page(&mut self, table: &Table, after: Option<&[Value]>) -> Result<Vec<Row>, WholeError> {
        within(page(&mut self.connection, table, after)).await.map_err(|source| failed(&self.server, source))
    }

    /// Keeps what was written.
    pub(crate) async fn keep(mut self) -> Result<(), WholeError> {
        let failed = |source| failed(&self.server, source);
        within(sqlx::query(NEXT_LINK).execute(&mut self.connection)).await.map_err(failed)?;
        within(commit(&mut self.connection)).await.map_err(failed)?;
        // Without it the first plans are made for empty tables; whether it works is no matter of the copy.
        let _ = within(sqlx::raw_sql(ANALYZE).execute(&mut self.connection)).await;
        Ok(())
    }
}

/// What a server has at the place of a store. Services may use it meanwhile; nothing is changed.
pub(crate) async fn overview(server: &Server) -> Result<Option<Overview>, WholeError> {
    let name = server.to_string();
    let failed = |source| failed(&name, source);
    let mut connection = connect(server).await.map_err(failed)?;
    begin(&mut connection, SNAPSHOT).await.map_err(failed)?;
    let known = schema::known();
    let schema = match within(look(&mut connection)).await.map_err(failed)? {
        Looked::Store { version: found, .. } if found > known => return Err(OpenError::Newer { server: name, found, known }.into()),
        Looked::Store { version, .. } => version,
        Looked::Nothing => return Ok(None),
        Looked::Foreign => return Err(OpenError::Foreign { server: name }.into()),
    };
    let services = within(services(&mut connection)).await.map_err(failed)?;
    let (bytes, contents) = within(contents(&mut connection)).await.map_err(failed)?;
    Ok(Some(Overview { place: name, schema, known, services, bytes, contents }))
}

/// Makes a store, or brings it to the schema of this release.
pub(crate) async fn migrate(server: &Server) -> Result<Migrated, WholeError> {
    let name = server.to_string();
    let failed = |source| failed(&name, source);
    let mut connection = connect(server).await.map_err(failed)?;
    begin(&mut connection, "begin").await.map_err(failed)?;
    let lock = sqlx::query("select pg_advisory_xact_lock($1)").bind(schema::LOCK);
    within(lock.execute(&mut connection)).await.map_err(failed)?;
    let from = match within(look(&mut connection)).await.map_err(failed)? {
        Looked::Store { version, .. } => Some(version),
        Looked::Nothing => None,
        Looked::Foreign => return Err(OpenError::Foreign { server: name }.into()),
    };
    bring_up_to_date(&mut connection, &name).await?;
    within(commit(&mut connection)).await.map_err(failed)?;
    Ok(Migrated { from, to: schema::known() })
}

/// Connects to the host that takes writes, with bounds for work on a whole store.
async fn connect(server: &Server) -> Result<PgConnection, StoreError> {
    let mut link = Link::new(Arc::new(server.clone()), Purpose::Listing, None);
    let mut connection = link.session_for(BOUND).await?.connection;
    within(sqlx::raw_sql(SET).execute(&mut connection)).await?;
    Ok(connection)
}

/// Runs a step in bounded time.
async fn within<T>(step: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    timeout(STEP, step).await.map_err(|_| StoreError::Slow)?.map_err(fault)
}

/// Begins a transaction, which ends unwritten with its connection unless it is committed.
async fn begin(connection: &mut PgConnection, statement: &'static str) -> Result<(), StoreError> {
    within(sqlx::raw_sql(statement).execute(connection)).await.map(drop)
}

async fn commit(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("commit").execute(connection).await.map(drop)
}

/// What a database has.
enum Looked {
    Nothing,
    Store { version: i64, store: String },
    Foreign,
}

async fn look(connection: &mut PgConnection) -> Result<Looked, sqlx::Error> {
    let (_, tables): (bool, bool) = sqlx::query_as(schema::THERE).fetch_one(&mut *connection).await?;
    if !tables {
        return Ok(Looked::Nothing);
    }
    // A transaction in which a statement failed is of no more use, unless it goes back to before the statement.
    sqlx::raw_sql("savepoint looked").execute(&mut *connection).await?;
    let found: Result<Option<(i64, String)>, _> = sqlx::query_as(schema::VERSION).fetch_optional(&mut *connection).await;
    sqlx::raw_sql("rollback to savepoint looked").execute(connection).await?;
    match found {
        Ok(Some((version, store))) => Ok(Looked::Store { version, store }),
        Ok(None) => Ok(Looked::Foreign),
        Err(error) if [NO_TABLE, NO_COLUMN].contains(&&*state(&error)) => Ok(Looked::Foreign),
        Err(error) => Err(error),
    }
}

/// Makes the tables of this release, as a part of the transaction.
async fn bring_up_to_date(connection: &mut PgConnection, name: &str) -> Result<(), WholeError> {
    let found = within(schema::make(connection)).await.map_err(|source| failed(name, source))?;
    match found {
        // Until here the bounds are those of a start.
        Found::Store(_) => within(sqlx::raw_sql(SET).execute(connection)).await.map(drop).map_err(|source| failed(name, source)),
        Found::Newer(found) => Err(OpenError::Newer { server: name.to_owned(), found, known: schema::known() }.into()),
        Found::Foreign => Err(OpenError::Foreign { server: name.to_owned() }.into()),
    }
}

async fn is_unused(connection: &mut PgConnection, name: &str) -> Result<(), WholeError> {
    match within(services(connection)).await.map_err(|source| failed(name, source))? {
        0 => Ok(()),
        connections => Err(WholeError::InUse { server: name.to_owned(), connections }),
    }
}

/// Number of connections of services to this database.
async fn services(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    // Within a transaction the server shows what it has shown before.
    sqlx::query("select pg_stat_clear_snapshot()").execute(&mut *connection).await?;
    Ok(sqlx::query_scalar::<_, i64>(SERVICES).fetch_one(connection).await?.unsigned_abs())
}

async fn contents(connection: &mut PgConnection) -> Result<(u64, Contents), sqlx::Error> {
    type Counts = (i64, i64, i64, i64, i64, Option<String>, Option<String>, i64);
    let (locks, exemptions, decisions, keys, links, oldest, newest, bytes): Counts = sqlx::query_as(CONTENTS).fetch_one(connection).await?;
    let [locks, exemptions, decisions, keys, links] = [locks, exemptions, decisions, keys, links].map(i64::unsigned_abs);
    let id = |id: Option<String>| id.map(|id| columns::id(&id)).transpose();
    Ok((bytes.unsigned_abs(), Contents { locks, exemptions, decisions, keys, links, oldest: id(oldest)?, newest: id(newest)? }))
}

async fn page(connection: &mut PgConnection, table: &Table, after: Option<&[Value]>) -> Result<Vec<Row>, sqlx::Error> {
    let by = names(table.postgres_order);
    let behind = (1..=after.map_or(0, <[Value]>::len)).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ");
    let condition = if behind.is_empty() { String::new() } else { format!(" where ({by}) > ({behind})") };
    let (name, columns) = (table.name, names(table.columns));
    // Nothing of this text comes from elsewhere.
    let statement = format!("select {by}, {columns} from stepward.{name}{condition} order by {by} limit {PAGE}");
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for value in after.unwrap_or_default() {
        query = match value {
            Value::Integer(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
            Value::Bytes(bytes) => query.bind(bytes),
        };
    }
    query.fetch_all(connection).await?.iter().map(|row| read(row, table)).collect()
}

fn read(row: &PgRow, table: &Table) -> Result<Row, sqlx::Error> {
    let take = |(at, column): (usize, &Column)| {
        Ok::<_, sqlx::Error>(match column.kind {
            Kind::Integer => Value::Integer(row.try_get(at)?),
            Kind::Text => Value::Text(row.try_get(at)?),
            Kind::Bytes => Value::Bytes(row.try_get(at)?),
        })
    };
    // A place is for the server, which has other texts than we mean.
    let place = table.postgres_order.iter().enumerate().map(take).collect::<Result<_, _>>()?;
    let meant = |value| match value {
        Value::Text(kept) => Value::Text(kept.map(text)),
        other => other,
    };
    let values = (table.postgres_order.len()..).zip(table.columns).map(|pair| take(pair).map(meant)).collect::<Result<_, _>>()?;
    Ok(Row { place, values })
}

async fn insert(connection: &mut PgConnection, table: &Table, rows: &[Row]) -> Result<(), sqlx::Error> {
    let (name, columns) = (table.name, names(table.columns));
    let arrays: Vec<String> = (1..)
        .zip(table.columns)
        .map(|(number, column)| match column.kind {
            Kind::Integer => format!("${number}::bigint[]"),
            Kind::Text => format!("${number}::text[]"),
            Kind::Bytes => format!("${number}::bytea[]"),
        })
        .collect();
    let arrays = arrays.join(", ");
    // Nothing of this text comes from elsewhere.
    let mut query = sqlx::query(AssertSqlSafe(format!(
        "insert into stepward.{name} ({columns}) select {columns} from unnest({arrays}) with ordinality as new ({columns}, place) order by place"
    )));
    for (at, column) in table.columns.iter().enumerate() {
        let values = rows.iter().map(|row| row.values.get(at));
        query = match column.kind {
            Kind::Integer => {
                query.bind(values.map(|value| if let Some(Value::Integer(number)) = value { *number } else { None }).collect::<Vec<_>>())
            }
            Kind::Text => query.bind(
                values
                    .map(|value| if let Some(Value::Text(text)) = value { text.as_deref().map(kept) } else { None })
                    .collect::<Vec<Option<Cow<'_, str>>>>(),
            ),
            Kind::Bytes => query.bind(
                values
                    .map(|value| if let Some(Value::Bytes(bytes)) = value { bytes.as_deref() } else { None })
                    .collect::<Vec<Option<&[u8]>>>(),
            ),
        };
    }
    query.execute(connection).await.map(drop)
}

fn names(columns: &[Column]) -> String {
    columns.iter().map(|column| column.name).collect::<Vec<_>>().join(", ")
}

fn failed(server: &str, source: StoreError) -> WholeError {
    OpenError::Failed { server: server.to_owned(), source }.into()
}

/// A transaction that sees the store as of its first statement, and changes nothing.
const SNAPSHOT: &str = "begin isolation level repeatable read, read only";

/// What holds for a connection that works on a whole store. By its name it is none of a service's.
const SET: &str = "set application_name = 'stepward store';
    set statement_timeout = '60s';
    set lock_timeout = '60s';
    set idle_in_transaction_session_timeout = '1h'";

/// Longest time for one step: longer than the server lets a statement run, so that it says what was waited for.
const STEP: Duration = Duration::from_secs(70);

const SERVICES: &str = "select count(*) from pg_stat_activity where datname = current_database()
    and application_name like 'stepward %' and application_name <> 'stepward store'";

const CONTENTS: &str = "select
    (select count(*) from stepward.rulings where kind = 'lock'), (select count(*) from stepward.rulings where kind = 'exemption'),
    (select count(*) from stepward.decisions), (select count(*) from stepward.keys), (select count(*) from stepward.links),
    (select min(id) from stepward.decisions), (select max(id) from stepward.decisions),
    (select coalesce(sum(pg_total_relation_size(pg_class.oid)), 0)::bigint from pg_class
        join pg_namespace on pg_namespace.oid = relnamespace where nspname = 'stepward' and relkind = 'r')";

/// Pairs that are seen from now on are newer than those that were copied.
const NEXT_LINK: &str = "select setval('stepward.links_seen', max(seen) + 1, false) from stepward.links having max(seen) > 0";

const ANALYZE: &str = "analyze stepward.rulings, stepward.covers, stepward.decisions, stepward.keys, stepward.links";
