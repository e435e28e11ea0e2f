//! What operators rule about single devices: a lock wins over every provider and policy, an exemption over policy and outage.
//!
//! All rulings are in memory, so that a request asks no disk; the store has them for the next start.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use posture::identity::normal;
use posture::time::UnixTime;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::store::{DecisionId, Store, StoreError};

/// One ruling of an operator about one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Its own name.
    pub id: DecisionId,
    /// What it says.
    pub kind: RulingKind,
    /// Any identifier of the device, as the operator wrote it.
    pub device: String,
    /// Why, for people.
    pub reason: String,
    /// Who made it, such as `uid 0`.
    pub made_by: String,
    /// When it was made.
    pub made_at: UnixTime,
    /// From then on it does not hold any more; `None`: until it is taken back. A whole second.
    pub until: Option<UnixTime>,
}

/// What a ruling says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RulingKind {
    /// The device is denied, whatever anyone knows of it.
    Lock,
    /// The device passes though a policy denies it or nobody can say.
    Exemption,
}

impl RulingKind {
    /// Both.
    pub const ALL: &'static [Self] = &[Self::Lock, Self::Exemption];

    /// As the store and the log spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Exemption => "exemption",
        }
    }
}

impl Ruling {
    /// A new one. `ttl` of `None` means until it is taken back; any other ends at the next whole second after it.
    pub fn new(kind: RulingKind, device: &str, reason: &str, made_by: &str, now: UnixTime, ttl: Option<std::time::Duration>) -> Self {
        Self {
            id: DecisionId::new(now),
            kind,
            device: device.trim_ascii().to_owned(),
            reason: reason.to_owned(),
            made_by: made_by.to_owned(),
            made_at: now,
            until: ttl.map(|ttl| whole_second(now.saturating_add(ttl))),
        }
    }

    /// Whether it holds.
    pub fn holds(&self, now: UnixTime) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

fn whole_second(time: UnixTime) -> UnixTime {
    const SECOND: i64 = 1_000_000_000;
    let beyond = time.as_nanos().rem_euclid(SECOND);
    if beyond == 0 { time } else { UnixTime::from_nanos(time.as_nanos().saturating_add(SECOND - beyond)) }
}

/// What holds for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Deny, with whatever is known.
    Locked(Arc<Ruling>),
    /// Not locked, and exempt from policy and outage.
    Exempt(Arc<Ruling>),
    /// Nobody has ruled.
    Ordinary,
}

/// All rulings that hold.
#[derive(Debug, Default)]
pub struct Locks {
    index: ArcSwap<Index>,
    /// When the last lock was made or ruling taken back, read once it was in the index; `None`: none since the start.
    last: SyncMutex<Option<Instant>>,
    /// One change of the store at a time, so that memory and store have them in the same order.
    changing: Mutex<()>,
    store: Store,
}

/// By identifier. It never changes; another one takes its place.
#[derive(Clone, Debug, Default)]
struct Index {
    by_identifier: BTreeMap<Box<str>, Vec<Arc<Ruling>>>,
}

/// Why a ruling was not made.
#[derive(Debug, thiserror::Error)]
pub enum RulingError {
    /// Memory is bounded.
    #[error("there are {MOST} rulings already: take back those that are not needed")]
    TooMany,
    /// For one device.
    #[error("there are {MOST_OF_ONE} rulings about this device already: take them back and make one")]
    TooManyOfOne,
    /// An exemption that would not survive a restart is none.
    #[error("it could not be kept")]
    NotKept(#[from] StoreError),
}

impl Locks {
    /// Those that the store has.
    ///
    /// # Errors
    /// [`StoreError`]: to start without locks would let the locked devices in.
    pub async fn load(store: Store, now: UnixTime) -> Result<Self, StoreError> {
        let rulings = if store.keeps_decisions() { store.rulings(now).await? } else { Vec::new() };
        let mut index = Index::default();
        for ruling in rulings {
            index.insert(Arc::new(ruling));
        }
        Ok(Self { index: ArcSwap::from_pointee(index), last: SyncMutex::default(), changing: Mutex::default(), store })
    }

