//! A store whose database a test can hold up or make fail.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _};
use tokio::sync::mpsc;

use crate::database::{Database, OpenError};
pub use crate::postgres::scripted::Cluster;
use crate::settings::Settings;
use crate::store::Store;

/// Opens a store without its background tasks: owed changes are tried when the test says so, and decisions are lost. The first
/// value holds the connection for decisions.
///
/// # Errors
/// See [`OpenError`].
pub async fn unattended(path: &Path) -> Result<(impl Debug, Store), OpenError> {
    let (work, _) = mpsc::channel(1);
    let settings = Settings { path: Some(path.to_owned()), ..bounded() };
    Store::connect(&settings, moka::sync::Cache::new(0), work, Arc::<AtomicU64>::default()).await
}

/// Settings with bounds that a test reaches, and without a store.
pub(crate) fn bounded() -> Settings {
    let bound = Duration::from_secs(1000);
    Settings {
        retention: bound,
        max_decisions: 1000,
        bind_keys: true,
        key_retention: bound,
        max_keys: 100,
        max_keys_per_device: 4,
        ..Settings::none()
    }
}

/// Runs a statement on the connection of rulings, after all that waits there.
///
/// # Errors
/// The error of SQLite.
pub async fn run(store: &Store, sql: &str) -> Result<(), sqlx::Error> {
    let Some(database) = store.database().and_then(Database::sqlite) else { return Ok(()) };
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *database.connection().await).await.map(drop)
}

/// Another connection to a store's file, which can keep every other one from writing.
#[derive(Debug)]
pub struct Holder(SqliteConnection);

impl Holder {
    /// Makes a connection that holds nothing yet.
    ///
    /// # Errors
    /// The error of SQLite.
    pub async fn connect(path: &Path) -> Result<Self, sqlx::Error> {
        SqliteConnectOptions::new().filename(path).connect().await.map(Self)
    }

    /// Makes every other writer wait from now on.
    ///
    /// # Errors
    /// The error of SQLite.
    pub async fn hold(&mut self) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut self.0).await.map(drop)
    }

    /// Lets the waiting writers go on.
    ///
    /// # Errors
    /// The error of SQLite.
    pub async fn release(&mut self) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("ROLLBACK").execute(&mut self.0).await.map(drop)
    }
}
