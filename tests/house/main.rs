//! The house: which crate may import which, as ARCHITECTURE.md states it, and that no module imports in a circle.
//!
//! Every `use` and every path of the sources is read, `super::` and those in the arguments of macros too. A module is a file, with what
//! is inline in it. Tests are left out: they may look at everything.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with its place is the report"
)]

mod graph;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use graph::Graph;
use read::Workspace;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The table of ARCHITECTURE.md: each crate, and those that it may import.
fn direction() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let table = text.split_once("| crate | may import |\n|---|---|\n").expect("the table of the direction").1;
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').collect();
        (names(cells[1]).pop_first().expect("a crate"), names(cells[2]))
    })
    .collect()
}

/// What is wrong with a graph: imports against the direction, and modules in circles.
fn wrong(graph: &Graph, direction: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (from, to) in graph.edges() {
        let (one, other) = (crate_of(from), crate_of(to));
        if one != other && !direction.get(one).is_some_and(|may| may.contains(other)) {
            wrong.push(format!("{from} imports {to}, and ARCHITECTURE.md says that {one} may not import {other}"));
        }
    }
    for circle in graph.circles() {
        wrong.push(format!("these import in a circle: {}; {}", circle.join(", "), graph.shown(&circle)));
    }
    wrong
}

fn crate_of(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

#[test]
fn no_module_imports_against_the_direction_or_in_a_circle() {
    let workspace = Workspace::read(root());
    let direction = direction();
    assert_eq!(workspace.crates().collect::<BTreeSet<_>>(), direction.keys().map(String::as_str).collect(), "each crate has its row");
    let graph = workspace.graph();
    assert!(graph.edges().count() > 500, "the sources were read");
    assert_eq!(wrong(&graph, &direction), Vec::<String>::new());
}

#[test]
fn a_wrong_import_is_found_however_it_is_written() {
    let workspace = Workspace::read(root());
    let direction = direction();
    for (module, planted, expected) in [
        ("posture::time", "use crate::verify::Verified;", "these import in a circle: posture::time, posture::verify"),
        ("posture::time", "use super::verify;", "these import in a circle: posture::time, posture::verify"),
        ("posture::time", "fn f() { let _ = crate::verify::X; }", "these import in a circle: posture::time, posture::verify"),
        ("posture::time", "fn f(_: &super::verify::Verified) {}", "these import in a circle: posture::time, posture::verify"),
        ("posture::time", "fn f() { println!(\"{}\", crate::verify::X); }", "these import in a circle: posture::time, posture::verify"),
        ("posture::policy::value", "use super::expression::Node;", "these import in a circle: posture::policy::expression"),
        ("posture::policy::value", "use super::Policy;", "these import in a circle: posture::policy, "),
        (
            "posture::time",
            "use sidecar::folders;",
            "posture::time imports sidecar::folders, and ARCHITECTURE.md says that posture may not import sidecar",
        ),
        ("filter::keys", "fn f() { sidecar::folders::now(); }", "filter::keys imports sidecar::folders, and ARCHITECTURE.md says"),
        ("fakes::device", "use posture::time as t;", "fakes::device imports posture::time, and ARCHITECTURE.md says"),
    ] {
        let found = wrong(&workspace.with(module, planted).graph(), &direction);
        assert!(found.iter().any(|wrong| wrong.contains(expected)), "{module} {planted}: {found:?}");
    }
    // What a test imports, and what another crate of the same name has, is nothing.
    for planted in ["#[cfg(test)] mod tests { use crate::verify::Verified; }", "use ::std::time as verify; fn f() { verify::sleep(); }"] {
        assert_eq!(wrong(&workspace.with("posture::time", planted).graph(), &direction), Vec::<String>::new(), "{planted}");
    }
}
