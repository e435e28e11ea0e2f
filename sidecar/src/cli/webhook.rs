//! `stepward webhook …`: step-ca's side of a webhook, for trying out, for finding faults, and to replace its secret.

mod rotate;

pub(super) use rotate::next as next_name;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand, ValueEnum};
use posture::caller::Peer;
use posture::secret::Secret;
use posture::shape::{PATH, SIGNATURE, WEBHOOK_ID};
use posture::time::UnixTime;
use posture::verify::SigningKeys;
use reqwest::Url;
use rustls::CertificateError;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Exit, Format, OutputArgs, out, print};
use crate::captured::{self, Admitted, Against, Captured, Checked};
use crate::clock;
use crate::config::{Config, Environment, Loaded, duration};
use crate::files;

/// `stepward webhook …`
#[derive(Clone, Debug, Subcommand)]
pub enum WebhookCommand {
    /// Sign a webhook as step-ca does, send it, and print the verdict
    Send(Box<SendArgs>),
    /// Check a captured webhook against a configuration, and say which check fails
    Verify(VerifyArgs),
    /// Print the steps that give a webhook another secret while certificates are issued
    Rotate(rotate::RotateArgs),
}

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
    /// Webhook id; without it the first of the configuration
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

/// Nanoseconds, either way.
#[derive(Clone, Copy, Debug)]
struct Shift(i64);

fn shift(text: &str) -> Result<Shift, String> {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |text| (-1, text));
    let duration = duration(text.trim_start_matches('+'), "-31s or 6s")?;
    let nanos = i64::try_from(duration.as_nanos()).map_err(|_| "too long".to_owned())?;
    Ok(Shift(sign * nanos))
}

/// Runs a command.
///
/// # Errors
/// Where a file or the configuration cannot be read, or the output not be written.
pub async fn run(command: WebhookCommand, environment: &Environment) -> anyhow::Result<Exit> {
    match command {
        WebhookCommand::Send(args) => send(*args, environment).await,
        WebhookCommand::Verify(args) => verify(&args, environment),
        WebhookCommand::Rotate(args) => rotate::run(&args, environment, &mut out()),
    }
}

async fn send(args: SendArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let loaded = configuration(&args, environment)?;
    let loaded = loaded.as_ref();
    let (id, keys) = signer(&args, loaded, environment)?;
    let body = match &args.body {
        Some(file) => files::read(file, files::CONFIGURATION).with_context(|| format!("read {}", file.display()))?,
        None => made_body(&args)?,
    };
    let mut signature = keys.sign(&body).context("sign: there is no secret")?.to_hex();
    if args.forge {
        // The first digit becomes another one.
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
        print(args.output, &Value::Object(verdict), &["verdict", "device", "code", "message", "data", "status", "milliseconds"])?;
        exit = now;
    }
    Ok(exit)
}

/// The configuration, where something is left to be taken from it.
fn configuration(args: &SendArgs, environment: &Environment) -> anyhow::Result<Option<Loaded>> {
    if args.config.is_none() && args.id.is_some() && args.secret_file.is_some() && args.url.is_some() {
        return Ok(None);
    }
    Config::load(args.config.as_deref(), environment).map(Some).context("without --config, --url and --id and --secret-file are needed")
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
        Some(id) => config.webhooks.iter().find(|webhook| webhook.id == *id).with_context(|| format!("there is no webhook `{id}`"))?,
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
        // As the service reads its own: without the end of the line, and with every blank.
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

/// The files of the connection, given or found.
struct Tls {
    /// Certificate and key.
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

    /// Why there is no reply, and what to look at.
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
            // In TLS 1.3 the server says no after the handshake, and the request may have been begun by then.
            _ if error.is_request() && !error.is_connect() && !error.is_timeout() => refused(&chain(error)),
            _ => chain(error),
        }
    }
}

