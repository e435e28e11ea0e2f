//! `[filter]`: streams of filters over TCP, and which Envoys may open them.

use std::path::Path;

use posture::caller::Callers;
use settings::Section;

use super::tcp::{Client, Entrance, Listener, Role, Tcp, names};

/// Reads the listener for filters; `None`: they attach on `filter.sock` alone.
pub(super) fn read(mut section: Section<'_>, base: &Path) -> Option<Tcp> {
    let listens = section.has("address");
    let listener = Listener::read(&mut section, base, Entrance::Filter, "names");
    let names = if listens || section.has("names") {
        names(&mut section, "names = [\"dns:envoy.example.org\"]: without one no Envoy may attach over TCP")
    } else {
        section.take("names");
        Vec::new()
    };
    section.finish();
    listener.map(|listener| listener.with(vec![Client { names: Callers::Named(names), roles: vec![Role::Filter] }]))
}
