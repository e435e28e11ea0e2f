//! `stepward query`: what providers know of a device, and in `checks` what a policy says of it.

mod args;
mod checks;

pub use args::QueryArgs;

use std::io::Write as _;

use anyhow::bail;
use posture::identity::IdentifierKind;
use proto::v1::posture_service_client::PostureServiceClient;
use proto::v1::{LookupRequest, Outcome, ProviderAnswer};
use serde_json::{Value, json};
use settings::Environment;

use super::exit::Exit;
use super::output::{Format, err, out, print};
use super::service::{channel, said};
use args::{SERIAL, outcome};

/// Asks about devices, and prints what each provider or the policy says.
///
/// # Errors
/// Where no service answers, or it does not know the kind, the provider or the policy.
pub async fn run(args: QueryArgs, environment: &Environment) -> anyhow::Result<Exit> {
    if let Some(policy) = &args.policy {
        return checks::run(policy, &args, environment).await;
    }
    let [device] = args.devices.as_slice() else { bail!("several devices at once can be asked for with --policy only") };
    let channel = channel(args.socket, args.config.as_deref(), environment, "query.sock").await?;
    let mut client = PostureServiceClient::new(channel);
    let mut lookup = async |kind: &str| {
        let request = LookupRequest { identifier: device.clone(), identifier_kind: kind.to_owned(), providers: args.provider.clone() };
        client.lookup(request).await.map(|reply| reply.into_inner().answers).map_err(said)
    };
    let mut answers = lookup(args.kind.as_deref().unwrap_or(SERIAL)).await?;
    // No provider is asked by a serial number: without --kind, the identifier may well be something else.
    if args.kind.is_none() && nobody(&answers) {
        for kind in IdentifierKind::ALL.iter().map(|kind| kind.as_str()).filter(|kind| *kind != SERIAL) {
            let others = lookup(kind).await?;
            if !nobody(&others) {
                writeln!(err(), "note: no provider is asked by a serial number; asked with --kind {kind}")?;
                answers = others;
                break;
            }
        }
    }
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

/// Returns whether no provider could be asked by what was given.
fn nobody(answers: &[ProviderAnswer]) -> bool {
    !answers.is_empty() && answers.iter().all(|answer| answer.outcome() == Outcome::InvalidIdentifier)
}

fn shown(answer: &ProviderAnswer) -> Value {
    let data: Value = serde_json::from_str(&answer.data).unwrap_or_default();
    let detail = (!answer.detail.is_empty()).then_some(&answer.detail);
    json!({ "provider": answer.provider, "outcome": outcome(answer), "data": data, "detail": detail })
}
