//! `stepward healthcheck`: for containers that have no shell and no curl.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Exit, err, out};
use crate::config::{Config, Environment};

/// What `healthcheck` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example: stepward healthcheck --config /etc/stepward/stepward.toml

Exit codes: 0 ready, 1 failed, 2 usage, 5 not ready or no answer.")]
pub struct HealthcheckArgs {
    /// Configuration file, for the address
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
    /// Address and port of the service's metrics and health, instead of the configuration's
    #[arg(long)]
    address: Option<String>,
}

/// Asks `/readyz`.
///
/// # Errors
/// Where the configuration cannot be read.
pub async fn run(args: HealthcheckArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let address = match args.address {
        Some(address) => address,
        None => Config::load(args.config.as_deref(), environment)?.config.listen.admin.to_string(),
    };
    match tokio::time::timeout(Duration::from_secs(3), ask(&address)).await.context("no answer in 3 s").flatten() {
        Ok(true) => Ok(Exit::Done),
        Ok(false) => Ok(Exit::Unavailable),
        Err(error) => {
            writeln!(err(), "error: {error:#}; is `stepward serve` running, and is that its `admin` address?")?;
            Ok(Exit::Unavailable)
        }
    }
}

async fn ask(address: &str) -> anyhow::Result<bool> {
    let (ready, body) = page(address).await?;
    out().write_all(body.as_bytes())?;
    Ok(ready)
}

/// Whether a service is ready, and its page about that.
pub(super) async fn page(address: &str) -> anyhow::Result<(bool, String)> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    stream.write_all(b"GET /readyz?verbose HTTP/1.1\r\nhost: stepward\r\nconnection: close\r\n\r\n").await?;
    let mut reply = String::new();
    stream.take(1 << 20).read_to_string(&mut reply).await?;
    let body = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((reply.starts_with("HTTP/1.1 200 "), body.to_owned()))
}
