//! Secrets, read anew at every call: they change while the service runs.

use std::collections::BTreeMap;

use posture::credential::Credentials;
use posture::secret::Secret;
use posture::verify::{is_no_key, is_same_key};
use settings::{Environment, Mistake, Mistakes, Place, Report, SecretSource};

use super::types::Config;
use engine::webhooks::Settings;

/// Shortest secret, decoded, that gives no warning; step-ca makes 64 bytes.
const SHORT: usize = 16;

/// All secrets of a configuration, webhooks in its order.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// Secrets of the webhooks, one entry for each of [`Config::webhooks`].
    pub webhooks: Vec<WebhookSecrets>,
    /// Secrets of the providers by name, in the order of [`engine::provider::ProviderSettings::secrets`].
    pub providers: BTreeMap<String, Vec<Secret>>,
    /// Warnings about secrets that work, but should be looked at.
    pub warnings: Vec<Mistake>,
}

/// The secrets of one webhook.
#[derive(Clone, Debug)]
pub struct WebhookSecrets {
    /// The webhook's id.
    pub id: String,
    /// Signing secrets, decoded, newest first; none where the webhook is unsigned, none of them empty.
    pub signing: Vec<Secret>,
    /// Values that the `Authorization` header may have.
    pub credentials: Credentials,
}

impl Config {
    /// Reads the secrets of one webhook alone.
    ///
    /// # Errors
    /// The [`Mistakes`] that [`Self::resolve_secrets`] finds in this webhook.
    pub fn secrets_of(&self, webhook: &Settings, env: &Environment) -> Result<WebhookSecrets, Mistakes> {
        let report = Report::new(None);
        let secrets = resolve(webhook, env, &report);
        report.finish(Some(secrets)).map(|(secrets, _)| secrets)
    }

    /// Reads the settings of the store with the password of its server, as it is now, and warnings about that. A service that was
    /// given no name has that of the machine.
    ///
    /// # Errors
    /// The [`Mistakes`] of a password that cannot be read or sent.
    pub fn store_with_password(&self, env: &Environment) -> Result<(store::Settings, Vec<Mistake>), Mistakes> {
        let report = Report::new(None);
        let mut settings = self.store.clone();
        if settings.sharing.name.is_empty() {
            settings.sharing.name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        }
        if let (Some(server), Some(source)) = (&self.store.server, &self.store_password) {
            settings.server = source.read("[store]: password", env, &report).and_then(|password| {
                let with_password = server.clone().with_password(password);
                with_password.map_err(|error| report.mistake(&Place::Whole, format!("[store]: url {error}"))).ok()
            });
        }
        report.finish(Some(settings))
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
                provider.secrets().into_iter().filter_map(|source| source.read(&format!("provider `{name}`: secret"), env, &report));
            (name.clone(), secrets.collect())
        });
        let providers = providers.collect();
        let (webhooks, warnings) = report.finish(Some(webhooks))?;
        Ok(Secrets { webhooks, providers, warnings })
    }
}

fn resolve(webhook: &Settings, env: &Environment, report: &Report) -> WebhookSecrets {
    let read = |what: &str, source: &SecretSource| source.read(&format!("webhook `{}`: {what}", webhook.shown()), env, report);
    let signing = webhook.secrets.iter().filter_map(|source| {
        let text = read("secret", source)?;
        let named = |message: &str| format!("webhook `{}`: secret in {}: {message}", webhook.shown(), source.place());
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
