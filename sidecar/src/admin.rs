//! gRPC service for the operator: `AdminService`.

use std::sync::Arc;

use proto::v1::admin_service_server::AdminService;
use proto::v1::{
    CheckGroupsRequest, CheckGroupsResponse, ExemptRequest, ExemptResponse, ExplainRequest, ExplainResponse, ListCacheRequest,
    ListCacheResponse, ListDecisionsRequest, ListDecisionsResponse, ListLocksRequest, ListLocksResponse, LockRequest, LockResponse,
    PurgeCacheRequest, PurgeCacheResponse, ReloadRequest, ReloadResponse, ReloadResult, UnexemptRequest, UnexemptResponse, UnlockRequest,
    UnlockResponse,
};
use store::RulingKind;
use tonic::{Request, Response as Reply, Status as Failure};

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
    /// Makes the service, which acts on the runtime.
    pub fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime }
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn reload(&self, request: Request<ReloadRequest>) -> Result<Reply<ReloadResponse>, Failure> {
        let accept_shrink = request.into_inner().accept_shrink;
        let snapshot = Arc::clone(&*self.runtime.snapshot());
        if let Some(name) = accept_shrink.iter().find(|name| !snapshot.providers.contains_key(name.as_str())) {
            return Err(Failure::not_found(snapshot.no_provider(name)));
        }
        let runtime = Arc::clone(&self.runtime);
        let results = tokio::task::spawn_blocking(move || runtime.reload(&accept_shrink))
            .await
            .map_err(|error| Failure::internal(error.to_string()))?;
        let results = results.into_iter().map(|result| ReloadResult {
            subject: result.subject.to_string(),
            applied: result.outcome.is_ok(),
            waits: result.waits,
            detail: result.outcome.unwrap_or_else(|error| error),
        });
        Ok(Reply::new(ReloadResponse { results: results.collect() }))
    }

    async fn lock(&self, request: Request<LockRequest>) -> Result<Reply<LockResponse>, Failure> {
        let by = rulings::asker(&request);
        let LockRequest { device, reason, ttl_seconds, identifier_kind } = request.into_inner();
        let wanted = rulings::Wanted { device: &device, identifier_kind: &identifier_kind, reason: &reason, ttl_seconds };
        let (ruling, not_kept) = rulings::make(&self.runtime, RulingKind::Lock, &by, wanted).await?;
        let (not_known, not_heard) =
            tokio::join!(rulings::not_known(&self.runtime, &ruling), rulings::not_heard(&self.runtime, not_kept.is_empty()));
        Ok(Reply::new(LockResponse { ruling: Some(ruling), not_kept, not_known, not_heard }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Reply<UnlockResponse>, Failure> {
        let by = rulings::asker(&request);
        let UnlockRequest { device, identifier_kind, id } = request.into_inner();
        let (rulings, others) = rulings::take_back(&self.runtime, RulingKind::Lock, by, (&device, &identifier_kind, &id)).await?;
        let is_written = rulings.iter().all(|ruling| !ruling.not_kept);
        let not_heard = if rulings.is_empty() { String::new() } else { rulings::not_heard(&self.runtime, is_written).await };
        Ok(Reply::new(UnlockResponse { rulings, others, not_heard }))
    }

    async fn exempt(&self, request: Request<ExemptRequest>) -> Result<Reply<ExemptResponse>, Failure> {
        let by = rulings::asker(&request);
        let ExemptRequest { device, reason, ttl_seconds, identifier_kind } = request.into_inner();
        let wanted = rulings::Wanted { device: &device, identifier_kind: &identifier_kind, reason: &reason, ttl_seconds };
        let (ruling, not_kept) = rulings::make(&self.runtime, RulingKind::Exemption, &by, wanted).await?;
        let (not_known, not_heard) =
            tokio::join!(rulings::not_known(&self.runtime, &ruling), rulings::not_heard(&self.runtime, not_kept.is_empty()));
        Ok(Reply::new(ExemptResponse { ruling: Some(ruling), not_kept, not_known, not_heard }))
    }

    async fn unexempt(&self, request: Request<UnexemptRequest>) -> Result<Reply<UnexemptResponse>, Failure> {
        let by = rulings::asker(&request);
        let UnexemptRequest { device, identifier_kind, id } = request.into_inner();
        let (rulings, others) = rulings::take_back(&self.runtime, RulingKind::Exemption, by, (&device, &identifier_kind, &id)).await?;
        let is_written = rulings.iter().all(|ruling| !ruling.not_kept);
        let not_heard = if rulings.is_empty() { String::new() } else { rulings::not_heard(&self.runtime, is_written).await };
        Ok(Reply::new(UnexemptResponse { rulings, others, not_heard }))
    }

    async fn list_locks(&self, request: Request<ListLocksRequest>) -> Result<Reply<ListLocksResponse>, Failure> {
        rulings::list(&self.runtime, &request.into_inner().after_id).map(Reply::new)
    }

    async fn list_decisions(&self, request: Request<ListDecisionsRequest>) -> Result<Reply<ListDecisionsResponse>, Failure> {
        decisions::list(&self.runtime, &request.into_inner()).await.map(Reply::new)
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Reply<ExplainResponse>, Failure> {
        match request.into_inner() {
            ExplainRequest { request: Some(request), .. } => decisions::judge(&self.runtime, request).await.map(Reply::new),
            ExplainRequest { id, request: None } => decisions::explain(&self.runtime, &id).await.map(Reply::new),
        }
    }

    async fn list_cache(&self, request: Request<ListCacheRequest>) -> Result<Reply<ListCacheResponse>, Failure> {
        let ListCacheRequest { provider, limit } = request.into_inner();
        cache::list(&self.runtime, &provider, limit).map(Reply::new)
    }

    async fn purge_cache(&self, request: Request<PurgeCacheRequest>) -> Result<Reply<PurgeCacheResponse>, Failure> {
        let by = rulings::asker(&request);
        cache::purge(&self.runtime, &by, &request.into_inner()).await.map(Reply::new)
    }

    async fn check_groups(&self, _: Request<CheckGroupsRequest>) -> Result<Reply<CheckGroupsResponse>, Failure> {
        let snapshot = Arc::clone(&*self.runtime.snapshot());
        let checked = tokio::task::spawn_blocking(move || groups::check(&snapshot)).await;
        checked.map(Reply::new).map_err(|error| Failure::internal(error.to_string()))
    }
}
