//! The sockets: one for each role, each serving nothing but its own services, and plain HTTP for metrics and health.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::unistd::AccessFlags;
use proto::envoy::authorization_server::{self, AuthorizationServer};
use proto::v1::admin_service_server::{self, AdminServiceServer};
use proto::v1::filter_service_server::{self, FilterServiceServer};
use proto::v1::posture_service_server::{self, PostureServiceServer};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{self, Health as HealthService, HealthServer};
use tonic_health::server::HealthReporter;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use tonic_reflection::server::v1alpha;
use tower::layer::util::{Identity, Stack};
use tower::{Layer, Service};

use crate::admin::{Admin, Status};
use crate::authz::Guard;
use crate::config::Listen;
use crate::query::Posture;
use crate::runtime::Runtime;
use crate::webhook::Filters;

mod authority;
mod budget;
mod places;
mod quota;
mod roles;
mod tls;

pub use authority::Names;
pub use quota::{Client, Kept, Load, Quota, Taken};
pub use roles::may;
pub use tls::{Certificates, Guest};

use authority::AnyAuthority;
use budget::Budget;
use places::{Holder, Local, Places};
use quota::Streams;
use roles::Gate;
use tls::Refusals;

/// Everything that listens, bound and not yet served.
#[derive(Debug)]
pub struct Sockets {
    filter: Socket,
    query: Socket,
    push: Socket,
    admin: Socket,
    http: TcpListener,
    tcp: Option<TcpListener>,
}

/// One UNIX socket, removed when it is dropped.
#[derive(Debug)]
struct Socket {
    listener: Option<std::os::unix::net::UnixListener>,
    file: SocketFile,
    uids: Option<Vec<u32>>,
    places: usize,
}

