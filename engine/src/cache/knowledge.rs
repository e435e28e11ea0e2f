//! Knowledge of a service's devices, by the order in which it was asked for.
//!
//! Every device has one slot with the newest record of it, whichever identifier it was asked by. An identifier leads to a slot
//! only where the service was asked by that identifier, or where a whole list proved that no other device has it. So a newer
//! answer about a device counts for all its identifiers, and an answer by one identifier says nothing of who else has another.

use std::cmp;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use inventory::{Answer, Inventory, Question};
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::{Fact, Form, Record};
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use super::bounds::{MISSING, millis};
use super::entry::{self, Binding, Key, Learned, OWN_KINDS, Slot, Stored};
use super::mark::Mark;
use super::order::{Moment, Open, Order, Told};
use super::revocations::{Revocations, Standing};

/// The knowledge of one service. It outlives a change of the service's credentials, and of how hard it may be asked.
#[derive(Debug)]
pub(super) struct Knowledge {
    pub(super) found: moka::sync::Cache<Key, Binding>,
    /// Identifiers of no device or of several; apart, so that guessing cannot push a device out.
    pub(super) missing: moka::sync::Cache<Key, Missing>,
    /// Identifiers that more than one device had when the service was last asked by them or listed, until it is asked again.
    ambiguous: moka::sync::Cache<Key, Doubt>,
    /// Whether any identifier was ever ambiguous, so that nobody has to look while none was.
    any_ambiguous: Arc<AtomicBool>,
    /// Whether the service was ever asked by a kind of identifier of which a list proves nothing.
    any_named: Arc<AtomicBool>,
    /// Slots by the marks of their devices.
    slots: Arc<Mutex<Slots>>,
    order: Arc<Order>,
    pub(super) revocations: Arc<Revocations>,
    started: Instant,
    /// How long the machine had slept when the knowledge began.
    slept: Duration,
    kept: Arc<Mutex<Kept>>,
    /// Identifiers that a record had and that led to none, with the moment of the call or list from which that record came.
    heard: moka::sync::Cache<Key, Moment>,
    /// The kind of [`Inventory::item_kind`].
    item_kind: Option<IdentifierKind>,
}

/// The answer that a service has no such device, or several.
#[derive(Clone, Debug)]
pub(super) struct Missing {
    pub(super) answer: Answer,
    /// Spelling of the identifier in the question: a service that minds the case may have a device by another spelling. `None`:
    /// the answer counts for each.
    pub(super) spelled: Option<Box<str>>,
    pub(super) at: u64,
    pub(super) moment: Moment,
    /// Hint of the only questions that the answer counts for: [`Learned::hint`].
    pub(super) hint: Option<Form>,
}

impl Missing {
    /// Whether the answer counts for a question, as that spells the identifier. For one in upper case it always does, since the
    /// service is asked in upper case too.
    pub(super) fn counts(&self, question: &Question) -> bool {
        let device = &question.device;
        let is_asked = |spelled: &str| device.stated().trim_ascii() == device.normal() || entry::as_written(device).stated() == spelled;
        entry::counts(self.hint, question.hint) && self.spelled.as_deref().is_none_or(is_asked)
    }
}

/// The doubt about an identifier that several devices have.
#[derive(Clone, Debug)]
pub(super) struct Doubt {
    moment: Moment,
    /// Time of the question that raised the doubt, or of the last attempt to look into it, in milliseconds of the cache's
    /// clock.
    looked: Arc<AtomicU64>,
}

/// The last whole list, and what was forgotten of it and since for want of room.
#[derive(Debug, Default)]
struct Kept {
    /// Moment of the list.
    listed: Moment,
    /// Kinds of identifiers whose owners the list told.
    kinds: Vec<IdentifierKind>,
    /// Moment at which a device was last pushed out.
    pushed_out: Moment,
    /// The moment of the newest entry that `heard` pushed out for want of room.
    unheard: Moment,
}

#[derive(Debug, Default)]
struct Slots {
    by_mark: HashMap<Mark, Weak<Slot>>,
    tidy_at: usize,
}

/// The basis of an answer, to be looked at again when a decision is made by it.
#[derive(Clone, Debug)]
pub(super) enum Basis {
    /// The device, with its record as it was then.
    Found(Arc<Slot>, Stored),
    /// Moment of the question by which the service had no device, or several, and the only hint that this counts for, where
    /// there is one.
    None(Moment, Option<Form>),
}

/// The owner of each identifier in one list.
#[derive(Debug)]
pub(super) struct Claims {
    of: HashMap<Key, Claim>,
    /// Kinds of identifiers that are claimed; of others, only those identifiers that are in doubt.
    kinds: Vec<IdentifierKind>,
    /// Whether the list is one of everything; another one cannot prove that an identifier is one device's alone.
    whole: bool,
    /// Whether two items of one identifier are two devices, however alike.
    items: bool,
}

