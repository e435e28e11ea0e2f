//! The circuit of a service: it is left alone after some failures in a row, or because it asked for that.

use std::time::Duration;

use tokio::time::Instant;

use super::entry::Mark;
use crate::provider::Unavailable;

/// One circuit. Pure: whoever holds it says what happened, and when.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// In a row.
    failures: usize,
    /// Devices that these failures were about, where they are known: one device fails once.
    failed: Vec<Mark>,
    /// Until then nobody asks.
    until: Option<Instant>,
    /// Pauses in a row, each longer.
    pauses: u32,
    /// After a pause one call tries, and the others wait for what becomes of it.
    trying: bool,
    /// Calls that were neither answered nor given up.
    pending: usize,
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
    /// Whether the service may be asked.
    ///
    /// # Errors
    /// [`Unavailable::Paused`].
    pub(super) fn admits(&self, now: Instant) -> Result<(), Unavailable> {
        if self.trying || self.until.is_some_and(|until| now < until) { Err(Unavailable::Paused) } else { Ok(()) }
    }

    /// Whether one more call may be made. After a failure there are no more at once than would open the circuit: a service
    /// that is down gets a bounded number of calls, however many come in the moment before that is known.
    pub(super) const fn has_room(&self) -> bool {
        self.until.is_some() || self.failures == 0 || self.pending < FAILURES.saturating_sub(self.failures)
    }

    /// Whether there is a pause, or somebody tries after one.
    pub(super) const fn is_paused(&self) -> bool {
        self.until.is_some()
    }

    /// Whether the last answer was a failure.
    pub(super) const fn is_in_doubt(&self) -> bool {
        self.failures > 0
    }

    pub(super) fn circuit(&self, now: Instant) -> Circuit {
        match self.until {
            None => Circuit::Closed,
            Some(until) if now < until => Circuit::Open,
            Some(_) => Circuit::HalfOpen,
        }
    }

    /// A call was begun; the first one after a pause tries for all.
    pub(super) const fn began(&mut self) {
        self.trying = self.until.is_some();
        self.pending += 1;
    }

    /// A call of another circuit tries for this one, where there is a pause.
    pub(super) const fn lend(&mut self) {
        self.trying = self.until.is_some();
    }

    /// That call has ended.
    pub(super) const fn take_back(&mut self) {
        self.trying = false;
    }

    /// The service answered.
    pub(super) fn succeeded(&mut self) {
        self.heard_success();
        self.pending = self.pending.saturating_sub(1);
    }

    /// The service answered a call of another circuit.
    pub(super) fn heard_success(&mut self) {
        *self = Self { pending: self.pending, ..Self::default() };
    }

    /// What became of a call says nothing of the service.
    pub(super) const fn withdrawn(&mut self) {
        self.pending = self.pending.saturating_sub(1);
        self.trying = false;
    }

    /// A call failed. `mark`: the device that it was about, where the failure may be that device's own.
    pub(super) fn failed(&mut self, why: Unavailable, now: Instant, mark: Option<Mark>) {
        self.pending = self.pending.saturating_sub(1);
        let tried = std::mem::take(&mut self.trying);
        self.count(why, now, mark, tried);
    }

    /// A call of another circuit failed.
    pub(super) fn heard_failure(&mut self, why: Unavailable, now: Instant, mark: Option<Mark>) {
        self.count(why, now, mark, false);
    }

    fn count(&mut self, why: Unavailable, now: Instant, mark: Option<Mark>, tried: bool) {
        let known = mark.is_some_and(|mark| self.failed.contains(&mark));
        // A device that failed before is no further witness against the service, unless it was the one that tried.
        if known && !tried {
            return;
        }
        if self.failed.len() < FAILURES {
            self.failed.extend(mark.filter(|_| !known));
        }
        self.failures = self.failures.saturating_add(1);
        let asked_for = match why {
            Unavailable::RateLimited(after) => Some(after),
            Unavailable::ServerError(Some(after)) => Some(Some(after)),
            _ => None,
        };
        if asked_for.is_none() && self.failures < FAILURES && !tried {
            return;
        }
        let own = FIRST_PAUSE.saturating_mul(1 << self.pauses.min(8)).min(LONGEST_PAUSE);
        let asked = asked_for.flatten().map(|after| if after <= LONGEST_ASKED { after } else { LONGEST_PAUSE });
        self.pauses = self.pauses.saturating_add(1);
        let until = now + own.max(asked.unwrap_or_default());
        self.until = Some(self.until.map_or(until, |known| known.max(until)));
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

    /// A call where the circuit lets one be made.
    fn call(breaker: &mut Breaker, now: Instant) -> bool {
        let may = breaker.admits(now).is_ok() && breaker.has_room();
        if may {
            breaker.began();
        }
        may
    }

    fn fails(breaker: &mut Breaker, why: Unavailable) {
        assert!(call(breaker, after(0)));
        breaker.failed(why, after(0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn opens_after_three_failures_and_lets_one_try() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            fails(&mut breaker, Unavailable::Network);
        }
        assert_eq!(breaker.admits(after(0)).unwrap_err(), Unavailable::Paused);
        assert!(call(&mut breaker, after(1)));
        assert_eq!(breaker.admits(after(1)).unwrap_err(), Unavailable::Paused, "one is enough");
        breaker.failed(Unavailable::Network, after(1), None);
        assert!(breaker.admits(after(2)).is_err(), "the next pause is longer");
        assert!(call(&mut breaker, after(3)));
        breaker.succeeded();
        assert!((0..5).all(|_| call(&mut breaker, after(3))));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_between_failures_keeps_it_closed() {
        let mut breaker = Breaker::default();
        for _ in 0..20 {
            for _ in 0..2 {
                fails(&mut breaker, Unavailable::ServerError(None));
            }
            assert!(call(&mut breaker, after(0)));
            breaker.succeeded();
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
            let mut breaker = Breaker::default();
            for pause in pauses {
                fails(&mut breaker, Unavailable::RateLimited(asked.map(Duration::from_secs)));
                assert!(breaker.admits(after(pause) - Duration::from_millis(1)).is_err(), "{asked:?} {pause}");
                tokio::time::advance(Duration::from_secs(pause)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_in_doubt_gets_no_more_calls_than_it_takes_to_be_sure() {
        for most in [1, 2, 5, 50] {
            let mut breaker = Breaker::default();
            let mut pending = (0..most).filter(|_| call(&mut breaker, after(0))).count();
            assert_eq!(pending, most);
            let mut calls = most;
            while pending > 0 {
                breaker.failed(Unavailable::Network, after(0), None);
                pending -= 1;
                let more = (pending..most).filter(|_| call(&mut breaker, after(0))).count();
                calls += more;
                pending += more;
            }
            assert_eq!(calls, most.max(3), "{most} at once");
        }
        let mut breaker = Breaker::default();
        assert!(call(&mut breaker, after(0)) && call(&mut breaker, after(0)));
        breaker.failed(Unavailable::Network, after(0), None);
        assert!(call(&mut breaker, after(0)));
        assert!(!call(&mut breaker, after(0)), "these two would be the second and the third failure");
        breaker.succeeded();
        assert!((0..4).all(|_| call(&mut breaker, after(0))), "it is well");
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_is_withdrawn_leaves_it_to_the_next() {
        let mut breaker = Breaker::default();
        for _ in 0..20 {
            assert!(call(&mut breaker, after(0)));
            breaker.withdrawn();
        }
        assert_eq!(breaker.circuit(after(0)), Circuit::Closed);
        fails(&mut breaker, Unavailable::RateLimited(None));
        assert!(call(&mut breaker, after(1)));
        breaker.withdrawn();
        assert_eq!(breaker.circuit(after(1)), Circuit::HalfOpen);
        assert!(call(&mut breaker, after(1)));
        breaker.succeeded();
        assert_eq!(breaker.circuit(after(1)), Circuit::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn one_device_is_one_witness_against_the_service() {
        let mut breaker = Breaker::default();
        let fails = |breaker: &mut Breaker, name: &str| {
            breaker.began();
            breaker.failed(Unavailable::Protocol, after(0), Some(Mark::identifier(name)));
        };
        for _ in 0..10 {
            fails(&mut breaker, "a");
            fails(&mut breaker, "b");
        }
        assert_eq!(breaker.circuit(after(0)), Circuit::Closed);
        fails(&mut breaker, "c");
        assert_eq!(breaker.circuit(after(0)), Circuit::Open);
        assert!(call(&mut breaker, after(1)), "one tries");
        breaker.failed(Unavailable::Protocol, after(1), Some(Mark::identifier("a")));
        assert_eq!(breaker.circuit(after(2)), Circuit::Open, "whoever tries and fails counts");
        assert!(call(&mut breaker, after(3)));
        breaker.succeeded();
        fails(&mut breaker, "a");
        assert_eq!(breaker.circuit(after(3)), Circuit::Closed, "an answer begins anew");
    }
}
