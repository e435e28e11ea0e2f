//! Strangers stop or fill Envoy: connections that say nothing, bodies that nobody asked for.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::client::{Client, Http, post};
use e2e::deployment::{Deployment, Hook, Plan};
use e2e::pki::{Authority, Leaf};
use e2e::wait::until;
use e2e::webhook::{Registered, enriching};
use futures::StreamExt as _;
use http::Request;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use posture::shape::{SIGNATURE, WEBHOOK_ID};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const KNOWN: &str = "C02XL0GYJGH5";
const ID: &str = "11111111-2222-4333-8444-555555555555";

/// One byte less than the largest event.
const LARGE: usize = (1 << 20) - 1;

/// The largest body of a webhook.
const BODY: usize = 1 << 16;

/// A provider that takes events, so that there is an outward listener. It is asked nothing.
const EVENTS: &str = r#"
[provider.events]
type = "http"
base_url = "https://127.0.0.1:9"
path = "/devices/{identifier}"
identifier = "/serial"
[provider.events.push]
secret = { file = "secrets/events" }
"#;

async fn stage() -> (Deployment, Registered) {
    let registered = Registered::random(ID);
    let mut plan = Plan::new(vec![Hook::new(registered.clone())]);
    plan.more = EVENTS.to_owned();
    plan.secrets.push(("events", "the-secret-of-events"));
    (Deployment::start(plan).await, registered)
}

/// Whether the peer has closed a connection on which it says nothing.
async fn closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::ZERO, stream.read(&mut [0; 64])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

/// Connections that say nothing, opened one after the other without a wait.
async fn silent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connects = (0..count).map(|_| TcpStream::connect(address));
    let opened: Vec<_> = futures::stream::iter(connects).buffer_unordered(64).collect().await;
    opened.into_iter().map(Result::unwrap).collect()
}

/// How many are still open, once what is to be closed at once is.
async fn held(connections: &mut [TcpStream]) -> usize {
    let mut open = 0;
    for connection in connections {
        open += usize::from(!closed(connection).await);
    }
    open
}

