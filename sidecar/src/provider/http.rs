//! HTTP to device managements: one host, one deadline, bounded answers, and every fault in one of the words of
//! [`Unavailable`]. Tokens never reach a log: nothing here prints a request.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::header::{CONTENT_ENCODING, DATE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::RequestBuilder;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::Unavailable;

/// Where a service is, and how it may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `https`, or plain `http` to this machine. Paths are put behind it.
    pub base_url: Url,
    /// Authorities to trust besides the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// Requests at once.
    pub connections: usize,
}

/// Largest answer to a lookup, in bytes.
pub const LOOKUP: usize = 4 << 20;

/// Largest page of a list, in bytes.
pub const PAGE: usize = 32 << 20;

/// A client of one service.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base_url: Url,
    permits: Arc<Semaphore>,
}

impl Client {
    /// Makes a client that keeps cookies: some services answer from another node without them.
    ///
    /// # Errors
    /// In words for the operator: a `ca_file` that cannot be read or holds no certificate.
    pub fn new(endpoint: &Endpoint) -> Result<Self, String> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("stepward/", env!("CARGO_PKG_VERSION")))
            .cookie_store(true)
            .connect_timeout(CONNECT)
            .pool_idle_timeout(IDLE)
            .redirect(reqwest::redirect::Policy::custom(|attempt| {
                let first = attempt.previous().first();
                let same = first.is_some_and(|first| same_origin(first, attempt.url()));
                // To another host a redirect would carry the question about a device, and to the same one for ever.
                if same && attempt.previous().len() <= REDIRECTS { attempt.follow() } else { attempt.stop() }
            }));
        if let Some(path) = &endpoint.ca_file {
            let shown = path.display();
            let pem = std::fs::read(path).map_err(|error| format!("ca_file {shown} cannot be read: {error}"))?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| format!("ca_file {shown}: {error}"))?;
            if roots.is_empty() {
                return Err(format!("ca_file {shown} holds no certificate"));
            }
            for root in roots {
                builder = builder.add_root_certificate(root);
            }
        }
        let http = builder.build().map_err(|error| format!("cannot make an HTTP client: {error}"))?;
        Ok(Self { http, base_url: endpoint.base_url.clone(), permits: Arc::new(Semaphore::new(endpoint.connections.max(1))) })
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

    /// The host and scheme that it talks to.
    pub fn base_url(&self) -> &Url {
        &self.base_url
    }

    /// Whether an address, of a next page for instance, is one that a token may be sent to.
    pub fn is_own(&self, url: &Url) -> bool {
        same_origin(&self.base_url, url)
    }

    /// A GET.
    pub fn get(&self, url: Url) -> RequestBuilder {
        self.http.get(url)
    }

    /// A POST.
    pub fn post(&self, url: Url) -> RequestBuilder {
        self.http.post(url)
    }

    /// Sends a request and reads the whole answer, whatever its status.
    ///
    /// The deadline is one for everything: waiting for a permit, the headers, and each byte of the body.
    ///
    /// # Errors
    /// [`Unavailable`] in one of the kinds `Timeout`, `Network`, `TooLarge`, `Protocol`.
    pub async fn send(&self, request: RequestBuilder, deadline: Instant, most: usize) -> Result<Reply, Unavailable> {
        let exchange = async {
            let _permit = self.permits.acquire().await.map_err(|_| Unavailable::Network)?;
            let response = request.send().await.map_err(|error| fault(&error))?;
            let (status, headers) = (response.status(), response.headers().clone());
            // None was asked for, and a small one can hold gigabytes.
            if headers.get(CONTENT_ENCODING).is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
                return Err(Unavailable::Protocol);
            }
            if response.content_length().is_some_and(|length| length > most as u64) {
                return Err(Unavailable::TooLarge);
            }
            let mut body = BytesMut::new();
            let mut chunks = response.bytes_stream();
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|error| fault(&error))?;
                if body.len().saturating_add(chunk.len()) > most {
                    return Err(Unavailable::TooLarge);
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Reply { status, headers, body: body.freeze() })
        };
        timeout_at(deadline, exchange).await.unwrap_or(Err(Unavailable::Timeout))
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, within the bound.
    pub body: Bytes,
}

impl Reply {
    /// The answer itself, where its status is 200.
    ///
    /// # Errors
    /// What another status means: 401 [`Unavailable::AuthRejected`], 403 [`Unavailable::Forbidden`], 429
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

    /// The body as JSON, a byte order mark left aside.
    ///
    /// # Errors
    /// [`Unavailable::Protocol`]: a login page, half an answer, another schema.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Unavailable> {
        let body = self.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.body);
        serde_json::from_slice(body).map_err(|_| Unavailable::Protocol)
    }

    /// `Retry-After`, in seconds or as a date (RFC 9110 10.2.3); none where it is absent, malformed or past.
    pub fn retry_after(&self) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()
    }

    /// How far the service's clock is from ours, and whether ours is ahead.
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

fn fault(error: &reqwest::Error) -> Unavailable {
    if error.is_timeout() {
        Unavailable::Timeout
    } else if error.is_decode() {
        Unavailable::Protocol
    } else {
        Unavailable::Network
    }
}

/// A value percent-encoded but for the unreserved characters of RFC 3986.
pub fn escaped(text: &str) -> String {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, RESERVED).to_string()
}

const CONNECT: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn client(base: &str) -> Client {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Client::new(&Endpoint { base_url: base.parse().unwrap(), ca_file: None, connections: 1 }).unwrap()
    }

    fn reply(status: u16, headers: &[(&'static str, &str)], body: &'static [u8]) -> Reply {
        let headers = headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect();
        Reply { status: StatusCode::from_u16(status).unwrap(), headers, body: Bytes::from_static(body) }
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
        // A name that nobody has (RFC 6761), a port where nobody listens, and a server that speaks no TLS.
        for base in ["https://mdm.invalid".to_owned(), format!("https://{nobody}"), format!("https://{plain}")] {
            let client = client(&base);
            let answer = client.send(client.get(client.url("/", &[])), Instant::now() + Duration::from_secs(5), LOOKUP).await;
            assert!(matches!(answer, Err(Unavailable::Network | Unavailable::Timeout)), "{base}: {answer:?}");
        }
        serving.abort();
    }

    #[test]
    fn a_login_page_is_no_answer() {
        for body in [&b"<html>"[..], b"", b"{", b"\xff\xfe"] {
            assert_eq!(reply(200, &[], body).json::<serde_json::Value>(), Err(Unavailable::Protocol));
        }
        assert_eq!(reply(200, &[], b"\xef\xbb\xbf[1]").json::<Vec<u8>>(), Ok(vec![1]));
    }
}
