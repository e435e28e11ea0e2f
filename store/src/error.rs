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
    /// The whole chain of causes in one text.
    pub fn text(&self) -> String {
        match self {
            Self::Failed(source) => format!("{self}: {source}"),
            Self::Damaged(source) => format!("{self} ({source})"),
            other => other.to_string(),
        }
    }
}
