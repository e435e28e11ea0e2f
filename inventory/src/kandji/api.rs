//! Requests to Kandji, within the hour's remaining number.

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use posture::secret::Secret;
use posture::time::UnixTime;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::budget::{self, Budget};
use crate::answer::Unavailable;
use crate::errand::{Errand, Whom};
use crate::http::{Client, Endpoint, Reply, secret_header};

/// The API of a tenant.
#[derive(Debug)]
pub(super) struct Api {
    client: Client,
    /// Header with the token; marked as sensitive, so it does not print.
    authorization: HeaderValue,
    budget: Budget,
}

impl Api {
    /// Makes a client with a token. Nothing is sent yet.
    ///
    /// # Errors
    /// The reason in words for the operator.
    pub(super) fn new(endpoint: &Endpoint, token: Option<&Secret>) -> Result<Self, String> {
        let authorization = secret_header("token", "Bearer ", token)?;
        Ok(Self { client: Client::new(endpoint)?, authorization, budget: Budget::default() })
    }

    /// Checks that a request may be sent that no caller waits for.
    ///
    /// # Errors
    /// The errors of [`Budget::spare`].
    pub(super) fn spare(&self) -> Result<(), Unavailable> {
        self.budget.spare()
    }

    /// Sends a GET. No request is sent once the hour's are spent, nor one for an unknown device once the rest is kept for others.
    pub(super) async fn get(&self, path: &str, query: &[(&str, &str)], deadline: Instant, most: usize) -> Result<Reply, Unavailable> {
        match Errand::current() {
            Some(errand) if errand.whom() == Whom::New => self.budget.for_a_stranger(),
            _ => self.budget.check(),
        }?;
        let request = self.client.get(self.client.url(path, query)).header(AUTHORIZATION, self.authorization.clone());
        let reply = self.client.send(request, deadline, most).await?;
        self.budget.note(&reply.headers);
        if reply.status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Unavailable::RateLimited(reply.retry_after().or_else(|| budget::reset(&reply.headers))));
        }
        Ok(reply)
    }
}

/// The cursor of the next page, from its address. The address itself is not followed: for people it is on another host than the
/// API.
pub(super) fn next_cursor(next: Option<&Value>) -> Result<Option<String>, Unavailable> {
    match next {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(next)) => {
            let next: url::Url = next.parse().map_err(|_| Unavailable::Protocol)?;
            let cursor = next.query_pairs().find(|(name, _)| name == "cursor").map(|(_, cursor)| cursor.into_owned());
            cursor.map(Some).ok_or(Unavailable::Protocol)
        }
        Some(_) => Err(Unavailable::Protocol),
    }
}

/// A moment in the form that Kandji's filters take.
///
/// # Errors
/// [`Unavailable::Unsupported`] for a moment beyond the year 9999.
pub(super) fn rfc3339(at: UnixTime) -> Result<String, Unavailable> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.as_nanos())).map_err(|_| Unavailable::Unsupported)?;
    at.format(&Rfc3339).map_err(|_| Unavailable::Unsupported)
}

/// The deadline of a page that no caller waits for.
pub(super) fn page_deadline() -> Instant {
    Instant::now() + PAGE_TIME
}

/// Rows on a page, as number and text: the most that Kandji gives.
pub(super) const LIMIT: (usize, &str) = (300, "300");
const PAGE_TIME: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_next_page_is_a_cursor_and_never_an_address() {
        let next = |value: Value| next_cursor(Some(&value));
        assert_eq!(next(json!("https://elsewhere.example/x?a=1&cursor=cD0y%3D")), Ok(Some("cD0y=".to_owned())));
        assert_eq!(next(json!(null)), Ok(None));
        assert_eq!(next(json!("https://elsewhere.example/x")), Err(Unavailable::Protocol));
        assert_eq!(next(json!("cD0y")), Err(Unavailable::Protocol));
        assert_eq!(next(json!(7)), Err(Unavailable::Protocol));
        assert_eq!(next_cursor(None), Ok(None));
    }

    #[test]
    fn writes_times_as_kandji_reads_them() {
        assert_eq!(rfc3339(UnixTime::from_nanos(0)).unwrap(), "1970-01-01T00:00:00Z");
    }
}
