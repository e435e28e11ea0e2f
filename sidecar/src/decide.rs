//! Steps 7 and 8, for everybody who asks: locks, facts, rules, and what comes of them.
//!
//! Whatever is not known, not found, not whole or not in time ends in anything but an allow. Two things soften that, and
//! both are the operator's own word: `enforcement = "observe"` softens what the rules say and nothing else, and an exemption
//! of one device softens the rules and an outage. A lock wins over both.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use posture::identity::Identity;
use posture::outcome::{Data, Denial, Outcome as Proposal, Refusal};
use posture::policy::{self, CheckResult, Inputs, Policy, RequestKind, Rules, Verdict};
use posture::record::{Fields, Form, Record};
use posture::time::UnixTime;
use serde::Serialize as _;
use tokio::time::Instant;

use crate::cache::{Moment, Terms};
use crate::clock;
use crate::config::{self, Combine, Enforcement, OnNotFound, OnUnavailable};
use crate::evaluate::word;
use crate::gate::{Closed, Consulted, Grounds, Outcome};
use crate::locks::{Locks, NO_OTHERS, Ruling, Standing};
use crate::metrics::{Metrics, ProviderLabels, Word};
use crate::provider::inventory::{Question, Way};
use crate::provider::service::Service;
use crate::provider::{Answer, Evidence, Looked, Provider, Source, Unavailable};
use crate::store;

/// Whom to ask and what to demand, ready to decide by.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the policy; `None`: the webhook names its providers itself.
    pub policy: Option<Arc<str>>,
    /// Its rules.
    pub rules: Option<Arc<Policy>>,
    /// Providers in the order in which they are asked.
    pub links: Vec<Link>,
    /// What it means that one has no such device.
    pub on_not_found: OnNotFound,
    /// What it means that one cannot say.
    pub on_unavailable: OnUnavailable,
    /// Whose word counts.
    pub combine: Combine,
    /// Whether templates get what is known of the user.
    pub enrich: bool,
    /// Whether what the rules say is done, or only recorded.
    pub enforcement: Enforcement,
}

/// One provider of a plan.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its name.
    pub name: Arc<str>,
    /// The provider.
    pub provider: Arc<Provider>,
    /// What its own settings demand, for computers and for mobile devices.
    pub own: Own,
}

/// What the settings of a provider demand of its records, whoever asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Own {
    computer: OwnRules,
    mobile_device: OwnRules,
    /// How old a remembered answer may be that a device is denied by.
    not_older: Duration,
}

/// The same for records of one form.
#[derive(Clone, Debug)]
struct OwnRules {
    /// Where no policy judges.
    alone: Arc<Policy>,
    /// Beside a policy.
    beside: Option<Arc<Policy>>,
    /// Whether templates get what is known of the user.
    enrich: bool,
}

/// Who asks, and about which device.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The device, and how well it is proven.
    pub identity: Identity,
    /// What asks.
    pub kind: RequestKind,
    /// Id of the webhook.
    pub webhook: Option<Arc<str>>,
    /// Name that the caller was let in by.
    pub caller: Option<String>,
    /// Which kind of record is likely.
    pub hint: Option<Form>,
    /// When an answer is of no use any more.
    pub deadline: Instant,
    /// Whether the decision says what every check read: it costs more than the checks.
    pub explain: bool,
}

/// What came of it, and how.
#[derive(Clone, Debug)]
pub struct Decision {
    /// For whoever asked.
    pub outcome: Outcome,
    /// The provider that settled it.
    pub provider: Option<Arc<str>>,
    /// What each provider said that was asked.
    pub asked: Vec<Asked>,
    /// Every check, where the asker wants an explanation.
    pub checks: Vec<CheckResult>,
    /// What the rules would have denied, where they are only observed or the device is exempt.
    pub waived: Option<Denial>,
}

/// What a chain of providers comes to, before the gate has looked at it.
#[derive(Debug)]
struct Draft {
    proposal: Proposal,
    provider: Option<Arc<str>>,
    asked: Vec<Asked>,
    checks: Vec<CheckResult>,
    waived: Option<Denial>,
    consulted: Vec<Consulted>,
    /// Whether the proposal is an allow by the word of an operator alone.
    exempted: bool,
}

/// What one provider said.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its name.
    pub provider: Arc<str>,
    /// In one word.
    pub outcome: &'static str,
    /// Where it has it from.
    pub source: Source,
    /// How long ago the service said so, where it is remembered.
    pub age: Option<Duration>,
}

