//! Text from elsewhere, made safe to display: a character that a terminal acts upon, or shows as another, is written as its number.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::LazyLock;

use regex::Regex;

/// Control and format characters, line separators, and blanks other than the space (Unicode: Cc, Cf, Zl, Zp, Zs). Never
/// `None`, as a test shows.
static HIDDEN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Zs}--\x20]").ok());

/// Returns whether a character is hidden: it is not drawn, but ends a line, turns its direction, moves the cursor, or looks
/// like a blank.
pub fn is_hidden(letter: char) -> bool {
    if letter.is_ascii() {
        return letter.is_ascii_control();
    }
    is_unseen(letter) || HIDDEN.as_ref().is_none_or(|hidden| hidden.is_match(letter.encode_utf8(&mut [0; 4])))
}

/// Trims white space and invisible characters from both ends of a text, as an identifier has them that was copied from a page
/// or a spreadsheet. Inside the text they stay, since they make it another text.
pub fn clean(text: &str) -> &str {
    text.trim_matches(is_unseen)
}

/// Returns whether a character is invisible: white space, including the no-break space; the characters that Unicode calls
/// Default_Ignorable_Code_Point (zero-width characters, direction marks and variation selectors, which pages, dialogs and
/// messengers put into copied text); and the blank of Braille.
pub const fn is_unseen(letter: char) -> bool {
    letter.is_whitespace()
        || matches!(letter,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// Escapes a value for a line or a cell: every hidden character becomes a JSON escape such as `\u202e`.
pub fn cell(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// Joins a text of several lines into one line.
pub fn line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join("; ")
}

/// A number with its noun, as in `1 device` and `2 devices`.
pub fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Escapes a text of several lines, or JSON: like [`cell`], but line ends and tabs stay.
pub fn text(text: &str) -> Cow<'_, str> {
    escaped(text, |letter| matches!(letter, '\n' | '\t'))
}

/// Appends a character as a JSON escape.
pub fn escape(letter: char, into: &mut impl std::fmt::Write) -> std::fmt::Result {
    letter.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(into, "\\u{unit:04x}"))
}

fn escaped(text: &str, keeps: impl Fn(char) -> bool) -> Cow<'_, str> {
    let wrong = |letter: char| is_hidden(letter) && !keeps(letter);
    if !text.contains(wrong) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if wrong(letter) {
            // Writing to memory cannot fail.
            let _ = escape(letter, &mut shown);
        } else {
            let _ = shown.write_char(letter);
        }
    }
    Cow::Owned(shown)
}

/// A writer that escapes text as [`text`] does.
#[derive(Debug)]
pub struct Shown<W>(pub W);

impl<W: Write> Write for Shown<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Formatted text comes in whole characters.
        match std::str::from_utf8(bytes) {
            Ok(whole) => self.0.write_all(text(whole).as_bytes())?,
            Err(_) => self.0.write_all(text(&String::from_utf8_lossy(bytes)).as_bytes())?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c5_what_turns_or_hides_text_is_shown_by_its_number() {
        for (hidden, expected) in [
            ("C02\u{202e}LAIRES", "C02\\u202eLAIRES"),
            ("a\u{200b}b\u{feff}\u{2066}", "a\\u200bb\\ufeff\\u2066"),
            ("a\u{2028}b\u{2029}", "a\\u2028b\\u2029"),
            ("\u{1b}[31m\u{7f}\u{85}", "\\u001b[31m\\u007f\\u0085"),
            ("\u{e0041}", "\\udb40\\udc41"),
            ("a\nb\tc\r", "a\\u000ab\\u0009c\\u000d"),
            ("C02\u{fe0f}\u{3164}\u{2800}", "C02\\ufe0f\\u3164\\u2800"),
            ("C02\u{a0}\u{2003} x", "C02\\u00a0\\u2003 x"),
            ("é 漢字 🙂 'x' \\ \"", "é 漢字 🙂 'x' \\ \""),
        ] {
            assert_eq!(cell(hidden), expected);
        }
        assert_eq!(text("a\nb\tc\u{202e}\r"), "a\nb\tc\\u202e\\u000d");
        let mut out = Shown(Vec::new());
        writeln!(out, "{}", serde_json::json!({ "a": "x\u{202e}\u{e0041}" })).unwrap();
        let shown = String::from_utf8(out.0).unwrap();
        assert_eq!(shown, "{\"a\":\"x\\u202e\\udb40\\udc41\"}\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap()["a"], "x\u{202e}\u{e0041}");
        assert!(HIDDEN.is_some());
    }
}
