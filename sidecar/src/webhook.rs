//! The way in for Envoy: `FilterService.Attach`.
//!
//! A stream is answered where it is read: the response is a [`Stream`] that takes the next question, judges it, and yields
//! the answer, so an ordinary question costs no task, no channel and no lock of its own, and a filter that does not read
//! its answers is not asked for more questions. What cannot be answered at once goes on in a task of its own.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _};
use posture::caller::{Callers, Peer};
use posture::outcome::Refusal;
use posture::shape::Mode;
use posture::verify::Signature;
use prost::Message as _;
use proto::v1::filter_message::Message as FromFilter;
use proto::v1::filter_service_server::FilterService;
use proto::v1::sidecar_message::Message as ToFilter;
use proto::v1::{
    Answer, Drain, FilterMessage, Mode as WireMode, Question, Report, Reported, SidecarHello, SidecarMessage, Verdict, WebhookKeys,
    WebhookSet,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::WatchStream;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Response, Status, Streaming};

use crate::clock;
use crate::decide::{self, Decision};
use crate::evaluate::{self, Admitted, Record, Request};
use crate::gate::{Allowed, Outcome};
use crate::replay::{Begin, Key};
use crate::runtime::{Runtime, Snapshot};

mod refusals;
mod samples;
mod seats;
mod workers;

pub use samples::Samples;
use seats::{Holder, Seat, Seats};
use workers::{Presence, Workers};

/// The service on `filter.sock`.
#[derive(Debug)]
pub struct Filters {
    runtime: Arc<Runtime>,
    drain: watch::Receiver<bool>,
    workers: Arc<Workers>,
    seats: Arc<Seats>,
    waiting: Arc<Semaphore>,
    samples: Arc<Sampled>,
}

/// What may be logged of streams, and of questions that nobody has proven.
#[derive(Debug, Default)]
struct Sampled {
    attached: Samples,
    silent: Samples,
    unproven: Samples,
}

impl Filters {
    /// Serves until `drain` says so.
    pub fn new(runtime: Arc<Runtime>, drain: watch::Receiver<bool>) -> Self {
        let (seats, waiting) = (Seats::new(STREAMS, STREAMS / 2), Arc::new(Semaphore::new(WAITING)));
        Self { runtime, drain, workers: Arc::default(), seats, waiting, samples: Arc::default() }
    }
}

#[tonic::async_trait]
impl FilterService for Filters {
    type AttachStream = Attached<Streaming<FilterMessage>>;

    async fn attach(&self, request: tonic::Request<Streaming<FilterMessage>>) -> Result<Response<Self::AttachStream>, Status> {
        let credentials = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        let holder = credentials.map_or_else(Holder::default, |peer| Holder { uid: Some(peer.uid()), pid: peer.pid() });
        Ok(Response::new(Attached::new(self, request.into_inner(), self.seats.take(holder), holder)))
    }
}

/// One stream.
pub struct Attached<I> {
    questions: I,
    judge: Judge,
    finished: mpsc::UnboundedReceiver<(Answer, OwnedSemaphorePermit)>,
    revisions: WatchStream<u64>,
    drains: WatchStream<bool>,
    /// Questions that a task answers.
    outstanding: usize,
    said_hello: bool,
    /// Revision that the filter has.
    told: Option<u64>,
    ending: Ending,
    presence: Presence,
}

/// How near a stream is to its end.
enum Ending {
    /// It goes on.
    Open,
    /// Drain was said: what still comes in is answered until it has been quiet for [`QUIET`].
    Draining(Pin<Box<tokio::time::Sleep>>),
    /// The filter sends no more; what is outstanding is answered.
    Answering,
    /// Nothing follows.
    Over,
}

impl<I: Stream<Item = Result<FilterMessage, Status>> + Unpin> Attached<I> {
    fn new(filters: &Filters, questions: I, seat: Seat, holder: Holder) -> Self {
        let (sender, finished) = mpsc::unbounded_channel();
        let runtime = Arc::clone(&filters.runtime);
        Self {
            questions,
            finished,
            revisions: WatchStream::new(runtime.revisions()),
            drains: WatchStream::new(filters.drain.clone()),
            outstanding: 0,
            said_hello: false,
            told: None,
            ending: Ending::Open,
            presence: Presence::new(Arc::clone(&runtime.metrics), Arc::clone(&filters.workers), holder),
            judge: Judge { runtime, waiting: Arc::clone(&filters.waiting), samples: Arc::clone(&filters.samples), seat, sender },
        }
    }

