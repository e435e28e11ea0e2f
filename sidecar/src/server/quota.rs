//! Quotas: bounds on the calls that all clients have under way together, and that one of them has.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::Bytes;
use futures::future::{BoxFuture, Either, Ready, ready};
use hyper::body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::client::Client;
use super::services::REFLECTION_SERVICE;

/// Value that a service puts into the extensions of an answer, to be held until the answer was read.
#[derive(Clone)]
pub struct Kept {
    _held: Arc<dyn std::any::Any + Send + Sync>,
}

impl Kept {
    /// Wraps a value to be held.
    pub fn new(held: impl Send + Sync + 'static) -> Self {
        Self { _held: Arc::new(held) }
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kept")
    }
}

/// Share of a quota that calls take while they are under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Number of calls.
    pub calls: usize,
    /// Number of devices that they ask about.
    pub checks: usize,
    /// Bytes of the requests, as they are kept.
    pub bytes: usize,
}

impl Load {
    fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls.saturating_add(other.calls),
            checks: self.checks.saturating_add(other.checks),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(other.calls),
            checks: self.checks.saturating_sub(other.checks),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    /// Returns the first part that is beyond its bound, and the bound.
    fn beyond(self, most: Self) -> Option<(&'static str, usize)> {
        [("calls", self.calls, most.calls), ("checks", self.checks, most.checks), ("bytes", self.bytes, most.bytes)]
            .into_iter()
            .find_map(|(what, has, most)| (has > most).then_some((what, most)))
    }
}

/// Bound on calls of one kind.
#[derive(Debug)]
pub struct Quota {
    /// Name of the calls in messages, as in `watches`.
    what: &'static str,
    of_all: Load,
    of_one: Load,
    under_way: Mutex<UnderWay>,
}

#[derive(Debug, Default)]
struct UnderWay {
    all: Load,
    /// Loads of the clients that have something under way.
    by_client: HashMap<Client, Load>,
}

impl Quota {
    /// Makes a quota of which nothing is taken.
    pub fn new(what: &'static str, of_all: Load, of_one: Load) -> Arc<Self> {
        Arc::new(Self { what, of_all, of_one, under_way: Mutex::default() })
    }

    /// Takes the share of a call, until the result is dropped.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`, with the bound that stands in the way.
    pub fn take(self: &Arc<Self>, client: Client, load: Load) -> Result<Taken, Status> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let own = under_way.by_client.get(&client).copied().unwrap_or_default().plus(load);
        let all = under_way.all.plus(load);
        let refused = |whose: &str, (what, most): (&str, usize)| {
            Status::resource_exhausted(format!(
                "{} of {whose} may have {most} {what} at once, and this would be more: try later, or with less",
                self.what
            ))
        };
        if let Some(bound) = own.beyond(self.of_one) {
            return Err(refused("one client", bound));
        }
        if let Some(bound) = all.beyond(self.of_all) {
            return Err(refused("all clients together", bound));
        }
        under_way.all = all;
        under_way.by_client.insert(client.clone(), own);
        Ok(Taken { quota: Arc::clone(self), client, load })
    }

    /// Returns the load of all clients together.
    pub fn under_way(&self) -> Load {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).all
    }
}

/// Part of a [`Quota`], given back when it is dropped.
#[derive(Debug)]
pub struct Taken {
    quota: Arc<Quota>,
    client: Client,
    load: Load,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut under_way = self.quota.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.all = under_way.all.minus(self.load);
        let left = under_way.by_client.get(&self.client).copied().unwrap_or_default().minus(self.load);
        if left == Load::default() {
            under_way.by_client.remove(&self.client);
        } else {
            under_way.by_client.insert(self.client.clone(), left);
        }
    }
}

/// Layer before the services of one listener that bound nothing themselves: health and reflection, whose streams have no end.
#[derive(Clone, Debug)]
pub(super) struct Streams(Arc<Quota>);

impl Streams {
    pub(super) fn new() -> Self {
        let streams = |calls| Load { calls, ..Load::default() };
        Self(Quota::new("health and reflection", streams(STREAMS), streams(STREAMS_OF_ONE)))
    }
}

impl<S> Layer<S> for Streams {
    type Service = Bounded<S>;

    fn layer(&self, service: S) -> Bounded<S> {
        Bounded { quota: Arc::clone(&self.0), service }
    }
}

/// Services behind [`Streams`].
#[derive(Clone, Debug)]
pub(super) struct Bounded<S> {
    quota: Arc<Quota>,
    service: S,
}

