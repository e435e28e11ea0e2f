//! Examination of Envoy: whether it listens where the configuration says, and speaks TLS there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use inventory::{Finding, State};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::examined::Examined;
use super::listeners;
use super::service::FILTER;
use crate::cli::causes::causes;
use crate::cli::validity::{Used, Validity};
use crate::config::Config;
use engine::provider::ProviderSettings;

/// Examines the listener of webhooks, and that of events where some provider takes them.
pub(super) async fn examine(config: &Config, deadline: Instant) -> Vec<Finding> {
    let deadline = deadline.min(Instant::now() + ANSWER);
    let mut findings = listener("webhooks", config, config.envoy.webhook_address, deadline).await;
    if config.providers.values().any(|provider| matches!(provider, ProviderSettings::Remote(remote) if remote.push.is_some())) {
        findings.extend(listener("events", config, config.envoy.public_address, deadline).await);
    }
    findings
}

/// Weakens the findings about listeners where an Envoy is attached: one that cannot be reached from here runs elsewhere, as in a
/// container of its own.
pub(super) fn weigh(all: &mut [Examined]) {
    let attached = |finding: &Finding| finding.check == FILTER && finding.state == State::Good;
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

async fn listener(check: &str, config: &Config, address: SocketAddr, deadline: Instant) -> Vec<Finding> {
    // A listener on all addresses listens on the loopback address too.
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
            return vec![Finding::bad(check, format!("{NOBODY} at {address}: {error}"), fix)];
        }
        Err(_) => return vec![Finding::bad(check, format!("{address} does not answer"), "let this machine through to it")],
    }
    let sharing = tokio::task::spawn_blocking(move || listeners::at(address)).await.unwrap_or_default();
    if sharing.len() > 1 {
        let detail = format!("{} share {address}, and each gets a part of the calls: {}", sharing.len(), sharing.join(", "));
        return vec![Finding::bad(check, detail, "end all of them but the Envoy that runs with what `stepward envoy-config` prints")];
    }
    let served = Arc::new(Served::default());
    let finding = match timeout_at(deadline, handshake(address, Arc::clone(&served))).await {
        Ok(Ok(seen)) => Finding::good(check, seen),
        // Envoy listens before it has a certificate, and closes connections then.
        Ok(Err(error @ Unanswered::BreaksOff(..))) => {
            let (certificate, key) = (config.envoy.certificate.display(), config.envoy.private_key.display());
            let fix = format!(
                "where that is Envoy, it has no certificate to show: see its log, and whether its user may read {certificate} and {key}, and \
                 they fit; otherwise something else has the port"
            );
            Finding::bad(check, format!("{error}, before it shows a certificate"), fix)
        }
        Ok(Err(error)) => Finding::bad(check, error.to_string(), "see whether something else has the port, and Envoy's log"),
        Err(_) => Finding::bad(check, format!("{address} takes connections, but does not answer"), "see Envoy's log"),
    };
    // The certificate that Envoy serves with may be older than the file, which this user need not be able to read.
    std::iter::once(finding).chain(served.finding(SystemTime::now())).collect()
}

/// Certificate that a server showed.
#[derive(Debug, Default)]
struct Served(Mutex<Option<CertificateDer<'static>>>);

impl Served {
    fn finding(&self, now: SystemTime) -> Option<Finding> {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Validity::of(shown.as_ref()?, None, Used::Envoy).ok().map(|validity| validity.finding("served certificate", now))
    }
}

/// Verification that accepts any server: nothing but a request without a device is sent, and nothing in the answer counts.
impl ServerCertVerifier for Served {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Reason why a handshake says nothing good of what listens.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
enum Unanswered {
    /// This process could not ask.
    #[error("{0}")]
    NotAsked(String),
    /// The server speaks another protocol, or another TLS.
    #[error("what listens at {0} does not speak TLS as Envoy does: {1}")]
    OtherTls(SocketAddr, rustls::Error),
    /// The server ends the connection in the middle.
    #[error("what listens at {0} breaks off: {1}")]
    BreaksOff(SocketAddr, String),
}

/// Makes a handshake as far as TLS goes without a client certificate, which is step-ca's; returns what was seen.
async fn handshake(address: SocketAddr, served: Arc<Served>) -> Result<String, Unanswered> {
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Unanswered::NotAsked(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(served)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        // Over HTTP/2 a refusal in TLS is lost before it gets here.
        .http1_only()
        .build()
        .map_err(|error| Unanswered::NotAsked(error.to_string()))?;
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
        Some(wrong) => Err(Unanswered::OtherTls(address, wrong.clone())),
        // In TLS 1.3 the server refuses after the handshake, and may close before the refusal is read.
        None if (cut || error.is_request()) && !error.is_connect() && !error.is_timeout() => {
            Ok(format!("it listens at {address}, and closes without a client certificate"))
        }
        None => Err(Unanswered::BreaksOff(address, causes.last().map(ToString::to_string).unwrap_or_default())),
    }
}

/// Words about a connection that is refused.
const NOBODY: &str = "nothing listens";

/// Longest time for Envoy to answer.
const ANSWER: Duration = Duration::from_secs(5);
