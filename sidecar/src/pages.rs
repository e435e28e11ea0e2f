//! Pages of metrics and health, for Prometheus, for container platforms, and for the operator.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use posture::shown;

use crate::runtime::Runtime;

/// Stage of the process: starting, ready or draining.
#[derive(Debug, Default)]
pub struct Status(AtomicU8);

impl Status {
    const STARTING: u8 = 0;
    const READY: u8 = 1;
    const DRAINING: u8 = 2;

    /// Records that everything listens.
    pub fn ready(&self) {
        self.0.store(Self::READY, Ordering::Release);
    }

    /// Records that the process is about to end.
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

/// State that the pages show.
#[derive(Clone)]
struct Shared {
    runtime: Arc<Runtime>,
    status: Arc<Status>,
}

/// Makes the routes `/metrics`, `/livez`, `/readyz` and `/startupz`.
pub fn pages(runtime: Arc<Runtime>, status: Arc<Status>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .with_state(Shared { runtime, status })
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let metrics = &shared.runtime.engine.metrics;
    let usage = shared.runtime.engine.memory.usage();
    metrics.replay_entries.set(i64::try_from(usage.entries).unwrap_or(i64::MAX));
    metrics.replay_bytes.set(i64::try_from(usage.bytes).unwrap_or(i64::MAX));
    let store = &shared.runtime.engine.store;
    metrics.store_owed_locks.set(i64::try_from(store.count_owed()).unwrap_or(i64::MAX));
    metrics.store_lost.set(i64::from(store.is_lost()));
    metrics.store_news_age.set(shared.runtime.engine.locks.without_news().unwrap_or_default().as_secs_f64());
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

/// Answers `/readyz`, which is 200 while the service serves: a provider that cannot answer is named and does not make the service
/// unready, since the others can. A service that knows for too long nothing of what others rule answers no request.
async fn readyz(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let locks = &shared.runtime.engine.locks;
    let word = match shared.status.word() {
        "ready" if locks.are_stale() => "stale",
        word => word,
    };
    let code = if word == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verbose =
        query.is_some_and(|query| query.split('&').any(|part| part == "verbose" || part == "verbose=1" || part == "verbose=true"));
    let mut text = format!("{word}\n");
    if verbose {
        let snapshot = shared.runtime.snapshot();
        let metrics = &shared.runtime.engine.metrics;
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
        if let Some(trouble) = shared.runtime.engine.store.trouble() {
            let _ = writeln!(text, "store {trouble}");
        }
        if let Some(silence) = locks.without_news().filter(|silence| *silence > UNREMARKABLE) {
            let _ = writeln!(text, "store {WITHOUT_NEWS} for {} s, since the store does not answer", silence.as_secs());
        }
        for (subject, error) in failures {
            // A line for each subject, whose mistakes may be several.
            let _ = writeln!(text, "not_applied {subject}: {}", shown::line(&error));
        }
        for (subject, why) in shared.runtime.waiting() {
            let _ = writeln!(text, "waits {subject}: {why}");
        }
    }
    (code, text).into_response()
}

/// Beginning of what is said of a store that does not answer.
pub(crate) const WITHOUT_NEWS: &str = "nothing is known of what other services rule";

/// Time without news of what other services rule that is not worth a word.
const UNREMARKABLE: Duration = Duration::from_secs(3);
