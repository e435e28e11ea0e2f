//! `stepward query`: what providers know of a device, and in `checks` what a policy says of it.

mod checks;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use hyper_util::rt::TokioIo;
use proto::v1::posture_service_client::PostureServiceClient;
use proto::v1::{LookupRequest, Outcome, ProviderAnswer};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::locks::said;
use super::{Exit, Format, OutputArgs, err, out, print};
use crate::config::{Config, Environment, Listen};

/// What `query` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward query C02XL0GYJGH5 --config stepward.toml                                what each provider knows
  stepward query laptop.example.org --kind hostname --socket run/query.sock --output json
  stepward query C02XL0GYJGH5 --policy staff-mac --explain --config stepward.toml    what a policy says, and why
  stepward query - --policy staff-mac --config stepward.toml < serials.txt           for one device a line, 1,000 at most
  stepward query C02XL0GYJGH5 PF3ABCDE --policy staff-mac --watch --config stepward.toml

Exit codes: 0 found, or all allowed, 1 failed, 2 usage, 3 no provider has it, or one is denied, 5 a provider could not say.
With --watch: 5 the service ended, 1 it refused to go on.")]
pub struct QueryArgs {
    /// The device's identifier; with --policy there may be several, and `-` reads them from the standard input
    #[arg(value_name = "DEVICE", required = true)]
    devices: Vec<String>,
    /// What the identifier is: serial, udid, yubico, tpm, hostname, email
    #[arg(long, default_value = "serial")]
    kind: String,
    /// Ask what this policy says of the device, instead of what providers know
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Show every check, and what each provider said
    #[arg(long, requires = "policy")]
    explain: bool,
    /// Go on, and print a line whenever the policy says something else
    #[arg(long, requires = "policy", conflicts_with = "explain")]
    watch: bool,
    /// Ask this provider only; may be repeated
    #[arg(long, conflicts_with = "policy")]
    provider: Vec<String>,
    /// Configuration file, for the folder of the sockets
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
    /// The socket, instead of the configuration's
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Asks, and prints what each provider or the policy says.
///
/// # Errors
/// Where no service answers, or it does not know the kind, the provider or the policy.
pub async fn run(args: QueryArgs, environment: &Environment) -> anyhow::Result<Exit> {
    if let Some(policy) = &args.policy {
        return checks::run(policy, &args, environment).await;
    }
    let [device] = args.devices.as_slice() else { bail!("several devices at once can be asked for with --policy only") };
    let channel = channel(args.socket, args.config.as_deref(), environment, "query.sock").await?;
    let request = LookupRequest { identifier: device.clone(), identifier_kind: args.kind, providers: args.provider };
    let reply = PostureServiceClient::new(channel).lookup(request).await.map_err(said)?;
    let answers = reply.into_inner().answers;
    let lines: Vec<Value> = answers.iter().map(shown).collect();
    match args.output.output {
        Format::Json => print(args.output, &Value::Array(lines), &[])?,
        Format::Table => {
            for (number, line) in lines.iter().enumerate() {
                if number > 0 {
                    writeln!(out())?;
                }
                print(args.output, line, &["provider", "outcome", "detail"])?;
            }
        }
    }
    let any = |outcome| answers.iter().any(|answer| answer.outcome() == outcome);
    Ok(if any(Outcome::Found) {
        Exit::Done
    } else if any(Outcome::Unavailable) {
        Exit::Unavailable
    } else {
        Exit::Denied
    })
}

fn outcome(answer: &ProviderAnswer) -> String {
    answer.outcome().as_str_name().trim_start_matches("OUTCOME_").to_ascii_lowercase()
}

fn shown(answer: &ProviderAnswer) -> Value {
    let data: Value = serde_json::from_str(&answer.data).unwrap_or_default();
    let detail = (!answer.detail.is_empty()).then_some(&answer.detail);
    json!({ "provider": answer.provider, "outcome": outcome(answer), "data": data, "detail": detail })
}

/// A connection to a running service's socket, by its name: `admin.sock`.
pub(super) async fn channel(
    socket: Option<PathBuf>,
    config: Option<&Path>,
    environment: &Environment,
    name: &str,
) -> anyhow::Result<Channel> {
    let path = match socket {
        Some(socket) => environment.directory.join(socket),
        None => listening(config, environment)?.socket(name.strip_suffix(".sock").unwrap_or(name)),
    };
    channel_at(path).await
}

/// Where the service of a configuration listens. Mistakes elsewhere in the configuration are said, and keep nobody from it.
pub(super) fn listening(config: Option<&Path>, environment: &Environment) -> anyhow::Result<Listen> {
    let (listen, mistakes) = Config::listening(config, environment)?;
    if let Some(mistakes) = mistakes {
        writeln!(err(), "warning: the configuration cannot be used, and a running service goes by the one before:\n{mistakes}")?;
    }
    Ok(listen)
}

/// A connection to a socket.
pub(super) async fn channel_at(path: PathBuf) -> anyhow::Result<Channel> {
    let shown = path.display().to_string();
    // Not as unix://…: a path may have letters that a URI cannot.
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://stepward")
        .connect_timeout(Duration::from_secs(3))
        .timeout(ANSWER)
        .connect_with_connector(connector)
        .await
        .map_err(|error| anyhow::Error::msg(innermost(&error)))
        .with_context(|| format!("connect to {shown}: {}", advice(Path::new(&shown))))
}

/// What to do where nobody answers at a socket.
fn advice(socket: &Path) -> String {
    let name = socket.file_name().unwrap_or_default();
    let stem = socket.file_stem().unwrap_or_default();
    // Settings in a unit's Environment= hold for the unit alone.
    let of_units = [Path::new(OF_UNITS).join(stem).join(name), Path::new(OF_UNITS).join(name)];
    match of_units.into_iter().find(|other| other != socket && other.exists()) {
        Some(other) => {
            format!("a service has its sockets elsewhere; write sockets into [listen], or name this one: --socket {}", other.display())
        }
        None => "is `stepward serve` running, and may you use its sockets?".to_owned(),
    }
}

/// Where the units and images have the sockets.
const OF_UNITS: &str = "/run/stepward";

/// How long a command waits for its answer.
pub(super) const ANSWER: Duration = Duration::from_secs(30);

/// What went wrong at the bottom: the layers above say the same again.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().map(ToString::to_string).unwrap_or_default()
}
