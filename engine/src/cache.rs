//! The cache of a service's answers, by which the service is spared: lifetimes, one call a device at a time, turns, a circuit,
//! events, and lists of the whole inventory.
//!
//! The promises: a device that a service says is gone is not found again; nothing that was asked earlier overtakes what was
//! asked later; an answer that an event overtook is not used, and stands in for no answer to a request from before the event;
//! nobody waits longer than they can; a record is only ever that of the device that was asked for; and an old record stands in
//! for the service's failures, never for bounds of our own.

mod bounds;
mod breaker;
mod budget;
mod elsewhere;
mod entry;
mod feed;
mod knowledge;
mod lists;
mod looked;
mod mark;
mod order;
mod origin;
mod position;
mod revocations;
mod settings;
mod suspects;
mod sweep;
#[cfg(test)]
mod tests;
mod turns;
mod unsaid;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use inventory::errand::{Clock, Errand, STALE_AFTER};
use inventory::{Answer, Blame, Change, Inventory, Placeholders, Question, Source, Subject, Unavailable, Way};
use posture::identity::{DeviceId, IdentifierKind, undashed};
use posture::record::{Fields, Form, Record};
use prometheus_client::metrics::counter::Counter;
use store::About;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::fleet::common::Common;
use crate::metrics::{CacheLabels, CallLabels, Metrics, ProviderLabel, Word};
use bounds::{CALL, PATIENCE, SLOW, locked, millis};
pub use breaker::Circuit;
use elsewhere::Elsewhere;
use entry::{Key, Learned};
use knowledge::{Basis, Knowledge};
use lists::Sweeps;
pub(crate) use lists::accept;
pub use lists::{NotSwept, Swept};
use looked::Cached;
pub use looked::{Evidence, Looked};
use mark::Mark;
pub use order::Moment;
use position::Feed;
use revocations::Standing;
pub use settings::{Lifetimes, Limits, Schedule, Settings};
use suspects::{Who, Witness};
use turns::{Class, Patience, Place, Role, SOON, Turns, WITNESS_AFTER};
use unsaid::Unsaid;

/// The cache of one provider. Its knowledge outlives a change of the provider's credentials, lifetimes and limits.
#[derive(Debug)]
pub struct Cache {
    name: Arc<str>,
    settings: Lifetimes,
    inventory: ArcSwap<Arc<dyn Inventory>>,
    /// Fields and kinds of identifiers that anybody wants.
    wanted: Arc<ArcSwap<Wanted>>,
    knowledge: Arc<Knowledge>,
    flights: Mutex<Flights>,
    turns: Arc<Turns>,
    sweeps: Arc<Sweeps>,
    sync: Option<Schedule>,
    feed: Arc<Feed>,
    lookups: Lookups,
    unsaid: Arc<Unsaid>,
    /// Time at which the service last answered, in milliseconds of the knowledge's clock; 0: never.
    answered_at: Arc<AtomicU64>,
    /// The listener that is told of every record that is learned.
    acquaintances: Acquaintances,
    /// Texts that stand in records as identifiers and identify no device.
    placeholders: Placeholders,
    /// The services on the same store.
    fleet: Arc<Common>,
    /// What of the provider's settings makes its lists what they are; of its secrets it has two bytes of a digest.
    lists_as: Arc<str>,
    elsewhere: Elsewhere,
    runtime: Handle,
    metrics: Arc<Metrics>,
}

/// The listener that is told which identifiers belong to one device, for whatever they were learned.
#[derive(Clone, Default)]
pub struct Acquaintances(Arc<ArcSwapOption<Listener>>);

/// A function that is told of records.
struct Listener(Box<dyn Fn(&Record) + Send + Sync>);

impl Acquaintances {
    /// Sets the listener that is told of every record from now on, in the place of the one before.
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

/// What everybody together wants of a provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Fields that some policy needs.
    pub fields: Fields,
    /// Kinds of identifiers that some webhook or query has.
    pub kinds: Vec<IdentifierKind>,
}

