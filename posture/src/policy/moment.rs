//! Points in time and durations of expressions, in nanoseconds: the years 1 to 9999, and durations up to the time between them.

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use super::fault::Fault;

const SECOND: i128 = 1_000_000_000;
/// First point in time, 0001-01-01T00:00:00Z.
const FIRST: i128 = -62_135_596_800 * SECOND;
/// Last point in time, 9999-12-31T23:59:59.999999999Z.
const LAST: i128 = 253_402_300_800 * SECOND - 1;
/// Longest duration in either direction, as Protocol Buffers bound it.
const LONGEST: i128 = 315_576_000_000 * SECOND;

const NO_YEAR: Fault = Fault::new("a point in time is not in the years 1 to 9999");
const TOO_LONG: Fault = Fault::new("a duration is longer than 10000 years");

/// Checks that a point in time is in the years 1 to 9999.
pub(super) fn time(nanos: i128) -> Result<i128, Fault> {
    if (FIRST..=LAST).contains(&nanos) { Ok(nanos) } else { Err(NO_YEAR) }
}

/// Checks that a duration is not too long.
pub(super) fn duration(nanos: i128) -> Result<i128, Fault> {
    if (-LONGEST..=LONGEST).contains(&nanos) { Ok(nanos) } else { Err(TOO_LONG) }
}

/// Parses a point in time in RFC 3339 form.
pub(super) fn parse(text: &str) -> Result<i128, Fault> {
    time(crate::time::rfc3339_nanos(text).ok_or(Fault::new("a text is not a time as in 2026-01-31T00:00:00Z"))?)
}

/// A point in time from seconds since 1970.
pub(super) fn of_seconds(seconds: i64) -> Result<i128, Fault> {
    time(i128::from(seconds) * SECOND)
}

/// Seconds since 1970 of a point in time, rounded down.
pub(super) fn seconds(nanos: i128) -> Option<i64> {
    i64::try_from(nanos.div_euclid(SECOND)).ok()
}

/// A point in time in RFC 3339 form, in UTC; empty beyond the years that the form has.
pub(super) fn rfc3339(nanos: i128) -> String {
    let date = OffsetDateTime::from_unix_timestamp_nanos(nanos);
    date.ok().and_then(|date| date.format(&Rfc3339).ok()).unwrap_or_default()
}

/// A duration in seconds, as `duration` parses it: `90s`, `-1.5s`.
pub(super) fn written(nanos: i128) -> String {
    let (sign, most) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let second = SECOND.unsigned_abs();
    match most % second {
        0 => format!("{sign}{}s", most / second),
        rest => format!("{sign}{}.{}s", most / second, format!("{rest:09}").trim_end_matches('0')),
    }
}

/// Parses a duration as CEL writes it (`1h30m`, `-1.5s`), or in days (`14d`), to nanoseconds.
pub(super) fn parse_duration(text: &str) -> Option<i128> {
    const UNITS: &[(&str, i128)] =
        &[("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", SECOND), ("m", 60 * SECOND), ("h", 3_600 * SECOND), ("d", 86_400 * SECOND)];
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0_i128;
    while {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, after) = rest.split_at_checked(digits)?;
        let (fraction, after) = match after.strip_prefix('.') {
            None => ("", after),
            Some(after) => after.split_at_checked(after.bytes().take_while(u8::is_ascii_digit).count())?,
        };
        let letters = after.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, after) = after.split_at_checked(letters)?;
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
        if whole.len() > 12 || fraction.len() > 9 {
            return None;
        }
        total += whole.parse::<i128>().ok()? * nanos;
        if !fraction.is_empty() {
            total += fraction.parse::<i128>().ok()? * nanos / 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        }
        rest = after;
        !rest.is_empty()
    } {}
    duration(if negative { -total } else { total }).ok()
}

/// Parses the offset that `getHours` takes (`+02:00`, `-09:30` or `UTC`), to seconds. Names of time zones are not known here:
/// their rules change more often than programs.
pub(super) fn zone(text: &str) -> Option<i32> {
    if text == "UTC" {
        return Some(0);
    }
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => (-1, text),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (hours, minutes) = text.split_once(':')?;
    let two = |digits: &str| (digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse::<i8>().ok())?;
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    // Offsets of 24 hours or more, or with 60 minutes or more, are refused.
    UtcOffset::from_hms(hours, minutes, 0).ok().filter(|_| hours < 24).map(|offset| sign * offset.whole_seconds())
}

/// A part of a point in time, or a unit of a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimePart {
    FullYear,
    Month,
    Date,
    DayOfMonth,
    DayOfWeek,
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

impl TimePart {
    const ALL: &[(&str, Self)] = &[
        ("getFullYear", Self::FullYear),
        ("getMonth", Self::Month),
        ("getDate", Self::Date),
        ("getDayOfMonth", Self::DayOfMonth),
        ("getDayOfWeek", Self::DayOfWeek),
        ("getDayOfYear", Self::DayOfYear),
        ("getHours", Self::Hours),
        ("getMinutes", Self::Minutes),
        ("getSeconds", Self::Seconds),
        ("getMilliseconds", Self::Milliseconds),
    ];

