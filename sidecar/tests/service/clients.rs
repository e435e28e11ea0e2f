//! Tests with clients that are not of this project: Python's, and what others send that ours do not.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::CheckRequest as Authorize;
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::posture_service_client::PostureServiceClient;
use proto::v1::{BatchCheckRequest, CheckRequest, ExplainRequest, ListLocksRequest};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tonic::Code;
use tonic::codec::CompressionEncoding::Gzip;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::queries::POLICY;
use crate::served::{DEVICE, Folder};

/// Makes a folder whose service describes itself.
fn folder() -> Folder {
    let folder = Folder::new();
    let text = folder.read("stepward.toml");
    folder.write("stepward.toml", &format!("{text}{POLICY}\n[query]\nreflection = true\n"));
    folder
}

/// Returns the path of Python with gRPC, as `tools/setup grpc` installs it.
fn python() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let setup = |component| {
            let output = Command::new("../tools/setup").current_dir(env!("CARGO_MANIFEST_DIR")).arg(component).output().unwrap();
            succeeded(output)
        };
        setup("grpc");
        PathBuf::from(setup("print-python").trim_end())
    })
}

fn succeeded(output: Output) -> String {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    text(output.stdout)
}

/// Returns the path of a file of this crate.
fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn d11_a_program_in_python_calls_every_service_of_every_socket() {
    let served = folder().serve();
    let mut asks = Command::new(python());
    asks.arg(file("tests/service/clients.py")).current_dir(served.folder.path("")).env("DEVICE", DEVICE);
    succeeded(asks.output().unwrap());
    assert!(!served.lines().iter().any(|line| line["level"] == "WARN"), "{:?}", served.lines());
}

#[test]
fn d11_the_program_in_python_of_the_document_asks() {
    let example = std::fs::read_to_string(file("examples/ask.py")).unwrap();
    let shown = &example[example.find("import sys").unwrap()..];
    let document = std::fs::read_to_string(file("../docs/queries.md")).unwrap();
    assert!(document.contains(&format!("```python\n{shown}```\n")));
    let makes = document.lines().find_map(|line| line.strip_prefix("python3 -m grpc_tools.protoc ")).unwrap();

    let served = folder().serve();
    let modules = served.folder.path("modules");
    std::fs::create_dir(&modules).unwrap();
    std::os::unix::fs::symlink(file("../proto"), modules.join("proto")).unwrap();
    let mut protoc = Command::new(python());
    protoc.args(["-m", "grpc_tools.protoc"]).args(makes.split(' ')).current_dir(&modules);
    succeeded(protoc.output().unwrap());
    for (device, said) in [(DEVICE, "allowed: {"), ("PF3ABCDE", "denied: "), ("NOBODY", "(device_not_found)")] {
        let mut asks = Command::new(python());
        asks.arg(file("examples/ask.py")).arg(served.folder.path("run/query.sock")).args(["engineers", device]).env("PYTHONPATH", &modules);
        let told = succeeded(asks.output().unwrap());
        assert!(told.contains(said), "{device}: {told}");
    }
}

#[tokio::test]
async fn d11_a_request_that_is_compressed_is_no_longer_than_one_that_is_not() {
    let served = folder().serve();
    let channel = async |socket| served.channel(socket, None).await.unwrap();
    let check = |identifier| CheckRequest { policy: "engineers".to_owned(), identifier, ..CheckRequest::default() };
    let mut posture = PostureServiceClient::new(channel("query.sock").await).send_compressed(Gzip).accept_compressed(Gzip);
    let answer = posture.check(check(DEVICE.to_owned())).await.unwrap();
    assert_eq!(answer.metadata().get("grpc-encoding"), None, "on one machine it would save nothing");
    let ten = || "a".repeat(10 << 20);
    let mut guard = AuthorizationClient::new(channel("query.sock").await).send_compressed(Gzip);
    guard.check(Authorize::default()).await.unwrap();
    let mut admin = AdminServiceClient::new(channel("admin.sock").await).send_compressed(Gzip);
    admin.list_locks(ListLocksRequest::default()).await.unwrap();
    let mut reflection = ServerReflectionClient::new(channel("query.sock").await).send_compressed(Gzip);
    let mut health = HealthClient::new(channel("query.sock").await).send_compressed(Gzip);
    let headers = std::collections::HashMap::from([("x".to_owned(), ten())]);
    let http = envoy_types::pb::envoy::service::auth::v3::attribute_context::HttpRequest { headers, ..Default::default() };
    let request = envoy_types::pb::envoy::service::auth::v3::attribute_context::Request { http: Some(http), ..Default::default() };
    let attributes = envoy_types::pb::envoy::service::auth::v3::AttributeContext { request: Some(request), ..Default::default() };
    let described = ServerReflectionRequest { host: ten(), message_request: Some(MessageRequest::ListServices(String::new())) };
    let refused = [
        posture.check(check(ten())).await.map(drop),
        posture.batch_check(BatchCheckRequest { checks: vec![check(ten())] }).await.map(drop),
        guard.check(Authorize { attributes: Some(attributes) }).await.map(drop),
        admin.explain(ExplainRequest { id: ten(), ..ExplainRequest::default() }).await.map(drop),
        health.check(HealthCheckRequest { service: ten() }).await.map(drop),
    ];
    for (number, refused) in refused.into_iter().enumerate() {
        let status = refused.unwrap_err();
        assert!(status.code() == Code::ResourceExhausted && status.message().contains("size limit"), "{number}: {status:?}");
    }
    // The service ends this stream without a word.
    let mut answers = reflection.server_reflection_info(tokio_stream::once(described)).await.unwrap().into_inner();
    assert!(!matches!(answers.message().await, Ok(Some(_))));
}

