//! The body of a webhook. It is signed here, so that all code behind the signature is reached.

use std::time::Duration;

use posture::identity::{Field, IdentifierKind, Source, Trust, normal};
use posture::notification::Notification;
use posture::outcome::Refusal;
use posture::secret::Secret;
use posture::time::{UnixTime, Window};
use posture::verify::{Signature, SigningKeys, Verified};
use posture::webhook::{Kind, Stamp as _, Stamped, Webhook};
use serde_json::Value;

const NOW: UnixTime = UnixTime::from_nanos(1_795_392_000_000_000_000);
const ALWAYS: Window = Window { past: Duration::MAX, future: Duration::MAX };
const KINDS: [Kind; 4] = [Kind::Enriching, Kind::Authorizing, Kind::ScepChallenge, Kind::Notifying];

/// Asserts that filter and sidecar agree, that the time is the one in the body, and that only a signed body verifies.
pub fn body(data: &[u8]) {
    let keys = SigningKeys::new(&[Secret::new(b"secret".to_vec())]);
    let signature = keys.sign(data).unwrap();
    let stamped = Verified::<Stamped<'_>>::verify(&keys, &signature, data, &ALWAYS, NOW);
    let webhook = Verified::<Webhook<'_>>::verify(&keys, &signature, data, &ALWAYS, NOW);
    if let Ok(webhook) = &webhook {
        assert_eq!(stamped.as_ref().map(Verified::age), Ok(webhook.age()), "the sidecar takes what the filter does not");
        of_one_kind(webhook.get());
        identified(webhook.get(), data);
        told_by_notification(webhook.get());
    }
    match &stamped {
        Ok(stamped) => {
            let at = stamped.get().timestamp().unwrap();
            assert_eq!(stamped.age(), NOW.nanos_since(at));
            // serde_json finds the same, in the bodies that it accepts: it refuses deep nesting, for example.
            if let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) {
                assert_eq!(value["timestamp"].as_str().and_then(UnixTime::parse), Some(at));
            }
            bounded(&keys, &signature, data, at);
        }
        Err(refusal) => assert_eq!(*refusal, Refusal::Malformed),
    }
    tampered(&keys, &signature, data);
}

/// The body as the sidecar reads it, once its signature and its time are proven.
#[cfg(test)]
fn verified(data: &[u8]) -> Option<Verified<Webhook<'_>>> {
    let keys = SigningKeys::new(&[Secret::new(b"secret".to_vec())]);
    Verified::verify(&keys, &keys.sign(data)?, data, &ALWAYS, NOW).ok()
}

/// Asserts that both ends of the window belong to it.
fn bounded(keys: &SigningKeys, signature: &Signature, data: &[u8], at: UnixTime) {
    if at.as_nanos().unsigned_abs() > 1 << 62 {
        return;
    }
    let window = Window::default();
    let judge = |now| Verified::<Stamped<'_>>::verify(keys, signature, data, &window, now).map(|verified| verified.age());
    let nanosecond = Duration::from_nanos(1);
    let nanos = |bound: Duration| i64::try_from(bound.as_nanos()).unwrap();
    assert_eq!(judge(at), Ok(0));
    assert_eq!(judge(at.saturating_add(window.past)), Ok(nanos(window.past)));
    assert_eq!(judge(at.saturating_add(window.past + nanosecond)), Err(Refusal::TimestampPast));
    assert_eq!(judge(at.saturating_sub(window.future)), Ok(-nanos(window.future)));
    assert_eq!(judge(at.saturating_sub(window.future + nanosecond)), Err(Refusal::TimestampFuture));
}

