//! The plan of a decision: whom to ask, what to demand, and what follows where a provider cannot say.

use std::sync::Arc;
use std::time::Duration;

use posture::policy::{Mistake, Policy, Rules};
use posture::record::{Fields, Form};
use tokio::time::Instant;

use crate::locks::Locks;
use crate::provider::Provider;
use inventory::Service;
use inventory::setup::Demands;

/// A plan: whom to ask and what to demand, ready to decide by.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The name of the policy; `None`: the webhook names its providers itself.
    pub policy: Option<Arc<str>>,
    /// The rules of the policy.
    pub rules: Option<Arc<Policy>>,
    /// Providers in the order in which they are asked.
    pub links: Vec<Link>,
    /// The rule for a device that a provider does not have.
    pub on_not_found: OnNotFound,
    /// The rule for a device about which a provider cannot say.
    pub on_unavailable: OnUnavailable,
    /// The rule by which several providers are combined.
    pub combine: Combine,
    /// Whether templates get what is known of the user.
    pub enrich: bool,
    /// Whether denials by the rules count, or are only recorded.
    pub enforcement: Enforcement,
}

/// One provider of a plan.
#[derive(Clone, Debug)]
pub struct Link {
    /// The name of the provider.
    pub name: Arc<str>,
    /// The provider.
    pub provider: Arc<dyn Provider>,
    /// The demands of the provider's own settings, for computers and for mobile devices.
    pub own: Own,
}

/// The demands of a provider's settings on its records, whoever asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Own {
    /// The rules for computers.
    pub(crate) computer: OwnRules,
    /// The rules for mobile devices.
    pub(crate) mobile_device: OwnRules,
    /// Age of a remembered answer beyond which no device is denied by it: the provider is asked again.
    pub(crate) not_older: Duration,
}

/// The demands on records of one form.
#[derive(Clone, Debug)]
pub(crate) struct OwnRules {
    /// The rules where no policy judges.
    pub(crate) alone: Arc<Policy>,
    /// The rules beside a policy; `None`: there are none.
    pub(crate) beside: Option<Arc<Policy>>,
    /// Whether templates get what is known of the user.
    pub(crate) enrich: bool,
}

/// The rule for a device that a provider does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnNotFound {
    /// The next provider is asked.
    #[default]
    Next,
    /// The device is denied.
    Deny,
}

/// The rule for a device about which a provider cannot say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnavailable {
    /// The request is refused, and may be tried again: an outage must not lead to a list with laxer rules.
    #[default]
    Fail,
    /// The next provider is asked, where the service failed, and not about this device alone.
    Next,
}

/// The rule by which several providers are combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Combine {
    /// The first provider that has the device settles the decision.
    #[default]
    FirstFound,
    /// Every provider must have it, and each record must pass.
    AllOf,
    /// Every provider is asked, and one record that passes is enough.
    AnyOf,
}

/// The effect of denials by the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// Denials count.
    #[default]
    Enforce,
    /// The device is let through, and its denial is recorded. Everything but the rules counts.
    Observe,
}

macro_rules! words {
    ($type:ident: $($variant:ident = $word:literal),*) => {
        impl $type {
            /// All variants.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word of the configuration.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),*
                }
            }
        }
    };
}

words!(OnNotFound: Next = "next", Deny = "deny");
words!(OnUnavailable: Fail = "fail", Next = "next");
words!(Combine: FirstFound = "first_found", AllOf = "all_of", AnyOf = "any_of");
words!(Enforcement: Enforce = "enforce", Observe = "observe");

impl Plan {
    /// Whether nothing has changed since `began`, about any device: no lock was made or came to cover more, no ruling was taken
    /// back, and no event came. A change may name this device by an identifier that nobody can connect with it any more.
    pub fn undisturbed(&self, began: Instant, locks: &Locks) -> bool {
        locks.quiet_since(began) && self.links.iter().filter_map(|link| link.provider.cache()).all(|cache| cache.quiet_since(began))
    }

