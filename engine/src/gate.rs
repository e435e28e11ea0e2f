//! The one place where an allow is made, from what is known at the moment in which it is given.
//!
//! What a chain of providers comes to is a proposal. Meanwhile an operator may have locked the device by any of its
//! identifiers, an event may have come, a newer answer may have said otherwise, a second device may have turned up under the
//! same identifier, and an exemption may have ended. So [`Allowed`] has one constructor, which checks all of this and waits for
//! nothing.

use std::sync::Arc;

use inventory::Answer;
use posture::identity::{DeviceId, Identity};
use posture::outcome::{Data, Denial, Refusal};
use posture::record::Record;
use store::Ruling;

use crate::cache::Looked;
use crate::locks::{Locks, Standing};
use crate::plan::Plan;
use crate::provider::Provider;

/// The outcome of a request; an allow is one that the gate made.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The device is allowed, with this data for templates.
    Allow(Allowed),
    /// The device is denied by the facts.
    Deny(Denial),
    /// No decision was made: the request is not proven, or cannot be decided.
    Refuse(Refusal),
}

/// An allow: [`Grounds::allow`] alone makes one.
#[derive(Clone, Debug)]
pub struct Allowed {
    data: Data,
    grounds: Arc<Grounds>,
}

/// The grounds of an allow: everything that it rests on.
#[derive(Clone, Debug)]
pub struct Grounds {
    /// The plan by which the device was judged.
    pub plan: Arc<Plan>,
    /// The device that the request states, and how well its identity is proven.
    pub identity: Identity,
    /// Every provider that was consulted, whatever its answer.
    pub consulted: Vec<Consulted>,
    /// Whether an exemption alone lets the device in: a rule denies it, or no record of it can be had.
    pub exempted: bool,
}

/// A provider that was consulted, and its answer.
#[derive(Clone, Debug)]
pub struct Consulted {
    /// The provider.
    pub provider: Arc<dyn Provider>,
    /// The answer, with the evidence by which the provider knows later whether it still holds.
    pub looked: Looked,
}

/// The reason why the gate gives no allow.
#[derive(Clone, Debug)]
pub enum Closed {
    /// An operator locked the device, by an identifier of the request or of a record.
    Locked(Arc<Ruling>),
    /// More than one device has one of the identifiers.
    Ambiguous,
    /// A lock on another identifier may be about this device: there is no record to look it up in, so no exemption counts.
    Doubtful(Arc<Ruling>),
    /// What other services on the store rule is not known for too long: one of them may have locked the device.
    Stale,
    /// Something that the allow rests on has changed. The new state may allow as well, and has to be judged.
    Changed,
}

impl Grounds {
    /// Makes an allow of a proposal, unless something that is known at this moment forbids it. Waits for nothing.
    ///
    /// # Errors
    /// The first of these that applies: no news of rulings for too long, locked, ambiguous, an exemption that ended, a doubt, an
    /// answer that no longer stands.
    pub fn allow(self, data: Data, locks: &Locks) -> Result<Allowed, Closed> {
        self.hold(locks, Provider::stands)?;
        Ok(Allowed { data, grounds: Arc::new(self) })
    }

    fn hold(&self, locks: &Locks, stands: impl Fn(&dyn Provider, &DeviceId, &Looked) -> bool) -> Result<(), Closed> {
        if locks.are_stale() {
            return Err(Closed::Stale);
        }
        let now = clock::now();
        let identifiers = self.records().flat_map(|(_, record)| record.identifiers().collect::<Vec<_>>());
        let standing = locks.standing(&self.identity.device, identifiers, now);
        if let Standing::Locked(ruling) = standing {
            return Err(Closed::Locked(ruling));
        }
        if self.records().any(|(provider, record)| provider.is_ambiguous(record)) {
            return Err(Closed::Ambiguous);
        }
        if self.exempted && !matches!(standing, Standing::Exempt(_)) {
            return Err(Closed::Changed);
        }
        // Where an exemption stands in for a missing record, the device's other identifiers are unknown, and a lock may be on one
        // of them.
        let silent = self.consulted.iter().any(|consulted| matches!(consulted.looked.answer, Answer::Unavailable(_)));
        let doubtful = self.exempted && (silent || !self.records().any(|(_, record)| record.identifiers().next().is_some()));
        if let Some(ruling) = doubtful.then(|| locks.possible(&self.identity.device, now)).flatten() {
            return Err(Closed::Doubtful(ruling));
        }
        // An allow rests on a record or on an exemption.
        let founded = self.exempted || self.records().next().is_some();
        if !founded || !self.consulted.iter().all(|Consulted { provider, looked }| stands(&**provider, &self.identity.device, looked)) {
            return Err(Closed::Changed);
        }
        Ok(())
    }

