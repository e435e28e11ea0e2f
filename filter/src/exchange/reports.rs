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
    /// Of the last report that was made.
    number: u64,
    /// When the next one is due; at once where there was none on this stream.
    next: Option<UnixTime>,
    /// Counted, and in no report yet.
    pending: Pending,
    /// On its way on a stream, and not taken yet.
    sent: Option<(StreamId, Pending)>,
}

#[derive(Debug, Default)]
struct Pending {
    tally: Tally,
    /// Nanoseconds that the timestamp of the last request that was refused for it was ahead of our clock, by webhook.
    skews: BTreeMap<String, i64>,
}

/// Time between two reports. The sidecar takes a VM for dead that says nothing for three times as long.
const PERIOD: Duration = Duration::from_secs(5);

impl Reports {
    /// A request with a good signature was refused for its timestamp. There are as many webhooks as the sidecar has told us of.
    pub(super) fn skewed(&mut self, webhook: String, ahead: i64) {
        self.pending.skews.insert(webhook, ahead);
    }

    /// A stream can be asked on from now on: whoever listens there has not heard of this worker yet.
    pub(super) fn attached(&mut self) {
        self.next = None;
    }

    /// The sidecar has taken a report.
    pub(super) fn taken(&mut self, stream: StreamId, number: u64) {
        self.sent.take_if(|(on, _)| *on == stream && number == self.number);
    }

    /// Sends the next report where it is due; false where the stream is gone. `open` says which streams have not ended, `waiting`
    /// how many requests wait, and bytes.
    pub(super) fn send(
        &mut self,
        host: &impl Host,
        stream: StreamId,
        open: impl Fn(StreamId) -> bool,
        now: UnixTime,
        waiting: (usize, usize),
    ) -> bool {
        // A wait that is longer than any of ours means that the clock was set back.
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

    /// What was sent on a stream that ended before it was taken counts as not sent.
    fn take_back(&mut self) {
        let Some((_, lost)) = self.sent.take() else { return };
        self.pending.tally.add(&lost.tally);
        for (webhook, ahead) in lost.skews {
            self.pending.skews.entry(webhook).or_insert(ahead);
        }
    }
}
