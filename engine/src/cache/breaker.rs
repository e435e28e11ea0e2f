//! The circuit of a service: the service is left alone after some failures in a row, or because it asked for that.

use std::time::Duration;

use tokio::time::Instant;

use inventory::Unavailable;

/// The circuit of one service. Pure: its owner says what happened, and when. Failures that may belong to one identifier are not
/// counted here: see [`super::turns`].
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Failures of the service itself, in a row.
    failures: usize,
    /// End of the pause: until then nobody asks, and after it one call tries. `None`: there is no pause.
    until: Option<Instant>,
    /// Pauses in a row; each is longer.
    pauses: u32,
    /// Whether the last failure before the pause was silence.
    silent: bool,
}

/// State of a circuit, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Calls are made.
    Closed,
    /// One call tries the service.
    HalfOpen,
    /// No call is made.
    Open,
}

impl Breaker {
    /// Whether the service may be asked.
    ///
    /// # Errors
    /// [`Unavailable::Paused`]: the circuit is open.
    pub(super) fn admits(&self, now: Instant) -> Result<(), Unavailable> {
        if self.circuit(now) == Circuit::Open { Err(Unavailable::Paused) } else { Ok(()) }
    }

    /// Whether one more call may be made beside the pending ones. After a failure no more are made at once than would open the
    /// circuit: a service that is down gets a bounded number of calls, however many come before that is known.
    pub(super) const fn has_room(&self, pending: usize) -> bool {
        self.until.is_some() || self.failures == 0 || pending < FAILURES.saturating_sub(self.failures)
    }

    /// Whether there is a pause, or somebody tries the service after one.
    pub(super) const fn is_paused(&self) -> bool {
        self.until.is_some()
    }

    /// Whether the pause is every second one in a row, after which a device that failed may try the service.
    pub(super) const fn is_even(&self) -> bool {
        self.until.is_some() && self.pauses.is_multiple_of(2)
    }

    /// Whether the service was silent before the pause, so that nobody should wait for a try.
    pub(super) const fn is_silent(&self) -> bool {
        self.silent
    }

    /// State of the circuit at `now`: closed, open or half open.
    pub(super) fn circuit(&self, now: Instant) -> Circuit {
        match self.until {
            None => Circuit::Closed,
            Some(until) if now < until => Circuit::Open,
            Some(_) => Circuit::HalfOpen,
        }
    }

    /// Closes the circuit: the service answered.
    pub(super) fn answered(&mut self) {
        *self = Self::default();
    }

    /// Counts a failure of the service itself, whatever was asked. Opens the circuit after several in a row, or where the
    /// service asked to be left alone.
    pub(super) fn failed(&mut self, why: Unavailable, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if asked_for(why).is_some() || self.failures >= FAILURES {
            self.open(why, now);
        }
    }

    /// Opens the circuit for a pause: our own, or the one that the service asked for where that is longer.
    pub(super) fn open(&mut self, why: Unavailable, now: Instant) {
        let own = FIRST_PAUSE.saturating_mul(1 << self.pauses.min(8)).min(LONGEST_PAUSE);
        let asked = asked_for(why).flatten().map(|after| if after <= LONGEST_ASKED { after } else { LONGEST_PAUSE });
        self.pauses = self.pauses.saturating_add(1);
        let until = now + own.max(asked.unwrap_or_default());
        self.until = Some(self.until.map_or(until, |known| known.max(until)));
        self.silent = why == Unavailable::Timeout;
    }
}

/// The pause that the service asked for; `Some(None)`: one of no given length, `None`: it asked for none.
const fn asked_for(why: Unavailable) -> Option<Option<Duration>> {
    match why {
        Unavailable::RateLimited(after) => Some(after),
        Unavailable::ServerError(Some(after)) => Some(Some(after)),
        _ => None,
    }
}

/// Failures in a row that open the circuit.
const FAILURES: usize = 3;
/// First pause. Each is twice as long as the one before, up to the longest: with one call after each, a service that is back is
/// found within that.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause that a service may ask for. One that asks for more gets our own longest: a day would be one without new
/// devices.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn opens_after_three_failures_and_each_pause_is_longer() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            assert_eq!(breaker.circuit(after(0)), Circuit::Closed);
            breaker.failed(Unavailable::AuthRejected, after(0));
        }
        assert_eq!(breaker.admits(after(0)).unwrap_err(), Unavailable::Paused);
        assert_eq!((breaker.admits(after(1)), breaker.circuit(after(1))), (Ok(()), Circuit::HalfOpen));
        breaker.open(Unavailable::Timeout, after(1));
        assert!(breaker.admits(after(2)).is_err(), "the next pause is longer");
        assert_eq!((breaker.admits(after(3)), breaker.is_silent()), (Ok(()), true));
        breaker.answered();
        assert_eq!((breaker.circuit(after(3)), breaker.has_room(50)), (Circuit::Closed, true));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_between_failures_keeps_it_closed() {
        let mut breaker = Breaker::default();
        for _ in 0..20 {
            for _ in 0..2 {
                breaker.failed(Unavailable::AuthRejected, after(0));
            }
            breaker.answered();
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
                breaker.failed(Unavailable::RateLimited(asked.map(Duration::from_secs)), after(0));
                assert!(breaker.admits(after(pause) - Duration::from_millis(1)).is_err(), "{asked:?} {pause}");
                tokio::time::advance(Duration::from_secs(pause)).await;
                assert_eq!(breaker.circuit(after(0)), Circuit::HalfOpen);
            }
        }
    }

    #[test]
    fn a_service_in_doubt_gets_no_more_calls_than_it_takes_to_be_sure() {
        let mut breaker = Breaker::default();
        assert!(breaker.has_room(50));
        breaker.failed(Unavailable::AuthRejected, after(0));
        assert!(breaker.has_room(1) && !breaker.has_room(2), "these two would be the second and the third failure");
        breaker.failed(Unavailable::AuthRejected, after(0));
        assert!(breaker.has_room(0) && !breaker.has_room(1));
        breaker.answered();
        assert!(breaker.has_room(4), "it is well");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_for_how_long_it_fails_is_left_alone_for_so_long_at_once() {
        let mut breaker = Breaker::default();
        breaker.failed(Unavailable::ServerError(Some(Duration::from_secs(7))), after(0));
        assert!(breaker.admits(after(7) - Duration::from_millis(1)).is_err() && breaker.admits(after(7)).is_ok());
    }

    #[test]
    fn every_second_pause_in_a_row_is_even_and_the_silence_before_one_is_told() {
        let mut breaker = Breaker::default();
        let told = |breaker: &Breaker| (breaker.is_paused(), breaker.is_even(), breaker.is_silent());
        assert_eq!(told(&breaker), (false, false, false));
        for (why, is_even, is_silent) in [
            (Unavailable::Timeout, false, true),
            (Unavailable::Network, true, false),
            (Unavailable::Network, false, false),
            (Unavailable::Timeout, true, true),
        ] {
            breaker.open(why, after(0));
            assert_eq!(told(&breaker), (true, is_even, is_silent));
        }
        breaker.answered();
        assert_eq!(told(&breaker), (false, false, false));
    }
}
