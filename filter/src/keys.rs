//! The webhooks as the sidecar sent them, ready to judge a request.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use posture::caller::{Callers, Name, Peer};
use posture::credential::Credentials;
use posture::outcome::Refusal;
use posture::secret::Secret;
use posture::shape::Shape;
use posture::time::{UnixTime, Window};
use posture::verify::{SigningKeys, Unproven, Verified};
use posture::webhook::Stamped;
use proto::v1::{WebhookKeys, WebhookSet};

/// One revision of the webhooks.
#[derive(Debug)]
pub struct Keys {
    /// Number of the revision.
    pub revision: u64,
    // Sorted by id, since hashing has no random state in a VM, and callers choose which ids are looked up.
    webhooks: Vec<(String, Webhook)>,
    nobody: SigningKeys,
    /// Longest deadline of any webhook.
    pub longest_deadline: Duration,
}

/// The judgement of a request's headers, before any of its body is kept.
#[derive(Debug)]
pub enum Admission<'k> {
    /// The caller may call this webhook.
    Webhook(&'k Webhook),
    /// No webhook has the id, and the caller may call some other webhook: the request is refused only once it is complete.
    Unknown,
}

/// One webhook, as far as the filter judges it.
#[derive(Debug)]
pub struct Webhook {
    keys: SigningKeys,
    callers: Callers,
    credentials: Credentials,
    window: Window,
    /// Deadline from the first byte of the request to the reply.
    pub deadline: Duration,
    /// Largest body, in bytes.
    pub body_limit: u32,
}

impl Keys {
    /// Reads what the sidecar sent. A webhook that cannot be read admits no caller.
    pub fn new(set: WebhookSet) -> Self {
        // A webhook whose id appears twice admits no caller, since either may be the right one.
        let mut webhooks: BTreeMap<String, Option<Webhook>> = BTreeMap::new();
        for webhook in set.webhooks {
            match webhooks.entry(webhook.id.clone()) {
                Entry::Vacant(entry) => _ = entry.insert(Some(Webhook::new(webhook))),
                Entry::Occupied(mut entry) => _ = entry.insert(None),
            }
        }
        let webhooks: Vec<_> = webhooks.into_iter().filter_map(|(id, webhook)| Some((id, webhook?))).collect();
        let longest_deadline = webhooks.iter().map(|(_, webhook)| webhook.deadline).max().unwrap_or_default();
        let nobody = SigningKeys::new(&[Secret::new(b"no webhook has this id".to_vec())]);
        Self { revision: set.revision, webhooks, nobody, longest_deadline }
    }

    /// Judges the caller and its credentials by the headers alone.
    ///
    /// # Errors
    /// The errors of `Webhook::check_caller`. A caller that may call no webhook at all gets the same error for an id that
    /// exists and for one that does not, and none of the body is kept for either.
    pub fn admit_caller(&self, shape: &Shape, peer: Option<&Peer>) -> Result<Admission<'_>, Refusal> {
        match self.get(&shape.webhook_id) {
            Some(webhook) => webhook.check_caller(shape, peer).map(|()| Admission::Webhook(webhook)),
            None if self.webhooks.iter().any(|(_, webhook)| webhook.callers.let_in(peer)) => Ok(Admission::Unknown),
            None => Err(Refusal::Caller),
        }
    }

    /// The webhook with an id, compared byte by byte.
    pub fn get(&self, id: &str) -> Option<&Webhook> {
        let at = self.webhooks.binary_search_by(|(known, _)| known.as_str().cmp(id)).ok()?;
        self.webhooks.get(at).map(|(_, webhook)| webhook)
    }

    /// Takes steps 3 and 4: proves the body of a request, and returns the time. `now` is called once the signature is proven.
    ///
    /// # Errors
    /// The errors of [`Verified::verify_at`], and [`Refusal::WebhookUnknown`], after as much work as for a known id.
    pub fn prove(&self, shape: &Shape, body: &[u8], now: impl FnOnce() -> UnixTime) -> Result<UnixTime, Unproven> {
        let mut at = UnixTime::from_nanos(0);
        let now = || {
            at = now();
            at
        };
        let Some(webhook) = self.get(&shape.webhook_id) else {
            let _ = Verified::<Stamped<'_>>::verify_at(&self.nobody, &shape.signature, body, &Window::default(), now);
            return Err(Refusal::WebhookUnknown.into());
        };
        Verified::<Stamped<'_>>::verify_at(&webhook.keys, &shape.signature, body, &webhook.window, now)?;
        Ok(at)
    }
}

