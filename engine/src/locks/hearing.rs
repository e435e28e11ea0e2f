//! What is heard of the rulings of other services on the same store, and until when that is enough.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use posture::time::UnixTime;
use store::{Changes, DecisionId, Heard, Mark, Ruling, RulingKind, Rulings};
use tokio::time::Instant;

/// What is known of the changes that other services make.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    pub(super) heard: Heard,
    /// Rulings that the store was heard to have. What was made here is among them once that is heard.
    pub(super) known: BTreeSet<DecisionId>,
    /// Rulings that were taken back here, until the store is heard to have forgotten them: news that were read before have them
    /// still, and an exemption must not hold again for a moment.
    pub(super) taken_back: BTreeSet<DecisionId>,
    /// Rulings that were written or forgotten here with success, and of which that is not heard yet: a server that goes back a little
    /// may have lost just that.
    written: BTreeSet<DecisionId>,
    /// Moment up to which the rulings of others are known, and how long that is enough; `None` where nobody else rules.
    fresh: Option<(Instant, Duration)>,
}

/// What news make of the rulings that are known here.
#[derive(Debug, Default)]
pub(super) struct Heeded {
    /// Rulings that hold, whether they are here already or not.
    pub(super) made: Vec<Ruling>,
    /// Identifiers that locks cover besides their own.
    pub(super) covered: Vec<(DecisionId, Mark)>,
    /// Rulings that hold no more.
    pub(super) gone: BTreeSet<DecisionId>,
    /// Locks that the store has lost, and that are to be written again.
    pub(super) lost: Vec<Arc<Ruling>>,
}

impl Hearing {
    /// Begins with all rulings of a store, which were read at `asked` or later. `limit`: how long that is enough; `None` where
    /// nobody else rules.
    pub(super) fn of(all: &Rulings, asked: Instant, limit: Option<Duration>) -> Self {
        let known = all.rulings.iter().map(|ruling| ruling.id).collect();
        Self { heard: all.heard, known, fresh: limit.map(|limit| (asked, limit)), ..Self::default() }
    }

    /// Heeds changes, of which `heard` is the last.
    pub(super) fn heed(&mut self, heard: Heard, changes: Changes) -> Heeded {
        let Changes { made, covered, forgotten } = changes;
        self.heard = heard;
        let made = self.still_made(made);
        for id in &forgotten {
            self.known.remove(id);
            self.taken_back.remove(id);
            self.written.remove(id);
        }
        Heeded { made, covered, gone: forgotten.into_iter().collect(), lost: Vec::new() }
    }

    /// Heeds all rulings of a store, in the place of those that are `here`. What was made here and is not written yet stays: it is
    /// owed, or it was never heard of.
    pub(super) fn heed_all<'r>(
        &mut self,
        all: Rulings,
        here: impl Iterator<Item = &'r Arc<Ruling>>,
        is_owed: impl Fn(DecisionId) -> bool,
        now: UnixTime,
    ) -> Heeded {
        let Rulings { heard, rulings, covered, went_back, forgotten } = all;
        self.heard = heard;
        let there: BTreeSet<_> = rulings.iter().map(|ruling| ruling.id).collect();
        let forgotten: BTreeSet<_> = forgotten.into_iter().collect();
        self.taken_back.retain(|id| !forgotten.contains(id));
        self.written.retain(|id| !forgotten.contains(id));
        let (mut gone, mut lost) = (BTreeSet::new(), Vec::new());
        for ruling in here.filter(|ruling| !there.contains(&ruling.id)) {
            let was_there = self.known.contains(&ruling.id);
            // Also one that was written here a moment ago, of which nobody heard.
            if went_back && ruling.kind == RulingKind::Lock && !forgotten.contains(&ruling.id) {
                lost.push(Arc::clone(ruling));
                continue;
            }
            // The store remembers for a day what was taken back. An exemption that is neither there nor about to be written must
            // not hold for longer; a lock is on the safe side.
            let is_old = || ruling.kind == RulingKind::Exemption && ruling.made_at.saturating_add(LONG_WRITTEN) < now;
            if was_there || forgotten.contains(&ruling.id) || (is_old() && !is_owed(ruling.id)) {
                gone.insert(ruling.id);
            }
        }
        self.known = there;
        Heeded { made: self.still_made(rulings), covered, gone, lost }
    }

    /// Notes that the store has these rulings; returns those that were not taken back here.
    fn still_made(&mut self, mut made: Vec<Ruling>) -> Vec<Ruling> {
        made.retain(|ruling| !self.taken_back.contains(&ruling.id));
        for ruling in &made {
            self.known.insert(ruling.id);
            self.written.remove(&ruling.id);
        }
        made
    }

    /// Notes that the store has taken what was made or taken back here, unless that was heard already.
    pub(super) fn wrote(&mut self, ids: &[DecisionId]) {
        if self.fresh.is_some() {
            self.written.extend(ids.iter().filter(|id| self.taken_back.contains(id) || !self.known.contains(id)));
        }
    }

    /// What was written before a look that begins now.
    pub(super) fn written(&self) -> BTreeSet<DecisionId> {
        self.written.clone()
    }

    /// Of what was written before a look, that of which the look, which is complete, did not hear: the store has lost it.
    pub(super) fn take_lost(&mut self, before: &BTreeSet<DecisionId>) -> BTreeSet<DecisionId> {
        let lost = self.written.intersection(before).copied().collect();
        self.written.retain(|id| !before.contains(id));
        lost
    }

    /// Notes that rulings are taken back here.
    pub(super) fn take_back(&mut self, ids: &[DecisionId]) {
        if self.fresh.is_some() {
            self.taken_back.extend(ids);
        }
    }

    /// Notes that what others ruled until this moment is known.
    pub(super) fn knows_until(&mut self, moment: Instant) {
        if let Some((fresh, _)) = &mut self.fresh {
            *fresh = moment;
        }
    }

    /// The time since which nothing is known of what others rule; `None` where nobody else rules.
    pub(super) fn silence(&self) -> Option<Duration> {
        self.fresh.map(|(since, _)| since.elapsed())
    }

    /// Whether nothing is known for longer than is enough.
    pub(super) fn is_stale(&self) -> bool {
        self.fresh.is_some_and(|(since, limit)| since.elapsed() > limit)
    }
}

/// Time after which the store has taken a ruling, or owes it.
const LONG_WRITTEN: Duration = Duration::from_secs(3600);