/// An error and everything that it comes from.
pub(super) fn causes<'e>(error: &'e (dyn std::error::Error + 'static)) -> Vec<&'e (dyn std::error::Error + 'static)> {
    let mut causes = vec![error];
    while let Some(last) = causes.last() {
        // An error of the operating system's hides the one that it was made from.
        let within = last.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        let within = within.map(|error| error as &(dyn std::error::Error + 'static));
        let Some(cause) = within.or_else(|| last.source()) else { break };
        causes.push(cause);
    }
    causes
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

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source()).fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What `webhook verify` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:
  stepward webhook verify --config stepward.toml --headers headers.txt --body body.json --at 2026-11-23T10:00:00Z

headers.txt has one `Name: value` a line. Exit codes: 0 every check passes, 1 failed, 2 usage, 3 no device, 4 a check refuses.")]
pub struct VerifyArgs {
    /// Configuration file; without it the variables of step-posture-connector
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
    /// File with the request's headers
    #[arg(long, value_name = "FILE")]
    headers: Option<PathBuf>,
    /// A header, as in 'X-Smallstep-Webhook-ID: …'; may be repeated
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
    /// File with the request's body, byte by byte
    #[arg(long, value_name = "FILE")]
    body: PathBuf,
    /// The caller's certificate, PEM; without it the caller is not checked
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Time of the request, RFC 3339; now without it
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

fn verify(args: &VerifyArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let config = Config::load(args.config.as_deref(), environment)?.config;
    let body = files::read(&args.body, files::CONFIGURATION).with_context(|| format!("read {}", args.body.display()))?;
    let Checked { results, refusal, admitted } = check(args, environment, &config, &body)?;
    match args.output.output {
        Format::Table => results
            .into_iter()
            .try_for_each(|(check, result)| print(args.output, &Value::Object(Map::from_iter([field(check, result)])), &[]))?,
        Format::Json => {
            let list = results.into_iter().map(|(check, result)| json!({ "check": check, "result": result }));
            print(args.output, &list.collect(), &[])?;
        }
    }
    Ok(match (refusal, admitted) {
        (None, Some(Admitted { identity: Ok(_), .. })) => Exit::Done,
        (None, Some(_)) => Exit::Denied,
        _ => Exit::Refused,
    })
}

fn check(args: &VerifyArgs, environment: &Environment, config: &Config, body: &[u8]) -> anyhow::Result<Checked> {
    let now = match &args.at {
        Some(at) => UnixTime::parse(at).with_context(|| format!("read --at `{at}`"))?,
        None => clock::now(),
    };
    let headers = headers(args.headers.as_deref(), &args.header)?;
    let peer = args.cert.as_deref().map(peer).transpose()?.map(|(peer, _)| peer);
    // Of the webhook that the request names: nothing is asked of a provider.
    let named = headers.iter().find(|(name, _)| name == WEBHOOK_ID).map(|(_, id)| id);
    let named = config.webhooks.iter().find(|webhook| Some(&webhook.id) == named);
    let material = named.map(|webhook| config.secrets_of(webhook, environment)).transpose()?;
    let find = |id: &str| {
        let settings = named.filter(|webhook| webhook.id == id)?;
        let material = material.as_ref()?;
        let keys = if settings.unsigned { SigningKeys::unsigned() } else { SigningKeys::new(&material.signing) };
        Some(Against { settings, keys, credentials: &material.credentials, placeholders: &config.placeholders })
    };
    let captured = Captured { path: PATH, headers: &headers, body, peer: peer.as_ref() };
    Ok(captured::check(&captured, find, now))
}

/// The caller of a certificate, PEM, and the certificate itself.
pub(super) fn peer(file: &Path) -> anyhow::Result<(Peer, Vec<u8>)> {
    let pem = files::read(file, files::CONFIGURATION).with_context(|| format!("read {}", file.display()))?;
    Ok(Peer::from_pem(&pem)?)
}

/// Of a file with one a line, and of arguments.
pub(super) fn headers(file: Option<&Path>, given: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let text = match file {
        Some(file) => files::text(file, files::CONFIGURATION).with_context(|| format!("read {}", file.display()))?,
        None => String::new(),
    };
    text.lines().chain(given.iter().map(String::as_str)).filter_map(|line| header(line).transpose()).collect()
}

/// A name in lower case, and its value without the blanks and tabs around it, as Envoy hands it to the filter (RFC 9110, 5.5);
/// none of a blank line and a request line.
pub(super) fn header(line: &str) -> anyhow::Result<Option<(String, String)>> {
    if line.trim().is_empty() || line.starts_with("POST ") {
        return Ok(None);
    }
    match line.split_once(':') {
        Some((name, value)) if !name.is_empty() => Ok(Some((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))),
        _ => bail!("`{line}` is no header"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEBHOOK: &str = "11111111-2222-4333-8444-555555555555";

    /// A folder from `init`, and a body that was signed for it.
    fn captured() -> (tempfile::TempDir, String, Environment) {
        let folder = tempfile::tempdir().unwrap();
        let init = crate::cli::init::InitArgs::new(folder.path().join("demo"));
        let environment = Environment::new(folder.path());
        crate::cli::init::run(&init, &environment, &mut Vec::new()).unwrap();
        let body = r#"{"timestamp":"2026-11-23T10:00:00Z","x509CertificateRequest":{},"attestationData":{"permanentIdentifier":"c02"}}"#;
        std::fs::write(folder.path().join("body"), body).unwrap();
        let secret = std::fs::read_to_string(folder.path().join("demo/secrets/webhook")).unwrap();
        let signature = SigningKeys::new(&[Secret::from_base64(&secret).unwrap()]).sign(body.as_bytes()).unwrap().to_hex();
        (folder, signature, environment)
    }

    fn checked(folder: &Path, environment: &Environment, headers: &[String], at: &str, cert: &str) -> (Vec<(&'static str, String)>, Exit) {
        let args = VerifyArgs {
            config: Some("demo/stepward.toml".into()),
            headers: None,
            header: headers.to_vec(),
            body: folder.join("body"),
            cert: Some(folder.join("demo").join(cert)),
            at: Some(at.to_owned()),
            output: OutputArgs { output: Format::Json },
        };
        let config = Config::load(args.config.as_deref(), environment).unwrap().config;
        let body = std::fs::read(&args.body).unwrap();
        let checked = check(&args, environment, &config, &body).unwrap();
        (checked.results, verify(&args, environment).unwrap())
    }

    #[test]
    fn names_the_check_that_fails() {
        let (folder, signature, environment) = captured();
        let headers =
            |id: &str, signature: &str| vec![format!("X-Smallstep-Webhook-ID: {id}"), format!("X-Smallstep-Signature: {signature}")];
        let good = headers(WEBHOOK, &signature);
        let (at, cert) = ("2026-11-23T10:00:01Z", "client/client.crt");
        for (headers, at, cert, failed, exit) in [
            (good.clone(), at, cert, None, Exit::Done),
            (Vec::new(), at, cert, Some("shape"), Exit::Refused),
            (headers("other", &signature), at, cert, Some("webhook"), Exit::Refused),
            (good.clone(), at, "tls/server.crt", Some("caller"), Exit::Refused),
            (headers(WEBHOOK, &"0".repeat(64)), at, cert, Some("signature"), Exit::Refused),
            (good.clone(), "2026-11-23T10:00:31Z", cert, Some("time"), Exit::Refused),
            (good, "2026-11-23T09:59:54Z", cert, Some("time"), Exit::Refused),
        ] {
            let (fields, ended) = checked(folder.path(), &environment, &headers, at, cert);
            let found = fields.iter().find(|(_, result)| result.starts_with("FAILED")).map(|(name, _)| *name);
            assert_eq!((found, ended), (failed, exit), "{fields:?}");
        }
    }

    #[test]
    fn e12_a_webhook_is_judged_as_the_filter_judges_it_and_by_its_own_secrets_alone() {
        let (folder, signature, environment) = captured();
        let configuration = folder.path().join("demo/stepward.toml");
        let text = std::fs::read_to_string(&configuration).unwrap();
        let (at, cert) = ("2026-11-23T10:00:01Z", "client/client.crt");
        let headers = |id: &str, signature: &str, more: &str| {
            let all = [format!("X-Smallstep-Webhook-ID:\t{id} "), format!("X-Smallstep-Signature: {signature}"), more.to_owned()];
            all.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>()
        };
        let failed = |headers: &[String]| {
            let (fields, exit) = checked(folder.path(), &environment, headers, at, cert);
            (fields.iter().find(|(_, result)| result.starts_with("FAILED")).map(|(name, _)| *name), exit)
        };
        let write = |text: &str| std::fs::write(&configuration, text).unwrap();
        // A management's secret is nothing that a webhook is judged by, nor is that of another webhook.
        let others = "[[webhook]]\nid = \"other\"\nsecrets = [{ env = \"NOWHERE\" }]\ncallers = [\"dns:a\"]\nproviders = [\"mdm\"]\n\
                      [provider.mdm]\ntype = \"kandji\"\nbase_url = \"https://kandji.example.org\"\ntoken = { env = \"NOWHERE\" }\n";
        write(&format!("{text}\n{others}"));
        assert_eq!(failed(&headers(WEBHOOK, &signature, "")), (None, Exit::Done));
        // A blank that no proxy takes away belongs to the value.
        assert_eq!(failed(&headers(WEBHOOK, &format!("{signature}\u{a0}"), "")), (Some("shape"), Exit::Refused));
        let limited = |limit: u32| text.replacen("[[webhook]]", &format!("[[webhook]]\nbody_limit = {limit}"), 1);
        write(&limited(1024));
        assert_eq!(failed(&headers(WEBHOOK, &signature, "Content-Length: 1024")), (None, Exit::Done));
        assert_eq!(failed(&headers(WEBHOOK, &signature, "Content-Length: 1025")), (Some("size"), Exit::Refused));
        let body = format!("{}{}", std::fs::read_to_string(folder.path().join("body")).unwrap(), " ".repeat(1024));
        std::fs::write(folder.path().join("body"), &body).unwrap();
        let secret = std::fs::read_to_string(folder.path().join("demo/secrets/webhook")).unwrap();
        let signature = SigningKeys::new(&[Secret::from_base64(&secret).unwrap()]).sign(body.as_bytes()).unwrap().to_hex();
        assert_eq!(failed(&headers(WEBHOOK, &signature, "")), (Some("size"), Exit::Refused));
        write(&text);
        assert_eq!(failed(&headers(WEBHOOK, &signature, "")), (None, Exit::Done));
    }

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
