//! The store in a PostgreSQL database, in a schema of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clock::{Proven, Span};
use posture::identity::{DeviceId, Identity, PublicKey};
use posture::time::UnixTime;
use tokio::sync::{Mutex, MutexGuard, Notify, watch};

use crate::claim::{Claim, Claimed};
use crate::columns::Stored;
use crate::decision::{Decision, Summary, Wanted};
use crate::error::StoreError;
use crate::id::DecisionId;
use crate::lists::{Begun, Ended};
use crate::mark::Mark;
use crate::news::{Heard, News, Rulings, Told};
use crate::notices::{Notice, Notices};
use crate::ruling::Ruling;
use crate::sent::Sent;
use crate::sharing::Sharing;
use link::{Link, Purpose, ask};
use schema::Found;

mod claims;
mod code;
pub(crate) mod copy;
mod error;
mod hearing;
mod link;
mod listener;
mod lists;
mod news;
mod notices;
mod rows;
mod schema;
#[cfg(any(test, feature = "scripted"))]
pub(crate) mod scripted;
mod server;
#[cfg(test)]
mod tests;
mod text;

use claims::Claims;
pub use copy::WholeError;
pub use error::OpenError;
use hearing::Replica;
pub use server::{Server, UrlError};

/// A store on a server that was opened.
pub(crate) struct Opened {
    /// The connections for rulings and for reading.
    pub(crate) database: Database,
    /// The connection for the task that writes decisions.
    pub(crate) records: Records,
    /// Last proven time of the process before.
    pub(crate) proven: Option<Proven>,
    /// Counts and keys that the store already has.
    pub(crate) stored: Stored,
}

/// Connects to a server, makes the tables where they are missing, and reads the `newest_keys` keys that were allowed last.
///
/// # Errors
/// See [`OpenError`].
pub(crate) async fn open(server: &Server, sharing: &Sharing, newest_keys: usize) -> Result<Opened, OpenError> {
    let failed = |source| OpenError::Failed { server: server.to_string(), source };
    let shared = Arc::new(server.clone());
    let mut link = Link::new(Arc::clone(&shared), Purpose::Decisions, None);
    let mut session = link.session_for(OPENING).await.map_err(failed)?;
    let migrated = tokio::time::timeout_at(session.deadline, schema::migrate(&mut session.connection)).await;
    let store = match session.end(migrated).map_err(failed)? {
        Found::Store(store) => store,
        Found::Newer(found) => {
            let known = i64::try_from(schema::MIGRATIONS.len()).unwrap_or(i64::MAX);
            return Err(OpenError::Newer { server: server.to_string(), found, known });
        }
        Found::Foreign => return Err(OpenError::Foreign { server: server.to_string() }),
    };
    let mut session = link.session_for(OPENING).await.map_err(failed)?;
    let looked = tokio::time::timeout_at(session.deadline, rows::look(&mut session.connection, newest_keys)).await;
    let (proven, stored) = session.end(looked).map_err(failed)?;
    link.demand(store.clone());
    let other = |purpose| Mutex::new(Link::new(Arc::clone(&shared), purpose, Some(store.clone())));
    let replica = Replica { id: format!("{:032x}", rand::random::<u128>()), name: sharing.name.clone(), limit: sharing.stale_limit };
    let wake = Arc::<Notify>::default();
    let claims = Claims::start(Link::new(Arc::clone(&shared), Purpose::Claims, Some(store.clone())), replica.id.clone());
    let (place, places) = watch::channel(link.host());
    tokio::spawn(listener::listen(Arc::clone(&shared), places, Arc::clone(&wake)));
    let database = Database {
        rulings: other(Purpose::Rulings),
        listing: other(Purpose::Listing),
        keys: other(Purpose::Keys),
        news: other(Purpose::News),
        claims,
        caches: other(Purpose::Caches),
        replica,
        wake,
        place,
        waited: AtomicBool::new(false),
    };
    Ok(Opened { database, records: Records { link }, proven, stored })
}

