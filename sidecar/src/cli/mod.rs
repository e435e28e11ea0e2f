//! The command line: one module for each command.

pub mod backup;
pub mod cache;
pub mod check_config;
pub mod decisions;
pub mod doctor;
pub mod envoy_config;
pub mod healthcheck;
pub mod init;
pub mod locks;
pub mod policy;
pub mod query;
pub mod reload;
pub mod serve;
pub mod shell;
pub mod webhook;
pub(crate) mod words;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;

use crate::config::Environment;
use crate::shown::{self, Shown};

/// Device posture for certificate authorities: answers step-ca's webhooks.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "stepward",
    version,
    arg_required_else_help = true,
    after_help = "Examples:
  stepward init demo                                    make a working starting folder
  stepward serve --config demo/stepward.toml            run the service
  stepward query C02XL0GYJGH5 --config demo/stepward.toml
  stepward doctor --config demo/stepward.toml           find what is wrong, and how to mend it
  stepward envoy-config --config demo/stepward.toml --output envoy.yaml

Exit codes: 0 done, 1 failed, 2 usage, 3 denied or not found, 4 refused (4xx), 5 unavailable (5xx or no answer)."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the service
    Serve(serve::ServeArgs),
    /// Ask a running service about a device
    Query(query::QueryArgs),
    /// Send or check webhooks as step-ca makes them
    #[command(subcommand)]
    Webhook(webhook::WebhookCommand),
    /// Test policies
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Make a running service read its configuration, secrets and device files again
    Reload(reload::ReloadArgs),
    /// Deny a device whatever providers and policies say
    Lock(locks::LockArgs),
    /// Take back every lock of a device
    Unlock(locks::TakeBackArgs),
    /// List locks and exemptions
    Locks(locks::LocksArgs),
    /// Let a device pass for a while though a policy denies it or no provider can say
    Exempt(locks::ExemptArgs),
    /// Take back every exemption of a device
    Unexempt(locks::TakeBackArgs),
    /// List the decisions that are kept, newest first
    Decisions(decisions::DecisionsArgs),
    /// Show why a decision came out as it did
    Explain(decisions::ExplainArgs),
    /// Copy the store of a service, which may go on meanwhile
    Backup(backup::BackupArgs),
    /// Look at what is remembered of device managements, or forget it
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Check everything that the service needs, and say how to mend what is wrong
    Doctor(doctor::DoctorArgs),
    /// Ask a running service whether it is ready
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Make a starting folder: one that works by itself, or one that fits a step-ca
    Init(init::InitArgs),
    /// Check a configuration, its secrets and device files, and report every mistake
    CheckConfig(check_config::CheckConfigArgs),
    /// Print a complete Envoy bootstrap for this configuration
    EnvoyConfig(envoy_config::EnvoyConfigArgs),
    /// Print the release
    Version(shell::VersionArgs),
    /// Print completions for a shell
    Completions(shell::CompletionsArgs),
    /// Print the manual page (roff)
    Man(shell::ManArgs),
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// The format of a command that prints a result.
#[derive(Args, Clone, Copy, Debug)]
pub struct OutputArgs {
    /// How to print the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// How a command ended, as the shell sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0
    Done,
    /// 1
    Failed,
    /// 3
    Denied,
    /// 4
    Refused,
    /// 5
    Unavailable,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Denied => 3,
            Exit::Refused => 4,
            Exit::Unavailable => 5,
        })
    }
}

impl Cli {
    /// Runs the command; what went wrong goes to the standard error.
    pub fn run(self, environment: &Environment) -> ExitCode {
        match self.command.run(environment) {
            Ok(exit) => exit.into(),
            // Whoever read has enough of it, as `head` has after ten lines.
            Err(_) if CLOSED.load(Ordering::Relaxed) => Exit::Failed.into(),
            Err(error) => {
                let _ = writeln!(err(), "error: {error:#}");
                Exit::Failed.into()
            }
        }
    }
}

impl Command {
    fn run(self, environment: &Environment) -> anyhow::Result<Exit> {
        let mut out = out();
        match self {
            Self::EnvoyConfig(args) => {
                envoy_config::run(&args, environment, &mut out, &mut err())?;
                Ok(Exit::Done)
            }
            Self::CheckConfig(args) => {
                let good = check_config::run(&args, environment, SystemTime::now(), &mut out)?;
                Ok(if good { Exit::Done } else { Exit::Failed })
            }
            Self::Init(args) if args.step_ca.is_none() => init::run(&args, environment, &mut out),
            Self::Policy(command) => policy::run(&command, environment, SystemTime::now(), &mut out),
            Self::Version(args) => shell::version(args, &mut out),
            Self::Completions(args) => shell::completions(args, &mut out),
            Self::Man(args) => shell::man(&args, environment, &mut out),
            command => {
                drop(out);
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
                let exit = runtime.block_on(command.run_async(environment));
                // A read of a slow disk must not hold the end up.
                runtime.shutdown_background();
                exit
            }
        }
    }

