//! Report of a check's findings, for people and for programs.

use std::io::Write;

use posture::caller::Callers;
use posture::shown::counted;
use serde_json::{Value, json};
use settings::{Mistake, Place};

use super::finding::Finding;
use crate::cli::words;
use crate::config::Policy;
use engine::plan::{Combine, OnNotFound, OnUnavailable};
use engine::provider::ProviderSettings;
use engine::webhooks::Settings;

/// Prints the findings for people.
///
/// # Errors
/// Where they cannot be written.
pub(super) fn table(finding: &Finding, out: &mut dyn Write) -> std::io::Result<()> {
    for mistake in &finding.mistakes {
        writeln!(out, "mistake: {mistake}")?;
    }
    for warning in &finding.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    for note in &finding.notes {
        writeln!(out, "note: {note}")?;
    }
    if !finding.mistakes.is_empty() {
        return writeln!(out, "{}", counted(finding.mistakes.len(), "mistake"));
    }
    for webhook in webhooks(finding) {
        let policy = webhook.policy.as_ref().and_then(|name| Some((name, finding.config.as_ref()?.policies.get(name)?)));
        let asks = match policy {
            Some((name, policy)) => format!("{} and {}s policy {name}", policy.providers.join(", "), webhook.enforcement.as_str()),
            None if webhook.providers.is_empty() => "nobody".to_owned(),
            None => webhook.providers.join(", "),
        };
        writeln!(out, "webhook   {}  {} by {}, asks {asks}", webhook.shown(), webhook.kind.as_str(), webhook.identifier)?;
        writeln!(out, "          callers: {}", callers(&webhook.callers).join(", "))?;
    }
    for (name, policy) in finding.config.iter().flat_map(|config| &config.policies) {
        writeln!(out, "policy    {name}  {}", chain(policy))?;
        for check in policy.policy.described() {
            let needs = words::needs(check.name, check.wanted, check.expression.map(|(text, _)| text));
            writeln!(out, "          {}: {needs}, or is denied with {}", check.name, check.denial.code)?;
        }
    }
    for (name, kind, place) in providers(finding) {
        writeln!(out, "provider  {name}  {kind}  {place}")?;
    }
    if let Some(config) = &finding.config {
        writeln!(out, "listens   {} and sockets in {}", config.listen.admin, config.listen.sockets.display())?;
        if let Some(query) = &config.query.tcp {
            writeln!(out, "queries   {} with {}", query.address, query.certificate.display())?;
        }
        if let Some(filter) = &config.filter {
            writeln!(out, "filters   {} with {}", filter.address, filter.certificate.display())?;
            writeln!(
                out,
                "          Envoys: {}",
                filter.clients.iter().flat_map(|client| callers(&client.names)).collect::<Vec<_>>().join(", ")
            )?;
        }
        writeln!(out, "envoy     {} with {}", config.envoy.webhook_address, config.envoy.certificate.display())?;
        for sidecar in config.envoy.sidecars.iter().flat_map(|sidecars| &sidecars.all) {
            writeln!(out, "          attaches to {}:{}", sidecar.name, sidecar.port)?;
        }
    }
    writeln!(out, "OK")
}

/// Returns the findings for programs, on one line.
pub(super) fn to_json(finding: &Finding) -> Value {
    json!({
        "ok": finding.mistakes.is_empty(),
        "mistakes": told(&finding.mistakes),
        "warnings": told(&finding.warnings),
        "notes": told(&finding.notes),
        "webhooks": webhooks(finding).map(|webhook| json!({
            "id": webhook.id,
            "name": webhook.name,
            "kind": webhook.kind.as_str(),
            "identifier": webhook.identifier.as_str(),
            "callers": callers(&webhook.callers),
            "providers": webhook.providers,
            "policy": webhook.policy,
            "enforcement": webhook.policy.as_ref().map(|_| webhook.enforcement.as_str()),
            "secrets": webhook.secrets.len(),
        })).collect::<Vec<_>>(),
        "policies": finding.config.iter().flat_map(|config| &config.policies).map(|(name, policy)| json!({
            "name": name,
            "providers": policy.providers,
            "on_not_found": policy.on_not_found.as_str(),
            "on_unavailable": policy.on_unavailable.as_str(),
            "combine": policy.combine.as_str(),
            "checks": policy.policy.described().map(|check| json!({
                "check": check.name,
                "wanted": check.wanted,
                "expression": check.expression.map(|(text, _)| text),
                "code": check.denial.code,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "providers": providers(finding).map(|(name, kind, place)| json!({ "name": name, "type": kind, "place": place })).collect::<Vec<_>>(),
    })
}

fn webhooks(finding: &Finding) -> impl Iterator<Item = &Settings> {
    finding.config.iter().flat_map(|config| &config.webhooks)
}

/// Returns the name of each provider, its type, and where it is.
fn providers(finding: &Finding) -> impl Iterator<Item = (&String, &'static str, String)> {
    let providers = finding.config.iter().flat_map(|config| &config.providers);
    providers.map(|(name, provider)| match provider {
        ProviderSettings::File(settings) => (name, "file", settings.path.display().to_string()),
        ProviderSettings::Remote(remote) => (name, remote.service.name(), remote.endpoint.base_url.to_string()),
    })
}

/// Returns mistakes for programs: each with its file, line and column, or its variable, as far as it has them.
fn told(found: &[Mistake]) -> Value {
    let one = |mistake: &Mistake| {
        let place = match &mistake.place {
            Place::Line(line, column) => vec![("line", json!(line)), ("column", json!(column))],
            Place::Variable(name) => vec![("variable", json!(name))],
            Place::Whole => Vec::new(),
        };
        let told = [("message", json!(mistake.message)), ("text", json!(mistake.to_string()))];
        let file = mistake.file.as_ref().map(|file| ("file", json!(file)));
        told.into_iter().chain(file).chain(place).map(|(name, value)| (name.to_owned(), value)).collect::<Value>()
    };
    found.iter().map(one).collect()
}

fn callers(callers: &Callers) -> Vec<String> {
    match callers {
        Callers::Anonymous => vec!["anonymous".to_owned()],
        Callers::AnyVerified => vec!["any that client_ca verifies".to_owned()],
        Callers::Named(names) => names.iter().map(ToString::to_string).collect(),
    }
}

/// Describes whom a policy asks, and what it makes of their answers.
fn chain(policy: &Policy) -> String {
    let names = policy.providers.join(", ");
    if policy.providers.len() == 1 {
        return format!("asks {names}");
    }
    let how = match policy.combine {
        Combine::AllOf => return format!("asks {names}: each has to have the device, and every record has to pass"),
        Combine::AnyOf => "one record that passes is enough",
        Combine::FirstFound => "the first that has the device is judged",
    };
    let missing = match policy.on_not_found {
        OnNotFound::Next => "one that does not have it is passed over",
        OnNotFound::Deny => "one that does not have it denies it",
    };
    let away = match policy.on_unavailable {
        OnUnavailable::Fail => "one that cannot say is waited for",
        OnUnavailable::Next => "one that cannot say is passed over",
    };
    format!("asks {names}: {how}; {missing}; {away}")
}
