//! The one task that writes decisions, in batches, and deletes those that have been kept long enough.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use clock::Clock;
use posture::time::UnixTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::columns::Stored;
use crate::database::{Checkpoint, Records};
use crate::decision::Decision;
use crate::error::StoreError;
use crate::id::DecisionId;
use crate::learned::Learned;
use crate::losses::Losses;
use crate::newest::Newest;

/// A request to the task.
#[derive(Debug)]
pub(crate) enum Work {
    /// Write this decision.
    Keep(Box<Decision>),
    /// Answer once all earlier decisions are written.
    Flush(oneshot::Sender<()>),
    /// Write all earlier decisions, answer, and end.
    End(oneshot::Sender<()>),
}

/// Bounds on the age and the number of decisions and keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    pub(crate) age: Duration,
    pub(crate) most: u64,
    /// Time for which a key is kept.
    pub(crate) keys: Duration,
    /// Most keys of all devices.
    pub(crate) most_keys: u64,
    /// Most keys of one device.
    pub(crate) most_keys_of_one: usize,
}

/// The task that writes decisions.
#[derive(Debug)]
pub(crate) struct Writer {
    records: Records,
    retention: Retention,
    learned: Arc<Learned>,
    clock: Arc<Clock>,
    losses: Arc<Losses>,
    /// Upper bound of the number of stored pairs of identifiers: a pair that is written again is counted again, until the bound
    /// is too great and all are counted.
    links: u64,
    /// Upper bound of the number of stored keys: a key that is allowed again is counted again, until the bound is too great and
    /// all are counted.
    keys: u64,
    /// The keys that each device got lately.
    newest: Newest,
    /// The moment before which a failed write of learned rows is not tried again.
    patience: Instant,
    /// The time by which decisions grow old, and the moment at which it was found. It follows the system's clock, but no faster
    /// than [`FASTEST`] where that clock jumped ahead: a clock that is wrong for an hour costs the oldest day, not everything.
    aging: Option<(UnixTime, Instant)>,
    /// Number of stored decisions. It is counted once, at the start: counting a million takes a while.
    stored: u64,
    /// Decisions that wait for a server that is away, and the moment at which it is tried again.
    held: VecDeque<Box<Decision>>,
    again: Instant,
}

impl Writer {
    pub(crate) fn new(
        records: Records,
        stored: Stored,
        retention: Retention,
        learned: Arc<Learned>,
        clock: Arc<Clock>,
        losses: Arc<Losses>,
    ) -> Self {
        let Stored { decisions, links, keys, newest_keys } = stored;
        let mut newest = Newest::default();
        for (device, key) in newest_keys.into_iter().rev() {
            // A surplus of stored keys goes with the next keys of its device, or with the oldest of all.
            newest.allowed(&device, key, retention.most_keys_of_one);
        }
        Self {
            records,
            retention,
            learned,
            clock,
            losses,
            links,
            keys,
            newest,
            patience: Instant::now(),
            aging: None,
            stored: decisions,
            held: VecDeque::new(),
            again: Instant::now(),
        }
    }

    #[cfg(test)]
    pub(crate) const fn records(&mut self) -> &mut Records {
        &mut self.records
    }

    #[cfg(test)]
    pub(crate) const fn has_aged(&mut self, to: UnixTime, at: Instant) {
        self.aging = Some((to, at));
    }

    #[cfg(test)]
    pub(crate) const fn stored(&self) -> u64 {
        self.stored
    }

