//! Leaves a service alone that fails: after some failures in a row, or because it asked for it.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::provider::Unavailable;

/// The state of one service.
#[derive(Debug)]
pub(super) struct Breaker {
    inner: Mutex<Inner>,
    /// Calls at once.
    most: usize,
    /// There may be room for one that waits.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// In a row.
    failures: usize,
    /// Until then nobody asks.
    until: Option<Instant>,
    /// Pauses in a row, each longer.
    pauses: u32,
    /// After a pause one call tries, and the others wait for what becomes of it.
    trying: bool,
    /// Calls that were neither answered nor given up.
    pending: usize,
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

impl Inner {
    /// # Errors
    /// [`Unavailable::Paused`].
    fn admits(&self, now: Instant) -> Result<(), Unavailable> {
        if self.trying || self.until.is_some_and(|until| now < until) { Err(Unavailable::Paused) } else { Ok(()) }
    }

    /// Whether one more call may be made. After a failure there are no more at once than would open it: a service that is
    /// down gets a bounded number of calls, however many come in the moment before that is known.
    const fn has_room(&self, most: usize) -> bool {
        let doubtful = FAILURES.saturating_sub(self.failures);
        self.pending < most && (self.failures == 0 || self.pending < doubtful)
    }
}

impl Breaker {
    /// Closed, for `most` calls at once.
    pub(super) fn new(most: usize) -> Self {
        Self { inner: Mutex::default(), most, changed: Notify::new() }
    }

    /// Whether it is of any use to wait for a turn.
    ///
    /// # Errors
    /// [`Unavailable::Paused`].
    pub(super) fn admits(&self, now: Instant) -> Result<(), Unavailable> {
        self.lock().admits(now)
    }

    /// The right to make a call, as soon as there is room for it. Those who wait when it opens are told at once.
    ///
    /// # Errors
    /// [`Unavailable::Paused`], and [`Unavailable::Timeout`] where there was no room until the deadline.
    pub(super) async fn turn(self: &Arc<Self>, deadline: Instant) -> Result<Permit, Unavailable> {
        loop {
            // Before the look, so that what happens after it is not missed.
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(permit) = self.permit(Instant::now())? {
                return Ok(permit);
            }
            timeout_at(deadline, changed).await.map_err(|_| Unavailable::Timeout)?;
        }
    }

    /// `None`: there is no room now.
    fn permit(self: &Arc<Self>, now: Instant) -> Result<Option<Permit>, Unavailable> {
        let mut inner = self.lock();
        inner.admits(now)?;
        inner.trying = inner.until.is_some();
        if !inner.trying && !inner.has_room(self.most) {
            return Ok(None);
        }
        inner.pending += 1;
        if !inner.trying && inner.has_room(self.most) {
            self.changed.notify_one();
        }
        Ok(Some(Permit { breaker: Arc::clone(self), told: false }))
    }

