//! A policy as an operator writes it, in plain data, and mistakes in it besides those of its expressions.

use std::collections::BTreeMap;
use std::time::Duration;

use super::problem::Problem;
use super::shorthand::{MinOs, OTHER, Shorthand};
use super::version::Version;
use crate::identity::Trust;
use crate::outcome::Denial;
use crate::record::{Compliance, Field};

/// Most checks of one kind.
pub(super) const MOST_CHECKS: usize = 100;
/// Longest message of an operator's own check, in bytes: it goes into the client's error.
const LONGEST_MESSAGE: usize = 500;
const LONGEST_URL: usize = 2000;

/// The rules of a policy, as plain data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Whether the device must be under management. `false` asks nothing.
    pub managed: bool,
    /// Groups, by name or id, of which the device must be in at least one; empty asks nothing.
    pub groups_any: Vec<String>,
    /// Groups of which the device must be in all.
    pub groups_all: Vec<String>,
    /// Groups of which the device must be in none.
    pub groups_none: Vec<String>,
    /// Least version of the operating system.
    pub min_os: Option<LeastOs>,
    /// Longest time since the inventory last heard of the device.
    pub max_silence: Option<Duration>,
    /// Greatest age of the record.
    pub max_age: Option<Duration>,
    /// Compliance that the inventory must state: [`Compliance::Compliant`], or [`Compliance::GracePeriod`] for either of the two.
    pub compliance: Option<Compliance>,
    /// Least proof that the request comes from the device.
    pub trust: Option<Trust>,
    /// Whether the device must not be lost. `None` denies a device that the inventory calls lost; with `true` the inventory
    /// must say.
    pub not_lost: Option<bool>,
    /// Whether the device must not be about to be wiped; as for [`Self::not_lost`].
    pub not_wiping: Option<bool>,
    /// Expressions that must hold, in this order.
    pub require: Vec<Rule>,
    /// Expressions that must not hold, after those of `require`.
    pub deny_if: Vec<Rule>,
    /// CEL expression of the data for a template; `None` gives [`super::default_data`].
    pub data: Option<String>,
    /// Address for a person whose device is denied, unless the check has an address of its own.
    pub remediation_url: Option<String>,
}

/// Least versions of operating systems, as texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeastOs {
    /// One version for every device.
    One(String),
    /// Versions by platform as the inventory spells it, letters in either case; `other` is for platforms that are not listed.
    ByPlatform(BTreeMap<String, String>),
}

/// An operator's own check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// CEL expression of the check.
    pub expression: String,
    /// Code of the denial: up to 64 of a-z, 0-9 and _, a letter first, and none of [`Denial::ALL`].
    pub code: String,
    /// Message for a person, one sentence.
    pub message: String,
    /// Address for a person whose device is denied.
    pub remediation_url: Option<String>,
}

/// A mistake in a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Place of the mistake.
    pub at: At,
    /// Byte offset in the text at that place; 0 unless the text is an expression.
    pub offset: usize,
    /// What, and what to do about it.
    pub message: String,
}

/// A place in [`Rules`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// `min_os`, or the version of this platform in it.
    MinOs(Option<String>),
    /// A check with a name of its own, such as `managed` or `groups_any`.
    Key(&'static str),
    /// Part of a check in `require`, counted from 0.
    Require(usize, Part),
    /// Part of a check in `deny_if`, counted from 0.
    DenyIf(usize, Part),
    /// The `data` expression.
    Data,
    /// The `remediation_url` of the policy.
    RemediationUrl,
}

/// A place in [`Rules`] that needs a field, and denies every device of which the field is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The place.
    pub at: At,
    /// Byte offset in the text at that place; 0 unless the text is an expression.
    pub offset: usize,
    /// The field that is needed.
    pub field: Field,
}

/// A part of a [`Rule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of `Rule` of that name")]
pub enum Part {
    Expression,
    Code,
    Message,
    RemediationUrl,
}

impl Problem {
    pub(super) fn at(self, at: At) -> Mistake {
        Mistake { at, offset: self.offset, message: self.message }
    }
}

