//! State of the service: configuration, secrets, certificates and providers, and how they are replaced while requests go on.

mod source;
mod watched;

pub use source::{Configured, Source};

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};
use posture::caller::Callers;
use posture::identity::IdentifierKind;
use posture::record::Fields;
use settings::Fingerprint;
use settings::files::{self, CREDENTIALS, credential};
use tokio::sync::watch;

use crate::config::{self, Config};
use crate::server::certificates::Opened;
use engine::Engine;
use engine::cache::{Acquaintances, Circuit, Wanted};
use engine::fleet::Fleet;
use engine::locks::Locks;
use engine::metrics::{Metrics, ProviderLabel, SubjectLabel, WebhookLabel, Word};
use engine::plan::{Combine, Enforcement, Link, OnNotFound, OnUnavailable, Own, Plan};
use engine::provider::{self, Context, Provider, ProviderSettings};
use engine::replay::Reaches;
use engine::snapshot::Snapshot;
use engine::webhooks::{Materials, Settings, Webhook};
use posture::shown::{self, counted};
use store::{Store, StoreError};
use watched::{SECRETS, Watched, fingerprints};

/// Result of a reload for one subject.
#[derive(Clone, Debug)]
pub struct Reload {
    /// `configuration`, `secrets`, `certificates`, or the name of a provider.
    pub subject: Arc<str>,
    /// Description of what was applied, or the reason why the old state stays.
    pub outcome: Result<String, String>,
    /// Whether the change takes effect at the next start only.
    pub waits: bool,
}

/// State that all services share, for as long as the process lives.
#[derive(Debug)]
pub struct Runtime {
    /// Engine that decides.
    pub engine: Engine,
    applied: ArcSwap<Applied>,
    /// Configuration of the start; settings that no reload changes keep its values.
    began: Arc<Config>,
    revision: watch::Sender<u64>,
    source: Box<dyn Source>,
    /// Fingerprints of the files; the lock lets one reload run at a time.
    watched: Mutex<Watched>,
    failures: Mutex<BTreeMap<Arc<str>, String>>,
    /// Metrics and acquaintances that all providers share.
    context: Context,
}

impl Runtime {
    /// Reads configuration, secrets, certificates and providers for the first time. Blocks while files are read.
    ///
    /// # Errors
    /// A message for the operator: at the start nothing may be wrong.
    pub fn start(source: Box<dyn Source>, metrics: Arc<Metrics>) -> Result<Self, String> {
        Self::start_with(source, metrics, &BTreeMap::new())
    }

    /// Starts as [`Self::start`] does, with providers that are open already.
    pub(crate) fn start_with(
        source: Box<dyn Source>,
        metrics: Arc<Metrics>,
        providers: &BTreeMap<Arc<str>, Arc<dyn Provider>>,
    ) -> Result<Self, String> {
        let before = fingerprints(&source.files());
        let config = source.config()?;
        let files = source.files();
        // A configuration file that only a variable names is known once it was read.
        let configuration = if before.len() == files.len() { before } else { fingerprints(&files) };
        let secrets = fingerprints(&config.secret_files());
        let materials = source.materials(&config)?;
        let fleet = Arc::new(if config.store.server.is_some() { Fleet::unheard() } else { Fleet::default() });
        let context = Context { metrics: Arc::clone(&metrics), acquaintances: Acquaintances::default(), fleet: Arc::clone(&fleet) };
        let locks = Arc::<Locks>::default();
        let learning = Arc::clone(&locks);
        context.acquaintances.tell(move |record| learning.learned(&record.identifiers().collect::<Vec<_>>()));
        let Built { snapshot, applied } = Built::of(1, config, materials, (providers, &Opened::default()), &context)?;
        snapshot.take_effect();
        let runtime = Self {
            revision: watch::Sender::new(snapshot.revision),
            began: Arc::clone(&applied.config),
            engine: Engine::new(snapshot, locks, applied.config.replay, &applied.config.tables(), metrics).among(fleet),
            applied: ArcSwap::from_pointee(applied),
            source,
            watched: Mutex::new(Watched::new(configuration, secrets)),
            failures: Mutex::default(),
            context,
        };
        let certificates = (!runtime.certificates().is_empty()).then(|| Arc::from(CERTIFICATES));
        let subjects = [CONFIGURATION, SECRETS].map(Arc::from).into_iter().chain(certificates);
        for subject in subjects.chain(runtime.snapshot().providers.keys().cloned()) {
            drop(runtime.engine.metrics.reload_failures.get_or_create(&SubjectLabel { subject: Word(Arc::clone(&subject)) }));
            runtime.applied(&subject);
        }
        Ok(runtime)
    }

