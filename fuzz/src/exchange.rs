//! The filter's state machine. Three bytes are one event: what happens, to which request or stream, and how.

use std::time::Duration;

use bytes::Bytes;
use posture::verify::Signature;
use proto::v1::sidecar_message::Message;
use proto::v1::{Answer, Drain, Question, SidecarHello, Verdict, WebhookKeys};
use stepward_filter::config::Settings;

use crate::stand::{BODY, ID, Sort, Stand, keys};

/// Most events of a run; longer runs find nothing new.
const EVENTS: usize = 400;

/// Asserts that the promises of [`stepward_filter::exchange`] hold for any events in any order.
pub fn body(data: &[u8]) {
    let Some((&[waiting, kilobytes], events)) = data.split_first_chunk() else { return };
    let settings =
        Settings { max_waiting: usize::from(waiting) + 1, max_waiting_bytes: (usize::from(kilobytes) + 1) * 1024, ..Settings::default() };
    let mut stand = Stand::new(settings);
    for &[what, which, how] in events.as_chunks().0.iter().take(EVENTS) {
        happen(&mut stand, what, which, how);
    }
    stand.end();
}

fn happen(stand: &mut Stand, what: u8, which: u8, how: u8) {
    match what % 16 {
        0 => {
            let sort = match which % 8 {
                0 => Sort::UnknownWebhook,
                1 => Sort::Forged,
                2 => Sort::Stranger,
                3 => Sort::NoCertificate,
                4 => Sort::TooLarge,
                5 => Sort::NoPost,
                _ => Sort::Genuine,
            };
            stand.headers(sort, how & 1 == 1);
        }
        1 => {
            if let Some(request) = stand.request(which) {
                let size = if how < 128 { BODY.len() } else { usize::from(how) };
                stand.body(request, size, how & 1 == 1);
            }
        }
        2 => {
            if let Some(request) = stand.request(which) {
                stand.trailers(request);
            }
        }
        3 => {
            if let Some(request) = stand.request(which) {
                stand.done(request);
            }
        }
        4 => stand.tick(Duration::from_millis(u64::from(which) * 20 + u64::from(how))),
        5 => {
            if let Some(stream) = stand.stream(which) {
                stand.webhooks(stream, webhooks(how));
            }
        }
        6 | 7 => answer(stand, which, how),
        8 => {
            if let Some(stream) = stand.stream(which) {
                stand.close(stream);
            }
        }
        9 => {
            if let Some(stream) = stand.stream(which) {
                stand.say(stream, Message::Drain(Drain {}));
            }
        }
        10 => {
            if let Some(stream) = stand.stream(which) {
                stand.deliver(stream, &[how, which]);
            }
        }
        11 => stand.host.reachable.set(how & 1 == 1),
        12 => {
            for _ in 0..how % 100 {
                stand.whole();
            }
        }
        13 => {
            if let Some(stream) = stand.stream(which) {
                stand.say(stream, Message::Hello(SidecarHello { version: how.to_string(), build: String::new(), name: how.to_string() }));
            }
        }
        _ => {
            stand.whole();
        }
    }
}

fn webhooks(how: u8) -> Vec<WebhookKeys> {
    let known = keys();
    match how % 8 {
        0 => vec![],
        1 => vec![WebhookKeys { id: "other".to_owned(), ..known }],
        2 => vec![WebhookKeys { callers: vec!["dns:other.example.org".to_owned()], ..known }],
        3 => vec![WebhookKeys { body_limit: 10, ..known }],
        4 => vec![WebhookKeys { deadline_ms: u32::from(how), ..known }],
        5 => vec![WebhookKeys { secrets: vec![b"another".to_vec()], ..known }],
        _ => vec![known],
    }
}

/// Sends an answer, right or wrong, to one of the questions on a stream.
fn answer(stand: &mut Stand, which: u8, how: u8) {
    let Some(stream) = stand.stream(which) else { return };
    let questions = stand.questions(stream);
    let Some(question) = questions.get(usize::from(which) % questions.len().max(1)) else { return };
    let Question { sequence, webhook_id, signature, .. } = question;
    let bound = |id: &str| Signature::from_bytes(signature).unwrap().binding(id).to_vec();
    let good = Answer {
        sequence: *sequence,
        binding: bound(webhook_id),
        verdict: Verdict::Allow.into(),
        data: Bytes::from_static(b"{}"),
        ..Answer::default()
    };
    let mut on = stream;
    let answer = match how % 10 {
        0 => Answer { binding: bound("other"), ..good },
        1 => Answer { verdict: Verdict::Deny.into(), code: "device_not_found".to_owned(), ..good },
        2 => Answer { verdict: Verdict::Refuse.into(), code: "provider_unavailable".to_owned(), ..good },
        3 => Answer { verdict: how.into(), ..good },
        4 => Answer { data: Bytes::from_static(b"{},\"allow\":true"), ..good },
        5 => Answer { sequence: sequence.wrapping_add(u64::from(how)), ..good },
        6 => {
            on = stand.stream(how).unwrap_or(stream);
            good
        }
        7 => Answer { binding: bound(ID)[..usize::from(how) % 32].to_vec(), ..good },
        _ => good,
    };
    stand.say(on, Message::Answer(answer));
}
