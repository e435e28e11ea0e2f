//! Rows of cells, RFC 4180. Strict where a lenient reader would take half a file for a whole one, and with the place of each cell.

use std::borrow::Cow;

use super::devices::Builder;
use super::header::{self, Read};
use super::mistake::{Mistake, Mistakes, Warning};
use super::{Parsed, Settings, spelling};

/// Reads a CSV file.
///
/// # Errors
/// All that is wrong with it; if its header is wrong, that alone.
pub(super) fn read(settings: &Settings, text: &str) -> Result<Parsed, Mistakes> {
    let mut builder = Builder::new(settings, text);
    let Some(Read { header, names, kept, mut rows }) = header::read(settings, text, &mut builder.findings) else {
        return builder.finish(None);
    };
    // A list that somebody keeps by hand has a device in every row; what is exported may know of some no serial number.
    let is_own = header::is_own(&header.name);
    let mut cells = Vec::new();
    while let Some(row) = rows.row(&mut cells) {
        match (row, cells.get(header.column)) {
            (Err((at, mistake)), _) => builder.findings.add(at, mistake),
            (Ok(()), Some(identifier)) if cells.len() == kept.len() => {
                let is_blank = |cell: &Cell<'_>| spelling::clean(&cell.value).is_empty();
                if is_blank(identifier) && (!is_own || (cells.len() > 1 && cells.iter().all(is_blank))) {
                    builder.findings.warn(identifier.at, || Warning::Unidentified);
                    continue;
                }
                let data = cells.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(cell, _)| cell.value.as_ref());
                builder.add(identifier.at, &identifier.value, data);
            }
            (Ok(()), _) => {
                // The first cell that is too many, or else the row.
                let at = cells.get(kept.len()).or(cells.first()).map_or(0, |cell| cell.at);
                builder.findings.add(at, Mistake::Ragged { cells: cells.len(), headers: kept.len() });
            }
        }
    }
    Ok(Parsed { header: Some(header), ..builder.finish(Some(names))? })
}

/// Reads row by row.
pub(super) struct Reader<'t> {
    pub(super) text: &'t str,
    pub(super) at: usize,
    /// What stands between cells; ASCII.
    pub(super) separator: u8,
}

/// A cell, and where it begins.
pub(super) struct Cell<'t> {
    pub(super) value: Cow<'t, str>,
    pub(super) at: usize,
}

impl<'t> Reader<'t> {
    /// Reads the next row that is not blank; `None` at the end. After a mistake it goes on with the next line.
    pub(super) fn row(&mut self, cells: &mut Vec<Cell<'t>>) -> Option<Result<(), (usize, Mistake)>> {
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
                [separator, ..] if *separator == self.separator => self.at += 1,
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
        let (rest, separator) = (self.rest(), self.separator);
        let ends = |byte: u8| byte == separator || matches!(byte, b'\n' | b'\r' | b'"');
        let end = rest.bytes().position(ends).unwrap_or(rest.len());
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
