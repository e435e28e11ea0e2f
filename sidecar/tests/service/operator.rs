//! Tests of what an operator is told, and can do: mistakes that are found before they cost something, and troubles that are said
//! aloud.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fakes::fleet::Fleet;
use fakes::jamf::Jamf;
use fakes::{Device, Fake, Fault};
use serde_json::{Value, json};

use crate::cache::with_jamf;
use crate::served::{DEVICE, Folder, Served, WEBHOOK, devices};

/// Runs a command; returns exit code, output and errors.
fn run(folder: &Folder, args: &[&str]) -> (i32, String, String) {
    let output = folder.run(args);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn findings(folder: &Folder, check: &str) -> Vec<Value> {
    let told: Value = serde_json::from_slice(&folder.run(&["doctor", "--output", "json"]).stdout).unwrap();
    told["findings"].as_array().unwrap().iter().filter(|finding| finding["check"] == check).cloned().collect()
}

/// Writes the address of a service into its configuration, so that `doctor` finds the page of health.
fn at_its_address(served: &Served) {
    served.folder.change("stepward.toml", "admin = \"127.0.0.1:0\"", &format!("admin = \"{}\"", served.admin()));
}

/// A program that is ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e6_a_misspelt_group_is_named_with_what_was_meant_by_explain_and_doctor() {
    let (folder, fake) = with_jamf(&Jamf::new()).await;
    fake.set(vec![Device { groups: vec!["Compliant Macs".into(), "Staff".into()], ..Device::computer(DEVICE) }]);
    let text = folder.read("stepward.toml").replacen("providers = [\"staff\"]", "policy = \"macs\"", 1);
    let policy = "[policy.macs]\nproviders = [\"jamf\"]\ngroups_any = [\"Complaint Macs\"]\n";
    folder.write("stepward.toml", &format!("{text}\n{policy}"));
    let (code, text, _) = run(&folder, &["check-config"]);
    assert!(
        code == 0
            && text.contains("policy    macs  asks jamf\n")
            && text.contains("groups_any: needs one of [Complaint Macs], or is denied"),
        "{text}"
    );
    let served = folder.serve();
    at_its_address(&served);
    let before = findings(&served.folder, "groups");
    assert!(matches!(&before[..], [one] if one["detail"].as_str().unwrap().contains("compared with nothing")), "{before:?}");
    let mut filter = served.attach().await;
    filter.ask(DEVICE).await;
    let (_, list, _) = run(&served.folder, &["decisions", "--output", "json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    let (code, text, _) = run(&served.folder, &["explain", list[0]["id"].as_str().unwrap()]);
    let said =
        "denied: needs one of [Complaint Macs]; has [Compliant Macs, Staff]. Did you mean Compliant Macs?\ncode      group_required\n";
    assert!(code == 0 && text.starts_with(said), "{text}");
    let record = served.record(list[0]["id"].as_str().unwrap());
    let check = record["checks"].as_array().unwrap().iter().find(|check| check["check"] == "groups_any").unwrap();
    assert_eq!(check["wanted"], json!(["Complaint Macs"]));
    let found = findings(&served.folder, "groups");
    assert!(
        matches!(&found[..], [one] if one["state"] == "doubtful" && one["fix"] == "did you mean `Compliant Macs`?"
            && one["detail"].as_str().unwrap().contains("policy macs names the group `Complaint Macs` in groups_any")),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e7_a_lock_says_where_nobody_knows_such_a_device_and_holds() {
    let (folder, fake) = with_jamf(&Jamf::new()).await;
    let served = folder.serve();
    for (args, said) in [
        (&["lock", "TYPO999", "--reason", "a"][..], Some("no provider knows a device `TYPO999` by serial, udid (asked: jamf, staff)")),
        (&["lock", DEVICE, "--reason", "a"], None),
        (&["lock", "TYPO998", "--kind", "serial", "--reason", "a"], Some("no provider knows a device `TYPO998` by serial ")),
        (&["exempt", "TYPO997", "--ttl", "1h", "--reason", "a"], Some("no provider knows a device `TYPO997`")),
    ] {
        let (code, text, errors) = run(&served.folder, args);
        assert!(code == 0 && text.contains(args[1]), "{text} {errors}");
        assert_eq!(errors.contains("warning: it holds, and "), said.is_some(), "{errors}");
        assert!(errors.contains(said.unwrap_or_default()), "{errors}");
    }
    fake.fail(Some(Fault::Status(500)));
    let (code, _, errors) = run(&served.folder, &["lock", "TYPO996", "--reason", "a"]);
    assert!(code == 0 && errors.contains("no provider that could say") && errors.contains("jamf could not say"), "{errors}");
    let (_, held, _) = run(&served.folder, &["locks", "--output", "json"]);
    let held: Value = serde_json::from_str(&held).unwrap();
    assert_eq!(held.as_array().unwrap().len(), 5);
}

#[test]
fn e9_a_second_program_on_envoys_port_is_noticed() {
    let folder = Folder::new();
    let listen = "import socket,sys,time\ns=socket.socket()\ns.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEPORT,1)\n\
                  s.bind(('127.0.0.1',int(sys.argv[1])))\ns.listen()\nprint(s.getsockname()[1],flush=True)\ntime.sleep(600)\n";
    let start = |port: &str| {
        let mut child = Command::new("python3").args(["-c", listen, port]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (Ended(child), line.trim().to_owned())
    };
    let (_one, port) = start("0");
    folder.change("stepward.toml", "webhook_address = \"127.0.0.1:9443\"", &format!("webhook_address = \"127.0.0.1:{port}\""));
    let alone = findings(&folder, "webhooks");
    assert!(!alone[0]["detail"].as_str().unwrap().contains("share"), "{alone:?}");
    let (_other, _) = start(&port);
    let found = findings(&folder, "webhooks");
    let said = found[0]["detail"].as_str().unwrap();
    assert!(found[0]["state"] == "bad" && said.starts_with(&format!("2 share 127.0.0.1:{port}")) && said.contains("(process "), "{said}");
}

#[test]
fn e10_a_key_that_envoy_alone_may_read_is_no_mistake() {
    let folder = Folder::new();
    let mode = |name: &str, mode: u32| fs::set_permissions(folder.path(name), fs::Permissions::from_mode(mode)).unwrap();
    // Root may read everything: where the tests run as root, the command does not.
    let is_root = nix::unistd::Uid::effective().is_root();
    mode("", 0o777);
    for name in ["secrets", "tls", "client"] {
        mode(name, 0o755);
    }
    for name in ["secrets/webhook", "devices.json", "stepward.toml", "tls/server.crt", "tls/ca.crt"] {
        mode(name, 0o644);
    }
    mode("tls/server.key", if is_root { 0o600 } else { 0o000 });
    let binary = folder.path("stepward");
    fs::copy(env!("CARGO_BIN_EXE_stepward"), &binary).unwrap();
    let command = |args: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(args).current_dir(folder.path("")).env_clear().env("STEPWARD_CONFIG", "stepward.toml").stdin(Stdio::null());
        if is_root {
            command.uid(65_534).gid(65_534);
        }
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, text) = command(&["check-config"]);
    assert!(code == 0 && text.contains("note: ") && text.contains("server.key: not looked at, since this user may not read it"), "{text}");
    // Envoy's user is another matter: for lack of a file that this user cannot read, Envoy ends every connection.
    let (code, text) = command(&["envoy-config"]);
    assert!(code == 1 && text.contains("server.key cannot be read by ") && !text.contains("static_resources"), "{text}");
    let (_, text) = command(&["doctor", "--output", "json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    let key = told["findings"].as_array().unwrap().iter().find(|finding| finding["detail"].as_str().unwrap().contains("server.key"));
    assert_eq!(key.unwrap()["state"], "good");
    // What the service has to read is another matter.
    mode("secrets/webhook", if is_root { 0o600 } else { 0o000 });
    let (code, text) = command(&["check-config"]);
    assert!(code == 1 && text.contains("secrets/webhook: cannot be read") && text.contains("run it as the service's user"), "{text}");
}

#[test]
fn e31_root_is_told_what_the_user_of_the_service_may_not_read_and_others_what_they_may_not() {
    let folder = Folder::new();
    let is_root = nix::unistd::Uid::effective().is_root();
    fs::create_dir_all(folder.path("run")).unwrap();
    // Where root looks, the service is somebody else's.
    if is_root {
        std::os::unix::fs::chown(folder.path("run"), Some(65_534), None).unwrap();
    }
    for name in ["stepward.toml", "devices.json"] {
        fs::set_permissions(folder.path(name), fs::Permissions::from_mode(if is_root { 0o600 } else { 0o000 })).unwrap();
    }
    let named = if is_root { "devices.json: " } else { "stepward.toml: " };
    let (code, text, _) = run(&folder, &["check-config"]);
    assert!(code == 1 && text.contains(named) && text.contains("ermission denied") != is_root, "{text}");
    assert_eq!(text.contains("the user of the service, may not read it: "), is_root, "{text}");
    assert_eq!(text.contains("note: root may read everything, so it was looked at what others may read: "), is_root, "{text}");
    let told: Value = serde_json::from_slice(&folder.run(&["doctor", "--output", "json"]).stdout).unwrap();
    let bad = |finding: &&Value| finding["state"] == "bad" && finding["detail"].as_str().unwrap().contains(named);
    assert!(told["findings"].as_array().unwrap().iter().any(|finding| bad(&finding)), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e39_a_query_without_a_kind_asks_by_what_providers_are_asked_by() {
    let folder = Folder::new();
    folder.change("stepward.toml", "path = \"devices.json\"", "path = \"devices.json\"\nidentifier = \"hostname\"");
    let claimed = "id = \"11111111-2222-4333-8444-555555555555\"";
    folder.change(
        "stepward.toml",
        claimed,
        &format!("{claimed}\nidentity = \"claimed\"\nidentity_field = \"subject.cn\"\nidentifier = \"hostname\""),
    );
    folder.write("devices.json", &devices(&["laptop.example.org"]));
    let served = folder.serve();
    let (code, text, errors) = run(&served.folder, &["query", "laptop.example.org"]);
    assert!(code == 0 && text.contains("found"), "{text} {errors}");
    assert_eq!(errors, "note: no provider is asked by a serial number; asked with --kind hostname\n");
    let (code, text, errors) = run(&served.folder, &["query", "laptop.example.org", "--kind", "serial"]);
    assert!(code == 3 && text.contains("invalid_identifier") && errors.is_empty(), "what was said stays: {text} {errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e37_an_envoy_without_a_certificate_is_told_from_another_program() {
    let folder = Folder::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    folder.change("stepward.toml", "webhook_address = \"127.0.0.1:9443\"", &format!("webhook_address = \"{address}\""));
    // The server listens, reads the first words of the handshake, and closes.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4096]).await;
        }
    });
    let found = tokio::task::spawn_blocking(move || findings(&folder, "webhooks")).await.unwrap();
    let (detail, fix) = (found[0]["detail"].as_str().unwrap(), found[0]["fix"].as_str().unwrap());
    assert!(found[0]["state"] == "bad" && detail.ends_with("before it shows a certificate"), "{found:?}");
    assert!(fix.contains("it has no certificate to show") && fix.contains("tls/server.key, and they fit"), "{fix}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e10_an_outage_is_logged_with_address_and_cause_and_its_end_as_well() {
    let (folder, fake) = with_jamf(&Jamf::new()).await;
    let mut served = folder.serve();
    fake.fail(Some(Fault::Status(503)));
    served.query(&["UNSEEN1", "--provider", "jamf"]);
    let line = served.printed("the service cannot be asked");
    assert_eq!((&line["level"], &line["address"]), (&json!("WARN"), &json!(fake.url().trim_end_matches('/'))));
    assert_eq!(line["cause"], "it answers with the status 503 Service Unavailable");
    fake.fail(None);
    let deadline = Instant::now() + Duration::from_secs(20);
    while served.query(&[DEVICE, "--provider", "jamf"]).0 != 0 {
        assert!(Instant::now() < deadline);
    }
    assert!(served.printed("the service can be asked again")["failures"].as_u64().unwrap() >= 1);
    assert!(!served.folder.read("log").contains("UNSEEN1"), "the address has no device in it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e5_a_list_that_shrank_too_much_is_said_everywhere_with_the_command_that_takes_it() {
    let folder = Folder::new();
    let names: Vec<String> = (0..20).map(|number| format!("D{number}")).collect();
    let of = |count: usize| devices(&names.iter().take(count).map(String::as_str).collect::<Vec<_>>());
    folder.write("devices.json", &of(20));
    let served = folder.serve();
    at_its_address(&served);
    let metric = |value: u8| format!("stepward_provider_shrink_pending{{provider=\"staff\"}} {value}\n");
    assert!(served.page("/metrics").1.contains(&metric(0)));
    served.folder.write("devices.json", &of(15));
    served.counts("stepward_provider_entries{provider=\"staff\"} 15");
    served.folder.write("devices.json", &of(9));
    served.counts(metric(1).trim_end());
    let command = "run `stepward reload --accept-shrink staff`";
    let (_, page) = served.page("/readyz?verbose");
    assert!(page.contains("\nnot_applied staff: ") && page.contains(command), "{page}");
    let (code, _, errors) = run(&served.folder, &["cache", "ls"]);
    assert!(code == 0 && errors.contains("warning: provider staff: ") && errors.contains(command), "{errors}");
    let found = findings(&served.folder, "reload");
    assert!(matches!(&found[..], [one] if one["state"] == "bad" && one["detail"].as_str().unwrap().contains(command)), "{found:?}");
    let reloaded = run(&served.folder, &["reload", "--accept-shrink", "staff"]);
    // The address that this test wrote into [listen] waits for the next start.
    assert!(reloaded.1.contains("\nstaff          applied: 9 devices, before 15\n"), "{reloaded:?}");
    assert!(served.page("/metrics").1.contains(&metric(0)) && !served.page("/readyz?verbose").1.contains("not_applied"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e5_a_list_of_a_service_that_shrank_too_much_waits_for_the_word_of_its_operator_too() {
    let fake = Fake::start(Fleet::default()).await;
    let names: Vec<String> = (0..20).map(|number| format!("FLEET{number:04}")).collect();
    fake.set(names.iter().map(|name| Device::computer(name)).collect());
    let folder = Folder::new();
    let lines = format!(
        "[provider.fleet]\ntype = \"fleet\"\nbase_url = \"{}\"\ntoken = {{ file = \"secrets/fleet\" }}\n[provider.fleet.sync]\npartial = \"10s\"\n",
        fake.url()
    );
    folder.write("secrets/fleet", "secret");
    fs::set_permissions(folder.path("secrets/fleet"), fs::Permissions::from_mode(0o600)).unwrap();
    folder.write("stepward.toml", &format!("{}\n{lines}", folder.read("stepward.toml").replace("[\"staff\"]", "[\"staff\", \"fleet\"]")));
    let mut served = folder.serve();
    assert_eq!(served.until(|line| line["message"] == "inventory read")["seen"], 20);
    for gone in &names[..9] {
        fake.remove(gone);
    }
    let line = served.until(|line| line["message"] == "inventory not used; what is remembered stays");
    assert_eq!((&line["level"], &line["fix"]), (&json!("ERROR"), &json!("if that is right, run `stepward reload --accept-shrink fleet`")));
    let pending = |count: u8| format!("stepward_provider_shrink_pending{{provider=\"fleet\"}} {count}");
    served.counts(&pending(1));
    let knows = |served: &Served, device: &str| served.query(&[device, "--provider", "fleet"]).0 == 0;
    assert!(knows(&served, &names[0]), "until somebody says so it is still let in");
    let (code, text, _) = run(&served.folder, &["reload"]);
    assert!(code == 0 && text.contains("--accept-shrink fleet"), "{code} {text}");
    assert!(knows(&served, &names[0]), "a reload is no such word");
    assert_eq!(run(&served.folder, &["reload", "--accept-shrink", "fleet"]).0, 0);
    served.counts(&pending(0));
    assert!(!knows(&served, &names[0]) && knows(&served, &names[19]));
    // The operator's word was for this list alone.
    for gone in &names[9..15] {
        fake.remove(gone);
    }
    served.counts(&pending(1));
    assert!(knows(&served, &names[9]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e14_decisions_are_filtered_and_followed() {
    let served = Folder::new().serve();
    let mut filter = served.attach().await;
    filter.ask(DEVICE).await;
    filter.ask("UNKNOWN1").await;
    let list = |args: &[&str]| -> Vec<String> {
        let (code, text, errors) = run(&served.folder, &[&["decisions", "--output", "json"], args].concat());
        assert_eq!(code, 0, "{errors}");
        let list: Value = serde_json::from_str(&text).unwrap();
        list.as_array().unwrap().iter().map(|one| one["device"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(list(&[]), ["UNKNOWN1", DEVICE]);
    assert_eq!(list(&["--decision", "allow"]), [DEVICE]);
    assert_eq!(list(&["--code", "device_not_found", "--since", "1h"]), ["UNKNOWN1"]);
    assert_eq!(list(&["--code", "group_required"]), [""; 0], "it is a code, and nothing had it");
    assert_eq!(run(&served.folder, &["decisions", "--decision", "maybe"]).0, 2);
    let mut command = served.folder.command(&["decisions", "--follow", "--since", "1h", "--decision", "deny", "--output", "json"]);
    let mut child = command.env("STEPWARD_CONFIG", "stepward.toml").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let _ended = Ended(child);
    let mut next = || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["device"].as_str().unwrap().to_owned()
    };
    assert_eq!(next(), "UNKNOWN1");
    filter.ask(DEVICE).await;
    filter.ask("UNKNOWN2").await;
    assert_eq!(next(), "UNKNOWN2");
    filter.ask("UNKNOWN3").await;
    assert_eq!(next(), "UNKNOWN3");
}

#[test]
fn e12_mistakes_of_a_command_line_name_an_example() {
    let folder = Folder::new();
    for (args, said) in [
        (&["decisions", "--since", "yesterday"][..], "`yesterday` is not a duration; write 2h, 3d or 30m"),
        (&["decisions", "--since", "1M"], "months and years have no fixed length"),
        (&["lock", "A", "--reason", "a", "--ttl", "soon"], "write 8h, 30m or 2d"),
        (&["exempt", "A", "--reason", "a", "--ttl", "1y"], "no fixed length"),
        (&["webhook", "send", "--device", "A", "--skew", "late"], "write -31s or 6s"),
    ] {
        let (code, _, errors) = run(&folder, args);
        assert!(code == 2 && errors.contains(said), "{args:?}: {errors}");
    }
    let (code, text, _) = run(&folder, &["check-config", "--output", "json"]);
    assert_eq!((code, serde_json::from_str::<Value>(&text).unwrap()["ok"].clone()), (0, json!(true)));
    folder.change("stepward.toml", "[envoy]", "[envoy]\nwasn = \"x\"");
    let (code, text, _) = run(&folder, &["check-config", "--output", "json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    let found = &told["mistakes"][0];
    let line = folder.read("stepward.toml").lines().position(|line| line.starts_with("wasn")).unwrap() + 1;
    assert_eq!((code, &found["file"], &found["line"], &found["column"]), (1, &json!("stepward.toml"), &json!(line), &json!(1)));
    assert!(found["message"].as_str().unwrap().starts_with("[envoy]") || found["message"].as_str().unwrap().contains("`wasn`"), "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e25_a_command_whose_output_nobody_reads_ends_as_other_programs_do() {
    let folder = Folder::new();
    let text = folder.read("stepward.toml");
    folder.write("stepward.toml", &format!("{text}\n[policy.own]\nproviders = [\"staff\"]\n"));
    folder.write("tests.toml", "[[test]]\npolicy = \"own\"\ndevice = {}\nexpect = \"allow\"\n");
    let served = folder.serve();
    served.attach().await.ask(DEVICE).await;
    let (_, list, _) = run(&served.folder, &["decisions", "--output", "json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    let id = list[0]["id"].as_str().unwrap();
    for args in [
        &["completions", "bash"][..],
        &["man"],
        &["version"],
        &["init", "new"],
        &["check-config"],
        &["envoy-config"],
        &["policy", "test", "tests.toml"],
        &["decisions"],
        &["decisions", "--output", "json"],
        &["decisions", "--follow", "--since", "1h"],
        &["decisions", "--follow"],
        &["explain", id],
        &["query", DEVICE],
        &["query", DEVICE, "--policy", "own", "--watch"],
        &["locks"],
        &["cache", "ls"],
        &["reload"],
        &["backup", "backup.db"],
        &["lock", "A", "--reason", "a"],
        &["doctor"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = served.folder.command(args);
        let output = command.env("STEPWARD_CONFIG", "stepward.toml").stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        // Lines beside the output are no errors.
        let errors: Vec<_> = errors.lines().filter(|line| line.starts_with("error") || line.contains("panic")).collect();
        assert_eq!((errors, output.status.code()), (Vec::new(), Some(141)), "{args:?}");
    }
    assert!(served.folder.path("new/stepward.toml").exists(), "what was asked for is done all the same");
    assert!(run(&served.folder, &["locks"]).1.contains("lock  A "), "as this is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e25_a_command_that_follows_ends_with_its_reader_though_nothing_happens() {
    let folder = Folder::new();
    let text = folder.read("stepward.toml");
    folder.write("stepward.toml", &format!("{text}\n[policy.own]\nproviders = [\"staff\"]\n"));
    let served = folder.serve();
    served.attach().await.ask(DEVICE).await;
    for args in [&["decisions", "--follow", "--since", "1h"][..], &["query", DEVICE, "--policy", "own", "--watch"]] {
        let mut command = served.folder.command(args);
        let mut child = command.env("STEPWARD_CONFIG", "stepward.toml").stdout(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(first.contains(DEVICE), "{args:?}: {first}");
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "{args:?} goes on");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(141), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e29_a_webhook_that_has_a_name_is_shown_by_it_and_chosen_by_it() {
    let folder = Folder::new();
    folder.change("stepward.toml", "[[webhook]]", "[[webhook]]\nname = \"laptops\"");
    let mut served = folder.serve();
    served.attach().await.ask(DEVICE).await;
    let shown = format!("laptops ({WEBHOOK})");
    let (code, text, _) = run(&served.folder, &["decisions", "--webhook", "laptops"]);
    assert!(code == 0 && text.contains(DEVICE) && text.contains(&shown), "{text}");
    let (_, text, _) = run(&served.folder, &["decisions", "--webhook", WEBHOOK, "--output", "json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&list[0]["webhook"], &list[0]["webhook_name"]), (&json!(WEBHOOK), &json!("laptops")));
    let id = list[0]["id"].as_str().unwrap();
    assert!(run(&served.folder, &["explain", id]).1.contains(&format!("webhook   {shown} (enriching)")));
    let (code, _, errors) = run(&served.folder, &["decisions", "--webhook", "laptop"]);
    assert!(code == 1 && errors.contains("there is no webhook `laptop`; did you mean `laptops`?"), "{errors}");
    assert!(run(&served.folder, &["check-config"]).1.contains(&format!("webhook   {shown}  enriching")));
    let line = served.printed("decision");
    assert_eq!((&line["webhook"], &line["webhook_name"]), (&json!(WEBHOOK), &json!("laptops")));
    assert!(served.page("/metrics").1.contains(&format!("webhook=\"{WEBHOOK}\"")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e23_what_there_is_not_is_refused_with_what_was_meant_and_what_is_gone_is_still_found() {
    let folder = Folder::new();
    let text = folder.read("stepward.toml");
    let check = "{ expr = \"request.identifier == 'X'\", code = \"too_red\", message = \"a\" }";
    let policy = format!("[policy.own]\nproviders = [\"staff\"]\ndeny_if = [{check}]\n");
    folder.write("stepward.toml", &format!("{text}\n{policy}"));
    let served = folder.serve();
    served.attach().await.ask(DEVICE).await;
    let codes = "docs/codes.md lists those of Stepward, and policies have their own";
    for (args, said) in [
        (&["decisions", "--code", "bogus"][..], format!("error: there is no code `bogus`: {codes}")),
        (
            &["decisions", "--code", "device_not_fuond"],
            format!("there is no code `device_not_fuond`: did you mean `device_not_found`? {codes}"),
        ),
        (&["decisions", "--code", "to_red"], "did you mean `too_red`?".to_owned()),
        (&["decisions", "--follow", "--code", "bogus"], "there is no code `bogus`".to_owned()),
        (&["decisions", "--webhook", "bogus"], format!("there is no webhook `bogus`; there is {WEBHOOK} alone")),
        (&["query", DEVICE, "--provider", "stuff"], "there is no provider `stuff`; did you mean `staff`?".to_owned()),
        (&["query", DEVICE, "--policy", "won"], "there is no policy `won`; did you mean `own`?".to_owned()),
        (&["cache", "ls", "--provider", "x"], "there is no provider `x`; there is staff alone".to_owned()),
        (&["reload", "--accept-shrink", "stuff"], "did you mean `staff`?".to_owned()),
        (&["webhook", "send", "--id", "bogus", "--device", "A"], format!("there is no webhook `bogus`; there is {WEBHOOK} alone")),
        (&["man", "webhok"], "there is no command `webhok`; did you mean `webhook`?".to_owned()),
    ] {
        let (code, text, errors) = run(&served.folder, args);
        assert!(code == 1 && text.is_empty() && errors.contains(&said), "{args:?}: {code} {text} {errors}");
    }
    for code in ["too_red", "allowed", "signature", "device_not_found"] {
        assert_eq!(run(&served.folder, &["decisions", "--code", code]).0, 0, "{code}");
    }
    // As after a rotation: the configuration has another id, and the records of the old one are there.
    served.folder.change("stepward.toml", WEBHOOK, "another");
    assert_eq!(run(&served.folder, &["reload"]).0, 0);
    let (code, text, _) = run(&served.folder, &["decisions", "--webhook", WEBHOOK]);
    assert!(code == 0 && text.contains(DEVICE), "{text}");
    let (code, text, errors) = run(&served.folder, &["decisions", "--webhook", WEBHOOK, "--decision", "deny"]);
    assert!(code == 0 && !text.contains(DEVICE), "{errors}");
}

#[test]
fn e12_tests_of_policies_take_the_configuration_of_the_environment() {
    let folder = Folder::new();
    let text = folder.read("stepward.toml");
    folder.write("stepward.toml", &format!("{text}\n[policy.own]\nproviders = [\"staff\"]\n"));
    folder.write("tests.toml", "[[test]]\npolicy = \"own\"\ndevice = {}\nexpect = \"allow\"\n");
    let (code, text, errors) = run(&folder, &["policy", "test", "tests.toml"]);
    assert!(code == 0 && text.contains("1 passed, 0 failed"), "{text} {errors}");
}

#[test]
fn e14_a_running_store_is_backed_up() {
    let served = Folder::new().serve();
    assert_eq!(run(&served.folder, &["lock", DEVICE, "--reason", "stolen"]).0, 0);
    let (code, text, errors) = run(&served.folder, &["backup", "backup.db"]);
    assert!(code == 0 && text.contains(" bytes are in "), "{text} {errors}");
    assert_eq!(served.folder.path("backup.db").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let (code, _, errors) = run(&served.folder, &["backup", "backup.db"]);
    assert!(code == 1 && errors.contains("there is a file of that name already"), "{errors}");
    assert_eq!(run(&served.folder, &["lock", "B", "--reason", "a"]).0, 0, "the service has noticed nothing");
    assert!(!served.page("/readyz?verbose").1.contains("\nstore "));
    let folder = served.folder.clone();
    drop(served);
    for suffix in ["", "-wal", "-shm"] {
        let path: PathBuf = folder.path(&format!("state/stepward.db{suffix}"));
        let _ = fs::remove_file(path);
    }
    fs::rename(folder.path("backup.db"), folder.path("state/stepward.db")).unwrap();
    let served = folder.serve();
    let (_, held, _) = run(&served.folder, &["locks", "--output", "json"]);
    let held: Vec<BTreeMap<String, Value>> = serde_json::from_str(&held).unwrap();
    assert_eq!(held.iter().map(|lock| lock["device"].clone()).collect::<Vec<_>>(), [json!(DEVICE)]);
}
