//! Devices from a JSON or CSV file, all in memory; the file is read again when it changes.

mod cells;
mod csv;
mod devices;
mod encoding;
mod header;
mod json;
mod mistake;
mod settings;
mod spelling;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::settings::{Fingerprint, files};
use arc_swap::ArcSwap;
use posture::identity::{DeviceId, IdentifierKind, UDID_SHAPES, undashed};
use sha2::{Digest as _, Sha256};

use posture::record::Record;

pub use self::settings::{Format, Settings};
use crate::answer::{Answer, Unavailable};
use crate::shrink::is_few;
pub use devices::{Devices, Parsed};
pub use header::Header;
pub use mistake::{Findings, Mistake, Mistakes, Place, Warning, Warnings};

/// Reads the devices of a file that is in memory.
///
/// # Errors
/// All that is wrong with the file, as far as it can be read.
pub fn parse(settings: &Settings, bytes: &[u8]) -> Result<Parsed, Mistakes> {
    let text = encoding::decode(bytes)?;
    match settings.format {
        Format::Json => json::read(settings, &text),
        Format::Csv => csv::read(settings, &text),
    }
}

/// A device file, in memory and read again on demand.
pub struct FileProvider {
    settings: Settings,
    current: ArcSwap<Loaded>,
    /// Number of tables that lookups were given, with the first one.
    readings: AtomicU64,
    /// Fingerprint of the file just before it was last read, whether the reading succeeded or not; `None`: there was no file.
    seen: Mutex<Option<Fingerprint>>,
    /// The turn to reload: each reload compares with what the one before it left.
    reloading: Mutex<()>,
    /// The loss of rows for which the last reading was not applied, while it waits for an operator.
    pending: Mutex<Option<Shrunk>>,
}

/// The table that answers lookups. A reload replaces it whole.
struct Loaded {
    devices: Devices,
    /// SHA-256 of the file.
    digest: [u8; 32],
}

impl FileProvider {
    /// Reads the file. Blocks for as long as that takes: about a second for each million devices.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn open(settings: &Settings) -> Result<Self, FileError> {
        Self::first(settings, None)
    }

    /// Reads the file to replace `before`, which has other settings. If both read the same list, the new one may lose no more
    /// rows than a reload may.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn open_after(settings: &Settings, before: &Self) -> Result<Self, FileError> {
        Self::first(settings, Some(before))
    }

    fn first(settings: &Settings, before: Option<&Self>) -> Result<Self, FileError> {
        let seen = Fingerprint::of(&settings.path);
        let Contents { bytes, digest } = Contents::read(&settings.path, || ())?;
        let Parsed { devices, .. } = settings.parse_and_tell(&bytes)?;
        if let Some(before) = before.filter(|before| before.settings.reads_as(settings) && before.current.load().digest != digest) {
            settings.bears_loss(before.len(), devices.len())?;
        }
        Ok(Self {
            settings: settings.clone(),
            current: ArcSwap::from_pointee(Loaded { devices, digest }),
            readings: AtomicU64::new(1),
            seen: Mutex::new(seen),
            reloading: Mutex::new(()),
            pending: Mutex::default(),
        })
    }

    /// Reads the file again, and answers from it if it is good. Blocks as [`Self::open`] does; lookups go on meanwhile.
    ///
    /// # Errors
    /// See [`FileError`]; the devices stay as they were. `accept_shrink` takes a file that lost more rows than it may.
    pub fn reload(&self, accept_shrink: bool) -> Result<Reloaded, FileError> {
        let _turn = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.read_again(accept_shrink);
        let pending = if let Err(FileError::Shrunk(shrunk)) = &result { Some(shrunk.clone()) } else { None };
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = pending;
        result
    }

    fn read_again(&self, accept_shrink: bool) -> Result<Reloaded, FileError> {
        let path = &self.settings.path;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Fingerprint::of(path);
        let Contents { bytes, digest } = Contents::read(path, || ())?;
        let current = self.current.load();
        if digest == current.digest {
            return Ok(Reloaded::Unchanged);
        }
        let Parsed { devices, .. } = self.settings.parse_and_tell(&bytes)?;
        drop(bytes);
        let (had, has) = (current.devices.len(), devices.len());
        if !accept_shrink {
            self.settings.bears_loss(had, has)?;
        }
        self.current.store(Arc::new(Loaded { devices, digest }));
        self.readings.fetch_add(1, Ordering::Release);
        Ok(Reloaded::Applied { had, has })
    }

    /// The loss of rows for which the file that was last read is not applied.
    pub fn pending_shrink(&self) -> Option<Shrunk> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether the file differs from the one that was last read, good or bad. Costs one `stat`.
    pub fn changed(&self) -> bool {
        self.fingerprint() != *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fingerprint that tells the file apart from what it was; `None` if there is no file.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        Fingerprint::of(&self.settings.path)
    }

    /// Looks a device up, if its identifier is of the kind that the file lists: the same letters can be one device's serial
    /// number and another one's host name.
    pub fn lookup(&self, device: &DeviceId) -> Answer {
        if device.kind() != self.settings.identifier {
            return Answer::InvalidIdentifier;
        }
        let loaded = self.current.load();
        let spellings = spellings(device);
        let mut found = spellings.iter().filter_map(|spelling| loaded.devices.find(spelling));
        match (found.next(), found.next()) {
            (None, _) => Answer::NotFound,
            // A file has each identifier once, so these are two rows of one UDID.
            (Some(_), Some(_)) => Answer::Ambiguous,
            // The data was read as JSON when the file was loaded, so this does not fail; if it did, nobody could say.
            (Some(found), None) => found.data().map_or(Answer::Unavailable(Unavailable::NotLoaded), |data| {
                Answer::Found(Arc::new(Record::of_data(data.as_json().to_owned())))
            }),
        }
    }

    /// Number of tables that lookups were given, with the first one: while it stays the same, so do the answers.
    pub fn readings(&self) -> u64 {
        self.readings.load(Ordering::Acquire)
    }

    /// Number of devices.
    pub fn len(&self) -> usize {
        self.current.load().devices.len()
    }

    /// Returns whether the file lists no device.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The settings that the file is read by.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// Spellings by which a file may write an identifier, each once: a UDID is the same with the dashes of its form and without, as
