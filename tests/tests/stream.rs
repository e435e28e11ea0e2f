//! Whatever happens to the stream between filter and sidecar, each request gets exactly one reply in time, and never an allow
//! that nobody decided. The sidecar is a fake here.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use e2e::client::{Http, Reply};
use e2e::deployment::{Deployment, Hook, Plan};
use e2e::fake_sidecar::{Down, FakeSidecar, allow, keys};
use e2e::load::volley;
use e2e::wait::until;
use e2e::webhook::Registered;
use proto::v1::{Answer, Question, sidecar_message};

/// The deadline of 3.5 s, a tick, and what a busy machine takes.
const IN_TIME: Duration = Duration::from_millis(4200);

struct Stage {
    stepward: Deployment,
    fake: FakeSidecar,
    registered: Registered,
}

async fn stage(behave: impl Fn(Question, &Down) + Send + Sync + 'static) -> Stage {
    let (stepward, registered) = without_sidecar().await;
    let fake = FakeSidecar::start(&stepward.filter_socket(), vec![keys(&registered)], behave);
    stepward.answering().await;
    Stage { stepward, fake, registered }
}

impl Stage {
    async fn volley(&self, count: usize) -> Vec<Reply> {
        let requests = (0..count).map(|_| self.registered.ask("C02XL0GYJGH5")).collect();
        let replies = volley(&self.stepward.client(Http::Two), requests).await;
        replies.into_iter().map(|reply| reply.expect("every request gets a reply")).collect()
    }

    /// Sends some, and holds that all are refused for the moment and in time.
    async fn refuses_for_the_moment(&self) {
        let before = self.stepward.vms().await;
        for reply in self.volley(30).await {
            assert_eq!((reply.status.as_u16(), reply.allows()), (503, false), "{}", String::from_utf8_lossy(&reply.body));
            assert!(reply.took < IN_TIME, "{:?}", reply.took);
        }
        assert_eq!(self.stepward.vms().await, before, "no VM died");
    }
}

