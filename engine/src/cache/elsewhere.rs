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
use posture::record::Record;
use posture::time::UnixTime;
use store::{Begun, Ended, Store, StoreError};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::order::{Moment, Open};

/// A question that is open, and when it was opened.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) open: Open,
    /// Time of the question, in milliseconds of the cache's clock.
    pub(super) at: u64,
    pub(super) since: Instant,
    /// Time of the question by this service's clock.
    pub(super) clock: UnixTime,
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

/// What is known of lists, between the looks at what others tell.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The question that was opened before the look that is under way.
    pub(super) looking: Option<Asked>,
    /// The question that was opened before the last look that found all that was told: what is told later came after it.
    pub(super) looked: Option<Arc<Asked>>,
    /// Lists that began, by their ids, with a question from before each.
    pub(super) began: VecDeque<(String, Arc<Asked>)>,
}

impl Elsewhere {
    pub(super) fn lock(&self) -> MutexGuard<'_, Known> {
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

    /// Whether a list began after this moment that has not been taken.
    pub(super) fn awaits(&self, after: Moment) -> bool {
        self.lock().began.iter().any(|(_, asked)| asked.moment() > after)
    }

    pub(super) fn asked(&self, id: &str) -> Option<Arc<Asked>> {
        self.lock().began.iter().find(|(began, _)| began == id).map(|(_, asked)| Arc::clone(asked))
    }

    /// Forgets the lists that began no later than this moment.
    pub(super) fn took(&self, moment: Moment) {
        self.lock().began.retain(|(_, asked)| asked.moment() > moment);
    }

    pub(super) fn go_apart(&self, error: &StoreError) {
        if !self.is_apart.swap(true, Ordering::Relaxed) {
            tracing::warn!(error = error.text(), "lists of devices are not shared with other services: each reads for itself");
        }
    }

    pub(super) fn come_together(&self) {
        self.is_apart.store(false, Ordering::Relaxed);
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
    /// A list that begins, under a lease that was just taken.
    pub(super) fn new(store: Store, begun: Begun) -> Self {
        Self { store, begun, pages: 0, records: 0, renewed: Instant::now(), failed: false }
    }

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
pub(super) const LEASE: Duration = Duration::from_secs(30);
pub(super) const RENEW: Duration = Duration::from_secs(8);

/// Most lists that began and are remembered.
const MOST: usize = 8;

/// Most records in a page that is kept, and the most bytes.
const RECORDS: usize = 256;
const LARGEST: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::super::order::Order;
    use super::*;

    #[test]
    fn a_list_is_awaited_that_began_after_a_moment_until_it_is_taken() {
        let (order, elsewhere) = (Arc::new(Order::new(10)), Elsewhere::default());
        let ask = || Asked { open: order.ask(), at: 0, since: Instant::now(), clock: UnixTime::from_nanos(0) };
        let (before, asked, after) = (ask().moment(), ask(), ask().moment());
        let began = asked.moment();
        elsewhere.begins("unknown");
        assert!(!elsewhere.awaits(before), "nothing was looked at before it began");
        elsewhere.lock().looked = Some(Arc::new(asked));
        elsewhere.begins("a list");
        assert_eq!([before, began, after].map(|moment| elsewhere.awaits(moment)), [true, false, false]);
        elsewhere.took(began);
        assert!(!elsewhere.awaits(before));
    }
}
