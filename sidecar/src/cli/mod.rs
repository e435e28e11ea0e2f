//! The command line: one module for each command.

pub mod check_config;
pub mod envoy_config;
pub mod healthcheck;
pub mod init;
pub mod policy;
pub mod query;
pub mod reload;
pub mod serve;
pub mod shell;
pub mod webhook;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;

use crate::config::Environment;

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
    /// Ask a running service whether it is ready
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Make a working starting folder: configuration, two devices, a secret, throw-away certificates
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
            Err(error) => {
                let _ = writeln!(io::stderr(), "error: {error:#}");
                Exit::Failed.into()
            }
        }
    }
}

impl Command {
    fn run(self, environment: &Environment) -> anyhow::Result<Exit> {
        let mut out = io::stdout().lock();
        match self {
            Self::EnvoyConfig(args) => {
                envoy_config::run(&args, environment, &mut out, &mut io::stderr())?;
                Ok(Exit::Done)
            }
            Self::CheckConfig(args) => {
                let good = check_config::run(&args, environment, SystemTime::now(), &mut out)?;
                Ok(if good { Exit::Done } else { Exit::Failed })
            }
            Self::Init(args) => init::run(&args, environment, &mut out),
            Self::Policy(command) => policy::run(&command, environment, SystemTime::now(), &mut out),
            Self::Version(args) => shell::version(args, &mut out),
            Self::Completions(args) => shell::completions(args, &mut out),
            Self::Man(_) => shell::man(&mut out),
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
            Self::Query(args) => query::run(args, environment).await,
            Self::Webhook(command) => webhook::run(command, environment).await,
            Self::Reload(args) => reload::run(args, environment).await,
            Self::Healthcheck(args) => healthcheck::run(args, environment).await,
            Self::CheckConfig(_)
            | Self::EnvoyConfig(_)
            | Self::Init(_)
            | Self::Policy(_)
            | Self::Version(_)
            | Self::Completions(_)
            | Self::Man(_) => Ok(Exit::Failed),
        }
    }
}

/// Prints a result: JSON on one line, or rows of a name and a value in two columns, those that `first` names before the rest.
fn print(output: OutputArgs, value: &Value, first: &[&str]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match (output.output, value) {
        (Format::Table, Value::Object(fields)) => {
            let width = fields.keys().map(String::len).max().unwrap_or_default();
            let place = |name: &str| first.iter().position(|first| *first == name).unwrap_or(first.len());
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| place(name));
            for (name, value) in fields {
                match value {
                    Value::String(text) => writeln!(out, "{name:width$}  {text}")?,
                    Value::Null => {}
                    value => writeln!(out, "{name:width$}  {value}")?,
                }
            }
        }
        (_, value) => writeln!(out, "{value}")?,
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
