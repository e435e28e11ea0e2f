//! The turns in which a service is asked: known devices come first, new ones wait within what is left, and a service that fails
//! is left alone.
//!
//! Three bounds hold at once: calls in a second, calls under way, and a circuit. A part of the first two is kept free for known
//! devices. A question that finds no room waits in line, and is refused at once where the line is longer than it can wait.
//!
//! A failure that may belong to one identifier opens no circuit. It puts the service in doubt where nobody was answered since;
//! then a known device that did not fail, a witness, is asked for, whether or not somebody wants it, and the others wait for
//! the outcome. If the witness is answered, the failures were those of the identifiers; if several witnesses fail, the service
//! does.

mod doubt;
mod silence;

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use inventory::errand::{self, STALE_AFTER, Whom};
use inventory::{Blame, Unavailable, Way};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::breaker::{Breaker, Circuit};
use super::budget::Bucket;
use super::mark::Mark;
use super::settings::Limits;
use super::suspects::{Suspects, Who, Witness};
use doubt::Doubt;
pub(super) use silence::{Patience, SOON, WITNESS_AFTER};
use silence::{Silence, Witnesses};

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
    /// Silence of the service towards all calls, and towards those for known devices.
    silence: [Silence; 2],
    /// Witnesses that wait for their turn or are under way.
    witnesses: Witnesses,
    /// Number of places beyond all others that are taken.
    beyond: usize,
    pending: Pending,
    breaker: Breaker,
    suspects: Suspects,
    doubt: Doubt,
    trial: Trial,
    /// Time until which nobody is appointed, since a bound of ours kept the last witness from being asked.
    rest: Option<Instant>,
    /// Time at which the service was last left alone on account of an unknown identifier.
    strangers: Option<Instant>,
    /// Known devices about which the service refused its caller since its last answer.
    refused: Vec<Mark>,
    /// Numbers of those who wait, by rank and then in the order in which they came to it.
    line: BTreeMap<(usize, u64), u64>,
    /// Those who wait, by their numbers.
    stands: HashMap<u64, Stand>,
    last: u64,
}

/// Calls of which it is not known yet whether the service answers.
#[derive(Debug, Default)]
struct Pending {
    known: usize,
    new: usize,
}

/// The trial of the service: whether somebody tries it for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    None,
    /// Somebody tries, or will as soon as there is room.
    Appointed,
    /// Nobody can be appointed: the first in line may try.
    Anyone,
}

/// The role of a call, besides its question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Ordinary,
    /// The call is made to see whether the service is well, since it is in doubt or was left alone.
    Witness,
    /// The call is made to see whether the service is silent, for those who wait for a turn.
    Probe,
    /// An ordinary call tries the service, because no witness can be had.
    Volunteer,
}

impl Role {
    /// Whether the call decides for all whether the service is tried any longer.
    const fn is_trial(self) -> bool {
        matches!(self, Self::Witness | Self::Volunteer)
    }

    /// Whether the call may be without an answer for others too: it is about a known device, which strangers cannot invent.
    const fn may_speak(self, class: Class) -> bool {
        match self {
            Self::Ordinary => false,
            Self::Witness | Self::Probe => true,
            Self::Volunteer => !class.new,
        }
    }
}

/// A call that waits in line.
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

/// A place in the line, which is given up when dropped.
#[derive(Debug)]
pub(super) struct Place {
    turns: Arc<Turns>,
    number: u64,
    who: Option<Who>,
    woken: Arc<Notify>,
}

/// The right to make one call, and the duty to report its outcome. A permit that is dropped without a report counts as failed.
/// Its place among the calls under way is free once it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    turns: Arc<Turns>,
    number: u64,
    class: Class,
    who: Option<Who>,
    role: Role,
    /// Whether the call has a place beyond all others.
    beyond: bool,
    /// Time until which those who wait have a use for the answer.
    pub(super) deadline: Instant,
    told: bool,
    /// Whether the call failed, and not for the first time, while others are answered.
    own: bool,
}

/// The next step of a call in line.
enum Look {
    /// The turn has come; the flag says whether it is in a place beyond all others.
    Turn(Class, Role, bool),
    /// There is no turn before this time; then it is looked again.
    Again(Instant),
    /// There is no turn until somebody else says that there may be room.
    Wait,
}