#[derive(Debug)]
enum Claim {
    /// The identifier is this device's. Without a slot, a later question about the device was answered already.
    One(Mark, Option<Arc<Slot>>),
    /// The identifier is several devices', none newer than all others: this one is not older than any, and a newer one may yet
    /// come.
    Tied(Arc<Slot>),
    /// The identifier is several devices'.
    Many,
}

impl Knowledge {
    /// Empty knowledge; `item_kind` is [`Inventory::item_kind`] of the service.
    pub(super) fn new(most: u64, negative: Duration, evictions: Counter, item_kind: Option<IdentifierKind>) -> Self {
        Self::with(most, negative, evictions, item_kind, None)
    }

    /// The same knowledge with other bounds.
    pub(super) fn bounded(&self, most: u64, negative: Duration, evictions: Counter) -> Self {
        Self::with(most, negative, evictions, self.item_kind, Some(self))
    }

    fn with(most: u64, negative: Duration, evictions: Counter, item_kind: Option<IdentifierKind>, before: Option<&Self>) -> Self {
        let kept = before.map_or_else(Arc::<Mutex<Kept>>::default, |before| Arc::clone(&before.kept));
        let lost = Arc::clone(&kept);
        let evicted = move |_: Arc<Key>, _: Binding, cause: RemovalCause| {
            if cause == RemovalCause::Size {
                evictions.inc();
                lost.lock().unwrap_or_else(PoisonError::into_inner).pushed_out = Moment::now();
            }
        };
        // A device that was ever found stays known, though its record is too old to be used. What was not used for longest goes
        // first, so that a device which is asked for often pushes nothing out that was just learned: an answer has to be there
        // until the decision is made by it.
        let lately = EvictionPolicy::lru();
        let found = moka::sync::Cache::builder().max_capacity(most).eviction_policy(lately).eviction_listener(evicted).build();
        let missing = moka::sync::Cache::builder().max_capacity(MISSING).time_to_live(negative.max(Duration::from_secs(1))).build();
        let room = usize::try_from(most).unwrap_or(usize::MAX);
        let unheard = Arc::clone(&kept);
        let heard_of = move |_: Arc<Key>, moment: Moment, cause: RemovalCause| {
            if cause == RemovalCause::Size {
                let mut kept = unheard.lock().unwrap_or_else(PoisonError::into_inner);
                kept.unheard = kept.unheard.max(moment);
            }
        };
        let heard = || moka::sync::Cache::builder().max_capacity(MISSING).eviction_listener(heard_of).build();
        let Some(before) = before else {
            return Self {
                found,
                missing,
                ambiguous: moka::sync::Cache::new(MISSING),
                any_ambiguous: Arc::default(),
                any_named: Arc::default(),
                slots: Arc::default(),
                order: Arc::new(Order::new(ANSWERS)),
                revocations: Arc::new(Revocations::new(room)),
                started: Instant::now(),
                slept: clock::slept(),
                kept,
                heard: heard(),
                item_kind,
            };
        };
        for (key, binding) in &before.found {
            found.insert((*key).clone(), binding);
        }
        for (key, answer) in &before.missing {
            missing.insert((*key).clone(), answer);
        }
        Self {
            found,
            missing,
            ambiguous: before.ambiguous.clone(),
            any_ambiguous: Arc::clone(&before.any_ambiguous),
            any_named: Arc::clone(&before.any_named),
            slots: Arc::clone(&before.slots),
            order: Arc::clone(&before.order),
            revocations: Arc::clone(&before.revocations),
            started: before.started,
            slept: before.slept,
            kept,
            heard: before.heard.clone(),
            item_kind,
        }
    }

    /// Kinds of identifiers of which a list can prove that they are one device's.
    fn kinds(&self) -> impl Iterator<Item = IdentifierKind> {
        OWN_KINDS.iter().copied().chain(self.item_kind.filter(|kind| !OWN_KINDS.contains(kind)))
    }

    /// Keys of a record, of the kinds that lists can prove.
    fn keys(&self, record: &Record) -> Vec<Key> {
        entry::keys(record, &self.kinds().collect::<Vec<_>>())
    }

    /// Keys of other kinds that a record fits, where the service was ever asked by such.
    fn names(&self, record: &Record) -> Vec<Key> {
        if !self.any_named.load(Ordering::Acquire) {
            return Vec::new();
        }
        let kinds: Vec<_> = self.kinds().collect();
        IdentifierKind::ALL.iter().filter(|kind| !kinds.contains(kind)).flat_map(|kind| entry::names(record, *kind)).collect()
    }

    /// The identifier as the newest record spells it: another spelling asks for the same device.
    pub(super) fn spelled(&self, key: &Key) -> Option<DeviceId> {
        let record = self.found.get(key)?.slot.read().record()?;
        entry::identifiers(&record, &[key.kind()]).find(|device| Key::of(device) == *key)
    }

