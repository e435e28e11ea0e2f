//! The seam to device managements: the question, what a service may answer, and what it can list and report. A provider of a
//! service implements [`Inventory`]; lifetimes, single flight, limits and outages are the caller's.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::{Fields, Form, Record};
use posture::time::UnixTime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::{Answer, Unavailable};

/// One question about one device.
#[derive(Clone, Debug)]
pub struct Question {
    /// The device that is asked for.
    pub device: DeviceId,
    /// Fields that somebody needs. A field that costs a call of its own is fetched only where it is among them.
    pub need: Fields,
    /// The likely kind of record. It narrows an answer only where the settings say so: see [`Inventory::answer`].
    pub hint: Option<Form>,
    /// The moment from which an answer is of no use any more.
    pub deadline: Instant,
    /// The way in by which the question came: each way has a share of the calls that the service bears.
    pub way: Way,
}

/// A way in by which a question about a device comes. Webhooks come first where not all questions can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// A webhook of step-ca.
    Webhook,
    /// An Envoy that asks by `ext_authz`.
    Authorization,
    /// A posture query, a watch, or work that Stepward does by itself.
    Query,
}

impl Way {
    /// All ways in.
    pub const ALL: [Self; 3] = [Self::Webhook, Self::Authorization, Self::Query];

    /// The guesses of a minute that this way in has, where webhooks have `all` of them: the other ways have half as many each, so
    /// that none of them can spend what new devices need.
    pub const fn share_of(self, all: u32) -> u32 {
        match self {
            Self::Webhook => all,
            Self::Authorization | Self::Query => {
                if all > 1 {
                    all / 2
                } else {
                    1
                }
            }
        }
    }
}

/// A device management, or anything else that knows devices and answers over a network.
///
/// [`Inventory::lookup`] compares the identifier of each record exactly ([`posture::identity::normal`]), whatever the service's
/// own search says, and says [`Answer::NotFound`] only from an answer that was complete.
#[async_trait]
pub trait Inventory: Send + Sync + fmt::Debug {
    /// Fields that the service's records can ever hold, as its settings say: a policy that needs another field is refused when it
    /// is loaded.
    fn fields(&self) -> Fields;

    /// Returns whether the service can be asked by identifiers of this kind. [`Inventory::lookup`] answers a question by another
    /// kind with [`Answer::InvalidIdentifier`], as it does for a text that can be no identifier.
    fn asks(&self, kind: IdentifierKind) -> bool;

    /// Returns whether the service may find a device by one spelling of its identifier and not by an equivalent one. A `NotFound`
    /// then counts only for the spelling that was asked, and for upper case. The caller tries several spellings, with one
    /// question of [`Inventory::lookup`] each, unless the service [`asks_in_upper_case`](Inventory::asks_in_upper_case): as it was
    /// stated, in upper case, and a UDID in upper case without its dashes.
    fn minds_spelling(&self) -> bool {
        false
    }

    /// Returns whether [`Inventory::lookup`] itself asks again in upper case for a device that it does not find. The caller then
    /// asks once, with the spelling that was stated.
    fn asks_in_upper_case(&self) -> bool {
        false
    }

    /// Returns whether [`Inventory::answer`] may depend on the question's hint, so that two questions with different hints are
    /// two calls.
    fn minds_hint(&self) -> bool {
        false
    }

    /// Asks the service for one device, now.
    async fn lookup(&self, question: &Question) -> Answer;

    /// Answers as [`Inventory::lookup`] does. The second value limits the answer to questions with that hint: an inventory that
    /// only other hints mean could not be read, so whether it has the device is unknown. `None`: the answer counts for every
    /// hint.
    async fn answer(&self, question: &Question) -> (Answer, Option<Form>) {
        (self.lookup(question).await, None)
    }

    /// The extent of what [`Inventory::list`] can send.
    fn listing(&self) -> Listing {
        Listing::None
    }

    /// Fields of those in `need` of which [`Inventory::list`] says all that the service knows. Each other field costs a call of
    /// its own or is in no list: a listed record answers a question for it only where the record holds it, else the device is
    /// asked for by itself.
    fn lists(&self, need: Fields) -> Fields {
        need
    }

    /// Compares the age of two records with one identifier, where the settings say that the newest counts; `None`: the two are
    /// ambiguous. [`Inventory::lookup`] keeps to the same rule.
    fn newer(&self, one: &Record, other: &Record) -> Option<Ordering> {
        let _ = (one, other);
        None
    }

    /// The kind of identifier that tells the service's devices apart, where [`Inventory::lookup`] takes two items with one
    /// identifier for two devices, however alike. [`Inventory::list`] then sends no item twice. `None`: [`Record::provider_id`]
    /// tells devices apart.
    fn item_kind(&self) -> Option<IdentifierKind> {
        None
    }

