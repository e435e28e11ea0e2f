//! Public keys of certificates.

use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use crate::outcome::Denial;

/// A public key, identified by the SHA-256 of its SubjectPublicKeyInfo in DER (RFC 5280).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Identifies the key in a DER SubjectPublicKeyInfo; `None` if the bytes are not one.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        SubjectPublicKeyInfoRef::from_der(der).ok().map(|_| Self(Sha256::digest(der).into()))
    }

    /// Identifies the key of a DER certificate that was verified elsewhere.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_INVALID`] if the certificate cannot be read.
    pub fn of_certificate(der: &[u8]) -> Result<Self, Denial> {
        let certificate = Certificate::from_der(der).map_err(|_| Denial::IDENTIFIER_INVALID)?;
        let key = certificate.tbs_certificate().subject_public_key_info().to_der().map_err(|_| Denial::IDENTIFIER_INVALID)?;
        Ok(Self(Sha256::digest(key).into()))
    }

    /// Makes the key from a digest that was stored.
    pub const fn of_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The SHA-256 digest that identifies the key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
