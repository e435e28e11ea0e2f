//! Step 7: what is known of a device. A provider is one file; it sees this module and nothing else of ours.

pub mod file;

use posture::identity::DeviceId;
use posture::outcome::Data;

/// What a provider says of a device.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It has exactly one record that fits.
    Found(Record),
    /// Its answer was complete, and no record fits.
    NotFound,
    /// More than one record fits.
    Ambiguous,
    /// It cannot say.
    Unavailable(Unavailable),
    /// No device of this provider can have such an identifier; nobody was asked.
    InvalidIdentifier,
}

/// What is known of one device.
#[derive(Clone, Debug)]
pub struct Record {
    /// For the templates, as it stands.
    pub data: Data,
}

/// Why a provider cannot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// It has not been read yet, or never could be.
    NotLoaded,
}

impl Unavailable {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotLoaded => "it could not be read",
        }
    }
}

/// A source of devices.
#[derive(Debug)]
pub enum Provider {
    /// A JSON or CSV file.
    File(file::FileProvider),
    /// Answers from a closure, when it says so.
    #[cfg(test)]
    Fake(fake::Fake),
}

impl Provider {
    /// Reads what there is to read. Blocks meanwhile.
    ///
    /// # Errors
    /// Every mistake, in words for the operator.
    pub fn open(settings: &crate::config::Provider) -> Result<Self, String> {
        match settings {
            crate::config::Provider::File(settings) => file::FileProvider::open(settings).map(Self::File).map_err(|error| chain(&error)),
        }
    }

    /// Whether these are the settings that it was opened with.
    pub fn has(&self, settings: &crate::config::Provider) -> bool {
        match (self, settings) {
            (Self::File(file), crate::config::Provider::File(settings)) => file.settings() == settings,
            #[cfg(test)]
            (Self::Fake(_), _) => true,
        }
    }

    /// Asks for one device.
    pub async fn lookup(&self, device: &DeviceId) -> Answer {
        match self {
            Self::File(file) => file.lookup(device),
            #[cfg(test)]
            Self::Fake(fake) => fake.lookup(device).await,
        }
    }

    /// Whether what it reads from is another than what it last read. Cheap.
    pub fn changed(&self) -> bool {
        match self {
            Self::File(file) => file.changed(),
            #[cfg(test)]
            Self::Fake(_) => false,
        }
    }

    /// The file that it reads from.
    pub fn file(&self) -> Option<&std::path::Path> {
        match self {
            Self::File(file) => Some(&file.settings().path),
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
            #[cfg(test)]
            Self::Fake(_) => Ok("unchanged".to_owned()),
        }
    }

    /// Devices that it holds.
    pub fn len(&self) -> usize {
        match self {
            Self::File(file) => file.len(),
            #[cfg(test)]
            Self::Fake(_) => 0,
        }
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
