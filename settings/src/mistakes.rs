//! Mistakes of a configuration with their places, reported all at once.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;

/// The place of a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Line and column of the configuration file, both from 1; columns count characters.
    Line(usize, usize),
    /// The whole file, or the whole configuration where there is no file.
    #[default]
    Whole,
    /// The environment variable of this name.
    Variable(String),
}

/// One mistake in a configuration, and what to do about it. It never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The configuration file, as it was named; `None`: there is none.
    pub file: Option<String>,
    /// Place of the mistake in the file.
    pub place: Place,
    /// Text of the mistake, for people.
    pub message: String,
}

impl Mistake {
    /// A mistake about the configuration as a whole, or about something that its message names.
    pub fn of_whole(message: impl Into<String>) -> Self {
        Self { file: None, place: Place::Whole, message: message.into() }
    }

    /// A mistake about a file that the configuration names.
    pub fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self { file: Some(file.display().to_string()), ..Self::of_whole(message) }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place, &self.file) {
            (Place::Variable(name), _) => write!(f, "{name}: ")?,
            (Place::Line(line, column), Some(file)) => write!(f, "{file}:{line}:{column}: ")?,
            (Place::Whole, Some(file)) => write!(f, "{file}: ")?,
            (Place::Line(..) | Place::Whole, None) => {}
        }
        f.write_str(&self.message)
    }
}

/// The mistakes for which a configuration cannot be used, in the order of the file; mostly at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    /// A single mistake about a whole file, or about the configuration where there is none.
    pub fn one(file: Option<&Path>, message: impl Into<String>) -> Self {
        Self(vec![Mistake { file: file.map(|file| file.display().to_string()), place: Place::Whole, message: message.into() }])
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        self.0.iter().try_for_each(|mistake| write!(f, "{}{mistake}", std::mem::replace(&mut separator, "\n")))
    }
}

impl std::error::Error for Mistakes {}

/// Texts in messages that depend on whose configuration is read.
#[derive(Clone, Copy, Debug)]
pub struct Hints {
    /// The table that a known key belongs to, for a key that stands in another table.
    pub elsewhere: fn(&str) -> Option<&'static str>,
    /// An example of a file with a secret.
    pub example_file: &'static str,
    /// An example of a variable with a secret.
    pub example_variable: &'static str,
}

impl Default for Hints {
    fn default() -> Self {
        Self { elsewhere: |_| None, example_file: "private/name", example_variable: "NAME" }
    }
}

/// The mistakes and warnings that are found while a configuration is read.
#[derive(Debug, Default)]
pub struct Report {
    file: Option<String>,
    text: Text,
    hints: Hints,
    mistakes: RefCell<Vec<Mistake>>,
    warnings: RefCell<Vec<Mistake>>,
}

