//! SHA-256 of a certificate, as people pass it on.

use sha2::{Digest as _, Sha256};

use engine::digest::bytes_of;

/// SHA-256 of a root certificate, as `step certificate fingerprint` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

impl std::str::FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = bytes_of(&text.replace(':', "")).map(Self);
        whole.ok_or_else(|| {
            "is no SHA-256: write the 64 hexadecimal digits that `step certificate fingerprint root_ca.crt` prints".to_owned()
        })
    }
}

impl Fingerprint {
    /// Returns the fingerprint of a certificate in DER.
    pub(super) fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e14_a_fingerprint_is_64_digits_in_either_case_with_colons_or_without() {
        let digits = "7070b2d9bbaee7f8d3fba79511e56c0ad95c5ad0cea60bf5debdc62ff06521c0";
        let wanted: Fingerprint = digits.parse().unwrap();
        assert_eq!(wanted.to_string(), digits);
        let pairs: Vec<&str> = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect();
        assert_eq!(pairs.join(":").to_uppercase().parse(), Ok(wanted));
        for wrong in ["", "70", &digits.replacen("7", "", 1), &format!("{digits}00"), &digits.replace('7', "g")] {
            assert!(wrong.parse::<Fingerprint>().unwrap_err().contains("64 hexadecimal digits"), "{wrong}");
        }
    }
}
