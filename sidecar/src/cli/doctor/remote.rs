//! Examination of providers: a file is read, and a service is looked up, reached, and asked with the real credentials.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::client::proxy::matcher::Matcher;
use inventory::http::{Client, Endpoint, Reply, may_be_proxied};
use inventory::{Answer, Finding, Inventory, Listing, Question, State, Unavailable, Way, file};
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::{Field, Fields};
use rustls::CertificateError;
use settings::Environment;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

use super::examined::doubtful;
use crate::cli::causes::causes;
use crate::config::Config;
use engine::provider::chain;
use engine::provider::{ProviderSettings, RemoteSettings};
use posture::shown::counted;

/// Examines one provider; what can only fail after something failed is left out.
pub(super) async fn examine(
    config: &Config,
    name: &str,
    provider: &ProviderSettings,
    environment: &Environment,
    deadline: Instant,
) -> Vec<Finding> {
    match provider {
        ProviderSettings::File(settings) => file(settings.clone()).await,
        ProviderSettings::Remote(remote) => service(config, name, remote, environment, deadline).await,
    }
}

async fn file(settings: file::Settings) -> Vec<Finding> {
    let path = settings.path.clone();
    // A file system that hangs must not hold up the rest.
    let read = tokio::task::spawn_blocking(move || settings.read().map(|parsed| (parsed.devices.len(), parsed.warnings)));
    let (devices, warnings) = match read.await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => return vec![Finding::bad("devices", chain(&error), "correct the file")],
        Err(_) => return vec![Finding::bad("devices", "the file could not be read", "correct the file")],
    };
    let count = if devices == 0 {
        doubtful("devices", "there is none", "put devices into the file")
    } else {
        Finding::good("devices", counted(devices, "device"))
    };
    let warned = warnings.sentences(&path).into_iter().map(|warning| doubtful("rows", warning, "see docs/providers/file.md"));
    std::iter::once(count).chain(warned).collect()
}

async fn service(config: &Config, name: &str, remote: &RemoteSettings, environment: &Environment, deadline: Instant) -> Vec<Finding> {
    let mut findings = Vec::new();
    let reply = match reach(&remote.endpoint, &mut findings).await {
        Ok(reply) => reply,
        Err(bad) => {
            findings.push(*bad);
            return findings;
        }
    };
    // Only the provider's own secrets are read: those of others may be missing.
    let own = BTreeMap::from([(name.to_owned(), ProviderSettings::Remote(remote.clone()))]);
    let secrets = Config { webhooks: Vec::new(), providers: own, ..config.clone() }.resolve_secrets(environment);
    let Some(secrets) = secrets.ok().and_then(|mut secrets| secrets.providers.remove(name)) else {
        findings.push(Finding::bad("credentials", "they are not there, so nothing was asked", "see what is said of secrets"));
        return findings;
    };
    match remote.service.open(&remote.endpoint, &secrets) {
        Ok(inventory) => {
            findings.extend(inventory.probe(deadline).await);
            if findings.iter().all(|finding| finding.state != State::Bad) {
                findings.extend(fields(needed(config, name), remote.service.name(), &*inventory, deadline).await);
            }
        }
        Err(error) => findings.push(Finding::bad("settings", error, "correct [provider.<name>] in the configuration")),
    }
    if !findings.iter().any(|finding| finding.check == "clock") {
        findings.extend(reply.clock_skew().map(|(skew, ahead)| Finding::clock(skew, ahead)));
    }
    findings
}

/// Returns the fields that rules and data use of a provider's records.
fn needed(config: &Config, name: &str) -> Fields {
    let asks = |providers: &[String]| providers.iter().any(|provider| provider == name);
    let policies = config.policies.values().filter(|policy| asks(&policy.providers)).map(|policy| policy.policy.wants());
    // Where no policy judges, a device has to be managed.
    let plainly = config.webhooks.iter().any(|webhook| webhook.policy.is_none() && asks(&webhook.providers));
    policies.fold(if plainly { Fields::of(&[Field::Managed]) } else { Fields::NONE }, Fields::union)
}

