//! A host in memory, with a clock that stands still until it is moved. It keeps the rules that Envoy keeps, and records every
//! breach by the filter.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use posture::reply::Reply;
use posture::time::UnixTime;

use super::{Headers, Host, Level, RequestId, StreamId, Verdict};
use crate::metrics::{Counter, Tally};

/// A host in memory.
#[derive(Debug, Default)]
pub struct FakeHost {
    now: Cell<i64>,
    /// Number of readings of the clock.
    pub clock_reads: Cell<usize>,
    /// Headers of the current request.
    pub headers: RefCell<Vec<(String, Vec<u8>)>>,
    /// Whether headers cannot be read.
    pub headers_unreadable: Cell<bool>,
    /// Body of the current request.
    pub body: RefCell<Vec<u8>>,
    /// Whether less of the body is given than was asked for.
    pub body_short: Cell<bool>,
    /// Connection of the current request, and the certificate of its peer.
    pub peer: RefCell<Option<(u64, Vec<u8>)>>,
    /// Number of readings of a peer's certificate.
    pub certificate_reads: Cell<usize>,
    /// Whether streams can be opened.
    pub reachable: Cell<bool>,
    /// Whether every send on an open stream fails.
    pub deaf: Cell<bool>,
    /// Number of attempts to open a stream.
    pub opens: Cell<usize>,
    /// Streams that the filter gave up.
    pub cancelled: RefCell<Vec<StreamId>>,
    /// Every latency, in microseconds.
    pub latencies: RefCell<Vec<u64>>,
    live: RefCell<BTreeSet<RequestId>>,
    next_stream: Cell<u32>,
    /// Open streams, with the messages that were sent on each.
    pub streams: RefCell<BTreeMap<StreamId, Vec<Vec<u8>>>>,
    /// Every webhook that was named for the access log, in order.
    pub webhooks: RefCell<Vec<String>>,
    /// Every reply, in order.
    pub replies: RefCell<Vec<(RequestId, Reply)>>,
    /// Replies since [`Self::begin_callback`].
    pub in_callback: Cell<usize>,
    /// Largest number of replies in one callback.
    pub most_in_callback: Cell<usize>,
    /// Length of a tick, as last set.
    pub tick: Cell<Duration>,
    /// Every line of the log.
    pub logged: RefCell<Vec<String>>,
    /// Every increment of a counter.
    pub counted: RefCell<Vec<Counter>>,
    /// Counts since the last call of `tally`.
    tally: RefCell<Tally>,
    /// Number of replies to requests that had one already: a breach.
    pub twice: Cell<usize>,
}

impl FakeHost {
    /// A host whose sidecar can be reached, at this time in nanoseconds.
    pub fn new(now: i64) -> Self {
        let host = Self::default();
        host.now.set(now);
        host.reachable.set(true);
        host
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.now.set(self.now.get().saturating_add(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX)));
    }

    /// Sets the clock, in nanoseconds.
    pub fn set(&self, now: i64) {
        self.now.set(now);
    }

    /// Begins a request.
    pub fn begin(&self, request: RequestId) {
        self.live.borrow_mut().insert(request);
    }

    /// Ends a request, which cannot be answered any more.
    pub fn end(&self, request: RequestId) {
        self.live.borrow_mut().remove(&request);
    }

    /// Begins a callback: the replies of one callback are counted together.
    pub fn begin_callback(&self) {
        self.in_callback.set(0);
    }

    /// Ends a stream, as the sidecar or the network does.
    pub fn break_stream(&self, stream: StreamId) -> bool {
        self.streams.borrow_mut().remove(&stream).is_some()
    }

    /// The replies to a request.
    pub fn replies_to(&self, request: RequestId) -> Vec<Reply> {
        self.replies.borrow().iter().filter(|(to, _)| *to == request).map(|(_, reply)| reply.clone()).collect()
    }

    /// The number of times that a counter was incremented.
    pub fn count_of(&self, counter: Counter) -> usize {
        self.counted.borrow().iter().filter(|counted| **counted == counter).count()
    }
}

impl Host for FakeHost {
    fn now(&self) -> UnixTime {
        self.clock_reads.set(self.clock_reads.get().saturating_add(1));
        UnixTime::from_nanos(self.now.get())
    }

    fn headers(&self) -> Option<Headers> {
        if self.headers_unreadable.get() {
            return None;
        }
        Some(Headers(self.headers.borrow().clone()))
    }

    fn body(&self, size: usize) -> Option<Vec<u8>> {
        let size = size.saturating_sub(usize::from(self.body_short.get()));
        self.body.borrow().get(..size).filter(|body| !body.is_empty()).map(<[u8]>::to_vec)
    }

    fn connection(&self) -> Option<u64> {
        self.peer.borrow().as_ref().map(|(id, _)| *id)
    }

    fn peer_certificate(&self) -> Option<Vec<u8>> {
        self.certificate_reads.set(self.certificate_reads.get().saturating_add(1));
        self.peer.borrow().as_ref().map(|(_, pem)| pem.clone()).filter(|pem| !pem.is_empty())
    }

    fn peer_address(&self) -> Option<String> {
        Some("192.0.2.1:4711".to_owned())
    }

    fn open(&self) -> Option<StreamId> {
        self.opens.set(self.opens.get().saturating_add(1));
        if !self.reachable.get() {
            return None;
        }
        let id = StreamId(self.next_stream.get());
        self.next_stream.set(id.0.wrapping_add(1));
        self.streams.borrow_mut().insert(id, Vec::new());
        Some(id)
    }

    fn send(&self, stream: StreamId, message: &[u8]) -> bool {
        if self.deaf.get() {
            return false;
        }
        match self.streams.borrow_mut().get_mut(&stream) {
            Some(sent) => {
                sent.push(message.to_vec());
                true
            }
            None => false,
        }
    }

    fn cancel(&self, stream: StreamId) {
        self.cancelled.borrow_mut().push(stream);
        self.streams.borrow_mut().remove(&stream);
    }

    fn name_webhook(&self, id: &str) {
        self.webhooks.borrow_mut().push(id.to_owned());
    }

    fn reply(&self, request: RequestId, reply: &Reply, _verdict: Verdict<'_>) -> bool {
        if !self.live.borrow().contains(&request) {
            return false;
        }
        if !self.replies_to(request).is_empty() {
            self.twice.set(self.twice.get().saturating_add(1));
        }
        self.replies.borrow_mut().push((request, reply.clone()));
        self.in_callback.set(self.in_callback.get().saturating_add(1));
        self.most_in_callback.set(self.most_in_callback.get().max(self.in_callback.get()));
        true
    }

    fn tick_every(&self, period: Duration) {
        self.tick.set(period);
    }

    fn count(&self, counter: Counter) {
        self.counted.borrow_mut().push(counter);
        self.tally.borrow_mut().count(counter);
    }

    fn latency(&self, micros: u64) {
        self.latencies.borrow_mut().push(micros);
        self.tally.borrow_mut().record(micros);
    }

    fn tally(&self) -> Tally {
        self.tally.take()
    }

    fn log(&self, _level: Level, text: &str) {
        self.logged.borrow_mut().push(text.to_owned());
    }
}
