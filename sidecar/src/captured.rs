//! A request that was captured, looked at once more: every check that a webhook meets before anybody is asked, in its order,
//! each with what came of it. Nothing is remembered of it.

use posture::caller::{Caller, Peer};
use posture::credential::Credentials;
use posture::identity::Identity;
use posture::outcome::{Denial, Refusal};
use posture::shape::{Mode, shape};
use posture::time::UnixTime;
use posture::verify::{SigningKeys, Verified};
use posture::webhook::{Kind, Notification, Stamp as _, Stamped, Webhook};

use crate::config;
use crate::placeholders::Placeholders;

/// A request as it came, and who sent it.
#[derive(Clone, Copy, Debug)]
pub struct Captured<'r> {
    /// With its query.
    pub path: &'r str,
    /// Names in lower case.
    pub headers: &'r [(String, String)],
    /// Byte by byte.
    pub body: &'r [u8],
    /// Of the caller's certificate; without it the caller is not checked.
    pub peer: Option<&'r Peer>,
}

/// The webhook that it names.
#[derive(Clone, Debug)]
pub struct Against<'w> {
    /// As it is configured.
    pub settings: &'w config::Webhook,
    /// Its secrets.
    pub keys: SigningKeys,
    /// What `Authorization` has to be.
    pub credentials: &'w Credentials,
    /// What identifies nobody.
    pub placeholders: &'w Placeholders,
}

/// What came of the checks, up to the first that ends them.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Name and result of each.
    pub results: Vec<(&'static str, String)>,
    /// Why step-ca would get no decision.
    pub refusal: Option<Refusal>,
    /// What is known once nothing ended them.
    pub admitted: Option<Admitted>,
}

/// A request that can be judged.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// `None`: nobody said who called.
    pub caller: Option<Caller>,
    /// The device, or why there is none to ask for.
    pub identity: Result<Identity, Denial>,
    /// What a notification tells.
    pub notification: Option<Notification>,
    /// Of `?mode=`.
    pub mode: Option<Mode>,
}

/// Makes every check. A time outside the window is a refusal; the checks behind it are made all the same, as of the time that
/// the request states.
pub fn check<'w>(request: &Captured<'_>, find: impl FnOnce(&str) -> Option<Against<'w>>, now: UnixTime) -> Checked {
    let mut checked = Checked::default();
    // What ends the checks has said so.
    let _ = checked.run(request, find, now);
    checked
}

