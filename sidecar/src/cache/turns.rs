//! Whose turn it is to ask a service: known devices come first, new ones wait within what is left, and a service that fails is
//! left alone.
//!
//! Three bounds hold at once: calls in a second, calls under way, and a circuit. A part of the first two is kept free for known
//! devices. A question that finds no room waits in line, and is refused at once where the line is longer than it can wait.
//!
//! A failure that may belong to one identifier opens no circuit. It puts the service in doubt where nobody was answered since;
//! then a known device that did not fail is asked for, whether or not somebody wants it, and the others wait for what becomes of
//! that. If it is answered, the failures were those of the identifiers; if such witnesses fail as well, it is the service.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::STALE_AFTER;
use super::breaker::{Breaker, Circuit};
use super::budget::Bucket;
use super::entry::Mark;
use super::suspects::{Suspects, Who, Witness};
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
}

const RANKS: usize = 6;

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
    pending: Pending,
    breaker: Breaker,
    suspects: Suspects,
    doubt: Doubt,
    trial: Trial,
    /// When the service was last left alone for the sake of an identifier that nobody knows.
    strangers: Option<Instant>,
    /// Those who wait, by rank and then in the order in which they came there.
    line: BTreeMap<(usize, u64), u64>,
    /// The same by their numbers.
    stands: HashMap<u64, Stand>,
    last: u64,
}

/// Calls of which it is not known yet whether they are answered.
#[derive(Debug, Default)]
struct Pending {
    known: usize,
    new: usize,
}

/// What speaks against the service: devices that failed since it gave its last answer, each once.
#[derive(Debug, Default)]
struct Doubt {
    known: Vec<Mark>,
    new: Vec<Mark>,
    /// Devices that were asked for on that account, and failed.
    witnesses: usize,
    /// When it was first seen to that one is asked for.
    since: Option<Instant>,
}

/// Whether somebody tries the service for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    None,
    /// Somebody does, or will as soon as there is room.
    Appointed,
    /// No device can be appointed: the first in line may.
    Anyone,
}

/// What a call is, besides what it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Ordinary,
    /// It was made to see whether the service is well.
    Witness,
    /// It was made anyway, and has to do as a witness.
    Volunteer,
}

/// Somebody in line.
#[derive(Debug)]
struct Stand {
    class: Class,
    who: Option<Who>,
    at: (usize, u64),
    role: Role,
    since: Instant,
    deadline: Instant,
    woken: Arc<Notify>,
}

/// A place in the line, which is given up when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    turns: Arc<Turns>,
    number: u64,
    who: Option<Who>,
    woken: Arc<Notify>,
}

/// The right to make one call, and the duty to say what became of it. A permit that is dropped without a word counts as failed.
/// Its place among the calls under way is free once it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    turns: Arc<Turns>,
    class: Class,
    who: Option<Who>,
    role: Role,
    /// Until when those who wait have a use for the answer.
    pub(super) deadline: Instant,
    told: bool,
}

