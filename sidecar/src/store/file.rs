//! Opening the file: who may read it, whose it is, which release made it, and whether it is whole.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _};

use super::StoreError;

/// Why a store cannot be opened. Nothing was changed about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is not there and cannot be made, or the file in it.
    #[error(
        "the store {} cannot be made or written to: choose another file by [store] path, give the service's user the folder, or do without by enabled = false",
        path.display()
    )]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Somebody else has it.
    #[error("the store {} is used by another process: each service has a store of its own", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is a database, but no store.
    #[error("{} is a database of something else: choose another file by [store] path", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A later release has written to it.
    #[error(
        "the store {} has schema {found}, and this release knows {known} at most: use the release that wrote it, or a copy of the file from before",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The last that is known.
        known: i64,
    },
    /// It is no database, or a broken one.
    #[error(
        "the store {} is damaged: put a backup in its place, or move it aside together with {}-wal and {}-shm to begin with an empty one, which has no locks",
        path.display(), path.display(), path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: sqlx::Error,
    },
    /// It was emptied, or removed without what stands beside it. Whatever it had would be lost without a word.
    #[error(
        "the store {} is empty or gone though it was in use: put a backup in its place, or remove it together with {}-wal and {}-shm to begin with an empty one, which has no locks",
        path.display(), path.display(), path.display()
    )]
    Emptied {
        /// The file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("the store {} cannot be opened", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: sqlx::Error,
    },
}

impl OpenError {
    pub(super) fn from_sqlite(path: &Path, source: sqlx::Error) -> Self {
        let path = path.to_owned();
        match primary_code(&source) {
            Some(CORRUPT | NOT_A_DATABASE) => Self::Damaged { path, source },
            Some(READONLY | IO_ERROR | FULL | CANNOT_OPEN) => Self::NotWritable { path, source: io::Error::other(source) },
            _ => Self::Failed { path, source },
        }
    }
}

/// The connections to one file.
pub(super) struct Connections {
    /// For decisions: a crash of the machine may cost the last of them, a crash of the process none.
    pub(super) decisions: SqliteConnection,
    /// For rulings: on the disk before a call returns.
    pub(super) rulings: SqliteConnection,
    /// Reads decisions only: a device's are looked for among all, which takes a while where there are many.
    pub(super) listing: SqliteConnection,
    /// Reads keys only.
    pub(super) keys: SqliteConnection,
    pub(super) identity: Identity,
    pub(super) lock: File,
}

/// Which files a store consists of: on Linux a removed file can still be written to, and all of that is lost at the end.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// The database, what is written to it and not yet part of it, the index of that, and what keeps other services out.
    files: Arc<[(PathBuf, Named); 4]>,
}

/// What a path names: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    device: u64,
    inode: u64,
}

impl Named {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// As the store keeps them.
    const fn numbers(self) -> (i64, i64) {
        (self.device.cast_signed(), self.inode.cast_signed())
    }
}

impl Identity {
    fn new(path: &Path) -> io::Result<Self> {
        let named = |suffix| {
            let path = suffixed(path, suffix);
            let named = Named::of(&std::fs::metadata(&path)?);
            Ok::<_, io::Error>((path, named))
        };
        Ok(Self { files: Arc::new([named("")?, named("-wal")?, named("-shm")?, named(LOCK)?]) })
    }

    pub(super) fn path(&self) -> &Path {
        let [(path, _), ..] = &*self.files;
        path
    }

    /// Whether the paths still name the files that were opened, and the database is not empty.
    pub(super) async fn is_there(&self) -> Result<(), StoreError> {
        let files = Arc::clone(&self.files);
        let looked = tokio::task::spawn_blocking(move || {
            let is = |(path, named): &(PathBuf, Named)| std::fs::metadata(path).is_ok_and(|found| Named::of(&found) == *named);
            let [(path, _), ..] = &*files;
            files.iter().all(is) && std::fs::metadata(path).is_ok_and(|found| found.len() > 0)
        });
        if looked.await.unwrap_or(false) { Ok(()) } else { Err(StoreError::Gone) }
    }
}

