//! Steps 3 and 4: the signature over the exact bytes, and the timestamp inside them.
//!
//! [`Verified`] has one constructor. A `Verified` body was signed with the webhook's secret, and its timestamp is inside the
//! window; nothing else in Stepward looks into a body.

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use crate::outcome::Refusal;
use crate::secret::Secret;
use crate::time::{Outside, UnixTime, Window};
use crate::webhook::Stamp;

/// A claimed HMAC-SHA256 tag (RFC 2104). It has no `PartialEq`: tags are compared in constant time, in this module only.
#[derive(Clone, Copy, Debug)]
pub struct Signature([u8; 32]);

impl Signature {
    /// Parses the header as step-ca writes it: 64 lower-case hexadecimal digits and nothing else.
    pub fn parse(header: &[u8]) -> Option<Self> {
        decode_hex(header).map(Self)
    }

    /// Takes the bytes of a tag, as the filter passes it on.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes of the tag.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The tag as step-ca writes it: 64 lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            for nibble in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(nibble.into(), 16));
            }
            text
        })
    }

    /// The binding of an answer to the question that carried this signature: SHA-256(signature || webhook id).
    ///
    /// The signature stands for the body, since it is the verified HMAC over it.
    pub fn binding(&self, webhook_id: &str) -> [u8; 32] {
        Sha256::new().chain_update(self.0).chain_update(webhook_id).finalize().into()
    }
}

/// Returns whether HMAC treats a secret as no secret: it is empty, or nothing but zero bytes. Anyone could sign with it.
pub fn is_no_key(secret: &Secret) -> bool {
    key(secret).is_empty()
}

/// Returns whether two secrets are the same key to HMAC: a signature by one verifies by the other.
pub fn is_same_key(one: &Secret, other: &Secret) -> bool {
    key(one) == key(other)
}

/// The key that HMAC makes of a secret (RFC 2104): the SHA-256 of a secret longer than a block, else the secret. HMAC's
/// padding with zero bytes is left out.
fn key(secret: &Secret) -> Secret {
    let bytes = secret.expose();
    let hashed: [u8; 32];
    let bytes = if bytes.len() > 64 {
        hashed = Sha256::digest(bytes).into();
        &hashed
    } else {
        bytes
    };
    let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    Secret::new(bytes.get(..bytes.len() - zeros).unwrap_or_default().to_vec())
}

/// The secrets of one webhook; several while one replaces another.
#[derive(Clone)]
pub struct SigningKeys(Vec<Hmac<Sha256>>);

impl SigningKeys {
    /// Takes the secrets that step-ca may sign with. Those that are [no key](is_no_key) are left out; with none left nothing
    /// verifies.
    pub fn new(secrets: &[Secret]) -> Self {
        Self(secrets.iter().filter(|secret| !is_no_key(secret)).filter_map(|secret| Hmac::new_from_slice(secret.expose()).ok()).collect())
    }

    /// The empty key, with which step-ca signs for a webhook in a static `ca.json`. It proves nothing but the integrity of
    /// the bytes, so it may be used only with named callers.
    pub fn unsigned() -> Self {
        Self(Hmac::new_from_slice(&[]).into_iter().collect())
    }

    /// Signs a body as step-ca does, with the newest secret; `None` without a secret.
    pub fn sign(&self, body: &[u8]) -> Option<Signature> {
        self.0.first().map(|key| Signature(key.clone().chain_update(body).finalize().into_bytes().into()))
    }

    /// Returns whether one of the secrets gives this signature over the body. The time taken tells neither the result nor
    /// which secret it was.
    pub fn fit(&self, signature: &Signature, body: &[u8]) -> bool {
        self.0
            .iter()
            .map(|key| <[u8; 32]>::from(key.clone().chain_update(body).finalize().into_bytes()).ct_eq(&signature.0))
            .fold(Choice::from(0), |any, this| any | this)
            .into()
    }
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKeys({} [redacted])", self.0.len())
    }
}

/// A body that was not proven, and what is still known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unproven {
    /// The reason.
    pub refusal: Refusal,
    /// Age of the timestamp in nanoseconds, negative if the caller's clock is ahead of ours; `None` unless the signature is
    /// good and only the time is wrong.
    pub age: Option<i64>,
}

