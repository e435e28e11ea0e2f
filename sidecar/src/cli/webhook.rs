//! `stepward webhook send` and `stepward webhook verify`: step-ca's side of a webhook, for trying out and for finding faults.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use posture::caller::Peer;
use posture::credential::Credentials;
use posture::outcome::Refusal;
use posture::secret::Secret;
use posture::shape::{SIGNATURE, WEBHOOK_ID, shape};
use posture::time::UnixTime;
use posture::verify::{SigningKeys, Verified};
use posture::webhook::Webhook;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Exit, Format, OutputArgs, print};
use crate::config::{Config, Environment};

/// `stepward webhook …`
#[derive(Clone, Debug, Subcommand)]
pub enum WebhookCommand {
    /// Sign a webhook as step-ca does, send it, and print the verdict
    Send(SendArgs),
    /// Check a captured webhook against a configuration, and say which check fails
    Verify(VerifyArgs),
}

/// What `webhook send` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward webhook send --config stepward.toml --url https://localhost:9443/webhook/device \\
    --cert tls/client.crt --key tls/client.key --ca tls/ca.crt --device C02XL0GYJGH5
  … --forge                 with a signature that does not fit
  … --skew -31s             with a clock that is 31 s slow
  … --repeat 2              the same bytes twice, as after a lost answer

Exit codes, of the last one sent: 0 allowed, 1 failed, 2 usage, 3 denied, 4 refused (4xx), 5 unavailable (5xx or no answer).")]
pub struct SendArgs {
    /// Where to send it
    #[arg(long)]
    url: String,
    /// Webhook id; without it that of the configuration's first webhook
    #[arg(long)]
    id: Option<String>,
    /// File with the secret in base64, as step-ca prints it
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Configuration file to take id and secret from
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
    /// Client certificate, PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Authority of the server's certificate, PEM; without it the system's
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
    let duration = humantime::parse_duration(text.trim_start_matches('+')).map_err(|error| error.to_string())?;
    let nanos = i64::try_from(duration.as_nanos()).map_err(|_| "too long".to_owned())?;
    Ok(Shift(sign * nanos))
}

/// Runs either command.
///
/// # Errors
/// Where a file or the configuration cannot be read, or the output not be written.
pub async fn run(command: WebhookCommand, environment: &Environment) -> anyhow::Result<Exit> {
    match command {
        WebhookCommand::Send(args) => send(args, environment).await,
        WebhookCommand::Verify(args) => verify(&args, environment),
    }
}

async fn send(args: SendArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let (id, keys) = signer(&args, environment)?;
    let body = match &args.body {
        Some(file) => std::fs::read(file).with_context(|| format!("read {}", file.display()))?,
        None => made_body(&args)?,
    };
    let mut signature = keys.sign(&body).context("sign: there is no secret")?.to_hex();
    if args.forge {
        // The first digit becomes another one.
        let first = if signature.starts_with('0') { "1" } else { "0" };
        signature.replace_range(..1, first);
    }
    let client = client(&args)?;
    let mut url = reqwest::Url::parse(&args.url).context("read --url")?;
    if let Some(mode) = &args.mode {
        url.set_query(Some(&format!("mode={mode}")));
    }
    let mut exit = Exit::Done;
    for _ in 0..args.repeat.max(1) {
        let mut request = client
            .post(url.clone())
            .header("content-type", "application/json")
            .header(WEBHOOK_ID, &id)
            .header(SIGNATURE, &signature)
            .body(body.clone());
        if let Some(file) = &args.bearer_file {
            let token = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            request = request.header("authorization", format!("Bearer {}", token.trim_end()));
        }
        let started = Instant::now();
        let (verdict, now) = match request.send().await {
            Ok(response) => {
                let status = response.status().as_u16();
                let text = response.text().await.unwrap_or_default();
                verdict(status, &text, started.elapsed())
            }
            Err(error) => (json!({ "verdict": "unavailable", "message": chain(&error) }), Exit::Unavailable),
        };
        print(args.output, &verdict)?;
        exit = now;
    }
    Ok(exit)
}

