//! The store in a SQLite file.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use clock::{Proven, Span};
use posture::identity::{DeviceId, Identity, PublicKey};
use posture::time::UnixTime;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{Mutex, MutexGuard};

use crate::columns::Stored;
use crate::decision::{Decision, Summary, Wanted};
use crate::error::StoreError;
use crate::id::DecisionId;
use crate::mark::Mark;
use crate::ruling::Ruling;
use crate::sent::Sent;
use code::fault;

mod backup;
mod code;
pub(crate) mod copy;
mod file;
mod log;
mod rows;

pub use backup::{BackupError, back_up};
pub use copy::WholeError;
pub(crate) use file::Checkpoint;
#[cfg(test)]
pub(crate) use file::MIGRATIONS;
pub use file::{OpenError, examine};

/// A store's file that was opened.
pub(crate) struct Opened {
    /// The connections for rulings and for reading.
    pub(crate) database: Database,
    /// The connection for the task that writes decisions.
    pub(crate) records: Records,
    /// Last proven time of the process before.
    pub(crate) proven: Option<Proven>,
    /// Counts and keys that the file already has.
    pub(crate) stored: Stored,
}

/// Opens a file, or makes it, and reads the `newest_keys` keys that were allowed last.
///
/// # Errors
/// See [`OpenError`].
pub(crate) async fn open(path: &Path, newest_keys: usize) -> Result<Opened, OpenError> {
    let file::Connections { mut decisions, rulings, listing, keys, identity, lock } = file::open(path).await?;
    let failed = |error| OpenError::from_sqlite(path, error);
    let proven = rows::proven(&mut decisions).await.map_err(failed)?;
    let stored = Stored {
        decisions: rows::count(&mut decisions).await.map_err(failed)?,
        links: rows::count_links(&mut decisions).await.map_err(failed)?,
        keys: rows::count_keys(&mut decisions).await.map_err(failed)?,
        newest_keys: rows::newest_keys(&mut decisions, newest_keys).await.map_err(failed)?,
    };
    let records = Records { connection: decisions, file: identity.clone() };
    let database =
        Database { file: identity, rulings: Mutex::new(rulings), listing: Mutex::new(listing), keys: Mutex::new(keys), _lock: lock };
    Ok(Opened { database, records, proven, stored })
}

/// Connections that write rulings and read everything.
#[derive(Debug)]
pub(crate) struct Database {
    file: file::Identity,
    /// Connection that writes rulings, each durable before the statement ends.
    rulings: Mutex<SqliteConnection>,
    /// Connection that reads decisions, so that a long answer holds up neither a writer nor an Envoy that asks for a key.
    listing: Mutex<SqliteConnection>,
    /// Connection that reads keys.
    keys: Mutex<SqliteConnection>,
    /// Lock file, held so that no second process uses the store; the lock ends with the handle.
    _lock: File,
}

impl Database {
    /// Path of the file.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Checks that the paths still name the files that were opened, as they were left.
    pub(crate) async fn is_there(&self) -> Result<(), StoreError> {
        self.file.is_there().await
    }

