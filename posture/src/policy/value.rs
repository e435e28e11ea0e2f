//! The values of expressions while a device is judged.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value as Json;

use super::fault::Fault;
use super::moment;
use super::types::Type;
use super::version::Version;
use crate::identity::Trust;
use crate::record::Group;
use crate::time::UnixTime;

/// Longest list that a check goes over, in items. If a device is in more groups, they count as not known.
pub const LONGEST_LIST: usize = 4096;

/// A value, borrowed from the record or the expression where it can be.
#[derive(Clone, Debug)]
pub(super) enum Value<'v> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    /// A number that is neither infinite nor NaN.
    Double(f64),
    Text(Cow<'v, str>),
    /// A point in time: nanoseconds since 1970, in the years 1 to 9999.
    Time(i128),
    /// A duration in nanoseconds.
    Duration(i128),
    Version(Version),
    Trust(Trust),
    List(List<'v>),
    /// A value of a free column, never null.
    Free(&'v Json),
}

/// A list, in the form of its source.
#[derive(Clone, Debug)]
pub(super) enum List<'v> {
    /// Names of groups; a group without a name is in no list of names.
    GroupNames(&'v [Group]),
    GroupIds(&'v [Group]),
    Texts(&'v [String]),
    /// Texts only, numbers only, or true and false only; checked when the list was made.
    Free(&'v [Json]),
    Values(Vec<Value<'v>>),
}

impl<'v> Value<'v> {
    pub(super) const fn text(text: &'v str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    pub(super) fn time(time: UnixTime) -> Self {
        Self::Time(time.as_nanos().into())
    }

    /// Converts a text, a number, or true or false of a free column to a plain value; any other value stays as it is.
    pub(super) fn settled(self) -> Self {
        match self {
            Self::Free(Json::String(text)) => Self::text(text),
            Self::Free(Json::Bool(flag)) => Self::Bool(*flag),
            Self::Free(json @ Json::Number(number)) => {
                let whole = number.as_i64().map(Self::Int).or_else(|| number.as_u64().map(Self::Uint));
                whole.or_else(|| number.as_f64().map(Self::Double)).unwrap_or(Self::Free(json))
            }
            other => other,
        }
    }

    /// Returns whether the value is of this type.
    pub(super) const fn is(&self, of_type: Type) -> bool {
        matches!(
            (of_type, self),
            (Type::Bool, Self::Bool(_))
                | (Type::Int | Type::Number, Self::Int(_))
                | (Type::Uint | Type::Number, Self::Uint(_))
                | (Type::Double | Type::Number, Self::Double(_))
                | (Type::Text, Self::Text(_))
                | (Type::Time, Self::Time(_))
                | (Type::Duration, Self::Duration(_))
                | (Type::Version, Self::Version(_))
                | (Type::Trust, Self::Trust(_))
        )
    }

    /// Compares two values of one type; `None` if their types differ, or have no order. Numbers of all three kinds compare by
    /// value, and beyond 2^53 as in CEL: as doubles if one of them is a double.
    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(one), Self::Bool(other)) => Some(one.cmp(other)),
            (Self::Int(one), Self::Int(other)) => Some(one.cmp(other)),
            (Self::Uint(one), Self::Uint(other)) => Some(one.cmp(other)),
            (Self::Int(one), Self::Uint(other)) => Some(i128::from(*one).cmp(&i128::from(*other))),
            (Self::Uint(one), Self::Int(other)) => Some(i128::from(*one).cmp(&i128::from(*other))),
            (Self::Double(_), Self::Int(_) | Self::Uint(_) | Self::Double(_)) | (Self::Int(_) | Self::Uint(_), Self::Double(_)) => {
                self.double()?.partial_cmp(&other.double()?)
            }
            (Self::Text(one), Self::Text(other)) => Some(one.cmp(other)),
            (Self::Time(one), Self::Time(other)) | (Self::Duration(one), Self::Duration(other)) => Some(one.cmp(other)),
            (Self::Version(one), Self::Version(other)) => Some(one.cmp(other)),
            (Self::Trust(one), Self::Trust(other)) => Some(one.cmp(other)),
            _ => None,
        }
    }

    /// A number as the nearest double.
    #[expect(clippy::cast_precision_loss, reason = "CEL converts to the nearest")]
    pub(super) const fn double(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Uint(number) => Some(*number as f64),
            Self::Double(number) => Some(*number),
            _ => None,
        }
    }

    /// The length of a text in bytes; 0 for any other value.
    pub(super) fn text_len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Free(Json::String(text)) => text.len(),
            _ => 0,
        }
    }

    /// The items of a list; 0 for any other value.
    pub(super) fn span(&self) -> usize {
        match self {
            Self::List(list) => list.span(),
            Self::Free(Json::Array(items)) => items.len(),
            _ => 0,
        }
    }

    /// The size of the value as JSON in bytes, roughly.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Text(text) => text.len() + size_of::<Json>(),
            Self::List(list) => list.values().map(|value| value.weight()).sum(),
            Self::Free(json) => weight(json),
            _ => size_of::<Json>(),
        }
    }

    /// The value for an explanation: of a long one the beginning, and how much more there is. The work depends on
    /// [`MOST_SHOWN`] alone.
    pub(super) fn shown(&self) -> Json {
        let mut left = MOST_SHOWN;
        match self {
            Self::Text(text) => shown_text(text, &mut left),
            Self::List(list) => shown_list(list.values(), list.span(), &mut left, |value, left| shown_text(&value.into_text(), left)),
            Self::Free(json) => shown(json, &mut left),
            other => other.clone().into_json(),
        }
    }

    fn into_text(self) -> Cow<'v, str> {
        match self {
            Self::Text(text) => text,
            other => other.into_json().to_string().into(),
        }
    }

    pub(super) fn into_json(self) -> Json {
        match self {
            Self::Bool(flag) => flag.into(),
            Self::Int(number) => number.into(),
            Self::Uint(number) => number.into(),
            Self::Double(number) => number.into(),
            Self::Text(text) => text.into(),
            Self::Time(time) => moment::rfc3339(time).into(),
            // Protocol Buffers' form, in whole seconds.
            Self::Duration(nanos) => format!("{}s", nanos / 1_000_000_000).into(),
            Self::Version(version) => format!("{version:?}").into(),
            Self::Trust(trust) => trust.as_str().into(),
            Self::List(list) => list.values().map(Value::into_json).collect(),
            Self::Free(json) => json.clone(),
        }
    }
}

