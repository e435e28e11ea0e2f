//! Lists of whole inventories that one service reads for all that share a store.

/// A list that begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// A random id, which is the holder of the lease.
    pub id: String,
    /// Digest of all that makes two lists the same.
    pub kind: String,
    /// Name of the provider.
    pub provider: String,
    /// The time since which a list of changes has everything, in nanoseconds since the epoch; `None`: a list of everything.
    pub since: Option<i64>,
    /// The time at which the list began by the clock of the service that reads it, in nanoseconds since the epoch.
    pub started: i64,
}

/// A list that ended, and that other services can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// As of [`Begun::id`].
    pub id: String,
    /// As of [`Begun::since`].
    pub since: Option<i64>,
    /// As of [`Begun::started`].
    pub started: i64,
    /// Whether nothing was left out.
    pub complete: bool,
    /// Number of pages.
    pub pages: i32,
    /// Number of records in all pages.
    pub records: i64,
}
