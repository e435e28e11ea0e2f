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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn now() -> UnixTime {
        UnixTime::from_nanos(1_000_000_000_000_000_000)
    }

    fn made(kind: RulingKind, age: Duration) -> Arc<Ruling> {
        Arc::new(Ruling::new(kind, None, "A", "a reason", "uid 0", now().saturating_sub(age), None))
    }

    fn lock() -> Arc<Ruling> {
        made(RulingKind::Lock, Duration::ZERO)
    }

    fn all(rulings: &[&Arc<Ruling>]) -> Rulings {
        Rulings { rulings: rulings.iter().map(|ruling| Ruling::clone(ruling)).collect(), ..Rulings::default() }
    }

    fn hearing(limit: Option<Duration>) -> Hearing {
        Hearing::of(&Rulings::default(), Instant::now(), limit)
    }

    #[test]
    fn what_the_store_has_no_more_is_gone_or_lost_or_stays() {
        const JUST: Duration = LONG_WRITTEN;
        const OLD: Duration = LONG_WRITTEN.saturating_add(Duration::from_nanos(1));
        const NONE: Duration = Duration::ZERO;
        use RulingKind::{Exemption, Lock};
        for (kind, age, known, forgotten, went_back, owed, expected) in [
            (Lock, NONE, false, false, false, false, "stays"),
            (Lock, OLD, false, false, false, false, "stays"),
            (Lock, NONE, true, false, false, false, "gone"),
            (Lock, NONE, true, false, false, true, "gone"),
            (Lock, NONE, false, true, false, false, "gone"),
            (Lock, NONE, false, false, true, false, "lost"),
            (Lock, NONE, true, false, true, false, "lost"),
            (Lock, NONE, true, true, true, false, "gone"),
            (Exemption, NONE, false, false, false, false, "stays"),
            (Exemption, JUST, false, false, false, false, "stays"),
            (Exemption, OLD, false, false, false, false, "gone"),
            (Exemption, OLD, false, false, false, true, "stays"),
            (Exemption, OLD, true, false, false, true, "gone"),
            (Exemption, NONE, true, false, false, false, "gone"),
            (Exemption, NONE, false, true, false, false, "gone"),
            (Exemption, NONE, false, false, true, false, "stays"),
            (Exemption, NONE, true, false, true, false, "gone"),
        ] {
            let (ruling, other) = (made(kind, age), lock());
            let before = if known { all(&[&ruling]) } else { Rulings::default() };
            let mut hearing = Hearing::of(&before, Instant::now(), Some(LIMIT));
            let there = Rulings { went_back, forgotten: if forgotten { vec![ruling.id] } else { Vec::new() }, ..all(&[&other]) };
            let heeded = hearing.heed_all(there, [&other, &ruling].into_iter(), |id| owed && id == ruling.id, now());
            let (gone, lost): (Vec<_>, Vec<_>) = (heeded.gone.into_iter().collect(), heeded.lost.iter().map(|lock| lock.id).collect());
            let got = match (&gone[..], &lost[..]) {
                ([], []) => "stays",
                ([id], []) if *id == ruling.id => "gone",
                ([], [id]) if *id == ruling.id => "lost",
                _ => "something else",
            };
            assert_eq!(got, expected, "{kind:?} {age:?} known {known} forgotten {forgotten} went back {went_back} owed {owed}");
            assert_eq!(heeded.made.iter().map(|ruling| ruling.id).collect::<Vec<_>>(), [other.id], "what is there is made");
            assert_eq!(hearing.known, BTreeSet::from([other.id]));
        }
    }

    #[test]
    fn what_was_taken_back_here_is_not_made_until_the_store_has_forgotten_it() {
        for at_once in [false, true] {
            let (taken_back, other) = (lock(), lock());
            let mut hearing = hearing(Some(LIMIT));
            hearing.take_back(&[taken_back.id]);
            hearing.wrote(&[taken_back.id]);
            let mut heed = |rulings: &[&Arc<Ruling>], forgotten: Vec<DecisionId>| {
                let Rulings { rulings, .. } = all(rulings);
                let heeded = if at_once {
                    hearing.heed_all(Rulings { rulings, forgotten, ..Rulings::default() }, [].into_iter(), |_| false, now())
                } else {
                    hearing.heed(Heard::default(), Changes { made: rulings, forgotten, covered: Vec::new() })
                };
                let made: Vec<_> = heeded.made.iter().map(|ruling| ruling.id).collect();
                (made, hearing.taken_back.len(), hearing.written().len())
            };
            assert_eq!(heed(&[&taken_back, &other], Vec::new()), (vec![other.id], 1, 1));
            assert_eq!(heed(&[], vec![other.id]), (Vec::new(), 1, 1), "another one was forgotten");
            assert_eq!(heed(&[], vec![taken_back.id]), (Vec::new(), 0, 0));
            assert_eq!(heed(&[&taken_back], Vec::new()), (vec![taken_back.id], 0, 0));
        }
    }

    #[test]
    fn what_was_written_and_not_heard_of_by_a_whole_look_is_lost() {
        let (heard_of, unheard, taken_back, later) = (lock(), lock(), lock(), lock());
        let ids = |rulings: &[&Arc<Ruling>]| rulings.iter().map(|ruling| ruling.id).collect::<Vec<_>>();
        let set = |rulings: &[&Arc<Ruling>]| ids(rulings).into_iter().collect::<BTreeSet<_>>();
        let mut hearing = Hearing::of(&all(&[&heard_of, &taken_back]), Instant::now(), Some(LIMIT));
        hearing.take_back(&ids(&[&taken_back]));
        hearing.wrote(&ids(&[&heard_of, &unheard, &taken_back]));
        let before = hearing.written();
        assert_eq!(before, set(&[&unheard, &taken_back]), "of the other one it was heard already");
        hearing.wrote(&ids(&[&later]));
        let _ = hearing.heed(Heard::default(), Changes { made: vec![Ruling::clone(&unheard)], ..Changes::default() });
        assert_eq!(hearing.take_lost(&before), set(&[&taken_back]));
        assert_eq!(hearing.written(), set(&[&later]), "it was written after the look began");
        assert_eq!(hearing.take_lost(&before), BTreeSet::new(), "it is told once");
    }

    #[test]
    fn nothing_is_noted_for_others_where_nobody_else_rules() {
        let ruling = lock();
        let mut hearing = hearing(None);
        hearing.take_back(&[ruling.id]);
        hearing.wrote(&[ruling.id]);
        hearing.knows_until(Instant::now());
        assert!(hearing.taken_back.is_empty() && hearing.written().is_empty());
        assert_eq!((hearing.silence(), hearing.is_stale()), (None, false));
    }

    #[tokio::test(start_paused = true)]
    async fn news_are_stale_once_they_are_older_than_the_limit() {
        let mut hearing = hearing(Some(LIMIT));
        tokio::time::advance(LIMIT).await;
        assert_eq!((hearing.silence(), hearing.is_stale()), (Some(LIMIT), false));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(hearing.is_stale());
        hearing.knows_until(Instant::now() - LIMIT);
        assert_eq!((hearing.silence(), hearing.is_stale()), (Some(LIMIT), false));
    }
}
