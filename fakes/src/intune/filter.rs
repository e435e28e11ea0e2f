//! The part of OData's `$filter` that the fake understands: comparisons joined by `and` and `or`, from left to right.

use serde_json::Value;

use crate::Device;

/// A parsed filter.
#[derive(Debug)]
pub(super) struct Filter(Vec<(Join, Comparison)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Join {
    And,
    Or,
}

#[derive(Debug)]
enum Comparison {
    Serial(String),
    LastSync(Order, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    After,
    AtOrAfter,
    Before,
    AtOrBefore,
}

impl Filter {
    /// The literals with which serial numbers are compared.
    pub(super) fn serials(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|(_, comparison)| match comparison {
            Comparison::Serial(literal) => Some(literal.as_str()),
            Comparison::LastSync(..) => None,
        })
    }

    /// Whether a device passes the filter.
    pub(super) fn fits(&self, device: &Device, exact_case: bool) -> bool {
        self.0.iter().fold(false, |fits, (join, comparison)| match join {
            Join::Or => fits || comparison.fits(device, exact_case),
            Join::And => fits && comparison.fits(device, exact_case),
        })
    }
}

impl Comparison {
    fn fits(&self, device: &Device, exact_case: bool) -> bool {
        let text = |name: &str, own: &str| match device.raw.get(name) {
            None => own.to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            Some(_) => String::new(),
        };
        let serial = || text("serialNumber", &device.serial);
        match self {
            Self::Serial(literal) if exact_case => serial() == *literal,
            Self::Serial(literal) => serial().eq_ignore_ascii_case(literal),
            Self::LastSync(order, literal) => {
                let (sync, literal) =
                    (instant(&text("lastSyncDateTime", device.last_seen.as_deref().unwrap_or("0001-01-01T00:00:00Z"))), instant(literal));
                match order {
                    Order::After => sync > literal,
                    Order::AtOrAfter => sync >= literal,
                    Order::Before => sync < literal,
                    Order::AtOrBefore => sync <= literal,
                }
            }
        }
    }
}

/// Parses a filter; `None` if it is malformed, or names a property or operator that is not supported.
pub(super) fn parse(text: &str) -> Option<Filter> {
    let mut words = words(text)?.into_iter();
    let mut comparisons = Vec::new();
    let mut join = Join::Or;
    loop {
        let (Word::Bare(property), Word::Bare(operator), literal) = (words.next()?, words.next()?, words.next()?) else { return None };
        let comparison = match (property.as_str(), operator.as_str(), literal) {
            ("serialNumber", "eq", Word::Quoted(literal)) => Comparison::Serial(literal),
            ("lastSyncDateTime", operator, Word::Bare(literal)) => {
                let order = match operator {
                    "gt" => Order::After,
                    "ge" => Order::AtOrAfter,
                    "lt" => Order::Before,
                    "le" => Order::AtOrBefore,
                    _ => return None,
                };
                Comparison::LastSync(order, literal)
            }
            _ => return None,
        };
        comparisons.push((join, comparison));
        join = match words.next() {
            None => return Some(Filter(comparisons)),
            Some(Word::Bare(word)) if word == "and" => Join::And,
            Some(Word::Bare(word)) if word == "or" => Join::Or,
            Some(_) => return None,
        };
    }
}

enum Word {
    Bare(String),
    Quoted(String),
}

/// Splits a filter into words between spaces, and strings in single quotes, in which a quote is doubled.
fn words(text: &str) -> Option<Vec<Word>> {
    let mut words = Vec::new();
    let mut characters = text.chars().peekable();
    while let Some(first) = characters.next() {
        if first == ' ' {
            continue;
        }
        let mut word = String::new();
        if first == '\'' {
            loop {
                match characters.next()? {
                    '\'' if characters.next_if_eq(&'\'').is_some() => word.push('\''),
                    '\'' => break,
                    other => word.push(other),
                }
            }
            if characters.peek().is_some_and(|next| *next != ' ') {
                return None;
            }
            words.push(Word::Quoted(word));
        } else {
            word.push(first);
            while let Some(next) = characters.next_if(|next| *next != ' ') {
                word.push(next);
            }
            words.push(Word::Bare(word));
        }
    }
    Some(words)
}

/// A date in UTC in a form that sorts: to the second, then nine digits.
fn instant(text: &str) -> String {
    let text = text.trim_end_matches('Z');
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{seconds}.{fraction:0<9}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_ends_at_its_own_quote() {
        let serials = |text| parse(text).map(|filter| filter.serials().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(serials("serialNumber eq 'A'").unwrap(), ["A"]);
        assert_eq!(serials("serialNumber eq 'A'' or 1 eq 1'").unwrap(), ["A' or 1 eq 1"]);
        assert_eq!(serials("serialNumber eq 'A' or serialNumber eq 'B'").unwrap(), ["A", "B"]);
        for wrong in ["serialNumber eq 'A' or 1 eq 1", "serialNumber eq 'A", "serialNumber eq A", "udid eq 'A'", "serialNumber ne 'A'", ""]
        {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn dates_compare_whatever_their_fraction() {
        let row = |date: &str| Device { last_seen: Some(date.to_owned()), ..Device::computer("A") };
        let after = parse("lastSyncDateTime gt 2026-01-01T00:00:00Z").unwrap();
        assert!(after.fits(&row("2026-01-01T00:00:00.1Z"), false));
        assert!(!after.fits(&row("2026-01-01T00:00:00.000Z"), false));
    }
}
