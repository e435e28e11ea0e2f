//! `stepward webhook send`: step-ca's side of a webhook, for trying out.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use posture::secret::Secret;
use posture::shape::{SIGNATURE, WEBHOOK_ID};
use posture::shown::cell;
use posture::verify::SigningKeys;
use reqwest::Url;
use rustls::CertificateError;
use serde_json::{Map, Value, json};
use settings::{Environment, duration, files};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::causes::{causes, chain};
use crate::cli::exit::Exit;
use crate::cli::output::{OutputArgs, err, print};
use crate::config::{Config, Loaded};

/// What `webhook send` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward webhook send --config stepward.toml --device C02XL0GYJGH5
  … --url https://ca.example.org:9443/webhook/device --cert step-ca.crt --key step-ca.key --ca roots.pem
  … --forge                 with a signature that does not fit
  … --skew -31s             with a clock that is 31 s slow
  … --repeat 2              the same bytes twice, as after a lost answer

Exit codes, of the last one sent: 0 allowed, 1 failed, 2 usage, 3 denied, 4 refused (4xx), 5 unavailable (5xx or no answer).")]
pub struct SendArgs {
    /// Where to send it; without it https://localhost, at the port of the configuration's webhook_address
    #[arg(long)]
    url: Option<Url>,
    /// Webhook id, or the name that the configuration gives it; without it the first, which is said where there are several
    #[arg(long)]
    id: Option<String>,
    /// File with the secret in base64, as step-ca prints it
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Configuration file to take id and secret from
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
    /// Client certificate, PEM; without it client/client.crt or tls/client.crt beside the configuration, where that is
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key, PEM; likewise client.key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Authorities of the server's certificate, PEM; without it tls/ca.crt beside the configuration, else the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Attested identifier of the device
    #[arg(long, required_unless_present = "body")]
    device: Option<String>,
    /// Kind of the body
    #[arg(long, value_enum, default_value = "enriching")]
    kind: SentKind,
    /// Value of ?mode=
    #[arg(long)]
    mode: Option<String>,
    /// File to send as the body, byte by byte, instead of one made here
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device", "skew"])]
    body: Option<PathBuf>,
    /// Send a signature that does not fit
    #[arg(long)]
    forge: bool,
    /// Shift the timestamp, as in -31s or 6s
    #[arg(long, allow_hyphen_values = true, value_parser = shift)]
    skew: Option<Shift>,
    /// Send the same bytes this many times
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// File with a bearer token to send besides
    #[arg(long, value_name = "FILE")]
    bearer_file: Option<PathBuf>,
    /// File with `user:password` to send besides
    #[arg(long, value_name = "FILE", conflicts_with = "bearer_file")]
    basic_file: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Kinds of body that can be made here.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SentKind {
    Enriching,
    Authorizing,
}

/// Shift of the timestamp in nanoseconds, either way.
#[derive(Clone, Copy, Debug)]
struct Shift(i64);

fn shift(text: &str) -> Result<Shift, String> {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |text| (-1, text));
    let duration = duration(text.trim_start_matches('+'), "-31s or 6s")?;
    let nanos = i64::try_from(duration.as_nanos()).map_err(|_| "too long".to_owned())?;
    Ok(Shift(sign * nanos))
}

/// Sends a webhook, and prints the verdict of each reply.
///
/// # Errors
/// Where a file or the configuration cannot be read, or the output not be written.
pub(super) async fn send(args: SendArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let loaded = configuration(&args, environment)?;
    let loaded = loaded.as_ref();
    let (id, keys) = signer(&args, loaded, environment)?;
    if let Some(note) = loaded.filter(|_| args.id.is_none()).and_then(|loaded| taken(&loaded.config)) {
        writeln!(err(), "{}", cell(&note))?;
    }
    let body = match &args.body {
        Some(file) => files::read(file, files::CONFIGURATION).with_context(|| format!("read {}", file.display()))?,
        None => made_body(&args)?,
    };
    let mut signature = keys.sign(&body).context("sign: there is no secret")?.to_hex();
    if args.forge {
        // The first digit becomes another one, so the signature does not fit.
        let first = if signature.starts_with('0') { "1" } else { "0" };
        signature.replace_range(..1, first);
    }
    let tls = Tls::choose(&args, loaded, environment);
    let client = tls.client()?;
    let url = url(&args, loaded)?;
    let authorization = authorization(&args, environment)?;
    let mut exit = Exit::Done;
    for _ in 0..args.repeat.max(1) {
        let mut request = client
            .post(url.clone())
            .header("content-type", "application/json")
            .header(WEBHOOK_ID, &id)
            .header(SIGNATURE, &signature)
            .body(body.clone());
        if let Some(authorization) = &authorization {
            request = request.header("authorization", authorization);
        }
        let started = Instant::now();
        let reply = async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            Ok::<_, reqwest::Error>((status, response.text().await?))
        };
        let (mut verdict, now) = match reply.await {
            Ok((status, text)) => verdict(status, &text),
            Err(error) => {
                (Map::from_iter([field("verdict", "unavailable"), field("message", tls.explain(&error, &url))]), Exit::Unavailable)
            }
        };
        verdict.extend([field("milliseconds", u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))]);
        verdict.extend(args.device.as_deref().map(|device| field("device", device)));
        verdict.extend([field("webhook", id.as_str())]);
        print(
            args.output,
            &Value::Object(verdict),
            &["verdict", "device", "webhook", "code", "message", "data", "status", "milliseconds"],
        )?;
        exit = now;
    }
    Ok(exit)
}

