//! Configuration: read once into types, all mistakes reported together. Nothing downstream looks at strings again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use posture::caller::Callers;
use posture::identity::{IdentifierKind, Source};
use posture::record::{Field, Fields};
use posture::secret::Secret;
use posture::shape::Mode;
use posture::time::Window;
use posture::webhook::Kind;

pub(crate) mod cases;
mod document;
mod dotenv;
mod dropin;
mod environment;
mod mistakes;
pub(crate) mod policy;
mod query;
mod read;
mod secrets;
mod section;
#[cfg(test)]
mod tests;

pub use environment::Environment;
pub use mistakes::{Mistake, Mistakes, Place};
pub use policy::{Combine, Enforcement, OnNotFound, OnUnavailable, Policy};
pub use query::{Client, Query, Role, Tcp};
pub use secrets::{Secrets, WebhookSecrets};

pub(crate) use document::Data;
pub(crate) use read::{base_url, list_of_texts, one_secret, secret};
pub(crate) use section::{Section, duration};

use crate::files;
use crate::placeholders::Placeholders;
use mistakes::Report;

/// A configuration and what came with it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works, but should be looked at.
    pub warnings: Vec<Mistake>,
    /// The files that it is read from, to be watched.
    pub files: Vec<PathBuf>,
    /// Those of them that are not there, and need not be.
    pub missing: Vec<PathBuf>,
}

impl Config {
    /// Reads the file; without one that of `STEPWARD_CONFIG`; without that the variables of step-posture-connector.
    ///
    /// # Errors
    /// All [`Mistakes`] of the file or the variables. Secrets are not read yet: see [`Config::resolve_secrets`].
    pub fn load(path: Option<&Path>, env: &Environment) -> Result<Loaded, Mistakes> {
        if let Some(path) = path.or_else(|| env.variable("STEPWARD_CONFIG").map(Path::new)) {
            return match files::text(&env.directory.join(path), files::CONFIGURATION) {
                Ok(text) => Self::parse(&text, path, env),
                Err(error) => Err(Mistakes::one(Some(path), format!("cannot be read: {error}"))),
            };
        }
        dropin::load(env)
    }

    /// Where a service of this configuration listens, and what is wrong with the rest of it: a service that runs goes by what there
    /// was before the mistake, and is reached all the same.
    ///
    /// # Errors
    /// All [`Mistakes`], where `[listen]` cannot be read.
    pub fn listening(path: Option<&Path>, env: &Environment) -> Result<(Listen, Option<Mistakes>), Mistakes> {
        match Self::load(path, env) {
            Ok(loaded) => Ok((loaded.config.listen, None)),
            Err(mistakes) => match Self::listen_alone(path, env) {
                Some(listen) => Ok((listen, Some(mistakes))),
                None => Err(mistakes),
            },
        }
    }

    fn listen_alone(path: Option<&Path>, env: &Environment) -> Option<Listen> {
        let path = path.or_else(|| env.variable("STEPWARD_CONFIG").map(Path::new))?;
        let file = env.directory.join(path);
        let text = files::text(&file, files::CONFIGURATION).ok()?;
        let mut root = document::parse(&text, &Report::of(path, &text))?;
        document::override_by_variables(&mut root, env, &Report::of(path, &text));
        // Where it is missing it may be misspelt, and the default is somebody else's.
        root.entries.contains_key("listen").then_some(())?;
        let report = Report::of(path, &text);
        let listen = read::listen_of(root, file.parent().unwrap_or(&env.directory), &report);
        report.finish(Some(listen)).ok().map(|(listen, _)| listen)
    }

    /// Reads the text of a file; `path` is its name, for messages and as the start of relative paths.
    ///
    /// # Errors
    /// All [`Mistakes`].
    pub fn parse(text: &str, path: &Path, env: &Environment) -> Result<Loaded, Mistakes> {
        let report = Report::of(path, text);
        let file = env.directory.join(path);
        let base = file.parent().unwrap_or(&env.directory);
        let config = document::parse(text, &report).and_then(|mut root| {
            document::override_by_variables(&mut root, env, &report);
            read::read(root, base, env, &report)
        });
        let (config, warnings) = report.finish(config)?;
        Ok(Loaded { config, warnings, files: vec![file], missing: Vec::new() })
    }

