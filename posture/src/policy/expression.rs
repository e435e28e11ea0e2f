//! A checked expression, and its evaluation for one device.
//!
//! The `cel` crate only parses expressions; they are evaluated here. The crate compares a text with null, or with a number
//! from a free column, as simply unequal, compiles a pattern for every device, and has no bound for loops. Every expression
//! that is allowed here, and that the crate can evaluate, has the same value in both, patterns aside; a test holds this.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::cmp::Ordering;

use regex::Regex;
use serde_json::Value as Json;

use super::fault::{Fault, OVERFLOW, TYPES_DIFFER};
use super::functions::Function;
use super::inputs::Inputs;
use super::moment::{self, TimePart};
use super::schema::Path;
use super::types::Type;
use super::value::{LONGEST_LIST, List, Value};
use super::version::Version;
use super::work::{COMPARED, ITEMS, MATCHED, SEARCHED, WRITTEN, Work};

/// One part of an expression, with its types checked.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Literal(Value<'static>),
    Path(Path),
    /// Whether a name that is known has a value.
    Has(Path),
    /// The current item of a loop.
    Item,
    Not(Box<Node>),
    And(Box<(Node, Node)>),
    Or(Box<(Node, Node)>),
    If(Box<(Node, Node, Node)>),
    Compare(Comparison, Box<(Node, Node)>),
    Calculate(Operator, Box<(Node, Node)>),
    Negate(Box<Node>),
    In(Box<(Node, Node)>),
    /// An item of a list, by its place.
    At(Box<(Node, Node)>),
    Test(TextTest, Box<(Node, Node)>),
    Matches(Box<Node>, Regex),
    /// A function over texts or a list, with its receiver and its arguments.
    Call(Function, Vec<Node>),
    /// A part of a point in time, at an offset in seconds east of UTC, or of a duration.
    TimePart(TimePart, i32, Box<Node>),
    Size(Box<Node>),
    /// Whether the body holds for all items, for any, or for exactly one.
    Loop {
        holds: Holds,
        list: Box<Node>,
        body: Box<Node>,
    },
    /// The items for which `test` holds, each mapped by `value`.
    Gather {
        list: Box<Node>,
        test: Option<Box<Node>>,
        value: Option<Box<Node>>,
    },
    Convert(Conversion, Box<Node>),
    /// A free column, or a value made of one, that must be of this type.
    Must(Type, Box<Node>),
    List(Vec<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextTest {
    StartsWith,
    EndsWith,
    Contains,
}

/// The items of a list for which a loop's body must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    All,
    Any,
    One,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conversion {
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Time,
    Duration,
    Version,
}

/// The evaluation of checks for one device.
pub(super) struct Evaluation<'v> {
    inputs: &'v Inputs<'v>,
    /// Free columns, parsed when the first expression asks for one; `None` if they are not a JSON object.
    data: OnceCell<Option<Json>>,
    work: Work,
}

const DIVISION_BY_ZERO: Fault = Fault::new("a division by zero");

impl<'v> Evaluation<'v> {
    pub(super) const fn new(inputs: &'v Inputs<'v>) -> Self {
        Self { inputs, data: OnceCell::new(), work: Work::new() }
    }

    /// Steps and bytes that were spent.
    #[cfg(test)]
    pub(super) fn spent(&self) -> (usize, usize) {
        self.work.spent()
    }

    pub(super) const fn inputs(&self) -> &'v Inputs<'v> {
        self.inputs
    }

