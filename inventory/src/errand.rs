//! One call of the cache to a service, as the sender of its requests sees it: the device it is made for, its number of requests,
//! and how long the service left it without an answer.
//!
//! An [`Errand`] belongs to the task that makes the call, so no provider has to pass it on. A request outside of an errand is for
//! a list, a feed or a probe.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::answer::Unavailable;

tokio::task_local! {
    static CURRENT: Arc<Errand>;
}

/// The device for which a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// A device that was found before.
    Known,
    /// A device that was never found.
    New,
    /// A device that was found before, asked for to see whether the service is well.
    Witness,
}

/// One call to a service, with its device and its time.
#[derive(Debug)]
pub struct Errand {
    whom: Whom,
    requests: AtomicU32,
    time: Mutex<Time>,
    clock: watch::Sender<Clock>,
    /// The one place beyond `connections` that the call may have.
    beyond: Arc<Semaphore>,
}

/// How long the service has left a call without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The moment since which the service owes this call an answer; waits for a place are not counted. `None`: a request waits
    /// for a place, and none is with the service.
    pub since: Option<Instant>,
    /// Number of requests of this call that were answered.
    pub answers: u32,
}

/// The time that the service has had for an answer.
#[derive(Debug)]
struct Time {
    /// Time before `running` that counts.
    counted: Duration,
    /// Start of the span that counts now; `None`: a request waits for a place, and none is with the service.
    running: Option<Instant>,
    /// Number of requests that wait for a place.
    waiting: usize,
    /// Number of requests that are with the service.
    out: usize,
    /// Whether the call ever waited for a place.
    waited: bool,
    /// The longest time that passed before an answer.
    longest: Duration,
    answers: u32,
}

impl Errand {
    /// Starts a call at `now`.
    pub fn new(whom: Whom, now: Instant) -> Arc<Self> {
        let time =
            Time { counted: Duration::ZERO, running: Some(now), waiting: 0, out: 0, waited: false, longest: Duration::ZERO, answers: 0 };
        let clock = watch::Sender::new(time.clock());
        Arc::new(Self { whom, requests: AtomicU32::new(0), time: Mutex::new(time), clock, beyond: Arc::new(Semaphore::new(1)) })
    }

    /// The call that this task makes.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Runs the call; its requests find this errand by [`Self::current`].
    pub fn run<F: Future>(self: &Arc<Self>, call: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(Arc::clone(self), call)
    }

    /// The device for which the call is made.
    pub const fn whom(&self) -> Whom {
        self.whom
    }

    /// The one place beyond `connections` that the call may have, however many requests it sends: each of two witnesses needs one.
    pub(crate) fn beyond(&self) -> Arc<Semaphore> {
        Arc::clone(&self.beyond)
    }

