//! Points in time, and the window that a webhook's timestamp must fall into.

use std::time::Duration;

use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;

/// A point in time: nanoseconds since 1970-01-01T00:00:00Z, from 1677 to 2262.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct UnixTime(i64);

impl UnixTime {
    /// Makes a time from nanoseconds since the epoch.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Makes a time from a system clock, as Envoy and the kernel give it; a time outside the range becomes its nearest end.
    pub fn from_system(time: std::time::SystemTime) -> Self {
        let since = time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }

    /// Parses an RFC 3339 date as Go writes it, with fractions of a second and any zone offset.
    ///
    /// Returns `None` for anything else, and for a date outside the range.
    pub fn parse(text: &str) -> Option<Self> {
        i64::try_from(rfc3339_nanos(text)?).ok().map(Self)
    }

    /// The time in nanoseconds since the epoch.
    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    /// The time in whole milliseconds since the epoch, rounded down.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// The difference `self - earlier`, in nanoseconds; negative if `earlier` is later.
    pub const fn nanos_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The sum `self + duration`, or the end of the range.
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// The difference `self - duration`, or the start of the range.
    pub fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

/// Parses an RFC 3339 date in the years 0 to 9999, to nanoseconds since the epoch.
///
/// Date and time are separated by T, or by a blank, which the RFC leaves to applications; the crate `time` takes any
/// character there.
pub(crate) fn rfc3339_nanos(text: &str) -> Option<i128> {
    let date = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    matches!(text.as_bytes().get(10), Some(b'T' | b't' | b' ')).then(|| date.unix_timestamp_nanos())
}

/// The window for timestamps: how old and how far ahead one may be. Both ends belong to the window, to the nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Greatest age.
    pub past: Duration,
    /// Greatest lead over our clock.
    pub future: Duration,
}

/// The side on which a timestamp is outside the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// The timestamp is older than [`Window::past`].
    Past,
    /// The timestamp is further ahead than [`Window::future`].
    Future,
}

impl Window {
    /// Checks a timestamp against our clock; returns its age in nanoseconds, negative if the caller's clock is ahead.
    ///
    /// # Errors
    /// [`Outside`] says on which side of the window the timestamp is.
    pub fn check(&self, timestamp: UnixTime, now: UnixTime) -> Result<i64, Outside> {
        let age = now.nanos_since(timestamp);
        if age > nanos(self.past) {
            Err(Outside::Past)
        } else if age < -nanos(self.future) {
            Err(Outside::Future)
        } else {
            Ok(age)
        }
    }
}

impl Default for Window {
    /// The default window: 30 s in the past, 5 s in the future.
    fn default() -> Self {
        Self { past: Duration::from_secs(30), future: Duration::from_secs(5) }
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn reads_what_go_writes() {
        for (text, nanos) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T00:00:01.5Z", 3 * SECOND / 2),
            ("2026-11-23T01:02:03.123456789+02:00", 1_795_388_523_123_456_789),
            ("1969-12-31T23:59:59.999999999Z", -1),
        ] {
            assert_eq!(UnixTime::parse(text), Some(UnixTime(nanos)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_date_in_range() {
        for text in [
            "",
            "now",
            "2026-11-23",
            "2026-11-23T01:02:03",
            "2026-13-01T00:00:00Z",
            "9999-01-01T00:00:00Z",
            "0001-01-01T00:00:00Z",
            "1795388523",
        ] {
            assert_eq!(UnixTime::parse(text), None, "{text}");
        }
    }

    #[test]
    fn d12_only_t_or_a_blank_stands_between_date_and_time() {
        for (text, reads) in [
            ("2099-01-31T00:00:00Z", true),
            ("2099-01-31t00:00:00z", true),
            ("2099-01-31 00:00:00Z", true),
            ("2099-01-31a00:00:00z", false),
            ("2099-01-31-00:00:00Z", false),
            ("2099-01-31\t00:00:00Z", false),
            ("2099-01-31é00:00:00Z", false),
        ] {
            assert_eq!(UnixTime::parse(text).is_some(), reads, "{text}");
        }
    }

    #[test]
    fn is_exact_at_both_ends() {
        let window = Window::default();
        let now = UnixTime(1_000_000 * SECOND);
        for (age, expected) in [
            (30 * SECOND, Ok(30 * SECOND)),
            (30 * SECOND + 1, Err(Outside::Past)),
            (31 * SECOND, Err(Outside::Past)),
            (-5 * SECOND, Ok(-5 * SECOND)),
            (-5 * SECOND - 1, Err(Outside::Future)),
            (-6 * SECOND, Err(Outside::Future)),
        ] {
            assert_eq!(window.check(UnixTime(now.0 - age), now), expected, "{age}");
        }
    }

    proptest! {
        #[test]
        fn accepts_exactly_the_window(age in any::<i64>(), past in 0u64..600, future in 0u64..600) {
            let window = Window { past: Duration::from_secs(past), future: Duration::from_secs(future) };
            let inside = age <= i64::try_from(past).unwrap() * SECOND && age >= -i64::try_from(future).unwrap() * SECOND;
            prop_assert_eq!(window.check(UnixTime(0), UnixTime(age)).is_ok(), inside);
        }

        #[test]
        fn never_panics_on_text(text in "\\PC{0,40}") {
            let _ = UnixTime::parse(&text);
        }
    }
}
