//! Notices: what services that share a store tell each other of their caches of device managements.

use posture::identity::{DeviceId, IdentifierKind};

use crate::news::Heard;

/// What a service is told of a provider's devices. A notice takes away what is remembered and brings nothing, so it may be told
/// twice, and late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Name of the provider. A service that has none of this name ignores the notice.
    pub provider: String,
    /// What is told.
    pub about: About,
}

/// What a notice is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// An event about one device.
    Device {
        /// Digest of what the event named the device by.
        mark: i64,
        /// Whether earlier knowledge may not be used even in an outage.
        revoking: bool,
    },
    /// An event about any device.
    All {
        /// As of [`About::Device`].
        revoking: bool,
    },
    /// An operator had one device forgotten.
    Purge(DeviceId),
    /// An operator had every device forgotten.
    PurgeAll,
    /// The service begins to read a list of the provider's devices, of this id: [`crate::Begun`].
    List(String),
}

/// The notices since one that was heard.
#[derive(Debug)]
pub struct Notices {
    /// The last notice that is among these: from here the next look goes on.
    pub heard: Heard,
    /// Whether there were more, which did not fit.
    pub more: bool,
    /// What was noticed.
    pub noticed: Noticed,
}

/// What a look finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Noticed {
    /// Notices of other services, and the numbers under which this service told others: [`crate::Store::tell`].
    These(Vec<Notice>, Vec<i64>),
    /// What was told since is not known any more: it may have been anything.
    Lost {
        /// Whether the store lost what this service had heard already, so that others may never hear of it.
        went_back: bool,
    },
}

impl Notices {
    /// Nothing since this notice.
    pub const fn none(heard: Heard) -> Self {
        Self { heard, more: false, noticed: Noticed::These(Vec::new(), Vec::new()) }
    }

    /// Whether nothing was told.
    pub fn is_empty(&self) -> bool {
        matches!(&self.noticed, Noticed::These(others, own) if others.is_empty() && own.is_empty())
    }
}

impl About {
    /// The word for what is told, as the database has it.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Device { revoking: false, .. } => "changed",
            Self::Device { revoking: true, .. } => "revoked",
            Self::All { revoking: false } => "all_changed",
            Self::All { revoking: true } => "all_revoked",
            Self::Purge(_) => "purged",
            Self::PurgeAll => "all_purged",
            Self::List(_) => "listed",
        }
    }

    /// Reads what is told. What a later release may tell counts as the most that can be.
    pub(crate) fn read(what: &str, mark: Option<i64>, kind: Option<&str>, device: Option<&str>) -> Self {
        let purged = || DeviceId::new(kind?.parse::<IdentifierKind>().ok()?, device?).ok();
        match (what, mark) {
            ("listed", _) => device.map_or(Self::PurgeAll, |id| Self::List(id.to_owned())),
            ("changed" | "revoked", Some(mark)) => Self::Device { mark, revoking: what == "revoked" },
            ("all_changed", _) => Self::All { revoking: false },
            ("all_revoked", _) => Self::All { revoking: true },
            ("purged", _) => purged().map_or(Self::PurgeAll, Self::Purge),
            _ => Self::PurgeAll,
        }
    }
}
