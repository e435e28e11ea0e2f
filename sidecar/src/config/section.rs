//! One table while it is read: keys are taken out of it by type, and what is left over is a mistake.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::{Data, Table, Value};
use super::mistakes::{Place, Report, suggestion};

/// A table being read.
pub(crate) struct Section<'r> {
    /// For messages: `[listen]`.
    name: String,
    table: Table,
    known: Vec<&'static str>,
    report: &'r Report,
}

impl<'r> Section<'r> {
    pub(crate) fn new(name: impl Into<String>, table: Table, report: &'r Report) -> Self {
        Self { name: name.into(), table, known: Vec::new(), report }
    }

    /// Where it begins.
    pub(crate) fn place(&self) -> &Place {
        &self.table.place
    }

    pub(crate) fn report(&self) -> &'r Report {
        self.report
    }

    /// Takes a value of any type.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.entries.remove(key).map(|entry| entry.value)
    }

    /// Takes what `read` makes of a string.
    pub(crate) fn text<T>(&mut self, key: &'static str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.take(key)?;
        self.checked(key, &value.place, || match &value.data {
            Data::Text(text) | Data::Given(text) => read(text),
            other => Err(format!("must be a string, not {}", other.name())),
        })
    }

    /// Takes a whole number between two bounds.
    pub(crate) fn number(&mut self, key: &'static str, least: i64, most: i64, unit: &str) -> Option<i64> {
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
    pub(crate) fn share(&mut self, key: &'static str) -> Option<f64> {
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
    pub(crate) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        self.checked(key, &value.place, || match &value.data {
            Data::Boolean(flag) => Ok(*flag),
            Data::Given(text) => text.trim().parse().map_err(|_| format!("`{text}` is neither true nor false")),
            other => Err(format!("must be true or false, not {}", other.name())),
        })
    }

    /// Takes a duration between two bounds, each with its text for the message.
    pub(crate) fn duration(&mut self, key: &'static str, least: (Duration, &str), most: (Duration, &str)) -> Option<Duration> {
        self.text(key, |text| {
            let duration = duration(text, if most.0 >= DAY { "14d, 12h or 30m" } else { "30s, 3500ms or 3.5s" })?;
            if (least.0..=most.0).contains(&duration) { Ok(duration) } else { Err(format!("must be from {} to {}", least.1, most.1)) }
        })
    }

    /// Takes a path; a relative one is relative to `base`.
    pub(crate) fn path(&mut self, key: &'static str, base: &Path) -> Option<PathBuf> {
        self.text(key, |text| path(text, base))
    }

    /// Takes a list; `read` makes something of each item, or reports why not.
    pub(crate) fn list<T>(&mut self, key: &'static str, mut read: impl FnMut(Value) -> Option<T>) -> Option<(Place, Vec<T>)> {
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

    /// Reports a list that is there and empty: whoever reads it may take it for "nobody" as well as for "no restriction".
    pub(crate) fn refuse_empty(&self, key: &'static str, remedy: &str) {
        let Some(entry) = self.table.entries.get(key) else { return };
        if matches!(&entry.value.data, Data::List(items) if items.is_empty()) {
            self.report.mistake(&entry.value.place, format!("`{key}` is empty, and would restrict nothing: {remedy}"));
        }
    }

    /// Takes a table within this one.
    pub(crate) fn section(&mut self, key: &'static str) -> Option<Section<'r>> {
        let value = self.take(key)?;
        match value.data {
            Data::Table(table) => Some(Section::new(format!("`{key}`"), table, self.report)),
            other => {
                self.report.mistake(&value.place, format!("`{key}` must be a table, not {}", other.name()));
                None
            }
        }
    }

    /// Says that a key is missing, and what to write.
    pub(crate) fn missing(&self, key: &str, example: &str) {
        let name = &self.name;
        self.report.mistake(&self.table.place, format!("{name} has no `{key}`: write {example}"));
    }

    /// Where the value of a key stands that was not taken yet.
    pub(crate) fn place_of(&self, key: &str) -> Option<Place> {
        self.table.entries.get(key).map(|entry| entry.value.place.clone())
    }

    /// Whether the key is there and was not taken yet.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.entries.contains_key(key)
    }

    /// Everything that is left, by key.
    pub(crate) fn rest(self) -> impl Iterator<Item = (String, Place, Value)> {
        self.table.entries.into_iter().map(|(key, entry)| (key, entry.place, entry.value))
    }

    /// Reports the keys that nobody took. Their values are not shown: one may be a secret under a misspelt name.
    pub(crate) fn finish(self) {
        for (key, entry) in &self.table.entries {
            let name = &self.name;
            let hint = match ELSEWHERE.iter().find(|(known, _)| known == key) {
                Some((_, place)) => format!("it belongs to {place}"),
                None => suggestion(key, &self.known),
            };
            self.report.mistake(&entry.place, format!("{name} has no key `{key}`; {hint}"));
        }
    }

    fn checked<T>(&self, key: &str, place: &Place, read: impl FnOnce() -> Result<T, String>) -> Option<T> {
        read().map_err(|message| self.report.mistake(place, format!("`{key}`: {message}"))).ok()
    }
}

/// A path as it was written, made absolute by `base`.
pub(crate) fn path(text: &str, base: &Path) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("is not a path".to_owned());
    }
    Ok(base.join(text))
}

