//! A checked expression, and what it comes to for one device.
//!
//! Evaluated here and not by the `cel` crate, which parses it: there a text compares with null, or with a number from a
//! free column, as plainly different, a pattern is compiled for every device, and loops have no bound. Of what
//! is allowed here, every expression that the crate can evaluate means the same to both, which a test holds.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell};
use std::cmp::Ordering;

use regex::Regex;
use serde_json::Value as Json;

use super::Inputs;
use super::schema::{Path, Type};
use super::value::{Fault, List, Value};
use super::version::Version;
use crate::time::UnixTime;

/// One part of an expression, its types already checked.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Literal(Value<'static>),
    Path(Path),
    /// Whether there is a value, of something that is known.
    Has(Path),
    /// The item that a loop looks at.
    Item,
    Not(Box<Node>),
    And(Box<(Node, Node)>),
    Or(Box<(Node, Node)>),
    If(Box<(Node, Node, Node)>),
    Compare(Comparison, Box<(Node, Node)>),
    Calculate(Operator, Box<(Node, Node)>),
    Negate(Box<Node>),
    In(Box<(Node, Node)>),
    Test(TextTest, Box<(Node, Node)>),
    Matches(Box<Node>, Regex),
    LowerAscii(Box<Node>),
    Size(Box<Node>),
    /// Whether the body holds for all items, or for any.
    Loop {
        all: bool,
        list: Box<Node>,
        body: Box<Node>,
    },
    Convert(Conversion, Box<Node>),
    /// A free column that must be of this type.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conversion {
    Int,
    Double,
    Text,
    Time,
    Duration,
    Version,
}

/// One device while its checks are evaluated.
pub(super) struct Evaluation<'v> {
    inputs: &'v Inputs<'v>,
    /// Free columns, read when the first expression asks for one; `None` where they are not a JSON object.
    data: OnceCell<Option<Json>>,
    /// What is left of [`MOST_STEPS`] and [`MOST_BYTES`].
    steps: Cell<usize>,
    bytes: Cell<usize>,
}

/// Steps that all checks of a decision, or its `data`, may take: a part of an expression, an item of a list, a few bytes of a
/// text. Ten milliseconds or so; ten checks over ten groups take about a hundred.
pub(super) const MOST_STEPS: usize = 500_000;

/// Bytes of texts and lists that they may make meanwhile.
pub(super) const MOST_BYTES: usize = 16 << 20;

/// Items of a list, and bytes of a text that are compared, searched, or matched with a pattern, for one step.
const ITEMS: usize = 8;
const COMPARED: usize = 64;
const SEARCHED: usize = 16;
const MATCHED: usize = 4;

const TOO_MUCH: Fault = Fault::new("it takes too long, or too much memory, with what this device has");
const TYPES_DIFFER: Fault = Fault::new("two values are of different types");
const OVERFLOW: Fault = Fault::new("a number is too large");

impl<'v> Evaluation<'v> {
    pub(super) const fn new(inputs: &'v Inputs<'v>) -> Self {
        Self { inputs, data: OnceCell::new(), steps: Cell::new(MOST_STEPS), bytes: Cell::new(MOST_BYTES) }
    }

    /// Takes steps. Once they are used up nothing can be evaluated any more, so that no part of an expression decides without
    /// the others.
    fn spend(&self, steps: usize) -> Result<(), Fault> {
        take(&self.steps, steps)
    }

    /// Takes bytes, before they are made.
    fn make(&self, bytes: usize) -> Result<(), Fault> {
        take(&self.bytes, bytes)?;
        self.spend(bytes / COMPARED)
    }

    /// Steps and bytes that were taken.
    #[cfg(test)]
    pub(super) fn spent(&self) -> (usize, usize) {
        (MOST_STEPS - self.steps.get(), MOST_BYTES - self.bytes.get())
    }

    pub(super) const fn inputs(&self) -> &'v Inputs<'v> {
        self.inputs
    }

