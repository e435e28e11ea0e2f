//! What operators rule about single devices: a lock wins over every provider and policy, an exemption over policy and outage.
//!
//! All rulings are in memory, so that a request asks no disk; the store has them for the next start.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard, OnceLock, PoisonError, RwLock};

use arc_swap::ArcSwap;
use posture::identity::{DeviceId, IdentifierKind, normal};
use posture::time::UnixTime;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::clock::{Clock, Span};
use crate::store::{DecisionId, Store, StoreError};

mod links;

use links::{Covers, Pairs};
pub(crate) use links::{FIRST_COVERED, MOST_COVERED, Mark};

/// One ruling of an operator about one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Its own name.
    pub id: DecisionId,
    /// What it says.
    pub kind: RulingKind,
    /// What [`Self::device`] is; `None`, which only a lock may have: any. A lock is on the side of denying.
    pub identifier_kind: Option<IdentifierKind>,
    /// An identifier of the device, as the operator wrote it.
    pub device: String,
    /// Why, for people.
    pub reason: String,
    /// Who made it, such as `uid 0`.
    pub made_by: String,
    /// When it was made.
    pub made_at: UnixTime,
    /// From then on it does not hold any more; `None`: until it is taken back. A whole second.
    pub until: Option<UnixTime>,
    /// The end of an exemption by the proven time, where the system's clock was ahead of that when it was made.
    pub proven_until: Option<UnixTime>,
    /// [`Span::corrected`] as it was when the ends were reckoned.
    pub corrected: i64,
}

/// What a ruling says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RulingKind {
    /// The device is denied, whatever anyone knows of it.
    Lock,
    /// The device passes though a policy denies it or nobody can say.
    Exemption,
}

impl RulingKind {
    /// Both.
    pub const ALL: &'static [Self] = &[Self::Lock, Self::Exemption];

    /// As the store and the log spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Exemption => "exemption",
        }
    }
}

impl Ruling {
    /// A new one. `identifier_kind` of `None` is any for a lock and the serial number for an exemption. `ttl` of `None` means
    /// until it is taken back; any other ends at the next whole second after it.
    pub fn new(
        kind: RulingKind,
        identifier_kind: Option<IdentifierKind>,
        device: &str,
        reason: &str,
        made_by: &str,
        now: UnixTime,
        ttl: Option<std::time::Duration>,
    ) -> Self {
        let identifier_kind = match kind {
            RulingKind::Lock => identifier_kind,
            RulingKind::Exemption => Some(identifier_kind.unwrap_or(IdentifierKind::Serial)),
        };
        Self {
            id: DecisionId::new(now),
            kind,
            identifier_kind,
            device: device.trim_ascii().to_owned(),
            reason: reason.to_owned(),
            made_by: made_by.to_owned(),
            made_at: now,
            until: ttl.map(|ttl| whole_second(now.saturating_add(ttl))),
            proven_until: None,
            corrected: 0,
        }
    }

    /// The same, which ends as long after it was made as it should whichever of the clocks is right.
    fn anchored(mut self, span: Span) -> Self {
        self.corrected = span.corrected;
        let between = |earlier: UnixTime, later: UnixTime| later.as_nanos().saturating_sub(earlier.as_nanos());
        let ahead = between(span.proven, self.made_at);
        let earlier = self.until.map(|until| UnixTime::from_nanos(until.as_nanos().saturating_sub(ahead)));
        match ahead.cmp(&0) {
            Ordering::Less => self.until = earlier,
            Ordering::Greater if self.kind == RulingKind::Exemption => self.proven_until = earlier,
            _ => {}
        }
        self
    }

    /// Whether the ruling is about this identifier of this kind; one of no known kind might be any.
    ///
    /// A lock is about every way in which a UDID may be written. An exemption lets in what it names, and dashes elsewhere than its
    /// form has them name another device.
    fn is_about(&self, kind: Option<IdentifierKind>, text: &str) -> bool {
        if let (RulingKind::Exemption, Some(own)) = (self.kind, self.identifier_kind) {
            return kind == Some(own) && posture::identity::same(own, &self.device, text);
        }
        self.identifier_kind.is_none_or(|own| kind.is_none_or(|kind| kind == own))
            && same(self.identifier_kind.or(kind), &self.device, text)
    }

