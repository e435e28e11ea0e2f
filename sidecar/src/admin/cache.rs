//! Caches of device managements, as the operator lists and purges them.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use posture::identity::{DeviceId, IdentifierKind};
use proto::v1::{CachedDevice, ListCacheResponse, ProviderCache, PurgeCacheRequest, PurgeCacheResponse, PurgedCache};
use store::About;
use tonic::Status;

use crate::runtime::Runtime;
use engine::cache::{Cache, Circuit};

/// Lists the caches, with at most `limit` devices of each.
pub(super) fn list(runtime: &Runtime, provider: &str, limit: u32) -> Result<ListCacheResponse, Status> {
    let limit = match limit {
        0 => USUAL,
        limit => usize::try_from(limit).unwrap_or(MOST).min(MOST),
    };
    let caches = caches(runtime, provider)?;
    let warnings = runtime.pending_shrinks().into_iter().map(|(name, pending)| format!("provider {name}: {pending}"));
    Ok(ListCacheResponse { caches: caches.iter().map(|cache| shown(cache, limit)).collect(), warnings: warnings.collect() })
}

/// Drops one device or everything from caches, here and at the other services on the store, and writes into the log who wanted that.
pub(super) async fn purge(runtime: &Runtime, by: &str, request: &PurgeCacheRequest) -> Result<PurgeCacheResponse, Status> {
    let device = match (request.device.as_str(), request.identifier_kind.as_str()) {
        ("", "") => None,
        ("", _) => return Err(Status::invalid_argument("a kind of identifier needs a device")),
        (device, kind) => {
            let kind = match kind {
                "" => IdentifierKind::Serial,
                kind => kind.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?,
            };
            let device = DeviceId::new(kind, super::rulings::identifier(device)?);
            Some(device.map_err(|denial| Status::invalid_argument(denial.message.into_owned()))?)
        }
    };
    let caches = caches(runtime, &request.provider)?;
    let purged = caches.iter().map(|cache| PurgedCache { provider: cache.name().to_owned(), records: cache.purge(device.as_ref()) });
    let purged: Vec<_> = purged.collect();
    for cache in &purged {
        let device = device.as_ref().map_or("all", DeviceId::normal);
        tracing::info!(provider = cache.provider, device, records = cache.records, by, "cache purged");
    }
    let about = device.map_or(About::PurgeAll, About::Purge);
    let fleet = &runtime.engine.fleet;
    let told = join_all(caches.iter().map(|cache| fleet.tell(cache.name(), vec![about.clone()], TELLING))).await;
    let not_told = if told.into_iter().all(|told| told) {
        String::new()
    } else {
        "the other services do not know of it yet: they are told as soon as the store can be reached".to_owned()
    };
    Ok(PurgeCacheResponse { caches: purged, not_told })
}

/// Returns the cache of a provider, or without a name every cache.
fn caches(runtime: &Runtime, provider: &str) -> Result<Vec<Arc<Cache>>, Status> {
    let snapshot = runtime.snapshot();
    if provider.is_empty() {
        return Ok(snapshot.providers.values().filter_map(|provider| provider.cache().cloned()).collect());
    }
    let found = snapshot.providers.get(provider).ok_or_else(|| Status::not_found(snapshot.no_provider(provider)))?;
    let cache = found.cache().ok_or_else(|| {
        Status::failed_precondition(format!("provider `{provider}` has no cache: it is a file, which `stepward reload` reads again"))
    })?;
    Ok(vec![Arc::clone(cache)])
}

fn shown(cache: &Cache, limit: usize) -> ProviderCache {
    let devices = cache.list(limit).into_iter().map(|listed| {
        let (kind, identifier) = listed.device.split_once(' ').unwrap_or_default();
        CachedDevice {
            identifier: identifier.to_owned(),
            identifier_kind: kind.to_owned(),
            age_ms: millis(listed.age),
            dropped: listed.dropped,
        }
    });
    let circuit = match cache.circuit() {
        Circuit::Closed => "closed",
        Circuit::HalfOpen => "half_open",
        Circuit::Open => "open",
    };
    let answered = cache.answered_ago();
    ProviderCache {
        provider: cache.name().to_owned(),
        records: cache.len(),
        circuit: circuit.to_owned(),
        answered: answered.is_some(),
        answered_ago_ms: answered.map(millis).unwrap_or_default(),
        devices: devices.collect(),
    }
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

/// Longest time for telling the other services of a purge.
const TELLING: Duration = Duration::from_secs(2);

/// Number of devices listed of each provider where the request names none.
const USUAL: usize = 100;

/// Largest number of devices listed of each provider: with the longest identifiers below the 8 MiB that the command takes, for two
/// providers.
const MOST: usize = 10_000;
