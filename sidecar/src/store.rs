//! What outlives the process: rulings of operators, and the record of decisions. One SQLite file, made and migrated at the
//! start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use posture::identity::{Identity, PublicKey};
use posture::time::UnixTime;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use crate::clock::{Clock, Span};
use crate::locks::{Mark, Ruling};
use crate::metrics::Metrics;

mod backup;
mod decision;
mod file;
mod log;
mod newest;
mod rows;
#[cfg(test)]
mod tests;
mod writer;

pub use backup::{BackupError, back_up};
pub use decision::{Answer, Decision, DecisionId, Device, LONGEST_CHECKS, NoId};
pub(crate) use decision::{as_kept, rfc3339};
pub use file::{OpenError, examine};
pub(crate) use rows::Sent;
pub use rows::{Summary, Wanted};

/// `[store]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The file; `None`: nothing outlives the process.
    pub path: Option<PathBuf>,
    /// How long a decision is kept; default 90 days.
    pub retention: Duration,
    /// How many are kept at most; default 1,000,000.
    pub max_decisions: u64,
    /// Whether public keys are bound to the devices that they are allowed for; default false.
    pub bind_keys: bool,
    /// How long a public key is known for the device that it was allowed for; default 400 days.
    pub key_retention: Duration,
    /// How many keys are known at most, of all devices; default 1,000,000. The oldest go.
    pub max_keys: u64,
    /// How many of one device; default 64. The oldest go.
    pub max_keys_per_device: u32,
}

impl Settings {
    /// No store at all.
    pub const fn none() -> Self {
        Self {
            path: None,
            retention: RETENTION,
            max_decisions: MAX_DECISIONS,
            bind_keys: false,
            key_retention: KEY_RETENTION,
            max_keys: MAX_KEYS,
            max_keys_per_device: MAX_KEYS_PER_DEVICE,
        }
    }
}

/// Default of [`Settings::retention`].
pub const RETENTION: Duration = Duration::from_secs(90 * 86_400);

/// Default of [`Settings::max_decisions`].
pub const MAX_DECISIONS: u64 = 1_000_000;

/// Default of [`Settings::key_retention`]: certificates outlive decisions.
pub const KEY_RETENTION: Duration = Duration::from_secs(400 * 86_400);

/// Default of [`Settings::max_keys`].
pub const MAX_KEYS: u64 = 1_000_000;

/// Default of [`Settings::max_keys_per_device`]: a certificate of a day is asked for anew twice a day, and the last are in use.
pub const MAX_KEYS_PER_DEVICE: u32 = 64;

/// A store, or none. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Store(Option<Arc<Opened>>);

#[derive(Debug)]
struct Opened {
    file: file::Identity,
    /// Writes rulings, each durable before the call returns.
    rulings: Mutex<SqliteConnection>,
    /// Reads decisions, so that a long answer holds up neither a writer nor an Envoy that asks for a key.
    listing: Mutex<SqliteConnection>,
    /// Reads keys.
    keys: Mutex<SqliteConnection>,
    /// To the task that writes decisions.
    work: mpsc::Sender<writer::Work>,
    /// To the same task, beside the decisions, so that neither takes the other's room.
    learned: Arc<Learned>,
    losses: Arc<Losses>,
    /// The time by which things end.
    clock: Arc<Clock>,
    /// Locks that could not be kept, and why: they are written once there is room.
    owed: SyncMutex<Owed>,
    /// Whether somebody removed or replaced a file of it.
    gone: AtomicBool,
    /// Devices by key, as they were read: Envoy asks at each request.
    known: moka::sync::Cache<PublicKey, Identity>,
    /// Whether keys are bound to devices. Whoever has a webhook's secret can bind any, so it is done where it is of use.
    bind_keys: bool,
    key_retention: Duration,
    /// Held so that no second process uses the file; the lock ends with it.
    _lock: std::fs::File,
}

/// Why something could not be read or written. Service goes on without it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no store: `[store] enabled = false`.
    #[error("there is no store: [store] enabled is false")]
    None,
    /// Somebody removed the file or put another in its place; what is written would be lost with it.
    #[error(
        "a file of the store was removed or replaced, cut short or written to by somebody else: `stepward locks` shows what holds until the end of this process; then start the service again, and make anew what is missing"
    )]
    Gone,
    /// The disk is full.
    #[error("the disk of the store is full")]
    Full,
    /// The file or its file system can only be read.
    #[error("the file of the store cannot be written to")]
    ReadOnly,
    /// Pages of the file make no sense.
    #[error(
        "the file of the store is damaged: with the service stopped move it and those with -wal and -shm aside, and then put a backup in its place"
    )]
    Damaged(#[source] sqlx::Error),
    /// The disk takes too long.
    #[error("the store did not answer in time")]
    Slow,
    /// Anything else.
    #[error("the store failed")]
    Failed(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match file::primary_code(&error) {
            Some(file::FULL) => Self::Full,
            Some(file::READONLY) => Self::ReadOnly,
            Some(file::CORRUPT | file::NOT_A_DATABASE) => Self::Damaged(error),
            _ => Self::Failed(error),
        }
    }
}

