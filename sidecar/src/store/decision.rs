//! What is kept of one decision, and the id by which it is found again.

use std::fmt;
use std::str::FromStr;

use posture::identity::{Identity, PublicKey};
use posture::time::UnixTime;
use serde::{Serialize, Serializer};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Everything that is kept of one decision: enough to say afterwards why it came out as it did.
///
/// It holds the device's identifier and nothing else of its record: no user and no `data`. What fills [`Self::checks`] keeps
/// to that as well.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// By which it is found.
    pub id: DecisionId,
    /// When the question was read.
    #[serde(serialize_with = "date")]
    pub at: UnixTime,
    /// `X-Smallstep-Webhook-ID`, or what else asked, such as the name of a query.
    pub webhook: String,
    /// Kind of the webhook, in the words of the configuration.
    pub kind: &'static str,
    /// Who called, once admitted.
    pub caller: Option<String>,
    /// SHA-256 of that, where it is too long for what is kept of it to tell it from another; set by the store, and no part of the
    /// record.
    #[serde(skip)]
    pub caller_digest: Option<[u8; 32]>,
    /// The device, once found out.
    pub device: Option<Device>,
    /// The provider that settled it.
    pub provider: Option<String>,
    /// What each provider said, in the order in which they were asked.
    pub answers: Vec<Answer>,
    /// Name of the policy.
    pub policy: Option<String>,
    /// Which text of the policy it was, so that a later change is told apart.
    pub policy_revision: Option<String>,
    /// `enforce` or `observe`.
    pub enforcement: Option<&'static str>,
    /// `allow`, `deny` or `refuse`: as it was answered.
    pub decision: &'static str,
    /// Code of the denial, cause of the refusal, `allowed`.
    pub code: String,
    /// Every check that was evaluated, with its inputs and what came out: a JSON list of objects; `None` where there was no
    /// policy. At most [`LONGEST_CHECKS`] bytes: what is longer is not kept, and the record says so.
    #[serde(skip)]
    pub checks: Option<String>,
    /// SHA-256 of the body, in hexadecimal: whoever has the body can show that it is this one.
    pub inputs: String,
    /// Whether the outcome is that of equal bytes before.
    pub replayed: bool,
    /// From reading the question to the outcome.
    pub latency_us: u64,
    /// `X-Request-Id`.
    pub request_id: Option<String>,
    /// W3C.
    pub traceparent: Option<String>,
    /// The public key that was allowed, and the device that it is known for from then on. It is no part of the record, and is
    /// kept longer.
    #[serde(skip)]
    pub key: Option<(PublicKey, Identity)>,
}

/// The device that a decision is about.
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    /// In the form in which identifiers are compared ([`posture::identity::normal`]).
    pub identifier: String,
    /// What it is, such as `serial`.
    pub kind: &'static str,
    /// How well it was proven, in the words of [`posture::identity::Trust`].
    pub trust: &'static str,
}

/// What one provider said.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Its name.
    pub provider: String,
    /// `found`, `not_found`, `ambiguous`, `unavailable`, `invalid_identifier`.
    pub outcome: &'static str,
    /// How old the record was, in milliseconds; `None` where there was none.
    pub age_ms: Option<u64>,
}

impl Decision {
    /// Cuts what a stranger can make long, so that the queue is bounded in bytes as well.
    pub(super) fn bound(&mut self) {
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

    /// The whole record: a JSON object.
    pub(crate) fn record(&self) -> serde_json::Result<String> {
        let checks = self.checks.as_deref().unwrap_or("null");
        // Long enough for most, so that it need not grow.
        let mut text = Vec::with_capacity(checks.len().saturating_add(1024));
        serde_json::to_writer(&mut text, self)?;
        // The checks are JSON already, and the longest part of it.
        text.pop();
        for part in [",\"checks\":", checks, "}"] {
            text.extend_from_slice(part.as_bytes());
        }
        String::from_utf8(text).map_err(serde::ser::Error::custom)
    }
}

/// What is cut is for people: nothing may be told apart by it.
fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(LONGEST_TEXT));
}

/// Whether a text that is kept is all of what it was: to cut it takes at most three bytes more than it has to, those of a
/// character.
pub(super) const fn is_whole(text: &str) -> bool {
    text.len() + 3 < LONGEST_TEXT
}

