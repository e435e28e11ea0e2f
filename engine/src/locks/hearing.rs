//! Rulings of other services on the same store, and how long this one may answer without news of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use store::{Changes, DecisionId, Heard, Mark, News, Ruling, RulingKind, Rulings, Store, StoreError, Told};
use tokio::time::Instant;

use super::{Index, Locks, links};

/// What is known of the changes that other services make.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    pub(super) heard: Heard,
    /// Rulings that the store was heard to have. What was made here is among them once that is heard.
    pub(super) known: BTreeSet<DecisionId>,
    /// Rulings that were taken back here, until the store is heard to have forgotten them: news that were read before have them
    /// still, and an exemption must not hold again for a moment.
    pub(super) taken_back: BTreeSet<DecisionId>,
    /// Moment up to which the rulings of others are known, and how long that is enough; `None` where nobody else rules.
    fresh: Option<(Instant, Duration)>,
}

impl Locks {
    /// Heeds what other services on the store rule, for as long as it is polled. Returns at once where there are none.
    pub async fn follow(&self) {
        if self.store().stale_limit().is_none() {
            return;
        }
        let mut silence = Silence::default();
        loop {
            // A connection that hangs is given up soon, but one that was given up already is given its time.
            let bound = if silence.since.is_some() { LONG } else { SHORT };
            match self.hear(bound).await {
                Ok(heard) => {
                    silence.end();
                    if heard {
                        // Whoever made a change waits for the word that it is heeded.
                        continue;
                    }
                }
                Err(error) => silence.go_on(&error, self.are_stale()),
            }
            self.store().wait_for_news(POLL).await;
        }
    }

    /// Reads and heeds what is new; returns whether anything was.
    pub(super) async fn hear(&self, bound: Duration) -> Result<bool, StoreError> {
        let asked = Instant::now();
        let heard = self.hearing().heard;
        let News { heard, more, told } = self.store().hear(heard, self.span(clock::now()), bound).await?;
        let is_new = !matches!(told, Told::Nothing);
        match told {
            Told::Nothing => {}
            Told::Changes(changes) => self.heed(heard, changes),
            Told::All(rulings) => self.heed_all(rulings),
        }
        if !more && let Some((fresh, _)) = &mut self.hearing().fresh {
            *fresh = asked;
        }
        Ok(is_new)
    }

    /// Begins to heed what others rule: `all` is what was read of the store at `asked` or later.
    pub(super) fn began_to_hear(&self, all: &Rulings, store: &Store, asked: Instant) {
        let known = all.rulings.iter().map(|ruling| ruling.id).collect();
        let fresh = store.stale_limit().map(|limit| (asked, limit));
        *self.hearing() = Hearing { heard: all.heard, known, taken_back: BTreeSet::new(), fresh };
    }

    pub(super) fn heed(&self, heard: Heard, changes: Changes) {
        let Changes { made, covered, forgotten } = changes;
        let mut hearing = self.hearing();
        hearing.heard = heard;
        self.add(&mut hearing, made, covered);
        for id in &forgotten {
            hearing.known.remove(id);
            hearing.taken_back.remove(id);
        }
        self.drop_all(&forgotten.into_iter().collect());
    }

    /// Heeds all rulings of a store, in the place of those that were known. What was made here and is not written yet stays.
    pub(super) fn heed_all(&self, all: Rulings) {
        let Rulings { heard, rulings, covered, went_back, forgotten } = all;
        let mut hearing = self.hearing();
        hearing.heard = heard;
        let there: BTreeSet<_> = rulings.iter().map(|ruling| ruling.id).collect();
        let mut gone: BTreeSet<_> = hearing.known.difference(&there).copied().collect();
        hearing.known.clone_from(&there);
        let forgotten: BTreeSet<_> = forgotten.into_iter().collect();
        hearing.taken_back.retain(|id| !forgotten.contains(id));
        gone.extend(self.index.load().all().filter(|ruling| self.was_taken_back(ruling, &there, &forgotten)).map(|ruling| ruling.id));
        if went_back {
            // A server took over that had not been told of everything. Locks are written anew; and exemptions are gone, as if
            // they were taken back.
            let lost =
                |ruling: &&Arc<Ruling>| ruling.kind == RulingKind::Lock && gone.contains(&ruling.id) && !forgotten.contains(&ruling.id);
            let lost: Vec<_> = self.index.load().all().filter(lost).cloned().collect();
            for lock in &lost {
                let covered = self.covers.read().unwrap_or_else(PoisonError::into_inner).of_lock(lock.id);
                self.store().owe(lock, covered);
                gone.remove(&lock.id);
            }
            tracing::error!(
                locks = lost.len(),
                "the store has lost its last changes, as a standby does that takes over too early: the locks that are known here are \
                 written again; look at `stepward locks` for exemptions, and for what was taken back in the last minutes"
            );
        }
        self.add(&mut hearing, rulings, covered);
        self.drop_all(&gone);
    }

