//! Mistakes in a device file and warnings about it, each with its place.

use std::fmt;
use std::path::Path;

use posture::identity::IdentifierKind;

use super::spelling;

/// Findings in a file: the first [`Findings::SHOWN`], and how many more there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings<T> {
    places: Vec<Place<T>>,
    more: usize,
}

/// Mistakes, for which a file is not used.
pub type Mistakes = Findings<Mistake>;

/// Warnings about a file that is used.
pub type Warnings = Findings<Warning>;

/// One finding, and its place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place<T> {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1. A byte order mark does not count.
    pub column: usize,
    /// The finding at this place.
    pub what: T,
}

/// One mistake in a device file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// The bytes are no text.
    #[error("the text is neither UTF-8 nor UTF-16 with a byte order mark; save the file as UTF-8, which Excel calls `CSV UTF-8`")]
    Encoding,
    /// The text is no JSON, or not of the schema; in the parser's words.
    #[error("{0}")]
    Json(String),
    /// A member stands twice, upper and lower case being the same: it is unclear which one counts.
    #[error("the member `{0}` stands twice")]
    DuplicateMember(String),
    /// The file has no list of devices.
    #[error("the member `devices` is missing")]
    DevicesMissing,
    /// An entry of the list is no object.
    #[error("a device must be an object")]
    DeviceNotObject,
    /// A device has no identifier.
    #[error("the device has no `identifier`")]
    IdentifierMissing,
    /// The identifier is no string: a number would lose its leading zeros.
    #[error("the identifier must be a string")]
    IdentifierNotString,
    /// The identifier is nothing but white space.
    #[error("the identifier is blank")]
    IdentifierBlank,
    /// The identifier is longer than that of any webhook.
    #[error("the identifier has {0} bytes; at most {LONGEST_IDENTIFIER} are allowed")]
    IdentifierTooLong(usize),
    /// The identifier has a control character, such as a line feed.
    #[error("the identifier has a control character")]
    IdentifierControl,
    /// Two rows have one identifier: it is unclear which one counts.
    #[error("identifier `{identifier}` is already on line {first}{}", why_twice(.identifier))]
    Duplicate {
        /// The identifier in its normal form.
        identifier: String,
        /// Line of the first row.
        first: usize,
    },
    /// The data is no object, as templates expect.
    #[error("`data` must be an object")]
    DataNotObject,
    /// The file is empty: it has not even a header.
    #[error("the file is empty; its first line must be a header, one of which is `Identifier`")]
    HeaderMissing,
    /// No column is known to hold the identifiers.
    #[error("no header is known for identifiers of kind {kind}; name one of {headers} by identifier_column, or call it `Identifier`")]
    HeaderUnknown {
        /// The kind of identifier that the file lists.
        kind: IdentifierKind,
        /// The headers of the file.
        headers: String,
    },
    /// The configuration names a column that the file does not have.
    #[error("no header is `{column}`, as identifier_column says; there are {headers}")]
    HeaderNotThere {
        /// The name in the configuration.
        column: String,
        /// The headers of the file.
        headers: String,
    },
    /// Several columns may have the identifiers.
    #[error("each of the headers {0} may be that of the identifiers; say which by identifier_column")]
    HeaderAmbiguous(String),
    /// Two columns of identifiers have one name.
    #[error("the header `{0}` of the identifiers stands twice")]
    HeaderDuplicate(String),
    /// The header can be read with more than one separator.
    #[error("the header can be read with more than one separator; put `sep=;`, or whichever it is, into a line of its own before it")]
    SeparatorUnclear,
    /// The first line states a separator that is not taken: `sep=#`.
    #[error("cells are separated by a comma, a semicolon, a tab or a bar, and not by `{0}`")]
    SeparatorUnknown(String),
    /// A row has more or fewer cells than the header.
    #[error("cells in this row: {cells}, in the header: {headers}")]
    Ragged {
        /// Number of cells in the row.
        cells: usize,
        /// Number of cells in the header.
        headers: usize,
    },
    /// A quoted cell goes on to the end of the file.
    #[error("the quoted cell that begins here does not end")]
    QuoteOpen,
    /// A quote stands in an unquoted cell: `a"b`.
    #[error("a quote in a cell that is not quoted; quote the whole cell and double the quote")]
    QuoteInside,
    /// Text follows the closing quote of a cell: `"a"b`.
    #[error("text after the closing quote of a cell; double the quotes that belong to it")]
    QuoteFollowed,
    /// A line ends with a carriage return alone, as in a CSV file for an old Macintosh. Lines end with a line feed, or with both.
    #[error("a carriage return without a line feed; end the lines with either LF or CR LF, as a file saved as `CSV UTF-8` does")]
    CarriageReturn,
    /// The devices take more bytes than offsets can count.
    #[error("the devices up to here take 4 GiB; no more can be held")]
    TooMuch,
}

