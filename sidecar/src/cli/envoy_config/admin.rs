//! Envoy's admin interface: where it listens, and how its other listeners reach it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::template::unicode;
use super::unusable::Unusable;
use crate::config::LONGEST_SOCKET;

/// Address on which Envoy's admin interface listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admin {
    /// An address and port.
    Address(SocketAddr),
    /// A socket for its owner alone.
    Socket(PathBuf),
}

impl Admin {
    /// Reads `--admin`; a relative path is one in `folder`.
    ///
    /// # Errors
    /// [`Unusable::Admin`] for what is no IP address with a port, and no path with a slash in it; [`Unusable::PublicAdmin`] for an
    /// address of another machine's reach, and [`Unusable::LongSocket`] for a path that is too long.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Unusable> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().to_canonical().is_loopback() => Ok(Self::Address(address)),
            Ok(address) => Err(Unusable::PublicAdmin(address)),
            // A name such as localhost would pass for a file of that name.
            Err(_) if text.contains('/') => {
                let path = folder.join(text);
                if path.as_os_str().len() > LONGEST_SOCKET { Err(Unusable::LongSocket(path)) } else { Ok(Self::Socket(path)) }
            }
            Err(_) => Err(Unusable::Admin(text.to_owned())),
        }
    }
}

/// Returns the address in Envoy's form.
///
/// # Errors
/// [`Unusable`] where the path of a socket is too long, or no Unicode.
pub(super) fn address(admin: &Admin) -> Result<Value, Unusable> {
    Ok(match admin {
        Admin::Address(address) => json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } }),
        Admin::Socket(path) if path.as_os_str().len() > LONGEST_SOCKET => return Err(Unusable::LongSocket(path.clone())),
        Admin::Socket(path) => json!({ "pipe": { "path": unicode("--admin", path)?, "mode": 0o600 } }),
    })
}

/// Returns an address of the admin interface as an endpoint, which has no mode, and is no address that means all of them.
pub(super) fn reached(admin: &Value) -> Value {
    let mut reached = admin.clone();
    if let Some(pipe) = reached.pointer_mut("/pipe").and_then(Value::as_object_mut) {
        pipe.remove("mode");
    }
    if let Some(address) = reached.pointer_mut("/socket_address/address") {
        let loopback = match address.as_str() {
            Some("0.0.0.0") => Some("127.0.0.1"),
            Some("::") => Some("::1"),
            _ => None,
        };
        if let Some(loopback) = loopback {
            *address = loopback.into();
        }
    }
    reached
}