    async fn run_async(self, environment: &Environment) -> anyhow::Result<Exit> {
        match self {
            Self::Serve(args) => serve::run(args, environment).await,
            Self::Init(args) => init::run_for_step_ca(&args, environment, &mut out()).await,
            Self::Query(args) => query::run(args, environment).await,
            Self::Webhook(command) => webhook::run(command, environment).await,
            Self::Reload(args) => reload::run(args, environment).await,
            Self::Lock(args) => locks::lock(args, environment).await,
            Self::Unlock(args) => locks::unlock(args, environment).await,
            Self::Locks(args) => locks::list(args, environment).await,
            Self::Exempt(args) => locks::exempt(args, environment).await,
            Self::Unexempt(args) => locks::unexempt(args, environment).await,
            Self::Decisions(args) => decisions::list(args, environment).await,
            Self::Explain(args) => decisions::explain(args, environment).await,
            Self::Backup(args) => backup::run(args, environment).await,
            Self::Cache(command) => cache::run(command, environment).await,
            Self::Doctor(args) => doctor::run(args, environment).await,
            Self::Healthcheck(args) => healthcheck::run(args, environment).await,
            Self::CheckConfig(_) | Self::EnvoyConfig(_) | Self::Policy(_) | Self::Version(_) | Self::Completions(_) | Self::Man(_) => {
                Ok(Exit::Failed)
            }
        }
    }
}

/// A text as a POSIX shell takes it for one word.
fn shell_word(text: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+=:@%,".contains(letter);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Looks whether a name that step-ca told may stand in lines that a shell runs, and in the comments of these and of TOML.
///
/// # Errors
/// It would be an option, or has a character that ends a line or is not seen.
fn may_be_printed(name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        !name.starts_with('-') && !name.contains(shown::is_hidden),
        "`{}` of step-ca cannot stand in a command: it begins with a dash, or has a character that is not seen",
        shown::cell(name)
    );
    Ok(())
}

/// The standard output, which shows what a terminal would act upon.
fn out() -> Shown<Noticed<io::StdoutLock<'static>>> {
    #[expect(clippy::disallowed_methods, reason = "this is where it is made safe")]
    Shown(Noticed(io::stdout().lock()))
}

/// Writes, and notices where nobody reads any more.
struct Noticed<W>(W);

impl<W: io::Write> io::Write for Noticed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        noticed(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        noticed(self.0.flush())
    }
}

fn noticed<T>(result: io::Result<T>) -> io::Result<T> {
    if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        CLOSED.store(true, Ordering::Relaxed);
    }
    result
}

/// Whether the reader of the standard output has gone.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// The standard error, likewise.
fn err() -> Shown<io::StderrLock<'static>> {
    #[expect(clippy::disallowed_methods, reason = "this is where it is made safe")]
    Shown(io::stderr().lock())
}

/// Prints a result: JSON on one line, or rows of a name and a value in two columns, those that `first` names before the rest.
fn print(output: OutputArgs, value: &Value, first: &[&str]) -> anyhow::Result<()> {
    let mut out = out();
    match (output.output, value) {
        (Format::Table, Value::Object(fields)) => {
            let width = fields.keys().map(String::len).max().unwrap_or_default();
            let place = |name: &str| first.iter().position(|first| *first == name).unwrap_or(first.len());
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| place(name));
            for (name, value) in fields {
                match value {
                    Value::String(text) => writeln!(out, "{name:width$}  {}", shown::cell(text))?,
                    Value::Null => {}
                    value => writeln!(out, "{name:width$}  {value}")?,
                }
            }
        }
        (_, value) => writeln!(out, "{value}")?,
    }
    Ok(())
}

/// Prints objects as a table: a line with the names of the columns, then one for each object.
fn table(rows: &[Value], columns: &[&str]) -> anyhow::Result<()> {
    let cell = |row: &Value, column: &str| match row.get(column) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
        Some(Value::String(text)) => shown::cell(text).into_owned(),
        Some(value) => shown::cell(&value.to_string()).into_owned(),
    };
    let head = columns.iter().map(|column| column.to_uppercase()).collect();
    let body = rows.iter().map(|row| columns.iter().map(|column| cell(row, column)).collect());
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(body).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|place| lines.iter().filter_map(|line| line.get(place)).map(|text| text.chars().count()).max().unwrap_or_default())
        .collect();
    let mut out = out();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(text, width)| format!("{text:width$}")).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example_and_its_exit_codes() {
        fn leaves(command: &clap::Command) -> Vec<&clap::Command> {
            let mut found: Vec<_> = command.get_subcommands().flat_map(leaves).collect();
            if found.is_empty() {
                found.push(command);
            }
            found
        }
        for command in leaves(&Cli::command()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example") && help.contains("Exit codes"), "{}", command.get_name());
        }
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_right_one_and_none_with_the_help() {
        let said = |args: &[&str]| Cli::try_parse_from([&["stepward"], args].concat()).unwrap_err().to_string();
        assert!(said(&["serv"]).contains("'serve'"));
        assert!(said(&["query", "a", "--confg", "b"]).contains("'--config'"));
        assert!(said(&["query", "a", "--output", "jsn"]).contains("'json'"));
        let help = said(&[]);
        assert!(help.contains("Usage: stepward <COMMAND>") && help.contains("Exit codes: 0 done"), "{help}");
    }
}
