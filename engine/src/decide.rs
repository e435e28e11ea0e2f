//! Steps 7 and 8 for every way in: locks, facts, rules, and the decision.
//!
//! What is unknown, not found, incomplete or late is never allowed. Two settings of the operator soften this:
//! `enforcement = "observe"` softens what the rules say and nothing else, and an exemption of one device softens the rules and
//! an outage. A lock wins over both.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use inventory::{Answer, AnswerKind, Question, Source, Unavailable, Way};
use posture::identity::Identity;
use posture::outcome::{Data, Denial, Outcome as Proposal, Refusal};
use posture::policy::{self, CheckResult, Inputs, Policy, RequestKind, Verdict};
use posture::record::{Form, Record};
use posture::time::UnixTime;
use serde::Serialize as _;
use store::Ruling;
use tokio::time::Instant;

use crate::cache::{Evidence, Looked, Moment, Terms};
use crate::gate::{Closed, Consulted, Grounds, Outcome};
use crate::locks::{Locks, NO_OTHERS, Standing};
use crate::metrics::{Metrics, ProviderLabels, Word};
use crate::plan::{Combine, Enforcement, Link, OnNotFound, OnUnavailable, Plan};

/// A request for a decision: the device, and who asks.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The device, and how well it is proven.
    pub identity: Identity,
    /// The way in: a webhook of some kind, `ext_authz`, or a query.
    pub kind: RequestKind,
    /// Id of the webhook.
    pub webhook: Option<Arc<str>>,
    /// Name by which the caller was admitted.
    pub caller: Option<String>,
    /// The likely form of the record; `None`: unknown.
    pub hint: Option<Form>,
    /// Time after which an answer is of no use.
    pub deadline: Instant,
    /// Whether the decision says what every check read: it costs more than the checks.
    pub explain: bool,
}

/// The decision about one request, and how it came about.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The outcome, for whoever asked.
    pub outcome: Outcome,
    /// The provider whose answer settled the decision.
    pub provider: Option<Arc<str>>,
    /// Every answer of a provider, in the order in which they were asked.
    pub asked: Vec<Asked>,
    /// The checks: all of them where the asker wants an explanation, else at most the lock that decided.
    pub checks: Vec<CheckResult>,
    /// The denial by the rules that does not count, since they are only observed or the device is exempt.
    pub waived: Option<Denial>,
}

/// The proposal of a chain of providers, before the gate has looked at it.
#[derive(Debug)]
struct Draft {
    proposal: Proposal,
    provider: Option<Arc<str>>,
    asked: Vec<Asked>,
    checks: Vec<CheckResult>,
    waived: Option<Denial>,
    consulted: Vec<Consulted>,
    /// Whether the proposal rests on an exemption, which overrides a rule or stands in for a missing record.
    exempted: bool,
}

/// One answer of a provider, as the decision reports it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Name of the provider.
    pub provider: Arc<str>,
    /// Kind of the answer.
    pub outcome: AnswerKind,
    /// Where the provider has the answer from.
    pub source: Source,
    /// Age of a remembered answer; `None`: it was given now.
    pub age: Option<Duration>,
}

impl Decision {
    /// A decision for which no provider had to be asked.
    pub const fn of(outcome: Outcome) -> Self {
        Self { outcome, provider: None, asked: Vec::new(), checks: Vec::new(), waived: None }
    }

    /// The answers of the providers, for the store.
    pub fn answers(&self) -> Vec<store::Answer> {
        let answer = |asked: &Asked| store::Answer {
            provider: asked.provider.to_string(),
            outcome: asked.outcome.as_str(),
            age_ms: asked.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        };
        self.asked.iter().map(answer).collect()
    }

    /// The checks as a JSON list, for the store; `None` where there are none.
    pub fn explained(&self) -> Option<String> {
        if self.checks.is_empty() {
            return None;
        }
        // Room enough for most lists, so that the text need not grow.
        let mut text = Vec::with_capacity(self.checks.len().saturating_mul(128));
        self.checks.serialize(&mut serde_json::Serializer::new(&mut text)).ok()?;
        String::from_utf8(text).ok()
    }
}

