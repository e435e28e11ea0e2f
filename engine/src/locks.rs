//! Rulings of operators about single devices: a lock wins over every provider and policy, an exemption over policy and outage.
//!
//! All rulings are in memory, so that a request asks no disk; the store has them for the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use clock::{Clock, Span};
use posture::identity::{DeviceId, IdentifierKind};
use posture::shown::clean;
use posture::time::UnixTime;
use store::{DecisionId, Mark, News, Ruling, RulingKind, Rulings, Store, StoreError, Told, key, plain, rfc3339, same};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::fleet::Fleet;
use hearing::Hearing;
use links::{Covers, Pairs};

mod hearing;
mod links;

/// The ruling that holds for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A lock: the device is denied, whatever else is known.
    Locked(Arc<Ruling>),
    /// An exemption from policy and outage, where there is no lock.
    Exempt(Arc<Ruling>),
    /// No ruling.
    Ordinary,
}

/// The rulings that are meant: by what they were made by, and by nothing that stands in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The ruling with this id, if it is of this kind.
    Id(RulingKind, DecisionId),
    /// Rulings of this kind that were made by the same kind of identifier and the same text.
    MadeBy(RulingKind, Option<IdentifierKind>, String),
}

impl Which {
    const fn kind(&self) -> RulingKind {
        let (Self::Id(kind, _) | Self::MadeBy(kind, ..)) = self;
        *kind
    }

    fn names(&self, ruling: &Ruling) -> bool {
        match self {
            Self::Id(kind, id) => ruling.kind == *kind && ruling.id == *id,
            Self::MadeBy(kind, identifier_kind, device) => {
                ruling.kind == *kind
                    && ruling.identifier_kind == *identifier_kind
                    && same(*identifier_kind, clean(&ruling.device), clean(device))
            }
        }
    }
}

/// The other identifiers of a request about which no record was found, or none yet: none.
pub const NO_OTHERS: [(Option<IdentifierKind>, &str); 0] = [];

/// All rulings that hold.
#[derive(Debug, Default)]
pub struct Locks {
    index: ArcSwap<Index>,
    /// Identifiers that stood together in records. Always locked before `covers`.
    pairs: SyncMutex<Pairs>,
    /// What the locks in `index` cover besides their own identifiers. Whoever changes this has seen the lock in the index while
    /// holding it, so that a lock which was taken back leaves nothing.
    covers: RwLock<Covers>,
    /// Moment at which a lock was last made or came to cover more, or a ruling was taken back, read once the index had it;
    /// `None`: not since the start.
    last: SyncMutex<Option<Instant>>,
    /// Held for each change of memory and of what the store is owed, so that both have the changes in the same order.
    changing: Mutex<()>,
    /// Moment at which the first record was learned.
    began: OnceLock<Instant>,
    /// What other services on the store rule. Locked before `pairs` and `covers`.
    hearing: SyncMutex<Hearing>,
    /// The store that keeps rulings; none until [`Self::keep_in`] gives one.
    store: OnceLock<Store>,
    /// The clock where there is no store: a store has one of its own.
    clock: Clock,
}

/// What a store has kept of rulings and records.
struct Kept {
    rulings: Vec<Ruling>,
    /// What each lock covers besides its own identifiers.
    covered: Vec<(DecisionId, Mark)>,
    /// Pairs of identifiers, those that were seen last first.
    pairs: Vec<(Mark, Mark)>,
}

/// Rulings by identifier. An index never changes; another one takes its place.
#[derive(Clone, Debug, Default)]
struct Index {
    by_identifier: BTreeMap<Box<str>, Vec<Arc<Ruling>>>,
}