    /// Reads the settings of the store, with the password of its server.
    ///
    /// # Errors
    /// A message for the operator.
    pub fn store_settings(&self) -> Result<store::Settings, String> {
        self.source.store(&self.config())
    }

    /// Takes the rulings of a store, and keeps new rulings and decisions there.
    ///
    /// # Errors
    /// [`StoreError`] where the rulings cannot be read: without them, locked devices would be let in.
    pub async fn keep_in(&mut self, store: Store) -> Result<(), StoreError> {
        self.engine.keep_in(store).await
    }

    /// Returns the snapshot that decides at this moment.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.engine.snapshot()
    }

    /// Returns the configuration in use at this moment.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.applied.load().config)
    }

    /// Returns the certificates of the listeners over TCP.
    pub fn certificates(&self) -> Opened {
        self.applied.load().certificates.clone()
    }

    /// Returns a receiver that wakes on every new revision.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Reads configuration, secrets, certificates and providers again. Blocks while files are read.
    ///
    /// `accept_shrink` names providers whose file may lose more rows than it usually may.
    pub fn reload(&self, accept_shrink: &[String]) -> Vec<Reload> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // A reload that was asked for logs every failure, also those that were logged before.
        watched.again.clear();
        let mut results = self.reload_configuration(&mut watched);
        let certificates = self.certificates();
        if !certificates.is_empty() {
            results.push(self.reload_certificates(&mut watched, &certificates));
        }
        for (name, provider) in &self.snapshot().providers {
            let accepts = accept_shrink.iter().any(|accepted| **accepted == **name);
            results.push(self.reload_provider(&mut watched, name, &**provider, accepts));
        }
        // An operator who takes a right away in such a setting has to learn that it still holds.
        let waits = |(subject, why): (&str, &str)| Reload { subject: subject.into(), outcome: Err(why.to_owned()), waits: true };
        results.extend(self.waiting().into_iter().map(waits));
        results
    }

    /// Changed settings that take effect at the next start, each with its message.
    pub fn waiting(&self) -> Vec<(&'static str, &'static str)> {
        wait_for_a_start(&self.began, &self.config()).into_iter().map(|subject| (subject, WAITS)).collect()
    }

    /// Reads again the files that changed since they were last read, whether that reading was good or bad, and those that the
    /// system could not read. Costs a `stat` or two for each file where there are none of these.
    ///
    /// A file that changed since the last call may still be written to, and waits for the next call.
    pub fn reload_changed(&self) -> Vec<Reload> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let moving = watched.look(self.source.files().into_iter().chain(self.config().watched_files()));
        let still = |files: &[PathBuf]| !files.iter().any(|file| moving.contains(file));
        let configuration = self.source.files();
        let secrets = self.config().secret_files();
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
        let certificates = self.certificates();
        if !certificates.is_empty() && still(&certificates.files()) && (watched.again.contains(CERTIFICATES) || certificates.changed()) {
            results.push(self.reload_certificates(&mut watched, &certificates));
        }
        for (name, provider) in &self.snapshot().providers {
            let due = watched.again.contains(&**name) || provider.changed();
            if due && provider.file().is_none_or(|file| !moving.contains(file)) {
                results.push(self.reload_provider(&mut watched, name, &**provider, false));
            }
        }
        results
    }

    /// Returns the failures of subjects whose last reload could not be applied, by subject.
    pub fn failures(&self) -> BTreeMap<Arc<str>, String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the metrics of providers.
    pub fn count_providers(&self) {
        for (name, provider) in &self.snapshot().providers {
            let entries = i64::try_from(provider.len()).unwrap_or(i64::MAX);
            let label = ProviderLabel { provider: Word(Arc::clone(name)) };
            self.engine.metrics.provider_entries.get_or_create(&label).set(entries);
            self.engine.metrics.provider_shrink_pending.get_or_create(&label).set(i64::from(provider.pending_shrink(name).is_some()));
            let Some(cache) = provider.cache() else { continue };
            let circuit = match cache.circuit() {
                Circuit::Closed => 0,
                Circuit::HalfOpen => 1,
                Circuit::Open => 2,
            };
            self.engine.metrics.provider_circuit.get_or_create(&label).set(circuit);
            if let Some(silence) = cache.answered_ago() {
                self.engine.metrics.provider_silence.get_or_create(&label).set(silence.as_secs_f64());
            }
        }
    }

    /// Lists of devices that lost more rows than they may and wait for an operator: what each lost, and the command that accepts
    /// it.
    pub fn pending_shrinks(&self) -> Vec<(Arc<str>, String)> {
        let snapshot = self.snapshot();
        snapshot.providers.iter().filter_map(|(name, provider)| Some((Arc::clone(name), provider.pending_shrink(name)?))).collect()
    }

    /// Returns each provider with its number of devices, in words.
    pub fn provider_states(&self) -> Vec<(Arc<str>, String)> {
        self.snapshot().providers.iter().map(|(name, provider)| (Arc::clone(name), counted(provider.len(), "device"))).collect()
    }

    /// Reloads configuration and secrets together, since the configuration names the secrets.
    fn reload_configuration(&self, watched: &mut Watched) -> Vec<Reload> {
        watched.configuration = fingerprints(&self.source.files());
        let before = self.applied.load_full();
        let (config, failed) = files::attempt(|| self.source.config());
        let config = match config {
            Ok(config) => config,
            Err(error) => {
                let mut results = vec![self.kept(watched, CONFIGURATION, error, failed)];
                // The secrets of the configuration in use may have changed all the same.
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
        let (built, failed) = files::attempt(|| self.build(config, materials, &before));
        match built {
            Ok(built) => {
                watched.wanted.clear();
                watched.secrets = secrets;
                let webhooks = counted(built.snapshot.webhooks.len(), "webhook");
                let read = read(&built.applied.config.secret_files());
                self.replace(built);
                [(CONFIGURATION, webhooks), (SECRETS, read)].map(|(subject, detail)| self.taken(watched, subject, detail)).into()
            }
            Err(error) => {
                watched.wanted = wanted;
                vec![self.kept(watched, CONFIGURATION, error, failed)]
            }
        }
    }

    fn reload_secrets(&self, watched: &mut Watched) -> Reload {
        let before = self.applied.load_full();
        watched.secrets = fingerprints(&before.config.secret_files());
        let (built, failed) = files::attempt(|| {
            let materials = self.source.materials(&before.config)?;
            self.build((*before.config).clone(), materials, &before)
        });
        match built {
            Ok(built) => {
                self.replace(built);
                self.taken(watched, SECRETS, read(&before.config.secret_files()))
            }
            Err(error) => self.kept(watched, SECRETS, error, failed),
        }
    }

    fn reload_certificates(&self, watched: &mut Watched, certificates: &Opened) -> Reload {
        match files::attempt(|| certificates.reload()) {
            (Ok(()), _) => self.taken(watched, CERTIFICATES, "read".to_owned()),
            (Err(error), failed) => self.kept(watched, CERTIFICATES, error.to_string(), failed),
        }
    }

    fn reload_provider(&self, watched: &mut Watched, name: &str, provider: &dyn Provider, accept_shrink: bool) -> Reload {
        match files::attempt(|| provider.reload(name, accept_shrink)) {
            (Ok(detail), _) => self.taken(watched, name, detail),
            (Err(error), failed) => self.kept(watched, name, error.told(name), failed),
        }
    }

    /// Builds the state that follows this one.
    fn build(&self, config: Config, materials: Materials, before: &Applied) -> Result<Built, String> {
        let snapshot = self.engine.snapshot();
        let held = (&snapshot.providers, &before.certificates);
        Built::of(snapshot.revision.saturating_add(1), config, materials, held, &self.context)
    }

    /// Puts a new state in place and tells every stream.
    fn replace(&self, Built { mut snapshot, applied }: Built) {
        let revision = snapshot.revision;
        snapshot.reaches = self.snapshot().reaches.reloaded(snapshot.judged());
        snapshot.take_effect();
        // The clock skew of a webhook that was removed would stay for ever, and alert.
        for id in self.snapshot().webhooks.keys().filter(|id| !snapshot.webhooks.contains_key(*id)) {
            self.engine.metrics.clock_skew.remove(&WebhookLabel { webhook: Word(Arc::clone(id)) });
        }
        self.engine.memory.set_bounds(applied.config.replay, &applied.config.tables());
        self.applied.store(Arc::new(applied));
        self.engine.replace(snapshot);
        self.revision.send_replace(revision);
    }

    fn applied(&self, subject: &Arc<str>) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(subject);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.engine.metrics.reload_success.get_or_create(&SubjectLabel { subject: Word(Arc::clone(subject)) }).set(now.as_secs_f64());
    }

    fn taken(&self, watched: &mut Watched, subject: &str, detail: String) -> Reload {
        let subject = Arc::from(subject);
        watched.again.remove(&subject);
        self.applied(&subject);
        tracing::info!(subject = &*subject, detail, "reloaded");
        Reload { subject, outcome: Ok(detail), waits: false }
    }

    /// Records that a subject could not be reloaded and its old state stays. `failed`: the system could not read a file, so the
    /// subject is tried again at each look, and logged again only if the error is another.
    fn kept(&self, watched: &mut Watched, subject: &str, error: String, failed: bool) -> Reload {
        let subject: Arc<str> = Arc::from(subject);
        let tried = if failed { !watched.again.insert(Arc::clone(&subject)) } else { watched.again.remove(&subject) };
        let before = self.failures.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&subject), error.clone());
        if !tried || before.as_ref() != Some(&error) {
            tracing::error!(subject = &*subject, error = shown::line(&error), "not reloaded; what was there before stays");
            self.engine.metrics.reload_failures.get_or_create(&SubjectLabel { subject: Word(Arc::clone(&subject)) }).inc();
        }
        Reload { subject, outcome: Err(error), waits: false }
    }
}

