//! Certificates of callers, each read once.

use std::sync::Arc;

use posture::caller::{LARGEST_CERTIFICATE, Peer};
use sha2::{Digest as _, Sha256};

/// Certificates that were read, by the SHA-256 of their DER; `None` is one that cannot be read. They are bounded by their bytes.
#[derive(Clone, Debug)]
pub struct Peers(moka::sync::Cache<[u8; 32], Option<Arc<Peer>>>);

impl Default for Peers {
    fn default() -> Self {
        let size = |peer: &Arc<Peer>| u32::try_from(peer.size()).unwrap_or(u32::MAX);
        let weigh = move |_: &[u8; 32], peer: &Option<Arc<Peer>>| peer.as_ref().map_or(0, size).saturating_add(ENTRY);
        Self(moka::sync::Cache::builder().max_capacity(PEERS).weigher(weigh).build())
    }
}

impl Peers {
    /// The peer of a certificate; `None` where there is none, or none that can be read.
    pub fn read(&self, der: &[u8]) -> Option<Arc<Peer>> {
        if der.is_empty() || der.len() > LARGEST_CERTIFICATE {
            return None;
        }
        self.0.get_with(Sha256::digest(der).into(), || Peer::from_der(der).ok().map(Arc::new))
    }

    /// Number of certificates that are remembered.
    #[cfg(any(test, feature = "scripted"))]
    pub fn remembered(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.entry_count()
    }
}

/// Bytes that all remembered certificates may take together.
const PEERS: u64 = 4 << 20;

/// Bytes that a remembered certificate takes besides its names.
const ENTRY: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: usize, name: &str) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = (0..names).map(|at| rcgen::SanType::DnsName(format!("{at}{name}").try_into().unwrap())).collect();
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn f3_certificates_that_are_remembered_are_bounded_by_their_bytes() {
        let peers = Peers::default();
        let (small, large) = (certificate(1, ".example.org"), certificate(250, ".many.names.example.org"));
        assert!(large.len() < LARGEST_CERTIFICATE);
        for number in 0..1000_u32 {
            // Each is another certificate, though its signature is wrong: nothing here looks at that.
            let mut other = large.clone();
            let end = other.len();
            other[end - 4..].copy_from_slice(&number.to_be_bytes());
            assert!(peers.read(&other).is_some());
            peers.0.run_pending_tasks();
            assert!(peers.0.weighted_size() <= PEERS, "{}", peers.0.weighted_size());
        }
        assert!(peers.0.entry_count() < 300, "{}", peers.0.entry_count());
        assert!(peers.read(&small).is_some());
        for unread in [Vec::new(), vec![1; LARGEST_CERTIFICATE], vec![0x30; LARGEST_CERTIFICATE + 1], certificate(257, "")] {
            assert!(peers.read(&unread).is_none());
        }
        // A certificate that is too large is not even remembered.
        peers.0.run_pending_tasks();
        let before = peers.0.entry_count();
        assert!(peers.read(&vec![0x30; 1 << 20]).is_none());
        peers.0.run_pending_tasks();
        assert_eq!(peers.0.entry_count(), before);
        let peers = Peers::default();
        for (length, remembered) in [(LARGEST_CERTIFICATE, 1), (LARGEST_CERTIFICATE + 1, 1), (0, 1)] {
            assert!(peers.read(&vec![1; length]).is_none());
            assert_eq!(peers.remembered(), remembered, "{length}");
        }
    }
}
