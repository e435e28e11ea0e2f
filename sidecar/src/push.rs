//! HTTP route for events of device managements: `POST /push/<provider>`. Every event has to be proven.
//!
//! An event drops remembered answers and states no facts, so an event that is sent again, or forged by somebody with the secret,
//! costs a call at worst.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use futures::StreamExt as _;
use inventory::Proof;
use posture::credential::Credentials;
use posture::secret::Secret;
use posture::verify::SigningKeys;

use crate::runtime::Runtime;
use engine::metrics::{CallLabels, Word};

/// State that the requests of the route share.
#[derive(Clone, Debug)]
struct Shared {
    runtime: Arc<Runtime>,
    pace: Arc<Pace>,
}

/// Number of events in this second, by provider.
#[derive(Debug, Default)]
struct Pace(Mutex<HashMap<String, (Instant, u32)>>);

/// Makes the router with the route for events.
pub fn routes(runtime: Arc<Runtime>) -> Router {
    Router::new().route("/push/{provider}", post(push)).with_state(Shared { runtime, pace: Arc::default() })
}

/// Takes an event. 204 where it was taken; 404 where the provider takes none, 401, 408, 413, 429, and 400 for what is no event of
/// the provider.
async fn push(State(shared): State<Shared>, Path(name): Path<String>, headers: HeaderMap, body: Body) -> StatusCode {
    let provider = shared.runtime.snapshot().providers.get(name.as_str()).cloned();
    let Some(provider) = provider else { return StatusCode::NOT_FOUND };
    let (Some((proof, secret)), Some(cache)) = (provider.push(), provider.cache()) else { return StatusCode::NOT_FOUND };
    let outcome = async {
        // A proof that needs no body is checked before a body is read.
        if !matches!(proof, Proof::Hmac(_)) && !proven(proof, secret, &headers, b"") {
            return Err((StatusCode::UNAUTHORIZED, "unauthorized"));
        }
        let body = read(body).await?;
        if matches!(proof, Proof::Hmac(_)) && !proven(proof, secret, &headers, &body) {
            return Err((StatusCode::UNAUTHORIZED, "unauthorized"));
        }
        if !shared.pace.admits(&name, Instant::now()) {
            return Err((StatusCode::TOO_MANY_REQUESTS, "rate_limited"));
        }
        let changes = cache.inventory().parse_push(&headers, &body).map_err(|error| {
            tracing::warn!(provider = name, %error, "an event that cannot be read");
            (StatusCode::BAD_REQUEST, "malformed")
        })?;
        let about = cache.apply(&changes);
        tracing::info!(provider = name, devices = changes.len(), revoking = changes.iter().any(|change| change.revoking), "event");
        // The event is taken, whether others were told of it yet or not.
        let _ = shared.runtime.engine.fleet.tell(&name, about, TELLING).await;
        Ok(())
    };
    let (status, word) = match outcome.await {
        Ok(()) => (StatusCode::NO_CONTENT, "taken"),
        Err(refused) => refused,
    };
    let labels = CallLabels { provider: Word::from(name.as_str()), outcome: word };
    shared.runtime.engine.metrics.push_events.get_or_create(&labels).inc();
    status
}

/// Reads the bytes of an event.
async fn read(body: Body) -> Result<Bytes, (StatusCode, &'static str)> {
    // The chunks are put into one piece as they come: kept apart, chunks of a byte each would take forty times what they bring.
    let read = async {
        let (mut chunks, mut event) = (body.into_data_stream(), BytesMut::new());
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.ok().filter(|chunk| event.len().saturating_add(chunk.len()) <= LARGEST_EVENT);
            event.extend_from_slice(&chunk.ok_or((StatusCode::PAYLOAD_TOO_LARGE, "too_large"))?);
        }
        Ok(event.freeze())
    };
    tokio::time::timeout(PATIENCE, read).await.map_err(|_| (StatusCode::REQUEST_TIMEOUT, "too_slow"))?
}

impl Pace {
    /// Counts a proven event; returns false where its provider had too many in this second.
    fn admits(&self, provider: &str, now: Instant) -> bool {
        let mut seconds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let second = seconds.entry(provider.to_owned()).or_insert((now, 0));
        if now.saturating_duration_since(second.0) >= Duration::from_secs(1) {
            *second = (now, 0);
        }
        second.1 = second.1.saturating_add(1);
        second.1 <= EVENTS_A_SECOND
    }
}

