//! Many requests at once, and load that goes on while a test does something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::client::{Client, Http, Outgoing, Reply};

/// Sends all requests at once, over HTTP/2 connections of a hundred streams each. Returns each reply, or the reason why there
/// was none.
pub async fn volley(client: &Client, requests: Vec<Outgoing>) -> Vec<Result<Reply, String>> {
    let client = client.speaking(Http::Two);
    let mut tasks = JoinSet::new();
    for batch in requests.chunks(100) {
        let connection = client.connect().await.unwrap();
        for request in batch {
            let (mut connection, request) = (connection.share(), request.clone());
            tasks.spawn(async move { connection.send(request).await.map_err(|error| format!("{error:#}")) });
        }
    }
    tasks.join_all().await
}

/// Callers that send requests without end, each on its own connection, which it renews every 20 requests.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicU64>,
    callers: JoinSet<Vec<String>>,
}

impl Load {
    /// Starts callers that expect each of their requests to be allowed, at the first attempt.
    pub fn start(client: &Client, callers: usize, request: impl Fn() -> Outgoing + Send + Sync + 'static) -> Self {
        let (stop, good, request) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(request));
        let mut set = JoinSet::new();
        for caller in 0..callers {
            let client = client.speaking(if caller % 2 == 0 { Http::One } else { Http::Two });
            let (stop, good, request) = (Arc::clone(&stop), Arc::clone(&good), Arc::clone(&request));
            set.spawn(async move {
                let mut failures = Vec::new();
                let mut connection = None;
                let mut sent = 0;
                while !stop.load(Ordering::SeqCst) {
                    if sent % 20 == 0 {
                        connection = None;
                    }
                    sent += 1;
                    match ask(&client, &mut connection, request()).await {
                        Ok(reply) if reply.allows() => _ = good.fetch_add(1, Ordering::SeqCst),
                        Ok(reply) => failures.push(format!("{:?}", reply.verdict())),
                        Err(error) => {
                            connection = None;
                            failures.push(format!("{error:#}"));
                        }
                    }
                }
                failures
            });
        }
        Self { stop, good, callers: set }
    }

    /// Waits until this many more requests were allowed.
    pub async fn goes_on(&self, requests: u64) {
        let (until, deadline) = (self.good.load(Ordering::SeqCst) + requests, Instant::now() + Duration::from_secs(60));
        while self.good.load(Ordering::SeqCst) < until {
            assert!(Instant::now() < deadline, "the load stands still");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops the callers; returns the number of allowed requests, and the failures.
    pub async fn stop(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let failures = self.callers.join_all().await.concat();
        (self.good.load(Ordering::SeqCst), failures)
    }
}

async fn ask(client: &Client, connection: &mut Option<crate::client::Connection>, request: Outgoing) -> anyhow::Result<Reply> {
    if connection.is_none() {
        *connection = Some(client.connect().await?);
    }
    match connection {
        Some(open) => open.send(request).await,
        None => anyhow::bail!("no connection"),
    }
}
