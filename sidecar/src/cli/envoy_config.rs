//! `stepward envoy-config`: a complete bootstrap for Envoy, made of the templates in `envoy/`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use posture::caller::{Callers, Name};
use serde_json::{Value, json};

use crate::config::{Config, Environment, LONGEST_SOCKET, Loaded, Provider, meet};

const BOOTSTRAP: &str = include_str!("../../../envoy/bootstrap.yaml");
const FILTER: &str = include_str!("../../../envoy/filter.yaml");
const CAPABILITIES: &str = include_str!("../../../envoy/capabilities.yaml");
const MTLS: &str = include_str!("../../../envoy/mtls.yaml");
const CLIENT_CA: &str = include_str!("../../../envoy/client_ca.yaml");
const OUTWARD: &str = include_str!("../../../envoy/outward.yaml");
const OUTWARD_ROUTE: &str = include_str!("../../../envoy/outward_route.yaml");
const OUTWARD_CLUSTER: &str = include_str!("../../../envoy/outward_cluster.yaml");
const ADMIN: &str = include_str!("../../../envoy/admin.yaml");
const STATS: &str = include_str!("../../../envoy/stats.yaml");
const STATS_CLUSTER: &str = include_str!("../../../envoy/stats_cluster.yaml");
const SDS_CERTIFICATE: &str = include_str!("../../../envoy/sds_certificate.yaml");
const SDS_CLIENT_CA: &str = include_str!("../../../envoy/sds_client_ca.yaml");
const CALLER_NAME: &str = include_str!("../../../envoy/caller_name.yaml");
const LOG_LIMIT: &str = include_str!("../../../envoy/log_limit.yaml");
const LOG_LINES: &str = include_str!("../../../envoy/log_lines.yaml");
const LOG_CALLERS: &str = include_str!("../../../envoy/log_callers.yaml");

/// Connections that the webhooks' listener takes at once. A CA whose webhook shows no client certificate leaves one behind
/// for each call, for 90 s.
const WEBHOOK_CONNECTIONS: u32 = 4096;

/// Connections that the listener for events takes at once. Each may hold one body of 1 MiB, so that all of them stay below
/// a third of the default of `--heap`.
const OUTWARD_CONNECTIONS: u32 = 256;

/// Connections that the listener for statistics takes at once.
const STATS_CONNECTIONS: u32 = 16;

/// The socket of Envoy's admin interface, where nobody asked for another one: only the listener for statistics calls it.
const ADMIN_SOCKET: &str = "envoy-admin.sock";

/// Smallest window that HTTP/2 has by itself; a smaller one only slows (RFC 9113, 6.9.2).
const SMALLEST_WINDOW: u32 = 65_535;

/// Print a complete Envoy bootstrap for this configuration
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward envoy-config --config stepward.toml --output envoy.yaml
  envoy -c envoy.yaml --concurrency 2

The certificate, its key and the client authority reach Envoy by small files, written into --sds-dir, so that Envoy takes
new ones without a restart: rename them into their folder. Limits of its access log are beside them.

Exit codes: 0 written, 1 mistakes in the configuration, what Envoy could not run with, or a file that cannot be written,
2 usage. Nothing is written or printed then.")]
pub struct EnvoyConfigArgs {
    /// Configuration file; without it the variables of step-posture-connector
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    pub config: Option<PathBuf>,
    /// Write the bootstrap into FILE instead of the standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Folder of the SDS files [default: `sds` beside --output, else `sds` in the folder of the sockets]
    #[arg(long, value_name = "DIR")]
    pub sds_dir: Option<PathBuf>,
    /// Open Envoy's admin interface: 127.0.0.1:9901 or `[::1]:9901` (never a public address), or the path of a socket with a
    /// slash in it, as ./envoy.sock [default: `envoy-admin.sock` beside the folder of the SDS files, for Envoy's user alone: its
    /// listener for statistics, `stats_address`, calls it; none where that is off]
    #[arg(long, value_name = "ADDRESS|PATH")]
    pub admin: Option<String>,
    /// Let Envoy end the handshake of everybody whom no webhook names in `callers`, so that other certificates of the same
    /// authority hold no connection, or fail where that cannot be told [default: where every webhook has `callers`, none by
    /// `sha256:`]. Call it again when `callers` change: Envoy takes the new names without a restart
    #[arg(long)]
    pub only_callers: bool,
    /// Let every certificate of the client authority finish its handshake: the filter alone looks for `callers`
    #[arg(long, conflicts_with = "only_callers")]
    pub any_certificate: bool,
    /// Memory in MiB that Envoy takes for connections and requests before it refuses them: half of what it may have in all,
    /// since the filter, TLS and Envoy itself come on top
    #[arg(long, value_name = "MIB", default_value_t = HEAP, value_parser = clap::value_parser!(u32).range(128..=1_048_576))]
    pub heap: u32,
}

/// Default of `--heap`: half of `MemoryMax=` in the unit, and of `mem_limit` in the compose file.
pub const HEAP: u32 = 1024;

/// What Envoy could not run with, or not as it was meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// `--admin` is neither an address nor a path.
    #[error("`--admin {0}` is neither an address and port nor the path of a socket: write 127.0.0.1:9901, [::1]:9901 or ./envoy.sock")]
    Admin(String),
    /// `--admin` is an address that others can reach: whoever does ends Envoy, and reads what it holds.
    #[error("`--admin {0}` can be reached from elsewhere, and whoever reaches it rules Envoy: write 127.0.0.1:{port} or the path of a socket", port = .0.port())]
    PublicAdmin(SocketAddr),
    /// A socket of the admin interface whose path the system does not take.
    #[error("the socket of Envoy's admin interface, {}, has {} bytes, and {LONGEST_SOCKET} are possible: name a shorter one by --admin", .0.display(), .0.as_os_str().len())]
    LongSocket(PathBuf),
    /// A file that would be written over, though something else is read from it.
    #[error("{what} would be written over {}, which is {is}: name another file", path.display())]
    Overwrites {
        /// What would be written.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What it is now.
        is: &'static str,
    },
    /// `--output json`, as other commands have it.
    #[error("`--output` names a file here, and `{0}` is a form: write --output envoy.yaml, or --output ./{0} where the file is meant")]
    IsAForm(String),
    /// An address with port 0, which nobody could call.
    #[error("{0} has port 0, so that nobody would know where to call: choose one")]
    NoPort(&'static str),
    /// Two of the listeners would have one port; Linux shares it among them, and each gets a part of the other's calls.
    #[error("{0} ({1}) and {2} ({3}) would listen on the same port: change one of them")]
    SamePort(&'static str, SocketAddr, &'static str, SocketAddr),
    /// A webhook whose callers cannot be told by their names in the handshake.
    #[error("webhook `{0}` has no `callers`, or one by `sha256:`, and Envoy can be told names only")]
    NoNames(String),
    /// A path that cannot be written into YAML, whose text is Unicode.
    #[error("{0} `{path}` is not UTF-8, and Envoy's configuration holds nothing else: rename it", path = .1.display())]
    NotUnicode(&'static str, PathBuf),
}

/// What the bootstrap depends on besides the configuration.
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
    /// What the module may call and of it may be called.
    pub capabilities: String,
}

