//! A worker of the filter with its host and the requests under way. After every event it checks what must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use posture::outcome::Data;
use posture::reply::Reply;
use posture::secret::Secret;
use posture::verify::{Signature, SigningKeys};
use prost::Message as _;
use proto::v1::{Answer, FilterMessage, Question, SidecarMessage, Verdict, WebhookKeys, WebhookSet, filter_message, sidecar_message};
use stepward_filter::config::Settings;
use stepward_filter::exchange::{Exchange, Worker};
use stepward_filter::host::fake::FakeHost;
use stepward_filter::host::{RequestId, StreamId};

pub(crate) const ID: &str = "11111111-2222-4333-8444-555555555555";
pub(crate) const BODY: &[u8] = br#"{"timestamp":"1970-01-01T00:16:40Z","attestationData":{"permanentIdentifier":"C02XL0GYJGH5"}}"#;
const NOW: i64 = 1_000_000_000_000;
const PEER: &[u8] = include_bytes!("../corpus/certificate/step_ca.pem");
const STRANGER: &[u8] = include_bytes!("../corpus/certificate/spiffe.pem");

/// Most replies in one callback.
const REPLIES_AT_ONCE: usize = 64;
/// Most bytes of a question besides its body: certificate, ids, numbers.
const OVERHEAD: usize = 4096;

pub(crate) struct Stand {
    pub(crate) host: FakeHost,
    worker: Worker,
    settings: Settings,
    exchanges: BTreeMap<RequestId, Exchange>,
    next: u32,
    revision: u64,
    /// Requests that were allowed so far.
    allowed: BTreeSet<RequestId>,
    /// Number of replies that were checked.
    seen: usize,
}

/// The way in which a request departs from a genuine one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    Genuine,
    UnknownWebhook,
    Forged,
    Stranger,
    NoCertificate,
    TooLarge,
    NoPost,
}

pub(crate) fn keys() -> WebhookKeys {
    WebhookKeys {
        id: ID.to_owned(),
        secrets: vec![b"secret".to_vec()],
        callers: vec!["dns:ca.example.org".to_owned()],
        window_past_ms: u32::MAX,
        window_future_ms: 5_000,
        deadline_ms: 3_500,
        body_limit: 4096,
        ..WebhookKeys::default()
    }
}

impl Stand {
    pub(crate) fn new(settings: Settings) -> Self {
        let host = FakeHost::new(NOW);
        let mut worker = Worker::new(settings.clone(), 7);
        worker.start(&host);
        Self { host, worker, settings, exchanges: BTreeMap::new(), next: 1, revision: 0, allowed: BTreeSet::new(), seen: 0 }
    }

    /// One of the open streams, chosen by a byte.
    pub(crate) fn stream(&self, of: u8) -> Option<StreamId> {
        let streams = self.host.streams.borrow();
        streams.keys().nth(usize::from(of) % streams.len().max(1)).copied()
    }

    /// One of the requests that have not ended, chosen by a byte.
    pub(crate) fn request(&self, of: u8) -> Option<RequestId> {
        self.exchanges.keys().nth(usize::from(of) % self.exchanges.len().max(1)).copied()
    }