    /// Sends every record, or every one that changed after `since`, page by page, with the fields in `need`.
    ///
    /// A dropped receiver ends the list early.
    ///
    /// # Errors
    /// [`Unavailable`]: records that were sent before are still good, and records that were not sent are not gone.
    async fn list(&self, since: Option<UnixTime>, need: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        let _ = (since, need, pages);
        Err(Unavailable::Unsupported)
    }

    /// The changes of devices after `since`, where the service keeps a feed of them. Events beyond those that are read count as a
    /// change of everything.
    ///
    /// # Errors
    /// [`Unavailable::Unsupported`] where the service has no feed.
    async fn changes(&self, since: UnixTime) -> Result<Vec<Logged>, Unavailable> {
        let _ = since;
        Err(Unavailable::Unsupported)
    }

    /// Reads an event that the service pushed. The sender has been proven already.
    ///
    /// # Errors
    /// [`NotAnEvent`].
    fn parse_push(&self, headers: &HeaderMap, body: &[u8]) -> Result<Vec<Change>, NotAnEvent> {
        let _ = (headers, body);
        Err(NotAnEvent::NO_EVENTS)
    }

    /// Checks what an operator can get wrong, for `stepward doctor`: address, credentials, each privilege.
    async fn probe(&self, deadline: Instant) -> Vec<Finding>;
}

/// The extent of what an inventory can list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// The inventory lists nothing.
    None,
    /// The whole inventory.
    Whole,
    /// The whole inventory, or what changed after a moment.
    Incremental,
}

/// The end of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Whether it is proven that nothing was left out: only then is a device that was not listed gone. In a list of changes this
    /// says nothing: devices that did not report are not in it, so it confirms only the devices that it lists.
    pub complete: bool,
}

/// An event about a device. It drops what is remembered, and never says what the new state is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The device that changed.
    pub device: Subject,
    /// Whether earlier knowledge may not be used even in an outage: the device was un-enrolled, wiped, lost, or taken out of a
    /// group.
    pub revoking: bool,
}

/// A change in a service's own feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The feed's name for the event, so that an event counts once though it is read twice; empty where the feed gives none.
    pub event: String,
    /// The change that the event reports.
    pub change: Change,
}

/// The name by which an event means a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A serial number, unique device identifier, or another identifier of its record.
    Identifier(String),
    /// The service's own id, as in [`Record::provider_id`].
    ProviderId(String),
    /// Any device: the event touches devices that it does not name.
    Everything,
}

/// An event that cannot be read, with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAnEvent(pub &'static str);

impl NotAnEvent {
    /// The reason where a service sends no events at all.
    pub const NO_EVENTS: Self = Self("this provider takes no events");
}

/// One result of [`Inventory::probe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The thing that was checked: `address`, `credentials`, `privilege Read Computers`, `clock`.
    pub check: String,
    /// The state of that thing.
    pub state: State,
    /// What the check saw.
    pub detail: String,
    /// What the operator should do; empty where nothing is to be done.
    pub fix: String,
}

/// The state of what a [`Finding`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The thing is as it should be.
    Good,
    /// The thing works, but should be looked at.
    Doubtful,
    /// The thing does not work.
    Bad,
}

impl Finding {
    /// A finding that asks nothing of the operator.
    pub fn good(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check: check.into(), state: State::Good, detail: detail.into(), fix: String::new() }
    }

    /// A finding that the operator must mend, as `fix` says.
    pub fn bad(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check: check.into(), state: State::Bad, detail: detail.into(), fix: fix.into() }
    }

    /// A finding for a question that was not answered; `credentials` and `privilege` say what to do about a 401 and a 403.
    pub fn fault(fault: Unavailable, credentials: &str, privilege: &str) -> Self {
        let (check, fix) = match fault {
            Unavailable::AuthRejected => ("credentials", credentials),
            Unavailable::Forbidden => ("privilege", privilege),
            Unavailable::Timeout | Unavailable::Network => ("address", "check base_url, ca_file, DNS and the way out of this machine"),
            Unavailable::RateLimited(_) => ("limits", "lower per_second in [provider.<name>.limits], or wait"),
            Unavailable::Protocol | Unavailable::TooLarge => ("address", "check that base_url is the service itself, and no login page"),
            _ => ("service", "look into the service's own status page and log"),
        };
        Self::bad(check, fault.text(), fix)
    }

    /// A finding about this machine's clock, which differs by `skew` from the service's: doubtful from 5 s on.
    pub fn clock(skew: Duration, ahead: bool) -> Self {
        let direction = if ahead { "ahead of" } else { "behind" };
        let detail = format!("this machine's clock is {} s {direction} the service's", skew.as_secs());
        if skew < Duration::from_secs(5) {
            Self::good("clock", detail)
        } else {
            Self { check: "clock".to_owned(), state: State::Doubtful, detail, fix: "let NTP set this machine's clock".to_owned() }
        }
    }
}
