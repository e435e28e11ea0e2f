//! `stepward init`: a folder that works, to start from.

mod step_ca;

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use rand::Rng as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

use reqwest::Url;

use super::{Exit, shell_word};
use crate::config::Environment;

/// What `init` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward init demo && stepward serve --config demo/stepward.toml
  stepward init stepward --step-ca https://ca.example.org:8443 --fingerprint 7070b2… --url https://stepward.example.org:9443/webhook/device
  stepward init stepward --step-ca https://ca.example.org:8443 --root root_ca.crt --provisioner devices --url https://…

It overwrites nothing. Without --step-ca the certificates are for trying out: their authority's key stays in the folder. With it
the folder fits that CA: its authorities, the name that it calls by, and how a device of the provisioner is identified; what is
left to do in the CA is printed. Nothing in the CA is changed.
Exit codes: 0 made, 1 something is in the way, 2 usage.")]
pub struct InitArgs {
    /// The folder
    dir: PathBuf,
    /// The filter that the configuration names; without it stepward_filter.wasm beside this program, else in dist/
    #[arg(long, value_name = "FILE")]
    wasm: Option<PathBuf>,
    /// Address of a step-ca that the folder is to fit
    #[arg(long, value_name = "URL")]
    pub(super) step_ca: Option<Url>,
    /// SHA-256 of its root, as `step certificate fingerprint root_ca.crt` prints it
    #[arg(long, value_name = "HEX", requires = "step_ca")]
    fingerprint: Option<step_ca::Fingerprint>,
    /// Its root, PEM, instead of the fingerprint or besides
    #[arg(long, value_name = "FILE", requires = "step_ca")]
    root: Option<PathBuf>,
    /// Its provisioner that is to ask; without it the one that attests devices, or a new one
    #[arg(long, value_name = "NAME", requires = "step_ca")]
    provisioner: Option<String>,
    /// Where it reaches Envoy; without it https://localhost:9443/webhook/device, for a CA on this machine
    #[arg(long, value_name = "URL", requires = "step_ca")]
    url: Option<Url>,
}

#[cfg(test)]
impl InitArgs {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, wasm: Some("filter.wasm".into()), step_ca: None, fingerprint: None, root: None, provisioner: None, url: None }
    }
}

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

/// Makes the folder for the step-ca that is named.
///
/// # Errors
/// As [`run`], and where the CA cannot be asked, is another one, or cannot have webhooks.
pub async fn run_for_step_ca(args: &InitArgs, environment: &Environment, out: &mut impl Write) -> anyhow::Result<Exit> {
    step_ca::run(args, environment, out).await
}

/// Fails where one of these files is there.
fn exists(files: &[PathBuf]) -> anyhow::Result<()> {
    match files.iter().find(|path| path.exists()) {
        Some(path) => bail!("{} is there already; nothing was written", path.display()),
        None => Ok(()),
    }
}

/// The filter to name, absolute; `None` where none was given or found.
fn wasm(args: &InitArgs, environment: &Environment) -> Option<PathBuf> {
    if let Some(given) = &args.wasm {
        return Some(environment.directory.join(given));
    }
    let beside = environment.executable.as_deref().and_then(Path::parent).map(|folder| folder.join(WASM));
    let built = environment.directory.join("dist").join(WASM);
    beside.into_iter().chain([built]).find(|file| file.is_file())
}

/// How to call this program from the working directory.
fn program(environment: &Environment) -> PathBuf {
    let Some(executable) = &environment.executable else { return "stepward".into() };
    let mut folders = environment.variable("PATH").into_iter().flat_map(std::env::split_paths);
    let called = |file: PathBuf| file.canonicalize().is_ok_and(|file| file == *executable);
    if executable.file_name().is_some_and(|name| folders.any(|folder| called(folder.join(name)))) {
        return executable.file_name().map(PathBuf::from).unwrap_or_default();
    }
    match executable.strip_prefix(&environment.directory) {
        // A bare name would be looked up in PATH.
        Ok(relative) => Path::new(".").join(relative),
        Err(_) => executable.clone(),
    }
}

/// As a POSIX shell takes it for one word.
fn quoted(path: &Path) -> String {
    shell_word(&path.display().to_string())
}

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
        // Not in tls/, which Envoy reads: it needs neither to issue certificates nor to call.
        (at("ca/ca.key"), ca.key, 0o600),
        (at("tls/server.crt"), server.certificate, 0o644),
        (at("tls/server.key"), server.key, 0o600),
        (at("client/client.crt"), client.certificate, 0o644),
        (at("client/client.key"), client.key, 0o600),
    ])
}

/// The filter's line of the configuration.
fn found(wasm: Option<&Path>) -> anyhow::Result<String> {
    Ok(match wasm {
        Some(file) => format!("wasm = {}", toml::Value::from(file.to_str().context("the path of the filter is not UTF-8")?)),
        None => format!("# {WASM} was found neither beside stepward nor in dist/: say where it is.\n# wasm = \"/usr/lib/stepward/{WASM}\""),
    })
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

fn write(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        // Whatever the umask: whoever can write to a folder can replace what is in it.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .with_context(|| format!("make the folder {}", folder.display()))?;
    }
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

/// The filter, as a build names it.
const WASM: &str = "stepward_filter.wasm";

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
            assert_eq!(
                crate::provider::Provider::open("staff", settings, &[], None, &crate::provider::Context::default()).unwrap().len(),
                2
            );
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
