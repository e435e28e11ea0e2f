//! Fleet (`type = "fleet"`). Source: `fleetdm/fleet`, `docs/REST API`, sections Hosts and Authentication.
//!
//! A lookup searches the list for the identifier, and asks for the one host that fits by its id. Fleet's own look-up by
//! identifier is not used: it minds upper and lower case; it looks at the hosts of all teams and then refuses a host that the
//! token may not see; and it answers with the first host that fits, even one that is named like another's serial number
//! (`fleetdm/fleet`, `server/datastore/mysql/hosts.go`, `HostByIdentifier`). The search does none of that.

mod event;
mod record;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, StatusCode};
use posture::identity::{DeviceId, IdentifierKind, same};
use posture::record::{Field, Fields, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use serde_json::Value;
use settings::{SecretSource, Section};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::{Answer, Unavailable};
use crate::http::{Client, Endpoint, LOOKUP, PAGE, RECORDS, Reply, secret_header};
use crate::inventory::{Change, Finding, Inventory, Listed, Listing, NotAnEvent, Question, State};
use crate::lenient;
use crate::setup::{Defaults, Setup};
use crate::shown::{Row, Shown};

pub use record::ManagedBy;

/// The service's word in `type = "…"`.
pub(crate) const NAME: &str = "fleet";

/// `[provider.<name>]` with `type = "fleet"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Token of an API-only user with the role Observer.
    pub token: SecretSource,
    /// The management that makes a host a managed one; default Fleet's own.
    pub managed_by: ManagedBy,
}

impl Setup for Settings {
    fn name(&self) -> &'static str {
        NAME
    }

    fn defaults() -> Defaults {
        // Every Fleet server has an address of its own.
        Defaults { base_url: None, connections: 10, per_second: 20 }
    }

    fn read(section: &mut Section<'_>, base: &Path) -> Option<Self> {
        let managed_by = section.text("managed_by", |text| match text {
            "fleet" => Ok(ManagedBy::Fleet),
            "any" => Ok(ManagedBy::Any),
            _ => Err(format!("`{text}` is not known; write \"fleet\" or \"any\"")),
        });
        Some(Self { token: SecretSource::required(section, "token", base)?, managed_by: managed_by.unwrap_or_default() })
    }

    fn fields(&self) -> Fields {
        record::FIELDS
    }

    fn secrets(&self) -> Vec<&SecretSource> {
        vec![&self.token]
    }

    fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Arc<dyn Inventory>, String> {
        let authorization = secret_header("token", "Bearer ", secrets.first())?;
        Ok(Arc::new(Fleet { client: Client::new(endpoint)?, authorization, managed_by: self.managed_by }))
    }
}

/// A Fleet server.
#[derive(Debug)]
pub struct Fleet {
    client: Client,
    /// Header with the token; marked as sensitive, so it does not print.
    authorization: HeaderValue,
    managed_by: ManagedBy,
}

#[async_trait]
impl Inventory for Fleet {
    fn fields(&self) -> Fields {
        record::FIELDS
    }

    fn asks(&self, kind: IdentifierKind) -> bool {
        field(kind).is_some()
    }

    async fn lookup(&self, question: &Question) -> Answer {
        let Some(field) = field(question.device.kind()) else { return Answer::InvalidIdentifier };
        // No host has such an identifier, but a search for a dot finds every host name and address.
        if matches!(question.device.stated().trim_ascii(), "." | "..") {
            return Answer::InvalidIdentifier;
        }
        self.find(&question.device, field, question.deadline).await.unwrap_or_else(Answer::Unavailable)
    }

    fn listing(&self) -> Listing {
        Listing::Whole
    }

    fn lists(&self, need: Fields) -> Fields {
        need.without(record::SINGLE)
    }

