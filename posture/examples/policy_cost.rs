//! Measures the cost of judging one device: `cargo run --release -p posture --features policy --example policy_cost`. Each
//! line of output is a row of `make bench`'s table.

#![expect(clippy::print_stdout, clippy::expect_used, reason = "it is run by hand, and prints what it measured")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use posture::identity::{IdentifierKind, Trust};
use posture::policy::{Caller, Inputs, LeastOs, Policy, Request, RequestKind, Rule, Rules, Verdict};
use posture::record::{Compliance, Fact, Group, Record, User};
use posture::time::UnixTime;
use serde_json::json;

const ROUNDS: u32 = 200_000;

fn main() {
    let text = |text: &str| Fact::Value(text.to_owned());
    let now = UnixTime::from_nanos(1_800_000_000_000_000_000);
    let record = |groups: usize| Record {
        serial: text("C02A"),
        model: text("Mac15,3"),
        platform: text("Mac"),
        os_version: text("15.4.1"),
        managed: Fact::Value(true),
        compliance: Fact::Value(Compliance::Compliant),
        encrypted: Fact::Value(true),
        compromised: Fact::Value(false),
        last_seen: Fact::Value(now.saturating_sub(Duration::from_secs(3600))),
        groups: Fact::Value((1..=groups).map(|number| Group { id: number.to_string(), name: format!("Group {number}") }).collect()),
        user: User { email: text("ada@example.org"), ..User::none() },
        data: text(r#"{"asset":"A1","seats":3}"#),
        ..Record::default()
    };
    let rule = |expression: &str| Rule {
        expression: expression.to_owned(),
        code: "not_so".to_owned(),
        message: "it is not so".to_owned(),
        remediation_url: None,
    };
    let shorthands = Rules {
        managed: true,
        groups_any: vec!["Group 10".to_owned()],
        groups_none: vec!["Banned".to_owned()],
        min_os: Some(LeastOs::One("15".to_owned())),
        max_silence: Some(Duration::from_secs(86_400)),
        max_age: Some(Duration::from_secs(86_400)),
        compliance: Some(Compliance::Compliant),
        trust: Some(Trust::Attested),
        ..Rules::default()
    };
    let expressions = Rules {
        require: [
            "device.managed",
            "'Group 10' in device.groups",
            "!device.groups.exists(g, g.startsWith('Banned'))",
            "version(device.os_version) >= version('15')",
            "now - device.last_seen < duration('1d')",
            "device.compliance == 'compliant'",
            "trust == 'attested'",
            "device.user.email.endsWith('@example.org')",
            "device.model.matches('^Mac[0-9]+,[0-9]+$')",
            "has(device.user.department) ? device.user.department != 'Sales' : device.encrypted",
        ]
        .map(rule)
        .into(),
        ..Rules::default()
    };
    let columns = Rules { require: vec![rule("device.data.asset == 'A1' && device.data.seats > 2")], ..Rules::default() };
    for (name, rules, groups, most) in [
        ("ten shorthands, 10 groups ≤ 20 µs", &shorthands, 10, Some(20.0)),
        ("ten expressions, 10 groups ≤ 20 µs", &expressions, 10, Some(20.0)),
        ("ten expressions, 4,096 groups", &expressions, 4096, None),
        ("one check of two free columns", &columns, 10, None),
    ] {
        let policy = Policy::compile(rules).expect("the rules are good");
        let record = record(groups);
        let inputs = Inputs {
            record: &record,
            fetched_at: now,
            trust: Trust::Attested,
            request: Request { webhook: None, kind: RequestKind::Query, identifier: "C02A", identifier_kind: IdentifierKind::Serial },
            caller: Caller::default(),
            now,
        };
        assert_eq!(policy.judge(&inputs).result, Verdict::Pass, "{name}");
        let rounds = if groups > 10 { ROUNDS / 100 } else { ROUNDS };
        let start = Instant::now();
        for _ in 0..rounds {
            black_box(policy.judge(black_box(&inputs)));
        }
        let cost = start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds);
        let holds = most.map(|most| cost <= most);
        println!("{}", json!({ "budget": format!("policy: {name}"), "measured": format!("{cost:.2} µs"), "holds": holds }));
    }
}
