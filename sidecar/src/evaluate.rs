//! Steps 2 to 9 of a webhook, once more and to the end: caller, signature, time, kind, identity, facts, and the record of
//! what came out.
//!
//! The filter has made the first of these checks; they are made again here with the sidecar's own keys and clock, so that
//! neither side stands alone.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use posture::caller::{Caller, LARGEST_CERTIFICATE, Peer};
use posture::identity::{Identity, PublicKey};
use posture::outcome::{Denial, Refusal};
use posture::policy::RequestKind;
use posture::record::Form;
use posture::shape::Mode;
use posture::time::{UnixTime, Window};
use posture::verify::{Signature, Unproven, Verified};
use posture::webhook::{Kind, Notification, X509};
use sha2::{Digest as _, Sha256};

use crate::clock;
use crate::config;
use crate::decide::{self, Asker, Decision};
use crate::gate::Outcome;
use crate::metrics::{DecisionLabels, Metrics, WebhookLabel, Word};
use crate::provider::Answer;
use crate::replay::{Key, ReplayMemory};
use crate::runtime::{Runtime, Snapshot, Webhook};
use crate::store::{self, DecisionId};
use crate::webhook::Samples;

/// A request that came over the stream, as far as it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// The webhook that it names.
    pub webhook_id: &'r str,
    /// The HMAC that it claims.
    pub signature: &'r [u8],
    /// The bytes that were signed.
    pub body: &'r [u8],
}

/// A request that passed every check but the facts.
#[derive(Debug)]
pub struct Admitted {
    /// The webhook.
    pub webhook: Arc<Webhook>,
    /// Who called.
    pub caller: Caller,
    /// The device, or why there is none to ask for.
    pub identity: Result<Identity, Denial>,
    /// When it was judged.
    pub at: UnixTime,
    /// How long the replay memory has to keep it: no equal bytes are inside the window after this.
    pub keep: Duration,
}

/// Certificates that were read, by the SHA-256 of their DER; `None` is one that cannot be read. They are bounded by their bytes.
#[derive(Clone, Debug)]
pub struct Peers(moka::sync::Cache<[u8; 32], Option<Arc<Peer>>>);

impl Default for Peers {
    fn default() -> Self {
        let size = |peer: &Arc<Peer>| u32::try_from(peer.size()).unwrap_or(u32::MAX);
        let weigh = move |_: &[u8; 32], peer: &Option<Arc<Peer>>| peer.as_ref().map_or(0, size).saturating_add(ENTRY);
        Self(moka::sync::Cache::builder().max_capacity(PEERS).weigher(weigh).build())
    }
}

impl Peers {
    /// The peer of a certificate; `None` where there is none, or none that can be read.
    pub fn read(&self, der: &[u8]) -> Option<Arc<Peer>> {
        if der.is_empty() || der.len() > LARGEST_CERTIFICATE {
            return None;
        }
        self.0.get_with(Sha256::digest(der).into(), || Peer::from_der(der).ok().map(Arc::new))
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.entry_count()
    }
}

/// Makes every check that needs no facts, and writes what it learns into the record. `peer` reads the caller's certificate,
/// which takes long for one with many names: it is called for what somebody signed who has the secret.
///
/// # Errors
/// The first [`Refusal`] in the order webhook, signature, caller, schema, time, kind.
pub fn admit<P: Deref<Target = Peer>>(
    snapshot: &Snapshot,
    request: &Request<'_>,
    peer: impl FnOnce() -> Option<P>,
    now: UnixTime,
    record: &mut Record,
) -> Result<Admitted, Refusal> {
    let mut seen = Seen::default();
    let admitted = check(snapshot, request, peer, now, &mut seen);
    let Seen { webhook, caller, proven, age, key, notification } = seen;
    (record.webhook, record.caller, record.proven, record.age) = (webhook, caller, proven, age);
    (record.key, record.notification) = (key, notification);
    record.identity = admitted.as_ref().ok().and_then(|admitted| admitted.identity.as_ref().ok().cloned());
    admitted
}

/// What was found out of a request on the way, whatever came of it.
#[derive(Default)]
struct Seen {
    webhook: Option<Arc<Webhook>>,
    caller: Option<Caller>,
    proven: bool,
    age: Option<i64>,
    key: Option<PublicKey>,
    notification: Option<Notification>,
}

