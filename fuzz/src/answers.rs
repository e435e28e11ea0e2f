//! The sidecar's messages as they come over the wire, each after two bytes of length, high byte first.

use std::time::Duration;

use stepward_filter::config::Settings;

use crate::stand::{Stand, keys};

/// Most messages of a run; longer runs find nothing new.
const MESSAGES: usize = 100;

/// Asserts that a filter that is attached and has asked twice takes any message, and allows only by the right answer.
pub fn body(data: &[u8]) {
    let mut stand = Stand::new(Settings::default());
    if let Some(stream) = stand.stream(0) {
        stand.webhooks(stream, vec![keys()]);
    }
    stand.whole();
    stand.whole();
    let mut rest = data;
    for _ in 0..MESSAGES {
        let Some((length, after)) = rest.split_first_chunk() else { break };
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (message, after) = after.split_at(length);
        // A stream that was given up is followed by another one.
        if stand.stream(0).is_none() {
            stand.tick(Duration::from_millis(500));
        }
        if let Some(stream) = stand.stream(0) {
            stand.deliver(stream, message);
        }
        rest = after;
    }
    stand.end();
}
