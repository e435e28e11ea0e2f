//! Rendering of the bootstrap and its SDS files, from a configuration.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use posture::caller::{Callers, Name};
use serde_json::{Value, json};

use super::admin::{Admin, address, reached};
use super::template::{fill, folder, quote, quote_path};
use super::unusable::Unusable;
use crate::config::{Config, Entrance, Sidecars, meet};
use engine::provider::ProviderSettings;

/// Options of the bootstrap, besides the configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the SDS files.
    pub sds: PathBuf,
    /// Envoy's admin interface, where it is opened.
    pub admin: Option<Admin>,
    /// Bytes of the allocator at which Envoy refuses requests.
    pub heap: u64,
    /// Whether the handshake ends for everybody whom no webhook names.
    pub only_callers: bool,
    /// Capabilities of the module, as lines of YAML: what it may call, and what of it may be called.
    pub capabilities: String,
}

impl Options {
    /// Makes the default options, with this folder of SDS files.
    pub fn new(sds: impl Into<PathBuf>) -> Self {
        Self { sds: sds.into(), admin: None, heap: mebibytes(HEAP), only_callers: false, capabilities: CAPABILITIES.to_owned() }
    }
}

/// Bootstrap and SDS files, to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// Text of the file for Envoy's `-c`.
    pub bootstrap: String,
    /// SDS files that the bootstrap names, with their text.
    pub sds: Vec<(PathBuf, String)>,
}

/// Fills in the templates; nothing is written.
///
/// # Errors
/// [`Unusable`] for what Envoy could not run with.
pub fn render(config: &Config, options: &Options) -> Result<Rendered, Unusable> {
    let envoy = &config.envoy;
    let pushed: Vec<_> = pushing(config).map(|name| format!("/push/{name}")).collect();
    apart(config, options.admin.as_ref(), !pushed.is_empty())?;
    let limit = config.webhooks.iter().map(|webhook| webhook.body_limit).max().unwrap_or(65_536);
    let deadline = config.webhooks.iter().map(|webhook| webhook.deadline).max().unwrap_or_default();
    let window = limit.max(SMALLEST_WINDOW);
    let plugin = json!({ "cluster": "stepward", "deadline_ms": u64::try_from(deadline.as_millis()).unwrap_or(3500), "body_limit": limit });
    let filter = fill(
        FILTER,
        &[
            ("configuration", quote(&plugin.to_string())),
            ("wasm", quote_path("wasm in [envoy]", &envoy.wasm)?),
            ("capabilities", options.capabilities.clone()),
        ],
    );

    let certificate_file = options.sds.join("webhook_certificate.yaml");
    let of_listener = ["webhook_certificate", "The listener's certificate", "certificate in [envoy]", "private_key in [envoy]"];
    let mut files = vec![(certificate_file.clone(), certificate(of_listener, &envoy.certificate, &envoy.private_key)?)];
    let (mut mtls, mut client_ca) = (String::new(), String::new());
    if let Some(ca) = &envoy.client_ca {
        let file = options.sds.join("webhook_client_ca.yaml");
        mtls = MTLS.to_owned();
        client_ca = fill(CLIENT_CA, &[("sds_client_ca", quote_path(SDS_FOLDER, &file)?)]);
        let names = if options.only_callers { names(config)? } else { String::new() };
        files.push((file, authority(["webhook_client_ca", "client certificates", "client_ca in [envoy]"], ca, names)?));
    }
    let cluster = match &envoy.sidecars {
        None => fill(SOCKET_CLUSTER, &[("socket", socket(config, "filter")?)]),
        Some(sidecars) => over_tcp(sidecars, &options.sds, &mut files)?,
    };
    let log_file = options.sds.join("log_lines.yaml");
    let log_limit = fill(LOG_LIMIT, &[("file", quote_path(SDS_FOLDER, &log_file)?)]);
    files.push((log_file, LOG_LINES.to_owned()));
    // Where a webhook lets in any certificate, or anybody, strangers too are refused after that, so that those lines stay limited.
    let named = config.webhooks.iter().all(|webhook| matches!(webhook.callers, Callers::Named(_)));
    let log_callers = if named { LOG_CALLERS } else { "" };
    let certificate_file = quote_path(SDS_FOLDER, &certificate_file)?;
    let outward = if pushed.is_empty() { Besides::default() } else { outward(config, &pushed, &certificate_file, &log_limit)? };
    let admin = options.admin.as_ref().map(address).transpose()?;
    let stats = envoy.stats_address.zip(admin.as_ref()).map(|(address, admin)| stats(address, admin)).unwrap_or_default();
    let admin = admin.map(|address| fill(ADMIN, &[("address", address.to_string())]));
    let bootstrap = fill(
        BOOTSTRAP,
        &[
            ("admin", admin.unwrap_or_default()),
            ("address", quote(&envoy.webhook_address.ip().to_string())),
            ("port", envoy.webhook_address.port().to_string()),
            ("buffer", limit.to_string()),
            ("stream_window", window.to_string()),
            ("connection_window", window.saturating_mul(16).to_string()),
            // Longer than any deadline, and short enough that Envoy's own answer is out within 4 s.
            ("max_stream_duration", "3.9s".to_owned()),
            ("mtls", mtls),
            ("client_ca", client_ca),
            ("sds_certificate", certificate_file),
            ("log_callers", log_callers.to_owned()),
            ("log_limit", log_limit),
            ("filter", filter),
            ("cluster", cluster),
            ("stats", stats.listener),
            ("stats_cluster", stats.cluster),
            ("stats_limit", stats.limit),
            ("outward", outward.listener),
            ("outward_cluster", outward.cluster),
            ("webhook_connections", WEBHOOK_CONNECTIONS.to_string()),
            ("outward_limit", outward.limit),
            ("connections", (WEBHOOK_CONNECTIONS + outward.connections + stats.connections).to_string()),
            ("heap", options.heap.to_string()),
        ],
    );
    Ok(Rendered { bootstrap, sds: files })
}