    /// Whether a check's expression holds.
    pub(super) fn holds<'e>(&'e self, node: &'e Node) -> Result<bool, Fault> {
        self.flag(node, None)
    }

    /// What a part of `data` comes to; `None` where it is a name alone and has no value.
    pub(super) fn json<'e>(&'e self, node: &'e Node) -> Result<Option<Json>, Fault> {
        let value = if let Node::Path(path) = node { self.read(path)? } else { Some(self.value(node, None)?) };
        let Some(value) = value else { return Ok(None) };
        self.make(value.weight())?;
        Ok(Some(value.into_json()))
    }

    /// The value of a name, where there is one.
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
                // What is above the last key must be there even for `has`, as CEL has it.
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
        self.spend(1)?;
        Ok(match node {
            Node::Literal(value) => value.clone(),
            Node::Path(path) => self.read(path)?.ok_or_else(|| absent(path))?,
            Node::Has(path) => Value::Bool(self.read(path)?.is_some()),
            Node::Item => {
                let item = item.ok_or(Fault::new("there is no item"))?;
                self.spend(item.text_len() / COMPARED)?;
                item.clone()
            }
            Node::Not(inner) => Value::Bool(!self.flag(inner, item)?),
            Node::And(sides) => Value::Bool(either(false, self.flag(&sides.0, item), || self.flag(&sides.1, item))?),
            Node::Or(sides) => Value::Bool(either(true, self.flag(&sides.0, item), || self.flag(&sides.1, item))?),
            Node::If(parts) => self.value(if self.flag(&parts.0, item)? { &parts.1 } else { &parts.2 }, item)?,
            Node::Compare(comparison, sides) => {
                let (one, other) = (self.value(&sides.0, item)?, self.value(&sides.1, item)?);
                self.spend(one.text_len().min(other.text_len()) / COMPARED)?;
                Value::Bool(comparison.holds(one.compare(&other).ok_or(TYPES_DIFFER)?))
            }
            Node::Calculate(operator, sides) => {
                let (one, other) = (self.value(&sides.0, item)?, self.value(&sides.1, item)?);
                self.make(one.text_len().saturating_add(other.text_len()))?;
                operator.apply(one, other)?
            }
            Node::Negate(inner) => match self.value(inner, item)? {
                Value::Int(number) => Value::Int(number.checked_neg().ok_or(OVERFLOW)?),
                Value::Double(number) => Value::Double(-number),
                Value::Duration(nanos) => Value::Duration(nanos.checked_neg().ok_or(OVERFLOW)?),
                _ => return Err(TYPES_DIFFER),
            },
            Node::In(sides) => Value::Bool(self.contains(&sides.1, &self.value(&sides.0, item)?, item)?),
            Node::Test(test, sides) => {
                let (text, other) = (self.text(&sides.0, item)?, self.text(&sides.1, item)?);
                self.spend(text.len() / SEARCHED)?;
                Value::Bool(match test {
                    TextTest::StartsWith => text.starts_with(other.as_ref()),
                    TextTest::EndsWith => text.ends_with(other.as_ref()),
                    TextTest::Contains => text.contains(other.as_ref()),
                })
            }
            Node::Matches(text, pattern) => {
                let text = self.text(text, item)?;
                self.spend(text.len() / MATCHED)?;
                Value::Bool(pattern.is_match(&text))
            }
            Node::LowerAscii(text) => {
                let text = self.text(text, item)?;
                self.make(text.len())?;
                Value::Text(text.to_ascii_lowercase().into())
            }
            Node::Size(inner) => {
                let value = self.value(inner, item)?;
                self.spend(value.text_len() / COMPARED + value.span() / ITEMS)?;
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
            Node::Loop { all, list, body } => {
                let Value::List(list) = self.value(list, item)? else { return Err(TYPES_DIFFER) };
                self.spend(list.span())?;
                // One item that decides is enough; else what went wrong with any of them counts.
                let mut result = Ok(*all);
                for item in list.values() {
                    match self.flag(body, Some(&item)) {
                        Ok(holds) if holds != *all => return Ok(Value::Bool(holds)),
                        Ok(_) => {}
                        Err(fault) => result = result.and(Err(fault)),
                    }
                }
                Value::Bool(result?)
            }
            Node::Convert(conversion, inner) => {
                let value = self.value(inner, item)?;
                self.spend(value.text_len() / COMPARED)?;
                conversion.apply(value)?
            }
            Node::Must(wanted, inner) => {
                let value = self.value(inner, item)?;
                self.spend(value.span() / ITEMS)?;
                must(*wanted, value)?
            }
            Node::List(items) => Value::List(List::Values(items.iter().map(|part| self.value(part, item)).collect::<Result<_, _>>()?)),
        })
    }

    fn text<'e>(&'e self, node: &'e Node, item: Option<&Value<'e>>) -> Result<Cow<'e, str>, Fault> {
        match self.value(node, item)? {
            Value::Text(text) => Ok(text),
            _ => Err(TYPES_DIFFER),
        }
    }

    fn contains<'e>(&'e self, list: &'e Node, wanted: &Value<'e>, item: Option<&Value<'e>>) -> Result<bool, Fault> {
        let Value::List(list) = self.value(list, item)? else { return Err(TYPES_DIFFER) };
        self.spend(list.span() / ITEMS)?;
        if let (Value::Text(wanted), List::GroupNames(groups)) = (wanted, &list) {
            // The usual case, without a value for each group.
            return Ok(!wanted.is_empty() && groups.iter().any(|group| group.name == *wanted));
        }
        Ok(list.values().any(|value| value.compare(wanted) == Some(Ordering::Equal)))
    }
}

