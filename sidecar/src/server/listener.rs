//! One listener for gRPC: the thread that it is served on, its bounds, and its end.

use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{oneshot, watch};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};
use tower::{Layer, Service};

use super::authority::AnyAuthority;
use super::budget::Budget;
use super::quota::Streams;
use super::socket::Socket;
use crate::calls::drained;

/// End of a listener: when it drains, and what resolves once it has nothing more to wait for.
pub(super) type Ending = (watch::Receiver<bool>, BoxFuture<'static, ()>);

/// Makes the end of a listener behind this budget. Only unanswered calls hold it up: streams without an end would do so for ever.
pub(super) fn ending(drain: watch::Receiver<bool>, budget: Budget) -> Ending {
    let draining = drain.clone();
    let answered = async move {
        drained(draining).await;
        budget.is_answered().await;
    };
    (drain, answered.boxed())
}

/// Serves a socket until the service drains.
///
/// # Errors
/// The socket cannot be served.
pub(super) async fn serve<L>(mut socket: Socket, (drain, answered): Ending, router: Router<L>) -> anyhow::Result<()>
where
    L: Layer<Routes> + Clone,
    L::Service: Service<http::Request<Body>, Response = http::Response<Body>, Error = std::convert::Infallible> + Clone + Send + 'static,
    <L::Service as Service<http::Request<Body>>>::Future: Send + 'static,
{
    let connections = socket.incoming()?.map(|connection| connection.map(AnyAuthority::new));
    tokio::select! {
        served = router.serve_with_incoming_shutdown(connections, drained(drain)) => served.context("serve a socket"),
        () = answered => Ok(()),
    }
}

/// Asynchronous runtime of one thread. It is shut down in the background, since a runtime may not be waited for within another
/// one.
pub(super) struct Apart(Option<tokio::runtime::Runtime>);

impl Apart {
    /// Makes the runtime.
    ///
    /// # Errors
    /// The system has no more descriptors.
    pub(super) fn new() -> anyhow::Result<Self> {
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime").map(|runtime| Self(Some(runtime)))
    }

    fn run<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        self.0.as_ref().map(|runtime| runtime.block_on(what))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Serves a socket on a thread of its own, where nothing else that the service does can hold a webhook up, and a question
/// wakes no other thread.
///
/// # Errors
/// No thread can be started.
pub(super) fn alone(
    (name, runtime): (&'static str, Apart),
    socket: Socket,
    ends: Ending,
    router: Router<Stack<Budget, Stack<Streams, Identity>>>,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + use<>> {
    let (sender, ended) = oneshot::channel();
    let thread = move || {
        // The send fails where the service has ended already.
        let _ = runtime.run(serve(socket, ends, router)).map(|served| sender.send(served));
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(thread).context("start a thread")?;
    Ok(async move { ended.await.with_context(|| format!("the thread `{name}` ended"))? })
}

/// Makes a server whose windows hold a burst of questions. What came in and was not taken yet is in no budget, so the windows are
/// not larger: over a socket, room is made in microseconds. Too many streams that a client ends as soon as it opens them, or opens
/// wrongly, end its connection.
pub(super) fn server(window: u32) -> Server {
    Server::builder()
        .initial_stream_window_size(window)
        .initial_connection_window_size(window)
        .max_concurrent_streams(Some(CALLS))
        .http2_max_header_list_size(Some(HEADERS))
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        .http2_max_local_error_reset_streams(Some(RESETS))
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
}

/// Largest number of calls of a connection at once, and then of bytes of the headers of one.
const CALLS: u32 = 64;
const HEADERS: u32 = 16 << 10;

/// Largest number of streams of a connection that ended before anybody looked at them.
const RESETS: usize = 20;
