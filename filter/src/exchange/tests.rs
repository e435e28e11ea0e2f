use std::cell::RefCell;
use std::collections::BTreeMap;

use posture::secret::Secret;
use posture::verify::SigningKeys;
use proptest::prelude::*;
use proto::v1::{Drain, Event as Happened, Report, Reported, SidecarHello, WebhookKeys};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};

use super::*;
use crate::host::fake::FakeHost;

const NOW: i64 = 1_000_000_000_000;
const BODY: &[u8] = br#"{"timestamp":"1970-01-01T00:16:40Z","attestationData":{"permanentIdentifier":"C02XL0GYJGH5"}}"#;
const ID: &str = "11111111-2222-4333-8444-555555555555";
/// Status of gRPC of a stream whose sidecar has gone.
const UNAVAILABLE: u32 = 14;

fn keys() -> WebhookKeys {
    WebhookKeys {
        id: ID.to_owned(),
        secrets: vec![b"secret".to_vec()],
        callers: vec!["dns:ca.example.org".to_owned()],
        window_past_ms: 30_000,
        window_future_ms: 5_000,
        deadline_ms: 3_500,
        body_limit: 4096,
        ..WebhookKeys::default()
    }
}

fn certificate(name: &str) -> String {
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

/// A worker with its host, and the requests under way.
struct Stand {
    host: FakeHost,
    worker: RefCell<Worker>,
    exchanges: RefCell<BTreeMap<RequestId, Exchange>>,
    next: std::cell::Cell<u32>,
}

impl Stand {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let host = FakeHost::new(NOW);
        let mut worker = Worker::new(settings, 7);
        worker.start(&host);
        *host.peer.borrow_mut() = Some((1, certificate("ca.example.org").into_bytes()));
        let stand = Self { host, worker: RefCell::new(worker), exchanges: RefCell::default(), next: 1.into() };
        stand.request_is(&[]);
        stand
    }

    /// A worker whose sidecar has sent its keys.
    fn attached() -> Self {
        let stand = Self::new();
        stand.send_keys(1, vec![keys()]);
        stand
    }

    fn stream(&self) -> StreamId {
        *self.host.streams.borrow().keys().next_back().unwrap()
    }

    fn sidecar_says(&self, stream: StreamId, message: sidecar_message::Message) {
        self.host.begin_callback();
        let bytes = SidecarMessage { message: Some(message) }.encode_to_vec();
        self.worker.borrow_mut().on_message(&self.host, stream, &bytes);
    }

    fn send_keys(&self, revision: u64, webhooks: Vec<WebhookKeys>) {
        self.sidecar_says(self.stream(), sidecar_message::Message::Hello(SidecarHello::default()));
        self.sidecar_says(self.stream(), sidecar_message::Message::Webhooks(WebhookSet { revision, webhooks }));
    }

    /// Sets the headers of the next request: those of a genuine one, with changes. An empty value leaves the header out. To
    /// send a header twice, push it to `host.headers`.
    fn request_is(&self, changes: &[(&str, &str)]) {
        let signature = SigningKeys::new(&[Secret::new(b"secret".to_vec())]).sign(BODY).unwrap().to_hex();
        let mut headers: BTreeMap<String, Vec<u8>> = [
            (":method", "POST"),
            (":path", "/webhook/device-attest"),
            ("x-smallstep-webhook-id", ID),
            ("x-smallstep-signature", &signature),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .collect();
        for (name, value) in changes {
            headers.insert((*name).to_owned(), value.as_bytes().to_vec());
        }
        *self.host.headers.borrow_mut() = headers.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        *self.host.body.borrow_mut() = BODY.to_vec();
    }

    fn headers(&self, end: bool) -> RequestId {
        let request = RequestId(self.next.get());
        self.next.set(request.0 + 1);
        self.host.begin(request);
        self.host.begin_callback();
        let exchange = self.worker.borrow_mut().on_headers(&self.host, request, end);
        self.exchanges.borrow_mut().insert(request, exchange);
        request
    }

    fn body(&self, request: RequestId, size: usize, end: bool) {
        self.host.begin_callback();
        let exchange = self.exchanges.borrow_mut().remove(&request).unwrap();
        let exchange = self.worker.borrow_mut().on_body(&self.host, exchange, size, end);
        self.exchanges.borrow_mut().insert(request, exchange);
    }

    fn trailers(&self, request: RequestId) {
        let exchange = self.exchanges.borrow_mut().remove(&request).unwrap();
        let exchange = self.worker.borrow_mut().on_trailers(&self.host, exchange);
        self.exchanges.borrow_mut().insert(request, exchange);
    }

    fn done(&self, request: RequestId) {
        let exchange = self.exchanges.borrow_mut().remove(&request).unwrap();
        self.worker.borrow_mut().on_done(&self.host, &exchange);
        self.host.end(request);
    }

    /// Sends a whole request, with the headers and the body that are set.
    fn send(&self) -> RequestId {
        let request = self.headers(false);
        if self.host.replies_to(request).is_empty() {
            let size = self.host.body.borrow().len();
            self.body(request, size, true);
        }
        request
    }

    fn tick(&self, after: Duration) {
        self.host.advance(after);
        self.host.begin_callback();
        self.worker.borrow_mut().on_tick(&self.host);
    }

    fn questions(&self, stream: StreamId) -> Vec<Question> {
        let streams = self.host.streams.borrow();
        streams
            .get(&stream)
            .into_iter()
            .flatten()
            .filter_map(|message| match FilterMessage::decode(message.as_slice()).unwrap().message.unwrap() {
                filter_message::Message::Question(question) => Some(question),
                filter_message::Message::Hello(_) | filter_message::Message::Report(_) => None,
            })
            .collect()
    }

    /// The reports that were sent on a stream.
    fn reports(&self, stream: StreamId) -> Vec<Report> {
        let streams = self.host.streams.borrow();
        let messages = streams.get(&stream).into_iter().flatten();
        let messages = messages.filter_map(|message| FilterMessage::decode(message.as_slice()).unwrap().message);
        messages.filter_map(|message| if let filter_message::Message::Report(report) = message { Some(report) } else { None }).collect()
    }

    /// Takes the last report, as the sidecar does.
    fn take_report(&self) -> Report {
        let report = self.reports(self.stream()).pop().unwrap();
        self.sidecar_says(self.stream(), sidecar_message::Message::Reported(Reported { number: report.number }));
        report
    }

    fn allow(&self, stream: StreamId, question: &Question) {
        let binding = posture::verify::Signature::from_bytes(&question.signature).unwrap().binding(&question.webhook_id).to_vec();
        let answer =
            Answer { sequence: question.sequence, binding, verdict: WireVerdict::Allow.into(), data: "{}".into(), ..Answer::default() };
        self.sidecar_says(stream, sidecar_message::Message::Answer(answer));
    }

    /// Status and `allow` of the one reply to a request, if it has a reply yet.
    fn reply(&self, request: RequestId) -> Option<(u16, bool)> {
        let replies = self.host.replies_to(request);
        assert!(replies.len() <= 1, "{replies:?}");
        let reply = replies.first()?;
        Some((reply.status, serde_json::from_slice::<serde_json::Value>(&reply.body).unwrap()["allow"].as_bool().unwrap()))
    }

    /// Asserts that the table has each request that waits, and that its counts are right.
    fn counts_are_right(&self) {
        let worker = self.worker.borrow();
        worker.table.agrees();
        let exchanges = self.exchanges.borrow();
        let waiting = exchanges
            .iter()
            .filter(|(request, exchange)| matches!(exchange, Exchange::Waiting(_)) && self.host.replies_to(**request).is_empty());
        assert_eq!(worker.table.len(), waiting.count());
    }

    /// Number of requests that wait, their bytes, and whether there is a stream to ask on.
    fn gauges(&self) -> (usize, usize, bool) {
        let worker = self.worker.borrow();
        let (count, bytes) = worker.waiting();
        (count, bytes, worker.streams.current().is_some())
    }

    /// Sends a genuine request whose timestamp is so many seconds ahead of [`NOW`].
    fn stamped(&self, seconds: i64) -> RequestId {
        let body = format!(r#"{{"timestamp":"1970-01-01T00:{:02}:{:02}Z"}}"#, (1000 + seconds) / 60, (1000 + seconds) % 60);
        let signature = SigningKeys::new(&[Secret::new(b"secret".to_vec())]).sign(body.as_bytes()).unwrap().to_hex();
        self.request_is(&[("x-smallstep-signature", &signature)]);
        *self.host.body.borrow_mut() = body.into_bytes();
        self.send()
    }

    fn lose(&self, stream: StreamId) {
        self.host.break_stream(stream);
        self.worker.borrow_mut().on_close(&self.host, stream, UNAVAILABLE);
    }

    fn refused(&self, request: RequestId, refusal: Refusal) {
        let (status, ..) = posture::reply::public(refusal);
        assert_eq!(self.reply(request), Some((status, false)), "{refusal:?}");
        assert_eq!(self.host.count_of(Counter::Refused(refusal)), 1, "{refusal:?}");
    }
}

#[test]
fn the_access_log_is_told_the_webhook_where_it_can_be_printed() {
    let stand = Stand::attached();
    for (id, told) in
        [(ID, true), ("an id with ~ and spaces", true), ("two\nlines", false), ("\u{202e}", false), ("\u{7f}", false), ("", false)]
    {
        stand.host.webhooks.borrow_mut().clear();
        stand.request_is(&[("x-smallstep-webhook-id", id)]);
        stand.send();
        assert_eq!(*stand.host.webhooks.borrow(), if told { vec![id.to_owned()] } else { Vec::new() }, "{id:?}");
    }
}

#[test]
fn a_genuine_request_is_asked_and_allowed() {
    let stand = Stand::attached();
    stand.request_is(&[("x-request-id", "r-1"), ("traceparent", "00-t-s-01"), (":path", "/webhook/a?mode=computer")]);
    let request = stand.send();
    assert_eq!(stand.reply(request), None);
    let [question] = stand.questions(stand.stream()).try_into().unwrap();
    assert_eq!(question.body, BODY);
    assert_eq!((question.webhook_id.as_str(), question.revision), (ID, 1));
    assert_eq!((question.request_id.as_str(), question.traceparent.as_str()), ("r-1", "00-t-s-01"));
    assert_eq!(question.mode(), WireMode::Computer);
    assert_eq!(question.deadline_unix_nanos, u64::try_from(NOW).unwrap() + 3_500_000_000);
    assert!(!question.peer_certificate.is_empty());
    stand.allow(stand.stream(), &question);
    assert_eq!(stand.reply(request), Some((200, true)));
    stand.done(request);
    assert_eq!(stand.host.count_of(Counter::Allowed), 1);
    assert_eq!(stand.host.count_of(Counter::ClientGone), 0);
}

#[test]
fn what_is_not_genuine_is_never_asked() {
    let genuine = SigningKeys::new(&[Secret::new(b"secret".to_vec())]);
    let flipped = genuine.sign(b"other").unwrap().to_hex();
    let cases: &[(&[(&str, &str)], Refusal)] = &[
        (&[(":method", "GET")], Refusal::Method),
        (&[(":path", "/")], Refusal::Path),
        (&[("x-smallstep-webhook-id", "")], Refusal::WebhookIdHeader),
        (&[("x-smallstep-webhook-id", "other")], Refusal::WebhookUnknown),
        (&[("x-smallstep-signature", "00")], Refusal::SignatureHeader),
        (&[("x-smallstep-signature", &flipped)], Refusal::Signature),
        (&[("content-length", "4097")], Refusal::TooLarge),
    ];
    for (changes, refusal) in cases {
        let stand = Stand::attached();
        stand.request_is(changes);
        stand.refused(stand.send(), *refusal);
        assert_eq!(stand.questions(stand.stream()), []);
    }
}

#[test]
fn time_is_judged_by_the_arrival() {
    for (seconds, refusal) in [(-31, Some(Refusal::TimestampPast)), (-30, None), (5, None), (6, Some(Refusal::TimestampFuture))] {
        let stand = Stand::attached();
        let body = format!(r#"{{"timestamp":"1970-01-01T00:{:02}:{:02}Z"}}"#, (1000 + seconds) / 60, (1000 + seconds) % 60);
        let signature = SigningKeys::new(&[Secret::new(b"secret".to_vec())]).sign(body.as_bytes()).unwrap().to_hex();
        stand.request_is(&[("x-smallstep-signature", &signature)]);
        *stand.host.body.borrow_mut() = body.into_bytes();
        let request = stand.send();
        match refusal {
            Some(refusal) => stand.refused(request, refusal),
            None => assert_eq!(stand.reply(request), None),
        }
    }
}

#[test]
fn the_caller_must_be_one_of_the_webhooks() {
    for peer in [None, Some(Vec::new()), Some(certificate("other.example.org").into_bytes()), Some(b"nonsense".to_vec())] {
        let stand = Stand::attached();
        *stand.host.peer.borrow_mut() = peer.map(|pem| (2, pem));
        stand.refused(stand.send(), Refusal::Caller);
    }
}

#[test]
fn credentials_are_asked_for_where_the_webhook_has_any() {
    let stand = Stand::new();
    stand.send_keys(1, vec![WebhookKeys { authorizations: vec![b"Bearer abc".to_vec()], ..keys() }]);
    stand.refused(stand.send(), Refusal::Credentials);
    stand.request_is(&[("authorization", "Bearer abc")]);
    assert_eq!(stand.reply(stand.send()), None);
}

#[test]
fn the_limit_is_exact() {
    for (size, refused) in [(4095, false), (4096, false), (4097, true)] {
        let stand = Stand::attached();
        *stand.host.body.borrow_mut() = vec![b' '; size];
        let request = stand.headers(false);
        stand.body(request, size, false);
        assert_eq!(stand.reply(request), refused.then_some((413, false)), "{size}");
    }
}

#[test]
fn a_body_may_end_in_headers_in_data_or_in_trailers() {
    let stand = Stand::attached();
    let empty = stand.headers(true);
    stand.refused(empty, Refusal::Signature);
    let request = stand.headers(false);
    stand.body(request, 10, false);
    stand.body(request, BODY.len(), false);
    assert_eq!(stand.questions(stand.stream()), []);
    stand.trailers(request);
    assert_eq!(stand.questions(stand.stream()).len(), 1);
}

#[test]
fn headers_that_cannot_be_read_are_no_fault_of_the_caller() {
    let stand = Stand::attached();
    stand.host.headers_unreadable.set(true);
    stand.refused(stand.send(), Refusal::Internal);
}

#[test]
fn a_forged_request_is_not_worth_a_look_at_the_clock() {
    let stand = Stand::attached();
    let before = stand.host.clock_reads.get();
    stand.request_is(&[("x-smallstep-signature", &"0".repeat(64))]);
    stand.refused(stand.send(), Refusal::Signature);
    assert_eq!(stand.host.clock_reads.get(), before);
}

#[test]
fn the_time_is_judged_when_the_whole_request_is_there_and_the_deadline_runs_from_its_headers() {
    let stand = Stand::attached();
    let (late, slow) = (stand.headers(false), stand.headers(false));
    stand.tick(Duration::from_secs(3));
    stand.body(slow, BODY.len(), true);
    let [question] = stand.questions(stand.stream()).try_into().unwrap();
    assert_eq!(question.deadline_unix_nanos, u64::try_from(NOW).unwrap() + 3_500_000_000);
    stand.tick(Duration::from_millis(500));
    stand.refused(slow, Refusal::DeadlineExceeded);
    stand.host.advance(Duration::from_secs(27));
    stand.body(late, BODY.len(), true);
    stand.refused(late, Refusal::TimestampPast);
}

#[test]
fn an_answer_counts_for_its_own_question_only() {
    let stand = Stand::attached();
    let request = stand.send();
    let stream = stand.stream();
    let question = stand.questions(stream).remove(0);
    stand.allow(StreamId(99), &question);
    stand.allow(stream, &Question { sequence: question.sequence + 1, ..question.clone() });
    assert_eq!(stand.reply(request), None);
    assert_eq!(stand.host.count_of(Counter::AnswerUnmatched), 2);
    stand.allow(stream, &Question { webhook_id: "other".to_owned(), ..question.clone() });
    stand.refused(request, Refusal::SidecarUnavailable);
    stand.allow(stream, &question);
    assert_eq!(stand.reply(request), Some((503, false)));
}

#[test]
fn an_answer_that_decides_nothing_is_no_allow() {
    for (verdict, data, code) in [
        (WireVerdict::Unspecified as i32, "{}", ""),
        (4, "{}", ""),
        (-1, "{}", ""),
        (WireVerdict::Allow as i32, "", ""),
        (WireVerdict::Allow as i32, "{},\"allow\":false", ""),
        (WireVerdict::Deny as i32, "", ""),
        (WireVerdict::Refuse as i32, "", "allow"),
    ] {
        let stand = Stand::attached();
        let request = stand.send();
        let question = stand.questions(stand.stream()).remove(0);
        let binding = posture::verify::Signature::from_bytes(&question.signature).unwrap().binding(ID).to_vec();
        let answer = Answer {
            sequence: question.sequence,
            binding,
            verdict,
            data: data.to_owned().into(),
            code: code.to_owned(),
            ..Answer::default()
        };
        stand.sidecar_says(stand.stream(), sidecar_message::Message::Answer(answer));
        stand.refused(request, Refusal::SidecarUnavailable);
    }
}

#[test]
fn a_denial_and_a_refusal_reach_the_caller() {
    let stand = Stand::attached();
    for (verdict, code, expected) in [
        (WireVerdict::Deny, "device_not_found", (200, false)),
        (WireVerdict::Refuse, "kind_mismatch", (400, false)),
        (WireVerdict::Refuse, "replayed_by_another", (403, false)),
        (WireVerdict::Refuse, "provider_unavailable", (503, false)),
    ] {
        let request = stand.send();
        let question = stand.questions(stand.stream()).pop().unwrap();
        let binding = posture::verify::Signature::from_bytes(&question.signature).unwrap().binding(ID).to_vec();
        let answer = Answer { sequence: question.sequence, binding, verdict: verdict.into(), code: code.to_owned(), ..Answer::default() };
        stand.sidecar_says(stand.stream(), sidecar_message::Message::Answer(answer));
        assert_eq!(stand.reply(request), Some(expected), "{code}");
    }
}

#[test]
fn requests_wait_for_the_first_keys_and_are_judged_then() {
    let stand = Stand::new();
    let genuine = stand.send();
    stand.request_is(&[("x-smallstep-webhook-id", "other")]);
    let unknown = stand.send();
    stand.request_is(&[]);
    *stand.host.peer.borrow_mut() = Some((2, certificate("other.example.org").into_bytes()));
    let stranger = stand.send();
    assert_eq!([genuine, unknown, stranger].map(|request| stand.reply(request)), [None; 3]);
    stand.send_keys(1, vec![keys()]);
    stand.refused(unknown, Refusal::WebhookUnknown);
    stand.refused(stranger, Refusal::Caller);
    let [question] = stand.questions(stand.stream()).try_into().unwrap();
    stand.allow(stand.stream(), &question);
    assert_eq!(stand.reply(genuine), Some((200, true)));
}

#[test]
fn without_keys_the_deadline_ends_the_wait() {
    let stand = Stand::new();
    let request = stand.send();
    stand.tick(Duration::from_millis(3_499));
    assert_eq!(stand.reply(request), None);
    stand.tick(Duration::from_millis(1));
    stand.refused(request, Refusal::NoKeys);
}

#[test]
fn a_question_without_an_answer_ends_at_the_deadline_and_its_late_answer_is_for_nobody() {
    let stand = Stand::attached();
    let request = stand.send();
    let question = stand.questions(stand.stream()).remove(0);
    stand.tick(Duration::from_millis(3_500));
    stand.refused(request, Refusal::DeadlineExceeded);
    stand.allow(stand.stream(), &question);
    assert_eq!(stand.reply(request), Some((503, false)));
    assert_eq!(stand.host.count_of(Counter::AnswerLate), 1);
}

#[test]
fn a_lost_stream_costs_nobody_a_reply() {
    let stand = Stand::attached();
    let request = stand.send();
    let lost = stand.stream();
    let question = stand.questions(lost).remove(0);
    stand.host.break_stream(lost);
    stand.worker.borrow_mut().on_close(&stand.host, lost, UNAVAILABLE);
    let while_away = stand.send();
    stand.tick(Duration::from_millis(50));
    assert_ne!(stand.stream(), lost);
    assert_eq!(stand.questions(stand.stream()), [], "nothing is asked before the sidecar speaks");
    stand.allow(lost, &question);
    assert_eq!(stand.reply(request), None, "an answer on a stream that is gone counts for nothing");
    stand.send_keys(2, vec![keys()]);
    let questions = stand.questions(stand.stream());
    assert_eq!(questions.len(), 2);
    for question in &questions {
        stand.allow(stand.stream(), question);
    }
    assert_eq!([request, while_away].map(|request| stand.reply(request)), [Some((200, true)); 2]);
}

#[test]
fn a_draining_stream_still_answers_and_the_rest_is_asked_of_the_next() {
    let stand = Stand::attached();
    let before = stand.send();
    let old = stand.stream();
    let question = stand.questions(old).remove(0);
    stand.sidecar_says(old, sidecar_message::Message::Drain(Drain {}));
    let after = stand.send();
    assert_eq!(stand.questions(old).len(), 1);
    stand.tick(Duration::from_millis(50));
    stand.send_keys(2, vec![keys()]);
    let next = stand.stream();
    assert_ne!(next, old);
    stand.allow(old, &question);
    assert_eq!(stand.reply(before), Some((200, true)));
    let question = stand.questions(next).remove(0);
    stand.allow(next, &question);
    assert_eq!(stand.reply(after), Some((200, true)));
}

#[test]
fn keys_of_a_sidecar_that_drains_do_not_replace_those_of_the_next() {
    let stand = Stand::attached();
    let old = stand.stream();
    stand.sidecar_says(old, sidecar_message::Message::Drain(Drain {}));
    stand.tick(Duration::from_millis(50));
    stand.send_keys(1, vec![keys()]);
    stand.sidecar_says(old, sidecar_message::Message::Webhooks(WebhookSet { revision: 9, webhooks: vec![] }));
    assert_eq!(stand.reply(stand.send()), None);
    assert_eq!(stand.questions(stand.stream()).len(), 1);
}

#[test]
fn a_sidecar_that_stopped_is_given_up_and_asked_nothing_until_it_speaks() {
    let stand = Stand::attached();
    let stopped = stand.stream();
    let request = stand.send();
    stand.tick(Duration::from_secs(7) + Duration::from_millis(1));
    stand.refused(request, Refusal::DeadlineExceeded);
    assert_eq!(stand.host.count_of(Counter::StreamReset), 1);
    let next = stand.stream();
    assert_ne!(next, stopped);
    let waiting = stand.send();
    assert_eq!(stand.questions(next), []);
    stand.tick(Duration::from_secs(2) + Duration::from_millis(1));
    assert_eq!(stand.host.count_of(Counter::StreamReset), 2, "a stream on which nobody speaks is given up too");
    stand.tick(Duration::from_millis(1_500));
    stand.refused(waiting, Refusal::SidecarUnavailable);
}

#[test]
fn nonsense_from_the_sidecar_ends_the_stream_and_decides_nothing() {
    let stand = Stand::attached();
    let request = stand.send();
    stand.worker.borrow_mut().on_message(&stand.host, stand.stream(), b"\xff\xff\xff");
    assert_eq!(stand.reply(request), None);
    stand.tick(Duration::from_millis(50));
    stand.send_keys(2, vec![keys()]);
    let question = stand.questions(stand.stream()).remove(0);
    stand.allow(stand.stream(), &question);
    assert_eq!(stand.reply(request), Some((200, true)));
}

#[test]
fn a_message_of_an_unknown_kind_is_ignored() {
    let stand = Stand::attached();
    let request = stand.send();
    // Field 15, length-delimited, which no release knows.
    stand.worker.borrow_mut().on_message(&stand.host, stand.stream(), &[0x7a, 0x01, 0x00]);
    stand.worker.borrow_mut().on_message(&stand.host, stand.stream(), &[]);
    let question = stand.questions(stand.stream()).remove(0);
    stand.allow(stand.stream(), &question);
    assert_eq!(stand.reply(request), Some((200, true)));
}

#[test]
fn the_table_is_bounded_in_count() {
    let stand = Stand::with(Settings { max_waiting: 2, ..Settings::default() });
    let requests = [(); 3].map(|()| stand.send());
    assert_eq!(requests.map(|request| stand.reply(request)), [None, None, Some((503, false))]);
    stand.done(requests[0]);
    assert_eq!(stand.reply(stand.send()), None);
    assert_eq!(stand.host.count_of(Counter::ClientGone), 1);
}

#[test]
fn the_table_is_bounded_in_bytes_until_the_sidecar_answers_or_the_stream_ends() {
    let stand = Stand::with(Settings { max_waiting_bytes: 3000, ..Settings::default() });
    stand.send_keys(1, vec![keys()]);
    let mut waiting = Vec::new();
    let refused = loop {
        let request = stand.send();
        if stand.reply(request).is_some() {
            break request;
        }
        waiting.push(request);
    };
    stand.refused(refused, Refusal::Overloaded);
    assert!(waiting.len() > 1);
    // The clients are gone, but their questions are still in Envoy's buffers.
    for request in waiting {
        stand.done(request);
    }
    assert_eq!(stand.reply(stand.send()), Some((503, false)));
    let stream = stand.stream();
    for question in stand.questions(stream) {
        stand.allow(stream, &question);
    }
    assert_eq!(stand.reply(stand.send()), None);
}

#[test]
fn f_the_bound_in_bytes_is_exact() {
    let stand = Stand::attached();
    stand.send();
    let (_, one, _) = stand.gauges();
    // Two certificates may differ in length, so both stands use the same one.
    let peer = stand.host.peer.borrow().clone();
    for (max_waiting_bytes, fit) in [(2 * one - 1, 1), (2 * one, 2), (2 * one + 1, 2)] {
        let stand = Stand::with(Settings { max_waiting_bytes, ..Settings::default() });
        stand.host.peer.borrow_mut().clone_from(&peer);
        stand.send_keys(1, vec![keys()]);
        let waiting = [(); 3].map(|()| stand.send()).into_iter().filter(|request| stand.reply(*request).is_none()).count();
        assert_eq!(waiting, fit, "{max_waiting_bytes}");
    }
}

#[test]
fn keys_that_come_do_not_push_the_table_over_its_bound() {
    let stand = Stand::with(Settings { max_waiting_bytes: 20_000, ..Settings::default() });
    stand.request_is(&[("x-request-id", &"r".repeat(256)), ("tracestate", &"t".repeat(256)), ("traceparent", &"p".repeat(256))]);
    while stand.reply(stand.send()).is_none() {}
    stand.send_keys(1, vec![keys()]);
    let asked: usize = stand.questions(stand.stream()).iter().map(prost::Message::encoded_len).sum();
    assert!((10_000..=20_000).contains(&asked), "{asked}");
}

#[test]
fn thousands_of_replies_go_out_sixty_four_at_a_time() {
    let stand = Stand::new();
    let requests: Vec<_> = (0..4000).map(|_| stand.send()).collect();
    assert!(requests.iter().all(|request| stand.reply(*request).is_none()));
    assert_eq!(stand.gauges().0, 4000);
    stand.tick(Duration::from_millis(3_500));
    let mut ticks = 1;
    while requests.iter().any(|request| stand.host.replies_to(*request).is_empty()) {
        assert_eq!(stand.host.tick.get(), BUSY_TICK);
        stand.tick(BUSY_TICK);
        ticks += 1;
        assert!(ticks <= 4000_usize.div_ceil(REPLIES_AT_ONCE));
    }
    assert!(stand.host.most_in_callback.get() <= REPLIES_AT_ONCE);
    assert_eq!(stand.host.tick.get(), IDLE_TICK);
    assert_eq!(stand.host.twice.get(), 0);
    assert_eq!(stand.gauges().0, 0);
}

#[test]
fn a_client_that_goes_is_not_answered() {
    let stand = Stand::attached();
    let request = stand.send();
    let question = stand.questions(stand.stream()).remove(0);
    stand.done(request);
    stand.allow(stand.stream(), &question);
    stand.tick(Duration::from_secs(4));
    assert_eq!(stand.host.replies_to(request), []);
    assert_eq!(stand.host.count_of(Counter::AnswerLate), 1);
}

#[test]
fn new_keys_count_for_a_request_whose_body_is_still_coming() {
    let stand = Stand::attached();
    let request = stand.headers(false);
    stand.send_keys(1, vec![WebhookKeys { callers: vec!["dns:other.example.org".to_owned()], ..keys() }]);
    stand.body(request, BODY.len(), true);
    stand.refused(request, Refusal::Caller);
}

#[test]
fn a_clock_that_was_set_back_does_not_keep_the_stream_away() {
    let stand = Stand::new();
    stand.host.reachable.set(false);
    let first = stand.stream();
    stand.host.break_stream(first);
    stand.worker.borrow_mut().on_close(&stand.host, first, UNAVAILABLE);
    let back = FakeHost::new(NOW - 3_600_000_000_000);
    stand.worker.borrow_mut().on_tick(&back);
    assert_eq!(back.streams.borrow().len(), 1);
}

#[test]
fn f_each_webhook_has_its_own_deadline() {
    for (deadline_ms, default_ms) in [(900, 3500), (3_800, 1000)] {
        let stand = Stand::with(Settings { deadline_ms: default_ms, ..Settings::default() });
        stand.send_keys(1, vec![WebhookKeys { deadline_ms, ..keys() }]);
        let request = stand.send();
        let [question] = stand.questions(stand.stream()).try_into().unwrap();
        assert_eq!(question.deadline_unix_nanos, u64::try_from(NOW).unwrap() + u64::from(deadline_ms) * 1_000_000);
        stand.tick(Duration::from_millis(u64::from(deadline_ms) - 1));
        assert_eq!(stand.reply(request), None, "{deadline_ms}");
        stand.tick(Duration::from_millis(1));
        stand.refused(request, Refusal::DeadlineExceeded);
    }
}

#[test]
fn f_a_webhooks_deadline_counts_from_the_headers_for_what_waited_for_keys_too() {
    let stand = Stand::new();
    let request = stand.send();
    stand.tick(Duration::from_millis(500));
    stand.send_keys(1, vec![WebhookKeys { deadline_ms: 900, ..keys() }]);
    let [question] = stand.questions(stand.stream()).try_into().unwrap();
    assert_eq!(question.deadline_unix_nanos, u64::try_from(NOW).unwrap() + 900_000_000);
    stand.tick(Duration::from_millis(399));
    assert_eq!(stand.reply(request), None);
    stand.tick(Duration::from_millis(1));
    stand.refused(request, Refusal::DeadlineExceeded);
}

#[test]
fn f_each_webhook_has_its_own_limit() {
    let stand = Stand::with(Settings { body_limit: 10, ..Settings::default() });
    stand.send_keys(1, vec![WebhookKeys { body_limit: 200, ..keys() }]);
    assert_eq!(stand.reply(stand.send()), None);
    for (length, refused) in [("200", false), ("201", true)] {
        stand.request_is(&[("content-length", length)]);
        assert_eq!(stand.reply(stand.headers(false)), refused.then_some((413, false)), "{length}");
    }
    // Without keys the limit is the configured one, exactly, and the refusal does not depend on the caller.
    let stand = Stand::with(Settings { body_limit: 200, ..Settings::default() });
    for (size, refused) in [(200, false), (201, true)] {
        let request = stand.headers(false);
        stand.body(request, size, false);
        assert_eq!(stand.reply(request), refused.then_some((503, false)), "{size}");
    }
}

#[test]
fn f_the_time_is_judged_by_the_arrival_and_not_by_when_the_keys_came() {
    // The request is 29 s old when it comes, and 30.9 s when the keys come.
    let stand = Stand::new();
    let in_time = stand.stamped(-29);
    stand.tick(Duration::from_millis(1_900));
    stand.send_keys(1, vec![keys()]);
    assert_eq!(stand.reply(in_time), None);
    assert_eq!(stand.questions(stand.stream()).len(), 1);
    // The request is 6 s ahead when it comes, and 4.1 s when the keys come.
    let stand = Stand::new();
    let ahead = stand.stamped(6);
    stand.tick(Duration::from_millis(1_900));
    stand.send_keys(1, vec![keys()]);
    stand.refused(ahead, Refusal::TimestampFuture);
    assert_eq!(stand.questions(stand.stream()), []);
}

#[test]
fn f_a_connections_certificate_is_read_once_and_so_many_are_remembered() {
    let stand = Stand::attached();
    let pem = certificate("ca.example.org").into_bytes();
    let from = |id: u64| {
        *stand.host.peer.borrow_mut() = Some((id, pem.clone()));
        let before = stand.host.certificate_reads.get();
        let request = stand.headers(false);
        stand.done(request);
        stand.host.certificate_reads.get() - before
    };
    let connections = u64::try_from(CONNECTIONS).unwrap();
    assert_eq!((from(1), from(1)), (1, 0));
    assert_eq!((2..=connections).map(from).sum::<usize>(), CONNECTIONS - 1);
    assert_eq!(stand.worker.borrow().connections.len(), CONNECTIONS);
    assert_eq!((from(1), from(connections)), (0, 0));
    // One more connection takes the place of the oldest.
    assert_eq!((from(connections + 1), from(2), from(1)), (1, 0, 1));
    (0..10 * connections).for_each(|id| _ = from(id));
    assert_eq!(stand.worker.borrow().connections.len(), CONNECTIONS);
}

/// A certificate of the caller with this many more names.
fn with_names(count: usize) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let names = (0..count).map(|at| format!("{at}.of.many.names.example.org")).chain(["ca.example.org".to_owned()]);
    params.subject_alt_names = names.map(|name| SanType::DnsName(name.try_into().unwrap())).collect();
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem().into_bytes()
}

#[test]
fn f7_connections_that_are_remembered_are_bounded_by_their_bytes() {
    let stand = Stand::attached();
    let pem = with_names(250);
    for id in 1..=400 {
        *stand.host.peer.borrow_mut() = Some((id, pem.clone()));
        let request = stand.headers(false);
        assert_eq!(stand.reply(request), None);
        stand.done(request);
        let worker = stand.worker.borrow();
        assert_eq!(worker.connections_bytes, worker.connections.values().map(|connection| connection.bytes()).sum::<usize>());
        assert!(worker.connections_bytes <= CONNECTIONS_BYTES);
        assert!(worker.connections.contains_key(&id));
    }
    let remembered = stand.worker.borrow().connections.len();
    assert!((50..300).contains(&remembered), "{remembered}");
}

#[test]
fn f7_the_bound_of_remembered_connections_in_bytes_is_exact() {
    let pem = certificate("ca.example.org").into_bytes();
    for (over, remembered) in [(0, 2), (1, 1)] {
        let stand = Stand::attached();
        for id in [1, 2] {
            *stand.host.peer.borrow_mut() = Some((id, pem.clone()));
            stand.headers(false);
            // After the first connection there is room for one of the same size, or for a byte less.
            let one = stand.worker.borrow().connections[&id].bytes();
            stand.worker.borrow_mut().connections_bytes += if id == 1 { CONNECTIONS_BYTES - 2 * one + over } else { 0 };
        }
        assert_eq!(stand.worker.borrow().connections.len(), remembered);
    }
}

#[test]
fn f7_a_certificate_that_is_larger_than_any_need_be_is_nobodys() {
    for names in [256, 2000] {
        let stand = Stand::attached();
        *stand.host.peer.borrow_mut() = Some((2, with_names(names)));
        stand.refused(stand.headers(false), Refusal::Caller);
        assert!(stand.worker.borrow().connections_bytes < 1024);
        assert_eq!(stand.host.count_of(Counter::CertificateUnreadable), 1);
    }
}

#[test]
fn f6_certificates_that_cannot_be_read_are_counted_and_ten_in_a_minute_are_logged() {
    let stand = Stand::attached();
    let before = stand.host.logged.borrow().len();
    let lines = || stand.host.logged.borrow().len() - before;
    let mut id = 1;
    let mut refuse = |count: u64| {
        for _ in 0..count {
            id += 1;
            *stand.host.peer.borrow_mut() = Some((id, b"no certificate".to_vec()));
            let request = stand.headers(false);
            assert_eq!(stand.host.replies_to(request).len(), 1);
        }
    };
    refuse(100);
    assert_eq!((lines(), stand.host.count_of(Counter::CertificateUnreadable)), (10, 100));
    // Within the minute the budget stays spent.
    stand.tick(Duration::from_secs(59));
    refuse(1);
    assert_eq!(lines(), 10);
    stand.tick(Duration::from_secs(1));
    refuse(1);
    assert_eq!(lines(), 11);
    assert!(stand.host.logged.borrow().last().unwrap().contains("91 such lines left out"));
}

#[test]
fn f_a_connection_without_a_number_is_read_each_time_and_remembered_never() {
    let stand = Stand::attached();
    *stand.host.peer.borrow_mut() = None;
    stand.refused(stand.send(), Refusal::Caller);
    stand.headers(false);
    assert_eq!(stand.host.certificate_reads.get(), 2);
    assert!(stand.worker.borrow().connections.is_empty());
}

#[test]
fn b2_nothing_is_kept_of_who_may_call_no_webhook_whatever_id_it_names() {
    for id in [ID, "unknown", "22222222-2222-4333-8444-555555555555"] {
        let stand = Stand::attached();
        *stand.host.peer.borrow_mut() = Some((2, certificate("other.example.org").into_bytes()));
        stand.request_is(&[("x-smallstep-webhook-id", id)]);
        stand.refused(stand.headers(false), Refusal::Caller);
    }
    // A caller that may call another webhook is refused only with its whole request.
    let stand = Stand::attached();
    stand.request_is(&[("x-smallstep-webhook-id", "unknown")]);
    let request = stand.headers(false);
    assert_eq!(stand.reply(request), None);
    stand.body(request, BODY.len(), true);
    stand.refused(request, Refusal::WebhookUnknown);
}

#[test]
fn b2_what_is_no_webhook_is_refused_at_its_headers() {
    for (changes, refusal) in [
        (&[(":path", "/nothing/here")][..], Refusal::Path),
        (&[(":method", "PUT")], Refusal::Method),
        (&[("x-smallstep-signature", "")], Refusal::SignatureHeader),
        (&[("x-smallstep-webhook-id", "")], Refusal::WebhookIdHeader),
        (&[("content-length", "4097")], Refusal::TooLarge),
    ] {
        let stand = Stand::attached();
        stand.request_is(changes);
        stand.refused(stand.headers(false), refusal);
    }
}

#[test]
fn b2_before_there_are_keys_nobody_is_told_what_a_caller_would_be() {
    let settings = || Settings { body_limit: 200, ..Settings::default() };
    let stand = Stand::with(settings());
    stand.request_is(&[("content-length", "201")]);
    stand.refused(stand.headers(false), Refusal::NoKeys);
    let stand = Stand::with(settings());
    stand.request_is(&[]);
    let request = stand.headers(false);
    stand.body(request, 201, false);
    stand.refused(request, Refusal::NoKeys);
    // Without keys the caller is not told either that there is no room; with keys it is.
    for (keyed, refusal) in [(false, Refusal::NoKeys), (true, Refusal::Overloaded)] {
        let stand = Stand::with(Settings { max_waiting: 1, ..Settings::default() });
        if keyed {
            stand.send_keys(1, vec![keys()]);
        }
        stand.send();
        stand.refused(stand.send(), refusal);
    }
}

#[test]
fn f_a_body_that_is_not_there_as_long_as_it_was_said_to_be_is_no_fault_of_the_caller() {
    for size in [BODY.len() + 1, BODY.len() * 2] {
        let stand = Stand::attached();
        let request = stand.headers(false);
        stand.body(request, size, true);
        stand.refused(request, Refusal::Internal);
        assert_eq!(stand.questions(stand.stream()), []);
    }
    // The same if the host gives less of the body: that part may be signed, and be another body.
    let stand = Stand::new();
    stand.host.body_short.set(true);
    let request = stand.headers(false);
    stand.body(request, BODY.len(), true);
    stand.refused(request, Refusal::Internal);
}

#[test]
fn f_the_address_of_whoever_shows_no_certificate_is_told_too() {
    for peer in [Vec::new(), b"nonsense".to_vec()] {
        let stand = Stand::new();
        stand.send_keys(1, vec![WebhookKeys { anonymous: true, callers: Vec::new(), ..keys() }]);
        *stand.host.peer.borrow_mut() = Some((2, peer.clone()));
        stand.send();
        let [question] = stand.questions(stand.stream()).try_into().unwrap();
        assert_eq!((&*question.peer_address, question.peer_certificate.len()), ("192.0.2.1:4711", 0));
        assert_eq!(stand.host.logged.borrow().iter().any(|line| line.contains("certificate")), !peer.is_empty());
    }
}

#[test]
fn f_what_the_sidecar_says_of_itself_is_logged_in_forty_printable_letters() {
    let stand = Stand::new();
    let version = format!("1.2 \n\u{202e}é{}", "x".repeat(100));
    let hello = SidecarHello { version: version.clone(), ..SidecarHello::default() };
    stand.sidecar_says(stand.stream(), sidecar_message::Message::Hello(hello.clone()));
    stand.sidecar_says(stand.stream(), sidecar_message::Message::Hello(SidecarHello { name: version, ..hello }));
    let shown = format!("1.2{}", "x".repeat(37));
    let lines = [format!("attached to the sidecar, release {shown}"), format!("attached to the sidecar {shown}, release {shown}")];
    assert_eq!(*stand.host.logged.borrow(), lines);
}

#[test]
fn the_log_says_which_sidecar_drains_and_which_does_not_answer() {
    let stand = Stand::new();
    let attach = |name: &str| {
        stand.send_keys(1, vec![keys()]);
        let hello = SidecarHello { name: name.to_owned(), ..SidecarHello::default() };
        stand.sidecar_says(stand.stream(), sidecar_message::Message::Hello(hello));
    };
    attach("a");
    let drained = stand.stream();
    stand.sidecar_says(drained, sidecar_message::Message::Drain(Drain {}));
    stand.tick(IDLE_TICK);
    assert_ne!(stand.stream(), drained, "the next stream is there before the first one ends");
    attach("b");
    stand.send();
    stand.lose(drained);
    stand.tick(Duration::from_millis(7_100));
    let logged = stand.host.logged.borrow();
    let said: Vec<_> = logged.iter().filter(|line| !line.starts_with("attached")).collect();
    assert_eq!(said, ["the sidecar a drains; asking the rest on the next stream", "the sidecar b does not answer; giving the stream up"]);
}

#[test]
fn a_sidecar_that_refuses_this_envoy_is_said_to_within_a_limit_and_the_next_one_is_tried() {
    let stand = Stand::new();
    let refuse = |stream| {
        stand.host.begin_callback();
        stand.host.streams.borrow_mut().remove(&stream);
        stand.worker.borrow_mut().on_close(&stand.host, stream, PERMISSION_DENIED);
    };
    let waiting = stand.send();
    for _ in 0..15 {
        refuse(stand.stream());
        assert!(stand.host.streams.borrow().is_empty());
        // As long as the longest wait between two attempts.
        stand.tick(Duration::from_millis(500));
        assert!(!stand.host.streams.borrow().is_empty());
    }
    let said =
        stand.host.logged.borrow().iter().filter(|line| line.contains("refuses this Envoy: its client certificate has no name")).count();
    assert_eq!(said, 10);
    assert_eq!(stand.reply(waiting), Some((503, false)), "its time is over, and no key was told");
}

#[test]
fn f_gauges_show_what_waits_and_whether_there_is_somebody_to_ask() {
    let stand = Stand::new();
    let waiting = stand.send();
    let (count, bytes, attached) = stand.gauges();
    assert_eq!((count, attached), (1, false));
    assert!(bytes > BODY.len(), "{bytes}");
    stand.send_keys(1, vec![keys()]);
    let [question] = stand.questions(stand.stream()).try_into().unwrap();
    let (count, bytes, attached) = stand.gauges();
    assert_eq!((count, attached), (1, true));
    let message = FilterMessage { message: Some(filter_message::Message::Question(question.clone())) };
    assert_eq!(bytes, message.encoded_len());
    stand.allow(stand.stream(), &question);
    assert_eq!(stand.reply(waiting), Some((200, true)));
    assert_eq!(stand.gauges(), (0, 0, true));
    stand.lose(stand.stream());
    assert_eq!(stand.gauges(), (0, 0, false));
}

#[test]
fn f_what_waits_is_counted_in_the_table_until_it_is_answered_or_gone() {
    let stand = Stand::new();
    let table = |stand: &Stand| (stand.worker.borrow().table.len(), stand.worker.borrow().table.unasked_bytes() > 0);
    let (first, second) = (stand.send(), stand.send());
    stand.counts_are_right();
    assert_eq!(table(&stand), (2, true));
    stand.done(first);
    assert_eq!(table(&stand), (1, true));
    stand.send_keys(1, vec![keys()]);
    // The question was asked: its bytes are in the stream's buffer now.
    assert_eq!(table(&stand), (1, false));
    stand.counts_are_right();
    stand.lose(stand.stream());
    assert_eq!(table(&stand), (1, true));
    stand.counts_are_right();
    stand.tick(Duration::from_millis(3_500));
    stand.refused(second, Refusal::SidecarUnavailable);
    assert_eq!(table(&stand), (0, false));
}

/// The replies in a report, as `reason count`.
fn replied(report: &Report) -> Vec<String> {
    report.replies.iter().map(|replies| format!("{} {}", replies.reason, replies.count)).collect()
}

#[test]
fn e3_what_was_counted_is_reported_once_and_every_five_seconds_something_is_said() {
    let stand = Stand::attached();
    stand.request_is(&[("x-smallstep-signature", &"0".repeat(64))]);
    stand.send();
    stand.request_is(&[]);
    stand.send();
    stand.tick(IDLE_TICK);
    let first = stand.take_report();
    assert_eq!(replied(&first), ["signature 1"]);
    let happened: Vec<_> = first.events.iter().map(|events| (events.event(), events.count)).collect();
    assert_eq!(happened, [(Happened::StreamOpened, 1), (Happened::KeysReceived, 1)]);
    let (count, bytes, _) = stand.gauges();
    assert_eq!((first.waiting, first.waiting_bytes), (count as u64, bytes as u64));
    let question = stand.questions(stand.stream()).remove(0);
    stand.host.advance(Duration::from_millis(20));
    stand.allow(stand.stream(), &question);
    for _ in 0..99 {
        stand.tick(IDLE_TICK);
    }
    assert_eq!(stand.reports(stand.stream()).len(), 1, "they are rare");
    stand.tick(IDLE_TICK);
    let second = stand.take_report();
    assert_eq!((replied(&second), second.events.len(), second.waiting), (vec!["allowed 1".to_owned()], 0, 0));
    assert_eq!((second.took.len(), second.took_micros), (1, 70_000));
    stand.tick(Duration::from_secs(5));
    let quiet = stand.take_report();
    assert_eq!(quiet, Report { number: quiet.number, ..Report::default() }, "it lives");
    assert!(first.number < second.number && second.number < quiet.number);
}

#[test]
fn e3_a_report_that_nobody_took_is_in_the_first_one_of_the_next_stream() {
    let stand = Stand::attached();
    let refuse = || {
        stand.request_is(&[("x-smallstep-signature", &"0".repeat(64))]);
        stand.send();
    };
    refuse();
    stand.tick(IDLE_TICK);
    let lost = stand.reports(stand.stream()).pop().unwrap();
    refuse();
    // While one report is on its way no other is sent, and the confirmation of an unknown number confirms nothing.
    stand.sidecar_says(stand.stream(), sidecar_message::Message::Reported(Reported { number: lost.number + 1 }));
    stand.tick(Duration::from_secs(20));
    assert_eq!(stand.reports(stand.stream()), [lost]);
    stand.lose(stand.stream());
    refuse();
    stand.tick(Duration::from_secs(1));
    stand.send_keys(1, vec![keys()]);
    stand.tick(IDLE_TICK);
    let all = stand.take_report();
    assert_eq!(replied(&all), ["signature 3"]);
    assert_eq!(all.events.iter().find(|events| events.event() == Happened::StreamOpened).map(|events| events.count), Some(2));
    stand.tick(Duration::from_secs(5));
    assert_eq!(replied(&stand.take_report()), [""; 0], "nothing is reported twice");
}

#[test]
fn e3_a_stream_that_may_be_asked_on_is_told_at_once_what_was_counted_and_new_keys_on_it_bring_no_report_forward() {
    let stand = Stand::attached();
    stand.tick(IDLE_TICK);
    stand.take_report();
    stand.send_keys(2, vec![keys()]);
    stand.tick(IDLE_TICK);
    assert_eq!(stand.reports(stand.stream()).len(), 1, "it has heard of this worker");
    stand.lose(stand.stream());
    stand.tick(Duration::from_secs(1));
    stand.send_keys(2, vec![keys()]);
    stand.tick(IDLE_TICK);
    assert_eq!(stand.reports(stand.stream()).len(), 1, "whoever listens there has not");
}

#[test]
fn e3_a_report_that_cannot_be_sent_is_kept_and_its_stream_left() {
    let stand = Stand::attached();
    stand.host.deaf.set(true);
    stand.tick(IDLE_TICK);
    assert!(!stand.gauges().2);
    stand.host.deaf.set(false);
    stand.tick(Duration::from_secs(1));
    stand.send_keys(1, vec![keys()]);
    stand.tick(IDLE_TICK);
    let opened = stand.take_report().events.into_iter().find(|events| events.event() == Happened::StreamOpened);
    assert!(opened.is_some_and(|events| events.count >= 2));
}

#[test]
fn e3_the_clock_of_a_caller_is_reported_where_every_request_is_refused_for_it_and_a_forged_one_says_nothing() {
    let stand = Stand::attached();
    let refused = |seconds| {
        let request = stand.stamped(seconds);
        assert_eq!(stand.reply(request).map(|(status, _)| status), Some(401), "{seconds}");
    };
    refused(-40);
    refused(9);
    // The signature does not fit.
    stand.request_is(&[("x-smallstep-signature", &"0".repeat(64))]);
    *stand.host.body.borrow_mut() = br#"{"timestamp":"1970-01-01T00:00:00Z"}"#.to_vec();
    stand.send();
    stand.tick(IDLE_TICK);
    let report = stand.take_report();
    let skews: Vec<_> = report.skews.iter().map(|skew| (skew.webhook_id.as_str(), skew.ahead_nanos)).collect();
    assert_eq!(skews, [(ID, 9_000_000_000)], "the last one's");
    assert_eq!(replied(&report), ["signature 1", "timestamp_past 1", "timestamp_future 1"]);
    stand.tick(Duration::from_secs(5));
    assert_eq!(stand.take_report().skews, []);
}

#[test]
fn e3_a_request_that_came_before_the_keys_says_its_callers_clock_too() {
    let stand = Stand::new();
    let request = stand.stamped(60);
    assert_eq!(stand.reply(request), None);
    stand.send_keys(1, vec![keys()]);
    assert_eq!(stand.reply(request).map(|(status, _)| status), Some(401));
    stand.tick(IDLE_TICK);
    assert_eq!(stand.take_report().skews[0].ahead_nanos, 60_000_000_000);
}

#[test]
fn e3_a_clock_that_is_set_back_ends_no_reports() {
    let stand = Stand::attached();
    stand.tick(Duration::from_secs(3600));
    stand.take_report();
    stand.host.set(NOW);
    stand.tick(Duration::ZERO);
    assert_eq!(stand.reports(stand.stream()).len(), 2);
}

#[test]
fn e3_the_vm_of_the_main_thread_says_so() {
    for main in [false, true] {
        let host = FakeHost::new(NOW);
        let mut worker = Worker::new(Settings::default(), 7);
        if main {
            worker = worker.of_main_thread();
        }
        worker.start(&host);
        let streams = host.streams.borrow();
        let hello = FilterMessage::decode(streams.values().next().unwrap()[0].as_slice()).unwrap().message;
        assert!(matches!(hello, Some(filter_message::Message::Hello(hello)) if hello.main == main));
    }
}

#[test]
fn f_latency_is_that_of_decisions_from_when_the_whole_request_was_there() {
    let stand = Stand::attached();
    let request = stand.headers(false);
    stand.host.advance(Duration::from_millis(70));
    stand.body(request, BODY.len(), true);
    stand.host.advance(Duration::from_millis(20));
    let question = stand.questions(stand.stream()).remove(0);
    stand.allow(stand.stream(), &question);
    assert_eq!(*stand.host.latencies.borrow(), [20_000]);
    stand.request_is(&[("x-smallstep-signature", &"0".repeat(64))]);
    stand.send();
    assert_eq!(stand.host.latencies.borrow().len(), 1);
}

#[test]
fn f_a_stream_that_cannot_be_sent_on_is_left_and_its_questions_are_asked_of_the_next() {
    let stand = Stand::attached();
    let (old, before) = (stand.stream(), stand.send());
    stand.host.deaf.set(true);
    let after = stand.send();
    // A stream on which the greeting cannot be sent is given up at once.
    stand.tick(IDLE_TICK);
    assert_eq!(stand.host.cancelled.borrow().len(), 1);
    assert_eq!(stand.host.count_of(Counter::StreamOpened), 1);
    stand.host.deaf.set(false);
    stand.tick(LONGEST);
    assert_ne!(stand.stream(), old);
    stand.send_keys(2, vec![keys()]);
    for question in stand.questions(stand.stream()) {
        stand.allow(stand.stream(), &question);
    }
    assert_eq!([before, after].map(|request| stand.reply(request)), [Some((200, true)); 2]);
    stand.counts_are_right();
}

/// The longest wait before a stream is opened again.
const LONGEST: Duration = Duration::from_millis(500);

/// The moments, in milliseconds, at which a stream is opened while no sidecar can be reached.
fn tries(stand: &Stand, over: u64) -> Vec<u64> {
    let mut at = Vec::new();
    for millis in 1..=over {
        let before = stand.host.opens.get();
        stand.tick(Duration::from_millis(1));
        if stand.host.opens.get() > before {
            at.push(millis);
        }
    }
    at
}

#[test]
fn f_tries_to_reach_the_sidecar_come_ever_slower_to_a_longest_wait() {
    let host_is_away = |stand: &Stand| {
        stand.host.reachable.set(false);
        stand.lose(stand.stream());
    };
    let stand = Stand::new();
    host_is_away(&stand);
    let at = tries(&stand, 5000);
    let waits: Vec<_> = at.iter().scan(0, |last, at| Some(at - std::mem::replace(last, *at))).collect();
    for (wait, longest) in waits.iter().zip([50, 100, 200, 400, 500, 500, 500, 500]) {
        assert!((longest / 2..=longest + 1).contains(wait), "{waits:?}");
    }
    assert!((5000 / 501..=5000 / 250).contains(&(at.len() - 4)) || at.len() > 10, "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= 501), "{waits:?}");
    // Two workers do not move in step, and the waits of one differ.
    let other = Stand::new();
    *other.worker.borrow_mut() = Worker::new(Settings::default(), 8);
    other.worker.borrow_mut().start(&other.host);
    host_is_away(&other);
    assert_ne!(tries(&other, 5000), at);
    assert!(waits[5..].windows(2).any(|pair| pair[0] != pair[1]), "{waits:?}");
}

#[test]
fn f_a_stream_that_was_attached_is_opened_again_at_once_and_patience_starts_anew() {
    let stand = Stand::new();
    stand.host.reachable.set(false);
    stand.lose(stand.stream());
    tries(&stand, 3000);
    stand.host.reachable.set(true);
    stand.tick(LONGEST);
    stand.send_keys(1, vec![keys()]);
    let opens = stand.host.opens.get();
    stand.lose(stand.stream());
    stand.tick(Duration::from_millis(1));
    assert_eq!(stand.host.opens.get(), opens + 1, "at the next tick");
    // The stream ends before keys come: the wait is the shortest, not the last one that was reached.
    stand.host.reachable.set(false);
    stand.lose(stand.stream());
    let at = tries(&stand, 60);
    assert!(at.first().is_some_and(|at| (25..=51).contains(at)), "{at:?}");
}

#[test]
fn f_one_stream_is_open_and_two_where_one_drains() {
    let stand = Stand::attached();
    (0..100).for_each(|_| stand.tick(IDLE_TICK));
    assert_eq!(stand.host.opens.get(), 1);
    let old = stand.stream();
    stand.sidecar_says(old, sidecar_message::Message::Drain(Drain {}));
    (0..20).for_each(|_| stand.tick(IDLE_TICK));
    assert_eq!((stand.host.opens.get(), stand.host.streams.borrow().len()), (2, 2));
    stand.send_keys(2, vec![keys()]);
    // A stream that drains has two deadlines for the answers that it owes.
    stand.tick(Duration::from_secs(6));
    assert_eq!(stand.host.count_of(Counter::StreamReset), 0);
    stand.tick(Duration::from_nanos(1));
    assert_eq!(stand.host.count_of(Counter::StreamReset), 1);
    assert_eq!(*stand.host.cancelled.borrow(), [old]);
    assert_eq!(stand.host.streams.borrow().len(), 1);
}

#[test]
fn f_only_silence_of_two_deadlines_ends_a_stream_that_was_attached() {
    let stand = Stand::attached();
    stand.tick(Duration::from_secs(20));
    assert_eq!(stand.host.count_of(Counter::StreamReset), 0, "nothing was asked");
    stand.send();
    stand.tick(Duration::from_secs(7));
    assert_eq!(stand.host.count_of(Counter::StreamReset), 0);
    stand.tick(Duration::from_nanos(1));
    assert_eq!(stand.host.count_of(Counter::StreamReset), 1);
    // A stream on which the sidecar sends nothing has two seconds.
    let stand = Stand::new();
    stand.tick(Duration::from_secs(2));
    assert_eq!(stand.host.count_of(Counter::StreamReset), 0);
    stand.tick(Duration::from_nanos(1));
    assert_eq!(stand.host.count_of(Counter::StreamReset), 1);
}

#[test]
fn f_an_answer_frees_the_bytes_of_its_question_alone() {
    let stand = Stand::attached();
    let (one, other) = (stand.send(), stand.send());
    let (_, both, _) = stand.gauges();
    let questions = stand.questions(stand.stream());
    stand.allow(stand.stream(), &questions[0]);
    assert_eq!(stand.gauges(), (1, both / 2, true));
    // A second answer frees nothing.
    stand.allow(stand.stream(), &questions[0]);
    assert_eq!(stand.gauges(), (1, both / 2, true));
    assert_eq!([one, other].map(|request| stand.reply(request).is_some()), [true, false]);
}

#[test]
fn f_the_question_says_the_mode_and_the_address_and_each_kind_of_message_is_counted() {
    let stand = Stand::attached();
    for (path, mode) in [
        ("/webhook/a", WireMode::Unspecified),
        ("/webhook/a?mode=mobiledevice", WireMode::MobileDevice),
        ("/webhook/a?mode=computer", WireMode::Computer),
    ] {
        stand.request_is(&[(":path", path), ("tracestate", "a=b")]);
        stand.send();
        let question = stand.questions(stand.stream()).pop().unwrap();
        assert_eq!((question.mode(), &*question.peer_address, &*question.tracestate), (mode, "192.0.2.1:4711", "a=b"), "{path}");
    }
    assert_eq!((stand.host.count_of(Counter::KeysReceived), stand.host.count_of(Counter::StreamOpened)), (1, 1));
    stand.lose(stand.stream());
    assert_eq!(stand.host.count_of(Counter::StreamLost), 1);
}

#[test]
fn f_a_client_that_goes_while_its_body_comes_is_counted_and_one_that_was_answered_is_not() {
    let stand = Stand::attached();
    let coming = stand.headers(false);
    stand.done(coming);
    assert_eq!(stand.host.count_of(Counter::ClientGone), 1);
    stand.request_is(&[(":method", "GET")]);
    let refused = stand.send();
    stand.done(refused);
    assert_eq!(stand.host.count_of(Counter::ClientGone), 1);
}

/// An event of a worker, to happen in any order.
#[derive(Clone, Copy, Debug)]
enum Event {
    Headers { genuine: bool, end: bool },
    Body { of: u8, end: bool },
    Trailers { of: u8 },
    Done { of: u8 },
    Tick { millis: u16 },
    Keys { known: bool },
    Answer { of: u8, right: bool },
    Break { of: u8 },
    Drain,
    Nonsense,
    Reachable(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (any::<bool>(), any::<bool>()).prop_map(|(genuine, end)| Event::Headers { genuine, end }),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(of, end)| Event::Body { of, end }),
        1 => any::<u8>().prop_map(|of| Event::Trailers { of }),
        2 => any::<u8>().prop_map(|of| Event::Done { of }),
        3 => (0u16..5000).prop_map(|millis| Event::Tick { millis }),
        2 => any::<bool>().prop_map(|known| Event::Keys { known }),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(of, right)| Event::Answer { of, right }),
        1 => any::<u8>().prop_map(|of| Event::Break { of }),
        1 => Just(Event::Drain),
        1 => Just(Event::Nonsense),
        1 => any::<bool>().prop_map(Event::Reachable),
    ]
}

fn happen(stand: &Stand, event: Event) {
    let pick = |of: u8| {
        let exchanges = stand.exchanges.borrow();
        exchanges.keys().nth(usize::from(of) % exchanges.len().max(1)).copied()
    };
    let stream = |of: u8| {
        let streams = stand.host.streams.borrow();
        streams.keys().nth(usize::from(of) % streams.len().max(1)).copied()
    };
    match event {
        Event::Headers { genuine, end } => {
            stand.request_is(if genuine { &[] } else { &[("x-smallstep-webhook-id", "other")] });
            stand.headers(end);
        }
        Event::Body { of, end } => {
            if let Some(request) = pick(of) {
                stand.body(request, BODY.len(), end);
            }
        }
        Event::Trailers { of } => {
            if let Some(request) = pick(of) {
                stand.trailers(request);
            }
        }
        Event::Done { of } => {
            if let Some(request) = pick(of) {
                stand.done(request);
            }
        }
        Event::Tick { millis } => stand.tick(Duration::from_millis(millis.into())),
        Event::Keys { known } => {
            if let Some(stream) = stream(0) {
                let webhooks = if known { vec![keys()] } else { vec![] };
                stand.sidecar_says(stream, sidecar_message::Message::Webhooks(WebhookSet { revision: 9, webhooks }));
            }
        }
        Event::Answer { of, right } => {
            if let Some(stream) = stream(of)
                && let Some(question) = stand.questions(stream).into_iter().nth(usize::from(of) / 8)
            {
                let webhook_id = if right { question.webhook_id.clone() } else { "other".to_owned() };
                stand.allow(stream, &Question { webhook_id, ..question });
            }
        }
        Event::Break { of } => {
            if let Some(stream) = stream(of) {
                stand.host.break_stream(stream);
                stand.worker.borrow_mut().on_close(&stand.host, stream, UNAVAILABLE);
            }
        }
        Event::Drain => {
            if let Some(stream) = stream(0) {
                stand.sidecar_says(stream, sidecar_message::Message::Drain(Drain {}));
            }
        }
        Event::Nonsense => {
            if let Some(stream) = stream(0) {
                stand.worker.borrow_mut().on_message(&stand.host, stream, &[0xff]);
            }
        }
        Event::Reachable(reachable) => stand.host.reachable.set(reachable),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_happens_each_request_is_answered_once_and_allowed_only_by_its_own_answer(events in proptest::collection::vec(event(), 1..80)) {
        let stand = Stand::new();
        for event in events {
            happen(&stand, event);
            prop_assert_eq!(stand.host.twice.get(), 0);
            stand.counts_are_right();
        }
        // One more request waits, so that the counts at the end are not trivially zero.
        stand.request_is(&[]);
        stand.host.reachable.set(true);
        let last = stand.send();
        prop_assert!(stand.worker.borrow().table.len() >= usize::from(stand.reply(last).is_none()));
        stand.counts_are_right();
        // The clients that are left send the rest, and wait.
        let left: Vec<_> = stand.exchanges.borrow().keys().copied().collect();
        for request in &left {
            stand.body(*request, BODY.len(), true);
        }
        for _ in 0..200 {
            stand.tick(Duration::from_millis(50));
        }
        for request in left {
            prop_assert_eq!(stand.host.replies_to(request).len(), 1);
        }
        prop_assert!(stand.host.most_in_callback.get() <= REPLIES_AT_ONCE);
        prop_assert_eq!(stand.worker.borrow().table.len(), 0);
        prop_assert_eq!(stand.worker.borrow().table.unasked_bytes(), 0);
        let allowed = stand.host.replies.borrow().iter().filter(|(_, reply)| reply.body.starts_with(b"{\"allow\":true")).count();
        prop_assert_eq!(allowed, stand.host.count_of(Counter::Allowed));
    }
}
