//! A store's file as a whole: read without a change, and written anew from the rows of another store.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde::Deserialize;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};

use super::backup::Beside;
use super::code::{CORRUPT, NOT_A_DATABASE, primary_code};
use super::file::{self, Generation, LOCK, OpenError, linked, options, suffixed};
use crate::columns;
use crate::overview::{Contents, Migrated, Overview};
use crate::table::{Column, INPUTS, Kind, PAGE, RECORD, Row, Table, Value};

/// The reason why a file cannot be read as a whole, brought up to date, or written.
#[derive(Debug, thiserror::Error)]
pub enum WholeError {
    /// The file is none that a start would take.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no file.
    #[error("there is no store {}", .0.display())]
    Missing(PathBuf),
    /// A service has the file open.
    #[error("the store {} is used by another process: stop the service first, since what it writes meanwhile would be left out", .0.display())]
    InUse(PathBuf),
    /// The file belongs to another user, who could not use what is made beside it.
    #[error("the store {} belongs to the user {owner}: run this as that user, the service's", path.display())]
    NotOurs {
        /// Path of the file.
        path: PathBuf,
        /// The user's number.
        owner: u32,
    },
    /// The schema is that of an earlier release.
    #[error("the store {} has schema {found}, and this release's is {known}: run `stepward store migrate {}` first", path.display(), path.display())]
    Older {
        /// Path of the file.
        path: PathBuf,
        /// Schema of the file.
        found: i64,
        /// Schema of this release.
        known: i64,
    },
    /// The name is taken, and nothing is written over.
    #[error("there is {} already, and nothing is written over: move it aside with the files that have its name and -wal, -shm and .lock", .0.display())]
    Taken(PathBuf),
    /// Another copy is under way into this file.
    #[error("another copy into {} is under way", .0.display())]
    Copying(PathBuf),
    /// The system cannot write the file.
    #[error("{} cannot be written", path.display())]
    NotWritable {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// SQLite cannot read or write.
    #[error("SQLite cannot read or write {}", path.display())]
    Failed {
        /// Path of the file.
        path: PathBuf,
        /// SQLite's error.
        #[source]
        source: sqlx::Error,
    },
}

impl WholeError {
    /// Returns whether there is no file.
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }
}

/// A file that is read, and does not change meanwhile.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    connection: SqliteConnection,
    /// Keeps services out.
    _lock: Option<File>,
}

impl Reader {
    /// Opens the file of a store that no service uses, and keeps services out until this is dropped. Neither the file nor what is
    /// beside it is written to.
    pub(crate) async fn open(path: &Path) -> Result<Self, WholeError> {
        let path = found(path)?;
        let lock = keep_out(&path)?;
        if is_used(&path)? {
            return Err(WholeError::InUse(path));
        }
        let has_log = has_log(&path);
        if has_log {
            let known = lock.as_ref().map(file::read_all).transpose().map_err(|source| unreadable(&path, source))?;
            Generation::before(&path, &known.unwrap_or_default()).await?;
        }
        let mut connection = connect(&path, !has_log).await?;
        let (found, known) = (file::schema(&mut connection, &path).await?, file::known());
        if found < known {
            return Err(WholeError::Older { path, found, known });
        }
        sqlx::query("BEGIN").execute(&mut connection).await.map_err(|error| failed(&path, error))?;
        Ok(Self { path, connection, _lock: lock })
    }

    /// Number of the rows of a table.
    pub(crate) async fn count(&mut self, table: &Table) -> Result<u64, WholeError> {
        count(&mut self.connection, table).await.map_err(|error| failed(&self.path, error))
    }

    /// The next rows of a table, behind the one in this place; none where there are no more.
    pub(crate) async fn page(&mut self, table: &Table, after: Option<&[Value]>) -> Result<Vec<Row>, WholeError> {
        page(&mut self.connection, table, after).await.map_err(|error| failed(&self.path, error))
    }
}

/// A new file under a temporary name, into which rows are written. It is removed where it is not kept.
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    connection: SqliteConnection,
    beside: Beside,
    lock: File,
}

