//! Tests of filters over TCP: which Envoys are told the keys, and what everybody else can take.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proto::v1::filter_message::Message as FromFilter;
use proto::v1::posture_service_client::PostureServiceClient;
use proto::v1::sidecar_message::Message as ToFilter;
use proto::v1::{FilterHello, FilterMessage, LookupRequest, Verdict};
use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::clients::{Bounds, bounds};
use crate::served::{DEVICE, Filter, Folder, Served};
use crate::tcp::{Authority, Credential, admits, channel, code, connect};

const ENVOY: &str = "envoy.example.org";
const OTHER: &str = "envoy2.example.org";
const QUERIES: &str = "queries.example.org";

/// A service that takes filters and questions over TCP; one authority issues for the clients of both.
struct World {
    served: Served,
    filters: SocketAddr,
    queries: SocketAddr,
    authority: Authority,
}

impl World {
    fn start() -> Self {
        let (folder, authority) = (Folder::new(), Authority::new());
        let server = authority.server();
        for (name, text) in [("tls/tcp.crt", &server.0), ("tls/tcp.key", &server.1), ("tls/clients.crt", &authority.pem)] {
            folder.write(name, text);
        }
        let files =
            "address = \"127.0.0.1:0\"\ncertificate = \"tls/tcp.crt\"\nprivate_key = \"tls/tcp.key\"\nclient_ca = \"tls/clients.crt\"";
        let text = folder.read("stepward.toml");
        let more = format!(
            "[filter]\n{files}\nnames = [\"dns:{ENVOY}\", \"dns:{OTHER}\"]\n[query]\n{files}\n[[query.client]]\nnames = [\"dns:{QUERIES}\"]\nroles = [\"check\", \"lookup\", \"watch\", \"authorize\"]\n"
        );
        folder.write("stepward.toml", &format!("{text}\n{more}"));
        let mut served = folder.serve();
        let line = served.printed("serving");
        let [filters, queries] = ["filter", "query"].map(|name| line[name].as_str().unwrap().parse().unwrap());
        Self { served, filters, queries, authority }
    }

    async fn attach(&self, at: SocketAddr, credential: &Credential) -> Result<Filter, tonic::Status> {
        let channel = channel(at, &self.authority.pem, credential).await.unwrap();
        Filter::try_attach(channel, &self.served.folder).await
    }

    /// Attaches as an Envoy that may, and takes the keys.
    async fn attached(&self) -> Filter {
        let mut filter = self.attach(self.filters, &self.authority.client(ENVOY)).await.unwrap();
        assert!(matches!(filter.next().await, Some(ToFilter::Hello(hello)) if !hello.name.is_empty()));
        assert!(matches!(filter.next().await, Some(ToFilter::Webhooks(set)) if !set.webhooks[0].secrets.is_empty()));
        let hello = FilterMessage { message: Some(FromFilter::Hello(FilterHello::default())) };
        filter.questions.send(hello).unwrap();
        filter
    }

    fn refusals(&self, reason: &str, count: u32) {
        self.served.counts(&format!("stepward_filter_refusals_total{{reason=\"{reason}\"}} {count}"));
    }
}

#[tokio::test]
async fn c_an_envoy_by_name_is_told_the_keys_and_nobody_else_is() {
    let mut world = World::start();
    let mut filter = world.attached().await;
    assert_eq!(filter.ask(DEVICE).await.verdict(), Verdict::Allow);
    let no_usage = world.authority.issue(ENVOY, |params| params.extended_key_usages.clear());
    for (what, credential) in [
        ("a client that may ask everything", world.authority.client(QUERIES)),
        ("a stranger of the same authority", world.authority.client("stranger.example.org")),
        ("a certificate that is not for clients", no_usage),
    ] {
        let status = world.attach(world.filters, &credential).await.map(|_| ()).unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{what}: {status}");
        let asked = channel(world.filters, &world.authority.pem, &credential).await.unwrap();
        assert_eq!(code(HealthClient::new(asked).check(HealthCheckRequest::default()).await), Code::PermissionDenied, "{what}");
    }
    world.refusals("name", 4);
    world.refusals("usage", 2);
    let told = world.served.printed("an Envoy over TCP was turned away");
    assert!(told["why"].as_str().unwrap().starts_with("`names` in [filter] has no name of this certificate: "), "{told}");
    // The role is good for nothing at the other listener, nor are its clients' calls taken here.
    for name in [ENVOY, QUERIES] {
        let status = world.attach(world.queries, &world.authority.client(name)).await.map(|_| ()).unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{name}");
        let asked = channel(world.filters, &world.authority.pem, &world.authority.client(name)).await.unwrap();
        let mut client = PostureServiceClient::new(asked);
        let looked = client.lookup(LookupRequest { identifier: DEVICE.to_owned(), ..LookupRequest::default() });
        assert_eq!(code(looked.await), Code::Unimplemented, "{name}");
    }
    let said = world.served.printed("filter attached");
    assert!(said["envoy"].as_str().unwrap().ends_with("dns:envoy.example.org)"), "{said}");
}

