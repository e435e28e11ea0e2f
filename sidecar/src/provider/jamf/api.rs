//! Requests to Jamf Pro: pages of its two inventories in the newest version that the server has.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use http::header::ACCEPT;
use posture::record::Form;
use posture::secret::Secret;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::login::ClientCredentials;
use crate::provider::Unavailable;
use crate::provider::http::{Client, Endpoint, Reply};
use crate::provider::lenient;
use crate::provider::token::Tokens;

/// A server, and how it is spoken to.
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) tokens: Tokens<ClientCredentials>,
    versions: Versions,
    /// When it last did not help to let the server leave out what fails: then it is the server that fails, and one request a search
    /// is enough for it.
    leniency: Lately,
    /// When the server last did not know when a mobile device was heard of, as a filter.
    contactless: Lately,
}

/// What records are asked for.
#[derive(Clone, Debug)]
pub(super) enum Filter {
    /// All of them.
    All,
    /// Those with this serial number; a literal of RSQL, in quotes.
    Serial(String),
    /// Those with this unique device identifier; a literal of RSQL, in quotes.
    Udid(String),
    /// Those that were heard of since, RFC 3339.
    Since(String),
}

impl Filter {
    /// An answer that it was asked by: what is about one identifier may be refused for that one alone.
    fn judge(&self, reply: Reply) -> Result<Reply, Unavailable> {
        match self {
            Self::Serial(_) | Self::Udid(_) => reply.about_one(),
            Self::All | Self::Since(_) => reply.ok(),
        }
    }
}

/// One page of records.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) rows: Vec<Value>,
    /// How many there are on all pages, as the server says.
    pub(super) total: Option<u64>,
    /// Whether the server was let leave out what fails.
    pub(super) lenient: bool,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default, rename = "totalCount")]
    total: Value,
    results: Vec<Value>,
}

impl Api {
    pub(super) fn new(endpoint: &Endpoint, id: &str, secret: &Secret) -> Result<Self, String> {
        let client = Client::new(endpoint)?;
        // The same cookies: a token can be unknown to another node than the one that gave it.
        let tokens = Tokens::new(ClientCredentials::new(client.apart(), id, secret)?);
        let (leniency, contactless) = (Lately::default(), Lately::default());
        Ok(Self { client, tokens, versions: Versions::default(), leniency, contactless })
    }

    /// Asks with a token; any status but 401 is the caller's to judge.
    pub(super) async fn get(&self, path: &str, query: &[(&str, &str)], deadline: Instant, most: usize) -> Result<Reply, Unavailable> {
        let url = self.client.url(path, query);
        let request = |token: &crate::provider::token::Token| {
            self.client.get(url.clone()).bearer_auth(token.expose()).header(ACCEPT, "application/json")
        };
        self.tokens.send(&self.client, deadline, most, request).await
    }

    /// A page of records of one kind, in the order of their ids.
    pub(super) async fn page(
        &self,
        form: Form,
        filter: &Filter,
        (number, size): (usize, usize),
        deadline: Instant,
        most: usize,
    ) -> Result<Page, Unavailable> {
        let (number, size) = (number.to_string(), size.to_string());
        let paging = [("page", number.as_str()), ("page-size", size.as_str())];
        match form {
            Form::Computer => self.computers(filter, paging, deadline, most).await,
            Form::MobileDevice => self.mobile_devices(filter, paging, deadline, most).await,
        }
    }

    async fn computers(&self, filter: &Filter, paging: [(&str, &str); 2], deadline: Instant, most: usize) -> Result<Page, Unavailable> {
        for version in self.versions.order() {
            let text = match filter {
                Filter::All => String::new(),
                Filter::Serial(literal) => format!("hardware.serialNumber=={literal}"),
                Filter::Udid(literal) => format!("udid=={literal}"),
                Filter::Since(moment) if version >= 4 => format!("general.lastContact>\"{moment}\""),
                Filter::Since(moment) => format!("general.lastContactTime>\"{moment}\""),
            };
            let query = query(COMPUTER_SECTIONS, paging, "id:asc", &text);
            let reply = self.get(&format!("/api/v{version}/computers-inventory"), &query, deadline, most).await?;
            if reply.status != StatusCode::NOT_FOUND {
                self.versions.works(version);
                return Page::read(&filter.judge(reply)?);
            }
        }
        Err(Unavailable::Protocol)
    }

