//! Tests that the examples of the providers' pages can be used as they stand.

use settings::Environment;
use sidecar::config::Config;

/// Pages whose examples are parts of one configuration. Of the others the first one is tried.
const WHOLE: &[&str] = &["fleet", "http", "mosyle"];

#[test]
fn the_examples_of_every_page_are_good_settings() {
    for page in crate::WORDS.iter().chain(&["file"]) {
        let path = format!("{}/../docs/providers/{page}.md", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let blocks = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("\n```").next());
        let blocks: Vec<&str> = blocks.take(if WHOLE.contains(page) { usize::MAX } else { 1 }).collect();
        assert!(!blocks.is_empty(), "{page}");
        // The webhook of an example has only the line that matters there.
        let shown = ["[[webhook]]", "# …"];
        let lines = blocks.iter().flat_map(|block| block.lines()).filter(|line| !shown.contains(line));
        let (webhook, providers): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with("providers ="));
        let settings = format!(
            "[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\n[[webhook]]\nid = \"1\"\nsecrets = [{{ env = \"S\" }}]\n\
             callers = [\"dns:a\"]\n{}\n{}\n",
            webhook.join("\n"),
            providers.iter().map(|line| filled(line)).collect::<Vec<_>>().join("\n")
        );
        let read = Config::parse(&settings, "stepward.toml".as_ref(), &Environment::new("/"));
        assert!(read.is_ok(), "{page}: {}\n{settings}", read.unwrap_err());
    }
}

/// A line whose value is for the reader to fill in, such as `"<Directory (tenant) ID>"`, with a value that will do.
fn filled(line: &str) -> String {
    match (line.split_once("\"<"), line.rsplit_once(">\"")) {
        (Some((before, _)), Some((_, after))) => format!("{before}\"example.org\"{after}"),
        _ => line.to_owned(),
    }
}
