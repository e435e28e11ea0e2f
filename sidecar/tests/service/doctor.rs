//! Tests of what `stepward doctor` finds, beside a running service and without one.

use fakes::jamf::{Jamf, PRIVILEGES};
use fakes::server::Answer;
use fakes::{Device, Fake, Seen, Service};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

use crate::cache::with_jamf;
use crate::send::{ALLOWED, listen};
use crate::served::{DEVICE, Folder};

/// Runs `stepward doctor`; returns exit code and findings.
fn examine(folder: &Folder) -> (i32, Vec<Value>) {
    let output = folder.run(&["doctor", "--output", "json"]);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let code = output.status.code().unwrap();
    assert_eq!(value["ok"], code == 0);
    (code, value["findings"].as_array().unwrap().clone())
}

/// Returns the state of a check, and the rest that was said of it.
fn finding(findings: &[Value], subject: &str, check: &str) -> (String, String) {
    let found = findings.iter().find(|finding| finding["subject"] == subject && finding["check"] == check);
    let found = found.unwrap_or_else(|| panic!("no {subject} {check}: {findings:#?}"));
    let fix = found["fix"].as_str().unwrap_or_default();
    let state = found["state"].as_str().unwrap();
    assert_eq!(state == "good", fix.is_empty(), "{found}");
    (state.to_owned(), format!("{} {fix}", found["detail"].as_str().unwrap()))
}

fn state(findings: &[Value], subject: &str, check: &str) -> String {
    finding(findings, subject, check).0
}

