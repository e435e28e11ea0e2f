//! A proxy between a service and its PostgreSQL server, which loses what a test says.

use std::path::Path;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// The part of the server's words that a proxy passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Everything.
    Everything,
    /// Everything but notifications, as poolers do.
    NoNotification,
    /// Nothing: connections stay open, and nobody answers on them.
    Nothing,
}

/// A proxy on a UNIX socket of its own.
#[derive(Debug)]
pub struct Proxy {
    folder: TempDir,
    passes: watch::Sender<Passes>,
}

impl Proxy {
    /// Starts a proxy before the server whose socket is in a folder.
    pub fn start(server: &Path, passes: Passes) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let (server, (passes, told)) = (server.join(SOCKET), watch::channel(passes));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&server).await else { continue };
                let ((client_reads, client_writes), (server_reads, server_writes)) = (client.into_split(), server.into_split());
                let (told, also_told) = (told.clone(), told.clone());
                // Either end ends with the other.
                tokio::spawn(async move {
                    tokio::select! {
                        () = questions(client_reads, server_writes, told) => {}
                        () = answers(server_reads, client_writes, also_told) => {}
                    }
                });
            }
        });
        Self { folder, passes }
    }

    /// Has the proxy pass on something else from now on.
    pub fn pass(&self, passes: Passes) {
        self.passes.send_replace(passes);
    }

    /// The URL of a database behind the proxy.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://stepward@/{database}?host={}", self.folder.path().display())
    }
}

async fn questions(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut told: watch::Receiver<Passes>) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if told.wait_for(|passes| *passes != Passes::Nothing).await.is_err() || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// Passes on messages of the server: a letter, the length of what follows with its own four bytes, and that.
async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut told: watch::Receiver<Passes>) {
    loop {
        let mut head = [0; 5];
        if from.read_exact(&mut head).await.is_err() {
            return;
        }
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut message = vec![0; usize::try_from(length).unwrap().saturating_sub(4)];
        if from.read_exact(&mut message).await.is_err() {
            return;
        }
        let Ok(passes) = told.wait_for(|passes| *passes != Passes::Nothing).await.map(|passes| *passes) else { return };
        let is_lost = passes == Passes::NoNotification && head[0] == b'A';
        if !is_lost && (to.write_all(&head).await.is_err() || to.write_all(&message).await.is_err()) {
            return;
        }
    }
}

/// Name of a server's socket in its folder.
const SOCKET: &str = ".s.PGSQL.5432";
