//! A table while it is read: keys are taken out of it by type, and keys that are left over are mistakes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::document::{Data, Table, Value};
use crate::mistakes::{Place, Report};
use crate::words::suggestion;

/// A table that is being read.
pub struct Section<'r> {
    /// Name of the table for messages: `[listen]`.
    name: String,
    table: Table,
    known: Vec<&'static str>,
    report: &'r Report,
}

impl<'r> Section<'r> {
    /// Makes a section out of a table; `name` is its name for messages.
    pub fn new(name: impl Into<String>, table: Table, report: &'r Report) -> Self {
        Self { name: name.into(), table, known: Vec::new(), report }
    }

    /// The place where the table begins.
    pub fn place(&self) -> &Place {
        &self.table.place
    }

    /// The report that collects the table's mistakes.
    pub fn report(&self) -> &'r Report {
        self.report
    }

    /// Takes a value of any type.
    pub fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.entries.remove(key).map(|entry| entry.value)
    }

    /// Takes a string, and returns what `read` makes of it.
    pub fn text<T>(&mut self, key: &'static str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.take(key)?;
        self.checked(key, &value.place, || match &value.data {
            Data::Text(text) | Data::Given(text) => read(text),
            other => Err(format!("must be a string, not {}", other.name())),
        })
    }

    /// Takes a whole number between two bounds.
    pub fn number(&mut self, key: &'static str, least: i64, most: i64, unit: &str) -> Option<i64> {
        let value = self.take(key)?;
        self.checked(key, &value.place, || {
            let number = match &value.data {
                Data::Integer(number) => *number,
                Data::Given(text) => Some(text.trim().parse().map_err(|_| format!("`{text}` is not a whole number"))?),
                other => return Err(format!("must be a whole number, not {}", other.name())),
            };
            number.filter(|number| (least..=most).contains(number)).ok_or_else(|| format!("must be from {least} to {most}{unit}"))
        })
    }

    /// Takes a share between 0 and 1.
    pub fn share(&mut self, key: &'static str) -> Option<f64> {
        let value = self.take(key)?;
        self.checked(key, &value.place, || {
            let number = match &value.data {
                Data::Float(number) => *number,
                #[expect(clippy::cast_precision_loss, reason = "only 0 and 1 pass")]
                Data::Integer(number) => number.map(|number| number as f64),
                Data::Given(text) => Some(text.trim().parse().map_err(|_| format!("`{text}` is not a number"))?),
                other => return Err(format!("must be a number, not {}", other.name())),
            };
            number.filter(|number| (0.0..=1.0).contains(number)).ok_or_else(|| "must be from 0 to 1, as in 0.1 for a tenth".to_owned())
        })
    }

    /// Takes true or false.
    pub fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        self.checked(key, &value.place, || match &value.data {
            Data::Boolean(flag) => Ok(*flag),
            Data::Given(text) => text.trim().parse().map_err(|_| format!("`{text}` is neither true nor false")),
            other => Err(format!("must be true or false, not {}", other.name())),
        })
    }

    /// Takes a duration between two bounds, each with its text for the message.
    pub fn duration(&mut self, key: &'static str, least: (Duration, &str), most: (Duration, &str)) -> Option<Duration> {
        self.text(key, |text| {
            let duration = duration(text, if most.0 >= DAY { "14d, 12h or 30m" } else { "30s, 3500ms or 3.5s" })?;
            if (least.0..=most.0).contains(&duration) { Ok(duration) } else { Err(format!("must be from {} to {}", least.1, most.1)) }
        })
    }

    /// Takes a path; a relative path is relative to `base`.
    pub fn path(&mut self, key: &'static str, base: &Path) -> Option<PathBuf> {
        self.text(key, |text| path(text, base))
    }

    /// Takes a list, with its place; `read` converts each item, or reports why it cannot.
    pub fn list<T>(&mut self, key: &'static str, mut read: impl FnMut(Value) -> Option<T>) -> Option<(Place, Vec<T>)> {
        let value = self.take(key)?;
        match value.data {
            Data::List(items) => Some((value.place, items.into_iter().filter_map(&mut read).collect())),
            Data::Given(_) => {
                self.report.mistake(&value.place, format!("`{key}` is a list, which a variable cannot give: write it into the file"));
                None
            }
            other => {
                self.report.mistake(&value.place, format!("`{key}` must be a list in [ ], not {}", other.name()));
                None
            }
        }
    }

    /// Takes a list of texts, none of them blank.
    pub fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        let report = self.report;
        let (_, texts) = self.list(key, |item| match item.data {
            Data::Text(text) if !text.trim().is_empty() => Some(text),
            other => {
                report.mistake(&item.place, format!("`{key}` lists texts that are not empty, not {}", other.name()));
                None
            }
        })?;
        Some(texts)
    }

    /// Takes the values of a list, or a single value without a list; a missing key gives none.
    pub fn one_or_many(&mut self, key: &'static str) -> Vec<Value> {
        match self.take(key) {
            None => Vec::new(),
            Some(Value { data: Data::List(items), .. }) => items,
            Some(one) => vec![one],
        }
    }

    /// Reports a list that is present but empty: a reader may take it for "nobody" or for "no restriction".
    pub fn refuse_empty(&self, key: &'static str, remedy: &str) {
        let Some(entry) = self.table.entries.get(key) else { return };
        if matches!(&entry.value.data, Data::List(items) if items.is_empty()) {
            self.report.mistake(&entry.value.place, format!("`{key}` is empty, and would restrict nothing: {remedy}"));
        }
    }

    /// Takes a table within this one.
    pub fn section(&mut self, key: &'static str) -> Option<Section<'r>> {
        let value = self.take(key)?;
        match value.data {
            Data::Table(table) => Some(Section::new(format!("`{key}`"), table, self.report)),
            other => {
                self.report.mistake(&value.place, format!("`{key}` must be a table, not {}", other.name()));
                None
            }
        }
    }

    /// Reports a missing key, with an example to write.
    pub fn missing(&self, key: &str, example: &str) {
        let name = &self.name;
        self.report.mistake(&self.table.place, format!("{name} has no `{key}`: write {example}"));
    }

    /// The place of a key's value, while the value is not taken.
    pub fn place_of(&self, key: &str) -> Option<Place> {
        self.table.entries.get(key).map(|entry| entry.value.place.clone())
    }

    /// Returns whether the table has the key, and its value is not taken.
    pub fn has(&self, key: &str) -> bool {
        self.table.entries.contains_key(key)
    }

    /// The keys that were not taken, with their places and values.
    pub fn rest(self) -> impl Iterator<Item = (String, Place, Value)> {
        self.table.entries.into_iter().map(|(key, entry)| (key, entry.place, entry.value))
    }

    /// Reports the keys that were not taken. Their values are not shown: one may be a secret under a misspelt name.
    pub fn finish(self) {
        for (key, entry) in &self.table.entries {
            let name = &self.name;
            let hint = match (self.report.hints().elsewhere)(key) {
                Some(place) => format!("it belongs to {place}"),
                None => suggestion(key, &self.known),
            };
            self.report.mistake(&entry.place, format!("{name} has no key `{key}`; {hint}"));
        }
    }

    fn checked<T>(&self, key: &str, place: &Place, read: impl FnOnce() -> Result<T, String>) -> Option<T> {
        read().map_err(|message| self.report.mistake(place, format!("`{key}`: {message}"))).ok()
    }
}

