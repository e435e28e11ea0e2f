//! Marks of devices: numbers for what events and questions name devices by.

use posture::identity::normal;
use sha2::{Digest as _, Sha256};

/// A number for what an event can mean a device by. Two names with one mark cost a call, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Mark(u64);

impl Mark {
    /// The mark of an identifier, whatever its case, blanks and dashes.
    pub(super) fn identifier(identifier: &str) -> Self {
        let plain: String = normal(identifier).chars().filter(|letter| *letter != '-').collect();
        Self::hash(b'i', plain.as_bytes())
    }

    /// The mark of the inventory's own id of a device.
    pub(super) fn provider_id(id: &str) -> Self {
        Self::hash(b'p', id.as_bytes())
    }

    /// The mark of a whole record, where the inventory has no id of the device.
    pub(super) fn content(record: &[u8]) -> Self {
        Self::hash(b'r', record)
    }

    /// The mark as other services are told it.
    pub(super) const fn number(self) -> i64 {
        self.0.cast_signed()
    }

    /// The mark that another service told.
    pub(super) const fn told(number: i64) -> Self {
        Self(number.cast_unsigned())
    }

    /// The mark of a text, apart from those of other kinds.
    pub(super) fn hash(kind: u8, text: &[u8]) -> Self {
        let digest: [u8; 32] = Sha256::new().chain_update([kind]).chain_update(text).finalize().into();
        let (first, _) = digest.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
        Self(u64::from_le_bytes(*first))
    }
}