    /// Milliseconds since the service was first known, with those in which the machine slept; never 0.
    pub(super) fn now(&self) -> u64 {
        millis(self.started.elapsed() + clock::slept().saturating_sub(self.slept)).saturating_add(1)
    }

    /// Opens a question or a list, at a new moment.
    pub(super) fn ask(&self) -> Open {
        self.order.ask()
    }

    /// Whether a question or list of this moment comes to nothing, as it stands.
    pub(super) fn is_void(&self, asked: Moment) -> bool {
        self.order.is_void(asked)
    }

    /// Whether questions that are open for long have to be given up for others.
    pub(super) fn is_crowded(&self) -> bool {
        self.order.is_crowded()
    }

    /// Takes the service's answer to a question by an identifier. `None`: the answer says nothing, or a later question overtook
    /// it, and nobody may go by it.
    pub(super) fn learn(&self, key: &Key, answer: &Answer, spelled: Option<&str>, learned: Learned, sweep: u32) -> Option<Basis> {
        if !self.any_named.load(Ordering::Acquire) && self.kinds().all(|kind| kind != key.kind()) {
            self.any_named.store(true, Ordering::Release);
        }
        match answer {
            Answer::Found(record) => self.learn_found(key, record, learned, sweep),
            // That one of two inventories has no such device says nothing of a device in the other one.
            Answer::NotFound if self.is_in_another(key, learned.hint) => {
                Some(self.remember_none(key, answer, spelled.map(Into::into), learned))
            }
            Answer::NotFound => self.order.take(learned.moment, |told| {
                // A later question found a device with the identifier.
                let had = told.since(key.owner(), learned.moment).is_some();
                if had || told.since(key.question(), learned.moment).is_some() {
                    return None;
                }
                told.tell(learned.moment, key.question(), None);
                self.ambiguous.invalidate(key);
                self.revocations.not_found(key.question(), learned.moment);
                Some(self.learn_none(key, answer, spelled.map(Into::into), learned))
            }),
            // The record of one owner does not take back that there are several.
            Answer::Ambiguous => self.order.take(learned.moment, |told| {
                if told.since(key.question(), learned.moment).is_some() || self.is_proven_since(key, learned.moment) {
                    return None;
                }
                told.tell(learned.moment, key.question(), None);
                self.doubt(key.clone(), learned);
                Some(self.learn_none(key, answer, None, learned))
            }),
            Answer::Unavailable(_) | Answer::InvalidIdentifier => None,
        }
    }

    /// Whether the device that the identifier led to is in another inventory than the hint means.
    fn is_in_another(&self, key: &Key, hint: Option<Form>) -> bool {
        let form = || self.found.get(key).and_then(|binding| binding.slot.read().record()).map(|record| record.form);
        hint.is_some_and(|hint| matches!(form(), Some(Fact::Value(form)) if form != hint))
    }

    fn learn_none(&self, key: &Key, answer: &Answer, spelled: Option<Box<str>>, learned: Learned) -> Basis {
        self.found.invalidate(key);
        self.remember_none(key, answer, spelled, learned)
    }

    fn remember_none(&self, key: &Key, answer: &Answer, spelled: Option<Box<str>>, learned: Learned) -> Basis {
        let Learned { at, moment, hint, .. } = learned;
        self.missing.insert(key.clone(), Missing { answer: answer.clone(), spelled, at, moment, hint });
        Basis::None(moment, hint)
    }

    fn learn_found(&self, key: &Key, record: &Record, learned: Learned, sweep: u32) -> Option<Basis> {
        let stored = self.landed(Stored::new(record, learned, self.item_kind)?, Some(key));
        let (own, keys, names) = (stored.own_mark(), self.keys(record), self.names(record));
        self.order.take(learned.moment, |told| {
            let slot = self.place(told, stored.clone(), &keys)?;
            for other in keys.iter().chain(&names) {
                self.heard_of(told, other, Some(own), learned.moment);
            }
            // A later question found another device with the identifier, or was one by the identifier.
            let doubted = told.since(key.owner(), learned.moment).is_some_and(|device| device != Some(own));
            if doubted || told.since(key.question(), learned.moment).is_some() {
                return None;
            }
            told.tell(learned.moment, key.question(), Some(own));
            self.missing.invalidate(key);
            self.ambiguous.invalidate(key);
            let binding = Binding { slot: Arc::clone(&slot), at: learned.at, moment: learned.moment, sweep, hint: learned.hint };
            self.found.insert(key.clone(), binding);
            Some(Basis::Found(slot, stored))
        })
    }

    /// A record that has just come, marked as overtaken where an event named its device on the way. `key`: the identifier by
    /// which it was asked for.
    fn landed(&self, mut stored: Stored, key: Option<&Key>) -> Stored {
        let marks = stored.marks().into_iter().chain(key.into_iter().flat_map(|key| [key.mark(), key.question()]));
        stored.overtaken = self.revocations.standing(stored.moment, marks) >= Standing::Dropped;
        stored
    }

