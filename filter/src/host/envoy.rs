//! Envoy as the host, by the SDK `proxy-wasm`: its callbacks, and its calls for the filter.
//!
//! Envoy calls back with one context in effect, and lets the filter act for another through `set_effective_context`: the
//! stream to the sidecar belongs to the root context, a reply to the request's context. Every callback starts with the
//! context that is called (proxy-wasm-cpp-host `SaveRestoreContext`). Every call between Envoy and the VM is expensive, so this
//! module has no callback and no call that is not needed.
//!
//! The free functions of `hostcalls` are used, since the methods of the SDK's traits panic on every error. On a status that
//! Envoy does not return for a call these functions panic too, which ends the VM; `docs/decisions/0054` lists each of them,
//! and what becomes of the requests.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use posture::outcome::{Outcome, Refusal};
use posture::reply::{Reply, reply};
use posture::time::UnixTime;
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType, LogLevel, MapType, MetricType};

use super::{Headers, Host, Level, RequestId, StreamId, Verdict};
use crate::config::Settings;
use crate::exchange::{Exchange, Worker};
use crate::metrics::{Counter, LATENCY, Tally};

mod start {
    use proxy_wasm::types::LogLevel;

    use super::Root;

    proxy_wasm::main! {{
        // This call also has the text of a panic written to Envoy's log.
        proxy_wasm::set_log_level(LogLevel::Warn);
        proxy_wasm::set_root_context(|id| Box::new(Root { id, plugin: None }));
    }}
}

/// What belongs to one plugin configuration.
struct Plugin {
    host: EnvoyHost,
    worker: RefCell<Worker>,
}

impl Plugin {
    /// Lets the worker act for a context. Inside another callback the worker is busy, and the result is `None`.
    fn act<R>(&self, context: u32, event: impl FnOnce(&mut Worker, &EnvoyHost) -> R) -> Option<R> {
        let mut worker = self.worker.try_borrow_mut().ok()?;
        self.host.called(context);
        Some(event(&mut worker, &self.host))
    }
}

/// The context of a plugin configuration, with its ticks and its stream.
struct Root {
    id: u32,
    /// Plugin of the configuration; `None` until it is configured.
    plugin: Option<Rc<Plugin>>,
}

impl Context for Root {
    fn on_grpc_stream_message(&mut self, stream: u32, size: usize) {
        self.act(|worker, host| {
            let message = hostcalls::get_buffer(BufferType::GrpcReceiveBuffer, 0, size).ok().flatten().unwrap_or_default();
            worker.on_message(host, StreamId(stream), &message);
        });
    }

    fn on_grpc_stream_close(&mut self, stream: u32, status: u32) {
        self.act(|worker, host| worker.on_close(host, StreamId(stream), status));
    }
}

impl RootContext for Root {
    /// Takes a plugin configuration; false keeps Envoy from using it.
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
        let ordinal = *ORDINAL.get_or_init(ordinal);
        // Envoy's clock stands still while it makes its VMs, so time alone would not tell them apart.
        let vm = host.now().as_nanos().unsigned_abs() ^ (ordinal << 48) ^ (u64::from(self.id) << 32);
        let mut worker = Worker::new(settings, vm);
        if ordinal == MAIN_THREAD {
            worker = worker.of_main_thread();
        }
        worker.start(&host);
        self.plugin = Some(Rc::new(Plugin { host, worker: RefCell::new(worker) }));
        true
    }

    fn on_tick(&mut self) {
        self.act(|worker, host| {
            worker.on_tick(host);
            host.publish();
        });
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Request { id, plugin: self.plugin.clone(), exchange: Exchange::Replied }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Root {
    fn act(&self, event: impl FnOnce(&mut Worker, &EnvoyHost)) {
        if let Some(plugin) = &self.plugin {
            plugin.act(self.id, event);
        }
    }
}

/// The context of a request.
struct Request {
    id: u32,
    plugin: Option<Rc<Plugin>>,
    exchange: Exchange,
}

impl Context for Request {}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _: usize, end: bool) -> Action {
        #[cfg(feature = "trap")]
        self.trap();
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
    /// Lets the worker act for the request. Every callback ends in a pause: the filter is terminal, and never continues.
    fn act(&mut self, event: impl FnOnce(&mut Worker, &EnvoyHost, Exchange) -> Exchange) -> Action {
        let exchange = std::mem::replace(&mut self.exchange, Exchange::Replied);
        let gone_on = self.plugin.as_ref().and_then(|plugin| plugin.act(self.id, |worker, host| event(worker, host, exchange)));
        match gone_on {
            Some(exchange) => self.exchange = exchange,
            // There is no worker to judge the request.
            None => _ = respond(&reply(&Outcome::Refuse(Refusal::Internal))),
        }
        Action::Pause
    }

