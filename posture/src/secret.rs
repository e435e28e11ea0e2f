//! Secrets: bytes that must not be seen.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// A secret: prints as `[redacted]`, is wiped when dropped, and compares in constant time.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Makes a secret of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Decodes a secret as step-ca prints it: standard base64 with padding, white space around it ignored.
    ///
    /// # Errors
    /// [`NotBase64`], which quotes nothing of the text: it may be the secret.
    pub fn from_base64(text: &str) -> Result<Self, NotBase64> {
        STANDARD.decode(text.trim_ascii()).map(Self::new).map_err(|_| NotBase64)
    }

    /// The secret bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Returns whether the secret has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Error: a secret is not base64.
#[derive(Debug, thiserror::Error)]
#[error("not base64 (give the secret as `step ca provisioner webhook add` printed it)")]
pub struct NotBase64;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_prints_its_bytes() {
        let secret = Secret::new(b"canary".to_vec());
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "[redacted] Some([redacted])");
    }

    #[test]
    fn decodes_what_step_ca_prints() {
        assert_eq!(Secret::from_base64(" c2VjcmV0\n").unwrap().expose(), b"secret");
        for bad in ["c2VjcmV", "c2Vj cmV0", "sécret", "c2VjcmV0==="] {
            assert!(Secret::from_base64(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn compares_by_content() {
        assert_eq!(Secret::new(vec![1, 2]), Secret::new(vec![1, 2]));
        assert_ne!(Secret::new(vec![1, 2]), Secret::new(vec![1, 3]));
        assert_ne!(Secret::new(vec![1, 2]), Secret::new(vec![1, 2, 0]));
    }
}