    /// Notes that the device `own` has this identifier; `None`: several have it. What an earlier question learned about the
    /// identifier is forgotten, unless it led to the same device.
    fn heard_of(&self, told: &mut Told, key: &Key, own: Option<Mark>, moment: Moment) {
        told.tell(moment, key.owner(), own);
        if self.missing.get(key).is_some_and(|missing| missing.moment < moment && missing.answer == Answer::NotFound) {
            self.missing.invalidate(key);
        }
        if self.found.get(key).is_some_and(|binding| binding.moment < moment && Some(binding.slot.read().own_mark()) != own) {
            self.found.invalidate(key);
        }
        if !self.found.contains_key(key) {
            self.heard.insert(key.clone(), moment);
        }
    }

    /// Voids all questions from before a list, whose first records are there.
    pub(super) fn began_to_list(&self, learned: Learned) {
        self.order.supersede(learned.moment);
    }

    /// The claims of a list of which no record was taken yet. `kinds`: the kinds of identifiers that are asked by; `whole`:
    /// whether the list is one of everything.
    pub(super) fn claims(&self, kinds: &[IdentifierKind], whole: bool) -> Claims {
        let kinds = self.kinds().filter(|kind| kinds.contains(kind) || self.item_kind == Some(*kind)).collect();
        Claims { of: HashMap::new(), kinds, whole, items: self.item_kind.is_some() }
    }

    /// Takes one record of a list. What it says of the device counts at once; whose its identifiers are counts once the list is
    /// whole. Returns whether the device can be asked for.
    pub(super) fn learn_listed(&self, record: &Record, learned: Learned, inventory: &dyn Inventory, claims: &mut Claims) -> bool {
        let Some(stored) = Stored::new(record, learned, self.item_kind).map(|stored| self.landed(stored, None)) else { return false };
        let (own, keys, names) = (stored.own_mark(), self.keys(record), self.names(record));
        let asked = keys.iter().any(|key| claims.kinds.contains(&key.kind()));
        let slot = self.order.take(learned.moment, |told| {
            let slot = self.place(told, stored, &keys);
            for key in &keys {
                let other = claims.items && claims.of.contains_key(key);
                self.heard_of(told, key, Some(own).filter(|_| !other), learned.moment);
            }
            for name in &names {
                self.heard_of(told, name, Some(own), learned.moment);
            }
            slot
        });
        if claims.whole {
            for key in keys {
                // An identifier in doubt is looked at in every list, since nobody may ever ask by it.
                if claims.kinds.contains(&key.kind()) || claims.of.contains_key(&key) || self.is_doubted(&key) {
                    claims.add(key, own, slot.as_ref(), inventory);
                }
            }
        }
        asked
    }

