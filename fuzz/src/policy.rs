//! A policy as an operator may write it, and a record of which only a part is known.
//!
//! The lines are: the fields that are known (`*` for all; a field with `-` before it is known to have no value), a check that
//! must hold, one that must not, `data`, free columns as JSON, and then one shorthand a line, such as `min_os 15.4`.

use posture::identity::{IdentifierKind, Trust};
use posture::policy::{At, Caller, Inputs, LARGEST_DATA, LeastOs, Mistake, Part, Policy, Request, RequestKind, Rule, Rules, Verdict};
use posture::record::{Compliance, Fact, Field, Fields, Form, Group, Record};
use posture::time::UnixTime;
use serde_json::Value;
use std::time::Duration;

const NOW: UnixTime = UnixTime::from_nanos(1_700_000_000_000_000_000);

/// Asserts that no text panics when it is compiled or judged, and that no expression passes over a field that it needs and
/// that is not known.
pub fn body(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (known, require, deny_if, data, columns) = (next(), next(), next(), next(), next());
    let mut rules = none();
    lines.take(16).for_each(|line| shorthand(&mut rules, line));
    let record = record(known, columns);
    let plain = rules.clone();
    rules.require.extend(rule(require));
    rules.deny_if.extend(rule(deny_if));
    judged(&rules, &record);
    filled(data, &record);
    opposites(&plain, require, &record);
}

/// Asserts that a check in `require` and the same check in `deny_if` never both pass.
fn opposites(plain: &Rules, expression: &str, record: &Record) {
    let Some(rule) = rule(expression) else { return };
    let must = Policy::compile(&Rules { require: vec![rule.clone()], ..plain.clone() });
    let must_not = Policy::compile(&Rules { deny_if: vec![rule], ..plain.clone() });
    if let (Ok(must), Ok(must_not)) = (must, must_not) {
        let inputs = inputs(record);
        assert!(must.judge(&inputs).result != Verdict::Pass || must_not.judge(&inputs).result != Verdict::Pass, "both pass");
    }
}

fn judged(rules: &Rules, record: &Record) {
    let policy = match Policy::compile(rules) {
        Ok(policy) => policy,
        Err(mistakes) => return placed(rules, &mistakes),
    };
    let inputs = inputs(record);
    let result = policy.judge(&inputs).result;
    let all = policy.judge_all(&inputs);
    assert_eq!(result, all.result);
    assert_eq!(all.checks.len(), policy.names().count());
    assert_eq!(result == Verdict::Pass, all.checks.iter().all(|check| check.denial.is_none()));
    let unknown = policy.needs().without(record.known());
    assert!(unknown.is_empty() || result != Verdict::Pass, "passes, and {unknown:?} is not known");
}

fn filled(source: &str, record: &Record) {
    let rules = Rules { data: Some(source.to_owned()), ..Rules::default() };
    let Ok(policy) = Policy::compile(&rules) else { return };
    let inputs = inputs(record);
    if let Ok(data) = policy.data(&inputs, true) {
        assert!(policy.needs().without(record.known()).iter().all(|field| matches!(field, Field::Lost | Field::WipePending)));
        assert!(data.as_json().len() <= LARGEST_DATA);
        assert!(serde_json::from_str::<Value>(data.as_json()).unwrap().is_object());
    }
    let _ = policy.full_data(&inputs, true);
}

fn placed(rules: &Rules, mistakes: &[Mistake]) {
    assert!(!mistakes.is_empty(), "refused for no reason");
    for mistake in mistakes {
        assert!(!mistake.message.is_empty());
        let text = match &mistake.at {
            At::Require(number, Part::Expression) => &rules.require[*number].expression,
            At::DenyIf(number, Part::Expression) => &rules.deny_if[*number].expression,
            _ => continue,
        };
        assert!(text.is_char_boundary(mistake.offset), "{} is not a place in {text:?}", mistake.offset);
    }
}

fn rule(expression: &str) -> Option<Rule> {
    let rule = || Rule { expression: expression.to_owned(), code: "own".to_owned(), message: "no".to_owned(), remediation_url: None };
    (!expression.is_empty()).then(rule)
}

/// Rules that ask nothing. It is without `..`, since each rule that has a name has its line in [`shorthand`].
fn none() -> Rules {
    Rules {
        managed: false,
        groups_any: Vec::new(),
        groups_all: Vec::new(),
        groups_none: Vec::new(),
        min_os: None,
        max_silence: None,
        max_age: None,
        compliance: None,
        trust: None,
        not_lost: Some(false),
        not_wiping: Some(false),
        require: Vec::new(),
        deny_if: Vec::new(),
        data: None,
        remediation_url: None,
    }
}

