//! What is remembered of a service's answers, and how the service is spared: lifetimes, one call a device at a time, turns, a
//! circuit, events, and lists of the whole inventory.
//!
//! The promises: a device that a service says is gone is not found again; nothing that was asked earlier overtakes what was
//! asked later; an answer that an event overtook is not used, and stands in for no answer to a request from before the event;
//! nobody waits longer than they can; a record is only ever that of the device that was asked for; and an old record stands in
//! for the service's failures, never for bounds of our own.

mod breaker;
mod budget;
mod entry;
mod feed;
mod knowledge;
mod order;
mod revocations;
mod suspects;
mod sweep;
#[cfg(test)]
mod tests;
mod turns;
mod unsaid;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use posture::identity::{DeviceId, IdentifierKind, undashed};
use posture::record::{Fields, Form, Record};
use prometheus_client::metrics::counter::Counter;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::config;
use crate::metrics::{CacheLabels, CallLabels, Metrics, ProviderLabel, Word};
use crate::placeholders::Placeholders;
use crate::provider::errand::{Errand, STALE_AFTER};
use crate::provider::inventory::{Change, Inventory, Question, Subject, Way};
use crate::provider::{Answer, Blame, Evidence, Looked, Source, Unavailable};
pub use breaker::Circuit;
use entry::{Key, Learned, Mark};
use feed::Feed;
use knowledge::{Basis, Knowledge};
pub use order::Moment;
use revocations::Standing;
use suspects::{Who, Witness};
use sweep::Sweeps;
pub use sweep::{NotSwept, Swept};
use turns::{Class, Place, Turns};
use unsaid::Unsaid;

/// The cache of one provider. Its knowledge outlives a change of the provider's credentials, lifetimes and limits.
#[derive(Debug)]
pub struct Cache {
    name: Arc<str>,
    settings: config::Cache,
    inventory: ArcSwap<Arc<dyn Inventory>>,
    /// What all that ask need together, and by which kinds of identifiers they ask.
    wanted: Arc<ArcSwap<Wanted>>,
    knowledge: Arc<Knowledge>,
    flights: Mutex<Flights>,
    turns: Arc<Turns>,
    sweeps: Arc<Sweeps>,
    sync: Option<config::Sync>,
    feed: Arc<Feed>,
    lookups: Lookups,
    unsaid: Arc<Unsaid>,
    /// When the service last answered, in milliseconds of the knowledge's clock; 0: never.
    answered_at: Arc<AtomicU64>,
    /// Is told of every record that is learned.
    acquaintances: Acquaintances,
    /// What stands in records as an identifier and is none.
    placeholders: Placeholders,
    runtime: Handle,
    metrics: Arc<Metrics>,
}

/// Whoever wants to know which identifiers belong to one device, whatever they were learned for.
#[derive(Clone, Default)]
pub struct Acquaintances(Arc<ArcSwapOption<Listener>>);

/// Whom a record is told to.
struct Listener(Box<dyn Fn(&Record) + Send + Sync>);

impl Acquaintances {
    /// Tells `listener` of every record from now on, in the place of whoever was told before.
    pub fn tell(&self, listener: impl Fn(&Record) + Send + Sync + 'static) {
        self.0.store(Some(Arc::new(Listener(Box::new(listener)))));
    }

    fn met(&self, record: &Record) {
        if let Some(listener) = &*self.0.load() {
            (listener.0)(record);
        }
    }
}

impl std::fmt::Debug for Acquaintances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acquaintances")
    }
}

/// How a cache is set up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Lifetimes.
    pub cache: config::Cache,
    /// How hard the service may be asked.
    pub limits: config::Limits,
    /// Calls at once.
    pub connections: usize,
    /// When it is listed.
    pub sync: Option<config::Sync>,
}

/// What is asked of a provider by everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Every field that some policy needs.
    pub fields: Fields,
    /// Every kind of identifier that some webhook or query has.
    pub kinds: Vec<IdentifierKind>,
}

/// What of what is remembered may answer a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How old it may be, for those who would deny by it; `None`: as old as its lifetime.
    pub not_older: Option<Duration>,
    /// When the request came: an event about everything, which may change nothing for the device, is no reason to doubt what was
    /// asked after it.
    pub came: Moment,
}

impl Default for Terms {
    fn default() -> Self {
        Self { not_older: None, came: Moment::NEVER }
    }
}

/// How often the cache had the answer: [`Metrics::cache_lookups`] of one provider.
#[derive(Debug)]
struct Lookups {
    hit: Counter,
    miss: Counter,
    stale: Counter,
}

impl Lookups {
    fn new(name: &str, metrics: &Metrics) -> Self {
        let counter = |result| metrics.cache_lookups.get_or_create(&CacheLabels { provider: Word::from(name), result }).clone();
        Self { hit: counter("hit"), miss: counter("miss"), stale: counter("stale") }
    }
}

/// Calls that are under way, by the identifier, and by the hint of the question where the service minds that.
type Flights = HashMap<(Key, Option<Form>), Flight>;

