//! `[query]`: questions over TCP, and which client may ask which of them.

use std::path::Path;

use posture::caller::Callers;
use settings::document::{Data, Value};
use settings::words::word;
use settings::{Report, Section};

use super::tcp::{Client, Entrance, Listener, Role, Tcp, names, some_of};

/// Settings of questions beyond those of `query.sock`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Listener for questions over TCP; `None`: they are taken on the socket alone.
    pub tcp: Option<Tcp>,
    /// Whether the service describes itself to clients that ask. Default false.
    pub reflection: bool,
}

pub(super) fn read(mut section: Section<'_>, base: &Path) -> Query {
    let listens = section.has("address");
    let listener = Listener::read(&mut section, base, Entrance::Query, "client");
    if listens && !section.has("client") {
        section.missing("client", "[[query.client]] with names and roles: without one nobody may ask anything over TCP");
    }
    let clients = clients(&mut section);
    let reflection = section.flag("reflection").unwrap_or(false);
    section.finish();
    Query { tcp: listener.map(|listener| listener.with(clients)), reflection }
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
    let names = names(&mut section, "names = [\"uri:spiffe://example.org/vpn\"]");
    let roles = some_of(&mut section, "roles", "roles = [\"check\"]", |text| {
        word(text, Role::OF_QUERIES.iter().map(|role| (role.as_str(), *role)))
    });
    section.finish();
    Some(Client { names: Callers::Named(names), roles })
}
