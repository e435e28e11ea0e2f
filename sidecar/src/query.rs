//! gRPC service for programs that ask about devices: `PostureService`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, FuturesUnordered, Stream, StreamExt as _};
use inventory::{Answer, AnswerKind, Question, Way};
use posture::identity::{DeviceId, IdentifierKind, Identity, Trust};
use posture::outcome::{Denial, Refusal};
use posture::policy::RequestKind;
use posture::record::Fields;
use prost::Message as _;
use proto::v1::posture_service_server::PostureService;
use proto::v1::{
    BatchCheckRequest, BatchCheckResponse, CheckRequest, CheckResponse, CheckResult, Decision as Verdict, LookupRequest, LookupResponse,
    Outcome, ProviderAnswer, WatchRequest, WatchResponse,
};
use settings::words::no_such;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::calls::{LONGEST, deadline, drained};
use crate::config::{Entrance, Role};
use crate::runtime::Runtime;
use crate::server::client::{Client, Guest};
use crate::server::quota::{Kept, Load, Quota, Taken};
use crate::server::roles;
use engine::cache::{Looked, Terms};
use engine::decide::{self, Asker, Decision};
use engine::gate::{Allowed, Outcome as Decided};
use engine::metrics::{ProviderLabels, Word};
use engine::provider::Provider;

/// The service on `query.sock`.
#[derive(Debug)]
pub struct Posture {
    runtime: Arc<Runtime>,
    drain: watch::Receiver<bool>,
    batches: Arc<Quota>,
    watches: Arc<Quota>,
}

impl Posture {
    /// Makes the service, which answers from the runtime's providers and policies. Its watches end once `drain` turns true.
    pub fn new(runtime: Arc<Runtime>, drain: watch::Receiver<bool>) -> Self {
        let batches = Quota::new("batches", BATCHES, BATCHES_OF_ONE);
        Self { runtime, drain, batches, watches: Quota::new("watches", WATCHES, WATCHES_OF_ONE) }
    }
}

#[tonic::async_trait]
impl PostureService for Posture {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn lookup(&self, request: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        let deadline = deadline(&request);
        let LookupRequest { identifier, identifier_kind, providers } = request.into_inner();
        let kind = kind(&identifier_kind)?;
        let snapshot = self.runtime.snapshot();
        let mut asked: Vec<(&Arc<str>, &Arc<dyn Provider>)> = Vec::new();
        if providers.is_empty() {
            asked.extend(&snapshot.providers);
        }
        for name in &providers {
            let found = snapshot.providers.get_key_value(name.as_str());
            let found = found.ok_or_else(|| Status::not_found(snapshot.no_provider(name)))?;
            // Each provider is asked once, however often it is named.
            if !asked.iter().any(|(known, _)| *known == found.0) {
                asked.push(found);
            }
        }
        // The list may be long, and must not be held while providers take their time.
        drop(providers);
        let device = snapshot.placeholders.device(kind, &identifier);
        let mut answers = Vec::with_capacity(asked.len());
        for (name, provider) in asked {
            tokio::task::consume_budget().await;
            let looked = match &device {
                Ok(device) => {
                    let question = Question { device: device.clone(), need: Fields::NONE, hint: None, deadline, way: Way::Query };
                    provider.lookup(&question, Terms::default()).await
                }
                Err(_) => Looked::live(Answer::InvalidIdentifier),
            };
            let labels = ProviderLabels { provider: Word(Arc::clone(name)), outcome: looked.answer.kind().as_str() };
            self.runtime.engine.metrics.provider_requests.get_or_create(&labels).inc();
            answers.push(told(name, looked));
        }
        Ok(Response::new(LookupResponse { answers }))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let asked = Asked::new(&self.runtime, &request)?;
        let (answer, ..) = asked.answer(&self.runtime, deadline).await;
        Ok(Response::new(answer))
    }

