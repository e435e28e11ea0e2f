//! What the service knows at one moment, and how it is replaced while requests go on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use arc_swap::{ArcSwap, Guard};
use posture::caller::Callers;
use posture::credential::Credentials;
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::Fields;
use posture::secret::Secret;
use posture::verify::SigningKeys;
use tokio::sync::watch;

use crate::cache::{Acquaintances, Circuit, Wanted};
use crate::clock;
use crate::config::{self, Combine, Config, Enforcement, Environment, OnNotFound, OnUnavailable};
use crate::decide::{Link, Own, Plan};
use crate::evaluate::{self, Peers};
use crate::files;
use crate::locks::Locks;
use crate::metrics::{Metrics, ProviderLabel, SubjectLabel, WebhookLabel, Word};
use crate::provider::file::Fingerprint;
use crate::provider::{Context, Provider};
use crate::replay::{Judged, Reaches, ReplayMemory, Signer};
use crate::server::Certificates;
use crate::store::{Store, StoreError};

/// One consistent state of the world. It never changes; another one takes its place.
#[derive(Debug)]
pub struct Snapshot {
    /// Grows with every change of what the filter must know.
    pub revision: u64,
    /// What the filter is told as the revision of that.
    pub told: OnceLock<u64>,
    /// As it was read.
    pub config: Arc<Config>,
    /// By id.
    pub webhooks: BTreeMap<Arc<str>, Arc<Webhook>>,
    /// `[policy.<name>]` by name, with the providers that it asks.
    pub plans: BTreeMap<Arc<str>, Arc<Plan>>,
    /// By name; each swaps its own content.
    pub providers: BTreeMap<Arc<str>, Arc<Provider>>,
    /// What plans and webhooks want of each provider.
    pub wanted: BTreeMap<Arc<str>, Wanted>,
    /// For questions over TCP, where they are taken; they swap their own content.
    pub certificates: Option<Arc<Certificates>>,
    /// How old what is sent to a webhook may be.
    pub reaches: Reaches,
}

/// One webhook, ready to judge by.
#[derive(Debug)]
pub struct Webhook {
    /// `X-Smallstep-Webhook-ID`.
    pub id: Arc<str>,
    /// As it was configured.
    pub settings: config::Webhook,
    /// The secrets, for the filter.
    pub secrets: Vec<Secret>,
    /// Which secrets they are.
    pub signers: Vec<Signer>,
    /// The secrets, ready to verify with.
    pub keys: SigningKeys,
    /// The credentials that the filter asks for.
    pub credentials: Credentials,
    /// Whom to ask about its devices, and what to demand.
    pub plan: Arc<Plan>,
    started: Instant,
    warned: AtomicU64,
}

/// The secrets of one webhook, read from where the configuration says.
#[derive(Clone, Debug, Default)]
pub struct Material {
    /// HMAC secrets, newest first.
    pub secrets: Vec<Secret>,
    /// What the `Authorization` header must be.
    pub credentials: Credentials,
}

/// Every secret of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Materials {
    /// Webhooks in its order.
    pub webhooks: Vec<Material>,
    /// Providers by name, each as [`config::Provider::secrets`] lists them.
    pub providers: BTreeMap<String, Vec<Secret>>,
}

impl Webhook {
    /// Puts a webhook together.
    pub fn new(settings: config::Webhook, material: Material, plan: Arc<Plan>) -> Self {
        let signers = if settings.unsigned {
            // Whoever calls can write what he likes.
            vec![Signer::none(&settings.id)]
        } else {
            material.secrets.iter().filter_map(Signer::of).collect()
        };
        Self {
            id: settings.id.as_str().into(),
            signers,
            keys: if settings.unsigned { SigningKeys::unsigned() } else { SigningKeys::new(&material.secrets) },
            secrets: material.secrets,
            credentials: material.credentials,
            plan,
            settings,
            started: Instant::now(),
            warned: AtomicU64::new(0),
        }
    }

    /// As it is judged by what it is signed with.
    pub fn judged(&self) -> Judged<'_> {
        (&self.signers, self.settings.window, self.settings.deadline)
    }

    /// Whether a warning about this webhook is due: once a minute, and whoever asks first gets it.
    pub fn may_warn(&self, now: Instant) -> bool {
        let minute = now.saturating_duration_since(self.started).as_secs() / 60 + 1;
        self.warned.fetch_max(minute, Ordering::Relaxed) < minute
    }
}

/// Where the service takes its configuration from.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Reads the configuration.
    ///
    /// # Errors
    /// Every mistake, in words for the operator.
    fn config(&self) -> Result<Config, String>;

    /// Reads every secret.
    ///
    /// # Errors
    /// Which one cannot be read, and why; never a word of it.
    fn materials(&self, config: &Config) -> Result<Materials, String>;

    /// Files that are part of the configuration itself.
    fn files(&self) -> Vec<PathBuf>;
}

/// A configuration from a file, or from the environment alone.
#[derive(Debug)]
pub struct Configured {
    path: Option<PathBuf>,
    environment: Environment,
    files: Mutex<Vec<PathBuf>>,
    /// Those that were read. What one of them said must not be unsaid by its being moved away for a moment.
    read: Mutex<BTreeSet<PathBuf>>,
}

impl Configured {
    /// Reads `path`, or without it what [`Config::load`] finds.
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

