//! Functions over texts and lists of texts: those of standard CEL and of its strings extension that give a text, a list or a
//! place. Places count code points. The memory of a result is taken from the bound before the result is made.

use std::borrow::Cow;

use super::fault::{Fault, OVERFLOW, TYPES_DIFFER};
use super::types::Type;
use super::value::{LONGEST_LIST, List, Value};
use super::work::{COMPARED, SEARCHED, Work};

/// A function that is called as `text.f(…)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    LowerAscii,
    UpperAscii,
    Trim,
    Reverse,
    CharAt,
    IndexOf,
    LastIndexOf,
    Substring,
    Replace,
    Split,
    Join,
}

/// The types of a function's arguments and result.
pub(super) struct Signature {
    pub(super) name: &'static str,
    pub(super) function: Function,
    /// Type of the receiver, before the point.
    pub(super) on: Type,
    /// Types of the arguments, and how many of them must be there.
    pub(super) takes: &'static [Type],
    pub(super) least: usize,
    pub(super) gives: Type,
}

const TEXTS: Type = Type::List(&Type::Text);

/// The signatures of all functions.
pub(super) const SIGNATURES: &[Signature] = &[
    of_text("lowerAscii", Function::LowerAscii, &[], 0, Type::Text),
    of_text("upperAscii", Function::UpperAscii, &[], 0, Type::Text),
    of_text("trim", Function::Trim, &[], 0, Type::Text),
    of_text("reverse", Function::Reverse, &[], 0, Type::Text),
    of_text("charAt", Function::CharAt, &[Type::Int], 1, Type::Text),
    of_text("indexOf", Function::IndexOf, &[Type::Text, Type::Int], 1, Type::Int),
    of_text("lastIndexOf", Function::LastIndexOf, &[Type::Text, Type::Int], 1, Type::Int),
    of_text("substring", Function::Substring, &[Type::Int, Type::Int], 1, Type::Text),
    of_text("replace", Function::Replace, &[Type::Text, Type::Text, Type::Int], 2, Type::Text),
    of_text("split", Function::Split, &[Type::Text, Type::Int], 1, TEXTS),
    Signature { name: "join", function: Function::Join, on: TEXTS, takes: &[Type::Text], least: 0, gives: Type::Text },
];

const fn of_text(name: &'static str, function: Function, takes: &'static [Type], least: usize, gives: Type) -> Signature {
    Signature { name, function, on: Type::Text, takes, least, gives }
}

const NO_PLACE: Fault = Fault::new("a place is not in the text");
const TOO_MANY: Fault = Fault::new("a list would be too long");

impl Function {
    /// Calls the function with its receiver and its arguments.
    pub(super) fn call<'e>(self, work: &Work, values: Vec<Value<'e>>) -> Result<Value<'e>, Fault> {
        let mut values = values.into_iter();
        let first = values.next().ok_or(TYPES_DIFFER)?;
        if self == Self::Join {
            return join(work, &first, &optional_text(values.next())?.unwrap_or_default());
        }
        let text = text(first)?;
        let (one, other, third) = (values.next(), values.next(), values.next());
        match self {
            Self::LowerAscii => {
                work.make(text.len())?;
                Ok(Value::Text(text.to_ascii_lowercase().into()))
            }
            Self::UpperAscii => {
                work.make(text.len())?;
                Ok(Value::Text(text.to_ascii_uppercase().into()))
            }
            Self::Trim => {
                work.spend(text.len() / SEARCHED)?;
                let start = text.len() - text.trim_start().len();
                part(work, text, start, None)
            }
            Self::Reverse => {
                work.make(text.len())?;
                Ok(Value::Text(text.chars().rev().collect::<String>().into()))
            }
            Self::CharAt => {
                let start = byte(work, &text, required(one.as_ref())?)?;
                let end = text.get(start..).and_then(|rest| rest.chars().next()).map_or(start, |letter| start + letter.len_utf8());
                part(work, text, start, Some(end))
            }
            Self::Substring => {
                let start = byte(work, &text, required(one.as_ref())?)?;
                let end = optional(other.as_ref())?.map(|end| byte(work, &text, end)).transpose()?.unwrap_or(text.len());
                if start > end {
                    return Err(Fault::new("a part of a text ends before it begins"));
                }
                part(work, text, start, Some(end))
            }
            Self::IndexOf | Self::LastIndexOf => {
                let sought = optional_text(one)?.ok_or(TYPES_DIFFER)?;
                let from = optional(other.as_ref())?.map(|place| byte(work, &text, place)).transpose()?;
                work.spend(text.len() / SEARCHED)?;
                let found = if self == Self::IndexOf {
                    let from = from.unwrap_or(0);
                    text.get(from..).and_then(|rest| rest.find(&*sought)).map(|place| from + place)
                } else {
                    // The last match that begins at this place or before it.
                    let end = from.map_or(text.len(), |from| text.floor_char_boundary(from.saturating_add(sought.len())));
                    text.get(..end).and_then(|begin| begin.rfind(&*sought))
                };
                let place = found.and_then(|found| text.get(..found)).map(|before| before.chars().count());
                Ok(Value::Int(place.map_or(Ok(-1), i64::try_from).map_err(|_| OVERFLOW)?))
            }
            Self::Replace => {
                let (old, new) = (optional_text(one)?.ok_or(TYPES_DIFFER)?, optional_text(other)?.ok_or(TYPES_DIFFER)?);
                replace(work, &text, &old, &new, limit(optional(third.as_ref())?))
            }
            Self::Split => {
                let by = optional_text(one)?.ok_or(TYPES_DIFFER)?;
                split(work, text, &by, limit(optional(other.as_ref())?))
            }
            Self::Join => Err(TYPES_DIFFER),
        }
    }
}