    /// How many `[[webhook]]` there are: a share of the replay memory is for what each of them describes, however many ids it has.
    pub fn tables(&self) -> usize {
        self.webhooks.iter().map(|webhook| webhook.table).collect::<std::collections::BTreeSet<_>>().len()
    }

    /// The ids of the webhooks that stand in one `[[webhook]]` with this one, which is among them.
    pub fn ids_beside<'c>(&'c self, webhook: &'c Webhook) -> impl Iterator<Item = &'c str> {
        self.webhooks.iter().filter(|other| other.table == webhook.table).map(|other| other.id.as_str())
    }

    /// The files that the service reads besides the configuration: secrets, devices and certificates, each once.
    pub fn watched_files(&self) -> Vec<PathBuf> {
        let devices = self.providers.values().filter_map(|provider| match provider {
            Provider::File(settings) => Some(settings.path.clone()),
            Provider::Remote(_) => None,
        });
        let certificates = self.query.tcp.iter().flat_map(Tcp::files);
        let all: std::collections::BTreeSet<_> = self.secret_files().into_iter().chain(devices).chain(certificates).collect();
        all.into_iter().collect()
    }

    /// The files with secrets, in the configuration's order.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let secrets = self.webhooks.iter().flat_map(|webhook| {
            let passwords = webhook.basic.iter().map(|basic| &basic.password);
            webhook.secrets.iter().chain(&webhook.bearer).chain(passwords)
        });
        let secrets = secrets.chain(self.providers.values().flat_map(Provider::secrets));
        secrets.filter_map(|source| if let SecretSource::File(path) = source { Some(path.clone()) } else { None }).collect()
    }
}

/// A whole configuration. All paths in it are absolute.
#[derive(Clone, Debug)]
pub struct Config {
    /// `placeholders`: texts that identify no device.
    pub placeholders: Placeholders,
    /// `[listen]`
    pub listen: Listen,
    /// `[envoy]`: what `stepward envoy-config` writes; the service itself does not read it.
    pub envoy: Envoy,
    /// `[query]`
    pub query: Query,
    /// Those of each `[[webhook]]` in its order, at least one; ids are unique.
    pub webhooks: Vec<Webhook>,
    /// `[provider.<name>]`
    pub providers: BTreeMap<String, Provider>,
    /// `[policy.<name>]`
    pub policies: BTreeMap<String, Policy>,
    /// `[replay]`
    pub replay: Replay,
    /// `[log]`
    pub log: Log,
    /// `[store]`
    pub store: crate::store::Settings,
}

/// Where the service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Folder of `filter.sock`, `query.sock`, `push.sock`, `admin.sock`.
    pub sockets: PathBuf,
    /// Metrics and health, plain HTTP. Default `127.0.0.1:9464`.
    pub admin: SocketAddr,
    /// Whether each role's socket is in a folder of its own below [`Self::sockets`], named as the role. Default false.
    pub role_folders: bool,
    /// Group that may use the sockets, whose mode is 0660; default: the process's own.
    pub group: Option<String>,
    /// Groups that may use one socket each, by role; a role that is not named has [`Self::group`].
    pub groups: BTreeMap<String, String>,
    /// User ids that may connect, by role (`filter`, `query`, `push`, `admin`). A role that is not named takes any, and `admin`
    /// root and the user of the service.
    pub uids: BTreeMap<String, Vec<u32>>,
}

impl Listen {
    /// The socket of a role: `run/admin.sock`, or with [`Self::role_folders`] `run/admin/admin.sock`.
    pub fn socket(&self, role: &str) -> PathBuf {
        self.folder(role).join(format!("{role}.sock"))
    }

    /// The folder that the socket of a role is in.
    pub fn folder(&self, role: &str) -> PathBuf {
        if self.role_folders { self.sockets.join(role) } else { self.sockets.clone() }
    }

