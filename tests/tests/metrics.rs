//! What is counted can be scraped, and what is documented is there.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use e2e::client::Http;
use e2e::deployment::{Deployment, Hook, Plan};
use e2e::metrics::{Metrics, get};
use e2e::tools::{root, trap_filter};
use e2e::wait::until;
use e2e::webhook::{Registered, body_at};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const KNOWN: &str = "C02XL0GYJGH5";
const ID: &str = "11111111-2222-4333-8444-555555555555";
/// A filter reports every five seconds.
const REPORTED: Duration = Duration::from_secs(20);

async fn stage(workers: u32) -> (Deployment, Registered) {
    let registered = Registered::random(ID);
    let mut plan = Plan::new(vec![Hook::new(registered.clone())]);
    plan.workers = workers;
    (Deployment::start(plan).await, registered)
}

fn skewed(registered: &Registered, seconds: i64) -> e2e::client::Outgoing {
    registered.signed(body_at(KNOWN, time::Duration::seconds(seconds)))
}

#[tokio::test(flavor = "multi_thread")]
async fn e3_what_filters_refuse_and_the_clock_they_refuse_it_for_are_in_the_sidecars_metrics() {
    let (stepward, registered) = stage(2).await;
    let before = stepward.metrics().await;
    let refused = |page: &Metrics, reason: &str| page.sum(&["stepward_filter_replies_total", "refuse", &format!("\"{reason}\"")]);
    for _ in 0..20 {
        // A connection each, so that both workers have some.
        let client = stepward.client(Http::One);
        let forged = registered.ask(KNOWN).replace("x-smallstep-signature", &"0".repeat(64));
        assert_eq!(client.send(forged).await.unwrap().status, 401);
        assert_eq!(client.send(skewed(&registered, 60)).await.unwrap().status, 401);
    }
    until("every refusal of both workers is counted", REPORTED, async || {
        let page = stepward.metrics().await;
        let grown = |reason| refused(&page, reason) - refused(&before, reason);
        (grown("signature") == 20.0 && grown("timestamp_future") == 20.0).then_some(())
    })
    .await;
    let page = stepward.metrics().await;
    let skew = page.sum(&["stepward_caller_clock_skew_seconds", ID]);
    assert!((50.0..=60.0).contains(&skew), "{skew}: no webhook was ever decided");
    assert_eq!(page.sum(&["stepward_decisions_total", "webhook=\"1"]), 0.0);
    assert_eq!(page.sum(&["stepward_filter_workers "]), 2.0, "Envoy's main thread is none:\n{}", page.text());
    assert_eq!(page.sum(&["stepward_filter_streams "]), 3.0);
    assert_eq!(page.sum(&["stepward_filter_workers_silent_total"]), 0.0);

    assert!(stepward.client(Http::One).send(registered.ask(KNOWN)).await.unwrap().allows());
    until("what is allowed is counted, and how long it took", REPORTED, async || {
        let page = stepward.metrics().await;
        let allowed = page.sum(&["stepward_filter_replies_total", "\"allowed\""]);
        (allowed == 1.0 && page.sum(&["stepward_filter_latency_seconds_count"]) == 1.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e3_what_is_refused_while_the_sidecar_is_away_is_counted_when_it_is_back() {
    let (mut stepward, registered) = stage(1).await;
    stepward.sidecar().kill();
    let client = stepward.client(Http::Two);
    let replies = e2e::load::volley(&client, (0..5).map(|_| registered.ask(KNOWN)).collect()).await;
    assert!(replies.into_iter().all(|reply| reply.unwrap().status == 503));
    stepward.restart_sidecar();
    until("the five are counted, and the stream that was lost", REPORTED, async || {
        let page = Metrics::try_read(stepward.at.metrics, "/metrics").await?;
        let refused = |reason: &str| page.sum(&["stepward_filter_replies_total", reason]);
        // The end of the sidecar may be known a moment later than the first of them comes.
        let refused = refused("\"sidecar_unavailable\"") + refused("\"deadline_exceeded\"");
        (refused == 5.0 && page.sum(&["stepward_filter_events_total", "stream_lost"]) >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e3_a_worker_whose_vm_died_is_missed_until_it_is_back() {
    let registered = Registered::random(ID);
    let mut plan = Plan::new(vec![Hook::new(registered.clone())]);
    plan.wasm = trap_filter();
    let mut stepward = Deployment::start(plan).await;
    let workers = async |stepward: &Deployment| stepward.metrics().await.sum(&["stepward_filter_workers "]);
    assert_eq!(workers(&stepward).await, 1.0);
    // It is missed by what it does not say any more, so it has to have said something.
    let client = stepward.client(Http::One);
    assert!(client.send(registered.ask(KNOWN)).await.unwrap().allows());
    until("it has reported", REPORTED, async || {
        (stepward.metrics().await.sum(&["stepward_filter_replies_total", "\"allowed\""]) == 1.0).then_some(())
    })
    .await;
    let trapping = client.send(registered.ask(KNOWN).header("x-stepward-trap", "1")).await;
    assert!(!trapping.is_ok_and(|reply| reply.allows()));
    // Nobody sends anything, and so Envoy makes no VM anew.
    until("the worker is missed", Duration::from_secs(45), async || (workers(&stepward).await == 0.0).then_some(())).await;
    until("it is back with the next requests", Duration::from_secs(20), async || {
        let allowed = client.send(registered.ask(KNOWN)).await.is_ok_and(|reply| reply.allows());
        (allowed && workers(&stepward).await == 1.0).then_some(())
    })
    .await;
    // What it counted before it died is not taken back, and what waited in it is.
    let page = stepward.metrics().await;
    assert!(page.sum(&["stepward_filter_replies_total", "\"allowed\""]) >= 1.0);
    assert!(stepward.envoy.is_running());
}

/// What a listener answers to these bytes, up to the end of the head.
async fn raw(at: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut part)).await.unwrap().unwrap_or(0);
        if read == 0 {
            break;
        }
        answer.extend_from_slice(&part[..read]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn e3_the_listener_for_statistics_gives_statistics_and_nothing_else() {
    let (mut stepward, _) = stage(1).await;
    let at = stepward.at.stats;
    let (status, page) = get(at, "/stats/prometheus").await.unwrap();
    assert_eq!(status, 200);
    assert!(page.contains("envoy_server_concurrency"), "{page}");
    let head = "host: localhost\r\n";
    for refused in [
        format!("GET /quitquitquit HTTP/1.1\r\n{head}\r\n"),
        format!("POST /quitquitquit HTTP/1.1\r\n{head}content-length: 0\r\n\r\n"),
        format!("GET /config_dump HTTP/1.1\r\n{head}\r\n"),
        format!("GET /stats HTTP/1.1\r\n{head}\r\n"),
        format!("GET /stats/prometheus?filter=.* HTTP/1.1\r\n{head}\r\n"),
        format!("GET /stats/prometheus/ HTTP/1.1\r\n{head}\r\n"),
        format!("GET /stats/prometheus/../../quitquitquit HTTP/1.1\r\n{head}\r\n"),
        format!("GET //stats/prometheus HTTP/1.1\r\n{head}\r\n"),
        format!("GET /stats%2fprometheus HTTP/1.1\r\n{head}\r\n"),
    ] {
        assert!(raw(at, &refused).await.starts_with("HTTP/1.1 403"), "{refused}");
        // As many as there may be in a second.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for refused in [
        format!("POST /stats/prometheus HTTP/1.1\r\n{head}content-length: 0\r\n\r\n"),
        format!("HEAD /stats/prometheus HTTP/1.1\r\n{head}\r\n"),
        format!("GET /stats/prometheus HTTP/1.1\r\n{head}content-length: 1\r\n\r\nx"),
    ] {
        assert!(raw(at, &refused).await.starts_with("HTTP/1.1 403"), "{refused}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let chunk = "x".repeat(4096);
    let chunked = |chunk: &str| format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{chunk}\r\n0\r\n\r\n", chunk.len());
    for body in [chunked(&chunk), chunked("xx"), format!("content-length: 1000000\r\n\r\n{chunk}")] {
        let answer = raw(at, &format!("GET /stats/prometheus HTTP/1.1\r\n{head}{body}")).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "no body goes on to the admin interface: {answer}");
    }
    // More than a reader needs is not written.
    let mut turned_away = 0;
    for _ in 0..60 {
        turned_away += usize::from(get(at, "/stats/prometheus").await.unwrap().0 == 429);
    }
    assert!(turned_away > 20, "{turned_away}");
    assert!(stepward.envoy.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn e9_a_second_envoy_at_the_same_addresses_does_not_start() {
    let (stepward, _) = stage(1).await;
    let mut second = Command::new(e2e::tools::envoy());
    second.args(["--config-path", "second.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
    second.current_dir(stepward.path(""));
    // Its admin interface has a place of its own.
    let text = std::fs::read_to_string(stepward.path("envoy.yaml")).unwrap();
    let (old, new) = (stepward.at.envoy.port().to_string(), e2e::tools::free_port().to_string());
    std::fs::write(stepward.path("second.yaml"), text.replace(&format!("\"port_value\":{old}"), &format!("\"port_value\":{new}"))).unwrap();
    let mut second = e2e::process::Process::start("second", &stepward.path(""), second);
    until("the second one ends", Duration::from_secs(30), async || (!second.is_running()).then_some(())).await;
    assert!(second.log().contains("Address already in use"), "{}", second.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn e3_every_metric_of_envoy_that_is_documented_or_alerted_on_is_on_its_page() {
    let (stepward, registered) = stage(1).await;
    let client = stepward.client(Http::Two);
    assert!(client.send(registered.ask(KNOWN)).await.unwrap().allows());
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap();
    let documented = read("docs/metrics.md");
    let (_, of_envoy) = documented.split_once("\n## Envoy\n").unwrap();
    let words = |text: &str, start: &str| -> BTreeSet<String> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        words.filter(|word| word.starts_with(start) && !word.ends_with('_')).map(str::to_owned).collect()
    };
    let listed = words(of_envoy, "envoy_");
    assert!(listed.len() > 8, "{listed:?}");
    let used: BTreeSet<_> = ["deploy/prometheus/stepward.rules.yaml", "deploy/grafana/stepward.json"]
        .iter()
        .flat_map(|file| words(&read(file), "envoy_"))
        .collect();
    let base = |name: &str| ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned();
    let undocumented: Vec<_> = used.iter().filter(|name| !listed.contains(*name) && !listed.contains(&base(name))).collect();
    assert!(undocumented.is_empty(), "{undocumented:?}");
    let mut missing = Vec::new();
    until("each is there", REPORTED, async || {
        let page = get(stepward.at.stats, "/stats/prometheus").await.unwrap().1;
        let there: BTreeSet<_> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let counted = words(of_envoy, "stepward_");
        assert!(counted.len() > 10, "{counted:?}");
        // Labels are documented too.
        let known = |name: &str| there.contains(name) || page.contains(&format!("{name}=\""));
        missing = listed.iter().chain(&counted).filter(|name| !known(name)).cloned().collect();
        // A counter of the filter is there once it has counted.
        missing.iter().all(|name| name.starts_with("stepward_")).then_some(())
    })
    .await;
    assert!(!missing.contains(&"stepward_replies_allow_allowed".to_owned()), "{missing:?}");
}
