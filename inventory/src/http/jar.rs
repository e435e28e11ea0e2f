//! Cookies of one service: some services answer from another node without them. The number and size of kept cookies is bounded,
//! and no cookie outlives a refusal.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cookie::{Cookie, Expiration};
use http::HeaderValue;
use reqwest::cookie::CookieStore;
use time::OffsetDateTime;
use tokio::time::Instant;
use url::Url;

/// The jar of one client, for the one host that the client talks to. Its content does not print.
#[derive(Default)]
pub(super) struct Jar(Mutex<Content>);

/// The cookies of a jar, the oldest first.
#[derive(Default)]
struct Content(VecDeque<Kept>);

struct Kept {
    name: String,
    value: String,
    path: String,
    /// Whether the cookie goes over TLS only.
    secure: bool,
    until: Option<Instant>,
}

impl Jar {
    /// Drops all cookies, and keeps those that an answer to a request without cookies sets.
    pub(super) fn replace(&self, headers: &mut dyn Iterator<Item = &HeaderValue>, url: &Url) {
        *self.lock() = Content::default();
        self.set_cookies(headers, url);
    }

    /// Returns whether a request to this address would carry cookies.
    pub(super) fn has_any_for(&self, url: &Url) -> bool {
        let now = Instant::now();
        self.lock().0.iter().any(|kept| kept.fits(url, now))
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CookieStore for Jar {
    fn set_cookies(&self, headers: &mut dyn Iterator<Item = &HeaderValue>, url: &Url) {
        // One answer cannot push out more than the newest cookies; a list without end is not read to its end.
        for header in headers.take(MOST_SET) {
            let Some(cookie) = header.to_str().ok().filter(|text| text.len() <= LONGEST_HEADER).and_then(|text| Cookie::parse(text).ok())
            else {
                continue;
            };
            self.lock().set(&cookie, url);
        }
    }

    fn cookies(&self, url: &Url) -> Option<HeaderValue> {
        let now = Instant::now();
        let content = self.lock();
        let pairs: Vec<String> =
            content.0.iter().filter(|kept| kept.fits(url, now)).map(|kept| format!("{}={}", kept.name, kept.value)).collect();
        if pairs.is_empty() { None } else { HeaderValue::from_str(&pairs.join("; ")).ok() }
    }
}

impl fmt::Debug for Jar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Jar({})", self.lock().0.len())
    }
}

impl Content {
    fn set(&mut self, cookie: &Cookie<'_>, url: &Url) {
        // RFC 6265 5.3: a cookie for a domain that this host is not in is not kept.
        if cookie.domain().is_some_and(|domain| !url.host_str().is_some_and(|host| is_within(host, domain))) {
            return;
        }
        let path = match cookie.path() {
            Some(path) if path.starts_with('/') => path.to_owned(),
            _ => default_path(url),
        };
        let is_it = |kept: &Kept| kept.name == cookie.name() && kept.path == path;
        self.0.retain(|kept| !is_it(kept));
        let lifetime = lifetime(cookie);
        let sound = !cookie.name().is_empty() && [cookie.name(), cookie.value()].iter().all(|text| text.bytes().all(is_octet));
        if !sound || lifetime.is_some_and(|left| left.is_zero()) {
            return;
        }
        self.keep(Kept {
            name: cookie.name().to_owned(),
            value: cookie.value().to_owned(),
            path,
            secure: cookie.secure().unwrap_or_default(),
            until: lifetime.map(|left| Instant::now() + left),
        });
    }

    /// Adds a cookie in the place of one with the same name and path, and drops the oldest where there are too many, or too many
    /// bytes.
    fn keep(&mut self, new: Kept) {
        self.0.retain(|kept| kept.name != new.name || kept.path != new.path);
        if new.size() > LONGEST {
            return;
        }
        self.0.push_back(new);
        while self.0.len() > MOST || self.size() > MOST_BYTES {
            self.0.pop_front();
        }
    }

    fn size(&self) -> usize {
        self.0.iter().map(Kept::size).sum()
    }
}

impl Kept {
    /// Bytes that the cookie takes in a request, and its path in memory.
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + self.path.len() + "=; ".len()
    }

    fn fits(&self, url: &Url, now: Instant) -> bool {
        let path = url
            .path()
            .strip_prefix(self.path.as_str())
            .is_some_and(|rest| rest.is_empty() || self.path.ends_with('/') || rest.starts_with('/'));
        path && (!self.secure || url.scheme() == "https") && self.until.is_none_or(|until| now < until)
    }
}

/// The remaining lifetime of a cookie; `None` where it states none.
fn lifetime(cookie: &Cookie<'_>) -> Option<Duration> {
    let left = match (cookie.max_age(), cookie.expires()) {
        (Some(left), _) => left,
        (None, Some(Expiration::DateTime(at))) => at - OffsetDateTime::now_utc(),
        (None, _) => return None,
    };
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO).min(LONGEST_LIFE))
}

