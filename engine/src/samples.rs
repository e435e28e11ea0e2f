//! Log lines about unproven requests: a few, and how many were left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A budget of log lines that strangers can cause.
#[derive(Debug, Default)]
pub struct Samples(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    /// Time at which the first line of the window was written.
    began: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Samples {
    /// Takes the place of one more line. Returns how many were left out since the last one; `None`: there is no place.
    pub fn admits(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            window.began = Some(now);
            window.written = 0;
        }
        if window.written >= LINES {
            window.left_out = window.left_out.saturating_add(1);
            return None;
        }
        window.written = window.written.saturating_add(1);
        Some(std::mem::take(&mut window.left_out))
    }
}

/// Lines in one window: some 14,000 in a day at most, whatever comes.
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g6_a_flood_writes_ten_lines_in_a_minute_and_says_how_many_it_left_out() {
        let (samples, began) = (Samples::default(), Instant::now());
        let at = |millis: u64| samples.admits(began + Duration::from_millis(millis));
        let written: Vec<_> = (0..59_999).filter_map(at).collect();
        assert_eq!(written, [0; 10]);
        assert_eq!(at(60_000), Some(59_989));
        assert_eq!((60_001..120_000).filter_map(at).collect::<Vec<_>>(), [0; 9]);
        assert_eq!(at(120_000), Some(59_990));
    }
}