    /// Whether it holds: a lock until its end is past by every clock, an exemption until it is past by one of them.
    pub fn holds(&self, span: Span) -> bool {
        match self.kind {
            RulingKind::Lock => !self.has_ended(span),
            RulingKind::Exemption => {
                self.end(span).is_none_or(|until| span.latest < until)
                    && self.proven_until.is_none_or(|until| span.proven < self.corrected_by(span, until))
            }
        }
    }

    /// Whether its end is past by every clock, so that it may be forgotten.
    fn has_ended(&self, span: Span) -> bool {
        self.end(span).is_some_and(|until| until <= span.earliest)
    }

    /// Whether the process before may have seen the end of an exemption: it does not hold again, though the clock was set back
    /// since.
    fn may_have_ended(&self, span: Span, seen: Option<UnixTime>) -> bool {
        let ends = [self.end(span), self.proven_until.map(|until| self.corrected_by(span, until))];
        self.kind == RulingKind::Exemption && ends.into_iter().flatten().any(|end| seen.is_some_and(|seen| end <= seen))
    }

    /// [`Self::until`], as the clock has it that was put right since: who locks for a day means a day.
    fn end(&self, span: Span) -> Option<UnixTime> {
        self.until.map(|until| self.corrected_by(span, until))
    }

    /// A lock is moved to a later end only, and an exemption to an earlier one. A machine that slept finds its clock ahead, and
    /// which of two clocks was the wrong one is not known for sure.
    fn corrected_by(&self, span: Span, time: UnixTime) -> UnixTime {
        let since = span.corrected.saturating_sub(self.corrected);
        let moved = match self.kind {
            RulingKind::Lock => since.max(0),
            RulingKind::Exemption => since.min(0),
        };
        UnixTime::from_nanos(time.as_nanos().saturating_add(moved))
    }
}

fn whole_second(time: UnixTime) -> UnixTime {
    const SECOND: i64 = 1_000_000_000;
    let beyond = time.as_nanos().rem_euclid(SECOND);
    if beyond == 0 { time } else { UnixTime::from_nanos(time.as_nanos().saturating_add(SECOND - beyond)) }
}

/// What holds for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Deny, with whatever is known.
    Locked(Arc<Ruling>),
    /// Not locked, and exempt from policy and outage.
    Exempt(Arc<Ruling>),
    /// Nobody has ruled.
    Ordinary,
}

/// Which rulings are meant: by what they were made by, and by nothing that stands in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one with this id, if it is of this kind.
    Id(RulingKind, DecisionId),
    /// Those of this kind that were made by the same kind of identifier and the same text.
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
                ruling.kind == *kind && ruling.identifier_kind == *identifier_kind && same(*identifier_kind, &ruling.device, device)
            }
        }
    }
}

/// Of a request about which no record was found, or none yet.
pub const NO_OTHERS: [(Option<IdentifierKind>, &str); 0] = [];

/// All rulings that hold.
#[derive(Debug, Default)]
pub struct Locks {
    index: ArcSwap<Index>,
    /// Which identifiers belong together. Always taken before `covers`.
    pairs: SyncMutex<Pairs>,
    /// What the locks in `index` cover besides. Changed only by whoever has seen the lock in the index while holding it, so
    /// that a lock which was taken back leaves nothing.
    covers: RwLock<Covers>,
    /// When the last lock was made or ruling taken back, read once it was in the index; `None`: none since the start.
    last: SyncMutex<Option<Instant>>,
    /// One change of memory and of what the store is owed at a time, so that both have them in the same order.
    changing: Mutex<()>,
    /// When the first record was learned.
    began: OnceLock<Instant>,
    /// What keeps them; none until [`Self::keep_in`] gives one.
    store: OnceLock<Store>,
    /// Where there is no store, which has one.
    clock: Clock,
}

/// What a store has kept.
struct Kept {
    rulings: Vec<Ruling>,
    /// What each lock covers besides.
    covered: Vec<(DecisionId, Mark)>,
    /// Those that were seen last first.
    pairs: Vec<(Mark, Mark)>,
}