#[tokio::test]
async fn d11_a_call_may_name_the_service_by_a_path_on_every_socket() {
    let served = folder().serve();
    for socket in ["filter.sock", "query.sock", "admin.sock"] {
        // The name as Java sends it, as Python does, and as Go does, which compresses it.
        let plain = ["/run/stepward/query.sock", "run%2Fstepward%2Fquery.sock"].map(text);
        for authority in [&plain[0], &plain[1], COMPRESSED] {
            let mut stream = served.socket(socket).await;
            stream.write_all(&health(authority)).await.unwrap();
            let mut answer = Vec::new();
            let answered = async {
                while !answer.windows(SERVING.len()).any(|bytes| bytes == SERVING) {
                    assert!(
                        stream.read_buf(&mut answer).await.unwrap() > 0,
                        "{socket} {}: {}",
                        authority.escape_ascii(),
                        answer.escape_ascii()
                    );
                }
            };
            tokio::time::timeout(Duration::from_secs(10), answered).await.unwrap();
        }
    }
}

#[tokio::test]
async fn b_a_connections_windows_streams_and_headers_are_bounded_on_every_listener() {
    let served = folder().serve();
    let bound = |of_call, of_all| Bounds { calls: 64, headers: 16 << 10, of_call, of_all };
    for (socket, expected) in [
        // The window of all calls is a byte smaller at the beginning, and made no larger for that.
        ("filter.sock", bound(64 << 10, SMALLEST)),
        ("query.sock", bound(256 << 10, 256 << 10)),
        ("admin.sock", bound(256 << 10, 256 << 10)),
    ] {
        assert_eq!(bounds(&mut served.socket(socket).await).await, expected, "{socket}");
    }
}

/// Bounds that a server of HTTP/2 sets its clients.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) calls: u32,
    pub(crate) headers: u32,
    pub(crate) of_call: u32,
    pub(crate) of_all: u32,
}

/// Reads the bounds of a server from its settings (RFC 9113, 6.5), and after the client's own settings the window of all calls
/// where it is not what HTTP/2 begins with (6.9).
pub(crate) async fn bounds(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Bounds {
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut bounds = Bounds { calls: u32::MAX, headers: u32::MAX, of_call: SMALLEST, of_all: SMALLEST };
    let mut is_taken = false;
    while !is_taken || (bounds.of_call > 1 + SMALLEST && bounds.of_all == SMALLEST) {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let [a, b, c, kind, flags, ..] = head;
        let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap()];
        stream.read_exact(&mut payload).await.unwrap();
        match (kind, flags) {
            (4, 1) => is_taken = true,
            (4, _) => {
                for setting in payload.chunks(6) {
                    let value = u32::from_be_bytes(setting[2..].try_into().unwrap());
                    match setting[1] {
                        3 => bounds.calls = value,
                        4 => bounds.of_call = value,
                        6 => bounds.headers = value,
                        _ => {}
                    }
                }
            }
            (8, _) => bounds.of_all += u32::from_be_bytes(payload.try_into().unwrap()),
            _ => panic!("{head:?}"),
        }
    }
    bounds
}

/// Window of HTTP/2 where nobody says another one.
const SMALLEST: u32 = 65_535;

/// `/run/stepward/query.sock` by Huffman's code of HPACK, behind its length.
const COMPRESSED: &[u8] = b"\x92\x62\xcb\x6a\x61\x09\x2d\x7e\x07\x64\x8c\x76\xb4\xb6\x7a\x5d\x07\x27\x5f";

/// Returns a text as HPACK has it where it is not compressed.
fn text(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

/// Returns the beginning of a connection that asks for the health of a socket, with this name of the service.
fn health(authority: &[u8]) -> Vec<u8> {
    let frame = |kind, flags, stream, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    // POST and http, which have numbers, as have the names of path, service and content type.
    let fields = [b"\x83\x86\x44", &*text("/grpc.health.v1.Health/Check"), b"\x41", authority].concat();
    let fields = [&fields[..], b"\x5f", &text("application/grpc"), b"\x40\x02te", &text("trailers")].concat();
    let question = frame(0, 1, 1, b"\0\0\0\0\0");
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, b""), &frame(1, 4, 1, &fields), &question].concat()
}

/// Answer, of two bytes, that a socket is served.
const SERVING: &[u8] = b"\0\0\0\0\x02\x08\x01";
