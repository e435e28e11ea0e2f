//! Reports to the sidecar of what was counted: one at a time, and none is lost with its stream.

use std::collections::BTreeMap;
use std::time::Duration;

use posture::time::UnixTime;
use prost::Message as _;
use proto::v1::{ClockSkew, FilterMessage, Report, filter_message};

use crate::host::{Host, StreamId};
use crate::metrics::Tally;

/// The reports of one worker.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// Number of the last report that was made.
    number: u64,
    /// Time at which the next report is due; `None` means at once, as on a new stream.
    next: Option<UnixTime>,
    /// Counts that are in no report yet.
    pending: Pending,
    /// Report that was sent on a stream, and is not yet confirmed.
    sent: Option<(StreamId, Pending)>,
}

#[derive(Debug, Default)]
struct Pending {
    tally: Tally,
    /// How far ahead of our clock the last refused timestamp was, in nanoseconds, by webhook.
    skews: BTreeMap<String, i64>,
}

/// Time between two reports. The sidecar takes a VM for dead if no report comes for three times as long.
const PERIOD: Duration = Duration::from_secs(5);

impl Reports {
    /// Notes a request with a good signature that was refused for its timestamp. There are at most as many entries as webhooks.
    pub(super) fn skewed(&mut self, webhook: String, ahead: i64) {
        self.pending.skews.insert(webhook, ahead);
    }

    /// Notes a new stream for questions: the sidecar behind it has no report of this worker yet.
    pub(super) fn attached(&mut self) {
        self.next = None;
    }

    /// Notes that the sidecar has taken a report.
    pub(super) fn taken(&mut self, stream: StreamId, number: u64) {
        self.sent.take_if(|(on, _)| *on == stream && number == self.number);
    }

    /// Sends the next report if it is due; false if the stream is gone. `open` tells whether a stream has not ended;
    /// `waiting` is the number of requests that wait, and their bytes.
    pub(super) fn send(
        &mut self,
        host: &impl Host,
        stream: StreamId,
        open: impl Fn(StreamId) -> bool,
        now: UnixTime,
        waiting: (usize, usize),
    ) -> bool {
        // A wait that is longer than the period means that the clock was set back.
        if self.next.is_some_and(|at| now < at && at <= now.saturating_add(PERIOD)) {
            return true;
        }
        match &self.sent {
            Some((on, _)) if open(*on) => return true,
            Some(_) => self.take_back(),
            None => {}
        }
        self.pending.tally.add(&host.tally());
        self.number = self.number.wrapping_add(1);
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let report = Report {
            number: self.number,
            waiting: number(waiting.0),
            waiting_bytes: number(waiting.1),
            skews: self.pending.skews.iter().map(|(id, ahead)| ClockSkew { webhook_id: id.clone(), ahead_nanos: *ahead }).collect(),
            ..self.pending.tally.report()
        };
        let message = FilterMessage { message: Some(filter_message::Message::Report(report)) }.encode_to_vec();
        if !host.send(stream, &message) {
            return false;
        }
        self.sent = Some((stream, std::mem::take(&mut self.pending)));
        self.next = Some(now.saturating_add(PERIOD));
        true
    }

    /// Puts back a report whose stream ended before the report was taken.
    fn take_back(&mut self) {
        let Some((_, lost)) = self.sent.take() else { return };
        self.pending.tally.add(&lost.tally);
        for (webhook, ahead) in lost.skews {
            self.pending.skews.entry(webhook).or_insert(ahead);
        }
    }
}