    /// What the sidecar has to say by itself.
    fn poll_news(&mut self, context: &mut Context<'_>) -> Option<ToFilter> {
        if !self.said_hello {
            self.said_hello = true;
            return Some(ToFilter::Hello(SidecarHello { version: env!("CARGO_PKG_VERSION").to_owned(), build: BUILD.to_owned() }));
        }
        while let Poll::Ready(Some(_)) = self.revisions.poll_next_unpin(context) {
            let snapshot = self.judge.runtime.snapshot();
            if self.told < Some(snapshot.revision) {
                self.told = Some(snapshot.revision);
                return Some(ToFilter::Webhooks(webhook_set(&snapshot)));
            }
        }
        while let Poll::Ready(Some(draining)) = self.drains.poll_next_unpin(context) {
            if draining && matches!(self.ending, Ending::Open) {
                self.ending = Ending::Draining(Box::pin(tokio::time::sleep(QUIET)));
                return Some(ToFilter::Drain(Drain {}));
            }
        }
        if let Poll::Ready(Some((answer, _waited))) = self.finished.poll_recv(context) {
            self.outstanding = self.outstanding.saturating_sub(1);
            return Some(ToFilter::Answer(answer));
        }
        None
    }

    fn take(&mut self, message: FilterMessage) -> Option<ToFilter> {
        if let Ending::Draining(quiet) = &mut self.ending {
            quiet.as_mut().reset(tokio::time::Instant::now() + QUIET);
        }
        self.presence.heard();
        match message.message {
            Some(FromFilter::Hello(hello)) => {
                // It is said once; a second one would be another line, and another name.
                if !self.presence.is_named() {
                    if let Some(left_out) = self.judge.samples.attached.admits(Instant::now()) {
                        let (version, build) = (bounded(hello.version), bounded(hello.build));
                        tracing::info!(vm = format_args!("{:016x}", hello.vm), version, build, left_out, "filter attached");
                    }
                    self.presence.name(hello.vm, hello.main);
                }
                None
            }
            Some(FromFilter::Question(question)) => {
                let answer = self.judge.ask(question);
                if answer.is_none() {
                    self.outstanding = self.outstanding.saturating_add(1);
                }
                answer.map(ToFilter::Answer)
            }
            Some(FromFilter::Report(report)) => {
                self.presence.report(&report);
                self.judge.tell_clocks(&report);
                Some(ToFilter::Reported(Reported { number: report.number }))
            }
            // Of a kind that a later release has.
            None => None,
        }
    }
}

impl<I: Stream<Item = Result<FilterMessage, Status>> + Unpin> Stream for Attached<I> {
    type Item = Result<SidecarMessage, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let say = |message| Poll::Ready(Some(Ok(SidecarMessage { message: Some(message) })));
        loop {
            if matches!(this.ending, Ending::Over) {
                return Poll::Ready(None);
            }
            if this.judge.seat.taken_over.poll_unpin(context).is_ready() {
                this.ending = Ending::Over;
                return Poll::Ready(Some(Err(Status::resource_exhausted("a newer stream has taken the place of this one"))));
            }
            if let Some(news) = this.poll_news(context) {
                return say(news);
            }
            if let Some(vm) = this.presence.poll_silence(context)
                && let Some(left_out) = this.judge.samples.silent.admits(Instant::now())
            {
                tracing::warn!(
                    vm = format_args!("{vm:016x}"),
                    left_out,
                    "a filter says nothing any more: its VM has died, or Envoy stands still"
                );
            }
            if !matches!(this.ending, Ending::Answering) {
                match this.questions.poll_next_unpin(context) {
                    Poll::Ready(Some(Ok(message))) => match this.take(message) {
                        Some(said) => return say(said),
                        None => continue,
                    },
                    Poll::Ready(Some(Err(status))) => {
                        tracing::debug!(error = %status, "stream of a filter broke");
                        this.ending = Ending::Over;
                        return Poll::Ready(Some(Err(status)));
                    }
                    Poll::Ready(None) => this.ending = Ending::Answering,
                    Poll::Pending => {}
                }
            }
            let over = this.outstanding == 0
                && match &mut this.ending {
                    Ending::Open => false,
                    Ending::Draining(quiet) => quiet.as_mut().poll(context).is_ready(),
                    Ending::Answering | Ending::Over => true,
                };
            if !over {
                return Poll::Pending;
            }
            this.ending = Ending::Over;
        }
    }
}