/// Providers and certificates of the state before; those whose settings are unchanged are reused.
type Held<'h> = (&'h BTreeMap<Arc<str>, Arc<dyn Provider>>, &'h Opened);

/// A configuration in use, and the certificates that were opened for it.
#[derive(Debug)]
struct Applied {
    /// The configuration as it was read.
    config: Arc<Config>,
    /// Certificates of the listeners over TCP; a reload of them alone swaps their content.
    certificates: Opened,
}

/// A state that was built: the snapshot that decides, and the configuration that it was made from.
struct Built {
    snapshot: Snapshot,
    applied: Applied,
}

impl Built {
    /// Builds the state of a configuration. Providers and certificates whose settings are unchanged are reused.
    ///
    /// # Errors
    /// A message for the operator. Nothing that is in use has changed then.
    fn of(
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
                before => provider::open(name, settings, secrets, before.map(|before| &**before), context)
                    .map_err(|error| format!("provider `{name}`: {}", error.told(name)))?,
            };
            providers.insert(Arc::from(name.as_str()), provider);
        }
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
        let certificates = Opened::open(&config, certificates)?;
        let reaches = Reaches::new(webhooks.values().map(|webhook| webhook.judged()));
        let placeholders = config.placeholders.clone();
        let snapshot = Snapshot { revision, told: OnceLock::new(), placeholders, webhooks, plans, providers, wanted, reaches };
        Ok(Self { snapshot, applied: Applied { config: Arc::new(config), certificates } })
    }
}