/// Connections that write rulings and read everything, each made when it is first needed.
#[derive(Debug)]
pub(crate) struct Database {
    rulings: Mutex<Link>,
    /// Connection that reads decisions, so that a long answer holds up neither a writer nor an Envoy that asks for a key.
    listing: Mutex<Link>,
    keys: Mutex<Link>,
    news: Mutex<Link>,
    /// The task that claims webhooks, which has a connection of its own.
    claims: Claims,
    caches: Mutex<Link>,
    /// This service, as the others on the store see it.
    replica: Replica,
    /// A signal that a service changed something.
    wake: Arc<Notify>,
    /// Place of the host whose notifications are heard.
    place: watch::Sender<usize>,
    /// Whether a wait ended without a notification, so that what is new now was not notified.
    waited: AtomicBool,
}

impl Database {
    /// The stored record of a decision.
    pub(crate) async fn decision(&self, id: DecisionId) -> Result<Option<String>, StoreError> {
        ask!(self.listing.lock().await, connection => rows::decision(connection, id))
    }

    /// Decisions that fit the filter, newest first.
    pub(crate) async fn decisions(&self, wanted: &Wanted) -> Result<Vec<Summary>, StoreError> {
        ask!(self.listing.lock().await, connection => rows::decisions(connection, wanted))
    }

    /// Webhooks that were decided last, for the replay memory.
    pub(crate) async fn sent(&self, window: Duration, most: u32) -> Result<Vec<Sent>, StoreError> {
        ask!(self.listing.lock().await, connection => rows::sent(connection, window, most))
    }

    /// The device that a key was allowed for at `since` or later.
    pub(crate) async fn device_of(&self, key: PublicKey, since: UnixTime) -> Result<Option<Identity>, StoreError> {
        ask!(self.keys.lock().await, connection => rows::device_of(connection, key, since))
    }

    /// Pairs of identifiers that stood in one record, the last seen first, at most `most`.
    pub(crate) async fn links(&self, most: usize) -> Result<Vec<(Mark, Mark)>, StoreError> {
        ask!(self.listing.lock().await, connection => rows::links(connection, most))
    }

    /// Identifiers that stood in one record with any of these.
    pub(crate) async fn partners(&self, of: &[Mark]) -> Result<Vec<Mark>, StoreError> {
        ask!(self.listing.lock().await, connection => rows::partners(connection, of))
    }

    /// All rulings that have not ended. Who changes one from now on waits until this service has heard of it.
    pub(crate) async fn all_rulings(&self, now: Span) -> Result<Rulings, StoreError> {
        let mut link = self.rulings.lock().await;
        ask!(link, connection => hearing::greet(connection, &self.replica))?;
        ask!(link, connection => hearing::all(connection, now))
    }

    /// Says what this service has heeded of rulings, and reads what changed since, and what others tell of caches since `noticed`,
    /// within `bound`.
    pub(crate) async fn hear(&self, heard: Heard, noticed: Heard, now: Span, bound: Duration) -> Result<(News, Notices), StoreError> {
        let mut link = self.news.lock().await;
        let (news, notices) = ask!(link, bound, connection => hearing::hear(connection, &self.replica, heard, noticed, now))?;
        // Notifications come from the host that takes writes. News of which none told mean that the listener hears nothing.
        let is_new = !matches!(news.told, Told::Nothing) || !notices.is_empty();
        let unannounced = self.waited.swap(false, Ordering::Relaxed) && is_new;
        if unannounced || *self.place.borrow() != link.host() {
            self.place.send_replace(link.host());
        }
        Ok((news, notices))
    }

    /// The last notice of now.
    pub(crate) async fn last_notice(&self) -> Result<Heard, StoreError> {
        ask!(self.caches.lock().await, connection => notices::last(connection))
    }

    /// Tells notices under a number by which [`Self::hear`] says that they are there.
    pub(crate) async fn tell(&self, token: i64, notices: &[Notice]) -> Result<(), StoreError> {
        ask!(self.caches.lock().await, connection => notices::tell(connection, &self.replica.id, token, notices))
    }

    /// Takes or renews the lease to read lists of a kind; returns whether it is this holder's now.
    pub(crate) async fn lease(&self, kind: &str, holder: &str, most: Duration) -> Result<bool, StoreError> {
        ask!(self.caches.lock().await, connection => lists::lease(connection, kind, holder, most))
    }

