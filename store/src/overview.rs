//! What a store has, for people.

use crate::id::DecisionId;

/// What is found at the place of a store, whichever schema it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// The path or the URL.
    pub place: String,
    /// Version of the schema; 0 where no table is made yet.
    pub schema: i64,
    /// Version of the schema of this release.
    pub known: i64,
    /// Number of services that use the store: of a file 1 or 0, of a server the number of their connections.
    pub services: u64,
    /// Room that it takes, in bytes.
    pub bytes: u64,
    /// The numbers of its rows.
    pub contents: Contents,
}

/// The numbers of the rows of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Number of locks, those that have ended and are not deleted yet among them.
    pub locks: u64,
    /// Number of exemptions, as of locks.
    pub exemptions: u64,
    /// Number of decisions.
    pub decisions: u64,
    /// Number of public keys.
    pub keys: u64,
    /// Number of pairs of identifiers that stood in one record.
    pub links: u64,
    /// The oldest decision.
    pub oldest: Option<DecisionId>,
    /// The newest decision.
    pub newest: Option<DecisionId>,
}

/// What a migration did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// Version of the schema before; `None` where there was none.
    pub from: Option<i64>,
    /// Version of the schema now.
    pub to: i64,
}
