//! `stepward doctor`: looks at everything that the service needs, whether it runs or not, and says how to mend what is wrong.

mod configuration;
mod envoy;
mod examined;
mod groups;
mod listeners;
mod remote;
mod service;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use inventory::{Finding, State};
use serde_json::{Value, json};
use settings::Environment;
use tokio::time::{Instant, timeout_at};

use super::exit::Exit;
use super::output::{Format, OutputArgs, below, out};
use crate::config::Config;
use examined::Examined;

/// What `doctor` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward doctor --config /etc/stepward/stepward.toml
  stepward doctor --config stepward.toml --output json | jq '.findings[] | select(.state != \"good\")'

Run it as the user of the service, on its machine. It takes 15 s at most, changes nothing and shows no secret.
Device managements are asked with the real credentials, for the smallest thing that proves each privilege, and for three
devices, to see that the fields that your rules need come at all.

Exit codes: 0 nothing is bad (something may be doubtful), 1 something is bad, 2 usage.")]
pub struct DoctorArgs {
    /// Configuration file; without it the variables of step-posture-connector
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// One examination that takes its time.
struct Examination<'a> {
    subject: String,
    findings: BoxFuture<'a, Vec<Finding>>,
}

/// Examines everything that the service needs, and prints what was found.
///
/// # Errors
/// Where the output cannot be written.
pub async fn run(args: DoctorArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let deadline = Instant::now() + LONGEST;
    let mut all = Vec::new();
    match Config::load(args.config.as_deref(), environment) {
        Err(mistakes) => {
            let bad = mistakes.0.iter().map(|mistake| Finding::bad("file", mistake.to_string(), "correct the configuration"));
            all.push(Examined { subject: "configuration".to_owned(), findings: bad.collect() });
        }
        Ok(loaded) => {
            all.extend(configuration::examine(&loaded, environment));
            all.extend(examine(&loaded.config, environment, deadline).await?);
            all.extend(configuration::clock(&all));
            all.extend(configuration::webhooks(&loaded.config));
        }
    }
    match args.output.output {
        Format::Json => writeln!(out(), "{}", to_json(&all))?,
        Format::Table => table(&all)?,
    }
    Ok(if count(&all, State::Bad) == 0 { Exit::Done } else { Exit::Failed })
}

/// Runs the examinations that have to wait for something, all at once.
#[expect(clippy::disallowed_methods, reason = "the line that is written over has names of the configuration alone, and needs the terminal")]
async fn examine(config: &Config, environment: &Environment, deadline: Instant) -> io::Result<Vec<Examined>> {
    let providers = config.providers.iter().map(|(name, provider)| Examination {
        subject: format!("provider {name}"),
        findings: Box::pin(remote::examine(config, name, provider, environment, deadline)),
    });
    let service = Examination { subject: "service".to_owned(), findings: Box::pin(service::examine(&config.listen, deadline)) };
    let envoy = Examination { subject: "envoy".to_owned(), findings: Box::pin(envoy::examine(config, deadline)) };
    let groups = Examination { subject: "policies".to_owned(), findings: Box::pin(groups::examine(config, deadline)) };
    let examinations: Vec<_> = providers.chain([service, envoy, groups]).collect();
    let order: Vec<String> = examinations.iter().map(|examination| examination.subject.clone()).collect();
    let mut open: FuturesUnordered<_> = examinations
        .into_iter()
        .map(|Examination { subject, findings }| async move {
            let findings = timeout_at(deadline, findings).await.unwrap_or_else(|_| {
                let detail = format!("nothing was heard for {} s", LONGEST.as_secs());
                vec![Finding::bad("answer", detail, "see that the network lets it through, and try again")]
            });
            Examined { subject, findings }
        })
        .collect();
    let shows = io::stderr().is_terminal();
    let mut done: Vec<Examined> = Vec::new();
    loop {
        if shows {
            let waits = order.iter().filter(|subject| done.iter().all(|examined| examined.subject != **subject));
            let waits: Vec<&str> = waits.map(String::as_str).collect();
            // The line of progress is written over, and is gone when the result is printed.
            write!(io::stderr(), "\r\x1b[K{}", if waits.is_empty() { String::new() } else { format!("asking {}", waits.join(", ")) })?;
            io::stderr().flush()?;
        }
        match open.next().await {
            Some(examined) => done.push(examined),
            None => break,
        }
    }
    done.sort_by_key(|examined| order.iter().position(|subject| *subject == examined.subject));
    envoy::weigh(&mut done);
    Ok(done)
}

fn count(all: &[Examined], state: State) -> usize {
    all.iter().flat_map(|examined| &examined.findings).filter(|finding| finding.state == state).count()
}

fn word(state: State) -> &'static str {
    match state {
        State::Good => "good",
        State::Doubtful => "doubtful",
        State::Bad => "bad",
    }
}

fn to_json(all: &[Examined]) -> Value {
    let finding = |subject: &str, finding: &Finding| {
        json!({
            "subject": subject,
            "check": finding.check,
            "state": word(finding.state),
            "detail": finding.detail,
            "fix": (!finding.fix.is_empty()).then_some(&finding.fix),
        })
    };
    let findings: Vec<Value> =
        all.iter().flat_map(|examined| examined.findings.iter().map(|one| finding(&examined.subject, one))).collect();
    json!({ "ok": count(all, State::Bad) == 0, "findings": findings })
}

fn table(all: &[Examined]) -> io::Result<()> {
    let mut out = out();
    let rows = || all.iter().flat_map(|examined| examined.findings.iter().map(|finding| (examined.subject.as_str(), finding)));
    let subjects = rows().map(|(subject, _)| subject.chars().count()).max().unwrap_or_default();
    let checks = rows().map(|(_, finding)| finding.check.chars().count()).max().unwrap_or_default();
    for (subject, finding) in rows() {
        let state = word(finding.state);
        let column = 8 + 2 + subjects + 2 + checks + 2;
        writeln!(out, "{state:8}  {subject:subjects$}  {:checks$}  {}", finding.check, below(&finding.detail, column))?;
        if !finding.fix.is_empty() {
            writeln!(out, "{:8}  {:subjects$}  {:>checks$}  {}", "", "", "fix:", below(&finding.fix, column))?;
        }
    }
    let [bad, doubtful, good] = [State::Bad, State::Doubtful, State::Good].map(|state| count(all, state));
    writeln!(out, "{bad} bad, {doubtful} doubtful, {good} good")
}

/// Longest time of all examinations together.
const LONGEST: Duration = Duration::from_secs(15);
