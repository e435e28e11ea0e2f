//! Answers of device managements. The first line names the service, and the rest is JSON that answers every request but logins.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use engine::provider::ProviderSettings;
use fakes::{Fake, Fault};
use inventory::{Answer, Inventory, Question, Way, strict};
use posture::identity::{DeviceId, IdentifierKind, normal};
use posture::secret::Secret;
use serde_json::Value;
use settings::Environment;
use sidecar::config::Config;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::line::line;

const SERIAL: &str = "C02XL0GYJGH5";

/// A provider and the fake that it asks.
struct Stand {
    inventory: Arc<dyn Inventory>,
    fake: Fake,
}

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

static STANDS: LazyLock<BTreeMap<&'static str, Stand>> = LazyLock::new(|| {
    let stand = |service: &fakes::services::StandIn| {
        let fake = RUNTIME.block_on(Fake::start((service.start)()));
        (service.word, Stand { inventory: open(service, &fake.url()), fake })
    };
    fakes::services::SERVICES.iter().map(stand).collect()
});

/// Asserts that a provider finds no record but that of the device in question, and none in JSON that has a member twice.
pub fn body(data: &[u8]) {
    let (name, json) = line(data);
    let Some(stand) = std::str::from_utf8(name).ok().and_then(|name| STANDS.get(name)) else { return };
    stand.fake.fail(Some(Fault::Body(json.to_vec())));
    let device = DeviceId::new(IdentifierKind::Serial, SERIAL).unwrap();
    let need = stand.inventory.fields();
    let question = Question { device, need, hint: None, deadline: Instant::now() + Duration::from_millis(500), way: Way::Query };
    let answer = RUNTIME.block_on(stand.inventory.lookup(&question));
    stand.fake.forget();
    if let Answer::Found(record) = answer {
        assert_eq!(record.serial.value().map(|serial| normal(serial).into_owned()).as_deref(), Some(SERIAL));
        assert!(strict::read::<Value>(json).is_ok(), "it says something twice");
    }
}

/// Opens a provider of this service, with every secret being `secret`.
pub(crate) fn open(service: &fakes::services::StandIn, url: &str) -> Arc<dyn Inventory> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let text = format!(
        "[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\n[[webhook]]\nid = \"1\"\nsecrets = [{{ env = \"S\" }}]\n\
         callers = [\"dns:a\"]\nproviders = [\"fake\"]\n[provider.fake]\ntype = \"{}\"\n{}\n",
        service.word,
        service.lines.replace("{url}", url)
    );
    let mut config = Config::parse(&text, Path::new("stepward.toml"), &Environment::new("/")).unwrap().config;
    let Some(ProviderSettings::Remote(remote)) = config.providers.remove("fake") else { panic!("{} is no service", service.word) };
    let secrets = vec![Secret::new(b"secret".to_vec()); remote.service.secrets().len()];
    remote.service.open(&remote.endpoint, &secrets).unwrap()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_service_has_answers_in_the_corpus() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/managements");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        for fakes::services::StandIn { word, .. } in fakes::services::SERVICES {
            let answers = files.iter().filter(|data| crate::line::line(data).0 == word.as_bytes()).count();
            assert!(answers >= 3, "fuzz/corpus/managements/ has {answers} answers of {word}");
        }
    }
}
