//! Opening the file: its permissions, its owner, the release that made it, and whether it is whole.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::unistd::AccessFlags;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::Mutex;

use super::code::{BUSY_CODE, CANNOT_OPEN, CORRUPT, FULL, IO_ERROR, NOT_A_DATABASE, READONLY, fault, primary_code};
use super::log;
use crate::error::StoreError;

/// The reason why a store cannot be opened. Nothing was changed about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is missing and cannot be made, or the file in it cannot be made or written to.
    #[error(
        "the store {} cannot be made or written to: choose another file by [store] path, give the service's user the folder, or do without by enabled = false",
        path.display()
    )]
    NotWritable {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Another process uses the store.
    #[error("the store {} is used by another process: each service has a store of its own", path.display())]
    InUse {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file is a database, but no store.
    #[error("{} is a database of something else: choose another file by [store] path", path.display())]
    Foreign {
        /// Path of the file.
        path: PathBuf,
    },
    /// A later release has written to the file.
    #[error(
        "the store {} has schema {found}, and this release knows {known} at most: use the release that wrote it, or a backup from before: docs/upgrading.md, \"The store\"",
        path.display()
    )]
    Newer {
        /// Path of the file.
        path: PathBuf,
        /// Schema of the file.
        found: i64,
        /// Last schema that this release knows.
        known: i64,
    },
    /// The file is no database, or a broken one.
    #[error(
        "the store {} is damaged: move it aside together with {}-wal and {}-shm, which would damage any other one, and only then put a backup in its place; without one the service begins with an empty store, which has no locks: docs/locks.md, \"When the store is lost\"",
        path.display(), path.display(), path.display()
    )]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// The error of SQLite.
        #[source]
        source: sqlx::Error,
    },
    /// The file was emptied, or removed without the files beside it. Its content would be lost without a word.
    #[error(
        "the store {} is empty or gone though it was in use: remove it together with {}-wal and {}-shm, which would damage any other one, and only then put a backup in its place; without one the service begins with an empty store, which has no locks: docs/locks.md, \"When the store is lost\"",
        path.display(), path.display(), path.display()
    )]
    Emptied {
        /// Path of the file.
        path: PathBuf,
    },
    /// The log beside the file was written to another file than this one, and would be laid over it.
    #[error(
        "{}-wal is not of the store {}, as where a backup was put in its place: remove {}-wal and {}-shm; or where all of them were put there together, remove {}.lock instead",
        path.display(), path.display(), path.display(), path.display(), path.display()
    )]
    OfAnother {
        /// Path of the file.
        path: PathBuf,
    },
    /// Another failure of the database.
    #[error("the store {} cannot be opened", path.display())]
    Failed {
        /// Path of the file.
        path: PathBuf,
        /// The error of SQLite.
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
    /// Connection for decisions: a crash of the machine may cost the last of them, a crash of the process none.
    pub(super) decisions: SqliteConnection,
    /// Connection for rulings: a change is on the disk before its call returns.
    pub(super) rulings: SqliteConnection,
    /// Connection that only reads decisions: a device's decisions are searched among all, which takes a while where there are
    /// many.
    pub(super) listing: SqliteConnection,
    /// Connection that only reads keys.
    pub(super) keys: SqliteConnection,
    pub(super) identity: Identity,
    pub(super) lock: File,
}

/// Identity of the files of a store: on Linux a removed file can still be written to, and all of that is lost at the end.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// Paths and identities of the database, its log, the log's index, and the lock file.
    files: Arc<[(PathBuf, Named); 4]>,
    /// The log and its index, open for reading.
    looked_at: Arc<[File; 2]>,
    /// State of the database file after this process last wrote to it, which only [`Self::checkpoint`] does.
    database: Arc<Mutex<Contents>>,
    damaged: Arc<AtomicBool>,
}

/// The file that a path names: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    device: u64,
    inode: u64,
}

impl Named {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// The two numbers in the form that the store keeps.
    const fn numbers(self) -> (i64, i64) {
        (self.device.cast_signed(), self.inode.cast_signed())
    }
}

