//! Step 8, the policy: the operator's rules over what is known of a device. Pure: the record, the request and the time are
//! arguments.
//!
//! A policy is an ordered list of checks; the first that fails decides. A check over an unknown field denies with
//! [`Denial::POSTURE_UNKNOWN`] before it is evaluated, and one that cannot be evaluated denies with [`Denial::POLICY_ERROR`];
//! only a check that holds passes. A field that is known to have no value can be asked for with `has` or compared with
//! `null`; any other use of it cannot be evaluated.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use crate::outcome::{Data, Denial};
use crate::record::{Field, Fields};

mod compile;
mod data;
mod expression;
mod fault;
mod functions;
mod inputs;
mod moment;
mod pattern;
mod problem;
mod rules;
mod schema;
mod shorthand;
#[cfg(test)]
mod tests;
mod types;
mod value;
mod version;
mod work;

pub use data::{LARGEST_DATA, default_data, full_data};
pub use inputs::{Caller, Inputs, Request, RequestKind};
pub use problem::Problem;
pub use rules::{At, LeastOs, Mistake, Part, Rule, Rules, Use};
pub use shorthand::{NAMED, Named};
pub use value::LONGEST_LIST;

use compile::Compiled;
use data::Template;
use expression::{Evaluation, Node};
use rules::MOST_CHECKS;
use schema::Path;
use shorthand::{Finding, Shorthand};

/// A compiled policy.
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
    /// Name of the check, such as `managed` or `require 1`.
    name: Arc<str>,
    denial: Denial,
    /// Fields that must be known before the check is evaluated.
    needs: Fields,
    /// First place of each of these fields in the expression, in bytes.
    offsets: Vec<(Field, usize)>,
    /// Place of the check in the rules.
    at: At,
    /// All fields of the record that the check reads.
    reads: Fields,
    /// All values that the check reads, each with its name, except `device.data` as a whole.
    inputs: Vec<(Arc<str>, Path)>,
    /// Whether the expression reads the names of groups.
    over_names: bool,
    test: Test,
}

#[derive(Clone)]
enum Test {
    Shorthand(Shorthand, Arc<Json>),
    Expression {
        source: Arc<str>,
        root: Node,
        /// The value to which the expression must evaluate.
        wanted: bool,
    },
}

/// A policy's judgement of one device.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The verdict.
    pub result: Verdict,
    /// The check that denied; all checks if all were asked for.
    pub checks: Vec<CheckResult>,
}

/// Whether the policy lets a device pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every check holds.
    Pass,
    /// The first check that does not hold denies with this.
    Deny(Denial),
}

/// The result of one check, for an explanation of the decision. Of a person it shows no more than the identifier that was stated.
#[derive(Clone, Debug, Serialize)]
pub struct CheckResult {
    /// Name of the check, such as `managed` or `require 1`, counted from 1.
    #[serde(rename = "check", serialize_with = "text")]
    pub name: Arc<str>,
    /// CEL expression of an operator's own check.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "present")]
    pub expression: Option<Arc<str>>,
    /// Setting of a check with a name of its own, such as the names of groups.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "present")]
    pub wanted: Option<Arc<Json>>,
    /// Denial of the check; `None` if the check holds.
    #[serde(rename = "code", serialize_with = "code")]
    pub denial: Option<Denial>,
    /// What is not known, or why the check could not be evaluated. For logs, not for the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Values that the check read.
    #[serde(serialize_with = "object")]
    pub inputs: Vec<Input>,
}

fn text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

fn present<T: Serialize + ?Sized, S: Serializer>(value: &Option<Arc<T>>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_deref().serialize(serializer)
}

fn code<S: Serializer>(denial: &Option<Denial>, serializer: S) -> Result<S::Ok, S::Error> {
    denial.as_ref().map(|denial| &denial.code).serialize(serializer)
}

fn object<S: Serializer>(inputs: &[Input], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(inputs.iter().map(|Input { name, seen }| (&**name, seen)))
}

