//! The state machine of one worker: requests, which wait and are answered once, and the stream to the sidecar.
//!
//! Envoy runs one single-threaded VM for each worker, so all state is plain data behind `&mut`. The promises, in any order of
//! events: every request gets at most one reply, and exactly one unless its client goes first; no request is continued; an
//! allow is sent only as the answer to the request's own question.

mod head;
mod reports;
mod stream;
mod table;
#[cfg(test)]
mod tests;

pub use head::Head;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use posture::caller::Peer;
use posture::outcome::{Data, Denial, Outcome, Refusal};
use posture::reply::reply;
use posture::shape::{Mode, shape};
use posture::time::UnixTime;
use prost::Message as _;
use proto::v1::{
    Answer, FilterMessage, Mode as WireMode, Question, SidecarMessage, Verdict as WireVerdict, WebhookSet, filter_message, sidecar_message,
};

use crate::config::Settings;
use crate::host::{Host, Level, RequestId, StreamId, Verdict};
use crate::keys::{Admission, Keys};
use crate::metrics::Counter;
use head::Connection;
use reports::Reports;
use stream::Streams;
use table::{Table, Waiting};

/// The state of one worker.
#[derive(Debug)]
pub struct Worker {
    settings: Settings,
    keys: Option<Keys>,
    /// Number of key sets received so far; the revision of the keys starts anew with every sidecar.
    generation: u64,
    streams: Streams,
    table: Table,
    connections: BTreeMap<u64, Rc<Connection>>,
    /// Size of `connections`, in bytes.
    connections_bytes: usize,
    complaints: Complaints,
    /// Time of the last reading of the clock, for uses in which a tick more or less does not matter.
    now: UnixTime,
    reports: Reports,
    period: Duration,
}

/// The state of one request, from its headers on. It is dropped with the request.
#[derive(Debug)]
pub enum Exchange {
    /// The request's body is still coming.
    Body(Box<Head>),
    /// The request waits under this sequence number.
    Waiting(u64),
    /// The request has its reply.
    Replied,
}

/// A request that was not proven.
#[derive(Debug)]
struct Unproven {
    refusal: Refusal,
    /// The request's webhook, and the age of its timestamp in nanoseconds, if only the timestamp is wrong.
    skew: Option<(String, i64)>,
}

impl From<Refusal> for Unproven {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, skew: None }
    }
}

/// Ticks while nothing is due: the precision of deadlines.
const IDLE_TICK: Duration = Duration::from_millis(50);
/// Length of a tick while replies are due: the shortest that Envoy has, since ten thousand requests that came at once must be
/// answered between their deadline and the listener's own limit.
const BUSY_TICK: Duration = Duration::from_millis(1);
/// Most replies in one callback. 400 overflow V8's stack and end the VM, since Envoy sends them nested after the callback.
const REPLIES_AT_ONCE: usize = 64;
/// Most connections that are remembered; beyond it certificates are read again. Envoy does not say when a connection ends.
const CONNECTIONS: usize = 1024;
/// Most bytes of all remembered connections: Envoy has no bound for what V8 holds.
const CONNECTIONS_BYTES: usize = 4 << 20;
/// Status of gRPC by which a sidecar refuses the whole stream.
const PERMISSION_DENIED: u32 = 7;
/// Lines in a minute about certificates that cannot be read, which whoever gets past TLS can cause, and about sidecars that refuse.
const COMPLAINTS: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);

/// A budget of lines in Envoy's log.
#[derive(Debug, Default)]
struct Complaints {
    /// End of the current minute.
    until: Option<UnixTime>,
    written: u32,
    left_out: u64,
}

