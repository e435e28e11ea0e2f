//! What the parts of an expression come to while a device is judged.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value as Json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::LONGEST_LIST;
use super::version::Version;
use crate::identity::Trust;
use crate::record::Group;
use crate::time::UnixTime;

/// A value, borrowed from the record or the expression where it can be.
#[derive(Clone, Debug)]
pub(super) enum Value<'v> {
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Cow<'v, str>),
    Time(UnixTime),
    /// Nanoseconds.
    Duration(i64),
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
    /// Texts alone: that was looked at when it was made.
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

    /// Which of two values of one type comes first; `None` where they are of two, or have no order.
    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(one), Self::Bool(other)) => Some(one.cmp(other)),
            (Self::Int(one), Self::Int(other)) | (Self::Duration(one), Self::Duration(other)) => Some(one.cmp(other)),
            (Self::Double(one), Self::Double(other)) => one.partial_cmp(other),
            (Self::Text(one), Self::Text(other)) => Some(one.cmp(other)),
            (Self::Time(one), Self::Time(other)) => Some(one.cmp(other)),
            (Self::Version(one), Self::Version(other)) => Some(one.cmp(other)),
            (Self::Trust(one), Self::Trust(other)) => Some(one.cmp(other)),
            _ => None,
        }
    }

    pub(super) fn into_json(self) -> Json {
        match self {
            Self::Bool(flag) => flag.into(),
            Self::Int(number) => number.into(),
            Self::Double(number) => number.into(),
            Self::Text(text) => text.into(),
            Self::Time(time) => rfc3339(time).into(),
            // As Protocol Buffers write it, in whole seconds.
            Self::Duration(nanos) => format!("{}s", nanos / 1_000_000_000).into(),
            Self::Version(version) => format!("{version:?}").into(),
            Self::Trust(trust) => trust.as_str().into(),
            Self::List(list) => list.values().map(Value::into_json).collect(),
            Self::Free(json) => json.clone(),
        }
    }
}

/// As RFC 3339 writes it, in UTC; empty beyond the years that it can write.
pub(super) fn rfc3339(time: UnixTime) -> String {
    let date = OffsetDateTime::from_unix_timestamp_nanos(time.as_nanos().into());
    date.ok().and_then(|date| date.format(&Rfc3339).ok()).unwrap_or_default()
}

impl<'v> List<'v> {
    /// A list of a free column, where it has texts alone and not too many.
    pub(super) fn free(items: &'v [Json]) -> Result<Self, Fault> {
        if items.len() > LONGEST_LIST {
            return Err(Fault::new("a list in a free column is too long"));
        }
        if !items.iter().all(Json::is_string) {
            return Err(Fault::new("a list in a free column has something else than texts"));
        }
        Ok(Self::Free(items))
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
            Self::Free(items) => Box::new(items.iter().filter_map(Json::as_str).map(Value::text)),
            Self::Values(values) => Box::new(values.iter().cloned()),
        }
    }
}

impl Value<'_> {
    fn is_filled(&self) -> bool {
        !matches!(self, Self::Text(text) if text.is_empty())
    }
}