/// Decides about a device by the plan that is in force. `plan` reads that plan; `None`: there is none any more, and the request
/// is refused. The future is cheap to poll where every provider has its answer in memory.
///
/// Only the gate makes an allow. Where something changed while providers were asked, they are asked again, mostly from memory;
/// after four rounds the outcome is [`Refusal::ProviderUnavailable`], and the caller tries again.
pub async fn decide(plan: impl Fn() -> Option<Arc<Plan>>, asker: &Asker, locks: &Locks, metrics: &Metrics) -> Decision {
    let (mut before, came) = (Vec::new(), Moment::now());
    for _ in 0..ROUNDS {
        let Some(current) = plan() else { break };
        if locks.are_stale() {
            return Decision { asked: before, ..Decision::of(Outcome::Refuse(Refusal::StoreStale)) };
        }
        let mut draft = current.propose(asker, came, locks, metrics).await;
        before.append(&mut draft.asked);
        let judged_by_what_holds = plan().is_some_and(|now| now.is_as(&current));
        let Draft { proposal, provider, checks, waived, consulted, exempted, .. } = draft;
        let decided = |outcome, checks, waived| Decision { outcome, provider, asked: before.clone(), checks, waived };
        let data = match proposal {
            Proposal::Deny(denial) if denial == Denial::DEVICE_LOCKED => return decided(Outcome::Deny(denial), checks, None),
            // By a plan that was replaced meanwhile neither an allow nor a denial counts.
            _ if !judged_by_what_holds => continue,
            Proposal::Deny(denial) if denial == Denial::DEVICE_AMBIGUOUS || consulted.iter().all(|one| one.stands(asker)) => {
                return decided(Outcome::Deny(denial), checks, None);
            }
            Proposal::Deny(_) => continue,
            Proposal::Refuse(refusal) => return decided(Outcome::Refuse(refusal), checks, None),
            Proposal::Allow(data) => data,
        };
        let grounds = Grounds { plan: current, identity: asker.identity.clone(), consulted, exempted };
        return match grounds.allow(data, locks) {
            Ok(allowed) => decided(Outcome::Allow(allowed), checks, waived),
            Err(Closed::Locked(ruling)) => decided(Outcome::Deny(Denial::DEVICE_LOCKED), vec![locked(&ruling)], None),
            // A record could show that the lock is about another device, so this is no denial.
            Err(Closed::Doubtful(ruling)) => decided(Outcome::Refuse(Refusal::ProviderUnavailable), vec![doubtful(&ruling)], None),
            Err(Closed::Stale) => decided(Outcome::Refuse(Refusal::StoreStale), checks, None),
            Err(Closed::Ambiguous) => decided(Outcome::Deny(Denial::DEVICE_AMBIGUOUS), checks, None),
            Err(Closed::Changed) => continue,
        };
    }
    Decision { asked: before, ..Decision::of(Outcome::Refuse(Refusal::ProviderUnavailable)) }
}

impl Consulted {
    /// Whether the provider's answer is still what is known of the device.
    fn stands(&self, asker: &Asker) -> bool {
        self.provider.stands(&asker.identity.device, &self.looked)
    }
}

impl Draft {
    fn of(proposal: Proposal) -> Self {
        Self { proposal, provider: None, asked: Vec::new(), checks: Vec::new(), waived: None, consulted: Vec::new(), exempted: false }
    }

    fn locked(ruling: &Ruling) -> Self {
        Self { checks: vec![locked(ruling)], ..Self::of(Proposal::Deny(Denial::DEVICE_LOCKED)) }
    }

    /// The draft of two providers that both have to allow: a denial counts before a refusal, and either before an allow. Of two
    /// alike the first counts.
    fn and(mut self, mut other: Self) -> Self {
        self.asked.append(&mut other.asked);
        self.checks.append(&mut other.checks);
        self.consulted.append(&mut other.consulted);
        let (asked, checks, consulted) = (self.asked, self.checks, self.consulted);
        match (&self.proposal, &other.proposal) {
            (Proposal::Allow(_), Proposal::Allow(_)) => {
                let (waived, exempted) = (self.waived.or(other.waived), self.exempted || other.exempted);
                Self { asked, checks, consulted, waived, exempted, proposal: self.proposal, provider: self.provider }
            }
            (Proposal::Allow(_), _) | (Proposal::Refuse(_), Proposal::Deny(_)) => Self { asked, checks, consulted, ..other },
            _ => Self { asked, checks, consulted, ..self },
        }
    }

