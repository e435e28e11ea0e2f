//! The database under a store: a SQLite file, or a PostgreSQL server. What asks it or writes to it knows neither.

use std::path::Path;
use std::time::Duration;

use clock::{Proven, Span};
use posture::identity::{DeviceId, Identity, PublicKey};
use posture::time::UnixTime;

use crate::columns::Stored;
use crate::decision::{Decision, Summary, Wanted};
use crate::error::StoreError;
use crate::id::DecisionId;
use crate::mark::Mark;
use crate::news::Rulings;
use crate::ruling::Ruling;
use crate::sent::Sent;
use crate::settings::Settings;
pub(crate) use crate::sqlite::Checkpoint;
use crate::{postgres, sqlite};

/// The reason why a store cannot be opened. Nothing was changed about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] sqlite::OpenError),
    /// The server cannot be used.
    #[error(transparent)]
    Server(#[from] postgres::OpenError),
}

/// A database that was opened.
pub(crate) struct Opened {
    /// The connections for rulings and for reading.
    pub(crate) database: Database,
    /// The connection for the task that writes decisions.
    pub(crate) records: Records,
    /// Last proven time of the process before.
    pub(crate) proven: Option<Proven>,
    /// Counts and keys that the database already has.
    pub(crate) stored: Stored,
}

/// Opens the database that the settings name, or makes its tables, and reads the `newest_keys` keys that were allowed last;
/// `None` where the settings name none.
///
/// # Errors
/// See [`OpenError`].
pub(crate) async fn open(settings: &Settings, newest_keys: usize) -> Result<Option<Opened>, OpenError> {
    if let Some(server) = &settings.server {
        let postgres::Opened { database, records, proven, stored } = postgres::open(server, &settings.sharing, newest_keys).await?;
        return Ok(Some(Opened { database: Database::Postgres(Box::new(database)), records: Records::Postgres(records), proven, stored }));
    }
    let Some(path) = &settings.path else { return Ok(None) };
    let sqlite::Opened { database, records, proven, stored } = sqlite::open(path, newest_keys).await?;
    Ok(Some(Opened { database: Database::Sqlite(Box::new(database)), records: Records::Sqlite(records), proven, stored }))
}

/// Calls one thing of whichever database it is.
macro_rules! of_each {
    ($self:expr, $one:ident => $call:expr) => {
        match $self {
            Self::Sqlite($one) => $call,
            Self::Postgres($one) => $call,
        }
    };
}

/// Connections that write rulings and read everything.
#[derive(Debug)]
pub(crate) enum Database {
    Sqlite(Box<sqlite::Database>),
    Postgres(Box<postgres::Database>),
}

