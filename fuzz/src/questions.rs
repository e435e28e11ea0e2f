//! The filter's messages as they come to the sidecar, and the sidecar's judgement of a question, up to the facts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use engine::evaluate::{Request, admit};
use engine::metrics::Metrics;
use engine::plan::{Combine, Enforcement, OnNotFound, OnUnavailable, Plan};
use engine::record::Record;
use engine::replay::Reaches;
use engine::snapshot::Snapshot;
use engine::webhooks::{Material, Webhook};
use posture::caller::{Name, Peer};
use posture::secret::Secret;
use posture::time::UnixTime;
use posture::verify::SigningKeys;
use prost::Message as _;
use proto::v1::{FilterMessage, Report, filter_message};
use settings::Environment;
use sidecar::config::Config;

const NOW: UnixTime = UnixTime::from_nanos(1_000_000_000_000);
const SECRET: &[u8] = b"secret";

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let config = Config::parse(include_str!("questions.toml"), Path::new("stepward.toml"), &Environment::new("/")).unwrap().config;
    let webhooks = config.webhooks.iter().map(|settings| {
        let material = Material { secrets: vec![Secret::new(SECRET.to_vec())], ..Material::default() };
        let webhook = Webhook::new(settings.clone(), material, Arc::new(nobody()));
        (Arc::clone(&webhook.id), Arc::new(webhook))
    });
    let webhooks: BTreeMap<_, _> = webhooks.collect();
    Snapshot {
        revision: 1,
        told: std::sync::OnceLock::new(),
        reaches: Reaches::new(webhooks.values().map(|webhook| webhook.judged())),
        webhooks,
        placeholders: config.placeholders,
        plans: BTreeMap::new(),
        providers: BTreeMap::new(),
        wanted: BTreeMap::new(),
    }
});

/// Asserts that a question is admitted only if it is signed, comes from an allowed caller, and names a webhook that exists.
///
/// A question without a signature is given the right one, so that the code behind the signature is reached.
pub fn body(data: &[u8]) {
    let Ok(message) = FilterMessage::decode(data) else { return };
    assert_eq!(FilterMessage::decode(message.encode_to_vec().as_slice()).as_ref(), Ok(&message));
    let mut question = match message.message {
        Some(filter_message::Message::Question(question)) => question,
        Some(filter_message::Message::Report(report)) => return reported(&report),
        Some(filter_message::Message::Hello(_)) | None => return,
    };
    let right = SigningKeys::new(&[Secret::new(SECRET.to_vec())]).sign(&question.body).unwrap();
    if question.signature.is_empty() {
        question.signature = right.as_bytes().to_vec();
    }
    let peer = Peer::from_der(&question.peer_certificate).ok();
    let request = Request { webhook_id: &question.webhook_id, signature: &question.signature, body: &question.body };
    let mut record = record();
    let Ok(admitted) = admit(&SNAPSHOT, &request, || peer.as_ref(), NOW, &mut record) else { return };
    assert_eq!(question.signature, right.as_bytes(), "admitted with a wrong signature");
    assert_eq!(*admitted.webhook.id, *question.webhook_id);
    let peer = peer.expect("admitted without a certificate");
    assert!(peer.names().contains(&Name::Dns("ca.example.org".to_owned())));
    assert_eq!(admitted.caller.as_str(), "dns:ca.example.org");
    assert!(admitted.keep > std::time::Duration::from_secs(30));
    assert_eq!(record.identity.is_some(), admitted.identity.is_ok());
}

/// Asserts that reports, however many, add no label of their own to the metrics.
fn reported(report: &Report) {
    let metrics = Metrics::default();
    let series = |page: &str| page.lines().filter(|line| line.starts_with("stepward_filter_")).count();
    let before = series(&metrics.encode().unwrap());
    metrics.filter.add(report);
    metrics.filter.add(report);
    assert_eq!(series(&metrics.encode().unwrap()), before);
}

/// A plan without providers: the code behind the admission is not run here.
fn nobody() -> Plan {
    Plan {
        policy: None,
        rules: None,
        links: Vec::new(),
        on_not_found: OnNotFound::Next,
        on_unavailable: OnUnavailable::Fail,
        combine: Combine::FirstFound,
        enrich: false,
        enforcement: Enforcement::Enforce,
    }
}

fn record() -> Record {
    Record {
        received: Instant::now(),
        webhook_id: String::new(),
        webhook: None,
        caller: None,
        identity: None,
        key: None,
        notification: None,
        decision: None,
        replayed: false,
        proven: false,
        digest: String::new(),
        age: None,
        peer_address: String::new(),
        request_id: String::new(),
        traceparent: String::new(),
    }
}