/// Returns whether a request carries what only the device management can know. All comparisons take the same time, right or wrong.
pub fn proven(proof: &Proof, secret: &Secret, headers: &HeaderMap, body: &[u8]) -> bool {
    // A header that stands there twice proves nothing: one value could be checked, and the other one be meant.
    let one = |name: &str| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).map(http::HeaderValue::as_bytes)
    };
    let authorization = one(header::AUTHORIZATION.as_str());
    match proof {
        Proof::Basic(username) => Credentials::new(vec![Credentials::basic(username, secret)]).check(authorization).is_ok(),
        Proof::Bearer => Credentials::new(vec![Credentials::bearer(secret)]).check(authorization).is_ok(),
        Proof::Header(name) => one(name).is_some_and(|value| Secret::new(value.to_vec()) == *secret),
        Proof::Hmac(name) => {
            let Some(signature) = SigningKeys::new(std::slice::from_ref(secret)).sign(body) else { return false };
            let Some(given) = one(name).and_then(decoded) else { return false };
            Secret::new(given) == Secret::new(signature.as_bytes().to_vec())
        }
    }
}

/// Decodes a digest in hexadecimal or base64, with or without `sha256=` before it.
fn decoded(value: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let text = text.strip_prefix("sha256=").unwrap_or(text);
    if text.len() == 64 {
        return hex::decode(text).ok();
    }
    STANDARD.decode(text).ok()
}

/// Largest event, in bytes: a smart group's change may list thousands of devices.
const LARGEST_EVENT: usize = 1 << 20;

/// Longest time for an event to come: a client that has proven nothing yet holds a connection until then.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest time for telling other services of an event before it is answered.
const TELLING: Duration = Duration::from_secs(1);

