//! Versions of operating systems, which compare by number and not by letter.

use std::fmt;

/// A version: numbers between dots, such as `15.4.1`. A missing number is 0, so that `15` and `15.0` are the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version([u64; PARTS]);

/// Most numbers in a version. Windows has four (`10.0.26100.4061`).
const PARTS: usize = 8;
/// Most digits of a number. A build number has up to nine; a longer number is something else.
const DIGITS: usize = 12;

impl Version {
    /// Reads a version; `None` for anything but one to eight numbers between dots, blanks at either end aside.
    ///
    /// `15.4.1 (a)` and `15-beta` are not read: whether they are older or newer is the maker's own rule.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut version = Self([0; PARTS]);
        let mut places = version.0.iter_mut();
        for part in text.trim().split('.') {
            if part.len() > DIGITS || !part.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            *places.next()? = part.parse().ok()?;
        }
        Some(version)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.0.iter().rposition(|part| *part != 0).map_or(1, |last| last + 1);
        let parts: Vec<_> = self.0.iter().take(length).map(ToString::to_string).collect();
        f.write_str(&parts.join("."))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn compares_by_number() {
        for (older, newer) in
            [("9.9", "10"), ("15", "15.0.1"), ("15.4", "15.10"), ("10.0.22631.4602", "10.0.26100.1"), ("0", "0.0.1"), ("1", "999999999999")]
        {
            assert!(Version::parse(older) < Version::parse(newer), "{older} {newer}");
        }
        assert_eq!(Version::parse(" 15 "), Version::parse("15.0.0"));
        assert_eq!(format!("{:?} {:?}", Version::parse("15.4.0").unwrap(), Version::parse("0").unwrap()), "15.4 0");
    }

    #[test]
    fn reads_nothing_else() {
        for text in
            ["", ".", "15.", ".1", "15..1", "v15", "15-beta", "15.4 (a)", "-1", "+15", "15.+4", "1.2.3.4.5.6.7.8.9", "9999999999999", "١٥"]
        {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn orders_as_its_numbers_do(one in prop::collection::vec(0_u64..100, 1..5), other in prop::collection::vec(0_u64..100, 1..5)) {
            let text = |parts: &[u64]| parts.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
            let padded = |parts: &[u64]| { let mut all = parts.to_vec(); all.resize(8, 0); all };
            let versions = (Version::parse(&text(&one)).unwrap(), Version::parse(&text(&other)).unwrap());
            prop_assert_eq!(versions.0.cmp(&versions.1), padded(&one).cmp(&padded(&other)));
        }
    }
}
