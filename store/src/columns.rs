//! What the columns of both databases mean.

use std::time::Duration;

use posture::identity::{DeviceId, IdentifierKind, Identity, PublicKey, Trust};
use posture::time::UnixTime;
use sqlx::Error;

use crate::id::DecisionId;
use crate::ruling::{Ruling, RulingKind};

/// Counts and keys of a database when it was opened.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) decisions: u64,
    /// Number of pairs of identifiers.
    pub(crate) links: u64,
    pub(crate) keys: u64,
    /// The keys that were allowed last, the newest first, with their devices.
    pub(crate) newest_keys: Vec<(DeviceId, PublicKey)>,
}

/// The row of a ruling: id, kind, kind of the identifier, device, reason, maker, the times at which it was made and at which it
/// ends, its end by the proven time, and the corrections that its ends have heeded.
pub(crate) type RulingRow = (String, String, Option<String>, String, String, String, i64, Option<i64>, Option<i64>, i64);

/// Reads a ruling.
pub(crate) fn ruling(row: RulingRow) -> Result<Ruling, Error> {
    let (row_id, kind, identifier_kind, device, reason, made_by, made_at, until, proven_until, corrected) = row;
    let kind = RulingKind::ALL.iter().copied().find(|known| known.as_str() == kind).ok_or_else(|| Error::Decode(kind.into()))?;
    let identifier_kind = match (identifier_kind, kind) {
        (Some(kind), _) => Some(kind.parse().map_err(|error| Error::Decode(Box::new(error)))?),
        (None, RulingKind::Lock) => None,
        (None, RulingKind::Exemption) => Some(IdentifierKind::Serial),
    };
    Ok(Ruling {
        id: id(&row_id)?,
        kind,
        identifier_kind,
        device,
        reason,
        made_by,
        made_at: UnixTime::from_nanos(made_at),
        until: until.map(UnixTime::from_nanos),
        proven_until: proven_until.map(UnixTime::from_nanos),
        corrected,
    })
}

/// Reads an id.
pub(crate) fn id(text: &str) -> Result<DecisionId, Error> {
    text.parse().map_err(|error| Error::Decode(Box::new(error)))
}

/// Reads the device of a key.
pub(crate) fn identity(kind: &str, identifier: &str, rank_of_trust: i64) -> Result<Identity, Error> {
    let kind: IdentifierKind = kind.parse().map_err(|error| Error::Decode(Box::new(error)))?;
    let device = DeviceId::new(kind, identifier).map_err(|denial| Error::Decode(denial.code.into()))?;
    let trust = Trust::ALL.iter().copied().find(|known| rank(*known) == rank_of_trust);
    Ok(Identity { device, trust: trust.ok_or_else(|| Error::Decode("a trust that there is not".into()))? })
}

/// Reads a key with its device; `None` where they make no sense.
pub(crate) fn key(kind: &str, identifier: &str, digest: Vec<u8>) -> Option<(DeviceId, PublicKey)> {
    let device = DeviceId::new(kind.parse().ok()?, identifier).ok()?;
    Some((device, PublicKey::of_digest(digest.try_into().ok()?)))
}

/// The rank of a trust in the database, with gaps for levels of a later release.
pub(crate) const fn rank(trust: Trust) -> i64 {
    match trust {
        Trust::Claimed => 10,
        Trust::Certificate => 20,
        Trust::Attested => 30,
    }
}

/// A duration in nanoseconds, the unit of every time in the database.
pub(crate) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