    fn files(&self) -> Vec<PathBuf> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What became of one subject of a reload.
#[derive(Clone, Debug)]
pub struct Reload {
    /// `configuration`, `secrets`, `certificates`, or the name of a provider.
    pub subject: Arc<str>,
    /// What was applied, or why the old one stays.
    pub outcome: Result<String, String>,
}

/// What all ways in share, for as long as the process lives.
#[derive(Debug)]
pub struct Runtime {
    snapshot: ArcSwap<Snapshot>,
    /// As it was at the start: by it goes what no reload changes.
    began: Arc<Config>,
    revision: watch::Sender<u64>,
    source: Box<dyn Source>,
    /// One reload at a time; what it last saw of the files.
    watched: Mutex<Watched>,
    failures: Mutex<BTreeMap<Arc<str>, String>>,
    /// Equal webhooks.
    pub memory: Arc<ReplayMemory>,
    /// Certificates that were read.
    pub peers: Peers,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What all providers share.
    context: Context,
    /// What outlives the process; none until [`Runtime::keep_in`] gives one.
    pub store: Store,
    /// What operators rule about single devices.
    pub locks: Arc<Locks>,
}

impl Runtime {
    /// Reads everything for the first time. Blocks while files are read.
    ///
    /// # Errors
    /// In words for the operator: at the start nothing may be wrong.
    pub fn start(source: Box<dyn Source>, metrics: Arc<Metrics>) -> Result<Self, String> {
        Self::start_with(source, metrics, &BTreeMap::new())
    }

    /// As [`Self::start`], with providers that are open already.
    pub(crate) fn start_with(
        source: Box<dyn Source>,
        metrics: Arc<Metrics>,
        providers: &BTreeMap<Arc<str>, Arc<Provider>>,
    ) -> Result<Self, String> {
        let before = fingerprints(&source.files());
        let config = source.config()?;
        let files = source.files();
        // Where the file is named by a variable only, it is known once it was read.
        let configuration = if before.len() == files.len() { before } else { fingerprints(&files) };
        let secrets = fingerprints(&config.secret_files());
        let materials = source.materials(&config)?;
        let context = Context { metrics: Arc::clone(&metrics), acquaintances: Acquaintances::default() };
        let locks = Arc::<Locks>::default();
        let learning = Arc::clone(&locks);
        context.acquaintances.tell(move |record| learning.learned(&record.identifiers().collect::<Vec<_>>()));
        let snapshot = Snapshot::build(1, config, materials, (providers, None), &context)?;
        snapshot.take_effect();
        let memory = Arc::new(ReplayMemory::new(snapshot.config.replay));
        memory.set_bounds(snapshot.config.replay, snapshot.config.tables());
        let runtime = Self {
            memory,
            revision: watch::Sender::new(snapshot.revision),
            began: Arc::clone(&snapshot.config),
            snapshot: ArcSwap::from_pointee(snapshot),
            source,
            watched: Mutex::new(Watched { configuration, secrets, ..Watched::default() }),
            failures: Mutex::default(),
            peers: Peers::default(),
            metrics,
            context,
            store: Store::none(),
            locks,
        };
        let certificates = runtime.snapshot().certificates.as_ref().map(|_| Arc::from(CERTIFICATES));
        let subjects = [CONFIGURATION, SECRETS].map(Arc::from).into_iter().chain(certificates);
        for subject in subjects.chain(runtime.snapshot().providers.keys().cloned()) {
            drop(runtime.metrics.reload_failures.get_or_create(&SubjectLabel { subject: Word(Arc::clone(&subject)) }));
            runtime.applied(&subject);
        }
        Ok(runtime)
    }

    /// Takes the rulings that a store has, and keeps new ones and decisions there.
    ///
    /// # Errors
    /// Where the rulings cannot be read: without them the devices that are locked would be let in.
    pub async fn keep_in(&mut self, store: Store) -> Result<(), StoreError> {
        let now = clock::now();
        // In place: whoever learns what belongs together has these locks already.
        self.locks.keep_in(store.clone(), now).await?;
        self.store = store;
        evaluate::recall(self).await?;
        Ok(())
    }

    /// The state of this moment.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Wakes on every new revision.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Reads everything again. Blocks while files are read.
    ///
    /// `accept_shrink` names providers whose file may lose more rows than it usually may.
    pub fn reload(&self, accept_shrink: &[String]) -> Vec<Reload> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever asks for it is told all of it.
        watched.again.clear();
        let mut results = self.reload_configuration(&mut watched);
        results.extend(self.snapshot().certificates.as_ref().map(|certificates| self.reload_certificates(&mut watched, certificates)));
        for (name, provider) in &self.snapshot().providers {
            let accepts = accept_shrink.iter().any(|accepted| **accepted == **name);
            results.push(self.reload_provider(&mut watched, name, provider, accepts));
        }
        // Whoever takes a right away there has to hear that it still holds.
        let waiting = wait_for_a_start(&self.began, &self.snapshot().config);
        results.extend(waiting.into_iter().map(|subject| Reload { subject: subject.into(), outcome: Err(WAITS.to_owned()) }));
        results
    }