/// One warning about a device file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// Unseen characters stood around the identifier, as in a copy from a page or a spreadsheet.
    #[error("characters that cannot be seen, such as U+{:04X}, were cut off the identifier", u32::from(*.0))]
    Cut(char),
    /// The identifier looks like a rounded number: `5.02E+11`.
    #[error("identifier `{0}` looks like a number that a spreadsheet rounded; give the column the format Text and export it again")]
    Rounded(String),
    /// The identifier may have lost zeros: a spreadsheet takes it for a number, and numbers have no leading zeros.
    #[error("identifier `{identifier}` has {} digits and most have {usual}; a spreadsheet may have taken zeros off its beginning", .identifier.len())]
    Shortened {
        /// The identifier as it stands in the file.
        identifier: String,
        /// Number of digits that most identifiers have which are nothing but digits.
        usual: usize,
    },
    /// The identifier identifies nobody: `Default string`.
    #[error("`{0}` identifies no device; the entry is passed over")]
    Placeholder(String),
    /// The row has no identifier: a device of an export that has none, or a row of empty cells.
    #[error("the row has no identifier, and is passed over")]
    Unidentified,
    /// A column has no name.
    #[error("the header is empty; its column is passed over")]
    HeaderEmpty,
    /// Two columns have one name.
    #[error("the header `{0}` stands twice; the first column of this name counts")]
    HeaderDuplicate(String),
    /// A member of the file is not read.
    #[error("the member `{name}` is passed over wherever it stands; {known}")]
    UnknownMember {
        /// Name of the member.
        name: String,
        /// Names of the members that are read.
        known: &'static str,
    },
}

/// A reason why an identifier stands twice in a file, for a message; empty where none is known.
fn why_twice(identifier: &str) -> &'static str {
    if spelling::is_rounded(identifier) { ", and looks like a number that a spreadsheet rounded" } else { "" }
}

/// Longest identifier, in bytes: [`posture::identity::DeviceId`] takes none that is longer, whatever its kind.
pub(super) const LONGEST_IDENTIFIER: usize = 254;

impl<T> Findings<T> {
    /// Number of findings that are kept; the others are counted.
    pub const SHOWN: usize = 20;

    /// The findings that are kept, in the order of the file.
    pub fn places(&self) -> &[Place<T>] {
        &self.places
    }

    /// Number of the findings that are not kept.
    pub const fn more(&self) -> usize {
        self.more
    }
}

impl<T: fmt::Display> Findings<T> {
    /// The findings as text for people, one a line, each with the name of the file.
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

    /// The findings as single sentences, each with the name of the file.
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

/// Findings of one sort, by their offset.
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
        // Lines are counted only for a mistake that is kept: it takes a while, and a file that was pasted twice has a duplicate
        // in each row.
        self.mistakes.add(offset, || Mistake::Duplicate { identifier: shown(identifier), first: place(text, first).0 });
    }

    /// Adds a warning; one that is only counted is not made, since a file may have one for each of a million rows.
    pub(super) fn warn(&mut self, offset: usize, warning: impl FnOnce() -> Warning) {
        self.warnings.add(offset, warning);
    }

    /// Returns the warnings, or the mistakes if there are any.
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

/// Line and column of an offset, from 1.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    let is_first_byte_of_a_character = |byte: &&u8| **byte & 0xc0 != 0x80;
    let characters = before.get(line_start..).unwrap_or_default().iter().filter(is_first_byte_of_a_character).count();
    (lines + 1, characters + 1)
}

/// A name from the file as a message shows it: on one line and cut to 40 characters.
pub(super) fn shown(name: &str) -> String {
    const LONGEST: usize = 40;
    let mut short: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}
