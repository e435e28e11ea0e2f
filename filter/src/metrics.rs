//! The filter's counters. Their names are a closed set: nothing that a caller sends becomes a name.

use posture::outcome::Refusal;
use proto::v1::{Event, Events, Replies, Report, Took};

/// A counter of the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Replies that allow.
    Allowed,
    /// Replies that deny, with any code.
    Denied,
    /// Replies that refuse, by cause.
    Refused(Refusal),
    /// Streams to the sidecar that were opened.
    StreamOpened,
    /// Streams that ended from the other side.
    StreamLost,
    /// Streams that the filter gave up, since the sidecar was silent for too long or sent nonsense.
    StreamReset,
    /// Sets of webhooks received.
    KeysReceived,
    /// Answers that came after their request had ended: its client is gone, or its deadline has passed.
    AnswerLate,
    /// Answers to a question that was not asked, or that do not belong to their question.
    AnswerUnmatched,
    /// Requests whose client went before the reply.
    ClientGone,
    /// Certificates of peers that could not be read, or were larger than allowed.
    CertificateUnreadable,
}

impl Counter {
    /// All counters that are not refusals.
    pub const PLAIN: [Self; 10] = [
        Self::Allowed,
        Self::Denied,
        Self::StreamOpened,
        Self::StreamLost,
        Self::StreamReset,
        Self::KeysReceived,
        Self::AnswerLate,
        Self::AnswerUnmatched,
        Self::ClientGone,
        Self::CertificateUnreadable,
    ];

    /// All counters.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::PLAIN.into_iter().chain(Refusal::ALL.iter().copied().map(Self::Refused))
    }

    /// The counter's name; Envoy puts `wasmcustom.` before it.
    pub fn name(self) -> String {
        match self {
            Self::Allowed => "stepward.replies.allow.allowed".to_owned(),
            Self::Denied => "stepward.replies.deny.denied".to_owned(),
            Self::Refused(refusal) => format!("stepward.replies.refuse.{}", refusal.as_str()),
            Self::StreamOpened => "stepward.stream.opened".to_owned(),
            Self::StreamLost => "stepward.stream.lost".to_owned(),
            Self::StreamReset => "stepward.stream.reset".to_owned(),
            Self::KeysReceived => "stepward.keys.received".to_owned(),
            Self::AnswerLate => "stepward.answers.late".to_owned(),
            Self::AnswerUnmatched => "stepward.answers.unmatched".to_owned(),
            Self::ClientGone => "stepward.client_gone".to_owned(),
            Self::CertificateUnreadable => "stepward.certificate_unreadable".to_owned(),
        }
    }

    const fn told(self) -> Told {
        match self {
            Self::Allowed => Told::Reply("allowed"),
            Self::Denied => Told::Reply("denied"),
            Self::Refused(refusal) => Told::Reply(refusal.as_str()),
            Self::StreamOpened => Told::Event(Event::StreamOpened),
            Self::StreamLost => Told::Event(Event::StreamLost),
            Self::StreamReset => Told::Event(Event::StreamReset),
            Self::KeysReceived => Told::Event(Event::KeysReceived),
            Self::AnswerLate => Told::Event(Event::AnswerLate),
            Self::AnswerUnmatched => Told::Event(Event::AnswerUnmatched),
            Self::ClientGone => Told::Event(Event::ClientGone),
            Self::CertificateUnreadable => Told::Event(Event::CertificateUnreadable),
        }
    }
}

/// The form of a counter in a report.
enum Told {
    /// Replies with this reason.
    Reply(&'static str),
    /// Something that happened.
    Event(Event),
}

/// Histogram of the microseconds from a request's complete arrival to its reply, for requests that were allowed or denied.
pub const LATENCY: &str = "stepward.latency_us";

/// The counts since the last report. Envoy has the same counters. It has no gauge of ours, since a VM that dies could not
/// take back what it added to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Counts in the order of [`Counter::all`].
    counts: Vec<u32>,
    /// Numbers of latencies up to each of [`BOUNDS`], and beyond the last.
    took: Vec<u32>,
    took_micros: u64,
}

/// Bounds of latencies in microseconds; the last one is the most that Envoy gives a request.
const BOUNDS: [u32; 15] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_000_000, 4_000_000];

impl Default for Tally {
    fn default() -> Self {
        Self { counts: Counter::all().map(|_| 0).collect(), took: BOUNDS.iter().chain([&0]).map(|_| 0).collect(), took_micros: 0 }
    }
}

impl Tally {
    /// Increments a counter.
    pub fn count(&mut self, counter: Counter) {
        let at = Counter::all().position(|known| known == counter);
        if let Some(count) = at.and_then(|at| self.counts.get_mut(at)) {
            *count = count.saturating_add(1);
        }
    }

