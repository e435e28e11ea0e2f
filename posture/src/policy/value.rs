//! What the parts of an expression come to while a device is judged.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value as Json;

use super::schema::Type;
use super::version::Version;
use super::{LONGEST_LIST, moment};
use crate::identity::Trust;
use crate::record::Group;
use crate::time::UnixTime;

/// A value, borrowed from the record or the expression where it can be.
#[derive(Clone, Debug)]
pub(super) enum Value<'v> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    /// Neither infinite nor without a value.
    Double(f64),
    Text(Cow<'v, str>),
    /// Nanoseconds since 1970, in the years 1 to 9999.
    Time(i128),
    /// Nanoseconds.
    Duration(i128),
    Version(Version),
    Trust(Trust),
    List(List<'v>),
    /// From a free column; never null.
    Free(&'v Json),
}

/// A list, as it lies where it comes from.
#[derive(Clone, Debug)]
pub(super) enum List<'v> {
    /// Names of groups; a group without a name is in no list of names.
    GroupNames(&'v [Group]),
    GroupIds(&'v [Group]),
    Texts(&'v [String]),
    /// Texts, numbers, or true and false alone: that was looked at when it was made.
    Free(&'v [Json]),
    Values(Vec<Value<'v>>),
}

/// Why a value cannot be had: the check it is needed for denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault(pub(super) Cow<'static, str>);

impl Fault {
    pub(super) const fn new(why: &'static str) -> Self {
        Self(Cow::Borrowed(why))
    }
}

impl<'v> Value<'v> {
    pub(super) const fn text(text: &'v str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    pub(super) fn time(time: UnixTime) -> Self {
        Self::Time(time.as_nanos().into())
    }

    /// A text, a number, or true or false of a free column as such; anything else as it is.
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

    /// Whether it is of this type.
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

    /// Which of two values of one type comes first; `None` where they are of two, or have no order. Numbers of all three kinds
    /// compare by value, beyond 2^53 as CEL has it: as doubles where one of them is one.
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

    /// A number, to the nearest double.
    #[expect(clippy::cast_precision_loss, reason = "CEL converts to the nearest")]
    pub(super) const fn double(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Uint(number) => Some(*number as f64),
            Self::Double(number) => Some(*number),
            _ => None,
        }
    }

    /// Bytes of a text; 0 of anything else.
    pub(super) fn text_len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Free(Json::String(text)) => text.len(),
            _ => 0,
        }
    }

    /// Items of a list; 0 of anything else.
    pub(super) fn span(&self) -> usize {
        match self {
            Self::List(list) => list.span(),
            Self::Free(Json::Array(items)) => items.len(),
            _ => 0,
        }
    }

    /// Bytes that it takes as JSON, or about as many.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Text(text) => text.len() + size_of::<Json>(),
            Self::List(list) => list.values().map(|value| value.weight()).sum(),
            Self::Free(json) => weight(json),
            _ => size_of::<Json>(),
        }
    }

    /// The same value for whoever reads an explanation: of what is long the beginning, and how much there is more. What it
    /// takes to make depends on [`MOST_SHOWN`] alone.
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
            // As Protocol Buffers write it, in whole seconds.
            Self::Duration(nanos) => format!("{}s", nanos / 1_000_000_000).into(),
            Self::Version(version) => format!("{version:?}").into(),
            Self::Trust(trust) => trust.as_str().into(),
            Self::List(list) => list.values().map(Value::into_json).collect(),
            Self::Free(json) => json.clone(),
        }
    }
}

/// As RFC 3339 writes it, in UTC.
pub(super) fn rfc3339(time: UnixTime) -> String {
    moment::rfc3339(time.as_nanos().into())
}

impl<'v> List<'v> {
    /// A list of a free column, where its items are not too many, all of one kind, and of this type where it is known.
    pub(super) fn free(items: &'v [Json], of_type: Type) -> Result<Self, Fault> {
        if items.len() > LONGEST_LIST {
            return Err(Fault::new("a list in a free column is too long"));
        }
        let kinds: &[Type] = if of_type == Type::Free { &[Type::Text, Type::Number, Type::Bool] } else { &[of_type] };
        let of_kind = |kind: &Type| items.iter().all(|item| Value::Free(item).settled().is(*kind));
        if kinds.iter().any(of_kind) { Ok(Self::Free(items)) } else { Err(Fault::new("a list in a free column has other items")) }
    }

    /// Items that there are to go over, those without a name among them.
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

/// Bytes of values, about, that are shown of one input.
const MOST_SHOWN: usize = 4096;

/// Bytes that every value counts besides its text.
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
