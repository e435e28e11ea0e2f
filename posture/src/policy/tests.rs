use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::identity::{IdentifierKind, Trust};
use crate::record::{Compliance, Fact, Form, Group, Record, User};
use crate::time::UnixTime;
use crate::webhook::Kind;

mod conformance;
mod language;
mod measures;
mod messages;

const NOW: &str = "2026-11-24T12:00:00Z";

fn time(text: &str) -> UnixTime {
    UnixTime::parse(text).unwrap()
}

fn text(text: &str) -> Fact<String> {
    Fact::Value(text.to_owned())
}

fn group(id: &str, name: &str) -> Group {
    Group { id: id.to_owned(), name: name.to_owned() }
}

/// A Mac of which everything is known, and whose user has no department.
fn mac() -> Record {
    Record {
        provider_id: "7".to_owned(),
        form: Fact::Value(Form::Computer),
        serial: text("C02A"),
        udid: text("AB-CD"),
        aliases: Vec::new(),
        name: text("Ada's Mac"),
        platform: text("Mac"),
        os_version: text("15.4.1"),
        os_build: text("24E263"),
        model: text("Mac15,3"),
        managed: Fact::Value(true),
        supervised: Fact::Value(false),
        ownership: text("institutional"),
        compliance: Fact::Value(Compliance::Compliant),
        groups: Fact::Value(vec![group("1", "Staff"), group("2", "Macs"), group("", "Guests")]),
        lost: Fact::Value(false),
        wipe_pending: Fact::Value(false),
        compromised: Fact::Value(false),
        encrypted: Fact::Value(true),
        attestation: Fact::Absent,
        user: User {
            id: text("ada"),
            name: text("Ada"),
            email: text("ada@example.org"),
            department: Fact::Absent,
            title: text("Analyst"),
            active: Fact::Value(true),
        },
        enrolled_at: Fact::Value(time("2025-01-01T00:00:00Z")),
        last_seen: Fact::Value(time("2026-11-23T12:00:00Z")),
        inventory_at: Fact::Absent,
        data: text(
            r#"{"asset":"A1","seats":3,"share":0.5,"vip":true,"none":null,"tags":["a","b"],"mixed":["a",1],"bought":"2024-01-01T00:00:00Z","cost":"12","more":{"n":"x"},"Asset Tag":"T"}"#,
        ),
    }
}

fn inputs(record: &Record) -> Inputs<'_> {
    Inputs {
        record,
        fetched_at: time("2026-11-24T11:00:00Z"),
        trust: Trust::Attested,
        request: Request {
            webhook: Some("one"),
            kind: RequestKind::Webhook(Kind::Enriching),
            identifier: "C02A",
            identifier_kind: IdentifierKind::Serial,
        },
        caller: Caller { name: None, names: &[] },
        now: time(NOW),
    }
}

fn rule(expression: &str) -> Rule {
    Rule { expression: expression.to_owned(), code: "not_so".to_owned(), message: "it is not so".to_owned(), remediation_url: None }
}

fn require(expression: &str) -> Rules {
    Rules { require: vec![rule(expression)], ..Rules::default() }
}

fn compiled(rules: &Rules) -> Policy {
    Policy::compile(rules).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

fn code_of(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Deny(denial) => &denial.code,
    }
}

/// The code of the denial, or `pass`; asserts that both ways of judging agree on it.
fn judged(rules: &Rules, record: &Record) -> String {
    let policy = compiled(rules);
    let inputs = inputs(record);
    let judgement = policy.judge(&inputs);
    assert_eq!(judgement.result, policy.judge_all(&inputs).result);
    code_of(&judgement.result).to_owned()
}

fn refused(expression: &str) -> String {
    match Policy::compile(&require(expression)) {
        Ok(_) => panic!("{expression} was taken"),
        Err(mistakes) => {
            let lines: Vec<_> = mistakes.iter().map(|mistake| format!("{}: {}", mistake.offset, mistake.message)).collect();
            lines.join("\n")
        }
    }
}

#[test]
fn judges_by_expressions() {
    let record = mac();
    for (expression, expected) in [
        ("true", "pass"),
        ("false", "not_so"),
        ("device.managed", "pass"),
        ("!device.supervised && device.encrypted", "pass"),
        ("device.user.email.endsWith('@example.org')", "pass"),
        ("device.name.startsWith('Ada') && device.name.contains(\"'s\")", "pass"),
        ("device.model.matches('^Mac[0-9]+,[0-9]+$')", "pass"),
        ("device.platform.lowerAscii() == 'mac'", "pass"),
        ("'Staff' in device.groups && '1' in device.group_ids", "pass"),
        ("'staff' in device.groups", "not_so"),
        ("'' in device.groups", "not_so"),
        ("size(device.groups) == 3 && device.group_ids.size() == 2 && size(device.serial) == 4", "pass"),
        ("device.groups.exists(g, g.startsWith('St'))", "pass"),
        ("device.groups.all(g, g in ['Staff', 'Macs', 'Guests'])", "pass"),
        ("device.groups.all(g, g == 'Staff')", "not_so"),
        ("device.platform in ['Mac', 'iPhone']", "pass"),
        ("version(device.os_version) >= version('15.4')", "pass"),
        ("version(device.os_version) >= version('15.10')", "not_so"),
        ("now - device.last_seen < duration('25h')", "pass"),
        ("now - device.last_seen < duration('1d')", "not_so"),
        ("device.enrolled_at > timestamp('2024-12-31T00:00:00Z')", "pass"),
        ("device.last_seen + duration('1d') == now", "pass"),
        ("trust == 'attested' && trust >= 'certificate'", "pass"),
        ("trust < 'attested'", "not_so"),
        ("device.form == 'computer' && device.compliance != 'undetermined'", "pass"),
        ("request.kind == 'enriching' && request.webhook == 'one' && request.identifier_kind == 'serial'", "pass"),
        ("request.identifier == device.serial", "pass"),
        ("1 + 2 * 3 == 7 && 7 % 2 == 1 && -3 / 2 == -1 && 1.5 * 2.0 == 3.0", "pass"),
        ("device.supervised ? false : true", "pass"),
        ("int('12') + 1 == 13 && string(5) == '5' && double(1) < 1.5 && int(2.9) == 2", "pass"),
        ("device.user.name + '!' == 'Ada!'", "pass"),
        ("device.managed == true && device.supervised != true", "pass"),
        ("1 <= 1 && 1 <= 2 && 1 >= 1 && 2 >= 1", "pass"),
        ("2 <= 1 || 1 >= 2", "not_so"),
        ("1 in [2, 1] && 1.5 in [1.5] && now in [now] && device.managed in [true]", "pass"),
        ("3 in [2, 1]", "not_so"),
        ("-size(device.groups) == -3 && duration('0s') - (now - device.last_seen) == duration('-24h')", "pass"),
        ("duration('1d') + device.last_seen == now && now - duration('1d') == device.last_seen", "pass"),
        ("duration('1h') + duration('30m') == duration('90m') && duration('2h') - duration('30m') == duration('90m')", "pass"),
        ("int(size(device.groups)) == 3 && string(device.name) == device.name", "pass"),
        ("string(device.managed) == 'true' && string(device.supervised) == 'false' && string(trust) == 'attested'", "pass"),
        ("has(device.provider_id) && device.provider_id == '7'", "pass"),
        // Free columns.
        ("device.data.asset == 'A1'", "pass"),
        ("device.data['Asset Tag'] == 'T' && has(device.data['Asset Tag'])", "pass"),
        ("device.data.seats == 3 && device.data.seats > 2 && device.data.share < 1.0", "pass"),
        ("device.data.vip", "pass"),
        ("'a' in device.data.tags && size(device.data.tags) == 2 && device.data.tags.exists(t, t == 'b')", "pass"),
        ("int(device.data.cost) == 12 && string(device.data.seats) == '3'", "pass"),
        ("int(device.data.seats) == 3 && double(device.data.share) == 0.5 && string(device.data.vip) == 'true'", "pass"),
        ("size(device.data.asset) == 2 && size(device.data.more) == 1", "pass"),
        ("timestamp(device.data.bought) < now", "pass"),
        ("device.data.more.n == 'x'", "pass"),
        ("has(device.data.asset) && !has(device.data.other) && !has(device.data.none) && device.data.none == null", "pass"),
        ("device.data.seats == '3'", "policy_error"),
        ("device.data.seats != '3'", "policy_error"),
        ("!(device.data.seats in ['3'])", "policy_error"),
        ("device.data.asset", "policy_error"),
        ("device.data.other != 'x'", "policy_error"),
        ("device.data.none != 'x'", "policy_error"),
        ("!('z' in device.data.mixed)", "policy_error"),
        ("!('z' in device.data.asset)", "policy_error"),
        ("has(device.data.other.n)", "policy_error"),
        ("!has(device.data.asset.n)", "policy_error"),
        ("timestamp(device.data.asset) < now", "policy_error"),
        ("version(device.data.asset) != version('1')", "policy_error"),
        // Fields that have no value.
        ("has(device.user.department)", "not_so"),
        ("has(device.user.email)", "pass"),
        ("device.user.department == null && device.user.email != null", "pass"),
        ("device.user.department != 'Sales'", "policy_error"),
        ("!(device.user.department == 'Sales')", "policy_error"),
        ("device.user.department in ['Sales'] || device.managed", "pass"),
        ("has(device.user.department) && device.user.department == 'Sales'", "not_so"),
        ("!has(device.user.department) || device.user.department == 'Sales'", "pass"),
        ("device.inventory_at < now", "policy_error"),
        ("caller.name == 'dns:ca'", "policy_error"),
        ("'dns:ca' in caller.names", "not_so"),
        // Errors during the evaluation.
        ("1 / 0 == 1", "policy_error"),
        ("1 % (size(device.groups) - 3) == 0", "policy_error"),
        ("1.0 / 0.0 > 1.0", "policy_error"),
        ("9223372036854775807 + size(device.groups) > 0", "policy_error"),
        ("device.groups.exists(g, int(g) == 1)", "policy_error"),
        ("device.groups.exists(g, int(g) == 1 || g == 'Macs')", "pass"),
        ("!device.groups.exists(g, version(g) == version('1'))", "policy_error"),
    ] {
        assert_eq!(judged(&require(expression), &record), expected, "{expression}");
        // An expression that cannot be evaluated denies in either list; any other result is the opposite in `deny_if`.
        let deny_if = Rules { deny_if: vec![rule(expression)], ..Rules::default() };
        let opposite = match expected {
            "pass" => "not_so",
            "not_so" => "pass",
            other => other,
        };
        assert_eq!(judged(&deny_if, &record), opposite, "deny if {expression}");
    }
}