impl Writer {
    /// Makes a file beside the place of the new store. What is left of a copy that was killed goes.
    pub(crate) async fn make(path: &Path) -> Result<Self, WholeError> {
        let path = linked(path).map_err(|source| not_writable(path, source))?;
        for name in ["", "-wal", "-shm"].map(|suffix| suffixed(&path, suffix)) {
            if name.symlink_metadata().is_ok() {
                return Err(WholeError::Taken(name));
            }
        }
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|source| not_writable(&path, source))?;
        }
        let new = suffixed(&path, COPYING);
        let lock = reserved(&path, &new)?;
        let beside = Beside(new.clone());
        let connection = async {
            let fast = options(&new).pragma("journal_mode", "OFF").pragma("synchronous", "OFF").pragma("cache_size", "-32768");
            let mut connection = fast.connect().await.map_err(|error| failed(&new, error))?;
            file::migrate(&mut connection, &new).await?;
            sqlx::query("BEGIN").execute(&mut connection).await.map_err(|error| failed(&new, error))?;
            Ok::<_, WholeError>(connection)
        };
        let connection = connection.await?;
        Ok(Self { path, connection, beside, lock })
    }

    /// Writes rows behind those that were written before.
    pub(crate) async fn write(&mut self, table: &Table, rows: &[Row]) -> Result<(), WholeError> {
        let columns: Vec<&str> = table.columns.iter().filter_map(|column| column.sqlite).collect();
        let row = format!("({})", vec!["?"; columns.len()].join(", "));
        let (name, columns, values) = (table.name, columns.join(", "), vec![row.as_str(); rows.len()].join(", "));
        // Nothing of this text comes from elsewhere.
        let mut query = sqlx::query(AssertSqlSafe(format!("INSERT INTO {name} ({columns}) VALUES {values}")));
        for row in rows {
            for (value, _) in row.values.iter().zip(table.columns).filter(|(_, column)| column.sqlite.is_some()) {
                query = match value {
                    Value::Integer(number) => query.bind(number),
                    Value::Text(text) => query.bind(text),
                    Value::Bytes(bytes) => query.bind(bytes),
                };
            }
        }
        query.execute(&mut self.connection).await.map(drop).map_err(|error| failed(&self.path, error))
    }

    /// Ends the writing: the file is on the disk, under its temporary name.
    pub(crate) async fn written(self) -> Result<Written, WholeError> {
        let Self { path, mut connection, beside, lock } = self;
        let ended = sqlx::query("COMMIT").execute(&mut connection).await;
        let closed = connection.close().await;
        ended.map(drop).and(closed).map_err(|error| failed(&path, error))?;
        lock.sync_all().map_err(|source| not_writable(&path, source))?;
        Ok(Written { path, beside, connection: None, _lock: lock })
    }
}

/// A file that is whole, under its temporary name.
#[derive(Debug)]
pub(crate) struct Written {
    path: PathBuf,
    beside: Beside,
    /// The connection that reads what was written.
    connection: Option<SqliteConnection>,
    _lock: File,
}

impl Written {
    /// The next rows of a table that was written, behind the one in this place.
    pub(crate) async fn page(&mut self, table: &Table, after: Option<&[Value]>) -> Result<Vec<Row>, WholeError> {
        let failed = |error| failed(&self.path, error);
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(&self.beside.0, true).await?),
        };
        page(connection, table, after).await.map_err(failed)
    }

    /// Gives the file its name, if SQLite finds it whole.
    pub(crate) async fn keep(self) -> Result<(), WholeError> {
        let mut connection = match self.connection {
            Some(connection) => connection,
            None => connect(&self.beside.0, true).await?,
        };
        let checked = sqlx::query_scalar::<_, String>("PRAGMA integrity_check(1)").fetch_one(&mut connection).await;
        let closed = connection.close().await;
        let said = checked.and_then(|said| closed.map(|()| said)).map_err(|error| failed(&self.path, error))?;
        if said != "ok" {
            return Err(failed(&self.path, sqlx::Error::Decode(said.into())));
        }
        self.beside.keep(&self.path).map(drop).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => WholeError::Taken(self.path.clone()),
            _ => not_writable(&self.path, error),
        })
    }
}

