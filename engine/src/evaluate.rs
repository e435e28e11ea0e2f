//! Steps 2 to 9 of a webhook: caller, signature, time, kind, identity, facts, and the record of the outcome.
//!
//! The filter has made the first of these checks; they are repeated here with the sidecar's own keys and clock, so that neither
//! side stands alone.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use posture::caller::{Caller, Peer};
use posture::identity::{Identity, PublicKey};
use posture::notification::Notification;
use posture::outcome::{Denial, Refusal};
use posture::policy::RequestKind;
use posture::record::Form;
use posture::shape::Mode;
use posture::time::{UnixTime, Window};
use posture::verify::Signature;
use posture::webhook::Kind;

use crate::checks::{Check, Judge};
use crate::decide::{self, Asker, Decision};
use crate::engine::Engine;
use crate::gate::Outcome;
use crate::record::Record;
use crate::snapshot::Snapshot;
use crate::webhooks::{Settings, Webhook};

/// A request that came over the stream.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// Id of the webhook that the request names.
    pub webhook_id: &'r str,
    /// The HMAC that the request claims.
    pub signature: &'r [u8],
    /// The bytes that were signed.
    pub body: &'r [u8],
}

/// A request that passed every check but the facts.
#[derive(Debug)]
pub struct Admitted {
    /// The webhook.
    pub webhook: Arc<Webhook>,
    /// The caller.
    pub caller: Caller,
    /// The device, or why there is none to ask for.
    pub identity: Result<Identity, Denial>,
    /// The time by which the request was judged.
    pub at: UnixTime,
    /// How long the replay memory has to keep the request: after this, no equal bytes are inside the window.
    pub keep: Duration,
}

/// Makes every check that needs no facts, and writes the results into `record`. `peer` reads the caller's certificate, which
/// takes long where it has many names, and is called only once the signature is good.
///
/// # Errors
/// The first [`Refusal`]: that no webhook has the id, then those of [`Check::of_a_question`], in its order.
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

/// What the checks found out about a request, whatever the outcome.
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
    // The filter judged the time exactly. Since then the question may have waited for as long as the deadline.
    let past = snapshot.reaches.of(&webhook.signers);
    let window = Window { past, future: settings.window.future };
    let (keys, credentials, signed) = (&webhook.keys, &webhook.credentials, (request.body, signature));
    let mut judge = Judge::new(settings, keys, credentials, &snapshot.placeholders, window, now, signed, None);
    let mut peer = Some(peer);
    let judged = Check::of_a_question().try_for_each(|check| judge.make(check, || peer.take().and_then(|read| read())));
    seen.caller.clone_from(&judge.caller);
    // The caller is checked behind the signature: once there is one, both are good, whatever else is wrong.
    seen.proven = judge.caller.is_some();
    seen.age = judge.age().filter(|_| seen.proven);
    judged?;
    (seen.key, seen.notification) = (judge.key(), judge.notification());
    let (Some(caller), Some(identity)) = (judge.caller, judge.identity) else { return Err(Refusal::Internal) };
    Ok(Admitted { webhook: Arc::clone(webhook), caller, identity, at: now, keep: settings.keep() })
}

/// Repeats the checks of [`admit`] for an admitted request that has waited: a reload may have changed the settings. The time is
/// judged as of the first check.
///
/// # Errors
/// The first [`Refusal`], as of [`admit`]; [`Refusal::Caller`] or [`Refusal::KindMismatch`] where the caller or the kind is
/// another by now; [`Refusal::ProviderUnavailable`] where the device or its proof is another, or credentials were taken back: a
/// new attempt is judged by the new settings.
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
    // The filter alone knows which of the credentials came with the request.
    let (before, now) = (admitted.webhook.credentials.values(), webhook.credentials.values());
    let taken_back = before.iter().any(|value| !now.contains(value)) || before.is_empty() != now.is_empty();
    if again.identity == admitted.identity && !taken_back { Ok(()) } else { Err(Refusal::ProviderUnavailable) }
}

/// Decides about the device of an admitted webhook, whose question came at `came`: steps 7 and 8. `explain`: every check is kept,
/// with what it read.
pub async fn decide(
    webhook: &Webhook,
    identity: Result<Identity, Denial>,
    caller: Option<&Caller>,
    mode: Option<Mode>,
    explain: bool,
    came: tokio::time::Instant,
    engine: &Engine,
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
                deadline: due(&webhook.settings, came),
                explain,
            };
            let plan = || engine.snapshot().webhooks.get(&webhook.id).map(|webhook| Arc::clone(&webhook.plan));
            return decide::decide(plan, &asker, &engine.locks, &engine.metrics).await;
        }
    };
    Decision::of(Outcome::Deny(denial))
}

