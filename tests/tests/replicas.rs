//! Several services on one PostgreSQL server, each with an Envoy of its own.

use std::time::{Duration, Instant};

use e2e::client::{Client, Http, Outgoing, Reply};
use e2e::deployment::{Addresses, Deployment, Hook, Plan, Tls, device};
use e2e::load::{Load, volley};
use e2e::management::{EVENTS, Management, PUSH, push};
use e2e::metrics::get;
use e2e::pki::{Authority, Leaf};
use e2e::postgres::{Passes, Proxy};
use e2e::wait::until;
use e2e::webhook::Registered;
use fakes::Device;
use fakes::jamf::event;
use futures::future::join_all;
use store::scripted::Cluster;

const ID: &str = "11111111-2222-4333-8444-555555555555";
const KNOWN: &str = "C02XL0GYJGH5";

/// Services on one database, whose webhook is the same.
async fn services(cluster: &Cluster, names: &[&str], lines: &str, devices: usize) -> (Registered, Vec<Deployment>) {
    services_with(&Authority::new("Test Root"), cluster, names, lines, listed(devices)).await
}

/// A change of a plan that lists so many devices more.
fn listed(devices: usize) -> impl Fn(&mut Plan) {
    move |plan| plan.devices.extend((0..devices).map(|number| device(&format!("D{number}"))))
}

/// Services on one database, whose callers have certificates of this authority, and whose plans are changed alike.
async fn services_with(
    authority: &Authority,
    cluster: &Cluster,
    names: &[&str],
    lines: &str,
    change: impl Fn(&mut Plan),
) -> (Registered, Vec<Deployment>) {
    cluster.run("postgres", "create database stepward").await.unwrap();
    let url = cluster.url("stepward");
    services_at(authority, &names.iter().map(|name| (*name, url.clone())).collect::<Vec<_>>(), lines, change).await
}

