//! Lists of the whole inventory: they fill the cache, confirm what is in it, and tell what is gone.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use posture::record::Fields;
use posture::time::UnixTime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::entry::Learned;
use super::{Cache, millis};
use crate::clock;
use crate::config;
use crate::provider::file::is_few;
use crate::provider::inventory::Listing;
use crate::provider::{Unavailable, accept};

/// How far the lists of one provider are.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    /// Counts reasons to read a full list now; watched by every cache that shares these lists, later ones included.
    pub(super) list_due: watch::Sender<u64>,
    /// Number of the last full list that was applied; records carry the number of the one that they were in.
    applied: AtomicU32,
    /// When the last list began that was applied, by the service's kind of clock, for what changed since.
    since: AtomicU64,
    devices: AtomicU64,
    running: tokio::sync::Mutex<()>,
    accept_shrink: AtomicBool,
    /// What the last full list had lost, where that was too much for it to be used.
    shrunk: Mutex<Option<(u64, u64)>>,
}

/// A list that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Devices in it.
    pub seen: u64,
    /// Devices that were known and are gone.
    pub removed: u64,
}

/// Why a list was not applied. What is remembered stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSwept {
    /// The service did not say all of it.
    #[error("{}", .0.text())]
    Unavailable(Unavailable),
    /// It cannot be proven that nothing was left out: what was listed is taken, and nobody is removed.
    #[error("the list may not be complete, so no device was removed")]
    Incomplete,
    /// It lost more devices than it may.
    #[error("the inventory shrank from {had} devices to {has}, by more than max_shrink: devices that are gone from it are still let in")]
    Shrunk {
        /// Devices of the last one.
        had: u64,
        /// Devices of this one.
        has: u64,
    },
    /// It has more devices than are remembered, or does not end.
    #[error("the list has more than {0} devices, the most that are remembered; raise max_entries in the provider's [cache]")]
    TooLong(u64),
    /// The service keeps no list.
    #[error("this provider cannot list its devices")]
    Unsupported,
}

impl Sweeps {
    /// What a record of a single call carries: it lives as long as those of the last list.
    pub(super) fn current(&self) -> u32 {
        self.applied.load(Ordering::Acquire)
    }
}

impl Cache {
    /// Lets the next full list lose as many devices as it does, and has it read now.
    pub fn accept_shrink(&self) {
        self.sweeps.accept_shrink.store(true, Ordering::Release);
        // Before it is known what is asked for there is no list that could have lost anything.
        self.sweeps.list_due.send_if_modified(|times| {
            let reads = *times > 0;
            *times = times.saturating_add(u64::from(reads));
            reads
        });
    }

    /// The last full list, where it is not used since it lost too many devices.
    pub fn pending_shrink(&self) -> Option<NotSwept> {
        let shrunk = *self.sweeps.shrunk.lock().unwrap_or_else(PoisonError::into_inner);
        shrunk.map(|(had, has)| NotSwept::Shrunk { had, has })
    }

    /// When lists are read.
    pub const fn sync(&self) -> Option<config::Sync> {
        self.sync
    }

