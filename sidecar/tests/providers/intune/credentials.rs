//! Tests of how an application proves itself to Microsoft Entra ID.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fakes::Fake;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use posture::secret::Secret;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Map, json};
use settings::Environment;
use sha2::{Digest as _, Sha256};
use sidecar::config::Config;

use super::*;

struct Pair {
    certificate: Vec<u8>,
    certificate_pem: String,
    key: KeyPair,
}

fn pair(key: KeyPair) -> Pair {
    let certificate = CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
    Pair { certificate: certificate.der().to_vec(), certificate_pem: certificate.pem(), key }
}

fn rsa() -> Pair {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    pair(KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap())
}

/// Returns whether an assertion is signed by the pair, names its certificate, and is meant for this token endpoint.
fn proves(pair: &Pair, audience: String) -> impl Fn(&str) -> bool + Send + use<> {
    let key = DecodingKey::from_rsa_pem(pair.key.public_key_pem().as_bytes()).unwrap();
    let thumbprint = URL_SAFE_NO_PAD.encode(Sha256::digest(&pair.certificate));
    let mut validation = Validation::new(Algorithm::PS256);
    validation.set_audience(&[audience]);
    validation.set_issuer(&[CLIENT]);
    validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
    validation.validate_nbf = true;
    let seen = std::sync::Mutex::new(std::collections::BTreeSet::new());
    move |assertion| {
        let Ok(decoded) = jsonwebtoken::decode::<Map<String, Value>>(assertion, &key, &validation) else { return false };
        let fresh = seen.lock().unwrap().insert(decoded.claims["jti"].as_str().unwrap().to_owned());
        fresh && decoded.claims["sub"] == CLIENT && decoded.header.x5t_s256.as_deref() == Some(&thumbprint)
    }
}

fn open(fake: Fake, directory: &Path, pair: &Pair, key: &str) -> Result<Stand, String> {
    std::fs::write(directory.join("intune.crt"), &pair.certificate_pem).unwrap();
    let certificate = directory.join("intune.crt");
    let lines = format!("{}\nclient_certificate = {certificate:?}\nclient_key = {{ env = \"KEY\" }}", common());
    let remote = crate::remote(&lines.replace("{url}", &fake.url()));
    let inventory = remote.service.open(&remote.endpoint, &[Secret::new(key.as_bytes().to_vec())])?;
    Ok(Stand { inventory, fake, remote })
}

#[tokio::test]
async fn a_certificate_proves_the_application() {
    let (directory, pair, intune) = (tempfile::tempdir().unwrap(), rsa(), Intune::new());
    let fake = Fake::start(intune.clone()).await;
    fake.set(vec![Device::computer("C02A")]);
    intune.take_assertions(proves(&pair, format!("{}/{TENANT}/oauth2/v2.0/token", fake.url())));
    let stand = open(fake, directory.path(), &pair, &pair.key.serialize_pem()).unwrap();
    stand.record("C02A").await;
    intune.revoke();
    stand.record("C02A").await;
    assert_eq!(stand.fake.logins(), 2, "each with an assertion of its own");
    let shown = format!("{:?}", stand.inventory);
    assert!(!shown.contains("PRIVATE") && !shown.contains("token-"), "{shown}");
}

#[tokio::test]
async fn another_certificate_is_refused() {
    let (directory, pair, intune) = (tempfile::tempdir().unwrap(), rsa(), Intune::new());
    let fake = Fake::start(intune.clone()).await;
    intune.take_assertions(proves(&rsa(), format!("{}/{TENANT}/oauth2/v2.0/token", fake.url())));
    let stand = open(fake, directory.path(), &pair, &pair.key.serialize_pem()).unwrap();
    assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::AuthRejected));
}

#[tokio::test]
async fn a_key_that_does_not_fit_is_found_before_anything_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let elliptic = pair(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
    for (pair, key, message) in [
        (rsa(), rsa().key.serialize_pem(), "client_key is not the key of client_certificate"),
        (rsa(), "secret".to_owned(), "client_key is no RSA key in PEM"),
        (elliptic, String::new(), "client_key is no RSA key in PEM"),
    ] {
        let key = if key.is_empty() { pair.key.serialize_pem() } else { key };
        let fake = Fake::start(Intune::new()).await;
        assert_eq!(open(fake, directory.path(), &pair, &key).err().unwrap(), message);
    }
}

#[tokio::test]
async fn refused_credentials_are_told_from_an_outage() {
    let (intune, stand) = with_devices(vec![Device::computer("C02A")]).await;
    for (fault, error) in [
        (Fault::Status(500), Unavailable::ServerError(None)),
        (Fault::RateLimited(fakes::RetryAfter::Seconds(3)), Unavailable::RateLimited(Some(std::time::Duration::from_secs(3)))),
        (Fault::Html, Unavailable::Protocol),
        (Fault::Body(b"{}".to_vec()), Unavailable::Protocol),
        (Fault::Body(br#"{"access_token":""}"#.to_vec()), Unavailable::Protocol),
        (Fault::Reset, Unavailable::Network),
        (Fault::Status(401), Unavailable::AuthRejected),
    ] {
        stand.fake.fail_logins(Some(fault.clone()));
        assert_eq!(stand.serial("C02A").await, Answer::Unavailable(error), "{fault:?}");
    }
    for wrong in ["tenant_id", "client_id"] {
        let lines = match wrong {
            "tenant_id" => common().replace(TENANT, "example.org"),
            _ => common().replace(CLIENT, "another"),
        };
        let stand = Stand::open(Fake::start(intune.clone()).await, &format!("{lines}\nclient_secret = {{ env = \"SECRET\" }}"));
        assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::AuthRejected), "{wrong}");
        stand.serial("C02A").await;
        assert_eq!(stand.fake.logins(), 1, "not tried again at once");
    }
}

