//! The whole of a larger deployment: a real step-ca, one Envoy, two sidecars, and one PostgreSQL server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use e2e::client::Http;
use e2e::deployment::{Addresses, Deployment, Hook, Plan, Tls};
use e2e::device::Maker;
use e2e::pki::{Authority, Leaf};
use e2e::step::StepCa;
use e2e::wait::until;
use e2e::webhook::Registered;
use e2e::world::add_acme;
use store::scripted::Cluster;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::several::{ENVOY, Sidecar, before};

const KNOWN: &str = "C02XL0GYJGH5";

/// A step-ca behind an Envoy, two sidecars and a server.
struct Fleet {
    cluster: Cluster,
    sidecars: [Sidecar; 2],
    stepward: Deployment,
    ca: Arc<StepCa>,
    maker: Arc<Maker>,
    registered: Registered,
    _files: TempDir,
}

impl Fleet {
    async fn start() -> Self {
        let cluster = Cluster::start(&[]).await.unwrap();
        cluster.run("postgres", "create database stepward").await.unwrap();
        let (ca, maker, at) = (StepCa::start().await, Maker::default(), Addresses::default());
        maker.write_root(&ca.path("attestation.crt"));
        add_acme(&ca, "devices", Some("posture"));
        let registered = ca.add_webhook("devices", "posture", at.webhook, &[]);
        let mut plan = Plan::new(vec![Hook::new(registered.clone())]);
        plan.sidecar = false;
        plan.workers = 2;
        plan.more = format!("[store]\nurl = \"{}\"\n", cluster.url("stepward"));
        let (tls, authority) = (Tls::of_step_ca(&ca), Authority::new("Sidecars' Root"));
        let own = || authority.issue(&Leaf::server());
        let sidecars = [Sidecar::start(&plan, &tls, &authority, &own()).await, Sidecar::start(&plan, &tls, &authority, &own()).await];
        let files = tempfile::tempdir().unwrap();
        plan.envoy = before(&sidecars, &authority, ENVOY, files.path());
        plan.more.clear();
        let stepward = Deployment::start_at(plan, at, tls).await;
        stepward.answering().await;
        Self { cluster, sidecars, stepward, ca: Arc::new(ca), maker: Arc::new(maker), registered, _files: files }
    }

    /// Decisions of the step-ca's requests that allow the device.
    async fn allowed(&self) -> i64 {
        let sql = format!("select count(*) from stepward.decisions where decision = 'allow' and device = '{KNOWN}'");
        self.cluster.number("stepward", &sql).await.unwrap()
    }
}

/// Devices that enrol at a step-ca without end, each of whose certificates has to be issued.
struct Devices {
    stop: Arc<AtomicBool>,
    issued: Arc<AtomicU64>,
    lost: JoinSet<Vec<String>>,
}

