//! `stepward init`: a folder that works, to start from.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use rand::Rng as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

use super::Exit;

/// What `init` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example: stepward init demo && stepward serve --config demo/stepward.toml

It overwrites nothing. The certificates are for trying out: their authority's key stays in the folder.
Exit codes: 0 made, 1 something is in the way, 2 usage.")]
pub struct InitArgs {
    /// The folder
    dir: PathBuf,
    /// The filter that the configuration names
    #[arg(long, value_name = "FILE", default_value = "stepward_filter.wasm")]
    wasm: PathBuf,
}

#[cfg(test)]
impl InitArgs {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, wasm: "filter.wasm".into() }
    }
}

/// Makes the folder and says what is next.
///
/// # Errors
/// Where a file is there already, or cannot be written.
pub fn run(args: &InitArgs, out: &mut impl Write) -> anyhow::Result<Exit> {
    let files = files(args)?;
    if let Some((path, ..)) = files.iter().find(|(path, ..)| path.exists()) {
        bail!("{} is there already; nothing was written", path.display());
    }
    for (path, content, mode) in &files {
        write(path, content, *mode)?;
    }
    let dir = args.dir.display();
    writeln!(
        out,
        "Made {dir}: stepward.toml, devices.json, secrets/webhook, tls/.

Next:
  stepward serve --config {dir}/stepward.toml
  stepward envoy-config --config {dir}/stepward.toml --output {dir}/envoy.yaml
  envoy -c {dir}/envoy.yaml
  stepward webhook send --config {dir}/stepward.toml --url https://localhost:9443/webhook/device \\
    --cert {dir}/tls/client.crt --key {dir}/tls/client.key --ca {dir}/tls/ca.crt --device C02XL0GYJGH5"
    )?;
    Ok(Exit::Done)
}

fn files(args: &InitArgs) -> anyhow::Result<Vec<(PathBuf, String, u32)>> {
    let mut secret = [0; 32];
    rand::rng().fill_bytes(&mut secret);
    let ca = authority()?;
    let server = leaf(
        &ca,
        "localhost",
        vec![dns("localhost")?, SanType::IpAddress([127, 0, 0, 1].into())],
        vec![ExtendedKeyUsagePurpose::ServerAuth],
    )?;
    let client = leaf(
        &ca,
        "step-ca",
        vec![dns("ca.example.org")?, SanType::URI("spiffe://example.org/step-ca".try_into()?)],
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
    )?;
    let wasm = std::path::absolute(&args.wasm)?;
    let at = |name: &str| args.dir.join(name);
    Ok(vec![
        (at("stepward.toml"), CONFIGURATION.replace("{wasm}", &wasm.display().to_string()), 0o644),
        (at("devices.json"), DEVICES.to_owned(), 0o644),
        (at("secrets/webhook"), STANDARD.encode(secret) + "\n", 0o600),
        (at("tls/ca.crt"), ca.certificate, 0o644),
        (at("tls/ca.key"), ca.key, 0o600),
        (at("tls/server.crt"), server.certificate, 0o644),
        (at("tls/server.key"), server.key, 0o600),
        (at("tls/client.crt"), client.certificate, 0o644),
        (at("tls/client.key"), client.key, 0o600),
    ])
}

struct Pem {
    certificate: String,
    key: String,
}

fn authority() -> anyhow::Result<Pem> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Stepward throw-away authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    Ok(Pem { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

fn leaf(ca: &Pem, name: &str, sans: Vec<SanType>, usages: Vec<ExtendedKeyUsagePurpose>) -> anyhow::Result<Pem> {
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, KeyPair::from_pem(&ca.key)?)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = sans;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    Ok(Pem { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
}

fn dns(name: &str) -> anyhow::Result<SanType> {
    Ok(SanType::DnsName(name.try_into()?))
}

fn write(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    }
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

const CONFIGURATION: &str = r#"[listen]
sockets = "run"
admin = "127.0.0.1:9464"

[envoy]
webhook_address = "127.0.0.1:9443"
certificate = "tls/server.crt"
private_key = "tls/server.key"
client_ca = "tls/ca.crt"
wasm = "{wasm}"

[[webhook]]
id = "11111111-2222-4333-8444-555555555555"
secrets = [{ file = "secrets/webhook" }]
callers = ["uri:spiffe://example.org/step-ca"]
providers = ["staff"]

[provider.staff]
type = "file"
path = "devices.json"
"#;

const DEVICES: &str = r#"{
  "devices": [
    { "identifier": "C02XL0GYJGH5", "data": { "user": "alice@example.org", "department": "Engineering" } },
    { "identifier": "PF3ABCDE", "data": { "user": "bob@example.org", "department": "Support" } }
  ]
}
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment};

    #[test]
    fn makes_a_folder_that_loads_and_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let args = InitArgs::new(folder.path().join("demo"));
        assert_eq!(run(&args, &mut Vec::new()).unwrap(), Exit::Done);
        let environment = Environment::new(folder.path());
        let config = Config::load(Some(Path::new("demo/stepward.toml")), &environment).unwrap().config;
        assert_eq!(config.resolve_secrets(&environment).unwrap().webhooks.len(), 1);
        for settings in config.providers.values() {
            assert_eq!(crate::provider::Provider::open(settings).unwrap().len(), 2);
        }
        let pem = std::fs::read(args.dir.join("tls/client.crt")).unwrap();
        let (peer, _) = posture::caller::Peer::from_pem(&pem).unwrap();
        assert!(config.webhooks.iter().all(|webhook| webhook.callers.admit(Some(&peer)).is_some()));
        let before = std::fs::read(args.dir.join("secrets/webhook")).unwrap();
        assert!(run(&args, &mut Vec::new()).is_err());
        assert_eq!(std::fs::read(args.dir.join("secrets/webhook")).unwrap(), before);
    }
}
