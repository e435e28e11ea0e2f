//! Several sidecars before one Envoy, over TCP with certificates on both sides: no webhook is lost while one of them drains,
//! dies or hangs, and nobody is told a key or believed without the right name.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use e2e::client::{Client, Http};
use e2e::deployment::{Addresses, Deployment, Hook, Plan, Tls, serve, toml, write_devices, write_tls};
use e2e::load::Load;
use e2e::metrics::{Metrics, get};
use e2e::pki::{Authority, Credential, Leaf};
use e2e::process::Process;
use e2e::tools::free_port;
use e2e::wait::{STARTUP, until};
use e2e::webhook::Registered;
use nix::sys::signal::Signal;
use rcgen::ExtendedKeyUsagePurpose;
use tempfile::TempDir;
use tokio::task::JoinSet;

const KNOWN: &str = "C02XL0GYJGH5";
const ID: &str = "11111111-2222-4333-8444-555555555555";
pub(crate) const ENVOY: &str = "envoy.example.org";

/// A sidecar with a folder of its own, which takes filters over TCP.
pub(crate) struct Sidecar {
    plan: Plan,
    folder: TempDir,
    at: Addresses,
    port: u16,
    pub(crate) process: Process,
}

impl Sidecar {
    pub(crate) async fn start(plan: &Plan, tls: &Tls, authority: &Authority, own: &Credential) -> Self {
        let (folder, at, port) = (tempfile::tempdir().unwrap(), Addresses::default(), free_port());
        for name in ["tls", "secrets", "run"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        write_tls(folder.path(), &tls.server, &tls.client_ca);
        write_devices(folder.path(), &plan.devices);
        for hook in &plan.hooks {
            fs::write(folder.path().join("secrets").join(&hook.registered.id), &hook.registered.secret).unwrap();
        }
        for (name, text) in [("own.crt", &own.chain), ("own.key", &own.key), ("envoys.crt", &authority.pem().to_owned())] {
            fs::write(folder.path().join("tls").join(name), text).unwrap();
        }
        let mut plan = plan.clone();
        plan.more += &format!(
            "[filter]\naddress = \"127.0.0.1:{port}\"\ncertificate = \"tls/own.crt\"\nprivate_key = \"tls/own.key\"\nclient_ca = \"tls/envoys.crt\"\nnames = [\"dns:{ENVOY}\"]\n"
        );
        fs::write(folder.path().join("stepward.toml"), toml(&plan, at)).unwrap();
        let process = serve(folder.path(), &plan);
        let mut sidecar = Self { plan, folder, at, port, process };
        sidecar.ready().await;
        sidecar
    }

    async fn ready(&mut self) {
        let (at, process) = (self.at.metrics, &mut self.process);
        until("the sidecar is ready", STARTUP, async || {
            assert!(process.is_running(), "the sidecar ended:\n{}", process.log());
            get(at, "/readyz").await.is_ok_and(|(status, _)| status == 200).then_some(())
        })
        .await;
    }

    pub(crate) async fn restart(&mut self) {
        self.process = serve(self.folder.path(), &self.plan);
        self.ready().await;
    }

    /// Runs a command with this sidecar's configuration.
    pub(crate) fn stepward(&self, arguments: &[&str]) -> std::process::Output {
        let config = self.folder.path().join("stepward.toml");
        Command::new(&self.plan.stepward).args(arguments).arg("--config").arg(config).output().unwrap()
    }

    pub(crate) async fn count(&self, series: &str) -> f64 {
        Metrics::read(self.at.metrics, "/metrics").await.sum(&[series])
    }
}

/// The lines for an Envoy before these sidecars, whose certificate of this name is written into a folder.
pub(crate) fn before(sidecars: &[Sidecar], authority: &Authority, envoy: &str, folder: &Path) -> String {
    let client = authority.issue(&Leaf::client(envoy));
    for (name, text) in [("ca.crt", authority.pem()), ("envoy.crt", &client.chain), ("envoy.key", &client.key)] {
        fs::write(folder.join(name), text).unwrap();
    }
    let names: Vec<_> = sidecars.iter().map(|sidecar| format!("\"localhost:{}\"", sidecar.port)).collect();
    let (names, at) = (names.join(", "), folder.display());
    format!(
        "sidecars = [{names}]\nsidecar_ca = \"{at}/ca.crt\"\nclient_certificate = \"{at}/envoy.crt\"\nclient_private_key = \"{at}/envoy.key\"\n"
    )
}

/// Two sidecars and an Envoy that knows both, with two workers.
struct World {
    registered: Registered,
    authority: Authority,
    sidecars: [Sidecar; 2],
    stepward: Deployment,
    _files: TempDir,
}

impl World {
    async fn start() -> Self {
        Self::with(ENVOY, |authority| [authority.issue(&Leaf::server()), authority.issue(&Leaf::server())]).await
    }

