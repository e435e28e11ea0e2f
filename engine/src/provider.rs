//! Step 7 of ARCHITECTURE.md: the sources of facts about a device, which are files and services behind their caches.

mod configured;
mod file;
mod remote;
#[cfg(any(test, feature = "scripted"))]
pub mod scripted;
mod source;

use std::any::Any;
use std::sync::Arc;

use inventory::file::FileProvider;
use posture::secret::Secret;

pub use configured::{ProviderSettings, RemoteSettings};
use remote::Remote;
pub use source::{Context, Failure, Provider, chain};

/// Opens a provider; a file is read, which blocks. Where the credentials of a service alone changed, the cache of `before` is
/// kept, and asks by the old credentials until [`Provider::take_effect`] is called, since the new configuration may yet be
/// refused. Until then no list and no feed is read either: their content would count for every provider that shares the cache's
/// knowledge.
///
/// # Errors
/// See [`Failure`].
pub fn open(
    name: &str,
    settings: &ProviderSettings,
    secrets: &[Secret],
    before: Option<&dyn Provider>,
    context: &Context,
) -> Result<Arc<dyn Provider>, Failure> {
    let before = before.map(|before| before as &dyn Any);
    match settings {
        ProviderSettings::File(settings) => match before.and_then(<dyn Any>::downcast_ref) {
            Some(before) => FileProvider::open_after(settings, before),
            None => FileProvider::open(settings),
        }
        .map(|file| Arc::new(file) as Arc<dyn Provider>)
        .map_err(Failure::File),
        ProviderSettings::Remote(settings) => {
            let remote = Remote::open(name, settings, secrets, before.and_then(<dyn Any>::downcast_ref), context)?;
            Ok(Arc::new(remote))
        }
    }
}