/// Where Envoy's admin interface listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admin {
    /// An address and port.
    Address(SocketAddr),
    /// A socket for its owner alone.
    Socket(PathBuf),
}

impl Options {
    /// The defaults, with this folder of SDS files.
    pub fn new(sds: impl Into<PathBuf>) -> Self {
        Self { sds: sds.into(), admin: None, heap: mebibytes(HEAP), only_callers: false, capabilities: CAPABILITIES.to_owned() }
    }
}

impl Admin {
    /// Reads `--admin`; a relative path is one in `folder`.
    ///
    /// # Errors
    /// [`Unusable::Admin`] for what is no IP address with a port, and no path with a slash in it; [`Unusable::PublicAdmin`] for an
    /// address of another machine's reach, and [`Unusable::LongSocket`] for a path that is too long.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Unusable> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().to_canonical().is_loopback() => Ok(Self::Address(address)),
            Ok(address) => Err(Unusable::PublicAdmin(address)),
            // A name such as localhost would pass for a file of that name.
            Err(_) if text.contains('/') => {
                let path = folder.join(text);
                if path.as_os_str().len() > LONGEST_SOCKET { Err(Unusable::LongSocket(path)) } else { Ok(Self::Socket(path)) }
            }
            Err(_) => Err(Unusable::Admin(text.to_owned())),
        }
    }
}

/// What there is to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// Envoy's `-c`.
    pub bootstrap: String,
    /// SDS files that it names, with their text.
    pub sds: Vec<(PathBuf, String)>,
}

/// Reads the configuration, writes the SDS files, and prints the bootstrap or writes it; warnings go to the standard error.
///
/// # Errors
/// The mistakes of the configuration, or a file that cannot be written.
pub fn run(
    args: &EnvoyConfigArgs,
    env: &Environment,
    stdout: &mut dyn std::io::Write,
    stderr: &mut dyn std::io::Write,
) -> anyhow::Result<()> {
    if let Some(form) = args.output.as_deref().and_then(Path::to_str).filter(|name| FORMS.contains(name)) {
        return Err(Unusable::IsAForm(form.to_owned()).into());
    }
    let loaded = Config::load(args.config.as_deref(), env)?;
    for warning in &loaded.warnings {
        writeln!(stderr, "warning: {warning}")?;
    }
    let sds = match (&args.sds_dir, &args.output) {
        (Some(folder), _) => env.directory.join(folder),
        (None, Some(output)) => env.directory.join(output).parent().map_or_else(|| env.directory.join("sds"), |folder| folder.join("sds")),
        (None, None) => loaded.config.listen.sockets.join("sds"),
    };
    let admin = args.admin.as_deref().map(|admin| Admin::parse(admin, &env.directory)).transpose()?;
    let only_callers = match names(&loaded.config) {
        Err(_) if !args.only_callers && loaded.config.envoy.client_ca.is_none() => false,
        Err(why) if !args.only_callers => {
            writeln!(stderr, "warning: {why}, so whoever has a certificate of client_ca can hold connections that step-ca needs")?;
            false
        }
        _ => !args.any_certificate,
    };
    let admin = admin.or_else(|| loaded.config.envoy.stats_address.map(|_| Admin::Socket(folder(&sds).join(ADMIN_SOCKET))));
    let options = Options { admin, heap: mebibytes(args.heap), only_callers, ..Options::new(&sds) };
    let rendered = render(&loaded.config, &options)?;
    let output = args.output.as_ref().map(|output| env.directory.join(output));
    spare(&loaded, output.as_deref(), &rendered, options.admin.as_ref())?;
    std::fs::create_dir_all(&sds).with_context(|| format!("make the folder {}", sds.display()))?;
    for (path, text) in &rendered.sds {
        replace(path, text)?;
    }
    match output {
        Some(output) => replace(&output, &rendered.bootstrap),
        None => stdout.write_all(rendered.bootstrap.as_bytes()).context("write the bootstrap"),
    }
}

/// Holds that nothing is written over what the service or Envoy reads, nor the bootstrap over the files that it names.
fn spare(loaded: &Loaded, output: Option<&Path>, rendered: &Rendered, admin: Option<&Admin>) -> Result<(), Unusable> {
    let Config { envoy, store, listen, providers, query, .. } = &loaded.config;
    let of = |is: &'static str, paths: Vec<PathBuf>| paths.into_iter().map(move |path| (is, path));
    let certificates = [&envoy.certificate, &envoy.private_key].into_iter().chain(&envoy.client_ca).cloned();
    let certificates = certificates.chain(query.tcp.iter().flat_map(crate::config::Tcp::files)).collect();
    let authorities = providers.values().filter_map(|provider| match provider {
        Provider::File(_) => None,
        Provider::Remote(remote) => remote.endpoint.ca_file.clone(),
    });
    let sockets = crate::server::ROLES.iter().map(|role| listen.socket(role));
    let sockets = sockets.chain(admin.and_then(|admin| if let Admin::Socket(path) = admin { Some(path.clone()) } else { None }));
    let read: Vec<(&'static str, PathBuf)> = of("a part of the configuration", loaded.files.clone())
        .chain(of("a file that the service reads", loaded.config.watched_files()))
        .chain(of("a certificate, a key or an authority", certificates))
        .chain(of("an authority of a provider", authorities.collect()))
        .chain(of("the filter", vec![envoy.wasm.clone()]))
        .chain(of("the store", store.path.iter().cloned().collect()))
        .chain(of("a socket", sockets.collect()))
        .collect();
    let sds = rendered.sds.iter().map(|(path, _)| ("an SDS file", path.as_path()));
    let written = sds.clone().chain(output.map(|output| ("the bootstrap", output)));
    for (what, path) in written {
        if let Some((is, _)) = read.iter().find(|(_, other)| is_same(path, other)) {
            return Err(Unusable::Overwrites { what, path: path.to_owned(), is });
        }
    }
    match output.filter(|output| rendered.sds.iter().any(|(path, _)| is_same(output, path))) {
        Some(output) => {
            Err(Unusable::Overwrites { what: "the bootstrap", path: output.to_owned(), is: "one of the SDS files that it names" })
        }
        None => Ok(()),
    }
}

/// Whether two paths name one file, be it by a link, or would once it is there.
fn is_same(one: &Path, other: &Path) -> bool {
    let found = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    if let (Some(one), Some(other)) = (found(one), found(other)) {
        return one == other;
    }
    let resolved = |path: &Path| {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        folder.and_then(|folder| Some(folder.join(path.file_name()?))).unwrap_or_else(|| path.to_owned())
    };
    resolved(one) == resolved(other)
}

/// Writes beside, then renames: Envoy watches for that, and never sees half a file.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{:016x}.new", rand::random::<u64>()));
    let write = || {
        // The folder may be Envoy's user's, who would have root write wherever a link of a known name leads.
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&beside))).with_context(|| format!("write {}", path.display()))
}