/// The file of a socket, and which one it is.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    made: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another service may have made its own in this place meanwhile.
        let is_ours = |found: &std::fs::Metadata| (found.dev(), found.ino()) == self.made;
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| is_ours(&found)) {
            // It is stale either way, and the next start removes what is left.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Sockets {
    /// Binds all of them; `query` is where questions are taken over TCP. Where something is in the way, no socket of whoever
    /// serves there is touched.
    ///
    /// # Errors
    /// Where an address or a socket is taken by a running process, or cannot be made.
    pub async fn bind(listen: &Listen, query: Option<SocketAddr>) -> anyhow::Result<Self> {
        for role in ROLES {
            is_free(&listen.socket(role)).await?;
        }
        let http = bind(listen.admin).await?;
        let tcp = match query {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        Ok(Self {
            filter: Socket::bind(listen, "filter").await?,
            query: Socket::bind(listen, "query").await?,
            push: Socket::bind(listen, "push").await?,
            admin: Socket::bind(listen, "admin").await?,
            http,
            tcp,
        })
    }

    /// Where plain HTTP listens.
    ///
    /// # Errors
    /// As the system gives them.
    pub fn http_address(&self) -> io::Result<SocketAddr> {
        self.http.local_addr()
    }

    /// Where questions are taken over TCP, if they are.
    pub fn query_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `drain` turns true and everything that was under way has been answered.
    pub async fn serve(self, runtime: Arc<Runtime>, status: Arc<Status>, drain: watch::Receiver<bool>) -> anyhow::Result<()> {
        let Self { filter, query, mut push, admin, http, tcp } = self;
        // Before anybody is let in, who could hold what these take.
        let (for_filter, for_query) = (Apart::new()?, Apart::new()?);
        let described = runtime.snapshot().config.query.reflection;
        let (reflection, reflection_alpha) = (described.then(reflection).transpose()?, described.then(reflection_alpha).transpose()?);
        let reflected = if described { &[REFLECTION, REFLECTION_ALPHA][..] } else { &[] };
        let mut health = Health::default();
        let filter_health = health.of(&[filter_service_server::SERVICE_NAME]).await;
        let queries = [posture_service_server::SERVICE_NAME, authorization_server::SERVICE_NAME];
        let query_health = health.of(&[&queries, reflected].concat()).await;
        let admin_health = health.of(&[admin_service_server::SERVICE_NAME]).await;

        // Each listener has bounds of its own: whoever may use one takes nothing from the others.
        let mut serving = JoinSet::new();
        let filters = FilterServiceServer::new(Filters::new(Arc::clone(&runtime), drain.clone())).max_decoding_message_size(QUESTION);
        let budget = Budget::new("filter.sock", FILTER_BYTES);
        let mut router = server(FILTER_WINDOW).layer(Streams::new()).layer(budget.clone());
        let router = router.add_service(filters).add_service(filter_health);
        serving.spawn(alone(("filter", for_filter), filter, ending(drain.clone(), budget), router)?);
        let posture = || {
            let posture = Posture::new(Arc::clone(&runtime), drain.clone());
            PostureServiceServer::new(posture).max_decoding_message_size(REQUEST).accept_compressed(CompressionEncoding::Gzip)
        };
        let guard = AuthorizationServer::new(Guard::new(Arc::clone(&runtime)))
            .max_decoding_message_size(AUTHORIZATION)
            .accept_compressed(CompressionEncoding::Gzip);
        if let Some(listener) = tcp {
            let refusals = Arc::new(Refusals::new(Arc::clone(&runtime.metrics)));
            let gate = Gate::new(Arc::clone(&runtime), Arc::clone(&refusals));
            let server = server(WINDOW).max_connection_age(tls::CONNECTION).layer(gate).layer(Streams::new());
            let budget = Budget::new("tcp", QUERY_BYTES);
            let mut server = server.layer(budget.clone());
            // A network is what answers are made smaller for; on this machine that would cost more than it saves.
            let router = server.add_service(posture().send_compressed(CompressionEncoding::Gzip));
            let router = router.add_service(guard.clone()).add_service(query_health.clone());
            let router = router.add_optional_service(reflection.clone()).add_optional_service(reflection_alpha.clone());
            let connections = tls::incoming(listener, Arc::clone(&runtime), refusals);
            let (drain, answered) = ending(drain.clone(), budget);
            serving.spawn(async move {
                tokio::select! {
                    served = router.serve_with_incoming_shutdown(connections, drained(drain)) => served.context("serve questions over TCP"),
                    () = answered => Ok(()),
                }
            });
        }
        let budget = Budget::new("query.sock", QUERY_BYTES);
        let mut router = server(WINDOW).layer(Streams::new()).layer(budget.clone());
        let router = router.add_service(posture()).add_service(guard).add_service(query_health);
        let router = router.add_optional_service(reflection).add_optional_service(reflection_alpha);
        serving.spawn(alone(("query", for_query), query, ending(drain.clone(), budget), router)?);
        let service = AdminServiceServer::new(Admin::new(Arc::clone(&runtime)))
            .max_decoding_message_size(QUESTION)
            .accept_compressed(CompressionEncoding::Gzip);
        let budget = Budget::new("admin.sock", ADMIN_BYTES);
        let mut router = server(WINDOW).layer(Streams::new()).layer(budget.clone());
        serving.spawn(serve(admin, ending(drain.clone(), budget), router.add_service(service).add_service(admin_health)));

        let events = serve_events(push.incoming()?.boxed(), crate::push::routes(Arc::clone(&runtime)), drain.clone());
        serving.spawn(async move {
            events.await;
            // The file goes with it.
            drop(push);
            Ok(())
        });

        // Metrics and health stay up until the rest has ended.
        let pages = tokio::spawn(serve_pages(http, crate::admin::pages(runtime, status)));
        let ends = drain.clone();
        tokio::spawn(async move {
            drained(ends).await;
            health.end().await;
        });
        let mut result = Ok(());
        while let Some(served) = serving.join_next().await {
            if let Err(error) = served.context("serve a socket").flatten() {
                result = Err(error);
                serving.abort_all();
            }
        }
        pages.abort();
        result
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

/// What a start would find of its sockets, groups and addresses.
#[derive(Clone, Debug, Default)]
pub struct Examined {
    /// Why it could not start.
    pub mistakes: Vec<String>,
    /// What is only in the way where it is not the service itself.
    pub notes: Vec<String>,
}

/// Looks at groups, folders, sockets and addresses as [`Sockets::bind`] uses them, and makes none of them.
pub fn examine(listen: &Listen, query: Option<SocketAddr>) -> Examined {
    let mut found = Examined::default();
    // Of these alone: the folder above those of the roles is root's, or on a file system that nobody writes to.
    let mut folders = BTreeSet::new();
    let mut groups = BTreeMap::new();
    for role in ROLES {
        folders.insert(listen.folder(role));
        groups.extend(listen.group(role).map(|name| (name, role)));
        let path = listen.socket(role);
        if std::fs::symlink_metadata(&path).is_ok_and(|there| !there.file_type().is_socket()) {
            found.mistakes.push(format!("{} is there and is no socket", path.display()));
        }
    }
    for (name, role) in groups {
        match group(name) {
            Ok(gid) if may_give(gid) => {}
            Ok(_) => found.mistakes.push(format!(
                "this user is not in the group `{name}`, and could not give {role}.sock to it: run this as the service's user, or add that user to the group"
            )),
            Err(error) => found.mistakes.push(format!("{error:#}")),
        }
    }
    for folder in folders {
        let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        let (shown, missing) = (there.display(), folder.display());
        if !there.is_dir() {
            found.mistakes.push(format!("{shown} is no folder, and the sockets are in {missing}"));
        } else if let Err(errno) = nix::unistd::eaccess(there, AccessFlags::W_OK | AccessFlags::X_OK) {
            let denied = io::Error::from(errno);
            found.mistakes.push(format!("nothing can be made in {shown}, and the sockets are in {missing}: {denied}"));
        }
    }
    for address in std::iter::once(listen.admin).chain(query) {
        match bound(address) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                found.notes.push(format!("{address} is in use: by the service, if it runs; otherwise it could not start"));
            }
            Err(error) => found.mistakes.push(format!("listen on {address}: {error}")),
        }
    }
    found
}

/// Whether this process may give a file of its own to a group (chown(2)).
fn may_give(gid: nix::unistd::Gid) -> bool {
    let own = nix::unistd::getgroups().unwrap_or_default();
    nix::unistd::Uid::effective().is_root() || nix::unistd::Gid::effective() == gid || own.contains(&gid)
}

/// Takes an address as [`bind`] does, and lets nobody in.
fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// When a listener drains, and what resolves once it has nothing more to wait for.
type Ending = (watch::Receiver<bool>, BoxFuture<'static, ()>);

/// Streams without an end would hold the end of a listener: what is not answered does, and no more.
fn ending(drain: watch::Receiver<bool>, budget: Budget) -> Ending {
    let draining = drain.clone();
    let answered = async move {
        drained(draining).await;
        budget.is_answered().await;
    };
    (drain, answered.boxed())
}

/// Serves a socket until the service drains.
async fn serve<L>(mut socket: Socket, (drain, answered): Ending, router: Router<L>) -> anyhow::Result<()>
where
    L: Layer<Routes> + Clone,
    L::Service: Service<http::Request<Body>, Response = http::Response<Body>, Error = std::convert::Infallible> + Clone + Send + 'static,
    <L::Service as Service<http::Request<Body>>>::Future: Send + 'static,
{
    let connections = socket.incoming()?.map(|connection| connection.map(AnyAuthority::new));
    tokio::select! {
        served = router.serve_with_incoming_shutdown(connections, drained(drain)) => served.context("serve a socket"),
        () = answered => Ok(()),
    }
}

/// What one thread runs on. A runtime may not be dropped from within another one, unless nobody waits for its end.
struct Apart(Option<tokio::runtime::Runtime>);

impl Apart {
    fn new() -> anyhow::Result<Self> {
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime").map(|runtime| Self(Some(runtime)))
    }

    fn run<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        self.0.as_ref().map(|runtime| runtime.block_on(what))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Serves a socket on a thread of its own, where nothing else that the service does can hold a webhook up, and a question
/// wakes no other thread.
fn alone(
    (name, runtime): (&'static str, Apart),
    socket: Socket,
    ends: Ending,
    router: Router<Stack<Budget, Stack<Streams, Identity>>>,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + use<>> {
    let (sender, ended) = oneshot::channel();
    let thread = move || {
        // Nobody listens any more where the service has ended already.
        let _ = runtime.run(serve(socket, ends, router)).map(|served| sender.send(served));
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(thread).context("start a thread")?;
    Ok(async move { ended.await.with_context(|| format!("the thread `{name}` ended"))? })
}

/// A server whose windows hold a burst of questions. What came in and was not taken yet is in no budget, so they are not
/// larger: over a socket, room is made in microseconds. Streams that a client ends as soon as it opens them, and those that it
/// opens wrongly, end its connection once there are too many.
fn server(window: u32) -> Server {
    Server::builder()
        .initial_stream_window_size(window)
        .initial_connection_window_size(window)
        .max_concurrent_streams(Some(CALLS))
        .http2_max_header_list_size(Some(HEADERS))
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        .http2_max_local_error_reset_streams(Some(RESETS))
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
}

/// The services of each socket, as `grpc.health.v1.Health` tells of them.
#[derive(Default)]
struct Health(Vec<(HealthReporter, &'static str)>);

impl Health {
    /// Tells of these, of itself, and of the socket as a whole, which has no name.
    async fn of(&mut self, services: &[&'static str]) -> HealthServer<impl HealthService + use<>> {
        let (reporter, service) = tonic_health::server::health_reporter();
        for name in services.iter().chain(&["", HEALTH]) {
            reporter.set_service_status(name, ServingStatus::Serving).await;
            self.0.push((reporter.clone(), name));
        }
        service.max_decoding_message_size(ABOUT).accept_compressed(CompressionEncoding::Gzip)
    }

    /// Tells that none of them is served any more.
    async fn end(&self) {
        for (reporter, name) in &self.0 {
            reporter.set_service_status(name, ServingStatus::NotServing).await;
        }
    }
}

/// Describes what is served beside it. Of `ext_authz` there is no description: only Envoy calls it, and knows it.
fn described() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::POSTURE)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        .include_reflection_service(false)
}

fn reflection() -> anyhow::Result<ServerReflectionServer<impl ServerReflection>> {
    let service = described().build_v1().context("describe the services")?;
    Ok(service.max_decoding_message_size(ABOUT).accept_compressed(CompressionEncoding::Gzip))
}

/// The same by the name that it had before, which is the only one that Python's and older clients know.
fn reflection_alpha() -> anyhow::Result<v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>> {
    let service = described().build_v1alpha().context("describe the services")?;
    Ok(service.max_decoding_message_size(ABOUT).accept_compressed(CompressionEncoding::Gzip))
}

/// Serves pages to whoever reaches the address, so each connection has one request and little time, and they are counted: they
/// must not take the descriptors that the sockets need. Where there are as many as there may be, the oldest gives way, so that
/// whoever says nothing keeps nobody out.
async fn serve_pages(listener: TcpListener, pages: axum::Router) {
    let mut readers: VecDeque<AbortHandle> = VecDeque::new();
    let mut told = Told::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                told.not_taken("metrics and health", &error);
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        readers.retain(|reader| !reader.is_finished());
        if readers.len() >= READERS
            && let Some(oldest) = readers.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(pages.clone());
        let reader = tokio::spawn(async move {
            let connection = http1::Builder::new().keep_alive(false).max_buf_size(BUFFER).serve_connection(TokioIo::new(stream), service);
            // Either way it is over, and what went wrong is the reader's.
            let _ = tokio::time::timeout(READING, connection).await;
        });
        readers.push_back(reader.abort_handle());
    }
}

/// Serves events to Envoy, which keeps its connections; what is under way at the drain ends by itself.
async fn serve_events(
    mut connections: impl Stream<Item = io::Result<Local>> + Send + Unpin,
    routes: axum::Router,
    drain: watch::Receiver<bool>,
) {
    let drained = drained(drain);
    tokio::pin!(drained);
    loop {
        let connection = tokio::select! {
            () = &mut drained => return,
            connection = connections.next() => connection,
        };
        let Some(Ok(connection)) = connection else { continue };
        let service = TowerToHyperService::new(routes.clone());
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(READING)
                .max_buf_size(BUFFER)
                .serve_connection(TokioIo::new(connection), service);
            // What went wrong is the other side's to see.
            let _ = connection.await;
        });
    }
}

/// Resolves once `drain` is true.
pub async fn drained(mut drain: watch::Receiver<bool>) {
    // The sender lives as long as the process; were it gone, ending is right as well.
    let _ = drain.wait_for(|draining| *draining).await;
}

impl Socket {
    /// Makes the socket of a role where nobody can reach it, and moves it to its place once it has its group and its mode: in
    /// between, whoever has the right to the folder could connect whatever the mode will be.
    async fn bind(listen: &Listen, role: &str) -> anyhow::Result<Self> {
        let group = listen.group(role).map(group).transpose()?;
        let own = |path: &Path, mode| {
            if group.is_some() {
                std::os::unix::fs::chown(path, None, group.map(nix::unistd::Gid::as_raw))
                    .with_context(|| format!("give {} its group", path.display()))?;
            }
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
                .with_context(|| format!("set the mode of {}", path.display()))
        };
        let folder = listen.folder(role);
        make_folder(&listen.sockets, 0o755)?;
        if make_folder(&folder, 0o750)? && listen.role_folders {
            own(&folder, 0o750)?;
        }
        let path = listen.socket(role);
        is_free(&path).await?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove the stale {}", path.display()));
            }
            _ => {}
        }
        let closed = Closed::make(&folder, role)?;
        let made = closed.0.join(MADE);
        let listener = std::os::unix::net::UnixListener::bind(&made).with_context(|| format!("listen on {}", path.display()))?;
        own(&made, 0o660)?;
        let metadata = std::fs::symlink_metadata(&made).with_context(|| format!("look at {}", made.display()))?;
        let file = SocketFile { path: path.clone(), made: (metadata.dev(), metadata.ino()) };
        std::fs::rename(&made, &path).with_context(|| format!("move a socket to {}", path.display()))?;
        let uids = listen.uids.get(role).cloned();
        let uids = uids.or_else(|| ROOT_AND_SERVICE.contains(&role).then(|| vec![0, nix::unistd::Uid::effective().as_raw()]));
        let places = if role == "filter" { FILTERS } else { PLACES };
        Ok(Self { listener: Some(listener), file, uids, places })
    }

    /// Connections of those who may connect; where there are too many, an older one gives way.
    fn incoming(&mut self) -> anyhow::Result<impl Stream<Item = io::Result<Local>> + Send + use<>> {
        let listener = self.listener.take().context("a socket is served once")?;
        listener.set_nonblocking(true).context("prepare a socket")?;
        let listener = UnixListener::from_std(listener).context("prepare a socket")?;
        let uids = self.uids.take();
        let path = self.file.path.clone();
        let places = Places::new(self.places);
        let (mut told, mut failed) = (Told::default(), Told::default());
        let connections = UnixListenerStream::new(listener).then(|connection| async {
            if connection.is_err() {
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
            connection
        });
        Ok(connections.filter_map(move |connection| {
            if let Err(error) = &connection {
                failed.not_taken(&path.display().to_string(), error);
            }
            let admitted = connection.map(|stream| {
                let uid = stream.peer_cred().map(|credentials| credentials.uid()).ok();
                if uids.as_ref().is_some_and(|uids| uid.is_none_or(|uid| !uids.contains(&uid))) {
                    if told.is_due() {
                        tracing::warn!(socket = %path.display(), uid, "connection of a user who may not connect");
                    }
                    return None;
                }
                let place = places.take_newest(Holder::of(&stream));
                Some(Local::new(stream, place))
            });
            std::future::ready(admitted.transpose())
        }))
    }
}

/// What others can bring about as often as they like: one a minute is logged.
#[derive(Debug, Default)]
struct Told(Option<Instant>);

impl Told {
    fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= MINUTE);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }

    fn not_taken(&mut self, listener: &str, error: &io::Error) {
        if self.is_due() {
            tracing::error!(listener, %error, "a connection could not be taken");
        }
    }
}

/// A folder that only this user can look into, removed when it is dropped.
struct Closed(PathBuf);

impl Closed {
    fn make(beside: &Path, role: &str) -> anyhow::Result<Self> {
        // Its name is no longer than that of the socket, whose path has a limit.
        let closed = Self(beside.join(format!(".{role}")));
        // One of a start that was killed.
        closed.remove();
        std::fs::DirBuilder::new().mode(0o700).create(&closed.0).with_context(|| format!("make the folder {}", closed.0.display()))?;
        Ok(closed)
    }

    fn remove(&self) {
        // What is in the way is named by whoever makes it anew.
        let _ = std::fs::remove_file(self.0.join(MADE));
        let _ = std::fs::remove_dir(&self.0);
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Makes a folder that nobody else may write to, whatever the umask; false where it is there.
fn make_folder(path: &Path, mode: u32) -> anyhow::Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).with_context(|| format!("make the folder {}", path.display()))?;
    Ok(true)
}

/// # Errors
/// Where somebody listens on a socket, or something else is in its place.
async fn is_free(path: &Path) -> anyhow::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("look at {}", path.display())),
        Ok(metadata) if !metadata.file_type().is_socket() => bail!("{} is there and is no socket", path.display()),
        Ok(_) => {}
    }
    if UnixStream::connect(path).await.is_ok() {
        bail!("another stepward serves {}", path.display());
    }
    Ok(())
}

