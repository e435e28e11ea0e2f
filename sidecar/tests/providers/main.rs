//! Tests of every provider of a service against its fake: one contract for all of them, and what is each one's own.
//!
//! # Writing the tests of a provider
//!
//! A module here is named as the provider's module. It has `stand()`, which opens the provider before a new fake; the contract tries
//! each of its promises on one:
//!
//! ```text
//! use fakes::example::Example;
//! use fakes::{Device, Fake, Fault};
//!
//! use super::Stand;
//!
//! const LINES: &str = "type = \"example\"\nbase_url = \"{url}\"\ntoken = { env = \"SECRET\" }\n";
//!
//! /// A provider that asks a customer without surprises.
//! pub(crate) async fn stand() -> Stand {
//!     Stand::open(Fake::start(Example::default()).await, LINES)
//! }
//! ```
//!
//! A test of its own asks by [`Stand::serial`], [`Stand::ask`], [`Stand::record`] or [`listed`], or through a cache. `stand.fake`
//! has the devices (`set`, `add`, `change`, `remove`), plays a fault (`fail` until `None`, `fail_next` and `pass_next` for the next
//! requests, `fail_logins`), and tells what it was asked (`lookups` and
//! `logins` are lists of requests, `asked` of identifiers; `forget` begins anew). [`Scripted`] is a service that answers as the
//! test says. [`documented`] reads the first example of the provider's page, whose address, `limits.per_second` and `sync` a test
//! compares. `counts` is for a service that says how many records there are: beside a record, a count of none is no answer.
//!
//! Its own tests show that it reads every field (`record.known()` is `inventory.fields()`) and no more where one is missing, null
//! or of another form; each quirk and each knob of the fake; a match that is only a part of an identifier; a search that does
//! nothing; a list over several pages that is complete, and one that is not; each finding of the doctor; and each setting.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "test code: a panic with its place is the report"
)]

mod addigy;
mod contract;
mod edge_cases;
mod fleet;
mod http_json;
mod intune;
mod jamf;
mod kandji;
mod mosyle;
mod pages;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use engine::cache::{self, Cache, Terms};
use engine::provider::ProviderSettings;
use fakes::{Device, Fake, Seen, Service};
use inventory::{Answer, Inventory, Question, Unavailable, Way};
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::{Fields, Record};
use posture::secret::Secret;
use settings::Environment;
use sidecar::config::Config;
use tokio::time::Instant;

/// Makes the tests that each provider has, from its module, the word of its service, and how it logs in: `token`, where it does
/// so for a token that ends, or `key`. `counts` says that the service tells how many records there are.
macro_rules! providers {
    ($($module:ident: $word:literal, $credentials:ident $(, $counts:ident)?;)*) => {
        /// Every promise, for every provider.
        mod each {
            $(crate::contract::contract!($module, $credentials);)*
        }

        /// Tests of the providers whose services say how many records there are.
        mod counting {
            $($(crate::contract::$counts!($module);)?)*
        }

        /// Words of the services whose providers keep the contract.
        const WORDS: &[&str] = &[$($word),*];
    };
}

providers! {
    addigy: "addigy", key, counts;
    fleet: "fleet", key;
    http_json: "http", key, counts;
    intune: "intune", token;
    jamf: "jamf", token, counts;
    kandji: "kandji", key, counts;
    mosyle: "mosyle", token, counts;
}

#[test]
fn every_service_has_a_fake_and_keeps_the_contract() {
    let services: BTreeSet<_> = inventory::Service::names().collect();
    let fakes: BTreeSet<_> = fakes::services::SERVICES.iter().map(|service| service.word).collect();
    assert_eq!(fakes, services, "`SERVICES` in fakes/src/services.rs, and `services!` in inventory/src/service.rs");
    assert_eq!(WORDS.iter().copied().collect::<BTreeSet<_>>(), services, "`providers!` above, and `services!` in inventory/src/service.rs");
}

/// A provider and the fake that it asks.
pub(crate) struct Stand {
    pub(crate) inventory: Arc<dyn Inventory>,
    pub(crate) fake: Fake,
    pub(crate) remote: engine::provider::RemoteSettings,
}