/// Fills in the templates.
///
/// # Errors
/// [`Unusable`] for what Envoy could not run with.
pub fn render(config: &Config, options: &Options) -> Result<Rendered, Unusable> {
    let envoy = &config.envoy;
    let pushed: Vec<_> = config
        .providers
        .iter()
        .filter(|(_, provider)| matches!(provider, Provider::Remote(remote) if remote.push.is_some()))
        .map(|(name, _)| format!("/push/{name}"))
        .collect();
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
    let mut files = vec![(
        certificate_file.clone(),
        fill(
            SDS_CERTIFICATE,
            &[
                ("certificate", quote_path("certificate in [envoy]", &envoy.certificate)?),
                ("private_key", quote_path("private_key in [envoy]", &envoy.private_key)?),
                ("folder", quote_path("certificate in [envoy]", folder(&envoy.certificate))?),
            ],
        ),
    )];
    let (mut mtls, mut client_ca) = (String::new(), String::new());
    if let Some(ca) = &envoy.client_ca {
        let file = options.sds.join("webhook_client_ca.yaml");
        mtls = MTLS.to_owned();
        client_ca = fill(CLIENT_CA, &[("sds_client_ca", quote_path(SDS_FOLDER, &file)?)]);
        let values = [
            ("client_ca", quote_path("client_ca in [envoy]", ca)?),
            ("folder", quote_path("client_ca in [envoy]", folder(ca))?),
            ("names", if options.only_callers { names(config)? } else { String::new() }),
        ];
        files.push((file, fill(SDS_CLIENT_CA, &values)));
    }
    let log_file = options.sds.join("log_lines.yaml");
    let log_limit = fill(LOG_LIMIT, &[("file", quote_path(SDS_FOLDER, &log_file)?)]);
    files.push((log_file, LOG_LINES.to_owned()));
    // Where a webhook lets in whoever has a certificate, or anybody, what was refused after that is a stranger's too.
    let named = config.webhooks.iter().all(|webhook| matches!(webhook.callers, Callers::Named(_)));
    let log_callers = if named { LOG_CALLERS } else { "" };
    let socket = |role: &str| quote_path("sockets in [listen]", &config.listen.socket(role));
    let certificate_file = quote_path(SDS_FOLDER, &certificate_file)?;
    let (mut outward, mut outward_cluster, mut outward_limit, mut connections) =
        (String::new(), String::new(), String::new(), WEBHOOK_CONNECTIONS);
    // The listener for strangers and what stands behind it, where any provider takes events.
    if !pushed.is_empty() {
        let routes = pushed.iter().map(|path| fill(OUTWARD_ROUTE, &[("path", quote(path))])).collect();
        let address = envoy.public_address;
        let values = [
            ("address", quote(&address.ip().to_string())),
            ("port", address.port().to_string()),
            ("sds_certificate", certificate_file.clone()),
            ("routes", routes),
            ("log_limit", log_limit.clone()),
        ];
        outward = fill(OUTWARD, &values);
        outward_cluster = fill(OUTWARD_CLUSTER, &[("socket", socket("push")?)]);
        outward_limit = format!("envoy.resource_limits.listener.outward.connection_limit: {OUTWARD_CONNECTIONS}");
        connections += OUTWARD_CONNECTIONS;
    }
    let admin = options.admin.as_ref().map(address).transpose()?;
    let (mut stats, mut stats_cluster, mut stats_limit) = (String::new(), String::new(), String::new());
    if let (Some(address), Some(admin)) = (envoy.stats_address, &admin) {
        stats = fill(STATS, &[("address", quote(&address.ip().to_string())), ("port", address.port().to_string())]);
        stats_cluster = fill(STATS_CLUSTER, &[("address", reached(admin).to_string())]);
        stats_limit = format!("envoy.resource_limits.listener.stats.connection_limit: {STATS_CONNECTIONS}");
        connections += STATS_CONNECTIONS;
    }
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
            ("socket", socket("filter")?),
            ("stats", stats),
            ("stats_cluster", stats_cluster),
            ("stats_limit", stats_limit),
            ("outward", outward),
            ("outward_cluster", outward_cluster),
            ("webhook_connections", WEBHOOK_CONNECTIONS.to_string()),
            ("outward_limit", outward_limit),
            ("connections", connections.to_string()),
            ("heap", options.heap.to_string()),
        ],
    );
    Ok(Rendered { bootstrap, sds: files })
}

/// The names that any webhook lets in, as Envoy compares them: one of them is enough.
fn names(config: &Config) -> Result<String, Unusable> {
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

/// Holds that everything that listens has a port, and one of its own.
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
    // The service's own, which may well choose their ports in a test.
    listening.push(("admin in [listen]", config.listen.admin));
    listening.extend(config.query.tcp.as_ref().map(|tcp| ("address in [query]", tcp.address)));
    for (at, (name, address)) in listening.iter().enumerate() {
        for (other, taken) in listening.iter().take(at) {
            if meet(*address, *taken) {
                return Err(Unusable::SamePort(other, *taken, name, *address));
            }
        }
    }
    Ok(())
}

fn address(admin: &Admin) -> Result<Value, Unusable> {
    Ok(match admin {
        Admin::Address(address) => json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } }),
        Admin::Socket(path) if path.as_os_str().len() > LONGEST_SOCKET => return Err(Unusable::LongSocket(path.clone())),
        Admin::Socket(path) => json!({ "pipe": { "path": unicode("--admin", path)?, "mode": 0o600 } }),
    })
}