fn take(left: &Cell<usize>, wanted: usize) -> Result<(), Fault> {
    match left.get().checked_sub(wanted) {
        Some(rest) => {
            left.set(rest);
            Ok(())
        }
        None => {
            left.set(0);
            Err(TOO_MUCH)
        }
    }
}

fn absent(path: &Path) -> Fault {
    Fault(format!("{} has no value", path.name()).into())
}

/// `and` and `or` of CEL: the side that decides does so although the other cannot be had.
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
            (Value::Double(one), Value::Double(other)) => {
                let result = match self {
                    Self::Add => one + other,
                    Self::Subtract => one - other,
                    Self::Multiply => one * other,
                    Self::Divide => one / other,
                    Self::Remainder => return Err(TYPES_DIFFER),
                };
                // Infinity and what is no number compare in ways that nobody means.
                Value::Double(Some(result).filter(|result| result.is_finite()).ok_or(Fault::new("a division by zero, or too large"))?)
            }
            (Value::Text(one), Value::Text(other)) if self == Self::Add => Value::Text(format!("{one}{other}").into()),
            (Value::Time(one), Value::Time(other)) if self == Self::Subtract => {
                Value::Duration(self.whole(one.as_nanos(), other.as_nanos())?)
            }
            (Value::Time(one), Value::Duration(other)) => Value::Time(UnixTime::from_nanos(self.whole(one.as_nanos(), other)?)),
            (Value::Duration(one), Value::Time(other)) => Value::Time(UnixTime::from_nanos(self.whole(one, other.as_nanos())?)),
            (Value::Duration(one), Value::Duration(other)) => Value::Duration(self.whole(one, other)?),
            _ => return Err(TYPES_DIFFER),
        })
    }

    fn whole(self, one: i64, other: i64) -> Result<i64, Fault> {
        if other == 0 && matches!(self, Self::Divide | Self::Remainder) {
            return Err(Fault::new("a division by zero"));
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
    /// The function of CEL, or ours, of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "int" => Self::Int,
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
            Self::Int => Type::Int,
            Self::Double => Type::Double,
            Self::Text => Type::Text,
            Self::Time => Type::Time,
            Self::Duration => Type::Duration,
            Self::Version => Type::Version,
        }
    }

    /// Whether a value of this type can be converted; a free column is looked at when a device is judged.
    pub(super) const fn takes(self, from: Type) -> bool {
        match from {
            Type::Text | Type::Word(_) | Type::Free => true,
            Type::Int => matches!(self, Self::Int | Self::Double | Self::Text),
            Type::Double => matches!(self, Self::Int | Self::Double),
            Type::Bool | Type::Trust => matches!(self, Self::Text),
            Type::Time | Type::Duration | Type::Version | Type::List(_) => false,
        }
    }

    pub(super) fn apply<'v>(self, from: Value<'v>) -> Result<Value<'v>, Fault> {
        let from = match from {
            Value::Free(Json::String(text)) => Value::text(text),
            Value::Free(Json::Bool(flag)) => Value::Bool(*flag),
            Value::Free(Json::Number(number)) => match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => Value::Int(number),
                (None, Some(number)) => Value::Double(number),
                (None, None) => return Err(OVERFLOW),
            },
            other => other,
        };
        match (self, from) {
            (Self::Int, Value::Int(number)) => Ok(Value::Int(number)),
            (Self::Int, Value::Double(number)) => whole(number),
            (Self::Int, Value::Text(text)) => text.parse().map(Value::Int).map_err(|_| Fault::new("a text is not a whole number")),
            #[expect(clippy::cast_precision_loss, reason = "CEL converts to the nearest")]
            (Self::Double, Value::Int(number)) => Ok(Value::Double(number as f64)),
            (Self::Double, Value::Double(number)) => Ok(Value::Double(number)),
            (Self::Double, Value::Text(text)) => {
                let number = text.parse().ok().filter(|number: &f64| number.is_finite());
                number.map(Value::Double).ok_or(Fault::new("a text is not a number"))
            }
            (Self::Text, Value::Text(text)) => Ok(Value::Text(text)),
            (Self::Text, Value::Int(number)) => Ok(Value::Text(number.to_string().into())),
            (Self::Text, Value::Bool(flag)) => Ok(Value::text(if flag { "true" } else { "false" })),
            (Self::Text, Value::Trust(trust)) => Ok(Value::text(trust.as_str())),
            (Self::Time, Value::Text(text)) => {
                UnixTime::parse(&text).map(Value::Time).ok_or(Fault::new("a text is not a time as in 2026-01-31T00:00:00Z"))
            }
            (Self::Duration, Value::Text(text)) => {
                duration(&text).map(Value::Duration).ok_or(Fault::new("a text is not a duration as in 36h or 14d"))
            }
            (Self::Version, Value::Text(text)) => {
                Version::parse(&text).map(Value::Version).ok_or(Fault::new("a text is not a version as in 15.4.1"))
            }
            _ => Err(Fault::new("a value cannot be converted")),
        }
    }
}

