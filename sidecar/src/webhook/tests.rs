use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use inventory::{Answer as Found, Unavailable};
use posture::credential::Credentials;
use posture::identity::{IdentifierKind, Identity, Source as IdentitySource};
use posture::outcome::Denial;
use posture::record::Record as Device;
use posture::secret::Secret;
use posture::time::Window;
use posture::verify::SigningKeys;
use posture::webhook::Kind;
use proto::v1::filter_service_client::FilterServiceClient;
use proto::v1::{ClockSkew, Event, Events, FilterHello, Replies, Took};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Notify;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Endpoint;

use super::*;
use crate::config;
use crate::pages::Status as Readiness;
use crate::runtime::Source;
use crate::server::Sockets;
use engine::metrics::Metrics;
use engine::provider::scripted::Scripted;
use engine::provider::{Provider, ProviderSettings};
use engine::webhooks::{Attestation, Material, Materials, Settings};
use inventory::file;

const ID: &str = "11111111-2222-4333-8444-555555555555";

/// A configuration that a test changes while the service runs.
#[derive(Clone, Debug)]
struct Changing {
    config: Arc<Mutex<config::Config>>,
    secret: Arc<Mutex<Vec<u8>>>,
    token: Arc<Mutex<Option<&'static str>>>,
}

impl Source for Changing {
    fn config(&self) -> Result<config::Config, String> {
        Ok(self.config.lock().unwrap().clone())
    }

    fn materials(&self, config: &config::Config) -> Result<Materials, String> {
        let secret = self.secret.lock().unwrap().clone();
        if secret.is_empty() {
            return Err("the secret is empty".to_owned());
        }
        let tokens = self.token.lock().unwrap().iter().map(|token| Secret::new(token.as_bytes().to_vec())).collect::<Vec<_>>();
        let credentials = || Credentials::new(tokens.iter().map(Credentials::bearer).collect());
        let secrets = || secret.split(|byte| *byte == b',').map(|secret| Secret::new(secret.to_vec())).collect();
        let webhook = |_| Material { secrets: secrets(), credentials: credentials() };
        Ok(Materials { webhooks: config.webhooks.iter().map(webhook).collect(), ..Materials::default() })
    }

    fn store(&self, config: &config::Config) -> Result<store::Settings, String> {
        Ok(config.store.clone())
    }

    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// A running service on sockets of its own.
struct Service {
    runtime: Arc<Runtime>,
    sockets: PathBuf,
    config: Arc<Mutex<config::Config>>,
    secret: Arc<Mutex<Vec<u8>>>,
    token: Arc<Mutex<Option<&'static str>>>,
    drain: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
    folder: tempfile::TempDir,
}

impl Service {
    async fn start(kind: Kind, provider: Scripted) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sockets = folder.path().join("run");
        let webhook = Settings {
            id: ID.to_owned(),
            name: None,
            table: 0,
            kind,
            identifier: IdentifierKind::Serial,
            source: IdentitySource::Attested,
            attestation: vec![Attestation::Apple],
            secrets: Vec::new(),
            callers: Callers::Named(vec!["dns:ca.example.org".parse().unwrap(), "dns:other.example.org".parse().unwrap()]),
            bearer: Vec::new(),
            basic: Vec::new(),
            unsigned: false,
            window: Window::default(),
            deadline: Duration::from_millis(3500),
            body_limit: 65_536,
            mode: None,
            providers: vec!["fake".to_owned()],
            policy: None,
            enforcement: engine::plan::Enforcement::Enforce,
        };
        let config = config::Config {
            placeholders: inventory::Placeholders::default(),
            listen: config::Listen {
                sockets: sockets.clone(),
                admin: ([127, 0, 0, 1], 0).into(),
                role_folders: false,
                group: None,
                groups: BTreeMap::new(),
                uids: BTreeMap::new(),
            },
            envoy: config::Envoy {
                public_address: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
                webhook_address: ([127, 0, 0, 1], 0).into(),
                stats_address: None,
                certificate: PathBuf::new(),
                private_key: PathBuf::new(),
                client_ca: None,
                wasm: PathBuf::new(),
                sidecars: None,
            },
            query: config::Query::default(),
            filter: None,
            webhooks: vec![webhook],
            // The provider is open already, so its settings are not looked at.
            providers: BTreeMap::from([(
                "fake".to_owned(),
                ProviderSettings::File(file::Settings {
                    path: PathBuf::new(),
                    format: file::Format::Json,
                    identifier: IdentifierKind::Serial,
                    identifier_column: None,
                    placeholders: inventory::Placeholders::default(),
                    max_shrink: 0.0,
                }),
            )]),
            policies: BTreeMap::new(),
            replay: engine::replay::Replay { max_entries: 100_000, max_bytes: 64 << 20, shared: false },
            log: config::Log { level: "info".to_owned(), json: None },
            store: store::Settings::none(),
            store_password: None,
        };
        let secret = Arc::new(Mutex::new(b"secret".to_vec()));
        let config = Arc::new(Mutex::new(config));
        let token = Arc::default();
        let source = Changing { config: Arc::clone(&config), secret: Arc::clone(&secret), token: Arc::clone(&token) };
        let providers = BTreeMap::from([(Arc::from("fake"), Arc::new(provider) as Arc<dyn Provider>)]);
        let runtime = Arc::new(Runtime::start_with(Box::new(source), Arc::new(Metrics::default()), &providers).unwrap());
        let listening = Sockets::bind(&runtime.config().listen, Vec::new()).await.unwrap();
        let (drain, draining) = watch::channel(false);
        let serving = tokio::spawn(listening.serve(Arc::clone(&runtime), Arc::new(Readiness::default()), draining));
        Self { runtime, sockets, config, secret, token, drain, serving, folder }
    }

