//! The surroundings of the process, taken once, so that the reading of a configuration depends on its arguments alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// Variables, working directory and path of the binary. Values never print: some of them are secrets.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// Names of variables whose value, or whose name itself, is not UTF-8.
    not_text: BTreeSet<String>,
    /// Working directory, absolute.
    pub directory: PathBuf,
    /// Path of the running binary.
    pub executable: Option<PathBuf>,
}

impl Environment {
    /// The environment of this process.
    pub fn current() -> Self {
        let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        Self { executable: std::env::current_exe().ok(), ..Self::of(directory, std::env::vars_os()) }
    }

    /// An environment with these variables. A value that is not UTF-8 counts as not set, and [`Self::not_text`] names it.
    pub fn of(directory: impl Into<PathBuf>, variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let mut this = Self::new(directory);
        for (name, value) in variables {
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => {
                    this.variables.insert(name, value);
                }
                (Ok(name), Err(_)) => {
                    this.not_text.insert(name);
                }
                // No variable of ours has such a name.
                (Err(name), _) => {
                    this.not_text.insert(name.to_string_lossy().into_owned());
                }
            }
        }
        this
    }

    /// Names of variables whose value, or whose name itself, is not UTF-8.
    pub fn not_text(&self) -> impl Iterator<Item = &str> {
        self.not_text.iter().map(String::as_str)
    }

    /// Returns whether this variable is set to a value that is not UTF-8.
    pub fn is_not_text(&self, name: &str) -> bool {
        self.not_text.contains(name)
    }

    /// An environment without variables.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), ..Self::default() }
    }

    /// Adds a variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The value of a variable; an empty value counts as unset.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All variables, by name.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.variables.keys().collect();
        f.debug_struct("Environment").field("variables", &names).field("directory", &self.directory).finish_non_exhaustive()
    }
}