    /// Whether somebody else took a ruling back that was made here and never heard of: `there` is what the store has, `forgotten`
    /// what it remembers as taken back.
    fn was_taken_back(&self, ruling: &Ruling, there: &BTreeSet<DecisionId>, forgotten: &BTreeSet<DecisionId>) -> bool {
        // The store remembers what was taken back for a day. An exemption that is neither there nor about to be written must not
        // hold for longer; a lock is on the safe side.
        let is_lost = || {
            ruling.kind == RulingKind::Exemption
                && !there.contains(&ruling.id)
                && self.store().why_owed(ruling.id).is_none()
                && ruling.made_at.saturating_add(LONG_WRITTEN) < clock::now()
        };
        forgotten.contains(&ruling.id) || is_lost()
    }

    /// Adds rulings that the store has, unless they were taken back here, and what locks cover.
    fn add(&self, hearing: &mut Hearing, made: Vec<Ruling>, covered: Vec<(DecisionId, Mark)>) {
        // The ends were computed by another service's clock, so they are as good as if they were computed now.
        let corrected = self.span(clock::now()).corrected;
        let index = self.index.load();
        let there: BTreeSet<_> = index.all().map(|ruling| ruling.id).collect();
        drop(index);
        let mut new = BTreeMap::new();
        for ruling in made {
            if hearing.taken_back.contains(&ruling.id) {
                continue;
            }
            hearing.known.insert(ruling.id);
            if !there.contains(&ruling.id) {
                new.insert(ruling.id, Arc::new(Ruling { corrected, ..ruling }));
            }
        }
        if !new.is_empty() {
            self.index.rcu(|index| {
                let mut index = Index::clone(index);
                new.values().for_each(|ruling| index.insert(Arc::clone(ruling)));
                index
            });
            *self.last() = Some(Instant::now());
        }
        for ruling in new.values() {
            tracing::info!(kind = ruling.kind.as_str(), device = ruling.device, id = %ruling.id, by = ruling.made_by, "ruling of another service heeded");
        }
        for lock in new.values().filter(|ruling| links::covers(ruling)) {
            let known = self.pairs.lock().unwrap_or_else(PoisonError::into_inner).covered_by(&Mark::all(lock));
            self.store().cover(lock.id, &self.cover(lock, known));
        }
        let wanted: BTreeSet<_> = covered.iter().map(|(id, _)| *id).collect();
        let locks: BTreeMap<_, _> = if wanted.is_empty() {
            BTreeMap::new()
        } else {
            self.index.load().all().filter(|ruling| wanted.contains(&ruling.id)).map(|lock| (lock.id, Arc::clone(lock))).collect()
        };
        for (id, mark) in covered {
            if let Some(lock) = locks.get(&id).filter(|lock| links::covers(lock)) {
                self.cover(lock, [mark]);
            }
        }
    }

    /// Notes that rulings are taken back here. Has to be called before they are removed, and the guard held until then.
    pub(super) fn take_from_hearing(&self, ids: &[DecisionId]) -> MutexGuard<'_, Hearing> {
        let mut hearing = self.hearing();
        if hearing.fresh.is_some() {
            hearing.taken_back.extend(ids);
        }
        hearing
    }

    /// Whether this service has been without news of what others rule for longer than it may answer: a lock that was made
    /// elsewhere may be unknown here.
    pub fn are_stale(&self) -> bool {
        self.hearing().fresh.is_some_and(|(since, limit)| since.elapsed() > limit)
    }

    /// The time since which nothing is known of what other services rule; `None` where there are no others.
    pub fn without_news(&self) -> Option<Duration> {
        self.hearing().fresh.map(|(since, _)| since.elapsed())
    }

    /// Waits for a few seconds until every other service that answers has heeded what was ruled here; returns the names of those
    /// that have not.
    ///
    /// # Errors
    /// [`StoreError`]: nobody knows.
    pub async fn unheard(&self) -> Result<Vec<String>, StoreError> {
        match self.store().unheard(CONFIRMATION).await {
            Ok(unheard) => Ok(unheard.names),
            Err(StoreError::None) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn hearing(&self) -> MutexGuard<'_, Hearing> {
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time without news, as far as it was logged.
#[derive(Debug, Default)]
struct Silence {
    since: Option<Instant>,
    /// Whether it was logged that nobody is answered any more.
    is_stale: bool,
}

impl Silence {
    fn go_on(&mut self, error: &StoreError, are_stale: bool) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            tracing::warn!(error = error.text(), "no news of what other services rule: the store is tried again all the time");
        }
        if are_stale && !self.is_stale {
            self.is_stale = true;
            tracing::error!(
                error = error.text(),
                "nothing is known of what other services rule for longer than [store] stale_limit: every request is answered 503 \
                 until the store can be reached"
            );
        }
    }

    fn end(&mut self) {
        if let Some(since) = self.since.take() {
            self.is_stale = false;
            tracing::info!(seconds = since.elapsed().as_secs(), "what other services rule is known again");
        }
    }
}

/// Time after which the store has taken a ruling, or owes it.
const LONG_WRITTEN: Duration = Duration::from_secs(3600);

/// Time between two looks at the store where no notification comes.
const POLL: Duration = Duration::from_millis(500);

/// Longest time for a look, and for one that follows a failure.
pub(super) const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(5);

/// Longest time for which an operator waits until every service has heeded a ruling.
const CONFIRMATION: Duration = Duration::from_secs(5);