fn check<P: Deref<Target = Peer>>(
    snapshot: &Snapshot,
    request: &Request<'_>,
    peer: impl FnOnce() -> Option<P>,
    now: UnixTime,
    seen: &mut Seen,
) -> Result<Admitted, Refusal> {
    let webhook = snapshot.webhooks.get(request.webhook_id).ok_or(Refusal::WebhookUnknown)?;
    seen.webhook = Some(Arc::clone(webhook));
    let settings = &webhook.settings;
    let signature = Signature::from_bytes(request.signature).ok_or(Refusal::SignatureHeader)?;
    // The filter judged the time exactly; the question may have waited for us as long as the deadline since.
    let past = snapshot.reaches.of(&webhook.signers);
    let window = Window { past, future: settings.window.future };
    let verified = Verified::<posture::webhook::Webhook<'_>>::verify_at(&webhook.keys, &signature, request.body, &window, || now);
    if matches!(verified, Err(Unproven { refusal: Refusal::Signature, .. })) {
        return Err(Refusal::Signature);
    }
    let caller = settings.callers.admit(peer().as_deref()).ok_or(Refusal::Caller)?;
    seen.caller = Some(caller.clone());
    // Whatever else is wrong, it was said by a caller of bytes that somebody signed who has the secret.
    seen.proven = true;
    seen.age = verified.as_ref().map_or_else(|unproven| unproven.age, |verified| Some(verified.age()));
    let verified = verified.map_err(|unproven| unproven.refusal)?;
    verified.get().check_kind(settings.kind)?;
    let identity = settings.source.identify(verified.get(), settings.identifier);
    let identity = identity.and_then(|identity| snapshot.config.placeholders.identity(identity));
    seen.key = verified.get().x509().and_then(X509::key);
    seen.notification = (settings.kind == Kind::Notifying).then(|| Notification::of(verified.get()));
    Ok(Admitted { webhook: Arc::clone(webhook), caller, identity, at: now, keep: keep(settings) })
}

/// How long bytes that were sent to a webhook may be accepted: from the furthest ahead to the longest age, whatever the age
/// is now, since the clock that it was read from may be set right meanwhile.
pub fn keep(settings: &config::Webhook) -> Duration {
    let Window { past, future } = settings.window;
    [future, settings.deadline, MARGIN].into_iter().fold(past, Duration::saturating_add)
}

/// Makes the checks of [`admit`] once more, for a request that was admitted and has waited since: a reload may have changed what
/// they go by. The time is judged as it was then.
///
/// # Errors
/// The first [`Refusal`], as of [`admit`]; [`Refusal::ProviderUnavailable`] where the request is about another device by now, or
/// proves it less or better, or where credentials were taken back: whoever asks again is judged by what there is now.
pub fn admit_again(snapshot: &Snapshot, admitted: &Admitted, request: &Request<'_>, peer: Option<&Peer>) -> Result<(), Refusal> {
    let webhook = snapshot.webhooks.get(request.webhook_id).ok_or(Refusal::WebhookUnknown)?;
    if Arc::ptr_eq(webhook, &admitted.webhook) {
        return Ok(());
    }
    let again = check(snapshot, request, || peer, admitted.at, &mut Seen::default())?;
    if again.caller != admitted.caller {
        return Err(Refusal::Caller);
    }
    if webhook.settings.kind != admitted.webhook.settings.kind {
        return Err(Refusal::KindMismatch);
    }
    // Which of the credentials came with the request is known to the filter alone.
    let (before, now) = (admitted.webhook.credentials.values(), webhook.credentials.values());
    let taken_back = before.iter().any(|value| !now.contains(value)) || before.is_empty() != now.is_empty();
    if again.identity == admitted.identity && !taken_back { Ok(()) } else { Err(Refusal::ProviderUnavailable) }
}

