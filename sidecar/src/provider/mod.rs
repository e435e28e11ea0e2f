//! Step 7: what is known of a device. A provider is one file, with a folder beside it where it grows. It sees this module, the
//! seam in [`inventory`], the helpers beside it, what reads its own settings, and the clock.

pub mod addigy;
pub mod errand;
pub mod file;
pub mod fleet;
pub mod http;
pub mod http_json;
pub mod intune;
pub mod inventory;
pub mod jamf;
pub mod kandji;
mod leftovers;
mod lenient;
pub mod mosyle;
pub mod service;
mod shown;
pub mod strict;
pub mod token;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use posture::identity::{DeviceId, IdentifierKind};
use posture::record::{Form, Record};
use posture::secret::Secret;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::cache::{self, Cache};
use crate::config;
use crate::metrics::Metrics;
use inventory::{Inventory, Question};

/// What a provider says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has exactly one record that fits. What it could not say of it is unknown there.
    Found(Arc<Record>),
    /// Its answer was complete, and no record fits.
    NotFound,
    /// More than one record fits.
    Ambiguous,
    /// It cannot say.
    Unavailable(Unavailable),
    /// No device of this provider can have such an identifier; nobody was asked.
    InvalidIdentifier,
}

/// What a provider says, and where it has it from.
#[derive(Clone, Debug)]
pub struct Looked {
    /// What it says.
    pub answer: Answer,
    /// Where it has it from.
    pub source: Source,
    /// How long ago the service said so, where it is remembered.
    pub age: Option<Duration>,
    /// By what the provider knows later whether the answer still holds.
    pub evidence: Evidence,
}

impl Looked {
    /// An answer of now that cannot become another.
    pub const fn live(answer: Answer) -> Self {
        Self { answer, source: Source::Live, age: None, evidence: Evidence::Fixed }
    }
}

/// By what a provider knows later whether an answer still holds: see [`Provider::stands`].
#[derive(Clone, Debug)]
pub enum Evidence {
    /// The answer cannot become another one.
    Fixed,
    /// What a file said when it was read for the so many-th time.
    File(u64),
    /// What a service said.
    Cached(cache::Cached),
    /// A list that was whole does not have it, and nothing was heard of it since.
    Unlisted,
    /// The service could not say, to a question of this hint.
    Silence(Option<Form>),
    /// The service could not say of this device alone, to a question of this hint: about others it answers.
    Alone(Option<Form>),
    /// What the service said of the device's last known serial number, which by now is another device's or nobody's: about this
    /// device it cannot be asked.
    Moved(cache::Cached),
    /// The service said it, and something that was asked later had overtaken it.
    Overtaken,
}

/// Where an answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It was asked for now.
    Live,
    /// It is remembered, and within its lifetime.
    Cached,
    /// It is remembered, and too old; the service cannot say.
    Stale,
}

impl Source {
    /// For logs and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Cached => "cached",
            Self::Stale => "stale",
        }
    }
}

/// Why a provider cannot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unavailable {
    /// It has not been read yet, or never could be.
    NotLoaded,
    /// No whole answer within the deadline.
    Timeout,
    /// No connection, TLS refused, or cut off.
    Network,
    /// 5xx, with what `Retry-After` says.
    ServerError(Option<Duration>),
    /// 429, with what `Retry-After` says.
    RateLimited(Option<Duration>),
    /// 401 with credentials that were new, or refused at the login.
    AuthRejected,
    /// 403: a privilege is missing. Never taken for a device that is not there.
    Forbidden,
    /// An answer that makes no sense: a login page, half of one, another schema.
    Protocol,
    /// It does not take this question: 400 or 422 about one identifier.
    Rejected,
    /// The service did not apply the filter, and there is more than can be looked through.
    FilterIgnored,
    /// More bytes than an answer may have.
    TooLarge,
    /// It has no such ability.
    Unsupported,
    /// It is left alone for a while, after failures or because it asked for that.
    Paused,
    /// The calls that may be spent on identifiers like this one are spent.
    OutOfBudget,
    /// More is asked of it than it bears, and there was no turn for this question in time.
    Busy,
}

