//! Envoy's user, without any secret, over the filter's socket: it can be refused, and nothing else.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use e2e::client::Http;
use e2e::deployment::{Deployment, Hook, Plan};
use e2e::load::volley;
use e2e::wait::until;
use e2e::webhook::{Registered, enriching};
use proto::v1::filter_message::Message as FromFilter;
use proto::v1::filter_service_client::FilterServiceClient;
use proto::v1::sidecar_message::Message as ToFilter;
use proto::v1::{FilterHello, FilterMessage, Question, SidecarMessage};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

const KNOWN: &str = "C02XL0GYJGH5";
const ID: &str = "11111111-2222-4333-8444-555555555555";
const STORE: &str = "[store]\npath = \"stepward.db\"\nmax_decisions = 2000\n";

/// One stream, as a filter opens it.
struct Stream {
    questions: UnboundedSender<FilterMessage>,
    answers: Streaming<SidecarMessage>,
}

async fn connect(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap()
}

async fn attach(channel: &Channel, vm: u64) -> Stream {
    let (questions, receiver) = unbounded_channel();
    let hello = FilterHello { vm, ..FilterHello::default() };
    questions.send(FilterMessage { message: Some(FromFilter::Hello(hello)) }).unwrap();
    let answers = FilterServiceClient::new(channel.clone()).attach(UnboundedReceiverStream::new(receiver)).await.unwrap().into_inner();
    Stream { questions, answers }
}

async fn stage() -> (Deployment, Registered) {
    let registered = Registered::random(ID);
    let mut plan = Plan::new(vec![Hook::new(registered.clone())]);
    plan.more = STORE.to_owned();
    (Deployment::start(plan).await, registered)
}

fn decisions(stepward: &Deployment) -> Vec<Value> {
    serde_json::from_str(&stepward.ask(&["decisions", "--limit", "1000", "--output", "json"])).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_questions_that_nobody_signed_take_no_place_of_decisions_and_hardly_any_of_the_log() {
    let (mut stepward, registered) = stage().await;
    let requests = (0..50).map(|_| registered.ask(KNOWN)).collect();
    assert!(volley(&stepward.client(Http::Two), requests).await.into_iter().all(|reply| reply.unwrap().allows()));
    until("fifty decisions are kept", Duration::from_secs(10), async || (decisions(&stepward).len() == 50).then_some(())).await;
    let before = stepward.sidecar().log().len();

    let channel = connect(&stepward.filter_socket()).await;
    let mut stream = attach(&channel, 1).await;
    let mut refused = 0;
    for sequence in 1..=6000 {
        let (webhook_id, signature) = match sequence % 3 {
            0 => (ID.to_owned(), vec![7; 32]),
            1 => (ID.to_owned(), vec![7; 5]),
            _ => (format!("{sequence:>0300}"), vec![7; 32]),
        };
        let body = Bytes::from(enriching(&format!("FORGED{sequence}")));
        let question = Question { sequence, webhook_id, signature, body, request_id: "r".repeat(4000), ..Question::default() };
        stream.questions.send(FilterMessage { message: Some(FromFilter::Question(question)) }).unwrap();
        // A second greeting is no second line of the log, nor a second name.
        let hello = FilterHello { vm: sequence, ..FilterHello::default() };
        stream.questions.send(FilterMessage { message: Some(FromFilter::Hello(hello)) }).unwrap();
    }
    while refused < 6000 {
        match stream.answers.message().await.unwrap().unwrap().message {
            Some(ToFilter::Answer(answer)) => {
                assert!(!answer.code.is_empty() && answer.data.is_empty(), "{answer:?}");
                refused += 1;
            }
            _ => continue,
        }
    }
    // What comes after them is kept after them.
    assert!(stepward.client(Http::One).send(registered.ask(KNOWN)).await.unwrap().allows());
    until("the next decision is kept", Duration::from_secs(10), async || (decisions(&stepward).len() > 50).then_some(())).await;
    let kept = decisions(&stepward);
    assert_eq!(kept.len(), 51);
    assert!(kept.iter().all(|decision| decision["decision"] == "allow"), "{kept:?}");
    let metrics = stepward.metrics().await;
    assert_eq!(metrics.sum(&["stepward_decisions_total", "decision=\"refuse\""]), 6000.0, "they are counted");
    assert_eq!(metrics.sum(&["stepward_filter_workers "]), 2.0, "Envoy's worker, and the one that attached");
    let log = stepward.sidecar().log();
    let written = log.len() - before;
    assert!(written < 40_000, "{written} bytes of log");
    assert!(log.contains("a question failed its proof"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_streams_that_are_held_do_not_keep_a_starting_envoy_out() {
    let (mut stepward, registered) = stage().await;
    let mut held = Vec::new();
    for vm in 0..4160 {
        if vm % 64 == 0 {
            held.push((connect(&stepward.filter_socket()).await, Vec::new()));
        }
        let (channel, streams) = held.last_mut().unwrap();
        streams.push(attach(channel, vm).await);
    }
    // The Envoy that was there goes on, and one that starts gets in.
    let ask = async |stepward: &Deployment| stepward.client(Http::One).send(registered.ask(KNOWN)).await.unwrap();
    assert!(ask(&stepward).await.allows());
    stepward.restart_envoy().await;
    stepward.answering().await;
    for _ in 0..5 {
        assert!(ask(&stepward).await.allows());
    }
    assert!(stepward.metrics().await.sum(&["stepward_filter_streams"]) <= 4096.0);
}
