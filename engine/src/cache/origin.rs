//! Where a list of devices comes from: the management, or another service on the store that read it lately.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use posture::record::{Fields, Record};
use posture::time::UnixTime;
use sha2::{Digest as _, Sha256};
use store::{Begun, Ended, Store, StoreError};
use tokio::time::Instant;

use super::Cache;
use super::elsewhere::{Asked, LEASE, Publisher};

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
        Asked { open: self.knowledge.ask(), at, since, clock: clock::now() }
    }

    /// Chooses where a list comes from: one that another service read lately, or is about to end, or the management, under a lease
    /// where that can be had. `since`: the time since which a list of changes is to have everything; `None`: a list of everything.
    pub(super) async fn origin(&self, fields: Fields, since: Option<UnixTime>) -> Origin {
        let (Some(store), Some(sync)) = (self.fleet.store(), self.sync) else { return Origin::Own };
        let kind = self.kind_of_list(fields);
        let id = format!("{:032x}", rand::random::<u128>());
        let asked = Instant::now();
        let until = asked + LONGEST;
        let shared = async {
            loop {
                if let Some(found) = self.read_elsewhere(store, &kind, since, sync.partial).await? {
                    return Ok(found);
                }
                if store.lease(&kind, &id, LEASE).await? {
                    break;
                }
                // A list whose beginning was not heard is of no use here, so nobody waits for its end who has no list at all yet.
                let has_none = self.sweeps.applied.load(Ordering::Acquire) == 0;
                let may_come = !has_none || self.elsewhere.awaits(self.sweeps.due().max(self.sweeps.begun()));
                if Instant::now() >= until || (!may_come && asked.elapsed() >= HEARS) {
                    tracing::info!(
                        provider = &*self.name,
                        "another service reads a list that cannot be waited for: this one reads its own"
                    );
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
            Ok::<_, StoreError>(Origin::Shared(Publisher::new(store.clone(), begun)))
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
            // It has everything since a time that is before the last list here: what each asks for overlaps by more than this.
            (Some(since), Some(of)) => of <= since.saturating_add(NEARLY).as_nanos(),
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

/// Time between two looks whether another service's list has ended.
const LOOK: Duration = Duration::from_secs(1);

/// Longest wait for another service's list, and longest time for which one that began is remembered.
const LONGEST: Duration = Duration::from_secs(20 * 60);

/// Time between taking the lease and beginning: every service that hears looks at least twice in it.
const SETTLE: Duration = Duration::from_millis(1200);

/// Time in which the beginning of a list is heard that another service has the lease for.
const HEARS: Duration = Duration::from_secs(5);

/// Part of [`super::bounds::OVERLAP`] by which the time of another service's list may be later than that of this one's.
const NEARLY: Duration = Duration::from_secs(60);
