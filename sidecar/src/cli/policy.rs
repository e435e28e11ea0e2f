//! `stepward policy`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use posture::policy::{Caller, Inputs, Judgement, Request, Verdict};
use posture::time::UnixTime;
use serde_json::{Value, json};
use settings::Environment;

use super::exit::Exit;
use super::output::{Format, OutputArgs};
use crate::config::Config;
use crate::config::cases::{self, Case};

/// What can be done with policies.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// Judge the devices of a file of tests, and compare with what it expects
    Test(TestArgs),
}

/// What `policy test` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward policy test policies.test.toml
  stepward policy test policies.test.toml --config stepward.toml --output json

Exit codes: 0 all pass, 1 a test fails or the file has mistakes, 2 usage.")]
pub struct TestArgs {
    /// File with `[[test]]` tables, and `[policy.NAME]` where no configuration is named
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Configuration file, for its policies
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs a command over policies.
///
/// # Errors
/// Where a file cannot be read or has mistakes.
pub fn run(command: &PolicyCommand, environment: &Environment, now: SystemTime, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let PolicyCommand::Test(args) = command;
    let configured = match &args.config {
        Some(path) => Config::load(Some(path), environment)?.config.policies,
        None => BTreeMap::new(),
    };
    let path = environment.directory.join(&args.file);
    let text = settings::files::text(&path, settings::files::CONFIGURATION).with_context(|| format!("read {}", args.file.display()))?;
    let cases = cases::read(&text, &args.file, &configured)?;
    let results: Vec<_> = cases.iter().map(|case| Outcome::of(case, UnixTime::from_system(now))).collect();
    let failed = results.iter().filter(|result| !result.passed()).count();
    match args.output.output {
        Format::Json => {
            let tests: Vec<_> = results.iter().map(Outcome::to_json).collect();
            writeln!(out, "{}", json!({ "passed": results.len() - failed, "failed": failed, "tests": tests }))?;
        }
        Format::Table => {
            for result in &results {
                result.write(&args.file.display().to_string(), out)?;
            }
            writeln!(out, "{} passed, {failed} failed", results.len() - failed)?;
        }
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
}

/// Result of one test.
struct Outcome<'c> {
    case: &'c Case,
    judgement: Judgement,
    /// `allow`, or the code of a denial.
    got: String,
    /// Data that a template gets, where the device is allowed.
    data: Option<Value>,
}

impl<'c> Outcome<'c> {
    fn of(case: &'c Case, now: UnixTime) -> Self {
        let now = case.now.unwrap_or(now);
        let names: Vec<String> = case.caller.iter().cloned().collect();
        let inputs = Inputs {
            record: &case.record,
            fetched_at: case.fetched_at.unwrap_or(now),
            trust: case.trust,
            request: Request {
                webhook: case.webhook.as_deref(),
                kind: case.kind,
                identifier: &case.identifier,
                identifier_kind: case.identifier_kind,
            },
            caller: Caller { name: case.caller.as_deref(), names: &names },
            now,
        };
        let judgement = case.judge.policy.judge_all(&inputs);
        let (got, data) = match &judgement.result {
            Verdict::Deny(denial) => (denial.code.to_string(), None),
            Verdict::Pass => match case.judge.policy.data(&inputs, case.judge.enrich) {
                Ok(data) => ("allow".to_owned(), serde_json::from_str(data.as_json()).ok()),
                Err(denial) => (denial.code.into_owned(), None),
            },
        };
        Self { case, judgement, got, data }
    }

    fn expected(&self) -> &str {
        self.case.expect.as_deref().unwrap_or("allow")
    }

    fn passed(&self) -> bool {
        self.got == self.expected() && !self.data_differs()
    }

    fn data_differs(&self) -> bool {
        self.case.data.is_some() && self.data != self.case.data
    }

    /// Returns the check that decided, and why it could not be evaluated.
    fn reason(&self) -> Option<String> {
        let check = self.judgement.checks.iter().find(|check| check.denial.is_some())?;
        let expression = check.expression.as_ref().map(|expression| format!(": {expression}")).unwrap_or_default();
        let detail = check.detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
        Some(format!("{}{expression}{detail}", check.name))
    }

    fn to_json(&self) -> Value {
        json!({
            "name": self.case.name,
            "line": self.case.line,
            "passed": self.passed(),
            "expected": self.expected(),
            "got": self.got,
            "reason": self.reason(),
            "expected_data": self.case.data,
            "data": self.data,
        })
    }

