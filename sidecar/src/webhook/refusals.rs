//! Log lines about the refusals of filters: one for each cause in a minute, since most of these requests come to nobody else.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use clock::OnceAMinute;
use posture::outcome::Refusal;
use proto::v1::Report;
use tokio::time::Instant;

/// Refusals that filters have reported, by cause, of which the number is fixed.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<&'static str, Cause>>);

#[derive(Debug, Default)]
struct Cause {
    said: OnceAMinute,
    /// Number of refusals since the last line.
    unsaid: u64,
}

impl Refusals {
    /// Counts a report, and writes the lines that are due.
    pub(super) fn log(&self, report: &Report, now: Instant) {
        for (reason, count) in self.due(report, now) {
            tracing::warn!(reason, count, "filters refused webhooks; docs/codes.md says what to do, and Envoy's access log has each");
        }
    }

    fn due(&self, report: &Report, now: Instant) -> Vec<(&'static str, u64)> {
        let mut causes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for replies in report.replies.iter().take(MOST) {
            if let Some(refusal) = Refusal::parse(&replies.reason).filter(|_| replies.count > 0) {
                let cause = causes.entry(refusal.as_str()).or_default();
                cause.unsaid = cause.unsaid.saturating_add(replies.count.into());
            }
        }
        let due = causes.iter_mut().filter_map(|(reason, cause)| {
            (cause.unsaid > 0 && cause.said.is_due(now)).then(|| (*reason, std::mem::take(&mut cause.unsaid)))
        });
        due.collect()
    }
}

/// Largest number of entries read from a report: more than there are causes.
const MOST: usize = 256;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::v1::Replies;

    use super::*;

    fn report(replies: &[(&str, u32)]) -> Report {
        let replies = replies.iter().map(|(reason, count)| Replies { reason: (*reason).to_owned(), count: *count }).collect();
        Report { replies, ..Report::default() }
    }

    #[test]
    fn e3_each_cause_of_refusals_is_said_once_a_minute_with_all_that_came_since() {
        let (refusals, began) = (Refusals::default(), Instant::now());
        let at = |seconds: u64, replies: &[(&str, u32)]| refusals.due(&report(replies), began + Duration::from_secs(seconds));
        assert_eq!(at(0, &[("allowed", 5), ("denied", 2), ("signature", 0), ("no such cause", 9)]), []);
        assert_eq!(at(5, &[("signature", 3)]), [("signature", 3)]);
        assert_eq!(at(10, &[("signature", 4), ("caller", 1)]), [("caller", 1)]);
        assert_eq!(at(64, &[("signature", 1)]), []);
        assert_eq!(at(65, &[]), [("signature", 5)], "also where none came since");
        assert_eq!(at(600, &[]), []);
        assert_eq!(at(601, &[("signature", u32::MAX)]), [("signature", u64::from(u32::MAX))]);
    }
}
