//! Conversion of the tree to types: defaults, bounds, and the rules between keys.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inventory::http::{Endpoint, base_url};
use inventory::{Placeholders, Push, Service, file};
use posture::caller::{Callers, Name};
use posture::identity::{Field, IdentifierKind, Source};
use posture::shape::Mode;
use posture::time::Window;
use posture::webhook::Kind;
use settings::document::{Data, Table, Value};
use settings::words::{suggestion, word};
use settings::{Environment, Place, Report, SecretSource, Section};

use super::chain::{Chain, chain};
use super::tcp::Entrance;
use super::types::{Config, Envoy, LONGEST_SOCKET, Listen, Log, meet};
use super::{filter, policy, query, sidecars};
use engine::cache::{Lifetimes, Limits, Schedule};
use engine::plan::Enforcement;
use engine::provider::{ProviderSettings, RemoteSettings};
use engine::replay::Replay;
use engine::webhooks::{Attestation, Basic, LARGEST_BODY, Settings};

const LONGEST_SOCKET_NAME: [&str; 2] = ["/filter.sock", "/filter/filter.sock"];
const ROLES: &[&str] = &["filter", "query", "push", "admin"];
const KINDS: &[Kind] = &[Kind::Enriching, Kind::Authorizing, Kind::ScepChallenge, Kind::Notifying];
const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
const DEADLINE: Duration = Duration::from_millis(3500);

/// Reads a whole configuration; `base` is the folder that relative paths start from.
///
/// A configuration with mistakes is completed by defaults; the report says whether it may be used.
pub(super) fn read(root: Table, base: &Path, env: &Environment, report: &Report) -> Option<Config> {
    let mut root = Section::new("the configuration", root, report);
    let placeholders = root.texts("placeholders").map(Placeholders::new).unwrap_or_default();
    let listen = listen(root.section("listen").unwrap_or_else(|| empty("[listen]", report)), base);
    if !root.has("envoy") {
        root.missing("envoy", "[envoy] with certificate, private_key and client_ca");
    }
    let envoy_section = root.section("envoy");
    let has_envoy = envoy_section.is_some();
    let sidecars_place = envoy_section.as_ref().and_then(|section| section.place_of("sidecars"));
    let envoy = envoy(envoy_section.unwrap_or_else(|| empty("[envoy]", report)), has_envoy, base, env);
    let query_section = root.section("query").unwrap_or_else(|| empty("[query]", report));
    let query_place = query_section.place_of("address").unwrap_or_default();
    let query = query::read(query_section, base);
    let filter_section = root.section("filter").unwrap_or_else(|| empty("[filter]", report));
    let filter_place = filter_section.place_of("address").unwrap_or_default();
    let filter = filter::read(filter_section, base);
    let tcp = [(Entrance::Query, query_place, &query.tcp), (Entrance::Filter, filter_place, &filter)];
    let mut taken = vec![("admin", "[listen]", listen.admin)];
    for (entrance, place, tcp) in &tcp {
        let Some(address) = tcp.as_ref().map(|tcp| tcp.address) else { continue };
        if let Some((key, section, other)) = taken.iter().find(|(.., other)| meet(address, *other)) {
            report.mistake(place, format!("`address`: {address} is taken by `{key}` in {section}, which is {other}: choose another port"));
        }
        taken.push(("address", entrance.section(), address));
    }
    if let Some(place) = sidecars_place.filter(|_| envoy.sidecars.is_some() && filter.is_none()) {
        let message =
            "filters attach to `sidecars` over TCP, and this service takes none there: write [filter], unless it serves no webhook";
        report.warn(&place, message);
    }
    let log = log(root.section("log").unwrap_or_else(|| empty("[log]", report)));
    let (store, store_password) = store(root.section("store").unwrap_or_else(|| empty("[store]", report)), base, env);
    let replay = replay(root.section("replay").unwrap_or_else(|| empty("[replay]", report)), store.server.is_some());
    let (providers, provider_places) = providers(root.section("provider"), &placeholders, base);
    let policies = policy::read(root.section("policy"), &provider_places, &providers);
    let known = Known { providers: &provider_places, policies: &policies.1, of_policies: &policies.0, files: &files(&providers) };
    let webhooks = webhooks(&mut root, envoy.client_ca.is_some(), known, base);
    let policies = policies.0;
    let of_policies = policies.values().flat_map(|policy| &policy.providers);
    let used: BTreeSet<&String> = webhooks.iter().flat_map(|webhook| &webhook.providers).chain(of_policies).collect();
    for (name, place) in &provider_places {
        if !used.contains(name) {
            report.warn(place, format!("no webhook and no policy asks provider `{name}`"));
        }
    }
    root.finish();
    Some(Config { placeholders, listen, envoy, query, filter, webhooks, providers, policies, replay, log, store, store_password })
}

/// Reads `[listen]` alone.
pub(super) fn listen_of(root: Table, base: &Path, report: &Report) -> Listen {
    let mut root = Section::new("the configuration", root, report);
    listen(root.section("listen").unwrap_or_else(|| empty("[listen]", report)), base)
}

