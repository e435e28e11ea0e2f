//! Which request to a service goes out: as many at once as it takes, and those for known devices find a place whatever others wait for.

use std::pin::pin;
use std::task::Poll;

use futures::poll;
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use crate::provider::errand::{Errand, Waiting};

/// Places for requests.
#[derive(Debug)]
pub(super) struct Permits {
    all: Semaphore,
    /// What those for devices that nobody knows may have of them.
    strangers: Semaphore,
    /// What those may have that are for no device: lists, feeds, probes.
    lists: Semaphore,
    /// Whether there is one place alone, beside which lists have another.
    one: bool,
    /// Changes as the service answers.
    answers: watch::Sender<()>,
}

/// A place, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    permits: &'a Permits,
    _held: [Option<SemaphorePermit<'a>>; 2],
}

impl Permits {
    pub(super) fn new(connections: usize) -> Self {
        let all = connections.max(1);
        let kept = if all > 1 { (all / 4).max(1) } else { 0 };
        Self {
            all: Semaphore::new(all),
            strangers: Semaphore::new(all - kept),
            lists: Semaphore::new((all / 2).max(1)),
            one: all == 1,
            answers: watch::Sender::new(()),
        }
    }

    /// Waits for a place. For a call to the service this is no time in which the service was silent, as long as it answers others.
    pub(super) async fn take(&self) -> Permit<'_> {
        let errand = Errand::current();
        let mut answers = self.answers.subscribe();
        let mut taking = pin!(self.places(errand.as_deref()));
        let held = match poll!(&mut taking) {
            Poll::Ready(held) => held,
            Poll::Pending => {
                let waiting = errand.as_ref().map(Errand::waits);
                loop {
                    tokio::select! {
                        biased;
                        Ok(()) = answers.changed() => waiting.iter().for_each(Waiting::others_are_answered),
                        held = &mut taking => break held,
                    }
                }
            }
        };
        if let Some(errand) = &errand {
            errand.sends();
        }
        Permit { permits: self, _held: held }
    }

    async fn places(&self, errand: Option<&Errand>) -> [Option<SemaphorePermit<'_>>; 2] {
        let own = match errand {
            Some(errand) if errand.is_known() => None,
            Some(_) => Some(&self.strangers),
            None => Some(&self.lists),
        };
        // None of them is ever closed.
        let own = match own {
            Some(own) => own.acquire().await.ok(),
            None => None,
        };
        let all = if errand.is_none() && self.one { None } else { self.all.acquire().await.ok() };
        [own, all]
    }
}

impl Permit<'_> {
    /// The service answered.
    pub(super) fn answered(&self) {
        self.permits.answers.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, timeout};

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    async fn of(permits: &Permits, known: bool) -> Option<Permit<'_>> {
        let errand = Errand::new(known, Instant::now());
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
            while let Some(permit) = of(&permits, false).await {
                held.push(permit);
            }
            assert_eq!(held.len(), lists + strangers, "{connections}");
            assert_eq!(usize::from(of(&permits, true).await.is_some()), known, "{connections}");
            held.drain(..lists).for_each(drop);
            assert_eq!(of(&permits, true).await.is_some(), connections > 1, "{connections}");
        }
    }
}
