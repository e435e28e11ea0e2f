//! Sources of the configuration.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use settings::Environment;

use crate::config::Config;
use engine::webhooks::{Material, Materials};

/// A source of configurations and secrets, for the start and for every reload.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Reads the configuration.
    ///
    /// # Errors
    /// All mistakes, as a message for the operator.
    fn config(&self) -> Result<Config, String>;

    /// Reads every secret.
    ///
    /// # Errors
    /// A message that names the secret that cannot be read, and why; it has no word of the secret.
    fn materials(&self, config: &Config) -> Result<Materials, String>;

    /// Reads the settings of the store, with the password of its server.
    ///
    /// # Errors
    /// A message, as of [`Self::materials`].
    fn store(&self, config: &Config) -> Result<store::Settings, String>;

    /// Returns the files of the configuration itself.
    fn files(&self) -> Vec<PathBuf>;
}

/// A configuration from a file, or from the environment alone.
#[derive(Debug)]
pub struct Configured {
    path: Option<PathBuf>,
    environment: Environment,
    files: Mutex<Vec<PathBuf>>,
    /// Files that were read before: where such a file is moved away for a moment, its settings must not be taken back.
    read: Mutex<BTreeSet<PathBuf>>,
}

impl Configured {
    /// Makes a source that reads `path`, or without it what [`Config::load`] finds.
    pub fn new(path: Option<PathBuf>, environment: Environment) -> Self {
        let files = Mutex::new(path.iter().map(|path| environment.directory.join(path)).collect());
        Self { path, environment, files, read: Mutex::default() }
    }
}

impl Source for Configured {
    fn config(&self) -> Result<Config, String> {
        let loaded = Config::load(self.path.as_deref(), &self.environment).map_err(|mistakes| mistakes.to_string())?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gone) = loaded.missing.iter().find(|file| read.contains(*file)) {
            return Err(format!("{} was read before and is gone: put it back, or an empty file in its place", gone.display()));
        }
        read.extend(loaded.files.iter().filter(|file| !loaded.missing.contains(file)).cloned());
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        *self.files.lock().unwrap_or_else(PoisonError::into_inner) = loaded.files;
        Ok(loaded.config)
    }

    fn materials(&self, config: &Config) -> Result<Materials, String> {
        let secrets = config.resolve_secrets(&self.environment).map_err(|mistakes| mistakes.to_string())?;
        for warning in &secrets.warnings {
            tracing::warn!("{warning}");
        }
        let webhooks = secrets.webhooks.into_iter().map(|webhook| Material { secrets: webhook.signing, credentials: webhook.credentials });
        Ok(Materials { webhooks: webhooks.collect(), providers: secrets.providers })
    }

    fn store(&self, config: &Config) -> Result<store::Settings, String> {
        let (settings, warnings) = config.store_with_password(&self.environment).map_err(|mistakes| mistakes.to_string())?;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        Ok(settings)
    }

    fn files(&self) -> Vec<PathBuf> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
