//! `stepward init`: a folder that works, to start from.

mod args;
mod fingerprint;
mod folder;
mod step_ca;

pub use args::InitArgs;
pub use step_ca::run_for_step_ca;

use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::Rng as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use settings::Environment;

use super::exit::Exit;
use super::pasted::shell_word;
use folder::{WASM, exists, found, program, wasm, write};

/// Makes the folder and says what is next.
///
/// # Errors
/// Where a file is there already, or cannot be written.
pub fn run(args: &InitArgs, environment: &Environment, out: &mut impl Write) -> anyhow::Result<Exit> {
    let wasm = wasm(args, environment);
    let files = files(args, wasm.as_deref())?;
    exists(&files.iter().map(|(path, ..)| path.clone()).collect::<Vec<_>>())?;
    for (path, content, mode) in &files {
        write(path, content, *mode)?;
    }
    let (dir, stepward) = (args.dir.display(), quoted(&program(environment)));
    let (config, envoy) = (quoted(&args.dir.join("stepward.toml")), quoted(&args.dir.join("envoy.yaml")));
    writeln!(out, "Made {dir}: stepward.toml, devices.json, secrets/webhook, tls/, client/, ca/.")?;
    if wasm.is_none() {
        writeln!(out, "{WASM} was not found: name it under [envoy] in stepward.toml first.")?;
    }
    writeln!(
        out,
        "
Next, each of the long-running ones in a terminal of its own:
  {stepward} serve --config {config}
  {stepward} envoy-config --config {config} --output {envoy}
  envoy -c {envoy}
  {stepward} webhook send --config {config} --device C02XL0GYJGH5"
    )?;
    Ok(Exit::Done)
}

/// Returns a path quoted, where it has to be, so that a POSIX shell takes it for one word.
fn quoted(path: &Path) -> String {
    shell_word(&path.display().to_string())
}

/// Makes the files of the folder: path, content and mode of each.
fn files(args: &InitArgs, wasm: Option<&Path>) -> anyhow::Result<Vec<(PathBuf, String, u32)>> {
    let mut secret = [0; 32];
    rand::rng().fill_bytes(&mut secret);
    let (issuer, ca) = authority()?;
    let server = leaf(
        &issuer,
        "localhost",
        vec![dns("localhost")?, SanType::IpAddress([127, 0, 0, 1].into())],
        vec![ExtendedKeyUsagePurpose::ServerAuth],
    )?;
    let client = leaf(
        &issuer,
        "step-ca",
        vec![dns("ca.example.org")?, SanType::URI("spiffe://example.org/step-ca".try_into()?)],
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
    )?;
    let wasm = found(wasm)?;
    let at = |name: &str| args.dir.join(name);
    Ok(vec![
        (at("stepward.toml"), CONFIGURATION.replace("{wasm}", &wasm), 0o644),
        (at("devices.json"), DEVICES.to_owned(), 0o644),
        (at("secrets/webhook"), STANDARD.encode(secret) + "\n", 0o600),
        (at("tls/ca.crt"), ca.certificate, 0o644),
        // The authority's key is not in tls/, which Envoy reads: Envoy needs neither to issue certificates nor to call.
        (at("ca/ca.key"), ca.key, 0o600),
        (at("tls/server.crt"), server.certificate, 0o644),
        (at("tls/server.key"), server.key, 0o600),
        (at("client/client.crt"), client.certificate, 0o644),
        (at("client/client.key"), client.key, 0o600),
    ])
}

struct Pem {
    certificate: String,
    key: String,
}

fn authority() -> anyhow::Result<(Issuer<'static, KeyPair>, Pem)> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Stepward throw-away authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let pem = Pem { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
    Ok((Issuer::new(params, key), pem))
}

fn leaf(issuer: &Issuer<'_, KeyPair>, name: &str, sans: Vec<SanType>, usages: Vec<ExtendedKeyUsagePurpose>) -> anyhow::Result<Pem> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = sans;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    Ok(Pem { certificate: params.signed_by(&key, issuer)?.pem(), key: key.serialize_pem() })
}

fn dns(name: &str) -> anyhow::Result<SanType> {
    Ok(SanType::DnsName(name.try_into()?))
}