impl Database {
    /// Path of the file; `None` where the database is no file.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(database) => Some(database.path()),
            Self::Postgres(_) => None,
        }
    }

    /// Checks that a file that was opened is still there, as it was left. What a server has it looks after itself.
    pub(crate) async fn is_there(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(database) => database.is_there().await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Returns whether a file was found to be damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        match self {
            Self::Sqlite(database) => database.is_damaged(),
            Self::Postgres(_) => false,
        }
    }

    /// The stored record of a decision.
    pub(crate) async fn decision(&self, id: DecisionId) -> Result<Option<String>, StoreError> {
        of_each!(self, database => database.decision(id).await)
    }

    /// Decisions that fit the filter, newest first.
    pub(crate) async fn decisions(&self, wanted: &Wanted) -> Result<Vec<Summary>, StoreError> {
        of_each!(self, database => database.decisions(wanted).await)
    }

    /// Webhooks that were decided last, for the replay memory.
    pub(crate) async fn sent(&self, window: Duration, most: u32) -> Result<Vec<Sent>, StoreError> {
        of_each!(self, database => database.sent(window, most).await)
    }

    /// The device that a key was allowed for at `since` or later.
    pub(crate) async fn device_of(&self, key: PublicKey, since: UnixTime) -> Result<Option<Identity>, StoreError> {
        of_each!(self, database => database.device_of(key, since).await)
    }

    /// All rulings that have not ended. Where other services change them too, those wait for this one from now on.
    pub(crate) async fn all_rulings(&self, now: Span) -> Result<Rulings, StoreError> {
        match self {
            Self::Sqlite(database) => {
                let (rulings, covered) = (database.rulings(now).await?, database.covers().await?);
                Ok(Rulings { rulings, covered, ..Rulings::default() })
            }
            Self::Postgres(database) => database.all_rulings(now).await,
        }
    }

    /// The database where other services may use it too.
    pub(crate) fn shared(&self) -> Option<&postgres::Database> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(database) => Some(database),
        }
    }

    /// Pairs of identifiers that stood in one record, the last seen first, at most `most`.
    pub(crate) async fn links(&self, most: usize) -> Result<Vec<(Mark, Mark)>, StoreError> {
        of_each!(self, database => database.links(most).await)
    }

    /// Identifiers that stood in one record with any of these: the first seen, and then the last seen, within
    /// [`crate::MOST_COVERED`].
    pub(crate) async fn partners(&self, of: &[Mark]) -> Result<Vec<Mark>, StoreError> {
        of_each!(self, database => database.partners(of).await)
    }

    /// Writes a row without meaning, of the size of a ruling, and checks that a start would find it.
    pub(crate) async fn attempt(&self) -> Result<(), StoreError> {
        of_each!(self, database => database.attempt().await)
    }

    /// The writer of rulings, for one user at a time: nothing else of this process writes a ruling while it exists.
    pub(crate) async fn write_rulings(&self) -> RulingWriter<'_> {
        match self {
            Self::Sqlite(database) => RulingWriter::Sqlite(database.write_rulings().await),
            Self::Postgres(database) => RulingWriter::Postgres(database.write_rulings().await),
        }
    }

    /// The SQLite file, where it is one.
    #[cfg(any(test, feature = "scripted"))]
    pub(crate) fn sqlite(&self) -> Option<&sqlite::Database> {
        match self {
            Self::Sqlite(database) => Some(database),
            Self::Postgres(_) => None,
        }
    }
}

/// A writer of rulings. Each change is on the disk once its call returns.
pub(crate) enum RulingWriter<'d> {
    Sqlite(sqlite::RulingWriter<'d>),
    Postgres(postgres::RulingWriter<'d>),
}

impl RulingWriter<'_> {
    /// Keeps a ruling with the identifiers that it covers.
    pub(crate) async fn keep(&mut self, ruling: &Ruling, covered: &[Mark]) -> Result<(), StoreError> {
        of_each!(self, writer => writer.keep(ruling, covered).await)
    }

    /// Forgets rulings, all of them or none.
    pub(crate) async fn forget(&mut self, ids: &[DecisionId]) -> Result<(), StoreError> {
        of_each!(self, writer => writer.forget(ids).await)
    }
}

/// The connection for decisions, keys and pairs of identifiers, of the one task that writes them.
#[derive(Debug)]
pub(crate) enum Records {
    Sqlite(sqlite::Records),
    Postgres(postgres::Records),
}

