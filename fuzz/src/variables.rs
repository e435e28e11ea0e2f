//! The variables of step-posture-connector, from a `.env` file, and those that override single values.

use std::path::Path;

use settings::{Environment, Place, SecretSource};
use sidecar::config::Config;

use crate::configuration::CANARY;

/// Asserts that a mistake names its variable or its line, and never a secret.
pub fn body(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(".env");
    std::fs::write(&file, text).unwrap();
    let environment = Environment::new(folder.path());
    match Config::load(None, &environment) {
        Ok(loaded) => {
            assert_eq!(loaded.files, [file]);
            for webhook in &loaded.config.webhooks {
                assert!(matches!(webhook.secrets.as_slice(), [SecretSource::Inline { .. }]), "a webhook without its secret");
            }
            match loaded.config.resolve_secrets(&environment) {
                Ok(secrets) => assert!(secrets.webhooks.iter().all(|webhook| webhook.signing.len() == 1)),
                Err(mistakes) => quiet(text, &mistakes.to_string()),
            }
        }
        Err(mistakes) => {
            assert!(!mistakes.0.is_empty());
            for mistake in &mistakes.0 {
                if let Place::Line(line, _) = mistake.place {
                    assert!((1..=text.lines().count()).contains(&line), "there is no line {line}");
                }
            }
            quiet(text, &mistakes.to_string());
        }
    }
    overrides(text);
}

/// Reads the same lines as variables that override a good file.
fn overrides(text: &str) {
    let mut environment = Environment::new("/etc/stepward");
    for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
        environment = environment.with(name, value);
    }
    match Config::parse(include_str!("questions.toml"), Path::new("stepward.toml"), &environment) {
        Ok(loaded) => assert_eq!(loaded.config.webhooks.len(), 5),
        Err(mistakes) => quiet(text, &mistakes.to_string()),
    }
}

/// Asserts that the canary is not repeated if it is only in places for secrets.
fn quiet(text: &str, messages: &str) {
    let secret = |line: &str| {
        let name = line.trim_start().split('=').next().unwrap_or_default();
        !name.contains(CANARY) && ["SECRET", "SECRETS", "BEARER"].iter().any(|end| name.trim_end().ends_with(end))
    };
    if text.lines().filter(|line| line.contains(CANARY)).all(secret) {
        assert!(!messages.contains(CANARY), "{messages}");
    }
}
