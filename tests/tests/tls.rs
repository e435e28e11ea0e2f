//! The listener speaks modern TLS only, and to certificates that may call only.

use std::net::SocketAddr;

use e2e::client::Http;
use e2e::deployment::{Addresses, Tls};
use e2e::deployment::{CLIENT, Deployment, Hook, Plan};
use e2e::pki::{Authority, Credential, Leaf};
use e2e::process::run;
use e2e::tools::sslscan;
use e2e::webhook::Registered;
use rcgen::ExtendedKeyUsagePurpose;
use time::Duration;

async fn listener() -> (Deployment, Authority, Registered) {
    let authority = Authority::new("Test Root");
    let registered = Registered::random("11111111-2222-4333-8444-555555555555");
    let plan = Plan::new(vec![Hook::new(registered.clone())]);
    let stepward = Deployment::start_at(plan, Addresses::default(), Tls::of(&authority)).await;
    (stepward, authority, registered)
}

/// Scans with a client certificate: without one no handshake of TLS 1.2 ends well.
fn scan(address: SocketAddr, client: &Credential) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = (folder.path().join("client.crt"), folder.path().join("client.key"));
    std::fs::write(&chain, &client.chain).unwrap();
    std::fs::write(&key, &client.key).unwrap();
    let (chain, key) = (format!("--certs={}", chain.display()), format!("--pk={}", key.display()));
    run(sslscan().args(["--no-colour", "--no-check-certificate", &chain, &key, &address.to_string()]))
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_only_tls_1_2_with_aead_and_ecdhe_and_tls_1_3() {
    let (stepward, _, _) = listener().await;
    let scan = tokio::task::spawn_blocking(move || scan(stepward.at.webhook, &stepward.tls.client)).await.unwrap();
    let enabled: Vec<_> =
        scan.lines().filter(|line| line.starts_with("TLSv") || line.starts_with("SSLv")).filter(|line| line.ends_with("enabled")).collect();
    assert_eq!(enabled.iter().map(|line| line.split_whitespace().next().unwrap()).collect::<Vec<_>>(), ["TLSv1.2", "TLSv1.3"], "{scan}");
    let suites: Vec<_> = scan.lines().filter(|line| line.starts_with("Preferred") || line.starts_with("Accepted")).collect();
    assert!(suites.len() >= 4, "{scan}");
    for suite in suites {
        let modern = suite.contains("TLSv1.3") || suite.contains("ECDHE-") && (suite.contains("GCM") || suite.contains("CHACHA20"));
        assert!(modern, "{suite}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_bad_certificates_in_the_handshake() {
    let (stepward, authority, registered) = listener().await;
    let client = || Leaf::client(CLIENT);
    let bad: [(&str, Option<Credential>); 5] = [
        ("none", None),
        ("of another authority", Some(Authority::new("Test Root").issue(&client()))),
        ("expired", Some(authority.issue(&client().valid_from(-Duration::days(2))))),
        ("not yet valid", Some(authority.issue(&client().valid_from(Duration::hours(2))))),
        ("for servers", Some(authority.issue(&client().usage(Some(ExtendedKeyUsagePurpose::ServerAuth))))),
    ];
    for http in [Http::One, Http::Two] {
        for (name, credential) in &bad {
            let result = stepward.client_as(credential.as_ref(), http).send(registered.ask("C02XL0GYJGH5")).await;
            let error = result.err().unwrap_or_else(|| panic!("a certificate {name} was let in"));
            assert!(!format!("{error:#}").is_empty());
        }
        assert!(stepward.client(http).send(registered.ask("C02XL0GYJGH5")).await.unwrap().allows());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_callers_that_the_webhook_does_not_name() {
    let (stepward, authority, registered) = listener().await;
    for (name, leaf) in [
        ("of no usage", Leaf::client(CLIENT).usage(None)),
        ("of another name", Leaf::client("other.example.org")),
        ("of the name as common name only", Leaf::new(CLIENT).usage(Some(ExtendedKeyUsagePurpose::ClientAuth))),
        ("of the name as URI", Leaf::client("other.example.org").uri(&format!("dns:{CLIENT}"))),
    ] {
        for http in [Http::One, Http::Two] {
            let reply = stepward.client_as(Some(&authority.issue(&leaf)), http).send(registered.ask("C02XL0GYJGH5")).await.unwrap();
            assert_eq!(reply.verdict(), (403, "caller_not_allowed".to_owned()), "{name}");
        }
    }
    let second = authority.issue(&Leaf::client("first.example.org").dns(CLIENT));
    let reply = stepward.client_as(Some(&second), Http::Two).send(registered.ask("C02XL0GYJGH5")).await.unwrap();
    assert!(reply.allows(), "any of the certificate's names will do");
}

#[tokio::test(flavor = "multi_thread")]
async fn f5_whoever_no_webhook_names_ends_in_the_handshake_unless_any_certificate_is_asked_for() {
    let (mut stepward, authority, registered) = listener().await;
    let device = authority.issue(&Leaf::client("device.example.org"));
    let reply = stepward.client_as(Some(&device), Http::Two).send(registered.ask("C02XL0GYJGH5")).await.unwrap();
    assert_eq!(reply.verdict(), (403, "caller_not_allowed".to_owned()));
    let admin = stepward.at.envoy.to_string();
    let arguments = ["envoy-config", "--config", "stepward.toml", "--output", "envoy.yaml", "--admin", &admin];
    run(&mut stepward.stepward(&arguments));
    stepward.restart_envoy().await;
    stepward.answering().await;
    // To Envoy, a wildcard would be the name of the caller.
    let wildcard = authority.issue(&Leaf::client(&format!("*.{}", CLIENT.split_once('.').unwrap().1)));
    for http in [Http::One, Http::Two] {
        for other in [&device, &wildcard] {
            assert!(stepward.client_as(Some(other), http).send(registered.ask("C02XL0GYJGH5")).await.is_err());
        }
        assert!(stepward.client(http).send(registered.ask("C02XL0GYJGH5")).await.unwrap().allows());
    }
    // Whoever looks for the reason finds the names. Envoy writes its access log every ten seconds.
    stepward.envoy.printed("certificate SANs are [device.example.org]", std::time::Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2_doctor_finds_nothing_wrong_with_an_envoy_that_asks_for_a_certificate() {
    let (stepward, ..) = listener().await;
    let output = stepward.stepward(&["doctor", "--config", "stepward.toml", "--output", "json"]).output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = told["findings"].as_array().unwrap();
    let webhooks: Vec<_> = findings.iter().filter(|finding| finding["subject"] == "envoy" && finding["check"] == "webhooks").collect();
    assert!(webhooks.len() == 1 && webhooks[0]["state"] == "good", "{told}");
}
