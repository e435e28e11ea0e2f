//! The configuration file.

use std::path::Path;

use settings::{Environment, Mistake, Place};
use sidecar::config::Config;
use toml::Value;

/// The text of every secret in the file.
pub(crate) const CANARY: &str = "kanarienvogel";

/// Asserts that every mistake has its place in the file, and none repeats a secret.
pub fn body(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = toml::from_str::<Value>(text);
    match Config::parse(text, Path::new("stepward.toml"), &Environment::new("/etc/stepward")) {
        Ok(loaded) => {
            assert!(read.is_ok(), "taken, and not TOML");
            placed(text, &loaded.warnings);
            let config = loaded.config;
            assert!(!config.webhooks.is_empty());
            for webhook in &config.webhooks {
                assert_eq!(webhook.unsigned, webhook.secrets.is_empty(), "neither or both of a secret and none");
                assert!(webhook.providers.iter().all(|name| config.providers.contains_key(name)));
                assert!(!webhook.id.is_empty() && webhook.deadline.as_millis() <= 3800);
            }
            assert!(config.watched_files().iter().all(|path| path.is_absolute()));
        }
        Err(mistakes) => {
            assert!(!mistakes.0.is_empty(), "refused for no reason");
            placed(text, &mistakes.0);
            // In a file that is not TOML everything may be secret.
            let secret = read.map_or(true, |value| !elsewhere(&value, false));
            assert!(!secret || !mistakes.to_string().contains(CANARY), "{mistakes}");
        }
    }
}

fn placed(text: &str, mistakes: &[Mistake]) {
    for mistake in mistakes {
        assert_eq!(mistake.file.as_deref(), Some("stepward.toml"));
        assert!(!mistake.message.is_empty());
        match &mistake.place {
            Place::Line(line, column) => {
                // The end of the file is a place too.
                let text = text.split('\n').nth(line - 1).unwrap_or_else(|| panic!("there is no line {line}"));
                assert!((1..=text.chars().count() + 1).contains(column), "{line}:{column}");
            }
            Place::Whole => {}
            Place::Variable(name) => panic!("{name} is not set"),
        }
    }
}

/// Returns whether the canary is in a place that does not hold a secret.
fn elsewhere(value: &Value, secret: bool) -> bool {
    match value {
        Value::String(text) => !secret && text.contains(CANARY),
        Value::Array(list) => list.iter().any(|value| elsewhere(value, secret)),
        Value::Table(table) => table.iter().any(|(key, value)| {
            let secret = matches!(key.as_str(), "secrets" | "bearer" | "password") && !matches!(value, Value::Table(_));
            key.contains(CANARY) || elsewhere(value, secret)
        }),
        _ => false,
    }
}