    async fn mobile_devices(
        &self,
        filter: &Filter,
        paging: [(&str, &str); 2],
        deadline: Instant,
        most: usize,
    ) -> Result<Page, Unavailable> {
        // `lastContactDate` is a filter since 11.30; what was collected before counts as well as it can.
        let before = self.contactless.within(REMEMBERED);
        let text = match filter {
            Filter::All => String::new(),
            Filter::Serial(literal) => format!("serialNumber=={literal}"),
            Filter::Udid(literal) => format!("udid=={literal}"),
            Filter::Since(moment) if before => format!("lastInventoryUpdateDate>\"{moment}\""),
            Filter::Since(moment) => format!("lastContactDate>\"{moment}\""),
        };
        let mut query = query(MOBILE_SECTIONS, paging, "mobileDeviceId:asc", &text);
        let reply = self.get(MOBILE_DEVICES, &query, deadline, most).await?;
        if reply.status == StatusCode::BAD_REQUEST && matches!(filter, Filter::Since(_)) && !before {
            self.contactless.note(true);
            return Box::pin(self.mobile_devices(filter, paging, deadline, most)).await;
        }
        if reply.status != StatusCode::INTERNAL_SERVER_ERROR || self.leniency.within(IN_VAIN) {
            return Page::read(&filter.judge(reply)?);
        }
        // One record that the server cannot put together fails a whole page, unless what fails may be left out.
        query.push(("exception-handling", "LENIENT"));
        let reply = self.get(MOBILE_DEVICES, &query, deadline, most).await?;
        self.leniency.note(reply.status == StatusCode::INTERNAL_SERVER_ERROR);
        Ok(Page { lenient: true, ..Page::read(&filter.judge(reply)?)? })
    }
}

impl Page {
    /// Whether it has more rows than it says that there are: one of the two is not so.
    pub(super) fn contradicts_itself(&self) -> bool {
        self.total.is_some_and(|total| u64::try_from(self.rows.len()).is_ok_and(|rows| total < rows))
    }

    fn read(reply: &Reply) -> Result<Self, Unavailable> {
        let body: Value = reply.json()?;
        if lenient::fails(&body) {
            return Err(Unavailable::Protocol);
        }
        let body: Body = serde_json::from_value(body).map_err(|_| Unavailable::Protocol)?;
        Ok(Self { rows: body.results, total: body.total.as_u64(), lenient: false })
    }
}

fn query<'q>(sections: &[&'q str], paging: [(&'q str, &'q str); 2], sort: &'q str, filter: &'q str) -> Vec<(&'q str, &'q str)> {
    let sections = sections.iter().map(|section| ("section", *section));
    let filter = (!filter.is_empty()).then_some(("filter", filter));
    sections.chain(paging).chain([("sort", sort)]).chain(filter).collect()
}

impl fmt::Debug for Api {
    // The client holds cookies.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("base_url", &self.client.base_url().as_str()).finish_non_exhaustive()
    }
}

/// Which version of `computers-inventory` the server has.
#[derive(Debug)]
struct Versions(Mutex<Known>);

#[derive(Clone, Copy, Debug)]
struct Known {
    version: u8,
    at: Instant,
}

impl Default for Versions {
    fn default() -> Self {
        Self(Mutex::new(Known { version: NEWEST, at: Instant::now() }))
    }
}

impl Versions {
    /// Those to try, in this order: what worked last, unless the server may have been upgraded since.
    fn order(&self) -> Vec<u8> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.at.elapsed() > REMEMBERED {
            return LADDER.to_vec();
        }
        let others = LADDER.iter().copied().filter(|version| *version != known.version);
        std::iter::once(known.version).chain(others).collect()
    }

    fn works(&self, version: u8) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.version != version || known.at.elapsed() > REMEMBERED {
            *known = Known { version, at: Instant::now() };
        }
    }
}

/// When something last happened.
#[derive(Debug, Default)]
struct Lately(Mutex<Option<Instant>>);

impl Lately {
    fn within(&self, time: Duration) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < time)
    }

    /// That it happened now, or did not.
    fn note(&self, happened: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = happened.then(Instant::now);
    }
}

const NEWEST: u8 = 4;

/// Version 4 came with 11.30. A server that has neither it nor 3 has 1.
const LADDER: &[u8] = &[NEWEST, 3, 1];
const REMEMBERED: Duration = Duration::from_secs(3600);
const IN_VAIN: Duration = Duration::from_secs(60);
const MOBILE_DEVICES: &str = "/api/v2/mobile-devices/detail";
const COMPUTER_SECTIONS: &[&str] = &["GENERAL", "HARDWARE", "OPERATING_SYSTEM", "USER_AND_LOCATION", "SECURITY", "GROUP_MEMBERSHIPS"];
const MOBILE_SECTIONS: &[&str] = &["GENERAL", "HARDWARE", "USER_AND_LOCATION", "SECURITY", "GROUPS"];

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_version_that_worked_is_tried_first_for_an_hour() {
        let versions = Versions::default();
        assert_eq!(versions.order(), [4, 3, 1]);
        versions.works(1);
        assert_eq!(versions.order(), [1, 4, 3]);
        tokio::time::advance(Duration::from_secs(3601)).await;
        assert_eq!(versions.order(), [4, 3, 1], "the server may have been upgraded");
        versions.works(1);
        assert_eq!(versions.order(), [1, 4, 3]);
    }
}