impl CheckResult {
    /// The values that the check read, as a JSON object.
    pub fn inputs(&self) -> String {
        let mut text = Vec::new();
        // Writing JSON names and values to memory cannot fail.
        let _ = object(&self.inputs, &mut serde_json::Serializer::new(&mut text));
        String::from_utf8(text).unwrap_or_default()
    }
}

/// A description of one check, for people.
#[derive(Clone, Copy, Debug)]
pub struct Described<'p> {
    /// Name of the check, such as `managed` or `require 1`.
    pub name: &'p str,
    /// Setting of a check with a name of its own, as in [`CheckResult::wanted`].
    pub wanted: Option<&'p Json>,
    /// CEL expression of an operator's own check, and the value to which it must evaluate.
    pub expression: Option<(&'p str, bool)>,
    /// Denial if the check does not hold.
    pub denial: &'p Denial,
}

/// A value that a check read.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Name of the value, such as `device.managed`.
    pub name: Arc<str>,
    /// What the check saw of the value.
    pub seen: Seen,
}

/// What a check saw of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// The value; of a long one, the beginning.
    Value(Json),
    /// A value that may be about a person; it is not shown.
    Personal,
    /// The value is known not to exist.
    Absent,
    /// The value is not known.
    Unknown,
}

impl Serialize for Seen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            Self::Personal => serializer.serialize_str("(known)"),
            Self::Absent => serializer.serialize_unit(),
            Self::Unknown => serializer.serialize_str("(not known)"),
        }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|check| &check.name)).finish()
    }
}

