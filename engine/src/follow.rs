//! Following what other services on the same store rule, and what they tell of their caches.

use std::time::Duration;

use store::{Store, StoreError};
use tokio::time::Instant;

use crate::fleet::Fleet;
use crate::locks::Locks;

/// Heeds what other services on the store rule and tell, and tells them of the caches of this one, for as long as it is polled.
/// Returns at once where there can be none.
pub async fn follow(locks: &Locks, fleet: &Fleet) {
    let Some(store) = locks.shared_store() else { return };
    tokio::join!(heed(locks, fleet, store), fleet.keep_telling());
}

async fn heed(locks: &Locks, fleet: &Fleet, store: &Store) {
    let (mut silence, mut bound) = (Silence::default(), SHORT);
    loop {
        match locks.hear(fleet, bound).await {
            Ok(is_new) => {
                silence.end();
                bound = SHORT;
                if is_new {
                    // Whoever made a change waits for the word that it is heeded.
                    continue;
                }
            }
            Err(error) => {
                silence.go_on(&error, locks.are_stale());
                // A connection that hangs is given up soon, and a store that is slow, or has much to tell, is given its time.
                bound = bound.saturating_mul(2).min(LONG);
            }
        }
        store.wait_for_news(POLL).await;
    }
}

/// The time without news, as far as it was logged.
#[derive(Debug, Default)]
struct Silence {
    since: Option<Instant>,
    /// Whether it was logged that nobody is answered any more.
    is_stale: bool,
}

impl Silence {
    fn go_on(&mut self, error: &StoreError, are_stale: bool) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            tracing::warn!(error = error.text(), "no news of what other services rule: the store is tried again all the time");
        }
        if are_stale && !self.is_stale {
            self.is_stale = true;
            tracing::error!(
                error = error.text(),
                "nothing is known of what other services rule for longer than [store] stale_limit: every request is answered 503 \
                 until the store can be reached"
            );
        }
    }

    fn end(&mut self) {
        if let Some(since) = self.since.take() {
            self.is_stale = false;
            tracing::info!(seconds = since.elapsed().as_secs(), "what other services rule is known again");
        }
    }
}

/// Time between two looks at the store where no notification comes.
const POLL: Duration = Duration::from_millis(500);

/// Longest time for a look; it doubles with each failure, up to the longest.
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);