    /// Counts a latency, in microseconds.
    pub fn record(&mut self, micros: u64) {
        let at = BOUNDS.iter().position(|bound| micros <= u64::from(*bound)).unwrap_or(BOUNDS.len());
        if let Some(count) = self.took.get_mut(at) {
            *count = count.saturating_add(1);
            self.took_micros = self.took_micros.saturating_add(micros);
        }
    }

    /// Adds the counts of another tally.
    pub fn add(&mut self, other: &Self) {
        let (counts, others) = (self.counts.iter_mut().chain(&mut self.took), other.counts.iter().chain(&other.took));
        for (count, other) in counts.zip(others) {
            *count = count.saturating_add(*other);
        }
        self.took_micros = self.took_micros.saturating_add(other.took_micros);
    }

    /// The tally as a report to the sidecar, without counters that are 0.
    pub fn report(&self) -> Report {
        let mut report = Report { took_micros: self.took_micros, ..Report::default() };
        for (counter, count) in Counter::all().zip(self.counts.iter().copied()).filter(|(_, count)| *count > 0) {
            match counter.told() {
                Told::Reply(reason) => report.replies.push(Replies { reason: reason.to_owned(), count }),
                Told::Event(event) => report.events.push(Events { event: event.into(), count }),
            }
        }
        // The last range has no bound, which is written as 0.
        let bounds = BOUNDS.into_iter().chain([0]);
        report.took = bounds.zip(self.took.iter().copied()).filter(|(_, count)| *count > 0).map(took).collect();
        report
    }
}

const fn took((up_to_micros, count): (u32, u32)) -> Took {
    Took { up_to_micros, count }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_counter_has_a_name_of_its_own() {
        let names: BTreeSet<_> = Counter::all().map(Counter::name).collect();
        assert_eq!(names.len(), Counter::PLAIN.len() + Refusal::ALL.len());
    }

    #[test]
    fn e3_the_page_of_metrics_lists_what_is_registered_with_envoy_and_no_more() {
        let (_, page) = include_str!("../../docs/metrics.md").split_once("\n## Envoy\n").unwrap();
        let listed: BTreeSet<_> =
            page.split('`').filter(|word| word.starts_with("stepward_") && !word.contains("stepward_filter_")).collect();
        let name = |name: &str| name.replace('.', "_");
        let refusals = "stepward_replies_refuse_".to_owned();
        assert!(Refusal::ALL.iter().all(|refusal| name(&Counter::Refused(*refusal).name()) == format!("{refusals}{}", refusal.as_str())));
        let registered: BTreeSet<_> = Counter::PLAIN.iter().map(|counter| name(&counter.name())).chain([refusals, name(LATENCY)]).collect();
        assert_eq!(listed, registered.iter().map(String::as_str).collect());
    }

    #[test]
    fn e3_every_counter_is_in_a_report_under_a_word_of_its_own() {
        let mut tally = Tally::default();
        assert_eq!(tally.report(), Report::default());
        for (at, counter) in Counter::all().enumerate() {
            (0..=at).for_each(|_| tally.count(counter));
        }
        let report = tally.report();
        let words: BTreeSet<_> = report.replies.iter().map(|replies| replies.reason.clone()).collect();
        assert_eq!(words.len(), 2 + Refusal::ALL.len());
        let events: BTreeSet<_> = report.events.iter().map(|events| events.event).collect();
        assert_eq!(events.len(), Counter::PLAIN.len() - 2);
        assert!(!events.contains(&Event::Unspecified.into()));
        let replies = report.replies.iter().map(|replies| replies.count);
        let counts: BTreeSet<_> = replies.chain(report.events.iter().map(|events| events.count)).collect();
        assert!(counts.into_iter().eq(1..=u32::try_from(Counter::all().count()).unwrap()));
    }

    #[test]
    fn e3_a_latency_is_told_by_the_smallest_bound_that_it_is_within() {
        let mut tally = Tally::default();
        let took = |tally: &Tally| -> Vec<_> { tally.report().took.iter().map(|took| (took.up_to_micros, took.count)).collect() };
        for micros in [0, 100, 101, 4_000_000, 4_000_001, u64::MAX] {
            tally.record(micros);
        }
        assert_eq!(took(&tally), [(100, 2), (250, 1), (4_000_000, 1), (0, 2)]);
        assert_eq!(tally.report().took_micros, u64::MAX);
        let mut sum = Tally::default();
        sum.record(7);
        sum.add(&sum.clone());
        assert_eq!((took(&sum), sum.report().took_micros), (vec![(100, 2)], 14));
    }
}
