//! What the filter counts. Names are closed: nothing that a caller sends ever becomes one.

use posture::outcome::Refusal;

/// A counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Replies that allow.
    Allowed,
    /// Replies that deny, whatever the code.
    Denied,
    /// Replies that refuse, by cause.
    Refused(Refusal),
    /// Streams to the sidecar that were opened.
    StreamOpened,
    /// Streams that ended from the other side.
    StreamLost,
    /// Streams that the filter gave up: silent for too long, or talking nonsense.
    StreamReset,
    /// Sets of webhooks received.
    KeysReceived,
    /// Answers whose request had ended: its client is gone, or its deadline has passed.
    AnswerLate,
    /// Answers to nothing that was asked, or that do not belong to their question.
    AnswerUnmatched,
    /// Requests whose client went before the reply.
    ClientGone,
    /// Certificates of peers that could not be read, or were larger than any need be.
    CertificateUnreadable,
}

/// A value that goes up and down; its changes are added, so that the workers of one Envoy add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gauge {
    /// Requests that wait for an answer.
    Waiting,
    /// Bytes that wait, or are sent and unanswered.
    WaitingBytes,
    /// Workers that have keys and a sidecar to ask.
    Attached,
}

impl Counter {
    /// All counters that are not refusals.
    pub const PLAIN: [Self; 10] = [
        Self::Allowed,
        Self::Denied,
        Self::StreamOpened,
        Self::StreamLost,
        Self::StreamReset,
        Self::KeysReceived,
        Self::AnswerLate,
        Self::AnswerUnmatched,
        Self::ClientGone,
        Self::CertificateUnreadable,
    ];

    /// All counters.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::PLAIN.into_iter().chain(Refusal::ALL.iter().copied().map(Self::Refused))
    }

    /// Its name; Envoy puts `wasmcustom.` before it.
    pub fn name(self) -> String {
        match self {
            Self::Allowed => "stepward.replies.allow.allowed".to_owned(),
            Self::Denied => "stepward.replies.deny.denied".to_owned(),
            Self::Refused(refusal) => format!("stepward.replies.refuse.{}", refusal.as_str()),
            Self::StreamOpened => "stepward.stream.opened".to_owned(),
            Self::StreamLost => "stepward.stream.lost".to_owned(),
            Self::StreamReset => "stepward.stream.reset".to_owned(),
            Self::KeysReceived => "stepward.keys.received".to_owned(),
            Self::AnswerLate => "stepward.answers.late".to_owned(),
            Self::AnswerUnmatched => "stepward.answers.unmatched".to_owned(),
            Self::ClientGone => "stepward.client_gone".to_owned(),
            Self::CertificateUnreadable => "stepward.certificate_unreadable".to_owned(),
        }
    }
}

impl Gauge {
    /// All gauges.
    pub const ALL: [Self; 3] = [Self::Waiting, Self::WaitingBytes, Self::Attached];

    /// Its name; Envoy puts `wasmcustom.` before it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "stepward.waiting",
            Self::WaitingBytes => "stepward.waiting_bytes",
            Self::Attached => "stepward.attached",
        }
    }
}

/// Microseconds from when the whole of a request was there to its reply, of those that were allowed or denied.
pub const LATENCY: &str = "stepward.latency_us";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_counter_has_a_name_of_its_own() {
        let names: BTreeSet<_> = Counter::all().map(Counter::name).collect();
        assert_eq!(names.len(), Counter::PLAIN.len() + Refusal::ALL.len());
    }
}
