//! Step 5: the memory that makes one webhook one decision.
//!
//! step-ca sends the same bytes again after a transport error or a 5xx. Equal bytes from the same caller get the same outcome,
//! whether it is there already or still being made. From another caller, or under the id of another webhook, they are refused:
//! the id is not signed, and a reload may give a secret to another id. An entry lives as long as its timestamp could still be
//! accepted, and is never evicted before: a full memory refuses new webhooks, and a webhook that fills its share is refused
//! alone.
//!
//! Entries expire by the monotonic clock, so that a step of the system's clock makes the memory forget nothing. A start takes
//! from the record of decisions who sent what, so that a restart forgets nothing either.

use std::collections::{BTreeSet, HashMap, hash_map};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use posture::caller::Caller;
use posture::outcome::Refusal;
use posture::shape::Mode;
use sha2::{Digest as _, Sha256};
use store::{Claim, Sender, Store, StoreError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::gate::Outcome;

mod reach;
mod services;

pub use reach::{Judged, Reaches, Signer};
pub use services::Elsewhere;

/// The bounds of the replay memory: `[replay]`.
#[derive(Clone, Copy, Debug)]
pub struct Replay {
    /// Webhooks that are remembered at once, at most; default 262,144.
    pub max_entries: usize,
    /// Bytes that the entries take, at most; default 128 MiB.
    pub max_bytes: usize,
    /// Whether the services on one store have one memory: equal bytes from another caller are refused at each of them.
    pub shared: bool,
}

/// The key of equal webhooks: digests of the body and of the webhook's id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    digest: Digested,
    webhook: Whose,
}

/// SHA-256 of a body. step-ca writes the time into each body to the nanosecond, so no two webhooks are the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Digested([u8; 32]);

/// The webhook to which a body was sent: the first half of the SHA-256 of its id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Whose([u8; 16]);

impl Key {
    /// The key of a body that was sent to a webhook.
    pub fn new(webhook_id: &str, body: &[u8]) -> Self {
        Self::of_digest(webhook_id, &Sha256::digest(body).into())
    }

    /// The key of a body whose SHA-256 is known, as from the record of decisions.
    pub fn of_digest(webhook_id: &str, body: &[u8; 32]) -> Self {
        Self { digest: Digested(*body), webhook: Whose::of(webhook_id) }
    }
}

impl Whose {
    fn of(webhook_id: &str) -> Self {
        let id: [u8; 32] = Sha256::digest(webhook_id).into();
        let (half, _) = id.split_first_chunk().unwrap_or((&[0; 16], &[]));
        Self(*half)
    }
}

/// The replay memory, shared by all streams. Its mutex is held for a few map operations, never across an await.
#[derive(Debug)]
pub struct ReplayMemory(Mutex<Entries>);

/// The memory's answer to a webhook.
#[derive(Debug)]
pub enum Begin {
    /// The webhook is new, or has to be decided anew: whoever holds the ticket decides it.
    First(Ticket),
    /// The webhook is being decided; the outcome comes here. An error means that the evaluation died.
    Running(oneshot::Receiver<Outcome>),
    /// The outcome of the webhook, and the moment at which its decision began.
    Done(Outcome, Instant),
    /// The webhook came from another caller or to another id before, is being decided with another mode, or finds no room.
    Refused(Refusal),
}

/// The duty to decide one webhook. Dropped without an outcome, it gives [`Refusal::Internal`] to all who wait.
#[derive(Debug)]
pub struct Ticket {
    memory: Arc<ReplayMemory>,
    key: Key,
    generation: u64,
    finished: bool,
}

/// How full the memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Number of webhooks.
    pub entries: usize,
    /// Estimated bytes.
    pub bytes: usize,
}

#[derive(Debug)]
struct Entries {
    bounds: Replay,
    /// Whether several `[[webhook]]` share the memory.
    shared: bool,
    /// The ids of a `[[webhook]]` that has several, by each of them.
    beside: HashMap<Whose, Arc<[Whose]>>,
    entries: HashMap<Digested, Entry>,
    /// Entries by their end, soonest first.
    expiry: BTreeSet<(Moment, Digested)>,
    /// The time from which moments are counted.
    start: Instant,
    bytes: usize,
    /// Entries and bytes of each webhook id.
    shares: HashMap<Whose, Usage>,
    generation: u64,
}

#[derive(Debug)]
struct Entry {
    caller: By,
    /// The mode with which the webhook is decided.
    mode: Option<Mode>,
    began: Instant,
    expires: Moment,
    bytes: usize,
    webhook: Whose,
    state: State,
}

