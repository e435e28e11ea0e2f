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
use crate::answer::Unavailable;
use crate::http::{Client, Endpoint, Reply};
use crate::lenient;
use crate::token::Tokens;

/// A Jamf Pro server, with its login and what is known of its version.
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) tokens: Tokens<ClientCredentials>,
    versions: Versions,
    /// The last time that lenient exception handling did not help: then the server itself fails, and one request a search is
    /// enough for a while.
    leniency: Lately,
    /// The last time that the server refused the date of a mobile device's last contact as a filter.
    contactless: Lately,
}

/// The records that are asked for.
#[derive(Clone, Debug)]
pub(super) enum Filter {
    /// All records.
    All,
    /// Records with this serial number; a literal of RSQL, in quotes.
    Serial(String),
    /// Records with this unique device identifier; a literal of RSQL, in quotes.
    Udid(String),
    /// Records of devices that were heard of after this moment, RFC 3339.
    Since(String),
}

impl Filter {
    /// Judges the status of an answer: a question about one identifier may be refused for that identifier alone.
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
    /// Number of records on all pages, as the server says it.
    pub(super) total: Option<u64>,
    /// Whether the server was allowed to leave out records that fail.
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
        // The login shares the cookies: a node other than the one that gave a token may not know it.
        let tokens = Tokens::new(ClientCredentials::new(client.apart(), id, secret)?);
        let (leniency, contactless) = (Lately::default(), Lately::default());
        Ok(Self { client, tokens, versions: Versions::default(), leniency, contactless })
    }

    /// Sends a GET with a token; any status but 401 is the caller's to judge.
    pub(super) async fn get(&self, path: &str, query: &[(&str, &str)], deadline: Instant, most: usize) -> Result<Reply, Unavailable> {
        let url = self.client.url(path, query);
        let request =
            |token: &crate::token::Token| self.client.get(url.clone()).bearer_auth(token.expose()).header(ACCEPT, "application/json");
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
        // `lastContactDate` is a filter since 11.30; before, the date of the last inventory stands in for it.
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
        // One record that the server cannot put together fails a whole page, unless the server may leave it out.
        query.push(("exception-handling", "LENIENT"));
        let reply = self.get(MOBILE_DEVICES, &query, deadline, most).await?;
        self.leniency.note(reply.status == StatusCode::INTERNAL_SERVER_ERROR);
        Ok(Page { lenient: true, ..Page::read(&filter.judge(reply)?)? })
    }
}

impl Page {
    /// Returns whether the page has more rows than its total.
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
    // The client does not print, since it holds cookies.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("base_url", &self.client.base_url().as_str()).finish_non_exhaustive()
    }
}

/// The version of `computers-inventory` that the server has.
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
    /// Versions to try, in this order: the one that worked last comes first, unless the server may have been upgraded since.
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

/// The moment when something last happened.
#[derive(Debug, Default)]
struct Lately(Mutex<Option<Instant>>);

impl Lately {
    fn within(&self, time: Duration) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < time)
    }

    /// Notes that the event happened now, or that it did not.
    fn note(&self, happened: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = happened.then(Instant::now);
    }
}

const NEWEST: u8 = 4;

/// Versions of `computers-inventory`, newest first. Version 4 came with 11.30; a server with neither 4 nor 3 has 1.
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
