//! Revocations: what events said is no longer so. An event touches nothing in the cache: what was learned before it is not
//! taken for true when it is asked for, and neither is an answer that was on its way.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::mark::Mark;
use super::order::Moment;

/// The standing of what was learned: whether it still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Nothing was heard since.
    Good,
    /// Something may have changed, and nobody said for which device: the service is asked anew. What was asked for since a
    /// request came is as good an answer to that request as there is, however many such events come meanwhile.
    Stirred,
    /// The device may have changed: the service is asked anew, and the record is as good as any old one where nobody can say.
    Dropped,
    /// The record is void: only the inventory itself can say what is so now.
    Revoked,
}

/// Events by what they mean, and identifiers by which the service was asked and knew nothing.
#[derive(Debug)]
pub(super) struct Revocations {
    inner: Mutex<Inner>,
    most: usize,
}

#[derive(Debug)]
struct Inner {
    /// Moment of the last event, or of the last question that found nothing.
    newest: Moment,
    /// Time of the last event; before any, the start of this memory, since what an earlier cache was told is not known here.
    last: Instant,
    /// The last event of each device, and the last one that revoked.
    events: HashMap<Mark, Event>,
    /// The last event about everything; events for which there was no room count as such.
    everything: Event,
    /// Moment of the last question by each identifier that was not found: an older record that has the identifier is void.
    unfound: HashMap<Mark, Moment>,
    /// The same questions, oldest first, so that guessing cannot fill the memory.
    unfound_order: VecDeque<(Mark, Moment)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Event {
    at: Moment,
    revoked_at: Moment,
}

impl Revocations {
    /// Revocations of at most `most` devices; beyond that, an event counts for all of them.
    pub(super) fn new(most: usize) -> Self {
        let inner = Inner {
            newest: Moment::default(),
            last: Instant::now(),
            events: HashMap::new(),
            everything: Event::default(),
            unfound: HashMap::new(),
            unfound_order: VecDeque::new(),
        };
        Self { inner: Mutex::new(inner), most }
    }

    /// Time of the last event.
    pub(super) fn last(&self) -> Instant {
        self.lock().last
    }

    /// Takes an event about one device; `None`: about everything.
    pub(super) fn add(&self, mark: Option<Mark>, revoking: bool, at: Moment) {
        let mut inner = self.lock();
        inner.last = Instant::now();
        inner.newest = inner.newest.max(at);
        let full = inner.events.len() >= self.most;
        let event = match mark {
            Some(mark) if !full || inner.events.contains_key(&mark) => inner.events.entry(mark).or_default(),
            Some(_) => {
                // An event that is forgotten here may have revoked.
                inner.events.clear();
                inner.everything.revoked_at = inner.newest;
                &mut inner.everything
            }
            None => &mut inner.everything,
        };
        event.at = event.at.max(at);
        if revoking {
            event.revoked_at = event.revoked_at.max(at);
        }
    }

    /// Notes that the service was asked by an identifier at this moment, and has no such device. `mark` is that of the
    /// question, with the kind of identifier: that there is no device called `X` of one kind says nothing of one of another
    /// kind.
    pub(super) fn not_found(&self, mark: Mark, asked: Moment) {
        let mut inner = self.lock();
        inner.newest = inner.newest.max(asked);
        inner.unfound.insert(mark, asked);
        inner.unfound_order.push_back((mark, asked));
        while inner.unfound_order.len() > UNFOUND {
            if let Some((oldest, at)) = inner.unfound_order.pop_front()
                && inner.unfound.get(&oldest) == Some(&at)
            {
                inner.unfound.remove(&oldest);
            }
        }
    }

    /// Whether the service was asked by this identifier after that moment, and had no such device.
    pub(super) fn unfound_since(&self, mark: Mark, moment: Moment) -> bool {
        self.lock().unfound.get(&mark).is_some_and(|asked| *asked > moment)
    }