/// By identifier. It never changes; another one takes its place.
#[derive(Clone, Debug, Default)]
struct Index {
    by_identifier: BTreeMap<Box<str>, Vec<Arc<Ruling>>>,
}

/// Why a ruling was not made.
#[derive(Debug, thiserror::Error)]
pub enum RulingError {
    /// Memory is bounded.
    #[error("there are {MOST} rulings already: take back those that are not needed")]
    TooMany,
    /// For one device.
    #[error("there are {MOST_OF_ONE} rulings of this kind about this device already: take them back and make one")]
    TooManyOfOne,
    /// The store does not answer, and an exemption that would not survive a restart is none.
    #[error("it could not be kept")]
    NotKept(#[from] StoreError),
}

impl Locks {
    /// Those that the store has.
    ///
    /// # Errors
    /// As [`Self::keep_in`].
    pub async fn load(store: Store, now: UnixTime) -> Result<Self, StoreError> {
        let locks = Self::default();
        locks.keep_in(store, now).await?;
        Ok(locks)
    }

    /// Takes the rulings that a store has, and keeps there what is made and learned from now on and what was learned before.
    /// For the first store only; another one changes nothing.
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
        let mut rulings = store.rulings(span).await?;
        rulings.retain(|ruling| !ruling.may_have_ended(span, seen));
        let kept = Kept { rulings, covered: store.covers().await?, pairs: store.links(links::PAIRS).await? };
        self.recall(kept, &store);
        // Nobody else sets it: whoever changes anything has `changing`.
        let _ = self.store.set(store);
        Ok(())
    }

    /// Takes what a process before this one left in its store.
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

    /// What the next process starts with where this one ends now, as if a store had kept everything.
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

    /// Between which times it is now, where the system's clock says `now`.
    fn span(&self, now: UnixTime) -> Span {
        self.store().clock().unwrap_or(&self.clock).read(now)
    }

    /// A new ruling with its end fixed against both clocks, so that an hour is an hour whichever of them is right.
    pub fn anchored(&self, ruling: Ruling) -> Ruling {
        let span = self.span(ruling.made_at);
        ruling.anchored(span)
    }

    /// What holds for the device of a request: `stated` is the identifier that the request states, `others` are those that
    /// stand in the records that were found for it, [`posture::record::Record::identifiers`].
    ///
    /// A lock on any of them wins, and one on an identifier that once stood in one record with the stated one ([`Self::learned`]).
    /// An exemption counts for the stated identifier only, and of its own kind only: what stands
    /// in a record is in part for the device's user to choose.
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

    /// A lock that may be about the device of a request though it is on another identifier. For those who have no record of the
    /// device to look it up in.
    ///
    /// A lock is about another device only where it was made for an identifier of the very kind that the request states. What
    /// records showed takes no doubt away: agents report it, so another device may claim the locked identifier, as one of any
    /// kind, or the one that the request states. Costs a look at every lock.
    pub fn possible(&self, stated: &DeviceId, now: UnixTime) -> Option<Arc<Ruling>> {
        let index = self.index.load();
        let span = self.span(now);
        let of_another = |lock: &Ruling| lock.identifier_kind == Some(stated.kind());
        let locks = index.by_identifier.values().flatten().filter(|ruling| ruling.kind == RulingKind::Lock && ruling.holds(span));
        locks.filter(|lock| !of_another(lock)).min_by_key(|lock| lock.id).cloned()
    }

    /// The lock on an identifier that once stood in one record with this one.
    fn covering(&self, stated: &DeviceId, span: Span) -> Option<Arc<Ruling>> {
        let covers = self.covers.read().unwrap_or_else(PoisonError::into_inner);
        if covers.is_empty() {
            return None;
        }
        covers.of(&Mark::stated(stated)).find(|lock| lock.holds(span)).cloned()
    }

    /// Remembers that these identifiers stood in one record, [`posture::record::Record::identifiers`]: from now on a lock on
    /// one of them covers the others, whichever provider is asked, and after the next start. To be called for every record
    /// that is learned, by whichever way. Where one of them is locked, the others are once this returns.
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

