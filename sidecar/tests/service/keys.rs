//! Tests of devices by the public key that a webhook was allowed for, as Envoy's external authorization asks for them.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::Peer;
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use nix::sys::signal::Signal;
use proto::v1::Verdict;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, PublicKeyData as _};
use serde_json::{Value, json};

use crate::served::{DEVICE, Folder, Served};

/// Second device of `stepward init`.
const OTHER: &str = "PF3ABCDE";

const POLICY: &str = r#"
[policy.attested]
providers = ["staff"]
trust = "attested"
"#;

/// Setting without which no key is bound to a device.
const BOUND: &str = "[store]\nbind_keys = true\n";

fn folder(more: &str) -> Folder {
    let folder = Folder::new();
    let text = folder.read("stepward.toml");
    folder.write("stepward.toml", &format!("{text}{POLICY}{more}"));
    folder
}

/// Returns the request of step-ca for a certificate of this key.
fn request(key: &KeyPair) -> String {
    json!({ "publicKey": STANDARD.encode(key.subject_public_key_info()), "publicKeyAlgorithm": "ECDSA" }).to_string()
}

/// Returns the device that a client with this key is let in as, or the code of the denial.
async fn authorized(served: &Served, key: &KeyPair, extensions: &[(&str, &str)]) -> Result<String, String> {
    let certificate = for_clients(&["device.example.org".to_owned()]).self_signed(key).unwrap().pem();
    certified(served, &certificate, &[&[("policy", "attested"), ("identity", "public_key")], extensions].concat()).await
}

