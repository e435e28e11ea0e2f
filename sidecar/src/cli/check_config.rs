//! `stepward check-config`: everything that can be known of a configuration before it is used.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use posture::caller::Callers;
use posture::secret::Secret;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use crate::config::{Config, Environment, Provider, Secrets, Webhook};
use crate::provider::file::FileError;
use crate::{files, folders, provider};

/// A certificate that ends sooner is a warning, unless its whole life is short: those are renewed by the day.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// Check a configuration and everything that it names
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward check-config --config stepward.toml
  stepward check-config --config stepward.toml --output json

Secrets, TLS files and device files are read as the service reads them. No secret is shown.

Exit codes: 0 good (there may be warnings), 1 mistakes, 2 usage.")]
pub struct CheckConfigArgs {
    /// Configuration file; without it the variables of step-posture-connector
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    pub config: Option<PathBuf>,
    /// What to print
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Form of the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Prints what was found; `Ok(true)`: the configuration can be used.
///
/// # Errors
/// The output cannot be written.
pub fn run(args: &CheckConfigArgs, env: &Environment, now: SystemTime, stdout: &mut dyn std::io::Write) -> std::io::Result<bool> {
    let finding = check(args.config.as_deref(), env, now);
    match args.output {
        Output::Table => table(&finding, stdout)?,
        Output::Json => writeln!(stdout, "{}", finding.to_json())?,
    }
    Ok(finding.mistakes.is_empty())
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Finding {
    /// The configuration, where it could be read.
    pub config: Option<Config>,
    /// What has to be changed.
    pub mistakes: Vec<String>,
    /// What should be looked at.
    pub warnings: Vec<String>,
}

/// Reads the configuration, its secrets, the TLS files and the device files, and goes on after a mistake wherever it can.
pub fn check(path: Option<&Path>, env: &Environment, now: SystemTime) -> Finding {
    let mut finding = Finding::default();
    let config = match Config::load(path, env) {
        Ok(loaded) => {
            finding.warnings.extend(loaded.warnings.iter().map(ToString::to_string));
            finding.warnings.extend(folders::warnings(&loaded.config, &loaded.files));
            loaded.config
        }
        Err(mistakes) => {
            finding.mistakes.extend(mistakes.0.iter().map(ToString::to_string));
            return finding;
        }
    };
    match config.resolve_secrets(env) {
        Ok(Secrets { warnings, .. }) => finding.warnings.extend(warnings.iter().map(ToString::to_string)),
        Err(mistakes) => finding.mistakes.extend(mistakes.0.iter().map(ToString::to_string)),
    }
    finding.files(&config, now);
    finding.devices(&config);
    finding.config = Some(config);
    finding
}

impl Finding {
    /// Looks at the files that a configuration names, secrets aside.
    pub(super) fn files(&mut self, config: &Config, now: SystemTime) {
        self.tls(config, now);
        for provider in config.providers.values() {
            let file = match provider {
                Provider::File(settings) => Some(&settings.path),
                Provider::Remote(remote) => remote.endpoint.ca_file.as_ref(),
            };
            if let Some(path) = file
                && let Err(error) = files::open(path)
            {
                self.mistakes.push(format!("{}: cannot be read: {error}", path.display()));
            }
        }
        if let Some(store) = config.store.path.as_ref().filter(|store| store.exists() && !store.is_file()) {
            self.mistakes.push(format!("{}: is not a regular file, and the store is one", store.display()));
        }
        if config.envoy.wasm.exists() && !config.envoy.wasm.is_file() {
            self.mistakes.push(format!("{}: is not a regular file, and the filter is one", config.envoy.wasm.display()));
        } else if !config.envoy.wasm.is_file() {
            self.warnings.push(format!("{}: the filter is not there; Envoy needs it, the service does not", config.envoy.wasm.display()));
        }
    }

    /// Reads the device files by what the service reads them by. Those that are not there have been named already.
    fn devices(&mut self, config: &Config) {
        for provider in config.providers.values() {
            let Provider::File(settings) = provider else { continue };
            if files::open(&settings.path).is_err() {
                continue;
            }
            match settings.read() {
                Ok(parsed) => self.warnings.extend(parsed.warnings.sentences(&settings.path)),
                Err(FileError::Invalid { path, mistakes }) => self.mistakes.extend(mistakes.sentences(&path)),
                Err(error) => self.mistakes.push(provider::chain(&error)),
            }
        }
    }

    fn tls(&mut self, config: &Config, now: SystemTime) {
        let envoy = &config.envoy;
        self.identity(&envoy.certificate, &envoy.private_key, now);
        if let Some(ca) = &envoy.client_ca {
            self.certificates(ca, now);
        }
        if let Some(query) = &config.query.tcp {
            self.identity(&query.certificate, &query.private_key, now);
            self.certificates(&query.client_ca, now);
        }
    }

    /// A chain and its key.
    fn identity(&mut self, certificate: &Path, private_key: &Path, now: SystemTime) {
        let chain = self.certificates(certificate, now);
        let shown = private_key.display();
        let pem = match files::read(private_key, files::CERTIFICATES) {
            Ok(pem) => Secret::new(pem),
            Err(error) => return self.mistakes.push(format!("{shown}: cannot be read: {error}")),
        };
        match PrivateKeyDer::from_pem_slice(pem.expose()) {
            Err(error) => self.mistakes.push(format!("{shown}: no private key can be read: {error}")),
            Ok(key) => {
                let fits = CertifiedKey::from_der(chain.clone(), key, &rustls::crypto::aws_lc_rs::default_provider());
                match fits {
                    Err(rustls::Error::InconsistentKeys(_)) => {
                        self.mistakes.push(format!("{shown}: is not the key of {}", certificate.display()));
                    }
                    // A chain that cannot be read has been named already.
                    Err(error) if !chain.is_empty() && !matches!(error, rustls::Error::InvalidCertificate(_)) => {
                        self.mistakes.push(format!("{shown}: {error}"));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Reads all certificates of a PEM file and looks at their dates.
    fn certificates(&mut self, path: &Path, now: SystemTime) -> Vec<CertificateDer<'static>> {
        let shown = path.display();
        let pem = match files::read(path, files::CERTIFICATES) {
            Ok(pem) => pem,
            Err(error) => {
                self.mistakes.push(format!("{shown}: cannot be read: {error}"));
                return Vec::new();
            }
        };
        let read = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let chain: Vec<CertificateDer<'static>> = match read {
            Ok(chain) => chain,
            Err(error) => {
                self.mistakes.push(format!("{shown}: no certificate can be read: {error}"));
                return Vec::new();
            }
        };
        if chain.is_empty() {
            self.mistakes.push(format!("{shown}: there is no certificate in it"));
        }
        for der in &chain {
            match Certificate::from_der(der) {
                Ok(certificate) => self.dates(path, &certificate, now),
                Err(error) => self.mistakes.push(format!("{shown}: a certificate in it cannot be read: {error}")),
            }
        }
        chain
    }

    fn dates(&mut self, path: &Path, certificate: &Certificate, now: SystemTime) {
        let body = certificate.tbs_certificate();
        let time = |time: x509_cert::time::Time| SystemTime::UNIX_EPOCH + time.to_unix_duration();
        let (start, end) = (time(body.validity().not_before), time(body.validity().not_after));
        let date = |time: SystemTime| humantime::format_rfc3339_seconds(time);
        let named = format!("{}: the certificate of `{}`", path.display(), body.subject());
        if end <= now {
            self.mistakes.push(format!("{named} ended at {}", date(end)));
        } else if start > now {
            self.mistakes.push(format!("{named} begins at {}", date(start)));
        } else if end < now + SOON && end.duration_since(start).is_ok_and(|life| life > 2 * SOON) {
            self.warnings.push(format!("{named} ends at {}", date(end)));
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "ok": self.mistakes.is_empty(),
            "mistakes": self.mistakes,
            "warnings": self.warnings,
            "webhooks": self.webhooks().map(|webhook| json!({
                "id": webhook.id,
                "kind": webhook.kind.as_str(),
                "identifier": webhook.identifier.as_str(),
                "callers": callers(&webhook.callers),
                "providers": webhook.providers,
                "policy": webhook.policy,
                "enforcement": webhook.policy.as_ref().map(|_| webhook.enforcement.as_str()),
                "secrets": webhook.secrets.len(),
            })).collect::<Vec<_>>(),
            "providers": self.providers().map(|(name, kind, place)| json!({ "name": name, "type": kind, "place": place })).collect::<Vec<_>>(),
        })
    }

    fn webhooks(&self) -> impl Iterator<Item = &Webhook> {
        self.config.iter().flat_map(|config| &config.webhooks)
    }

    /// Name, type, and where it is.
    fn providers(&self) -> impl Iterator<Item = (&String, &'static str, String)> {
        let providers = self.config.iter().flat_map(|config| &config.providers);
        providers.map(|(name, provider)| match provider {
            Provider::File(settings) => (name, "file", settings.path.display().to_string()),
            Provider::Remote(remote) => (name, remote.service.name(), remote.endpoint.base_url.to_string()),
        })
    }
}

fn callers(callers: &Callers) -> Vec<String> {
    match callers {
        Callers::Anonymous => vec!["anonymous".to_owned()],
        Callers::AnyVerified => vec!["any that client_ca verifies".to_owned()],
        Callers::Named(names) => names.iter().map(ToString::to_string).collect(),
    }
}

fn table(finding: &Finding, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    for mistake in &finding.mistakes {
        writeln!(out, "mistake: {mistake}")?;
    }
    for warning in &finding.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    if !finding.mistakes.is_empty() {
        let count = finding.mistakes.len();
        return writeln!(out, "{count} mistake{}", if count == 1 { "" } else { "s" });
    }
    for webhook in finding.webhooks() {
        let policy = webhook.policy.as_ref().and_then(|name| Some((name, finding.config.as_ref()?.policies.get(name)?)));
        let asks = match policy {
            Some((name, policy)) => format!("{} and {}s policy {name}", policy.providers.join(", "), webhook.enforcement.as_str()),
            None if webhook.providers.is_empty() => "nobody".to_owned(),
            None => webhook.providers.join(", "),
        };
        writeln!(out, "webhook   {}  {} by {}, asks {asks}", webhook.id, webhook.kind.as_str(), webhook.identifier)?;
        writeln!(out, "          callers: {}", callers(&webhook.callers).join(", "))?;
    }
    for (name, kind, place) in finding.providers() {
        writeln!(out, "provider  {name}  {kind}  {place}")?;
    }
    if let Some(config) = &finding.config {
        writeln!(out, "listens   {} and sockets in {}", config.listen.admin, config.listen.sockets.display())?;
        if let Some(query) = &config.query.tcp {
            writeln!(out, "queries   {} with {}", query.address, query.certificate.display())?;
        }
        writeln!(out, "envoy     {} with {}", config.envoy.webhook_address, config.envoy.certificate.display())?;
    }
    writeln!(out, "OK")
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    const SECRET: &str = "Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5";

    /// A folder with everything that a good configuration names.
    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2030, 1, 1);
            let certificate = params.self_signed(&key).unwrap();
            folder.write("server.crt", &certificate.pem());
            folder.write("ca.crt", &certificate.pem());
            folder.write("server.key", &key.serialize_pem());
            folder.write("filter.wasm", "");
            folder.write("devices.json", r#"{"devices":[{"identifier":"C02A"}]}"#);
            folder.write(
                "stepward.toml",
                "[envoy]\ncertificate = \"server.crt\"\nprivate_key = \"server.key\"\nclient_ca = \"ca.crt\"\nwasm = \"filter.wasm\"\n\
                 [[webhook]]\nid = \"one\"\nsecrets = [{ env = \"SECRET\" }]\ncallers = [\"dns:ca\"]\nproviders = [\"staff\"]\n\
                 [provider.staff]\ntype = \"file\"\npath = \"devices.json\"\n",
            );
            folder
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).unwrap();
        }

        fn remove(&self, name: &str) {
            std::fs::remove_file(self.0.path().join(name)).unwrap();
        }

        fn check(&self, output: Output, year: i32) -> (bool, String) {
            let env = Environment::new(self.0.path()).with("SECRET", SECRET);
            let args = CheckConfigArgs { config: Some("stepward.toml".into()), output };
            let mut out = Vec::new();
            let good = run(&args, &env, date_time_ymd(year, 12, 24).into(), &mut out).unwrap();
            let text = String::from_utf8(out).unwrap().replace(&self.0.path().display().to_string(), "DIR");
            assert!(!text.contains(SECRET) && !text.contains("canary"), "{text}");
            (good, text)
        }
    }

    #[test]
    fn sums_up_a_good_configuration() {
        let (good, text) = Folder::new().check(Output::Table, 2026);
        assert!(good);
        insta::assert_snapshot!("good", text);
    }

    #[test]
    fn says_which_policy_judges() {
        let folder = Folder::new();
        let text = std::fs::read_to_string(folder.0.path().join("stepward.toml")).unwrap();
        let text = text.replacen("providers = [\"staff\"]", "policy = \"all\"", 1);
        folder.write("stepward.toml", &format!("{text}[policy.all]\nproviders = [\"staff\"]\n"));
        let (good, text) = folder.check(Output::Table, 2026);
        assert!(good && text.contains("asks staff and enforces policy all"), "{text}");
        let value: Value = serde_json::from_str(&folder.check(Output::Json, 2026).1).unwrap();
        assert_eq!((&value["webhooks"][0]["policy"], &value["webhooks"][0]["enforcement"]), (&json!("all"), &json!("enforce")));
    }

    #[test]
    fn shows_the_address_that_is_asked() {
        let folder = Folder::new();
        let text = std::fs::read_to_string(folder.0.path().join("stepward.toml")).unwrap();
        let secret = "{ env = \"SECRET\" }";
        let intune = format!("type = \"intune\"\ntenant_id = \"t\"\nclient_id = \"c\"\nclient_secret = {secret}\n");
        let mosyle = format!("type = \"mosyle\"\naccess_token = {secret}\nemail = \"a@example.org\"\npassword = {secret}\n");
        for (provider, shown) in [
            (intune.clone(), "https://graph.microsoft.com/"),
            (format!("{intune}graph_url = \"https://graph.microsoft.us\"\n"), "https://graph.microsoft.us/"),
            (mosyle.clone(), "https://businessapi.mosyle.com/v1"),
            (format!("{mosyle}product = \"manager\"\n"), "https://managerapi.mosyle.com/v2"),
        ] {
            folder.write("stepward.toml", &format!("{text}[provider.mdm]\n{provider}"));
            let (good, text) = folder.check(Output::Table, 2026);
            assert!(good && text.contains(shown), "{text}");
        }
    }

    #[test]
    fn tells_programs_in_json() {
        let (good, text) = Folder::new().check(Output::Json, 2026);
        assert!(good);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["ok"], true);
        assert_eq!(value["webhooks"][0]["callers"][0], "dns:ca");
        assert_eq!(value["providers"][0], json!({ "name": "staff", "type": "file", "place": "DIR/devices.json" }));
    }