fn text(value: Value<'_>) -> Result<Cow<'_, str>, Fault> {
    match value {
        Value::Text(text) => Ok(text),
        _ => Err(TYPES_DIFFER),
    }
}

fn optional_text(value: Option<Value<'_>>) -> Result<Option<Cow<'_, str>>, Fault> {
    value.map(text).transpose()
}

fn optional(value: Option<&Value<'_>>) -> Result<Option<i64>, Fault> {
    match value {
        Some(Value::Int(number)) => Ok(Some(*number)),
        None => Ok(None),
        Some(_) => Err(TYPES_DIFFER),
    }
}

fn required(value: Option<&Value<'_>>) -> Result<i64, Fault> {
    optional(value)?.ok_or(TYPES_DIFFER)
}

/// The most matches to replace, or parts to return; a negative number is no limit.
fn limit(number: Option<i64>) -> usize {
    number.map_or(usize::MAX, |number| usize::try_from(number).unwrap_or(usize::MAX))
}

/// The byte offset of a code point by its number; the end of the text is a place as well.
fn byte(work: &Work, text: &str, place: i64) -> Result<usize, Fault> {
    let place = usize::try_from(place).map_err(|_| NO_PLACE)?;
    work.spend(place.min(text.len()) / SEARCHED)?;
    let mut places = text.char_indices().map(|(byte, _)| byte).chain([text.len()]);
    places.nth(place).ok_or(NO_PLACE)
}

/// A part of a text; without an end, blanks at the end of the text are trimmed.
fn part<'e>(work: &Work, text: Cow<'e, str>, start: usize, end: Option<usize>) -> Result<Value<'e>, Fault> {
    let cut = |text: &str| {
        let end = end.unwrap_or_else(|| text.trim_end().len().max(start));
        (start, end)
    };
    match text {
        Cow::Borrowed(text) => {
            let (start, end) = cut(text);
            Ok(Value::text(text.get(start..end).unwrap_or_default()))
        }
        Cow::Owned(text) => {
            let (start, end) = cut(&text);
            work.make(end - start)?;
            Ok(Value::Text(text.get(start..end).unwrap_or_default().to_owned().into()))
        }
    }
}

fn replace<'e>(work: &Work, text: &str, old: &str, new: &str, most: usize) -> Result<Value<'e>, Fault> {
    work.spend(text.len() / SEARCHED)?;
    let times = text.matches(old).take(most).count();
    let bytes = (text.len() - times * old.len()).saturating_add(times.saturating_mul(new.len()));
    work.make(bytes)?;
    // The text between the matches is copied in pieces.
    work.spend(times)?;
    Ok(Value::Text(text.replacen(old, new, most).into()))
}

fn split<'e>(work: &Work, text: Cow<'e, str>, by: &str, most: usize) -> Result<Value<'e>, Fault> {
    work.spend(text.len() / SEARCHED)?;
    if most == 0 || (text.is_empty() && by.is_empty()) {
        return Ok(Value::List(List::Values(Vec::new())));
    }
    // With an empty separator, every code point is an item.
    let count = if by.is_empty() { text.chars().take(LONGEST_LIST + 1).count() } else { text.matches(by).take(LONGEST_LIST).count() + 1 };
    let count = count.min(most);
    if count > LONGEST_LIST {
        return Err(TOO_MANY);
    }
    work.list(count)?;
    let cut = |text: &'e str| -> Vec<Value<'e>> { parts(text, by, count).into_iter().map(Value::text).collect() };
    Ok(Value::List(List::Values(match text {
        Cow::Borrowed(text) => cut(text),
        Cow::Owned(text) => {
            work.make(text.len())?;
            parts(&text, by, count).into_iter().map(|part| Value::Text(part.to_owned().into())).collect()
        }
    })))
}

fn parts<'t>(text: &'t str, by: &str, count: usize) -> Vec<&'t str> {
    if !by.is_empty() {
        return text.splitn(count, by).collect();
    }
    let mut parts = Vec::with_capacity(count);
    let mut rest = text;
    while parts.len() + 1 < count {
        let Some((letter, after)) = rest.chars().next().and_then(|letter| rest.split_at_checked(letter.len_utf8())) else { break };
        parts.push(letter);
        rest = after;
    }
    parts.push(rest);
    parts
}

fn join<'e>(work: &Work, list: &Value<'e>, between: &str) -> Result<Value<'e>, Fault> {
    let Value::List(list) = list else { return Err(TYPES_DIFFER) };
    work.spend(list.span())?;
    let mut joined = String::new();
    for (number, item) in list.values().enumerate() {
        let Value::Text(item) = item else { return Err(TYPES_DIFFER) };
        let before = if number == 0 { "" } else { between };
        work.make(before.len() + item.len())?;
        joined.push_str(before);
        joined.push_str(&item);
    }
    work.spend(joined.len() / COMPARED)?;
    Ok(Value::Text(joined.into()))
}
