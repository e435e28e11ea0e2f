//! A sidecar that does what a test says, down to the bytes: slow, silent, wrong, gone.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use proto::v1::{
    Answer, FilterMessage, Question, SidecarHello, SidecarMessage, Verdict, WebhookKeys, WebhookSet, filter_message, sidecar_message,
};
use tokio::net::UnixListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::deployment::CLIENT;
use crate::webhook::Registered;

/// A sidecar that speaks `FilterService.Attach` on a socket.
#[derive(Debug)]
pub struct FakeSidecar {
    task: JoinHandle<()>,
    questions: Arc<AtomicU64>,
    streams: Arc<AtomicU64>,
}

/// The stream down to one filter.
#[derive(Clone, Debug)]
pub struct Down(UnboundedSender<Frame<Bytes>>);

impl Down {
    /// Sends a message to the filter.
    pub fn send(&self, message: sidecar_message::Message) {
        self.bytes(&SidecarMessage { message: Some(message) }.encode_to_vec());
    }

    /// Answers a question.
    pub fn answer(&self, answer: Answer) {
        self.send(sidecar_message::Message::Answer(answer));
    }

    /// Sends any bytes as a gRPC message.
    pub fn bytes(&self, message: &[u8]) {
        let mut frame = vec![0];
        frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(message);
        self.raw(frame);
    }

    /// Sends bytes that need not be gRPC.
    pub fn raw(&self, bytes: Vec<u8>) {
        let _ = self.0.send(Frame::data(bytes.into()));
    }

    /// Ends the stream with this gRPC status.
    pub fn close(&self, status: &'static str) {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        let _ = self.0.send(Frame::trailers(trailers));
    }
}

/// The answer that allows a question.
pub fn allow(question: &Question) -> Answer {
    let signature = posture::verify::Signature::from_bytes(&question.signature).unwrap();
    Answer {
        sequence: question.sequence,
        binding: signature.binding(&question.webhook_id).to_vec(),
        verdict: Verdict::Allow.into(),
        data: Bytes::from_static(b"{}"),
        ..Answer::default()
    }
}

/// The keys of a webhook, as the sidecar sends them.
pub fn keys(registered: &Registered) -> WebhookKeys {
    WebhookKeys {
        id: registered.id.clone(),
        secrets: vec![posture::secret::Secret::from_base64(&registered.secret).unwrap().expose().to_vec()],
        callers: vec![format!("dns:{CLIENT}")],
        window_past_ms: 30_000,
        window_future_ms: 5_000,
        deadline_ms: 3_500,
        body_limit: 65_536,
        ..WebhookKeys::default()
    }
}

impl FakeSidecar {
    /// Starts to listen; sends the keys down each stream, and gives each question to `behave`.
    pub fn start(socket: &Path, webhooks: Vec<WebhookKeys>, behave: impl Fn(Question, &Down) + Send + Sync + 'static) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let (behave, questions, streams) = (Arc::new(behave), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (asked, attached) = (Arc::clone(&questions), Arc::clone(&streams));
        let task = tokio::spawn(async move {
            // All connections are aborted together with this task.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (behave, webhooks) = (Arc::clone(&behave), webhooks.clone());
                let (asked, attached) = (Arc::clone(&asked), Arc::clone(&attached));
                let service = service_fn(move |request: Request<Incoming>| {
                    attached.fetch_add(1, Ordering::SeqCst);
                    let (down, frames) = unbounded_channel();
                    let down = Down(down);
                    down.send(sidecar_message::Message::Hello(SidecarHello { version: "0.1.0".to_owned(), ..SidecarHello::default() }));
                    down.send(sidecar_message::Message::Webhooks(WebhookSet { revision: 1, webhooks: webhooks.clone() }));
                    tokio::spawn(listen(request.into_body(), down, Arc::clone(&behave), Arc::clone(&asked)));
                    let body = StreamBody::new(UnboundedReceiverStream::new(frames).map(Ok::<_, Infallible>));
                    let response = Response::builder().header("content-type", "application/grpc").body(body);
                    async move { response }
                });
                connections.spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { task, questions, streams }
    }

    /// The number of questions received.
    pub fn questions(&self) -> u64 {
        self.questions.load(Ordering::SeqCst)
    }

    /// The number of streams opened.
    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::SeqCst)
    }
}

impl Drop for FakeSidecar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(mut body: Incoming, down: Down, behave: Arc<impl Fn(Question, &Down) + Send + Sync + 'static>, asked: Arc<AtomicU64>) {
    let mut buffer = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            buffer.extend_from_slice(&data);
        }
        while buffer.len() >= 5 {
            let length = u32::from_be_bytes(buffer[1..5].try_into().unwrap()) as usize;
            if buffer.len() < 5 + length {
                break;
            }
            buffer.advance(5);
            let message = FilterMessage::decode(buffer.split_to(length)).unwrap();
            if let Some(filter_message::Message::Question(question)) = message.message {
                asked.fetch_add(1, Ordering::SeqCst);
                behave(question, &down);
            }
        }
    }
}