/// The text of a file. It does not print: somebody may have written a secret into it.
#[derive(Default)]
struct Text {
    text: String,
    /// Offset at which each line begins.
    begin: Vec<usize>,
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl Report {
    /// An empty report about a file, or about variables alone.
    pub fn new(file: Option<&Path>) -> Self {
        Self { file: file.map(|file| file.display().to_string()), ..Self::default() }
    }

    /// An empty report about a file with this text, so that mistakes inside a string of it have a place.
    pub fn of(file: &Path, text: &str) -> Self {
        Self { text: Text { text: text.to_owned(), begin: lines(text) }, ..Self::new(Some(file)) }
    }

    /// Gives the report's messages these hints.
    #[must_use]
    pub fn hinting(self, hints: Hints) -> Self {
        Self { hints, ..self }
    }

    /// The hints that messages give.
    pub const fn hints(&self) -> &Hints {
        &self.hints
    }

    /// The place of the byte at `offset` in the value of the string at `place`; `place` itself where the string is not in the
    /// file.
    pub fn within(&self, place: &Place, offset: usize) -> Place {
        let Place::Line(line, column) = *place else { return place.clone() };
        let begin = self.text.begin.get(line.saturating_sub(1)).copied();
        let from = begin.and_then(|begin| self.text.text.get(begin..)).unwrap_or_default();
        let raw = from.char_indices().nth(column.saturating_sub(1)).and_then(|(start, _)| from.get(start..));
        let Some(before) = raw.and_then(|raw| raw.get(..before(raw, offset)?)) else { return place.clone() };
        let breaks = before.matches('\n').count();
        let last = before.rsplit('\n').next().unwrap_or_default().chars().count();
        Place::Line(line + breaks, if breaks == 0 { column + last } else { last + 1 })
    }

    /// Adds a mistake: the configuration cannot be used.
    pub fn mistake(&self, place: &Place, message: impl Into<String>) {
        let found = Mistake { file: self.file.clone(), place: place.clone(), message: message.into() };
        self.mistakes.borrow_mut().push(found);
    }

    /// Adds a warning: the configuration works, and should be looked at.
    pub fn warn(&self, place: &Place, message: impl Into<String>) {
        let found = Mistake { file: self.file.clone(), place: place.clone(), message: message.into() };
        self.warnings.borrow_mut().push(found);
    }

    /// Returns `value` and the warnings, in the order of the file.
    ///
    /// # Errors
    /// All [`Mistakes`]; an empty list where `value` is `None` and nothing was reported.
    pub fn finish<T>(self, value: Option<T>) -> Result<(T, Vec<Mistake>), Mistakes> {
        let (mut mistakes, mut warnings) = (self.mistakes.into_inner(), self.warnings.into_inner());
        mistakes.sort_by(|a, b| a.place.cmp(&b.place));
        warnings.sort_by(|a, b| a.place.cmp(&b.place));
        match value {
            Some(value) if mistakes.is_empty() => Ok((value, warnings)),
            _ => Err(Mistakes(mistakes)),
        }
    }
}

/// Offset at which each line of a text begins.
pub(crate) fn lines(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect()
}

/// Number of bytes of a TOML string, from its opening quote, before the byte at `offset` in its value (TOML 1.0, "String").
fn before(raw: &str, offset: usize) -> Option<usize> {
    let (quote, escapes) =
        [("\"\"\"", true), ("'''", false), ("\"", true), ("'", false)].into_iter().find(|(quote, _)| raw.starts_with(quote))?;
    let mut at = quote.len();
    if quote.len() == 3 {
        // A line break right after the quotes does not count.
        let rest = raw.get(at..)?;
        at += if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) };
    }
    let mut value = 0;
    while value < offset {
        let rest = raw.get(at..)?;
        let first = rest.chars().next()?;
        if first != '\\' || !escapes {
            at += first.len_utf8();
            value += first.len_utf8();
            continue;
        }
        let digits = match rest.chars().nth(1)? {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            letter if letter.is_whitespace() => {
                // A backslash at the end of a line swallows it and all blanks up to the next text.
                at += 1 + rest.get(1..)?.find(|letter: char| !letter.is_whitespace())?;
                continue;
            }
            _ => {
                at += 2;
                value += 1;
                continue;
            }
        };
        let number = u32::from_str_radix(rest.get(2..2 + digits)?, 16).ok()?;
        at += 2 + digits;
        value += char::from_u32(number)?.len_utf8();
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_place_inside_a_string() {
        for (text, offset, expected) in [
            ("expr = \"abc\"", 1, (1, 10)),
            ("expr = 'abc'", 0, (1, 9)),
            ("expr = 'a\\\\bc'", 3, (1, 12)),
            (r#"expr = "a\\.\u00e9b""#, 5, (1, 19)),
            ("expr = \"éb\"", 2, (1, 10)),
            ("expr = '''\nab\ncd'''", 4, (3, 2)),
            ("expr = \"\"\"\\\n  ab\"\"\"", 1, (2, 4)),
            ("expr = \"abc\"", 99, (1, 8)),
            ("expr = 7", 1, (1, 8)),
        ] {
            let place = Report::of(Path::new("x"), text).within(&Place::Line(1, 8), offset);
            assert_eq!(place, Place::Line(expected.0, expected.1), "{text}");
        }
        let variable = Place::Variable("X".to_owned());
        assert_eq!(Report::new(None).within(&variable, 3), variable);
    }

    #[test]
    fn the_text_of_a_file_does_not_print() {
        assert!(!format!("{:?}", Report::of(Path::new("x"), "secret")).contains("secret"));
    }
}
