//! A client that can send anything: HTTP/1.1 and HTTP/2 over TLS, chunked bodies, trailers, bytes that are not HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::pki::{Credential, certificates};

/// Makes aws-lc-rs the cryptography provider of this process.
pub fn crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
}

/// The version of HTTP that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

/// A client: an address, the roots that it trusts, and the credential that it shows.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    http: Http,
}

impl Client {
    /// Makes a client that trusts the roots, and shows the credential if there is one.
    pub fn new(address: SocketAddr, roots: &str, credential: Option<&Credential>, http: Http) -> Self {
        crypto();
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates(roots));
        let builder = ClientConfig::builder().with_root_certificates(store);
        let mut config = match credential.map(Credential::der) {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![match http {
            Http::One => b"http/1.1".to_vec(),
            Http::Two => b"h2".to_vec(),
        }];
        Self { address, config: Arc::new(config), http }
    }

    /// The same client with another version of HTTP.
    pub fn speaking(&self, http: Http) -> Self {
        let mut config = (*self.config).clone();
        config.alpn_protocols = vec![if http == Http::One { b"http/1.1".to_vec() } else { b"h2".to_vec() }];
        Self { address: self.address, config: Arc::new(config), http }
    }

    /// Opens a TLS connection. A server that refuses the certificate says so only with the first read (TLS 1.3).
    pub async fn tls(&self) -> anyhow::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await.context("connect")?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        TlsConnector::from(Arc::clone(&self.config)).connect(name, stream).await.context("TLS handshake")
    }

    /// Opens a connection for requests.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let io = TokioIo::new(self.tls().await?);
        let (sender, ended) = match self.http {
            Http::One => {
                let (sender, connection) = http1::handshake(io).await?;
                (Sender::One(sender), driven(connection))
            }
            Http::Two => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(1 << 20)
                    .initial_connection_window_size(8 << 20)
                    .handshake(io)
                    .await?;
                (Sender::Two(sender), driven(connection))
            }
        };
        Ok(Connection { sender, ended })
    }

    /// Sends one request on a connection of its own.
    pub async fn send(&self, request: Outgoing) -> anyhow::Result<Reply> {
        self.connect().await?.send(request).await
    }

    /// Writes bytes and reads until the peer closes or is silent for a second.
    pub async fn raw(&self, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut stream = self.tls().await?;
        stream.write_all(bytes).await?;
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(Ok(read @ 1..)) = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut buffer)).await {
            answer.extend_from_slice(&buffer[..read]);
        }
        Ok(answer)
    }
}

/// Drives a connection in a task of its own; the returned channel is closed when the connection ends.
fn driven(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> watch::Receiver<()> {
    let (open, ended) = watch::channel(());
    tokio::spawn(async move {
        // An error is reported to the requests that wait for a reply.
        let _ = connection.await;
        drop(open);
    });
    ended
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    sender: Sender,
    ended: watch::Receiver<()>,
}

#[derive(Debug)]
enum Sender {
    /// HTTP/1.1: one request at a time.
    One(http1::SendRequest<BoxBody<Bytes, Infallible>>),
    /// HTTP/2: cloned for requests at once.
    Two(http2::SendRequest<BoxBody<Bytes, Infallible>>),
}

impl Connection {
    /// Sends a request and reads the whole reply.
    pub async fn send(&mut self, request: Outgoing) -> anyhow::Result<Reply> {
        let Self { sender, ended } = self;
        // A request that is sent at the moment at which the connection ends may get neither a reply nor an error.
        let forgotten = async {
            let _ = ended.changed().await;
            tokio::time::sleep(FORGOTTEN).await;
        };
        tokio::select! {
            reply = sender.send(request) => reply,
            () = forgotten => bail!("the connection ended without a reply"),
        }
    }

    /// Returns whether another request can be sent.
    pub fn is_open(&self) -> bool {
        match &self.sender {
            Sender::One(sender) => !sender.is_closed(),
            Sender::Two(sender) => !sender.is_closed(),
        }
    }

    /// Another handle of an HTTP/2 connection.
    pub fn share(&self) -> Self {
        match &self.sender {
            Sender::Two(sender) => Self { sender: Sender::Two(sender.clone()), ended: self.ended.clone() },
            Sender::One(_) => panic!("HTTP/1.1 carries one request at a time"),
        }
    }
}

impl Sender {
    async fn send(&mut self, request: Outgoing) -> anyhow::Result<Reply> {
        let started = Instant::now();
        let response = match self {
            Self::One(sender) => {
                sender.ready().await?;
                sender.send_request(request.into_http(Http::One)).await?
            }
            Self::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request.into_http(Http::Two)).await?
            }
        };
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Reply { status: parts.status, headers: parts.headers, body, took: started.elapsed() })
    }
}

