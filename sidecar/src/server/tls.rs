//! Connections over TCP: TLS, and who the client is by its certificate.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::{Stream, StreamExt as _};
use posture::caller::Peer;
use posture::secret::Secret;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{Acceptor, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Sleep;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::places::{Greeting, Place, Places};
use super::quota::Client;
use super::{ACCEPT_AGAIN, Told};
use crate::config::Tcp;
use crate::files;
use crate::metrics::{Metrics, ReasonLabel};
use crate::provider::file::Fingerprint;
use crate::runtime::Runtime;

/// What clients are shown, and whose clients are taken: as their files were when they were last good.
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
    /// Which file cannot be used, and why.
    pub fn open(tcp: &Tcp) -> Result<Self, String> {
        let files = tcp.files();
        let seen = fingerprints(&files);
        Ok(Self { config: ArcSwap::new(read(&files)?), seen: Mutex::new(seen), files })
    }

    /// Whether they are those of a listener.
    pub fn are_of(&self, tcp: &Tcp) -> bool {
        self.files == tcp.files()
    }

    /// Their files.
    pub const fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Whether a file is another than at the last reading, be that good or bad.
    pub fn changed(&self) -> bool {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) != fingerprints(&self.files)
    }

    /// Reads them again. Connections from then on have the new ones; those that are open keep what they have.
    ///
    /// # Errors
    /// As [`Self::open`]; the old ones stay.
    pub fn reload(&self) -> Result<String, String> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = fingerprints(&self.files);
        self.config.store(read(&self.files)?);
        Ok("read".to_owned())
    }
}

fn fingerprints(files: &[PathBuf; 3]) -> [Option<Fingerprint>; 3] {
    files.each_ref().map(|file| Fingerprint::of(file))
}

fn read([certificate, private_key, client_ca]: &[PathBuf; 3]) -> Result<Arc<ServerConfig>, String> {
    // Not that of the process: whether it has one is up to others.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in certificates(client_ca)? {
        roots.add(authority).map_err(|error| format!("{}: {error}", client_ca.display()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| format!("{}: {error}", client_ca.display()))?;
    let key = PrivateKeyDer::from_pem_slice(Secret::new(bytes(private_key)?).expose())
        .map_err(|error| format!("{}: no private key can be read: {error}", private_key.display()))?;
    // TLS 1.2 and 1.3: there is nothing older in rustls.
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(certificate)?, key)
        .map_err(|error| format!("{} and {}: {error}", certificate.display(), private_key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A session that is resumed would not be checked against the authorities of today.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_slice_iter(&bytes(path)?).collect::<Result<Vec<_>, _>>();
    let chain = read.map_err(|error| format!("{}: no certificate can be read: {error}", path.display()))?;
    if chain.is_empty() { Err(format!("{}: there is no certificate in it", path.display())) } else { Ok(chain) }
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    files::read(path, files::CERTIFICATES).map_err(|error| format!("{}: cannot be read: {error}", path.display()))
}

/// A client whose certificate was verified. Which calls it may make is asked at each call.
#[derive(Debug)]
pub struct Guest {
    /// Its names.
    pub peer: Peer,
    /// Where it is.
    pub address: SocketAddr,
}

/// One connection, which counts among all until it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    guest: Arc<Guest>,
    /// Streams that have no end of their own end with it.
    end: Pin<Box<Sleep>>,
    greeting: Greeting,
    place: Place<Client>,
    refusals: Arc<Refusals>,
}

/// Connections of clients that TLS lets in, with the certificates of the moment.
pub(super) fn incoming(
    listener: TcpListener,
    runtime: Arc<Runtime>,
    refusals: Arc<Refusals>,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let (sender, connections) = mpsc::channel(1);
    tokio::spawn(accept(listener, runtime, refusals, sender));
    ReceiverStream::new(connections).map(Ok)
}

/// Takes every connection at once, so that nobody waits behind those who say nothing.
async fn accept(listener: TcpListener, runtime: Arc<Runtime>, refusals: Arc<Refusals>, sender: mpsc::Sender<Connection>) {
    let (clients, guests) = (Places::new(CONNECTIONS), Places::new(WITHOUT_ROLE));
    let mut handshakes = Handshakes::default();
    let mut told = Told::default();
    loop {
        let accepted = tokio::select! {
            () = sender.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                told.not_taken("questions over TCP", &error);
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        for gone in handshakes.make_room() {
            refusals.count("gave_way", gone, "its handshake had not ended when as many others had begun as there may be");
        }
        let greeted = Arc::new(AtomicBool::new(false));
        let admitting = {
            let (runtime, refusals, clients, guests) = (Arc::clone(&runtime), Arc::clone(&refusals), clients.clone(), guests.clone());
            let (sender, greeted) = (sender.clone(), Arc::clone(&greeted));
            // A task of its own: signatures take a while, and others go on meanwhile.
            async move {
                if let Some(connection) = admit(stream, address, &greeted, &runtime, &refusals, [clients, guests]).await {
                    // Nobody takes it any more where the service ends.
                    let _ = sender.send(connection).await;
                }
            }
        };
        handshakes.0.push_back(Handshake { task: tokio::spawn(admitting).abort_handle(), address, greeted });
    }
}

/// Handshakes that have begun, the oldest first.
#[derive(Default)]
struct Handshakes(VecDeque<Handshake>);

struct Handshake {
    task: AbortHandle,
    address: SocketAddr,
    /// Whether the client has sent its whole hello: a byte of it costs nothing.
    greeted: Arc<AtomicBool>,
}

impl Handshakes {
    /// Ends one of those that have sent no whole hello, where there are as many as there may be, and one of the others likewise:
    /// the oldest from where the most come. Where they were.
    fn make_room(&mut self) -> Vec<SocketAddr> {
        self.0.retain(|handshake| !handshake.task.is_finished());
        [(false, SILENT), (true, GREETED)].into_iter().filter_map(|(greeted, most)| self.give_way(greeted, most)).collect()
    }

    fn give_way(&mut self, greeted: bool, most: usize) -> Option<SocketAddr> {
        let of_these = |handshake: &&Handshake| handshake.greeted.load(Ordering::Relaxed) == greeted;
        let mut sources: HashMap<IpAddr, usize> = HashMap::new();
        for handshake in self.0.iter().filter(of_these) {
            *sources.entry(source(handshake.address)).or_default() += 1;
        }
        if sources.values().sum::<usize>() < most {
            return None;
        }
        let fullest = *sources.values().max()?;
        let is_from_there = |handshake: &Handshake| sources.get(&source(handshake.address)) == Some(&fullest);
        let gone = self.0.iter().position(|handshake| of_these(&handshake) && is_from_there(handshake))?;
        let gone = self.0.remove(gone)?;
        gone.task.abort();
        Some(gone.address)
    }
}

/// Where a connection comes from: an address, or the network of one that has 2^64 of them.
fn source(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip => ip,
    }
}

/// `places` are those of clients that have a role, and of others.
async fn admit(
    stream: TcpStream,
    address: SocketAddr,
    greeted: &AtomicBool,
    runtime: &Runtime,
    refusals: &Arc<Refusals>,
    places: [Places<Client>; 2],
) -> Option<Connection> {
    // Answers are small, and each is waited for.
    stream.set_nodelay(true).ok()?;
    // A reload may have taken the listener out; its port stays until the next start.
    let config = runtime.snapshot().certificates.as_ref()?.config.load_full();
    let refused = |reason, why: &str| {
        refusals.count(reason, address, why);
        None
    };
    let handshake = async {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        greeted.store(true, Ordering::Relaxed);
        hello.into_stream(config).await
    };
    let stream = match tokio::time::timeout(HANDSHAKE, handshake).await {
        Err(_) => return refused("timeout", "the handshake took too long"),
        Ok(Err(error)) => return refused("handshake", &error.to_string()),
        Ok(Ok(stream)) => stream,
    };
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|leaf| Peer::from_der(leaf));
    let peer = match leaf {
        None => return refused("handshake", "there is no client certificate"),
        Some(Err(error)) => return refused("handshake", &error.to_string()),
        Some(Ok(peer)) => peer,
    };
    let guest = Arc::new(Guest { peer, address });
    let [clients, guests] = places;
    // Whoever has a certificate and no role is told so, and takes no place of those who have one.
    let place = if super::roles::has_any(runtime, &guest) { clients } else { guests };
    let Some(place) = place.take(Client::of_guest(&guest)) else {
        return refused("too_many", "as many connections as there may be are open");
    };
    let end = Box::pin(tokio::time::sleep(CONNECTION + GRACE));
    Some(Connection { stream, guest, end, greeting: place.greeting(), place, refusals: Arc::clone(refusals) })
}