    #[test]
    fn names_every_mistake_of_the_files() {
        let folder = Folder::new();
        folder.write("server.key", &KeyPair::generate().unwrap().serialize_pem());
        folder.remove("devices.json");
        folder.remove("filter.wasm");
        let (good, mut text) = folder.check(Output::Table, 2026);
        assert!(!good);
        for (name, content) in
            [("no certificate", ""), ("broken certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")]
        {
            let folder = Folder::new();
            folder.write("server.crt", content);
            let (good, finding) = folder.check(Output::Table, 2026);
            assert!(!good);
            text.push_str(&format!("--- {name}\n{finding}"));
        }
        let folder = Folder::new();
        folder.write("server.key", "nothing");
        let (good, finding) = folder.check(Output::Table, 2026);
        assert!(!good);
        text.push_str(&format!("--- no key\n{finding}"));
        insta::assert_snapshot!("files", text);
    }

    #[test]
    fn d4_the_content_of_a_device_file_is_looked_at() {
        let folder = Folder::new();
        folder.write("devices.json", r#"{"devices":[{"identifier":"A"},{"identifier":"None"}]}"#);
        let (good, text) = folder.check(Output::Table, 2026);
        assert!(good && text.contains("warning: DIR/devices.json:1:46: `None` identifies no device"), "{text}");
        folder.write("devices.json", r#"{"devices":[{},{}]}"#);
        let (good, text) = folder.check(Output::Json, 2026);
        let value: Value = serde_json::from_str(&text).unwrap();
        let said = |column: u8| json!(format!("DIR/devices.json:1:{column}: the device has no `identifier`"));
        assert_eq!((good, &value["mistakes"]), (false, &json!([said(13), said(16)])));
    }

    #[test]
    fn g12_a_folder_or_a_pipe_is_no_file_wherever_one_is_named() {
        for name in ["server.crt", "server.key", "ca.crt", "filter.wasm", "devices.json", "state/stepward.db"] {
            for pipe in [true, false] {
                let folder = Folder::new();
                let path = folder.0.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let _ = std::fs::remove_file(&path);
                if pipe {
                    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
                } else {
                    std::fs::create_dir(&path).unwrap();
                }
                let (good, text) = folder.check(Output::Table, 2026);
                assert!(
                    !good && text.contains(&format!("mistake: DIR/{name}: ")) && text.contains("is not a regular file"),
                    "{name}: {text}"
                );
            }
        }
        let folder = Folder::new();
        folder.remove("stepward.toml");
        assert!(std::process::Command::new("mkfifo").arg(folder.0.path().join("stepward.toml")).status().unwrap().success());
        let (good, text) = folder.check(Output::Table, 2026);
        assert!(!good && text.contains("is not a regular file"), "{text}");
    }

    #[test]
    fn knows_when_a_certificate_ends() {
        let folder = Folder::new();
        assert!(!folder.check(Output::Table, 2019).0);
        let (good, soon) = folder.check(Output::Table, 2029);
        assert!(good && soon.contains("ends at 2030-01-01T00:00:00Z"), "{soon}");
        let (good, ended) = folder.check(Output::Table, 2030);
        assert!(!good && ended.contains("ended at 2030-01-01T00:00:00Z"), "{ended}");
    }

    #[test]
    fn stops_at_a_configuration_that_cannot_be_read() {
        let folder = Folder::new();
        folder.write("stepward.toml", "[listen]\n");
        let (good, text) = folder.check(Output::Json, 2026);
        assert!(!good);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["mistakes"].as_array().map(Vec::len), Some(2));
    }
}
