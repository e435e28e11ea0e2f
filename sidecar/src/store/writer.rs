//! The one task that writes decisions, in batches, and deletes those that have been kept long enough.

use std::sync::Arc;
use std::time::Duration;

use posture::time::UnixTime;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::file::{Checkpoint, Identity};
use super::newest::{Newest, TRACKED};
use super::{Decision, DecisionId, Learned, Losses, StoreError, rows};
use crate::clock::{self, Clock};

/// What the task is asked.
#[derive(Debug)]
pub(super) enum Work {
    /// Write this one.
    Keep(Box<Decision>),
    /// Say when all before is written.
    Flush(oneshot::Sender<()>),
    /// Write all before, and end.
    End(oneshot::Sender<()>),
}

/// How long decisions are kept, and how many; how long keys are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention {
    pub(super) age: Duration,
    pub(super) most: u64,
    /// Of keys.
    pub(super) keys: Duration,
    /// How many keys, of all devices.
    pub(super) most_keys: u64,
    /// How many of one device.
    pub(super) most_keys_of_one: usize,
}

/// The task.
#[derive(Debug)]
pub(super) struct Writer {
    connection: SqliteConnection,
    file: Identity,
    retention: Retention,
    learned: Arc<Learned>,
    clock: Arc<Clock>,
    losses: Arc<Losses>,
    /// How many pairs of identifiers are stored at most: those that were written again are counted again until it is too many.
    links: u64,
    /// How many keys are stored at most: those that were allowed again are counted again until it is too many.
    keys: u64,
    /// Which keys each device got lately.
    newest: Newest,
    /// No sooner is tried again what could not be written.
    patience: Instant,
    /// The time by which decisions grow old, and when that was found. It follows the system's clock, and no faster than
    /// [`FASTEST`] where that jumped ahead: a clock that is wrong for an hour costs the oldest day, not everything.
    aging: Option<(UnixTime, Instant)>,
    /// How many are stored. Counted once: to count a million takes a while.
    stored: u64,
}

impl Writer {
    pub(super) async fn new(
        mut connection: SqliteConnection,
        file: Identity,
        retention: Retention,
        learned: Arc<Learned>,
        clock: Arc<Clock>,
        losses: Arc<Losses>,
    ) -> Result<Self, sqlx::Error> {
        let stored = rows::count(&mut connection).await?;
        let links = rows::count_links(&mut connection).await?;
        let keys = rows::count_keys(&mut connection).await?;
        let mut newest = Newest::default();
        for (device, key) in rows::newest_keys(&mut connection, TRACKED).await?.into_iter().rev() {
            // What is too much already goes with the next keys of that device, or with the oldest of all.
            newest.allowed(&device, key, retention.most_keys_of_one);
        }
        Ok(Self { connection, file, retention, learned, clock, losses, links, keys, newest, patience: Instant::now(), aging: None, stored })
    }

    #[cfg(test)]
    pub(super) const fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    #[cfg(test)]
    pub(super) const fn has_aged(&mut self, to: UnixTime, at: Instant) {
        self.aging = Some((to, at));
    }

    #[cfg(test)]
    pub(super) const fn stored(&self) -> u64 {
        self.stored
    }

    /// Writes until it is told to end, or everyone who could ask is gone.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Work>) {
        let mut sweep = Instant::now();
        let mut work = Vec::with_capacity(BATCH);
        let learned = Arc::clone(&self.learned);
        loop {
            tokio::select! {
                taken = queue.recv_many(&mut work, BATCH) => if taken == 0 { break },
                () = learned_and_patient(&learned, self.patience) => {
                    self.write_learned().await;
                    continue;
                }
                () = tokio::time::sleep_until(sweep) => {
                    sweep = Instant::now() + self.sweep(clock::now()).await;
                    continue;
                }
            }
            if work.len() < BATCH && work.iter().all(|work| matches!(work, Work::Keep(_))) {
                // What else comes in this time is in the same transaction, and wakes nobody meanwhile.
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
            self.write(&batch).await;
            if !waiting.is_empty() {
                while self.write_learned().await {}
            }
            if end {
                queue.close();
                self.keep_time().await;
                // So that the file alone is all of it; where that fails, the log beside it has the rest.
                let _ = self.file.checkpoint(&mut self.connection, Checkpoint::OfAll).await;
            }
            for sender in waiting {
                // Whoever asked may have stopped waiting.
                let _ = sender.send(());
            }
            if end {
                break;
            }
        }
    }

    pub(super) async fn write(&mut self, batch: &[Box<Decision>]) {
        if batch.is_empty() {
            return;
        }
        match self.try_write(batch).await {
            Ok(written) => {
                self.stored = self.stored.saturating_add(written);
                self.losses.kept();
            }
            Err(error) => self.losses.lost(u64::try_from(batch.len()).unwrap_or(u64::MAX), &self.file.noted(error).text()),
        }
        self.shorten_log().await;
    }

    /// What is in the log becomes part of the database before the log is long.
    async fn shorten_log(&mut self) {
        if let Err(error) = self.file.checkpoint(&mut self.connection, Checkpoint::OfMuch).await {
            tracing::debug!(error = %error.text(), "the log of the store grows");
        }
    }

    async fn try_write(&mut self, batch: &[Box<Decision>]) -> Result<u64, StoreError> {
        self.file.is_there().await?;
        let new = rows::insert(&mut self.connection, batch, self.retention.keys, self.clock.proven().map(|proven| proven.time)).await?;
        // The decisions are written, whatever becomes of keys that are too many.
        if let Err(error) = self.bound_keys(batch).await {
            tracing::warn!(error = %error.text(), "keys of devices that are too many are not deleted yet");
        }
        Ok(new)
    }

