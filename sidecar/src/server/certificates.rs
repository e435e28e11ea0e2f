//! Certificates of the listeners over TCP, and how they are replaced.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use posture::secret::Secret;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use settings::{Fingerprint, files};

use crate::config::{Config, Entrance, Tcp};

/// Certificates of every listener over TCP that there is.
#[derive(Clone, Debug, Default)]
pub struct Opened(BTreeMap<Entrance, Arc<Certificates>>);

impl Opened {
    /// Reads the files of all listeners of a configuration; those that are the same as `before` are reused.
    ///
    /// # Errors
    /// A message that names the section and the file that cannot be used.
    pub fn open(config: &Config, before: &Self) -> Result<Self, String> {
        let open = |(entrance, tcp): (Entrance, &Tcp)| {
            let known = before.of(entrance).filter(|known| known.are_of(tcp));
            let opened = known.map_or_else(|| Certificates::open(tcp).map(Arc::new), |known| Ok(Arc::clone(known)));
            Ok::<_, String>((entrance, opened.map_err(|error| format!("{}: {error}", entrance.section()))?))
        };
        Entrance::all_of(config).map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Returns the certificates of a listener, if there is one.
    pub fn of(&self, entrance: Entrance) -> Option<&Arc<Certificates>> {
        self.0.get(&entrance)
    }

    /// Returns whether there is no listener over TCP.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether a file is another than at the last reading, be that good or bad.
    pub fn changed(&self) -> bool {
        self.0.values().any(|certificates| certificates.changed())
    }

    /// Returns the files of all listeners.
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.values().flat_map(|certificates| certificates.files().to_vec()).collect()
    }

    /// Reads the files again, each listener's whatever became of the others'.
    ///
    /// # Errors
    /// The first error of [`Certificates::reload`]; the old certificates of that listener stay.
    pub fn reload(&self) -> Result<(), Unusable> {
        let reloaded: Vec<_> = self.0.values().map(|certificates| certificates.reload()).collect();
        reloaded.into_iter().collect()
    }
}

/// TLS settings of a listener: the certificate that clients are shown, and the authorities of their own, as the
/// files were when they were last good.
#[derive(Debug)]
pub struct Certificates {
    files: [PathBuf; 3],
    seen: Mutex<[Option<Fingerprint>; 3]>,
    config: ArcSwap<ServerConfig>,
}

impl Certificates {
    /// Reads the files of a listener.
    ///
    /// # Errors
    /// [`Unusable`] names the file that cannot be used, and why.
    pub fn open(tcp: &Tcp) -> Result<Self, Unusable> {
        let files = tcp.files();
        let seen = fingerprints(&files);
        Ok(Self { config: ArcSwap::new(read(&files)?), seen: Mutex::new(seen), files })
    }

    /// Returns the settings for a handshake of this moment.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Returns whether these are the certificates of a listener.
    pub fn are_of(&self, tcp: &Tcp) -> bool {
        self.files == tcp.files()
    }

    /// Returns the files: certificate, key and authorities.
    pub const fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Returns whether a file is another than at the last reading, be that good or bad.
    pub fn changed(&self) -> bool {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) != fingerprints(&self.files)
    }

    /// Reads the files again. Connections from then on have the new certificates; those that are open keep what they have.
    ///
    /// # Errors
    /// The errors of [`Self::open`]; the old certificates stay.
    pub fn reload(&self) -> Result<(), Unusable> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = fingerprints(&self.files);
        self.config.store(read(&self.files)?);
        Ok(())
    }
}

fn fingerprints(files: &[PathBuf; 3]) -> [Option<Fingerprint>; 3] {
    files.each_ref().map(|file| Fingerprint::of(file))
}

/// Reason why files cannot be served with. The message names the file.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A file that cannot be read.
    #[error("{}: cannot be read: {}", .0.display(), .1)]
    Unreadable(PathBuf, io::Error),
    /// A file of certificates with something else in it.
    #[error("{}: no certificate can be read: {}", .0.display(), .1)]
    NotPem(PathBuf, pem::Error),
    /// A file of certificates that has none.
    #[error("{}: there is no certificate in it", .0.display())]
    Empty(PathBuf),
    /// A file of a key that has none.
    #[error("{}: no private key can be read: {}", .0.display(), .1)]
    NoKey(PathBuf, pem::Error),
    /// An authority that nobody's certificate can come from.
    #[error("{}: {}", .0.display(), .1)]
    Authority(PathBuf, rustls::Error),
    /// Authorities by which nobody can be verified.
    #[error("{}: {}", .0.display(), .1)]
    Verifier(PathBuf, VerifierBuilderError),
    /// A certificate and a key, in this order, that do not fit.
    #[error("{} and {}: {}", .0.display(), .1.display(), .2)]
    Unfit(PathBuf, PathBuf, rustls::Error),
    /// TLS has no version in common with itself.
    #[error("{0}")]
    Versions(rustls::Error),
}

fn read([certificate, private_key, client_ca]: &[PathBuf; 3]) -> Result<Arc<ServerConfig>, Unusable> {
    // The provider is chosen here: whether the process has one is up to others.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in certificates(client_ca)? {
        roots.add(authority).map_err(|error| Unusable::Authority(client_ca.clone(), error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| Unusable::Verifier(client_ca.clone(), error))?;
    let key = PrivateKeyDer::from_pem_slice(Secret::new(bytes(private_key)?).expose())
        .map_err(|error| Unusable::NoKey(private_key.clone(), error))?;
    // TLS 1.2 and 1.3: there is nothing older in rustls.
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Unusable::Versions)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(certificate)?, key)
        .map_err(|error| Unusable::Unfit(certificate.clone(), private_key.clone(), error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would not be checked against the authorities of today.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let read = CertificateDer::pem_slice_iter(&bytes(path)?).collect::<Result<Vec<_>, _>>();
    let chain = read.map_err(|error| Unusable::NotPem(path.to_owned(), error))?;
    if chain.is_empty() { Err(Unusable::Empty(path.to_owned())) } else { Ok(chain) }
}

fn bytes(path: &Path) -> Result<Vec<u8>, Unusable> {
    files::read(path, files::CERTIFICATES).map_err(|error| Unusable::Unreadable(path.to_owned(), error))
}
