use std::path::Path;

use settings::{Environment, Mistakes};

use super::super::{Config, Loaded};
use super::*;
use engine::plan::Enforcement;

const GOOD: &str = r#"
[envoy]
certificate = "c"
private_key = "k"
client_ca = "a"

[[webhook]]
id = "one"
secrets = [{ file = "s" }]
policy = "staff-mac"
enforcement = "observe"

[provider.staff]
type = "jamf"
base_url = "https://staff.example.org"
client_id = "stepward"
client_secret = { env = "SECRET" }

[provider.spare]
type = "jamf"
base_url = "https://spare.example.org"
client_id = "stepward"
client_secret = { env = "SECRET" }

[policy.staff-mac]
providers = ["staff", "spare"]
on_not_found = "next"
on_unavailable = "fail"
combine = "first_found"
managed = true
groups_any = ["Compliant Macs"]
groups_all = ["Staff"]
groups_none = ["Banned"]
min_os = { Mac = "15.4", other = "0" }
max_silence = "14d"
max_age = "1h"
compliance = "compliant"
trust = "attested"
not_lost = true
not_wiping = false
enrich = true
remediation_url = "https://help.example.org"
require = [{ expr = "device.user.email.endsWith('@example.org')", code = "not_staff", message = "this device has no staff user", remediation_url = "https://help.example.org/staff" }]
deny_if = [{ expr = "device.compromised", code = "broken", message = "the protection of the device is broken" }]
data = "{'user': device.user.name, 'email': device.user.email}"
"#;

fn parse(text: &str) -> Result<Loaded, Mistakes> {
    Config::parse(text, Path::new("stepward.toml"), &Environment::new("/etc/stepward"))
}

fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

#[test]
fn reads_every_key() {
    let loaded = parse(GOOD).unwrap();
    let policy = &loaded.config.policies["staff-mac"];
    assert_eq!(policy.providers, ["staff", "spare"]);
    assert_eq!((policy.on_not_found, policy.on_unavailable, policy.combine), (OnNotFound::Next, OnUnavailable::Fail, Combine::FirstFound));
    assert!(policy.enrich);
    let names: Vec<_> = policy.policy.names().collect();
    // One is switched off.
    let named = NAMED.iter().map(|named| named.key).filter(|key| *key != "not_wiping");
    assert_eq!(names, named.chain(["require 1", "deny_if 1"]).collect::<Vec<_>>(), "`GOOD` has every rule");
    let webhook = &loaded.config.webhooks[0];
    assert_eq!((webhook.policy.as_deref(), webhook.enforcement), (Some("staff-mac"), Enforcement::Observe));
    assert!(webhook.providers.is_empty());
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("observe"), "{warnings:?}");
}

#[test]
fn a_policy_of_nothing_but_providers_is_one() {
    let (head, _) = GOOD.split_once("on_not_found").unwrap();
    let policy = &parse(head).unwrap().config.policies["staff-mac"];
    assert_eq!((policy.on_not_found, policy.on_unavailable, policy.combine), (OnNotFound::Next, OnUnavailable::Fail, Combine::FirstFound));
    assert!(!policy.enrich);
    assert_eq!(policy.policy.names().collect::<Vec<_>>(), ["not_lost", "not_wiping"]);
}

#[test]
fn a_variable_changes_a_rule() {
    let env = Environment::new("/").with("STEPWARD__POLICY__STAFF_MAC__MANAGED", "false");
    let loaded = Config::parse(GOOD, Path::new("stepward.toml"), &env).unwrap();
    assert!(!loaded.config.policies["staff-mac"].policy.names().any(|name| name == "managed"));
}

