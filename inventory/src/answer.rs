//! A provider's answer about a device, and the reasons for which it cannot answer.

use std::sync::Arc;
use std::time::Duration;

use posture::record::Record;

/// A provider's answer about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Exactly one record fits. Facts that the provider could not say are unknown in it.
    Found(Arc<Record>),
    /// No record fits, and the provider's answer was complete.
    NotFound,
    /// Several records fit.
    Ambiguous,
    /// The provider cannot say, for this reason.
    Unavailable(Unavailable),
    /// The identifier can be that of no device of this provider; the service was not asked.
    InvalidIdentifier,
}

impl Answer {
    /// The kind of the answer, without what it holds.
    pub const fn kind(&self) -> AnswerKind {
        match self {
            Self::Found(_) => AnswerKind::Found,
            Self::NotFound => AnswerKind::NotFound,
            Self::Ambiguous => AnswerKind::Ambiguous,
            Self::Unavailable(_) => AnswerKind::Unavailable,
            Self::InvalidIdentifier => AnswerKind::InvalidIdentifier,
        }
    }
}

/// A kind of [`Answer`], for metrics, records and callers: a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    /// [`Answer::Found`]
    Found,
    /// [`Answer::NotFound`]
    NotFound,
    /// [`Answer::Ambiguous`]
    Ambiguous,
    /// [`Answer::Unavailable`]
    Unavailable,
    /// [`Answer::InvalidIdentifier`]
    InvalidIdentifier,
}

impl AnswerKind {
    /// The kind's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::NotFound => "not_found",
            Self::Ambiguous => "ambiguous",
            Self::Unavailable => "unavailable",
            Self::InvalidIdentifier => "invalid_identifier",
        }
    }
}

/// The origin of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The service was asked now.
    Live,
    /// The answer is remembered, and within its lifetime.
    Cached,
    /// The answer is remembered and too old, but the service cannot say.
    Stale,
}

impl Source {
    /// The source's word, for logs and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Cached => "cached",
            Self::Stale => "stale",
        }
    }
}

/// The reason why a provider cannot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unavailable {
    /// The inventory has not been read yet, or never could be.
    NotLoaded,
    /// No whole answer came within the deadline.
    Timeout,
    /// The network failed: no connection, TLS refused, or cut off.
    Network,
    /// The service answered 5xx; with the time that `Retry-After` asks for.
    ServerError(Option<Duration>),
    /// The service answered 429; with the time that `Retry-After` asks for.
    RateLimited(Option<Duration>),
    /// The credentials were refused: 401 although the token was new, or a refused login.
    AuthRejected,
    /// The service answered 403: a privilege is missing. This never counts as a device that does not exist.
    Forbidden,
    /// The answer makes no sense: a login page, half an answer, another schema.
    Protocol,
    /// The service does not take a question about this identifier: 400 or 422.
    Rejected,
    /// The service did not apply the filter, and there are more rows than can be looked through.
    FilterIgnored,
    /// The answer has more bytes than it may have.
    TooLarge,
    /// The provider has no such ability.
    Unsupported,
    /// The service is left alone for a while, after failures or because it asked for that.
    Paused,
    /// The calls for identifiers like this one are spent.
    OutOfBudget,
    /// The service bears fewer calls than are asked of it, and no turn for this question came in time.
    Busy,
}

impl Unavailable {
    /// The reason's word, for metrics: a closed set.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotLoaded => "not_loaded",
            Self::Timeout => "timeout",
            Self::Network => "network",
            Self::ServerError(_) => "server_error",
            Self::RateLimited(_) => "rate_limited",
            Self::AuthRejected => "auth_rejected",
            Self::Forbidden => "forbidden",
            Self::Protocol => "protocol",
            Self::Rejected => "rejected",
            Self::FilterIgnored => "filter_ignored",
            Self::TooLarge => "too_large",
            Self::Unsupported => "unsupported",
            Self::Paused => "paused",
            Self::OutOfBudget => "out_of_budget",
            Self::Busy => "busy",
        }
    }

    /// The reason in words for people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotLoaded => "it could not be read",
            Self::Timeout => "it did not answer in time",
            Self::Network => "it cannot be reached",
            Self::ServerError(_) => "it reports an error of its own",
            Self::RateLimited(_) => "it asks for fewer requests",
            Self::AuthRejected => "it refuses the credentials",
            Self::Forbidden => "it refuses this question: a privilege is missing",
            Self::Protocol => "its answer makes no sense",
            Self::Rejected => "it does not take a question about this identifier",
            Self::FilterIgnored => "it answers with other devices than were asked for",
            Self::TooLarge => "its answer is too large",
            Self::Unsupported => "it cannot do that",
            Self::Paused => "it failed, and is left alone for a moment",
            Self::OutOfBudget => "too many unknown devices were asked for",
            Self::Busy => "more devices are asked for than it may be asked in this time",
        }
    }

    /// Returns whether the service itself could not say. A question that our own bounds held back says nothing about the service,
    /// so no old record may stand in for its answer.
    pub const fn is_of_the_service(self) -> bool {
        !matches!(self, Self::OutOfBudget | Self::Busy)
    }

    /// The reason as it counts for a device that nobody knows. A pause that the service asks for is cut to `longest`. A 5xx with
    /// `Retry-After` counts as any other 5xx, and so does a refusal of credentials: a gateway may ask for other credentials where
    /// an identifier looks like another path.
    pub fn by_a_stranger(self, longest: Duration) -> Self {
        match self {
            Self::RateLimited(Some(after)) => Self::RateLimited(Some(after.min(longest))),
            Self::ServerError(Some(_)) | Self::AuthRejected => Self::ServerError(None),
            why => why,
        }
    }

    /// Names the party at fault: the service, the identifier, or either.
    pub const fn blame(self) -> Blame {
        match self {
            Self::RateLimited(_) | Self::ServerError(Some(_)) | Self::AuthRejected => Blame::Service,
            Self::Protocol | Self::Rejected | Self::Forbidden | Self::FilterIgnored | Self::TooLarge => Blame::Identifier,
            _ => Blame::Either,
        }
    }
}

/// The party at fault where a service did not answer a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The service, whatever was asked.
    Service,
    /// The service or the identifier that was asked for.
    Either,
    /// The identifier that was asked for, unless others fail alike.
    Identifier,
}

#[cfg(test)]
mod tests {
    use super::Unavailable;

    #[test]
    fn every_reason_why_a_provider_cannot_say_is_explained_to_operators() {
        let page = include_str!("../../docs/codes.md");
        for why in [
            Unavailable::NotLoaded,
            Unavailable::Timeout,
            Unavailable::Network,
            Unavailable::ServerError(None),
            Unavailable::RateLimited(None),
            Unavailable::AuthRejected,
            Unavailable::Forbidden,
            Unavailable::Protocol,
            Unavailable::Rejected,
            Unavailable::FilterIgnored,
            Unavailable::TooLarge,
            Unavailable::Unsupported,
            Unavailable::Paused,
            Unavailable::OutOfBudget,
            Unavailable::Busy,
        ] {
            let row = format!("| `{}` | {} | ", why.as_str(), why.text());
            assert!(page.contains(&row), "docs/codes.md has no {row}");
        }
    }
}
