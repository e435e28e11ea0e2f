//! What can be wrong with a device file, what should be looked at in it, and where.

use std::fmt;
use std::path::Path;

use posture::identity::IdentifierKind;

use super::spelling;

/// What was found in a file: the first [`Findings::SHOWN`], and how many more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings<T> {
    places: Vec<Place<T>>,
    more: usize,
}

/// All that is wrong with a file.
pub type Mistakes = Findings<Mistake>;

/// All that should be looked at in a file that is used.
pub type Warnings = Findings<Warning>;

/// One finding, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place<T> {
    /// From 1.
    pub line: usize,
    /// In characters, from 1. A byte order mark does not count.
    pub column: usize,
    /// What is there.
    pub what: T,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// Bytes that are no text.
    #[error("the text is neither UTF-8 nor UTF-16 with a byte order mark; save the file as UTF-8, which Excel calls `CSV UTF-8`")]
    Encoding,
    /// Not JSON, or not of the schema; as the parser says it.
    #[error("{0}")]
    Json(String),
    /// Which of the two counts? Upper and lower case are the same.
    #[error("the member `{0}` stands twice")]
    DuplicateMember(String),
    /// There is no list.
    #[error("the member `devices` is missing")]
    DevicesMissing,
    /// An entry of the list is something else.
    #[error("a device must be an object")]
    DeviceNotObject,
    /// A device without a name.
    #[error("the device has no `identifier`")]
    IdentifierMissing,
    /// A number, for instance: it would lose its leading zeros.
    #[error("the identifier must be a string")]
    IdentifierNotString,
    /// Nothing but white space.
    #[error("the identifier is blank")]
    IdentifierBlank,
    /// Longer than any identifier of a webhook.
    #[error("the identifier has {0} bytes; at most {LONGEST_IDENTIFIER} are allowed")]
    IdentifierTooLong(usize),
    /// A line feed, for instance.
    #[error("the identifier has a control character")]
    IdentifierControl,
    /// Two rows for one device: which of them counts?
    #[error("identifier `{identifier}` is already on line {first}{}", why_twice(.identifier))]
    Duplicate {
        /// As it is compared.
        identifier: String,
        /// The line of the first.
        first: usize,
    },
    /// Templates expect members.
    #[error("`data` must be an object")]
    DataNotObject,
    /// There is not even a header.
    #[error("the file is empty; its first line must be a header, one of which is `Identifier`")]
    HeaderMissing,
    /// No column is known to hold the identifiers.
    #[error("no header is known for identifiers of kind {kind}; name one of {headers} by identifier_column, or call it `Identifier`")]
    HeaderUnknown {
        /// What the file lists.
        kind: IdentifierKind,
        /// The headers that there are.
        headers: String,
    },
    /// The configuration names a column that is not there.
    #[error("no header is `{column}`, as identifier_column says; there are {headers}")]
    HeaderNotThere {
        /// The setting.
        column: String,
        /// The headers that there are.
        headers: String,
    },
    /// Which of them has the identifiers?
    #[error("each of the headers {0} may be that of the identifiers; say which by identifier_column")]
    HeaderAmbiguous(String),
    /// Two columns of identifiers.
    #[error("the header `{0}` of the identifiers stands twice")]
    HeaderDuplicate(String),
    /// A header that can be read in two ways.
    #[error("the header can be read with more than one separator; put `sep=;`, or whichever it is, into a line of its own before it")]
    SeparatorUnclear,
    /// `sep=#`
    #[error("cells are separated by a comma, a semicolon, a tab or a bar, and not by `{0}`")]
    SeparatorUnknown(String),
    /// More or fewer cells than headers.
    #[error("cells in this row: {cells}, in the header: {headers}")]
    Ragged {
        /// Of the row.
        cells: usize,
        /// Of the header.
        headers: usize,
    },
    /// A quoted cell goes on to the end of the file.
    #[error("the quoted cell that begins here does not end")]
    QuoteOpen,
    /// `a"b`
    #[error("a quote in a cell that is not quoted; quote the whole cell and double the quote")]
    QuoteInside,
    /// `"a"b`
    #[error("text after the closing quote of a cell; double the quotes that belong to it")]
    QuoteFollowed,
    /// Lines end with a line feed, or with both. Those of a CSV for an old Macintosh do not.
    #[error("a carriage return without a line feed; end the lines with either LF or CR LF, as a file saved as `CSV UTF-8` does")]
    CarriageReturn,
    /// Offsets would not fit.
    #[error("the devices up to here take 4 GiB; no more can be held")]
    TooMuch,
}