/// Providers and policies that a webhook may name, and the place of each.
#[derive(Clone, Copy)]
struct Known<'k> {
    providers: &'k BTreeMap<String, Place>,
    policies: &'k BTreeMap<String, Place>,
    of_policies: &'k BTreeMap<String, policy::Policy>,
    /// Kind of the identifiers in each device file, by the provider's name.
    files: &'k BTreeMap<&'k str, IdentifierKind>,
}

impl Known<'_> {
    /// Warns where a webhook asks by another kind of identifier than a device file lists.
    fn compare(&self, webhook: &Settings, place: &Place, report: &Report) {
        let of_policy = webhook.policy.as_ref().and_then(|name| self.of_policies.get(name));
        let asked = webhook.providers.iter().chain(of_policy.into_iter().flat_map(|policy| &policy.providers));
        for (name, listed) in asked.filter_map(|name| Some((name, *self.files.get(name.as_str())?))) {
            if listed != webhook.identifier && matches!(webhook.kind, Kind::Enriching | Kind::Authorizing) {
                let message = format!(
                    "the webhook asks by identifier = \"{}\", and the file of provider `{name}` lists identifier = \"{listed}\": it has no device for this webhook",
                    webhook.identifier
                );
                report.warn(place, message);
            }
        }
    }

    /// Warns where a policy names some of a webhook's ids and not all: it judges requests by which id step-ca used.
    fn look_for_ids(&self, webhook: &Settings, ids: &[&str], place: &Place, report: &Report) {
        let Some((name, policy)) = webhook.policy.as_ref().and_then(|name| Some((name, self.of_policies.get(name)?))) else { return };
        for (check, text) in policy.policy.described().filter_map(|check| Some((check.name, check.expression?.0))) {
            let (named, others): (Vec<&str>, Vec<&str>) = ids.iter().copied().partition(|id| text.contains(*id));
            if let (Some(named), Some(other)) = (named.first(), others.first()) {
                report.warn(
                    place,
                    format!("`{check}` of policy `{name}` names the id `{named}`, and the webhook has the id `{other}` too, which it judges by the same words: name all of them, as in request.webhook in [\"{named}\", \"{other}\"]"),
                );
            }
        }
    }
}

fn files(providers: &BTreeMap<String, ProviderSettings>) -> BTreeMap<&str, IdentifierKind> {
    let file = |provider: &ProviderSettings| if let ProviderSettings::File(settings) = provider { Some(settings.identifier) } else { None };
    providers.iter().filter_map(|(name, provider)| Some((name.as_str(), file(provider)?))).collect()
}

fn empty<'r>(name: &str, report: &'r Report) -> Section<'r> {
    Section::new(name, Table::new(Place::Whole), report)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    address_and_port(text).ok_or_else(|| format!("`{text}` is not an address and port; write 127.0.0.1:9464 or [::1]:9464"))
}

fn listen(mut section: Section<'_>, base: &Path) -> Listen {
    let role_folders = section.flag("role_folders").unwrap_or(false);
    let [beside, below] = LONGEST_SOCKET_NAME;
    let place = section.place_of("sockets").unwrap_or_else(|| section.place().clone());
    let sockets = section.path("sockets", base).unwrap_or_else(|| base.join("run"));
    let length = sockets.as_os_str().len() + if role_folders { below } else { beside }.len();
    if length > LONGEST_SOCKET {
        let shown = sockets.display();
        section.report().mistake(
            &place,
            format!("`sockets`: a socket in {shown} would have a path of {length} bytes, and {LONGEST_SOCKET} are possible; choose a shorter folder"),
        );
    }
    let admin = section.text("admin", address);
    let group = section.text("group", group_name);
    let mut groups = BTreeMap::new();
    if let Some(mut roles) = section.section("groups") {
        for role in ROLES {
            groups.extend(roles.text(role, group_name).map(|group| ((*role).to_owned(), group)));
        }
        roles.finish();
    }
    let mut uids = BTreeMap::new();
    if let Some(mut roles) = section.section("uids") {
        let report = section.report();
        for role in ROLES {
            if let Some((_, ids)) = roles.list(role, |item| uid(&item, report)) {
                uids.insert((*role).to_owned(), ids);
            }
        }
        roles.finish();
    }
    section.finish();
    Listen { sockets, admin: admin.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9464))), role_folders, group, groups, uids }
}

/// Parses an address and port. An IPv4 address within IPv6 becomes that IPv4 address: the system takes it for the same, and Envoy
/// cannot listen on it.
fn address_and_port(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

fn group_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains([':', '\n']) { Err(format!("`{text}` is not the name of a group")) } else { Ok(text.to_owned()) }
}

fn uid(item: &Value, report: &Report) -> Option<u32> {
    let id = match item.data {
        Data::Integer(number) => number.and_then(|number| u32::try_from(number).ok()),
        _ => None,
    };
    if id.is_none() {
        report.mistake(&item.place, "is not a user id: write a number from 0 to 4294967295");
    }
    id
}

