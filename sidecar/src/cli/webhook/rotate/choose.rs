//! Choice of the webhook that is to go, in the configuration and in step-ca.

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::config::Config;
use engine::webhooks::Settings;

/// A provisioner, as far as it is needed, in the JSON of step-ca.
#[derive(Debug, Deserialize)]
pub(super) struct Provisioner {
    pub(super) name: String,
    #[serde(default)]
    pub(super) options: Options,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Options {
    #[serde(default)]
    pub(super) webhooks: Vec<Hook>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) url: String,
    #[serde(default)]
    pub(super) cert_type: String,
    #[serde(rename = "disableTLSClientAuth", default)]
    pub(super) disable_tls_client_auth: bool,
}

/// Chooses the webhook of the configuration that is to go, and finds the same one in step-ca.
///
/// # Errors
/// Where there is none, or several of which none was named.
pub(super) fn choose<'c>(
    id: Option<&str>,
    config: &'c Config,
    provisioners: &'c [Provisioner],
) -> anyhow::Result<(&'c Settings, &'c Provisioner, &'c Hook)> {
    let in_step_ca = |id: &str| {
        let mut hooks =
            provisioners.iter().flat_map(|provisioner| provisioner.options.webhooks.iter().map(move |hook| (provisioner, hook)));
        hooks.find(|(_, hook)| hook.id == id)
    };
    if let Some(id) = id {
        let called: Vec<_> = config.webhooks_called(id).collect();
        let webhook = match called.as_slice() {
            [] => bail!("{}", config.no_webhook(id)),
            [webhook] => *webhook,
            several => bail!("`{id}` has several ids: name the one that is to go, one of {}", ids(several.iter().copied())),
        };
        let id = webhook.id.as_str();
        let (provisioner, hook) = in_step_ca(id).with_context(|| {
            format!("no provisioner of step-ca has a webhook with the id `{id}`: take it out of the configuration, or see whether this is what the right CA listed")
        })?;
        return Ok((webhook, provisioner, hook));
    }
    let both: Vec<_> = config.webhooks.iter().filter_map(|webhook| in_step_ca(&webhook.id).map(|found| (webhook, found))).collect();
    match both.as_slice() {
        [(webhook, (provisioner, hook))] => Ok((*webhook, *provisioner, *hook)),
        [] => bail!(
            "no webhook of the configuration is one of step-ca's; it has {}: see whether this is what the right CA listed",
            ids(config.webhooks.iter())
        ),
        several => bail!(
            "there are several webhooks: name the one that is to go by its id, one of {}",
            ids(several.iter().map(|(webhook, _)| *webhook))
        ),
    }
}

fn ids<'w>(webhooks: impl Iterator<Item = &'w Settings>) -> String {
    webhooks.map(|webhook| format!("`{}`", webhook.id)).collect::<Vec<_>>().join(", ")
}