impl StoreError {
    /// The whole chain of causes in one text.
    pub fn text(&self) -> String {
        match self {
            Self::Failed(source) | Self::Damaged(source) => format!("{self}: {source}"),
            other => other.to_string(),
        }
    }
}

impl Store {
    /// No store: rulings live in memory, decisions are not kept.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Opens the file that the settings name, or makes it, and starts the task that writes decisions.
    /// Runs within a Tokio runtime.
    ///
    /// # Errors
    /// See [`OpenError`]: each says what to do.
    pub async fn open(settings: &Settings, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        let Some(path) = &settings.path else { return Ok(Self::none()) };
        let file::Connections { mut decisions, rulings, listing, keys, identity, lock } = file::open(path).await?;
        let proven = rows::proven(&mut decisions).await.map_err(|error| OpenError::from_sqlite(path, error))?;
        let clock = Arc::new(Clock::after(proven));
        let losses = Arc::new(Losses::new(metrics));
        let (work, queue) = mpsc::channel(QUEUE);
        let retention = writer::Retention {
            age: settings.retention,
            most: settings.max_decisions,
            keys: settings.key_retention,
            most_keys: settings.max_keys,
            most_keys_of_one: usize::try_from(settings.max_keys_per_device).unwrap_or(usize::MAX),
        };
        let learned = Arc::<Learned>::default();
        let writer =
            writer::Writer::new(decisions, identity.clone(), retention, Arc::clone(&learned), Arc::clone(&clock), Arc::clone(&losses))
                .await
                .map_err(|error| OpenError::from_sqlite(path, error))?;
        tokio::spawn(writer.run(queue));
        let opened = Opened {
            file: identity,
            rulings: Mutex::new(rulings),
            listing: Mutex::new(listing),
            keys: Mutex::new(keys),
            work,
            learned,
            losses,
            clock,
            owed: SyncMutex::default(),
            gone: AtomicBool::new(false),
            known: moka::sync::Cache::builder().max_capacity(KEYS).time_to_live(KEY_AGE).build(),
            bind_keys: settings.bind_keys,
            key_retention: settings.key_retention,
            _lock: lock,
        };
        let opened = Arc::new(opened);
        tokio::spawn(look_after(Arc::downgrade(&opened)));
        Ok(Self(Some(opened)))
    }

    /// Whether decisions are kept: without it there is no need to put one together.
    pub const fn keeps_decisions(&self) -> bool {
        self.0.is_some()
    }

    /// Keeps a decision, soon and in the background. Never waits and never fails: where the queue is full or the disk does
    /// not take it, `stepward_decision_records_dropped_total` counts it.
    pub fn record(&self, mut decision: Decision) {
        let Some(opened) = &self.0 else { return };
        decision.bound();
        if !opened.bind_keys {
            decision.key = None;
        }
        if opened.work.try_send(writer::Work::Keep(Box::new(decision))).is_err() {
            opened.losses.lost(1, "more decisions are made than the disk takes");
        }
    }

    /// Whether there is a store, and keys of devices are not bound in it.
    pub fn binds_no_keys(&self) -> bool {
        self.0.as_ref().is_some_and(|opened| !opened.bind_keys)
    }

    /// Waits until every decision so far is written, or dropped.
    pub async fn flush(&self) {
        if let Some(opened) = &self.0 {
            let (sender, written) = oneshot::channel();
            if opened.work.send(writer::Work::Flush(sender)).await.is_ok() {
                // Where the writer has ended there is nothing left to wait for.
                let _ = written.await;
            }
        }
    }

    /// Writes what is queued and ends the writer; decisions after this are dropped. Says which locks end with the process.
    pub async fn close(&self) {
        let Some(opened) = &self.0 else { return };
        let (sender, written) = oneshot::channel();
        if opened.work.send(writer::Work::End(sender)).await.is_ok() {
            let _ = written.await;
        }
        // What was in the log has become part of the database, so that there may be room now.
        opened.look_after().await;
        let owed = opened.owed();
        for (ruling, _) in owed.rulings.values() {
            let (device, id) = (&ruling.device, ruling.id);
            tracing::error!(device, %id, why = owed.why, "a lock ends with this process, since it could not be written: make it anew");
        }
    }