/// The reason why a ruling was not made.
#[derive(Debug, thiserror::Error)]
pub enum RulingError {
    /// The number of rulings is bounded.
    #[error("there are {MOST} rulings already: take back those that are not needed")]
    TooMany,
    /// The number of rulings of one kind about one device is bounded.
    #[error("there are {MOST_OF_ONE} rulings of this kind about this device already: take them back and make one")]
    TooManyOfOne,
    /// The store does not answer, and an exemption that would not survive a restart is none.
    #[error("it could not be kept")]
    NotKept(#[from] StoreError),
}

impl Locks {
    /// The rulings that the store has.
    ///
    /// # Errors
    /// As [`Self::keep_in`].
    pub async fn load(store: Store, now: UnixTime) -> Result<Self, StoreError> {
        let locks = Self::default();
        locks.keep_in(store, now).await?;
        Ok(locks)
    }

    /// Takes the rulings that a store has, and keeps there what is made and learned from now on and what was learned before.
    /// Only the first store is taken; another one changes nothing.
    ///
    /// # Errors
    /// [`StoreError`]: to start without locks would let the locked devices in.
    pub async fn keep_in(&self, store: Store, now: UnixTime) -> Result<(), StoreError> {
        let _changing = self.changing.lock().await;
        if !store.keeps_decisions() || self.store.get().is_some() {
            return Ok(());
        }
        let clock = store.clock().unwrap_or(&self.clock);
        let (span, seen) = (clock.read(now), clock.seen_before());
        let asked = Instant::now();
        let all = store.all_rulings(span).await?;
        let pairs = store.links(links::PAIRS).await?;
        *self.hearing() = Hearing::of(&all, asked, store.stale_limit());
        let Rulings { mut rulings, covered, .. } = all;
        rulings.retain(|ruling| !ruling.may_have_ended(span, seen));
        self.recall(Kept { rulings, covered, pairs }, &store);
        // Nobody else sets the store: whoever changes anything holds `changing`.
        let _ = self.store.set(store);
        Ok(())
    }

    /// Takes what an earlier process left in its store.
    fn recall(&self, kept: Kept, store: &Store) {
        let by_id: BTreeMap<_, _> = kept.rulings.into_iter().map(|ruling| (ruling.id, Arc::new(ruling))).collect();
        self.index.rcu(|index| {
            let mut index = Index::clone(index);
            by_id.values().for_each(|ruling| index.insert(Arc::clone(ruling)));
            index
        });
        for (id, mark) in kept.covered {
            if let Some(lock) = by_id.get(&id).filter(|ruling| links::covers(ruling)) {
                self.cover(lock, [mark]);
            }
        }
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let before = pairs.all();
        pairs.recall(&kept.pairs);
        for portion in before.chunks(PORTION) {
            if !store.link(portion) {
                portion.iter().for_each(|pair| pairs.not_kept(*pair));
            }
        }
        drop(pairs);
        for lock in by_id.values().filter(|ruling| links::covers(ruling)) {
            let own = Mark::all(lock);
            let known = self.pairs.lock().unwrap_or_else(PoisonError::into_inner).covered_by(&own);
            store.cover(lock.id, &self.cover(lock, known));
        }
    }

    /// The locks of the next process, if this one ended now and a store had kept everything.
    #[cfg(test)]
    pub(crate) fn restarted(&self, now: UnixTime) -> Self {
        let next = Self { clock: Clock::after(self.clock.proven()), ..Self::default() };
        let (span, seen) = (next.span(now), next.clock.seen_before());
        let holds = |ruling: &&Arc<Ruling>| !ruling.has_ended(span) && !ruling.may_have_ended(span, seen);
        let rulings = self.index.load().all().filter(holds).map(|ruling| Ruling::clone(ruling)).collect();
        let covered = self.covers.read().unwrap_or_else(PoisonError::into_inner).all();
        let pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner).all();
        next.recall(Kept { rulings, covered, pairs }, &Store::none());
        next
    }

    fn store(&self) -> &Store {
        static NONE: Store = Store::none();
        self.store.get().unwrap_or(&NONE)
    }

    /// The span in which the current time lies, where the system's clock says `now`.
    fn span(&self, now: UnixTime) -> Span {
        self.store().clock().unwrap_or(&self.clock).read(now)
    }

