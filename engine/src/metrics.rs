//! The metrics, as Prometheus reads them. Every metric is named here, and docs/metrics.md lists them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

mod filter;

pub use filter::FilterMetrics;

/// Declares [`Metrics`]: each metric with its first value, its name, its unit if it has one, and a sentence for people. The
/// registry puts `stepward_` before the name, and the unit and `_total` behind it. What has no name registers itself.
macro_rules! metrics {
    ($(#[$of_all:meta])* pub struct Metrics {
        $($(#[$doc:meta])* pub $field:ident: $type:ty = $first:expr $(, $name:literal $(in $unit:ident)?, $help:literal)?;)*
    }) => {
        $(#[$of_all])*
        pub struct Metrics {
            registry: Registry,
            $($(#[$doc])* pub $field: $type,)*
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("stepward");
                $(
                    let $field: $type = $first;
                    metrics!(@register registry, $field $(, $name $(in $unit)?, $help)?);
                )*
                registry.register("build", "The running release", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
                Self { registry, $($field),* }
            }
        }

        /// Names of the metrics that have one here, without what the registry puts behind them; the unit's first letter is large.
        #[cfg(test)]
        const NAMES: &[&str] = &[$($(concat!("stepward_", $name $(, "_", stringify!($unit))?),)?)*];
    };
    (@register $registry:ident, $field:ident, $name:literal in $unit:ident, $help:literal) => {
        $registry.register_with_unit($name, $help, Unit::$unit, $field.clone());
    };
    (@register $registry:ident, $field:ident, $name:literal, $help:literal) => {
        $registry.register($name, $help, $field.clone());
    };
    (@register $registry:ident, $field:ident) => {
        $field.register(&mut $registry);
    };
}

metrics! {
    /// All metrics of the sidecar. No device is ever a label.
    #[derive(Debug)]
    pub struct Metrics {
        /// Decisions, as they went to the filter.
        pub decisions: Family<DecisionLabels, Counter> = Family::default(),
            "decisions", "Decisions, by webhook, decision, reason, and whether it was remembered";
        /// Time from reading a proven question to writing its answer.
        pub decision_duration: Histogram = Histogram::new(DURATIONS.iter().copied()),
            "decision_duration" in Seconds, "From reading a question to writing its answer";
        /// Metrics that filters report.
        pub filter: FilterMetrics = FilterMetrics::default();
        /// Webhooks in the replay memory.
        pub replay_entries: Gauge = Gauge::default(), "replay_entries", "Webhooks in the replay memory";
        /// Bytes that the replay memory takes.
        pub replay_bytes: Gauge = Gauge::default(), "replay" in Bytes, "What the replay memory takes";
        /// Webhooks that were decided without asking other services.
        pub replay_unshared: Counter = Counter::default(),
            "replay_unshared", "Webhooks that were decided without asking other services on the store about the same bytes";
        /// Answers of providers.
        pub provider_requests: Family<ProviderLabels, Counter> = Family::default(), "provider_requests", "Answers of providers, by outcome";
        /// Devices that a provider holds.
        pub provider_entries: Family<ProviderLabel, Gauge> = Family::default(), "provider_entries", "Devices that a provider holds";
        /// 1 while a list of a provider is not used, since it lost more than it may.
        pub provider_shrink_pending: Family<ProviderLabel, Gauge> = Family::default(),
            "provider_shrink_pending", "Whether a list of a provider is not used since it lost more than max_shrink";
        /// Answers of caches, by what they were.
        pub cache_lookups: Family<CacheLabels, Counter> = Family::default(), "cache_lookups", "Answers of caches, by what they were";
        /// Devices that a cache dropped for want of room.
        pub cache_evictions: Family<ProviderLabel, Counter> = Family::default(),
            "cache_evictions", "Devices that a cache dropped for want of room";
        /// Calls to services, by outcome.
        pub provider_calls: Family<CallLabels, Counter> = Family::default(), "provider_calls", "Calls to services, by outcome";
        /// Duration of calls to services.
        pub provider_call_duration: Family<ProviderLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(CALLS.iter().copied())),
            "provider_call_duration" in Seconds, "How long calls to services took";
        /// State of a service's circuit: 0 closed, 1 half open, 2 open.
        pub provider_circuit: Family<ProviderLabel, Gauge> = Family::default(),
            "provider_circuit", "Whether a service is asked: 0 yes, 1 one call tries, 2 no";
        /// Time since a service last answered.
        pub provider_silence: Family<ProviderLabel, Gauge<f64, AtomicU64>> = Family::default(),
            "provider_silence" in Seconds, "Since a service last answered";
        /// Events of services, by what became of them.
        pub push_events: Family<CallLabels, Counter> = Family::default(), "push_events", "Events of services, by what became of them";
        /// Readings of services' own feeds, by what became of them.
        pub feed_reads: Family<CallLabels, Counter> = Family::default(), "feed_reads", "Readings of services' feeds of what happened";
        /// Answers to Envoy's external authorization.
        pub authorizations: Family<AuthorizationLabels, Counter> = Family::default(),
            "authorizations", "Answers to Envoy's external authorization";
        /// Clients over TCP that were turned away.
        pub query_refusals: Family<ReasonLabel, Counter> = Family::default(),
            "query_refusals", "Clients over TCP that were turned away, by reason";
        /// Envoys over TCP that were turned away.
        pub filter_refusals: Family<ReasonLabel, Counter> = Family::default(),
            "filter_refusals", "Envoys over TCP that were turned away, by reason";
        /// Reloads that kept the old state.
        pub reload_failures: Family<SubjectLabel, Counter> = Family::default(),
            "config_reload_failures", "Reloads that were not applied, by subject";
        /// Time at which a subject was last applied.
        pub reload_success: Family<SubjectLabel, Gauge<f64, AtomicU64>> = Family::default(),
            "config_reload_success_timestamp" in Seconds, "When a subject was last applied";
        /// How far the caller's clock is ahead of ours, by the last webhook.
        pub clock_skew: Family<WebhookLabel, Gauge<f64, AtomicU64>> = Family::default(),
            "caller_clock_skew" in Seconds, "How far the caller's clock is ahead of ours, delay included";
        /// Log lines that were dropped because nobody read them.
        pub log_lines_dropped: Counter = Counter::default(), "log_lines_dropped", "Log lines that nobody read in time";
        /// Decisions that were made and not kept.
        pub decision_records_dropped: Counter = Counter::default(),
            "decision_records_dropped", "Decisions that were made and not kept: too many at once, or the disk did not take them";
        /// Rulings that hold, or were taken back, and of which the store does not know yet.
        pub store_owed_locks: Gauge = Gauge::default(),
            "store_owed_locks", "Locks and exemptions that hold, or were taken back, and of which that could not be written yet";
        /// 1 where a start would not find what the store holds.
        pub store_lost: Gauge = Gauge::default(),
            "store_lost", "Whether a file of the store was removed, replaced, damaged or written to by somebody else: 0 no, 1 yes";
        /// Time since which nothing is known of what other services on the store rule; 0 where there can be none.
        pub store_news_age: Gauge<f64, AtomicU64> = Gauge::default(),
            "store_news_age" in Seconds, "Time since which nothing is known of what other services on the store rule; beyond [store] stale_limit every request is refused";
    }
}

/// A word that comes from the configuration or a closed set: the only kind of label there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Word(pub Arc<str>);

/// Labels of a decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DecisionLabels {
    /// Id of the webhook; `unknown` where it is not configured.
    pub webhook: Word,
    /// Decision: `allow`, `deny` or `refuse`.
    pub decision: &'static str,
    /// Reason: the code of the denial, the cause of the refusal, or `allowed`.
    pub reason: &'static str,
    /// Whether the outcome is remembered from equal bytes that came before.
    pub replayed: bool,
}

/// Labels of a provider's answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProviderLabels {
    /// Name of the provider.
    pub provider: Word,
    /// Outcome: `found`, `not_found`, `ambiguous`, `unavailable`, `invalid_identifier`.
    pub outcome: &'static str,
}

/// Labels of a cache's answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CacheLabels {
    /// Name of the provider.
    pub provider: Word,
    /// Result of the lookup: `hit`, `miss`, `stale`.
    pub result: &'static str,
}

/// Labels of a call, of an event, or of a reading of a feed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    /// Name of the provider.
    pub provider: Word,
    /// Outcome of a call, as [`ProviderLabels::outcome`]; of an event: `taken`, `unauthorized`, `malformed`, `rate_limited`,
    /// `too_large`, `too_slow`; of a reading of a feed: `read`, or why it failed.
    pub outcome: &'static str,
}

