//! Devices from a JSON or CSV file, all in memory; the file is read again when it changes.

mod csv;
mod devices;
mod encoding;
mod header;
mod json;
mod mistake;
mod spelling;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use posture::identity::{DeviceId, IdentifierKind, UDID_SHAPES, undashed};
use sha2::{Digest as _, Sha256};

use posture::record::Record;

use super::{Answer, Unavailable};
use crate::files;
use crate::placeholders::Placeholders;
pub use devices::Devices;
pub use header::Header;
pub use mistake::{Findings, Mistake, Mistakes, Place, Warning, Warnings};

/// `[provider.<name>]` with `type = "file"`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The file.
    pub path: PathBuf,
    /// Its format; the configuration takes it from the name where it is not given.
    pub format: Format,
    /// What its identifiers are; default serial numbers. A question for another kind finds nothing in it.
    pub identifier: IdentifierKind,
    /// Header of the CSV column with the identifiers, without white space at its ends, case ignored; default `Identifier`, or the
    /// one that is known from the exports of managements.
    pub identifier_column: Option<String>,
    /// Texts that identify nobody.
    pub placeholders: Placeholders,
    /// Share of the rows that a reload may lose, 0 to 1; default 0.1.
    pub max_shrink: f64,
}

/// Format of a device file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `{"devices":[{"identifier":"…","data":{…}}]}`
    Json,
    /// One column has the identifiers, the others are data.
    Csv,
}

impl Settings {
    /// Those of a file of which nothing else is said.
    pub fn new(path: PathBuf, format: Format) -> Self {
        Self {
            path,
            format,
            identifier: IdentifierKind::Serial,
            identifier_column: None,
            placeholders: Placeholders::default(),
            max_shrink: MAX_SHRINK,
        }
    }
}

/// What was read of a device file.
#[derive(Debug)]
pub struct Parsed {
    /// The devices.
    pub devices: Devices,
    /// What should be looked at.
    pub warnings: Warnings,
    /// How a CSV file was read.
    pub header: Option<Header>,
}

/// Reads the devices of a file that is in memory.
///
/// # Errors
/// All that is wrong with it, as far as it can be read.
pub fn parse(settings: &Settings, bytes: &[u8]) -> Result<Parsed, Mistakes> {
    let text = encoding::decode(bytes)?;
    match settings.format {
        Format::Json => json::read(settings, &text),
        Format::Csv => csv::read(settings, &text),
    }
}

/// A device file in memory.
pub struct FileProvider {
    settings: Settings,
    current: ArcSwap<Loaded>,
    /// How often lookups were given another table.
    readings: AtomicU64,
    /// The file as it was before it was last read, whatever came of that; `None`: it was not there.
    seen: Mutex<Option<Fingerprint>>,
    /// One reload at a time: each compares with what the one before it left.
    reloading: Mutex<()>,
    /// What the file that was last read lost, where it waits for an operator.
    pending: Mutex<Option<Shrunk>>,
}

/// What lookups are answered from. A reload replaces it whole.
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

    /// Does the same where `before` goes by other settings: if it reads the same list, this one loses no more than a reload may.
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

    /// What the file that was last read lost, where it is not applied for that.
    pub fn pending_shrink(&self) -> Option<Shrunk> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the file is another than the one that was last read, good or bad. Costs one `stat`.
    pub fn changed(&self) -> bool {
        self.fingerprint() != *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What tells the file apart from what it was; `None` if it is not there.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        Fingerprint::of(&self.settings.path)
    }

    /// Looks a device up, where it is asked for by what the file lists: the same letters are one device's serial number and
    /// another one's host name.
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
            // It was read once as JSON when the file was, so it does not fail; if it did, nobody could say.
            (Some(found), None) => found.data().map_or(Answer::Unavailable(Unavailable::NotLoaded), |data| {
                Answer::Found(Arc::new(Record::of_data(data.as_json().to_owned())))
            }),
        }
    }

    /// How often lookups were given another table: while it stays the same, so do the answers.
    pub fn readings(&self) -> u64 {
        self.readings.load(Ordering::Acquire)
    }

    /// Number of devices.
    pub fn len(&self) -> usize {
        self.current.load().devices.len()
    }

    /// Whether there is no device.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How it was set up.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// How a file may write an identifier, each once: a UDID is the same with the dashes of its form and without, as it is in the cache.
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

    /// For a file that is to be used: what should be looked at is said in the log.
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

    /// Whether others find the same devices in the same file.
    fn reads_as(&self, other: &Self) -> bool {
        let list = |settings: &Self| (settings.path.clone(), settings.format, settings.identifier, settings.identifier_column.clone());
        list(self) == list(other)
    }

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