const CONFIGURATION: &str = r#"[listen]
sockets = "run"
admin = "127.0.0.1:9464"

[envoy]
webhook_address = "127.0.0.1:9443"
certificate = "tls/server.crt"
private_key = "tls/server.key"
client_ca = "tls/ca.crt"
{wasm}

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
    use crate::config::Config;

    #[test]
    fn makes_a_folder_that_loads_and_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let args = InitArgs::new(folder.path().join("demo"));
        let environment = Environment::new(folder.path());
        assert_eq!(run(&args, &environment, &mut Vec::new()).unwrap(), Exit::Done);
        let config = Config::load(Some(Path::new("demo/stepward.toml")), &environment).unwrap().config;
        assert_eq!(config.resolve_secrets(&environment).unwrap().webhooks.len(), 1);
        for settings in config.providers.values() {
            assert_eq!(engine::provider::open("staff", settings, &[], None, &engine::provider::Context::default()).unwrap().len(), 2);
        }
        let pem = std::fs::read(args.dir.join("client/client.crt")).unwrap();
        let (peer, _) = posture::caller::Peer::from_pem(&pem).unwrap();
        assert!(config.webhooks.iter().all(|webhook| webhook.callers.admit(Some(&peer)).is_some()));
        let before = std::fs::read(args.dir.join("secrets/webhook")).unwrap();
        assert!(run(&args, &environment, &mut Vec::new()).is_err());
        assert_eq!(std::fs::read(args.dir.join("secrets/webhook")).unwrap(), before);
    }

    #[test]
    fn what_envoy_reads_holds_its_own_key_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        run(&InitArgs::new(folder.path().join("demo")), &Environment::new(folder.path()), &mut Vec::new()).unwrap();
        let names = |dir: &str| -> std::collections::BTreeSet<String> {
            let entries = std::fs::read_dir(folder.path().join("demo").join(dir)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        assert!(names("tls").iter().eq(["ca.crt", "server.crt", "server.key"]));
        assert!(names("client").iter().eq(["client.crt", "client.key"]) && names("ca").iter().eq(["ca.key"]));
    }

    #[test]
    fn names_the_filter_beside_the_program_or_in_dist_or_says_that_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let made = |dir: &str| {
            let mut environment = Environment::new(&root);
            environment.executable = Some(root.join("bin/stepward"));
            let mut out = Vec::new();
            run(&InitArgs { wasm: None, ..InitArgs::new(root.join(dir)) }, &environment, &mut out).unwrap();
            let config = std::fs::read_to_string(root.join(dir).join("stepward.toml")).unwrap();
            Config::parse(&config, &root.join(dir).join("stepward.toml"), &environment).unwrap();
            (config, String::from_utf8(out).unwrap())
        };
        let (config, out) = made("none");
        assert!(config.contains("\n# wasm = ") && out.contains("was not found"), "{config} {out}");
        for place in ["dist", "bin"] {
            std::fs::create_dir(root.join(place)).unwrap();
            std::fs::write(root.join(place).join(WASM), "").unwrap();
            let (config, out) = made(&format!("with {place}"));
            assert!(config.contains(&format!("wasm = \"{}\"", root.join(place).join(WASM).display())), "{config}");
            assert!(!out.contains("was not found"), "{out}");
        }
    }

    #[test]
    fn the_next_steps_can_be_pasted() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let program = |executable: &str, path: &str| {
            let mut environment = Environment::new(root.join("work"));
            environment.executable = Some(root.join(executable));
            program(&environment.with("PATH", &root.join(path).display().to_string()))
        };
        std::fs::create_dir(root.join("bin")).unwrap();
        std::fs::write(root.join("bin/stepward"), "").unwrap();
        assert_eq!(program("bin/stepward", "bin"), Path::new("stepward"));
        assert_eq!(program("bin/stepward", "other"), root.join("bin/stepward"));
        assert_eq!(program("work/dist/stepward", "other"), Path::new("./dist/stepward"));
        for (path, word) in [("a/b.toml", "a/b.toml"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("$HOME", "'$HOME'")] {
            assert_eq!(quoted(Path::new(path)), word);
        }
    }
}
