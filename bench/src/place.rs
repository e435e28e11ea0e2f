//! The place of all measurements: one Envoy with one worker and a listener for each scenario, the sidecar, the server that
//! allows everything, and a Jamf Pro whose devices the sidecar has learnt.
//!
//! The listeners are copies of the one that `stepward envoy-config` prints. They differ in their port, in the filter before
//! the router, and in the answer of the router's route.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use e2e::client::{Client, Http};
use e2e::deployment::{CLIENT, Deployment, Hook, Plan};
use e2e::management::Management;
use e2e::process::Process;
use e2e::tools::free_port;
use e2e::wait::{STARTUP, until};
use e2e::webhook::Registered;
use tokio::net::UnixStream;

use crate::floor;
use crate::signer::{DEVICES, data, device};

/// All running processes.
#[derive(Debug)]
pub(crate) struct Place {
    /// The sidecar, and Envoy with all listeners.
    pub(crate) deployment: Deployment,
    /// The server that allows everything.
    pub(crate) server: Process,
    /// The webhook that is called.
    pub(crate) webhook: Registered,
    /// The device management, which counts its requests.
    pub(crate) management: Management,
    /// Memory of the sidecar before the first request, in bytes.
    pub(crate) idle_memory: u64,
    ports: Ports,
    floor: u16,
    /// Ports of the listeners with other filters.
    others: Vec<u16>,
}

/// Ports of the listeners besides Stepward's.
#[derive(Clone, Copy, Debug)]
struct Ports {
    direct: u16,
    buffered: u16,
    ext_authz: u16,
    asked_by_ext_authz: u16,
    guard_allowing: u16,
    guard: u16,
}

/// A listener of Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    /// Envoy's `direct_response`, without a filter.
    Direct,
    /// `direct_response` behind Envoy's filter `buffer`, which waits for the body as any verifier of a signature must.
    Buffered,
    /// Envoy's filter `ext_authz` with the body, asking the server that allows everything.
    ExtAuthz,
    /// Envoy's filter `ext_authz` with the body, asking the sidecar.
    ExtAuthzSidecar,
    /// Envoy's filter `ext_authz` without the body, as `envoy/guard.yaml` has it, asking the server that allows everything.
    GuardAllowing,
    /// Envoy's filter `ext_authz` without the body, asking the sidecar.
    Guard,
    /// A filter that waits for the body and answers, see [`crate::floor`].
    Floor,
    /// Stepward's filter.
    Stepward,
    /// Another build of Stepward's filter, by its number.
    Other(usize),
}

impl Listener {
    /// Returns whether the sidecar decides the listener's requests.
    pub(crate) const fn asks_the_sidecar(self) -> bool {
        matches!(self, Self::Stepward | Self::Other(_) | Self::ExtAuthzSidecar | Self::Guard)
    }

    /// Returns whether the server that allows everything decides the listener's requests.
    pub(crate) const fn asks_the_server(self) -> bool {
        matches!(self, Self::ExtAuthz | Self::GuardAllowing)
    }
}

impl Place {
    /// Starts all processes.
    pub(crate) async fn start(wasm: Option<&Path>, beside: &[PathBuf]) -> anyhow::Result<Self> {
        let webhook = webhook();
        let mut plan = listed(&webhook, KEYS);
        // `ext_authz` judges the client's own certificate.
        plan.devices.push((CLIENT.to_owned(), data(DEVICES)));
        let managed: Vec<_> = (0..DEVICES).map(|number| fakes::Device::computer(&device(number)).in_groups(GROUPS)).collect();
        let management = Management::of(&managed).await;
        management.join(&mut plan, MANAGED);
        if let Some(wasm) = wasm {
            plan.wasm = wasm.canonicalize()?;
        }
        let mut deployment = Deployment::start(plan).await;
        until("the sidecar has the management's list", STARTUP, async || {
            let known = deployment.metrics().await.sum(&["stepward_provider_entries", MANAGEMENT]);
            (known >= DEVICES as f64).then_some(())
        })
        .await;
        let idle_memory = deployment.sidecar().memory();

        let folder = deployment.path("");
        let socket = deployment.path("run/authz.sock");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg(&socket);
        let server = Process::start("server", &folder, command);
        until("the server that allows everything listens", STARTUP, async || UnixStream::connect(&socket).await.ok()).await;

        let ports = Ports {
            direct: free_port(),
            buffered: free_port(),
            ext_authz: free_port(),
            asked_by_ext_authz: free_port(),
            guard_allowing: free_port(),
            guard: free_port(),
        };
        let file = deployment.path("envoy.yaml");
        let bootstrap = std::fs::read_to_string(&file)?;
        let floor = deployment.path("floor.wasm");
        std::fs::write(&floor, floor::module()?)?;
        let filters = std::iter::once(&floor).chain(beside);
        let others: Vec<_> = filters.map(|wasm| Ok((free_port(), wasm.canonicalize()?))).collect::<anyhow::Result<_>>()?;
        std::fs::write(&file, side_by_side(&bootstrap, deployment.at.webhook.port(), ports, &others, &socket)?)?;
        deployment.restart_envoy().await;
        deployment.answering().await;
        let mut others = others.into_iter().map(|(port, _)| port);
        let floor = others.next().unwrap_or_default();
        Ok(Self { deployment, server, webhook, management, idle_memory, ports, floor, others: others.collect() })
    }

