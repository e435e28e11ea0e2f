//! The command line: one module for each command.

pub mod backup;
pub mod cache;
mod causes;
pub mod check_config;
pub mod decisions;
pub mod doctor;
pub mod envoy_config;
mod exit;
pub mod healthcheck;
pub mod init;
mod keys;
pub mod locks;
mod manual;
mod output;
mod pasted;
pub mod policy;
pub mod query;
pub mod reload;
mod request;
pub mod serve;
mod service;
pub mod shell;
pub mod store;
mod validity;
pub mod webhook;
mod words;

pub use exit::Exit;
pub use keys::Unfit;
pub use output::{Format, OutputArgs};

use std::io::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{CommandFactory as _, Parser, Subcommand};
use settings::Environment;

use output::{err, is_closed, out, unread};

/// Device posture for certificate authorities: answers step-ca's webhooks.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "stepward",
    version,
    arg_required_else_help = true,
    after_help = Exit::below("Examples:
  stepward init demo                                    make a working starting folder
  stepward serve --config demo/stepward.toml            run the service
  stepward query C02XL0GYJGH5 --config demo/stepward.toml
  stepward doctor --config demo/stepward.toml           find what is wrong, and how to mend it
  stepward envoy-config --config demo/stepward.toml --output envoy.yaml")
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
    /// Look at the database under a service, bring it up to date, or copy it to another one
    #[command(subcommand)]
    Store(store::StoreCommand),
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

impl Cli {
    /// Runs the command; what went wrong goes to the standard error.
    pub fn run(self, environment: &Environment) -> ExitCode {
        match self.command.run(environment) {
            // The reader has enough of it, as `head` has after ten lines: every command ends here then, and says nothing.
            _ if is_closed() => Exit::Unread.into(),
            Ok(exit) => exit.into(),
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
            Self::Completions(args) => shell::completions(args, Cli::command(), &mut out),
            Self::Man(args) => shell::man(&args, Cli::command(), environment, &mut out),
            command => {
                drop(out);
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
                let goes_on = command.prints_without_end();
                let exit = runtime.block_on(async {
                    tokio::select! {
                        exit = command.run_async(environment) => exit,
                        () = unread(), if goes_on => Ok(Exit::Unread),
                    }
                });
                // A read of a slow disk must not hold the end up.
                runtime.shutdown_background();
                exit
            }
        }
    }

    /// Returns whether the command prints what comes, for as long as somebody reads it. The service writes its log whether anybody
    /// does or not.
    const fn prints_without_end(&self) -> bool {
        match self {
            Self::Decisions(args) => args.follow,
            Self::Query(args) => args.watch,
            _ => false,
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
            Self::Store(command) => store::run(command, environment).await,
            Self::Cache(command) => cache::run(command, environment).await,
            Self::Doctor(args) => doctor::run(args, environment).await,
            Self::Healthcheck(args) => healthcheck::run(args, environment).await,
            Self::CheckConfig(_) | Self::EnvoyConfig(_) | Self::Policy(_) | Self::Version(_) | Self::Completions(_) | Self::Man(_) => {
                Ok(Exit::Failed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert!(help.contains("Usage: stepward <COMMAND>") && help.contains("Exit codes:\n  0   done"), "{help}");
    }
}
