//! Log lines of a listener about connections that it did not take.

use std::io;
use std::time::{Duration, Instant};

/// Bound on log lines that others can bring about as often as they like: one a minute is written.
#[derive(Debug, Default)]
pub(super) struct Told(Option<Instant>);

impl Told {
    /// Returns whether one more line may be written; it counts as written then.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= MINUTE);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }

    /// Logs that a connection could not be taken, where a line is due.
    pub(super) fn not_taken(&mut self, listener: &str, error: &io::Error) {
        if self.is_due() {
            tracing::error!(listener, %error, "a connection could not be taken");
        }
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// Wait where a connection cannot be taken: descriptors have run out, most likely, and it would fail again at once.
pub(super) const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