impl Turns {
    /// An empty line before a service that takes `connections` calls at once.
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
            silence: [Silence::default(); 2],
            witnesses: Witnesses::default(),
            beyond: 0,
            pending: Pending::default(),
            breaker: Breaker::default(),
            suspects: Suspects::default(),
            doubt: Doubt::default(),
            trial: Trial::None,
            rest: None,
            strangers: None,
            refused: Vec::new(),
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

    /// Admits a question to the line, where it is of any use to wait. A new device takes a guess, which [`Self::was_no_guess`]
    /// gives back.
    ///
    /// # Errors
    /// The reason of the last failure while the identifier is left alone; [`Unavailable::Paused`]; [`Unavailable::OutOfBudget`]
    /// where the guesses of this way in are spent; and [`Unavailable::Busy`] where the line is longer than `patience`.
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

    /// Charges a guess for its requests: those beyond what a guess pays for count as further guesses.
    pub(super) fn was_a_guess(&self, class: Class, requests: u32) {
        let more = requests.div_ceil(GUESS).saturating_sub(1);
        if let Some(guesses) = self.lock().guesses(class.way).filter(|_| class.new) {
            guesses.charge(more);
        }
    }

    /// Appoints a witness, where a device has to be asked for to see whether the service is well. True: the caller sees to it,
    /// by [`Self::sends`], [`Self::line_up_for_others`] or [`Self::has_no_witness`].
    pub(super) fn appoints(&self, now: Instant) -> bool {
        let mut inner = self.lock();
        let due = match inner.breaker.circuit(now) {
            Circuit::Closed => inner.doubt.is_about(true),
            Circuit::HalfOpen => true,
            Circuit::Open => false,
        };
        if !due || inner.trial != Trial::None || inner.rest.is_some_and(|rest| now < rest) {
            return false;
        }
        inner.trial = Trial::Appointed;
        inner.doubt.since.get_or_insert(now);
        true
    }

    /// The worth of a known device as a witness now; `None`: it would say nothing.
    ///
    /// A device that failed is asked again only after every second pause, since in a long outage all may have failed. After the
    /// other pauses another one tries, since the failure may be that device's own.
    pub(super) fn witness(&self, who: Who) -> Option<Witness> {
        self.lock().witness(who)
    }

    /// The worth of a known device as a witness of silence: see [`Suspects::listener`].
    pub(super) fn listener(&self, who: Who) -> Option<Witness> {
        self.lock().suspects.listener(who, Instant::now())
    }

    /// Whether a known device fails by itself: see [`Suspects::is_alone`].
    pub(super) fn is_alone(&self, who: Who) -> bool {
        self.lock().suspects.is_alone(who, Instant::now())
    }