/// Loads the configuration, where something is left to be taken from it.
fn configuration(args: &SendArgs, environment: &Environment) -> anyhow::Result<Option<Loaded>> {
    if args.config.is_none() && args.id.is_some() && args.secret_file.is_some() && args.url.is_some() {
        return Ok(None);
    }
    Config::load(args.config.as_deref(), environment).map(Some).context("without --config, --url and --id and --secret-file are needed")
}

/// Returns the note that names the webhook, where none is chosen and there are several.
fn taken(config: &Config) -> Option<String> {
    let (first, others) = config.webhooks.split_first().filter(|(_, others)| !others.is_empty())?;
    let others: Vec<_> = others.iter().map(engine::webhooks::Settings::shown).collect();
    Some(format!("note: sent to the first webhook, {}; --id chooses another one: {}", first.shown(), others.join(", ")))
}

fn signer(args: &SendArgs, loaded: Option<&Loaded>, environment: &Environment) -> anyhow::Result<(String, SigningKeys)> {
    let read = |file: &Path| {
        let text = read_text(environment, file)?;
        Secret::from_base64(&text).with_context(|| format!("read {}", file.display()))
    };
    if let (Some(id), Some(file)) = (&args.id, &args.secret_file) {
        return Ok((id.clone(), SigningKeys::new(&[read(file)?])));
    }
    let config = &loaded.context("there is no configuration to take id and secret from")?.config;
    let webhook = match &args.id {
        Some(id) => config.webhooks_called(id).next().with_context(|| config.no_webhook(id))?,
        None => config.webhooks.first().context("there is no webhook")?,
    };
    let keys = match &args.secret_file {
        Some(file) => SigningKeys::new(&[read(file)?]),
        None if webhook.unsigned => SigningKeys::unsigned(),
        None => SigningKeys::new(&config.secrets_of(webhook, environment)?.signing),
    };
    Ok((webhook.id.clone(), keys))
}

fn made_body(args: &SendArgs) -> anyhow::Result<Vec<u8>> {
    let device = args.device.as_deref().context("--device is missing")?;
    let now = clock::now().as_nanos().saturating_add(args.skew.map_or(0, |shift| shift.0));
    let timestamp = OffsetDateTime::from_unix_timestamp_nanos(now.into())?.format(&Rfc3339)?;
    let field = match args.kind {
        SentKind::Enriching => "x509CertificateRequest",
        SentKind::Authorizing => "x509Certificate",
    };
    let body = json!({
        "timestamp": timestamp,
        field: { "subject": { "commonName": device }, "dnsNames": null, "emailAddresses": null, "ipAddresses": null, "uris": null },
        "attestationData": { "permanentIdentifier": device },
    });
    Ok(serde_json::to_vec(&body)?)
}

fn url(args: &SendArgs, loaded: Option<&Loaded>) -> anyhow::Result<Url> {
    let mut url = match &args.url {
        Some(url) => url.clone(),
        None => {
            let port = loaded.context("there is no configuration to take the port from")?.config.envoy.webhook_address.port();
            Url::parse(&format!("https://localhost:{port}/webhook/device-attest"))?
        }
    };
    if let Some(mode) = &args.mode {
        url.query_pairs_mut().clear().append_pair("mode", mode);
    }
    Ok(url)
}

fn authorization(args: &SendArgs, environment: &Environment) -> anyhow::Result<Option<String>> {
    let read = |file: &PathBuf| read_text(environment, file);
    Ok(if let Some(file) = &args.bearer_file {
        // The token is read as the service reads its own: without the end of the line, and with every blank.
        Some(format!("Bearer {}", read(file)?.trim_end_matches(['\r', '\n'])))
    } else if let Some(file) = &args.basic_file {
        let pair = read(file)?;
        let pair = pair.trim_end_matches(['\r', '\n']);
        if !pair.contains(':') {
            bail!("{} is not user:password", file.display());
        }
        Some(format!("Basic {}", STANDARD.encode(pair)))
    } else {
        None
    })
}

fn read_text(environment: &Environment, file: &Path) -> anyhow::Result<String> {
    files::text(&environment.directory.join(file), files::CONFIGURATION).with_context(|| format!("read {}", file.display()))
}

/// Files of the TLS connection, given or found.
struct Tls {
    /// Files of the client certificate and its key.
    identity: Option<(PathBuf, PathBuf)>,
    ca: Option<PathBuf>,
}