/// Largest number of events of one provider in a second; a fleet's check-ins come evenly.
const EVENTS_A_SECOND: u32 = 1000;

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use settings::Environment;
    use tower::ServiceExt as _;

    use super::*;
    use crate::fixture;
    use crate::runtime::Configured;
    use engine::metrics::Metrics;

    /// The route of a service whose provider `inventory` takes events by this proof, under the secret `key`.
    fn served(folder: &std::path::Path, proof: &str) -> (Arc<Runtime>, Router) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let demo = folder.join("demo");
        fixture::make(&demo);
        std::fs::write(demo.join("secrets/events"), "key").unwrap();
        let path = demo.join("stepward.toml");
        let provider =
            "[provider.inventory]\ntype = \"http\"\nbase_url = \"https://127.0.0.1:9\"\npath = \"/{identifier}\"\nidentifier = \"/serial\"";
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(
            &path,
            format!("{text}\n{provider}\n[provider.inventory.push]\nsecret = {{ file = \"secrets/events\" }}\n{proof}\n"),
        )
        .unwrap();
        let source = Configured::new(Some("stepward.toml".into()), Environment::new(demo));
        let runtime = Arc::new(Runtime::start(Box::new(source), Arc::new(Metrics::default())).unwrap());
        (Arc::clone(&runtime), routes(runtime))
    }

    #[tokio::test]
    async fn b_what_needs_no_body_is_proven_before_one_is_read_and_an_hmac_by_the_body() {
        let good = || br#"{"identifier":"C02A"}"#.to_vec();
        let signed = STANDARD.encode(SigningKeys::new(&[Secret::new(b"key".to_vec())]).sign(&good()).unwrap().as_bytes());
        for (proof, header, right) in [
            ("", "authorization", "Bearer key"),
            ("header = \"X-Events\"", "x-events", "key"),
            ("hmac_header = \"X-Hmac\"", "x-hmac", &*signed),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let (runtime, routes) = served(folder.path(), proof);
            let asked = tokio::time::Instant::now();
            let post = async |path: &str, value: &str, body: Vec<u8>| {
                let request = Request::post(path).header(header, value).body(Body::from(body)).unwrap();
                routes.clone().oneshot(request).await.unwrap().status().as_u16()
            };
            let cache = Arc::clone(runtime.snapshot().providers.get("inventory").unwrap().cache().unwrap());
            let quiet = || cache.quiet_since(asked);
            let of_hmac = header == "x-hmac";
            for path in ["/push/nobody", "/push/staff"] {
                assert_eq!(post(path, right, good()).await, 404, "{path}");
            }
            assert_eq!(post("/push/inventory", "wrong", good()).await, 401, "{proof}");
            assert_eq!(post("/push/inventory", right, vec![b' '; LARGEST_EVENT + 1]).await, 413, "{proof}");
            let largest = vec![b' '; LARGEST_EVENT];
            // Without a proof no body is read, however long it is, unless the body is part of the proof.
            assert_eq!(post("/push/inventory", "wrong", vec![b' '; LARGEST_EVENT + 1]).await, if of_hmac { 413 } else { 401 }, "{proof}");
            assert_eq!(post("/push/inventory", right, largest).await, if of_hmac { 401 } else { 400 }, "{proof}");
            assert!(quiet(), "{proof}: nothing was taken so far");
            assert_eq!(post("/push/inventory", right, good()).await, 204, "{proof}");
            assert!(!quiet(), "{proof}");
            let counted = |outcome| {
                runtime.engine.metrics.push_events.get_or_create(&CallLabels { provider: Word::from("inventory"), outcome }).get()
            };
            assert_eq!(
                (counted("taken"), counted("too_large"), counted("malformed")),
                if of_hmac { (1, 2, 0) } else { (1, 1, 1) },
                "{proof}"
            );
            for _ in 0..EVENTS_A_SECOND {
                post("/push/inventory", right, good()).await;
            }
            assert!(counted("rate_limited") + counted("taken") == u64::from(EVENTS_A_SECOND) + 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn b_an_event_that_drips_in_ends_after_a_while() {
        let drip = |number: u32| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), number + 1))
        };
        let body = Body::from_stream(futures::stream::unfold(0, drip));
        let began = tokio::time::Instant::now();
        assert_eq!(read(body).await, Err((StatusCode::REQUEST_TIMEOUT, "too_slow")));
        assert_eq!(began.elapsed(), PATIENCE);
        assert_eq!(read(Body::from(vec![b' '; LARGEST_EVENT + 1])).await, Err((StatusCode::PAYLOAD_TOO_LARGE, "too_large")));
        assert_eq!(read(Body::from("{}")).await.unwrap(), "{}");
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn proves(proof: &Proof, pairs: &[(&'static str, &str)]) -> bool {
        proven(proof, &Secret::new(b"key".to_vec()), &headers(pairs), b"body")
    }

    #[test]
    fn of_ten_thousand_events_in_a_second_a_thousand_are_taken() {
        let (pace, began) = (Pace::default(), Instant::now());
        let taken = |provider: &str, after: u64| {
            let at = |number: u64| began + Duration::from_secs(after) + Duration::from_micros(number * 99);
            (0..10_000).filter(|number| pace.admits(provider, at(*number))).count()
        };
        assert_eq!((taken("jamf", 0), taken("fleet", 0)), (1000, 1000), "each has its own");
        assert_eq!(taken("jamf", 1), 1000);
    }

    #[test]
    fn only_the_secret_proves_an_event() {
        let basic = Proof::Basic("jamf".to_owned());
        assert!(proves(&basic, &[("authorization", "Basic amFtZjprZXk=")]));
        assert!(!proves(&basic, &[("authorization", "Basic amFtZjpubw==")]));
        assert!(proves(&Proof::Bearer, &[("authorization", "Bearer key")]));
        let header = Proof::Header("x-key".to_owned());
        assert!(proves(&header, &[("x-key", "key")]));
        for wrong in [&[][..], &[("x-key", "Key")], &[("x-key", "key"), ("x-key", "key")], &[("authorization", "Bearer key")]] {
            assert!(!proves(&header, wrong), "{wrong:?}");
            if wrong.first().is_none_or(|(name, _)| *name != "authorization") {
                assert!(!proves(&Proof::Bearer, wrong));
            }
        }
    }

    #[test]
    fn a_digest_is_read_in_every_form_that_services_write() {
        // HMAC-SHA256 of "body" under "key".
        let signature = SigningKeys::new(&[Secret::new(b"key".to_vec())]).sign(b"body").unwrap();
        let hex: String = signature.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let base64 = STANDARD.encode(signature.as_bytes());
        let proof = Proof::Hmac("x-hmac-signature".to_owned());
        for good in [hex.clone(), hex.to_uppercase(), format!("sha256={hex}"), base64.clone(), format!("sha256={base64}")] {
            assert!(proves(&proof, &[("x-hmac-signature", &good)]), "{good}");
        }
        let mut flipped = hex.clone();
        flipped.replace_range(..1, if hex.starts_with('0') { "1" } else { "0" });
        for bad in [&flipped, hex.get(..62).unwrap(), "", "sha256=", "zz", &"é".repeat(32)] {
            assert!(!proves(&proof, &[("x-hmac-signature", bad)]), "{bad}");
        }
    }
}
