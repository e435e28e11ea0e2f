//! The webhooks of step-ca: as they are configured, and ready to judge by.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use posture::caller::Callers;
use posture::credential::Credentials;
use posture::identity::{IdentifierKind, Source};
use posture::secret::Secret;
use posture::shape::Mode;
use posture::time::Window;
use posture::verify::SigningKeys;
use posture::webhook::Kind;
use settings::SecretSource;

use crate::plan::{Enforcement, Plan};
use crate::replay::{Judged, Signer};

/// The settings of one webhook of step-ca. A `[[webhook]]` with several `ids` is as many of them, which have all else in common.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `X-Smallstep-Webhook-ID`.
    pub id: String,
    /// The name that people call it by, with all of its ids; `None`: they have nothing but the id.
    pub name: Option<String>,
    /// Number of the `[[webhook]]` in the configuration, from 0.
    pub table: usize,
    /// The kind of the webhook; default enriching.
    pub kind: Kind,
    /// The kind of the identifier; default serial.
    pub identifier: IdentifierKind,
    /// The place where the identifier is found; default attested.
    pub source: Source,
    /// Attestation formats that the provisioner accepts. Default apple.
    pub attestation: Vec<Attestation>,
    /// The HMAC secrets, newest first; empty only where `unsigned`.
    pub secrets: Vec<SecretSource>,
    /// The callers that may call.
    pub callers: Callers,
    /// Bearer tokens that are required, any one of them.
    pub bearer: Vec<SecretSource>,
    /// Basic credentials that are required, any one of them.
    pub basic: Vec<Basic>,
    /// Whether step-ca signs with the empty key (a webhook in a static `ca.json`).
    pub unsigned: bool,
    /// The window of timestamps; default [`Window::default`].
    pub window: Window,
    /// The time from the first byte to the reply; default 3.5 s, at most 3.8 s.
    pub deadline: Duration,
    /// Largest body in bytes; default 65,536, at most [`LARGEST_BODY`].
    pub body_limit: u32,
    /// The default of `?mode=`.
    pub mode: Option<Mode>,
    /// Providers to ask, in this order; at least one unless there is a policy or the kind asks nobody (scep_challenge,
    /// notifying).
    pub providers: Vec<String>,
    /// The policy that names the providers and judges what they say; never with `providers`.
    pub policy: Option<String>,
    /// Whether the policy's denials count. Default enforce.
    pub enforcement: Enforcement,
}

impl Settings {
    /// The name of the webhook for people, with its id.
    pub fn shown(&self) -> Cow<'_, str> {
        match &self.name {
            Some(name) => format!("{name} ({})", self.id).into(),
            None => self.id.as_str().into(),
        }
    }

    /// How long bytes that were sent to a webhook may be accepted: from the furthest ahead to the greatest age. The bytes' age
    /// now does not matter, since the clock by which it was read may be set right meanwhile.
    pub fn keep(&self) -> Duration {
        let Window { past, future } = self.window;
        [future, self.deadline, MARGIN].into_iter().fold(past, Duration::saturating_add)
    }
}

/// An attestation format of `device-attest-01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attestation {
    /// Apple managed device attestation.
    Apple,
    /// YubiKey and step-managed devices.
    Step,
    /// TPM 2.0.
    Tpm,
    /// Android key attestation.
    AndroidKey,
}

impl Attestation {
    /// All formats.
    pub const ALL: &'static [Self] = &[Self::Apple, Self::Step, Self::Tpm, Self::AndroidKey];

    /// The format as the configuration and step-ca spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Apple => "apple",
            Self::Step => "step",
            Self::Tpm => "tpm",
            Self::AndroidKey => "android-key",
        }
    }
}

/// A user name and its password.
#[derive(Clone, Debug)]
pub struct Basic {
    /// User name.
    pub username: String,
    /// Password.
    pub password: SecretSource,
}

/// One webhook, ready to judge by.
#[derive(Debug)]
pub struct Webhook {
    /// `X-Smallstep-Webhook-ID`.
    pub id: Arc<str>,
    /// The settings of the webhook.
    pub settings: Settings,
    /// The HMAC secrets, for the filter.
    pub secrets: Vec<Secret>,
    /// The identities of the secrets.
    pub signers: Vec<Signer>,
    /// The secrets, ready to verify with.
    pub keys: SigningKeys,
    /// The credentials that the filter asks for.
    pub credentials: Credentials,
    /// The plan: whom to ask about its devices, and what to demand.
    pub plan: Arc<Plan>,
    started: Instant,
    warned: AtomicU64,
}

/// The secrets of one webhook, read from where the configuration says.
#[derive(Clone, Debug, Default)]
pub struct Material {
    /// HMAC secrets, newest first.
    pub secrets: Vec<Secret>,
    /// Credentials of which the `Authorization` header has to be one.
    pub credentials: Credentials,
}

/// Every secret of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Materials {
    /// The secrets of webhooks, in the order of the configuration.
    pub webhooks: Vec<Material>,
    /// The secrets of providers, by name, each as its settings list them.
    pub providers: BTreeMap<String, Vec<Secret>>,
}

impl Webhook {
    /// A webhook of these settings and secrets.
    pub fn new(settings: Settings, material: Material, plan: Arc<Plan>) -> Self {
        let signers = if settings.unsigned {
            // Without a secret, whoever calls can write any bytes: each id is a signer of its own.
            vec![Signer::none(&settings.id)]
        } else {
            material.secrets.iter().filter_map(Signer::of).collect()
        };
        Self {
            id: settings.id.as_str().into(),
            signers,
            keys: if settings.unsigned { SigningKeys::unsigned() } else { SigningKeys::new(&material.secrets) },
            secrets: material.secrets,
            credentials: material.credentials,
            plan,
            settings,
            started: Instant::now(),
            warned: AtomicU64::new(0),
        }
    }

    /// The webhook as [`Reaches`](crate::replay::Reaches) judge it.
    pub fn judged(&self) -> Judged<'_> {
        (&self.signers, self.settings.window, self.settings.deadline)
    }

    /// Whether a warning about this webhook is due: one a minute, for whoever asks first.
    pub fn may_warn(&self, now: Instant) -> bool {
        let minute = now.saturating_duration_since(self.started).as_secs() / 60 + 1;
        self.warned.fetch_max(minute, Ordering::Relaxed) < minute
    }
}

/// The greatest `body_limit`, in bytes.
pub const LARGEST_BODY: u32 = 1 << 20;

/// How much longer the memory keeps bytes than the window takes them, so that no rounding can let equal bytes in.
const MARGIN: Duration = Duration::from_secs(1);

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// A webhook of this id for enriching, by the serial number that was attested.
    pub(crate) fn settings(id: &str) -> Settings {
        Settings {
            id: id.to_owned(),
            name: None,
            table: 0,
            kind: Kind::Enriching,
            identifier: IdentifierKind::Serial,
            source: Source::Attested,
            attestation: vec![Attestation::Apple],
            secrets: Vec::new(),
            callers: Callers::Named(vec!["dns:ca.example.org".parse().unwrap()]),
            bearer: Vec::new(),
            basic: Vec::new(),
            unsigned: false,
            window: Window::default(),
            deadline: Duration::from_millis(3500),
            body_limit: 65_536,
            mode: None,
            providers: vec!["staff".to_owned()],
            policy: None,
            enforcement: Enforcement::Enforce,
        }
    }
}
