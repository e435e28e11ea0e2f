//! The faults of a fake.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// A way in which a fake does not answer as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An answer with this status, and a short JSON error.
    Status(u16),
    /// An answer with status 429.
    RateLimited(RetryAfter),
    /// No answer, ever.
    Hang,
    /// Headers only after this long.
    Slow(Duration),
    /// The right answer, one byte a second.
    Drip,
    /// A reset of the connection before any byte.
    Reset,
    /// The end of the connection in the middle of the body.
    Cut,
    /// The end of the connection in the middle of a body without a length.
    CutChunked,
    /// A login page, with status 200.
    Html,
    /// This body as `application/json`, with status 200.
    Body(Vec<u8>),
    /// This body as `application/json`, with this status.
    Answer(u16, Vec<u8>),
    /// This many bytes of JSON, with status 200.
    Huge(usize),
    /// The record of another device, whichever was asked for.
    WrongDevice,
    /// Every device, in pages: the filter is not applied.
    FilterIgnored,
    /// A redirect to this address, with status 302.
    Redirect(String),
    /// The right answer, with a header that calls it gzip.
    Gzip,
    /// The right answer after a byte order mark.
    ByteOrderMark,
    /// The right answer as `text/plain`.
    PlainText,
    /// The right answer in which one member comes twice, first as null: the member of this number among all, from 0. An
    /// answer with fewer members is right.
    Twice(usize),
    /// The right answer, with every count in it replaced by this one.
    Counted(u64),
}

/// The value of `Retry-After`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// No header.
    Absent,
    /// A number of seconds.
    Seconds(u64),
    /// A date this long from now.
    Date(Duration),
    /// This text, which is neither.
    Malformed(String),
}

impl RetryAfter {
    /// The header's value, if there is a header.
    pub fn value(&self) -> Option<String> {
        match self {
            Self::Absent => None,
            Self::Seconds(seconds) => Some(seconds.to_string()),
            Self::Date(after) => Some(httpdate::fmt_http_date(SystemTime::now() + *after)),
            Self::Malformed(text) => Some(text.clone()),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    /// Parses `status:500`, `rate-limited`, `rate-limited:5`, `hang`, `slow:2s`, `drip`, `reset`, `cut`, `cut-chunked`,
    /// `html`, `huge:1000000`, `wrong-device`, `filter-ignored`, `redirect:https://example.org/`, `gzip`, `bom`,
    /// `plain-text`, `twice:3`, `counted:0`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').map_or((text, None), |(name, value)| (name, Some(value)));
        let wrong = || format!("`{text}` is no fault; write status:500, slow:2s, hang, or another of the list in --help");
        let fault = match (name, value) {
            ("status", Some(value)) => value.parse().ok().filter(|status| (200..600).contains(status)).map(Self::Status),
            ("rate-limited", None) => Some(Self::RateLimited(RetryAfter::Absent)),
            ("rate-limited", Some(value)) => Some(Self::RateLimited(match value.trim_end_matches('s').parse() {
                Ok(seconds) => RetryAfter::Seconds(seconds),
                Err(_) => RetryAfter::Malformed(value.to_owned()),
            })),
            ("slow", Some(value)) => {
                value.trim_end_matches('s').parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).map(Self::Slow)
            }
            ("twice", Some(value)) => value.parse().ok().map(Self::Twice),
            ("counted", Some(value)) => value.parse().ok().map(Self::Counted),
            ("huge", Some(value)) => value.parse().ok().map(Self::Huge),
            ("redirect", Some(value)) => Some(Self::Redirect(value.to_owned())),
            ("hang", None) => Some(Self::Hang),
            ("drip", None) => Some(Self::Drip),
            ("reset", None) => Some(Self::Reset),
            ("cut", None) => Some(Self::Cut),
            ("cut-chunked", None) => Some(Self::CutChunked),
            ("html", None) => Some(Self::Html),
            ("wrong-device", None) => Some(Self::WrongDevice),
            ("filter-ignored", None) => Some(Self::FilterIgnored),
            ("gzip", None) => Some(Self::Gzip),
            ("bom", None) => Some(Self::ByteOrderMark),
            ("plain-text", None) => Some(Self::PlainText),
            _ => None,
        };
        fault.ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_faults() {
        assert_eq!("status:503".parse(), Ok(Fault::Status(503)));
        assert_eq!("slow:1.5s".parse(), Ok(Fault::Slow(Duration::from_millis(1500))));
        assert_eq!("twice:3".parse(), Ok(Fault::Twice(3)));
        assert_eq!("rate-limited:5".parse(), Ok(Fault::RateLimited(RetryAfter::Seconds(5))));
        assert_eq!("redirect:https://x/".parse(), Ok(Fault::Redirect("https://x/".to_owned())));
        for wrong in ["", "status", "status:9", "slow:-1", "hang:1", "slower:1"] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }
}