impl Stand {
    /// Opens a provider as the service does: from `[provider.it]` in a configuration, where every secret is `secret`.
    ///
    /// `{url}` in the lines is the fake's address. A secret is written as `{ env = "SECRET" }`.
    pub(crate) fn open(fake: Fake, lines: &str) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let remote = remote(&lines.replace("{url}", &fake.url()));
        let secrets = vec![Secret::new(b"secret".to_vec()); remote.service.secrets().len()];
        let inventory = remote.service.open(&remote.endpoint, &secrets).unwrap();
        Self { inventory, fake, remote }
    }

    /// Asks for a serial number with everything that the provider can say, for at most three seconds.
    pub(crate) async fn serial(&self, serial: &str) -> Answer {
        self.ask(IdentifierKind::Serial, serial, self.inventory.fields()).await
    }

    /// Asks for an identifier.
    pub(crate) async fn ask(&self, kind: IdentifierKind, identifier: &str, need: Fields) -> Answer {
        let device = DeviceId::new(kind, identifier).unwrap();
        self.inventory
            .lookup(&Question { device, need, hint: None, deadline: Instant::now() + Duration::from_secs(3), way: Way::Webhook })
            .await
    }

    /// Makes a cache before the provider, as the service has it.
    pub(crate) fn cache(&self) -> Arc<Cache> {
        let settings = cache::Settings {
            cache: self.remote.cache,
            limits: self.remote.limits,
            connections: self.remote.endpoint.connections,
            sync: self.remote.sync,
        };
        let runtime = tokio::runtime::Handle::current();
        Arc::new(Cache::new("it", settings, Arc::clone(&self.inventory), Arc::default(), runtime))
    }

    /// Asks for a serial number through a cache.
    pub(crate) async fn ask_through(&self, cache: &Arc<Cache>, serial: &str) -> Answer {
        let device = DeviceId::new(IdentifierKind::Serial, serial).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let question = Question { device, need: Fields::NONE, hint: None, deadline, way: Way::Webhook };
        cache.lookup(&question, Terms::default()).await.answer
    }

    /// Returns the record of a serial number that has to be there.
    pub(crate) async fn record(&self, serial: &str) -> Arc<Record> {
        match self.serial(serial).await {
            Answer::Found(record) => record,
            other => panic!("{serial}: {other:?}"),
        }
    }
}

/// Returns the record of a device that has to be there, asked for through a cache with these fields.
pub(crate) async fn ask_for(cache: &Arc<Cache>, serial: &str, need: Fields) -> Arc<Record> {
    let device = DeviceId::new(IdentifierKind::Serial, serial).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let question = Question { device, need, hint: None, deadline, way: Way::Webhook };
    match cache.lookup(&question, Terms::default()).await.answer {
        Answer::Found(record) => record,
        other => panic!("{serial}: {other:?}"),
    }
}

/// Returns what the configuration makes of the lines of `[provider.it]`.
pub(crate) fn remote(lines: &str) -> engine::provider::RemoteSettings {
    let text = format!(
        "[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\n[[webhook]]\nid = \"1\"\nsecrets = [{{ env = \"SECRET\" }}]\n\
         callers = [\"dns:a\"]\nproviders = [\"it\"]\n[provider.it]\n{lines}\n"
    );
    let mut loaded = Config::parse(&text, "stepward.toml".as_ref(), &Environment::new("/")).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    match loaded.config.providers.remove("it") {
        Some(ProviderSettings::Remote(remote)) => remote,
        other => panic!("{other:?}"),
    }
}

/// A management that answers as a test says.
pub(crate) struct Scripted<F>(pub(crate) F);

impl<F: Fn(&Seen) -> fakes::server::Answer + Send + Sync + 'static> Service for Scripted<F> {
    fn answer(&self, request: &Seen, _: &[Device], _: bool) -> fakes::server::Answer {
        (self.0)(request)
    }

    fn is_login(&self, request: &Seen) -> bool {
        request.path.ends_with("/token") || request.path.ends_with("/login")
    }
}

/// Returns all records of the whole list, and whether it is proven to be complete.
pub(crate) async fn listed(stand: &Stand) -> (Vec<Record>, Result<bool, Unavailable>) {
    let (sender, mut pages) = tokio::sync::mpsc::channel(1000);
    let end = stand.inventory.list(None, Fields::NONE, sender).await.map(|listed| listed.complete);
    let mut records = Vec::new();
    while let Some(page) = pages.recv().await {
        records.extend(page);
    }
    (records, end)
}

/// Starts a server that is nobody's management.
pub(crate) async fn stranger() -> Fake {
    struct Stranger;
    impl Service for Stranger {
        fn answer(&self, _: &Seen, _: &[Device], _: bool) -> fakes::server::Answer {
            fakes::server::Answer::json(serde_json::json!({}))
        }
    }
    Fake::start(Stranger).await
}

/// Returns the provider in the first TOML block of a page in `docs/providers`, where it is named as the page is.
pub(crate) fn documented(name: &str) -> engine::provider::RemoteSettings {
    let path = format!("{}/../docs/providers/{name}.md", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(path).unwrap();
    let block = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let lines = block.split(&format!("[provider.{name}]\n")).nth(1).unwrap();
    // Lines that are commented out are examples too.
    let lines = lines.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).collect::<Vec<_>>().join("\n");
    remote(&lines.replace(&format!("[provider.{name}."), "[provider.it."))
}