    /// Gives a lease back.
    pub(crate) async fn release(&self, kind: &str, holder: &str) -> Result<(), StoreError> {
        ask!(self.caches.lock().await, connection => lists::release(connection, kind, holder))
    }

    /// Tells the others that a list begins now.
    pub(crate) async fn begin_list(&self, begun: &Begun) -> Result<(), StoreError> {
        ask!(self.caches.lock().await, connection => lists::begin(connection, &self.replica.id, begun))
    }

    /// Keeps a page of a list.
    pub(crate) async fn write_page(&self, id: &str, number: i32, content: &[u8]) -> Result<(), StoreError> {
        ask!(self.caches.lock().await, connection => lists::write(connection, id, number, content))
    }

    /// Lets the others have a list that ended; returns whether the lease was still its own.
    pub(crate) async fn publish(&self, kind: &str, ended: &Ended) -> Result<bool, StoreError> {
        ask!(self.caches.lock().await, connection => lists::publish(connection, kind, ended))
    }

    /// The lists of a kind that ended, the last one first.
    pub(crate) async fn ended_lists(&self, kind: &str) -> Result<Vec<Ended>, StoreError> {
        ask!(self.caches.lock().await, connection => lists::ended(connection, kind))
    }

    /// A page of a list.
    pub(crate) async fn page(&self, id: &str, number: i32) -> Result<Option<Vec<u8>>, StoreError> {
        ask!(self.caches.lock().await, connection => lists::page(connection, id, number))
    }

    /// Waits until a service changed something, as far as notifications arrive, or for so long.
    pub(crate) async fn wait(&self, most: Duration) {
        let waited = tokio::time::timeout(most, self.wake.notified()).await.is_err();
        self.waited.store(waited, Ordering::Relaxed);
    }

    /// Names of the services that have not heeded every change of now, once there are none or so long has passed.
    pub(crate) async fn unheard(&self, most: Duration) -> Result<Vec<String>, StoreError> {
        let until = tokio::time::Instant::now() + most;
        let version = ask!(self.rulings.lock().await, connection => hearing::version(connection))?;
        loop {
            let unheard = ask!(self.rulings.lock().await, connection => hearing::unheard(connection, &self.replica, version, NAMED))?;
            if unheard.is_empty() || tokio::time::Instant::now() >= until {
                return Ok(unheard);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Claims a webhook for this service.
    pub(crate) async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError> {
        self.claims.claim(claim).await
    }

    /// Says what came of a claimed webhook: the denial, or nothing where it has to be decided anew.
    pub(crate) fn settle(&self, body: [u8; 32], outcome: String) {
        self.claims.settle(body, outcome);
    }

    /// Says that this service answers nobody any more.
    pub(crate) async fn leave(&self) -> Result<(), StoreError> {
        ask!(self.news.lock().await, connection => hearing::leave(connection, &self.replica))
    }

    /// Writes a row without meaning, of the size of a ruling.
    pub(crate) async fn attempt(&self) -> Result<(), StoreError> {
        ask!(self.rulings.lock().await, connection => rows::attempt(connection))
    }

    /// The writer of rulings, for one user at a time: nothing else of this process writes a ruling while it exists.
    pub(crate) async fn write_rulings(&self) -> RulingWriter<'_> {
        RulingWriter { link: self.rulings.lock().await }
    }
}

/// A writer of rulings. Each change is on the server's disk once its call returns.
pub(crate) struct RulingWriter<'d> {
    link: MutexGuard<'d, Link>,
}

impl RulingWriter<'_> {
    /// Keeps a ruling with the identifiers that it covers.
    pub(crate) async fn keep(&mut self, ruling: &Ruling, covered: &[Mark]) -> Result<(), StoreError> {
        ask!(self.link, connection => rows::keep(connection, ruling, covered))
    }

    /// Forgets rulings, all of them or none.
    pub(crate) async fn forget(&mut self, ids: &[DecisionId]) -> Result<(), StoreError> {
        ask!(self.link, connection => rows::forget(connection, ids))
    }
}

/// The connection for decisions, keys and pairs of identifiers, of the one task that writes them.
#[derive(Debug)]
pub(crate) struct Records {
    link: Link,
}