    /// A client of a listener.
    pub(crate) fn client(&self, listener: Listener) -> Client {
        let port = match listener {
            Listener::Direct => self.ports.direct,
            Listener::Buffered => self.ports.buffered,
            Listener::ExtAuthz => self.ports.ext_authz,
            Listener::ExtAuthzSidecar => self.ports.asked_by_ext_authz,
            Listener::GuardAllowing => self.ports.guard_allowing,
            Listener::Guard => self.ports.guard,
            Listener::Floor => self.floor,
            Listener::Stepward => self.deployment.at.webhook.port(),
            Listener::Other(number) => self.others.get(number).copied().unwrap_or_default(),
        };
        let tls = &self.deployment.tls;
        Client::new(([127, 0, 0, 1], port).into(), &tls.roots, Some(&tls.client), Http::Two)
    }

    /// Process ids of Envoy, the sidecar, and the server that allows everything.
    pub(crate) fn processes(&mut self) -> [u32; 3] {
        [self.deployment.envoy.id(), self.deployment.sidecar().id(), self.server.id()]
    }

    /// The number of questions that the sidecar has decided.
    pub(crate) async fn decided(&self) -> f64 {
        decided(&self.deployment).await
    }
}

/// The webhook that is called.
pub(crate) fn webhook() -> Registered {
    Registered::random("11111111-2222-4333-8444-555555555555")
}

/// A plan of the webhook with a policy of ten checks over the list of devices, and nothing else; `store` is `[store]`.
pub(crate) fn listed(webhook: &Registered, store: &str) -> Plan {
    let mut plan = Plan::new(vec![Hook::new(webhook.clone()).with("policy = \"list\"")]);
    plan.devices = (0..DEVICES).map(|number| (device(number), data(number))).collect();
    plan.more = format!("{store}{LISTED}");
    plan
}

/// The number of questions that a sidecar has decided.
pub(crate) async fn decided(deployment: &Deployment) -> f64 {
    let metrics = deployment.metrics().await;
    metrics.sum(&["stepward_decisions_total"]) + metrics.sum(&["stepward_authorizations_total"])
}

/// Answer of the routes of other listeners: as long as Stepward's answer.
const ALLOW: &str = r#"{\"allow\":true,\"data\":{\"department\":\"Engineering\",\"email_address\":\"user42@example.org\",\"floor\":\"3\",\"name\":\"mac-42\",\"realname\":\"Vera Nachname\",\"udid\":\"00008103-000000000000002A\",\"username\":\"user42\"}}"#;

const BUFFER: &str = r#"          - name: envoy.filters.http.buffer
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer
              max_request_bytes: 65536
"#;

/// Envoy's filter `ext_authz`, asking a cluster, with or without the body.
fn ext_authz(cluster: &str, body: bool) -> String {
    let body = if body { BODY } else { "" };
    format!(
        r#"          - name: envoy.filters.http.ext_authz
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
              transport_api_version: V3
              failure_mode_allow: false
              include_peer_certificate: true
{body}              grpc_service: {{ envoy_grpc: {{ cluster_name: {cluster} }}, timeout: 3.5s }}
"#
    )
}

const BODY: &str = "              with_request_body: { max_request_bytes: 65536, allow_partial_message: false, pack_as_bytes: true }\n";

/// What the route tells the sidecar, and likewise the server that allows everything.
const CONTEXT: &str = r#"                typed_per_filter_config:
                  envoy.filters.http.ext_authz:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                    check_settings: { context_extensions: { policy: list, identity: subject.cn, identifier: serial } }
"#;

/// Setting by which the store has a row for each public key.
pub(crate) const KEYS: &str = "[store]\nbind_keys = true\n";

/// Configuration of the policy of [`listed`].
const LISTED: &str = r#"[policy.list]
providers = ["fleet"]
require = [
  { expr = "trust >= 'certificate'", code = "one", message = "no" },
  { expr = "device.data.department == 'Engineering'", code = "two", message = "no" },
  { expr = "device.data.realname.startsWith('Vera')", code = "three", message = "no" },
  { expr = "device.data.username.contains('user')", code = "four", message = "no" },
  { expr = "device.data.name.startsWith('mac-')", code = "five", message = "no" },
  { expr = "size(device.data.udid) == 25", code = "six", message = "no" },
  { expr = "int(device.data.floor) < 10", code = "seven", message = "no" },
  { expr = "device.data.floor in ['1', '2', '3']", code = "eight", message = "no" },
  { expr = "device.data.email_address.lowerAscii().endsWith('@example.org')", code = "nine", message = "no" },
]
deny_if = [{ expr = "has(device.data.banned)", code = "ten", message = "no" }]
"#;

