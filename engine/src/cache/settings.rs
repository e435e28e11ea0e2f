//! The settings of a cache.

use std::time::Duration;

/// The settings of a cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The lifetimes of answers.
    pub cache: Lifetimes,
    /// Limits on how hard the service may be asked.
    pub limits: Limits,
    /// Calls to the service at once.
    pub connections: usize,
    /// The schedule of lists; `None`: no list is read.
    pub sync: Option<Schedule>,
}

/// The lifetimes of the cache's answers: `[provider.<name>.cache]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Lifetime of an answer that a device was found; default 5 min. In its last fifth it is refreshed beside the answer.
    pub positive: Duration,
    /// Lifetime of an answer that a device was not found; default 30 s.
    pub negative: Duration,
    /// Greatest age of a record that stands in where the service cannot say; default 24 h, 0 for never.
    pub stale_if_error: Duration,
    /// Devices at most; default 1,000,000.
    pub max_entries: u64,
}

/// Limits on how hard a service may be asked: `[provider.<name>.limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lookups of devices in a second; default 20.
    pub per_second: u32,
    /// Lookups in a minute, among these, of identifiers that were never found; default [`Limits::guesses`].
    pub unknown_per_minute: u32,
}

/// The schedule by which the inventory is read: `[provider.<name>.sync]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Time between full lists; default 8 h.
    pub full: Duration,
    /// Time between lists of what changed; default 15 min.
    pub partial: Duration,
    /// Time between readings of the feed of what happened to devices, where the service keeps one; default 1 min.
    pub changes: Duration,
    /// Share of the devices that a full list may lose, 0 to 1; default 0.1.
    pub max_shrink: f64,
}

impl Schedule {
    /// Lifetime of a listed record: two lists may fail before it is asked for again.
    pub const fn lifetime(&self) -> Duration {
        self.partial.saturating_mul(3)
    }
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            positive: Duration::from_secs(300),
            negative: Duration::from_secs(30),
            stale_if_error: Duration::from_secs(86_400),
            max_entries: 1_000_000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_second: 20, unknown_per_minute: Self::guesses(20) }
    }
}

impl Limits {
    /// Default of `unknown_per_minute`: 120, and at most half of what may be asked in a minute, so that guesses leave turns to
    /// new devices.
    pub const fn guesses(per_second: u32) -> u32 {
        if per_second < 4 { per_second.saturating_mul(30) } else { 120 }
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self { full: Duration::from_secs(8 * 3600), partial: Duration::from_secs(900), changes: Duration::from_secs(60), max_shrink: 0.1 }
    }
}
