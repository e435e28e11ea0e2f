//! `stepward decisions` and `stepward explain`.

use std::io::{self, Read, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use posture::shape::PATH;
use proto::v1::{CapturedHeader, CapturedRequest, DecisionSummary, ExplainRequest, ListDecisionsRequest};
use serde_json::{Value, json};

use super::locks::{ServiceArgs, date, said};
use super::{Exit, Format, err, out, print, table, webhook};
use crate::clock;
use crate::config::{Environment, LARGEST_BODY};
use crate::store::DecisionId;

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
  stepward explain request.http --cert step-ca.crt --config stepward.toml
  stepward explain body.json --headers headers.txt --config stepward.toml

A file has the request as it came: headers, a blank line, and the body byte by byte. It is judged by the running service as
of now, though its time is over; nothing is recorded, and nobody is let in.

Exit codes: 0 shown, 1 failed, 2 usage, 3 there is no such record.")]
pub struct ExplainArgs {
    /// Id of a decision, as `stepward decisions` and the log print it; or the file of a captured request, - for standard input
    #[arg(value_name = "DECISION|FILE")]
    subject: String,
    /// File with the request's headers, one a line; FILE is then the body alone
    #[arg(long, value_name = "FILE")]
    headers: Option<PathBuf>,
    /// A header, as in 'X-Smallstep-Webhook-ID: …'; may be repeated. FILE is then the body alone
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
    /// The caller's certificate, PEM; without it the caller is not checked
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    #[command(flatten)]
    service: ServiceArgs,
}

/// Lists decisions.
///
/// # Errors
/// Where no service answers, or it keeps none.
pub async fn list(args: DecisionsArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut client = args.service.connect(environment).await?;
    let now = clock::now();
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
        writeln!(err(), "there are more: --before {}", last.id)?;
    }
    Ok(Exit::Done)
}

/// Shows the record of one decision, or how a captured request would be decided now.
///
/// # Errors
/// Where no service answers, it keeps no records, or a file cannot be read.
pub async fn explain(args: ExplainArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let request = match args.subject.parse::<DecisionId>() {
        Ok(_) => ExplainRequest { id: args.subject.clone(), request: None },
        Err(_) => ExplainRequest { id: String::new(), request: Some(captured(&args, environment)?) },
    };
    let mut client = args.service.connect(environment).await?;
    let reply = match client.explain(request).await {
        Ok(reply) => reply.into_inner(),
        Err(status) if status.code() == tonic::Code::NotFound => {
            writeln!(err(), "{}", status.message())?;
            return Ok(Exit::Denied);
        }
        Err(status) => return Err(said(status)),
    };
    let record: Value = serde_json::from_str(&reply.record)?;
    match args.service.output.output {
        Format::Json => print(args.service.output, &record, &[])?,
        // Checks and answers nest, so they are shown as they are, a line for each value.
        Format::Table => writeln!(out(), "{record:#}")?,
    }
    Ok(Exit::Done)
}

fn captured(args: &ExplainArgs, environment: &Environment) -> anyhow::Result<CapturedRequest> {
    let path = environment.directory.join(&args.subject);
    let file: Box<dyn Read> = match args.subject.as_str() {
        "-" => Box::new(io::stdin()),
        subject => Box::new(
            crate::files::open(&path).with_context(|| format!("`{subject}` is no id of a decision, and no file that can be read"))?,
        ),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).with_context(|| format!("read {}", args.subject))?;
    ensure!(bytes.len() as u64 <= LARGEST, "{} is longer than any request that step-ca may send: {LARGEST} bytes", args.subject);
    let in_folder = |file: &PathBuf| environment.directory.join(file);
    let mut request = if args.headers.is_none() && args.header.is_empty() {
        message(&bytes).with_context(|| format!("read {}", args.subject))?
    } else {
        CapturedRequest { path: PATH.to_owned(), body: bytes, ..CapturedRequest::default() }
    };
    let headers = webhook::headers(args.headers.as_ref().map(in_folder).as_deref(), &args.header)?;
    request.headers.extend(headers.into_iter().map(|(name, value)| CapturedHeader { name, value }));
    if let Some(file) = &args.cert {
        request.peer_certificate = webhook::peer(&in_folder(file))?.1;
    }
    Ok(request)
}

/// Reads an HTTP/1.1 message. An editor may have added a line to a body whose length its headers say.
fn message(bytes: &[u8]) -> anyhow::Result<CapturedRequest> {
    let blank = |mark: &[u8]| bytes.windows(mark.len()).position(|window| window == mark).map(|at| (at, at + mark.len()));
    let (end, start) = blank(b"\r\n\r\n")
        .into_iter()
        .chain(blank(b"\n\n"))
        .min()
        .context("there is no blank line between headers and body; name a file with the headers by --headers")?;
    let (head, body) = (bytes.get(..end).unwrap_or_default(), bytes.get(start..).unwrap_or_default());
    let head = str::from_utf8(head).context("the headers are no text")?;
    let first = head.lines().next().and_then(|line| line.strip_prefix("POST ")?.split(' ').next());
    let headers: Vec<_> = head.lines().filter_map(|line| webhook::header(line).transpose()).collect::<anyhow::Result<_>>()?;
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let body = length.and_then(|length| body.get(..length)).unwrap_or(body);
    let headers = headers.into_iter().map(|(name, value)| CapturedHeader { name, value }).collect();
    Ok(CapturedRequest { path: first.unwrap_or(PATH).to_owned(), headers, body: body.to_vec(), peer_certificate: Vec::new() })
}

/// Bytes of a file: the largest body that can be configured, and its headers.
const LARGEST: u64 = LARGEST_BODY as u64 + (64 << 10);

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
