//! Tests of files that change while the service runs: good ones are taken, bad ones are not, and each mistake is said once.

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::signal::Signal;

use crate::served::{DEVICE, Folder, WEBHOOK, devices, swap_link};

fn failures(subject: &str, count: u32) -> String {
    format!("stepward_config_reload_failures_total{{subject=\"{subject}\"}} {count}")
}

#[test]
fn bad_files_leave_what_was_there_and_each_is_one_line() {
    let served = Folder::new().serve();
    served.folder.write("devices.json", "{");
    served.counts(&failures("staff", 1));
    served.folder.write("secrets/webhook", "no base64!");
    served.counts(&failures("secrets", 1));
    let text = served.folder.read("stepward.toml");
    served.folder.write("stepward.toml", &text.replace("[[webhook]]", "[[webhok]]"));
    served.counts(&failures("configuration", 1));
    // A line is counted before it is written.
    while served.errors().len() < 3 {
        std::thread::yield_now();
    }
    let subjects: Vec<_> = served.errors().iter().map(|line| line["subject"].as_str().unwrap().to_owned()).collect();
    assert_eq!(subjects, ["staff", "secrets", "configuration"]);
    let (code, page) = served.page("/readyz?verbose");
    assert!(code == 200 && page.contains("webhooks 1") && page.matches("not_applied").count() == 3, "{page}");
    assert!(!page.contains("no base64!"), "{page}");
    assert!(served.folder.read("log").contains("devices.json:1:"), "where the mistake is");
    served.folder.write("stepward.toml", &text);
    served.folder.write("secrets/webhook", "c29tZXRoaW5nIGVsc2UgZW50aXJlbHk=");
    served.folder.write("devices.json", &devices(&[DEVICE, "NEW"]));
    served.counts("stepward_provider_entries{provider=\"staff\"} 2");
    while served.page("/readyz?verbose").1.contains("not_applied") {
        std::thread::yield_now();
    }
    assert!(served.knows("NEW"));
}

#[test]
fn a_hangup_reads_everything_again() {
    let mut served = Folder::new().serve();
    served.signal(Signal::SIGHUP);
    served.printed("reloaded");
    let log = |served: &crate::served::Served| {
        let lines = served.lines();
        let reloaded = lines.iter().filter(|line| line["message"] == "reloaded");
        reloaded.map(|line| line["subject"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    while log(&served).len() < 3 {
        std::thread::yield_now();
    }
    assert_eq!(log(&served), ["configuration", "secrets", "staff"]);
}

#[test]
fn a_reload_says_what_became_of_each_subject() {
    let folder = Folder::new();
    folder.change("stepward.toml", "path = \"devices.json\"", "path = \"devices.json\"\nmax_shrink = 0.0");
    let served = folder.serve();
    let reload = |args: &[&str]| {
        let output = served.folder.run(&[&["reload"], args].concat());
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    served.folder.write("devices.json", &devices(&["NEW"]));
    let (code, text) = reload(&[]);
    assert!(code == 1 && text.contains("NOT APPLIED") && text.contains("max_shrink = 0: "), "{text}");
    assert!(text.contains("run `stepward reload --accept-shrink staff`"), "e5: {text}");
    assert!(served.knows(DEVICE) && !served.knows("NEW"));
    assert_eq!(reload(&["--accept-shrink", "stuff"]), (1, "error: there is no provider `stuff`; did you mean `staff`?\n".to_owned()));
    let (code, text) = reload(&["--accept-shrink", "staff"]);
    assert!(code == 0 && text.contains("1 device, before 2"), "{text}");
    assert!(served.knows("NEW") && !served.knows(DEVICE));
    served.folder.change("stepward.toml", WEBHOOK, "");
    let (code, text) = reload(&["--socket", "run/admin.sock", "--output", "json"]);
    let results: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &results[0]["subject"], &results[0]["applied"]), (1, &"configuration".into(), &false.into()));
    assert!(results[0]["detail"].as_str().unwrap().contains("stepward.toml:"), "{text}");
}

#[test]
fn e28_what_waits_for_a_start_keeps_nothing_else_from_being_applied_and_is_no_failure() {
    let served = Folder::new().serve();
    served.folder.write("devices.json", &devices(&["NEW"]));
    served.folder.change("stepward.toml", "[listen]", "[listen]\nuids = { query = [0, 1] }");
    let reload = |args: &[&str]| {
        let output = served.folder.run(&[&["reload"], args].concat());
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, text) = reload(&[]);
    assert!(code == 0 && text.contains("\n[listen]       WAITS FOR A START: it was changed"), "{text}");
    assert!(text.contains("\nstaff          applied: 1 device") && served.knows("NEW"), "{text}");
    let results: serde_json::Value = serde_json::from_str(&reload(&["--output", "json"]).1).unwrap();
    let last = results.as_array().unwrap().last().unwrap();
    assert_eq!((&last["subject"], &last["applied"], &last["waits"]), (&"[listen]".into(), &false.into(), &true.into()));
    assert_eq!(results[0]["waits"], false);
    assert!(served.page("/readyz?verbose").1.contains("\nwaits [listen]: it was changed, and takes effect at the next start"));
    // A file with a mistake is one that failed all the same.
    served.folder.write("devices.json", "{");
    assert_eq!(reload(&[]).0, 1);
}

#[test]
fn e26_a_message_of_several_lines_is_shown_in_lines() {
    let served = Folder::new().serve();
    served.folder.change("stepward.toml", "[envoy]", "[envoy]\nwasn = \"x\"\ncertificat = \"x\"");
    let output = served.folder.run(&["reload"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("configuration  NOT APPLIED: stepward.toml:") && lines[0].contains("wasn"), "{text}");
    assert!(lines[1].starts_with("               stepward.toml:") && lines[1].contains("certificat"), "{text}");
    assert!(!text.contains("\\u000a"), "{text}");
    let (_, page) = served.page("/readyz?verbose");
    let said: Vec<_> = page.lines().filter(|line| line.contains("stepward.toml:")).collect();
    assert!(matches!(&said[..], [one] if one.starts_with("not_applied configuration: ") && one.contains("; stepward.toml:")), "{page}");
}

#[test]
fn a_volume_that_kubernetes_swaps_is_taken() {
    let folder = Folder::new();
    for (edition, device) in [("..1", DEVICE), ("..2", "SECOND")] {
        fs::create_dir_all(folder.path("volume").join(edition)).unwrap();
        fs::write(folder.path("volume").join(edition).join("devices.json"), devices(&[device])).unwrap();
    }
    symlink("..1", folder.path("volume/..data")).unwrap();
    symlink("..data/devices.json", folder.path("volume/devices.json")).unwrap();
    folder.change("stepward.toml", "path = \"devices.json\"", "path = \"volume/devices.json\"");
    let mut served = folder.serve();
    assert!(served.knows(DEVICE));
    swap_link(&served.folder.path("volume/..data"), "..2");
    fs::remove_dir_all(served.folder.path("volume/..1")).unwrap();
    served.printed("reloaded");
    assert!(served.knows("SECOND") && !served.knows(DEVICE));
    assert_eq!(served.errors(), Vec::<serde_json::Value>::new());
}

#[test]
fn a_change_of_callers_says_that_envoy_has_to_be_told() {
    let mut served = Folder::new().serve();
    served.folder.change("stepward.toml", "callers = [", "callers = [\"dns:new.example.org\", ");
    let warned = served.printed("`callers` changed: call `stepward envoy-config` again, or Envoy ends the handshake of those that are new");
    assert_eq!(warned["level"], "WARN");
}
