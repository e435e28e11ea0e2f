//! Bound on bytes in flight: of requests that are not answered yet, and of answers that are not read yet. Bounds of calls count
//! from when a message is whole; before that, and after the answer, only this one holds.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use clock::OnceAMinute;
use futures::future::{BoxFuture, Either, Ready, ready};
use hyper::body::{Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::client::Client;
use super::quota::Kept;
use super::services::{ENDLESS, FILTER_SERVICE, QUESTION, REFLECTION_SERVICE};

/// Bound on the bytes in flight of one listener.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<All>);

#[derive(Debug)]
struct All {
    listener: &'static str,
    most: usize,
    bytes: AtomicUsize,
    /// Shares of the clients that have a call under way.
    by_client: Mutex<HashMap<Client, Weak<Share>>>,
    told: Mutex<OnceAMinute>,
    /// Number of calls that the end of the service waits for.
    awaited: watch::Sender<usize>,
}

/// Mark of a call that the end of the service waits for, until this is dropped.
#[derive(Debug)]
struct Awaited(Arc<All>);

impl Awaited {
    fn new(all: &Arc<All>) -> Self {
        all.awaited.send_modify(|calls| *calls = calls.saturating_add(1));
        Self(Arc::clone(all))
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.awaited.send_modify(|calls| *calls = calls.saturating_sub(1));
    }
}

/// Bytes in flight of one client.
#[derive(Debug)]
struct Share {
    all: Arc<All>,
    client: Client,
    bytes: AtomicUsize,
}

/// Bytes in flight of one call, given back when the call and every byte of its answer are gone.
#[derive(Debug)]
struct Call {
    share: Arc<Share>,
    bytes: AtomicUsize,
    /// Value that the service wants held until the answer was read.
    kept: OnceLock<Kept>,
    awaited: Mutex<Option<Awaited>>,
}

impl Budget {
    /// Makes a bound of `most` bytes; `listener` is for the log.
    pub(super) fn new(listener: &'static str, most: usize) -> Self {
        let (by_client, told, awaited) = (Mutex::default(), Mutex::default(), watch::Sender::new(0));
        Self(Arc::new(All { listener, most, bytes: AtomicUsize::new(0), by_client, told, awaited }))
    }

    /// Resolves once all calls have their answers and a moment has passed. A stream without an end counts as answered when it has
    /// begun: its client may read nothing of it, and then never sees its end either.
    pub(super) async fn is_answered(&self) {
        let mut awaited = self.0.awaited.subscribe();
        loop {
            // The wait cannot fail: the sender lives as long as `self`.
            let _ = awaited.wait_for(|calls| *calls == 0).await;
            if tokio::time::timeout(MOMENT, awaited.wait_for(|calls| *calls > 0)).await.is_err() {
                return;
            }
        }
    }

    fn call(&self, client: Client, bytes: usize) -> Result<Arc<Call>, Status> {
        let mut by_client = self.0.by_client.lock().unwrap_or_else(PoisonError::into_inner);
        let share = match by_client.get(&client).and_then(Weak::upgrade) {
            Some(share) => share,
            None => {
                let share = Arc::new(Share { all: Arc::clone(&self.0), client: client.clone(), bytes: AtomicUsize::new(0) });
                by_client.insert(client, Arc::downgrade(&share));
                share
            }
        };
        drop(by_client);
        let awaited = Mutex::new(Some(Awaited::new(&self.0)));
        let call = Arc::new(Call { share, bytes: AtomicUsize::new(0), kept: OnceLock::new(), awaited });
        call.take(bytes)?;
        Ok(call)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut by_client = self.all.by_client.lock().unwrap_or_else(PoisonError::into_inner);
        // A new share may have come in its place meanwhile.
        if by_client.get(&self.client).is_some_and(|share| share.strong_count() == 0) {
            by_client.remove(&self.client);
        }
    }
}

impl Call {
    /// Takes bytes for the call. One client has at most half of what the others leave, so that there always is something left.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`; nothing is taken then.
    fn take(&self, bytes: usize) -> Result<(), Status> {
        let all = &self.share.all;
        let own = self.share.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let others = all.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes).saturating_sub(own);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if own <= all.most.saturating_sub(others) / 2 {
            return Ok(());
        }
        self.give_back(bytes);
        if all.told.lock().unwrap_or_else(PoisonError::into_inner).is_due(Instant::now()) {
            tracing::warn!(listener = all.listener, client = ?self.share.client, "a client has more bytes in flight than it may");
        }
        Err(Status::resource_exhausted("too much is asked and not answered, or answered and not read: try later, or with less"))
    }

    fn give_back(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.share.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.share.all.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.give_back(self.bytes.load(Ordering::Relaxed));
    }
}

