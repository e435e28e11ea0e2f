//! Whose turn it is to ask a service: known devices come first, new ones wait within what is left, and a service that fails is
//! left alone.
//!
//! Three bounds hold at once: calls in a second, calls under way, and a circuit. Known devices have a circuit of their own, so
//! that identifiers which anybody may invent cannot open it, and a part of the calls in a second and under way is kept free for
//! them. A question that finds no room waits in line, and is refused at once where the line is longer than it can wait.

use std::array;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::breaker::{Breaker, Circuit};
use super::budget::Bucket;
use super::entry::Mark;
use crate::config::Limits;
use crate::provider::inventory::Way;
use crate::provider::{Blame, Unavailable};

/// The class of a question: all questions of one class share their place in the order and their bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    /// Whether the device was never found. Anybody may invent such an identifier.
    pub(super) new: bool,
    /// The way in by which the question came.
    pub(super) way: Way,
}

impl Class {
    /// Place in the order of turns: webhooks come first, and new devices behind known ones of the same way in.
    const fn rank(self) -> usize {
        match (self.new, self.way) {
            (false, Way::Webhook) => 0,
            (false, Way::Authorization) => 1,
            (true, Way::Webhook) => 2,
            (false, Way::Query) => 3,
            (true, Way::Authorization) => 4,
            (true, Way::Query) => 5,
        }
    }

    const fn circuit(self) -> usize {
        if self.new { NEW } else { KNOWN }
    }
}

const RANKS: usize = 6;
const KNOWN: usize = 0;
const NEW: usize = 1;

/// The line before one service, and its bounds.
#[derive(Debug)]
pub(super) struct Turns {
    inner: Mutex<Inner>,
    per_second: f64,
    /// Calls that each rank and all behind it may have under way together.
    most: [usize; RANKS],
    /// Calls of a second that each rank leaves to those before it.
    leaves: [f64; RANKS],
}

#[derive(Debug)]
struct Inner {
    seconds: Bucket,
    /// Guesses of a minute, by the way in.
    guesses: [Bucket; Way::ALL.len()],
    under_way: [usize; RANKS],
    circuits: [Breaker; 2],
    /// When a known device was last asked for.
    known_asked: Option<Instant>,
    /// Those who wait, by rank and then in the order in which they came.
    line: BTreeMap<(usize, u64), Arc<Notify>>,
    last: u64,
}

/// A place in the line, which is given up when this is dropped.
struct Place<'t> {
    turns: &'t Turns,
    at: (usize, u64),
    woken: Arc<Notify>,
}

/// The right to make one call, and the duty to say what became of it. A permit that is dropped without a word counts as failed.
#[derive(Debug)]
pub(super) struct Permit {
    turns: Arc<Turns>,
    class: Class,
    mark: Option<Mark>,
    told: bool,
}

/// What somebody at the head of their rank can do.
enum Look {
    /// Go.
    Turn,
    /// Look again then.
    Again(Instant),
    /// Wait until somebody else says that there may be room.
    Wait,
}

impl Turns {
    /// Nobody in line, for a service that takes `connections` calls at once.
    pub(super) fn new(limits: Limits, connections: usize) -> Self {
        let guesses = |way: Way| Bucket::new(way.share_of(limits.unknown_per_minute), Duration::from_secs(60));
        let all = connections.max(1);
        let kept = if all > 1 { (all / 4).max(1) } else { 0 };
        let rest = all - kept;
        let behind = (rest / 2).max(1);
        let per_second = f64::from(limits.per_second);
        let (half, most) = ((per_second / 2.0).floor(), (per_second * 3.0 / 4.0).floor());
        let inner = Inner {
            seconds: Bucket::new(limits.per_second, Duration::from_secs(1)),
            guesses: Way::ALL.map(guesses),
            under_way: [0; RANKS],
            circuits: array::from_fn(|_| Breaker::default()),
            known_asked: None,
            line: BTreeMap::new(),
            last: 0,
        };
        Self {
            inner: Mutex::new(inner),
            per_second,
            most: [all, rest, rest, rest, behind, behind],
            leaves: [0.0, 0.0, half, half, most, most],
        }
    }

