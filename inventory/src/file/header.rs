//! The header of a CSV file: which column has the identifiers, and what separates the cells.
//!
//! Each management names that column in its own way; the known names are those of their exports, with the sources in
//! `docs/providers/file.md`. Where more than one column may be meant nothing is guessed: the file is refused.

use std::collections::BTreeSet;

use posture::identity::IdentifierKind;

use super::cells::{Cell, Reader};
use super::mistake::{Collector, Mistake, Warning, shown};
use super::settings::Settings;
use super::spelling;

/// The way in which the rows of a CSV file are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The character between the cells.
    pub separator: char,
    /// Index of the column with the identifiers, from 0.
    pub column: usize,
    /// Name of that column.
    pub name: String,
    /// Whether that column was found among known names: the configuration does not name it, and it is no first column called
    /// `Identifier`.
    pub is_guessed: bool,
}

/// A header that was read, and the rows that follow it.
pub(super) struct Read<'t> {
    pub(super) header: Header,
    /// Names of the columns that become data.
    pub(super) names: Box<[String]>,
    /// Whether each column becomes data.
    pub(super) kept: Vec<bool>,
    pub(super) rows: Reader<'t>,
}

/// The header as read with one separator.
struct Attempt<'t> {
    cells: Vec<Cell<'t>>,
    rows: Reader<'t>,
    /// Indexes of the columns that may have the identifiers.
    columns: Vec<usize>,
    certainty: Certainty,
}

/// The certainty with which columns have the identifiers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Certainty {
    /// No column has them.
    None,
    /// The column has a name that some management's exports use.
    Known,
    /// The configuration names the column, or the first column has our own name.
    Said,
}

/// Reads the header. Returns `None` where that cannot be done, after adding the mistake to `findings`.
pub(super) fn read<'t>(settings: &Settings, text: &'t str, findings: &mut Collector<'t>) -> Option<Read<'t>> {
    let attempt = match attempt(settings, text) {
        Ok(attempt) => attempt,
        Err((at, mistake)) => {
            findings.add(at, mistake);
            return None;
        }
    };
    let Attempt { cells, rows, columns, certainty } = attempt;
    let name = |column: usize| cells.get(column).map_or("", |cell| spelling::clean(&cell.value));
    let column = match columns.as_slice() {
        [column] => *column,
        [_, second, ..] if certainty == Certainty::Said => {
            let at = cells.get(*second).map_or(0, |cell| cell.at);
            findings.add(at, Mistake::HeaderDuplicate(shown(name(*second))));
            return None;
        }
        several => {
            let at = several.first().and_then(|first| cells.get(*first)).map_or(0, |cell| cell.at);
            findings.add(at, Mistake::HeaderAmbiguous(listed(several.iter().map(|column| name(*column)))));
            return None;
        }
    };
    let (mut names, mut kept, mut seen) = (Vec::new(), Vec::with_capacity(cells.len()), BTreeSet::new());
    for (i, cell) in cells.iter().enumerate() {
        let name = spelling::clean(&cell.value);
        let is_kept = i != column && !name.is_empty() && seen.insert(name);
        if i != column && !is_kept {
            findings.warn(cell.at, || if name.is_empty() { Warning::HeaderEmpty } else { Warning::HeaderDuplicate(shown(name)) });
        }
        if is_kept {
            names.push(name.to_owned());
        }
        kept.push(is_kept);
    }
    let header =
        Header { separator: char::from(rows.separator), column, name: name(column).to_owned(), is_guessed: certainty == Certainty::Known };
    Some(Read { header, names: names.into_boxed_slice(), kept, rows })
}

/// Finds the only separator by which the header has a column of identifiers.
fn attempt<'t>(settings: &Settings, text: &'t str) -> Result<Attempt<'t>, (usize, Mistake)> {
    let (stated, at) = stated_separator(text)?;
    let separators = stated.as_ref().map_or(SEPARATORS, std::slice::from_ref);
    let (mut attempts, mut broken) = (Vec::new(), None);
    for separator in separators {
        let mut rows = Reader { text, at, separator: *separator };
        let mut cells = Vec::new();
        match rows.row(&mut cells) {
            None => return Err((at, Mistake::HeaderMissing)),
            Some(Err(mistake)) => broken = broken.or(Some(mistake)),
            Some(Ok(())) => {
                let (columns, certainty) = columns(settings, &cells);
                attempts.push(Attempt { cells, rows, columns, certainty });
            }
        }
    }
    let best = attempts.iter().map(|attempt| attempt.certainty).max().unwrap_or(Certainty::None);
    if best == Certainty::None {
        // The separator that gives the header the most cells is most likely the one that was meant.
        return Err(match attempts.iter().max_by_key(|attempt| attempt.cells.len()) {
            Some(attempt) => (attempt.cells.first().map_or(at, |cell| cell.at), unknown(settings, &attempt.cells)),
            None => broken.unwrap_or((at, Mistake::HeaderMissing)),
        });
    }
    attempts.retain(|attempt| attempt.certainty == best);
    // A header of one column is the same with any separator that does not occur.
    let separates = |attempt: &Attempt<'_>| attempt.cells.len() > 1;
    if attempts.iter().any(separates) {
        attempts.retain(separates);
    } else {
        attempts.truncate(1);
    }
    match (attempts.pop(), attempts.is_empty()) {
        (Some(attempt), true) => Ok(attempt),
        _ => Err((at, Mistake::SeparatorUnclear)),
    }
}

