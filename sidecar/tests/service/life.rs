//! Tests of the service from its start to its end, and of the commands that look at it while it runs.

use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::served::{DEVICE, Filter, Folder, Served, WEBHOOK, devices};

#[test]
fn a_start_with_a_bad_device_file_names_its_mistakes() {
    let folder = Folder::new();
    folder.write("devices.json", r#"{"devices":[{"identifier":"A","data":{}},{"identifier":" a ","data":{}}]}"#);
    let output = folder.run(&["serve"]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("provider `staff`") && errors.contains("devices.json:1:"), "{errors}");
    assert!(!folder.path("run/filter.sock").exists());
}

#[test]
fn e10_a_service_manager_hears_of_a_start_that_went_well_and_of_no_other() {
    let folder = Folder::new();
    let name = format!("stepward-{}", std::process::id());
    let at_a_path = UnixDatagram::bind(folder.path("notify")).unwrap();
    let abstract_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let heard = |manager: &UnixDatagram| {
        let mut buffer = [0; 64];
        manager.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    for (manager, address) in [(&at_a_path, folder.path("notify").to_str().unwrap()), (&abstract_name, &format!("@{name}"))] {
        manager.set_nonblocking(true).unwrap();
        let serve = |config: &str| {
            let mut command = folder.command(&["serve", "--config", config]);
            command.env("NOTIFY_SOCKET", address);
            command
        };
        assert_eq!(serve("another.toml").output().unwrap().status.code(), Some(1));
        assert_eq!(heard(manager).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        manager.set_nonblocking(false).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let served = Served::start(folder.clone(), serve("stepward.toml"));
        assert_eq!(heard(manager).unwrap(), "READY=1");
        assert_eq!(served.page("/readyz").1, "ready\n");
    }
}

#[test]
fn the_variables_of_step_posture_connector_serve() {
    let folder = Folder::new();
    fs::remove_file(folder.path("stepward.toml")).unwrap();
    let secret = folder.read("secrets/webhook");
    let dotenv = format!(
        "PROVIDER=file\nFILE_PATH=devices.json\nFILE_TYPE=json\nWEBHOOK_IDS={WEBHOOK}\nWEBHOOK_SECRETS='{}'\nENABLE_MTLS=1\n\
         TLS_CERT_PATH=tls/server.crt\nTLS_KEY_PATH=tls/server.key\nTLS_CA_PATH=tls/ca.crt\nTIMEOUT=10\n",
        secret.trim()
    );
    folder.write(".env", &dotenv);
    let mut command = folder.command(&["serve"]);
    command.env("STEPWARD__LISTEN__ADMIN", "127.0.0.1:0");
    let mut served = Served::start(folder, command);
    assert!(
        served.lines().iter().any(|line| line["level"] == "WARN" && line["message"].as_str().is_some_and(|text| text.contains("TIMEOUT")))
    );
    assert!(served.folder.command(&["query", DEVICE]).status().unwrap().success());
    served.folder.write(".env", &dotenv.replace(WEBHOOK, "other"));
    served.printed("reloaded");
    served.signal(Signal::SIGINT);
    assert!(served.ended().0.success());
}

#[test]
fn the_commands_look_at_a_running_service() {
    let mut served = Folder::new().serve();
    let (code, text) = served.query(&[&DEVICE.to_lowercase(), "--output", "json"]);
    let expected = json!([{ "provider": "staff", "outcome": "found", "detail": null, "data": { "user": "alice@example.org", "department": "Engineering" } }]);
    assert_eq!((code, serde_json::from_str::<Value>(&text).unwrap()), (0, expected));
    assert_eq!(
        served.query(&["nobody"]),
        (3, "provider  staff\noutcome   not_found\ndetail    no record has this identifier\n".to_owned())
    );
    for (args, code, said) in [
        (&["a", "--provider", "stuff"][..], 1, "there is no provider `stuff`"),
        (&["a", "--kind", "shoe"], 1, "shoe"),
        (&["a", "--socket", "nowhere.sock"], 1, "running, and may you use its sockets?: No such file or directory (os error 2)\n"),
    ] {
        let (got, text) = served.query(args);
        assert!(got == code && text.contains(said), "{args:?}: {got} {text}");
    }
    let health = |served: &Served| served.folder.run(&["healthcheck", "--address", served.admin()]).status.code();
    assert_eq!(health(&served), Some(0));
    assert_eq!(served.folder.run(&["reload"]).status.code(), Some(0));
    served.signal(Signal::SIGTERM);
    assert!(served.ended().0.success());
    assert_eq!((health(&served), served.folder.run(&["reload"]).status.code()), (Some(5), Some(1)));
    let said = String::from_utf8(served.folder.run(&["healthcheck", "--address", served.admin()]).stderr).unwrap();
    assert!(said.contains("is `stepward serve` running, and is that its `admin` address?"), "{said}");
    for name in ["filter.sock", "query.sock", "admin.sock"] {
        assert!(!served.folder.path("run").join(name).exists(), "{name}");
    }
}

#[test]
fn the_pages_say_how_it_is() {
    let served = Folder::new().serve();
    for (path, text) in [("/livez", "ok\n"), ("/readyz", "ready\n"), ("/startupz", "ready\n")] {
        assert_eq!(served.page(path), (200, text.to_owned()));
    }
    assert_eq!(served.page("/nothing").0, 404);
    let (code, text) = served.page("/readyz?verbose");
    assert_eq!(
        (code, text.as_str()),
        (200, "ready\nrevision 1\nwebhooks 1\nfilter_streams 0\nfilter_workers 0\nprovider staff 2 devices\n")
    );
    served.counts("stepward_provider_entries{provider=\"staff\"} 2");
}

/// Attaches a filter that does not take the answers of its stream, so that the stream cannot end by itself.
async fn stuck(served: &Served) -> Filter {
    let mut filter = Filter::attach(served.channel("filter.sock", Some(0)).await.unwrap(), &served.folder).await;
    filter.send(String::new(), vec![0; 32]);
    served.counts("stepward_filter_streams 1");
    filter
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_after_five_seconds_whatever_is_under_way() {
    let mut served = Folder::new().serve();
    let _stuck = stuck(&served).await;
    served.signal(Signal::SIGTERM);
    served.printed("draining");
    assert_eq!(served.page("/readyz"), (503, "draining\n".to_owned()));
    assert_eq!((served.page("/livez").0, served.page("/startupz").0), (200, 200));
    let (status, took) = served.ended();
    assert!(status.success());
    assert!((Duration::from_secs(4)..Duration::from_secs(8)).contains(&took), "{took:?}");
    served.printed("ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_a_drain_at_once() {
    let mut served = Folder::new().serve();
    let _stuck = stuck(&served).await;
    served.signal(Signal::SIGTERM);
    served.printed("draining");
    served.signal(Signal::SIGINT);
    let (status, took) = served.ended();
    assert!(status.success() && took < Duration::from_secs(3), "{status} {took:?}");
    served.printed("ended at once by a second signal");
}

#[test]
fn g12_a_pipe_in_the_place_of_the_configuration_holds_up_neither_the_service_nor_its_end() {
    let mut served = Folder::new().serve();
    let pipe = served.folder.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fs::rename(pipe, served.folder.path("stepward.toml")).unwrap();
    // Nobody writes to the pipe, so whoever opened it would wait.
    served.until(|line| line.to_string().contains("is not a regular file"));
    assert_eq!(served.query(&[DEVICE, "--socket", "run/query.sock"]).0, 0);
    served.signal(Signal::SIGTERM);
    let (status, took) = served.ended();
    assert!(status.success() && took < Duration::from_secs(4), "{status} {took:?}");
}

#[test]
fn a_full_pipe_of_logs_holds_up_neither_the_service_nor_its_end() {
    let folder = Folder::new();
    folder.change("stepward.toml", "[envoy]", "[log]\nlevel = \"trace\"\n\n[envoy]");
    folder.write("devices.json", &devices(&[DEVICE]));
    let mut child = folder.command(&["serve", "--config", "stepward.toml"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    // Each query prints some kilobytes at this level, and a pipe holds 64 KiB.
    let mut answered = 0;
    while answered < 40 {
        answered += u32::from(folder.run(&["query", DEVICE]).status.success());
        assert!(Instant::now() < deadline, "{answered} answers");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            break;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_hangup_while_it_starts_does_not_end_it() {
    let folder = Folder::new();
    let many: Vec<String> = (0..200_000).map(|number| format!("D{number}")).collect();
    folder.write("devices.json", &devices(&many.iter().map(String::as_str).collect::<Vec<_>>()));
    let mut command = std::process::Command::new("sh");
    // The signal comes as soon as the service listens for it, which is long before it has read the list.
    let script = "( until grep -q '^SigCgt:.*[13579bdf]$' /proc/$$/status; do :; done; kill -HUP $$ ) & \
                  exec \"$0\" serve --config stepward.toml";
    command.args(["-c", script, env!("CARGO_BIN_EXE_stepward")]).current_dir(folder.path("")).env_clear().env("PATH", "/usr/bin:/bin");
    let mut served = Served::start(folder, command);
    served.printed("reloaded");
    let lines = served.lines();
    let place = |message: &str| lines.iter().position(|line| line["message"] == message);
    assert!(place("serving") < place("reloaded"), "{lines:?}");
}

#[test]
fn b8_a_pipe_in_the_place_of_a_file_keeps_no_command_waiting() {
    let folder = Folder::new();
    assert!(std::process::Command::new("mkfifo").arg(folder.path("pipe")).status().unwrap().success());
    for command in [&["explain", "pipe"][..], &["webhook", "verify", "--body", "pipe"], &["policy", "test", "pipe"]] {
        // `timeout` ends a command that waits, with 124.
        let mut waited = std::process::Command::new("timeout");
        waited.args(["10", env!("CARGO_BIN_EXE_stepward")]).args(command).current_dir(folder.path("")).env_clear();
        let output = waited.env("STEPWARD_CONFIG", "stepward.toml").env("PATH", "/usr/bin:/bin").output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() != Some(124) && !output.status.success(), "{command:?}");
        assert!(told.contains("is not a regular file"), "{command:?} {told}");
    }
}
