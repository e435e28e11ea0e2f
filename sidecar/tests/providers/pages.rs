//! Tests that the examples of the providers' pages can be used as they stand.

use settings::Environment;
use sidecar::config::Config;

const PAGES: &[&str] = &["fleet", "http", "mosyle"];

#[test]
fn the_examples_of_every_page_are_good_settings() {
    for page in PAGES {
        let path = format!("{}/../docs/providers/{page}.md", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let blocks: Vec<&str> = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("\n```").next()).collect();
        assert!(!blocks.is_empty(), "{page}");
        // The webhook of an example has only the line that matters there.
        let shown = ["[[webhook]]", "# …"];
        let lines = blocks.iter().flat_map(|block| block.lines()).filter(|line| !shown.contains(line));
        let (webhook, providers): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with("providers ="));
        let settings = format!(
            "[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\n[[webhook]]\nid = \"1\"\nsecrets = [{{ env = \"S\" }}]\n\
             callers = [\"dns:a\"]\n{}\n{}\n",
            webhook.join("\n"),
            providers.join("\n")
        );
        let read = Config::parse(&settings, "stepward.toml".as_ref(), &Environment::new("/"));
        assert!(read.is_ok(), "{page}: {}\n{settings}", read.unwrap_err());
    }
}
