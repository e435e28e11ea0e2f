//! Stepward as an operator runs it: a folder with a configuration, `stepward serve`, and Envoy with what `stepward envoy-config` printed.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::client::{Client, Http, Outgoing, Reply};
use crate::metrics::{Metrics, get};
use crate::pki::{Authority, Credential, Leaf};
use crate::process::{Process, run};
use crate::step::StepCa;
use crate::tools::{envoy, filter, free_port, stepward};
use crate::wait::{STARTUP, until};
use crate::webhook::Registered;

/// The name in the certificate of [`Deployment::client`].
pub const CLIENT: &str = "caller.example.org";

/// What a list's identifiers are where its provider's settings do not say.
const SERIAL: &str = "serial";

/// A webhook of the configuration.
#[derive(Clone, Debug)]
pub struct Hook {
    /// As step-ca knows it.
    pub registered: Registered,
    lines: String,
}

impl Hook {
    /// An enriching webhook that asks `fleet` unless it has a policy, and that [`CLIENT`] and step-ca may call.
    pub fn new(registered: Registered) -> Self {
        Self { registered, lines: String::new() }
    }

    /// Adds a line of TOML, such as `kind = "authorizing"`.
    pub fn with(mut self, line: &str) -> Self {
        self.lines += &format!("{line}\n");
        self
    }

    fn sets(&self, key: &str) -> bool {
        self.lines.lines().any(|line| line.split('=').next().is_some_and(|name| name.trim() == key))
    }
}

/// What is to be deployed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `[[webhook]]`
    pub hooks: Vec<Hook>,
    /// Identifiers in the list `fleet`, with their data as JSON.
    pub devices: Vec<(String, serde_json::Value)>,
    /// What these are.
    pub identifier: &'static str,
    /// Threads of Envoy.
    pub workers: u32,
    /// The program that serves, and prints Envoy's configuration.
    pub stepward: PathBuf,
    /// The filter.
    pub wasm: PathBuf,
    /// `[log]` of the sidecar, and Envoy's for wasm.
    pub level: &'static str,
    /// More tables of TOML.
    pub more: String,
    /// More secrets: names of files in `secrets`, and what they hold.
    pub secrets: Vec<(&'static str, &'static str)>,
    /// Whether a sidecar is started; where not, the test plays its part.
    pub sidecar: bool,
    /// A line of Envoy's configuration that is left out.
    pub without: Option<String>,
}

impl Plan {
    /// One worker, and the device `C02XL0GYJGH5`.
    pub fn new(hooks: Vec<Hook>) -> Self {
        Self {
            hooks,
            devices: vec![known()],
            identifier: SERIAL,
            workers: 1,
            stepward: stepward(),
            wasm: filter(),
            level: "info",
            more: String::new(),
            secrets: Vec::new(),
            sidecar: true,
            without: None,
        }
    }
}

/// The device that every plan knows.
pub fn known() -> (String, serde_json::Value) {
    device("C02XL0GYJGH5")
}

/// A device with data.
pub fn device(identifier: &str) -> (String, serde_json::Value) {
    (identifier.to_owned(), serde_json::json!({"team": "Blue", "owner": "Ada"}))
}

/// The TLS material of the listener.
#[derive(Clone, Debug)]
pub struct Tls {
    /// What the listener shows.
    pub server: Credential,
    /// Whom it trusts.
    pub client_ca: String,
    /// What a client that trusts the listener must trust.
    pub roots: String,
    /// A client of the name [`CLIENT`].
    pub client: Credential,
}

impl Tls {
    /// Under an authority of the test.
    pub fn of(authority: &Authority) -> Self {
        Self {
            server: authority.issue(&Leaf::server()),
            client_ca: authority.pem().to_owned(),
            roots: authority.pem().to_owned(),
            client: authority.issue(&Leaf::client(CLIENT)),
        }
    }

    /// Under step-ca, which then can call the listener.
    pub fn of_step_ca(ca: &StepCa) -> Self {
        let bundle = ca.bundle();
        Self { server: ca.credential("localhost"), client_ca: bundle.clone(), roots: bundle, client: ca.credential(CLIENT) }
    }
}

/// Addresses that are known before anything is started, since step-ca wants the webhook's.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The listener.
    pub webhook: SocketAddr,
    /// Where events of device managements come in, where a provider takes them.
    pub public: SocketAddr,
    /// The sidecar's metrics and health.
    pub metrics: SocketAddr,
    /// Envoy's statistics and configuration.
    pub envoy: SocketAddr,
    /// The listener where nothing but Envoy's statistics can be read.
    pub stats: SocketAddr,
}

impl Default for Addresses {
    fn default() -> Self {
        let local = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self { webhook: local(), public: local(), metrics: local(), envoy: local(), stats: local() }
    }
}

/// Envoy and the sidecar, running.
#[derive(Debug)]
pub struct Deployment {
    /// `stepward serve`, where the plan has one.
    pub sidecar: Option<Process>,
    /// Envoy.
    pub envoy: Process,
    /// Where they listen.
    pub at: Addresses,
    /// The material that the listener started with.
    pub tls: Tls,
    folder: TempDir,
    plan: Plan,
}

