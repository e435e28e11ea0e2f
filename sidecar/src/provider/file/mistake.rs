//! What can be wrong with a device file, and where.

use std::fmt;
use std::path::Path;

/// All that is wrong with a file: the first [`Mistakes::SHOWN`], and how many more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes {
    places: Vec<Place>,
    more: usize,
}

/// A mistake, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In characters, from 1. A byte order mark does not count.
    pub column: usize,
    /// What is wrong there.
    pub mistake: Mistake,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// Bytes that are no text.
    #[error("the text is not UTF-8")]
    Encoding,
    /// Not JSON, or not of the schema; as the parser says it.
    #[error("{0}")]
    Json(String),
    /// A member that nobody reads: most often a typing error.
    #[error("unknown member `{name}`; {known}")]
    UnknownMember {
        /// Its name.
        name: String,
        /// What may stand there.
        known: &'static str,
    },
    /// Which of the two counts?
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
    #[error("identifier `{identifier}` is already on line {first}")]
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
    #[error("the file is empty; its first line must be a header that begins with `Identifier`")]
    HeaderMissing,
    /// Another column comes first, or the cells are not separated by commas.
    #[error("the first header is `{0}` and must be `Identifier`; cells are separated by commas")]
    HeaderNotIdentifier(String),
    /// A column without a name.
    #[error("the header is empty")]
    HeaderEmpty,
    /// Two columns of one name.
    #[error("the header `{0}` stands twice")]
    HeaderDuplicate(String),
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
    /// Lines end with a line feed, or with both.
    #[error("a carriage return without a line feed; end the lines with either LF or CR LF")]
    CarriageReturn,
    /// Offsets would not fit.
    #[error("the devices up to here take 4 GiB; no more can be held")]
    TooMuch,
}

/// Longest identifier, in bytes: [`posture::identity::DeviceId`] takes none that is longer, whatever its kind.
pub(super) const LONGEST_IDENTIFIER: usize = 254;

impl Mistakes {
    /// How many are kept; the rest is counted.
    pub const SHOWN: usize = 20;

    /// Those that are kept, in the order of the file.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// How many there are besides.
    pub const fn more(&self) -> usize {
        self.more
    }

    /// For people, one a line, each with the name of the file.
    pub fn in_file(&self, path: &Path) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            for (i, Place { line, column, mistake }) in self.places.iter().enumerate() {
                if i > 0 {
                    f.write_str("\n")?;
                }
                write!(f, "{}:{line}:{column}: {mistake}", path.display())?;
            }
            if self.more > 0 {
                write!(f, "\nand {} more", self.more)?;
            }
            Ok(())
        })
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.in_file(Path::new("devices")).fmt(f)
    }
}

impl std::error::Error for Mistakes {}

/// Collects mistakes by their offset in the text.
#[derive(Debug)]
pub(super) struct Collector<'t> {
    text: &'t str,
    found: Vec<(usize, Mistake)>,
    more: usize,
}

impl<'t> Collector<'t> {
    pub(super) const fn new(text: &'t str) -> Self {
        Self { text, found: Vec::new(), more: 0 }
    }

    pub(super) fn add(&mut self, offset: usize, mistake: Mistake) {
        if self.found.len() < Mistakes::SHOWN {
            self.found.push((offset, mistake));
        } else {
            self.more += 1;
        }
    }

    pub(super) fn add_duplicate(&mut self, offset: usize, first: usize, identifier: &str) {
        // To count lines takes a while, and a file that was pasted twice has duplicates only.
        let first = if self.found.len() < Mistakes::SHOWN { self.place(first).0 } else { 0 };
        self.add(offset, Mistake::Duplicate { identifier: shown(identifier), first });
    }

    pub(super) fn finish(mut self) -> Result<(), Mistakes> {
        if self.found.is_empty() {
            return Ok(());
        }
        self.found.sort_by_key(|(offset, _)| *offset);
        let places = self
            .found
            .iter()
            .map(|(offset, mistake)| {
                let (line, column) = self.place(*offset);
                Place { line, column, mistake: mistake.clone() }
            })
            .collect();
        Err(Mistakes { places, more: self.more })
    }

    fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = before.iter().filter(|byte| **byte == b'\n').count();
        let is_first_byte_of_a_character = |byte: &&u8| **byte & 0xc0 != 0x80;
        let characters = before.get(line_start..).unwrap_or_default().iter().filter(is_first_byte_of_a_character).count();
        (lines + 1, characters + 1)
    }
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

/// The bytes as text.
pub(super) fn text(bytes: &[u8]) -> Result<&str, Mistakes> {
    std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).and_then(|valid| std::str::from_utf8(valid).ok()).unwrap_or_default();
        let mut mistakes = Collector::new(valid);
        mistakes.add(valid.len(), Mistake::Encoding);
        mistakes.finish().err().unwrap_or_default()
    })
}