impl Tls {
    fn choose(args: &SendArgs, loaded: Option<&Loaded>, environment: &Environment) -> Self {
        let folder = loaded.and_then(|loaded| loaded.files.first()?.parent());
        let within = |dir: &str, name: &str| folder.map(|folder| folder.join(dir).join(name)).filter(|file| file.is_file());
        let pair = |dir: &str| within(dir, "client.crt").zip(within(dir, "client.key"));
        let given = |file: &Option<PathBuf>| file.as_ref().map(|file| environment.directory.join(file));
        Self {
            identity: given(&args.cert).zip(given(&args.key)).or_else(|| pair("client")).or_else(|| pair("tls")),
            ca: given(&args.ca).or_else(|| within("tls", "ca.crt")),
        }
    }

    fn client(&self) -> anyhow::Result<reqwest::Client> {
        let read = |file: &PathBuf| files::read(file, files::CONFIGURATION).with_context(|| format!("read {}", file.display()));
        let mut builder =
            reqwest::Client::builder().timeout(Duration::from_secs(10)).redirect(reqwest::redirect::Policy::none()).no_proxy();
        if let Some(file) = &self.ca {
            let certificates = reqwest::Certificate::from_pem_bundle(&read(file)?).with_context(|| format!("read {}", file.display()))?;
            if certificates.is_empty() {
                bail!("{} has no PEM certificate", file.display());
            }
            builder = builder.tls_certs_only(certificates);
        }
        if let Some((certificate, key)) = &self.identity {
            let pem = [read(certificate)?, read(key)?].join(&b'\n');
            let identity = reqwest::Identity::from_pem(&pem);
            builder = builder.identity(identity.with_context(|| format!("read {} and {}", certificate.display(), key.display()))?);
        }
        builder.build().context("set up TLS")
    }

    /// Describes why there is no reply, and what to look at.
    fn explain(&self, error: &reqwest::Error, url: &Url) -> String {
        let causes = causes(error);
        let tls = causes.iter().find_map(|cause| cause.downcast_ref::<rustls::Error>());
        let mut system = causes.iter().filter_map(|cause| cause.downcast_ref::<io::Error>());
        let ca =
            self.ca.as_ref().map_or_else(|| "the system's authorities; name another by --ca".to_owned(), |file| file.display().to_string());
        let refused = |why: &str| {
            let look = match &self.identity {
                Some((certificate, _)) => format!(
                    "{} must come from its client_ca, be in date, be for clients, and be named in `callers` (after a change of these, call \
                     `stepward envoy-config` again)",
                    certificate.display()
                ),
                None => "it asks for a client certificate; name one by --cert and --key".to_owned(),
            };
            format!("the server refused the connection ({why}): {look}")
        };
        match tls {
            Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
                format!("the server's certificate does not come from {ca}")
            }
            Some(rustls::Error::InvalidCertificate(wrong)) => {
                format!("the server's certificate is not good for {}: {wrong}", url.host_str().unwrap_or_default())
            }
            Some(rustls::Error::AlertReceived(alert)) => refused(&format!("{alert:?}")),
            _ if system.any(|error| error.kind() == io::ErrorKind::ConnectionRefused) => {
                let port = url.port_or_known_default().unwrap_or_default();
                format!(
                    "nothing listens at port {port} of {}: is Envoy running, with what `stepward envoy-config` printed?",
                    url.host_str().unwrap_or_default()
                )
            }
            // In TLS 1.3 the server refuses a certificate after the handshake, and the request may have been begun by then.
            _ if error.is_request() && !error.is_connect() && !error.is_timeout() => refused(&chain(error)),
            _ => chain(error),
        }
    }
}

fn field(name: &str, value: impl Into<Value>) -> (String, Value) {
    (name.to_owned(), value.into())
}

fn verdict(status: u16, text: &str) -> (Map<String, Value>, Exit) {
    let reply: Value = serde_json::from_str(text).unwrap_or_default();
    let allowed = reply.get("allow").and_then(Value::as_bool) == Some(true);
    let (word, exit) = match status {
        200 if allowed => ("allowed", Exit::Done),
        200 => ("denied", Exit::Denied),
        400..=499 => ("refused", Exit::Refused),
        _ => ("unavailable", Exit::Unavailable),
    };
    let mut fields = Map::from_iter([field("verdict", word), field("status", status)]);
    for name in ["code", "message"] {
        if let Some(value) = reply.get("error").and_then(|error| error.get(name)) {
            fields.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(data) = reply.get("data") {
        fields.insert("data".to_owned(), data.clone());
    }
    (fields, exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_either_way() {
        assert_eq!(shift("-31s").unwrap().0, -31_000_000_000);
        assert_eq!(shift("6s").unwrap().0, 6_000_000_000);
        assert!(shift("soon").is_err());
    }

    #[test]
    fn says_what_the_reply_means() {
        for (status, text, word, exit) in [
            (200, r#"{"allow":true,"data":{}}"#, "allowed", Exit::Done),
            (200, r#"{"allow":false,"error":{"code":"a","message":"b"}}"#, "denied", Exit::Denied),
            (200, "", "denied", Exit::Denied),
            (401, "{}", "refused", Exit::Refused),
            (503, r#"{"allow":true}"#, "unavailable", Exit::Unavailable),
        ] {
            let (value, ended) = verdict(status, text);
            assert_eq!((value["verdict"].as_str(), ended), (Some(word), exit));
        }
    }
}
