//! One call of the cache to a service, as whoever sends its requests sees it: for whom it is, how many requests it took, and for how
//! long the service left it without an answer.
//!
//! It goes along with the task that makes the call, so that no provider hands it on. What is sent without one is for a list, a feed
//! or a probe.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Unavailable;

tokio::task_local! {
    static CURRENT: Arc<Errand>;
}

/// One call to a service.
#[derive(Debug)]
pub struct Errand {
    known: bool,
    requests: AtomicU32,
    time: Mutex<Time>,
    /// Since when the service has left the call without an answer, were it asked without a break.
    since: watch::Sender<Instant>,
}

/// How long the service has had for an answer.
#[derive(Debug)]
struct Time {
    /// What counts of the time before `running`.
    counted: Duration,
    running: Instant,
    /// Requests that wait for others to be answered.
    waiting: usize,
    /// Whether some of the time did not count.
    spared: bool,
}

impl Errand {
    /// A call for a device that was found before, or for one that never was.
    pub fn new(known: bool, now: Instant) -> Arc<Self> {
        let time = Time { counted: Duration::ZERO, running: now, waiting: 0, spared: false };
        Arc::new(Self { known, requests: AtomicU32::new(0), time: Mutex::new(time), since: watch::Sender::new(now) })
    }

    /// The call that this task makes.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Makes the call: its requests find it by [`Self::current`].
    pub fn run<F: Future>(self: &Arc<Self>, call: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(Arc::clone(self), call)
    }

    /// Whether the device was found before.
    pub const fn is_known(&self) -> bool {
        self.known
    }

    /// A request goes out.
    pub fn sends(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that went out.
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Since when the service has left the call without an answer, without the time in which it answered others that were before it.
    pub fn since(&self) -> watch::Receiver<Instant> {
        self.since.subscribe()
    }

    /// A request waits for others to be answered, until this is dropped. The time counts as far as none of them is.
    pub fn waits(self: &Arc<Self>) -> Waiting {
        let mut time = self.time();
        if time.waiting == 0 {
            time.counts();
        }
        time.waiting += 1;
        drop(time);
        Waiting(Arc::clone(self))
    }

    /// Why a call that ran out of time has no answer: the service was silent, or it answered others that were before this one.
    pub fn late(&self) -> Unavailable {
        let silent = self.since.borrow().elapsed() >= STALE_AFTER;
        if self.time().spared && !silent { Unavailable::Busy } else { Unavailable::Timeout }
    }

    fn time(&self) -> MutexGuard<'_, Time> {
        self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Time {
    /// What passed until now counts.
    fn counts(&mut self) {
        let now = Instant::now();
        self.counted += now.saturating_duration_since(self.running);
        self.running = now;
    }
}

/// A request of a call waits.
#[derive(Debug)]
pub struct Waiting(Arc<Errand>);

impl Waiting {
    /// The service answered somebody meanwhile, so that it was not silent until now.
    pub fn others_are_answered(&self) {
        let mut time = self.0.time();
        let now = Instant::now();
        time.spared |= now > time.running;
        time.running = now;
        let since = now.checked_sub(time.counted).unwrap_or(now);
        drop(time);
        self.0.since.send_replace(since);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut time = self.0.time();
        time.waiting = time.waiting.saturating_sub(1);
        if time.waiting == 0 {
            time.counts();
        }
    }
}

/// How long a service may be silent until whoever could have an old answer has it.
pub const STALE_AFTER: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use super::*;

    async fn after(millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a12_a_wait_counts_from_when_somebody_was_answered_last() {
        let errand = Errand::new(true, Instant::now());
        let silence = || errand.since().borrow().elapsed().as_millis();
        after(500).await;
        let (one, other) = (errand.waits(), errand.waits());
        after(1000).await;
        assert_eq!((silence(), errand.late()), (1500, Unavailable::Timeout), "nobody was answered");
        one.others_are_answered();
        assert_eq!((silence(), errand.late()), (500, Unavailable::Busy));
        drop(one);
        after(600).await;
        other.others_are_answered();
        assert_eq!(silence(), 500, "the other one waits still");
        after(200).await;
        drop(other);
        after(300).await;
        assert_eq!((silence(), errand.late()), (1000, Unavailable::Busy));
        drop(errand.waits());
        after(500).await;
        assert_eq!((silence(), errand.late()), (1500, Unavailable::Timeout));
    }
}