impl Records {
    /// Writes a batch and the keys that it allows, all or nothing; returns how many of the decisions are new.
    pub(crate) async fn insert(
        &mut self,
        batch: &[Box<Decision>],
        key_retention: Duration,
        proven: Option<UnixTime>,
    ) -> Result<u64, StoreError> {
        ask!(self.link, connection => rows::insert(connection, batch, key_retention, proven))
    }

    /// Writes pairs of identifiers that stood in one record, and covers of locks that still exist. A failed write can be
    /// repeated.
    pub(crate) async fn learn(&mut self, pairs: &[(Mark, Mark)], covers: &[(DecisionId, Mark)]) -> Result<(), StoreError> {
        ask!(self.link, connection => rows::learn(connection, pairs, covers))
    }

    /// Keeps the proven time for the next start.
    pub(crate) async fn keep_proven(&mut self, proven: Proven) -> Result<(), StoreError> {
        ask!(self.link, connection => rows::keep_proven(connection, proven))
    }

    /// The last proven time; where none was kept, the latest time that the store has seen.
    #[cfg(test)]
    pub(crate) async fn proven(&mut self) -> Result<Option<Proven>, StoreError> {
        ask!(self.link, connection => rows::proven(connection))
    }

    /// Id of the oldest decision.
    pub(crate) async fn oldest(&mut self) -> Result<Option<DecisionId>, StoreError> {
        ask!(self.link, connection => rows::oldest(connection))
    }

    /// Deletes the oldest decisions from before `id`, at most `most`; returns their number.
    pub(crate) async fn delete_before(&mut self, id: DecisionId, most: u32) -> Result<u64, StoreError> {
        ask!(self.link, connection => rows::delete_before(connection, id, most))
    }

    /// Deletes the `most` decisions that were written first; returns the number that was deleted.
    pub(crate) async fn delete_oldest(&mut self, most: u32) -> Result<u64, StoreError> {
        ask!(self.link, connection => rows::delete_oldest(connection, most))
    }

    /// Deletes rulings whose end is past by every clock.
    pub(crate) async fn delete_ended_rulings(&mut self, now: Span) -> Result<(), StoreError> {
        ask!(self.link, connection => rows::delete_ended_rulings(connection, now))?;
        // Lists that stay a while longer hold up nothing else that has to go.
        if let Err(error) = ask!(self.link, connection => lists::delete_old(connection)) {
            tracing::debug!(error = error.text(), "old lists of devices are not deleted yet");
        }
        Ok(())
    }

    /// Number of keys.
    pub(crate) async fn count_keys(&mut self) -> Result<u64, StoreError> {
        ask!(self.link, connection => rows::count_keys(connection))
    }

    /// Deletes a key, if it is still this device's; returns the number of deleted keys.
    pub(crate) async fn delete_key(&mut self, device: &DeviceId, key: PublicKey) -> Result<u64, StoreError> {
        ask!(self.link, connection => rows::delete_key(connection, device, key))
    }

    /// Deletes keys that were last allowed before `time`, at most `most`; returns their number.
    pub(crate) async fn delete_keys_before(&mut self, time: UnixTime, most: u32) -> Result<u64, StoreError> {
        ask!(self.link, connection => rows::delete_keys_before(connection, time, most))
    }

    /// Deletes the `most` oldest keys; returns the number that was deleted.
    pub(crate) async fn delete_oldest_keys(&mut self, most: u32) -> Result<u64, StoreError> {
        ask!(self.link, connection => rows::delete_oldest_keys(connection, most))
    }

    /// Number of pairs of identifiers.
    pub(crate) async fn count_links(&mut self) -> Result<u64, StoreError> {
        ask!(self.link, connection => rows::count_links(connection))
    }

    /// Deletes the `most` pairs that were seen the longest ago; returns the number that was deleted.
    pub(crate) async fn delete_links(&mut self, most: u32) -> Result<u64, StoreError> {
        ask!(self.link, connection => rows::delete_links(connection, most))
    }
}

/// Most services that are named.
const NAMED: usize = 20;

/// Time between two looks at what the other services have heard.
const LOOK: Duration = Duration::from_millis(20);

/// Longest time for each of the two steps of opening a store: changing its schema, and counting what it has.
const OPENING: Duration = Duration::from_secs(60);
