//! Seats for the streams of filters: they are bounded, and the newest stream always gets one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::Extensions;
use tokio::sync::oneshot;
use tonic::transport::server::UdsConnectInfo;

use crate::server::client::Guest;

/// Who holds the other end of a stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// Process on this machine, as the system names it: user id and process id. Of one in another namespace the system tells the
    /// user alone.
    Process(Option<u32>, Option<i32>),
    /// Envoys over TCP, by every name of their certificate but its digest.
    Named(Arc<str>),
}

impl Holder {
    /// Returns the holder that a stream was opened by.
    pub(super) fn of(extensions: &Extensions) -> Self {
        if let Some(guest) = extensions.get::<Arc<Guest>>() {
            return Self::Named(guest.peer.lasting());
        }
        let process = extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        process.map_or(Self::Process(None, None), |process| Self::Process(Some(process.uid()), process.pid()))
    }
}

/// Seats of all open streams.
#[derive(Debug)]
pub(super) struct Seats {
    open: Mutex<Open>,
    /// Largest number of seats, of all holders together and of one.
    bounds: (usize, usize),
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// Taken seats, by the order in which their streams were opened.
    taken: BTreeMap<u64, Taken>,
}

#[derive(Debug)]
struct Taken {
    holder: Holder,
    /// Whether a question with a good signature has come on the stream.
    proven: bool,
    /// Sender that is dropped with the seat, which ends the stream.
    _end: oneshot::Sender<()>,
}

/// Seat of one open stream; dropping it frees the seat.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    number: u64,
    proven: bool,
    /// Resolves once another stream has taken the seat.
    pub(super) taken_over: oneshot::Receiver<()>,
}

impl Seats {
    /// Makes seats for `all` streams together, and for `of_one` of one holder.
    pub(super) fn new(all: usize, of_one: usize) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), bounds: (all, of_one) })
    }

    /// Takes a seat. Where none is free, another stream ends: one on which nothing was ever proven if there is any, then one of
    /// the holder that has the most of these, and of its streams the oldest.
    pub(super) fn take(self: &Arc<Self>, holder: Holder) -> Seat {
        let (end, taken_over) = oneshot::channel();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, of_one) = self.bounds;
        if open.taken.values().filter(|taken| taken.holder == holder).count() >= of_one {
            open.give_up(|taken| taken.holder == holder);
        }
        if open.taken.len() >= all {
            open.give_up(|_| true);
        }
        let number = open.next;
        open.next = open.next.wrapping_add(1);
        open.taken.insert(number, Taken { holder, proven: false, _end: end });
        drop(open);
        Seat { seats: Arc::clone(self), number, proven: false, taken_over }
    }
}

impl Open {
    fn give_up(&mut self, among: impl Fn(&Taken) -> bool) {
        let unproven = self.taken.values().any(|taken| among(taken) && !taken.proven);
        let eligible = |taken: &Taken| among(taken) && taken.proven != unproven;
        let mut holders = BTreeMap::<&Holder, usize>::new();
        for taken in self.taken.values().filter(|taken| eligible(taken)) {
            *holders.entry(&taken.holder).or_default() += 1;
        }
        let Some(most) = holders.values().max().copied() else { return };
        let oldest = self.taken.iter().find(|(_, taken)| eligible(taken) && holders.get(&taken.holder) == Some(&most));
        if let Some(number) = oldest.map(|(number, _)| *number) {
            self.taken.remove(&number);
        }
    }
}

impl Seat {
    /// Records that a question with a good signature has come on the stream.
    pub(super) fn prove(&mut self) {
        if std::mem::replace(&mut self.proven, true) {
            return;
        }
        if let Some(taken) = self.seats.open.lock().unwrap_or_else(PoisonError::into_inner).taken.get_mut(&self.number) {
            taken.proven = true;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.open.lock().unwrap_or_else(PoisonError::into_inner).taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(pid: i32) -> Holder {
        Holder::Process(Some(7), Some(pid))
    }

    fn held(seats: &mut [Seat]) -> Vec<bool> {
        let ended = |seat: &mut Seat| matches!(seat.taken_over.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        seats.iter_mut().map(|seat| !ended(seat)).collect()
    }

    #[test]
    fn g6_whoever_holds_the_most_streams_gives_way_to_the_newest_comer() {
        let seats = Seats::new(4, 4);
        let mut all: Vec<_> = [1, 2, 2, 3, 4].into_iter().map(|pid| seats.take(holder(pid))).collect();
        assert_eq!(held(&mut all), [true, false, true, true, true]);
        // Now no holder has two streams, so the oldest of all ends.
        all.push(seats.take(holder(5)));
        assert_eq!(held(&mut all), [false, false, true, true, true, true]);
    }

    #[test]
    fn g6_one_holder_has_its_own_bound_and_gives_way_to_itself() {
        let seats = Seats::new(100, 2);
        let mut all: Vec<_> = [1, 2, 1, 1, 1].into_iter().map(|pid| seats.take(holder(pid))).collect();
        assert_eq!(held(&mut all), [false, true, false, true, true]);
    }

    #[test]
    fn g6_a_stream_on_which_something_was_proven_does_not_give_way_to_those_on_which_nothing_was() {
        let seats = Seats::new(4, 4);
        // An Envoy of three workers, and strangers of one stream each.
        let mut all: Vec<_> = [1, 1, 1, 2].into_iter().map(|pid| seats.take(holder(pid))).collect();
        all[0..3].iter_mut().for_each(Seat::prove);
        all.extend((3..100).map(|pid| seats.take(holder(pid))));
        let held = held(&mut all);
        assert_eq!(held[..4], [true, true, true, false]);
        assert_eq!(held.iter().filter(|held| **held).count(), 4);
        assert_eq!(held.last(), Some(&true), "the newest is in");
    }

    #[test]
    fn g6_the_newest_gets_in_where_all_have_proven_something() {
        let seats = Seats::new(2, 2);
        let mut all: Vec<_> = [1, 1, 2]
            .into_iter()
            .map(|pid| {
                let mut seat = seats.take(holder(pid));
                seat.prove();
                seat.prove();
                seat
            })
            .collect();
        assert_eq!(held(&mut all), [false, true, true]);
    }

    #[test]
    fn a_seat_that_is_left_is_free() {
        let seats = Seats::new(1, 1);
        drop(seats.take(holder(1)));
        let mut all = vec![seats.take(holder(1))];
        assert_eq!((held(&mut all), seats.open.lock().unwrap().taken.len()), (vec![true], 1));
        // A seat that was taken over frees no other seat when it is dropped.
        let next = seats.take(holder(2));
        all.clear();
        assert_eq!(seats.open.lock().unwrap().taken.len(), 1);
        drop(next);
        assert_eq!(seats.open.lock().unwrap().taken.len(), 0);
    }
}
