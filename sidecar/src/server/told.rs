//! Log lines of a listener about connections that it did not take.

use std::io;
use std::time::Duration;

use clock::OnceAMinute;
use tokio::time::Instant;

/// Logs that a connection could not be taken, where a line is due.
pub(super) fn not_taken(told: &mut OnceAMinute, listener: &str, error: &io::Error) {
    if told.is_due(Instant::now()) {
        tracing::error!(listener, %error, "a connection could not be taken");
    }
}

/// Wait where a connection cannot be taken: descriptors have run out, most likely, and it would fail again at once.
pub(super) const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
