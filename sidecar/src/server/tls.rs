//! Connections over TCP: TLS, and the client that a certificate names.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use clock::OnceAMinute;
use futures::{Stream, StreamExt as _};
use posture::caller::Peer;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Sleep;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::client::{Client, Guest, Refusals};
use super::places::{Greeting, Place, Places};
use super::roles;
use super::told::{ACCEPT_AGAIN, not_taken};
use crate::calls::drained;
use crate::config::Entrance;
use crate::runtime::Runtime;
use crate::webhook::STREAM;

/// One connection, which counts among all until it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    guest: Arc<Guest>,
    /// End of the connection, and with it of streams that have no end of their own.
    end: Pin<Box<Sleep>>,
    greeting: Greeting,
    place: Place<Client>,
    refusals: Arc<Refusals>,
}

/// One listener: what is taken there, and who is told of those that are turned away.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) entrance: Entrance,
    pub(super) runtime: Arc<Runtime>,
    pub(super) refusals: Arc<Refusals>,
}

/// Returns the connections of clients that TLS lets in, with the certificates of the moment. Nobody is let in once the service
/// drains: the port is closed, so that a client asks elsewhere at once.
pub(super) fn incoming(
    listener: TcpListener,
    door: Door,
    drain: watch::Receiver<bool>,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let (sender, connections) = mpsc::channel(1);
    tokio::spawn(accept(listener, door, drain, sender));
    ReceiverStream::new(connections).map(Ok)
}

/// Takes every connection at once, so that no client waits behind silent ones.
async fn accept(listener: TcpListener, door: Door, drain: watch::Receiver<bool>, sender: mpsc::Sender<Connection>) {
    let places = [connections(door.entrance), WITHOUT_ROLE].map(Places::new);
    let mut handshakes = Handshakes::default();
    let mut told = OnceAMinute::default();
    let drained = drained(drain);
    tokio::pin!(drained);
    loop {
        let accepted = tokio::select! {
            () = sender.closed() => return,
            () = &mut drained => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                not_taken(&mut told, door.entrance.what(), &error);
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        for gone in handshakes.make_room() {
            door.refusals.count("gave_way", gone, "its handshake had not ended when as many others had begun as there may be");
        }
        let greeted = Arc::new(AtomicBool::new(false));
        let admitting = {
            let (door, places) = (door.clone(), places.clone());
            let (sender, greeted) = (sender.clone(), Arc::clone(&greeted));
            // A task of its own: signatures take a while, and others go on meanwhile.
            async move {
                if let Some(connection) = admit(stream, address, &greeted, &door, places).await {
                    // The send fails where the service ends.
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
    /// Makes room for one more handshake. Ends one of those that have sent no whole hello, where there are as many as there may
    /// be, and one of the others likewise: the oldest from the source of the most. Returns their addresses.
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

/// Returns the source of a connection: its address, or for IPv6 the network of 2^64 addresses that it is in.
fn source(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip => ip,
    }
}

/// Makes the handshake of a connection and gives it a place; `places` are those of clients that have a role, and of others.
async fn admit(
    stream: TcpStream,
    address: SocketAddr,
    greeted: &AtomicBool,
    Door { entrance, runtime, refusals }: &Door,
    places: [Places<Client>; 2],
) -> Option<Connection> {
    // Answers are small, and each is waited for.
    stream.set_nodelay(true).ok()?;
    // A reload may have taken the listener out; its port stays until the next start.
    let config = runtime.certificates().of(*entrance)?.current();
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
    // A client that has a certificate and no role is told so, and takes no place of those that have one.
    let place = if roles::has_any(runtime, *entrance, &guest) { clients } else { guests };
    let Some(place) = place.take(Client::of_guest(&guest)) else {
        return refused("too_many", "as many connections as there may be are open");
    };
    let end = Box::pin(tokio::time::sleep(CONNECTION + grace(*entrance)));
    Some(Connection { stream, guest, end, greeting: place.greeting(), place, refusals: Arc::clone(refusals) })
}

impl Connected for Connection {
    type ConnectInfo = Arc<Guest>;

    fn connect_info(&self) -> Arc<Guest> {
        Arc::clone(&self.guest)
    }
}

impl Connection {
    /// Returns an error where the connection has to end. Checked on both ways: a client that takes nothing is not read from
    /// either.
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

/// Returns the largest number of clients that are connected at once and had a role when they came. Every worker of an Envoy has a
/// connection of its own.
const fn connections(entrance: Entrance) -> usize {
    match entrance {
        Entrance::Query => 256,
        Entrance::Filter => 320,
    }
}

/// Largest number of others.
const WITHOUT_ROLE: usize = 32;

/// Returns the number of places of all clients.
#[cfg(test)]
pub(super) const fn places(entrance: Entrance) -> usize {
    connections(entrance) + WITHOUT_ROLE
}

/// Largest number of handshakes at once without a whole hello, and then with one. They do not count as connections: a client
/// without a certificate takes nothing from those that have one. The oldest give way to those that come after them.
const SILENT: usize = 512;
const GREETED: usize = 256;

/// Longest time of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Time after which a client is asked to connect anew, with the certificate that it has then. After the grace it is cut off.
pub(super) const CONNECTION: Duration = Duration::from_secs(3600);

/// Returns the grace: a filter's stream ends by itself within it, with every answer.
const fn grace(entrance: Entrance) -> Duration {
    let minute = Duration::from_secs(60);
    match entrance {
        Entrance::Query => minute,
        Entrance::Filter => minute.saturating_add(STREAM),
    }
}