impl Decision {
    /// One that nobody had to be asked for.
    pub const fn of(outcome: Outcome) -> Self {
        Self { outcome, provider: None, asked: Vec::new(), checks: Vec::new(), waived: None }
    }

    /// What each provider said, for the store.
    pub fn answers(&self) -> Vec<store::Answer> {
        let answer = |asked: &Asked| store::Answer {
            provider: asked.provider.to_string(),
            outcome: asked.outcome,
            age_ms: asked.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        };
        self.asked.iter().map(answer).collect()
    }

    /// Every check, for the store, as a JSON list; `None` where there was none.
    pub fn explained(&self) -> Option<String> {
        if self.checks.is_empty() {
            return None;
        }
        // Long enough for most, so that it need not grow.
        let mut text = Vec::with_capacity(self.checks.len().saturating_mul(128));
        self.checks.serialize(&mut serde_json::Serializer::new(&mut text)).ok()?;
        String::from_utf8(text).ok()
    }
}

/// Decides by the plan that holds now, and by no other: `plan` gives it, and `None` where there is none any more. The future is
/// cheap to poll where every provider has its answer in memory.
///
/// An allow is given only by the gate. Where something changed while providers were asked, they are asked again, from memory
/// for the most part, and after four rounds the asker is told to try again.
pub async fn decide(plan: impl Fn() -> Option<Arc<Plan>>, asker: &Asker, locks: &Locks, metrics: &Metrics) -> Decision {
    let (mut before, came) = (Vec::new(), Moment::now());
    for _ in 0..ROUNDS {
        let Some(current) = plan() else { break };
        let mut draft = current.propose(asker, came, locks, metrics).await;
        before.append(&mut draft.asked);
        let judged_by_what_holds = plan().is_some_and(|now| now.is_as(&current));
        let Draft { proposal, provider, checks, waived, consulted, exempted, .. } = draft;
        let decided = |outcome, checks, waived| Decision { outcome, provider, asked: before.clone(), checks, waived };
        let data = match proposal {
            Proposal::Deny(denial) if denial == Denial::DEVICE_LOCKED => return decided(Outcome::Deny(denial), checks, None),
            // What an operator changed meanwhile is to be judged by, and a denial rests on what is known now as an allow does.
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
            // What a record would say is not known, so this is no denial.
            Err(Closed::Doubtful(ruling)) => decided(Outcome::Refuse(Refusal::ProviderUnavailable), vec![doubtful(&ruling)], None),
            Err(Closed::Ambiguous) => decided(Outcome::Deny(Denial::DEVICE_AMBIGUOUS), checks, None),
            Err(Closed::Changed) => continue,
        };
    }
    Decision { asked: before, ..Decision::of(Outcome::Refuse(Refusal::ProviderUnavailable)) }
}

impl Consulted {
    /// Whether what the provider said is what is known of the device now.
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

    /// What both come to where both have to allow. The later denial counts before a refusal, and either before an allow.
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

    /// Whether whoever could not say failed to, and was not merely left unasked by bounds of our own: those answer nobody.
    fn is_of_services(&self) -> bool {
        let silences = self.consulted.iter().filter_map(|consulted| match consulted.looked.answer {
            Answer::Unavailable(why) => Some(why),
            _ => None,
        });
        silences.into_iter().all(Unavailable::is_of_the_service)
    }

    /// Whether a service could not say of this device alone. What the device itself may have caused is no outage: by its own record,
    /// spoilt, it would come to rules that are laxer.
    fn is_of_the_device(&self) -> bool {
        self.consulted.iter().any(|consulted| matches!(consulted.looked.evidence, Evidence::Alone(_) | Evidence::Moved(_)))
    }
}

/// A lock, as the record of a decision shows it.
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

/// A lock that keeps an exemption from counting, as the record of a decision shows it.
fn doubtful(ruling: &Ruling) -> CheckResult {
    let detail = format!("no record can be had, and lock {} may be about this device by another identifier", ruling.id);
    CheckResult { detail: Some(detail), ..locked(ruling) }
}

impl Plan {
    /// Asks and judges, and gives no allow of its own.
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

    /// Why a device of which no record can be had is not well enough proven for these rules, whoever exempts it.
    fn distrust(&self, asker: &Asker) -> Option<Denial> {
        let (record, now) = (Record::default(), clock::now());
        let inputs = asker.inputs(&record, now, now);
        let own = self.links.iter().flat_map(|link| [&link.own.computer, &link.own.mobile_device]);
        own.flat_map(|own| self.judges(own)).chain(&self.rules).find_map(|rules| distrusted(rules, &inputs))
    }

