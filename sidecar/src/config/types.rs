//! The configuration as types, and what can be derived from them alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use inventory::Placeholders;
use settings::words::no_such;
use settings::{Mistake, SecretSource};

use super::policy::Policy;
use super::query::Query;
use super::sidecars::Sidecars;
use super::tcp::{Entrance, Tcp};
use engine::provider::ProviderSettings;
use engine::replay::Replay;
use engine::webhooks::Settings;

/// A configuration as it was loaded, with its warnings and its files.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Warnings about settings that work, but should be looked at.
    pub warnings: Vec<Mistake>,
    /// Files that the configuration is read from, to be watched.
    pub files: Vec<PathBuf>,
    /// Files among these that do not exist, and need not.
    pub missing: Vec<PathBuf>,
}

impl Config {
    /// Returns the ids of each `[[webhook]]`; each of these tables has a share of the replay memory.
    pub fn tables(&self) -> Vec<Vec<&str>> {
        let mut tables = BTreeMap::<_, Vec<&str>>::new();
        for webhook in &self.webhooks {
            tables.entry(webhook.table).or_default().push(&webhook.id);
        }
        tables.into_values().collect()
    }

    /// Returns the webhooks that are chosen by an id or by a name, which several ids may share.
    pub fn webhooks_called<'c, 'g>(&'c self, given: &'g str) -> impl Iterator<Item = &'c Settings> + use<'c, 'g> {
        let by_id = self.webhooks.iter().any(|webhook| webhook.id == given);
        self.webhooks.iter().filter(move |webhook| if by_id { webhook.id == given } else { webhook.name.as_deref() == Some(given) })
    }

    /// Returns the message for an id or a name that no webhook has.
    pub(crate) fn no_webhook(&self, given: &str) -> String {
        let names = self.webhooks.iter().filter_map(|webhook| webhook.name.as_deref());
        let mut known: Vec<&str> = self.webhooks.iter().map(|webhook| webhook.id.as_str()).chain(names).collect();
        known.sort_unstable();
        known.dedup();
        no_such("webhook", given, &known)
    }

    /// Returns the ids of the webhooks that stand in one `[[webhook]]` with this one, which is among them.
    pub fn ids_beside<'c>(&'c self, webhook: &'c Settings) -> impl Iterator<Item = &'c str> {
        self.webhooks.iter().filter(|other| other.table == webhook.table).map(|other| other.id.as_str())
    }

    /// Returns the files that the service reads besides the configuration: secrets, devices and certificates, each once.
    pub fn watched_files(&self) -> Vec<PathBuf> {
        let devices = self.providers.values().filter_map(|provider| match provider {
            ProviderSettings::File(settings) => Some(settings.path.clone()),
            ProviderSettings::Remote(_) => None,
        });
        let certificates = Entrance::all_of(self).flat_map(|(_, tcp)| tcp.files());
        let all: std::collections::BTreeSet<_> = self.secret_files().into_iter().chain(devices).chain(certificates).collect();
        all.into_iter().collect()
    }

    /// Returns the files with secrets, in the configuration's order.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let secrets = self.webhooks.iter().flat_map(|webhook| {
            let passwords = webhook.basic.iter().map(|basic| &basic.password);
            webhook.secrets.iter().chain(&webhook.bearer).chain(passwords)
        });
        let secrets = secrets.chain(self.providers.values().flat_map(ProviderSettings::secrets)).chain(&self.store_password);
        secrets.filter_map(|source| if let SecretSource::File(path) = source { Some(path.clone()) } else { None }).collect()
    }
}

/// A whole configuration. All paths in it are absolute.
#[derive(Clone, Debug)]
pub struct Config {
    /// `placeholders`: texts that identify no device.
    pub placeholders: Placeholders,
    /// `[listen]`: sockets and addresses of the service.
    pub listen: Listen,
    /// `[envoy]`: what `stepward envoy-config` writes; the service itself does not read it.
    pub envoy: Envoy,
    /// `[query]`: questions over TCP.
    pub query: Query,
    /// `[filter]`: streams of filters over TCP; `None`: filters attach on the socket alone.
    pub filter: Option<Tcp>,
    /// `[[webhook]]`: one entry for each id, in the order of the file, at least one; ids are unique.
    pub webhooks: Vec<Settings>,
    /// `[provider.<name>]`: providers by name.
    pub providers: BTreeMap<String, ProviderSettings>,
    /// `[policy.<name>]`: policies by name.
    pub policies: BTreeMap<String, Policy>,
    /// `[replay]`: bounds of the replay memory.
    pub replay: Replay,
    /// `[log]`: level and form of the log.
    pub log: Log,
    /// `[store]`: place of the store, and how long it keeps what. Its server has no password yet.
    pub store: store::Settings,
    /// `password` of `[store]`: where the password of its server is.
    pub store_password: Option<SecretSource>,
}