#[tokio::test]
async fn odd_lifetimes_of_a_token_are_borne() {
    for expires_in in [
        json!(3599),
        json!("3599"),
        json!(60),
        json!(0),
        json!(-1),
        json!(1_000_000_000_000_u64),
        json!(u64::MAX),
        json!(59.5),
        json!("soon"),
        Value::Null,
    ] {
        let (intune, stand) = with_devices(vec![Device::computer("C02A")]).await;
        intune.expires_in(expires_in.clone());
        for _ in 0..3 {
            assert!(matches!(stand.ask(IdentifierKind::Serial, "C02A", Fields::NONE).await, Answer::Found(_)), "{expires_in}");
        }
        assert!(stand.fake.logins() == 1 || expires_in == 0, "{expires_in}: {}", stand.fake.logins());
    }
}

#[tokio::test]
async fn a_token_that_is_refused_is_renewed_once() {
    let (intune, stand) = with_devices(vec![Device::computer("C02A")]).await;
    stand.record("C02A").await;
    intune.revoke();
    stand.record("C02A").await;
    assert_eq!(stand.fake.logins(), 2);
    stand.fake.fail(Some(Fault::Status(401)));
    assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::AuthRejected));
}

#[tokio::test]
async fn fifty_lookups_with_a_token_that_was_taken_back_log_in_once() {
    let (intune, stand) = with_devices(vec![Device::computer("C02A")]).await;
    stand.record("C02A").await;
    intune.revoke();
    stand.fake.forget();
    let answers = futures::future::join_all((0..50).map(|_| stand.ask(IdentifierKind::Serial, "C02A", Fields::NONE))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Found(_))), "{answers:?}");
    assert_eq!(stand.fake.logins(), 1);
    assert!(stand.fake.lookups().len() <= 100, "none is sent more than twice");
}

#[test]
fn mistakes_in_the_settings_are_named() {
    for (change, message) in [
        (
            ("client_secret", "client_key = { env = \"K\" }\nclient_secret"),
            "either `client_secret`, or `client_certificate` and `client_key`",
        ),
        (("client_secret", "client_certificate"), "`client_certificate`: must be a string"),
        (("client_secret = { env = \"SECRET\" }", ""), "has no `client_secret`"),
        (("client_secret = { env = \"SECRET\" }", "client_key = { env = \"K\" }"), "has no `client_certificate`"),
        (("client_secret = { env = \"SECRET\" }", "client_certificate = \"c\""), "has no `client_key`"),
        (("tenant_id = \"t\"", ""), "has no `tenant_id`"),
        (("tenant_id = \"t\"", "tenant_id = \"t/../u\""), "is neither an id nor a domain name"),
        (("client_id = \"c\"", ""), "has no `client_id`"),
        (("client_id = \"c\"", "client_id = \"c\"\napi_version = \"v2\""), "write \"v1.0\" or \"beta\""),
        (("client_id = \"c\"", "client_id = \"c\"\nduplicates = \"oldest\""), "write \"ambiguous\" or \"newest\""),
        (("client_id = \"c\"", "client_id = \"c\"\nlogin_url = \"http://login.example.org\""), "must begin with https://"),
        (("client_id = \"c\"", "client_id = \"c\"\ngraph_url = \"http://graph.example.org\""), "must begin with https://"),
    ] {
        let lines =
            "type = \"intune\"\ntenant_id = \"t\"\nclient_id = \"c\"\nclient_secret = { env = \"SECRET\" }".replace(change.0, change.1);
        let text = format!(
            "[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\n[[webhook]]\nid = \"1\"\nsecrets = [{{ env = \"S\" }}]\n\
             callers = [\"dns:a\"]\nproviders = [\"it\"]\n[provider.it]\n{lines}\n"
        );
        let mistakes = Config::parse(&text, "stepward.toml".as_ref(), &Environment::new("/")).unwrap_err().to_string();
        assert!(mistakes.contains(message), "{lines}: {mistakes}");
    }
}

#[test]
fn a_national_cloud_is_two_addresses() {
    let lines = "type = \"intune\"\ntenant_id = \"t\"\nclient_id = \"c\"\nclient_secret = { env = \"SECRET\" }";
    let public = crate::remote(lines);
    assert_eq!(public.endpoint.base_url.as_str(), "https://graph.microsoft.com/");
    let remote =
        crate::remote(&format!("{lines}\nlogin_url = \"https://login.microsoftonline.us\"\ngraph_url = \"https://graph.microsoft.us\""));
    assert_eq!(remote.endpoint.base_url.as_str(), "https://graph.microsoft.us/");
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let opened = remote.service.open(&remote.endpoint, &[Secret::new(b"secret".to_vec())]).unwrap();
    let shown = format!("{opened:?}");
    assert!(shown.contains("https://login.microsoftonline.us/t/oauth2/v2.0/token") && shown.contains("graph.microsoft.us"), "{shown}");
}