    /// Returns whether a check's expression holds.
    pub(super) fn holds<'e>(&'e self, node: &'e Node) -> Result<bool, Fault> {
        self.flag(node, None)
    }

    /// Evaluates a part of `data`; `None` if the part is a name alone that has no value.
    pub(super) fn json<'e>(&'e self, node: &'e Node) -> Result<Option<Json>, Fault> {
        let value = if let Node::Path(path) = node { self.read(path)? } else { Some(self.value(node, None)?) };
        let Some(value) = value else { return Ok(None) };
        self.work.make(value.weight())?;
        Ok(Some(value.into_json()))
    }

    /// The value of a name, if it has one.
    pub(super) fn read<'e>(&'e self, path: &'e Path) -> Result<Option<Value<'e>>, Fault> {
        let Path::Data(keys) = path else { return Ok(path.read(self.inputs)) };
        let Some(text) = self.inputs.record.data.value() else { return Ok(None) };
        let data = self.data.get_or_init(|| serde_json::from_str(text).ok().filter(Json::is_object));
        let mut at = data.as_ref().ok_or(Fault::new("the free columns are not a JSON object"))?;
        for (number, key) in keys.iter().enumerate() {
            let object = at.as_object().ok_or_else(|| {
                Fault(format!("{} has no columns", Path::Data(keys.iter().take(number).cloned().collect()).name()).into())
            })?;
            match object.get(key) {
                Some(inner) => at = inner,
                // Everything above the last key must exist even for `has`, as in CEL.
                None if number + 1 == keys.len() => return Ok(None),
                None => return Err(absent(&Path::Data(keys.iter().take(number + 1).cloned().collect()))),
            }
        }
        Ok(Some(Value::Free(at)).filter(|_| !at.is_null()))
    }

    fn flag<'e>(&'e self, node: &'e Node, item: Option<&Value<'e>>) -> Result<bool, Fault> {
        match self.value(node, item)? {
            Value::Bool(flag) => Ok(flag),
            _ => Err(Fault::new("it is not true or false")),
        }
    }

    fn value<'e>(&'e self, node: &'e Node, item: Option<&Value<'e>>) -> Result<Value<'e>, Fault> {
        self.work.spend(1)?;
        Ok(match node {
            Node::Literal(value) => value.clone(),
            Node::Path(path) => self.read(path)?.ok_or_else(|| absent(path))?,
            Node::Has(path) => Value::Bool(self.read(path)?.is_some()),
            Node::Item => {
                let item = item.ok_or(Fault::new("there is no item"))?;
                self.work.spend(item.text_len() / COMPARED)?;
                item.clone()
            }
            Node::Not(inner) => Value::Bool(!self.flag(inner, item)?),
            Node::And(sides) => Value::Bool(either(false, self.flag(&sides.0, item), || self.flag(&sides.1, item))?),
            Node::Or(sides) => Value::Bool(either(true, self.flag(&sides.0, item), || self.flag(&sides.1, item))?),
            Node::If(parts) => self.value(if self.flag(&parts.0, item)? { &parts.1 } else { &parts.2 }, item)?,
            Node::Compare(comparison, sides) => {
                let (one, other) = (self.value(&sides.0, item)?, self.value(&sides.1, item)?);
                if let (Value::List(one), Value::List(other)) = (&one, &other) {
                    return Ok(Value::Bool(self.are_same(one, other)? == (*comparison == Comparison::Equal)));
                }
                self.work.spend(one.text_len().min(other.text_len()) / COMPARED)?;
                Value::Bool(comparison.holds(one.compare(&other).ok_or(TYPES_DIFFER)?))
            }
            Node::Calculate(operator, sides) => {
                let (one, other) = (self.value(&sides.0, item)?, self.value(&sides.1, item)?);
                if let (Value::List(one), Value::List(other)) = (&one, &other) {
                    return self.both(one, other);
                }
                self.work.make(one.text_len().saturating_add(other.text_len()))?;
                operator.apply(one, other)?
            }
            Node::Negate(inner) => match self.value(inner, item)? {
                Value::Int(number) => Value::Int(number.checked_neg().ok_or(OVERFLOW)?),
                Value::Double(number) => Value::Double(-number),
                _ => return Err(TYPES_DIFFER),
            },
            Node::In(sides) => Value::Bool(self.contains(&sides.1, &self.value(&sides.0, item)?, item)?),
            Node::At(sides) => {
                let (Value::List(list), Value::Int(place)) = (self.value(&sides.0, item)?, self.value(&sides.1, item)?) else {
                    return Err(TYPES_DIFFER);
                };
                self.work.spend(list.span() / ITEMS)?;
                let place = usize::try_from(place).ok();
                let value = place.and_then(|place| list.values().nth(place)).ok_or(Fault::new("a list has no item at that place"))?;
                self.work.spend(value.text_len() / COMPARED)?;
                value
            }
            Node::Test(test, sides) => {
                let (text, other) = (self.text(&sides.0, item)?, self.text(&sides.1, item)?);
                self.work.spend(text.len() / SEARCHED)?;
                Value::Bool(match test {
                    TextTest::StartsWith => text.starts_with(other.as_ref()),
                    TextTest::EndsWith => text.ends_with(other.as_ref()),
                    TextTest::Contains => text.contains(other.as_ref()),
                })
            }
            Node::Matches(text, pattern) => {
                let text = self.text(text, item)?;
                self.work.spend(text.len() / MATCHED)?;
                Value::Bool(pattern.is_match(&text))
            }
            Node::Call(function, parts) => {
                function.call(&self.work, parts.iter().map(|part| self.value(part, item)).collect::<Result<_, _>>()?)?
            }
            Node::TimePart(part, zone, inner) => match self.value(inner, item)? {
                Value::Time(nanos) => Value::Int(part.of_time(nanos, *zone)?),
                Value::Duration(nanos) => Value::Int(part.of_duration(nanos).ok_or(TYPES_DIFFER)?),
                _ => return Err(TYPES_DIFFER),
            },
            Node::Size(inner) => {
                let value = self.value(inner, item)?;
                self.work.spend(value.text_len() / COMPARED + value.span() / ITEMS)?;
                let size = match value {
                    Value::Text(text) => text.chars().count(),
                    Value::Free(Json::String(text)) => text.chars().count(),
                    Value::List(list) => list.len(),
                    Value::Free(Json::Array(items)) => items.len(),
                    Value::Free(Json::Object(entries)) => entries.len(),
                    _ => return Err(Fault::new("it has no size")),
                };
                Value::Int(i64::try_from(size).map_err(|_| OVERFLOW)?)
            }
            Node::Loop { holds, list, body } => Value::Bool(self.repeat(*holds, list, body, item)?),
            Node::Gather { list, test, value } => self.gather(list, test.as_deref(), value.as_deref(), item)?,
            Node::Convert(conversion, inner) => {
                let value = self.value(inner, item)?;
                self.work.spend(value.text_len() / COMPARED)?;
                let made = conversion.apply(value)?;
                if let Value::Text(Cow::Owned(text)) = &made {
                    self.work.make(text.len())?;
                    self.work.spend(text.len() / WRITTEN)?;
                }
                made
            }
            Node::Must(wanted, inner) => {
                let value = self.value(inner, item)?;
                self.work.spend(value.span() / ITEMS)?;
                must(*wanted, value)?
            }
            Node::List(items) => {
                let items = items.iter().map(|part| self.value(part, item).map(Value::settled));
                Value::List(List::Values(items.collect::<Result<_, _>>()?))
            }
        })
    }

    /// Evaluates `exists`, `all` and `exists_one`. In the first two, one item that decides is enough; if none decides, an
    /// error of any item counts. `exists_one` evaluates all items, and an error of any counts.
    fn repeat<'e>(&'e self, holds: Holds, list: &'e Node, body: &'e Node, item: Option<&Value<'e>>) -> Result<bool, Fault> {
        let Value::List(list) = self.value(list, item)? else { return Err(TYPES_DIFFER) };
        self.work.spend(list.span())?;
        let (mut result, mut count) = (Ok(()), 0_usize);
        for item in list.values() {
            match (holds, self.flag(body, Some(&item))) {
                (Holds::All, Ok(false)) => return Ok(false),
                (Holds::Any, Ok(true)) => return Ok(true),
                (_, Ok(held)) => count += usize::from(held),
                (_, Err(fault)) => result = result.and(Err(fault)),
            }
        }
        result.map(|()| match holds {
            Holds::All => true,
            Holds::Any => false,
            Holds::One => count == 1,
        })
    }

    /// Evaluates `filter` and `map`: an error of any item counts.
    fn gather<'e>(
        &'e self,
        list: &'e Node,
        test: Option<&'e Node>,
        value: Option<&'e Node>,
        item: Option<&Value<'e>>,
    ) -> Result<Value<'e>, Fault> {
        let Value::List(list) = self.value(list, item)? else { return Err(TYPES_DIFFER) };
        self.work.spend(list.span())?;
        let mut gathered = Vec::new();
        for item in list.values() {
            if test.map_or(Ok(true), |test| self.flag(test, Some(&item)))? {
                self.work.list(1)?;
                gathered.push(match value {
                    Some(value) => self.value(value, Some(&item))?.settled(),
                    None => item,
                });
            }
        }
        Ok(Value::List(List::Values(gathered)))
    }

    fn are_same(&self, one: &List<'_>, other: &List<'_>) -> Result<bool, Fault> {
        self.work.spend(one.span().saturating_add(other.span()) / ITEMS)?;
        if one.len() != other.len() {
            return Ok(false);
        }
        let mut same = true;
        for (one, other) in one.values().zip(other.values()) {
            self.work.spend(one.text_len().min(other.text_len()) / COMPARED)?;
            same &= one.compare(&other).ok_or(TYPES_DIFFER)?.is_eq();
        }
        Ok(same)
    }

    fn both<'e>(&self, one: &List<'e>, other: &List<'e>) -> Result<Value<'e>, Fault> {
        let length = one.span().saturating_add(other.span());
        if length > LONGEST_LIST {
            return Err(Fault::new("a list would be too long"));
        }
        self.work.list(length)?;
        let mut all = Vec::with_capacity(length);
        for item in one.values().chain(other.values()) {
            self.work.spend(item.text_len() / COMPARED)?;
            all.push(item);
        }
        Ok(Value::List(List::Values(all)))
    }

    fn text<'e>(&'e self, node: &'e Node, item: Option<&Value<'e>>) -> Result<Cow<'e, str>, Fault> {
        match self.value(node, item)? {
            Value::Text(text) => Ok(text),
            _ => Err(TYPES_DIFFER),
        }
    }

    fn contains<'e>(&'e self, list: &'e Node, wanted: &Value<'e>, item: Option<&Value<'e>>) -> Result<bool, Fault> {
        let Value::List(list) = self.value(list, item)? else { return Err(TYPES_DIFFER) };
        self.work.spend(list.span() / ITEMS)?;
        if let (Value::Text(wanted), List::GroupNames(groups)) = (wanted, &list) {
            // The usual case, without making a value for each group.
            return Ok(!wanted.is_empty() && groups.iter().any(|group| group.name == *wanted));
        }
        for value in list.values() {
            self.work.spend(value.text_len().min(wanted.text_len()) / COMPARED)?;
            if value.compare(wanted) == Some(Ordering::Equal) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn absent(path: &Path) -> Fault {
    Fault(format!("{} has no value", path.name()).into())
}

/// The operators `and` and `or` of CEL: a side that decides does so even if the other is an error.
fn either(decides: bool, one: Result<bool, Fault>, other: impl FnOnce() -> Result<bool, Fault>) -> Result<bool, Fault> {
    if one == Ok(decides) {
        return one;
    }
    match other() {
        Ok(other) if other == decides => Ok(decides),
        other => one.and(other),
    }
}

impl Comparison {
    const fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

impl Operator {
    fn apply<'v>(self, one: Value<'v>, other: Value<'v>) -> Result<Value<'v>, Fault> {
        Ok(match (one, other) {
            (Value::Int(one), Value::Int(other)) => Value::Int(self.whole(one, other)?),
            (Value::Uint(one), Value::Uint(other)) => Value::Uint(self.unsigned(one, other)?),
            (Value::Double(one), Value::Double(other)) => {
                let result = match self {
                    Self::Add => one + other,
                    Self::Subtract => one - other,
                    Self::Multiply => one * other,
                    Self::Divide => one / other,
                    Self::Remainder => return Err(TYPES_DIFFER),
                };
                // Infinity and NaN are refused, since their comparisons would surprise.
                Value::Double(Some(result).filter(|result| result.is_finite()).ok_or(Fault::new("a division by zero, or too large"))?)
            }
            (Value::Text(one), Value::Text(other)) if self == Self::Add => Value::Text(format!("{one}{other}").into()),
            (Value::Time(one), Value::Time(other)) if self == Self::Subtract => Value::Duration(moment::duration(one - other)?),
            (Value::Time(one), Value::Duration(other)) => Value::Time(moment::time(self.sum(one, other)?)?),
            (Value::Duration(one), Value::Time(other)) if self == Self::Add => Value::Time(moment::time(one + other)?),
            (Value::Duration(one), Value::Duration(other)) => Value::Duration(moment::duration(self.sum(one, other)?)?),
            _ => return Err(TYPES_DIFFER),
        })
    }

    /// Adds or subtracts two numbers, both far from the end of the range.
    const fn sum(self, one: i128, other: i128) -> Result<i128, Fault> {
        match self {
            Self::Add => Ok(one + other),
            Self::Subtract => Ok(one - other),
            Self::Multiply | Self::Divide | Self::Remainder => Err(TYPES_DIFFER),
        }
    }

    fn unsigned(self, one: u64, other: u64) -> Result<u64, Fault> {
        if other == 0 && matches!(self, Self::Divide | Self::Remainder) {
            return Err(DIVISION_BY_ZERO);
        }
        let result = match self {
            Self::Add => one.checked_add(other),
            Self::Subtract => one.checked_sub(other),
            Self::Multiply => one.checked_mul(other),
            Self::Divide => one.checked_div(other),
            Self::Remainder => one.checked_rem(other),
        };
        result.ok_or(OVERFLOW)
    }

    fn whole(self, one: i64, other: i64) -> Result<i64, Fault> {
        if other == 0 && matches!(self, Self::Divide | Self::Remainder) {
            return Err(DIVISION_BY_ZERO);
        }
        let result = match self {
            Self::Add => one.checked_add(other),
            Self::Subtract => one.checked_sub(other),
            Self::Multiply => one.checked_mul(other),
            Self::Divide => one.checked_div(other),
            Self::Remainder => one.checked_rem(other),
        };
        result.ok_or(OVERFLOW)
    }
}

impl Conversion {
    /// The conversion function of that name, one of CEL or of our own.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "bool" => Self::Bool,
            "int" => Self::Int,
            "uint" => Self::Uint,
            "double" => Self::Double,
            "string" => Self::Text,
            "timestamp" => Self::Time,
            "duration" => Self::Duration,
            "version" => Self::Version,
            _ => return None,
        })
    }

    pub(super) const fn into_type(self) -> Type {
        match self {
            Self::Bool => Type::Bool,
            Self::Int => Type::Int,
            Self::Uint => Type::Uint,
            Self::Double => Type::Double,
            Self::Text => Type::Text,
            Self::Time => Type::Time,
            Self::Duration => Type::Duration,
            Self::Version => Type::Version,
        }
    }

    /// Returns whether a value of this type can be converted; a free column is checked when a device is judged.
    pub(super) const fn takes(self, from: Type) -> bool {
        match from {
            Type::Text | Type::Word(_) | Type::Free => true,
            Type::Int | Type::Number => matches!(self, Self::Int | Self::Uint | Self::Double | Self::Text | Self::Time),
            Type::Uint | Type::Double => matches!(self, Self::Int | Self::Uint | Self::Double | Self::Text),
            Type::Bool => matches!(self, Self::Bool | Self::Text),
            Type::Trust => matches!(self, Self::Text),
            Type::Time => matches!(self, Self::Time | Self::Text | Self::Int),
            Type::Duration => matches!(self, Self::Duration | Self::Text),
            Type::Version => matches!(self, Self::Version),
            Type::List(_) => false,
        }
    }

    pub(super) fn apply<'v>(self, from: Value<'v>) -> Result<Value<'v>, Fault> {
        match (self, from.settled()) {
            (Self::Bool, same @ Value::Bool(_))
            | (Self::Int, same @ Value::Int(_))
            | (Self::Uint, same @ Value::Uint(_))
            | (Self::Double, same @ Value::Double(_))
            | (Self::Text, same @ Value::Text(_))
            | (Self::Time, same @ Value::Time(_))
            | (Self::Duration, same @ Value::Duration(_))
            | (Self::Version, same @ Value::Version(_)) => Ok(same),
            (Self::Bool, Value::Text(text)) => match text.as_ref() {
                "1" | "t" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
                "0" | "f" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
                _ => Err(Fault::new("a text is not true or false")),
            },
            (Self::Int, Value::Uint(number)) => i64::try_from(number).map(Value::Int).map_err(|_| OVERFLOW),
            (Self::Int, Value::Double(number)) => whole(number),
            (Self::Int, Value::Time(nanos)) => moment::seconds(nanos).map(Value::Int).ok_or(OVERFLOW),
            (Self::Int, Value::Text(text)) => text.parse().map(Value::Int).map_err(|_| Fault::new("a text is not a whole number")),
            (Self::Uint, Value::Int(number)) => u64::try_from(number).map(Value::Uint).map_err(|_| OVERFLOW),
            (Self::Uint, Value::Double(number)) => unsigned(number),
            (Self::Uint, Value::Text(text)) => text.parse().map(Value::Uint).map_err(|_| Fault::new("a text is not an unsigned number")),
            (Self::Double, number @ (Value::Int(_) | Value::Uint(_))) => number.double().map(Value::Double).ok_or(TYPES_DIFFER),
            (Self::Double, Value::Text(text)) => {
                let number = text.parse().ok().filter(|number: &f64| number.is_finite());
                number.map(Value::Double).ok_or(Fault::new("a text is not a number"))
            }
            (Self::Text, Value::Int(number)) => Ok(Value::Text(number.to_string().into())),
            (Self::Text, Value::Uint(number)) => Ok(Value::Text(number.to_string().into())),
            // The shortest text that is read as the same number, and never with an exponent.
            (Self::Text, Value::Double(number)) => Ok(Value::Text(number.to_string().into())),
            (Self::Text, Value::Bool(flag)) => Ok(Value::text(if flag { "true" } else { "false" })),
            (Self::Text, Value::Trust(trust)) => Ok(Value::text(trust.as_str())),
            (Self::Text, Value::Time(nanos)) => Ok(Value::Text(moment::rfc3339(nanos).into())),
            (Self::Text, Value::Duration(nanos)) => Ok(Value::Text(moment::written(nanos).into())),
            (Self::Time, Value::Int(seconds)) => moment::of_seconds(seconds).map(Value::Time),
            (Self::Time, Value::Text(text)) => moment::parse(&text).map(Value::Time),
            (Self::Duration, Value::Text(text)) => {
                moment::parse_duration(&text).map(Value::Duration).ok_or(Fault::new("a text is not a duration as in 36h or 14d"))
            }
            (Self::Version, Value::Text(text)) => {
                Version::parse(&text).map(Value::Version).ok_or(Fault::new("a text is not a version as in 15.4.1"))
            }
            _ => Err(Fault::new("a value cannot be converted")),
        }
    }
}