/// Holds that a webhook is answered, by a connection of its own.
async fn answered(stepward: &Deployment, registered: &Registered) {
    let reply = stepward.client(Http::Two).send(registered.ask(KNOWN)).await.expect("step-ca gets in");
    assert!(reply.allows(), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn b1_silent_connections_to_one_listener_leave_the_other_ones_alone() {
    let (stepward, registered) = stage().await;
    let mut connections = silent(stepward.at.public, 2000).await;
    until("what is over the listener's limit is closed", Duration::from_secs(2), async || {
        let open = held(&mut connections).await;
        (open <= 256).then_some(())
    })
    .await;
    for _ in 0..20 {
        answered(&stepward, &registered).await;
    }
    until("who says nothing is sent away", Duration::from_secs(6), async || (held(&mut connections).await == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b1_handshakes_that_never_finish_keep_a_caller_out_for_seconds_at_most() {
    let (stepward, registered) = stage().await;
    let began = Instant::now();
    let mut connections = silent(stepward.at.webhook, 5000).await;
    until("what is over the listener's limit is closed", Duration::from_secs(4), async || {
        let open = held(&mut connections).await;
        (open <= 4096).then_some(())
    })
    .await;
    let client = stepward.client(Http::One);
    until("step-ca gets in", Duration::from_secs(8), async || {
        client.send(registered.ask(KNOWN)).await.is_ok_and(|reply| reply.allows()).then_some(())
    })
    .await;
    until("who says nothing is sent away", Duration::from_secs(6), async || (held(&mut connections).await == 0).then_some(())).await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// Posts nearly the whole of a large body, and holds the connection; whether there was an answer before its end.
async fn post_nearly_all(client: &Client, path: &str) -> Option<Vec<u8>> {
    let mut stream = client.tls().await.ok()?;
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer wrong\r\ncontent-length: {}\r\n\r\n", LARGE + 1);
    let written = async {
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&vec![b'x'; LARGE]).await
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), written).await;
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut answer)).await.ok()?.ok()?;
    answer.truncate(read);
    (read > 0).then_some(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn b2_bodies_to_unknown_paths_are_never_kept() {
    let (stepward, registered) = stage().await;
    let client = Client::new(stepward.at.public, &stepward.tls.roots, None, Http::One);
    // What the first connections cost is not what is measured.
    post_nearly_all(&client, "/nothing/here").await;
    let before = stepward.envoy.memory();
    let posts = (0..2300).map(|_| post_nearly_all(&client, "/nothing/here"));
    let answers: Vec<_> = futures::stream::iter(posts).buffer_unordered(200).collect().await;
    let after = stepward.envoy.memory();
    assert!(after < before + (64 << 20), "Envoy grew from {} to {} MiB", before >> 20, after >> 20);
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    assert!(!answers.is_empty(), "some are answered before Envoy closes");
    assert!(answers.iter().all(|answer| answer.starts_with(b"HTTP/1.1 403")), "{:?}", answers.first());
    answered(&stepward, &registered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b2_events_without_their_proof_are_bounded_in_total_and_hold_up_no_webhook() {
    let (stepward, registered) = stage().await;
    let client = Client::new(stepward.at.public, &stepward.tls.roots, None, Http::One);
    post_nearly_all(&client, "/push/events").await;
    let before = stepward.envoy.memory();
    let mut streams = Vec::new();
    let mut most = 0;
    for number in 0..600 {
        let Ok(mut stream) = client.tls().await else { continue };
        let head = format!("POST /push/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", LARGE + 1);
        if stream.write_all(head.as_bytes()).await.is_ok() && stream.write_all(&vec![b'x'; LARGE]).await.is_ok() {
            streams.push(stream);
        }
        most = most.max(stepward.envoy.memory());
        if number % 50 == 0 {
            answered(&stepward, &registered).await;
        }
    }
    assert!(streams.len() > 100, "{}", streams.len());
    assert!(most < before + (320 << 20), "Envoy grew from {} to {} MiB", before >> 20, most >> 20);
    answered(&stepward, &registered).await;
    drop(streams);
    let event = || post("/push/events", Bytes::from_static(b"{}"));
    until("events come in once there is room", Duration::from_secs(15), async || {
        client.send(event()).await.is_ok_and(|reply| reply.status == 401).then_some(())
    })
    .await;
}

/// Requests on one HTTP/2 connection whose bodies come and never end; how many Envoy let begin, and how many it refused.
async fn endless(client: &Client, count: usize, patience: Duration, request: impl Fn(usize) -> http::request::Builder) -> (usize, usize) {
    let io = TokioIo::new(client.speaking(Http::Two).tls().await.unwrap());
    let (sender, connection) = http2::handshake::<_, _, StreamBody<_>>(TokioExecutor::new(), io).await.unwrap();
    let driven = tokio::spawn(connection);
    let mut replies = Vec::new();
    for number in 0..count {
        let mut sender = sender.clone();
        let piece = Frame::data(Bytes::from(vec![b'x'; BODY - 1]));
        let body = StreamBody::new(futures::stream::iter([Ok::<_, Infallible>(piece)]).chain(futures::stream::pending()).boxed());
        let request: Request<_> = request(number).body(body).unwrap();
        replies.push(async move {
            sender.ready().await.ok()?;
            let reply = sender.send_request(request).await.ok()?;
            Some(reply.status().as_u16())
        });
    }
    let replies = futures::future::join_all(replies.into_iter().map(|reply| tokio::time::timeout(patience, reply))).await;
    driven.abort();
    let refused = replies.iter().filter(|reply| matches!(reply, Ok(Some(400..=499)))).count();
    (replies.iter().filter(|reply| reply.is_err()).count(), refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn b2_one_connection_of_whoever_proves_nothing_takes_no_memory_to_speak_of() {
    let (stepward, registered) = stage().await;
    let stranger = {
        let authority = Authority::new("Test Root");
        let plan = Plan::new(vec![Hook::new(registered.clone())]);
        let tls = e2e::deployment::Tls::of(&authority);
        let stepward = Deployment::start_at(plan, e2e::deployment::Addresses::default(), tls).await;
        let credential = authority.issue(&Leaf::client("device.example.org"));
        (stepward, credential)
    };
    let uri = |stepward: &Deployment, path: &str| format!("https://localhost:{}{path}", stepward.at.webhook.port());
    let head = |uri: String, id: &str| {
        let builder = Request::builder().method("POST").uri(uri).header(WEBHOOK_ID, id.to_owned());
        builder.header(SIGNATURE, "0".repeat(64)).header("content-length", BODY.to_string())
    };
    let patience = Duration::from_secs(30);

    // A path that there is not.
    let before = stepward.envoy.memory();
    let (waiting, refused) = endless(&stepward.client(Http::Two), 400, patience, |_| head(uri(&stepward, "/nothing/here"), ID)).await;
    assert_eq!((waiting, refused), (0, 400));
    // A caller of no webhook, with an id that there is and one that there is not.
    let (other, credential) = &stranger;
    let others = other.envoy.memory();
    let client = other.client_as(Some(credential), Http::Two);
    let id = |number: usize| if number.is_multiple_of(2) { ID } else { "unknown" };
    assert_eq!(endless(&client, 400, patience, |number| head(uri(other, "/webhook/a"), id(number))).await, (0, 400));
    let grown = other.envoy.memory().saturating_sub(others);
    assert!(grown < 24 << 20, "{} MiB", grown >> 20);
    // A caller without the secret has as many bodies under way as there are streams.
    let (waiting, _) = endless(&stepward.client(Http::Two), 2000, Duration::from_secs(3), |_| head(uri(&stepward, "/webhook/a"), ID)).await;
    assert!(waiting > 0);
    let grown = stepward.envoy.memory().saturating_sub(before);
    assert!(grown < 32 << 20, "{} MiB", grown >> 20);
    answered(&stepward, &registered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b2_at_the_bound_of_the_heap_streams_end_and_the_process_stays_within_its_limit() {
    let (mut stepward, registered) = stage().await;
    let admin = stepward.at.envoy.to_string();
    e2e::process::run(&mut stepward.stepward(&[
        "envoy-config",
        "--config",
        "stepward.toml",
        "--output",
        "envoy.yaml",
        "--admin",
        &admin,
        "--heap",
        "128",
    ]));
    stepward.restart_envoy().await;
    stepward.answering().await;
    let before = stepward.envoy.memory();
    let client = Client::new(stepward.at.public, &stepward.tls.roots, None, Http::One);
    let mut streams = Vec::new();
    let mut most = 0;
    for _ in 0..400 {
        let Ok(mut stream) = client.tls().await else { continue };
        let head = format!("POST /push/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", LARGE + 1);
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&vec![b'x'; LARGE]).await
        })
        .await;
        streams.push(stream);
        most = most.max(stepward.envoy.memory());
    }
    // 128 MiB of heap, beside what V8 and the code take, which was there before.
    assert!(most < before + (160 << 20), "Envoy grew from {} to {} MiB", before >> 20, most >> 20);
    drop(streams);
    until("webhooks are answered once the flood has ended", Duration::from_secs(15), async || {
        let reply = stepward.client(Http::One).send(registered.signed(enriching(KNOWN))).await;
        reply.is_ok_and(|reply| reply.allows()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f6_a_flood_of_refusals_writes_so_many_lines_and_every_decision_has_its_own() {
    let (mut stepward, registered) = stage().await;
    let stranger = Client::new(stepward.at.public, &stepward.tls.roots, None, Http::One);
    let mut connection = stranger.connect().await.unwrap();
    for _ in 0..600 {
        assert_eq!(connection.send(post("/nothing/there", Bytes::new())).await.unwrap().status.as_u16(), 403);
    }
    for _ in 0..5 {
        answered(&stepward, &registered).await;
    }
    let forged = Registered::random(ID);
    let reply = stepward.client(Http::Two).send(forged.ask(KNOWN)).await.unwrap();
    assert_eq!(reply.status.as_u16(), 401);
    // Envoy writes its access log every ten seconds.
    stepward.envoy.printed("refuse:signature", Duration::from_secs(20)).await;
    let log = stepward.envoy.log();
    assert!(log.matches("allow:allowed").count() >= 5, "{log}");
    let lines = log.matches("/nothing/there").count();
    // Two more for each second that the flood lasts.
    assert!((50..300).contains(&lines), "{lines}");
}
