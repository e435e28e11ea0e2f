//! gRPC service that Envoy's filter calls: `FilterService.Attach`.
//!
//! A stream is answered where it is read: the response is a [`Stream`] that takes the next question, judges it, and yields the
//! answer. So an ordinary question costs no task, no channel and no lock of its own, and a filter that does not read its answers
//! is not asked for more questions. A question that cannot be answered at once is finished in a task of its own.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
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
use tonic::{Response, Status, Streaming};

use crate::config::{Entrance, Role};
use crate::runtime::Runtime;
use crate::server::client::Guest;
use crate::server::roles;
use engine::decide::{self, Decision};
use engine::evaluate::{self, Admitted, Request};
use engine::gate::{Allowed, Outcome};
use engine::record::{Record, tell_clock};
use engine::replay::{Begin, Elsewhere, Key};
use engine::samples::Samples;
use engine::snapshot::Snapshot;

mod refusals;
mod seats;
mod workers;

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

/// Limits on log lines about streams, and about questions that nobody has proven.
#[derive(Debug, Default)]
struct Sampled {
    attached: Samples,
    silent: Samples,
    unproven: Samples,
}

impl Filters {
    /// Makes the service. Its streams are told to drain once `drain` turns true.
    pub fn new(runtime: Arc<Runtime>, drain: watch::Receiver<bool>) -> Self {
        let (seats, waiting) = (Seats::new(STREAMS, STREAMS / 2), Arc::new(Semaphore::new(WAITING)));
        Self { runtime, drain, workers: Arc::default(), seats, waiting, samples: Arc::default() }
    }
}

#[tonic::async_trait]
impl FilterService for Filters {
    type AttachStream = Attached<Streaming<FilterMessage>>;

    async fn attach(&self, request: tonic::Request<Streaming<FilterMessage>>) -> Result<Response<Self::AttachStream>, Status> {
        let (guest, holder) = (request.extensions().get::<Arc<Guest>>().cloned(), Holder::of(request.extensions()));
        let far = guest.map(|guest| Far { guest, until: Box::pin(tokio::time::sleep(life())) });
        Ok(Response::new(Attached::new(self, request.into_inner(), holder, far)))
    }
}

/// Stream of one filter: it reads the filter's messages, and yields those of the sidecar.
pub struct Attached<I> {
    questions: I,
    judge: Judge,
    finished: mpsc::UnboundedReceiver<(Answer, OwnedSemaphorePermit)>,
    revisions: WatchStream<u64>,
    drains: WatchStream<bool>,
    /// Number of questions that tasks are still answering.
    outstanding: usize,
    said_hello: bool,
    /// Revision of the snapshot that the filter was sent last.
    told: Option<u64>,
    ending: Ending,
    presence: Presence,
    /// Present where the filter is on another machine.
    far: Option<Far>,
}

/// The Envoy at the other end of a stream over TCP.
struct Far {
    guest: Arc<Guest>,
    /// Moment at which the stream drains. The filter's next stream goes to Envoy's next sidecar, so that one that was started
    /// again gets its share.
    until: Pin<Box<tokio::time::Sleep>>,
}

/// Stage of a stream on its way to its end.
enum Ending {
    /// The stream goes on.
    Open,
    /// A drain was sent: messages are still answered until none has come for [`QUIET`].
    Draining(Pin<Box<tokio::time::Sleep>>),
    /// The filter sends no more; outstanding questions are still answered.
    Answering,
    /// The stream has ended.
    Over,
}

