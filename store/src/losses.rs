//! Decisions that were made but not kept.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A counter of decisions that were made but not kept.
pub trait Dropped: std::fmt::Debug + Send + Sync {
    /// Counts further decisions that were not kept.
    fn add(&self, decisions: u64);
}

impl Dropped for AtomicU64 {
    fn add(&self, decisions: u64) {
        self.fetch_add(decisions, Ordering::Relaxed);
    }
}

/// Decisions that were not kept: each is counted, and the log tells of them once a minute at most.
#[derive(Debug)]
pub(crate) struct Losses {
    dropped: Arc<dyn Dropped>,
    /// Number of lost decisions since the start.
    count: AtomicU64,
    last: Mutex<Option<Instant>>,
    unsaid: AtomicU64,
    /// Number of decisions that wait for a server that is away, and why.
    waiting: Mutex<Option<(usize, String)>>,
    /// Moment and reason of the last loss; cleared once decisions are kept again.
    current: Mutex<Option<(Instant, String)>>,
}

impl Losses {
    pub(crate) fn new(dropped: Arc<dyn Dropped>) -> Self {
        Self {
            dropped,
            count: AtomicU64::new(0),
            last: Mutex::default(),
            unsaid: AtomicU64::new(0),
            waiting: Mutex::default(),
            current: Mutex::default(),
        }
    }

    /// Notes that decisions are written. A loss within the last minute still counts as the current state.
    pub(crate) fn kept(&self) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|(last, _)| last.elapsed() >= SAY_AGAIN) {
            *current = None;
            tracing::info!("decisions are kept again");
        }
    }

    /// Notes how many decisions wait for a server that is away, and why; none do any more where there is no number.
    pub(crate) fn waiting(&self, wait: Option<(usize, String)>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*waiting, &wait) {
            (None, Some((_, why))) => tracing::warn!(why, "decisions are made, and wait to be kept until the server of the store is back"),
            (Some(_), None) => tracing::info!("no decisions wait for the server of the store any more"),
            _ => {}
        }
        *waiting = wait;
    }

    /// The message that decisions are not kept, or not yet, with the reason; `None` while they are.
    pub(crate) fn trouble(&self) -> Option<String> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let waiting = waiting.map(|(decisions, why)| format!("{decisions} decisions wait to be kept: {why}"));
        self.lost_lately().or(waiting)
    }

    fn lost_lately(&self) -> Option<String> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, why) = current.as_ref()?;
        let lost = self.count.load(Ordering::Relaxed);
        Some(format!("decisions are made and not kept, {lost} since the start: {why}"))
    }

    pub(crate) fn lost(&self, count: u64, why: &str) {
        self.count.fetch_add(count, Ordering::Relaxed);
        self.dropped.add(count);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), why.to_owned()));
        self.unsaid.fetch_add(count, Ordering::Relaxed);
        // The holder of the lock logs this loss as well.
        let Ok(mut last) = self.last.try_lock() else { return };
        if last.is_none_or(|last| last.elapsed() >= SAY_AGAIN) {
            *last = Some(Instant::now());
            let decisions = self.unsaid.swap(0, Ordering::Relaxed);
            tracing::error!(decisions, why, "decisions are not kept; they are made all the same");
        }
    }
}

/// Shortest time between two log lines about lost decisions.
const SAY_AGAIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e10_that_decisions_are_not_kept_is_said_until_they_are() {
        let losses = Losses::new(Arc::<AtomicU64>::default());
        assert_eq!(losses.trouble(), None);
        losses.lost(3, "the disk of the store is full");
        losses.kept();
        assert!(losses.trouble().unwrap().ends_with("3 since the start: the disk of the store is full"), "a moment ago it was so");
        losses.current.lock().unwrap().as_mut().unwrap().0 -= SAY_AGAIN;
        assert!(losses.trouble().is_some(), "nothing was kept since");
        losses.kept();
        assert_eq!(losses.trouble(), None);
    }
}