    pub(crate) fn headers(&mut self, sort: Sort, end: bool) -> RequestId {
        let signed: &[u8] = if sort == Sort::Forged { b"other" } else { BODY };
        let signature = SigningKeys::new(&[Secret::new(b"secret".to_vec())]).sign(signed).unwrap().to_hex();
        let headers = [
            (":method", if sort == Sort::NoPost { "GET" } else { "POST" }),
            (":path", "/webhook/device-attest"),
            ("x-smallstep-webhook-id", if sort == Sort::UnknownWebhook { "other" } else { ID }),
            ("x-smallstep-signature", &signature),
            ("content-length", if sort == Sort::TooLarge { "4294967296" } else { "93" }),
        ];
        *self.host.headers.borrow_mut() = headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).to_vec();
        *self.host.body.borrow_mut() = BODY.to_vec();
        *self.host.peer.borrow_mut() = Some(match sort {
            Sort::Stranger => (2, STRANGER.to_vec()),
            Sort::NoCertificate => (3, Vec::new()),
            _ => (1, PEER.to_vec()),
        });
        let request = RequestId(self.next);
        self.next += 1;
        self.host.begin(request);
        self.host.begin_callback();
        let exchange = self.worker.on_headers(&self.host, request, end);
        self.exchanges.insert(request, exchange);
        self.check(None);
        request
    }

    pub(crate) fn body(&mut self, request: RequestId, size: usize, end: bool) {
        let exchange = self.exchanges.remove(&request).unwrap();
        self.host.begin_callback();
        let exchange = self.worker.on_body(&self.host, exchange, size, end);
        self.exchanges.insert(request, exchange);
        self.check(None);
    }

    pub(crate) fn trailers(&mut self, request: RequestId) {
        let exchange = self.exchanges.remove(&request).unwrap();
        self.host.begin_callback();
        let exchange = self.worker.on_trailers(&self.host, exchange);
        self.exchanges.insert(request, exchange);
        self.check(None);
    }

    pub(crate) fn done(&mut self, request: RequestId) {
        let exchange = self.exchanges.remove(&request).unwrap();
        self.host.begin_callback();
        self.worker.on_done(&self.host, &exchange);
        self.host.end(request);
        self.check(None);
    }

    pub(crate) fn whole(&mut self) -> RequestId {
        let request = self.headers(Sort::Genuine, false);
        if self.host.replies_to(request).is_empty() {
            self.body(request, BODY.len(), true);
        }
        request
    }

    pub(crate) fn tick(&mut self, after: Duration) {
        self.host.advance(after);
        self.host.begin_callback();
        self.worker.on_tick(&self.host);
        self.check(None);
    }

    pub(crate) fn close(&mut self, stream: StreamId) {
        self.host.break_stream(stream);
        self.host.begin_callback();
        self.worker.on_close(&self.host, stream, 14);
        self.check(None);
    }

    pub(crate) fn say(&mut self, stream: StreamId, message: sidecar_message::Message) {
        self.deliver(stream, &SidecarMessage { message: Some(message) }.encode_to_vec());
    }

    pub(crate) fn webhooks(&mut self, stream: StreamId, webhooks: Vec<WebhookKeys>) {
        self.revision += 1;
        self.say(stream, sidecar_message::Message::Webhooks(WebhookSet { revision: self.revision, webhooks }));
    }

    /// Delivers bytes from the sidecar, valid or not.
    pub(crate) fn deliver(&mut self, stream: StreamId, bytes: &[u8]) {
        let entitled = match SidecarMessage::decode(bytes) {
            Ok(SidecarMessage { message: Some(sidecar_message::Message::Answer(answer)) }) => self.entitled(stream, &answer),
            _ => None,
        };
        self.host.begin_callback();
        self.worker.on_message(&self.host, stream, bytes);
        self.check(entitled);
    }

    /// The questions on a stream, in the order in which they were asked.
    pub(crate) fn questions(&self, stream: StreamId) -> Vec<Question> {
        let streams = self.host.streams.borrow();
        let messages = streams.get(&stream).into_iter().flatten();
        let questions = messages.filter_map(|message| match FilterMessage::decode(message.as_slice()).unwrap().message.unwrap() {
            filter_message::Message::Question(question) => Some(question),
            filter_message::Message::Hello(_) | filter_message::Message::Report(_) => None,
        });
        questions.collect()
    }

    /// The request that this answer may allow: the one whose question was last asked, on this same stream.
    fn entitled(&self, stream: StreamId, answer: &Answer) -> Option<RequestId> {
        let data = std::str::from_utf8(&answer.data).ok()?;
        if answer.verdict() != Verdict::Allow || Data::from_json(data).is_err() {
            return None;
        }
        let streams: Vec<StreamId> = self.host.streams.borrow().keys().copied().collect();
        let asked = |stream: &StreamId| self.questions(*stream).into_iter().find(|question| question.sequence == answer.sequence);
        let last = streams.iter().rev().find_map(|stream| asked(stream).map(|question| (*stream, question)));
        let (_, question) = last.filter(|(last, _)| *last == stream)?;
        let binding = Signature::from_bytes(&question.signature)?.binding(&question.webhook_id);
        let waiting = |exchange: &Exchange| matches!(exchange, Exchange::Waiting(sequence) if *sequence == answer.sequence);
        let request = self.exchanges.iter().find(|(_, exchange)| waiting(exchange)).map(|(request, _)| *request)?;
        (answer.binding == binding).then_some(request)
    }

    fn check(&mut self, entitled: Option<RequestId>) {
        assert_eq!(self.host.twice.get(), 0, "a request got two replies");
        assert!(self.host.most_in_callback.get() <= REPLIES_AT_ONCE, "{} replies at once", self.host.most_in_callback.get());
        let replies = self.host.replies.borrow();
        for (request, reply) in replies.iter().skip(self.seen) {
            if allows(reply) {
                assert_eq!(entitled, Some(*request), "allowed by no answer of its own");
                self.allowed.insert(*request);
            } else {
                let refused: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
                assert_eq!(refused["allow"], false);
            }
        }
        self.seen = replies.len();
        // If many requests wait, the reply may be due only at the next tick.
        if let Some(request) = entitled.filter(|_| self.exchanges.len() <= REPLIES_AT_ONCE) {
            assert!(replies.iter().any(|(to, _)| *to == request), "an allow was lost");
        }
        drop(replies);
        let (waiting, bytes) = self.worker.waiting();
        assert!(waiting <= self.settings.max_waiting, "{waiting} wait");
        assert!(bytes <= self.settings.max_waiting_bytes + self.settings.max_waiting * OVERHEAD, "{bytes} bytes wait");
    }

    /// Ends the run: the remaining clients send the rest and wait, and each must get exactly one reply.
    pub(crate) fn end(mut self) {
        let left: Vec<RequestId> = self.exchanges.keys().copied().collect();
        for request in &left {
            self.body(*request, BODY.len(), true);
        }
        self.tick(Duration::from_secs(4));
        for _ in 0..left.len() / REPLIES_AT_ONCE + 1 {
            self.tick(Duration::from_millis(5));
        }
        let replies = self.host.replies.borrow();
        for request in left {
            assert_eq!(replies.iter().filter(|(to, _)| *to == request).count(), 1, "{request:?}");
        }
        assert_eq!(self.worker.waiting().0, 0, "somebody waits still");
    }
}

fn allows(reply: &Reply) -> bool {
    serde_json::from_slice::<serde_json::Value>(&reply.body).is_ok_and(|body| body["allow"] == true)
        || reply.body.starts_with(br#"{"allow":true"#)
}
