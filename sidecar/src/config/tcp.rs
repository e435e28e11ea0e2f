//! Listeners over TCP: TLS on both sides, and which client may make which calls.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use posture::caller::{Callers, Name, Peer};
use settings::Section;
use settings::document::Data;

/// One of the listeners over TCP. Each has clients, certificates and bounds of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entrance {
    /// Questions about devices, `[query]`.
    Query,
    /// Streams of filters, `[filter]`.
    Filter,
}

impl Entrance {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Query, Self::Filter];

    /// Returns the section that sets the listener.
    pub const fn section(self) -> &'static str {
        match self {
            Self::Query => "[query]",
            Self::Filter => "[filter]",
        }
    }

    /// Returns what is taken there, for the log.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Query => "questions over TCP",
            Self::Filter => "filters over TCP",
        }
    }
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
    /// Clients that may make calls, at least one.
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
    /// `FilterService.Attach`, by which a filter is told the secrets of all webhooks. No list of roles can name it: who has it is
    /// said by the names of `[filter]`, and by nothing else.
    Filter,
}

impl Role {
    /// Roles that `[[query.client]]` can give.
    pub const OF_QUERIES: &'static [Self] = &[Self::Check, Self::Lookup, Self::Watch, Self::Authorize];

    /// Returns the role as the configuration spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Lookup => "lookup",
            Self::Watch => "watch",
            Self::Authorize => "authorize",
            Self::Filter => "filter",
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

/// Where a section listens, and with what.
pub(super) struct Listener {
    address: SocketAddr,
    certificate: PathBuf,
    private_key: PathBuf,
    client_ca: PathBuf,
}

impl Listener {
    /// Takes the keys of a listener; `clients` is the key that says who its clients are, and `port` its usual port. Without an
    /// address the other keys are of no use, which is a mistake.
    pub(super) fn read(section: &mut Section<'_>, base: &Path, entrance: Entrance, clients: &str) -> Option<Self> {
        let (what, port) = match entrance {
            Entrance::Query => ("questions", 9445),
            Entrance::Filter => ("filters", 9446),
        };
        let listens = section.has("address");
        let idle: Vec<_> = FILES.iter().map(|(key, _)| *key).chain([clients]).filter(|key| !listens && section.has(key)).collect();
        if !idle.is_empty() {
            let keys = idle.join("`, `");
            section.missing("address", &format!("address = \"0.0.0.0:{port}\" to take {what} over TCP, or remove `{keys}`"));
        }
        let address = section.text("address", |text| {
            text.parse().map_err(|_| format!("`{text}` is not an address and port; write 0.0.0.0:{port} or [::]:{port}"))
        });
        let [certificate, private_key, client_ca] = FILES.map(|(key, example)| {
            if listens && !section.has(key) {
                section.missing(key, example);
            }
            section.path(key, base)
        });
        Some(Self { address: address?, certificate: certificate?, private_key: private_key?, client_ca: client_ca? })
    }

    /// Returns the whole listener, for these clients.
    pub(super) fn with(self, clients: Vec<Client>) -> Tcp {
        let Self { address, certificate, private_key, client_ca } = self;
        Tcp { address, certificate, private_key, client_ca, clients }
    }
}

/// Takes the names of certificates, at least one.
pub(super) fn names(section: &mut Section<'_>, example: &str) -> Vec<Name> {
    some_of(section, "names", example, |text| text.parse::<Name>().map_err(|error| error.to_string()))
}

/// Takes a list of words that must not be empty.
pub(super) fn some_of<T>(section: &mut Section<'_>, key: &'static str, example: &str, read: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
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
