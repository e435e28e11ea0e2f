//! Webhooks that the replay memory takes from the store after a start.

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