/// Examines whether the fields that are needed come at all: a few devices are asked for as the service asks for them. `None` where
/// no field is needed, or there is no device or no list of them.
async fn fields(needed: Fields, service: &str, inventory: &dyn Inventory, deadline: Instant) -> Option<Finding> {
    let needed = needed.both(inventory.fields());
    if needed.is_empty() || inventory.listing() == Listing::None {
        return None;
    }
    let deadline = deadline.min(Instant::now() + SAMPLE);
    let sampled = timeout_at(deadline, sample(needed, inventory, deadline)).await.unwrap_or(Err(Unavailable::Timeout));
    let (count, known) = match sampled {
        Ok((0, _)) => return None,
        Ok(sampled) => sampled,
        Err(why) => return Some(doubtful("fields", format!("no device could be asked for: {}", why.text()), "try again")),
    };
    let never: Vec<String> = needed.without(known).iter().map(|field| format!("`device.{}`", field.as_str())).collect();
    Some(if never.is_empty() {
        Finding::good("fields", format!("all that rules and data need came, with {} that the service found", counted(count, "device")))
    } else {
        let detail = format!("none of {} that the service found came with {}", counted(count, "device"), never.join(", "));
        let fix = format!(
            "see docs/providers/{service}.md for where each comes from: a rule that needs one denies every device, and one that would deny by \
             one never does"
        );
        doubtful("fields", detail, fix)
    })
}

/// Returns how many of the devices that were asked for were found, and the fields that some of them have.
async fn sample(needed: Fields, inventory: &dyn Inventory, deadline: Instant) -> Result<(usize, Fields), Unavailable> {
    let (sender, mut pages) = mpsc::channel(1);
    let mut listing = inventory.list(None, Fields::NONE, sender);
    let page = tokio::select! {
        page = pages.recv() => page,
        ended = &mut listing => match pages.try_recv() {
            Ok(page) => Some(page),
            Err(_) => ended.map(|_| None)?,
        },
    };
    drop(listing);
    let kind = if inventory.asks(IdentifierKind::Serial) { IdentifierKind::Serial } else { IdentifierKind::Udid };
    // The devices are of different platforms, as far as there are, since each may have other fields.
    let (mut platforms, mut rest, mut chosen) = (Vec::new(), Vec::new(), Vec::new());
    for record in page.unwrap_or_default() {
        let text = if kind == IdentifierKind::Serial { record.serial.value() } else { record.udid.value() };
        let Some(device) = text.and_then(|text| DeviceId::new(kind, text).ok()) else { continue };
        if platforms.contains(&record.platform) {
            rest.push(device);
        } else {
            platforms.push(record.platform.clone());
            chosen.push(device);
        }
    }
    let (mut count, mut known) = (0, Fields::NONE);
    for device in chosen.into_iter().chain(rest).take(SAMPLED) {
        match inventory.lookup(&Question { device, need: needed, hint: None, deadline, way: Way::Query }).await {
            Answer::Found(record) => (count, known) = (count + 1, known.union(record.known())),
            Answer::Unavailable(why) => return Err(why),
            Answer::NotFound | Answer::Ambiguous | Answer::InvalidIdentifier => {}
        }
    }
    Ok((count, known))
}

/// Largest number of devices that are asked for.
const SAMPLED: usize = 3;

/// Longest time to ask for them, the first page of the list included.
const SAMPLE: Duration = Duration::from_secs(8);

