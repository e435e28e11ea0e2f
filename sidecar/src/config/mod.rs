//! Configuration: read once into types, all mistakes reported together. Nothing downstream looks at strings again.

use std::path::Path;

use settings::{Environment, Mistakes, Report, document, files};

pub(crate) mod cases;
mod chain;
mod dropin;
mod filter;
mod hints;
mod overrides;
pub(crate) mod policy;
mod query;
mod read;
mod secrets;
mod sidecars;
mod tcp;
#[cfg(test)]
mod tests;
mod types;

pub use policy::Policy;
pub use query::Query;
pub use secrets::{Secrets, WebhookSecrets};
pub use sidecars::{Sidecar, Sidecars};
pub use tcp::{Client, Entrance, Role, Tcp};
pub(crate) use types::meet;
pub use types::{Config, Envoy, LONGEST_SOCKET, Listen, Loaded, Log};

use hints::HINTS;

impl Config {
    /// Reads the configuration from the file `path`; without one from that of `STEPWARD_CONFIG`; without that from the variables
    /// of step-posture-connector.
    ///
    /// # Errors
    /// All [`Mistakes`] of the file or the variables. Secrets are not read yet: see [`Config::resolve_secrets`].
    pub fn load(path: Option<&Path>, env: &Environment) -> Result<Loaded, Mistakes> {
        if let Some(path) = path.or_else(|| env.variable("STEPWARD_CONFIG").map(Path::new)) {
            return match files::text(&env.directory.join(path), files::CONFIGURATION) {
                Ok(text) => Self::parse(&text, path, env),
                Err(error) => Err(Mistakes::one(Some(path), format!("cannot be read: {error}"))),
            };
        }
        dropin::load(env)
    }

    /// Reads where a service of this configuration listens, and the mistakes in the rest: a running service goes by the
    /// configuration from before a mistake, and is reached all the same.
    ///
    /// # Errors
    /// All [`Mistakes`], where `[listen]` cannot be read.
    pub fn listening(path: Option<&Path>, env: &Environment) -> Result<(Listen, Option<Mistakes>), Mistakes> {
        match Self::load(path, env) {
            Ok(loaded) => Ok((loaded.config.listen, None)),
            Err(mistakes) => match Self::listen_alone(path, env) {
                Some(listen) => Ok((listen, Some(mistakes))),
                None => Err(mistakes),
            },
        }
    }

    fn listen_alone(path: Option<&Path>, env: &Environment) -> Option<Listen> {
        let path = path.or_else(|| env.variable("STEPWARD_CONFIG").map(Path::new))?;
        let file = env.directory.join(path);
        let text = files::text(&file, files::CONFIGURATION).ok()?;
        let mut root = document::parse(&text, &Report::of(path, &text))?;
        overrides::apply(&mut root, env, &Report::of(path, &text));
        // A missing `[listen]` may be a misspelt one, and the default sockets may be another service's.
        root.entries.contains_key("listen").then_some(())?;
        let report = Report::of(path, &text).hinting(HINTS);
        let listen = read::listen_of(root, file.parent().unwrap_or(&env.directory), &report);
        report.finish(Some(listen)).ok().map(|(listen, _)| listen)
    }

    /// Reads the text of a file; `path` is its name, for messages and as the start of relative paths.
    ///
    /// # Errors
    /// All [`Mistakes`].
    pub fn parse(text: &str, path: &Path, env: &Environment) -> Result<Loaded, Mistakes> {
        let report = Report::of(path, text).hinting(HINTS);
        let file = env.directory.join(path);
        let base = file.parent().unwrap_or(&env.directory);
        let config = document::parse(text, &report).and_then(|mut root| {
            overrides::apply(&mut root, env, &report);
            read::read(root, base, env, &report)
        });
        let (config, warnings) = report.finish(config)?;
        Ok(Loaded { config, warnings, files: vec![file], missing: Vec::new() })
    }
}
