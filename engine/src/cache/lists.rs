//! The state of the lists of the whole inventory, and what became of one.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use inventory::Unavailable;
use tokio::sync::watch;
use tokio::time::Instant;

use super::bounds::locked;
use super::order::Moment;

/// The state of one provider's lists.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    /// Number of reasons so far to read a full list now; watched by every cache that shares these lists, later ones included.
    pub(super) list_due: watch::Sender<u64>,
    /// Number of the last full list that was applied; records carry the number of the one that they were in.
    pub(super) applied: AtomicU32,
    /// Start of the last list that was applied, in nanoseconds since the epoch: the next list of changes goes back to it.
    pub(super) since: AtomicU64,
    /// Devices of the last full list.
    pub(super) devices: AtomicU64,
    /// Lock of whoever reads a list.
    pub(super) running: tokio::sync::Mutex<()>,
    /// Moment at which a list was last demanded: only one that was asked for later will do.
    demanded: Mutex<Moment>,
    /// Moment of the last list that was begun to be taken. What was asked for earlier comes to nothing.
    begun: Mutex<Moment>,
    /// When the last full list that was applied began; `None`: one is due.
    pub(super) last_full: Mutex<Option<Instant>>,
    /// Whether the next full list may lose as many devices as it does.
    pub(super) accept_shrink: AtomicBool,
    /// Devices before the last full list and in it, where it lost too many to be used.
    pub(super) shrunk: Mutex<Option<(u64, u64)>>,
}

/// A list that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Devices in the list.
    pub seen: u64,
    /// Identifiers that led to a device and are gone.
    pub removed: u64,
}

/// The reason why a list was not applied. What is remembered stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSwept {
    /// The service did not give all of the list.
    #[error("{}", .0.text())]
    Unavailable(Unavailable),
    /// The list may have left something out: its records are taken, and no device is removed.
    #[error("the list may not be complete, so no device was removed")]
    Incomplete,
    /// The list lost more devices than it may.
    #[error("the inventory shrank from {had} devices to {has}, by more than max_shrink: devices that are gone from it are still let in")]
    Shrunk {
        /// Devices of the last list.
        had: u64,
        /// Devices of this list.
        has: u64,
    },
    /// The list has more devices than are remembered, or does not end.
    #[error("the list has more than {0} devices, the most that are remembered; raise max_entries in the provider's [cache]")]
    TooLong(u64),
    /// The service keeps no list.
    #[error("this provider cannot list its devices")]
    Unsupported,
}

impl Sweeps {
    /// Demands a full list.
    pub(super) fn demand(&self) {
        *locked(&self.demanded) = Moment::now();
        self.list_due.send_modify(|times| *times = times.saturating_add(1));
    }

    /// Moment at which a list was last demanded.
    pub(super) fn due(&self) -> Moment {
        *locked(&self.demanded)
    }

    /// Notes that a list of this moment is begun to be taken.
    pub(super) fn begin(&self, moment: Moment) {
        *locked(&self.begun) = moment;
    }

    /// Moment of the last list that was begun to be taken.
    pub(super) fn begun(&self) -> Moment {
        *locked(&self.begun)
    }

    /// Number of the last full list, which a record of a single call carries to live as long as those of the list.
    pub(super) fn current(&self) -> u32 {
        self.applied.load(Ordering::Acquire)
    }
}

/// The text that says what an operator does where a list lost more than it may; `name` is the provider's own.
pub(crate) fn accept(name: &str) -> String {
    format!("if that is right, run `stepward reload --accept-shrink {name}`")
}
