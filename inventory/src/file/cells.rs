//! Rows of cells (RFC 4180), each with its place. The reader is strict where a lenient one would take half a file for a whole
//! one.

use std::borrow::Cow;

use super::mistake::Mistake;

/// A reader that gives the rows of a text one by one.
pub(super) struct Reader<'t> {
    pub(super) text: &'t str,
    pub(super) at: usize,
    /// The character between cells; ASCII.
    pub(super) separator: u8,
}

/// A cell, and the offset where it begins.
pub(super) struct Cell<'t> {
    pub(super) value: Cow<'t, str>,
    pub(super) at: usize,
}

impl<'t> Reader<'t> {
    /// Reads the next row that is not blank; `None` at the end. After a mistake the reader goes on with the next line.
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

    /// Reads an unquoted cell, up to a byte that cannot stand in it.
    fn plain(&mut self) -> &'t str {
        let (rest, separator) = (self.rest(), self.separator);
        let ends = |byte: u8| byte == separator || matches!(byte, b'\n' | b'\r' | b'"');
        let end = rest.bytes().position(ends).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    /// Reads a quoted cell, from its opening quote to the closing one.
    fn quoted(&mut self) -> Result<Cow<'t, str>, (usize, Mistake)> {
        let open = self.at;
        let mut value = Cow::Borrowed("");
        self.at += 1;
        loop {
            let rest = self.rest();
            let Some((part, after)) = rest.split_once('"') else {
                // No line is left to go on with: the open quote has taken them all.
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