/// Length and modification time, by which a write to a file shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Contents {
    length: u64,
    modified: (i64, i64),
}

impl Contents {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self { length: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) })
    }
}

impl Identity {
    fn new(path: &Path) -> io::Result<Self> {
        let named = |suffix| {
            let path = suffixed(path, suffix);
            let named = Named::of(&std::fs::metadata(&path)?);
            Ok::<_, io::Error>((path, named))
        };
        let files = Arc::new([named("")?, named("-wal")?, named("-shm")?, named(LOCK)?]);
        // The files are opened once: closing a file ends every lock that this process has on it, SQLite's among them, and the
        // next reader would take itself for the first and begin the index anew.
        let read = |suffix| File::open(suffixed(path, suffix));
        let looked_at = Arc::new([read("-wal")?, read("-shm")?]);
        Ok(Self { files, looked_at, database: Arc::new(Mutex::new(Contents::of(path)?)), damaged: Arc::default() })
    }

    pub(super) fn path(&self) -> &Path {
        let [(path, _), ..] = &*self.files;
        path
    }

    /// Checks that the paths still name the files that were opened, that the database is as it was left, and that the log is as
    /// long as its index says.
    pub(super) async fn is_there(&self) -> Result<(), StoreError> {
        self.look(false).await
    }

    /// Checks that a start would find what was written: as [`Self::is_there`], and every frame of the log.
    pub(super) async fn would_be_found(&self) -> Result<(), StoreError> {
        self.look(true).await
    }

    async fn look(&self, wholly: bool) -> Result<(), StoreError> {
        // The lock is held so that no checkpoint is under way.
        let left = Arc::clone(&self.database).lock_owned().await;
        let (files, looked_at) = (Arc::clone(&self.files), Arc::clone(&self.looked_at));
        let looked = tokio::task::spawn_blocking(move || {
            let is = |(path, named): &(PathBuf, Named)| std::fs::metadata(path).is_ok_and(|found| Named::of(&found) == *named);
            let ([(path, _), ..], [log, index]) = (&*files, &*looked_at);
            files.iter().all(is)
                && left.length > 0
                && Contents::of(path).is_ok_and(|found| found == *left)
                && log::is_whole(log, index, wholly).unwrap_or(false)
        });
        if looked.await.unwrap_or(false) { Ok(()) } else { Err(StoreError::Gone) }
    }

    /// Moves the content of the log into the database.
    pub(super) async fn checkpoint(&self, connection: &mut SqliteConnection, mode: Checkpoint) -> Result<(), StoreError> {
        let ([(path, _), ..], [_, index]) = (&*self.files, &*self.looked_at);
        if mode == Checkpoint::OfMuch && log::frames(index).is_ok_and(|frames| frames < MUCH) {
            return Ok(());
        }
        let statement = match mode {
            Checkpoint::OfMuch => "PRAGMA wal_checkpoint(PASSIVE)",
            Checkpoint::OfAll => "PRAGMA wal_checkpoint(TRUNCATE)",
        };
        let mut left = self.database.lock().await;
        // If another process wrote to the file, pages of this log would be laid over another database.
        if !Contents::of(path).is_ok_and(|found| found == *left) {
            return Err(StoreError::Gone);
        }
        let done = sqlx::query(statement).execute(connection).await;
        if let Ok(found) = Contents::of(path) {
            *left = found;
        }
        done.map(drop).map_err(|error| self.noted(fault(error)))
    }

    /// Remembers whether an error means that the file is damaged, and returns the error.
    pub(super) fn noted(&self, error: StoreError) -> StoreError {
        if matches!(error, StoreError::Damaged(_)) {
            self.damaged.store(true, Ordering::Relaxed);
        }
        error
    }

    /// Returns whether the file was found to be damaged.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }
}

/// The part of the log that is moved into the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checkpoint {
    /// The part that nobody reads at the moment, once the log is long.
    OfMuch,
    /// The whole log, so that the file alone is the store.
    OfAll,
}