/// The terms on which a remembered answer may answer a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Greatest age of the answer, for those who would deny by it; `None`: its lifetime.
    pub not_older: Option<Duration>,
    /// Moment at which the request came. An event about everything, which may change nothing for the device, is no reason to
    /// doubt what was asked after that.
    pub came: Moment,
}

impl Default for Terms {
    fn default() -> Self {
        Self { not_older: None, came: Moment::NEVER }
    }
}

/// Counters of the cache's answers: [`Metrics::cache_lookups`] of one provider.
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

/// Calls under way, by the identifier, and by the hint of the question where the service minds that.
type Flights = HashMap<(Key, Option<Form>), Flight>;

/// A call under way. It has the best rank, the latest deadline and every field of all who wait for it.
#[derive(Clone, Debug)]
struct Flight {
    progress: watch::Receiver<Progress>,
    /// Number of the call in the line.
    number: u64,
    asking: Arc<Mutex<Asking>>,
}

/// The fields for which a call asks the service.
#[derive(Debug)]
struct Asking {
    need: Fields,
    /// Whether the call was sent, and can ask for no more.
    sent: bool,
}

impl Asking {
    /// Asks for more fields, where that is still possible. Returns whether all of them are asked for.
    fn asks(&mut self, need: Fields) -> bool {
        if !self.sent {
            self.need = self.need.union(need);
        }
        need.without(self.need).is_empty()
    }
}

/// The progress of a call.
#[derive(Clone, Debug)]
enum Progress {
    /// The call waits for its turn.
    InLine,
    /// The service owes the answer since this time; waits behind our own calls are left out.
    Sent(Instant),
    /// The service answered. Without a basis the answer was overtaken, or says nothing of the device.
    Landed(Answer, Option<Basis>),
}