/// Services with these names, each of which reaches the database by a URL of its own.
async fn services_at(
    authority: &Authority,
    named: &[(&str, String)],
    lines: &str,
    change: impl Fn(&mut Plan),
) -> (Registered, Vec<Deployment>) {
    let (registered, tls) = (Registered::random(ID), Tls::of(authority));
    let mut all = Vec::new();
    for (name, url) in named {
        let mut plan = Plan::new(vec![Hook::new(registered.clone())]);
        plan.more = format!("[store]\nurl = \"{url}\"\nname = \"{name}\"\n{lines}");
        change(&mut plan);
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
    let (registered, mut services) = services_with(&authority, &cluster, &["berlin", "paris"], "", |_| {}).await;
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

/// Locks devices at one service after the other, and has each asked about at all of them once its lock is confirmed. Returns how
/// long each lock took to be confirmed.
async fn lock_each(registered: &Registered, services: &[Deployment], devices: usize) -> Vec<Duration> {
    let clients: Vec<_> = services.iter().map(|service| service.client(Http::One)).collect();
    let mut took = Vec::new();
    for number in 0..devices {
        let device = format!("D{number}");
        for client in &clients {
            assert!(client.send(registered.ask(&device)).await.unwrap().allows(), "{device}");
        }
        let began = Instant::now();
        let service = &services[number % services.len()];
        let locked = service.stepward(&["lock", &device, "--reason", "a test", "--config", "stepward.toml"]).output().unwrap();
        assert!(locked.status.success(), "{device}: {}", String::from_utf8_lossy(&locked.stderr));
        took.push(began.elapsed());
        for client in &clients {
            assert_eq!(client.send(registered.ask(&device)).await.unwrap().code(), "device_locked", "{device}");
        }
    }
    took.sort();
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_everywhere_soon_where_every_notification_is_lost() {
    let (cluster, authority) = (Cluster::start(&[]).await.unwrap(), Authority::new("Test Root"));
    cluster.run("postgres", "create database stepward").await.unwrap();
    let proxy = Proxy::start(cluster.folder(), Passes::NoNotification);
    let named = ["berlin", "paris"].map(|name| (name, proxy.url("stepward")));
    let (registered, services) = services_at(&authority, &named, "", listed(30)).await;
    let took = lock_each(&registered, &services, 30).await;
    eprintln!("without notifications: {:?} in the middle, {:?} at most", took[took.len() / 2], took[took.len() - 1]);
    // Each service looks every half second, and a busy machine adds to it.
    assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_connections_hang_is_named_and_answers_nobody_once_its_limit_is_past() {
    let (cluster, authority) = (Cluster::start(&[]).await.unwrap(), Authority::new("Test Root"));
    cluster.run("postgres", "create database stepward").await.unwrap();
    let proxy = Proxy::start(cluster.folder(), Passes::Everything);
    let named = [("berlin", cluster.url("stepward")), ("paris", proxy.url("stepward"))];
    let (registered, services) = services_at(&authority, &named, "stale_limit = \"5s\"\n", listed(2)).await;
    let [berlin, paris] = [0, 1].map(|number: usize| services[number].client(Http::One));
    lock_each(&registered, &services, 2).await;
    assert!(paris.send(registered.ask(KNOWN)).await.unwrap().allows());
    proxy.pass(Passes::Nothing);
    let hangs = Instant::now();
    let locked = services[0].stepward(&["lock", KNOWN, "--reason", "a test", "--config", "stepward.toml"]).output().unwrap();
    let said = String::from_utf8_lossy(&locked.stderr);
    assert!(locked.status.code() == Some(1) && said.contains("have not confirmed that they heard of it: paris"), "{said}");
    assert_eq!(berlin.send(registered.ask(KNOWN)).await.unwrap().code(), "device_locked");
    until("nobody is let in at paris", Duration::from_secs(15), async || {
        let reply = paris.send(registered.ask(KNOWN)).await.unwrap();
        assert!(!reply.allows() || hangs.elapsed() < Duration::from_secs(8), "{:?}: the limit is five seconds", hangs.elapsed());
        (reply.status.as_u16() == 503).then_some(())
    })
    .await;
    // As soon as it answers anybody again it knows of the lock.
    proxy.pass(Passes::Everything);
    until("paris answers again", Duration::from_secs(30), async || {
        let reply = paris.send(registered.ask(KNOWN)).await.unwrap();
        assert!(!reply.allows());
        (reply.code() == "device_locked").then_some(())
    })
    .await;
    let unlocked = services[0].stepward(&["unlock", KNOWN, "--config", "stepward.toml"]).output().unwrap();
    assert!(unlocked.status.success(), "{}", String::from_utf8_lossy(&unlocked.stderr));
    assert!(paris.send(registered.ask(KNOWN)).await.unwrap().allows());
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_hold_and_are_made_at_a_standby_that_took_over() {
    let (mut primary, authority) = (Cluster::start(&[]).await.unwrap(), Authority::new("Test Root"));
    primary.run("postgres", "create database stepward").await.unwrap();
    let standby = primary.standby().await.unwrap();
    let url = format!("postgres://stepward@/stepward?host={},{}", primary.folder().display(), standby.folder().display());
    let (registered, services) = services_at(&authority, &[("berlin", url.clone()), ("paris", url)], "", listed(20)).await;
    let locks = lock_each(&registered, &services, 10).await.len();
    // What the primary took is at the standby too, before the primary is gone.
    until("the standby has every lock", Duration::from_secs(10), async || {
        let held = standby.number("stepward", "select count(*) from stepward.rulings where kind = 'lock'").await;
        held.is_ok_and(|held| usize::try_from(held) == Ok(locks)).then_some(())
    })
    .await;
    primary.kill().unwrap();
    standby.run("postgres", "select pg_promote()").await.unwrap();
    until("a lock is everywhere again", Duration::from_secs(30), async || {
        let arguments = ["lock", "D10", "--reason", "a test", "--config", "stepward.toml"];
        services[0].stepward(&arguments).output().unwrap().status.success().then_some(())
    })
    .await;
    for client in services.iter().map(|service| service.client(Http::One)) {
        for number in 0..=10 {
            let device = format!("D{number}");
            assert_eq!(client.send(registered.ask(&device)).await.unwrap().code(), "device_locked", "{device}");
        }
        assert!(client.send(registered.ask(KNOWN)).await.unwrap().allows());
    }
    let held = standby.number("stepward", "select count(*) from stepward.rulings where device = 'D10'").await.unwrap();
    assert!(held >= 1, "it is kept where writes are taken now");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_or_a_purge_at_one_service_has_every_other_ask_the_management_anew() {
    let cluster = Cluster::start(&[]).await.unwrap();
    let phone = Device::phone("F2LWD0ABCDEF");
    let management = Management::of(std::slice::from_ref(&phone)).await;
    let (registered, services) = services_with(&Authority::new("Test Root"), &cluster, &["berlin", "paris"], "", |plan| {
        plan.hooks = plan.hooks.drain(..).map(|hook| hook.with("providers = [\"jamf\"]")).collect();
        management.join(plan, PUSH);
    })
    .await;
    let clients: Vec<_> = services.iter().map(|service| service.client(Http::One)).collect();
    let ask = async |client: &Client| client.send(registered.ask("F2LWD0ABCDEF")).await.unwrap();
    for client in &clients {
        assert!(ask(client).await.allows());
    }
    management.server.change("F2LWD0ABCDEF", |phone| phone.managed = false);
    assert!(ask(&clients[1]).await.allows(), "it is remembered");
    assert_eq!(services[0].push(push("MobileDeviceUnEnrolled", event(&phone), EVENTS)).await.status, 204);
    assert_eq!(ask(&clients[0]).await.code(), "device_unmanaged");
    until("the other service hears of the event", Duration::from_secs(10), async || {
        (ask(&clients[1]).await.code() == "device_unmanaged").then_some(())
    })
    .await;
    management.server.change("F2LWD0ABCDEF", |phone| phone.managed = true);
    assert_eq!(ask(&clients[0]).await.code(), "device_unmanaged", "it is remembered");
    services[1].ask(&["cache", "purge", "F2LWD0ABCDEF"]);
    assert!(ask(&clients[1]).await.allows());
    until("the other service hears of the purge", Duration::from_secs(10), async || ask(&clients[0]).await.allows().then_some(())).await;
}