impl From<Refusal> for Unproven {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, age: None }
    }
}

/// A body whose signature and time are proven.
#[derive(Debug)]
pub struct Verified<T> {
    body: T,
    age: i64,
}

impl<'b, T: Deserialize<'b> + Stamp> Verified<T> {
    /// Proves a body, signature first: an unsigned body is not parsed.
    ///
    /// # Errors
    /// [`Refusal::Signature`], then [`Refusal::Malformed`], then [`Refusal::TimestampPast`] or
    /// [`Refusal::TimestampFuture`].
    pub fn verify(keys: &SigningKeys, signature: &Signature, body: &'b [u8], window: &Window, now: UnixTime) -> Result<Self, Refusal> {
        Self::verify_at(keys, signature, body, window, || now).map_err(|unproven| unproven.refusal)
    }

    /// Like [`Self::verify`], but reads the clock `now` only once the signature is proven, and reports the age of a timestamp
    /// that is outside the window.
    ///
    /// # Errors
    /// The errors of [`Self::verify`].
    pub fn verify_at(
        keys: &SigningKeys,
        signature: &Signature,
        body: &'b [u8],
        window: &Window,
        now: impl FnOnce() -> UnixTime,
    ) -> Result<Self, Unproven> {
        if !keys.fit(signature, body) {
            return Err(Refusal::Signature.into());
        }
        // serde_json does not check the strings that it skips, so UTF-8 is checked here.
        let body = std::str::from_utf8(body).map_err(|_| Refusal::Malformed)?;
        let body: T = serde_json::from_str(body).map_err(|_| Refusal::Malformed)?;
        let timestamp = body.timestamp().ok_or(Refusal::Malformed)?;
        let now = now();
        match window.check(timestamp, now) {
            Ok(age) => Ok(Self { body, age }),
            Err(outside) => Err(Unproven {
                refusal: match outside {
                    Outside::Past => Refusal::TimestampPast,
                    Outside::Future => Refusal::TimestampFuture,
                },
                age: Some(now.nanos_since(timestamp)),
            }),
        }
    }
}

impl<T> Verified<T> {
    /// The proven body.
    pub fn get(&self) -> &T {
        &self.body
    }

    /// Age of the timestamp in nanoseconds; negative where the caller's clock is ahead of ours.
    pub const fn age(&self) -> i64 {
        self.age
    }
}

