//! Marks that spreadsheets leave on identifiers.

pub(super) use posture::shown::clean;
use posture::shown::is_unseen;

/// An unseen character at the start of a text, else at its end, ASCII white space apart; `None` where there is none.
pub(super) fn cut(text: &str) -> Option<char> {
    let ends = text.trim_ascii();
    let clean = clean(ends);
    if clean.len() == ends.len() {
        return None;
    }
    ends.chars().next().filter(|letter| is_unseen(*letter)).or_else(|| ends.chars().next_back())
}

/// Returns whether a text is how a spreadsheet shows a number that is too long for its cell: `5.02E+11`, or with a comma, where
/// that is usual. A spreadsheet exports what it shows.
pub(super) fn is_rounded(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some((number, power)) = text.split_once(['E', 'e']) else { return false };
    let (whole, fraction) = number.split_once(['.', ',']).map_or((number, None), |(whole, fraction)| (whole, Some(fraction)));
    digits(whole) && fraction.is_none_or(digits) && power.strip_prefix('+').is_some_and(|power| power.len() <= 3 && digits(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d5_only_the_ends_of_a_text_are_cleaned() {
        for (text, clean_text, first) in [
            ("C02A", "C02A", None),
            (" \tC02A\r\n", "C02A", None),
            ("\u{a0}C02A", "C02A", Some('\u{a0}')),
            (" \u{feff}C02A\u{200b} ", "C02A", Some('\u{feff}')),
            ("C02A \u{200d}\u{2060}", "C02A", Some('\u{2060}')),
            ("C02\u{a0}A\u{2003}", "C02\u{a0}A", Some('\u{2003}')),
            ("\u{200b}", "", Some('\u{200b}')),
            ("", "", None),
        ] {
            assert_eq!((clean(text), cut(text)), (clean_text, first), "{text:?}");
        }
    }

    #[test]
    fn d5_a_number_that_was_rounded_is_told_from_a_serial_number() {
        for rounded in ["5.02E+11", "5,02E+11", "1E+15", "5.02e+011"] {
            assert!(is_rounded(rounded), "{rounded}");
        }
        for other in ["5.02E11", "5.02E-11", "5E12", "E+11", ".5E+1", "5.E+1", "5.02E+", "5.02E+1A", "A.02E+11", "5.02E+1111", "502", ""] {
            assert!(!is_rounded(other), "{other}");
        }
    }
}