fn group(name: &str) -> anyhow::Result<nix::unistd::Gid> {
    if let Ok(id) = name.parse() {
        // To chown(2) the last one means that the group stays as it is.
        anyhow::ensure!(id != u32::MAX, "{id} is no group's id");
        return Ok(nix::unistd::Gid::from_raw(id));
    }
    let group = nix::unistd::Group::from_name(name).with_context(|| format!("look up the group `{name}`"))?;
    Ok(group.with_context(|| format!("there is no group `{name}`"))?.gid)
}

/// Longest question in bytes: the largest body that can be configured, a certificate chain and the headers of a trace. A
/// captured one that an operator wants explained is as long.
const QUESTION: usize = crate::config::LARGEST_BODY as usize + (256 << 10);

/// Roles that by default are for root and for the service's own user alone: who has them can lock, exempt and unlock.
pub const ROOT_AND_SERVICE: [&str; 1] = ["admin"];

/// Name of a socket until it has its place.
const MADE: &str = "s";

/// The roles that there are sockets for.
pub const ROLES: [&str; 4] = ["filter", "query", "push", "admin"];

/// How the paths of services begin whose calls take any number of messages.
const FILTER_SERVICE: &str = "/stepward.v1.FilterService/";
const REFLECTION_SERVICE: &str = "/grpc.reflection.";

