//! The seam of providers: what a source of devices is to decisions and to operators.

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use inventory::file::FileError;
use inventory::{Proof, Question};
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::Record;
use posture::secret::Secret;

use super::configured::ProviderSettings;
use crate::cache::{self, Cache, Looked};
use crate::fleet::Fleet;
use crate::metrics::Metrics;

/// What all providers share: the metrics, and who is told of the devices that they learn of.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The listener that is told which identifiers belong to one device.
    pub acquaintances: cache::Acquaintances,
    /// The services on the same store.
    pub fleet: Arc<Fleet>,
}

/// A provider: a source of devices, as decisions and operators use it. [`super::open`] makes one of its settings.
#[async_trait]
pub trait Provider: Any + fmt::Debug + Send + Sync {
    /// Whether the provider was opened with these settings and secrets.
    fn has(&self, settings: &ProviderSettings, secrets: &[Secret]) -> bool;

    /// Asks for one device.
    async fn lookup(&self, question: &Question, terms: cache::Terms) -> Looked;

    /// Whether an answer is still what is known of the device.
    fn stands(&self, device: &DeviceId, looked: &Looked) -> bool;

    /// Whether an answer is still what is known of the device, and within its lifetime.
    fn is_current(&self, device: &DeviceId, looked: &Looked) -> bool {
        self.stands(device, looked)
    }

    /// Whether more than one device of the provider had one of the record's identifiers when that was last known.
    fn is_ambiguous(&self, record: &Record) -> bool {
        self.cache().is_some_and(|cache| cache.is_ambiguous(record))
    }

    /// Whether the provider can have a device by an identifier of this kind, as far as is known without asking. A file lists
    /// one kind; a service is asked by serial numbers, UDIDs, and the kinds that webhooks and queries have.
    fn is_asked_by(&self, kind: IdentifierKind) -> bool;

    /// Puts the provider in force: its service is asked by the settings and secrets that it was opened with, and for what is
    /// wanted, and its lists and its feed are read.
    fn take_effect(&self, _wanted: cache::Wanted) {}

    /// The cache, where there is one.
    fn cache(&self) -> Option<&Arc<Cache>> {
        None
    }

    /// The proof that events carry, and its secret, where events are taken.
    fn push(&self) -> Option<(&Proof, &Secret)> {
        None
    }

    /// The file that the provider reads from, where it is one.
    fn file(&self) -> Option<&Path> {
        None
    }

    /// Whether the file has changed since it was last read. Cheap.
    fn changed(&self) -> bool {
        false
    }

    /// Reads the source again, and returns the result in words for people. Blocks meanwhile; lookups go on. A service is listed
    /// again, beside this call, only with `accept_shrink`. `name` is the provider's own, for the command that accepts a list
    /// which shrank.
    ///
    /// # Errors
    /// The reason why the provider keeps what it held before.
    fn reload(&self, name: &str, accept_shrink: bool) -> Result<String, Failure>;

    /// The list that is not applied since it lost too many devices, in words for people, with the command that accepts it.
    /// `name` is the provider's own.
    fn pending_shrink(&self, _name: &str) -> Option<String> {
        None
    }

    /// Number of devices that the provider holds.
    fn len(&self) -> usize;

    /// Whether the provider holds none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The reason why a provider cannot be opened or read again.
#[derive(Debug)]
pub enum Failure {
    /// The file of devices cannot be read, or lost too many.
    File(FileError),
    /// The client of a service cannot be made, in words for the operator.
    Service(String),
}

impl Failure {
    /// The failure and its causes in one line, for the operator of the provider of this name.
    pub fn told(&self, name: &str) -> String {
        match self {
            Self::File(error @ FileError::Shrunk(_)) => format!("{error}; {}", cache::accept(name)),
            Self::File(error) => chain(error),
            Self::Service(error) => error.clone(),
        }
    }
}

/// An error and its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