/// What the file of a store has; a service may use it meanwhile. Nothing is changed.
pub(crate) async fn overview(path: &Path) -> Result<Option<Overview>, WholeError> {
    let path = match found(path) {
        Err(WholeError::Missing(_)) => return Ok(None),
        path => path?,
    };
    for _ in 0..TRIES {
        let (used, before) = (is_used(&path)?, changed(&path)?);
        let alone = !used && !has_log(&path);
        let mut connection = connect(&path, alone).await?;
        let looked = looked(&mut connection, &path).await;
        let closed = connection.close().await.map_err(|error| failed(&path, error));
        // A service that started meanwhile may have written to what was taken for still.
        if !alone || (!is_used(&path)? && changed(&path)? == before) {
            let (schema, contents) = looked?;
            closed?;
            let bytes = ["", "-wal"].iter().filter_map(|suffix| std::fs::metadata(suffixed(&path, suffix)).ok()).map(|file| file.len());
            let (known, services) = (file::known(), u64::from(used));
            return Ok(Some(Overview { place: path.display().to_string(), schema, known, services, bytes: bytes.sum(), contents }));
        }
    }
    Err(WholeError::InUse(path))
}

/// Brings the file of a store that no service uses to the schema of this release.
pub(crate) async fn migrate(path: &Path) -> Result<Migrated, WholeError> {
    let path = found(path)?;
    let owner = std::fs::metadata(&path).map_err(|source| unreadable(&path, source))?.uid();
    if owner != nix::unistd::geteuid().as_raw() {
        return Err(WholeError::NotOurs { path, owner });
    }
    if is_used(&path)? {
        return Err(WholeError::InUse(path));
    }
    let mut connection = connect(&path, !has_log(&path)).await?;
    let from = file::schema(&mut connection, &path).await;
    connection.close().await.map_err(|error| failed(&path, error))?;
    let from = from?;
    let opened = match file::open(&path).await {
        Err(OpenError::InUse { path }) => return Err(WholeError::InUse(path)),
        opened => opened?,
    };
    let file::Connections { decisions, rulings, listing, keys, identity: _, lock } = opened;
    // The last one that closes a file and may write to it removes its log.
    for connection in [listing, keys, decisions, rulings] {
        connection.close().await.map_err(|error| failed(&path, error))?;
    }
    drop(lock);
    Ok(Migrated { from: Some(from).filter(|from| *from > 0), to: file::known() })
}

/// The file that a path leads to.
fn found(path: &Path) -> Result<PathBuf, WholeError> {
    let path = linked(path).map_err(|source| unreadable(path, source))?;
    match std::fs::metadata(&path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            if suffixed(&path, "-wal").exists() { Err(OpenError::Emptied { path }.into()) } else { Err(WholeError::Missing(path)) }
        }
        Err(source) => Err(unreadable(&path, source)),
        Ok(found) if !found.is_file() => Err(unreadable(&path, io::Error::other("it is not a regular file"))),
        Ok(found) if found.len() == 0 => Err(OpenError::Emptied { path }.into()),
        Ok(_) => Ok(path),
    }
}

/// Takes the lock file, where there is one: a copy that was moved elsewhere has none.
fn keep_out(path: &Path) -> Result<Option<File>, WholeError> {
    let lock = match File::open(suffixed(path, LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(unreadable(path, source)),
    };
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => Err(WholeError::InUse(path.to_owned())),
        // On a file system without such locks the store does without.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(lock)),
    }
}

