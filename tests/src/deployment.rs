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

/// Name in the certificate of [`Deployment::client`].
pub const CLIENT: &str = "caller.example.org";

/// Kind of a list's identifiers if its provider's settings do not name one.
const SERIAL: &str = "serial";

/// A webhook of the configuration.
#[derive(Clone, Debug)]
pub struct Hook {
    /// Id and secret of the webhook, as step-ca has them.
    pub registered: Registered,
    lines: String,
}

impl Hook {
    /// Makes an enriching webhook that asks `fleet` unless it has a policy, and that [`CLIENT`] and step-ca may call.
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

/// A plan of what is to be deployed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Webhooks, `[[webhook]]` in the configuration.
    pub hooks: Vec<Hook>,
    /// Identifiers in the list `fleet`, with their data as JSON.
    pub devices: Vec<(String, serde_json::Value)>,
    /// Kind of these identifiers.
    pub identifier: &'static str,
    /// Number of Envoy's worker threads.
    pub workers: u32,
    /// Path of the program that serves, and prints Envoy's configuration.
    pub stepward: PathBuf,
    /// Path of the filter.
    pub wasm: PathBuf,
    /// Level of the sidecar's `[log]`, and of Envoy's log for wasm.
    pub level: &'static str,
    /// More tables of TOML for the configuration.
    pub more: String,
    /// More lines of TOML for `[envoy]`.
    pub envoy: String,
    /// More secrets: names of files in `secrets`, and their contents.
    pub secrets: Vec<(&'static str, &'static str)>,
    /// Whether a sidecar is started; if not, the test plays its part.
    pub sidecar: bool,
    /// Line of Envoy's configuration to leave out.
    pub without: Option<String>,
}

impl Plan {
    /// Makes a plan with one worker, and the device `C02XL0GYJGH5`.
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
            envoy: String::new(),
            secrets: Vec::new(),
            sidecar: true,
            without: None,
        }
    }
}

/// The device that every plan has.
pub fn known() -> (String, serde_json::Value) {
    device("C02XL0GYJGH5")
}

/// A device with its data.
pub fn device(identifier: &str) -> (String, serde_json::Value) {
    (identifier.to_owned(), serde_json::json!({"team": "Blue", "owner": "Ada"}))
}

/// The TLS material of the listener.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificate and key of the listener.
    pub server: Credential,
    /// Roots that the listener trusts for clients.
    pub client_ca: String,
    /// Roots that a client must trust to reach the listener.
    pub roots: String,
    /// Credential of a client with the name [`CLIENT`].
    pub client: Credential,
}

impl Tls {
    /// Makes the material under an authority of the test.
    pub fn of(authority: &Authority) -> Self {
        Self {
            server: authority.issue(&Leaf::server()),
            client_ca: authority.pem().to_owned(),
            roots: authority.pem().to_owned(),
            client: authority.issue(&Leaf::client(CLIENT)),
        }
    }

    /// Makes the material under step-ca, which can then call the listener.
    pub fn of_step_ca(ca: &StepCa) -> Self {
        let bundle = ca.bundle();
        Self { server: ca.credential("localhost"), client_ca: bundle.clone(), roots: bundle, client: ca.credential(CLIENT) }
    }
}

/// Addresses that are chosen before anything is started, since step-ca needs the webhook's.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Address of the webhooks' listener.
    pub webhook: SocketAddr,
    /// Address for events of device managements, if a provider takes them.
    pub public: SocketAddr,
    /// Address of the sidecar's metrics and health.
    pub metrics: SocketAddr,
    /// Address of Envoy's statistics and configuration.
    pub envoy: SocketAddr,
    /// Address of the listener that serves only Envoy's statistics.
    pub stats: SocketAddr,
}

impl Default for Addresses {
    fn default() -> Self {
        let local = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self { webhook: local(), public: local(), metrics: local(), envoy: local(), stats: local() }
    }
}

/// A running deployment of Envoy and the sidecar.
#[derive(Debug)]
pub struct Deployment {
    /// Process of `stepward serve`, if the plan has one.
    pub sidecar: Option<Process>,
    /// Process of Envoy.
    pub envoy: Process,
    /// Addresses on which both listen.
    pub at: Addresses,
    /// TLS material with which the listener started.
    pub tls: Tls,
    folder: TempDir,
    plan: Plan,
}

