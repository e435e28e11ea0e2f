//! Identifiers that stood together in one record, and which of them a lock covers by that.
//!
//! A lock is on one identifier; the next request may state another one of the same device, to a provider that does not know the
//! first. So pairs that were learned once are remembered, as digests: texts would be names of people's devices that nobody
//! asked to keep.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use store::{DecisionId, FIRST_COVERED, MOST_COVERED, Mark, Ruling, RulingKind};

/// Pairs of identifiers that stood in one record, in both directions: those that were seen last.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// Pairs that were seen since `old` was set aside.
    young: BTreeMap<(Mark, Mark), Seen>,
    old: BTreeMap<(Mark, Mark), Seen>,
}

/// When a pair was first and last seen, in seconds since the first pair was. Pairs from the store come before, in its order.
#[derive(Clone, Copy, Debug)]
struct Seen {
    first: i32,
    last: i32,
}

impl Pairs {
    /// Notes a pair. Returns whether the store has to keep it again: it is new, or was not seen for long.
    pub(super) fn see(&mut self, pair: (Mark, Mark), now: i32) -> bool {
        if let Some(seen) = self.young.get_mut(&pair) {
            seen.last = now;
            return false;
        }
        if self.young.len() >= PAIRS {
            self.old = std::mem::take(&mut self.young);
        }
        let first = self.old.remove(&pair).map_or(now, |seen| seen.first);
        self.young.insert(pair, Seen { first, last: now });
        true
    }

    /// Takes the pairs that the store has, the last seen first.
    pub(super) fn recall(&mut self, kept: &[(Mark, Mark)]) {
        for (pair, rank) in kept.iter().zip(1..=PAIRS_AS_RANKS) {
            if !self.young.contains_key(pair) && self.old.len() < PAIRS {
                self.old.insert(*pair, Seen { first: -rank, last: -rank });
            }
        }
    }

    /// Notes that the store did not keep a pair: the pair is tried again when it is seen again, and holds meanwhile. Where `old` has
    /// no room, it is tried again once `young` has become `old`.
    pub(super) fn not_kept(&mut self, pair: (Mark, Mark)) {
        if self.old.len() < PAIRS
            && let Some(seen) = self.young.remove(&pair)
        {
            self.old.insert(pair, seen);
        }
    }

    /// Identifiers that stood in one record with any of these.
    #[cfg(test)]
    pub(super) fn partners<'m>(&'m self, of: &'m [Mark]) -> impl Iterator<Item = Mark> + 'm {
        self.seen_with(of).map(|(partner, _)| partner)
    }

    /// Identifiers that a lock on any of these covers, in the order in which [`Covers::add`] takes them. Where they are more
    /// than one lock can cover: those that were seen first, and then those that were seen last, the last one at the end.
    pub(super) fn covered_by(&self, of: &[Mark]) -> Vec<Mark> {
        let mut all: Vec<_> = self.seen_with(of).collect();
        all.sort_unstable_by_key(|(_, seen)| seen.first);
        if all.len() > MOST_COVERED {
            let mut rest = all.split_off(FIRST_COVERED);
            rest.sort_unstable_by_key(|(_, seen)| seen.last);
            all.extend(rest.split_off(rest.len().saturating_sub(MOST_COVERED - FIRST_COVERED)));
        }
        all.into_iter().map(|(partner, _)| partner).collect()
    }

    fn seen_with<'m>(&'m self, of: &'m [Mark]) -> impl Iterator<Item = (Mark, Seen)> + 'm {
        let from = |mark: Mark| (mark, Mark(i64::MIN))..=(mark, Mark(i64::MAX));
        let of = of.iter().flat_map(move |mark| self.young.range(from(*mark)).chain(self.old.range(from(*mark))));
        of.map(|((_, partner), seen)| (*partner, *seen))
    }

    /// All pairs, the younger half first.
    pub(super) fn all(&self) -> Vec<(Mark, Mark)> {
        self.young.keys().chain(self.old.keys()).copied().collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// The identifiers that locks cover besides their own. One hop: what stood in a record with a locked identifier, and never what
/// stood with that in another record. Agents report such values themselves, and a chain of them would lock anybody.
#[derive(Debug, Default)]
pub(super) struct Covers {
    by_mark: HashMap<Mark, Vec<Arc<Ruling>>>,
    /// Identifiers that each lock covers, in the order in which they were learned.
    of_lock: BTreeMap<DecisionId, VecDeque<Mark>>,
}

impl Covers {
    pub(super) fn is_empty(&self) -> bool {
        self.by_mark.is_empty()
    }

    /// Adds identifiers to what a lock covers; returns the new ones, which have to be kept. Beyond [`MOST_COVERED`] the first
    /// that were learned stay, and of the rest the last: these are not kept with the lock, since the next start learns them
    /// from the pairs.
    pub(super) fn add(&mut self, lock: &Arc<Ruling>, marks: impl IntoIterator<Item = Mark>) -> Vec<Mark> {
        let Self { by_mark, of_lock } = self;
        let own = of_lock.entry(lock.id).or_default();
        let mut new = Vec::new();
        for mark in marks {
            let locks = by_mark.entry(mark).or_default();
            if locks.iter().any(|other| other.id == lock.id) {
                continue;
            }
            locks.push(Arc::clone(lock));
            own.push_back(mark);
            if own.len() <= MOST_COVERED {
                new.push(mark);
            } else if let Some(gone) = own.remove(FIRST_COVERED)
                && let Some(locks) = by_mark.get_mut(&gone)
            {
                locks.retain(|other| other.id != lock.id);
                if locks.is_empty() {
                    by_mark.remove(&gone);
                }
            }
        }
        if own.is_empty() {
            of_lock.remove(&lock.id);
        }
        new
    }

    /// Identifiers that a lock covers, in the order in which they were learned.
    pub(super) fn of_lock(&self, lock: DecisionId) -> Vec<Mark> {
        self.of_lock.get(&lock).into_iter().flatten().copied().collect()
    }

    /// The locks that cover any of these.
    pub(super) fn of<'c>(&'c self, marks: &'c [Mark]) -> impl Iterator<Item = &'c Arc<Ruling>> {
        marks.iter().filter_map(|mark| self.by_mark.get(mark)).flatten()
    }

    /// Identifiers that each lock covers, in the order in which they were learned.
    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<(DecisionId, Mark)> {
        self.of_lock.iter().flat_map(|(lock, marks)| marks.iter().map(|mark| (*lock, *mark))).collect()
    }

    /// Drops what is covered by locks that `keep` does not hold for.
    pub(super) fn retain(&mut self, keep: impl Fn(&Ruling) -> bool) {
        let Self { by_mark, of_lock } = self;
        by_mark.retain(|_, locks| {
            locks.retain(|lock| {
                let kept = keep(lock);
                if !kept {
                    of_lock.remove(&lock.id);
                }
                kept
            });
            !locks.is_empty()
        });
    }
}

/// Whether a ruling reaches further than its own identifier: an exemption never does.
pub(super) const fn covers(ruling: &Ruling) -> bool {
    matches!(ruling.kind, RulingKind::Lock)
}

/// Identifiers of one record that are looked at, at most: each two of them make a pair.
pub(super) const MOST_OF_A_RECORD: usize = 16;

/// Pairs in memory before the older half goes: some 20 MB for each half, a fleet of 250,000 with two identifiers each.
pub(super) const PAIRS: usize = 500_000;
const PAIRS_AS_RANKS: i32 = 500_000;