/// How the paths of calls begin whose streams have no end of their own, nor anything in them that has to be answered.
const ENDLESS: [&str; 3] = ["/grpc.health.", REFLECTION_SERVICE, "/stepward.v1.PostureService/Watch"];

/// Bytes that all clients of a listener have in flight at most, together a third of what the unit gives the service. The
/// longest answer there is, to a thousand checks with everything that was looked at, has room beside another one.
const FILTER_BYTES: usize = 128 << 20;
const QUERY_BYTES: usize = 192 << 20;
const ADMIN_BYTES: usize = 64 << 20;

/// Bytes that may come in on a connection and wait to be taken; of filters there are many connections, and HTTP/2 has no
/// smaller window by itself. SECURITY.md has what all of them come to.
const WINDOW: u32 = 256 << 10;
const FILTER_WINDOW: u32 = 64 << 10;

/// Calls of a connection at once, and bytes of the headers of one.
const CALLS: u32 = 64;
const HEADERS: u32 = 16 << 10;

/// Streams of a connection that are kept although they ended before anybody looked at them.
const RESETS: usize = 20;

/// Bytes of a connection of HTTP/1.1 that wait to be taken.
const BUFFER: usize = 64 << 10;

/// Connections to one socket at once: whoever asks questions has one.
const PLACES: usize = 256;
/// Those to the filters' socket: more than the streams that there may be, of which each has a connection.
const FILTERS: usize = crate::webhook::STREAMS + 512;
const MINUTE: Duration = Duration::from_secs(60);

