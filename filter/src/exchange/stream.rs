//! The streams to the sidecar: one for new questions, and those that still owe answers.

use std::collections::BTreeMap;
use std::time::Duration;

use posture::time::UnixTime;
use prost::Message as _;
use proto::v1::{FilterHello, FilterMessage, filter_message};

use crate::host::{Host, Level, StreamId};
use crate::metrics::Counter;

/// The streams of one worker.
#[derive(Debug)]
pub(super) struct Streams {
    vm: u64,
    /// Whether this is the VM of Envoy's main thread.
    pub(super) main: bool,
    /// Open streams, two or three at most.
    streams: Vec<(StreamId, Stream)>,
    retry_at: Option<UnixTime>,
    failures: u32,
}

#[derive(Debug)]
struct Stream {
    state: State,
    /// Name of the sidecar, for the log; empty until it has said it.
    sidecar: String,
    since: UnixTime,
    /// Questions in Envoy's buffers or with the sidecar, even if their request is gone: time and length of each.
    asked: BTreeMap<u64, (UnixTime, usize)>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The sidecar has not sent anything: it may be stopped behind an open socket, so nothing is asked.
    Opening,
    /// The sidecar has sent keys.
    Attached,
    /// The sidecar answers the questions that it has, and takes no more.
    Draining,
}

/// Digest of the source, if the build sets it.
const BUILD: &str = match option_env!("STEPWARD_BUILD") {
    Some(build) => build,
    None => "",
};
/// Shortest wait before a stream is opened again. It doubles up to the longest, and a random half of it is left out.
const SHORTEST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_millis(500);
/// Time in which the sidecar must send something on a new stream.
const OPENING: Duration = Duration::from_secs(2);

impl Streams {
    pub(super) const fn new(vm: u64) -> Self {
        Self { vm, main: false, streams: Vec::new(), retry_at: None, failures: 0 }
    }

    /// The stream for new questions.
    pub(super) fn current(&self) -> Option<StreamId> {
        self.streams.iter().find(|(_, stream)| stream.state == State::Attached).map(|(id, _)| *id)
    }

    /// Returns whether a stream has not ended.
    pub(super) fn has(&self, id: StreamId) -> bool {
        self.streams.iter().any(|(known, _)| *known == id)
    }

    /// Notes the name that the sidecar of a stream gives itself.
    pub(super) fn name(&mut self, id: StreamId, name: String) {
        if let Some(stream) = self.get(id) {
            stream.sidecar = name;
        }
    }

    /// Returns the sidecar of a stream, in words.
    pub(super) fn sidecar(&self, id: StreamId) -> String {
        let named = self.streams.iter().find(|(known, _)| *known == id).map(|(_, stream)| stream.sidecar.as_str());
        match named.unwrap_or_default() {
            "" => "the sidecar".to_owned(),
            name => format!("the sidecar {name}"),
        }
    }

    /// Opens a stream if there is none for new questions, and the wait is over.
    pub(super) fn keep_open(&mut self, host: &impl Host, now: UnixTime) {
        if self.streams.iter().any(|(_, stream)| stream.state != State::Draining) {
            return;
        }
        // A wait that is longer than the longest means that the clock was set back.
        if self.retry_at.is_some_and(|at| now < at && at < now.saturating_add(LONGEST_RETRY)) {
            return;
        }
        let hello = FilterHello { version: env!("CARGO_PKG_VERSION").to_owned(), build: BUILD.to_owned(), vm: self.vm, main: self.main };
        let hello = FilterMessage { message: Some(filter_message::Message::Hello(hello)) }.encode_to_vec();
        match host.open() {
            Some(id) if host.send(id, &hello) => {
                host.count(Counter::StreamOpened);
                self.streams
                    .push((id, Stream { state: State::Opening, sidecar: String::new(), since: now, asked: BTreeMap::new(), bytes: 0 }));
            }
            Some(id) => {
                host.cancel(id);
                self.back_off(now);
            }
            None => self.back_off(now),
        }
    }

    /// Ends the streams on which no answer can be expected, and returns them.
    pub(super) fn give_up(&mut self, host: &impl Host, now: UnixTime, deadline: Duration) -> Vec<StreamId> {
        let older = |since: UnixTime, than: Duration| since.saturating_add(than) < now;
        let hopeless: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, stream)| {
                let silent = stream.asked.first_key_value().is_some_and(|(_, (at, _))| older(*at, deadline.saturating_mul(2)));
                silent
                    || match stream.state {
                        State::Opening => older(stream.since, OPENING),
                        State::Attached => false,
                        State::Draining => older(stream.since, deadline.saturating_mul(2)),
                    }
            })
            .map(|(id, _)| *id)
            .collect();
        for id in &hopeless {
            host.log(Level::Warn, &format!("{} does not answer; giving the stream up", self.sidecar(*id)));
            host.count(Counter::StreamReset);
            host.cancel(*id);
            self.remove(*id, now);
        }
        hopeless
    }

    /// Notes that keys came on a stream; false if they do not count, since the stream drains or is gone: another sidecar may
    /// have newer ones.
    pub(super) fn attached(&mut self, id: StreamId) -> bool {
        match self.get(id).map(|stream| &mut stream.state) {
            Some(state @ State::Opening) => {
                *state = State::Attached;
                self.failures = 0;
                self.retry_at = None;
                true
            }
            Some(State::Attached) => true,
            Some(State::Draining) | None => false,
        }
    }

    /// Notes that the sidecar takes no more questions on a stream.
    pub(super) fn drain(&mut self, id: StreamId, now: UnixTime) {
        if let Some(stream) = self.get(id) {
            stream.state = State::Draining;
            stream.since = now;
        }
    }

    /// Removes a stream that has ended.
    pub(super) fn remove(&mut self, id: StreamId, now: UnixTime) {
        // A stream that was attached is opened again at the next tick: a restarted sidecar is back at once.
        let opening = self.get(id).is_some_and(|stream| stream.state == State::Opening);
        self.streams.retain(|(known, _)| *known != id);
        if opening {
            self.back_off(now);
        }
    }

    /// Notes a question that was sent.
    pub(super) fn asked(&mut self, id: StreamId, sequence: u64, bytes: usize, now: UnixTime) {
        if let Some(stream) = self.get(id) {
            stream.asked.insert(sequence, (now, bytes));
            stream.bytes = stream.bytes.saturating_add(bytes);
        }
    }

    /// Notes an answer; returns whether it belongs to a question that was asked.
    pub(super) fn answered(&mut self, id: StreamId, sequence: u64) -> bool {
        let Some(stream) = self.get(id) else { return false };
        let Some((_, bytes)) = stream.asked.remove(&sequence) else { return false };
        stream.bytes = stream.bytes.saturating_sub(bytes);
        true
    }

    /// Size of all unanswered questions, in bytes.
    pub(super) fn asked_bytes(&self) -> usize {
        self.streams.iter().map(|(_, stream)| stream.bytes).fold(0, usize::saturating_add)
    }

    fn get(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|(known, _)| *known == id).map(|(_, stream)| stream)
    }

    fn back_off(&mut self, now: UnixTime) {
        let doubled = SHORTEST_RETRY.saturating_mul(1 << self.failures.min(4)).min(LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        // The VM has no random numbers; it is enough that workers do not move in step.
        let noise = (now.as_nanos().unsigned_abs() ^ self.vm).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
        let jitter = (doubled / 2).saturating_mul(u32::try_from(noise).unwrap_or(0)) / 0x1_0000;
        self.retry_at = Some(now.saturating_add(doubled.saturating_sub(jitter)));
    }
}
