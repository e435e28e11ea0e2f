//! Webhooks as step-ca sends them: a body, its signature, and the headers around them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use posture::secret::Secret;
use posture::shape::{SIGNATURE, WEBHOOK_ID};
use posture::verify::SigningKeys;
use serde_json::json;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::client::{Outgoing, post};

/// A registered webhook: its id, and its secret as step-ca prints it.
#[derive(Clone, Debug)]
pub struct Registered {
    /// Id of the webhook, `X-Smallstep-Webhook-ID`.
    pub id: String,
    /// Secret of the webhook, in base64.
    pub secret: String,
}

impl Registered {
    /// Makes a webhook with a random secret.
    pub fn random(id: &str) -> Self {
        Self { id: id.to_owned(), secret: STANDARD.encode(rand::random::<[u8; 32]>()) }
    }

    /// The signature over a body, in hexadecimal.
    pub fn signature(&self, body: &[u8]) -> String {
        let secret = Secret::from_base64(&self.secret).unwrap();
        let keys = if secret.is_empty() { SigningKeys::unsigned() } else { SigningKeys::new(&[secret]) };
        keys.sign(body).unwrap().to_hex()
    }

    /// A signed request with this body.
    pub fn signed(&self, body: impl Into<Bytes>) -> Outgoing {
        let body = body.into();
        let signature = self.signature(&body);
        post("/webhook/device-attest", body).header(WEBHOOK_ID, &self.id).header(SIGNATURE, &signature)
    }

    /// A signed request of an enriching webhook about an attested device, made now.
    pub fn ask(&self, device: &str) -> Outgoing {
        self.signed(enriching(device))
    }
}

/// The body of an enriching webhook about an attested device, made now; no two bodies are equal.
pub fn enriching(device: &str) -> Vec<u8> {
    body_at(device, Duration::ZERO)
}

/// The body of [`enriching`], made at a moment relative to now.
pub fn body_at(device: &str, offset: Duration) -> Vec<u8> {
    let body = json!({
        "timestamp": timestamp(offset),
        "attestationData": {"permanentIdentifier": device},
        "x509CertificateRequest": {
            "version": 0,
            "subject": {"commonName": device},
            "dnsNames": null,
            "emailAddresses": null,
            "ipAddresses": null,
            "uris": null,
            "publicKey": STANDARD.encode(rand::random::<[u8; 32]>()),
            "publicKeyAlgorithm": "ECDSA",
            "raw": "",
        },
    });
    serde_json::to_vec(&body).unwrap()
}

/// A moment relative to now, as Go writes it.
pub fn timestamp(offset: Duration) -> String {
    (OffsetDateTime::now_utc() + offset).format(&Rfc3339).unwrap()
}
