//! The open-loop load: requests leave at fixed moments, whether or not earlier ones were answered.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use e2e::client::Client;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::signer::{Signer, Wanted};

/// Number of connections, as in step-ca's pool.
const CONNECTIONS: usize = 4;
/// Time after which a reply counts as lost: step-ca has given up by then.
const LOST: Duration = Duration::from_secs(10);

/// A pool of open connections.
#[derive(Clone, Debug)]
pub(crate) struct Pool(Vec<SendRequest<Full<Bytes>>>);

impl Pool {
    /// Opens the connections.
    pub(crate) async fn open(client: &Client) -> anyhow::Result<Self> {
        let mut senders = Vec::new();
        for _ in 0..CONNECTIONS {
            let io = TokioIo::new(client.tls().await?);
            let (sender, connection) = Builder::new(TokioExecutor::new()).handshake(io).await?;
            tokio::spawn(connection);
            senders.push(sender);
        }
        Ok(Self(senders))
    }
}

/// The outcome of a load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Number of requests sent.
    pub(crate) sent: usize,
    /// Number of requests without a reply.
    pub(crate) lost: usize,
    /// Number of requests with a wrong reply.
    pub(crate) wrong: usize,
    /// Description of the first lost or wrong reply.
    pub(crate) first: Option<String>,
    /// Time from the moment at which a request should have left to its whole reply, sorted.
    pub(crate) latencies: Vec<Duration>,
    /// Delay of each request's departure, sorted.
    pub(crate) lateness: Vec<Duration>,
}

impl Outcome {
    /// A quantile of sorted durations.
    pub(crate) fn quantile(sorted: &[Duration], quantile: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index of a list that fits memory"
        )]
        let index = (sorted.len() as f64 * quantile) as usize;
        sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    fn note(&mut self, trouble: String) {
        self.first.get_or_insert(trouble);
    }
}

/// A request that is due at a moment.
struct Departure {
    due: Instant,
    request: http::Request<Bytes>,
}

/// Sends `count` requests at `rate` a second, and judges every reply.
pub(crate) async fn run(pool: &Pool, mut signer: Signer, wanted: Wanted, rate: u32, count: usize) -> anyhow::Result<(Outcome, Signer)> {
    let (departures, mut departing) = mpsc::unbounded_channel::<Departure>();
    // A thread of its own, since tokio's timers are late by up to a millisecond.
    let pace = thread::spawn(move || -> anyhow::Result<(Signer, Vec<Duration>)> {
        let interval = Duration::from_secs(1) / rate;
        let mut due = Instant::now() + Duration::from_millis(20);
        let mut lateness = Vec::with_capacity(count);
        for _ in 0..count {
            let request = signer.request(wanted)?;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            lateness.push(due.elapsed());
            departures.send(Departure { due, request }).ok().context("nobody sends")?;
            due += interval;
        }
        Ok((signer, lateness))
    });
    let mut outcome = Outcome::default();
    let minute = usize::try_from(rate * 60)?;
    let mut under_way = JoinSet::new();
    let mut senders = pool.0.iter().cycle();
    loop {
        tokio::select! {
            departure = departing.recv() => {
                let (Some(Departure { due, request }), Some(sender)) = (departure, senders.next()) else { break };
                outcome.sent += 1;
                under_way.spawn(send(sender.clone(), due, request, wanted));
            }
            Some(done) = under_way.join_next() => take(&mut outcome, done?, minute),
        }
    }
    while let Some(done) = under_way.join_next().await {
        take(&mut outcome, done?, minute);
    }
    let (signer, lateness) =
        tokio::task::spawn_blocking(move || pace.join()).await?.map_err(|_| anyhow::anyhow!("the pacing thread died"))??;
    outcome.lateness = lateness;
    outcome.lateness.sort_unstable();
    outcome.latencies.sort_unstable();
    Ok((outcome, signer))
}

/// The outcome of one request: the latency of the right reply, or what came instead.
enum Done {
    Right(Duration),
    Wrong(String),
    Lost(String),
}

async fn send(mut sender: SendRequest<Full<Bytes>>, due: Instant, request: http::Request<Bytes>, wanted: Wanted) -> Done {
    let exchange = async {
        sender.ready().await?;
        let response = sender.send_request(request.map(Full::new)).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok::<_, hyper::Error>((status, body))
    };
    match tokio::time::timeout(LOST, exchange).await {
        Ok(Ok((status, body))) if wanted.is(status, &body) => Done::Right(due.elapsed()),
        Ok(Ok((status, body))) => Done::Wrong(format!("{status} {}", String::from_utf8_lossy(&body))),
        Ok(Err(error)) => Done::Lost(format!("{error:?}")),
        Err(_) => Done::Lost(format!("no reply within {LOST:?}")),
    }
}

fn take(outcome: &mut Outcome, done: Done, minute: usize) {
    match done {
        Done::Right(latency) => {
            outcome.latencies.push(latency);
            tell(&mut outcome.latencies, minute);
        }
        Done::Wrong(what) => {
            outcome.wrong += 1;
            outcome.note(what);
        }
        Done::Lost(what) => {
            outcome.lost += 1;
            outcome.note(what);
        }
    }
}

/// Prints the latencies of each minute, since growth does not show in those of the whole load.
fn tell(latencies: &mut [Duration], minute: usize) {
    let replies = latencies.len();
    if replies.is_multiple_of(minute) {
        let (_, last) = latencies.split_at_mut(replies - minute);
        // Sorting would hold up the load.
        let most = *last.select_nth_unstable(minute * 99 / 100).1;
        let half = *last.select_nth_unstable(minute / 2).1;
        eprintln!("bench: minute {}: p50 {half:.2?}, p99 {most:.2?}", replies / minute);
    }
}