pub(super) async fn open(path: &Path) -> Result<Connections, OpenError> {
    let lock = prepare(path)?;
    let failed = |error| OpenError::from_sqlite(path, error);
    let unreadable = |source| OpenError::NotWritable { path: path.to_owned(), source };
    let owner = Named::of(&lock.metadata().map_err(unreadable)?);
    make(path).await?;
    let is_owned = owner_of(path).await? == Some(owner.numbers());
    if !is_owned {
        nobody_else(path).await?;
    }
    let mut decisions = options(path).synchronous(SqliteSynchronous::Normal).connect().await.map_err(failed)?;
    migrate(&mut decisions, path).await?;
    sqlx::query("PRAGMA journal_mode = WAL").execute(&mut decisions).await.map_err(failed)?;
    sqlx::query(LARGEST_LOG).execute(&mut decisions).await.map_err(failed)?;
    let durable = options(path).synchronous(SqliteSynchronous::Full).journal_mode(SqliteJournalMode::Wal);
    let mut rulings = durable.connect().await.map_err(failed)?;
    // Only an attempt shows whether it can be written to.
    let (device, inode) = owner.numbers();
    sqlx::query(OWN).bind(device).bind(inode).execute(&mut rulings).await.map_err(failed)?;
    let listing = options(path).read_only(true).connect().await.map_err(failed)?;
    let keys = options(path).read_only(true).connect().await.map_err(failed)?;
    let metadata = std::fs::metadata(path).map_err(|source| OpenError::NotWritable { path: path.to_owned(), source })?;
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others may use the store: it names devices and their locks; set its mode to 0600");
    }
    let identity = Identity::new(path).map_err(unreadable)?;
    // Somebody may have removed the lock file since it was opened: then it keeps nobody out.
    identity.is_there().await.map_err(|_| OpenError::InUse { path: path.to_owned() })?;
    Ok(Connections { decisions, rulings, listing, keys, identity, lock })
}

/// Makes folder and file where they are missing, for their owner alone, and keeps other processes out.
fn prepare(path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::NotWritable { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    }
    // Not the file itself: to close any descriptor of it would end SQLite's own locks (https://sqlite.org/howtocorrupt.html).
    let beside = suffixed(path, LOCK);
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(beside).map_err(failed)?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: path.to_owned() }),
        // A file system without such locks has to do without.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    Ok(lock)
}

/// Makes the file where there is none, whole or not at all: an empty one is never ours.
async fn make(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::NotWritable { path: path.to_owned(), source };
    match OpenOptions::new().write(true).open(path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.len() > 0 => return Ok(()),
        // The log of a database that is not there would be taken for that of the new one.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !suffixed(path, "-wal").exists() => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => return Err(OpenError::Emptied { path: path.to_owned() }),
    }
    let new = suffixed(path, ".new");
    for left_over in ["", "-journal", "-wal", "-shm"].map(|suffix| suffixed(&new, suffix)) {
        match std::fs::remove_file(left_over) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    // SQLite gives the files that it makes beside it the same mode.
    drop(OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(failed)?);
    let failed_in = |error| OpenError::from_sqlite(path, error);
    let mut connection = options(&new).connect().await.map_err(failed_in)?;
    migrate(&mut connection, path).await?;
    connection.close().await.map_err(failed_in)?;
    std::fs::rename(&new, path).map_err(failed)
}

/// Device and inode of the lock file that the store was last used with; `None` where it has none yet, or is no store.
async fn owner_of(path: &Path) -> Result<Option<(i64, i64)>, OpenError> {
    let failed = |error| OpenError::from_sqlite(path, error);
    let mut connection = options(path).connect().await.map_err(failed)?;
    let tables: i64 = sqlx::query_scalar(OWNERS).fetch_one(&mut connection).await.map_err(failed)?;
    let owner = if tables == 0 {
        None
    } else {
        sqlx::query_as("SELECT device, inode FROM owner").fetch_optional(&mut connection).await.map_err(failed)?
    };
    connection.close().await.map_err(failed)?;
    Ok(owner)
}

/// Whether nobody else has the database open. A lock file that was removed and made anew keeps nobody out who has the old one,
/// but SQLite's own locks do.
async fn nobody_else(path: &Path) -> Result<(), OpenError> {
    let in_use = |error: sqlx::Error| match primary_code(&error) {
        Some(BUSY_CODE) => OpenError::InUse { path: path.to_owned() },
        _ => OpenError::from_sqlite(path, error),
    };
    // In this mode all of the file is locked at the first use.
    let mut connection = options(path).locking_mode(SqliteLockingMode::Exclusive).connect().await.map_err(in_use)?;
    let begun = sqlx::raw_sql("BEGIN EXCLUSIVE; COMMIT").execute(&mut connection).await;
    let closed = connection.close().await;
    begun.map(drop).and(closed).map_err(in_use)
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY)
        .thread_name(|number| format!("store-{number}"))
        .disable_statement_logging()
}