/// Reads `3500ms`, `30s`, `1m 30s`, `14d`, and with a fraction `3.5s`; `example` says what to write instead of another text.
///
/// # Errors
/// What is wrong, for people. Months and years are refused: they have no fixed length, and `1M` may be meant for a minute.
pub(crate) fn duration(text: &str, example: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.split(|letter: char| !letter.is_alphabetic()).any(|unit| MONTHS_AND_YEARS.contains(&unit)) {
        return Err(format!("`{text}`: months and years have no fixed length: write days, as in 30d or 365d, and m for minutes"));
    }
    humantime::parse_duration(text).ok().or_else(|| fraction(text)).ok_or_else(|| format!("`{text}` is not a duration; write {example}"))
}

/// `3.5s`.
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

/// Keys that one kind of table has, for whoever writes them into another one.
const ELSEWHERE: &[(&str, &str)] = &[
    ("enforcement", "[[webhook]], where it says what becomes of the policy's denials"),
    ("callers", "[[webhook]]"),
    ("deadline", "[[webhook]]"),
    ("body_limit", "[[webhook]]"),
    ("unsigned", "[[webhook]]"),
    ("window", "[[webhook]]"),
    ("identity", "[[webhook]]"),
    ("identity_field", "[[webhook]]"),
    ("attestation", "[[webhook]]"),
    ("client_ca", "[envoy], or for questions over TCP to [query]"),
    ("webhook_address", "[envoy]"),
    ("public_address", "[envoy]"),
    ("wasm", "[envoy]"),
    ("sockets", "[listen]"),
    ("role_folders", "[listen]"),
    ("managed", "[policy.NAME]"),
    ("groups_any", "[policy.NAME]"),
    ("groups_all", "[policy.NAME]"),
    ("groups_none", "[policy.NAME]"),
    ("min_os", "[policy.NAME]"),
    ("max_silence", "[policy.NAME]"),
    ("max_age", "[policy.NAME]"),
    ("compliance", "[policy.NAME]"),
    ("trust", "[policy.NAME]"),
    ("not_lost", "[policy.NAME]"),
    ("not_wiping", "[policy.NAME]"),
    ("require", "[policy.NAME]"),
    ("deny_if", "[policy.NAME]"),
    ("on_not_found", "[policy.NAME]"),
    ("on_unavailable", "[policy.NAME]"),
    ("combine", "[policy.NAME]"),
    ("remediation_url", "[policy.NAME]"),
    ("base_url", "[provider.NAME]"),
    ("ca_file", "[provider.NAME]"),
    ("identifier_column", "[provider.NAME] of type = \"file\""),
    ("positive", "[provider.NAME.cache]"),
    ("negative", "[provider.NAME.cache]"),
    ("stale_if_error", "[provider.NAME.cache]"),
    ("per_second", "[provider.NAME.limits]"),
    ("unknown_per_minute", "[provider.NAME.limits]"),
    ("retention", "[store]"),
    ("max_decisions", "[store]"),
    ("level", "[log]"),
    ("placeholders", "the top of the file, above every table"),
];

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