    /// Reads the whole inventory, or what changed since the last time. One at a time.
    ///
    /// Records count from the moment when the list began, so that an event that comes meanwhile is not overtaken.
    ///
    /// # Errors
    /// [`NotSwept`]: no device was removed.
    pub async fn sweep(self: &Arc<Self>, full: bool) -> Result<Swept, NotSwept> {
        let _turn = self.sweeps.running.lock().await;
        let inventory = self.inventory();
        let began = clock::now();
        let last = UnixTime::from_nanos(i64::try_from(self.sweeps.since.load(Ordering::Acquire)).unwrap_or(i64::MAX));
        let full = match inventory.listing() {
            Listing::None => return Err(NotSwept::Unsupported),
            Listing::Whole => true,
            // Without a full one there is nothing that a change could be of. Where the clock was ahead when the last list began,
            // nobody knows since when something may have changed.
            Listing::Incremental => full || self.sweeps.applied.load(Ordering::Acquire) == 0 || last > began,
        };
        let applied = self.sweeps.applied.load(Ordering::Acquire);
        let number = if full { applied.wrapping_add(1).max(1) } else { applied };
        let wanted = self.wanted.load_full();
        let open = self.knowledge.ask();
        let said = wanted.fields.both(inventory.lists(wanted.fields));
        let learned = Learned { at: self.knowledge.now(), moment: open.moment(), asked: said, hint: None };
        let since = (!full).then(|| last.saturating_sub(OVERLAP));
        let (pages, mut incoming) = mpsc::channel(2);
        let listing = {
            let (inventory, wanted) = (Arc::clone(&inventory), Arc::clone(&wanted));
            self.runtime.spawn(async move { inventory.list(since, wanted.fields, pages).await })
        };
        let (mut seen, mut sent, mut claims): (u64, u64, _) = (0, 0, self.knowledge.claims(&wanted.kinds, full));
        let mut known = Fields::NONE;
        while let Some(page) = incoming.recv().await {
            self.knowledge.began_to_list(learned);
            sent = sent.saturating_add(u64::try_from(page.len()).unwrap_or(u64::MAX).max(1));
            for mut record in page {
                self.placeholders.strip(&mut record);
                self.acquaintances.met(&record);
                let of_it = record.known();
                known = known.union(of_it);
                // What the list cannot say, and says of this device all the same, need not be asked for.
                let learned = Learned { asked: said.union(of_it), ..learned };
                let listed = self.knowledge.learn_listed(&record, learned, &*inventory, &mut claims);
                seen = seen.saturating_add(u64::from(listed));
            }
            if sent > self.settings.max_entries {
                // The channel closes, which ends the list.
                listing.abort();
                return Err(NotSwept::TooLong(self.settings.max_entries));
            }
        }
        let listed = listing.await.unwrap_or(Err(Unavailable::Network)).map_err(NotSwept::Unavailable)?;
        if full && !listed.complete {
            return Err(NotSwept::Incomplete);
        }
        let mut removed = 0;
        if full {
            let had = self.sweeps.devices.load(Ordering::Acquire);
            let pending = self.lost_too_many(had, seen).then_some((had, seen));
            *self.sweeps.shrunk.lock().unwrap_or_else(PoisonError::into_inner) = pending;
            if pending.is_some() {
                return Err(NotSwept::Shrunk { had, has: seen });
            }
            removed = self.knowledge.learn_whole(claims, learned, number);
            self.sweeps.devices.store(seen, Ordering::Release);
            self.sweeps.accept_shrink.store(false, Ordering::Release);
        }
        drop(open);
        self.note_unsaid(said, known, seen, full);
        self.sweeps.applied.store(number, Ordering::Release);
        self.sweeps.since.store(began.as_nanos().unsigned_abs(), Ordering::Release);
        self.answered_at.store(self.knowledge.now(), Ordering::Relaxed);
        Ok(Swept { seen, removed })
    }

    /// Lists when it is time to, and reads what the service says has happened, for as long as the process runs.
    pub async fn keep_swept(self: Arc<Self>) {
        let Some(sync) = self.sync() else { return };
        // Apart, since a list may take longer than a removal may go unnoticed.
        tokio::join!(self.keep_listed(sync), self.keep_informed(sync.changes));
    }

    async fn keep_listed(self: &Arc<Self>, sync: config::Sync) {
        let mut list_due = self.sweeps.list_due.subscribe();
        // Before it is known what is asked for, nothing of a list could be kept. Where this cache takes the place of another one,
        // that is known already, and nobody says it again.
        if list_due.wait_for(|times| *times > 0).await.is_err() {
            return;
        }
        let mut next_full = Instant::now();
        loop {
            let full = Instant::now() >= next_full;
            let began = Instant::now();
            match self.sweep(full).await {
                Ok(Swept { seen, removed }) => {
                    tracing::info!(provider = &*self.name, full, seen, removed, millis = millis(began.elapsed()), "inventory read");
                    if full {
                        next_full = began + sync.full;
                    }
                }
                Err(NotSwept::Unsupported) => {
                    tracing::warn!(provider = &*self.name, "this provider cannot list its devices; [sync] has no effect");
                    return;
                }
                Err(error @ NotSwept::Shrunk { .. }) => {
                    let fix = accept(&self.name);
                    tracing::error!(provider = &*self.name, full, %error, fix, "inventory not used; what is remembered stays");
                }
                Err(error) => tracing::error!(provider = &*self.name, full, %error, "inventory not read; what is remembered stays"),
            }
            tokio::select! {
                () = tokio::time::sleep(sync.partial) => {}
                _ = list_due.changed() => next_full = Instant::now(),
            }
        }
    }

    fn lost_too_many(&self, had: u64, has: u64) -> bool {
        let Some(sync) = self.sync.filter(|_| !self.sweeps.accept_shrink.load(Ordering::Acquire)) else { return false };
        let lost = had.saturating_sub(has);
        let [few, left] = [lost, has].map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        #[expect(clippy::cast_precision_loss, reason = "both are far below 2^52")]
        let is_much = lost as f64 > had as f64 * sync.max_shrink;
        is_much && !is_few(few, left, sync.max_shrink)
    }
}

/// How much of what was read before is read again: clocks differ, and a change may show late.
pub(super) const OVERLAP: Duration = Duration::from_secs(300);
