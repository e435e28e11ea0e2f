//! What events said is no longer so. Nothing in the cache is touched when one comes: what was learned before it is not
//! taken for true when it is asked for, and neither is an answer that was on its way.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::entry::Mark;

/// Whether something that was learned still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Nothing was heard since.
    Good,
    /// It may have changed: it is asked for anew, and is as good as any old record where nobody can say.
    Dropped,
    /// It is not so any more: only the inventory itself can say what is.
    Revoked,
}

/// Events by what they mean.
#[derive(Debug)]
pub(super) struct Revocations {
    inner: Mutex<Inner>,
    most: usize,
}

#[derive(Debug)]
struct Inner {
    generation: u64,
    /// When the last event came; before any, when this began: what a cache before it was told is not known here.
    last: Instant,
    /// The last event of each device: when it came, and the last one that revoked.
    events: HashMap<Mark, Event>,
    /// What an event about everything says; also where there was no room for more of them.
    everything: Event,
}

#[derive(Clone, Copy, Debug, Default)]
struct Event {
    at: u64,
    revoked_at: u64,
}

impl Revocations {
    /// With room for so many devices; beyond it, an event counts for all of them.
    pub(super) fn new(most: usize) -> Self {
        let inner = Inner { generation: 0, last: Instant::now(), events: HashMap::new(), everything: Event::default() };
        Self { inner: Mutex::new(inner), most }
    }

    /// How many events have come.
    pub(super) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// When the last event came.
    pub(super) fn last(&self) -> Instant {
        self.lock().last
    }

    /// An event about one device, or about everything.
    pub(super) fn add(&self, mark: Option<Mark>, revoking: bool) {
        let mut inner = self.lock();
        inner.last = Instant::now();
        inner.generation = inner.generation.saturating_add(1);
        let generation = inner.generation;
        let full = inner.events.len() >= self.most;
        let event = match mark {
            Some(mark) if !full || inner.events.contains_key(&mark) => inner.events.entry(mark).or_default(),
            Some(_) => {
                // The events that are forgotten here may have revoked.
                inner.events.clear();
                inner.everything.revoked_at = generation;
                &mut inner.everything
            }
            None => &mut inner.everything,
        };
        event.at = generation;
        if revoking {
            event.revoked_at = generation;
        }
    }

    /// How something stands that was learned at `generation` about a device with these marks.
    pub(super) fn standing(&self, generation: u64, marks: impl Iterator<Item = Mark>) -> Standing {
        let inner = self.lock();
        if inner.generation <= generation {
            return Standing::Good;
        }
        let of = |event: &Event| {
            if event.revoked_at > generation {
                Standing::Revoked
            } else if event.at > generation {
                Standing::Dropped
            } else {
                Standing::Good
            }
        };
        marks.filter_map(|mark| inner.events.get(&mark)).map(of).fold(of(&inner.everything), Ord::max)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(text: &str) -> Mark {
        Mark::identifier(text)
    }

    #[test]
    fn what_was_learned_before_an_event_does_not_count_and_after_it_does() {
        let revocations = Revocations::new(10);
        let standing = |generation, text| revocations.standing(generation, [mark(text)].into_iter());
        let before = revocations.generation();
        assert_eq!(standing(before, "a"), Standing::Good);
        revocations.add(Some(mark("A")), false);
        assert_eq!(standing(before, "a"), Standing::Dropped);
        assert_eq!(standing(before, "b"), Standing::Good);
        assert_eq!(standing(revocations.generation(), "a"), Standing::Good);
        revocations.add(Some(mark("a")), true);
        revocations.add(Some(mark("a")), false);
        assert_eq!(standing(before, "a"), Standing::Revoked, "a later event takes nothing back");
    }

    #[test]
    fn an_event_about_everything_counts_for_all() {
        let revocations = Revocations::new(10);
        revocations.add(None, true);
        assert_eq!(revocations.standing(0, [mark("a")].into_iter()), Standing::Revoked);
        assert_eq!(revocations.standing(1, [mark("a")].into_iter()), Standing::Good);
    }

    #[test]
    fn more_events_than_there_is_room_for_count_for_all() {
        let revocations = Revocations::new(2);
        for text in ["a", "b", "c"] {
            revocations.add(Some(mark(text)), false);
        }
        let standing = |generation, text| revocations.standing(generation, [mark(text)].into_iter());
        for text in ["a", "c", "d"] {
            assert_eq!(standing(0, text), Standing::Revoked);
        }
        assert_eq!(standing(3, "a"), Standing::Good);
        revocations.add(Some(mark("e")), false);
        assert_eq!(standing(3, "e"), Standing::Dropped, "there is room again");
        assert_eq!(standing(3, "a"), Standing::Good);
    }
}
