//! HTTP to device managements: one host, one deadline, bounded answers, and each fault as a kind of [`Unavailable`]. Tokens never
//! reach a log: nothing here prints a request.

mod jar;
mod permits;
mod pool;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use clock::OnceAMinute;
use futures::StreamExt as _;
use http::header::{CONTENT_ENCODING, DATE, RETRY_AFTER, SET_COOKIE};
use http::{HeaderMap, HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use posture::secret::Secret;
use reqwest::{Request, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

use crate::answer::Unavailable;
use crate::errand::Errand;
use crate::strict;
use jar::Jar;
use permits::Permits;
use pool::Pool;

/// The address of a service, and the bounds on its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address of the service: `https`, or plain `http` to this machine. Paths are appended to it.
    pub base_url: Url,
    /// PEM file of authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Number of requests at once. A single one leaves one more to lists; a login always has one of its own.
    pub connections: usize,
}

/// Reads the address of a service: `https`, or plain `http` on this machine for tests and proxies.
///
/// # Errors
/// The fault of the text, for people; never with a password of the address.
pub fn base_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|_| format!("`{text}` is not an address; write https://mdm.example.org"))?;
    let local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    // This check comes first, since the following messages show the text.
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("must be an address without user name, query and fragment".to_owned());
    }
    if url.scheme() != "https" && !(url.scheme() == "http" && local) {
        return Err(format!("`{text}` must begin with https://, since credentials go there"));
    }
    Ok(url)
}

/// Largest answer to a lookup, in bytes.
pub const LOOKUP: usize = 4 << 20;

/// Largest page of a list, in bytes.
pub const PAGE: usize = 32 << 20;

/// Most records of one list: beyond it a list is not complete.
pub const RECORDS: usize = 1 << 20;

/// A client of one service.
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool>,
    jar: Arc<Jar>,
    make: Arc<Make>,
    /// The client without cookies, made when it is first needed; `None` inside where it could not be made.
    bare: Arc<OnceLock<Option<reqwest::Client>>>,
    base_url: Url,
    permits: Arc<Permits>,
    health: Arc<Health>,
}

