//! Tests of questions over TCP: who gets through the handshake, and what each client may ask.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::CheckRequest as Authorize;
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use proto::v1::posture_service_client::PostureServiceClient;
use proto::v1::{BatchCheckRequest, CheckRequest, LookupRequest, WatchRequest};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1alpha::ServerReflectionRequest;
use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;

use crate::clients::{Bounds, bounds};
use crate::queries::described;
use crate::served::{DEVICE, Folder, Served};

const CLIENTS: &str = r#"
[[query.client]]
names = ["dns:checks.example.org", "dns:all.example.org"]
roles = ["check"]

[[query.client]]
names = ["dns:looks.example.org"]
roles = ["lookup"]

[[query.client]]
names = ["uri:spiffe://example.org/watches", "dns:watches.example.org"]
roles = ["watch"]

[[query.client]]
names = ["dns:guards.example.org"]
roles = ["authorize"]

[[query.client]]
names = ["dns:all.example.org"]
roles = ["lookup", "watch", "authorize"]
"#;

/// An authority, and the PEM of its certificate.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// Certificate chain and key, PEM.
#[derive(Clone)]
pub(crate) struct Credential(pub(crate) String, pub(crate) String);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Credential {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Credential(params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    pub(crate) fn client(&self, name: &str) -> Credential {
        self.issue(name, |_| {})
    }

    pub(crate) fn server(&self) -> Credential {
        self.issue("localhost", |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])
    }
}

struct World {
    served: Served,
    address: SocketAddr,
    authority: Authority,
}

impl World {
    fn start() -> Self {
        Self::with("")
    }

    /// Starts a service with more in the configuration.
    fn with(more: &str) -> Self {
        let (folder, authority) = (Folder::new(), Authority::new());
        let server = authority.server();
        for (name, text) in [("tls/query.crt", &server.0), ("tls/query.key", &server.1), ("tls/clients.crt", &authority.pem)] {
            folder.write(name, text);
        }
        let text = folder.read("stepward.toml");
        let query = "[query]\nreflection = true\naddress = \"127.0.0.1:0\"\ncertificate = \"tls/query.crt\"\nprivate_key = \"tls/query.key\"\nclient_ca = \"tls/clients.crt\"\n";
        folder.write("stepward.toml", &format!("{text}\n[policy.all]\nproviders = [\"staff\"]\n{query}{CLIENTS}{more}"));
        let mut served = folder.serve();
        let address = served.printed("serving")["query"].as_str().unwrap().parse().unwrap();
        Self { served, address, authority }
    }

    /// Makes the handshake as far as the client sees it: with TLS 1.3 the server's answer to the certificate comes later.
    async fn tls(&self, credential: Option<&Credential>) -> std::io::Result<TlsStream<TcpStream>> {
        connect(self.address, &self.authority.pem, credential).await
    }

    async fn channel(&self, credential: &Credential) -> Result<Channel, tonic::transport::Error> {
        channel(self.address, &self.authority.pem, credential).await
    }

    /// Returns whether the service begins to speak.
    async fn admits(&self, credential: Option<&Credential>) -> bool {
        admits(self.address, &self.authority.pem, credential).await
    }

    /// Makes a lookup and returns its code; `None`: there was no answer of the service at all.
    async fn lookup(&self, credential: &Credential) -> Option<Code> {
        let mut client = PostureServiceClient::new(self.channel(credential).await.ok()?);
        match client.lookup(LookupRequest { identifier: DEVICE.to_owned(), ..LookupRequest::default() }).await {
            Ok(_) => Some(Code::Ok),
            Err(status) if std::error::Error::source(&status).is_some() => None,
            Err(status) => Some(status.code()),
        }
    }

    fn refusals(&self, reason: &str, count: u32) {
        self.served.counts(&format!("stepward_query_refusals_total{{reason=\"{reason}\"}} {count}"));
    }
}

