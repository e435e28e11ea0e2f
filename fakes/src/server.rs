//! The HTTP server under every fake: it records requests, plays faults, and hands the rest to the service.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::device::Device;
use crate::fault::Fault;

/// A service, as it answers without faults.
pub trait Service: Send + Sync + 'static {
    /// Answers a request about these devices. `ignore_filter` is [`Fault::FilterIgnored`], which a service without a filter
    /// ignores.
    fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer;

    /// Whether a request is a login, to which the faults of other requests do not apply.
    fn is_login(&self, request: &Seen) -> bool {
        let _ = request;
        false
    }

    /// The identifier that a request asks for, as the service reads it; `None` if it asks for none.
    fn asked(&self, request: &Seen) -> Option<String> {
        let _ = request;
        None
    }
}

impl<T: Service + ?Sized> Service for Box<T> {
    fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
        (**self).answer(request, devices, ignore_filter)
    }

    fn is_login(&self, request: &Seen) -> bool {
        (**self).is_login(request)
    }

    fn asked(&self, request: &Seen) -> Option<String> {
        (**self).asked(request)
    }
}

/// An answer: status, headers, JSON.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// Headers besides the content type.
    pub headers: Vec<(&'static str, String)>,
    /// Body; a [`Value::String`] is sent as it is, as HTML.
    pub body: Value,
}

impl Answer {
    /// An answer with status 200 and JSON.
    pub fn json(body: Value) -> Self {
        Self { status: 200, headers: Vec::new(), body }
    }

