//! Lists that another service on the store reads for this one, and those that this one reads for the others.
//!
//! A list counts from the moment at which it was asked for, and moments are this process's own. That a list begins is told as events
//! are, so it has a place in their order: it comes after the last look that did not find it told. A question that was opened before
//! that look stands for the list here. No clock is compared.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use inventory::{Listed, Unavailable};
use posture::record::{Fields, Record};
use posture::time::UnixTime;
use sha2::{Digest as _, Sha256};
use store::{Begun, Ended, Store, StoreError};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Cache;
use super::order::{Moment, Open};

/// A question that is open, and when it was opened.
#[derive(Debug)]
pub(super) struct Asked {
    open: Open,
    /// Time of the question, in milliseconds of the cache's clock.
    pub(super) at: u64,
    pub(super) since: Instant,
}

impl Asked {
    /// Moment of the question.
    pub(super) const fn moment(&self) -> Moment {
        self.open.moment()
    }
}

/// What is known of lists that other services read.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    known: Mutex<Known>,
    /// Whether it was said that lists cannot be shared.
    is_apart: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    /// The question that was opened before the look that is under way.
    looking: Option<Asked>,
    /// The question that was opened before the last look that found all that was told: what is told later came after it.
    looked: Option<Arc<Asked>>,
    /// Lists that began, by their ids, with a question from before each.
    began: VecDeque<(String, Arc<Asked>)>,
}

impl Elsewhere {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a list begins.
    pub(super) fn begins(&self, id: &str) {
        let mut known = self.lock();
        let Some(looked) = known.looked.clone() else { return };
        if known.began.len() >= MOST {
            known.began.pop_front();
        }
        known.began.push_back((id.to_owned(), looked));
    }

    fn asked(&self, id: &str) -> Option<Arc<Asked>> {
        self.lock().began.iter().find(|(began, _)| began == id).map(|(_, asked)| Arc::clone(asked))
    }

    /// Forgets the lists that began no later than this moment.
    pub(super) fn took(&self, moment: Moment) {
        self.lock().began.retain(|(_, asked)| asked.moment() > moment);
    }

    fn go_apart(&self, error: &StoreError) {
        if !self.is_apart.swap(true, Ordering::Relaxed) {
            tracing::warn!(error = error.text(), "lists of devices are not shared with other services: each reads for itself");
        }
    }

    fn come_together(&self) {
        self.is_apart.store(false, Ordering::Relaxed);
    }
}

/// Where a list comes from.
pub(super) enum Origin {
    /// From the management, for this service alone.
    Own,
    /// From the management, for other services too.
    Shared(Publisher),
    /// From another service.
    Another(Ended, Arc<Asked>),
}

impl Cache {
    /// Opens a question before a look at what other services tell.
    pub(crate) fn begin_to_look(&self) {
        let looking = self.asked();
        let mut known = self.elsewhere.lock();
        known.looking = Some(looking);
        // A question that is open for long costs room, which those of devices need first.
        if self.knowledge.is_crowded() {
            known.looked = None;
            known.began.clear();
        }
        let is_new = |asked: &Asked| asked.since.elapsed() < LONGEST;
        known.began.retain(|(_, asked)| is_new(asked));
        known.looked.take_if(|asked| !is_new(asked));
    }

    /// Notes that the look has ended, and whether it found all that was told. `is_lost`: something before it will never be found.
    pub(crate) fn looked(&self, whole: bool, is_lost: bool) {
        let mut known = self.elsewhere.lock();
        if is_lost {
            known.looked = None;
            known.began.clear();
        }
        if whole {
            known.looked = known.looking.take().map(Arc::new);
        }
    }

    pub(super) fn asked(&self) -> Asked {
        // The time comes first, since a record is rather older than younger.
        let (at, since) = (self.knowledge.now(), Instant::now());
        Asked { open: self.knowledge.ask(), at, since }
    }

    /// Chooses where a list comes from: one that another service read lately, or is about to end, or the management, under a lease
    /// where that can be had. `since`: the time since which a list of changes is to have everything; `None`: a list of everything.
    pub(super) async fn origin(&self, fields: Fields, since: Option<UnixTime>) -> Origin {
        let (Some(store), Some(sync)) = (self.fleet.store(), self.sync) else { return Origin::Own };
        let kind = self.kind_of_list(fields);
        let id = format!("{:032x}", rand::random::<u128>());
        let until = Instant::now() + LONGEST;
        let shared = async {
            loop {
                if let Some(found) = self.read_elsewhere(store, &kind, since, sync.partial).await? {
                    return Ok(found);
                }
                if store.lease(&kind, &id, LEASE).await? {
                    break;
                }
                if Instant::now() >= until {
                    return Ok(Origin::Own);
                }
                tokio::time::sleep(LOOK).await;
            }
            // Whoever had the lease before may have ended its list since the look.
            if let Some(found) = self.read_elsewhere(store, &kind, since, sync.partial).await? {
                store.release(&kind, &id).await?;
                return Ok(found);
            }
            // What the others have to forget before, they hear meanwhile.
            tokio::time::sleep(SETTLE).await;
            let begun =
                Begun { id, kind, provider: self.name.to_string(), since: since.map(UnixTime::as_nanos), started: clock::now().as_nanos() };
            store.begin_list(&begun).await?;
            Ok::<_, StoreError>(Origin::Shared(Publisher {
                store: store.clone(),
                begun,
                pages: 0,
                records: 0,
                renewed: Instant::now(),
                failed: false,
            }))
        };
        match shared.await {
            Ok(origin) => {
                self.elsewhere.come_together();
                origin
            }
            Err(error) => {
                self.elsewhere.go_apart(&error);
                Origin::Own
            }
        }
    }