impl Deployment {
    /// Starts with an authority of its own.
    pub async fn start(plan: Plan) -> Self {
        Self::start_at(plan, Addresses::default(), Tls::of(&Authority::new("Test Root"))).await
    }

    /// Starts at these addresses with this material, and waits until webhooks are answered.
    pub async fn start_at(plan: Plan, at: Addresses, tls: Tls) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["tls", "secrets", "run"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        write_tls(folder.path(), &tls.server, &tls.client_ca);
        write_devices(folder.path(), &plan.devices);
        for hook in &plan.hooks {
            replace(&folder.path().join("secrets").join(&hook.registered.id), &hook.registered.secret);
        }
        for (name, text) in &plan.secrets {
            replace(&folder.path().join("secrets").join(name), text);
        }
        fs::write(folder.path().join("stepward.toml"), toml(&plan, at)).unwrap();
        let mut sidecar = plan.sidecar.then(|| serve(folder.path(), &plan));
        if let Some(sidecar) = &mut sidecar {
            ready(at, sidecar).await;
        }
        let admin = at.envoy.to_string();
        let mut arguments = vec!["envoy-config", "--config", "stepward.toml", "--output", "envoy.yaml", "--admin", &admin];
        // Most tests are about what the filter makes of a certificate. Another release may know no such option.
        if plan.stepward == stepward() {
            arguments.push("--any-certificate");
        }
        run(Command::new(&plan.stepward).args(arguments).current_dir(folder.path()));
        if let Some(without) = &plan.without {
            let bootstrap = fs::read_to_string(folder.path().join("envoy.yaml")).unwrap();
            let lines: Vec<_> = bootstrap.lines().filter(|line| line.trim() != without).collect();
            assert_eq!(lines.len() + 1, bootstrap.lines().count(), "{without} stands once in the bootstrap");
            fs::write(folder.path().join("envoy.yaml"), lines.join("\n")).unwrap();
        }
        let envoy = start_envoy(folder.path(), &plan);
        let mut deployment = Self { sidecar, envoy, at, tls, folder, plan };
        if deployment.plan.without.is_none() {
            deployment.live().await;
            if deployment.sidecar.is_some() {
                deployment.answering().await;
            }
        }
        deployment
    }

    /// A client that the webhooks' callers name.
    pub fn client(&self, http: Http) -> Client {
        self.client_as(Some(&self.tls.client), http)
    }

    /// A client with another certificate, or none.
    pub fn client_as(&self, credential: Option<&Credential>, http: Http) -> Client {
        Client::new(self.at.webhook, &self.tls.roots, credential, http)
    }

    /// Sends a request to the listener that device managements reach, as somebody without a certificate.
    pub async fn push(&self, request: Outgoing) -> Reply {
        Client::new(self.at.public, &self.tls.roots, None, Http::One).send(request).await.unwrap()
    }

    /// A file in the folder of the configuration.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The plan anew, written as the configuration; the sidecar reads it by itself.
    pub fn configure(&self, plan: &Plan) {
        self.write("stepward.toml", &toml(plan, self.at));
    }

    /// The plan that it runs by.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What a command of a running service printed.
    ///
    /// # Panics
    /// Where it fails.
    pub fn ask(&self, arguments: &[&str]) -> String {
        run(self.stepward(arguments).args(["--config", "stepward.toml"]))
    }

