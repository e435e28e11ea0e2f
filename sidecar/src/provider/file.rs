//! Devices from a JSON or CSV file.

use std::path::PathBuf;

use posture::identity::DeviceId;

use super::{Answer, Unavailable};

/// `[provider.<name>]` with `type = "file"`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The file.
    pub path: PathBuf,
    /// Its format; the configuration takes it from the name where it is not given.
    pub format: Format,
    /// Share of the rows that a reload may lose, 0 to 1; default 0.1.
    pub max_shrink: f64,
}

/// Format of a device file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `{"devices":[{"identifier":"…","data":{…}}]}`
    Json,
    /// First header `Identifier`, the other columns are data.
    Csv,
}

/// A device file in memory.
#[derive(Debug)]
pub struct FileProvider {}

impl FileProvider {
    /// Looks a device up.
    pub fn lookup(&self, _device: &DeviceId) -> Answer {
        Answer::Unavailable(Unavailable::NotLoaded)
    }
}
