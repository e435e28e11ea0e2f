//! Secrets of a configuration: the place of each, and reading it when it is needed.

use std::path::{Path, PathBuf};

use posture::secret::Secret;

use crate::document::{Data, Value};
use crate::environment::Environment;
use crate::files;
use crate::mistakes::{Place, Report};
use crate::section::Section;

/// The place where a secret is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file: `{ file = "…" }`.
    File(PathBuf),
    /// A variable: `{ env = "…" }`.
    Env(String),
    /// The text itself, out of a variable that lists several secrets; never out of a file.
    Inline {
        /// Name of the variable, and which of its entries.
        from: String,
        /// The secret itself.
        text: Secret,
    },
}

impl SecretSource {
    /// Takes the secret that a section must have under `key`; reports a missing one.
    pub fn required(section: &mut Section<'_>, key: &'static str, base: &Path) -> Option<Self> {
        if !section.has(key) {
            section.missing(key, &format!("{key} = {{ file = \"secrets/{key}\" }}"));
        }
        let report = section.report();
        section.take(key).and_then(|value| Self::of(value, key, base, report))
    }

    /// Takes the secret or the list of secrets that a section may have under `key`; returns how many are given, and those that
    /// can be read.
    pub fn several(section: &mut Section<'_>, key: &'static str, base: &Path) -> (usize, Vec<Self>) {
        let report = section.report();
        let items = section.one_or_many(key);
        (items.len(), items.into_iter().filter_map(|item| Self::of(item, key, base, report)).collect())
    }

    /// Reads the place of a secret from a value that was taken out of its section; `key` names the value in messages.
    pub fn of(item: Value, key: &str, base: &Path, report: &Report) -> Option<Self> {
        let mut section = match item.data {
            Data::Table(table) => Section::new(format!("a secret in `{key}`"), table, report),
            Data::Secret(text) => {
                let Place::Variable(from) = item.place else { return None };
                return Some(Self::Inline { from, text });
            }
            Data::Text(_) | Data::Given(_) => {
                let (file, variable) = (report.hints().example_file, report.hints().example_variable);
                report.mistake(
                    &item.place,
                    format!("`{key}`: a secret does not stand in the configuration itself: write {{ file = \"{file}\" }} or {{ env = \"{variable}\" }}"),
                );
                return None;
            }
            other => {
                let other = other.name();
                report.mistake(&item.place, format!("`{key}`: a secret must be {{ file = \"…\" }} or {{ env = \"…\" }}, not {other}"));
                return None;
            }
        };
        let count = usize::from(section.has("file")) + usize::from(section.has("env"));
        let file = section.path("file", base).map(Self::File);
        let env = section.text("env", |name| {
            if name.is_empty() || name.contains(['=', '\0']) {
                Err("is not the name of a variable".to_owned())
            } else {
                Ok(Self::Env(name.to_owned()))
            }
        });
        if count != 1 {
            let example = report.hints().example_file;
            report.mistake(section.place(), format!("`{key}`: a secret has either `file` or `env`, as in {{ file = \"{example}\" }}"));
        }
        section.finish();
        file.or(env)
    }

    /// Reads the current secret. Returns `None` where it cannot be read or is empty, after reporting it; warns of a file that
    /// every user of the machine may read. `what` names the secret in messages.
    pub fn read(&self, what: &str, env: &Environment, report: &Report) -> Option<Secret> {
        let named = |message: &str| format!("{what} in {}: {message}", self.place());
        match self.text(env) {
            Ok(secret) if secret.expose().trim_ascii().is_empty() => {
                report.mistake(&Place::Whole, named("is empty"));
                None
            }
            Ok(secret) => {
                if let Self::File(path) = self
                    && files::readable_by_others(path)
                {
                    report.warn(&Place::Whole, named("every user of this machine can read the file; run chmod o= on it"));
                }
                Some(secret)
            }
            Err(error) => {
                report.mistake(&Place::Whole, named(&error));
                None
            }
        }
    }

    /// The path of the file, or the variable, for messages.
    pub fn place(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Env(name) => format!("variable {name}"),
            Self::Inline { from, .. } => format!("variable {from}"),
        }
    }

    /// The bytes of the secret, without the line ends that editors and `echo` leave.
    fn text(&self, env: &Environment) -> Result<Secret, String> {
        let mut bytes = match self {
            Self::File(path) => files::read(path, files::SECRET).map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidInput => error.to_string(),
                _ => format!("cannot be read: {error}"),
            })?,
            Self::Env(name) => env.variable(name).ok_or_else(|| "is not set, or empty".to_owned())?.as_bytes().to_vec(),
            Self::Inline { text, .. } => text.expose().to_vec(),
        };
        while let Some(b'\n' | b'\r') = bytes.last() {
            bytes.pop();
        }
        Ok(Secret::new(bytes))
    }
}
