//! The bounds of a cache: how many entries it keeps, and how long it waits.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Locks a mutex, whoever panicked while holding it.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Converts a duration to milliseconds, in which the clock of the cache counts.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Identifiers that are remembered as missing, at most.
pub(super) const MISSING: u64 = 100_000;

/// Longest call: step-ca's second attempt can still use its answer.
pub(super) const CALL: Duration = Duration::from_secs(8);

/// Longest wait for a turn that anybody is let into: after it, the answer still comes by step-ca's second attempt.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Time after which a call without an answer counts as failed.
pub(super) const SLOW: Duration = Duration::from_secs(3);

/// Time before the last reading that is read again: clocks differ, and a change may show late.
pub(super) const OVERLAP: Duration = Duration::from_secs(300);