    /// Adds to what a lock covers, if it is still there; returns what is new.
    fn cover(&self, lock: &Arc<Ruling>, marks: impl IntoIterator<Item = Mark>) -> Vec<Mark> {
        let mut covers = self.covers.write().unwrap_or_else(PoisonError::into_inner);
        if !self.has(lock) {
            return Vec::new();
        }
        let added = covers.add(lock, marks);
        drop(covers);
        if !added.is_empty() {
            // What was decided before may be about a device that is locked now.
            *self.last() = Some(Instant::now());
        }
        added
    }

    /// Whether no lock was made or came to cover more, and no ruling was taken back since this moment: what was decided later has
    /// heeded all that hold.
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

    /// Rulings of this kind that hold and that somebody who named none of them may have meant, oldest first: those whose
    /// identifier has the text in it, or is a part of it.
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

    /// Makes a lock. It holds at once, and after the next start too if the inner result is good.
    ///
    /// Once begun it has to be carried through: run it as a task of its own, which nobody drops.
    ///
    /// # Errors
    /// [`RulingError::TooMany`] and [`RulingError::TooManyOfOne`]: no lock was made.
    pub async fn lock(&self, ruling: Ruling) -> Result<Result<(), StoreError>, RulingError> {
        let ruling = Arc::new(ruling);
        self.insert(&ruling)?;
        let own = Mark::all(&ruling);
        let known = self.pairs.lock().unwrap_or_else(PoisonError::into_inner).covered_by(&own);
        let mut covered = self.cover(&ruling, known);
        match self.store().partners(&own).await {
            Ok(kept) => covered.extend(self.cover(&ruling, kept)),
            Err(StoreError::None) => {}
            // What is in memory holds, and keeping the lock will say what is wrong.
            Err(error) => tracing::warn!(
                error = error.text(),
                "a lock's other identifiers could not be read from the store; the lock covers those in memory"
            ),
        }
        {
            let _changing = self.changing.lock().await;
            // It may have been taken back meanwhile; then the next start must not find it.
            if !self.has(&ruling) {
                tell(&ruling, None);
                return Ok(Ok(()));
            }
            self.store().owe(&ruling, covered);
        }
        let kept = self.store().settle(&[ruling.id]).await;
        tell(&ruling, kept.as_ref().err());
        Ok(kept)
    }

    /// Makes an exemption, once the store answers; without a store it lives in memory. Whether the next start will have it,
    /// [`Self::why_not_kept`] says.
    ///
    /// Once begun it has to be carried through: run it as a task of its own, which nobody drops.
    ///
    /// # Errors
    /// [`RulingError`]: no exemption was made, and none will be there after the next start.
    pub async fn exempt(&self, ruling: Ruling) -> Result<(), RulingError> {
        let ruling = Arc::new(ruling);
        self.index.load().room_for(&ruling, self.span(ruling.made_at))?;
        // Of the row itself nobody would know where it came too late, and whoever was told that there is none must not be let in by
        // it after a start. So it is written only once there is an exemption, whatever becomes of the row.
        self.is_answered().await?;
        {
            let _changing = self.changing.lock().await;
            self.insert(&ruling)?;
            self.store().owe(&ruling, Vec::new());
        }
        let kept = self.store().settle(&[ruling.id]).await;
        tell(&ruling, kept.as_ref().err().filter(|error| !matches!(error, StoreError::None)));
        Ok(())
    }