/// Steps 7 and 8 for a webhook that was admitted. `explain`: every check is kept, with what it read.
pub async fn decide(
    webhook: &Webhook,
    identity: Result<Identity, Denial>,
    caller: Option<&Caller>,
    mode: Option<Mode>,
    explain: bool,
    runtime: &Runtime,
) -> Decision {
    let denial = match (webhook.settings.kind, identity) {
        (Kind::ScepChallenge, _) => Denial::SCEP_CHALLENGE_UNSUPPORTED,
        (Kind::Notifying, _) => Denial::NOTIFICATION_RECORDED,
        (Kind::Enriching | Kind::Authorizing, Err(denial)) => denial,
        (kind @ (Kind::Enriching | Kind::Authorizing), Ok(identity)) => {
            let asker = Asker {
                identity,
                kind: RequestKind::Webhook(kind),
                webhook: Some(Arc::clone(&webhook.id)),
                caller: caller.map(|caller| caller.as_str().to_owned()),
                hint: mode.or(webhook.settings.mode).map(|mode| match mode {
                    Mode::MobileDevice => Form::MobileDevice,
                    Mode::Computer => Form::Computer,
                }),
                deadline: due(&webhook.settings, tokio::time::Instant::now()),
                explain,
            };
            let plan = || runtime.snapshot().webhooks.get(&webhook.id).map(|webhook| Arc::clone(&webhook.plan));
            return decide::decide(plan, &asker, &runtime.locks, &runtime.metrics).await;
        }
    };
    Decision::of(Outcome::Deny(denial))
}

/// When an answer to what was asked now has to be ready: it has to be on its way before the filter gives up.
fn due(settings: &config::Webhook, now: tokio::time::Instant) -> tokio::time::Instant {
    now + settings.deadline.saturating_sub(WAY)
}

/// An answer in one word, for metrics and people.
pub const fn word(answer: &Answer) -> &'static str {
    match answer {
        Answer::Found(_) => "found",
        Answer::NotFound => "not_found",
        Answer::Ambiguous => "ambiguous",
        Answer::Unavailable(_) => "unavailable",
        Answer::InvalidIdentifier => "invalid_identifier",
    }
}

/// Everything that is kept of one decision: one log event, one count and one row, all made by [`Record::write`].
#[derive(Debug)]
pub struct Record {
    /// When the question was read.
    pub received: Instant,
    /// As the question names it.
    pub webhook_id: String,
    /// The webhook, where it is configured.
    pub webhook: Option<Arc<Webhook>>,
    /// Who called, once admitted.
    pub caller: Option<Caller>,
    /// The device, once found out.
    pub identity: Option<Identity>,
    /// What the certificate is asked for, where it is one with a public key that can be read.
    pub key: Option<PublicKey>,
    /// What a notification tells.
    pub notification: Option<Notification>,
    /// How it was decided, where it was decided now.
    pub decision: Option<Decision>,
    /// Whether the outcome is that of equal bytes before.
    pub replayed: bool,
    /// Whether the signature was good. What is not proven is counted and sampled, and takes no place of what is.
    pub proven: bool,
    /// SHA-256 of the body, in hexadecimal.
    pub digest: String,
    /// Age of the timestamp in nanoseconds, once verified.
    pub age: Option<i64>,
    /// As Envoy writes it.
    pub peer_address: String,
    /// `X-Request-Id`.
    pub request_id: String,
    /// W3C.
    pub traceparent: String,
}

impl Record {
    /// Logs, counts and keeps the decision; what is not proven is counted, and logged as often as `samples` has room.
    pub fn write(&mut self, runtime: &Runtime, outcome: &Outcome, samples: &Samples) {
        if !self.proven {
            return self.sample(runtime, outcome, samples);
        }
        let metrics = &runtime.metrics;
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
            kind = webhook.map(|webhook| webhook.settings.kind.as_str()),
            decision,
            reason,
            device = self.identity.as_ref().map(|identity| identity.device.normal()),
            identifier = self.identity.as_ref().map(|identity| identity.device.kind().as_str()),
            trust = self.identity.as_ref().map(|identity| identity.trust.as_str()),
            code = if let Outcome::Deny(denial) = outcome { Some(&*denial.code) } else { None },
            policy = webhook.and_then(|webhook| webhook.plan.policy.as_deref()),
            // What the rules would have denied, where they are only observed or the device is exempt.
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
        if runtime.store.keeps_decisions() {
            runtime.store.record(self.kept(id, outcome, made.as_ref(), elapsed));
        }
        if let (Some(webhook), Some(age)) = (webhook, self.age) {
            tell_clock(webhook, age, metrics, self.received);
        }
    }
}