    /// Reads again what changed since it was last read, good or bad, and what the system could not read. Costs a `stat` or two a
    /// file where there is none of these.
    ///
    /// A file that is another than at the last call may still be written to: it waits for the next one.
    pub fn reload_changed(&self) -> Vec<Reload> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let moving = watched.look(self.source.files().into_iter().chain(self.snapshot().config.watched_files()));
        let still = |files: &[PathBuf]| !files.iter().any(|file| moving.contains(file));
        let configuration = self.source.files();
        let secrets = self.snapshot().config.secret_files();
        let mut results = Vec::new();
        let due = |watched: &Watched| {
            watched.again.contains(CONFIGURATION)
                || fingerprints(&configuration) != watched.configuration
                || watched.wants_another_try(&moving)
        };
        if still(&configuration) && due(&watched) {
            results = self.reload_configuration(&mut watched);
        } else if still(&secrets) && watched.secrets_are_due(&secrets) {
            results.push(self.reload_secrets(&mut watched));
        }
        if let Some(certificates) = &self.snapshot().certificates
            && still(certificates.files())
            && (watched.again.contains(CERTIFICATES) || certificates.changed())
        {
            results.push(self.reload_certificates(&mut watched, certificates));
        }
        for (name, provider) in &self.snapshot().providers {
            let due = watched.again.contains(&**name) || provider.changed();
            if due && provider.file().is_none_or(|file| !moving.contains(file)) {
                results.push(self.reload_provider(&mut watched, name, provider, false));
            }
        }
        results
    }

    /// What could not be applied and has not been since, by subject.
    pub fn failures(&self) -> BTreeMap<Arc<str>, String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the metrics of providers.
    pub fn count_providers(&self) {
        for (name, provider) in &self.snapshot().providers {
            let entries = i64::try_from(provider.len()).unwrap_or(i64::MAX);
            let label = ProviderLabel { provider: Word(Arc::clone(name)) };
            self.metrics.provider_entries.get_or_create(&label).set(entries);
            self.metrics.provider_shrink_pending.get_or_create(&label).set(i64::from(provider.pending_shrink(name).is_some()));
            let Some(cache) = provider.cache() else { continue };
            let circuit = match cache.circuit() {
                Circuit::Closed => 0,
                Circuit::HalfOpen => 1,
                Circuit::Open => 2,
            };
            self.metrics.provider_circuit.get_or_create(&label).set(circuit);
            if let Some(silence) = cache.answered_ago() {
                self.metrics.provider_silence.get_or_create(&label).set(silence.as_secs_f64());
            }
        }
    }

    /// Lists that wait for an operator, since they lost more than they may: what each lost, and the command that takes it.
    pub fn pending_shrinks(&self) -> Vec<(Arc<str>, String)> {
        let snapshot = self.snapshot();
        snapshot.providers.iter().filter_map(|(name, provider)| Some((Arc::clone(name), provider.pending_shrink(name)?))).collect()
    }

    /// Providers and how many devices they hold, in words.
    pub fn provider_states(&self) -> Vec<(Arc<str>, String)> {
        self.snapshot().providers.iter().map(|(name, provider)| (Arc::clone(name), format!("{} devices", provider.len()))).collect()
    }

    /// Configuration and secrets are applied together, since one names the other.
    fn reload_configuration(&self, watched: &mut Watched) -> Vec<Reload> {
        watched.configuration = fingerprints(&self.source.files());
        let before = self.snapshot.load_full();
        let (config, failed) = files::attempt(|| self.source.config());
        let config = match config {
            Ok(config) => config,
            Err(error) => {
                let mut results = vec![self.kept(watched, CONFIGURATION, error, failed)];
                // The secrets of the old one may have changed all the same.
                if watched.secrets_are_due(&before.config.secret_files()) {
                    results.push(self.reload_secrets(watched));
                }
                return results;
            }
        };
        for subject in wait_for_a_start(&self.began, &config) {
            tracing::warn!(subject, "{WAITS}");
        }
        if before.config.envoy != config.envoy || of_envoy(&before.config) != of_envoy(&config) {
            tracing::warn!(
                "[envoy], the largest `body_limit` or `[provider.<name>.push]` changed: call `stepward envoy-config` again, and start Envoy anew"
            );
        }
        if config.envoy.client_ca.is_some() && callers(&before.config) != callers(&config) {
            tracing::warn!("`callers` changed: call `stepward envoy-config` again, or Envoy ends the handshake of those that are new");
        }
        let wanted: Vec<_> = config.watched_files().into_iter().map(|path| (Fingerprint::of(&path), path)).collect();
        let secrets = fingerprints(&config.secret_files());
        let (materials, failed) = files::attempt(|| self.source.materials(&config));
        let materials = match materials {
            Ok(materials) => materials,
            Err(error) => {
                watched.wanted = wanted;
                let kept = self.kept(watched, CONFIGURATION, "its secrets cannot be read".to_owned(), failed);
                return vec![kept, self.kept(watched, SECRETS, error, failed)];
            }
        };
        let revision = before.revision.saturating_add(1);
        let (built, failed) = files::attempt(|| Snapshot::build(revision, config, materials, before.held(), &self.context));
        match built {
            Ok(snapshot) => {
                watched.wanted.clear();
                watched.secrets = secrets;
                let webhooks = snapshot.webhooks.len();
                self.replace(snapshot);
                [(CONFIGURATION, format!("{webhooks} webhooks")), (SECRETS, "read".to_owned())]
                    .map(|(subject, detail)| self.taken(watched, subject, detail))
                    .into()
            }
            Err(error) => {
                watched.wanted = wanted;
                vec![self.kept(watched, CONFIGURATION, error, failed)]
            }
        }
    }

    fn reload_secrets(&self, watched: &mut Watched) -> Reload {
        let before = self.snapshot.load_full();
        watched.secrets = fingerprints(&before.config.secret_files());
        let (built, failed) = files::attempt(|| {
            let materials = self.source.materials(&before.config)?;
            Snapshot::build(before.revision.saturating_add(1), (*before.config).clone(), materials, before.held(), &self.context)
        });
        match built {
            Ok(snapshot) => {
                self.replace(snapshot);
                self.taken(watched, SECRETS, "read".to_owned())
            }
            Err(error) => self.kept(watched, SECRETS, error, failed),
        }
    }

    fn reload_certificates(&self, watched: &mut Watched, certificates: &Certificates) -> Reload {
        match files::attempt(|| certificates.reload()) {
            (Ok(detail), _) => self.taken(watched, CERTIFICATES, detail),
            (Err(error), failed) => self.kept(watched, CERTIFICATES, error, failed),
        }
    }

    fn reload_provider(&self, watched: &mut Watched, name: &str, provider: &Provider, accept_shrink: bool) -> Reload {
        match files::attempt(|| provider.reload(name, accept_shrink)) {
            (Ok(detail), _) => self.taken(watched, name, detail),
            (Err(error), failed) => self.kept(watched, name, error, failed),
        }
    }

    /// Puts another state in place and tells every stream.
    fn replace(&self, mut snapshot: Snapshot) {
        let revision = snapshot.revision;
        snapshot.reaches = self.snapshot().reaches.reloaded(snapshot.judged());
        snapshot.take_effect();
        // The clock that a caller had at the last webhook of an id that is gone would stand there for ever, and alert.
        for id in self.snapshot().webhooks.keys().filter(|id| !snapshot.webhooks.contains_key(*id)) {
            self.metrics.clock_skew.remove(&WebhookLabel { webhook: Word(Arc::clone(id)) });
        }
        self.memory.set_bounds(snapshot.config.replay, snapshot.config.tables());
        self.snapshot.store(Arc::new(snapshot));
        self.revision.send_replace(revision);
    }

    fn applied(&self, subject: &Arc<str>) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(subject);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.metrics.reload_success.get_or_create(&SubjectLabel { subject: Word(Arc::clone(subject)) }).set(now.as_secs_f64());
    }

    fn taken(&self, watched: &mut Watched, subject: &str, detail: String) -> Reload {
        let subject = Arc::from(subject);
        watched.again.remove(&subject);
        self.applied(&subject);
        tracing::info!(subject = &*subject, detail, "reloaded");
        Reload { subject, outcome: Ok(detail) }
    }

    /// `failed`: the system could not read it. It is tried again at each look, and logged again only if the error is another.
    fn kept(&self, watched: &mut Watched, subject: &str, error: String, failed: bool) -> Reload {
        let subject: Arc<str> = Arc::from(subject);
        let tried = if failed { !watched.again.insert(Arc::clone(&subject)) } else { watched.again.remove(&subject) };
        let before = self.failures.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&subject), error.clone());
        if !tried || before.as_ref() != Some(&error) {
            tracing::error!(subject = &*subject, error, "not reloaded; what was there before stays");
            self.metrics.reload_failures.get_or_create(&SubjectLabel { subject: Word(Arc::clone(&subject)) }).inc();
        }
        Reload { subject, outcome: Err(error) }
    }
}