/// Returns whether another process has the database open: while it does, SQLite has a lock on bytes of the file
/// (<https://sqlite.org/lockingv3.html>), whatever became of the lock file.
fn is_used(path: &Path) -> Result<bool, WholeError> {
    // Closing this file ends no lock of a service, which is another process.
    let file = settings::files::open(path).map_err(|source| unreadable(path, source))?;
    let lock_type = |number: libc::c_int| i16::try_from(number).unwrap_or_default();
    let mut asked = libc::flock {
        l_type: lock_type(libc::F_WRLCK),
        l_whence: lock_type(libc::SEEK_SET),
        l_start: SHARED_FIRST,
        l_len: SHARED_LENGTH,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_GETLK(&mut asked)) {
        Ok(_) => Ok(asked.l_type != lock_type(libc::F_UNLCK)),
        // A file system without such locks has none.
        Err(_) => Ok(false),
    }
}

/// Length and time by which a write shows.
fn changed(path: &Path) -> Result<(u64, Option<SystemTime>), WholeError> {
    let metadata = std::fs::metadata(path).map_err(|source| unreadable(path, source))?;
    Ok((metadata.len(), metadata.modified().ok()))
}

fn has_log(path: &Path) -> bool {
    std::fs::metadata(suffixed(path, "-wal")).is_ok_and(|log| log.len() > 0)
}

/// Opens a database for reading. One that is `alone` has no log that counts, and nobody writes to it: it is read without a file
/// beside it, which would be left behind.
async fn connect(path: &Path, alone: bool) -> Result<SqliteConnection, WholeError> {
    options(path).read_only(true).immutable(alone).connect().await.map_err(|error| failed(path, error))
}

/// Makes the file for a copy, and takes it: two copies into one place would write into each other.
fn reserved(path: &Path, new: &Path) -> Result<File, WholeError> {
    let failed = |source| not_writable(path, source);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(new);
    let file = open.map_err(failed)?;
    if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
        return Err(WholeError::Copying(path.to_owned()));
    }
    // Another copy may have given the file its name since it was opened.
    let is_ours = |found: &std::fs::Metadata, ours: &std::fs::Metadata| (found.dev(), found.ino()) == (ours.dev(), ours.ino());
    let ours = file.metadata().map_err(failed)?;
    if !new.symlink_metadata().is_ok_and(|found| is_ours(&found, &ours)) || ours.nlink() != 1 {
        return Err(WholeError::Copying(path.to_owned()));
    }
    for left_over in ["-journal", "-wal", "-shm"].map(|suffix| suffixed(new, suffix)) {
        match std::fs::remove_file(left_over) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    file.set_len(0).map_err(failed)?;
    Ok(file)
}

/// The schema of a database, and what is in its tables.
async fn looked(connection: &mut SqliteConnection, path: &Path) -> Result<(i64, Contents), WholeError> {
    let schema = file::schema(connection, path).await?;
    let contents = async {
        let mut contents = Contents::default();
        // An earlier schema has not all tables.
        let tables: Vec<String> =
            sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'table'").fetch_all(&mut *connection).await?;
        for (table, statement, count) in [
            ("rulings", "SELECT count(*) FROM rulings WHERE kind = 'lock'", &mut contents.locks),
            ("rulings", "SELECT count(*) FROM rulings WHERE kind = 'exemption'", &mut contents.exemptions),
            ("decisions", "SELECT count(*) FROM decisions", &mut contents.decisions),
            ("keys", "SELECT count(*) FROM keys", &mut contents.keys),
            ("links", "SELECT count(*) FROM links", &mut contents.links),
        ] {
            if tables.iter().any(|found| found == table) {
                *count = sqlx::query_scalar::<_, i64>(statement).fetch_one(&mut *connection).await?.unsigned_abs();
            }
        }
        if tables.iter().any(|found| found == "decisions") {
            let (oldest, newest): (Option<String>, Option<String>) =
                sqlx::query_as("SELECT (SELECT min(id) FROM decisions), (SELECT max(id) FROM decisions)").fetch_one(connection).await?;
            contents.oldest = oldest.map(|id| columns::id(&id)).transpose()?;
            contents.newest = newest.map(|id| columns::id(&id)).transpose()?;
        }
        Ok(contents)
    };
    Ok((schema, contents.await.map_err(|error| failed(path, error))?))
}

