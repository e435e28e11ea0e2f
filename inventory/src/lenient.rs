//! Fields of an inventory's JSON, read without trust in their types: numbers as text, `"1"` for true, dates of several forms. A
//! value that cannot be read is unknown, so that a changed schema never says yes or no.

use posture::record::{Fact, Group};
use posture::time::UnixTime;
use serde_json::Value;

/// Returns whether an answer reports a failure: `error` or `errors` with anything in it. The rest of such an answer may be
/// incomplete.
pub(super) fn fails(answer: &Value) -> bool {
    let says = |said: &Value| match said {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    };
    ["error", "errors"].iter().any(|name| answer.get(*name).is_some_and(says))
}

/// Reads a text, or a number as text. Null and blank are absent.
pub(super) fn text(value: Option<&Value>) -> Fact<String> {
    match value {
        Some(Value::Null) => Fact::Absent,
        Some(Value::String(text)) if text.len() <= LONGEST => Fact::text(Some(text)),
        Some(Value::Number(number)) => Fact::Value(number.to_string()),
        _ => Fact::Unknown,
    }
}

/// Reads true or false, also as the number 1 or 0 and as text of either. Null and blank are absent.
pub(super) fn flag(value: Option<&Value>) -> Fact<bool> {
    match value {
        Some(Value::Bool(flag)) => Fact::Value(*flag),
        Some(Value::Null) => Fact::Absent,
        Some(Value::Number(number)) => match number.as_i64() {
            Some(1) => Fact::Value(true),
            Some(0) => Fact::Value(false),
            _ => Fact::Unknown,
        },
        Some(Value::String(text)) => match text.trim().to_ascii_lowercase().as_str() {
            "1" | "true" => Fact::Value(true),
            "0" | "false" => Fact::Value(false),
            "" => Fact::Absent,
            _ => Fact::Unknown,
        },
        _ => Fact::Unknown,
    }
}

/// Reads a point in time: RFC 3339, the same with a space or without a zone (then UTC), or seconds or milliseconds since 1970 as
/// a number or text. Null, blank and zero are absent.
pub(super) fn time(value: Option<&Value>) -> Fact<UnixTime> {
    match value {
        Some(Value::Null) => Fact::Absent,
        Some(Value::Number(number)) => number.as_i64().map_or(Fact::Unknown, since_epoch),
        Some(Value::String(text)) => match text.trim() {
            "" => Fact::Absent,
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().map_or(Fact::Unknown, since_epoch),
            date => read_date(date).map_or(Fact::Unknown, Fact::Value),
        },
        _ => Fact::Unknown,
    }
}

/// The latest of several times, each a sign of life. The result is absent where all of them are.
pub(super) fn latest(times: impl IntoIterator<Item = Fact<UnixTime>>) -> Fact<UnixTime> {
    let (mut latest, mut none, mut all) = (None, false, true);
    for time in times {
        match time {
            Fact::Value(moment) => latest = latest.max(Some(moment)),
            Fact::Absent => none = true,
            Fact::Unknown => all = false,
        }
    }
    match latest {
        Some(moment) => Fact::Value(moment),
        None if none && all => Fact::Absent,
        None => Fact::Unknown,
    }
}

/// Reads groups: a list of names or of objects with `id` and `name`, or names between commas. One unreadable group makes all
/// unknown, since a policy may forbid just that one.
pub(super) fn groups(value: Option<&Value>) -> Fact<Vec<Group>> {
    match value {
        Some(Value::Null) => Fact::Absent,
        Some(Value::String(names)) if names.len() <= LONGEST => {
            let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
            Fact::Value(names.map(|name| Group { id: String::new(), name: name.to_owned() }).collect())
        }
        Some(Value::Array(items)) if items.len() <= MOST_GROUPS => {
            let named = items.iter().filter(|item| item.as_str().is_none_or(|name| !name.trim().is_empty()));
            named.map(group).collect::<Option<_>>().map_or(Fact::Unknown, Fact::Value)
        }
        _ => Fact::Unknown,
    }
}

fn group(item: &Value) -> Option<Group> {
    let known = |value: Option<&Value>| match text(value) {
        Fact::Value(text) => Some(text),
        Fact::Absent => Some(String::new()),
        Fact::Unknown => None,
    };
    let group = match item {
        Value::Object(fields) => {
            let part = |field| fields.get(field).map_or(Some(String::new()), |value| known(Some(value)));
            Group { id: part("id")?, name: part("name")? }
        }
        name => Group { id: String::new(), name: known(Some(name))? },
    };
    (!group.id.is_empty() || !group.name.is_empty()).then_some(group)
}

fn since_epoch(number: i64) -> Fact<UnixTime> {
    let nanos = match number {
        0 => return Fact::Absent,
        1..FIRST_MILLISECONDS => number.checked_mul(1_000_000_000),
        FIRST_MILLISECONDS.. => number.checked_mul(1_000_000),
        _ => None,
    };
    nanos.map_or(Fact::Unknown, |nanos| Fact::Value(UnixTime::from_nanos(nanos)))
}

fn read_date(text: &str) -> Option<UnixTime> {
    if text.len() > 40 {
        return None;
    }
    let text = text.replacen(' ', "T", 1);
    UnixTime::parse(&text).or_else(|| UnixTime::parse(&format!("{text}Z")))
}