impl<I: Stream<Item = Result<FilterMessage, Status>> + Unpin> Attached<I> {
    fn new(filters: &Filters, questions: I, holder: Holder, far: Option<Far>) -> Self {
        let (sender, finished) = mpsc::unbounded_channel();
        let seat = filters.seats.take(holder.clone());
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
            presence: Presence::new(Arc::clone(&runtime.engine.metrics), Arc::clone(&filters.workers), holder),
            judge: Judge { runtime, waiting: Arc::clone(&filters.waiting), samples: Arc::clone(&filters.samples), seat, sender },
            far,
        }
    }

    /// Checks that the Envoy still has the role by which it attached: a reload may have taken it.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`, with what is wanting.
    fn is_let_in(&self) -> Result<(), Status> {
        self.far.as_ref().map_or(Ok(()), |far| roles::may(&self.judge.runtime, Entrance::Filter, &far.guest, Role::Filter))
    }

    fn drain(&mut self) -> ToFilter {
        self.ending = Ending::Draining(Box::pin(tokio::time::sleep(QUIET)));
        ToFilter::Drain(Drain {})
    }

    /// Returns the next message that does not wait for one of the filter's: the hello, new webhooks, a drain, or the answer of a
    /// task.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` where the Envoy has lost its role: it is told no key any more.
    fn poll_news(&mut self, context: &mut Context<'_>) -> Result<Option<ToFilter>, Status> {
        if !self.said_hello {
            self.said_hello = true;
            let (version, build) = (env!("CARGO_PKG_VERSION").to_owned(), BUILD.to_owned());
            return Ok(Some(ToFilter::Hello(SidecarHello { version, build, name: MACHINE.clone() })));
        }
        while let Poll::Ready(Some(_)) = self.revisions.poll_next_unpin(context) {
            self.is_let_in()?;
            let snapshot = self.judge.runtime.snapshot();
            if self.told < Some(snapshot.revision) {
                self.told = Some(snapshot.revision);
                return Ok(Some(ToFilter::Webhooks(webhook_set(&snapshot))));
            }
        }
        while let Poll::Ready(Some(draining)) = self.drains.poll_next_unpin(context) {
            if draining && matches!(self.ending, Ending::Open) {
                return Ok(Some(self.drain()));
            }
        }
        if let Some(far) = &mut self.far
            && matches!(self.ending, Ending::Open)
            && far.until.as_mut().poll(context).is_ready()
        {
            return Ok(Some(self.drain()));
        }
        if let Poll::Ready(Some((answer, _waited))) = self.finished.poll_recv(context) {
            self.outstanding = self.outstanding.saturating_sub(1);
            return Ok(Some(ToFilter::Answer(answer)));
        }
        Ok(None)
    }

    fn take(&mut self, message: FilterMessage) -> Option<ToFilter> {
        if let Ending::Draining(quiet) = &mut self.ending {
            quiet.as_mut().reset(tokio::time::Instant::now() + QUIET);
        }
        self.presence.heard();
        match message.message {
            Some(FromFilter::Hello(hello)) => {
                // Only the first hello counts: a second one would be another log line, and another name.
                if !self.presence.is_named() {
                    if let Some(left_out) = self.judge.samples.attached.admits(Instant::now()) {
                        let (version, build) = (bounded(hello.version), bounded(hello.build));
                        let envoy = self.far.as_ref().map(|far| far.guest.shown());
                        tracing::info!(vm = format_args!("{:016x}", hello.vm), version, build, envoy, left_out, "filter attached");
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
            // A message of a kind that only later releases know.
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
            match this.poll_news(context) {
                Ok(Some(news)) => return say(news),
                Ok(None) => {}
                Err(status) => {
                    this.ending = Ending::Over;
                    return Poll::Ready(Some(Err(status)));
                }
            }
            if let Some(vm) = this.presence.poll_silence(context)
                && let Some(left_out) = this.judge.samples.silent.admits(Instant::now())
            {
                tracing::warn!(
                    vm = format_args!("{vm:016x}"),
                    envoy = this.far.as_ref().map(|far| far.guest.shown()),
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
    /// Answers of tasks on their way to the stream. The channel is as good as bounded: each answer in it holds a permit of
    /// `waiting`.
    sender: mpsc::UnboundedSender<(Answer, OwnedSemaphorePermit)>,
}

/// A question that was judged, or is still being judged.
enum Step {
    Settled(Outcome),
    /// The evaluation, and the permit to wait for it.
    Waits(BoxFuture<'static, Judged>, OwnedSemaphorePermit),
}

/// The outcome of a question, and how it came about.
struct Judged {
    outcome: Outcome,
    /// The decision, where it was made for this question.
    decision: Option<Decision>,
    /// Whether the outcome is that of equal bytes which came before.
    replayed: bool,
}

impl Judged {
    /// The outcome of a decision that was made for this question.
    fn of(decision: Decision) -> Self {
        Self { outcome: decision.outcome.clone(), decision: Some(decision), replayed: false }
    }

    /// The outcome of equal bytes.
    const fn replayed(outcome: Outcome) -> Self {
        Self { outcome, decision: None, replayed: true }
    }

    /// A refusal for which nothing was decided.
    const fn refused(refusal: Refusal) -> Self {
        Self { outcome: Outcome::Refuse(refusal), decision: None, replayed: false }
    }

    /// Notes in the record of the question how its outcome came about, and returns the outcome.
    fn note(self, record: &mut Record) -> Outcome {
        let Self { outcome, decision, replayed } = self;
        let by_another = matches!(outcome, Outcome::Refuse(Refusal::ReplayedByAnother));
        (record.decision, record.replayed) = (decision, replayed && !by_another);
        if by_another {
            // A caller that sends what another one signed has proven nothing.
            record.proven = false;
        }
        outcome
    }
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
                record.write(&self.runtime.engine, &outcome, &self.samples.unproven);
                Some(answer(sequence, binding, outcome))
            }
            Step::Waits(outcome, permit) => {
                let sender = self.sender.clone();
                let (runtime, samples) = (Arc::clone(&self.runtime), Arc::clone(&self.samples));
                tokio::spawn(async move {
                    let judged = AssertUnwindSafe(outcome).catch_unwind().await;
                    let judged = judged.unwrap_or_else(|_| Judged::refused(Refusal::Internal));
                    let outcome = judged.note(&mut record);
                    record.write(&runtime.engine, &outcome, &samples.unproven);
                    // The send fails where the stream has gone: the filter asks again on its next one, and finds the outcome.
                    let _ = sender.send((answer(sequence, binding, outcome), permit));
                });
                None
            }
        }
    }

    /// Counts the clock skew of callers whose requests the filter refused by their timestamps; unknown webhooks are left out.
    fn tell_clocks(&self, report: &Report) {
        let (snapshot, now) = (self.runtime.snapshot(), Instant::now());
        for skew in report.skews.iter().take(snapshot.webhooks.len()) {
            if let Some(webhook) = snapshot.webhooks.get(&*skew.webhook_id) {
                tell_clock(webhook, skew.ahead_nanos.saturating_neg(), &self.runtime.engine.metrics, now);
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
            peer = self.runtime.engine.peers.read(peer_certificate);
            peer.clone()
        };
        let snapshot = self.runtime.snapshot();
        let admitted = evaluate::admit(&snapshot, &request, read, now, record);
        let digest: Option<[u8; 32]> = record.proven.then(|| Sha256::digest(body).into());
        if let Some(digest) = digest.as_ref().filter(|_| self.runtime.engine.store.keeps_decisions()) {
            record.digest = hex::encode(digest);
        }
        let key = digest.map(|digest| Key::of_digest(&webhook_id, &digest));
        record.webhook_id = bounded(webhook_id);
        let (admitted, key) = match (admitted, key) {
            (Ok(admitted), Some(key)) => (admitted, key),
            // Only a proven request is admitted, so this is refused for safety alone.
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
        let proof = Proof { signature: signature.to_vec(), body: body.clone(), peer, came: tokio::time::Instant::now() };
        match self.runtime.engine.memory.begin(key, &admitted.caller, mode, admitted.keep) {
            Begin::Refused(refusal) => Step::Settled(Judged::refused(refusal).note(record)),
            // The remembered allow holds no longer: the question is decided anew, and the new outcome is not remembered.
            Begin::Done(Outcome::Allow(allowed), began) if !still_holds(&allowed, &admitted, began, &self.runtime) => {
                let runtime = Arc::clone(&self.runtime);
                self.now_or_later(record, async move { Judged::of(decide(&admitted, &proof, mode, &runtime).await) })
            }
            Begin::Done(outcome, _) => Step::Settled(Judged::replayed(outcome).note(record)),
            Begin::Running(outcome) => match Arc::clone(&self.waiting).try_acquire_owned() {
                Err(_) => refused(Refusal::Overloaded),
                Ok(permit) => {
                    let runtime = Arc::clone(&self.runtime);
                    let waiting = async move {
                        let outcome = outcome.await.unwrap_or(Outcome::Refuse(Refusal::Internal));
                        Judged::replayed(shared(outcome, &admitted, &proof, &runtime))
                    };
                    Step::Waits(Box::pin(waiting), permit)
                }
            },
            Begin::First(ticket) if !self.runtime.engine.shares_replay() => {
                let runtime = Arc::clone(&self.runtime);
                self.now_or_later(record, async move {
                    let decision = decide(&admitted, &proof, mode, &runtime).await;
                    Judged { outcome: ticket.finish(decision.outcome.clone()), ..Judged::of(decision) }
                })
            }
            // What is claimed has to be decided, so there has to be room for it first.
            Begin::First(ticket) => {
                let Ok(permit) = Arc::clone(&self.waiting).try_acquire_owned() else { return refused(Refusal::Overloaded) };
                let runtime = Arc::clone(&self.runtime);
                let evaluation = async move {
                    let engine = &runtime.engine;
                    match engine.elsewhere(&ticket, &admitted.webhook, (&admitted.caller, mode), admitted.keep).await {
                        Elsewhere::Another => Judged::replayed(ticket.forget(Refusal::ReplayedByAnother)),
                        Elsewhere::Denied(denial) => {
                            Judged::replayed(ticket.finish(shared(Outcome::Deny(denial), &admitted, &proof, &runtime)))
                        }
                        Elsewhere::Nobody => {
                            let decision = decide(&admitted, &proof, mode, &runtime).await;
                            ticket.tell(&engine.store, &decision.outcome);
                            Judged { outcome: ticket.finish(decision.outcome.clone()), ..Judged::of(decision) }
                        }
                    }
                };
                Step::Waits(Box::pin(evaluation), permit)
            }
        }
    }

    /// Polls an evaluation once: a provider that has its answer in memory gives it now; any other is waited for.
    fn now_or_later(&self, record: &mut Record, evaluation: impl Future<Output = Judged> + Send + 'static) -> Step {
        let mut evaluation = Box::pin(evaluation);
        match evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(judged) => Step::Settled(judged.note(record)),
            Poll::Pending => match Arc::clone(&self.waiting).try_acquire_owned() {
                Ok(permit) => Step::Waits(evaluation, permit),
                Err(_) => Step::Settled(Outcome::Refuse(Refusal::Overloaded)),
            },
        }
    }
}

/// Proof of a request, kept for a second check: a secret or a caller may be taken back while providers are asked.
struct Proof {
    signature: Vec<u8>,
    body: Bytes,
    peer: Option<Arc<Peer>>,
    /// Moment at which the request came: it may wait for what other services say before it is decided.
    came: tokio::time::Instant,
}

async fn decide(admitted: &Admitted, proof: &Proof, mode: Option<Mode>, runtime: &Runtime) -> Decision {
    let explain = runtime.engine.store.keeps_decisions();
    let Admitted { webhook, identity, caller, .. } = admitted;
    let decision = evaluate::decide(webhook, identity.clone(), Some(caller), mode, explain, proof.came, &runtime.engine).await;
    match still_admitted(admitted, proof, runtime) {
        Ok(()) => decision,
        Err(refusal) => Decision::of(Outcome::Refuse(refusal)),
    }
}

/// Returns whether the remembered allow for equal bytes, whose decision began at `began`, holds for this question: it is about the
/// same device, and no lock, event or reload since then takes it back.
fn still_holds(allowed: &Allowed, admitted: &Admitted, began: tokio::time::Instant, runtime: &Runtime) -> bool {
    let Admitted { webhook, identity, .. } = admitted;
    identity.as_ref().is_ok_and(|identity| allowed.is_for(identity))
        && webhook.plan.undisturbed(began, &runtime.engine.locks)
        && allowed.holds(&webhook.plan, &runtime.engine.locks)
}

/// Makes the outcome of a question from that of equal bytes: the question may be signed by another secret, or be about another
/// device by now.
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

/// Makes the filter's answer from an outcome.
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

/// Makes the filter's view of a snapshot. Its revision is a digest of the content, so it means the same to another process.
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

/// Returns the revision of [`webhook_set`], computed once for each snapshot.
fn told(snapshot: &Snapshot) -> u64 {
    *snapshot.told.get_or_init(|| webhook_set(snapshot).revision)
}

/// Cuts a text that is only kept for the record; no honest one is as long.
fn bounded(mut text: String) -> String {
    if text.len() > LONGEST_NOTE {
        text.truncate(text.floor_char_boundary(LONGEST_NOTE));
        text.shrink_to_fit();
    }
    text
}

/// Digest of the source that the build passes in `STEPWARD_BUILD`; empty without it.
const BUILD: &str = match option_env!("STEPWARD_BUILD") {
    Some(build) => build,
    None => "",
};

/// Name of this machine, by which filters say in Envoy's log which sidecar they mean.
static MACHINE: LazyLock<String> =
    LazyLock::new(|| nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default());

/// Returns how long a stream over TCP goes on, by chance between half of [`STREAM`] and all of it, so that the workers of an Envoy
/// do not all move at once.
fn life() -> Duration {
    STREAM.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// Longest time of a stream over TCP.
pub(crate) const STREAM: Duration = Duration::from_secs(600);

/// Silence after which a draining stream ends.
const QUIET: Duration = Duration::from_millis(50);

/// Largest number of questions that wait at once for a provider, or for the outcome of equal bytes, over all streams.
const WAITING: usize = 32_768;

/// Largest number of streams open at once; one process may have half. Envoy has up to 1,024 workers with one stream each, and two
/// while they change over.
pub(crate) const STREAMS: usize = 4096;

/// Longest text for the record, in bytes; a webhook id has at most as many.
const LONGEST_NOTE: usize = 256;

#[cfg(test)]
mod tests;
