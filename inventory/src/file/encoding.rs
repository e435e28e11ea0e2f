//! Bytes as text: UTF-8, and the UTF-16 that spreadsheets and PowerShell write.

use std::borrow::Cow;

use super::mistake::{Collector, Mistake, Mistakes};

/// The text of a file. Only UTF-16 takes memory of its own.
///
/// # Errors
/// [`Mistake::Encoding`] where the bytes are no text, and at once where they are UTF-16 without a byte order mark: guessed
/// wrongly, it would be another text.
pub(super) fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, Mistakes> {
    match bytes {
        // The mark of UTF-32 begins as that of UTF-16.
        [0xff, 0xfe, 0, 0, ..] => Err(no_text("")),
        [0xff, 0xfe, units @ ..] => utf16(units, u16::from_le_bytes),
        [0xfe, 0xff, units @ ..] => utf16(units, u16::from_be_bytes),
        // Latin letters in UTF-16 have a zero byte: UTF-8 would take each zero for a character.
        [0, _, ..] | [_, 0, ..] => Err(no_text("")),
        _ => utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)),
    }
}

fn utf8(bytes: &[u8]) -> Result<Cow<'_, str>, Mistakes> {
    std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).and_then(|valid| std::str::from_utf8(valid).ok()).unwrap_or_default();
        no_text(valid)
    })
}

fn utf16<'b>(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<Cow<'b, str>, Mistakes> {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let mut text = String::new();
    for letter in char::decode_utf16(pairs.iter().copied().map(unit)) {
        match letter {
            Ok(letter) => text.push(letter),
            Err(_) => return Err(no_text(&text)),
        }
    }
    if odd.is_empty() { Ok(Cow::Owned(text)) } else { Err(no_text(&text)) }
}

/// The mistake of bytes that are no text, placed after the text before them.
fn no_text(before: &str) -> Mistakes {
    let mut findings = Collector::new(before);
    findings.add(before.len(), Mistake::Encoding);
    findings.finish().err().unwrap_or_default()
}