    /// The stored record of a decision, a JSON object; `None` where there is none of this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn decision(&self, id: DecisionId) -> Result<Option<String>, StoreError> {
        let opened = self.opened()?;
        in_time(async {
            self.flush().await;
            Ok(rows::decision(&mut *opened.listing.lock().await, id).await?)
        })
        .await
    }

    /// Decisions, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn decisions(&self, wanted: &Wanted) -> Result<Vec<Summary>, StoreError> {
        let opened = self.opened()?;
        in_time(async {
            self.flush().await;
            Ok(rows::decisions(&mut *opened.listing.lock().await, wanted).await?)
        })
        .await
    }

    /// Webhooks that were allowed or denied last: within `window` before the last decision, whatever the clock says now. The last
    /// ones first, `most` at most.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn sent(&self, window: Duration, most: u32) -> Result<Vec<Sent>, StoreError> {
        let opened = self.opened()?;
        in_time(async { Ok(rows::sent(&mut *opened.listing.lock().await, window, most).await?) }).await
    }

    /// The device that a public key was allowed for, as of some seconds ago; `None` where it was for none, or too long ago, and
    /// where keys are not bound: those that once were count no more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn device_of(&self, key: PublicKey, now: UnixTime) -> Result<Option<Identity>, StoreError> {
        let opened = self.opened()?;
        if !opened.bind_keys {
            return Ok(None);
        }
        if let Some(known) = opened.known.get(&key) {
            return Ok(Some(known));
        }
        // Whichever clock says that a key is too old: it lets somebody in.
        let latest = opened.clock.proven().map_or(now, |proven| proven.time.max(now));
        let since = latest.saturating_sub(opened.key_retention);
        let read = async || Ok::<_, StoreError>(rows::device_of(&mut *opened.keys.lock().await, key, since).await?);
        let found = in_time(async {
            match read().await? {
                Some(identity) => Ok(Some(identity)),
                // It may have been allowed a moment ago.
                None => {
                    self.flush().await;
                    read().await
                }
            }
        })
        .await?;
        if let Some(identity) = &found {
            opened.known.insert(key, identity.clone());
        }
        Ok(found)
    }

    /// Every ruling that has not ended by this time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rulings(&self, now: Span) -> Result<Vec<Ruling>, StoreError> {
        let opened = self.opened()?;
        in_time(async { Ok(rows::rulings(&mut *opened.rulings.lock().await, now).await?) }).await
    }

    /// What each lock covers besides the identifier that it was made by.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn covers(&self) -> Result<Vec<(DecisionId, Mark)>, StoreError> {
        let opened = self.opened()?;
        in_time(async { Ok(rows::covers(&mut *opened.rulings.lock().await).await?) }).await
    }

    /// Keeps which identifiers stood in one record, soon and in the background. False where there is no room for them now:
    /// whoever learns them again has to say so again.
    pub(crate) fn link(&self, pairs: &[(Mark, Mark)]) -> bool {
        let Some(opened) = &self.0 else { return true };
        opened.learned.add(|portion| portion.pairs.extend_from_slice(pairs))
    }

    /// Keeps what a lock covers besides, soon and in the background.
    pub(crate) fn cover(&self, lock: DecisionId, marks: &[Mark]) {
        if let (Some(opened), false) = (&self.0, marks.is_empty()) {
            // Where there is no room now, the next start learns it from the pairs, or with the record.
            opened.learned.add(|portion| portion.covers.extend(marks.iter().map(|mark| (lock, *mark))));
        }
    }

    /// Pairs of identifiers that stood in one record, the last seen first, and so many at most.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn links(&self, most: usize) -> Result<Vec<(Mark, Mark)>, StoreError> {
        let opened = self.opened()?;
        in_time(async { Ok(rows::links(&mut *opened.listing.lock().await, most).await?) }).await
    }

    /// What stood in one record with any of these: where that is more than one lock can cover, what was seen first, and then
    /// what was seen last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn partners(&self, of: &[Mark]) -> Result<Vec<Mark>, StoreError> {
        let opened = self.opened()?;
        in_time(async {
            self.flush().await;
            Ok(rows::partners(&mut *opened.listing.lock().await, of).await?)
        })
        .await
    }

    /// Keeps a ruling and what it covers; it is on the disk once this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn keep(&self, ruling: &Ruling, covered: &[Mark]) -> Result<(), StoreError> {
        let opened = self.opened()?;
        in_time(async {
            opened.file.is_there().await?;
            rows::keep(&mut *opened.rulings.lock().await, ruling, covered).await.map_err(|error| opened.file.noted(error.into()))?;
            // What was written to a file that was gone by then, or behind a hole, is lost with it.
            opened.file.would_be_found().await
        })
        .await
    }

    /// Keeps a lock that could not be kept as soon as that is possible. Until then [`Self::owes`] and [`Self::trouble`] say so.
    pub(crate) fn owe(&self, ruling: &Arc<Ruling>, covered: Vec<Mark>, why: &StoreError) {
        if let Some(opened) = &self.0 {
            tracing::error!(
                device = ruling.device,
                id = %ruling.id,
                error = why.text(),
                "the lock holds, but the store could not keep it: it is tried again every few seconds, and a restart before then loses it"
            );
            let mut owed = opened.owed();
            owed.why = why.text();
            owed.rulings.insert(ruling.id, (Arc::clone(ruling), covered));
        }
    }

    /// Whether this ruling is not kept yet.
    pub(crate) fn owes(&self, id: DecisionId) -> bool {
        self.0.as_ref().is_some_and(|opened| opened.owed().rulings.contains_key(&id))
    }

    /// How many rulings are not kept yet.
    pub fn count_owed(&self) -> usize {
        self.0.as_ref().map_or(0, |opened| opened.owed().rulings.len())
    }

    /// Whether a start would not find what is kept, as far as is known: a file is gone, another one, or damaged.
    pub fn is_lost(&self) -> bool {
        self.0.as_ref().is_some_and(|opened| opened.gone.load(Ordering::Relaxed) || opened.file.is_damaged())
    }

    /// What is wrong with the store, in words; `None` where nothing is known to be.
    pub fn trouble(&self) -> Option<String> {
        let opened = self.0.as_ref()?;
        let owed = opened.owed();
        if opened.gone.load(Ordering::Relaxed) {
            return Some(StoreError::Gone.text());
        }
        if opened.file.is_damaged() {
            return Some("the file of the store is damaged: see the log for what could not be read or written".to_owned());
        }
        let count = owed.rulings.len();
        let locks =
            (count > 0).then(|| format!("{count} locks would not survive a restart, since they could not be written: {}", owed.why));
        locks.or_else(|| opened.losses.trouble())
    }

    /// Looks whether the files are still there, and writes what is owed.
    #[cfg(test)]
    pub(crate) async fn look_after(&self) {
        if let Some(opened) = &self.0 {
            opened.look_after().await;
        }
    }

    /// Forgets rulings, all of them or none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget(&self, ids: &[DecisionId]) -> Result<(), StoreError> {
        let opened = self.opened()?;
        in_time(async {
            opened.file.is_there().await?;
            let mut connection = opened.rulings.lock().await;
            rows::forget(&mut connection, ids).await.map_err(|error| opened.file.noted(error.into()))?;
            opened.file.would_be_found().await?;
            // Whoever writes what is owed has the connection first.
            opened.owed().rulings.retain(|id, _| !ids.contains(id));
            Ok(())
        })
        .await
    }

    /// The time by which things end; `None` where there is no store.
    pub(crate) fn clock(&self) -> Option<&Clock> {
        self.0.as_ref().map(|opened| &*opened.clock)
    }

    /// The file.
    pub fn path(&self) -> Option<&Path> {
        self.0.as_ref().map(|opened| opened.file.path())
    }

    fn opened(&self) -> Result<&Opened, StoreError> {
        self.0.as_deref().ok_or(StoreError::None)
    }
}