    /// Ends the VM if a test's request asks for it: by the SDK, on a status that it does not expect, or by the filter.
    #[cfg(feature = "trap")]
    fn trap(&self) {
        let headers = hostcalls::get_map_bytes(MapType::HttpRequestHeaders).unwrap_or_default();
        let asked = headers.into_iter().find(|(name, _)| name == "x-stepward-trap").map(|(_, value)| value);
        match (asked.as_deref(), &self.plugin) {
            (None, _) => {}
            (Some(b"status"), Some(plugin)) => {
                // A root context has no properties that could be set.
                plugin.host.called(self.id);
                plugin.host.act_as(plugin.host.root);
                let _ = hostcalls::set_property(vec!["stepward_decision"], None);
            }
            (Some(_), _) => std::process::abort(),
        }
    }
}

impl Drop for Request {
    /// Handles the end of the request, answered or not, since Envoy deletes a context with its request. `proxy_on_done` would
    /// be one more call for every request. The SDK's table of requests is borrowed here, so nothing is called that calls
    /// back.
    fn drop(&mut self) {
        if let Some(plugin) = &self.plugin {
            plugin.act(self.id, |worker, host| worker.on_done(host, &self.exchange));
        }
    }
}

/// Answers the request of the effective context.
fn respond(reply: &Reply) -> bool {
    hostcalls::send_http_response(reply.status.into(), Reply::HEADERS.to_vec(), Some(&reply.body)).is_ok()
}

/// The gRPC service of the stream.
const SERVICE: &str = "stepward.v1.FilterService";
const METHOD: &str = "Attach";

