//! Where everything is measured: one Envoy with one worker and a listener for each scenario, the sidecar, and the server
//! that allows everything.
//!
//! The listeners are copies of the one that `stepward envoy-config` prints. They differ in their port, in the filter
//! before the router, and in what the router's route says.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use e2e::client::{Client, Http};
use e2e::deployment::{Deployment, Hook, Plan};
use e2e::process::Process;
use e2e::tools::free_port;
use e2e::wait::{STARTUP, until};
use e2e::webhook::Registered;
use tokio::net::UnixStream;

use crate::signer::{DEVICES, data, device};

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct Place {
    /// The sidecar, and Envoy with all listeners.
    pub(crate) deployment: Deployment,
    /// The server that allows everything.
    pub(crate) server: Process,
    /// The webhook.
    pub(crate) webhook: Registered,
    /// The sidecar's memory before the first request, in bytes.
    pub(crate) idle_memory: u64,
    ports: Ports,
    /// Ports of the listeners with other filters.
    others: Vec<u16>,
}

/// Ports of the listeners beside Stepward's.
#[derive(Clone, Copy, Debug)]
struct Ports {
    direct: u16,
    buffered: u16,
    ext_authz: u16,
}

/// A listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    /// Envoy's `direct_response` and no filter.
    Direct,
    /// The same behind Envoy's filter `buffer`, which waits for the body as any judge of a signature must.
    Buffered,
    /// Envoy's filter `ext_authz`.
    ExtAuthz,
    /// Stepward.
    Stepward,
    /// Stepward with another filter.
    Other(usize),
}

impl Listener {
    /// Whether its requests are decided by the sidecar.
    pub(crate) const fn asks_the_sidecar(self) -> bool {
        matches!(self, Self::Stepward | Self::Other(_))
    }
}

impl Place {
    /// Starts all of it.
    pub(crate) async fn start(wasm: Option<&Path>, beside: &[PathBuf]) -> anyhow::Result<Self> {
        let webhook = Registered::random("11111111-2222-4333-8444-555555555555");
        let mut plan = Plan::new(vec![Hook::new(webhook.clone())]);
        plan.devices = (0..DEVICES).map(|number| (device(number), data(number))).collect();
        if let Some(wasm) = wasm {
            plan.wasm = wasm.canonicalize()?;
        }
        let mut deployment = Deployment::start(plan).await;
        let idle_memory = deployment.sidecar().memory();

        let folder = deployment.path("");
        let socket = deployment.path("run/authz.sock");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg(&socket);
        let server = Process::start("server", &folder, command);
        until("the server that allows everything listens", STARTUP, async || UnixStream::connect(&socket).await.ok()).await;

        let ports = Ports { direct: free_port(), buffered: free_port(), ext_authz: free_port() };
        let file = deployment.path("envoy.yaml");
        let bootstrap = std::fs::read_to_string(&file)?;
        let others: Vec<_> = beside.iter().map(|wasm| Ok((free_port(), wasm.canonicalize()?))).collect::<anyhow::Result<_>>()?;
        std::fs::write(&file, side_by_side(&bootstrap, deployment.at.webhook.port(), ports, &others, &socket)?)?;
        deployment.restart_envoy().await;
        deployment.answering().await;
        Ok(Self { deployment, server, webhook, idle_memory, ports, others: others.into_iter().map(|(port, _)| port).collect() })
    }

    /// A client of a listener.
    pub(crate) fn client(&self, listener: Listener) -> Client {
        let port = match listener {
            Listener::Direct => self.ports.direct,
            Listener::Buffered => self.ports.buffered,
            Listener::ExtAuthz => self.ports.ext_authz,
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

    /// Questions that the sidecar has decided.
    pub(crate) async fn decided(&self) -> f64 {
        self.deployment.metrics().await.sum(&["stepward_decisions_total"])
    }
}

/// What the route of the other two listeners answers: as long as Stepward's answer.
const ALLOW: &str = r#"{\"allow\":true,\"data\":{\"device\":{\"name\":\"mac-42\",\"udid\":\"00008103-000000000000002A\"},\"user\":{\"department\":\"Engineering\",\"realname\":\"Vera Nachname\",\"username\":\"user42\"}}}"#;

const BUFFER: &str = r#"          - name: envoy.filters.http.buffer
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer
              max_request_bytes: 65536
"#;

const EXT_AUTHZ: &str = r#"          - name: envoy.filters.http.ext_authz
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
              transport_api_version: V3
              failure_mode_allow: false
              include_peer_certificate: true
              with_request_body: { max_request_bytes: 65536, allow_partial_message: false, pack_as_bytes: true }
              grpc_service: { envoy_grpc: { cluster_name: authz }, timeout: 3.5s }
"#;

/// Makes four listeners out of one and another one for every other filter, and two clusters.
fn side_by_side(bootstrap: &str, port: u16, ports: Ports, filters: &[(u16, PathBuf)], socket: &Path) -> anyhow::Result<String> {
    let (head, listener, rest) = between(bootstrap, "  - name: webhook\n", "  clusters:\n").context("the listener")?;
    let (before, wasm, after) =
        between(listener, "          - name: envoy.filters.http.wasm\n", "          - name: envoy.filters.http.router\n")
            .context("the filter")?;
    let (clusters, cluster, end) = between(rest, "  - name: stepward\n", "overload_manager:\n").context("the cluster")?;
    ensure!(wasm.contains("stepward"), "the filter is Stepward's");
    let (route, _) = after.split_once("                  status: 403\n").context("the route")?;
    let answer = format!("{route}                  status: 200\n                  body: {{ inline_string: \"{ALLOW}\" }}\n");
    let copy = |name: &str, to: u16, filter: &str, end: &str| {
        format!("{before}{filter}{end}")
            .replace("  - name: webhook\n", &format!("  - name: {name}\n"))
            .replace("stat_prefix: webhook", &format!("stat_prefix: {name}"))
            .replace(&format!("port_value: {port} "), &format!("port_value: {to} "))
    };
    let mut others = [
        copy("direct", ports.direct, "", &answer),
        copy("buffered", ports.buffered, BUFFER, &answer),
        copy("ext_authz", ports.ext_authz, EXT_AUTHZ, &answer),
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
    let authz = cluster.replace("name: stepward\n", "name: authz\n").replace(path, &format!("\"{}\"", socket.display()));
    Ok(format!("{head}{listener}{others}{clusters}{cluster}{authz}{end}"))
}

/// What stands before the first text, from it up to the second, and from that on.
fn between<'t>(text: &'t str, from: &str, to: &str) -> Option<(&'t str, &'t str, &'t str)> {
    let start = text.find(from)?;
    let (head, rest) = text.split_at_checked(start)?;
    let (middle, tail) = rest.split_at_checked(rest.find(to)?)?;
    Some((head, middle, tail))
}