#[derive(Debug)]
enum State {
    Running {
        generation: u64,
        waiters: Vec<oneshot::Sender<Outcome>>,
    },
    Done(Outcome),
    /// No outcome: the webhook was refused, was decided before this process began, or there was no room for its outcome. The
    /// same caller has it decided anew.
    Before,
}

/// A time in nanoseconds since the memory was made, in half of what an [`Instant`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(u64);

/// The sender of a webhook.
#[derive(Debug)]
enum By {
    Caller(Caller),
    /// The sender as the record of decisions has it.
    Kept(Sender),
}

impl By {
    fn is(&self, caller: &Caller) -> bool {
        match self {
            Self::Caller(own) => own == caller,
            Self::Kept(own) => *own == Sender::of(caller.as_str()),
        }
    }
}

impl ReplayMemory {
    /// An empty memory.
    pub fn new(bounds: Replay) -> Self {
        Self(Mutex::new(Entries {
            bounds,
            shared: false,
            beside: HashMap::new(),
            entries: HashMap::new(),
            expiry: BTreeSet::new(),
            start: Instant::now(),
            bytes: 0,
            shares: HashMap::new(),
            generation: 0,
        }))
    }

    /// Sets other bounds. `tables` are the webhook ids of each `[[webhook]]`: where there are several, each has at most half of
    /// what the others leave, however many ids it has. What is remembered stays, even beyond the bounds.
    pub fn set_bounds(&self, bounds: Replay, tables: &[Vec<&str>]) {
        let mut beside = HashMap::new();
        for ids in tables.iter().filter(|ids| ids.len() > 1) {
            let all: Arc<[Whose]> = ids.iter().map(|id| Whose::of(id)).collect();
            beside.extend(all.iter().map(|id| (*id, Arc::clone(&all))));
        }
        let mut memory = self.lock();
        (memory.bounds, memory.shared, memory.beside) = (bounds, tables.len() > 1, beside);
    }

    /// The bounds of the memory.
    pub fn bounds(&self) -> Replay {
        self.lock().bounds
    }

    /// Takes a verified webhook, and remembers it for `keep`, as long as its timestamp may still be accepted. O(log n).
    ///
    /// The outcome depends on `mode` besides the bytes. Equal bytes with another mode are refused while the first are being
    /// decided, and afterwards decided anew.
    pub fn begin(self: &Arc<Self>, key: Key, caller: &Caller, mode: Option<Mode>, keep: Duration) -> Begin {
        let now = Instant::now();
        self.begin_at(key, (caller, mode), now + keep, now)
    }

    fn begin_at(self: &Arc<Self>, key: Key, (caller, mode): (&Caller, Option<Mode>), expires: Instant, now: Instant) -> Begin {
        let mut memory = self.lock();
        memory.forget_expired(now);
        if let Some(entry) = memory.entries.get_mut(&key.digest) {
            if !entry.caller.is(caller) || entry.webhook != key.webhook {
                return Begin::Refused(Refusal::ReplayedByAnother);
            }
            match &entry.state {
                State::Running { .. } if entry.mode != mode => return Begin::Refused(Refusal::ProviderUnavailable),
                State::Done(_) if entry.mode != mode => {}
                State::Before => {}
                State::Running { .. } | State::Done(_) => return entry.join(),
            }
            let generation = memory.decide_anew(key, mode);
            return Begin::First(Ticket { memory: Arc::clone(self), key, generation, finished: false });
        }
        let bytes = ENTRY_BYTES.saturating_add(caller.as_str().len());
        if !memory.has_room(key.webhook, 1, bytes, 1) {
            return Begin::Refused(Refusal::ReplayMemoryFull);
        }
        memory.generation = memory.generation.wrapping_add(1);
        let generation = memory.generation;
        let state = State::Running { generation, waiters: Vec::new() };
        let expires = memory.moment(expires);
        let caller = By::Caller(caller.clone());
        memory.insert(key.digest, Entry { caller, mode, began: Instant::now(), expires, bytes, webhook: key.webhook, state });
        Begin::First(Ticket { memory: Arc::clone(self), key, generation, finished: false })
    }

