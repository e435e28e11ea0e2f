//! Examination of the running service: its page of health, and its sockets as this user may use them.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use inventory::Finding;
use nix::unistd::Uid;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::examined::doubtful;
use crate::cli::healthcheck;
use crate::config::Listen;
use crate::pages;

/// Examines whether the service runs, what it says of itself, and who may use it.
pub(super) async fn examine(listen: &Listen, deadline: Instant) -> Vec<Finding> {
    let (page, sockets) = tokio::join!(page(listen, deadline), sockets(listen));
    let absent = sockets.iter().all(|(absent, _)| *absent);
    let sockets = sockets.into_iter().map(|(_, finding)| finding);
    match page {
        // A service that does not run is one cause, and has one finding.
        Err(_) if absent => {
            let folder = listen.sockets.display();
            vec![Finding::bad(
                "running",
                format!("there is no service with its sockets in {folder}"),
                "start it: stepward serve --config FILE",
            )]
        }
        Err(error) => {
            let detail = format!("its page of health does not answer: {error:#}");
            let fix = "see [listen] admin: whether it is this service's, and reachable from here";
            std::iter::once(doubtful("health", detail, fix)).chain(sockets).collect()
        }
        Ok(page) => page.into_iter().chain(sockets).collect(),
    }
}

/// Reads findings from the page of health.
async fn page(listen: &Listen, deadline: Instant) -> anyhow::Result<Vec<Finding>> {
    anyhow::ensure!(listen.admin.port() != 0, "its port is chosen anew at each start");
    let deadline = deadline.min(Instant::now() + PAGE);
    let (ready, text) = timeout_at(deadline, healthcheck::page(&listen.admin.to_string())).await.context("no answer in 3 s").flatten()?;
    let mut lines = text.lines();
    let word = lines.next().unwrap_or_default();
    let mut findings = vec![if ready {
        Finding::good("health", "it is ready")
    } else {
        Finding::bad("health", format!("it is {word}"), "wait until it is ready, and look into its log if it never is")
    }];
    for line in lines {
        if let Some(wrong) = line.strip_prefix("not_applied ") {
            let fix = "correct it; the service reads it again by itself, or by `stepward reload`";
            findings.push(Finding::bad("reload", format!("the old one is still used: {wrong}"), fix));
        } else if let Some(waits) = line.strip_prefix("waits ") {
            findings.push(doubtful("start", waits, "start the service again, or take the change back"));
        } else if let Some(trouble) = line.strip_prefix("store ") {
            // The message about a store that is lost has the steps itself.
            let fix = if trouble.contains(store::RECIPE) {
                "do these steps in this order"
            } else if trouble.starts_with(pages::WITHOUT_NEWS) {
                "see that the database of `url` in [store] answers: docs/replicas.md, \"When something fails\""
            } else {
                "make room on its disk, and what is owed is written; docs/locks.md, \"What is kept\", says what holds until then"
            };
            findings.push(Finding::bad("store", trouble, fix));
        } else if line == "filter_streams 0" {
            let fix = "start Envoy with what `stepward envoy-config` prints, and see its log for `wasm`; with --log-level warning it needs \
                       --component-log-level wasm:info to show all that the filter says";
            findings.push(doubtful(FILTER, "no Envoy is attached, so no webhook can be answered", fix));
        } else if let Some(streams) = line.strip_prefix("filter_streams ") {
            findings.push(Finding::good(FILTER, format!("attached, with {streams} streams")));
        }
    }
    Ok(findings)
}

/// Returns whether this user may use the socket of a role, as far as its list of users says: a try would leave a warning in the
/// log.
pub(super) fn admits(listen: &Listen, role: &str) -> bool {
    admitted(listen, role).is_none_or(|uids| uids.contains(&Uid::effective().as_raw()))
}

fn admitted(listen: &Listen, role: &str) -> Option<Vec<u32>> {
    listen.uids.get(role).cloned().or_else(|| {
        // The owner of the socket is the user of the service.
        let owner = std::fs::metadata(listen.socket(role)).ok().filter(|_| Listen::ROOT_AND_SERVICE.contains(&role))?;
        Some(vec![0, owner.uid()])
    })
}

/// Examines each socket; true where it is not there or nobody listens.
async fn sockets(listen: &Listen) -> Vec<(bool, Finding)> {
    let me = Uid::effective().as_raw();
    let mut sockets = Vec::with_capacity(ROLES.len());
    for role in ROLES {
        let check = format!("{role}.sock");
        let path = listen.socket(role);
        if let Some(uids) = admitted(listen, role).filter(|uids| !uids.contains(&me)) {
            let detail = format!("not tried: [listen] uids lets in {uids:?}, and this is {me}");
            let fix = format!("nothing if `{role}` is not for you; otherwise run this as one of them");
            sockets.push((!path.exists(), doubtful(check, detail, fix)));
            continue;
        }
        sockets.push(socket(check, &path, listen, me).await);
    }
    sockets
}

async fn socket(check: String, path: &Path, listen: &Listen, me: u32) -> (bool, Finding) {
    let error = match timeout(SOCKET, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => return (false, connected(check, stream).await),
        Ok(Err(error)) => error,
        Err(_) => io::Error::from(io::ErrorKind::TimedOut),
    };
    match error.kind() {
        io::ErrorKind::NotFound => (true, Finding::bad(check, "it is not there", "start the service, or correct [listen] sockets")),
        io::ErrorKind::ConnectionRefused => {
            (true, Finding::bad(check, "nobody listens: it was left behind", "start the service, which replaces it"))
        }
        io::ErrorKind::PermissionDenied => {
            let role = check.strip_suffix(".sock").unwrap_or_default();
            let group = listen.group(role).map_or_else(|| "the group of the service".to_owned(), |group| format!("the group `{group}`"));
            let fix = format!("nothing if it is not for you; otherwise join {group}, or run this as the service's user");
            (false, doubtful(check, format!("uid {me} may not use it"), fix))
        }
        _ => (false, Finding::bad(check, format!("it cannot be used: {error}"), "start the service again")),
    }
}

/// Examines a connection: a service that turns a user away does so after the connection is made.
async fn connected(check: String, mut stream: UnixStream) -> Finding {
    let mut byte = [0];
    match timeout(TURNED_AWAY, stream.read(&mut byte)).await {
        Ok(Ok(0) | Err(_)) => {
            let fix = "see [listen] uids of the configuration that it runs with";
            doubtful(check, "the service turned this user away", fix)
        }
        _ => Finding::good(check, "it listens, and you may use it"),
    }
}

/// Name of the check about the filter, which tells whether some Envoy is there.
pub(super) const FILTER: &str = "filter";

/// Roles of the sockets.
const ROLES: [&str; 4] = ["filter", "query", "admin", "push"];

/// Longest time for the page of health.
const PAGE: Duration = Duration::from_secs(3);

/// Longest time for a socket to connect: more than that is a full backlog.
const SOCKET: Duration = Duration::from_secs(2);

/// Longest time until a service turns a user away.
const TURNED_AWAY: Duration = Duration::from_millis(300);
