//! Devices of a CSV file: a header, and a row for each device.

use super::cells::Cell;
use super::devices::{Builder, Parsed};
use super::header::{self, Read};
use super::mistake::{Mistake, Mistakes, Warning};
use super::settings::Settings;
use super::spelling;

/// Reads a CSV file.
///
/// # Errors
/// All that is wrong with the file; if the header is wrong, that alone.
pub(super) fn read(settings: &Settings, text: &str) -> Result<Parsed, Mistakes> {
    let mut builder = Builder::new(settings, text);
    let Some(Read { header, names, kept, mut rows }) = header::read(settings, text, &mut builder.findings) else {
        return builder.finish(None);
    };
    // A list that somebody keeps by hand has a device in every row; an export may have devices without a serial number.
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
                // The mistake stands at the first surplus cell, or else at the row.
                let at = cells.get(kept.len()).or(cells.first()).map_or(0, |cell| cell.at);
                builder.findings.add(at, Mistake::Ragged { cells: cells.len(), headers: kept.len() });
            }
        }
    }
    Ok(Parsed { header: Some(header), ..builder.finish(Some(names))? })
}