/// Returns the parameters of a certificate with these names that is for client authentication.
fn for_clients(names: &[String]) -> CertificateParams {
    let mut params = CertificateParams::new(names).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// Asks as [`authorized`] does, with this certificate and these extensions alone.
async fn certified(served: &Served, certificate: &str, extensions: &[(&str, &str)]) -> Result<String, String> {
    let escaped: String = certificate.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let context_extensions: HashMap<_, _> = extensions.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let source = Some(Peer { certificate: escaped, ..Peer::default() });
    let attributes = Some(AttributeContext { source, context_extensions, ..AttributeContext::default() });
    let mut client = AuthorizationClient::new(served.channel("query.sock", None).await.unwrap());
    match client.check(CheckRequest { attributes }).await.unwrap().into_inner().http_response.unwrap() {
        HttpResponse::OkResponse(ok) => {
            let header = ok.headers.into_iter().filter_map(|option| option.header).find(|header| header.key == "x-posture-device");
            Ok(header.unwrap().value)
        }
        HttpResponse::DeniedResponse(denied) => {
            assert_eq!(denied.status.unwrap().code, 403);
            Err(serde_json::from_str::<Value>(&denied.body).unwrap()["code"].as_str().unwrap().to_owned())
        }
        HttpResponse::ErrorResponse(error) => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn d5_a_certificate_or_a_key_of_a_placeholder_lets_nobody_in() {
    let served = folder(BOUND).serve();
    for name in ["Default string", "00000000", "n/a"] {
        let mut params = for_clients(&[]);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        assert_eq!(certified(&served, &certificate, &[("policy", "attested")]).await, Err("identifier_missing".to_owned()), "{name}");
    }
    let key = KeyPair::generate().unwrap();
    let mut filter = served.attach().await;
    assert_eq!(filter.ask_for(DEVICE, &request(&key)).await.verdict(), Verdict::Allow);
    while authorized(&served, &key, &[]).await != Ok(DEVICE.to_owned()) {
        tokio::task::yield_now().await;
    }
    // An identifier that was no placeholder when its key was allowed may be one by now.
    let text = served.folder.read("stepward.toml");
    served.folder.write("stepward.toml", &format!("placeholders = [\"{DEVICE}\"]\n{text}"));
    assert!(served.folder.run(&["reload"]).status.success());
    assert_eq!(authorized(&served, &key, &[]).await, Err("identifier_missing".to_owned()));
}

#[tokio::test]
async fn a_device_is_known_by_the_key_that_it_was_allowed_a_certificate_for() {
    let mut served = folder(BOUND).serve();
    let (known, denied, unknown) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    assert_eq!(authorized(&served, &known, &[]).await, Err("key_unknown".to_owned()));
    let mut filter = served.attach().await;
    assert_eq!(filter.ask_for(DEVICE, &request(&known)).await.verdict(), Verdict::Allow);
    assert_eq!(authorized(&served, &known, &[]).await, Ok(DEVICE.to_owned()));
    assert_eq!(filter.ask_for("STRANGER", &request(&denied)).await.verdict(), Verdict::Deny);
    for key in [&denied, &unknown] {
        assert_eq!(authorized(&served, key, &[]).await, Err("key_unknown".to_owned()));
    }
    // The record of the key has kind and identifier, which must not be said otherwise.
    for extension in [("identifier", "serial"), ("prefix", "device:")] {
        assert_eq!(authorized(&served, &known, &[extension]).await, Err("policy_unknown".to_owned()));
    }
    // A certificate that only names the device proves it less well, and names nobody here.
    assert_eq!(authorized(&served, &known, &[("identity", "san.dns")]).await, Err("device_not_found".to_owned()));
    assert!(served.folder.run(&["lock", DEVICE, "--reason", "stolen"]).status.success());
    assert_eq!(authorized(&served, &known, &[]).await, Err("device_locked".to_owned()));
    assert!(served.folder.run(&["unlock", DEVICE]).status.success());

    drop(filter);
    served.signal(Signal::SIGTERM);
    served.ended();
    let served = served.again();
    assert_eq!(authorized(&served, &known, &[]).await, Ok(DEVICE.to_owned()));
    let mut filter = served.attach().await;
    assert_eq!(filter.ask_for(OTHER, &request(&unknown)).await.verdict(), Verdict::Allow);
    assert_eq!(authorized(&served, &unknown, &[]).await, Ok(OTHER.to_owned()));
}

#[tokio::test]
async fn without_a_store_no_key_is_known() {
    let served = folder("[store]\nenabled = false\n").serve();
    let key = KeyPair::generate().unwrap();
    assert_eq!(served.attach().await.ask_for(DEVICE, &request(&key)).await.verdict(), Verdict::Allow);
    assert_eq!(authorized(&served, &key, &[]).await, Err("key_unknown".to_owned()));
}

#[tokio::test]
async fn f2_no_key_is_bound_to_a_device_unless_that_is_asked_for_and_what_was_bound_counts_no_more() {
    let (early, late) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut served = folder(BOUND).serve();
    assert_eq!(served.attach().await.ask_for(DEVICE, &request(&early)).await.verdict(), Verdict::Allow);
    assert_eq!(authorized(&served, &early, &[]).await, Ok(DEVICE.to_owned()));
    let text = served.folder.read("stepward.toml");
    served.folder.write("stepward.toml", &text.replace(BOUND, ""));
    served.signal(Signal::SIGTERM);
    served.ended();
    let mut served = served.again();
    assert_eq!(served.attach().await.ask_for(DEVICE, &request(&late)).await.verdict(), Verdict::Allow);
    for key in [&early, &late] {
        assert_eq!(authorized(&served, key, &[]).await, Err("key_unknown".to_owned()));
    }
    // A key that was allowed meanwhile is bound to nobody afterwards either.
    served.folder.write("stepward.toml", &text);
    served.signal(Signal::SIGTERM);
    served.ended();
    let served = served.again();
    assert_eq!(authorized(&served, &late, &[]).await, Err("key_unknown".to_owned()));
}

#[tokio::test]
async fn f7_a_guards_client_whose_certificate_is_larger_than_any_need_be_is_nobody() {
    let served = folder("").serve();
    let asked = async |names: usize| {
        let names: Vec<String> = (0..names).map(|at| format!("{at}.example.org")).collect();
        let key = KeyPair::generate().unwrap();
        let mut params = for_clients(&names);
        params.distinguished_name.push(rcgen::DnType::CommonName, DEVICE);
        certified(&served, &params.self_signed(&key).unwrap().pem(), &[("policy", "attested"), ("identity", "subject.cn")]).await
    };
    // By its name alone a device is not attested.
    assert_eq!(asked(1).await, Err("trust_insufficient".to_owned()));
    assert_eq!(asked(250).await, Err("trust_insufficient".to_owned()));
    for names in [257, 3000, 9000] {
        assert_eq!(asked(names).await, Err("identifier_invalid".to_owned()), "{names}");
    }
}

#[tokio::test]
async fn a_guards_client_whose_certificate_is_not_for_clients_is_nobody() {
    let served = folder("").serve();
    let key = KeyPair::generate().unwrap();
    for (usages, code) in [
        (vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth], "trust_insufficient"),
        (vec![ExtendedKeyUsagePurpose::ServerAuth], "certificate_not_for_clients"),
        (vec![ExtendedKeyUsagePurpose::Any], "certificate_not_for_clients"),
        (vec![], "certificate_not_for_clients"),
    ] {
        let mut params = for_clients(&[]);
        params.distinguished_name.push(rcgen::DnType::CommonName, DEVICE);
        params.extended_key_usages = usages;
        let certificate = params.self_signed(&key).unwrap().pem();
        for identity in ["subject.cn", "public_key"] {
            let refused = certified(&served, &certificate, &[("policy", "attested"), ("identity", identity)]).await;
            let expected = if code == "trust_insufficient" && identity == "public_key" { "key_unknown" } else { code };
            assert_eq!(refused, Err(expected.to_owned()), "{:?} {identity}", params.extended_key_usages);
        }
    }
}