    /// Takes a whole list: each identifier of one device leads to it, one of several is ambiguous, and what the list does not
    /// have is gone, unless a later question said otherwise. Returns how many identifiers were removed.
    pub(super) fn learn_whole(&self, claims: Claims, learned: Learned, sweep: u32) -> u64 {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.listed = kept.listed.max(learned.moment);
            kept.kinds.clone_from(&claims.kinds);
        }
        let older = |binding: &Binding| binding.moment < learned.moment;
        let unlisted: Vec<_> = self.found.iter().filter(|(key, binding)| older(binding) && !claims.of.contains_key(&**key)).collect();
        let mut removed: u64 = 0;
        for (key, binding) in unlisted {
            // A list does not say whose the identifiers of other kinds are. It says that the device is there, which is good
            // enough where the service cannot say, and no more.
            if !claims.kinds.contains(&key.kind()) && binding.slot.read().moment >= learned.moment {
                let _ = self.order.take(learned.moment, |_| {
                    let same = self.found.get(&*key).is_some_and(|known| known.moment == binding.moment);
                    same.then(|| self.found.insert((*key).clone(), Binding { sweep: 0, ..binding }))
                });
                continue;
            }
            self.found.invalidate(&*key);
            removed = removed.saturating_add(1);
        }
        for (key, claim) in claims.of {
            // One step, so that no answer comes between the look and what follows from it.
            let _ = self.order.take(learned.moment, |told| {
                let asked = told.since(key.question(), learned.moment).is_some() || self.is_proven_since(&key, learned.moment);
                if !asked {
                    let device = told.since(key.owner(), learned.moment).flatten();
                    self.learn_claim(key, claim, device, learned, sweep);
                }
                Some(())
            });
        }
        removed
    }

    fn doubt(&self, key: Key, learned: Learned) {
        self.ambiguous.insert(key, Doubt { moment: learned.moment, looked: Arc::new(AtomicU64::new(learned.at)) });
        self.any_ambiguous.store(true, Ordering::Release);
    }

    /// Whether a list of now would have no device with this identifier, as far as is known: the last whole list was read for
    /// the identifier's kind and had none, nothing of that list was forgotten, and neither a record nor an event named the
    /// identifier since.
    pub(super) fn is_unlisted(&self, key: &Key) -> bool {
        let listed = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.pushed_out > kept.listed || kept.unheard > kept.listed || !kept.kinds.contains(&key.kind()) {
                return false;
            }
            kept.listed
        };
        let is_heard = self.heard.get(key).is_some_and(|moment| moment > listed);
        !is_heard && !self.found.contains_key(key) && self.standing_by(key, listed, Moment::NEVER) <= Standing::Stirred
    }

    /// Whether a list can prove whose an identifier of this kind is.
    pub(super) fn proves(&self, kind: IdentifierKind) -> bool {
        self.kinds().any(|proven| proven == kind)
    }

    /// Whether several devices had this identifier when that was last known.
    pub(super) fn is_doubted(&self, key: &Key) -> bool {
        self.any_ambiguous.load(Ordering::Acquire) && self.ambiguous.contains_key(key)
    }

    /// Whether the service was asked by this identifier after that moment, and answered.
    fn is_proven_since(&self, key: &Key, moment: Moment) -> bool {
        self.found.get(key).is_some_and(|binding| binding.moment > moment)
            || self.missing.get(key).is_some_and(|missing| missing.moment > moment)
            || self.ambiguous.get(key).is_some_and(|doubt| doubt.moment > moment)
            || self.revocations.unfound_since(key.question(), moment)
    }

    /// Takes one claim of a whole list. `device`: the owner of the identifier by an answer that was asked for after the list.
    fn learn_claim(&self, key: Key, claim: Claim, device: Option<Mark>, learned: Learned, sweep: u32) {
        match claim {
            Claim::One(own, Some(slot)) if device.is_none_or(|device| device == own) => {
                self.missing.invalidate(&key);
                self.ambiguous.invalidate(&key);
                self.found.insert(key, Binding { slot, at: learned.at, moment: learned.moment, sweep, hint: None });
            }
            // Later questions know the device or its identifier better, so the service has to be asked by it.
            Claim::One(..) => self.found.invalidate(&key),
            Claim::Tied(_) | Claim::Many => {
                self.found.invalidate(&key);
                let Learned { at, moment, .. } = learned;
                self.missing.insert(key.clone(), Missing { answer: Answer::Ambiguous, spelled: None, at, moment, hint: None });
                self.doubt(key, learned);
            }
        }
    }

    /// Identifiers of the record that more than one device had when that was last known.
    pub(super) fn doubts(&self, record: &Record) -> Vec<(DeviceId, Doubt)> {
        if !self.any_ambiguous.load(Ordering::Acquire) {
            return Vec::new();
        }
        let kinds: Vec<_> = self.kinds().collect();
        let doubted = |device: DeviceId| self.ambiguous.get(&Key::of(&device)).map(|doubt| (device, doubt));
        entry::identifiers(record, &kinds).filter_map(doubted).collect()
    }

    /// Forgets one device and the doubts about its identifiers, or everything. Returns how many identifiers led to a record.
    pub(super) fn forget(&self, device: Option<&DeviceId>) -> u64 {
        let moment = Moment::now();
        let Some(device) = device else {
            self.found.run_pending_tasks();
            let entries = self.found.entry_count();
            self.revocations.add(None, true, moment);
            self.missing.invalidate_all();
            self.found.invalidate_all();
            self.ambiguous.invalidate_all();
            return entries;
        };
        let key = Key::of(device);
        self.revocations.add(Some(key.mark()), true, moment);
        self.missing.invalidate(&key);
        self.ambiguous.invalidate(&key);
        let Some(binding) = self.found.remove(&key) else { return 0 };
        for key in binding.slot.read().record().iter().flat_map(|record| self.keys(record)) {
            self.ambiguous.invalidate(&key);
        }
        1
    }

    /// Standing of a record that an identifier leads to, for a request that came at that moment.
    pub(super) fn standing(&self, key: &Key, binding: &Binding, stored: &Stored, came: Moment) -> Standing {
        if stored.contradicted {
            return Standing::Revoked;
        }
        let of_device = settled(self.revocations.standing(stored.moment, stored.marks().into_iter()), stored.moment, came);
        of_device.max(self.standing_by(key, binding.moment, came))
    }

    /// Whether a record may stand in for the service's own answer to a request that came at that moment. A record that an event
    /// has dropped may, where it was there before the request came, and so was the last event that named the device. What this
    /// request learned, or one beside it, and an event overtook is no old record; nor is what an event overtook on the way, for
    /// whoever comes later.
    pub(super) fn stands_in(&self, key: &Key, binding: &Binding, stored: &Stored, came: Moment) -> bool {
        match self.standing(key, binding, stored, came) {
            Standing::Good => true,
            Standing::Stirred | Standing::Dropped => {
                let marks = stored.marks().into_iter().chain([key.mark(), key.question()]);
                !stored.overtaken && stored.landed < came && self.revocations.standing(came, marks) < Standing::Dropped
            }
            Standing::Revoked => false,
        }
    }

    /// Standing of what was learned at this moment by an identifier, by what was heard of the identifier alone.
    pub(super) fn standing_by(&self, key: &Key, learned: Moment, came: Moment) -> Standing {
        let marks = [Key::mark, Key::question].into_iter().map(|mark| mark(key));
        settled(self.revocations.standing(learned, marks), learned, came)
    }

    /// Whether an answer by this identifier is what is known now, for a request that came at that moment. `old`: the answer is
    /// an old record, which stands though an event dropped it before, since the service could not say what is so now.
    pub(super) fn stands(&self, key: &Key, basis: &Basis, old: bool, came: Moment) -> bool {
        match basis {
            Basis::Found(slot, said) => self.found.get(key).is_some_and(|binding| {
                let known = binding.slot.read();
                let standing = self.standing(key, &binding, &known, came);
                Arc::ptr_eq(&binding.slot, slot)
                    && known.says_as(said)
                    && (standing == Standing::Good || (old && self.stands_in(key, &binding, &known, came)))
            }),
            // Whatever was heard of the identifier since, in another answer, in a list that is still being read or by an event,
            // ends the answer, and so does its lifetime.
            Basis::None(asked, hint) => {
                let missing = self.missing.get(key).filter(|missing| missing.moment >= *asked && missing.answer == Answer::NotFound);
                let missing = missing.filter(|missing| entry::counts(missing.hint, *hint));
                missing.is_some_and(|missing| {
                    !self.ambiguous.contains_key(key) && self.standing_by(key, missing.moment, came) == Standing::Good
                })
            }
        }
    }

    /// The slot of the record's device, with the record in it. `None`: a later question about the device was answered, or found
    /// no device by one of its identifiers.
    fn place(&self, told: &mut Told, stored: Stored, keys: &[Key]) -> Option<Arc<Slot>> {
        let (own, asked) = (stored.own_mark(), stored.moment);
        if keys.iter().any(|key| self.revocations.unfound_since(key.question(), asked)) || told.since(own, asked).is_some() {
            return None;
        }
        told.tell(asked, own, Some(own));
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.by_mark.get(&own).and_then(Weak::upgrade) {
            slot.update(stored);
            return Some(slot);
        }
        let slot = Arc::new(Slot::new(stored));
        slots.by_mark.insert(own, Arc::downgrade(&slot));
        if slots.by_mark.len() > slots.tidy_at.max(LEAST) {
            slots.by_mark.retain(|_, slot| slot.strong_count() > 0);
            slots.tidy_at = slots.by_mark.len().saturating_mul(2);
        }
        Some(slot)
    }
}

