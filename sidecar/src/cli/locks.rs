//! `stepward lock`, `unlock`, `exempt`, `unexempt`, `locks`.

use std::io::Write as _;
use std::time::Duration;

use clap::{ArgGroup, Args};
use posture::shown::cell;
use proto::v1::{ExemptRequest, ListLocksRequest, LockRequest, Ruling, RulingKind, UnexemptRequest, UnlockRequest};
use serde_json::{Value, json};
use settings::{Environment, duration};

use super::exit::Exit;
use super::output::{Format, OutputArgs, err, print, table};
use super::service::{ServiceArgs, date, said};

/// What `lock` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward lock C02XL0GYJGH5 --reason 'reported stolen, ticket 1234' --config stepward.toml
  stepward lock 00008030-001A2B3C4D5E6F70 --reason 'under repair' --ttl 8h --config stepward.toml

A device that no provider knows is locked all the same, with a warning: the identifier may be spelled wrong.
Exit codes: 0 locked, 1 failed, or locked until the next start or not yet everywhere, 2 usage.")]
pub struct LockArgs {
    /// Any identifier of the device
    device: String,
    /// What the identifier is: serial, udid, yubico, tpm, hostname, email; any of them where it is left out
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Why, for whoever finds the lock later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// How long, as in 8h; without it until `stepward unlock`
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    ttl: Option<Duration>,
    #[command(flatten)]
    service: ServiceArgs,
}

/// What `exempt` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward exempt C02XL0GYJGH5 --ttl 4h --reason 'MDM is down, ticket 1234' --config stepward.toml

A lock wins over an exemption. 30 days at most. Only requests that state this identifier, of this kind, are let pass.
Exit codes: 0 exempt, 1 failed, or exempt until the next start or not yet everywhere, 2 usage.")]
pub struct ExemptArgs {
    /// The identifier that the device's requests state
    device: String,
    /// What the identifier is: serial, udid, yubico, tpm, hostname, email
    #[arg(long, value_name = "KIND", default_value = "serial")]
    kind: String,
    /// How long, as in 4h
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    ttl: Duration,
    /// Why, for whoever asks later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    service: ServiceArgs,
}

/// What `unlock` and `unexempt` take.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("which").required(true).args(["device", "id"]))]
#[command(after_help = "Examples:
  stepward unlock C02XL0GYJGH5 --config stepward.toml
  stepward unlock --id 01JD8Q2W3E4R5T6Y7Z8A9B0CDE --config stepward.toml
  stepward unexempt C02XL0GYJGH5 --config stepward.toml

What was made with --kind is taken back with the same --kind, or by its id.

Exit codes: 0 taken back, 1 failed, or taken back until the next start or not yet everywhere, 2 usage, 3 there was nothing to take back.")]
pub struct TakeBackArgs {
    /// The identifier that it was made by
    device: Option<String>,
    /// The --kind that it was made with
    #[arg(long, value_name = "KIND", conflicts_with = "id")]
    kind: Option<String>,
    /// The id of one, as `stepward locks` prints it
    #[arg(long, value_name = "ID", conflicts_with = "device")]
    id: Option<String>,
    #[command(flatten)]
    service: ServiceArgs,
}

/// What `locks` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward locks --config stepward.toml
  stepward locks --config stepward.toml --output json

Exit codes: 0 listed, 1 failed, 2 usage.")]
pub struct LocksArgs {
    #[command(flatten)]
    service: ServiceArgs,
}

/// Locks a device.
///
/// # Errors
/// Where no service answers, or it refuses.
pub async fn lock(args: LockArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut client = args.service.connect(environment).await?;
    let ttl_seconds = args.ttl.map(|ttl| ttl.as_secs()).unwrap_or_default();
    let request = LockRequest { device: args.device, reason: args.reason, ttl_seconds, identifier_kind: args.kind.unwrap_or_default() };
    let reply = client.lock(request).await.map_err(said)?.into_inner();
    made(args.service.output, reply.ruling.as_ref(), &reply.not_known, (&reply.not_kept, &reply.not_heard))
}

