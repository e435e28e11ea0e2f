//! The harness itself: its step-ca calls webhooks as the rules of Stepward expect them, and its devices enrol.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use e2e::client::crypto;
use e2e::device::{Maker, refusal, subject};
use e2e::pki::certificates;
use e2e::step::StepCa;
use e2e::webhook::Registered;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use posture::time::{UnixTime, Window};
use posture::webhook::{Kind, Webhook};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Checks a webhook of step-ca by Stepward's own rules, and knows one device.
fn judge(registered: &Registered, headers: &http::HeaderMap, body: &[u8]) -> &'static str {
    let signature = posture::verify::Signature::parse(headers[posture::shape::SIGNATURE].as_bytes()).unwrap();
    let secret = posture::secret::Secret::from_base64(&registered.secret).unwrap();
    let keys = posture::verify::SigningKeys::new(&[secret]);
    let now = UnixTime::from_system(std::time::SystemTime::now());
    let verified = posture::verify::Verified::<Webhook<'_>>::verify(&keys, &signature, body, &Window::default(), now).unwrap();
    verified.get().check_kind(Kind::Enriching).unwrap();
    match &*verified.get().attestation_data.as_ref().unwrap().permanent_identifier {
        "C02XL0GYJGH5" => r#"{"allow":true,"data":{"team":"Blue"}}"#,
        _ => r#"{"allow":false,"error":{"code":"device_not_found","message":"no"}}"#,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_enrols_with_a_step_ca_that_asks_a_webhook_over_mtls() {
    crypto();
    let ca = StepCa::start().await;
    let maker = Maker::default();
    maker.write_root(&ca.path("attestation.crt"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let template =
        r#"{"subject": {"commonName": {{ toJson .Subject.CommonName }}, "organizationalUnit": {{ toJson .Webhooks.stub.team }}}}"#;
    let arguments = ["--type", "ACME", "--challenge", "device-attest-01", "--attestation-format", "apple"];
    let arguments = [&arguments[..], &["--attestation-roots", "attestation.crt", "--disable-renewal"]].concat();
    ca.add_provisioner("devices", &arguments, Some(("--x509-template", template)));
    let registered = ca.add_webhook("devices", "stub", listener.local_addr().unwrap(), &[]);

    let (chain, key) = ca.credential("localhost").der();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&ca.bundle()));
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let config = rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let seen = Arc::new(Mutex::new(0));
    let count = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let (registered, count) = (registered.clone(), Arc::clone(&count));
            let service = service_fn(move |request: Request<Incoming>| {
                let (registered, count) = (registered.clone(), Arc::clone(&count));
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    *count.lock().unwrap() += 1;
                    let answer = judge(&registered, &parts.headers, &body);
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from_static(answer.as_bytes()))))
                }
            });
            tokio::spawn(async move {
                let io = TokioIo::new(stream);
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
            });
        }
    });

    let issued = maker.enrol(&ca, "devices", "C02XL0GYJGH5").await.unwrap();
    assert_eq!(subject(&issued), "OU=Blue, CN=C02XL0GYJGH5");
    let (problem, subproblems) = refusal(maker.enrol(&ca, "devices", "STRANGER01").await);
    assert_eq!(problem, "urn:ietf:params:acme:error:unauthorized");
    assert_eq!(subproblems, ["urn:smallstep:acme:error:device_not_found"]);
    assert_eq!(*seen.lock().unwrap(), 2);
}
