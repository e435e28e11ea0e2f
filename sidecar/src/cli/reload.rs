//! `stepward reload`.

use std::path::PathBuf;

use clap::Args;
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::{ReloadRequest, ReloadResult};
use serde_json::json;
use settings::Environment;

use super::exit::Exit;
use super::output::{Format, OutputArgs, print, rows};
use super::service::{channel, said};

/// What `reload` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward reload --config stepward.toml
  stepward reload --config stepward.toml --accept-shrink staff     take a file that lost many rows

What no reload changes, as [listen], is said to wait for the next start, and the rest is applied all the same.

Exit codes: 0 all applied, or waits for a start, 1 something was not, or no service answers, 2 usage.")]
pub struct ReloadArgs {
    /// Configuration file, for the folder of the sockets
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
    /// The socket, instead of the configuration's
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Take the file of this provider even if it lost more rows than max_shrink
    #[arg(long, value_name = "PROVIDER")]
    accept_shrink: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Asks the service for a reload, and prints the result of each subject.
///
/// # Errors
/// Where no service answers.
pub async fn run(args: ReloadArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let channel = channel(args.socket, args.config.as_deref(), environment, "admin.sock").await?;
    let request = ReloadRequest { accept_shrink: args.accept_shrink };
    let results = AdminServiceClient::new(channel).reload(request).await.map_err(said)?;
    let results = results.into_inner().results;
    match args.output.output {
        Format::Json => {
            let shown = results.iter().map(
                |result| json!({ "subject": result.subject, "applied": result.applied, "waits": result.waits, "detail": result.detail }),
            );
            print(args.output, &shown.collect(), &[])?;
        }
        Format::Table => {
            let word = |result: &ReloadResult| match (result.applied, result.waits) {
                (true, _) => "applied",
                (false, true) => "WAITS FOR A START",
                (false, false) => "NOT APPLIED",
            };
            let shown = results.iter().map(|result| (result.subject.clone(), format!("{}: {}", word(result), result.detail)));
            rows(&shown.collect::<Vec<_>>())?;
        }
    }
    // A change that waits is no mistake: the next start of the service applies it.
    let good = results.iter().all(|result| result.applied || result.waits);
    Ok(if good { Exit::Done } else { Exit::Failed })
}
