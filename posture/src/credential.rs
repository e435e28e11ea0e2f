//! The bearer token or basic credentials that step-ca can send besides the signature.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::{Choice, ConstantTimeEq as _};

use crate::outcome::Refusal;
use crate::secret::Secret;

/// The accepted values of the `Authorization` header; empty if the header is not checked.
#[derive(Clone, Debug, Default)]
pub struct Credentials(Vec<Secret>);

impl Credentials {
    /// Takes whole header values, any one of which is accepted; without values the header is not checked.
    pub fn new(values: Vec<Secret>) -> Self {
        Self(values)
    }

    /// The header value that step-ca sends for a bearer token.
    pub fn bearer(token: &Secret) -> Secret {
        Secret::new([b"Bearer ", token.expose()].concat())
    }

    /// The header value that step-ca sends for a user name and a password (RFC 7617).
    pub fn basic(username: &str, password: &Secret) -> Secret {
        let pair = Secret::new([username.as_bytes(), b":", password.expose()].concat());
        Secret::new([b"Basic ", STANDARD.encode(pair.expose()).as_bytes()].concat())
    }

    /// The accepted header values, for the wire to the filter.
    pub fn values(&self) -> &[Secret] {
        &self.0
    }

    /// Compares the header with every accepted value, in constant time.
    ///
    /// # Errors
    /// [`Refusal::Credentials`] if a value is required and the header has none of them.
    pub fn check(&self, authorization: Option<&[u8]>) -> Result<(), Refusal> {
        if self.0.is_empty() {
            return Ok(());
        }
        let given = authorization.ok_or(Refusal::Credentials)?;
        let equal = self.0.iter().fold(Choice::from(0), |equal, value| equal | value.expose().ct_eq(given));
        if equal.into() { Ok(()) } else { Err(Refusal::Credentials) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_for_exactly_the_header_that_step_ca_sends() {
        let bearer = Credentials::new(vec![Credentials::bearer(&Secret::new(b"abc".to_vec()))]);
        assert_eq!(bearer.check(Some(b"Bearer abc")), Ok(()));
        let basic = Credentials::new(vec![Credentials::basic("user", &Secret::new(b"pass".to_vec()))]);
        assert_eq!(basic.check(Some(b"Basic dXNlcjpwYXNz")), Ok(()));
        for wrong in [&b""[..], b"Bearer", b"Bearer ab", b"Bearer abcd", b"bearer abc", b" Bearer abc", b"Basic dXNlcjpwYXNzMQ=="] {
            assert_eq!(bearer.check(Some(wrong)), Err(Refusal::Credentials));
            assert_eq!(basic.check(Some(wrong)), Err(Refusal::Credentials));
        }
        assert_eq!(bearer.check(None), Err(Refusal::Credentials));
    }

    #[test]
    fn either_of_two_will_do_while_one_replaces_the_other() {
        let both = Credentials::new(["old", "new"].map(|token| Credentials::bearer(&Secret::new(token.into()))).to_vec());
        assert_eq!(both.check(Some(b"Bearer old")), Ok(()));
        assert_eq!(both.check(Some(b"Bearer new")), Ok(()));
        assert_eq!(both.check(Some(b"Bearer oldnew")), Err(Refusal::Credentials));
        assert_eq!(both.values(), ["old", "new"].map(|token| Credentials::bearer(&Secret::new(token.into()))));
    }

    #[test]
    fn one_that_stands_there_twice_will_do() {
        let twice = Credentials::new(["same", "same"].map(|token| Credentials::bearer(&Secret::new(token.into()))).to_vec());
        assert_eq!(twice.check(Some(b"Bearer same")), Ok(()));
    }

    #[test]
    fn does_not_look_where_nothing_is_required() {
        assert_eq!(Credentials::default().check(None), Ok(()));
        assert_eq!(Credentials::default().check(Some(b"Bearer x")), Ok(()));
    }
}