/// A time in RFC 3339 form, in UTC.
pub(super) fn rfc3339(time: UnixTime) -> String {
    moment::rfc3339(time.as_nanos().into())
}

impl<'v> List<'v> {
    /// A list of a free column, if its items are not too many, all of one kind, and of this type if it is known.
    pub(super) fn free(items: &'v [Json], of_type: Type) -> Result<Self, Fault> {
        if items.len() > LONGEST_LIST {
            return Err(Fault::new("a list in a free column is too long"));
        }
        let kinds: &[Type] = if of_type == Type::Free { &[Type::Text, Type::Number, Type::Bool] } else { &[of_type] };
        let of_kind = |kind: &Type| items.iter().all(|item| Value::Free(item).settled().is(*kind));
        if kinds.iter().any(of_kind) { Ok(Self::Free(items)) } else { Err(Fault::new("a list in a free column has other items")) }
    }

    /// The number of items to go over, including groups without a name.
    pub(super) fn span(&self) -> usize {
        match self {
            Self::GroupNames(groups) | Self::GroupIds(groups) => groups.len(),
            Self::Texts(texts) => texts.len(),
            Self::Free(items) => items.len(),
            Self::Values(values) => values.len(),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::GroupNames(_) | Self::GroupIds(_) => self.values().count(),
            Self::Texts(texts) => texts.len(),
            Self::Free(items) => items.len(),
            Self::Values(values) => values.len(),
        }
    }

    pub(super) fn values(&self) -> Box<dyn Iterator<Item = Value<'v>> + '_> {
        match self {
            Self::GroupNames(groups) => Box::new(groups.iter().map(|group| Value::text(&group.name)).filter(Value::is_filled)),
            Self::GroupIds(groups) => Box::new(groups.iter().map(|group| Value::text(&group.id)).filter(Value::is_filled)),
            Self::Texts(texts) => Box::new(texts.iter().map(|text| Value::text(text))),
            Self::Free(items) => Box::new(items.iter().map(|item| Value::Free(item).settled())),
            Self::Values(values) => Box::new(values.iter().cloned()),
        }
    }
}

/// Bytes of values that are shown of one input, roughly.
const MOST_SHOWN: usize = 4096;

/// Bytes that every value counts for, besides its text.
const EACH: usize = 16;

fn weight(json: &Json) -> usize {
    size_of::<Json>()
        + match json {
            Json::String(text) => text.len(),
            Json::Array(items) => items.iter().map(weight).sum(),
            Json::Object(entries) => entries.iter().map(|(key, value)| key.len() + size_of::<String>() + weight(value)).sum(),
            Json::Null | Json::Bool(_) | Json::Number(_) => 0,
        }
}

fn shown(json: &Json, left: &mut usize) -> Json {
    match json {
        Json::String(text) => shown_text(text, left),
        Json::Array(items) => shown_list(items.iter(), items.len(), left, shown),
        Json::Object(entries) => {
            let mut some = serde_json::Map::new();
            for (key, value) in entries {
                if *left < EACH + key.len() {
                    some.insert("…".to_owned(), more(entries.len() - some.len()));
                    break;
                }
                *left -= key.len();
                some.insert(key.clone(), shown(value, left));
            }
            Json::Object(some)
        }
        other => {
            *left = left.saturating_sub(EACH);
            other.clone()
        }
    }
}

fn shown_list<T>(items: impl Iterator<Item = T>, count: usize, left: &mut usize, show: impl Fn(T, &mut usize) -> Json) -> Json {
    let mut some = Vec::new();
    for item in items {
        if *left < EACH {
            some.push(more(count - some.len()));
            break;
        }
        some.push(show(item, left));
    }
    Json::Array(some)
}

fn shown_text(text: &str, left: &mut usize) -> Json {
    *left = left.saturating_sub(EACH);
    let end = text.floor_char_boundary((*left).min(text.len()));
    *left -= end;
    match text.split_at_checked(end) {
        Some((begins, rest)) if !rest.is_empty() => format!("{begins}… ({} bytes more)", rest.len()).into(),
        _ => text.into(),
    }
}

fn more(count: usize) -> Json {
    format!("… ({count} more)").into()
}

impl Value<'_> {
    fn is_filled(&self) -> bool {
        !matches!(self, Self::Text(text) if text.is_empty())
    }
}