#[tokio::test]
async fn c_nobody_gets_through_the_handshake_to_the_keys_without_a_certificate_of_the_authority() {
    let world = World::start();
    let server = world.authority.issue(ENVOY, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let foreign = Authority::new().client(ENVOY);
    for (what, credential) in [("none", None), ("of another authority", Some(&foreign)), ("for servers", Some(&server))] {
        assert!(!admits(world.filters, &world.authority.pem, credential).await, "{what}");
    }
    world.refusals("handshake", 3);
    assert!(admits(world.filters, &world.authority.pem, Some(&world.authority.client(ENVOY))).await);
}

#[tokio::test]
async fn c_a_reload_takes_the_role_from_an_envoy_that_is_attached_and_tells_it_no_key_any_more() {
    let world = World::start();
    let mut filter = world.attached().await;
    let mut other = world.attach(world.filters, &world.authority.client(OTHER)).await.unwrap();
    assert!(matches!(other.next().await, Some(ToFilter::Hello(_))));
    assert!(matches!(other.next().await, Some(ToFilter::Webhooks(_))));
    world.served.folder.change("stepward.toml", "\"dns:envoy.example.org\", ", "");
    assert_eq!(filter.next_result().await.unwrap_err().code(), Code::PermissionDenied);
    let again = world.attach(world.filters, &world.authority.client(ENVOY)).await.map(|_| ()).unwrap_err();
    assert_eq!(again.code(), Code::PermissionDenied);
    // The Envoy that has kept its role is told what the reload changed.
    assert!(matches!(other.next().await, Some(ToFilter::Webhooks(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_told_to_filters_and_to_health_checks_and_closes_the_port_while_answers_are_outstanding() {
    let mut world = World::start();
    let mut filter = world.attached().await;
    let asked = channel(world.filters, &world.authority.pem, &world.authority.client(ENVOY)).await.unwrap();
    let service = || HealthCheckRequest { service: "stepward.v1.FilterService".to_owned() };
    let mut watched = HealthClient::new(asked).watch(service()).await.unwrap().into_inner();
    let mut health = async || watched.message().await.unwrap().map(|health| health.status());
    assert_eq!(health().await, Some(ServingStatus::Serving));
    world.served.signal(Signal::SIGTERM);
    assert_eq!(health().await, Some(ServingStatus::NotServing));
    assert!(matches!(filter.next().await, Some(ToFilter::Drain(_))));
    // What was on its way is still answered, and after that the stream ends.
    assert_eq!(filter.ask(DEVICE).await.verdict(), Verdict::Allow);
    let refused = TcpStream::connect(world.filters).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(filter.next().await.is_none());
    let (status, took) = world.served.ended();
    assert!(status.success() && took < Duration::from_millis(2500), "{status} {took:?}");
}

#[tokio::test]
async fn b_a_connections_windows_streams_and_headers_are_bounded_for_filters_over_tcp() {
    let world = World::start();
    let mut stream = connect(world.filters, &world.authority.pem, Some(&world.authority.client(ENVOY))).await.unwrap();
    assert_eq!(bounds(&mut stream).await, Bounds { calls: 64, headers: 16 << 10, of_call: 64 << 10, of_all: (64 << 10) - 1 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b_envoys_of_one_name_leave_a_quarter_of_the_connections_to_those_of_another() {
    let world = World::start();
    let [one, other] = [ENVOY, OTHER].map(|name| world.authority.client(name));
    let mut open = Vec::new();
    for number in 0..320 {
        let mut filter = world.attach(world.filters, if number < 240 { &one } else { &other }).await.unwrap();
        assert!(matches!(filter.next().await, Some(ToFilter::Hello(_))), "{number}");
        open.push(filter);
        if number == 239 {
            assert!(!admits(world.filters, &world.authority.pem, Some(&one)).await, "a quarter is for others");
            world.refusals("too_many", 1);
        }
    }
    assert!(!admits(world.filters, &world.authority.pem, Some(&other)).await);
    world.refusals("too_many", 2);
    // Strangers of the same authority have places of their own, and take none of these.
    assert!(admits(world.filters, &world.authority.pem, Some(&world.authority.client("stranger.example.org"))).await);
}

#[tokio::test]
async fn b_silent_connections_keep_no_envoy_waiting_and_end_after_five_seconds() {
    let world = World::start();
    let mut silent = Vec::new();
    for _ in 0..520 {
        silent.push(TcpStream::connect(world.filters).await.unwrap());
    }
    let started = Instant::now();
    world.attached().await;
    let waited = started.elapsed();
    // Questions have handshakes of their own.
    assert!(admits(world.queries, &world.authority.pem, Some(&world.authority.client(QUERIES))).await);
    for stream in &mut silent {
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    }
    // The last of them had all of its time, however busy the machine is.
    assert!(started.elapsed() > waited && started.elapsed() > Duration::from_secs(4), "{:?}", started.elapsed());
    let ended = Instant::now();
    loop {
        let (_, page) = world.served.page("/metrics");
        let count = |reason| {
            let start = format!("stepward_filter_refusals_total{{reason=\"{reason}\"}} ");
            page.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |count| count.parse::<usize>().unwrap())
        };
        // A connection is counted a moment after it is closed.
        if count("gave_way") + count("timeout") == silent.len() {
            assert!(count("timeout") >= 500, "{page}");
            return;
        }
        assert!(ended.elapsed() < Duration::from_secs(20), "{page}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