    async fn batch_check(&self, request: Request<BatchCheckRequest>) -> Result<Response<BatchCheckResponse>, Status> {
        let deadline = deadline(&request);
        let client = Client::of(request.extensions());
        let checks = request.into_inner().checks;
        let asked = many(&self.runtime, &checks)?;
        let taken = self.batches.take(client, load(&checks))?;
        drop(checks);
        let results = together(&self.runtime, asked, deadline).await;
        let mut response = Response::new(BatchCheckResponse { results });
        // The batch keeps its place in the quota until its answer was read.
        response.extensions_mut().insert(Kept::new(taken));
        Ok(response)
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let guest = request.extensions().get::<Arc<Guest>>().cloned();
        let client = Client::of(request.extensions());
        let mut checks = request.into_inner().checks;
        // Explanations have ages, which differ at each look and are no news.
        checks.iter_mut().for_each(|check| check.explain = false);
        // A wrong request is refused at once, not in the stream.
        many(&self.runtime, &checks)?;
        let taken = self.watches.take(client, load(&checks))?;
        let (runtime, said) = (Arc::clone(&self.runtime), vec![None; checks.len()]);
        let looks = vec![false; checks.len()];
        let watching = Watching {
            runtime,
            guest,
            said,
            checks,
            due: VecDeque::new(),
            looking: FuturesUnordered::new(),
            looks,
            round: None,
            _taken: taken,
        };
        // A watch has no end of its own, and must not hold up the end of the service.
        let until = drained(self.drain.clone());
        Ok(Response::new(Box::pin(stream::unfold(watching, Watching::next).take_until(until))))
    }
}

/// A check as it was asked for: one device under one policy.
struct Asked {
    policy: String,
    device: Result<DeviceId, Denial>,
    explain: bool,
}

impl Asked {
    fn new(runtime: &Runtime, request: &CheckRequest) -> Result<Self, Status> {
        let (policy, snapshot) = (request.policy.clone(), runtime.snapshot());
        if !snapshot.plans.contains_key(policy.as_str()) {
            let known: Vec<&str> = snapshot.plans.keys().map(|name| &**name).collect();
            return Err(Status::not_found(no_such("policy", &policy, &known)));
        }
        let device = snapshot.placeholders.device(kind(&request.identifier_kind)?, &request.identifier);
        Ok(Self { policy, device, explain: request.explain })
    }

    /// Decides the check. Returns the answer, whether it is an allow by an exemption alone, and the moment until which every lock,
    /// event and reload is heeded.
    async fn answer(&self, runtime: &Runtime, deadline: Instant) -> (CheckResponse, bool, Instant) {
        // A thousand checks with their answers in memory would hold up everybody else.
        tokio::task::consume_budget().await;
        let device = match &self.device {
            Ok(device) => device.clone(),
            Err(denial) => return (denied(denial), false, Instant::now()),
        };
        // Nothing in a question proves that the asker is the device.
        let identity = Identity { device, trust: Trust::Claimed };
        let asker = Asker { identity, kind: RequestKind::Query, webhook: None, caller: None, hint: None, deadline, explain: self.explain };
        let device = asker.identity.device.clone();
        let plan = || runtime.snapshot().plan_for(&self.policy, &device);
        let began = Instant::now();
        let decision = decide::decide(plan, &asker, &runtime.engine.locks, &runtime.engine.metrics).await;
        let (heeded, allowed) = (Instant::now(), if let Decided::Allow(allowed) = &decision.outcome { Some(allowed) } else { None });
        let exempted = allowed.is_some_and(Allowed::is_exempted);
        // A lock may have come between the decision and this moment.
        let heeded = if allowed.is_none_or(|allowed| allowed.stands(&runtime.engine.locks)) { heeded } else { began };
        (response(decision, self.explain), exempted, heeded)
    }
}