/// Shows by how much a caller's clock differs from ours, and warns where that is not ordinary. `age` is that of a signed
/// timestamp, in nanoseconds.
pub fn tell_clock(webhook: &Webhook, age: i64, metrics: &Metrics, now: Instant) {
    let label = WebhookLabel { webhook: Word(Arc::clone(&webhook.id)) };
    metrics.clock_skew.get_or_create(&label).set(-seconds(age));
    if !ORDINARY_AGE.contains(&age) && webhook.may_warn(now) {
        tracing::warn!(
            webhook = &*webhook.id,
            age_ms = age / 1_000_000,
            "the caller's clock and ours disagree, or its requests wait: at the end of the window all of them are refused"
        );
    }
}

impl Record {
    /// Counts what nobody has proven, and logs some of it.
    fn sample(&self, runtime: &Runtime, outcome: &Outcome, samples: &Samples) {
        let (decision, reason) = words(outcome);
        let label = self.webhook.as_ref().map_or_else(|| Word::from("unknown"), |webhook| Word(Arc::clone(&webhook.id)));
        runtime.metrics.decisions.get_or_create(&DecisionLabels { webhook: label, decision, reason, replayed: false }).inc();
        let Some(left_out) = samples.admits(self.received) else { return };
        if matches!(outcome, Outcome::Refuse(Refusal::ReplayedByAnother)) {
            return tracing::warn!(
                webhook = self.webhook_id,
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
            decision,
            reason,
            caller = self.caller.as_ref().map(Caller::as_str),
            peer_address = present(&self.peer_address),
            request_id = present(&self.request_id),
            left_out,
            "a question failed its proof, though the filter makes the same checks: another program uses filter.sock, or filter and sidecar have different keys for a moment"
        );
    }

    /// What is kept of the decision: nothing of a person.
    pub(crate) fn kept(&self, id: DecisionId, outcome: &Outcome, made: Option<&Decision>, elapsed: Duration) -> store::Decision {
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
            // What is allowed again is known by its key since the first time.
            key: match outcome {
                Outcome::Allow(_) if !self.replayed => self.key.zip(self.identity.clone()),
                _ => None,
            },
        }
    }
}

/// What a notification tells, in the form of a check.
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

/// SHA-256 in hexadecimal: by it whoever has a body finds the decision about it.
pub fn digest(body: &[u8]) -> String {
    hexadecimal(&Sha256::digest(body))
}

/// Bytes of a SHA-256 as people write them.
pub(crate) fn bytes_of(digest: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> = digest.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let bytes: Vec<u8> =
        digits?.chunks_exact(2).filter_map(|pair| if let [high, low] = pair { Some(high << 4 | low) } else { None }).collect();
    bytes.try_into().ok().filter(|_| digest.len() == 64)
}

/// Takes into the replay memory what the process before has decided, so that nobody else can send it again.
///
/// # Errors
/// [`store::StoreError`].
pub async fn recall(runtime: &Runtime) -> Result<(), store::StoreError> {
    if !runtime.store.keeps_decisions() {
        return Ok(());
    }
    let snapshot = runtime.snapshot().clone();
    let window = snapshot.webhooks.values().map(|webhook| keep(&webhook.settings)).max().unwrap_or_default();
    // What comes after the start needs room as well.
    let most = u32::try_from(snapshot.config.replay.max_entries / 2).unwrap_or(u32::MAX);
    let forgotten = remember(&runtime.memory, &runtime.store.sent(window, most).await?, window);
    if forgotten > 0 {
        tracing::warn!(forgotten, "the replay memory has no room for all that was decided before the start: raise [replay]");
    }
    Ok(())
}

/// Takes these into the replay memory; returns for how many there was no room.
fn remember(memory: &ReplayMemory, sent: &[store::Sent], window: Duration) -> usize {
    let kept = sent.iter().filter_map(|sent| Some((Key::of_digest(&sent.webhook, &bytes_of(&sent.inputs)?), sent.caller)));
    kept.map(|(key, caller)| memory.recall(key, caller, window)).filter(|recalled| !recalled).count()
}

