//! A store that is open, or none, with its questions and its changes.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use clock::{Clock, Span};
use posture::identity::{Identity, PublicKey};
use posture::time::UnixTime;
use tokio::sync::{mpsc, oneshot};

use crate::claim::{Claim, Claimed};
use crate::database::{self, Database, OpenError};
use crate::decision::{Decision, Summary, Wanted};
use crate::error::{RECIPE, StoreError};
use crate::id::DecisionId;
use crate::learned::Learned;
use crate::lists::{Begun, Ended};
use crate::losses::{Dropped, Losses};
use crate::mark::Mark;
use crate::newest::TRACKED;
use crate::news::{Heard, News, Rulings, Told};
use crate::notices::{Notice, Notices};
use crate::owed::{Change, Next, Owed};
use crate::ruling::Ruling;
use crate::sent::Sent;
use crate::settings::Settings;
use crate::writer::{Retention, Work, Writer};

#[cfg(test)]
mod tests;

/// A store, or none. Clones share one store.
#[derive(Clone, Debug, Default)]
pub struct Store(Option<Arc<Opened>>);

#[derive(Debug)]
struct Opened {
    database: Database,
    /// Queue to the task that writes decisions.
    work: mpsc::Sender<Work>,
    /// Learned rows for the same task, apart from the queue of decisions, so that neither takes the other's room.
    learned: Arc<Learned>,
    losses: Arc<Losses>,
    /// The clock by which rulings, keys and decisions end.
    clock: Arc<Clock>,
    /// Changes of rulings that the store has not taken yet.
    owed: Mutex<Owed>,
    /// Whether a file of the store was removed or replaced.
    gone: AtomicBool,
    /// Devices by key, as they were read: Envoy asks at each request.
    known: moka::sync::Cache<PublicKey, Identity>,
    /// Whether keys are bound to devices. The holder of a webhook's secret can bind any key, so binding is done only where it is
    /// of use.
    bind_keys: bool,
    key_retention: Duration,
    /// Time for which a service answers though it hears nothing of what others rule.
    stale_limit: Duration,
}

impl Store {
    /// An absent store: rulings live in memory, decisions are not kept.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Opens the database that the settings name, or makes it, and starts the task that writes decisions.
    /// Runs within a Tokio runtime.
    ///
    /// # Errors
    /// See [`OpenError`]: each says what to do.
    pub async fn open(settings: &Settings, dropped: Arc<dyn Dropped>) -> Result<Self, OpenError> {
        let (work, queue) = mpsc::channel(QUEUE);
        let known = moka::sync::Cache::builder().max_capacity(KEYS).time_to_live(KEY_AGE).build();
        let (writer, store) = Self::connect(settings, known, work, dropped).await?;
        if let Some(writer) = writer {
            tokio::spawn(writer.run(queue));
        }
        if let Some(opened) = &store.0 {
            tokio::spawn(look_after(Arc::downgrade(opened)));
        }
        Ok(store)
    }

    /// Opens a database; neither the writer nor the task that looks after the store runs yet.
    pub(crate) async fn connect(
        settings: &Settings,
        known: moka::sync::Cache<PublicKey, Identity>,
        work: mpsc::Sender<Work>,
        dropped: Arc<dyn Dropped>,
    ) -> Result<(Option<Writer>, Self), OpenError> {
        let Some(database::Opened { database, records, proven, stored }) = database::open(settings, TRACKED).await? else {
            return Ok((None, Self::none()));
        };
        let retention = Retention {
            age: settings.retention,
            most: settings.max_decisions,
            keys: settings.key_retention,
            most_keys: settings.max_keys,
            most_keys_of_one: usize::try_from(settings.max_keys_per_device).unwrap_or(usize::MAX),
        };
        let clock = Arc::new(Clock::after(proven));
        let losses = Arc::new(Losses::new(dropped));
        let learned = Arc::<Learned>::default();
        let writer = Writer::new(records, stored, retention, Arc::clone(&learned), Arc::clone(&clock), Arc::clone(&losses));
        let opened = Opened {
            database,
            work,
            learned,
            losses,
            clock,
            owed: Mutex::default(),
            gone: AtomicBool::new(false),
            known,
            bind_keys: settings.bind_keys,
            key_retention: settings.key_retention,
            stale_limit: settings.sharing.stale_limit,
        };
        Ok((Some(writer), Self(Some(Arc::new(opened)))))
    }