/// Labels of an answer to Envoy's external authorization.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AuthorizationLabels {
    /// Name of the policy; `none` where the route names none that there is.
    pub policy: Word,
    /// Decision: `allow`, `deny` or `refuse`.
    pub decision: &'static str,
    /// Reason, as [`DecisionLabels::reason`].
    pub reason: &'static str,
}

/// Label of a client over TCP that was turned away.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// Reason: `handshake`, `timeout`, `gave_way`, `too_many` for a connection; `usage`, `name`, `role` for a call.
    pub reason: &'static str,
}

/// Label of a provider.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProviderLabel {
    /// Name of the provider.
    pub provider: Word,
}

/// Label of what is reloaded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SubjectLabel {
    /// Subject: `configuration`, `secrets`, `certificates` or the name of a provider.
    pub subject: Word,
}

/// Label of a webhook.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WebhookLabel {
    /// Id of the webhook.
    pub webhook: Word,
}

impl From<&str> for Word {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&&*self.0, encoder)
    }
}

impl store::Dropped for Metrics {
    fn add(&self, decisions: u64) {
        self.decision_records_dropped.inc_by(decisions);
    }
}

impl Metrics {
    /// The text that Prometheus reads (OpenMetrics 1.0).
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Upper bounds of [`Metrics::decision_duration`], in seconds. Most decisions take microseconds; the last bound is the longest
/// deadline.
const DURATIONS: &[f64] =
    &[0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.8];

/// Upper bounds of [`Metrics::provider_call_duration`], in seconds. Most calls take tens of milliseconds; the last bound is the
/// longest call.
const CALLS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_page_of_metrics_lists_each_of_them_and_no_other() {
        let (page, _) = include_str!("../../docs/metrics.md").split_once("\n## Envoy\n").unwrap();
        let mut listed: Vec<_> = page.split('`').filter(|word| word.starts_with("stepward_")).map(str::to_owned).collect();
        let there = names(&shown());
        listed.sort();
        listed.dedup();
        let (missing, gone) = (except(&there, &listed), except(&listed, &there));
        assert!(missing.is_empty(), "docs/metrics.md has no row for {missing:?}");
        assert!(gone.is_empty(), "docs/metrics.md lists {gone:?}, which `metrics!` does not have");
    }