impl Policy {
    /// Checks and compiles rules. The order of the checks: those of [`NAMED`], then `require`, then `deny_if`.
    ///
    /// # Errors
    /// Every [`Mistake`] in the rules.
    pub fn compile(rules: &Rules) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut checks: Vec<Check> = rules::shorthands(rules, &mut mistakes).into_iter().map(Check::of_shorthand).collect();
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
        rules::url(rules.remediation_url.as_deref(), At::RemediationUrl, &mut mistakes);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let of_data = data.as_ref().map_or(Fields::NONE, |data| data.fields);
        let needs = checks.iter().fold(of_data, |fields, check| fields.union(check.needs));
        let wants = checks.iter().fold(of_data, |fields, check| fields.union(check.reads));
        let remediation_url = rules.remediation_url.clone().map(Cow::Owned);
        // Twelve digits tell the texts of one policy apart, and fit into a line.
        let digest = Sha256::digest(format!("{rules:?}"));
        let revision = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { checks, data, needs, wants, remediation_url, revision })
    }

    /// A digest that tells one text of a policy from another.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Fields without which the policy denies every device.
    pub const fn needs(&self) -> Fields {
        self.needs
    }

    /// The first place in each rule, in each check and in `data` that uses a field of [`Self::needs`].
    pub fn uses(&self) -> impl Iterator<Item = Use> {
        let found = |at: &At, needs: Fields, offsets: &[(Field, usize)]| {
            let offset = |field| offsets.iter().find(|(known, _)| *known == field).map_or(0, |(_, offset)| *offset);
            needs.iter().map(|field| Use { at: at.clone(), offset: offset(field), field }).collect::<Vec<_>>()
        };
        let of_data = self.data.iter().flat_map(move |data| found(&At::Data, data.fields, &data.offsets));
        self.checks.iter().flat_map(move |check| found(&check.at, check.needs, &check.offsets)).chain(of_data)
    }

    /// Fields that the policy reads: those of [`Self::needs`], and those that deny a device only if known, such as `lost`.
    pub const fn wants(&self) -> Fields {
        self.wants
    }

    /// Descriptions of all checks, in their order.
    pub fn described(&self) -> impl Iterator<Item = Described<'_>> {
        self.checks.iter().map(|check| {
            let (wanted, expression) = match &check.test {
                Test::Shorthand(_, wanted) => (Some(&**wanted), None),
                Test::Expression { source, wanted, .. } => (None, Some((&**source, *wanted))),
            };
            Described { name: &check.name, wanted, expression, denial: &check.denial }
        })
    }

    /// Names and ids of groups in the policy's settings, each with the rule that has them.
    pub fn groups(&self) -> impl Iterator<Item = (&'static str, &[String])> {
        self.checks.iter().filter_map(|check| match &check.test {
            Test::Shorthand(shorthand, _) => Some((shorthand.name(), shorthand.groups()?)),
            Test::Expression { .. } => None,
        })
    }

    /// Names of the checks, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.checks.iter().map(|check| &*check.name)
    }

    /// Judges a device, up to the first check that does not hold.
    pub fn judge(&self, inputs: &Inputs<'_>) -> Judgement {
        let evaluation = Evaluation::new(inputs);
        let known = schema::known(inputs);
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

    /// Judges a device by every check, and reports what each read. The verdict is that of [`Self::judge`].
    pub fn judge_all(&self, inputs: &Inputs<'_>) -> Judgement {
        let evaluation = Evaluation::new(inputs);
        let known = schema::known(inputs);
        let judged = |check| self.result(check, Check::judge(check, &evaluation, known), &evaluation, known);
        let checks: Vec<_> = self.checks.iter().map(judged).collect();
        let denial = checks.iter().find_map(|check| check.denial.clone());
        Judgement { result: denial.map_or(Verdict::Pass, Verdict::Deny), checks }
    }

    /// Judges a device only by the checks that read `trust`, up to the first that does not hold. These apply to a device that
    /// an operator exempts from all others.
    pub fn judge_trust(&self, inputs: &Inputs<'_>) -> Verdict {
        let evaluation = Evaluation::new(inputs);
        let known = schema::known(inputs);
        for check in self.checks.iter().filter(|check| check.inputs.iter().any(|(_, path)| *path == Path::Trust)) {
            let finding = check.judge(&evaluation, known);
            if finding != Finding::Pass {
                let denial = self.result(check, finding, &evaluation, known).denial;
                return Verdict::Deny(denial.unwrap_or(Denial::POLICY_ERROR));
            }
        }
        Verdict::Pass
    }

    /// Data for a template about a device that passes: the policy's `data`, or [`default_data`]. A name without a value is null.
    ///
    /// # Errors
    /// A [`Denial`] if the data needs an unknown field, cannot be evaluated, or is larger than [`LARGEST_DATA`]: a
    /// certificate would say less than it must.
    pub fn data(&self, inputs: &Inputs<'_>, enrich: bool) -> Result<Data, Denial> {
        let with_url = |denial| self.with_url(denial);
        let Some(data) = &self.data else { return default_data(inputs.record, enrich).map_err(with_url) };
        let unnamed = data.paths.contains(&Path::Device(Field::Groups)) && schema::is_any_unnamed(&inputs.record.groups);
        if unnamed || !data.fields.without(schema::known(inputs)).is_empty() {
            return Err(with_url(Denial::POSTURE_UNKNOWN));
        }
        let filled = data.root.fill(&Evaluation::new(inputs)).map_err(|_| with_url(Denial::POLICY_ERROR))?;
        data::sized(&filled).map_err(with_url)
    }

    /// Data for a template about a device that is let through despite the policy: all keys, and null for a value that cannot
    /// be had.
    ///
    /// # Errors
    /// [`Denial::DATA_TOO_LARGE`] if the data is larger than [`LARGEST_DATA`].
    pub fn full_data(&self, inputs: &Inputs<'_>, enrich: bool) -> Result<Data, Denial> {
        match &self.data {
            Some(data) => data::sized(&data.root.fill_or_null(&Evaluation::new(inputs))),
            None => full_data(inputs.record, enrich),
        }
    }

    fn result(&self, check: &Check, finding: Finding, evaluation: &Evaluation<'_>, known: Fields) -> CheckResult {
        let (denial, detail) = match finding {
            Finding::Pass => (None, None),
            Finding::Fail => (Some(check.denial.clone()), None),
            Finding::Unknown(what) => (Some(Denial::POSTURE_UNKNOWN), Some(format!("not known: {what}"))),
            Finding::Error(why) => (Some(Denial::POLICY_ERROR), Some(why)),
        };
        let (expression, wanted) = match &check.test {
            Test::Expression { source, .. } => (Some(Arc::clone(source)), None),
            Test::Shorthand(_, wanted) => (None, Some(Arc::clone(wanted))),
        };
        CheckResult {
            name: Arc::clone(&check.name),
            expression,
            wanted,
            denial: denial.map(|denial| self.with_url(denial)),
            detail,
            inputs: check.inputs.iter().map(|(name, path)| Input { name: Arc::clone(name), seen: seen(path, evaluation, known) }).collect(),
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
            name: shorthand.name().into(),
            denial: shorthand.denial(),
            needs: if shorthand.is_strict() { reads } else { Fields::NONE },
            offsets: Vec::new(),
            at: At::Key(shorthand.name()),
            reads,
            inputs: named(reads, shorthand.paths()),
            // Such a check reads ids too, and reports itself if the unknown name of a group decides.
            over_names: false,
            test: {
                let wanted = Arc::new(shorthand.wanted());
                Test::Shorthand(shorthand, wanted)
            },
        }
    }

    fn of_rule(rule: &Rule, name: String, wanted: bool, at: impl Fn(Part) -> At, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let mut wrong = |part, message: String| mistakes.push(Mistake { at: at(part), offset: 0, message });
        if let Some(message) = rules::code(&rule.code) {
            wrong(Part::Code, message);
        }
        let message = rule.message.trim();
        if let Some(wrong_message) = rules::message(message) {
            wrong(Part::Message, wrong_message);
        }
        rules::url(rule.remediation_url.as_deref(), at(Part::RemediationUrl), mistakes);
        match compile::check(&rule.expression) {
            Ok(Compiled { root, fields, offsets, paths }) => Some(Self {
                name: name.into(),
                denial: Denial {
                    code: rule.code.clone().into(),
                    message: message.to_owned().into(),
                    remediation_url: rule.remediation_url.clone().map(Cow::Owned),
                },
                needs: fields,
                offsets,
                at: at(Part::Expression),
                reads: fields,
                over_names: paths.contains(&Path::Device(Field::Groups)),
                // `fields` has the record's own fields already.
                inputs: named(fields, paths.into_iter().filter(|path| !matches!(path, Path::Device(_)))),
                test: Test::Expression { source: rule.expression.as_str().into(), root, wanted },
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
            let ahead = schema::ahead(evaluation.inputs());
            let why = |field| if ahead.contains(field) { ", which lies in the future" } else { "" };
            let names: Vec<_> = missing.iter().map(|field| format!("device.{}{}", field.as_str(), why(field))).collect();
            return Finding::Unknown(names.join(", "));
        }
        let Inputs { record, fetched_at, now, .. } = evaluation.inputs();
        if self.over_names && schema::is_any_unnamed(&record.groups) {
            return Finding::Unknown(schema::UNNAMED.to_owned());
        }
        if schema::lies_ahead(*fetched_at, *now) && self.inputs.iter().any(|(_, path)| *path == Path::FetchedAt) {
            return Finding::Unknown("the time at which the record was fetched, which lies in the future".to_owned());
        }
        match &self.test {
            Test::Shorthand(shorthand, _) => shorthand.judge(evaluation.inputs()),
            Test::Expression { root, wanted, .. } => match evaluation.holds(root) {
                Ok(holds) if holds == *wanted => Finding::Pass,
                Ok(_) => Finding::Fail,
                Err(fault) => Finding::Error(fault.0.into_owned()),
            },
        }
    }
}

/// Names the values that a check reads: fields of the record, and others.
fn named(fields: Fields, others: impl IntoIterator<Item = Path>) -> Vec<(Arc<str>, Path)> {
    let fields = fields.iter().filter(|field| *field != Field::Data).map(Path::Device);
    fields.chain(others).map(|path| (path.name().into(), path)).collect()
}

fn seen(path: &Path, evaluation: &Evaluation<'_>, known: Fields) -> Seen {
    if path.field().is_some_and(|field| !known.contains(field)) {
        return Seen::Unknown;
    }
    match evaluation.read(path) {
        Ok(Some(_)) if path.is_personal() => Seen::Personal,
        Ok(Some(value)) => Seen::Value(value.shown()),
        Ok(None) => Seen::Absent,
        Err(_) => Seen::Unknown,
    }
}