/// Providers with the demands of their own settings, to make plans of.
struct Links(BTreeMap<Arc<str>, Link>);

impl Links {
    fn new(config: &Config, providers: &BTreeMap<Arc<str>, Arc<dyn Provider>>) -> Result<Self, String> {
        let link = |(name, provider): (&Arc<str>, &Arc<dyn Provider>)| {
            let own = match config.providers.get(&**name) {
                Some(ProviderSettings::Remote(remote)) => Own::of_service(&remote.service, remote.cache.negative),
                Some(ProviderSettings::File(_)) | None => Own::nothing(),
            };
            let own = own.map_err(|error| format!("provider `{name}`: {error}"))?;
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

    fn of_webhook(&self, webhook: &Settings, plans: &BTreeMap<Arc<str>, Arc<Plan>>) -> Plan {
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

/// Describes secrets that were read: those that systemd hands a unit are copied at the unit's start alone.
fn read(files: &[PathBuf]) -> String {
    let units: BTreeSet<&str> = files.iter().filter_map(|file| credential(file).map(|(unit, _)| unit)).collect();
    let units: Vec<&str> = units.into_iter().collect();
    if units.is_empty() {
        return "read".to_owned();
    }
    let others = if files.iter().all(|file| credential(file).is_some()) { "" } else { "read; but " };
    let (units, at) = (units.join(" "), CREDENTIALS);
    format!(
        "{others}those in {at} are as at the last start: systemd copies them then alone, so for a changed one run `systemctl restart {units}`"
    )
}

/// Returns the settings that no reload changes and that differ from the start.
fn wait_for_a_start(began: &Config, now: &Config) -> Vec<&'static str> {
    let log = |config: &Config| (config.log.level.clone(), config.log.json);
    let query = |config: &Config| (config.query.tcp.as_ref().map(|tcp| tcp.address), config.query.reflection);
    let filter = |config: &Config| config.filter.as_ref().map(|tcp| tcp.address);
    let changed = [
        ("[listen]", began.listen != now.listen),
        ("[log]", log(began) != log(now)),
        ("[store]", (&began.store, &began.store_password) != (&now.store, &now.store_password)),
        ("address and reflection of [query]", query(began) != query(now)),
        ("address of [filter]", filter(began) != filter(now)),
    ];
    changed.into_iter().filter_map(|(subject, changed)| changed.then_some(subject)).collect()
}

/// Returns what Envoy's configuration holds of webhooks and providers besides the names of callers: the largest body limit, and
/// whether any provider takes events.
fn of_envoy(config: &Config) -> (Option<u32>, bool) {
    let takes_events = |provider: &ProviderSettings| matches!(provider, ProviderSettings::Remote(remote) if remote.push.is_some());
    (config.webhooks.iter().map(|webhook| webhook.body_limit).max(), config.providers.values().any(takes_events))
}

const WAITS: &str = "it was changed, and takes effect at the next start: until then the service goes by what it started with";

/// Returns the names that any webhook lets in; `None` where a webhook lets in every name.
fn callers(config: &Config) -> Option<BTreeSet<String>> {
    let named = |webhook: &Settings| if let Callers::Named(names) = &webhook.callers { Some(names.clone()) } else { None };
    let names = config.webhooks.iter().map(named).collect::<Option<Vec<_>>>()?;
    Some(names.iter().flatten().map(ToString::to_string).collect())
}

const CONFIGURATION: &str = "configuration";
const CERTIFICATES: &str = "certificates";

#[cfg(test)]
mod tests {
    use inventory::{Answer, Question, Way};
    use std::path::Path;

    use posture::credential::Credentials;
    use posture::identity::DeviceId;
    use posture::secret::Secret;
    use settings::Environment;

    use super::*;
    use engine::cache::Terms;
    use engine::webhooks::Material;

    struct Folder {
        folder: tempfile::TempDir,
        runtime: Runtime,
    }

    impl Folder {
        fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            crate::fixture::make(&folder.path().join("demo"));
            let environment = Environment::new(folder.path().join("demo"));
            let source = Configured::new(Some("stepward.toml".into()), environment);
            let runtime = Runtime::start(Box::new(source), Arc::new(Metrics::default())).unwrap();
            Self { folder, runtime }
        }

        /// Writes a file by renaming, so that the inode always differs, whatever the clock's grain.
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

        /// Looks twice, since a change has to stand still from one look to the next.
        fn tick(&self) -> Vec<(String, bool)> {
            [self.look(), self.look()].concat()
        }

        /// Writes a file in place, as an editor or `cp` does.
        fn overwrite(&self, name: &str, text: &str) {
            std::fs::write(self.folder.path().join("demo").join(name), text).unwrap();
        }

        async fn knows(&self, device: &str) -> bool {
            let snapshot = Arc::clone(&*self.runtime.snapshot());
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
            assert!(results.iter().all(|result| result.waits == result.outcome.is_err()), "{results:?}");
            let waits: Vec<_> = results.into_iter().filter(|result| result.waits).map(|result| result.subject.to_string()).collect();
            assert_eq!(folder.runtime.waiting().into_iter().map(|(subject, _)| subject).collect::<Vec<_>>(), waits);
            waits
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

    /// A configuration whose secrets nobody reads from their files.
    #[derive(Debug)]
    struct Handed(&'static str);

    impl Source for Handed {
        fn config(&self) -> Result<Config, String> {
            let text = format!(
                "[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\n[[webhook]]\nid = \"one\"\nsecrets = [{}]\n\
                 callers = [\"dns:a\"]\nproviders = []\nkind = \"notifying\"\n",
                self.0
            );
            Config::parse(&text, Path::new("stepward.toml"), &Environment::new("/etc"))
                .map(|loaded| loaded.config)
                .map_err(|error| error.to_string())
        }

        fn materials(&self, config: &Config) -> Result<Materials, String> {
            let secret = || Material { secrets: vec![Secret::new(b"secret".to_vec())], credentials: Credentials::new(Vec::new()) };
            Ok(Materials { webhooks: config.webhooks.iter().map(|_| secret()).collect(), providers: BTreeMap::new() })
        }

        fn store(&self, config: &Config) -> Result<store::Settings, String> {
            Ok(config.store.clone())
        }

        fn files(&self) -> Vec<PathBuf> {
            Vec::new()
        }
    }

    #[test]
    fn e32_a_reload_does_not_say_that_it_read_what_systemd_copies_at_a_start_alone() {
        let handed = "{ file = \"/run/credentials/stepward.service/secrets_laptops\" }";
        let restart = "those in /run/credentials are as at the last start: systemd copies them then alone, so for a changed one run \
                       `systemctl restart stepward.service`";
        let said = |secrets: &'static str| {
            let runtime = Runtime::start(Box::new(Handed(secrets)), Arc::new(Metrics::default())).unwrap();
            let results = runtime.reload(&[]);
            let by_itself = runtime.reload_secrets(&mut runtime.watched.lock().unwrap()).outcome.unwrap();
            let found = |subject: &str| results.iter().find(|result| &*result.subject == subject).unwrap().outcome.clone().unwrap();
            assert_eq!(found(CONFIGURATION), "1 webhook");
            assert_eq!(found(SECRETS), by_itself);
            by_itself
        };
        assert_eq!(said("{ file = \"secrets/one\" }"), "read");
        assert_eq!(said(handed), restart);
        let both: &'static str = "{ file = \"secrets/one\" }, { file = \"/run/credentials/stepward.service/secrets_laptops\" }";
        assert_eq!(said(both), format!("read; but {restart}"));
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
        // The list in use fails, and is not read again for a long while; a list of the refused configuration would be read at
        // once.
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
        // Nothing can be read at the address 0 of a process. The file is held open, so that it stays the same one.
        let unreadable = std::fs::File::open("/proc/self/mem").unwrap();
        let hide = |name: &str| {
            let path = service.folder.path().join("demo").join(name);
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
        };
        let failures = |subject: &str| {
            let label = SubjectLabel { subject: Word(Arc::from(subject)) };
            service.runtime.engine.metrics.reload_failures.get_or_create(&label).get()
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
