//! Lists of the whole inventory: they fill the cache, confirm what is in it, and tell what is gone.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use inventory::shrink::is_few;
use inventory::{Listing, Unavailable};
use posture::record::Fields;
use posture::time::UnixTime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Cache;
use super::bounds::{OVERLAP, millis};
use super::entry::Learned;
use super::lists::{NotSwept, Swept, accept};
use super::settings::Schedule;

impl Cache {
    /// Allows the next full list to lose as many devices as it does, and has it read now.
    pub fn accept_shrink(&self) {
        self.sweeps.accept_shrink.store(true, Ordering::Release);
        // While nothing is wanted, no list was read that could have lost anything.
        self.sweeps.list_due.send_if_modified(|times| {
            let reads = *times > 0;
            *times = times.saturating_add(u64::from(reads));
            reads
        });
    }

    /// The last full list, where it lost too many devices to be used.
    pub fn pending_shrink(&self) -> Option<NotSwept> {
        let shrunk = *self.sweeps.shrunk.lock().unwrap_or_else(PoisonError::into_inner);
        shrunk.map(|(had, has)| NotSwept::Shrunk { had, has })
    }

    /// The schedule of lists; `None`: no list is read.
    pub const fn sync(&self) -> Option<Schedule> {
        self.sync
    }

    /// Reads the whole inventory, or what changed since the last time. One list is read at a time.
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
            // A list of changes needs a full one before it. Where the clock was ahead when the last list began, nobody knows
            // since when something may have changed.
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
                // What lists do not say in general, and this record says all the same, need not be asked for.
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

    /// Reads lists when they are due, and the feed of the service, for as long as the process runs.
    pub async fn keep_swept(self: Arc<Self>) {
        let Some(sync) = self.sync() else { return };
        // What was learned before could be overtaken by an event of which nobody hears.
        self.fleet.is_heard().await;
        // Both go on side by side, since a list may take longer than a removal may go unnoticed.
        tokio::join!(self.keep_listed(sync), self.keep_informed(sync.changes));
    }

    async fn keep_listed(self: &Arc<Self>, sync: Schedule) {
        let mut list_due = self.sweeps.list_due.subscribe();
        // While nothing is wanted, nothing of a list could be kept. A cache in the place of another one finds that wanted
        // already, and is not told again.
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