/// Answers a batch, in its order. The first answers wait for the slowest one, so an allow is decided anew, from memory for the
/// most part, where it is older than [`LOOK`], or where a lock, an event or a reload came since. An allow that still does not
/// stand after [`ROUNDS`] rounds is refused.
async fn together(runtime: &Arc<Runtime>, asked: Vec<Asked>, deadline: Instant) -> Vec<CheckResponse> {
    let asked: Vec<_> = asked.into_iter().map(Arc::new).collect();
    let mut answers = vec![(CheckResponse::default(), Instant::now(), 0); asked.len()];
    let mut open: Vec<usize> = (0..asked.len()).collect();
    for _ in 0..ROUNDS {
        let asking = open.iter().filter_map(|number| Some((*number, Arc::clone(asked.get(*number)?), Arc::clone(runtime))));
        let asking: Vec<_> = asking
            .map(|(number, asked, runtime)| async move {
                // The revision is taken before the decision, so that a reload in between is noticed.
                let revision = runtime.snapshot().revision;
                let (answer, _, heeded) = asked.answer(&runtime, deadline).await;
                (number, (answer, heeded, revision))
            })
            .collect();
        let mut answered = stream::iter(asking).buffer_unordered(AT_ONCE);
        while let Some((number, answer)) = answered.next().await {
            if let Some(place) = answers.get_mut(number) {
                *place = answer;
            }
        }
        let snapshot = runtime.snapshot();
        let quiet = |policy: &str, since| snapshot.plans.get(policy).is_some_and(|plan| plan.undisturbed(since, &runtime.engine.locks));
        let stands = |asked: &Asked, (answer, decided, revision): &(CheckResponse, Instant, u64)| {
            answer.decision() != Verdict::Allow
                || (decided.elapsed() < LOOK && *revision == snapshot.revision && quiet(&asked.policy, *decided))
        };
        let standing = asked.iter().zip(&answers).map(|(asked, answer)| stands(asked, answer));
        open = standing.enumerate().filter_map(|(number, stands)| (!stands).then_some(number)).collect();
        if open.is_empty() {
            break;
        }
    }
    for number in open {
        if let Some((answer, ..)) = answers.get_mut(number) {
            *answer = response(Decision::of(Decided::Refuse(Refusal::ProviderUnavailable)), false);
        }
    }
    answers.into_iter().map(|(answer, ..)| answer).collect()
}

/// State of a watch: the first answer about every device, and then each answer that differs from the one before.
struct Watching {
    runtime: Arc<Runtime>,
    /// Client that watches over TCP; it needs the role `watch` all the while.
    guest: Option<Arc<Guest>>,
    checks: Vec<CheckRequest>,
    /// Last answer sent for each check.
    said: Vec<Option<Said>>,
    /// Numbers of the checks still to look at in this round.
    due: VecDeque<usize>,
    /// Looks under way: one whose provider takes its time holds no other one up.
    looking: FuturesUnordered<BoxFuture<'static, (usize, Look)>>,
    /// For each check, whether a look at it is under way.
    looks: Vec<bool>,
    /// Start of the round.
    round: Option<Instant>,
    _taken: Taken,
}

/// Last answer sent about a device.
#[derive(Clone, Copy)]
struct Said {
    /// SHA-256 of the answer: answers may be long, and there are many.
    digest: [u8; 32],
    /// Whether the answer was an allow by an exemption alone, which ends even while no provider can say anything of the device.
    exempted: bool,
    /// Start of the time in which no answer about the device can be had.
    silent: Option<Instant>,
}

impl Watching {
    async fn next(mut self) -> Option<(Result<WatchResponse, Status>, Self)> {
        loop {
            let next_round = self.round.map(|last| last + LOOK);
            if next_round.is_none_or(|at| Instant::now() >= at && self.due.is_empty()) {
                self.round = Some(Instant::now());
                self.due = self.looks.iter().enumerate().filter_map(|(number, looks)| (!looks).then_some(number)).collect();
                if let Some(Err(status)) = self.guest.as_ref().map(|guest| roles::may(&self.runtime, Entrance::Query, guest, Role::Watch)) {
                    return Some((Err(status), self));
                }
            }
            while self.looking.len() < AT_ONCE
                && let Some(number) = self.due.pop_front()
            {
                self.look(number);
            }
            let round = self.round.unwrap_or_else(Instant::now) + LOOK;
            let (number, look) = tokio::select! {
                Some(looked) = self.looking.next() => looked,
                () = tokio::time::sleep_until(round), if self.due.is_empty() => continue,
            };
            if let Some(looks) = self.looks.get_mut(number) {
                *looks = false;
            }
            let (response, exempted) = match look {
                Ok(looked) => looked,
                // A reload removed the policy.
                Err(status) => return Some((Err(status), self)),
            };
            // One answer is sent before the next is taken, so that no more than one waits for a client that reads slowly.
            if let Some(response) = self.news(number, response, exempted) {
                return Some((Ok(response), self));
            }
        }
    }

