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
use crate::locks::{Mark, Ruling, RulingKind};
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
pub(crate) use decision::rfc3339;
pub use decision::{Answer, Decision, DecisionId, Device, LONGEST_CHECKS, NoId};
pub use file::{OpenError, examine};
pub(crate) use rows::{Sender, Sent};
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
    /// Writes rulings, each durable before the statement ends.
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
    /// What became of rulings and the store has not taken yet.
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
        opened.say_what_is_owed();
    }

    /// Says which rulings a start may not find as they are: for whoever ends without [`Self::close`].
    pub fn say_what_is_owed(&self) {
        if let Some(opened) = &self.0 {
            opened.say_what_is_owed();
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

    /// Whether the store takes what is written, as far as that can be known before it is: it has written something now, as much
    /// as a ruling is.
    ///
    /// Of a write that does not end in time, or that fails, nobody knows what a start will find. So what lets somebody in is
    /// first tried by this, which means nothing to a start, and written only where nobody will be told that it is not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn answers(&self) -> Result<(), StoreError> {
        let opened = self.opened()?;
        in_time(async {
            opened.file.is_there().await?;
            rows::attempt(&mut *opened.rulings.lock().await).await.map_err(|error| opened.file.noted(error.into()))?;
            // What was written to a file that was gone by then, or behind a hole, is lost with it.
            opened.file.would_be_found().await
        })
        .await
    }

    /// Says that the store has yet to keep a ruling and what it covers: [`Self::settle`] does so, and where it cannot, whoever looks
    /// after the store, until [`Self::owe_end`].
    pub(crate) fn owe(&self, ruling: &Arc<Ruling>, covered: Vec<Mark>) {
        if let Some(opened) = &self.0 {
            opened.owed().changes.insert(ruling.id, Change::Keep(Arc::clone(ruling), covered));
        }
    }

    /// Says that the store has yet to forget rulings, whether it has them already or not: as [`Self::owe`].
    pub(crate) fn owe_end(&self, ids: &[DecisionId]) {
        if let Some(opened) = &self.0 {
            opened.owed().changes.extend(ids.iter().map(|id| (*id, Change::Forget)));
        }
    }

    /// Writes what is owed. Of these it is on the disk once this is good.
    ///
    /// # Errors
    /// [`StoreError`]: they stay owed. [`Self::why_owed`] and [`Self::trouble`] say so.
    pub(crate) async fn settle(&self, ids: &[DecisionId]) -> Result<(), StoreError> {
        let Some(opened) = &self.0 else { return Err(StoreError::None) };
        let writing = Arc::clone(opened);
        // A task of its own: what was begun goes on to its end, and what came of it is heeded, whoever waits for that.
        let written = tokio::spawn(async move { writing.settle().await });
        let written = match tokio::time::timeout(PATIENCE, written).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) | Err(_) => Err(StoreError::Slow),
        };
        let mut owed = opened.owed();
        let left: Vec<_> = ids.iter().filter(|id| owed.changes.contains_key(id)).collect();
        if left.is_empty() {
            // Somebody else may have written them.
            return Ok(());
        }
        let error = written.err().unwrap_or(StoreError::Slow);
        owed.why = error.text();
        for id in left {
            match owed.changes.get(id) {
                Some(Change::Keep(ruling, _)) => tracing::error!(
                    kind = ruling.kind.as_str(),
                    device = ruling.device,
                    %id,
                    error = owed.why,
                    "the ruling holds, but the store has not kept it: it is tried again every few seconds, and a restart before then may lose it"
                ),
                Some(Change::Forget) => tracing::error!(
                    %id,
                    error = owed.why,
                    "the ruling was taken back, but the store has not forgotten it: it is tried again every few seconds, and after a restart before then it may hold again"
                ),
                None => {}
            }
        }
        Err(error)
    }

    /// Keeps a ruling and what it covers; it is on the disk once this returns.
    #[cfg(test)]
    pub(crate) async fn keep(&self, ruling: &Ruling, covered: &[Mark]) -> Result<(), StoreError> {
        self.owe(&Arc::new(ruling.clone()), covered.to_vec());
        self.settle(&[ruling.id]).await
    }

    /// Forgets rulings; they are gone from the disk once this returns.
    #[cfg(test)]
    pub(crate) async fn forget(&self, ids: &[DecisionId]) -> Result<(), StoreError> {
        self.owe_end(ids);
        self.settle(ids).await
    }

    /// Why a start may not find this ruling as it is; `None` where the store has taken what became of it last.
    pub(crate) fn why_owed(&self, id: DecisionId) -> Option<String> {
        let owed = self.0.as_ref()?.owed();
        owed.changes.contains_key(&id).then(|| if owed.why.is_empty() { StoreError::Slow.text() } else { owed.why.clone() })
    }

    /// How many rulings a start may not find as they are, and somebody was told so.
    pub fn count_owed(&self) -> usize {
        self.0.as_ref().map_or(0, |opened| opened.owed().said())
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
        owed.trouble().or_else(|| opened.losses.trouble())
    }

    /// Looks whether the files are still there, and writes what is owed.
    #[cfg(test)]
    pub(crate) async fn look_after(&self) {
        if let Some(opened) = &self.0 {
            opened.look_after().await;
        }
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
        if !gone {
            // What is wrong is remembered with what is owed.
            let _ = self.settle().await;
        }
    }

    /// Writes what is owed until all of it is written, or something fails. It has the connection to itself, so that nothing is written
    /// in another order than it is owed.
    async fn settle(&self) -> Result<(), StoreError> {
        let mut connection = self.rulings.lock().await;
        loop {
            let Some(next) = self.owed().next() else { return Ok(()) };
            let written = async {
                self.file.is_there().await?;
                match &next {
                    Next::Forget(ids) => rows::forget(&mut connection, ids).await,
                    Next::Keep(ruling, covered) => rows::keep(&mut connection, ruling, covered).await,
                }
                .map_err(|error| self.file.noted(error.into()))?;
                // What was written to a file that was gone by then, or behind a hole, is lost with it.
                self.file.would_be_found().await
            };
            let written = written.await;
            let mut owed = self.owed();
            if let Err(error) = written {
                owed.why = error.text();
                return Err(error);
            }
            owed.written(&next);
        }
    }

    /// Says what ends with the process, or comes back after it.
    fn say_what_is_owed(&self) {
        let owed = self.owed();
        for (id, change) in &owed.changes {
            match change {
                Change::Keep(ruling, _) => {
                    let (kind, device) = (ruling.kind.as_str(), &ruling.device);
                    tracing::error!(kind, device, %id, why = owed.why, "a ruling may end with this process, since it could not be written: see `stepward locks` after the start, and make it anew where it is missing");
                }
                Change::Forget => {
                    tracing::error!(%id, why = owed.why, "a ruling that was taken back may hold again after the start, since that could not be written: see `stepward locks` then, and take it back again where it is there");
                }
            }
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

/// What the store has yet to take, so that a start finds what holds now. Their number is bounded by that of rulings.
#[derive(Debug, Default)]
struct Owed {
    changes: BTreeMap<DecisionId, Change>,
    /// Why not, as of the last attempt that failed or took too long; empty where none has since nothing was owed.
    why: String,
}

/// What is to become of a ruling in the store. What is to be forgotten is never kept again: each ruling has an id of its own.
#[derive(Debug)]
enum Change {
    /// It is to be there, with what it covers.
    Keep(Arc<Ruling>, Vec<Mark>),
    /// It is not.
    Forget,
}

/// What is written next.
enum Next {
    Forget(Vec<DecisionId>),
    Keep(Arc<Ruling>, Vec<Mark>),
}

impl Owed {
    /// What was taken back goes first, all of it at once: that makes room.
    fn next(&self) -> Option<Next> {
        let ends = self.changes.iter().filter(|(_, change)| matches!(change, Change::Forget));
        let ends: Vec<_> = ends.map(|(id, _)| *id).collect();
        if !ends.is_empty() {
            return Some(Next::Forget(ends));
        }
        self.changes.values().find_map(|change| match change {
            Change::Keep(ruling, covered) => Some(Next::Keep(Arc::clone(ruling), covered.clone())),
            Change::Forget => None,
        })
    }

    fn written(&mut self, written: &Next) {
        let was_told = !self.why.is_empty();
        match written {
            Next::Forget(ids) => {
                ids.iter().for_each(|id| drop(self.changes.remove(id)));
                if was_told {
                    tracing::info!(rulings = ids.len(), "the store has forgotten what was taken back");
                }
            }
            // It may have been taken back meanwhile, which is still to be written.
            Next::Keep(ruling, _) if matches!(self.changes.get(&ruling.id), Some(Change::Keep(..))) => {
                self.changes.remove(&ruling.id);
                if was_told {
                    tracing::info!(kind = ruling.kind.as_str(), device = ruling.device, id = %ruling.id, "the ruling is kept now");
                }
            }
            Next::Keep(..) => {}
        }
        if self.changes.is_empty() {
            self.why.clear();
        }
    }

    /// How many there are, once somebody had to be told: what is only being written is no news.
    fn said(&self) -> usize {
        if self.why.is_empty() { 0 } else { self.changes.len() }
    }

    fn trouble(&self) -> Option<String> {
        let count = |is: fn(&Change) -> bool| self.changes.values().filter(|change| is(change)).count();
        let of = |change: &Change, kind| matches!(change, Change::Keep(ruling, _) if ruling.kind == kind);
        let all = [
            (self.changes.values().filter(|change| of(change, RulingKind::Lock)).count(), "locks would not survive a restart"),
            (self.changes.values().filter(|change| of(change, RulingKind::Exemption)).count(), "exemptions would not survive a restart"),
            (count(|change| matches!(change, Change::Forget)), "rulings that were taken back would be back after a restart"),
        ];
        let parts: Vec<_> = all.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        (self.said() > 0).then(|| format!("{}, since that could not be written: {}", parts.join(", "), self.why))
    }
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
