//! `stepward serve`: the service, from start to drain.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use engine::follow::follow;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use settings::Environment;
use store::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::exit::Exit;
use crate::config::Entrance;
use crate::folders;
use crate::pages::Status;
use crate::runtime::{Configured, Runtime, Source};
use crate::server::Sockets;
use crate::telemetry;
use engine::metrics::Metrics;

/// What `serve` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward serve --config /etc/stepward/stepward.toml
  PROVIDER=file FILE_PATH=devices.json stepward serve     as step-posture-connector

SIGHUP reads everything again. SIGTERM drains for at most 5 s; a second one ends at once.
Exit codes: 0 ended, 1 could not start or a socket failed, 2 usage.")]
pub struct ServeArgs {
    /// Configuration file; without it the variables of step-posture-connector
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    pub config: Option<PathBuf>,
}

/// Runs the service that a configuration describes.
///
/// # Errors
/// See [`serve`].
pub async fn run(args: ServeArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let manager = environment.variable("NOTIFY_SOCKET").map(str::to_owned);
    serve(Box::new(Configured::new(args.config, environment.clone())), manager).await?;
    Ok(Exit::Done)
}

/// Serves until SIGTERM or SIGINT and everything under way is answered, or until a second signal. `manager` is the socket of a
/// service manager that waits to hear that the start went well.
///
/// # Errors
/// What was wrong at the start, or which socket failed.
pub async fn serve(source: Box<dyn Source>, manager: Option<String>) -> anyhow::Result<()> {
    // SIGHUP is listened for first of all: without a listener it ends the process, and a start may take a while.
    let hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    open_more_files();
    let metrics = Arc::new(Metrics::default());
    let config = source.config().map_err(anyhow::Error::msg)?;
    let (log, folders) = (config.log.clone(), folders::warnings(&config, &source.files(), folders::Looks::Service));
    // Held until the end: dropping it writes the lines that are left.
    let _lines = telemetry::start(&log, Arc::clone(&metrics))?;
    folders.iter().for_each(|warning| tracing::warn!("{warning}"));
    let counts = Arc::clone(&metrics);
    let mut runtime = tokio::task::spawn_blocking(move || Runtime::start(source, counts)).await?.map_err(anyhow::Error::msg)?;
    let config = Arc::clone(&runtime.config());
    // The store is opened before the sockets: where another service has the store, its sockets are left alone.
    let store = Store::open(&runtime.store_settings().map_err(anyhow::Error::msg)?, metrics).await?;
    let sockets = Sockets::bind(&config.listen, Entrance::addresses(&config)).await?;
    runtime.keep_in(store).await.context("read the locks from the store")?;
    let runtime = Arc::new(runtime);
    let store = runtime.engine.store.clone();
    let (locks, fleet) = (Arc::clone(&runtime.engine.locks), Arc::clone(&runtime.engine.fleet));
    let telling = Arc::clone(&fleet);
    let following = tokio::spawn(async move { follow(&locks, &telling).await });
    if !store.keeps_decisions() {
        tracing::warn!("[store] enabled is false: locks and exemptions end with this process, and no decision is kept");
    }
    let status = Arc::new(Status::default());
    let (drain, draining) = watch::channel(false);
    let mut ends = Ends::new()?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        sockets = %config.listen.sockets.display(),
        admin = %sockets.http_address()?,
        query = sockets.address(Entrance::Query).map(tracing::field::display),
        filter = sockets.address(Entrance::Filter).map(tracing::field::display),
        webhooks = config.webhooks.len(),
        "serving"
    );
    status.ready();
    let mut serving = tokio::spawn(sockets.serve(Arc::clone(&runtime), Arc::clone(&status), draining));
    let watching = tokio::spawn(watch(runtime, hangup));
    if let Some(manager) = manager
        && let Err(error) = say_ready(&manager)
    {
        tracing::warn!(manager, %error, "the service manager was not told of the start, and waits for it");
    }
    tokio::select! {
        served = &mut serving => return served.context("serve")?,
        () = ends.next() => {}
    }
    watching.abort();
    status.draining();
    tracing::info!("draining");
    drain.send_replace(true);
    tokio::select! {
        served = &mut serving => served.context("serve")??,
        () = ends.next() => tracing::warn!("ended at once by a second signal"),
        () = tokio::time::sleep(DRAIN) => tracing::warn!("ended with requests under way: they took too long"),
    }
    if !fleet.settle(KEEP).await {
        tracing::warn!(
            "ended before the other services were told of the last events and purges: `stepward cache purge --all` at one of them"
        );
    }
    following.abort();
    if tokio::time::timeout(KEEP, store.close()).await.is_err() {
        tracing::warn!("ended before the last decisions were kept");
        store.say_what_is_owed();
    }
    tracing::info!("ended");
    Ok(())
}

/// Tells the service manager at this socket that the service is ready, as sd_notify(3) of systemd has it.
fn say_ready(manager: &str) -> std::io::Result<()> {
    let address = match manager.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(manager)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read holds the start up no longer than this.
    socket.set_write_timeout(Some(Duration::from_secs(1)))?;
    socket.send_to_addr(b"READY=1", &address).map(drop)
}

/// Takes as many open files as the system lets it: a shell gives a thousand, and clients may hold more connections.
fn open_more_files() {
    // Where the limit cannot be raised, the service goes on with what it has.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Reads again what changes, and at a SIGHUP everything. Runs apart from the rest: a file system that hangs holds up nothing else.
async fn watch(runtime: Arc<Runtime>, mut hangup: Signal) {
    let mut ticks = tokio::time::interval(WATCH);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let all = tokio::select! {
            _ = hangup.recv() => true,
            _ = ticks.tick() => false,
        };
        let runtime = Arc::clone(&runtime);
        let reload = tokio::task::spawn_blocking(move || if all { runtime.reload(&[]) } else { runtime.reload_changed() });
        if reload.await.is_err() {
            tracing::error!("a reload panicked; what was there before stays");
        }
    }
}

/// Signals that end a service.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Time between two looks at files: every stream has a change within a second, though the file has to stand still for one look.
const WATCH: Duration = Duration::from_millis(250);

/// Longest time for what is under way once the end was asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// Longest time for the disk to take the last decisions.
const KEEP: Duration = Duration::from_secs(1);