/// Returns the providers that take events.
fn pushing(config: &Config) -> impl Iterator<Item = &String> {
    let takes = |provider: &ProviderSettings| matches!(provider, ProviderSettings::Remote(remote) if remote.push.is_some());
    config.providers.iter().filter(move |(_, provider)| takes(provider)).map(|(name, _)| name)
}

/// Returns whether any provider takes events.
pub(super) fn takes_events(config: &Config) -> bool {
    pushing(config).next().is_some()
}

/// Parts of a bootstrap for a listener besides that of webhooks; all empty where there is no such listener.
#[derive(Default)]
struct Besides {
    listener: String,
    cluster: String,
    /// Setting that bounds its connections.
    limit: String,
    /// Number of connections that it takes at once.
    connections: u32,
}

/// Makes the listener for strangers, which takes events on these paths, and the cluster behind it.
fn outward(config: &Config, pushed: &[String], certificate_file: &str, log_limit: &str) -> Result<Besides, Unusable> {
    let address = config.envoy.public_address;
    let values = [
        ("address", quote(&address.ip().to_string())),
        ("port", address.port().to_string()),
        ("sds_certificate", certificate_file.to_owned()),
        ("routes", pushed.iter().map(|path| fill(OUTWARD_ROUTE, &[("path", quote(path))])).collect()),
        ("log_limit", log_limit.to_owned()),
    ];
    Ok(Besides {
        listener: fill(OUTWARD, &values),
        cluster: fill(OUTWARD_CLUSTER, &[("socket", socket(config, "push")?)]),
        limit: format!("envoy.resource_limits.listener.outward.connection_limit: {OUTWARD_CONNECTIONS}"),
        connections: OUTWARD_CONNECTIONS,
    })
}

/// Makes the listener for statistics, and the cluster of the admin interface behind it.
fn stats(address: SocketAddr, admin: &Value) -> Besides {
    Besides {
        listener: fill(STATS, &[("address", quote(&address.ip().to_string())), ("port", address.port().to_string())]),
        cluster: fill(STATS_CLUSTER, &[("address", reached(admin).to_string())]),
        limit: format!("envoy.resource_limits.listener.stats.connection_limit: {STATS_CONNECTIONS}"),
        connections: STATS_CONNECTIONS,
    }
}

