//! A device file in CSV, read by Stepward and by the csv crate.

use std::borrow::Cow;
use std::collections::BTreeMap;

use inventory::Placeholders;
use inventory::file::{Format, Mistakes, Settings, parse};
use posture::identity::normal;

/// Asserts that an accepted file has every row with an identifier that the csv crate finds, and no other.
pub fn body(data: &[u8]) {
    let parsed = match parse(&settings(Format::Csv), data) {
        Ok(parsed) => parsed,
        Err(mistakes) => return placed(data, &mistakes),
    };
    let (devices, header) = (parsed.devices, parsed.header.unwrap());
    let text = text(data);
    let (first, rest) = text.split_once('\n').unwrap_or((&*text, ""));
    let first = first.strip_suffix('\r').unwrap_or(first);
    let first = first.strip_prefix('"').and_then(|first| first.strip_suffix('"')).unwrap_or(first);
    let rows = if first.get(..4).is_some_and(|key| key.eq_ignore_ascii_case("sep=")) { rest } else { &*text };
    let mut reader =
        csv::ReaderBuilder::new().flexible(true).has_headers(false).delimiter(header.separator as u8).from_reader(rows.as_bytes());
    // To the csv crate, a line of white space is a row.
    let rows = reader.records().map(Result::unwrap).filter(|row| !row.iter().all(|cell| clean(cell).is_empty()));
    let mut rows = rows.collect::<Vec<_>>().into_iter();
    let headers: Vec<String> = rows.next().unwrap().iter().map(|name| clean(name).to_owned()).collect();
    assert_eq!(headers[header.column], header.name);
    let mut count = 0;
    for row in rows {
        assert_eq!(row.len(), headers.len());
        let identifier = clean(&row[header.column]);
        if identifier.is_empty() {
            continue;
        }
        count += 1;
        let found = devices.find(&normal(identifier)).unwrap_or_else(|| panic!("{identifier:?} is not found"));
        let data: BTreeMap<String, String> = serde_json::from_str(found.data().unwrap().as_json()).unwrap();
        let mut cells = BTreeMap::new();
        for (column, (name, cell)) in headers.iter().zip(&row).enumerate() {
            if column != header.column && !name.is_empty() {
                cells.entry(name.clone()).or_insert_with(|| cell.to_owned());
            }
        }
        assert_eq!(data, cells);
    }
    assert_eq!(devices.len(), count);
}

/// Settings for a file in which every text identifies a device.
pub(crate) fn settings(format: Format) -> Settings {
    Settings { placeholders: Placeholders::new([""; 0]), ..Settings::new("devices".into(), format) }
}

/// A text without the characters that spreadsheets leave at its ends.
pub(crate) fn clean(text: &str) -> &str {
    text.trim_matches(|letter: char| letter.is_whitespace() || matches!(letter, '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}'))
}

/// The text of a file; what is not text in it is replaced.
pub(crate) fn text(data: &[u8]) -> Cow<'_, str> {
    let utf_16 = |unit: fn([u8; 2]) -> u16, bytes: &[u8]| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    };
    match data {
        [0xff, 0xfe, rest @ ..] => Cow::Owned(utf_16(u16::from_le_bytes, rest)),
        [0xfe, 0xff, rest @ ..] => Cow::Owned(utf_16(u16::from_be_bytes, rest)),
        _ => String::from_utf8_lossy(data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data)),
    }
}

/// Asserts that every mistake has its place in the file.
pub(crate) fn placed(data: &[u8], mistakes: &Mistakes) {
    assert!(!mistakes.places().is_empty(), "refused for no reason");
    let text = text(data);
    for place in mistakes.places() {
        let line = text.split('\n').nth(place.line - 1).unwrap_or_else(|| panic!("there is no line {}", place.line));
        let characters = line.chars().count();
        assert!((1..=characters + 1).contains(&place.column), "{}:{}", place.line, place.column);
        assert!(!place.what.to_string().contains('\n'), "{}", place.what);
    }
}