/// The maker of an HTTP client, with a jar or without.
type Make = dyn Fn(Option<Arc<Jar>>) -> Result<reqwest::Client, String> + Send + Sync;

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("base_url", &self.base_url.as_str())
            .field("pool", &self.pool)
            .field("jar", &self.jar)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client that keeps cookies: some services answer from another node without them.
    ///
    /// A TLS connection goes through the proxy that `HTTPS_PROXY` or `ALL_PROXY` names, unless `NO_PROXY` names the host. A
    /// connection to this machine, the only one in plain HTTP, never goes through a proxy: the proxy would read the token.
    ///
    /// # Errors
    /// The reason in words for the operator: a `ca_file` that cannot be read or holds no certificate.
    pub fn new(endpoint: &Endpoint) -> Result<Self, String> {
        let roots = match &endpoint.ca_file {
            None => Vec::new(),
            Some(path) => {
                let shown = path.display();
                let pem = settings::files::read(path, settings::files::CERTIFICATES)
                    .map_err(|error| format!("ca_file {shown} cannot be read: {error}"))?;
                let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| format!("ca_file {shown}: {error}"))?;
                if roots.is_empty() {
                    return Err(format!("ca_file {shown} holds no certificate"));
                }
                roots
            }
        };
        let jar = Arc::new(Jar::default());
        let proxied = may_be_proxied(&endpoint.base_url);
        let make: Arc<Make> = Arc::new(move |cookies: Option<Arc<Jar>>| {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("stepward/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT)
                .pool_idle_timeout(IDLE)
                .tcp_keepalive(PING_EVERY)
                // All requests go over one connection of HTTP/2: without pings a dead one would be used for ever.
                .http2_keep_alive_interval(PING_EVERY)
                .http2_keep_alive_timeout(PING_WAIT)
                .http2_keep_alive_while_idle(true)
                .redirect(reqwest::redirect::Policy::custom(|attempt| {
                    let first = attempt.previous().first();
                    let same = first.is_some_and(|first| same_origin(first, attempt.url()));
                    // A redirect to another host would give it the question about a device; one to the same host could go on for
                    // ever.
                    if same && attempt.previous().len() <= REDIRECTS { attempt.follow() } else { attempt.stop() }
                }));
            let builder = if proxied { builder } else { builder.no_proxy() };
            let builder = cookies.into_iter().fold(builder, reqwest::ClientBuilder::cookie_provider);
            let builder = roots.iter().cloned().fold(builder, reqwest::ClientBuilder::add_root_certificate);
            builder.build().map_err(|error| format!("cannot make an HTTP client: {error}"))
        });
        let pool = {
            let (make, jar) = (Arc::clone(&make), Arc::clone(&jar));
            Arc::new(Pool::new(move || make(Some(Arc::clone(&jar))))?)
        };
        let permits = Arc::new(Permits::new(endpoint.connections));
        Ok(Self { pool, jar, make, bare: Arc::default(), base_url: endpoint.base_url.clone(), permits, health: Arc::default() })
    }

    /// A client of the same service with one place of its own, for a request that all others wait for, such as a login.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { permits: Arc::new(Permits::new(1)), ..self.clone() }
    }

    /// The address of a path below the base; `query` is percent-encoded, names and values, a space as `%20`.
    pub fn url(&self, path: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.base_url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}{path}"));
        if !query.is_empty() {
            let pairs: Vec<String> = query.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect();
            url.set_query(Some(&pairs.join("&")));
        }
        url
    }

    /// The address of the service, below which all paths are.
    pub fn base_url(&self) -> &Url {
        &self.base_url
    }

    /// Returns whether a token may be sent to an address, such as that of a next page.
    pub fn is_own(&self, url: &Url) -> bool {
        same_origin(&self.base_url, url)
    }

    /// Begins a GET.
    pub fn get(&self, url: Url) -> RequestBuilder {
        self.pool.current().http.get(url)
    }

    /// Begins a POST.
    pub fn post(&self, url: Url) -> RequestBuilder {
        self.pool.current().http.post(url)
    }

    /// Sends a request and reads the whole answer, whatever its status.
    ///
    /// The one deadline is for everything: the wait for a place, the headers, and each byte of the body. A request that was never
    /// sent, or that had little time after others were answered ahead of it, is [`Unavailable::Busy`] and says nothing of the
    /// service. A request without an answer in time costs the connections, so that the next one dials anew.
    ///
    /// A 400 or 431 may be about the cookies: the request is sent once more without any, and they are dropped if the second
    /// answer is a success or 404. Any other second answer is ignored, since it may come from a node that does not know the
    /// token.
    ///
    /// # Errors
    /// [`Unavailable`] in one of the kinds `Timeout`, `Busy`, `Network`, `TooLarge`, `Protocol`.
    pub async fn send(&self, request: RequestBuilder, deadline: Instant, most: usize) -> Result<Reply, Unavailable> {
        let Ok(permit) = timeout_at(deadline, self.permits.take()).await else { return Err(Unavailable::Busy) };
        let late = || Fault::of(Errand::current().map_or(Unavailable::Timeout, |errand| errand.late()));
        let exchange = async {
            let request = request.build().map_err(fault)?;
            let (url, again) = (request.url().clone(), request.try_clone());
            let with_cookies = self.jar.has_any_for(&url);
            let reply = self.exchange(request, most).await?;
            let Some(again) = again.filter(|_| with_cookies && reply.may_mean_cookies()) else { return Ok(reply) };
            permit.answered();
            // A client apart sends the second request, so that other requests keep their cookies meanwhile.
            let Some(bare) = self.bare() else { return Ok(reply) };
            // The second request ends before the deadline, so that the first answer can still be given.
            let patience = deadline.checked_sub(LAST_WORD).unwrap_or(deadline);
            match timeout_at(patience, receive(bare, again, most)).await.unwrap_or(Err(Fault::of(Unavailable::Timeout))) {
                Ok(second) if second.status.is_success() || second.status == StatusCode::NOT_FOUND => {
                    self.jar.replace(&mut second.headers.get_all(SET_COOKIE).iter(), &url);
                    Ok(second)
                }
                // The cookies were not the cause.
                _ => Ok(reply),
            }
        };
        let reply = timeout_at(deadline, exchange).await.unwrap_or_else(|_| Err(late()));
        if matches!(reply, Ok(_) | Err(Fault { why: Unavailable::TooLarge | Unavailable::Protocol, .. })) {
            permit.answered();
        }
        drop(permit);
        self.health.tell(&self.base_url, &reply, Instant::now());
        reply.map_err(|fault| fault.why)
    }

    /// Sends a GET over the pool's connections, and returns the answer's status and headers before its body is read.
    ///
    /// # Errors
    /// The client's own errors, for a caller that explains them to people.
    pub async fn reach(&self, url: Url) -> Result<Response, reqwest::Error> {
        let made = self.pool.current();
        let waiting = self.pool.waiting(&made);
        let response = made.http.get(url).send().await;
        waiting.answered();
        response
    }

    /// The client without cookies; `None` where it cannot be made.
    fn bare(&self) -> Option<&reqwest::Client> {
        let made = self.bare.get_or_init(|| match (self.make)(None) {
            Ok(http) => Some(http),
            Err(error) => {
                tracing::warn!(error, "no HTTP client without cookies could be made");
                None
            }
        });
        made.as_ref()
    }

    async fn exchange(&self, request: Request, most: usize) -> Result<Reply, Fault> {
        let made = self.pool.current();
        let waiting = self.pool.waiting(&made);
        let reply = receive(&made.http, request, most).await;
        waiting.answered();
        reply
    }
}

