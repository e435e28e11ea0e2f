//! Metrics of filters, by what they report of themselves.

use std::sync::{Arc, Mutex, PoisonError};

use posture::outcome::Refusal;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use proto::v1::{Event, Report};

/// All that filters count. Whoever may attach can report anything, so every label is a word of a closed set, and no decision
/// depends on these counts.
#[derive(Clone, Debug)]
pub struct FilterMetrics {
    /// Replies to webhooks.
    pub replies: Family<ReplyLabels, Counter>,
    /// Everything else that filters count.
    pub events: Family<EventLabel, Counter>,
    /// Requests that wait in filters.
    pub waiting: Gauge,
    /// Bytes of requests that wait, or are sent and unanswered.
    pub waiting_bytes: Gauge,
    /// Streams that are open.
    pub streams: Gauge,
    /// Workers of Envoy whose filter lives.
    pub workers: Gauge,
    /// Workers whose filter said nothing any more.
    pub silent: Counter,
    /// Latency of replies that allow or deny.
    pub latency: Latency,
}

/// Labels of a reply.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReplyLabels {
    /// Decision: `allow`, `deny`, `refuse`.
    pub decision: &'static str,
    /// Reason: `allowed`, `denied`, or the cause of a refusal.
    pub reason: &'static str,
}

/// Label of an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EventLabel {
    /// Word of the event, such as `stream_lost`.
    pub event: &'static str,
}

/// A histogram that takes many values at once.
#[derive(Clone, Debug, Default)]
pub struct Latency(Arc<Mutex<Values>>);

#[derive(Debug, Default)]
struct Values {
    /// Values up to each of [`BOUNDS`] and above the one before it; those above all are in `beyond`.
    counts: [u64; BOUNDS.len()],
    beyond: u64,
    micros: u64,
}

/// Bounds of the latency, in microseconds. The filter has the same, unless it is of another release.
const BOUNDS: [u32; 15] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_000_000, 4_000_000];

/// Entries of a report that are looked at, at most; an honest report has fewer.
const ENTRIES: usize = 256;

impl Default for FilterMetrics {
    /// Metrics with every label at zero: a counter that begins with its first count has not grown by it, for Prometheus.
    fn default() -> Self {
        let (replies, events) = (Family::<ReplyLabels, Counter>::default(), Family::<EventLabel, Counter>::default());
        let reasons = ["allowed", "denied"].into_iter().chain(Refusal::ALL.iter().map(|refusal| refusal.as_str()));
        for labels in reasons.filter_map(ReplyLabels::parse) {
            drop(replies.get_or_create(&labels));
        }
        for event in (1..).map_while(|event| Event::try_from(event).ok()).filter_map(word) {
            drop(events.get_or_create(&EventLabel { event }));
        }
        Self {
            replies,
            events,
            waiting: Gauge::default(),
            waiting_bytes: Gauge::default(),
            streams: Gauge::default(),
            workers: Gauge::default(),
            silent: Counter::default(),
            latency: Latency::default(),
        }
    }
}

impl FilterMetrics {
    /// Adds what a filter has counted. Words that this release does not know are left out.
    pub fn add(&self, report: &Report) {
        for replies in report.replies.iter().take(ENTRIES) {
            let Some(labels) = ReplyLabels::parse(&replies.reason) else { continue };
            self.replies.get_or_create(&labels).inc_by(replies.count.into());
        }
        for events in report.events.iter().take(ENTRIES) {
            let Some(event) = word(events.event()) else { continue };
            self.events.get_or_create(&EventLabel { event }).inc_by(events.count.into());
        }
        self.latency.add(report);
    }

    /// Registers all metrics of filters.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("filter_streams", "Open streams of filters", self.streams.clone());
        registry.register("filter_workers", "Workers of Envoy whose filter lives", self.workers.clone());
        registry.register("filter_workers_silent", "Workers whose filter said nothing any more on an open stream", self.silent.clone());
        registry.register("filter_replies", "Replies of filters to webhooks", self.replies.clone());
        registry.register("filter_events", "What else filters counted", self.events.clone());
        registry.register("filter_waiting", "Requests that wait in filters", self.waiting.clone());
        registry.register_with_unit("filter_waiting", "What these take", Unit::Bytes, self.waiting_bytes.clone());
        let help = "From when the whole of a request was at the filter to its reply, of those allowed or denied";
        registry.register_with_unit("filter_latency", help, Unit::Seconds, self.latency.clone());
    }
}

impl ReplyLabels {
    fn parse(reason: &str) -> Option<Self> {
        match reason {
            "allowed" => Some(Self { decision: "allow", reason: "allowed" }),
            "denied" => Some(Self { decision: "deny", reason: "denied" }),
            cause => Refusal::parse(cause).map(|refusal| Self { decision: "refuse", reason: refusal.as_str() }),
        }
    }
}