impl<S> Layer<S> for Budget {
    type Service = Metered<S>;

    fn layer(&self, service: S) -> Metered<S> {
        Metered { budget: self.clone(), service }
    }
}

/// Services behind a [`Budget`].
#[derive(Clone, Debug)]
pub(super) struct Metered<S> {
    budget: Budget,
    service: S,
}

impl<S> Service<http::Request<Body>> for Metered<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<BoxFuture<'static, Result<S::Response, S::Error>>, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
        let call = match self.budget.call(Client::of(request.extensions()), CALL.saturating_add(headers)) {
            Ok(call) => call,
            Err(status) => return Either::Right(ready(Ok(status.into_http()))),
        };
        let path = request.uri().path();
        let mode = if path.starts_with(FILTER_SERVICE) {
            Mode { is_one: false, is_due: false }
        } else {
            Mode { is_one: !path.starts_with(REFLECTION_SERVICE), is_due: true }
        };
        let is_endless = ENDLESS.iter().any(|endless| path.starts_with(endless));
        let asking = Arc::clone(&call);
        let answer = self.service.call(request.map(|body| Body::new(Asked::new(body, asking, mode))));
        Either::Left(Box::pin(async move {
            let (mut parts, body) = answer.await?.into_parts();
            if is_endless {
                call.awaited.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
            if let Some(kept) = parts.extensions.remove::<Kept>() {
                // A response has one such value at most.
                let _ = call.kept.set(kept);
            }
            let mut body = Answered { body, call, first: None, is_over: false };
            // An answer that is ready counts from now on, whether or not the client makes room for it.
            match std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut body).poll_frame(context))).await {
                Poll::Ready(Some(Err(status))) => return Ok(status.into_http()),
                Poll::Ready(first) => (body.is_over, body.first) = (first.is_none(), first.and_then(Result::ok)),
                Poll::Pending => {}
            }
            Ok(http::Response::from_parts(parts, Body::new(body)))
        }))
    }
}

/// Kind of the messages that a call takes.
#[derive(Clone, Copy, Debug)]
struct Mode {
    /// Whether the call takes a single message, which counts until it is answered. Of streams the service keeps what it must,
    /// within bounds of its own.
    is_one: bool,
    /// Whether the first message has to come at once.
    is_due: bool,
}

/// Body of a request, counted as it comes in.
struct Asked {
    body: Body,
    call: Arc<Call>,
    mode: Mode,
    /// Number of bytes of the message's header that have come, and then the length that they tell so far.
    header: usize,
    length: usize,
    /// Number of bytes of the message that are still to come.
    missing: usize,
    /// Number of bytes that count for this body.
    taken: usize,
    /// Time by which the message has to be whole, once it was waited for.
    due: Option<Pin<Box<Sleep>>>,
}

impl Asked {
    fn new(body: Body, call: Arc<Call>, mode: Mode) -> Self {
        Self { body, call, mode, header: 0, length: 0, missing: 0, taken: 0, due: None }
    }

