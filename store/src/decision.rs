//! The record of a decision, and the listing of decisions.

use posture::identity::{Identity, PublicKey};
use posture::time::UnixTime;
use serde::{Serialize, Serializer};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::date::rfc3339;
use crate::id::DecisionId;

/// The record of one decision: enough to say afterwards why it came out as it did.
///
/// The record holds the device's identifier and nothing else of the inventory's record: no user and no `data`. The writers of
/// [`Self::checks`] keep to that as well.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// The id by which the record is found.
    pub id: DecisionId,
    /// The time at which the question was read.
    #[serde(serialize_with = "date")]
    pub at: UnixTime,
    /// Id of the webhook, as in `X-Smallstep-Webhook-ID`, or the name of another asker, such as a query.
    pub webhook: String,
    /// The kind of the webhook, in the words of the configuration.
    pub kind: &'static str,
    /// The names of the caller, once admitted.
    pub caller: Option<String>,
    /// SHA-256 of [`Self::caller`], where the caller is too long for its kept beginning to tell it from another; set by the
    /// store, and no part of the record.
    #[serde(skip)]
    pub caller_digest: Option<[u8; 32]>,
    /// The device, once it was found out.
    pub device: Option<Device>,
    /// Name of the provider that settled the decision.
    pub provider: Option<String>,
    /// The answers of providers, in the order in which they were asked.
    pub answers: Vec<Answer>,
    /// The name of the policy.
    pub policy: Option<String>,
    /// The revision of the policy's text, so that a later change is told apart.
    pub policy_revision: Option<String>,
    /// The enforcement of the policy: `enforce` or `observe`.
    pub enforcement: Option<&'static str>,
    /// The answer: `allow`, `deny` or `refuse`.
    pub decision: &'static str,
    /// The code of the denial, the cause of the refusal, or `allowed`.
    pub code: String,
    /// Every check that was evaluated, with its inputs and its result: a JSON list of objects; `None` where there was no policy.
    /// At most [`LONGEST_CHECKS`] bytes: a longer list is not kept, and the record says so.
    #[serde(skip)]
    pub checks: Option<String>,
    /// SHA-256 of the body, in hexadecimal: with it the holder of a body can show that it is this one.
    pub inputs: String,
    /// Whether the outcome was taken over from an earlier body with equal bytes.
    pub replayed: bool,
    /// Time from reading the question to the outcome, in microseconds.
    pub latency_us: u64,
    /// Value of the header `X-Request-Id`.
    pub request_id: Option<String>,
    /// Value of the header `traceparent`, as the W3C defines it.
    pub traceparent: Option<String>,
    /// The public key that was allowed, with the device that it is known for from then on. The key is no part of the record, and
    /// is kept longer.
    #[serde(skip)]
    pub key: Option<(PublicKey, Identity)>,
}

/// The device that a decision is about.
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    /// The identifier in the form in which identifiers are compared ([`posture::identity::normal`]).
    pub identifier: String,
    /// The kind of the identifier, such as `serial`.
    pub kind: &'static str,
    /// Strength of the identifier's proof, in the words of [`posture::identity::Trust`].
    pub trust: &'static str,
}

/// The answer of one provider.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The name of the provider.
    pub provider: String,
    /// Word of the outcome: `found`, `not_found`, `ambiguous`, `unavailable` or `invalid_identifier`.
    pub outcome: &'static str,
    /// The age of the record in milliseconds; `None` where there was none.
    pub age_ms: Option<u64>,
}

/// A filter for a list of decisions.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The device, in the form in which identifiers are compared; `None`: all devices.
    pub device: Option<String>,
    /// The earliest time of a listed decision; `None`: from the beginning.
    pub since: Option<UnixTime>,
    /// The ids of the webhooks; empty: all webhooks.
    pub webhooks: Vec<String>,
    /// The outcome, `allow`, `deny` or `refuse`; `None`: any.
    pub decision: Option<String>,
    /// The code or cause; `None`: any.
    pub code: Option<String>,
    /// The decision before which the list begins, for going on from a list that was cut.
    pub before: Option<DecisionId>,
    /// Most decisions in the list.
    pub limit: u32,
}

/// One decision in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The id by which the whole record is found.
    pub id: DecisionId,
    /// The device, in the form in which identifiers are compared; empty where none was found out.
    pub device: String,
    /// The webhook's id.
    pub webhook: String,
    /// The answer: `allow`, `deny` or `refuse`.
    pub decision: String,
    /// The code of the denial, the cause of the refusal, or `allowed`.
    pub code: String,
}

impl Decision {
    /// Cuts texts that a stranger can make long, so that the queue is bounded in bytes as well.
    pub(crate) fn bound(&mut self) {
        self.caller_digest = self.caller.as_ref().filter(|caller| !is_whole(caller)).map(|caller| Sha256::digest(caller).into());
        let own = [&mut self.webhook, &mut self.code, &mut self.inputs].into_iter();
        let optional = [&mut self.caller, &mut self.provider, &mut self.policy, &mut self.policy_revision];
        let from_headers = [&mut self.request_id, &mut self.traceparent];
        for text in own.chain(optional.into_iter().chain(from_headers).flatten()) {
            cut(text);
        }
        if let Some(device) = &mut self.device {
            cut(&mut device.identifier);
        }
        self.answers.truncate(MOST_ANSWERS);
        self.answers.iter_mut().for_each(|answer| cut(&mut answer.provider));
        if let Some(bytes) = self.checks.as_ref().map(String::len).filter(|bytes| *bytes > LONGEST_CHECKS) {
            self.checks = Some(json!({ "left_out": "too long to be kept", "bytes": bytes }).to_string());
        }
    }

    /// The whole record as the store keeps it: a JSON object.
    ///
    /// # Errors
    /// Never in practice: every value of the record has a form in JSON.
    pub fn record(&self) -> serde_json::Result<String> {
        let checks = self.checks.as_deref().unwrap_or("null");
        // The capacity suffices for most records, so that the buffer need not grow.
        let mut text = Vec::with_capacity(checks.len().saturating_add(1024));
        serde_json::to_writer(&mut text, self)?;
        // The checks are JSON already, and the longest part of the record.
        text.pop();
        for part in [",\"checks\":", checks, "}"] {
            text.extend_from_slice(part.as_bytes());
        }
        String::from_utf8(text).map_err(serde::ser::Error::custom)
    }
}

/// Cuts a text to what is kept. A cut text is for people: nothing may be told apart by it.
fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(LONGEST_TEXT));
}

/// Returns whether a kept text is certainly uncut. Cutting takes at most three bytes more than it has to, so that no character is
/// split.
pub(crate) const fn is_whole(text: &str) -> bool {
    text.len() + 3 < LONGEST_TEXT
}

fn date<S: Serializer>(time: &UnixTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

/// The most bytes of JSON that [`Decision::checks`] can have.
pub const LONGEST_CHECKS: usize = 32 << 10;

/// Longest kept text of a decision, in bytes.
const LONGEST_TEXT: usize = 512;

/// Most answers that a decision keeps.
const MOST_ANSWERS: usize = 64;
