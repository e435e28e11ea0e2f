//! A UNIX socket: made so that nobody connects too early, and served to those alone who may connect.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clock::OnceAMinute;
use futures::{Stream, StreamExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_stream::wrappers::UnixListenerStream;

use super::places::{Holder, Local, Places};
use super::told::{ACCEPT_AGAIN, not_taken};
use crate::config::Listen;

/// One UNIX socket, whose file is removed when it is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    listener: Option<std::os::unix::net::UnixListener>,
    file: SocketFile,
    uids: Option<Vec<u32>>,
    places: usize,
}

/// File of a socket, and its identity.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file.
    made: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another service may have made its own in this place meanwhile.
        let is_ours = |found: &std::fs::Metadata| (found.dev(), found.ino()) == self.made;
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| is_ours(&found)) {
            // The file is stale either way, and the next start removes what is left.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Socket {
    /// Makes the socket of a role where nobody can reach it, and moves it to its place once it has its group and its mode: in
    /// between, whoever has the right to the folder could connect whatever the mode will be.
    ///
    /// # Errors
    /// A process serves there, something else is in the socket's place, or it cannot be made.
    pub(super) async fn bind(listen: &Listen, role: &str) -> anyhow::Result<Self> {
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
        let uids = uids.or_else(|| Listen::ROOT_AND_SERVICE.contains(&role).then(|| vec![0, nix::unistd::Uid::effective().as_raw()]));
        let places = if role == "filter" { FILTERS } else { PLACES };
        Ok(Self { listener: Some(listener), file, uids, places })
    }

    /// Returns the connections of those who may connect; where there are too many, an older one gives way.
    ///
    /// # Errors
    /// The socket was served already, or cannot be prepared.
    pub(super) fn incoming(&mut self) -> anyhow::Result<impl Stream<Item = io::Result<Local>> + Send + use<>> {
        let listener = self.listener.take().context("a socket is served once")?;
        listener.set_nonblocking(true).context("prepare a socket")?;
        let listener = UnixListener::from_std(listener).context("prepare a socket")?;
        let uids = self.uids.take();
        let path = self.file.path.clone();
        let places = Places::new(self.places);
        let (mut told, mut failed) = (OnceAMinute::default(), OnceAMinute::default());
        let connections = UnixListenerStream::new(listener).then(|connection| async {
            if connection.is_err() {
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
            connection
        });
        Ok(connections.filter_map(move |connection| {
            if let Err(error) = &connection {
                not_taken(&mut failed, &path.display().to_string(), error);
            }
            let admitted = connection.map(|stream| {
                let uid = stream.peer_cred().map(|credentials| credentials.uid()).ok();
                if uids.as_ref().is_some_and(|uids| uid.is_none_or(|uid| !uids.contains(&uid))) {
                    if told.is_due(Instant::now()) {
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

/// A folder that only this user can look into, removed when it is dropped.
struct Closed(PathBuf);

impl Closed {
    fn make(beside: &Path, role: &str) -> anyhow::Result<Self> {
        // The folder's name is no longer than that of the socket, whose path has a limit.
        let closed = Self(beside.join(format!(".{role}")));
        // A start that was killed may have left the folder.
        closed.remove();
        std::fs::DirBuilder::new().mode(0o700).create(&closed.0).with_context(|| format!("make the folder {}", closed.0.display()))?;
        Ok(closed)
    }

    fn remove(&self) {
        // Errors mean nothing here: making the folder anew names what is in the way.
        let _ = std::fs::remove_file(self.0.join(MADE));
        let _ = std::fs::remove_dir(&self.0);
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Makes a folder that nobody else may write to, whatever the umask; returns false where it exists.
fn make_folder(path: &Path, mode: u32) -> anyhow::Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).with_context(|| format!("make the folder {}", path.display()))?;
    Ok(true)
}

/// Checks that a socket can be made at a path.
///
/// # Errors
/// A process listens there, or something else is in its place.
pub(super) async fn is_free(path: &Path) -> anyhow::Result<()> {
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

/// Returns the group of a name or an id.
///
/// # Errors
/// There is no such group.
pub(super) fn group(name: &str) -> anyhow::Result<nix::unistd::Gid> {
    if let Ok(id) = name.parse() {
        // chown(2) takes the last id to mean that the group stays as it is.
        anyhow::ensure!(id != u32::MAX, "{id} is no group's id");
        return Ok(nix::unistd::Gid::from_raw(id));
    }
    let group = nix::unistd::Group::from_name(name).with_context(|| format!("look up the group `{name}`"))?;
    Ok(group.with_context(|| format!("there is no group `{name}`"))?.gid)
}

/// Name of a socket until it has its place.
const MADE: &str = "s";

/// Largest number of connections to one socket at once: a client that asks questions has one.
pub(super) const PLACES: usize = 256;

/// Largest number of connections to the filters' socket at once: more than the streams that there may be, of which each has a
/// connection.
pub(super) const FILTERS: usize = crate::webhook::STREAMS + 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_no_groups_id() {
        assert!(group("4294967295").is_err() && group("4294967294").is_ok());
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
        // The file is moved and not removed, so that the second one cannot get its inode.
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        let (_second, other) = made();
        drop(file);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        drop(other);
        assert!(!path.exists());
    }
}
