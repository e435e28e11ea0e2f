//! Tests of questions under a policy, as the command line and other programs ask them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::v1::posture_service_client::PostureServiceClient;
use proto::v1::{BatchCheckRequest, CheckRequest, WatchRequest};
use serde_json::{Value, json};
use tonic::Code;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::served::{DEVICE, Folder, Served};

/// Second device of `stepward init`, which works in support.
const OTHER: &str = "PF3ABCDE";

pub(crate) const POLICY: &str = r#"
[policy.engineers]
providers = ["staff"]
require = [{ expr = "device.data.department == 'Engineering'", code = "not_engineer", message = "this device is no engineer's", remediation_url = "https://help.example.org/e" }]
"#;

fn serve() -> Served {
    let folder = Folder::new();
    let text = folder.read("stepward.toml");
    folder.write("stepward.toml", &format!("{text}{POLICY}"));
    folder.serve()
}

/// Asks under the policy; returns exit code and what was printed as JSON.
fn asked(served: &Served, args: &[&str]) -> (i32, Value) {
    let (code, text) = served.query(&[args, &["--policy", "engineers", "--output", "json"]].concat());
    (code, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

#[test]
fn a_policy_allows_and_denies_with_its_code_and_where_to_find_help() {
    let served = serve();
    let (code, value) = asked(&served, &[&DEVICE.to_lowercase()]);
    assert_eq!((code, &value["decision"], &value["code"]), (0, &json!("allow"), &Value::Null));
    assert_eq!(value["data"], json!({ "user": "alice@example.org", "department": "Engineering" }));
    assert!(value.get("checks").is_none());
    let (code, value) = asked(&served, &[OTHER, "--explain"]);
    assert_eq!((code, &value["decision"], &value["code"]), (3, &json!("deny"), &json!("not_engineer")));
    assert_eq!(value["message"], "this device is no engineer's");
    assert_eq!(value["remediation_url"], "https://help.example.org/e");
    assert!(value["checks"].as_array().unwrap().iter().any(|check| check["result"] == "deny"), "{value}");
    assert_eq!((&value["answers"][0]["provider"], &value["answers"][0]["outcome"]), (&json!("staff"), &json!("found")));
    let (code, value) = asked(&served, &["unheard-of"]);
    assert_eq!((code, &value["code"]), (3, &json!("device_not_found")));
    let (code, text) = served.query(&[OTHER, "--policy", "engineers", "--explain"]);
    assert_eq!(code, 3);
    for said in ["decision         deny\n", "https://help.example.org/e\n", "PROVIDER  OUTCOME"] {
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn e6_query_and_explain_say_the_same_of_a_check() {
    let folder = Folder::new();
    let text = folder.read("stepward.toml");
    folder.write("stepward.toml", &format!("{text}{POLICY}[policy.proven]\nproviders = [\"staff\"]\ntrust = \"attested\"\n"));
    let served = folder.serve();
    let (_, text) = served.query(&[OTHER, "--policy", "engineers", "--explain"]);
    let (_, value) = asked(&served, &[OTHER, "--explain"]);
    let denying = value["checks"].as_array().unwrap().iter().find(|check| check["result"] == "deny").unwrap();
    assert_eq!((&denying["check"], &denying["code"]), (&json!("require 1"), &json!("not_engineer")));
    let expression = denying["expression"].as_str().unwrap();
    let said = format!("check     require 1: not_engineer: needs {expression}; has ");
    assert!(text.contains(&said), "{said}: {text}");
    // A rule with a name of its own shows what it wanted.
    let proven = |more: &[&str]| served.query(&[&[OTHER, "--policy", "proven", "--explain"], more].concat()).1;
    let text = proven(&[]);
    assert!(text.contains(": needs the trust `attested` or better; has trust = claimed\n"), "{text}");
    let value: Value = serde_json::from_str(&proven(&["--output", "json"])).unwrap();
    let denying = value["checks"].as_array().unwrap().iter().find(|check| check["result"] == "deny").unwrap();
    assert_eq!((&denying["check"], &denying["wanted"]), (&json!("trust"), &json!("attested")));
}

#[test]
fn what_cannot_be_asked_is_refused_and_says_why() {
    let served = serve();
    for (args, code, said) in [
        (&[DEVICE, "--policy", "other"][..], 1, "there is no policy `other`"),
        (&[DEVICE, "--policy", "engineers", "--kind", "name"], 1, "name"),
        (&[DEVICE, OTHER], 1, "--policy"),
        (&[DEVICE, "--explain"], 2, "--policy"),
        (&[DEVICE, "--watch"], 2, "--policy"),
        (&["-", "--policy", "engineers"], 1, "names no device"),
        (&["--policy", "engineers"], 2, "<DEVICE>"),
    ] {
        let (got, text) = served.query(args);
        assert!(got == code && text.contains(said), "{args:?}: {got} {text}");
    }
}

#[tokio::test]
async fn d5_a_question_for_a_placeholder_is_denied_in_every_way_to_ask() {
    let served = serve();
    let (code, value) = asked(&served, &["default STRING"]);
    assert_eq!((code, &value["decision"], &value["code"]), (3, &json!("deny"), &json!("identifier_missing")));
    let (_, value) = asked(&served, &["None", DEVICE, "0000"]);
    let codes: Vec<_> = value.as_array().unwrap().iter().map(|answer| &answer["code"]).collect();
    assert_eq!(codes, [&json!("identifier_missing"), &Value::Null, &json!("identifier_missing")]);
    let (code, text) = served.query(&["N/A"]);
    assert!(code != 0 && text.contains("no device can have this identifier"), "{code} {text}");
    let mut client = PostureServiceClient::new(served.channel("query.sock", None).await.unwrap());
    let checks = vec![CheckRequest { policy: "engineers".to_owned(), identifier: "-1".to_owned(), ..CheckRequest::default() }];
    let mut changes = client.watch(WatchRequest { checks }).await.unwrap().into_inner();
    let first = changes.message().await.unwrap().unwrap().result.unwrap();
    assert_eq!((first.decision(), first.code.as_str()), (proto::v1::Decision::Deny, "identifier_missing"));
}

#[test]
fn many_devices_are_answered_in_their_order() {
    let served = serve();
    let (code, value) = asked(&served, &[OTHER, DEVICE]);
    let decisions: Vec<_> = value.as_array().unwrap().iter().map(|answer| (&answer["device"], &answer["decision"])).collect();
    assert_eq!((code, decisions), (3, vec![(&json!(OTHER), &json!("deny")), (&json!(DEVICE), &json!("allow"))]));
    let mut command = served.folder.command(&["query", "-", "--policy", "engineers"]);
    command.env("STEPWARD_CONFIG", "stepward.toml").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    write!(child.stdin.take().unwrap(), " {DEVICE} \r\n\n{}\n", DEVICE.to_lowercase()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), text.lines().filter(|line| line.contains("  allow")).count()), (Some(0), 2), "{text}");
}

#[tokio::test]
async fn a_thousand_devices_are_taken_and_one_more_is_refused() {
    let served = serve();
    let mut client = PostureServiceClient::new(served.channel("query.sock", None).await.unwrap());
    let checks = |count: usize| {
        let check = |number| CheckRequest { policy: "engineers".to_owned(), identifier: format!("D{number}"), ..CheckRequest::default() };
        (0..count).map(check).collect::<Vec<_>>()
    };
    let results = client.batch_check(BatchCheckRequest { checks: checks(1000) }).await.unwrap().into_inner().results;
    assert!(results.len() == 1000 && results.iter().all(|result| result.code == "device_not_found"));
    for refused in [
        client.batch_check(BatchCheckRequest { checks: checks(1001) }).await.unwrap_err(),
        client.watch(WatchRequest { checks: checks(1001) }).await.unwrap_err(),
    ] {
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains("at most 1000"), "{refused:?}");
    }
}

#[test]
fn whoever_watches_sees_a_lock_within_two_seconds_and_the_end_of_the_service() {
    let mut served = serve();
    let mut command = served.folder.command(&["query", DEVICE, OTHER, "--policy", "engineers", "--watch", "--output", "json"]);
    let mut watching = command.env("STEPWARD_CONFIG", "stepward.toml").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // A test that fails must not leave the process behind, and one that waits in vain has to end.
    let pid = Pid::from_raw(watching.id().try_into().unwrap());
    let (done, failed) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if failed.recv_timeout(Duration::from_secs(60)).is_err() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!([next(), next()].map(|line| line["decision"].as_str().unwrap().to_owned()), ["allow", "deny"]);
    assert!(served.folder.run(&["lock", DEVICE, "--reason", "stolen"]).status.success());
    let locked = Instant::now();
    let line = next();
    assert!(locked.elapsed() < Duration::from_secs(2), "{:?}", locked.elapsed());
    assert_eq!((&line["device"], &line["decision"], &line["code"]), (&json!(DEVICE), &json!("deny"), &json!("device_locked")));
    assert!(served.folder.run(&["unlock", DEVICE]).status.success());
    assert_eq!(next()["decision"], "allow");
    served.signal(Signal::SIGKILL);
    served.ended();
    assert_eq!(watching.wait().unwrap().code(), Some(5));
    done.send(()).unwrap();
    guard.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_watch_ends_with_the_service_and_does_not_hold_it_up() {
    let mut served = serve();
    let mut client = PostureServiceClient::new(served.channel("query.sock", None).await.unwrap());
    let check = CheckRequest { policy: "engineers".to_owned(), identifier: DEVICE.to_owned(), ..CheckRequest::default() };
    let mut watching = client.watch(WatchRequest { checks: vec![check] }).await.unwrap().into_inner();
    assert!(watching.message().await.unwrap().is_some());
    served.signal(Signal::SIGTERM);
    // The service ends between two looks, which are a second apart, and long before the five seconds of a drain that has to wait.
    let (status, took) = served.ended();
    assert!(status.success() && took < Duration::from_millis(2500), "{status} {took:?}");
    assert_eq!(watching.message().await.unwrap(), None);
    assert!(!served.lines().iter().any(|line| line["level"] == "WARN"), "{:?}", served.lines());
}

/// Returns the names of services, or why there are none.
pub(crate) async fn described(channel: tonic::transport::Channel) -> Result<Vec<String>, tonic::Status> {
    match reflected(channel, MessageRequest::ListServices(String::new())).await? {
        MessageResponse::ListServicesResponse(list) => {
            let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
            names.sort();
            Ok(names)
        }
        other => panic!("{other:?}"),
    }
}

async fn reflected(channel: tonic::transport::Channel, question: MessageRequest) -> Result<MessageResponse, tonic::Status> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut answers = ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::once(request)).await?.into_inner();
    Ok(answers.message().await?.unwrap().message_response.unwrap())
}

