//! Step 8: the operator's rules over what is known of a device. Nothing is read and no clock is asked: the record, the
//! request and the time are arguments.
//!
//! A policy is an ordered list of checks; the first that fails decides. A check over a field that is not known denies with
//! [`Denial::POSTURE_UNKNOWN`] before it is evaluated, one that cannot be evaluated denies with [`Denial::POLICY_ERROR`], and
//! nothing but a check that holds ever passes. A field of which it is known that there is no value can be asked for with
//! `has` or compared with `null`; any other use of it cannot be evaluated.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use crate::identity::{IdentifierKind, Trust};
use crate::outcome::{Data, Denial};
use crate::record::{Compliance, Fact, Field, Fields, Record};
use crate::time::UnixTime;
use crate::webhook::Kind;

mod compile;
mod data;
mod expression;
mod schema;
mod shorthand;
#[cfg(test)]
mod tests;
mod value;
mod version;

pub use compile::Problem;
pub use data::{LARGEST_DATA, default_data, full_data};

use compile::Compiled;
use data::Template;
use expression::{Evaluation, Node};
use schema::Path;
use shorthand::{Finding, MinOs, OTHER, Shorthand};
use version::Version;

/// Most items of a list that a check goes over. Beyond it the groups of a device count as not known.
pub const LONGEST_LIST: usize = 4096;
/// Most checks of one kind.
const MOST_CHECKS: usize = 100;
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
    /// What a template gets; `None`: [`default_data`].
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
    /// `compliance`
    Compliance,
    /// `groups_any`, `groups_all` or `groups_none`.
    Groups(&'static str),
    /// Of `require`, counted from 0.
    Require(usize, Part),
    /// Of `deny_if`, counted from 0.
    DenyIf(usize, Part),
    /// `data`
    Data,
    /// `remediation_url` of the policy.
    RemediationUrl,
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

/// A policy that can judge.
#[derive(Clone)]
pub struct Policy {
    checks: Vec<Check>,
    data: Option<Compiled<Template>>,
    needs: Fields,
    wants: Fields,
    remediation_url: Option<Cow<'static, str>>,
    revision: String,
}

#[derive(Clone)]
struct Check {
    /// `managed`, or `require 1`.
    name: String,
    denial: Denial,
    /// Fields without which it is not evaluated.
    needs: Fields,
    /// All that it reads of the record.
    reads: Fields,
    /// What else it reads, and which free columns.
    paths: Vec<Path>,
    test: Test,
}

#[derive(Clone)]
enum Test {
    Shorthand(Shorthand),
    Expression {
        source: String,
        root: Node,
        /// What it must come to.
        wanted: bool,
    },
}

/// All that a policy judges by.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `device`
    pub record: &'a Record,
    /// When the inventory gave the record.
    pub fetched_at: UnixTime,
    /// `trust`
    pub trust: Trust,
    /// `request`
    pub request: Request<'a>,
    /// `caller`
    pub caller: Caller<'a>,
    /// `now`
    pub now: UnixTime,
}

/// `request`
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Id of the webhook, where one asks.
    pub webhook: Option<&'a str>,
    /// What asks.
    pub kind: RequestKind,
    /// Identifier of the device, as it was stated.
    pub identifier: &'a str,
    /// What that is.
    pub identifier_kind: IdentifierKind,
}

/// What asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// step-ca.
    Webhook(Kind),
    /// A posture query.
    Query,
    /// Envoy's external authorization.
    ExtAuthz,
}

impl RequestKind {
    /// As policies spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook(kind) => kind.as_str(),
            Self::Query => "query",
            Self::ExtAuthz => "ext_authz",
        }
    }
}

/// `caller`
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller<'a> {
    /// Name that it was let in by, such as `dns:ca.example.org`.
    pub name: Option<&'a str>,
    /// All names of its certificate.
    pub names: &'a [String],
}

/// What a policy says of one device.
#[derive(Clone, Debug)]
pub struct Judgement<'p> {
    /// The end of it.
    pub result: Verdict,
    /// The check that denied, or all of them where all were asked for.
    pub checks: Vec<CheckResult<'p>>,
}

/// Whether a device may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every check holds.
    Pass,
    /// This is what the first check that does not hold says.
    Deny(Denial),
}

