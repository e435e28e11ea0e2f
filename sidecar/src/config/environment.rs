//! What surrounds the process, taken once, so that reading a configuration depends on its arguments alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// Variables, working directory and place of the binary. Values never print: some of them are secrets.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// Names of those whose value is not UTF-8.
    not_text: BTreeSet<String>,
    /// Working directory, absolute.
    pub directory: PathBuf,
    /// The running binary.
    pub executable: Option<PathBuf>,
}

impl Environment {
    /// The one of this process.
    pub fn current() -> Self {
        Self {
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            executable: std::env::current_exe().ok(),
            ..Self::of(std::env::vars_os())
        }
    }

    /// One with these variables. A value that is not UTF-8 counts as not set, and [`Self::not_text`] names it.
    fn of(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let mut this = Self::default();
        for (name, value) in variables {
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => {
                    this.variables.insert(name, value);
                }
                (Ok(name), Err(_)) => {
                    this.not_text.insert(name);
                }
                // Nothing of ours has such a name.
                (Err(name), _) => {
                    this.not_text.insert(name.to_string_lossy().into_owned());
                }
            }
        }
        this
    }

    /// Names of variables whose value, or whose name itself, is not UTF-8.
    pub(super) fn not_text(&self) -> impl Iterator<Item = &str> {
        self.not_text.iter().map(String::as_str)
    }

    /// Whether this variable is set to what is not UTF-8.
    pub(super) fn is_not_text(&self, name: &str) -> bool {
        self.not_text.contains(name)
    }

    /// One without variables.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), ..Self::default() }
    }

    /// Adds a variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The value of a variable; an empty one counts as unset.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All variables, by name.
    pub(super) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.variables.keys().collect();
        f.debug_struct("Environment").field("variables", &names).field("directory", &self.directory).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;
    use crate::config::Config;

    #[test]
    fn a13_a_variable_of_the_connector_that_is_not_text_is_a_mistake_and_lifts_no_rule() {
        let not_text = || OsString::from_vec(vec![b'B', 0xfc]);
        let names = ["PROVIDER", "JAMF_COMPUTER_GROUP", "TLS_CA_PATH", "ENABLE_MTLS", "WEBHOOK_SECRETS", "TIMEOUT", "STATE_DIRECTORY"];
        for name in names {
            let mut env = Environment { directory: "/nowhere".into(), ..Environment::of([(name.into(), not_text())].into_iter()) };
            let others = [("PROVIDER", "jamf"), ("JAMF_BASE_URL", "https://example.org"), ("JAMF_CLIENT_ID", "id"), ("ENABLE_MTLS", "1")];
            for (other, value) in others.into_iter().filter(|(other, _)| *other != name) {
                env = env.with(other, value);
            }
            let mistakes = Config::load(None, &env).unwrap_err().to_string();
            assert_eq!(mistakes.matches(&format!("{name}: is not text in UTF-8")).count(), 1, "{name}: {mistakes}");
        }
    }

    #[test]
    fn g12_a_variable_that_is_not_text_is_a_mistake_that_names_it() {
        let not_text = || OsString::from_vec(vec![b'9', 0xff]);
        let variables = [("STEPWARD__LISTEN__ADMIN".into(), not_text()), ("LANG".into(), not_text()), ("HOME".into(), "/root".into())];
        let env = Environment { directory: "/etc/stepward".into(), ..Environment::of(variables.into_iter()) };
        assert_eq!(env.variable("HOME"), Some("/root"));
        let mistakes = Config::parse("", "stepward.toml".as_ref(), &env).unwrap_err().to_string();
        assert!(mistakes.contains("STEPWARD__LISTEN__ADMIN: is not text in UTF-8"), "{mistakes}");
        assert!(!mistakes.contains("LANG"), "{mistakes}");
    }
}