/// Follows links from a path to the store's file, or to where it will be made: the files beside the store stand beside that file,
/// and not beside the link.
pub(super) fn linked(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    // The loop follows as many links as the system itself does (path_resolution(7)).
    for _ in 0..=40 {
        match std::fs::read_link(&path) {
            Ok(target) => {
                let to = path.parent().unwrap_or(Path::new("")).join(target);
                // The folder is made canonical, for messages and for other processes that use the store.
                let folder = to.parent().and_then(|folder| folder.canonicalize().ok());
                path = folder.zip(to.file_name()).map_or(to.clone(), |(folder, name)| folder.join(name));
            }
            // The path is no link, or nothing is there.
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("links lead round in a circle"))
}

/// Examines the file of a store and its folder as a start would, and changes neither. Damage that shows only once SQLite reads
/// the pages is not found.
///
/// # Errors
/// The errors of a start: the file is no store, one of a later release, or emptied, or its folder cannot be written to.
pub fn examine(path: &Path) -> Result<(), OpenError> {
    let path = &linked(path).map_err(|source| OpenError::NotWritable { path: path.to_owned(), source })?;
    let failed = |source| OpenError::NotWritable { path: path.to_owned(), source };
    let usable = |path: &Path, flags| nix::unistd::eaccess(path, flags).map_err(|errno| failed(errno.into()));
    let found = match std::fs::metadata(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            if suffixed(path, "-wal").exists() {
                return Err(OpenError::Emptied { path: path.to_owned() });
            }
            let folder = path.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(Path::new("/"));
            if !folder.is_dir() {
                return Err(failed(io::Error::other(format!("{} is no folder", folder.display()))));
            }
            return usable(folder, AccessFlags::W_OK | AccessFlags::X_OK);
        }
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.is_file() => return Err(failed(io::Error::other("it is not a regular file"))),
        Ok(found) => found,
    };
    if found.len() == 0 {
        return Err(OpenError::Emptied { path: path.to_owned() });
    }
    usable(path, AccessFlags::R_OK | AccessFlags::W_OK)?;
    // SQLite makes files beside it.
    usable(path.parent().unwrap_or(path), AccessFlags::W_OK | AccessFlags::X_OK)?;
    // Closing this file ends no lock of a service, which is another process (https://sqlite.org/fileformat.html, 1.3).
    let header = settings::files::open(path).and_then(|file| {
        let mut header = [0; HEADER];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut header, 0).map(|()| header)
    });
    let number = |header: &[u8; HEADER], at: usize| {
        let bytes = header.get(at..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| i64::from(u32::from_be_bytes(*bytes)))
    };
    match header {
        Ok(header) if header.starts_with(b"SQLite format 3\0") => {
            let (found, known) = (number(&header, 60), known());
            match number(&header, 68) {
                APPLICATION if found > known => Err(OpenError::Newer { path: path.to_owned(), found, known }),
                // A start that was killed has not yet marked the file as a store.
                APPLICATION | 0 => Ok(()),
                _ => Err(OpenError::Foreign { path: path.to_owned() }),
            }
        }
        Ok(_) => Err(OpenError::Damaged { path: path.to_owned(), source: sqlx::Error::Decode("it is no database".into()) }),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(OpenError::Damaged { path: path.to_owned(), source: sqlx::Error::Decode("it is no database".into()) })
        }
        Err(error) => Err(failed(error)),
    }
}

/// Length of a database's header, in bytes.
const HEADER: usize = 100;