    async fn attach(&self) -> Filter {
        let address = format!("unix://{}", self.sockets.join("filter.sock").display());
        let channel = Endpoint::from_shared(address).unwrap().connect().await.unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut client = FilterServiceClient::new(channel);
        let answers = client.attach(UnboundedReceiverStream::new(receiver)).await.unwrap().into_inner();
        let mut filter = Filter { sender, answers, sequence: 0, certificate: certificate("ca.example.org") };
        assert!(matches!(filter.next().await, Some(ToFilter::Hello(_))));
        filter
    }
}

/// Stream of an Envoy over TCP that says nothing.
type OverTcp = Attached<tokio_stream::Pending<Result<FilterMessage, Status>>>;

/// Returns the messages of a stream over TCP that lasts so long.
fn far(service: &Service, lasts: Duration) -> OverTcp {
    let filters = Filters::new(Arc::clone(&service.runtime), service.drain.subscribe());
    let peer = Peer::from_der(&certificate("envoy.example.org")).unwrap();
    let guest = Arc::new(Guest { peer, address: ([127, 0, 0, 1], 1).into() });
    let far = Far { until: Box::pin(tokio::time::sleep(lasts)), guest };
    Attached::new(&filters, tokio_stream::pending(), Holder::Named("dns:envoy.example.org".into()), Some(far))
}

/// Lets these Envoys attach over TCP.
fn let_in(service: &Service, names: &[&str]) {
    let path = |name: &str| service.folder.path().join(name);
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    std::fs::write(path("own.crt"), own).unwrap();
    std::fs::write(path("own.key"), key.serialize_pem()).unwrap();
    let names = Callers::Named(names.iter().map(|name| name.parse().unwrap()).collect());
    let clients = vec![config::Client { names, roles: vec![Role::Filter] }];
    let (certificate, private_key, client_ca) = (path("own.crt"), path("own.key"), path("own.crt"));
    let tcp = config::Tcp { address: ([127, 0, 0, 1], 0).into(), certificate, private_key, client_ca, clients };
    service.config.lock().unwrap().filter = Some(tcp);
    let wrong: Vec<_> = service.runtime.reload(&[]).into_iter().filter(|reload| reload.outcome.is_err() && !reload.waits).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_over_tcp_drains_in_its_time_so_that_the_next_one_may_be_elsewhere() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let_in(&service, &["dns:envoy.example.org"]);
    for _ in 0..100 {
        let life = life();
        assert!(life >= STREAM / 2 && life <= STREAM, "{life:?}");
    }
    let started = tokio::time::Instant::now();
    let mut stream = far(&service, Duration::from_secs(400));
    let mut said = Vec::new();
    while let Some(message) = stream.next().await {
        said.push((message.unwrap().message.unwrap(), started.elapsed()));
    }
    let [(ToFilter::Hello(hello), _), (ToFilter::Webhooks(_), at), (ToFilter::Drain(_), drained)] = &said[..] else { panic!("{said:?}") };
    assert!(!hello.name.is_empty());
    assert!(*at < Duration::from_secs(1) && drained.as_secs() == 400, "{at:?} {drained:?}");
    assert!(started.elapsed() - *drained < Duration::from_secs(1));
}

#[tokio::test]
async fn c_an_envoy_over_tcp_that_has_no_role_or_loses_it_is_told_no_key() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let denied = async |stream: &mut OverTcp| stream.next().await.unwrap().unwrap_err().code();
    let keys = |message: Option<Result<SidecarMessage, Status>>| matches!(message.unwrap().unwrap().message, Some(ToFilter::Webhooks(_)));
    let mut early = far(&service, STREAM);
    assert!(matches!(early.next().await.unwrap().unwrap().message, Some(ToFilter::Hello(_))));
    assert_eq!(denied(&mut early).await, tonic::Code::PermissionDenied, "without [filter] nobody has the role");
    assert!(early.next().await.is_none());

    let_in(&service, &["dns:envoy.example.org"]);
    let mut stream = far(&service, STREAM);
    assert!(matches!(stream.next().await.unwrap().unwrap().message, Some(ToFilter::Hello(_))));
    assert!(keys(stream.next().await));
    let_in(&service, &["dns:envoy.example.org", "dns:other.example.org"]);
    assert!(keys(stream.next().await), "the role was kept");
    let_in(&service, &["dns:other.example.org"]);
    assert_eq!(denied(&mut stream).await, tonic::Code::PermissionDenied);
    assert!(stream.next().await.is_none());
}

/// Filter at the other end of a stream.
struct Filter {
    sender: mpsc::UnboundedSender<FilterMessage>,
    answers: Streaming<SidecarMessage>,
    sequence: u64,
    certificate: Vec<u8>,
}

impl Filter {
    async fn next(&mut self) -> Option<ToFilter> {
        let next = tokio::time::timeout(Duration::from_secs(60), self.answers.message()).await.unwrap();
        next.unwrap().map(|message| message.message.unwrap())
    }

