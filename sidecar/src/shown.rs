//! Text from elsewhere, as people see it: what a terminal would act upon, or show as something else, stands there by its number.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::LazyLock;

use regex::Regex;

/// Control and format characters, separators of lines, and blanks other than the blank (Unicode: Cc, Cf, Zl, Zp, Zs). `None`
/// cannot be: a test holds it.
static HIDDEN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Zs}--\x20]").ok());

/// Whether a character is not shown, but does something: ends a line, turns its direction, moves the cursor, or looks like a blank.
pub fn is_hidden(letter: char) -> bool {
    if letter.is_ascii() {
        return letter.is_ascii_control();
    }
    is_unseen(letter) || HIDDEN.as_ref().is_none_or(|hidden| hidden.is_match(letter.encode_utf8(&mut [0; 4])))
}

/// A text without the white space and the characters that cannot be seen at its ends, as an identifier that was copied from a page
/// or a spreadsheet has them. Inside they stay: they make it another text.
pub fn clean(text: &str) -> &str {
    text.trim_matches(is_unseen)
}

/// White space, the no-break space among it, and what is drawn by nobody (Unicode: Default_Ignorable_Code_Point): zero-width
/// characters, marks of direction and variation selectors, which pages, dialogs and messengers put into what is copied.
pub(crate) const fn is_unseen(letter: char) -> bool {
    letter.is_whitespace()
        || matches!(letter,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// A value in a line or a cell: every hidden character as JSON escapes it, as in `\u202e`.
pub fn cell(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// A text of several lines, or JSON: the same, but for the ends of lines and tabs.
pub fn text(text: &str) -> Cow<'_, str> {
    escaped(text, |letter| matches!(letter, '\n' | '\t'))
}

/// Appends a character as JSON escapes it.
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
            // Memory takes all that is written to it.
            let _ = escape(letter, &mut shown);
        } else {
            let _ = shown.write_char(letter);
        }
    }
    Cow::Owned(shown)
}

/// Writes what people read by [`text`].
#[derive(Debug)]
pub struct Shown<W>(pub W);

impl<W: Write> Write for Shown<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // What is formatted comes in whole characters.
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
            ("C02\u{fe0f}\u{3164}", "C02\\ufe0f\\u3164"),
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