    /// Takes back rulings, and returns them: they do not hold any more. Whether the next start will have them, [`Self::why_not_kept`]
    /// says.
    ///
    /// Once begun it has to be carried through: run it as a task of its own, which nobody drops.
    ///
    /// # Errors
    /// [`StoreError`]: they hold as before, and after the next start. Of locks alone: an exemption ends whatever the store says.
    pub async fn take_back(&self, which: &Which, by: &str, now: UnixTime) -> Result<Vec<Arc<Ruling>>, StoreError> {
        if which.kind() == RulingKind::Lock {
            // Whoever made one has it in memory, and it is his turn to write it.
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
        let not_kept = self.store().settle(&ids).await.err().filter(|error| !matches!(error, StoreError::None));
        let not_kept = not_kept.as_ref().map(StoreError::text);
        for ruling in &found {
            tracing::info!(kind = ruling.kind.as_str(), device = ruling.device, id = %ruling.id, by, not_kept, "ruling taken back");
        }
        Ok(found)
    }

    /// Whether what is written now will be there after the next start, as far as that can be known before.
    async fn is_answered(&self) -> Result<(), StoreError> {
        match self.store().answers().await {
            Ok(()) | Err(StoreError::None) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Those that hold and are meant.
    fn named(&self, which: &Which, now: UnixTime) -> Vec<Arc<Ruling>> {
        let (index, span) = (self.index.load(), self.span(now));
        index.all().filter(|ruling| ruling.holds(span) && which.names(ruling)).cloned().collect()
    }

    /// Has these hold no more.
    fn remove(&self, ids: &[DecisionId]) {
        if ids.is_empty() {
            return;
        }
        let gone: BTreeSet<_> = ids.iter().copied().collect();
        self.index.rcu(|index| {
            let mut index = Index::clone(index);
            index.retain(|ruling| !gone.contains(&ruling.id));
            index
        });
        self.covers.write().unwrap_or_else(PoisonError::into_inner).retain(|ruling| !gone.contains(&ruling.id));
        // What an exemption has let in is decided anew.
        *self.last() = Some(Instant::now());
    }

    /// Why the next start may not find what became of this ruling last; `None` where it will.
    pub fn why_not_kept(&self, id: DecisionId) -> Option<String> {
        if self.are_kept() { self.store().why_owed(id) } else { Some(StoreError::None.text()) }
    }

    /// Whether this ruling would not survive a restart, though there is a store: it is written once that can be.
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
            // Those that have ended go when another comes.
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

    /// Whether one more would be within the bounds, those that have ended not counted.
    fn room_for(&self, ruling: &Ruling, span: Span) -> Result<(), RulingError> {
        let holding = |rulings: &[Arc<Ruling>]| rulings.iter().filter(|other| !other.has_ended(span)).count();
        let like = |other: &&Arc<Ruling>| other.kind == ruling.kind && !other.has_ended(span);
        if self.of(&ruling.device).iter().filter(like).count() >= MOST_OF_ONE {
            return Err(RulingError::TooManyOfOne);
        }
        if self.by_identifier.values().map(|rulings| holding(rulings)).sum::<usize>() >= MOST {
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
        until = ruling.until.map(crate::store::rfc3339),
        not_kept,
        "ruling made"
    );
}

/// By what rulings are found. Whether one is about an identifier is for [`same`] to say.
fn key(identifier: &str) -> Cow<'_, str> {
    IdentifierKind::Udid.without_any_dashes(identifier)
}

/// Whether two texts are one identifier of this kind. One that is of no known kind may be a UDID, where it looks like one.
fn same(kind: Option<IdentifierKind>, one: &str, other: &str) -> bool {
    match kind {
        Some(IdentifierKind::Udid) => key(one) == key(other),
        _ => plain(one) == plain(other),
    }
}

/// The form in which identifiers are compared that are no UDID for sure: what has the shape of one loses its dashes.
fn plain(identifier: &str) -> Cow<'_, str> {
    let normal = normal(identifier);
    let hexadecimal = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<&str> = if normal.len() <= LONGEST_UDID { normal.split('-').collect() } else { Vec::new() };
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    if UDID_SHAPES.contains(&lengths.as_slice()) && parts.iter().all(|part| hexadecimal(part)) {
        Cow::Owned(parts.concat())
    } else {
        normal
    }
}

/// Lengths of the parts of an identifier whose dashes do not count: that of Apple's newer devices, and a UUID.
const UDID_SHAPES: &[&[usize]] = &[&[8, 16], &[8, 4, 4, 4, 12]];
const LONGEST_UDID: usize = 36;

/// Pairs that are passed on at once.
const PORTION: usize = 10_000;

/// Rulings at once: each change copies the index.
const MOST: usize = 100_000;

/// Rulings of one kind about one device at once: exemptions never keep a lock from being made.
const MOST_OF_ONE: usize = 16;

#[cfg(test)]
mod tests;
