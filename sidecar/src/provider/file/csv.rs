//! Rows of cells, RFC 4180. Strict where a lenient reader would take half a file for a whole one, and with the place of each cell.

use std::borrow::Cow;

use super::devices::{Builder, Devices};
use super::mistake::{Mistake, Mistakes, shown};

/// Reads a CSV file.
///
/// # Errors
/// All that is wrong with it; if its header is wrong, that alone.
pub fn parse_csv(bytes: &[u8]) -> Result<Devices, Mistakes> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = super::mistake::text(bytes)?;
    let mut builder = Builder::new(text);
    let mut reader = Reader { text, at: 0 };
    let mut cells = Vec::new();
    let columns = match reader.row(&mut cells) {
        Some(Ok(())) => header(&cells, &mut builder),
        Some(Err((at, mistake))) => {
            builder.mistakes.add(at, mistake);
            None
        }
        None => {
            builder.mistakes.add(0, Mistake::HeaderMissing);
            None
        }
    };
    let Some(columns) = columns else { return builder.finish(None) };
    let headers = columns.len() + 1;
    while let Some(row) = reader.row(&mut cells) {
        match (row, cells.split_first()) {
            (Err((at, mistake)), _) => builder.mistakes.add(at, mistake),
            (Ok(()), Some((identifier, data))) if cells.len() == headers => {
                builder.add(identifier.at, &identifier.value, data.iter().map(|cell| cell.value.as_ref()));
            }
            (Ok(()), _) => {
                // The first cell that is too many, or else the row.
                let at = cells.get(headers).or(cells.first()).map_or(0, |cell| cell.at);
                builder.mistakes.add(at, Mistake::Ragged { cells: cells.len(), headers });
            }
        }
    }
    builder.finish(Some(columns))
}

/// The names of the columns after the first.
fn header(cells: &[Cell<'_>], builder: &mut Builder<'_>) -> Option<Box<[String]>> {
    let mut names: Vec<String> = Vec::with_capacity(cells.len());
    let mut good = true;
    for (i, cell) in cells.iter().enumerate() {
        let name = cell.value.trim_ascii();
        let is_identifier = name.eq_ignore_ascii_case("identifier");
        let mistake = if i == 0 {
            (!is_identifier).then(|| Mistake::HeaderNotIdentifier(shown(name)))
        } else if name.is_empty() {
            Some(Mistake::HeaderEmpty)
        } else {
            (is_identifier || names.iter().any(|other| other == name)).then(|| Mistake::HeaderDuplicate(shown(name)))
        };
        if let Some(mistake) = mistake {
            builder.mistakes.add(cell.at, mistake);
            good = false;
        }
        if i > 0 {
            names.push(name.to_owned());
        }
    }
    good.then(|| names.into_boxed_slice())
}

/// Reads row by row.
struct Reader<'t> {
    text: &'t str,
    at: usize,
}

/// A cell, and where it begins.
struct Cell<'t> {
    value: Cow<'t, str>,
    at: usize,
}

impl<'t> Reader<'t> {
    /// Reads the next row that is not blank; `None` at the end. After a mistake it goes on with the next line.
    fn row(&mut self, cells: &mut Vec<Cell<'t>>) -> Option<Result<(), (usize, Mistake)>> {
        cells.clear();
        loop {
            let rest = self.rest();
            if rest.is_empty() {
                return None;
            }
            let (line, has_end) = rest.split_once('\n').map_or((rest, false), |(line, _)| (line, true));
            if !line.trim_ascii().is_empty() {
                break;
            }
            self.at += line.len() + usize::from(has_end);
        }
        let read = self.cells(cells);
        if read.is_err() {
            let rest = self.rest();
            self.at += rest.find('\n').map_or(rest.len(), |end| end + 1);
        }
        Some(read)
    }

    fn cells(&mut self, cells: &mut Vec<Cell<'t>>) -> Result<(), (usize, Mistake)> {
        loop {
            let at = self.at;
            let quoted = self.rest().starts_with('"');
            let value = if quoted { self.quoted()? } else { Cow::Borrowed(self.plain()) };
            cells.push(Cell { value, at });
            match self.rest().as_bytes() {
                [] => return Ok(()),
                [b',', ..] => self.at += 1,
                [b'\n', ..] => {
                    self.at += 1;
                    return Ok(());
                }
                [b'\r', b'\n', ..] => {
                    self.at += 2;
                    return Ok(());
                }
                [b'\r', ..] => return Err((self.at, Mistake::CarriageReturn)),
                _ => return Err((self.at, if quoted { Mistake::QuoteFollowed } else { Mistake::QuoteInside })),
            }
        }
    }

    /// Up to what cannot stand in a cell that is not quoted.
    fn plain(&mut self) -> &'t str {
        let rest = self.rest();
        let end = rest.bytes().position(|byte| matches!(byte, b',' | b'\n' | b'\r' | b'"')).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    /// From a quote to the one that closes it.
    fn quoted(&mut self) -> Result<Cow<'t, str>, (usize, Mistake)> {
        let open = self.at;
        let mut value = Cow::Borrowed("");
        self.at += 1;
        loop {
            let rest = self.rest();
            let Some((part, after)) = rest.split_once('"') else {
                // There is no line to go on with: this cell has taken them all.
                self.at = self.text.len();
                return Err((open, Mistake::QuoteOpen));
            };
            self.at += part.len() + 1;
            if value.is_empty() {
                value = Cow::Borrowed(part)
            } else {
                value.to_mut().push_str(part)
            }
            if !after.starts_with('"') {
                return Ok(value);
            }
            self.at += 1;
            value.to_mut().push('"');
        }
    }

    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }
}
