//! Several services on one PostgreSQL server, each with an Envoy of its own.

use std::time::{Duration, Instant};

use e2e::client::{Http, Outgoing, Reply};
use e2e::deployment::{Addresses, Deployment, Hook, Plan, Tls, device};
use e2e::load::{Load, volley};
use e2e::metrics::get;
use e2e::pki::{Authority, Leaf};
use e2e::wait::until;
use e2e::webhook::Registered;
use futures::future::join_all;
use store::scripted::Cluster;

const ID: &str = "11111111-2222-4333-8444-555555555555";
const KNOWN: &str = "C02XL0GYJGH5";

/// Services on one database, whose webhook is the same.
async fn services(cluster: &Cluster, names: &[&str], lines: &str, devices: usize) -> (Registered, Vec<Deployment>) {
    services_of(&Authority::new("Test Root"), cluster, names, lines, devices).await
}

/// Services as [`services`], whose callers have certificates of this authority.
async fn services_of(
    authority: &Authority,
    cluster: &Cluster,
    names: &[&str],
    lines: &str,
    devices: usize,
) -> (Registered, Vec<Deployment>) {
    let (registered, tls) = (Registered::random(ID), Tls::of(authority));
    cluster.run("postgres", "create database stepward").await.unwrap();
    let url = cluster.url("stepward");
    let mut all = Vec::new();
    for name in names {
        let mut plan = Plan::new(vec![Hook::new(registered.clone())]);
        plan.devices.extend((0..devices).map(|number| device(&format!("D{number}"))));
        plan.more = format!("[store]\nurl = \"{url}\"\nname = \"{name}\"\n{lines}");
        all.push(Deployment::start_at(plan, Addresses::default(), tls.clone()).await);
    }
    (registered, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn once_a_lock_is_made_at_one_service_no_other_lets_the_device_in() {
    let cluster = Cluster::start(&[]).await.unwrap();
    let locks = 150;
    let (registered, services) = services(&cluster, &["berlin", "paris"], "", locks).await;
    let loads: Vec<_> = services
        .iter()
        .map(|service| {
            let registered = registered.clone();
            Load::start(&service.client(Http::Two), 1, move || registered.ask(KNOWN))
        })
        .collect();
    let clients: Vec<_> = services.iter().map(|service| service.client(Http::One)).collect();
    // On a busy machine the database may be too slow for a lock to be confirmed, and the command says so.
    let (mut confirmed, mut soon) = (0, 0);
    for number in 0..locks {
        let device = format!("D{number}");
        // It is in the caches of both.
        for client in &clients {
            assert!(client.send(registered.ask(&device)).await.unwrap().allows(), "{device}");
        }
        let (here, there) = (number % 2, (number + 1) % 2);
        let began = Instant::now();
        let locked = services[here].stepward(&["lock", &device, "--reason", "a test", "--config", "stepward.toml"]).output().unwrap();
        if !locked.status.success() {
            eprintln!("{device}: {}", String::from_utf8_lossy(&locked.stderr));
            continue;
        }
        confirmed += 1;
        soon += usize::from(began.elapsed() < Duration::from_secs(1));
        for service in [there, here] {
            let reply = clients[service].send(registered.ask(&device)).await.unwrap();
            assert_eq!(reply.code(), "device_locked", "{device} at {service}");
        }
        let unlocked = services[there].stepward(&["unlock", &device, "--config", "stepward.toml"]).output().unwrap();
        for service in [here, there].into_iter().filter(|_| unlocked.status.success()) {
            assert!(clients[service].send(registered.ask(&device)).await.unwrap().allows(), "{device} at {service}");
        }
    }
    assert!(confirmed > locks * 9 / 10 && soon > locks * 8 / 10, "{confirmed} of {locks} confirmed, {soon} within a second");
    for load in loads {
        let (allowed, failures) = load.stop().await;
        assert!(allowed > 0 && failures.is_empty(), "{failures:?}");
    }
}

/// Sends copies of one request to all services at once, half of them each, and returns the replies.
async fn copies(services: &[Deployment], request: &Outgoing, of_each: usize) -> Vec<Reply> {
    let volleys = services.iter().map(|service| {
        let (client, requests) = (service.client(Http::Two), vec![request.clone(); of_each]);
        async move { volley(&client, requests).await }
    });
    join_all(volleys).await.into_iter().flatten().map(Result::unwrap).collect()
}

/// Decisions of all services for this reason, made and remembered.
async fn counted(services: &[Deployment], reason: &str) -> [f64; 2] {
    let mut sum = [0.0, 0.0];
    for service in services {
        let metrics = service.metrics().await;
        for (sum, replayed) in sum.iter_mut().zip(["false", "true"]) {
            let labels = [format!("reason=\"{reason}\""), format!("replayed=\"{replayed}\"")];
            *sum += metrics.sum(&["stepward_decisions", &labels[0], &labels[1]]);
        }
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_bytes_get_one_decision_whichever_service_has_them_and_no_other_caller_gets_it() {
    let (cluster, authority) = (Cluster::start(&[]).await.unwrap(), Authority::new("Test Root"));
    let (registered, mut services) = services_of(&authority, &cluster, &["berlin", "paris"], "", 0).await;
    let (denied, allowed) = (registered.ask("STRANGER"), registered.ask(KNOWN));
    for reply in copies(&services, &denied, 100).await {
        assert_eq!(reply.code(), "device_not_found");
    }
    assert_eq!(counted(&services, "device_not_found").await, [1.0, 199.0]);
    let replies = copies(&services, &allowed, 100).await;
    assert!(replies.iter().all(|reply| reply.allows() && reply.data() == replies[0].data()));
    // Each service makes its own allow, from what it knows itself.
    let [made, remembered] = counted(&services, "allowed").await;
    assert!((1.0..=2.0).contains(&made) && made + remembered == 200.0, "{made} and {remembered}");
    // Who may call as well, and sends what was sent before by somebody else, gets nothing at either; nor after a start of both.
    let name = e2e::step::CALLER.strip_prefix("dns:").unwrap();
    let stranger = authority.issue(&Leaf::client(name));
    for _ in 0..2 {
        for service in &services {
            let client = service.client_as(Some(&stranger), Http::One);
            assert!(client.send(registered.ask(KNOWN)).await.unwrap().allows(), "the other caller may call");
            for request in [&denied, &allowed] {
                assert_eq!(client.send(request.clone()).await.unwrap().code(), "replay_refused");
                // It does not become the sender by that.
                let own = service.client(Http::One).send(request.clone()).await.unwrap();
                assert_eq!(own.allows(), std::ptr::eq(request, &allowed), "{}", own.code());
            }
        }
        for service in &mut services {
            service.restart_sidecar();
            service.answering().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_hears_nothing_of_the_others_for_too_long_lets_nobody_in() {
    let mut cluster = Cluster::start(&[]).await.unwrap();
    let (registered, services) = services(&cluster, &["berlin", "paris"], "stale_limit = \"5s\"\n", 0).await;
    let clients: Vec<_> = services.iter().map(|service| service.client(Http::One)).collect();
    cluster.freeze().unwrap();
    let frozen = Instant::now();
    for client in &clients {
        assert!(client.send(registered.ask(KNOWN)).await.unwrap().allows(), "known devices go on from memory");
    }
    for (service, client) in services.iter().zip(&clients) {
        until("nobody is let in", Duration::from_secs(15), async || {
            let reply = client.send(registered.ask(KNOWN)).await.unwrap();
            (reply.status.as_u16() == 503).then_some(())
        })
        .await;
        assert!(frozen.elapsed() > Duration::from_secs(3), "{:?}", frozen.elapsed());
        let (status, page) = get(service.at.metrics, "/readyz?verbose").await.unwrap();
        assert!(status == 503 && page.starts_with("stale\n") && page.contains("nothing is known of what other services rule"), "{page}");
        assert!(service.metrics().await.sum(&["stepward_decisions", "store_stale"]) >= 1.0);
    }
    // Whoever locks a device now is told that nobody else knows.
    let locked = services[0].stepward(&["lock", "OTHER", "--reason", "a test", "--config", "stepward.toml"]).output().unwrap();
    let said = String::from_utf8_lossy(&locked.stderr);
    assert!(locked.status.code() == Some(1) && said.contains("other services do not know of it yet"), "{said}");
    cluster.thaw().unwrap();
    for client in &clients {
        until("devices are let in again", Duration::from_secs(15), async || {
            client.send(registered.ask(KNOWN)).await.unwrap().allows().then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_was_killed_is_named_and_what_was_locked_meanwhile_holds_at_its_start() {
    let cluster = Cluster::start(&[]).await.unwrap();
    let (registered, mut services) = services(&cluster, &["berlin", "paris"], "stale_limit = \"5s\"\n", 0).await;
    services[1].sidecar().kill();
    let locked = services[0].stepward(&["lock", KNOWN, "--reason", "a test", "--config", "stepward.toml"]).output().unwrap();
    let said = String::from_utf8_lossy(&locked.stderr);
    assert!(locked.status.code() == Some(1) && said.contains("have not confirmed that they heard of it: paris"), "{said}");
    services[1].restart_sidecar();
    services[1].answering().await;
    for service in &services {
        assert_eq!(service.client(Http::One).send(registered.ask(KNOWN)).await.unwrap().code(), "device_locked");
    }
    until("nobody waits for what was killed", Duration::from_secs(20), async || {
        services[0].stepward(&["unlock", KNOWN, "--config", "stepward.toml"]).output().unwrap();
        let locked = services[0].stepward(&["lock", KNOWN, "--reason", "a test", "--config", "stepward.toml"]).output().unwrap();
        locked.status.success().then_some(())
    })
    .await;
}
