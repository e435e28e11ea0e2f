//! Lists of the whole inventory: they fill the cache, confirm what is in it, and tell what is gone.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use inventory::shrink::is_few;
use inventory::{Listed, Listing, Unavailable};
use posture::record::{Fields, Record};
use posture::time::UnixTime;
use store::Ended;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::bounds::{OVERLAP, locked, millis};
use super::elsewhere::{self, Asked, Publisher, RENEW};
use super::entry::Learned;
use super::lists::{NotSwept, Swept, accept};
use super::origin::Origin;
use super::settings::Schedule;
use super::{Cache, Wanted};

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
        let wanted = self.wanted.load_full();
        let since = self.since(full)?;
        let mut origin = self.origin(wanted.fields, since).await;
        if let Origin::Another(ended, asked) = origin {
            match self.take_list(&wanted, self.of_another(ended, asked)).await {
                // It may be gone while it is read.
                Err(NotSwept::Unavailable(_)) => origin = Origin::Own,
                swept => return swept,
            }
        }
        let others = if let Origin::Shared(publisher) = origin { Some(publisher) } else { None };
        self.take_list(&wanted, self.of_the_service(&wanted, since, others)).await
    }

    /// The time since which the next list is to have everything that changed; `None`: it is to have everything.
    fn since(&self, full: bool) -> Result<Option<UnixTime>, NotSwept> {
        let last = UnixTime::from_nanos(i64::try_from(self.sweeps.since.load(Ordering::Acquire)).unwrap_or(i64::MAX));
        let full = match self.inventory().listing() {
            Listing::None => return Err(NotSwept::Unsupported),
            Listing::Whole => true,
            // A list of changes needs a full one before it. Where the clock was ahead when the last list began, nobody knows
            // since when something may have changed.
            Listing::Incremental => full || self.sweeps.applied.load(Ordering::Acquire) == 0 || last > clock::now(),
        };
        Ok((!full).then(|| last.saturating_sub(OVERLAP)))
    }

    /// A list of the service, which begins now.
    fn of_the_service(self: &Arc<Self>, wanted: &Wanted, since: Option<UnixTime>, others: Option<Publisher>) -> List {
        let started = others.as_ref().map_or_else(clock::now, Publisher::started);
        let asked = Arc::new(self.asked());
        let (pages, incoming) = mpsc::channel(2);
        let (inventory, fields) = (self.inventory(), wanted.fields);
        let listing = self.runtime.spawn(async move { inventory.list(since, fields, pages).await });
        List { full: since.is_none(), asked, started, incoming, listing, others }
    }

    /// A list that another service has read.
    fn of_another(self: &Arc<Self>, ended: Ended, asked: Arc<Asked>) -> List {
        // The clock of the service that read it may be ahead; the question here was asked before the list began.
        let (full, started) = (ended.since.is_none(), UnixTime::from_nanos(ended.started).min(asked.clock));
        let (pages, incoming) = mpsc::channel(2);
        let store = self.fleet.store().cloned().unwrap_or_default();
        let listing = self.runtime.spawn(elsewhere::read(store, ended, pages));
        List { full, asked, started, incoming, listing, others: None }
    }

    async fn take_list(self: &Arc<Self>, wanted: &Wanted, list: List) -> Result<Swept, NotSwept> {
        let List { full, asked, started, mut incoming, listing, mut others } = list;
        let inventory = self.inventory();
        let applied = self.sweeps.applied.load(Ordering::Acquire);
        let number = if full { applied.wrapping_add(1).max(1) } else { applied };
        let said = wanted.fields.both(inventory.lists(wanted.fields));
        let learned = Learned { at: asked.at, moment: asked.moment(), asked: said, hint: None };
        let (mut seen, mut sent, mut claims): (u64, u64, _) = (0, 0, self.knowledge.claims(&wanted.kinds, full));
        let mut known = Fields::NONE;
        self.sweeps.begin(asked.moment());
        loop {
            let page = match &mut others {
                None => incoming.recv().await,
                Some(publisher) => {
                    let Ok(page) = timeout(RENEW, incoming.recv()).await else {
                        publisher.renew().await;
                        continue;
                    };
                    publisher.page(page.as_deref().unwrap_or_default()).await;
                    page
                }
            };
            let Some(page) = page else { break };
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
                if let Some(publisher) = others {
                    publisher.end(None).await;
                }
                return Err(NotSwept::TooLong(self.settings.max_entries));
            }
        }
        let listed = listing.await.unwrap_or(Err(Unavailable::Network));
        if let Some(publisher) = others {
            publisher.end(listed.ok()).await;
        }
        let listed = listed.map_err(NotSwept::Unavailable)?;
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
            *locked(&self.sweeps.last_full) = Some(asked.since);
        }
        self.elsewhere.took(asked.moment());
        drop(asked);
        self.note_unsaid(said, known, seen, full);
        self.sweeps.applied.store(number, Ordering::Release);
        self.sweeps.since.store(started.as_nanos().unsigned_abs(), Ordering::Release);
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
        let mut demanded = true;
        loop {
            // Another service's full list may have come meanwhile.
            let full = demanded || locked(&self.sweeps.last_full).is_none_or(|began| began.elapsed() >= sync.full);
            let began = Instant::now();
            match self.sweep(full).await {
                Ok(Swept { seen, removed }) => {
                    tracing::info!(provider = &*self.name, full, seen, removed, millis = millis(began.elapsed()), "inventory read");
                    demanded &= !full;
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
                _ = list_due.changed() => demanded = true,
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

/// A list that is being read.
struct List {
    /// Whether it is one of everything.
    full: bool,
    /// The question that it answers.
    asked: Arc<Asked>,
    /// The time at which it began, by the clock of the service that reads it.
    started: UnixTime,
    incoming: mpsc::Receiver<Vec<Record>>,
    listing: JoinHandle<Result<Listed, Unavailable>>,
    /// Other services that get it too.
    others: Option<Publisher>,
}