    async fn keys(&mut self) -> WebhookSet {
        match self.next().await {
            Some(ToFilter::Webhooks(set)) => set,
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&mut self) -> Answer {
        match self.next().await {
            Some(ToFilter::Answer(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, question: Question) {
        self.sender.send(FilterMessage { message: Some(FromFilter::Question(question)) }).unwrap();
    }

    fn ask(&mut self, body: &str) {
        let question = self.question(body);
        self.send(question);
    }

    fn question(&mut self, body: &str) -> Question {
        self.sequence += 1;
        Question {
            sequence: self.sequence,
            webhook_id: ID.to_owned(),
            signature: sign(b"secret", body),
            body: body.to_owned().into(),
            peer_certificate: self.certificate.clone(),
            ..Question::default()
        }
    }
}

fn sign(secret: &[u8], body: &str) -> Vec<u8> {
    SigningKeys::new(&[Secret::new(secret.to_vec())]).sign(body.as_bytes()).unwrap().as_bytes().to_vec()
}

fn certificate(name: &str) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn body(device: &str) -> String {
    let timestamp = OffsetDateTime::from_unix_timestamp_nanos(clock::now().as_nanos().into()).unwrap();
    let timestamp = timestamp.format(&Rfc3339).unwrap();
    format!(r#"{{"timestamp":"{timestamp}","x509CertificateRequest":{{}},"attestationData":{{"permanentIdentifier":"{device}"}}}}"#)
}

fn found() -> Found {
    Found::Found(Arc::new(Device::of_data(r#"{"user":"alice"}"#.to_owned())))
}

/// Makes a provider that knows C02, and gives for other identifiers the answer that they name.
fn inventory() -> Scripted {
    Scripted::new(|device| async move {
        match device.normal() {
            "C02" => found(),
            "TWICE" => Found::Ambiguous,
            "AWAY" => Found::Unavailable(Unavailable::NotLoaded),
            "ODD" => Found::InvalidIdentifier,
            "PANIC" => panic!("asked to"),
            "LATE PANIC" => {
                tokio::task::yield_now().await;
                panic!("asked to")
            }
            _ => Found::NotFound,
        }
    })
}

/// Makes a provider that tells when it is asked, and finds the device once the test lets it.
fn gated() -> (Scripted, Arc<Notify>, Arc<Notify>) {
    let (go, asked) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (gate, began) = (Arc::clone(&go), Arc::clone(&asked));
    let provider = Scripted::new(move |_| {
        let (gate, began) = (Arc::clone(&gate), Arc::clone(&began));
        async move {
            began.notify_one();
            gate.notified().await;
            found()
        }
    });
    (provider, go, asked)
}

fn shown(answer: &Answer) -> String {
    match answer.verdict() {
        Verdict::Allow => String::from_utf8(answer.data.to_vec()).unwrap(),
        Verdict::Deny => format!("deny {}", answer.code),
        Verdict::Refuse => format!("refuse {}", answer.code),
        Verdict::Unspecified => "nothing".to_owned(),
    }
}

#[tokio::test]
async fn every_question_gets_its_answer() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let mut filter = service.attach().await;
    let set = filter.keys().await;
    assert_eq!(set.webhooks.len(), 1);
    assert_eq!(set.webhooks[0].secrets, [b"secret"]);
    assert_eq!(set.webhooks[0].callers, ["dns:ca.example.org", "dns:other.example.org"]);
    for (device, expected) in [
        ("c02", r#"{"user":"alice"}"#),
        ("stranger", "deny device_not_found"),
        ("odd", "deny device_not_found"),
        ("twice", "deny device_ambiguous"),
        ("away", "refuse provider_unavailable"),
        ("", "deny identifier_invalid"),
        ("panic", "refuse internal"),
        ("late panic", "refuse internal"),
        ("c02", r#"{"user":"alice"}"#),
    ] {
        let question = filter.question(&body(device));
        let binding = Signature::from_bytes(&question.signature).unwrap().binding(ID);
        filter.send(question);
        let answer = filter.answer().await;
        assert_eq!(shown(&answer), expected, "{device}");
        assert_eq!(answer.sequence, filter.sequence);
        assert_eq!(answer.binding, binding);
    }
}

#[tokio::test]
async fn d5_a_placeholder_is_no_device_whoever_states_it_and_nobody_is_asked_by_it() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use posture::identity::Field;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let provider = Scripted::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { found() }
    });
    let service = Service::start(Kind::Enriching, provider).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    let stated = |text: &str| {
        let certified = STANDARD.encode(named(text));
        let plain = body(text)
            .replace(r#""x509CertificateRequest":{}"#, &format!(r#""x509CertificateRequest":{{"subject":{{"commonName":"{text}"}}}}"#));
        plain.replace(
            r#"{"timestamp""#,
            &format!(r#"{{"x5cCertificate":{{"raw":"{certified}"}},"authorizationPrincipal":"{text}","timestamp""#),
        )
    };
    let name = Field::SubjectCommonName;
    let sources = [IdentitySource::Attested, IdentitySource::Claimed(name), IdentitySource::Certificate(name), IdentitySource::Principal];
    for source in sources {
        service.config.lock().unwrap().webhooks[0].source = source;
        assert!(service.runtime.reload(&[]).iter().all(|reload| reload.outcome.is_ok()));
        filter.keys().await;
        for text in ["Default string", "To be filled by O.E.M.", "0", "00000000", "NONE"] {
            filter.ask(&stated(text));
            assert_eq!(shown(&filter.answer().await), "deny identifier_missing", "{text} by {source:?}");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 0);
    }
    // A list of one's own takes effect with a reload.
    service.config.lock().unwrap().placeholders = inventory::Placeholders::new(["C02"]);
    assert!(service.runtime.reload(&[]).iter().all(|reload| reload.outcome.is_ok()));
    filter.keys().await;
    filter.ask(&stated("c02"));
    assert_eq!(shown(&filter.answer().await), "deny identifier_missing");
    filter.ask(&stated("None"));
    assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
}

/// Makes a certificate with this common name.
fn named(name: &str) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

#[tokio::test]
async fn refuses_what_the_filter_should_not_have_let_through() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    let good = body("c02");
    let base = filter.question(&good);
    let old = r#"{"timestamp":"2020-01-01T00:00:00Z","x509CertificateRequest":{}}"#;
    let other_kind = good.replace("x509CertificateRequest", "x509Certificate");
    let signed = |body: &str| Question { signature: sign(b"secret", body), body: body.to_owned().into(), ..base.clone() };
    for (question, expected) in [
        (Question { webhook_id: "other".to_owned(), ..base.clone() }, "refuse webhook_unknown"),
        (Question { signature: sign(b"other", &good), ..base.clone() }, "refuse signature"),
        (Question { signature: vec![1; 31], ..base.clone() }, "refuse signature_header"),
        (Question { body: Bytes::from_static(b"{}"), ..base.clone() }, "refuse signature"),
        (Question { peer_certificate: Vec::new(), ..base.clone() }, "refuse caller"),
        (Question { peer_certificate: vec![1, 2, 3], ..base.clone() }, "refuse caller"),
        (Question { peer_certificate: certificate("stranger.example.org"), ..base.clone() }, "refuse caller"),
        (signed(old), "refuse timestamp_past"),
        (signed("{}"), "refuse malformed"),
        (signed(&other_kind), "refuse kind_mismatch"),
    ] {
        filter.send(question);
        assert_eq!(shown(&filter.answer().await), expected);
    }
    filter.sender.send(FilterMessage { message: None }).unwrap();
    filter.send(base);
    assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
}

#[tokio::test]
async fn e4_what_was_sent_under_one_id_is_no_other_ids_whatever_secret_a_reload_gives_it() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    let sent = filter.question(&body("c02"));
    filter.send(sent.clone());
    assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
    // The new id has the secret of the old one, which no configuration may have: the replay memory is the second wall.
    let mut both = service.config.lock().unwrap().webhooks.clone();
    both.push(Settings { id: "new".to_owned(), ..both[0].clone() });
    let only_new = vec![both[1].clone()];
    let refused = "refuse replayed_by_another";
    for webhooks in [both, only_new] {
        service.config.lock().unwrap().webhooks = webhooks;
        drop(service.runtime.reload(&[]));
        let set = filter.keys().await;
        for caller in ["ca.example.org", "other.example.org"] {
            let again = Question { webhook_id: "new".to_owned(), peer_certificate: certificate(caller), ..sent.clone() };
            filter.send(again);
            assert_eq!(shown(&filter.answer().await), refused, "{} webhooks, {caller}", set.webhooks.len());
        }
        let fresh = Question { webhook_id: "new".to_owned(), ..filter.question(&body("c02")) };
        filter.send(fresh);
        assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
    }
    // The old id is gone, and so is its clock skew.
    filter.send(sent);
    assert_eq!(shown(&filter.answer().await), "refuse webhook_unknown");
    let page = service.runtime.engine.metrics.encode().unwrap();
    let clocks: Vec<_> = page.lines().filter(|line| line.starts_with("stepward_caller_clock_skew_seconds{")).collect();
    assert!(clocks.len() == 1 && clocks[0].contains("new"), "{clocks:?}");
}

#[tokio::test]
async fn g_credentials_that_were_taken_back_let_nobody_in_whom_the_filter_let_through_before() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let mut filter = service.attach().await;
    let open = filter.keys().await.revision;
    let turn = async |filter: &mut Filter, token: Option<&'static str>| {
        *service.token.lock().unwrap() = token;
        let mut webhook = service.config.lock().unwrap().webhooks.remove(0);
        // The deadline changes too, so that the configuration is another one.
        webhook.deadline += Duration::from_millis(1);
        service.config.lock().unwrap().webhooks.push(webhook);
        drop(service.runtime.reload(&[]));
        filter.keys().await.revision
    };
    let one = turn(&mut filter, Some("one")).await;
    let other = turn(&mut filter, Some("other")).await;
    assert!(open != one && one != other);
    for (revision, expected) in [(open, "refuse no_keys"), (one, "refuse no_keys"), (other, r#"{"user":"alice"}"#)] {
        let question = filter.question(&body("c02"));
        filter.send(Question { revision, ..question });
        assert_eq!(shown(&filter.answer().await), expected);
    }
    // Where no webhook has credentials, the sidecar does not look at the filter's revision.
    let none = turn(&mut filter, None).await;
    for revision in [other, none] {
        let question = filter.question(&body("c02"));
        filter.send(Question { revision, ..question });
        assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
    }
}

#[tokio::test]
async fn kinds_that_ask_nobody_are_never_allowed() {
    for (kind, expected) in [(Kind::ScepChallenge, "deny scep_challenge_unsupported"), (Kind::Notifying, "deny notification_recorded")] {
        let service = Service::start(kind, inventory()).await;
        let mut filter = service.attach().await;
        filter.keys().await;
        let body = body("c02").replace(r#","attestationData":{"permanentIdentifier":"c02"}"#, "");
        filter.ask(&body);
        assert_eq!(shown(&filter.answer().await), expected);
    }
}

#[tokio::test]
async fn the_same_bytes_get_the_same_answer_and_another_caller_none() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let provider = Scripted::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { found() }
    });
    let service = Service::start(Kind::Enriching, provider).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    let body = body("c02");
    for _ in 0..3 {
        filter.ask(&body);
        assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
    }
    // A renewed certificate is the same caller; another name is another caller.
    filter.certificate = certificate("ca.example.org");
    filter.ask(&body);
    assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
    filter.certificate = certificate("other.example.org");
    filter.ask(&body);
    assert_eq!(shown(&filter.answer().await), "refuse replayed_by_another");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn g8_a_wider_window_takes_nothing_again_that_the_memory_has_forgotten() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let change = |past| {
        let mut config = service.config.lock().unwrap();
        let webhook = &mut config.webhooks[0];
        webhook.window = Window { past: Duration::from_secs(past), future: Duration::ZERO };
        webhook.deadline = Duration::from_millis(500);
        drop(config);
        assert!(service.runtime.reload(&[]).iter().all(|reload| reload.outcome.is_ok()));
    };
    change(1);
    let mut filter = service.attach().await;
    filter.keys().await;
    let old = body("c02");
    filter.ask(&old);
    assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
    let kept = service.runtime.snapshot().webhooks[ID].settings.keep();
    tokio::time::sleep(kept + Duration::from_millis(100)).await;
    assert_eq!(service.runtime.engine.memory.usage().entries, 0, "the memory has forgotten it");
    change(600);
    filter.keys().await;
    filter.certificate = certificate("other.example.org");
    filter.ask(&old);
    assert_eq!(shown(&filter.answer().await), "refuse timestamp_past");
    // A new request is taken as ever.
    filter.ask(&body("c02"));
    assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
}

#[tokio::test]
async fn g8_equal_bytes_in_another_mode_are_decided_anew() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let provider = Scripted::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { found() }
    });
    let service = Service::start(Kind::Enriching, provider).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    let body = body("c02");
    for (mode, expected) in [(WireMode::Unspecified, 1), (WireMode::Unspecified, 1), (WireMode::Computer, 2), (WireMode::MobileDevice, 3)] {
        let question = Question { mode: mode.into(), ..filter.question(&body) };
        filter.send(question);
        assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
        assert_eq!(asked.load(Ordering::SeqCst), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_over_two_streams_asks_once_and_outlives_the_first_caller() {
    let (asked, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counted, gate) = (Arc::clone(&asked), Arc::clone(&go));
    let provider = Scripted::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        let gate = Arc::clone(&gate);
        async move {
            gate.notified().await;
            found()
        }
    });
    let service = Service::start(Kind::Enriching, provider).await;
    let body = body("c02");
    let mut gone = service.attach().await;
    gone.keys().await;
    gone.ask(&body);
    while asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    drop(gone);
    let mut filters = [service.attach().await, service.attach().await];
    for filter in &mut filters {
        filter.keys().await;
        for _ in 0..500 {
            filter.ask(&body);
        }
    }
    go.notify_one();
    for filter in &mut filters {
        for _ in 0..500 {
            assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_slow_question_does_not_hold_up_the_next() {
    let go = Arc::new(Notify::new());
    let gate = Arc::clone(&go);
    let provider = Scripted::new(move |device| {
        let gate = Arc::clone(&gate);
        async move {
            if device.normal() == "SLOW" {
                gate.notified().await;
            }
            found()
        }
    });
    let service = Service::start(Kind::Enriching, provider).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    filter.ask(&body("slow"));
    filter.ask(&body("quick"));
    assert_eq!(filter.answer().await.sequence, 2);
    go.notify_one();
    assert_eq!(filter.answer().await.sequence, 1);
}

#[tokio::test]
async fn a_new_secret_reaches_every_stream_and_a_bad_one_none() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let mut filters = [service.attach().await, service.attach().await];
    for filter in &mut filters {
        filter.keys().await;
    }
    service.secret.lock().unwrap().clear();
    assert!(service.runtime.reload(&[]).iter().any(|reload| reload.outcome.is_err()));
    assert_eq!(service.runtime.failures().len(), 2);
    *service.secret.lock().unwrap() = b"next".to_vec();
    assert!(service.runtime.reload(&[]).iter().all(|reload| reload.outcome.is_ok()));
    assert!(service.runtime.failures().is_empty());
    for filter in &mut filters {
        let set = filter.keys().await;
        assert_eq!(&set.webhooks[0].secrets[0][..], &b"next"[..]);
        let body = body("c02");
        filter.ask(&body);
        assert_eq!(shown(&filter.answer().await), "refuse signature");
    }
}

#[tokio::test]
async fn a_drain_answers_what_is_there_and_closes() {
    let go = Arc::new(Notify::new());
    let gate = Arc::clone(&go);
    let provider = Scripted::new(move |_| {
        let gate = Arc::clone(&gate);
        async move {
            gate.notified().await;
            found()
        }
    });
    let service = Service::start(Kind::Enriching, provider).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    filter.ask(&body("c02"));
    service.drain.send_replace(true);
    assert!(matches!(filter.next().await, Some(ToFilter::Drain(_))));
    go.notify_one();
    assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
    assert!(filter.next().await.is_none());
    drop(filter);
    tokio::time::timeout(Duration::from_secs(10), service.serving).await.unwrap().unwrap().unwrap();
    assert!(!service.sockets.join("filter.sock").exists());
}

#[tokio::test]
async fn workers_are_counted_by_their_name_and_not_by_their_streams() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let metrics = &service.runtime.engine.metrics;
    let mut filters = Vec::new();
    for vm in [7, 7, 8] {
        let mut filter = service.attach().await;
        filter.sender.send(FilterMessage { message: Some(FromFilter::Hello(FilterHello { vm, ..FilterHello::default() })) }).unwrap();
        filter.keys().await;
        filter.ask(&body("c02"));
        filter.answer().await;
        filters.push(filter);
    }
    assert_eq!((metrics.filter.streams.get(), metrics.filter.workers.get()), (3, 2));
    filters.truncate(1);
    while metrics.filter.streams.get() != 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(metrics.filter.workers.get(), 1);
}

#[tokio::test]
async fn e3_what_a_filter_reports_is_shown_and_taken() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    let said = |message| FilterMessage { message: Some(message) };
    filter.sender.send(said(FromFilter::Hello(FilterHello { vm: 7, ..FilterHello::default() }))).unwrap();
    let skew = |webhook_id: &str, ahead_nanos| ClockSkew { webhook_id: webhook_id.to_owned(), ahead_nanos };
    let report = Report {
        number: 41,
        replies: vec![Replies { reason: "timestamp_future".to_owned(), count: 3 }],
        events: vec![Events { event: Event::StreamLost.into(), count: 2 }],
        waiting: 5,
        waiting_bytes: 600,
        skews: vec![skew(ID, 8_500_000_000), skew("another", 1)],
        took: vec![Took { up_to_micros: 500, count: 4 }],
        took_micros: 1_000,
    };
    filter.sender.send(said(FromFilter::Report(report.clone()))).unwrap();
    assert!(matches!(filter.next().await, Some(ToFilter::Reported(Reported { number: 41 }))));
    let page = service.runtime.engine.metrics.encode().unwrap();
    for line in [
        "stepward_filter_workers 1",
        r#"stepward_filter_replies_total{decision="refuse",reason="timestamp_future"} 3"#,
        r#"stepward_filter_events_total{event="stream_lost"} 2"#,
        "stepward_filter_waiting 5",
        "stepward_filter_waiting_bytes 600",
        "stepward_filter_latency_seconds_count 4",
        "stepward_filter_latency_seconds_sum 0.001",
    ] {
        assert!(page.lines().any(|there| there == line), "{line}:\n{page}");
    }
    let skews: Vec<_> = page.lines().filter(|line| line.starts_with("stepward_caller_clock_skew_seconds")).collect();
    assert_eq!(skews, [format!(r#"stepward_caller_clock_skew_seconds{{webhook="{ID}"}} 8.5"#)], "an unknown one is no label");
    // No more entries are read than there are webhooks.
    let many = Report { number: 42, skews: vec![skew("another", 1), skew(ID, 1)], ..Report::default() };
    filter.sender.send(said(FromFilter::Report(many))).unwrap();
    assert!(matches!(filter.next().await, Some(ToFilter::Reported(Reported { number: 42 }))));
    assert!(service.runtime.engine.metrics.encode().unwrap().contains(skews[0]));
    filter.ask(&body("c02"));
    assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
}

#[tokio::test]
async fn e3_a_timestamp_that_the_sidecar_refuses_moves_the_clock_too() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    let old = r#"{"timestamp":"2020-01-01T00:00:00Z","x509CertificateRequest":{}}"#;
    filter.ask(old);
    assert_eq!(shown(&filter.answer().await), "refuse timestamp_past");
    let page = service.runtime.engine.metrics.encode().unwrap();
    assert!(page.lines().any(|line| line.starts_with("stepward_caller_clock_skew_seconds{") && line.contains("} -")), "{page}");
}

#[tokio::test]
async fn no_more_questions_wait_than_may_over_all_streams() {
    let (go, gate) = watch::channel(false);
    let provider = Scripted::new(move |_| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|open| *open).await.unwrap();
            found()
        }
    });
    let service = Service::start(Kind::Enriching, provider).await;
    let (mut one, mut other) = (service.attach().await, service.attach().await);
    other.certificate = one.certificate.clone();
    for filter in [&mut one, &mut other] {
        filter.keys().await;
    }
    let body = body("c02");
    for _ in 0..WAITING {
        one.ask(&body);
    }
    // The answer to a question that does not wait shows that all before it were read.
    let mut unsigned = one.question(&body);
    unsigned.signature = vec![0; 32];
    one.send(unsigned);
    assert_eq!(shown(&one.answer().await), "refuse signature");
    other.ask(&body);
    assert_eq!(shown(&other.answer().await), "refuse overloaded");
    go.send_replace(true);
    for _ in 0..WAITING {
        assert_eq!(shown(&one.answer().await), r#"{"user":"alice"}"#);
    }
    other.ask(&body);
    assert_eq!(shown(&other.answer().await), r#"{"user":"alice"}"#);
}

#[test]
fn notes_are_cut_between_letters() {
    for (text, length) in
        [("a".repeat(256), 256), ("a".repeat(100_000), 256), ("é".repeat(200), 256), (format!("a{}", "é".repeat(200)), 255)]
    {
        assert_eq!(bounded(text.clone()).len(), length, "{}", text.len());
    }
}

#[tokio::test]
async fn a_second_service_is_refused_and_a_stale_socket_replaced() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let listen = service.runtime.config().listen.clone();
    let error = Sockets::bind(&listen, Vec::new()).await.unwrap_err().to_string();
    assert!(error.starts_with("another stepward serves"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("filter.sock")).unwrap());
    Sockets::bind(&config::Listen { sockets: folder.path().to_owned(), ..listen }, Vec::new()).await.unwrap();
}

#[tokio::test]
async fn metrics_name_the_decision_and_never_the_device() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    let body = body("c02");
    for _ in 0..2 {
        filter.ask(&body);
        filter.answer().await;
    }
    let text = service.runtime.engine.metrics.encode().unwrap();
    for replayed in ["false", "true"] {
        let line = format!(r#"stepward_decisions_total{{webhook="{ID}",decision="allow",reason="allowed",replayed="{replayed}"}} 1"#);
        assert!(text.contains(&line), "{text}");
    }
    assert!(!text.to_lowercase().contains("c02") && !text.contains("alice"), "{text}");
}

#[tokio::test]
async fn f3_a_certificate_is_read_for_what_was_signed_and_only_up_to_a_size() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    let good = body("c02");
    let base = filter.question(&good);
    let remembered = || service.runtime.engine.peers.remembered();
    for (question, expected) in [
        (Question { webhook_id: "other".to_owned(), ..base.clone() }, "refuse webhook_unknown"),
        (Question { signature: vec![1; 31], ..base.clone() }, "refuse signature_header"),
        (Question { signature: vec![1; 32], ..base.clone() }, "refuse signature"),
        (Question { signature: vec![1; 32], peer_certificate: certificate("stranger.example.org"), ..base.clone() }, "refuse signature"),
        (Question { peer_certificate: vec![0x30; 1 << 20], ..base.clone() }, "refuse caller"),
    ] {
        filter.send(question);
        assert_eq!(shown(&filter.answer().await), expected);
        assert_eq!(remembered(), 0, "{expected}");
    }
    filter.send(base);
    assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
    assert_eq!(remembered(), 1);
}