/// One thing that should be looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// Of a copy from a page or a spreadsheet.
    #[error("characters that cannot be seen, such as U+{:04X}, were cut off the identifier", u32::from(*.0))]
    Cut(char),
    /// `5.02E+11`
    #[error("identifier `{0}` looks like a number that a spreadsheet rounded; give the column the format Text and export it again")]
    Rounded(String),
    /// A spreadsheet takes an identifier for a number, and numbers have no zeros before them.
    #[error("identifier `{identifier}` has {} digits and most have {usual}; a spreadsheet may have taken zeros off its beginning", .identifier.len())]
    Shortened {
        /// The identifier.
        identifier: String,
        /// Digits that most of those have that are nothing but digits.
        usual: usize,
    },
    /// `Default string`
    #[error("`{0}` identifies no device; the entry is passed over")]
    Placeholder(String),
    /// A device of an export that has none, or a row of empty cells.
    #[error("the row has no identifier, and is passed over")]
    Unidentified,
    /// A column without a name.
    #[error("the header is empty; its column is passed over")]
    HeaderEmpty,
    /// Two columns of one name.
    #[error("the header `{0}` stands twice; the first column of this name counts")]
    HeaderDuplicate(String),
    /// A member that nobody reads.
    #[error("the member `{name}` is passed over wherever it stands; {known}")]
    UnknownMember {
        /// Its name.
        name: String,
        /// What is read.
        known: &'static str,
    },
}

/// Why an identifier may stand twice in a file.
fn why_twice(identifier: &str) -> &'static str {
    if spelling::is_rounded(identifier) { ", and looks like a number that a spreadsheet rounded" } else { "" }
}

/// Longest identifier, in bytes: [`posture::identity::DeviceId`] takes none that is longer, whatever its kind.
pub(super) const LONGEST_IDENTIFIER: usize = 254;

impl<T> Findings<T> {
    /// How many are kept; the rest is counted.
    pub const SHOWN: usize = 20;

    /// Those that are kept, in the order of the file.
    pub fn places(&self) -> &[Place<T>] {
        &self.places
    }

    /// How many there are besides.
    pub const fn more(&self) -> usize {
        self.more
    }
}

impl<T: fmt::Display> Findings<T> {
    /// For people, one a line, each with the name of the file.
    pub fn in_file(&self, path: &Path) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            for (i, Place { line, column, what }) in self.places.iter().enumerate() {
                if i > 0 {
                    f.write_str("\n")?;
                }
                write!(f, "{}:{line}:{column}: {what}", path.display())?;
            }
            if self.more > 0 {
                write!(f, "\nand {} more", self.more)?;
            }
            Ok(())
        })
    }

    /// The same as single sentences.
    pub fn sentences(&self, path: &Path) -> Vec<String> {
        let shown = path.display();
        let places = self.places.iter().map(|Place { line, column, what }| format!("{shown}:{line}:{column}: {what}"));
        places.chain((self.more > 0).then(|| format!("{shown}: and {} more", self.more))).collect()
    }
}

impl<T> Default for Findings<T> {
    fn default() -> Self {
        Self { places: Vec::new(), more: 0 }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.in_file(Path::new("devices")).fmt(f)
    }
}

impl std::error::Error for Mistakes {}

/// Collects mistakes and warnings by their offset in the text.
#[derive(Debug)]
pub(super) struct Collector<'t> {
    text: &'t str,
    mistakes: Found<Mistake>,
    warnings: Found<Warning>,
}

/// What was found, by its offset.
#[derive(Debug)]
struct Found<T> {
    first: Vec<(usize, T)>,
    more: usize,
}

impl<'t> Collector<'t> {
    pub(super) const fn new(text: &'t str) -> Self {
        Self { text, mistakes: Found::new(), warnings: Found::new() }
    }

    pub(super) fn add(&mut self, offset: usize, mistake: Mistake) {
        self.mistakes.add(offset, || mistake);
    }

    pub(super) fn add_duplicate(&mut self, offset: usize, first: usize, identifier: &str) {
        let text = self.text;
        // To count lines takes a while, and a file that was pasted twice has duplicates only.
        self.mistakes.add(offset, || Mistake::Duplicate { identifier: shown(identifier), first: place(text, first).0 });
    }

    /// A file may have one for each of a million rows, so one that is only counted is not made.
    pub(super) fn warn(&mut self, offset: usize, warning: impl FnOnce() -> Warning) {
        self.warnings.add(offset, warning);
    }

    /// The warnings, unless something is wrong.
    pub(super) fn finish(self) -> Result<Warnings, Mistakes> {
        let Self { text, mistakes, warnings } = self;
        if mistakes.first.is_empty() { Ok(warnings.placed(text)) } else { Err(mistakes.placed(text)) }
    }
}

impl<T> Found<T> {
    const fn new() -> Self {
        Self { first: Vec::new(), more: 0 }
    }

    fn add(&mut self, offset: usize, what: impl FnOnce() -> T) {
        if self.first.len() < Findings::<T>::SHOWN {
            self.first.push((offset, what()));
        } else {
            self.more += 1;
        }
    }

    fn placed(mut self, text: &str) -> Findings<T> {
        self.first.sort_by_key(|(offset, _)| *offset);
        let places = self.first.into_iter().map(|(offset, what)| {
            let (line, column) = place(text, offset);
            Place { line, column, what }
        });
        Findings { places: places.collect(), more: self.more }
    }
}

/// Line and column.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    let is_first_byte_of_a_character = |byte: &&u8| **byte & 0xc0 != 0x80;
    let characters = before.get(line_start..).unwrap_or_default().iter().filter(is_first_byte_of_a_character).count();
    (lines + 1, characters + 1)
}

/// A name from the file as a message shows it: on one line and not for ever.
pub(super) fn shown(name: &str) -> String {
    const LONGEST: usize = 40;
    let mut short: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}