fn envoy(mut section: Section<'_>, required: bool, base: &Path, env: &Environment) -> Envoy {
    let mut file = |key: &'static str, example: &str| {
        if required && !section.has(key) {
            section.missing(key, example);
        }
        section.path(key, base).unwrap_or_default()
    };
    let certificate = file("certificate", "the PEM file of the listener's certificate chain, as in certificate = \"tls/server.crt\"");
    let private_key = file("private_key", "the PEM file of the listener's key, as in private_key = \"tls/server.key\"");
    let webhook_address = section.text("webhook_address", |text| {
        address_and_port(text).ok_or_else(|| format!("`{text}` is not an address and port; write 0.0.0.0:9443 or [::]:9443"))
    });
    let public_address = section.text("public_address", |text| {
        address_and_port(text).ok_or_else(|| format!("`{text}` is not an address and port; write 0.0.0.0:9444 or [::]:9444"))
    });
    let stats_address = section.text("stats_address", stats_address);
    let client_ca = section.path("client_ca", base);
    let wasm = section.path("wasm", base);
    let sidecars = sidecars::read(&mut section, base);
    section.finish();
    Envoy {
        webhook_address: webhook_address.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 9443))),
        public_address: public_address.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 9444))),
        stats_address: stats_address.unwrap_or(Some(SocketAddr::from(([127, 0, 0, 1], 9465)))),
        certificate,
        private_key,
        client_ca,
        wasm: wasm.unwrap_or_else(|| default_wasm(base, env)),
        sidecars,
    }
}

fn stats_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    let address: SocketAddr = address_and_port(text)
        .ok_or_else(|| format!("`{text}` is not an address and port; write 127.0.0.1:9465, [::1]:9465, or off for none"))?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "`{address}` can be reached from other machines, and nobody has to show who he is there; write 127.0.0.1:9465"
        ));
    }
    Ok(Some(address))
}

/// Returns the default path of the filter: beside the running binary, as `make build` and the packages leave it; else where `make
/// build` leaves it.
fn default_wasm(base: &Path, env: &Environment) -> PathBuf {
    let name = "stepward_filter.wasm";
    let beside = env.executable.as_deref().and_then(Path::parent).map(|folder| folder.join(name));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| base.join("dist").join(name))
}

fn replay(mut section: Section<'_>, on_a_server: bool) -> Replay {
    let max_entries = section.number("max_entries", 1, 100_000_000, " webhooks").and_then(|number| usize::try_from(number).ok());
    let max_bytes = section.number("max_bytes", 1 << 20, 1 << 40, " bytes").and_then(|number| usize::try_from(number).ok());
    let place = section.place_of("shared");
    let shared = section.flag("shared");
    if let (Some(place), Some(true), false) = (place, shared, on_a_server) {
        section.report().mistake(&place, "services share what was sent by a store on a server: write url in [store], or remove `shared`");
    }
    section.finish();
    let (max_entries, max_bytes) = (max_entries.unwrap_or(262_144), max_bytes.unwrap_or(128 << 20));
    Replay { max_entries, max_bytes, shared: shared.unwrap_or(on_a_server) }
}

fn log(mut section: Section<'_>) -> Log {
    let level = section.text("level", |text| {
        let word = |directive: &str| directive.contains(['=', ':', '[']) || LEVELS.contains(&directive.to_ascii_lowercase().as_str());
        if let Some(wrong) = text.split(',').map(str::trim).find(|directive| !word(directive)) {
            return Err(format!("`{wrong}` is not a level; {}", suggestion(wrong, LEVELS)));
        }
        tracing_subscriber::EnvFilter::builder().parse(text).map_err(|error| error.to_string())?;
        Ok(text.to_owned())
    });
    let json = section.flag("json");
    section.finish();
    Log { level: level.unwrap_or_else(|| "info".to_owned()), json }
}