/// Providers and certificates of the state before; those whose settings are unchanged are reused.
type Held<'h> = (&'h BTreeMap<Arc<str>, Arc<Provider>>, Option<&'h Arc<Certificates>>);

impl Snapshot {
    /// The policy of this name, for a device that nobody counts among the placeholders by now.
    pub fn plan_for(&self, policy: &str, device: &DeviceId) -> Option<Arc<Plan>> {
        let is_somebody = !self.config.placeholders.has(Some(device.kind()), device.normal());
        self.plans.get(policy).filter(|_| is_somebody).cloned()
    }

    const fn held(&self) -> Held<'_> {
        (&self.providers, self.certificates.as_ref())
    }

    /// Every webhook, as it is judged by what it signs with.
    fn judged(&self) -> impl Iterator<Item = Judged<'_>> {
        self.webhooks.values().map(|webhook| webhook.judged())
    }

    /// Makes providers go by this state. It is called once the state is sure to be used: where it is refused, they go on by the
    /// state before.
    fn take_effect(&self) {
        for (name, provider) in &self.providers {
            provider.take_effect(self.wanted.get(name).cloned().unwrap_or_default());
        }
    }

    /// Puts a state together. Providers and certificates whose settings are unchanged are reused.
    ///
    /// # Errors
    /// What is wrong, for people. Nothing that is in use has changed then.
    fn build(
        revision: u64,
        config: Config,
        materials: Materials,
        (before, certificates): Held<'_>,
        context: &Context,
    ) -> Result<Self, String> {
        let mut providers = BTreeMap::new();
        for (name, settings) in &config.providers {
            let secrets = materials.providers.get(name).map(Vec::as_slice).unwrap_or_default();
            let provider = match before.get(name.as_str()) {
                Some(provider) if provider.has(settings, secrets) => Arc::clone(provider),
                _ => Arc::new(
                    Provider::open(name, settings, secrets, before.get(name.as_str()).map(|before| &**before), context)
                        .map_err(|error| format!("provider `{name}`: {error}"))?,
                ),
            };
            providers.insert(Arc::from(name.as_str()), provider);
        }
        // A fake has no settings to be opened from.
        #[cfg(test)]
        providers.extend(
            before
                .iter()
                .filter(|(_, provider)| matches!(***provider, Provider::Fake(_)))
                .map(|(name, provider)| (Arc::clone(name), Arc::clone(provider))),
        );
        let links = Links::new(&config, &providers)?;
        let plans: BTreeMap<Arc<str>, Arc<Plan>> =
            config.policies.iter().map(|(name, policy)| (Arc::from(name.as_str()), Arc::new(links.of_policy(name, policy)))).collect();
        let webhooks: BTreeMap<_, _> = config
            .webhooks
            .iter()
            .zip(materials.webhooks)
            .map(|(settings, material)| {
                let webhook = Webhook::new(settings.clone(), material, Arc::new(links.of_webhook(settings, &plans)));
                (Arc::clone(&webhook.id), Arc::new(webhook))
            })
            .collect();
        let kinds: BTreeSet<_> = config.webhooks.iter().map(|webhook| webhook.identifier).chain([IdentifierKind::Serial]).collect();
        let mut wanted = BTreeMap::new();
        for name in providers.keys() {
            let asking = plans.values().chain(webhooks.values().map(|webhook| &webhook.plan));
            let needs = asking.flat_map(|plan| plan.links.iter().filter(|link| link.name == *name).map(|link| plan.need(link)));
            let fields = needs.fold(Fields::NONE, Fields::union);
            wanted.insert(Arc::clone(name), Wanted { fields, kinds: kinds.iter().copied().collect() });
        }
        let certificates = match &config.query.tcp {
            None => None,
            Some(tcp) => Some(match certificates.filter(|certificates| certificates.are_of(tcp)) {
                Some(certificates) => Arc::clone(certificates),
                None => Arc::new(Certificates::open(tcp).map_err(|error| format!("[query]: {error}"))?),
            }),
        };
        let reaches = Reaches::new(webhooks.values().map(|webhook| webhook.judged()));
        Ok(Self { revision, told: OnceLock::new(), webhooks, plans, providers, wanted, certificates, reaches, config: Arc::new(config) })
    }
}

/// Providers with what their own settings demand, to make plans of.
struct Links(BTreeMap<Arc<str>, Link>);

