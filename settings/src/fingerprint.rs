//! Detection of a changed file, without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Metadata that tells a file at a path apart from others and from its earlier content. Symbolic links are followed: Kubernetes
/// swaps one to replace a volume's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    file: (u64, u64),
    length: u64,
    modified: (i64, i64),
    /// Change time of the inode, in which even a program that resets the modification time leaves a trace.
    touched: (i64, i64),
}

impl Fingerprint {
    /// The fingerprint of the file at a path; `None` where there is no file, or the system gives no metadata.
    pub fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().as_ref().map(Self::from)
    }

    /// The length of the file in bytes.
    pub const fn length(&self) -> u64 {
        self.length
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
