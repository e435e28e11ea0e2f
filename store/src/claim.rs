//! Claims of webhooks, by which several services on one store give equal bytes one decision.

use std::time::Duration;

/// The claim of one service to decide a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// SHA-256 of the body.
    pub body: [u8; 32],
    /// Digest of the webhook's id.
    pub webhook: [u8; 16],
    /// Digest of the sender.
    pub sender: [u8; 32],
    /// A number for what the outcome depends on besides the bytes: outcomes with another one do not count.
    pub mode: i16,
    /// Time for which the same bytes may be sent once more.
    pub keep: Duration,
}

/// The store's answer to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The service that asks has to decide the webhook: nobody else does.
    Granted,
    /// Another service is deciding it, and lives as far as the server knows.
    Running,
    /// Another service denied it; the text is the one that was given to [`crate::Store::denied`].
    Denied(String),
    /// The same bytes were sent by another sender, or to another webhook.
    Another,
}