/// Returns a port of this machine on which nothing listens.
fn nobody() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn envoy_at(folder: &Folder, port: u16) {
    folder.change("stepward.toml", "webhook_address = \"127.0.0.1:9443\"", &format!("webhook_address = \"127.0.0.1:{port}\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finds_nothing_bad_where_everything_is_as_it_should_be() {
    let (folder, _fake) = with_jamf(&Jamf::new()).await;
    let (port, _requests) = listen(&folder, &folder, ALLOWED).await;
    envoy_at(&folder, port);
    folder.write("filter.wasm", "");
    folder.change("stepward.toml", "[envoy]", "[envoy]\nwasm = \"filter.wasm\"");
    let served = folder.serve();
    // The configuration gets the address that the start chose, so that its page is found.
    served.folder.change("stepward.toml", "admin = \"127.0.0.1:0\"", &format!("admin = \"{}\"", served.admin()));
    let _filter = served.attach().await;
    let (code, findings) = examine(&served.folder);
    let bad: Vec<_> = findings.iter().filter(|finding| finding["state"] == "bad").collect();
    assert!(code == 0 && bad.is_empty(), "{bad:#?}");
    for (subject, check) in [
        ("configuration", "files"),
        ("configuration", "certificate"),
        ("secrets", "all"),
        ("provider staff", "devices"),
        ("provider jamf", "dns"),
        ("provider jamf", "connection"),
        ("provider jamf", "clock"),
        ("provider jamf", "credentials"),
        ("provider jamf", "privilege Read Computers"),
        ("service", "health"),
        ("service", "filter"),
        ("service", "filter.sock"),
        ("service", "query.sock"),
        ("service", "admin.sock"),
        ("service", "push.sock"),
        ("envoy", "webhooks"),
        ("envoy", "served certificate"),
    ] {
        assert_eq!(state(&findings, subject, check), "good", "{subject} {check}: {findings:#?}");
    }
    let dated = |subject: &str, check: &str| {
        let findings = findings.iter().filter(|finding| finding["subject"] == subject && finding["check"] == check);
        findings.map(|finding| finding["detail"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let [server, ca] = dated("configuration", "certificate").try_into().unwrap();
    assert!(
        server.contains("tls/server.crt: the certificate of `") && server.contains(" ends at ") && server.ends_with(" days"),
        "{server}"
    );
    assert!(ca.contains("tls/ca.crt: "), "{ca}");
    let [served] = dated("envoy", "served certificate").try_into().unwrap();
    assert!(served.starts_with("the certificate of `") && served.ends_with(" days"), "{served}");
    let (state, said) = finding(&findings, "step-ca", "renewal");
    assert!(state == "doubtful" && said.contains("cannot be seen from here") && said.contains("--disable-renewal"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_what_is_missing_at_a_management_and_never_the_secret() {
    let jamf = Jamf::new();
    let (folder, _fake) = with_jamf(&jamf).await;
    envoy_at(&folder, nobody());
    jamf.set(|knobs| knobs.privileges = PRIVILEGES.iter().copied().filter(|name| *name != "Read Computers").collect());
    let (code, findings) = examine(&folder);
    let (bad, said) = finding(&findings, "provider jamf", "privilege Read Computers");
    assert!(code == 1 && bad == "bad" && said.contains("give the API role the privilege Read Computers"), "{said}");
    assert_eq!(state(&findings, "provider jamf", "privilege Read Mobile Devices"), "good");
    folder.write("secrets/jamf", "canary-which-is-wrong");
    let (code, findings) = examine(&folder);
    let (bad, said) = finding(&findings, "provider jamf", "credentials");
    assert!(code == 1 && bad == "bad" && said.contains("make a new secret"), "{said}");
    let output = folder.run(&["doctor"]);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(text.contains("fix:") && text.lines().last().unwrap().contains(" bad, ") && !text.contains("canary"), "{text}");
    folder.write("secrets/jamf", "");
    let (_, findings) = examine(&folder);
    assert_eq!((state(&findings, "provider jamf", "credentials"), state(&findings, "secrets", "one")), ("bad".into(), "bad".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_names_a_field_that_never_comes() {
    let (folder, fake) = with_jamf(&Jamf::new()).await;
    envoy_at(&folder, nobody());
    let policy = "[policy.fields]\nproviders = [\"jamf\"]\nmanaged = true\ngroups_any = [\"All Managed\"]\n";
    folder.write("stepward.toml", &format!("{}\n{policy}", folder.read("stepward.toml")));
    let (_, findings) = examine(&folder);
    let (good, said) = finding(&findings, "provider jamf", "fields");
    assert!(good == "good" && said.contains("came, with 1 device that the service found"), "{said}");
    fake.set(vec![
        Device::computer(DEVICE).with("groupMemberships", json!(null)),
        Device::computer("C02B").with("groupMemberships", json!(7)),
    ]);
    let (_, findings) = examine(&folder);
    let (doubtful, said) = finding(&findings, "provider jamf", "fields");
    assert_eq!(doubtful, "doubtful");
    assert!(said.contains("none of 2 devices that the service found came with `device.groups` see docs/providers/jamf.md"), "{said}");
    fake.set(Vec::new());
    assert!(!examine(&folder).1.iter().any(|finding| finding["check"] == "fields"), "there is nobody to ask for");
}

#[test]
fn d5_what_should_be_looked_at_in_a_device_file_is_doubtful() {
    let folder = Folder::new();
    folder.write("devices.json", r#"{"devices":[{"identifier":"A"},{"identifier":"Unknown"}]}"#);
    let (_, findings) = examine(&folder);
    assert_eq!(finding(&findings, "provider staff", "devices"), ("good".to_owned(), "1 device ".to_owned()));
    let (doubtful, said) = finding(&findings, "provider staff", "rows");
    assert!(doubtful == "doubtful" && said.contains("devices.json:1:46: `Unknown` identifies no device"), "{said}");
}

#[test]
fn tells_that_the_service_does_not_run_in_one_line_and_that_envoy_does_not() {
    let folder = Folder::new();
    envoy_at(&folder, nobody());
    let (code, findings) = examine(&folder);
    let (bad, said) = finding(&findings, "service", "running");
    assert!(code == 1 && bad == "bad" && said.contains("stepward serve"), "{said}");
    assert_eq!(findings.iter().filter(|finding| finding["subject"] == "service").count(), 1);
    let (doubtful, said) = finding(&findings, "machine", "clock");
    assert!(doubtful == "doubtful" && said.contains("compared with nobody's"), "{said}");
    let (bad, said) = finding(&findings, "envoy", "webhooks");
    assert!(bad == "bad" && said.contains("stepward envoy-config"), "{said}");
    folder.write("devices.json", "{");
    folder.change("stepward.toml", "[listen]", "[listen]\nsocket = \"x\"");
    let (code, findings) = examine(&folder);
    let (bad, said) = finding(&findings, "configuration", "file");
    assert!(code == 1 && bad == "bad" && said.contains("socket") && findings.len() == 1, "{said}");
    folder.change("stepward.toml", "socket = \"x\"\n", "");
    assert_eq!(state(&examine(&folder).1, "provider staff", "devices"), "bad");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attached_envoy_that_is_not_reached_is_doubtful_and_one_that_is_no_envoy_is_bad() {
    let folder = Folder::new();
    envoy_at(&folder, nobody());
    let served = folder.serve();
    served.folder.change("stepward.toml", "admin = \"127.0.0.1:0\"", &format!("admin = \"{}\"", served.admin()));
    let (code, findings) = examine(&served.folder);
    assert_eq!((code, state(&findings, "service", "filter"), state(&findings, "envoy", "webhooks")), (1, "doubtful".into(), "bad".into()));
    let _filter = served.attach().await;
    let (code, findings) = examine(&served.folder);
    assert_eq!((code, state(&findings, "envoy", "webhooks")), (0, "doubtful".into()), "{findings:#?}");
    let plain = Fake::start(Jamf::new()).await;
    let text = served.folder.read("stepward.toml");
    let old = text.lines().find(|line| line.starts_with("webhook_address")).unwrap();
    served.folder.change("stepward.toml", old, &format!("webhook_address = \"{}\"", plain.url().trim_start_matches("http://")));
    let (code, findings) = examine(&served.folder);
    let (bad, said) = finding(&findings, "envoy", "webhooks");
    assert!(code == 1 && bad == "bad" && said.contains("TLS"), "{said}");
}

#[test]
fn a_host_without_an_address_and_one_without_a_listener_are_told_apart() {
    let folder = Folder::new();
    envoy_at(&folder, nobody());
    folder.write("secrets/token", "secret");
    let text = folder.read("stepward.toml");
    let provider = |name: &str, url: &str| {
        format!("[provider.{name}]\ntype = \"fleet\"\nbase_url = \"{url}\"\ntoken = {{ file = \"secrets/token\" }}\n")
    };
    let (lost, shut) = (provider("lost", "https://fleet.invalid"), provider("shut", &format!("http://127.0.0.1:{}", nobody())));
    folder.write("stepward.toml", &format!("{text}\n{lost}{shut}"));
    let (code, findings) = examine(&folder);
    let (bad, said) = finding(&findings, "provider lost", "dns");
    assert!(code == 1 && bad == "bad" && said.contains("fleet.invalid has no address"), "{said}");
    assert_eq!(state(&findings, "provider shut", "dns"), "good");
    let (bad, said) = finding(&findings, "provider shut", "connection");
    assert!(bad == "bad" && said.contains("takes no connection"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_nobody_vouches_for_is_told_from_an_address() {
    let folder = Folder::new();
    let (port, _requests) = listen(&folder, &folder, ALLOWED).await;
    envoy_at(&folder, nobody());
    folder.write("secrets/token", "secret");
    let text = folder.read("stepward.toml");
    let provider = |url: &str, more: &str| {
        format!("{text}\n[provider.own]\ntype = \"fleet\"\nbase_url = \"{url}\"\ntoken = {{ file = \"secrets/token\" }}\n{more}\n")
    };
    folder.write("stepward.toml", &provider(&format!("https://localhost:{port}"), ""));
    let (bad, said) = finding(&examine(&folder).1, "provider own", "tls");
    assert!(bad == "bad" && said.contains("comes from no authority") && said.contains("set ca_file"), "{said}");
    folder.write("stepward.toml", &provider(&format!("https://127.0.0.2:{port}"), "ca_file = \"tls/ca.crt\""));
    let (bad, said) = finding(&examine(&folder).1, "provider own", "connection");
    assert!(bad == "bad" && said.contains("takes no connection"), "{said}");
    let plain = Fake::start(Jamf::new()).await;
    folder.write("stepward.toml", &provider(&plain.url().replace("http://", "https://"), ""));
    let (bad, said) = finding(&examine(&folder).1, "provider own", "tls");
    assert!(bad == "bad" && said.contains("HTTPS port"), "{said}");
}

/// A Jamf Pro whose clock is an hour behind.
struct Late(Jamf);

impl Service for Late {
    fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
        let then = time::OffsetDateTime::from(SystemTime::now() - Duration::from_secs(3600));
        let form = time::format_description::parse_borrowed::<2>(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT",
        );
        self.0.answer(request, devices, ignore_filter).with("date", then.format(&form.unwrap()).unwrap())
    }

    fn is_login(&self, request: &Seen) -> bool {
        self.0.is_login(request)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_differs_is_doubtful() {
    let (folder, ontime) = with_jamf(&Jamf::new()).await;
    let late = Fake::start(Late(Jamf::new())).await;
    late.set(vec![Device::computer(DEVICE)]);
    folder.change("stepward.toml", &ontime.url(), &late.url());
    envoy_at(&folder, nobody());
    let (_, findings) = examine(&folder);
    let (state, said) = finding(&findings, "provider jamf", "clock");
    assert!(state == "doubtful" && said.contains("36") && said.contains("ahead of") && said.contains("NTP"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_management_that_hangs_holds_nothing_up_for_longer_than_its_time() {
    let (folder, fake) = with_jamf(&Jamf::new()).await;
    envoy_at(&folder, nobody());
    fake.fail(Some(fakes::Fault::Hang));
    let began = std::time::Instant::now();
    let (code, findings) = examine(&folder);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!((code, state(&findings, "provider jamf", "answer")), (1, "bad".to_owned()));
    assert_eq!(state(&findings, "provider staff", "devices"), "good");
    assert_eq!(
        findings.iter().find(|finding| finding["check"] == "answer").map(|finding| &finding["subject"]),
        Some(&json!("provider jamf"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_the_proxy_that_requests_go_through_and_not_its_password() {
    let (folder, fake) = with_jamf(&Jamf::new()).await;
    let proxy = format!("127.0.0.1:{}", nobody());
    let look = |variable: &str, exempt: &str| {
        let mut command = folder.command(&["doctor", "--output", "json"]);
        command.env("STEPWARD_CONFIG", "stepward.toml").env(variable, format!("http://ada:hunter2@{proxy}")).env("no_proxy", exempt);
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        serde_json::from_str::<Value>(&text).unwrap()["findings"].as_array().unwrap().clone()
    };
    // What goes to this machine in clear text goes through no proxy.
    for variable in ["http_proxy", "https_proxy", "all_proxy"] {
        let findings = look(variable, "");
        assert_eq!(finding(&findings, "provider jamf", "connection").0, "good", "{variable}");
        assert!(!findings.iter().any(|finding| finding["check"] == "proxy"), "{variable}");
    }
    folder.write("stepward.toml", &folder.read("stepward.toml").replace(&fake.url(), "https://mdm.example.org"));
    let findings = look("https_proxy", "");
    let (state, said) = finding(&findings, "provider jamf", "proxy");
    assert!(state == "good" && said.contains(&proxy), "{said}");
    let (state, said) = finding(&findings, "provider jamf", "connection");
    assert!(state == "bad" && said.contains("NO_PROXY"), "{said}");
    assert!(!findings.iter().any(|finding| finding["check"] == "dns"), "the proxy looks the name up");
    let findings = look("https_proxy", "mdm.example.org");
    assert!(!findings.iter().any(|finding| finding["check"] == "proxy"));
}
