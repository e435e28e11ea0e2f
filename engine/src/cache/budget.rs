//! Budgets of calls: on devices that were found before as many as the service bears, on identifiers that never were only as
//! many as guessing may cost.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A bucket that fills evenly. A call takes one from it, and may give it back.
#[derive(Debug)]
pub(super) struct Bucket {
    size: f64,
    per_second: f64,
    state: Mutex<(f64, Option<Instant>)>,
}

impl Bucket {
    /// A full bucket, with room for the calls of `period`.
    pub(super) fn new(calls: u32, period: Duration) -> Self {
        let size = f64::from(calls);
        Self { size, per_second: size / period.as_secs_f64(), state: Mutex::new((size, None)) }
    }

    /// Takes a call; false where none is left.
    pub(super) fn take(&self, now: Instant) -> bool {
        self.take_above(0.0, now).is_ok()
    }

    /// Takes a call, if at least `reserve` are left after it.
    ///
    /// # Errors
    /// The time until there are as many, where nobody else takes one.
    pub(super) fn take_above(&self, reserve: f64, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, last) = *state;
        let elapsed = last.map_or(0.0, |last| now.saturating_duration_since(last).as_secs_f64());
        let left = (left + elapsed * self.per_second).min(self.size);
        let missing = reserve + 1.0 - left;
        let taken = missing <= ROUNDING;
        *state = (if taken { (left - 1.0).max(0.0) } else { left }, Some(now));
        // The clock's resolution is added, so that whoever waits as long does not come a moment too soon.
        if taken { Ok(()) } else { Err(Duration::from_secs_f64(missing / self.per_second) + Duration::from_millis(1)) }
    }

    /// Takes calls that were made already, though they may not be left. What is owed is at most the size of the bucket, and
    /// flows in before anybody has a call.
    pub(super) fn charge(&self, calls: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = (state.0 - f64::from(calls)).max(-self.size);
    }

    /// Gives a call back that turned out not to count.
    pub(super) fn give_back(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = (state.0 + 1.0).min(self.size);
    }
}

/// The error that sums of seconds may have.
const ROUNDING: f64 = 1e-9;

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
    fn what_is_reserved_cannot_be_taken_by_those_who_leave_it() {
        for (size, reserve, most) in [(1, 0.0, 1), (2, 1.0, 1), (5, 2.0, 3), (20, 10.0, 10)] {
            let bucket = Bucket::new(size, Duration::from_secs(1));
            let now = Instant::now();
            assert_eq!((0..100).filter(|_| bucket.take_above(reserve, now).is_ok()).count(), most);
            assert_eq!((0..100).filter(|_| bucket.take(now)).count(), usize::try_from(size).unwrap() - most);
            let later = now + Duration::from_secs(1);
            assert_eq!((0..100).filter(|_| bucket.take_above(reserve, later).is_ok()).count(), most);
        }
    }

    #[test]
    fn b6_what_was_taken_beyond_what_there_was_flows_in_first() {
        let bucket = Bucket::new(60, Duration::from_secs(60));
        let start = Instant::now();
        assert!(bucket.take(start));
        bucket.charge(64);
        let left = |seconds: u64| (0..100).filter(|_| bucket.take(start + Duration::from_secs(seconds))).count();
        assert_eq!([left(0), left(5), left(6), left(10)], [0, 0, 1, 4]);
        bucket.charge(1000);
        assert_eq!([left(70), left(71)], [0, 1], "no longer than it takes to fill");
    }

    #[test]
    fn says_when_there_will_be_a_call() {
        let bucket = Bucket::new(4, Duration::from_secs(1));
        let now = Instant::now();
        assert_eq!((0..10).filter(|_| bucket.take(now)).count(), 4);
        let wait = bucket.take_above(0.0, now).unwrap_err();
        assert!(wait >= Duration::from_millis(250) && wait < Duration::from_millis(260), "{wait:?}");
        assert!(bucket.take_above(0.0, now + wait).is_ok());
        let wait = bucket.take_above(2.0, now + wait).unwrap_err();
        assert!(wait >= Duration::from_millis(740) && wait < Duration::from_millis(760), "{wait:?}");
    }
}