    /// Returns whether decisions are kept: without a store no record needs to be put together.
    pub const fn keeps_decisions(&self) -> bool {
        self.0.is_some()
    }

    /// Keeps a decision, soon and in the background. The call never waits and never fails: a decision that finds the queue full,
    /// or that the disk does not take, is counted in `stepward_decision_records_dropped_total`.
    pub fn record(&self, mut decision: Decision) {
        let Some(opened) = &self.0 else { return };
        decision.bound();
        if !opened.bind_keys {
            decision.key = None;
        }
        if opened.work.try_send(Work::Keep(Box::new(decision))).is_err() {
            opened.losses.lost(1, "more decisions are made than the disk takes");
        }
    }

    /// Returns whether there is a store that binds no keys to devices.
    pub fn binds_no_keys(&self) -> bool {
        self.0.as_ref().is_some_and(|opened| !opened.bind_keys)
    }

    /// Waits until every decision so far is written or dropped, or waits itself for a server that is away.
    pub async fn flush(&self) {
        if let Some(opened) = &self.0 {
            let (sender, written) = oneshot::channel();
            if opened.work.send(Work::Flush(sender)).await.is_ok() {
                // A writer that has ended writes nothing more, so there is nothing to wait for.
                let _ = written.await;
            }
        }
    }

    /// Writes the queue and ends the writer; later decisions are dropped. Logs which rulings could not be written.
    pub async fn close(&self) {
        let Some(opened) = &self.0 else { return };
        let (sender, written) = oneshot::channel();
        if opened.work.send(Work::End(sender)).await.is_ok() {
            let _ = written.await;
        }
        // The log has become part of the database, so there may be room now for what is owed.
        opened.look_after().await;
        if let Some(shared) = opened.database.shared()
            && let Err(error) = shared.leave().await
        {
            tracing::debug!(error = error.text(), "other services wait for this one until its limit is past");
        }
        opened.say_what_is_owed();
    }

    /// Logs which rulings a start may not find as they are, for an end without [`Self::close`].
    pub fn say_what_is_owed(&self) {
        if let Some(opened) = &self.0 {
            opened.say_what_is_owed();
        }
    }

