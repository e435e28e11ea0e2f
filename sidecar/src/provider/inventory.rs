//! The seam to device managements: what one is asked, and what it may say. A provider of a service implements
//! [`Inventory`]; lifetimes, single flight, limits and outages are [`crate::cache`]'s.

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

use super::{Answer, Unavailable};

/// One question about one device.
#[derive(Clone, Debug)]
pub struct Question {
    /// Which device.
    pub device: DeviceId,
    /// Fields that somebody needs. A field that costs a call of its own is fetched only where it is among them.
    pub need: Fields,
    /// Which kind of record is likely. It narrows no answer, but where the settings say so: see [`Inventory::answer`].
    pub hint: Option<Form>,
    /// When an answer is of no use any more.
    pub deadline: Instant,
    /// The way in by which the question came: each has a share of the calls that the service bears.
    pub way: Way,
}

/// A way in by which a question about a device comes. Webhooks come first where not all can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// A webhook of step-ca.
    Webhook,
    /// An Envoy that asks by `ext_authz`.
    Authorization,
    /// A posture query, a watch, or what the service does by itself.
    Query,
}

impl Way {
    /// All ways in.
    pub const ALL: [Self; 3] = [Self::Webhook, Self::Authorization, Self::Query];

    /// The guesses of a minute that this way in has, where webhooks have `all` of them: half as many for each of the others, so
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
/// Whatever its own search says, [`Inventory::lookup`] compares the identifier of each record exactly
/// ([`posture::identity::normal`]), and says [`Answer::NotFound`] only from an answer that was complete.
#[async_trait]
pub trait Inventory: Send + Sync + fmt::Debug {
    /// Fields that its records can ever hold, as its settings say: a policy that needs another is refused when it is loaded.
    fn fields(&self) -> Fields;

    /// Whether it can be asked by identifiers of this kind. By others [`Inventory::lookup`] says [`Answer::InvalidIdentifier`], as it
    /// does of a text that no identifier can be.
    fn asks(&self, kind: IdentifierKind) -> bool;

    /// Whether it may find a device by one spelling of its identifier and not by another that means the same. That it has no such
    /// device then counts for the spelling that was asked, and for upper case. It is asked by several, for one question of
    /// [`Inventory::lookup`] each, unless it [`asks_in_upper_case`](Inventory::asks_in_upper_case).
    fn minds_spelling(&self) -> bool {
        false
    }

    /// Whether [`Inventory::lookup`] itself asks for what it does not find in upper case as well.
    fn asks_in_upper_case(&self) -> bool {
        false
    }

    /// Whether [`Inventory::answer`] may depend on what the question hints at, so that two questions of different hints are two calls.
    fn minds_hint(&self) -> bool {
        false
    }

    /// Asks for one device, now.
    async fn lookup(&self, question: &Question) -> Answer;

    /// The same; beside it the only hint of questions that the answer counts for, where an inventory that other questions mean could
    /// not be read: whether that has the device is not known.
    async fn answer(&self, question: &Question) -> (Answer, Option<Form>) {
        (self.lookup(question).await, None)
    }

    /// How much [`Inventory::list`] can say.
    fn listing(&self) -> Listing {
        Listing::None
    }

    /// Fields of those in `need` of which [`Inventory::list`] says all that the service knows. The others cost a call of their own, or
    /// stand in no list: a listed record counts as asked for them only where it knows them, and elsewhere the device is asked for by
    /// itself.
    fn lists(&self, need: Fields) -> Fields {
        need
    }

    /// Which of two records with one identifier is the newer one, where the settings say that the newest counts; `None`:
    /// the two are ambiguous. [`Inventory::lookup`] keeps to the same rule.
    fn newer(&self, one: &Record, other: &Record) -> Option<Ordering> {
        let _ = (one, other);
        None
    }

    /// The kind of identifier that tells its devices apart, where it is [`Inventory::lookup`]'s rule that two items of one
    /// identifier are two devices, however alike. [`Inventory::list`] then sends no item twice. `None`:
    /// [`Record::provider_id`] tells them apart.
    fn item_kind(&self) -> Option<IdentifierKind> {
        None
    }

    /// Sends every record, or every one that changed after `since`, page by page, with the fields in `need`.
    ///
    /// A receiver that has gone ends it early.
    ///
    /// # Errors
    /// [`Unavailable`]: what was sent until then is still good, and what was not sent is not gone.
    async fn list(&self, since: Option<UnixTime>, need: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        let _ = (since, need, pages);
        Err(Unavailable::Unsupported)
    }

    /// What happened to devices after `since`, where the service keeps a feed of it. What more there was than is read counts
    /// as a change of everything.
    ///
    /// # Errors
    /// [`Unavailable::Unsupported`] where it has none.
    async fn changes(&self, since: UnixTime) -> Result<Vec<Logged>, Unavailable> {
        let _ = since;
        Err(Unavailable::Unsupported)
    }

    /// Reads an event that the service pushed. Who sent it has been proven already.
    ///
    /// # Errors
    /// [`NotAnEvent`].
    fn parse_push(&self, headers: &HeaderMap, body: &[u8]) -> Result<Vec<Change>, NotAnEvent> {
        let _ = (headers, body);
        Err(NotAnEvent("this provider takes no events"))
    }

    /// Checks what an operator can get wrong: address, credentials, each privilege; for `stepward doctor`.
    async fn probe(&self, deadline: Instant) -> Vec<Finding>;
}

/// How much an inventory can list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Nothing.
    None,
    /// All of it.
    Whole,
    /// All of it, and what changed after a moment.
    Incremental,
}

/// The end of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Whether it is proven that nothing was left out: only then is a device that was not listed gone. Of a list of what changed
    /// this says nothing: what did not report is not in it, so it confirms the devices alone that it lists.
    pub complete: bool,
}

/// Something happened to a device. It drops what is remembered, and never says what is so now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which device.
    pub device: Subject,
    /// Whether what was known before may not even outlive an outage: un-enrolled, wiped, lost, out of a group.
    pub revoking: bool,
}

/// A change in a service's own feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// How the feed names the event, so that it counts once though it is read twice; empty where it has no name.
    pub event: String,
    /// What happened.
    pub change: Change,
}

/// How an event names a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A serial number, unique device identifier, or another identifier of its record.
    Identifier(String),
    /// [`Record::provider_id`].
    ProviderId(String),
    /// The event touches devices that it does not name.
    Everything,
}

/// An event that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAnEvent(pub &'static str);

/// What [`Inventory::probe`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: `address`, `credentials`, `privilege Read Computers`, `clock`.
    pub check: String,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub detail: String,
    /// What to do about it; empty where there is nothing to do.
    pub fix: String,
}

/// How a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Good,
    /// It works, and should be looked at.
    Doubtful,
    /// It does not work.
    Bad,
}

impl Finding {
    /// Nothing to do.
    pub fn good(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check: check.into(), state: State::Good, detail: detail.into(), fix: String::new() }
    }

    /// Something to mend.
    pub fn bad(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check: check.into(), state: State::Bad, detail: detail.into(), fix: fix.into() }
    }

    /// What a question came to that was not answered; `credentials` and `privilege` say what to do about a 401 and a 403.
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

    /// What a clock that differs by `skew` from the service's means.
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