#[test]
fn refuses_what_an_expression_cannot_say() {
    let cases = [
        "",
        "device.",
        "device.managed &&",
        "devise.managed",
        "device.manged",
        "device",
        "device.user",
        "device.user.mail",
        "manged",
        "now.year",
        "'a'.b",
        "device.managed == 'yes'",
        "device.name",
        "device.name && device.managed",
        "!device.name",
        "-device.name == 'a'",
        "device.os_version >= '15.0'",
        "version(device.os_version) > '15'",
        "device.last_seen > '2026-01-01'",
        "now - device.last_seen > 14",
        "device.data.bought < now",
        "device.data.bought < duration('1d')",
        "device.data.bought == version('1')",
        "device.data.a == device.data.b",
        "device.form == 'laptop'",
        "device.form in ['computer', 'fone']",
        "trust == 'atested'",
        "request.kind != 'enrich'",
        "'a' in device.name",
        "1 in device.groups",
        "['a', 1] == null",
        "device.data[0] == 'a'",
        "device.data.rows[0].name == 'a'",
        "null == null",
        "device.managed > null",
        "size(device.managed) == 1",
        "device.name.matches(device.model)",
        "device.name.matches('(')",
        "device.name.matches('(a{1000}){1000}')",
        "device.name.endsWith(1)",
        "len(device.name) == 1",
        "has(device.nam)",
        "has('a')",
        "device.groups.map(g, g) == null",
        "device.groups.filter(g, true) == null",
        "device.groups.exists(device, true)",
        "device.groups.exists(g, g)",
        "device.groups.exists(g, device.groups.exists(h, g == h))",
        "device.groups.all(g, g in device.group_ids)",
        "device.groups.exists(g, true) && g == 'a'",
        "b'a' == b'a'",
        "{'a': 1}",
        "Device{a: 1}",
        "version('15-beta') == version('1')",
        "timestamp('yesterday') < now",
        "duration('2 weeks') < now - now",
        "int(true) == 1",
        "1 + 1.0 == 2.0",
        "device.managed ? 1 : 'a'",
        "device.nam == 'ü' || device.user.nam == 1 || 'é' == 2",
        "udi == 'a'",
    ];
    let all: Vec<_> = cases.iter().map(|expression| format!("{expression}\n{}\n", refused(expression))).collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn refuses_expressions_without_measure() {
    for expression in [
        "true && ".repeat(600) + "true",
        "true ? true : ".repeat(100) + "true",
        "!(true && ".repeat(100) + "true" + &")".repeat(100),
        "(".repeat(2000) + "true" + &")".repeat(2000),
        vec!["true"; 300].join("||"),
        "device".to_owned() + &".a".repeat(2000),
        "1".to_owned() + &"+1".repeat(2000) + "==1",
        "[".repeat(1000) + &"]".repeat(1000) + " == 1",
    ] {
        assert!(!refused(&expression).is_empty());
    }
}

#[test]
fn numbers_texts_times_and_durations_are_calculated_and_nothing_else_is() {
    let parts = ["7", "1.5", "'a'", "now", "duration('1h')", "true", "trust", "device.groups", "version('1')"];
    let allowed = |one: &str, operator: &str, other: &str| match (one, other) {
        ("7", "7") => true,
        ("device.groups", "device.groups") => operator == "+",
        ("1.5", "1.5") => operator != "%",
        ("'a'", "'a'") | ("duration('1h')", "now") => operator == "+",
        ("now", "now") => operator == "-",
        ("now" | "duration('1h')", "duration('1h')") => matches!(operator, "+" | "-"),
        _ => false,
    };
    for (one, other) in parts.iter().flat_map(|one| parts.iter().map(move |other| (one, other))) {
        for operator in ["+", "-", "*", "/", "%"] {
            let expression = format!("({one} {operator} {other}) == ({one} {operator} {other})");
            if allowed(one, operator, other) {
                assert_eq!(judged(&require(&expression), &mac()), "pass", "{expression}");
            } else {
                let message = refused(&expression);
                assert!(
                    message.lines().all(|line| line.contains("this cannot be calculated with") || line.contains("lists can be added")),
                    "{expression}: {message}"
                );
            }
        }
    }
}

#[test]
fn what_has_no_value_is_named_as_far_as_it_was_looked_for() {
    for (expression, detail) in [
        ("has(device.data.other.n)", "device.data.other has no value"),
        ("device.data.more.z == 'x'", "device.data.more.z has no value"),
        ("has(device.data.more.n.deep)", "device.data.more.n has no columns"),
        ("device.user.department == 'Sales'", "device.user.department has no value"),
    ] {
        let judgement = compiled(&require(expression)).judge(&inputs(&mac()));
        assert_eq!(judgement.checks[0].detail.as_deref(), Some(detail), "{expression}");
    }
}

#[test]
fn only_the_checks_of_trust_bind_a_device_that_is_exempt() {
    let trusted = |least| Rules { trust: Some(least), managed: true, ..require("false") };
    let record = Record { managed: Fact::Value(false), lost: Fact::Value(true), ..mac() };
    for (rules, expected) in [
        (trusted(Trust::Attested), ["trust_insufficient", "trust_insufficient", "pass"]),
        (trusted(Trust::Certificate), ["trust_insufficient", "pass", "pass"]),
        (require("trust != 'claimed'"), ["not_so", "pass", "pass"]),
        (Rules { deny_if: vec![rule("trust == 'certificate' || device.managed")], ..Rules::default() }, ["pass", "not_so", "pass"]),
        (require("device.managed"), ["pass"; 3]),
    ] {
        let policy = compiled(&rules);
        let judged = [Trust::Claimed, Trust::Certificate, Trust::Attested]
            .map(|trust| code_of(&policy.judge_trust(&Inputs { trust, ..inputs(&record) })).to_owned());
        assert_eq!(judged, expected, "{rules:?}");
    }
}

#[test]
fn a_revision_tells_two_texts_of_a_policy_apart() {
    let revision = |rules: &Rules| compiled(rules).revision().to_owned();
    let one = revision(&require("device.managed"));
    assert!(one.len() == 12 && one.bytes().all(|byte| byte.is_ascii_hexdigit()), "{one}");
    assert_eq!(revision(&require("device.managed")), one);
    assert_ne!(revision(&require("!device.managed")), one);
    assert_ne!(revision(&Rules { not_lost: Some(true), ..require("device.managed") }), one);
}

#[test]
fn what_a_check_read_of_a_person_is_not_shown() {
    for (expression, name, seen) in [
        ("device.data.asset == 'A1'", "device.data.asset", Seen::Personal),
        ("device.user.name == 'Ada'", "device.user.name", Seen::Personal),
        ("device.name != ''", "device.name", Seen::Personal),
        ("device.model != ''", "device.model", Seen::Value("Mac15,3".into())),
        ("trust == 'attested'", "trust", Seen::Value("attested".into())),
        ("has(device.data.other)", "device.data.other", Seen::Absent),
    ] {
        let judgement = compiled(&require(expression)).judge_all(&inputs(&mac()));
        let inputs: Vec<_> = judgement.checks[2].inputs.iter().map(|input| (&*input.name, &input.seen)).collect();
        assert_eq!(inputs, [(name, &seen)], "{expression}");
    }
}

#[test]
fn denies_over_what_is_not_known_before_anything_is_evaluated() {
    let unknown = Record { lost: Fact::Unknown, supervised: Fact::Unknown, ..mac() };
    for expression in [
        "has(device.lost)",
        "!has(device.lost)",
        "has(device.lost) && device.lost",
        "!has(device.lost) || !device.lost",
        "device.managed || device.lost",
        "true || device.supervised",
        "device.lost == null",
        "device.managed ? true : device.lost",
        "device.groups.exists(g, true || device.lost)",
    ] {
        assert_eq!(judged(&require(expression), &unknown), "posture_unknown", "{expression}");
        assert_eq!(judged(&Rules { deny_if: vec![rule(expression)], ..Rules::default() }, &unknown), "posture_unknown", "{expression}");
    }
    assert_eq!(judged(&require("device.data.asset == 'A1'"), &Record { data: Fact::Unknown, ..mac() }), "posture_unknown");
    assert_eq!(judged(&require("device.provider_id == '7'"), &Record { provider_id: String::new(), ..mac() }), "posture_unknown");
    for data in ["[]", "nonsense", "null"] {
        assert_eq!(judged(&require("!has(device.data.asset)"), &Record { data: text(data), ..mac() }), "policy_error");
    }
    assert_eq!(judged(&require("!has(device.data.asset)"), &Record { data: Fact::Absent, ..mac() }), "pass");
}

#[test]
fn a14_a_group_that_nobody_named_is_not_known_to_be_another_one() {
    let record = |name| Record { groups: Fact::Value(vec![group("1", "Staff"), group("66", name)]), ..mac() };
    let rules = |groups: fn(&mut Rules, Vec<String>), names: &[&str]| {
        let mut rules = Rules::default();
        groups(&mut rules, names.iter().map(|name| (*name).to_owned()).collect());
        rules
    };
    let none: fn(&mut Rules, Vec<String>) = |rules, names| rules.groups_none = names;
    let all: fn(&mut Rules, Vec<String>) = |rules, names| rules.groups_all = names;
    let any: fn(&mut Rules, Vec<String>) = |rules, names| rules.groups_any = names;
    for (rules, named, unnamed) in [
        (rules(none, &["Quarantine"]), "group_forbidden", "posture_unknown"),
        (rules(none, &["Guests"]), "pass", "posture_unknown"),
        (rules(none, &["Guests", "66"]), "group_forbidden", "group_forbidden"),
        (rules(all, &["Staff", "66"]), "pass", "pass"),
        (rules(all, &["Staff", "Guests"]), "group_required", "posture_unknown"),
        (rules(any, &["Guests", "1"]), "pass", "pass"),
        (rules(any, &["Guests"]), "group_required", "posture_unknown"),
        (require("!('Quarantine' in device.groups)"), "not_so", "posture_unknown"),
        (require("!('66' in device.group_ids)"), "not_so", "not_so"),
        (require("!('7' in device.group_ids)"), "pass", "pass"),
    ] {
        assert_eq!(judged(&rules, &record("Quarantine")), named, "{rules:?}");
        assert_eq!(judged(&rules, &record("")), unnamed, "{rules:?}");
    }
    assert_eq!(data_of("{'groups': device.groups}", &record("")), Err(Denial::POSTURE_UNKNOWN));
    assert!(data_of("{'groups': device.group_ids}", &record("")).is_ok());
}

#[test]
fn groups_beyond_measure_are_not_known() {
    let many = |count: usize| Record {
        groups: Fact::Value((0..count).map(|number| group(&number.to_string(), &format!("group {number}"))).collect()),
        ..mac()
    };
    let rules = [
        require("'group 1' in device.groups"),
        require("device.groups.exists(g, g == 'group 1')"),
        require("'1' in device.group_ids"),
        Rules { groups_any: vec!["group 1".to_owned()], ..Rules::default() },
        Rules { groups_none: vec!["group x".to_owned()], ..Rules::default() },
    ];
    for rules in rules {
        assert_eq!(judged(&rules, &many(LONGEST_LIST)), "pass", "{rules:?}");
        assert_eq!(judged(&rules, &many(10_000)), "posture_unknown", "{rules:?}");
    }
    assert_eq!(judged(&Rules { managed: true, ..Rules::default() }, &many(10_000)), "pass");
}

#[test]
fn shorthands_are_checks_with_codes_of_their_own() {
    let day = Duration::from_secs(86_400);
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let by_platform = |pairs: &[(&str, &str)]| {
        Some(LeastOs::ByPlatform(pairs.iter().map(|(platform, version)| ((*platform).to_owned(), (*version).to_owned())).collect()))
    };
    let rules = Rules::default;
    let table: Vec<(&str, Rules, Record, &str)> = vec![
        ("nothing", rules(), Record::default(), "pass"),
        ("lost", rules(), Record { lost: Fact::Value(true), ..mac() }, "device_lost"),
        ("lost, and not asked", Rules { not_lost: Some(false), ..rules() }, Record { lost: Fact::Value(true), ..mac() }, "pass"),
        ("asked, and not known", Rules { not_lost: Some(true), ..rules() }, Record { lost: Fact::Unknown, ..mac() }, "posture_unknown"),
        ("asked, and no such mark", Rules { not_lost: Some(true), ..rules() }, Record { lost: Fact::Absent, ..mac() }, "posture_unknown"),
        ("asked, and found", Rules { not_lost: Some(true), not_wiping: Some(true), ..rules() }, mac(), "pass"),
        ("wiping", rules(), Record { wipe_pending: Fact::Value(true), ..mac() }, "device_wipe_pending"),
        ("managed", Rules { managed: true, ..rules() }, mac(), "pass"),
        ("not managed", Rules { managed: true, ..rules() }, Record { managed: Fact::Value(false), ..mac() }, "device_unmanaged"),
        ("no management", Rules { managed: true, ..rules() }, Record { managed: Fact::Absent, ..mac() }, "device_unmanaged"),
        ("management not known", Rules { managed: true, ..rules() }, Record { managed: Fact::Unknown, ..mac() }, "posture_unknown"),
        ("trust", Rules { trust: Some(Trust::Attested), ..rules() }, mac(), "pass"),
        ("age", Rules { max_age: Some(Duration::from_secs(3600)), ..rules() }, mac(), "pass"),
        ("too old", Rules { max_age: Some(Duration::from_secs(3599)), ..rules() }, mac(), "record_too_old"),
        ("seen", Rules { max_silence: Some(day), ..rules() }, mac(), "pass"),
        ("silent", Rules { max_silence: Some(day / 2), ..rules() }, mac(), "device_silent"),
        ("never seen", Rules { max_silence: Some(day), ..rules() }, Record { last_seen: Fact::Absent, ..mac() }, "device_silent"),
        (
            "seen in the far future",
            Rules { max_silence: Some(day), ..rules() },
            Record { last_seen: Fact::Value(time("2027-01-01T00:00:00Z")), ..mac() },
            "posture_unknown",
        ),
        ("seen, not known", Rules { max_silence: Some(day), ..rules() }, Record { last_seen: Fact::Unknown, ..mac() }, "posture_unknown"),
        ("compliant", Rules { compliance: Some(Compliance::Compliant), ..rules() }, mac(), "pass"),
        (
            "in grace",
            Rules { compliance: Some(Compliance::Compliant), ..rules() },
            Record { compliance: Fact::Value(Compliance::GracePeriod), ..mac() },
            "not_compliant",
        ),
        (
            "grace is enough",
            Rules { compliance: Some(Compliance::GracePeriod), ..rules() },
            Record { compliance: Fact::Value(Compliance::GracePeriod), ..mac() },
            "pass",
        ),
        ("more than grace", Rules { compliance: Some(Compliance::GracePeriod), ..rules() }, mac(), "pass"),
        (
            "undetermined",
            Rules { compliance: Some(Compliance::GracePeriod), ..rules() },
            Record { compliance: Fact::Value(Compliance::Undetermined), ..mac() },
            "not_compliant",
        ),
        ("new enough", Rules { min_os: Some(LeastOs::One("15.4".to_owned())), ..rules() }, mac(), "pass"),
        ("too old a system", Rules { min_os: Some(LeastOs::One("15.10".to_owned())), ..rules() }, mac(), "os_outdated"),
        ("platform", Rules { min_os: by_platform(&[("mac", "15.4")]), ..rules() }, mac(), "pass"),
        ("another platform", Rules { min_os: by_platform(&[("Windows", "1")]), ..rules() }, mac(), "os_outdated"),
        ("any other platform", Rules { min_os: by_platform(&[("Windows", "11"), ("other", "0")]), ..rules() }, mac(), "pass"),
        (
            "unreadable",
            Rules { min_os: Some(LeastOs::One("15".to_owned())), ..rules() },
            Record { os_version: text("15-beta"), ..mac() },
            "policy_error",
        ),
        (
            "no version",
            Rules { min_os: Some(LeastOs::One("15".to_owned())), ..rules() },
            Record { os_version: Fact::Absent, ..mac() },
            "os_outdated",
        ),
        ("any", Rules { groups_any: texts(&["x", "Macs"]), ..rules() }, mac(), "pass"),
        ("any by id", Rules { groups_any: texts(&["2"]), ..rules() }, mac(), "pass"),
        ("any in another case", Rules { groups_any: texts(&["macs"]), ..rules() }, mac(), "group_required"),
        ("all", Rules { groups_all: texts(&["Staff", "2"]), ..rules() }, mac(), "pass"),
        ("not all", Rules { groups_all: texts(&["Staff", "x"]), ..rules() }, mac(), "group_required"),
        ("none", Rules { groups_none: texts(&["x"]), ..rules() }, mac(), "pass"),
        ("not none", Rules { groups_none: texts(&["x", "2"]), ..rules() }, mac(), "group_forbidden"),
        ("groups not known", Rules { groups_none: texts(&["x"]), ..rules() }, Record { groups: Fact::Unknown, ..mac() }, "posture_unknown"),
        ("no groups", Rules { groups_any: texts(&["x"]), ..rules() }, Record { groups: Fact::Absent, ..mac() }, "group_required"),
    ];
    let mut denied = BTreeSet::new();
    for (name, rules, record, expected) in table {
        assert_eq!(judged(&rules, &record), expected, "{name}");
        let judgement = compiled(&rules).judge(&inputs(&record));
        denied.extend(judgement.checks.into_iter().filter_map(|check| Some((check.name, check.denial?.code))));
    }
    let policy = compiled(&Rules { trust: Some(Trust::Certificate), ..Rules::default() });
    let record = mac();
    let claimed = Inputs { trust: Trust::Claimed, ..inputs(&record) };
    let judgement = policy.judge(&claimed);
    assert_eq!(code_of(&judgement.result), "trust_insufficient");
    denied.extend(judgement.checks.into_iter().filter_map(|check| Some((check.name, check.denial?.code))));
    for Named { key, denial } in NAMED {
        assert!(denied.contains(&(Arc::from(*key), denial.code.clone())), "no case above has `{key}` deny with `{}`", denial.code);
    }
}

/// Rules with every kind of check.
fn everything() -> Rules {
    Rules {
        managed: true,
        groups_any: vec!["Staff".to_owned()],
        groups_all: vec!["Macs".to_owned()],
        groups_none: vec!["Banned".to_owned()],
        min_os: Some(LeastOs::One("14".to_owned())),
        max_silence: Some(Duration::from_secs(14 * 86_400)),
        max_age: Some(Duration::from_secs(86_400)),
        compliance: Some(Compliance::Compliant),
        trust: Some(Trust::Attested),
        not_lost: Some(true),
        not_wiping: Some(true),
        require: vec![rule("device.user.active")],
        deny_if: vec![rule("device.compromised")],
        data: None,
        remediation_url: Some("https://help.example.org".to_owned()),
    }
}

#[test]
fn the_first_check_that_fails_decides_and_all_can_be_shown() {
    let policy = compiled(&everything());
    let names: Vec<_> = policy.names().collect();
    let expected: Vec<_> = NAMED.iter().map(|named| named.key).chain(["require 1", "deny_if 1"]).collect();
    assert_eq!(names, expected);
    let record = Record {
        managed: Fact::Value(false),
        supervised: Fact::Unknown,
        groups: Fact::Value(Vec::new()),
        user: User::none(),
        compromised: Fact::Unknown,
        ..mac()
    };
    let inputs = inputs(&record);
    let judgement = policy.judge(&inputs);
    assert_eq!(judgement.checks.len(), 1);
    let all = policy.judge_all(&inputs);
    assert_eq!(all.result, judgement.result);
    let shown: Vec<_> = all
        .checks
        .iter()
        .map(|check| {
            let read: Vec<_> = check.inputs.iter().map(|input| format!("{}={:?}", input.name, input.seen)).collect();
            let code = check.denial.as_ref().map_or("pass", |denial| &denial.code);
            format!("{} -> {code} {:?} {}", check.name, check.detail, read.join(" "))
        })
        .collect();
    insta::assert_snapshot!(shown.join("\n"));
    let Verdict::Deny(denial) = judgement.result else { panic!("it passed") };
    assert_eq!(denial.remediation_url.as_deref(), Some("https://help.example.org"));
}

#[test]
fn an_operators_check_denies_with_its_own_words() {
    let mut rules = require("false");
    rules.remediation_url = Some("https://help.example.org".to_owned());
    rules.require[0].remediation_url = Some("https://help.example.org/so".to_owned());
    let policy = compiled(&rules);
    let record = mac();
    let expected =
        Denial { code: "not_so".into(), message: "it is not so".into(), remediation_url: Some("https://help.example.org/so".into()) };
    assert_eq!(policy.judge(&inputs(&record)).result, Verdict::Deny(expected));
}

#[test]
fn names_every_mistake_of_the_rules() {
    let bad = |code: &str, message: &str, url: Option<&str>| Rule {
        expression: "device.nam == 1 && device.managed == 'x'".to_owned(),
        code: code.to_owned(),
        message: message.to_owned(),
        remediation_url: url.map(str::to_owned),
    };
    let rules = Rules {
        groups_any: vec![" ".to_owned()],
        min_os: Some(LeastOs::ByPlatform([("Mac".to_owned(), "x".to_owned())].into())),
        compliance: Some(Compliance::NonCompliant),
        require: vec![bad("Not-So", "a\nb", Some("help.example.org")), bad("device_lost", "", Some("javascript:alert(1)"))],
        deny_if: vec![bad("1x", &"x".repeat(501), Some("https://"))],
        data: Some("device.name".to_owned()),
        remediation_url: Some("x".to_owned()),
        ..Rules::default()
    };
    let mistakes = Policy::compile(&rules).unwrap_err();
    let shown: Vec<_> = mistakes.iter().map(|mistake| format!("{:?} {}: {}", mistake.at, mistake.offset, mistake.message)).collect();
    insta::assert_snapshot!(shown.join("\n"));
    assert!(Policy::compile(&Rules { min_os: Some(LeastOs::ByPlatform(BTreeMap::new())), ..Rules::default() }).is_err());
    let twice = [("Mac".to_owned(), "14".to_owned()), ("mac".to_owned(), "15".to_owned())].into();
    let mistakes = Policy::compile(&Rules { min_os: Some(LeastOs::ByPlatform(twice)), ..Rules::default() }).unwrap_err();
    assert!(mistakes[0].message.contains("the case of their letters"), "{mistakes:?}");
    let lists: [fn(Vec<String>) -> Rules; 3] = [
        |names| Rules { groups_none: names, ..Rules::default() },
        |names| Rules { groups_all: names, ..Rules::default() },
        |names| Rules { groups_any: names, ..Rules::default() },
    ];
    for rules in lists {
        assert!(Policy::compile(&rules(vec!["Staff".to_owned(); 100])).is_ok());
        for many in [101, 102] {
            assert!(Policy::compile(&rules(vec!["Staff".to_owned(); many])).is_err());
        }
    }
}

#[test]
fn knows_which_fields_it_needs() {
    let policy = compiled(&Rules { managed: true, data: Some("{'name': device.name}".to_owned()), ..require("has(device.user.email)") });
    assert_eq!(policy.needs(), Fields::of(&[Field::Managed, Field::Name, Field::UserEmail]));
    assert_eq!(policy.wants(), policy.needs().union(Fields::of(&[Field::Lost, Field::WipePending])));
    assert_eq!(compiled(&require("'1' in device.group_ids")).needs(), Fields::of(&[Field::Groups]));
    assert_eq!(compiled(&require("has(device.data.a.b)")).needs(), Fields::of(&[Field::Data]));
}

#[test]
fn says_where_it_needs_each_field() {
    let rules = Rules {
        managed: true,
        data: Some("{'a': device.name}".to_owned()),
        ..require("device.lost || device.user.email == device.name || device.lost")
    };
    let uses: Vec<_> = compiled(&rules).uses().map(|used| (used.at, used.offset, used.field.as_str())).collect();
    let check = At::Require(0, Part::Expression);
    let expected = [
        (At::Key("managed"), 0, "managed"),
        (check.clone(), 43, "name"),
        (check.clone(), 7, "lost"),
        (check, 27, "user.email"),
        (At::Data, 13, "name"),
    ];
    assert_eq!(uses, expected, "what is not strict needs nothing");
}

fn data_of(source: &str, record: &Record) -> Result<Json, Denial> {
    let policy = compiled(&Rules { data: Some(source.to_owned()), ..Rules::default() });
    policy.data(&inputs(record), true).map(|data| serde_json::from_str(data.as_json()).unwrap())
}

#[test]
fn a_data_expression_gives_what_it_names() {
    let record = mac();
    let source = "{'user': device.user.name, 'department': device.user.department, 'groups': device.groups, 'seen': device.last_seen,
        'asset': device.data.asset, 'all': device.data.more, 'none': device.data.other, 'silent': now - device.last_seen,
        'is': {'managed': device.managed, 'seats': [device.data.seats, 1]}, 'each': [{'on': device.managed}, null], 'kind': device.supervised ? 'owned' : null}";
    let expected = serde_json::json!({
        "user": "Ada", "department": null, "groups": ["Staff", "Macs", "Guests"], "seen": "2026-11-23T12:00:00Z", "asset": "A1",
        "all": {"n": "x"}, "none": null, "silent": "86400s", "is": {"managed": true, "seats": [3, 1]}, "each": [{"on": true}, null], "kind": null,
    });
    assert_eq!(data_of(source, &record), Ok(expected));
}

