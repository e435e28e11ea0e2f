//! What is remembered of a service's answers, and how the service is spared: lifetimes, one call a device at a time,
//! budgets, a breaker, events, and lists of the whole inventory.
//!
//! The promises: a device that a service says is gone is not found again; an answer that an event overtook is not used;
//! nobody waits longer than they can; and a record is only ever that of the device that was asked for.

mod breaker;
mod budget;
mod entry;
mod feed;
mod revocations;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use moka::notification::RemovalCause;
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::Fields;
use prometheus_client::metrics::counter::Counter;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::config;
use crate::metrics::{CacheLabels, CallLabels, Metrics, ProviderLabel, Word};
use crate::provider::inventory::{Change, Inventory, Question, Subject};
use crate::provider::{Answer, Looked, Source, Unavailable};
pub use breaker::Circuit;
use breaker::{Breaker, Permit};
use budget::Bucket;
use entry::{Key, Learned, Mark, Stored};
use feed::Feed;
use revocations::{Revocations, Standing};
use sweep::Sweeps;
pub use sweep::{NotSwept, Swept};

/// The cache of one provider. It outlives a change of the provider's credentials.
#[derive(Debug)]
pub struct Cache {
    name: Arc<str>,
    settings: config::Cache,
    inventory: ArcSwap<Arc<dyn Inventory>>,
    /// What all that ask need together, and by which kinds of identifiers they ask.
    wanted: ArcSwap<Wanted>,
    found: moka::sync::Cache<Key, Stored>,
    /// Apart, so that guessing cannot push a device out.
    missing: moka::sync::Cache<Key, Missing>,
    flights: Mutex<HashMap<Key, Flight>>,
    breaker: Arc<Breaker>,
    known: Bucket,
    unknown: Bucket,
    revocations: Revocations,
    sweeps: Sweeps,
    feed: Feed,
    lookups: Lookups,
    /// When the service last answered, in milliseconds of `started`; 0: never.
    answered_at: AtomicU64,
    started: Instant,
    runtime: Handle,
    metrics: Arc<Metrics>,
}

/// How a cache is set up.
#[derive(Clone, Copy, Debug)]
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

/// That a service has no such device, or several.
#[derive(Clone, Debug)]
struct Missing {
    answer: Answer,
    fetched_at: u64,
    generation: u64,
}

/// A call that is under way: `None` until it has its answer.
type Flight = watch::Receiver<Option<Answer>>;

/// What the cache has for a question.
enum Held {
    /// It is the answer.
    Fresh(Answer, u64),
    /// It is the answer, and is soon at its end.
    Aging(Answer, u64),
    /// It is the answer only where the service cannot say.
    Stale(Answer, u64),
    /// Nothing.
    Nothing,
}