impl Doubt {
    /// Whether nobody has looked into the doubt for this long. True for the first one who asks, and counts as a look.
    pub(super) fn is_due(&self, now: u64, after: Duration) -> bool {
        let due = |looked: u64| (now.saturating_sub(looked) >= millis(after)).then_some(now);
        self.looked.fetch_update(Ordering::AcqRel, Ordering::Acquire, due).is_ok()
    }
}

impl Claims {
    fn add(&mut self, key: Key, own: Mark, slot: Option<&Arc<Slot>>, inventory: &dyn Inventory) {
        let claim = match self.of.remove(&key) {
            None => Claim::One(own, slot.cloned()),
            Some(_) if self.items => Claim::Many,
            Some(Claim::One(first, known)) if first == own => Claim::One(own, known.or_else(|| slot.cloned())),
            Some(Claim::One(first, Some(known))) => match slot.and_then(|slot| newer(inventory, &known, slot)) {
                Some(cmp::Ordering::Greater) => Claim::One(first, Some(known)),
                Some(cmp::Ordering::Equal) => Claim::Tied(known),
                Some(cmp::Ordering::Less) => Claim::One(own, slot.cloned()),
                None => Claim::Many,
            },
            Some(Claim::Tied(known)) => match slot.and_then(|slot| newer(inventory, &known, slot)) {
                Some(cmp::Ordering::Greater | cmp::Ordering::Equal) => Claim::Tied(known),
                Some(cmp::Ordering::Less) => Claim::One(own, slot.cloned()),
                None => Claim::Many,
            },
            Some(Claim::One(_, None) | Claim::Many) => Claim::Many,
        };
        self.of.insert(key, claim);
    }
}

/// Standing for a request that came at that moment: what was asked for after it came is good for it, though an event may have
/// changed anything since.
fn settled(standing: Standing, learned: Moment, came: Moment) -> Standing {
    if standing == Standing::Stirred && learned > came { Standing::Good } else { standing }
}

/// Order of two devices by their age, where the newest one counts; `None` where neither does.
fn newer(inventory: &dyn Inventory, one: &Slot, other: &Slot) -> Option<cmp::Ordering> {
    inventory.newer(&one.read().record()?, &other.read().record()?)
}

