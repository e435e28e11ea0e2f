//! What is remembered of a service's answers, and how the service is spared: lifetimes, one call a device at a time, turns, a
//! circuit, events, and lists of the whole inventory.
//!
//! The promises: a device that a service says is gone is not found again; nothing that was asked earlier overtakes what was
//! asked later; an answer that an event overtook is not used; nobody waits longer than they can; a record is only ever that of
//! the device that was asked for; and an old record stands in for the service's failures, never for bounds of our own.

mod breaker;
mod budget;
mod entry;
mod feed;
mod knowledge;
mod order;
mod revocations;
mod sweep;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::{Fields, Record};
use prometheus_client::metrics::counter::Counter;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::config;
use crate::metrics::{CacheLabels, CallLabels, Metrics, ProviderLabel, Word};
use crate::provider::inventory::{Change, Inventory, Question, Subject, Way};
use crate::provider::{Answer, Evidence, Looked, Source, Unavailable};
pub use breaker::Circuit;
use entry::{Key, Learned, Mark};
use feed::Feed;
use knowledge::{Basis, Knowledge};
use revocations::Standing;
use sweep::Sweeps;
pub use sweep::{NotSwept, Swept};
use turns::{Class, Permit, Turns};

/// The cache of one provider. Its knowledge outlives a change of the provider's credentials, lifetimes and limits.
#[derive(Debug)]
pub struct Cache {
    name: Arc<str>,
    settings: config::Cache,
    inventory: ArcSwap<Arc<dyn Inventory>>,
    /// What all that ask need together, and by which kinds of identifiers they ask.
    wanted: Arc<ArcSwap<Wanted>>,
    knowledge: Arc<Knowledge>,
    flights: Mutex<HashMap<Key, Flight>>,
    turns: Arc<Turns>,
    sweeps: Arc<Sweeps>,
    sync: Option<config::Sync>,
    feed: Arc<Feed>,
    lookups: Lookups,
    /// When the service last answered, in milliseconds of the knowledge's clock; 0: never.
    answered_at: Arc<AtomicU64>,
    /// Is told of every record that is learned.
    acquaintances: Acquaintances,
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

/// A call that is under way.
type Flight = watch::Receiver<Progress>;

/// How far a call is.
#[derive(Clone, Debug)]
enum Progress {
    /// It waits for its turn.
    InLine,
    /// The service was asked at this moment.
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
            answered_at: Arc::default(),
            acquaintances: Acquaintances::default(),
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
            answered_at: Arc::clone(&self.answered_at),
            acquaintances: self.acquaintances.clone(),
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
            self.sweeps.more.send_modify(|times| *times = times.saturating_add(1));
        }
    }

    /// Answers a question, from what is remembered or from the service.
    ///
    /// `not_older` bounds the age of what may be remembered, for those who would deny by it. The call that this may begin
    /// goes on when nobody waits for it any more, so that whoever asks again finds the answer.
    pub async fn lookup(self: &Arc<Self>, question: &Question, not_older: Option<Duration>) -> Looked {
        let key = Key::of(&question.device);
        let stale = match self.held(&key, question, not_older) {
            Held::Fresh(answer, basis, age) => return self.remembered(answer, basis, age, Source::Cached),
            Held::Aging(answer, basis, age) => {
                // Refresh in the background; its failure is ignored, since the cached answer is still fresh.
                let _ = self.fly(&key, &Question { way: Way::Query, ..question.clone() }, true);
                return self.remembered(answer, basis, age, Source::Cached);
            }
            Held::Stale(answer, basis, age) => Some((answer, basis, age)),
            Held::Nothing => None,
        };
        let known = stale.is_some() || self.knowledge.found.contains_key(&key);
        let (answer, basis) = match self.fly(&key, question, known) {
            Ok(flight) => landed(flight, question.deadline, stale.is_some()).await,
            Err(why) => (Answer::Unavailable(why), None),
        };
        match (answer, stale) {
            (Answer::Unavailable(why), Some((answer, basis, age))) if why.is_of_the_service() => {
                self.remembered(answer, basis, age, Source::Stale)
            }
            (answer, _) => {
                self.lookups.miss.inc();
                let evidence = match (&answer, basis) {
                    (Answer::Found(_) | Answer::NotFound | Answer::Ambiguous, None) => Evidence::Overtaken,
                    (Answer::Unavailable(_), _) => Evidence::Silence,
                    (_, None) => Evidence::Fixed,
                    (_, Some(basis)) => Evidence::Cached(Cached(basis)),
                };
                Looked { answer, source: Source::Live, age: None, evidence }
            }
        }
    }

    /// Whether an answer is still what is known: no event, no later answer about the device by whichever identifier, and no
    /// doubt about whose the identifier is has come since.
    pub fn stands(&self, device: &DeviceId, looked: &Looked) -> bool {
        let key = Key::of(device);
        match &looked.evidence {
            Evidence::Cached(Cached(basis)) => self.knowledge.stands(&key, basis, looked.source == Source::Stale),
            // Nobody could say. Where somebody can by now, the answer counts.
            Evidence::Silence => !self.knowledge.found.get(&key).is_some_and(|binding| {
                let known = binding.slot.read();
                self.knowledge.standing(&key, &binding, &known) == Standing::Good
                    && self.age(&binding, known.at, self.knowledge.now()) < millis(self.settings.positive)
            }),
            Evidence::Overtaken => false,
            Evidence::Fixed | Evidence::File(_) => true,
        }
    }

    /// Whether an answer is within its lifetime still, and stands.
    pub fn is_current(&self, device: &DeviceId, looked: &Looked) -> bool {
        let key = Key::of(device);
        let (now, most) = (self.knowledge.now(), self.settings);
        let within = match &looked.evidence {
            Evidence::Cached(Cached(Basis::Found(..))) => self.knowledge.found.get(&key).is_some_and(|binding| {
                let lifetime = if looked.source == Source::Stale { most.stale_if_error } else { self.lifetime(binding.sweep) };
                self.age(&binding, binding.slot.read().at, now) < millis(lifetime)
            }),
            Evidence::Cached(Cached(Basis::None(_))) => {
                self.knowledge.missing.get(&key).is_some_and(|missing| now.saturating_sub(missing.at) < millis(most.negative))
            }
            _ => true,
        };
        within && self.stands(device, looked)
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

    /// Takes events in: effective on the next question, and on answers that are on their way.
    pub fn apply(&self, changes: &[Change]) {
        for change in changes {
            let mark = match &change.device {
                Subject::Identifier(identifier) => Some(Mark::identifier(identifier)),
                Subject::ProviderId(id) => Some(Mark::provider_id(id)),
                Subject::Everything => None,
            };
            self.knowledge.revocations.add(mark, change.revoking, self.knowledge.moment());
        }
    }

    /// Forgets one device, or everything: the next question is asked of the service.
    pub fn purge(&self, device: Option<&DeviceId>) -> u64 {
        self.knowledge.forget(device)
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
                dropped: self.knowledge.standing(&key, &binding, &known) != Standing::Good,
            }
        };
        self.knowledge.found.iter().take(most).map(listed).collect()
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

    fn remembered(&self, answer: Answer, basis: Basis, age: u64, source: Source) -> Looked {
        if source == Source::Stale { &self.lookups.stale } else { &self.lookups.hit }.inc();
        Looked { answer, source, age: Some(Duration::from_millis(age)), evidence: Evidence::Cached(Cached(basis)) }
    }

    fn held(&self, key: &Key, question: &Question, not_older: Option<Duration>) -> Held {
        let now = self.knowledge.now();
        let old_enough = |age: u64| not_older.is_some_and(|most| age > millis(most));
        if let Some(binding) = self.knowledge.found.get(key) {
            let known = binding.slot.read();
            let age = self.age(&binding, known.at, now);
            let standing = self.knowledge.standing(key, &binding, &known);
            // What was not asked for is not known to be unknown.
            let lacks = !question.need.without(known.asked).is_empty();
            if standing == Standing::Revoked || lacks {
                return Held::Nothing;
            }
            // A newer record of the device may have lost the identifier.
            let Some(record) = known.record().filter(|record| entry::is_of(record, &question.device)) else { return Held::Nothing };
            let (answer, basis) = (Answer::Found(Arc::new(record)), Basis::Found(Arc::clone(&binding.slot), known));
            let lifetime = self.lifetime(binding.sweep);
            if standing == Standing::Good && age < millis(lifetime) && !old_enough(age) {
                let aging = binding.sweep == 0 && age >= millis(lifetime) / 5 * 4;
                return if aging { Held::Aging(answer, basis, age) } else { Held::Fresh(answer, basis, age) };
            }
            return if age < millis(self.settings.stale_if_error) { Held::Stale(answer, basis, age) } else { Held::Nothing };
        }
        if let Some(missing) = self.knowledge.missing.get(key) {
            let age = now.saturating_sub(missing.at);
            let standing = self.knowledge.revocations.standing(missing.moment, std::iter::once_with(|| key.mark()));
            if standing == Standing::Good && age < millis(self.settings.negative) && !old_enough(age) {
                return Held::Fresh(missing.answer, Basis::None(missing.moment), age);
            }
        }
        Held::Nothing
    }

    fn lifetime(&self, sweep: u32) -> Duration {
        self.sync.filter(|_| sweep > 0).map_or(self.settings.positive, |sync| sync.lifetime().max(self.settings.positive))
    }

    /// How old what is known of a device by an identifier is: the older of the record and of the proof whose the identifier is.
    /// A list that was complete confirms both.
    fn age(&self, binding: &entry::Binding, at: u64, now: u64) -> u64 {
        now.saturating_sub(self.sweeps.confirmed_at(binding.sweep).max(at.min(binding.at)))
    }

    /// The call for a device: the one that is under way, or a new one if it may be made.
    fn fly(self: &Arc<Self>, key: &Key, question: &Question, known: bool) -> Result<Flight, Unavailable> {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(key) {
            return Ok(flight.clone());
        }
        let now = Instant::now();
        let class = Class { new: !known, way: question.way };
        self.turns.admit(class, now, CALL)?;
        let (sender, flight) = watch::channel(Progress::InLine);
        flights.insert(key.clone(), flight.clone());
        let call = Call {
            cache: Arc::clone(self),
            key: key.clone(),
            question: Question {
                device: self.knowledge.spelled(key).unwrap_or_else(|| entry::as_written(&question.device)),
                need: question.need.union(self.wanted.load().fields),
                deadline: now + CALL,
                hint: question.hint,
                way: question.way,
            },
            class,
            sender,
        };
        self.runtime.spawn(call.run());
        Ok(flight)
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Key, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn called(&self, what: &'static str, since: Instant) {
        let provider = Word(Arc::clone(&self.name));
        self.metrics.provider_calls.get_or_create(&CallLabels { provider: provider.clone(), outcome: what }).inc();
        self.metrics.provider_call_duration.get_or_create(&ProviderLabel { provider }).observe(since.elapsed().as_secs_f64());
    }
}

