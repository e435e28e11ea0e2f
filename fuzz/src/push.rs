//! Events of device managements as they come to the public address: their proof, and their contents.
//!
//! The first line names the kind of input: a service, by its word, with the event after it; or a proof (`basic`, `bearer`,
//! `header`, `hmac`), with the header's value in the second line and the body after that.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue};
use inventory::{Inventory, Proof, Subject};
use posture::secret::Secret;
use posture::verify::SigningKeys;
use serde_json::Value;
use sidecar::push::proven;

use crate::line::line;
use crate::managements;

static SERVICES: LazyLock<BTreeMap<&'static str, Arc<dyn Inventory>>> = LazyLock::new(|| {
    fakes::services::SERVICES.iter().map(|service| (service.word, managements::open(service, "http://127.0.0.1:1"))).collect()
});

/// Asserts that an event names only devices that are in it, within bounds, and that only the secret proves an event.
pub fn body(data: &[u8]) {
    let (first, rest) = line(data);
    let Ok(first) = std::str::from_utf8(first) else { return };
    match SERVICES.get(first) {
        Some(service) => event(&**service, rest),
        None => proof_of(first, rest),
    }
}

fn event(service: &dyn Inventory, body: &[u8]) {
    let Ok(changes) = service.parse_push(&HeaderMap::new(), body) else { return };
    assert!(changes.len() <= 10_001, "{} changes", changes.len());
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
    let whole: Value = serde_json::from_slice(body).expect("taken, and not JSON");
    let mut words = Vec::new();
    collect(&whole, &mut words);
    for change in &changes {
        let named = match &change.device {
            Subject::Everything => continue,
            Subject::Identifier(text) => text.as_str(),
            // Jamf Pro numbers computers and mobile devices apart.
            Subject::ProviderId(id) => id.split_once(':').map_or(id.as_str(), |(_, number)| number),
        };
        assert!(!named.trim().is_empty(), "{named:?}");
        assert!(words.iter().any(|word| word.contains(named)), "{named:?} does not stand in the event");
    }
}

/// Collects all texts and numbers in a value.
fn collect(value: &Value, words: &mut Vec<String>) {
    match value {
        Value::String(text) => {
            // An id may be written as a text, with leading zeros.
            words.extend(text.parse::<u64>().ok().map(|number| number.to_string()));
            words.push(text.clone());
        }
        Value::Number(number) => words.push(number.to_string()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, words)),
        Value::Object(members) => members.values().for_each(|member| collect(member, words)),
        Value::Null | Value::Bool(_) => {}
    }
}

fn proof_of(proof: &str, rest: &[u8]) {
    let (given, body) = line(rest);
    let Ok(value) = HeaderValue::from_bytes(given) else { return };
    let (name, proof) = match proof {
        "basic" => ("authorization", Proof::Basic("jamf".to_owned())),
        "bearer" => ("authorization", Proof::Bearer),
        "header" => ("x-key", Proof::Header("x-key".to_owned())),
        "hmac" => ("x-signature", Proof::Hmac("x-signature".to_owned())),
        _ => return,
    };
    let secret = Secret::new(b"key".to_vec());
    let mut headers = HeaderMap::new();
    headers.insert(name, value);
    let taken = proven(&proof, &secret, &headers, body);
    let text = String::from_utf8_lossy(given);
    let text = text.trim();
    let after = |scheme: &str| {
        let (given, rest) = text.split_once(' ')?;
        given.eq_ignore_ascii_case(scheme).then(|| rest.trim().to_owned())
    };
    let right = match proof {
        Proof::Basic(_) => after("basic").is_some_and(|given| given == "amFtZjprZXk="),
        Proof::Bearer => after("bearer").is_some_and(|given| given == "key"),
        Proof::Header(_) => text == "key",
        Proof::Hmac(_) => {
            let signature = SigningKeys::new(std::slice::from_ref(&secret)).sign(body).unwrap();
            let hex: String = signature.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            let text = text.strip_prefix("sha256=").unwrap_or(text);
            text.eq_ignore_ascii_case(&hex) || text == STANDARD.encode(signature.as_bytes())
        }
    };
    assert!(right || !taken, "{text:?} proves");
    headers.append(name, HeaderValue::from_static("key"));
    assert!(!proven(&proof, &secret, &headers, body), "one of two values was taken");
}

#[cfg(test)]
mod tests {
    use inventory::NotAnEvent;

    use super::*;

    #[test]
    fn every_service_that_takes_events_has_some_in_the_corpus() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/push");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        for (word, service) in SERVICES.iter() {
            if service.parse_push(&HeaderMap::new(), b"") != Err(NotAnEvent::NO_EVENTS) {
                let events = files.iter().filter(|data| line(data).0 == word.as_bytes()).count();
                assert!(events >= 3, "fuzz/corpus/push/ has {events} events of {word}");
            }
        }
    }
}