    /// Whether every missing answer is the service's failure. A question that our own bounds kept back is none, and nothing
    /// stands in for its answer.
    fn is_of_services(&self) -> bool {
        let silences = self.consulted.iter().filter_map(|consulted| match consulted.looked.answer {
            Answer::Unavailable(why) => Some(why),
            _ => None,
        });
        silences.into_iter().all(Unavailable::is_of_the_service)
    }

    /// Whether a service could not say about this device alone. That is no outage, since the device may have caused it: a
    /// device could spoil its own record to be judged by laxer rules.
    fn is_of_the_device(&self) -> bool {
        self.consulted.iter().any(|consulted| matches!(consulted.looked.evidence, Evidence::Alone(_) | Evidence::Moved(_)))
    }
}

/// The check that shows a lock in the record of a decision.
fn locked(ruling: &Ruling) -> CheckResult {
    CheckResult {
        name: "lock".into(),
        expression: None,
        wanted: None,
        denial: Some(Denial::DEVICE_LOCKED),
        detail: Some(format!("lock {}", ruling.id)),
        inputs: Vec::new(),
    }
}

/// The check that shows, in the record of a decision, the lock for which an exemption does not count.
fn doubtful(ruling: &Ruling) -> CheckResult {
    let detail = format!("no record can be had, and lock {} may be about this device by another identifier", ruling.id);
    CheckResult { detail: Some(detail), ..locked(ruling) }
}

impl Plan {
    /// Asks the providers and judges their answers; an allow is only a proposal.
    async fn propose(&self, asker: &Asker, came: Moment, locks: &Locks, metrics: &Metrics) -> Draft {
        let now = clock::now();
        let exempt = match locks.standing(&asker.identity.device, NO_OTHERS, now) {
            Standing::Locked(ruling) => return Draft::locked(&ruling),
            Standing::Exempt(_) => true,
            Standing::Ordinary => false,
        };
        let mut draft = match self.combine {
            Combine::FirstFound => first_found(self, asker, came, locks, metrics).await,
            Combine::AllOf => all_of(self, asker, came, exempt, locks, metrics).await,
            Combine::AnyOf => any_of(self, asker, came, locks, metrics).await,
        };
        if exempt && matches!(draft.proposal, Proposal::Refuse(Refusal::ProviderUnavailable)) && draft.is_of_services() {
            draft.proposal = match self.distrust(asker) {
                None => Proposal::Allow(Data::empty()),
                Some(denial) => Proposal::Deny(denial),
            };
            draft.exempted = true;
        }
        draft
    }

    /// The denial of a device without a record by the checks of `trust`, whoever exempts it; `None`: it is proven well enough.
    fn distrust(&self, asker: &Asker) -> Option<Denial> {
        let (record, now) = (Record::default(), clock::now());
        let inputs = asker.inputs(&record, now, now);
        let own = self.links.iter().flat_map(|link| [&link.own.computer, &link.own.mobile_device]);
        own.flat_map(|own| self.judges(own)).chain(&self.rules).find_map(|rules| distrusted(rules, &inputs))
    }
}

fn distrusted(rules: &Policy, inputs: &Inputs<'_>) -> Option<Denial> {
    match rules.judge_trust(inputs) {
        Verdict::Deny(denial) => Some(denial),
        Verdict::Pass => None,
    }
}

impl Asker {
    fn inputs<'a>(&'a self, record: &'a Record, fetched_at: UnixTime, now: UnixTime) -> Inputs<'a> {
        Inputs {
            record,
            fetched_at,
            trust: self.identity.trust,
            request: policy::Request {
                webhook: self.webhook.as_deref(),
                kind: self.kind,
                identifier: self.identity.device.stated(),
                identifier_kind: self.identity.device.kind(),
            },
            caller: policy::Caller { name: self.caller.as_deref(), names: &[] },
            now,
        }
    }

    const fn way(&self) -> Way {
        match self.kind {
            RequestKind::Webhook(_) => Way::Webhook,
            RequestKind::ExtAuthz => Way::Authorization,
            RequestKind::Query => Way::Query,
        }
    }
}

