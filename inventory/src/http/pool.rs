//! Connections to one service, and their renewal: a request that gets no answer costs the connections that it may have used,
//! since with HTTP/2 all later requests would wait on the same one.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The client in use, and the maker of the next one.
pub(super) struct Pool {
    make: Box<dyn Fn() -> Result<reqwest::Client, String> + Send + Sync>,
    current: Mutex<Made>,
}

/// A client with connections of its own.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) http: reqwest::Client,
    /// Number of clients that the pool made before this one.
    generation: u64,
    at: Instant,
}

/// A request that waits for its answer. Dropping it before [`Waiting::answered`] means that no answer came.
#[derive(Debug)]
pub(super) struct Waiting<'p> {
    pool: &'p Pool,
    generation: u64,
    since: Instant,
    over: bool,
}

impl Pool {
    /// Makes a pool with a first client.
    ///
    /// # Errors
    /// The errors of `make`.
    pub(super) fn new(make: impl Fn() -> Result<reqwest::Client, String> + Send + Sync + 'static) -> Result<Self, String> {
        let http = make()?;
        Ok(Self { make: Box::new(make), current: Mutex::new(Made { http, generation: 0, at: Instant::now() }) })
    }

    /// The client that requests use now.
    pub(super) fn current(&self) -> Made {
        self.lock().clone()
    }

    /// Marks a request as sent.
    pub(super) fn waiting(&self, made: &Made) -> Waiting<'_> {
        Waiting { pool: self, generation: made.generation, since: Instant::now(), over: false }
    }

    /// Replaces the client whose request got no answer. Requests that wait on its connections go on.
    fn renew(&self, generation: u64) {
        let mut current = self.lock();
        // A service that answers nobody must not be dialled for each request.
        let early = current.generation > 0 && current.at.elapsed() < RENEWED_EVERY;
        if current.generation != generation || early {
            return;
        }
        match (self.make)() {
            Ok(http) => *current = Made { http, generation: generation.saturating_add(1), at: Instant::now() },
            Err(error) => tracing::warn!(error, "no new HTTP client could be made"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Made> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("generation", &self.lock().generation).finish_non_exhaustive()
    }
}

impl Waiting<'_> {
    /// Ends the wait: an answer came, or the connection broke off by itself.
    pub(super) fn answered(mut self) {
        self.over = true;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // A caller that gives up at once says nothing of the service.
        if !self.over && self.since.elapsed() >= SILENCE {
            self.pool.renew(self.generation);
        }
    }
}

/// Time after which an unanswered request says something of its connection.
const SILENCE: Duration = Duration::from_millis(500);

/// Shortest time between two renewals of the connections.
const RENEWED_EVERY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Pool::new(|| reqwest::Client::builder().build().map_err(|error| error.to_string())).unwrap()
    }

    fn silent(pool: &Pool, wait: Instant) {
        let mut waiting = pool.waiting(&pool.current());
        waiting.since = wait;
    }

    #[tokio::test(start_paused = true)]
    async fn g2_a_request_without_an_answer_costs_its_connections_and_no_more_than_that() {
        let pool = pool();
        let old = pool.current();
        let begin = Instant::now();
        tokio::time::advance(SILENCE).await;
        let late = Waiting { pool: &pool, generation: old.generation, since: begin, over: false };
        silent(&pool, begin);
        assert_eq!(pool.current().generation, 1);
        drop(late);
        assert_eq!(pool.current().generation, 1, "it waited on the connections of before");
        silent(&pool, begin);
        assert_eq!(pool.current().generation, 1, "not for each request");
        tokio::time::advance(RENEWED_EVERY).await;
        silent(&pool, begin);
        assert_eq!(pool.current().generation, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn g2_an_answer_and_a_short_wait_cost_nothing() {
        let pool = pool();
        let begin = Instant::now();
        silent(&pool, begin);
        tokio::time::advance(SILENCE).await;
        let mut waiting = pool.waiting(&pool.current());
        waiting.since = begin;
        waiting.answered();
        assert_eq!(pool.current().generation, 0);
    }
}