/// What somebody in line can do.
enum Look {
    /// Go.
    Turn(Class, Role),
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
            pending: Pending::default(),
            breaker: Breaker::default(),
            suspects: Suspects::default(),
            doubt: Doubt::default(),
            trial: Trial::None,
            strangers: None,
            line: BTreeMap::new(),
            stands: HashMap::new(),
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
    /// Why the service did not say anything about this identifier the last time, where it is left alone;
    /// [`Unavailable::Paused`], [`Unavailable::OutOfBudget`] where the guesses of this way in are spent, and
    /// [`Unavailable::Busy`] where the line is longer than `patience`.
    pub(super) fn admit(&self, class: Class, who: Option<Who>, now: Instant, patience: Duration) -> Result<(), Unavailable> {
        let inner = self.lock();
        if let Some(why) = who.and_then(|who| inner.suspects.left_alone(class.new, who, now)) {
            return Err(why);
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

    /// What a guess took that was one: what is more than a guess pays for counts as further ones.
    pub(super) fn was_a_guess(&self, class: Class, requests: u32) {
        let more = requests.div_ceil(GUESS).saturating_sub(1);
        if let Some(guesses) = self.lock().guesses(class.way).filter(|_| class.new) {
            guesses.charge(more);
        }
    }

    /// Whether a device has to be asked for to see whether the service is well, which the caller sees to: by
    /// [`Self::line_up_witness`], or by [`Self::has_no_witness`].
    pub(super) fn appoints(&self, now: Instant) -> bool {
        let mut inner = self.lock();
        let due = match inner.breaker.circuit(now) {
            Circuit::Closed => inner.doubt.is_about(true),
            Circuit::HalfOpen => true,
            Circuit::Open => false,
        };
        if !due || inner.trial != Trial::None {
            return false;
        }
        inner.trial = Trial::Appointed;
        inner.doubt.since.get_or_insert(now);
        true
    }

    /// What a known device is worth as a witness now; `None`: it would say nothing.
    ///
    /// A device that failed is asked again only after every second pause, since in a long outage all may have failed. After the other
    /// pauses another one tries, since the failure may be that device's own.
    pub(super) fn witness(&self, who: Who) -> Option<Witness> {
        let inner = self.lock();
        let worth = inner.suspects.witness(who)?;
        let spoke = worth != Witness::Clean || inner.doubt.known.contains(&who.device);
        if spoke && !inner.breaker.is_even() { None } else { Some(worth) }
    }

    /// Whether a known device fails by itself: see [`Suspects::is_alone`].
    pub(super) fn is_alone(&self, who: Who) -> bool {
        self.lock().suspects.is_alone(who, Instant::now())
    }

    /// Whether the service gave a record a moment ago: see [`Suspects::gives_records`].
    pub(super) fn gives_records(&self) -> bool {
        self.lock().suspects.gives_records(Instant::now())
    }

    /// Whether what becomes of a known device can speak for or against the service, now or after another pause.
    pub(super) fn can_speak(&self, who: Who) -> bool {
        self.lock().suspects.witness(who).is_some()
    }

    /// There is no device to be appointed now: the first in line tries. Not where there are `too_few` that could speak against the
    /// service, and not before two of them have: what happens to identifiers that anybody may invent, and to one device besides,
    /// keeps no new device out.
    pub(super) fn has_no_witness(&self, too_few: bool) {
        let mut inner = self.lock();
        if too_few {
            inner.breaker = Breaker::default();
        }
        inner.trial = if too_few || !(inner.breaker.is_paused() || inner.doubt.is_about(false)) {
            let known = std::mem::take(&mut inner.doubt.known);
            inner.doubt = Doubt { known, ..Doubt::default() };
            Trial::None
        } else {
            Trial::Anyone
        };
        inner.wake();
    }

    /// Takes a place in the line, behind those of the same class.
    pub(super) fn line_up(self: &Arc<Self>, class: Class, who: Option<Who>, deadline: Instant) -> Place {
        self.stand(class, who, deadline, Role::Ordinary)
    }

    /// Takes the place of whoever was appointed. The try is another's once this place is given up.
    pub(super) fn line_up_witness(self: &Arc<Self>, who: Who, deadline: Instant) -> Place {
        self.stand(Class { new: false, way: Way::Webhook }, Some(who), deadline, Role::Witness)
    }

    fn stand(self: &Arc<Self>, class: Class, who: Option<Who>, deadline: Instant, role: Role) -> Place {
        let mut inner = self.lock();
        let number = inner.next();
        let woken = Arc::new(Notify::new());
        let at = (class.rank(), number);
        inner.line.insert(at, number);
        inner.stands.insert(number, Stand { class, who, at, role, since: Instant::now(), deadline, woken: Arc::clone(&woken) });
        Place { turns: Arc::clone(self), number, who, woken }
    }

    /// Somebody of this class, and with this deadline, waits for the same call: it gets the place that they would have had.
    pub(super) fn joined(&self, number: u64, class: Class, deadline: Instant) {
        let mut inner = self.lock();
        let next = inner.next();
        let Inner { stands, line, .. } = &mut *inner;
        let Some(stand) = stands.get_mut(&number) else { return };
        stand.deadline = stand.deadline.max(deadline);
        if class.rank() < stand.class.rank() {
            line.remove(&stand.at);
            (stand.class, stand.at) = (class, (class.rank(), next));
            line.insert(stand.at, number);
        }
        stand.woken.notify_one();
        // Whoever stood behind it may be the first now.
        inner.wake();
    }

    /// What an operator reads.
    pub(super) fn circuit(&self, now: Instant) -> Circuit {
        self.lock().breaker.circuit(now)
    }

    /// What somebody in line can do, and their deadline.
    ///
    /// # Errors
    /// [`Unavailable::Paused`].
    fn look(&self, number: u64, now: Instant) -> Result<(Look, Instant), Unavailable> {
        let mut inner = self.lock();
        let Some(&Stand { class, at, role, since, deadline, .. }) = inner.stands.get(&number) else { return Err(Unavailable::Busy) };
        inner.breaker.admits(now)?;
        let role = if role == Role::Ordinary && inner.is_on_trial(class.new) {
            let may = inner.trial == Trial::Anyone && inner.volunteer(now) == Some(number);
            if !may || !self.has_room(&inner, class, Role::Volunteer) {
                return inner.waits(class, since, now).map(|look| (look, deadline));
            }
            Role::Volunteer
        } else {
            role
        };
        let first = inner.line.range((at.0, 0)..).next().is_some_and(|(place, _)| *place == at);
        // Who tries the service for all waits for none of those who wait for that.
        if (!first && role == Role::Ordinary) || !self.has_room(&inner, class, role) {
            return Ok((Look::Wait, deadline));
        }
        let leaves = self.leaves.get(class.rank()).copied().unwrap_or_default();
        if let Err(again) = inner.seconds.take_above(leaves, now) {
            return Ok((Look::Again(now + again), deadline));
        }
        inner.line.remove(&at);
        inner.stands.remove(&number);
        if let Some(calls) = inner.under_way.get_mut(class.rank()) {
            *calls += 1;
        }
        *inner.pending.of(class.new) += 1;
        if role == Role::Volunteer {
            inner.trial = Trial::Appointed;
        }
        inner.wake();
        Ok((Look::Turn(class, role), deadline))
    }

    /// Whether one more call may be under way: no rank and those behind it have more than they may together, and there are no
    /// more at once than it takes to be in doubt.
    fn has_room(&self, inner: &Inner, class: Class, role: Role) -> bool {
        let within = |(rank, most): (usize, &usize)| inner.under_way.iter().skip(rank).sum::<usize>() < *most;
        let sure = role != Role::Ordinary || {
            let pending = inner.pending.known + if class.new { inner.pending.new } else { 0 };
            inner.breaker.has_room(pending) && inner.doubt.has_room(class.new, pending)
        };
        sure && self.most.iter().enumerate().take(class.rank() + 1).all(within)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// # Errors
    /// [`Unavailable::Paused`].
    fn admits(&self, class: Class, now: Instant) -> Result<(), Unavailable> {
        self.breaker.admits(now)?;
        if class.new || !self.is_silent() { Ok(()) } else { Err(Unavailable::Paused) }
    }

    /// Whether somebody tries a service that was silent: who may have an old record does not wait for that.
    fn is_silent(&self) -> bool {
        self.breaker.is_paused() && self.breaker.is_silent() && self.trial == Trial::Appointed
    }

    /// Whether those who ask wait for a try. What fails for known devices fails for new ones, but not the other way about.
    fn is_on_trial(&self, new: bool) -> bool {
        self.breaker.is_paused() || self.doubt.is_about(new)
    }

    /// Waits for what becomes of a try: with a known device as long as for an answer, with a new one as long as somebody can.
    ///
    /// # Errors
    /// [`Unavailable::Paused`].
    fn waits(&self, class: Class, since: Instant, now: Instant) -> Result<Look, Unavailable> {
        if class.new {
            return Ok(Look::Wait);
        }
        // A caller waits 1.5 s from when it came: no less than 100 ms after the witness was appointed, no more than 1.5 s after that.
        let began = self.doubt.since.unwrap_or(now);
        let until = (since + STALE_AFTER).max(began + AT_LEAST).min(began + STALE_AFTER);
        if self.is_silent() || now >= until { Err(Unavailable::Paused) } else { Ok(Look::Again(until)) }
    }

    /// Who tries where nobody can be appointed: the first in line that has time for an answer, and one that did not fail before
    /// one that did.
    fn volunteer(&self, now: Instant) -> Option<u64> {
        let in_time = |stand: &&Stand| stand.class.new || now < stand.since + STALE_AFTER;
        let mut stands = self.line.values().filter_map(|number| Some((*number, self.stands.get(number).filter(in_time)?)));
        let first = stands.clone().next();
        let failed = |who| self.suspects.witness(who) != Some(Witness::Clean);
        let better = stands.find(|(_, stand)| stand.class.new || !stand.who.is_some_and(failed));
        better.or(first).map(|(number, _)| number)
    }

    fn answered(&mut self, new: bool, who: Option<Who>, record: bool) {
        // That a stranger was answered leaves it open whether those who failed can be by now.
        if self.breaker.is_paused() && !new {
            self.suspects.forgive();
        }
        self.suspects.answered(who, record, Instant::now());
        self.doubt = Doubt::default();
        self.breaker.answered();
    }

    fn failed(&mut self, call: &Permit, why: Unavailable, now: Instant) {
        let (new, tries) = (call.class.new, call.role != Role::Ordinary);
        // Whoever may state identifiers may know some that the service asks to be left alone for: once in a while that counts.
        let why = if new { why.by_a_stranger(LONGEST_STRANGER) } else { why };
        let why = match why {
            Unavailable::RateLimited(_) if new => {
                let again = self.strangers.is_some_and(|at| now.saturating_duration_since(at) < STRANGERS);
                if again {
                    Unavailable::ServerError(None)
                } else {
                    self.strangers = Some(now);
                    why
                }
            }
            why => why,
        };
        // What was said of the caller, or of no device at all.
        let Some(who) = call.who.filter(|_| why.blame() != Blame::Service) else {
            if tries {
                self.breaker.open(why, now);
            } else {
                self.breaker.failed(why, now);
            }
            return;
        };
        if self.suspects.failed(new, who, why, now) {
            return;
        }
        // Whoever may state identifiers can have as many of these as they like.
        if new && !tries && why.blame() == Blame::Identifier && self.doubt.known.is_empty() {
            return;
        }
        self.doubt.add(new, who.device);
        if !tries {
            return;
        }
        self.doubt.witnesses += 1;
        let several = self.doubt.witnesses >= WITNESSES && self.doubt.known.len() >= KNOWN;
        let enough = several || self.doubt.known.len() >= KNOWN_AND_WITNESS || call.role == Role::Volunteer;
        if enough || self.breaker.is_paused() {
            self.breaker.open(why, now);
            self.doubt = Doubt::default();
        }
    }

    fn guesses(&self, way: Way) -> Option<&Bucket> {
        self.guesses.get(way as usize)
    }

    const fn next(&mut self) -> u64 {
        self.last = self.last.saturating_add(1);
        self.last
    }

    /// Tells the first of each rank to look, and everybody where the service is tried or left alone.
    fn wake(&self) {
        let all = self.is_on_trial(true);
        let mut last = None;
        for ((rank, _), number) in &self.line {
            if let Some(stand) = self.stands.get(number).filter(|_| all || last != Some(*rank)) {
                stand.woken.notify_one();
            }
            last = Some(*rank);
        }
    }
}

impl Pending {
    const fn of(&mut self, new: bool) -> &mut usize {
        if new { &mut self.new } else { &mut self.known }
    }
}

impl Doubt {
    fn add(&mut self, new: bool, device: Mark) {
        let devices = if new { &mut self.new } else { &mut self.known };
        if devices.len() < MARKS_KEPT && !devices.contains(&device) {
            devices.push(device);
        }
    }

    fn all(&self) -> usize {
        self.known.len() + self.new.len()
    }

    /// Whether enough speaks against the service for those who ask for known devices, or for new ones, to wait.
    fn is_about(&self, new: bool) -> bool {
        self.known.len() >= KNOWN || (new && self.all() >= ALL)
    }

    fn has_room(&self, new: bool, pending: usize) -> bool {
        if new {
            self.all() == 0 || pending < ALL.saturating_sub(self.all())
        } else {
            self.known.is_empty() || pending < ALL.saturating_sub(self.known.len())
        }
    }
}

impl Place {
    /// Waits for the right to make a call.
    ///
    /// # Errors
    /// [`Unavailable::Paused`] as soon as the circuit opens, or somebody has tried the service for long; and
    /// [`Unavailable::Busy`] where there was no room until the deadline.
    pub(super) async fn turn(self) -> Result<Permit, Unavailable> {
        loop {
            // Before the look, so that what happens after it is not missed.
            let mut woken = pin!(self.woken.notified());
            woken.as_mut().enable();
            let now = Instant::now();
            let (look, deadline) = self.turns.look(self.number, now)?;
            let again = match look {
                Look::Turn(class, role) => {
                    return Ok(Permit { turns: Arc::clone(&self.turns), class, who: self.who, role, deadline, told: false });
                }
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

    /// By what it is found again: see [`Turns::joined`].
    pub(super) const fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.turns.lock();
        // Whoever had a turn has left the line already, and has told the others.
        let Some(stand) = inner.stands.remove(&self.number) else { return };
        inner.line.remove(&stand.at);
        if stand.role == Role::Witness {
            inner.trial = Trial::None;
        }
        inner.wake();
    }
}

impl Permit {
    /// Whether it is for a device that nobody knows.
    pub(super) const fn is_for_a_stranger(&self) -> bool {
        self.class.new
    }

    /// The service answered: with a record, or with none or too many. Where that was too late, it says no more than that the
    /// identifier is well.
    pub(super) fn succeeded(&mut self, record: bool) {
        let who = self.who;
        if !self.told {
            self.tell(|inner, call| inner.answered(call.class.new, who, record));
        } else if let Some(who) = who {
            self.turns.lock().suspects.clear(who);
        }
    }

    /// What became of the call says nothing of the service.
    pub(super) fn withdrawn(&mut self) {
        self.tell(|_, _| {});
    }

    /// The service did not answer.
    pub(super) fn failed(&mut self, why: Unavailable, now: Instant) {
        self.tell(|inner, call| inner.failed(call, why, now));
    }

    /// Only what is said first counts.
    fn tell(&mut self, tell: impl FnOnce(&mut Inner, &Self)) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let mut inner = self.turns.lock();
        let pending = inner.pending.of(self.class.new);
        *pending = pending.saturating_sub(1);
        if self.role != Role::Ordinary {
            inner.trial = Trial::None;
        }
        tell(&mut inner, self);
        // By what is known now somebody may be appointed, or nobody has to be.
        if inner.trial == Trial::Anyone {
            inner.trial = Trial::None;
        }
        inner.wake();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.failed(Unavailable::Network, Instant::now());
        let mut inner = self.turns.lock();
        if let Some(calls) = inner.under_way.get_mut(self.class.rank()) {
            *calls = calls.saturating_sub(1);
        }
        inner.wake();
    }
}

/// Requests that a guess pays for: what a miss takes where there are two inventories.
const GUESS: u32 = 2;
/// Known devices that failed and were not answered, until the service is in doubt.
const KNOWN: usize = 2;
/// The same with new ones among them, of which anybody may invent some: the service is in doubt for new devices alone.
const ALL: usize = 3;
/// Witnesses that have to fail, for the service to be left alone.
const WITNESSES: usize = 2;
/// Known devices with a witness among them that suffice as well.
const KNOWN_AND_WITNESS: usize = 4;
/// Devices of each kind that are remembered of those that failed; more of them would change nothing.
const MARKS_KEPT: usize = KNOWN_AND_WITNESS;
/// How long the service is left alone where it asked for that about a device that nobody knows.
const LONGEST_STRANGER: Duration = Duration::from_secs(5);
/// How long that does not happen again, unless a known device is answered alike.
const STRANGERS: Duration = Duration::from_secs(60);
/// What a witness has at least for its answer, where others have waited for long already.
const AT_LEAST: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN_WEBHOOK: Class = Class { new: false, way: Way::Webhook };
    const NEW_WEBHOOK: Class = Class { new: true, way: Way::Webhook };
    const NEW_QUERY: Class = Class { new: true, way: Way::Query };

    fn turns(connections: usize) -> Arc<Turns> {
        Arc::new(Turns::new(Limits { per_second: 1000, unknown_per_minute: 1000 }, connections))
    }

    fn who(name: &str) -> Who {
        Who { asked: Mark::identifier(name), device: Mark::identifier(name) }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(8)
    }

    async fn call(turns: &Arc<Turns>, class: Class, name: &str) -> Result<Permit, Unavailable> {
        turns.line_up(class, Some(who(name)), soon()).turn().await
    }

    async fn fails(turns: &Arc<Turns>, name: &str) {
        call(turns, KNOWN_WEBHOOK, name).await.unwrap().failed(Unavailable::Protocol, Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn g7_a_call_has_the_best_place_and_the_last_deadline_of_those_who_wait_for_it() {
        let turns = turns(1);
        let permit = call(&turns, KNOWN_WEBHOOK, "first").await.unwrap();
        let began = Instant::now();
        let query = turns.line_up(NEW_QUERY, Some(who("query")), began + Duration::from_secs(2));
        let webhook = turns.line_up(NEW_WEBHOOK, Some(who("webhook")), began + Duration::from_secs(4));
        turns.joined(query.number(), KNOWN_WEBHOOK, began + Duration::from_secs(6));
        let release = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(permit);
        };
        let (first, second, ()) = tokio::join!(query.turn(), webhook.turn(), release);
        assert_eq!((first.unwrap().class, second.unwrap_err()), (KNOWN_WEBHOOK, Unavailable::Busy));
        assert_eq!(began.elapsed(), Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn b5_a_service_in_doubt_is_asked_for_a_witness_and_others_wait() {
        let turns = turns(5);
        fails(&turns, "a").await;
        fails(&turns, "a").await;
        assert!(!turns.appoints(Instant::now()), "one device is one witness against the service");
        fails(&turns, "b").await;
        assert!(turns.appoints(Instant::now()) && !turns.appoints(Instant::now()), "one is enough");
        assert_eq!((turns.witness(who("a")), turns.witness(who("c"))), (None, Some(Witness::Clean)));
        let waiting = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { call(&turns, NEW_WEBHOOK, "new").await.map(drop) }
        });
        let mut witness = turns.line_up_witness(who("c"), soon()).turn().await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!waiting.is_finished());
        witness.succeeded(true);
        assert_eq!((waiting.await.unwrap(), turns.circuit(Instant::now())), (Ok(()), Circuit::Closed));
        fails(&turns, "a").await;
        fails(&turns, "b").await;
        assert!(!turns.appoints(Instant::now()), "their failures are their own");
    }

    #[tokio::test(start_paused = true)]
    async fn b5_witnesses_that_fail_open_the_circuit_and_the_next_one_closes_it() {
        let turns = turns(5);
        fails(&turns, "a").await;
        fails(&turns, "b").await;
        for name in ["c", "d"] {
            assert_eq!(turns.circuit(Instant::now()), Circuit::Closed);
            assert!(turns.appoints(Instant::now()));
            turns.line_up_witness(who(name), soon()).turn().await.unwrap().failed(Unavailable::Protocol, Instant::now());
        }
        assert_eq!(turns.admit(KNOWN_WEBHOOK, Some(who("e")), Instant::now(), Duration::from_secs(8)), Err(Unavailable::Paused));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(turns.appoints(Instant::now()));
        drop(turns.line_up_witness(who("e"), soon()));
        assert!(turns.appoints(Instant::now()), "a try that was given up is another's");
        let mut witness = turns.line_up_witness(who("e"), soon()).turn().await.unwrap();
        witness.withdrawn();
        assert_eq!(turns.circuit(Instant::now()), Circuit::HalfOpen);
        assert!(turns.appoints(Instant::now()), "one that says nothing of the service leaves it to the next");
        turns.line_up_witness(who("e"), soon()).turn().await.unwrap().succeeded(true);
        assert_eq!(turns.circuit(Instant::now()), Circuit::Closed);
        assert_eq!(turns.witness(who("a")), Some(Witness::Clean), "it failed with the service");
    }

    #[tokio::test(start_paused = true)]
    async fn b5_where_no_witness_is_the_first_in_line_tries() {
        let turns = turns(5);
        fails(&turns, "a").await;
        fails(&turns, "b").await;
        assert!(turns.appoints(Instant::now()));
        turns.has_no_witness(false);
        call(&turns, NEW_WEBHOOK, "new").await.unwrap().failed(Unavailable::Protocol, Instant::now());
        assert_eq!(turns.circuit(Instant::now()), Circuit::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn b5_who_asks_for_a_known_device_waits_for_a_witness_as_long_as_for_an_answer() {
        let turns = turns(5);
        fails(&turns, "a").await;
        fails(&turns, "b").await;
        assert!(turns.appoints(Instant::now()));
        let witness = turns.line_up_witness(who("c"), soon()).turn().await.unwrap();
        let began = Instant::now();
        assert_eq!(call(&turns, KNOWN_WEBHOOK, "d").await.unwrap_err(), Unavailable::Paused);
        assert_eq!(began.elapsed(), STALE_AFTER);
        drop(witness);
    }

    #[tokio::test(start_paused = true)]
    async fn b5_a_witness_waits_for_nobody_who_waits_for_it() {
        let turns = turns(5);
        fails(&turns, "a").await;
        fails(&turns, "b").await;
        assert!(turns.appoints(Instant::now()));
        let first = turns.line_up_witness(who("c"), soon()).turn().await.unwrap();
        let waits = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { call(&turns, KNOWN_WEBHOOK, "d").await.map(drop) }
        });
        tokio::task::yield_now().await;
        // The first witness says nothing for the service; the second comes after whoever waits.
        let mut first = first;
        first.failed(Unavailable::Protocol, Instant::now());
        drop(first);
        assert!(turns.appoints(Instant::now()));
        let began = Instant::now();
        let mut second = turns.line_up_witness(who("e"), soon()).turn().await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        second.succeeded(true);
        drop(second);
        assert!(waits.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_could_have_no_turn_in_time_is_told_so_at_once() {
        let turns = Arc::new(Turns::new(Limits { per_second: 1, unknown_per_minute: 1000 }, 1));
        let _held = call(&turns, NEW_WEBHOOK, "first").await.unwrap();
        let _line: Vec<_> = ["second", "third"].map(|name| turns.line_up(NEW_WEBHOOK, Some(who(name)), soon())).into();
        let admits = |class, seconds| turns.admit(class, Some(who("new")), Instant::now(), Duration::from_secs(seconds));
        assert_eq!((admits(NEW_WEBHOOK, 2), admits(NEW_WEBHOOK, 3)), (Err(Unavailable::Busy), Ok(())));
        assert_eq!((admits(NEW_QUERY, 2), admits(KNOWN_WEBHOOK, 2)), (Err(Unavailable::Busy), Ok(())), "those of a better rank go first");
    }

    #[tokio::test(start_paused = true)]
    async fn g7_who_is_joined_by_one_of_the_same_rank_keeps_the_place() {
        let turns = turns(1);
        let permit = call(&turns, KNOWN_WEBHOOK, "held").await.unwrap();
        let [first, second] = ["first", "second"].map(|name| turns.line_up(NEW_WEBHOOK, Some(who(name)), soon()));
        turns.joined(first.number(), NEW_WEBHOOK, soon());
        drop(permit);
        let second = tokio::spawn(second.turn());
        let permit = tokio::time::timeout(Duration::from_secs(1), first.turn()).await.unwrap().unwrap();
        assert!(!second.is_finished());
        drop(permit);
        drop(second.await.unwrap().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn b5_a_stranger_for_whom_the_service_asks_to_be_left_alone_counts_for_a_moment_and_once_a_minute() {
        const LONG: Unavailable = Unavailable::RateLimited(Some(Duration::from_secs(30)));
        let paused = |turns: &Arc<Turns>| turns.admit(KNOWN_WEBHOOK, None, Instant::now(), Duration::from_secs(8)).is_err();
        let known = turns(5);
        call(&known, KNOWN_WEBHOOK, "a").await.unwrap().failed(LONG, Instant::now());
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(paused(&known));
        for (after, expected) in [(STRANGERS - Duration::from_nanos(1), false), (STRANGERS, true)] {
            let turns = turns(5);
            let began = Instant::now();
            call(&turns, NEW_WEBHOOK, "a").await.unwrap().failed(LONG, began);
            assert!(paused(&turns));
            tokio::time::advance(LONGEST_STRANGER).await;
            assert!(!paused(&turns));
            turns.line_up_witness(who("c"), soon()).turn().await.unwrap().succeeded(true);
            tokio::time::advance(after - (Instant::now() - began)).await;
            call(&turns, NEW_WEBHOOK, "b").await.unwrap().failed(LONG, Instant::now());
            assert_eq!(paused(&turns), expected, "{after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn b5_what_a_service_asks_for_about_a_known_device_counts_though_a_stranger_was_told_so_before() {
        let long = Unavailable::RateLimited(Some(Duration::from_secs(30)));
        let turns = turns(5);
        let mut known = call(&turns, KNOWN_WEBHOOK, "known").await.unwrap();
        call(&turns, NEW_WEBHOOK, "stranger").await.unwrap().failed(long, Instant::now());
        known.failed(long, Instant::now());
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(turns.circuit(Instant::now()), Circuit::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn b5_nobody_with_a_known_device_waits_for_a_try_of_a_service_that_was_silent() {
        let turns = turns(5);
        for name in ["a", "b"] {
            fails(&turns, name).await;
        }
        for name in ["c", "d"] {
            assert!(turns.appoints(Instant::now()));
            turns.line_up_witness(who(name), soon()).turn().await.unwrap().failed(Unavailable::Timeout, Instant::now());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let admits = |class| turns.admit(class, None, Instant::now(), Duration::from_secs(8));
        assert_eq!(admits(KNOWN_WEBHOOK), Ok(()), "nobody tries");
        assert!(turns.appoints(Instant::now()));
        assert_eq!((admits(KNOWN_WEBHOOK), admits(NEW_WEBHOOK)), (Err(Unavailable::Paused), Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn b5_what_a_service_asks_a_witness_for_counts_though_a_stranger_was_told_so_before() {
        let long = Unavailable::RateLimited(Some(Duration::from_secs(30)));
        let turns = turns(5);
        call(&turns, NEW_WEBHOOK, "a").await.unwrap().failed(long, Instant::now());
        tokio::time::advance(LONGEST_STRANGER).await;
        assert!(turns.appoints(Instant::now()));
        turns.line_up_witness(who("c"), soon()).turn().await.unwrap().failed(long, Instant::now());
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(turns.circuit(Instant::now()), Circuit::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn b5_who_did_not_fail_tries_before_one_who_did() {
        let turns = turns(5);
        fails(&turns, "a").await;
        fails(&turns, "b").await;
        assert!(turns.appoints(Instant::now()));
        turns.has_no_witness(false);
        let [failed, clean] = ["a", "c"].map(|name| turns.line_up(KNOWN_WEBHOOK, Some(who(name)), soon()));
        let failed = tokio::spawn(failed.turn());
        let began = Instant::now();
        let mut permit = clean.turn().await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        permit.succeeded(true);
        assert!(failed.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn b5_two_tries_that_fail_are_enough_though_one_device_made_both() {
        let turns = turns(5);
        fails(&turns, "a").await;
        fails(&turns, "b").await;
        for circuit in [Circuit::Closed, Circuit::Open] {
            assert!(turns.appoints(Instant::now()));
            turns.line_up_witness(who("c"), soon()).turn().await.unwrap().failed(Unavailable::Protocol, Instant::now());
            assert_eq!(turns.circuit(Instant::now()), circuit);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn b5_what_becomes_of_another_call_leaves_the_try_to_whoever_was_appointed() {
        let turns = turns(5);
        let mut other = call(&turns, KNOWN_WEBHOOK, "x").await.unwrap();
        fails(&turns, "a").await;
        fails(&turns, "b").await;
        assert!(turns.appoints(Instant::now()));
        other.failed(Unavailable::Protocol, Instant::now());
        assert!(!turns.appoints(Instant::now()), "one tries at a time");
    }

    #[test]
    fn b5_in_doubt_no_more_are_asked_for_at_once_than_would_make_it_sure() {
        let doubt = |known: usize, new: usize| {
            let marks = |many: usize| (0..many).map(|number| Mark::identifier(&number.to_string())).collect();
            Doubt { known: marks(known), new: marks(new), ..Doubt::default() }
        };
        for (known, new, of_known, of_new) in [(0, 0, 9, 9), (1, 0, 2, 2), (0, 1, 9, 2), (1, 1, 2, 1), (2, 0, 1, 1), (0, 3, 9, 0)] {
            let doubt = doubt(known, new);
            let room = |new: bool| (0..9).take_while(|pending| doubt.has_room(new, *pending)).count();
            assert_eq!((room(false), room(true)), (of_known, of_new), "{known} {new}");
        }
    }
}
