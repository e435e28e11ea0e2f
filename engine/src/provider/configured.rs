//! `[provider.<name>]`: the settings of a source of devices.

use inventory::http::Endpoint;
use inventory::{Placeholders, Push, Service, file};
use posture::record::{Field, Fields};
use settings::SecretSource;

use crate::cache::{Lifetimes, Limits, Schedule};

/// The settings of one source of devices.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are only as many as there are providers")]
pub enum ProviderSettings {
    /// A file of devices: `type = "file"`.
    File(file::Settings),
    /// A service that answers over HTTP: any other type.
    Remote(RemoteSettings),
}

impl ProviderSettings {
    /// Fields that the provider's records can ever hold.
    pub fn fields(&self) -> Fields {
        match self {
            Self::File(_) => Fields::of(&[Field::Data]),
            Self::Remote(remote) => remote.service.fields(),
        }
    }

    /// Where the provider's secrets are: those of the service, then that of its events.
    pub fn secrets(&self) -> Vec<&SecretSource> {
        match self {
            Self::File(_) => Vec::new(),
            Self::Remote(remote) => remote.service.secrets().into_iter().chain(remote.push.as_ref().map(|push| &push.secret)).collect(),
        }
    }
}

/// The settings of a service that answers over HTTP, and of its cache.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteSettings {
    /// The service, with the settings that it alone has.
    pub service: Service,
    /// The address of the service, and how it is called.
    pub endpoint: Endpoint,
    /// The lifetimes of answers: `[provider.<name>.cache]`.
    pub cache: Lifetimes,
    /// The limits of calls: `[provider.<name>.limits]`.
    pub limits: Limits,
    /// The schedule of lists: `[provider.<name>.sync]`; without it only single devices are asked for.
    pub sync: Option<Schedule>,
    /// The proof of events: `[provider.<name>.push]`; without it no events are taken.
    pub push: Option<Push>,
    /// Texts that identify none of the service's devices.
    pub placeholders: Placeholders,
}