/// Bytes as people write them.
pub fn hexadecimal(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

/// The code of a denial as a label: one of the operator's own would make that open.
pub const fn code(denial: &Denial) -> &'static str {
    match denial.code {
        Cow::Borrowed(code) => code,
        Cow::Owned(_) => "custom",
    }
}

fn present(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn seconds(nanos: i64) -> f64 {
    let duration = Duration::from_nanos(nanos.unsigned_abs()).as_secs_f64();
    if nanos < 0 { -duration } else { duration }
}

/// Bytes of the certificates that are remembered, all together.
const PEERS: u64 = 4 << 20;

/// Bytes that one of them takes besides its names.
const ENTRY: u32 = 256;

/// The memory outlives the window by this much, so that no rounding can let equal bytes in after it.
const MARGIN: Duration = Duration::from_secs(1);

/// Ages that nobody needs to hear of, in nanoseconds: 2 s ahead to 10 s old.
const ORDINARY_AGE: std::ops::RangeInclusive<i64> = -2_000_000_000..=10_000_000_000;

/// What an answer has to be ready ahead of its deadline, to be there in time.
const WAY: Duration = Duration::from_millis(150);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use posture::caller::Callers;
    use posture::identity::{DeviceId, IdentifierKind, Trust};
    use posture::outcome::Data;
    use posture::webhook::{Stamp as _, Stamped};
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::init;
    use crate::config::Environment;
    use crate::metrics::Metrics;
    use crate::replay::Begin;
    use crate::runtime::{Configured, Material};
    use crate::store::Store;

    fn record(notification: Option<Notification>) -> Record {
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

    fn certificate(names: usize, name: &str) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = (0..names).map(|at| rcgen::SanType::DnsName(format!("{at}{name}").try_into().unwrap())).collect();
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn f3_certificates_that_are_remembered_are_bounded_by_their_bytes() {
        let peers = Peers::default();
        let (small, large) = (certificate(1, ".example.org"), certificate(250, ".many.names.example.org"));
        assert!(large.len() < LARGEST_CERTIFICATE);
        for number in 0..1000_u32 {
            // Each is another certificate, though its signature is wrong: nothing here looks at that.
            let mut other = large.clone();
            let end = other.len();
            other[end - 4..].copy_from_slice(&number.to_be_bytes());
            assert!(peers.read(&other).is_some());
            peers.0.run_pending_tasks();
            assert!(peers.0.weighted_size() <= PEERS, "{}", peers.0.weighted_size());
        }
        assert!(peers.0.entry_count() < 300, "{}", peers.0.entry_count());
        assert!(peers.read(&small).is_some());
        for unread in [Vec::new(), vec![1; LARGEST_CERTIFICATE], vec![0x30; LARGEST_CERTIFICATE + 1], certificate(257, "")] {
            assert!(peers.read(&unread).is_none());
        }
        // One that is too large is not even remembered.
        peers.0.run_pending_tasks();
        let before = peers.0.entry_count();
        assert!(peers.read(&vec![0x30; 1 << 20]).is_none());
        peers.0.run_pending_tasks();
        assert_eq!(peers.0.entry_count(), before);
        let peers = Peers::default();
        for (length, remembered) in [(LARGEST_CERTIFICATE, 1), (LARGEST_CERTIFICATE + 1, 1), (0, 1)] {
            assert!(peers.read(&vec![1; length]).is_none());
            assert_eq!(peers.remembered(), remembered, "{length}");
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
    fn a_digest_reads_back_and_nothing_else_is_one() {
        let digest = digest(b"body");
        assert_eq!(digest, "230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5");
        assert_eq!(bytes_of(&digest), Some(Sha256::digest(b"body").into()));
        let [shorter, shortest] = [1, 2].map(|from| digest.get(from..).unwrap());
        for other in ["", shorter, shortest, &format!("{digest}0"), &digest.replace('2', "g")] {
            assert_eq!(bytes_of(other), None, "{other}");
        }
        assert_eq!(hexadecimal(&[0x00, 0x0f, 0xf0, 0xa5]), "000ff0a5");
    }

    /// A service with the demo's webhook, this line in its settings, and a replay memory with room for so many.
    fn service(folder: &Path, line: &str, max_entries: usize) -> Runtime {
        let demo = folder.join("demo");
        init::run(&init::InitArgs::new(demo.clone()), &Environment::new(folder), &mut Vec::new()).unwrap();
        let path = demo.join("stepward.toml");
        let text = std::fs::read_to_string(&path).unwrap().replace("\ncallers =", &format!("\n{line}\ncallers ="));
        std::fs::write(&path, text + &format!("\n[replay]\nmax_entries = {max_entries}\n")).unwrap();
        let source = Configured::new(Some("stepward.toml".into()), Environment::new(demo));
        Runtime::start(Box::new(source), Arc::new(Metrics::default())).unwrap()
    }

    /// A caller with a certificate of its own.
    fn caller(name: &str) -> Caller {
        caller_of(vec![name.to_owned()])
    }

    fn caller_of(names: Vec<String>) -> Caller {
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        Callers::AnyVerified.admit(Some(&Peer::from_der(certificate.der()).unwrap())).unwrap()
    }

    /// The demo's step-ca.
    fn step_ca() -> Peer {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://example.org/step-ca".try_into().unwrap())];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        Peer::from_der(params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der()).unwrap()
    }

    /// The demo's webhook.
    fn webhook(runtime: &Runtime) -> Arc<Webhook> {
        Arc::clone(runtime.snapshot().webhooks.values().next().unwrap())
    }

    /// What came of a request at the time that its body states.
    fn admitted(runtime: &Runtime, body: &[u8], record: &mut Record) -> Admitted {
        let (webhook, peer) = (webhook(runtime), step_ca());
        let signature = webhook.keys.sign(body).unwrap();
        let request = Request { webhook_id: &webhook.id, signature: signature.as_bytes(), body };
        let now = serde_json::from_slice::<Stamped<'_>>(body).unwrap().timestamp().unwrap();
        admit(&runtime.snapshot(), &request, || Some(&peer), now, record).unwrap()
    }

    const ENRICHING: &[u8] =
        br#"{"timestamp":"2027-01-15T08:00:00Z","x509CertificateRequest":{},"attestationData":{"permanentIdentifier":"C02"}}"#;

    #[test]
    fn d10_what_a_notification_tells_is_known_of_notifications_alone() {
        for (line, body, told) in [
            ("kind = \"enriching\"", ENRICHING, false),
            ("kind = \"notifying\"", include_bytes!("../../posture/testdata/step-ca/notifying.success.json"), true),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut record = record(None);
            admitted(&service(folder.path(), line, 10), body, &mut record);
            assert_eq!(record.notification.is_some(), told, "{line}");
        }
    }

    #[test]
    fn a16_what_waits_is_judged_by_the_credentials_that_it_came_with_while_none_of_them_was_taken_back() {
        let wants = |tokens: &[&str]| {
            let files: Vec<_> = tokens.iter().map(|token| format!("{{ file = \"../{token}\" }}")).collect();
            if files.is_empty() { "# none".to_owned() } else { format!("bearer = [{}]", files.join(", ")) }
        };
        let refused = Err(Refusal::ProviderUnavailable);
        for (before, after, expected) in [
            (&["one"][..], &["one"][..], Ok(())),
            (&["one"], &["one", "two"], Ok(())),
            (&["one", "two"], &["two"], refused),
            (&["one"], &["two"], refused),
            (&["one"], &[], refused),
            (&[], &["one"], refused),
            (&[], &[], Ok(())),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let line = wants(before);
            for token in ["one", "two"] {
                std::fs::write(folder.path().join(token), format!("a token of its own, number {token}")).unwrap();
            }
            let runtime = service(folder.path(), &line, 10);
            let admitted = admitted(&runtime, ENRICHING, &mut record(None));
            let path = folder.path().join("demo/stepward.toml");
            // Another deadline, so that it is another webhook whatever its credentials are.
            let text = std::fs::read_to_string(&path).unwrap().replace(&line, &format!("{}\ndeadline = \"3s\"", wants(after)));
            std::fs::write(&path, text).unwrap();
            assert!(runtime.reload(&[]).iter().all(|reload| reload.outcome.is_ok()));
            let (webhook, peer) = (webhook(&runtime), step_ca());
            assert!(!Arc::ptr_eq(&webhook, &admitted.webhook));
            let signature = webhook.keys.sign(ENRICHING).unwrap();
            let request = Request { webhook_id: &webhook.id, signature: signature.as_bytes(), body: ENRICHING };
            assert_eq!(admit_again(&runtime.snapshot(), &admitted, &request, Some(&peer)), expected, "{before:?} {after:?}");
        }
    }

    #[test]
    fn g8_a_webhook_that_a_reload_renames_takes_nothing_that_came_under_its_id_before() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = service(folder.path(), "window = { past = \"30s\" }", 10);
        let before = admitted(&runtime, ENRICHING, &mut record(None));
        let begin = |id: &str, caller: &Caller| {
            let key = Key::new(id, ENRICHING);
            runtime.memory.begin(key, caller, None, before.keep)
        };
        let Begin::First(ticket) = begin(&before.webhook.id, &before.caller) else { panic!("not the first") };
        ticket.finish(Outcome::Deny(Denial::DEVICE_LOCKED));
        let path = folder.path().join("demo/stepward.toml");
        let id = format!("id = \"{}\"", before.webhook.id);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches(&id).count(), 1);
        std::fs::write(&path, text.replace(&id, "id = \"renamed\"").replace("past = \"30s\"", "past = \"5m\"")).unwrap();
        assert!(runtime.reload(&[]).iter().all(|reload| reload.outcome.is_ok()));
        let after = admitted(&runtime, ENRICHING, &mut record(None));
        assert_eq!((&*after.webhook.id, after.webhook.settings.window.past), ("renamed", Duration::from_secs(300)));
        for caller in [&before.caller, &caller("other.example.org")] {
            assert!(matches!(begin("renamed", caller), Begin::Refused(Refusal::ReplayedByAnother)));
        }
        // What the memory forgets soon is not taken for longer, though the window is wider by now.
        let (webhook, peer) = (webhook(&runtime), step_ca());
        let signature = webhook.keys.sign(ENRICHING).unwrap();
        let request = Request { webhook_id: "renamed", signature: signature.as_bytes(), body: ENRICHING };
        let at = |seconds| before.at.saturating_add(Duration::from_secs(seconds));
        let judge = |seconds| admit(&runtime.snapshot(), &request, || Some(&peer), at(seconds), &mut record(None)).map(drop);
        assert_eq!((judge(33), judge(60)), (Ok(()), Err(Refusal::TimestampPast)));
    }

    #[test]
    fn an_answer_is_due_before_the_filter_gives_up() {
        let folder = tempfile::tempdir().unwrap();
        let (webhook, now) = (webhook(&service(folder.path(), "deadline = \"3s\"", 10)), tokio::time::Instant::now());
        assert_eq!(due(&webhook.settings, now) - now, Duration::from_millis(2850));
    }

    #[test]
    fn g_the_skew_of_a_callers_clock_is_measured_and_warned_of_beyond_what_is_ordinary() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = service(folder.path(), "", 10);
        let known = webhook(&runtime);
        for (age, warns) in [(-2_000_000_001, true), (-2_000_000_000, false), (0, false), (10_000_000_000, false), (10_000_000_001, true)] {
            let webhook = Arc::new(Webhook::new(known.settings.clone(), Material::default(), Arc::clone(&known.plan)));
            let mut record = Record { webhook: Some(Arc::clone(&webhook)), age: Some(age), ..record(None) };
            record.write(&runtime, &Outcome::Deny(Denial::DEVICE_LOCKED), &Samples::default());
            let skew = runtime.metrics.clock_skew.get_or_create(&WebhookLabel { webhook: Word(Arc::clone(&webhook.id)) }).get();
            assert_eq!(skew, -seconds(age), "{age}");
            assert_eq!(!webhook.may_warn(Instant::now()), warns, "{age}");
        }
    }

    #[tokio::test]
    async fn g8_a_start_takes_who_sent_what_within_the_window_into_half_of_the_memory() {
        let store = tempfile::tempdir().unwrap();
        let settings = store::Settings { path: Some(store.path().join("stepward.db")), ..store::Settings::none() };
        let store = Store::open(&settings, Arc::default()).await.unwrap();
        let (own, other) = (caller("ca.example.org"), caller("other.example.org"));
        // A window of 30 s, 5 s ahead, a deadline of 3.5 s, and a second.
        let window = Duration::from_millis(39_500);
        let sent = [("older", -39_500_000_001), ("oldest", -39_500_000_000), ("a", -2_000_000), ("b", -1_000_000), ("last", 0)];
        for (body, at) in sent {
            let id = DecisionId::new(UnixTime::from_nanos(1_800_000_000_000_000_000 + at));
            let record = Record { caller: Some(own.clone()), digest: digest(body.as_bytes()), ..record(None) };
            store.record(record.kept(id, &Outcome::Deny(Denial::DEVICE_LOCKED), None, Duration::ZERO));
        }
        store.flush().await;
        for (most, taken) in [(6, &["a", "b", "last"][..]), (100, &["oldest", "a", "b", "last"])] {
            let folder = tempfile::tempdir().unwrap();
            let mut runtime = service(folder.path(), "", most);
            assert_eq!(runtime.snapshot().webhooks.values().map(|webhook| keep(&webhook.settings)).collect::<Vec<_>>(), [window]);
            recall(&runtime).await.unwrap();
            assert_eq!(runtime.memory.usage().entries, 0, "where nothing is kept there is nothing to take");
            runtime.store = store.clone();
            recall(&runtime).await.unwrap();
            assert_eq!(runtime.memory.usage().entries, taken.len());
            for body in taken {
                let begin = |caller| runtime.memory.begin(Key::new("one", body.as_bytes()), caller, None, window);
                assert!(matches!(begin(&other), Begin::Refused(Refusal::ReplayedByAnother)), "{body}");
                assert!(matches!(begin(&own), Begin::First(_)), "{body}");
            }
        }
    }

    #[tokio::test]
    async fn g8_after_a_start_callers_with_many_names_are_told_apart_by_the_last_of_them() {
        let store = tempfile::tempdir().unwrap();
        let settings = store::Settings { path: Some(store.path().join("stepward.db")), ..store::Settings::none() };
        let store = Store::open(&settings, Arc::default()).await.unwrap();
        let named = |last: &str| {
            let names = (0..21).map(|number| format!("a-name-that-takes-its-room-{number}.example.org")).chain([last.to_owned()]);
            caller_of(names.collect())
        };
        let (own, other) = (named("z-one.example.org"), named("z-two.example.org"));
        assert!(own.as_str().get(..512) == other.as_str().get(..512) && own != other);
        let window = Duration::from_millis(39_500);
        let sent = Record { caller: Some(own.clone()), digest: digest(b"body"), ..record(None) };
        let id = DecisionId::new(UnixTime::from_nanos(1_800_000_000_000_000_000));
        store.record(sent.kept(id, &Outcome::Deny(Denial::DEVICE_LOCKED), None, Duration::ZERO));
        store.flush().await;
        let folder = tempfile::tempdir().unwrap();
        let mut runtime = service(folder.path(), "", 100);
        runtime.store = store;
        recall(&runtime).await.unwrap();
        let begin = |caller| runtime.memory.begin(Key::new("one", b"body"), caller, None, window);
        assert!(matches!(begin(&other), Begin::Refused(Refusal::ReplayedByAnother)));
        assert!(matches!(begin(&own), Begin::First(_)));
    }

    #[test]
    fn g8_what_a_start_has_no_room_for_is_counted_and_what_has_no_digest_is_passed_over() {
        let memory = ReplayMemory::new(config::Replay { max_entries: 1, max_bytes: 1 << 20 });
        let sent = |inputs: String| store::Sent { webhook: "one".to_owned(), inputs, caller: store::Sender::of("anonymous") };
        let [first, second] = ["first", "second"].map(|body| sent(digest(body.as_bytes())));
        let window = Duration::from_secs(40);
        assert_eq!(remember(&memory, &[sent(String::new()), first.clone(), first.clone()], window), 0);
        assert_eq!(remember(&memory, &[first, second.clone(), second], window), 2);
        assert_eq!(memory.usage().entries, 1);
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
