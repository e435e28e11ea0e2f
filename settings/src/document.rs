//! A TOML file before it has types: a tree in which every value knows its place.

use std::collections::BTreeMap;

use posture::secret::Secret;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::mistakes::{Place, Report, lines};

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Value {
    /// Place where the value begins.
    pub place: Place,
    /// The value itself.
    pub data: Data,
}

/// A value of any type.
#[derive(Clone, Debug)]
pub enum Data {
    /// A string of the file.
    Text(String),
    /// A whole number; `None`: one that no `i64` holds.
    Integer(Option<i64>),
    /// A number with a fraction or an exponent, infinity or not a number; `None`: one that no `f64` holds.
    Float(Option<f64>),
    /// A flag, `true` or `false`.
    Boolean(bool),
    /// A date or a time, which no key takes.
    Date,
    /// Values in `[ ]`, or tables under `[[name]]`.
    List(Vec<Value>),
    /// Values by name, in `{ }` or under `[name]`.
    Table(Table),
    /// A text out of a variable; the key that reads it decides its type.
    Given(String),
    /// A secret out of a variable that lists several.
    Secret(Secret),
}

impl Data {
    /// The kind of value with its article, for messages: `a string`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Given(_) | Self::Secret(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number with a fraction",
            Self::Boolean(_) => "true or false",
            Self::Date => "a date",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// Values by name.
#[derive(Clone, Debug)]
pub struct Table {
    /// Place where the table begins.
    pub place: Place,
    /// The keys with their values.
    pub entries: BTreeMap<String, Entry>,
}

/// A key's place and its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Place of the key.
    pub place: Place,
    /// Value of the key.
    pub value: Value,
}

impl Table {
    /// An empty table.
    pub fn new(place: Place) -> Self {
        Self { place, entries: BTreeMap::new() }
    }

    /// Sets a value that a variable gave.
    pub fn set(&mut self, key: &str, variable: &str, data: Data) {
        let place = Place::Variable(variable.to_owned());
        self.entries.insert(key.to_owned(), Entry { place: place.clone(), value: Value { place, data } });
    }

    /// The table under `key`, made if it is missing; `None` where another value has this key.
    pub fn table(&mut self, key: &str, place: &Place) -> Option<&mut Self> {
        let entry = self.entries.entry(key.to_owned()).or_insert_with(|| Entry {
            place: place.clone(),
            value: Value { place: place.clone(), data: Data::Table(Self::new(place.clone())) },
        });
        match &mut entry.value.data {
            Data::Table(table) => Some(table),
            _ => None,
        }
    }
}

/// Reads TOML. Returns `None` where the syntax has a mistake, after reporting every mistake.
pub fn parse(text: &str, report: &Report) -> Option<Table> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let lines = Lines::of(text);
    let mut found: Vec<_> = errors.iter().map(|error| (error.span().map(|span| span.start), error)).collect();
    found.sort_by_key(|(offset, _)| *offset);
    let mut line_before = None;
    for (offset, error) in found {
        let place = offset.map_or(Place::Whole, |offset| lines.place(offset));
        let line = if let Place::Line(line, _) = place { Some(line) } else { None };
        // A further mistake in a line is mostly a result of the first one.
        if line.is_some() && line == line_before {
            continue;
        }
        line_before = line;
        // An unclosed bracket hides the ends of all lists and tables after it.
        let is_quote = error.message().contains("string, expected");
        let begins = !is_quote && offset.is_some_and(|offset| lines.begins(offset));
        if is_of_brackets(error.message()) || begins && errors.iter().any(|error| is_of_brackets(error.message())) {
            report.mistake(&place, if begins { UNCLOSED } else { of_syntax(error.message()) });
            break;
        }
        // The error's `Display` shows the line, which may hold a secret, so only its message is shown.
        report.mistake(&place, of_syntax(error.message()));
        // An open quote hides the bracket that closes the value, so the rest is read as a part of it.
        if is_quote && offset.is_some_and(|offset| lines.hides_more(offset)) {
            break;
        }
    }
    errors.is_empty().then(|| table(document.get_ref(), Place::Whole, &lines))
}

