//! Envoy as the host: its callbacks, and what it does for the filter.
//!
//! Envoy calls back with one context in effect, and lets another one act through `set_effective_context`: the stream to
//! the sidecar belongs to the root context, a reply to the request's. With every call it starts from the context called
//! (proxy-wasm-cpp-host `SaveRestoreContext`). Every call between Envoy and the VM is dear, so there is no callback and
//! no call here that nothing needs.

mod abi;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use posture::outcome::{Outcome, Refusal};
use posture::reply::{Reply, reply};
use posture::time::UnixTime;

use super::{Headers, Host, Level, RequestId, StreamId, Verdict};
use crate::config::Settings;
use crate::exchange::{Exchange, Worker};
use crate::metrics::{Counter, LATENCY, Tally};

/// What Envoy calls. A callback within another one, such as the end of a stream that cannot be opened, is dropped: the call of the
/// host that caused it returns an error.
#[allow(unsafe_code, reason = "Envoy finds callbacks by name, so their names are as they stand")]
mod callbacks {
    use super::{VM, Vm, abi, refuse};
    use crate::exchange::{Exchange, Worker};
    use crate::host::{RequestId, StreamId};

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_configure(root: u32, size: usize) -> u32 {
        act(|vm| vm.configure(root, size)).unwrap_or(false).into()
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_tick(root: u32) {
        act(|vm| {
            vm.root(root, |worker, host| {
                worker.on_tick(host);
                host.publish();
            })
        });
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_request_headers(context: u32, _: usize, end: u32) -> u32 {
        #[cfg(feature = "trap")]
        if super::headers().is_some_and(|headers| headers.iter().any(|(name, _)| name == "x-stepward-trap")) {
            std::process::abort();
        }
        let id = RequestId(context);
        if act(|vm| vm.begin(context, |worker, host| worker.on_headers(host, id, end != 0))).flatten().is_none() {
            refuse();
        }
        abi::PAUSE
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_request_body(context: u32, size: usize, end: u32) -> u32 {
        go_on(context, |worker, host, exchange| worker.on_body(host, exchange, size, end != 0))
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_request_trailers(context: u32, _: usize) -> u32 {
        go_on(context, Worker::on_trailers)
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_grpc_receive(root: u32, stream: u32, size: usize) {
        act(|vm| {
            vm.root(root, |worker, host| {
                let message = abi::buffer(abi::GRPC_MESSAGE, size).unwrap_or_default();
                worker.on_message(host, StreamId(stream), &message);
            })
        });
    }

    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_grpc_close(root: u32, stream: u32, _status: u32) {
        act(|vm| vm.root(root, |worker, host| worker.on_close(host, StreamId(stream))));
    }

    /// Envoy deletes a context with its request, answered or not. To be told so by `proxy_on_done` as well would be one
    /// more call for every request.
    #[unsafe(no_mangle)]
    extern "C" fn proxy_on_delete(context: u32) {
        act(|vm| vm.delete(context));
    }

    fn act<R>(event: impl FnOnce(&mut Vm) -> R) -> Option<R> {
        VM.with(|vm| vm.try_borrow_mut().ok().map(|mut vm| event(&mut vm)))
    }

    /// Every callback ends in a pause: the filter is terminal, and continuing is never an answer.
    fn go_on(context: u32, event: impl FnOnce(&mut Worker, &super::EnvoyHost, Exchange) -> Exchange) -> u32 {
        if act(|vm| vm.go_on(context, event)).flatten().is_none() {
            refuse();
        }
        abi::PAUSE
    }
}

thread_local! {
    static VM: RefCell<Vm> = const { RefCell::new(Vm { ordinal: None, roots: Vec::new(), requests: BTreeMap::new() }) };
}

/// Everything in one VM.
struct Vm {
    /// See [`ordinal`].
    ordinal: Option<u64>,
    /// One in most cases, by the number of its context; the newest is the last.
    roots: Vec<(u32, Root)>,
    /// Requests without a reply, each with its root, by the numbers of their contexts.
    requests: BTreeMap<u32, (u32, Exchange)>,
}

/// What one plugin configuration has made.
struct Root {
    settings: Settings,
    host: EnvoyHost,
    worker: Worker,
}

impl Vm {
    /// A plugin configuration has come; false keeps it from being used.
    ///
    /// Envoy names a request's root only by `proxy_on_context_create`, a call more for every request, so requests go to
    /// the newest root, and there is none beside it that would treat them in another way.
    fn configure(&mut self, root: u32, size: usize) -> bool {
        let json = if size == 0 { None } else { abi::buffer(abi::PLUGIN_CONFIGURATION, size) };
        let settings = match Settings::parse(&json.unwrap_or_default()) {
            Ok(settings) => settings,
            Err(error) => {
                abi::log(abi::ERROR, &error.to_string());
                return false;
            }
        };
        if self.roots.iter().any(|(_, other)| other.settings != settings) {
            abi::log(abi::ERROR, "another plugin configuration is in use in this VM; give this one a vm_id of its own");
            return false;
        }
        let Some(host) = EnvoyHost::new(root, &settings.cluster) else { return false };
        if abi::now().is_none() {
            abi::log(abi::ERROR, "there is no clock");
            return false;
        }
        // Envoy's clock stands still while it makes its VMs, so time alone would not tell them apart.
        let ordinal = *self.ordinal.get_or_insert_with(ordinal);
        let vm = host.now().as_nanos().unsigned_abs() ^ (ordinal << 48);
        let mut worker = Worker::new(settings.clone(), vm);
        if ordinal == MAIN_THREAD {
            worker = worker.of_main_thread();
        }
        worker.start(&host);
        self.roots.retain(|(known, _)| *known != root);
        self.roots.push((root, Root { settings, host, worker }));
        true
    }

    fn root(&mut self, root: u32, event: impl FnOnce(&mut Worker, &EnvoyHost)) {
        if let Some(found) = of(&mut self.roots, root) {
            found.host.called(root);
            event(&mut found.worker, &found.host);
        }
    }

    /// A request begins; `None` where there is nobody to judge it.
    fn begin(&mut self, context: u32, event: impl FnOnce(&mut Worker, &EnvoyHost) -> Exchange) -> Option<()> {
        let (id, root) = self.roots.last_mut()?;
        root.host.called(context);
        let exchange = event(&mut root.worker, &root.host);
        if !matches!(exchange, Exchange::Replied) {
            self.requests.insert(context, (*id, exchange));
        }
        Some(())
    }

    /// A request goes on; `None` where there is nobody to judge it. One that has its reply is let be.
    fn go_on(&mut self, context: u32, event: impl FnOnce(&mut Worker, &EnvoyHost, Exchange) -> Exchange) -> Option<()> {
        let Some((id, exchange)) = self.requests.get_mut(&context) else { return Some(()) };
        let Some(root) = of(&mut self.roots, *id) else {
            self.requests.remove(&context);
            return None;
        };
        root.host.called(context);
        *exchange = event(&mut root.worker, &root.host, std::mem::replace(exchange, Exchange::Replied));
        if matches!(exchange, Exchange::Replied) {
            self.requests.remove(&context);
        }
        Some(())
    }

    /// A context ends: a request's, or a root's, whose streams end with it.
    fn delete(&mut self, context: u32) {
        match self.requests.remove(&context) {
            Some((id, exchange)) => {
                if let Some(root) = of(&mut self.roots, id) {
                    root.worker.on_done(&root.host, &exchange);
                }
            }
            None => self.roots.retain(|(known, _)| *known != context),
        }
    }
}

fn of(roots: &mut [(u32, Root)], id: u32) -> Option<&mut Root> {
    roots.iter_mut().find(|(known, _)| *known == id).map(|(_, root)| root)
}

/// Answers the request at hand without a worker.
fn refuse() {
    let unavailable = reply(&Outcome::Refuse(Refusal::Internal));
    respond(&unavailable);
}

fn respond(reply: &Reply) -> bool {
    static HEADERS: LazyLock<Headers> =
        LazyLock::new(|| Headers::from_pairs(Reply::HEADERS.iter().map(|(name, value)| (*name, value.as_bytes()))).unwrap_or_default());
    abi::respond(reply.status, HEADERS.as_bytes(), &reply.body)
}

fn headers() -> Option<Headers> {
    abi::headers().and_then(Headers::new)
}

/// The service that the stream is opened to.
const SERVICE: &str = "stepward.v1.FilterService";
const METHOD: &str = "Attach";

/// The host's side of one VM.
struct EnvoyHost {
    root: u32,
    /// The context that the next call of the host acts for.
    effective: Cell<u32>,
    upstream: Vec<u8>,
    /// Each with its metric, and what was counted since the last tick: a call of the host for every count is dear.
    counters: Vec<(Counter, u32, Cell<u32>)>,
    latency: u32,
    /// Latencies since the last tick, likewise.
    latencies: RefCell<Vec<u64>>,
    /// What was counted since the last report.
    tally: RefCell<Tally>,
}

impl EnvoyHost {
    fn new(root: u32, cluster: &str) -> Option<Self> {
        let define = |kind, name: &str| abi::define_metric(kind, name);
        Some(Self {
            root,
            effective: Cell::new(root),
            upstream: grpc_service(cluster)?,
            counters: Counter::all()
                .map(|counter| Some((counter, define(abi::COUNTER, &counter.name())?, Cell::new(0))))
                .collect::<Option<_>>()?,
            latency: define(abi::HISTOGRAM, LATENCY)?,
            latencies: RefCell::default(),
            tally: RefCell::default(),
        })
    }

    /// Adds to Envoy's counters and histogram what was counted and recorded.
    fn publish(&self) {
        for micros in self.latencies.take() {
            abi::record(self.latency, micros);
        }
        for (_, id, count) in &self.counters {
            if count.get() > 0 {
                abi::add(*id, i64::from(count.take()));
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
            if !abi::act_as(context) {
                return false;
            }
            self.effective.set(context);
        }
        true
    }
}

impl Host for EnvoyHost {
    fn now(&self) -> UnixTime {
        UnixTime::from_nanos(abi::now().and_then(|time| i64::try_from(time).ok()).unwrap_or(0))
    }

    fn headers(&self) -> Option<Headers> {
        headers()
    }

    fn body(&self, size: usize) -> Option<Vec<u8>> {
        abi::buffer(abi::REQUEST_BODY, size)
    }

    fn connection(&self) -> Option<u64> {
        let bytes = abi::property("connection\0id")?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    }

    fn peer_certificate(&self) -> Option<Vec<u8>> {
        abi::property("connection\0peer_certificate")
    }

    fn peer_address(&self) -> Option<String> {
        String::from_utf8(abi::property("source\0address")?).ok()
    }

    fn open(&self) -> Option<StreamId> {
        abi::open_stream(&self.upstream, SERVICE, METHOD).map(StreamId)
    }

    fn send(&self, stream: StreamId, message: &[u8]) -> bool {
        self.act_as(self.root) && abi::send(stream.0, message)
    }

    fn cancel(&self, stream: StreamId) {
        if self.act_as(self.root) {
            abi::cancel(stream.0);
        }
    }

    fn name_webhook(&self, id: &str) {
        abi::set_property("stepward_webhook", id.as_bytes());
    }

    fn reply(&self, request: RequestId, reply: &Reply, verdict: Verdict<'_>) -> bool {
        if !self.act_as(request.0) {
            return false;
        }
        abi::set_property("stepward_decision", [verdict.decision, ":", verdict.reason].concat().as_bytes());
        respond(reply)
    }

    fn tick_every(&self, period: Duration) {
        if self.act_as(self.root) {
            abi::tick_every(u32::try_from(period.as_millis()).unwrap_or(u32::MAX));
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
            Level::Info => abi::INFO,
            Level::Warn => abi::WARN,
        };
        abi::log(level, text);
    }
}

/// The number of the VM of Envoy's main thread. Envoy makes one VM to try the module, then at once the one of the main thread,
/// and those of the workers when these start (`Wasm::createWasm`, and `set` of Envoy's thread-local slots). A VM that replaces a
/// dead one is a worker's, since only a request makes Envoy do that.
const MAIN_THREAD: u64 = 1;

/// A number that no other VM of this process took: shared data is all that VMs have in common.
fn ordinal() -> u64 {
    const KEY: &str = "stepward.vms";
    // Writing to a key that is there fails with a number that is not its own, so this one means: if it is absent.
    const ABSENT: u32 = u32::MAX;
    for _ in 0..1000 {
        let (taken, cas) = abi::shared_data(KEY);
        let taken = taken.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        if abi::set_shared_data(KEY, &taken.wrapping_add(1).to_le_bytes(), if cas == 0 { ABSENT } else { cas }) {
            return taken;
        }
    }
    0
}

/// The bytes of `GrpcService { envoy_grpc: { cluster_name } }`.
///
/// Envoy first reads an upstream as this message and takes it for a cluster's name only if that fails; a name that
/// happens to be readable, such as `step-ca`, ends the whole process (`source/extensions/common/wasm/context.cc`).
fn grpc_service(cluster: &str) -> Option<Vec<u8>> {
    let inner = u8::try_from(cluster.len()).ok().filter(|length| *length < 126)?;
    let outer = inner.checked_add(2)?;
    Some([&[0x0a, outer, 0x0a, inner], cluster.as_bytes()].concat())
}
