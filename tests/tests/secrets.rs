//! A secret is seen nowhere: not in logs, metrics, Envoy's configuration, errors or what the command line prints.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::client::Http;
use e2e::deployment::{Deployment, Hook, Plan};
use e2e::metrics::get;
use e2e::webhook::Registered;

const SECRET: &[u8] = b"canary-hmac-secret-canary-hmac-secret";
const BEARER: &str = "canary-bearer-token";
const PASSWORD: &str = "canary-basic-password";

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_seen_nowhere() {
    let one = Registered { id: "one".to_owned(), secret: STANDARD.encode(SECRET) };
    let two = Registered::random("two");
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let bearer = Hook::new(one.clone()).with(&format!("bearer = [{{ file = \"{}\" }}]", file("bearer", BEARER)));
    let password = file("password", PASSWORD);
    let basic = format!("basic = [{{ username = \"step\", password = {{ file = \"{password}\" }} }}]");
    let mut plan = Plan::new(vec![bearer, Hook::new(two.clone()).with(&basic)]);
    plan.level = "trace";
    let mut stepward = Deployment::start(plan).await;
    let client = stepward.client(Http::Two);
    let basic = format!("Basic {}", STANDARD.encode(format!("step:{PASSWORD}")));
    for (registered, authorization) in [(&one, format!("Bearer {BEARER}")), (&two, basic)] {
        let known = registered.ask("C02XL0GYJGH5").header("authorization", &authorization);
        assert!(client.send(known.clone()).await.unwrap().allows());
        assert!(client.send(known).await.unwrap().allows());
        let unknown = registered.ask("STRANGER01").header("authorization", &authorization);
        assert_eq!(client.send(unknown).await.unwrap().code(), "device_not_found");
        assert_eq!(client.send(registered.ask("C02XL0GYJGH5")).await.unwrap().status, 401);
        let forged =
            registered.ask("C02XL0GYJGH5").header("authorization", &authorization).replace("x-smallstep-signature", &"0".repeat(64));
        assert_eq!(client.send(forged).await.unwrap().status, 401);
    }
    let check = stepward.stepward(&["check-config", "--config", "stepward.toml"]).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    // One secret under two ids is a mistake, which has to be named without it.
    std::fs::write(stepward.path("secrets/two"), STANDARD.encode(SECRET)).unwrap();
    let mistaken = stepward.stepward(&["check-config", "--config", "stepward.toml"]).output().unwrap();
    assert!(!mistaken.status.success());
    std::fs::write(stepward.path("secrets/two"), format!("!{}", STANDARD.encode(SECRET))).unwrap();
    let unreadable = stepward.stepward(&["check-config", "--config", "stepward.toml"]).output().unwrap();
    assert!(!unreadable.status.success());
    let mut places = vec![
        ("the sidecar's log", stepward.sidecar().log()),
        ("Envoy's log", stepward.envoy.log()),
        ("the sidecar's metrics", stepward.metrics().await.text().to_owned()),
        ("Envoy's statistics", stepward.envoy_stats().await.text().to_owned()),
        ("config_dump", get(stepward.at.envoy, "/config_dump?include_eds").await.unwrap().1),
    ];
    for output in [check, mistaken, unreadable] {
        places.push(("check-config", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()));
    }
    let hex: String = SECRET.iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers = SECRET.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let credentials = STANDARD.encode(format!("step:{PASSWORD}"));
    let core = STANDARD.encode(&SECRET[..36]);
    for (place, text) in places {
        assert!(!text.is_empty(), "{place} is empty");
        for canary in ["canary-hmac", BEARER, PASSWORD, &core, &hex, &numbers, &credentials] {
            assert!(!text.contains(canary), "{canary} is in {place}");
        }
    }
}