    fn look(&mut self, number: usize) {
        let Some(check) = self.checks.get(number) else { return };
        if let Some(looks) = self.looks.get_mut(number) {
            *looks = true;
        }
        let (asked, runtime) = (Asked::new(&self.runtime, check), Arc::clone(&self.runtime));
        self.looking.push(Box::pin(async move {
            let asked = match asked {
                Ok(asked) => asked,
                Err(status) => return (number, Err(status)),
            };
            let (answer, exempted, _) = asked.answer(&runtime, Instant::now() + LONGEST).await;
            (number, Ok((answer, exempted)))
        }));
    }

    /// Makes the message about a device, if its answer is another one than before.
    fn news(&mut self, number: usize, response: CheckResponse, exempted: bool) -> Option<WatchResponse> {
        let said = self.said.get_mut(number)?;
        let digest: [u8; 32] = Sha256::digest(response.encode_to_vec()).into();
        if let Some(said) = said.as_mut() {
            // An unavailable answer is no change of the device until it has lasted for `SILENCE`.
            let since = (response.decision() == Verdict::Unavailable).then(|| said.silent.unwrap_or_else(Instant::now));
            said.silent = since;
            // Where a lock of another service may be unknown, no allow lasts.
            let is_hushed = !said.exempted && !self.runtime.engine.locks.are_stale();
            if since.is_some_and(|since| is_hushed && since.elapsed() < SILENCE) {
                return None;
            }
        }
        if said.is_some_and(|said| said.digest == digest) {
            return None;
        }
        *said = Some(Said { digest, exempted, silent: None });
        Some(WatchResponse { number: u32::try_from(number).unwrap_or(u32::MAX), result: Some(response) })
    }
}

/// Result of a look: the answer, and whether it is an allow by an exemption alone; or the status that ends the watch.
type Look = Result<(CheckResponse, bool), Status>;

/// Returns the share of a quota that checks take while they are under way.
fn load(checks: &[CheckRequest]) -> Load {
    let kept = |check: &CheckRequest| {
        size_of::<CheckRequest>() + size_of::<Option<Said>>() + check.policy.len() + check.identifier.len() + check.identifier_kind.len()
    };
    Load { calls: 1, checks: checks.len(), bytes: checks.iter().map(kept).sum() }
}

fn many(runtime: &Runtime, checks: &[CheckRequest]) -> Result<Vec<Asked>, Status> {
    if checks.len() > MOST {
        return Err(Status::invalid_argument(format!("{} checks at once; at most {MOST} can be", checks.len())));
    }
    checks.iter().map(|check| Asked::new(runtime, check)).collect()
}

fn kind(text: &str) -> Result<IdentifierKind, Status> {
    match text {
        "" => Ok(IdentifierKind::Serial),
        kind => kind.parse().map_err(|error| Status::invalid_argument(format!("{error}"))),
    }
}

