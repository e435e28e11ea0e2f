//! Connections of commands to the running service, and its answers in words.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use hyper_util::rt::TokioIo;
use posture::time::UnixTime;
use proto::v1::admin_service_client::AdminServiceClient;
use settings::Environment;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::output::{OutputArgs, err};
use crate::config::{Config, Listen};
use store::rfc3339;

/// Options of every command that asks the service on `admin.sock`: where it is, and the form of the result.
#[derive(Args, Clone, Debug)]
pub(super) struct ServiceArgs {
    /// Configuration file, for the folder of the sockets
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
    /// The socket, instead of the configuration's
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

impl ServiceArgs {
    /// Connects to the service.
    ///
    /// # Errors
    /// No service answers.
    pub(super) async fn connect(&self, environment: &Environment) -> anyhow::Result<AdminServiceClient<Channel>> {
        let channel = channel(self.socket.clone(), self.config.as_deref(), environment, "admin.sock").await?;
        Ok(AdminServiceClient::new(channel).max_decoding_message_size(LARGEST))
    }
}

/// Connects to a socket of a running service by its name, as in `admin.sock`; `socket` is the path where one is given.
///
/// # Errors
/// Where the configuration cannot be read, or nobody answers.
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

/// Reads where the service of a configuration listens. Mistakes elsewhere in the configuration are only printed.
///
/// # Errors
/// Where `[listen]` itself cannot be read.
pub(super) fn listening(config: Option<&Path>, environment: &Environment) -> anyhow::Result<Listen> {
    let (listen, mistakes) = Config::listening(config, environment)?;
    if let Some(mistakes) = mistakes {
        writeln!(err(), "warning: the configuration cannot be used, and a running service goes by the one before:\n{mistakes}")?;
    }
    Ok(listen)
}

/// Connects to a socket at a path.
///
/// # Errors
/// Where nobody answers, with what to look at.
pub(super) async fn channel_at(path: PathBuf) -> anyhow::Result<Channel> {
    let shown = path.display().to_string();
    // The path is no unix:// URI: it may have letters that a URI cannot.
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

/// Returns what to do where nobody answers at a socket.
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

/// Returns a time in milliseconds since the epoch, for people.
pub(super) fn date(millis: i64) -> String {
    rfc3339(UnixTime::from_nanos(millis.saturating_mul(1_000_000)))
}

/// Returns the error that the service answered, without the words of gRPC.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn said(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        // tonic reports the end of a channel's time by these words.
        tonic::Code::Cancelled | tonic::Code::DeadlineExceeded if status.message() == "Timeout expired" => anyhow::anyhow!(
            "the service took the call and gave no answer in {} s: it is stopped or overloaded, and whether it did what was asked is not \
             known; once it answers, look, as with `stepward locks`",
            ANSWER.as_secs()
        ),
        _ => anyhow::anyhow!("{}", status.message()),
    }
}

/// Returns the message of the innermost error: the layers above say the same again.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().map(ToString::to_string).unwrap_or_default()
}

/// Folder in which the units and images have the sockets.
const OF_UNITS: &str = "/run/stepward";

/// Longest time that a command waits for its answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Largest answer that is taken, in bytes: a page of rulings with the longest texts, or of decisions.
const LARGEST: usize = 8 << 20;