    /// The command line, in that folder.
    pub fn stepward(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.plan.stepward);
        command.args(arguments).current_dir(self.folder.path());
        command
    }

    /// Replaces the list of devices, as an operator does: a new file put in the old one's place.
    pub fn write_devices(&self, devices: &[(String, serde_json::Value)]) {
        write_devices(self.folder.path(), devices);
    }

    /// Replaces the listener's TLS material.
    pub fn write_tls(&self, server: &Credential, client_ca: &str) {
        write_tls(self.folder.path(), server, client_ca);
    }

    /// Replaces a file of the configuration.
    pub fn write(&self, name: &str, text: &str) {
        replace(&self.path(name), text);
    }

    /// Starts a sidecar anew after it was ended.
    pub fn restart_sidecar(&mut self) {
        self.sidecar = Some(serve(self.folder.path(), &self.plan));
    }

    /// The sidecar.
    pub fn sidecar(&mut self) -> &mut Process {
        self.sidecar.as_mut().unwrap()
    }

    /// Ends Envoy and starts it again.
    pub async fn restart_envoy(&mut self) {
        self.envoy.kill();
        self.envoy = start_envoy(self.folder.path(), &self.plan);
        self.live().await;
    }

    /// Waits until Envoy listens.
    pub async fn live(&mut self) {
        let (at, envoy) = (self.at, &mut self.envoy);
        until("Envoy is live", STARTUP, async || {
            assert!(envoy.is_running(), "Envoy ended");
            get(at.envoy, "/ready").await.is_ok_and(|(status, _)| status == 200).then_some(())
        })
        .await;
    }

    /// Waits until the filter has keys: an unknown id is then refused for good (401), and not for the moment (503).
    pub async fn answering(&self) {
        let client = self.client(Http::One);
        let stranger = Registered::random("00000000-0000-4000-8000-000000000000");
        until("the filter has keys", STARTUP, async || {
            client.send(stranger.ask("NOBODY")).await.is_ok_and(|reply| reply.status == 401).then_some(())
        })
        .await;
    }

    /// The sidecar's metrics.
    pub async fn metrics(&self) -> Metrics {
        Metrics::read(self.at.metrics, "/metrics").await
    }

    /// Envoy's statistics.
    pub async fn envoy_stats(&self) -> Metrics {
        Metrics::read(self.at.envoy, "/stats").await
    }

    /// How often VMs were made anew after a trap, and how many are alive.
    pub async fn vms(&self) -> (f64, f64) {
        let stats = self.envoy_stats().await;
        assert!(stats.sum(&["wasm.", "active"]) > 0.0, "{}", stats.text());
        (stats.sum(&["wasm.", "created"]), stats.sum(&["wasm.", "active"]))
    }

    /// The socket that the filter calls.
    pub fn filter_socket(&self) -> PathBuf {
        self.path("run/filter.sock")
    }

    /// Waits until a device is known, or is not, to a webhook.
    pub async fn knows(&self, registered: &Registered, device: &str, known: bool) {
        let client = self.client(Http::One);
        until(&format!("{device} is known: {known}"), Duration::from_secs(10), async || {
            (client.send(registered.ask(device)).await.unwrap().allows() == known).then_some(())
        })
        .await;
    }
}

fn serve(folder: &Path, plan: &Plan) -> Process {
    let mut command = Command::new(&plan.stepward);
    command.args(["serve", "--config", "stepward.toml"]).current_dir(folder);
    Process::start("sidecar", folder, command)
}

async fn ready(at: Addresses, sidecar: &mut Process) {
    until("the sidecar is ready", STARTUP, async || {
        assert!(sidecar.is_running(), "the sidecar ended");
        get(at.metrics, "/readyz").await.is_ok_and(|(status, _)| status == 200).then_some(())
    })
    .await;
}

fn start_envoy(folder: &Path, plan: &Plan) -> Process {
    let mut command = Command::new(envoy());
    command.args(["--config-path", "envoy.yaml", "--concurrency", &plan.workers.to_string()]);
    command.args(["--disable-hot-restart", "--log-level", "warning"]).current_dir(folder);
    command.args(["--component-log-level", &format!("wasm:{}", plan.level)]);
    Process::start("envoy", folder, command)
}

fn toml(plan: &Plan, at: Addresses) -> String {
    let mut text = format!(
        r#"[listen]
sockets = "run"
admin = "{}"
[envoy]
webhook_address = "{}"
public_address = "{}"
certificate = "tls/server.crt"
private_key = "tls/server.key"
client_ca = "tls/ca.crt"
wasm = "{}"
{}[log]
level = "{}"
{}"#,
        at.metrics,
        at.webhook,
        at.public,
        plan.wasm.display(),
        // Another release may know no such key.
        if plan.stepward == stepward() { format!("stats_address = \"{}\"\n", at.stats) } else { String::new() },
        plan.level,
        plan.more,
    );
    for hook in &plan.hooks {
        let id = &hook.registered.id;
        text += &format!("[[webhook]]\nid = \"{id}\"\n{}", hook.lines);
        for (key, value) in [
            ("secrets", format!("[{{ file = \"secrets/{id}\" }}]")),
            ("callers", format!("[\"dns:{CLIENT}\", \"{}\"]", crate::step::CALLER)),
            ("providers", "[\"fleet\"]".to_owned()),
        ] {
            // A policy names its providers itself.
            if !(hook.sets(key) || key == "providers" && hook.sets("policy")) {
                text += &format!("{key} = {value}\n");
            }
        }
    }
    text += "[provider.fleet]\ntype = \"file\"\npath = \"devices.json\"\n";
    if plan.identifier != SERIAL {
        // A default is not written: `bench` runs releases that do not know the key.
        text += &format!("identifier = \"{}\"\n", plan.identifier);
    }
    text
}

fn write_devices(folder: &Path, devices: &[(String, serde_json::Value)]) {
    let devices: Vec<_> = devices.iter().map(|(identifier, data)| serde_json::json!({"identifier": identifier, "data": data})).collect();
    replace(&folder.join("devices.json"), &serde_json::json!({ "devices": devices }).to_string());
}

fn write_tls(folder: &Path, server: &Credential, client_ca: &str) {
    let folder = folder.join("tls");
    replace(&folder.join("server.crt"), &server.chain);
    replace(&folder.join("server.key"), &server.key);
    replace(&folder.join("ca.crt"), client_ca);
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    // Others must not read a secret, and the sidecar says so of one that they can.
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}