/// Brings the schema to that of this release, one step after the other, each whole or not at all.
async fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError::from_sqlite(path, error);
    let number = |sql| sqlx::query_scalar::<_, i64>(sql);
    let application = number("PRAGMA application_id").fetch_one(&mut *connection).await.map_err(failed)?;
    let found = number("PRAGMA user_version").fetch_one(&mut *connection).await.map_err(failed)?;
    let tables = number("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *connection).await.map_err(failed)?;
    if application != APPLICATION && (application != 0 || found != 0 || tables != 0) {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(OpenError::Newer { path: path.to_owned(), found, known });
    }
    let done = usize::try_from(found).unwrap_or_default();
    for script in MIGRATIONS.iter().skip(done) {
        let mut step = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        sqlx::query(MARK).execute(&mut *step).await.map_err(failed)?;
        sqlx::raw_sql(*script).execute(&mut *step).await.map_err(failed)?;
        step.commit().await.map_err(failed)?;
    }
    Ok(())
}

/// SQLite's primary code of an error (<https://sqlite.org/rescode.html>).
pub(super) fn primary_code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<u32>().ok().map(|code| code & 0xff)
}

pub(super) const READONLY: u32 = 8;
const BUSY_CODE: u32 = 5;
const IO_ERROR: u32 = 10;
pub(super) const CORRUPT: u32 = 11;
pub(super) const FULL: u32 = 13;
const CANNOT_OPEN: u32 = 14;
pub(super) const NOT_A_DATABASE: u32 = 26;

/// Each ends by setting `user_version` to its place in this list, counted from 1. One that was released never changes.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/0001_rulings_and_decisions.sql"),
    include_str!("../../migrations/0002_keys.sql"),
    include_str!("../../migrations/0003_indexes_that_grow_at_their_end.sql"),
    include_str!("../../migrations/0004_rulings_of_a_kind.sql"),
    include_str!("../../migrations/0005_links.sql"),
    include_str!("../../migrations/0006_the_proven_time.sql"),
    include_str!("../../migrations/0007_the_owner.sql"),
    include_str!("../../migrations/0008_the_clock_put_right.sql"),
];

/// `STWP` in the header of the file, by which it is known for a store.
const APPLICATION: i64 = 0x5354_5750;
const MARK: &str = "PRAGMA application_id = 0x53545750";

/// What keeps other services out, beside the database.
const LOCK: &str = ".lock";

const OWNERS: &str = "SELECT count(*) FROM sqlite_schema WHERE name = 'owner'";
const OWN: &str = "INSERT OR REPLACE INTO owner (id, device, inode) VALUES (1, ?, ?)";

/// The log is cut back to this after a checkpoint, 64 MiB.
const LARGEST_LOG: &str = "PRAGMA journal_size_limit = 67108864";

/// How long a connection waits for another that writes.
pub(super) const BUSY: Duration = Duration::from_secs(5);