    /// Whether it is of any use to wait in line. For a new device this takes a guess, which is given back by
    /// [`Self::was_no_guess`].
    ///
    /// # Errors
    /// [`Unavailable::Paused`], [`Unavailable::OutOfBudget`] where the guesses of this way in are spent, and
    /// [`Unavailable::Busy`] where the line is longer than `patience`.
    pub(super) fn admit(&self, class: Class, now: Instant, patience: Duration) -> Result<(), Unavailable> {
        let mut inner = self.lock();
        if !class.new {
            inner.known_asked = Some(now);
        }
        inner.admits(class, now)?;
        let before = inner.line.range(..(class.rank() + 1, 0)).count();
        #[expect(clippy::cast_precision_loss, reason = "a line has far fewer than 2^52 places")]
        if before as f64 >= patience.as_secs_f64() * self.per_second {
            return Err(Unavailable::Busy);
        }
        if class.new && !inner.guesses(class.way).is_none_or(|guesses| guesses.take(now)) {
            return Err(Unavailable::OutOfBudget);
        }
        Ok(())
    }

    /// Gives back the guess of a device that was found, or that was not asked for after all.
    pub(super) fn was_no_guess(&self, class: Class) {
        if let Some(guesses) = self.lock().guesses(class.way).filter(|_| class.new) {
            guesses.give_back();
        }
    }

    /// Waits for the right to make a call about the device with this mark.
    ///
    /// # Errors
    /// [`Unavailable::Paused`] as soon as the circuit opens, and [`Unavailable::Busy`] where there was no room until the
    /// deadline.
    pub(super) async fn turn(self: &Arc<Self>, class: Class, mark: Option<Mark>, deadline: Instant) -> Result<Permit, Unavailable> {
        let place = self.line_up(class);
        loop {
            // Before the look, so that what happens after it is not missed.
            let mut woken = pin!(place.woken.notified());
            woken.as_mut().enable();
            let now = Instant::now();
            let again = match self.look(class, place.at, now)? {
                Look::Turn => return Ok(Permit { turns: Arc::clone(self), class, mark, told: false }),
                Look::Again(again) => again.min(deadline),
                Look::Wait => deadline,
            };
            if now >= deadline {
                return Err(Unavailable::Busy);
            }
            tokio::select! {
                () = woken => {}
                () = sleep_until(again) => {}
            }
        }
    }

    /// What an operator reads: the circuit of known devices.
    pub(super) fn circuit(&self, now: Instant) -> Circuit {
        let inner = self.lock();
        let [known, _] = &inner.circuits;
        known.circuit(now)
    }