/// Makes the cluster of sidecars over TCP, and adds the SDS files that it names.
fn over_tcp(sidecars: &Sidecars, sds: &Path, files: &mut Vec<(PathBuf, String)>) -> Result<String, Unusable> {
    let Sidecars { all, ca, certificate: chain, private_key } = sidecars;
    let [certificate_file, ca_file] = ["sidecar_client_certificate.yaml", "sidecar_ca.yaml"].map(|name| sds.join(name));
    let values = [
        ("sidecars", all.iter().map(|one| fill(SIDECAR, &[("name", quote(&one.name)), ("port", one.port.to_string())])).collect()),
        ("sds_certificate", quote_path(SDS_FOLDER, &certificate_file)?),
        ("sds_ca", quote_path(SDS_FOLDER, &ca_file)?),
    ];
    let of_envoy = [
        "sidecar_client_certificate",
        "What Envoy shows to the sidecars",
        "client_certificate in [envoy]",
        "client_private_key in [envoy]",
    ];
    files.push((certificate_file, certificate(of_envoy, chain, private_key)?));
    files.push((ca_file, authority(["sidecar_ca", "the sidecars' certificates", "sidecar_ca in [envoy]"], ca, String::new())?));
    Ok(fill(SIDECARS_CLUSTER, &values))
}

