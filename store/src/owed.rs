//! Changes of rulings that the database has not taken yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::id::DecisionId;
use crate::mark::Mark;
use crate::ruling::{Ruling, RulingKind};

/// Changes that the store has yet to take, so that a start finds the rulings that hold now. The number of rulings bounds theirs.
#[derive(Debug, Default)]
pub(crate) struct Owed {
    pub(crate) changes: BTreeMap<DecisionId, Change>,
    /// Reason of the last attempt that failed or took too long; empty where none has since nothing was owed.
    pub(crate) why: String,
}

/// The change that the store has yet to make to a ruling. A forgotten ruling is never kept again: each ruling has an id of its
/// own.
#[derive(Debug)]
pub(crate) enum Change {
    /// The ruling is to be kept, with what it covers.
    Keep(Arc<Ruling>, Vec<Mark>),
    /// The ruling is to be deleted.
    Forget,
}

/// The changes that are written next.
pub(crate) enum Next {
    Forget(Vec<DecisionId>),
    Keep(Arc<Ruling>, Vec<Mark>),
}

impl Owed {
    /// The changes to write next. Forgotten rulings go first, all at once: that makes room.
    pub(crate) fn next(&self) -> Option<Next> {
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

    pub(crate) fn written(&mut self, written: &Next) {
        let was_told = !self.why.is_empty();
        match written {
            Next::Forget(ids) => {
                ids.iter().for_each(|id| drop(self.changes.remove(id)));
                if was_told {
                    tracing::info!(rulings = ids.len(), "the store has forgotten what was taken back");
                }
            }
            // The ruling may have been taken back meanwhile, and that is still to be written.
            Next::Keep(ruling, covered) => {
                if let Some(Change::Keep(_, known)) = self.changes.get_mut(&ruling.id) {
                    // The lock may have come to cover more while it was written.
                    let written: BTreeSet<_> = covered.iter().collect();
                    known.retain(|mark| !written.contains(mark));
                    if known.is_empty() {
                        self.changes.remove(&ruling.id);
                        if was_told {
                            tracing::info!(kind = ruling.kind.as_str(), device = ruling.device, id = %ruling.id, "the ruling is kept now");
                        }
                    }
                }
            }
        }
        if self.changes.is_empty() {
            self.why.clear();
        }
    }

    /// Number of owed changes, once a failure was reported: changes that are only being written count for nothing.
    pub(crate) fn said(&self) -> usize {
        if self.why.is_empty() { 0 } else { self.changes.len() }
    }

    pub(crate) fn trouble(&self) -> Option<String> {
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
