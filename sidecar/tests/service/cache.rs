//! Tests of the cache of a management, as the operator lists and purges it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use fakes::jamf::Jamf;
use fakes::{Device, Fake};
use serde_json::Value;

use crate::served::{DEVICE, Folder, Served};

/// The service before a Jamf Pro that has one computer.
pub(crate) async fn with_jamf(jamf: &Jamf) -> (Folder, Fake) {
    let fake = Fake::start(jamf.clone()).await;
    fake.set(vec![Device::computer(DEVICE)]);
    let folder = Folder::new();
    let text = folder.read("stepward.toml");
    folder.write(
        "stepward.toml",
        &format!(
            "{text}\n[provider.jamf]\ntype = \"jamf\"\nbase_url = \"{}\"\nclient_id = \"client\"\nclient_secret = {{ file = \"secrets/jamf\" }}\n",
            fake.url()
        ),
    );
    folder.write("secrets/jamf", "secret");
    fs::set_permissions(folder.path("secrets/jamf"), fs::Permissions::from_mode(0o600)).unwrap();
    (folder, fake)
}

fn run(served: &Served, args: &[&str]) -> (i32, String) {
    let output = served.folder.run(&[&["cache"], args].concat());
    (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

fn cached(served: &Served) -> Value {
    let (code, text) = run(served, &["ls", "--output", "json"]);
    assert_eq!(code, 0, "{text}");
    serde_json::from_str::<Value>(&text).unwrap()[0].take()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_remembered_is_listed_and_forgotten_on_demand() {
    let (folder, fake) = with_jamf(&Jamf::new()).await;
    let served = folder.serve();
    let asks = || {
        fake.forget();
        assert_eq!(served.query(&[DEVICE, "--provider", "jamf"]).0, 0);
        !fake.lookups().is_empty()
    };
    assert_eq!(cached(&served)["records"], 0);
    assert!(asks() && !asks());
    let cache = cached(&served);
    assert_eq!((&cache["provider"], &cache["records"], &cache["circuit"]), (&"jamf".into(), &1.into(), &"closed".into()));
    assert!(cache["answered_ago_ms"].is_u64());
    let device = &cache["devices"][0];
    assert_eq!((&device["identifier"], &device["kind"], &device["dropped"]), (&DEVICE.into(), &"serial".into(), &false.into()));
    let (code, text) = run(&served, &["ls"]);
    assert!(
        code == 0 && text.starts_with("PROVIDER  KIND    IDENTIFIER    AGE") && text.contains("jamf: 1 records; it answered"),
        "{text}"
    );
    let (code, text) = run(&served, &["purge", &format!(" {} ", DEVICE.to_lowercase()), "--provider", "jamf"]);
    assert!(code == 0 && text.contains("jamf      1"), "{text}");
    assert!(asks() && !asks());
    assert_eq!(run(&served, &["purge", "--all"]).0, 0);
    assert_eq!(cached(&served)["records"], 0);
    assert!(asks());
    let mut served = served;
    let line = served.printed("cache purged");
    assert!(line["device"] == DEVICE && line["provider"] == "jamf" && line["by"].as_str().unwrap().starts_with("uid "), "{line}");
}

#[test]
fn what_cannot_be_forgotten_is_refused_and_says_why() {
    let served = Folder::new().serve();
    for (args, code, said) in [
        (&["purge"][..], 2, "--all"),
        (&["purge", "A", "--all"], 2, "--all"),
        (&["purge", " "], 1, "is empty"),
        (&["purge", "A", "--kind", "name"], 1, "name"),
        (&["purge", "A", "--provider", "other"], 1, "there is no provider `other`"),
        (&["ls", "--provider", "staff"], 1, "it is a file"),
        (&["ls", "--limit", "10001"], 2, "10001"),
        (&["ls"], 0, "no provider of this service has a cache"),
    ] {
        let (got, text) = run(&served, args);
        assert!(got == code && text.contains(said), "{args:?}: {got} {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_the_log_names_a_field_that_never_comes() {
    let (folder, fake) = with_jamf(&Jamf::new()).await;
    fake.set(vec![Device::computer(DEVICE).with("groupMemberships", Value::Null)]);
    let policy = "[policy.fields]\nproviders = [\"jamf\"]\nmanaged = true\ngroups_any = [\"All Managed\"]\n";
    folder.write("stepward.toml", &format!("{}\n[provider.jamf.sync]\nfull = \"1h\"\n{policy}", folder.read("stepward.toml")));
    let mut served = folder.serve();
    let line = served.until(|line| line["field"].is_string());
    assert_eq!(
        (&line["provider"], &line["field"], &line["devices"], &line["level"]),
        (&"jamf".into(), &"groups".into(), &1.into(), &"WARN".into())
    );
}
