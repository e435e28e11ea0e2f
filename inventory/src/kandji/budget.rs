//! The rest of the 10,000 requests that a tenant has in an hour, as the headers of Kandji's gateway report it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use crate::answer::Unavailable;

/// The requests of the hour.
#[derive(Debug, Default)]
pub(super) struct Budget(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Number of requests that were left at the last answer.
    left: Option<u64>,
    /// Number of requests in an hour, where an answer gave it.
    of: Option<u64>,
    /// The moment from which there are new requests.
    renewed_at: Option<Instant>,
}

impl Budget {
    /// Checks that a request may be sent.
    ///
    /// # Errors
    /// [`Unavailable::RateLimited`] with the time until the next request.
    pub(super) fn check(&self) -> Result<(), Unavailable> {
        self.at_least(1)
    }

    /// Checks that a request may be sent for an unknown device. Anybody may invent such devices, so the last quarter of the hour
    /// is for known ones.
    ///
    /// # Errors
    /// The errors of [`Budget::check`], and [`Unavailable::OutOfBudget`] where requests are left, but kept for known devices.
    pub(super) fn for_a_stranger(&self) -> Result<(), Unavailable> {
        self.check()?;
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).of.unwrap_or(ALL);
        self.at_least(all / 4).map_err(|_| Unavailable::OutOfBudget)
    }

    /// Checks that a request may be sent for a list, which leaves [`RESERVE`] requests of the hour to lookups.
    ///
    /// # Errors
    /// The errors of [`Budget::check`].
    pub(super) fn spare(&self) -> Result<(), Unavailable> {
        self.at_least(RESERVE)
    }

    /// Takes the budget from an answer's headers.
    pub(super) fn note(&self, headers: &HeaderMap) {
        // Without a header for the hour only the window with the least left is known.
        let Some(left) =
            number(headers, "x-ratelimit-remaining-hour").or_else(|| number(headers, "ratelimit-remaining").filter(|left| *left == 0))
        else {
            return;
        };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.left = Some(left);
        state.of = number(headers, "x-ratelimit-limit-hour").or(state.of);
        // `ratelimit-reset` belongs to the window with the least left, which is the second as long as the hour has more.
        let until = if left == 0 { reset(headers).unwrap_or(RETRY) } else { RETRY };
        state.renewed_at = Some(Instant::now() + until.min(HOUR));
    }

    fn at_least(&self, least: u64) -> Result<(), Unavailable> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match (state.left, state.renewed_at) {
            (Some(left), Some(at)) if left < least && now < at => Err(Unavailable::RateLimited(Some(at - now))),
            _ => Ok(()),
        }
    }
}

/// Time until the window with the least left begins anew.
pub(super) fn reset(headers: &HeaderMap) -> Option<Duration> {
    number(headers, "ratelimit-reset").map(Duration::from_secs)
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// Number of requests in an hour, where no answer gives it.
const ALL: u64 = 10_000;
/// Number of requests in an hour that only lookups may use.
const RESERVE: u64 = 1_000;
/// Time until the next try, where no answer gives it.
const RETRY: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(headers: &[(&'static str, &str)]) -> Budget {
        let budget = Budget::default();
        budget.note(&headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect());
        budget
    }

    #[tokio::test(start_paused = true)]
    async fn a_spent_hour_is_waited_for_and_no_longer() {
        let budget = noted(&[("x-ratelimit-remaining-hour", "0"), ("ratelimit-reset", "90")]);
        assert_eq!(budget.check(), Err(Unavailable::RateLimited(Some(Duration::from_secs(90)))));
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(budget.check(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_leaves_a_part_of_the_hour_to_lookups() {
        let budget = noted(&[("x-ratelimit-remaining-hour", "999"), ("ratelimit-reset", "1")]);
        assert_eq!(budget.check(), Ok(()));
        assert_eq!(budget.spare(), Err(Unavailable::RateLimited(Some(RETRY))));
        assert_eq!(noted(&[("x-ratelimit-remaining-hour", "1000")]).spare(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a12_the_last_quarter_of_the_hour_is_for_known_devices() {
        for (left, of, expected) in [
            ("2500", None, Ok(())),
            ("2499", None, Err(Unavailable::OutOfBudget)),
            ("500", Some("2000"), Ok(())),
            ("499", Some("2000"), Err(Unavailable::OutOfBudget)),
            ("0", Some("2000"), Err(Unavailable::RateLimited(Some(RETRY)))),
        ] {
            let of = of.map(|of| ("x-ratelimit-limit-hour", of));
            let budget = noted(&[("x-ratelimit-remaining-hour", left)].into_iter().chain(of).collect::<Vec<_>>());
            assert_eq!(budget.for_a_stranger(), expected, "{left} {of:?}");
            assert_eq!(budget.check().is_ok(), left != "0", "{left} {of:?}");
            tokio::time::advance(RETRY).await;
            assert_eq!(budget.for_a_stranger(), Ok(()), "it is looked at again");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn headers_that_are_odd_or_not_there_stop_nothing() {
        for headers in [&[][..], &[("x-ratelimit-remaining-hour", "many")], &[("ratelimit-remaining", "49"), ("ratelimit-reset", "1")]] {
            assert_eq!(noted(headers).spare(), Ok(()), "{headers:?}");
        }
        let endless = noted(&[("x-ratelimit-remaining-hour", "0"), ("ratelimit-reset", "99999999999")]);
        assert_eq!(endless.check(), Err(Unavailable::RateLimited(Some(HOUR))));
        assert_eq!(noted(&[("ratelimit-remaining", "0")]).check(), Err(Unavailable::RateLimited(Some(RETRY))));
    }
}