    /// Returns whether the file was found to be damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        self.file.is_damaged()
    }

    /// The stored record of a decision.
    pub(crate) async fn decision(&self, id: DecisionId) -> Result<Option<String>, StoreError> {
        rows::decision(&mut *self.listing.lock().await, id).await.map_err(fault)
    }

    /// Decisions that fit the filter, newest first.
    pub(crate) async fn decisions(&self, wanted: &Wanted) -> Result<Vec<Summary>, StoreError> {
        rows::decisions(&mut *self.listing.lock().await, wanted).await.map_err(fault)
    }

    /// Webhooks that were decided last, for the replay memory.
    pub(crate) async fn sent(&self, window: Duration, most: u32) -> Result<Vec<Sent>, StoreError> {
        rows::sent(&mut *self.listing.lock().await, window, most).await.map_err(fault)
    }

    /// The device that a key was allowed for at `since` or later.
    pub(crate) async fn device_of(&self, key: PublicKey, since: UnixTime) -> Result<Option<Identity>, StoreError> {
        rows::device_of(&mut *self.keys.lock().await, key, since).await.map_err(fault)
    }

    /// Rulings that have not ended.
    pub(crate) async fn rulings(&self, now: Span) -> Result<Vec<Ruling>, StoreError> {
        rows::rulings(&mut *self.rulings.lock().await, now).await.map_err(fault)
    }

    /// Identifiers that each lock covers besides its own.
    pub(crate) async fn covers(&self) -> Result<Vec<(DecisionId, Mark)>, StoreError> {
        rows::covers(&mut *self.rulings.lock().await).await.map_err(fault)
    }

    /// Pairs of identifiers that stood in one record, the last seen first, at most `most`.
    pub(crate) async fn links(&self, most: usize) -> Result<Vec<(Mark, Mark)>, StoreError> {
        rows::links(&mut *self.listing.lock().await, most).await.map_err(fault)
    }

    /// Identifiers that stood in one record with any of these.
    pub(crate) async fn partners(&self, of: &[Mark]) -> Result<Vec<Mark>, StoreError> {
        rows::partners(&mut *self.listing.lock().await, of).await.map_err(fault)
    }

    /// Writes a row without meaning, of the size of a ruling, and checks that a start would find it.
    pub(crate) async fn attempt(&self) -> Result<(), StoreError> {
        self.file.is_there().await?;
        rows::attempt(&mut *self.rulings.lock().await).await.map_err(|error| self.file.noted(fault(error)))?;
        // A write to a file that was gone by then, or behind a hole, is lost with it.
        self.file.would_be_found().await
    }

    /// The writer of rulings, for one user at a time: nothing else writes a ruling while it exists.
    pub(crate) async fn write_rulings(&self) -> RulingWriter<'_> {
        RulingWriter { connection: self.rulings.lock().await, file: &self.file }
    }

    /// The connection of rulings.
    #[cfg(any(test, feature = "scripted"))]
    pub(crate) async fn connection(&self) -> MutexGuard<'_, SqliteConnection> {
        self.rulings.lock().await
    }
}

/// A writer of rulings. Each change is on the disk once its call returns.
pub(crate) struct RulingWriter<'d> {
    connection: MutexGuard<'d, SqliteConnection>,
    file: &'d file::Identity,
}

impl RulingWriter<'_> {
    /// Keeps a ruling with the identifiers that it covers.
    pub(crate) async fn keep(&mut self, ruling: &Ruling, covered: &[Mark]) -> Result<(), StoreError> {
        self.file.is_there().await?;
        let written = rows::keep(&mut self.connection, ruling, covered).await;
        self.is_written(written).await
    }

    /// Forgets rulings, all of them or none.
    pub(crate) async fn forget(&mut self, ids: &[DecisionId]) -> Result<(), StoreError> {
        self.file.is_there().await?;
        let written = rows::forget(&mut self.connection, ids).await;
        self.is_written(written).await
    }

    async fn is_written(&self, written: Result<(), sqlx::Error>) -> Result<(), StoreError> {
        written.map_err(|error| self.file.noted(fault(error)))?;
        // A write to a file that was gone by then, or behind a hole, is lost with it.
        self.file.would_be_found().await
    }
}

/// The connection for decisions, keys and pairs of identifiers, of the one task that writes them.
#[derive(Debug)]
pub(crate) struct Records {
    connection: SqliteConnection,
    file: file::Identity,
}

impl Records {
    /// Checks that the paths still name the files that were opened, as they were left.
    pub(crate) async fn is_there(&self) -> Result<(), StoreError> {
        self.file.is_there().await
    }

    /// Remembers whether an error means that the file is damaged, and returns the error.
    pub(crate) fn noted(&self, error: StoreError) -> StoreError {
        self.file.noted(error)
    }