    async fn list(&self, _since: Option<UnixTime>, need: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        // Hosts that enrol meanwhile have larger ids than any before. So if the ids up to the newest are `count` in number, no
        // host slipped from one page to another.
        let newest = [("per_page", "1"), ("order_key", "id"), ("order_direction", "desc")];
        let mut states = need.meets(STATES);
        if states {
            // An edition without the states may refuse the question. The answer about a single host has them.
            let reply = self.get("", &[&newest[..], &[DEVICE_STATUS]].concat(), page_deadline(), LOOKUP).await?;
            states = !matches!(reply.status, StatusCode::PAYMENT_REQUIRED | StatusCode::BAD_REQUEST);
        }
        let newest = self.hosts(&newest, page_deadline(), LOOKUP).await?;
        let newest = newest.first().map_or(Ok(0), id)?;
        let count = self.get("/count", &[], page_deadline(), LOOKUP).await?.ok()?.json::<Value>()?;
        let count = count.get("count").and_then(Value::as_u64).ok_or(Unavailable::Protocol)?;
        let (mut seen, mut contradicted) = (Shown::default(), false);
        for page in 0..MOST_LIST_PAGES {
            let number = page.to_string();
            let mut query = vec![("page", number.as_str()), ("per_page", LIST_ROWS.1), ("order_key", "id")];
            query.extend(need.contains(Field::Groups).then_some(("populate_labels", "true")));
            query.extend(need.contains(Field::Compliance).then_some(("populate_policies", "true")));
            query.extend(states.then_some(DEVICE_STATUS));
            let hosts = self.hosts(&query, page_deadline(), PAGE).await?;
            let last = hosts.len() < LIST_ROWS.0;
            let (mut records, before) = (Vec::with_capacity(hosts.len()), seen.len());
            for host in &hosts {
                let again = seen.take(id(host)?, host);
                contradicted |= again == Row::Contradiction;
                // Both rows of a contradiction are sent, so that neither is believed.
                if again != Row::Slipped {
                    records.push(record::record(host, self.managed_by));
                }
            }
            // A page without a new host would come for ever.
            if seen.len() == before && !last || seen.len() > RECORDS {
                return Ok(Listed { complete: false });
            }
            if !records.is_empty() && pages.send(records).await.is_err() {
                return Ok(Listed { complete: false });
            }
            if last {
                let known = seen.devices().filter(|id| **id <= newest).count();
                return Ok(Listed { complete: !contradicted && u64::try_from(known) == Ok(count) });
            }
        }
        Ok(Listed { complete: false })
    }

    fn parse_push(&self, _headers: &HeaderMap, body: &[u8]) -> Result<Vec<Change>, NotAnEvent> {
        event::parse(body)
    }

    async fn probe(&self, deadline: Instant) -> Vec<Finding> {
        let reply = match self.get("", &[("per_page", "1")], deadline, LOOKUP).await {
            Ok(reply) => reply,
            Err(fault) => return vec![Finding::fault(fault, TOKEN_FIX, ROLE_FIX)],
        };
        let clock = reply.clock_skew().map(|(skew, ahead)| Finding::clock(skew, ahead));
        let mut findings = match reply.ok().and_then(|reply| rows(&reply)) {
            Ok(hosts) => {
                let seen = if hosts.is_empty() { "it answers, and shows no host" } else { "it answers" };
                vec![
                    Finding::good("address", seen),
                    Finding::good("credentials", "the token is taken"),
                    Finding::good("privilege", "hosts can be read"),
                ]
            }
            Err(fault) => vec![Finding::fault(fault, TOKEN_FIX, ROLE_FIX)],
        };
        findings.extend(clock);
        if findings.iter().all(|finding| finding.state == State::Good) {
            findings.extend(self.teams(deadline).await);
        }
        findings
    }
}

impl Fleet {
    async fn find(&self, device: &DeviceId, field: &str, deadline: Instant) -> Result<Answer, Unavailable> {
        let mut fitting = self.search(device, field, deadline).await?.into_iter();
        match (fitting.next(), fitting.next()) {
            (None, _) => Ok(Answer::NotFound),
            (Some(_), Some(_)) => Ok(Answer::Ambiguous),
            // The list has less of a host: the single host also has its encryption, its state and its users.
            (Some(found), None) => match self.host(found, deadline).await? {
                None => Ok(Answer::NotFound),
                Some(host) if exact(&host, field, device)? => Ok(Answer::Found(record::record(&host, self.managed_by).into())),
                Some(_) => Err(Unavailable::Protocol),
            },
        }
    }

    /// Ids of the hosts with exactly this identifier; the search ends once two are found.
    async fn search(&self, device: &DeviceId, field: &str, deadline: Instant) -> Result<BTreeSet<u64>, Unavailable> {
        let mut fitting = BTreeSet::new();
        for page in 0..MOST_SEARCH_PAGES {
            let number = page.to_string();
            let query = [("query", device.stated().trim_ascii()), ("page", &number), ("per_page", SEARCH_ROWS.1), ("order_key", "id")];
            let hosts = rows(&self.get("", &query, deadline, LOOKUP).await?.about_one()?)?;
            for host in &hosts {
                if exact(host, field, device)? {
                    fitting.insert(id(host)?);
                }
            }
            if hosts.len() < SEARCH_ROWS.0 || fitting.len() > 1 {
                return Ok(fitting);
            }
        }
        Err(Unavailable::FilterIgnored)
    }

    /// One host; `None` where Fleet itself says that there is none.
    async fn host(&self, id: u64, deadline: Instant) -> Result<Option<Value>, Unavailable> {
        let reply = self.get(&format!("/{id}"), &[("exclude_software", "true")], deadline, LOOKUP).await?;
        if reply.status == StatusCode::NOT_FOUND {
            // A 404 from a proxy or for a wrong address says nothing of the host.
            let error = reply.json::<Value>()?;
            return if error.get("errors").is_some_and(Value::is_array) { Ok(None) } else { Err(Unavailable::Protocol) };
        }
        let mut answer = reply.about_one()?.json::<Value>()?;
        let host = answer.get_mut("host").map(Value::take).filter(|host| host.is_object() && !lenient::fails(&answer));
        host.map(Some).ok_or(Unavailable::Protocol)
    }