/// Time by which the answer to a question of now has to be ready, to be on its way before the filter gives up.
fn due(settings: &Settings, now: tokio::time::Instant) -> tokio::time::Instant {
    now + settings.deadline.saturating_sub(WAY)
}

/// How much earlier than its deadline an answer has to be ready, to arrive in time.
const WAY: Duration = Duration::from_millis(150);

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::OnceLock;
    use std::time::Instant;

    use posture::caller::Callers;
    use posture::credential::Credentials;
    use posture::secret::Secret;
    use posture::verify::SigningKeys;
    use posture::webhook::{Stamp as _, Stamped};
    use store::{DecisionId, Store};

    use super::*;
    use crate::captured::{self, Against, Captured};
    use crate::digest::digest;
    use crate::metrics::{Metrics, WebhookLabel, Word};
    use crate::record::tests::record;
    use crate::record::{ORDINARY_AGE, seconds};
    use crate::replay::{Begin, Key, Reaches, Replay};
    use crate::samples::Samples;
    use crate::webhooks::{Material, fixture};
    use inventory::Placeholders;

    /// An engine with this webhook, and a replay memory with room for `max_entries`.
    fn engine(settings: &Settings, max_entries: usize) -> Engine {
        let bounds = Replay { max_entries, max_bytes: 128 << 20, shared: false };
        let ids = [vec![&*settings.id]];
        Engine::new(snapshot(settings.clone(), material()), Arc::default(), bounds, &ids, Arc::new(Metrics::default()))
    }

    /// Replaces the snapshot by one of this webhook, as a reload does.
    fn reloaded(engine: &Engine, settings: Settings, material: Material) {
        let mut next = snapshot(settings, material);
        next.reaches = engine.snapshot().reaches.reloaded(next.judged());
        engine.replace(next);
    }

    fn material() -> Material {
        Material { secrets: vec![Secret::new(b"one".to_vec())], ..Material::default() }
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

    fn webhook(engine: &Engine) -> Arc<Webhook> {
        Arc::clone(engine.snapshot().webhooks.values().next().unwrap())
    }

    /// Admits a request at the time that its body states.
    fn admitted(engine: &Engine, body: &[u8], record: &mut Record) -> Admitted {
        let (webhook, peer) = (webhook(engine), peer("ca.example.org"));
        let signature = webhook.keys.sign(body).unwrap();
        let request = Request { webhook_id: &webhook.id, signature: signature.as_bytes(), body };
        let now = serde_json::from_slice::<Stamped<'_>>(body).unwrap().timestamp().unwrap();
        admit(&engine.snapshot(), &request, || Some(&peer), now, record).unwrap()
    }

    const ENRICHING: &[u8] =
        br#"{"timestamp":"2027-01-15T08:00:00Z","x509CertificateRequest":{},"attestationData":{"permanentIdentifier":"C02"}}"#;

    #[test]
    fn d10_what_a_notification_tells_is_known_of_notifications_alone() {
        for (kind, body, told) in [
            (Kind::Enriching, ENRICHING, false),
            (Kind::Notifying, include_bytes!("../../posture/testdata/step-ca/notifying.success.json"), true),
        ] {
            let mut record = record(None);
            admitted(&engine(&Settings { kind, ..fixture::settings("one") }, 10), body, &mut record);
            assert_eq!(record.notification.is_some(), told, "{kind:?}");
        }
    }

    #[test]
    fn a16_what_waits_is_judged_by_the_credentials_that_it_came_with_while_none_of_them_was_taken_back() {
        let wants = |tokens: &[&str]| {
            let bearer = |token: &&str| Credentials::bearer(&Secret::new(format!("a token of its own, number {token}").into_bytes()));
            Material { credentials: Credentials::new(tokens.iter().map(bearer).collect()), ..material() }
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
            let engine = engine(&fixture::settings("one"), 10);
            reloaded(&engine, fixture::settings("one"), wants(before));
            let admitted = admitted(&engine, ENRICHING, &mut record(None));
            reloaded(&engine, fixture::settings("one"), wants(after));
            let (webhook, peer) = (webhook(&engine), peer("ca.example.org"));
            assert!(!Arc::ptr_eq(&webhook, &admitted.webhook));
            let signature = webhook.keys.sign(ENRICHING).unwrap();
            let request = Request { webhook_id: &webhook.id, signature: signature.as_bytes(), body: ENRICHING };
            assert_eq!(admit_again(&engine.snapshot(), &admitted, &request, Some(&peer)), expected, "{before:?} {after:?}");
        }
    }

    #[test]
    fn g8_a_webhook_that_a_reload_renames_takes_nothing_that_came_under_its_id_before() {
        let narrow = Window::default();
        let wide = Window { past: narrow.past * 10, ..narrow };
        let engine = engine(&Settings { window: narrow, ..fixture::settings("one") }, 10);
        let before = admitted(&engine, ENRICHING, &mut record(None));
        let begin = |id: &str, caller: &Caller| {
            let key = Key::new(id, ENRICHING);
            engine.memory.begin(key, caller, None, before.keep)
        };
        let Begin::First(ticket) = begin(&before.webhook.id, &before.caller) else { panic!("not the first") };
        ticket.finish(Outcome::Deny(Denial::DEVICE_LOCKED));
        reloaded(&engine, Settings { window: wide, ..fixture::settings("renamed") }, material());
        let after = admitted(&engine, ENRICHING, &mut record(None));
        assert_eq!((&*after.webhook.id, after.webhook.settings.window.past), ("renamed", wide.past));
        for caller in [&before.caller, &caller("other.example.org")] {
            assert!(matches!(begin("renamed", caller), Begin::Refused(Refusal::ReplayedByAnother)));
        }
        // Bytes that the memory forgets soon are not taken for longer, though the window is wider by now.
        let (webhook, peer) = (webhook(&engine), peer("ca.example.org"));
        let signature = webhook.keys.sign(ENRICHING).unwrap();
        let request = Request { webhook_id: "renamed", signature: signature.as_bytes(), body: ENRICHING };
        let judge =
            |after| admit(&engine.snapshot(), &request, || Some(&peer), before.at.saturating_add(after), &mut record(None)).map(drop);
        let waited = narrow.past + before.webhook.settings.deadline;
        assert_eq!((judge(waited), judge(narrow.past * 2)), (Ok(()), Err(Refusal::TimestampPast)));
    }

    #[test]
    fn an_answer_is_due_before_the_filter_gives_up() {
        let (settings, now) = (fixture::settings("one"), tokio::time::Instant::now());
        let settings = Settings { deadline: Duration::from_secs(3), ..settings };
        assert_eq!(due(&settings, now) - now, Duration::from_millis(2850));
    }

    #[test]
    fn what_warns_of_a_clock_is_inside_the_default_window() {
        let Window { past, future } = Window::default();
        let [oldest, furthest] = [*ORDINARY_AGE.end(), -ORDINARY_AGE.start()].map(|age| Duration::from_nanos(age.unsigned_abs()));
        assert!(oldest < past && furthest < future, "ORDINARY_AGE in engine/src/record.rs: {ORDINARY_AGE:?}");
        let skew = "stepward_caller_clock_skew_seconds";
        let alert = format!("expr: {skew} > {} or {skew} < -{}\n", furthest.as_secs(), oldest.as_secs());
        assert!(include_str!("../../deploy/prometheus/stepward.rules.yaml").contains(&alert), "StepwardClockSkew: {alert}");
    }

    #[test]
    fn g_the_skew_of_a_callers_clock_is_measured_and_warned_of_beyond_what_is_ordinary() {
        let engine = engine(&fixture::settings("one"), 10);
        let known = webhook(&engine);
        for (age, warns) in [(-2_000_000_001, true), (-2_000_000_000, false), (0, false), (10_000_000_000, false), (10_000_000_001, true)] {
            let webhook = Arc::new(Webhook::new(known.settings.clone(), Material::default(), Arc::clone(&known.plan)));
            let mut record = Record { webhook: Some(Arc::clone(&webhook)), age: Some(age), ..record(None) };
            record.write(&engine, &Outcome::Deny(Denial::DEVICE_LOCKED), &Samples::default());
            let skew = engine.metrics.clock_skew.get_or_create(&WebhookLabel { webhook: Word(Arc::clone(&webhook.id)) }).get();
            assert_eq!(skew, -seconds(age), "{age}");
            assert_eq!(!webhook.may_warn(Instant::now()), warns, "{age}");
        }
    }

    #[tokio::test]
    async fn g8_a_start_takes_who_sent_what_within_the_window_into_half_of_the_memory() {
        let store = tempfile::tempdir().unwrap();
        let settings = store::Settings { path: Some(store.path().join("stepward.db")), ..store::Settings::none() };
        let store = Store::open(&settings, Arc::<Metrics>::default()).await.unwrap();
        let (own, other) = (caller("ca.example.org"), caller("other.example.org"));
        let (Window { past, future }, deadline) = (Window::default(), fixture::settings("one").deadline);
        let window = past + future + deadline + Duration::from_secs(1);
        let oldest = -i64::try_from(window.as_nanos()).unwrap();
        let sent = [("older", oldest - 1), ("oldest", oldest), ("a", -2_000_000), ("b", -1_000_000), ("last", 0)];
        for (body, at) in sent {
            let id = DecisionId::new(UnixTime::from_nanos(1_800_000_000_000_000_000 + at));
            let record = Record { caller: Some(own.clone()), digest: digest(body.as_bytes()), ..record(None) };
            store.record(record.kept(id, &Outcome::Deny(Denial::DEVICE_LOCKED), None, Duration::ZERO));
        }
        store.flush().await;
        for (most, taken) in [(6, &["a", "b", "last"][..]), (100, &["oldest", "a", "b", "last"])] {
            let mut engine = engine(&fixture::settings("one"), most);
            assert_eq!(engine.snapshot().webhooks.values().map(|webhook| webhook.settings.keep()).collect::<Vec<_>>(), [window]);
            engine.recall().await.unwrap();
            assert_eq!(engine.memory.usage().entries, 0, "where nothing is kept there is nothing to take");
            engine.store = store.clone();
            engine.recall().await.unwrap();
            assert_eq!(engine.memory.usage().entries, taken.len());
            for body in taken {
                let begin = |caller| engine.memory.begin(Key::new("one", body.as_bytes()), caller, None, window);
                assert!(matches!(begin(&other), Begin::Refused(Refusal::ReplayedByAnother)), "{body}");
                assert!(matches!(begin(&own), Begin::First(_)), "{body}");
            }
        }
    }

    #[tokio::test]
    async fn g8_after_a_start_callers_with_many_names_are_told_apart_by_the_last_of_them() {
        let store = tempfile::tempdir().unwrap();
        let settings = store::Settings { path: Some(store.path().join("stepward.db")), ..store::Settings::none() };
        let store = Store::open(&settings, Arc::<Metrics>::default()).await.unwrap();
        let named = |last: &str| {
            let names = (0..21).map(|number| format!("a-name-that-takes-its-room-{number}.example.org")).chain([last.to_owned()]);
            caller_of(names.collect())
        };
        let (own, other) = (named("z-one.example.org"), named("z-two.example.org"));
        assert!(own.as_str().get(..512) == other.as_str().get(..512) && own != other);
        let window = fixture::settings("one").keep();
        let sent = Record { caller: Some(own.clone()), digest: digest(b"body"), ..record(None) };
        let id = DecisionId::new(UnixTime::from_nanos(1_800_000_000_000_000_000));
        store.record(sent.kept(id, &Outcome::Deny(Denial::DEVICE_LOCKED), None, Duration::ZERO));
        store.flush().await;
        let mut engine = engine(&fixture::settings("one"), 100);
        engine.store = store;
        engine.recall().await.unwrap();
        let begin = |caller| engine.memory.begin(Key::new("one", b"body"), caller, None, window);
        assert!(matches!(begin(&other), Begin::Refused(Refusal::ReplayedByAnother)));
        assert!(matches!(begin(&own), Begin::First(_)));
    }

    /// A certificate for clients.
    fn peer(name: &str) -> Peer {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        Peer::from_der(params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der()).unwrap()
    }

    /// A snapshot of one webhook.
    fn snapshot(settings: Settings, material: Material) -> Snapshot {
        let webhook = Webhook::new(settings, material, crate::gate::fixture::plan());
        Snapshot {
            revision: 1,
            told: OnceLock::new(),
            placeholders: Placeholders::new(["NONE"]),
            reaches: Reaches::new([webhook.judged()]),
            webhooks: BTreeMap::from([(Arc::clone(&webhook.id), Arc::new(webhook))]),
            plans: BTreeMap::new(),
            providers: BTreeMap::new(),
            wanted: BTreeMap::new(),
        }
    }

    #[test]
    fn what_comes_over_the_stream_and_what_was_captured_get_one_verdict() {
        let body = |serial: &str| {
            let body =
                r#"{"timestamp":"2027-01-15T08:00:00Z","x509CertificateRequest":{},"attestationData":{"permanentIdentifier":"SERIAL"}}"#;
            body.replace("SERIAL", serial).into_bytes()
        };
        let [good, nobody, empty] = ["C02", "NONE", ""].map(body);
        let bodies: &[(&[u8], Option<Refusal>)] = &[
            (&good, None),
            (&nobody, None),
            (&empty, None),
            (b"", Some(Refusal::Malformed)),
            (b"no JSON", Some(Refusal::Malformed)),
            (b"{}", Some(Refusal::Malformed)),
            (b"{\"timestamp\":\"2027-01-15T08:00:00Z\",\"x\":\"\xff\"}", Some(Refusal::Malformed)),
            (b"{\"timestamp\":\"yesterday\"}", Some(Refusal::Malformed)),
            (b"{\"timestamp\":\"2027-01-15T08:00:00Z\",\"sshCertificateRequest\":{}}", None),
            (include_bytes!("../../posture/testdata/step-ca/notifying.success.json"), Some(Refusal::KindMismatch)),
        ];
        let (own, stranger) = (peer("ca.example.org"), peer("other.example.org"));
        let [secret, other] = [b"one", b"two"].map(|secret| vec![Secret::new(secret.to_vec())]);
        let mut seen = BTreeSet::new();
        for kind in [Kind::Enriching, Kind::Authorizing, Kind::Notifying] {
            let snapshot = snapshot(Settings { kind, ..fixture::settings("one") }, material());
            let webhook = &snapshot.webhooks["one"];
            for &(body, refusal) in bodies {
                let stated = serde_json::from_slice::<Stamped<'_>>(body).ok().and_then(|body| body.timestamp());
                let stated = stated.unwrap_or(UnixTime::from_nanos(1_800_000_000_000_000_000));
                for (named, keys, peer, seconds) in [
                    ("one", &secret, &own, 0),
                    ("one", &secret, &own, 3600),
                    ("one", &secret, &own, -3600),
                    ("one", &secret, &stranger, 0),
                    ("one", &secret, &stranger, 3600),
                    ("one", &other, &own, 0),
                    ("one", &other, &own, 3600),
                    ("two", &secret, &own, 0),
                ] {
                    let now = UnixTime::from_nanos(stated.as_nanos() + seconds * 1_000_000_000);
                    let signature = SigningKeys::new(keys).sign(body).unwrap();
                    let request = Request { webhook_id: named, signature: signature.as_bytes(), body };
                    let live = admit(&snapshot, &request, || Some(peer), now, &mut record(None));
                    let headers = [("x-smallstep-webhook-id", named.to_owned()), ("x-smallstep-signature", signature.to_hex())];
                    let headers = headers.map(|(name, value)| (name.to_owned(), value));
                    let captured = Captured { path: "/webhook/one", headers: &headers, body, peer: Some(peer) };
                    let find = |id: &str| {
                        let webhook = snapshot.webhooks.get(id)?;
                        let (settings, credentials, placeholders) = (&webhook.settings, &webhook.credentials, &snapshot.placeholders);
                        Some(Against { settings, keys: webhook.keys.clone(), credentials, placeholders })
                    };
                    let checked = captured::check(&captured, find, now);
                    let shown = format!("{kind:?} {named} {seconds} {}: {:?}", String::from_utf8_lossy(body), checked.results);
                    assert_eq!(live.as_ref().err().copied(), checked.refusal, "{shown}");
                    if let Ok(live) = live {
                        let admitted = checked.admitted.unwrap();
                        assert_eq!((Some(&live.caller), &live.identity), (admitted.caller.as_ref(), &admitted.identity), "{shown}");
                        assert_eq!(webhook.settings.kind == Kind::Notifying, admitted.notification.is_some());
                    } else if kind == Kind::Enriching && (named, seconds) == ("one", 0) && std::ptr::eq(peer, &own) && keys == &secret {
                        assert_eq!(checked.refusal, refusal, "{shown}");
                    }
                    let failed = checked.results.iter().find(|(_, result)| result.starts_with("FAILED")).map(|(check, _)| *check);
                    seen.extend(checked.refusal.map(|refusal| (failed, refusal)));
                }
            }
        }
        let of = |check: Check| check.refusals().iter().map(move |refusal| (Some(check.as_str()), *refusal));
        let expected = Check::of_a_question().flat_map(of).chain([(Some("webhook"), Refusal::WebhookUnknown)]).collect();
        assert_eq!(seen, expected, "`bodies` has one for each refusal of each check, and no check gives another");
    }
}