    fn records(&self) -> impl Iterator<Item = (&dyn Provider, &Record)> {
        self.consulted.iter().filter_map(|consulted| match &consulted.looked.answer {
            Answer::Found(record) => Some((&*consulted.provider, &**record)),
            _ => None,
        })
    }
}

impl Allowed {
    /// The data for templates.
    pub const fn data(&self) -> &Data {
        &self.data
    }

    /// Whether the allow could be made again now by `plan`: the gate would give it, and every record that it rests on is within
    /// its lifetime.
    pub fn holds(&self, plan: &Plan, locks: &Locks) -> bool {
        self.grounds.plan.is_as(plan) && self.grounds.hold(locks, Provider::is_current).is_ok()
    }

    /// Whether the gate would still give the allow, by what is known at this moment.
    pub fn stands(&self, locks: &Locks) -> bool {
        self.grounds.hold(locks, Provider::stands).is_ok()
    }

    /// Whether the allow was given to this device, equally well proven.
    pub fn is_for(&self, identity: &Identity) -> bool {
        self.grounds.identity == *identity
    }

    /// Whether an exemption alone lets the device in, where a rule denies it or no record of it can be had.
    pub fn is_exempted(&self) -> bool {
        self.grounds.exempted
    }
}

#[cfg(test)]
mod histories;

#[cfg(test)]
mod tests {
    use super::*;
    use posture::identity::{IdentifierKind, Trust};
    use store::{Ruling, RulingKind};

    #[tokio::test]
    async fn a1_an_allow_stands_until_its_device_is_locked() {
        let locks = Locks::default();
        let Outcome::Allow(allowed) = fixture::allowed(Data::from_json("{}").unwrap()) else { panic!("no allow") };
        let lock = |device: &str| Ruling::new(RulingKind::Lock, None, device, "", "", clock::now(), None);
        let _ = locks.lock(lock("C02B")).await.unwrap();
        assert!(allowed.stands(&locks), "another device is locked");
        let _ = locks.lock(lock("c02a")).await.unwrap();
        assert!(!allowed.stands(&locks));
    }

    #[test]
    fn an_allow_is_for_one_device_that_is_proven_as_well() {
        let Outcome::Allow(allowed) = fixture::allowed(Data::from_json("{}").unwrap()) else { panic!("no allow") };
        let of = |serial: &str, trust| Identity { device: DeviceId::new(IdentifierKind::Serial, serial).unwrap(), trust };
        assert!(allowed.is_for(&of("C02A", Trust::Attested)));
        assert!(!allowed.is_for(&of("C02B", Trust::Attested)) && !allowed.is_for(&of("C02A", Trust::Claimed)));
    }
}

/// Allows for tests, which pass the gate as all others do.
#[cfg(any(test, feature = "scripted"))]
#[allow(clippy::unwrap_used, reason = "test code: a panic with its place is the report")]
pub mod fixture {
    use posture::identity::{IdentifierKind, Trust};

    use super::*;
    use crate::plan::{Combine, Enforcement, OnNotFound, OnUnavailable};
    use crate::provider::scripted::Scripted;

    /// An allow that rests on a record which does not change.
    pub fn allowed(data: Data) -> Outcome {
        let looked = Looked::live(Answer::Found(Arc::new(Record::default())));
        let provider = Arc::new(Scripted::new(|_| async { Answer::NotFound }));
        let identity = Identity { device: DeviceId::new(IdentifierKind::Serial, "C02A").unwrap(), trust: Trust::Attested };
        let plan = plan();
        let grounds = Grounds { plan, identity, consulted: vec![Consulted { provider, looked }], exempted: false };
        Outcome::Allow(grounds.allow(data, &Locks::default()).unwrap())
    }

    /// A plan that asks nobody.
    pub fn plan() -> Arc<Plan> {
        Arc::new(Plan {
            policy: None,
            rules: None,
            links: Vec::new(),
            on_not_found: OnNotFound::Next,
            on_unavailable: OnUnavailable::Fail,
            combine: Combine::FirstFound,
            enrich: false,
            enforcement: Enforcement::Enforce,
        })
    }
}
