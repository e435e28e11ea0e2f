//! The table of edge cases names tests that exist, and leaves no case out.

use std::collections::BTreeSet;
use std::path::Path;

/// Returns the number of each case, what happens in it, and the tests that show it.
fn rows() -> Vec<(u32, &'static str, Vec<&'static str>)> {
    let lines = include_str!("edge_cases.md").lines().filter(|line| line.starts_with('|')).skip(2);
    let row = |line: &'static str| {
        let columns: Vec<_> = line.split('|').map(str::trim).collect();
        let ["", case, what, tests, ""] = columns.as_slice() else { panic!("three columns: {line}") };
        let number = case.split('.').next().and_then(|number| number.parse().ok());
        let tests = tests.split(", ").map(|test| test.strip_prefix('`').and_then(|test| test.strip_suffix('`')).unwrap_or_default());
        (number.unwrap_or_else(|| panic!("a number, a full stop, a name: {line}")), *what, tests.collect())
    };
    lines.map(row).collect()
}

#[test]
fn every_edge_case_is_in_the_table() {
    let numbers: BTreeSet<_> = rows().iter().map(|(number, _, _)| *number).collect();
    assert_eq!(numbers, (1..=19).collect());
}

#[test]
fn every_row_says_what_happens_and_names_a_test_that_is_run() {
    for (number, what, tests) in rows() {
        assert!(!what.is_empty() && !tests.is_empty(), "{number}: {what}");
        for test in tests {
            let (path, name) = test.split_once("::").unwrap_or_else(|| panic!("{number}, {what}: `{test}`"));
            let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path));
            let text = text.unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(is_run(&text, name), "{number}, {what}: {path} has no test {name}");
        }
    }
}

/// Returns whether a file has a test of this name, or it is a promise that the contract's macro makes a test of.
fn is_run(text: &str, name: &str) -> bool {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let Some(at) = lines.iter().position(|line| line.contains(&format!("fn {name}("))) else { return false };
    let mut attributes = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let is_marked = attributes.any(|line| line.contains("test]") || line.contains("test("));
    let is_promised = text.contains("macro_rules! contract") && lines.contains(&format!("{name},").as_str());
    // The macro takes one of these two by the provider's kind of credentials.
    let is_of_credentials = text.contains("contract::$credentials(") && ["token", "key"].contains(&name);
    is_marked || is_promised || is_of_credentials
}
