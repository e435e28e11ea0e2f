//! The seam between the filter's rules and the proxy that runs them.

#[cfg(target_arch = "wasm32")]
pub mod envoy;
pub mod fake;
mod headers;

use std::time::Duration;

use posture::reply::Reply;
use posture::time::UnixTime;

use crate::metrics::{Counter, Tally};
pub use headers::Headers;

/// One HTTP request, as the host names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

/// One stream to the sidecar, as the host names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// How a request ended, for the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// `allow`, `deny` or `refuse`.
    pub decision: &'static str,
    /// The code of a denial, or the cause of a refusal.
    pub reason: &'a str,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A change of life.
    Info,
    /// Served, but worse.
    Warn,
}

/// What the filter asks of its host. None of it may panic: a panic ends the VM and everyone who waits in it.
pub trait Host {
    /// The wall clock; the VM has no other.
    fn now(&self) -> UnixTime;

    /// All headers of the request at hand, pseudo headers included, names in lower case.
    /// `None` where they cannot be read.
    fn headers(&self) -> Option<Headers>;

    /// The first `size` bytes of the request's body, once it is complete.
    fn body(&self, size: usize) -> Option<Vec<u8>>;

    /// A number that no other connection of this process has.
    fn connection(&self) -> Option<u64>;

    /// The certificate that the TLS peer presented, PEM.
    fn peer_certificate(&self) -> Option<Vec<u8>>;

    /// Address and port of the TLS peer.
    fn peer_address(&self) -> Option<String>;

    /// Opens a stream to the sidecar. Called where no request is at hand only.
    fn open(&self) -> Option<StreamId>;

    /// Sends one message; false where the stream is gone.
    fn send(&self, stream: StreamId, message: &[u8]) -> bool;

    /// Gives a stream up with everything that is buffered for it. Nothing more is heard of it.
    fn cancel(&self, stream: StreamId);

    /// Names the webhook of the request at hand, for the access log.
    fn name_webhook(&self, id: &str);

    /// Answers a request, at hand or waiting; false where it has gone.
    fn reply(&self, request: RequestId, reply: &Reply, verdict: Verdict<'_>) -> bool;

    /// Asks for ticks of this length from now on.
    fn tick_every(&self, period: Duration);

    /// Counts one.
    fn count(&self, counter: Counter);

    /// Records how long a request took, in microseconds.
    fn latency(&self, micros: u64);

    /// Everything that was counted and recorded since this was last called.
    fn tally(&self) -> Tally;

    /// Writes to Envoy's log.
    fn log(&self, level: Level, text: &str);
}