/// A call that is under way. It has the best rank, the latest deadline and every field of all who wait for it.
#[derive(Clone, Debug)]
struct Flight {
    progress: watch::Receiver<Progress>,
    /// Its number in the line.
    number: u64,
    asking: Arc<Mutex<Asking>>,
}

/// What a call asks of the service.
#[derive(Debug)]
struct Asking {
    need: Fields,
    /// Whether it was sent, and can become no other.
    sent: bool,
}

impl Asking {
    /// Asks for more, where that is possible still. Returns whether all of it is asked for.
    fn asks(&mut self, need: Fields) -> bool {
        if !self.sent {
            self.need = self.need.union(need);
        }
        need.without(self.need).is_empty()
    }
}

/// How far a call is.
#[derive(Clone, Debug)]
enum Progress {
    /// It waits for its turn.
    InLine,
    /// The service was asked at this moment, were it that nothing of ours came in between.
    Sent(Instant),
    /// The service answered. Without a basis the answer was overtaken, or says nothing of the device.
    Landed(Answer, Option<Basis>),
}

/// What the cache has for a question.
enum Held {
    /// It is the answer.
    Fresh(Answer, Basis, u64),
    /// It is the answer, and is soon at its end.
    Aging(Answer, Basis, u64),
    /// It is the answer only where the service cannot say.
    Stale(Answer, Basis, u64),
    /// Nothing.
    Nothing,
}

impl Cache {
    /// An empty cache before a service; calls are made on `runtime`.
    pub fn new(name: &str, settings: Settings, inventory: Arc<dyn Inventory>, metrics: Arc<Metrics>, runtime: Handle) -> Self {
        let cache = settings.cache;
        let knowledge = Knowledge::new(cache.max_entries, cache.negative, evictions(name, &metrics), inventory.item_kind());
        Self {
            name: name.into(),
            settings: cache,
            inventory: ArcSwap::from_pointee(inventory),
            wanted: Arc::default(),
            knowledge: Arc::new(knowledge),
            flights: Mutex::default(),
            turns: Arc::new(Turns::new(settings.limits, settings.connections)),
            sweeps: Arc::new(Sweeps::default()),
            sync: settings.sync,
            feed: Arc::new(Feed::new()),
            lookups: Lookups::new(name, &metrics),
            unsaid: Arc::default(),
            answered_at: Arc::default(),
            acquaintances: Acquaintances::default(),
            placeholders: Placeholders::default(),
            runtime,
            metrics,
        }
    }

