//! How a fake misbehaves.

use std::time::{Duration, SystemTime};

/// One way of not answering as a management should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status, with a short JSON error.
    Status(u16),
    /// 429.
    RateLimited(RetryAfter),
    /// Nothing, ever.
    Hang,
    /// The headers only after this long.
    Slow(Duration),
    /// The right answer, one byte a second.
    Drip,
    /// The connection is reset before any byte.
    Reset,
    /// The connection is cut in the middle of the body.
    Cut,
    /// A login page, with 200.
    Html,
    /// This body as `application/json`, with 200.
    Body(Vec<u8>),
    /// So many bytes of JSON, with 200.
    Huge(usize),
    /// The record of another device, whatever was asked for.
    WrongDevice,
    /// The filter is not applied: every device, in pages.
    FilterIgnored,
    /// 302 to this address.
    Redirect(String),
    /// The right answer, said to be gzip.
    Gzip,
    /// The right answer after a byte order mark.
    ByteOrderMark,
    /// The right answer as `text/plain`.
    PlainText,
}

/// What `Retry-After` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// It is not there.
    Absent,
    /// Seconds.
    Seconds(u64),
    /// A date so far from now.
    Date(Duration),
    /// This text.
    Malformed(String),
}

impl RetryAfter {
    /// The header's value.
    pub fn value(&self) -> Option<String> {
        match self {
            Self::Absent => None,
            Self::Seconds(seconds) => Some(seconds.to_string()),
            Self::Date(after) => Some(httpdate::fmt_http_date(SystemTime::now() + *after)),
            Self::Malformed(text) => Some(text.clone()),
        }
    }
}