/// Makes the SDS file of a certificate and its key: of this name, with these words for what it is, and for where both were named.
fn certificate([name, what, chain_key, key_key]: [&'static str; 4], chain: &Path, private_key: &Path) -> Result<String, Unusable> {
    let values = [
        ("name", name.to_owned()),
        ("what", what.to_owned()),
        ("certificate", quote_path(chain_key, chain)?),
        ("private_key", quote_path(key_key, private_key)?),
        ("folder", quote_path(chain_key, folder(chain))?),
    ];
    Ok(fill(SDS_CERTIFICATE, &values))
}

/// Makes the SDS file of authorities, as [`certificate`] does, with the names that a certificate has to have besides.
fn authority([name, what, key]: [&'static str; 3], ca: &Path, names: String) -> Result<String, Unusable> {
    let values = [
        ("name", name.to_owned()),
        ("what", what.to_owned()),
        ("client_ca", quote_path(key, ca)?),
        ("folder", quote_path(key, folder(ca))?),
        ("names", names),
    ];
    Ok(fill(SDS_CLIENT_CA, &values))
}

fn socket(config: &Config, role: &str) -> Result<String, Unusable> {
    quote_path("sockets in [listen]", &config.listen.socket(role))
}

/// Returns the names that any webhook lets in, as Envoy compares them: one of them is enough.
///
/// # Errors
/// [`Unusable::NoNames`] where Envoy cannot tell by names who is let in.
pub(super) fn names(config: &Config) -> Result<String, Unusable> {
    let mut rules = BTreeSet::new();
    for webhook in &config.webhooks {
        let Callers::Named(names) = &webhook.callers else { return Err(Unusable::NoNames(webhook.id.clone())) };
        for name in names {
            let exact = |name: &str| format!("exact: {}", quote(name));
            let (kind, matcher) = match name {
                Name::Uri(uri) => ("URI", exact(uri)),
                // By `exact`, Envoy takes the name of a certificate for a pattern: `*.example.org` would be `ca.example.org`.
                Name::Dns(name) => ("DNS", format!("safe_regex: {{ regex: {} }}", quote(&format!("(?i){}", regex::escape(name))))),
                Name::Email(address) => ("EMAIL", exact(address)),
                Name::Ip(address) => ("IP_ADDRESS", exact(&address.to_string())),
                Name::Sha256(_) | Name::Subject(_) | Name::Key(_) | Name::Other(_) => return Err(Unusable::NoNames(webhook.id.clone())),
            };
            rules.insert(fill(CALLER_NAME, &[("type", kind.to_owned()), ("matcher", matcher)]));
        }
    }
    let rules: String = rules.into_iter().collect();
    Ok(if rules.is_empty() { rules } else { format!("match_typed_subject_alt_names:\n{rules}") })
}

/// Checks that everything that listens has a port, and one of its own.
fn apart(config: &Config, admin: Option<&Admin>, outward: bool) -> Result<(), Unusable> {
    let mut listening = vec![("webhook_address in [envoy]", config.envoy.webhook_address)];
    if outward {
        listening.push(("public_address in [envoy]", config.envoy.public_address));
    }
    if let Some(Admin::Address(address)) = admin {
        listening.push(("--admin", *address));
    }
    if let Some(address) = config.envoy.stats_address {
        listening.push(("stats_address in [envoy]", address));
    }
    if let Some((name, _)) = listening.iter().find(|(_, address)| address.port() == 0) {
        return Err(Unusable::NoPort(name));
    }
    // The service's own listeners may well choose their ports in a test.
    listening.push(("admin in [listen]", config.listen.admin));
    listening.extend(Entrance::addresses(config).into_iter().map(|(entrance, address)| match entrance {
        Entrance::Query => ("address in [query]", address),
        Entrance::Filter => ("address in [filter]", address),
    }));
    for (at, (name, address)) in listening.iter().enumerate() {
        for (other, taken) in listening.iter().take(at) {
            if meet(*address, *taken) {
                return Err(Unusable::SamePort(other, *taken, name, *address));
            }
        }
    }
    Ok(())
}

/// Returns mebibytes in bytes.
pub(super) const fn mebibytes(count: u32) -> u64 {
    (count as u64) << 20
}

/// Default of `--heap`: half of `MemoryMax=` in the unit, and of `mem_limit` in the compose file.
pub const HEAP: u32 = 1024;

/// Connections that the webhooks' listener takes at once. A CA whose webhook shows no client certificate leaves one behind
/// for each call, for 90 s.
const WEBHOOK_CONNECTIONS: u32 = 4096;

/// Connections that the listener for events takes at once. Each may hold one body of 1 MiB, so that all of them stay below
/// a third of the default of `--heap`.
pub(super) const OUTWARD_CONNECTIONS: u32 = 256;

/// Connections that the listener for statistics takes at once.
const STATS_CONNECTIONS: u32 = 16;

/// Smallest window that HTTP/2 has by itself; a smaller one only slows (RFC 9113, 6.9.2).
const SMALLEST_WINDOW: u32 = 65_535;

const SDS_FOLDER: &str = "the folder of the SDS files";

pub(super) const BOOTSTRAP: &str = include_str!("../../../../envoy/bootstrap.yaml");
const SOCKET_CLUSTER: &str = include_str!("../../../../envoy/socket_cluster.yaml");
const SIDECARS_CLUSTER: &str = include_str!("../../../../envoy/sidecars_cluster.yaml");
const SIDECAR: &str = include_str!("../../../../envoy/sidecar.yaml");
const FILTER: &str = include_str!("../../../../envoy/filter.yaml");
pub(super) const CAPABILITIES: &str = include_str!("../../../../envoy/capabilities.yaml");
const MTLS: &str = include_str!("../../../../envoy/mtls.yaml");
const CLIENT_CA: &str = include_str!("../../../../envoy/client_ca.yaml");
const OUTWARD: &str = include_str!("../../../../envoy/outward.yaml");
const OUTWARD_ROUTE: &str = include_str!("../../../../envoy/outward_route.yaml");
const OUTWARD_CLUSTER: &str = include_str!("../../../../envoy/outward_cluster.yaml");
const ADMIN: &str = include_str!("../../../../envoy/admin.yaml");
const STATS: &str = include_str!("../../../../envoy/stats.yaml");
const STATS_CLUSTER: &str = include_str!("../../../../envoy/stats_cluster.yaml");
const SDS_CERTIFICATE: &str = include_str!("../../../../envoy/sds_certificate.yaml");
const SDS_CLIENT_CA: &str = include_str!("../../../../envoy/sds_client_ca.yaml");
const CALLER_NAME: &str = include_str!("../../../../envoy/caller_name.yaml");
const LOG_LIMIT: &str = include_str!("../../../../envoy/log_limit.yaml");
pub(super) const LOG_LINES: &str = include_str!("../../../../envoy/log_lines.yaml");
const LOG_CALLERS: &str = include_str!("../../../../envoy/log_callers.yaml");
