//! Texts as PostgreSQL can hold them: one with the character NUL it refuses.

use std::borrow::Cow;

/// The text that is kept for a text. NUL is kept as [`MARK`] and `0`, and [`MARK`], which hardly any text has, as [`MARK`] and
/// `1`; every other text is kept as it is. Two texts that differ are kept as texts that differ.
pub(super) fn kept(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', MARK]) {
        return Cow::Borrowed(text);
    }
    let mut kept = String::with_capacity(text.len().saturating_add(16));
    for character in text.chars() {
        match character {
            '\0' => kept.extend([MARK, '0']),
            MARK => kept.extend([MARK, '1']),
            other => kept.push(other),
        }
    }
    Cow::Owned(kept)
}

/// The text that was kept as this one.
pub(super) fn read(kept: String) -> String {
    if !kept.contains(MARK) {
        return kept;
    }
    let mut text = String::with_capacity(kept.len());
    let mut rest = kept.chars().peekable();
    while let Some(character) = rest.next() {
        let meant = match (character, rest.peek()) {
            (MARK, Some('0')) => '\0',
            (MARK, Some('1')) => MARK,
            // Only somebody else writes this.
            (other, _) => {
                text.push(other);
                continue;
            }
        };
        rest.next();
        text.push(meant);
    }
    text
}

/// The character SUBSTITUTE, with which the text of what stands for another one begins.
const MARK: char = '\u{1a}';

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_text_with_nul_or_the_mark_is_kept_as_another_one() {
        for same in ["", "C02XL0GYJGH5", "'; drop table rulings; --", "\\0 $1 \u{202e}\"\n"] {
            assert!(matches!(kept(same), Cow::Borrowed(text) if text == same));
        }
        assert_eq!((&*kept("a\0b"), &*kept("\u{1a}0")), ("a\u{1a}0b", "\u{1a}10"));
        assert_eq!(read("by hand: \u{1a}".to_owned()), "by hand: \u{1a}");
        assert_eq!(read("\u{1a}2".to_owned()), "\u{1a}2");
    }

    proptest! {
        #[test]
        fn every_text_comes_back_and_nothing_that_is_kept_has_nul(text in "[a01\0\u{1a}é]{0,12}") {
            let kept = kept(&text).into_owned();
            prop_assert!(!kept.contains('\0'));
            prop_assert_eq!(read(kept), text);
        }
    }
}