impl Unavailable {
    /// For metrics: a closed set of words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotLoaded => "not_loaded",
            Self::Timeout => "timeout",
            Self::Network => "network",
            Self::ServerError(_) => "server_error",
            Self::RateLimited(_) => "rate_limited",
            Self::AuthRejected => "auth_rejected",
            Self::Forbidden => "forbidden",
            Self::Protocol => "protocol",
            Self::Rejected => "rejected",
            Self::FilterIgnored => "filter_ignored",
            Self::TooLarge => "too_large",
            Self::Unsupported => "unsupported",
            Self::Paused => "paused",
            Self::OutOfBudget => "out_of_budget",
            Self::Busy => "busy",
        }
    }

    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotLoaded => "it could not be read",
            Self::Timeout => "it did not answer in time",
            Self::Network => "it cannot be reached",
            Self::ServerError(_) => "it reports an error of its own",
            Self::RateLimited(_) => "it asks for fewer requests",
            Self::AuthRejected => "it refuses the credentials",
            Self::Forbidden => "it refuses this question: a privilege is missing",
            Self::Protocol => "its answer makes no sense",
            Self::Rejected => "it does not take a question about this identifier",
            Self::FilterIgnored => "it answers with other devices than were asked for",
            Self::TooLarge => "its answer is too large",
            Self::Unsupported => "it cannot do that",
            Self::Paused => "it failed, and is left alone for a moment",
            Self::OutOfBudget => "too many unknown devices were asked for",
            Self::Busy => "more devices are asked for than it may be asked in this time",
        }
    }

    /// Whether the service itself could not say. What our own bounds kept from being asked says nothing of it, so no old record
    /// may stand in for its answer.
    pub const fn is_of_the_service(self) -> bool {
        !matches!(self, Self::OutOfBudget | Self::Busy)
    }

    /// The same where a device was asked for that nobody knows: that it is asked to be left alone counts for so long at most, and
    /// an error that asks for that is an error as any other, as is one about credentials: a gateway may ask for others where an
    /// identifier looks like another path.
    pub(crate) fn by_a_stranger(self, longest: Duration) -> Self {
        match self {
            Self::RateLimited(Some(after)) => Self::RateLimited(Some(after.min(longest))),
            Self::ServerError(Some(_)) | Self::AuthRejected => Self::ServerError(None),
            why => why,
        }
    }

    /// Whose failure it is.
    pub(crate) const fn blame(self) -> Blame {
        match self {
            Self::RateLimited(_) | Self::ServerError(Some(_)) | Self::AuthRejected => Blame::Service,
            Self::Protocol | Self::Rejected | Self::Forbidden | Self::FilterIgnored | Self::TooLarge => Blame::Identifier,
            _ => Blame::Either,
        }
    }
}

/// Whose failure it is that a service did not answer a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The service's, whatever was asked.
    Service,
    /// The service's, or that of what was asked.
    Either,
    /// That of what was asked, unless others fail alike.
    Identifier,
}

/// What all providers share: where they count, and whom they tell of the devices that they learn of.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Whoever wants to know which identifiers belong to one device.
    pub acquaintances: cache::Acquaintances,
}

/// A source of devices.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there are only as many as there are providers")]
pub enum Provider {
    /// A JSON or CSV file.
    File(file::FileProvider),
    /// A service that answers over HTTP, behind its cache.
    Remote(Remote),
    /// Answers from a closure, when it says so.
    #[cfg(test)]
    Fake(fake::Fake),
}

