//! Clients of calls: a certificate over TCP, or a user of this machine on a socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use clock::OnceAMinute;
use http::Extensions;
use posture::caller::Peer;
use tokio::time::Instant;
use tonic::transport::server::UdsConnectInfo;

use crate::config::Entrance;
use engine::metrics::{Metrics, ReasonLabel};

/// Client over TCP whose certificate was verified. Its roles are checked at each call.
#[derive(Debug)]
pub struct Guest {
    /// Names of its certificate.
    pub peer: Peer,
    /// Address that it called from.
    pub address: SocketAddr,
}

impl Guest {
    /// Returns address and first names of the client, for the log.
    pub fn shown(&self) -> String {
        format!("{} ({})", self.address, first_names(&self.peer))
    }
}

/// Returns the first names of a certificate, in words: it may have hundreds, and they go into headers and logs.
pub(super) fn first_names(peer: &Peer) -> String {
    peer.names().iter().take(4).map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The client of a call, for bounds of what one has under way: the names of a certificate, or a user of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// Over TCP, by every name of the certificate but its digest: there may be many certificates of one client.
    Named(Arc<str>),
    /// On a socket, by user id.
    User(u32),
    /// On a socket, by process id: where users of other namespaces all have one id, the user id says nothing.
    Process(i32),
    /// Client that nobody knows; all of these are one.
    Unknown,
}

impl Client {
    /// Returns the client that a request came from.
    pub fn of(extensions: &Extensions) -> Self {
        match (extensions.get::<Arc<Guest>>(), extensions.get::<UdsConnectInfo>().and_then(|socket| socket.peer_cred)) {
            (Some(guest), _) => Self::of_guest(guest),
            (None, Some(user)) => Self::of_user(user.uid(), user.pid()),
            (None, None) => Self::Unknown,
        }
    }

    /// Returns the user of a socket, or the process where the system does not say which user it is.
    pub(super) fn of_user(uid: u32, pid: Option<i32>) -> Self {
        // The system gives 0 for a process that it cannot name here.
        match pid.filter(|pid| uid == *OVERFLOW && *pid > 0) {
            Some(pid) => Self::Process(pid),
            None => Self::User(uid),
        }
    }

    /// Returns the client with this certificate.
    pub(super) fn of_guest(guest: &Guest) -> Self {
        Self::Named(guest.peer.lasting())
    }
}

/// User id of everybody whom this process's user namespace has no id for, as with `PrivateUsers=yes` (user_namespaces(7)).
static OVERFLOW: LazyLock<u32> = LazyLock::new(|| {
    let told = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    told.and_then(|text| text.trim().parse().ok()).unwrap_or(65_534)
});

/// Count of clients that one listener turns away. Of each reason one a minute is logged, since strangers can be many.
#[derive(Debug)]
pub(super) struct Refusals {
    entrance: Entrance,
    metrics: Arc<Metrics>,
    said: Mutex<BTreeMap<&'static str, OnceAMinute>>,
}

impl Refusals {
    /// Makes a count that begins at what the metrics have.
    pub(super) fn new(entrance: Entrance, metrics: Arc<Metrics>) -> Self {
        Self { entrance, metrics, said: Mutex::default() }
    }

    /// Counts a client for a reason, which is a label, and logs `why` where a line is due.
    pub(super) fn count(&self, reason: &'static str, address: SocketAddr, why: &str) {
        let (counts, who) = match self.entrance {
            Entrance::Query => (&self.metrics.query_refusals, "a client over TCP was turned away"),
            Entrance::Filter => (&self.metrics.filter_refusals, "an Envoy over TCP was turned away"),
        };
        counts.get_or_create(&ReasonLabel { reason }).inc();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.entry(reason).or_default().is_due(Instant::now()) {
            tracing::warn!(reason, %address, why, "{who}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b_two_certificates_of_one_client_are_one_client() {
        let of = |name: &str| {
            let parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            let certificate = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            Client::of_guest(&Guest { peer: Peer::from_der(certificate.der()).unwrap(), address: ([127, 0, 0, 1], 1).into() })
        };
        assert_eq!(of("a.example.org"), of("a.example.org"));
        assert_ne!(of("a.example.org"), of("b.example.org"));
    }

    #[test]
    fn b_users_whom_a_namespace_does_not_tell_apart_are_told_apart_by_process() {
        assert_eq!(Client::of_user(6001, Some(7)), Client::User(6001));
        assert_eq!(Client::of_user(*OVERFLOW, Some(7)), Client::Process(7));
        for unknown in [None, Some(0)] {
            assert_eq!(Client::of_user(*OVERFLOW, unknown), Client::User(*OVERFLOW));
        }
    }
}