/// Readers of pages at once, and the time that each has.
const READERS: usize = 128;
const READING: Duration = Duration::from_secs(5);

/// How long to wait where a connection cannot be taken: out of descriptors, most likely, and it would fail again at once.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Longest question of Envoy's external authorization, in bytes: headers, a certificate, and a body that a route may add.
const AUTHORIZATION: usize = 1 << 20;

/// Longest request of health and reflection, in bytes: a name. A stream keeps room for it as long as it is open.
const ABOUT: usize = 16 << 10;

/// Names of the services about services.
const HEALTH: &str = health_server::SERVICE_NAME;
const REFLECTION: &str = tonic_reflection::pb::v1::server_reflection_server::SERVICE_NAME;
const REFLECTION_ALPHA: &str = tonic_reflection::pb::v1alpha::server_reflection_server::SERVICE_NAME;

/// Longest request of people and machines, in bytes. One that is compressed is as long once it is not.
const REQUEST: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_no_groups_id() {
        assert!(group("4294967295").is_err() && group("4294967294").is_ok());
    }

    #[test]
    fn b_what_waits_on_all_connections_together_is_bounded_and_security_md_says_so() {
        let mebibytes = |connections: usize, window: u32| (connections * usize::try_from(window).unwrap()) >> 20;
        let all = [mebibytes(FILTERS, FILTER_WINDOW), mebibytes(PLACES, WINDOW), mebibytes(tls::PLACES, WINDOW)];
        let told = include_str!("../../SECURITY.md").lines().find(|line| line.starts_with("| bytes that wait to be taken |")).unwrap();
        let [filter, socket, tcp] = all;
        assert!(
            told.contains(&format!("{filter} MiB on `filter.sock`, {socket} on `query.sock`, {tcp} over TCP, {socket} on `admin.sock`"))
        );
        // A quarter of what the unit gives the service, were all of them taken at once.
        assert!(filter + 2 * socket + tcp <= 512, "{all:?}");
    }

    #[test]
    fn an_ending_service_leaves_the_socket_that_another_one_has_made_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("query.sock");
        let made = || {
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            (listener, SocketFile { path: path.clone(), made: (metadata.dev(), metadata.ino()) })
        };
        let (_first, file) = made();
        // Moved and not removed, so that the second cannot get its inode.
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        let (_second, other) = made();
        drop(file);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        drop(other);
        assert!(!path.exists());
    }
}