    /// Writes until it is told to end, or no sender is left.
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Work>) {
        let mut sweep = Instant::now();
        let mut work = Vec::with_capacity(BATCH);
        let learned = Arc::clone(&self.learned);
        loop {
            tokio::select! {
                taken = queue.recv_many(&mut work, BATCH) => if taken == 0 { break },
                () = tokio::time::sleep_until(self.again), if !self.held.is_empty() => {}
                () = learned_and_patient(&learned, self.patience) => {
                    self.write_learned().await;
                    continue;
                }
                () = tokio::time::sleep_until(sweep) => {
                    sweep = Instant::now() + self.sweep(clock::now()).await;
                    continue;
                }
            }
            if !work.is_empty() && work.len() < BATCH && work.iter().all(|work| matches!(work, Work::Keep(_))) {
                // Decisions that come in this time go into the same transaction, and wake nobody meanwhile.
                tokio::time::sleep(GATHER).await;
                while work.len() < BATCH
                    && let Ok(more) = queue.try_recv()
                {
                    work.push(more);
                }
            }
            let mut batch = Vec::with_capacity(work.len());
            let mut waiting = Vec::new();
            let mut end = false;
            for work in work.drain(..) {
                match work {
                    Work::Keep(decision) => batch.push(decision),
                    Work::Flush(sender) => waiting.push(sender),
                    Work::End(sender) => {
                        waiting.push(sender);
                        end = true;
                    }
                }
            }
            self.write_or_hold(batch, end).await;
            if !waiting.is_empty() && self.held.is_empty() {
                while self.write_learned().await {}
            }
            if end {
                queue.close();
                self.keep_time().await;
                // The checkpoint makes the file alone the whole store; if it fails, the log beside the file has the rest.
                let _ = self.records.checkpoint(Checkpoint::OfAll).await;
            }
            for sender in waiting {
                // The asker may have stopped waiting.
                let _ = sender.send(());
            }
            if end {
                break;
            }
        }
    }

    /// Writes a batch. Where the server is away, the batch waits for it behind those that wait already, unless this is the `end`.
    #[expect(clippy::vec_box, reason = "decisions are boxed in the queue, and wait as they are")]
    async fn write_or_hold(&mut self, batch: Vec<Box<Decision>>, end: bool) {
        if self.held.is_empty() {
            if let Err(error) = self.try_keep(&batch).await {
                self.hold_or_lose(batch, &error, end);
            }
            return;
        }
        self.hold(batch);
        if !end && Instant::now() < self.again {
            return;
        }
        while !self.held.is_empty() {
            let some: Vec<_> = self.held.drain(..self.held.len().min(BATCH)).collect();
            if let Err(error) = self.try_keep(&some).await {
                self.hold_or_lose(some, &error, end);
                if !end {
                    return;
                }
            }
        }
        self.losses.waiting(None);
    }

    /// Puts a batch that was not written before all that wait, where the error may pass; else the batch is lost.
    #[expect(clippy::vec_box, reason = "as above")]
    fn hold_or_lose(&mut self, batch: Vec<Box<Decision>>, error: &StoreError, end: bool) {
        if end || !self.records.may_take_later(error) {
            self.losses.lost(u64::try_from(batch.len()).unwrap_or(u64::MAX), &error.text());
            if self.held.is_empty() {
                self.losses.waiting(None);
            }
            return;
        }
        for decision in batch.into_iter().rev() {
            self.held.push_front(decision);
        }
        self.again = Instant::now() + HELD_FOR;
        self.losses.waiting(Some((self.held.len(), error.text())));
    }

    /// Puts a batch behind those that wait; what finds no room is lost.
    #[expect(clippy::vec_box, reason = "as above")]
    fn hold(&mut self, batch: Vec<Box<Decision>>) {
        let room = HELD.saturating_sub(self.held.len());
        let lost = batch.len().saturating_sub(room);
        self.held.extend(batch.into_iter().take(room));
        if lost > 0 {
            self.losses
                .lost(u64::try_from(lost).unwrap_or(u64::MAX), "more decisions wait for the server of the store than there is room for");
        }
    }

    /// Writes a batch as the task does that never holds one.
    #[cfg(test)]
    pub(crate) async fn write(&mut self, batch: &[Box<Decision>]) {
        if let Err(error) = self.try_keep(batch).await {
            self.losses.lost(u64::try_from(batch.len()).unwrap_or(u64::MAX), &error.text());
        }
    }

    async fn try_keep(&mut self, batch: &[Box<Decision>]) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let written = self.try_write(batch).await.map_err(|error| self.records.noted(error));
        self.shorten_log().await;
        self.stored = self.stored.saturating_add(written?);
        self.losses.kept();
        Ok(())
    }

    /// Moves the log into the database before it is long.
    async fn shorten_log(&mut self) {
        if let Err(error) = self.records.checkpoint(Checkpoint::OfMuch).await {
            tracing::debug!(error = %error.text(), "the log of the store grows");
        }
    }

    async fn try_write(&mut self, batch: &[Box<Decision>]) -> Result<u64, StoreError> {
        self.records.is_there().await?;
        let new = self.records.insert(batch, self.retention.keys, self.clock.proven().map(|proven| proven.time)).await?;
        // The decisions are written, even if surplus keys cannot be deleted.
        if let Err(error) = self.bound_keys(batch).await {
            tracing::warn!(error = %error.text(), "keys of devices that are too many are not deleted yet");
        }
        Ok(new)
    }

    /// Writes a portion of the learned rows; returns whether there may be more to write now.
    pub(crate) async fn write_learned(&mut self) -> bool {
        let portion = self.learned.take(PORTION);
        if portion.len() == 0 {
            return false;
        }
        let written = async {
            self.records.is_there().await?;
            self.records.learn(&portion.pairs, &portion.covers).await
        };
        match written.await {
            Ok(()) => {
                self.links = self.links.saturating_add(u64::try_from(portion.pairs.len()).unwrap_or(u64::MAX));
                self.learned.some.notify_one();
                self.shorten_log().await;
                true
            }
            Err(error) => {
                tracing::warn!(error = %self.records.noted(error).text(), "which identifiers belong together is not kept yet");
                self.learned.put_back(portion);
                self.learned.some.notify_one();
                self.patience = Instant::now() + TRY_AGAIN;
                false
            }
        }
    }

    /// Deletes a portion of what need not be kept any longer; returns the time until the next sweep.
    async fn sweep(&mut self, now: UnixTime) -> Duration {
        match self.delete_some(now).await {
            Ok(true) => {
                self.shorten_log().await;
                return SOON;
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(error = %self.records.noted(error).text(), "decisions that need not be kept any longer are not deleted yet");
            }
        }
        self.keep_time().await;
        self.shorten_log().await;
        clock::KEPT_EVERY
    }

    /// Keeps the proven time, for the next start.
    async fn keep_time(&mut self) {
        let Some(proven) = self.clock.proven() else { return };
        let kept = async {
            self.records.is_there().await?;
            self.records.keep_proven(proven).await
        };
        if let Err(error) = kept.await {
            tracing::warn!(error = %self.records.noted(error).text(), "the time is not kept: the next start believes the system's clock after an hour only");
        }
    }

    /// The time by which decisions grow old, moved on towards `now`.
    async fn aged(&mut self, now: UnixTime) -> Result<UnixTime, StoreError> {
        let furthest = match self.aging {
            Some((time, found)) => time.saturating_add(found.elapsed().saturating_mul(FASTEST)),
            // The clock may have been wrong before this start, so no decision counts as old yet.
            None => self.records.oldest().await?.map_or(now, |oldest| oldest.at().saturating_add(self.retention.age)),
        };
        let time = now.min(furthest);
        self.aging = Some((time, Instant::now()));
        Ok(time)
    }

    /// Deletes a portion of ended rulings, old or surplus decisions, keys and pairs; returns whether there may be more.
    pub(crate) async fn delete_some(&mut self, now: UnixTime) -> Result<bool, StoreError> {
        self.records.is_there().await?;
        let span = self.clock.read(now);
        self.records.delete_ended_rulings(span).await?;
        let now = self.aged(span.earliest).await?;
        let keys = self.records.delete_keys_before(now.saturating_sub(self.retention.keys), SWEEP).await?;
        let old = DecisionId::first(now.saturating_sub(self.retention.age));
        let mut deleted = self.records.delete_before(old, SWEEP).await?;
        self.stored = self.stored.saturating_sub(deleted);
        let beyond = self.stored.saturating_sub(self.retention.most);
        if beyond > 0 {
            let most = u32::try_from(beyond).unwrap_or(u32::MAX).min(SWEEP);
            let oldest = self.records.delete_oldest(most).await?;
            self.stored = self.stored.saturating_sub(oldest);
            deleted = deleted.max(oldest);
        }
        let links = self.delete_links(MOST_LINKS).await?;
        let keys = keys.max(self.delete_keys().await?);
        Ok(deleted.max(keys).max(links) >= u64::from(SWEEP))
    }

    /// Deletes the oldest keys of those devices of a batch that have too many.
    async fn bound_keys(&mut self, batch: &[Box<Decision>]) -> Result<(), StoreError> {
        for (key, identity) in batch.iter().filter_map(|decision| decision.key.as_ref()) {
            self.keys = self.keys.saturating_add(1);
            if let Some(oldest) = self.newest.allowed(&identity.device, *key, self.retention.most_keys_of_one) {
                let deleted = self.records.delete_key(&identity.device, oldest).await?;
                self.keys = self.keys.saturating_sub(deleted);
            }
        }
        Ok(())
    }

    /// Deletes a portion of the oldest keys, where there are too many; returns their number.
    async fn delete_keys(&mut self) -> Result<u64, StoreError> {
        if self.keys <= self.retention.most_keys {
            return Ok(0);
        }
        self.keys = self.records.count_keys().await?;
        let beyond = u32::try_from(self.keys.saturating_sub(self.retention.most_keys)).unwrap_or(u32::MAX).min(SWEEP);
        let deleted = self.records.delete_oldest_keys(beyond).await?;
        self.keys = self.keys.saturating_sub(deleted);
        Ok(deleted)
    }

    /// Deletes a portion of the pairs that were seen the longest ago, where there are more than `most`; returns their number.
    pub(crate) async fn delete_links(&mut self, most: u64) -> Result<u64, StoreError> {
        if self.links <= most {
            return Ok(0);
        }
        self.links = self.records.count_links().await?;
        let beyond = u32::try_from(self.links.saturating_sub(most)).unwrap_or(u32::MAX).min(SWEEP);
        let deleted = self.records.delete_links(beyond).await?;
        self.links = self.links.saturating_sub(deleted);
        Ok(deleted)
    }
}

/// Waits until learned rows are there and may be written.
async fn learned_and_patient(learned: &Learned, patience: Instant) {
    tokio::time::sleep_until(patience).await;
    learned.some.notified().await;
}

/// Most pairs, and most covers, in one transaction.
const PORTION: usize = 2048;

/// Time after a failure until learned rows are tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// Most pairs that are kept, one for each direction, some 50 MB: a fleet of 500,000 devices with two identifiers each.
const MOST_LINKS: u64 = 1_000_000;

/// Most decisions in one transaction.
const BATCH: usize = 512;

/// Most decisions that wait for a server that is away, some 25 MB as a rule.
pub(crate) const HELD: usize = 16_384;

/// Time until a server that is away is tried again.
const HELD_FOR: Duration = Duration::from_millis(500);

/// Time for which a first decision waits for others, to be written with them.
const GATHER: Duration = Duration::from_millis(50);

/// Most decisions deleted at once: few enough that no decision waits long to be written.
const SWEEP: u32 = 500;

/// Greatest speed at which decisions grow old, in times the speed of passing time, until their time is that of the system's
/// clock.
const FASTEST: u32 = 24;

/// Time until deleting goes on while there is more to delete.
const SOON: Duration = Duration::from_millis(50);