impl Provider {
    /// Reads what there is to read. Blocks meanwhile. A service whose credentials alone changed keeps its cache, which goes by the
    /// other ones until [`Self::take_effect`] is called: the configuration that these are of may yet be refused. Until then no list
    /// and no feed is read either, since what they say counts for whatever shares what is known.
    ///
    /// # Errors
    /// Every mistake, in words for the operator.
    pub fn open(
        name: &str,
        settings: &config::Provider,
        secrets: &[Secret],
        before: Option<&Self>,
        context: &Context,
    ) -> Result<Self, String> {
        match settings {
            config::Provider::File(settings) => {
                let file = match before {
                    Some(Self::File(before)) => file::FileProvider::open_after(settings, before),
                    _ => file::FileProvider::open(settings),
                };
                file.map(Self::File).map_err(|error| told(&error, name))
            }
            config::Provider::Remote(settings) => {
                let before = before.and_then(|before| if let Self::Remote(remote) = before { Some(remote) } else { None });
                Remote::open(name, settings, secrets, before, context).map(Self::Remote)
            }
        }
    }

    /// From now on the service is asked by what this was opened with, and for what is wanted of it, and its lists and its feed are
    /// read.
    pub fn take_effect(&self, wanted: cache::Wanted) {
        if let Self::Remote(remote) = self {
            remote.cache.replace_inventory(Arc::clone(&remote.inventory));
            remote.cache.want(wanted);
            remote.sweeping.0.get_or_init(|| EndOnDrop(remote.runtime.spawn(Arc::clone(&remote.cache).keep_swept())));
        }
    }

    /// Whether these are the settings and secrets that it was opened with.
    pub fn has(&self, settings: &config::Provider, secrets: &[Secret]) -> bool {
        match (self, settings) {
            (Self::File(file), config::Provider::File(settings)) => file.settings() == settings,
            (Self::Remote(remote), config::Provider::Remote(settings)) => remote.settings == *settings && remote.secrets == secrets,
            #[cfg(test)]
            (Self::Fake(_), _) => true,
            _ => false,
        }
    }

    /// Asks for one device.
    pub async fn lookup(&self, question: &Question, terms: cache::Terms) -> Looked {
        match self {
            Self::File(file) => {
                // Before the look: what changes in between counts as a change.
                let reading = file.readings();
                Looked { evidence: Evidence::File(reading), ..Looked::live(file.lookup(&question.device)) }
            }
            Self::Remote(remote) => remote.within_mode(question, remote.cache.lookup(question, terms).await),
            #[cfg(test)]
            Self::Fake(fake) => fake.looked(fake.lookup(&question.device).await),
        }
    }

    /// Whether an answer is still what is known of the device.
    pub fn stands(&self, device: &DeviceId, looked: &Looked) -> bool {
        match (self, &looked.evidence) {
            (Self::File(file), Evidence::File(reading)) => file.readings() == *reading || file.lookup(device) == looked.answer,
            (Self::Remote(remote), _) => remote.cache.stands(device, looked),
            (_, Evidence::Overtaken) => false,
            _ => true,
        }
    }

    /// Whether an answer is still what is known of the device, and not older than an answer may be.
    pub fn is_current(&self, device: &DeviceId, looked: &Looked) -> bool {
        match self {
            Self::Remote(remote) => remote.cache.is_current(device, looked),
            _ => self.stands(device, looked),
        }
    }

    /// Whether more than one device of the provider had one of the record's identifiers when that was last known.
    pub fn is_ambiguous(&self, record: &Record) -> bool {
        self.cache().is_some_and(|cache| cache.is_ambiguous(record))
    }

    /// The cache, where there is one.
    pub const fn cache(&self) -> Option<&Arc<Cache>> {
        match self {
            Self::Remote(remote) => Some(&remote.cache),
            _ => None,
        }
    }

    /// Whether it can have a device by an identifier of this kind, as far as is known without asking: a file lists one kind, and
    /// services are asked by those that webhooks and queries have.
    pub fn is_asked_by(&self, kind: IdentifierKind) -> bool {
        match self {
            Self::File(file) => file.settings().identifier == kind,
            Self::Remote(remote) => remote.cache.is_asked_by(kind),
            #[cfg(test)]
            Self::Fake(_) => kind == IdentifierKind::Serial,
        }
    }

