//! The requests that wait, bounded in number and in bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use posture::outcome::{Outcome, Refusal};
use posture::time::UnixTime;

use super::head::Head;
use crate::host::{RequestId, StreamId};

/// A request that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Id of the request.
    pub(super) request: RequestId,
    /// Arrival of the whole request.
    pub(super) arrived: UnixTime,
    /// Binding that the answer must carry; all zero until the request is proven.
    pub(super) binding: [u8; 32],
    deadline: UnixTime,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The request waits for keys.
    Unproven(Box<Head>, Vec<u8>),
    /// The question is to be asked.
    Proven(Vec<u8>),
    /// The question was asked on this stream; it is kept, to be asked again on the next one.
    Asked(StreamId, Vec<u8>),
    /// The request is decided; its reply goes out when the VM's stack has room.
    Due(Outcome),
}

impl Waiting {
    /// Makes a request that is judged when keys come.
    pub(super) fn unproven(head: Head, body: Vec<u8>) -> Self {
        let deadline = head.since.saturating_add(head.deadline);
        let arrived = head.arrived.unwrap_or(head.since);
        Self { request: head.request, arrived, binding: [0; 32], deadline, state: State::Unproven(Box::new(head), body) }
    }

    /// Makes a request whose question is `message`.
    pub(super) fn proven(request: RequestId, arrived: UnixTime, deadline: UnixTime, binding: [u8; 32], message: Vec<u8>) -> Self {
        Self { request, arrived, binding, deadline, state: State::Proven(message) }
    }
}

impl State {
    /// Size of what the state holds that is not in a stream's buffer too, in bytes.
    fn unasked_bytes(&self) -> usize {
        match self {
            // The largest size of its question, so that keys that come do not push the table over its bound.
            Self::Unproven(head, body) => body.len().saturating_add(head.connection.der.len()).saturating_add(QUESTION),
            Self::Proven(message) => message.len(),
            Self::Asked(..) | Self::Due(_) => 0,
        }
    }
}

/// Largest part of a question besides body and certificate, in bytes: its header values, and what encoding adds.
const QUESTION: usize = 1536;

/// The requests that wait, by the sequence number that each request knows.
#[derive(Debug)]
pub(super) struct Table {
    waiting: BTreeMap<u64, Waiting>,
    /// Sequence numbers of requests that are [`State::Proven`], oldest first.
    unasked: BTreeSet<u64>,
    /// Sequence numbers of requests that are [`State::Due`]; some may have gone.
    due: VecDeque<u64>,
    unasked_bytes: usize,
    next: u64,
    max: usize,
    max_bytes: usize,
}

impl Table {
    pub(super) fn new(max: usize, max_bytes: usize) -> Self {
        Self { waiting: BTreeMap::new(), unasked: BTreeSet::new(), due: VecDeque::new(), unasked_bytes: 0, next: 1, max, max_bytes }
    }

    /// Returns a sequence number that was never used while the VM lives.
    pub(super) fn next_sequence(&mut self) -> u64 {
        let sequence = self.next;
        self.next = self.next.wrapping_add(1);
        sequence
    }

    /// Inserts a request under its number; `asked_bytes` are in the buffers of streams.
    pub(super) fn insert(&mut self, sequence: u64, waiting: Waiting, asked_bytes: usize) -> Result<(), Refusal> {
        let bytes = self.unasked_bytes.saturating_add(asked_bytes).saturating_add(waiting.state.unasked_bytes());
        if self.waiting.len() >= self.max || bytes > self.max_bytes {
            return Err(Refusal::Overloaded);
        }
        self.put(sequence, waiting);
        Ok(())
    }

    fn put(&mut self, sequence: u64, waiting: Waiting) {
        self.count_in(sequence, &waiting.state);
        self.waiting.insert(sequence, waiting);
    }

