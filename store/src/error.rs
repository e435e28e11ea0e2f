//! Failures of the store.

/// The reason why the store could not be read or written. Service goes on without it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No store is configured: `[store] enabled = false`.
    #[error("there is no store: [store] enabled is false")]
    None,
    /// The file was removed or replaced, cut short, or written to by another process; what is written would be lost with it.
    #[error("a file of the store was removed or replaced, cut short or written to by somebody else: {}", RECIPE)]
    Gone,
    /// The disk is full.
    #[error("the disk of the store is full")]
    Full,
    /// The file or its file system can only be read.
    #[error("the file of the store cannot be written to")]
    ReadOnly,
    /// Pages of the file make no sense.
    #[error("the file of the store is damaged: {}", RECIPE)]
    Damaged(#[source] sqlx::Error),
    /// The disk did not answer in time.
    #[error("the store did not answer in time")]
    Slow,
    /// No server of the database can be used, for the cause that each has.
    #[error("no server of the store can be used: {0}")]
    Away(String),
    /// The server has another store than the one that was opened, or none any more.
    #[error("the store at {0} is not the one that was opened: put that back, or start the service anew to use this one")]
    Another(String),
    /// The server only reads, as a standby does, or one that was told so.
    #[error("the server of the store only reads: name the one that takes writes in [store] url")]
    Standby,
    /// The connection broke. What was to be written may be there or not.
    #[error("the connection to the store broke")]
    Broken(#[source] sqlx::Error),
    /// The server does not let the service do what it has to.
    #[error("the server of the store refuses the service: its user has to own the schema `stepward`")]
    Denied(#[source] sqlx::Error),
    /// Another failure of the database.
    #[error("the store failed")]
    Failed(#[source] sqlx::Error),
}

/// Steps for whoever is called where a start would not find what the store has. A test compares the documents and the alerts with
/// this text.
pub const RECIPE: &str = "note what `stepward locks` shows, stop the service, move the store's file and those with -wal and -shm aside, \
     put a backup in their place where there is one, start the service, and make the locks anew that are missing: docs/locks.md, \
     \"When the store is lost\"";

impl StoreError {
    /// Whether a server may do later what it did not do now: it is away, or another one takes over.
    pub(crate) const fn may_pass(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Broken(_) | Self::Slow | Self::Standby | Self::Another(_) | Self::Full)
    }

    /// The whole chain of causes in one text.
    pub fn text(&self) -> String {
        match self {
            Self::Failed(source) | Self::Broken(source) | Self::Denied(source) => format!("{self}: {source}"),
            Self::Damaged(source) => format!("{self} ({source})"),
            other => other.to_string(),
        }
    }
}