/// Cuts the fraction off a number.
fn whole(number: f64) -> Result<Value<'static>, Fault> {
    // Neither end is in the range, as in CEL: each is also the nearest double to numbers beyond it.
    const END: f64 = 9_223_372_036_854_775_808.0;
    if number <= -END || number >= END {
        return Err(OVERFLOW);
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is within the bounds, and CEL cuts the fraction off")]
    Ok(Value::Int(number as i64))
}

fn unsigned(number: f64) -> Result<Value<'static>, Fault> {
    const END: f64 = 18_446_744_073_709_551_616.0;
    if !(0.0..END).contains(&number) {
        return Err(OVERFLOW);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within the bounds, and CEL cuts the fraction off")]
    Ok(Value::Uint(number as u64))
}

/// Reads a free column, or an item of one, as this type.
fn must(wanted: Type, value: Value<'_>) -> Result<Value<'_>, Fault> {
    let value = value.settled();
    let read = match (wanted, value) {
        (Type::List(element), Value::Free(Json::Array(items))) => return List::free(items, *element).map(Value::List),
        (Type::List(element), Value::List(list)) => {
            let fits = *element == Type::Free || list.values().all(|item| item.is(*element));
            fits.then_some(Value::List(list))
        }
        (Type::Uint, Value::Int(number)) => u64::try_from(number).ok().map(Value::Uint),
        (Type::Double, number @ (Value::Int(_) | Value::Uint(_))) => number.double().map(Value::Double),
        (wanted, value) => Some(value).filter(|value| value.is(wanted)),
    };
    read.ok_or_else(|| Fault(format!("a free column is not {}", wanted.name()).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The compiler refuses these operations as well.
    #[test]
    fn texts_are_only_added_and_times_only_subtracted() {
        let values = [Value::text("a"), Value::Time(2)];
        for operator in [Operator::Add, Operator::Subtract, Operator::Multiply, Operator::Divide, Operator::Remainder] {
            let [texts, times] = values.clone().map(|value| operator.apply(value.clone(), value));
            assert_eq!(texts.is_ok(), operator == Operator::Add, "{operator:?} {texts:?}");
            assert_eq!(times.is_ok(), operator == Operator::Subtract, "{operator:?} {times:?}");
            let later = operator.apply(Value::Duration(1), Value::Time(2));
            assert_eq!(later.is_ok(), operator == Operator::Add, "{operator:?} {later:?}");
        }
    }
}
