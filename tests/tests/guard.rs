//! `envoy/guard.yaml`: an Envoy in front of any service lets only fit devices through.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use e2e::client::{Client, Http, Outgoing, Reply, post};
use e2e::deployment::{Deployment, Hook, Plan, device, known};
use e2e::pki::{Authority, Credential, Leaf};
use e2e::process::Process;
use e2e::tools::{envoy, free_port, root};
use e2e::wait::{STARTUP, until};
use e2e::webhook::Registered;
use e2e::world::add_acme;
use fakes::server::Answer;
use fakes::{Device, Fake, Seen, Service};
use http::Method;
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::{Value, json};

const FIT: &str = "C02XL0GYJGH5";
const UNFIT: &str = "UNFIT00001";

const POLICY: &str = r#"
[policy.blue]
providers = ["fleet"]
require = [{ expr = "device.data.team == 'Blue'", code = "not_blue", message = "only team Blue may", remediation_url = "https://help.example.org/blue" }]
"#;

/// The service that is guarded.
struct Guarded;

impl Service for Guarded {
    fn answer(&self, _: &Seen, _: &[Device], _: bool) -> Answer {
        Answer::json(json!({ "served": true }))
    }
}

struct World {
    guard: Process,
    stepward: Deployment,
    service: Fake,
    address: SocketAddr,
    authority: Authority,
}

impl World {
    /// With a line of guard.yaml changed.
    async fn start(change: impl Fn(String) -> String) -> Self {
        let unfit = (UNFIT.to_owned(), json!({ "team": "Red" }));
        let plan = Plan {
            devices: vec![known(), unfit, device("OTHER00001")],
            more: POLICY.to_owned(),
            ..Plan::new(vec![Hook::new(Registered::random("one"))])
        };
        let stepward = Deployment::start(plan).await;
        let service = Fake::start(Guarded).await;
        let authority = Authority::new("Devices");
        let (guard, address) = start_guard(&stepward, &service, &authority.issue(&Leaf::server()), authority.pem(), change).await;
        Self { guard, stepward, service, address, authority }
    }

    fn client(&self, name: &str) -> Client {
        self.client_with(&Leaf::new(name).usage(Some(ExtendedKeyUsagePurpose::ClientAuth)))
    }

    fn client_with(&self, leaf: &Leaf) -> Client {
        let credential: Credential = self.authority.issue(leaf);
        Client::new(self.address, self.authority.pem(), Some(&credential), Http::Two)
    }

    async fn get(&self, name: &str) -> Reply {
        self.client(name).send(get()).await.unwrap()
    }
}

