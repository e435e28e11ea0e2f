//! Webhooks that the replay memory takes from the store after a start.

use std::time::Duration;

use posture::time::UnixTime;
use sha2::{Digest as _, Sha256};

use crate::decision::is_whole;

/// A webhook that was decided, with what the replay memory knows it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Id of the webhook, as in `X-Smallstep-Webhook-ID`.
    pub webhook: String,
    /// SHA-256 of the body, hexadecimal.
    pub inputs: String,
    /// The sender of the webhook.
    pub caller: Sender,
}

/// The sender of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A caller, by the SHA-256 of its names in one text.
    Caller([u8; 32]),
    /// An unknown caller: an earlier release kept only the beginning of its names, so it may be any caller with names that long.
    Unknown,
}

impl Sender {
    /// The sender whose names in one text are `caller`.
    pub fn of(caller: &str) -> Self {
        Self::Caller(Sha256::digest(caller).into())
    }

    /// The sender of a decision, from its kept text, and from the digest where the text was cut.
    pub(crate) fn kept(caller: &str, digest: Option<Vec<u8>>) -> Self {
        match digest.map(<[u8; 32]>::try_from) {
            Some(Ok(digest)) => Self::Caller(digest),
            None if is_whole(caller) => Self::of(caller),
            Some(Err(_)) | None => Self::Unknown,
        }
    }
}

/// Webhooks within a window of the last one, taken in the order in which they were written, the last first, since the clock may
/// have been set meanwhile. Also those around a webhook that was written earlier and yet has a later time: the clock was set back
/// after it.
#[derive(Debug)]
pub(crate) struct Lately {
    window: Duration,
    most: u32,
    /// Times of the last webhook before each time that the clock was set back.
    last: Vec<UnixTime>,
    found: Vec<Sent>,
    /// Number of webhooks outside the window.
    passed: u32,
}

impl Lately {
    /// Makes an empty list for at most `most` webhooks.
    pub(crate) const fn new(window: Duration, most: u32) -> Self {
        Self { window, most, last: Vec::new(), found: Vec::new(), passed: 0 }
    }

    /// Takes the webhook that was written next before; returns whether it may have been the last one to be of use.
    pub(crate) fn take(&mut self, at: UnixTime, sent: Sent) -> bool {
        if self.last.iter().all(|last| at > last.saturating_add(self.window)) && self.last.len() < STEPS {
            self.last.push(at);
        }
        let around = |last: &UnixTime| (last.saturating_sub(self.window)..=last.saturating_add(self.window)).contains(&at);
        if self.last.iter().any(around) {
            self.found.push(sent);
        } else {
            self.passed += 1;
        }
        self.passed > PASSED || u32::try_from(self.found.len()).is_ok_and(|found| found >= self.most)
    }

    /// The webhooks that were found.
    pub(crate) fn into_found(self) -> Vec<Sent> {
        self.found
    }
}

/// Number of times that the clock may have been set back among the last decisions; [`PASSED`] is the number of decisions outside
/// the window that may stand between those within it.
const STEPS: usize = 8;
const PASSED: u32 = 1000;
