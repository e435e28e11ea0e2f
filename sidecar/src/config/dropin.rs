//! The variables of step-posture-connector, with the meaning that its README gives them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use posture::secret::Secret;

use settings::document::{Data, Table, Value};
use settings::{Environment, Mistakes, Place, Report, dotenv, files};

use super::hints::HINTS;
use super::types::Loaded;
use super::{overrides, read};

const DEADLINE_MILLIS: u64 = 3500;
/// Placeholder for a value that was not given, so that one mistake is not reported twice.
const MISSING: &str = "missing";

/// Values of PROVIDER.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    File,
    Jamf,
}

impl Source {
    /// Returns the word for it, which is the provider's name and type too.
    const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Jamf => "jamf",
        }
    }
}

/// Reads the environment, and `.env` in the working directory for what the environment lacks.
pub(super) fn load(env: &Environment) -> Result<Loaded, Mistakes> {
    let path = env.directory.join(".env");
    let (dotenv, missing) = match files::text(&path, files::CONFIGURATION) {
        Ok(text) => (parse_dotenv(&text)?, false),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (BTreeMap::new(), true),
        Err(error) => return Err(Mistakes::one(Some(&path), format!("cannot be read: {error}"))),
    };
    let variables = Variables { env, dotenv, report: Report::new(None).hinting(HINTS), not_text: RefCell::default() };
    let has_secret = ["WEBHOOK_SECRETS", "JAMF_CLIENT_SECRET"].iter().any(|name| variables.dotenv.contains_key(*name));
    if has_secret && files::readable_by_others(&path) {
        variables.report.warn(&Place::Whole, format!("{} has secrets and can be read by every user: chmod o-r", path.display()));
    }
    if variables.get("PROVIDER").is_none() && !env.is_not_text("PROVIDER") {
        return Err(Mistakes::one(
            None,
            "there is no configuration: `stepward init DIR` makes one that works; name one by --config FILE or STEPWARD_CONFIG; or set PROVIDER to file or jamf, and the other variables of step-posture-connector",
        ));
    }
    let mut root = variables.document();
    overrides::apply(&mut root, env, &variables.report);
    let config = read::read(root, &env.directory, env, &variables.report);
    let (config, warnings) = variables.report.finish(config)?;
    let missing = missing.then(|| path.clone()).into_iter().collect();
    Ok(Loaded { config, warnings, files: vec![path], missing })
}

fn parse_dotenv(text: &str) -> Result<BTreeMap<String, String>, Mistakes> {
    dotenv::parse(text).map_err(|(line, why)| {
        let mut mistakes = Mistakes::one(Some(".env".as_ref()), why);
        mistakes.0.iter_mut().for_each(|mistake| mistake.place = Place::Line(line, 1));
        mistakes
    })
}