    /// Whether those who ask for known devices wait for a try of the service.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.lock().is_on_trial(false)
    }

    /// Whether the service gave a record lately: see [`Suspects::gives_records`].
    pub(super) fn gives_records(&self) -> bool {
        self.lock().suspects.gives_records(Instant::now())
    }

    /// Whether the outcome of a call for a known device can speak for or against the service, now or after another pause.
    pub(super) fn can_speak(&self, who: Who) -> bool {
        self.lock().suspects.witness(who, Instant::now()).is_some()
    }

    /// Leaves the trial to the first in line, since no device can be appointed now. There are two exceptions. Where `too_few`
    /// devices could speak against the service, the circuit closes. Where there was no pause and fewer than two have failed, the
    /// doubt is dropped. So invented identifiers, and one device besides, keep no new device out.
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

    /// Takes the place of a witness: of the appointed one, after which another may be appointed once this place is given up, or of
    /// one on account of somebody's [`Patience`].
    pub(super) fn line_up_for_others(self: &Arc<Self>, role: Role, who: Who, deadline: Instant) -> Place {
        self.stand(Class { new: false, way: Way::Webhook }, Some(who), deadline, role)
    }

    fn stand(self: &Arc<Self>, class: Class, who: Option<Who>, deadline: Instant, role: Role) -> Place {
        let mut inner = self.lock();
        let number = inner.next();
        let woken = Arc::new(Notify::new());
        let at = (class.rank(), number);
        inner.line.insert(at, number);
        inner.stands.insert(number, Stand { class, who, at, role, since: Instant::now(), deadline, woken: Arc::clone(&woken) });
        if role != Role::Ordinary {
            inner.witnesses.add(number, who.map(|who| who.device));
        }
        Place { turns: Arc::clone(self), number, who, woken }
    }

    /// Joins somebody of this class and with this deadline to a call in line, which gets the place that they would have had, if
    /// it is better, and the later deadline.
    pub(super) fn joined(&self, number: u64, class: Class, deadline: Instant) {
        let mut inner = self.lock();
        let next = inner.next();
        let Inner { stands, line, .. } = &mut *inner;
        let Some(stand) = stands.get_mut(&number) else { return };
        stand.deadline = stand.deadline.max(deadline);
        // Who joins has the whole time for an answer, and so has the call.
        stand.since = Instant::now();
        if class.rank() < stand.class.rank() {
            line.remove(&stand.at);
            (stand.class, stand.at) = (class, (class.rank(), next));
            line.insert(stand.at, number);
        }
        stand.woken.notify_one();
        // Whoever stood behind the call may be the first now.
        inner.wake();
    }

    /// The next step of somebody who has waited for a turn, or for a place for a request, since `came` and has an old record.
    ///
    /// Slow calls may be those of a few identifiers, by which anybody may hold every place. So the service is silent only where
    /// witnesses have no answer either: two of them, since one may be slow by itself, or one where there is no second. They are
    /// asked in places of their own, and each must have been with the service since its last answer.
    pub(super) fn patience(&self, came: Instant, now: Instant) -> Patience {
        let inner = self.lock();
        // Whoever asks now has the old record at once. A call that had its turn before may wait for a place for its request still.
        if inner.admits(Class { new: false, way: Way::Webhook }, now).is_err() {
            return Patience::Over;
        }
        // Of those who are known all have failed, and none can be asked whether the service is well: there is nothing to wait for.
        if inner.trial == Trial::Anyone {
            let over = came + STALE_AFTER;
            return if now < over { Patience::Until(over.min(now + SOON)) } else { Patience::Over };
        }
        let silent = inner.silence.iter().filter_map(|silence| silence.since).min();
        inner.witnesses.patience(silent, came, now, inner.breaker.circuit(now) == Circuit::Closed)
    }

    /// Whether one more witness may be asked on account of somebody's [`Patience`]. The caller sees to it before anybody else
    /// looks, by [`Self::sends`], [`Self::line_up_for_others`] or [`Self::has_no_more`].
    pub(super) fn lacks_a_witness(&self, now: Instant) -> bool {
        let inner = self.lock();
        inner.witnesses.lack(now) && inner.breaker.circuit(now) == Circuit::Closed
    }

    /// The devices for which witnesses are asked at present.
    pub(super) fn spoken_for(&self) -> Vec<Mark> {
        self.lock().witnesses.devices().collect()
    }

    /// Makes a witness of the call with this number, where it waits in line: one lookup does for both. Returns whether it did.
    pub(super) fn sends(&self, number: u64, role: Role) -> bool {
        let mut inner = self.lock();
        let waits = |stand: &&mut Stand| stand.role == Role::Ordinary && !stand.class.new;
        let Some(stand) = inner.stands.get_mut(&number).filter(waits) else { return false };
        stand.role = role;
        stand.woken.notify_one();
        let device = stand.who.map(|who| who.device);
        inner.witnesses.add(number, device);
        true
    }

    /// Notes that no further witness is to be had: one alone speaks for the service then, and nobody speaks where there is none.
    pub(super) fn has_no_more(&self) {
        self.lock().witnesses.have_no_more(Instant::now());
    }

    /// State of the circuit, for operators.
    pub(super) fn circuit(&self, now: Instant) -> Circuit {
        self.lock().breaker.circuit(now)
    }

    /// The next step of a call in line, with its deadline.
    ///
    /// # Errors
    /// [`Unavailable::Paused`]; [`Unavailable::Busy`] where the call is not in line.
    fn look(&self, number: u64, now: Instant) -> Result<(Look, Instant), Unavailable> {
        let mut inner = self.lock();
        let Some(&Stand { class, who, at, role, deadline, .. }) = inner.stands.get(&number) else { return Err(Unavailable::Busy) };
        inner.breaker.admits(now)?;
        let role = if role == Role::Ordinary && inner.is_on_trial(class.new) {
            let may = inner.trial == Trial::Anyone && inner.volunteer(now) == Some(number);
            if !may || !self.has_room(&inner, class, Role::Volunteer) {
                return inner.waits(class).map(|look| (look, deadline));
            }
            Role::Volunteer
        } else {
            role
        };
        let first = inner.line.range((at.0, 0)..).next().is_some_and(|(place, _)| *place == at);
        // Who tries the service for all does not wait behind those who wait for the outcome.
        if (!first && role == Role::Ordinary) || !self.has_room(&inner, class, role) {
            return Ok((Look::Wait, deadline));
        }
        let leaves = self.leaves.get(class.rank()).copied().unwrap_or_default();
        if let Err(again) = inner.seconds.take_above(leaves, now) {
            return Ok((Look::Again(now + again), deadline));
        }
        inner.line.remove(&at);
        inner.stands.remove(&number);
        // A witness takes a place beyond first: in another one, without an answer, it would keep others from being asked.
        let beyond = role.may_speak(class) && inner.beyond < errand::WITNESSES;
        if beyond {
            inner.beyond += 1;
        } else if let Some(calls) = inner.under_way.get_mut(class.rank()) {
            *calls += 1;
        }
        // A call about no device is our own, for a feed or a list, and takes as long as that has pages.
        if who.is_some() {
            inner.waits_of(class.new, role).for_each(|silence| silence.begins(now));
        }
        *inner.pending.of(class.new) += 1;
        if role == Role::Volunteer {
            inner.trial = Trial::Appointed;
            if role.may_speak(class) {
                inner.witnesses.add(number, who.map(|who| who.device));
            }
        }
        inner.wake();
        Ok((Look::Turn(class, role, beyond), deadline))
    }

    /// Whether one more call may be under way: its rank, and each one before, has room together with those behind it, and no
    /// more calls are under way than it takes to be sure of a doubt.
    fn has_room(&self, inner: &Inner, class: Class, role: Role) -> bool {
        let within = |(rank, most): (usize, &usize)| inner.under_way.iter().skip(rank).sum::<usize>() < *most;
        let sure = role != Role::Ordinary || {
            let pending = inner.pending.known + if class.new { inner.pending.new } else { 0 };
            inner.breaker.has_room(pending) && inner.doubt.has_room(class.new, pending)
        };
        let places = self.most.iter().enumerate().take(class.rank() + 1).all(within);
        // Witnesses have places of their own, whoever holds the others.
        sure && (places || (role.may_speak(class) && inner.beyond < errand::WITNESSES))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether a question of this class may be asked or wait, by the circuit.
    ///
    /// # Errors
    /// [`Unavailable::Paused`].
    fn admits(&self, class: Class, now: Instant) -> Result<(), Unavailable> {
        self.breaker.admits(now)?;
        if class.new || !self.is_silent() { Ok(()) } else { Err(Unavailable::Paused) }
    }

    /// See [`Turns::witness`].
    fn witness(&self, who: Who) -> Option<Witness> {
        let worth = self.suspects.witness(who, Instant::now())?;
        let spoke = matches!(worth, Witness::Suspect(_)) || self.doubt.known.contains(&who.device);
        if spoke && !self.breaker.is_even() { None } else { Some(worth) }
    }

    /// Whether a service that was silent is being tried: who may have an old record does not wait for the outcome.
    fn is_silent(&self) -> bool {
        self.breaker.is_paused() && self.breaker.is_silent() && self.trial == Trial::Appointed
    }

    /// Whether those who ask for new devices, or for known ones, wait for a try. What fails for known devices fails for new
    /// ones, but not the other way about.
    fn is_on_trial(&self, new: bool) -> bool {
        self.breaker.is_paused() || self.doubt.is_about(new)
    }

    /// Waits for the outcome of a try. Where the service is without an answer meanwhile, [`Turns::patience`] ends the wait of those
    /// who have an old record.
    ///
    /// # Errors
    /// [`Unavailable::Paused`] where the service was silent before the try, and the device is known.
    fn waits(&self, class: Class) -> Result<Look, Unavailable> {
        if !class.new && self.is_silent() { Err(Unavailable::Paused) } else { Ok(Look::Wait) }
    }

    /// Number of the call that tries where nobody can be appointed: the first in line that has time for an answer, and one that
    /// did not fail before one that did. A failure of one that failed before says nothing new, so for a while others have the
    /// time to come.
    fn volunteer(&self, now: Instant) -> Option<u64> {
        let early = self.doubt.since.is_some_and(|since| now < since + OTHERS_COME);
        let in_time = |stand: &&Stand| stand.class.new || now < stand.since + STALE_AFTER;
        let mut stands = self.line.values().filter_map(|number| Some((*number, self.stands.get(number).filter(in_time)?)));
        let first = stands.clone().next();
        let failed = |who: Who| {
            self.doubt.known.contains(&who.device)
                || self.suspects.witness(who, now).is_none_or(|worth| matches!(worth, Witness::Suspect(_)))
        };
        let better = stands.find(|(_, stand)| stand.class.new || !stand.who.is_some_and(failed));
        better.or(first.filter(|_| !early)).map(|(number, _)| number)
    }

    fn answered(&mut self, new: bool, who: Option<Who>, record: bool) {
        // The answer about a new device leaves it open whether those who failed can be answered by now.
        if self.breaker.is_paused() && !new {
            self.suspects.forgive();
        }
        self.suspects.answered(who, record, Instant::now());
        self.doubt = Doubt::default();
        self.refused.clear();
        self.breaker.answered();
    }

    fn failed(&mut self, call: &Permit, why: Unavailable, now: Instant) -> bool {
        let (new, tries) = (call.class.new, call.role != Role::Ordinary);
        // Whoever may state identifiers may know some for which the service asks to be left alone: once in a while that counts.
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
        // The failure is about the caller of the service, or about no device at all.
        let Some(who) = call.who.filter(|_| why.blame() != Blame::Service) else {
            // That the service refuses its caller for one device opens nothing, however often that is asked for, unless the call is
            // a trial.
            if let Some(who) = call.who.filter(|_| why == Unavailable::AuthRejected && !call.role.is_trial()) {
                if self.refused.contains(&who.device) {
                    return false;
                }
                self.refused.push(who.device);
            }
            if call.role.is_trial() {
                self.breaker.open(why, now);
            } else {
                self.breaker.failed(why, now);
            }
            return false;
        };
        if self.suspects.failed(new, who, why, now) {
            return true;
        }
        // Whoever may state identifiers can cause as many of these failures as they like.
        if new && !tries && why.blame() == Blame::Identifier && self.doubt.known.is_empty() {
            return false;
        }
        self.doubt.add(new, who.device);
        if !tries {
            return false;
        }
        let enough = self.doubt.witness_failed() || call.role == Role::Volunteer;
        if enough || self.breaker.is_paused() {
            self.breaker.open(why, now);
            self.doubt = Doubt::default();
        }
        false
    }

    /// The silences that a call counts for. A witness is asked on account of others who wait, and what it waits for is not
    /// theirs.
    fn waits_of(&mut self, new: bool, role: Role) -> impl Iterator<Item = &mut Silence> {
        let [all, known] = &mut self.silence;
        let counts = matches!(role, Role::Ordinary | Role::Volunteer);
        counts.then_some(all).into_iter().chain((counts && !new).then_some(known))
    }

    /// The silences that an answer ends.
    fn ended_by(&mut self, new: bool) -> impl Iterator<Item = &mut Silence> {
        let [all, known] = &mut self.silence;
        std::iter::once(all).chain((!new).then_some(known))
    }

    fn guesses(&self, way: Way) -> Option<&Bucket> {
        self.guesses.get(way as usize)
    }

    const fn next(&mut self) -> u64 {
        self.last = self.last.saturating_add(1);
        self.last
    }

    /// Wakes the first of each rank and every witness, and everybody where the service is tried or left alone.
    fn wake(&self) {
        let all = self.is_on_trial(true);
        let mut last = None;
        for ((rank, _), number) in &self.line {
            if let Some(stand) = self.stands.get(number).filter(|stand| all || last != Some(*rank) || stand.role != Role::Ordinary) {
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

impl Place {
    /// Waits for the right to make a call.
    ///
    /// # Errors
    /// [`Unavailable::Paused`] as soon as the circuit opens, or where the try of the service takes too long;
    /// [`Unavailable::Busy`] where there was no room until the deadline.
    pub(super) async fn turn(self) -> Result<Permit, Unavailable> {
        loop {
            // Waking is enabled before the look, so that what happens after it is not missed.
            let mut woken = pin!(self.woken.notified());
            woken.as_mut().enable();
            let now = Instant::now();
            let (look, deadline) = self.turns.look(self.number, now)?;
            let again = match look {
                Look::Turn(class, role, beyond) => {
                    let (turns, number, who) = (Arc::clone(&self.turns), self.number, self.who);
                    return Ok(Permit { turns, number, class, who, role, beyond, deadline, told: false, own: false });
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

    /// Number by which the place is found again: see [`Turns::joined`].
    pub(super) const fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.turns.lock();
        // A place that had its turn has left the line already, and has told the others.
        let Some(stand) = inner.stands.remove(&self.number) else { return };
        inner.line.remove(&stand.at);
        if stand.role == Role::Witness {
            inner.trial = Trial::None;
        }
        inner.witnesses.remove(self.number);
        inner.wake();
    }
}

impl Permit {
    /// Notes that the service is not silent: it answered this call, be it by an error, or others that were before it.
    pub(super) fn heard(&self) {
        let (now, mut inner) = (Instant::now(), self.turns.lock());
        inner.ended_by(self.class.new).for_each(|silence| silence.answered(now));
        // An answer to a witness counts where no other call is under way too.
        if !self.class.new {
            inner.witnesses.hear(now);
        }
    }

    /// Notes since when the service has left the call without an answer; `None`: the call is not with the service.
    pub(super) fn waits_since(&self, since: Option<Instant>) {
        self.turns.lock().witnesses.wait_since(self.number, since);
    }

    /// Whether the call is made on account of others alone: it is given up once the service counts as silent for it, so that
    /// another one can be asked.
    pub(super) const fn is_for_others(&self) -> bool {
        matches!(self.role, Role::Witness | Role::Probe)
    }

    /// The kind of device for which the call is made.
    pub(super) fn whom(&self) -> Whom {
        match self.role {
            role if role.may_speak(self.class) => Whom::Witness,
            _ if self.class.new => Whom::New,
            _ => Whom::Known,
        }
    }

    /// Reports that the service answered: with a record, or with none or too many. An answer that is too late says no more than
    /// that the identifier is well. A device whose answer is slow is the last to speak for the service next time.
    pub(super) fn succeeded(&mut self, record: bool, slow: bool) {
        let who = self.who;
        self.heard();
        if !self.told {
            self.tell(|inner, call| inner.answered(call.class.new, who, record));
        } else if let Some(who) = who {
            self.turns.lock().suspects.clear(who);
        }
        if let Some(who) = who.filter(|_| !self.class.new) {
            self.turns.lock().suspects.took(who, slow, Instant::now());
        }
    }

    /// Reports an outcome that says nothing of the service: a bound of ours.
    pub(super) fn withdrawn(&mut self) {
        self.tell(|inner, call| {
            if call.role.is_trial() {
                inner.rest = Some(Instant::now() + REST);
            }
        });
    }

    /// Reports that the service cannot be asked by this identifier.
    pub(super) fn cannot_be_asked(&mut self) {
        self.tell(|inner, call| {
            if let Some(who) = call.who.filter(|_| !call.class.new) {
                inner.suspects.cannot_be_asked(who);
            }
        });
    }

    /// Reports that the service did not answer, or by an error.
    pub(super) fn failed(&mut self, why: Unavailable, now: Instant) {
        if !matches!(why, Unavailable::Timeout | Unavailable::Network) {
            self.heard();
        }
        let mut own = self.own;
        self.tell(|inner, call| own = inner.failed(call, why, now));
        self.own = own;
    }

    /// Whether the failure is the device's own: then its call keeps no place any longer from others.
    pub(super) const fn fails_by_itself(&self) -> bool {
        self.own
    }

    /// Reports the outcome; only the first report counts.
    fn tell(&mut self, tell: impl FnOnce(&mut Inner, &Self)) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let mut inner = self.turns.lock();
        let pending = inner.pending.of(self.class.new);
        *pending = pending.saturating_sub(1);
        if self.role.is_trial() {
            inner.trial = Trial::None;
        }
        tell(&mut inner, self);
        // By what is known now a witness may be appointed, or none has to be.
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
        if self.beyond {
            inner.beyond = inner.beyond.saturating_sub(1);
        } else if let Some(calls) = inner.under_way.get_mut(self.class.rank()) {
            *calls = calls.saturating_sub(1);
        }
        if self.who.is_some() {
            inner.waits_of(self.class.new, self.role).for_each(Silence::ends);
        }
        inner.witnesses.remove(self.number);
        inner.wake();
    }
}

/// Requests that a guess pays for: what a miss takes where there are two inventories.
const GUESS: u32 = 2;
/// Longest pause that the service gets where it asks for one about a device that nobody knows.
const LONGEST_STRANGER: Duration = Duration::from_secs(5);
/// Time in which no other such pause begins, unless the service asks for one about a known device.
const STRANGERS: Duration = Duration::from_secs(60);
/// Time in which nobody who failed tries the service for all, where nobody can be appointed: as long as the longest pause.
const OTHERS_COME: Duration = Duration::from_secs(5);
/// Time for which nobody is appointed after a witness that a bound of ours kept from being asked.
const REST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