    /// Fixes the end of a new ruling against both clocks, so that an hour is an hour whichever of them is right.
    pub fn anchored(&self, ruling: Ruling) -> Ruling {
        let span = self.span(ruling.made_at);
        ruling.anchored(span)
    }

    /// The ruling for the device of a request. `stated` is the identifier that the request states; `others` are those in the
    /// records that were found for it, [`posture::record::Record::identifiers`].
    ///
    /// A lock on any of them wins, and so does one on an identifier that once stood in one record with the stated one
    /// ([`Self::learned`]). An exemption counts for the stated identifier only, and for its own kind only: what stands in a
    /// record is in part for the device's user to choose.
    ///
    /// Costs a look into a map for each identifier, and next to nothing while there are no rulings.
    pub fn standing(
        &self,
        stated: &DeviceId,
        others: impl IntoIterator<Item = (Option<IdentifierKind>, impl AsRef<str>)>,
        now: UnixTime,
    ) -> Standing {
        let index = self.index.load();
        if index.by_identifier.is_empty() {
            return Standing::Ordinary;
        }
        let span = self.span(now);
        let of = |kind: Option<IdentifierKind>, text: &str, ruled: RulingKind| {
            let mut holding =
                index.of(text).iter().filter(|ruling| ruling.kind == ruled && ruling.is_about(kind, text) && ruling.holds(span));
            holding.next().cloned()
        };
        let kind = Some(stated.kind());
        let own = of(kind, stated.normal(), RulingKind::Lock).or_else(|| self.covering(stated, span));
        if let Some(lock) = own.or_else(|| others.into_iter().find_map(|(kind, text)| of(kind, text.as_ref(), RulingKind::Lock))) {
            return Standing::Locked(lock);
        }
        of(kind, stated.normal(), RulingKind::Exemption).map_or(Standing::Ordinary, Standing::Exempt)
    }

    /// The first lock that may be about the device of a request though it is on another identifier, for those who have no
    /// record of the device to look it up in.
    ///
    /// A lock is surely about another device only where it was made for an identifier of the kind that the request states. What
    /// records showed removes no doubt: agents report it, so another device may claim the locked identifier as one of any kind,
    /// or the one that the request states. Costs a look at every lock.
    pub fn possible(&self, stated: &DeviceId, now: UnixTime) -> Option<Arc<Ruling>> {
        let index = self.index.load();
        let span = self.span(now);
        let of_another = |lock: &Ruling| lock.identifier_kind == Some(stated.kind());
        let locks = index.by_identifier.values().flatten().filter(|ruling| ruling.kind == RulingKind::Lock && ruling.holds(span));
        locks.filter(|lock| !of_another(lock)).min_by_key(|lock| lock.id).cloned()
    }

    /// The lock on an identifier that once stood in one record with the stated one.
    fn covering(&self, stated: &DeviceId, span: Span) -> Option<Arc<Ruling>> {
        let covers = self.covers.read().unwrap_or_else(PoisonError::into_inner);
        if covers.is_empty() {
            return None;
        }
        covers.of(&Mark::stated(stated)).find(|lock| lock.holds(span)).cloned()
    }

    /// Remembers that these identifiers stood in one record, [`posture::record::Record::identifiers`]: from now on, and after
    /// the next start, a lock on one of them covers the others, whichever provider is asked. It is called for every record that
    /// is learned, in whatever way. Where one of them is locked, the others are once this returns.
    ///
    /// Costs a digest for each identifier and a look into a tree for each pair; no disk is waited for.
    pub fn learned(&self, identifiers: &[(Option<IdentifierKind>, String)]) {
        let some = identifiers.get(..links::MOST_OF_A_RECORD).unwrap_or(identifiers);
        if some.len() < 2 {
            return;
        }
        let marks: Vec<Mark> = some.iter().map(|(kind, text)| Mark::of(*kind, text)).collect();
        let seen = i32::try_from(self.began.get_or_init(Instant::now).elapsed().as_secs()).unwrap_or(i32::MAX);
        let mut new = Vec::new();
        {
            let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
            for pair in marks.iter().flat_map(|one| marks.iter().map(|other| (*one, *other))).filter(|(one, other)| one != other) {
                if pairs.see(pair, seen) {
                    new.push(pair);
                }
            }
            if !new.is_empty() && !self.store().link(&new) {
                new.iter().for_each(|pair| pairs.not_kept(*pair));
            }
        }
        // A lock that is made meanwhile is in the index before it looks for pairs, so one of the two sees the other.
        let index = self.index.load();
        if index.by_identifier.is_empty() {
            return;
        }
        for (kind, text) in some {
            for lock in index.of(text).iter().filter(|ruling| links::covers(ruling) && ruling.is_about(*kind, text)) {
                let own = Mark::of(*kind, text);
                let added = self.cover(lock, marks.iter().copied().filter(|mark| *mark != own));
                self.store().cover(lock.id, &added);
            }
        }
    }

