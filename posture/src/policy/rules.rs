//! What an operator writes: a policy as plain data, and what may be wrong with it besides its expressions.

use std::collections::BTreeMap;
use std::time::Duration;

use super::compile::Problem;
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

/// What a policy asks, as plain data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// The device must be under management. `false` asks nothing.
    pub managed: bool,
    /// It must be in one of these groups, by name or id; empty asks nothing.
    pub groups_any: Vec<String>,
    /// It must be in all of these.
    pub groups_all: Vec<String>,
    /// It must be in none of these.
    pub groups_none: Vec<String>,
    /// Least version of the operating system.
    pub min_os: Option<LeastOs>,
    /// Longest time since the inventory last heard of the device.
    pub max_silence: Option<Duration>,
    /// Greatest age of the record itself.
    pub max_age: Option<Duration>,
    /// What the inventory must think of it: [`Compliance::Compliant`], or [`Compliance::GracePeriod`] for either of the two.
    pub compliance: Option<Compliance>,
    /// Least proof that the request comes from the device.
    pub trust: Option<Trust>,
    /// It must not be lost. `None`: where the inventory says that it is, it is denied; `true`: the inventory must say.
    pub not_lost: Option<bool>,
    /// It must not be about to be wiped, likewise.
    pub not_wiping: Option<bool>,
    /// Expressions that must hold, in this order.
    pub require: Vec<Rule>,
    /// Expressions that must not hold, after those.
    pub deny_if: Vec<Rule>,
    /// What a template gets; `None`: [`super::default_data`].
    pub data: Option<String>,
    /// Where a person is sent whose device is denied, unless the check has an address of its own.
    pub remediation_url: Option<String>,
}

/// Least versions of operating systems, as texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeastOs {
    /// For every device.
    One(String),
    /// By platform as the inventory spells it, letters in either case; `other` is for those that are not listed.
    ByPlatform(BTreeMap<String, String>),
}

/// One check of an operator's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// CEL.
    pub expression: String,
    /// Code of the denial: up to 64 of a-z, 0-9 and _, a letter first, and none of [`Denial::ALL`].
    pub code: String,
    /// One sentence for a person.
    pub message: String,
    /// Where a person is sent.
    pub remediation_url: Option<String>,
}

/// One thing that is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where.
    pub at: At,
    /// Bytes from the start of that text; 0 unless it is an expression.
    pub offset: usize,
    /// What, and what to do about it.
    pub message: String,
}

/// A text of [`Rules`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// `min_os`, or the version of this platform in it.
    MinOs(Option<String>),
    /// A rule that has a name, such as `managed` or `groups_any`.
    Key(&'static str),
    /// Of `require`, counted from 0.
    Require(usize, Part),
    /// Of `deny_if`, counted from 0.
    DenyIf(usize, Part),
    /// `data`
    Data,
    /// `remediation_url` of the policy.
    RemediationUrl,
}

/// A place in [`Rules`] that denies every device of which a field is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Where.
    pub at: At,
    /// Bytes from the start of that text; 0 unless it is an expression.
    pub offset: usize,
    /// The field.
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
    let mut checks = Vec::new();
    checks.extend((rules.not_lost != Some(false)).then_some(Shorthand::NotLost { asked: rules.not_lost.is_some() }));
    checks.extend((rules.not_wiping != Some(false)).then_some(Shorthand::NotWiping { asked: rules.not_wiping.is_some() }));
    checks.extend(rules.managed.then_some(Shorthand::Managed));
    checks.extend(rules.trust.map(Shorthand::Trust));
    checks.extend(rules.max_age.map(Shorthand::MaxAge));
    checks.extend(rules.max_silence.map(Shorthand::MaxSilence));
    if let Some(state) = rules.compliance {
        if !matches!(state, Compliance::Compliant | Compliance::GracePeriod) {
            let message = "must be compliant, or grace_period for devices that still have time".to_owned();
            mistakes.push(Mistake { at: At::Key("compliance"), offset: 0, message });
        }
        checks.push(Shorthand::Compliance(state));
    }
    checks.extend(rules.min_os.as_ref().and_then(|least| min_os(least, mistakes)).map(Shorthand::MinOs));
    let lists: [(_, _, OfGroups); 3] = [
        ("groups_none", &rules.groups_none, Shorthand::GroupsNone),
        ("groups_all", &rules.groups_all, Shorthand::GroupsAll),
        ("groups_any", &rules.groups_any, Shorthand::GroupsAny),
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

/// What is wrong with the code of an operator's own check.
pub(super) fn code(code: &str) -> Option<String> {
    let form = code.len() <= 64
        && code.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
        && code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if !form {
        return Some(format!("`{code}` is not a code: write up to 64 of a-z, 0-9 and _, a letter first"));
    }
    Denial::ALL.iter().any(|denial| denial.code == code).then(|| format!("`{code}` is a code of Stepward itself: choose one of your own"))
}

/// What is wrong with a message.
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