/// What a remembered answer rests on. It is made by [`Cache::lookup`] and read by [`Cache::stands`].
#[derive(Clone, Debug)]
pub struct Cached(Basis);

/// One call to the service, as a task of its own.
struct Call {
    cache: Arc<Cache>,
    key: Key,
    question: Question,
    class: Class,
    sender: watch::Sender<Progress>,
}

impl Call {
    async fn run(self) {
        let cache = &self.cache;
        let permit = match cache.turns.turn(self.class, Some(self.key.mark()), self.question.deadline).await {
            Ok(permit) => permit,
            Err(why) => {
                // Nothing was asked.
                cache.turns.was_no_guess(self.class);
                self.land(Answer::Unavailable(why), None);
                return;
            }
        };
        let began = Instant::now();
        let open = cache.knowledge.ask();
        let learned = Learned { at: cache.knowledge.now(), moment: open.moment(), asked: self.question.need };
        let sweep = cache.sweeps.current();
        self.sender.send_replace(Progress::Sent(began));
        let inventory = cache.inventory();
        // Who had to wait long for the turn has not to hurry: whoever asks again finds the answer.
        let question = Question { deadline: self.question.deadline.max(began + SLOW), ..self.question.clone() };
        let answering = timeout_at(question.deadline, inventory.lookup(&question));
        tokio::pin!(answering);
        // A service that is silent for so long is taken for one that fails, though its answer is still waited for.
        let (answer, permit) = match timeout_at(began + SLOW, &mut answering).await {
            Ok(answer) => (answer, Some(permit)),
            Err(_) => {
                permit.failed(Unavailable::Timeout, Instant::now());
                (answering.await, None)
            }
        };
        let answer = self.checked(answer.unwrap_or(Answer::Unavailable(Unavailable::Timeout)));
        cache.called(crate::evaluate::word(&answer), began);
        match (&answer, permit) {
            (Answer::Unavailable(why), Some(permit)) => permit.failed(*why, Instant::now()),
            (Answer::Unavailable(_), None) => {}
            (_, permit) => {
                cache.answered_at.store(cache.knowledge.now(), Ordering::Relaxed);
                permit.map(Permit::succeeded).unwrap_or_default();
            }
        }
        if let Answer::Unavailable(why) = answer {
            tracing::warn!(provider = &*cache.name, why = why.as_str(), "a provider cannot say");
        }
        // Guessing is what the guesses are for; a new device that is found was none.
        if matches!(answer, Answer::Found(_) | Answer::InvalidIdentifier) {
            cache.turns.was_no_guess(self.class);
        }
        if let Answer::Found(record) = &answer {
            cache.acquaintances.met(record);
        }
        let basis = cache.knowledge.learn(&self.key, &answer, learned, sweep);
        drop(open);
        self.land(answer, basis);
    }

    fn land(&self, answer: Answer, basis: Option<Basis>) {
        self.sender.send_replace(Progress::Landed(answer, basis));
    }

    fn checked(&self, answer: Answer) -> Answer {
        match answer {
            Answer::Found(record) if !entry::is_of(&record, &self.question.device) => {
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
        self.cache.flights().remove(&self.key);
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

/// What comes of a call, for somebody who can wait until the deadline. Who has an old answer does not wait that long for a
/// service that was asked and is silent.
async fn landed(mut flight: Flight, deadline: Instant, has_old: bool) -> (Answer, Option<Basis>) {
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

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Identifiers that are remembered as missing.
const MISSING: u64 = 100_000;

/// How long an identifier that several devices have is left alone at least.
const LEAST_DOUBT: Duration = Duration::from_secs(1);

/// Longest call: what step-ca's second attempt can still use.
const CALL: Duration = Duration::from_secs(8);

/// A call that takes longer counts as failed.
const SLOW: Duration = Duration::from_secs(3);

/// How long somebody waits for a new answer who could have an old one.
const STALE_AFTER: Duration = Duration::from_millis(1500);