async fn receive(http: &reqwest::Client, request: Request, most: usize) -> Result<Reply, Fault> {
    let asked = request.url().clone();
    let response = http.execute(request).await.map_err(fault)?;
    let (status, headers, redirected) = (response.status(), response.headers().clone(), *response.url() != asked);
    // No encoding was asked for, and a small compressed body can hold gigabytes.
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Fault::of(Unavailable::Protocol));
    }
    if response.content_length().is_some_and(|length| length > most as u64) {
        return Err(Fault::of(Unavailable::TooLarge));
    }
    let mut body = BytesMut::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(fault)?;
        if body.len().saturating_add(chunk.len()) > most {
            return Err(Fault::of(Unavailable::TooLarge));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Reply { status, headers, body: body.freeze(), redirected })
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    /// Status of the answer.
    pub status: StatusCode,
    /// Headers of the answer.
    pub headers: HeaderMap,
    /// Body of the answer, within the bound.
    pub body: Bytes,
    /// Whether the answer comes from another address than was asked.
    pub redirected: bool,
}

impl Reply {
    /// The answer itself, where its status is 200.
    ///
    /// # Errors
    /// The meaning of any other status: 401 [`Unavailable::AuthRejected`], 403 [`Unavailable::Forbidden`], 429
    /// [`Unavailable::RateLimited`], 5xx [`Unavailable::ServerError`], anything else [`Unavailable::Protocol`].
    pub fn ok(self) -> Result<Self, Unavailable> {
        match self.status {
            StatusCode::OK => Ok(self),
            StatusCode::UNAUTHORIZED => Err(Unavailable::AuthRejected),
            StatusCode::FORBIDDEN => Err(Unavailable::Forbidden),
            StatusCode::TOO_MANY_REQUESTS => Err(Unavailable::RateLimited(self.retry_after())),
            status if status.is_server_error() => Err(Unavailable::ServerError(self.retry_after())),
            _ => Err(Unavailable::Protocol),
        }
    }

    /// The answer to a question about one identifier, where its status is 200.
    ///
    /// # Errors
    /// The errors of [`Reply::ok`], but 400, 413, 414, 422 and 431 are [`Unavailable::Rejected`]: other identifiers can still be
    /// asked for.
    pub fn about_one(self) -> Result<Self, Unavailable> {
        if matches!(self.status.as_u16(), 400 | 413 | 414 | 422 | 431) { Err(Unavailable::Rejected) } else { self.ok() }
    }