/// What one check says, for whoever explains a decision.
#[derive(Clone, Debug)]
pub struct CheckResult<'p> {
    /// Such as `managed` or `require 1`, counted from 1.
    pub name: &'p str,
    /// CEL, of an operator's own check.
    pub expression: Option<&'p str>,
    /// What it denies with; `None`: it holds.
    pub denial: Option<Denial>,
    /// What is not known, or why it could not be evaluated. For logs, not for the client.
    pub detail: Option<String>,
    /// What it read.
    pub inputs: Vec<Input>,
}

/// One thing that a check read.
#[derive(Clone, PartialEq)]
pub struct Input {
    /// Such as `device.managed`.
    pub name: Cow<'static, str>,
    /// What it was.
    pub fact: Fact<Json>,
}

impl fmt::Debug for Input {
    // It may be about a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fact = match self.fact {
            Fact::Value(_) => "..",
            Fact::Absent => "absent",
            Fact::Unknown => "unknown",
        };
        write!(f, "{}: {fact}", self.name)
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|check| &check.name)).finish()
    }
}

impl Policy {
    /// Checks and compiles rules. The order of the checks: `not_lost`, `not_wiping`, `managed`, `trust`, `max_age`,
    /// `max_silence`, `compliance`, `min_os`, `groups_none`, `groups_all`, `groups_any`, then `require`, then `deny_if`.
    ///
    /// # Errors
    /// Every [`Mistake`] in them.
    pub fn compile(rules: &Rules) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut checks: Vec<Check> = shorthands(rules, &mut mistakes).into_iter().map(Check::of_shorthand).collect();
        for (number, rule) in rules.require.iter().enumerate() {
            checks.extend(Check::of_rule(rule, format!("require {}", number + 1), true, |part| At::Require(number, part), &mut mistakes));
        }
        for (number, rule) in rules.deny_if.iter().enumerate() {
            checks.extend(Check::of_rule(rule, format!("deny_if {}", number + 1), false, |part| At::DenyIf(number, part), &mut mistakes));
        }
        for (list, at) in
            [(&rules.require, At::Require(MOST_CHECKS, Part::Expression)), (&rules.deny_if, At::DenyIf(MOST_CHECKS, Part::Expression))]
        {
            if list.len() > MOST_CHECKS {
                mistakes.push(Mistake { at, offset: 0, message: format!("a policy has at most {MOST_CHECKS} checks of one kind") });
            }
        }
        let data = rules.data.as_deref().and_then(|source| match compile::data(source) {
            Ok(data) => Some(data),
            Err(problems) => {
                mistakes.extend(problems.into_iter().map(|problem| problem.at(At::Data)));
                None
            }
        });
        url(rules.remediation_url.as_deref(), At::RemediationUrl, &mut mistakes);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let of_data = data.as_ref().map_or(Fields::NONE, |data| data.fields);
        let needs = checks.iter().fold(of_data, |fields, check| fields.union(check.needs));
        let wants = checks.iter().fold(of_data, |fields, check| fields.union(check.reads));
        let remediation_url = rules.remediation_url.clone().map(Cow::Owned);
        // Twelve digits tell any two texts of one policy apart, and fit into a line.
        let digest = Sha256::digest(format!("{rules:?}"));
        let revision = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { checks, data, needs, wants, remediation_url, revision })
    }

    /// Tells one text of a policy from another.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Fields without which every device is denied.
    pub const fn needs(&self) -> Fields {
        self.needs
    }

    /// These, and those that deny a device where they are known: whether it is lost, say.
    pub const fn wants(&self) -> Fields {
        self.wants
    }

    /// Names of the checks, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.checks.iter().map(|check| check.name.as_str())
    }

    /// Judges a device, up to the first check that does not hold.
    pub fn judge(&self, inputs: &Inputs<'_>) -> Judgement<'_> {
        let evaluation = Evaluation::new(inputs);
        let known = schema::known(inputs.record);
        for check in &self.checks {
            let finding = check.judge(&evaluation, known);
            if finding != Finding::Pass {
                let result = self.result(check, finding, &evaluation, known);
                let denial = result.denial.clone().unwrap_or(Denial::POLICY_ERROR);
                return Judgement { result: Verdict::Deny(denial), checks: vec![result] };
            }
        }
        Judgement { result: Verdict::Pass, checks: Vec::new() }
    }

    /// Judges a device by every check, and says what each read. The result is that of [`Self::judge`].
    pub fn judge_all(&self, inputs: &Inputs<'_>) -> Judgement<'_> {
        let evaluation = Evaluation::new(inputs);
        let known = schema::known(inputs.record);
        let judged = |check| self.result(check, Check::judge(check, &evaluation, known), &evaluation, known);
        let checks: Vec<_> = self.checks.iter().map(judged).collect();
        let denial = checks.iter().find_map(|check| check.denial.clone());
        Judgement { result: denial.map_or(Verdict::Pass, Verdict::Deny), checks }
    }

    /// What a template gets of a device that may: the policy's `data`, or [`default_data`]. A name without a value is null.
    ///
    /// # Errors
    /// A [`Denial`] where a field of it is not known, where it cannot be evaluated, and where it is beyond [`LARGEST_DATA`]: a
    /// certificate would say less than it must.
    pub fn data(&self, inputs: &Inputs<'_>, enrich: bool) -> Result<Data, Denial> {
        let with_url = |denial| self.with_url(denial);
        let Some(data) = &self.data else { return default_data(inputs.record, enrich).map_err(with_url) };
        if !data.fields.without(schema::known(inputs.record)).is_empty() {
            return Err(with_url(Denial::POSTURE_UNKNOWN));
        }
        let filled = data.root.fill(&Evaluation::new(inputs)).map_err(|_| with_url(Denial::POLICY_ERROR))?;
        data::sized(&filled).map_err(with_url)
    }

    /// The same for a device that is let through although it may not: all keys, and null for what cannot be had.
    ///
    /// # Errors
    /// [`Denial::DATA_TOO_LARGE`].
    pub fn full_data(&self, inputs: &Inputs<'_>, enrich: bool) -> Result<Data, Denial> {
        match &self.data {
            Some(data) => data::sized(&data.root.fill_or_null(&Evaluation::new(inputs))),
            None => full_data(inputs.record, enrich),
        }
    }

    fn result<'p>(&self, check: &'p Check, finding: Finding, evaluation: &Evaluation<'_>, known: Fields) -> CheckResult<'p> {
        let (denial, detail) = match finding {
            Finding::Pass => (None, None),
            Finding::Fail => (Some(check.denial.clone()), None),
            Finding::Unknown(what) => (Some(Denial::POSTURE_UNKNOWN), Some(format!("not known: {what}"))),
            Finding::Error(why) => (Some(Denial::POLICY_ERROR), Some(why)),
        };
        let expression = match &check.test {
            Test::Expression { source, .. } => Some(source.as_str()),
            Test::Shorthand(_) => None,
        };
        CheckResult {
            name: &check.name,
            expression,
            denial: denial.map(|denial| self.with_url(denial)),
            detail,
            inputs: check.inputs(evaluation, known),
        }
    }

    fn with_url(&self, mut denial: Denial) -> Denial {
        denial.remediation_url = denial.remediation_url.or_else(|| self.remediation_url.clone());
        denial
    }
}

impl Check {
    fn of_shorthand(shorthand: Shorthand) -> Self {
        let reads = shorthand.reads();
        Self {
            name: shorthand.name().to_owned(),
            denial: shorthand.denial(),
            needs: if shorthand.is_strict() { reads } else { Fields::NONE },
            reads,
            paths: shorthand.paths(),
            test: Test::Shorthand(shorthand),
        }
    }

    fn of_rule(rule: &Rule, name: String, wanted: bool, at: impl Fn(Part) -> At, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let mut wrong = |part, message: String| mistakes.push(Mistake { at: at(part), offset: 0, message });
        if let Some(message) = code(&rule.code) {
            wrong(Part::Code, message);
        }
        let message = rule.message.trim();
        if message.is_empty() || message.len() > LONGEST_MESSAGE || message.chars().any(char::is_control) {
            wrong(Part::Message, format!("must be one line of up to {LONGEST_MESSAGE} bytes that tells a person what to do"));
        }
        url(rule.remediation_url.as_deref(), at(Part::RemediationUrl), mistakes);
        match compile::check(&rule.expression) {
            Ok(Compiled { root, fields, paths }) => Some(Self {
                name,
                denial: Denial {
                    code: rule.code.clone().into(),
                    message: message.to_owned().into(),
                    remediation_url: rule.remediation_url.clone().map(Cow::Owned),
                },
                needs: fields,
                reads: fields,
                // The record's own fields are among those already.
                paths: paths.into_iter().filter(|path| !matches!(path, Path::Device(_))).collect(),
                test: Test::Expression { source: rule.expression.clone(), root, wanted },
            }),
            Err(problems) => {
                mistakes.extend(problems.into_iter().map(|problem| problem.at(at(Part::Expression))));
                None
            }
        }
    }

    fn judge(&self, evaluation: &Evaluation<'_>, known: Fields) -> Finding {
        let missing = self.needs.without(known);
        if !missing.is_empty() {
            let names: Vec<_> = missing.iter().map(|field| format!("device.{}", field.as_str())).collect();
            return Finding::Unknown(names.join(", "));
        }
        match &self.test {
            Test::Shorthand(shorthand) => shorthand.judge(evaluation.inputs()),
            Test::Expression { root, wanted, .. } => match evaluation.holds(root) {
                Ok(holds) if holds == *wanted => Finding::Pass,
                Ok(_) => Finding::Fail,
                Err(fault) => Finding::Error(fault.0.into_owned()),
            },
        }
    }

    fn inputs(&self, evaluation: &Evaluation<'_>, known: Fields) -> Vec<Input> {
        let fields = self.reads.iter().filter(|field| *field != Field::Data).map(Path::Device);
        let mut inputs: Vec<_> = fields.chain(self.paths.iter().cloned()).map(|path| input(&path, evaluation, known)).collect();
        if matches!(self.test, Test::Shorthand(Shorthand::MaxAge(_))) {
            let fetched_at = value::rfc3339(evaluation.inputs().fetched_at);
            inputs.push(Input { name: "fetched_at".into(), fact: Fact::Value(fetched_at.into()) });
        }
        inputs
    }
}

fn input(path: &Path, evaluation: &Evaluation<'_>, known: Fields) -> Input {
    let fact = match path.field() {
        Some(field) if !known.contains(field) => Fact::Unknown,
        _ => evaluation.read(path).map_or(Fact::Unknown, |value| Fact::known(value.map(value::Value::into_json))),
    };
    Input { name: path.name(), fact }
}

impl Problem {
    fn at(self, at: At) -> Mistake {
        Mistake { at, offset: self.offset, message: self.message }
    }
}

fn shorthands(rules: &Rules, mistakes: &mut Vec<Mistake>) -> Vec<Shorthand> {
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
            mistakes.push(Mistake { at: At::Compliance, offset: 0, message });
        }
        checks.push(Shorthand::Compliance(state));
    }
    checks.extend(rules.min_os.as_ref().and_then(|least| min_os(least, mistakes)).map(Shorthand::MinOs));
    let lists: [(_, _, fn(Vec<String>) -> Shorthand); 3] = [
        ("groups_none", &rules.groups_none, Shorthand::GroupsNone),
        ("groups_all", &rules.groups_all, Shorthand::GroupsAll),
        ("groups_any", &rules.groups_any, Shorthand::GroupsAny),
    ];
    for (key, names, shorthand) in lists {
        if names.len() > MOST_CHECKS || names.iter().any(|name| name.trim().is_empty()) {
            let message = format!("lists up to {MOST_CHECKS} names or ids of groups, none of them blank");
            mistakes.push(Mistake { at: At::Groups(key), offset: 0, message });
        }
        checks.extend((!names.is_empty()).then(|| shorthand(names.clone())));
    }
    checks
}

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
fn code(code: &str) -> Option<String> {
    let form = code.len() <= 64
        && code.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
        && code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if !form {
        return Some(format!("`{code}` is not a code: write up to 64 of a-z, 0-9 and _, a letter first"));
    }
    Denial::ALL.iter().any(|denial| denial.code == code).then(|| format!("`{code}` is a code of Stepward itself: choose one of your own"))
}

fn url(url: Option<&str>, at: At, mistakes: &mut Vec<Mistake>) {
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
