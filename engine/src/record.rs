//! The record of a decision: what is logged, counted and kept of it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use posture::caller::Caller;
use posture::identity::{Identity, PublicKey};
use posture::notification::Notification;
use posture::outcome::{Denial, Refusal};
use store::DecisionId;

use crate::decide::Decision;
use crate::engine::Engine;
use crate::gate::Outcome;
use crate::metrics::{DecisionLabels, Metrics, WebhookLabel, Word};
use crate::samples::Samples;
use crate::webhooks::Webhook;

/// The record of one decision: one log event, one count and one row, all made by [`Record::write`].
#[derive(Debug)]
pub struct Record {
    /// Time at which the question was read.
    pub received: Instant,
    /// The webhook id that the question names.
    pub webhook_id: String,
    /// The webhook, where it is configured.
    pub webhook: Option<Arc<Webhook>>,
    /// The caller, once admitted.
    pub caller: Option<Caller>,
    /// The device, once found out.
    pub identity: Option<Identity>,
    /// The public key for which the certificate is requested, where it can be read.
    pub key: Option<PublicKey>,
    /// The content of a notification.
    pub notification: Option<Notification>,
    /// The decision, where it was made now.
    pub decision: Option<Decision>,
    /// Whether the outcome is that of equal bytes which came before.
    pub replayed: bool,
    /// Whether signature and caller were good, and no other caller or webhook had the same bytes before. What is not proven is
    /// counted and sampled, and takes no place of what is.
    pub proven: bool,
    /// SHA-256 of the body, in hexadecimal.
    pub digest: String,
    /// Age of the timestamp in nanoseconds, once verified.
    pub age: Option<i64>,
    /// Address of the caller, as Envoy writes it.
    pub peer_address: String,
    /// The header `X-Request-Id`; empty where there was none.
    pub request_id: String,
    /// The header `traceparent` (W3C Trace Context); empty where there was none.
    pub traceparent: String,
}

impl Record {
    /// Logs, counts and keeps the decision. What is not proven is only counted, and logged as often as `samples` has room.
    pub fn write(&mut self, engine: &Engine, outcome: &Outcome, samples: &Samples) {
        if !self.proven {
            return self.sample(engine, outcome, samples);
        }
        let metrics = &engine.metrics;
        let (decision, reason) = words(outcome);
        let elapsed = self.received.elapsed();
        let webhook = self.webhook.as_ref();
        let made = self.decision.take();
        let asked = made.as_ref().and_then(|made| made.asked.last());
        let id = DecisionId::new(clock::now());
        let told = self.notification.as_ref();
        tracing::info!(
            target: "stepward::decision",
            id = %id,
            webhook = self.webhook_id,
            webhook_name = webhook.and_then(|webhook| webhook.settings.name.as_deref()),
            kind = webhook.map(|webhook| webhook.settings.kind.as_str()),
            decision,
            reason,
            device = self.identity.as_ref().map(|identity| identity.device.normal()),
            identifier = self.identity.as_ref().map(|identity| identity.device.kind().as_str()),
            trust = self.identity.as_ref().map(|identity| identity.trust.as_str()),
            code = if let Outcome::Deny(denial) = outcome { Some(&*denial.code) } else { None },
            policy = webhook.and_then(|webhook| webhook.plan.policy.as_deref()),
            // The denial by the rules that does not count, since they are only observed or the device is exempt.
            waived = made.as_ref().and_then(|made| made.waived.as_ref()).map(|denial| &*denial.code),
            provider = made.as_ref().and_then(|made| made.provider.as_deref()),
            source = asked.map(|asked| asked.source.as_str()),
            record_age_ms = asked.and_then(|asked| asked.age).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            notification = told.map(|told| told.result),
            provisioner = told.and_then(|told| told.provisioner.as_deref()),
            scep_transaction = told.and_then(|told| told.transaction.as_deref()),
            certificate_serial = told.and_then(|told| told.serial.as_deref()),
            scep_error_code = told.and_then(|told| told.error_code),
            scep_error = told.and_then(|told| told.error.as_deref()),
            caller = self.caller.as_ref().map(Caller::as_str),
            peer_address = present(&self.peer_address),
            request_id = present(&self.request_id),
            traceparent = present(&self.traceparent),
            replayed = self.replayed,
            age_ms = self.age.map(|age| age / 1_000_000),
            latency_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            "decision"
        );
        let label = webhook.map_or_else(|| Word::from("unknown"), |webhook| Word(Arc::clone(&webhook.id)));
        metrics.decisions.get_or_create(&DecisionLabels { webhook: label, decision, reason, replayed: self.replayed }).inc();
        metrics.decision_duration.observe(elapsed.as_secs_f64());
        if engine.store.keeps_decisions() {
            engine.store.record(self.kept(id, outcome, made.as_ref(), elapsed));
        }
        if let (Some(webhook), Some(age)) = (webhook, self.age) {
            tell_clock(webhook, age, metrics, self.received);
        }
    }
}