    /// Adds identifiers to what a lock covers, if the lock is still there; returns the new ones.
    fn cover(&self, lock: &Arc<Ruling>, marks: impl IntoIterator<Item = Mark>) -> Vec<Mark> {
        let mut covers = self.covers.write().unwrap_or_else(PoisonError::into_inner);
        if !self.has(lock) {
            return Vec::new();
        }
        let added = covers.add(lock, marks);
        drop(covers);
        if !added.is_empty() {
            // An earlier decision may be about a device that is locked now.
            *self.last() = Some(Instant::now());
        }
        added
    }

    /// Whether since this moment no lock was made or came to cover more, and no ruling was taken back: later decisions have
    /// heeded all rulings that hold.
    pub fn quiet_since(&self, moment: Instant) -> bool {
        self.last().is_none_or(|last| last < moment)
    }

    /// Every ruling that holds, oldest first, with its end as the clock has it now.
    pub fn list(&self, now: UnixTime) -> Vec<Arc<Ruling>> {
        let (index, span) = (self.index.load(), self.span(now));
        let ended_right = |ruling: &Arc<Ruling>| match ruling.end(span) {
            until if until == ruling.until => Arc::clone(ruling),
            until => Arc::new(Ruling { until, ..Ruling::clone(ruling) }),
        };
        let mut all: Vec<_> = index.all().filter(|ruling| ruling.holds(span)).map(ended_right).collect();
        all.sort_by_key(|ruling| ruling.id);
        all
    }

    /// Rulings that hold and that somebody may have meant who named none, oldest first, at most `most`: those of the same kind
    /// whose identifier has the text in it, or is a part of it; for an id, all of the same kind.
    pub fn like(&self, which: &Which, now: UnixTime, most: usize) -> Vec<Arc<Ruling>> {
        let kind = which.kind();
        let mut all = self.list(now);
        all.retain(|ruling| {
            let like = match which {
                Which::Id(..) => true,
                Which::MadeBy(_, _, device) => {
                    let (given, made_by) = (plain(device), plain(&ruling.device));
                    given.contains(&*made_by) || made_by.contains(&*given)
                }
            };
            ruling.kind == kind && like
        });
        all.truncate(most);
        all
    }

    /// The store, where other services rule in it too.
    pub(crate) fn shared_store(&self) -> Option<&Store> {
        let store = self.store();
        store.stale_limit().map(|_| store)
    }