/// Makes a path absolute by `base`.
fn path(text: &str, base: &Path) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("is not a path".to_owned());
    }
    Ok(base.join(text))
}

/// Reads a duration such as `3500ms`, `30s`, `1m 30s`, `14d`, or with a fraction `3.5s`; `example` is the message's hint for
/// another text.
///
/// # Errors
/// The fault of the text, for people. Months and years are refused: they have no fixed length, and `1M` may be meant for a
/// minute.
pub fn duration(text: &str, example: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.split(|letter: char| !letter.is_alphabetic()).any(|unit| MONTHS_AND_YEARS.contains(&unit)) {
        return Err(format!("`{text}`: months and years have no fixed length: write days, as in 30d or 365d, and m for minutes"));
    }
    humantime::parse_duration(text).ok().or_else(|| fraction(text)).ok_or_else(|| format!("`{text}` is not a duration; write {example}"))
}

/// Reads a duration with a fraction: `3.5s`.
fn fraction(text: &str) -> Option<Duration> {
    let (whole, rest) = text.split_once('.')?;
    let fraction = rest.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match rest.strip_prefix(fraction)? {
        "ms" => 1_000_000,
        "s" => 1_000_000_000_u128,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let digits = |text: &str| !text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let nanos = whole.parse::<u128>().ok()? * unit + fraction.parse::<u128>().ok()? * unit / scale;
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

/// Units of `humantime` whose length is an average.
const MONTHS_AND_YEARS: &[&str] = &["M", "month", "months", "y", "yr", "yrs", "year", "years"];

const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        for (text, millis) in [
            ("3500ms", Some(3500)),
            ("3s", Some(3000)),
            ("3.5s", Some(3500)),
            ("3.500s", Some(3500)),
            ("0.25m", Some(15_000)),
            ("1m 30s", Some(90_000)),
            (" 30s ", Some(30_000)),
            ("3.5", None),
            ("3", None),
            (".5s", None),
            ("3.s", None),
            ("-1s", None),
            ("3.5.1s", None),
            ("", None),
            ("soon", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(duration(text, "").ok(), millis.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn e11_months_and_years_are_refused_and_the_example_is_of_the_length_that_is_meant() {
        for text in ["1M", "2 months", "1y", "1year", "1y 2d", "3yrs"] {
            let said = duration(text, "x").unwrap_err();
            assert!(said.contains("no fixed length") && said.contains("30d"), "{text}: {said}");
        }
        assert_eq!(duration("1m", "x"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("2w 1d", "x"), Ok(15 * DAY));
        assert_eq!(duration("fortnight", "14d"), Err("`fortnight` is not a duration; write 14d".to_owned()));
    }
}
