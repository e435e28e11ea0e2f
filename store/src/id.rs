//! The id of a decision, or of a ruling.

use std::fmt;
use std::str::FromStr;

use posture::time::UnixTime;
use serde::{Serialize, Serializer};

/// The id of a decision or of a ruling: 26 letters and digits that sort by time, in the format of a ULID
/// (<https://github.com/ulid/spec>): milliseconds since the epoch in 48 bits, then 80 random bits, in Crockford's base 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DecisionId(u128);

impl DecisionId {
    /// Makes a new id of this time.
    pub fn new(at: UnixTime) -> Self {
        Self(Self::first(at).0 | (rand::random::<u128>() & RANDOM))
    }

    /// The least id of a time: every id from this time on is at least as great.
    pub fn first(at: UnixTime) -> Self {
        let millis = u128::try_from(at.as_nanos() / 1_000_000).unwrap_or_default();
        Self(millis << RANDOM_BITS)
    }

    /// The time at which the id was made, to the millisecond.
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

/// Letters of Crockford's base 32, without I, L, O and U.
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
        // The example comes from the reference implementation.
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