async fn count(connection: &mut SqliteConnection, table: &Table) -> Result<u64, sqlx::Error> {
    if table.sqlite_order.is_none() {
        return Ok(0);
    }
    let condition = if table.sqlite_filter.is_empty() { String::new() } else { format!(" WHERE {}", table.sqlite_filter) };
    let statement = format!("SELECT count(*) FROM {}{condition}", table.name);
    Ok(sqlx::query_scalar::<_, i64>(AssertSqlSafe(statement)).fetch_one(connection).await?.unsigned_abs())
}

async fn page(connection: &mut SqliteConnection, table: &Table, after: Option<&[Value]>) -> Result<Vec<Row>, sqlx::Error> {
    let Some(order) = table.sqlite_order else { return Ok(Vec::new()) };
    let by = order.iter().filter_map(|column| column.sqlite).collect::<Vec<_>>().join(", ");
    let columns: Vec<&str> = table.columns.iter().filter_map(|column| column.sqlite).collect();
    let behind = after.map(|after| format!("({by}) > ({})", vec!["?"; after.len()].join(", ")));
    let filter = Some(table.sqlite_filter.to_owned()).filter(|filter| !filter.is_empty());
    let conditions: Vec<String> = behind.into_iter().chain(filter).collect();
    let condition = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    let (name, columns) = (table.name, columns.join(", "));
    // Nothing of this text comes from elsewhere.
    let statement = format!("SELECT {by}, {columns} FROM {name}{condition} ORDER BY {by} LIMIT {PAGE}");
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for value in after.unwrap_or_default() {
        query = match value {
            Value::Integer(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
            Value::Bytes(bytes) => query.bind(bytes),
        };
    }
    query.fetch_all(connection).await?.iter().map(|row| read(row, order, table)).collect()
}

fn read(row: &SqliteRow, order: &[Column], table: &Table) -> Result<Row, sqlx::Error> {
    let mut next = 0..;
    let mut take = |kind| {
        let at = next.next().unwrap_or_default();
        Ok::<_, sqlx::Error>(match kind {
            Kind::Integer => Value::Integer(row.try_get(at)?),
            Kind::Text => Value::Text(row.try_get(at)?),
            Kind::Bytes => Value::Bytes(row.try_get(at)?),
        })
    };
    let place = order.iter().map(|column| take(column.kind)).collect::<Result<_, _>>()?;
    let mut of_record = OfRecord::default();
    let mut values = Vec::with_capacity(table.columns.len());
    for column in table.columns {
        let value = match (column.sqlite, column.name) {
            (Some(_), _) => take(column.kind)?,
            (None, INPUTS) => Value::Text(Some(of_record.inputs.take().unwrap_or_default())),
            (None, _) => Value::Text(of_record.caller.take()),
        };
        if let (RECORD, Value::Text(Some(record))) = (column.name, &value) {
            // A record that is none has neither.
            of_record = serde_json::from_str(record).unwrap_or_default();
        }
        values.push(value);
    }
    Ok(Row { place, values })
}

/// The members of a record that PostgreSQL has in columns too.
#[derive(Default, Deserialize)]
struct OfRecord {
    inputs: Option<String>,
    caller: Option<String>,
}

fn failed(path: &Path, source: sqlx::Error) -> WholeError {
    match primary_code(&source) {
        Some(CORRUPT | NOT_A_DATABASE) => WholeError::Open(OpenError::Damaged { path: path.to_owned(), source }),
        _ => WholeError::Failed { path: path.to_owned(), source },
    }
}

fn unreadable(path: &Path, source: io::Error) -> WholeError {
    WholeError::Failed { path: path.to_owned(), source: sqlx::Error::Io(source) }
}

fn not_writable(path: &Path, source: io::Error) -> WholeError {
    WholeError::NotWritable { path: path.to_owned(), source }
}

/// Suffix of a file that is being written. A service that starts meanwhile makes another one.
const COPYING: &str = ".copying";

/// The bytes on which a connection that reads has a lock.
const SHARED_FIRST: libc::off_t = 0x4000_0002;
const SHARED_LENGTH: libc::off_t = 510;

/// Number of looks at a file that a service begins to use meanwhile.
const TRIES: u32 = 3;
