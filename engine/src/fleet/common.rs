//! The part of a fleet that its caches need: the store, and whether everything is heard that others tell.

use std::sync::OnceLock;

use store::Store;
use tokio::sync::watch;

/// The store that several services share, as their caches see it.
#[derive(Debug)]
pub struct Common {
    store: OnceLock<Store>,
    /// Whether everything is heard that is told from now on.
    heard: watch::Sender<bool>,
}

impl Default for Common {
    /// Of a service that is alone.
    fn default() -> Self {
        Self::new(true)
    }
}

impl Common {
    /// Without a store yet.
    pub(super) fn new(heard: bool) -> Self {
        Self { store: OnceLock::new(), heard: watch::Sender::new(heard) }
    }

    /// The store, where other services use it too.
    pub(crate) fn store(&self) -> Option<&Store> {
        self.store.get()
    }

    /// Sets the store, once.
    pub(super) fn keep_in(&self, store: Store) {
        // Nobody else sets it.
        let _ = self.store.set(store);
    }

    /// Notes that everything is heard from now on.
    pub(super) fn hears(&self) {
        self.heard.send_replace(true);
    }

    /// Waits until everything is heard that is told.
    pub(crate) async fn is_heard(&self) {
        // The sender lives as long as this.
        let _ = self.heard.subscribe().wait_for(|heard| *heard).await;
    }
}
