//! Which identifiers stood in one record, and which of them a lock covers by that.
//!
//! A lock is on one identifier; the next request may state another one of the same device, to a provider that does not know
//! the first. So what was once learned is remembered, as digests: texts would be names of people's devices that nobody asked
//! to keep.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use posture::identity::{DeviceId, IdentifierKind};
use sha2::{Digest as _, Sha256};

use super::{Ruling, RulingKind, key, plain};
use crate::store::DecisionId;

/// Digest of an identifier and its kind: the first 64 bits of SHA-256. Two that are equal by chance lock a device too many,
/// once in 10^9 fleets of a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Mark(pub(crate) i64);

impl Mark {
    /// Of an identifier in any form; `None`: of no kind that requests state.
    pub(crate) fn of(kind: Option<IdentifierKind>, text: &str) -> Self {
        let text = if kind == Some(IdentifierKind::Udid) { key(text) } else { plain(text) };
        let kind_name = kind.map_or("", IdentifierKind::as_str);
        let digest: [u8; 32] = Sha256::new().chain_update(kind_name).chain_update([0]).chain_update(&*text).finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        Self(i64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    /// Of all identifiers that a ruling is about.
    pub(super) fn all(ruling: &Ruling) -> Vec<Self> {
        let kinds = match ruling.identifier_kind {
            Some(kind) => &[kind][..],
            None => IdentifierKind::ALL,
        };
        kinds.iter().copied().map(Some).chain([None]).map(|kind| Self::of(kind, &ruling.device)).collect()
    }

    /// Of what a request states: as its kind, and as that of an identifier that an inventory has for no kind.
    pub(super) fn stated(device: &DeviceId) -> [Self; 2] {
        [Some(device.kind()), None].map(|kind| Self::of(kind, device.normal()))
    }
}

/// Pairs of identifiers that stood in one record, in both directions, of those that were seen last.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// Seen since `old` was set aside.
    young: BTreeMap<(Mark, Mark), Seen>,
    old: BTreeMap<(Mark, Mark), Seen>,
}

/// When a pair was seen, in seconds since the first one was; those that the store had come before, in their order.
#[derive(Clone, Copy, Debug)]
struct Seen {
    first: i32,
    last: i32,
}

impl Pairs {
    /// Whether the pair has to be kept again: it is new, or was not seen for long.
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

    /// The pair was not kept: it has to be tried again when it is seen again, and holds meanwhile.
    pub(super) fn not_kept(&mut self, pair: (Mark, Mark)) {
        if let Some(seen) = self.young.remove(&pair).filter(|_| self.old.len() < PAIRS) {
            self.old.insert(pair, seen);
        }
    }

    /// What stood in one record with any of these.
    #[cfg(test)]
    pub(super) fn partners<'m>(&'m self, of: &'m [Mark]) -> impl Iterator<Item = Mark> + 'm {
        self.seen_with(of).map(|(partner, _)| partner)
    }

    /// What a lock on any of these covers, in the order in which [`Covers::add`] takes it: where it is more than one lock can
    /// cover, what was seen first, and then what was seen last, the last one at the end.
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

    /// All of them, those that were seen last first.
    pub(super) fn all(&self) -> Vec<(Mark, Mark)> {
        self.young.keys().chain(self.old.keys()).copied().collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// What locks cover besides the identifiers that they were made by. One hop: what stood in a record with a locked identifier,
/// and never what stood with that in another. Agents report such values themselves, and a chain of them would lock anybody.
#[derive(Debug, Default)]
pub(super) struct Covers {
    by_mark: HashMap<Mark, Vec<Arc<Ruling>>>,
    /// What each lock covers, in the order in which it was learned.
    of_lock: BTreeMap<DecisionId, VecDeque<Mark>>,
}

impl Covers {
    pub(super) fn is_empty(&self) -> bool {
        self.by_mark.is_empty()
    }

    /// Adds to what a lock covers; returns what is new and has to be kept. Beyond [`MOST_COVERED`] what was learned first stays,
    /// and of the rest what was learned last: that is not kept with the lock, since the next start learns it from the pairs.
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

    /// The locks that cover any of these.
    pub(super) fn of<'c>(&'c self, marks: &'c [Mark]) -> impl Iterator<Item = &'c Arc<Ruling>> {
        marks.iter().filter_map(|mark| self.by_mark.get(mark)).flatten()
    }

    /// What each lock covers, in the order in which it was learned.
    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<(DecisionId, Mark)> {
        self.of_lock.iter().flat_map(|(lock, marks)| marks.iter().map(|mark| (*lock, *mark))).collect()
    }

    /// Leaves the covers of these locks only.
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

/// Of one record; it makes a pair of each two of them.
pub(super) const MOST_OF_A_RECORD: usize = 16;

/// What one lock covers at most, and how much of that is what was learned first: a device that reports ever new identifiers
/// does not get out by them, whether it does so before its own or after.
pub(crate) const MOST_COVERED: usize = 1024;
pub(crate) const FIRST_COVERED: usize = 256;

/// Pairs in memory before the older half goes: some 20 MB for each half, a fleet of 250,000 with two identifiers each.
pub(super) const PAIRS: usize = 500_000;
const PAIRS_AS_RANKS: i32 = 500_000;
