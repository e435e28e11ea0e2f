//! What the tests of the store have in common: decisions and rulings of the year 2100, and stores on either database.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use posture::identity::{DeviceId, IdentifierKind, Identity, PublicKey, Trust};
use posture::time::UnixTime;
use rcgen::PublicKeyData as _;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{OnceCell, mpsc};

use crate::decision::{Answer, Decision, Device};
use crate::id::DecisionId;
use crate::postgres::scripted::Cluster;
use crate::ruling::{Ruling, RulingKind};
use crate::scripted::bounded;
use crate::settings::Settings;
use crate::store::Store;
use crate::writer::Writer;

/// Where a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Sqlite,
    Postgres,
}

impl Backend {
    /// A place for a store, in which nothing is yet.
    pub(crate) async fn stand(self) -> Stand {
        match self {
            Self::Sqlite => {
                let folder = tempfile::tempdir().unwrap();
                Stand { settings: Settings { path: Some(folder.path().join("stepward.db")), ..bounded() }, _folder: Some(folder) }
            }
            Self::Postgres => {
                let server = cluster().await.database().await.unwrap();
                Stand { settings: Settings { server: Some(server), ..bounded() }, _folder: None }
            }
        }
    }
}

/// The server that the tests of one process share.
pub(crate) async fn cluster() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    CLUSTER.get_or_init(async || Cluster::start(&[]).await.unwrap()).await
}

/// A place for a store.
pub(crate) struct Stand {
    pub(crate) settings: Settings,
    _folder: Option<TempDir>,
}

impl Stand {
    /// The place that these settings name.
    pub(crate) const fn of(settings: Settings) -> Self {
        Self { settings, _folder: None }
    }

    /// The settings of a service, with bounds that no test reaches.
    pub(crate) fn unbounded(&self) -> Settings {
        let Settings { path, server, .. } = self.settings.clone();
        Settings { path, server, bind_keys: true, ..Settings::none() }
    }

    /// Opens the store as a service does.
    pub(crate) async fn open(&self) -> Store {
        Store::open(&self.unbounded(), Arc::<AtomicU64>::default()).await.unwrap()
    }

    /// Opens the store with bounds that a test reaches, and without its tasks: the test writes what is to be written.
    pub(crate) async fn connected(&self) -> (Writer, Arc<AtomicU64>, Store) {
        let dropped = Arc::<AtomicU64>::default();
        let (work, _) = mpsc::channel(1);
        let (writer, store) = Store::connect(&self.settings, moka::sync::Cache::new(0), work, Arc::clone(&dropped) as _).await.unwrap();
        (writer.unwrap(), dropped, store)
    }
}

pub(crate) const SECOND: i64 = 1_000_000_000;

/// The year 2100, in which the writer's own clock finds nothing too old.
pub(crate) const START: i64 = 4_102_444_800;

pub(crate) fn at(seconds: i64) -> UnixTime {
    UnixTime::from_nanos((START + seconds) * SECOND)
}

pub(crate) fn decision(seconds: i64, device: &str) -> Decision {
    Decision {
        id: DecisionId::new(at(seconds)),
        at: at(seconds),
        webhook: "one".to_owned(),
        kind: "enriching",
        caller: Some("dns:ca.example.org".to_owned()),
        caller_digest: None,
        device: Some(Device { identifier: device.to_owned(), kind: "serial", trust: "attested" }),
        provider: Some("staff".to_owned()),
        answers: vec![Answer { provider: "staff".to_owned(), outcome: "found", age_ms: Some(12) }],
        policy: Some("staff-mac".to_owned()),
        policy_revision: Some("1f".to_owned()),
        enforcement: Some("enforce"),
        decision: "deny",
        code: "not_managed".to_owned(),
        checks: Some(json!([{ "code": "not_managed", "inputs": { "device.managed": false }, "outcome": "failed" }]).to_string()),
        inputs: "ab".repeat(32),
        replayed: false,
        latency_us: 7,
        request_id: None,
        traceparent: None,
        key: None,
    }
}

pub(crate) fn ruling(device: &str, until: Option<i64>) -> Ruling {
    Ruling { until: until.map(at), ..Ruling::new(RulingKind::Lock, None, device, "a reason", "uid 0", at(100), None) }
}

pub(crate) fn key() -> PublicKey {
    PublicKey::from_spki(&rcgen::KeyPair::generate().unwrap().subject_public_key_info()).unwrap()
}

pub(crate) fn identity(device: &str, trust: Trust) -> Identity {
    Identity { device: DeviceId::new(IdentifierKind::Serial, device).unwrap(), trust }
}

pub(crate) fn allowed(seconds: i64, key: PublicKey, device: &str, trust: Trust) -> Decision {
    Decision { decision: "allow", key: Some((key, identity(device, trust))), ..decision(seconds, device) }
}
