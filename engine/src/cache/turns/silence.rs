//! Whether a service is silent: since when it has answered none of the calls under way, and which witnesses have no answer either.

use std::time::Duration;

use inventory::errand::{self, STALE_AFTER};
use tokio::time::Instant;

use crate::cache::mark::Mark;

/// Silence of the service: since when it has answered none of the calls under way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silence {
    /// Number of calls under way.
    pub(super) calls: usize,
    /// Time of the service's last answer to one of these calls, or of the first call after there was none. `None`: no call is
    /// under way.
    pub(super) since: Option<Instant>,
}

impl Silence {
    pub(super) fn begins(&mut self, now: Instant) {
        self.calls += 1;
        self.since.get_or_insert(now);
    }

    pub(super) fn answered(&mut self, now: Instant) {
        self.since = self.since.map(|_| now);
    }

    pub(super) const fn ends(&mut self) {
        self.calls = self.calls.saturating_sub(1);
        if self.calls == 0 {
            self.since = None;
        }
    }
}

/// Witnesses that wait for their turn or are under way, on whose silence old records answer.
#[derive(Debug, Default)]
pub(super) struct Witnesses {
    all: Vec<Asked>,
    /// Time at which a further witness was looked for in vain, where none was asked since.
    alone: Option<Instant>,
    /// Time of the service's last answer about a known device.
    heard: Option<Instant>,
}

/// A witness, by the number of its place, and the moment since which the service has left it without an answer. `None`: it is not
/// with the service.
#[derive(Clone, Copy, Debug)]
struct Asked {
    number: u64,
    device: Option<Mark>,
    since: Option<Instant>,
}

/// The next step of somebody who waits for a turn and has an old record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// The old record answers: the service is silent.
    Over,
    /// One more witness has to be seen to: see [`Witnesses::lack`].
    Witness,
    /// Nothing is to be done until this time; then it is looked again.
    Until(Instant),
}

impl Witnesses {
    /// Takes a witness that is to be asked, by the number of its place.
    pub(super) fn add(&mut self, number: u64, device: Option<Mark>) {
        self.alone = None;
        self.all.push(Asked { number, device, since: None });
    }

    /// The devices that are asked for: no device is two witnesses, by whatever identifiers.
    pub(super) fn devices(&self) -> impl Iterator<Item = Mark> {
        self.all.iter().filter_map(|witness| witness.device)
    }

    /// Notes since when the service has left a witness without an answer; `None`: the witness is not with the service.
    pub(super) fn wait_since(&mut self, number: u64, since: Option<Instant>) {
        if let Some(witness) = self.all.iter_mut().find(|witness| witness.number == number) {
            witness.since = since;
        }
    }

    /// Notes that the service answered about a known device.
    pub(super) const fn hear(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// Takes a witness out whose call has ended, or was never made.
    pub(super) fn remove(&mut self, number: u64) {
        self.all.retain(|witness| witness.number != number);
    }

    /// Notes that no further witness is to be had: one alone speaks for the service then, and nobody speaks where there is none.
    pub(super) const fn have_no_more(&mut self, now: Instant) {
        self.alone = Some(now);
    }

    /// Whether one more witness may be asked. To look for one costs a walk through the memory, however many wait.
    pub(super) fn lack(&self, now: Instant) -> bool {
        self.all.len() < errand::WITNESSES && self.alone.is_none_or(|looked| looked + SOON <= now)
    }

    /// The next step of somebody who has waited since `came` and has an old record. `silent`: the time of the service's last
    /// answer, or of the first call after there was none; `None`: no call is under way but of witnesses. `closed`: whether
    /// witnesses may be asked.
    pub(super) fn patience(&self, silent: Option<Instant>, came: Instant, now: Instant, closed: bool) -> Patience {
        // In doubt a witness alone may be asked. A service that nobody asks has not been silent until now.
        let silent = silent.or_else(|| self.all.iter().filter_map(|witness| witness.since).min()).unwrap_or(now);
        let silent = self.heard.map_or(silent, |heard| silent.max(heard));
        let early = silent.max(came) + WITNESS_AFTER;
        if now < early {
            return Patience::Until(early);
        }
        // A witness that was asked before others were answered says nothing of the silence since.
        let speak = self.all.iter().filter(|witness| witness.since.is_none_or(|asked| asked >= silent));
        let needed = if self.alone.is_some() { 1 } else { errand::WITNESSES };
        let over = speak.clone().filter_map(|witness| witness.since).map(|asked| asked + STALE_AFTER);
        if over.clone().filter(|over| *over <= now).count() >= needed {
            return Patience::Over;
        }
        if closed && speak.count() < needed && self.lack(now) {
            return Patience::Witness;
        }
        let next = over.filter(|over| *over > now).min();
        Patience::Until(next.map_or(now + SOON, |next| next.min(now + SOON)))
    }

    /// Number of witnesses.
    #[cfg(test)]
    pub(super) const fn len(&self) -> usize {
        self.all.len()
    }
}

/// Time for which somebody with an old record waits, while the service answers nobody, until witnesses are asked.
pub(crate) const WITNESS_AFTER: Duration = Duration::from_millis(500);
/// Interval at which it is looked whether witnesses are to be had, or had their turn.
pub(crate) const SOON: Duration = Duration::from_millis(100);