fn store(mut section: Section<'_>, base: &Path, env: &Environment) -> (store::Settings, Option<SecretSource>) {
    let report = section.report();
    let enabled = section.flag("enabled").unwrap_or(true);
    for key in ["password", "stale_limit", "name"] {
        if let (Some(place), false) = (section.place_of(key), section.has("url")) {
            report.mistake(
                &place,
                format!("`{key}` is for a store on a server: write url = \"postgres://USER@HOST/DATABASE\", or remove it"),
            );
        }
    }
    if let (Some(place), true) = (section.place_of("path"), section.has("url")) {
        report.mistake(&place, "`path` and `url` stand there, and a store is in one place: remove either");
    }
    let server = section.text("url", |url| store::Server::parse(url, None).map_err(|error| error.to_string()));
    let password = section.take("password").and_then(|value| SecretSource::of(value, "password", base, report));
    let name = section.text("name", |name| match name {
        name if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) => {
            Err(format!("has to have 1 to {LONGEST_NAME} bytes, and no control characters"))
        }
        name => Ok(name.to_owned()),
    });
    let stale_limit = section.duration("stale_limit", (Duration::from_secs(5), "5s"), (Duration::from_secs(3600), "1h"));
    let sharing = store::Sharing { name: name.unwrap_or_default(), stale_limit: stale_limit.unwrap_or(store::STALE_LIMIT) };
    let path = section.path("path", base).unwrap_or_else(|| default_store(base, env));
    // A start knows by the kept decisions which bytes were sent before, so they reach as far back as the widest window.
    let retention = section.duration("retention", (Duration::from_secs(1800), "30m"), (Duration::from_secs(3660 * 86_400), "3660d"));
    let max_decisions = section.number("max_decisions", 1, 1_000_000_000, " decisions").map(i64::unsigned_abs);
    let bind_keys = section.flag("bind_keys").unwrap_or(false);
    let key_retention = section.duration("key_retention", (Duration::from_secs(60), "1m"), (Duration::from_secs(3660 * 86_400), "3660d"));
    let max_keys = section.number("max_keys", 1, 1_000_000_000, " keys").map(i64::unsigned_abs);
    let of_one = section.number("max_keys_per_device", 1, 1_000_000, " keys").and_then(|number| u32::try_from(number).ok());
    section.finish();
    let settings = store::Settings {
        path: (enabled && server.is_none()).then_some(path),
        server: server.filter(|_| enabled),
        sharing,
        retention: retention.unwrap_or(store::RETENTION),
        max_decisions: max_decisions.unwrap_or(store::MAX_DECISIONS),
        bind_keys,
        key_retention: key_retention.unwrap_or(store::KEY_RETENTION),
        max_keys: max_keys.unwrap_or(store::MAX_KEYS),
        max_keys_per_device: of_one.unwrap_or(store::MAX_KEYS_PER_DEVICE),
    };
    (settings, password)
}

/// Longest name of a service, in bytes.
const LONGEST_NAME: usize = 200;

/// Returns the default path of the store: in the folder that systemd keeps for a service, whose configuration cannot be written
/// to; else beside the configuration. The folder of the sockets is emptied when the machine starts.
fn default_store(base: &Path, env: &Environment) -> PathBuf {
    // systemd separates several folders by colons.
    let folder = env.variable("STATE_DIRECTORY").and_then(|folders| folders.split(':').next()).filter(|folder| folder.starts_with('/'));
    folder.map_or_else(|| base.join("state"), PathBuf::from).join("stepward.db")
}

fn providers(
    section: Option<Section<'_>>,
    placeholders: &Placeholders,
    base: &Path,
) -> (BTreeMap<String, ProviderSettings>, BTreeMap<String, Place>) {
    let (mut providers, mut places) = (BTreeMap::new(), BTreeMap::new());
    let Some(section) = section else { return (providers, places) };
    let report = section.report();
    for (name, place, value) in section.rest() {
        places.insert(name.clone(), place.clone());
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')) {
            report.mistake(&place, format!("`{name}` cannot name a provider: use up to 64 of a-z, 0-9, _ and -"));
        }
        match value.data {
            Data::Table(table) => {
                if let Some(provider) = provider(Section::new(format!("[provider.{name}]"), table, report), placeholders, base) {
                    providers.insert(name, provider);
                }
            }
            other => report.mistake(&value.place, format!("`{name}` must be a table [provider.{name}], not {}", other.name())),
        }
    }
    (providers, places)
}

fn provider(mut section: Section<'_>, placeholders: &Placeholders, base: &Path) -> Option<ProviderSettings> {
    let types: Vec<&str> = std::iter::once(FILE).chain(Service::names()).collect();
    if !section.has("type") {
        section.missing("type", &format!("type = \"file\", or one of {}", types.join(", ")));
    }
    let of_type = section.text("type", |text| {
        let known = types.iter().find(|name| **name == text).copied();
        known.ok_or_else(|| format!("`{text}` is no type of provider; {}", suggestion(text, &types)))
    });
    match of_type {
        Some(FILE) => file::Settings::of(section, placeholders, base).map(ProviderSettings::File),
        Some(name) => remote(name, section, placeholders, base),
        // The other keys depend on the type, so nothing is said of them.
        None => None,
    }
}

/// Shortest and longest lifetime in the cache.
const LIFETIME: ((Duration, &str), (Duration, &str)) = ((Duration::ZERO, "0s"), (Duration::from_secs(30 * 86_400), "30d"));