fn signer(args: &SendArgs, environment: &Environment) -> anyhow::Result<(String, SigningKeys)> {
    let read = |file: &Path| {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        Secret::from_base64(&text).with_context(|| format!("read {}", file.display()))
    };
    if let (Some(id), Some(file)) = (&args.id, &args.secret_file) {
        return Ok((id.clone(), SigningKeys::new(&[read(file)?])));
    }
    let config = Config::load(args.config.as_deref(), environment).context("take id and secret from a configuration")?.config;
    let secrets = config.resolve_secrets(environment)?;
    let mut webhooks = config.webhooks.iter().zip(secrets.webhooks);
    let (webhook, material) = match &args.id {
        Some(id) => webhooks.find(|(webhook, _)| webhook.id == *id).with_context(|| format!("there is no webhook `{id}`"))?,
        None => webhooks.next().context("there is no webhook")?,
    };
    let keys = match &args.secret_file {
        Some(file) => SigningKeys::new(&[read(file)?]),
        None if webhook.unsigned => SigningKeys::unsigned(),
        None => SigningKeys::new(&material.signing),
    };
    Ok((webhook.id.clone(), keys))
}

fn made_body(args: &SendArgs) -> anyhow::Result<Vec<u8>> {
    let device = args.device.as_deref().context("--device is missing")?;
    let now = UnixTime::from_system(SystemTime::now()).as_nanos().saturating_add(args.skew.map_or(0, |shift| shift.0));
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

fn client(args: &SendArgs) -> anyhow::Result<reqwest::Client> {
    let read = |file: &PathBuf| std::fs::read(file).with_context(|| format!("read {}", file.display()));
    let mut builder = reqwest::Client::builder().timeout(Duration::from_secs(10)).redirect(reqwest::redirect::Policy::none()).no_proxy();
    if let Some(file) = &args.ca {
        builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(&read(file)?)?);
    }
    if let (Some(certificate), Some(key)) = (&args.cert, &args.key) {
        let pem = [read(certificate)?, read(key)?].join(&b'\n');
        builder = builder.identity(reqwest::Identity::from_pem(&pem).context("read --cert and --key")?);
    }
    Ok(builder.build()?)
}