/// Asks the providers in order until one has the device, whose record is judged.
async fn first_found(plan: &Plan, asker: &Asker, came: Moment, locks: &Locks, metrics: &Metrics) -> Draft {
    let (mut asked, mut consulted) = (Vec::new(), Vec::new());
    let mut silent = None;
    for link in &plan.links {
        let mut draft = consult(plan, link, asker, came, locks, metrics).await;
        let of_service = draft.is_of_services() && !draft.is_of_the_device();
        asked.append(&mut draft.asked);
        consulted.append(&mut draft.consulted);
        let settled = match &draft.proposal {
            Proposal::Deny(denial) => *denial != Denial::DEVICE_NOT_FOUND || plan.on_not_found != OnNotFound::Next,
            Proposal::Refuse(_) if plan.on_unavailable == OnUnavailable::Next && of_service => {
                silent = Some(Arc::clone(&link.name));
                false
            }
            Proposal::Refuse(_) | Proposal::Allow(_) => true,
        };
        if settled {
            return Draft { asked, consulted, ..draft };
        }
    }
    // A provider that could not say may have the device.
    let proposal = if silent.is_some() { Proposal::Refuse(Refusal::ProviderUnavailable) } else { Proposal::Deny(Denial::DEVICE_NOT_FOUND) };
    Draft { asked, consulted, provider: silent, ..Draft::of(proposal) }
}

/// Asks every provider: each has to have the device, and each record has to pass; the first one gives the data. `exempt`: a
/// provider without an answer is waived, so the others are asked as well, and their order decides nothing.
async fn all_of(plan: &Plan, asker: &Asker, came: Moment, exempt: bool, locks: &Locks, metrics: &Metrics) -> Draft {
    let mut all: Option<Draft> = None;
    for link in &plan.links {
        let draft = consult(plan, link, asker, came, locks, metrics).await;
        let ends = match &draft.proposal {
            Proposal::Allow(_) => false,
            Proposal::Refuse(_) => !exempt,
            Proposal::Deny(_) => true,
        };
        let draft = match all.take() {
            None => draft,
            Some(before) => before.and(draft),
        };
        if ends {
            return draft;
        }
        all = Some(draft);
    }
    all.unwrap_or_else(|| Draft::of(Proposal::Deny(Denial::DEVICE_NOT_FOUND)))
}

/// Asks the providers in order until a record passes. Where none does, a refusal counts before a denial, and "not found" last.
async fn any_of(plan: &Plan, asker: &Asker, came: Moment, locks: &Locks, metrics: &Metrics) -> Draft {
    let mut worst: Option<Draft> = None;
    let (mut asked, mut consulted) = (Vec::new(), Vec::new());
    for link in &plan.links {
        let mut draft = consult(plan, link, asker, came, locks, metrics).await;
        asked.append(&mut draft.asked);
        consulted.append(&mut draft.consulted);
        let settled = match &draft.proposal {
            Proposal::Allow(_) => true,
            // No other inventory takes back a lock or an ambiguity.
            Proposal::Deny(denial) => *denial == Denial::DEVICE_LOCKED || *denial == Denial::DEVICE_AMBIGUOUS,
            Proposal::Refuse(_) => false,
        };
        if settled {
            return Draft { asked, consulted, ..draft };
        }
        let rank = |draft: &Draft| match &draft.proposal {
            Proposal::Refuse(_) => 2,
            Proposal::Deny(denial) if *denial != Denial::DEVICE_NOT_FOUND => 1,
            _ => 0,
        };
        if worst.as_ref().is_none_or(|worst| rank(&draft) > rank(worst)) {
            worst = Some(draft);
        }
    }
    let draft = worst.unwrap_or_else(|| Draft::of(Proposal::Deny(Denial::DEVICE_NOT_FOUND)));
    Draft { asked, consulted, ..draft }
}

