//! Locks, exemptions and the record of decisions, as the operator has them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use nix::sys::signal::Signal;
use proto::v1::LockRequest;
use proto::v1::admin_service_client::AdminServiceClient;
use serde_json::{Value, json};

use crate::served::{DEVICE, Folder, Served};

/// Exit code, standard output and standard error of a command.
fn run(folder: &Folder, args: &[&str]) -> (i32, String, String) {
    let output = folder.run(args);
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// What `stepward locks` lists, as kind, device and reason.
fn held(folder: &Folder) -> Vec<[String; 3]> {
    let (code, text, errors) = run(folder, &["locks", "--output", "json"]);
    assert_eq!(code, 0, "{errors}");
    let list: Vec<Value> = serde_json::from_str(&text).unwrap();
    list.iter().map(|ruling| ["kind", "device", "reason"].map(|key| ruling[key].as_str().unwrap().to_owned())).collect()
}

/// Starts it again in the same folder, after an end that left it no time for anything.
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
    for said in ["kind     lock\n", "device   c02xl0gyjgh5\n", "reason   stolen\n", "made_by  uid "] {
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

#[test]
fn a_lock_by_udid_is_taken_back_with_dashes_or_without_and_a_short_one_ends_by_itself() {
    let served = Folder::new().serve();
    let udid = "6F1C2B3A-0D4E-4F5A-8B6C-7D8E9F0A1B2C";
    assert_eq!(run(&served.folder, &["lock", &udid.replace('-', ""), "--reason", "a", "--ttl", "1s"]).0, 0);
    assert_eq!(run(&served.folder, &["lock", udid, "--reason", "b", "--ttl", "8h"]).0, 0);
    let (code, text, _) = run(&served.folder, &["locks"]);
    assert!(code == 0 && text.starts_with("KIND  DEVICE") && text.contains("  uid "), "{text}");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while held(&served.folder).len() > 1 {
        assert!(std::time::Instant::now() < deadline, "the short one goes on");
    }
    assert_eq!(held(&served.folder)[0][2], "b");
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
        (&["exempt", "A", "--ttl", "31d", "--reason", "a"], 1, "30days at most"),
        (&["explain", "01JD8Q2W3E4R5T6Y7Z8A9B0CDE"], 3, "there is no record of a decision"),
        (&["explain", "nonsense"], 1, "`nonsense` is no id"),
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
    assert!(code == 1 && errors.contains("devices.json is damaged: put a backup in its place"), "{errors}");
    assert!(folder.read("devices.json").starts_with('{'));
    assert!(!folder.path("run/admin.sock").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_disk_that_is_full_a_lock_holds_and_the_service_goes_on() {
    let folder = Folder::new();
    let mut command = std::process::Command::new("sh");
    let binary = env!("CARGO_BIN_EXE_stepward");
    // In blocks of 512 or 1024 bytes, as the shell has it; without the trap the first write beyond would end the process.
    command.args(["-c", "trap '' XFSZ; ulimit -f 128; exec \"$0\" serve", binary]);
    command.current_dir(folder.path("")).env_clear().env("PATH", "/usr/bin:/bin").env("STEPWARD_CONFIG", "stepward.toml");
    let served = Served::start(folder, command);
    let mut client = AdminServiceClient::new(served.channel("admin.sock", None).await.unwrap());
    let mut number = 0;
    let not_kept = loop {
        let request = LockRequest { device: format!("DEVICE{number}"), reason: "a".repeat(500), ttl_seconds: 0 };
        let reply = client.lock(request).await.unwrap().into_inner();
        number += 1;
        if !reply.not_kept.is_empty() {
            break reply.not_kept;
        }
        assert!(number < 500, "the disk is never full");
    };
    assert!(not_kept.contains("the store failed") || not_kept.contains("full"), "{not_kept}");
    assert_eq!(held(&served.folder).len(), number);
    assert_eq!(served.query(&[DEVICE]).0, 0);
    let (code, _, errors) = run(&served.folder, &["exempt", "A", "--ttl", "1h", "--reason", "a"]);
    assert!(code == 1 && errors.contains("no exemption was made"), "{errors}");
}

#[test]
fn a_store_that_was_removed_is_named_and_the_service_goes_on() {
    let served = Folder::new().serve();
    assert_eq!(run(&served.folder, &["lock", "A", "--reason", "a"]).0, 0);
    fs::remove_file(served.folder.path("state/stepward.db")).unwrap();
    let (code, _, errors) = run(&served.folder, &["lock", "B", "--reason", "b"]);
    assert!(code == 1 && errors.contains("removed or replaced: start the service again"), "{errors}");
    let (code, _, errors) = run(&served.folder, &["unlock", "A"]);
    assert!(code == 1 && errors.contains("nothing was taken back"), "{errors}");
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
