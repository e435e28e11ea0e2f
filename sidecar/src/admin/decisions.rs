//! The record of decisions, as the operator reads it.

use std::sync::Arc;
use std::time::Instant;

use posture::caller::Peer;
use posture::identity::normal;
use posture::outcome::Refusal;
use posture::time::UnixTime;
use proto::v1::{CapturedRequest, DecisionSummary, ExplainResponse, ListDecisionsRequest, ListDecisionsResponse};
use serde_json::{Map, Value, json};
use tonic::Status;

use super::{millis, rulings};
use crate::captured::{self, Against, Captured, Checked};
use crate::clock;
use crate::decide;
use crate::evaluate::{self, Record};
use crate::gate::Outcome;
use crate::runtime::Runtime;
use crate::store::{DecisionId, NoId, Store, StoreError, Wanted};

/// Decisions, newest first.
pub(super) async fn list(store: &Store, request: &ListDecisionsRequest) -> Result<ListDecisionsResponse, Status> {
    let device = match request.device.as_str() {
        "" => None,
        device => Some(normal(rulings::identifier(device)?).into_owned()),
    };
    let before = match request.before_id.as_str() {
        "" => None,
        id => Some(read(id)?),
    };
    let limit = match request.limit {
        0 => 50,
        limit => limit.min(MOST),
    };
    let since = (request.since > 0).then(|| UnixTime::from_nanos(request.since.saturating_mul(1_000_000)));
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    let [webhook, decision, code] = [&request.webhook, &request.decision, &request.code].map(given);
    if let Some(word) = decision.as_deref().filter(|word| !DECISIONS.contains(word)) {
        return Err(Status::invalid_argument(format!("`{}` is no decision: there are {}", shown(word), DECISIONS.join(", "))));
    }
    // One more than is shown tells whether there are more.
    let wanted = Wanted { device, since, webhook, decision, code, before, limit: limit.saturating_add(1) };
    let mut found = store.decisions(&wanted).await.map_err(|e| failed(&e))?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = found.len() > limit;
    found.truncate(limit);
    let decisions = found.into_iter().map(|summary| DecisionSummary {
        id: summary.id.to_string(),
        at: millis(summary.id.at()),
        device: summary.device,
        webhook: summary.webhook,
        decision: summary.decision,
        code: summary.code,
    });
    Ok(ListDecisionsResponse { decisions: decisions.collect(), more })
}

/// The whole record of one.
pub(super) async fn explain(store: &Store, id: &str) -> Result<ExplainResponse, Status> {
    let record = store.decision(read(id)?).await.map_err(|error| failed(&error))?;
    let missing = || Status::not_found(format!("there is no record of a decision {id}: it was never kept, or not long enough"));
    Ok(ExplainResponse { record: record.ok_or_else(missing)? })
}

/// How a captured request would be decided now, as its record would say it; and before it every check of the request itself.
///
/// The replay memory and the store do not hear of it.
pub(super) async fn judge(runtime: &Runtime, request: CapturedRequest) -> Result<ExplainResponse, Status> {
    let CapturedRequest { path, headers, body, peer_certificate } = request;
    let peer = match peer_certificate.as_slice() {
        [] => None,
        der => Some(Peer::from_der(der).map_err(|error| Status::invalid_argument(error.to_string()))?),
    };
    let headers: Vec<_> = headers.into_iter().map(|header| (header.name, header.value)).collect();
    let captured = Captured { path: &path, headers: &headers, body: &body, peer: peer.as_ref() };
    let snapshot = runtime.snapshot();
    let mut named = None;
    let find = |id: &str| {
        let webhook = snapshot.webhooks.get(id)?;
        named = Some(Arc::clone(webhook));
        let placeholders = &snapshot.config.placeholders;
        Some(Against { settings: &webhook.settings, keys: webhook.keys.clone(), credentials: &webhook.credentials, placeholders })
    };
    let (received, now) = (Instant::now(), clock::now());
    let Checked { results, refusal, admitted } = captured::check(&captured, find, now);
    let verification: Value = results.iter().map(|(check, result)| json!({ "check": check, "result": result })).collect();
    let mut shown = Map::from_iter([("verification".to_owned(), verification)]);
    let (Some(webhook), Some(admitted)) = (named, admitted) else {
        let code = refusal.unwrap_or(Refusal::Internal).as_str();
        shown.extend([("decision".to_owned(), json!("refuse")), ("code".to_owned(), json!(code))]);
        return Ok(ExplainResponse { record: Value::Object(shown).to_string() });
    };
    let decision = evaluate::decide(&webhook, admitted.identity.clone(), admitted.caller.as_ref(), admitted.mode, true, runtime).await;
    let record = Record {
        received,
        webhook_id: webhook.id.to_string(),
        webhook: Some(webhook),
        caller: admitted.caller,
        identity: admitted.identity.ok(),
        // Nobody was allowed anything, so no key is known by it.
        key: None,
        notification: admitted.notification,
        decision: None,
        replayed: false,
        proven: true,
        digest: evaluate::digest(&body),
        age: None,
        peer_address: String::new(),
        request_id: String::new(),
        traceparent: String::new(),
    };
    let outcome = &decision.outcome;
    let kept = record.kept(DecisionId::new(now), outcome, Some(&decision), received.elapsed());
    let kept: Map<String, Value> =
        kept.record().and_then(|text| serde_json::from_str(&text)).map_err(|error| Status::internal(error.to_string()))?;
    // What only a decision has that was made for somebody.
    shown.extend(kept.into_iter().filter(|(name, _)| !["id", "replayed", "request_id", "traceparent"].contains(&name.as_str())));
    if let Outcome::Deny(denial) = outcome {
        shown.insert("message".to_owned(), decide::message(denial).into());
    }
    Ok(ExplainResponse { record: Value::Object(shown).to_string() })
}

fn read(id: &str) -> Result<DecisionId, Status> {
    id.parse().map_err(|error: NoId| Status::invalid_argument(format!("`{}` {error}", shown(id))))
}

/// No more of it than a person needs to see what is wrong.
fn shown(id: &str) -> &str {
    id.get(..id.floor_char_boundary(64)).unwrap_or_default()
}

fn failed(error: &StoreError) -> Status {
    match error {
        StoreError::None => Status::failed_precondition(error.text()),
        error => Status::unavailable(error.text()),
    }
}

/// What a decision can be.
const DECISIONS: &[&str] = &["allow", "deny", "refuse"];

/// Decisions in one answer.
const MOST: u32 = 1000;