    /// What holds for a device with these identifiers: what the request states, and once its record was found
    /// [`posture::record::Record::identifiers`] as well. A lock on any of them wins over an exemption of any other.
    ///
    /// Costs a look into a map for each identifier, and next to nothing while there are no rulings.
    pub fn standing<I: IntoIterator<Item: AsRef<str>>>(&self, identifiers: I, now: UnixTime) -> Standing {
        let index = self.index.load();
        let mut standing = Standing::Ordinary;
        if index.by_identifier.is_empty() {
            return standing;
        }
        for identifier in identifiers {
            for ruling in index.of(identifier.as_ref()).iter().filter(|ruling| ruling.holds(now)) {
                match ruling.kind {
                    RulingKind::Lock => return Standing::Locked(Arc::clone(ruling)),
                    RulingKind::Exemption => standing = Standing::Exempt(Arc::clone(ruling)),
                }
            }
        }
        standing
    }

    /// The lock on a device with these identifiers.
    pub fn of<I: IntoIterator<Item: AsRef<str>>>(&self, identifiers: I, now: UnixTime) -> Option<Arc<Ruling>> {
        match self.standing(identifiers, now) {
            Standing::Locked(ruling) => Some(ruling),
            Standing::Exempt(_) | Standing::Ordinary => None,
        }
    }

    /// The exemption of a device with these identifiers; `None` where any of them is locked.
    pub fn exemption<I: IntoIterator<Item: AsRef<str>>>(&self, identifiers: I, now: UnixTime) -> Option<Arc<Ruling>> {
        match self.standing(identifiers, now) {
            Standing::Exempt(ruling) => Some(ruling),
            Standing::Locked(_) | Standing::Ordinary => None,
        }
    }

    /// Whether no lock has been made since this moment and nothing taken back: what was decided later has heeded all that hold.
    pub fn quiet_since(&self, moment: Instant) -> bool {
        self.last().is_none_or(|last| last < moment)
    }

    /// Every ruling that holds, oldest first.
    pub fn list(&self, now: UnixTime) -> Vec<Arc<Ruling>> {
        let index = self.index.load();
        let mut all: Vec<_> = index.by_identifier.values().flatten().filter(|ruling| ruling.holds(now)).cloned().collect();
        all.sort_by_key(|ruling| ruling.id);
        all
    }

    /// Makes a lock. It holds at once, and after the next start too if the inner result is good.
    ///
    /// Once begun it has to be carried through: run it as a task of its own, which nobody drops.
    ///
    /// # Errors
    /// [`RulingError::TooMany`] and [`RulingError::TooManyOfOne`]: no lock was made.
    pub async fn lock(&self, ruling: Ruling) -> Result<Result<(), StoreError>, RulingError> {
        let ruling = Arc::new(ruling);
        self.insert(&ruling)?;
        let _changing = self.changing.lock().await;
        // It may have been taken back meanwhile; then the next start must not find it.
        let kept = if self.has(&ruling) { self.store.keep(&ruling).await } else { Ok(()) };
        tell(&ruling, kept.as_ref().err());
        Ok(kept)
    }

    /// Makes an exemption, once the store has it; without a store it lives in memory.
    ///
    /// Once begun it has to be carried through: run it as a task of its own, which nobody drops.
    ///
    /// # Errors
    /// [`RulingError`]: no exemption was made.
    pub async fn exempt(&self, ruling: Ruling) -> Result<(), RulingError> {
        let _changing = self.changing.lock().await;
        self.index.load().room_for(&ruling)?;
        match self.store.keep(&ruling).await {
            Ok(()) | Err(StoreError::None) => {}
            Err(error) => {
                // What came too late may be written after all, and must not hold after the next start.
                let _ = self.store.forget(&[ruling.id]).await;
                return Err(error.into());
            }
        }
        let ruling = Arc::new(ruling);
        if let Err(error) = self.insert(&ruling) {
            let _ = self.store.forget(&[ruling.id]).await;
            return Err(error);
        }
        tell(&ruling, None);
        Ok(())
    }