impl Devices {
    fn start(fleet: &Fleet, devices: usize) -> Self {
        let (stop, issued, mut lost) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), JoinSet::new());
        for _ in 0..devices {
            let (ca, maker) = (Arc::clone(&fleet.ca), Arc::clone(&fleet.maker));
            let (stop, issued) = (Arc::clone(&stop), Arc::clone(&issued));
            lost.spawn(async move {
                let mut lost = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    match maker.enrol(&ca, "devices", KNOWN).await {
                        Ok(_) => drop(issued.fetch_add(1, Ordering::SeqCst)),
                        Err(error) => lost.push(format!("{error:?}")),
                    }
                }
                lost
            });
        }
        Self { stop, issued, lost }
    }

    async fn more(&self, certificates: u64) {
        let target = self.issued.load(Ordering::SeqCst) + certificates;
        let issued = async || (self.issued.load(Ordering::SeqCst) >= target).then_some(());
        until("certificates are issued", Duration::from_secs(60), issued).await;
    }

    /// Ends the devices, and returns how many certificates were issued, and what became of the others.
    async fn stop(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let lost = self.lost.join_all().await.concat();
        (self.issued.load(Ordering::SeqCst), lost)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_certificate_is_lost_while_either_sidecar_is_killed_twenty_times_and_both_are_started_anew() {
    let mut fleet = Fleet::start().await;
    let devices = Devices::start(&fleet, 3);
    devices.more(5).await;
    for round in 0..20 {
        let sidecar = &mut fleet.sidecars[round % 2];
        sidecar.process.kill();
        devices.more(3).await;
        sidecar.restart().await;
        devices.more(2).await;
    }
    let killed = devices.issued.load(Ordering::SeqCst);
    // A new release is put in the place of the old one so: one after the other, each once the one before is ready.
    for sidecar in &mut fleet.sidecars {
        assert!(sidecar.process.terminate(Duration::from_secs(10)).success());
        devices.more(5).await;
        sidecar.restart().await;
    }
    devices.more(5).await;
    let (issued, lost) = devices.stop().await;
    eprintln!("killed twenty times: {killed} certificates issued; after a rolling restart {issued}; {} lost", lost.len());
    assert_eq!(lost, [""; 0]);
    // What a sidecar had decided and not yet written when it was killed is lost with it; no other decision is.
    let kept = i64::try_from(issued).unwrap() - fleet.allowed().await;
    assert!(kept <= 20 * 3, "{kept} certificates have no decision");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_under_load_costs_no_webhook_and_lets_nobody_in_who_is_locked() {
    let mut fleet = Fleet::start().await;
    let (asked, refused, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
    let connection = fleet.stepward.client(Http::Two).connect().await.unwrap();
    let before = fleet.allowed().await;
    // Webhooks come as they come, two hundred a second, whatever becomes of those before.
    let load = tokio::spawn({
        let (asked, refused, stop, registered) = (Arc::clone(&asked), Arc::clone(&refused), Arc::clone(&stop), fleet.registered.clone());
        async move {
            let (mut tick, mut running) = (tokio::time::interval(Duration::from_millis(5)), JoinSet::new());
            while !stop.load(Ordering::SeqCst) {
                tick.tick().await;
                let (mut connection, request, refused) = (connection.share(), registered.ask(KNOWN), Arc::clone(&refused));
                asked.fetch_add(1, Ordering::SeqCst);
                running.spawn(async move {
                    let reply = connection.send(request).await;
                    if !reply.as_ref().is_ok_and(e2e::client::Reply::allows) {
                        refused.fetch_add(1, Ordering::SeqCst);
                        eprintln!("not allowed: {:?}", reply.map(|reply| reply.verdict()));
                    }
                });
            }
            running.join_all().await;
        }
    });
    let more = async |webhooks: u64| {
        let target = asked.load(Ordering::SeqCst) + webhooks;
        until("webhooks are sent", Duration::from_secs(60), async || (asked.load(Ordering::SeqCst) >= target).then_some(())).await;
    };
    let locked = fleet.sidecars[0].stepward(&["lock", "STOLEN", "--reason", "a test"]);
    assert!(locked.status.success(), "{}", String::from_utf8_lossy(&locked.stderr));
    let client = fleet.stepward.client(Http::One);
    for _ in 0..3 {
        more(200).await;
        fleet.cluster.kill().unwrap();
        let killed = Instant::now();
        more(400).await;
        for _ in 0..10 {
            let reply = client.send(fleet.registered.ask("STOLEN")).await.unwrap();
            assert_eq!(reply.code(), "device_locked");
        }
        fleet.cluster.revive().await.unwrap();
        eprintln!("away for {:?}", killed.elapsed());
        more(200).await;
    }
    stop.store(true, Ordering::SeqCst);
    load.await.unwrap();
    let (asked, refused) = (asked.load(Ordering::SeqCst), refused.load(Ordering::SeqCst));
    assert_eq!(refused, 0, "of {asked}: known devices go on from memory");
    // Every decision is there afterwards, or is counted as one that is not.
    let (kept, dropped) = until("decisions are complete", Duration::from_secs(60), async || {
        let mut dropped = 0.0;
        for sidecar in &fleet.sidecars {
            dropped += sidecar.count("stepward_decision_records_dropped_total").await;
        }
        let kept = fleet.allowed().await - before;
        #[expect(clippy::cast_precision_loss, reason = "both are small")]
        let is_complete = kept as f64 + dropped >= asked as f64;
        is_complete.then_some((kept, dropped))
    })
    .await;
    eprintln!("{asked} webhooks while the server was killed three times: none refused; {kept} decisions kept, {dropped} dropped");
    assert!(dropped < 1.0, "{dropped} dropped: there was room for all");
}