    /// Whether no lock was made or came to cover more, no ruling was taken back and no event came since `began`, about any device:
    /// it may name this one by an identifier that nobody can connect with it any more.
    pub fn undisturbed(&self, began: Instant, locks: &Locks) -> bool {
        locks.quiet_since(began) && self.links.iter().filter_map(|link| link.provider.cache()).all(|cache| cache.quiet_since(began))
    }

    /// Whether both ask the same for the same: a reload puts another plan in the place of one, and may change nothing of it.
    pub fn is_as(&self, other: &Self) -> bool {
        let same = |(one, other): (&Link, &Link)| Arc::ptr_eq(&one.provider, &other.provider) && one.own == other.own;
        self.rules.as_ref().map(|rules| rules.revision()) == other.rules.as_ref().map(|rules| rules.revision())
            && self.links.len() == other.links.len()
            && self.links.iter().zip(&other.links).all(same)
            && (self.on_not_found, self.on_unavailable, self.combine) == (other.on_not_found, other.on_unavailable, other.combine)
            && (self.enrich, self.enforcement) == (other.enrich, other.enforcement)
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

/// The first provider that has the device settles it.
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
    // One that could not say might have had it.
    let proposal = if silent.is_some() { Proposal::Refuse(Refusal::ProviderUnavailable) } else { Proposal::Deny(Denial::DEVICE_NOT_FOUND) };
    Draft { asked, consulted, provider: silent, ..Draft::of(proposal) }
}

/// Every provider has to have the device, and every record has to pass; the first one gives the data. `exempt`: what none of
/// them says is waived, so the others are asked as well, and the order in which they are asked decides nothing.
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

/// One provider whose record passes is enough.
async fn any_of(plan: &Plan, asker: &Asker, came: Moment, locks: &Locks, metrics: &Metrics) -> Draft {
    let mut worst: Option<Draft> = None;
    let (mut asked, mut consulted) = (Vec::new(), Vec::new());
    for link in &plan.links {
        let mut draft = consult(plan, link, asker, came, locks, metrics).await;
        asked.append(&mut draft.asked);
        consulted.append(&mut draft.consulted);
        let settled = match &draft.proposal {
            Proposal::Allow(_) => true,
            // Nothing that another inventory says takes these back.
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

/// Asks one provider, and judges by what it says.
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
    // An old record may deny what is right by now.
    let by_rules = matches!(draft.proposal, Proposal::Deny(_)) || draft.waived.is_some();
    if by_rules && looked.source == Source::Cached && looked.age.is_some_and(|age| age > link.own.not_older) {
        let again = ask(link, &question, Terms { not_older: Some(link.own.not_older), came }, metrics, &mut asked).await;
        if !matches!(again.answer, Answer::Unavailable(_)) {
            looked = again;
            draft = judge(plan, link, asker, locks, &looked);
        }
    }
    // Nor is one to be denied by a record that nobody can confirm: it is worth another try.
    if looked.source == Source::Stale && matches!(&draft.proposal, Proposal::Deny(denial) if *denial != Denial::DEVICE_LOCKED) {
        draft.proposal = Proposal::Refuse(Refusal::ProviderUnavailable);
    }
    let consulted = vec![Consulted { provider: Arc::clone(&link.provider), looked }];
    Draft { provider: Some(Arc::clone(&link.name)), asked, consulted, ..draft }
}

async fn ask(link: &Link, question: &Question, terms: Terms, metrics: &Metrics, asked: &mut Vec<Asked>) -> Looked {
    let looked = link.provider.lookup(question, terms).await;
    let outcome = word(&looked.answer);
    metrics.provider_requests.get_or_create(&ProviderLabels { provider: Word(Arc::clone(&link.name)), outcome }).inc();
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
    let observed = plan.enforcement == Enforcement::Observe;
    // An exemption says that a device may, and nothing of who it is that asks.
    let distrusted =
        if denial.is_some() && exempt && !observed { plan.judges(own).find_map(|rules| distrusted(rules, &inputs)) } else { None };
    let waived = denial.is_some() && distrusted.is_none() && (exempt || observed);
    let rules = plan.rules.as_ref().unwrap_or(&own.alone);
    let proposal = match distrusted.or_else(|| denial.clone().filter(|_| !waived)) {
        Some(denial) => Proposal::Deny(denial),
        None => {
            let data = if waived { rules.full_data(&inputs, enrich) } else { rules.data(&inputs, enrich) };
            match data {
                Ok(data) => Proposal::Allow(data),
                // What a template lacks could be had by no other device either, so an exemption does not help.
                Err(denial) => Proposal::Deny(denial),
            }
        }
    };
    let waived = denial.filter(|_| waived);
    Draft { checks, exempted: waived.is_some() && !observed, waived, ..Draft::of(proposal) }
}

impl Plan {
    /// Fields that are asked of a provider.
    pub fn need(&self, link: &Link) -> Fields {
        let rules = [&link.own.computer, &link.own.mobile_device].into_iter().flat_map(|own| self.judges(own));
        let enrich = self.enrich || link.own.computer.enrich || link.own.mobile_device.enrich;
        rules.fold(if enrich { USER } else { Fields::NONE }, |fields, rules| fields.union(rules.wants()))
    }

    /// The rules that judge a record, the provider's own first.
    fn judges<'r>(&'r self, own: &'r OwnRules) -> impl Iterator<Item = &'r Arc<Policy>> {
        let own = if self.rules.is_some() { own.beside.as_ref() } else { Some(&own.alone) };
        own.into_iter().chain(&self.rules)
    }

    /// Tells one text of the rules from another.
    pub fn revision(&self) -> Option<String> {
        self.rules.as_ref().map(|rules| rules.revision().to_owned())
    }
}

impl PartialEq for OwnRules {
    fn eq(&self, other: &Self) -> bool {
        let revision = |rules: &Option<Arc<Policy>>| rules.as_ref().map(|rules| rules.revision().to_owned());
        self.alone.revision() == other.alone.revision() && revision(&self.beside) == revision(&other.beside) && self.enrich == other.enrich
    }
}

impl Own {
    /// What a provider with these settings demands. A file demands nothing; a service that the device is under management,
    /// since a record outlives that; Jamf Pro that it is in the group that its settings name.
    ///
    /// # Errors
    /// In words for the operator: a group that no group can be.
    pub fn new(settings: &config::Provider) -> Result<Self, String> {
        let own = |managed: bool, group: Option<&String>, enrich: bool| {
            let groups = Rules { groups_any: group.into_iter().cloned().collect(), ..Rules::default() };
            let alone = compile(&Rules { managed, ..groups.clone() })?;
            Ok::<_, String>(OwnRules { alone, beside: group.map(|_| compile(&groups)).transpose()?, enrich })
        };
        let config::Provider::Remote(remote) = settings else { return Self::nothing() };
        let (computer, mobile_device) = match &remote.service {
            Service::Jamf(jamf) => {
                (own(true, jamf.computer_group.as_ref(), jamf.computer_enrich)?, own(true, jamf.device_group.as_ref(), jamf.device_enrich)?)
            }
            _ => (own(true, None, false)?, own(true, None, false)?),
        };
        Ok(Self { computer, mobile_device, not_older: remote.cache.negative })
    }

    /// Nothing.
    ///
    /// # Errors
    /// Never: there is nothing that could be wrong.
    pub fn nothing() -> Result<Self, String> {
        let rules = OwnRules { alone: compile(&Rules::default())?, beside: None, enrich: false };
        Ok(Self { computer: rules.clone(), mobile_device: rules, not_older: Duration::MAX })
    }

    const fn of(&self, form: Option<&Form>) -> &OwnRules {
        match form {
            Some(Form::MobileDevice) => &self.mobile_device,
            Some(Form::Computer) | None => &self.computer,
        }
    }
}

fn compile(rules: &Rules) -> Result<Arc<Policy>, String> {
    let wrong = |mistakes: Vec<policy::Mistake>| mistakes.into_iter().map(|mistake| mistake.message).collect::<Vec<_>>().join("; ");
    Policy::compile(rules).map(Arc::new).map_err(wrong)
}

/// How often providers are asked for one decision, where what they said changes meanwhile.
const ROUNDS: usize = 4;

/// What enrichment adds.
const USER: Fields = {
    use posture::record::Field;
    Fields::of(&[Field::UserId, Field::UserName, Field::UserEmail, Field::UserDepartment, Field::UserTitle, Field::Groups])
};

/// A denial's message with the place where its person finds help.
pub fn message(denial: &Denial) -> Cow<'_, str> {
    match &denial.remediation_url {
        Some(url) => format!("{}: {url}", denial.message).into(),
        None => Cow::Borrowed(&*denial.message),
    }
}

#[cfg(test)]
mod tests;
