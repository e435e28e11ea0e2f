//! Dates in a form for people.

use posture::time::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The date of a point in time in UTC, as RFC 3339 writes it: `2100-01-01T00:01:40Z`.
pub fn rfc3339(time: UnixTime) -> String {
    // Every point in time has such a text: the years are 1677 to 2262.
    OffsetDateTime::from_unix_timestamp_nanos(time.as_nanos().into())
        .ok()
        .and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| time.as_nanos().to_string())
}
