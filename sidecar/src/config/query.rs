//! `[query]`: questions over TCP, and which client may ask which of them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use posture::caller::{Callers, Name, Peer};
use settings::document::{Data, Value};
use settings::words::word;
use settings::{Report, Section};

/// Settings of questions beyond those of `query.sock`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Listener for questions over TCP; `None`: they are taken on the socket alone.
    pub tcp: Option<Tcp>,
    /// Whether the service describes itself to clients that ask. Default false.
    pub reflection: bool,
}

/// A listener with TLS on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Address and port; no default.
    pub address: SocketAddr,
    /// PEM chain that clients are shown.
    pub certificate: PathBuf,
    /// PEM key of the certificate.
    pub private_key: PathBuf,
    /// PEM authorities that client certificates must come from.
    pub client_ca: PathBuf,
    /// Entries of `[[query.client]]`, at least one.
    pub clients: Vec<Client>,
}

/// Clients, and the calls that they may make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Names, any of which the client certificate must have.
    pub names: Callers,
    /// Roles of these clients, at least one.
    pub roles: Vec<Role>,
}

/// Permission to make certain calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `PostureService.Check` and `BatchCheck`.
    Check,
    /// `PostureService.Lookup`.
    Lookup,
    /// `PostureService.Watch`.
    Watch,
    /// Envoy's `Authorization.Check`.
    Authorize,
}

impl Role {
    /// All roles.
    pub const ALL: &'static [Self] = &[Self::Check, Self::Lookup, Self::Watch, Self::Authorize];

    /// Returns the role as the configuration spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Lookup => "lookup",
            Self::Watch => "watch",
            Self::Authorize => "authorize",
        }
    }
}

impl Tcp {
    /// Returns the files of certificate, key and authorities.
    pub fn files(&self) -> [PathBuf; 3] {
        [self.certificate.clone(), self.private_key.clone(), self.client_ca.clone()]
    }

    /// Returns the roles of a client: those of every entry that has one of its names.
    pub fn roles<'t>(&'t self, peer: &'t Peer) -> impl Iterator<Item = Role> + 't {
        let named = self.clients.iter().filter(|client| client.names.admit(Some(peer)).is_some());
        named.flat_map(|client| client.roles.iter().copied())
    }
}

pub(super) fn read(mut section: Section<'_>, base: &Path) -> Query {
    let listens = section.has("address");
    let idle: Vec<_> = FILES.iter().map(|(key, _)| *key).chain(["client"]).filter(|key| !listens && section.has(key)).collect();
    if !idle.is_empty() {
        let keys = idle.join("`, `");
        section.missing("address", &format!("address = \"0.0.0.0:9445\" to take questions over TCP, or remove `{keys}`"));
    }
    let address = section
        .text("address", |text| text.parse().map_err(|_| format!("`{text}` is not an address and port; write 0.0.0.0:9445 or [::]:9445")));
    let [certificate, private_key, client_ca] = FILES.map(|(key, example)| {
        if listens && !section.has(key) {
            section.missing(key, example);
        }
        section.path(key, base)
    });
    if listens && !section.has("client") {
        section.missing("client", "[[query.client]] with names and roles: without one nobody may ask anything over TCP");
    }
    let clients = clients(&mut section);
    let reflection = section.flag("reflection").unwrap_or(false);
    section.finish();
    let tcp = || Some(Tcp { address: address?, certificate: certificate?, private_key: private_key?, client_ca: client_ca?, clients });
    Query { tcp: tcp(), reflection }
}

fn clients(section: &mut Section<'_>) -> Vec<Client> {
    let report = section.report();
    match section.take("client") {
        None => Vec::new(),
        Some(Value { data: Data::List(items), .. }) if !items.is_empty() => {
            items.into_iter().filter_map(|item| client(item, report)).collect()
        }
        Some(value) => {
            report.mistake(&value.place, "`client` must be a list of tables, each under [[query.client]]");
            Vec::new()
        }
    }
}

fn client(item: Value, report: &Report) -> Option<Client> {
    let Data::Table(table) = item.data else {
        report.mistake(&item.place, format!("a client must be a table, not {}", item.data.name()));
        return None;
    };
    let mut section = Section::new("[[query.client]]", table, report);
    let names = some_of(&mut section, "names", "names = [\"uri:spiffe://example.org/vpn\"]", |text| {
        text.parse::<Name>().map_err(|error| error.to_string())
    });
    let roles =
        some_of(&mut section, "roles", "roles = [\"check\"]", |text| word(text, Role::ALL.iter().map(|role| (role.as_str(), *role))));
    section.finish();
    Some(Client { names: Callers::Named(names), roles })
}

/// Takes a list of words that must not be empty.
fn some_of<T>(section: &mut Section<'_>, key: &'static str, example: &str, read: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
    if !section.has(key) {
        section.missing(key, example);
    }
    let report = section.report();
    let mut count = 0;
    let given = section.list(key, |item| {
        count += 1;
        let read = match &item.data {
            Data::Text(text) => read(text),
            other => Err(format!("`{key}` lists strings, not {}", other.name())),
        };
        read.map_err(|message| report.mistake(&item.place, message)).ok()
    });
    if let Some((place, _)) = &given
        && count == 0
    {
        report.mistake(place, format!("`{key}` is empty: write {example}"));
    }
    given.map(|(_, items)| items).unwrap_or_default()
}

/// Files that a listener needs, and what to write where one is missing.
const FILES: [(&str, &str); 3] = [
    ("certificate", "the PEM file of the chain that clients are shown, as in certificate = \"tls/server.crt\""),
    ("private_key", "the PEM file of its key, as in private_key = \"tls/server.key\""),
    ("client_ca", "the PEM file of the authorities that client certificates come from, as in client_ca = \"tls/clients.crt\""),
];
