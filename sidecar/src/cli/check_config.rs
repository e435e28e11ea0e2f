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

use super::words;
use crate::config::{Combine, Config, Environment, Mistake, OnNotFound, OnUnavailable, Place, Policy, Provider, Secrets, Webhook};
use crate::decide::Own;
use crate::provider::file::FileError;
use crate::provider::http::Client;
use crate::server::{self, Certificates};
use crate::{files, folders, provider, store};

/// A certificate that ends sooner is a warning, unless its whole life is short: those are renewed by the day.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// Check a configuration and everything that it names
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward check-config --config stepward.toml
  stepward check-config --config stepward.toml --output json

Secrets, TLS files, device files, store, groups, sockets and addresses are looked at as the service's start does, and left
as they are. Run it as the user of the service: what only that user may read is a mistake otherwise. No secret is shown.

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
    pub mistakes: Vec<Mistake>,
    /// What should be looked at.
    pub warnings: Vec<Mistake>,
    /// What could not be looked at from here, and need not be.
    pub notes: Vec<Mistake>,
}

/// Reads the configuration and opens what it names, as the service's start does, and goes on after a mistake wherever it can.
pub fn check(path: Option<&Path>, env: &Environment, now: SystemTime) -> Finding {
    let mut finding = Finding::default();
    let config = match Config::load(path, env) {
        Ok(loaded) => {
            finding.warnings.extend(loaded.warnings);
            finding.warnings.extend(folders::warnings(&loaded.config, &loaded.files).into_iter().map(Mistake::of_whole));
            loaded.config
        }
        Err(mistakes) => {
            finding.mistakes.extend(mistakes.0);
            return finding;
        }
    };
    let secrets = match config.resolve_secrets(env) {
        Ok(secrets) => {
            finding.warnings.extend(secrets.warnings.iter().cloned());
            Some(secrets)
        }
        Err(mistakes) => {
            finding.mistakes.extend(mistakes.0);
            None
        }
    };
    finding.files(&config, now);
    finding.devices(&config);
    finding.opened(&config, secrets.as_ref());
    finding.says_as_whom();
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
                self.wrong(path, format!("cannot be read: {error}"));
            }
        }
        if let Some(store) = &config.store.path {
            match store::examine(store) {
                Ok(()) => {}
                Err(_) if store.exists() && !store.is_file() => self.wrong(store, "is not a regular file, and the store is one"),
                Err(error) => self.mistakes.push(Mistake::of_whole(provider::chain(&error))),
            }
        }
        let wasm = &config.envoy.wasm;
        match std::fs::metadata(wasm) {
            Ok(found) if found.is_file() => {}
            Ok(_) => self.wrong(wasm, "is not a regular file, and the filter is one"),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => self.note(wasm, ENVOYS),
            Err(_) => self.warnings.push(Mistake::of_file(wasm, "the filter is not there; Envoy needs it, the service does not")),
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
                Ok(parsed) => self.warnings.extend(of_devices(&settings.path, &parsed.warnings)),
                Err(FileError::Invalid { path, mistakes }) => self.mistakes.extend(of_devices(&path, &mistakes)),
                Err(error) => self.mistakes.push(Mistake::of_whole(provider::chain(&error))),
            }
        }
    }

    /// Opens what the service opens at its start, by the same code, and leaves nothing behind: clients, certificates, groups,
    /// folders, sockets and addresses.
    fn opened(&mut self, config: &Config, secrets: Option<&Secrets>) {
        for (name, settings) in &config.providers {
            let wrong = |error: String| Mistake::of_whole(format!("provider `{name}`: {error}"));
            self.mistakes.extend(Own::new(settings).err().map(wrong));
            let Provider::Remote(remote) = settings else { continue };
            // A file that is not there was named already.
            if remote.endpoint.ca_file.as_ref().is_some_and(|path| files::open(path).is_err()) {
                continue;
            }
            match (Client::new(&remote.endpoint), secrets.and_then(|secrets| secrets.providers.get(name))) {
                (Err(error), _) => self.mistakes.push(wrong(error)),
                (Ok(_), Some(secrets)) => self.mistakes.extend(remote.service.open(&remote.endpoint, secrets).err().map(wrong)),
                (Ok(_), None) => {}
            }
        }
        if let Some(tcp) = &config.query.tcp {
            let files = tcp.files().map(|path| path.display().to_string());
            let is_named = self.mistakes.iter().any(|mistake| mistake.file.as_ref().is_some_and(|file| files.contains(file)));
            if let Some(error) = Certificates::open(tcp).err().filter(|_| !is_named) {
                self.mistakes.push(Mistake::of_whole(format!("[query]: {error}")));
            }
        }
        let found = server::examine(&config.listen, config.query.tcp.as_ref().map(|tcp| tcp.address));
        self.mistakes.extend(found.mistakes.into_iter().map(Mistake::of_whole));
        self.notes.extend(found.notes.into_iter().map(Mistake::of_whole));
    }

    /// Says of what may not be read here who may.
    fn says_as_whom(&mut self) {
        let denied = std::io::Error::from_raw_os_error(nix::libc::EACCES).to_string();
        for mistake in self.mistakes.iter_mut().filter(|mistake| mistake.message.contains(&denied)) {
            let uid = nix::unistd::Uid::effective();
            mistake.message.push_str(&format!("; this is uid {uid}: run it as the service's user, or let that user read it"));
        }
    }

    fn wrong(&mut self, path: &Path, message: impl Into<String>) {
        self.mistakes.push(Mistake::of_file(path, message));
    }

    fn note(&mut self, path: &Path, message: impl Into<String>) {
        self.notes.push(Mistake::of_file(path, message));
    }

    fn tls(&mut self, config: &Config, now: SystemTime) {
        let envoy = &config.envoy;
        self.identity(&envoy.certificate, &envoy.private_key, Reader::Envoy, now);
        if let Some(ca) = &envoy.client_ca {
            self.certificates(ca, Reader::Envoy, now);
        }
        if let Some(query) = &config.query.tcp {
            self.identity(&query.certificate, &query.private_key, Reader::Service, now);
            self.certificates(&query.client_ca, Reader::Service, now);
        }
    }

    /// A chain and its key.
    fn identity(&mut self, certificate: &Path, private_key: &Path, reader: Reader, now: SystemTime) {
        let chain = self.certificates(certificate, reader, now);
        let Some(pem) = self.read(private_key, reader).map(Secret::new) else { return };
        match PrivateKeyDer::from_pem_slice(pem.expose()) {
            Err(error) => self.wrong(private_key, format!("no private key can be read: {error}")),
            Ok(key) => {
                let fits = CertifiedKey::from_der(chain.clone(), key, &rustls::crypto::aws_lc_rs::default_provider());
                match fits {
                    Err(rustls::Error::InconsistentKeys(_)) => {
                        self.wrong(private_key, format!("is not the key of {}", certificate.display()));
                    }
                    // A chain that cannot be read has been named already.
                    Err(error) if !chain.is_empty() && !matches!(error, rustls::Error::InvalidCertificate(_)) => {
                        self.wrong(private_key, error.to_string());
                    }
                    _ => {}
                }
            }
        }
    }

    /// The bytes of a PEM file. What Envoy alone has to read may well be closed to whoever runs this.
    fn read(&mut self, path: &Path, reader: Reader) -> Option<Vec<u8>> {
        match files::read(path, files::CERTIFICATES) {
            Ok(pem) => Some(pem),
            Err(error) if reader == Reader::Envoy && error.kind() == std::io::ErrorKind::PermissionDenied => {
                self.note(path, ENVOYS);
                None
            }
            Err(error) => {
                self.wrong(path, format!("cannot be read: {error}"));
                None
            }
        }
    }

    /// Reads all certificates of a PEM file and looks at their dates.
    fn certificates(&mut self, path: &Path, reader: Reader, now: SystemTime) -> Vec<CertificateDer<'static>> {
        let Some(pem) = self.read(path, reader) else { return Vec::new() };
        let read = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let chain: Vec<CertificateDer<'static>> = match read {
            Ok(chain) => chain,
            Err(error) => {
                self.wrong(path, format!("no certificate can be read: {error}"));
                return Vec::new();
            }
        };
        if chain.is_empty() {
            self.wrong(path, "there is no certificate in it");
        }
        for der in &chain {
            match Certificate::from_der(der) {
                Ok(certificate) => self.dates(path, &certificate, now),
                Err(error) => self.wrong(path, format!("a certificate in it cannot be read: {error}")),
            }
        }
        chain
    }

    fn dates(&mut self, path: &Path, certificate: &Certificate, now: SystemTime) {
        let body = certificate.tbs_certificate();
        let time = |time: x509_cert::time::Time| SystemTime::UNIX_EPOCH + time.to_unix_duration();
        let (start, end) = (time(body.validity().not_before), time(body.validity().not_after));
        let date = |time: SystemTime| humantime::format_rfc3339_seconds(time);
        let named = format!("the certificate of `{}`", body.subject());
        if end <= now {
            self.wrong(path, format!("{named} ended at {}", date(end)));
        } else if start > now {
            self.wrong(path, format!("{named} begins at {}", date(start)));
        } else if end.duration_since(start).is_ok_and(|life| end < now + SOON.min(life / 4)) {
            self.warnings.push(Mistake::of_file(path, format!("{named} ends at {}", date(end))));
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "ok": self.mistakes.is_empty(),
            "mistakes": told(&self.mistakes),
            "warnings": told(&self.warnings),
            "notes": told(&self.notes),
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
            "policies": self.config.iter().flat_map(|config| &config.policies).map(|(name, policy)| json!({
                "name": name,
                "providers": policy.providers,
                "on_not_found": policy.on_not_found.as_str(),
                "on_unavailable": policy.on_unavailable.as_str(),
                "combine": policy.combine.as_str(),
                "checks": policy.policy.described().map(|check| json!({
                    "check": check.name,
                    "wanted": check.wanted,
                    "expression": check.expression.map(|(text, _)| text),
                    "code": check.denial.code,
                })).collect::<Vec<_>>(),
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

/// Who has to read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Service,
    Envoy,
}

/// What is said of a file that Envoy alone reads, and this user cannot.
const ENVOYS: &str = "not looked at, since this user may not read it: the service does not either, Envoy alone does";

/// What was found in a device file, each with its place.
fn of_devices<T: std::fmt::Display>(path: &Path, found: &provider::file::Findings<T>) -> Vec<Mistake> {
    let at = |place: &provider::file::Place<T>| Mistake {
        place: Place::Line(place.line, place.column),
        ..Mistake::of_file(path, place.what.to_string())
    };
    let more = (found.more() > 0).then(|| Mistake::of_file(path, format!("and {} more", found.more())));
    found.places().iter().map(at).chain(more).collect()
}

/// For programs: each with its file, line and column, or its variable, as far as it has them.
fn told(found: &[Mistake]) -> Value {
    let one = |mistake: &Mistake| {
        let place = match &mistake.place {
            Place::Line(line, column) => vec![("line", json!(line)), ("column", json!(column))],
            Place::Variable(name) => vec![("variable", json!(name))],
            Place::Whole => Vec::new(),
        };
        let told = [("message", json!(mistake.message)), ("text", json!(mistake.to_string()))];
        let file = mistake.file.as_ref().map(|file| ("file", json!(file)));
        told.into_iter().chain(file).chain(place).map(|(name, value)| (name.to_owned(), value)).collect::<Value>()
    };
    found.iter().map(one).collect()
}

fn callers(callers: &Callers) -> Vec<String> {
    match callers {
        Callers::Anonymous => vec!["anonymous".to_owned()],
        Callers::AnyVerified => vec!["any that client_ca verifies".to_owned()],
        Callers::Named(names) => names.iter().map(ToString::to_string).collect(),
    }
}

/// Whom a policy asks, and what it makes of their answers.
fn chain(policy: &Policy) -> String {
    let names = policy.providers.join(", ");
    if policy.providers.len() == 1 {
        return format!("asks {names}");
    }
    let how = match policy.combine {
        Combine::AllOf => return format!("asks {names}: each has to have the device, and every record has to pass"),
        Combine::AnyOf => "one record that passes is enough",
        Combine::FirstFound => "the first that has the device is judged",
    };
    let missing = match policy.on_not_found {
        OnNotFound::Next => "one that does not have it is passed over",
        OnNotFound::Deny => "one that does not have it denies it",
    };
    let away = match policy.on_unavailable {
        OnUnavailable::Fail => "one that cannot say is waited for",
        OnUnavailable::Next => "one that cannot say is passed over",
    };
    format!("asks {names}: {how}; {missing}; {away}")
}

fn table(finding: &Finding, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    for mistake in &finding.mistakes {
        writeln!(out, "mistake: {mistake}")?;
    }
    for warning in &finding.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    for note in &finding.notes {
        writeln!(out, "note: {note}")?;
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
    for (name, policy) in finding.config.iter().flat_map(|config| &config.policies) {
        writeln!(out, "policy    {name}  {}", chain(policy))?;
        for check in policy.policy.described() {
            let needs = words::needs(check.name, check.wanted, check.expression.map(|(text, _)| text));
            writeln!(out, "          {}: {needs}, or is denied with {}", check.name, check.denial.code)?;
        }
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
                "[listen]\nadmin = \"127.0.0.1:0\"\n[envoy]\ncertificate = \"server.crt\"\nprivate_key = \"server.key\"\nclient_ca = \"ca.crt\"\nwasm = \"filter.wasm\"\n\
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
        let (_, understood) = text.split_once("policy    all  asks staff\n").unwrap();
        assert!(
            understood.starts_with("          not_lost: must not be lost, where that is known, or is denied with device_lost\n"),
            "{text}"
        );
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
        let found: Vec<_> =
            value["mistakes"].as_array().unwrap().iter().map(|one| json!([one["file"], one["line"], one["column"]])).collect();
        assert_eq!((good, found), (false, vec![json!(["DIR/devices.json", 1, 13]), json!(["DIR/devices.json", 1, 16])]));
        assert_eq!(value["mistakes"][0]["message"], "the device has no `identifier`");
        assert_eq!(value["mistakes"][0]["text"], "DIR/devices.json:1:13: the device has no `identifier`");
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

    /// Adds to the configuration, or changes what stands there.
    fn with(folder: &Folder, from: &str, to: &str) {
        let path = folder.0.path().join("stepward.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    #[test]
    fn e10_what_the_start_would_stumble_over_is_a_mistake_and_nothing_is_left_behind() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let entries = |folder: &Folder| {
            let names = std::fs::read_dir(folder.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let mdm = "[provider.mdm]\ntype = \"kandji\"\nbase_url = \"https://kandji.example.org\"\ntoken = { env = \"SECRET\" }\nca_file = \"devices.json\"\n[provider.staff]";
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let used = format!("admin = \"{}\"", taken.local_addr().unwrap());
        for (from, to, said) in [
            ("[envoy]", "group = \"no-such-group\"\n[envoy]", "there is no group `no-such-group`"),
            ("[envoy]", "[listen.groups]\nquery = \"no-such-group\"\n[envoy]", "there is no group `no-such-group`"),
            (
                "[envoy]",
                "sockets = \"devices.json/run\"\n[envoy]",
                "DIR/devices.json is no folder, and the sockets are in DIR/devices.json/run",
            ),
            ("[envoy]", "sockets = \"taken\"\n[envoy]", "DIR/taken/query.sock is there and is no socket"),
            ("127.0.0.1:0", "192.0.2.1:9464", "listen on 192.0.2.1:9464: "),
            ("[provider.staff]", mdm, "provider `mdm`: ca_file DIR/devices.json"),
            ("[envoy]", "[store]\npath = \"devices.json/store.db\"\n[envoy]", "DIR/devices.json is no folder"),
            ("[envoy]", "[store]\npath = \"devices.json\"\n[envoy]", "the store DIR/devices.json is damaged"),
            ("[envoy]", "[store]\npath = \"filter.wasm\"\n[envoy]", "the store DIR/filter.wasm is empty or gone"),
            ("[envoy]", "[store]\npath = \"other.db\"\n[envoy]", "DIR/other.db is a database of something else"),
            ("[envoy]", "[store]\npath = \"later.db\"\n[envoy]", "the store DIR/later.db has schema 99"),
        ] {
            let folder = Folder::new();
            std::fs::create_dir(folder.0.path().join("taken")).unwrap();
            folder.write("taken/query.sock", "");
            let database = |name: &str, application: u32, version: u8| {
                let mut header = b"SQLite format 3\0".to_vec();
                header.resize(100, 0);
                header[63] = version;
                header[68..72].copy_from_slice(&application.to_be_bytes());
                std::fs::write(folder.0.path().join(name), header).unwrap();
            };
            database("other.db", 7, 1);
            database("later.db", 0x5354_5750, 99);
            with(&folder, from, to);
            let before = entries(&folder);
            let (good, text) = folder.check(Output::Table, 2026);
            assert!(!good && text.contains(said) && text.contains("1 mistake\n"), "{said}: {text}");
            assert_eq!(entries(&folder), before);
        }
        // The service itself may be what listens there.
        let folder = Folder::new();
        with(&folder, "admin = \"127.0.0.1:0\"", &used);
        let (good, text) = folder.check(Output::Table, 2026);
        assert!(good && text.contains("is in use: by the service, if it runs"), "{text}");
        let before = entries(&Folder::new());
        let folder = Folder::new();
        assert!(folder.check(Output::Table, 2026).0);
        assert_eq!(entries(&folder), before);
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
