//! The setup of a service: what its settings read of a configuration, and the client that they make.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use posture::record::{Fields, Form, Record};
use posture::secret::Secret;
use settings::{SecretSource, Section};
use url::Url;

use crate::http::Endpoint;
use crate::inventory::Inventory;

/// The settings of one kind of service.
pub trait Setup: fmt::Debug + Send + Sync {
    /// The service's word in `type = "…"`.
    fn name(&self) -> &'static str;

    /// The values that hold where the configuration says nothing.
    fn defaults() -> Defaults
    where
        Self: Sized;

    /// Reads the keys that are the service's own; a relative path is relative to `base`. Returns `None` where a key is missing or
    /// wrong, after reporting it.
    fn read(section: &mut Section<'_>, base: &Path) -> Option<Self>
    where
        Self: Sized;

    /// Sources of the service's secrets, in the order in which [`Setup::open`] takes them.
    fn secrets(&self) -> Vec<&SecretSource>;

    /// Makes a client. Nothing is sent yet.
    ///
    /// # Errors
    /// The reason in words for the operator.
    fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Arc<dyn Inventory>, String>;

    /// Fields that a record can ever hold with these settings.
    fn fields(&self) -> Fields;

    /// The address that is asked; `base_url` is that of the configuration, or the default.
    fn address(&self, base_url: Url) -> Url {
        base_url
    }

    /// Returns whether a record counts for a question in which `mode` names a kind of record.
    fn counts(&self, record: &Record, mode: Option<Form>) -> bool {
        let _ = (record, mode);
        true
    }

    /// The settings' demands on records of one form, beyond that the device is managed.
    fn demands(&self, form: Form) -> Demands {
        let _ = form;
        Demands::default()
    }
}

/// Demands of a service's settings on its records of one form, whoever asks, and what the settings add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// Name or id of the group that a device must be in.
    pub group: Option<String>,
    /// Whether templates get what is known of the user.
    pub enrich: bool,
}

/// The values that hold for a service where the configuration says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// Address of the service; `None`: each customer has an own address.
    pub base_url: Option<&'static str>,
    /// Number of requests at once.
    pub connections: usize,
    /// Number of lookups in a second.
    pub per_second: u32,
}