/// Examines name, port, TLS and HTTP of a service, each with its own remedy. Nothing that is secret is sent.
async fn reach(endpoint: &Endpoint, findings: &mut Vec<Finding>) -> Result<Reply, Box<Finding>> {
    let bad = |check: &str, detail: String, fix: &str| Box::new(Finding::bad(check, detail, fix));
    let url = &endpoint.base_url;
    let port = url.port_or_known_default().unwrap_or(443);
    let host = match url.host() {
        Some(Host::Domain(name)) => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        None => String::new(),
    };
    let proxy = proxy(url);
    match &proxy {
        // The proxy has to look the name up and reach the port; this machine may not be able to.
        Some(proxy) => findings.push(Finding::good("proxy", format!("{host} is asked through {proxy}, as the environment says"))),
        None => connect(&host, port, findings).await?,
    }
    let client = Client::new(endpoint).map_err(|error| bad("tls", error, "correct ca_file"))?;
    match client.reach(url.clone()).await {
        Ok(response) => {
            let how = if url.scheme() == "https" { "HTTPS" } else { "plain HTTP" };
            findings.push(Finding::good("connection", format!("{host}:{port} answers by {how}")));
            Ok(Reply { status: response.status(), headers: response.headers().clone(), body: Bytes::new(), redirected: false })
        }
        Err(error) => {
            let found = explain(&error.without_url(), url, endpoint.ca_file.is_some());
            Err(Box::new(match proxy {
                Some(proxy) if found.check == "connection" => {
                    let fix = format!("see that {proxy} is there and lets it pass, or name {host} in NO_PROXY; the service needs the same");
                    Finding { fix, ..found }
                }
                _ => found,
            }))
        }
    }
}

/// Returns host and port of the proxy that requests to this address go through, by the same rules as the requests themselves.
fn proxy(url: &Url) -> Option<String> {
    if !may_be_proxied(url) {
        return None;
    }
    let proxy = Matcher::from_env().intercept(&url.as_str().parse().ok()?)?;
    // The proxy's address may hold a password, so host and port alone are shown.
    let host = proxy.uri().host()?;
    Some(proxy.uri().port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

async fn connect(host: &str, port: u16, findings: &mut Vec<Finding>) -> Result<(), Box<Finding>> {
    let bad = |check: &str, detail: String, fix: &str| Box::new(Finding::bad(check, detail, fix));
    let addresses: Vec<_> = match lookup_host((host, port)).await {
        Ok(addresses) => addresses.collect(),
        Err(error) => return Err(bad("dns", format!("{host} has no address: {error}"), "correct base_url, or this machine's DNS")),
    };
    let shown: Vec<String> = addresses.iter().take(3).map(|address| address.ip().to_string()).collect();
    findings.push(Finding::good("dns", format!("{host} is {}", shown.join(", "))));
    if let Err(error) = TcpStream::connect(addresses.as_slice()).await {
        let fix = "open the way to it in the firewall, or correct base_url";
        return Err(bad("connection", format!("{host}:{port} takes no connection: {error}"), fix));
    }
    Ok(())
}

/// Makes the finding about a connection that gives no answer.
fn explain(error: &reqwest::Error, url: &Url, own: bool) -> Finding {
    let host = url.host_str().unwrap_or_default();
    let causes = causes(error);
    let tls = causes.iter().find_map(|cause| cause.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            let (from, fix) = if own {
                ("this system or ca_file trusts", "put the authority of the service's certificate into ca_file")
            } else {
                (
                    "this system trusts",
                    "where it comes from your own authority, set ca_file; where a proxy opens TLS, let it pass this host",
                )
            };
            Finding::bad("tls", format!("the certificate of {host} comes from no authority that {from}"), fix)
        }
        Some(rustls::Error::InvalidCertificate(wrong)) => {
            let fix = "correct base_url, this machine's clock, or the service's certificate";
            Finding::bad("tls", format!("the certificate of {host} is not good for it: {wrong}"), fix)
        }
        Some(wrong) => {
            Finding::bad("tls", format!("{host} and this machine find no common TLS: {wrong}"), "see that base_url names an HTTPS port")
        }
        None => {
            let cause = causes.last().map(ToString::to_string).unwrap_or_default();
            let broken = causes.iter().any(|cause| cause.downcast_ref::<io::Error>().is_some());
            let what = if broken { "breaks the connection off" } else { "gives no answer that is HTTP" };
            Finding::bad("connection", format!("{host} {what}: {cause}"), "see that base_url is the service itself, and no proxy")
        }
    }
}
