//! A device management fails in every way there is, under a hundred webhooks a second, through the real Envoy and sidecar:
//! known devices are let in from memory, nobody else is let in or turned away, nobody waits too long, and the management is
//! spared.

use std::time::{Duration, Instant};

use e2e::client::{Client, Connection, Http, Reply};
use e2e::deployment::{Deployment, Hook, Plan};
use e2e::management::Management;
use e2e::wait::until;
use e2e::webhook::Registered;
use fakes::{Device, Fault, RetryAfter};

#[tokio::test(flavor = "multi_thread")]
async fn an_error_or_a_refusal_lets_known_devices_in_and_nobody_else() {
    let errors = under(vec![("500", Fault::Status(500)), ("reset", Fault::Reset), ("html", Fault::Html)]);
    let refusals = under(vec![
        ("429", limited(RetryAfter::Absent)),
        ("429-0", limited(RetryAfter::Seconds(0))),
        ("429-soon", limited(RetryAfter::Malformed("soon".to_owned()))),
    ]);
    tokio::join!(errors, refusals);
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_or_nonsense_lets_known_devices_in_and_nobody_else() {
    let silence = under(vec![("hang", Fault::Hang), ("drip", Fault::Drip)]);
    let nonsense = under(vec![("huge", Fault::Huge(50_000_000)), ("wrong-device", Fault::WrongDevice)]);
    let refusals = under(vec![
        ("429-2", limited(RetryAfter::Seconds(2))),
        ("429-date", limited(RetryAfter::Date(Duration::from_secs(3)))),
        ("429-99999", limited(RetryAfter::Seconds(99_999))),
    ]);
    tokio::join!(silence, nonsense, refusals);
}

fn limited(after: RetryAfter) -> Fault {
    Fault::RateLimited(after)
}

/// Plays one fault after the other, each for [`WEBHOOKS`].
async fn under(faults: Vec<(&'static str, Fault)>) {
    let known: Vec<String> = (0..KNOWN).map(|number| format!("KNOWN{number:03}")).collect();
    let newcomer = |name: &str| format!("NEW-{name}");
    let newcomers = faults.iter().map(|(name, _)| newcomer(name));
    let management =
        Management::of(&known.iter().cloned().chain(newcomers).map(|serial| Device::computer(&serial)).collect::<Vec<_>>()).await;
    let hook = Registered::random("11111111-2222-4333-8444-555555555555");
    let mut plan = Plan::new(vec![Hook::new(hook.clone()).with("providers = [\"jamf\"]")]);
    management.join(&mut plan, "[provider.jamf.cache]\npositive = \"1s\"\nnegative = \"1s\"");
    let stepward = Deployment::start(plan).await;
    let client = stepward.client(Http::Two);
    for (name, fault) in faults {
        for serial in &known {
            // The first time there are more of them than one second takes of devices that were never found.
            until(&format!("{serial} is let in before {name}"), RECOVERY, async || {
                client.send(hook.ask(serial)).await.unwrap().allows().then_some(())
            })
            .await;
        }
        tokio::time::sleep(Duration::from_millis(1100)).await;
        management.server.forget();
        management.server.fail(Some(fault));
        let replies = load(&client, &hook, |number| match number % 4 {
            0 | 2 => known[number / 2 % KNOWN].clone(),
            1 => newcomer(name),
            _ => format!("STRANGER-{name}-{number}"),
        })
        .await;
        let calls = management.server.lookups().len() + management.server.logins();
        let slowest = replies.iter().map(|(_, reply)| reply.took).max().unwrap();
        eprintln!("{name}: {WEBHOOKS} webhooks, {calls} requests to the management, slowest reply {slowest:?}");
        let wrong: Vec<_> = replies
            .iter()
            .enumerate()
            .filter(|(_, (device, reply))| {
                if device.starts_with("KNOWN") {
                    reply.verdict() != (200, "allow".to_owned())
                } else {
                    reply.status != 503 || reply.allows()
                }
            })
            .map(|(number, (device, reply))| {
                let decisions = stepward.ask(&["decisions", "--device", device, "--limit", "3"]);
                format!("webhook {number}, {device}: {:?} after {:?}\n{decisions}", reply.verdict(), reply.took)
            })
            .collect();
        assert!(wrong.is_empty(), "during {name}: {}", wrong.join("\n"));
        assert!(slowest <= LONGEST, "{name}: {slowest:?}");
        assert!(calls <= MOST_CALLS, "{name}: {calls} requests for {WEBHOOKS} webhooks");
        management.server.fail(None);
        let back = Instant::now();
        until(&format!("{} is let in after {name}", newcomer(name)), RECOVERY, async || {
            client.send(hook.ask(&newcomer(name))).await.unwrap().allows().then_some(())
        })
        .await;
        eprintln!("{name}: recovered after {:?}", back.elapsed());
    }
}

/// Sends webhooks at their times, whether or not those before were answered; every reply.
async fn load(client: &Client, hook: &Registered, device: impl Fn(usize) -> String) -> Vec<(String, Reply)> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(client.connect().await.unwrap());
    }
    let began = tokio::time::Instant::now();
    let mut waiting = Vec::new();
    for number in 0..WEBHOOKS {
        tokio::time::sleep_until(began + BETWEEN * u32::try_from(number).unwrap()).await;
        let device = device(number);
        let (mut connection, request): (Connection, _) = (connections[number % CONNECTIONS].share(), hook.ask(&device));
        waiting.push((device, tokio::spawn(async move { connection.send(request).await.unwrap() })));
    }
    let took = began.elapsed();
    assert!(took < BETWEEN * u32::try_from(WEBHOOKS).unwrap() * 11 / 10, "the load was lighter than meant: {took:?}");
    let mut replies = Vec::new();
    for (device, reply) in waiting {
        replies.push((device, reply.await.unwrap()));
    }
    replies
}

/// Twenty seconds of a hundred a second.
const WEBHOOKS: usize = 2000;
const BETWEEN: Duration = Duration::from_millis(10);
/// So that none has more streams than Envoy takes.
const CONNECTIONS: usize = 8;
const KNOWN: usize = 15;

/// The deadline of 3.5 s, and 250 ms for a client that shares two cores with all that it tests.
const LONGEST: Duration = Duration::from_millis(3750);

/// A question is two requests, to computers and to mobile devices. Three that fail end the questions of known devices and three
/// those of new ones; after that one is tried after each pause, which are 1, 2, 4, 5, 5 and 5 s.
const MOST_CALLS: usize = 2 * (2 * 3 + 6);

/// Within this the management is found back.
const RECOVERY: Duration = Duration::from_secs(10);