/// Asks one provider, and judges its answer.
async fn consult(plan: &Plan, link: &Link, asker: &Asker, came: Moment, locks: &Locks, metrics: &Metrics) -> Draft {
    let question = Question {
        device: asker.identity.device.clone(),
        need: plan.need(link),
        hint: asker.hint,
        deadline: asker.deadline,
        way: asker.way(),
    };
    let mut asked = Vec::new();
    let terms = Terms { not_older: None, came };
    let mut looked = ask(link, &question, terms, metrics, &mut asked).await;
    let mut draft = judge(plan, link, asker, locks, &looked);
    // An old record may deny a device that is in order by now.
    let by_rules = matches!(draft.proposal, Proposal::Deny(_)) || draft.waived.is_some();
    if by_rules && looked.source == Source::Cached && looked.age.is_some_and(|age| age > link.own.not_older) {
        let again = ask(link, &question, Terms { not_older: Some(link.own.not_older), came }, metrics, &mut asked).await;
        if !matches!(again.answer, Answer::Unavailable(_)) {
            looked = again;
            draft = judge(plan, link, asker, locks, &looked);
        }
    }
    // A denial by a stale record, which nobody can confirm, becomes a refusal, so that the caller tries again.
    if looked.source == Source::Stale && matches!(&draft.proposal, Proposal::Deny(denial) if *denial != Denial::DEVICE_LOCKED) {
        draft.proposal = Proposal::Refuse(Refusal::ProviderUnavailable);
    }
    let consulted = vec![Consulted { provider: Arc::clone(&link.provider), looked }];
    Draft { provider: Some(Arc::clone(&link.name)), asked, consulted, ..draft }
}

async fn ask(link: &Link, question: &Question, terms: Terms, metrics: &Metrics, asked: &mut Vec<Asked>) -> Looked {
    let looked = link.provider.lookup(question, terms).await;
    let outcome = looked.answer.kind();
    let labels = ProviderLabels { provider: Word(Arc::clone(&link.name)), outcome: outcome.as_str() };
    metrics.provider_requests.get_or_create(&labels).inc();
    asked.push(Asked { provider: Arc::clone(&link.name), outcome, source: looked.source, age: looked.age });
    looked
}

fn judge(plan: &Plan, link: &Link, asker: &Asker, locks: &Locks, looked: &Looked) -> Draft {
    let record = match &looked.answer {
        Answer::Found(record) => record,
        Answer::NotFound | Answer::InvalidIdentifier => return Draft::of(Proposal::Deny(Denial::DEVICE_NOT_FOUND)),
        Answer::Ambiguous => return Draft::of(Proposal::Deny(Denial::DEVICE_AMBIGUOUS)),
        Answer::Unavailable(_) => return Draft::of(Proposal::Refuse(Refusal::ProviderUnavailable)),
    };
    let now = clock::now();
    let exempt = match locks.standing(&asker.identity.device, record.identifiers(), now) {
        Standing::Locked(ruling) => return Draft::locked(&ruling),
        Standing::Exempt(_) => true,
        Standing::Ordinary => false,
    };
    let own = link.own.of(record.form.value());
    let enrich = own.enrich || plan.enrich;
    let inputs = asker.inputs(record, now.saturating_sub(looked.age.unwrap_or_default()), now);
    let mut checks = Vec::new();
    let mut denial = None;
    for rules in plan.judges(own) {
        let judgement = if asker.explain { rules.judge_all(&inputs) } else { rules.judge(&inputs) };
        if asker.explain {
            checks.extend(judgement.checks);
        }
        if let (Verdict::Deny(found), None) = (judgement.result, &denial) {
            denial = Some(found);
        }
    }
    let rules = plan.rules.as_ref().unwrap_or(&own.alone);
    // What the policy's `data` lacks denies as a rule does, and is waived as a rule is.
    let denial = match denial.map_or_else(|| rules.data(&inputs, enrich), Err) {
        Ok(data) => return Draft { checks, ..Draft::of(Proposal::Allow(data)) },
        Err(denial) => denial,
    };
    let observed = plan.enforcement == Enforcement::Observe;
    // An exemption vouches for the device, not for who asks: checks of `trust` still count.
    let stands = match (exempt, observed) {
        (_, true) => None,
        (true, false) => plan.judges(own).find_map(|rules| distrusted(rules, &inputs)),
        (false, false) => Some(denial.clone()),
    };
    match stands.map_or_else(|| rules.full_data(&inputs, enrich), Err) {
        Ok(data) => Draft { checks, exempted: !observed, waived: Some(denial), ..Draft::of(Proposal::Allow(data)) },
        Err(denial) => Draft { checks, ..Draft::of(Proposal::Deny(denial)) },
    }
}

/// Rounds of questions for one decision, at most, where the answers change meanwhile.
const ROUNDS: usize = 4;

/// The message of a denial, with the address where its person finds help.
pub fn message(denial: &Denial) -> Cow<'_, str> {
    match &denial.remediation_url {
        Some(url) => format!("{}: {url}", denial.message).into(),
        None => Cow::Borrowed(&*denial.message),
    }
}

#[cfg(test)]
mod tests;
