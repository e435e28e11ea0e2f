//! Nothing is lost and nothing is allowed by mistake while parts of Stepward die, hang, restart or get new keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use e2e::client::Http;
use e2e::deployment::{Addresses, CLIENT, Deployment, Hook, Plan, Tls};
use e2e::load::{Load, volley};
use e2e::pki::{Authority, Leaf};
use e2e::tools::trap_filter;
use e2e::wait::until;
use e2e::webhook::{Registered, enriching};
use e2e::world::World;
use nix::sys::signal::Signal;

const KNOWN: &str = "C02XL0GYJGH5";
const ID: &str = "11111111-2222-4333-8444-555555555555";

#[tokio::test(flavor = "multi_thread")]
async fn no_certificate_fails_when_the_sidecar_is_killed_and_back_within_five_seconds() {
    let World { mut stepward, ca, maker, .. } = World::of_devices().await;
    let (ca, maker) = (Arc::new(ca), Arc::new(maker));
    let (stop, issued) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut devices = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (ca, maker, stop, issued) = (Arc::clone(&ca), Arc::clone(&maker), Arc::clone(&stop), Arc::clone(&issued));
        devices.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                maker.enrol(&ca, "devices", KNOWN).await.unwrap();
                issued.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let more = async |count| {
        let target = issued.load(Ordering::SeqCst) + count;
        until("certificates are issued", Duration::from_secs(30), async || (issued.load(Ordering::SeqCst) >= target).then_some(())).await;
    };
    more(20).await;
    let killed = Instant::now();
    stepward.sidecar().kill();
    // The outage that the test is about.
    tokio::time::sleep(Duration::from_secs(4)).await;
    stepward.restart_sidecar();
    until("the sidecar is ready", Duration::from_secs(5), async || {
        e2e::metrics::get(stepward.at.metrics, "/readyz").await.is_ok_and(|(status, _)| status == 200).then_some(())
    })
    .await;
    assert!(killed.elapsed() < Duration::from_secs(5), "the machine is too slow for this test: {:?}", killed.elapsed());
    more(20).await;
    stop.store(true, Ordering::SeqCst);
    devices.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_restarts_and_certificates_are_issued_again() {
    let World { mut stepward, ca, maker, .. } = World::of_devices().await;
    maker.enrol(&ca, "devices", KNOWN).await.unwrap();
    stepward.restart_envoy().await;
    stepward.answering().await;
    maker.enrol(&ca, "devices", KNOWN).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_stands_still_costs_envoy_no_more_than_the_bound() {
    let registered = Registered::random(ID);
    let stepward = Deployment::start(Plan::new(vec![Hook::new(registered.clone())])).await;
    let mut stepward = stepward;
    let large = || {
        let mut body: serde_json::Value = serde_json::from_slice(&enriching(KNOWN)).unwrap();
        body["padding"] = "x".repeat(60_000).into();
        registered.signed(body.to_string())
    };
    let client = stepward.client(Http::Two);
    assert!(volley(&client, (0..100).map(|_| large()).collect()).await.into_iter().all(|reply| reply.unwrap().allows()));
    let before = stepward.envoy.memory();
    let vms = stepward.vms().await;
    stepward.sidecar().signal(Signal::SIGSTOP);
    let mut most = before;
    for _ in 0..3 {
        let replies = tokio::spawn({
            let (client, requests) = (client.clone(), (0..600).map(|_| large()).collect());
            async move { volley(&client, requests).await }
        });
        while !replies.is_finished() {
            most = most.max(stepward.envoy.memory());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for reply in replies.await.unwrap() {
            let reply = reply.unwrap();
            assert_eq!((reply.status.as_u16(), reply.allows()), (503, false));
        }
    }
    stepward.sidecar().signal(Signal::SIGCONT);
    // The bodies of 600 requests that Envoy itself buffers are 36 MB; 108 MB were sent in all.
    assert!(most - before < 80 << 20, "Envoy grew by {} MiB", (most - before) >> 20);
    until("requests are allowed again", Duration::from_secs(10), async || {
        client.send(registered.ask(KNOWN)).await.unwrap().allows().then_some(())
    })
    .await;
    assert_eq!(stepward.vms().await, vms, "no VM died");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_replays_over_two_workers_is_evaluated_once_and_answered_alike() {
    let registered = Registered::random(ID);
    let mut plan = Plan::new(vec![Hook::new(registered.clone())]);
    plan.workers = 2;
    let stepward = Deployment::start(plan).await;
    let client = stepward.client(Http::Two);
    let before = stepward.metrics().await;
    let request = registered.ask(KNOWN);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (client, requests) = (client.clone(), vec![request.clone(); 10]);
        callers.spawn(async move { volley(&client, requests).await });
    }
    let replies: Vec<_> = callers.join_all().await.concat().into_iter().map(Result::unwrap).collect();
    assert!(replies.iter().all(|reply| reply.allows() && reply.body == replies[0].body));
    let after = stepward.metrics().await;
    let found = |page: &e2e::metrics::Metrics| page.sum(&["stepward_provider_requests", "found"]);
    assert!((found(&after) - found(&before) - 1.0).abs() < 0.5, "the list was asked once:\n{}", after.text());
    until("both workers are attached, and no more", Duration::from_secs(10), async || {
        (stepward.metrics().await.sum(&["stepward_filter_workers "]) == 2.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_from_another_caller_are_refused() {
    let authority = Authority::new("Test Root");
    let registered = Registered::random(ID);
    let hook = Hook::new(registered.clone()).with(&format!("callers = [\"dns:{CLIENT}\", \"dns:thief.example.org\"]"));
    let stepward = Deployment::start_at(Plan::new(vec![hook]), Addresses::default(), Tls::of(&authority)).await;
    let thief = stepward.client_as(Some(&authority.issue(&Leaf::client("thief.example.org"))), Http::One);
    let request = registered.ask(KNOWN);
    assert!(stepward.client(Http::One).send(request.clone()).await.unwrap().allows());
    assert_eq!(thief.send(request.clone()).await.unwrap().verdict(), (403, "replay_refused".to_owned()));
    assert!(stepward.client(Http::Two).send(request).await.unwrap().allows(), "the first caller may repeat itself");
    assert!(thief.send(registered.ask(KNOWN)).await.unwrap().allows(), "with bytes of its own it may call");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_and_client_authority_are_replaced_under_load() {
    let (old, new) = (Authority::new("Old Root"), Authority::new("New Root"));
    let registered = Registered::random(ID);
    let plan = Plan::new(vec![Hook::new(registered.clone())]);
    let mut tls = Tls::of(&old);
    tls.roots = [old.pem(), new.pem()].concat();
    let stepward = Deployment::start_at(plan, Addresses::default(), tls).await;
    let asking = registered.clone();
    let load = Load::start(&stepward.client(Http::Two), 4, move || asking.ask(KNOWN));
    load.goes_on(50).await;
    let newcomer = stepward.client_as(Some(&new.issue(&Leaf::client(CLIENT))), Http::One);
    newcomer.send(registered.ask(KNOWN)).await.unwrap_err();
    let server = new.issue(&Leaf::server());
    stepward.write_tls(&server, &[old.pem(), new.pem()].concat());
    until("the new authority is trusted", Duration::from_secs(15), async || {
        newcomer.send(registered.ask(KNOWN)).await.is_ok_and(|reply| reply.allows()).then_some(())
    })
    .await;
    until("the new certificate is shown", Duration::from_secs(15), async || {
        let stream = newcomer.tls().await.ok()?;
        (stream.get_ref().1.peer_certificates()?.first()? == server.der().0.first()?).then_some(())
    })
    .await;
    load.goes_on(50).await;
    let (_, failures) = load.stop().await;
    assert_eq!(failures, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_is_replaced_under_load() {
    let (old, new) = (Registered::random(ID), Registered::random(ID));
    let files = |secrets: &[&str]| {
        let files: Vec<_> = secrets.iter().map(|name| format!("{{ file = \"secrets/{name}\" }}")).collect();
        Plan::new(vec![Hook::new(old.clone()).with(&format!("secrets = [{}]", files.join(", ")))])
    };
    let mut plan = files(&[ID]);
    plan.workers = 2;
    let stepward = Deployment::start(plan).await;
    stepward.write("secrets/new", &new.secret);
    let current = Arc::new(std::sync::Mutex::new(old.clone()));
    let asking = Arc::clone(&current);
    let load = Load::start(&stepward.client(Http::Two), 4, move || asking.lock().unwrap().ask(KNOWN));
    load.goes_on(50).await;
    // Connections spread over both workers by chance, so a run of good answers says that both have the change.
    let client = stepward.client(Http::One);
    let run_of = async |registered: &Registered, allowed: bool| {
        let mut run = 0;
        until("the change reaches every worker", Duration::from_secs(15), async || {
            let as_wanted = client.send(registered.ask(KNOWN)).await.unwrap().allows() == allowed;
            run = if as_wanted { run + 1 } else { 0 };
            (run == 20).then_some(())
        })
        .await;
    };
    assert_eq!(client.send(new.ask(KNOWN)).await.unwrap().status, 401);
    stepward.configure(&files(&["new", ID]));
    run_of(&new, true).await;
    load.goes_on(50).await;
    *current.lock().unwrap() = new.clone();
    // What was signed with the old secret before is answered by now, as each caller has asked twice since.
    load.goes_on(50).await;
    stepward.configure(&files(&["new"]));
    run_of(&old, false).await;
    load.goes_on(50).await;
    let (_, failures) = load.stop().await;
    assert_eq!(failures, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_dies_answers_those_who_wait_and_comes_back() {
    dies_and_comes_back("1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_the_sdk_ends_answers_those_who_wait_and_comes_back() {
    let stepward = dies_and_comes_back("status").await;
    let log = stepward.envoy.log();
    assert!(log.contains("unexpected status: 1"), "{log}");
}

/// One request ends the VM while others wait in it.
async fn dies_and_comes_back(trap: &str) -> Deployment {
    let registered = Registered::random(ID);
    let mut plan = Plan::new(vec![Hook::new(registered.clone())]);
    plan.wasm = trap_filter();
    let mut stepward = Deployment::start(plan).await;
    let client = stepward.client(Http::Two);
    assert!(client.send(registered.ask(KNOWN)).await.unwrap().allows());
    let (created, _) = stepward.vms().await;
    stepward.sidecar().signal(Signal::SIGSTOP);
    let waiting = tokio::spawn({
        let (client, requests) = (client.clone(), (0..50).map(|_| registered.ask(KNOWN)).collect());
        async move {
            let started = Instant::now();
            (volley(&client, requests).await, started.elapsed())
        }
    });
    until("requests wait", Duration::from_secs(3), async || {
        (stepward.envoy_stats().await.sum(&["http.webhook.downstream_rq_active"]) >= 50.0).then_some(())
    })
    .await;
    let trapping = client.send(registered.ask(KNOWN).header("x-stepward-trap", trap)).await;
    assert!(!trapping.is_ok_and(|reply| reply.allows()));
    let (replies, took) = waiting.await.unwrap();
    assert!(took < Duration::from_millis(4200), "{took:?}");
    // A reset is no reply, and step-ca tries again after it as after these two.
    for reply in replies.into_iter().flatten() {
        assert!(matches!(reply.status.as_u16(), 503 | 504) && !reply.allows(), "{reply:?}");
    }
    stepward.sidecar().signal(Signal::SIGCONT);
    until("the VM is back", Duration::from_secs(20), async || {
        client.send(registered.ask(KNOWN)).await.is_ok_and(|reply| reply.allows()).then_some(())
    })
    .await;
    assert!(stepward.vms().await.0 > created, "a VM died and another was made");
    stepward
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_sidecar_finishes_what_it_has() {
    let registered = Registered::random(ID);
    let mut stepward = Deployment::start(Plan::new(vec![Hook::new(registered.clone())])).await;
    let asking = registered.clone();
    let load = Load::start(&stepward.client(Http::Two), 4, move || asking.ask(KNOWN));
    load.goes_on(50).await;
    let status = stepward.sidecar().terminate(Duration::from_secs(10));
    assert!(status.success(), "{status}");
    stepward.restart_sidecar();
    load.goes_on(50).await;
    let (_, failures) = load.stop().await;
    assert_eq!(failures, [""; 0]);
}