/// Returns whether a message of the parser is about the content of a list or of a table on one line.
fn is_of_brackets(message: &str) -> bool {
    ["array elements", "in array", "unclosed array,", "inline table", "key-value pairs"].iter().any(|part| message.contains(part))
}

const UNCLOSED: &str = "a list or a table in braces above has no end: write ] or } behind its last entry";

/// A message of the parser, in words of ours where quotes are missing.
fn of_syntax(message: &str) -> &str {
    match message {
        "invalid basic string, expected `\"`" => "the text in this line has no closing \": write one behind it",
        "invalid literal string, expected `'`" => "the text in this line has no closing ': write one behind it",
        "string values must be quoted, expected literal string" => "here is no value: a text stands in quotes, as in \"text\"",
        other => other,
    }
}

/// A text with the offsets of its lines: a place is found without reading all the text before it.
struct Lines<'t> {
    text: &'t str,
    begin: Vec<usize>,
}

impl<'t> Lines<'t> {
    /// Returns whether a text that is open at this offset may hide the end of a list or table: a text of several lines does, and
    /// one within brackets that its line or an earlier one opens.
    fn hides_more(&self, offset: usize) -> bool {
        let Place::Line(line, _) = self.place(offset) else { return true };
        let begin = self.begin.get(line - 1).copied().unwrap_or_default();
        let before = self.text.get(begin..offset).unwrap_or_default();
        let is_simple = before.split_once('=').is_some_and(|(key, value)| {
            !key.contains(['"', '\'', '[', '{'])
                && value.trim_start().starts_with(['"', '\''])
                && !before.contains("\"\"\"")
                && !before.contains("\'\'\'")
        });
        !is_simple
    }

    fn of(text: &'t str) -> Self {
        Self { text, begin: lines(text) }
    }

    /// Returns whether only opening brackets and blanks precede the offset in its line, as before a key or the name of a table.
    /// Never so in line 1.
    fn begins(&self, offset: usize) -> bool {
        let Place::Line(line, _) = self.place(offset) else { return false };
        let begin = self.begin.get(line - 1).copied().unwrap_or_default();
        line > 1 && self.text.get(begin..offset).is_some_and(|before| before.chars().all(|letter| letter.is_whitespace() || letter == '['))
    }

    fn place(&self, offset: usize) -> Place {
        let line = self.begin.partition_point(|begin| *begin <= offset).max(1);
        let begin = self.begin.get(line - 1).copied().unwrap_or_default();
        let before = self.text.get(begin..offset).or_else(|| self.text.get(begin..)).unwrap_or_default();
        Place::Line(line, before.chars().count() + 1)
    }
}

fn table(table: &DeTable<'_>, place: Place, lines: &Lines<'_>) -> Table {
    let entries = table.iter().map(|(key, item)| {
        let entry = Entry { place: lines.place(key.span().start), value: value(item, lines) };
        (key.get_ref().clone().into_owned(), entry)
    });
    Table { place, entries: entries.collect() }
}

fn value(item: &Spanned<DeValue<'_>>, lines: &Lines<'_>) -> Value {
    let place = lines.place(item.span().start);
    let data = match item.get_ref() {
        DeValue::String(text) => Data::Text(text.clone().into_owned()),
        DeValue::Integer(number) => Data::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()),
        DeValue::Float(number) => Data::Float(number.as_str().parse().ok()),
        DeValue::Boolean(value) => Data::Boolean(*value),
        DeValue::Datetime(_) => Data::Date,
        DeValue::Array(list) => Data::List(list.iter().map(|item| value(item, lines)).collect()),
        DeValue::Table(inner) => Data::Table(table(inner, place.clone(), lines)),
    };
    Value { place, data }
}