pub(super) async fn open(path: &Path) -> Result<Connections, OpenError> {
    let path = &linked(path).map_err(|source| OpenError::NotWritable { path: path.to_owned(), source })?;
    let lock = prepare(path)?;
    let failed = |error| OpenError::from_sqlite(path, error);
    let unreadable = |source| OpenError::NotWritable { path: path.to_owned(), source };
    let owner = Named::of(&lock.metadata().map_err(unreadable)?);
    make(path).await?;
    let generation = Generation::before(path, &read_all(&lock).map_err(unreadable)?).await?;
    let is_owned = owner_of(path).await? == Some(owner.numbers());
    if !is_owned {
        nobody_else(path).await?;
    }
    let mut decisions = options(path).synchronous(SqliteSynchronous::Normal).connect().await.map_err(failed)?;
    look_over(&mut decisions, path).await?;
    migrate(&mut decisions, path).await?;
    sqlx::query("PRAGMA journal_mode = WAL").execute(&mut decisions).await.map_err(failed)?;
    sqlx::query(LARGEST_LOG).execute(&mut decisions).await.map_err(failed)?;
    let durable = options(path).synchronous(SqliteSynchronous::Full).journal_mode(SqliteJournalMode::Wal);
    let mut rulings = durable.connect().await.map_err(failed)?;
    // Only an attempt shows whether the store can be written to.
    let (device, inode) = owner.numbers();
    // The lock file names both generations, since the database may have either when this process is killed.
    Generation::write(&lock, &generation.known_before()).map_err(unreadable)?;
    sqlx::query(OWN).bind(device).bind(inode).bind(&generation.new).execute(&mut rulings).await.map_err(failed)?;
    let listing = options(path).read_only(true).connect().await.map_err(failed)?;
    let keys = options(path).read_only(true).connect().await.map_err(failed)?;
    let metadata = std::fs::metadata(path).map_err(|source| OpenError::NotWritable { path: path.to_owned(), source })?;
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others may use the store: it names devices and their locks; set its mode to 0600");
    }
    let identity = Identity::new(path).map_err(unreadable)?;
    let moved = identity.checkpoint(&mut rulings, Checkpoint::OfAll).await.is_ok();
    // While somebody reads, a part of the log stays.
    if moved && std::fs::metadata(suffixed(path, "-wal")).is_ok_and(|log| log.len() == 0) {
        Generation::write(&lock, &generation.new).map_err(unreadable)?;
    }
    // A lock file that was removed since it was opened keeps nobody out.
    identity.is_there().await.map_err(|_| OpenError::InUse { path: path.to_owned() })?;
    Ok(Connections { decisions, rulings, listing, keys, identity, lock })
}

/// Makes folder and file where they are missing, for their owner alone, and keeps other processes out.
fn prepare(path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::NotWritable { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    }
    // The lock is on a file of its own: closing any descriptor of the database would end SQLite's locks on it
    // (https://sqlite.org/howtocorrupt.html).
    let beside = suffixed(path, LOCK);
    let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(beside).map_err(failed)?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: path.to_owned() }),
        // On a file system without such locks the store does without.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    Ok(lock)
}

