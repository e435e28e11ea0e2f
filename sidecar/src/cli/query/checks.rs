//! `stepward query --policy`: one device, many, or many for as long as somebody watches.

use std::io::{self, Read, Write as _};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use posture::shown::cell;
use proto::v1::posture_service_client::PostureServiceClient;
use proto::v1::{BatchCheckRequest, CheckRequest, CheckResponse, Decision, WatchRequest};
use serde_json::{Map, Value, json};
use settings::Environment;
use tonic::transport::Channel;

use super::args::{QueryArgs, SERIAL, outcome};
use crate::cli::exit::Exit;
use crate::cli::output::{Format, err, out, print, table};
use crate::cli::service::{channel, said};
use crate::cli::words;

/// Asks what a policy says of the devices.
pub(super) async fn run(policy: &str, args: &QueryArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let kind = args.kind.clone().unwrap_or_else(|| SERIAL.to_owned());
    let checks: Vec<CheckRequest> = devices(&args.devices)?
        .into_iter()
        .map(|identifier| CheckRequest { policy: policy.to_owned(), identifier, identifier_kind: kind.clone(), explain: args.explain })
        .collect();
    let channel = channel(args.socket.clone(), args.config.as_deref(), environment, "query.sock").await?;
    let mut client = PostureServiceClient::new(channel).max_decoding_message_size(LARGEST);
    if args.watch {
        return watch(&mut client, checks, args).await;
    }
    let batch = args.devices.len() > 1 || args.devices.iter().any(|device| device == STDIN);
    let responses = match checks.as_slice() {
        [check] if !batch => vec![client.check(check.clone()).await.map_err(said)?.into_inner()],
        _ => client.batch_check(BatchCheckRequest { checks: checks.clone() }).await.map_err(said)?.into_inner().results,
    };
    let shown = checks.iter().zip(&responses).map(|(check, response)| shown(check, response));
    match args.output.output {
        Format::Json if batch => print(args.output, &shown.map(Value::Object).collect(), &[])?,
        Format::Table if batch && !args.explain => {
            table(&shown.map(Value::Object).collect::<Vec<_>>(), &["device", "decision", "code", "message"])?;
        }
        Format::Json => shown.map(Value::Object).try_for_each(|value| print(args.output, &value, &[]))?,
        Format::Table => {
            for (number, fields) in shown.enumerate() {
                if number > 0 {
                    writeln!(out())?;
                }
                in_full(args, fields)?;
            }
        }
    }
    let any = |decision| responses.iter().any(|response| response.decision() == decision);
    // The exit code 0 is for an allow of every device, and never for an answer that this release does not know.
    let all_allowed = responses.len() == checks.len() && responses.iter().all(|response| response.decision() == Decision::Allow);
    Ok(if any(Decision::Deny) {
        Exit::Denied
    } else if all_allowed {
        Exit::Done
    } else {
        Exit::Unavailable
    })
}

/// Returns the devices that the command line names, with those of the standard input in the place of `-`.
fn devices(named: &[String]) -> anyhow::Result<Vec<String>> {
    let mut devices = Vec::new();
    for name in named {
        if name != STDIN {
            devices.push(name.clone());
            continue;
        }
        let text = input(io::stdin().lock())?;
        devices.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    if devices.is_empty() {
        bail!("the standard input names no device");
    }
    Ok(devices)
}

/// Returns the whole of an input, which has [`LONGEST_INPUT`] bytes at most.
fn input(from: impl Read) -> anyhow::Result<String> {
    let mut text = String::new();
    from.take(LONGEST_INPUT + 1).read_to_string(&mut text).context("read the standard input")?;
    if u64::try_from(text.len()).is_ok_and(|length| length > LONGEST_INPUT) {
        bail!("the standard input has more than {LONGEST_INPUT} bytes: ask for fewer devices at once");
    }
    Ok(text)
}

/// Prints a line for each device when it begins, and then for each answer that is another one than before.
async fn watch(client: &mut PostureServiceClient<Channel>, checks: Vec<CheckRequest>, args: &QueryArgs) -> anyhow::Result<Exit> {
    let mut changes = client.watch(WatchRequest { checks: checks.clone() }).await.map_err(said)?.into_inner();
    loop {
        let change = match changes.message().await {
            Ok(Some(change)) => change,
            Ok(None) => {
                writeln!(err(), "the service ended")?;
                return Ok(Exit::Unavailable);
            }
            // A service that was killed breaks the stream off.
            Err(status) if matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled) => {
                writeln!(err(), "the service ended: {}", status.message())?;
                return Ok(Exit::Unavailable);
            }
            Err(status) => return Err(said(status)),
        };
        let check = usize::try_from(change.number).ok().and_then(|number| checks.get(number));
        let (Some(check), Some(response)) = (check, change.result) else { continue };
        let at = humantime::format_rfc3339_seconds(SystemTime::now());
        let mut value = shown(check, &response);
        match args.output.output {
            Format::Json => {
                value.insert("at".to_owned(), at.to_string().into());
                print(args.output, &Value::Object(value), &[])?;
            }
            Format::Table => {
                let parts = [word(&response), response.code, response.message, response.remediation_url];
                let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
                writeln!(out(), "{at}  {}  {}", cell(&check.identifier), cell(&parts.join("  ")))?;
            }
        }
    }
}