async fn without_sidecar() -> (Deployment, Registered) {
    let registered = Registered::random("11111111-2222-4333-8444-555555555555");
    let mut plan = Plan::new(vec![Hook::new(registered.clone())]);
    plan.sidecar = false;
    (Deployment::start(plan).await, registered)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_sidecar_nothing_is_allowed_and_nobody_hangs() {
    let (stepward, registered) = without_sidecar().await;
    for reply in volley(&stepward.client(Http::Two), (0..30).map(|_| registered.ask("C02XL0GYJGH5")).collect()).await {
        let reply = reply.unwrap();
        assert_eq!((reply.status.as_u16(), reply.allows()), (503, false));
        assert!(reply.took < IN_TIME, "{:?}", reply.took);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_before_the_first_keys_waits_for_them() {
    let (stepward, registered) = without_sidecar().await;
    let callers = tokio::spawn({
        let (client, requests) = (stepward.client(Http::Two), (0..30).map(|_| registered.ask("C02XL0GYJGH5")).collect());
        async move { volley(&client, requests).await }
    });
    until("requests wait", IN_TIME, async || {
        (stepward.envoy_stats().await.sum(&["http.webhook.downstream_rq_active"]) >= 30.0).then_some(())
    })
    .await;
    let fake = FakeSidecar::start(&stepward.filter_socket(), vec![keys(&registered)], |question, down| down.answer(allow(&question)));
    assert!(callers.await.unwrap().into_iter().all(|reply| reply.unwrap().allows()));
    assert_eq!(fake.questions(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_time_is_passed_on() {
    let stage = stage(|question, down| {
        let down = down.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            down.answer(allow(&question));
        });
    })
    .await;
    assert!(stage.volley(30).await.iter().all(Reply::allows));
    assert_eq!(stage.fake.questions(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_at_the_deadline() {
    let stage = stage(|_, _| {}).await;
    stage.refuses_for_the_moment().await;
    assert_eq!(stage.fake.questions(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_too_late_reaches_nobody() {
    let stage = stage(|question, down| {
        let down = down.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(4)).await;
            down.answer(allow(&question));
        });
    })
    .await;
    stage.refuses_for_the_moment().await;
    stage.refuses_for_the_moment().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_nobodys_question_reaches_nobody() {
    let stage = stage(|question, down| {
        down.answer(Answer { sequence: question.sequence + 1_000_000, ..allow(&question) });
        down.answer(Answer { sequence: u64::MAX, ..allow(&question) });
    })
    .await;
    stage.refuses_for_the_moment().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_another_question_is_refused() {
    let previous = Mutex::new(None::<Answer>);
    let stage = stage(move |question, down| {
        let mut previous = previous.lock().unwrap();
        if let Some(answer) = previous.replace(allow(&question)) {
            down.answer(Answer { sequence: question.sequence, ..answer });
        }
    })
    .await;
    stage.refuses_for_the_moment().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_that_says_nothing_is_no_allow() {
    for verdict in [0, 4, 99, -1, i32::MAX] {
        let stage = stage(move |question, down| down.answer(Answer { verdict, ..allow(&question) })).await;
        stage.refuses_for_the_moment().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_is_no_json_cannot_forge_a_reply() {
    for data in ["", "{", "{}}", "{},\"allow\":true", "\u{0}"] {
        let stage = stage(move |question, down| {
            down.answer(Answer { data: data.as_bytes().to_vec().into(), ..allow(&question) });
        })
        .await;
        for reply in stage.volley(3).await {
            assert!(!reply.allows() || reply.data() == serde_json::json!({}), "{}", String::from_utf8_lossy(&reply.body));
            assert!(reply.took < IN_TIME);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_stream_is_survived() {
    let frames: [fn(&Down); 5] = [
        |down| down.bytes(&[0xff; 64]),
        |down| down.bytes(&[0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        |down| down.bytes(&[]),
        |down| down.raw(b"HTTP/1.1 200 OK\r\n\r\n{\"allow\":true}".to_vec()),
        |down| down.raw(vec![0, 0xff, 0xff, 0xff, 0xff, 1]),
    ];
    for frame in frames {
        let stage = stage(move |_, down| frame(down)).await;
        stage.refuses_for_the_moment().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_at_every_question_ends_no_request_early_or_late() {
    for status in ["0", "14"] {
        let stage = stage(move |_, down| down.close(status)).await;
        stage.refuses_for_the_moment().await;
        assert!(stage.fake.streams() > 1, "the stream is opened again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_stream_did_not_answer_the_next_one_does() {
    let first = Mutex::new(true);
    let stage = stage(move |question, down| {
        if std::mem::take(&mut *first.lock().unwrap()) {
            down.close("14");
        } else {
            down.answer(allow(&question));
        }
    })
    .await;
    assert!(stage.volley(20).await.iter().all(Reply::allows));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_stream_loses_nothing() {
    let first = Mutex::new(true);
    let stage = stage(move |question, down| {
        if std::mem::take(&mut *first.lock().unwrap()) {
            down.send(sidecar_message::Message::Drain(proto::v1::Drain {}));
            down.answer(allow(&question));
            down.close("0");
        } else {
            down.answer(allow(&question));
        }
    })
    .await;
    assert!(stage.volley(20).await.iter().all(Reply::allows));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_given_twice_is_sent_once() {
    let stage = stage(|question, down| {
        down.answer(allow(&question));
        down.answer(allow(&question));
    })
    .await;
    let before = stage.stepward.vms().await;
    let mut connection = stage.stepward.client(Http::One).connect().await.unwrap();
    for _ in 0..50 {
        assert!(connection.send(stage.registered.ask("C02XL0GYJGH5")).await.unwrap().allows());
    }
    assert_eq!(stage.stepward.vms().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_a_caller_that_has_gone_harms_nobody() {
    let held = Arc::new(Mutex::new(Vec::new()));
    let hold = Arc::clone(&held);
    let stage = stage(move |question, down| {
        if question.body.windows(4).any(|window| window == b"GONE") {
            hold.lock().unwrap().push((question, down.clone()));
        } else {
            down.answer(allow(&question));
        }
    })
    .await;
    let before = stage.stepward.vms().await;
    let client = stage.stepward.client(Http::Two);
    let requests: Vec<_> = (0..50).map(|_| stage.registered.ask("GONE")).collect();
    let callers = tokio::spawn(async move { volley(&client, requests).await });
    until("all are asked", IN_TIME, async || (held.lock().unwrap().len() == 50).then_some(())).await;
    callers.abort();
    let _ = callers.await;
    // The aborted connections are closed by now on our side; an allowed request shows that the worker has read on.
    assert!(stage.volley(5).await.iter().all(Reply::allows));
    for (question, down) in held.lock().unwrap().drain(..) {
        down.answer(allow(&question));
    }
    assert!(stage.volley(5).await.iter().all(Reply::allows));
    assert_eq!(stage.stepward.vms().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn four_thousand_that_wait_when_the_stream_closes_are_all_answered() {
    let Stage { stepward, fake, registered } = stage(|_, _| {}).await;
    let before = stepward.vms().await;
    let client = stepward.client(Http::Two);
    let requests: Vec<_> = (0..4000).map(|_| registered.ask("C02XL0GYJGH5")).collect();
    let callers = tokio::spawn(async move { volley(&client, requests).await });
    until("many are asked", Duration::from_secs(3), async || (fake.questions() > 1000).then_some(())).await;
    drop(fake);
    let replies = callers.await.unwrap();
    let statuses: Vec<_> =
        replies.iter().map(|reply| reply.as_ref().unwrap()).filter(|reply| reply.status != 503 || reply.allows()).collect();
    assert_eq!((replies.len(), statuses.len()), (4000, 0), "{statuses:?}");
    assert_eq!(stepward.vms().await, before, "no VM died");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_that_wait_are_answered_once_each() {
    let stage = stage(|_, _| {}).await;
    let before = stage.stepward.vms().await;
    let replies = stage.volley(10_000).await;
    assert_eq!(replies.len(), 10_000);
    for reply in &replies {
        assert_eq!((reply.status.as_u16(), reply.allows()), (503, false));
    }
    assert_eq!(stage.stepward.vms().await, before, "no VM died");
}
