//! A request whose headers are there, and the connection that it came on.

use std::rc::Rc;
use std::time::Duration;

use posture::caller::Peer;
use posture::shape::Shape;
use posture::time::UnixTime;

use crate::host::RequestId;

/// A request whose headers are good.
#[derive(Debug)]
pub struct Head {
    /// The request.
    pub(super) request: RequestId,
    /// When its headers came, by the clock as it was last read: up to a tick too early, and so is its deadline.
    pub(super) since: UnixTime,
    /// When the whole of it was there, where that was before it could be proven.
    pub(super) arrived: Option<UnixTime>,
    /// What its headers say.
    pub(super) shape: Shape,
    /// The connection that it came on.
    pub(super) connection: Rc<Connection>,
    /// Which keys admitted the caller, if any did yet.
    pub(super) admitted: Option<u64>,
    /// Largest body in bytes.
    pub(super) limit: u32,
    /// How long after its headers it has its reply at the latest.
    pub(super) deadline: Duration,
    /// Bytes of the body that are there.
    pub(super) size: usize,
}

/// The peer of a TLS connection, which does not change while the connection lasts.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// The peer by its certificate; `None`: it showed none, or one that cannot be read.
    pub(super) peer: Option<Peer>,
    /// The peer's certificate.
    pub(super) der: Vec<u8>,
    /// The peer's address.
    pub(super) address: String,
}

impl Connection {
    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let names = self.peer.as_ref().map_or(0, Peer::size);
        [names, self.der.len(), self.address.len()].into_iter().fold(CONNECTION, usize::saturating_add)
    }
}

/// Bytes that a connection takes besides what is known of its peer.
const CONNECTION: usize = 256;
