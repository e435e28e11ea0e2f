//! What is wrong with a configuration, and where: all of it at once.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Line and column of the configuration file, both from 1; columns count characters.
    Line(usize, usize),
    /// The file as a whole, or the configuration as a whole where there is no file.
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
    mistakes: RefCell<Vec<Mistake>>,
    warnings: RefCell<Vec<Mistake>>,
}

impl Report {
    /// For a file, or for variables alone.
    pub(crate) fn new(file: Option<&Path>) -> Self {
        Self { file: file.map(|file| file.display().to_string()), ..Self::default() }
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