impl Links {
    fn new(config: &Config, providers: &BTreeMap<Arc<str>, Arc<Provider>>) -> Result<Self, String> {
        let link = |(name, provider): (&Arc<str>, &Arc<Provider>)| {
            // Only a test has a provider without settings, and it demands nothing.
            let own = match config.providers.get(&**name) {
                Some(settings) => Own::new(settings).map_err(|error| format!("provider `{name}`: {error}"))?,
                None => Own::nothing()?,
            };
            Ok((Arc::clone(name), Link { name: Arc::clone(name), provider: Arc::clone(provider), own }))
        };
        providers.iter().map(link).collect::<Result<_, String>>().map(Self)
    }

    fn of(&self, names: &[String]) -> Vec<Link> {
        names.iter().filter_map(|name| self.0.get(name.as_str())).cloned().collect()
    }

    fn of_policy(&self, name: &str, policy: &config::Policy) -> Plan {
        Plan {
            policy: Some(name.into()),
            rules: Some(Arc::clone(&policy.policy)),
            links: self.of(&policy.providers),
            on_not_found: policy.on_not_found,
            on_unavailable: policy.on_unavailable,
            combine: policy.combine,
            enrich: policy.enrich,
            enforcement: Enforcement::Enforce,
        }
    }

    fn of_webhook(&self, webhook: &config::Webhook, plans: &BTreeMap<Arc<str>, Arc<Plan>>) -> Plan {
        match webhook.policy.as_deref().and_then(|name| plans.get(name)) {
            Some(plan) => Plan { enforcement: webhook.enforcement, ..(**plan).clone() },
            None => Plan {
                policy: None,
                rules: None,
                links: self.of(&webhook.providers),
                on_not_found: OnNotFound::Next,
                on_unavailable: OnUnavailable::Fail,
                combine: Combine::FirstFound,
                enrich: false,
                enforcement: webhook.enforcement,
            },
        }
    }
}

/// What the files were when they were last read.
#[derive(Debug, Default)]
struct Watched {
    configuration: Vec<Option<Fingerprint>>,
    secrets: Vec<Option<Fingerprint>>,
    /// What a configuration that could not be applied reads from: once one of these changes, it is tried again.
    wanted: Vec<(Option<Fingerprint>, PathBuf)>,
    /// What all of them were at the last look.
    looked: BTreeMap<PathBuf, Option<Fingerprint>>,
    /// Subjects that the system could not read: nothing that is seen of a file shows when that is over.
    again: BTreeSet<Arc<str>>,
}

impl Watched {
    /// Looks at the files, and returns those that are not what they were at the last look.
    fn look(&mut self, files: impl Iterator<Item = PathBuf>) -> BTreeSet<PathBuf> {
        let files = files.chain(self.wanted.iter().map(|(_, path)| path.clone()));
        let now = files.map(|path| (path.clone(), Fingerprint::of(&path))).collect();
        let before = std::mem::replace(&mut self.looked, now);
        self.looked.iter().filter(|(path, now)| before.get(*path) != Some(*now)).map(|(path, _)| path.clone()).collect()
    }

    fn secrets_are_due(&self, files: &[PathBuf]) -> bool {
        self.again.contains(SECRETS) || fingerprints(files) != self.secrets
    }

    fn wants_another_try(&self, moving: &BTreeSet<PathBuf>) -> bool {
        self.wanted.iter().any(|(seen, path)| !moving.contains(path) && Fingerprint::of(path) != *seen)
    }
}

fn fingerprints(files: &[PathBuf]) -> Vec<Option<Fingerprint>> {
    files.iter().map(|file| Fingerprint::of(file)).collect()
}

/// What no reload changes, and is other than at the start.
fn wait_for_a_start(began: &Config, now: &Config) -> Vec<&'static str> {
    let log = |config: &Config| (config.log.level.clone(), config.log.json);
    let query = |config: &Config| (config.query.tcp.as_ref().map(|tcp| tcp.address), config.query.reflection);
    let changed = [
        ("[listen]", began.listen != now.listen),
        ("[log]", log(began) != log(now)),
        ("[store]", began.store != now.store),
        ("address and reflection of [query]", query(began) != query(now)),
    ];
    changed.into_iter().filter_map(|(subject, changed)| changed.then_some(subject)).collect()
}

/// What of webhooks and providers stands in Envoy's configuration, besides the names of callers.
fn of_envoy(config: &Config) -> (Option<u32>, bool) {
    let takes_events = |provider: &config::Provider| matches!(provider, config::Provider::Remote(remote) if remote.push.is_some());
    (config.webhooks.iter().map(|webhook| webhook.body_limit).max(), config.providers.values().any(takes_events))
}

const WAITS: &str = "it was changed, and takes effect at the next start: until then the service goes by what it started with";

/// The names that any webhook lets in; `None` where one of them lets in every name.
fn callers(config: &Config) -> Option<BTreeSet<String>> {
    let named = |webhook: &config::Webhook| if let Callers::Named(names) = &webhook.callers { Some(names.clone()) } else { None };
    let names = config.webhooks.iter().map(named).collect::<Option<Vec<_>>>()?;
    Some(names.iter().flatten().map(ToString::to_string).collect())
}