fn date<S: Serializer>(time: &UnixTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

/// A point in time as RFC 3339 has it, in UTC.
pub(crate) fn rfc3339(time: UnixTime) -> String {
    // Every one that there is has such a text: the years are 1677 to 2262.
    OffsetDateTime::from_unix_timestamp_nanos(time.as_nanos().into())
        .ok()
        .and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| time.as_nanos().to_string())
}

/// Bytes of JSON that [`Decision::checks`] can have.
pub const LONGEST_CHECKS: usize = 32 << 10;

/// Bytes that any one text of a decision keeps.
const LONGEST_TEXT: usize = 512;

/// Answers that a decision keeps.
const MOST_ANSWERS: usize = 64;

/// Names a decision, or a ruling: 26 letters and digits that sort by time, in the format of a ULID
/// (<https://github.com/ulid/spec>): milliseconds since the epoch in 48 bits, then 80 random bits, in Crockford's base 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DecisionId(u128);

impl DecisionId {
    /// A new one.
    pub fn new(at: UnixTime) -> Self {
        Self(Self::first(at).0 | (rand::random::<u128>() & RANDOM))
    }

    /// The least one of a time: all those from then on are not below it.
    pub fn first(at: UnixTime) -> Self {
        let millis = u128::try_from(at.as_nanos() / 1_000_000).unwrap_or_default();
        Self(millis << RANDOM_BITS)
    }

    /// When it was made, to the millisecond.
    pub fn at(self) -> UnixTime {
        let millis = i64::try_from(self.0 >> RANDOM_BITS).unwrap_or(i64::MAX);
        UnixTime::from_nanos(millis.saturating_mul(1_000_000))
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; LETTERS];
        let mut rest = self.0;
        for letter in text.iter_mut().rev() {
            let digit = usize::try_from(rest & 31).unwrap_or_default();
            *letter = ALPHABET.as_bytes().get(digit).copied().unwrap_or_default();
            rest >>= 5;
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl Serialize for DecisionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no id: write the 26 letters and digits that `stepward decisions` prints")]
pub struct NoId;

impl FromStr for DecisionId {
    type Err = NoId;

    fn from_str(text: &str) -> Result<Self, NoId> {
        if text.len() != LETTERS {
            return Err(NoId);
        }
        text.bytes().try_fold(Self(0), |id, letter| {
            let digit = ALPHABET.bytes().position(|other| other == letter.to_ascii_uppercase()).ok_or(NoId)?;
            let digit = u128::try_from(digit).map_err(|_| NoId)?;
            id.0.checked_mul(32).map(|shifted| Self(shifted | digit)).ok_or(NoId)
        })
    }
}

/// Crockford's base 32, without I, L, O and U.
const ALPHABET: &str = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const LETTERS: usize = 26;
const RANDOM_BITS: u32 = 80;
const RANDOM: u128 = (1 << RANDOM_BITS) - 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_is_written_as_the_specification_of_ulids_has_it() {
        // The example of the reference implementation.
        let at = UnixTime::from_nanos(1_469_918_176_385 * 1_000_000);
        assert!(DecisionId::new(at).to_string().starts_with("01ARYZ6S41"));
        assert_eq!(DecisionId::new(at).at(), at);
        assert_eq!(DecisionId(u128::MAX).to_string(), "7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
        assert_eq!(DecisionId(0).to_string(), "0".repeat(26));
    }

    #[test]
    fn refuses_what_is_no_id() {
        for text in ["", "01ARZ", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "UUUUUUUUUUUUUUUUUUUUUUUUUU", "ééééééééééééé", "0000000000000000000000000;"]
        {
            assert_eq!(text.parse::<DecisionId>(), Err(NoId), "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_id_that_is_read_is_the_one_that_was_written_and_ids_sort_by_time(
            first in 0..i64::MAX, second in 0..i64::MAX,
        ) {
            let (first, second) = (UnixTime::from_nanos(first), UnixTime::from_nanos(second));
            let (one, other) = (DecisionId::new(first), DecisionId::new(second));
            prop_assert_eq!(one.to_string().to_lowercase().parse(), Ok(one));
            prop_assert_eq!(one < other, one.to_string() < other.to_string());
            prop_assert!(one >= DecisionId::first(first) && one.at() <= first);
            prop_assert!(first.as_nanos() / 1_000_000 >= second.as_nanos() / 1_000_000 || one < other);
        }
    }
}