/// Exempts a device.
///
/// # Errors
/// Where no service answers, or it refuses.
pub async fn exempt(args: ExemptArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut client = args.service.connect(environment).await?;
    let request = ExemptRequest { device: args.device, reason: args.reason, ttl_seconds: args.ttl.as_secs(), identifier_kind: args.kind };
    let reply = client.exempt(request).await.map_err(said)?.into_inner();
    made(args.service.output, reply.ruling.as_ref(), &reply.not_known, (&reply.not_kept, &reply.not_heard))
}

/// Takes back the locks of a device.
///
/// # Errors
/// Where no service answers, or it refuses.
pub async fn unlock(args: TakeBackArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut client = args.service.connect(environment).await?;
    let (device, identifier_kind, id) = args.which();
    let reply = client.unlock(UnlockRequest { device, identifier_kind, id }).await.map_err(said)?.into_inner();
    taken_back(&args, &reply.rulings, &reply.others, ("lock", &reply.not_heard))
}

/// Takes back the exemptions of a device.
///
/// # Errors
/// Where no service answers, or it refuses.
pub async fn unexempt(args: TakeBackArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut client = args.service.connect(environment).await?;
    let (device, identifier_kind, id) = args.which();
    let reply = client.unexempt(UnexemptRequest { device, identifier_kind, id }).await.map_err(said)?.into_inner();
    taken_back(&args, &reply.rulings, &reply.others, ("exemption", &reply.not_heard))
}

/// Lists locks and exemptions.
///
/// # Errors
/// Where no service answers.
pub async fn list(args: LocksArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let mut client = args.service.connect(environment).await?;
    let mut all = Vec::new();
    let mut after_id = String::new();
    loop {
        let page = client.list_locks(ListLocksRequest { after_id }).await.map_err(said)?.into_inner();
        all.extend(page.rulings);
        match all.last() {
            Some(last) if page.more => after_id = last.id.clone(),
            _ => break,
        }
    }
    show(args.service.output, &all)?;
    let not_kept = all.iter().filter(|ruling| ruling.not_kept).count();
    if not_kept > 0 {
        writeln!(err(), "warning: {not_kept} of them would not survive a restart of the service: see `/readyz?verbose`")?;
    }
    Ok(Exit::Done)
}

fn made(output: OutputArgs, ruling: Option<&Ruling>, not_known: &str, (not_kept, not_heard): (&str, &str)) -> anyhow::Result<Exit> {
    if let Some(ruling) = ruling {
        print(output, &shown(ruling), COLUMNS)?;
    }
    if !not_known.is_empty() {
        writeln!(err(), "warning: it holds, and {}", cell(not_known))?;
    }
    if !not_kept.is_empty() {
        writeln!(err(), "warning: it holds now, and perhaps not after the next start of the service: {not_kept}")?;
    }
    warn_of(not_heard)?;
    Ok(if not_kept.is_empty() && not_heard.is_empty() { Exit::Done } else { Exit::Failed })
}

/// Warns of other services that may not have heard of a ruling.
fn warn_of(not_heard: &str) -> anyhow::Result<()> {
    if !not_heard.is_empty() {
        writeln!(
            err(),
            "warning: {not_heard}: each of them hears of it as soon as it reaches the store, and answers 503 where it does not for \
             longer than its [store] stale_limit; docs/replicas.md says how to find out"
        )?;
    }
    Ok(())
}

impl TakeBackArgs {
    /// Returns device, kind and id, each empty where it was left out.
    fn which(&self) -> (String, String, String) {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        (text(&self.device), text(&self.kind), text(&self.id))
    }
}