fn verdict(status: u16, text: &str, elapsed: Duration) -> (Value, Exit) {
    let reply: Value = serde_json::from_str(text).unwrap_or_default();
    let allowed = reply.get("allow").and_then(Value::as_bool) == Some(true);
    let (word, exit) = match status {
        200 if allowed => ("allowed", Exit::Done),
        200 => ("denied", Exit::Denied),
        400..=499 => ("refused", Exit::Refused),
        _ => ("unavailable", Exit::Unavailable),
    };
    let mut fields = Map::new();
    fields.insert("verdict".to_owned(), word.into());
    fields.insert("status".to_owned(), status.into());
    for name in ["code", "message"] {
        if let Some(value) = reply.get("error").and_then(|error| error.get(name)) {
            fields.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(data) = reply.get("data") {
        fields.insert("data".to_owned(), data.clone());
    }
    fields.insert("milliseconds".to_owned(), u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).into());
    (Value::Object(fields), exit)
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

/// Checks in the order in which a webhook meets them, up to the first that fails.
struct Checks {
    fields: Vec<(String, Value)>,
    exit: Exit,
}

impl Checks {
    fn note(&mut self, check: &str, result: impl Into<Value>) {
        self.fields.push((check.to_owned(), result.into()));
    }

    fn stop(&mut self, check: &str, why: &str, exit: Exit) {
        self.note(check, format!("FAILED: {why}"));
        self.exit = exit;
    }
}

fn verify(args: &VerifyArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let config = Config::load(args.config.as_deref(), environment)?.config;
    let body = std::fs::read(&args.body).with_context(|| format!("read {}", args.body.display()))?;
    let mut checks = Checks { fields: Vec::new(), exit: Exit::Done };
    check(args, environment, &config, &body, &mut checks)?;
    match args.output.output {
        Format::Table => checks.fields.into_iter().try_for_each(|field| print(args.output, &Value::Object(Map::from_iter([field]))))?,
        Format::Json => {
            let list = checks.fields.into_iter().map(|(check, result)| json!({ "check": check, "result": result }));
            print(args.output, &list.collect())?;
        }
    }
    Ok(checks.exit)
}

fn check(args: &VerifyArgs, environment: &Environment, config: &Config, body: &[u8], checks: &mut Checks) -> anyhow::Result<()> {
    let now = match &args.at {
        Some(at) => UnixTime::parse(at).with_context(|| format!("read --at `{at}`"))?,
        None => UnixTime::from_system(SystemTime::now()),
    };
    let headers = headers(args)?;
    let method_and_path = [(":method", &b"POST"[..]), (":path", b"/webhook/")];
    let shape = match shape(method_and_path.into_iter().chain(headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())))) {
        Ok(shape) => shape,
        Err(refusal) => {
            checks.stop("shape", refusal.as_str(), Exit::Refused);
            return Ok(());
        }
    };
    checks.note("shape", "ok");
    let secrets = config.resolve_secrets(environment)?;
    let Some((webhook, material)) = config.webhooks.iter().zip(secrets.webhooks).find(|(webhook, _)| webhook.id == shape.webhook_id) else {
        checks.stop("webhook", &format!("no webhook has the id `{}`", shape.webhook_id), Exit::Refused);
        return Ok(());
    };
    checks.note("webhook", "ok");
    match &args.cert {
        None => checks.note("caller", "not checked: no --cert"),
        Some(file) => {
            let pem = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
            let (peer, _) = Peer::from_pem(&pem)?;
            match webhook.callers.admit(Some(&peer)) {
                Some(caller) => checks.note("caller", format!("ok: {}", caller.as_str())),
                None => {
                    let names = peer.names().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                    checks.stop("caller", &format!("none of {names} may call, or the certificate is not for clients"), Exit::Refused);
                    return Ok(());
                }
            }
        }
    }
    let credentials: &Credentials = &material.credentials;
    if credentials.check(shape.authorization.value()).is_err() {
        checks.stop("credentials", "Authorization is none of those that the webhook requires", Exit::Refused);
        return Ok(());
    }
    checks.note("credentials", if credentials.values().is_empty() { "ok: none required" } else { "ok" });
    let keys = if webhook.unsigned { SigningKeys::unsigned() } else { SigningKeys::new(&material.signing) };
    let verified = match Verified::<Webhook<'_>>::verify(&keys, &shape.signature, body, &webhook.window, now) {
        Ok(verified) => verified,
        Err(refusal) => {
            let check = match refusal {
                Refusal::Signature => "signature",
                Refusal::Malformed => "schema",
                _ => "time",
            };
            for passed in ["signature", "schema"].into_iter().take_while(|passed| *passed != check) {
                checks.note(passed, "ok");
            }
            let why = match refusal {
                Refusal::Signature => "none of the webhook's secrets gives this signature over this body",
                Refusal::Malformed => "the body is not a step-ca webhook",
                Refusal::TimestampPast => "the timestamp is older than the window",
                _ => "the timestamp is further ahead than the window",
            };
            checks.stop(check, why, Exit::Refused);
            return Ok(());
        }
    };
    checks.note("signature", "ok");
    checks.note("schema", "ok");
    checks.note("time", format!("ok: {} ms old", verified.age() / 1_000_000));
    if verified.get().expect(webhook.kind).is_err() {
        checks.stop("kind", &format!("the body is not {}", webhook.kind.as_str()), Exit::Refused);
        return Ok(());
    }
    checks.note("kind", format!("ok: {}", webhook.kind.as_str()));
    match webhook.source.identify(verified.get(), webhook.identifier) {
        Ok(identity) => {
            let device = identity.device;
            checks.note("identity", format!("ok: {} {}, {}", device.kind(), device.normal(), identity.trust.as_str()));
        }
        Err(denial) => checks.stop("identity", &format!("{}: {}", denial.code, denial.message), Exit::Denied),
    }
    Ok(())
}

