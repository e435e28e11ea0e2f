//! Tests of locks, exemptions and the record of decisions, as the operator has them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant, SystemTime};

use fakes::Device;
use fakes::jamf::Jamf;
use nix::sys::signal::Signal;
use posture::secret::Secret;
use posture::verify::SigningKeys;
use proto::v1::LockRequest;
use proto::v1::admin_service_client::AdminServiceClient;
use serde_json::{Value, json};

use crate::cache::with_jamf;
use crate::served::{DEVICE, Folder, Served};

/// Runs a command; returns exit code, standard output and standard error.
fn run(folder: &Folder, args: &[&str]) -> (i32, String, String) {
    let output = folder.run(args);
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Returns what `stepward locks` lists, as kind, device and reason.
fn held(folder: &Folder) -> Vec<[String; 3]> {
    let (code, text, errors) = run(folder, &["locks", "--output", "json"]);
    assert_eq!(code, 0, "{errors}");
    let list: Vec<Value> = serde_json::from_str(&text).unwrap();
    list.iter().map(|ruling| ["kind", "device", "reason"].map(|key| ruling[key].as_str().unwrap().to_owned())).collect()
}

/// Starts the service again in the same folder, after an end that left it no time for anything.
fn killed_and_started_again(mut served: Served) -> Served {
    served.signal(Signal::SIGKILL);
    served.ended();
    served.again()
}

#[test]
fn a_lock_survives_the_death_of_the_service() {
    let served = Folder::new().serve();
    assert!(!served.folder.path("state/stepward.db-wal").metadata().unwrap().is_dir());
    let (code, text, _) = run(&served.folder, &["lock", &DEVICE.to_lowercase(), "--reason", "stolen"]);
    assert_eq!(code, 0);
    for said in [
        "kind             lock\n",
        "device           c02xl0gyjgh5\n",
        "identifier_kind  any\n",
        "reason           stolen\n",
        "made_by          uid ",
    ] {
        assert!(text.contains(said), "{text}");
    }
    assert_eq!(run(&served.folder, &["exempt", "other", "--ttl", "4h", "--reason", "MDM is down"]).0, 0);
    let expected =
        [["lock", "c02xl0gyjgh5", "stolen"], ["exemption", "other", "MDM is down"]].map(|ruling| ruling.map(str::to_owned)).to_vec();
    assert_eq!(held(&served.folder), expected);
    let served = killed_and_started_again(served);
    assert_eq!(held(&served.folder), expected);
    assert_eq!(run(&served.folder, &["unlock", DEVICE]).0, 0);
    assert_eq!(run(&served.folder, &["unexempt", "OTHER"]).0, 0);
    let served = killed_and_started_again(served);
    assert_eq!(held(&served.folder), Vec::<[String; 3]>::new());
    let mode = |name: &str| served.folder.path(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("state"), mode("state/stepward.db")), (0o700, 0o600));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a8_a_lock_by_what_a_management_told_holds_for_a_file_that_never_heard_of_it() {
    let (folder, fake) = with_jamf(&Jamf::new()).await;
    let udid = "00008103-001A2B3C4D5E6F70";
    fake.set(vec![Device { udid: udid.to_owned(), ..Device::computer(DEVICE) }]);
    let policies = "[policy.listed]\nproviders = [\"staff\"]\n[policy.managed]\nproviders = [\"jamf\"]\n";
    let text = folder.read("stepward.toml");
    folder.write("stepward.toml", &format!("{text}\n{policies}"));
    let mut served = folder.serve();
    let listed = |served: &Served| served.query(&[DEVICE, "--policy", "listed"]).0 == 0;
    assert_eq!(served.query(&[DEVICE, "--policy", "managed"]).0, 0);
    // The management is away from now on: what it told has to be enough.
    drop(fake);
    served.signal(Signal::SIGTERM);
    served.ended();
    served = served.again();
    assert!(listed(&served));
    assert_eq!(run(&served.folder, &["lock", udid, "--reason", "stolen"]).0, 0);
    assert!(!listed(&served), "learned before the restart, locked after it");
    let served = killed_and_started_again(served);
    assert!(!listed(&served), "and locked before the restart");
    let (code, _, errors) = run(&served.folder, &["unlock", DEVICE]);
    assert!(code == 3 && !listed(&served), "{errors}");
    assert_eq!(run(&served.folder, &["unlock", udid]).0, 0);
    assert!(listed(&served));
}

#[test]
fn a_lock_by_udid_is_taken_back_with_dashes_or_without_and_a_short_one_ends_by_itself() {
    let served = Folder::new().serve();
    let udid = "6F1C2B3A-0D4E-4F5A-8B6C-7D8E9F0A1B2C";
    assert_eq!(run(&served.folder, &["lock", &udid.replace('-', ""), "--reason", "a", "--ttl", "1s"]).0, 0);
    assert_eq!(run(&served.folder, &["lock", udid, "--reason", "b", "--ttl", "8h"]).0, 0);
    let (code, text, _) = run(&served.folder, &["locks"]);
    assert!(code == 0 && text.starts_with("KIND  DEVICE") && text.contains("  uid "), "{text}");
    let deadline = Instant::now() + Duration::from_secs(30);
    while held(&served.folder).len() > 1 {
        assert!(Instant::now() < deadline, "the short one goes on");
    }
    assert_eq!(held(&served.folder)[0][2], "b");
    let (code, _, errors) = run(&served.folder, &["unlock", udid, "--kind", "udid"]);
    assert!(
        code == 3
            && errors.contains("made with --kind udid; there is:")
            && errors.contains("made without --kind (b): stepward unlock --id "),
        "{errors}"
    );
    assert_eq!(run(&served.folder, &["unlock", &udid.to_lowercase()]).0, 0);
    let (code, _, errors) = run(&served.folder, &["unlock", udid]);
    assert!(code == 3 && errors.contains("`stepward locks` lists what holds"), "{errors}");
}

#[test]
fn what_makes_no_sense_is_refused_and_says_why() {
    let served = Folder::new().serve();
    let long = "A".repeat(255);
    for (args, code, said) in [
        (&["lock", "A"][..], 2, "--reason"),
        (&["lock", "A", "--reason", " "], 1, "reason"),
        (&["lock", "", "--reason", "a"], 1, "identifier of the device"),
        (&["lock", &long, "--reason", "a"], 1, "1 to 254 bytes"),
        (&["lock", "A\n", "--reason", "a\u{1b}[2J"], 1, "no control characters"),
        (&["lock", "A", "--reason", "a", "--ttl", "0s"], 2, "at least one"),
        (&["lock", "A", "--reason", "a", "--ttl", "100000d"], 1, "at most"),
        (&["exempt", "A", "--reason", "a"], 2, "--ttl"),
        (&["exempt", "A", "--ttl", "1h"], 2, "--reason"),
        (&["exempt", "A", "--ttl", "1h", "--reason", "a", "--kind", "nonsense"], 1, "serial, udid"),
        (&["lock", "Default string", "--reason", "a"], 1, "what devices say that have no identifier"),
        (&["lock", "0000", "--reason", "a", "--kind", "udid"], 1, "name the lock by another one"),
        (&["exempt", "none", "--ttl", "1h", "--reason", "a"], 1, "name the exemption by another one"),
        (&["unlock"], 2, "--id"),
        (&["unlock", "--id", "nonsense"], 1, "the id of a ruling"),
        (&["exempt", "A", "--ttl", "31d", "--reason", "a"], 1, "30days at most"),
        (&["explain", "01JD8Q2W3E4R5T6Y7Z8A9B0CDE"], 3, "there is no record of a decision"),
        (&["explain", "nonsense"], 1, "`nonsense` is no id of a decision, and no file that can be read"),
        (&["explain", "stepward.toml"], 1, "is no header"),
        (&["decisions", "--since", "soon"], 2, "--since"),
    ] {
        let (got, _, errors) = run(&served.folder, args);
        assert!(got == code && errors.contains(said), "{args:?}: {got} {errors}");
    }
    assert_eq!(held(&served.folder), Vec::<[String; 3]>::new());
    assert_eq!(run(&served.folder, &["decisions", "--device", "A", "--since", "2h", "--output", "json"]).1, "[]\n");
}

#[test]
fn without_a_store_a_lock_holds_and_the_operator_is_warned() {
    let folder = Folder::new();
    folder.change("stepward.toml", "[envoy]", "[store]\nenabled = false\n\n[envoy]");
    let served = folder.serve();
    assert!(served.lines().iter().any(|line| line["message"].as_str().is_some_and(|text| text.starts_with("[store] enabled is false"))));
    let (code, _, errors) = run(&served.folder, &["lock", DEVICE, "--reason", "stolen"]);
    assert!(code == 1 && errors.contains("not after the next start of the service: there is no store"), "{errors}");
    assert_eq!(held(&served.folder).len(), 1);
    let (code, _, errors) = run(&served.folder, &["decisions"]);
    assert!(code == 1 && errors.contains("there is no store"), "{errors}");
    assert!(!served.folder.path("state").exists());
}

#[test]
fn a_store_that_cannot_be_used_ends_the_start_and_says_what_to_do() {
    let folder = Folder::new();
    folder.change("stepward.toml", "[envoy]", "[store]\npath = \"stepward.toml/stepward.db\"\n\n[envoy]");
    let (code, _, errors) = run(&folder, &["serve"]);
    assert!(code == 1 && errors.contains("choose another file by [store] path"), "{errors}");
    folder.change("stepward.toml", "stepward.toml/stepward.db", "devices.json");
    let (code, _, errors) = run(&folder, &["serve"]);
    assert!(code == 1 && errors.contains("devices.json is damaged: move it aside together with"), "{errors}");
    assert!(folder.read("devices.json").starts_with('{'));
    assert!(!folder.path("run/admin.sock").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_disk_that_is_full_a_lock_holds_and_the_service_goes_on() {
    let folder = Folder::new();
    let mut command = std::process::Command::new("sh");
    let binary = env!("CARGO_BIN_EXE_stepward");
    // The limit is in blocks of 512 or 1024 bytes, as the shell has it; without the trap the first write beyond would end the
    // process.
    command.args(["-c", "trap '' XFSZ; ulimit -f 256; exec \"$0\" serve", binary]);
    command.current_dir(folder.path("")).env_clear().env("PATH", "/usr/bin:/bin").env("STEPWARD_CONFIG", "stepward.toml");
    let served = Served::start(folder, command);
    let mut client = AdminServiceClient::new(served.channel("admin.sock", None).await.unwrap());
    let mut number = 0;
    let not_kept = loop {
        let request = LockRequest { device: format!("DEVICE{number}"), reason: "a".repeat(500), ..LockRequest::default() };
        let reply = client.lock(request).await.unwrap().into_inner();
        number += 1;
        if !reply.not_kept.is_empty() {
            assert!(reply.ruling.unwrap().not_kept, "the reply says one thing");
            break reply.not_kept;
        }
        assert!(!reply.ruling.unwrap().not_kept);
        assert!(number < 500, "the disk is never full");
    };
    assert!(not_kept.contains("the store failed") || not_kept.contains("full"), "{not_kept}");
    assert_eq!(held(&served.folder).len(), number);
    assert_eq!(served.query(&[DEVICE]).0, 0);
    let (code, _, errors) = run(&served.folder, &["exempt", "A", "--ttl", "1h", "--reason", "a"]);
    assert!(code == 1 && errors.contains("no exemption was made"), "{errors}");
}

#[test]
fn g9_a_store_that_was_removed_is_named_and_the_service_goes_on() {
    let served = Folder::new().serve();
    assert_eq!(run(&served.folder, &["lock", "A", "--reason", "a"]).0, 0);
    served.folder.change("stepward.toml", "admin = \"127.0.0.1:0\"", &format!("admin = \"{}\"", served.admin()));
    let doctor = || {
        let output = served.folder.run(&["doctor", "--output", "json"]);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let store =
            told["findings"].as_array().unwrap().iter().find(|finding| finding["subject"] == "service" && finding["check"] == "store");
        store.map(|finding| (finding["state"].clone(), finding["detail"].as_str().unwrap().to_owned()))
    };
    assert_eq!(doctor(), None);
    for name in ["stepward_store_owed_locks 0\n", "stepward_store_lost 0\n"] {
        assert!(served.page("/metrics").1.contains(name), "{name}");
    }
    fs::remove_file(served.folder.path("state/stepward.db")).unwrap();
    let (code, _, errors) = run(&served.folder, &["lock", "B", "--reason", "b"]);
    assert!(
        code == 1 && errors.contains("removed or replaced, cut short") && errors.contains("stop the service, move the store's file"),
        "{errors}"
    );
    let (code, _, errors) = run(&served.folder, &["unlock", "A"]);
    assert!(code == 1 && errors.contains("nothing was taken back"), "{errors}");
    let (code, _, errors) = run(&served.folder, &["locks"]);
    assert!(code == 0 && errors.contains("1 of them would not survive"), "{errors}");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !served.page("/readyz?verbose").1.contains("\nstore a file of the store was removed or replaced") {
        assert!(Instant::now() < deadline, "{}", served.page("/readyz?verbose").1);
    }
    for name in ["stepward_store_owed_locks 1\n", "stepward_store_lost 1\n"] {
        assert!(served.page("/metrics").1.contains(name), "{name}");
    }
    let (state, said) = doctor().unwrap();
    assert!(state == "bad" && said.contains("note what `stepward locks` shows, stop the service"), "{said}");
    assert_eq!(held(&served.folder).len(), 2);
    assert!(served.knows(DEVICE));
}

#[test]
fn the_log_tells_who_made_and_took_back_what() {
    let mut served = Folder::new().serve();
    run(&served.folder, &["lock", "A", "--reason", "stolen"]);
    run(&served.folder, &["unlock", "a"]);
    let (made, gone) = (served.printed("ruling made"), served.printed("ruling taken back"));
    assert_eq!((&made["device"], &made["reason"], &made["kind"]), (&json!("A"), &json!("stolen"), &json!("lock")));
    assert!(made["by"].as_str().unwrap().starts_with("uid ") && made["by"] == gone["by"] && made["id"] == gone["id"]);
}

/// Returns a webhook as step-ca sends it, and as somebody kept it.
fn captured(folder: &Folder, timestamp: &str, device: &str) -> String {
    let body = json!({ "timestamp": timestamp, "x509CertificateRequest": {}, "attestationData": { "permanentIdentifier": device } });
    let body = body.to_string();
    let secret = Secret::from_base64(&folder.read("secrets/webhook")).unwrap();
    let signature = SigningKeys::new(&[secret]).sign(body.as_bytes()).unwrap().to_hex();
    format!(
        "POST /webhook/device?mode=computer HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\
         X-Smallstep-Webhook-ID: 11111111-2222-4333-8444-555555555555\r\nX-Smallstep-Signature: {signature}\r\n\r\n{body}",
        body.len()
    )
}

/// Returns what `stepward explain` says of a captured request, and the results of its checks that failed.
fn explained(served: &Served, args: &[&str]) -> (Value, Vec<String>) {
    let (code, text, errors) = run(&served.folder, &[&["explain"], args, &["--output", "json"]].concat());
    assert_eq!(code, 0, "{errors}");
    let value: Value = serde_json::from_str(&text).unwrap();
    let checks = value["verification"].as_array().unwrap().clone();
    let failed = checks.iter().filter(|check| check["result"].as_str().unwrap().starts_with("FAILED"));
    (value.clone(), failed.map(|check| check["check"].as_str().unwrap().to_owned()).collect())
}

#[test]
fn a_captured_request_is_judged_as_of_now_and_leaves_no_trace() {
    let folder = Folder::new();
    let policy = "[policy.engineers]\nproviders = [\"staff\"]\n\
                  require = [{ expr = \"device.data.department == 'Engineering'\", code = \"not_engineer\", message = \"no engineer\" }]\n";
    let text = folder.read("stepward.toml").replace("providers = [\"staff\"]", "policy = \"engineers\"");
    folder.write("stepward.toml", &format!("{text}\n{policy}"));
    let served = folder.serve();
    let at = |secs: u64| humantime::format_rfc3339_seconds(SystemTime::now() - Duration::from_secs(secs)).to_string();
    let good = captured(&served.folder, &at(0), &DEVICE.to_lowercase());
    // The file ends with a line more, as an editor leaves it.
    served.folder.write("request.http", &format!("{good}\n"));
    for _ in 0..2 {
        let (value, failed) = explained(&served, &["request.http", "--cert", "client/client.crt"]);
        assert_eq!((failed, &value["decision"], &value["code"]), (vec![], &json!("allow"), &json!("allowed")), "{value}");
        assert_eq!((&value["device"]["identifier"], &value["device"]["trust"]), (&json!(DEVICE), &json!("attested")));
        assert_eq!((&value["policy"], &value["provider"]), (&json!("engineers"), &json!("staff")));
        let check = value["checks"].as_array().unwrap().iter().find(|check| check["check"] == "require 1").unwrap();
        assert_eq!((&check["code"], &check["inputs"]["device.data.department"]), (&Value::Null, &json!("(known)")));
    }
    served.folder.write("old.http", &captured(&served.folder, &at(7200), "PF3ABCDE"));
    let (value, failed) = explained(&served, &["old.http"]);
    assert_eq!((failed, &value["decision"], &value["code"]), (vec!["time".to_owned()], &json!("deny"), &json!("not_engineer")));
    assert_eq!((&value["message"], &value["caller"]), (&json!("no engineer"), &Value::Null));
    served.folder.write("board.http", &captured(&served.folder, &at(0), "Default string"));
    let (value, failed) = explained(&served, &["board.http"]);
    assert_eq!((failed, &value["code"], &value["device"]), (vec!["identity".to_owned()], &json!("identifier_missing"), &Value::Null));
    assert_eq!(run(&served.folder, &["lock", DEVICE, "--reason", "stolen"]).0, 0);
    assert_eq!(explained(&served, &["request.http"]).0["code"], "device_locked");
    let (head, body) = good.split_once("\r\n\r\n").unwrap();
    served.folder.write("body.json", body);
    served.folder.write("headers.txt", head);
    assert_eq!(explained(&served, &["body.json", "--headers", "headers.txt"]).0["code"], "device_locked");
    served.folder.write("long.json", &"a".repeat(1 << 20));
    assert_eq!(explained(&served, &["long.json", "--headers", "headers.txt"]).1, ["size"], "as long as a body can be");
    served.folder.write("longer.json", &"a".repeat(2 << 20));
    let (code, _, said) = run(&served.folder, &["explain", "longer.json", "--headers", "headers.txt"]);
    assert!(code == 1 && said.contains("longer than any request"), "{said}");
    served.folder.write("forged.http", &good.replace(&DEVICE.to_lowercase(), "c02xl0gyjgh6"));
    let (value, failed) = explained(&served, &["forged.http"]);
    assert_eq!((failed, &value["decision"], &value["code"]), (vec!["signature".to_owned()], &json!("refuse"), &json!("signature")));
    assert!(value.get("checks").is_none() && value.get("device").is_none(), "{value}");
    let (value, failed) = explained(&served, &["request.http", "--cert", "tls/server.crt"]);
    assert_eq!((failed, &value["code"]), (vec!["caller".to_owned()], &json!("caller")));
    assert_eq!(run(&served.folder, &["decisions", "--output", "json"]).1, "[]\n");
    let (_, page) = served.page("/metrics");
    assert!(page.contains("stepward_replay_entries 0") && !page.contains("stepward_decisions_total{"), "{page}");
    served.folder.change("stepward.toml", "[envoy]", "[store]\nenabled = false\n\n[envoy]");
    let served = killed_and_started_again(served);
    assert!(explained(&served, &["request.http"]).0["checks"].is_array(), "that needs no store");
}