    /// Takes a webhook that was decided before this process began, with its caller as the record of decisions has it. False
    /// where there is no room: half of all bytes are for what comes after the start.
    pub(crate) fn recall(&self, key: Key, caller: Sender, keep: Duration) -> bool {
        let mut memory = self.lock();
        if memory.entries.contains_key(&key.digest) {
            return true;
        }
        let bytes = ENTRY_BYTES;
        if memory.bytes.saturating_add(bytes) > memory.bounds.max_bytes / 2 || !memory.has_room(key.webhook, 1, bytes, 1) {
            return false;
        }
        let now = Instant::now();
        let expires = memory.moment(now + keep);
        let caller = By::Kept(caller);
        let webhook = key.webhook;
        memory.insert(key.digest, Entry { caller, mode: None, began: now, expires, bytes, webhook, state: State::Before });
        true
    }

    /// How full the memory is, once a bounded number of expired entries is forgotten.
    pub fn usage(&self) -> Usage {
        self.usage_at(Instant::now())
    }

    fn usage_at(&self, now: Instant) -> Usage {
        let mut memory = self.lock();
        memory.forget_expired(now);
        Usage { entries: memory.entries.len(), bytes: memory.bytes }
    }

    /// Locks the entries. A panic elsewhere cannot leave them half changed, so a poisoned lock is as good as another.
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Claims the webhook among the services on a store, for `keep`. Where another one is deciding it, its outcome is waited for, for
    /// `patience` at most; then this one decides too.
    ///
    /// # Errors
    /// [`StoreError`]: the others could not be asked, and this service decides.
    pub async fn claim(
        &self,
        store: &Store,
        (caller, mode): (&Caller, Option<Mode>),
        keep: Duration,
        patience: Duration,
    ) -> Result<Elsewhere, StoreError> {
        let Sender::Caller(sender) = Sender::of(caller.as_str()) else { return Ok(Elsewhere::Nobody) };
        let Key { digest: Digested(body), webhook: Whose(webhook) } = self.key;
        services::claim(store, Claim { body, webhook, sender, mode: services::number(mode), keep }, patience).await
    }

    /// Tells the other services what came of a claimed webhook.
    pub fn tell(&self, store: &Store, outcome: &Outcome) {
        services::tell(store, self.key.digest.0, outcome);
    }

    /// Forgets the webhook, and gives a refusal to all who wait: its sender is not the one of the same bytes elsewhere, who may yet
    /// come here.
    pub fn forget(mut self, refusal: Refusal) -> Outcome {
        self.finished = true;
        let mut memory = self.memory.lock();
        let running = memory.entries.get(&self.key.digest).map(|entry| &entry.state);
        let is_ours = matches!(running, Some(State::Running { generation, .. }) if *generation == self.generation);
        let outcome = memory.finish(self.key, self.generation, Outcome::Refuse(refusal));
        if is_ours {
            memory.forget(self.key.digest);
        }
        outcome
    }

    /// Remembers the outcome of the webhook, gives it to all who wait, and returns it.
    ///
    /// Of a refusal, since the same bytes may do better in a second, and of an outcome for which there is no room, only the
    /// caller is remembered, who has the webhook decided anew.
    pub fn finish(mut self, outcome: Outcome) -> Outcome {
        self.finished = true;
        self.memory.lock().finish(self.key, self.generation, outcome)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.finished {
            self.memory.lock().finish(self.key, self.generation, Outcome::Refuse(Refusal::Internal));
        }
    }
}

impl Entry {
    fn join(&mut self) -> Begin {
        match &mut self.state {
            // `begin` has such a webhook decided anew, and joins nobody to it.
            State::Before => Begin::Refused(Refusal::Internal),
            State::Done(outcome) => Begin::Done(outcome.clone(), self.began),
            State::Running { waiters, .. } => {
                let (sender, receiver) = oneshot::channel();
                // Waiters that have gone make room for new ones.
                if waiters.len().is_power_of_two() {
                    waiters.retain(|waiter| !waiter.is_closed());
                }
                waiters.push(sender);
                Begin::Running(receiver)
            }
        }
    }
}

impl Entries {
    fn moment(&self, at: Instant) -> Moment {
        Moment(u64::try_from(at.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX))
    }

    fn insert(&mut self, key: Digested, entry: Entry) {
        self.bytes = self.bytes.saturating_add(entry.bytes);
        let share = self.shares.entry(entry.webhook).or_insert(Usage { entries: 0, bytes: 0 });
        (share.entries, share.bytes) = (share.entries.saturating_add(1), share.bytes.saturating_add(entry.bytes));
        self.expiry.insert((entry.expires, key));
        self.entries.insert(key, entry);
    }