    /// Starts a world whose Envoy has a certificate with this name, and whose sidecars have these certificates.
    async fn with(envoy: &str, own: impl FnOnce(&Authority) -> [Credential; 2]) -> Self {
        let (registered, authority) = (Registered::random(ID), Authority::new("Test Root"));
        let mut plan = Plan::new(vec![Hook::new(registered.clone())]);
        plan.sidecar = false;
        plan.workers = 2;
        let tls = Tls::of(&authority);
        let [first, second] = own(&authority);
        let sidecars = [Sidecar::start(&plan, &tls, &authority, &first).await, Sidecar::start(&plan, &tls, &authority, &second).await];
        let files = tempfile::tempdir().unwrap();
        plan.envoy = before(&sidecars, &authority, envoy, files.path());
        let stepward = Deployment::start_at(plan, Addresses::default(), tls).await;
        Self { registered, authority, sidecars, stepward, _files: files }
    }

    async fn answering(&self) {
        self.stepward.answering().await;
    }

    /// Waits until no stream is at a sidecar but those of Envoy that are at the other.
    async fn attached(&self) {
        until("both workers are attached, each to one sidecar", Duration::from_secs(20), async || {
            let [first, second] = &self.sidecars;
            (first.count("stepward_filter_workers ").await + second.count("stepward_filter_workers ").await == 2.0).then_some(())
        })
        .await;
    }
}

/// Callers that ask without end, and once more where they were not allowed, as step-ca does.
struct Flow {
    stop: Arc<AtomicBool>,
    first: Arc<AtomicU64>,
    second: Arc<AtomicU64>,
    callers: JoinSet<Vec<String>>,
}

impl Flow {
    fn start(client: &Client, callers: usize, registered: &Registered) -> Self {
        let (stop, first, second) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut set = JoinSet::new();
        for caller in 0..callers {
            let client = client.speaking(if caller % 2 == 0 { Http::One } else { Http::Two });
            let (stop, registered) = (Arc::clone(&stop), registered.clone());
            let (first, second) = (Arc::clone(&first), Arc::clone(&second));
            set.spawn(async move {
                let mut lost = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let mut causes = Vec::new();
                    for count in [&first, &second] {
                        match client.send(registered.ask(KNOWN)).await {
                            Ok(reply) if reply.allows() => {
                                count.fetch_add(1, Ordering::SeqCst);
                                causes.clear();
                                break;
                            }
                            Ok(reply) => causes.push(format!("{:?}", reply.verdict())),
                            Err(error) => causes.push(format!("{error:#}")),
                        }
                    }
                    if !causes.is_empty() {
                        lost.push(causes.join(", then "));
                    }
                }
                lost
            });
        }
        Self { stop, first, second, callers: set }
    }

    async fn goes_on(&self, webhooks: u64) {
        let all = || self.first.load(Ordering::SeqCst) + self.second.load(Ordering::SeqCst);
        let target = all() + webhooks;
        until("webhooks are allowed", Duration::from_secs(60), async || (all() >= target).then_some(())).await;
    }

