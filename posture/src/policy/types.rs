//! The types of expressions.

/// The type of a part of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Bool,
    Int,
    Uint,
    Double,
    /// A number of one of the three kinds above, which is known when a device is judged.
    Number,
    Text,
    /// A text that is one of these words; a comparison with any other word is a mistake.
    Word(&'static [&'static str]),
    Time,
    Duration,
    Version,
    Trust,
    List(&'static Self),
    /// A free column, whose type is known when a device is judged.
    Free,
}

impl Type {
    /// The name of the type, with its article, for messages.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Bool => "true or false",
            Self::Int => "a whole number",
            Self::Uint => "an unsigned number",
            Self::Double => "a number with a fraction",
            Self::Number => "a number",
            Self::Text | Self::Word(_) => "a text",
            Self::Time => "a point in time",
            Self::Duration => "a duration",
            Self::Version => "a version",
            Self::Trust => "a level of trust",
            Self::List(_) => "a list",
            Self::Free => "a free column, whose type is not known",
        }
    }

    /// Returns whether the type is a number of some kind.
    pub(super) const fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double | Self::Number)
    }

    /// The type of a list of this type; `None` if there are no such lists.
    pub(super) const fn listed(self) -> Option<Self> {
        Some(Self::List(match self {
            Self::Bool => &Self::Bool,
            Self::Int => &Self::Int,
            Self::Uint => &Self::Uint,
            Self::Double => &Self::Double,
            Self::Number => &Self::Number,
            Self::Text | Self::Word(_) => &Self::Text,
            Self::Time => &Self::Time,
            Self::Duration => &Self::Duration,
            Self::Version => &Self::Version,
            Self::Free => &Self::Free,
            Self::Trust | Self::List(_) => return None,
        }))
    }

    /// The common type of two values, if one may stand for the other: a word is a text, numbers are numbers of any kind, and
    /// a free column takes the type that it stands beside.
    pub(super) fn common(self, other: Self) -> Option<Self> {
        match (self, other) {
            (one, other) if one == other => Some(one),
            (one, Self::Word(_)) => one.common(Self::Text),
            (Self::Free, number) | (number, Self::Free) if number.is_number() => Some(Self::Number),
            (Self::Free, Self::List(number)) | (Self::List(number), Self::Free) if number.is_number() => Some(Self::List(&Self::Number)),
            (Self::Free, other) | (other, Self::Free) => Some(other),
            (one, other) if one.is_number() && other.is_number() => Some(Self::Number),
            (Self::List(one), Self::List(other)) => one.common(*other)?.listed(),
            _ => None,
        }
    }
}
