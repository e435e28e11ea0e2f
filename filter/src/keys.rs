//! The webhooks as the sidecar handed them down, ready to judge a request by.

use std::time::Duration;

use posture::caller::{Callers, Name, Peer};
use posture::credential::Credentials;
use posture::outcome::Refusal;
use posture::secret::Secret;
use posture::shape::Shape;
use posture::time::{UnixTime, Window};
use posture::verify::{SigningKeys, Verified};
use posture::webhook::Stamped;
use proto::v1::{WebhookKeys, WebhookSet};

/// One revision of the webhooks.
#[derive(Debug)]
pub struct Keys {
    /// Which one.
    pub revision: u64,
    // Sorted by id, since hashing has no random state in a VM and callers choose what to look for.
    webhooks: Vec<(String, Webhook)>,
    nobody: SigningKeys,
}

/// One webhook, as far as the filter judges it.
#[derive(Debug)]
pub struct Webhook {
    keys: SigningKeys,
    callers: Callers,
    credentials: Credentials,
    window: Window,
    /// From first byte to reply.
    pub deadline: Duration,
    /// Largest body in bytes.
    pub body_limit: u32,
}

impl Keys {
    /// Takes what the sidecar sent. What cannot be read lets nobody in.
    pub fn new(set: WebhookSet) -> Self {
        let mut webhooks: Vec<(String, Webhook)> = Vec::with_capacity(set.webhooks.len());
        for webhook in set.webhooks {
            let id = webhook.id.clone();
            match webhooks.binary_search_by(|(known, _)| known.cmp(&id)) {
                // The sidecar sends an id once; were it otherwise, nobody could say which one counts.
                Ok(_) => continue,
                Err(at) => webhooks.insert(at, (id, Webhook::new(webhook))),
            }
        }
        Self { revision: set.revision, webhooks, nobody: SigningKeys::new(&[Secret::new(b"no webhook has this id".to_vec())]) }
    }

    /// The webhook of an id, compared byte by byte.
    pub fn get(&self, id: &str) -> Option<&Webhook> {
        let at = self.webhooks.binary_search_by(|(known, _)| known.as_str().cmp(id)).ok()?;
        self.webhooks.get(at).map(|(_, webhook)| webhook)
    }

    /// Steps 3 and 4: proves the body of a request, and says at what time. `now` is asked once the signature is proven.
    ///
    /// # Errors
    /// As [`Verified::verify`]; [`Refusal::WebhookUnknown`] after as much work as for a known id.
    pub fn prove(&self, shape: &Shape, body: &[u8], now: impl FnOnce() -> UnixTime) -> Result<UnixTime, Refusal> {
        let mut at = UnixTime::from_nanos(0);
        let now = || {
            at = now();
            at
        };
        let Some(webhook) = self.get(&shape.webhook_id) else {
            let _ = Verified::<Stamped<'_>>::verify_at(&self.nobody, &shape.signature, body, &Window::default(), now);
            return Err(Refusal::WebhookUnknown);
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
        // The empty key proves nothing, so it never stands without a named caller.
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

    /// Step 2: who calls, and with which credentials.
    ///
    /// # Errors
    /// [`Refusal::Caller`], then [`Refusal::Credentials`].
    pub fn admit(&self, shape: &Shape, peer: Option<&Peer>) -> Result<(), Refusal> {
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
