//! Which identifiers stood in one record, and which of them a lock covers by that.
//!
//! A lock is on one identifier; the next request may state another one of the same device, to a provider that does not know
//! the first. So what was once learned is remembered, as digests: texts would be names of people's devices that nobody asked
//! to keep.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use posture::identity::{DeviceId, IdentifierKind};
use sha2::{Digest as _, Sha256};

use super::{Ruling, RulingKind, key};
use crate::store::DecisionId;

/// Digest of an identifier and its kind: the first 64 bits of SHA-256. Two that are equal by chance lock a device too many,
/// once in 10^9 fleets of a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Mark(pub(crate) i64);

impl Mark {
    /// Of an identifier in any form; `None`: of no kind that requests state.
    pub(crate) fn of(kind: Option<IdentifierKind>, text: &str) -> Self {
        let kind = kind.map_or("", IdentifierKind::as_str);
        let digest: [u8; 32] = Sha256::new().chain_update(kind).chain_update([0]).chain_update(&*key(text)).finalize().into();
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
    young: BTreeSet<(Mark, Mark)>,
    old: BTreeSet<(Mark, Mark)>,
}

impl Pairs {
    /// Whether the pair has to be kept again: it is new, or was not seen for long.
    pub(super) fn see(&mut self, pair: (Mark, Mark)) -> bool {
        if self.young.contains(&pair) {
            return false;
        }
        if self.young.len() >= PAIRS {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&pair);
        self.young.insert(pair)
    }

    /// The pair was not kept: it has to be tried again when it is seen again, and holds meanwhile.
    pub(super) fn not_kept(&mut self, pair: (Mark, Mark)) {
        if self.young.remove(&pair) && self.old.len() < PAIRS {
            self.old.insert(pair);
        }
    }

    /// What stood in one record with any of these.
    pub(super) fn partners<'m>(&'m self, of: &'m [Mark]) -> impl Iterator<Item = Mark> + 'm {
        let from = |mark: Mark| (mark, Mark(i64::MIN))..=(mark, Mark(i64::MAX));
        of.iter().flat_map(move |mark| self.young.range(from(*mark)).chain(self.old.range(from(*mark)))).map(|(_, partner)| *partner)
    }

    /// All of them, those that were seen last first.
    pub(super) fn all(&self) -> Vec<(Mark, Mark)> {
        self.young.iter().chain(&self.old).copied().collect()
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
    sizes: BTreeMap<DecisionId, usize>,
}

impl Covers {
    pub(super) fn is_empty(&self) -> bool {
        self.by_mark.is_empty()
    }

    /// Adds to what a lock covers, up to [`MOST_COVERED`]; returns what is new.
    pub(super) fn add(&mut self, lock: &Arc<Ruling>, marks: impl IntoIterator<Item = Mark>) -> Vec<Mark> {
        let mut new = Vec::new();
        let size = self.sizes.entry(lock.id).or_default();
        for mark in marks {
            let locks = self.by_mark.entry(mark).or_default();
            if *size < MOST_COVERED && locks.iter().all(|other| other.id != lock.id) {
                locks.push(Arc::clone(lock));
                *size += 1;
                new.push(mark);
            }
            if locks.is_empty() {
                self.by_mark.remove(&mark);
            }
        }
        new
    }

    /// The locks that cover any of these.
    pub(super) fn of<'c>(&'c self, marks: &'c [Mark]) -> impl Iterator<Item = &'c Arc<Ruling>> {
        marks.iter().filter_map(|mark| self.by_mark.get(mark)).flatten()
    }

    /// Leaves the covers of these locks only.
    pub(super) fn retain(&mut self, keep: impl Fn(&Ruling) -> bool) {
        let Self { by_mark, sizes } = self;
        by_mark.retain(|_, locks| {
            locks.retain(|lock| {
                let kept = keep(lock);
                if !kept {
                    sizes.remove(&lock.id);
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

/// What one lock covers at most, what was learned first: a device that reports ever new identifiers does not get out by them.
const MOST_COVERED: usize = 256;

/// Pairs in memory before the older half goes: some 13 MB for each half, a fleet of 250,000 with two identifiers each.
const PAIRS: usize = 500_000;
