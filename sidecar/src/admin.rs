//! The ways in for the operator: `AdminService`, and the pages of metrics and health.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use posture::time::UnixTime;
use proto::v1::admin_service_server::AdminService;
use proto::v1::{
    CheckGroupsRequest, CheckGroupsResponse, ExemptRequest, ExemptResponse, ExplainRequest, ExplainResponse, ListCacheRequest,
    ListCacheResponse, ListDecisionsRequest, ListDecisionsResponse, ListLocksRequest, ListLocksResponse, LockRequest, LockResponse,
    PurgeCacheRequest, PurgeCacheResponse, ReloadRequest, ReloadResponse, ReloadResult, UnexemptRequest, UnexemptResponse, UnlockRequest,
    UnlockResponse,
};
use tonic::{Request, Response as Reply, Status as Failure};

use crate::locks::RulingKind;
use crate::runtime::Runtime;

mod cache;
mod decisions;
mod groups;
mod rulings;

/// The service on `admin.sock`.
#[derive(Debug)]
pub struct Admin {
    runtime: Arc<Runtime>,
}

impl Admin {
    /// Acts on the runtime.
    pub fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime }
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn reload(&self, request: Request<ReloadRequest>) -> Result<Reply<ReloadResponse>, Failure> {
        let accept_shrink = request.into_inner().accept_shrink;
        if let Some(name) = accept_shrink.iter().find(|name| !self.runtime.snapshot().providers.contains_key(name.as_str())) {
            return Err(Failure::not_found(format!("there is no provider `{name}`")));
        }
        let runtime = Arc::clone(&self.runtime);
        let results = tokio::task::spawn_blocking(move || runtime.reload(&accept_shrink))
            .await
            .map_err(|error| Failure::internal(error.to_string()))?;
        let results = results.into_iter().map(|result| ReloadResult {
            subject: result.subject.to_string(),
            applied: result.outcome.is_ok(),
            detail: result.outcome.unwrap_or_else(|error| error),
        });
        Ok(Reply::new(ReloadResponse { results: results.collect() }))
    }

    async fn lock(&self, request: Request<LockRequest>) -> Result<Reply<LockResponse>, Failure> {
        let by = rulings::asker(&request);
        let LockRequest { device, reason, ttl_seconds, identifier_kind } = request.into_inner();
        let wanted = rulings::Wanted { device: &device, identifier_kind: &identifier_kind, reason: &reason, ttl_seconds };
        let (ruling, not_kept) = rulings::make(&self.runtime, RulingKind::Lock, &by, wanted).await?;
        let not_known = rulings::not_known(&self.runtime, &ruling).await;
        Ok(Reply::new(LockResponse { ruling: Some(ruling), not_kept, not_known }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Reply<UnlockResponse>, Failure> {
        let by = rulings::asker(&request);
        let UnlockRequest { device, identifier_kind, id } = request.into_inner();
        let (rulings, others) = rulings::take_back(&self.runtime, RulingKind::Lock, by, (&device, &identifier_kind, &id)).await?;
        Ok(Reply::new(UnlockResponse { rulings, others }))
    }

    async fn exempt(&self, request: Request<ExemptRequest>) -> Result<Reply<ExemptResponse>, Failure> {
        let by = rulings::asker(&request);
        let ExemptRequest { device, reason, ttl_seconds, identifier_kind } = request.into_inner();
        let wanted = rulings::Wanted { device: &device, identifier_kind: &identifier_kind, reason: &reason, ttl_seconds };
        let (ruling, not_kept) = rulings::make(&self.runtime, RulingKind::Exemption, &by, wanted).await?;
        let not_known = rulings::not_known(&self.runtime, &ruling).await;
        Ok(Reply::new(ExemptResponse { ruling: Some(ruling), not_kept, not_known }))
    }

    async fn unexempt(&self, request: Request<UnexemptRequest>) -> Result<Reply<UnexemptResponse>, Failure> {
        let by = rulings::asker(&request);
        let UnexemptRequest { device, identifier_kind, id } = request.into_inner();
        let (rulings, others) = rulings::take_back(&self.runtime, RulingKind::Exemption, by, (&device, &identifier_kind, &id)).await?;
        Ok(Reply::new(UnexemptResponse { rulings, others }))
    }

    async fn list_locks(&self, request: Request<ListLocksRequest>) -> Result<Reply<ListLocksResponse>, Failure> {
        rulings::list(&self.runtime, &request.into_inner().after_id).map(Reply::new)
    }

    async fn list_decisions(&self, request: Request<ListDecisionsRequest>) -> Result<Reply<ListDecisionsResponse>, Failure> {
        decisions::list(&self.runtime.store, &request.into_inner()).await.map(Reply::new)
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Reply<ExplainResponse>, Failure> {
        match request.into_inner() {
            ExplainRequest { request: Some(request), .. } => decisions::judge(&self.runtime, request).await.map(Reply::new),
            ExplainRequest { id, request: None } => decisions::explain(&self.runtime.store, &id).await.map(Reply::new),
        }
    }

    async fn list_cache(&self, request: Request<ListCacheRequest>) -> Result<Reply<ListCacheResponse>, Failure> {
        let ListCacheRequest { provider, limit } = request.into_inner();
        cache::list(&self.runtime, &provider, limit).map(Reply::new)
    }

    async fn purge_cache(&self, request: Request<PurgeCacheRequest>) -> Result<Reply<PurgeCacheResponse>, Failure> {
        let by = rulings::asker(&request);
        cache::purge(&self.runtime, &by, &request.into_inner()).map(Reply::new)
    }

    async fn check_groups(&self, _: Request<CheckGroupsRequest>) -> Result<Reply<CheckGroupsResponse>, Failure> {
        let snapshot = Arc::clone(&*self.runtime.snapshot());
        let checked = tokio::task::spawn_blocking(move || groups::check(&snapshot)).await;
        checked.map(Reply::new).map_err(|error| Failure::internal(error.to_string()))
    }
}

/// As the messages have points in time: milliseconds since the epoch.
fn millis(time: UnixTime) -> i64 {
    time.as_nanos().div_euclid(1_000_000)
}

/// How far the process is.
#[derive(Debug, Default)]
pub struct Status(AtomicU8);

impl Status {
    const STARTING: u8 = 0;
    const READY: u8 = 1;
    const DRAINING: u8 = 2;

    /// Everything listens.
    pub fn ready(&self) {
        self.0.store(Self::READY, Ordering::Release);
    }

    /// It is about to end.
    pub fn draining(&self) {
        self.0.store(Self::DRAINING, Ordering::Release);
    }

    fn word(&self) -> &'static str {
        match self.0.load(Ordering::Acquire) {
            Self::STARTING => "starting",
            Self::READY => "ready",
            _ => "draining",
        }
    }
}

#[derive(Clone)]
struct Shared {
    runtime: Arc<Runtime>,
    status: Arc<Status>,
}

/// `/metrics`, `/livez`, `/readyz`, `/startupz`.
pub fn pages(runtime: Arc<Runtime>, status: Arc<Status>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .with_state(Shared { runtime, status })
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let metrics = &shared.runtime.metrics;
    let usage = shared.runtime.memory.usage();
    metrics.replay_entries.set(i64::try_from(usage.entries).unwrap_or(i64::MAX));
    metrics.replay_bytes.set(i64::try_from(usage.bytes).unwrap_or(i64::MAX));
    let store = &shared.runtime.store;
    metrics.store_owed_locks.set(i64::try_from(store.count_owed()).unwrap_or(i64::MAX));
    metrics.store_lost.set(i64::from(store.is_lost()));
    shared.runtime.count_providers();
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn startupz(State(shared): State<Shared>) -> Response {
    let word = shared.status.word();
    let code = if word == "starting" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, format!("{word}\n")).into_response()
}

/// Ready while it serves: a provider that cannot answer is said and does not make it unready, since the others can.
async fn readyz(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let word = shared.status.word();
    let code = if word == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verbose =
        query.is_some_and(|query| query.split('&').any(|part| part == "verbose" || part == "verbose=1" || part == "verbose=true"));
    let mut text = format!("{word}\n");
    if verbose {
        let snapshot = shared.runtime.snapshot();
        let metrics = &shared.runtime.metrics;
        // Writing to a string does not fail.
        let _ = writeln!(text, "revision {}\nwebhooks {}", snapshot.revision, snapshot.webhooks.len());
        let _ = writeln!(text, "filter_streams {}\nfilter_workers {}", metrics.filter.streams.get(), metrics.filter.workers.get());
        for (name, state) in shared.runtime.provider_states() {
            let _ = writeln!(text, "provider {name} {state}");
        }
        let failures = shared.runtime.failures();
        for (name, pending) in shared.runtime.pending_shrinks().into_iter().filter(|(name, _)| !failures.contains_key(name)) {
            let _ = writeln!(text, "not_applied {name}: {pending}");
        }
        if let Some(trouble) = shared.runtime.store.trouble() {
            let _ = writeln!(text, "store {trouble}");
        }
        for (subject, error) in failures {
            let _ = writeln!(text, "not_applied {subject}: {error}");
        }
    }
    (code, text).into_response()
}
