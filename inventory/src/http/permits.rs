//! Places for requests to a service: as many at once as it takes, some of them kept for known devices whatever else waits.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures::poll;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::sleep;

use crate::errand::{Errand, Out, WITNESSES, Whom};

/// The places for requests to one service.
#[derive(Debug)]
pub(super) struct Permits {
    all: Semaphore,
    /// Places that requests for unknown devices may take of `all`.
    strangers: Semaphore,
    /// Places that requests for no device may take of `all`: lists, feeds and probes.
    lists: Semaphore,
    /// Places beyond `all`, for witnesses.
    beyond: Semaphore,
    /// Places of `beyond` that a known device may take which waited for [`PATIENT`].
    patient: Semaphore,
    /// Whether `all` has a single place, beside which lists have another.
    one: bool,
}

/// A place, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    /// The request's time with the service; `None`: no call of the cache sent it.
    out: Option<Out>,
    _held: Held<'a>,
}

type Held<'a> = ([Option<SemaphorePermit<'a>>; 2], Option<OwnedSemaphorePermit>);

impl Permits {
    pub(super) fn new(connections: usize) -> Self {
        let all = connections.max(1);
        let kept = if all > 1 { (all / 4).max(1) } else { 0 };
        Self {
            all: Semaphore::new(all),
            strangers: Semaphore::new(all - kept),
            lists: Semaphore::new((all / 2).max(1)),
            beyond: Semaphore::new(WITNESSES),
            patient: Semaphore::new(WITNESSES - 1),
            one: all == 1,
        }
    }

    /// Waits for a place. The wait does not count as silence of the service.
    pub(super) async fn take(&self) -> Permit<'_> {
        let errand = Errand::current();
        let mut taking = pin!(self.places(errand.as_deref()));
        let held = match poll!(&mut taking) {
            Poll::Ready(held) => held,
            Poll::Pending => {
                let _waiting = errand.as_ref().map(Errand::waits);
                taking.await
            }
        };
        Permit { out: errand.as_ref().map(Errand::goes_out), _held: held }
    }

    /// Waits for what a request needs. The semaphores are never closed.
    async fn places(&self, errand: Option<&Errand>) -> Held<'_> {
        let held = match errand.map(Errand::whom) {
            // A witness takes whichever place is free, one beyond the others first: it must not wait for what others wait for. It
            // has one of these at a time, since another witness needs one too.
            Some(Whom::Witness) => {
                let own = async {
                    let own = match errand {
                        Some(errand) => errand.beyond().acquire_owned().await.ok(),
                        None => None,
                    };
                    ([self.beyond.acquire().await.ok(), None], own)
                };
                return tokio::select! {
                    biased;
                    own = own => own,
                    any = self.all.acquire() => ([any.ok(), None], None),
                };
            }
            // Lists and strangers may hold all the others, and be slow.
            Some(Whom::Known) => tokio::select! {
                biased;
                any = self.all.acquire() => [any.ok(), None],
                patient = self.after_patience() => patient,
            },
            Some(Whom::New) => [self.strangers.acquire().await.ok(), self.all.acquire().await.ok()],
            None if self.one => [self.lists.acquire().await.ok(), None],
            None => [self.lists.acquire().await.ok(), self.all.acquire().await.ok()],
        };
        (held, None)
    }

    async fn after_patience(&self) -> [Option<SemaphorePermit<'_>>; 2] {
        sleep(PATIENT).await;
        [self.patient.acquire().await.ok(), self.beyond.acquire().await.ok()]
    }
}

impl Permit<'_> {
    /// Notes that the service answered the request.
    pub(super) fn answered(&self) {
        self.out.iter().for_each(Out::answered);
    }
}

/// Time for which a request for a known device waits before it may take a place beyond: longer than others that are answered
/// keep theirs.
const PATIENT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    async fn of(permits: &Permits, whom: Whom) -> Option<Permit<'_>> {
        let errand = Errand::new(whom, Instant::now());
        errand.run(timeout(MOMENT, permits.take())).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a12_lists_leave_half_of_the_places_and_strangers_a_quarter() {
        for (connections, lists, strangers, known) in [(1, 1, 1, 0), (2, 1, 1, 0), (5, 2, 3, 0), (10, 5, 5, 0)] {
            let permits = Permits::new(connections);
            let mut held = Vec::new();
            while let Ok(permit) = timeout(MOMENT, permits.take()).await {
                held.push(permit);
            }
            assert_eq!(held.len(), lists, "{connections}");
            while let Some(permit) = of(&permits, Whom::New).await {
                held.push(permit);
            }
            assert_eq!(held.len(), lists + strangers, "{connections}");
            assert_eq!(usize::from(of(&permits, Whom::Known).await.is_some()), known, "{connections}");
            let witnesses = [of(&permits, Whom::Witness).await, of(&permits, Whom::Witness).await];
            assert!(witnesses.iter().all(Option::is_some), "two have a place whoever holds the others");
            assert_eq!(usize::from(of(&permits, Whom::Witness).await.is_some()), known, "and a third one any that is free");
            held.drain(..lists).for_each(drop);
            assert_eq!(of(&permits, Whom::Known).await.is_some(), connections > 1, "{connections}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a12_a_known_device_takes_one_place_beyond_once_it_waited() {
        let permits = Permits::new(1);
        let _held = permits.all.acquire().await.unwrap();
        let wait = |whom| {
            let errand = Errand::new(whom, Instant::now());
            let permits = &permits;
            async move { errand.run(timeout(PATIENT + MOMENT, permits.take())).await.ok() }
        };
        let first = wait(Whom::Known).await;
        assert!(first.is_some());
        assert!(wait(Whom::Known).await.is_none() && wait(Whom::New).await.is_none(), "the other is for witnesses");
        assert!(of(&permits, Whom::Witness).await.is_some());
        drop(first);
        assert!(wait(Whom::Known).await.is_some());
    }
}