/// Makes the file where there is none, whole or not at all: an empty file is never ours.
async fn make(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::NotWritable { path: path.to_owned(), source };
    // Opening a pipe would wait for its reader.
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    match OpenOptions::new().write(true).open(path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.len() > 0 => return Ok(()),
        // SQLite would take a log without its database for the log of the new one.
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
    // SQLite gives the files beside the database the same mode.
    drop(OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(failed)?);
    let failed_in = |error| OpenError::from_sqlite(path, error);
    let mut connection = options(&new).connect().await.map_err(failed_in)?;
    migrate(&mut connection, path).await?;
    connection.close().await.map_err(failed_in)?;
    std::fs::rename(&new, path).map_err(failed)
}

/// Device and inode of the lock file that the store was last used with; `None` where the store has none yet, or the file is no
/// store.
async fn owner_of(path: &Path) -> Result<Option<(i64, i64)>, OpenError> {
    let failed = |error| OpenError::from_sqlite(path, error);
    let mut connection = options(path).connect().await.map_err(failed)?;
    let tables: i64 = sqlx::query_scalar(TABLES).bind("owner").fetch_one(&mut connection).await.map_err(failed)?;
    let owner = if tables == 0 {
        None
    } else {
        sqlx::query_as("SELECT device, inode FROM owner").fetch_optional(&mut connection).await.map_err(failed)?
    };
    connection.close().await.map_err(failed)?;
    Ok(owner)
}

/// The start that wrote to the store last, by a random id in the database and in the lock file: it shows whether the log of a
/// killed store belongs to this very database.
pub(super) struct Generation {
    /// Id that the database has until the new one is written; empty where it has none.
    before: String,
    new: String,
}

impl Generation {
    /// Reads the id that the database has, and makes a new one. `known` is the text of the lock file.
    ///
    /// # Errors
    /// [`OpenError::OfAnother`] where there is a log, and the lock file does not know the database's id.
    pub(super) async fn before(path: &Path, known: &str) -> Result<Self, OpenError> {
        let new = format!("{:032x}", rand::random::<u128>());
        // The file is opened immutable, so that SQLite takes neither its log nor a lock.
        let alone = options(path).read_only(true).immutable(true);
        let query = async {
            let mut connection = alone.connect().await?;
            let generation: Result<Option<String>, _> =
                sqlx::query_scalar("SELECT generation FROM owner").fetch_optional(&mut connection).await;
            connection.close().await?;
            generation
        };
        let found = match query.await {
            Ok(found) => found.unwrap_or_default(),
            // The code that opens the damaged file next reports it.
            Err(error) if matches!(primary_code(&error), Some(CORRUPT | NOT_A_DATABASE)) => return Ok(Self { before: String::new(), new }),
            // A store of an earlier release has no generation.
            Err(_) => String::new(),
        };
        let has_log = std::fs::metadata(suffixed(path, "-wal")).is_ok_and(|log| log.len() > 0);
        if has_log && !known.is_empty() && !known.split_whitespace().any(|known| known == found) {
            return Err(OpenError::OfAnother { path: path.to_owned() });
        }
        Ok(Self { before: found, new })
    }

    /// The text for the lock file while either id may be in the database; empty, which keeps nobody out, where there was none
    /// before.
    fn known_before(&self) -> String {
        if self.before.is_empty() { String::new() } else { format!("{} {}", self.new, self.before) }
    }

    /// Writes a text to the lock file.
    fn write(mut lock: &File, text: &str) -> io::Result<()> {
        use std::io::{Seek as _, Write as _};
        lock.rewind()?;
        lock.write_all(text.as_bytes())?;
        lock.set_len(text.len() as u64)?;
        lock.sync_all()
    }
}

pub(super) fn read_all(mut file: &File) -> io::Result<String> {
    use std::io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(256).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Checks the tables that the service cannot do without, where the process before was killed: a start reads no other page that it
/// does not need.
async fn look_over(connection: &mut SqliteConnection, path: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError::from_sqlite(path, error);
    for (table, check) in [
        ("rulings", "PRAGMA quick_check(rulings)"),
        ("covers", "PRAGMA quick_check(covers)"),
        ("owner", "PRAGMA quick_check(owner)"),
        ("clock", "PRAGMA quick_check(clock)"),
    ] {
        let tables: i64 = sqlx::query_scalar(TABLES).bind(table).fetch_one(&mut *connection).await.map_err(failed)?;
        if tables > 0 {
            let said: String = sqlx::query_scalar(check).fetch_one(&mut *connection).await.map_err(failed)?;
            if said != "ok" {
                return Err(OpenError::Damaged { path: path.to_owned(), source: sqlx::Error::Decode(said.into()) });
            }
        }
    }
    Ok(())
}

/// Checks that no other process has the database open. A lock file that was removed and made anew does not keep out a process
/// that holds the old one, but SQLite's own locks do.
async fn nobody_else(path: &Path) -> Result<(), OpenError> {
    let in_use = |error: sqlx::Error| match primary_code(&error) {
        Some(BUSY_CODE) => OpenError::InUse { path: path.to_owned() },
        _ => OpenError::from_sqlite(path, error),
    };
    // In this mode SQLite locks the whole file at its first use.
    let mut connection = options(path).locking_mode(SqliteLockingMode::Exclusive).connect().await.map_err(in_use)?;
    let begun = sqlx::raw_sql("BEGIN EXCLUSIVE; COMMIT").execute(&mut connection).await;
    let closed = connection.close().await;
    begun.map(drop).and(closed).map_err(in_use)
}

pub(super) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY)
        // Only this process decides when the log is moved into the database, so that it knows what it left there.
        .pragma("wal_autocheckpoint", "0")
        .thread_name(|number| format!("store-{number}"))
        .disable_statement_logging()
}

