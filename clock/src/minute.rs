//! The bound on log lines that somebody else can bring about.

use std::time::Duration;

use tokio::time::Instant;

/// Bound on log lines that others can bring about as often as they like: one a minute is written.
#[derive(Debug, Default)]
pub struct OnceAMinute(Option<Instant>);

impl OnceAMinute {
    /// Returns whether one more line may be written at `now`; it counts as written then.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.0.is_none_or(|last| now.saturating_duration_since(last) >= MINUTE);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_is_due_however_often_it_is_asked_for() {
        let (mut told, began) = (OnceAMinute::default(), Instant::now());
        for (seconds, is_due) in [(0, true), (1, false), (59, false), (60, true), (61, false), (300, true), (10, false)] {
            assert_eq!(told.is_due(began + Duration::from_secs(seconds)), is_due, "after {seconds} s");
        }
    }
}