    /// Whether the share of the webhook's `[[webhook]]` has room for so much more; of its bytes, one of so many `parts`.
    fn has_room(&self, webhook: Whose, entries: usize, bytes: usize, parts: usize) -> bool {
        let beside = self.beside.get(&webhook).map_or(std::slice::from_ref(&webhook), |beside| beside);
        let own = beside.iter().filter_map(|id| self.shares.get(id)).fold(Usage { entries: 0, bytes: 0 }, |sum, of| Usage {
            entries: sum.entries.saturating_add(of.entries),
            bytes: sum.bytes.saturating_add(of.bytes),
        });
        let most = |all: usize, own: usize, most: usize| {
            let left = most.saturating_sub(all.saturating_sub(own));
            if self.shared { left.div_ceil(2) } else { left }
        };
        own.entries.saturating_add(entries) <= most(self.entries.len(), own.entries, self.bounds.max_entries)
            && own.bytes.saturating_add(bytes) <= most(self.bytes, own.bytes, self.bounds.max_bytes) / parts
    }

    /// Has a remembered webhook decided anew, and returns the new generation. The earlier outcome is forgotten.
    fn decide_anew(&mut self, key: Key, mode: Option<Mode>) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        if let Some(entry) = self.entries.get_mut(&key.digest) {
            entry.mode = mode;
            entry.began = Instant::now();
            let before = std::mem::replace(&mut entry.state, State::Running { generation, waiters: Vec::new() });
            if let State::Done(outcome) = before {
                let bytes = bytes_of(&outcome);
                entry.bytes = entry.bytes.saturating_sub(bytes);
                self.bytes = self.bytes.saturating_sub(bytes);
                if let Some(share) = self.shares.get_mut(&key.webhook) {
                    share.bytes = share.bytes.saturating_sub(bytes);
                }
            }
        }
        generation
    }

    fn finish(&mut self, key: Key, generation: u64, outcome: Outcome) -> Outcome {
        let bytes = bytes_of(&outcome);
        // Half of the share is for callers alone, so that stored outcomes keep no new webhook out.
        let has_room = self.has_room(key.webhook, 0, bytes, 2);
        let Some(entry) = self.entries.get_mut(&key.digest) else { return outcome };
        let State::Running { generation: running, waiters } = &mut entry.state else { return outcome };
        if *running != generation {
            return outcome;
        }
        let waiters = std::mem::take(waiters);
        match &outcome {
            // The caller stays known, or another one could have the same bytes decided.
            Outcome::Refuse(_) => entry.state = State::Before,
            _ if !has_room => entry.state = State::Before,
            _ => {
                entry.state = State::Done(outcome.clone());
                entry.bytes = entry.bytes.saturating_add(bytes);
                self.bytes = self.bytes.saturating_add(bytes);
                if let Some(share) = self.shares.get_mut(&key.webhook) {
                    share.bytes = share.bytes.saturating_add(bytes);
                }
            }
        }
        for waiter in waiters {
            // A waiter that has gone asks again if it still wants to know.
            let _ = waiter.send(outcome.clone());
        }
        outcome
    }

    fn forget(&mut self, key: Digested) {
        if let Some(entry) = self.entries.remove(&key) {
            self.bytes = self.bytes.saturating_sub(entry.bytes);
            self.expiry.remove(&(entry.expires, key));
            if let hash_map::Entry::Occupied(mut share) = self.shares.entry(entry.webhook) {
                let Usage { entries, bytes } = share.get_mut();
                (*entries, *bytes) = (entries.saturating_sub(1), bytes.saturating_sub(entry.bytes));
                if *entries == 0 {
                    share.remove();
                }
            }
        }
    }

    /// Forgets a bounded number of expired entries, more than one webhook adds, so that no single request pays for all.
    fn forget_expired(&mut self, now: Instant) {
        let now = self.moment(now);
        for _ in 0..EXPIRED_AT_ONCE {
            match self.expiry.first() {
                Some((expires, key)) if *expires < now => {
                    let key = *key;
                    self.forget(key);
                }
                _ => return,
            }
        }
    }
}

/// Bytes that an outcome takes besides its entry.
fn bytes_of(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Allow(allowed) => allowed.data().as_json().len(),
        Outcome::Deny(denial) => {
            let url = denial.remediation_url.as_ref().map_or(0, |url| url.len());
            denial.code.len().saturating_add(denial.message.len()).saturating_add(url)
        }
        Outcome::Refuse(_) => 0,
    }
}

/// Bytes that an entry takes at most: in the map, in the order of expiry and in the allocator, without caller and data.
const ENTRY_BYTES: usize = 592;

/// Expired entries that are forgotten for one webhook, at most.
const EXPIRED_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests;
