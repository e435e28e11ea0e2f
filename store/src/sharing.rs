//! Settings of a store that several services share.

use std::time::Duration;

/// How a service shares a store with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// Name of the service for people, where another one could not tell it of a lock.
    pub name: String,
    /// Time for which the service answers though it hears nothing of what others rule; default 60 s.
    pub stale_limit: Duration,
}

impl Sharing {
    /// The default: a service without a name.
    pub const DEFAULT: Self = Self { name: String::new(), stale_limit: STALE_LIMIT };
}

/// Default of [`Sharing::stale_limit`].
pub const STALE_LIMIT: Duration = Duration::from_secs(60);