#[tokio::test]
async fn g6_what_nobody_signed_is_counted_and_takes_no_place_of_a_decision() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    let good = body("c02");
    let base = filter.question(&good);
    for _ in 0..50 {
        filter.send(Question { signature: vec![1; 32], ..base.clone() });
        filter.send(Question { webhook_id: "x".repeat(1000), ..base.clone() });
        filter.send(Question { peer_certificate: vec![1], ..base.clone() });
    }
    for _ in 0..150 {
        assert!(shown(&filter.answer().await).starts_with("refuse "));
    }
    // A refusal of a signed request is a decision like any other.
    let old = r#"{"timestamp":"2020-01-01T00:00:00Z","x509CertificateRequest":{}}"#;
    filter.ask(old);
    assert_eq!(shown(&filter.answer().await), "refuse timestamp_past");
    let text = service.runtime.engine.metrics.encode().unwrap();
    for (webhook, reason) in [(ID, "signature"), ("unknown", "webhook_unknown"), (ID, "caller")] {
        let line = format!(r#"stepward_decisions_total{{webhook="{webhook}",decision="refuse",reason="{reason}",replayed="false"}} 50"#);
        assert!(text.contains(&line), "{text}");
    }
    assert!(text.contains("stepward_decision_duration_seconds_count 1\n"), "{text}");
    assert!(!text.contains("xxx"), "{text}");
}

