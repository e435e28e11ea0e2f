//! Jamf Pro: computers and mobile devices, which it keeps in two inventories. Sources: Jamf's OpenAPI description of 11.23 to
//! 11.30, and its developers' pages on webhooks, filters and load.

mod api;
mod extras;
mod login;
mod probe;
mod push;
mod record;
mod search;
mod sweep;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use http::HeaderMap;
use posture::identity::IdentifierKind;
use posture::record::{Fact, Field, Fields, Form, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use settings::{SecretSource, Section};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::{Answer, Unavailable};
use crate::http::Endpoint;
use crate::inventory::{Change, Finding, Inventory, Listed, Listing, NotAnEvent, Question};
use crate::setup::{Defaults, Demands, Setup};
use api::Api;
use extras::Departments;
pub use push::parse as parse_push;
use search::{Hit, Wanted};

/// The service's word in `type = "…"`.
pub(crate) const NAME: &str = "jamf";

/// `[provider.<name>]` with `type = "jamf"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Client id of an API client.
    pub client_id: String,
    /// Source of the API client's secret.
    pub client_secret: SecretSource,
    /// Kinds of records that are asked for, each once; default both. The API role needs a privilege for each.
    pub kinds: Vec<Form>,
    /// Group, by name or id, that mobile devices have to be in, as `JAMF_DEVICE_GROUP` of step-posture-connector says.
    pub device_group: Option<String>,
    /// Group, by name or id, that computers have to be in, as `JAMF_COMPUTER_GROUP` says.
    pub computer_group: Option<String>,
    /// Whether a record of another kind than the webhook's mode names counts as none, as with step-posture-connector, which asks
    /// one inventory only; default no.
    pub mode_is_binding: bool,
    /// Whether answers about mobile devices hold the user, as `JAMF_DEVICE_ENRICH` says; default no.
    pub device_enrich: bool,
    /// Whether answers about computers hold the user, as `JAMF_COMPUTER_ENRICH` says; default no.
    pub computer_enrich: bool,
}

impl Setup for Settings {
    fn name(&self) -> &'static str {
        NAME
    }

    fn defaults() -> Defaults {
        // Every organisation has an address of its own. Jamf asks its clients to keep to this number of connections
        // (developer.jamf.com, "Jamf Pro API scalability best practices").
        Defaults { base_url: None, connections: 5, per_second: 20 }
    }

    fn read(section: &mut Section<'_>, base: &Path) -> Option<Self> {
        if !section.has("client_id") {
            section.missing("client_id", "client_id = \"…\", from Settings > System > API roles and clients");
        }
        let filled = |text: &str| match text.trim() {
            "" => Err("must not be empty".to_owned()),
            text => Ok(text.to_owned()),
        };
        let client_id = section.text("client_id", filled);
        let client_secret = SecretSource::required(section, "client_secret", base);
        let kinds = kinds(section);
        let device_group = section.text("device_group", filled);
        let computer_group = section.text("computer_group", filled);
        let mode_is_binding = section.flag("mode_is_binding").unwrap_or_default();
        let device_enrich = section.flag("device_enrich").unwrap_or_default();
        let computer_enrich = section.flag("computer_enrich").unwrap_or_default();
        Some(Self {
            client_id: client_id?,
            client_secret: client_secret?,
            kinds,
            device_group,
            computer_group,
            mode_is_binding,
            device_enrich,
            computer_enrich,
        })
    }

    fn fields(&self) -> Fields {
        FIELDS
    }

    /// Returns whether the record counts for a question in this mode. Where the mode is binding, a record of unknown kind does
    /// not.
    fn counts(&self, record: &Record, mode: Option<Form>) -> bool {
        !self.mode_is_binding || mode.is_none_or(|mode| record.form == Fact::Value(mode))
    }

    fn demands(&self, form: Form) -> Demands {
        let (group, enrich) = match form {
            Form::Computer => (&self.computer_group, self.computer_enrich),
            Form::MobileDevice => (&self.device_group, self.device_enrich),
        };
        Demands { group: group.clone(), enrich }
    }

    fn secrets(&self) -> Vec<&SecretSource> {
        vec![&self.client_secret]
    }

    fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Arc<dyn Inventory>, String> {
        let secret = secrets.first().ok_or("there is no client secret")?;
        let api = Api::new(endpoint, &self.client_id, secret)?;
        Ok(Arc::new(Jamf { api, kinds: self.kinds.clone(), mode_is_binding: self.mode_is_binding, departments: Departments::default() }))
    }
}

fn kinds(section: &mut Section<'_>) -> Vec<Form> {
    let Some(given) = section.texts("kinds") else { return KINDS.to_vec() };
    let is_known = |text: &String| KINDS.iter().any(|kind| kind.as_str() == text);
    if given.is_empty() || !given.iter().all(is_known) {
        section.report().mistake(section.place(), "`kinds` lists \"computer\", \"mobile_device\", or both");
    }
    KINDS.iter().copied().filter(|kind| given.iter().any(|text| text == kind.as_str())).collect()
}

/// Fields that Jamf Pro can say.
const FIELDS: Fields = Fields::of(Field::ALL).without(Fields::of(&[Field::WipePending, Field::UserActive, Field::Data]));

const KINDS: &[Form] = &[Form::Computer, Form::MobileDevice];

/// A Jamf Pro server.
#[derive(Debug)]
pub struct Jamf {
    api: Api,
    kinds: Vec<Form>,
    mode_is_binding: bool,
    departments: Departments,
}