    /// The body as JSON without repeated names.
    ///
    /// # Errors
    /// [`Unavailable::Protocol`]: a login page, half an answer, another schema, or JSON that contradicts itself; see [`strict`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Unavailable> {
        strict::read(&self.body).map_err(|_| Unavailable::Protocol)
    }

    /// Returns whether the refusal may be about the request's cookies: servers answer so to headers that are too large.
    fn may_mean_cookies(&self) -> bool {
        matches!(self.status, StatusCode::BAD_REQUEST | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
    }

    /// The time that `Retry-After` gives, in seconds or as a date (RFC 9110 10.2.3); `None` where it is absent, malformed or
    /// past.
    pub fn retry_after(&self) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()
    }

    /// Difference between the service's clock and ours, and whether ours is ahead; `None` where the answer has no date.
    pub fn clock_skew(&self) -> Option<(Duration, bool)> {
        let theirs = httpdate::parse_http_date(self.headers.get(DATE)?.to_str().ok()?).ok()?;
        let now = SystemTime::now();
        Some(match now.duration_since(theirs) {
            Ok(ahead) => (ahead, true),
            Err(error) => (error.duration(), false),
        })
    }
}

fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme() && one.host() == other.host() && one.port_or_known_default() == other.port_or_known_default()
}

/// Returns whether requests to this address may go through a proxy: only by TLS and to another machine.
pub fn may_be_proxied(url: &Url) -> bool {
    let here = match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => true,
    };
    url.scheme() == "https" && !here
}

/// A reason for which there is no answer, and its cause for the log.
#[derive(Debug)]
struct Fault {
    why: Unavailable,
    /// The words of the system or of TLS, without the address that was asked: it names a device.
    cause: String,
}

impl Fault {
    fn of(why: Unavailable) -> Self {
        Self { why, cause: why.text().to_owned() }
    }
}

fn fault(error: reqwest::Error) -> Fault {
    let why = if error.is_timeout() {
        Unavailable::Timeout
    } else if error.is_decode() {
        Unavailable::Protocol
    } else {
        Unavailable::Network
    };
    let error = error.without_url();
    // The innermost cause is kept: the layers above it only say that a request failed.
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    Fault { why, cause: cause.to_string() }
}

/// The service's reachability for the log: a failure is logged with its cause once a minute at most, and so is the end of an
/// outage that was logged.
#[derive(Debug, Default)]
struct Health(Mutex<Lately>);

#[derive(Debug, Default)]
struct Lately {
    outage: Option<Outage>,
    said: OnceAMinute,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    failures: u64,
    is_said: bool,
}