/// Asserts that the body does not verify with one bit of it or of the signature changed; the bit is chosen by the body.
fn tampered(keys: &SigningKeys, signature: &Signature, data: &[u8]) {
    let refused = |signature: &Signature, data: &[u8]| {
        let verified = Verified::<Stamped<'_>>::verify(keys, signature, data, &ALWAYS, NOW);
        assert_eq!(verified.unwrap_err(), Refusal::Signature);
    };
    let pick = data.iter().fold(7_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
    let mut tag = *signature.as_bytes();
    tag[pick % 32] ^= 1 << (pick / 32 % 8);
    refused(&Signature::from_bytes(&tag).unwrap(), data);
    let mut flipped = data.to_vec();
    if let Some(byte) = flipped.get_mut(pick % data.len().max(1)) {
        *byte ^= 1 << (pick / 32 % 8);
        refused(signature, &flipped);
    }
    flipped.push(0);
    refused(signature, &flipped);
}

fn of_one_kind(webhook: &Webhook<'_>) {
    let kinds: Vec<_> = KINDS.into_iter().filter(|kind| webhook.check_kind(*kind).is_ok()).collect();
    assert!(!kinds.contains(&Kind::Authorizing) || !kinds.contains(&Kind::Enriching), "{kinds:?}");
    assert!(webhook.attestation_data.is_none() || kinds.len() <= 1, "{kinds:?}");
    assert!(!kinds.contains(&Kind::Enriching) || webhook.scep_challenge.is_none(), "{kinds:?}");
}

fn identified(webhook: &Webhook<'_>, data: &[u8]) -> usize {
    let attested = webhook.attestation_data.as_ref().map(|data| data.permanent_identifier.as_ref());
    let request = webhook.x509_certificate_request.as_ref();
    let common_name = request.and_then(|request| request.subject.as_ref()?.common_name.as_deref()).filter(|name| !name.is_empty());
    let claimed = Field::ALL.iter().flat_map(|field| [Source::Claimed(*field), Source::Certificate(*field)]);
    let mut found = 0;
    for source in claimed.chain([Source::Attested, Source::Principal]) {
        for kind in IdentifierKind::ALL {
            let Ok(identity) = source.identify(webhook, *kind) else { continue };
            found += 1;
            let device = &identity.device;
            assert_eq!(device.kind(), *kind);
            assert_eq!(device.normal(), normal(device.stated()));
            assert!(!device.normal().is_empty() && device.stated().len() <= 254 && !device.stated().chars().any(char::is_control));
            if let (Some(attested), Some(common_name)) = (attested, common_name) {
                assert_eq!(attested, common_name);
            }
            match source {
                Source::Attested => {
                    assert_eq!(attested, Some(device.stated()));
                    assert_eq!(identity.trust, Trust::Attested);
                }
                Source::Claimed(field) => {
                    assert_eq!(identity.trust, Trust::Claimed);
                    for told in told(field, data) {
                        assert_eq!(normal(&told), device.normal(), "{field:?}");
                    }
                }
                Source::Certificate(_) => {
                    assert_eq!(identity.trust, Trust::Certificate);
                    assert!(webhook.x5c_certificate.is_some());
                }
                Source::Principal => {
                    assert_eq!(webhook.authorization_principal.as_deref(), Some(device.stated()));
                    assert_eq!(identity.trust == Trust::Certificate, webhook.x5c_certificate.is_some());
                }
            }
        }
    }
    found
}

/// The names of this sort in the fields of the JSON itself, whichever of them is signed.
fn told(field: Field, data: &[u8]) -> Vec<String> {
    let Ok(body) = serde_json::from_slice::<Value>(data) else { return Vec::new() };
    let half = ["x509CertificateRequest", "x509Certificate"].into_iter().map(|half| &body[half]).find(|half| half.is_object());
    let Some(half) = half else { return Vec::new() };
    let (list, kind, id) = match field {
        Field::SubjectCommonName => ("commonName", "", "2.5.4.3"),
        Field::SubjectSerialNumber => ("serialNumber", "", "2.5.4.5"),
        Field::SanDns => ("dnsNames", "dns", ""),
        Field::SanEmail => ("emailAddresses", "email", ""),
        Field::SanUri => ("uris", "uri", ""),
        _ => return Vec::new(),
    };
    let typed = |from: &Value, kind: &str| -> Vec<Value> {
        let items = from.as_array().into_iter().flatten().filter(|item| !kind.is_empty() && item["type"] == kind);
        items.map(|item| item["value"].clone()).collect()
    };
    let of_list = |from: &Value| from.as_array().cloned().unwrap_or_else(|| vec![from.clone()]);
    let all = if id.is_empty() {
        [of_list(&half[list]), typed(&half["sans"], kind)].concat()
    } else {
        [of_list(&half["subject"][list]), typed(&half["subject"]["extraNames"], id)].concat()
    };
    all.iter().filter_map(Value::as_str).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Asserts that the texts of a notification are short, and can be printed.
fn told_by_notification(webhook: &Webhook<'_>) {
    let told = Notification::of(webhook);
    assert_eq!(
        told.result == "issued",
        webhook.x509_certificate.is_some() && told.error_code.is_none() && webhook.scep_error_description.is_none()
    );
    for text in [&told.provisioner, &told.transaction, &told.serial, &told.error].into_iter().flatten() {
        assert!(!text.is_empty() && text.len() <= 256 * 10 + 3 && !text.chars().any(char::is_control), "{text:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f_the_corpus_reaches_what_is_behind_the_signature() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/webhook");
        let (mut read, mut named, mut kinds) = (0, 0, std::collections::BTreeSet::new());
        for file in std::fs::read_dir(folder).unwrap() {
            let data = std::fs::read(file.unwrap().path()).unwrap();
            let Some(webhook) = verified(&data) else { continue };
            read += 1;
            named += usize::from(identified(webhook.get(), &data) > 0);
            kinds.extend(KINDS.into_iter().filter(|kind| webhook.get().check_kind(*kind).is_ok()).map(Kind::as_str));
        }
        assert!(read >= 25, "{read} bodies are read");
        assert!(named >= 20, "{named} bodies name a device");
        assert_eq!(kinds.len(), KINDS.len(), "{kinds:?}");
    }
}
