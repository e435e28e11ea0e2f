//! Digests of identifiers: their texts could be names of people's devices that nobody asked to keep.

use posture::identity::{DeviceId, IdentifierKind};
use posture::shown::clean;
use sha2::{Digest as _, Sha256};

use crate::identifier::{key, plain};
use crate::ruling::Ruling;

/// Digest of an identifier and its kind: the first 64 bits of SHA-256. Of a million identifiers, two have one digest by chance
/// with a probability of 3 in 10^8; a lock then denies a device too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(pub i64);

impl Mark {
    /// The digest of an identifier in any form; a `kind` of `None` is for identifiers of no kind that requests state.
    pub fn of(kind: Option<IdentifierKind>, text: &str) -> Self {
        let text = if kind == Some(IdentifierKind::Udid) { key(text) } else { plain(clean(text)) };
        let kind_name = kind.map_or("", IdentifierKind::as_str);
        let digest: [u8; 32] = Sha256::new().chain_update(kind_name).chain_update([0]).chain_update(&*text).finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        Self(i64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    /// The digests of all identifiers that a ruling is about.
    pub fn all(ruling: &Ruling) -> Vec<Self> {
        let kinds = match ruling.identifier_kind {
            Some(kind) => &[kind][..],
            None => IdentifierKind::ALL,
        };
        kinds.iter().copied().map(Some).chain([None]).map(|kind| Self::of(kind, &ruling.device)).collect()
    }

    /// The digests of the identifier in a request: by its kind, and as an identifier that an inventory gives no kind.
    pub fn stated(device: &DeviceId) -> [Self; 2] {
        [Some(device.kind()), None].map(|kind| Self::of(kind, device.normal()))
    }
}

/// Most identifiers that one lock covers.
pub const MOST_COVERED: usize = 1024;

/// Number of the identifiers of [`MOST_COVERED`] that were learned first: a device cannot push its own out of the lock by ever
/// new identifiers, reported before or after its own.
pub const FIRST_COVERED: usize = 256;
