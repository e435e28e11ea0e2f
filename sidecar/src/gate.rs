//! The one place where an allow is made, at the moment in which it is given and from what is known then.
//!
//! Whatever was found out on the way, by whichever chain of providers, is a proposal. Meanwhile an operator may have locked the
//! device by any of its identifiers, an event may have come, a newer answer may have said otherwise, a second device may have
//! turned up under the same identifier, and an exemption may have ended. So [`Allowed`] has one constructor, which looks at all
//! of that and waits for nothing.

use std::sync::Arc;

use posture::identity::{DeviceId, Identity};
use posture::outcome::{Data, Denial, Refusal};
use posture::record::Record;

use crate::clock;
use crate::decide::Plan;
use crate::locks::{Locks, Ruling, Standing};
use crate::provider::{Answer, Looked, Provider};

/// The end of a request, as the sidecar gives it: an allow is one that the gate made.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The device may, with this data for templates.
    Allow(Allowed),
    /// The facts say no.
    Deny(Denial),
    /// The request was not worth, or not able, to be decided.
    Refuse(Refusal),
}

/// An allow: [`Grounds::allow`] alone makes one.
#[derive(Clone, Debug)]
pub struct Allowed {
    data: Data,
    grounds: Arc<Grounds>,
}

/// What an allow rests on.
#[derive(Clone, Debug)]
pub struct Grounds {
    /// The plan that it was judged by.
    pub plan: Arc<Plan>,
    /// The device that the request states, and how well that is proven.
    pub identity: Identity,
    /// Every provider that was consulted, whatever it said.
    pub consulted: Vec<Consulted>,
    /// Whether the device is let in by an exemption alone: a rule denies it, or no record of it can be had.
    pub exempted: bool,
}

/// What one provider said.
#[derive(Clone, Debug)]
pub struct Consulted {
    /// The provider.
    pub provider: Arc<Provider>,
    /// Its answer, and by what it knows later whether that still holds.
    pub looked: Looked,
}

/// Why no allow is given.
#[derive(Clone, Debug)]
pub enum Closed {
    /// An operator locked the device, by an identifier of the request or of a record.
    Locked(Arc<Ruling>),
    /// More than one device has one of the identifiers.
    Ambiguous,
    /// A lock on another identifier may be about this device: there is no record to look it up in, so no exemption counts.
    Doubtful(Arc<Ruling>),
    /// Something that the allow rests on is not so any more. What is so now may allow as well, and has to be judged.
    Changed,
}

impl Grounds {
    /// Makes an allow of a proposal, if nothing that is known at this moment forbids it. Waits for nothing.
    ///
    /// # Errors
    /// The first that is so: locked, ambiguous, an exemption that ended, a doubt, an answer that no longer stands.
    pub fn allow(self, data: Data, locks: &Locks) -> Result<Allowed, Closed> {
        self.hold(locks, Provider::stands)?;
        Ok(Allowed { data, grounds: Arc::new(self) })
    }

    fn hold(&self, locks: &Locks, stands: impl Fn(&Provider, &DeviceId, &Looked) -> bool) -> Result<(), Closed> {
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
        // An allow rests on a record, or on the word of an operator. Where that word stands in for a record that could not be had,
        // the device's other identifiers are not known, and a lock may be on one of them.
        let recorded = self.records().next().is_some();
        let silent = self.consulted.iter().any(|consulted| matches!(consulted.looked.answer, Answer::Unavailable(_)));
        let doubtful = self.exempted && (silent || !self.records().any(|(_, record)| record.identifiers().next().is_some()));
        if let Some(ruling) = doubtful.then(|| locks.possible(&self.identity.device, now)).flatten() {
            return Err(Closed::Doubtful(ruling));
        }
        let founded = self.exempted || recorded;
        if !founded || !self.consulted.iter().all(|Consulted { provider, looked }| stands(provider, &self.identity.device, looked)) {
            return Err(Closed::Changed);
        }
        Ok(())
    }

    fn records(&self) -> impl Iterator<Item = (&Provider, &Record)> {
        self.consulted.iter().filter_map(|consulted| match &consulted.looked.answer {
            Answer::Found(record) => Some((&*consulted.provider, &**record)),
            _ => None,
        })
    }
}

impl Allowed {
    /// What templates get.
    pub const fn data(&self) -> &Data {
        &self.data
    }

    /// Whether the allow could be made again now, by this plan: the gate's look, and no record that it rests on is older than one
    /// may be.
    pub fn holds(&self, plan: &Plan, locks: &Locks) -> bool {
        self.grounds.plan.is_as(plan) && self.grounds.hold(locks, Provider::is_current).is_ok()
    }

    /// Whether the gate would give it still, by what is known at this moment.
    pub fn stands(&self, locks: &Locks) -> bool {
        self.grounds.hold(locks, Provider::stands).is_ok()
    }

    /// Whether it was given to this device, as well proven.
    pub fn is_for(&self, identity: &Identity) -> bool {
        self.grounds.identity == *identity
    }

    /// Whether the device is let in by the word of an operator, where a rule denies it or no record of it can be had.
    pub fn is_exempted(&self) -> bool {
        self.grounds.exempted
    }
}

#[cfg(test)]
mod histories;

#[cfg(test)]
pub(crate) mod fixture {
    use posture::identity::{IdentifierKind, Trust};

    use super::*;
    use crate::config::{Combine, Enforcement, OnNotFound, OnUnavailable};
    use crate::provider::fake::Fake;

    /// An allow that rests on a record which does not change.
    pub(crate) fn allowed(data: Data) -> Outcome {
        let looked = Looked::live(Answer::Found(Arc::new(Record::default())));
        let provider = Arc::new(Provider::Fake(Fake::new(|_| async { Answer::NotFound })));
        let identity = Identity { device: DeviceId::new(IdentifierKind::Serial, "C02A").unwrap(), trust: Trust::Attested };
        let plan = Arc::new(Plan {
            policy: None,
            rules: None,
            links: Vec::new(),
            on_not_found: OnNotFound::Next,
            on_unavailable: OnUnavailable::Fail,
            combine: Combine::FirstFound,
            enrich: false,
            enforcement: Enforcement::Enforce,
        });
        let grounds = Grounds { plan, identity, consulted: vec![Consulted { provider, looked }], exempted: false };
        Outcome::Allow(grounds.allow(data, &Locks::default()).unwrap())
    }
}
