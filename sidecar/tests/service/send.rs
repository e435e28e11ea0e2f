//! Tests of `stepward webhook send` against a small TLS server, and of `stepward webhook verify` on what the server got.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::served::{DEVICE, Folder, WEBHOOK};

/// Takes requests as Envoy would, with the certificate of one folder and the client authority of another.
pub(crate) async fn listen(folder: &Folder, clients: &Folder, reply: &'static str) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(clients.path("tls/ca.crt")).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let certificate = CertificateDer::from_pem_file(folder.path("tls/server.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.path("tls/server.key")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (sender, requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A client that does not like the certificate, or has none that this server likes, is gone.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = String::new();
            while !complete(&request) {
                let mut buffer = [0; 4096];
                match stream.read(&mut buffer).await {
                    Ok(length @ 1..) => request.push_str(std::str::from_utf8(&buffer[..length]).unwrap()),
                    _ => break,
                }
            }
            let _ = sender.send(request);
            let _ = stream.write_all(reply.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (port, requests)
}

/// Returns whether the body is as long as `content-length` says.
fn complete(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.is_some_and(|length| body.len() == length.parse::<usize>().unwrap())
}

async fn send(folder: &Folder, args: &[&str]) -> (i32, String) {
    let mut command = tokio::process::Command::from(folder.command(&[&["webhook", "send", "--config", "stepward.toml"], args].concat()));
    let output = tokio::time::timeout(Duration::from_secs(30), command.output()).await.unwrap().unwrap();
    (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

pub(crate) const ALLOWED: &str = "HTTP/1.1 200 OK\r\ncontent-length: 36\r\n\r\n{\"allow\":true,\"data\":{\"user\":\"a\"}}  ";

#[tokio::test]
async fn a_folder_of_init_needs_no_more_than_the_device() {
    let folder = Folder::new();
    let (port, mut requests) = listen(&folder, &folder, ALLOWED).await;
    folder.change("stepward.toml", "127.0.0.1:9443", &format!("127.0.0.1:{port}"));
    let (code, text) = send(&folder, &["--device", DEVICE, "--output", "json"]).await;
    let mut reply: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert!(reply["milliseconds"].take().is_u64());
    let expected =
        json!({ "verdict": "allowed", "status": 200, "data": { "user": "a" }, "device": DEVICE, "webhook": WEBHOOK, "milliseconds": null });
    assert_eq!((code, reply), (0, expected));
    assert!(requests.recv().await.unwrap().starts_with("POST /webhook/device-attest HTTP/1.1\r\n"));
    let (_, text) = send(&folder, &["--device", DEVICE, "--mode", "computer"]).await;
    let names: Vec<_> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["verdict", "device", "webhook", "data", "status", "milliseconds"], "{text}");
    assert!(requests.recv().await.unwrap().starts_with("POST /webhook/device-attest?mode=computer HTTP/1.1\r\n"));
    folder.write("pair", "step-ca:password\n");
    folder.write("token", "the token\n");
    for (flag, file, sent) in [("--basic-file", "pair", "Basic c3RlcC1jYTpwYXNzd29yZA=="), ("--bearer-file", "token", "Bearer the token")] {
        send(&folder, &["--device", DEVICE, flag, file]).await;
        let request = requests.recv().await.unwrap();
        assert!(request.contains(&format!("authorization: {sent}\r\n")), "{request}");
    }
}

#[tokio::test]
async fn e20_of_several_webhooks_it_is_said_which_one_is_taken_and_how_another_one_is() {
    let folder = Folder::new();
    let (port, mut requests) = listen(&folder, &folder, ALLOWED).await;
    folder.change("stepward.toml", "127.0.0.1:9443", &format!("127.0.0.1:{port}"));
    let text = folder.read("stepward.toml");
    folder.write("secrets/other", "c29tZXRoaW5nIGVsc2UgZW50aXJlbHk=");
    let (head, webhook) = text.split_once("[[webhook]]").unwrap();
    let other = webhook.split("\n[").next().unwrap().replace(WEBHOOK, "other").replace("secrets/webhook", "secrets/other");
    folder.write("stepward.toml", &format!("{head}[[webhook]]{other}\n[[webhook]]{webhook}"));
    let said = format!("note: sent to the first webhook, other; --id chooses another one: {WEBHOOK}");
    for (args, noted, sent) in [(&[][..], true, "other"), (&["--id", WEBHOOK], false, WEBHOOK), (&["--id", "other"], false, "other")] {
        let (code, text) = send(&folder, &[&["--device", DEVICE], args].concat()).await;
        assert!(code == 0 && text.contains(&said) == noted && text.contains(&format!("webhook       {sent}\n")), "{args:?}: {text}");
        assert!(requests.recv().await.unwrap().contains(&format!("x-smallstep-webhook-id: {sent}\r\n")));
    }
}

#[tokio::test]
async fn a_captured_request_passes_its_checks_and_a_changed_one_fails_at_the_right_one() {
    let folder = Folder::new();
    let (port, mut requests) = listen(&folder, &folder, ALLOWED).await;
    folder.change("stepward.toml", "127.0.0.1:9443", &format!("127.0.0.1:{port}"));
    send(&folder, &["--device", DEVICE]).await;
    let request = requests.recv().await.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    folder.write("body", body);
    let verify = |head: &str, args: &[&str]| {
        folder.write("headers", head);
        let output = folder.run(&[&["webhook", "verify", "--headers", "headers", "--output", "json"], args].concat());
        let checks: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let failed = |check: &&Value| check["result"].as_str().unwrap().starts_with("FAILED");
        let failed = checks.as_array().unwrap().iter().find(failed).map(|check| check["check"].as_str().unwrap().to_owned());
        (failed.unwrap_or_default(), output.status.code().unwrap())
    };
    let (ok, changed) = (&["--body", "body", "--cert", "client/client.crt"][..], &["--body", "changed"][..]);
    assert_eq!(verify(head, ok), (String::new(), 0));
    assert_eq!(verify(&head.replace("x-smallstep-signature", "x-signature"), ok), ("shape".to_owned(), 4));
    assert_eq!(verify(&head.replace(WEBHOOK, "another"), ok), ("webhook".to_owned(), 4));
    assert_eq!(verify(head, &["--body", "body", "--cert", "tls/server.crt"]), ("caller".to_owned(), 4));
    folder.write("changed", &body.replace(DEVICE, "OTHER"));
    assert_eq!(verify(head, changed), ("signature".to_owned(), 4));
    assert_eq!(verify(head, &[ok, &["--at", "2020-01-01T00:00:00Z"]].concat()), ("time".to_owned(), 4));
    assert_eq!(verify(head, &[ok, &["--at", "2040-01-01T00:00:00Z"]].concat()), ("time".to_owned(), 4));
    for (content, check, code) in [("[]", "schema", 4), (&body.replace("x509CertificateRequest", "x509Certificate"), "kind", 4)] {
        folder.write("changed", content);
        send(&folder, &["--body", "changed"]).await;
        let request = requests.recv().await.unwrap();
        assert_eq!(verify(request.split_once("\r\n\r\n").unwrap().0, changed), (check.to_owned(), code));
    }
    folder.write("changed", &body.replace("attestationData", "otherData"));
    send(&folder, &["--body", "changed"]).await;
    let request = requests.recv().await.unwrap();
    assert_eq!(verify(request.split_once("\r\n\r\n").unwrap().0, changed), ("identity".to_owned(), 3));
    folder.change("stepward.toml", "providers = [", "bearer = { file = \"secrets/webhook\" }\nproviders = [");
    assert_eq!(verify(head, ok), ("credentials".to_owned(), 4));
}

#[tokio::test]
async fn says_why_there_is_no_reply() {
    let (folder, other) = (Folder::new(), Folder::new());
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (port, _requests) = listen(&folder, &folder, ALLOWED).await;
    let (strict, _refused) = listen(&folder, &other, ALLOWED).await;
    let at = |port: u16| format!("https://localhost:{port}/webhook/a");
    let address = |port: u16| format!("https://[::ffff:127.0.0.1]:{port}/webhook/a");
    let ca = other.path("tls/ca.crt").display().to_string();
    for (args, said) in [
        (&["--url", &at(gone)][..], "is Envoy running"),
        (&["--url", &at(port), "--ca", &ca], "does not come from"),
        (&["--url", &address(port)], "the server's certificate is not good for"),
        (&["--url", &at(strict)], "the server refused the connection"),
    ] {
        let (code, text) = send(&folder, &[&["--device", DEVICE][..], args].concat()).await;
        assert!(code == 5 && text.starts_with("verdict") && text.contains("unavailable") && text.contains(said), "{args:?}: {code} {text}");
    }
    std::fs::remove_file(folder.path("client/client.crt")).unwrap();
    let (code, text) = send(&folder, &["--device", DEVICE, "--url", &at(strict)]).await;
    assert!(code == 5 && text.contains("it asks for a client certificate"), "{code} {text}");
    let (code, text) = send(&folder, &["--device", DEVICE, "--url", &at(port), "--ca", "secrets/webhook"]).await;
    assert!(code == 1 && text.contains("secrets/webhook"), "{code} {text}");
}

#[tokio::test]
async fn a_reply_that_breaks_off_is_no_verdict() {
    let folder = Folder::new();
    let (port, _requests) = listen(&folder, &folder, "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"allow\":true").await;
    let (code, text) = send(&folder, &["--device", DEVICE, "--url", &format!("https://localhost:{port}/")]).await;
    assert!(code == 5 && text.contains("unavailable"), "{code} {text}");
}