    /// The stored record of a decision, a JSON object; `None` where no decision has this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn decision(&self, id: DecisionId) -> Result<Option<String>, StoreError> {
        let opened = self.opened()?;
        in_time(async {
            self.flush().await;
            opened.database.decision(id).await
        })
        .await
    }

    /// Decisions that fit the filter, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn decisions(&self, wanted: &Wanted) -> Result<Vec<Summary>, StoreError> {
        let opened = self.opened()?;
        in_time(async {
            self.flush().await;
            opened.database.decisions(wanted).await
        })
        .await
    }

    /// Webhooks that were decided last, for the replay memory: within `window` before the last decision, whatever the clock says
    /// now. The last ones come first, at most `most`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sent(&self, window: Duration, most: u32) -> Result<Vec<Sent>, StoreError> {
        let opened = self.opened()?;
        in_time(async { opened.database.sent(window, most).await }).await
    }

    /// The device that a public key was allowed for, as of some seconds ago. `None` where the key was allowed for none, or too
    /// long ago, and where keys are not bound: earlier bindings then count no more.
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
        // The later clock decides whether a key is too old, since a key lets its holder in.
        let latest = opened.clock.proven().map_or(now, |proven| proven.time.max(now));
        let since = latest.saturating_sub(opened.key_retention);
        let read = async || opened.database.device_of(key, since).await;
        let found = in_time(async {
            match read().await? {
                Some(identity) => Ok(Some(identity)),
                // The key may have been allowed a moment ago, and still be in the queue.
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

    /// All rulings that have not ended by this time. Where other services change them too, who does so from now on waits until
    /// this service has heard of it, by [`Self::hear`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn all_rulings(&self, now: Span) -> Result<Rulings, StoreError> {
        let opened = self.opened()?;
        in_time(async { opened.database.all_rulings(now).await }).await
    }

    /// The rulings that have not ended by this time.
    #[cfg(any(test, feature = "scripted"))]
    pub async fn rulings(&self, now: Span) -> Result<Vec<Ruling>, StoreError> {
        self.all_rulings(now).await.map(|all| all.rulings)
    }

    /// Identifiers that each lock covers besides its own.
    #[cfg(any(test, feature = "scripted"))]
    pub async fn covers(&self) -> Result<Vec<(DecisionId, Mark)>, StoreError> {
        self.all_rulings(Span::at(UnixTime::from_nanos(0))).await.map(|all| all.covered)
    }

    /// The time for which a service answers though it hears nothing of what others rule; `None` where no other one can rule.
    pub fn stale_limit(&self) -> Option<Duration> {
        let opened = self.0.as_ref()?;
        opened.database.shared().map(|_| opened.stale_limit)
    }

    /// Says which changes of rulings this service has heeded, and reads those that were made since, and what other services tell of
    /// their caches since `noticed`, within `bound`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hear(&self, heard: Heard, noticed: Heard, now: Span, bound: Duration) -> Result<(News, Notices), StoreError> {
        match self.opened()?.database.shared() {
            Some(shared) => shared.hear(heard, noticed, now, bound).await,
            None => Ok((News { heard, more: false, told: Told::Nothing }, Notices::none(noticed))),
        }
    }

    /// The last notice of now: [`Self::hear`] has those that are told from now on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn last_notice(&self) -> Result<Heard, StoreError> {
        match self.opened()?.database.shared() {
            Some(shared) => in_time(shared.last_notice()).await,
            None => Ok(Heard::default()),
        }
    }

    /// Tells the other services of this one's caches, all of the notices or none. `token` is a random number, by which
    /// [`Self::hear`] says that they are there.
    ///
    /// # Errors
    /// [`StoreError`]: they may be there or not, and can be told again.
    pub async fn tell(&self, token: i64, notices: &[Notice]) -> Result<(), StoreError> {
        match self.opened()?.database.shared() {
            Some(shared) => in_time(shared.tell(token, notices)).await,
            None => Err(StoreError::None),
        }
    }

    /// Takes or renews the lease to read lists of a kind, for so long by the database's clock; returns whether it is this holder's.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn lease(&self, kind: &str, holder: &str, most: Duration) -> Result<bool, StoreError> {
        in_time(self.shared()?.lease(kind, holder, most)).await
    }

    /// Gives a lease back.
    ///
    /// # Errors
    /// [`StoreError`]: it ends by itself.
    pub async fn release(&self, kind: &str, holder: &str) -> Result<(), StoreError> {
        in_time(self.shared()?.release(kind, holder)).await
    }

    /// Tells the other services that a list begins now: [`crate::About::List`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin_list(&self, begun: &Begun) -> Result<(), StoreError> {
        in_time(self.shared()?.begin_list(begun)).await
    }

    /// Keeps a page of a list that began.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn write_page(&self, id: &str, number: i32, content: &[u8]) -> Result<(), StoreError> {
        in_time(self.shared()?.write_page(id, number, content)).await
    }

    /// Lets the other services have a list that ended, if the lease is still its own; returns whether it was.
    ///
    /// # Errors
    /// [`StoreError`]: they may have it or not.
    pub async fn publish(&self, kind: &str, ended: &Ended) -> Result<bool, StoreError> {
        in_time(self.shared()?.publish(kind, ended)).await
    }

    /// The lists of a kind that ended, the last one first, eight at most.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ended_lists(&self, kind: &str) -> Result<Vec<Ended>, StoreError> {
        in_time(self.shared()?.ended_lists(kind)).await
    }

    /// A page of a list that ended; `None` where it is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn page(&self, id: &str, number: i32) -> Result<Option<Vec<u8>>, StoreError> {
        in_time(self.shared()?.page(id, number)).await
    }

    /// Waits until another service says that it changed a ruling or told of a cache, for `most` at most: the word of it can be lost.
    pub async fn wait_for_news(&self, most: Duration) {
        match self.0.as_ref().and_then(|opened| opened.database.shared()) {
            Some(shared) => shared.wait(most).await,
            None => tokio::time::sleep(most).await,
        }
    }

    /// Returns whether other services may use the store too.
    pub fn is_shared(&self) -> bool {
        self.0.as_ref().is_some_and(|opened| opened.database.shared().is_some())
    }

    /// Claims a webhook for this service, within a second; where no other one can have claimed it, at once.
    ///
    /// # Errors
    /// [`StoreError`]: nobody knows whether another service decides or decided the same bytes. Who sent them is told later.
    pub async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError> {
        match self.0.as_ref().and_then(|opened| opened.database.shared()) {
            Some(shared) => shared.claim(claim).await,
            None => Ok(Claimed::Granted),
        }
    }

    /// Tells the other services that a claimed webhook was denied, in a text that [`Self::claim`] gives them; soon and in the
    /// background.
    pub fn denied(&self, body: [u8; 32], denial: String) {
        if let Some(shared) = self.0.as_ref().and_then(|opened| opened.database.shared()) {
            shared.settle(body, denial);
        }
    }

    /// Tells the other services that each has to decide a claimed webhook anew; soon and in the background.
    pub fn undecided(&self, body: [u8; 32]) {
        self.denied(body, String::new());
    }

    /// Waits until every other service that answers has heeded the changes of rulings that this one made, for `most` at most;
    /// returns the names of the first that have not.
    ///
    /// # Errors
    /// [`StoreError`]: nobody knows which have.
    pub async fn unheard(&self, most: Duration) -> Result<Vec<String>, StoreError> {
        match self.opened()?.database.shared() {
            Some(shared) => in_time(shared.unheard(most)).await,
            None => Ok(Vec::new()),
        }
    }

    /// Keeps which identifiers stood in one record, soon and in the background. Returns false where there is no room now: the
    /// caller has to link them again when it next learns them.
    pub fn link(&self, pairs: &[(Mark, Mark)]) -> bool {
        let Some(opened) = &self.0 else { return true };
        opened.learned.add(|portion| portion.pairs.extend_from_slice(pairs))
    }

    /// Keeps the identifiers that a lock covers besides its own, with the lock where that is owed, else soon and in the background.
    pub fn cover(&self, lock: DecisionId, marks: &[Mark]) {
        if let (Some(opened), false) = (&self.0, marks.is_empty()) {
            // The task that writes covers could come before the lock is there, and covers of no lock are not written.
            if let Some(Change::Keep(_, covered)) = opened.owed().changes.get_mut(&lock) {
                covered.extend_from_slice(marks);
                return;
            }
            // Covers that find no room are learned again at the next start, from the pairs or with the record.
            opened.learned.add(|portion| portion.covers.extend(marks.iter().map(|mark| (lock, *mark))));
        }
    }

    /// Pairs of identifiers that stood in one record, the last seen first, at most `most`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn links(&self, most: usize) -> Result<Vec<(Mark, Mark)>, StoreError> {
        let opened = self.opened()?;
        in_time(async { opened.database.links(most).await }).await
    }

    /// Identifiers that stood in one record with any of these. Where one lock cannot cover all, the first seen and then the last
    /// seen.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn partners(&self, of: &[Mark]) -> Result<Vec<Mark>, StoreError> {
        let opened = self.opened()?;
        in_time(async {
            self.flush().await;
            opened.database.partners(of).await
        })
        .await
    }

    /// Checks that the store takes a write, by writing a row of the size of a ruling.
    ///
    /// What a start finds of a write that fails, or does not end in time, is unknown. So a ruling that lets a device in is first
    /// tried by this write, which means nothing to a start, and then written only where nobody will be told that it was not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn answers(&self) -> Result<(), StoreError> {
        let opened = self.opened()?;
        in_time(opened.database.attempt()).await
    }

    /// Adds a ruling, and the identifiers that it covers, to the owed changes. [`Self::settle`] writes them; if it cannot, the
    /// task that looks after the store tries again, until [`Self::owe_end`].
    pub fn owe(&self, ruling: &Arc<Ruling>, covered: Vec<Mark>) {
        if let Some(opened) = &self.0 {
            opened.owed().changes.insert(ruling.id, Change::Keep(Arc::clone(ruling), covered));
        }
    }

    /// Adds the deletion of rulings to the owed changes, as [`Self::owe`], whether the store has the rulings or not.
    pub fn owe_end(&self, ids: &[DecisionId]) {
        if let Some(opened) = &self.0 {
            opened.owed().changes.extend(ids.iter().map(|id| (*id, Change::Forget)));
        }
    }

    /// Takes rulings out of the owed changes that another service took back meanwhile: they are not to be kept any more.
    pub fn owe_no_more(&self, taken_back: &BTreeSet<DecisionId>) {
        if let Some(opened) = &self.0 {
            opened.owed().changes.retain(|id, change| matches!(change, Change::Forget) || !taken_back.contains(id));
        }
    }

    /// Writes the owed changes. Those of `ids` are on the disk once this returns without an error.
    ///
    /// # Errors
    /// [`StoreError`]: the changes of `ids` stay owed, as [`Self::why_owed`] and [`Self::trouble`] then say.
    pub async fn settle(&self, ids: &[DecisionId]) -> Result<(), StoreError> {
        let Some(opened) = &self.0 else { return Err(StoreError::None) };
        let writing = Arc::clone(opened);
        // A task of its own ends what was begun and takes note of the result, even if the caller stops waiting.
        let written = tokio::spawn(async move { writing.settle().await });
        let written = match tokio::time::timeout(PATIENCE, written).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) | Err(_) => Err(StoreError::Slow),
        };
        let mut owed = opened.owed();
        let left: Vec<_> = ids.iter().filter(|id| owed.changes.contains_key(id)).collect();
        if left.is_empty() {
            // Another caller may have written them.
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

    /// Keeps a ruling with the identifiers that it covers; it is on the disk once this returns.
    #[cfg(any(test, feature = "scripted"))]
    pub async fn keep(&self, ruling: &Ruling, covered: &[Mark]) -> Result<(), StoreError> {
        self.owe(&Arc::new(ruling.clone()), covered.to_vec());
        self.settle(&[ruling.id]).await
    }

    /// Forgets rulings; they are gone from the disk once this returns.
    #[cfg(any(test, feature = "scripted"))]
    pub async fn forget(&self, ids: &[DecisionId]) -> Result<(), StoreError> {
        self.owe_end(ids);
        self.settle(ids).await
    }

    /// The reason why a start may not find this ruling as it is; `None` where the store has taken its last change.
    pub fn why_owed(&self, id: DecisionId) -> Option<String> {
        let owed = self.0.as_ref()?.owed();
        owed.changes.contains_key(&id).then(|| if owed.why.is_empty() { StoreError::Slow.text() } else { owed.why.clone() })
    }

    /// Number of rulings that a start may not find as they are, once a failure was reported.
    pub fn count_owed(&self) -> usize {
        self.0.as_ref().map_or(0, |opened| opened.owed().said())
    }

    /// Returns whether a start would not find what is kept, as far as is known: a file is gone, replaced or damaged.
    pub fn is_lost(&self) -> bool {
        self.0.as_ref().is_some_and(|opened| opened.gone.load(Ordering::Relaxed) || opened.database.is_damaged())
    }

    /// The current trouble of the store, in words; `None` where none is known.
    pub fn trouble(&self) -> Option<String> {
        let opened = self.0.as_ref()?;
        let owed = opened.owed();
        if opened.gone.load(Ordering::Relaxed) {
            return Some(StoreError::Gone.text());
        }
        if opened.database.is_damaged() {
            return Some(format!("the file of the store is damaged, and the log says how: {RECIPE}"));
        }
        owed.trouble().or_else(|| opened.losses.trouble())
    }

    /// Checks that the files are still there, and writes the owed changes.
    #[cfg(any(test, feature = "scripted"))]
    pub async fn look_after(&self) {
        if let Some(opened) = &self.0 {
            opened.look_after().await;
        }
    }

    /// The clock by which rulings, keys and decisions end; `None` where there is no store.
    pub fn clock(&self) -> Option<&Clock> {
        self.0.as_ref().map(|opened| &*opened.clock)
    }

    /// Path of the file; `None` where there is no store, or the store is no file.
    pub fn path(&self) -> Option<&Path> {
        self.0.as_ref()?.database.path()
    }

    /// The database under the store.
    #[cfg(any(test, feature = "scripted"))]
    pub(crate) fn database(&self) -> Option<&Database> {
        self.0.as_ref().map(|opened| &opened.database)
    }

    /// The database, where other services use it too.
    fn shared(&self) -> Result<&crate::postgres::Database, StoreError> {
        self.opened()?.database.shared().ok_or(StoreError::None)
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
        let gone = self.database.is_there().await.is_err();
        if gone && !self.gone.swap(true, Ordering::Relaxed) {
            tracing::error!(
                path = %self.database.path().unwrap_or(Path::new("")).display(),
                "a file of the store was removed or replaced, cut short or written to by somebody else, and what is written is lost: {RECIPE}"
            );
        }
        self.gone.store(gone, Ordering::Relaxed);
        if !gone {
            // The error is remembered with the owed changes.
            let _ = self.settle().await;
        }
    }

    /// Writes the owed changes until all are written or one fails. The connection is held meanwhile, so that the changes are
    /// written in the order in which they are owed.
    async fn settle(&self) -> Result<(), StoreError> {
        let mut writer = self.database.write_rulings().await;
        loop {
            let Some(next) = self.owed().next() else { return Ok(()) };
            let written = match &next {
                Next::Forget(ids) => writer.forget(ids).await,
                Next::Keep(ruling, covered) => writer.keep(ruling, covered).await,
            };
            let mut owed = self.owed();
            if let Err(error) = written {
                owed.why = error.text();
                return Err(error);
            }
            owed.written(&next);
        }
    }

    /// Logs the rulings that may end with the process, or come back after it.
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

/// Time between two checks of the files, each with an attempt at the owed changes.
const LOOK: Duration = Duration::from_secs(5);

async fn in_time<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or(Err(StoreError::Slow))
}

/// Number of keys that are remembered as they were read, for [`KEY_AGE`]: until then a key that was allowed for another device
/// meanwhile still gives the old one.
const KEYS: u64 = 100_000;
const KEY_AGE: Duration = Duration::from_secs(10);

/// Most decisions that wait for the disk: some seconds of a busy service, and with [`crate::LONGEST_CHECKS`] a bound in bytes.
pub(crate) const QUEUE: usize = 4096;

/// Time for which a caller waits for the disk: longer than a connection waits, so that the error names a writer who holds the
/// file.
const PATIENCE: Duration = Duration::from_secs(8);
