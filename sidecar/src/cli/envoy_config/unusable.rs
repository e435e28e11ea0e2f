//! Reasons why Envoy could not run with a configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::cli::keys::Unfit;
use crate::config::LONGEST_SOCKET;

/// Reason why Envoy could not run with a configuration, or not as it was meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// `--admin` is neither an address nor a path.
    #[error("`--admin {0}` is neither an address and port nor the path of a socket: write 127.0.0.1:9901, [::1]:9901 or ./envoy.sock")]
    Admin(String),
    /// `--admin` is an address that others can reach: whoever does ends Envoy, and reads what it holds.
    #[error("`--admin {0}` can be reached from elsewhere, and whoever reaches it rules Envoy: write 127.0.0.1:{port} or the path of a socket", port = .0.port())]
    PublicAdmin(SocketAddr),
    /// A socket of the admin interface whose path the system does not take.
    #[error("the socket of Envoy's admin interface, {}, has {} bytes, and {LONGEST_SOCKET} are possible: name a shorter one by --admin", .0.display(), .0.as_os_str().len())]
    LongSocket(PathBuf),
    /// A file that would be written over, though something else is read from it.
    #[error("{what} would be written over {}, which is {is}: name another file", path.display())]
    Overwrites {
        /// Kind of the file that would be written.
        what: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Kind of the file that is there now.
        is: &'static str,
    },
    /// `--output json`, as other commands have it.
    #[error("`--output` names a file here, and `{0}` is a form: write --output envoy.yaml, or --output ./{0} where the file is meant")]
    IsAForm(String),
    /// An address with port 0, which nobody could call.
    #[error("{0} has port 0, so that nobody would know where to call: choose one")]
    NoPort(&'static str),
    /// Two of the listeners would have one port; Linux shares it among them, and each gets a part of the other's calls.
    #[error("{0} ({1}) and {2} ({3}) would listen on the same port: change one of them")]
    SamePort(&'static str, SocketAddr, &'static str, SocketAddr),
    /// A webhook whose callers cannot be told by their names in the handshake.
    #[error("webhook `{0}` has no `callers`, or one by `sha256:`, and Envoy can be told names only")]
    NoNames(String),
    /// A file that Envoy needs and could not read; without it Envoy listens, and ends every connection.
    #[error("{} cannot be read by {user}: {error}. Envoy needs it, and would end every connection: run this as Envoy's user, and let that user read it", path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// User who tried to read it.
        user: String,
        /// Error of the system.
        error: String,
    },
    /// A key that is none, or another certificate's.
    #[error("{}: {why}; Envoy would end every connection", path.display())]
    NoKey {
        /// Path of the key's file.
        path: PathBuf,
        /// Reason why the key cannot be served with.
        why: Unfit,
    },
    /// A path that cannot be written into YAML, whose text is Unicode.
    #[error("{0} `{path}` is not UTF-8, and Envoy's configuration holds nothing else: rename it", path = .1.display())]
    NotUnicode(&'static str, PathBuf),
}
