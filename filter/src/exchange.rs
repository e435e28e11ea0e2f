//! The state machine of one worker: requests that come, wait and are answered once, and the stream to the sidecar.
//!
//! Envoy runs one VM a worker, single-threaded, so all of it is plain data behind `&mut`. What it promises, whatever the
//! order of events: every request gets at most one reply, exactly one unless its client goes first, and never a
//! continue; an allow only as the answer to its own question.

mod reports;
mod stream;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use posture::caller::Peer;
use posture::outcome::{Data, Denial, Outcome, Refusal};
use posture::reply::reply;
use posture::shape::{Mode, Shape, shape};
use posture::time::UnixTime;
use prost::Message as _;
use proto::v1::{
    Answer, FilterMessage, Mode as WireMode, Question, SidecarMessage, Verdict as WireVerdict, WebhookSet, filter_message, sidecar_message,
};

use crate::config::Settings;
use crate::host::{Host, Level, RequestId, StreamId, Verdict};
use crate::keys::{Admission, Keys};
use crate::metrics::Counter;
use reports::Reports;
use stream::Streams;
use table::{Table, Waiting};

/// Everything that one worker knows.
#[derive(Debug)]
pub struct Worker {
    settings: Settings,
    keys: Option<Keys>,
    /// How many keys have come: their own revision starts anew with every sidecar.
    generation: u64,
    streams: Streams,
    table: Table,
    connections: BTreeMap<u64, Rc<Connection>>,
    /// Bytes that they take.
    connections_bytes: usize,
    complaints: Complaints,
    /// The last time that the clock was read: as good as now wherever a tick more or less does not count.
    now: UnixTime,
    reports: Reports,
    period: Duration,
}

/// One request, from its headers on. It is dropped with the request.
#[derive(Debug)]
pub enum Exchange {
    /// Its body is coming.
    Body(Box<Head>),
    /// It waits under this sequence number.
    Waiting(u64),
    /// It has its reply.
    Replied,
}

/// A request whose headers are good.
#[derive(Debug)]
pub struct Head {
    request: RequestId,
    /// When its headers came, by the clock as it was last read: up to a tick too early, and so is its deadline.
    since: UnixTime,
    /// When the whole of it was there, where that was before it could be proven.
    arrived: Option<UnixTime>,
    shape: Shape,
    connection: Rc<Connection>,
    /// Which keys admitted the caller, if any did yet.
    admitted: Option<u64>,
    limit: u32,
    deadline: Duration,
    size: usize,
}

/// A request that was not proven.
#[derive(Debug)]
struct Unproven {
    refusal: Refusal,
    /// Its webhook, and the age of its timestamp in nanoseconds, where nothing but that is wrong.
    skew: Option<(String, i64)>,
}

impl From<Refusal> for Unproven {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, skew: None }
    }
}

/// What is remembered of a TLS connection: its peer does not change.
#[derive(Debug, Default)]
struct Connection {
    peer: Option<Peer>,
    der: Vec<u8>,
    address: String,
}

/// Ticks while nothing is due: the precision of deadlines.
const IDLE_TICK: Duration = Duration::from_millis(50);
/// Ticks while replies are due: the shortest that Envoy has, since ten thousand that came at once have to be out between
/// their deadline and the listener's own limit.
const BUSY_TICK: Duration = Duration::from_millis(1);
/// Replies in one callback. 400 overflow V8's stack and end the VM, since Envoy sends them nested after the callback.
const REPLIES_AT_ONCE: usize = 64;
/// Connections that are remembered; a busier Envoy reads certificates again. Envoy does not say when one ends.
const CONNECTIONS: usize = 1024;
/// Bytes that they take together: what V8 holds is in no bound of Envoy's own.
const CONNECTIONS_BYTES: usize = 4 << 20;
/// Bytes that each takes besides what it says.
const CONNECTION: usize = 256;
/// Lines in a minute about certificates that cannot be read, which whoever gets past TLS can cause.
const COMPLAINTS: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);

/// A budget of lines in Envoy's own log.
#[derive(Debug, Default)]
struct Complaints {
    /// When the minute ends.
    until: Option<UnixTime>,
    written: u32,
    left_out: u64,
}

impl Complaints {
    /// Whether one more line may be written: how many were left out since the last one, or `None`.
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

impl Connection {
    fn bytes(&self) -> usize {
        let names = self.peer.as_ref().map_or(0, Peer::size);
        [names, self.der.len(), self.address.len()].into_iter().fold(CONNECTION, usize::saturating_add)
    }
}

impl Worker {
    /// A worker that knows nothing yet. `vm` tells it from every other VM that the sidecar hears of.
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

    /// The same for Envoy's main thread, which makes a VM and has no requests.
    pub fn of_main_thread(mut self) -> Self {
        self.streams.main = true;
        self
    }

    /// Starts ticking, and opens the first stream.
    pub fn start(&mut self, host: &impl Host) {
        self.now = host.now();
        self.streams.keep_open(host, self.now);
        self.flush(host);
    }

    /// The headers of a request.
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