/// Shows in the metrics how far a caller's clock is ahead of ours, and warns where that is not ordinary. `age` is that of a
/// signed timestamp, in nanoseconds.
pub fn tell_clock(webhook: &Webhook, age: i64, metrics: &Metrics, now: Instant) {
    let label = WebhookLabel { webhook: Word(Arc::clone(&webhook.id)) };
    metrics.clock_skew.get_or_create(&label).set(-seconds(age));
    if !ORDINARY_AGE.contains(&age) && webhook.may_warn(now) {
        tracing::warn!(
            webhook = &*webhook.id,
            webhook_name = webhook.settings.name.as_deref(),
            age_ms = age / 1_000_000,
            "the caller's clock and ours disagree, or its requests wait: at the end of the window all of them are refused"
        );
    }
}

impl Record {
    /// Counts a question that is not proven, and logs some of them.
    fn sample(&self, engine: &Engine, outcome: &Outcome, samples: &Samples) {
        let (decision, reason) = words(outcome);
        let label = self.webhook.as_ref().map_or_else(|| Word::from("unknown"), |webhook| Word(Arc::clone(&webhook.id)));
        engine.metrics.decisions.get_or_create(&DecisionLabels { webhook: label, decision, reason, replayed: false }).inc();
        let Some(left_out) = samples.admits(self.received) else { return };
        if matches!(outcome, Outcome::Refuse(Refusal::ReplayedByAnother)) {
            return tracing::warn!(
                webhook = self.webhook_id,
                webhook_name = self.webhook.as_ref().and_then(|webhook| webhook.settings.name.as_deref()),
                decision,
                reason,
                caller = self.caller.as_ref().map(Caller::as_str),
                peer_address = present(&self.peer_address),
                request_id = present(&self.request_id),
                left_out,
                "somebody sent again what had been sent before by another caller or to another webhook: see who has this certificate, and the bytes of a request"
            );
        }
        tracing::warn!(
            webhook = self.webhook_id,
            webhook_name = self.webhook.as_ref().and_then(|webhook| webhook.settings.name.as_deref()),
            decision,
            reason,
            caller = self.caller.as_ref().map(Caller::as_str),
            peer_address = present(&self.peer_address),
            request_id = present(&self.request_id),
            left_out,
            "a question failed its proof, though the filter makes the same checks: another program uses filter.sock, or filter and sidecar have different keys for a moment"
        );
    }

    /// The row of the decision for the store. It shows nothing that checks read of a person.
    pub fn kept(&self, id: DecisionId, outcome: &Outcome, made: Option<&Decision>, elapsed: Duration) -> store::Decision {
        let (decision, reason) = words(outcome);
        let plan = self.webhook.as_ref().map(|webhook| &webhook.plan);
        let text = |text: &str| present(text).map(str::to_owned);
        store::Decision {
            id,
            at: id.at(),
            webhook: self.webhook_id.clone(),
            kind: self.webhook.as_ref().map_or("", |webhook| webhook.settings.kind.as_str()),
            caller: self.caller.as_ref().map(|caller| caller.as_str().to_owned()),
            caller_digest: None,
            device: self.identity.as_ref().map(|identity| store::Device {
                identifier: identity.device.normal().to_owned(),
                kind: identity.device.kind().as_str(),
                trust: identity.trust.as_str(),
            }),
            provider: made.and_then(|made| made.provider.as_deref()).map(str::to_owned),
            answers: made.map_or_else(Vec::new, Decision::answers),
            checks: self.notification.as_ref().map(told).or_else(|| made.and_then(Decision::explained)),
            policy: plan.and_then(|plan| plan.policy.as_deref()).map(str::to_owned),
            policy_revision: plan.and_then(|plan| plan.revision()),
            enforcement: plan.map(|plan| plan.enforcement.as_str()),
            decision,
            code: match outcome {
                Outcome::Deny(denial) => denial.code.clone().into_owned(),
                _ => reason.to_owned(),
            },
            inputs: self.digest.clone(),
            replayed: self.replayed,
            latency_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            request_id: text(&self.request_id),
            traceparent: text(&self.traceparent),
            // The key of an allow that is repeated is kept since the first time.
            key: match outcome {
                Outcome::Allow(_) if !self.replayed => self.key.zip(self.identity.clone()),
                _ => None,
            },
        }
    }
}

/// The content of a notification, in the form of a check.
fn told(notification: &Notification) -> String {
    serde_json::json!([{ "check": "notification", "code": null, "inputs": notification }]).to_string()
}

