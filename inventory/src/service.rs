//! The services that Stepward can ask: the word of each in `type = "…"`, and the module with its settings.

use std::path::Path;
use std::sync::Arc;

use posture::record::{Fields, Form, Record};
use posture::secret::Secret;
use settings::{SecretSource, Section};
use url::Url;

use crate::http::Endpoint;
use crate::inventory::Inventory;
use crate::setup::{Defaults, Demands, Setup};

/// Makes [`Service`] and all that differs from one service to the next, from one line for each: its variant, and its module with
/// `NAME` and `Settings`.
macro_rules! services {
    ($($(#[$doc:meta])* $variant:ident: crate::$module:ident;)*) => {
        /// A service with its settings.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Service {
            $($(#[$doc])* $variant(crate::$module::Settings),)*
        }

        const KINDS: &[Kind] = &[$(Kind {
            name: crate::$module::NAME,
            defaults: crate::$module::Settings::defaults,
            read: |section, base| crate::$module::Settings::read(section, base).map(Service::$variant),
        }),*];

        impl Service {
            /// The settings of the service, whichever it is.
            fn setup(&self) -> &dyn Setup {
                match self {
                    $(Self::$variant(settings) => settings,)*
                }
            }
        }
    };
}

services! {
    /// Addigy: `type = "addigy"`.
    Addigy: crate::addigy;
    /// Fleet: `type = "fleet"`.
    Fleet: crate::fleet;
    /// A customer's own inventory over HTTP: `type = "http"`.
    HttpJson: crate::http_json;
    /// Microsoft Intune: `type = "intune"`.
    Intune: crate::intune;
    /// Jamf Pro: `type = "jamf"`.
    Jamf: crate::jamf;
    /// Kandji: `type = "kandji"`.
    Kandji: crate::kandji;
    /// Mosyle: `type = "mosyle"`.
    Mosyle: crate::mosyle;
}

/// One kind of service: its word, its defaults, and its reader of settings.
struct Kind {
    name: &'static str,
    defaults: fn() -> Defaults,
    read: fn(&mut Section<'_>, &Path) -> Option<Service>,
}

impl Service {
    /// The words of all services.
    pub fn names() -> impl Iterator<Item = &'static str> {
        KINDS.iter().map(|kind| kind.name)
    }

    /// The defaults of the service of this word; `None`: there is no such service.
    pub fn defaults(name: &str) -> Option<Defaults> {
        Self::kind(name).map(|kind| (kind.defaults)())
    }

    /// Reads the keys that are the service's own, as [`Setup::read`]. Returns `None` where a key is missing or wrong, or where
    /// there is no such service.
    pub fn read(name: &str, section: &mut Section<'_>, base: &Path) -> Option<Self> {
        Self::kind(name).and_then(|kind| (kind.read)(section, base))
    }

    fn kind(name: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// The service's word.
    pub fn name(&self) -> &'static str {
        self.setup().name()
    }

    /// Sources of the service's secrets, in the order in which [`Service::open`] takes them.
    pub fn secrets(&self) -> Vec<&SecretSource> {
        self.setup().secrets()
    }

    /// Makes a client. Nothing is sent yet.
    ///
    /// # Errors
    /// The reason in words for the operator.
    pub fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Arc<dyn Inventory>, String> {
        self.setup().open(endpoint, secrets)
    }

    /// Fields that the service's records can ever hold with these settings.
    pub fn fields(&self) -> Fields {
        self.setup().fields()
    }

    /// The address that is asked: the settings of some services decide it.
    pub fn address(&self, base_url: Url) -> Url {
        self.setup().address(base_url)
    }

    /// Returns whether a record counts for a question in which `mode` names a kind of record.
    pub fn counts(&self, record: &Record, mode: Option<Form>) -> bool {
        self.setup().counts(record, mode)
    }

    /// The settings' demands on records of one form, beyond that the device is managed.
    pub fn demands(&self, form: Form) -> Demands {
        self.setup().demands(form)
    }
}