    async fn hosts(&self, query: &[(&str, &str)], deadline: Instant, most: usize) -> Result<Vec<Value>, Unavailable> {
        rows(&self.get("", query, deadline, most).await?.ok()?)
    }

    /// Sends a GET about hosts.
    ///
    /// # Errors
    /// The errors of [`Client::send`]; [`Unavailable::ServerError`] for 422, which Fleet answers where its database fails or is
    /// too slow.
    async fn get(&self, path: &str, query: &[(&str, &str)], deadline: Instant, most: usize) -> Result<Reply, Unavailable> {
        let reply = self.ask(&format!("/hosts{path}"), query, deadline, most).await?;
        if reply.status == StatusCode::UNPROCESSABLE_ENTITY { Err(Unavailable::ServerError(reply.retry_after())) } else { Ok(reply) }
    }

    async fn ask(&self, path: &str, query: &[(&str, &str)], deadline: Instant, most: usize) -> Result<Reply, Unavailable> {
        let url = self.client.url(&format!("/api/v1/fleet{path}"), query);
        self.client.send(self.client.get(url).header(AUTHORIZATION, self.authorization.clone()), deadline, most).await
    }

    /// A finding about the teams that the token's user may see, where those are not all.
    async fn teams(&self, deadline: Instant) -> Option<Finding> {
        let me = self.ask("/me", &[], deadline, LOOKUP).await.ok()?.ok().ok()?.json::<Value>().ok()?;
        let user = me.get("user")?;
        let named = |list: &Value| -> Vec<String> {
            let name = |team: &Value| team.get("name").and_then(Value::as_str).map(|name| format!("`{name}`"));
            list.as_array().into_iter().flatten().filter_map(name).collect()
        };
        // Newer servers call teams fleets.
        let teams = ["teams", "fleets"].iter().find_map(|key| user.get(*key).map(named)).unwrap_or_default();
        if user.get("global_role").is_some_and(Value::is_string) || teams.is_empty() {
            return None;
        }
        let detail = format!("the token sees the hosts of {} alone; all others count as not there", teams.join(", "));
        let fix = "nothing, if that is all; otherwise give the user the role Observer for all teams";
        Some(Finding { state: State::Doubtful, ..Finding::bad("teams", detail, fix) })
    }
}

fn rows(reply: &Reply) -> Result<Vec<Value>, Unavailable> {
    let mut answer = reply.json::<Value>()?;
    match answer.get_mut("hosts").map(Value::take).filter(|_| !lenient::fails(&answer)) {
        Some(Value::Array(hosts)) => Ok(hosts),
        _ => Err(Unavailable::Protocol),
    }
}

/// The field of a host that holds identifiers of a kind.
const fn field(kind: IdentifierKind) -> Option<&'static str> {
    match kind {
        IdentifierKind::Serial => Some("hardware_serial"),
        IdentifierKind::Udid => Some("uuid"),
        IdentifierKind::Yubico | IdentifierKind::Tpm | IdentifierKind::Hostname | IdentifierKind::Email => None,
    }
}

/// Returns whether a host has exactly this identifier.
///
/// # Errors
/// [`Unavailable::Protocol`] where the host has no such field: it may be the device that was asked for.
fn exact(host: &Value, field: &str, device: &DeviceId) -> Result<bool, Unavailable> {
    let stored = host.get(field).and_then(Value::as_str).ok_or(Unavailable::Protocol)?;
    Ok(same(device.kind(), stored, device.stated()))
}

fn id(host: &Value) -> Result<u64, Unavailable> {
    host.get("id").and_then(Value::as_u64).ok_or(Unavailable::Protocol)
}

fn page_deadline() -> Instant {
    Instant::now() + LIST_PAGE_TIME
}

const TOKEN_FIX: &str = "make a new token: `fleetctl user create --api-only --global-role observer`, and put it into the file of `token`";
const ROLE_FIX: &str = "give the API-only user the role Observer, for all teams";
/// Fields of a host's state in the management; only Fleet Premium lists them, where they are asked for.
const STATES: Fields = Fields::of(&[Field::Lost, Field::WipePending]);
const DEVICE_STATUS: (&str, &str) = ("include_device_status", "true");
/// Rows on a page of a search, as number and as text.
const SEARCH_ROWS: (usize, &str) = (100, "100");
const MOST_SEARCH_PAGES: usize = 10;
/// Rows on a page of the list, as number and as text.
const LIST_ROWS: (usize, &str) = (500, "500");
/// Most pages of the list: a million hosts.
const MOST_LIST_PAGES: usize = 2000;
const LIST_PAGE_TIME: Duration = Duration::from_secs(30);