fn remote(name: &str, mut section: Section<'_>, placeholders: &Placeholders, base: &Path) -> Option<ProviderSettings> {
    let defaults = Service::defaults(name)?;
    if defaults.base_url.is_none() && !section.has("base_url") {
        section.missing("base_url", "the address of the service, as in base_url = \"https://mdm.example.org\"");
    }
    let base_url = section.text("base_url", base_url).or_else(|| defaults.base_url.and_then(|address| address.parse().ok()));
    let ca_file = section.path("ca_file", base);
    let service = Service::read(name, &mut section, base);
    let cache = section.section("cache").map_or(Some(Lifetimes::default()), |mut cache| {
        let (least, most) = LIFETIME;
        let default = Lifetimes::default();
        let read = Lifetimes {
            positive: cache.duration("positive", (Duration::from_secs(1), "1s"), most).unwrap_or(default.positive),
            negative: cache.duration("negative", least, most).unwrap_or(default.negative),
            stale_if_error: cache.duration("stale_if_error", least, most).unwrap_or(default.stale_if_error),
            max_entries: cache.number("max_entries", 1, 100_000_000, " devices").map_or(default.max_entries, i64::unsigned_abs),
        };
        cache.finish();
        Some(read)
    })?;
    let mut limits = Limits { per_second: defaults.per_second, unknown_per_minute: Limits::guesses(defaults.per_second) };
    let mut at_once = defaults.connections;
    if let Some(mut given) = section.section("limits") {
        let number = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        at_once = given.number("connections", 1, 256, "").and_then(|number| usize::try_from(number).ok()).unwrap_or(at_once);
        limits.per_second = given.number("per_second", 1, 10_000, "").map_or(limits.per_second, number);
        limits.unknown_per_minute =
            given.number("unknown_per_minute", 1, 600_000, "").map_or_else(|| Limits::guesses(limits.per_second), number);
        given.finish();
    }
    let sync = section.section("sync").map(|mut given| {
        let most = (Duration::from_secs(7 * 86_400), "7d");
        let sync = Schedule {
            full: given.duration("full", (Duration::from_secs(60), "1m"), most).unwrap_or(Schedule::default().full),
            partial: given.duration("partial", (Duration::from_secs(10), "10s"), most).unwrap_or(Schedule::default().partial),
            changes: given.duration("changes", (Duration::from_secs(10), "10s"), most).unwrap_or(Schedule::default().changes),
            max_shrink: given.share("max_shrink").unwrap_or(Schedule::default().max_shrink),
        };
        given.finish();
        sync
    });
    let push = section.section("push").and_then(|given| Push::read(given, base));
    section.finish();
    let service = service?;
    let endpoint = Endpoint { base_url: service.address(base_url?), ca_file, connections: at_once };
    Some(ProviderSettings::Remote(RemoteSettings { service, endpoint, cache, limits, sync, push, placeholders: placeholders.clone() }))
}

const FILE: &str = "file";

fn kind_of_identifier(text: &str) -> Result<IdentifierKind, String> {
    word(text, IdentifierKind::ALL.iter().map(|kind| (kind.as_str(), *kind)))
}

fn webhooks(root: &mut Section<'_>, mtls: bool, known: Known<'_>, base: &Path) -> Vec<Settings> {
    let report = root.report();
    let tables = match root.take("webhook") {
        None => {
            root.missing("webhook", "[[webhook]] with the id and secret that `step ca provisioner webhook add` prints");
            return Vec::new();
        }
        Some(Value { data: Data::List(items), place }) => {
            if items.is_empty() {
                report.mistake(
                    &place,
                    "there is no webhook: write [[webhook]] with the id and secret that `step ca provisioner webhook add` prints",
                );
            }
            items
        }
        Some(value) => {
            report.mistake(&value.place, format!("`webhook` must be a list of tables, each under [[webhook]], not {}", value.data.name()));
            return Vec::new();
        }
    };
    let mut seen: BTreeMap<String, Place> = BTreeMap::new();
    let mut webhooks = Vec::new();
    for (number, item) in tables.into_iter().enumerate() {
        let Data::Table(table) = item.data else {
            report.mistake(&item.place, format!("a webhook must be a table, not {}", item.data.name()));
            continue;
        };
        for (place, webhook) in webhook(Section::new("[[webhook]]", table, report), number, mtls, known, base) {
            if let Some(first) = seen.get(&webhook.id) {
                let first = if let Place::Line(line, _) = first { format!(" (line {line})") } else { String::new() };
                report.mistake(
                    &place,
                    format!(
                        "the id `{}` stands twice{first}: step-ca gives each webhook its own, which `step ca provisioner list` shows; write that one, or remove either",
                        webhook.id
                    ),
                );
            } else if !webhook.id.is_empty() {
                seen.insert(webhook.id.clone(), place.clone());
            }
            let name_of = |other: &Settings| other.table != webhook.table && other.name == webhook.name;
            if let Some(name) = webhook.name.as_deref().filter(|_| webhooks.iter().any(name_of)) {
                report.mistake(
                    &place,
                    format!("the name `{name}` stands in two [[webhook]]: choose another one, or put both ids into `ids` of one"),
                );
            }
            webhooks.push(webhook);
        }
    }
    for webhook in &webhooks {
        if let (Some(name), Some(place)) = (&webhook.name, webhook.name.as_ref().and_then(|name| seen.get(name))) {
            report.mistake(place, format!("`{name}` is the id of a webhook and the name of one: choose another name"));
        }
    }
    webhooks
}

fn name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
        return Err("is not a name: 1 to 64 letters, digits, dots, dashes and underscores of ASCII".to_owned());
    }
    Ok(text.to_owned())
}

/// One id of a webhook with its secrets, and the place of the id.
struct Signed {
    place: Place,
    id: Option<String>,
    secrets: Vec<SecretSource>,
}