/// Reads a first line such as `sep=;`, which Excel reads and writes; returns the separator, if there is one, and the offset where
/// the rest begins.
fn stated_separator(text: &str) -> Result<(Option<u8>, usize), (usize, Mistake)> {
    let (line, length) = text.split_once('\n').map_or((text, text.len()), |(line, _)| (line, line.len() + 1));
    let line = line.strip_suffix('\r').unwrap_or(line);
    let line = line.strip_prefix('"').and_then(|line| line.strip_suffix('"')).unwrap_or(line);
    let Some((_, separator)) = line.split_at_checked(4).filter(|(key, _)| key.eq_ignore_ascii_case("sep=")) else {
        return Ok((None, 0));
    };
    match separator.as_bytes() {
        [separator @ (b',' | b';' | b'\t' | b'|')] => Ok((Some(*separator), length)),
        _ => Err((0, Mistake::SeparatorUnknown(shown(separator)))),
    }
}

fn columns(settings: &Settings, cells: &[Cell<'_>]) -> (Vec<usize>, Certainty) {
    let named = |is: &dyn Fn(&str) -> bool| -> Vec<usize> {
        cells.iter().enumerate().filter(|(_, cell)| is(spelling::clean(&cell.value))).map(|(i, _)| i).collect()
    };
    let (found, certainty) = match &settings.identifier_column {
        Some(column) => (named(&|name| name.eq_ignore_ascii_case(column)), Certainty::Said),
        None => {
            let own = named(&|name| name.eq_ignore_ascii_case(OWN));
            if own.first() == Some(&0) {
                (own, Certainty::Said)
            } else {
                (named(&|name| is_known(settings.identifier, name)), Certainty::Known)
            }
        }
    };
    if found.is_empty() { (found, Certainty::None) } else { (found, certainty) }
}

/// Returns whether exports give this name to identifiers of this kind, whatever the case, spaces, dashes and underscores.
fn is_known(kind: IdentifierKind, name: &str) -> bool {
    let plain: String =
        name.chars().filter(|letter| !matches!(letter, ' ' | '-' | '_' | '\u{a0}')).map(|letter| letter.to_ascii_lowercase()).collect();
    plain.eq_ignore_ascii_case(OWN) || known(kind).contains(&plain.as_str())
}

/// Names of a column in exports, in the form that [`is_known`] compares.
const fn known(kind: IdentifierKind) -> &'static [&'static str] {
    match kind {
        IdentifierKind::Serial => &[
            "serialnumber",
            "serial",
            "serialno",
            "serialnum",
            "deviceserialnumber",
            "deviceserial",
            "hardwareserial",
            "hardwareserialnumber",
            "computerserialnumber",
        ],
        IdentifierKind::Udid => &["udid", "deviceudid", "uuid", "hardwareuuid", "macuuid", "uniquedeviceidentifier"],
        IdentifierKind::Yubico => &["serialnumber", "serial", "yubikeyserial", "yubikeyserialnumber"],
        // An identifier of a TPM is chosen by whoever certified its key, so no export has a usual name for it.
        IdentifierKind::Tpm => &[],
        IdentifierKind::Hostname => &["hostname", "computername", "devicename"],
        IdentifierKind::Email => &["email", "emailaddress", "mail", "useremail", "useremailaddress", "primaryuseremailaddress"],
    }
}

fn unknown(settings: &Settings, cells: &[Cell<'_>]) -> Mistake {
    let headers = listed(cells.iter().map(|cell| spelling::clean(&cell.value)).filter(|name| !name.is_empty()));
    match &settings.identifier_column {
        Some(column) => Mistake::HeaderNotThere { column: shown(column), headers },
        None => Mistake::HeaderUnknown { kind: settings.identifier, headers },
    }
}

/// Lists the first [`LISTED`] names for a message.
fn listed<'n>(mut names: impl Iterator<Item = &'n str>) -> String {
    let mut list = names.by_ref().take(LISTED).map(|name| format!("`{}`", shown(name))).collect::<Vec<_>>().join(", ");
    match names.count() {
        0 => {}
        more => list.push_str(&format!(" and {more} more")),
    }
    if list.is_empty() { "none".to_owned() } else { list }
}

/// Name of the column with the identifiers in a list that was made for us.
const OWN: &str = "Identifier";

/// Returns whether a header is that of a list that was made for us.
pub(super) fn is_own(name: &str) -> bool {
    name.eq_ignore_ascii_case(OWN)
}

/// Characters that may separate cells where the file does not say it, most usual first.
const SEPARATORS: &[u8] = b",;\t";

/// Number of names in one message.
const LISTED: usize = 8;
