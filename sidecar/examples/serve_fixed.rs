//! Serves one fixed webhook: `serve_fixed SOCKETS ADDRESS ID BASE64 DEVICES.json [CALLER…]`.
//!
//! For whoever needs a sidecar without a configuration file: the filter's own tests and measurements.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use posture::caller::Callers;
use posture::identity::{IdentifierKind, Source};
use posture::secret::Secret;
use posture::time::Window;
use posture::webhook::Kind;
use sidecar::config::{Attestation, Config, Envoy, Listen, Log, Provider, Replay, Webhook};
use sidecar::provider::file::{Format, Settings};
use sidecar::runtime::Material;

#[derive(Debug)]
struct Fixed {
    config: Config,
    secret: Secret,
}

impl sidecar::runtime::Source for Fixed {
    fn config(&self) -> Result<Config, String> {
        Ok(self.config.clone())
    }

    fn materials(&self, _config: &Config) -> Result<Vec<Material>, String> {
        Ok(vec![Material { secrets: vec![self.secret.clone()], credentials: posture::credential::Credentials::default() }])
    }

    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |name: &str| arguments.next().with_context(|| format!("{name} is missing"));
    let listen = Listen { sockets: next("SOCKETS")?.into(), admin: next("ADDRESS")?.parse()?, group: None, uids: BTreeMap::new() };
    let id = next("ID")?;
    let secret = Secret::from_base64(&next("BASE64")?)?;
    let path = PathBuf::from(next("DEVICES.json")?);
    let rules = arguments.map(|rule| rule.parse()).collect::<Result<Vec<_>, _>>()?;
    let webhook = Webhook {
        id,
        kind: Kind::Enriching,
        identifier: IdentifierKind::Serial,
        source: Source::Attested,
        attestation: vec![Attestation::Apple],
        secrets: Vec::new(),
        callers: if rules.is_empty() { Callers::AnyVerified } else { Callers::Named(rules) },
        bearer: Vec::new(),
        basic: Vec::new(),
        unsigned: false,
        window: Window::default(),
        deadline: Duration::from_millis(3500),
        body_limit: 65_536,
        mode: None,
        providers: vec!["fixed".to_owned()],
    };
    let envoy = Envoy {
        webhook_address: ([0, 0, 0, 0], 9443).into(),
        certificate: PathBuf::new(),
        private_key: PathBuf::new(),
        client_ca: None,
        wasm: PathBuf::new(),
        workers: None,
    };
    let config = Config {
        listen,
        envoy,
        webhooks: vec![webhook],
        providers: BTreeMap::from([("fixed".to_owned(), Provider::File(Settings { path, format: Format::Json, max_shrink: 0.1 }))]),
        replay: Replay { max_entries: 262_144, max_bytes: 64 << 20 },
        log: Log { level: "info".to_owned(), json: None },
    };
    sidecar::cli::serve::serve(Box::new(Fixed { config, secret })).await
}
