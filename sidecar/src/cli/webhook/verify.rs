//! `stepward webhook verify`: a captured webhook, against every check before a device is looked up.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use posture::shape::{PATH, WEBHOOK_ID};
use posture::time::UnixTime;
use posture::verify::SigningKeys;
use serde_json::{Map, Value, json};
use settings::{Environment, files};

use crate::cli::exit::Exit;
use crate::cli::output::{Format, OutputArgs, print};
use crate::cli::request::{headers, peer};
use crate::config::Config;
use engine::captured::{self, Admitted, Against, Captured, Checked};

/// What `webhook verify` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:
  stepward webhook verify --config stepward.toml --headers headers.txt --body body.json --at 2026-11-23T10:00:00Z

headers.txt has one `Name: value` a line.

Exit codes: 0 every check passes, 1 failed, 2 usage, 3 no device, 4 a check refuses.")]
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

/// Checks a captured webhook, and prints each check with its result.
///
/// # Errors
/// Where a file or the configuration cannot be read, or the output not be written.
pub(super) fn verify(args: &VerifyArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let config = Config::load(args.config.as_deref(), environment)?.config;
    let body = files::read(&args.body, files::CONFIGURATION).with_context(|| format!("read {}", args.body.display()))?;
    let Checked { results, refusal, admitted } = check(args, environment, &config, &body)?;
    match args.output.output {
        Format::Table => results
            .into_iter()
            .try_for_each(|(check, result)| print(args.output, &Value::Object(Map::from_iter([(check.to_owned(), result.into())])), &[]))?,
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
    // Only the secrets of the webhook that the request names are read: nothing is asked of a provider.
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use posture::secret::Secret;

    use super::*;
    use crate::fixture;

    const WEBHOOK: &str = "11111111-2222-4333-8444-555555555555";

    /// Makes a service's folder, and a body that was signed for it.
    fn captured() -> (tempfile::TempDir, String, Environment) {
        let folder = tempfile::tempdir().unwrap();
        fixture::make(&folder.path().join("demo"));
        let environment = Environment::new(folder.path());
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
        // A webhook is judged neither by a management's secret nor by that of another webhook.
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
}