    /// Writes a portion of what was learned of identifiers. Whether there may be more that can be written now.
    pub(super) async fn write_learned(&mut self) -> bool {
        let portion = self.learned.take(PORTION);
        if portion.len() == 0 {
            return false;
        }
        let written = async {
            self.file.is_there().await?;
            Ok::<_, StoreError>(rows::learn(&mut self.connection, &portion.pairs, &portion.covers).await?)
        };
        match written.await {
            Ok(()) => {
                self.links = self.links.saturating_add(u64::try_from(portion.pairs.len()).unwrap_or(u64::MAX));
                self.learned.some.notify_one();
                self.shorten_log().await;
                true
            }
            Err(error) => {
                tracing::warn!(error = %self.file.noted(error).text(), "which identifiers belong together is not kept yet");
                self.learned.put_back(portion);
                self.learned.some.notify_one();
                self.patience = Instant::now() + TRY_AGAIN;
                false
            }
        }
    }

    /// Deletes a few of what need not be kept any longer; returns when to go on.
    async fn sweep(&mut self, now: UnixTime) -> Duration {
        match self.delete_some(now).await {
            Ok(true) => {
                self.shorten_log().await;
                return SOON;
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(error = %self.file.noted(error).text(), "decisions that need not be kept any longer are not deleted yet");
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
            self.file.is_there().await?;
            Ok::<_, StoreError>(rows::keep_proven(&mut self.connection, proven).await?)
        };
        if let Err(error) = kept.await {
            tracing::warn!(error = %self.file.noted(error).text(), "the time is not kept: the next start believes the system's clock after an hour only");
        }
    }

    /// The time by which decisions grow old.
    async fn aged(&mut self, now: UnixTime) -> Result<UnixTime, StoreError> {
        let furthest = match self.aging {
            Some((time, found)) => time.saturating_add(found.elapsed().saturating_mul(FASTEST)),
            // The clock may have been wrong before this start: then nothing is old yet.
            None => rows::oldest(&mut self.connection).await?.map_or(now, |oldest| oldest.at().saturating_add(self.retention.age)),
        };
        let time = now.min(furthest);
        self.aging = Some((time, Instant::now()));
        Ok(time)
    }

    /// Whether there may be more of them.
    pub(super) async fn delete_some(&mut self, now: UnixTime) -> Result<bool, StoreError> {
        self.file.is_there().await?;
        let span = self.clock.read(now);
        rows::delete_ended_rulings(&mut self.connection, span).await?;
        let now = self.aged(span.earliest).await?;
        let keys = rows::delete_keys_before(&mut self.connection, now.saturating_sub(self.retention.keys), SWEEP).await?;
        let old = DecisionId::first(now.saturating_sub(self.retention.age));
        let mut deleted = rows::delete_before(&mut self.connection, old, SWEEP).await?;
        self.stored = self.stored.saturating_sub(deleted);
        let beyond = self.stored.saturating_sub(self.retention.most);
        if beyond > 0 {
            let most = u32::try_from(beyond).unwrap_or(u32::MAX).min(SWEEP);
            let oldest = rows::delete_oldest(&mut self.connection, most).await?;
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
                let deleted = rows::delete_key(&mut self.connection, &identity.device, oldest).await?;
                self.keys = self.keys.saturating_sub(deleted);
            }
        }
        Ok(())
    }

    /// Deletes a few of the oldest keys, where there are too many.
    async fn delete_keys(&mut self) -> Result<u64, StoreError> {
        if self.keys <= self.retention.most_keys {
            return Ok(0);
        }
        self.keys = rows::count_keys(&mut self.connection).await?;
        let beyond = u32::try_from(self.keys.saturating_sub(self.retention.most_keys)).unwrap_or(u32::MAX).min(SWEEP);
        let deleted = rows::delete_oldest_keys(&mut self.connection, beyond).await?;
        self.keys = self.keys.saturating_sub(deleted);
        Ok(deleted)
    }

    /// Deletes a few of the pairs that were seen the longest ago, where there are more than `most`.
    pub(super) async fn delete_links(&mut self, most: u64) -> Result<u64, StoreError> {
        if self.links <= most {
            return Ok(0);
        }
        self.links = rows::count_links(&mut self.connection).await?;
        let beyond = u32::try_from(self.links.saturating_sub(most)).unwrap_or(u32::MAX).min(SWEEP);
        let deleted = rows::delete_links(&mut self.connection, beyond).await?;
        self.links = self.links.saturating_sub(deleted);
        Ok(deleted)
    }
}

/// Ends when something was learned and may be written.
async fn learned_and_patient(learned: &Learned, patience: Instant) {
    tokio::time::sleep_until(patience).await;
    learned.some.notified().await;
}

/// Pairs, and rows of covers, in one transaction at most.
const PORTION: usize = 2048;

/// How long after a failure what was learned is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// Pairs that are kept, in each direction one, some 50 MB: a fleet of 500,000 with two identifiers each.
const MOST_LINKS: u64 = 1_000_000;

/// Decisions in one transaction at most.
const BATCH: usize = 512;

/// How long others are waited for, to write with the first of them.
const GATHER: Duration = Duration::from_millis(50);

/// Decisions deleted at once: few enough that none waits long for its turn to be written.
const SWEEP: u32 = 500;

/// How many times as fast as time passes decisions grow old at most, until their time is that of the system's clock.
const FASTEST: u32 = 24;

/// When to go on deleting while there is more.
const SOON: Duration = Duration::from_millis(50);
