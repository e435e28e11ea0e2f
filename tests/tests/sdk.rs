//! What the SDK of the filter panics on (`docs/decisions/0054`), tried through a real Envoy: what a peer or an operator can bring
//! about ends in a refusal, and in most cases without a panic.

use std::net::SocketAddr;
use std::time::Duration;

use e2e::client::{Client, Http};
use e2e::deployment::{Deployment, Hook, Plan};
use e2e::tools::free_port;
use e2e::webhook::Registered;

const KNOWN: &str = "C02XL0GYJGH5";
const ID: &str = "11111111-2222-4333-8444-555555555555";
const IN_TIME: Duration = Duration::from_millis(4200);

async fn stage() -> (Deployment, Registered) {
    let registered = Registered::random(ID);
    (Deployment::start(Plan::new(vec![Hook::new(registered.clone())])).await, registered)
}

/// A request without a body that has a header of this name.
fn http1(name: &[u8]) -> Vec<u8> {
    [b"POST /webhook/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n", name, b": 1\r\n\r\n"].concat()
}

/// The same in HTTP/2 (RFC 9113), its fields without any compression (RFC 7541, 6.2.2).
fn http2(name: &[u8]) -> Vec<u8> {
    let text = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()], text].concat();
    let block = [
        // `:method: POST` and `:scheme: https` of the static table, and the names of `:path` and `:authority`.
        b"\x83\x87\x04".to_vec(),
        text(b"/webhook/a"),
        b"\x01".to_vec(),
        text(b"localhost"),
        b"\x00".to_vec(),
        text(name),
        text(b"1"),
    ]
    .concat();
    let frame = |kind, flags, stream, payload: &[u8]| {
        [&[0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream], payload].concat()
    };
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frame(1, 0b101, 1, &block)].concat()
}

/// Whether it was the filter that answered.
fn judged(answer: &[u8]) -> bool {
    String::from_utf8_lossy(answer).contains(r#""allow":false"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_of_a_header_reaches_the_sdk_that_is_not_utf8() {
    let (stepward, registered) = stage().await;
    let (one, two) = (stepward.client(Http::One), stepward.client(Http::Two));
    let vms = stepward.vms().await;
    for (name, reaches) in [(b"name".as_slice(), true), (b"n\xff", false), (b"\xc3", false), (b"\xc3\xa4", false), (b"n\0", false)] {
        assert_eq!(judged(&one.raw(&http1(name)).await.unwrap_or_default()), reaches, "{name:?}");
        assert_eq!(judged(&two.raw(&http2(name)).await.unwrap_or_default()), reaches, "{name:?}");
    }
    for client in [one, two] {
        // A value may be any bytes.
        assert!(client.send(registered.ask(KNOWN).header_bytes("x-odd", b"\xff\xfe")).await.unwrap().allows());
    }
    assert_eq!(stepward.vms().await, vms, "no VM died");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_headers_than_envoy_takes_get_nothing_and_end_no_vm() {
    let (stepward, registered) = stage().await;
    let vms = stepward.vms().await;
    let request = (0..100).fold(registered.ask(KNOWN), |request, number| request.header(&format!("x-{number}"), "1"));
    for http in [Http::One, Http::Two] {
        let client = stepward.client(http);
        for request in [request.clone(), registered.ask(KNOWN).header("x-long", &"a".repeat(40_000))] {
            assert!(!client.send(request).await.is_ok_and(|reply| reply.allows()));
        }
        assert!(client.send(registered.ask(KNOWN)).await.unwrap().allows());
    }
    assert_eq!(stepward.vms().await, vms, "no VM died");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_without_its_cluster_refuses_and_another_one_in_its_vm_goes_on() {
    let (mut stepward, registered) = stage().await;
    let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let bootstrap = std::fs::read_to_string(stepward.path("envoy.yaml")).unwrap();
    let (head, rest) = bootstrap.split_once("  - name: webhook\n").unwrap();
    let (listener, clusters) = rest.split_once("  clusters:\n").unwrap();
    let port = |at: SocketAddr| format!("port_value: {} ", at.port());
    // Envoy can read this name as a message of its own.
    let (here, nowhere) = (r#"\"cluster\":\"stepward\""#, r#"\"cluster\":\"step-ca\""#);
    assert!(listener.contains(here) && listener.contains(&port(stepward.at.webhook)), "{listener}");
    let beside = listener.replace(here, nowhere).replace(&port(stepward.at.webhook), &port(at));
    stepward.write("envoy.yaml", &format!("{head}  - name: webhook\n{listener}  - name: beside\n{beside}  clusters:\n{clusters}"));
    stepward.restart_envoy().await;
    stepward.answering().await;
    let vms = stepward.vms().await;
    let without = Client::new(at, &stepward.tls.roots, Some(&stepward.tls.client), Http::Two);
    let refused = without.send(registered.ask(KNOWN)).await.unwrap();
    assert!(stepward.client(Http::Two).send(registered.ask(KNOWN)).await.unwrap().allows());
    assert_eq!((refused.status.as_u16(), refused.allows()), (503, false));
    assert!(refused.took < IN_TIME, "{:?}", refused.took);
    assert_eq!(stepward.vms().await, vms, "no VM died");
}