/// Opens a channel to an address as this client.
pub(crate) async fn channel(address: SocketAddr, roots: &str, credential: &Credential) -> Result<Channel, tonic::transport::Error> {
    let (roots, credential) = (roots.to_owned(), credential.clone());
    let connector = tower::service_fn(move |_| {
        let (roots, credential) = (roots.clone(), credential.clone());
        async move { connect(address, &roots, Some(&credential)).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

/// Returns whether the service at an address begins to speak to a client.
pub(crate) async fn admits(address: SocketAddr, roots: &str, credential: Option<&Credential>) -> bool {
    let Ok(mut stream) = connect(address, roots, credential).await else { return false };
    matches!(stream.read(&mut [0]).await, Ok(1))
}

/// Makes the handshake as far as the client sees it.
pub(crate) async fn connect(address: SocketAddr, roots: &str, credential: Option<&Credential>) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut store = RootCertStore::empty();
    store.add(CertificateDer::from_pem_slice(roots.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_root_certificates(store);
    let mut config = match credential {
        None => config.with_no_client_auth(),
        Some(Credential(chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await
}

fn check() -> CheckRequest {
    CheckRequest { policy: "all".to_owned(), identifier: DEVICE.to_owned(), ..CheckRequest::default() }
}

pub(crate) fn code<T>(result: Result<T, tonic::Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// Makes every call that there is, in the order of the columns below.
async fn calls(channel: Channel) -> [Code; 6] {
    let mut posture = PostureServiceClient::new(channel.clone());
    [
        code(posture.check(check()).await),
        code(posture.batch_check(BatchCheckRequest { checks: vec![check()] }).await),
        code(posture.lookup(LookupRequest { identifier: DEVICE.to_owned(), ..LookupRequest::default() }).await),
        code(posture.watch(WatchRequest { checks: vec![check()] }).await),
        code(AuthorizationClient::new(channel.clone()).check(Authorize::default()).await),
        code(HealthClient::new(channel).check(HealthCheckRequest::default()).await),
    ]
}

#[tokio::test]
async fn nobody_gets_through_the_handshake_without_a_certificate_that_is_good_for_it() {
    let world = World::start();
    let name = "looks.example.org";
    let expired = world.authority.issue(name, |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let early = world.authority.issue(name, |params| params.not_before = date_time_ymd(2100, 1, 1));
    let server = world.authority.issue(name, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let other = Authority::new().client(name);
    for (what, credential) in [
        ("no certificate", None),
        ("of another authority", Some(&other)),
        ("expired", Some(&expired)),
        ("not valid yet", Some(&early)),
        ("for servers", Some(&server)),
    ] {
        assert!(!world.admits(credential).await, "{what}");
    }
    let mut plain = TcpStream::connect(world.address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    // The answer is an alert of TLS, and the end.
    plain.read_to_end(&mut Vec::new()).await.unwrap();
    world.refusals("handshake", 6);
    assert_eq!(world.lookup(&world.authority.client(name)).await, Some(Code::Ok));
}

#[tokio::test]
async fn a_client_makes_the_calls_of_its_roles_and_no_other() {
    use Code::{Ok, PermissionDenied as No};
    let mut world = World::start();
    for (name, expected) in [
        ("checks.example.org", [Ok, Ok, No, No, No, Ok]),
        ("looks.example.org", [No, No, Ok, No, No, Ok]),
        ("watches.example.org", [No, No, No, Ok, No, Ok]),
        ("guards.example.org", [No, No, No, No, Ok, Ok]),
        ("all.example.org", [Ok; 6]),
        ("stranger.example.org", [No; 6]),
    ] {
        let channel = world.channel(&world.authority.client(name)).await.unwrap();
        assert_eq!(calls(channel).await, expected, "{name}");
    }
    let by_uri = world.authority.issue("other.example.org", |params| {
        params.subject_alt_names.push(SanType::URI("spiffe://example.org/watches".try_into().unwrap()));
    });
    assert_eq!(calls(world.channel(&by_uri).await.unwrap()).await, [No, No, No, Ok, No, Ok]);
    let no_usage = world.authority.issue("all.example.org", |params| params.extended_key_usages.clear());
    assert_eq!(calls(world.channel(&no_usage).await.unwrap()).await, [No; 6]);
    for (reason, count) in [("role", 15 + 4), ("name", 6), ("usage", 6)] {
        world.refusals(reason, count);
    }

    let mut client = PostureServiceClient::new(world.channel(&world.authority.client("looks.example.org")).await.unwrap());
    let told = client.check(check()).await.unwrap_err();
    assert_eq!(told.message(), "this call needs the role `check`, and this client has lookup");
    let mut client = PostureServiceClient::new(world.channel(&world.authority.client("stranger.example.org")).await.unwrap());
    let told = client.check(check()).await.unwrap_err();
    let stranger = world.channel(&world.authority.client("stranger.example.org")).await.unwrap();
    assert_eq!(code(described(stranger).await), No);
    let known = world.channel(&world.authority.client("looks.example.org")).await.unwrap();
    assert_eq!(described(known).await.unwrap().len(), 4);
    assert!(told.message().contains("no [[query.client]] has a name") && told.message().contains("dns:stranger.example.org"), "{told:?}");
    assert_eq!(world.served.printed("a client over TCP was turned away")["level"], "WARN");
}

#[tokio::test]
async fn d11_an_answer_over_tcp_is_compressed_for_those_who_take_that_and_reflection_has_its_older_name() {
    let world = World::start();
    let credential = world.authority.client("checks.example.org");
    let plain = PostureServiceClient::new(world.channel(&credential).await.unwrap()).send_compressed(Gzip);
    let answer = plain.clone().check(check()).await.unwrap();
    assert_eq!(answer.metadata().get("grpc-encoding"), None);
    let compressed = plain.accept_compressed(Gzip).check(check()).await.unwrap();
    assert_eq!(compressed.metadata().get("grpc-encoding").unwrap(), "gzip");
    assert_eq!(answer.into_inner(), compressed.into_inner());

    let older = async |name: &str| {
        let channel = world.channel(&world.authority.client(name)).await.unwrap();
        code(ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::pending()).await)
    };
    assert_eq!([older("checks.example.org").await, older("stranger.example.org").await], [Code::Ok, Code::PermissionDenied]);
}

#[tokio::test]
async fn a_reload_takes_a_role_from_a_watch_that_is_open() {
    let world = World::start();
    let credential = world.authority.client("watches.example.org");
    let mut client = PostureServiceClient::new(world.channel(&credential).await.unwrap());
    let mut watching = client.watch(WatchRequest { checks: vec![check()] }).await.unwrap().into_inner();
    assert!(watching.message().await.unwrap().is_some());
    world.served.folder.change(
        "stepward.toml",
        "\"uri:spiffe://example.org/watches\", \"dns:watches.example.org\"",
        "\"dns:checks.example.org\"",
    );
    let ended = tokio::time::timeout(Duration::from_secs(20), watching.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied);
    assert_eq!(code(client.check(check()).await), Code::PermissionDenied);
    let other = world.channel(&world.authority.client("checks.example.org")).await.unwrap();
    assert_eq!(code(PostureServiceClient::new(other).watch(WatchRequest { checks: vec![check()] }).await), Code::Ok);
}

#[tokio::test]
async fn a_reload_takes_a_role_from_a_call_that_is_under_way() {
    let inventory = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = inventory.local_addr().unwrap();
    let world = World::with(&format!(
        r#"
[provider.slow]
type = "http"
base_url = "http://{address}"
path = "/{{identifier}}"
identifier = "/serial"
fields = {{ managed = "/managed" }}

[policy.slow]
providers = ["slow"]
"#
    ));
    let mut client = PostureServiceClient::new(world.channel(&world.authority.client("checks.example.org")).await.unwrap());
    let asked = CheckRequest { policy: "slow".to_owned(), ..check() };
    let answering = async {
        let (mut stream, _) = inventory.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        world.served.folder.change("stepward.toml", "\"dns:checks.example.org\", ", "");
        while !code(
            PostureServiceClient::new(world.channel(&world.authority.client("checks.example.org")).await.unwrap()).check(check()).await,
        )
        .eq(&Code::PermissionDenied)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let body = format!(r#"{{"serial":"{DEVICE}","managed":true}}"#);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream
    };
    let (answer, _stream) = tokio::join!(client.check(asked), answering);
    assert_eq!(code(answer), Code::PermissionDenied);
}

#[tokio::test]
async fn certificates_that_change_are_for_connections_from_then_on() {
    let world = World::start();
    let credential = world.authority.client("looks.example.org");
    let mut before = PostureServiceClient::new(world.channel(&credential).await.unwrap());
    let look = || LookupRequest { identifier: DEVICE.to_owned(), ..LookupRequest::default() };
    before.lookup(look()).await.unwrap();
    let shown = async || world.tls(Some(&credential)).await.unwrap().get_ref().1.peer_certificates().unwrap()[0].clone();
    let first = shown().await;

    // A key alone does not fit the certificate, and nothing changes.
    let next = world.authority.server();
    world.served.folder.write("tls/query.key", &next.1);
    world.served.counts("stepward_config_reload_failures_total{subject=\"certificates\"} 1");
    assert_eq!(shown().await, first);
    world.served.folder.write("tls/query.crt", &next.0);
    let renewed = CertificateDer::from_pem_slice(next.0.as_bytes()).unwrap();
    while shown().await != renewed {
        tokio::task::yield_now().await;
    }
    assert!(!world.served.page("/readyz?verbose").1.contains("not_applied"));

    let other = Authority::new();
    world.served.folder.write("tls/clients.crt", &other.pem);
    while world.lookup(&other.client("looks.example.org")).await != Some(Code::Ok) {
        tokio::task::yield_now().await;
    }
    assert!(!world.admits(Some(&credential)).await);
    before.lookup(look()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_closes_the_door_and_ends_a_watch() {
    let mut world = World::start();
    let credential = world.authority.client("all.example.org");
    let mut client = PostureServiceClient::new(world.channel(&credential).await.unwrap());
    let mut watching = client.watch(WatchRequest { checks: vec![check()] }).await.unwrap().into_inner();
    assert!(watching.message().await.unwrap().is_some());
    world.served.signal(Signal::SIGTERM);
    let (status, took) = world.served.ended();
    assert!(status.success() && took < Duration::from_millis(2500), "{status} {took:?}");
    assert_eq!(watching.message().await.unwrap(), None);
    assert_eq!(TcpStream::connect(world.address).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_not_held_by_streams_that_nobody_reads() {
    let mut world = World::start();
    let channel = world.channel(&world.authority.client("all.example.org")).await.unwrap();
    // So many descriptions are asked for that there is no room for them on the way.
    let asked = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol("stepward.v1.PostureService".to_owned())),
    };
    let asked = tokio_stream::StreamExt::chain(tokio_stream::iter(vec![asked; 2000]), tokio_stream::pending());
    let _described = ServerReflectionClient::new(channel.clone()).server_reflection_info(asked).await.unwrap();
    let _watched = HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await.unwrap();
    let socket = world.served.channel("query.sock", None).await.unwrap();
    let _of_socket = HealthClient::new(socket).watch(HealthCheckRequest::default()).await.unwrap();
    world.served.signal(Signal::SIGTERM);
    let (status, took) = world.served.ended();
    assert!(status.success() && took < Duration::from_millis(2500), "{status} {took:?}");
}

#[tokio::test]
async fn b_a_connections_windows_streams_and_headers_are_bounded_over_tcp_too() {
    let world = World::start();
    let mut stream = world.tls(Some(&world.authority.client("checks.example.org"))).await.unwrap();
    assert_eq!(bounds(&mut stream).await, Bounds { calls: 64, headers: 16 << 10, of_call: 256 << 10, of_all: 256 << 10 });
}

#[tokio::test]
async fn those_who_say_nothing_are_let_go_and_keep_nobody_out_for_long() {
    let world = World::start();
    let mut silent = Vec::new();
    for _ in 0..512 {
        silent.push(TcpStream::connect(world.address).await.unwrap());
    }
    assert_eq!(world.lookup(&world.authority.client("looks.example.org")).await, Some(Code::Ok));
    world.refusals("gave_way", 1);
    world.refusals("timeout", 511);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_more_than_there_may_be_is_closed() {
    let world = World::start();
    let [one, other] = ["looks.example.org", "all.example.org"].map(|name| world.authority.client(name));
    let mut open = Vec::new();
    for number in 0..256 {
        let credential = if number < 192 { &one } else { &other };
        let mut client = PostureServiceClient::new(world.channel(credential).await.unwrap());
        client.lookup(LookupRequest { identifier: DEVICE.to_owned(), ..LookupRequest::default() }).await.unwrap();
        open.push(client);
        if number == 191 {
            assert!(!world.admits(Some(&one)).await, "a quarter is for other clients");
            world.refusals("too_many", 1);
        }
    }
    assert!(!world.admits(Some(&other)).await);
    world.refusals("too_many", 2);
    open.pop();
    while !world.admits(Some(&other)).await {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn b3_silent_connections_do_not_keep_a_client_waiting() {
    let world = World::start();
    let credential = world.authority.client("looks.example.org");
    let mut silent = Vec::new();
    for _ in 0..800 {
        silent.push(TcpStream::connect(world.address).await.unwrap());
    }
    // The limit is less than the time that one silent connection has: nobody waits for those.
    let answer = tokio::time::timeout(Duration::from_secs(4), world.lookup(&credential)).await;
    assert_eq!(answer, Ok(Some(Code::Ok)));
    // The oldest had to go, and the service says how many.
    assert_eq!(tokio::time::timeout(Duration::from_secs(4), silent[0].read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    let (_, text) = world.served.page("/metrics");
    let gone = text.lines().find_map(|line| line.strip_prefix("stepward_query_refusals_total{reason=\"gave_way\"} ")).unwrap();
    assert!(gone.parse::<u32>().unwrap() >= 800 - 512, "{gone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_connections_that_send_a_byte_end_no_handshake_of_a_client() {
    let world = World::start();
    let credential = world.authority.client("looks.example.org");
    // The answers of this client are on the way for as long as it takes.
    let (far, answers) = far_away(world.address).await;
    let client = tokio::spawn({
        let roots = world.authority.pem.clone();
        async move { connect(far, &roots, Some(&credential)).await?.read(&mut [0]).await }
    });
    // The client has sent its hello by then.
    answers.begun.await.unwrap();
    let mut strangers = Vec::new();
    for _ in 0..800 {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(&[0x16]).await.unwrap();
        strangers.push(stream);
    }
    world.refusals("gave_way", 800 - 512);
    answers.may_arrive.send(()).unwrap();
    assert_eq!(client.await.unwrap().unwrap(), 1, "the service speaks to it");
}

/// Channels of [`far_away`]: whether the client has begun, and whether answers may arrive.
struct Answers {
    begun: oneshot::Receiver<()>,
    may_arrive: oneshot::Sender<()>,
}

/// Opens an address by which the service is reached, and from which nothing comes back until it may.
async fn far_away(address: SocketAddr) -> (SocketAddr, Answers) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = listener.local_addr().unwrap();
    let (begins, begun) = oneshot::channel();
    let (may_arrive, arrives) = oneshot::channel();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut service = TcpStream::connect(address).await.unwrap();
        let (mut from_client, mut to_client) = client.split();
        let (mut from_service, mut to_service) = service.split();
        let back = async {
            let mut first = [0; 1];
            from_service.read_exact(&mut first).await.unwrap();
            begins.send(()).unwrap();
            arrives.await.unwrap();
            to_client.write_all(&first).await.unwrap();
            let _ = tokio::io::copy(&mut from_service, &mut to_client).await;
        };
        let _ = tokio::join!(tokio::io::copy(&mut from_client, &mut to_service), back);
    });
    (far, Answers { begun, may_arrive })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_connections_that_say_nothing_after_the_handshake_keep_no_client_out() {
    let world = World::start();
    let [one, other, third] = ["looks.example.org", "all.example.org", "watches.example.org"].map(|name| world.authority.client(name));
    let mut served = PostureServiceClient::new(world.channel(&one).await.unwrap());
    let look = || LookupRequest { identifier: DEVICE.to_owned(), ..LookupRequest::default() };
    served.lookup(look()).await.unwrap();
    // Each connection has five seconds to say something, and gives way to those that come meanwhile.
    let mut silent = Vec::new();
    for _ in 0..6 {
        let connecting = (0..50).map(async |number| {
            let mut stream = world.tls(Some(if number % 4 == 0 { &other } else { &one })).await.unwrap();
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 1, "{number}");
            stream
        });
        silent.extend(futures::future::join_all(connecting).await);
    }
    let mut watching = PostureServiceClient::new(world.channel(&third).await.unwrap());
    assert!(watching.watch(WatchRequest { checks: vec![check()] }).await.unwrap().into_inner().message().await.unwrap().is_some());
    served.lookup(look()).await.unwrap();
    let (_, text) = world.served.page("/metrics");
    assert!(!text.contains("stepward_query_refusals_total{reason=\"too_many\"}"), "{text}");
    assert!(text.contains("stepward_query_refusals_total{reason=\"gave_way\"}"), "there were as many as there may be: {text}");
}