/// Decodes 64 lower-case hexadecimal digits.
pub(crate) fn decode_hex(text: &[u8]) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text: &[u8; 64] = text.try_into().ok()?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_chunks::<2>().0) {
        let [high, low] = *pair;
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::webhook::Stamped;

    const BODY: &[u8] = br#"{"timestamp":"1970-01-01T00:16:40Z","attestationData":{"permanentIdentifier":"C02XL0GYJGH5"}}"#;
    const NOW: UnixTime = UnixTime::from_nanos(1_000_000_000_000);

    fn keys(secrets: &[&[u8]]) -> SigningKeys {
        SigningKeys::new(&secrets.iter().map(|secret| Secret::new(secret.to_vec())).collect::<Vec<_>>())
    }

    fn verify(keys: &SigningKeys, signature: &Signature, body: &[u8]) -> Result<i64, Refusal> {
        Verified::<Stamped>::verify(keys, signature, body, &Window::default(), NOW).map(|verified| verified.age())
    }

    #[test]
    fn computes_the_hmac_of_rfc_4231() {
        let signature = keys(&[b"Jefe"]).sign(b"what do ya want for nothing?").unwrap();
        assert_eq!(signature.to_hex(), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn c4_what_is_one_key_to_hmac_is_one_secret_and_zeros_are_none() {
        let secret = |bytes: &[u8]| Secret::new(bytes.to_vec());
        let long = [7; 65];
        for (one, other) in [
            (b"key".as_slice(), b"key\0".as_slice()),
            (b"key", b"key\0\0\0"),
            (b"\0key", b"\0key\0"),
            (&long, Sha256::digest(long).as_slice()),
            (&[7; 64], &[7; 64]),
        ] {
            assert!(is_same_key(&secret(one), &secret(other)));
            assert_eq!(keys(&[one]).sign(BODY).unwrap().as_bytes(), keys(&[other]).sign(BODY).unwrap().as_bytes());
        }
        for (one, other) in [(b"key".as_slice(), b"\0key".as_slice()), (b"key", b"Key"), (&[7; 64], &[7; 63]), (&long, &[7; 66])] {
            assert!(!is_same_key(&secret(one), &secret(other)));
            assert_ne!(keys(&[one]).sign(BODY).unwrap().as_bytes(), keys(&[other]).sign(BODY).unwrap().as_bytes());
        }
        for zeros in 0..=64 {
            assert!(is_no_key(&secret(&vec![0; zeros])));
            assert!(keys(&[&vec![0; zeros]]).sign(BODY).is_none(), "{zeros}");
        }
        assert!(!is_no_key(&secret(&[0; 65])), "its digest is the key");
    }

    #[test]
    fn accepts_either_secret_while_one_replaces_the_other() {
        let both = keys(&[b"new", b"old"]);
        for secret in [b"new", b"old"] {
            let signature = keys(&[secret]).sign(BODY).unwrap();
            assert_eq!(verify(&both, &signature, BODY), Ok(0));
        }
        let signature = keys(&[b"same"]).sign(BODY).unwrap();
        assert_eq!(verify(&keys(&[b"same", b"same"]), &signature, BODY), Ok(0), "one that stands there twice");
        let retired = keys(&[b"older"]).sign(BODY).unwrap();
        assert_eq!(verify(&both, &retired, BODY), Err(Refusal::Signature));
    }

    #[test]
    fn an_empty_secret_verifies_nothing() {
        let empty = SigningKeys::unsigned().sign(BODY).unwrap();
        assert_eq!(verify(&keys(&[]), &empty, BODY), Err(Refusal::Signature));
        assert_eq!(verify(&keys(&[b""]), &empty, BODY), Err(Refusal::Signature));
        assert_eq!(verify(&keys(&[b"secret"]), &empty, BODY), Err(Refusal::Signature));
        assert_eq!(verify(&SigningKeys::unsigned(), &empty, BODY), Ok(0));
    }

    #[test]
    fn nobody_asks_for_the_time_of_a_forged_body() {
        let forged = keys(&[b"another"]).sign(BODY).unwrap();
        let refused = Verified::<Stamped<'_>>::verify_at(&keys(&[b"secret"]), &forged, BODY, &Window::default(), || panic!("asked"));
        assert_eq!(refused.unwrap_err(), Refusal::Signature.into());
    }

    #[test]
    fn e3_a_signed_body_that_is_refused_for_its_time_says_by_how_much_and_no_other_one_does() {
        let keys = keys(&[b"secret"]);
        let judge = |signature: &Signature, body: &[u8]| {
            Verified::<Stamped<'_>>::verify_at(&keys, signature, body, &Window::default(), || NOW).map(|verified| verified.age())
        };
        let Window { past, future } = Window::default();
        let [past, future] = [past, future].map(|bound| i64::try_from(bound.as_secs()).unwrap());
        for (second, refusal) in
            [(-past - 1, Refusal::TimestampPast), (-past - 300, Refusal::TimestampPast), (future + 1, Refusal::TimestampFuture)]
        {
            let body = format!(r#"{{"timestamp":"1970-01-01T00:{:02}:{:02}Z"}}"#, (1000 + second) / 60, (1000 + second) % 60);
            let signature = keys.sign(body.as_bytes()).unwrap();
            assert_eq!(judge(&signature, body.as_bytes()), Err(Unproven { refusal, age: Some(-second * 1_000_000_000) }));
            assert_eq!(judge(&signature, format!("{body} ").as_bytes()), Err(Unproven { refusal: Refusal::Signature, age: None }));
        }
        assert_eq!(judge(&keys.sign(b"{}").unwrap(), b"{}"), Err(Unproven { refusal: Refusal::Malformed, age: None }));
    }

    #[test]
    fn no_single_flipped_bit_verifies() {
        let keys = keys(&[b"secret"]);
        let signature = keys.sign(BODY).unwrap();
        for bit in 0..256 {
            let mut flipped = signature;
            flipped.0[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify(&keys, &flipped, BODY), Err(Refusal::Signature), "bit {bit} of the signature");
        }
        for bit in 0..BODY.len() * 8 {
            let mut flipped = BODY.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify(&keys, &signature, &flipped), Err(Refusal::Signature), "bit {bit} of the body");
        }
    }

    #[test]
    fn refuses_every_second_outside_the_window() {
        let keys = keys(&[b"secret"]);
        let Window { past, future } = Window::default();
        let [past, future] = [past, future].map(|bound| i64::try_from(bound.as_secs()).unwrap());
        for second in -600..=600i64 {
            let body = format!(r#"{{"timestamp":"1970-01-01T00:{:02}:{:02}Z"}}"#, (1000 + second) / 60, (1000 + second) % 60);
            let expected = if second < -past {
                Err(Refusal::TimestampPast)
            } else if second > future {
                Err(Refusal::TimestampFuture)
            } else {
                Ok(-second * 1_000_000_000)
            };
            assert_eq!(verify(&keys, &keys.sign(body.as_bytes()).unwrap(), body.as_bytes()), expected, "{second}");
        }
    }

    #[test]
    fn refuses_a_signed_body_that_is_no_webhook() {
        let keys = keys(&[b"secret"]);
        let nested = format!(r#"{{"timestamp":"1970-01-01T00:16:40Z","x":{}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        for body in [
            &b""[..],
            b"null",
            b"{}",
            b"[]",
            br#"{"timestamp":1}"#,
            br#"{"timestamp":null}"#,
            br#"{"timestamp":"yesterday"}"#,
            br#"{"timestamp":"1970-01-01T00:16:40Z"}{}"#,
            br#"{"timestamp":"1970-01-01T00:16:40Z","timestamp":"1970-01-01T00:16:40Z"}"#,
            b"\xef\xbb\xbf{\"timestamp\":\"1970-01-01T00:16:40Z\"}",
            b"{\"timestamp\":\"1970-01-01T00:16:40Z\",\"a\":\"\xff\"}",
        ] {
            assert_eq!(verify(&keys, &keys.sign(body).unwrap(), body), Err(Refusal::Malformed), "{}", String::from_utf8_lossy(body));
        }
        // Skipping an unknown value does not recurse, so depth costs no stack.
        assert_eq!(verify(&keys, &keys.sign(nested.as_bytes()).unwrap(), nested.as_bytes()), Ok(0));
    }

    #[test]
    fn the_binding_ties_signature_and_webhook() {
        let signature = keys(&[b"secret"]).sign(BODY).unwrap();
        let other = keys(&[b"secret"]).sign(b"other").unwrap();
        assert_ne!(signature.binding("a"), signature.binding("b"));
        assert_ne!(signature.binding("a"), other.binding("a"));
        assert_eq!(signature.binding("a"), signature.binding("a"));
    }

    #[test]
    fn keys_do_not_print() {
        assert_eq!(format!("{:?}", keys(&[b"canary"])), "SigningKeys(1 [redacted])");
    }

    proptest! {
        #[test]
        fn hex_reads_back(bytes in any::<[u8; 32]>()) {
            prop_assert_eq!(Signature::parse(Signature(bytes).to_hex().as_bytes()).unwrap().0, bytes);
            prop_assert_eq!(Signature::from_bytes(&bytes).unwrap().0, bytes);
            prop_assert!(Signature::from_bytes(&bytes[1..]).is_none());
        }

        #[test]
        fn another_secret_never_verifies(secret in proptest::collection::vec(any::<u8>(), 1..80), other in proptest::collection::vec(any::<u8>(), 1..80)) {
            // HMAC pads short keys with zeros, so such keys are the same key (RFC 2104, section 2).
            let padded = |key: &[u8]| { let mut key = key.to_vec(); while key.last() == Some(&0) { key.pop(); } key };
            prop_assume!(padded(&secret) != padded(&other));
            let signature = keys(&[&secret]).sign(BODY).unwrap();
            prop_assert_eq!(verify(&keys(&[&other]), &signature, BODY), Err(Refusal::Signature));
        }
    }
}