impl Entrance {
    /// Returns the listener's settings, if there is one.
    pub const fn of(self, config: &Config) -> Option<&Tcp> {
        match self {
            Self::Query => config.query.tcp.as_ref(),
            Self::Filter => config.filter.as_ref(),
        }
    }

    /// Returns the addresses of the listeners that there are.
    pub fn addresses(config: &Config) -> Vec<(Self, SocketAddr)> {
        Self::all_of(config).map(|(entrance, tcp)| (entrance, tcp.address)).collect()
    }

    /// Returns the listeners that there are.
    pub fn all_of(config: &Config) -> impl Iterator<Item = (Self, &Tcp)> {
        Self::ALL.into_iter().filter_map(move |entrance| Some((entrance, entrance.of(config)?)))
    }
}

/// Sockets and addresses on which the service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Folder of `filter.sock`, `query.sock`, `push.sock`, `admin.sock`.
    pub sockets: PathBuf,
    /// Address of metrics and health, plain HTTP. Default `127.0.0.1:9464`.
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
    /// Roles, each of which has a socket.
    pub const ROLES: [&str; 4] = ["filter", "query", "push", "admin"];

    /// Roles that by default are for root and for the service's own user alone: their clients can lock, exempt and unlock.
    pub const ROOT_AND_SERVICE: [&str; 1] = ["admin"];

    /// Returns the socket of a role: `run/admin.sock`, or with [`Self::role_folders`] `run/admin/admin.sock`.
    pub fn socket(&self, role: &str) -> PathBuf {
        self.folder(role).join(format!("{role}.sock"))
    }

    /// Returns the folder that the socket of a role is in.
    pub fn folder(&self, role: &str) -> PathBuf {
        if self.role_folders { self.sockets.join(role) } else { self.sockets.clone() }
    }

    /// Returns the group that may use the socket of a role; `None`: the process's own.
    pub fn group(&self, role: &str) -> Option<&str> {
        self.groups.get(role).or(self.group.as_ref()).map(String::as_str)
    }
}

/// Addresses, certificates and filter of Envoy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envoy {
    /// Address for webhooks. Default `0.0.0.0:9443`.
    pub webhook_address: SocketAddr,
    /// Address for events of device managements, if any are taken. Default `0.0.0.0:9444`.
    pub public_address: SocketAddr,
    /// Address of Envoy's statistics, for this machine alone; `None`: they are not served. Default `127.0.0.1:9465`.
    pub stats_address: Option<SocketAddr>,
    /// PEM chain of the listener.
    pub certificate: PathBuf,
    /// PEM key of the listener.
    pub private_key: PathBuf,
    /// PEM authorities that client certificates must come from; `None`: no client certificate is asked for.
    pub client_ca: Option<PathBuf>,
    /// File of the filter, a WebAssembly module.
    pub wasm: PathBuf,
    /// Sidecars that filters attach to over TCP; `None`: `filter.sock` of this machine.
    pub sidecars: Option<Sidecars>,
}

/// Longest path of a UNIX socket on Linux, without its closing zero (`unix(7)`).
pub const LONGEST_SOCKET: usize = 107;

/// Returns whether two listeners cannot have both of these addresses: one call could reach both.
pub(crate) fn meet(one: SocketAddr, other: SocketAddr) -> bool {
    // The system takes an IPv4 address within IPv6 for the IPv4 address.
    let (one_ip, other_ip) = (one.ip().to_canonical(), other.ip().to_canonical());
    let any = |ip: IpAddr| ip.is_unspecified();
    one.port() != 0 && one.port() == other.port() && (one_ip == other_ip || any(one_ip) || any(other_ip))
}

/// Level and form of the log.
#[derive(Clone, Debug)]
pub struct Log {
    /// Filter of log lines as `RUST_LOG` has it; default `info`.
    pub level: String,
    /// Whether the log is JSON and not text; default: text on a terminal, JSON otherwise.
    pub json: Option<bool>,
}