fn response(decision: Decision, explain: bool) -> CheckResponse {
    let mut response = match &decision.outcome {
        Decided::Allow(allowed) => {
            CheckResponse { decision: Verdict::Allow.into(), data: allowed.data().as_json().to_owned(), ..CheckResponse::default() }
        }
        Decided::Deny(denial) => denied(denial),
        Decided::Refuse(refusal) => {
            let (_, code, message) = posture::reply::public(*refusal);
            let (code, message) = (code.to_owned(), message.to_owned());
            CheckResponse { decision: Verdict::Unavailable.into(), code, message, ..CheckResponse::default() }
        }
    };
    if explain {
        response.checks = decision
            .checks
            .into_iter()
            .map(|check| CheckResult {
                result: match &check.denial {
                    None => "pass",
                    Some(denial) if denial.code == Denial::POSTURE_UNKNOWN.code => "unknown",
                    Some(denial) if denial.code == Denial::POLICY_ERROR.code => "error",
                    Some(_) => "deny",
                }
                .to_owned(),
                inputs: check.inputs(),
                code: check.name.as_ref().to_owned(),
                wanted: check.wanted.as_ref().map(ToString::to_string).unwrap_or_default(),
                expression: check.expression.as_deref().unwrap_or_default().to_owned(),
                denial: check.denial.map(|denial| denial.code.into_owned()).unwrap_or_default(),
                detail: check.detail.unwrap_or_default(),
            })
            .collect();
        response.answers = decision.asked.iter().map(explained).collect();
    }
    response
}

fn denied(denial: &Denial) -> CheckResponse {
    CheckResponse {
        decision: Verdict::Deny.into(),
        code: denial.code.clone().into_owned(),
        message: denial.message.clone().into_owned(),
        remediation_url: denial.remediation_url.clone().unwrap_or_default().into_owned(),
        ..CheckResponse::default()
    }
}

fn explained(asked: &decide::Asked) -> ProviderAnswer {
    let outcome = match asked.outcome {
        AnswerKind::Found => Outcome::Found,
        AnswerKind::NotFound => Outcome::NotFound,
        AnswerKind::Ambiguous => Outcome::Ambiguous,
        AnswerKind::InvalidIdentifier => Outcome::InvalidIdentifier,
        AnswerKind::Unavailable => Outcome::Unavailable,
    };
    ProviderAnswer {
        provider: asked.provider.to_string(),
        outcome: outcome.into(),
        source: asked.source.as_str().to_owned(),
        age_ms: asked.age.map_or(0, millis),
        ..ProviderAnswer::default()
    }
}