    /// Reads and heeds what other services on the store ruled, and what they tell the `fleet` of their caches, within `bound`;
    /// returns whether anything was new.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hear(&self, fleet: &Fleet, bound: Duration) -> Result<bool, StoreError> {
        let asked = Instant::now();
        let (heard, written) = {
            let hearing = self.hearing();
            (hearing.heard, hearing.written())
        };
        let (news, notices) = self.store().hear(heard, fleet.begin_to_look(), self.span(clock::now()), bound).await?;
        let is_new = !matches!(news.told, Told::Nothing) || !notices.is_empty();
        let more = news.more || notices.more;
        self.heed(news);
        fleet.heed(notices, asked);
        if !more {
            let lost = {
                let mut hearing = self.hearing();
                hearing.knows_until(asked);
                hearing.take_lost(&written)
            };
            self.write_again(&lost);
        }
        Ok(is_new)
    }

    /// Owes to the store what it had taken and has lost: locks and the end of rulings. Exemptions end, as if they were taken back.
    fn write_again(&self, lost: &BTreeSet<DecisionId>) {
        if lost.is_empty() {
            return;
        }
        tracing::error!(
            rulings = lost.len(),
            "the store has lost what was ruled here a moment ago: locks are written again, and exemptions are gone"
        );
        let rulings: BTreeMap<_, _> =
            self.index.load().all().filter(|ruling| lost.contains(&ruling.id)).map(|ruling| (ruling.id, Arc::clone(ruling))).collect();
        let (mut gone, mut ended) = (BTreeSet::new(), Vec::new());
        for id in lost {
            match rulings.get(id) {
                Some(lock) if lock.kind == RulingKind::Lock => self.owe_with_covers(lock),
                Some(_) => _ = gone.insert(*id),
                None => ended.push(*id),
            }
        }
        self.store().owe_end(&ended);
        self.drop_all(&gone);
    }

    /// Owes a lock to the store, with all that it covers now and comes to cover until it is written.
    fn owe_with_covers(&self, lock: &Arc<Ruling>) {
        self.store().owe(lock, Vec::new());
        let covered = self.covers.read().unwrap_or_else(PoisonError::into_inner).of_lock(lock.id);
        self.store().cover(lock.id, &covered);
    }

    fn heed(&self, News { heard, told, .. }: News) {
        let mut hearing = self.hearing();
        let went_back = matches!(&told, Told::All(all) if all.went_back);
        let heeded = match told {
            Told::Nothing => return,
            Told::Changes(changes) => hearing.heed(heard, changes),
            Told::All(all) => {
                let is_owed = |id| self.store().why_owed(id).is_some();
                let heeded = hearing.heed_all(all, self.index.load().all(), is_owed, clock::now());
                if went_back {
                    tracing::error!(
                        locks = heeded.lost.len(),
                        "the store has lost its last changes, as a standby does that takes over too early: the locks that are known \
                         here are written again; look at `stepward locks` for exemptions, and for what was taken back in the last minutes"
                    );
                }
                heeded
            }
        };
        heeded.lost.iter().for_each(|lock| self.owe_with_covers(lock));
        if went_back {
            // Of locks that are there, what they came to cover last may be lost.
            let index = self.index.load();
            for lock in index.all().filter(|ruling| links::covers(ruling)) {
                let covered = self.covers.read().unwrap_or_else(PoisonError::into_inner).of_lock(lock.id);
                self.store().cover(lock.id, &covered);
            }
        }
        self.add(heeded.made, heeded.covered);
        self.store().owe_no_more(&heeded.gone);
        self.drop_all(&heeded.gone);
        // What is taken back here is noted in `hearing` first, so nothing came between.
        drop(hearing);
    }

    /// Adds the rulings that are not there yet, and what locks cover.
    fn add(&self, made: Vec<Ruling>, covered: Vec<(DecisionId, Mark)>) {
        // The ends were computed by another service's clock, so they are as good as if they were computed now.
        let clock = self.store().clock().unwrap_or(&self.clock);
        let (span, seen) = (clock.read(clock::now()), clock.seen_before());
        let corrected = span.corrected;
        let there: BTreeSet<_> = self.index.load().all().map(|ruling| ruling.id).collect();
        // As at the start: an exemption whose end the process before may have seen does not hold again.
        let is_new = |ruling: &Ruling| !there.contains(&ruling.id) && !ruling.may_have_ended(span, seen);
        let new = made.into_iter().filter(is_new).map(|ruling| Arc::new(Ruling { corrected, ..ruling }));
        let new: Vec<_> = new.collect();
        if !new.is_empty() {
            self.index.rcu(|index| {
                let mut index = Index::clone(index);
                // As where one is made here, those that have ended go.
                index.retain(|other| !other.has_ended(span));
                new.iter().for_each(|ruling| index.insert(Arc::clone(ruling)));
                index
            });
            *self.last() = Some(Instant::now());
        }
        for ruling in &new {
            let (kind, device) = (ruling.kind.as_str(), &ruling.device);
            tracing::info!(kind, device, id = %ruling.id, by = ruling.made_by, "ruling of another service heeded");
        }
        for lock in new.iter().filter(|ruling| links::covers(ruling)) {
            let known = self.pairs.lock().unwrap_or_else(PoisonError::into_inner).covered_by(&Mark::all(lock));
            self.store().cover(lock.id, &self.cover(lock, known));
        }
        if covered.is_empty() {
            return;
        }
        let locks: BTreeMap<_, _> =
            self.index.load().all().filter(|ruling| links::covers(ruling)).map(|lock| (lock.id, Arc::clone(lock))).collect();
        for (id, mark) in covered {
            if let Some(lock) = locks.get(&id) {
                self.cover(lock, [mark]);
            }
        }
    }

    /// Whether this service has been without news of what others rule for longer than it may answer: a lock that was made
    /// elsewhere may be unknown here.
    pub fn are_stale(&self) -> bool {
        self.hearing().is_stale()
    }

    /// The time since which nothing is known of what other services rule; `None` where there can be none.
    pub fn without_news(&self) -> Option<Duration> {
        self.hearing().silence()
    }

    /// Waits for a few seconds until every other service that answers has heeded what was ruled here; returns the names of those
    /// that have not.
    ///
    /// # Errors
    /// [`StoreError`]: nobody knows.
    pub async fn unheard(&self) -> Result<Vec<String>, StoreError> {
        match self.store().unheard(CONFIRMATION).await {
            Err(StoreError::None) => Ok(Vec::new()),
            unheard => unheard,
        }
    }

    fn hearing(&self) -> MutexGuard<'_, Hearing> {
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a lock. It holds at once, and after the next start too if the inner result is good.
    ///
    /// The future has to be carried through once begun: run it as a task of its own, which nobody drops.
    ///
    /// # Errors
    /// [`RulingError::TooMany`] and [`RulingError::TooManyOfOne`]: no lock was made.
    pub async fn lock(&self, ruling: Ruling) -> Result<Result<(), StoreError>, RulingError> {
        let ruling = Arc::new(ruling);
        self.insert(&ruling)?;
        let own = Mark::all(&ruling);
        let known = self.pairs.lock().unwrap_or_else(PoisonError::into_inner).covered_by(&own);
        self.cover(&ruling, known);
        match self.store().partners(&own).await {
            Ok(kept) => drop(self.cover(&ruling, kept)),
            Err(StoreError::None) => {}
            // The lock holds by what memory knows, and the attempt to keep it says what is wrong.
            Err(error) => tracing::warn!(
                error = error.text(),
                "a lock's other identifiers could not be read from the store; the lock covers those in memory"
            ),
        }
        {
            let _changing = self.changing.lock().await;
            // The lock may have been taken back meanwhile; then the next start must not find it.
            if !self.has(&ruling) {
                tell(&ruling, None);
                return Ok(Ok(()));
            }
            // What was learned meanwhile could not be written for a lock that was not there yet.
            self.owe_with_covers(&ruling);
        }
        let kept = self.settle(&[ruling.id]).await;
        tell(&ruling, kept.as_ref().err());
        Ok(kept)
    }

    /// Makes an exemption, once the store answers; without a store it lives in memory. [`Self::why_not_kept`] says whether the
    /// next start will have it.
    ///
    /// The future has to be carried through once begun: run it as a task of its own, which nobody drops.
    ///
    /// # Errors
    /// [`RulingError`]: no exemption was made, and none will be there after the next start.
    pub async fn exempt(&self, ruling: Ruling) -> Result<(), RulingError> {
        let ruling = Arc::new(ruling);
        self.index.load().room_for(&ruling, self.span(ruling.made_at))?;
        // A row that came too late would let a device in after a start, though its operator was told that there is no
        // exemption. So the row is written only once the exemption holds, whatever becomes of the row.
        self.is_answered().await?;
        {
            let _changing = self.changing.lock().await;
            self.insert(&ruling)?;
            self.store().owe(&ruling, Vec::new());
        }
        let kept = self.settle(&[ruling.id]).await;
        tell(&ruling, fault(&kept));
        Ok(())
    }

    /// Takes back rulings, which end at once, and returns them. [`Self::why_not_kept`] says whether the next start will have
    /// them.
    ///
    /// The future has to be carried through once begun: run it as a task of its own, which nobody drops.
    ///
    /// # Errors
    /// [`StoreError`]: the rulings hold as before, and after the next start. Only for locks: an exemption ends whatever the
    /// store says.
    pub async fn take_back(&self, which: &Which, by: &str, now: UnixTime) -> Result<Vec<Arc<Ruling>>, StoreError> {
        if which.kind() == RulingKind::Lock {
            // A lock that is being made is in memory already, and whoever makes it has yet to write it.
            let are_there = {
                let _changing = self.changing.lock().await;
                !self.named(which, now).is_empty()
            };
            if are_there {
                self.is_answered().await?;
            }
        }
        let (found, ids) = {
            let _changing = self.changing.lock().await;
            let found = self.named(which, now);
            let ids: Vec<_> = found.iter().map(|ruling| ruling.id).collect();
            self.remove(&ids);
            self.store().owe_end(&ids);
            (found, ids)
        };
        if found.is_empty() {
            return Ok(found);
        }
        let kept = self.settle(&ids).await;
        let not_kept = fault(&kept).map(StoreError::text);
        for ruling in &found {
            tracing::info!(kind = ruling.kind.as_str(), device = ruling.device, id = %ruling.id, by, not_kept, "ruling taken back");
        }
        Ok(found)
    }

    /// Writes what is owed, of which `ids` were made or taken back here.
    async fn settle(&self, ids: &[DecisionId]) -> Result<(), StoreError> {
        self.store().settle(ids).await?;
        self.hearing().wrote(ids);
        Ok(())
    }

    /// Asks whether the store keeps what is written now, as far as that can be known before.
    async fn is_answered(&self) -> Result<(), StoreError> {
        match self.store().answers().await {
            Ok(()) | Err(StoreError::None) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The meant rulings that hold.
    fn named(&self, which: &Which, now: UnixTime) -> Vec<Arc<Ruling>> {
        let (index, span) = (self.index.load(), self.span(now));
        index.all().filter(|ruling| ruling.holds(span) && which.names(ruling)).cloned().collect()
    }

    /// Removes rulings from memory: they hold no more.
    fn remove(&self, ids: &[DecisionId]) {
        // Held until they are removed, so that news cannot bring them back between the two.
        let mut hearing = self.hearing();
        hearing.take_back(ids);
        self.drop_all(&ids.iter().copied().collect());
    }

    fn drop_all(&self, gone: &BTreeSet<DecisionId>) {
        if gone.is_empty() {
            return;
        }
        self.index.rcu(|index| {
            let mut index = Index::clone(index);
            index.retain(|ruling| !gone.contains(&ruling.id));
            index
        });
        self.covers.write().unwrap_or_else(PoisonError::into_inner).retain(|ruling| !gone.contains(&ruling.id));
        // A decision that rests on an exemption is to be made anew.
        *self.last() = Some(Instant::now());
    }

    /// The reason why the next start may not find the last change of this ruling; `None` where it will.
    pub fn why_not_kept(&self, id: DecisionId) -> Option<String> {
        if self.are_kept() { self.store().why_owed(id) } else { Some(StoreError::None.text()) }
    }

    /// Whether this ruling would not survive a restart, though there is a store: it is written once that is possible.
    pub fn is_owed(&self, ruling: &Ruling) -> bool {
        self.store().why_owed(ruling.id).is_some()
    }

    /// Whether rulings outlive the process.
    pub fn are_kept(&self) -> bool {
        self.store().keeps_decisions()
    }

    fn insert(&self, ruling: &Arc<Ruling>) -> Result<(), RulingError> {
        let mut outcome = Ok(());
        let span = self.span(ruling.made_at);
        self.index.rcu(|index| {
            outcome = index.room_for(ruling, span);
            let mut index = Index::clone(index);
            // Rulings that have ended go when another one is made.
            index.retain(|other| !other.has_ended(span));
            if outcome.is_ok() {
                index.insert(Arc::clone(ruling));
            }
            index
        });
        let mut covers = self.covers.write().unwrap_or_else(PoisonError::into_inner);
        if !covers.is_empty() {
            let index = self.index.load();
            covers.retain(|lock| index.of(&lock.device).iter().any(|other| other.id == lock.id));
        }
        drop(covers);
        if outcome.is_ok() && ruling.kind == RulingKind::Lock {
            *self.last() = Some(Instant::now());
        }
        outcome
    }

    fn last(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, ruling: &Ruling) -> bool {
        self.index.load().of(&ruling.device).iter().any(|other| other.id == ruling.id)
    }
}

impl Index {
    fn of(&self, identifier: &str) -> &[Arc<Ruling>] {
        self.by_identifier.get(&*key(identifier)).map(Vec::as_slice).unwrap_or_default()
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Ruling>> {
        self.by_identifier.values().flatten()
    }

    fn insert(&mut self, ruling: Arc<Ruling>) {
        self.by_identifier.entry(key(&ruling.device).into()).or_default().push(ruling);
    }

    fn retain(&mut self, keep: impl Fn(&Ruling) -> bool) {
        self.by_identifier.retain(|_, rulings| {
            rulings.retain(|ruling| keep(ruling));
            !rulings.is_empty()
        });
    }

    /// Checks whether one more ruling is within the bounds, those that have ended not counted.
    fn room_for(&self, ruling: &Ruling, span: Span) -> Result<(), RulingError> {
        let like = |other: &&Arc<Ruling>| other.kind == ruling.kind && !other.has_ended(span);
        if self.of(&ruling.device).iter().filter(like).count() >= MOST_OF_ONE {
            return Err(RulingError::TooManyOfOne);
        }
        if self.by_identifier.values().flatten().filter(like).count() >= MOST {
            return Err(RulingError::TooMany);
        }
        Ok(())
    }
}

fn tell(ruling: &Ruling, not_kept: Option<&StoreError>) {
    let not_kept = not_kept.map(StoreError::text);
    tracing::info!(
        kind = ruling.kind.as_str(),
        device = ruling.device,
        identifier_kind = ruling.identifier_kind.map(IdentifierKind::as_str),
        id = %ruling.id,
        by = ruling.made_by,
        reason = ruling.reason,
        until = ruling.until.map(rfc3339),
        not_kept,
        "ruling made"
    );
}

/// The fault of a store that did not take something; `None` where there is no store either.
fn fault(kept: &Result<(), StoreError>) -> Option<&StoreError> {
    kept.as_ref().err().filter(|error| !matches!(error, StoreError::None))
}

/// Longest time for which an operator waits until every service has heeded a ruling.
const CONFIRMATION: Duration = Duration::from_secs(5);

/// Pairs that are passed to the store at once.
const PORTION: usize = 10_000;

/// Rulings of one kind at once, at most: each change copies the index.
const MOST: usize = 100_000;

/// Rulings of one kind about one device at once, at most. Kinds are counted apart, here and in [`MOST`], so that exemptions leave
/// room for a lock.
const MOST_OF_ONE: usize = 16;

#[cfg(test)]
impl Locks {
    /// Makes the locks those of a service that has heard nothing of others for longer than is enough.
    pub(crate) fn fall_silent(&self) {
        let since = Instant::now() - Duration::from_secs(1);
        *self.hearing() = Hearing::of(&Rulings::default(), since, Some(Duration::ZERO));
    }
}

#[cfg(test)]
mod tests;