#[test]
fn what_a_shorthand_wants_is_shown_as_a_configuration_has_it() {
    for (millis, written) in
        [(86_400_000, "1d"), (90_000_000, "25h"), (3_600_000, "1h"), (120_000, "2m"), (90_000, "90s"), (1500, "1500ms"), (0, "0s")]
    {
        assert_eq!(Shorthand::MaxAge(Duration::from_millis(millis)).wanted(), Json::from(written));
    }
    let names = || vec!["Staff".to_owned()];
    for shorthand in [Shorthand::GroupsNone(names()), Shorthand::GroupsAll(names()), Shorthand::GroupsAny(names())] {
        assert_eq!((shorthand.wanted(), shorthand.groups()), (serde_json::json!(["Staff"]), Some(&*names())));
    }
    assert_eq!(Shorthand::Managed.groups(), None);
}

#[test]
fn data_that_cannot_be_had_denies_or_is_null() {
    let record = Record { name: Fact::Unknown, ..mac() };
    let source = "{'name': device.name, 'in': {'bad': device.user.department + 'x', 'model': device.model}}";
    assert_eq!(data_of(source, &record), Err(Denial::POSTURE_UNKNOWN));
    assert_eq!(data_of(source, &mac()), Err(Denial::POLICY_ERROR));
    let policy = compiled(&Rules { data: Some(source.to_owned()), ..Rules::default() });
    let full = policy.full_data(&inputs(&record), true).unwrap();
    assert_eq!(full.as_json(), r#"{"in":{"bad":null,"model":"Mac15,3"},"name":null}"#);
}

#[test]
fn data_must_be_a_map_with_keys_that_are_written_out() {
    for source in
        ["device.name", "['a']", "{device.name: 1}", "{1: 'a'}", "{'a': 1, 'a': 2}", "{'a': device.nam}", "{'a': version('1')}", "null"]
    {
        assert!(Policy::compile(&Rules { data: Some(source.to_owned()), ..Rules::default() }).is_err(), "{source}");
    }
}

#[test]
fn default_data_has_the_usual_form() {
    let record = Record { data: Fact::Unknown, ..mac() };
    let shown = |data: Data| serde_json::to_string_pretty(&serde_json::from_str::<Json>(data.as_json()).unwrap()).unwrap();
    insta::assert_snapshot!("default", shown(default_data(&record, true).unwrap()));
    assert!(!default_data(&record, false).unwrap().as_json().contains("user"));
    insta::assert_snapshot!("of_nothing", shown(default_data(&Record::default(), true).unwrap()));
    insta::assert_snapshot!("full_of_nothing", shown(full_data(&Record::default(), true).unwrap()));
    assert_eq!(default_data(&Record::of_data(r#"{"b":1,"a":2}"#.to_owned()), true).unwrap().as_json(), r#"{"b":1,"a":2}"#);
}

#[test]
fn data_is_bounded() {
    let many: Vec<_> = (0..4000).map(|number| group("", &format!("group number {number}"))).collect();
    let record = Record { groups: Fact::Value(many.clone()), data: Fact::Unknown, ..mac() };
    let data = default_data(&record, true).unwrap();
    assert!(data.as_json().contains(r#""groups":[],"groups_omitted":true"#));
    let long = text(&"x".repeat(LARGEST_DATA));
    assert_eq!(default_data(&Record { name: long, ..record.clone() }, false).unwrap_err(), Denial::DATA_TOO_LARGE);
    assert_eq!(default_data(&Record::of_data(format!("[\"{}\"]", "x".repeat(LARGEST_DATA))), true).unwrap_err(), Denial::DATA_TOO_LARGE);
    assert_eq!(data_of("{'groups': device.groups}", &Record { groups: Fact::Value(many), ..mac() }), Err(Denial::DATA_TOO_LARGE));
    // Data of exactly the largest size, made in either way, and of one byte more.
    for (bytes, fits) in [(LARGEST_DATA, true), (LARGEST_DATA + 1, false)] {
        let name = "x".repeat(bytes - r#"{"name":""}"#.len());
        let columns = format!(r#"{{"name":"{name}"}}"#);
        assert_eq!(columns.len(), bytes);
        assert_eq!(default_data(&Record::of_data(columns), true).is_ok(), fits);
        assert_eq!(data_of("{'name': device.name}", &Record { name: text(&name), ..mac() }).is_ok(), fits);
    }
}

#[test]
fn no_text_breaks_the_json() {
    let evil = format!("{{{{ .Token }}}}\"}},\"allow\":true\u{0}\u{2028}\\{}", "é".repeat(2000));
    let record = Record { name: text(&evil), data: Fact::Unknown, groups: Fact::Value(vec![group("", &evil)]), ..mac() };
    let data: Json = serde_json::from_str(default_data(&record, true).unwrap().as_json()).unwrap();
    assert_eq!(data["device"]["name"], evil.as_str());
    assert_eq!(data["groups"][0], evil.as_str());
    assert_eq!(data_of("{'name': device.name}", &record).unwrap()["name"], evil.as_str());
}

#[test]
fn what_was_read_does_not_print() {
    let policy = compiled(&require("device.user.name == 'x'"));
    let record = mac();
    assert!(!format!("{:?} {policy:?}", policy.judge(&inputs(&record))).contains("Ada"));
}

/// Compares with the `cel` crate: expressions that it can evaluate too, over a few variables of the same names.
#[test]
fn means_what_cel_means() {
    let record = mac();
    let mut context = cel::Context::default();
    let pair = |key: &str, value: cel::Value| (key.to_owned(), value);
    let groups: Vec<String> = ["Staff", "Macs", "Guests"].map(str::to_owned).into();
    let user: std::collections::HashMap<_, _> = [pair("email", "ada@example.org".into()), pair("name", "Ada".into())].into();
    let device: std::collections::HashMap<_, _> = [
        pair("name", "Ada's Mac".into()),
        pair("managed", true.into()),
        pair("supervised", false.into()),
        pair("groups", cel::to_value(groups).unwrap()),
        pair("user", user.into()),
        pair("model", "Mac15,3".into()),
    ]
    .into();
    context.add_variable_from_value("device", device);
    for expression in [
        "device.managed && !device.supervised",
        "device.supervised || device.name == \"Ada's Mac\"",
        "device.groups.exists(g, g == 'Macs') && device.groups.all(g, size(g) > 3)",
        "device.groups.all(g, g == 'Macs')",
        "'Staff' in device.groups && !('staff' in device.groups)",
        "device.user.email.endsWith('@example.org') && device.user.email.contains('@')",
        "device.model.matches('[0-9]+,3')",
        "device.model.matches('^[0-9]')",
        "size(device.groups) * 3 - 1 == 5",
        "7 / 2 == 3 && -7 / 2 == -3 && -7 % 3 == -1",
        "device.managed ? device.supervised : true",
        "duration('1h30m') > duration('89m') && timestamp('2026-01-01T00:00:00Z') + duration('24h') == timestamp('2026-01-02T00:00:00Z')",
        "int('-5') < 0 && string(12) == '12' && double('1.5') == 1.5 && int(-2.7) == -2",
        "has(device.user.email) && 'x' + 'y' == r'xy' && '\\u00e9' == 'é' && '''a''' == \"a\"",
        "size('é') == 1 && device.name.size() == 9",
        "false && 1 / 0 == 1",
        "1 / 0 == 1 && false",
        "1 / 0 == 1 || true",
        "!(true && false) || false == true != true",
        "device.model in ['a', 'Mac15,3']",
        "device.groups.filter(g, g != 'Macs').map(g, size(g)) == [5, 6] && device.groups.exists_one(g, g == 'Macs')",
        "[1, 2] + [3] == [1, 2, 3] && [1, 2][1] == 2 && 3 in [1, 2, 3] && [] == []",
        "'a' < 'b' && 'Abc' < 'abc' && 2u + 3u == 5u && string(1.5) == '1.5'",
    ] {
        let theirs = cel::Program::compile(expression).unwrap().execute(&context).unwrap_or_else(|error| panic!("{expression}: {error}"));
        let ours = judged(&require(expression), &record);
        assert_eq!(ours == "pass", theirs == cel::Value::Bool(true), "{expression}: {ours}, {theirs:?}");
        assert!(ours != "policy_error", "{expression}");
    }
}

fn fact<T: Clone + fmt::Debug + 'static>(value: impl Strategy<Value = T> + 'static) -> impl Strategy<Value = Fact<T>> {
    prop_oneof![1 => Just(Fact::Unknown), 1 => Just(Fact::Absent), 3 => value.prop_map(Fact::Value)]
}

prop_compose! {
    fn record()(
        managed in fact(any::<bool>()),
        lost in fact(any::<bool>()),
        wipe_pending in fact(any::<bool>()),
        compromised in fact(any::<bool>()),
        os_version in fact("[0-9]{1,2}(\\.[0-9]{1,2}){0,2}|[a-z.0-9]{0,6}"),
        name in fact(".{0,20}"),
        active in fact(any::<bool>()),
        groups in fact(prop::collection::vec("Staff|Macs|Banned|[a-z]{0,3}", 0..4)),
        compliance in fact(prop_oneof![Just(Compliance::Compliant), Just(Compliance::GracePeriod), Just(Compliance::Undetermined)]),
        last_seen in fact(any::<i64>()),
        data in fact("\\{\"a\":(1|\"x\"|null|true|\\[\\])\\}|.{0,8}"),
    ) -> Record {
        Record {
            managed, lost, wipe_pending, compromised, os_version, name, compliance,
            groups: groups.map(|names| names.into_iter().map(|name| Group { id: name.clone(), name }).collect()),
            last_seen: last_seen.map(UnixTime::from_nanos),
            user: User { active, ..User::default() },
            data,
            ..Record::default()
        }
    }
}

proptest! {
    #[test]
    fn no_check_passes_without_what_it_needs(record in record(), expression in prop_oneof![
        Just("device.managed || has(device.lost) || device.user.active"),
        Just("!has(device.managed) || !device.managed || size(device.groups) >= 0 || device.name == ''"),
        Just("has(device.data.a) ? device.data.a == 1 || true : device.compromised == null || true"),
        Just("device.groups.map(g, g + device.name).exists_one(g, g == 'x') || size(device.groups + [device.name]) >= 0 || true"),
        Just("device.last_seen.getHours() >= 0 || device.name.split('') == [] || true"),
    ]) {
        for rules in [require(expression), Rules { deny_if: vec![rule(expression)], ..Rules::default() }, everything()] {
            let policy = compiled(&rules);
            let judgement = policy.judge_all(&inputs(&record));
            prop_assert_eq!(&judgement.result, &policy.judge(&inputs(&record)).result);
            let missing = policy.needs().without(record.known());
            prop_assert!(missing.is_empty() || judgement.result != Verdict::Pass);
            for check in &judgement.checks {
                let unknown = check.inputs.iter().any(|input| input.seen == Seen::Unknown);
                let lenient = rules.not_lost.is_none() && matches!(&*check.name, "not_lost" | "not_wiping");
                prop_assert!(check.denial.is_some() || !unknown || lenient, "{:?}", check);
            }
        }
    }

    #[test]
    fn a_denial_is_json(record in record()) {
        if let Verdict::Deny(denial) = compiled(&everything()).judge(&inputs(&record)).result {
            let reply = crate::reply::reply(&crate::outcome::Outcome::Deny(denial));
            let read: Json = serde_json::from_slice(&reply.body).unwrap();
            prop_assert_eq!(&read["allow"], &Json::Bool(false));
        }
    }

    #[test]
    fn default_data_is_json_and_bounded(record in record(), enrich: bool) {
        for data in [default_data(&record, enrich), full_data(&record, enrich)].into_iter().flatten() {
            prop_assert!(serde_json::from_str::<Json>(data.as_json()).is_ok());
            prop_assert!(data.as_json().len() <= LARGEST_DATA);
        }
    }

    #[test]
    fn no_text_of_an_expression_kills_the_compiler(source in "[a-z.()'&|!=<>?:\\[\\]{}, 0-9é\n\"\\\\@$/*+-]{0,60}") {
        if let Err(mistakes) = Policy::compile(&require(&source)) {
            prop_assert!(!mistakes.is_empty());
            prop_assert!(mistakes.iter().all(|mistake| source.is_char_boundary(mistake.offset)), "{:?}", mistakes);
        }
    }
}

#[test]
fn a14_a_time_that_lies_ahead_is_not_known() {
    let (now, most) = (time(NOW), Duration::from_secs(600));
    let day = Duration::from_secs(86_400);
    let seen = |at| Record { last_seen: Fact::Value(at), enrolled_at: Fact::Value(at), inventory_at: Fact::Value(at), ..mac() };
    let rules = [
        Rules { max_silence: Some(day), ..Rules::default() },
        require("now - device.last_seen < duration('36h')"),
        require("device.last_seen > timestamp('2026-01-01T00:00:00Z')"),
        require("now - device.inventory_at < duration('36h')"),
        require("now - device.enrolled_at < duration('36h')"),
        require("has(device.last_seen)"),
        Rules { deny_if: vec![rule("now - device.last_seen > duration('36h')")], ..Rules::default() },
        Rules { deny_if: vec![rule("!has(device.inventory_at)")], ..Rules::default() },
    ];
    for rules in rules {
        for near in [now, now.saturating_sub(day), now.saturating_add(most)] {
            assert_eq!(judged(&rules, &seen(near)), "pass", "{rules:?} {near:?}");
        }
        for far in [now.saturating_add(most + Duration::from_nanos(1)), now.saturating_add(day), UnixTime::from_nanos(i64::MAX)] {
            assert_eq!(judged(&rules, &seen(far)), "posture_unknown", "{rules:?} {far:?}");
        }
    }
    // A check of another field is not affected, and the log names the time that lies ahead.
    let far = seen(now.saturating_add(day));
    assert_eq!(judged(&Rules { managed: true, ..Rules::default() }, &far), "pass");
    let judgement = compiled(&Rules { max_silence: Some(day), ..Rules::default() }).judge(&inputs(&far));
    assert_eq!(judgement.checks[0].detail.as_deref(), Some("not known: device.last_seen, which lies in the future"));
    assert_eq!(judgement.checks[0].inputs[0].seen, Seen::Unknown);
}

#[test]
fn a14_a_record_that_was_fetched_ahead_of_now_is_not_young() {
    let record = mac();
    let judge = |rules: &Rules, ahead: Duration| {
        let inputs = Inputs { fetched_at: time(NOW).saturating_add(ahead), ..inputs(&record) };
        code_of(&compiled(rules).judge(&inputs).result).to_owned()
    };
    let (most, more) = (Duration::from_secs(600), Duration::from_millis(600_001));
    let rules = Rules { max_age: Some(most), ..Rules::default() };
    assert_eq!(judge(&rules, most), "pass");
    assert_eq!(judge(&rules, more), "posture_unknown");
    assert_eq!(judge(&Rules { managed: true, ..Rules::default() }, more), "pass");
}

#[test]
fn a14_data_has_no_time_that_lies_ahead() {
    let record = Record { last_seen: Fact::Value(time("2026-11-25T12:00:00Z")), ..mac() };
    let source = "{'seen': device.last_seen}";
    assert_eq!(data_of(source, &record), Err(Denial::POSTURE_UNKNOWN));
    let policy = compiled(&Rules { data: Some(source.to_owned()), ..Rules::default() });
    assert_eq!(policy.full_data(&inputs(&record), false).unwrap().as_json(), r#"{"seen":null}"#);
}

/// A device whose free columns are just below the largest answer of a provider.
fn crowded() -> Record {
    let columns = serde_json::json!({
        "groups": (0..100_000).map(|number| format!("group {number}")).collect::<Vec<_>>(),
        "few": (0..LONGEST_LIST).map(|number| format!("group {number}")).collect::<Vec<_>>(),
        "long": "x".repeat(1 << 20),
    });
    Record { data: text(&columns.to_string()), ..mac() }
}

#[test]
fn g5_what_a_check_read_is_cut_before_it_is_copied() {
    let groups = (0..LONGEST_LIST).map(|number| group("", &format!("group {number} {}", "x".repeat(900)))).collect();
    let record = Record { groups: Fact::Value(groups), os_version: text(&"1".repeat(1 << 20)), ..mac() };
    let expressions = ["size(device.groups) > 0", "device.os_version != 'y'", "!('x' in device.groups)"];
    let rules = Rules { require: expressions.iter().cycle().take(99).map(|expression| rule(expression)).collect(), ..Rules::default() };
    let judgement = compiled(&rules).judge_all(&inputs(&record));
    // The first two checks are those that every policy has.
    let shown: Vec<_> = judgement.checks.iter().skip(2).map(CheckResult::inputs).collect();
    assert_eq!(shown.len(), 99);
    for inputs in &shown {
        assert!(inputs.len() < 8192, "{}", inputs.len());
        let read: Json = serde_json::from_str(inputs).unwrap();
        assert_eq!(read.as_object().unwrap().len(), 1, "{inputs}");
    }
    assert!(shown[0].starts_with(r#"{"device.groups":["group 0 xx"#) && shown[0].ends_with(r#" more)"]}"#), "{}", shown[0]);
    assert!(shown[1].contains("1… (") && shown[1].ends_with(r#" bytes more)"}"#), "{}", shown[1]);
    // A short value is shown as it is.
    let judgement = compiled(&require("'Staff' in device.groups")).judge_all(&inputs(&mac()));
    assert_eq!(judgement.checks[2].inputs(), r#"{"device.groups":["Staff","Macs","Guests"]}"#);
}

#[test]
fn g5_what_is_shown_is_cut_at_a_letter_and_in_every_depth() {
    let nested = serde_json::json!({ "a": vec![vec!["é".repeat(100); 100]; 100], "b": 1, "c": { "d": vec![1; 10_000] } });
    let shown = value::Value::Free(&nested).shown().to_string();
    assert!(shown.len() < 8192 && shown.contains("more)"), "{}", shown.len());
    for length in 0..40 {
        let text = Json::from("é".repeat(4080 / 2 - 20 + length));
        let shown = value::Value::Free(&text).shown();
        assert_eq!(shown == text, text.as_str().unwrap().len() <= 4080, "{length}");
    }
}

#[test]
fn g5_a_decision_takes_no_more_than_its_steps_and_then_denies() {
    let record = crowded();
    // Each of these takes too much, alone or a hundred times.
    for expression in [
        "device.data.long.matches('^(x|y)*$')",
        "device.data.few.all(g, g.matches('^group [0-9]+$') && !g.contains('y') && g != 'group x')",
        "!device.data.long.contains('y')",
        "device.data.long.lowerAscii() != 'y'",
        "size(device.data.long) > 1 && size(device.data.groups) > 1",
        "string(device.data.long) + string(device.data.long) != 'y'",
    ] {
        let rules = Rules { require: vec![rule(expression); 100], ..Rules::default() };
        let policy = compiled(&rules);
        let inputs = inputs(&record);
        let evaluation = Evaluation::new(&inputs);
        let findings: Vec<_> = policy.checks.iter().map(|check| check.judge(&evaluation, schema::known(&inputs))).collect();
        let (steps, bytes) = evaluation.spent();
        assert!(steps == work::MOST_STEPS || bytes == work::MOST_BYTES, "{expression}: {steps} {bytes} {:?}", findings[99]);
        assert!(matches!(findings[99], Finding::Error(_)), "{expression}");
        assert_eq!(judged(&rules, &record), "policy_error", "{expression}");
    }
    // Once the steps are used up, no check decides any more, not even `true`.
    let used_up = Rules { require: vec![rule("device.data.long.matches('x$') || true"), rule("true")], ..Rules::default() };
    let long = Record { data: text(&serde_json::json!({ "long": "x".repeat(3 << 20) }).to_string()), ..mac() };
    assert_eq!(judged(&used_up, &long), "policy_error");
    // A usual policy of a fleet stays far below the bound, even with as many groups as there can be.
    let groups = (0..LONGEST_LIST).map(|number| group("", &format!("group {number}"))).collect();
    let usual = Record { groups: Fact::Value(groups), ..mac() };
    let rules = Rules { require: vec![rule("!device.groups.exists(g, g.startsWith('Banned'))"); 20], ..Rules::default() };
    assert_eq!(judged(&rules, &usual), "pass");
}

#[test]
fn g5_data_is_not_made_where_it_would_be_beyond_measure() {
    let entries: Vec<_> = (0..100).map(|number| format!("'k{number}': device.data.groups")).collect();
    let source = format!("{{{}}}", entries.join(", "));
    assert_eq!(data_of(&source, &crowded()), Err(Denial::POLICY_ERROR));
}

#[test]
fn f_an_unknown_call_is_none_of_the_known_ones_by_the_number_of_its_arguments() {
    for expression in [
        "device.groups.some(g, g == 'Staff')",
        "device.groups.existsOne(g, g == 'Staff')",
        "frobnicate(device.managed, true, true)",
        "iff(true, true, false)",
        "frobnicate(device.managed, true)",
        "device.managed.frobnicate(true, true, true)",
        "device.name.titleAscii() == 'a'",
        "device.groups.lowerAscii(1) == 'a'",
    ] {
        let message = refused(expression);
        assert!(message.contains("there is no function") || message.contains("is not called so"), "{expression}: {message}");
    }
}

#[test]
fn f_doubles_are_calculated_as_they_are_written() {
    for (expression, expected) in [
        ("1.5 + 2.25 == 3.75", "pass"),
        ("1.5 + 2.25 == -0.75", "not_so"),
        ("5.0 - 1.5 == 3.5", "pass"),
        ("5.0 - 1.5 == 6.5", "not_so"),
        ("1.5 * 4.0 == 6.0", "pass"),
        ("1.5 * 4.0 == 0.375", "not_so"),
        ("7.5 / 2.5 == 3.0", "pass"),
        ("7.5 / 2.5 == 18.75", "not_so"),
        ("double(device.data.seats) + 0.5 == 3.5", "pass"),
        ("-(double(device.data.seats)) == -3.0", "pass"),
        ("1.0 / 0.0 > 0.0", "policy_error"),
        ("1e308 * 10.0 > 0.0", "policy_error"),
        ("1e308 + 1e308 > 0.0", "policy_error"),
        ("-1e308 - 1e308 < 0.0", "policy_error"),
        ("0.0 / 0.0 != 1.0", "policy_error"),
    ] {
        assert_eq!(judged(&require(expression), &mac()), expected, "{expression}");
    }
    assert!(refused("7.5 % 2.0 == 1.5").contains("cannot be calculated"));
}