    /// The group that may use the socket of a role; `None`: the process's own.
    pub fn group(&self, role: &str) -> Option<&str> {
        self.groups.get(role).or(self.group.as_ref()).map(String::as_str)
    }
}

/// Where Envoy listens, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envoy {
    /// Default `0.0.0.0:9443`.
    pub webhook_address: SocketAddr,
    /// Where events of device managements come in, if any are taken. Default `0.0.0.0:9444`.
    pub public_address: SocketAddr,
    /// Where Envoy's statistics are read, by this machine alone; `None`: nowhere. Default `127.0.0.1:9465`.
    pub stats_address: Option<SocketAddr>,
    /// PEM chain of the listener.
    pub certificate: PathBuf,
    /// PEM key of the listener.
    pub private_key: PathBuf,
    /// PEM authorities that client certificates must come from; `None`: no client certificate is asked for.
    pub client_ca: Option<PathBuf>,
    /// The filter.
    pub wasm: PathBuf,
}

/// One webhook of step-ca. A `[[webhook]]` with several `ids` is as many of them, which have all else in common.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// `X-Smallstep-Webhook-ID`.
    pub id: String,
    /// Which `[[webhook]]` it stands in, from 0.
    pub table: usize,
    /// Default enriching.
    pub kind: Kind,
    /// What the identifier is. Default serial.
    pub identifier: IdentifierKind,
    /// Where the identifier is found. Default attested.
    pub source: Source,
    /// Attestation formats that the provisioner accepts. Default apple.
    pub attestation: Vec<Attestation>,
    /// Newest first; empty only where `unsigned`.
    pub secrets: Vec<SecretSource>,
    /// Who may call.
    pub callers: Callers,
    /// Bearer tokens that are required, any one of them.
    pub bearer: Vec<SecretSource>,
    /// Basic credentials that are required, any one of them.
    pub basic: Vec<Basic>,
    /// step-ca signs with the empty key (a webhook in a static `ca.json`).
    pub unsigned: bool,
    /// Default 30 s past, 5 s ahead.
    pub window: Window,
    /// From first byte to reply; default 3.5 s, at most 3.8 s.
    pub deadline: Duration,
    /// Largest body in bytes; default 65,536, at most [`LARGEST_BODY`].
    pub body_limit: u32,
    /// Default of `?mode=`.
    pub mode: Option<Mode>,
    /// Providers to ask, in this order; at least one unless there is a policy or the kind asks nobody (scep_challenge,
    /// notifying).
    pub providers: Vec<String>,
    /// The policy that names the providers and judges what they say; never with `providers`.
    pub policy: Option<String>,
    /// Whether the policy's denials count. Default enforce.
    pub enforcement: Enforcement,
}

/// Longest path of a UNIX socket on Linux, without its closing zero (`unix(7)`).
pub const LONGEST_SOCKET: usize = 107;

/// Whether two listeners cannot have both of these addresses: one call could reach both.
pub(crate) fn meet(one: SocketAddr, other: SocketAddr) -> bool {
    // To the system an IPv4 address within IPv6 is that address.
    let (one_ip, other_ip) = (one.ip().to_canonical(), other.ip().to_canonical());
    let any = |ip: IpAddr| ip.is_unspecified();
    one.port() != 0 && one.port() == other.port() && (one_ip == other_ip || any(one_ip) || any(other_ip))
}

/// Bytes that `body_limit` can be at most.
pub const LARGEST_BODY: u32 = 1 << 20;

/// An attestation format of `device-attest-01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attestation {
    /// Apple managed device attestation.
    Apple,
    /// YubiKey and step-managed devices.
    Step,
    /// TPM 2.0.
    Tpm,
    /// Android key attestation.
    AndroidKey,
}

impl Attestation {
    /// All formats.
    pub const ALL: &'static [Self] = &[Self::Apple, Self::Step, Self::Tpm, Self::AndroidKey];

    /// As the configuration and step-ca spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Apple => "apple",
            Self::Step => "step",
            Self::Tpm => "tpm",
            Self::AndroidKey => "android-key",
        }
    }
}