/// The same as an endpoint, which has no mode, and is no address that means all of them.
fn reached(admin: &Value) -> Value {
    let mut reached = admin.clone();
    if let Some(pipe) = reached.pointer_mut("/pipe").and_then(Value::as_object_mut) {
        pipe.remove("mode");
    }
    if let Some(address) = reached.pointer_mut("/socket_address/address") {
        let loopback = match address.as_str() {
            Some("0.0.0.0") => Some("127.0.0.1"),
            Some("::") => Some("::1"),
            _ => None,
        };
        if let Some(loopback) = loopback {
            *address = loopback.into();
        }
    }
    reached
}

const fn mebibytes(count: u32) -> u64 {
    (count as u64) << 20
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// As JSON, so that no character of a path means anything to YAML.
fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

/// `what` names the path where it cannot be written.
fn quote_path(what: &'static str, path: &Path) -> Result<String, Unusable> {
    unicode(what, path).map(quote)
}

fn unicode<'p>(what: &'static str, path: &'p Path) -> Result<&'p str, Unusable> {
    path.to_str().ok_or_else(|| Unusable::NotUnicode(what, path.to_owned()))
}

/// Forms of output that other commands take by `--output`.
const FORMS: &[&str] = &["json", "table", "yaml", "text"];

const SDS_FOLDER: &str = "the folder of the SDS files";

/// Puts values in the place of `${name}`. A name that stands alone on its line takes a whole block, at the same depth;
/// an empty one takes the line away.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut text = String::new();
    for line in template.lines() {
        let indent = line.len() - line.trim_start().len();
        let alone = values.iter().find(|(name, _)| line.trim() == format!("${{{name}}}"));
        if let Some((_, block)) = alone {
            for line in block.lines() {
                let _ = writeln!(text, "{:indent$}{line}", "");
            }
            continue;
        }
        let mut rest = line;
        while let Some((before, (value, after))) = placeholder(rest, values) {
            text.push_str(before);
            text.push_str(value);
            rest = after;
        }
        text.push_str(rest);
        text.push('\n');
    }
    text
}