/// Judges the questions of one stream.
struct Judge {
    runtime: Arc<Runtime>,
    waiting: Arc<Semaphore>,
    samples: Arc<Sampled>,
    seat: Seat,
    /// Never longer than there are permits of `waiting`, and each answer in it had one.
    sender: mpsc::UnboundedSender<(Answer, OwnedSemaphorePermit)>,
}

/// A question that was judged, or will be.
enum Step {
    Settled(Outcome),
    /// With how it is decided, and the permit to wait for that.
    Waits(BoxFuture<'static, (Outcome, Option<Decision>)>, OwnedSemaphorePermit),
}

impl Judge {
    /// Answers a question now, or returns `None` and has a task send the answer.
    ///
    /// A panic is a fault of ours that costs one question, not the process.
    fn ask(&mut self, question: Question) -> Option<Answer> {
        let Question {
            sequence, webhook_id, signature, body, peer_certificate, peer_address, traceparent, request_id, mode, revision, ..
        } = question;
        let binding = Signature::from_bytes(&signature).map_or_else(Vec::new, |signature| signature.binding(&webhook_id).to_vec());
        let mut record = Record {
            received: Instant::now(),
            webhook_id,
            webhook: None,
            caller: None,
            identity: None,
            key: None,
            notification: None,
            decision: None,
            replayed: false,
            proven: false,
            digest: String::new(),
            age: None,
            peer_address: bounded(peer_address),
            request_id: bounded(request_id),
            traceparent: bounded(traceparent),
        };
        let step = catch_unwind(AssertUnwindSafe(|| self.step(&mut record, &signature, &body, &peer_certificate, (mode, revision))))
            .unwrap_or(Step::Settled(Outcome::Refuse(Refusal::Internal)));
        if record.proven {
            self.seat.prove();
        }
        match step {
            Step::Settled(outcome) => {
                record.write(&self.runtime, &outcome, &self.samples.unproven);
                Some(answer(sequence, binding, outcome))
            }
            Step::Waits(outcome, permit) => {
                let sender = self.sender.clone();
                let (runtime, samples) = (Arc::clone(&self.runtime), Arc::clone(&self.samples));
                tokio::spawn(async move {
                    let (outcome, decision) =
                        AssertUnwindSafe(outcome).catch_unwind().await.unwrap_or((Outcome::Refuse(Refusal::Internal), None));
                    record.decision = decision;
                    record.write(&runtime, &outcome, &samples.unproven);
                    // Where the stream has gone, the filter asks again on the next one and finds the outcome.
                    let _ = sender.send((answer(sequence, binding, outcome), permit));
                });
                None
            }
        }
    }

    /// Shows the clocks of callers whose requests the filter refused for them: of webhooks that there are.
    fn tell_clocks(&self, report: &Report) {
        let (snapshot, now) = (self.runtime.snapshot(), Instant::now());
        for skew in report.skews.iter().take(snapshot.webhooks.len()) {
            if let Some(webhook) = snapshot.webhooks.get(&*skew.webhook_id) {
                evaluate::tell_clock(webhook, skew.ahead_nanos.saturating_neg(), &self.runtime.metrics, now);
            }
        }
    }

