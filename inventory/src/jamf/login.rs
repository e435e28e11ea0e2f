//! Tokens of an API client: OAuth 2.0 client credentials (RFC 6749 4.4).

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http::StatusCode;
use posture::secret::Secret;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::answer::Unavailable;
use crate::http::{Client, LOOKUP, Reply};
use crate::token::{Grant, Login};

/// The login to Jamf Pro.
pub(super) struct ClientCredentials {
    client: Client,
    id: String,
    secret: Secret,
    /// Whether only the address of Jamf Pro before 11.23 existed at the last login.
    old: AtomicBool,
}

impl ClientCredentials {
    pub(super) fn new(client: Client, id: &str, secret: &Secret) -> Result<Self, String> {
        if secret.is_empty() || std::str::from_utf8(secret.expose()).is_err() {
            return Err("the client secret is empty, or is no text".to_owned());
        }
        Ok(Self { client, id: id.to_owned(), secret: secret.clone(), old: AtomicBool::new(false) })
    }

    async fn ask(&self, path: &str, deadline: Instant) -> Result<Reply, Unavailable> {
        let secret = std::str::from_utf8(self.secret.expose()).unwrap_or_default();
        let form = [("grant_type", "client_credentials"), ("client_id", &self.id), ("client_secret", secret)];
        self.client.send(self.client.post(self.client.url(path, &[])).form(&form), deadline, LOOKUP).await
    }
}

#[async_trait]
impl Login for ClientCredentials {
    async fn login(&self, deadline: Instant) -> Result<Grant, Unavailable> {
        let old = self.old.load(Ordering::Relaxed);
        let mut reply = self.ask(if old { OLD } else { NEW }, deadline).await?;
        if reply.status == StatusCode::NOT_FOUND {
            reply = self.ask(if old { NEW } else { OLD }, deadline).await?;
            if reply.status != StatusCode::NOT_FOUND {
                self.old.store(!old, Ordering::Relaxed);
            }
        }
        // RFC 6749 5.2: a fault of the client comes with 400; some versions of Jamf answer 401.
        if reply.status == StatusCode::BAD_REQUEST {
            let refused: Refused = reply.json()?;
            return Err(if REFUSALS.contains(&refused.error.as_str()) { Unavailable::AuthRejected } else { Unavailable::Protocol });
        }
        let granted: Granted = reply.ok()?.json()?;
        if granted.access_token.is_empty() || !granted.access_token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Unavailable::Protocol);
        }
        Ok(Grant { lifetime: lifetime(&granted.expires_in), token: Secret::new(granted.access_token.into_bytes()) })
    }
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCredentials(..)")
    }
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    #[serde(default)]
    expires_in: Value,
}

#[derive(Deserialize)]
struct Refused {
    error: String,
}

/// Reads the lifetime in seconds, as a number or as text. Without a sensible value the token is used until it is refused.
fn lifetime(expires_in: &Value) -> Option<Duration> {
    let seconds = match expires_in {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    seconds.filter(|seconds| *seconds > 0.0).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}

const NEW: &str = "/api/v1/oauth/token";
const OLD: &str = "/api/oauth/token";
const REFUSALS: &[&str] = &["invalid_client", "invalid_grant", "unauthorized_client", "access_denied", "invalid_scope"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_any_lifetime() {
        for (given, seconds) in [
            (json!(60), Some(60)),
            (json!("1200"), Some(1200)),
            (json!(1_000_000_000_000_u64), Some(1_000_000_000_000)),
            (json!(1e300), None),
            (json!(0), None),
            (json!(-5), None),
            (json!("soon"), None),
            (json!(null), None),
            (json!([60]), None),
        ] {
            assert_eq!(lifetime(&given), seconds.map(Duration::from_secs), "{given}");
        }
    }
}