#[tokio::test]
async fn g6_a_stream_that_comes_is_let_in_and_one_on_which_nothing_was_signed_ends() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let mut proven = service.attach().await;
    proven.keys().await;
    let body = body("c02");
    proven.ask(&body);
    assert_eq!(shown(&proven.answer().await), r#"{"user":"alice"}"#);
    let mut idle = service.attach().await;
    idle.keys().await;
    // All streams are of one process, which has half of the room.
    let mut held = Vec::new();
    for _ in 0..STREAMS / 2 - 1 {
        held.push(service.attach().await);
    }
    let status = tokio::time::timeout(Duration::from_secs(10), idle.answers.message()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    proven.ask(&body);
    assert_eq!(shown(&proven.answer().await), r#"{"user":"alice"}"#);
    let mut newest = held.pop().unwrap();
    newest.keys().await;
    newest.certificate.clone_from(&proven.certificate);
    newest.ask(&body);
    assert_eq!(shown(&newest.answer().await), r#"{"user":"alice"}"#);
    assert_eq!(service.runtime.engine.metrics.filter.streams.get(), i64::try_from(STREAMS / 2).unwrap());
}

#[tokio::test]
async fn a16_another_identity_after_a_reload_is_judged_anew_in_flight_and_for_equal_bytes() {
    type Change = fn(&mut Settings);
    let changes: [Change; 3] = [
        |webhook| webhook.identifier = IdentifierKind::Udid,
        |webhook| webhook.source = IdentitySource::Claimed(posture::identity::Field::SubjectCommonName),
        |webhook| webhook.callers = Callers::Named(vec!["dns:other.example.org".parse().unwrap()]),
    ];
    let expected = [
        ("refuse provider_unavailable", None),
        ("refuse provider_unavailable", Some("deny identifier_missing")),
        ("refuse caller", Some("refuse caller")),
    ];
    for (change, (expected, again)) in changes.into_iter().zip(expected) {
        let (provider, go, asked) = gated();
        let service = Service::start(Kind::Enriching, provider).await;
        let mut filter = service.attach().await;
        filter.keys().await;
        let (before, waits) = (body("c02"), body("c02"));
        filter.ask(&before);
        asked.notified().await;
        go.notify_one();
        assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
        filter.ask(&waits);
        asked.notified().await;
        change(&mut service.config.lock().unwrap().webhooks[0]);
        assert!(service.runtime.reload(&[]).iter().all(|reload| reload.outcome.is_ok()));
        filter.keys().await;
        go.notify_one();
        assert_eq!(shown(&filter.answer().await), expected);
        // The remembered allow is not for the webhook as it is configured now.
        filter.ask(&before);
        match again {
            Some(again) => assert_eq!(shown(&filter.answer().await), again),
            // The provider is asked for the other device.
            None => {
                asked.notified().await;
                go.notify_one();
                filter.answer().await;
            }
        }
    }
}

#[tokio::test]
async fn a_secret_that_is_taken_back_while_a_provider_is_asked_lets_nobody_in() {
    let (provider, go, asked) = gated();
    let service = Service::start(Kind::Enriching, provider).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    filter.ask(&body("c02"));
    asked.notified().await;
    *service.secret.lock().unwrap() = b"next".to_vec();
    assert!(service.runtime.reload(&[]).iter().all(|reload| reload.outcome.is_ok()));
    filter.keys().await;
    go.notify_one();
    assert_eq!(shown(&filter.answer().await), "refuse signature");
}

#[tokio::test]
async fn a16_a_secret_that_is_taken_back_lets_nobody_in_who_waits_for_the_outcome_of_equal_bytes() {
    let (provider, go, asked) = gated();
    let service = Service::start(Kind::Enriching, provider).await;
    *service.secret.lock().unwrap() = b"secret,old".to_vec();
    assert!(service.runtime.reload(&[]).iter().all(|reload| reload.outcome.is_ok()));
    let mut filter = service.attach().await;
    filter.keys().await;
    let body = body("c02");
    filter.ask(&body);
    asked.notified().await;
    for secret in [&b"old"[..], b"secret"] {
        let question = Question { signature: sign(secret, &body), ..filter.question(&body) };
        filter.send(question);
    }
    // Both questions wait once the one behind them is answered.
    filter.ask("{}");
    assert_eq!(shown(&filter.answer().await), "refuse malformed");
    *service.secret.lock().unwrap() = b"secret".to_vec();
    assert!(service.runtime.reload(&[]).iter().all(|reload| reload.outcome.is_ok()));
    filter.keys().await;
    go.notify_one();
    let mut answers = Vec::new();
    for _ in 0..3 {
        let answer = filter.answer().await;
        answers.push((answer.sequence, shown(&answer)));
    }
    answers.sort();
    let said: Vec<_> = answers.iter().map(|(_, said)| &**said).collect();
    assert_eq!(said, [r#"{"user":"alice"}"#, "refuse signature", r#"{"user":"alice"}"#]);
}

#[tokio::test]
async fn g8_bytes_that_another_caller_sends_again_are_no_decision() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let mut filter = service.attach().await;
    filter.keys().await;
    let body = body("c02");
    filter.ask(&body);
    assert_eq!(shown(&filter.answer().await), r#"{"user":"alice"}"#);
    let logged = || service.runtime.engine.metrics.decision_duration.clone();
    let before = format!("{:?}", logged());
    filter.certificate = certificate("other.example.org");
    for _ in 0..20 {
        filter.ask(&body);
        assert_eq!(shown(&filter.answer().await), "refuse replayed_by_another");
    }
    assert_eq!(format!("{:?}", logged()), before, "a row is made where a duration is observed");
}

#[tokio::test]
async fn a16_who_waits_gets_no_allow_of_another_device_nor_of_one_where_it_names_none() {
    let service = Service::start(Kind::Enriching, inventory()).await;
    let proof = Proof { signature: Vec::new(), body: Bytes::new(), peer: None, came: tokio::time::Instant::now() };
    let allowed = || engine::gate::fixture::allowed(posture::outcome::Data::empty());
    let Outcome::Allow(made) = allowed() else { panic!("not allowed") };
    let gets = |identity, outcome| {
        let webhook = Arc::clone(&service.runtime.snapshot().webhooks[ID]);
        let (caller, at, keep) = (posture::caller::Caller::anonymous(), clock::now(), Duration::ZERO);
        shared(outcome, &Admitted { webhook, caller, identity, at, keep }, &proof, &service.runtime)
    };
    let device = |text: &str| posture::identity::DeviceId::new(IdentifierKind::Serial, text).unwrap();
    let other = Identity { device: device("ANOTHER"), trust: posture::identity::Trust::Attested };
    assert!(!made.is_for(&other));
    for identity in [Err(Denial::IDENTIFIER_MISSING), Ok(other)] {
        assert!(matches!(gets(identity.clone(), allowed()), Outcome::Refuse(Refusal::ProviderUnavailable)), "{identity:?}");
        assert!(matches!(gets(identity, Outcome::Deny(Denial::DEVICE_LOCKED)), Outcome::Deny(_)));
    }
}