    /// Whether both plans decide alike. A reload puts a new plan in the place of each, and may change nothing in it.
    pub fn is_as(&self, other: &Self) -> bool {
        let same = |(one, other): (&Link, &Link)| Arc::ptr_eq(&one.provider, &other.provider) && one.own == other.own;
        self.rules.as_ref().map(|rules| rules.revision()) == other.rules.as_ref().map(|rules| rules.revision())
            && self.links.len() == other.links.len()
            && self.links.iter().zip(&other.links).all(same)
            && (self.on_not_found, self.on_unavailable, self.combine) == (other.on_not_found, other.on_unavailable, other.combine)
            && (self.enrich, self.enforcement) == (other.enrich, other.enforcement)
    }

    /// The fields that rules and enrichment need from a provider.
    pub fn need(&self, link: &Link) -> Fields {
        let rules = [&link.own.computer, &link.own.mobile_device].into_iter().flat_map(|own| self.judges(own));
        let enrich = self.enrich || link.own.computer.enrich || link.own.mobile_device.enrich;
        rules.fold(if enrich { USER } else { Fields::NONE }, |fields, rules| fields.union(rules.wants()))
    }

    /// The rules that judge a record, the provider's own first.
    pub(crate) fn judges<'r>(&'r self, own: &'r OwnRules) -> impl Iterator<Item = &'r Arc<Policy>> {
        let own = if self.rules.is_some() { own.beside.as_ref() } else { Some(&own.alone) };
        own.into_iter().chain(&self.rules)
    }

    /// The revision of the policy's rules, which tells one text of them from another.
    pub fn revision(&self) -> Option<String> {
        self.rules.as_ref().map(|rules| rules.revision().to_owned())
    }
}

impl PartialEq for OwnRules {
    fn eq(&self, other: &Self) -> bool {
        let revision = |rules: &Option<Arc<Policy>>| rules.as_ref().map(|rules| rules.revision().to_owned());
        self.alone.revision() == other.alone.revision() && revision(&self.beside) == revision(&other.beside) && self.enrich == other.enrich
    }
}

impl Own {
    /// The demands of a service. Without a policy a device has to be managed, since a record outlives management; the group of
    /// the settings is demanded beside a policy too. No device is denied by an answer that is older than `not_older`.
    ///
    /// # Errors
    /// [`Unfit`]: a group that no group can be.
    pub fn of_service(service: &Service, not_older: Duration) -> Result<Self, Unfit> {
        let own = |form: Form| {
            let Demands { group, enrich } = service.demands(form);
            let groups = Rules { groups_any: group.iter().cloned().collect(), ..Rules::default() };
            let alone = compile(&Rules { managed: true, ..groups.clone() })?;
            Ok::<_, Unfit>(OwnRules { alone, beside: group.map(|_| compile(&groups)).transpose()?, enrich })
        };
        Ok(Self { computer: own(Form::Computer)?, mobile_device: own(Form::MobileDevice)?, not_older })
    }

    /// The demands of a file: none.
    ///
    /// # Errors
    /// Never in practice: no rules have no mistakes.
    pub fn nothing() -> Result<Self, Unfit> {
        let rules = OwnRules { alone: compile(&Rules::default())?, beside: None, enrich: false };
        Ok(Self { computer: rules.clone(), mobile_device: rules, not_older: Duration::MAX })
    }

    /// The rules for records of this form; those for computers where the form is unknown.
    pub(crate) const fn of(&self, form: Option<&Form>) -> &OwnRules {
        match form {
            Some(Form::MobileDevice) => &self.mobile_device,
            Some(Form::Computer) | None => &self.computer,
        }
    }
}

/// Compiles rules, to judge by.
pub(crate) fn compile(rules: &Rules) -> Result<Arc<Policy>, Unfit> {
    Policy::compile(rules).map(Arc::new).map_err(Unfit)
}

/// The mistakes in the rules of a provider's settings.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.iter().map(|mistake| mistake.message.as_str()).collect::<Vec<_>>().join("; "))]
pub struct Unfit(pub Vec<Mistake>);

/// The fields that enrichment adds.
const USER: Fields = {
    use posture::record::Field;
    Fields::of(&[Field::UserId, Field::UserName, Field::UserEmail, Field::UserDepartment, Field::UserTitle, Field::Groups])
};