impl Health {
    fn tell(&self, base_url: &Url, reply: &Result<Reply, Fault>, now: Instant) {
        let address = base_url.origin().ascii_serialization();
        let (why, cause) = match reply {
            Ok(reply) if reply.status.is_server_error() || reply.status == StatusCode::TOO_MANY_REQUESTS => {
                ("refused", format!("it answers with the status {}", reply.status))
            }
            Ok(_) => {
                if let Some(Outage { since, failures, is_said: true }) = self.lock().outage.take() {
                    let seconds = now.saturating_duration_since(since).as_secs();
                    tracing::info!(address, seconds, failures, "the service can be asked again");
                }
                return;
            }
            // An answer that is too large, or that makes no sense, is still an answer; a request that had no time says nothing.
            Err(Fault { why: Unavailable::TooLarge | Unavailable::Protocol | Unavailable::Busy, .. }) => return,
            Err(Fault { why, cause }) => (why.as_str(), cause.clone()),
        };
        let mut lately = self.lock();
        let is_due = lately.said.is_due(now);
        let outage = lately.outage.get_or_insert(Outage { since: now, failures: 0, is_said: false });
        outage.failures += 1;
        if is_due {
            outage.is_said = true;
            tracing::warn!(address, why, cause, failures = outage.failures, "the service cannot be asked");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lately> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Percent-encodes a value, but for the unreserved characters of RFC 3986.
pub fn escaped(text: &str) -> String {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, RESERVED).to_string()
}

/// The value of a header with a secret, without the white space around it, behind a prefix such as `Bearer `. It is marked as
/// sensitive, so it does not print.
///
/// # Errors
/// The reason in words for the operator, who calls the secret `name`.
pub fn secret_header(name: &str, prefix: &str, secret: Option<&Secret>) -> Result<HeaderValue, String> {
    let secret = secret.map(Secret::expose).unwrap_or_default().trim_ascii();
    let mut value = HeaderValue::from_bytes(&[prefix.as_bytes(), secret].concat())
        .map_err(|_| format!("the secret of `{name}` holds characters that no header can"))?;
    value.set_sensitive(true);
    Ok(value)
}

const CONNECT: Duration = Duration::from_secs(2);
/// Time at the end of a deadline that is kept to give the first answer.
const LAST_WORD: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 3;
/// Time between two probes of a connection: an idle one is probed three times before it is closed.
const PING_EVERY: Duration = Duration::from_secs(15);
/// Time within which a connection has to answer a ping.
const PING_WAIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn client(base: &str) -> Client {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Client::new(&Endpoint { base_url: base.parse().unwrap(), ca_file: None, connections: 1 }).unwrap()
    }

    fn reply(status: u16, headers: &[(&'static str, &str)], body: &'static [u8]) -> Reply {
        let headers = headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect();
        Reply { status: StatusCode::from_u16(status).unwrap(), headers, body: Bytes::from_static(body), redirected: false }
    }

    #[test]
    fn a_query_is_one_literal_whatever_stands_in_it() {
        let url = client("https://mdm.example.org/base/").url("/devices", &[("filter", "a==\"X\"&b=c #%+/'")]);
        assert_eq!(url.as_str(), "https://mdm.example.org/base/devices?filter=a%3D%3D%22X%22%26b%3Dc%20%23%25%2B%2F%27");
    }

    #[test]
    fn only_the_own_host_gets_a_token() {
        let client = client("https://mdm.example.org");
        for (url, own) in [
            ("https://mdm.example.org/next?page=2", true),
            ("https://mdm.example.org:443/", true),
            ("http://mdm.example.org/", false),
            ("https://mdm.example.org:8443/", false),
            ("https://mdm.example.org.evil.example/", false),
            ("https://evil.example/mdm.example.org", false),
        ] {
            assert_eq!(client.is_own(&url.parse().unwrap()), own, "{url}");
        }
    }

    #[test]
    fn every_status_has_its_meaning() {
        for (status, expected) in [
            (401, Unavailable::AuthRejected),
            (403, Unavailable::Forbidden),
            (429, Unavailable::RateLimited(None)),
            (500, Unavailable::ServerError(None)),
            (503, Unavailable::ServerError(None)),
            (204, Unavailable::Protocol),
            (302, Unavailable::Protocol),
            (404, Unavailable::Protocol),
        ] {
            assert_eq!(reply(status, &[], b"").ok().unwrap_err(), expected, "{status}");
        }
        assert!(reply(200, &[], b"").ok().is_ok());
    }

    #[test]
    fn reads_retry_after_in_both_forms() {
        let after = |value: &str| reply(429, &[("retry-after", value)], b"").retry_after();
        assert_eq!(after("0"), Some(Duration::ZERO));
        assert_eq!(after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(after("99999"), Some(Duration::from_secs(99_999)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!(after(&date).is_some_and(|after| after > Duration::from_secs(50) && after <= Duration::from_secs(60)));
        for nothing in ["soon", "-1", "1.5", "Thu, 01 Jan 1970 00:00:00 GMT"] {
            assert_eq!(after(nothing), None, "{nothing}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_reached_is_no_answer() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plain = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut connection, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
            }
        });
        // The addresses: a name that nobody has (RFC 6761), a port where nobody listens, and a server that speaks no TLS.
        for base in ["https://mdm.invalid".to_owned(), format!("https://{nobody}"), format!("https://{plain}")] {
            let client = client(&base);
            let answer = client.send(client.get(client.url("/", &[])), Instant::now() + Duration::from_secs(5), LOOKUP).await;
            assert!(matches!(answer, Err(Unavailable::Network | Unavailable::Timeout)), "{base}: {answer:?}");
        }
        serving.abort();
    }

    /// Reads one request of HTTP/1.1 without a body, and returns its head.
    async fn head(connection: &mut tokio::net::TcpStream) -> Option<String> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            tokio::io::AsyncReadExt::read_exact(connection, &mut byte).await.ok()?;
            head.push(byte[0]);
        }
        String::from_utf8(head).ok()
    }

    /// Answers every request of every connection; returns the heads that came.
    fn serving(listener: tokio::net::TcpListener, answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Arc<Mutex<Vec<String>>> {
        let (heads, answer) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(answer));
        let kept = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                tokio::spawn(async move {
                    while let Some(head) = head(&mut connection).await {
                        let said = answer(&head);
                        kept.lock().unwrap().push(head);
                        say(&mut connection, &said).await;
                    }
                });
            }
        });
        heads
    }