impl Checked {
    fn run<'w>(&mut self, request: &Captured<'_>, find: impl FnOnce(&str) -> Option<Against<'w>>, now: UnixTime) -> Option<()> {
        let first = [(":method", &b"POST"[..]), (":path", request.path.as_bytes())];
        let headers = request.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let shape = match shape(first.into_iter().chain(headers)) {
            Ok(shape) => shape,
            Err(refusal) => return self.refused("shape", refusal, refusal.as_str()),
        };
        self.passed("shape");
        let Some(Against { settings, keys, credentials, placeholders }) = find(&shape.webhook_id) else {
            return self.refused("webhook", Refusal::WebhookUnknown, &format!("no webhook has the id `{}`", shape.webhook_id));
        };
        self.passed("webhook");
        // As the filter does, by what the headers say and by what came.
        let length = shape.content_length.unwrap_or_default().max(u64::try_from(request.body.len()).unwrap_or(u64::MAX));
        if length > u64::from(settings.body_limit) {
            let why = format!("the body has {length} bytes, and body_limit is {}", settings.body_limit);
            return self.refused("size", Refusal::TooLarge, &why);
        }
        self.passed("size");
        let caller = match (settings.callers.admit(request.peer), request.peer) {
            (Some(caller), _) => {
                self.note("caller", format!("ok: {}", caller.as_str()));
                Some(caller)
            }
            (None, None) => {
                self.note("caller", "not checked: no --cert");
                None
            }
            (None, Some(peer)) => {
                let names = peer.names().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let why = format!("none of {names} may call, or the certificate is not for clients");
                return self.refused("caller", Refusal::Caller, &why);
            }
        };
        if let Err(refusal) = credentials.check(shape.authorization.value()) {
            return self.refused("credentials", refusal, "Authorization is none of those that the webhook requires");
        }
        self.note("credentials", if credentials.values().is_empty() { "ok: none required" } else { "ok" });
        let verify = |now| Verified::<Webhook<'_>>::verify(&keys, &shape.signature, request.body, &settings.window, now);
        let (verified, outside) = match verify(now) {
            Err(outside @ (Refusal::TimestampPast | Refusal::TimestampFuture)) => (verify(stated(request.body)?), Some(outside)),
            other => (other, None),
        };
        let verified = match verified {
            Ok(verified) => verified,
            Err(refusal @ Refusal::Signature) => {
                return self.refused("signature", refusal, "none of the webhook's secrets gives this signature over this body");
            }
            Err(refusal) => {
                self.passed("signature");
                return self.refused("schema", refusal, "the body is not a step-ca webhook");
            }
        };
        self.passed("signature");
        self.passed("schema");
        match outside {
            None => self.note("time", format!("ok: {} ms old", verified.age() / 1_000_000)),
            Some(refusal) => {
                let past = refusal == Refusal::TimestampPast;
                let why = if past { "the timestamp is older than the window" } else { "the timestamp is further ahead than the window" };
                // The first refusal counts, and what follows is of interest all the same.
                let _ = self.refused("time", refusal, why);
            }
        }
        if let Err(refusal) = verified.get().check_kind(settings.kind) {
            return self.refused("kind", refusal, &format!("the body is not {}", settings.kind.as_str()));
        }
        self.note("kind", format!("ok: {}", settings.kind.as_str()));
        let stated = settings.source.identify(verified.get(), settings.identifier);
        let identity = stated.clone().and_then(|identity| placeholders.identity(identity));
        match (&identity, &stated) {
            (Ok(Identity { device, trust }), _) => {
                self.note("identity", format!("ok: {} {}, {}", device.kind(), device.normal(), trust.as_str()));
            }
            (Err(denial), Ok(stated)) => {
                let text = stated.device.normal();
                self.note("identity", format!("FAILED: {}: `{text}` is one of the placeholders, and identifies nobody", denial.code));
            }
            (Err(denial), Err(_)) => self.note("identity", format!("FAILED: {}: {}", denial.code, denial.message)),
        }
        let notification = (settings.kind == Kind::Notifying).then(|| Notification::of(verified.get()));
        self.admitted = Some(Admitted { caller, identity, notification, mode: shape.mode });
        Some(())
    }

    fn note(&mut self, check: &'static str, result: impl Into<String>) {
        self.results.push((check, result.into()));
    }

    fn passed(&mut self, check: &'static str) {
        self.note(check, "ok");
    }

    fn refused(&mut self, check: &'static str, refusal: Refusal, why: &str) -> Option<()> {
        self.note(check, format!("FAILED: {why}"));
        self.refusal.get_or_insert(refusal);
        None
    }
}

/// The time that a body states; it was proven before.
fn stated(body: &[u8]) -> Option<UnixTime> {
    serde_json::from_slice::<Stamped<'_>>(body).ok()?.timestamp()
}

#[cfg(test)]
mod tests {
    use posture::secret::Secret;

    use super::*;
    use crate::cli::init;
    use crate::config::{Config, Environment};
    use crate::evaluate::hexadecimal;

    #[test]
    fn says_how_old_a_request_is_and_on_which_side_of_the_window_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let demo = folder.path().join("demo");
        init::run(&init::InitArgs::new(demo.clone()), &Environment::new(folder.path()), &mut Vec::new()).unwrap();
        let config = Config::load(Some("stepward.toml".as_ref()), &Environment::new(demo)).unwrap().config;
        let (keys, credentials) = (SigningKeys::new(&[Secret::new(b"key".to_vec())]), Credentials::default());
        let body = br#"{"timestamp":"2027-01-15T08:00:00Z","x509CertificateRequest":{},"attestationData":{"permanentIdentifier":"C02"}}"#;
        let headers = [
            ("x-smallstep-webhook-id", config.webhooks[0].id.clone()),
            ("x-smallstep-signature", hexadecimal(keys.sign(body).unwrap().as_bytes())),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value));
        let request = Captured { path: "/webhook/one", headers: &headers, body, peer: None };
        for (after, said, refusal) in [
            (1_500_000_000, "ok: 1500 ms old", None),
            (-2_000_000, "ok: -2 ms old", None),
            (60_000_000_000, "FAILED: the timestamp is older than the window", Some(Refusal::TimestampPast)),
            (-60_000_000_000, "FAILED: the timestamp is further ahead than the window", Some(Refusal::TimestampFuture)),
        ] {
            let against = |_: &str| {
                let (settings, credentials, placeholders) = (&config.webhooks[0], &credentials, &config.placeholders);
                Some(Against { settings, keys: keys.clone(), credentials, placeholders })
            };
            let checked = check(&request, against, UnixTime::from_nanos(1_800_000_000_000_000_000 + after));
            let time = checked.results.iter().find(|(name, _)| *name == "time").map(|(_, result)| &**result);
            assert_eq!((time, checked.refusal), (Some(said), refusal), "{:?}", checked.results);
            let admitted = checked.admitted.unwrap();
            assert!(admitted.notification.is_none());
        }
    }
}
