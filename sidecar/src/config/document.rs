//! A configuration before it has types: a tree in which every value knows where it stands.

use std::collections::BTreeMap;

use posture::secret::Secret;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Environment;
use super::mistakes::{Place, Report, suggestion};

/// Prefix of the variables that override single values.
const PREFIX: &str = "STEPWARD__";

/// Tables of the top level that a variable may open.
const SECTIONS: &[&str] = &["listen", "envoy", "query", "replay", "log", "store"];

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) place: Place,
    pub(crate) data: Data,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    Text(String),
    Integer(Option<i64>),
    Float(Option<f64>),
    Boolean(bool),
    Date,
    List(Vec<Value>),
    Table(Table),
    /// From a variable: its type is whatever the key asks for.
    Given(String),
    /// A secret that stands in a variable of step-posture-connector.
    Secret(Secret),
}

impl Data {
    /// With its article, for messages.
    pub(crate) fn name(&self) -> &'static str {
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
pub(crate) struct Table {
    pub(crate) place: Place,
    pub(crate) entries: BTreeMap<String, Entry>,
}

/// A key's place and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

impl Table {
    pub(crate) fn new(place: Place) -> Self {
        Self { place, entries: BTreeMap::new() }
    }

    /// Sets a value that a variable gave.
    pub(crate) fn set(&mut self, key: &str, variable: &str, data: Data) {
        let place = Place::Variable(variable.to_owned());
        self.entries.insert(key.to_owned(), Entry { place: place.clone(), value: Value { place, data } });
    }

    /// The table of that name, which is made where it is not there; `None` where something else has the name.
    pub(crate) fn table(&mut self, key: &str, place: &Place) -> Option<&mut Self> {
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

/// Reads TOML; every mistake of the syntax is reported, and then nothing comes back.
pub(crate) fn parse(text: &str, report: &Report) -> Option<Table> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let lines = Lines::of(text);
    let mut found: Vec<_> = errors.iter().map(|error| (error.span().map(|span| span.start), error)).collect();
    found.sort_by_key(|(offset, _)| *offset);
    let mut line_before = None;
    for (offset, error) in found {
        let place = offset.map_or(Place::Whole, |offset| lines.place(offset));
        let line = if let Place::Line(line, _) = place { Some(line) } else { None };
        // What else is said of the same line mostly comes of the first mistake in it.
        if line.is_some() && line == line_before {
            continue;
        }
        line_before = line;
        // Its `Display` shows the line, which may hold a secret.
        report.mistake(&place, of_syntax(error.message()));
        // An open quote hides the bracket that closes the value: what follows is read as a part of it.
        if error.message().contains("string, expected") && offset.is_some_and(|offset| lines.hides_more(offset)) {
            break;
        }
    }
    errors.is_empty().then(|| table(document.get_ref(), Place::Whole, &lines))
}

/// A message of the parser, where quotes are missing in words of ours.
fn of_syntax(message: &str) -> &str {
    match message {
        "invalid basic string, expected `\"`" => "the text in this line has no closing \": write one behind it",
        "invalid literal string, expected `'`" => "the text in this line has no closing ': write one behind it",
        "string values must be quoted, expected literal string" => "here is no value: a text stands in quotes, as in \"text\"",
        other => other,
    }
}

/// A text, and where its lines begin: a place is found without going over all that stands before it.
struct Lines<'t> {
    text: &'t str,
    begin: Vec<usize>,
}

impl<'t> Lines<'t> {
    /// Whether a text that is open at this offset may hide the end of a list or table: one of several lines does, and one that
    /// stands in brackets which its line or one before it opens.
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
        let begin = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, begin }
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

/// Applies `STEPWARD__SECTION__KEY`, `STEPWARD__PROVIDER__NAME__KEY` (or `POLICY`) and `STEPWARD__WEBHOOK__NUMBER__KEY` (from 0).
pub(crate) fn override_by_variables(root: &mut Table, env: &Environment, report: &Report) {
    // Without the folder that systemd names, it would be another store, in which no lock is.
    for name in env.not_text().filter(|name| name.starts_with(PREFIX) || *name == "STATE_DIRECTORY") {
        report.mistake(&Place::Variable(name.to_owned()), "is not text in UTF-8");
    }
    for (name, value) in env.variables() {
        let Some(path) = name.strip_prefix(PREFIX) else { continue };
        let path = path.to_ascii_lowercase();
        let place = Place::Variable(name.to_owned());
        let mut steps: Vec<_> = path.split("__").collect();
        let Some(key) = steps.pop().filter(|_| !steps.is_empty()) else {
            report.mistake(&place, "names no key: write STEPWARD__SECTION__KEY, as in STEPWARD__LISTEN__ADMIN");
            continue;
        };
        match open(root, &steps, &place) {
            Ok(table) => table.set(key, name, Data::Given(value.to_owned())),
            Err(message) => report.mistake(&place, message),
        }
    }
}

fn open<'t>(root: &'t mut Table, steps: &[&str], place: &Place) -> Result<&'t mut Table, String> {
    let (start, rest) = match steps {
        ["webhook", number, rest @ ..] => (webhook(root, number)?, rest),
        [kind @ ("provider" | "policy"), name, rest @ ..] => (named(root, kind, name)?, rest),
        ["webhook"] => return Err("names no webhook: write STEPWARD__WEBHOOK__0__KEY for the first one".to_owned()),
        [kind @ ("provider" | "policy")] => {
            return Err(format!("names no key: write STEPWARD__{}__NAME__KEY", kind.to_ascii_uppercase()));
        }
        [section, rest @ ..] if SECTIONS.contains(section) => {
            (root.table(section, place).ok_or_else(|| format!("`{section}` is not a table"))?, rest)
        }
        _ => {
            let given = steps.first().copied().unwrap_or_default();
            let known = [SECTIONS, &["webhook", "provider", "policy"]].concat();
            return Err(format!("there is no section `{given}`; {}", suggestion(given, &known)));
        }
    };
    rest.iter().try_fold(start, |table, step| table.table(step, place).ok_or_else(|| format!("`{step}` is not a table")))
}

fn webhook<'t>(root: &'t mut Table, number: &str) -> Result<&'t mut Table, String> {
    let list = match root.entries.get_mut("webhook").map(|entry| &mut entry.value.data) {
        Some(Data::List(list)) => list.as_mut_slice(),
        _ => &mut [],
    };
    let count = list.len();
    let wrong = || format!("there is no webhook `{number}`: they are numbered from 0, and there are {count}");
    match number.parse::<usize>().ok().and_then(|number| list.get_mut(number)).map(|value| &mut value.data) {
        Some(Data::Table(table)) => Ok(table),
        _ => Err(wrong()),
    }
}

/// A provider or policy; its name may be written with `_` for `-`, which no variable has.
fn named<'t>(root: &'t mut Table, kind: &str, name: &str) -> Result<&'t mut Table, String> {
    let wanted = name.replace('-', "_");
    let tables = match root.entries.get_mut(kind).map(|entry| &mut entry.value.data) {
        Some(Data::Table(table)) => Some(table),
        _ => None,
    };
    let found = tables.and_then(|table| table.entries.iter_mut().find(|(key, _)| key.to_ascii_lowercase().replace('-', "_") == wanted));
    match found.map(|(_, entry)| &mut entry.value.data) {
        Some(Data::Table(table)) => Ok(table),
        _ => Err(format!("there is no {kind} `{name}`: a variable changes one that the file has")),
    }
}
