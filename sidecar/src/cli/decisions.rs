//! `stepward decisions` and `stepward explain`.

use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

use clap::Args;
use posture::time::UnixTime;
use proto::v1::{DecisionSummary, ExplainRequest, ListDecisionsRequest};
use serde_json::{Value, json};

use super::locks::{ServiceArgs, date, said};
use super::{Exit, Format, print, table};
use crate::config::Environment;

/// What `decisions` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward decisions --config stepward.toml
  stepward decisions --device C02XL0GYJGH5 --since 2d --config stepward.toml --output json

Exit codes: 0 listed, 1 failed, 2 usage.")]
pub struct DecisionsArgs {
    /// Only those about this identifier
    #[arg(long, value_name = "IDENTIFIER")]
    device: Option<String>,
    /// Only those of the last while, as in 2h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// How many at most, newest first
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Those before this one, to go on where a list ended
    #[arg(long, value_name = "ID")]
    before: Option<String>,
    #[command(flatten)]
    service: ServiceArgs,
}

/// What `explain` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward explain 01JD8Q2W3E4R5T6Y7Z8A9B0CDE --config stepward.toml

Exit codes: 0 shown, 1 failed, 2 usage, 3 there is no such record.")]
pub struct ExplainArgs {
    /// Id of the decision, as `stepward decisions` and the log print it
    #[arg(value_name = "DECISION")]
    id: String,
    #[command(flatten)]
    service: ServiceArgs,
}

/// Lists decisions.
///
/// # Errors
/// Where no service answers, or it keeps none.
pub async fn list(args: DecisionsArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut client = args.service.connect(environment).await?;
    let now = UnixTime::from_system(SystemTime::now());
    let since = args.since.map(|since| now.saturating_sub(since).as_nanos().div_euclid(1_000_000).max(1)).unwrap_or_default();
    let request = ListDecisionsRequest {
        device: args.device.unwrap_or_default(),
        since,
        limit: args.limit,
        before_id: args.before.unwrap_or_default(),
    };
    let reply = client.list_decisions(request).await.map_err(said)?.into_inner();
    let shown: Vec<Value> = reply.decisions.iter().map(shown).collect();
    match args.service.output.output {
        Format::Json => print(args.service.output, &Value::Array(shown), &[])?,
        Format::Table => table(&shown, &["id", "at", "decision", "code", "device", "webhook"])?,
    }
    if let Some(last) = reply.decisions.last().filter(|_| reply.more) {
        writeln!(io::stderr(), "there are more: --before {}", last.id)?;
    }
    Ok(Exit::Done)
}

/// Shows the record of one decision.
///
/// # Errors
/// Where no service answers, or it keeps no records.
pub async fn explain(args: ExplainArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut client = args.service.connect(environment).await?;
    let reply = match client.explain(ExplainRequest { id: args.id }).await {
        Ok(reply) => reply.into_inner(),
        Err(status) if status.code() == tonic::Code::NotFound => {
            writeln!(io::stderr(), "{}", status.message())?;
            return Ok(Exit::Denied);
        }
        Err(status) => return Err(said(status)),
    };
    let record: Value = serde_json::from_str(&reply.record)?;
    match args.service.output.output {
        Format::Json => print(args.service.output, &record, &[])?,
        // Checks and answers nest, so they are shown as they are, a line for each value.
        Format::Table => writeln!(io::stdout(), "{record:#}")?,
    }
    Ok(Exit::Done)
}

fn shown(summary: &DecisionSummary) -> Value {
    json!({
        "id": summary.id,
        "at": date(summary.at),
        "device": summary.device,
        "webhook": summary.webhook,
        "decision": summary.decision,
        "code": summary.code,
    })
}
