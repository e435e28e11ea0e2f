//! The seam between the filter's rules and the proxy that runs them.

#[cfg(target_arch = "wasm32")]
pub mod envoy;
pub mod fake;

use std::time::Duration;

use posture::reply::Reply;
use posture::time::UnixTime;

use crate::metrics::{Counter, Tally};

/// All headers of a request, including pseudo headers, in the order of arrival; names are in lower case.
#[derive(Clone, Debug, Default)]
pub struct Headers(pub Vec<(String, Vec<u8>)>);

impl Headers {
    /// Every header, name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }
}

/// An HTTP request, by the host's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

/// A stream to the sidecar, by the host's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// The end of a request, for the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// Decision: `allow`, `deny` or `refuse`.
    pub decision: &'static str,
    /// Reason: the code of a denial, or the cause of a refusal.
    pub reason: &'a str,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A change of state, such as a new stream.
    Info,
    /// The filter still serves, but worse.
    Warn,
}

/// The calls of the filter to its host. None of them may panic: a panic ends the VM and every request that waits in it.
pub trait Host {
    /// The wall clock; the VM has no other.
    fn now(&self) -> UnixTime;

    /// The headers of the current request; `None` if they cannot be read.
    fn headers(&self) -> Option<Headers>;

    /// The first `size` bytes of the current request's body, once it is complete.
    fn body(&self, size: usize) -> Option<Vec<u8>>;

    /// The id of the current request's connection, unique in this process.
    fn connection(&self) -> Option<u64>;

    /// The certificate that the TLS peer presented, in PEM.
    fn peer_certificate(&self) -> Option<Vec<u8>>;

    /// Address and port of the TLS peer.
    fn peer_address(&self) -> Option<String>;

    /// Opens a stream to the sidecar. Called only where there is no current request.
    fn open(&self) -> Option<StreamId>;

    /// Sends one message on a stream; false if the stream is gone.
    fn send(&self, stream: StreamId, message: &[u8]) -> bool;

    /// Ends a stream, and drops everything that is buffered for it. No event of the stream follows.
    fn cancel(&self, stream: StreamId);

    /// Names the webhook of the current request, for the access log.
    fn name_webhook(&self, id: &str);

    /// Answers a request, the current one or one that waits; false if the request is gone.
    fn reply(&self, request: RequestId, reply: &Reply, verdict: Verdict<'_>) -> bool;

    /// Sets the length of a tick from now on.
    fn tick_every(&self, period: Duration);

    /// Increments a counter.
    fn count(&self, counter: Counter);

    /// Records the latency of a request, in microseconds.
    fn latency(&self, micros: u64);

    /// Everything that was counted and recorded since the last call.
    fn tally(&self) -> Tally;

    /// Writes a line to Envoy's log.
    fn log(&self, level: Level, text: &str);
}
