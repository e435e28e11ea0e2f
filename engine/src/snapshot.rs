//! The snapshot that a decision reads: webhooks, plans and providers of one moment.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use posture::identity::DeviceId;
use settings::words::no_such;

use crate::cache::Wanted;
use crate::plan::Plan;
use crate::provider::Provider;
use crate::replay::{Judged, Reaches};
use crate::webhooks::Webhook;
use inventory::Placeholders;

/// One consistent state of webhooks, plans and providers. It never changes; another one takes its place.
#[derive(Debug)]
pub struct Snapshot {
    /// Number of the snapshot: it grows with every change of what the filter must know.
    pub revision: u64,
    /// Revision of the set of webhooks that the filter is told, once it was asked for.
    pub told: OnceLock<u64>,
    /// Texts that identify no device.
    pub placeholders: Placeholders,
    /// The webhooks, by id.
    pub webhooks: BTreeMap<Arc<str>, Arc<Webhook>>,
    /// The plan of each `[policy.<name>]`, by name.
    pub plans: BTreeMap<Arc<str>, Arc<Plan>>,
    /// The providers, by name; each swaps its own content.
    pub providers: BTreeMap<Arc<str>, Arc<dyn Provider>>,
    /// What plans and webhooks want of each provider.
    pub wanted: BTreeMap<Arc<str>, Wanted>,
    /// The greatest age of what is sent to a webhook.
    pub reaches: Reaches,
}

impl Snapshot {
    /// The plan of the policy of this name; `None` where there is none, or where the device is a placeholder by now.
    pub fn plan_for(&self, policy: &str, device: &DeviceId) -> Option<Arc<Plan>> {
        let is_somebody = !self.placeholders.has(Some(device.kind()), device.normal());
        self.plans.get(policy).filter(|_| is_somebody).cloned()
    }

    /// The text for people where no provider has the given name.
    pub fn no_provider(&self, given: &str) -> String {
        no_such("provider", given, &self.providers.keys().map(|name| &**name).collect::<Vec<_>>())
    }

    /// Every webhook, as the reaches judge it.
    pub fn judged(&self) -> impl Iterator<Item = Judged<'_>> {
        self.webhooks.values().map(|webhook| webhook.judged())
    }

    /// Puts the providers of this snapshot in force. It is called once the snapshot is sure to be used; where it is refused,
    /// the providers go on by the one before.
    pub fn take_effect(&self) {
        for (name, provider) in &self.providers {
            provider.take_effect(self.wanted.get(name).cloned().unwrap_or_default());
        }
    }
}
