//! The login to Mosyle: access token, mail address and password, for a token that comes in a header of the answer.

use std::time::Duration;

use async_trait::async_trait;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use posture::secret::Secret;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::settings::{Product, Settings};
use crate::answer::Unavailable;
use crate::http::{Client, secret_header};
use crate::token::{Grant, Login};

/// Name of the header with the access token, which only Business takes.
pub(super) const ACCESS_TOKEN: HeaderName = HeaderName::from_static("accesstoken");

/// The login to Mosyle.
#[derive(Debug)]
pub(super) struct MosyleLogin {
    client: Client,
    product: Product,
    email: String,
    access_token: Secret,
    password: Secret,
    /// The access token as a header's value; marked as sensitive, so it does not print.
    access_header: HeaderValue,
}

impl MosyleLogin {
    pub(super) fn new(client: Client, settings: &Settings, access_token: &Secret, password: &Secret) -> Result<Self, String> {
        for (name, secret) in [("access_token", access_token), ("password", password)] {
            if std::str::from_utf8(secret.expose()).is_err() {
                return Err(format!("`{name}` is not text"));
            }
        }
        let access_header = secret_header("access_token", "", Some(access_token))?;
        let (access_token, password) = (access_token.clone(), password.clone());
        Ok(Self { client, product: settings.product, email: settings.email.clone(), access_token, password, access_header })
    }

    /// The access token as text.
    pub(super) fn access_token(&self) -> &str {
        text(&self.access_token)
    }

    /// The access token as the value of a header.
    pub(super) fn access_header(&self) -> HeaderValue {
        self.access_header.clone()
    }
}

#[async_trait]
impl Login for MosyleLogin {
    async fn login(&self, deadline: Instant) -> Result<Grant, Unavailable> {
        let body = json!({"accessToken": self.access_token(), "email": self.email, "password": text(&self.password)});
        let request = self.client.post(self.client.url("/login", &[])).json(&body);
        let request = match self.product {
            Product::Business => request.header(ACCESS_TOKEN, self.access_header()),
            Product::Manager => request,
        };
        let reply = self.client.send(request, deadline, LARGEST).await?;
        if matches!(reply.status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(Unavailable::AuthRejected);
        }
        let reply = reply.ok()?;
        match token(&reply.headers) {
            Some(token) => Ok(Grant { token, lifetime: Some(LIFETIME) }),
            // Mosyle may refuse a login with 200.
            None if reply.json::<Value>()?.get("error").is_some() => Err(Unavailable::AuthRejected),
            None => Err(Unavailable::Protocol),
        }
    }
}

fn text(secret: &Secret) -> &str {
    std::str::from_utf8(secret.expose()).unwrap_or_default().trim_ascii()
}

/// The token of `Authorization: Bearer …`, with or without the scheme.
fn token(headers: &HeaderMap) -> Option<Secret> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let token = match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        None if !value.eq_ignore_ascii_case("bearer") => value,
        _ => return None,
    };
    let good = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    good.then(|| Secret::new(token.as_bytes().to_vec()))
}

/// Lifetime of a token: Mosyle's day less an hour, since a refusal in the middle costs a lookup two requests more.
const LIFETIME: Duration = Duration::from_secs(23 * 3600);
/// Longest answer to a login, in bytes.
const LARGEST: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_token_whatever_the_case_of_its_header() {
        for (value, expected) in [
            ("Bearer abc.def-_", Some("abc.def-_")),
            ("bearer abc", Some("abc")),
            ("BEARER  abc ", Some("abc")),
            ("abc", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearer ", None),
            ("Bearer a b", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]);
            let found = token(&headers).map(|token| String::from_utf8(token.expose().to_vec()).unwrap());
            assert_eq!(found.as_deref(), expected, "{value}");
        }
        assert!(token(&HeaderMap::new()).is_none());
    }
}