    fn write(&self, file: &str, out: &mut dyn Write) -> std::io::Result<()> {
        if self.passed() {
            return writeln!(out, "pass  {}", self.case.name);
        }
        writeln!(out, "FAIL  {}  ({file}:{})", self.case.name, self.case.line)?;
        if self.got != self.expected() {
            let reason = self.reason().map(|reason| format!(", by {reason}")).unwrap_or_default();
            writeln!(out, "      expected {}, got {}{reason}", self.expected(), self.got)?;
        } else if let (Some(expected), Some(data)) = (&self.case.data, &self.data) {
            writeln!(out, "      expected data {expected}")?;
            writeln!(out, "      got           {data}")?;
        } else {
            writeln!(out, "      `data` is expected of a device that is denied")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[policy.staff]
providers = ["jamf"]
managed = true
groups_any = ["Staff"]
max_silence = "14d"
require = [{ expr = "device.user.email.endsWith('@example.org')", code = "not_staff", message = "this device has no staff user" }]
data = "{'user': device.user.name}"

[[test]]
name = "a managed Mac of staff"
policy = "staff"
now = "2026-11-24T12:00:00Z"
expect = "allow"
data = { user = "Ada" }
[test.device]
managed = true
groups = ["Staff", { id = "7", name = "Macs" }]
last_seen = "2026-11-23T12:00:00Z"
user = { email = "ada@example.org", name = "Ada" }

[[test]]
name = "a Mac that left"
policy = "staff"
device = { managed = false, groups = [], serial = "C02A" }
expect = "device_unmanaged"

[[test]]
name = "nobody knows who uses it"
policy = "staff"
now = "2026-11-24T12:00:00Z"
device = { managed = true, groups = ["Staff"], last_seen = "2026-11-23T12:00:00Z" }
absent = ["user.name"]
expect = "posture_unknown"
"#;

    fn test(text: &str, output: Format) -> (anyhow::Result<Exit>, String) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("policies.toml"), text).unwrap();
        let args = TestArgs { file: "policies.toml".into(), config: None, output: OutputArgs { output } };
        let mut out = Vec::new();
        let exit = run(&PolicyCommand::Test(args), &Environment::new(folder.path()), SystemTime::UNIX_EPOCH, &mut out);
        (exit, String::from_utf8(out).unwrap())
    }

    #[test]
    fn passes_what_is_as_expected() {
        let (exit, text) = test(FILE, Format::Table);
        assert_eq!(text, "pass  a managed Mac of staff\npass  a Mac that left\npass  nobody knows who uses it\n3 passed, 0 failed\n");
        assert_eq!(exit.unwrap(), Exit::Done);
    }

    #[test]
    fn the_examples_of_the_page_are_so() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policy.md")).unwrap();
        let blocks: Vec<_> = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        let tests = blocks.iter().find(|block| block.contains("[[test]]")).unwrap();
        let (exit, text) = test(tests, Format::Table);
        assert_eq!(exit.unwrap(), Exit::Done, "{text}");
        // The other blocks are pieces of a configuration: each is a policy with a test that any device fails.
        let case = "[[test]]\npolicy = \"x\"\ndevice = {}\nexpect = \"posture_unknown\"\n";
        for rules in blocks.iter().filter(|block| !block.contains("[[")) {
            let rules = rules.replace("[policy.staff-mac]", "");
            let (exit, text) = test(&format!("[policy.x]\n{rules}\n{case}"), Format::Table);
            assert_eq!(exit.unwrap(), Exit::Done, "{text} {rules}");
        }
        // The expressions of the page's table are tried as well.
        let (_, table) = page.split_once("| write | for |\n|---|---|\n").unwrap();
        for row in table.lines().take_while(|line| line.starts_with('|')) {
            let expression = row.split('`').nth(1).unwrap();
            let rules = format!(
                "[policy.x]\nrequire = [{{ expr = \"{expression}\", code = \"x\", message = \"y\" }}]\n[[test]]\npolicy = \"x\"\ndevice = {{}}\nexpect = \"allow\"\n"
            );
            assert!(test(&rules, Format::Table).0.is_ok(), "{expression}");
        }
    }

    #[test]
    fn shows_what_is_not() {
        let file = FILE
            .replace("\"posture_unknown\"", "\"allow\"")
            .replace("user = \"Ada\"", "user = \"Bob\"")
            .replace("expect = \"device_unmanaged\"", "expect = \"device_unmanaged\"\ndata = {}");
        let (exit, text) = test(&file, Format::Table);
        assert_eq!(exit.unwrap(), Exit::Failed);
        insta::assert_snapshot!(text, @r#"
        FAIL  a managed Mac of staff  (policies.toml:10)
              expected data {"user":"Bob"}
              got           {"user":"Ada"}
        FAIL  a Mac that left  (policies.toml:22)
              `data` is expected of a device that is denied
        FAIL  nobody knows who uses it  (policies.toml:29)
              expected allow, got posture_unknown, by require 1: device.user.email.endsWith('@example.org') (not known: device.user.email)
        0 passed, 3 failed
        "#);
        let (_, text) = test(&file, Format::Json);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["failed"], 3);
        assert_eq!(value["tests"][2]["got"], "posture_unknown");
    }

    #[test]
    fn names_every_mistake_of_the_file() {
        let file = FILE
            .replace("device.user.email.ends", "device.user.mail.ends")
            .replace(
                "policy = \"staff\"\ndevice = { managed = false",
                "policy = \"staf\"\ndevice = { manged = false, managed = 1, last_seen = \"now\", form = \"fone\"",
            )
            .replace("absent = [\"user.name\"]", "absent = [\"user.nam\"]\ntrust = \"no\"\nexpct = 1");
        let (exit, _) = test(&file, Format::Table);
        insta::assert_snapshot!(format!("{:#}", exit.unwrap_err()));
        for empty in ["", "test = 1", "[[test]]\n", "test = []"] {
            assert!(test(empty, Format::Table).0.is_err(), "{empty}");
        }
    }
}
