//! Requests to Addigy.

use http::HeaderValue;
use posture::secret::Secret;
use serde_json::Value;
use tokio::time::Instant;

use crate::answer::Unavailable;
use crate::http::{Client, Endpoint, Reply, secret_header};

/// The API of an organisation.
#[derive(Debug)]
pub(super) struct Api {
    client: Client,
    /// Value of the header with the key; marked as sensitive, so it does not print.
    key: HeaderValue,
}

impl Api {
    /// Makes a client with a key. Nothing is sent yet.
    ///
    /// # Errors
    /// The reason in words for the operator.
    pub(super) fn new(endpoint: &Endpoint, key: Option<&Secret>) -> Result<Self, String> {
        Ok(Self { client: Client::new(endpoint)?, key: secret_header("api_key", "", key)? })
    }

    /// Posts a question to a path.
    ///
    /// # Errors
    /// The errors of [`Client::send`].
    pub(super) async fn post(&self, path: &str, body: &Value, deadline: Instant, most: usize) -> Result<Reply, Unavailable> {
        let request = self.client.post(self.client.url(path, &[])).header("x-api-key", self.key.clone()).json(body);
        self.client.send(request, deadline, most).await
    }
}
