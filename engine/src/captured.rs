//! The checks of a captured request: every check that a webhook meets before anybody is asked, in its order, each with its
//! result. Nothing is remembered of the request.

use inventory::Placeholders;
use posture::caller::{Caller, Peer};
use posture::credential::Credentials;
use posture::identity::Identity;
use posture::notification::Notification;
use posture::outcome::{Denial, Refusal};
use posture::shape::{Mode, shape};
use posture::time::UnixTime;
use posture::verify::SigningKeys;

use crate::checks::{Check, Judge};
use crate::webhooks::Settings;

/// A captured request, and who sent it.
#[derive(Clone, Copy, Debug)]
pub struct Captured<'r> {
    /// Path, with its query.
    pub path: &'r str,
    /// Headers, with names in lower case.
    pub headers: &'r [(String, String)],
    /// Body, byte by byte.
    pub body: &'r [u8],
    /// Certificate of the caller; without it the caller is not checked.
    pub peer: Option<&'r Peer>,
}

/// The webhook that a captured request names.
#[derive(Clone, Debug)]
pub struct Against<'w> {
    /// Settings of the webhook.
    pub settings: &'w Settings,
    /// Secrets of the webhook.
    pub keys: SigningKeys,
    /// Credentials of which `Authorization` has to be one.
    pub credentials: &'w Credentials,
    /// Texts that identify no device.
    pub placeholders: &'w Placeholders,
}

/// Results of the checks, up to the first that ends them.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Name and result of each check.
    pub results: Vec<(&'static str, String)>,
    /// The first refusal, for which step-ca would get no decision.
    pub refusal: Option<Refusal>,
    /// The request, where no check ended the others.
    pub admitted: Option<Admitted>,
}

/// A captured request that can be judged.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// The caller; `None`: nobody said who called.
    pub caller: Option<Caller>,
    /// The device, or why there is none to ask for.
    pub identity: Result<Identity, Denial>,
    /// The content of a notification.
    pub notification: Option<Notification>,
    /// The value of `?mode=`.
    pub mode: Option<Mode>,
}

/// Makes every check of a captured request. A timestamp outside the window is a refusal; the checks behind it are made all the
/// same, as of the time that the request states.
pub fn check<'w>(request: &Captured<'_>, find: impl FnOnce(&str) -> Option<Against<'w>>, now: UnixTime) -> Checked {
    let mut checked = Checked::default();
    // The check that ended the others has noted its refusal.
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
        let signed = (request.body, shape.signature);
        let mut judge = Judge::new(settings, &keys, credentials, placeholders, settings.window, now, signed, Some(&shape));
        for check in Check::ALL.iter().copied() {
            match judge.make(check, || request.peer) {
                Ok(()) => self.note(check.as_str(), passed(check, &judge)),
                Err(refusal) => {
                    // The first refusal counts; the checks behind the time are of interest all the same.
                    let ended = self.refused(check.as_str(), refusal, &why(check, refusal, &judge, request.peer));
                    if check != Check::Time {
                        return ended;
                    }
                    judge.go_by_its_own_time();
                }
            }
        }
        let notification = judge.notification();
        self.admitted = Some(Admitted { caller: judge.caller, identity: judge.identity?, notification, mode: shape.mode });
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

/// The text for a check that ended nothing.
fn passed(check: Check, judge: &Judge<'_>) -> String {
    match check {
        Check::Size | Check::Signature | Check::Schema => "ok".to_owned(),
        Check::Caller => {
            judge.caller.as_ref().map_or_else(|| "not checked: no --cert".to_owned(), |caller| format!("ok: {}", caller.as_str()))
        }
        Check::Credentials if judge.credentials.values().is_empty() => "ok: none required".to_owned(),
        Check::Credentials => "ok".to_owned(),
        Check::Time => format!("ok: {} ms old", judge.age().unwrap_or_default() / 1_000_000),
        Check::Kind => format!("ok: {}", judge.settings.kind.as_str()),
        Check::Identity => match (&judge.identity, &judge.stated) {
            (Some(Ok(Identity { device, trust })), _) => format!("ok: {} {}, {}", device.kind(), device.normal(), trust.as_str()),
            (Some(Err(denial)), Some(Ok(stated))) => {
                let text = stated.device.normal();
                format!("FAILED: {}: `{text}` is one of the placeholders, and identifies nobody", denial.code)
            }
            (Some(Err(denial)), _) => format!("FAILED: {}: {}", denial.code, denial.message),
            (None, _) => String::new(),
        },
    }
}

/// The text for a check that refused.
fn why(check: Check, refusal: Refusal, judge: &Judge<'_>, peer: Option<&Peer>) -> String {
    match check {
        Check::Size => format!("the body has {} bytes, and body_limit is {}", judge.length(), judge.settings.body_limit),
        Check::Caller => {
            let names = peer.map_or_else(Vec::new, |peer| peer.names().iter().map(ToString::to_string).collect());
            format!("none of {} may call, or the certificate is not for clients", names.join(", "))
        }
        Check::Credentials => "Authorization is none of those that the webhook requires".to_owned(),
        Check::Signature => "none of the webhook's secrets gives this signature over this body".to_owned(),
        Check::Schema => "the body is not a step-ca webhook".to_owned(),
        Check::Time if refusal == Refusal::TimestampPast => "the timestamp is older than the window".to_owned(),
        Check::Time => "the timestamp is further ahead than the window".to_owned(),
        Check::Kind => format!("the body is not {}", judge.settings.kind.as_str()),
        Check::Identity => refusal.as_str().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use posture::secret::Secret;

    use super::*;
    use crate::webhooks::fixture;

    #[test]
    fn says_how_old_a_request_is_and_on_which_side_of_the_window_it_lies() {
        let (settings, placeholders) = (fixture::settings("one"), Placeholders::default());
        let (keys, credentials) = (SigningKeys::new(&[Secret::new(b"key".to_vec())]), Credentials::default());
        let body = br#"{"timestamp":"2027-01-15T08:00:00Z","x509CertificateRequest":{},"attestationData":{"permanentIdentifier":"C02"}}"#;
        let headers = [("x-smallstep-webhook-id", settings.id.clone()), ("x-smallstep-signature", keys.sign(body).unwrap().to_hex())];
        let headers = headers.map(|(name, value)| (name.to_owned(), value));
        let request = Captured { path: "/webhook/one", headers: &headers, body, peer: None };
        let [past, future] = [settings.window.past, settings.window.future].map(|edge| i64::try_from(edge.as_nanos()).unwrap());
        for (after, said, refusal) in [
            (1_500_000_000, "ok: 1500 ms old", None),
            (-2_000_000, "ok: -2 ms old", None),
            (past + 1, "FAILED: the timestamp is older than the window", Some(Refusal::TimestampPast)),
            (-(future + 1), "FAILED: the timestamp is further ahead than the window", Some(Refusal::TimestampFuture)),
        ] {
            let against =
                |_: &str| Some(Against { settings: &settings, keys: keys.clone(), credentials: &credentials, placeholders: &placeholders });
            let checked = check(&request, against, UnixTime::from_nanos(1_800_000_000_000_000_000 + after));
            let time = checked.results.iter().find(|(name, _)| *name == "time").map(|(_, result)| &**result);
            assert_eq!((time, checked.refusal), (Some(said), refusal), "{:?}", checked.results);
            let signature = checked.results.iter().find(|(name, _)| *name == "signature").map(|(_, result)| &**result);
            assert_eq!(signature, Some("ok"), "{:?}", checked.results);
            let admitted = checked.admitted.unwrap();
            assert!(admitted.notification.is_none());
        }
    }
}