/// The remembered answer to a question, with its age in milliseconds.
enum Held {
    /// The answer counts.
    Fresh(Answer, Basis, u64),
    /// The answer counts, and its lifetime ends soon.
    Aging(Answer, Basis, u64),
    /// The answer counts only where the service cannot say.
    Stale(Answer, Basis, u64),
    /// There is no answer.
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
            fleet: Arc::default(),
            lists_as: Arc::default(),
            elsewhere: Elsewhere::default(),
            runtime,
            metrics,
        }
    }

    /// The cache with other settings, before the same service: what is known stays known.
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
            fleet: Arc::clone(&self.fleet),
            lists_as: Arc::clone(&self.lists_as),
            elsewhere: Elsewhere::default(),
            runtime: self.runtime.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Tells this listener of every record that is learned.
    #[must_use]
    pub fn telling(mut self, acquaintances: Acquaintances) -> Self {
        self.acquaintances = acquaintances;
        self
    }

    /// Takes these texts out of every record that is learned.
    #[must_use]
    pub fn stripping(mut self, placeholders: Placeholders) -> Self {
        self.placeholders = placeholders;
        self
    }

    /// Waits with lists until these services on one store are heard.
    #[must_use]
    pub fn among(mut self, fleet: Arc<Common>) -> Self {
        self.fleet = fleet;
        self
    }

    /// Shares lists with the caches of other services that say the same here.
    #[must_use]
    pub fn listing_as(mut self, settings: &str) -> Self {
        self.lists_as = settings.into();
        self
    }

    /// Replaces the client of the service: calls go by its credentials from now on.
    pub fn replace_inventory(&self, inventory: Arc<dyn Inventory>) {
        self.inventory.store(Arc::new(inventory));
    }

    /// Name of the provider.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client of the service.
    pub fn inventory(&self) -> Arc<dyn Inventory> {
        Arc::clone(&self.inventory.load())
    }

    /// Sets what everybody wants from now on. Records that lack it are fetched anew when they are asked for; where it is more
    /// than before, a full list is read.
    pub fn want(&self, wanted: Wanted) {
        let new = wanted.clone();
        let before = self.wanted.swap(Arc::new(wanted));
        let more = !new.fields.without(before.fields).is_empty() || new.kinds.iter().any(|kind| !before.kinds.contains(kind));
        if more {
            self.sweeps.demand();
        }
    }

    /// Answers a question, from what is remembered or from the service.
    ///
    /// A call that this begins goes on when nobody waits for it any more, so that whoever asks again finds the answer.
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
        let patience = stale.as_ref().map(|_| InLine { cache: self, came: Instant::now() });
        let (answer, basis) = loop {
            match self.fly(&key, question, known) {
                Ok((flight, suffices)) => {
                    let landed = landed(flight.progress, question.deadline, patience).await;
                    // Whoever began the call did not need a field that this question needs.
                    if suffices || !matches!(landed.0, Answer::Found(_)) {
                        break landed;
                    }
                }
                Err(why) => break (Answer::Unavailable(self.why_not(why, patience, question.deadline).await), None),
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

    /// The reason why a device is not asked for; [`Unavailable::Timeout`] where the line is too long since the service is
    /// silent.
    async fn why_not(&self, why: Unavailable, patience: Option<InLine<'_>>, deadline: Instant) -> Unavailable {
        match patience {
            Some(in_line) if why == Unavailable::Busy && in_line.ends_by(deadline.min(in_line.came + LONG_LINE)).await => {
                Unavailable::Timeout
            }
            _ => why,
        }
    }

    /// Whether only this device has no answer, while the service gives the record of a known one. Where it gave none since this
    /// device failed last, others are asked for, but not on account of an identifier that anybody may have invented.
    async fn is_alone(self: &Arc<Self>, key: &Key, known: bool, why: Unavailable, deadline: Instant) -> bool {
        let (who, own) = (self.who(key), why.blame() == Blame::Identifier);
        if !known {
            return own && self.turns.gives_records();
        }
        // A device stays alone until it is answered, whatever keeps it from being asked for again.
        let alone = self.turns.is_alone(who);
        if alone || !own {
            return alone;
        }
        let deadline = deadline.min(Instant::now() + STALE_AFTER);
        // The other device may be gone, or have an identifier that the service cannot be asked by.
        let mut tried = vec![who.device];
        let mut bounded = false;
        for _ in 0..ASKED_BESIDE {
            let progress = {
                let chosen = {
                    let flights = self.flights();
                    self.witness(&flights.keys().map(|(key, _)| key).collect(), &tried, |who| self.turns.witness(who))
                };
                match chosen {
                    _ if Instant::now() >= deadline => break,
                    Some(Chosen { key, who, device }) => {
                        tried.push(who.device);
                        let question = Question { device, need: Fields::NONE, hint: None, deadline, way: Way::Webhook };
                        match self.fly(&key, &question, true) {
                            Ok((flight, _)) => flight.progress,
                            Err(why) => {
                                bounded = !why.is_of_the_service();
                                break;
                            }
                        }
                    }
                    // Where every other device is asked for already, one of their answers does.
                    None => {
                        let Some((device, flight)) = self.flown(&tried) else { break };
                        tried.push(device);
                        flight.progress
                    }
                }
            };
            let (answer, _) = landed(progress, deadline, None).await;
            if let Answer::Unavailable(why) = answer {
                bounded = !why.is_of_the_service();
                break;
            }
            if matches!(answer, Answer::Found(_)) {
                break;
            }
        }
        // Where a bound of ours kept the other from being asked, nothing says that the service fails.
        self.turns.is_alone(who) || (bounded && !self.turns.is_in_doubt())
    }

    /// Answers a question by an identifier of a kind that the service cannot be asked by. Where a list told whose the
    /// identifier is, the device is asked for by its serial number; before there was a list nobody can say.
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

    /// Whether an answer is still what is known: since then there was no event, no later answer about the device by whichever
    /// identifier, and no doubt about whose the identifier is.
    pub fn stands(&self, device: &DeviceId, looked: &Looked) -> bool {
        self.stands_for(device, looked, |cached| cached.came)
    }

    fn stands_for(&self, device: &DeviceId, looked: &Looked, came: impl Fn(&Cached) -> Moment) -> bool {
        let key = Key::of(device);
        match &looked.evidence {
            Evidence::Cached(cached) | Evidence::Moved(cached) => {
                self.knowledge.stands(&cached.key, &cached.basis, looked.source == Source::Stale, came(cached))
            }
            // There was no answer. One that is remembered by now counts.
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

    /// Whether an answer is still within its lifetime, and stands for a request that comes now.
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
    /// some time ago, the service is asked by the identifier in the background, since nobody else may ever do so.
    pub fn is_ambiguous(self: &Arc<Self>, record: &Record) -> bool {
        let doubts = self.knowledge.doubts(record);
        for (device, doubt) in &doubts {
            if doubt.is_due(self.knowledge.now(), self.settings.negative.max(LEAST_DOUBT)) {
                let (key, need, deadline) = (Key::of(device), Fields::NONE, Instant::now());
                // A call that may not be made, or has no answer, is tried again after the same time.
                let _ = self.fly(&key, &Question { device: device.clone(), need, hint: None, deadline, way: Way::Query }, true);
            }
        }
        !doubts.is_empty()
    }

    /// Whether no event has come since this time, in the life of this cache.
    pub fn quiet_since(&self, moment: Instant) -> bool {
        self.knowledge.revocations.last() < moment
    }

    /// The remembered record of a device, however old.
    #[cfg(test)]
    fn peek(&self, device: &DeviceId) -> Option<Record> {
        self.knowledge.found.get(&Key::of(device))?.slot.read().record()
    }

    /// Takes an event, which counts for the next question, and for answers that are on their way.
    ///
    /// A placeholder identifies no device, and stands in no record: an event with one is about any device, unless it names
    /// devices by the service's own ids.
    ///
    /// Returns what caches of other services have to [`Self::heed`], so that they drop the same.
    pub fn apply(&self, changes: &[Change]) -> Vec<About> {
        let by_id = changes.iter().any(|change| matches!(change.device, Subject::ProviderId(_)));
        let about = |Change { device, revoking }: &Change| {
            let mark = match device {
                Subject::Identifier(identifier) if self.placeholders.has(None, identifier) => {
                    if by_id {
                        return None;
                    }
                    None
                }
                Subject::Identifier(identifier) => Some(Mark::identifier(identifier)),
                Subject::ProviderId(id) => Some(Mark::provider_id(id)),
                Subject::Everything => None,
            };
            let revoking = *revoking;
            Some(mark.map_or(About::All { revoking }, |mark| About::Device { mark: mark.number(), revoking }))
        };
        let all: Vec<_> = changes.iter().filter_map(about).collect();
        all.iter().for_each(|about| self.heed(about));
        all
    }

    /// Takes what the cache of another service took, as an event or a purge that came now.
    pub fn heed(&self, about: &About) {
        let event = |mark, revoking| self.knowledge.revocations.add(mark, revoking, Moment::now());
        match about {
            About::Device { mark, revoking } => event(Some(Mark::told(*mark)), *revoking),
            About::All { revoking } => event(None, *revoking),
            About::Purge(device) => _ = self.purge(Some(device)),
            About::PurgeAll => _ = self.purge(None),
            About::List(id) => self.elsewhere.begins(id),
        }
    }

    /// Forgets one device, or everything, so that the next question is asked of the service. After everything, a full list is
    /// read, since a list alone can tell some of it. Returns how many identifiers led to a record.
    pub fn purge(&self, device: Option<&DeviceId>) -> u64 {
        let forgotten = self.knowledge.forget(device);
        if device.is_none() {
            self.sweeps.demand();
        }
        forgotten
    }

    /// Number of identifiers that lead to remembered devices.
    pub fn len(&self) -> u64 {
        self.knowledge.found.run_pending_tasks();
        self.knowledge.found.entry_count()
    }

    /// Whether no device is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The remembered devices, for an operator, at most `most`: kind and identifier, age, and whether the record still counts.
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

    /// Passes on every remembered record, once for each identifier that leads to it.
    pub fn each_record(&self, mut each: impl FnMut(&Record)) {
        for (_, binding) in &self.knowledge.found {
            if let Some(record) = binding.slot.read().record() {
                each(&record);
            }
        }
    }

    /// State of the service's circuit.
    pub fn circuit(&self) -> Circuit {
        self.turns.circuit(Instant::now())
    }

    /// Time since the service last answered; `None`: it never did.
    pub fn answered_ago(&self) -> Option<Duration> {
        let at = self.answered_at.load(Ordering::Relaxed);
        (at > 0).then(|| Duration::from_millis(self.knowledge.now().saturating_sub(at)))
    }

    /// Notes which of the fields that were asked for the records have, and logs the names of those that never come.
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
            // A field that was not asked for is not known to be unknown.
            let lacks = !question.need.without(known.asked).is_empty();
            if standing == Standing::Revoked || lacks {
                return Held::Nothing;
            }
            // A newer record of the device may no longer have the identifier.
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

    /// Age in milliseconds of what is known of a device by an identifier: that of the record, or of the proof whose the
    /// identifier is, whichever is older. A full list that was applied renews both; a list of changes says nothing of what it
    /// does not have.
    fn age(binding: &entry::Binding, at: u64, now: u64) -> u64 {
        now.saturating_sub(at.min(binding.at))
    }

    /// The call for a device: the one under way, or a new one if it may be made. The flag says whether it asks for all that the
    /// question needs.
    fn fly(self: &Arc<Self>, key: &Key, question: &Question, known: bool) -> Result<(Flight, bool), Unavailable> {
        self.see_to_witness();
        let now = Instant::now();
        let until = now + CALL;
        let class = Class { new: !known, way: question.way };
        let need = question.need.union(self.wanted.load().fields);
        let mut flights = self.flights();
        // A call that has landed is not joined: whoever has no use for its answer would have the same again, and again.
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
        let course = self.course(key, question.hint);
        let flight = self.launch(key.clone(), course.clone(), question, place, Some(class));
        flights.insert(course, flight.clone());
        Ok((flight, true))
    }

    /// Begins a call that takes its turn in this place.
    fn launch(self: &Arc<Self>, key: Key, course: (Key, Option<Form>), question: Question, place: Place, guess: Option<Class>) -> Flight {
        let (sender, progress) = watch::channel(Progress::InLine);
        let asking = Arc::new(Mutex::new(Asking { need: question.need, sent: false }));
        let flight = Flight { progress, number: place.number(), asking };
        let (cache, number, asking) = (Arc::clone(self), flight.number, Arc::clone(&flight.asking));
        self.runtime.spawn(Call { cache, key, course, question, guess, number, asking, sender }.run(place));
        flight
    }

    /// Asks for a known device where a witness has to show whether the service is well, though nobody wants the device.
    fn see_to_witness(self: &Arc<Self>) {
        let now = Instant::now();
        if !self.turns.appoints(now) {
            return;
        }
        // Nobody else chooses one while the flights are locked.
        let flights = self.flights();
        match self.witness(&with_the_service(&flights), &self.turns.spoken_for(), |who| self.turns.witness(who)) {
            Some(chosen) => self.ask_witness(&flights, chosen, Role::Witness),
            None => self.turns.has_no_witness(self.knows_too_few()),
        }
    }

    /// Asks for known devices where somebody with an old record waits and the service is silent.
    fn see_to_witnesses_in_silence(self: &Arc<Self>) {
        // Nobody else chooses any while the flights are locked.
        let flights = self.flights();
        let asked = with_the_service(&flights);
        while self.turns.lacks_a_witness(Instant::now()) {
            match self.witness(&asked, &self.turns.spoken_for(), |who| self.turns.listener(who)) {
                Some(chosen) => self.ask_witness(&flights, chosen, Role::Probe),
                None => return self.turns.has_no_more(),
            }
        }
    }

    /// Asks for a witness: by the call for the device that waits in line, or else by one that nobody joins. So whoever asks for
    /// devices has no say in which are witnesses.
    fn ask_witness(self: &Arc<Self>, flights: &Flights, Chosen { key, who, device }: Chosen, role: Role) {
        let course = self.course(&key, None);
        if flights.get(&course).is_some_and(|flight| self.turns.sends(flight.number, role)) {
            return;
        }
        let deadline = Instant::now() + CALL;
        let place = self.turns.line_up_for_others(role, who, deadline);
        let question = Question { device, need: self.wanted.load().fields, hint: None, deadline, way: Way::Webhook };
        drop(self.launch(key, course, question, place, None));
    }

    /// Whether fewer than two known devices can speak against the service by their failures.
    fn knows_too_few(&self) -> bool {
        let inventory = self.inventory();
        let known = self.knowledge.found.iter().take(CANDIDATES).filter(|(key, _)| inventory.asks(key.kind()));
        let mut speak = known.map(|(key, _)| self.who(&key)).filter(|who| self.turns.can_speak(*who)).map(|who| who.device);
        // One device may fail by itself, however often it is asked.
        speak.next().is_none_or(|first| speak.all(|other| other == first))
    }

    /// A known device that shows whether the service is well, none of those that are `asked` already and none of `but`, of the best
    /// `worth`. Chance chooses among equals, so that none that is slow by itself is always first.
    fn witness(&self, asked: &HashSet<&Key>, but: &[Mark], worth: impl Fn(Who) -> Option<Witness>) -> Option<Chosen> {
        let inventory = self.inventory();
        let known = self.knowledge.found.iter().take(LOOKED_AT).filter(|(key, _)| !asked.contains(&**key) && inventory.asks(key.kind()));
        let fit = known.filter_map(|(key, binding)| {
            let who = Who { asked: key.question(), device: binding.slot.read().own_mark() };
            let other = !but.contains(&who.device);
            other.then(|| worth(who)).flatten().map(|worth| (worth, rand::random::<u32>(), key, who))
        });
        let mut candidates: Vec<_> = fit.take(CANDIDATES).collect();
        let count = |of: Witness| candidates.iter().filter(|(worth, ..)| *worth == of).count();
        // Where most were slow, the service was, and a device that was not asked for then is no better.
        if count(Witness::Slow) > count(Witness::Clean) {
            for (worth, ..) in candidates.iter_mut().filter(|(worth, ..)| *worth == Witness::Slow) {
                *worth = Witness::Clean;
            }
        }
        candidates.sort_by_key(|(worth, chance, ..)| (*worth, *chance));
        // The identifier goes out as the service itself writes it.
        candidates.into_iter().find_map(|(_, _, key, who)| {
            let device = self.knowledge.spelled(&key)?;
            Some(Chosen { key: Key::clone(&key), who, device })
        })
    }

    /// A known device that is asked for at present and is none of `but`, with the call for it. Chance chooses.
    fn flown(&self, but: &[Mark]) -> Option<(Mark, Flight)> {
        let flights = self.flights();
        let known = flights.iter().filter(|((key, _), flight)| {
            self.knowledge.found.contains_key(key) && !matches!(&*flight.progress.borrow(), Progress::Landed(..))
        });
        let others = known.map(|((key, _), flight)| (self.who(key).device, flight)).filter(|(device, _)| !but.contains(device));
        others.min_by_key(|_| rand::random::<u32>()).map(|(device, flight)| (device, flight.clone()))
    }

    /// The evidence of an answer about an identifier that the service cannot be asked by, and that leads to no device that the
    /// service can be asked about. A list without the identifier says something only where it was read for this kind, and
    /// nothing was heard of the identifier since.
    fn unlisted(&self, key: &Key, hint: Option<Form>) -> Evidence {
        match self.sweeps.current() {
            _ if self.sync.is_none() => Evidence::Fixed,
            0 => Evidence::Silence(hint),
            _ if self.knowledge.proves(key.kind()) && !self.knowledge.is_unlisted(key) => Evidence::Alone(hint),
            _ => Evidence::Unlisted,
        }
    }

    /// The identifier and the device that a call by this key is about.
    fn who(&self, key: &Key) -> Who {
        let asked = key.question();
        Who { asked, device: self.knowledge.found.get(key).map_or(asked, |binding| binding.slot.read().own_mark()) }
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        locked(&self.flights)
    }

    /// The key by which calls are told apart: the identifier, and the hint where the service minds that.
    fn course(&self, key: &Key, hint: Option<Form>) -> (Key, Option<Form>) {
        (key.clone(), hint.filter(|_| self.inventory().minds_hint()))
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
    course: (Key, Option<Form>),
    question: Question,
    /// The class for which a guess may have been taken; `None` for a witness.
    guess: Option<Class>,
    number: u64,
    asking: Arc<Mutex<Asking>>,
    sender: watch::Sender<Progress>,
}

impl Call {
    async fn run(self, place: Place) {
        self.ask(place).await;
        // The outcome may call for a witness, for which others wait.
        self.cache.see_to_witness();
    }

    async fn ask(&self, place: Place) {
        let cache = &self.cache;
        let mut permit = match place.turn().await {
            Ok(permit) => permit,
            Err(why) => {
                // Nothing was asked, so the guess is given back.
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
        let errand = Errand::new(permit.whom(), began);
        let mut clock = errand.clock();
        let mut answers = 0;
        let inventory = cache.inventory();
        // A call that waited long for its turn need not hurry: whoever asks again finds the answer.
        let question = Question { need, deadline: permit.deadline.max(began + SLOW), ..self.question.clone() };
        let answering = timeout_at(question.deadline, errand.run(put(&*inventory, &question)));
        tokio::pin!(answering);
        let mut silent = false;
        let answer = loop {
            let Clock { since, answers: answered } = *clock.borrow_and_update();
            if answered != std::mem::replace(&mut answers, answered) {
                permit.heard();
            }
            permit.waits_since(since);
            // A call that waits for a place for its request is in line still.
            self.sender.send_replace(since.map_or(Progress::InLine, Progress::Sent));
            let failed = async {
                match since {
                    Some(since) => tokio::time::sleep_until(since + SLOW).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                answer = &mut answering => break answer,
                Ok(()) = clock.changed() => {}
                // A service that is silent for so long counts as failed, though its answer is still waited for, but where nobody
                // asked for the device.
                () = failed, if !silent => {
                    silent = true;
                    permit.failed(Unavailable::Timeout, Instant::now());
                    cache.see_to_witness();
                    if permit.is_for_others() || permit.fails_by_itself() {
                        break Ok((Answer::Unavailable(Unavailable::Timeout), None));
                    }
                }
            }
        };
        let (answer, hint) = answer.unwrap_or((Answer::Unavailable(Unavailable::Timeout), None));
        let answer = match answer {
            // The errand knows whose time it was that ran out.
            Answer::Unavailable(Unavailable::Timeout | Unavailable::Busy) => Answer::Unavailable(errand.late()),
            answer => self.checked(answer),
        };
        let learned = Learned { hint, ..learned };
        cache.called(answer.kind().as_str(), began);
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
            Answer::InvalidIdentifier => permit.cannot_be_asked(),
            Answer::Found(_) | Answer::NotFound | Answer::Ambiguous => {
                cache.answered_at.store(cache.knowledge.now(), Ordering::Relaxed);
                permit.succeeded(matches!(answer, Answer::Found(_)), errand.was_slow());
            }
        }
        drop(permit);
        // Guesses are for guessing; a new device that is found was none.
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
                // Placeholders are taken out before anybody learns of the record: by such a text two devices would be one.
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
    /// Removes the call, whatever ended it, so that the next question makes a new one.
    fn drop(&mut self) {
        let mut flights = self.cache.flights();
        if flights.get(&self.course).is_some_and(|flight| flight.number == self.number) {
            flights.remove(&self.course);
        }
    }
}

/// A known device that is chosen as a witness.
struct Chosen {
    key: Key,
    who: Who,
    /// The identifier as the service itself writes it.
    device: DeviceId,
}

/// One remembered device, as [`Cache::list`] gives it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Kind and identifier: `serial C02XL0GYJGH5`.
    pub device: String,
    /// Time since the record was asked for, or the proof whose the identifier is, whichever is longer.
    pub age: Duration,
    /// Whether the record does not count any more, as after an event.
    pub dropped: bool,
}

/// Puts a question to the service. A service that minds the spelling, and has no device by this one, is asked by others that
/// mean the same: in upper case, as device managements write identifiers, since a file that is asked next does not mind the
/// case; and for a unique device identifier without its dashes.
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

/// Somebody who waits for a turn and has an old answer.
#[derive(Clone, Copy)]
struct InLine<'a> {
    cache: &'a Arc<Cache>,
    came: Instant,
}

impl InLine<'_> {
    /// Whether the service turns out to be silent by the deadline: see [`Turns::patience`].
    async fn ends_by(self, deadline: Instant) -> bool {
        loop {
            let now = Instant::now();
            match self.cache.turns.patience(self.came, now) {
                Patience::Over => return true,
                _ if now >= deadline => return false,
                Patience::Witness => {
                    self.cache.see_to_witnesses_in_silence();
                    // There may be none.
                    tokio::time::sleep(SOON).await;
                }
                Patience::Until(again) => tokio::time::sleep_until(again.min(deadline)).await,
            }
        }
    }
}

/// Waits until a call lands, up to the deadline. Who has an old answer waits [`STALE_AFTER`] from when the service was asked,
/// and in line for as long as the service answers anybody. [`Unavailable::Busy`]: the call had no turn yet, or only just.
/// [`Unavailable::Timeout`]: the service is silent.
async fn landed(mut flight: watch::Receiver<Progress>, deadline: Instant, patience: Option<InLine<'_>>) -> (Answer, Option<Basis>) {
    const SILENT: (Answer, Option<Basis>) = (Answer::Unavailable(Unavailable::Timeout), None);
    loop {
        let sent = match &*flight.borrow_and_update() {
            Progress::Landed(answer, basis) => return (answer.clone(), basis.clone()),
            Progress::Sent(at) => Some(*at),
            Progress::InLine => None,
        };
        let until = sent.filter(|_| patience.is_some()).map_or(deadline, |at| deadline.min(at + STALE_AFTER));
        let in_line = patience.filter(|_| sent.is_none());
        let changed = tokio::select! {
            biased;
            changed = timeout_at(until, flight.changed()) => changed,
            true = async { if let Some(patience) = in_line { patience.ends_by(until).await } else { false } } => return SILENT,
        };
        match changed {
            Ok(Ok(())) => {}
            // The task of the call died.
            Ok(Err(_)) => return (Answer::Unavailable(Unavailable::Network), None),
            // A call that had its turn only at the end of the time, or none, says nothing of the service.
            Err(_) if sent.is_some_and(|at| at.elapsed() >= STALE_AFTER) => return SILENT,
            Err(_) => return (Answer::Unavailable(Unavailable::Busy), None),
        }
    }
}

/// The identifiers about which the service owes an answer. Where it is well, these are answered at once, and so are no witnesses.
fn with_the_service(flights: &Flights) -> HashSet<&Key> {
    let sent = flights.iter().filter(|(_, flight)| matches!(&*flight.progress.borrow(), Progress::Sent(_)));
    sent.map(|((key, _), _)| key).collect()
}

fn evictions(name: &str, metrics: &Metrics) -> Counter {
    metrics.cache_evictions.get_or_create(&ProviderLabel { provider: Word::from(name) }).clone()
}

/// Longest wait of somebody with an old record who found the line full: the time to ask a witness, and to give up on it.
const LONG_LINE: Duration = WITNESS_AFTER.saturating_add(STALE_AFTER).saturating_add(SOON);

/// Largest number of known devices from which a witness is chosen, and the number that is looked at for them.
const CANDIDATES: usize = 256;
const LOOKED_AT: usize = 4096;

/// Known devices that are asked for, at most, one after the other, to see whether a failure is one device's own.
const ASKED_BESIDE: usize = 8;

/// Least time for which an identifier that several devices have is left alone.
const LEAST_DOUBT: Duration = Duration::from_secs(1);
