//! A device file in CSV, read by us and by the csv crate.

use std::collections::BTreeMap;

use posture::identity::normal;
use sidecar::provider::file::{Format, Mistakes, parse};

/// A file that is taken has every row that the other reader finds, and no more.
pub fn body(data: &[u8]) {
    let devices = match parse(Format::Csv, data) {
        Ok(devices) => devices,
        Err(mistakes) => return placed(data, &mistakes),
    };
    let mut reader = csv::ReaderBuilder::new().flexible(true).has_headers(false).from_reader(data);
    // To it, a line of white space is a row of one cell.
    let rows = reader.records().map(Result::unwrap).filter(|row| row.len() != 1 || !row[0].trim_ascii().is_empty());
    let mut rows = rows.collect::<Vec<_>>().into_iter();
    let headers: Vec<String> = rows.next().unwrap().iter().map(|name| name.trim_ascii().to_owned()).collect();
    let mut count = 0;
    for row in rows {
        assert_eq!(row.len(), headers.len());
        count += 1;
        let found = devices.find(&normal(&row[0])).unwrap_or_else(|| panic!("{:?} is not found", &row[0]));
        let data: BTreeMap<String, String> = serde_json::from_str(found.data().unwrap().as_json()).unwrap();
        let cells = headers.iter().zip(&row).skip(1).map(|(name, cell)| (name.clone(), cell.to_owned()));
        assert_eq!(data, cells.collect());
    }
    assert_eq!(devices.len(), count);
}

/// Every mistake has its place in the file.
pub(crate) fn placed(data: &[u8], mistakes: &Mistakes) {
    assert!(!mistakes.places().is_empty(), "refused for no reason");
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    for place in mistakes.places() {
        let line = data.split(|byte| *byte == b'\n').nth(place.line - 1).unwrap_or_else(|| panic!("there is no line {}", place.line));
        let characters = String::from_utf8_lossy(line).chars().count();
        assert!((1..=characters + 1).contains(&place.column), "{}:{}", place.line, place.column);
        assert!(!place.mistake.to_string().contains('\n'), "{}", place.mistake);
    }
}
