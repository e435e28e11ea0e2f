//! How many calls may be spent: on devices that were found before as many as the service bears, on identifiers that never
//! were only as many as guessing may cost.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A bucket that fills evenly. One call takes one out of it, and can be given back.
#[derive(Debug)]
pub(super) struct Bucket {
    size: f64,
    per_second: f64,
    state: Mutex<(f64, Option<Instant>)>,
}

impl Bucket {
    /// Full, with room for the calls of `period`.
    pub(super) fn new(calls: u32, period: Duration) -> Self {
        let size = f64::from(calls);
        Self { size, per_second: size / period.as_secs_f64(), state: Mutex::new((size, None)) }
    }

    /// Takes a call; false where none is left.
    pub(super) fn take(&self, now: Instant) -> bool {
        self.take_above(0.0, now)
    }

    /// Takes a call of that half which may be spent on what was never found: the other one is always for known devices.
    pub(super) fn take_of_half(&self, now: Instant) -> bool {
        self.take_above((self.size / 2.0).floor(), now)
    }

    fn take_above(&self, reserve: f64, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, last) = *state;
        let elapsed = last.map_or(0.0, |last| now.saturating_duration_since(last).as_secs_f64());
        let left = (left + elapsed * self.per_second).min(self.size);
        let taken = left >= reserve + 1.0;
        *state = (if taken { left - 1.0 } else { left }, Some(now));
        taken
    }

    /// Gives a call back that turned out not to count.
    pub(super) fn give_back(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = (state.0 + 1.0).min(self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_it_holds_and_then_what_flows_in() {
        let bucket = Bucket::new(120, Duration::from_secs(60));
        let start = Instant::now();
        assert_eq!((0..200).filter(|_| bucket.take(start)).count(), 120);
        assert_eq!((0..200).filter(|_| bucket.take(start + Duration::from_secs(10))).count(), 20);
        assert_eq!((0..200).filter(|_| bucket.take(start + Duration::from_secs(3600))).count(), 120);
        assert!(!bucket.take(start + Duration::from_secs(3600)));
        bucket.give_back();
        assert!(bucket.take(start + Duration::from_secs(3600)));
        assert!(!bucket.take(start), "a clock that went back gives nothing");
    }

    #[test]
    fn half_of_it_cannot_be_spent_on_what_was_never_found() {
        for (size, half) in [(1, 1), (2, 1), (5, 3), (20, 10)] {
            let bucket = Bucket::new(size, Duration::from_secs(1));
            let now = Instant::now();
            assert_eq!((0..100).filter(|_| bucket.take_of_half(now)).count(), half);
            assert_eq!((0..100).filter(|_| bucket.take(now)).count(), usize::try_from(size).unwrap() - half);
            assert_eq!((0..100).filter(|_| bucket.take_of_half(now + Duration::from_secs(1))).count(), half);
        }
    }
}