pub(super) fn shorthands(rules: &Rules, mistakes: &mut Vec<Mistake>) -> Vec<Shorthand> {
    // Without `..`, so that no rule is left out.
    let Rules {
        not_lost,
        not_wiping,
        managed,
        trust,
        max_age,
        max_silence,
        compliance,
        min_os: least_os,
        groups_none,
        groups_all,
        groups_any,
        require: _,
        deny_if: _,
        data: _,
        remediation_url: _,
    } = rules;
    let mut checks = Vec::new();
    checks.extend((*not_lost != Some(false)).then_some(Shorthand::NotLost { asked: not_lost.is_some() }));
    checks.extend((*not_wiping != Some(false)).then_some(Shorthand::NotWiping { asked: not_wiping.is_some() }));
    checks.extend(managed.then_some(Shorthand::Managed));
    checks.extend(trust.map(Shorthand::Trust));
    checks.extend(max_age.map(Shorthand::MaxAge));
    checks.extend(max_silence.map(Shorthand::MaxSilence));
    if let Some(state) = *compliance {
        if !matches!(state, Compliance::Compliant | Compliance::GracePeriod) {
            let message = "must be compliant, or grace_period for devices that still have time".to_owned();
            mistakes.push(Mistake { at: At::Key("compliance"), offset: 0, message });
        }
        checks.push(Shorthand::Compliance(state));
    }
    checks.extend(least_os.as_ref().and_then(|least| min_os(least, mistakes)).map(Shorthand::MinOs));
    let lists: [(_, _, OfGroups); 3] = [
        ("groups_none", groups_none, Shorthand::GroupsNone),
        ("groups_all", groups_all, Shorthand::GroupsAll),
        ("groups_any", groups_any, Shorthand::GroupsAny),
    ];
    for (key, names, shorthand) in lists {
        if names.len() > MOST_CHECKS || names.iter().any(|name| name.trim().is_empty()) {
            let message = format!("lists up to {MOST_CHECKS} names or ids of groups, none of them blank");
            mistakes.push(Mistake { at: At::Key(key), offset: 0, message });
        }
        checks.extend((!names.is_empty()).then(|| shorthand(names.clone())));
    }
    checks
}

type OfGroups = fn(Vec<String>) -> Shorthand;

fn min_os(least: &LeastOs, mistakes: &mut Vec<Mistake>) -> Option<MinOs> {
    let mut version = |text: &str, platform: Option<&str>| {
        let version = Version::parse(text);
        if version.is_none() {
            let message = format!("`{text}` is not a version: write numbers between dots, as in 15.4");
            mistakes.push(Mistake { at: At::MinOs(platform.map(str::to_owned)), offset: 0, message });
        }
        version
    };
    match least {
        LeastOs::One(text) => version(text, None).map(MinOs::One),
        LeastOs::ByPlatform(texts) => {
            let mut by_platform = BTreeMap::new();
            for (platform, text) in texts {
                if let Some(version) = version(text, Some(platform)) {
                    by_platform.insert(platform.trim().to_ascii_lowercase(), version);
                }
            }
            if by_platform.len() < texts.len() && mistakes.is_empty() {
                let message = "two platforms differ by the case of their letters alone".to_owned();
                mistakes.push(Mistake { at: At::MinOs(None), offset: 0, message });
            }
            if texts.is_empty() {
                let message = format!("names no platform: write min_os = {{ Mac = \"15.4\", {OTHER} = \"0\" }}");
                mistakes.push(Mistake { at: At::MinOs(None), offset: 0, message });
            }
            Some(MinOs::ByPlatform(by_platform))
        }
    }
}

/// The mistake in the code of an operator's own check, if any.
pub(super) fn code(code: &str) -> Option<String> {
    let form = code.len() <= 64
        && code.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
        && code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if !form {
        return Some(format!("`{code}` is not a code: write up to 64 of a-z, 0-9 and _, a letter first"));
    }
    Denial::ALL.iter().any(|denial| denial.code == code).then(|| format!("`{code}` is a code of Stepward itself: choose one of your own"))
}

/// The mistake in a message, if any.
pub(super) fn message(message: &str) -> Option<String> {
    let good = !message.is_empty() && message.len() <= LONGEST_MESSAGE && !message.chars().any(char::is_control);
    (!good).then(|| format!("must be one line of up to {LONGEST_MESSAGE} bytes that tells a person what to do"))
}

pub(super) fn url(url: Option<&str>, at: At, mistakes: &mut Vec<Mistake>) {
    let good = |url: &str| {
        let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        host.is_some_and(|host| !host.is_empty() && !host.starts_with('/'))
            && url.len() <= LONGEST_URL
            && url.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if let Some(url) = url.filter(|url| !good(url)) {
        let message = format!("`{url}` is not an address for a person: write https://help.example.org/enrol");
        mistakes.push(Mistake { at, offset: 0, message });
    }
}
