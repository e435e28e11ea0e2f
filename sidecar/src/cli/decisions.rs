//! `stepward decisions` and `stepward explain`.

use std::collections::BTreeMap;
use std::io::{self, Read, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use posture::shape::PATH;
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::{CapturedHeader, CapturedRequest, DecisionSummary, ExplainRequest, ListDecisionsRequest};
use serde_json::{Value, json};
use settings::{Environment, duration};
use store::DecisionId;
use tonic::transport::Channel;

use super::exit::Exit;
use super::output::{Format, err, out, print, table};
use super::service::{ServiceArgs, date, said};
use super::{request, words};
use engine::webhooks::LARGEST_BODY;
use posture::shown::cell;

/// What `decisions` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward decisions --config stepward.toml
  stepward decisions --device C02XL0GYJGH5 --since 2d --config stepward.toml --output json
  stepward decisions --decision deny --code group_required --since 1h --config stepward.toml
  stepward decisions --follow --config stepward.toml               each as it is made, until Ctrl+C

Exit codes: 0 listed, 1 failed, 2 usage.")]
pub struct DecisionsArgs {
    /// Only those about this identifier
    #[arg(long, value_name = "IDENTIFIER")]
    device: Option<String>,
    /// Only those of the last while, as in 2h
    #[arg(long, value_name = "DURATION", value_parser = since)]
    since: Option<Duration>,
    /// Only those of the webhook with this id or name; an id that is gone counts as long as there are decisions of it
    #[arg(long, value_name = "WEBHOOK")]
    webhook: Option<String>,
    /// Only those that came out so
    #[arg(long, value_name = "DECISION", value_parser = ["allow", "deny", "refuse"])]
    decision: Option<String>,
    /// Only those with this code of a denial or cause of a refusal, as docs/codes.md and policies have them
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// Print each as it is made, the newest last, and go on until it is ended; --output json prints one a line
    #[arg(long, conflicts_with_all = ["before", "limit"])]
    pub(super) follow: bool,
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

What came of it and why is said in words; --output json has the whole record.
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

fn since(text: &str) -> Result<Duration, String> {
    duration(text, "2h, 3d or 30m")
}

/// Lists decisions.
///
/// # Errors
/// Where no service answers, or it keeps none.
pub async fn list(args: DecisionsArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut client = args.service.connect(environment).await?;
    let now = clock::now();
    let since = args.since.map(|since| now.saturating_sub(since).as_millis().max(1)).unwrap_or_default();
    let request = ListDecisionsRequest {
        device: args.device.unwrap_or_default(),
        since,
        limit: args.limit,
        before_id: args.before.unwrap_or_default(),
        webhook: args.webhook.unwrap_or_default(),
        decision: args.decision.unwrap_or_default(),
        code: args.code.unwrap_or_default(),
    };
    if args.follow {
        let since = if since == 0 { now.as_millis() } else { since };
        return follow(&mut client, ListDecisionsRequest { since, ..request }, args.service.output.output).await;
    }
    let reply = client.list_decisions(request).await.map_err(said)?.into_inner();
    let shown: Vec<Value> = reply.decisions.iter().map(shown).collect();
    match args.service.output.output {
        Format::Json => print(args.service.output, &Value::Array(shown), &[])?,
        Format::Table => {
            let rows: Vec<Value> =
                reply.decisions.iter().zip(shown).map(|(summary, row)| named(row, &summary.webhook, &summary.webhook_name)).collect();
            table(&rows, &["id", "at", "decision", "code", "device", "webhook"])?;
        }
    }
    if let Some(last) = reply.decisions.last().filter(|_| reply.more) {
        writeln!(err(), "there are more: --before {}", last.id)?;
    }
    Ok(Exit::Done)
}

/// Prints decisions as they are made.
///
/// Decisions are asked for anew every second. Their ids sort by the time of the decision and not by when it was written, so a
/// little of what was seen is asked for again, and told by its id.
async fn follow(client: &mut AdminServiceClient<Channel>, request: ListDecisionsRequest, format: Format) -> anyhow::Result<Exit> {
    let (mut since, mut seen, mut began) = (request.since, BTreeMap::new(), false);
    loop {
        let (mut new, mut before_id) = (Vec::new(), String::new());
        loop {
            let page = ListDecisionsRequest { since, limit: MOST, before_id, ..request.clone() };
            let reply = match client.list_decisions(page).await {
                Ok(reply) => reply.into_inner(),
                // A reload has removed the webhook or the code that is waited for, and another reload may bring it back.
                Err(status) if began && status.code() == tonic::Code::InvalidArgument => break,
                Err(status) => return Err(said(status)),
            };
            began = true;
            before_id = reply.decisions.last().map(|last| last.id.clone()).unwrap_or_default();
            new.extend(reply.decisions.into_iter().filter(|one| !seen.contains_key(&one.id)));
            if !reply.more {
                break;
            }
        }
        for one in new.iter().rev() {
            match format {
                Format::Json => writeln!(out(), "{}", shown(one))?,
                Format::Table => {
                    let webhook = words::webhook_shown(&one.webhook, &one.webhook_name);
                    let parts = [date(one.at), one.decision.clone(), one.code.clone(), one.device.clone(), webhook, one.id.clone()];
                    let parts: Vec<_> = parts.iter().map(|part| if part.is_empty() { "-".into() } else { cell(part) }).collect();
                    writeln!(out(), "{}", parts.join("  "))?;
                }
            }
        }
        out().flush()?;
        if let Some(newest) = new.iter().map(|one| one.at).max() {
            since = since.max(newest.saturating_sub(AGAIN));
        }
        seen.extend(new.into_iter().map(|one| (one.id, one.at)));
        seen.retain(|_, at| *at >= since);
        tokio::time::sleep(LOOK).await;
    }
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
    let mut record: Value = serde_json::from_str(&reply.record)?;
    if let (Value::Object(fields), false) = (&mut record, reply.webhook_name.is_empty()) {
        fields.insert("webhook_name".to_owned(), reply.webhook_name.into());
    }
    match args.service.output.output {
        Format::Json => print(args.service.output, &record, &[])?,
        Format::Table => out().write_all(words::explained(&record).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn captured(args: &ExplainArgs, environment: &Environment) -> anyhow::Result<CapturedRequest> {
    let path = environment.directory.join(&args.subject);
    let file: Box<dyn Read> = match args.subject.as_str() {
        "-" => Box::new(io::stdin()),
        subject => Box::new(
            settings::files::open(&path).with_context(|| format!("`{subject}` is no id of a decision, and no file that can be read"))?,
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
    let headers = request::headers(args.headers.as_ref().map(in_folder).as_deref(), &args.header)?;
    request.headers.extend(headers.into_iter().map(|(name, value)| CapturedHeader { name, value }));
    if let Some(file) = &args.cert {
        request.peer_certificate = request::peer(&in_folder(file))?.1;
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
    let headers: Vec<_> = head.lines().filter_map(|line| request::header(line).transpose()).collect::<anyhow::Result<_>>()?;
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let body = length.and_then(|length| body.get(..length)).unwrap_or(body);
    let headers = headers.into_iter().map(|(name, value)| CapturedHeader { name, value }).collect();
    Ok(CapturedRequest { path: first.unwrap_or(PATH).to_owned(), headers, body: body.to_vec(), peer_certificate: Vec::new() })
}

/// Returns a row whose webhook is shown by its name as well.
fn named(mut row: Value, id: &str, name: &str) -> Value {
    if let Value::Object(fields) = &mut row {
        fields.insert("webhook".to_owned(), words::webhook_shown(id, name).into());
    }
    row
}

/// Time after which decisions are asked for anew.
const LOOK: Duration = Duration::from_secs(1);

/// Time before the newest decision that is asked for again, in milliseconds.
const AGAIN: i64 = 10_000;

/// Largest number of decisions of one answer, as the service gives them.
const MOST: u32 = 1000;

/// Largest file in bytes: the largest body that can be configured, and its headers.
const LARGEST: u64 = LARGEST_BODY as u64 + (64 << 10);

fn shown(summary: &DecisionSummary) -> Value {
    json!({
        "id": summary.id,
        "at": date(summary.at),
        "device": summary.device,
        "webhook": summary.webhook,
        "webhook_name": (!summary.webhook_name.is_empty()).then_some(&summary.webhook_name),
        "decision": summary.decision,
        "code": summary.code,
    })
}