/// in the cache.
fn spellings(device: &DeviceId) -> Vec<Cow<'_, str>> {
    let stated = Cow::Borrowed(device.normal());
    if device.kind() != IdentifierKind::Udid {
        return vec![stated];
    }
    let plain = undashed(device.normal()).into_owned();
    let groups = UDID_SHAPES.iter().find(|groups| groups.iter().sum::<usize>() == plain.len() && !plain.contains('-'));
    let mut letters = plain.chars();
    let groups = groups.into_iter().copied().flatten();
    let dashed = groups.map(|length| letters.by_ref().take(*length).collect::<String>()).collect::<Vec<_>>().join("-");
    let mut spellings = vec![stated, Cow::Owned(plain), Cow::Owned(dashed)];
    spellings.retain(|spelling| !spelling.is_empty());
    spellings.sort_unstable();
    spellings.dedup();
    spellings
}

impl fmt::Debug for FileProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileProvider").field("settings", &self.settings).field("devices", &self.len()).finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads the file as the service does, and keeps nothing of it. Blocks as [`FileProvider::open`] does.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn read(&self) -> Result<Parsed, FileError> {
        self.parse(&Contents::read(&self.path, || ())?.bytes)
    }

    fn parse(&self, bytes: &[u8]) -> Result<Parsed, FileError> {
        parse(self, bytes).map_err(|mistakes| FileError::Invalid { path: self.path.clone(), mistakes })
    }

    /// Parses a file that is to be used, and logs what an operator should look at.
    fn parse_and_tell(&self, bytes: &[u8]) -> Result<Parsed, FileError> {
        let parsed = self.parse(bytes)?;
        if let Some(Header { name, separator, .. }) = parsed.header.as_ref().filter(|header| header.is_guessed) {
            let (file, separator) = (self.path.display(), separator.escape_default());
            tracing::info!(%file, column = name, %separator, "the identifiers of the device file are taken from this column");
        }
        for warning in parsed.warnings.sentences(&self.path) {
            tracing::warn!("{warning}");
        }
        Ok(parsed)
    }

    /// Returns whether other settings find the same devices in the same file.
    fn reads_as(&self, other: &Self) -> bool {
        let list = |settings: &Self| (settings.path.clone(), settings.format, settings.identifier, settings.identifier_column.clone());
        list(self) == list(other)
    }

    /// Checks the loss of rows between two readings of the file.
    ///
    /// # Errors
    /// [`Shrunk`], where more rows are gone than may be.
    fn bears_loss(&self, had: usize, has: usize) -> Result<(), Shrunk> {
        let lost = had.saturating_sub(has);
        #[expect(clippy::cast_precision_loss, reason = "both are below 2^32")]
        let many = lost as f64 > had as f64 * self.max_shrink;
        if many && !is_few(lost, has, self.max_shrink) {
            return Err(Shrunk { path: self.path.clone(), had, has, max_shrink: self.max_shrink });
        }
        Ok(())
    }
}