/// Names in lower case, values without the spaces around them (RFC 9110, 5.5).
fn headers(args: &VerifyArgs) -> anyhow::Result<Vec<(String, String)>> {
    let text = match &args.headers {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?,
        None => String::new(),
    };
    let lines = text.lines().chain(args.header.iter().map(String::as_str)).filter(|line| !line.trim().is_empty());
    lines
        .filter(|line| !line.starts_with("POST "))
        .map(|line| match line.split_once(':') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_ascii_lowercase(), value.trim().to_owned())),
            _ => bail!("`{line}` is no header"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEBHOOK: &str = "11111111-2222-4333-8444-555555555555";

    /// A folder from `init`, and a body that was signed for it.
    fn captured() -> (tempfile::TempDir, String, Environment) {
        let folder = tempfile::tempdir().unwrap();
        let init = crate::cli::init::InitArgs::new(folder.path().join("demo"));
        crate::cli::init::run(&init, &mut Vec::new()).unwrap();
        let body = r#"{"timestamp":"2026-11-23T10:00:00Z","x509CertificateRequest":{},"attestationData":{"permanentIdentifier":"c02"}}"#;
        std::fs::write(folder.path().join("body"), body).unwrap();
        let secret = std::fs::read_to_string(folder.path().join("demo/secrets/webhook")).unwrap();
        let signature = SigningKeys::new(&[Secret::from_base64(&secret).unwrap()]).sign(body.as_bytes()).unwrap().to_hex();
        let environment = Environment::new(folder.path());
        (folder, signature, environment)
    }

    fn checked(folder: &Path, environment: &Environment, headers: &[String], at: &str, cert: &str) -> (Vec<(String, Value)>, Exit) {
        let args = VerifyArgs {
            config: Some("demo/stepward.toml".into()),
            headers: None,
            header: headers.to_vec(),
            body: folder.join("body"),
            cert: Some(folder.join("demo/tls").join(cert)),
            at: Some(at.to_owned()),
            output: OutputArgs { output: Format::Json },
        };
        let config = Config::load(args.config.as_deref(), environment).unwrap().config;
        let body = std::fs::read(&args.body).unwrap();
        let mut checks = Checks { fields: Vec::new(), exit: Exit::Done };
        check(&args, environment, &config, &body, &mut checks).unwrap();
        (checks.fields, checks.exit)
    }

    #[test]
    fn names_the_check_that_fails() {
        let (folder, signature, environment) = captured();
        let headers =
            |id: &str, signature: &str| vec![format!("X-Smallstep-Webhook-ID: {id}"), format!("X-Smallstep-Signature: {signature}")];
        let good = headers(WEBHOOK, &signature);
        let (at, cert) = ("2026-11-23T10:00:01Z", "client.crt");
        for (headers, at, cert, failed, exit) in [
            (good.clone(), at, cert, None, Exit::Done),
            (Vec::new(), at, cert, Some("shape"), Exit::Refused),
            (headers("other", &signature), at, cert, Some("webhook"), Exit::Refused),
            (good.clone(), at, "server.crt", Some("caller"), Exit::Refused),
            (headers(WEBHOOK, &"0".repeat(64)), at, cert, Some("signature"), Exit::Refused),
            (good.clone(), "2026-11-23T10:00:31Z", cert, Some("time"), Exit::Refused),
            (good, "2026-11-23T09:59:54Z", cert, Some("time"), Exit::Refused),
        ] {
            let (fields, ended) = checked(folder.path(), &environment, &headers, at, cert);
            let found = fields
                .iter()
                .find(|(_, value)| value.as_str().is_some_and(|text| text.starts_with("FAILED")))
                .map(|(name, _)| name.as_str());
            assert_eq!((found, ended), (failed, exit), "{fields:?}");
        }
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
            let (value, ended) = verdict(status, text, Duration::ZERO);
            assert_eq!((value["verdict"].as_str(), ended), (Some(word), exit));
        }
    }
}
