//! Answers of device managements, whatever they say. The first line names the service, and the rest is JSON that answers every
//! request but logins.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use fakes::server::Answer as Reply;
use fakes::{Device, Fake, Seen, Service};
use posture::identity::{DeviceId, IdentifierKind, normal};
use posture::secret::Secret;
use serde_json::Value;
use sidecar::config::{Config, Environment, Provider};
use sidecar::provider::Answer;
use sidecar::provider::inventory::{Inventory, Question, Way};
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::push::line;

const SERIAL: &str = "C02XL0GYJGH5";

/// A provider, and what its service answers at present.
struct Stand {
    inventory: Arc<dyn Inventory>,
    says: Arc<Mutex<Value>>,
    fake: Fake,
}

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

static STANDS: LazyLock<BTreeMap<&'static str, Stand>> = LazyLock::new(|| {
    let services: [(&str, Box<dyn Service>); 7] = [
        ("addigy", Box::new(fakes::addigy::Addigy::default())),
        ("fleet", Box::new(fakes::fleet::Fleet::default())),
        ("http", Box::new(fakes::inventory::Inventory::Listed)),
        ("intune", Box::new(fakes::intune::Intune::new())),
        ("jamf", Box::new(fakes::jamf::Jamf::new())),
        ("kandji", Box::new(fakes::kandji::Kandji::default())),
        ("mosyle", Box::new(fakes::mosyle::Mosyle::new(fakes::mosyle::Product::Business))),
    ];
    let stand = |(name, service): (&'static str, Box<dyn Service>)| {
        let says = Arc::new(Mutex::new(Value::Null));
        let fake = RUNTIME.block_on(Fake::start(Scripted { service, says: Arc::clone(&says) }));
        (name, Stand { inventory: open(name, &fake.url()), says, fake })
    };
    services.map(stand).into()
});

/// Logs in as the service does, and says one thing to everything else.
struct Scripted {
    service: Box<dyn Service>,
    says: Arc<Mutex<Value>>,
}

impl Service for Scripted {
    fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Reply {
        if self.service.is_login(request) {
            return self.service.answer(request, devices, ignore_filter);
        }
        match &*self.says.lock().unwrap() {
            // That goes out as HTML, which is another test's.
            Value::String(_) => Reply::json(Value::Null),
            says => Reply::json(says.clone()),
        }
    }

    fn is_login(&self, request: &Seen) -> bool {
        self.service.is_login(request)
    }
}

/// Whatever a service says, no record is found but that of the device that was asked for.
pub fn body(data: &[u8]) {
    let (name, json) = line(data);
    let Some(stand) = std::str::from_utf8(name).ok().and_then(|name| STANDS.get(name)) else { return };
    let Ok(says) = serde_json::from_slice(json) else { return };
    *stand.says.lock().unwrap() = says;
    let device = DeviceId::new(IdentifierKind::Serial, SERIAL).unwrap();
    let need = stand.inventory.fields();
    let question = Question { device, need, hint: None, deadline: Instant::now() + Duration::from_millis(500), way: Way::Query };
    let answer = RUNTIME.block_on(stand.inventory.lookup(&question));
    stand.fake.forget();
    if let Answer::Found(record) = answer {
        assert_eq!(record.serial.value().map(|serial| normal(serial).into_owned()).as_deref(), Some(SERIAL));
    }
}

/// A provider as the service opens it, where every secret is `secret`.
pub(crate) fn open(name: &str, url: &str) -> Arc<dyn Inventory> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let lines = match name {
        "addigy" => "base_url = \"{url}/api/v2\"\napi_key = { env = \"S\" }",
        "http" => {
            "base_url = \"{url}\"\npath = \"/devices?serial={identifier}\"\ntoken = { env = \"S\" }\nitems = \"/devices\"\n\
             total = \"/total\"\nidentifier = \"/serial\"\n[provider.it.fields]\nmanaged = \"/mdm/enrolled\"\ngroups = \"/groups\""
        }
        "intune" => {
            "tenant_id = \"6f1b2c3d-0000-4000-8000-00000000aaaa\"\nclient_id = \"6f1b2c3d-0000-4000-8000-00000000bbbb\"\n\
             client_secret = { env = \"S\" }\nlogin_url = \"{url}\"\ngraph_url = \"{url}\""
        }
        "jamf" => "base_url = \"{url}\"\nclient_id = \"client\"\nclient_secret = { env = \"S\" }",
        "mosyle" => "base_url = \"{url}/v1\"\naccess_token = { env = \"S\" }\nemail = \"api@example.org\"\npassword = { env = \"S\" }",
        _ => "base_url = \"{url}\"\ntoken = { env = \"S\" }",
    };
    let text = format!(
        "[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\n[[webhook]]\nid = \"1\"\nsecrets = [{{ env = \"S\" }}]\n\
         callers = [\"dns:a\"]\nproviders = [\"it\"]\n[provider.it]\ntype = \"{name}\"\n{}\n",
        lines.replace("{url}", url)
    );
    let mut config = Config::parse(&text, Path::new("stepward.toml"), &Environment::new("/")).unwrap().config;
    let Some(Provider::Remote(remote)) = config.providers.remove("it") else { panic!("{name} is no service") };
    let secrets = vec![Secret::new(b"secret".to_vec()); remote.service.secrets().len()];
    remote.service.open(&remote.endpoint, &secrets).unwrap()
}
