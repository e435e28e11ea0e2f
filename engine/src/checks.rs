//! The checks of a webhook before anybody is asked about its device: one list, for requests from the stream and for captured
//! ones.
//!
//! Both go through [`Check::ALL`] and [`Judge::make`], which alone say what a check is and what it refuses.
//! [`Check::of_a_question`] leaves out those that the filter alone makes.

use std::ops::Deref;
use std::sync::LazyLock;

use posture::caller::{Caller, Peer};
use posture::credential::Credentials;
use posture::identity::{Identity, PublicKey};
use posture::notification::Notification;
use posture::outcome::{Denial, Refusal};
use posture::shape::Shape;
use posture::time::{UnixTime, Window};
use posture::verify::{Signature, SigningKeys, Unproven, Verified};
use posture::webhook::{Kind, Stamp as _, Stamped, Webhook, X509};

use crate::webhooks::Settings;
use inventory::Placeholders;

/// Declares [`Check`]: each check with its name, its turn and its refusals, so that none is missing where all are made.
macro_rules! checks {
    ($(#[$of_all:meta])* pub enum Check { $($(#[$doc:meta])* $name:ident => $word:literal, $turn:expr, [$($refusal:ident),*];)* }) => {
        $(#[$of_all])*
        pub enum Check {
            $($(#[$doc])* $name,)*
        }

        impl Check {
            /// All checks, in the order in which people read them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The name of the check.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }

            /// Place of the check in the order for questions; those of one place are made in the order of [`Self::ALL`]. `None`:
            /// the filter alone makes the check, where a question comes from one, since the headers stay in the filter.
            const fn turn(self) -> Option<u8> {
                match self {
                    $(Self::$name => $turn,)*
                }
            }

            /// Causes for which the check refuses a request.
            pub const fn refusals(self) -> &'static [Refusal] {
                match self {
                    $(Self::$name => &[$(Refusal::$refusal),*],)*
                }
            }
        }
    };
}

checks! {
    /// A check of a request by the settings of the webhook that it names.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Check {
        /// The body is within `body_limit`.
        Size => "size", None, [TooLarge];
        /// The caller is one that this webhook lets in. A certificate takes long to read, so the signature comes first.
        Caller => "caller", Some(1), [Caller];
        /// `Authorization` is one of the credentials that the webhook requires.
        Credentials => "credentials", None, [Credentials];
        /// One of the secrets gives the signature over the body.
        Signature => "signature", Some(0), [Signature];
        /// The body is a webhook of step-ca.
        Schema => "schema", Some(2), [Malformed];
        /// The time in the body is inside the window.
        Time => "time", Some(2), [TimestampPast, TimestampFuture];
        /// The body is of the kind that the webhook is for.
        Kind => "kind", Some(2), [KindMismatch];
        /// The body names a device; where it names none, the outcome is a denial and no refusal.
        Identity => "identity", Some(2), [];
    }
}

impl Check {
    /// The checks of a question, in the order in which they are made.
    pub fn of_a_question() -> impl Iterator<Item = Self> {
        static CHECKS: LazyLock<Vec<Check>> = LazyLock::new(|| {
            let mut checks: Vec<_> = Check::ALL.iter().copied().filter(|check| check.turn().is_some()).collect();
            checks.sort_by_key(|check| check.turn());
            checks
        });
        CHECKS.iter().copied()
    }
}

/// A request that is checked by the settings of its webhook, and what the checks found out.
pub struct Judge<'j> {
    /// The settings of the webhook that the request names.
    pub settings: &'j Settings,
    /// The secrets of the webhook.
    pub keys: &'j SigningKeys,
    /// The credentials of which `Authorization` has to be one.
    pub credentials: &'j Credentials,
    /// Texts that identify no device.
    pub placeholders: &'j Placeholders,
    /// The window of the timestamp.
    pub window: Window,
    /// The time by which the request is judged.
    pub now: UnixTime,
    /// The bytes that were signed.
    pub body: &'j [u8],
    /// The HMAC that the request claims.
    pub signature: Signature,
    /// The headers of a captured request, whose caller may be unknown; `None`: a question of the filter.
    pub captured: Option<&'j Shape>,
    /// The caller, once admitted.
    pub caller: Option<Caller>,
    /// The device as the body states it, or the denial where there is none; `None` before [`Check::Identity`].
    pub stated: Option<Result<Identity, Denial>>,
    /// The device, or the denial where there is none or its identifier is a placeholder; `None` before [`Check::Identity`].
    pub identity: Option<Result<Identity, Denial>>,
    /// The verified body, or why it is not proven; `None` before [`Check::Signature`].
    verified: Option<Result<Verified<Webhook<'j>>, Unproven>>,
}

impl<'j> Judge<'j> {
    /// A request of which no check was made yet.
    #[expect(clippy::too_many_arguments, reason = "each is another thing that a check goes by")]
    pub const fn new(
        settings: &'j Settings,
        keys: &'j SigningKeys,
        credentials: &'j Credentials,
        placeholders: &'j Placeholders,
        window: Window,
        now: UnixTime,
        (body, signature): (&'j [u8], Signature),
        captured: Option<&'j Shape>,
    ) -> Self {
        Self {
            settings,
            keys,
            credentials,
            placeholders,
            window,
            now,
            body,
            signature,
            captured,
            caller: None,
            stated: None,
            identity: None,
            verified: None,
        }
    }

    /// Makes one check. `peer` reads the caller's certificate, and is called once at most. [`Check::Signature`] has to come
    /// before the checks that read the body, which otherwise give [`Refusal::Internal`].
    ///
    /// # Errors
    /// One of [`Check::refusals`]. That the body names no device is none: see [`Self::identity`].
    pub fn make<P: Deref<Target = Peer>>(&mut self, check: Check, peer: impl FnOnce() -> Option<P>) -> Result<(), Refusal> {
        match check {
            Check::Size => {
                let limit = u64::from(self.settings.body_limit);
                if self.length() > limit { Err(Refusal::TooLarge) } else { Ok(()) }
            }
            Check::Caller => {
                let peer = peer();
                self.caller = self.settings.callers.admit(peer.as_deref());
                let is_unknown = self.captured.is_some() && peer.is_none();
                if self.caller.is_some() || is_unknown { Ok(()) } else { Err(Refusal::Caller) }
            }
            Check::Credentials => self.credentials.check(self.captured.and_then(|shape| shape.authorization.value())),
            Check::Signature => {
                let verified = Verified::verify_at(self.keys, &self.signature, self.body, &self.window, || self.now);
                let is_forged = matches!(verified, Err(Unproven { refusal: Refusal::Signature, .. }));
                self.verified = Some(verified);
                if is_forged { Err(Refusal::Signature) } else { Ok(()) }
            }
            Check::Schema => match self.unproven() {
                None | Some(Refusal::TimestampPast | Refusal::TimestampFuture) => Ok(()),
                Some(refusal) => Err(refusal),
            },
            Check::Time => self.unproven().map_or(Ok(()), Err),
            Check::Kind => self.body()?.check_kind(self.settings.kind),
            Check::Identity => {
                let stated = self.settings.source.identify(self.body()?, self.settings.identifier);
                self.identity = Some(stated.clone().and_then(|identity| self.placeholders.identity(identity)));
                self.stated = Some(stated);
                Ok(())
            }
        }
    }

    /// Verifies the body as of its own timestamp, for the checks behind a timestamp that is outside the window.
    pub fn go_by_its_own_time(&mut self) {
        let stated = serde_json::from_slice::<Stamped<'_>>(self.body).ok().and_then(|body| body.timestamp());
        if let Some(stated) = stated {
            self.verified = Some(Verified::verify_at(self.keys, &self.signature, self.body, &self.window, || stated));
        }
    }

    /// Bytes of the body: what `Content-Length` says or what came, whichever is more.
    pub fn length(&self) -> u64 {
        let said = self.captured.and_then(|shape| shape.content_length).unwrap_or_default();
        said.max(u64::try_from(self.body.len()).unwrap_or(u64::MAX))
    }

    /// Age of the timestamp in nanoseconds, negative where the caller's clock is ahead of ours; `None` where nothing is proven.
    pub fn age(&self) -> Option<i64> {
        self.verified.as_ref()?.as_ref().map_or_else(|unproven| unproven.age, |verified| Some(verified.age()))
    }

    /// The public key for which the certificate is requested, where it can be read.
    pub fn key(&self) -> Option<PublicKey> {
        self.body().ok()?.x509().and_then(X509::key)
    }

    /// The content of a notification; `None` for any other kind of webhook.
    pub fn notification(&self) -> Option<Notification> {
        let body = self.body().ok()?;
        (self.settings.kind == Kind::Notifying).then(|| Notification::of(body))
    }

    fn unproven(&self) -> Option<Refusal> {
        match &self.verified {
            Some(verified) => verified.as_ref().err().map(|unproven| unproven.refusal),
            // Every order makes the check of the signature before this.
            None => Some(Refusal::Internal),
        }
    }

    fn body(&self) -> Result<&Webhook<'j>, Refusal> {
        match &self.verified {
            Some(Ok(verified)) => Ok(verified.get()),
            Some(Err(unproven)) => Err(unproven.refusal),
            None => Err(Refusal::Internal),
        }
    }
}

#[cfg(test)]
mod tests {
    use posture::secret::Secret;

    use super::*;
    use crate::webhooks::fixture;

    #[test]
    fn no_check_of_a_question_comes_before_its_signature_and_none_of_its_body_before_its_time() {
        let checks: Vec<_> = Check::of_a_question().collect();
        assert_eq!(checks.first(), Some(&Check::Signature), "what is not signed is looked at no further: `Signature` alone has `Some(0)`");
        let time = checks.iter().position(|check| *check == Check::Time).expect("every question meets `Time`");
        for (place, check) in checks.iter().enumerate() {
            let reads_the_body = made_of_an_old_body(*check) == Err(Refusal::TimestampPast);
            assert!(!reads_the_body || place >= time, "{check:?} reads the body, so it stands behind `Time`: {checks:?}");
        }
    }

    /// The result of a check of a request that is signed and older than the window.
    fn made_of_an_old_body(check: Check) -> Result<(), Refusal> {
        let (settings, credentials, placeholders) = (fixture::settings("one"), Credentials::default(), Placeholders::default());
        let keys = SigningKeys::new(&[Secret::new(b"key".to_vec())]);
        let body = br#"{"timestamp":"2027-01-15T08:00:00Z","x509CertificateRequest":{},"attestationData":{"permanentIdentifier":"C02"}}"#;
        let signed = (&body[..], keys.sign(body).unwrap());
        let now = UnixTime::from_nanos(1_900_000_000_000_000_000);
        let mut judge = Judge::new(&settings, &keys, &credentials, &placeholders, settings.window, now, signed, None);
        judge.make(Check::Signature, || None::<&Peer>)?;
        judge.make(check, || None::<&Peer>)
    }
}