    /// Removes a request, whatever its state.
    pub(super) fn remove(&mut self, sequence: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&sequence)?;
        self.count_out(sequence, &waiting.state);
        Some(waiting)
    }

    /// Changes the state of a request that is still there.
    fn change_state(&mut self, sequence: u64, change: impl FnOnce(State) -> State) {
        if let Some(mut waiting) = self.remove(sequence) {
            waiting.state = change(waiting.state);
            self.put(sequence, waiting);
        }
    }

    fn count_in(&mut self, sequence: u64, state: &State) {
        self.unasked_bytes = self.unasked_bytes.saturating_add(state.unasked_bytes());
        if matches!(state, State::Proven(_)) {
            self.unasked.insert(sequence);
        }
    }

    fn count_out(&mut self, sequence: u64, state: &State) {
        self.unasked_bytes = self.unasked_bytes.saturating_sub(state.unasked_bytes());
        if matches!(state, State::Proven(_)) {
            self.unasked.remove(&sequence);
        }
    }

    /// Decides a request; its reply is due.
    pub(super) fn decide(&mut self, sequence: u64, outcome: Outcome) {
        self.change_state(sequence, |_| State::Due(outcome));
        self.due.push_back(sequence);
    }

    /// Replaces a request by its proven form.
    pub(super) fn replace(&mut self, sequence: u64, proven: Waiting) {
        if self.remove(sequence).is_some() {
            self.put(sequence, proven);
        }
    }

    /// Takes head and body of all requests that wait for keys. They stay in the table, as refused with `internal`, until
    /// `replace` or `decide` is called for each.
    pub(super) fn take_unproven(&mut self) -> Vec<(u64, Box<Head>, Vec<u8>)> {
        let unproven: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| matches!(waiting.state, State::Unproven(..)))
            .map(|(sequence, _)| *sequence)
            .collect();
        let mut taken = Vec::with_capacity(unproven.len());
        for sequence in unproven {
            self.change_state(sequence, |state| match state {
                State::Unproven(head, body) => {
                    taken.push((sequence, head, body));
                    State::Due(Outcome::Refuse(Refusal::Internal))
                }
                other => other,
            });
        }
        taken
    }

    /// Undecided requests whose deadline has passed, each with the refusal that tells what it waited for.
    pub(super) fn overdue(&self, now: UnixTime) -> Vec<(u64, Refusal)> {
        let overdue = self.waiting.iter().filter(|(_, waiting)| waiting.deadline <= now);
        overdue
            .filter_map(|(sequence, waiting)| match waiting.state {
                State::Unproven(..) => Some((*sequence, Refusal::NoKeys)),
                State::Proven(_) => Some((*sequence, Refusal::SidecarUnavailable)),
                State::Asked(..) => Some((*sequence, Refusal::DeadlineExceeded)),
                State::Due(_) => None,
            })
            .collect()
    }

    /// Requests whose question is to be asked, oldest first.
    pub(super) fn unasked(&self) -> Vec<u64> {
        self.unasked.iter().copied().collect()
    }

    /// The question of a request, if it is to be asked.
    pub(super) fn question(&self, sequence: u64) -> Option<&[u8]> {
        match &self.waiting.get(&sequence)?.state {
            State::Proven(message) => Some(message),
            _ => None,
        }
    }

    /// Notes that a request's question was sent on a stream.
    pub(super) fn asked(&mut self, sequence: u64, stream: StreamId) {
        self.change_state(sequence, |state| match state {
            State::Proven(message) => State::Asked(stream, message),
            other => other,
        });
    }

    /// Marks the questions of a lost stream as to be asked again.
    pub(super) fn unask(&mut self, stream: StreamId) {
        let lost: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| matches!(waiting.state, State::Asked(on, _) if on == stream))
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in lost {
            self.change_state(sequence, |state| match state {
                State::Asked(_, message) => State::Proven(message),
                other => other,
            });
        }
    }

    /// Removes the request to which an answer on this stream belongs.
    pub(super) fn answered(&mut self, stream: StreamId, sequence: u64) -> Option<Waiting> {
        match self.waiting.get(&sequence)?.state {
            State::Asked(on, _) if on == stream => self.remove(sequence),
            _ => None,
        }
    }

    /// Removes decided requests, at most `at_most`.
    pub(super) fn take_due(&mut self, at_most: usize) -> Vec<(RequestId, UnixTime, Outcome)> {
        let mut taken = Vec::new();
        while taken.len() < at_most
            && let Some(sequence) = self.due.pop_front()
        {
            if let Some(Waiting { request, arrived, state: State::Due(outcome), .. }) = self.remove(sequence) {
                taken.push((request, arrived, outcome));
            }
        }
        taken
    }

    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) const fn unasked_bytes(&self) -> usize {
        self.unasked_bytes
    }

    /// Checks counts and lists against the requests, for the tests.
    #[cfg(test)]
    pub(super) fn agrees(&self) {
        let bytes: usize = self.waiting.values().map(|waiting| waiting.state.unasked_bytes()).sum();
        assert_eq!(self.unasked_bytes, bytes);
        let proven = self.waiting.iter().filter(|(_, waiting)| matches!(waiting.state, State::Proven(_)));
        assert!(self.unasked.iter().eq(proven.map(|(sequence, _)| sequence)));
        let due = self.waiting.iter().filter(|(_, waiting)| matches!(waiting.state, State::Due(_)));
        assert!(due.into_iter().all(|(sequence, _)| self.due.contains(sequence)));
        assert!(self.waiting.len() <= self.max && self.waiting.keys().all(|sequence| *sequence < self.next));
    }
}