impl Cache {
    /// An empty cache before a service; calls are made on `runtime`.
    pub fn new(name: &str, settings: Settings, inventory: Arc<dyn Inventory>, metrics: Arc<Metrics>, runtime: Handle) -> Self {
        let most = settings.cache.max_entries;
        let evictions = metrics.cache_evictions.get_or_create(&ProviderLabel { provider: Word::from(name) }).clone();
        let evicted = move |_: Arc<Key>, _: Stored, cause: RemovalCause| {
            if cause == RemovalCause::Size {
                evictions.inc();
            }
        };
        Self {
            name: name.into(),
            settings: settings.cache,
            inventory: ArcSwap::from_pointee(inventory),
            wanted: ArcSwap::default(),
            // A device that was ever found stays known, though its record is too old to be used.
            found: moka::sync::Cache::builder().max_capacity(most).eviction_listener(evicted).build(),
            missing: moka::sync::Cache::builder()
                .max_capacity(MISSING)
                .time_to_live(settings.cache.negative.max(Duration::from_secs(1)))
                .build(),
            flights: Mutex::default(),
            breaker: Arc::new(Breaker::new(settings.connections)),
            known: Bucket::new(settings.limits.per_second, Duration::from_secs(1)),
            unknown: Bucket::new(settings.limits.unknown_per_minute, Duration::from_secs(60)),
            revocations: Revocations::new(usize::try_from(most).unwrap_or(usize::MAX)),
            sweeps: Sweeps::new(settings.sync),
            feed: Feed::new(),
            lookups: Lookups::new(name, &metrics),
            answered_at: AtomicU64::new(0),
            started: Instant::now(),
            runtime,
            metrics,
        }
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
            self.sweeps.more.notify_one();
        }
    }

    /// Answers a question, from what is remembered or from the service.
    ///
    /// `not_older` bounds the age of what may be remembered, for those who would deny by it. The call that this may begin
    /// goes on when nobody waits for it any more, so that whoever asks again finds the answer.
    pub async fn lookup(self: &Arc<Self>, question: &Question, not_older: Option<Duration>) -> Looked {
        let key = Key::of(&question.device);
        let stale = match self.held(&key, question, not_older) {
            Held::Fresh(answer, age) => return self.remembered(answer, age, Source::Cached),
            Held::Aging(answer, age) => {
                // Whoever asked has an answer already; that there is no new one yet is nobody's trouble.
                let _ = self.fly(&key, question, true);
                return self.remembered(answer, age, Source::Cached);
            }
            Held::Stale(answer, age) => Some((answer, age)),
            Held::Nothing => None,
        };
        let patience = if stale.is_some() { question.deadline.min(Instant::now() + STALE_AFTER) } else { question.deadline };
        let known = stale.is_some() || self.found.contains_key(&key);
        let answer = match self.fly(&key, question, known) {
            Ok(flight) => landed(flight, patience).await,
            Err(why) => Answer::Unavailable(why),
        };
        match (answer, stale) {
            (Answer::Unavailable(_), Some((answer, age))) => self.remembered(answer, age, Source::Stale),
            (answer, _) => {
                self.lookups.miss.inc();
                Looked { answer, source: Source::Live, age: None }
            }
        }
    }

    /// Whether no event has come since this moment, in the life of this cache.
    pub fn quiet_since(&self, moment: Instant) -> bool {
        self.revocations.last() < moment
    }

    /// What is remembered of a device, however old.
    #[cfg(test)]
    fn peek(&self, device: &DeviceId) -> Option<posture::record::Record> {
        self.found.get(&Key::of(device))?.record()
    }

    /// Takes events in: effective on the next question, and on answers that are on their way.
    pub fn apply(&self, changes: &[Change]) {
        for change in changes {
            let mark = match &change.device {
                Subject::Identifier(identifier) => Some(Mark::identifier(identifier)),
                Subject::ProviderId(id) => Some(Mark::provider_id(id)),
                Subject::Everything => None,
            };
            self.revocations.add(mark, change.revoking);
        }
    }

    /// Forgets one device, or everything: the next question is asked of the service.
    pub fn purge(&self, device: Option<&DeviceId>) -> u64 {
        match device {
            Some(device) => {
                let key = Key::of(device);
                self.revocations.add(Some(key.mark()), true);
                self.missing.invalidate(&key);
                u64::from(self.found.remove(&key).is_some())
            }
            None => {
                let entries = self.len();
                self.revocations.add(None, true);
                self.missing.invalidate_all();
                self.found.invalidate_all();
                entries
            }
        }
    }

    /// Devices that are remembered.
    pub fn len(&self) -> u64 {
        self.found.run_pending_tasks();
        self.found.entry_count()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is remembered, for an operator: kind and identifier, age, and whether it still counts. At most `most`.
    pub fn list(&self, most: usize) -> Vec<Listed> {
        let now = self.now();
        let listed = |(key, stored): (Arc<Key>, Stored)| Listed {
            device: key.to_string(),
            age: Duration::from_millis(now.saturating_sub(stored.fetched_at)),
            dropped: self.standing(&key, &stored) != Standing::Good,
        };
        self.found.iter().take(most).map(listed).collect()
    }

    /// Whether the service is asked at present.
    pub fn circuit(&self) -> Circuit {
        self.breaker.circuit(Instant::now())
    }

    /// How long ago the service last answered.
    pub fn answered_ago(&self) -> Option<Duration> {
        let at = self.answered_at.load(Ordering::Relaxed);
        (at > 0).then(|| Duration::from_millis(self.now().saturating_sub(at)))
    }

    fn remembered(&self, answer: Answer, age: u64, source: Source) -> Looked {
        if source == Source::Stale { &self.lookups.stale } else { &self.lookups.hit }.inc();
        Looked { answer, source, age: Some(Duration::from_millis(age)) }
    }

    fn held(&self, key: &Key, question: &Question, not_older: Option<Duration>) -> Held {
        let now = self.now();
        let old_enough = |age: u64| not_older.is_some_and(|most| age > millis(most));
        if let Some(stored) = self.found.get(key) {
            let age = self.age(&stored, now);
            let standing = self.standing(key, &stored);
            // What was not asked for is not known to be unknown.
            let lacks = !question.need.without(stored.asked).is_empty();
            if standing == Standing::Revoked || lacks {
                return Held::Nothing;
            }
            let Some(record) = stored.record() else { return Held::Nothing };
            let answer = Answer::Found(Arc::new(record));
            let lifetime = self.sweeps.lifetime(stored.sweep).map_or(self.settings.positive, |swept| swept.max(self.settings.positive));
            if standing == Standing::Good && age < millis(lifetime) && !old_enough(age) {
                let aging = stored.sweep == 0 && age >= millis(lifetime) / 5 * 4;
                return if aging { Held::Aging(answer, age) } else { Held::Fresh(answer, age) };
            }
            return if age < millis(self.settings.stale_if_error) { Held::Stale(answer, age) } else { Held::Nothing };
        }
        if let Some(missing) = self.missing.get(key) {
            let age = now.saturating_sub(missing.fetched_at);
            let good = self.revocations.standing(missing.generation, std::iter::once_with(|| key.mark())) == Standing::Good;
            if good && age < millis(self.settings.negative) && !old_enough(age) {
                return Held::Fresh(missing.answer, age);
            }
        }
        Held::Nothing
    }

    /// How old what is known is; a list that was complete confirms what it did not change.
    fn age(&self, stored: &Stored, now: u64) -> u64 {
        now.saturating_sub(self.sweeps.confirmed_at(stored.sweep).max(stored.fetched_at))
    }

    fn standing(&self, key: &Key, stored: &Stored) -> Standing {
        self.revocations.standing(stored.generation, stored.marks().chain(std::iter::once_with(|| key.mark())))
    }

    /// The call for a device: the one that is under way, or a new one if it may be made.
    fn fly(self: &Arc<Self>, key: &Key, question: &Question, known: bool) -> Result<Flight, Unavailable> {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(key) {
            return Ok(flight.clone());
        }
        let now = Instant::now();
        self.breaker.admits(now)?;
        let bucket = if known { &self.known } else { &self.unknown };
        if !bucket.take(now) {
            return Err(Unavailable::OutOfBudget);
        }
        if !known && !self.known.take_of_half(now) {
            bucket.give_back();
            return Err(Unavailable::OutOfBudget);
        }
        let (sender, flight) = watch::channel(None);
        flights.insert(key.clone(), flight.clone());
        let call = Call {
            cache: Arc::clone(self),
            key: key.clone(),
            question: Question {
                device: entry::as_written(&question.device),
                need: question.need.union(self.wanted.load().fields),
                deadline: now + CALL,
                hint: question.hint,
            },
            known,
            sender,
        };
        self.runtime.spawn(call.run());
        Ok(flight)
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Key, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what the service said.
    fn learn(&self, key: &Key, answer: &Answer, learned: Learned) {
        match answer {
            Answer::Found(record) => {
                let Some(stored) = Stored::new(record, learned) else { return };
                self.missing.invalidate(key);
                for other in entry::keys(record, &self.wanted.load().kinds) {
                    if other != *key {
                        self.missing.invalidate(&other);
                        self.found.insert(other, stored.clone());
                    }
                }
                self.found.insert(key.clone(), stored);
            }
            Answer::NotFound | Answer::Ambiguous => {
                self.found.invalidate(key);
                let missing = Missing { answer: answer.clone(), fetched_at: learned.at, generation: learned.generation };
                self.missing.insert(key.clone(), missing);
            }
            Answer::Unavailable(_) | Answer::InvalidIdentifier => {}
        }
    }

    fn now(&self) -> u64 {
        millis(self.started.elapsed()).saturating_add(1)
    }

    fn called(&self, what: &'static str, since: Instant) {
        let provider = Word(Arc::clone(&self.name));
        self.metrics.provider_calls.get_or_create(&CallLabels { provider: provider.clone(), outcome: what }).inc();
        self.metrics.provider_call_duration.get_or_create(&ProviderLabel { provider }).observe(since.elapsed().as_secs_f64());
    }
}

/// One call to the service, as a task of its own.
struct Call {
    cache: Arc<Cache>,
    key: Key,
    question: Question,
    known: bool,
    sender: watch::Sender<Option<Answer>>,
}

impl Call {
    async fn run(self) {
        let cache = &self.cache;
        let permit = match cache.breaker.turn(self.question.deadline).await {
            Ok(permit) => permit,
            Err(why) => {
                // Nothing was asked.
                cache.known.give_back();
                if !self.known {
                    cache.unknown.give_back();
                }
                self.sender.send_replace(Some(Answer::Unavailable(why)));
                return;
            }
        };
        let learned = Learned {
            at: cache.now(),
            generation: cache.revocations.generation(),
            asked: self.question.need,
            sweep: cache.sweeps.current(),
        };
        let began = Instant::now();
        let inventory = cache.inventory();
        let answering = timeout_at(self.question.deadline, inventory.lookup(&self.question));
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
                cache.answered_at.store(cache.now(), Ordering::Relaxed);
                permit.map(Permit::succeeded).unwrap_or_default();
            }
        }
        if let Answer::Unavailable(why) = answer {
            tracing::warn!(provider = &*cache.name, why = why.as_str(), "a provider cannot say");
        }
        // Guessing is what the budget is for; a new device that is found was none.
        if !self.known && matches!(answer, Answer::Found(_) | Answer::InvalidIdentifier) {
            cache.unknown.give_back();
        }
        cache.learn(&self.key, &answer, learned);
        self.sender.send_replace(Some(answer));
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

async fn landed(mut flight: Flight, patience: Instant) -> Answer {
    match timeout_at(patience, flight.wait_for(Option::is_some)).await {
        Ok(Ok(answer)) => answer.clone().unwrap_or(Answer::Unavailable(Unavailable::Network)),
        // The call died.
        Ok(Err(_)) => Answer::Unavailable(Unavailable::Network),
        Err(_) => Answer::Unavailable(Unavailable::Timeout),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Identifiers that are remembered as missing.
const MISSING: u64 = 100_000;

/// Longest call: what step-ca's second attempt can still use.
const CALL: Duration = Duration::from_secs(8);

/// A call that takes longer counts as failed.
const SLOW: Duration = Duration::from_secs(3);

/// How long somebody waits for a new answer who could have an old one.
const STALE_AFTER: Duration = Duration::from_millis(1500);