/// Whether so few rows are gone that a share of a short list says nothing. Where none is left, or `max_shrink` is 0, each one
/// counts: a list that is emptied was mostly not exported well.
pub(crate) fn is_few(lost: usize, has: usize, max_shrink: f64) -> bool {
    lost <= FEW && has > 0 && max_shrink > 0.0
}

/// Rows that any list may lose.
pub(crate) const FEW: usize = 5;

/// What became of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// The file has the bytes that it had.
    Unchanged,
    /// Lookups are answered from the new file.
    Applied {
        /// Devices before.
        had: usize,
        /// Devices now.
        has: usize,
    },
}

/// Why a device file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system says so.
    #[error("device file {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A folder, a pipe or a device node.
    #[error("device file {} is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Offsets into it would not fit.
    #[error("device file {} has {bytes} bytes; at most {LONGEST} can be taken", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// Somebody wrote to it meanwhile, so what was read may be half of it.
    #[error("device file {} changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Its content is wrong.
    #[error("{}", mistakes.in_file(path))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        mistakes: Mistakes,
    },
    /// It lost more rows than a reload may lose.
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
    /// Devices in memory.
    had: usize,
    /// Devices in the file.
    has: usize,
    max_shrink: f64,
}

/// Which file stands at a path, without reading it. Symbolic links are followed: Kubernetes swaps one to replace a volume's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    file: (u64, u64),
    length: u64,
    modified: (i64, i64),
    /// Of the inode, which a program that sets the modification time back cannot hide.
    touched: (i64, i64),
}

impl Fingerprint {
    pub(crate) fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().as_ref().map(Self::from)
    }
}

impl From<&Metadata> for Fingerprint {
    fn from(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            touched: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file, read.
struct Contents {
    bytes: Vec<u8>,
    digest: [u8; 32],
}

impl Contents {
    /// Reads a file that stands still. `meanwhile` runs after the last byte, for tests that write to it.
    fn read(path: &Path, meanwhile: impl FnOnce()) -> Result<Self, FileError> {
        let failed = |cause| FileError::Read { path: path.to_owned(), cause: files::noted(cause) };
        let mut file = files::open(path).map_err(|cause| match cause.kind() {
            io::ErrorKind::InvalidInput => FileError::NotAFile { path: path.to_owned() },
            _ => failed(cause),
        })?;
        let before = Fingerprint::from(&file.metadata().map_err(failed)?);
        if before.length > LONGEST {
            return Err(FileError::TooLarge { path: path.to_owned(), bytes: before.length });
        }
        let mut bytes = Vec::new();
        let length = usize::try_from(before.length).unwrap_or(usize::MAX);
        bytes.try_reserve_exact(length).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        // What is written behind the end meanwhile is not read: the file is refused for it.
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

/// Share of the rows that a reload may lose where nobody says another.
const MAX_SHRINK: f64 = 0.1;

/// Longest file, in bytes: places in it are kept as `u32`.
const LONGEST: u64 = u32::MAX as u64;

/// Bytes that are read and then hashed while they are still in the processor's cache.
const CHUNK: u64 = 256 * 1024;