    /// This cache with other settings, before the same service: what is known stays known.
    #[must_use]
    pub fn with_settings(&self, settings: Settings, inventory: Arc<dyn Inventory>) -> Self {
        let cache = settings.cache;
        let knowledge = if (cache.max_entries, cache.negative) == (self.settings.max_entries, self.settings.negative) {
            Arc::clone(&self.knowledge)
        } else {
            Arc::new(self.knowledge.bounded(cache.max_entries, cache.negative, evictions(&self.name, &self.metrics)))
        };
        Self {
            name: Arc::clone(&self.name),
            settings: cache,
            inventory: ArcSwap::from_pointee(inventory),
            wanted: Arc::clone(&self.wanted),
            knowledge,
            flights: Mutex::default(),
            turns: Arc::new(Turns::new(settings.limits, settings.connections)),
            sweeps: Arc::clone(&self.sweeps),
            sync: settings.sync,
            feed: Arc::clone(&self.feed),
            lookups: Lookups::new(&self.name, &self.metrics),
            unsaid: Arc::clone(&self.unsaid),
            answered_at: Arc::clone(&self.answered_at),
            acquaintances: self.acquaintances.clone(),
            placeholders: self.placeholders.clone(),
            runtime: self.runtime.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Tells these of every record that is learned.
    #[must_use]
    pub fn telling(mut self, acquaintances: Acquaintances) -> Self {
        self.acquaintances = acquaintances;
        self
    }

    /// Takes these out of every record that is learned.
    #[must_use]
    pub fn stripping(mut self, placeholders: Placeholders) -> Self {
        self.placeholders = placeholders;
        self
    }

    /// Asks by other credentials from now on.
    pub fn replace_inventory(&self, inventory: Arc<dyn Inventory>) {
        self.inventory.store(Arc::new(inventory));
    }

    /// The provider's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The service itself.
    pub fn inventory(&self) -> Arc<dyn Inventory> {
        Arc::clone(&self.inventory.load())
    }

    /// Says what everybody needs from now on; records that lack it are fetched anew when they are asked for.
    pub fn want(&self, wanted: Wanted) {
        let new = wanted.clone();
        let before = self.wanted.swap(Arc::new(wanted));
        let more = !new.fields.without(before.fields).is_empty() || new.kinds.iter().any(|kind| !before.kinds.contains(kind));
        if more {
            self.sweeps.list_due.send_modify(|times| *times = times.saturating_add(1));
        }
    }

    /// Answers a question, from what is remembered or from the service.
    ///
    /// The call that this may begin goes on when nobody waits for it any more, so that whoever asks again finds the answer.
    pub async fn lookup(self: &Arc<Self>, question: &Question, terms: Terms) -> Looked {
        let key = Key::of(&question.device);
        let came = terms.came;
        let stale = match self.held(&key, question, terms) {
            Held::Fresh(answer, basis, age) => return self.remembered(Cached { key, basis, came }, answer, age, Source::Cached),
            Held::Aging(answer, basis, age) => {
                // Refresh in the background; its failure is ignored, since the cached answer is still fresh.
                let _ = self.fly(&key, &Question { way: Way::Query, ..question.clone() }, true);
                return self.remembered(Cached { key, basis, came }, answer, age, Source::Cached);
            }
            Held::Stale(answer, basis, age) => Some((answer, basis, age)),
            Held::Nothing => None,
        };
        let known = stale.is_some() || self.knowledge.found.contains_key(&key);
        let (answer, basis) = loop {
            match self.fly(&key, question, known) {
                Ok((flight, suffices)) => {
                    let landed = landed(flight.progress, question.deadline, stale.is_some()).await;
                    // Whoever began the call had no need of a field that this question needs.
                    if suffices || !matches!(landed.0, Answer::Found(_)) {
                        break landed;
                    }
                }
                Err(why) => break (Answer::Unavailable(why), None),
            }
        };
        let alone = if let Answer::Unavailable(why) = &answer { self.is_alone(&key, known, *why, question.deadline).await } else { false };
        match (answer, stale) {
            (Answer::Unavailable(why), Some((answer, basis, age))) if why.is_of_the_service() && !alone => {
                self.remembered(Cached { key, basis, came }, answer, age, Source::Stale)
            }
            (Answer::InvalidIdentifier, _) => self.by_another(&key, question, terms).await,
            (answer, _) => {
                self.lookups.miss.inc();
                let evidence = match (&answer, basis) {
                    (Answer::Found(_) | Answer::NotFound | Answer::Ambiguous, None) => Evidence::Overtaken,
                    (Answer::Unavailable(_), _) if alone => Evidence::Alone(question.hint),
                    (Answer::Unavailable(_), _) => Evidence::Silence(question.hint),
                    (_, None) => Evidence::Fixed,
                    (_, Some(basis)) => Evidence::Cached(Cached { key, basis, came }),
                };
                Looked { answer, source: Source::Live, age: None, evidence }
            }
        }
    }

    /// Whether it is this device that no answer can be had about, and not the service: the record of a known one is to be had. Where
    /// none was had since this one failed last, others are asked for, but not on account of an identifier that anybody may have invented.
    async fn is_alone(self: &Arc<Self>, key: &Key, known: bool, why: Unavailable, deadline: Instant) -> bool {
        let (who, own) = (self.who(key), why.blame() == Blame::Identifier);
        if !known {
            return own && self.turns.gives_records();
        }
        // It stays alone until it is answered, whatever keeps it from being asked again.
        let alone = self.turns.is_alone(who);
        if alone || !own {
            return alone;
        }
        let deadline = deadline.min(Instant::now() + STALE_AFTER);
        // One may be gone, or have an identifier that nobody can be asked by.
        for _ in 0..ASKED_BESIDE {
            let other = self.witness(&self.flights(), Some(who));
            let Some((key, _, device)) = other.filter(|_| Instant::now() < deadline) else { break };
            let question = Question { device, need: Fields::NONE, hint: None, deadline, way: Way::Webhook };
            let Ok((flight, _)) = self.fly(&key, &question, true) else { break };
            let (answer, _) = landed(flight.progress, deadline, false).await;
            if matches!(answer, Answer::Found(_) | Answer::Unavailable(_)) {
                break;
            }
        }
        self.turns.is_alone(who)
    }

    /// Answers a question that the service cannot be asked, since it finds nothing by this kind of identifier. Where a list told
    /// whose the identifier is, the device is asked for by its serial number; and before there was a list nobody can say.
    async fn by_another(self: &Arc<Self>, key: &Key, question: &Question, terms: Terms) -> Looked {
        self.lookups.miss.inc();
        if self.knowledge.is_doubted(key) {
            return Looked::live(Answer::Ambiguous);
        }
        let known = self.knowledge.found.get(key).and_then(|binding| binding.slot.read().record());
        let serial = known.and_then(|record| DeviceId::new(IdentifierKind::Serial, record.serial.value()?).ok());
        let Some(serial) = serial.filter(|_| question.device.kind() != IdentifierKind::Serial) else {
            let evidence = self.unlisted(key, question.hint);
            let known = matches!(evidence, Evidence::Silence(_) | Evidence::Alone(_));
            let answer = if known { Answer::Unavailable(Unavailable::NotLoaded) } else { Answer::InvalidIdentifier };
            return Looked { evidence, ..Looked::live(answer) };
        };
        let looked = Box::pin(self.lookup(&Question { device: serial, ..question.clone() }, terms)).await;
        match &looked.answer {
            Answer::Found(record) if entry::is_of(record, &question.device) => looked,
            Answer::Found(_) | Answer::NotFound => {
                let evidence = match looked.evidence {
                    Evidence::Cached(said) => Evidence::Moved(said),
                    evidence => evidence,
                };
                Looked { evidence, ..Looked::live(Answer::Unavailable(Unavailable::Unsupported)) }
            }
            Answer::Ambiguous | Answer::Unavailable(_) => looked,
            Answer::InvalidIdentifier => {
                Looked { evidence: Evidence::Alone(question.hint), ..Looked::live(Answer::Unavailable(Unavailable::Unsupported)) }
            }
        }
    }

    /// Whether an answer is still what is known: no event, no later answer about the device by whichever identifier, and no
    /// doubt about whose the identifier is has come since.
    pub fn stands(&self, device: &DeviceId, looked: &Looked) -> bool {
        self.stands_for(device, looked, |cached| cached.came)
    }

    fn stands_for(&self, device: &DeviceId, looked: &Looked, came: impl Fn(&Cached) -> Moment) -> bool {
        let key = Key::of(device);
        match &looked.evidence {
            Evidence::Cached(cached) | Evidence::Moved(cached) => {
                self.knowledge.stands(&cached.key, &cached.basis, looked.source == Source::Stale, came(cached))
            }
            // Nobody could say. Where somebody can by now, the answer counts.
            Evidence::Silence(hint) | Evidence::Alone(hint) => {
                let now = self.knowledge.now();
                let found = self.knowledge.found.get(&key).filter(|binding| entry::counts(binding.hint, *hint)).is_some_and(|binding| {
                    let known = binding.slot.read();
                    self.knowledge.standing(&key, &binding, &known, Moment::NEVER) == Standing::Good
                        && Self::age(&binding, known.at, now) < millis(self.settings.positive)
                });
                let missing = self.knowledge.missing.get(&key).filter(|missing| entry::counts(missing.hint, *hint));
                !found && missing.is_none_or(|missing| now.saturating_sub(missing.at) >= millis(self.settings.negative))
            }
            Evidence::Unlisted => matches!(self.unlisted(&key, None), Evidence::Unlisted),
            Evidence::Overtaken => false,
            Evidence::Fixed | Evidence::File(_) => true,
        }
    }

    /// Whether an answer is within its lifetime still, and stands for a request that comes now.
    pub fn is_current(&self, device: &DeviceId, looked: &Looked) -> bool {
        let (now, most) = (self.knowledge.now(), self.settings);
        let within = match &looked.evidence {
            Evidence::Cached(Cached { key, basis: Basis::Found(..), .. }) => self.knowledge.found.get(key).is_some_and(|binding| {
                let lifetime = if looked.source == Source::Stale { most.stale_if_error } else { self.lifetime(binding.sweep) };
                Self::age(&binding, binding.slot.read().at, now) < millis(lifetime)
            }),
            Evidence::Cached(Cached { key, basis: Basis::None(..), .. }) => {
                self.knowledge.missing.get(key).is_some_and(|missing| now.saturating_sub(missing.at) < millis(most.negative))
            }
            _ => true,
        };
        within && self.stands_for(device, looked, |_| Moment::NEVER)
    }

    /// Whether more than one device of the service had one of the record's identifiers when that was last known. Where that is
    /// some time ago, the service is asked by it beside the answer, since it may be that nobody else ever does.
    pub fn is_ambiguous(self: &Arc<Self>, record: &Record) -> bool {
        let doubts = self.knowledge.doubts(record);
        for (device, doubt) in &doubts {
            if doubt.is_due(self.knowledge.now(), self.settings.negative.max(LEAST_DOUBT)) {
                let (key, need, deadline) = (Key::of(device), Fields::NONE, Instant::now());
                // Where it may not be asked, or does not say, it is tried again after the same time.
                let _ = self.fly(&key, &Question { device: device.clone(), need, hint: None, deadline, way: Way::Query }, true);
            }
        }
        !doubts.is_empty()
    }

    /// Whether no event has come since this moment, in the life of this cache.
    pub fn quiet_since(&self, moment: Instant) -> bool {
        self.knowledge.revocations.last() < moment
    }

    /// What is remembered of a device, however old.
    #[cfg(test)]
    fn peek(&self, device: &DeviceId) -> Option<Record> {
        self.knowledge.found.get(&Key::of(device))?.slot.read().record()
    }

    /// Takes an event in: effective on the next question, and on answers that are on their way.
    ///
    /// A placeholder names nobody, and stands in no record: unless the event names devices by the service's own ids, it is about
    /// any device.
    pub fn apply(&self, changes: &[Change]) {
        let by_id = changes.iter().any(|change| matches!(change.device, Subject::ProviderId(_)));
        for change in changes {
            let mark = match &change.device {
                Subject::Identifier(identifier) if self.placeholders.has(None, identifier) => {
                    if by_id {
                        continue;
                    }
                    None
                }
                Subject::Identifier(identifier) => Some(Mark::identifier(identifier)),
                Subject::ProviderId(id) => Some(Mark::provider_id(id)),
                Subject::Everything => None,
            };
            self.knowledge.revocations.add(mark, change.revoking, Moment::now());
        }
    }

    /// Forgets one device, or everything: the next question is asked of the service. Of what only a list can tell, one is read.
    pub fn purge(&self, device: Option<&DeviceId>) -> u64 {
        let forgotten = self.knowledge.forget(device);
        if device.is_none() {
            self.sweeps.list_due.send_modify(|times| *times = times.saturating_add(1));
        }
        forgotten
    }

    /// Identifiers of devices that are remembered.
    pub fn len(&self) -> u64 {
        self.knowledge.found.run_pending_tasks();
        self.knowledge.found.entry_count()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is remembered, for an operator: kind and identifier, age, and whether it still counts. At most `most`.
    pub fn list(&self, most: usize) -> Vec<Listed> {
        let now = self.knowledge.now();
        let listed = |(key, binding): (Arc<Key>, entry::Binding)| {
            let known = binding.slot.read();
            Listed {
                device: key.to_string(),
                age: Duration::from_millis(now.saturating_sub(known.at.min(binding.at))),
                dropped: self.knowledge.standing(&key, &binding, &known, Moment::NEVER) != Standing::Good,
            }
        };
        self.knowledge.found.iter().take(most).map(listed).collect()
    }

    /// Whether somebody asks by identifiers of this kind, or records have a field for it.
    pub fn is_asked_by(&self, kind: IdentifierKind) -> bool {
        entry::OWN_KINDS.contains(&kind) || self.wanted.load().kinds.contains(&kind)
    }

    /// Hands over every record that is remembered, once for each identifier that leads to it.
    pub fn each_record(&self, mut each: impl FnMut(&Record)) {
        for (_, binding) in &self.knowledge.found {
            if let Some(record) = binding.slot.read().record() {
                each(&record);
            }
        }
    }

    /// Whether the service is asked at present.
    pub fn circuit(&self) -> Circuit {
        self.turns.circuit(Instant::now())
    }

    /// How long ago the service last answered.
    pub fn answered_ago(&self) -> Option<Duration> {
        let at = self.answered_at.load(Ordering::Relaxed);
        (at > 0).then(|| Duration::from_millis(self.knowledge.now().saturating_sub(at)))
    }

    /// Takes what records say of the fields that were asked for, and leaves in the log the names of those that never come.
    fn note_unsaid(&self, asked: Fields, known: Fields, records: u64, whole: bool) {
        let asked = asked.both(self.inventory().fields());
        for (field, devices) in self.unsaid.take(asked, known, records, whole) {
            tracing::warn!(
                provider = &*self.name,
                field = field.as_str(),
                devices,
                "no record so far has this field, though a policy asks for it: a rule that needs it denies every device, \
                 and one that denies only on a known value never does"
            );
        }
    }

    fn remembered(&self, cached: Cached, answer: Answer, age: u64, source: Source) -> Looked {
        if source == Source::Stale { &self.lookups.stale } else { &self.lookups.hit }.inc();
        Looked { answer, source, age: Some(Duration::from_millis(age)), evidence: Evidence::Cached(cached) }
    }

    fn held(&self, key: &Key, question: &Question, terms: Terms) -> Held {
        let now = self.knowledge.now();
        let old_enough = |age: u64| terms.not_older.is_some_and(|most| age > millis(most));
        if let Some(binding) = self.knowledge.found.get(key).filter(|binding| entry::counts(binding.hint, question.hint)) {
            let known = binding.slot.read();
            let age = Self::age(&binding, known.at, now);
            let standing = self.knowledge.standing(key, &binding, &known, terms.came);
            // What was not asked for is not known to be unknown.
            let lacks = !question.need.without(known.asked).is_empty();
            if standing == Standing::Revoked || lacks {
                return Held::Nothing;
            }
            // A newer record of the device may have lost the identifier.
            let Some(record) = known.record().filter(|record| entry::is_of(record, &question.device)) else { return Held::Nothing };
            let stands_in = self.knowledge.stands_in(key, &binding, &known, terms.came);
            let (answer, basis) = (Answer::Found(Arc::new(record)), Basis::Found(Arc::clone(&binding.slot), known));
            let lifetime = self.lifetime(binding.sweep);
            if standing == Standing::Good && age < millis(lifetime) && !old_enough(age) {
                let aging = binding.sweep == 0 && age >= millis(lifetime) / 5 * 4;
                return if aging { Held::Aging(answer, basis, age) } else { Held::Fresh(answer, basis, age) };
            }
            return if stands_in && age < millis(self.settings.stale_if_error) { Held::Stale(answer, basis, age) } else { Held::Nothing };
        }
        if let Some(missing) = self.knowledge.missing.get(key).filter(|missing| missing.counts(question)) {
            let age = now.saturating_sub(missing.at);
            let standing = self.knowledge.standing_by(key, missing.moment, terms.came);
            if standing == Standing::Good && age < millis(self.settings.negative) && !old_enough(age) {
                return Held::Fresh(missing.answer, Basis::None(missing.moment, missing.hint), age);
            }
        }
        Held::Nothing
    }

    fn lifetime(&self, sweep: u32) -> Duration {
        self.sync.filter(|_| sweep > 0).map_or(self.settings.positive, |sync| sync.lifetime().max(self.settings.positive))
    }

    /// How old what is known of a device by an identifier is: the older of the record and of the proof whose the identifier is.
    /// A list of everything that was applied renews both; one of changes says nothing of what it does not have.
    fn age(binding: &entry::Binding, at: u64, now: u64) -> u64 {
        now.saturating_sub(at.min(binding.at))
    }

    /// The call for a device: the one that is under way, or a new one if it may be made. False beside it: it does not ask for
    /// all that the question needs.
    fn fly(self: &Arc<Self>, key: &Key, question: &Question, known: bool) -> Result<(Flight, bool), Unavailable> {
        self.see_to_witness();
        let now = Instant::now();
        let until = now + CALL;
        let class = Class { new: !known, way: question.way };
        let need = question.need.union(self.wanted.load().fields);
        let mut flights = self.flights();
        // Whoever finds the answer of one that has landed to be of no use would have it again, and again.
        let under_way = |flight: &&Flight| !matches!(&*flight.progress.borrow(), Progress::Landed(..));
        if let Some(flight) = flights.get(&self.course(key, question.hint)).filter(under_way) {
            let suffices = locked(&flight.asking).asks(question.need);
            self.turns.joined(flight.number, class, until);
            return Ok((flight.clone(), suffices));
        }
        let who = self.who(key);
        self.turns.admit(class, Some(who), now, PATIENCE)?;
        let place = self.turns.line_up(class, Some(who), until);
        let device = self.knowledge.spelled(key).unwrap_or_else(|| entry::as_written(&question.device));
        let question = Question { device, need, deadline: until, hint: question.hint, way: question.way };
        let flight = self.take_off(&mut flights, key, question, place, Some(class));
        Ok((flight, true))
    }

    fn take_off(self: &Arc<Self>, flights: &mut Flights, key: &Key, question: Question, place: Place, guess: Option<Class>) -> Flight {
        let (sender, progress) = watch::channel(Progress::InLine);
        let asking = Arc::new(Mutex::new(Asking { need: question.need, sent: false }));
        let flight = Flight { progress, number: place.number(), asking };
        let course = self.course(key, question.hint);
        flights.insert(course.clone(), flight.clone());
        let (cache, number, asking) = (Arc::clone(self), flight.number, Arc::clone(&flight.asking));
        let call = Call { cache, key: key.clone(), course, question, guess, number, asking, sender };
        self.runtime.spawn(call.run(place));
        flight
    }

    /// Asks for a known device where that is to show whether the service is well, though nobody wants it.
    fn see_to_witness(self: &Arc<Self>) {
        let now = Instant::now();
        if !self.turns.appoints(now) {
            return;
        }
        let mut flights = self.flights();
        let Some((key, who, device)) = self.witness(&flights, None) else { return self.turns.has_no_witness(self.knows_too_few()) };
        let question = Question { device, need: self.wanted.load().fields, hint: None, deadline: now + CALL, way: Way::Webhook };
        let place = self.turns.line_up_witness(who, question.deadline);
        drop(self.take_off(&mut flights, &key, question, place, None));
    }

    /// Whether fewer than two devices are known whose failures would speak against the service.
    fn knows_too_few(&self) -> bool {
        let inventory = self.inventory();
        let known = self.knowledge.found.iter().take(WITNESSES).filter(|(key, _)| inventory.asks(key.kind()));
        let mut speak = known.map(|(key, _)| self.who(&key)).filter(|who| self.turns.can_speak(*who)).map(|who| who.device);
        // One device may fail by itself, however often it is asked.
        speak.next().is_none_or(|first| speak.all(|other| other == first))
    }

    /// A known device that nobody asks for at present, and not this one: one that did not fail, or the one whose failure is the
    /// longest ago.
    fn witness(&self, flights: &Flights, but: Option<Who>) -> Option<(Key, Who, DeviceId)> {
        let inventory = self.inventory();
        let flown: HashSet<&Key> = flights.keys().map(|(key, _)| key).collect();
        let mut best: Option<(Witness, Key, DeviceId)> = None;
        for (key, binding) in self.knowledge.found.iter().take(WITNESSES) {
            if flown.contains(&*key) || !inventory.asks(key.kind()) {
                continue;
            }
            let who = Who { asked: key.question(), device: binding.slot.read().own_mark() };
            if but.is_some_and(|but| but.device == who.device) {
                continue;
            }
            let Some(worth) = self.turns.witness(who) else { continue };
            if best.as_ref().is_some_and(|(known, ..)| *known <= worth) {
                continue;
            }
            // As the service itself writes it.
            let Some(device) = self.knowledge.spelled(&key) else { continue };
            best = Some((worth, (*key).clone(), device));
            if worth == Witness::Clean {
                break;
            }
        }
        let (_, key, device) = best?;
        let who = self.who(&key);
        Some((key, who, device))
    }

    /// On what an answer rests about an identifier that the service cannot be asked by, and that leads to no device that it can be
    /// asked about. That a list does not have it says something only where that list was read for this kind, and nothing was heard
    /// of the identifier since.
    fn unlisted(&self, key: &Key, hint: Option<Form>) -> Evidence {
        match self.sweeps.current() {
            _ if self.sync.is_none() => Evidence::Fixed,
            0 => Evidence::Silence(hint),
            _ if self.knowledge.proves(key.kind()) && !self.knowledge.is_unlisted(key) => Evidence::Alone(hint),
            _ => Evidence::Unlisted,
        }
    }

    /// Whom a call by this identifier is about.
    fn who(&self, key: &Key) -> Who {
        let asked = key.question();
        Who { asked, device: self.knowledge.found.get(key).map_or(asked, |binding| binding.slot.read().own_mark()) }
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        locked(&self.flights)
    }

    /// By what calls are told apart.
    fn course(&self, key: &Key, hint: Option<Form>) -> (Key, Option<Form>) {
        (key.clone(), hint.filter(|_| self.inventory().minds_hint()))
    }

    fn called(&self, what: &'static str, since: Instant) {
        let provider = Word(Arc::clone(&self.name));
        self.metrics.provider_calls.get_or_create(&CallLabels { provider: provider.clone(), outcome: what }).inc();
        self.metrics.provider_call_duration.get_or_create(&ProviderLabel { provider }).observe(since.elapsed().as_secs_f64());
    }
}

/// What a remembered answer rests on. It is made by [`Cache::lookup`] and read by [`Cache::stands`].
#[derive(Clone, Debug)]
pub struct Cached {
    /// By what the service was asked, which need not be what the request states.
    key: Key,
    basis: Basis,
    /// When the request came.
    came: Moment,
}

/// One call to the service, as a task of its own.
struct Call {
    cache: Arc<Cache>,
    key: Key,
    course: (Key, Option<Form>),
    question: Question,
    /// What a guess was taken for, where one was.
    guess: Option<Class>,
    number: u64,
    asking: Arc<Mutex<Asking>>,
    sender: watch::Sender<Progress>,
}

impl Call {
    async fn run(self, place: Place) {
        self.ask(place).await;
        // Whoever waits for the service to be tried hears of it once somebody does.
        self.cache.see_to_witness();
    }

    async fn ask(&self, place: Place) {
        let cache = &self.cache;
        let mut permit = match place.turn().await {
            Ok(permit) => permit,
            Err(why) => {
                // Nothing was asked.
                self.was_no_guess();
                self.land(Answer::Unavailable(why), None);
                return;
            }
        };
        let need = {
            let mut asking = locked(&self.asking);
            asking.sent = true;
            asking.need
        };
        let began = Instant::now();
        let open = cache.knowledge.ask();
        let learned = Learned { at: cache.knowledge.now(), moment: open.moment(), asked: need, hint: None };
        let sweep = cache.sweeps.current();
        let errand = Errand::new(!permit.is_for_a_stranger(), began);
        let mut since = errand.since();
        let inventory = cache.inventory();
        // Who had to wait long for the turn has not to hurry: whoever asks again finds the answer.
        let question = Question { need, deadline: permit.deadline.max(began + SLOW), ..self.question.clone() };
        let answering = timeout_at(question.deadline, errand.run(put(&*inventory, &question)));
        tokio::pin!(answering);
        let mut silent = false;
        let answer = loop {
            let asked = *since.borrow_and_update();
            self.sender.send_replace(Progress::Sent(asked));
            tokio::select! {
                biased;
                answer = &mut answering => break answer,
                Ok(()) = since.changed() => {}
                // A service that is silent for so long is taken for one that fails, though its answer is still waited for.
                () = tokio::time::sleep_until(asked + SLOW), if !silent => {
                    silent = true;
                    permit.failed(Unavailable::Timeout, Instant::now());
                    cache.see_to_witness();
                }
            }
        };
        let (answer, hint) = answer.unwrap_or((Answer::Unavailable(Unavailable::Timeout), None));
        let answer = match answer {
            // Whose time it was that ran out is known here.
            Answer::Unavailable(Unavailable::Timeout | Unavailable::Busy) => Answer::Unavailable(errand.late()),
            answer => self.checked(answer),
        };
        let learned = Learned { hint, ..learned };
        cache.called(crate::evaluate::word(&answer), began);
        match &answer {
            Answer::Unavailable(why) => {
                if why.is_of_the_service() {
                    permit.failed(*why, Instant::now());
                } else {
                    permit.withdrawn();
                }
                tracing::warn!(provider = &*cache.name, why = why.as_str(), cause = why.text(), "a provider cannot say");
            }
            // The service was not asked.
            Answer::InvalidIdentifier => permit.withdrawn(),
            Answer::Found(_) | Answer::NotFound | Answer::Ambiguous => {
                cache.answered_at.store(cache.knowledge.now(), Ordering::Relaxed);
                permit.succeeded(matches!(answer, Answer::Found(_)));
            }
        }
        drop(permit);
        // Guessing is what the guesses are for; a new device that is found was none.
        if matches!(answer, Answer::Found(_) | Answer::InvalidIdentifier) {
            self.was_no_guess();
        } else if let Some(class) = self.guess {
            cache.turns.was_a_guess(class, errand.requests());
        }
        if let Answer::Found(record) = &answer {
            cache.acquaintances.met(record);
            cache.note_unsaid(need.both(cache.wanted.load().fields), record.known(), 1, false);
        }
        let spelled = inventory.minds_spelling().then(|| question.device.stated().trim_ascii());
        let basis = cache.knowledge.learn(&self.key, &answer, spelled, learned, sweep);
        drop(open);
        self.land(answer, basis);
    }

    fn was_no_guess(&self) {
        if let Some(class) = self.guess {
            self.cache.turns.was_no_guess(class);
        }
    }

    fn land(&self, answer: Answer, basis: Option<Basis>) {
        self.sender.send_replace(Progress::Landed(answer, basis));
    }

    fn checked(&self, answer: Answer) -> Answer {
        match answer {
            Answer::Found(mut record) if entry::is_of(&record, &self.question.device) => {
                // Before anybody learns of it: by what is no identifier two devices would be one.
                self.cache.placeholders.strip(Arc::make_mut(&mut record));
                Answer::Found(record)
            }
            Answer::Found(_) => {
                tracing::error!(provider = &*self.cache.name, "a provider answered with the record of another device");
                Answer::Unavailable(Unavailable::Protocol)
            }
            answer => answer,
        }
    }
}

impl Drop for Call {
    /// Whatever ended it, the next question makes a new one.
    fn drop(&mut self) {
        let mut flights = self.cache.flights();
        if flights.get(&self.course).is_some_and(|flight| flight.number == self.number) {
            flights.remove(&self.course);
        }
    }
}

/// One device of [`Cache::list`].
#[derive(Clone, Debug)]
pub struct Listed {
    /// `serial C02XL0GYJGH5`
    pub device: String,
    /// Since it was fetched.
    pub age: Duration,
    /// Whether an event says that it may have changed.
    pub dropped: bool,
}

/// Puts a question to the service. One that minds the spelling, and has no device by this one, is asked by others that mean the same:
/// in upper case, as device managements write identifiers, since a file that is asked next does not mind it; and a unique device
/// identifier without its dashes.
async fn put(inventory: &dyn Inventory, question: &Question) -> (Answer, Option<Form>) {
    if !inventory.minds_spelling() || inventory.asks_in_upper_case() {
        return inventory.answer(question).await;
    }
    let device = &question.device;
    let mut asked = vec![device.stated().trim_ascii().to_owned()];
    let mut said = inventory.answer(question).await;
    let plain = if device.kind() == IdentifierKind::Udid { undashed(device.normal()) } else { device.normal().into() };
    for spelling in [device.normal(), &plain] {
        if said.0 != Answer::NotFound || asked.iter().any(|asked| asked == spelling) {
            continue;
        }
        asked.push(spelling.to_owned());
        let Ok(device) = DeviceId::new(device.kind(), spelling) else { continue };
        said = inventory.answer(&Question { device, ..question.clone() }).await;
    }
    said
}

/// Waits until a call lands, up to the deadline; who has an old answer waits [`STALE_AFTER`] from when the service was asked.
/// [`Unavailable::Busy`]: the call had no turn yet. [`Unavailable::Timeout`]: the service was asked and is silent.
async fn landed(mut flight: watch::Receiver<Progress>, deadline: Instant, has_old: bool) -> (Answer, Option<Basis>) {
    loop {
        let sent = match &*flight.borrow_and_update() {
            Progress::Landed(answer, basis) => return (answer.clone(), basis.clone()),
            Progress::Sent(at) => Some(*at),
            Progress::InLine => None,
        };
        let until = sent.filter(|_| has_old).map_or(deadline, |at| deadline.min(at + STALE_AFTER));
        match timeout_at(until, flight.changed()).await {
            Ok(Ok(())) => {}
            // The call died.
            Ok(Err(_)) => return (Answer::Unavailable(Unavailable::Network), None),
            // Who had to wait for a turn until there was no time left knows nothing of the service.
            Err(_) if sent.is_some_and(|at| at.elapsed() >= STALE_AFTER) => return (Answer::Unavailable(Unavailable::Timeout), None),
            Err(_) => return (Answer::Unavailable(Unavailable::Busy), None),
        }
    }
}

fn evictions(name: &str, metrics: &Metrics) -> Counter {
    metrics.cache_evictions.get_or_create(&ProviderLabel { provider: Word::from(name) }).clone()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Identifiers that are remembered as missing.
const MISSING: u64 = 100_000;

/// Known devices that are looked at for one that can show whether the service is well.
const WITNESSES: usize = 256;

/// Known devices that are asked for, one after the other, to see whether a failure is one device's own.
const ASKED_BESIDE: usize = 8;

/// How long an identifier that several devices have is left alone at least.
const LEAST_DOUBT: Duration = Duration::from_secs(1);

/// Longest call: what step-ca's second attempt can still use.
const CALL: Duration = Duration::from_secs(8);

/// Longest line that somebody gets into: who waits so long for the turn has the answer by step-ca's second attempt still.
const PATIENCE: Duration = Duration::from_secs(5);

/// A call that takes longer counts as failed.
const SLOW: Duration = Duration::from_secs(3);