const CONFIGURATION: &str = "configuration";
const SECRETS: &str = "secrets";
const CERTIFICATES: &str = "certificates";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cache::Terms;
    use crate::provider::Answer;
    use crate::provider::inventory::{Question, Way};

    struct Folder {
        folder: tempfile::TempDir,
        runtime: Runtime,
    }

    impl Folder {
        fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let args = crate::cli::init::InitArgs::new(folder.path().join("demo"));
            crate::cli::init::run(&args, &Environment::new(folder.path()), &mut Vec::new()).unwrap();
            let environment = Environment::new(folder.path().join("demo"));
            let source = Configured::new(Some("stepward.toml".into()), environment);
            let runtime = Runtime::start(Box::new(source), Arc::new(Metrics::default())).unwrap();
            Self { folder, runtime }
        }

        /// By renaming, so that the inode always differs, whatever the clock's grain.
        fn write(&self, name: &str, text: &str) {
            let path = self.folder.path().join("demo").join(name);
            let beside = path.with_extension("new");
            std::fs::write(&beside, text).unwrap();
            std::fs::rename(beside, path).unwrap();
        }

        fn read(&self, name: &str) -> String {
            std::fs::read_to_string(self.folder.path().join("demo").join(name)).unwrap()
        }

        fn look(&self) -> Vec<(String, bool)> {
            self.runtime.reload_changed().into_iter().map(|reload| (reload.subject.to_string(), reload.outcome.is_ok())).collect()
        }

        /// Twice, since a change has to stand still from one look to the next.
        fn tick(&self) -> Vec<(String, bool)> {
            [self.look(), self.look()].concat()
        }

        /// In place, as an editor or `cp` does.
        fn overwrite(&self, name: &str, text: &str) {
            std::fs::write(self.folder.path().join("demo").join(name), text).unwrap();
        }

        async fn knows(&self, device: &str) -> bool {
            let snapshot = self.runtime.snapshot.load_full();
            let device = DeviceId::new(IdentifierKind::Serial, device).unwrap();
            let question = Question { device, need: Fields::NONE, hint: None, deadline: tokio::time::Instant::now(), way: Way::Query };
            matches!(snapshot.providers.get("staff").unwrap().lookup(&question, Terms::default()).await.answer, Answer::Found(_))
        }
    }

    fn results(expected: &[(&str, bool)]) -> Vec<(String, bool)> {
        expected.iter().map(|(subject, applied)| ((*subject).to_owned(), *applied)).collect()
    }

    const DEVICE: &str = r#"{"devices":[{"identifier":"NEW","data":{}},{"identifier":"C02XL0GYJGH5","data":{}}]}"#;

    #[test]
    fn e16_a_reload_says_what_waits_for_the_next_start_as_long_as_it_waits() {
        let folder = Folder::start();
        let path = folder.folder.path().join("demo/stepward.toml");
        let began = std::fs::read_to_string(&path).unwrap();
        let reload = |text: &str| -> Vec<String> {
            std::fs::write(&path, text).unwrap();
            let results = folder.runtime.reload(&[]);
            assert!(results.iter().any(|result| &*result.subject == CONFIGURATION && result.outcome.is_ok()), "{results:?}");
            results.into_iter().filter(|result| result.outcome.is_err()).map(|result| result.subject.to_string()).collect()
        };
        assert_eq!(reload(&began), [""; 0]);
        let narrowed = began.replace("[listen]", "[listen]\nuids = { admin = [0] }");
        assert_ne!(narrowed, began);
        for _ in 0..2 {
            assert_eq!(reload(&narrowed), ["[listen]"], "the second time as well");
        }
        let more = format!("{narrowed}\n[log]\nlevel = \"debug\"\n[store]\nbind_keys = true\n[query]\nreflection = true\n");
        assert_eq!(reload(&more), ["[listen]", "[log]", "[store]", "address and reflection of [query]"]);
        assert_eq!(reload(&began), [""; 0], "what was taken back waits for nothing");
    }

    #[test]
    fn nothing_is_read_again_while_nothing_changes() {
        let service = Folder::start();
        assert_eq!(service.tick(), results(&[]));
        assert_eq!(service.runtime.snapshot().revision, 1);
    }

    #[tokio::test]
    async fn a_device_file_is_taken_up_and_a_bad_one_is_not() {
        let service = Folder::start();
        service.write("devices.json", DEVICE);
        assert_eq!(service.tick(), results(&[("staff", true)]));
        assert!(service.knows("new").await);
        service.write("devices.json", "{");
        assert_eq!(service.tick(), results(&[("staff", false)]));
        assert_eq!(service.tick(), results(&[]), "one bad file is one error");
        assert!(service.knows("new").await);
        assert_eq!(service.runtime.failures().len(), 1);
        service.write("devices.json", r#"{"devices":[]}"#);
        assert_eq!(service.tick(), results(&[("staff", false)]), "it lost all of its rows");
        let accepted = service.runtime.reload(&["staff".to_owned()]);
        assert!(accepted.iter().all(|reload| reload.outcome.is_ok()), "{accepted:?}");
        assert!(!service.knows("C02XL0GYJGH5").await);
        assert!(service.runtime.failures().is_empty());
    }

    #[test]
    fn a13_a_dotenv_file_that_was_read_and_is_gone_lifts_no_rule() {
        let folder = tempfile::tempdir().unwrap();
        let (path, away) = (folder.path().join(".env"), folder.path().join("away"));
        std::fs::write(folder.path().join("devices.csv"), "identifier\nC02\n").unwrap();
        let environment = [
            ("PROVIDER", "file"),
            ("FILE_PATH", "devices.csv"),
            ("FILE_TYPE", "csv"),
            ("TLS_CERT_PATH", "c"),
            ("TLS_KEY_PATH", "k"),
            ("WEBHOOK_IDS", "one"),
            ("WEBHOOK_SECRETS", "c2VjcmV0"),
        ];
        let environment = environment.iter().fold(Environment::new(folder.path()), |all, (name, value)| all.with(name, value));
        let source = Configured::new(None, environment);
        let level = || source.config().map(|config| config.log.level);
        assert_eq!(level().unwrap(), "info");
        assert_eq!(source.files(), std::slice::from_ref(&path), "it is looked for");
        std::fs::write(&path, "LOGGING_LEVEL=2").unwrap();
        assert_eq!(level().unwrap(), "debug");
        std::fs::rename(&path, &away).unwrap();
        for _ in 0..2 {
            assert!(level().unwrap_err().ends_with(".env was read before and is gone: put it back, or an empty file in its place"));
        }
        assert_eq!(source.files(), std::slice::from_ref(&path));
        std::fs::rename(&away, &path).unwrap();
        assert_eq!(level().unwrap(), "debug");
        std::fs::write(&path, "").unwrap();
        assert_eq!(level().unwrap(), "info");
    }

    #[tokio::test]
    async fn a_file_is_read_once_it_stands_still() {
        let service = Folder::start();
        service.look();
        for half in [r#"{"dev"#, r#"{"devices":[{"ident"#, r#"{"devices":[{"identifier":"NEW","data":{}},"#] {
            service.overwrite("devices.json", half);
            assert_eq!(service.look(), results(&[]), "it is half written");
        }
        service.overwrite("devices.json", DEVICE);
        assert_eq!(service.look(), results(&[]));
        assert_eq!(service.look(), results(&[("staff", true)]));
        assert!(service.knows("new").await);
        for half in ["bm90IHRoZ", "bm90IHRoZSBvb"] {
            service.overwrite("secrets/webhook", half);
            service.overwrite("stepward.toml", half);
            assert_eq!(service.look(), results(&[]));
        }
    }

    #[tokio::test]
    async fn a_device_file_that_vanishes_leaves_its_devices() {
        let service = Folder::start();
        std::fs::remove_file(service.folder.path().join("demo/devices.json")).unwrap();
        assert_eq!(service.tick(), results(&[("staff", false)]));
        assert_eq!(service.tick(), results(&[]));
        assert!(service.knows("C02XL0GYJGH5").await);
        service.write("devices.json", DEVICE);
        assert_eq!(service.tick(), results(&[("staff", true)]));
        assert!(service.runtime.failures().is_empty());
    }

    #[test]
    fn a_bad_device_file_at_the_start_is_named_with_its_mistakes() {
        let Folder { folder, .. } = Folder::start();
        std::fs::write(folder.path().join("demo/devices.json"), r#"{"devices":[{"identifier":"A"},{"identifier":"a","data":{}}]}"#)
            .unwrap();
        let source = Configured::new(Some("stepward.toml".into()), Environment::new(folder.path().join("demo")));
        let error = Runtime::start(Box::new(source), Arc::new(Metrics::default())).unwrap_err();
        assert!(error.contains("provider `staff`") && error.contains("devices.json:1:"), "{error}");
    }

    #[test]
    fn a_secret_is_taken_up_and_a_bad_one_is_not() {
        let service = Folder::start();
        service.write("secrets/webhook", "bm90IHRoZSBvbmU=");
        assert_eq!(service.tick(), results(&[("secrets", true)]));
        assert_eq!(service.runtime.snapshot().revision, 2);
        service.write("secrets/webhook", "!");
        assert_eq!(service.tick(), results(&[("secrets", false)]));
        assert_eq!(service.tick(), results(&[]));
        let secrets = service.runtime.snapshot().webhooks.values().next().unwrap().secrets.clone();
        assert_eq!(secrets, [Secret::new(b"not the one".to_vec())]);
    }

    #[test]
    fn a_configuration_is_taken_up_and_a_bad_one_is_not() {
        let service = Folder::start();
        let text = service.read("stepward.toml");
        service.write("stepward.toml", &text.replace("id = \"1", "id = \"2"));
        assert_eq!(service.tick(), results(&[("configuration", true), ("secrets", true)]));
        assert!(service.runtime.snapshot().webhooks.contains_key("21111111-2222-4333-8444-555555555555"));
        let revision = service.runtime.snapshot().revision;
        service.write("stepward.toml", "nonsense");
        assert_eq!(service.tick(), results(&[("configuration", false)]));
        assert_eq!(service.runtime.snapshot().revision, revision, "the filters have nothing new to learn");
        assert_eq!(service.tick(), results(&[]));
        assert!(service.runtime.snapshot().webhooks.contains_key("21111111-2222-4333-8444-555555555555"));
    }

    #[test]
    fn a_configuration_that_names_a_missing_file_is_taken_up_once_the_file_is_there() {
        let service = Folder::start();
        let text = service.read("stepward.toml");
        service.write("stepward.toml", &text.replace("secrets/webhook", "secrets/later"));
        assert_eq!(service.tick(), results(&[("configuration", false), ("secrets", false)]));
        assert_eq!(service.tick(), results(&[]));
        service.write("secrets/later", "bGF0ZXI=");
        assert_eq!(service.tick(), results(&[("configuration", true), ("secrets", true)]));
        assert!(service.runtime.failures().is_empty());
    }

    #[test]
    fn a_provider_keeps_what_it_holds_when_the_configuration_changes_around_it() {
        let service = Folder::start();
        let before = service.runtime.snapshot().providers.values().map(Arc::as_ptr).collect::<Vec<_>>();
        let text = service.read("stepward.toml");
        service.write("stepward.toml", &text.replace("id = \"1", "id = \"3"));
        service.tick();
        assert_eq!(service.runtime.snapshot().providers.values().map(Arc::as_ptr).collect::<Vec<_>>(), before);
    }

    #[tokio::test]
    async fn what_one_tenant_said_is_remembered_for_no_other() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let service = Folder::start();
        let provider = |name: &str, host: &str, secret: &str| {
            format!("[provider.{name}]\ntype = \"kandji\"\nbase_url = \"https://{host}.example.org\"\ntoken = {{ file = \"{secret}\" }}\n")
        };
        let text = service.read("stepward.toml");
        service.write("secrets/other", "b3RoZXI=");
        let caches = |first: &str| {
            let (one, two) = (provider("one", first, "secrets/other"), provider("two", "b", "secrets/webhook"));
            service.write("stepward.toml", &format!("{text}\n{one}{two}"));
            let looked = service.tick();
            assert!(looked.iter().all(|(_, applied)| *applied), "{looked:?}");
            let snapshot = service.runtime.snapshot();
            ["one", "two"].map(|name| Arc::clone(snapshot.providers.get(name).unwrap().cache().unwrap()))
        };
        let [one, two] = caches("a");
        assert!(!Arc::ptr_eq(&one, &two), "each provider has its own");
        service.write("secrets/other", "bmV3");
        let [same, _] = caches("a");
        assert!(Arc::ptr_eq(&one, &same), "a new secret asks the same tenant");
        let [other, unchanged] = caches("c");
        assert!(!Arc::ptr_eq(&one, &other), "another address is another tenant");
        assert!(Arc::ptr_eq(&two, &unchanged));
    }

    #[tokio::test]
    async fn g3_a_configuration_that_is_refused_changes_nothing_of_what_is_in_use() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let service = Folder::start();
        let provider = |name: &str| {
            format!(
                "[provider.{name}]\ntype = \"kandji\"\nbase_url = \"https://{name}.example.org\"\ntoken = {{ file = \"secrets/{name}\" }}\n"
            )
        };
        let good = [("secrets/a", "Z29vZA"), ("secrets/b", "Z29vZA")];
        good.iter().for_each(|(name, secret)| service.write(name, secret));
        let text = service.read("stepward.toml");
        service.write("stepward.toml", &format!("{text}\n{}{}", provider("a"), provider("b")));
        assert!(service.tick().iter().all(|(_, applied)| *applied));
        let inventory = || service.runtime.snapshot().providers.get("a").unwrap().cache().unwrap().inventory();
        let before = inventory();
        service.write("secrets/a", "cm90YXRlZA");
        service.write("secrets/b", "RO\u{1}TATED");
        assert!(service.tick().iter().any(|(_, applied)| !applied));
        assert!(Arc::ptr_eq(&inventory(), &before), "what was there before stays");
        service.write("secrets/b", "Z29vZA");
        assert!(service.tick().iter().all(|(_, applied)| *applied));
        assert!(!Arc::ptr_eq(&inventory(), &before));
    }

    #[tokio::test]
    async fn g3_a_configuration_that_is_refused_reads_no_list() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let service = Folder::start();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let provider = |shrink: f64| {
            format!(
                "[provider.a]\ntype = \"kandji\"\nbase_url = \"http://{address}\"\ntoken = {{ file = \"secrets/a\" }}\n\
                 [provider.a.sync]\nmax_shrink = {shrink:?}\n\
                 [provider.b]\ntype = \"kandji\"\nbase_url = \"https://b.example.org\"\ntoken = {{ file = \"secrets/b\" }}\n"
            )
        };
        [("secrets/a", "Z29vZA"), ("secrets/b", "Z29vZA")].iter().for_each(|(name, secret)| service.write(name, secret));
        let text = service.read("stepward.toml");
        service.write("stepward.toml", &format!("{text}\n{}", provider(0.1)));
        assert!(service.tick().iter().all(|(_, applied)| *applied));
        drop(listener.accept().await.unwrap());
        let quiet = std::time::Duration::from_millis(500);
        while tokio::time::timeout(quiet, listener.accept()).await.is_ok() {}
        // The list of before fails, and is not read again for a long while; the one that is refused would be read at once.
        service.write("stepward.toml", &format!("{text}\n{}", provider(1.0)));
        service.write("secrets/b", "RO\u{1}TATED");
        assert!(service.tick().iter().any(|(_, applied)| !applied));
        let read = tokio::time::timeout(quiet, listener.accept()).await;
        assert!(read.is_err(), "nothing of it is in use");
        service.write("secrets/b", "Z29vZA");
        assert!(service.tick().iter().all(|(_, applied)| *applied));
        drop(tokio::time::timeout(quiet * 60, listener.accept()).await.unwrap());
    }

    #[test]
    fn b_what_the_system_could_not_read_is_read_again_at_each_look_and_said_once() {
        let service = Folder::start();
        // There is nothing at the address 0 of a process; held, so that it stays the same file.
        let unreadable = std::fs::File::open("/proc/self/mem").unwrap();
        let hide = |name: &str| {
            let path = service.folder.path().join("demo").join(name);
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
        };
        let failures = |subject: &str| {
            let label = SubjectLabel { subject: Word(Arc::from(subject)) };
            service.runtime.metrics.reload_failures.get_or_create(&label).get()
        };
        hide("secrets/webhook");
        service.tick();
        for _ in 0..3 {
            assert_eq!(service.look(), results(&[("secrets", false)]), "nothing shows that it could be read now");
        }
        assert_eq!(failures("secrets"), 1);
        service.write("secrets/webhook", "bm90IHRoZSBvbmU=");
        assert_eq!(service.tick(), results(&[("secrets", true)]));
        assert_eq!(service.tick(), results(&[]));
        let text = service.read("stepward.toml");
        hide("stepward.toml");
        service.tick();
        assert_eq!(service.look(), results(&[("configuration", false)]));
        service.write("stepward.toml", &text);
        assert_eq!(service.tick(), results(&[("configuration", true), ("secrets", true)]));
        assert_eq!((service.tick(), failures("configuration")), (results(&[]), 1));
        drop(unreadable);
    }

    #[test]
    fn a_start_with_a_mistake_says_which() {
        let folder = tempfile::tempdir().unwrap();
        let source = Configured::new(Some(Path::new("missing.toml").into()), Environment::new(folder.path()));
        let error = Runtime::start(Box::new(source), Arc::new(Metrics::default())).unwrap_err();
        assert!(error.contains("missing.toml"), "{error}");
    }

    #[test]
    fn f5_whom_envoy_is_told_of_changes_where_one_webhook_of_several_lets_in_every_name() {
        let of = |first: &str, second: &str| {
            let webhook =
                |id, callers| format!("[[webhook]]\nid = \"{id}\"\nsecrets = [{{ env = \"S\" }}]\n{callers}\nproviders = [\"it\"]\n");
            let text = format!(
                "[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\n{}{}[provider.it]\ntype = \"file\"\npath = \"d.json\"\n",
                webhook("one", first),
                webhook("two", second)
            );
            callers(&Config::parse(&text, Path::new("stepward.toml"), &Environment::new("/")).unwrap().config)
        };
        let (one, other) = ("callers = [\"dns:one\"]", "callers = [\"dns:other\"]");
        assert_eq!(of(one, one), of(one, one));
        assert_ne!(of(one, one), of(one, other));
        assert_eq!(of(one, other), of(other, one));
        assert_ne!(of(one, one), of(one, ""));
    }
}