fn shorthand(rules: &mut Rules, line: &str) {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let seconds = || rest.parse().ok().map(Duration::from_secs);
    match word {
        "managed" => rules.managed = true,
        "not_lost" => rules.not_lost = rest.parse().ok(),
        "not_wiping" => rules.not_wiping = rest.parse().ok(),
        "groups_any" => rules.groups_any.push(rest.to_owned()),
        "groups_all" => rules.groups_all.push(rest.to_owned()),
        "groups_none" => rules.groups_none.push(rest.to_owned()),
        "max_silence" => rules.max_silence = seconds(),
        "max_age" => rules.max_age = seconds(),
        "compliant" => rules.compliance = Some(Compliance::Compliant),
        "grace_period" => rules.compliance = Some(Compliance::GracePeriod),
        "attested" => rules.trust = Some(Trust::Attested),
        "min_os" => {
            rules.min_os = Some(match rest.split_once('=') {
                None => LeastOs::One(rest.to_owned()),
                Some((platform, version)) => LeastOs::ByPlatform([(platform.to_owned(), version.to_owned())].into()),
            });
        }
        _ => {}
    }
}

fn inputs(record: &Record) -> Inputs<'_> {
    Inputs {
        record,
        fetched_at: NOW.saturating_sub(Duration::from_secs(60)),
        trust: Trust::Certificate,
        request: Request { webhook: None, kind: RequestKind::Query, identifier: "C02XL0GYJGH5", identifier_kind: IdentifierKind::Serial },
        caller: Caller { name: Some("dns:ca.example.org"), names: &[] },
        now: NOW,
    }
}

/// A record in which these fields are known, and no others.
fn record(known: &str, columns: &str) -> Record {
    let has = |field: Field| known.split(' ').any(|word| word == "*" || word == field.as_str());
    let lacks = |field: Field| known.split(' ').any(|word| word.strip_prefix('-') == Some(field.as_str()));
    let values: Fields = Field::ALL.iter().copied().filter(|field| has(*field)).collect();
    let absent: Fields = Field::ALL.iter().copied().filter(|field| lacks(*field)).collect();
    let pick = Pick { values, absent };
    let mut record = Record {
        provider_id: if values.contains(Field::ProviderId) { "7".to_owned() } else { String::new() },
        form: pick.fact(Field::Form, Form::Computer),
        serial: pick.text(Field::Serial, "C02XL0GYJGH5"),
        udid: pick.text(Field::Udid, "00008030-001A2B3C4D5E6F70"),
        name: pick.text(Field::Name, "Ada's Mac"),
        platform: pick.text(Field::Platform, "Mac"),
        os_version: pick.text(Field::OsVersion, "15.4.1"),
        os_build: pick.text(Field::OsBuild, "24E263"),
        model: pick.text(Field::Model, "Mac15,3"),
        managed: pick.fact(Field::Managed, true),
        supervised: pick.fact(Field::Supervised, true),
        ownership: pick.text(Field::Ownership, "institutional"),
        compliance: pick.fact(Field::Compliance, Compliance::Compliant),
        groups: pick.fact(
            Field::Groups,
            vec![Group { id: "1".to_owned(), name: "Staff".to_owned() }, Group { id: String::new(), name: "Macs".to_owned() }],
        ),
        lost: pick.fact(Field::Lost, false),
        wipe_pending: pick.fact(Field::WipePending, false),
        compromised: pick.fact(Field::Compromised, false),
        encrypted: pick.fact(Field::Encrypted, true),
        attestation: pick.text(Field::Attestation, "SUCCESS"),
        enrolled_at: pick.fact(Field::EnrolledAt, NOW.saturating_sub(Duration::from_secs(86_400))),
        last_seen: pick.fact(Field::LastSeen, NOW.saturating_sub(Duration::from_secs(3600))),
        inventory_at: pick.fact(Field::InventoryAt, NOW),
        data: pick.text(Field::Data, columns),
        ..Record::default()
    };
    record.user.id = pick.text(Field::UserId, "ada");
    record.user.name = pick.text(Field::UserName, "Ada");
    record.user.email = pick.text(Field::UserEmail, "ada@example.org");
    record.user.department = pick.text(Field::UserDepartment, "IT");
    record.user.title = pick.text(Field::UserTitle, "Engineer");
    record.user.active = pick.fact(Field::UserActive, true);
    record
}

struct Pick {
    values: Fields,
    absent: Fields,
}

impl Pick {
    fn fact<T>(&self, field: Field, value: T) -> Fact<T> {
        match (self.absent.contains(field), self.values.contains(field)) {
            (true, _) => Fact::Absent,
            (false, true) => Fact::Value(value),
            (false, false) => Fact::Unknown,
        }
    }

    fn text(&self, field: Field, value: &str) -> Fact<String> {
        self.fact(field, value.to_owned())
    }
}