#[tokio::test]
async fn the_service_describes_itself_where_that_is_set() {
    let served = serve();
    let refused = described(served.channel("query.sock", None).await.unwrap()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    drop(served);

    let folder = Folder::new();
    let text = folder.read("stepward.toml");
    folder.write("stepward.toml", &format!("{text}\n[query]\nreflection = true\n"));
    let served = folder.serve();
    let channel = served.channel("query.sock", None).await.unwrap();
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "stepward.v1.PostureService",
    ];
    assert_eq!(described(channel.clone()).await.unwrap(), expected);
    for (symbol, there) in [("stepward.v1.PostureService.Watch", true), ("stepward.v1.AdminService", false)] {
        let answer = reflected(channel.clone(), MessageRequest::FileContainingSymbol(symbol.to_owned())).await;
        assert_eq!(matches!(answer, Ok(MessageResponse::FileDescriptorResponse(_))), there, "{symbol}: {answer:?}");
    }
    let other = described(served.channel("admin.sock", None).await.unwrap()).await.unwrap_err();
    assert_eq!(other.code(), Code::Unimplemented);
}

#[test]
fn the_program_in_the_document_is_the_one_that_is_built() {
    let read = |path: &str| std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let example = read("examples/ask.rs");
    let shown = &example[example.find("use std::time").unwrap()..];
    assert!(read("../docs/queries.md").contains(&format!("```rust\n{shown}```\n")));
}
