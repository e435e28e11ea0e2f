//! Who may connect to which socket, what it takes there, and what becomes of one who sends something else.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;
use std::time::Duration;

use nix::unistd::{Gid, Uid};
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::filter_service_client::FilterServiceClient;
use proto::v1::posture_service_client::PostureServiceClient;
use proto::v1::{LookupRequest, ReloadRequest, SidecarMessage, Verdict};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use tonic::codegen::http::uri::PathAndQuery;

use crate::served::{DEVICE, Folder};

#[test]
fn a_user_who_is_not_listed_is_turned_away() {
    let (me, other) = (Uid::effective().as_raw(), Uid::effective().as_raw() + 1);
    let folder = Folder::new();
    folder.change("stepward.toml", "[envoy]", &format!("uids = {{ query = [{me}], admin = [{other}] }}\n\n[envoy]"));
    let mut served = folder.serve();
    assert!(served.knows(DEVICE));
    let refused = served.folder.run(&["reload"]);
    assert_eq!(refused.status.code(), Some(1));
    let warning = served.printed("connection of a user who may not connect");
    assert_eq!((&warning["level"], &warning["uid"]), (&"WARN".into(), &me.into()));
}

#[test]
fn the_sockets_are_for_their_group_alone() {
    let root = Uid::effective().is_root();
    // Only root may give a socket to a group that is not its own, and become somebody else to try it.
    let group = if root { 54_321 } else { Gid::effective().as_raw() };
    let folder = Folder::new();
    folder.change("stepward.toml", "[envoy]", &format!("group = \"{group}\"\n\n[envoy]"));
    let served = folder.serve();
    for name in ["filter.sock", "query.sock", "admin.sock"] {
        let metadata = served.folder.path("run").join(name).metadata().unwrap();
        assert_eq!((metadata.gid(), metadata.permissions().mode() & 0o777), (group, 0o660), "{name}");
    }
    if root {
        for (gid, code) in [(group, 0), (group + 1, 1)] {
            let socket = served.folder.path("run/query.sock");
            let query = Command::new("setpriv")
                .args(["--reuid=12345", &format!("--regid={gid}"), "--clear-groups", env!("CARGO_BIN_EXE_stepward"), "query", DEVICE])
                .arg("--socket")
                .arg(socket)
                .current_dir("/")
                .output()
                .unwrap();
            assert_eq!(query.status.code(), Some(code), "group {gid}: {}", String::from_utf8_lossy(&query.stderr));
        }
    }
}

#[tokio::test]
async fn a_role_answers_its_own_calls_and_no_other() {
    let served = Folder::new().serve();
    for socket in ["filter.sock", "query.sock", "admin.sock"] {
        let channel = served.channel(socket, None).await.unwrap();
        let codes = [
            FilterServiceClient::new(channel.clone()).attach(tokio_stream::pending()).await.map(drop),
            PostureServiceClient::new(channel.clone())
                .lookup(LookupRequest { identifier: DEVICE.into(), ..LookupRequest::default() })
                .await
                .map(drop),
            AdminServiceClient::new(channel).reload(ReloadRequest::default()).await.map(drop),
        ]
        .map(|result| result.map_or_else(|status| status.code(), |()| Code::Ok));
        let expected = ["filter.sock", "query.sock", "admin.sock"].map(|own| if own == socket { Code::Ok } else { Code::Unimplemented });
        assert_eq!(codes, expected, "{socket}");
    }
}

#[tokio::test]
async fn garbage_ends_its_own_connection_and_no_other() {
    let served = Folder::new().serve();
    let mut good = served.attach().await;
    assert_eq!(good.ask(DEVICE).await.verdict(), Verdict::Allow);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let random: Vec<u8> = (0..4096_u32).map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let huge = [&preface[..], &settings, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat();
    for bytes in [random, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(), huge] {
        let mut stream = served.socket("filter.sock").await;
        // It may be closed while this is still being written.
        let _ = stream.write_all(&bytes).await;
        let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_ok(), "{bytes:?} is still open");
        assert_eq!(good.ask("NOBODY").await.code, "device_not_found");
    }
    let mut half = served.socket("filter.sock").await;
    half.write_all(&[&preface[..], &settings, &[0, 0, 100, 1]].concat()).await.unwrap();
    assert_eq!(good.ask(DEVICE).await.verdict(), Verdict::Allow);
    drop(half);
    assert_eq!(good.ask(DEVICE).await.verdict(), Verdict::Allow);
}

#[tokio::test]
async fn a_message_of_another_kind_or_size_ends_its_own_stream_and_no_other() {
    let served = Folder::new().serve();
    let mut good = served.attach().await;
    // The first field of a question's envelope is a message, and this text is none.
    let wrong = LookupRequest { identifier: "\u{7f}not a message".to_owned(), ..LookupRequest::default() };
    let mut client = tonic::client::Grpc::new(served.channel("filter.sock", None).await.unwrap());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<LookupRequest, SidecarMessage>::default();
    let path = PathAndQuery::from_static("/stepward.v1.FilterService/Attach");
    let request = tonic::Request::new(tokio_stream::once(wrong));
    let mut answers = client.streaming(request, path, codec).await.unwrap().into_inner();
    let status = loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without an error"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Internal);
    let mut large = served.attach().await;
    large.send("a".repeat(2 << 20), vec![0; 32]);
    let end = loop {
        match large.next_result().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without an error"),
            Err(status) => break status.code(),
        }
    };
    assert_eq!(end, Code::OutOfRange);
    assert_eq!(good.ask(DEVICE).await.verdict(), Verdict::Allow);
}

#[test]
fn readers_that_say_nothing_are_let_go_and_hold_up_nobody() {
    let served = Folder::new().serve();
    let silent: Vec<_> = (0..200).map(|_| std::net::TcpStream::connect(served.admin()).unwrap()).collect();
    assert!(served.knows(DEVICE));
    // It waits behind them until their time is over.
    assert_eq!(served.page("/livez").0, 200);
    for stream in silent {
        assert_eq!(std::io::Read::read(&mut &stream, &mut [0]).unwrap(), 0);
    }
}