/// Returns whether a host is a domain or below it (RFC 6265 5.1.3).
fn is_within(host: &str, domain: &str) -> bool {
    let domain = domain.trim_start_matches('.');
    let below = host.len().checked_sub(domain.len()).is_some_and(|cut| {
        host.get(cut..).is_some_and(|end| end.eq_ignore_ascii_case(domain))
            && (cut == 0 || host.get(..cut).is_some_and(|front| front.ends_with('.')))
    });
    !domain.is_empty() && below
}

/// The folder of an address, which is a cookie's path where it states none (RFC 6265 5.1.4).
fn default_path(url: &Url) -> String {
    match url.path().rsplit_once('/') {
        Some((folder, _)) if !folder.is_empty() => folder.to_owned(),
        _ => "/".to_owned(),
    }
}

/// Returns whether a byte may stand in a cookie: the octets of RFC 6265 4.1.1, and besides them space, quote, comma and
/// backslash.
const fn is_octet(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b';'
}

/// Most cookies that are kept.
const MOST: usize = 32;
/// Longest cookie, in bytes.
const LONGEST: usize = 4096;
/// Most bytes of all cookies: servers take 8 KiB of headers, and other headers have to fit in as well.
const MOST_BYTES: usize = 6 << 10;
/// Most cookies that one answer may set.
const MOST_SET: usize = 64;
/// Longest header that sets a cookie, in bytes.
const LONGEST_HEADER: usize = 8 << 10;
/// Longest life of a cookie, a day: services set cookies anew after it.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn url(path: &str) -> Url {
        format!("https://mdm.example.org{path}").parse().unwrap()
    }

    fn set(jar: &Jar, at: &str, cookies: &[&str]) {
        let headers: Vec<HeaderValue> = cookies.iter().map(|text| HeaderValue::from_str(text).unwrap()).collect();
        jar.set_cookies(&mut headers.iter(), &url(at));
    }

    fn sent(jar: &Jar, path: &str) -> String {
        jar.cookies(&url(path)).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    }

    #[test]
    fn b4_cookies_without_end_stay_within_a_bound() {
        let jar = Jar::default();
        for answer in 0..2400 {
            let cookies: Vec<String> = (0..90).map(|number| format!("c{answer}-{number}=v; Path=/p{number}")).collect();
            set(&jar, "/", &cookies.iter().map(String::as_str).collect::<Vec<_>>());
            let content = jar.lock();
            assert!(content.0.len() <= MOST && content.size() <= MOST_BYTES, "{} {}", content.0.len(), content.size());
        }
        assert!(!jar.lock().0.is_empty());
    }

    #[test]
    fn b4_large_cookies_make_no_request_that_servers_refuse() {
        let jar = Jar::default();
        let cookies: Vec<String> = (0..30).map(|number| format!("c{number}={}; Path=/", "x".repeat(3000))).collect();
        set(&jar, "/", &cookies.iter().map(String::as_str).collect::<Vec<_>>());
        assert!((1..8192).contains(&sent(&jar, "/").len()));
        set(&jar, "/", &[&format!("huge={}; Path=/", "x".repeat(LONGEST))]);
        assert!(!sent(&jar, "/").contains("huge"));
    }

    #[tokio::test(start_paused = true)]
    async fn cookies_go_where_they_belong_and_end_when_they_say() {
        let jar = Jar::default();
        set(
            &jar,
            "/api/v1/token",
            &["a=1; Path=/", "b=2", "c=3; Path=/other", "d=4; Domain=example.org; Path=/", "e=5; Domain=evil.example; Path=/"],
        );
        assert_eq!(sent(&jar, "/api/v1/devices"), "a=1; b=2; d=4");
        assert_eq!(sent(&jar, "/api/v10"), "a=1; d=4");
        set(
            &jar,
            "/",
            &["a=9; Path=/", "d=; Path=/; Max-Age=0", "f=6; Path=/; Max-Age=60", "g=7; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT"],
        );
        assert_eq!(sent(&jar, "/"), "a=9; f=6");
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(sent(&jar, "/"), "a=9");
        set(&jar, "/", &["s=1; Path=/; Secure", "=nameless; Path=/", "nonsense"]);
        assert_eq!(sent(&jar, "/"), "a=9; s=1");
        let plain = jar.cookies(&"http://mdm.example.org/".parse().unwrap()).unwrap();
        assert_eq!(plain, "a=9");
    }

    #[test]
    fn b4_what_an_answer_without_cookies_sets_takes_the_place_of_all() {
        let jar = Jar::default();
        set(&jar, "/", &["a=1; Path=/", "b=2; Path=/"]);
        assert_eq!(format!("{jar:?}"), "Jar(2)", "its content does not print");
        jar.replace(&mut [HeaderValue::from_static("b=3; Path=/")].iter(), &url("/"));
        assert_eq!(sent(&jar, "/"), "b=3");
        jar.replace(&mut [].iter(), &url("/"));
        assert!(!jar.has_any_for(&url("/")));
    }
}
