//! Tests of what one decision takes of memory and of a processor, at the worst that a service can answer and a policy can ask.

use std::fmt::Write as _;
use std::fs;

use proto::v1::CheckRequest;
use proto::v1::posture_service_client::PostureServiceClient;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::served::{Folder, Served};

/// Largest answer that is read of a service, in bytes.
const LARGEST: usize = 4 << 20;

/// Returns an answer just below the largest one about a device, with so many groups whose names are so long.
fn crowded(serial: &str, groups: usize, length: usize) -> String {
    let groups: Vec<_> = (0..groups).map(|number| format!("group {number:06}{}", "0".repeat(length - 12))).collect();
    let answer = json!({ "serial": serial, "managed": true, "groups": groups, "rest": "" }).to_string();
    let rest = "x".repeat(LARGEST - 1 - answer.len());
    answer.replace("\"rest\":\"\"", &format!("\"rest\":\"{rest}\""))
}

/// Starts an inventory that answers each request by the first body that names what it asks for.
async fn inventory(bodies: Vec<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.is_ok_and(|read| read > 0) {}
            let asked = String::from_utf8(request).unwrap();
            let serial = asked.split([' ', '/']).nth(2).unwrap().to_owned();
            let body = bodies.iter().find(|body| body.contains(&format!("\"serial\":\"{serial}\""))).map_or("{}", String::as_str);
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length:";
            // The client may have had enough.
            let _ = stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await;
        }
    });
    format!("http://{address}")
}

/// Returns what the process takes: bytes of memory at most since the last call, those that it has now, and hundredths of a second
/// of a processor since it began.
fn usage(served: &Served) -> (u64, u64, u64) {
    let process = format!("/proc/{}", served.id());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let kibibytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
    };
    let stat = fs::read_to_string(format!("{process}/stat")).unwrap();
    let ticks: Vec<u64> = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2).map(|number| number.parse().unwrap()).collect();
    let usage = (kibibytes("VmHWM:"), kibibytes("VmRSS:"), ticks.iter().sum());
    // The peak is what the process has, from now on.
    fs::write(format!("{process}/clear_refs"), "5").unwrap();
    usage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_the_worst_decision_takes_bounded_memory_and_time() {
    let base_url = inventory(vec![crowded("CROWDED", 100_000, 36), crowded("FULL", 4096, 1000)]).await;
    let mut checks = String::new();
    for number in 0..100 {
        // Each check reads all of what it can, and finds nothing.
        let expr = format!("!device.groups.exists(g, g.matches('^(a|g)(r|x)?oup [0-9]*z{number}$'))");
        writeln!(checks, "{{ expr = \"{expr}\", code = \"check_{number}\", message = \"m\" }},").unwrap();
    }
    let folder = Folder::new();
    let text = folder.read("stepward.toml");
    let provider = format!(
        r#"
[provider.crowd]
type = "http"
base_url = "{base_url}"
path = "/{{identifier}}"
identifier = "/serial"
fields = {{ managed = "/managed", groups = "/groups" }}
[policy.crowd]
providers = ["crowd"]
not_lost = false
not_wiping = false
require = [
{checks}]
"#
    );
    folder.write("stepward.toml", &format!("{text}{provider}"));
    let served = folder.serve();
    let mut client = PostureServiceClient::new(served.channel("query.sock", None).await.unwrap());
    let check = |identifier: &str| CheckRequest {
        policy: "crowd".to_owned(),
        identifier: identifier.to_owned(),
        explain: true,
        ..CheckRequest::default()
    };
    // A first question goes ahead: the first connection and the first answer of any length take what a decision does not.
    client.check(check("NOBODY")).await.unwrap();
    // The groups of CROWDED are too many to be known; FULL has as many as there can be, and every check reads all of them, until
    // its steps are used up.
    for (serial, code) in [("CROWDED", "posture_unknown"), ("FULL", "policy_error")] {
        let (_, before, ticks) = usage(&served);
        let answer = client.check(check(serial)).await.unwrap().into_inner();
        let (most, _, after) = usage(&served);
        let (mebibytes, hundredths) = (most.saturating_sub(before) >> 20, after - ticks);
        println!("{serial}: one decision takes {mebibytes} MiB, and {hundredths}0 ms of a processor");
        assert_eq!(answer.code, code, "{serial}: {}", answer.message);
        assert!(mebibytes <= MEBIBYTES && hundredths <= HUNDREDTHS, "{serial}: {mebibytes} MiB, {hundredths}0 ms of a processor");
    }
}

/// Budgets: three times and twenty times what was seen, without optimizations and on two busy cores.
const MEBIBYTES: u64 = 64;
const HUNDREDTHS: u64 = 100;