    /// Counts a request that goes out.
    pub fn sends(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of requests that went out.
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The clock of the call, and its changes.
    pub fn clock(&self) -> watch::Receiver<Clock> {
        self.clock.subscribe()
    }

    /// Marks a request as waiting for a place, until the returned guard is dropped. While a request waits and none is with the
    /// service, no time counts: the service cannot answer what it was not asked.
    pub fn waits(self: &Arc<Self>) -> Waiting {
        self.change(|time| {
            time.waiting += 1;
            time.waited = true;
        });
        Waiting(Arc::clone(self))
    }

    /// Marks a request as with the service, until the returned guard is dropped, and counts it.
    pub fn goes_out(self: &Arc<Self>) -> Out {
        self.sends();
        self.change(|time| time.out += 1);
        Out(Arc::clone(self))
    }

    /// Notes that the service answered a request of another call for which this one waited: it is not silent towards this one.
    pub fn heard(&self) {
        self.change(Time::answered);
    }

    /// The reason why a call that ran out of time has no answer: the service was silent, or the call waited for a place, or took
    /// more requests than there was time for.
    pub fn late(&self) -> Unavailable {
        let time = self.time();
        if (time.waited || time.answers > 0) && time.silence() < STALE_AFTER { Unavailable::Busy } else { Unavailable::Timeout }
    }

    /// Whether the service once left the call without an answer for [`STALE_AFTER`].
    pub fn was_slow(&self) -> bool {
        let time = self.time();
        time.longest.max(time.silence()) >= STALE_AFTER
    }

    fn change(&self, change: impl FnOnce(&mut Time)) {
        let mut time = self.time();
        time.counted = time.silence();
        change(&mut time);
        time.running = (time.waiting == 0 || time.out > 0).then(Instant::now);
        let clock = time.clock();
        drop(time);
        self.clock.send_if_modified(|before| std::mem::replace(before, clock) != clock);
    }

    fn time(&self) -> MutexGuard<'_, Time> {
        self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Time {
    fn answered(&mut self) {
        self.longest = self.longest.max(self.counted);
        self.counted = Duration::ZERO;
        self.answers = self.answers.saturating_add(1);
    }

    /// Time without an answer until now.
    fn silence(&self) -> Duration {
        self.counted + self.running.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn clock(&self) -> Clock {
        let since = self.running.map(|running| running.checked_sub(self.counted).unwrap_or(running));
        Clock { since, answers: self.answers }
    }
}

/// A guard for a request that waits for a place.
#[derive(Debug)]
pub struct Waiting(Arc<Errand>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.change(|time| time.waiting = time.waiting.saturating_sub(1));
    }
}

/// A guard for a request that is with the service.
#[derive(Debug)]
pub struct Out(Arc<Errand>);

impl Out {
    /// Notes that the service answered the request: it is not silent towards this call.
    pub fn answered(&self) {
        self.0.change(Time::answered);
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        self.0.change(|time| time.out = time.out.saturating_sub(1));
    }
}

/// Witnesses that are asked at once, in places beyond `connections`. A service counts as silent where so many have no answer: one
/// alone may be slow by itself.
pub const WITNESSES: usize = 2;

/// Time for which a service may be silent before a caller that can use an old answer gets it.
pub const STALE_AFTER: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use super::*;

    async fn after(millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a12_time_in_which_the_service_has_no_request_of_a_call_is_no_silence() {
        let errand = Errand::new(Whom::Known, Instant::now());
        let silence = || errand.clock().borrow().since.map(|since| since.elapsed().as_millis());
        after(500).await;
        assert_eq!(silence(), Some(500), "before anything else is known");
        let (one, other) = (errand.waits(), errand.waits());
        after(9000).await;
        assert_eq!((silence(), errand.late()), (None, Unavailable::Busy));
        let out = errand.goes_out();
        drop(one);
        after(900).await;
        assert_eq!(silence(), Some(1400), "the other one waits still");
        drop(out);
        assert_eq!((silence(), errand.late(), errand.was_slow()), (None, Unavailable::Busy, false));
        let out = errand.goes_out();
        drop(other);
        after(100).await;
        assert_eq!((silence(), errand.late(), errand.was_slow()), (Some(1500), Unavailable::Timeout, true));
        out.answered();
        assert_eq!((silence(), errand.late(), errand.clock().borrow().answers), (Some(0), Unavailable::Busy, 1));
        drop(out);
        after(1499).await;
        assert_eq!((silence(), errand.was_slow(), errand.requests()), (Some(1499), true, 2), "it was slow once");
    }

    #[tokio::test(start_paused = true)]
    async fn a12_a_call_whose_requests_were_all_answered_is_no_silence() {
        let errand = Errand::new(Whom::Known, Instant::now());
        for _ in 0..3 {
            let out = errand.goes_out();
            after(1000).await;
            out.answered();
        }
        assert_eq!(errand.late(), Unavailable::Busy);
        after(1499).await;
        assert_eq!(errand.late(), Unavailable::Busy);
        after(1).await;
        assert_eq!(errand.late(), Unavailable::Timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn a12_each_answered_request_begins_the_time_anew() {
        let errand = Errand::new(Whom::Witness, Instant::now());
        for _ in 0..5 {
            let out = errand.goes_out();
            after(1400).await;
            out.answered();
        }
        assert!(!errand.was_slow());
        let (first, _second) = (errand.goes_out(), errand.goes_out());
        after(1000).await;
        first.answered();
        after(1400).await;
        assert!(!errand.was_slow(), "one of them was answered");
        after(100).await;
        assert!(errand.was_slow());
    }
}