/// Envoy with guard.yaml, where `change` has changed it, before the service; it takes the clients of these authorities.
async fn start_guard(
    stepward: &Deployment,
    service: &Fake,
    server: &Credential,
    authorities: &str,
    change: impl Fn(String) -> String,
) -> (Process, SocketAddr) {
    stepward.write("tls/guard.crt", &server.chain);
    stepward.write("tls/guard.key", &server.key);
    stepward.write("tls/devices.crt", authorities);
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let text = std::fs::read_to_string(root().join("envoy/guard.yaml")).unwrap();
    let port = service.url().rsplit(':').next().unwrap().to_owned();
    let mut text = change(text);
    for (from, to) in [
        ("address: 0.0.0.0, port_value: 8443", format!("address: 127.0.0.1, port_value: {}", address.port())),
        ("port_value: 8080", format!("port_value: {port}")),
        ("tls/server.crt", "tls/guard.crt".to_owned()),
        ("tls/server.key", "tls/guard.key".to_owned()),
        ("tls/ca.crt", "tls/devices.crt".to_owned()),
        ("path: envoy/log_lines.yaml", format!("path: {}", root().join("envoy/log_lines.yaml").display())),
        ("policy: staff-mac", "policy: blue".to_owned()),
    ] {
        assert!(text.contains(from) || from.starts_with("policy"), "{from}");
        text = text.replace(from, &to);
    }
    stepward.write("guard.yaml", &text);
    let mut command = Command::new(envoy());
    command.args(["--config-path", "guard.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
    command.current_dir(stepward.path("."));
    let guard = Process::start("guard", &stepward.path("."), command);
    let listens = async || tokio::net::TcpStream::connect(address).await.ok();
    until("the guard listens", STARTUP, listens).await;
    (guard, address)
}

fn get() -> Outgoing {
    post("/anything", Bytes::new()).method(Method::GET)
}

fn body(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fit_device_passes_and_an_unfit_one_is_told_why() {
    let world = World::start(|text| text).await;
    let reply = world.get(FIT).await;
    assert_eq!((reply.status.as_u16(), body(&reply)["served"].clone()), (200, json!(true)));
    let seen = world.service.lookups().pop().unwrap();
    assert_eq!(seen.header("x-posture-device"), Some(FIT));
    assert_eq!(seen.header("x-posture-policy"), Some("blue"));
    assert_eq!(seen.header("x-posture-decision"), Some("allow"));
    let data = seen.header("x-posture-data").unwrap();
    assert!(data.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"%-._~".contains(&byte)), "{data}");

    let reply = world.get(UNFIT).await;
    assert_eq!(reply.status.as_u16(), 403);
    let told = body(&reply);
    assert_eq!((&told["code"], &told["remediation_url"]), (&json!("not_blue"), &json!("https://help.example.org/blue")));
    let reply = world.get("STRANGER01").await;
    assert_eq!((reply.status.as_u16(), body(&reply)["code"].clone()), (403, json!("device_not_found")));
    assert_eq!(world.service.lookups().len(), 1, "the service sees fit devices alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_of_its_own_posture_is_taken_off() {
    let world = World::start(|text| text).await;
    let claims = |request: Outgoing| {
        request
            .header("x-posture-device", "OTHER00001")
            .header("x-posture-admin", "yes")
            .header("x-posture.data", "{}")
            .header("x.posture.groups", "Board")
            .header("x-machine+id", "1")
            .header("X-Posture-Decision", "allow")
            .header("x-machine-name", "root")
    };
    let reply = world.client(FIT).send(claims(get())).await.unwrap();
    assert_eq!(reply.status.as_u16(), 200);
    let seen = world.service.lookups().pop().unwrap();
    let all = |name: &str| seen.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(all("x-posture-device"), [FIT]);
    assert_eq!(all("x-posture-decision"), ["allow"]);
    let own = ["x-posture-admin", "x-machine-name", "x-posture.data", "x.posture.groups", "x-machine+id"];
    assert!(own.iter().all(|name| all(name).is_empty()), "{:?}", seen.headers);
    let reply = world.client(UNFIT).send(claims(get())).await.unwrap();
    assert_eq!(reply.status.as_u16(), 403);
    let underscored = world.client(FIT).speaking(Http::One).send(get().header("x_posture_device", "OTHER00001")).await;
    assert!(underscored.is_ok_and(|reply| reply.status.as_u16() == 400), "an underscore would read as a dash further on");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_passes_where_the_device_or_the_policy_is_not_clear() {
    let world =
        World::start(|text| text.replace("identity: subject.cn", "identity: san.uri\n                        prefix: \"urn:device:\""))
            .await;
    let with = |uri: &str| Leaf::new(FIT).usage(Some(ExtendedKeyUsagePurpose::ClientAuth)).uri(uri);
    for (leaf, status, code) in [
        (with("urn:device:C02XL0GYJGH5"), 200, Value::Null),
        (with("urn:other:C02XL0GYJGH5"), 403, json!("identifier_missing")),
        (with("urn:device:"), 403, json!("identifier_invalid")),
        (Leaf::new(FIT).usage(Some(ExtendedKeyUsagePurpose::ClientAuth)), 403, json!("identifier_missing")),
        (with("urn:device:C02XL0GYJGH5").uri("urn:device:OTHER00001"), 403, json!("identifier_ambiguous")),
    ] {
        let reply = world.client_with(&leaf).send(get()).await.unwrap();
        assert_eq!((reply.status.as_u16(), body(&reply)["code"].clone()), (status, code), "{leaf:?}");
    }
    assert!(Client::new(world.address, world.authority.pem(), None, Http::Two).send(get()).await.is_err(), "no certificate");

    for change in
        [("policy: staff-mac", "other: blue"), ("policy: staff-mac", "policy: nobody"), ("identity: subject.cn", "identity: subject.dn")]
    {
        let world = World::start(|text| text.replace(change.0, change.1)).await;
        let reply = world.get(FIT).await;
        assert_eq!((reply.status.as_u16(), body(&reply)["code"].clone()), (403, json!("policy_unknown")), "{change:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_passes_while_stepward_is_away_and_a_lock_holds_at_once() {
    let mut world = World::start(|text| text).await;
    assert_eq!(world.get(FIT).await.status.as_u16(), 200);
    e2e::process::run(&mut world.stepward.stepward(&["lock", "c02xl0gyjgh5", "--reason", "lost", "--config", "stepward.toml"]));
    let reply = world.get(FIT).await;
    assert_eq!((reply.status.as_u16(), body(&reply)["code"].clone()), (403, json!("device_locked")));
    assert_eq!(world.get("OTHER00001").await.status.as_u16(), 200);
    world.stepward.sidecar().kill();
    assert_eq!(world.get("OTHER00001").await.status.as_u16(), 503);
    world.stepward.restart_sidecar();
    until("the guard finds the sidecar again", Duration::from_secs(15), async || {
        (world.get("OTHER00001").await.status.as_u16() == 200).then_some(())
    })
    .await;
    assert_eq!(body(&world.get(FIT).await)["code"], json!("device_locked"), "a lock outlives the process");
    // Envoy writes its access log every ten seconds.
    world.guard.printed("\"reason\":\"device_locked\"", Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_known_by_the_key_that_step_ca_certified() {
    let attested = format!("{POLICY}trust = \"attested\"\n[store]\nbind_keys = true\n");
    let world = e2e::world::World::start_with(
        |ca, at| {
            add_acme(ca, "devices", Some("posture"));
            vec![Hook::new(ca.add_webhook("devices", "posture", at.webhook, &[]))]
        },
        |plan| plan.more = attested,
    )
    .await;
    let issued = world.maker.enrol(&world.ca, "devices", FIT).await.unwrap();
    // The same authority gives anybody a certificate with that name, over another key.
    let pretender = world.ca.credential(FIT);
    let (service, bundle) = (Fake::start(Guarded).await, world.ca.bundle());
    let by_key = |text: String| text.replace("identity: subject.cn", "identity: public_key").replace("identifier: serial", "");
    let (_guard, address) = start_guard(&world.stepward, &service, &world.ca.credential("localhost"), &bundle, by_key).await;
    let get = async |credential: &Credential| Client::new(address, &bundle, Some(credential), Http::Two).send(get()).await.unwrap();
    let reply = get(&issued).await;
    assert_eq!((reply.status.as_u16(), body(&reply)["served"].clone()), (200, json!(true)), "{reply:?}");
    assert_eq!(service.lookups().pop().unwrap().header("x-posture-device"), Some(FIT));
    let reply = get(&pretender).await;
    assert_eq!((reply.status.as_u16(), body(&reply)["code"].clone()), (403, json!("key_unknown")));
}

#[tokio::test(flavor = "multi_thread")]
async fn c6_connections_streams_and_headers_that_take_their_time_are_bounded() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start(|text| text.replace("connection_limit: 4096", "connection_limit: 50")).await;
    // Connections: fifty are held, and let go within seconds; then the device gets in.
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(tokio::net::TcpStream::connect(world.address).await.unwrap());
    }
    let closed = async |stream: &mut tokio::net::TcpStream| {
        matches!(tokio::time::timeout(Duration::ZERO, stream.read(&mut [0; 8])).await, Ok(Ok(0) | Err(_)))
    };
    for (least, within) in [(150, 2), (200, 6)] {
        until(&format!("{least} are closed"), Duration::from_secs(within), async || {
            let mut count = 0;
            for stream in &mut silent {
                count += usize::from(closed(stream).await);
            }
            (count >= least).then_some(())
        })
        .await;
    }
    assert_eq!(world.get(FIT).await.status.as_u16(), 200);
    // Header time: one that begins and does not go on is ended.
    let mut slow = world.client(FIT).speaking(Http::One).tls().await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: ").await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), slow.read_to_end(&mut answer)).await.expect("it is ended within seconds").ok();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
    // Headers: a hundred of them, and 32 KiB.
    let many = (0..120).fold(get(), |request, number| request.header(&format!("x-{number}"), "1"));
    let large = (0..40).fold(get(), |request, number| request.header(&format!("x-{number}"), &"1".repeat(1024)));
    for request in [many, large] {
        let reply = world.client(FIT).speaking(Http::One).send(request).await.unwrap();
        assert_eq!(reply.status.as_u16(), 431);
    }
    // Streams: what Envoy allows stands in its settings.
    let text = std::fs::read_to_string(root().join("envoy/guard.yaml")).unwrap();
    for line in ["max_concurrent_streams: 100", "max_heap_size_bytes: 1073741824", "name: envoy.overload_actions.stop_accepting_requests"] {
        assert!(text.contains(line), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_for_clients_is_no_device() {
    let world = World::start(|text| text).await;
    let reply = world.client_with(&Leaf::new(FIT).usage(None)).send(get()).await.unwrap();
    assert_eq!((reply.status.as_u16(), body(&reply)["code"].clone()), (403, json!("certificate_not_for_clients")));
    assert_eq!(world.get(FIT).await.status.as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn f6_lines_about_who_is_not_let_in_have_a_bound_and_a_fit_devices_come_always() {
    let mut world = World::start(|text| text).await;
    let stranger = world.client("STRANGER01");
    let begun = std::time::Instant::now();
    for _ in 0..400 {
        assert_eq!(stranger.send(get()).await.unwrap().status.as_u16(), 403);
    }
    assert_eq!(world.get(FIT).await.status.as_u16(), 200);
    world.guard.printed("\"decision\":\"allow\"", Duration::from_secs(20)).await;
    let lines = world.guard.log().matches("\"reason\":\"device_not_found\"").count();
    let most = 100 + 2 * (begun.elapsed().as_secs() as usize + 1);
    assert!((100..=most).contains(&lines), "{lines} of 400");
}

#[tokio::test(flavor = "multi_thread")]
async fn f1_a_guard_resumes_no_session() {
    let world = World::start(|text| text).await;
    let client = world.client(FIT);
    for _ in 0..3 {
        // A ticket would have come by the reply.
        assert_eq!(client.send(get()).await.unwrap().status.as_u16(), 200);
        let stream = client.tls().await.unwrap();
        assert_ne!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    }
}