/// The result of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// The file has the same bytes as before.
    Unchanged,
    /// Lookups are answered from the new file.
    Applied {
        /// Number of devices before.
        had: usize,
        /// Number of devices now.
        has: usize,
    },
}

/// The reason why a device file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system cannot read the file.
    #[error("device file {} cannot be read", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
    /// The path names a folder, a pipe or a device node.
    #[error("device file {} is not a regular file", path.display())]
    NotAFile {
        /// The path of the file.
        path: PathBuf,
    },
    /// The file is too long: offsets into it would not fit.
    #[error("device file {} has {bytes} bytes; at most {LONGEST} can be taken", path.display())]
    TooLarge {
        /// The path of the file.
        path: PathBuf,
        /// Length of the file in bytes.
        bytes: u64,
    },
    /// The file changed while it was read, so what was read may be half of it.
    #[error("device file {} changed while it was read", path.display())]
    Changed {
        /// The path of the file.
        path: PathBuf,
    },
    /// The content of the file is wrong.
    #[error("{}", mistakes.in_file(path))]
    Invalid {
        /// The path of the file.
        path: PathBuf,
        /// All that is wrong, and where.
        mistakes: Mistakes,
    },
    /// The file lost more rows than a reload may lose.
    #[error(transparent)]
    Shrunk(#[from] Shrunk),
}

/// A device file that lost more rows than a reload may lose.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "device file {} shrank from {had} devices to {has}, by more than max_shrink = {max_shrink}: devices that are gone from it are still let in",
    path.display()
)]
pub struct Shrunk {
    path: PathBuf,
    /// Number of devices in memory.
    had: usize,
    /// Number of devices in the file.
    has: usize,
    max_shrink: f64,
}

/// The bytes of a file, and their SHA-256.
struct Contents {
    bytes: Vec<u8>,
    digest: [u8; 32],
}

impl Contents {
    /// Reads a file that must not change meanwhile. `meanwhile` runs after the last byte, for tests that write to the file.
    fn read(path: &Path, meanwhile: impl FnOnce()) -> Result<Self, FileError> {
        let failed = |cause| FileError::Read { path: path.to_owned(), cause: files::noted(cause) };
        let mut file = files::open(path).map_err(|cause| match cause.kind() {
            io::ErrorKind::InvalidInput => FileError::NotAFile { path: path.to_owned() },
            _ => failed(cause),
        })?;
        let before = Fingerprint::from(&file.metadata().map_err(failed)?);
        if before.length() > LONGEST {
            return Err(FileError::TooLarge { path: path.to_owned(), bytes: before.length() });
        }
        let mut bytes = Vec::new();
        let length = usize::try_from(before.length()).unwrap_or(usize::MAX);
        bytes.try_reserve_exact(length).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        // Bytes that are written behind the end meanwhile are not read: the file is refused as changed.
        let mut digest = Sha256::new();
        loop {
            let at = bytes.len();
            let chunk = CHUNK.min((length - at) as u64);
            if Read::by_ref(&mut file).take(chunk).read_to_end(&mut bytes).map_err(failed)? == 0 {
                break;
            }
            digest.update(bytes.get(at..).unwrap_or_default());
        }
        meanwhile();
        let after = Fingerprint::from(&file.metadata().map_err(failed)?);
        if before != after || bytes.len() != length {
            return Err(FileError::Changed { path: path.to_owned() });
        }
        Ok(Self { bytes, digest: digest.finalize().into() })
    }
}

/// Longest file, in bytes: offsets into it are kept as `u32`.
const LONGEST: u64 = u32::MAX as u64;

/// Number of bytes that are read at once, and hashed while they are still in the processor's cache.
const CHUNK: u64 = 256 * 1024;
