//! A hundred thousand damaged requests through the real filter: nothing is allowed that was not genuine, nothing breaks.

use std::sync::Arc;

use e2e::client::{Client, Framing, Http, Outgoing};
use e2e::deployment::{Deployment, Hook, Plan};
use e2e::webhook::{Registered, enriching, timestamp};
use posture::shape::{SIGNATURE, WEBHOOK_ID};
use posture::time::Window;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use time::Duration;
use tokio::task::JoinSet;

const KNOWN: &str = "C02XL0GYJGH5";
const ID: &str = "11111111-2222-4333-8444-555555555555";
const REQUESTS: u64 = 100_000;
const SEED: u64 = 0x5eed;
const LIMIT: usize = 65_536;

/// What may come of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Allow,
    Refuse,
    /// A signed body whose damage may have hit what nobody reads; it must still name the known device.
    AllowIfItNames,
    TooLarge,
}

/// Two webhooks, so that one's secret can be tried on the other.
#[derive(Clone, Debug)]
struct Webhooks {
    one: Registered,
    other: Registered,
}

impl Webhooks {
    fn new() -> Self {
        Self { one: Registered::random(ID), other: Registered::random("another") }
    }

    async fn deploy(&self, workers: u32) -> Deployment {
        let mut plan = Plan::new(vec![Hook::new(self.one.clone()), Hook::new(self.other.clone())]);
        plan.workers = workers;
        Deployment::start(plan).await
    }