/// Time in which a reply may still be on its way between two tasks after the connection has ended.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// The framing of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One piece, with its length.
    Length,
    /// Pieces of this many bytes, without a length.
    Pieces(usize),
    /// Pieces of this many bytes, and a trailer after them.
    Trailers(usize),
}

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    method: Method,
    path: String,
    headers: HeaderMap,
    /// Bytes of the body.
    pub body: Bytes,
    framing: Framing,
}

/// A POST request with JSON.
pub fn post(path: &str, body: Bytes) -> Outgoing {
    let request = Outgoing { method: Method::POST, path: path.to_owned(), headers: HeaderMap::new(), body, framing: Framing::Length };
    request.header("content-type", "application/json")
}

impl Outgoing {
    /// Adds a header, besides others of the same name.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.header_bytes(name, value.as_bytes())
    }

    /// Adds a header like [`Self::header`], with any bytes that HTTP allows.
    pub fn header_bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
        self
    }

    /// Removes all headers of a name.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    /// Replaces all headers of a name.
    pub fn replace(self, name: &str, value: &str) -> Self {
        self.without(name).header(name, value)
    }

    /// Sets another method.
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Sets another path.
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Sets another framing of the body.
    pub fn framed(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    fn into_http(self, http: Http) -> Request<BoxBody<Bytes, Infallible>> {
        let body = match self.framing {
            Framing::Length => Full::new(self.body).boxed(),
            Framing::Pieces(size) | Framing::Trailers(size) => {
                let mut frames: Vec<_> = self.body.chunks(size.max(1)).map(|piece| Frame::data(Bytes::copy_from_slice(piece))).collect();
                if matches!(self.framing, Framing::Trailers(_)) {
                    frames.push(Frame::trailers(HeaderMap::from_iter([(
                        HeaderName::from_static("x-trailer"),
                        HeaderValue::from_static("1"),
                    )])));
                }
                StreamBody::new(stream::iter(frames.into_iter().map(Ok))).boxed()
            }
        };
        let uri = match http {
            Http::One => self.path,
            Http::Two => format!("https://localhost{}", self.path),
        };
        let mut request = Request::builder().method(self.method).uri(uri).body(body).unwrap();
        *request.headers_mut() = self.headers;
        if http == Http::One {
            request.headers_mut().insert("host", HeaderValue::from_static("localhost"));
            if matches!(self.framing, Framing::Trailers(_)) {
                request.headers_mut().insert("trailer", HeaderValue::from_static("x-trailer"));
            }
        }
        request
    }
}

/// The reply to a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status code.
    pub status: StatusCode,
    /// Headers of the reply.
    pub headers: HeaderMap,
    /// Body of the reply.
    pub body: Bytes,
    /// Time from the first byte sent to the last one received.
    pub took: Duration,
}

impl Reply {
    /// Returns whether step-ca reads the reply as an allow: any status below 400 and `"allow":true`.
    pub fn allows(&self) -> bool {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        self.status.as_u16() < 400 && body["allow"] == true
    }

    /// The code of the error in the body; empty if there is none.
    pub fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The member `data` of the body.
    pub fn data(&self) -> serde_json::Value {
        serde_json::from_slice::<serde_json::Value>(&self.body).unwrap_or_default()["data"].clone()
    }

    /// Status and error code, for comparisons in tests.
    pub fn verdict(&self) -> (u16, String) {
        (self.status.as_u16(), if self.allows() { "allow".to_owned() } else { self.code() })
    }
}
