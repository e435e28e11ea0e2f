//! A SHA-256 as people write it.

use sha2::{Digest as _, Sha256};

/// SHA-256 in hexadecimal, by which whoever has a body finds the decision about it.
pub fn digest(body: &[u8]) -> String {
    hexadecimal(&Sha256::digest(body))
}

/// Bytes of a SHA-256 in hexadecimal; `None` for any other text.
pub fn bytes_of(digest: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> = digest.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let bytes: Vec<u8> =
        digits?.chunks_exact(2).filter_map(|pair| if let [high, low] = pair { Some(high << 4 | low) } else { None }).collect();
    bytes.try_into().ok().filter(|_| digest.len() == 64)
}

/// Bytes in hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
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
        for other in ["", shorter, shortest, &format!("{digest}0"), &digest.replace('2', "g")] {
            assert_eq!(bytes_of(other), None, "{other}");
        }
        assert_eq!(hexadecimal(&[0x00, 0x0f, 0xf0, 0xa5]), "000ff0a5");
    }
}
