//! Plain HTTP/1.1: pages of metrics and health, and events that Envoy passes on.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use clock::OnceAMinute;
use futures::{Stream, StreamExt as _};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::places::Local;
use super::told::{ACCEPT_AGAIN, not_taken};
use crate::calls::drained;

/// Serves pages to everybody who reaches the address. So each connection has one request and little time, and connections are
/// counted: they must not take the descriptors that the sockets need. Where there are as many as there may be, the oldest gives
/// way, so that a silent client keeps nobody out.
pub(super) async fn serve_pages(listener: TcpListener, pages: axum::Router) {
    let mut readers: VecDeque<AbortHandle> = VecDeque::new();
    let mut told = OnceAMinute::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                not_taken(&mut told, "metrics and health", &error);
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        readers.retain(|reader| !reader.is_finished());
        if readers.len() >= READERS
            && let Some(oldest) = readers.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(pages.clone());
        let reader = tokio::spawn(async move {
            let connection = http1::Builder::new().keep_alive(false).max_buf_size(BUFFER).serve_connection(TokioIo::new(stream), service);
            // The connection is over either way, and what went wrong is the reader's to see.
            let _ = tokio::time::timeout(READING, connection).await;
        });
        readers.push_back(reader.abort_handle());
    }
}

/// Serves events that Envoy passes on; Envoy keeps its connections, and what is under way at the drain ends by itself.
pub(super) async fn serve_events(
    mut connections: impl Stream<Item = io::Result<Local>> + Send + Unpin,
    routes: axum::Router,
    drain: watch::Receiver<bool>,
) {
    let drained = drained(drain);
    tokio::pin!(drained);
    loop {
        let connection = tokio::select! {
            () = &mut drained => return,
            connection = connections.next() => connection,
        };
        let Some(Ok(connection)) = connection else { continue };
        let service = TowerToHyperService::new(routes.clone());
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(READING)
                .max_buf_size(BUFFER)
                .serve_connection(TokioIo::new(connection), service);
            // What went wrong is Envoy's to see.
            let _ = connection.await;
        });
    }
}

/// Largest number of bytes of a connection of HTTP/1.1 that wait to be taken.
const BUFFER: usize = 64 << 10;

/// Largest number of readers of pages at once, and the time that each has.
const READERS: usize = 128;
const READING: Duration = Duration::from_secs(5);
