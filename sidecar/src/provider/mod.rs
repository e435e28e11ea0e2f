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

/// A source of devices.
#[derive(Debug)]
pub enum Provider {
    /// A JSON or CSV file.
    File(file::FileProvider),
}

impl Provider {
    /// Asks for one device.
    pub async fn lookup(&self, device: &DeviceId) -> Answer {
        match self {
            Self::File(file) => file.lookup(device),
        }
    }
}
