//! `stepward cache ls` and `stepward cache purge`.

use std::io::Write as _;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use proto::v1::{CachedDevice, ListCacheRequest, ListCacheResponse, ProviderCache, PurgeCacheRequest, PurgeCacheResponse};
use serde_json::{Value, json};
use settings::Environment;

use super::exit::Exit;
use super::output::{Format, err, print, table};
use super::service::{ServiceArgs, said};
use posture::shown::cell;

/// `stepward cache …`
#[derive(Clone, Debug, Subcommand)]
pub enum CacheCommand {
    /// List what is remembered
    Ls(LsArgs),
    /// Forget a device or everything, so that the management is asked again
    Purge(PurgeArgs),
}

/// What `cache ls` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward cache ls --config stepward.toml
  stepward cache ls --provider jamf --limit 10000 --config stepward.toml --output json

A record is listed under each kind of identifier that it is asked for by. One that is `dropped` is asked for again.
Files are not listed: they have no cache.
Exit codes: 0 listed, 1 failed, 2 usage.")]
pub struct LsArgs {
    /// Of this provider only
    #[arg(long)]
    provider: Option<String>,
    /// How many of each provider at most
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    #[command(flatten)]
    service: ServiceArgs,
}

/// What `cache purge` takes.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("what").required(true).args(["device", "all"]))]
#[command(after_help = "Examples:
  stepward cache purge C02XL0GYJGH5 --config stepward.toml
  stepward cache purge --all --provider jamf --config stepward.toml

With --all the managements are asked for every device again, as fast as their limits allow.
The other services on the same store forget it too; where they do not know of it yet, a warning says so.
While a management cannot be reached, nothing takes the place of what was forgotten.
Exit codes: 0 forgotten, or was not remembered, 1 failed, 2 usage.")]
pub struct PurgeArgs {
    /// The device's identifier
    device: Option<String>,
    /// What the identifier is: serial, udid, yubico, tpm, hostname, email
    #[arg(long, default_value = "serial", conflicts_with = "all")]
    kind: String,
    /// Forget every device
    #[arg(long, conflicts_with = "device")]
    all: bool,
    /// At this provider only
    #[arg(long)]
    provider: Option<String>,
    #[command(flatten)]
    service: ServiceArgs,
}

/// Runs `cache ls` or `cache purge`.
///
/// # Errors
/// Where no service answers, or it has no such provider.
pub async fn run(command: CacheCommand, environment: &Environment) -> anyhow::Result<Exit> {
    match command {
        CacheCommand::Ls(args) => list(args, environment).await,
        CacheCommand::Purge(args) => purge(args, environment).await,
    }
}

async fn list(args: LsArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut client = args.service.connect(environment).await?;
    let request = ListCacheRequest { provider: args.provider.unwrap_or_default(), limit: args.limit };
    let ListCacheResponse { caches, warnings } = client.list_cache(request).await.map_err(said)?.into_inner();
    match args.service.output.output {
        Format::Json => print(args.service.output, &caches.iter().map(in_full).collect(), &[])?,
        Format::Table => {
            let rows: Vec<Value> =
                caches.iter().flat_map(|cache| cache.devices.iter().map(|device| row(&cache.provider, device))).collect();
            table(&rows, &["provider", "kind", "identifier", "age", "state"])?;
            for cache in &caches {
                writeln!(err(), "{}", summary(cache))?;
            }
            if caches.is_empty() {
                writeln!(err(), "no provider of this service has a cache")?;
            }
        }
    }
    for warning in &warnings {
        writeln!(err(), "warning: {}", cell(warning))?;
    }
    Ok(Exit::Done)
}

async fn purge(args: PurgeArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut client = args.service.connect(environment).await?;
    let kind = if args.device.is_some() { args.kind } else { String::new() };
    let device = match args.device.as_deref().map(str::trim) {
        // The service takes an empty identifier for every device, which has to be asked for by --all.
        Some("") => anyhow::bail!("the identifier is empty"),
        device => device.unwrap_or_default().to_owned(),
    };
    let request = PurgeCacheRequest { provider: args.provider.unwrap_or_default(), device, identifier_kind: kind };
    let PurgeCacheResponse { caches, not_told } = client.purge_cache(request).await.map_err(said)?.into_inner();
    let rows: Vec<Value> = caches.iter().map(|cache| json!({ "provider": cache.provider, "records": cache.records })).collect();
    match args.service.output.output {
        Format::Json => print(args.service.output, &Value::Array(rows), &[])?,
        Format::Table => table(&rows, &["provider", "records"])?,
    }
    if not_told.is_empty() {
        return Ok(Exit::Done);
    }
    writeln!(err(), "warning: it is forgotten here, and {}", cell(&not_told))?;
    Ok(Exit::Failed)
}

fn in_full(cache: &ProviderCache) -> Value {
    let device = |device: &CachedDevice| {
        json!({
            "identifier": device.identifier,
            "kind": device.identifier_kind,
            "age_ms": device.age_ms,
            "dropped": device.dropped,
        })
    };
    json!({
        "provider": cache.provider,
        "records": cache.records,
        "circuit": cache.circuit,
        "answered_ago_ms": cache.answered.then_some(cache.answered_ago_ms),
        "devices": cache.devices.iter().map(device).collect::<Vec<_>>(),
    })
}

fn row(provider: &str, device: &CachedDevice) -> Value {
    json!({
        "provider": provider,
        "kind": device.identifier_kind,
        "identifier": device.identifier,
        "age": age(device.age_ms),
        "state": if device.dropped { "dropped" } else { "remembered" },
    })
}

fn summary(cache: &ProviderCache) -> String {
    let shown = match cache.devices.len() {
        all if u64::try_from(all).is_ok_and(|all| all >= cache.records) => String::new(),
        some => format!(", {some} of them shown"),
    };
    let answered = if cache.answered { format!("answered {} ago", age(cache.answered_ago_ms)) } else { "has not answered yet".to_owned() };
    let circuit = match cache.circuit.as_str() {
        "closed" => "",
        "half_open" => ", and is being tried again after failures",
        _ => ", and is left alone for a moment after failures",
    };
    format!("{}: {} records{shown}; it {answered}{circuit}", cache.provider, cache.records)
}

/// Returns an age in whole seconds, which is what a person looks for.
fn age(millis: u64) -> String {
    humantime::format_duration(Duration::from_secs(millis / 1000)).to_string()
}