/// Configuration of the provider [`MANAGEMENT`], warm from its list, and of [`POLICY`], also of ten checks.
const MANAGED: &str = r#"
[provider.jamf.cache]
positive = "1d"
[provider.jamf.sync]
[policy.managed]
providers = ["jamf"]
managed = true
max_silence = "3650d"
min_os = "15.4"
groups_none = ["Banned"]
groups_all = ["Staff", "Macs"]
groups_any = ["Berlin", "Hamburg"]
require = [
  { expr = "device.platform == 'Mac'", code = "seven", message = "no" },
  { expr = "device.user.email.endsWith('@example.org')", code = "eight", message = "no" },
  { expr = "device.name.startsWith('Computer ')", code = "nine", message = "no" },
  { expr = "!device.groups.exists(group, group.startsWith('Quarantine'))", code = "ten", message = "no" },
]
"#;

/// Name of the management's provider.
pub(crate) const MANAGEMENT: &str = "jamf";

/// Name of the policy over the management.
pub(crate) const POLICY: &str = "managed";

/// Groups of every device in the management.
const GROUPS: &[&str] = &["All Managed", "Staff", "Macs", "Berlin", "Printer 3"];

/// Makes a listener for each scenario and each other filter out of the one that there is, and three clusters.
fn side_by_side(bootstrap: &str, port: u16, ports: Ports, filters: &[(u16, PathBuf)], socket: &Path) -> anyhow::Result<String> {
    let (head, listener, rest) = between(bootstrap, "  - name: webhook\n", "  clusters:\n").context("the listener")?;
    let (before, wasm, after) =
        between(listener, "          - name: envoy.filters.http.wasm\n", "          - name: envoy.filters.http.router\n")
            .context("the filter")?;
    let (clusters, cluster, end) = between(rest, "  - name: stepward\n", "overload_manager:\n").context("the cluster")?;
    ensure!(wasm.contains("stepward"), "the filter is Stepward's");
    let (route, _) = after.split_once("                  status: 403\n").context("the route")?;
    let answer = format!("{route}                  status: 200\n                  body: {{ inline_string: \"{ALLOW}\" }}\n");
    let told = format!("{answer}{CONTEXT}");
    let copy = |name: &str, to: u16, filter: &str, end: &str| {
        format!("{before}{filter}{end}")
            .replace("  - name: webhook\n", &format!("  - name: {name}\n"))
            .replace("stat_prefix: webhook", &format!("stat_prefix: {name}"))
            .replace(&format!("port_value: {port} "), &format!("port_value: {to} "))
    };
    let mut others = [
        copy("direct", ports.direct, "", &answer),
        copy("buffered", ports.buffered, BUFFER, &answer),
        copy("ext_authz", ports.ext_authz, &ext_authz("authz", true), &told),
        copy("ext_authz_sidecar", ports.asked_by_ext_authz, &ext_authz("query", true), &told),
        copy("guard_allowing", ports.guard_allowing, &ext_authz("authz", false), &told),
        copy("guard", ports.guard, &ext_authz("query", false), &told),
    ]
    .concat();
    let (_, module) = wasm.split_once("filename: \"").context("the module")?;
    let (module, _) = module.split_once('"').context("the module")?;
    for (number, (port, file)) in filters.iter().enumerate() {
        let filter = wasm.replace(module, &file.display().to_string()).replace("vm_id: stepward", &format!("vm_id: other{number}"));
        others += &copy(&format!("other{number}"), *port, &filter, after);
    }
    let (_, path) = cluster.split_once("pipe: { path: ").context("the socket")?;
    let (path, _) = path.split_once(" }").context("the socket")?;
    let beside = |name: &str, socket: &Path| {
        cluster.replace("name: stepward\n", &format!("name: {name}\n")).replace(path, &format!("\"{}\"", socket.display()))
    };
    let (authz, query) = (beside("authz", socket), beside("query", &socket.with_file_name("query.sock")));
    Ok(format!("{head}{listener}{others}{clusters}{cluster}{authz}{query}{end}"))
}

/// The parts of a text before `from`, from there up to `to`, and from `to` on.
fn between<'t>(text: &'t str, from: &str, to: &str) -> Option<(&'t str, &'t str, &'t str)> {
    let start = text.find(from)?;
    let (head, rest) = text.split_at_checked(start)?;
    let (middle, tail) = rest.split_at_checked(rest.find(to)?)?;
    Some((head, middle, tail))
}