impl Opened {
    fn owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look_after(&self) {
        let gone = self.file.is_there().await.is_err();
        if gone && !self.gone.swap(true, Ordering::Relaxed) {
            tracing::error!(
                path = %self.file.path().display(),
                "a file of the store was removed or replaced, cut short or written to by somebody else: what is written is lost; note what `stepward locks` shows, and start the service again"
            );
        }
        self.gone.store(gone, Ordering::Relaxed);
        if gone || self.owed().rulings.is_empty() {
            return;
        }
        let mut connection = self.rulings.lock().await;
        loop {
            let Some((ruling, covered)) = self.owed().rulings.values().next().cloned() else { break };
            let kept = async {
                rows::keep(&mut connection, &ruling, &covered).await.map_err(|error| self.file.noted(error.into()))?;
                self.file.would_be_found().await
            };
            if let Err(error) = kept.await {
                self.owed().why = error.text();
                break;
            }
            self.owed().rulings.remove(&ruling.id);
            tracing::info!(device = ruling.device, id = %ruling.id, "the lock is kept now");
        }
    }
}

/// Looks after a store until it is closed.
async fn look_after(store: Weak<Opened>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(opened) = store.upgrade() else { return };
        opened.look_after().await;
    }
}

/// Locks that are not kept yet, each with what it covers. Their number is bounded by that of rulings.
#[derive(Debug, Default)]
struct Owed {
    rulings: BTreeMap<DecisionId, (Arc<Ruling>, Vec<Mark>)>,
    /// Why not, as of the last attempt.
    why: String,
}

