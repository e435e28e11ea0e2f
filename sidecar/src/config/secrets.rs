//! Secrets, read when they are asked for: they change while the service runs.

use std::collections::BTreeMap;
use std::path::Path;

use posture::credential::Credentials;
use posture::secret::Secret;
use posture::verify::{is_no_key, is_same_key};

use super::mistakes::{Mistake, Place, Report};
use super::{Config, Environment, Mistakes, SecretSource, Webhook};
use crate::files;

/// Shortest secret, decoded, that gives no warning; step-ca makes 64 bytes.
const SHORT: usize = 16;

/// All secrets of a configuration, webhooks in its order.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// One for each of [`Config::webhooks`].
    pub webhooks: Vec<WebhookSecrets>,
    /// Those of [`super::Provider::secrets`], in its order, by the provider's name.
    pub providers: BTreeMap<String, Vec<Secret>>,
    /// What works, but should be looked at.
    pub warnings: Vec<Mistake>,
}

/// The secrets of one webhook.
#[derive(Clone, Debug)]
pub struct WebhookSecrets {
    /// The webhook's id.
    pub id: String,
    /// Signing secrets, decoded, newest first; none where the webhook is unsigned, none of them empty.
    pub signing: Vec<Secret>,
    /// What the `Authorization` header must be.
    pub credentials: Credentials,
}

impl Config {
    /// Reads the secrets of one webhook alone.
    ///
    /// # Errors
    /// As for [`Self::resolve_secrets`], of this webhook.
    pub fn secrets_of(&self, webhook: &Webhook, env: &Environment) -> Result<WebhookSecrets, Mistakes> {
        let report = Report::new(None);
        let secrets = resolve(webhook, env, &report);
        report.finish(Some(secrets)).map(|(secrets, _)| secrets)
    }

    /// Reads every secret as it is now.
    ///
    /// # Errors
    /// All [`Mistakes`]: a file or variable that is not there, a secret that is empty or not base64, one secret under two
    /// ids. They name the webhook and the place, never the secret.
    pub fn resolve_secrets(&self, env: &Environment) -> Result<Secrets, Mistakes> {
        let report = Report::new(None);
        let webhooks: Vec<_> = self.webhooks.iter().map(|webhook| resolve(webhook, env, &report)).collect();
        for (number, one) in webhooks.iter().enumerate() {
            for other in webhooks.iter().skip(number + 1) {
                // The id is not under the signature, so a webhook signed for one would pass as the other.
                if one.signing.iter().any(|secret| other.signing.iter().any(|other| is_same_key(secret, other))) {
                    report.mistake(
                        &Place::Whole,
                        format!(
                            "webhooks `{}` and `{}` have the same secret: each needs its own, since the id is not signed",
                            one.id, other.id
                        ),
                    );
                }
            }
        }
        let providers = self.providers.iter().map(|(name, provider)| {
            let secrets =
                provider.secrets().into_iter().filter_map(|source| read(&format!("provider `{name}`: secret"), source, env, &report));
            (name.clone(), secrets.collect())
        });
        let providers = providers.collect();
        let (webhooks, warnings) = report.finish(Some(webhooks))?;
        Ok(Secrets { webhooks, providers, warnings })
    }
}

fn resolve(webhook: &Webhook, env: &Environment, report: &Report) -> WebhookSecrets {
    let read = |what: &str, source: &SecretSource| read(&format!("webhook `{}`: {what}", webhook.id), source, env, report);
    let signing = webhook.secrets.iter().filter_map(|source| {
        let text = read("secret", source)?;
        let named = |message: &str| format!("webhook `{}`: secret in {}: {message}", webhook.id, place(source));
        let decoded = std::str::from_utf8(text.expose()).map_err(|_| "not base64".to_owned());
        match decoded.and_then(|text| Secret::from_base64(text).map_err(|error| error.to_string())) {
            Ok(secret) if is_no_key(&secret) => {
                report.mistake(&Place::Whole, named("it is nothing but zero bytes, with which anyone could sign"));
                None
            }
            Ok(secret) => {
                if secret.expose().len() < SHORT {
                    report.warn(&Place::Whole, named(&format!("it has {} bytes, and step-ca makes 64", secret.expose().len())));
                }
                Some(secret)
            }
            Err(error) => {
                report.mistake(&Place::Whole, named(&error));
                None
            }
        }
    });
    let signing = signing.collect();
    let bearer = webhook.bearer.iter().filter_map(|source| Some(Credentials::bearer(&read("bearer token", source)?)));
    let mut credentials: Vec<_> = bearer.collect();
    credentials
        .extend(webhook.basic.iter().filter_map(|basic| Some(Credentials::basic(&basic.username, &read("password", &basic.password)?))));
    WebhookSecrets { id: webhook.id.clone(), signing, credentials: Credentials::new(credentials) }
}

/// The text of a secret; what is wrong with it is reported.
fn read(what: &str, source: &SecretSource, env: &Environment, report: &Report) -> Option<Secret> {
    let named = |message: &str| format!("{what} in {}: {message}", place(source));
    match text(source, env) {
        Ok(secret) if secret.expose().trim_ascii().is_empty() => {
            report.mistake(&Place::Whole, named("is empty"));
            None
        }
        Ok(secret) => {
            if let SecretSource::File(path) = source
                && readable_by_others(path)
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

/// Where a secret is, for messages.
fn place(source: &SecretSource) -> String {
    match source {
        SecretSource::File(path) => path.display().to_string(),
        SecretSource::Env(name) => format!("variable {name}"),
        SecretSource::Inline { from, .. } => format!("variable {from}"),
    }
}

/// What stands there, without the line ends that editors and `echo` leave.
fn text(source: &SecretSource, env: &Environment) -> Result<Secret, String> {
    let mut bytes = match source {
        SecretSource::File(path) => files::read(path, files::SECRET).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidInput => error.to_string(),
            _ => format!("cannot be read: {error}"),
        })?,
        SecretSource::Env(name) => env.variable(name).ok_or_else(|| "is not set, or empty".to_owned())?.as_bytes().to_vec(),
        SecretSource::Inline { text, .. } => text.expose().to_vec(),
    };
    while let Some(b'\n' | b'\r') = bytes.last() {
        bytes.pop();
    }
    Ok(Secret::new(bytes))
}

/// Whether every user of the machine may read a file.
pub(super) fn readable_by_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}