    /// An answer with another status and JSON.
    pub fn status(status: u16, body: Value) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A request, as it was received.
#[derive(Clone, Debug)]
pub struct Seen {
    /// HTTP method.
    pub method: Method,
    /// Path, as it was sent.
    pub path: String,
    /// Parameters of the query, decoded, in order.
    pub query: Vec<(String, String)>,
    /// Headers of the request.
    pub headers: HeaderMap,
    /// Body of the request.
    pub body: Bytes,
}

impl Seen {
    /// The first value of a query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as JSON; null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as the fields of a form.
    pub fn form(&self) -> Vec<(String, String)> {
        url::form_urlencoded::parse(&self.body).into_owned().collect()
    }
}

/// A percent-decoded part of a path.
pub fn decoded(part: &str) -> String {
    let query = format!("part={}", part.replace('+', "%2B").replace('&', "%26"));
    url::form_urlencoded::parse(query.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

/// A running fake, which ends when it is dropped.
#[derive(Debug)]
pub struct Fake {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    service: Box<dyn Service>,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

#[derive(Debug, Default)]
struct Inner {
    devices: Arc<Vec<Device>>,
    /// Faults for the next requests that are not logins; `None` is an ordinary answer.
    next: VecDeque<Option<Fault>>,
    always: Option<Fault>,
    login: Option<Fault>,
    seen: Vec<Seen>,
    delay: Duration,
}

impl Fake {
    /// Starts a fake on a free port of this machine.
    pub async fn start(service: impl Service) -> Self {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), service).await.unwrap()
    }

    /// Starts a fake on an address.
    ///
    /// # Errors
    /// The system's error if the address cannot be listened on.
    pub async fn start_on(address: SocketAddr, service: impl Service) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State { service: Box::new(service), inner: Mutex::default() });
        let serving = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(serve(connection, Arc::clone(&serving)));
            }
        });
        Ok(Self { address, state, task })
    }

    /// The fake's address, `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops the fake: from then on its address refuses connections.
    pub async fn stop(mut self) {
        self.task.abort();
        // The task was ended on purpose, so its result does not matter.
        let _ = (&mut self.task).await;
    }

    /// Replaces all devices.
    pub fn set(&self, devices: Vec<Device>) {
        self.lock().devices = Arc::new(devices);
    }

    /// Adds a device.
    pub fn add(&self, device: Device) {
        Arc::make_mut(&mut self.lock().devices).push(device);
    }

    /// Removes the devices with this serial number.
    pub fn remove(&self, serial: &str) {
        Arc::make_mut(&mut self.lock().devices).retain(|device| device.serial != serial);
    }

    /// Changes the devices with this serial number.
    pub fn change(&self, serial: &str, change: impl Fn(&mut Device)) {
        Arc::make_mut(&mut self.lock().devices).iter_mut().filter(|device| device.serial == serial).for_each(change);
    }

    /// Plays a fault for each of the next `count` requests that are not logins.
    pub fn fail_next(&self, count: usize, fault: Fault) {
        self.lock().next.extend(std::iter::repeat_n(Some(fault), count));
    }

    /// Answers the next `count` requests that are not logins as usual, before the faults that are added after this.
    pub fn pass_next(&self, count: usize) {
        self.lock().next.extend(std::iter::repeat_n(None, count));
    }

    /// Plays a fault for every request that is not a login, until it is set to `None`.
    pub fn fail(&self, fault: Option<Fault>) {
        self.lock().always = fault;
    }

    /// Plays a fault for every login, until it is set to `None`.
    pub fn fail_logins(&self, fault: Option<Fault>) {
        self.lock().login = fault;
    }

    /// Delays every answer by this long.
    pub fn delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// The requests so far that were not logins.
    pub fn lookups(&self) -> Vec<Seen> {
        self.lock().seen.iter().filter(|seen| !self.state.service.is_login(seen)).cloned().collect()
    }

    /// The identifiers that were asked for so far, as the service read them.
    pub fn asked(&self) -> Vec<String> {
        self.lock().seen.iter().filter_map(|seen| self.state.service.asked(seen)).collect()
    }

    /// The number of logins so far.
    pub fn logins(&self) -> usize {
        self.lock().seen.iter().filter(|seen| self.state.service.is_login(seen)).count()
    }

    /// Forgets all requests so far.
    pub fn forget(&self) {
        self.lock().seen.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.inner.lock().unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Body = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, io::Error>> + Send>>>;

async fn serve(connection: TcpStream, state: Arc<State>) {
    // A fault may ask for a reset of the connection instead of an orderly end.
    let _ = connection.set_zero_linger();
    let service = service_fn(move |request| respond(request, Arc::clone(&state)));
    // Errors of the client's end of the connection do not matter.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
}

async fn respond(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Body>, io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let query = head.uri.query().unwrap_or_default();
    let seen = Seen {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        headers: head.headers,
        body,
    };
    let (fault, devices, delay) = {
        let mut inner = state.inner.lock().unwrap();
        inner.seen.push(seen.clone());
        let fault = if state.service.is_login(&seen) {
            inner.login.clone()
        } else {
            inner.next.pop_front().unwrap_or_else(|| inner.always.clone())
        };
        (fault, Arc::clone(&inner.devices), inner.delay)
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let answer = |ignore_filter| state.service.answer(&seen, &devices, ignore_filter);
    let whole = |answer: Answer| {
        let bytes = match &answer.body {
            Value::String(text) => Bytes::from(text.clone()),
            Value::Null if answer.status == 204 => Bytes::new(),
            body => Bytes::from(body.to_string()),
        };
        (bytes, answer)
    };
    Ok(match fault {
        None => send(whole(answer(false)), vec![]),
        Some(Fault::Status(status)) => send(whole(Answer::status(status, json!({"error": "fault"}))), vec![]),
        Some(Fault::RateLimited(after)) => {
            let mut answer = Answer::status(429, json!({"error": "rate limited"}));
            answer.headers.extend(after.value().map(|value| ("retry-after", value)));
            send(whole(answer), vec![])
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Slow(wait)) => {
            tokio::time::sleep(wait).await;
            send(whole(answer(false)), vec![])
        }
        Some(Fault::Drip) => {
            let (bytes, answer) = whole(answer(false));
            let drops = stream::iter(bytes.into_iter().map(|byte| Bytes::from(vec![byte]))).then(|drop| async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(Frame::data(drop))
            });
            response(&answer, Box::pin(drops), vec![])
        }
        Some(Fault::Reset) => return Err(io::Error::from(io::ErrorKind::ConnectionReset)),
        Some(Fault::Cut) => {
            let (bytes, answer) = whole(answer(false));
            let half = bytes.slice(..bytes.len() / 2);
            let length = (CONTENT_LENGTH.as_str(), bytes.len().to_string());
            let parts = stream::iter([Ok(Frame::data(half)), Err(io::Error::from(io::ErrorKind::ConnectionReset))]);
            response(&answer, Box::pin(parts), vec![length])
        }
        Some(Fault::CutChunked) => {
            let (bytes, answer) = whole(answer(false));
            let half = bytes.slice(..bytes.len() / 2);
            let parts = stream::iter([Ok(Frame::data(half)), Err(io::Error::from(io::ErrorKind::ConnectionReset))]);
            response(&answer, Box::pin(parts), vec![])
        }
        Some(Fault::Html) => {
            send(whole(Answer::json(Value::String("<!DOCTYPE html><html><body>Sign in</body></html>".to_owned()))), vec![])
        }
        Some(Fault::Body(bytes)) => send((Bytes::from(bytes), Answer::json(Value::Null)), vec![]),
        Some(Fault::Answer(status, bytes)) => send((Bytes::from(bytes), Answer::status(status, Value::Null)), vec![]),
        Some(Fault::Huge(bytes)) => {
            let chunk = Bytes::from(vec![b' '; 1 << 16]);
            let chunks = stream::iter((0..bytes.div_ceil(1 << 16)).map(move |_| Ok(Frame::data(chunk.clone()))));
            response(&Answer::json(Value::Null), Box::pin(chunks), vec![])
        }
        Some(Fault::WrongDevice) => {
            let others: Vec<_> = devices.iter().cloned().map(|device| Device { serial: format!("X{}", device.serial), ..device }).collect();
            send(whole(state.service.answer(&seen, &others, true)), vec![])
        }
        Some(Fault::FilterIgnored) => send(whole(answer(true)), vec![]),
        Some(Fault::Redirect(to)) => send(whole(Answer::status(302, Value::Null)), vec![(LOCATION.as_str(), to)]),
        Some(Fault::Gzip) => send(whole(answer(false)), vec![(CONTENT_ENCODING.as_str(), "gzip".to_owned())]),
        Some(Fault::ByteOrderMark) => {
            let (bytes, answer) = whole(answer(false));
            send((Bytes::from([b"\xef\xbb\xbf", &bytes[..]].concat()), answer), vec![])
        }
        Some(Fault::Twice(member)) => {
            let answer = answer(false);
            let mut left = Some(member);
            send((Bytes::from(twice(&answer.body, &mut left)), answer), vec![])
        }
        Some(Fault::Counted(count)) => {
            let mut answer = answer(false);
            counted(&mut answer.body, count);
            answer.headers.iter_mut().filter(|(name, _)| name.ends_with("count")).for_each(|(_, value)| *value = count.to_string());
            send(whole(answer), vec![])
        }
        Some(Fault::PlainText) => send(whole(answer(false)), vec![(CONTENT_TYPE.as_str(), "text/plain".to_owned())]),
    })
}

/// Writes a value as JSON in which one member appears twice: the one at which `left` has come to 0.
fn twice(value: &Value, left: &mut Option<usize>) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(|item| twice(item, left)).collect::<Vec<_>>().join(",")),
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| {
                let name = Value::from(name.as_str());
                let now = *left == Some(0);
                *left = left.and_then(|left| left.checked_sub(1));
                let member = format!("{name}:{}", twice(value, left));
                if now { format!("{name}:null,{member}") } else { member }
            });
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

/// Replaces every count in a value.
fn counted(value: &mut Value, count: u64) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| counted(item, count)),
        Value::Object(members) => members.iter_mut().for_each(|(name, value)| {
            if ["total", "totalCount", "count", "rows"].contains(&name.as_str()) && (value.is_u64() || value.is_string()) {
                *value = json!(count);
            } else {
                counted(value, count);
            }
        }),
        _ => {}
    }
}

fn send((bytes, answer): (Bytes, Answer), headers: Vec<(&'static str, String)>) -> Response<Body> {
    let length = (CONTENT_LENGTH.as_str(), bytes.len().to_string());
    let body = stream::once(async { Ok::<_, Infallible>(Frame::data(bytes)) }).map(|frame| frame.map_err(|never| match never {}));
    response(&answer, Box::pin(body), [vec![length], headers].concat())
}

fn response(
    answer: &Answer,
    body: Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, io::Error>> + Send>>,
    headers: Vec<(&'static str, String)>,
) -> Response<Body> {
    let mut response = Response::new(StreamBody::new(body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap();
    let html = matches!(answer.body, Value::String(_));
    let kind = if html { "text/html; charset=utf-8" } else { "application/json" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    for (name, value) in headers.iter().chain(&answer.headers) {
        response.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    response
}