/// Takes `id` with `secrets` or `unsigned`, or `ids` with a secret of each; at least one.
fn signed(section: &mut Section<'_>, unsigned: bool, base: &Path) -> Vec<Signed> {
    let report = section.report();
    let place = section.place().clone();
    let Some(ids_place) = section.place_of("ids") else {
        if !section.has("id") {
            section.missing("id", "id = \"…\" as `step ca provisioner webhook add` prints it");
        }
        // Taking `ids` makes the key known, so that a misspelt `idz` is recognised.
        section.take("ids");
        let at = section.place_of("id").unwrap_or_else(|| place.clone());
        let id = section.text("id", id);
        let (given, secrets) = SecretSource::several(section, "secrets", base);
        if unsigned && given > 0 {
            report.mistake(&place, "`unsigned` says that step-ca has no secret for this webhook, and `secrets` gives one: remove either");
        }
        if !unsigned && given == 0 {
            report.mistake(&place, "the webhook has no secret: write secrets = [{ file = \"secrets/webhook\" }] with what `step ca provisioner webhook add` printed");
        }
        return vec![Signed { place: at, id, secrets }];
    };
    for (key, remedy) in [("id", "move it into `ids` with its secret, or remove `ids`"), ("secrets", "move each to its id in `ids`")] {
        if let Some(place) = section.place_of(key) {
            report.mistake(&place, format!("`{key}` and `ids` stand there, and in `ids` each id has its own secret: {remedy}"));
            section.take(key);
        }
    }
    if unsigned {
        report.mistake(
            &ids_place,
            "`unsigned` leaves all of `ids` with one empty secret, and the id is not signed: a webhook of a static ca.json keeps its id, so write it as `id`",
        );
    }
    let mut given = 0;
    let signed = section.list("ids", |item| {
        given += 1;
        let Data::Table(table) = item.data else {
            let other = item.data.name();
            report.mistake(
                &item.place,
                format!("`ids`: each id has a secret of its own: write {{ id = \"…\", secret = {{ file = \"secrets/…\" }} }}, not {other}"),
            );
            return None;
        };
        let mut section = Section::new("one of `ids`", table, report);
        for (key, example) in [
            ("id", "id = \"…\" as `step ca provisioner webhook add` prints it"),
            ("secret", "secret = { file = \"secrets/…\" } with what it printed besides"),
        ] {
            if !section.has(key) {
                section.missing(key, example);
            }
        }
        let place = section.place_of("id").unwrap_or(item.place);
        let id = section.text("id", id);
        let secret = section.take("secret").and_then(|value| SecretSource::of(value, "secret", base, report));
        section.finish();
        Some(Signed { place, id, secrets: secret.into_iter().collect() })
    });
    if signed.is_some() && given == 0 {
        report.mistake(&ids_place, "`ids` is empty: write ids = [{ id = \"…\", secret = { file = \"secrets/webhook\" } }]");
    }
    let signed = signed.map(|(_, signed)| signed).unwrap_or_default();
    // The mistakes in `ids` are reported already, and the rest of the webhook is still to be read.
    if signed.is_empty() { vec![Signed { place: ids_place, id: None, secrets: Vec::new() }] } else { signed }
}

