//! Envoy as the host: the one file that names `proxy_wasm`.
//!
//! Envoy calls back with one context in effect, and lets another one act through `set_effective_context`: the stream to
//! the sidecar belongs to the root context, a reply to the request's. With every call it starts from the context called
//! (proxy-wasm-cpp-host `SaveRestoreContext`). The free functions of `hostcalls` are used, since
//! the methods of the SDK's traits panic on any error.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use posture::outcome::{Outcome, Refusal};
use posture::reply::{Reply, reply};
use posture::time::UnixTime;
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType, LogLevel, MapType, MetricType};

use super::{Host, Level, RequestId, StreamId, Verdict};
use crate::config::Settings;
use crate::exchange::{Exchange, Worker};
use crate::metrics::{Counter, Gauge, LATENCY};

#[allow(unsafe_code, reason = "the SDK's macro exports `_initialize`")]
mod start {
    use super::*;

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|id| Box::new(Root { id, shared: None }));
    }}
}

/// The service that the stream is opened to.
const SERVICE: &str = "stepward.v1.FilterService";
const METHOD: &str = "Attach";

/// What the contexts of one VM share.
struct Shared {
    host: EnvoyHost,
    worker: RefCell<Worker>,
}

struct Root {
    id: u32,
    shared: Option<Rc<Shared>>,
}

struct Request {
    id: u32,
    shared: Option<Rc<Shared>>,
    exchange: Exchange,
}

impl Context for Root {
    fn on_grpc_stream_message(&mut self, stream: u32, size: usize) {
        self.act(|worker, host| {
            let message = hostcalls::get_buffer(BufferType::GrpcReceiveBuffer, 0, size).ok().flatten().unwrap_or_default();
            worker.on_message(host, StreamId(stream), &message);
        });
    }

    fn on_grpc_stream_close(&mut self, stream: u32, _status: u32) {
        self.act(|worker, host| worker.on_close(host, StreamId(stream)));
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        let json = if size == 0 { None } else { hostcalls::get_buffer(BufferType::PluginConfiguration, 0, size).ok().flatten() };
        let settings = match Settings::parse(&json.unwrap_or_default()) {
            Ok(settings) => settings,
            Err(error) => {
                let _ = hostcalls::log(LogLevel::Error, &error.to_string());
                return false;
            }
        };
        let Some(host) = EnvoyHost::new(self.id, &settings.cluster) else { return false };
        // Envoy's clock stands still while it makes its VMs, so time alone would not tell them apart.
        let vm = host.now().as_nanos().unsigned_abs() ^ (ordinal() << 48);
        let mut worker = Worker::new(settings, vm);
        worker.start(&host);
        self.shared = Some(Rc::new(Shared { host, worker: RefCell::new(worker) }));
        true
    }

    fn on_tick(&mut self) {
        self.act(|worker, host| {
            worker.on_tick(host);
            host.publish();
        });
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Request { id, shared: self.shared.clone(), exchange: Exchange::Replied }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Root {
    fn act(&self, event: impl FnOnce(&mut Worker, &EnvoyHost)) {
        if let Some(shared) = &self.shared
            && let Ok(mut worker) = shared.worker.try_borrow_mut()
        {
            shared.host.called(self.id);
            event(&mut worker, &shared.host);
        }
    }
}

impl Context for Request {}

impl Drop for Request {
    /// Envoy deletes the context with its request, answered or not. To be told so by `proxy_on_done` as well would be one
    /// more call for every request.
    fn drop(&mut self) {
        if let Some(shared) = &self.shared
            && let Ok(mut worker) = shared.worker.try_borrow_mut()
        {
            worker.on_done(&shared.host, &self.exchange);
        }
    }
}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _: usize, end: bool) -> Action {
        #[cfg(feature = "trap")]
        if hostcalls::get_map_bytes(MapType::HttpRequestHeaders).is_ok_and(|map| map.iter().any(|(name, _)| name == "x-stepward-trap")) {
            std::process::abort();
        }
        let id = RequestId(self.id);
        self.act(|worker, host, _| worker.on_headers(host, id, end))
    }

    fn on_http_request_body(&mut self, size: usize, end: bool) -> Action {
        self.act(|worker, host, exchange| worker.on_body(host, exchange, size, end))
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        self.act(Worker::on_trailers)
    }
}

impl Request {
    /// Every callback ends in a pause: the filter is terminal, and continuing is never an answer.
    fn act(&mut self, event: impl FnOnce(&mut Worker, &EnvoyHost, Exchange) -> Exchange) -> Action {
        if let Some(shared) = &self.shared
            && let Ok(mut worker) = shared.worker.try_borrow_mut()
        {
            shared.host.called(self.id);
            let exchange = std::mem::replace(&mut self.exchange, Exchange::Replied);
            self.exchange = event(&mut worker, &shared.host, exchange);
        } else {
            let unavailable = reply(&Outcome::Refuse(Refusal::Internal));
            let _ = hostcalls::send_http_response(unavailable.status.into(), Reply::HEADERS.to_vec(), Some(&unavailable.body));
        }
        Action::Pause
    }
}

/// The host's side of one VM.
struct EnvoyHost {
    root: u32,
    /// The context that the next call of the host acts for.
    effective: Cell<u32>,
    upstream: String,
    /// Each with its metric, and what was counted since the last tick: a call of the host for every count is dear.
    counters: Vec<(Counter, u32, Cell<u32>)>,
    gauges: Vec<(Gauge, u32)>,
    latency: u32,
}