/// How often the files are looked for, and what is owed is tried.
const LOOK: Duration = Duration::from_secs(5);

async fn in_time<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or(Err(StoreError::Slow))
}

/// What was learned of identifiers and waits for the task that writes.
#[derive(Debug, Default)]
struct Learned {
    waiting: SyncMutex<Portion>,
    some: Notify,
}

/// Rows that go into one transaction.
#[derive(Debug, Default)]
struct Portion {
    pairs: Vec<(Mark, Mark)>,
    covers: Vec<(DecisionId, Mark)>,
}

impl Portion {
    const fn len(&self) -> usize {
        self.pairs.len().saturating_add(self.covers.len())
    }
}

impl Learned {
    /// Whether there was room.
    fn add(&self, add: impl FnOnce(&mut Portion)) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= LEARNED {
            return false;
        }
        add(&mut waiting);
        self.some.notify_one();
        true
    }

    /// Takes so many of each at most.
    fn take(&self, most: usize) -> Portion {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (pairs, covers) = (waiting.pairs.len().min(most), waiting.covers.len().min(most));
        Portion { pairs: waiting.pairs.drain(..pairs).collect(), covers: waiting.covers.drain(..covers).collect() }
    }

    /// Puts back what could not be written.
    fn put_back(&self, portion: Portion) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.pairs.extend(portion.pairs);
        waiting.covers.extend(portion.covers);
    }
}

/// Rows that wait at once, a bound that a list of a large inventory may reach: 3 MB.
const LEARNED: usize = 200_000;

/// Decisions that were not kept: counted each, and said once a minute at most.
#[derive(Debug)]
struct Losses {
    metrics: Arc<Metrics>,
    last: Mutex<Option<Instant>>,
    unsaid: AtomicU64,
    /// When and why a decision was last not kept; forgotten once others are.
    current: SyncMutex<Option<(Instant, String)>>,
}

impl Losses {
    fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, last: Mutex::new(None), unsaid: AtomicU64::new(0), current: SyncMutex::default() }
    }

    /// Decisions are written again. What was lost a moment ago is still said.
    fn kept(&self) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|(last, _)| last.elapsed() >= SAY_AGAIN) {
            *current = None;
            tracing::info!("decisions are kept again");
        }
    }

    /// That decisions are not kept, and why, while it is so.
    fn trouble(&self) -> Option<String> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, why) = current.as_ref()?;
        let lost = self.metrics.decision_records_dropped.get();
        Some(format!("decisions are made and not kept, {lost} since the start: {why}"))
    }

    fn lost(&self, count: u64, why: &str) {
        self.metrics.decision_records_dropped.inc_by(count);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), why.to_owned()));
        self.unsaid.fetch_add(count, Ordering::Relaxed);
        // Who cannot have the lock at once leaves it to the one that has it.
        let Ok(mut last) = self.last.try_lock() else { return };
        if last.is_none_or(|last| last.elapsed() >= SAY_AGAIN) {
            *last = Some(Instant::now());
            let decisions = self.unsaid.swap(0, Ordering::Relaxed);
            tracing::error!(decisions, why, "decisions are not kept; they are made all the same");
        }
    }
}

/// How many keys are remembered as they were read, and for how long: until then a key that was allowed for another device
/// meanwhile still answers with the old one.
const KEYS: u64 = 100_000;
const KEY_AGE: Duration = Duration::from_secs(10);

/// Decisions that wait for the disk at once: some seconds of a busy service, and with [`LONGEST_CHECKS`] a bound in bytes.
const QUEUE: usize = 4096;

/// How long somebody who waits for the disk waits: longer than [`file::BUSY`], so that a writer who holds the file is named.
const PATIENCE: Duration = Duration::from_secs(8);

/// How often it is said that decisions are not kept.
const SAY_AGAIN: Duration = Duration::from_secs(60);
