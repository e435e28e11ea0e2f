//! A copy of a store, made by SQLite from another process than the service's.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

/// The reason why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store does not exist.
    #[error("there is no store yet")]
    Missing,
    /// The copy's name is taken, and nothing is written over.
    #[error("there is a file of that name already")]
    Taken,
    /// The copy's path is not UTF-8, so SQLite would write into another file than the one that is made for it.
    #[error("its path is not UTF-8, and SQLite takes no other: choose another name or folder")]
    NotText,
    /// The system cannot write the file.
    #[error("the file cannot be written")]
    NotWritable(#[source] io::Error),
    /// SQLite cannot copy the store.
    #[error("SQLite cannot copy it")]
    NotCopied(#[source] sqlx::Error),
    /// The copy is not whole.
    #[error("the copy is damaged: {0}")]
    Damaged(String),
}

/// Copies the store at `path`, as of one moment, into a new file that only its owner can use; returns its length. A failure
/// leaves no file behind.
///
/// # Errors
/// See [`BackupError`].
pub async fn back_up(path: &Path, file: &Path) -> Result<u64, BackupError> {
    if !path.is_file() {
        return Err(BackupError::Missing);
    }
    if file.symlink_metadata().is_ok() {
        return Err(BackupError::Taken);
    }
    // SQLite also writes into an existing file if it is empty (https://sqlite.org/lang_vacuum.html), so the file is made here,
    // with our mode.
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let text = name.to_str().ok_or(BackupError::NotText)?.to_owned();
    let beside = Beside(PathBuf::from(name));
    drop(OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside.0).map_err(BackupError::NotWritable)?);
    // This connection only reads beside the service: it writes nothing into the database, and waits for nobody.
    let mut store = connect(path).await.map_err(BackupError::NotCopied)?;
    let copied = sqlx::query("VACUUM INTO ?").bind(text).execute(&mut store).await;
    let closed = store.close().await;
    copied.map(drop).and(closed).map_err(BackupError::NotCopied)?;
    let mut copy = connect(&beside.0).await.map_err(BackupError::NotCopied)?;
    let checked = sqlx::query_scalar::<_, String>("PRAGMA integrity_check(1)").fetch_one(&mut copy).await;
    let closed = copy.close().await;
    let said = checked.and_then(|said| closed.map(|()| said)).map_err(BackupError::NotCopied)?;
    if said != "ok" {
        return Err(BackupError::Damaged(said));
    }
    let bytes = beside.keep(file).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Taken,
        _ => BackupError::NotWritable(error),
    })?;
    Ok(bytes)
}

async fn connect(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY).disable_statement_logging().connect().await
}

/// A file under a temporary name until it is whole, removed when it is dropped.
#[derive(Debug)]
pub(super) struct Beside(pub(super) PathBuf);

impl Beside {
    /// Gives the file its final name, on the disk, replacing nothing; returns its length.
    pub(super) fn keep(self, file: &Path) -> io::Result<u64> {
        let written = std::fs::File::open(&self.0)?;
        written.sync_all()?;
        std::fs::hard_link(&self.0, file)?;
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::File::open(folder)?.sync_all()?;
        }
        Ok(written.metadata()?.len())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // If the file cannot be removed, the next backup of this name reports it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Time to wait for a writer that holds the whole file.
const BUSY: Duration = Duration::from_secs(10);