    fn step(&mut self, record: &mut Record, signature: &[u8], body: &Bytes, peer_certificate: &[u8], (mode, revision): (i32, u64)) -> Step {
        let refused = |refusal| Step::Settled(Outcome::Refuse(refusal));
        let now = clock::now();
        let mut peer = None;
        let webhook_id = std::mem::take(&mut record.webhook_id);
        let request = Request { webhook_id: &webhook_id, signature, body };
        let read = || {
            peer = self.runtime.peers.read(peer_certificate);
            peer.clone()
        };
        let snapshot = self.runtime.snapshot();
        let admitted = evaluate::admit(&snapshot, &request, read, now, record);
        let digest: Option<[u8; 32]> = record.proven.then(|| Sha256::digest(body).into());
        if let Some(digest) = digest.as_ref().filter(|_| self.runtime.store.keeps_decisions()) {
            record.digest = evaluate::hexadecimal(digest);
        }
        let key = digest.map(|digest| Key::of_digest(&webhook_id, &digest));
        record.webhook_id = bounded(webhook_id);
        let (admitted, key) = match (admitted, key) {
            (Ok(admitted), Some(key)) => (admitted, key),
            // Only what is proven is admitted.
            (Ok(_), None) => return refused(Refusal::Signature),
            (Err(refusal), _) => return refused(refusal),
        };
        // Only the filter checks credentials. Where its keys are not the current ones, the request is refused until it has them.
        if !admitted.webhook.credentials.values().is_empty() && revision != told(&snapshot) {
            return refused(Refusal::NoKeys);
        }
        let mode = match WireMode::try_from(mode) {
            Ok(WireMode::MobileDevice) => Some(Mode::MobileDevice),
            Ok(WireMode::Computer) => Some(Mode::Computer),
            Ok(WireMode::Unspecified) | Err(_) => None,
        };
        let mode = mode.or(admitted.webhook.settings.mode);
        let proof = Proof { signature: signature.to_vec(), body: body.clone(), peer };
        match self.runtime.memory.begin(key, &admitted.caller, mode, admitted.keep) {
            Begin::Refused(refusal) => {
                // Whoever sends what another one signed has proven nothing.
                record.proven = refusal != Refusal::ReplayedByAnother;
                refused(refusal)
            }
            // It is decided anew, and that is not remembered.
            Begin::Done(Outcome::Allow(allowed), began) if !still_holds(&allowed, &admitted, began, &self.runtime) => {
                let runtime = Arc::clone(&self.runtime);
                self.now_or_later(record, async move {
                    let decision = decide(&admitted, &proof, mode, &runtime).await;
                    (decision.outcome.clone(), Some(decision))
                })
            }
            Begin::Done(outcome, _) => {
                record.replayed = true;
                Step::Settled(outcome)
            }
            Begin::Running(outcome) => match Arc::clone(&self.waiting).try_acquire_owned() {
                Err(_) => refused(Refusal::Overloaded),
                Ok(permit) => {
                    record.replayed = true;
                    let runtime = Arc::clone(&self.runtime);
                    let waiting = async move {
                        let outcome = outcome.await.unwrap_or(Outcome::Refuse(Refusal::Internal));
                        (shared(outcome, &admitted, &proof, &runtime), None)
                    };
                    Step::Waits(Box::pin(waiting), permit)
                }
            },
            Begin::First(ticket) => {
                let runtime = Arc::clone(&self.runtime);
                self.now_or_later(record, async move {
                    let decision = decide(&admitted, &proof, mode, &runtime).await;
                    (ticket.finish(decision.outcome.clone()), Some(decision))
                })
            }
        }
    }

    /// A provider that has its answer in memory gives it at the first poll; any other is waited for.
    fn now_or_later(&self, record: &mut Record, evaluation: impl Future<Output = (Outcome, Option<Decision>)> + Send + 'static) -> Step {
        let mut evaluation = Box::pin(evaluation);
        match evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready((outcome, decision)) => {
                record.decision = decision;
                Step::Settled(outcome)
            }
            Poll::Pending => match Arc::clone(&self.waiting).try_acquire_owned() {
                Ok(permit) => Step::Waits(evaluation, permit),
                Err(_) => Step::Settled(Outcome::Refuse(Refusal::Overloaded)),
            },
        }
    }
}

/// What proves a request, for a second look: a secret or a caller may be taken back while providers are asked.
struct Proof {
    signature: Vec<u8>,
    body: Bytes,
    peer: Option<Arc<Peer>>,
}

async fn decide(admitted: &Admitted, proof: &Proof, mode: Option<Mode>, runtime: &Runtime) -> Decision {
    let explain = runtime.store.keeps_decisions();
    let decision = evaluate::decide(&admitted.webhook, admitted.identity.clone(), Some(&admitted.caller), mode, explain, runtime).await;
    match still_admitted(admitted, proof, runtime) {
        Ok(()) => decision,
        Err(refusal) => Decision::of(Outcome::Refuse(refusal)),
    }
}

/// Whether an allow for equal bytes, which `began` then, is one for this question: it is about the same device, and no lock, event
/// or reload since then takes it back.
fn still_holds(allowed: &Allowed, admitted: &Admitted, began: tokio::time::Instant, runtime: &Runtime) -> bool {
    let Admitted { webhook, identity, .. } = admitted;
    identity.as_ref().is_ok_and(|identity| allowed.is_for(identity))
        && webhook.plan.undisturbed(began, &runtime.locks)
        && allowed.holds(&webhook.plan, &runtime.locks)
}