    fn line_up(&self, class: Class) -> Place<'_> {
        let mut inner = self.lock();
        inner.last = inner.last.saturating_add(1);
        let (at, woken) = ((class.rank(), inner.last), Arc::new(Notify::new()));
        inner.line.insert(at, Arc::clone(&woken));
        Place { turns: self, at, woken }
    }

    /// # Errors
    /// [`Unavailable::Paused`].
    fn look(&self, class: Class, at: (usize, u64), now: Instant) -> Result<Look, Unavailable> {
        let mut inner = self.lock();
        inner.admits(class, now)?;
        let first = inner.line.range((at.0, 0)..).next().is_some_and(|(place, _)| *place == at);
        if !first || !self.has_room(&inner, class) {
            return Ok(Look::Wait);
        }
        let leaves = self.leaves.get(class.rank()).copied().unwrap_or_default();
        if let Err(again) = inner.seconds.take_above(leaves, now) {
            return Ok(Look::Again(now + again));
        }
        inner.line.remove(&at);
        if let Some(calls) = inner.under_way.get_mut(class.rank()) {
            *calls += 1;
        }
        inner.circuit_mut(class).began();
        if class.new {
            // After a pause one call tries for both.
            let [known, _] = &mut inner.circuits;
            known.lend();
        }
        inner.wake();
        Ok(Look::Turn)
    }

    /// Whether one more call may be under way: no rank and those behind it have more than they may together.
    fn has_room(&self, inner: &Inner, class: Class) -> bool {
        let within = |(rank, most): (usize, &usize)| inner.under_way.iter().skip(rank).sum::<usize>() < *most;
        inner.circuit(class).has_room() && self.most.iter().enumerate().take(class.rank() + 1).all(within)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// A new device is not asked for while known ones are not: what fails for them fails for it. After a pause a known device
    /// tries, where one is asked for now and then: the try of an invented one says nothing of the service.
    ///
    /// # Errors
    /// [`Unavailable::Paused`].
    fn admits(&self, class: Class, now: Instant) -> Result<(), Unavailable> {
        let [known, new] = &self.circuits;
        if class.new {
            new.admits(now)?;
            let asked = self.known_asked.is_some_and(|asked| now.saturating_duration_since(asked) < RECENTLY);
            if asked && known.is_paused() {
                return Err(Unavailable::Paused);
            }
        }
        known.admits(now)
    }

    fn circuit(&self, class: Class) -> &Breaker {
        let [known, new] = &self.circuits;
        if class.circuit() == KNOWN { known } else { new }
    }

    fn circuit_mut(&mut self, class: Class) -> &mut Breaker {
        let [known, new] = &mut self.circuits;
        if class.circuit() == KNOWN { known } else { new }
    }

    fn guesses(&self, way: Way) -> Option<&Bucket> {
        self.guesses.get(way as usize)
    }

    /// Tells the first of each rank to look, and everybody where a circuit is open.
    fn wake(&self) {
        let open = self.circuits.iter().any(Breaker::is_paused);
        let mut last = None;
        for ((rank, _), woken) in &self.line {
            if open || last != Some(*rank) {
                woken.notify_one();
            }
            last = Some(*rank);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut inner = self.turns.lock();
        // Whoever had a turn has left the line already, and has told the others.
        if inner.line.remove(&self.at).is_some() {
            inner.wake();
        }
    }
}

impl Permit {
    /// The service answered: with a record, with none, or with too many.
    pub(super) fn succeeded(self) {
        self.end(|own, other, _| {
            own.succeeded();
            other.heard_success();
        });
    }

    /// What became of the call says nothing of the service.
    pub(super) fn withdrawn(self) {
        self.end(|own, _, _| own.withdrawn());
    }

    /// The service did not answer.
    ///
    /// A failure that may belong to one identifier counts once for each known device, and not at all for a new one: whoever may
    /// state identifiers could otherwise keep the service from being asked about all others.
    pub(super) fn failed(self, why: Unavailable, now: Instant) {
        let new = self.class.new;
        self.end(|own, other, mark| match why.blame() {
            // It was said of the caller, not of the device.
            Blame::Service => {
                own.failed(why, now, None);
                other.heard_failure(why, now, None);
            }
            Blame::Either if new => own.failed(why, now, mark),
            // Whoever tries after a pause has to succeed, or nobody knows whether the service is back; and where a known device
            // failed last, it may be the service.
            Blame::Identifier if new && (own.is_paused() || other.is_in_doubt()) => own.failed(why, now, mark),
            Blame::Identifier if new => own.withdrawn(),
            Blame::Either | Blame::Identifier => {
                own.failed(why, now, mark);
                other.heard_failure(why, now, mark);
            }
        });
    }

    fn end(mut self, tell: impl FnOnce(&mut Breaker, &mut Breaker, Option<Mark>)) {
        self.told = true;
        self.tell(tell);
    }

    fn tell(&self, tell: impl FnOnce(&mut Breaker, &mut Breaker, Option<Mark>)) {
        let mut inner = self.turns.lock();
        if let Some(calls) = inner.under_way.get_mut(self.class.rank()) {
            *calls = calls.saturating_sub(1);
        }
        let [known, new] = &mut inner.circuits;
        if self.class.new {
            known.take_back();
            tell(new, known, self.mark);
        } else {
            tell(known, new, self.mark);
        }
        inner.wake();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.told {
            self.tell(|own, _, mark| own.failed(Unavailable::Network, Instant::now(), mark));
        }
    }
}

/// How long ago a known device was asked for at most, for new ones to leave the try after a pause to the next.
const RECENTLY: Duration = Duration::from_secs(5);
