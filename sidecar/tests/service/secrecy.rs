//! Tests that a secret shows up nowhere, however much is logged and whatever goes wrong.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use proto::v1::Verdict;
use proto::v1::sidecar_message::Message as ToFilter;

use crate::served::{DEVICE, Folder};

const CANARY: &str = "canary-in-a-coal-mine-0123456789";

#[tokio::test]
async fn a_secret_is_in_nothing_that_is_printed_at_trace() {
    let folder = Folder::new();
    folder.write("secrets/webhook", &STANDARD.encode(CANARY));
    folder.write("secrets/token", &format!("token-{CANARY}"));
    folder.write("secrets/password", &format!("password-{CANARY}"));
    folder.change("stepward.toml", "[envoy]", "[log]\nlevel = \"trace\"\n\n[envoy]");
    folder.change(
        "stepward.toml",
        "providers = [\"staff\"]",
        "providers = [\"staff\"]\nbearer = { file = \"secrets/token\" }\nbasic = { username = \"step-ca\", password = { file = \"secrets/password\" } }",
    );
    let mut served = folder.serve();
    let mut filter = served.attach().await;
    // Credentials are looked at by the filter, so each question says by which revision.
    while !matches!(filter.next().await.unwrap(), ToFilter::Webhooks(_)) {}
    assert_eq!(filter.ask(DEVICE).await.verdict(), Verdict::Allow);
    filter.send("{}".to_owned(), vec![7; 32]);
    assert_eq!(filter.ask("NOBODY").await.verdict(), Verdict::Deny);
    let mut printed = vec![served.page("/metrics").1, served.page("/readyz?verbose").1, served.query(&[DEVICE]).1];
    served.folder.write("secrets/webhook", &format!("{CANARY} is no base64"));
    for args in
        [&["reload"][..], &["check-config"], &["check-config", "--output", "json"], &["envoy-config"], &["query", DEVICE], &["doctor"]]
    {
        let output = served.folder.run(args);
        printed.push(String::from_utf8([output.stdout, output.stderr].concat()).unwrap());
    }
    served.folder.change("stepward.toml", "secrets = [{ file = \"secrets/webhook\" }]", &format!("secrets = [\"{CANARY}\"]"));
    for args in [&["reload"][..], &["check-config"]] {
        let output = served.folder.run(args);
        assert_eq!(output.status.code(), Some(1));
        printed.push(String::from_utf8([output.stdout, output.stderr].concat()).unwrap());
    }
    printed.extend([served.page("/metrics").1, served.page("/readyz?verbose").1]);
    served.signal(Signal::SIGTERM);
    drop(filter);
    assert!(served.ended().0.success());
    printed.push(served.folder.read("log"));
    let log = printed.last().unwrap();
    assert!(log.contains("\"TRACE\"") && log.contains("not reloaded"), "the level is in force");
    let numbers = CANARY.bytes().take(12).map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    let hex: String = CANARY.bytes().take(12).map(|byte| format!("{byte:02x}")).collect();
    let base64 = STANDARD.encode(CANARY);
    let credentials = STANDARD.encode(format!("step-ca:password-{CANARY}"));
    for trace in [CANARY, &numbers, &hex, &base64[..24], &credentials[..24]] {
        for text in &printed {
            assert!(!text.contains(trace), "{trace}: {}", text.lines().find(|line| line.contains(trace)).unwrap_or_default());
        }
    }
}
