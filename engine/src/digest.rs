//! A SHA-256 as people write it.

use sha2::{Digest as _, Sha256};

/// SHA-256 in hexadecimal, by which whoever has a body finds the decision about it.
pub fn digest(body: &[u8]) -> String {
    hex::encode(Sha256::digest(body))
}

/// Bytes of a SHA-256 in hexadecimal; `None` for any other text.
pub fn bytes_of(digest: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(digest, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_and_nothing_else_is_one() {
        let digest = digest(b"body");
        assert_eq!(digest, "230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5");
        assert_eq!(bytes_of(&digest), Some(Sha256::digest(b"body").into()));
        let [shorter, shortest] = [1, 2].map(|from| digest.get(from..).unwrap());
        assert_eq!(bytes_of(&digest.to_uppercase()), bytes_of(&digest));
        for other in ["", shorter, shortest, &format!("{digest}0"), &digest.replace('2', "g")] {
            assert_eq!(bytes_of(other), None, "{other}");
        }
    }
}