fn word(response: &CheckResponse) -> String {
    response.decision().as_str_name().trim_start_matches("DECISION_").to_ascii_lowercase()
}

/// Returns one answer as JSON; what it does not have is null.
fn shown(check: &CheckRequest, response: &CheckResponse) -> Map<String, Value> {
    let text = |text: &String| if text.is_empty() { Value::Null } else { text.clone().into() };
    let parsed = |text: &String| serde_json::from_str::<Value>(text).unwrap_or_default();
    let mut fields = vec![
        ("device", check.identifier.clone().into()),
        ("policy", check.policy.clone().into()),
        ("decision", word(response).into()),
        ("code", text(&response.code)),
        ("message", text(&response.message)),
        ("remediation_url", text(&response.remediation_url)),
        ("data", parsed(&response.data)),
    ];
    if check.explain {
        let checks = response.checks.iter().map(|check| {
            // The fields are those of a record of a decision, which `explain` shows: with the name under `check`, and under `code`
            // the denial.
            let named = [("check", check.code.as_str().into()), ("code", text(&check.denial)), ("result", check.result.as_str().into())];
            let said = [("expression", text(&check.expression)), ("wanted", parsed(&check.wanted)), ("detail", text(&check.detail))];
            let said = said.into_iter().filter(|(_, value)| !value.is_null());
            named
                .into_iter()
                .chain(said)
                .chain([("inputs", parsed(&check.inputs))])
                .map(|(name, value)| (name.to_owned(), value))
                .collect::<Value>()
        });
        let answers = response.answers.iter().map(
            |answer| json!({ "provider": answer.provider, "outcome": outcome(answer), "source": answer.source, "age_ms": answer.age_ms }),
        );
        fields.extend([("checks", checks.collect()), ("answers", answers.collect())]);
    }
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Prints one answer for a person, and under it why.
fn in_full(args: &QueryArgs, mut fields: Map<String, Value>) -> anyhow::Result<()> {
    let rows = |value: Option<Value>| if let Some(Value::Array(rows)) = value { rows } else { Vec::new() };
    let [checks, answers] = ["checks", "answers"].map(|name| rows(fields.remove(name)));
    print(args.output, &Value::Object(fields), &["device", "policy", "decision", "code", "message", "remediation_url"])?;
    for (number, check) in words::checks(&checks).iter().enumerate() {
        if number == 0 {
            writeln!(out())?;
        }
        writeln!(out(), "check     {}", cell(check))?;
    }
    if !answers.is_empty() {
        writeln!(out())?;
        table(&answers, &["provider", "outcome", "source", "age_ms"])?;
    }
    Ok(())
}

/// Argument that stands for the standard input.
const STDIN: &str = "-";

/// Longest standard input in bytes: far more than the service takes devices at once.
const LONGEST_INPUT: u64 = 1 << 20;

/// Largest answer that is taken, in bytes: a thousand devices with everything that was looked at.
const LARGEST: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_of_just_so_many_bytes_is_taken() {
        let longest = usize::try_from(LONGEST_INPUT).unwrap();
        assert_eq!(input("a".repeat(longest).as_bytes()).unwrap().len(), longest);
        let refused = input("a".repeat(longest + 1).as_bytes()).unwrap_err().to_string();
        assert!(refused.contains("ask for fewer devices"), "{refused}");
    }
}
