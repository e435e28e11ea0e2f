//! The client credentials grant of the Microsoft identity platform, by secret or by certificate.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use posture::secret::Secret;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use url::Url;

use super::settings::{Credential, Settings};
use crate::answer::Unavailable;
use crate::http::{Client, LOOKUP, Reply};
use crate::token::{self, Grant};

/// The login for tokens of Graph.
pub(super) struct Login {
    client: Client,
    url: Url,
    client_id: String,
    scope: String,
    proof: Proof,
    /// Microsoft's `AADSTS` number of the last refusal.
    refusal: Mutex<Option<u64>>,
}

enum Proof {
    Secret(Secret),
    Certificate(Box<(EncodingKey, Header)>),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("url", &self.url.as_str()).field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

impl Login {
    /// Makes the login from the settings and the secret or key.
    ///
    /// # Errors
    /// The reason in words for the operator: a certificate or key that cannot be read, or that are no pair.
    pub(super) fn new(settings: &Settings, client: Client, graph: &Url, secret: &Secret) -> Result<Self, String> {
        let proof = match &settings.credential {
            Credential::Secret(_) => Proof::Secret(secret.clone()),
            Credential::Certificate { certificate, .. } => {
                let shown = certificate.display();
                let pem = settings::files::read(certificate, settings::files::CERTIFICATES)
                    .map_err(|error| format!("client_certificate {shown} cannot be read: {error}"))?;
                let certificate =
                    CertificateDer::from_pem_slice(&pem).map_err(|_| format!("client_certificate {shown} holds no certificate in PEM"))?;
                check_pair(&certificate, secret)?;
                let key = EncodingKey::from_rsa_pem(secret.expose()).map_err(|_| "client_key is no RSA key in PEM".to_owned())?;
                let mut header = Header::new(Algorithm::PS256);
                header.x5t_s256 = Some(URL_SAFE_NO_PAD.encode(Sha256::digest(&certificate)));
                Proof::Certificate(Box::new((key, header)))
            }
        };
        Ok(Self {
            url: client.url(&format!("/{}/oauth2/v2.0/token", settings.tenant_id), &[]),
            client,
            client_id: settings.client_id.clone(),
            // A token of one cloud is good only at the Graph of that cloud.
            scope: format!("{}/.default", graph.origin().ascii_serialization()),
            proof,
            refusal: Mutex::new(None),
        })
    }

    /// The number by which Microsoft explains the last refusal, and the page that explains it.
    pub(super) fn refusal(&self) -> Option<(u64, String)> {
        let number = (*self.refusal.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some((number, format!("{}/error?code={number}", self.url.origin().ascii_serialization())))
    }

    fn form(&self) -> Result<Vec<(&'static str, String)>, Unavailable> {
        let mut form =
            vec![("grant_type", "client_credentials".to_owned()), ("client_id", self.client_id.clone()), ("scope", self.scope.clone())];
        match &self.proof {
            Proof::Secret(secret) => {
                let secret = std::str::from_utf8(secret.expose()).map_err(|_| Unavailable::AuthRejected)?;
                form.push(("client_secret", secret.to_owned()));
            }
            Proof::Certificate(signing) => {
                let (key, header) = signing.as_ref();
                let claims = Claims::new(self.url.as_str(), &self.client_id);
                let assertion = jsonwebtoken::encode(header, &claims, key).map_err(|_| Unavailable::AuthRejected)?;
                form.push(("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer".to_owned()));
                form.push(("client_assertion", assertion));
            }
        }
        Ok(form)
    }
}

#[async_trait]
impl token::Login for Login {
    async fn login(&self, deadline: Instant) -> Result<Grant, Unavailable> {
        let request = self.client.post(self.url.clone()).form(&self.form()?);
        let reply = self.client.send(request, deadline, LOOKUP).await?;
        if matches!(reply.status.as_u16(), 400 | 401)
            && let Ok(refused) = reply.json::<Refused>()
        {
            let number = refused.error_codes.first().copied();
            tracing::debug!(error = refused.error, number, "Microsoft Entra ID gave no token");
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = number;
            return match refused.error.as_str() {
                "temporarily_unavailable" | "server_error" => Err(Unavailable::ServerError(reply.retry_after())),
                _ => Err(Unavailable::AuthRejected),
            };
        }
        granted(&reply.ok()?)
    }
}

fn granted(reply: &Reply) -> Result<Grant, Unavailable> {
    let granted: Granted = reply.json()?;
    if granted.access_token.is_empty() {
        return Err(Unavailable::Protocol);
    }
    let lifetime = granted.expires_in.as_u64().or_else(|| granted.expires_in.as_str()?.trim().parse().ok());
    Ok(Grant { token: Secret::new(granted.access_token.into_bytes()), lifetime: lifetime.map(Duration::from_secs) })
}

/// Checks that the key is the certificate's own: with another key every login is refused, and the account may be locked.
fn check_pair(certificate: &CertificateDer<'static>, key: &Secret) -> Result<(), String> {
    let key = PrivateKeyDer::from_pem_slice(key.expose()).map_err(|_| "client_key is no RSA key in PEM".to_owned())?;
    let key = any_supported_type(&key).map_err(|_| "client_key is no RSA key in PEM".to_owned())?;
    let pair = CertifiedKey::new(vec![certificate.clone()], key);
    pair.keys_match().map_err(|_| "client_key is not the key of client_certificate".to_owned())
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
    #[serde(default)]
    error_codes: Vec<u64>,
}

/// Claims of the assertion: Microsoft's "certificate credentials", RFC 7523.
#[derive(Serialize)]
struct Claims<'l> {
    aud: &'l str,
    iss: &'l str,
    sub: &'l str,
    jti: String,
    nbf: u64,
    iat: u64,
    exp: u64,
}

impl<'l> Claims<'l> {
    fn new(audience: &'l str, client_id: &'l str) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            aud: audience,
            iss: client_id,
            sub: client_id,
            jti: format!("{:032x}", rand::random::<u128>()),
            nbf: now,
            iat: now,
            exp: now.saturating_add(ASSERTION_LIFE),
        }
    }
}

/// Lifetime of an assertion, in seconds; Microsoft suggests five to ten minutes.
const ASSERTION_LIFE: u64 = 300;