impl Records {
    /// Checks that a file that was opened is still there, as it was left. What a server has it looks after itself.
    pub(crate) async fn is_there(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(records) => records.is_there().await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Remembers whether an error means that a file is damaged, and returns the error.
    pub(crate) fn noted(&self, error: StoreError) -> StoreError {
        match self {
            Self::Sqlite(records) => records.noted(error),
            Self::Postgres(_) => error,
        }
    }

    /// Whether what was not written for this error may be written later: a server comes back, or another one takes over.
    pub(crate) const fn may_take_later(&self, error: &StoreError) -> bool {
        match self {
            Self::Sqlite(_) => false,
            Self::Postgres(_) => error.may_pass(),
        }
    }

    /// Moves what is only in the log beside a file into the file. A server does so by itself.
    pub(crate) async fn checkpoint(&mut self, mode: Checkpoint) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(records) => records.checkpoint(mode).await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Writes a batch and the keys that it allows; returns how many of the decisions are new.
    pub(crate) async fn insert(
        &mut self,
        batch: &[Box<Decision>],
        key_retention: Duration,
        proven: Option<UnixTime>,
    ) -> Result<u64, StoreError> {
        of_each!(self, records => records.insert(batch, key_retention, proven).await)
    }

    /// Writes pairs of identifiers that stood in one record, and covers of locks that still exist. A failed write can be
    /// repeated.
    pub(crate) async fn learn(&mut self, pairs: &[(Mark, Mark)], covers: &[(DecisionId, Mark)]) -> Result<(), StoreError> {
        of_each!(self, records => records.learn(pairs, covers).await)
    }

    /// Keeps the proven time for the next start.
    pub(crate) async fn keep_proven(&mut self, proven: Proven) -> Result<(), StoreError> {
        of_each!(self, records => records.keep_proven(proven).await)
    }

    /// The last proven time; where none was kept, the latest time that the store has seen.
    #[cfg(test)]
    pub(crate) async fn proven(&mut self) -> Result<Option<Proven>, StoreError> {
        of_each!(self, records => records.proven().await)
    }

    /// Id of the oldest decision.
    pub(crate) async fn oldest(&mut self) -> Result<Option<DecisionId>, StoreError> {
        of_each!(self, records => records.oldest().await)
    }

    /// Deletes the oldest decisions from before `id`, at most `most`; returns their number.
    pub(crate) async fn delete_before(&mut self, id: DecisionId, most: u32) -> Result<u64, StoreError> {
        of_each!(self, records => records.delete_before(id, most).await)
    }

    /// Deletes the `most` decisions that were written first; returns the number that was deleted. By time, decisions that were
    /// made while the clock was behind would go instead.
    pub(crate) async fn delete_oldest(&mut self, most: u32) -> Result<u64, StoreError> {
        of_each!(self, records => records.delete_oldest(most).await)
    }

    /// Deletes rulings whose end is past by every clock.
    pub(crate) async fn delete_ended_rulings(&mut self, now: Span) -> Result<(), StoreError> {
        of_each!(self, records => records.delete_ended_rulings(now).await)
    }

    /// Number of keys.
    pub(crate) async fn count_keys(&mut self) -> Result<u64, StoreError> {
        of_each!(self, records => records.count_keys().await)
    }

    /// Deletes a key, if it is still this device's; returns the number of deleted keys.
    pub(crate) async fn delete_key(&mut self, device: &DeviceId, key: PublicKey) -> Result<u64, StoreError> {
        of_each!(self, records => records.delete_key(device, key).await)
    }

    /// Deletes keys that were last allowed before `time`, at most `most`; returns their number.
    pub(crate) async fn delete_keys_before(&mut self, time: UnixTime, most: u32) -> Result<u64, StoreError> {
        of_each!(self, records => records.delete_keys_before(time, most).await)
    }

    /// Deletes the `most` oldest keys; returns the number that was deleted.
    pub(crate) async fn delete_oldest_keys(&mut self, most: u32) -> Result<u64, StoreError> {
        of_each!(self, records => records.delete_oldest_keys(most).await)
    }

    /// Number of pairs of identifiers.
    pub(crate) async fn count_links(&mut self) -> Result<u64, StoreError> {
        of_each!(self, records => records.count_links().await)
    }

    /// Deletes the `most` pairs that were seen the longest ago; returns the number that was deleted.
    pub(crate) async fn delete_links(&mut self, most: u32) -> Result<u64, StoreError> {
        of_each!(self, records => records.delete_links(most).await)
    }

    /// The records in a SQLite file, where they are in one.
    #[cfg(test)]
    pub(crate) const fn sqlite(&mut self) -> Option<&mut sqlite::Records> {
        match self {
            Self::Sqlite(records) => Some(records),
            Self::Postgres(_) => None,
        }
    }
}
