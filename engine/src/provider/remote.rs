//! A service that answers over HTTP, behind its cache.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use inventory::{Answer, Inventory, Proof, Question};
use posture::identity::{DeviceId, IdentifierKind};
use posture::secret::Secret;
use posture::shown::counted;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::configured::{ProviderSettings, RemoteSettings};
use super::source::{Context, Failure, Provider};
use crate::cache::{self, Cache, Looked};

/// A service behind its cache, and the settings that it was opened with.
#[derive(Debug)]
pub(super) struct Remote {
    settings: RemoteSettings,
    secrets: Vec<Secret>,
    /// The client by which the cache asks, once [`Provider::take_effect`] was called.
    inventory: Arc<dyn Inventory>,
    cache: Arc<Cache>,
    /// The reading task of the cache, shared as the cache is.
    sweeping: Arc<Sweeping>,
    runtime: Handle,
}

/// The task that reads the lists and the feed of one cache. It begins when the first provider of the cache takes effect.
#[derive(Debug, Default)]
struct Sweeping(OnceLock<EndOnDrop>);

/// A task that ends when its owner is dropped.
#[derive(Debug)]
struct EndOnDrop(JoinHandle<()>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Remote {
    /// Makes the client of a service, and the cache before it: that of `before` where both ask the same service for the same.
    ///
    /// # Errors
    /// [`Failure::Service`].
    pub(super) fn open(
        name: &str,
        settings: &RemoteSettings,
        secrets: &[Secret],
        before: Option<&Self>,
        context: &Context,
    ) -> Result<Self, Failure> {
        let inventory = settings.service.open(&settings.endpoint, secrets).map_err(Failure::Service)?;
        let runtime = Handle::try_current().map_err(|error| Failure::Service(error.to_string()))?;
        let bounds = cache::Settings {
            cache: settings.cache,
            limits: settings.limits,
            connections: settings.endpoint.connections,
            sync: settings.sync,
        };
        let (cache, sweeping) = match before {
            // Credentials of the service and of its events say nothing of its devices, so what is known stays.
            Some(before) if before.bounds() == bounds && before.asks_as(settings) => {
                (Arc::clone(&before.cache), Arc::clone(&before.sweeping))
            }
            Some(before) if before.asks_as(settings) => {
                (Arc::new(before.cache.with_settings(bounds, Arc::clone(&inventory))), Arc::default())
            }
            _ => {
                let cache = Cache::new(name, bounds, Arc::clone(&inventory), Arc::clone(&context.metrics), runtime.clone());
                let cache = cache.telling(context.acquaintances.clone()).stripping(settings.placeholders.clone());
                // What the settings say of secrets is where these are, and two accounts may see other devices.
                let accounts = fingerprint(secrets);
                let lists_as = format!("{:?} {:?} {accounts:04x}", settings.service, settings.endpoint.base_url);
                (Arc::new(cache.among(context.fleet.common()).listing_as(&lists_as)), Arc::default())
            }
        };
        context.fleet.add(&cache);
        Ok(Self { settings: settings.clone(), secrets: secrets.to_vec(), inventory, cache, sweeping, runtime })
    }

    /// The answer within the mode of the question: a record that the mode does not mean counts as not found. The cache keeps
    /// that record for questions of another mode.
    fn within_mode(&self, question: &Question, looked: Looked) -> Looked {
        match &looked.answer {
            Answer::Found(record) if !self.settings.service.counts(record, question.hint) => {
                // The evidence stays, since the answer rests on that record.
                Looked { answer: Answer::NotFound, ..looked }
            }
            _ => looked,
        }
    }

    /// Whether these settings ask the same service the same about a device, and read its answers alike.
    fn asks_as(&self, settings: &RemoteSettings) -> bool {
        self.settings.service == settings.service
            && self.settings.endpoint.base_url == settings.endpoint.base_url
            && self.settings.placeholders == settings.placeholders
    }

    fn bounds(&self) -> cache::Settings {
        cache::Settings {
            cache: self.settings.cache,
            limits: self.settings.limits,
            connections: self.settings.endpoint.connections,
            sync: self.settings.sync,
        }
    }
}

#[async_trait]
impl Provider for Remote {
    fn has(&self, settings: &ProviderSettings, secrets: &[Secret]) -> bool {
        matches!(settings, ProviderSettings::Remote(settings) if self.settings == *settings && self.secrets == secrets)
    }

    async fn lookup(&self, question: &Question, terms: cache::Terms) -> Looked {
        self.within_mode(question, self.cache.lookup(question, terms).await)
    }

    fn stands(&self, device: &DeviceId, looked: &Looked) -> bool {
        self.cache.stands(device, looked)
    }

    fn is_current(&self, device: &DeviceId, looked: &Looked) -> bool {
        self.cache.is_current(device, looked)
    }

    fn is_asked_by(&self, kind: IdentifierKind) -> bool {
        self.cache.is_asked_by(kind)
    }

    fn take_effect(&self, wanted: cache::Wanted) {
        self.cache.replace_inventory(Arc::clone(&self.inventory));
        self.cache.want(wanted);
        self.sweeping.0.get_or_init(|| EndOnDrop(self.runtime.spawn(Arc::clone(&self.cache).keep_swept())));
    }

    fn cache(&self) -> Option<&Arc<Cache>> {
        Some(&self.cache)
    }

    fn push(&self) -> Option<(&Proof, &Secret)> {
        Some((&self.settings.push.as_ref()?.proof, self.secrets.last()?))
    }

    fn reload(&self, name: &str, accept_shrink: bool) -> Result<String, Failure> {
        let remembered = counted(self.len(), "device");
        if accept_shrink {
            self.cache.accept_shrink();
            return Ok(format!("{remembered} remembered; it is listed again now"));
        }
        match self.pending_shrink(name) {
            // The fault is the last list's, and none of this reload.
            Some(pending) => Ok(format!("{remembered} remembered; {pending}")),
            None => Ok(format!("{remembered} remembered")),
        }
    }

    fn pending_shrink(&self, name: &str) -> Option<String> {
        Some(format!("{}; {}", self.cache.pending_shrink()?, cache::accept(name)))
    }

    fn len(&self) -> usize {
        usize::try_from(self.cache.len()).unwrap_or(usize::MAX)
    }
}
/// Two bytes of a digest of secrets: enough to tell accounts apart, and too few to find a secret by.
fn fingerprint(secrets: &[Secret]) -> u16 {
    let mut digest = Sha256::new();
    for secret in secrets {
        digest.update(secret.expose().len().to_be_bytes());
        digest.update(secret.expose());
    }
    let [first, second, ..] = <[u8; 32]>::from(digest.finalize());
    u16::from_be_bytes([first, second])
}