    #[test]
    fn e14_dashboard_and_alerts_name_metrics_that_there_are_with_labels_that_they_have() {
        let dashboard = include_str!("../../deploy/grafana/stepward.json");
        let alerts = include_str!("../../deploy/prometheus/stepward.rules.yaml");
        let tests = include_str!("../../deploy/prometheus/stepward.rules.test.yaml");
        let text = shown();
        let mut series: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
            let labels = rest.split(['{', ',']).filter_map(|part| part.split_once("=\"").map(|(label, _)| label));
            series.entry(name.to_owned()).or_default().extend(labels);
        }
        for (file, text) in [("dashboard", dashboard), ("alerts", alerts), ("tests", tests)] {
            let text = text.replace('\\', "");
            let mut named = 0;
            for (at, _) in text.match_indices("stepward_") {
                let rest = text.get(at..).unwrap();
                let name = rest.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').next().unwrap();
                let labels = series.get(name).unwrap_or_else(|| panic!("{file}: there is no {name}"));
                named += 1;
                let Some(matchers) =
                    rest.strip_prefix(name).unwrap().strip_prefix('{').and_then(|rest| rest.split_once('}')).map(|(inside, _)| inside)
                else {
                    continue;
                };
                for label in matchers.split("\",").filter_map(|matcher| matcher.split_once('=')).map(|(label, _)| label.trim()) {
                    assert!(labels.contains(label), "{file}: {name} has no label {label}");
                }
            }
            assert!(named > 15, "{file}: {named}");
        }
        // Every alert is made to fire.
        let alerts: Vec<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
        assert!(alerts.len() > 15);
        for alert in alerts {
            assert!(tests.contains(&format!("alertname=\"{alert}\"")), "no test for {alert}");
        }
        // Every metric is to be seen.
        let alerted = [dashboard, include_str!("../../deploy/prometheus/stepward.rules.yaml")].concat();
        let unseen: Vec<_> = names(&text).into_iter().filter(|name| !alerted.contains(name.as_str())).collect();
        assert_eq!(unseen, [""; 0], "neither on the dashboard nor in an alert");
        // A dashboard is read by its ids.
        let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len());
        assert!(panels.iter().all(|panel| panel["type"] == "row" || !panel["description"].as_str().unwrap().is_empty()));
    }

    /// Names of the series, as whoever asks for them writes them.
    fn names(text: &str) -> Vec<String> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).filter_map(|line| line.split_once(' '));
        types
            .map(|(name, kind)| match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            })
            .collect()
    }

    /// The page of metrics with a member of every family, since an empty family is not printed.
    fn shown() -> String {
        let metrics = Metrics::default();
        let word = || Word::from("a");
        metrics.decisions.get_or_create(&DecisionLabels { webhook: word(), decision: "allow", reason: "allowed", replayed: false }).inc();
        metrics.provider_requests.get_or_create(&ProviderLabels { provider: word(), outcome: "found" }).inc();
        metrics.provider_entries.get_or_create(&ProviderLabel { provider: word() }).set(1);
        metrics.provider_shrink_pending.get_or_create(&ProviderLabel { provider: word() }).set(1);
        metrics.cache_lookups.get_or_create(&CacheLabels { provider: word(), result: "hit" }).inc();
        metrics.provider_calls.get_or_create(&CallLabels { provider: word(), outcome: "found" }).inc();
        let labels = AuthorizationLabels { policy: word(), decision: "allow", reason: "allowed" };
        metrics.authorizations.get_or_create(&labels).inc();
        metrics.query_refusals.get_or_create(&ReasonLabel { reason: "role" }).inc();
        metrics.filter_refusals.get_or_create(&ReasonLabel { reason: "name" }).inc();
        metrics.push_events.get_or_create(&CallLabels { provider: word(), outcome: "taken" }).inc();
        metrics.feed_reads.get_or_create(&CallLabels { provider: word(), outcome: "read" }).inc();
        let provider = || ProviderLabel { provider: word() };
        metrics.cache_evictions.get_or_create(&provider()).inc();
        metrics.provider_call_duration.get_or_create(&provider()).observe(1.0);
        metrics.provider_circuit.get_or_create(&provider()).set(1);
        metrics.provider_silence.get_or_create(&provider()).set(1.0);
        metrics.reload_failures.get_or_create(&SubjectLabel { subject: word() }).inc();
        metrics.reload_success.get_or_create(&SubjectLabel { subject: word() }).set(1.0);
        metrics.clock_skew.get_or_create(&WebhookLabel { webhook: word() }).set(1.0);
        let text = metrics.encode().unwrap();
        let printed: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let missing: Vec<_> = NAMES.iter().map(|name| name.to_lowercase()).filter(|name| !printed.contains(&**name)).collect();
        assert!(missing.is_empty(), "`shown()` in engine/src/metrics.rs gives no member to {missing:?}");
        text
    }

    /// What is in one list and not in another.
    fn except<'l>(one: &'l [String], other: &[String]) -> Vec<&'l String> {
        one.iter().filter(|name| !other.contains(name)).collect()
    }
}
