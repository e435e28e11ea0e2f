//! What was set up for step-posture-connector runs Stepward: its variables alone, or its `.env`.

use std::path::Path;
use std::process::Command;

use e2e::client::{Client, Http};
use e2e::deployment::{Addresses, Tls};
use e2e::metrics::get;
use e2e::pki::{Authority, Credential, Leaf};
use e2e::process::{Process, run};
use e2e::tools::{envoy, filter, stepward};
use e2e::wait::{STARTUP, until};
use e2e::webhook::Registered;

const KNOWN: &str = "C02XL0GYJGH5";

/// A folder with what the variables name.
pub(crate) struct Setup {
    at: Addresses,
    pub(crate) tls: Tls,
    pub(crate) webhooks: [Registered; 2],
    folder: tempfile::TempDir,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("Test Root");
        let mut tls = Tls::of(&authority);
        tls.client = authority.issue(&Leaf::client("step-ca"));
        std::fs::write(folder.path().join("server.crt"), &tls.server.chain).unwrap();
        std::fs::write(folder.path().join("server.key"), &tls.server.key).unwrap();
        std::fs::write(folder.path().join("ca.crt"), &tls.client_ca).unwrap();
        std::fs::write(folder.path().join("devices.csv"), format!("Identifier,Owner\r\n{KNOWN},Ada\r\n")).unwrap();
        Self { at: Addresses::default(), tls, webhooks: [Registered::random("first"), Registered::random("second")], folder }
    }

    /// The variables of step-posture-connector, as its README has them, with a file of devices.
    fn variables(&self) -> Vec<(&'static str, String)> {
        let file = [("PROVIDER", "file"), ("FILE_PATH", "devices.csv"), ("FILE_TYPE", "csv")];
        self.with(file.map(|(name, value)| (name, value.to_owned())))
    }

    /// The same with another provider.
    pub(crate) fn with(&self, provider: impl IntoIterator<Item = (&'static str, String)>) -> Vec<(&'static str, String)> {
        let [first, second] = &self.webhooks;
        let common = [
            ("TLS_CERT_PATH", "server.crt".to_owned()),
            ("TLS_KEY_PATH", "server.key".to_owned()),
            ("TLS_CA_PATH", "ca.crt".to_owned()),
            ("ENABLE_MTLS", "1".to_owned()),
            ("WEBHOOK_IDS", format!("{},{}", first.id, second.id)),
            ("WEBHOOK_SECRETS", format!("{},{}", first.secret, second.secret)),
            ("PORT", self.at.webhook.port().to_string()),
            ("LOGGING_LEVEL", "0".to_owned()),
            ("TIMEOUT", "10".to_owned()),
        ];
        provider.into_iter().chain(common).collect()
    }

    /// A command in the folder with these variables, and where the test wants sockets and metrics.
    fn command(&self, program: &Path, variables: &[(&str, String)]) -> Command {
        let mut command = Command::new(program);
        command.env_clear().current_dir(self.folder.path()).envs(variables.iter().map(|(name, value)| (name, value)));
        command.env("RUNTIME_DIRECTORY", self.folder.path().join("run"));
        command.env("STEPWARD__LISTEN__ADMIN", self.at.metrics.to_string()).env("STEPWARD__ENVOY__WASM", filter());
        command.env("STEPWARD__ENVOY__STATS_ADDRESS", self.at.stats.to_string());
        command
    }

    /// The sidecar, and Envoy with what `envoy-config` prints.
    pub(crate) async fn start(&self, variables: &[(&str, String)]) -> [Process; 2] {
        let mut serve = self.command(&stepward(), variables);
        serve.arg("serve");
        let mut sidecar = Process::start("sidecar", self.folder.path(), serve);
        until("the sidecar is ready", STARTUP, async || {
            assert!(sidecar.is_running(), "{}", sidecar.log());
            get(self.at.metrics, "/readyz").await.is_ok_and(|(status, _)| status == 200).then_some(())
        })
        .await;
        run(self.command(&stepward(), variables).args(["envoy-config", "--output", "envoy.yaml"]));
        let mut command = self.command(envoy(), &[]);
        command.args(["--config-path", "envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
        [sidecar, Process::start("envoy", self.folder.path(), command)]
    }

    pub(crate) fn client(&self, credential: Option<&Credential>) -> Client {
        Client::new(self.at.webhook, &self.tls.roots, credential, Http::Two)
    }

    async fn answers(&self, variables: &[(&str, String)]) {
        let _running = self.start(variables).await;
        let client = self.client(Some(&self.tls.client));
        for webhook in &self.webhooks {
            let ask = |device| webhook.ask(device).path("/webhook/device-attest?mode=mobiledevice");
            let allowed =
                until("the webhook is answered", STARTUP, async || client.send(ask(KNOWN)).await.ok().filter(|reply| reply.status == 200));
            let allowed = allowed.await;
            assert!(allowed.allows(), "{allowed:?}");
            assert_eq!(allowed.data(), serde_json::json!({"Owner": "Ada"}));
            assert_eq!(client.send(ask("STRANGER01")).await.unwrap().verdict(), (200, "device_not_found".to_owned()));
        }
        self.client(None).send(self.webhooks[0].ask(KNOWN)).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_variables_of_step_posture_connector_are_enough() {
    let setup = Setup::new();
    setup.answers(&setup.variables()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_is_its_dotenv() {
    let setup = Setup::new();
    let lines: Vec<_> = setup.variables().iter().map(|(name, value)| format!("{name}={value}")).collect();
    std::fs::write(setup.folder.path().join(".env"), lines.join("\n")).unwrap();
    setup.answers(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_mtls_the_caller_is_anonymous_and_has_to_sign_all_the_same() {
    let setup = Setup::new();
    let mut variables = setup.variables();
    variables.retain(|(name, _)| !["ENABLE_MTLS", "TLS_CA_PATH"].contains(name));
    let _running = setup.start(&variables).await;
    let client = setup.client(None);
    let webhook = &setup.webhooks[0];
    let request = || async { client.send(webhook.ask(KNOWN)).await.ok().filter(|reply| reply.status == 200) };
    assert!(until("the webhook is answered", STARTUP, async || request().await).await.allows());
    let forged = webhook.ask(KNOWN).replace(posture::shape::SIGNATURE, &setup.webhooks[1].signature(b""));
    assert_eq!(client.send(forged).await.unwrap().verdict(), (401, "unauthorized".to_owned()));
}