    /// How its events prove themselves, and the secret of that.
    pub fn push(&self) -> Option<(&config::Proof, &Secret)> {
        match self {
            Self::Remote(remote) => Some((&remote.settings.push.as_ref()?.proof, remote.secrets.last()?)),
            _ => None,
        }
    }

    /// Whether what it reads from is another than what it last read. Cheap.
    pub fn changed(&self) -> bool {
        match self {
            Self::File(file) => file.changed(),
            Self::Remote(_) => false,
            #[cfg(test)]
            Self::Fake(_) => false,
        }
    }

    /// The file that it reads from.
    pub fn file(&self) -> Option<&std::path::Path> {
        match self {
            Self::File(file) => Some(&file.settings().path),
            Self::Remote(_) => None,
            #[cfg(test)]
            Self::Fake(_) => None,
        }
    }

    /// Reads again. Blocks meanwhile; lookups go on. `name` is its own, for the command that takes a list which shrank.
    ///
    /// # Errors
    /// Why what it held before stays.
    pub fn reload(&self, name: &str, accept_shrink: bool) -> Result<String, String> {
        match self {
            Self::File(file) => match file.reload(accept_shrink) {
                Ok(file::Reloaded::Unchanged) => Ok("unchanged".to_owned()),
                Ok(file::Reloaded::Applied { had, has }) => Ok(format!("{has} devices, before {had}")),
                Err(error) => Err(told(&error, name)),
            },
            Self::Remote(remote) => {
                if accept_shrink {
                    remote.cache.accept_shrink();
                    return Ok(format!("{} devices remembered; it is listed again now", remote.cache.len()));
                }
                match self.pending_shrink(name) {
                    // What the last list said, and nothing that went wrong with this reload.
                    Some(pending) => Ok(format!("{} devices remembered; {pending}", remote.cache.len())),
                    None => Ok(format!("{} devices remembered", remote.cache.len())),
                }
            }
            #[cfg(test)]
            Self::Fake(_) => Ok("unchanged".to_owned()),
        }
    }

    /// What a list lost that is not applied for that, and the command that applies it. `name` is the provider's own.
    pub fn pending_shrink(&self, name: &str) -> Option<String> {
        let pending = match self {
            Self::File(file) => file.pending_shrink()?.to_string(),
            Self::Remote(remote) => remote.cache.pending_shrink()?.to_string(),
            #[cfg(test)]
            Self::Fake(_) => return None,
        };
        Some(format!("{pending}; {}", accept(name)))
    }