/// The word of an event, as a label.
const fn word(event: Event) -> Option<&'static str> {
    Some(match event {
        Event::Unspecified => return None,
        Event::StreamOpened => "stream_opened",
        Event::StreamLost => "stream_lost",
        Event::StreamReset => "stream_reset",
        Event::KeysReceived => "keys_received",
        Event::AnswerLate => "answer_late",
        Event::AnswerUnmatched => "answer_unmatched",
        Event::ClientGone => "client_gone",
        Event::CertificateUnreadable => "certificate_unreadable",
    })
}

impl Latency {
    fn add(&self, report: &Report) {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for took in report.took.iter().take(ENTRIES) {
            let count = u64::from(took.count);
            // A filter says 0 for what is beyond all of its bounds.
            let at = BOUNDS.iter().position(|bound| took.up_to_micros != 0 && took.up_to_micros <= *bound);
            let Values { counts, beyond, .. } = &mut *values;
            let sum = at.and_then(|at| counts.get_mut(at)).unwrap_or(beyond);
            // The limit lets all counts be summed up where they are shown.
            *sum = sum.saturating_add(count).min(u64::MAX >> 5);
        }
        values.micros = values.micros.saturating_add(report.took_micros);
    }
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bounds = BOUNDS.iter().map(|bound| f64::from(*bound) / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(values.counts.iter().copied().chain([values.beyond])).collect();
        let count = buckets.iter().map(|(_, count)| *count).sum();
        encoder.encode_histogram::<NoLabelSet>(std::time::Duration::from_micros(values.micros).as_secs_f64(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::{Events, Replies, Took};

    use super::*;

    fn printed(report: &Report) -> Vec<String> {
        let (metrics, mut registry) = (FilterMetrics::default(), Registry::default());
        metrics.register(&mut registry);
        metrics.add(report);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0") && !line.ends_with(" 0.0")).map(str::to_owned).collect()
    }

    fn replies(reason: &str, count: u32) -> Replies {
        Replies { reason: reason.to_owned(), count }
    }

    #[test]
    fn e3_every_word_that_a_filter_can_say_is_shown_and_no_other_one_becomes_a_label() {
        let reasons = ["allowed", "denied"].into_iter().chain(Refusal::ALL.iter().map(|refusal| refusal.as_str()));
        let known: Vec<_> = reasons.map(|reason| replies(reason, 2)).collect();
        let events: Vec<_> = (0..20).map(|event| Events { event, count: 3 }).collect();
        let strangers = ["", "allow", "Signature", "x\"} 1\nstepward_store_lost", &"long".repeat(1000)];
        let report = Report {
            replies: known.iter().cloned().chain(strangers.iter().map(|reason| replies(reason, 7))).collect(),
            events,
            ..Report::default()
        };
        let lines = printed(&report);
        assert_eq!(lines.iter().filter(|line| line.starts_with("filter_replies_total{") && line.ends_with(" 2")).count(), known.len());
        assert_eq!(lines.iter().filter(|line| line.starts_with("filter_events_total{") && line.ends_with(" 3")).count(), 8);
        assert_eq!(lines.len(), known.len() + 8);
    }

    #[test]
    fn e3_every_reply_and_event_is_shown_before_the_first_one() {
        let (metrics, mut registry) = (FilterMetrics::default(), Registry::default());
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let zeros = |name: &str| text.lines().filter(|line| line.starts_with(name) && line.ends_with(" 0")).count();
        assert_eq!((zeros("filter_replies_total{"), zeros("filter_events_total{")), (2 + Refusal::ALL.len(), 8));
    }

    #[test]
    fn e3_a_report_without_end_costs_no_more_than_its_first_entries() {
        let report = Report { replies: vec![replies("signature", 1); 10_000], ..Report::default() };
        assert_eq!(printed(&report), [r#"filter_replies_total{decision="refuse",reason="signature"} 256"#]);
    }

    #[test]
    fn e3_latencies_of_other_bounds_go_up_to_the_next_one_of_ours() {
        let took = |up_to_micros, count| Took { up_to_micros, count };
        let report = Report {
            took: vec![took(90, 1), took(100, 2), took(101, 4), took(9_000_000, 8), took(0, 16)],
            took_micros: 1_500_000,
            ..Report::default()
        };
        let lines = printed(&report);
        let value = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or_default().to_owned();
        assert_eq!(value(r#"filter_latency_seconds_bucket{le="0.0001"}"#), "3");
        assert_eq!(value(r#"filter_latency_seconds_bucket{le="0.00025"}"#), "7");
        assert_eq!(value(r#"filter_latency_seconds_bucket{le="4.0"}"#), "7");
        assert_eq!(value(r#"filter_latency_seconds_bucket{le="+Inf"}"#), "31");
        assert_eq!((value("filter_latency_seconds_count"), value("filter_latency_seconds_sum")), ("31".to_owned(), "1.5".to_owned()));
    }
}