impl Webhook {
    fn new(webhook: WebhookKeys) -> Self {
        let secrets: Vec<_> = webhook.secrets.into_iter().map(Secret::new).collect();
        let callers = if webhook.anonymous {
            Callers::Anonymous
        } else if webhook.callers.is_empty() {
            Callers::AnyVerified
        } else {
            Callers::Named(webhook.callers.iter().filter_map(|rule| rule.parse::<Name>().ok()).collect())
        };
        // The empty key proves nothing, so it is used only with named callers.
        let unsigned = webhook.unsigned && matches!(callers, Callers::Named(_));
        Self {
            keys: if unsigned { SigningKeys::unsigned() } else { SigningKeys::new(&secrets) },
            callers,
            credentials: Credentials::new(webhook.authorizations.into_iter().map(Secret::new).collect()),
            window: Window {
                past: Duration::from_millis(webhook.window_past_ms.into()),
                future: Duration::from_millis(webhook.window_future_ms.into()),
            },
            deadline: Duration::from_millis(webhook.deadline_ms.into()),
            body_limit: webhook.body_limit,
        }
    }

    /// Checks the caller and its credentials.
    ///
    /// # Errors
    /// [`Refusal::Caller`], then [`Refusal::Credentials`].
    fn check_caller(&self, shape: &Shape, peer: Option<&Peer>) -> Result<(), Refusal> {
        if !self.callers.let_in(peer) {
            return Err(Refusal::Caller);
        }
        self.credentials.check(shape.authorization.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(webhook: WebhookKeys) -> Webhook {
        Webhook::new(webhook)
    }

    #[test]
    fn callers_that_cannot_be_read_let_nobody_in() {
        let webhook = webhook(WebhookKeys { callers: vec!["nonsense".to_owned()], ..Default::default() });
        assert_eq!(webhook.callers, Callers::Named(vec![]));
    }

    #[test]
    fn f_an_id_that_stands_twice_lets_nobody_in() {
        let named = |id: &str| WebhookKeys { id: id.to_owned(), secrets: vec![b"secret".to_vec()], anonymous: true, ..Default::default() };
        let keys = Keys::new(WebhookSet { revision: 1, webhooks: ["b", "a", "c", "a", "a", "b"].map(named).to_vec() });
        assert_eq!(["a", "b", "c", "d"].map(|id| keys.get(id).is_some()), [false, false, true, false]);
    }

    #[test]
    fn f_every_webhook_is_found_by_its_own_id() {
        let named = |limit: u32| WebhookKeys { id: format!("id-{limit}"), body_limit: limit, ..Default::default() };
        let keys = Keys::new(WebhookSet { revision: 3, webhooks: [7, 2, 9, 4].map(named).to_vec() });
        assert_eq!(keys.revision, 3);
        for limit in [7, 2, 9, 4] {
            assert_eq!(keys.get(&format!("id-{limit}")).unwrap().body_limit, limit);
        }
        assert!(keys.get("id-").is_none() && keys.get("").is_none());
    }

    #[test]
    fn f_bounds_and_windows_are_those_that_were_sent() {
        let webhook = webhook(WebhookKeys {
            window_past_ms: 1_500,
            window_future_ms: 250,
            deadline_ms: 900,
            body_limit: 77,
            anonymous: true,
            ..Default::default()
        });
        let window = Window { past: Duration::from_millis(1_500), future: Duration::from_millis(250) };
        assert_eq!((webhook.window.past, webhook.window.future), (window.past, window.future));
        assert_eq!((webhook.deadline, webhook.body_limit), (Duration::from_millis(900), 77));
        assert_eq!(webhook.callers, Callers::Anonymous);
    }

    #[test]
    fn the_empty_key_needs_a_named_caller() {
        let signature = SigningKeys::unsigned().sign(b"{}").unwrap();
        let verify = |keys: &SigningKeys| {
            Verified::<Stamped<'_>>::verify(keys, &signature, b"{}", &Window::default(), UnixTime::from_nanos(0)).unwrap_err()
        };
        for keys in [
            WebhookKeys { unsigned: true, ..Default::default() },
            WebhookKeys { unsigned: true, anonymous: true, callers: vec!["dns:a".to_owned()], ..Default::default() },
            WebhookKeys { secrets: vec![vec![]], callers: vec!["dns:a".to_owned()], ..Default::default() },
            WebhookKeys { callers: vec!["dns:a".to_owned()], ..Default::default() },
        ] {
            assert_eq!(verify(&webhook(keys).keys), Refusal::Signature);
        }
        let named = WebhookKeys { unsigned: true, callers: vec!["dns:a".to_owned()], ..Default::default() };
        assert_eq!(verify(&webhook(named).keys), Refusal::Malformed);
    }
}
