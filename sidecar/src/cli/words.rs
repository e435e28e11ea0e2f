//! Rules and decisions in words, for people: what a check wanted of a device, what it had, and what was probably meant.

use std::fmt::Write as _;

use posture::outcome::Denial;
use posture::shown::cell;
use serde_json::Value;

use crate::misspelt::meant;

/// Describes what a check asks of a device, as in `needs one of [Staff, Macs]`. `wanted` is what its rule asks for, `expression`
/// the CEL of an operator's own check.
pub(super) fn needs(name: &str, wanted: Option<&Value>, expression: Option<&str>) -> String {
    let of = |wanted: &Value| match wanted {
        Value::String(text) => text.clone(),
        Value::Object(versions) => {
            versions.iter().map(|(platform, least)| format!("{platform} {}", plain(least))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    match (name, wanted, expression) {
        ("not_lost", wanted, _) => if_known("must not be lost", wanted),
        ("not_wiping", wanted, _) => if_known("must not be about to be wiped", wanted),
        ("lock", ..) => "must not be locked".to_owned(),
        ("managed", ..) => "must be managed".to_owned(),
        ("trust", Some(least), _) => format!("needs the trust `{}` or better", of(least)),
        ("max_age", Some(most), _) => format!("needs a record that is no older than {}", of(most)),
        ("max_silence", Some(most), _) => format!("must have been heard of in the last {}", of(most)),
        ("compliance", Some(state), _) if state == "grace_period" => "must be compliant, or in its grace period".to_owned(),
        ("compliance", ..) => "must be compliant".to_owned(),
        ("min_os", Some(least), _) => format!("needs at least the system version {}", of(least)),
        ("groups_any", Some(names), _) => format!("needs one of {}", list(names)),
        ("groups_all", Some(names), _) => format!("needs all of {}", list(names)),
        ("groups_none", Some(names), _) => format!("must be in none of {}", list(names)),
        (name, _, Some(expression)) if name.starts_with("deny_if") => format!("must not be so that {expression}"),
        (_, _, Some(expression)) => format!("needs {expression}"),
        (name, ..) => format!("has to pass `{name}`"),
    }
}

fn if_known(needs: &str, wanted: Option<&Value>) -> String {
    if wanted == Some(&Value::Bool(true)) { needs.to_owned() } else { format!("{needs}, where that is known") }
}

/// Describes a check of a record that did not hold: what it wanted, what the device has, and what was probably meant.
pub(super) fn denied(check: &Value) -> String {
    let text = |name: &str| check.get(name).and_then(Value::as_str);
    let name = text("check").unwrap_or_default();
    let mut said = needs(name, check.get("wanted"), text("expression"));
    let inputs = check.get("inputs").and_then(Value::as_object);
    let groups = inputs.and_then(|inputs| inputs.get("device.groups"));
    // Writing to a text does not fail.
    let _ = match (groups, inputs) {
        (Some(has @ Value::Array(_)), _) => write!(said, "; has {}", list(has)),
        (_, Some(inputs)) => {
            // Values that are not known are named in the detail.
            let known = inputs.iter().filter(|(_, value)| *value != "(not known)");
            let has: Vec<String> = known.map(|(name, value)| format!("{name} = {}", plain(value))).collect();
            if has.is_empty() { Ok(()) } else { write!(said, "; has {}", has.join(", ")) }
        }
        _ => Ok(()),
    };
    if let Some(detail) = text("detail") {
        let _ = write!(said, " ({detail})");
    }
    if name != "groups_none"
        && let (Some(wanted), Some(has)) = (check.get("wanted").map(texts), groups.map(texts))
    {
        let meant: Vec<&str> = wanted.iter().filter(|wanted| !has.contains(wanted)).filter_map(|wanted| meant(wanted, &has)).collect();
        if !meant.is_empty() {
            let _ = write!(said, ". Did you mean {}?", meant.join(", "));
        }
    }
    said
}

/// Describes the checks of a record, a line for each: whether it holds, what it wanted, and where it does not hold what the device
/// has.
pub(super) fn checks(checks: &[Value]) -> Vec<String> {
    checks.iter().map(of_check).collect()
}

/// Describes a record of a decision: what came of it and why, then the rest.
pub(super) fn explained(record: &Value) -> String {
    let text = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or_default();
    let checks = record.get("checks").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let failed = checks.iter().find(|check| check.get("code").is_some_and(|code| !code.is_null()));
    let (decision, code) = (text("decision"), text("code"));
    let verification = record.get("verification").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut lines = vec![match (decision, failed) {
        ("allow", None) => "allowed".to_owned(),
        ("allow", Some(check)) => format!("allowed, though it would be denied: {}", denied(check)),
        ("deny", Some(check)) if check.get("code").and_then(Value::as_str) == Some(code) => format!("denied: {}", denied(check)),
        ("deny", _) => format!("denied: {}", sentence(code, text("message"))),
        (_, _) => {
            let why = verification.iter().filter_map(|check| check.get("result")?.as_str()?.strip_prefix("FAILED: ")).next();
            format!("refused: {}", why.unwrap_or(code))
        }
    }];
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{name:8}  {value}"));
        }
    };
    row("code", code.to_owned());
    row("message", text("message").to_owned());
    row("device", device(record.get("device")));
    let caller = if text("caller").is_empty() { String::new() } else { format!(", called by {}", text("caller")) };
    row(
        "webhook",
        [
            webhook_shown(text("webhook"), text("webhook_name")),
            if text("kind").is_empty() { String::new() } else { format!(" ({})", text("kind")) },
            caller,
        ]
        .concat(),
    );
    if !text("policy").is_empty() {
        let way = if text("enforcement") == "observe" { "only observed" } else { "enforced" };
        row("policy", format!("{}, revision {}, {way}", text("policy"), text("policy_revision")));
    }
    for answer in record.get("answers").and_then(Value::as_array).into_iter().flatten() {
        row("answer", of_provider(answer, text("provider")));
    }
    for check in verification {
        let of = |name: &str| check.get(name).and_then(Value::as_str).unwrap_or_default();
        row("request", format!("{}: {}", of("check"), of("result")));
    }
    for check in self::checks(checks) {
        row("check", check);
    }
    row("at", text("at").to_owned());
    row("id", text("id").to_owned());
    if record.get("replayed") == Some(&Value::Bool(true)) {
        row("replayed", "remembered from equal bytes before".to_owned());
    }
    row("request", text("request_id").to_owned());
    lines.iter().fold(String::new(), |text, line| text + &cell(line) + "\n")
}

/// Returns a webhook as people are shown it: by its name, where it has one, and its id.
pub(super) fn webhook_shown(id: &str, name: &str) -> String {
    if name.is_empty() { id.to_owned() } else { format!("{name} ({id})") }
}

/// Returns the sentence of a denial: that of the record, else that of Stepward's own denial, else the code.
fn sentence(code: &str, message: &str) -> String {
    let known = Denial::ALL.iter().find(|denial| denial.code == code).map(|denial| &*denial.message);
    let message = if message.is_empty() { known.unwrap_or_default() } else { message };
    if message.is_empty() { code.to_owned() } else { message.to_owned() }
}

fn device(device: Option<&Value>) -> String {
    let of = |name: &str| device.and_then(|device| device.get(name)).and_then(Value::as_str).unwrap_or_default();
    if of("identifier").is_empty() { String::new() } else { format!("{} ({}, {})", of("identifier"), of("kind"), of("trust")) }
}

fn of_provider(answer: &Value, settled: &str) -> String {
    let of = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
    let age = answer.get("age_ms").and_then(Value::as_u64).map(|age| format!(", {} s ago", age / 1000)).unwrap_or_default();
    let by = if of("provider") == settled { ", which settled it" } else { "" };
    format!("{}: {}{age}{by}", of("provider"), of("outcome").replace('_', " "))
}

fn of_check(check: &Value) -> String {
    let text = |name: &str| check.get(name).and_then(Value::as_str);
    let name = text("check").unwrap_or_default();
    match (name, text("code")) {
        ("notification", _) => format!("{name}: {}", check.get("inputs").unwrap_or(&Value::Null)),
        (name, Some(code)) => format!("{name}: {code}: {}", denied(check)),
        (name, None) => format!("{name}: holds: {}", needs(name, check.get("wanted"), text("expression"))),
    }
}

fn list(names: &Value) -> String {
    match names {
        Value::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

fn texts(names: &Value) -> Vec<&str> {
    names.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "nothing".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use posture::identity::{IdentifierKind, Trust};
    use posture::policy::{Caller, Inputs, LeastOs, Policy, Request, RequestKind, Rule, Rules};
    use posture::record::{Compliance, Fact, Group, Record};
    use posture::time::UnixTime;
    use serde_json::json;

    use super::*;

    fn rules() -> Rules {
        let check = |expression: &str| Rule {
            expression: expression.to_owned(),
            code: "own".to_owned(),
            message: "x".to_owned(),
            remediation_url: None,
        };
        let by_platform = BTreeMap::from([("Mac".to_owned(), "15.4".to_owned()), ("other".to_owned(), "0".to_owned())]);
        Rules {
            managed: true,
            groups_any: vec!["Complaint Macs".to_owned()],
            groups_all: vec!["Staff".to_owned(), "7".to_owned()],
            groups_none: vec!["Lent".to_owned()],
            min_os: Some(LeastOs::ByPlatform(by_platform)),
            max_silence: Some(Duration::from_secs(14 * 86_400)),
            max_age: Some(Duration::from_secs(5400)),
            compliance: Some(Compliance::GracePeriod),
            trust: Some(Trust::Attested),
            not_lost: Some(true),
            not_wiping: None,
            require: vec![check("device.supervised")],
            deny_if: vec![check("device.compromised")],
            data: None,
            remediation_url: None,
        }
    }

    #[test]
    fn e6_every_rule_has_its_words() {
        let policy = Policy::compile(&rules()).unwrap();
        let said: Vec<_> = policy
            .described()
            .map(|one| format!("{}: {}", one.name, needs(one.name, one.wanted, one.expression.map(|(text, _)| text))))
            .collect();
        assert_eq!(
            said,
            [
                "not_lost: must not be lost",
                "not_wiping: must not be about to be wiped, where that is known",
                "managed: must be managed",
                "trust: needs the trust `attested` or better",
                "max_age: needs a record that is no older than 90m",
                "max_silence: must have been heard of in the last 14d",
                "compliance: must be compliant, or in its grace period",
                "min_os: needs at least the system version mac 15.4, other 0",
                "groups_none: must be in none of [Lent]",
                "groups_all: needs all of [Staff, 7]",
                "groups_any: needs one of [Complaint Macs]",
                "require 1: needs device.supervised",
                "deny_if 1: must not be so that device.compromised",
            ]
        );
    }

    #[test]
    fn e6_a_denial_says_what_was_wanted_what_there_is_and_what_was_meant() {
        let group = |name: &str| Group { id: String::new(), name: name.to_owned() };
        let record = Record { groups: Fact::Value(vec![group("Compliant Macs"), group("Staff")]), ..Record::default() };
        let now = UnixTime::from_nanos(0);
        let inputs = Inputs {
            record: &record,
            fetched_at: now,
            trust: Trust::Claimed,
            request: Request { webhook: None, kind: RequestKind::Query, identifier: "C02", identifier_kind: IdentifierKind::Serial },
            caller: Caller::default(),
            now,
        };
        let judged = |rules: Rules| {
            let judgement = Policy::compile(&rules).unwrap().judge(&inputs);
            serde_json::to_value(judgement.checks).unwrap()
        };
        let of = |names: &[&str]| Rules { groups_any: names.iter().map(|name| (*name).to_owned()).collect(), ..Rules::default() };
        let checks = judged(of(&["Complaint Macs"]));
        assert_eq!(denied(&checks[0]), "needs one of [Complaint Macs]; has [Compliant Macs, Staff]. Did you mean Compliant Macs?");
        assert_eq!(denied(&judged(of(&["Engineers"]))[0]), "needs one of [Engineers]; has [Compliant Macs, Staff]");
        let trust = judged(Rules { trust: Some(Trust::Attested), ..Rules::default() });
        assert_eq!(denied(&trust[0]), "needs the trust `attested` or better; has trust = claimed");
        let managed = judged(Rules { managed: true, ..Rules::default() });
        assert_eq!(denied(&managed[0]), "must be managed (not known: device.managed)");
        let text = explained(&json!({
            "id": "01JD8Q2W3E4R5T6Y7Z8A9B0CDE", "at": "2026-11-23T10:00:00Z", "webhook": "one", "kind": "enriching", "caller": "dns:ca",
            "device": { "identifier": "C02", "kind": "serial", "trust": "attested" }, "provider": "jamf",
            "answers": [{ "provider": "jamf", "outcome": "found", "age_ms": 4200 }], "policy": "staff", "policy_revision": "abc",
            "enforcement": "enforce", "decision": "deny", "code": "group_required", "checks": checks, "replayed": false,
        }));
        assert_eq!(
            text,
            "denied: needs one of [Complaint Macs]; has [Compliant Macs, Staff]. Did you mean Compliant Macs?\n\
             code      group_required\n\
             device    C02 (serial, attested)\n\
             webhook   one (enriching), called by dns:ca\n\
             policy    staff, revision abc, enforced\n\
             answer    jamf: found, 4 s ago, which settled it\n\
             check     groups_any: group_required: needs one of [Complaint Macs]; has [Compliant Macs, Staff]. Did you mean Compliant Macs?\n\
             at        2026-11-23T10:00:00Z\n\
             id        01JD8Q2W3E4R5T6Y7Z8A9B0CDE\n"
        );
    }

    #[test]
    fn e6_what_ended_otherwise_is_said_as_well() {
        let first = |record: Value| explained(&record).lines().next().unwrap().to_owned();
        assert_eq!(first(json!({ "decision": "allow", "code": "allowed" })), "allowed");
        let own =
            json!([{ "check": "require 1", "expression": "device.supervised", "code": "own", "inputs": { "device.supervised": false } }]);
        assert_eq!(
            first(json!({ "decision": "allow", "code": "allowed", "checks": own })),
            "allowed, though it would be denied: needs device.supervised; has device.supervised = false"
        );
        let not_found = Denial::ALL.iter().find(|denial| denial.code == "device_not_found").unwrap();
        assert_eq!(first(json!({ "decision": "deny", "code": "device_not_found" })), format!("denied: {}", not_found.message));
        let wrong =
            json!([{ "check": "shape", "result": "ok" }, { "check": "signature", "result": "FAILED: none of the webhook's secrets" }]);
        assert_eq!(
            first(json!({ "decision": "refuse", "code": "signature", "verification": wrong })),
            "refused: none of the webhook's secrets"
        );
        assert_eq!(first(json!({ "decision": "refuse", "code": "provider_unavailable" })), "refused: provider_unavailable");
        assert!(!explained(&json!({ "decision": "deny", "code": "x\u{202e}" })).contains('\u{202e}'));
    }
}