fn id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 256 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("is not an id that step-ca can send: 1 to 256 printable ASCII characters without spaces".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads one `[[webhook]]`: a webhook for each of its ids, with the place of the id.
fn webhook(mut section: Section<'_>, table: usize, mtls: bool, known: Known<'_>, base: &Path) -> Vec<(Place, Settings)> {
    let report = section.report();
    let place = section.place().clone();
    let unsigned = section.flag("unsigned").unwrap_or(false);
    let signed = signed(&mut section, unsigned, base);
    let name = section.text("name", name);
    let kind = section.text("kind", |text| word(text, KINDS.iter().map(|kind| (kind.as_str(), *kind)))).unwrap_or(Kind::Enriching);
    let identifier = section.text("identifier", kind_of_identifier).unwrap_or(IdentifierKind::Serial);
    let (has_attestation, mut formats) = (section.has("attestation"), 0);
    let attestation = section
        .list("attestation", |item| {
            formats += 1;
            match &item.data {
                Data::Text(text) => attestation_format(text).map_err(|error| report.mistake(&item.place, error)).ok(),
                other => {
                    report.mistake(&item.place, format!("an attestation format must be a string, not {}", other.name()));
                    None
                }
            }
        })
        .map_or_else(|| vec![Attestation::Apple], |(_, formats)| formats);
    let source = source(&mut section);
    let stamped = section.flag("tpm_roots_stamp_identifier").unwrap_or(false);
    if source == Source::Attested {
        if has_attestation && formats == 0 && attestation.is_empty() {
            report.mistake(&place, "`attestation` is empty, and identity = \"attested\" needs a format: write attestation = [\"apple\"]");
        }
        if attestation.contains(&Attestation::Tpm) && !stamped {
            report.mistake(
                &place,
                "attestation \"tpm\" proves an identifier only where the roots of the attestation keys stamp one into every certificate: write tpm_roots_stamp_identifier = true where yours do, or identity = \"claimed\"",
            );
        }
    }
    let callers = callers(&mut section, mtls, unsigned);
    section.refuse_empty("bearer", "leave the line out to ask for no token, or name one, as in bearer = [{ file = \"secrets/token\" }]");
    let (_, bearer) = SecretSource::several(&mut section, "bearer", base);
    section.refuse_empty(
        "basic",
        "leave the line out to ask for no password, or name one, as in basic = [{ username = \"step-ca\", password = { file = \"secrets/password\" } }]",
    );
    let basic = basic(&mut section, base);
    let window = window(&mut section);
    let deadline = section.duration(
        "deadline",
        (Duration::from_millis(100), "100ms"),
        (Duration::from_millis(3800), "3.8s, since step-ca gives up after 10 s with one retry"),
    );
    let body_limit = section.number("body_limit", 1 << 10, LARGEST_BODY.into(), " bytes").and_then(|limit| u32::try_from(limit).ok());
    let mode =
        section.text("mode", |text| Mode::parse(text).ok_or_else(|| format!("`{text}` is no mode; there are mobiledevice, computer")));
    let policy = judge(&mut section, kind, known.policies);
    let providers = ask(&mut section, kind, known.providers, policy.is_some());
    let enforcement = section.text("enforcement", |text| word(text, Enforcement::ALL.iter().map(|way| (way.as_str(), *way))));
    if enforcement.is_some() && policy.is_none() {
        report.mistake(
            &place,
            "`enforcement` says what becomes of a policy's denials, and the webhook has no `policy`: add it, or remove `enforcement`",
        );
    }
    if enforcement == Some(Enforcement::Observe) {
        report.warn(&place, "enforcement = \"observe\": what the policy would deny is allowed, and only recorded");
    }
    section.finish();
    let mut webhook = Settings {
        id: String::new(),
        name,
        table,
        kind,
        identifier,
        source,
        attestation,
        secrets: Vec::new(),
        callers,
        bearer,
        basic,
        unsigned,
        window,
        deadline: deadline.unwrap_or(DEADLINE),
        body_limit: body_limit.unwrap_or(65_536),
        mode,
        providers,
        policy: policy.flatten(),
        enforcement: enforcement.unwrap_or_default(),
    };
    known.compare(&webhook, &place, report);
    let ids: Vec<&str> = signed.iter().filter_map(|signed| signed.id.as_deref()).collect();
    known.look_for_ids(&webhook, &ids, &place, report);
    let of = |signed: Signed| {
        (webhook.id, webhook.secrets) = (signed.id.unwrap_or_default(), signed.secrets);
        (signed.place, webhook.clone())
    };
    signed.into_iter().map(of).collect()
}

/// Takes the policy of a webhook; `Some(None)` where it names one that does not exist.
fn judge(section: &mut Section<'_>, kind: Kind, known: &BTreeMap<String, Place>) -> Option<Option<String>> {
    if !section.has("policy") {
        // Taking `policy` makes the key known, so that a misspelt `polcy` is recognised.
        section.take("policy");
        return None;
    }
    let (report, place) = (section.report(), section.place().clone());
    if !matches!(kind, Kind::Enriching | Kind::Authorizing) {
        report.mistake(&place, format!("a webhook of kind \"{}\" asks nobody, so no policy can judge: remove `policy`", kind.as_str()));
    }
    let names: Vec<&str> = known.keys().map(String::as_str).collect();
    Some(section.text("policy", |name| {
        let hint = || if names.is_empty() { format!("write [policy.{name}]") } else { suggestion(name, &names) };
        known.contains_key(name).then(|| name.to_owned()).ok_or_else(|| format!("there is no policy `{name}`; {}", hint()))
    }))
}

fn attestation_format(text: &str) -> Result<Attestation, String> {
    word(text, Attestation::ALL.iter().map(|format| (format.as_str(), *format)))
}

fn source(section: &mut Section<'_>) -> Source {
    let report = section.report();
    let identity = section
        .text("identity", |text| word(text, ["attested", "claimed", "certificate", "principal"].into_iter().map(|name| (name, name))));
    let has_field = section.has("identity_field");
    let place = section.place().clone();
    let field = section.text("identity_field", |text| word(text, Field::ALL.iter().map(|field| (field.as_str(), *field))));
    let named = field.unwrap_or(Field::SubjectCommonName);
    match identity.unwrap_or("attested") {
        "claimed" => Source::Claimed(named),
        "certificate" => {
            if matches!(named, Field::SanIp | Field::SshKeyId | Field::SshPrincipal) {
                let name = named.as_str();
                report.mistake(&place, format!("identity = \"certificate\" cannot read `{name}`: use subject.cn, subject.serial_number, san.dns, san.email or san.uri"));
            }
            Source::Certificate(named)
        }
        other => {
            let (what, source) = match other {
                "principal" => ("the principal of a token", Source::Principal),
                _ => ("an attested identifier", Source::Attested),
            };
            if has_field {
                let message =
                    format!("`identity_field` belongs to identity = \"claimed\" or \"certificate\"; {what} has no field: remove it");
                report.mistake(&place, message);
            }
            source
        }
    }
}

fn callers(section: &mut Section<'_>, mtls: bool, unsigned: bool) -> Callers {
    let report = section.report();
    section.refuse_empty(
        "callers",
        "leave the line out to let in every certificate of the client_ca, or name one, as in callers = [\"dns:ca.example.org\"]",
    );
    let given = section.list("callers", |item| match &item.data {
        Data::Text(text) => match text.parse::<Name>() {
            Ok(name) => {
                if matches!(name, Name::Sha256(_)) {
                    report.warn(&item.place, "a `sha256:` caller pins one certificate, and step-ca makes itself a new one every day: name it by dns: or uri:");
                }
                Some(name)
            }
            Err(error) => {
                report.mistake(&item.place, error.to_string());
                None
            }
        },
        other => {
            report.mistake(&item.place, format!("a caller must be a string such as \"dns:ca.example.org\", not {}", other.name()));
            None
        }
    });
    let place = given.as_ref().map_or(section.place(), |(place, _)| place);
    let names = given.as_ref().map(|(_, names)| names.clone()).unwrap_or_default();
    if unsigned && (!mtls || names.is_empty()) {
        report.mistake(
            place,
            "`unsigned` leaves the client certificate as the only proof: it needs client_ca in [envoy] and at least one of `callers`, as in callers = [\"dns:ca.example.org\"]",
        );
    } else if !mtls && !names.is_empty() {
        report.mistake(place, "`callers` needs client certificates, and [envoy] has no client_ca: add it, or remove `callers`");
    }
    match (mtls, names.is_empty()) {
        (false, _) => {
            if !unsigned && names.is_empty() {
                report.warn(
                    section.place(),
                    "no client certificate is asked for (client_ca in [envoy], or ENABLE_MTLS=1): the caller of this webhook is anonymous, and its secret is all that protects it",
                );
            }
            Callers::Anonymous
        }
        (true, true) => Callers::AnyVerified,
        (true, false) => Callers::Named(names),
    }
}

/// Takes the providers that a webhook asks, and reports where they do not fit its kind or its policy.
fn ask(section: &mut Section<'_>, kind: Kind, known: &BTreeMap<String, Place>, judged: bool) -> Vec<String> {
    let report = section.report();
    let given = chain(section, known);
    let count = given.as_ref().map_or(0, |chain| chain.count);
    let asks = matches!(kind, Kind::Enriching | Kind::Authorizing);
    match &given {
        Some(Chain { place, .. }) if judged => {
            report.mistake(place, "the webhook has `policy`, which names providers itself, and `providers`: remove either");
        }
        Some(Chain { place, names, .. }) if !asks && !names.is_empty() => {
            report.warn(place, format!("a webhook of kind \"{}\" asks no provider", kind.as_str()));
        }
        Some(Chain { place, .. }) if asks && count == 0 => report.mistake(place, NO_PROVIDER),
        None if asks && !judged => report.mistake(section.place(), NO_PROVIDER),
        _ => {}
    }
    if kind == Kind::ScepChallenge {
        report.warn(section.place(), "every SCEP challenge is refused: there is no source of challenges to check them against");
    }
    given.map(|chain| chain.names).unwrap_or_default()
}

const NO_PROVIDER: &str =
    "the webhook asks no provider, so it knows no device: write providers = [\"staff\"] and [provider.staff], or policy = \"staff\"";

fn window(section: &mut Section<'_>) -> Window {
    let mut window = Window::default();
    if let Some(mut given) = section.section("window") {
        let ten_minutes = (Duration::from_secs(600), "10m");
        window.past = given.duration("past", (Duration::from_secs(1), "1s"), ten_minutes).unwrap_or(window.past);
        window.future = given.duration("future", (Duration::ZERO, "0s"), ten_minutes).unwrap_or(window.future);
        given.finish();
    }
    window
}

fn basic(section: &mut Section<'_>, base: &Path) -> Vec<Basic> {
    let report = section.report();
    let read = |item: Value| {
        let Data::Table(table) = item.data else {
            report.mistake(&item.place, "`basic` must be { username = \"…\", password = { file = \"…\" } }");
            return None;
        };
        let mut pair = Section::new("`basic`", table, report);
        for (key, example) in [("username", "username = \"step-ca\""), ("password", "password = { file = \"secrets/password\" }")] {
            if !pair.has(key) {
                pair.missing(key, example);
            }
        }
        let username = pair.text("username", |text| {
            if text.is_empty() || text.contains(':') {
                Err("must not be empty and has no colon (RFC 7617)".to_owned())
            } else {
                Ok(text.to_owned())
            }
        });
        let password = pair.take("password").and_then(|value| SecretSource::of(value, "password", base, report));
        pair.finish();
        Some(Basic { username: username?, password: password? })
    };
    section.one_or_many("basic").into_iter().filter_map(read).collect()
}