/// Where a secret is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// `{ file = "…" }`
    File(PathBuf),
    /// `{ env = "…" }`
    Env(String),
    /// In a variable of step-posture-connector, which lists several; never from a file.
    Inline {
        /// The variable, and which of its entries.
        from: String,
        /// What stands there.
        text: Secret,
    },
}

/// User name and password.
#[derive(Clone, Debug)]
pub struct Basic {
    /// User name.
    pub username: String,
    /// Password.
    pub password: SecretSource,
}

/// One source of devices.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are only as many as there are providers")]
pub enum Provider {
    /// `type = "file"`
    File(crate::provider::file::Settings),
    /// Any other type: a service that answers over HTTP.
    Remote(Remote),
}

impl Provider {
    /// Fields that its records can ever hold.
    pub fn fields(&self) -> Fields {
        match self {
            Self::File(_) => Fields::of(&[Field::Data]),
            Self::Remote(remote) => remote.service.fields(),
        }
    }

    /// Where its secrets are: those of the service, then that of its events.
    pub fn secrets(&self) -> Vec<&SecretSource> {
        match self {
            Self::File(_) => Vec::new(),
            Self::Remote(remote) => remote.service.secrets().into_iter().chain(remote.push.as_ref().map(|push| &push.secret)).collect(),
        }
    }
}

/// A service that answers over HTTP, and how its answers are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote {
    /// Which one, with what is its own.
    pub service: crate::provider::service::Service,
    /// Where it is.
    pub endpoint: crate::provider::http::Endpoint,
    /// `[provider.<name>.cache]`
    pub cache: Cache,
    /// `[provider.<name>.limits]`
    pub limits: Limits,
    /// `[provider.<name>.sync]`; without it only single devices are asked for.
    pub sync: Option<Sync>,
    /// `[provider.<name>.push]`; without it no events are taken.
    pub push: Option<Push>,
    /// Texts that identify none of its devices.
    pub placeholders: Placeholders,
}

/// How long answers are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// That a device was found; default 5 min. In its last fifth it is refreshed beside the answer.
    pub positive: Duration,
    /// That it was not; default 30 s.
    pub negative: Duration,
    /// How old a record may be that is answered from because the service cannot say; default 24 h, 0 for never.
    pub stale_if_error: Duration,
    /// Devices at most; default 1,000,000.
    pub max_entries: u64,
}

/// How hard a service may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lookups of devices in a second; default 20.
    pub per_second: u32,
    /// Of these, lookups in a minute of identifiers that were never found; default [`Limits::guesses`].
    pub unknown_per_minute: u32,
}

/// When the whole inventory is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sync {
    /// All of it; default every 8 h.
    pub full: Duration,
    /// What changed; default every 15 min.
    pub partial: Duration,
    /// The feed of what happened to devices, where the service keeps one; default every minute.
    pub changes: Duration,
    /// Share of the devices that a full one may lose, 0 to 1; default 0.1.
    pub max_shrink: f64,
}

impl Sync {
    /// How long a listed record is good for: two lists may fail before it is asked for again.
    pub const fn lifetime(&self) -> Duration {
        self.partial.saturating_mul(3)
    }
}

/// How the service's own events prove where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// What is compared.
    pub proof: Proof,
    /// With what.
    pub secret: SecretSource,
}

/// What an event carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// `Authorization: Basic` with this user name.
    Basic(String),
    /// `Authorization: Bearer`.
    Bearer,
    /// This header, whose value is the secret.
    Header(String),
    /// This header, whose value is the HMAC-SHA256 of the body, hexadecimal or base64.
    Hmac(String),
}

/// Bounds of the replay memory.
#[derive(Clone, Copy, Debug)]
pub struct Replay {
    /// Webhooks remembered at once; default 262,144.
    pub max_entries: usize,
    /// Bytes that they may take; default 128 MiB.
    pub max_bytes: usize,
}

/// What is logged.
#[derive(Clone, Debug)]
pub struct Log {
    /// A filter as `RUST_LOG` has it; default `info`.
    pub level: String,
    /// JSON or text; default: text on a terminal, JSON otherwise.
    pub json: Option<bool>,
}
