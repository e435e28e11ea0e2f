//! What an operator is told, and can do: mistakes that are found before they cost something, and troubles that are said aloud.

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
use crate::served::{DEVICE, Folder, Served, devices};

/// Exit code, output and errors.
fn run(folder: &Folder, args: &[&str]) -> (i32, String, String) {
    let output = folder.run(args);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn findings(folder: &Folder, check: &str) -> Vec<Value> {
    let told: Value = serde_json::from_slice(&folder.run(&["doctor", "--output", "json"]).stdout).unwrap();
    told["findings"].as_array().unwrap().iter().filter(|finding| finding["check"] == check).cloned().collect()
}

/// So that `doctor` finds the page of health.
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
    let (_, text) = command(&["doctor", "--output", "json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    let key = told["findings"].as_array().unwrap().iter().find(|finding| finding["detail"].as_str().unwrap().contains("server.key"));
    assert_eq!(key.unwrap()["state"], "good");
    // What the service has to read is another matter.
    mode("secrets/webhook", if is_root { 0o600 } else { 0o000 });
    let (code, text) = command(&["check-config"]);
    assert!(code == 1 && text.contains("secrets/webhook: cannot be read") && text.contains("run it as the service's user"), "{text}");
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
    // The word was for this list alone.
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
    assert_eq!(list(&["--webhook", "none"]), [""; 0]);
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
fn e12_mistakes_of_a_command_line_name_an_example_and_a_closed_pipe_is_none() {
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
    // Nobody reads what it writes.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = folder.command(&["completions", "bash"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((String::from_utf8(output.stderr).unwrap().as_str(), output.status.code()), ("", Some(1)));
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