impl Deployment {
    /// Starts a deployment with an authority of its own.
    pub async fn start(plan: Plan) -> Self {
        Self::start_at(plan, Addresses::default(), Tls::of(&Authority::new("Test Root"))).await
    }

    /// Starts a deployment at these addresses with this material, and waits until webhooks are answered.
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
        // Most tests are about what the filter makes of a certificate. Another release may not know the option.
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

    /// A client that every webhook allows.
    pub fn client(&self, http: Http) -> Client {
        self.client_as(Some(&self.tls.client), http)
    }

    /// A client with another certificate, or none.
    pub fn client_as(&self, credential: Option<&Credential>, http: Http) -> Client {
        Client::new(self.at.webhook, &self.tls.roots, credential, http)
    }

    /// Sends a request without a certificate to the listener for device managements.
    pub async fn push(&self, request: Outgoing) -> Reply {
        Client::new(self.at.public, &self.tls.roots, None, Http::One).send(request).await.unwrap()
    }

    /// A file in the folder of the configuration.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes another plan as the configuration, which the sidecar reads by itself.
    pub fn configure(&self, plan: &Plan) {
        self.write("stepward.toml", &toml(plan, self.at));
    }

    /// The plan of the deployment.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs a command against the running service, and returns its output.
    ///
    /// # Panics
    /// Panics if the command fails.
    pub fn ask(&self, arguments: &[&str]) -> String {
        run(self.stepward(arguments).args(["--config", "stepward.toml"]))
    }

    /// A command line of `stepward` in the folder of the configuration.
    pub fn stepward(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.plan.stepward);
        command.args(arguments).current_dir(self.folder.path());
        command
    }

    /// Replaces the list of devices, as an operator does: a new file is renamed over the old one.
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

    /// Starts a sidecar after the old one was ended.
    pub fn restart_sidecar(&mut self) {
        self.sidecar = Some(serve(self.folder.path(), &self.plan));
    }

    /// The process of the sidecar.
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

    /// Waits until the filter has keys: an unknown id is then refused with 401, not with 503.
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

    /// Number of VMs that Envoy has created, also after traps, and number of VMs that are alive.
    pub async fn vms(&self) -> (f64, f64) {
        let stats = self.envoy_stats().await;
        assert!(stats.sum(&["wasm.", "active"]) > 0.0, "{}", stats.text());
        (stats.sum(&["wasm.", "created"]), stats.sum(&["wasm.", "active"]))
    }

    /// Path of the socket that the filter calls.
    pub fn filter_socket(&self) -> PathBuf {
        self.path("run/filter.sock")
    }

    /// Waits until a webhook knows a device, or does not.
    pub async fn knows(&self, registered: &Registered, device: &str, known: bool) {
        let client = self.client(Http::One);
        until(&format!("{device} is known: {known}"), Duration::from_secs(10), async || {
            (client.send(registered.ask(device)).await.unwrap().allows() == known).then_some(())
        })
        .await;
    }
}

/// Starts `stepward serve` in the folder of a configuration.
pub fn serve(folder: &Path, plan: &Plan) -> Process {
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

/// The configuration of a plan, as TOML.
pub fn toml(plan: &Plan, at: Addresses) -> String {
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
{}{}[log]
level = "{}"
{}"#,
        at.metrics,
        at.webhook,
        at.public,
        plan.wasm.display(),
        // Another release may not know the key.
        if plan.stepward == stepward() { format!("stats_address = \"{}\"\n", at.stats) } else { String::new() },
        plan.envoy,
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
        // The default is not written: `bench` runs releases that do not know the key.
        text += &format!("identifier = \"{}\"\n", plan.identifier);
    }
    text
}

/// Writes the list of devices into the folder of a configuration.
pub fn write_devices(folder: &Path, devices: &[(String, serde_json::Value)]) {
    let devices: Vec<_> = devices.iter().map(|(identifier, data)| serde_json::json!({"identifier": identifier, "data": data})).collect();
    replace(&folder.join("devices.json"), &serde_json::json!({ "devices": devices }).to_string());
}

/// Writes the listener's TLS material into the folder of a configuration.
pub fn write_tls(folder: &Path, server: &Credential, client_ca: &str) {
    let folder = folder.join("tls");
    replace(&folder.join("server.crt"), &server.chain);
    replace(&folder.join("server.key"), &server.key);
    replace(&folder.join("ca.crt"), client_ca);
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    // The sidecar warns of a secret that other users can read.
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}