impl Connected for Connection {
    type ConnectInfo = Arc<Guest>;

    fn connect_info(&self) -> Arc<Guest> {
        Arc::clone(&self.guest)
    }
}

impl Connection {
    /// Whether it has to end. It is asked on both ways, since who takes nothing is not read from either.
    fn ends(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.end.as_mut().poll(context).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if self.place.is_needed(context) {
            self.refusals.count("gave_way", self.guest.address, "it had said nothing when its place was needed");
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.ends(context)?;
        let this = &mut *self;
        this.greeting.poll_read(Pin::new(&mut this.stream), context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.ends(context)?;
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ends(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Clients that are turned away: each is counted, and of each reason one a minute is logged, since strangers can be many.
#[derive(Debug)]
pub(super) struct Refusals {
    metrics: Arc<Metrics>,
    said: Mutex<BTreeMap<&'static str, Instant>>,
}

impl Refusals {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, said: Mutex::default() }
    }

    pub(super) fn count(&self, reason: &'static str, address: SocketAddr, why: &str) {
        self.metrics.query_refusals.get_or_create(&ReasonLabel { reason }).inc();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(reason).is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            said.insert(reason, Instant::now());
            tracing::warn!(reason, %address, why, "a client over TCP was turned away");
        }
    }
}

/// Clients that are connected at once and had a role when they came, and others.
const CONNECTIONS: usize = 256;
const WITHOUT_ROLE: usize = 32;

/// All of them.
#[cfg(test)]
pub(super) const PLACES: usize = CONNECTIONS + WITHOUT_ROLE;

/// Handshakes at once, apart from them: whoever has no certificate takes nothing from those who have one. Those that have sent
/// no whole hello and the others each have places of their own, and give way to those that come after them.
const SILENT: usize = 512;
const GREETED: usize = 256;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A client is asked to connect anew after this, with the certificate that it has then, and is cut off after the grace.
pub(super) const CONNECTION: Duration = Duration::from_secs(3600);
const GRACE: Duration = Duration::from_secs(60);

/// How often it is said why clients are turned away.
const SAY_AGAIN: Duration = Duration::from_secs(60);
