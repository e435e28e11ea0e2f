//! Envoy lets the module do what is on the list of capabilities. The loss of any of them costs a feature, refuses requests or
//! keeps Envoy from starting; it never lets a request through that was not decided.

use std::time::Duration;

use e2e::client::{Framing, Http};
use e2e::deployment::{Deployment, Hook, Plan};
use e2e::metrics::get;
use e2e::tools::root;
use e2e::wait::until;
use e2e::webhook::Registered;
use futures::StreamExt as _;

const KNOWN: &str = "C02XL0GYJGH5";

/// The lines of the list, without what stands around them.
fn capabilities() -> Vec<String> {
    let list = std::fs::read_to_string(root().join("envoy/capabilities.yaml")).unwrap();
    list.lines().filter(|line| line.ends_with(": {}")).map(ToOwned::to_owned).collect()
}

#[test]
fn the_list_has_nothing_that_the_module_has_not() {
    let module = std::fs::read_to_string(root().join("filter/imports.txt")).unwrap();
    for capability in capabilities() {
        let name = capability.trim_end_matches(": {}");
        let entries = [format!("import func env.{name}"), format!("export func {name}")];
        assert!(module.lines().any(|line| entries.iter().any(|entry| line == entry)), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_one_capability_nothing_is_allowed_that_was_not_decided() {
    let capabilities = capabilities();
    assert!(capabilities.len() > 20, "{capabilities:?}");
    let outcomes: Vec<_> = futures::stream::iter(capabilities).map(without).buffer_unordered(4).collect().await;
    for (capability, outcome) in &outcomes {
        eprintln!("{capability:50} {outcome}");
    }
    let refused = outcomes.iter().filter(|(_, outcome)| !outcome.starts_with("decided")).count();
    assert!(refused > 10, "{outcomes:?}");
}

/// What becomes of a request that would be allowed, and of one that has to be denied.
async fn without(capability: String) -> (String, String) {
    let registered = Registered::random("11111111-2222-4333-8444-555555555555");
    let mut plan = Plan::new(vec![Hook::new(registered.clone())]);
    plan.without = Some(capability.clone());
    let mut stepward = Deployment::start(plan).await;
    let envoy = &mut stepward.envoy;
    let at = stepward.at.envoy;
    let live = until("Envoy is live or ends", Duration::from_secs(30), async || {
        if !envoy.is_running() {
            return Some(false);
        }
        get(at, "/ready").await.is_ok_and(|(status, _)| status == 200).then_some(true)
    })
    .await;
    if !live {
        return (capability, "does not start".to_owned());
    }
    let client = stepward.client(Http::One);
    let mut last = String::new();
    // The first requests may come before the stream is there; a decision shows within these.
    for _ in 0..2 {
        let stranger = registered.ask("STRANGER01");
        let forged = registered.ask(KNOWN).replace("x-smallstep-signature", &"0".repeat(64));
        let mut undeserved = vec![stranger.clone().framed(Framing::Pieces(50)), stranger.clone().framed(Framing::Trailers(50))];
        undeserved.extend([stranger, forged, registered.signed("")]);
        let replies = undeserved.into_iter().map(|request| tokio::time::timeout(Duration::from_secs(6), client.send(request)));
        for reply in futures::future::join_all(replies).await {
            match reply.expect("Envoy ends a request that nobody answers") {
                Ok(reply) => assert!(!reply.allows(), "{capability}: {reply:?}"),
                Err(error) => last = format!("{error:#}"),
            }
        }
        let known = client.send(registered.ask(KNOWN)).await;
        last = match known {
            Ok(reply) if reply.allows() => "decided: allowed".to_owned(),
            Ok(reply) => {
                let status = reply.status.as_u16();
                assert!(matches!(status, 403 | 503 | 504), "{capability}: {reply:?}");
                format!("refused with {status}")
            }
            Err(_) => format!("reset {last}"),
        };
        if last.starts_with("decided") {
            break;
        }
    }
    (capability, last)
}