    async fn say(connection: &mut tokio::net::TcpStream, text: &str) {
        tokio::io::AsyncWriteExt::write_all(connection, text.as_bytes()).await.unwrap();
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn a12_a_page_of_a_list_holds_up_no_lookup() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = client(&format!("http://{}", listener.local_addr().unwrap()));
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                tokio::spawn(async move {
                    if head(&mut connection).await.is_some_and(|head| head.starts_with("GET /list")) {
                        std::future::pending::<()>().await;
                    }
                    say(&mut connection, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                });
            }
        });
        let page = client.send(client.get(client.url("/list", &[])), soon(), PAGE);
        let lookup = Errand::new(crate::errand::Whom::Known, Instant::now());
        let lookup = lookup.run(client.send(client.get(client.url("/", &[])), Instant::now() + Duration::from_secs(2), LOOKUP));
        tokio::select! {
            biased;
            reply = page => panic!("{reply:?}"),
            reply = lookup => assert_eq!(reply.unwrap().status, StatusCode::OK, "there is one connection"),
        }
    }

    #[tokio::test]
    async fn b4_a_jar_that_the_service_refuses_is_dropped() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = client(&format!("http://{}", listener.local_addr().unwrap()));
        let heads = serving(listener, |head| {
            if head.contains("cookie: ") {
                return "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".to_owned();
            }
            let cookies: String = (0..30).map(|number| format!("set-cookie: c{number}={}; Path=/\r\n", "x".repeat(3000))).collect();
            format!("HTTP/1.1 200 OK\r\n{cookies}content-length: 2\r\n\r\n{{}}")
        });
        for _ in 0..3 {
            let reply = client.send(client.get(client.url("/", &[])), soon(), LOOKUP).await.unwrap();
            assert_eq!(reply.status, StatusCode::OK);
        }
        assert_eq!(heads.lock().unwrap().len(), 5, "the second and the third one were sent twice");
    }

    #[tokio::test]
    async fn b4_a_question_that_is_refused_for_itself_costs_no_cookies() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = client(&format!("http://{}", listener.local_addr().unwrap()));
        let heads = serving(listener, |head| {
            if head.starts_with("GET /odd") {
                "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".to_owned()
            } else {
                "HTTP/1.1 200 OK\r\nset-cookie: node=7; Path=/\r\ncontent-length: 0\r\n\r\n".to_owned()
            }
        });
        for (path, status) in [("/", 200), ("/odd", 400), ("/", 200)] {
            let reply = client.send(client.get(client.url(path, &[])), soon(), LOOKUP).await.unwrap();
            assert_eq!(reply.status, status, "{path}");
        }
        let cookies: Vec<bool> = heads.lock().unwrap().iter().map(|head| head.contains("cookie: node=7")).collect();
        assert_eq!(cookies, [false, true, false, true]);
    }

    /// Two nodes behind a cookie: a request without it comes to the other node, which does not know the token.
    #[tokio::test]
    async fn b4_what_another_node_says_of_the_token_is_not_believed_and_costs_nobody_the_cookie() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = client(&format!("http://{}", listener.local_addr().unwrap()));
        let heads = serving(listener, |head| {
            let (status, node) = match (head.starts_with("GET /login"), head.contains("cookie: node=1"), head.starts_with("GET /odd")) {
                (true, ..) => ("200 OK", 1),
                (false, true, true) => ("400 Bad Request", 1),
                (false, true, false) => ("200 OK", 1),
                (false, false, _) => ("401 Unauthorized", 2),
            };
            format!("HTTP/1.1 {status}\r\nset-cookie: node={node}; Path=/\r\ncontent-length: 0\r\n\r\n")
        });
        for (path, status) in [("/login", 200), ("/odd", 400), ("/", 200), ("/odd", 400), ("/", 200)] {
            let reply = client.send(client.get(client.url(path, &[])), soon(), LOOKUP).await.unwrap();
            assert_eq!(reply.status, status, "{path}");
        }
        assert_eq!(heads.lock().unwrap().len(), 7, "what was refused for itself was sent twice");
    }

    /// The test runs itself in another process, whose environment names a proxy for everything.
    #[tokio::test]
    async fn c3_a_token_for_this_machine_goes_to_no_proxy() {
        const SERVICE: &str = "STEPWARD_TEST_SERVICE";
        if let Ok(service) = std::env::var(SERVICE) {
            let client = client(&service);
            let request = client.get(client.url("/", &[])).bearer_auth("the-token");
            let reply = client.send(request, soon(), LOOKUP).await.unwrap();
            assert_eq!(&reply.body[..], b"the service");
            return;
        }
        let (service, proxy) =
            (tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(), tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
        let proxy_url = format!("http://{}", proxy.local_addr().unwrap());
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "http::tests::c3_a_token_for_this_machine_goes_to_no_proxy", "--nocapture"]);
        for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
            child.env(name, &proxy_url);
        }
        child.env_remove("NO_PROXY").env_remove("no_proxy").env_remove("REQUEST_METHOD").kill_on_drop(true);
        let mut child = child.env(SERVICE, format!("http://{}", service.local_addr().unwrap())).spawn().unwrap();
        tokio::select! {
            accepted = service.accept() => {
                let (mut connection, _) = accepted.unwrap();
                assert!(head(&mut connection).await.unwrap().contains("Bearer the-token"));
                say(&mut connection, "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nthe service").await;
            }
            accepted = proxy.accept() => panic!("the proxy was asked: {:?}", head(&mut accepted.unwrap().0).await),
        }
        assert!(child.wait().await.unwrap().success());
    }

    /// A server of HTTP/2 whose first connection answers once and then never again; its other connections answer.
    async fn silent_after_one() -> (Client, tempfile::TempDir) {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let chain = vec![made.cert.der().clone()];
        let mut config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A client that leaves during the handshake is not waited for.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let served = AtomicUsize::new(0);
                    let service = hyper::service::service_fn(move |_| {
                        let silent = connection == 0 && served.fetch_add(1, Ordering::SeqCst) > 0;
                        async move {
                            if silent {
                                std::future::pending::<()>().await;
                            }
                            Ok::<_, std::convert::Infallible>(http::Response::new(axum::body::Body::from(connection.to_string())))
                        }
                    });
                    let executor = hyper_util::rt::TokioExecutor::new();
                    let serving = hyper::server::conn::http2::Builder::new(executor);
                    // A client may end its connection as it likes.
                    let _ = serving.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
                });
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, made.cert.pem()).unwrap();
        let base_url = format!("https://{address}").parse().unwrap();
        (Client::new(&Endpoint { base_url, ca_file: Some(ca_file), connections: 5 }).unwrap(), folder)
    }

    #[test]
    fn g12_a_device_in_the_place_of_the_authorities_is_refused() {
        let base_url: Url = "https://mdm.example.org".parse().unwrap();
        for path in ["/dev/zero", "/"] {
            let endpoint = Endpoint { base_url: base_url.clone(), ca_file: Some(path.into()), connections: 1 };
            let error = Client::new(&endpoint).unwrap_err();
            assert!(error.contains("cannot be read") && error.contains(path), "{error}");
        }
    }

    #[tokio::test]
    async fn g2_a_connection_that_falls_silent_is_used_once_more_and_not_again() {
        let (client, _folder) = silent_after_one().await;
        let ask = |within: Duration| {
            let client = client.clone();
            async move {
                let reply = client.send(client.get(client.url("/", &[])), Instant::now() + within, LOOKUP).await?;
                Ok::<_, Unavailable>(String::from_utf8(reply.body.to_vec()).unwrap())
            }
        };
        assert_eq!(ask(Duration::from_secs(5)).await, Ok("0".to_owned()));
        assert_eq!(ask(Duration::from_millis(700)).await, Err(Unavailable::Timeout));
        for _ in 0..3 {
            assert_eq!(ask(Duration::from_secs(5)).await, Ok("1".to_owned()), "a new connection, which stays");
        }
    }

    #[tokio::test]
    async fn g2_whoever_gives_up_before_the_deadline_costs_the_connection_as_well() {
        let (client, _folder) = silent_after_one().await;
        let ask = || client.send(client.get(client.url("/", &[])), soon(), LOOKUP);
        assert!(ask().await.is_ok());
        assert!(tokio::time::timeout(Duration::from_millis(700), ask()).await.is_err());
        assert_eq!(&ask().await.unwrap().body[..], b"1");
    }

    #[test]
    fn c3_only_tls_to_another_machine_may_be_proxied() {
        for (url, proxied) in [
            ("https://mdm.example.org", true),
            ("https://192.0.2.1:8443", true),
            ("http://mdm.example.org", false),
            ("http://127.0.0.1:8080", false),
            ("https://127.0.0.1:8443", false),
            ("https://127.1.2.3", false),
            ("https://LOCALHOST", false),
            ("https://a.localhost", false),
            ("https://[::1]", false),
            ("https://[::ffff:127.0.0.1]", false),
        ] {
            assert_eq!(may_be_proxied(&url.parse().unwrap()), proxied, "{url}");
        }
    }

    #[test]
    fn a_secret_in_a_header_has_no_space_around_it_and_does_not_print() {
        let secret = |text: &str| Secret::new(text.as_bytes().to_vec());
        let value = secret_header("token", "Bearer ", Some(&secret(" hidden\n"))).unwrap();
        assert_eq!(value.as_bytes(), b"Bearer hidden");
        assert!(!format!("{value:?}").contains("hidden"));
        let error = secret_header("token", "", Some(&secret("hid\nden"))).unwrap_err();
        assert!(error.contains("`token`") && !error.contains("hid"), "{error}");
    }

    #[test]
    fn a_login_page_is_no_answer() {
        for body in [&b"<html>"[..], b"", b"{", b"\xff\xfe"] {
            assert_eq!(reply(200, &[], body).json::<serde_json::Value>(), Err(Unavailable::Protocol));
        }
        assert_eq!(reply(200, &[], b"\xef\xbb\xbf[1]").json::<Vec<u8>>(), Ok(vec![1]));
    }

    #[test]
    fn an_address_is_https_or_this_machine_and_never_shows_a_password() {
        for good in
            ["https://mdm.example.org", "https://mdm.example.org/base", "http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"]
        {
            assert!(base_url(good).is_ok(), "{good}");
        }
        for bad in ["http://mdm.example.org", "ftp://localhost", "mdm.example.org", "https://a/?b=c", "https://a/#b"] {
            assert!(base_url(bad).is_err(), "{bad}");
        }
        for bad in ["http://user:hidden@mdm.example.org", "https://user:hidden@mdm.example.org", "https://:hidden@mdm.example.org"] {
            assert!(!base_url(bad).unwrap_err().contains("hidden"), "{bad}");
        }
    }
}
