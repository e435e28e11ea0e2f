//! The position up to which a service's feed was read.

use std::collections::HashSet;

use posture::time::UnixTime;

/// The position in a feed, locked by whoever reads.
#[derive(Debug)]
pub(super) struct Feed(pub(super) tokio::sync::Mutex<Position>);

/// The position from which a feed is read next.
#[derive(Debug)]
pub(super) struct Position {
    /// Start of the last reading.
    pub(super) since: UnixTime,
    /// Events of the last reading: those of the overlap come once more.
    pub(super) known: HashSet<String>,
}

impl Feed {
    /// A feed that is read from now on: nothing is known of what was before.
    pub(super) fn new() -> Self {
        Self(tokio::sync::Mutex::new(Position { since: clock::now(), known: HashSet::new() }))
    }
}