    /// Follows the messages: a byte of flags, four of length, and the message (gRPC over HTTP/2, "Length-Prefixed-Message").
    fn follow(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while let Some((byte, rest)) = data.split_first() {
            if self.missing > 0 {
                let more = data.len().min(self.missing);
                self.missing -= more;
                data = data.get(more..).unwrap_or_default();
            } else {
                data = rest;
                self.length = if self.header == 0 { 0 } else { self.length << 8 | usize::from(*byte) };
                self.header += 1;
                if self.header < HEADER {
                    continue;
                }
                // The service makes room for the whole message now; a longer one it refuses by its length.
                let taken = self.length.min(QUESTION);
                self.call.take(taken)?;
                (self.missing, self.taken) = (self.length, self.taken.saturating_add(taken));
            }
            if self.missing == 0 {
                self.header = 0;
                self.mode.is_due = false;
                self.due = None;
                if !self.mode.is_one {
                    self.call.give_back(std::mem::take(&mut self.taken));
                }
            }
        }
        Ok(())
    }
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let followed = frame.data_ref().map_or(Ok(()), |data| this.follow(data));
                Poll::Ready(Some(followed.map(|()| frame)))
            }
            Poll::Ready(other) => Poll::Ready(other),
            Poll::Pending if this.header == 0 && !this.mode.is_due => Poll::Pending,
            Poll::Pending => {
                let due = this.due.get_or_insert_with(|| Box::pin(tokio::time::sleep(MESSAGE)));
                due.as_mut().poll(context).map(|()| Some(Err(Status::deadline_exceeded("the message took too long to come"))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Body of an answer, whose bytes count until they are written.
struct Answered {
    body: Body,
    call: Arc<Call>,
    /// First frame, if it was ready at once.
    first: Option<Frame<Bytes>>,
    is_over: bool,
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if this.is_over {
            return Poll::Ready(None);
        }
        let counted = |data: Bytes| {
            this.call.take(data.len())?;
            Ok(Bytes::from_owner(Counted { data, call: Arc::clone(&this.call) }))
        };
        Pin::new(&mut this.body).poll_frame(context).map(|frame| {
            Some(frame?.and_then(|frame| match frame.into_data() {
                Ok(data) => counted(data).map(Frame::data),
                Err(other) => Ok(other),
            }))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || (self.first.is_none() && self.body.is_end_stream())
    }
}

/// Bytes that count until they are dropped.
struct Counted {
    data: Bytes,
    call: Arc<Call>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.call.give_back(self.data.len());
    }
}

/// Bytes that a call takes besides its messages: buffers and tasks.
const CALL: usize = 16 << 10;

/// Time that the end of the service leaves for answers to be read and for calls that are on their way.
const MOMENT: Duration = Duration::from_millis(250);

/// Length of a message's header, in bytes: its flags and its length.
const HEADER: usize = 5;

/// Longest time of a message from its first byte to its last, and of the first of a call from the call.
const MESSAGE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::FutureExt as _;
    use tonic::Code;

    use super::*;

    fn message(length: usize, there: usize) -> Bytes {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        bytes.resize(HEADER + there, 7);
        bytes.into()
    }

    /// Body that sends pieces and has no end.
    struct Pieces(Vec<Bytes>);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            if self.0.is_empty() { Poll::Pending } else { Poll::Ready(Some(Ok(Frame::data(self.0.remove(0))))) }
        }
    }

    fn asked(budget: &Budget, user: u32, mode: Mode, pieces: &[Bytes]) -> Result<Asked, Status> {
        Ok(Asked::new(Body::new(Pieces(pieces.to_vec())), budget.call(Client::User(user), CALL)?, mode))
    }

    /// Reads what is ready; returns the status that ends the body.
    fn read(body: &mut Asked) -> Option<Status> {
        while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).now_or_never() {
            if let Some(Err(status)) = frame {
                return Some(status);
            }
        }
        None
    }

    const WATCH: &str = "/stepward.v1.PostureService/Watch";
    const ONE: Mode = Mode { is_one: true, is_due: true };
    const MANY: Mode = Mode { is_one: false, is_due: false };

    #[tokio::test(start_paused = true)]
    async fn b_a_message_that_does_not_come_ends_after_five_seconds_and_a_quiet_stream_goes_on() {
        let budget = Budget::new("test", 64 << 20);
        let whole = message(10, 10);
        let cases: [(Mode, &[Bytes], Option<Code>); 6] = [
            (ONE, &[], Some(Code::DeadlineExceeded)),
            (ONE, &[message(1000, 999)], Some(Code::DeadlineExceeded)),
            (ONE, std::slice::from_ref(&whole), None),
            (MANY, &[], None),
            (MANY, &[whole.clone(), whole.slice(..3)], Some(Code::DeadlineExceeded)),
            (MANY, &[whole.slice(..7), whole.slice(7..), whole.clone()], None),
        ];
        for (number, (mode, pieces, expected)) in cases.into_iter().enumerate() {
            let mut body = asked(&budget, 1, mode, pieces).unwrap();
            assert!(read(&mut body).is_none(), "{number}");
            tokio::time::sleep(MESSAGE - Duration::from_millis(10)).await;
            assert!(read(&mut body).is_none(), "{number}");
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(read(&mut body).map(|status| status.code()), expected, "{number}");
        }
        assert_eq!(budget.0.bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn b_what_is_asked_counts_before_it_is_whole_and_a_client_has_half_of_what_others_leave() {
        let budget = Budget::new("test", 16 << 20);
        let begun = |user| asked(&budget, user, ONE, &[message(1 << 20, 1)]).map(|mut body| (read(&mut body), body));
        let held: Vec<_> = (0..7).map(|_| begun(1).unwrap()).collect();
        assert!(held.iter().all(|(status, _)| status.is_none()));
        assert_eq!(begun(1).unwrap().0.unwrap().code(), Code::ResourceExhausted);
        let other: Vec<_> = (0..4).map(|_| begun(2).unwrap()).collect();
        assert!(other.iter().all(|(status, _)| status.is_none()));
        assert_eq!(begun(2).unwrap().0.unwrap().code(), Code::ResourceExhausted);
        assert!(begun(3).unwrap().0.is_none());
        drop((held, other));
        assert_eq!(budget.0.bytes.load(Ordering::Relaxed), 0);
        assert!(budget.0.by_client.lock().unwrap().is_empty());
        // Messages of a stream that were read whole are the service's to bound.
        let mut stream = asked(&budget, 1, MANY, &vec![message(1 << 20, 1 << 20); 20]).unwrap();
        assert!(read(&mut stream).is_none());
        assert_eq!(budget.0.bytes.load(Ordering::Relaxed), CALL);
        // A message that is too long is for the service to refuse, and takes no more than the longest permitted one.
        let mut long = asked(&budget, 2, ONE, &[message(1 << 31, 1)]).unwrap();
        assert!(read(&mut long).is_none());
        assert_eq!(budget.0.bytes.load(Ordering::Relaxed), 2 * CALL + QUESTION);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_waits_for_answers_and_not_for_streams_that_have_none() {
        let budget = Budget::new("test", 16 << 20);
        let answers = tower::service_fn(|_: http::Request<Body>| {
            ready(Ok::<_, Infallible>(http::Response::new(Body::new(Pieces(vec![message(10, 10)])))))
        });
        let mut service = budget.layer(answers);
        let request = |path: &str| http::Request::builder().uri(path).body(Body::empty()).unwrap();
        let mut open = Vec::new();
        for endless in ["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Health/Watch", WATCH] {
            open.push(service.call(request(endless)).await.unwrap());
        }
        budget.is_answered().await;
        let answer = service.call(request("/stepward.v1.PostureService/BatchCheck")).await.unwrap();
        let ends = async || tokio::time::timeout(MOMENT * 20, budget.is_answered()).await.is_ok();
        assert!(!ends().await, "nobody has read it");
        drop(answer);
        assert!(ends().await);
        let attached = service.call(request("/stepward.v1.FilterService/Attach")).await.unwrap();
        assert!(!ends().await, "it ends by itself, with every question answered");
        drop(attached);
        // A call that has no answer is waited for, whatever its kind.
        let asked = budget.call(Client::User(1), CALL).unwrap();
        assert!(!ends().await);
        drop(asked);
        assert!(ends().await && open.len() == 3);
    }

    #[tokio::test]
    async fn b_an_answer_counts_until_its_last_byte_is_gone_and_so_does_what_the_service_keeps() {
        let budget = Budget::new("test", 16 << 20);
        let held = Arc::new(());
        let keeps = Arc::clone(&held);
        let answers = tower::service_fn(move |_: http::Request<Body>| {
            let mut answer = http::Response::new(Body::new(Pieces(vec![message(1 << 20, 1 << 20)])));
            answer.extensions_mut().insert(Kept::new(Arc::clone(&keeps)));
            ready(Ok::<_, Infallible>(answer))
        });
        let mut service = budget.layer(answers);
        let request = || http::Request::new(Body::empty());
        let mut answer = service.call(request()).await.unwrap().into_body();
        let length = HEADER + (1 << 20);
        // The client has not asked for a byte of it yet.
        assert_eq!(budget.0.bytes.load(Ordering::Relaxed), CALL + length);
        let frame = std::future::poll_fn(|context| Pin::new(&mut answer).poll_frame(context)).await.unwrap().unwrap();
        let data = frame.into_data().unwrap();
        drop(answer);
        let rest = data.slice(length - 1..);
        drop(data);
        assert_eq!((budget.0.bytes.load(Ordering::Relaxed), Arc::strong_count(&held)), (CALL + length, 3));
        drop(rest);
        assert_eq!((budget.0.bytes.load(Ordering::Relaxed), Arc::strong_count(&held)), (0, 2));
        let mut open = Vec::new();
        let refused = loop {
            let answer = service.call(request()).await.unwrap();
            if answer.headers().contains_key("grpc-status") {
                break answer;
            }
            open.push(answer);
        };
        assert_eq!((open.len(), refused.headers()["grpc-status"].to_str().unwrap()), (7, "8"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_waits_for_a_call_that_comes_a_moment_after_the_last_answer() {
        let budget = Budget::new("test", 16 << 20);
        let answered = budget.clone();
        let ending = tokio::spawn(async move { answered.is_answered().await });
        tokio::time::sleep(MOMENT / 2).await;
        let call = budget.call(Client::User(1), CALL).unwrap();
        tokio::time::sleep(MOMENT * 2).await;
        assert!(!ending.is_finished());
        drop(call);
        tokio::time::sleep(MOMENT / 2).await;
        assert!(!ending.is_finished(), "another one may come");
        tokio::time::sleep(MOMENT).await;
        assert!(ending.is_finished());
    }

    #[tokio::test]
    async fn b_a_question_counts_with_its_headers_until_it_is_answered_and_messages_of_a_stream_until_they_are_read() {
        for (path, kept) in [
            ("/stepward.v1.PostureService/BatchCheck", 1 << 20),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", 0),
            ("/stepward.v1.FilterService/Attach", 0),
        ] {
            let budget = Budget::new("test", 16 << 20);
            let mut service = budget.layer(tower::service_fn(|request: http::Request<Body>| {
                let mut body = request.into_body();
                while std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).now_or_never().is_some() {}
                std::future::pending::<Result<http::Response<Body>, Infallible>>()
            }));
            let body = Body::new(Pieces(vec![message(1 << 20, 1 << 20)]));
            let answer = service.call(http::Request::builder().uri(path).header("name", "a value").body(body).unwrap());
            assert_eq!(budget.0.bytes.load(Ordering::Relaxed), CALL + "name".len() + "a value".len() + kept, "{path}");
            drop(answer);
            assert_eq!(budget.0.bytes.load(Ordering::Relaxed), 0, "{path}");
        }
    }

    #[tokio::test]
    async fn b_bytes_of_an_answer_that_goes_on_are_given_back_as_they_are_written() {
        let budget = Budget::new("test", 16 << 20);
        let call = budget.call(Client::User(1), CALL).unwrap();
        let mut answer = Answered { body: Body::new(Pieces(vec![message(9, 9), message(5, 5)])), call, first: None, is_over: false };
        for length in [9, 5] {
            let frame = std::future::poll_fn(|context| Pin::new(&mut answer).poll_frame(context)).await.unwrap().unwrap();
            assert_eq!(budget.0.bytes.load(Ordering::Relaxed), CALL + HEADER + length);
            drop(frame);
            assert_eq!(budget.0.bytes.load(Ordering::Relaxed), CALL);
        }
    }

    #[test]
    fn a_body_is_at_its_end_where_the_one_that_it_follows_is() {
        let budget = Budget::new("test", 16 << 20);
        let call = || budget.call(Client::User(1), CALL).unwrap();
        let text = || Body::new(axum::body::Body::from("text"));
        let asked = |body| Asked::new(body, call(), ONE);
        assert!(asked(Body::empty()).is_end_stream() && !asked(text()).is_end_stream());
        assert_eq!(asked(text()).size_hint().exact(), Some(4));
        let answered = |body, first: Option<&'static str>, is_over| {
            let first = first.map(|first| Frame::data(Bytes::from(first)));
            Answered { body, call: call(), first, is_over }.is_end_stream()
        };
        assert!(answered(Body::empty(), None, false) && answered(text(), None, true));
        assert!(!answered(text(), None, false) && !answered(Body::empty(), Some("first"), false));
    }

    #[test]
    fn what_is_not_ready_is_not_asked() {
        let mut service = Budget::new("test", 1).layer(crate::server::quota::tests::NotReady);
        assert!(service.poll_ready(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
    }
}