/// Answers that are kept, at most, to compare those of older open questions with.
const ANSWERS: usize = 200_000;

/// Number of slots below which those that are no longer used are not removed.
const LEAST: usize = 1024;

#[cfg(test)]
mod tests {
    use posture::record::{Fact, Fields};

    use super::*;

    fn knowledge() -> Knowledge {
        Knowledge::new(10_000, Duration::from_secs(30), Counter::default(), None)
    }

    fn record(serial: &str) -> Record {
        Record { provider_id: format!("id of {serial}"), serial: Fact::Value(serial.to_owned()), ..Record::default() }
    }

    fn learned(moment: Moment) -> Learned {
        Learned { at: 1, moment, asked: Fields::NONE, hint: None }
    }

    #[test]
    fn a13_that_one_inventory_has_none_says_nothing_of_a_device_in_the_other() {
        let knowledge = knowledge();
        let phone = Record { form: Fact::Value(Form::MobileDevice), ..record("F2LX") };
        let key = Key::of(&DeviceId::new(IdentifierKind::Serial, "F2LX").unwrap());
        let learn = |answer: Answer, hint| {
            let moment = Moment::now();
            knowledge.learn(&key, &answer, None, Learned { hint, ..learned(moment) }, 0)
        };
        for (hint, stays) in [(Some(Form::Computer), true), (Some(Form::MobileDevice), false), (None, false)] {
            let found = learn(Answer::Found(Arc::new(phone.clone())), None).unwrap();
            let none = learn(Answer::NotFound, hint).unwrap();
            assert_eq!(knowledge.stands(&key, &found, false, Moment::NEVER), stays, "{hint:?}");
            assert!(knowledge.stands(&key, &none, false, Moment::NEVER), "{hint:?}");
        }
    }

    #[test]
    fn slots_that_nobody_has_are_given_up() {
        let knowledge = knowledge();
        let place = |number: usize| {
            let (record, moment) = (record(&format!("C{number}")), Moment::now());
            let stored = Stored::new(&record, learned(moment), None).unwrap();
            knowledge.order.take(moment, |told| knowledge.place(told, stored, &knowledge.keys(&record))).unwrap()
        };
        let slots = || knowledge.slots.lock().unwrap().by_mark.len();
        let held: Vec<_> = (0..24).map(place).collect();
        (24..LEAST).map(place).for_each(drop);
        assert_eq!(slots(), LEAST, "there is no clean-up below that");
        let newest = place(LEAST);
        assert_eq!(slots(), held.len() + 1);
        drop(newest);
    }

    #[test]
    fn what_was_asked_later_counts_whether_it_was_found_or_not() {
        let knowledge = knowledge();
        let key = Key::of(&DeviceId::new(IdentifierKind::Serial, "C02A").unwrap());
        let found = Answer::Found(Arc::new(record("C02A")));
        let [first, second, third] = [(); 3].map(|()| knowledge.ask());
        assert!(knowledge.learn(&key, &Answer::NotFound, None, learned(second.moment()), 0).is_some());
        assert!(knowledge.learn(&key, &found, None, learned(first.moment()), 0).is_none());
        assert!(knowledge.found.get(&key).is_none() && knowledge.missing.get(&key).is_some());
        assert!(knowledge.learn(&key, &found, None, learned(third.moment()), 0).is_some());
        for earlier in [Answer::NotFound, Answer::Ambiguous] {
            assert!(knowledge.learn(&key, &earlier, None, learned(second.moment()), 0).is_none());
        }
        assert!(knowledge.found.get(&key).is_some() && knowledge.missing.get(&key).is_none() && !knowledge.is_doubted(&key));
    }

    #[test]
    fn a5_an_identifier_that_another_device_turned_up_with_since_leads_to_nobody() {
        let knowledge = knowledge();
        let key = |kind, text| Key::of(&DeviceId::new(kind, text).unwrap());
        let (serial, udid) = (key(IdentifierKind::Serial, "C02A"), key(IdentifierKind::Udid, "U-1"));
        let other = Record { provider_id: "other".to_owned(), udid: Fact::Value("U-1".to_owned()), ..record("C02A") };
        let [first, second] = [(); 2].map(|()| knowledge.ask());
        assert!(knowledge.learn(&udid, &Answer::Found(Arc::new(other)), None, learned(second.moment()), 0).is_some());
        assert!(knowledge.learn(&serial, &Answer::Found(Arc::new(record("C02A"))), None, learned(first.moment()), 0).is_none());
        assert!(knowledge.found.get(&serial).is_none() && knowledge.found.get(&udid).is_some());
    }