/// Brings the schema to that of this release, one step after the other, each whole or not at all.
pub(super) async fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError::from_sqlite(path, error);
    let done = usize::try_from(schema(connection, path).await?).unwrap_or_default();
    for script in MIGRATIONS.iter().skip(done) {
        let mut step = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        sqlx::query(MARK).execute(&mut *step).await.map_err(failed)?;
        sqlx::raw_sql(*script).execute(&mut *step).await.map_err(failed)?;
        step.commit().await.map_err(failed)?;
    }
    Ok(())
}

/// The version of the schema: 0 where no table is made yet.
///
/// # Errors
/// The database is that of something else, or of a later release.
pub(super) async fn schema(connection: &mut SqliteConnection, path: &Path) -> Result<i64, OpenError> {
    let failed = |error| OpenError::from_sqlite(path, error);
    let number = |sql| sqlx::query_scalar::<_, i64>(sql);
    let application = number("PRAGMA application_id").fetch_one(&mut *connection).await.map_err(failed)?;
    let found = number("PRAGMA user_version").fetch_one(&mut *connection).await.map_err(failed)?;
    let tables = number("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *connection).await.map_err(failed)?;
    if application != APPLICATION && (application != 0 || found != 0 || tables != 0) {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    if found > known() {
        return Err(OpenError::Newer { path: path.to_owned(), found, known: known() });
    }
    Ok(found)
}

/// The version of the schema of this release.
pub(super) fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Scripts of the schema. Each ends by setting `user_version` to its place in this list, counted from 1. A released script never
/// changes.
pub(crate) const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/sqlite/0001_rulings_and_decisions.sql"),
    include_str!("../../migrations/sqlite/0002_keys.sql"),
    include_str!("../../migrations/sqlite/0003_indexes_that_grow_at_their_end.sql"),
    include_str!("../../migrations/sqlite/0004_rulings_of_a_kind.sql"),
    include_str!("../../migrations/sqlite/0005_links.sql"),
    include_str!("../../migrations/sqlite/0006_the_proven_time.sql"),
    include_str!("../../migrations/sqlite/0007_the_owner.sql"),
    include_str!("../../migrations/sqlite/0008_the_clock_put_right.sql"),
    include_str!("../../migrations/sqlite/0009_the_generation.sql"),
    include_str!("../../migrations/sqlite/0010_attempts.sql"),
    include_str!("../../migrations/sqlite/0011_callers.sql"),
];

/// The mark of a store in the header of its file, `STWP`.
const APPLICATION: i64 = 0x5354_5750;
const MARK: &str = "PRAGMA application_id = 0x53545750";

/// Suffix of the file beside the database that keeps other services out.
pub(super) const LOCK: &str = ".lock";

const TABLES: &str = "SELECT count(*) FROM sqlite_schema WHERE name = ?";
const OWN: &str = "INSERT OR REPLACE INTO owner (id, device, inode, generation) VALUES (1, ?, ?, ?)";

/// Number of frames from which the log is moved into the database: 4 MiB, SQLite's own default.
const MUCH: u32 = 1000;

/// Statement that cuts the log back to 64 MiB after a checkpoint.
const LARGEST_LOG: &str = "PRAGMA journal_size_limit = 67108864";

/// Time for which a connection waits for another one that writes.
pub(super) const BUSY: Duration = Duration::from_secs(5);