fn told(provider: &str, looked: Looked) -> ProviderAnswer {
    let told = |outcome: Outcome, detail: &str| ProviderAnswer {
        provider: provider.to_owned(),
        outcome: outcome.into(),
        data: String::new(),
        detail: detail.to_owned(),
        source: looked.source.as_str().to_owned(),
        age_ms: looked.age.map_or(0, millis),
    };
    match looked.answer {
        Answer::Found(record) => {
            let data = posture::policy::default_data(&record, false).map_or_else(|_| "{}".to_owned(), |data| data.as_json().to_owned());
            ProviderAnswer { data, ..told(Outcome::Found, "") }
        }
        Answer::NotFound => told(Outcome::NotFound, "no record has this identifier"),
        Answer::Ambiguous => told(Outcome::Ambiguous, "more than one record has this identifier"),
        Answer::Unavailable(why) => told(Outcome::Unavailable, why.text()),
        Answer::InvalidIdentifier => {
            told(Outcome::InvalidIdentifier, "no device can have this identifier, or this provider has none of its kind: name the kind")
        }
    }
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

/// Largest number of devices in one request.
const MOST: usize = 1000;

/// Bounds on batches under way, of all clients and then of one. The answer to a check has at most
/// [`posture::policy::LARGEST_DATA`] of data.
const BATCHES: Load = Load { calls: 64, checks: 8 * MOST, bytes: 8 << 20 };
const BATCHES_OF_ONE: Load = Load { calls: 32, checks: 4 * MOST, bytes: 4 << 20 };

/// Bounds on watches under way, of all clients and then of one. A device is looked at every second, in memory where there is no
/// news.
const WATCHES: Load = Load { calls: 512, checks: 20 * MOST, bytes: 16 << 20 };
const WATCHES_OF_ONE: Load = Load { calls: 128, checks: 5 * MOST, bytes: 4 << 20 };

/// Largest number of devices of one batch or watch that are asked for at once.
const AT_ONCE: usize = 64;

/// Rounds in which a batch is decided: after the first, only the allows that did not hold until the whole batch was answered.
const ROUNDS: usize = 3;

/// Time between two looks at a watched device. A lock, an event or a reload shows within this.
const LOOK: Duration = Duration::from_secs(1);

/// Time for which a watch lets its last answer stand while no new one can be had.
const SILENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use settings::Environment;

    use super::*;
    use crate::fixture;
    use crate::runtime::Configured;
    use engine::locks::Which;
    use engine::provider::Provider;
    use engine::provider::scripted::Scripted;
    use store::{Ruling, RulingKind};

    /// Makes a service with the demo's device and one policy, and the sender that makes it drain.
    fn posture(folder: &std::path::Path) -> (Posture, watch::Sender<bool>) {
        posture_with(folder, &BTreeMap::new())
    }

    /// Makes the service of [`posture()`] with other providers in the place of the demo's.
    fn posture_with(folder: &std::path::Path, providers: &BTreeMap<Arc<str>, Arc<dyn Provider>>) -> (Posture, watch::Sender<bool>) {
        let demo = folder.join("demo");
        fixture::make(&demo);
        let settings = demo.join("stepward.toml");
        let policy = "\n[policy.staff]\nproviders = [\"staff\"]\n";
        std::fs::write(&settings, std::fs::read_to_string(&settings).unwrap() + policy).unwrap();
        let source = Box::new(Configured::new(Some(settings), Environment::new(demo)));
        let runtime = Runtime::start_with(source, Arc::default(), providers).unwrap();
        let (draining, drain) = watch::channel(false);
        (Posture::new(Arc::new(runtime), drain), draining)
    }

    fn staff(identifier: &str) -> CheckRequest {
        CheckRequest { policy: "staff".to_owned(), identifier: identifier.to_owned(), ..CheckRequest::default() }
    }

    #[tokio::test]
    async fn g4_watches_have_one_bound_together_and_remember_a_digest() {
        let folder = tempfile::tempdir().unwrap();
        let (posture, _draining) = posture(folder.path());
        let watch = |checks: Vec<CheckRequest>| posture.watch(Request::new(WatchRequest { checks }));
        let mut open = Vec::new();
        // As many devices as one client may watch: these requests name no client, and all such count as one.
        while posture.watches.under_way().checks < WATCHES_OF_ONE.checks {
            open.push(watch(vec![staff("PF3ABCDE"); MOST]).await.unwrap());
        }
        let status = watch(vec![staff("PF3ABCDE")]).await.err().unwrap();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(status.message(), "watches of one client may have 5000 checks at once, and this would be more: try later, or with less");
        // Another client still may; the credentials of a connection of this very process name one.
        let (stream, _other) = tokio::net::UnixStream::pair().unwrap();
        let mut request = Request::new(WatchRequest { checks: vec![staff("PF3ABCDE")] });
        request.extensions_mut().insert(tonic::transport::server::Connected::connect_info(&stream));
        drop(posture.watch(request).await.unwrap());
        open.pop();
        // Long identifiers reach the bound on bytes long before the one on checks.
        let status = watch(vec![staff(&"x".repeat(WATCHES_OF_ONE.bytes))]).await.err().unwrap();
        assert!(status.message().contains("bytes at once"), "{status}");
        open.clear();
        assert_eq!(posture.watches.under_way(), Load::default());
        // The memory that is kept for an answer does not grow with the answer.
        assert!(size_of::<Option<Said>>() <= 64);
        let mut changes = watch(vec![staff("PF3ABCDE"), staff("NOBODY")]).await.unwrap().into_inner();
        let said = [changes.next().await.unwrap().unwrap(), changes.next().await.unwrap().unwrap()];
        assert_eq!(said.map(|change| (change.number, change.result.unwrap().decision())), [(0, Verdict::Allow), (1, Verdict::Deny)]);
    }

    #[tokio::test]
    async fn a_watch_ends_an_exemption_at_once_and_another_allow_once_nobody_can_say_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let away = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let silent = Arc::clone(&away);
        let fake = Scripted::new(move |device| {
            let answer = match device.normal() {
                "PF3ABCDE" if !silent.load(Ordering::SeqCst) => Answer::Found(Arc::new(posture::record::Record::default())),
                _ => Answer::Unavailable(inventory::Unavailable::Network),
            };
            async move { answer }
        });
        let (posture, _draining) =
            posture_with(folder.path(), &BTreeMap::from([(Arc::from("staff"), Arc::new(fake) as Arc<dyn Provider>)]));
        tokio::time::pause();
        let ruling = Ruling::new(RulingKind::Exemption, None, "X1", "", "", clock::now(), Some(Duration::from_secs(3600)));
        posture.runtime.engine.locks.exempt(ruling).await.unwrap();
        let watch = WatchRequest { checks: vec![staff("PF3ABCDE"), staff("X1")] };
        let mut changes = posture.watch(Request::new(watch)).await.unwrap().into_inner();
        let mut next = async || {
            let change = changes.next().await.unwrap().unwrap();
            (change.number, change.result.unwrap().decision(), Instant::now())
        };
        let (first, second) = (next().await, next().await);
        assert_eq!([(first.0, first.1), (second.0, second.1)], [(0, Verdict::Allow), (1, Verdict::Allow)]);
        let exemption = Which::MadeBy(RulingKind::Exemption, Some(IdentifierKind::Serial), "X1".to_owned());
        posture.runtime.engine.locks.take_back(&exemption, "", clock::now()).await.unwrap();
        away.store(true, Ordering::SeqCst);
        let ended = next().await;
        assert_eq!((ended.0, ended.1), (1, Verdict::Unavailable));
        assert!(ended.2 - second.2 <= LOOK * 2, "{:?}", ended.2 - second.2);
        let silence = next().await;
        assert_eq!((silence.0, silence.1), (0, Verdict::Unavailable));
        assert!((SILENCE..SILENCE + LOOK * 3).contains(&(silence.2 - first.2)), "{:?}", silence.2 - first.2);
    }

    /// Makes a provider that takes so many milliseconds for identifiers that begin with `SLOW`.
    fn slow(takes: u64) -> BTreeMap<Arc<str>, Arc<dyn Provider>> {
        let fake = Scripted::new(move |device| {
            let takes = Duration::from_millis(if device.normal().starts_with("SLOW") { takes } else { 0 });
            async move {
                tokio::time::sleep(takes).await;
                Answer::Found(Arc::new(posture::record::Record::default()))
            }
        });
        BTreeMap::from([(Arc::from("staff"), Arc::new(fake) as Arc<dyn Provider>)])
    }

    fn lock_on(device: &str) -> Ruling {
        Ruling::new(RulingKind::Lock, None, device, "", "", clock::now(), Some(Duration::from_secs(3600)))
    }

    #[tokio::test]
    async fn a1_a_batch_allows_nothing_that_was_locked_while_another_of_it_was_asked_for() {
        for (slow_for, locked_after) in [(6000, 1000), (6000, 5900), (900, 300)] {
            let folder = tempfile::tempdir().unwrap();
            let (posture, _draining) = posture_with(folder.path(), &slow(slow_for));
            tokio::time::pause();
            let checks = vec![staff("GOOD1"), staff("SLOW"), staff("GOOD2")];
            let batch = posture.batch_check(Request::new(BatchCheckRequest { checks }));
            let locking = async {
                tokio::time::sleep(Duration::from_millis(locked_after)).await;
                drop(posture.runtime.engine.locks.lock(lock_on("GOOD1")).await.unwrap());
            };
            let (batch, ()) = tokio::join!(batch, locking);
            let said: Vec<_> = batch.unwrap().into_inner().results.iter().map(CheckResponse::decision).collect();
            assert_eq!((said[0], said[2]), (Verdict::Deny, Verdict::Allow), "{slow_for} {locked_after}");
            tokio::time::resume();
        }
    }

    #[tokio::test]
    async fn a1_a_watch_shows_a_lock_at_once_though_others_take_their_time() {
        let folder = tempfile::tempdir().unwrap();
        let (posture, _draining) = posture_with(folder.path(), &slow(6000));
        tokio::time::pause();
        let checks = (0..20).map(|number| staff(&format!("SLOW{number}"))).chain([staff("GOOD1")]).collect();
        let mut changes = posture.watch(Request::new(WatchRequest { checks })).await.unwrap().into_inner();
        let first = changes.next().await.unwrap().unwrap();
        assert_eq!((first.number, first.result.unwrap().decision()), (20, Verdict::Allow));
        drop(posture.runtime.engine.locks.lock(lock_on("GOOD1")).await.unwrap());
        let locked = Instant::now();
        let news = changes.next().await.unwrap().unwrap();
        assert_eq!((news.number, news.result.unwrap().decision()), (20, Verdict::Deny));
        assert!(locked.elapsed() <= LOOK, "{:?}", locked.elapsed());
    }

    #[tokio::test]
    async fn g4_batches_under_way_have_one_bound_together() {
        let folder = tempfile::tempdir().unwrap();
        let (posture, _draining) = posture(folder.path());
        let batch = || posture.batch_check(Request::new(BatchCheckRequest { checks: vec![staff("PF3ABCDE"); MOST] }));
        let most = BATCHES_OF_ONE.checks / MOST;
        let results = futures::future::join_all((0..=most).map(|_| batch())).await;
        let refused: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
        let [refused] = refused[..] else { panic!("{refused:?}") };
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert_eq!(posture.batches.under_way().checks, BATCHES_OF_ONE.checks, "nobody has read the answers");
        drop(results);
        assert_eq!(posture.batches.under_way(), Load::default());
        batch().await.unwrap();
    }

    #[tokio::test]
    async fn b_a_lookup_asks_each_provider_once_however_often_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (posture, _draining) = posture(folder.path());
        let lookup = |providers: Vec<String>| {
            let request = LookupRequest { identifier: "PF3ABCDE".to_owned(), identifier_kind: String::new(), providers };
            posture.lookup(Request::new(request))
        };
        let answers = lookup(vec!["staff".to_owned(); 32_000]).await.unwrap().into_inner().answers;
        assert_eq!(answers.len(), 1);
        let status = lookup(vec!["staff".to_owned(), "stuff".to_owned()]).await.unwrap_err();
        assert_eq!(status.message(), "there is no provider `stuff`; did you mean `staff`?");
    }

    #[tokio::test]
    async fn a_thousand_checks_let_others_in_between() {
        let folder = tempfile::tempdir().unwrap();
        let (posture, _draining) = posture(folder.path());
        let checks = vec![CheckRequest { policy: "staff".to_owned(), identifier: "PF3ABCDE".to_owned(), ..CheckRequest::default() }; MOST];

        // On one thread, other tasks have a turn only where the service gives them one.
        let turns = Arc::new(AtomicUsize::new(0));
        let taken = Arc::clone(&turns);
        let other = tokio::spawn(async move {
            loop {
                taken.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let results = posture.batch_check(Request::new(BatchCheckRequest { checks: checks.clone() })).await.unwrap().into_inner().results;
        assert!(results.iter().all(|result| result.decision() == Verdict::Allow));
        let during_batch = turns.load(Ordering::Relaxed);
        let changes = posture.watch(Request::new(WatchRequest { checks })).await.unwrap().into_inner();
        let first: Vec<_> = changes.take(MOST).collect().await;
        assert!(first.into_iter().all(|change| change.unwrap().result.unwrap().decision() == Verdict::Allow));
        let during_watch = turns.load(Ordering::Relaxed) - during_batch;
        other.abort();
        assert!(during_batch >= 5 && during_watch >= 5, "{during_batch} {during_watch}");
    }
}