fn taken_back(args: &TakeBackArgs, gone: &[Ruling], others: &[Ruling], (what, not_heard): (&str, &str)) -> anyhow::Result<Exit> {
    if !gone.is_empty() {
        show(args.service.output, gone)?;
        warn_of(not_heard)?;
        if gone.iter().any(|ruling| ruling.not_kept) {
            let which = "it is taken back now, and may be there again after the next start of the service: see `/readyz?verbose`";
            writeln!(err(), "warning: {which}")?;
            return Ok(Exit::Failed);
        }
        return Ok(if not_heard.is_empty() { Exit::Done } else { Exit::Failed });
    }
    let mut errors = err();
    let named = args.device.as_deref().or(args.id.as_deref()).unwrap_or_default();
    let no = no_such(named, args.kind.as_deref(), what, others.is_empty());
    writeln!(errors, "{no}")?;
    for other in others {
        writeln!(errors, "  {}", like(other, what))?;
    }
    Ok(Exit::Denied)
}

/// Returns the message that there is nothing to take back.
fn no_such(named: &str, kind: Option<&str>, what: &str, alone: bool) -> String {
    let with = kind.map(|kind| format!(", made with --kind {kind}")).unwrap_or_default();
    let rest = if alone { "`stepward locks` lists what holds" } else { "there is" };
    format!("there is no {what} for {}{with}; {rest}{}", cell(named), if alone { "" } else { ":" })
}

/// Describes a ruling that may be meant, and how it is taken back.
fn like(other: &Ruling, what: &str) -> String {
    let made = if other.identifier_kind.is_empty() {
        "made without --kind".to_owned()
    } else {
        format!("made with --kind {}", cell(&other.identifier_kind))
    };
    let [id, device, reason] = [other.id.as_str(), &other.device, &other.reason].map(cell);
    let command = if what == "lock" { "unlock" } else { "unexempt" };
    format!("the {what} for {device}, {made} ({reason}): stepward {command} --id {id}")
}

fn show(output: OutputArgs, rulings: &[Ruling]) -> anyhow::Result<()> {
    let shown: Vec<Value> = rulings.iter().map(shown).collect();
    match output.output {
        Format::Json => print(output, &Value::Array(shown), &[]),
        Format::Table => table(&shown, COLUMNS),
    }
}

fn shown(ruling: &Ruling) -> Value {
    let kind = match ruling.kind() {
        RulingKind::Lock => "lock",
        RulingKind::Exemption => "exemption",
        RulingKind::Unspecified => "unknown",
    };
    json!({
        "kind": kind,
        "device": ruling.device,
        "identifier_kind": if ruling.identifier_kind.is_empty() { ANY } else { &ruling.identifier_kind },
        "until": if ruling.until == 0 { Value::Null } else { date(ruling.until).into() },
        "reason": ruling.reason,
        "made_by": ruling.made_by,
        "made_at": date(ruling.made_at),
        "kept": !ruling.not_kept,
        "id": ruling.id,
    })
}

fn ttl(text: &str) -> Result<Duration, String> {
    match duration(text, "8h, 30m or 2d")? {
        ttl if ttl.subsec_nanos() == 0 && !ttl.is_zero() => Ok(ttl),
        _ => Err("has to be whole seconds, and at least one".to_owned()),
    }
}

/// Kind that is shown of a lock that no kind was given for.
const ANY: &str = "any";

const COLUMNS: &[&str] = &["kind", "device", "identifier_kind", "until", "made_by", "made_at", "reason", "id"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e36_what_cannot_be_taken_back_is_said_with_the_command_for_what_may_be_meant() {
        assert_eq!(no_such("X", None, "lock", true), "there is no lock for X; `stepward locks` lists what holds");
        assert_eq!(no_such("X", Some("serial"), "exemption", false), "there is no exemption for X, made with --kind serial; there is:");
        let other = Ruling {
            id: "01J".to_owned(),
            device: "x".to_owned(),
            identifier_kind: "hostname".to_owned(),
            reason: "lost".to_owned(),
            ..Ruling::default()
        };
        assert_eq!(like(&other, "lock"), "the lock for x, made with --kind hostname (lost): stepward unlock --id 01J");
        let other = Ruling { identifier_kind: String::new(), ..other };
        assert_eq!(like(&other, "exemption"), "the exemption for x, made without --kind (lost): stepward unexempt --id 01J");
    }
}