    /// Devices that it holds.
    pub fn len(&self) -> usize {
        match self {
            Self::File(file) => file.len(),
            Self::Remote(remote) => usize::try_from(remote.cache.len()).unwrap_or(usize::MAX),
            #[cfg(test)]
            Self::Fake(_) => 0,
        }
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A service, and what it was opened with.
#[derive(Debug)]
pub struct Remote {
    settings: config::Remote,
    secrets: Vec<Secret>,
    /// What the cache asks by, once [`Provider::take_effect`] was called.
    inventory: Arc<dyn Inventory>,
    cache: Arc<Cache>,
    /// Of this cache, and shared as it is.
    sweeping: Arc<Sweeping>,
    runtime: Handle,
}

/// The task that reads the lists and the feed of one cache, from when the first provider that has it took effect.
#[derive(Debug, Default)]
struct Sweeping(OnceLock<EndOnDrop>);

/// A task that ends with whoever wants it.
#[derive(Debug)]
struct EndOnDrop(JoinHandle<()>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Remote {
    fn open(name: &str, settings: &config::Remote, secrets: &[Secret], before: Option<&Self>, context: &Context) -> Result<Self, String> {
        let inventory = settings.service.open(&settings.endpoint, secrets)?;
        let runtime = Handle::try_current().map_err(|error| error.to_string())?;
        let bounds = cache::Settings {
            cache: settings.cache,
            limits: settings.limits,
            connections: settings.endpoint.connections,
            sync: settings.sync,
        };
        let (cache, sweeping) = match before {
            // What the service is asked by, and what proves its events, says nothing of its devices.
            Some(before) if before.bounds() == bounds && before.asks_as(settings) => {
                (Arc::clone(&before.cache), Arc::clone(&before.sweeping))
            }
            Some(before) if before.asks_as(settings) => {
                (Arc::new(before.cache.with_settings(bounds, Arc::clone(&inventory))), Arc::default())
            }
            _ => {
                let cache = Cache::new(name, bounds, Arc::clone(&inventory), Arc::clone(&context.metrics), runtime.clone());
                let cache = cache.telling(context.acquaintances.clone()).stripping(settings.placeholders.clone());
                (Arc::new(cache), Arc::default())
            }
        };
        Ok(Self { settings: settings.clone(), secrets: secrets.to_vec(), inventory, cache, sweeping, runtime })
    }

    /// What was looked up, but that a record which the question's mode does not mean is none: the cache keeps it for questions of
    /// another mode.
    fn within_mode(&self, question: &Question, looked: Looked) -> Looked {
        match (&self.settings.service, &looked.answer) {
            (service::Service::Jamf(jamf), Answer::Found(record)) if !jamf.counts(record, question.hint) => {
                // It rests on that record still.
                Looked { answer: Answer::NotFound, ..looked }
            }
            _ => looked,
        }
    }

    /// Whether these settings ask the same service for the same of a device, and read the same of its answer.
    fn asks_as(&self, settings: &config::Remote) -> bool {
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

/// What to do where a list lost more than it may.
pub(crate) fn accept(name: &str) -> String {
    format!("if that is right, run `stepward reload --accept-shrink {name}`")
}

fn told(error: &file::FileError, name: &str) -> String {
    if let file::FileError::Shrunk(_) = error { format!("{error}; {}", accept(name)) } else { chain(error) }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
pub(crate) mod fake {
    use std::fmt;
    use std::time::Duration;

    use futures::future::BoxFuture;
    use posture::identity::DeviceId;

    use super::{Answer, Evidence, Looked, Source};

    type Lookup = dyn Fn(DeviceId) -> BoxFuture<'static, Answer> + Send + Sync;

    /// A provider that a test scripts.
    pub struct Fake {
        lookup: Box<Lookup>,
        /// Where its answers come from; live, unless a test says something else.
        pub(crate) source: Source,
        /// What its answers rest on; nothing that changes, unless a test says something else.
        pub(crate) evidence: Evidence,
        /// How old they are.
        pub(crate) age: Option<Duration>,
    }

    impl Fake {
        pub(crate) fn new<F: Future<Output = Answer> + Send + 'static>(lookup: impl Fn(DeviceId) -> F + Send + Sync + 'static) -> Self {
            Self { lookup: Box::new(move |device| Box::pin(lookup(device))), source: Source::Live, evidence: Evidence::Fixed, age: None }
        }

        pub(crate) fn looked(&self, answer: Answer) -> Looked {
            Looked { answer, source: self.source, age: self.age, evidence: self.evidence.clone() }
        }

        pub(crate) async fn lookup(&self, device: &DeviceId) -> Answer {
            (self.lookup)(device.clone()).await
        }
    }

    impl fmt::Debug for Fake {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Fake")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Unavailable;

    #[test]
    fn every_reason_why_a_provider_cannot_say_is_explained_to_operators() {
        let page = include_str!("../../../docs/codes.md");
        for why in [
            Unavailable::NotLoaded,
            Unavailable::Timeout,
            Unavailable::Network,
            Unavailable::ServerError(None),
            Unavailable::RateLimited(None),
            Unavailable::AuthRejected,
            Unavailable::Forbidden,
            Unavailable::Protocol,
            Unavailable::Rejected,
            Unavailable::FilterIgnored,
            Unavailable::TooLarge,
            Unavailable::Unsupported,
            Unavailable::Paused,
            Unavailable::OutOfBudget,
            Unavailable::Busy,
        ] {
            let row = format!("| `{}` | {} | ", why.as_str(), why.text());
            assert!(page.contains(&row), "docs/codes.md has no {row}");
        }
    }
}
