//! `stepward backup`: a copy of the store that can be put in its place, whether the service runs or not.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use settings::Environment;

use super::exit::Exit;
use super::output::{Format, OutputArgs, out};
use crate::config::Config;

/// What `backup` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward backup /var/backups/stepward.db --config /etc/stepward/stepward.toml
  stepward backup \"stepward-$(date +%F).db\" --config stepward.toml --output json

SQLite itself makes the copy, as of one moment, while the service goes on. Run it as the service's user. FILE must not be there
yet, and is for that user alone: it has devices, locks and decisions. docs/locks.md says how to put it back.

Exit codes: 0 written, 1 failed, 2 usage.")]
pub struct BackupArgs {
    /// File to write
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Configuration file, for the place of the store
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Writes the copy of the store.
///
/// # Errors
/// Where there is no store, the file is there, or the copy cannot be written or read again.
pub async fn run(args: BackupArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let config = Config::load(args.config.as_deref(), environment)?.config;
    if config.store.server.is_some() {
        bail!("the store is on a server, which pg_dump backs up: docs/locks.md, \"Back up a store on PostgreSQL\"");
    }
    let Some(path) = config.store.path else { bail!("there is no store: [store] enabled is false") };
    let file = environment.directory.join(&args.file);
    let bytes =
        store::back_up(&path, &file).await.with_context(|| format!("write a backup of {} into {}", path.display(), file.display()))?;
    match args.output.output {
        Format::Table => writeln!(out(), "{} bytes are in {}", bytes, file.display())?,
        Format::Json => writeln!(out(), "{}", json!({ "file": file.display().to_string(), "bytes": bytes }))?,
    }
    Ok(Exit::Done)
}