    /// Returns how many webhooks were allowed at the first try, how many at the second, and what became of the others.
    async fn stop(self) -> (u64, u64, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let lost = self.callers.join_all().await.concat();
        (self.first.load(Ordering::SeqCst), self.second.load(Ordering::SeqCst), lost)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_killed_loses_no_webhook_and_takes_its_share_again() {
    let mut world = World::start().await;
    world.answering().await;
    let flow = Flow::start(&world.stepward.client(Http::One), 8, &world.registered);
    flow.goes_on(100).await;
    for round in 0..3 {
        for number in [0, 1] {
            world.sidecars[number].process.kill();
            // Everything is at the other one now, which was started again in the round before.
            let before = world.sidecars[1 - number].count("stepward_decisions_total").await;
            flow.goes_on(100).await;
            let after = world.sidecars[1 - number].count("stepward_decisions_total").await;
            assert!(after - before >= 90.0, "round {round}: {before} {after}");
            world.sidecars[number].restart().await;
            flow.goes_on(20).await;
        }
    }
    let (first, second, lost) = flow.stop().await;
    eprintln!("killed six times: {first} allowed at the first try, {second} at the second, {} lost", lost.len());
    assert_eq!(lost, [""; 0]);
    world.attached().await;
    assert!(world.stepward.envoy.log().contains("attached to the sidecar "), "{}", world.stepward.envoy.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_drains_loses_nothing_at_all() {
    let mut world = World::start().await;
    world.answering().await;
    let asking = world.registered.clone();
    let load = Load::start(&world.stepward.client(Http::Two), 8, move || asking.ask(KNOWN));
    load.goes_on(100).await;
    for _ in 0..3 {
        for number in [0, 1] {
            let status = world.sidecars[number].process.terminate(Duration::from_secs(10));
            assert!(status.success(), "{status}");
            load.goes_on(100).await;
            world.sidecars[number].restart().await;
            load.goes_on(20).await;
        }
    }
    let (allowed, failures) = load.stop().await;
    eprintln!("drained six times: {allowed} allowed at the first try, {} not", failures.len());
    assert_eq!(failures, [""; 0]);
    assert!(world.stepward.envoy.log().contains(" drains; asking the rest on the next stream"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_hangs_loses_no_webhook() {
    let mut world = World::start().await;
    world.answering().await;
    let flow = Flow::start(&world.stepward.client(Http::One), 8, &world.registered);
    flow.goes_on(100).await;
    for number in [0, 1] {
        world.sidecars[number].process.signal(Signal::SIGSTOP);
        flow.goes_on(200).await;
        world.sidecars[number].process.signal(Signal::SIGCONT);
        world.sidecars[number].ready().await;
        world.attached().await;
    }
    let (first, second, lost) = flow.stop().await;
    eprintln!("hung twice: {first} allowed at the first try, {second} at the second, {} lost", lost.len());
    assert_eq!(lost, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn c_an_envoy_without_the_role_is_told_no_key_until_its_name_is_named() {
    let stranger = "other.example.org";
    let world = World::with(stranger, |authority| [authority.issue(&Leaf::server()), authority.issue(&Leaf::server())]).await;
    let client = world.stepward.client(Http::One);
    let mut log = String::new();
    until("Envoy's log says why", Duration::from_secs(20), async || {
        assert_eq!(client.send(world.registered.ask(KNOWN)).await.unwrap().verdict(), (503, "unavailable".to_owned()));
        log = world.stepward.envoy.log();
        log.contains("refuses this Envoy: its client certificate has no name of `names` in [filter] there").then_some(())
    })
    .await;
    for sidecar in &world.sidecars {
        let log = sidecar.process.log();
        assert!(log.contains("an Envoy over TCP was turned away") && log.contains(stranger), "{log}");
        assert!(sidecar.count("stepward_filter_refusals_total{reason=\"name\"}").await > 0.0);
        assert_eq!(sidecar.count("stepward_filter_streams ").await, 0.0);
    }
    for sidecar in &world.sidecars {
        let path = sidecar.folder.path().join("stepward.toml");
        fs::write(&path, fs::read_to_string(&path).unwrap().replace(&format!("dns:{ENVOY}"), &format!("dns:{stranger}"))).unwrap();
    }
    world.answering().await;
    assert!(client.send(world.registered.ask(KNOWN)).await.unwrap().allows());
}

#[tokio::test(flavor = "multi_thread")]
async fn c_a_sidecar_with_another_name_or_of_another_authority_is_not_believed() {
    let impostor = Leaf::new("impostor").usage(Some(ExtendedKeyUsagePurpose::ServerAuth)).dns("other.example.org");
    let world = World::with(ENVOY, |authority| [authority.issue(&Leaf::server()), authority.issue(&impostor)]).await;
    world.answering().await;
    let client = world.stepward.client(Http::One);
    for _ in 0..20 {
        assert!(client.send(world.registered.ask(KNOWN)).await.unwrap().allows());
    }
    until("Envoy has tried both", Duration::from_secs(20), async || {
        let stats = world.stepward.envoy_stats().await;
        let is_refused = stats.sum(&["cluster.stepward.ssl.fail_verify_san"]) > 0.0;
        (is_refused && stats.sum(&["cluster.stepward.membership_healthy"]) == 1.0).then_some(())
    })
    .await;
    let [good, wrong] = &world.sidecars;
    assert_eq!((good.count("stepward_filter_workers ").await, wrong.count("stepward_filter_streams ").await), (2.0, 0.0));

    // The right name from an authority that Envoy does not know.
    let foreign = Authority::new("Other Root");
    let world = World::with(ENVOY, |_| [foreign.issue(&Leaf::server()), foreign.issue(&Leaf::server())]).await;
    until("Envoy has tried", Duration::from_secs(20), async || {
        (world.stepward.envoy_stats().await.sum(&["cluster.stepward.ssl.fail_verify_error"]) > 2.0).then_some(())
    })
    .await;
    let reply = world.stepward.client(Http::One).send(world.registered.ask(KNOWN)).await.unwrap();
    assert_eq!(reply.verdict(), (503, "unavailable".to_owned()));
    assert_ne!(world.authority.pem(), foreign.pem());
}