    /// More of a body: `size` is the whole of what has come.
    pub fn on_body(&mut self, host: &impl Host, exchange: Exchange, size: usize, end: bool) -> Exchange {
        let Exchange::Body(mut head) = exchange else { return exchange };
        head.size = size;
        if size > usize::try_from(head.limit).unwrap_or(usize::MAX) {
            return refuse(host, head.request, body_too_large(&head));
        }
        if end { self.complete(host, *head, size) } else { Exchange::Body(head) }
    }

    /// Trailers end a body that said no end itself.
    pub fn on_trailers(&mut self, host: &impl Host, exchange: Exchange) -> Exchange {
        match exchange {
            Exchange::Body(head) => {
                let size = head.size;
                self.complete(host, *head, size)
            }
            other => other,
        }
    }

    /// The request has ended, answered or not.
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

    /// Time passes.
    pub fn on_tick(&mut self, host: &impl Host) {
        let now = host.now();
        self.now = now;
        for (sequence, refusal) in self.table.overdue(now) {
            self.table.decide(sequence, Outcome::Refuse(refusal));
        }
        // Envoy's configuration may be older than the webhooks' own.
        let deadline = self.keys.as_ref().map_or(Duration::ZERO, |keys| keys.longest_deadline).max(self.settings.deadline());
        for lost in self.streams.give_up(host, now, deadline) {
            self.table.unask(lost);
        }
        self.streams.keep_open(host, now);
        self.flush(host);
        self.report(host);
    }

    /// A message of the sidecar.
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
                host.log(Level::Info, &format!("attached to the sidecar, release {}", printable(&hello.version)));
            }
            Some(sidecar_message::Message::Webhooks(set)) => self.take_keys(host, stream, set),
            Some(sidecar_message::Message::Answer(answer)) => self.answer(host, stream, &answer),
            Some(sidecar_message::Message::Drain(_)) => {
                host.log(Level::Info, "the sidecar drains; asking the rest of the next one");
                self.streams.drain(stream, self.now);
            }
            Some(sidecar_message::Message::Reported(reported)) => self.reports.taken(stream, reported.number),
            None => {}
        }
    }

    /// The webhooks are these from now on, and whoever waited for them is judged.
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

    /// A stream ended from the other side.
    pub fn on_close(&mut self, host: &impl Host, stream: StreamId) {
        host.count(Counter::StreamLost);
        self.lose(host, stream);
    }

    fn lose(&mut self, host: &impl Host, stream: StreamId) {
        self.streams.remove(stream, self.now);
        self.table.unask(stream);
        self.flush(host);
    }

    /// Step 2, as soon as the webhook is known; it takes the webhook's bounds with it.
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

    /// The whole request is here: prove it and ask, or wait for what that takes.
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
            // As of a body that is too large: nobody knows yet whose it is.
            Err(_) if self.keys.is_none() => refuse(host, request, Refusal::NoKeys),
            Err(refusal) => refuse(host, request, refusal),
        }
    }

    /// Steps 2 to 4, and the question that follows from them. The clock is read between the last two, since a forged request
    /// is not worth the call.
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

    /// Keys have come: whoever waited for them is judged now.
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

    /// Why a request was not proven, once what it says of its caller's clock is noted.
    fn note(&mut self, unproven: Unproven) -> Refusal {
        if let Some((webhook, age)) = unproven.skew {
            self.reports.skewed(webhook, age.saturating_neg());
        }
        unproven.refusal
    }

    /// Tells the sidecar what was counted, as often as it is due.
    fn report(&mut self, host: &impl Host) {
        let Some(stream) = self.streams.current() else { return };
        let waiting = self.waiting();
        let streams = &self.streams;
        if !self.reports.send(host, stream, |id| streams.has(id), self.now, waiting) {
            self.streams.remove(stream, self.now);
            self.table.unask(stream);
        }
    }

    /// Requests that wait for an answer, and bytes that wait or are sent and unanswered.
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

    /// An answer counts for the question that it belongs to, on the stream that it was asked on, and for nothing else.
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

    /// What every event but an answer ends with: questions that can be asked are, replies that are due go out, as many as
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

/// That a body is too large. Where there are no keys yet, nobody knows whose it is, and the access log has no bound for what is said
/// to a caller.
fn body_too_large(head: &Head) -> Refusal {
    if head.admitted.is_some() { Refusal::TooLarge } else { Refusal::NoKeys }
}

/// Turns away a request that does not wait.
fn refuse(host: &impl Host, request: RequestId, refusal: Refusal) -> Exchange {
    finish(host, request, None, &Outcome::Refuse(refusal));
    Exchange::Replied
}

/// The one place where a request gets its reply. `arrived` is when the whole of it was there.
fn finish(host: &impl Host, request: RequestId, arrived: Option<UnixTime>, outcome: &Outcome) {
    let (counter, verdict) = match outcome {
        Outcome::Allow(_) => (Counter::Allowed, Verdict { decision: "allow", reason: "allowed" }),
        Outcome::Deny(denial) => (Counter::Denied, Verdict { decision: "deny", reason: &denial.code }),
        Outcome::Refuse(refusal) => (Counter::Refused(*refusal), Verdict { decision: "refuse", reason: refusal.as_str() }),
    };
    if host.reply(request, &reply(outcome), verdict) {
        host.count(counter);
        // Every call of the host costs: what was turned away has no latency worth one.
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

/// What an answer says. Anything unknown or unreadable is no decision.
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
