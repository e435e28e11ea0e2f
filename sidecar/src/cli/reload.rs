//! `stepward reload`.

use std::path::PathBuf;

use clap::Args;
use proto::v1::ReloadRequest;
use proto::v1::admin_service_client::AdminServiceClient;
use serde_json::{Map, Value, json};

use super::locks::said;
use super::query::channel;
use super::{Exit, Format, OutputArgs, print};
use crate::config::Environment;

/// What `reload` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward reload --config stepward.toml
  stepward reload --config stepward.toml --accept-shrink staff     take a file that lost many rows

Exit codes: 0 all applied, 1 something was not, or no service answers, 2 usage.")]
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

/// Asks for a reload and prints what became of each subject.
///
/// # Errors
/// Where no service answers.
pub async fn run(args: ReloadArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let channel = channel(args.socket, args.config.as_deref(), environment, "admin.sock").await?;
    let request = ReloadRequest { accept_shrink: args.accept_shrink };
    let results = AdminServiceClient::new(channel).reload(request).await.map_err(said)?;
    let results = results.into_inner().results;
    let applied = results.iter().all(|result| result.applied);
    let value = match args.output.output {
        Format::Json => results
            .iter()
            .map(|result| json!({ "subject": result.subject, "applied": result.applied, "detail": result.detail }))
            .collect::<Value>(),
        Format::Table => Value::Object(
            results
                .iter()
                .map(|result| {
                    let word = if result.applied { "applied" } else { "NOT APPLIED" };
                    (result.subject.clone(), Value::String(format!("{word}: {}", result.detail)))
                })
                .collect::<Map<_, _>>(),
        ),
    };
    print(args.output, &value, &["configuration", "secrets"])?;
    Ok(if applied { Exit::Done } else { Exit::Failed })
}
