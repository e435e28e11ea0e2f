//! Doubt about a service: which devices failed since its last answer, and whether that is enough to ask a witness, or to leave the
//! service alone.

use tokio::time::Instant;

use crate::cache::mark::Mark;

/// Doubt about the service: the devices that failed since its last answer, each once.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    pub(super) known: Vec<Mark>,
    pub(super) new: Vec<Mark>,
    /// Number of devices that were asked for on account of the doubt, and failed.
    pub(super) witnesses: usize,
    /// Time at which a witness was first appointed.
    pub(super) since: Option<Instant>,
}

impl Doubt {
    pub(super) fn add(&mut self, new: bool, device: Mark) {
        let devices = if new { &mut self.new } else { &mut self.known };
        if devices.len() < MARKS_KEPT && !devices.contains(&device) {
            devices.push(device);
        }
    }

    pub(super) fn all(&self) -> usize {
        self.known.len() + self.new.len()
    }

    /// Whether enough speaks against the service for those who ask for known devices, or for new ones, to wait.
    pub(super) fn is_about(&self, new: bool) -> bool {
        self.known.len() >= KNOWN || (new && self.all() >= ALL)
    }

    pub(super) fn has_room(&self, new: bool, pending: usize) -> bool {
        if new {
            self.all() == 0 || pending < ALL.saturating_sub(self.all())
        } else {
            self.known.is_empty() || pending < ALL.saturating_sub(self.known.len())
        }
    }

    /// Takes the failure of a device that was asked for on account of the doubt. True: the service fails.
    pub(super) const fn witness_failed(&mut self) -> bool {
        self.witnesses += 1;
        (self.witnesses >= WITNESSES && self.known.len() >= KNOWN) || self.known.len() >= KNOWN_AND_WITNESS
    }
}

/// Known devices that have to fail, without an answer since, to put the service in doubt.
const KNOWN: usize = 2;
/// Devices that have to fail, where some are new and anybody may invent such, to put the service in doubt for new devices
/// alone.
const ALL: usize = 3;
/// Witnesses that have to fail for the service to be left alone.
const WITNESSES: usize = 2;
/// Known devices, a witness among them, whose failures suffice as well.
const KNOWN_AND_WITNESS: usize = 4;
/// Failed devices that are remembered, as many known ones as new ones; more would change nothing.
const MARKS_KEPT: usize = KNOWN_AND_WITNESS;