    /// Standing of what was learned at this moment about a device with these marks.
    pub(super) fn standing(&self, learned: Moment, marks: impl Iterator<Item = Mark>) -> Standing {
        let inner = self.lock();
        if inner.newest <= learned {
            return Standing::Good;
        }
        let of = |event: &Event, told: Standing| {
            if event.revoked_at > learned {
                Standing::Revoked
            } else if event.at > learned {
                told
            } else {
                Standing::Good
            }
        };
        let of_mark = |mark: Mark| {
            let unfound = inner.unfound.get(&mark).is_some_and(|asked| *asked > learned);
            if unfound { Standing::Revoked } else { inner.events.get(&mark).map_or(Standing::Good, |event| of(event, Standing::Dropped)) }
        };
        marks.map(of_mark).fold(of(&inner.everything, Standing::Stirred), Ord::max)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Identifiers that were not found and are remembered, at most, for the sake of records that have them.
const UNFOUND: usize = 200_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(text: &str) -> Mark {
        Mark::identifier(text)
    }

    struct Stand {
        revocations: Revocations,
    }

    impl Stand {
        fn new(most: usize) -> Self {
            Self { revocations: Revocations::new(most) }
        }

        fn now(&self) -> Moment {
            Moment::now()
        }

        fn add(&self, mark: Option<Mark>, revoking: bool) {
            self.revocations.add(mark, revoking, self.now());
        }

        fn standing(&self, learned: Moment, text: &str) -> Standing {
            self.revocations.standing(learned, [mark(text)].into_iter())
        }
    }

    #[test]
    fn what_was_learned_before_an_event_does_not_count_and_after_it_does() {
        let stand = Stand::new(10);
        let before = stand.now();
        assert_eq!(stand.standing(before, "a"), Standing::Good);
        stand.add(Some(mark("A")), false);
        assert_eq!(stand.standing(before, "a"), Standing::Dropped);
        assert_eq!(stand.standing(before, "b"), Standing::Good);
        assert_eq!(stand.standing(stand.now(), "a"), Standing::Good);
        stand.add(Some(mark("a")), true);
        stand.add(Some(mark("a")), false);
        assert_eq!(stand.standing(before, "a"), Standing::Revoked, "a later event takes nothing back");
    }

    #[test]
    fn an_event_about_everything_counts_for_all() {
        let stand = Stand::new(10);
        let before = stand.now();
        stand.add(None, true);
        assert_eq!(stand.standing(before, "a"), Standing::Revoked);
        assert_eq!(stand.standing(stand.now(), "a"), Standing::Good);
    }

    #[test]
    fn a5_an_event_that_comes_late_takes_nothing_back_where_there_is_no_room() {
        let stand = Stand::new(1);
        let late = stand.now();
        let learned = stand.now();
        stand.add(Some(mark("a")), true);
        stand.revocations.add(Some(mark("b")), true, late);
        assert_eq!(stand.standing(learned, "a"), Standing::Revoked);
    }

    #[test]
    fn more_events_than_there_is_room_for_count_for_all() {
        let stand = Stand::new(2);
        let before = stand.now();
        for text in ["a", "b", "c"] {
            stand.add(Some(mark(text)), false);
        }
        for text in ["a", "c", "d"] {
            assert_eq!(stand.standing(before, text), Standing::Revoked);
        }
        let after = stand.now();
        assert_eq!(stand.standing(after, "a"), Standing::Good);
        stand.add(Some(mark("e")), false);
        assert_eq!(stand.standing(after, "e"), Standing::Dropped, "there is room again");
        assert_eq!(stand.standing(after, "a"), Standing::Good);
    }

    #[test]
    fn what_was_asked_for_later_and_not_found_ends_an_older_record_that_has_the_identifier() {
        let stand = Stand::new(10);
        let (before, asked, after) = (stand.now(), stand.now(), stand.now());
        stand.revocations.not_found(mark("a"), asked);
        assert_eq!(stand.standing(before, "a"), Standing::Revoked);
        assert_eq!(stand.standing(before, "b"), Standing::Good);
        assert_eq!(stand.standing(after, "a"), Standing::Good, "it was asked for after that, though that may have been answered last");
    }

    #[test]
    fn guessing_fills_no_memory() {
        let stand = Stand::new(10);
        let before = stand.now();
        for number in 0..UNFOUND + 10 {
            stand.revocations.not_found(mark(&format!("g{number}")), stand.now());
        }
        assert_eq!(stand.revocations.lock().unfound.len(), UNFOUND);
        assert_eq!(stand.standing(before, "g9"), Standing::Good);
        assert_eq!(stand.standing(before, "g10"), Standing::Revoked);
    }

    #[test]
    fn only_what_was_asked_before_is_unfound_since() {
        let stand = Stand::new(10);
        let (before, asked, after) = (stand.now(), stand.now(), stand.now());
        stand.revocations.not_found(mark("a"), asked);
        let unfound = |text, moment| stand.revocations.unfound_since(mark(text), moment);
        assert!(unfound("a", before) && !unfound("a", after) && !unfound("b", before));
    }
}
