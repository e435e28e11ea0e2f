//! The feed of a service, which is its own record of what happened to devices: it is read again and again, and taken as events.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use inventory::{Change, Unavailable, Way};
use tokio::time::{Instant, timeout_at};

use super::Cache;
use super::bounds::{OVERLAP, SLOW};
use super::position::Position;
use super::turns::Class;
use crate::metrics::{CallLabels, Word};

impl Cache {
    /// Reads what the feed has since the last reading, and takes it in; returns how many changes were new.
    ///
    /// A reading counts as a lookup of a known device, and is left out while the service is left alone. Only that the service
    /// cannot be reached or fails counts against it: a privilege that the feed alone lacks keeps nobody from looking up a
    /// device.
    ///
    /// # Errors
    /// [`Unavailable`]: the next reading begins where this one did.
    pub async fn read_feed(&self) -> Result<usize, Unavailable> {
        let mut position = self.feed.0.lock().await;
        let (began, began_at) = (Instant::now(), clock::now());
        let class = Class { new: false, way: Way::Query };
        self.turns.admit(class, None, began, LONGEST)?;
        let mut permit = self.turns.line_up(class, None, began + LONGEST).turn().await?;
        let inventory = self.inventory();
        // A clock that was set back would leave out what happened meanwhile, so the earlier time counts.
        let reading = timeout_at(began + LONGEST, inventory.changes(position.since.min(began_at).saturating_sub(OVERLAP)));
        tokio::pin!(reading);
        let (read, permit) = match timeout_at(began + SLOW, &mut reading).await {
            Ok(read) => (read, Some(permit)),
            // A feed may have many pages. Lookups do not wait for what becomes of the reading.
            Err(_) => {
                permit.withdrawn();
                drop(permit);
                (reading.await, None)
            }
        };
        let read = read.unwrap_or(Err(Unavailable::Timeout));
        if read.is_ok() {
            self.answered_at.store(self.knowledge.now(), Ordering::Relaxed);
        }
        if let Some(mut permit) = permit {
            match &read {
                Ok(_) => permit.succeeded(false, false),
                Err(why @ (Unavailable::Network | Unavailable::ServerError(_))) => permit.failed(*why, Instant::now()),
                Err(_) => permit.withdrawn(),
            }
        }
        let read = read?;
        let mut changes: Vec<Change> = Vec::new();
        for event in read.chunk_by(|one, next| !one.event.is_empty() && one.event == next.event) {
            let is_new = event.iter().any(|logged| logged.event.is_empty() || !position.known.contains(&logged.event));
            let event: Vec<Change> = event.iter().filter(|_| is_new).map(|logged| logged.change.clone()).collect();
            self.apply(&event);
            changes.extend(event);
        }
        let known = read.into_iter().map(|logged| logged.event).filter(|event| !event.is_empty()).collect();
        *position = Position { since: began_at, known };
        let new = changes.len();
        if let [_, ..] = changes.as_slice() {
            let revoking = changes.iter().any(|change| change.revoking);
            tracing::info!(provider = &*self.name, devices = new, revoking, "events of the service's feed");
        }
        Ok(new)
    }

    /// Reads the feed every so often, and less often while it cannot be read. Ends where the service has no feed.
    pub(super) async fn keep_informed(&self, every: Duration) {
        let mut failures = 0_u32;
        loop {
            tokio::time::sleep(every.saturating_mul(1 << failures.min(8)).min(every.max(RAREST))).await;
            let outcome = match self.read_feed().await {
                Ok(_) => {
                    failures = 0;
                    "read"
                }
                Err(Unavailable::Unsupported) => return,
                Err(why) => {
                    failures = failures.saturating_add(1);
                    tracing::warn!(provider = &*self.name, why = why.as_str(), failures, "the service's feed cannot be read");
                    why.as_str()
                }
            };
            let labels = CallLabels { provider: Word(Arc::clone(&self.name)), outcome };
            self.metrics.feed_reads.get_or_create(&labels).inc();
        }
    }
}

/// Longest reading of a feed.
const LONGEST: Duration = Duration::from_secs(60);

/// Longest pause between readings of a feed that cannot be read, unless it is read less often anyway.
const RAREST: Duration = Duration::from_secs(300);
