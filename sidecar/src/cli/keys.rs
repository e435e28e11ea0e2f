//! Check that a private key is that of a certificate.

use std::path::{Path, PathBuf};

use posture::secret::Secret;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Reason why a key cannot be served with. The message follows the name of the key's file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The file has no private key.
    #[error("no private key can be read: {0}")]
    NoKey(String),
    /// The key is another certificate's.
    #[error("is not the key of {}", .0.display())]
    OfAnother(PathBuf),
    /// TLS takes no key of this kind.
    #[error("{0}")]
    Unusable(String),
}

/// Checks that a private key, as PEM, is that of a chain. A chain that cannot be read is no error here.
///
/// # Errors
/// [`Unfit`]; `certificate` names the chain.
pub(super) fn fits(chain: &[CertificateDer<'static>], key: &Secret, certificate: &Path) -> Result<(), Unfit> {
    let key = PrivateKeyDer::from_pem_slice(key.expose()).map_err(|error: pem::Error| Unfit::NoKey(error.to_string()))?;
    match CertifiedKey::from_der(chain.to_vec(), key, &rustls::crypto::aws_lc_rs::default_provider()) {
        Err(rustls::Error::InconsistentKeys(_)) => Err(Unfit::OfAnother(certificate.to_owned())),
        Err(error) if !chain.is_empty() && !matches!(error, rustls::Error::InvalidCertificate(_)) => {
            Err(Unfit::Unusable(error.to_string()))
        }
        _ => Ok(()),
    }
}
