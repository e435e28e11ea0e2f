//! The services that Stepward can ask, one line each: its word in `type = "…"`, and the module with its settings and its
//! [`Inventory`].

use std::path::Path;
use std::sync::Arc;

use posture::record::Fields;
use posture::secret::Secret;
use url::Url;

use super::http::Endpoint;
use super::inventory::Inventory;
use crate::config::{SecretSource, Section};

macro_rules! services {
    ($($variant:ident = $name:literal in $module:ident),* $(,)?) => {
        /// A service, and how it is set up.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Service {
            $(#[doc = concat!("`type = \"", $name, "\"`")] $variant(super::$module::Settings),)*
        }

        impl Service {
            /// Their words.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// Its word.
            pub const fn name(&self) -> &'static str {
                match *self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            /// Reads the keys that are its own. `None` where one is missing or wrong, which is reported then.
            #[allow(unused_variables, reason = "not every service reads a path")]
            pub(crate) fn read(name: &str, section: &mut Section<'_>, base: &Path) -> Option<Self> {
                match name {
                    $($name => super::$module::Settings::read(section, base).map(Self::$variant),)*
                    _ => None,
                }
            }

            /// Where its secrets are, in the order in which [`Service::open`] takes them.
            pub fn secrets(&self) -> Vec<&SecretSource> {
                match *self {
                    $(Self::$variant(ref settings) => settings.secrets(),)*
                }
            }

            /// Makes a client. Nothing is sent yet.
            ///
            /// # Errors
            /// In words for the operator.
            #[allow(unused_variables, reason = "where there is no service yet")]
            pub fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Arc<dyn Inventory>, String> {
                match *self {
                    $(Self::$variant(ref settings) => Ok(Arc::new(settings.open(endpoint, secrets)?)),)*
                }
            }

            /// Fields that its records can ever hold, set up so.
            pub fn fields(&self) -> Fields {
                match *self {
                    $(Self::$variant(ref settings) => settings.fields(),)*
                }
            }

            /// What holds where the configuration says nothing.
            pub fn defaults(name: &str) -> Defaults {
                match name {
                    $($name => Defaults {
                        base_url: super::$module::Settings::BASE_URL,
                        connections: super::$module::Settings::CONNECTIONS,
                        per_second: super::$module::Settings::PER_SECOND,
                    },)*
                    _ => Defaults { base_url: None, connections: 1, per_second: 1 },
                }
            }
        }
    };
}

/// [`Service::defaults`]
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// Its address; `None`: everybody has one of their own.
    pub base_url: Option<&'static str>,
    /// Requests at once.
    pub connections: usize,
    /// Lookups in a second.
    pub per_second: u32,
}

impl Service {
    /// The address that is asked: some services have settings of their own that say it.
    pub(crate) fn address(&self, base_url: Url) -> Url {
        match self {
            Self::Intune(settings) => settings.graph_url.clone().unwrap_or(base_url),
            Self::Mosyle(settings) => settings.address(base_url),
            _ => base_url,
        }
    }
}

services! {
    Addigy = "addigy" in addigy,
    Fleet = "fleet" in fleet,
    HttpJson = "http" in http_json,
    Intune = "intune" in intune,
    Jamf = "jamf" in jamf,
    Kandji = "kandji" in kandji,
    Mosyle = "mosyle" in mosyle,
}