impl EnvoyHost {
    fn new(root: u32, cluster: &str) -> Option<Self> {
        let define = |kind, name: &str| hostcalls::define_metric(kind, name).ok();
        Some(Self {
            root,
            effective: Cell::new(root),
            upstream: grpc_service(cluster)?,
            counters: Counter::all()
                .map(|counter| Some((counter, define(MetricType::Counter, &counter.name())?, Cell::new(0))))
                .collect::<Option<_>>()?,
            gauges: Gauge::ALL.into_iter().map(|gauge| Some((gauge, define(MetricType::Gauge, gauge.name())?))).collect::<Option<_>>()?,
            latency: define(MetricType::Histogram, LATENCY)?,
        })
    }

    /// Adds to Envoy's counters what was counted.
    fn publish(&self) {
        for (_, id, count) in &self.counters {
            if count.get() > 0 {
                let _ = hostcalls::increment_metric(*id, i64::from(count.take()));
            }
        }
    }

    /// Envoy called a context, which acts until another one is let.
    fn called(&self, context: u32) {
        self.effective.set(context);
    }

    /// Lets a context act from now on; false where it has gone. It is not set back: Envoy does so itself for its next call.
    fn act_as(&self, context: u32) -> bool {
        if context != self.effective.get() {
            if hostcalls::set_effective_context(context).is_err() {
                return false;
            }
            self.effective.set(context);
        }
        true
    }
}

impl Host for EnvoyHost {
    fn now(&self) -> UnixTime {
        UnixTime::from_system(hostcalls::get_current_time().unwrap_or(SystemTime::UNIX_EPOCH))
    }

    fn headers(&self) -> Vec<(String, Vec<u8>)> {
        hostcalls::get_map_bytes(MapType::HttpRequestHeaders).unwrap_or_default()
    }

    fn body(&self, size: usize) -> Option<Vec<u8>> {
        hostcalls::get_buffer(BufferType::HttpRequestBody, 0, size).ok().flatten()
    }

    fn connection(&self) -> Option<u64> {
        let bytes = hostcalls::get_property(vec!["connection", "id"]).ok().flatten()?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    }

    fn peer_certificate(&self) -> Option<Vec<u8>> {
        hostcalls::get_property(vec!["connection", "peer_certificate"]).ok().flatten().filter(|pem| !pem.is_empty())
    }

    fn peer_address(&self) -> Option<String> {
        String::from_utf8(hostcalls::get_property(vec!["source", "address"]).ok().flatten()?).ok()
    }

    fn open(&self) -> Option<StreamId> {
        hostcalls::open_grpc_stream(&self.upstream, SERVICE, METHOD, Vec::new()).ok().map(StreamId)
    }

    fn send(&self, stream: StreamId, message: &[u8]) -> bool {
        self.act_as(self.root) && hostcalls::send_grpc_stream_message(stream.0, Some(message), false).is_ok()
    }

    fn cancel(&self, stream: StreamId) {
        let _ = self.act_as(self.root) && hostcalls::cancel_grpc_stream(stream.0).is_ok();
    }

    fn reply(&self, request: RequestId, reply: &Reply, verdict: Verdict<'_>) -> bool {
        if !self.act_as(request.0) {
            return false;
        }
        let _ = hostcalls::set_property(vec!["stepward_decision"], Some(verdict.decision.as_bytes()));
        let _ = hostcalls::set_property(vec!["stepward_reason"], Some(verdict.reason.as_bytes()));
        hostcalls::send_http_response(reply.status.into(), Reply::HEADERS.to_vec(), Some(&reply.body)).is_ok()
    }

    fn tick_every(&self, period: Duration) {
        let _ = self.act_as(self.root) && hostcalls::set_tick_period(period).is_ok();
    }

    fn count(&self, counter: Counter) {
        if let Some((.., count)) = self.counters.iter().find(|(known, ..)| *known == counter) {
            count.set(count.get().saturating_add(1));
        }
    }

    fn add(&self, gauge: Gauge, change: i64) {
        if let Some((_, id)) = self.gauges.iter().find(|(known, _)| *known == gauge) {
            let _ = hostcalls::increment_metric(*id, change);
        }
    }

    fn latency(&self, micros: u64) {
        let _ = hostcalls::record_metric(self.latency, micros);
    }

    fn log(&self, level: Level, text: &str) {
        let level = match level {
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
        };
        let _ = hostcalls::log(level, text);
    }
}

/// A number that no other VM of this process took: shared data is all that VMs have in common.
fn ordinal() -> u64 {
    const KEY: &str = "stepward.vms";
    // Writing to a key that is there fails with a number that is not its own, so this one means: if it is absent.
    const ABSENT: u32 = u32::MAX;
    for _ in 0..1000 {
        let (taken, cas) = hostcalls::get_shared_data(KEY).unwrap_or_default();
        let taken = taken.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        if hostcalls::set_shared_data(KEY, Some(&taken.wrapping_add(1).to_le_bytes()), Some(cas.unwrap_or(ABSENT))).is_ok() {
            return taken;
        }
    }
    0
}

/// The bytes of `GrpcService { envoy_grpc: { cluster_name } }`.
///
/// Envoy first reads an upstream as this message and takes it for a cluster's name only if that fails; a name that
/// happens to be readable, such as `step-ca`, ends the whole process (`source/extensions/common/wasm/context.cc`).
fn grpc_service(cluster: &str) -> Option<String> {
    let inner = u8::try_from(cluster.len()).ok().filter(|length| *length < 126)?;
    let outer = inner.checked_add(2)?;
    let bytes = [&[0x0a, outer, 0x0a, inner], cluster.as_bytes()].concat();
    String::from_utf8(bytes).ok()
}
