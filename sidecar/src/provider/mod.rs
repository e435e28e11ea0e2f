//! Step 7: what is known of a device. A provider is one file; it sees this module, the seam in [`inventory`], the helpers
//! [`http`] and [`token`], and nothing else of ours.

pub mod file;
pub mod http;
pub mod intune;
pub mod inventory;
pub mod service;
pub mod token;

use std::sync::Arc;
use std::time::Duration;

use posture::record::Record;
use posture::secret::Secret;

use crate::config;
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
            Self::FilterIgnored => "filter_ignored",
            Self::TooLarge => "too_large",
            Self::Unsupported => "unsupported",
            Self::Paused => "paused",
            Self::OutOfBudget => "out_of_budget",
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
            Self::FilterIgnored => "it answers with other devices than were asked for",
            Self::TooLarge => "its answer is too large",
            Self::Unsupported => "it cannot do that",
            Self::Paused => "it failed, and is left alone for a moment",
            Self::OutOfBudget => "too many unknown devices were asked for",
        }
    }
}

/// A source of devices.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there are as many as in the configuration")]
pub enum Provider {
    /// A JSON or CSV file.
    File(file::FileProvider),
    /// A service that answers over HTTP.
    Remote(Remote),
    /// Answers from a closure, when it says so.
    #[cfg(test)]
    Fake(fake::Fake),
}

impl Provider {
    /// Reads what there is to read. Blocks meanwhile.
    ///
    /// # Errors
    /// Every mistake, in words for the operator.
    pub fn open(settings: &config::Provider, secrets: &[Secret]) -> Result<Self, String> {
        match settings {
            config::Provider::File(settings) => file::FileProvider::open(settings).map(Self::File).map_err(|error| chain(&error)),
            config::Provider::Remote(settings) => Remote::open(settings, secrets).map(Self::Remote),
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
    pub async fn lookup(&self, question: &Question) -> Answer {
        match self {
            Self::File(file) => file.lookup(&question.device),
            Self::Remote(remote) => remote.inventory.lookup(question).await,
            #[cfg(test)]
            Self::Fake(fake) => fake.lookup(&question.device).await,
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

    /// Reads again. Blocks meanwhile; lookups go on.
    ///
    /// # Errors
    /// Why what it held before stays.
    pub fn reload(&self, accept_shrink: bool) -> Result<String, String> {
        match self {
            Self::File(file) => match file.reload(accept_shrink) {
                Ok(file::Reloaded::Unchanged) => Ok("unchanged".to_owned()),
                Ok(file::Reloaded::Applied { had, has }) => Ok(format!("{has} devices, before {had}")),
                Err(error) => Err(chain(&error)),
            },
            Self::Remote(_) => Ok("asked when it is needed".to_owned()),
            #[cfg(test)]
            Self::Fake(_) => Ok("unchanged".to_owned()),
        }
    }

    /// Devices that it holds.
    pub fn len(&self) -> usize {
        match self {
            Self::File(file) => file.len(),
            Self::Remote(_) => 0,
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
    inventory: Arc<dyn Inventory>,
}

impl Remote {
    fn open(settings: &config::Remote, secrets: &[Secret]) -> Result<Self, String> {
        let inventory = settings.service.open(&settings.endpoint, secrets)?;
        Ok(Self { settings: settings.clone(), secrets: secrets.to_vec(), inventory })
    }
}

/// An error and its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
pub(crate) mod fake {
    use std::fmt;

    use futures::future::BoxFuture;
    use posture::identity::DeviceId;

    use super::Answer;

    type Lookup = dyn Fn(DeviceId) -> BoxFuture<'static, Answer> + Send + Sync;

    /// A provider that a test scripts.
    pub struct Fake(Box<Lookup>);

    impl Fake {
        pub(crate) fn new<F: Future<Output = Answer> + Send + 'static>(lookup: impl Fn(DeviceId) -> F + Send + Sync + 'static) -> Self {
            Self(Box::new(move |device| Box::pin(lookup(device))))
        }

        pub(crate) async fn lookup(&self, device: &DeviceId) -> Answer {
            (self.0)(device.clone()).await
        }
    }

    impl fmt::Debug for Fake {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Fake")
        }
    }
}
