//! What is wrong with a configuration, and where: all of it at once.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;

/// Where a value stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Line and column of the configuration file, both from 1; columns count characters.
    Line(usize, usize),
    /// The file as a whole, or the configuration as a whole where there is no file.
    #[default]
    Whole,
    /// An environment variable.
    Variable(String),
}

/// One thing that is wrong, and what to do about it. Never a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The configuration file, as it was named; `None`: there is none.
    pub file: Option<String>,
    /// Where in it.
    pub place: Place,
    /// What is wrong.
    pub message: String,
}

impl Mistake {
    /// One about the configuration as a whole, or about something that its message names.
    pub(crate) fn of_whole(message: impl Into<String>) -> Self {
        Self { file: None, place: Place::Whole, message: message.into() }
    }

    /// One about a file that the configuration names.
    pub(crate) fn of_file(file: &Path, message: impl Into<String>) -> Self {
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

/// Why a configuration cannot be used; at least one mistake, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    /// A single one about a whole file, or about the configuration where there is none.
    pub(crate) fn one(file: Option<&Path>, message: impl Into<String>) -> Self {
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

/// Collects mistakes and warnings while a configuration is read.
#[derive(Debug, Default)]
pub(crate) struct Report {
    file: Option<String>,
    text: Text,
    mistakes: RefCell<Vec<Mistake>>,
    warnings: RefCell<Vec<Mistake>>,
}

/// The text of a file. It does not print: somebody may have written a secret into it.
#[derive(Default)]
struct Text {
    text: String,
    /// Where each line begins.
    begin: Vec<usize>,
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl Report {
    /// For a file, or for variables alone.
    pub(crate) fn new(file: Option<&Path>) -> Self {
        Self { file: file.map(|file| file.display().to_string()), ..Self::default() }
    }

    /// For a file with this text, so that mistakes inside a string of it have a place.
    pub(crate) fn of(file: &Path, text: &str) -> Self {
        let begin = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text: Text { text: text.to_owned(), begin }, ..Self::new(Some(file)) }
    }

    /// The place in the file of what is `offset` bytes into the string that stands at `place`; that of the string where
    /// it is not in a file.
    pub(crate) fn within(&self, place: &Place, offset: usize) -> Place {
        let Place::Line(line, column) = *place else { return place.clone() };
        let begin = self.text.begin.get(line.saturating_sub(1)).copied();
        let from = begin.and_then(|begin| self.text.text.get(begin..)).unwrap_or_default();
        let raw = from.char_indices().nth(column.saturating_sub(1)).and_then(|(start, _)| from.get(start..));
        let Some(before) = raw.and_then(|raw| raw.get(..before(raw, offset)?)) else { return place.clone() };
        let breaks = before.matches('\n').count();
        let last = before.rsplit('\n').next().unwrap_or_default().chars().count();
        Place::Line(line + breaks, if breaks == 0 { column + last } else { last + 1 })
    }

    pub(crate) fn mistake(&self, place: &Place, message: impl Into<String>) {
        let found = Mistake { file: self.file.clone(), place: place.clone(), message: message.into() };
        self.mistakes.borrow_mut().push(found);
    }

    pub(crate) fn warn(&self, place: &Place, message: impl Into<String>) {
        let found = Mistake { file: self.file.clone(), place: place.clone(), message: message.into() };
        self.warnings.borrow_mut().push(found);
    }

    /// `value` and the warnings, unless something is wrong.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<(T, Vec<Mistake>), Mistakes> {
        let (mut mistakes, mut warnings) = (self.mistakes.into_inner(), self.warnings.into_inner());
        mistakes.sort_by(|a, b| a.place.cmp(&b.place));
        warnings.sort_by(|a, b| a.place.cmp(&b.place));
        match value {
            Some(value) if mistakes.is_empty() => Ok((value, warnings)),
            _ => Err(Mistakes(mistakes)),
        }
    }
}

/// How many bytes of a TOML string, from its opening quote, stand before what is `offset` bytes into its value
/// (TOML 1.0, "String").
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

/// The word of `known` that `given` is most likely meant to be.
pub(crate) fn meant<'k>(given: &str, known: &[&'k str]) -> Option<&'k str> {
    let given = given.to_lowercase();
    known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(&given, word), *word))
        .filter(|(distance, word)| *distance <= 1 + word.len() / 4)
        .min()
        .map(|(_, word)| word)
}

/// ``did you mean `…`?`` or the whole list.
pub(crate) fn suggestion(given: &str, known: &[&str]) -> String {
    match meant(given, known) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("there are {}", known.join(", ")),
    }
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
