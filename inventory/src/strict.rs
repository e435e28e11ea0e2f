//! JSON from others, read so that it says each thing once: a name that comes twice in one object could be read one way here and
//! another way elsewhere (RFC 8259 4), so such a text is refused. Every answer, page, token and event of a service is read here.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The reason why a text is refused.
#[derive(Debug, thiserror::Error)]
#[error("the JSON cannot be read")]
pub struct Unreadable(#[from] serde_json::Error);

/// Reads the value of a JSON text; a byte order mark is skipped.
///
/// # Errors
/// [`Unreadable`]: no JSON, or not one value alone, another schema, a name that comes twice in one object at any level, more
/// levels than [`LEVELS`], or so many values in so few bytes that they would fill the memory.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, Unreadable> {
    Ok(serde_json::from_value(value(text)?)?)
}

fn value(text: &[u8]) -> Result<Value, serde_json::Error> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut reader = serde_json::Deserializer::from_slice(text);
    // Answers of managements have more than four bytes a value; a list of single digits would take twenty times its size.
    let left = Cell::new(FEW.max(text.len() / 4));
    let memory = Cell::new(text.len().saturating_mul(MOST_TIMES).clamp(SMALL, LARGE));
    let value = Once { levels: LEVELS, left: &left, memory: &memory }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Levels of objects and lists that a text may have: answers of managements have fewer than ten.
pub const LEVELS: usize = 32;

/// Number of values that any text may have, however short it is.
const FEW: usize = 1 << 16;

/// Bytes of memory, roughly, that the values of any text may take, and below it the most that the values of a long text may take.
const SMALL: usize = 16 << 20;
const LARGE: usize = 640 << 20;

/// Memory that the values of a text between these bounds may take, in times its length. Answers of managements take up to twenty
/// times; a text of nothing but objects with one letter takes ninety.
const MOST_TIMES: usize = 40;

/// Bytes of memory of one value. An object with members takes `OBJECT` besides, since it has room for eleven at once; each member
/// after the first takes `MEMBER`, about a sixth of that.
const VALUE: usize = 48;
const OBJECT: usize = 640;
const MEMBER: usize = 100;

/// A reader of a value in which no name comes twice.
#[derive(Clone, Copy)]
struct Once<'c> {
    /// Levels that may still be opened.
    levels: usize,
    /// Number of values that may still come.
    left: &'c Cell<usize>,
    /// Bytes of memory that may still be taken.
    memory: &'c Cell<usize>,
}

impl Once<'_> {
    fn spend<E: serde::de::Error>(self, bytes: usize) -> Result<(), E> {
        self.memory.set(self.memory.get().checked_sub(bytes).ok_or_else(|| E::custom("values of too much memory"))?);
        Ok(())
    }

    fn below<E: serde::de::Error>(self) -> Result<Self, E> {
        self.levels.checked_sub(1).map(|levels| Self { levels, ..self }).ok_or_else(|| E::custom("too many levels"))
    }
}

impl<'de> DeserializeSeed<'de> for Once<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.left.set(self.left.get().checked_sub(1).ok_or_else(|| D::Error::custom("too many values"))?);
        self.spend(VALUE)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let below = self.below()?;
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(below)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let below = self.below()?;
        let mut members = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            self.spend(if members.is_empty() { OBJECT } else { MEMBER })?;
            let value = object.next_value_seed(below)?;
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a name comes twice"));
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(".{0,6}", inner, 0..5).prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn g11_a_name_that_comes_twice_says_nothing_at_any_level() {
        for text in [
            r#"{"lost":true,"lost":false}"#,
            r#"{"lost":false,"lost":false}"#,
            r#"{"results":[{"serial":"OTHER","serial":"ASKED"}]}"#,
            r#"{"results":[],"total":0,"results":[{}]}"#,
            r#"{"a":[[{"b":{"managed":false,"c":1,"managed":true}}]]}"#,
            r#"{"lost":true,"\u006cost":false}"#,
            r#"{"a":1,"a":{"b":2}}"#,
        ] {
            assert!(read::<Value>(text.as_bytes()).is_err(), "{text}");
        }
        assert!(read::<Value>(br#"{"a":{"lost":true},"b":{"lost":false},"Lost":1}"#).is_ok());
    }

    #[test]
    fn g11_a_text_has_a_bound_of_levels() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(read::<Value>(nested(LEVELS).as_bytes()).is_ok());
        assert!(read::<Value>(nested(LEVELS + 1).as_bytes()).is_err());
        assert!(read::<Value>("[".repeat(1 << 20).as_bytes()).is_err());
    }

    #[test]
    fn g10_a_text_has_no_more_values_than_its_size_bears() {
        let list = |count: usize| format!("[{}0]", "0,".repeat(count));
        assert!(read::<Value>(list(FEW - 2).as_bytes()).is_ok());
        assert!(read::<Value>(list(FEW).as_bytes()).is_err());
        let rows = format!("[{}{{}}]", "{\"serial\":\"C02A\",\"id\":12},".repeat(100_000));
        assert!(read::<Value>(rows.as_bytes()).is_ok(), "rows of two short members are not too many");
        let objects = |count: usize| format!("[{}{{}}]", "{\"a\":1},".repeat(count));
        assert!(read::<Value>(objects(10_000).as_bytes()).is_ok());
        assert!(read::<Value>(objects(500_000).as_bytes()).is_err(), "4 MiB of nothing but objects would take a hundred times that");
        let longer = |count: usize| format!("[{}{{}}]", "{\"ab\":12345},".repeat(count));
        assert!(read::<Value>(longer(20_000).as_bytes()).is_ok());
        assert!(read::<Value>(longer(40_000).as_bytes()).is_err(), "fewer values than there may be, and fifty times its size");
    }

    #[test]
    fn what_is_not_one_value_alone_says_nothing() {
        for text in [&b""[..], b"{", b"{} {}", b"[1],", b"<html>", b"\xff\xfe", b"NaN", b"1e999", b"{\"a\":\"\xff\"}"] {
            assert!(read::<Value>(text).is_err(), "{}", text.escape_ascii());
        }
        assert_eq!(read::<Vec<u8>>(b"\xef\xbb\xbf[1] ").unwrap(), [1]);
    }

    proptest! {
        #[test]
        fn g11_what_says_everything_once_is_read_as_it_stands(value in any_json()) {
            prop_assert_eq!(read::<Value>(value.to_string().as_bytes()).unwrap(), value);
        }

        #[test]
        fn g11_an_object_in_which_any_member_comes_twice_is_refused(
            members in prop::collection::btree_map(".{0,6}", any_json(), 1..5),
            which in any::<prop::sample::Index>(),
            other in any_json(),
            depth in 0_usize..6,
        ) {
            let names: Vec<&String> = members.keys().collect();
            let again = format!("{}:{other}", Value::from(which.get(&names).as_str()));
            let members: Vec<String> = members.iter().map(|(name, value)| format!("{}:{value}", Value::from(name.as_str()))).collect();
            let object = format!("{{{},{again}}}", members.join(","));
            let text = (0..depth).fold(object, |inner, level| if level % 2 == 0 { format!("[{inner}]") } else { format!("{{\"a\":{inner}}}") });
            prop_assert!(read::<Value>(text.as_bytes()).is_err(), "{}", text);
        }
    }
}