#[async_trait]
impl Inventory for Jamf {
    fn fields(&self) -> Fields {
        FIELDS
    }

    fn asks(&self, kind: IdentifierKind) -> bool {
        matches!(kind, IdentifierKind::Serial | IdentifierKind::Udid)
    }

    fn minds_hint(&self) -> bool {
        self.mode_is_binding && self.kinds.len() > 1
    }

    async fn lookup(&self, question: &Question) -> Answer {
        self.answer(question).await.0
    }

    async fn answer(&self, question: &Question) -> (Answer, Option<Form>) {
        let wanted = match question.device.kind() {
            IdentifierKind::Serial => Wanted::serial(&question.device),
            IdentifierKind::Udid => Wanted::udid(&question.device),
            _ => None,
        };
        let Some(wanted) = wanted else { return (Answer::InvalidIdentifier, None) };
        let (found, passed_over) = self.find(&wanted, question).await;
        let answer = match found {
            Ok(Some((form, row))) => {
                let mut record = record::of(form, &row, clock::now());
                match self.complete(&mut record, form, &row, question).await {
                    Ok(()) => Answer::Found(Arc::new(record)),
                    Err(error) => Answer::Unavailable(error),
                }
            }
            Ok(None) => Answer::NotFound,
            Err(answer) => answer,
        };
        (answer, question.hint.filter(|_| passed_over))
    }

    fn listing(&self) -> Listing {
        Listing::Incremental
    }

    fn lists(&self, need: Fields) -> Fields {
        // The list lacks what costs a call of its own for each device, and what only mobile devices come with.
        need.without(Fields::of(&[Field::Compliance, Field::UserDepartment]))
    }

    async fn list(&self, since: Option<UnixTime>, need: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        let deadline = Instant::now() + sweep::REQUEST;
        let departments = if need.contains(Field::UserDepartment) && self.kinds.contains(&Form::Computer) {
            self.departments.all(&self.api, deadline).await
        } else {
            None
        };
        let (mut complete, mut failed) = (true, None);
        for form in &self.kinds {
            match sweep::sweep(&self.api, *form, since, departments.as_deref(), &pages).await {
                Ok(whole) => complete &= whole,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        // A device that did not report in a while is not among what changed, and is not gone either.
        failed.map_or(Ok(Listed { complete: complete && since.is_none() }), Err)
    }

    fn parse_push(&self, headers: &HeaderMap, body: &[u8]) -> Result<Vec<Change>, NotAnEvent> {
        push::parse(headers, body)
    }

    async fn probe(&self, deadline: Instant) -> Vec<Finding> {
        probe::probe(&self.api, &self.kinds, deadline).await
    }
}

impl Jamf {
    /// Finds the one row that fits, and its kind. Half an answer is none: another device could have the same identifier. The flag
    /// says whether an inventory was passed over that the question's mode does not mean: for other modes that is no answer.
    async fn find(&self, wanted: &Wanted, question: &Question) -> (Result<Option<(Form, serde_json::Value)>, Answer>, bool) {
        let (deadline, mut failed, mut others, mut passed_over) = (question.deadline, None, false, false);
        // Every kind is asked, whichever is likely: the remembered answer may serve questions of any mode.
        let hits = join_all(self.kinds.iter().map(|form| search::find(&self.api, *form, wanted, deadline))).await;
        let hits: Vec<_> = self.kinds.iter().copied().zip(hits).collect();
        if hits.iter().any(|(_, hit)| matches!(hit, Ok(Hit::Many))) {
            return (Err(Answer::Ambiguous), false);
        }
        let counts = |form: Form| !self.mode_is_binding || question.hint.is_none_or(|mode| mode == form);
        let mut rows = Vec::new();
        for (form, hit) in hits {
            match hit {
                Ok(Hit::One(row)) => rows.push((form, row)),
                Ok(Hit::None | Hit::Many) => {}
                Ok(Hit::Others) => others = true,
                // A client without the right to read this inventory needs no answer from it, since the mode names the other one.
                Err(Unavailable::Forbidden) if !counts(form) => passed_over = true,
                // A double of the device may be in the inventory that failed.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let found = match (rows.pop(), rows.pop(), failed) {
            (Some(_), Some(_), _) => Err(Answer::Ambiguous),
            (_, _, Some(error)) => Err(Answer::Unavailable(error)),
            (None, ..) if others => Err(Answer::Unavailable(Unavailable::FilterIgnored)),
            (row, ..) => Ok(row),
        };
        (found, passed_over)
    }

    /// Fetches the needed facts that cost a call of their own.
    async fn complete(&self, record: &mut Record, form: Form, row: &serde_json::Value, question: &Question) -> Result<(), Unavailable> {
        let (need, deadline) = (question.need, question.deadline);
        let department = async {
            // Rows of mobile devices hold the department's name.
            if need.contains(Field::UserDepartment) && form == Form::Computer {
                // A missing name must not cost the answer.
                let all = self.departments.all(&self.api, halfway(deadline)).await;
                record.user.department = extras::department(row, all.as_deref());
            }
        };
        let compliance = async {
            if need.contains(Field::Compliance) {
                record.compliance = extras::compliance(&self.api, form, row, deadline).await?;
            }
            Ok(())
        };
        tokio::join!(department, compliance).1
    }
}

/// The middle of the time that is left.
fn halfway(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / 2
}