/// The first `${name}` that has a value: what stands before it, the value, what follows. Values are never looked into.
fn placeholder<'l, 'v>(line: &'l str, values: &'v [(&str, String)]) -> Option<(&'l str, (&'v str, &'l str))> {
    let (before, from) = line.split_once("${")?;
    let (name, after) = from.split_once('}')?;
    let (_, value) = values.iter().find(|(known, _)| *known == name)?;
    Some((before, (value, after)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const CONFIG: &str = r#"
[listen]
sockets = "run"
[envoy]
webhook_address = "127.0.0.1:9443"
certificate = "tls/ser\"ver: {}.crt"
private_key = "tls/server.key"
client_ca = "ca/${socket}.crt"
wasm = "dist/stepward_filter.wasm"
[[webhook]]
id = "one"
secrets = [{ env = "ONE" }]
deadline = "2s"
body_limit = 4096
providers = ["staff"]
[[webhook]]
id = "two"
secrets = [{ env = "TWO" }]
deadline = "3s"
body_limit = 131072
providers = ["staff"]
[provider.staff]
type = "file"
path = "devices.json"
"#;

    fn env() -> Environment {
        Environment::new("/etc/stepward")
    }

    /// With events of a device management, for which there is a second listener.
    const PUSH: &str = r#"
[provider.events]
type = "http"
base_url = "https://inventory.example.org"
path = "/devices/{identifier}"
identifier = "/serial"
[provider.events.push]
secret = { env = "EVENTS" }
"#;

    fn rendered(text: &str, admin: Option<&str>) -> Rendered {
        try_rendered(text, admin).unwrap()
    }

    fn try_rendered(text: &str, admin: Option<&str>) -> Result<Rendered, Unusable> {
        let config = Config::parse(text, Path::new("stepward.toml"), &env()).unwrap().config;
        let admin = admin.map(|admin| Admin::parse(admin, &env().directory)).transpose()?;
        render(&config, &Options { admin, ..Options::new("/run/sds") })
    }

    #[test]
    fn c_a_link_in_the_folder_of_another_user_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (path, victim) = (folder.path().join("envoy.yaml"), folder.path().join("victim"));
        std::fs::write(&victim, "before").unwrap();
        for link in ["envoy.yaml.new", "envoy.yaml"] {
            std::os::unix::fs::symlink(&victim, folder.path().join(link)).unwrap();
        }
        replace(&path, "after").unwrap();
        assert_eq!((std::fs::read_to_string(&victim).unwrap(), std::fs::read_to_string(&path).unwrap()), ("before".into(), "after".into()));
        assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
        // Nothing is left behind where it cannot be written.
        let other = folder.path().join("folder");
        std::fs::create_dir_all(other.join("inner")).unwrap();
        assert!(replace(&other, "after").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn prints_a_bootstrap_with_client_certificates() {
        let Rendered { bootstrap, sds } = rendered(CONFIG, Some("./envoy-admin.sock"));
        let files: String = sds.iter().map(|(path, text)| format!("--- {}\n{text}", path.display())).collect();
        insta::assert_snapshot!("mtls", format!("{bootstrap}{files}"));
    }

    #[test]
    fn asks_for_no_client_certificate_without_an_authority() {
        let Rendered { bootstrap, sds } = rendered(&CONFIG.replace("client_ca = \"ca/${socket}.crt\"\n", ""), None);
        assert!(!bootstrap.contains("require_client_certificate") && !bootstrap.contains("validation_context"));
        let files: Vec<_> = sds.iter().map(|(path, _)| path.display().to_string()).collect();
        assert_eq!(files, ["webhook_certificate", "log_lines"].map(|name| format!("/run/sds/{name}.yaml")));
    }

    #[test]
    fn opens_the_admin_interface_only_where_it_is_asked_for() {
        let line =
            |admin| rendered(CONFIG, admin).bootstrap.lines().find(|line| line.trim().starts_with("address: {\"")).map(str::to_owned);
        assert_eq!(line(None), None);
        assert_eq!(line(Some("127.0.0.1:9901")).unwrap(), r#"  address: {"socket_address":{"address":"127.0.0.1","port_value":9901}}"#);
        assert_eq!(line(Some("run/envoy.sock")).unwrap(), r#"  address: {"pipe":{"mode":384,"path":"/etc/stepward/run/envoy.sock"}}"#);
    }

    #[test]
    fn e3_statistics_can_be_read_unless_they_are_off_and_the_admin_interface_is_envoys_alone() {
        let folder = tempfile::tempdir().unwrap();
        let env = Environment::new(folder.path());
        let print = |text: &str, admin: Option<&str>| {
            std::fs::write(folder.path().join("stepward.toml"), text).unwrap();
            let args = EnvoyConfigArgs {
                config: Some("stepward.toml".into()),
                output: Some("out/envoy.yaml".into()),
                sds_dir: None,
                admin: admin.map(str::to_owned),
                only_callers: false,
                any_certificate: false,
                heap: HEAP,
            };
            run(&args, &env, &mut Vec::new(), &mut Vec::new()).map_err(|error| error.to_string())?;
            Ok::<_, String>(std::fs::read_to_string(folder.path().join("out/envoy.yaml")).unwrap())
        };
        let with = |address: &str| CONFIG.replace("[envoy]", &format!("[envoy]\nstats_address = \"{address}\""));
        let socket = folder.path().join("out/envoy-admin.sock");
        let there = |bootstrap: &str, lines: &[&str]| {
            for line in lines {
                assert_eq!(bootstrap.matches(line).count(), 1, "{line}");
            }
        };
        let admin = format!(r#"  address: {{"pipe":{{"mode":384,"path":"{}"}}}}"#, socket.display());
        let endpoint = format!(r#"endpoint: {{ address: {{"pipe":{{"path":"{}"}}}} }}"#, socket.display());
        there(&print(CONFIG, None).unwrap(), &[&admin, &endpoint, r#"address: "127.0.0.1", port_value: 9465 "#]);
        there(&print(&with("[::1]:9000"), None).unwrap(), &[r#"address: "::1", port_value: 9000 "#]);
        // An interface that was asked for is the one that is called.
        for (admin, endpoint) in [("127.0.0.1:9901", "127.0.0.1"), ("[::1]:9901", "::1")] {
            let endpoint = format!(r#"endpoint: {{ address: {{"socket_address":{{"address":"{endpoint}","port_value":9901}}}} }}"#);
            there(&print(CONFIG, Some(admin)).unwrap(), &[&endpoint]);
        }
        // What leads to it is one path, with no query and no body.
        let bootstrap = print(CONFIG, None).unwrap();
        there(&bootstrap, &["cluster: envoy_admin,", "cluster_name: envoy_admin", "- name: envoy_admin\n"]);
        let (_, route) = bootstrap.split_once("path: /stats/prometheus").unwrap();
        let (matched, _) = route.split_once("route:").unwrap();
        for line in [
            r#"":path", string_match: { exact: /stats/prometheus }"#,
            r#"":method", string_match: { exact: GET }"#,
            "content-length, present_match: false",
        ] {
            assert!(matched.contains(line), "{line}");
        }
        // No route sees whether a body comes in chunks.
        there(&bootstrap, &["max_request_bytes: 1\n"]);
        let off = print(&with("off"), None).unwrap();
        assert!(!off.contains("envoy_admin") && !off.contains("name: stats") && !off.lines().any(|line| line == "admin:"));
        assert!(print(&with("off"), Some("./a.sock")).unwrap().lines().any(|line| line == "admin:"));
        for (address, said) in [
            ("0.0.0.0:9465", "can be reached from other machines"),
            ("192.0.2.1:9465", "can be reached from other machines"),
            ("localhost:9465", "is not an address and port"),
            ("127.0.0.1:9443", "would listen on the same port"),
            ("127.0.0.1:9464", "would listen on the same port"),
            ("127.0.0.1:0", "stats_address in [envoy] has port 0"),
        ] {
            let error = print(&with(address), None).unwrap_err();
            assert!(error.contains(said), "{address}: {error}");
        }
        let long = format!("./{}/envoy.sock", "x".repeat(120));
        assert!(print(CONFIG, Some(&long)).unwrap_err().contains("name a shorter one by --admin"));
    }

    #[test]
    fn leaves_no_placeholder_of_a_template() {
        let Rendered { bootstrap, .. } = rendered(&CONFIG.replace("${socket}", "ca"), Some("127.0.0.1:9901"));
        assert!(!bootstrap.contains("${"), "{bootstrap}");
    }

    #[test]
    fn limits_follow_the_largest_webhook() {
        let Rendered { bootstrap, .. } = rendered(CONFIG, None);
        for line in
            ["per_connection_buffer_limit_bytes: 131072", "initial_stream_window_size: 131072", "initial_connection_window_size: 2097152"]
        {
            assert!(bootstrap.contains(line), "{line}");
        }
        assert!(bootstrap.contains(r#"value: "{\"body_limit\":131072,\"cluster\":\"stepward\",\"deadline_ms\":3000}""#));
    }

    #[test]
    fn takes_another_list_of_capabilities() {
        let config = Config::parse(CONFIG, Path::new("stepward.toml"), &env()).unwrap().config;
        for dropped in CAPABILITIES.lines().filter(|line| line.ends_with(": {}")) {
            let list: String = CAPABILITIES.lines().filter(|line| *line != dropped).map(|line| format!("{line}\n")).collect();
            let options = Options { capabilities: list, ..Options::new("/run/sds") };
            let bootstrap = render(&config, &options).unwrap().bootstrap;
            assert!(!bootstrap.lines().any(|line| line.trim() == dropped), "{dropped}");
        }
    }

    #[test]
    fn writes_the_files_of_secrets_and_the_bootstrap() {
        let folder = tempfile::tempdir().unwrap();
        let env = Environment::new(folder.path());
        std::fs::write(folder.path().join("stepward.toml"), CONFIG).unwrap();
        let args = |output: Option<&str>, sds: Option<&str>| EnvoyConfigArgs {
            config: Some("stepward.toml".into()),
            output: output.map(PathBuf::from),
            sds_dir: sds.map(PathBuf::from),
            admin: None,
            only_callers: false,
            any_certificate: false,
            heap: HEAP,
        };
        for (output, sds, expected) in
            [(None, None, "run/sds"), (Some("out/../envoy.yaml"), None, "out/../sds"), (None, Some("elsewhere"), "elsewhere")]
        {
            std::fs::create_dir_all(folder.path().join("out")).unwrap();
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            run(&args(output, sds), &env, &mut stdout, &mut stderr).unwrap();
            let bootstrap = match output {
                Some(output) => std::fs::read_to_string(folder.path().join(output)).unwrap(),
                None => String::from_utf8(stdout).unwrap(),
            };
            let certificate = folder.path().join(expected).join("webhook_certificate.yaml");
            assert!(bootstrap.contains(&format!("path: \"{}\"", certificate.display())), "{expected}");
            assert!(certificate.is_file() && certificate.with_file_name("webhook_client_ca.yaml").is_file());
            let told = String::from_utf8(stderr).unwrap();
            assert!(told.starts_with("warning: webhook `one` has no `callers`") && told.lines().count() == 1, "{told}");
        }
    }

    #[test]
    fn g12_what_envoy_could_not_run_with_is_refused() {
        let with_push = format!("{CONFIG}{PUSH}");
        let address = "webhook_address = \"127.0.0.1:9443\"";
        let outward = |ip: &str, port: u16| with_push.replace(address, &format!("{address}\npublic_address = \"{ip}:{port}\""));
        let port = |text: &str, port: u16| text.replace("127.0.0.1:9443", &format!("127.0.0.1:{port}"));
        let long = format!("/run/{}.sock", "x".repeat(98));
        assert_eq!(long.len(), 108);
        for (text, admin, expected) in [
            (CONFIG.to_owned(), Some("localhost:9901"), "`--admin localhost:9901` is neither an address and port nor the path of a socket"),
            (CONFIG.to_owned(), Some("9901"), "`--admin 9901` is neither"),
            (CONFIG.to_owned(), Some(""), "`--admin ` is neither"),
            (CONFIG.to_owned(), Some("127.0.0.1"), "`--admin 127.0.0.1` is neither"),
            (CONFIG.to_owned(), Some("127.0.0.1:0"), "--admin has port 0"),
            (port(CONFIG, 0), None, "webhook_address in [envoy] has port 0"),
            (outward("0.0.0.0", 0), None, "public_address in [envoy] has port 0"),
            (
                CONFIG.to_owned(),
                Some("127.0.0.1:9443"),
                "webhook_address in [envoy] (127.0.0.1:9443) and --admin (127.0.0.1:9443) would listen on the same port",
            ),
            (CONFIG.to_owned(), Some("0.0.0.0:9901"), "`--admin 0.0.0.0:9901` can be reached from elsewhere"),
            (CONFIG.to_owned(), Some("[::]:9901"), "`--admin [::]:9901` can be reached from elsewhere"),
            (CONFIG.to_owned(), Some("192.0.2.1:9901"), "write 127.0.0.1:9901 or the path of a socket"),
            (CONFIG.to_owned(), Some("[2001:db8::1]:9901"), "can be reached from elsewhere"),
            (CONFIG.to_owned(), Some(&*long), "has 108 bytes, and 107 are possible"),
            (outward("127.0.0.1", 9443), None, "webhook_address in [envoy] (127.0.0.1:9443) and public_address in [envoy]"),
            (outward("[::ffff:127.0.0.1]", 9443), None, "public_address in [envoy] (127.0.0.1:9443) would listen on the same port"),
            (outward("0.0.0.0", 9443), None, "would listen on the same port"),
            (outward("0.0.0.0", 9901), Some("127.0.0.1:9901"), "public_address in [envoy] (0.0.0.0:9901) and --admin"),
            (port(CONFIG, 9464), None, "and admin in [listen] (127.0.0.1:9464) would listen on the same port"),
        ] {
            let error = try_rendered(&text, admin).unwrap_err().to_string();
            assert!(error.contains(expected), "{admin:?}: {error}");
        }
        for (text, admin) in [
            (outward("127.0.0.2", 9443), Some("127.0.0.3:9443")),
            // Without events nothing listens there.
            (CONFIG.replace(address, &format!("{address}\npublic_address = \"127.0.0.1:9443\"")), None),
            (CONFIG.to_owned(), Some("./localhost:9901")),
            (CONFIG.to_owned(), Some("[::1]:9901")),
            (CONFIG.to_owned(), Some("[::ffff:127.0.0.1]:9901")),
            (CONFIG.to_owned(), long.get(..107)),
        ] {
            try_rendered(&text, admin).unwrap();
        }
    }

    #[test]
    fn e12_nothing_is_written_over_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["tls", "ca", "dist", "sds"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let config =
            CONFIG.replace("ser\\\"ver: {}", "server").replace("${socket}", "ca").replace("{ env = \"ONE\" }", "{ file = \"tls/secret\" }");
        let inputs =
            ["stepward.toml", "tls/server.crt", "tls/server.key", "ca/ca.crt", "dist/stepward_filter.wasm", "devices.json", "tls/secret"];
        for name in inputs {
            std::fs::write(at(name), if name == "stepward.toml" { &*config } else { "kept" }).unwrap();
        }
        std::fs::hard_link(at("tls/server.key"), at("linked")).unwrap();
        std::os::unix::fs::symlink(at("tls"), at("elsewhere")).unwrap();
        let run = |output: &str, sds: Option<&str>| {
            let args = EnvoyConfigArgs {
                config: Some("stepward.toml".into()),
                output: Some(output.into()),
                sds_dir: sds.map(PathBuf::from),
                admin: None,
                only_callers: false,
                any_certificate: false,
                heap: HEAP,
            };
            run(&args, &Environment::new(folder.path()), &mut Vec::new(), &mut Vec::new()).map_err(|error| error.to_string())
        };
        let others = ["linked", "elsewhere/server.crt", "sds/../devices.json", "run/filter.sock", "state/stepward.db"];
        for output in inputs.into_iter().chain(others) {
            let said = run(output, None).unwrap_err();
            assert!(said.contains("the bootstrap would be written over"), "{output}: {said}");
        }
        let said = run("sds/log_lines.yaml", Some("sds")).unwrap_err();
        assert!(said.contains("one of the SDS files that it names"), "{said}");
        assert_eq!(std::fs::read_dir(at("sds")).unwrap().count(), 0, "nothing is written where something is refused");
        for name in inputs.iter().filter(|name| **name != "stepward.toml") {
            assert_eq!(std::fs::read_to_string(at(name)).unwrap(), "kept", "{name}");
        }
        for form in ["json", "table"] {
            assert!(run(form, None).unwrap_err().contains("names a file here") && !at(form).exists());
            run(&format!("./{form}"), None).unwrap();
            assert!(at(form).is_file());
        }
        std::fs::write(at("stepward.toml"), config.replace("path = \"devices.json\"", "path = \"sds/log_lines.yaml\"\nformat = \"json\""))
            .unwrap();
        let said = run("envoy.yaml", Some("sds")).unwrap_err();
        assert!(said.contains("an SDS file would be written over"), "{said}");
    }

    #[test]
    fn g12_a_path_that_is_not_unicode_is_refused_and_nothing_is_written() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt as _;
        let odd = |path: &[u8]| PathBuf::from(OsStr::from_bytes(path));
        let config = || Config::parse(CONFIG, Path::new("stepward.toml"), &env()).unwrap().config;
        type Change = fn(&mut Config, PathBuf);
        let changes: [(&str, Change); 5] = [
            ("wasm", |config, path| config.envoy.wasm = path),
            ("certificate", |config, path| config.envoy.certificate = path),
            ("private_key", |config, path| config.envoy.private_key = path),
            ("client_ca", |config, path| config.envoy.client_ca = Some(path)),
            ("sockets", |config, path| config.listen.sockets = path),
        ];
        for (name, change) in changes {
            let mut config = config();
            change(&mut config, odd(b"/odd/\xff/x"));
            let error = render(&config, &Options::new("/run/sds")).unwrap_err();
            assert!(matches!(&error, Unusable::NotUnicode(what, _) if what.starts_with(name)), "{error}");
        }
        let admin = Some(Admin::Socket(odd(b"/run/\xff")));
        assert!(matches!(render(&config(), &Options { admin, ..Options::new("/run/sds") }), Err(Unusable::NotUnicode("--admin", _))));

        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("stepward.toml"), CONFIG).unwrap();
        let sds = folder.path().join(odd(b"\xffsds"));
        let args = EnvoyConfigArgs {
            config: Some("stepward.toml".into()),
            output: Some("envoy.yaml".into()),
            sds_dir: Some(sds.clone()),
            admin: None,
            only_callers: false,
            any_certificate: false,
            heap: HEAP,
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let error = run(&args, &Environment::new(folder.path()), &mut stdout, &mut stderr).unwrap_err().to_string();
        assert!(error.contains("is not UTF-8"), "{error}");
        assert!(stdout.is_empty() && !sds.exists() && !folder.path().join("envoy.yaml").exists());
    }

    /// What a template says of its listener ahead of the access log: every key, and the line after it.
    fn settings(template: &str) -> BTreeMap<&str, Vec<&str>> {
        let lines = template.lines().map(|line| line.split('#').next().unwrap_or_default().trim().trim_start_matches("- "));
        let lines = lines.skip_while(|line| !line.starts_with("address: { socket")).take_while(|line| *line != "access_log:");
        let mut settings: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (key, value) in lines.filter_map(|line| line.split_once(':')) {
            settings.entry(key).or_default().push(value.trim());
        }
        settings
    }

    #[test]
    fn f1_what_one_listener_sets_all_of_them_set() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../envoy");
        let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let mut listeners: Vec<_> = files
            .map(|file| (file.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(file).unwrap()))
            .filter(|(_, text)| text.contains("DownstreamTlsContext"))
            .collect();
        listeners.sort();
        assert!(listeners.iter().map(|(name, _)| &**name).eq(["bootstrap.yaml", "guard.yaml", "outward.yaml"]));
        assert!(listeners.iter().all(|(_, text)| text.matches("filter_chains:").count() == 1));
        // What some have for a reason of their own.
        let own = [
            // Who calls webhooks is shown by its certificate, and a guard's device likewise; events come from strangers.
            "require_client_certificate",
            "validation_context",
            "trusted_ca",
            "${client_ca}",
            "${mtls}",
            // Where the certificate is.
            "tls_certificate_sds_secret_configs",
            "sds_config",
            "resource_api_version",
            "path_config_source",
            "tls_certificates",
            "certificate_chain",
            "private_key",
            // Strangers leave webhooks their connections; a guard has one listener.
            "ignore_global_conn_limit",
            // Events come by HTTP/1.1 alone, and the guard takes both by itself.
            "codec_type",
            "http2_protocol_options",
            "max_concurrent_streams",
            "initial_stream_window_size",
            "initial_connection_window_size",
            // A guarded service answers as long as it likes.
            "max_stream_duration",
            // What step-ca sees.
            "preserve_external_request_id",
            "skip_xff_append",
            "server_header_transformation",
            "local_reply_config",
            "mappers",
            "filter",
            "status_code_filter",
            "comparison",
            "status_code",
            "body",
            "body_format_override",
            "text_format_source",
            "content_type",
        ];
        let all: BTreeSet<_> = listeners.iter().flat_map(|(_, text)| settings(text).into_keys()).filter(|key| !own.contains(key)).collect();
        assert!(all.contains("disable_stateless_session_resumption") && all.contains("request_headers_timeout"), "{all:?}");
        for (name, text) in &listeners {
            let there = settings(text);
            for key in &all {
                assert!(there.contains_key(key), "{name} has no {key}");
            }
            for (key, value) in [
                ("disable_stateless_session_resumption", "true"),
                ("disable_stateful_session_resumption", "true"),
                ("tls_minimum_protocol_version", "TLSv1_2"),
                ("tls_maximum_protocol_version", "TLSv1_3"),
                ("path_with_escaped_slashes_action", "REJECT_REQUEST"),
                ("headers_with_underscores_action", "REJECT_REQUEST"),
                ("use_remote_address", "true"),
            ] {
                assert_eq!(there[key], [value], "{name}: {key}");
            }
            let ciphers: Vec<_> = text.lines().map(str::trim).filter(|line| line.starts_with("- ECDHE-")).collect();
            assert_eq!(ciphers.len(), 6, "{name}");
            assert!(ciphers.iter().all(|cipher| BOOTSTRAP.contains(cipher)), "{name}");
        }
    }

    #[test]
    fn f1_a_guard_goes_milder_means_first_as_the_bootstrap_does() {
        let guard = include_str!("../../../envoy/guard.yaml");
        let actions = |text: &str| -> BTreeSet<String> {
            let names = text.lines().map(|line| line.trim().trim_start_matches("- name: ").to_owned());
            names.filter(|name| name.starts_with("envoy.overload_actions.") || name.starts_with("envoy.load_shed_points.")).collect()
        };
        assert!(actions(BOOTSTRAP).len() > 8);
        assert_eq!(actions(guard), actions(BOOTSTRAP));
        assert!(guard.contains("envoy.resource_limits.listener.guard.connection_limit: 4096"));
    }

    #[test]
    fn f5_only_callers_are_let_finish_their_handshake_where_that_is_asked_for() {
        let render = |text: &str| {
            let config = Config::parse(text, Path::new("stepward.toml"), &env()).unwrap().config;
            render(&config, &Options { only_callers: true, ..Options::new("/run/sds") })
        };
        let named = |callers: &str| CONFIG.replace("secrets = [{ env", &format!("callers = [{callers}]\nsecrets = [{{ env"));
        let sds = render(&named(r#""uri:spiffe://a/\\\"b", "dns:CA.example.org", "ip:192.0.2.1", "email:a@example.org""#)).unwrap().sds;
        let (_, file) = sds.iter().find(|(path, _)| path.ends_with("webhook_client_ca.yaml")).unwrap();
        let (_, names) = file.split_once("    match_typed_subject_alt_names:\n").unwrap();
        assert_eq!(
            names.lines().map(str::trim).collect::<Vec<_>>(),
            [
                r#"- { san_type: DNS, matcher: { safe_regex: { regex: "(?i)ca\\.example\\.org" } } }"#,
                r#"- { san_type: EMAIL, matcher: { exact: "a@example.org" } }"#,
                r#"- { san_type: IP_ADDRESS, matcher: { exact: "192.0.2.1" } }"#,
                r#"- { san_type: URI, matcher: { exact: "spiffe://a/\\\"b" } }"#,
            ]
        );
        // Nobody would know whom to let in.
        let pinned = named(&format!(r#""dns:ca.example.org", "sha256:{}""#, "0".repeat(64)));
        for text in [CONFIG, &pinned] {
            assert_eq!(render(text).unwrap_err(), Unusable::NoNames("one".to_owned()));
        }
        assert!(!rendered(&named(r#""dns:ca.example.org""#), None).sds.iter().any(|(_, text)| text.contains("match_typed")));
    }

    #[test]
    fn only_callers_finish_their_handshake_wherever_every_webhook_names_them_and_nobody_says_otherwise() {
        let named = CONFIG.replace("secrets = [{ env", "callers = [\"dns:ca.example.org\"]\nsecrets = [{ env");
        let pinned = named.replacen("dns:ca.example.org", &format!("sha256:{}", "0".repeat(64)), 1);
        let anonymous = CONFIG.replace("client_ca = \"ca/${socket}.crt\"\n", "");
        let folder = tempfile::tempdir().unwrap();
        let env = Environment::new(folder.path());
        let run = |text: &str, (only_callers, any_certificate): (bool, bool)| {
            std::fs::write(folder.path().join("stepward.toml"), text).unwrap();
            let args = EnvoyConfigArgs {
                config: Some("stepward.toml".into()),
                output: Some("envoy.yaml".into()),
                sds_dir: None,
                admin: None,
                only_callers,
                any_certificate,
                heap: HEAP,
            };
            let mut stderr = Vec::new();
            run(&args, &env, &mut Vec::new(), &mut stderr).map_err(|error| error.to_string())?;
            let ends = std::fs::read_to_string(folder.path().join("sds/webhook_client_ca.yaml"));
            let warned = String::from_utf8(stderr).unwrap().contains("can hold connections that step-ca needs");
            Ok::<_, String>((ends.is_ok_and(|text| text.contains("match_typed_subject_alt_names")), warned))
        };
        let (neither, only, any) = ((false, false), (true, false), (false, true));
        for (what, text, flags, ends, warned) in [
            ("anonymous", &anonymous, neither, false, false),
            ("named", &named, neither, true, false),
            ("named, asked for", &named, only, true, false),
            ("named, not wanted", &named, any, false, false),
            ("not named", &CONFIG.to_owned(), neither, false, true),
            ("not named, not wanted", &CONFIG.to_owned(), any, false, true),
            ("one pinned", &pinned, neither, false, true),
        ] {
            assert_eq!(run(text, flags), Ok((ends, warned)), "{what}");
        }
        for text in [CONFIG, &pinned] {
            assert!(run(text, only).unwrap_err().contains("Envoy can be told names only"));
        }
    }

    #[test]
    fn f6_what_strangers_can_write_into_the_access_log_has_a_bound_at_each_listener() {
        let Rendered { bootstrap, sds } = rendered(&format!("{CONFIG}{PUSH}"), None);
        let (path, text) = sds.iter().find(|(path, _)| path.ends_with("log_lines.yaml")).unwrap();
        assert!(text.contains("max_tokens: 100\n    tokens_per_fill: 2\n"), "{text}");
        for line in ["resource_name: refused".to_owned(), format!("path_config_source: {{ path: \"{}\" }}", path.display())] {
            assert_eq!(bootstrap.matches(&line).count(), 3, "{line}");
        }
        // What is refused after the caller was let in is unbounded only where callers are known by name.
        assert!(!bootstrap.contains("refuse:no_keys"));
        let named = CONFIG.replace("secrets = [{ env", "callers = [\"dns:ca.example.org\"]\nsecrets = [{ env");
        assert!(rendered(&named, None).bootstrap.contains("refuse:no_keys"));
        // No access log without a filter, and no text in it that its sender can make as long as he likes.
        let logs: Vec<_> = bootstrap.split("- name: envoy.access_loggers.stdout").skip(1).collect();
        assert_eq!(logs.len(), 3);
        assert!(
            logs.iter().all(|log| log.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#')) == Some("filter:"))
        );
        for unbounded in
            ["%DOWNSTREAM_PEER_SUBJECT%", "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%", "%REQ(X-SMALLSTEP-WEBHOOK-ID)", "%PATH(NQ)%"]
        {
            assert!(!bootstrap.contains(unbounded), "{unbounded}");
        }
        // A guard has the same limit, by the same file, for everybody who is not let in.
        let guard = include_str!("../../../envoy/guard.yaml");
        let (_, log) = guard.split_once("- name: envoy.access_loggers.stdout").unwrap();
        for line in ["exact: allow", "match_if_key_not_found: false", "resource_name: refused", "path: envoy/log_lines.yaml"] {
            assert_eq!(log.matches(line).count(), 1, "{line}");
        }
        assert!(LOG_LINES.contains("name: refused"));
    }

    #[test]
    fn b1_each_listener_has_a_limit_of_its_own_and_what_is_global_leaves_room_for_both() {
        let limits = |bootstrap: &str| -> Vec<u64> {
            let limits = bootstrap.lines().filter(|line| line.contains("connection_limit: ") || line.contains("max_active_downstream"));
            limits.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
        };
        assert_eq!(limits(&rendered(CONFIG, None).bootstrap), [4096, 4096]);
        let both = rendered(&format!("{CONFIG}{PUSH}"), None).bootstrap;
        assert_eq!(limits(&both), [4352, 4096, 256]);
        assert_eq!(limits(&rendered(CONFIG, Some("./admin.sock")).bootstrap), [4112, 4096, 16]);
        // What strangers can hold by events alone stays far below where requests are refused.
        assert!(u64::from(OUTWARD_CONNECTIONS) * (1 << 20) * 3 < mebibytes(HEAP));
    }

    #[test]
    fn b2_the_heap_fits_the_unit_and_the_compose_file() {
        let unit = include_str!("../../../deploy/systemd/stepward-envoy.service");
        let compose = include_str!("../../../deploy/docker/compose.yaml");
        assert!(unit.lines().any(|line| line == "MemoryMax=2G") && compose.lines().any(|line| line.trim() == "mem_limit: 2g"));
        let half = u64::from(HEAP) * 2;
        assert_eq!(half, 2 << 10);
        assert!(rendered(CONFIG, None).bootstrap.contains("max_heap_size_bytes: 1073741824"));
    }
}
