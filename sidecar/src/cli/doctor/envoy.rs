//! Envoy: whether it listens where the configuration says, and speaks TLS there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::{Examined, listeners};
use crate::cli::webhook::causes;
use crate::config::{Config, Provider};
use crate::provider::inventory::{Finding, State};

/// The listener of webhooks, and that of events where some provider takes them.
pub(super) async fn examine(config: &Config, deadline: Instant) -> Vec<Finding> {
    let deadline = deadline.min(Instant::now() + ANSWER);
    let mut findings = vec![listener("webhooks", config.envoy.webhook_address, deadline).await];
    if config.providers.values().any(|provider| matches!(provider, Provider::Remote(remote) if remote.push.is_some())) {
        findings.push(listener("events", config.envoy.public_address, deadline).await);
    }
    findings
}

/// An Envoy that is attached and cannot be reached from here runs elsewhere, as in a container of its own.
pub(super) fn weigh(all: &mut [Examined]) {
    let attached = |finding: &Finding| finding.check == super::service::FILTER && finding.state == State::Good;
    if !all.iter().any(|examined| examined.subject == "service" && examined.findings.iter().any(attached)) {
        return;
    }
    for finding in all.iter_mut().filter(|examined| examined.subject == "envoy").flat_map(|examined| &mut examined.findings) {
        if finding.state == State::Bad && finding.detail.contains(NOBODY) {
            finding.state = State::Doubtful;
            finding.detail.push_str("; an Envoy is attached all the same, so it may run in another container or on another address");
        }
    }
}

async fn listener(check: &str, address: SocketAddr, deadline: Instant) -> Finding {
    // What listens everywhere listens here.
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let address = SocketAddr::new(ip, address.port());
    match timeout_at(deadline, TcpStream::connect(address)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            let fix = "start Envoy with what `stepward envoy-config` prints, and see its log";
            return Finding::bad(check, format!("{NOBODY} at {address}: {error}"), fix);
        }
        Err(_) => return Finding::bad(check, format!("{address} does not answer"), "let this machine through to it"),
    }
    let sharing = tokio::task::spawn_blocking(move || listeners::at(address)).await.unwrap_or_default();
    if sharing.len() > 1 {
        let detail = format!("{} share {address}, and each gets a part of the calls: {}", sharing.len(), sharing.join(", "));
        return Finding::bad(check, detail, "end all of them but the Envoy that runs with what `stepward envoy-config` prints");
    }
    match timeout_at(deadline, handshake(address)).await {
        Ok(Ok(seen)) => Finding::good(check, seen),
        Ok(Err(error)) => Finding::bad(check, error, "see whether something else has the port, and Envoy's log"),
        Err(_) => Finding::bad(check, format!("{address} takes connections, but does not answer"), "see Envoy's log"),
    }
}

/// As far as TLS goes without a client certificate, which is step-ca's.
async fn handshake(address: SocketAddr) -> Result<String, String> {
    // Who it is does not matter: nothing but a request without a device is sent, and nothing in the answer is believed.
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_danger_accept_invalid_certs(true)
        .redirect(reqwest::redirect::Policy::none())
        // Over HTTP/2 a refusal in TLS is lost on the way to us.
        .http1_only()
        .build()
        .map_err(|error| error.to_string())?;
    let error = match client.get(format!("https://{address}/")).send().await {
        Ok(_) => return Ok(format!("it listens at {address}, and speaks TLS")),
        Err(error) => error.without_url(),
    };
    let causes = causes(&error);
    let tls = causes.iter().find_map(|cause| cause.downcast_ref::<rustls::Error>());
    let cut = causes
        .iter()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe));
    match tls {
        Some(rustls::Error::AlertReceived(_)) => Ok(format!("it listens at {address}, and asks for a client certificate")),
        Some(wrong) => Err(format!("what listens at {address} does not speak TLS as Envoy does: {wrong}")),
        // In TLS 1.3 it says no after the handshake, and may close before that is read.
        None if (cut || error.is_request()) && !error.is_connect() && !error.is_timeout() => {
            Ok(format!("it listens at {address}, and closes without a client certificate"))
        }
        None => Err(format!("what listens at {address} breaks off: {}", causes.last().map(ToString::to_string).unwrap_or_default())),
    }
}

/// What is said where a connection is refused.
const NOBODY: &str = "nothing listens";

/// How long it may take.
const ANSWER: Duration = Duration::from_secs(5);
