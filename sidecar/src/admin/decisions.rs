//! The record of decisions, as the operator reads it.

use posture::identity::normal;
use posture::time::UnixTime;
use proto::v1::{DecisionSummary, ExplainResponse, ListDecisionsRequest, ListDecisionsResponse};
use tonic::Status;

use super::{millis, rulings};
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
    // One more than is shown tells whether there are more.
    let mut found = store.decisions(&Wanted { device, since, before, limit: limit.saturating_add(1) }).await.map_err(|e| failed(&e))?;
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

/// Decisions in one answer.
const MOST: u32 = 1000;
