//! Settings of the store.

use std::path::PathBuf;
use std::time::Duration;

use crate::postgres::Server;
use crate::sharing::Sharing;

/// The settings of `[store]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Path of the file; `None`: nothing outlives the process, unless there is a server.
    pub path: Option<PathBuf>,
    /// The server that has the store in the place of a file.
    pub server: Option<Server>,
    /// How the service shares the store on a server with others.
    pub sharing: Sharing,
    /// Time for which a decision is kept; default 90 days.
    pub retention: Duration,
    /// The most decisions that are kept; default 1,000,000.
    pub max_decisions: u64,
    /// Whether public keys are bound to the devices that they are allowed for; default false.
    pub bind_keys: bool,
    /// Time for which a public key is known for the device that it was allowed for; default 400 days.
    pub key_retention: Duration,
    /// Most keys that are known, of all devices; default 1,000,000. The oldest go.
    pub max_keys: u64,
    /// Most keys of one device that are known; default 64. The oldest go.
    pub max_keys_per_device: u32,
}

impl Settings {
    /// The settings of a service without a store.
    pub const fn none() -> Self {
        Self {
            path: None,
            server: None,
            sharing: Sharing::DEFAULT,
            retention: RETENTION,
            max_decisions: MAX_DECISIONS,
            bind_keys: false,
            key_retention: KEY_RETENTION,
            max_keys: MAX_KEYS,
            max_keys_per_device: MAX_KEYS_PER_DEVICE,
        }
    }
}

/// Default of [`Settings::retention`].
pub const RETENTION: Duration = Duration::from_secs(90 * 86_400);

/// Default of [`Settings::max_decisions`].
pub const MAX_DECISIONS: u64 = 1_000_000;

/// Default of [`Settings::key_retention`]: certificates outlive decisions.
pub const KEY_RETENTION: Duration = Duration::from_secs(400 * 86_400);

/// Default of [`Settings::max_keys`].
pub const MAX_KEYS: u64 = 1_000_000;

/// Default of [`Settings::max_keys_per_device`]: a certificate of a day is asked for anew twice a day, and only the last keys are
/// in use.
pub const MAX_KEYS_PER_DEVICE: u32 = 64;