    /// A list of another service that will do.
    async fn read_elsewhere(
        &self,
        store: &Store,
        kind: &str,
        since: Option<UnixTime>,
        lately: Duration,
    ) -> Result<Option<Origin>, StoreError> {
        let after = self.sweeps.due().max(self.sweeps.begun());
        let fits = |ended: &Ended| match (since, ended.since) {
            (_, None) => true,
            (None, Some(_)) => false,
            // It has everything since a time that is no later than that of the last list here.
            (Some(since), Some(of)) => of <= since.as_nanos(),
        };
        let found = store.ended_lists(kind).await?.into_iter().filter(fits).find_map(|ended| {
            let asked = self.elsewhere.asked(&ended.id)?;
            let counts = asked.moment() > after && !self.knowledge.is_void(asked.moment());
            (counts && asked.since.elapsed() < lately).then_some((ended, asked))
        });
        Ok(found.map(|(ended, asked)| Origin::Another(ended, asked)))
    }

    /// The digest of what makes two lists the same: the release, the provider and its settings, and the wanted fields.
    fn kind_of_list(&self, fields: Fields) -> String {
        let parts = [
            env!("CARGO_PKG_VERSION").to_owned(),
            // The names of all fields of a record, which is kept without them.
            format!("{:?}", Record::default()),
            self.name.to_string(),
            self.lists_as.to_string(),
            format!("{fields:?}"),
        ];
        let mut digest = Sha256::new();
        for part in parts {
            digest.update(part.len().to_be_bytes());
            digest.update(part);
        }
        hex::encode(digest.finalize())
    }
}

/// A list that is read for other services too, as long as that is possible.
#[derive(Debug)]
pub(super) struct Publisher {
    store: Store,
    begun: Begun,
    pages: i32,
    records: i64,
    renewed: Instant,
    failed: bool,
}

impl Publisher {
    /// The time at which the list began.
    pub(super) const fn started(&self) -> UnixTime {
        UnixTime::from_nanos(self.begun.started)
    }

    /// Keeps a page for the others.
    pub(super) async fn page(&mut self, page: &[Record]) {
        for records in page.chunks(RECORDS) {
            if self.failed {
                return;
            }
            let kept = match postcard::to_allocvec(records) {
                Ok(content) if content.len() <= LARGEST => self.store.write_page(&self.begun.id, self.pages, &content).await,
                _ => return self.fail("a page of the list is too large for the database"),
            };
            if let Err(error) = kept {
                return self.fail(&error.text());
            }
            self.pages = self.pages.saturating_add(1);
            self.records = self.records.saturating_add(i64::try_from(records.len()).unwrap_or(i64::MAX));
        }
        self.renew().await;
    }

    /// Renews the lease where that is due.
    pub(super) async fn renew(&mut self) {
        if self.failed || self.renewed.elapsed() < RENEW {
            return;
        }
        match self.store.lease(&self.begun.kind, &self.begun.id, LEASE).await {
            Ok(true) => self.renewed = Instant::now(),
            Ok(false) => self.fail("another service took the lease"),
            Err(error) => self.fail(&error.text()),
        }
    }

    /// Lets the others have the list, which ended, or gives it up where that has failed.
    pub(super) async fn end(mut self, listed: Option<Listed>) {
        if let (Some(listed), false) = (listed, self.failed) {
            let Begun { id, kind, since, started, .. } = self.begun.clone();
            let ended = Ended { id, since, started, complete: listed.complete, pages: self.pages, records: self.records };
            match self.store.publish(&kind, &ended).await {
                Ok(true) => {}
                Ok(false) => self.fail("another service took the lease"),
                Err(error) => self.fail(&error.text()),
            }
        }
        // A lease that stays ends by itself.
        let _ = self.store.release(&self.begun.kind, &self.begun.id).await;
    }

    fn fail(&mut self, why: &str) {
        self.failed = true;
        tracing::warn!(provider = self.begun.provider, why, "other services cannot have this list");
    }
}

/// Reads a list of another service, page by page.
///
/// # Errors
/// [`Unavailable`]: some of it is not there any more.
pub(super) async fn read(store: Store, ended: Ended, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
    let mut records: i64 = 0;
    for number in 0..ended.pages {
        let content = store.page(&ended.id, number).await.ok().flatten().ok_or(Unavailable::Network)?;
        let page: Vec<Record> = postcard::from_bytes(&content).map_err(|_| Unavailable::Protocol)?;
        records = records.saturating_add(i64::try_from(page.len()).unwrap_or(i64::MAX));
        pages.send(page).await.map_err(|_| Unavailable::Network)?;
    }
    if records == ended.records { Ok(Listed { complete: ended.complete }) } else { Err(Unavailable::Protocol) }
}

/// Time for which a lease holds unless it is renewed, and after which it is.
const LEASE: Duration = Duration::from_secs(30);
pub(super) const RENEW: Duration = Duration::from_secs(8);

/// Time between two looks whether another service's list has ended.
const LOOK: Duration = Duration::from_secs(1);

/// Longest wait for another service's list, and longest time for which one that began is remembered.
const LONGEST: Duration = Duration::from_secs(20 * 60);

/// Time between taking the lease and beginning: every service that hears looks at least twice in it.
const SETTLE: Duration = Duration::from_millis(1200);

/// Most lists that began and are remembered.
const MOST: usize = 8;

/// Most records in a page that is kept, and the most bytes.
const RECORDS: usize = 256;
const LARGEST: usize = 16 << 20;