    pub(super) fn circuit(&self, now: Instant) -> Circuit {
        match *self.lock() {
            Inner { until: None, .. } => Circuit::Closed,
            Inner { until: Some(until), .. } if now < until => Circuit::Open,
            _ => Circuit::HalfOpen,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn succeeded(&self) {
        let mut inner = self.lock();
        *inner = Inner { pending: inner.pending.saturating_sub(1), ..Inner::default() };
        self.changed.notify_one();
    }

    fn withdrawn(&self) {
        let mut inner = self.lock();
        inner.pending = inner.pending.saturating_sub(1);
        inner.trying = false;
        self.changed.notify_one();
    }

    fn failed(&self, why: Unavailable, now: Instant) {
        let mut inner = self.lock();
        inner.pending = inner.pending.saturating_sub(1);
        inner.failures = inner.failures.saturating_add(1);
        let asked_for = match why {
            Unavailable::RateLimited(after) => Some(after),
            Unavailable::ServerError(Some(after)) => Some(Some(after)),
            _ => None,
        };
        let paused_before = std::mem::take(&mut inner.trying);
        if asked_for.is_none() && inner.failures < FAILURES && !paused_before {
            self.changed.notify_one();
            return;
        }
        let own = FIRST_PAUSE.saturating_mul(1 << inner.pauses.min(8)).min(LONGEST_PAUSE);
        let asked = asked_for.flatten().map(|after| if after <= LONGEST_ASKED { after } else { LONGEST_PAUSE });
        inner.pauses = inner.pauses.saturating_add(1);
        let until = now + own.max(asked.unwrap_or_default());
        inner.until = Some(inner.until.map_or(until, |known| known.max(until)));
        self.changed.notify_waiters();
    }
}

impl Permit {
    /// The service answered: with a record, with none, or with too many.
    pub(super) fn succeeded(mut self) {
        self.told = true;
        self.breaker.succeeded();
    }

    /// What became of it says nothing of the service: whoever asks next may.
    pub(super) fn withdrawn(mut self) {
        self.told = true;
        self.breaker.withdrawn();
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
const FAILURES: usize = 3;
/// A pause doubles up to the longest: with one call each, a service that is back is found within it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause that a service may ask for. Who asks for a day is not believed: that would be a day without new devices.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    fn breaker(most: usize) -> Arc<Breaker> {
        Arc::new(Breaker::new(most))
    }

    /// A permit where there is room and it is not open.
    fn permit(breaker: &Arc<Breaker>, now: Instant) -> Option<Permit> {
        breaker.permit(now).ok().flatten()
    }

    fn fails(breaker: &Arc<Breaker>, why: Unavailable) {
        permit(breaker, after(0)).unwrap().failed(why, after(0));
    }

    #[tokio::test(start_paused = true)]
    async fn opens_after_three_failures_and_lets_one_try() {
        let breaker = breaker(5);
        for _ in 0..3 {
            fails(&breaker, Unavailable::Network);
        }
        assert_eq!(breaker.permit(after(0)).unwrap_err(), Unavailable::Paused);
        let trying = permit(&breaker, after(1)).unwrap();
        assert_eq!(breaker.permit(after(1)).unwrap_err(), Unavailable::Paused, "one is enough");
        trying.failed(Unavailable::Network, after(1));
        assert!(breaker.permit(after(2)).is_err(), "the next pause is longer");
        permit(&breaker, after(3)).unwrap().succeeded();
        assert!((0..5).map(|_| permit(&breaker, after(3))).collect::<Vec<_>>().iter().all(Option::is_some));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_between_failures_keeps_it_closed() {
        let breaker = breaker(5);
        for _ in 0..20 {
            for _ in 0..2 {
                fails(&breaker, Unavailable::ServerError(None));
            }
            permit(&breaker, after(0)).unwrap().succeeded();
        }
        assert_eq!(breaker.circuit(after(0)), Circuit::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_is_asked_for_is_kept_within_reason() {
        for (asked, pauses) in [
            (Some(0), [1, 2, 4, 5, 5]),
            (Some(3), [3, 3, 4, 5, 5]),
            (Some(7), [7, 7, 7, 7, 7]),
            (Some(300), [300, 300, 300, 300, 300]),
            (Some(99_999), [5, 5, 5, 5, 5]),
            (None, [1, 2, 4, 5, 5]),
        ] {
            let breaker = breaker(5);
            for pause in pauses {
                fails(&breaker, Unavailable::RateLimited(asked.map(Duration::from_secs)));
                assert!(breaker.permit(after(pause) - Duration::from_millis(1)).is_err(), "{asked:?} {pause}");
                tokio::time::advance(Duration::from_secs(pause)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_in_doubt_gets_no_more_calls_than_it_takes_to_be_sure() {
        for most in [1, 2, 5, 50] {
            let breaker = breaker(most);
            let mut pending: Vec<_> = std::iter::from_fn(|| permit(&breaker, after(0))).collect();
            assert_eq!(pending.len(), most);
            let mut calls = most;
            while let Some(permit) = pending.pop() {
                permit.failed(Unavailable::Network, after(0));
                let more: Vec<_> = std::iter::from_fn(|| self::permit(&breaker, after(0))).collect();
                calls += more.len();
                pending.extend(more);
            }
            assert_eq!(calls, most.max(3), "{most} at once");
        }
        let breaker = breaker(5);
        let (first, second) = (permit(&breaker, after(0)).unwrap(), permit(&breaker, after(0)).unwrap());
        first.failed(Unavailable::Network, after(0));
        let third = permit(&breaker, after(0)).unwrap();
        assert!(permit(&breaker, after(0)).is_none(), "these two would be the second and the third failure");
        second.succeeded();
        let more: Vec<_> = std::iter::from_fn(|| permit(&breaker, after(0))).collect();
        assert_eq!(more.len(), 4, "it is well");
        third.succeeded();
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_get_their_turn_or_are_told_that_there_is_none() {
        let breaker = breaker(2);
        let first = breaker.turn(after(1)).await.unwrap();
        let second = breaker.turn(after(1)).await.unwrap();
        assert_eq!(breaker.turn(after(1)).await.unwrap_err(), Unavailable::Timeout);
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let breaker = Arc::clone(&breaker);
                tokio::spawn(async move { breaker.turn(after(60)).await.map(Permit::succeeded) })
            })
            .collect();
        tokio::task::yield_now().await;
        first.succeeded();
        for turn in waiting {
            assert_eq!(turn.await.unwrap(), Ok(()), "each passes it on");
        }
        let third = breaker.turn(after(1)).await.unwrap();
        let waits = tokio::spawn({
            let breaker = Arc::clone(&breaker);
            async move { breaker.turn(after(60)).await.map(Permit::succeeded) }
        });
        tokio::task::yield_now().await;
        let began = Instant::now();
        second.failed(Unavailable::RateLimited(None), after(0));
        assert_eq!(waits.await.unwrap(), Err(Unavailable::Paused));
        assert_eq!(began.elapsed(), Duration::ZERO);
        third.succeeded();
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_is_withdrawn_leaves_it_to_the_next() {
        let breaker = breaker(5);
        for _ in 0..20 {
            permit(&breaker, after(0)).unwrap().withdrawn();
        }
        assert_eq!(breaker.circuit(after(0)), Circuit::Closed);
        fails(&breaker, Unavailable::RateLimited(None));
        permit(&breaker, after(1)).unwrap().withdrawn();
        assert_eq!(breaker.circuit(after(1)), Circuit::HalfOpen);
        permit(&breaker, after(1)).unwrap().succeeded();
        assert_eq!(breaker.circuit(after(1)), Circuit::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_panicked_is_a_failure_and_not_the_end() {
        let breaker = breaker(5);
        fails(&breaker, Unavailable::RateLimited(None));
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(permit(&breaker, after(0)).unwrap());
        assert!(breaker.permit(after(0)).is_err());
        assert!(permit(&breaker, after(5)).is_some());
    }
}