struct Variables<'e> {
    env: &'e Environment,
    dotenv: BTreeMap<String, String>,
    report: Report,
    /// Names of variables that were reported as not being text.
    not_text: RefCell<BTreeSet<String>>,
}

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        // A variable that is not text would count as not set, and what it restricts would be let in.
        if self.env.is_not_text(name) && self.not_text.borrow_mut().insert(name.to_owned()) {
            self.mistake(name, "is not text in UTF-8");
        }
        self.env.variable(name).or_else(|| self.dotenv.get(name).map(String::as_str).filter(|value| !value.is_empty()))
    }

    fn mistake(&self, name: &str, message: impl Into<String>) {
        self.report.mistake(&Place::Variable(name.to_owned()), message);
    }

    fn warn(&self, name: &str, message: impl Into<String>) {
        self.report.warn(&Place::Variable(name.to_owned()), message);
    }

    /// Returns the value of a variable that has to be there, or reports that it is not.
    fn required(&self, name: &str, what: &str) -> Option<&str> {
        let value = self.get(name);
        if value.is_none() {
            self.mistake(name, format!("is not set: it is {what}"));
        }
        value
    }

    /// Makes the tree that a file would give, so that the same rules are applied to it.
    fn document(&self) -> Table {
        let mut root = Table::new(Place::Whole);
        let source = match self.get("PROVIDER") {
            Some("file") => Some(Source::File),
            Some("jamf") => Some(Source::Jamf),
            Some(other) => {
                self.mistake("PROVIDER", format!("`{other}` is no provider; there are file and jamf"));
                None
            }
            None => None,
        };
        self.listen(&mut root);
        self.envoy(&mut root);
        self.log(&mut root);
        self.provider(&mut root, source);
        self.webhooks(&mut root, source.unwrap_or(Source::File));
        root
    }

    fn listen(&self, root: &mut Table) {
        let sockets = match (self.get("RUNTIME_DIRECTORY"), self.get("XDG_RUNTIME_DIR")) {
            // systemd separates several folders by colons.
            (Some(folders), _) => folders.split(':').next().unwrap_or(folders).to_owned(),
            (None, Some(folder)) => format!("{folder}/stepward"),
            (None, None) => "run".to_owned(),
        };
        set(root, "listen", "sockets", "RUNTIME_DIRECTORY", sockets);
    }

    fn envoy(&self, root: &mut Table) {
        let port = match self.get("PORT").unwrap_or("9443").parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => {
                self.mistake("PORT", "must be a port from 1 to 65535");
                9443
            }
        };
        set(root, "envoy", "webhook_address", "PORT", format!("0.0.0.0:{port}"));
        let certificate = self.required("TLS_CERT_PATH", "the PEM file of the listener's certificate").unwrap_or(MISSING);
        set(root, "envoy", "certificate", "TLS_CERT_PATH", certificate.to_owned());
        let key = self.required("TLS_KEY_PATH", "the PEM file of the listener's private key").unwrap_or(MISSING);
        set(root, "envoy", "private_key", "TLS_KEY_PATH", key.to_owned());
        match self.get("ENABLE_MTLS") {
            None | Some("0") => {
                if self.get("TLS_CA_PATH").is_some() {
                    self.warn("TLS_CA_PATH", "is not used, since ENABLE_MTLS is not 1");
                }
            }
            Some("1") => {
                let ca = self
                    .required("TLS_CA_PATH", "the PEM file of the authority that client certificates come from, which ENABLE_MTLS=1 needs");
                set(root, "envoy", "client_ca", "TLS_CA_PATH", ca.unwrap_or(MISSING).to_owned());
            }
            Some(_) => self.mistake("ENABLE_MTLS", "must be 0 or 1"),
        }
    }

    fn log(&self, root: &mut Table) {
        let level = match self.get("LOGGING_LEVEL") {
            None | Some("0") => "info",
            Some("1") => "info,sidecar=debug",
            Some("2") => "debug",
            Some(_) => return self.mistake("LOGGING_LEVEL", "must be 0, 1 or 2"),
        };
        set(root, "log", "level", "LOGGING_LEVEL", level.to_owned());
    }

    fn provider(&self, root: &mut Table, source: Option<Source>) {
        let place = Place::Variable("PROVIDER".to_owned());
        let name = source.unwrap_or(Source::File).name();
        let Some(table) = root.table("provider", &place).and_then(|table| table.table(name, &place)) else { return };
        table.set("type", "PROVIDER", Data::Given(name.to_owned()));
        match source {
            Some(Source::File) => self.file(table),
            Some(Source::Jamf) => self.jamf(table),
            // An unknown provider is one mistake; no other variable is asked for then.
            None => {
                table.set("path", "FILE_PATH", Data::Given(MISSING.to_owned()));
                table.set("format", "FILE_TYPE", Data::Given("json".to_owned()));
            }
        }
    }

    fn file(&self, table: &mut Table) {
        let path = self.required("FILE_PATH", "the file with the devices").unwrap_or(MISSING);
        table.set("path", "FILE_PATH", Data::Given(path.to_owned()));
        let format = match self.required("FILE_TYPE", "csv or json") {
            Some(format @ ("csv" | "json")) => format,
            Some(_) => {
                self.mistake("FILE_TYPE", "must be csv or json");
                "json"
            }
            None => "json",
        };
        table.set("format", "FILE_TYPE", Data::Given(format.to_owned()));
    }

    fn jamf(&self, table: &mut Table) {
        let address = self.required("JAMF_BASE_URL", "the address of Jamf Pro, as in https://example.jamfcloud.com");
        table.set("base_url", "JAMF_BASE_URL", Data::Given(address.unwrap_or("https://missing.invalid").to_owned()));
        let id = self.required("JAMF_CLIENT_ID", "the client id of an API client in Jamf Pro");
        table.set("client_id", "JAMF_CLIENT_ID", Data::Given(id.unwrap_or(MISSING).to_owned()));
        let secret = self.required("JAMF_CLIENT_SECRET", "the secret of this API client").unwrap_or(MISSING);
        table.set("client_secret", "JAMF_CLIENT_SECRET", Data::Secret(Secret::new(secret.as_bytes().to_vec())));
        for (key, variable) in [("device_group", "JAMF_DEVICE_GROUP"), ("computer_group", "JAMF_COMPUTER_GROUP")] {
            if let Some(group) = self.get(variable) {
                table.set(key, variable, Data::Given(group.to_owned()));
            }
        }
        // The connector asks the inventory that the mode names and never the other one, whose group may not be set at all.
        table.set("mode_is_binding", "PROVIDER", Data::Boolean(true));
        for (key, variable) in [("device_enrich", "JAMF_DEVICE_ENRICH"), ("computer_enrich", "JAMF_COMPUTER_ENRICH")] {
            match self.get(variable) {
                None => {}
                Some(flag @ ("0" | "1")) => table.set(key, variable, Data::Boolean(flag == "1")),
                Some(_) => self.mistake(variable, "must be 0 or 1"),
            }
        }
    }

    fn webhooks(&self, root: &mut Table, source: Source) {
        let ids = list(Some(
            self.required("WEBHOOK_IDS", "the ids that `step ca provisioner webhook add` printed, with commas between them")
                .unwrap_or(MISSING),
        ));
        let secrets = list(self.required("WEBHOOK_SECRETS", "the secrets of these webhooks, in the same order"));
        if self.get("WEBHOOK_IDS").is_some() && !secrets.is_empty() && ids.len() != secrets.len() {
            self.mistake(
                "WEBHOOK_SECRETS",
                format!("has {} secrets for {} ids: each id in WEBHOOK_IDS has one, in the same order", secrets.len(), ids.len()),
            );
        }
        let deadline = self.deadline();
        let mut webhooks = Vec::new();
        for (number, id) in ids.iter().enumerate() {
            let entry = number + 1;
            if id.is_empty() {
                self.mistake("WEBHOOK_IDS", format!("entry {entry} is empty"));
            }
            let place = Place::Variable(format!("WEBHOOK_IDS, entry {entry}"));
            let mut table = Table::new(place.clone());
            let id = if id.is_empty() { format!("{MISSING}-{entry}") } else { (*id).to_owned() };
            table.set("id", "WEBHOOK_IDS", Data::Given(id));
            table.set("mode", "PROVIDER", Data::Given("mobiledevice".to_owned()));
            // Timestamps may be as old as the connector takes them, not as old as the default allows.
            if let Some(window) = table.table("window", &place) {
                window.set("past", "WEBHOOK_IDS", Data::Given("10s".to_owned()));
            }
            table.set("deadline", "TIMEOUT", Data::Given(format!("{deadline}ms")));
            let provider = Value { place: place.clone(), data: Data::Text(source.name().to_owned()) };
            table.set("providers", "PROVIDER", Data::List(vec![provider]));
            let secret = secrets.get(number).copied().unwrap_or(MISSING);
            if secret.is_empty() {
                self.mistake("WEBHOOK_SECRETS", format!("entry {entry} is empty: anyone could sign with it"));
            }
            let from = Place::Variable(format!("WEBHOOK_SECRETS, entry {entry}"));
            let secret = Value { place: from, data: Data::Secret(Secret::new(secret.as_bytes().to_vec())) };
            table.set("secrets", "WEBHOOK_SECRETS", Data::List(vec![secret]));
            webhooks.push(Value { place, data: Data::Table(table) });
        }
        root.set("webhook", "WEBHOOK_IDS", Data::List(webhooks));
    }

    /// Returns the deadline in milliseconds. TIMEOUT was meant for a provider's connections; here it bounds the whole answer.
    fn deadline(&self) -> u64 {
        let Some(text) = self.get("TIMEOUT") else { return DEADLINE_MILLIS };
        match text.parse::<u64>() {
            Ok(seconds) if seconds > 0 => {
                let millis = seconds.saturating_mul(1000);
                if millis > DEADLINE_MILLIS {
                    self.warn("TIMEOUT", format!("{seconds} s is more than the deadline of an answer; 3.5 s is used, since step-ca gives up after 10 s with one retry"));
                }
                millis.min(DEADLINE_MILLIS)
            }
            _ => {
                self.mistake("TIMEOUT", "must be a number of seconds from 1");
                DEADLINE_MILLIS
            }
        }
    }
}

fn set(root: &mut Table, section: &str, key: &str, variable: &str, value: String) {
    if let Some(table) = root.table(section, &Place::Variable(variable.to_owned())) {
        table.set(key, variable, Data::Given(value));
    }
}

fn list(text: Option<&str>) -> Vec<&str> {
    text.map(|text| text.split(',').map(str::trim).collect()).unwrap_or_default()
}
