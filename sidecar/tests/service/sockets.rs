//! Tests of who may connect to which socket, what it takes there, and what becomes of one who sends something else.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid};
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::filter_service_client::FilterServiceClient;
use proto::v1::posture_service_client::PostureServiceClient;
use proto::v1::{LookupRequest, ReloadRequest, SidecarMessage, Verdict};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use tonic::codegen::http::uri::PathAndQuery;

use crate::served::{DEVICE, Folder, Served, devices};

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

/// Result of a try to use a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// The service answers.
    In,
    /// The service hangs up.
    TurnedAway,
    /// The system refuses the connection.
    No,
}

/// Runs what comes next as a user, whose own group has the same id, in these groups and no other.
fn as_user(folder: &Folder, user: u32, groups: &[u32]) -> Command {
    let mut command = Command::new("setpriv");
    let groups = groups.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    command.args([format!("--reuid={user}"), format!("--regid={user}")]);
    command.arg(if groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={groups}") });
    command.env_clear().current_dir(folder.path("")).stdin(std::process::Stdio::null());
    command
}

/// Makes a call on the socket of a role, in a folder of its own below `run`.
fn reach(mut user: Command, run: &Path, role: &str) -> Reach {
    user.arg(env!("CARGO_BIN_EXE_stepward"));
    if role == "admin" {
        user.arg("locks")
    } else {
        user.args(["query", DEVICE])
    };
    let output = user.arg("--socket").arg(run.join(role).join(format!("{role}.sock"))).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match (role, output.status.success()) {
        _ if said.contains("Permission denied") => Reach::No,
        ("query" | "admin", false) => Reach::TurnedAway,
        // On the other sockets, what answers is no such service, and says so.
        _ => Reach::In,
    }
}

const BE_ROOT: &str =
    "to become other users this test must run as root: sudo --preserve-env=PATH,HOME cargo test -p sidecar --test service";

/// The table "Who can reach what" of SECURITY.md, as far as it is about users, with the folders and groups of deploy/systemd.
#[test]
fn c1_each_user_reaches_what_the_table_says_and_nothing_else() {
    assert!(Uid::effective().is_root(), "{BE_ROOT}");
    let deployed = |name: &str| std::fs::read_to_string(format!("{}/../deploy/systemd/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let ids = ["root", "stepward", "stepward-envoy", "stepward-filter", "stepward-push", "stepward-query", "stepward-admin", "stranger"];
    let id = |name: &str| match ids.iter().position(|known| *known == name).unwrap() {
        0 => 0,
        number => 61_000 + u32::try_from(number).unwrap(),
    };
    let folder = Folder::new();
    let run = folder.path("sockets");
    let mut made = 0;
    for line in deployed("stepward.tmpfiles.conf").lines().filter(|line| line.starts_with("d ")) {
        let [_, path, mode, user, group, _] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        let path = run.join(path.strip_prefix("/run/stepward").unwrap().trim_start_matches('/'));
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(id(user)), Some(id(group))).unwrap();
        let mode = std::fs::Permissions::from_mode(u32::from_str_radix(mode, 8).unwrap());
        std::fs::set_permissions(&path, mode).unwrap();
        made += 1;
    }
    assert_eq!(made, 5);
    let sysusers = deployed("stepward.sysusers.conf");
    let member = |user: &str| {
        let members = sysusers.lines().filter_map(|line| line.strip_prefix("m ")).filter_map(|line| line.split_once(char::is_whitespace));
        members.filter(|(name, _)| *name == user).map(|(_, group)| id(group.trim())).collect::<Vec<_>>()
    };
    let mut own = Command::new("chown");
    own.args(["--recursive", &format!("{0}:{0}", id("stepward"))]);
    own.args(["stepward.toml", "devices.json", "secrets", "tls"].map(|name| folder.path(name)));
    assert!(own.status().unwrap().success());
    let state = folder.path("state");
    std::fs::create_dir_all(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(id("stepward")), Some(id("stepward"))).unwrap();

    let become_user = |user: &str, groups: &[u32]| as_user(&folder, id(user), groups);
    let mut serve = become_user("stepward", &[]);
    for line in deployed("stepward.service").lines().filter_map(|line| line.strip_prefix("Environment=")) {
        for (name, value) in line.split_whitespace().filter_map(|pair| pair.split_once('=')).filter(|(name, _)| name.contains("LISTEN")) {
            serve.env(name, if value == "/run/stepward" { run.as_os_str() } else { value.as_ref() });
        }
    }
    serve.args([env!("CARGO_BIN_EXE_stepward"), "serve", "--config", "stepward.toml"]);
    let _served = Served::start(folder.clone(), serve);

    use Reach::{In, No, TurnedAway};
    let only = |group: &str| vec![id(group)];
    for (user, groups, expected) in [
        ("root", vec![], [In, In, In, In]),
        ("stepward", vec![], [In, In, In, In]),
        ("stepward-envoy", member("stepward-envoy"), [In, In, No, No]),
        ("stranger", vec![], [No, No, No, No]),
        ("stranger", only("stepward-filter"), [In, No, No, No]),
        ("stranger", only("stepward-push"), [No, In, No, No]),
        ("stranger", only("stepward-query"), [No, No, In, No]),
        ("stranger", only("stepward-admin"), [No, No, No, TurnedAway]),
    ] {
        let got = ["filter", "push", "query", "admin"].map(|role| reach(become_user(user, &groups), &run, role));
        assert_eq!(got, expected, "{user} in {groups:?}");
    }
    for (user, may) in [("stepward", true), ("stepward-envoy", false), ("stranger", false)] {
        let mut read = become_user(user, &member(user));
        let read = read.args(["cat", "secrets/webhook"]).output().unwrap();
        assert_eq!(read.status.success(), may, "{user}");
    }
}

/// The images and the Compose file: each of the two containers has a user of its own.
#[test]
fn c1_envoys_container_has_a_user_of_its_own_that_reaches_two_sockets() {
    assert!(Uid::effective().is_root(), "{BE_ROOT}");
    let deployed = |name: &str| std::fs::read_to_string(format!("{}/../deploy/docker/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (image, compose) = (deployed("Dockerfile.sidecar"), deployed("compose.yaml"));
    let id = |text: &str| text.trim_matches('"').parse::<u32>().unwrap();
    let pair = |text: &str| text.trim_matches('"').split_once(':').map(|(user, group)| (id(user), id(group))).unwrap();
    let user = |image: &str| pair(image.lines().find_map(|line| line.strip_prefix("USER ")).unwrap());
    let (own, envoy) = (user(&image), user(&deployed("Dockerfile.envoy")));
    assert!(own.0 != envoy.0 && own.1 != envoy.1 && own.0 == own.1 && envoy.0 == envoy.1, "{own:?} {envoy:?}");
    let users: Vec<_> = compose.lines().filter_map(|line| line.trim().strip_prefix("user: ")).map(pair).collect();
    assert_eq!(users, [own, own, envoy]);
    let setting = |name: &str| compose.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}: "))).unwrap();
    let shared = id(setting("group_add").trim_matches(['[', ']']));

    let folder = Folder::new();
    let run = folder.path("sockets");
    std::fs::create_dir(&run).unwrap();
    for line in image.lines().filter(|line| line.starts_with("COPY ") && line.ends_with(" /run/stepward")) {
        let [_, _, owner, from, _] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        let (user, group) = pair(owner.strip_prefix("--chown=").unwrap());
        let made = image.lines().find(|line| line.contains("install -d -m 750 ") && line.contains(from)).unwrap();
        for role in made.split_whitespace().filter_map(|path| path.strip_prefix(&format!("{from}/"))) {
            let path = run.join(role);
            std::fs::create_dir(&path).unwrap();
            std::os::unix::fs::chown(&path, Some(user), Some(group)).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
        }
    }
    let mut chown = Command::new("chown");
    chown.args(["--recursive", &format!("{}:{}", own.0, own.1)]);
    chown.args(["stepward.toml", "devices.json", "secrets", "tls"].map(|name| folder.path(name)));
    assert!(chown.status().unwrap().success());
    let mut serve = as_user(&folder, own.0, &[shared]);
    serve.env("STEPWARD__STORE__ENABLED", "false").env("STEPWARD__LISTEN__SOCKETS", &run).env("STEPWARD__LISTEN__ADMIN", "127.0.0.1:0");
    for name in ["ROLE_FOLDERS", "GROUPS__FILTER", "GROUPS__PUSH"].map(|name| format!("STEPWARD__LISTEN__{name}")) {
        serve.env(&name, setting(&name).trim_matches('"'));
    }
    serve.args([env!("CARGO_BIN_EXE_stepward"), "serve", "--config", "stepward.toml"]);
    let _served = Served::start(folder.clone(), serve);
    use Reach::{In, No};
    for (user, groups, expected) in [(own.0, vec![shared], [In; 4]), (envoy.0, vec![shared], [In, In, No, No]), (envoy.0, vec![], [No; 4])]
    {
        let got = ["filter", "push", "query", "admin"].map(|role| reach(as_user(&folder, user, &groups), &run, role));
        assert_eq!(got, expected, "{user} in {groups:?}");
    }
}

#[test]
fn c1_envoys_container_gets_two_sockets_and_its_certificates() {
    let compose = std::fs::read_to_string(format!("{}/../deploy/docker/compose.yaml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let envoy = compose.split_once("\n  envoy:\n").unwrap().1;
    let mounts = envoy.split_once("    volumes:\n").unwrap().1.lines().map(str::trim).take_while(|line| line.starts_with(['-', '#']));
    let mounts: Vec<_> = mounts.filter_map(|line| line.strip_prefix("- ")).collect();
    let expected = [
        "./stepward/tls:/etc/stepward/tls:ro",
        "filter:/run/stepward/filter:ro",
        "push:/run/stepward/push:ro",
        "bootstrap:/run/stepward-envoy:ro",
    ];
    assert_eq!(mounts, expected);
    // The folder is that of a setup that was made as the file says.
    let folder = Folder::new();
    let mut keys: Vec<_> = std::fs::read_dir(folder.path("tls")).unwrap().map(|entry| entry.unwrap().path()).collect();
    keys.retain(|path| std::fs::read_to_string(path).unwrap().contains("PRIVATE KEY"));
    assert_eq!(keys, [folder.path("tls/server.key")], "a key of somebody else makes Envoy that one");
}

#[test]
fn c1_what_init_makes_nobody_else_can_write_to_whatever_the_umask() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "umask 000; exec \"$0\" init made", env!("CARGO_BIN_EXE_stepward")]);
    assert!(command.current_dir(folder.path()).env_clear().output().unwrap().status.success());
    let mut open = vec![folder.path().join("made")];
    let mut seen = 0;
    while let Some(path) = open.pop() {
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o022, 0, "{}", path.display());
        seen += 1;
        if metadata.is_dir() {
            open.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert_eq!(seen, 14);
}

#[test]
fn b_what_could_not_be_read_while_descriptors_were_short_is_read_once_there_are_some() {
    let folder = Folder::new();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 100; exec \"$0\" serve", env!("CARGO_BIN_EXE_stepward")]);
    command.current_dir(folder.path("")).env_clear().env("STEPWARD_CONFIG", "stepward.toml");
    let mut served = Served::start(folder, command);
    let held: Vec<_> = (0..120).map_while(|_| UnixStream::connect(served.folder.path("run/filter.sock")).ok()).collect();
    served.printed("a connection could not be taken");
    served.folder.write("devices.json", &devices(&["PF3ABCDE", "NEW"]));
    served.until(|line| line["subject"] == "staff" && line["message"] == "not reloaded; what was there before stays");
    drop(held);
    served.until(|line| line["subject"] == "staff" && line["message"] == "reloaded");
    assert!(served.knows("NEW") && !served.knows(DEVICE));
    assert_eq!(served.errors().iter().filter(|line| line["subject"] == "staff").count(), 1, "{:?}", served.errors());
}

/// A file system's user id belongs to one thread on Linux, so the stranger is a thread of this test.
#[test]
fn c2_nobody_gets_in_between_the_making_of_a_socket_and_its_mode() {
    assert!(Uid::effective().is_root(), "{BE_ROOT}");
    let folder = Folder::new();
    folder.change("stepward.toml", "[envoy]", "group = \"54321\"\n\n[envoy]");
    let paths = ["filter", "query", "push", "admin"].map(|role| folder.path("run").join(format!("{role}.sock")));
    let (over, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (ends, tried) = (Arc::clone(&over), Arc::clone(&tries));
    let stranger = std::thread::spawn(move || {
        nix::unistd::setfsgid(Gid::from_raw(12_345));
        nix::unistd::setfsuid(Uid::from_raw(12_345));
        let mut reached = Vec::new();
        while !ends.load(Ordering::Relaxed) {
            for path in &paths {
                let connected = UnixStream::connect(path);
                if connected.is_ok() {
                    reached.push(path.clone());
                } else if connected.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
                    tried.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        reached
    });
    for start in 1..=40 {
        let before = tries.load(Ordering::Relaxed);
        let mut command = Command::new("sh");
        command.args(["-c", "umask 000; exec \"$0\" serve --config stepward.toml", env!("CARGO_BIN_EXE_stepward")]);
        command.current_dir(folder.path("")).env_clear();
        let served = Served::start(folder.clone(), command);
        // The socket was there, and the stranger saw it.
        while tries.load(Ordering::Relaxed) == before {
            assert!(!stranger.is_finished(), "start {start}");
            std::thread::yield_now();
        }
        assert_eq!(folder.path("run").metadata().unwrap().permissions().mode() & 0o022, 0, "start {start}");
        drop(served);
    }
    over.store(true, Ordering::Relaxed);
    assert_eq!(stranger.join().unwrap(), Vec::<std::path::PathBuf>::new());
    let left: Vec<_> = std::fs::read_dir(folder.path("run")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.as_encoded_bytes().starts_with(b".")), "{left:?}");
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
        // The connection may be closed while this is still being written.
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
async fn b_connections_that_a_process_holds_leave_other_sockets_alone_and_keep_no_newer_one_out() {
    let served = Folder::new().serve();
    let connect = async || {
        let mut stream = served.socket("query.sock").await;
        // A silent client is let go, so this one speaks. The connection may be closed already.
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        stream
    };
    // What was sent before a close can still be read, so the connection is asked anew, by a ping.
    let open = async |stream: &mut tokio::net::UnixStream| {
        stream.write_all(b"\0\0\x08\x06\0\0\0\0\0whatever").await.is_ok() && {
            let mut answer = Vec::new();
            loop {
                match tokio::time::timeout(Duration::from_secs(10), stream.read_buf(&mut answer)).await {
                    Ok(Ok(1..)) if answer.windows(8).any(|window| window == b"whatever") => break true,
                    Ok(Ok(1..)) => {}
                    _ => break false,
                }
            }
        }
    };
    let mut held = Vec::new();
    for _ in 0..300 {
        held.push(connect().await);
    }
    // Of 256 places one process has three quarters, and its newest connections have them.
    for (number, stream) in held.iter_mut().enumerate() {
        if number < 300 - 192 {
            // Whoever lost the place may answer once more before the connection's task runs.
            let closed = tokio::time::timeout(Duration::from_secs(20), async { while open(stream).await {} }).await;
            assert!(closed.is_ok(), "{number} is still open");
        } else {
            assert!(open(stream).await, "{number} is closed");
        }
    }
    assert_eq!(served.attach().await.ask(DEVICE).await.verdict(), Verdict::Allow);
    assert!(open(&mut connect().await).await);
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
    // The page is answered although others hold connections and say nothing.
    assert_eq!(served.page("/livez").0, 200);
    for stream in silent {
        assert_eq!(io::Read::read(&mut &stream, &mut [0]).unwrap(), 0);
    }
}

#[test]
fn b_who_says_nothing_at_the_address_of_pages_keeps_no_reader_out() {
    let served = Folder::new().serve();
    let _silent: Vec<_> = (0..200).map(|_| std::net::TcpStream::connect(&served.admin).unwrap()).collect();
    let began = Instant::now();
    assert_eq!(served.page("/livez").0, 200);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