    /// The part that the function of that name gives.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, part)| *part)
    }

    /// Names of all functions that give a part.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().map(|(name, _)| *name)
    }

    /// Returns whether a duration has the part.
    pub(super) const fn is_of_duration(self) -> bool {
        matches!(self, Self::Hours | Self::Minutes | Self::Seconds | Self::Milliseconds)
    }

    /// The part of a point in time, at an offset in seconds east of UTC. Months and days of the week, the month and the year
    /// count from 0, as in CEL; the date counts from 1, and the week begins on Sunday.
    pub(super) fn of_time(self, nanos: i128, zone: i32) -> Result<i64, Fault> {
        let there = time(nanos + i128::from(zone) * SECOND)?;
        let date = OffsetDateTime::from_unix_timestamp_nanos(there).map_err(|_| NO_YEAR)?;
        Ok(match self {
            Self::FullYear => date.year().into(),
            Self::Month => i64::from(u8::from(date.month())) - 1,
            Self::Date => date.day().into(),
            Self::DayOfMonth => i64::from(date.day()) - 1,
            Self::DayOfWeek => date.weekday().number_days_from_sunday().into(),
            Self::DayOfYear => i64::from(date.ordinal()) - 1,
            Self::Hours => date.hour().into(),
            Self::Minutes => date.minute().into(),
            Self::Seconds => date.second().into(),
            Self::Milliseconds => date.millisecond().into(),
        })
    }

    /// The whole duration in this unit, without its fraction; for milliseconds only those beyond whole seconds, as in CEL.
    pub(super) fn of_duration(self, nanos: i128) -> Option<i64> {
        let unit = match self {
            Self::Hours => 3_600 * SECOND,
            Self::Minutes => 60 * SECOND,
            Self::Seconds => SECOND,
            Self::Milliseconds => return i64::try_from(nanos % SECOND / 1_000_000).ok(),
            _ => return None,
        };
        i64::try_from(nanos / unit).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        for (text, nanos) in [
            ("36h", Some(36 * 3600 * SECOND)),
            ("14d", Some(14 * 86_400 * SECOND)),
            ("1h30m", Some(5400 * SECOND)),
            ("-1.5s", Some(-1_500_000_000)),
            ("0", Some(0)),
            ("250ms", Some(SECOND / 4)),
            ("999999999999ns", Some(999_999_999_999)),
            ("1000000000000ns", None),
            ("0.123456789s", Some(123_456_789)),
            ("0.1234567890s", None),
            ("0.1234567891s", None),
            ("106752d", Some(106_752 * 86_400 * SECOND)),
            ("315576000000s", Some(LONGEST)),
            ("-315576000000s", Some(-LONGEST)),
            ("315576000000s1ns", None),
            ("-315576000000s1ns", None),
            ("", None),
            ("-", None),
            ("5", None),
            ("h", None),
            (".5h", None),
            ("1 h", None),
            ("1w", None),
            ("1h-30m", None),
            ("999999999999d", None),
        ] {
            assert_eq!(parse_duration(text), nanos, "{text}");
        }
    }

    #[test]
    fn d12_writes_durations_as_it_reads_them() {
        for (nanos, text) in [
            (0, "0s"),
            (90 * SECOND, "90s"),
            (-3 * SECOND / 2, "-1.5s"),
            (1, "0.000000001s"),
            (-SECOND / 100, "-0.01s"),
            (LONGEST, "315576000000s"),
        ] {
            assert_eq!(written(nanos), text);
            assert_eq!(parse_duration(text), Some(nanos));
        }
    }

    #[test]
    fn d12_times_reach_from_the_year_1_to_9999() {
        for (text, nanos) in [
            ("0001-01-01T00:00:00Z", Some(FIRST)),
            ("9999-12-31T23:59:59.999999999Z", Some(LAST)),
            ("1676-01-01T00:00:00Z", Some(-9_277_718_400 * SECOND)),
            ("2263-01-01T00:00:00z", Some(9_246_182_400 * SECOND)),
            ("2026-01-31t00:00:00+14:00", Some(1_769_767_200 * SECOND)),
            ("0000-12-31T23:59:59.999999999Z", None),
            ("0001-01-01T00:00:00+00:01", None),
            ("9999-12-31T23:59:59-00:01", None),
            ("10000-01-01T00:00:00Z", None),
            ("2099-01-31a00:00:00z", None),
            ("2099-01-31_00:00:00Z", None),
            ("2099-01-31\u{a0}00:00:00Z", None),
        ] {
            assert_eq!(parse(text).ok(), nanos, "{text}");
        }
        assert_eq!(rfc3339(FIRST), "0001-01-01T00:00:00Z");
        assert_eq!(rfc3339(LAST), "9999-12-31T23:59:59.999999999Z");
        assert_eq!((time(FIRST - 1).ok(), time(LAST + 1).ok()), (None, None));
    }

    #[test]
    fn d12_offsets_are_hours_and_minutes() {
        for (text, seconds) in [
            ("UTC", Some(0)),
            ("+11:00", Some(39_600)),
            ("02:00", Some(7200)),
            ("-02:30", Some(-9000)),
            ("-00:30", Some(-1800)),
            ("-00:00", Some(0)),
            ("23:59", Some(86_340)),
            ("24:00", None),
            ("00:60", None),
            ("+2:00", None),
            ("+0200", None),
            ("++2:00", None),
            ("+1:000", None),
            ("+02:00:00", None),
            ("Europe/Berlin", None),
            ("utc", None),
            ("", None),
        ] {
            assert_eq!(zone(text), seconds, "{text}");
        }
        assert!(TimePart::Hours.of_time(LAST, 3600).is_err());
        assert!(TimePart::Hours.of_time(FIRST, -3600).is_err());
    }
}
