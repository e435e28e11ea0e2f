//! Leaves a service alone that fails: after some failures in a row, or because it asked for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::provider::Unavailable;

/// The state of one service.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// In a row.
    failures: u32,
    /// Until then nobody asks.
    until: Option<Instant>,
    /// Pauses in a row, each longer.
    pauses: u32,
    /// After a pause one call tries, and the others wait for what becomes of it.
    trying: bool,
}

/// The right to make one call, and the duty to say what became of it. Dropped without a word, it failed.
#[derive(Debug)]
pub(super) struct Permit {
    breaker: Arc<Breaker>,
    told: bool,
}

/// What an operator reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Calls are made.
    Closed,
    /// One call tries.
    HalfOpen,
    /// None is made.
    Open,
}

impl Breaker {
    /// # Errors
    /// [`Unavailable::Paused`].
    pub(super) fn permit(self: &Arc<Self>, now: Instant) -> Result<Permit, Unavailable> {
        let mut inner = self.lock();
        if inner.trying || inner.until.is_some_and(|until| now < until) {
            return Err(Unavailable::Paused);
        }
        inner.trying = inner.until.is_some();
        Ok(Permit { breaker: Arc::clone(self), told: false })
    }

    pub(super) fn circuit(&self, now: Instant) -> Circuit {
        match *self.lock() {
            Inner { until: None, .. } => Circuit::Closed,
            Inner { until: Some(until), .. } if now < until => Circuit::Open,
            _ => Circuit::HalfOpen,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, why: Unavailable, now: Instant) {
        let mut inner = self.lock();
        inner.failures = inner.failures.saturating_add(1);
        let asked_for = match why {
            Unavailable::RateLimited(after) => Some(after),
            Unavailable::ServerError(Some(after)) => Some(Some(after)),
            _ => None,
        };
        let paused_before = std::mem::take(&mut inner.trying);
        if asked_for.is_none() && inner.failures < FAILURES && !paused_before {
            return;
        }
        let own = FIRST_PAUSE.saturating_mul(1 << inner.pauses.min(8)).min(LONGEST_PAUSE);
        let pause = asked_for.flatten().map_or(own, |after| after.clamp(FIRST_PAUSE, LONGEST_ASKED));
        inner.pauses = inner.pauses.saturating_add(1);
        let until = now + pause;
        inner.until = Some(inner.until.map_or(until, |known| known.max(until)));
    }
}

impl Permit {
    /// The service answered: with a record, with none, or with too many.
    pub(super) fn succeeded(mut self) {
        self.told = true;
        *self.breaker.lock() = Inner::default();
    }

    /// The service did not answer.
    pub(super) fn failed(mut self, why: Unavailable, now: Instant) {
        self.told = true;
        self.breaker.failed(why, now);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.told {
            self.breaker.failed(Unavailable::Network, Instant::now());
        }
    }
}

/// Failures in a row that open it.
const FAILURES: u32 = 5;
/// A pause doubles up to the longest: with one call each, a service that is back is found within it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause that a service may ask for: one of a day would be a mistake of somebody's.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn opens_after_five_failures_and_lets_one_try() {
        let breaker = Arc::new(Breaker::default());
        for _ in 0..5 {
            breaker.permit(after(0)).unwrap().failed(Unavailable::Network, after(0));
        }
        assert!(breaker.permit(after(0)).is_err());
        let trying = breaker.permit(after(1)).unwrap();
        assert_eq!(breaker.permit(after(1)).unwrap_err(), Unavailable::Paused, "one is enough");
        trying.failed(Unavailable::Network, after(1));
        assert!(breaker.permit(after(2)).is_err(), "the next pause is longer");
        breaker.permit(after(3)).unwrap().succeeded();
        assert!(breaker.permit(after(3)).is_ok() && breaker.permit(after(3)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_between_failures_keeps_it_closed() {
        let breaker = Arc::new(Breaker::default());
        for _ in 0..20 {
            for _ in 0..4 {
                breaker.permit(after(0)).unwrap().failed(Unavailable::ServerError(None), after(0));
            }
            breaker.permit(after(0)).unwrap().succeeded();
        }
        assert_eq!(breaker.circuit(after(0)), Circuit::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_is_asked_for_is_kept_within_reason() {
        for (asked, closed_after) in [(Some(0), 1), (Some(7), 7), (Some(99_999), 300), (None, 1)] {
            let breaker = Arc::new(Breaker::default());
            let asked = asked.map(Duration::from_secs);
            breaker.permit(after(0)).unwrap().failed(Unavailable::RateLimited(asked), after(0));
            assert!(breaker.permit(after(closed_after - 1)).is_err(), "{asked:?}");
            assert!(breaker.permit(after(closed_after)).is_ok(), "{asked:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_panicked_is_a_failure_and_not_the_end() {
        let breaker = Arc::new(Breaker::default());
        breaker.permit(after(0)).unwrap().failed(Unavailable::RateLimited(None), after(0));
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(breaker.permit(after(0)).unwrap());
        assert!(breaker.permit(after(0)).is_err());
        assert!(breaker.permit(after(5)).is_ok());
    }
}