fn words(outcome: &Outcome) -> (&'static str, &'static str) {
    match outcome {
        Outcome::Allow(_) => ("allow", "allowed"),
        Outcome::Deny(denial) => ("deny", code(denial)),
        Outcome::Refuse(refusal) => ("refuse", refusal.as_str()),
    }
}

/// The code of a denial as a label; `custom` for a code of the operator's own, since labels are a closed set.
pub const fn code(denial: &Denial) -> &'static str {
    match denial.code {
        Cow::Borrowed(code) => code,
        Cow::Owned(_) => "custom",
    }
}

fn present(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Converts nanoseconds to seconds.
pub(crate) fn seconds(nanos: i64) -> f64 {
    let duration = Duration::from_nanos(nanos.unsigned_abs()).as_secs_f64();
    if nanos < 0 { -duration } else { duration }
}

/// Ages of timestamps that call for no warning, in nanoseconds: 2 s ahead to 10 s old.
pub(crate) const ORDINARY_AGE: std::ops::RangeInclusive<i64> = -2_000_000_000..=10_000_000_000;

#[cfg(test)]
pub(crate) mod tests {
    use posture::identity::{DeviceId, IdentifierKind, Trust};
    use posture::outcome::Data;
    use posture::time::UnixTime;
    use serde_json::{Value, json};

    use super::*;

    /// A record of a webhook called `one` that was proven, with nothing else known.
    pub(crate) fn record(notification: Option<Notification>) -> Record {
        Record {
            received: Instant::now(),
            webhook_id: "one".to_owned(),
            webhook: None,
            caller: None,
            identity: None,
            key: None,
            notification,
            decision: None,
            proven: true,
            replayed: false,
            digest: String::new(),
            age: None,
            peer_address: String::new(),
            request_id: String::new(),
            traceparent: String::new(),
        }
    }

    #[test]
    fn d10_the_record_of_a_notification_says_what_it_told() {
        let told = |body: &str| {
            let notification = Notification::of(&serde_json::from_str(body).unwrap());
            let kept = record(Some(notification)).kept(
                DecisionId::new(UnixTime::from_nanos(0)),
                &Outcome::Deny(Denial::NOTIFICATION_RECORDED),
                None,
                Duration::ZERO,
            );
            let record: Value = serde_json::from_str(&kept.record().unwrap()).unwrap();
            record["checks"].clone()
        };
        assert_eq!(
            told(include_str!("../../posture/testdata/step-ca/notifying.success.json")),
            json!([{"check": "notification", "code": null, "inputs": {
                "result": "issued", "transaction": "VT6uRqiFYmqI+uFTcHqcxIJFyww=", "serial": "c3c0b21564929c2f793aa6ed1055c01a",
            }}])
        );
        assert_eq!(
            told(include_str!("../../posture/testdata/step-ca/notifying.failure.authorizing-denied.json")),
            json!([{"check": "notification", "code": null, "inputs": {
                "result": "failed", "transaction": "fcwcfTfpypsIu18WDtHZakKbVtw=",
                "error": "error generating certificate: error creating certificate: serial not bound (no)",
            }}])
        );
    }

    #[test]
    fn what_a_caller_left_out_is_not_there_and_a_time_ahead_is_below_nothing() {
        assert_eq!((present(""), present("id")), (None, Some("id")));
        assert_eq!([-1_500_000_000, 0, 2_000_000_000].map(seconds), [-1.5, 0.0, 2.0]);
        assert!(seconds(0).is_sign_positive());
    }

    #[test]
    fn the_record_of_a_denial_has_its_code_and_that_of_a_first_allow_the_key() {
        let kept = |outcome: &Outcome, replayed| {
            let device = DeviceId::new(IdentifierKind::Serial, "C02A").unwrap();
            let (identity, key) = (Identity { device, trust: Trust::Attested }, PublicKey::of_digest([1; 32]));
            let record = Record { identity: Some(identity), key: Some(key), replayed, request_id: "r".to_owned(), ..record(None) };
            let kept = record.kept(DecisionId::new(UnixTime::from_nanos(0)), outcome, None, Duration::ZERO);
            assert_eq!((kept.request_id.as_deref(), kept.traceparent), (Some("r"), None));
            (kept.code, kept.key.is_some())
        };
        let allow = crate::gate::fixture::allowed(Data::empty());
        assert_eq!(kept(&allow, false), ("allowed".to_owned(), true));
        assert_eq!(kept(&allow, true), ("allowed".to_owned(), false), "it is known since the first time");
        let own = Denial { code: Cow::Owned("not_staff".to_owned()), ..Denial::DEVICE_LOCKED };
        assert_eq!(kept(&Outcome::Deny(own), false), ("not_staff".to_owned(), false));
        assert_eq!(kept(&Outcome::Refuse(Refusal::Internal), false), ("internal".to_owned(), false));
    }
}