#[test]
fn names_every_mistake_with_its_place() {
    let providers = "providers = [\"staff\", \"spare\"]";
    let policy = "policy = \"staff-mac\"";
    let require = |line: &str| {
        let (start, rest) = GOOD.split_once("require = ").unwrap();
        let (_, rest) = rest.split_once('\n').unwrap();
        format!("{start}{line}\n{rest}")
    };
    let data = |line: &str| with("data = \"{'user': device.user.name, 'email': device.user.email}\"", line);
    let cases = [
        ("provider and policy both", with(policy, "policy = \"staff-mac\"\nproviders = [\"staff\"]")),
        ("neither", with(policy, "").replace("enforcement = \"observe\"", "")),
        ("enforcement without a policy", with(policy, "providers = [\"staff\"]")),
        ("unknown policy", with(policy, "policy = \"staf-mac\"")),
        ("misspelt key", with(policy, "polcy = \"staff-mac\"")),
        ("enforcement", with("\"observe\"", "\"observ\"")),
        ("policy for nobody", with(policy, "policy = \"staff-mac\"\nkind = \"notifying\"")),
        ("empty chain", with(providers, "providers = []")),
        ("no chain", with(providers, "")),
        ("all of nothing", with(providers, "providers = []").replace("first_found", "all_of")),
        ("all of, and next", with("first_found", "all_of")),
        ("unknown provider", with(providers, "providers = [\"stff\", \"spare\", \"spare\", 1]")),
        (
            "words",
            with("on_not_found = \"next\"", "on_not_found = \"nxt\"").replace("= \"fail\"", "= \"deny\"").replace("first_found", "first"),
        ),
        ("unknown key", with("managed = true", "mananged = true")),
        ("not a table", with("[policy.staff-mac]", "[policy]\nother = 1\n[policy.staff-mac]")),
        ("name", with("[policy.staff-mac]", "[policy.Staff]\nproviders = [\"staff\"]\n[policy.staff-mac]")),
        ("groups", with("[\"Staff\"]", "[]").replace("[\"Banned\"]", "[1, \" \"]")),
        ("versions", with("\"15.4\", other = \"0\"", "\"15-beta\", other = 0")),
        ("version", with("min_os = { Mac = \"15.4\", other = \"0\" }", "min_os = 15.4")),
        ("durations", with("\"14d\"", "\"14\"").replace("\"1h\"", "\"0s\"")),
        ("states", with("\"compliant\"", "\"undetermined\"").replace("trust = \"attested\"", "trust = \"atested\"")),
        ("address", with("\"https://help.example.org\"", "\"help\"")),
        ("expressions", with("user.email.ends", "user.mail.ends").replace("\"device.compromised\"", "\"device.compromised == 'x'\"")),
        ("escapes", require(r#"require = [{ expr = "\"ü\" == \u0027a\u0027 && device.nam", code = "x", message = "y" }]"#)),
        (
            "several lines",
            require("require = [{ expr = '''\n  device.managed\n  && device.nam\n  && device.lst''', code = \"x\", message = \"y\" }]"),
        ),
        (
            "checks",
            require("require = [1, { expr = \"true\" }, { expr = \"true\", code = \"device_lost\", message = \" \", url = \"x\" }]"),
        ),
        ("data", data("data = \"{'a': device.nam}\"")),
        ("data is no map", data("data = \"device.name\"")),
        ("syntax", data("data = \"{'a': \"")),
    ];
    let shown: Vec<_> = cases
        .iter()
        .map(|(name, text)| match parse(text) {
            Ok(_) => panic!("{name} was taken"),
            Err(mistakes) => format!("--- {name}\n{mistakes}\n"),
        })
        .collect();
    insta::assert_snapshot!(shown.concat());
}

/// Returns a configuration with a webhook that is judged by `[policy.p]` with these lines, and providers to ask.
fn judged(lines: &str) -> String {
    let (head, _) = GOOD.split_once("[provider.spare]").unwrap();
    let head = head.replace("policy = \"staff-mac\"\nenforcement = \"observe\"", "policy = \"p\"");
    let others = [
        ("kandji", "type = \"kandji\"\nbase_url = \"https://k.example.org\"\ntoken = { env = \"SECRET\" }"),
        ("list", "type = \"file\"\npath = \"devices.json\""),
        (
            "own",
            "type = \"http\"\nbase_url = \"https://h.example.org\"\npath = \"/{identifier}\"\nidentifier = \"/serial\"\n\
             fields = { managed = \"/managed\" }",
        ),
    ];
    let providers: String = others.iter().map(|(name, lines)| format!("[provider.{name}]\n{lines}\n")).collect();
    format!("{head}{providers}[policy.p]\n{lines}\n")
}

#[test]
fn a_field_that_nobody_who_is_asked_ever_gives_is_refused_where_it_is_needed() {
    let require = |expr: &str| format!("require = [{{ expr = \"{expr}\", code = \"x\", message = \"y\" }}]");
    let cases = [
        ("a rule that has a name", "providers = [\"list\"]\nmanaged = true".to_owned()),
        ("two fields of one rule", "providers = [\"list\"]\nmin_os = { Mac = \"15.4\" }".to_owned()),
        ("groups", "providers = [\"own\"]\nmanaged = true\ngroups_any = [\"a\"]".to_owned()),
        ("a check", format!("providers = [\"list\"]\n{}", require("device.data.a == 'b' || device.user.email == 'c'"))),
        ("a check that denies", format!("providers = [\"list\"]\n{}", require("device.lost").replace("require", "deny_if"))),
        ("data", "providers = [\"list\"]\ndata = \"{'a': device.data.a, 'b': device.name}\"".to_owned()),
        ("a setting that is off", "providers = [\"kandji\"]\ncompliance = \"compliant\"".to_owned()),
        ("a chain", "providers = [\"list\", \"own\"]\nnot_wiping = true".to_owned()),
        ("one of all", "providers = [\"staff\", \"own\"]\ncombine = \"all_of\"\nnot_lost = true".to_owned()),
    ];
    let shown = cases.map(|(name, lines)| match parse(&judged(&lines)) {
        Ok(_) => panic!("{name} was taken"),
        Err(mistakes) => format!("--- {name}\n{mistakes}\n"),
    });
    insta::assert_snapshot!(shown.concat());
}

#[test]
fn a_field_that_only_some_give_is_a_warning() {
    let warnings = |lines: &str| -> Vec<String> {
        let loaded = parse(&judged(lines)).unwrap();
        loaded.warnings.iter().map(ToString::to_string).filter(|warning| !warning.contains("asks provider")).collect()
    };
    for lines in
        ["providers = [\"staff\", \"list\"]\nmanaged = true", "providers = [\"list\", \"own\"]\nmanaged = true\ncombine = \"any_of\""]
    {
        let found = warnings(lines);
        assert!(found.len() == 1 && found[0].contains("`managed` needs `device.managed`, which `list` never gives"), "{found:?}");
    }
    for lines in [
        "providers = [\"staff\", \"own\"]\nmanaged = true",
        "providers = [\"list\"]",
        "providers = [\"list\"]\nnot_wiping = false\nenrich = true",
        "providers = [\"kandji\"]\nmanaged = true",
    ] {
        assert_eq!(warnings(lines), Vec::<String>::new(), "{lines}");
    }
}

#[test]
fn of_a_provider_that_has_a_mistake_nothing_is_said_besides() {
    let text = judged("providers = [\"list\"]\nmanaged = true").replace("path = \"devices.json\"", "");
    assert_eq!(parse(&text).unwrap_err().0.len(), 1);
}