    #[test]
    fn a5_an_identifier_that_a_device_turned_up_with_since_is_not_missing() {
        let knowledge = knowledge();
        let key = |kind, text| Key::of(&DeviceId::new(kind, text).unwrap());
        let (serial, udid) = (key(IdentifierKind::Serial, "C02A"), key(IdentifierKind::Udid, "U-1"));
        let found = Answer::Found(Arc::new(Record { udid: Fact::Value("U-1".to_owned()), ..record("C02A") }));
        let [first, second, third] = [(); 3].map(|()| knowledge.ask());
        assert!(knowledge.learn(&udid, &found, None, learned(second.moment()), 0).is_some());
        assert!(knowledge.learn(&serial, &Answer::NotFound, None, learned(first.moment()), 0).is_none());
        assert!(knowledge.missing.get(&serial).is_none());
        assert!(knowledge.learn(&serial, &Answer::NotFound, None, learned(third.moment()), 0).is_some());
    }

    #[test]
    fn a5_once_a_list_is_being_read_earlier_questions_come_to_nothing() {
        let knowledge = knowledge();
        let key = Key::of(&DeviceId::new(IdentifierKind::Serial, "C02A").unwrap());
        let [first, list, later] = [(); 3].map(|()| knowledge.ask());
        let found = Answer::Found(Arc::new(record("C02A")));
        knowledge.began_to_list(learned(list.moment()));
        assert!(knowledge.learn(&key, &found, None, learned(first.moment()), 0).is_none());
        assert!(knowledge.learn(&key, &found, None, learned(later.moment()), 0).is_some());
    }

    #[test]
    fn a5_nothing_is_unlisted_once_something_was_heard_that_there_was_no_room_for() {
        let knowledge = knowledge();
        let key = Key::of(&DeviceId::new(IdentifierKind::Serial, "C02A").unwrap());
        assert!(!knowledge.is_unlisted(&key), "there was no list");
        let list = knowledge.ask();
        knowledge.learn_whole(knowledge.claims(&[IdentifierKind::Serial], true), learned(list.moment()), 1);
        assert!(knowledge.is_unlisted(&key));
        let other = Key::of(&DeviceId::new(IdentifierKind::Serial, "C02B").unwrap());
        for _ in 0..2 {
            knowledge.heard.insert(other.clone(), Moment::now());
            knowledge.heard.run_pending_tasks();
        }
        assert!(knowledge.is_unlisted(&key), "what is heard twice takes no more room");
        knowledge.kept.lock().unwrap().unheard = Moment::now();
        assert!(!knowledge.is_unlisted(&key));
    }

    #[test]
    fn a3_that_several_have_an_identifier_does_not_stand_for_none() {
        let knowledge = knowledge();
        let key = Key::of(&DeviceId::new(IdentifierKind::Serial, "C02A").unwrap());
        let basis = knowledge.learn(&key, &Answer::NotFound, None, learned(Moment::now()), 0).unwrap();
        assert!(knowledge.stands(&key, &basis, false, Moment::NEVER));
        let several = Missing { answer: Answer::Ambiguous, spelled: None, at: 1, moment: Moment::now(), hint: None };
        knowledge.missing.insert(key.clone(), several);
        assert!(!knowledge.stands(&key, &basis, false, Moment::NEVER));
    }

    #[test]
    fn a3_that_several_have_an_identifier_is_not_taken_back_by_the_record_of_one() {
        let knowledge = knowledge();
        let key = |kind, text| Key::of(&DeviceId::new(kind, text).unwrap());
        let (serial, udid) = (key(IdentifierKind::Serial, "C02A"), key(IdentifierKind::Udid, "U-1"));
        let one = Answer::Found(Arc::new(Record { udid: Fact::Value("U-1".to_owned()), ..record("C02A") }));
        for (said, stays) in [(Answer::Ambiguous, true), (Answer::NotFound, false)] {
            assert!(knowledge.learn(&serial, &said, None, learned(Moment::now()), 0).is_some());
            assert!(knowledge.learn(&udid, &one, None, learned(Moment::now()), 0).is_some());
            assert_eq!(knowledge.missing.get(&serial).is_some(), stays, "{said:?}");
        }
    }

    #[test]
    fn a_record_with_an_identifier_that_was_not_found_since_is_no_answer() {
        let knowledge = knowledge();
        let key = |kind, text| Key::of(&DeviceId::new(kind, text).unwrap());
        let (serial, udid) = (key(IdentifierKind::Serial, "C02A"), key(IdentifierKind::Udid, "U-1"));
        let found = Answer::Found(Arc::new(Record { udid: Fact::Value("U-1".to_owned()), ..record("C02A") }));
        let [first, second, third] = [(); 3].map(|()| knowledge.ask());
        assert!(knowledge.learn(&serial, &Answer::NotFound, None, learned(second.moment()), 0).is_some());
        assert!(knowledge.learn(&udid, &found, None, learned(first.moment()), 0).is_none());
        assert!(knowledge.learn(&udid, &found, None, learned(third.moment()), 0).is_some());
    }
}
