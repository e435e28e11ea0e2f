//! Watch of files for changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use settings::Fingerprint;

/// Fingerprints of files: as they were when they were last read, and at the last look.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// Fingerprints of the configuration's own files, when they were last read.
    pub(super) configuration: Vec<Option<Fingerprint>>,
    /// Fingerprints of the files of secrets, when they were last read.
    pub(super) secrets: Vec<Option<Fingerprint>>,
    /// Files of a configuration that could not be applied: once one of these changes, the configuration is tried again.
    pub(super) wanted: Vec<(Option<Fingerprint>, PathBuf)>,
    /// Fingerprint of every file at the last look.
    looked: BTreeMap<PathBuf, Option<Fingerprint>>,
    /// Subjects that the system could not read. They are tried at each look: no fingerprint shows when reading works again.
    pub(super) again: BTreeSet<Arc<str>>,
}

impl Watched {
    /// Starts from the fingerprints of the files when they were first read.
    pub(super) fn new(configuration: Vec<Option<Fingerprint>>, secrets: Vec<Option<Fingerprint>>) -> Self {
        Self { configuration, secrets, ..Self::default() }
    }

    /// Looks at the files, and returns those that changed since the last look.
    pub(super) fn look(&mut self, files: impl Iterator<Item = PathBuf>) -> BTreeSet<PathBuf> {
        let files = files.chain(self.wanted.iter().map(|(_, path)| path.clone()));
        let now = files.map(|path| (path.clone(), Fingerprint::of(&path))).collect();
        let before = std::mem::replace(&mut self.looked, now);
        self.looked.iter().filter(|(path, now)| before.get(*path) != Some(*now)).map(|(path, _)| path.clone()).collect()
    }

    /// Returns whether secrets are to be read again.
    pub(super) fn secrets_are_due(&self, files: &[PathBuf]) -> bool {
        self.again.contains(SECRETS) || fingerprints(files) != self.secrets
    }

    /// Returns whether a configuration that could not be applied is to be tried again.
    pub(super) fn wants_another_try(&self, moving: &BTreeSet<PathBuf>) -> bool {
        self.wanted.iter().any(|(seen, path)| !moving.contains(path) && Fingerprint::of(path) != *seen)
    }
}

/// Returns the fingerprint of each file; `None` for one that is not there.
pub(super) fn fingerprints(files: &[PathBuf]) -> Vec<Option<Fingerprint>> {
    files.iter().map(|file| Fingerprint::of(file)).collect()
}

/// Subject of a reload of secrets alone.
pub(super) const SECRETS: &str = "secrets";
