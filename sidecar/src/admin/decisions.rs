//! Record of decisions, as the operator reads it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use posture::caller::Peer;
use posture::identity::normal;
use posture::outcome::{Denial, Refusal};
use posture::time::UnixTime;
use proto::v1::{CapturedRequest, DecisionSummary, ExplainResponse, ListDecisionsRequest, ListDecisionsResponse};
use serde_json::{Map, Value, json};
use settings::words::meant;
use store::{DecisionId, NoId, StoreError, Wanted};
use tonic::Status;

use super::rulings;
use crate::runtime::Runtime;
use engine::captured::{self, Against, Captured, Checked};
use engine::decide;
use engine::digest::digest;
use engine::evaluate;
use engine::gate::Outcome;
use engine::record::Record;
use engine::snapshot::Snapshot;

/// Lists decisions, newest first.
pub(super) async fn list(runtime: &Runtime, request: &ListDecisionsRequest) -> Result<ListDecisionsResponse, Status> {
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
    let snapshot = Arc::clone(&*runtime.snapshot());
    let config = runtime.config();
    let mut webhooks: Vec<String> = config.webhooks_called(&request.webhook).map(|webhook| webhook.id.clone()).collect();
    let no_such = webhook.is_some() && webhooks.is_empty();
    // A webhook that is gone still has its records.
    webhooks.extend(webhook.filter(|_| no_such));
    if let Some(word) = decision.as_deref().filter(|word| !DECISIONS.contains(word)) {
        return Err(Status::invalid_argument(format!("`{}` is no decision: there are {}", shown(word), DECISIONS.join(", "))));
    }
    // One decision more than is shown tells whether there are more.
    let wanted = Wanted { device, since, webhooks, decision, code, before, limit: limit.saturating_add(1) };
    let mut found = runtime.engine.store.decisions(&wanted).await.map_err(|e| failed(&e))?;
    // For a misspelt webhook or code, an empty list would say that nothing of the kind happened.
    if found.is_empty() && wanted.before.is_none() {
        known(runtime, &wanted, no_such.then_some(&*request.webhook)).await?;
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = found.len() > limit;
    found.truncate(limit);
    let decisions = found.into_iter().map(|summary| DecisionSummary {
        id: summary.id.to_string(),
        at: summary.id.at().as_millis(),
        device: summary.device,
        webhook_name: name_of(&snapshot, &summary.webhook),
        webhook: summary.webhook,
        decision: summary.decision,
        code: summary.code,
    });
    Ok(ListDecisionsResponse { decisions: decisions.collect(), more })
}

/// Returns the name of a webhook in the configuration; empty where it has none, or is gone.
fn name_of(snapshot: &Snapshot, id: &str) -> String {
    snapshot.webhooks.get(id).and_then(|webhook| webhook.settings.name.clone()).unwrap_or_default()
}

/// Checks that the webhook and the code exist: in the configuration, in Stepward itself, or in any record that is kept, of a
/// webhook or a policy that is gone.
async fn known(runtime: &Runtime, wanted: &Wanted, webhook: Option<&str>) -> Result<(), Status> {
    let config = runtime.config();
    let kept = async |wanted: Wanted| {
        let found = runtime.engine.store.decisions(&Wanted { limit: 1, ..wanted }).await.map_err(|error| failed(&error))?;
        Ok::<bool, Status>(!found.is_empty())
    };
    if let Some(webhook) = webhook
        && !kept(Wanted { webhooks: wanted.webhooks.clone(), ..Wanted::default() }).await?
    {
        return Err(Status::invalid_argument(config.no_webhook(webhook)));
    }
    let policies = config.policies.values();
    let mut codes: Vec<Cow<'_, str>> =
        policies.flat_map(|policy| policy.policy.described().map(|check| check.denial.code.clone())).collect();
    codes.extend(Denial::ALL.iter().map(|denial| denial.code.clone()));
    codes.extend(Refusal::ALL.iter().map(|refusal| refusal.as_str().into()));
    codes.push("allowed".into());
    if let Some(code) = wanted.code.as_deref().filter(|given| codes.iter().all(|code| code != given))
        && !kept(Wanted { code: wanted.code.clone(), ..Wanted::default() }).await?
    {
        let codes: Vec<&str> = codes.iter().map(|code| &**code).collect();
        let hint = meant(code, &codes).map(|code| format!("did you mean `{code}`? ")).unwrap_or_default();
        let text = format!("there is no code `{}`: {hint}docs/codes.md lists those of Stepward, and policies have their own", shown(code));
        return Err(Status::invalid_argument(text));
    }
    Ok(())
}

/// Returns the whole record of one decision.
pub(super) async fn explain(runtime: &Runtime, id: &str) -> Result<ExplainResponse, Status> {
    let record = runtime.engine.store.decision(read(id)?).await.map_err(|error| failed(&error))?;
    let missing = || Status::not_found(format!("there is no record of a decision {id}: it was never kept, or not long enough"));
    let record = record.ok_or_else(missing)?;
    let webhook = serde_json::from_str::<Value>(&record).unwrap_or_default();
    let webhook_name = name_of(&runtime.snapshot(), webhook.get("webhook").and_then(Value::as_str).unwrap_or_default());
    Ok(ExplainResponse { record, webhook_name })
}

/// Decides a captured request as of now. Returns what its record would say, and before it every check of the request itself.
///
/// Nothing is written into the replay memory or the store.
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
        let placeholders = &snapshot.placeholders;
        Some(Against { settings: &webhook.settings, keys: webhook.keys.clone(), credentials: &webhook.credentials, placeholders })
    };
    let (received, now) = (Instant::now(), clock::now());
    let Checked { results, refusal, admitted } = captured::check(&captured, find, now);
    let verification: Value = results.iter().map(|(check, result)| json!({ "check": check, "result": result })).collect();
    let mut shown = Map::from_iter([("verification".to_owned(), verification)]);
    let (Some(webhook), Some(admitted)) = (named, admitted) else {
        let code = refusal.unwrap_or(Refusal::Internal).as_str();
        shown.extend([("decision".to_owned(), json!("refuse")), ("code".to_owned(), json!(code))]);
        return Ok(ExplainResponse { record: Value::Object(shown).to_string(), webhook_name: String::new() });
    };
    let webhook_name = webhook.settings.name.clone().unwrap_or_default();
    let decision = evaluate::decide(
        &webhook,
        admitted.identity.clone(),
        admitted.caller.as_ref(),
        admitted.mode,
        true,
        tokio::time::Instant::now(),
        &runtime.engine,
    )
    .await;
    let record = Record {
        received,
        webhook_id: webhook.id.to_string(),
        webhook: Some(webhook),
        caller: admitted.caller,
        identity: admitted.identity.ok(),
        // Nothing was allowed, so no key is bound to a device.
        key: None,
        notification: admitted.notification,
        decision: None,
        replayed: false,
        proven: true,
        digest: digest(&body),
        age: None,
        peer_address: String::new(),
        request_id: String::new(),
        traceparent: String::new(),
    };
    let outcome = &decision.outcome;
    let kept = record.kept(DecisionId::new(now), outcome, Some(&decision), received.elapsed());
    let kept: Map<String, Value> =
        kept.record().and_then(|text| serde_json::from_str(&text)).map_err(|error| Status::internal(error.to_string()))?;
    // The fields that are left out only make sense for a decision that was made for somebody.
    shown.extend(kept.into_iter().filter(|(name, _)| !["id", "replayed", "request_id", "traceparent"].contains(&name.as_str())));
    if let Outcome::Deny(denial) = outcome {
        shown.insert("message".to_owned(), decide::message(denial).into());
    }
    Ok(ExplainResponse { record: Value::Object(shown).to_string(), webhook_name })
}

fn read(id: &str) -> Result<DecisionId, Status> {
    id.parse().map_err(|error: NoId| Status::invalid_argument(format!("`{}` {error}", shown(id))))
}

/// Cuts a text to what a person needs to see what is wrong.
fn shown(id: &str) -> &str {
    id.get(..id.floor_char_boundary(64)).unwrap_or_default()
}

fn failed(error: &StoreError) -> Status {
    match error {
        StoreError::None => Status::failed_precondition(error.text()),
        error => Status::unavailable(error.text()),
    }
}

/// Words for decisions.
const DECISIONS: &[&str] = &["allow", "deny", "refuse"];

/// Largest number of decisions in one answer.
const MOST: u32 = 1000;