    /// Takes back all rulings of one kind about a device with these identifiers, and returns them.
    ///
    /// Once begun it has to be carried through: run it as a task of its own, which nobody drops.
    ///
    /// # Errors
    /// [`StoreError`]: they hold as before, since the next start would have them again.
    pub async fn take_back<I: IntoIterator<Item: AsRef<str>>>(
        &self,
        kind: RulingKind,
        identifiers: I,
        by: &str,
        now: UnixTime,
    ) -> Result<Vec<Arc<Ruling>>, StoreError> {
        let _changing = self.changing.lock().await;
        let index = self.index.load_full();
        let mut found: Vec<Arc<Ruling>> = Vec::new();
        for identifier in identifiers {
            for ruling in index.of(identifier.as_ref()) {
                if ruling.kind == kind && ruling.holds(now) && found.iter().all(|other| other.id != ruling.id) {
                    found.push(Arc::clone(ruling));
                }
            }
        }
        if found.is_empty() {
            return Ok(found);
        }
        let ids: Vec<_> = found.iter().map(|ruling| ruling.id).collect();
        match self.store.forget(&ids).await {
            Ok(()) | Err(StoreError::None) => {}
            Err(error) => return Err(error),
        }
        let gone: BTreeSet<_> = ids.into_iter().collect();
        self.index.rcu(|index| {
            let mut index = Index::clone(index);
            index.retain(|ruling| !gone.contains(&ruling.id));
            index
        });
        // What an exemption has let in is decided anew.
        *self.last() = Some(Instant::now());
        for ruling in &found {
            tracing::info!(kind = kind.as_str(), device = ruling.device, id = %ruling.id, by, "ruling taken back");
        }
        Ok(found)
    }

    /// Whether rulings outlive the process.
    pub const fn are_kept(&self) -> bool {
        self.store.keeps_decisions()
    }

    fn insert(&self, ruling: &Arc<Ruling>) -> Result<(), RulingError> {
        let mut outcome = Ok(());
        self.index.rcu(|index| {
            outcome = index.room_for(ruling);
            let mut index = Index::clone(index);
            // Those that have ended go when another comes.
            index.retain(|other| other.holds(ruling.made_at));
            if outcome.is_ok() {
                index.insert(Arc::clone(ruling));
            }
            index
        });
        if outcome.is_ok() && ruling.kind == RulingKind::Lock {
            *self.last() = Some(Instant::now());
        }
        outcome
    }

    fn last(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, ruling: &Ruling) -> bool {
        self.index.load().of(&ruling.device).iter().any(|other| other.id == ruling.id)
    }
}

impl Index {
    fn of(&self, identifier: &str) -> &[Arc<Ruling>] {
        self.by_identifier.get(&*key(identifier)).map(Vec::as_slice).unwrap_or_default()
    }

    fn insert(&mut self, ruling: Arc<Ruling>) {
        self.by_identifier.entry(key(&ruling.device).into()).or_default().push(ruling);
    }

    fn retain(&mut self, keep: impl Fn(&Ruling) -> bool) {
        self.by_identifier.retain(|_, rulings| {
            rulings.retain(|ruling| keep(ruling));
            !rulings.is_empty()
        });
    }

    /// Whether one more would be within the bounds, those that have ended not counted.
    fn room_for(&self, ruling: &Ruling) -> Result<(), RulingError> {
        let holding = |rulings: &[Arc<Ruling>]| rulings.iter().filter(|other| other.holds(ruling.made_at)).count();
        if holding(self.of(&ruling.device)) >= MOST_OF_ONE {
            return Err(RulingError::TooManyOfOne);
        }
        if self.by_identifier.values().map(|rulings| holding(rulings)).sum::<usize>() >= MOST {
            return Err(RulingError::TooMany);
        }
        Ok(())
    }
}

fn tell(ruling: &Ruling, not_kept: Option<&StoreError>) {
    let not_kept = not_kept.map(StoreError::text);
    tracing::info!(
        kind = ruling.kind.as_str(),
        device = ruling.device,
        id = %ruling.id,
        by = ruling.made_by,
        reason = ruling.reason,
        until = ruling.until.map(crate::store::rfc3339),
        not_kept,
        "ruling made"
    );
}

/// The form in which rulings compare identifiers: as everything does, and of a unique device identifier without its dashes,
/// since some inventories write them and some do not. Nothing else loses its dashes: `A-1` and `A1` are two serial numbers.
fn key(identifier: &str) -> Cow<'_, str> {
    let normal = normal(identifier);
    let hexadecimal = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<&str> = if normal.len() <= LONGEST_UDID { normal.split('-').collect() } else { Vec::new() };
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    if UDID_SHAPES.contains(&lengths.as_slice()) && parts.iter().all(|part| hexadecimal(part)) {
        Cow::Owned(parts.concat())
    } else {
        normal
    }
}

/// Lengths of the parts of an identifier whose dashes do not count: that of Apple's newer devices, and a UUID.
const UDID_SHAPES: &[&[usize]] = &[&[8, 16], &[8, 4, 4, 4, 12]];
const LONGEST_UDID: usize = 36;

/// Rulings at once: each change copies the index.
const MOST: usize = 100_000;

/// Rulings about one device at once.
const MOST_OF_ONE: usize = 16;

#[cfg(test)]
mod tests;