    /// Moves the content of the log into the database.
    pub(crate) async fn checkpoint(&mut self, mode: Checkpoint) -> Result<(), StoreError> {
        self.file.checkpoint(&mut self.connection, mode).await
    }

    /// Writes a batch and the keys that it allows; returns how many of the decisions are new.
    pub(crate) async fn insert(
        &mut self,
        batch: &[Box<Decision>],
        key_retention: Duration,
        proven: Option<UnixTime>,
    ) -> Result<u64, StoreError> {
        rows::insert(&mut self.connection, batch, key_retention, proven).await.map_err(fault)
    }

    /// Writes pairs of identifiers that stood in one record, and covers of locks that still exist. A failed write can be
    /// repeated.
    pub(crate) async fn learn(&mut self, pairs: &[(Mark, Mark)], covers: &[(DecisionId, Mark)]) -> Result<(), StoreError> {
        rows::learn(&mut self.connection, pairs, covers).await.map_err(fault)
    }

    /// Keeps the proven time for the next start.
    pub(crate) async fn keep_proven(&mut self, proven: Proven) -> Result<(), StoreError> {
        rows::keep_proven(&mut self.connection, proven).await.map_err(fault)
    }

    /// The last proven time; where an earlier release kept none, the latest time that the store has seen.
    #[cfg(test)]
    pub(crate) async fn proven(&mut self) -> Result<Option<Proven>, StoreError> {
        rows::proven(&mut self.connection).await.map_err(fault)
    }

    /// Id of the oldest decision.
    pub(crate) async fn oldest(&mut self) -> Result<Option<DecisionId>, StoreError> {
        rows::oldest(&mut self.connection).await.map_err(fault)
    }

    /// Deletes the oldest decisions from before `id`, at most `most`; returns their number.
    pub(crate) async fn delete_before(&mut self, id: DecisionId, most: u32) -> Result<u64, StoreError> {
        rows::delete_before(&mut self.connection, id, most).await.map_err(fault)
    }

    /// Deletes the `most` decisions that were written first; returns the number that was deleted.
    pub(crate) async fn delete_oldest(&mut self, most: u32) -> Result<u64, StoreError> {
        rows::delete_oldest(&mut self.connection, most).await.map_err(fault)
    }

    /// Deletes rulings whose end is past by every clock.
    pub(crate) async fn delete_ended_rulings(&mut self, now: Span) -> Result<(), StoreError> {
        rows::delete_ended_rulings(&mut self.connection, now).await.map_err(fault)
    }

    /// Number of keys.
    pub(crate) async fn count_keys(&mut self) -> Result<u64, StoreError> {
        rows::count_keys(&mut self.connection).await.map_err(fault)
    }

    /// Deletes a key, if it is still this device's; returns the number of deleted keys.
    pub(crate) async fn delete_key(&mut self, device: &DeviceId, key: PublicKey) -> Result<u64, StoreError> {
        rows::delete_key(&mut self.connection, device, key).await.map_err(fault)
    }

    /// Deletes keys that were last allowed before `time`, at most `most`; returns their number.
    pub(crate) async fn delete_keys_before(&mut self, time: UnixTime, most: u32) -> Result<u64, StoreError> {
        rows::delete_keys_before(&mut self.connection, time, most).await.map_err(fault)
    }

    /// Deletes the `most` oldest keys; returns the number that was deleted.
    pub(crate) async fn delete_oldest_keys(&mut self, most: u32) -> Result<u64, StoreError> {
        rows::delete_oldest_keys(&mut self.connection, most).await.map_err(fault)
    }

    /// Number of pairs of identifiers.
    pub(crate) async fn count_links(&mut self) -> Result<u64, StoreError> {
        rows::count_links(&mut self.connection).await.map_err(fault)
    }

    /// Deletes the `most` pairs that were seen the longest ago; returns the number that was deleted.
    pub(crate) async fn delete_links(&mut self, most: u32) -> Result<u64, StoreError> {
        rows::delete_links(&mut self.connection, most).await.map_err(fault)
    }

    #[cfg(test)]
    pub(crate) const fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}