impl Complaints {
    /// The number of lines left out since the last one, if one more may be written; `None` if not.
    fn admits(&mut self, now: UnixTime) -> Option<u64> {
        // A clock that was set back begins a minute too.
        if self.until.is_none_or(|until| now >= until || until > now.saturating_add(MINUTE)) {
            self.until = Some(now.saturating_add(MINUTE));
            self.written = 0;
        }
        if self.written >= COMPLAINTS {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.written = self.written.saturating_add(1);
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Worker {
    /// Makes a worker that knows nothing yet. `vm` tells it from every other VM that the sidecar hears of.
    pub fn new(settings: Settings, vm: u64) -> Self {
        Self {
            table: Table::new(settings.max_waiting, settings.max_waiting_bytes),
            streams: Streams::new(vm),
            keys: None,
            generation: 0,
            connections: BTreeMap::new(),
            connections_bytes: 0,
            complaints: Complaints::default(),
            now: UnixTime::from_nanos(0),
            reports: Reports::default(),
            period: Duration::ZERO,
            settings,
        }
    }

    /// Marks the worker as the one of Envoy's main thread, which has a VM but no requests.
    pub fn of_main_thread(mut self) -> Self {
        self.streams.main = true;
        self
    }

    /// Starts the ticks, and opens the first stream.
    pub fn start(&mut self, host: &impl Host) {
        self.now = host.now();
        self.streams.keep_open(host, self.now);
        self.flush(host);
    }

    /// Handles the headers of a request.
    pub fn on_headers(&mut self, host: &impl Host, request: RequestId, end: bool) -> Exchange {
        let Some(headers) = host.headers() else { return refuse(host, request, Refusal::Internal) };
        let judged = shape(headers.iter());
        let mut head = match judged {
            Ok(shape) => Head {
                request,
                since: self.now,
                arrived: None,
                shape,
                connection: self.connection(host),
                admitted: None,
                limit: self.settings.body_limit,
                deadline: self.settings.deadline(),
                size: 0,
            },
            Err(refusal) => return refuse(host, request, refusal),
        };
        // Other letters could make a line of the log look like another.
        if head.shape.webhook_id.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            host.name_webhook(&head.shape.webhook_id);
        }
        if let Err(refusal) = self.admit(&mut head) {
            return refuse(host, request, refusal);
        }
        if head.shape.content_length.is_some_and(|length| length > u64::from(head.limit)) {
            return refuse(host, request, body_too_large(&head));
        }
        if end { self.complete(host, head, 0) } else { Exchange::Body(Box::new(head)) }
    }

    /// Handles more of a body; `size` is the whole of what has come.
    pub fn on_body(&mut self, host: &impl Host, exchange: Exchange, size: usize, end: bool) -> Exchange {
        let Exchange::Body(mut head) = exchange else { return exchange };
        head.size = size;
        if size > usize::try_from(head.limit).unwrap_or(usize::MAX) {
            return refuse(host, head.request, body_too_large(&head));
        }
        if end { self.complete(host, *head, size) } else { Exchange::Body(head) }
    }

    /// Handles trailers, which end a body that had no end of its own.
    pub fn on_trailers(&mut self, host: &impl Host, exchange: Exchange) -> Exchange {
        match exchange {
            Exchange::Body(head) => {
                let size = head.size;
                self.complete(host, *head, size)
            }
            other => other,
        }
    }

    /// Handles the end of a request, answered or not.
    pub fn on_done(&mut self, host: &impl Host, exchange: &Exchange) {
        let unanswered = match exchange {
            Exchange::Body(_) => true,
            Exchange::Waiting(sequence) => self.table.remove(*sequence).is_some(),
            Exchange::Replied => false,
        };
        if unanswered {
            host.count(Counter::ClientGone);
        }
    }

    /// Handles a tick.
    pub fn on_tick(&mut self, host: &impl Host) {
        let now = host.now();
        self.now = now;
        for (sequence, refusal) in self.table.overdue(now) {
            self.table.decide(sequence, Outcome::Refuse(refusal));
        }
        // The webhooks' deadlines may be longer than the one in Envoy's configuration.
        let deadline = self.keys.as_ref().map_or(Duration::ZERO, |keys| keys.longest_deadline).max(self.settings.deadline());
        for lost in self.streams.give_up(host, now, deadline) {
            self.table.unask(lost);
        }
        self.streams.keep_open(host, now);
        self.flush(host);
        self.report(host);
    }

    /// Handles a message of the sidecar.
    pub fn on_message(&mut self, host: &impl Host, stream: StreamId, message: &[u8]) {
        let Ok(message) = SidecarMessage::decode(message) else {
            host.log(Level::Warn, "the sidecar sent what is no message; giving the stream up");
            host.count(Counter::StreamReset);
            host.cancel(stream);
            self.lose(host, stream);
            return;
        };
        match message.message {
            Some(sidecar_message::Message::Hello(hello)) => {
                self.streams.name(stream, printable(&hello.name));
                let sidecar = self.streams.sidecar(stream);
                host.log(Level::Info, &format!("attached to {sidecar}, release {}", printable(&hello.version)));
            }
            Some(sidecar_message::Message::Webhooks(set)) => self.take_keys(host, stream, set),
            Some(sidecar_message::Message::Answer(answer)) => self.answer(host, stream, &answer),
            Some(sidecar_message::Message::Drain(_)) => {
                host.log(Level::Info, &format!("{} drains; asking the rest on the next stream", self.streams.sidecar(stream)));
                self.streams.drain(stream, self.now);
            }
            Some(sidecar_message::Message::Reported(reported)) => self.reports.taken(stream, reported.number),
            None => {}
        }
    }

    /// Replaces the webhooks, and judges the requests that waited for them.
    fn take_keys(&mut self, host: &impl Host, stream: StreamId, set: WebhookSet) {
        let known = self.streams.current();
        if !self.streams.attached(stream) {
            return;
        }
        if known != Some(stream) {
            self.reports.attached();
        }
        host.count(Counter::KeysReceived);
        self.keys = Some(Keys::new(set));
        self.generation = self.generation.wrapping_add(1);
        self.prove_waiting();
        self.flush(host);
    }

    /// Handles the end of a stream from the other side, with the status of gRPC that it ended with.
    pub fn on_close(&mut self, host: &impl Host, stream: StreamId, status: u32) {
        host.count(Counter::StreamLost);
        if status == PERMISSION_DENIED
            && let Some(left_out) = self.complaints.admits(host.now())
        {
            let sidecar = self.streams.sidecar(stream);
            host.log(Level::Warn, &format!("{sidecar} refuses this Envoy: its client certificate has no name of `names` in [filter] there, or is not for clients ({left_out} such lines left out)"));
        }
        self.lose(host, stream);
    }

    fn lose(&mut self, host: &impl Host, stream: StreamId) {
        self.streams.remove(stream, self.now);
        self.table.unask(stream);
        self.flush(host);
    }

    /// Admits the caller (step 2) as soon as the webhook is known, and takes over the webhook's limits.
    fn admit(&self, head: &mut Head) -> Result<(), Refusal> {
        let Some(keys) = &self.keys else { return Ok(()) };
        if head.admitted == Some(self.generation) {
            return Ok(());
        }
        if let Admission::Webhook(webhook) = keys.admit_caller(&head.shape, head.connection.peer.as_ref())? {
            head.limit = webhook.body_limit;
            head.deadline = webhook.deadline;
            head.admitted = Some(self.generation);
        }
        Ok(())
    }

    /// Handles a complete request: proves it and asks, or lets it wait until it can be proven.
    fn complete(&mut self, host: &impl Host, mut head: Head, size: usize) -> Exchange {
        let request = head.request;
        let body = match host.body(size) {
            Some(body) if body.len() == size => body,
            None if size == 0 => Vec::new(),
            _ => return refuse(host, request, Refusal::Internal),
        };
        let sequence = self.table.next_sequence();
        let waiting = if self.keys.is_some() {
            self.prove(sequence, head, body, || host.now()).map_err(|unproven| self.note(unproven))
        } else {
            head.arrived = Some(host.now());
            Ok(Waiting::unproven(head, body))
        };
        if let Ok(waiting) = &waiting {
            self.now = waiting.arrived;
        }
        match waiting.and_then(|waiting| self.table.insert(sequence, waiting, self.streams.asked_bytes())) {
            Ok(()) => {
                self.ask(host, sequence);
                Exchange::Waiting(sequence)
            }
            // As for a body that is too large: without keys the caller is not known.
            Err(_) if self.keys.is_none() => refuse(host, request, Refusal::NoKeys),
            Err(refusal) => refuse(host, request, refusal),
        }
    }

    /// Takes steps 2 to 4, and makes the question. The clock is read between steps 3 and 4, since a forged request is not
    /// worth the call.
    fn prove(&self, sequence: u64, mut head: Head, body: Vec<u8>, now: impl Fn() -> UnixTime) -> Result<Waiting, Unproven> {
        self.admit(&mut head)?;
        let keys = self.keys.as_ref().ok_or(Refusal::NoKeys)?;
        let proven = keys.prove(&head.shape, &body, || head.arrived.unwrap_or_else(now));
        let arrived = proven.map_err(|unproven| Unproven {
            refusal: unproven.refusal,
            skew: unproven.age.map(|age| (head.shape.webhook_id.clone(), age)),
        })?;
        let Head { request, since, shape, connection, deadline, .. } = head;
        let deadline = since.saturating_add(deadline);
        let binding = shape.signature.binding(&shape.webhook_id);
        let question = Question {
            sequence,
            deadline_unix_nanos: u64::try_from(deadline.as_nanos()).unwrap_or(0),
            webhook_id: shape.webhook_id,
            signature: shape.signature.as_bytes().to_vec(),
            revision: keys.revision,
            body: body.into(),
            peer_certificate: connection.der.clone(),
            mode: match shape.mode {
                None => WireMode::Unspecified,
                Some(Mode::MobileDevice) => WireMode::MobileDevice,
                Some(Mode::Computer) => WireMode::Computer,
            }
            .into(),
            peer_address: connection.address.clone(),
            traceparent: shape.traceparent,
            tracestate: shape.tracestate,
            request_id: shape.request_id,
        };
        let message = FilterMessage { message: Some(filter_message::Message::Question(question)) }.encode_to_vec();
        Ok(Waiting::proven(request, arrived, deadline, binding, message))
    }

    /// Judges the requests that waited for keys.
    fn prove_waiting(&mut self) {
        let now = self.now;
        for (sequence, head, body) in self.table.take_unproven() {
            match self.prove(sequence, *head, body, || now) {
                Ok(waiting) => self.table.replace(sequence, waiting),
                Err(unproven) => {
                    let refusal = self.note(unproven);
                    self.table.decide(sequence, Outcome::Refuse(refusal));
                }
            }
        }
    }

    /// Notes what an unproven request says of its caller's clock, and returns the refusal.
    fn note(&mut self, unproven: Unproven) -> Refusal {
        if let Some((webhook, age)) = unproven.skew {
            self.reports.skewed(webhook, age.saturating_neg());
        }
        unproven.refusal
    }

    /// Sends the sidecar a report of what was counted, if one is due.
    fn report(&mut self, host: &impl Host) {
        let Some(stream) = self.streams.current() else { return };
        let waiting = self.waiting();
        let streams = &self.streams;
        if !self.reports.send(host, stream, |id| streams.has(id), self.now, waiting) {
            self.streams.remove(stream, self.now);
            self.table.unask(stream);
        }
    }

    /// Number of requests that wait for an answer, and bytes that wait or are sent and unanswered.
    pub fn waiting(&self) -> (usize, usize) {
        (self.table.len(), self.table.unasked_bytes().saturating_add(self.streams.asked_bytes()))
    }

    /// Asks one question, if there is a stream to ask it on.
    fn ask(&mut self, host: &impl Host, sequence: u64) {
        let Some(stream) = self.streams.current() else { return };
        let Some(message) = self.table.question(sequence) else { return };
        if host.send(stream, message) {
            self.streams.asked(stream, sequence, message.len(), self.now);
            self.table.asked(sequence, stream);
        } else {
            self.streams.remove(stream, self.now);
            self.table.unask(stream);
        }
    }

    /// Handles an answer, which counts only for its own question, on the stream on which that was asked.
    fn answer(&mut self, host: &impl Host, stream: StreamId, answer: &Answer) {
        let asked = self.streams.answered(stream, answer.sequence);
        match self.table.answered(stream, answer.sequence) {
            Some(waiting) => {
                let outcome = if answer.binding == waiting.binding {
                    outcome(answer)
                } else {
                    host.count(Counter::AnswerUnmatched);
                    Outcome::Refuse(Refusal::SidecarUnavailable)
                };
                finish(host, waiting.request, Some(waiting.arrived), &outcome);
            }
            None => host.count(if asked { Counter::AnswerLate } else { Counter::AnswerUnmatched }),
        }
    }

    /// Ends every event but an answer: asks the questions that can be asked, and sends the replies that are due, as many as
    /// the VM's stack can take.
    fn flush(&mut self, host: &impl Host) {
        if self.streams.current().is_some() {
            for sequence in self.table.unasked() {
                self.ask(host, sequence);
            }
        }
        for (request, arrived, outcome) in self.table.take_due(REPLIES_AT_ONCE) {
            finish(host, request, Some(arrived), &outcome);
        }
        let period = if self.table.has_due() { BUSY_TICK } else { IDLE_TICK };
        if period != self.period {
            self.period = period;
            host.tick_every(period);
        }
    }

    fn connection(&mut self, host: &impl Host) -> Rc<Connection> {
        let id = host.connection();
        if let Some(known) = id.and_then(|id| self.connections.get(&id)) {
            return Rc::clone(known);
        }
        let address = host.peer_address().unwrap_or_default();
        let connection = Rc::new(match host.peer_certificate().map(|pem| Peer::from_pem(&pem)) {
            Some(Ok((peer, der))) => Connection { peer: Some(peer), der, address },
            Some(Err(error)) => {
                host.count(Counter::CertificateUnreadable);
                if let Some(left_out) = self.complaints.admits(self.now) {
                    host.log(Level::Warn, &format!("{error} ({left_out} such lines left out)"));
                }
                Connection { address, ..Connection::default() }
            }
            None => Connection { address, ..Connection::default() },
        });
        if let Some(id) = id {
            self.connections_bytes = self.connections_bytes.saturating_add(connection.bytes());
            while self.connections.len() >= CONNECTIONS || self.connections_bytes > CONNECTIONS_BYTES {
                let Some((_, oldest)) = self.connections.pop_first() else { break };
                self.connections_bytes = self.connections_bytes.saturating_sub(oldest.bytes());
            }
            self.connections.insert(id, Rc::clone(&connection));
        }
        connection
    }
}

/// The refusal of a body that is too large. Without keys the caller is not known, and the access log has no bound for what
/// such a caller is told.
fn body_too_large(head: &Head) -> Refusal {
    if head.admitted.is_some() { Refusal::TooLarge } else { Refusal::NoKeys }
}

/// Refuses a request that does not wait.
fn refuse(host: &impl Host, request: RequestId, refusal: Refusal) -> Exchange {
    finish(host, request, None, &Outcome::Refuse(refusal));
    Exchange::Replied
}

/// Sends the reply to a request, the one place that does. `arrived` is the arrival of the whole request.
fn finish(host: &impl Host, request: RequestId, arrived: Option<UnixTime>, outcome: &Outcome) {
    let (counter, verdict) = match outcome {
        Outcome::Allow(_) => (Counter::Allowed, Verdict { decision: "allow", reason: "allowed" }),
        Outcome::Deny(denial) => (Counter::Denied, Verdict { decision: "deny", reason: &denial.code }),
        Outcome::Refuse(refusal) => (Counter::Refused(*refusal), Verdict { decision: "refuse", reason: refusal.as_str() }),
    };
    if host.reply(request, &reply(outcome), verdict) {
        host.count(counter);
        // Every call of the host is expensive, so the latency of a refusal is not measured.
        if let Some(arrived) = arrived.filter(|_| !matches!(outcome, Outcome::Refuse(_))) {
            host.latency(u64::try_from(host.now().nanos_since(arrived) / 1000).unwrap_or(0));
        }
    } else {
        host.count(Counter::ClientGone);
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(40).collect()
}

/// The outcome in an answer. An unknown or unreadable answer is no decision.
fn outcome(answer: &Answer) -> Outcome {
    match answer.verdict() {
        WireVerdict::Allow => std::str::from_utf8(&answer.data)
            .ok()
            .and_then(|json| Data::from_json(json).ok())
            .map_or(Outcome::Refuse(Refusal::SidecarUnavailable), Outcome::Allow),
        WireVerdict::Deny if !answer.code.is_empty() => {
            Outcome::Deny(Denial { code: answer.code.clone().into(), message: answer.message.clone().into(), remediation_url: None })
        }
        WireVerdict::Refuse => Outcome::Refuse(Refusal::parse(&answer.code).unwrap_or(Refusal::SidecarUnavailable)),
        WireVerdict::Deny | WireVerdict::Unspecified => Outcome::Refuse(Refusal::SidecarUnavailable),
    }
}
