//! Links between identifiers and covers of locks, on their way to the database.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::id::DecisionId;
use crate::mark::Mark;

/// Learned rows that wait for the task that writes them.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    waiting: Mutex<Portion>,
    /// A signal that rows wait.
    pub(crate) some: Notify,
}

/// Learned rows that go into one transaction.
#[derive(Debug, Default)]
pub(crate) struct Portion {
    /// Pairs of identifiers that stood in one record.
    pub(crate) pairs: Vec<(Mark, Mark)>,
    /// Identifiers that locks cover besides their own.
    pub(crate) covers: Vec<(DecisionId, Mark)>,
}

impl Portion {
    pub(crate) const fn len(&self) -> usize {
        self.pairs.len().saturating_add(self.covers.len())
    }
}

impl Learned {
    /// Adds to what waits to be written; returns false where the queue is full.
    pub(crate) fn add(&self, add: impl FnOnce(&mut Portion)) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= LEARNED {
            return false;
        }
        add(&mut waiting);
        self.some.notify_one();
        true
    }

    /// Takes at most `most` pairs and `most` covers.
    pub(crate) fn take(&self, most: usize) -> Portion {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (pairs, covers) = (waiting.pairs.len().min(most), waiting.covers.len().min(most));
        Portion { pairs: waiting.pairs.drain(..pairs).collect(), covers: waiting.covers.drain(..covers).collect() }
    }

    /// Puts back rows that could not be written.
    pub(crate) fn put_back(&self, portion: Portion) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.pairs.extend(portion.pairs);
        waiting.covers.extend(portion.covers);
    }
}

/// Most rows that wait, 3 MB; a list of a large inventory may reach it.
pub(crate) const LEARNED: usize = 200_000;
