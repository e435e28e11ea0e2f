//! `stepward webhook …`: step-ca's side of a webhook, for trying out, for finding faults, and to replace its secret.

mod rotate;
mod send;
mod verify;

pub use rotate::RotateArgs;
pub use send::SendArgs;
pub use verify::VerifyArgs;

use clap::Subcommand;
use settings::Environment;

use super::exit::Exit;
use super::output::out;

/// `stepward webhook …`
#[derive(Clone, Debug, Subcommand)]
pub enum WebhookCommand {
    /// Sign a webhook as step-ca does, send it, and print the verdict
    Send(Box<SendArgs>),
    /// Check a captured webhook against a configuration, and say which check fails
    Verify(VerifyArgs),
    /// Print the steps that give a webhook another secret while certificates are issued
    Rotate(RotateArgs),
}

/// Runs a command over webhooks.
///
/// # Errors
/// Where a file or the configuration cannot be read, or the output not be written.
pub async fn run(command: WebhookCommand, environment: &Environment) -> anyhow::Result<Exit> {
    match command {
        WebhookCommand::Send(args) => send::send(*args, environment).await,
        WebhookCommand::Verify(args) => verify::verify(&args, environment),
        WebhookCommand::Rotate(args) => rotate::run(&args, environment, &mut out()),
    }
}