/// What a question gets of the outcome of equal bytes: it may be signed by another secret, or be about another device by now.
fn shared(outcome: Outcome, admitted: &Admitted, proof: &Proof, runtime: &Runtime) -> Outcome {
    if let Err(refusal) = still_admitted(admitted, proof, runtime) {
        return Outcome::Refuse(refusal);
    }
    match &outcome {
        Outcome::Allow(allowed) if !admitted.identity.as_ref().is_ok_and(|identity| allowed.is_for(identity)) => {
            Outcome::Refuse(Refusal::ProviderUnavailable)
        }
        _ => outcome,
    }
}

fn still_admitted(admitted: &Admitted, proof: &Proof, runtime: &Runtime) -> Result<(), Refusal> {
    let request = Request { webhook_id: &admitted.webhook.id, signature: &proof.signature, body: &proof.body };
    evaluate::admit_again(&runtime.snapshot(), admitted, &request, proof.peer.as_deref())
}

/// An outcome as it goes to the filter.
fn answer(sequence: u64, binding: Vec<u8>, outcome: Outcome) -> Answer {
    let answer = |verdict: Verdict| Answer { sequence, binding, verdict: verdict.into(), ..Answer::default() };
    match outcome {
        Outcome::Allow(allowed) => Answer { data: Bytes::copy_from_slice(allowed.data().as_json().as_bytes()), ..answer(Verdict::Allow) },
        Outcome::Deny(denial) => {
            Answer { message: decide::message(&denial).into_owned(), code: denial.code.into_owned(), ..answer(Verdict::Deny) }
        }
        Outcome::Refuse(refusal) => Answer { code: refusal.as_str().to_owned(), ..answer(Verdict::Refuse) },
    }
}

/// What the filter must know of a snapshot. Its revision says what is in it, also to another process.
fn webhook_set(snapshot: &Snapshot) -> WebhookSet {
    let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
    let webhooks = snapshot.webhooks.values().map(|webhook| WebhookKeys {
        id: webhook.id.to_string(),
        secrets: webhook.secrets.iter().map(|secret| secret.expose().to_vec()).collect(),
        callers: match &webhook.settings.callers {
            Callers::Named(names) => names.iter().map(ToString::to_string).collect(),
            Callers::Anonymous | Callers::AnyVerified => Vec::new(),
        },
        authorizations: webhook.credentials.values().iter().map(|value| value.expose().to_vec()).collect(),
        unsigned: webhook.settings.unsigned,
        window_past_ms: millis(webhook.settings.window.past),
        window_future_ms: millis(webhook.settings.window.future),
        deadline_ms: millis(webhook.settings.deadline),
        body_limit: webhook.settings.body_limit,
        anonymous: webhook.settings.callers == Callers::Anonymous,
    });
    let set = WebhookSet { revision: 0, webhooks: webhooks.collect() };
    let digest: [u8; 32] = Sha256::digest(set.encode_to_vec()).into();
    let (first, _) = digest.split_first_chunk().unwrap_or((&[0; 8], &[]));
    WebhookSet { revision: u64::from_le_bytes(*first), ..set }
}

/// The revision of [`webhook_set`].
fn told(snapshot: &Snapshot) -> u64 {
    *snapshot.told.get_or_init(|| webhook_set(snapshot).revision)
}

/// A text that is only kept for the record, cut where no honest one is as long.
fn bounded(mut text: String) -> String {
    if text.len() > LONGEST_NOTE {
        text.truncate(text.floor_char_boundary(LONGEST_NOTE));
        text.shrink_to_fit();
    }
    text
}

/// Digest of the source, where the build says it.
const BUILD: &str = match option_env!("STEPWARD_BUILD") {
    Some(build) => build,
    None => "",
};

/// A draining stream ends once nothing has come in for this long.
const QUIET: Duration = Duration::from_millis(50);

/// Questions that may wait at once for a provider, or for the outcome of equal bytes, over all streams.
const WAITING: usize = 32_768;

/// Streams open at once; one process may have half. Envoy has up to 1,024 workers with one stream each, and two while they
/// change over.
pub(crate) const STREAMS: usize = 4096;

/// In bytes; a webhook id has at most as many.
const LONGEST_NOTE: usize = 256;

#[cfg(test)]
mod tests;