/// Cuts off what is behind the point.
fn whole(number: f64) -> Result<Value<'static>, Fault> {
    // Beyond these, neighbours among doubles are further apart than one.
    const MOST: f64 = 9_007_199_254_740_992.0;
    if !(-MOST..=MOST).contains(&number) {
        return Err(OVERFLOW);
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is within the bounds, and CEL cuts the fraction off")]
    Ok(Value::Int(number as i64))
}

fn must(wanted: Type, value: Value<'_>) -> Result<Value<'_>, Fault> {
    let Value::Free(json) = value else { return Ok(value) };
    let read = match wanted {
        Type::Bool => json.as_bool().map(Value::Bool),
        Type::Int => json.as_i64().map(Value::Int),
        Type::Double => json.as_f64().map(Value::Double),
        Type::Text => json.as_str().map(Value::text),
        Type::List(_) => return List::free(json.as_array().ok_or(Fault::new("a free column is not a list"))?).map(Value::List),
        _ => None,
    };
    read.ok_or_else(|| Fault(format!("a free column is not {}", wanted.name()).into()))
}

/// Nanoseconds of a duration as CEL writes it (`1h30m`, `-1.5s`), and in days besides (`14d`).
fn duration(text: &str) -> Option<i64> {
    const UNITS: &[(&str, i128)] = &[
        ("ns", 1),
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
    ];
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0_i128;
    while {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, after) = rest.split_at_checked(digits)?;
        let (fraction, after) = match after.strip_prefix('.') {
            None => ("", after),
            Some(after) => after.split_at_checked(after.bytes().take_while(u8::is_ascii_digit).count())?,
        };
        let letters = after.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, after) = after.split_at_checked(letters)?;
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
        if whole.len() > 12 || fraction.len() > 9 {
            return None;
        }
        total += whole.parse::<i128>().ok()? * nanos;
        if !fraction.is_empty() {
            total += fraction.parse::<i128>().ok()? * nanos / 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        }
        rest = after;
        !rest.is_empty()
    } {}
    i64::try_from(if negative { -total } else { total }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        let second = 1_000_000_000;
        for (text, nanos) in [
            ("36h", Some(36 * 3600 * second)),
            ("14d", Some(14 * 86_400 * second)),
            ("1h30m", Some(5400 * second)),
            ("-1.5s", Some(-1_500_000_000)),
            ("0", Some(0)),
            ("250ms", Some(second / 4)),
            ("999999999999ns", Some(999_999_999_999)),
            ("1000000000000ns", None),
            ("0.123456789s", Some(123_456_789)),
            ("0.1234567890s", None),
            ("0.1234567891s", None),
            ("", None),
            ("-", None),
            ("5", None),
            ("h", None),
            (".5h", None),
            ("1 h", None),
            ("1w", None),
            ("1h-30m", None),
            ("106752d", None),
            ("999999999999d", None),
        ] {
            assert_eq!(duration(text), nanos, "{text}");
        }
    }

    /// The compiler refuses these too.
    #[test]
    fn texts_are_only_added_and_times_only_subtracted() {
        let values = [Value::text("a"), Value::Time(UnixTime::from_nanos(2))];
        for operator in [Operator::Add, Operator::Subtract, Operator::Multiply, Operator::Divide, Operator::Remainder] {
            let [texts, times] = values.clone().map(|value| operator.apply(value.clone(), value));
            assert_eq!(texts.is_ok(), operator == Operator::Add, "{operator:?} {texts:?}");
            assert_eq!(times.is_ok(), operator == Operator::Subtract, "{operator:?} {times:?}");
        }
    }
}
