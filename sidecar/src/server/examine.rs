//! Examination of sockets, groups and addresses before a start.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use nix::unistd::AccessFlags;
use tokio::net::TcpSocket;

use super::socket::group;
use crate::config::{Entrance, Listen};

/// Findings about sockets, groups and addresses, before a start.
#[derive(Clone, Debug, Default)]
pub struct Examined {
    /// Reasons why the service could not start.
    pub mistakes: Vec<String>,
    /// Findings that are in the way unless they come from the running service itself.
    pub notes: Vec<String>,
}

/// Looks at groups, folders, sockets and addresses as [`super::Sockets::bind`] uses them, and makes none of them.
pub fn examine(listen: &Listen, tcp: &[(Entrance, SocketAddr)]) -> Examined {
    let mut found = Examined::default();
    // Only the folders of the roles are examined: the one above them is root's, or on a file system that nobody writes to.
    let mut folders = BTreeSet::new();
    let mut groups = BTreeMap::new();
    for role in Listen::ROLES {
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
    for address in std::iter::once(listen.admin).chain(tcp.iter().map(|(_, address)| *address)) {
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

/// Returns whether this process may give a file of its own to a group (chown(2)).
fn may_give(gid: nix::unistd::Gid) -> bool {
    let own = nix::unistd::getgroups().unwrap_or_default();
    nix::unistd::Uid::effective().is_root() || nix::unistd::Gid::effective() == gid || own.contains(&gid)
}

/// Binds an address as the start does, without listening.
fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}