impl<S> Service<http::Request<Body>> for Bounded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Either<S::Future, BoxFuture<'static, Result<S::Response, S::Error>>>, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !SERVICES.iter().any(|service| request.uri().path().starts_with(service)) {
            return Either::Left(Either::Left(self.service.call(request)));
        }
        let taken = match self.quota.take(Client::of(request.extensions()), Load { calls: 1, ..Load::default() }) {
            Ok(taken) => taken,
            Err(status) => return Either::Right(ready(Ok(status.into_http()))),
        };
        let answer = self.service.call(request);
        Either::Left(Either::Right(Box::pin(async move {
            // The call ends with its body, and not when the body begins.
            Ok(answer.await?.map(|body| Body::new(Held { body, _taken: taken })))
        })))
    }
}

/// A body that counts until it has been sent, or given up.
struct Held {
    body: Body,
    _taken: Taken,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Beginnings of the paths that [`Streams`] bounds.
const SERVICES: [&str; 2] = ["/grpc.health.", REFLECTION_SERVICE];

/// Largest number of streams of health and reflection at once, of all clients and then of one.
const STREAMS: usize = 256;
const STREAMS_OF_ONE: usize = 64;

#[cfg(test)]
pub(super) mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn g4_a_client_has_its_bound_and_all_together_have_one_and_both_are_given_back() {
        let load = |calls, checks, bytes| Load { calls, checks, bytes };
        let quota = Quota::new("watches", load(4, 40, 400), load(3, 30, 300));
        let user = Client::User;
        for (more, what) in [(load(4, 0, 0), "3 calls"), (load(1, 31, 0), "30 checks"), (load(1, 1, 301), "300 bytes")] {
            let status = quota.take(user(1), more).unwrap_err();
            assert_eq!(status.code(), tonic::Code::ResourceExhausted);
            assert!(status.message().contains("of one client may have") && status.message().contains(what), "{status}");
        }
        let one = quota.take(user(1), load(2, 20, 200)).unwrap();
        let same = quota.take(user(1), load(1, 10, 100)).unwrap();
        quota.take(user(1), load(0, 1, 0)).unwrap_err();
        let other = quota.take(user(2), load(1, 10, 100)).unwrap();
        let status = quota.take(user(3), load(1, 1, 1)).unwrap_err();
        assert!(status.message().contains("of all clients together may have 4 calls"), "{status}");
        // A call that was refused has taken nothing.
        assert_eq!(quota.under_way(), load(4, 40, 400));
        drop(same);
        quota.take(user(3), load(1, 10, 100)).unwrap();
        assert_eq!(quota.under_way(), load(3, 30, 300));
        drop((one, other));
        assert_eq!(quota.under_way(), Load::default());
        assert!(quota.under_way.lock().unwrap().by_client.is_empty());
    }

    #[tokio::test]
    async fn b_streams_of_health_and_reflection_count_until_their_bodies_are_gone_and_others_do_not() {
        let answers =
            tower::service_fn(|request: http::Request<Body>| ready(Ok::<_, Infallible>(http::Response::new(request.into_body()))));
        let mut service = Streams::new().layer(answers);
        let request = |path: &str| http::Request::builder().uri(path).body(Body::new(axum::body::Body::from("text"))).unwrap();
        let mut is_refused = async |path: &str| {
            let answer = service.call(request(path)).await.unwrap();
            (answer.headers().contains_key("grpc-status"), answer.into_body())
        };
        let mut open = Vec::new();
        for number in 0..STREAMS_OF_ONE {
            let path = if number % 2 == 0 { "/grpc.health.v1.Health/Watch" } else { REFLECTION_SERVICE };
            let (refused, body) = is_refused(path).await;
            assert!(!refused, "{number}");
            open.push(body);
        }
        assert!(is_refused("/grpc.health.v1.Health/Check").await.0);
        assert!(!is_refused("/stepward.v1.PostureService/Watch").await.0);
        let mut body = open.pop().unwrap();
        assert_eq!((body.is_end_stream(), body.size_hint().exact()), (false, Some(4)));
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.unwrap().unwrap();
        assert_eq!((frame.into_data().unwrap(), body.is_end_stream()), (Bytes::from("text"), true));
        assert!(is_refused("/grpc.health.v1.Health/Check").await.0, "it was read, and is not gone");
        drop(body);
        assert!(!is_refused("/grpc.health.v1.Health/Check").await.0);
    }

    #[test]
    fn what_is_not_ready_is_not_asked() {
        let mut service = Streams::new().layer(NotReady);
        assert!(service.poll_ready(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
    }

    /// A service that has no room for a request.
    #[derive(Clone, Debug)]
    pub(crate) struct NotReady;

    impl Service<http::Request<Body>> for NotReady {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Pending
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            panic!("it is not ready")
        }
    }
}
