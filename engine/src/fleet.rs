//! The services on one store, and their caches: what an event or a purge takes from a cache of one, it takes from those of all.
//!
//! Notices go by the store, as rulings do: a table is the truth, and is looked at in the same look, so that whoever hears nothing of
//! others for too long answers nobody. A notice is kept until it was heard back from the store, and told again where it was not. What
//! cannot be told one by one, or was not heard one by one, takes everything.

pub mod common;
mod outbox;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use store::{About, Heard, Noticed, Notices, Store, StoreError};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::cache::Cache;
use common::Common;
use outbox::{Batch, Outbox};

/// The services on one store, as one of them sees the others. Without a store that others use too, a service is alone.
#[derive(Debug)]
pub struct Fleet {
    common: Arc<Common>,
    /// The caches of this service, those of a snapshot that is being made included.
    caches: Mutex<Vec<Weak<Cache>>>,
    /// The last notice that was heeded.
    noticed: Mutex<Heard>,
    outbox: Mutex<Outbox>,
    /// A signal that there is something to tell.
    wake: Notify,
    /// Number of the last notice that the store took with all before it.
    told: watch::Sender<u64>,
}

impl Default for Fleet {
    /// A service that is alone.
    fn default() -> Self {
        Self::new(true)
    }
}

impl Fleet {
    /// A service that hears the others only once [`Self::keep_in`] was called.
    pub fn unheard() -> Self {
        Self::new(false)
    }

    fn new(heard: bool) -> Self {
        Self {
            common: Arc::new(Common::new(heard)),
            caches: Mutex::default(),
            noticed: Mutex::default(),
            outbox: Mutex::default(),
            wake: Notify::new(),
            told: watch::Sender::default(),
        }
    }

    /// Hears from now on what is told by this store, where others use it too.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keep_in(&self, store: &Store) -> Result<(), StoreError> {
        if store.stale_limit().is_some() && self.common.store().is_none() {
            let caches = self.caches();
            caches.iter().for_each(|cache| cache.begin_to_look());
            *self.lock_noticed() = store.last_notice().await?;
            caches.iter().for_each(|cache| cache.looked(true, false));
            self.common.keep_in(store.clone());
        }
        self.common.hears();
        Ok(())
    }

    /// The part of the fleet that its caches need.
    pub fn common(&self) -> Arc<Common> {
        Arc::clone(&self.common)
    }

    /// Adds a cache, which heeds what is told of its provider.
    pub fn add(&self, cache: &Arc<Cache>) {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.retain(|cache| cache.strong_count() > 0);
        let is_there = caches.iter().any(|other| std::ptr::eq(other.as_ptr(), Arc::as_ptr(cache)));
        if !is_there {
            caches.push(Arc::downgrade(cache));
        }
    }

    /// Tells the other services what was taken from the cache of a provider, and waits until the store has it, for so long. Returns
    /// false where the others do not know of it yet: they are told as soon as that can be.
    pub async fn tell(&self, provider: &str, all: Vec<About>, most: Duration) -> bool {
        if self.common.store().is_none() || all.is_empty() {
            return true;
        }
        let (number, is_away) = self.outbox().add(provider, all);
        self.wake.notify_one();
        !is_away && self.is_told(number, most).await
    }

    /// Waits until the other services were told of everything, for so long; returns whether they were.
    pub async fn settle(&self, most: Duration) -> bool {
        let number = self.outbox().last();
        self.is_told(number, most).await
    }

    async fn is_told(&self, number: u64, most: Duration) -> bool {
        tokio::time::timeout(most, self.told.subscribe().wait_for(|told| *told >= number)).await.is_ok_and(|told| told.is_ok())
    }

    /// Tells what there is to tell, for as long as it is polled.
    pub(crate) async fn keep_telling(&self) {
        let Some(store) = self.common.store() else { return };
        let mut pause = FIRST_PAUSE;
        loop {
            let Some(Batch { token, notices, last }) = self.outbox().take() else {
                self.wake.notified().await;
                continue;
            };
            match store.tell(token, &notices).await {
                Ok(()) => {
                    if self.outbox().took(token) {
                        tracing::info!("the other services are told again of events and purges");
                    }
                    pause = FIRST_PAUSE;
                    if let Some(last) = last {
                        self.told.send_replace(last);
                    }
                }
                Err(error) => {
                    if self.outbox().failed(token) {
                        let error = error.text();
                        tracing::warn!(error, "the other services are not told of an event or purge: it is tried again all the time");
                    }
                    tokio::time::sleep(pause).await;
                    pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Begins a look at what others tell; returns the last notice that was heeded.
    pub(crate) fn begin_to_look(&self) -> Heard {
        self.caches().iter().for_each(|cache| cache.begin_to_look());
        self.noticed()
    }

    /// The last notice that was heeded.
    fn noticed(&self) -> Heard {
        *self.lock_noticed()
    }

    /// Heeds what was noticed by a look that began at `asked`.
    pub(crate) fn heed(&self, notices: Notices, asked: Instant) {
        let Notices { heard, more, noticed } = notices;
        let is_lost = matches!(noticed, Noticed::Lost { .. });
        match noticed {
            Noticed::These(others, own) => {
                for notice in &others {
                    self.caches().iter().filter(|cache| cache.name() == notice.provider).for_each(|cache| cache.heed(&notice.about));
                    if matches!(notice.about, About::Purge(_) | About::PurgeAll) {
                        tracing::info!(provider = notice.provider, "cache purged at another service");
                    }
                }
                self.outbox().heard(&own);
            }
            Noticed::Lost { went_back } => {
                tracing::error!(
                    "events and purges of other services were missed, as where the store has lost its last changes or nothing was \
                     heard for long: everything is forgotten that is remembered of devices"
                );
                for cache in self.caches() {
                    cache.heed(&About::PurgeAll);
                    // Who had not heard yet what the store lost never will.
                    if went_back {
                        let _ = self.outbox().add(cache.name(), vec![About::PurgeAll]);
                        self.wake.notify_one();
                    }
                }
            }
        }
        *self.lock_noticed() = heard;
        self.caches().iter().for_each(|cache| cache.looked(!more, is_lost));
        if !more && self.outbox().lost_before(asked) {
            tracing::warn!("the store has lost events and purges that it was told: it is told again");
            self.wake.notify_one();
        }
    }

    fn caches(&self) -> Vec<Arc<Cache>> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    fn lock_noticed(&self) -> MutexGuard<'_, Heard> {
        self.noticed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Time until telling is tried again after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