/// The host for one plugin configuration.
struct EnvoyHost {
    root: u32,
    /// Context for which the host's next call acts.
    effective: Cell<u32>,
    upstream: String,
    /// Counters with their metric, and what was counted since the last tick: a call of the host for every count is expensive.
    counters: Vec<(Counter, u32, Cell<u32>)>,
    latency: u32,
    /// Latencies since the last tick, in microseconds.
    latencies: RefCell<Vec<u64>>,
    /// Counts since the last report.
    tally: RefCell<Tally>,
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
            latency: define(MetricType::Histogram, LATENCY)?,
            latencies: RefCell::default(),
            tally: RefCell::default(),
        })
    }

    /// Adds the counts and latencies since the last tick to Envoy's counters and histogram.
    fn publish(&self) {
        for micros in self.latencies.take() {
            let _ = hostcalls::record_metric(self.latency, micros);
        }
        for (_, id, count) in &self.counters {
            if count.get() > 0 {
                let _ = hostcalls::increment_metric(*id, i64::from(count.take()));
            }
        }
    }

    /// Notes the context that Envoy called, which is in effect until [`Self::act_as`] sets another.
    fn called(&self, context: u32) {
        self.effective.set(context);
    }

    /// Sets the context for the next calls; false if it is gone. It is not set back: Envoy does so itself for its next callback.
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

    fn headers(&self) -> Option<Headers> {
        hostcalls::get_map_bytes(MapType::HttpRequestHeaders).ok().map(Headers)
    }

    fn body(&self, size: usize) -> Option<Vec<u8>> {
        hostcalls::get_buffer(BufferType::HttpRequestBody, 0, size).ok().flatten()
    }

    fn connection(&self) -> Option<u64> {
        property(["connection", "id"])?.try_into().ok().map(u64::from_le_bytes)
    }

    fn peer_certificate(&self) -> Option<Vec<u8>> {
        property(["connection", "peer_certificate"])
    }

    fn peer_address(&self) -> Option<String> {
        String::from_utf8(property(["source", "address"])?).ok()
    }

    fn open(&self) -> Option<StreamId> {
        hostcalls::open_grpc_stream(&self.upstream, SERVICE, METHOD, Vec::new()).ok().map(StreamId)
    }

    fn send(&self, stream: StreamId, message: &[u8]) -> bool {
        self.act_as(self.root) && hostcalls::send_grpc_stream_message(stream.0, Some(message), false).is_ok()
    }

    fn cancel(&self, stream: StreamId) {
        if self.act_as(self.root) {
            let _ = hostcalls::cancel_grpc_stream(stream.0);
        }
    }

    fn name_webhook(&self, id: &str) {
        let _ = hostcalls::set_property(vec!["stepward_webhook"], Some(id.as_bytes()));
    }

    fn reply(&self, request: RequestId, reply: &Reply, verdict: Verdict<'_>) -> bool {
        if !self.act_as(request.0) {
            return false;
        }
        let decision = [verdict.decision, ":", verdict.reason].concat();
        let _ = hostcalls::set_property(vec!["stepward_decision"], Some(decision.as_bytes()));
        respond(reply)
    }

    fn tick_every(&self, period: Duration) {
        if self.act_as(self.root) {
            let _ = hostcalls::set_tick_period(period);
        }
    }

    fn count(&self, counter: Counter) {
        if let Some((.., count)) = self.counters.iter().find(|(known, ..)| *known == counter) {
            count.set(count.get().saturating_add(1));
        }
        self.tally.borrow_mut().count(counter);
    }

    fn latency(&self, micros: u64) {
        self.latencies.borrow_mut().push(micros);
        self.tally.borrow_mut().record(micros);
    }

    fn tally(&self) -> Tally {
        self.tally.take()
    }

    fn log(&self, level: Level, text: &str) {
        let level = match level {
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
        };
        let _ = hostcalls::log(level, text);
    }
}

/// A property of the effective context; `None` if the context does not have it.
fn property(path: [&str; 2]) -> Option<Vec<u8>> {
    hostcalls::get_property(path.to_vec()).ok().flatten()
}

/// The ordinal of the VM of Envoy's main thread. Envoy makes one VM to try the module, then at once the one of the main
/// thread, and those of the workers when these start (`Wasm::createWasm`, and `set` of Envoy's thread-local slots). A VM that
/// replaces a dead one is a worker's, since only a request makes Envoy do that.
const MAIN_THREAD: u64 = 1;

/// The VM's [`ordinal`], shared by all its plugin configurations.
static ORDINAL: OnceLock<u64> = OnceLock::new();

/// Takes a number that no other VM of this process has, by shared data, which is all that VMs have in common.
fn ordinal() -> u64 {
    const KEY: &str = "stepward.vms";
    // Writing to an existing key fails with a number that is not its own, so this one writes only if the key is absent.
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

/// The bytes of `GrpcService { envoy_grpc: { cluster_name } }`, which are valid text since each length in them is below 128.
///
/// Envoy first reads an upstream as this message, and takes it for a cluster's name only if that fails. A name that can be
/// read as the message, such as `step-ca`, ends the whole process (`source/extensions/common/wasm/context.cc`).
fn grpc_service(cluster: &str) -> Option<String> {
    let inner = u8::try_from(cluster.len()).ok().filter(|length| *length < 126)?;
    let outer = inner.checked_add(2)?;
    String::from_utf8([&[0x0a, outer, 0x0a, inner], cluster.as_bytes()].concat()).ok()
}