    fn damaged(&self, rng: &mut StdRng) -> (&'static str, Outgoing, Expected) {
        use Expected::{Allow, AllowIfItNames, Refuse, TooLarge};
        let one = &self.one;
        let mut body = enriching(KNOWN);
        let genuine = one.signed(body.clone());
        match rng.random_range(0..32) {
            0 => ("genuine", genuine, Allow),
            1 => ("genuine in pieces", genuine.framed(Framing::Pieces(rng.random_range(1..200))), Allow),
            2 => ("genuine with trailers", genuine.framed(Framing::Trailers(rng.random_range(1..200))), Allow),
            3 => {
                let mut forged = genuine;
                flip(&mut body, rng);
                forged.body = body.into();
                ("flipped bit", forged, Refuse)
            }
            4 => {
                let mut forged = genuine;
                body.truncate(rng.random_range(0..body.len()));
                forged.body = body.into();
                ("truncated", forged, Refuse)
            }
            5 | 6 => {
                for _ in 0..rng.random_range(1..4) {
                    flip(&mut body, rng);
                }
                ("flipped bits, signed", one.signed(body), AllowIfItNames)
            }
            7 => {
                body.truncate(rng.random_range(0..body.len()));
                ("truncated, signed", one.signed(body), Refuse)
            }
            8 => {
                let first = br#"{"attestationData":{"permanentIdentifier":"STRANGER01"},"#;
                body.splice(0..1, first.iter().copied());
                ("device named twice, signed", one.signed(body), Refuse)
            }
            9 => {
                let stranger = String::from_utf8(enriching("STRANGER01")).unwrap();
                let twice =
                    stranger.replace(r#"{"permanentIdentifier":"#, r#"{"permanentIdentifier":"C02XL0GYJGH5","permanentIdentifier":"#);
                ("identifier twice, signed", one.signed(twice), Refuse)
            }
            10 => {
                let value: Value = serde_json::from_slice(&body).unwrap();
                let fields: Vec<_> = value.as_object().unwrap().iter().rev().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                ("reordered, signed", one.signed(format!("{{ {} }}", fields.join(" ,\n"))), Allow)
            }
            11 => {
                let depth = rng.random_range(200..5000);
                let nested = |key| format!(r#"{{"{key}":{}{},"#, "[".repeat(depth), "]".repeat(depth));
                // What nobody reads is left alone; what is read has a shape.
                let (key, expected) = [("x", Allow), ("provisionerName", Refuse)][rng.random_range(0..2)];
                body.splice(0..1, nested(key).into_bytes());
                ("nested deeply, signed", one.signed(body), expected)
            }
            12 => {
                let numbers =
                    format!(r#"{{"timestamp":{}e{},"attestationData":"#, "9".repeat(rng.random_range(1..2000)), rng.random_range(0..9999));
                let text = String::from_utf8(body).unwrap();
                let rest = text.split_once(r#""attestationData":"#).map_or(&*text, |(_, rest)| rest);
                ("huge number as date, signed", one.signed(numbers + rest), Refuse)
            }
            13 => {
                let at = rng.random_range(1..body.len());
                body.insert(at, rng.random_range(0x80..=0xff));
                ("no UTF-8, signed", one.signed(body), Refuse)
            }
            14 => {
                body.splice(0..0, [0xef, 0xbb, 0xbf]);
                ("byte order mark, signed", one.signed(body), Refuse)
            }
            15 => {
                body.extend_from_slice([&b"{}"[..], b"\0", b",", b"x", b"]"][rng.random_range(0..5)]);
                ("more after the end, signed", one.signed(body), Refuse)
            }
            16 => {
                let signature = one.signature(&body);
                ("two signatures", genuine.header(SIGNATURE, &signature), Refuse)
            }
            17 => (
                "a false signature first",
                genuine.without(SIGNATURE).header(SIGNATURE, &"0".repeat(64)).header(SIGNATURE, &one.signature(&body)),
                Refuse,
            ),
            18 => ("upper case", genuine.replace(SIGNATURE, &one.signature(&body).to_ascii_uppercase()), Refuse),
            19 => {
                let cut = one.signature(&body)[..rng.random_range(0..64)].to_owned();
                ("short signature", genuine.replace(SIGNATURE, &cut), Refuse)
            }
            20 => {
                let signature = one.signature(&body);
                let padded =
                    [format!("{signature}0"), format!("sha256={signature}"), format!("{signature}, {signature}"), format!("0x{signature}")];
                ("long signature", genuine.replace(SIGNATURE, &padded[rng.random_range(0..4)]), Refuse)
            }
            21 => {
                let mut signature = one.signature(&body).into_bytes();
                let at = rng.random_range(0..64);
                signature[at] = b"ghxyz _-"[rng.random_range(0..8)];
                // White space at either end is no part of a header's value.
                signature[0] = if signature[0] == b' ' { b'x' } else { signature[0] };
                signature[63] = if signature[63] == b' ' { b'x' } else { signature[63] };
                ("no hexadecimal", genuine.without(SIGNATURE).header_bytes(SIGNATURE, &signature), Refuse)
            }
            22 => ("no signature", genuine.without(SIGNATURE), Refuse),
            23 => ("two ids", genuine.header(WEBHOOK_ID, [ID, "another"][rng.random_range(0..2)]), Refuse),
            24 => ("another id", genuine.replace(WEBHOOK_ID, ["another", "", "unknown", "*", "11111111"][rng.random_range(0..5)]), Refuse),
            25 => ("no id", genuine.without(WEBHOOK_ID), Refuse),
            26 => ("another webhook's secret", genuine.replace(SIGNATURE, &self.other.signature(&body)), Refuse),
            27 => {
                let empty = Registered { id: ID.to_owned(), secret: String::new() };
                ("empty secret", genuine.replace(SIGNATURE, &empty.signature(&body)), Refuse)
            }
            28 => ("nothing, signed", one.signed(Vec::new()), Refuse),
            29 => {
                let (past, future) = window();
                let ahead: bool = rng.random();
                let offset =
                    Duration::seconds(if ahead { rng.random_range(future + 2..100_000) } else { rng.random_range(-100_000..-past - 2) });
                let body = json!({"timestamp": timestamp(offset), "attestationData": {"permanentIdentifier": KNOWN}, "x509CertificateRequest": {}});
                ("another time, signed", one.signed(body.to_string()), Refuse)
            }
            30 => ("unknown device", one.ask(&format!("STRANGER{:06}", rng.random_range(0..999_999))), Refuse),
            // Large ones, now and then.
            _ if rng.random_range(0..20) == 0 => {
                let size = [LIMIT - 1, LIMIT, LIMIT + 1][rng.random_range(0..3)];
                let request = one.signed(padded(size));
                ("at the limit", request, if size > LIMIT { TooLarge } else { Allow })
            }
            _ => ("no JSON, signed", one.signed((0..rng.random_range(1..300)).map(|_| rng.random()).collect::<Vec<u8>>()), Refuse),
        }
    }
}

/// The default window in seconds, into the past and ahead.
fn window() -> (i64, i64) {
    let Window { past, future } = Window::default();
    (past.as_secs().try_into().unwrap(), future.as_secs().try_into().unwrap())
}

fn flip(body: &mut [u8], rng: &mut StdRng) {
    let at = rng.random_range(0..body.len());
    body[at] ^= 1 << rng.random_range(0..8);
}

/// A genuine body of exactly this size.
fn padded(size: usize) -> Vec<u8> {
    let mut body: Value = serde_json::from_slice(&enriching(KNOWN)).unwrap();
    body["padding"] = "".into();
    body["padding"] = "x".repeat(size - body.to_string().len()).into();
    body.to_string().into_bytes()
}

/// Whether a body, read by a reader other than Stepward's, names the known device and nothing else.
fn names_the_known_device(body: &[u8]) -> bool {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return false };
    let identifier = body["attestationData"]["permanentIdentifier"].as_str().unwrap_or_default();
    let name = body["x509CertificateRequest"]["subject"]["commonName"].as_str().unwrap_or_default();
    body["x509CertificateRequest"].is_object() && identifier.trim().eq_ignore_ascii_case(KNOWN) && (name.is_empty() || name == identifier)
}

async fn send_all(client: Client, webhooks: Webhooks, seed: u64, count: u64) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut connection = client.connect().await.unwrap();
    let mut faults = Vec::new();
    for _ in 0..count {
        if !connection.is_open() {
            connection = client.connect().await.unwrap();
        }
        let (name, request, expected) = webhooks.damaged(&mut rng);
        let body = request.body.clone();
        let reply = match connection.send(request).await {
            Ok(reply) => reply,
            // A connection that Envoy closed after refusing a request carries no other one.
            Err(error) => {
                if !format!("{error:#}").contains("clos") {
                    faults.push(format!("{name}: {error:#}"));
                }
                connection = client.connect().await.unwrap();
                continue;
            }
        };
        let status = reply.status.as_u16();
        let good = match expected {
            Expected::Allow => status == 200 && reply.allows(),
            Expected::Refuse => !reply.allows() && status < 500,
            Expected::AllowIfItNames => status < 500 && (!reply.allows() || names_the_known_device(&body)),
            Expected::TooLarge => status == 413,
        };
        if !good {
            faults.push(format!("{name}: {:?} to {:?}", reply.verdict(), String::from_utf8_lossy(&body[..body.len().min(600)])));
        }
    }
    faults
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_damaged_requests_break_nothing_and_get_nothing() {
    const CALLERS: u64 = 20;
    let webhooks = Webhooks::new();
    let mut stepward = webhooks.deploy(1).await;
    let vms = stepward.vms().await;
    let mut memory = 0;
    for (round, count) in [(0, REQUESTS / 10), (1, REQUESTS - REQUESTS / 10)] {
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let client = stepward.client(if caller % 4 == 0 { Http::One } else { Http::Two });
            callers.spawn(send_all(client, webhooks.clone(), SEED + caller + 1000 * round, count / CALLERS));
        }
        let faults = callers.join_all().await.concat();
        assert_eq!(faults.iter().take(10).collect::<Vec<_>>(), [""; 0], "{} in all", faults.len());
        if round == 0 {
            memory = stepward.envoy.memory();
        }
    }
    let after = stepward.envoy.memory();
    assert!(after < memory + (32 << 20), "Envoy grew from {} to {} MiB", memory >> 20, after >> 20);
    assert_eq!(stepward.vms().await, vms, "no VM died");
    assert!(stepward.envoy.is_running() && stepward.sidecar().is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_signature_with_one_flipped_bit_is_accepted() {
    let webhooks = Webhooks::new();
    let stepward = webhooks.deploy(1).await;
    let mut connection = stepward.client(Http::Two).connect().await.unwrap();
    let body = enriching(KNOWN);
    let signature = webhooks.one.signature(&body);
    for bit in 0..256 {
        let mut digits = signature.clone().into_bytes();
        let digit = u32::from_str_radix(&signature[bit / 4..=bit / 4], 16).unwrap() ^ (1 << (3 - bit % 4));
        digits[bit / 4] = u8::try_from(char::from_digit(digit, 16).unwrap()).unwrap();
        let forged = webhooks.one.signed(body.clone()).replace(SIGNATURE, std::str::from_utf8(&digits).unwrap());
        assert_eq!(connection.send(forged).await.unwrap().verdict(), (401, "unauthorized".to_owned()), "bit {bit}");
    }
    assert!(connection.send(webhooks.one.signed(body)).await.unwrap().allows());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_is_exact_however_a_body_comes() {
    let webhooks = Arc::new(Webhooks::new());
    let stepward = webhooks.deploy(1).await;
    for http in [Http::One, Http::Two] {
        for framing in [Framing::Length, Framing::Pieces(1000), Framing::Pieces(16_384), Framing::Trailers(5000)] {
            for (size, status) in [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413)] {
                let reply = stepward.client(http).send(webhooks.one.signed(padded(size)).framed(framing)).await.unwrap();
                assert_eq!((reply.status.as_u16(), reply.allows()), (status, status == 200), "{http:?} {framing:?} {size}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_http_get_nothing() {
    let webhooks = Webhooks::new();
    let stepward = webhooks.deploy(1).await;
    let vms = stepward.vms().await;
    let client = stepward.client(Http::One);
    let body = enriching(KNOWN);
    let head =
        format!("POST /webhook/a HTTP/1.1\r\nhost: localhost\r\n{WEBHOOK_ID}: {ID}\r\n{SIGNATURE}: {}\r\n", webhooks.one.signature(&body));
    let with = |rest: &str, body: &[u8]| [head.as_bytes(), rest.as_bytes(), body].concat();
    let length = body.len();
    let requests = [
        b"\0\0\0\0".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        with("content-length: -1\r\n\r\n", &body),
        with(&format!("content-length: {length}\r\ncontent-length: 0\r\n\r\n"), &body),
        with(&format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), &body),
        with("transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n", &body),
        with("transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n", &[]),
        with("x: a\r\n b\r\ncontent-length: 0\r\n\r\n", &[]),
        with("x_smallstep_signature: 0\r\ncontent-length: 0\r\n\r\n", &[]),
    ];
    for request in requests {
        let answer = client.raw(&request).await.unwrap_or_default();
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("\"allow\":true"), "{answer}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert!(client.send(webhooks.one.ask(KNOWN)).await.unwrap().allows());
    assert_eq!(stepward.vms().await, vms, "no VM died");
}

#[tokio::test(flavor = "multi_thread")]
async fn c5_the_access_log_names_the_webhook_where_its_id_can_be_printed() {
    let webhooks = Webhooks::new();
    let mut stepward = webhooks.deploy(1).await;
    let client = stepward.client(Http::Two);
    for (id, allowed) in [("left\u{202e}right", false), ("nobody here", false), (ID, true)] {
        let reply = client.send(webhooks.one.ask(KNOWN).replace(WEBHOOK_ID, id)).await.unwrap();
        assert_eq!(reply.allows(), allowed, "{id}");
    }
    for (decision, id) in [("refuse:webhook_unknown", "nobody here"), ("allow:allowed", ID)] {
        // Envoy writes its access log every ten seconds.
        stepward.envoy.printed(&format!("\"webhook_id\":\"{id}\""), std::time::Duration::from_secs(20)).await;
        let line = stepward.envoy.log().lines().find(|line| line.contains(id)).unwrap().to_owned();
        assert!(line.contains(&format!("\"decision\":\"{decision}\"")), "{line}");
    }
    assert!(!stepward.envoy.log().contains("right"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_second_outside_the_window_is_refused() {
    let webhooks = Webhooks::new();
    let stepward = webhooks.deploy(1).await;
    let mut connection = stepward.client(Http::Two).connect().await.unwrap();
    let (past, future) = window();
    // At both ends the time that the request takes decides; the rules' own tests are exact there.
    for second in (-600..=600).filter(|second| ![-past, future].contains(second)) {
        // The middle of the second: a request takes less than half of one.
        let offset = Duration::seconds(second) + Duration::milliseconds(500);
        let body = json!({
            "timestamp": timestamp(offset),
            "attestationData": {"permanentIdentifier": KNOWN},
            "x509CertificateRequest": {"subject": {"commonName": KNOWN}},
        });
        let reply = connection.send(webhooks.one.signed(body.to_string())).await.unwrap();
        let expected = if (-past..future).contains(&second) { (200, "allow") } else { (401, "unauthorized") };
        assert_eq!(reply.verdict(), (expected.0, expected.1.to_owned()), "{second}");
    }
}
