//! Failures of opening a store on a server.

use crate::error::StoreError;

/// The reason why a store on a server cannot be opened. Nothing was changed about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The server cannot be used, or takes too long.
    #[error("the store {server} cannot be opened")]
    Failed {
        /// The server's URL.
        server: String,
        /// Why it cannot.
        #[source]
        source: StoreError,
    },
    /// The schema has tables of something else.
    #[error("{server} has a schema `stepward` that is no store: choose another database by [store] url")]
    Foreign {
        /// The server's URL.
        server: String,
    },
    /// A later release has changed the schema.
    #[error(
        "the store {server} has schema {found}, and this release knows {known} at most: use the release that wrote it, or a backup from before: docs/upgrading.md, \"The store\""
    )]
    Newer {
        /// The server's URL.
        server: String,
        /// Schema of the store.
        found: i64,
        /// Last schema that this release knows.
        known: i64,
    },
}