/// The first number that counts milliseconds: as seconds it would be in the year 5138.
const FIRST_MILLISECONDS: i64 = 100_000_000_000;
/// Longest text in bytes; no name, version or address is longer.
const LONGEST: usize = 4096;
const MOST_GROUPS: usize = 10_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_flag_is_only_what_can_mean_yes_or_no() {
        for (value, expected) in [
            (json!(true), Fact::Value(true)),
            (json!("1"), Fact::Value(true)),
            (json!(1), Fact::Value(true)),
            (json!(" True "), Fact::Value(true)),
            (json!("0"), Fact::Value(false)),
            (json!(0), Fact::Value(false)),
            (json!("false"), Fact::Value(false)),
            (json!(""), Fact::Absent),
            (json!(null), Fact::Absent),
            (json!("maybe"), Fact::Unknown),
            (json!("yes"), Fact::Unknown),
            (json!(2), Fact::Unknown),
            (json!(1.0), Fact::Unknown),
            (json!([true]), Fact::Unknown),
        ] {
            assert_eq!(flag(Some(&value)), expected, "{value}");
        }
        assert_eq!(flag(None), Fact::Unknown);
    }

    #[test]
    fn reads_the_dates_that_inventories_write() {
        let at = |seconds: i64| Fact::Value(UnixTime::from_nanos(seconds * 1_000_000_000));
        for (value, expected) in [
            (json!("1970-01-01T00:01:00Z"), at(60)),
            (json!("1970-01-01T01:01:00+01:00"), at(60)),
            (json!("1970-01-01T00:01:00.000000Z"), at(60)),
            (json!("1970-01-01 00:01:00.000000+00:00"), at(60)),
            (json!("1970-01-01 00:01:00"), at(60)),
            (json!("1710266724"), at(1_710_266_724)),
            (json!(1_710_266_724), at(1_710_266_724)),
            (json!(1_710_266_724_000_i64), at(1_710_266_724)),
            (json!("0"), Fact::Absent),
            (json!(""), Fact::Absent),
            (json!(null), Fact::Absent),
            (json!(-1), Fact::Unknown),
            (json!("yesterday"), Fact::Unknown),
            (json!("99999999999999999999"), Fact::Unknown),
            (json!(i64::MAX), Fact::Unknown),
            (json!(true), Fact::Unknown),
        ] {
            assert_eq!(time(Some(&value)), expected, "{value}");
        }
    }

    #[test]
    fn d2_the_latest_of_several_times_counts() {
        let at = |seconds: i64| Fact::Value(UnixTime::from_nanos(seconds * 1_000_000_000));
        assert_eq!(latest([at(1), at(3), at(2), Fact::Unknown, Fact::Absent]), at(3));
        assert_eq!(latest([Fact::Absent, Fact::Absent]), Fact::Absent);
        assert_eq!(latest([Fact::Absent, Fact::Unknown]), Fact::Unknown);
        assert_eq!(latest([]), Fact::Unknown);
    }

    #[test]
    fn whatever_stands_under_error_is_one_unless_it_is_nothing() {
        for (answer, expected) in [
            (json!({"error": "upstream timeout"}), true),
            (json!({"errors": [{"message": "x"}], "data": null}), true),
            (json!({"errors": {"code": 1}}), true),
            (json!({"error": true}), true),
            (json!({"error": 7}), true),
            (json!({"error": null, "errors": []}), false),
            (json!({"error": false, "errors": {}}), false),
            (json!({"error": " ", "errors": 0}), false),
            (json!({"items": []}), false),
            (json!(["error"]), false),
        ] {
            assert_eq!(fails(&answer), expected, "{answer}");
        }
    }

    #[test]
    fn one_group_that_cannot_be_read_makes_all_unknown() {
        let named = |id: &str, name: &str| Group { id: id.to_owned(), name: name.to_owned() };
        for (value, expected) in [
            (json!("a, b ,"), Fact::Value(vec![named("", "a"), named("", "b")])),
            (json!(["a", "b"]), Fact::Value(vec![named("", "a"), named("", "b")])),
            (json!([{"id": 7, "name": "a"}, {"name": "b", "extra": []}]), Fact::Value(vec![named("7", "a"), named("", "b")])),
            (json!([]), Fact::Value(vec![])),
            (json!([""]), Fact::Value(vec![])),
            (json!(""), Fact::Value(vec![])),
            (json!(null), Fact::Absent),
            (json!(["a", {}]), Fact::Unknown),
            (json!(["a", [1]]), Fact::Unknown),
            (json!({"a": 1}), Fact::Unknown),
        ] {
            assert_eq!(groups(Some(&value)), expected, "{value}");
        }
    }

    #[test]
    fn a_number_is_a_text_and_a_list_is_none() {
        assert_eq!(text(Some(&json!(7))), Fact::Value("7".to_owned()));
        assert_eq!(text(Some(&json!(" "))), Fact::Absent);
        assert_eq!(text(Some(&json!(["a"]))), Fact::Unknown);
        assert_eq!(text(Some(&json!("a".repeat(LONGEST + 1)))), Fact::Unknown);
    }
}
