//! Notices that other services are to be told, until they are heard back from the store.

use std::collections::BTreeSet;

use store::{About, Notice};
use tokio::time::Instant;

/// Notices to tell, oldest first, in bounds: what there is no room for takes everything from the provider's caches.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Vec<Notice>,
    sent: Vec<Sent>,
    /// Number of times that something was added.
    added: u64,
    /// Whether the last attempt failed.
    is_away: bool,
}

/// Notices that were sent to the store and not heard back yet.
#[derive(Debug)]
struct Sent {
    token: i64,
    notices: Vec<Notice>,
    /// Moment at which the store had them; `None` while it is asked.
    told: Option<Instant>,
}

/// Notices to tell at once.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) token: i64,
    pub(super) notices: Vec<Notice>,
    /// The number of the last addition, where all of it is told with these.
    pub(super) last: Option<u64>,
}

impl Outbox {
    /// Adds what was taken from a provider's cache; returns the number of the addition, and whether the store is away.
    pub(super) fn add(&mut self, provider: &str, all: Vec<About>) -> (u64, bool) {
        self.added += 1;
        self.waiting.extend(all.into_iter().map(|about| Notice { provider: provider.to_owned(), about }));
        if self.len() > MOST {
            self.shorten(|notice| notice.provider == provider);
        }
        if self.len() > MOST {
            self.shorten(|_| true);
        }
        (self.added, self.is_away)
    }

    /// Number of the last addition.
    pub(super) const fn last(&self) -> u64 {
        self.added
    }

    /// Puts one notice about everything in the place of all that these providers have.
    fn shorten(&mut self, is_meant: impl Fn(&Notice) -> bool) {
        self.waiting.extend(self.sent.drain(..).flat_map(|sent| sent.notices));
        let (long, short): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting).into_iter().partition(is_meant);
        let everything: BTreeSet<_> = long.into_iter().map(|Notice { provider, about }| (provider, about == About::PurgeAll)).collect();
        self.waiting = short;
        self.waiting.extend(everything.into_iter().map(|(provider, purged)| {
            // Where some of it revoked, all of it does.
            let about = if purged { About::PurgeAll } else { About::All { revoking: true } };
            Notice { provider, about }
        }));
    }

    fn len(&self) -> usize {
        self.waiting.len() + self.sent.iter().map(|sent| sent.notices.len()).sum::<usize>()
    }

    /// Takes the oldest notices that were not sent.
    pub(super) fn take(&mut self) -> Option<Batch> {
        if self.waiting.is_empty() {
            return None;
        }
        let notices: Vec<_> = self.waiting.drain(..self.waiting.len().min(AT_ONCE)).collect();
        let token = rand::random();
        self.sent.push(Sent { token, notices: notices.clone(), told: None });
        Some(Batch { token, notices, last: self.waiting.is_empty().then_some(self.added) })
    }

    /// Notes that the store took a batch; returns whether it had been away.
    pub(super) fn took(&mut self, token: i64) -> bool {
        if let Some(sent) = self.sent.iter_mut().find(|sent| sent.token == token) {
            sent.told = Some(Instant::now());
        }
        std::mem::take(&mut self.is_away)
    }

    /// Puts back a batch of which nobody knows whether the store took it; returns whether the store was not away before.
    pub(super) fn failed(&mut self, token: i64) -> bool {
        self.put_back(|sent| sent.token == token);
        !std::mem::replace(&mut self.is_away, true)
    }

    /// Notes that batches were heard back.
    pub(super) fn heard(&mut self, tokens: &[i64]) {
        self.sent.retain(|sent| !tokens.contains(&sent.token));
    }

    /// Puts back what the store had before a look that began at this moment and did not find it; returns whether there was any.
    pub(super) fn lost_before(&mut self, asked: Instant) -> bool {
        self.put_back(|sent| sent.told.is_some_and(|told| told < asked))
    }

    fn put_back(&mut self, is_meant: impl Fn(&Sent) -> bool) -> bool {
        let (back, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut self.sent).into_iter().partition(is_meant);
        self.sent = stay;
        let any = !back.is_empty();
        self.waiting.splice(..0, back.into_iter().flat_map(|sent| sent.notices));
        any
    }
}

/// Most notices that are kept: an event that names more devices counts for all of the provider's.
const MOST: usize = 10_000;

/// Most notices that are told at once.
const AT_ONCE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mark: i64) -> About {
        About::Device { mark, revoking: false }
    }

    fn notice(provider: &str, about: About) -> Notice {
        Notice { provider: provider.to_owned(), about }
    }

    #[test]
    fn what_is_told_is_kept_until_it_is_heard_back() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.add("a", vec![of(1)]), (1, false));
        let batch = outbox.take().unwrap();
        assert_eq!((&batch.notices[..], batch.last), (&[notice("a", of(1))][..], Some(1)));
        assert!(outbox.take().is_none());
        assert!(!outbox.lost_before(Instant::now()), "nobody knows yet whether it was taken");
        assert!(!outbox.took(batch.token));
        assert!(outbox.lost_before(Instant::now()) && !outbox.lost_before(Instant::now()));
        let again = outbox.take().unwrap();
        assert_eq!(again.notices, batch.notices);
        outbox.took(again.token);
        outbox.heard(&[again.token]);
        assert!(!outbox.lost_before(Instant::now()) && outbox.len() == 0);
    }

    #[test]
    fn what_failed_is_told_before_what_came_meanwhile() {
        let mut outbox = Outbox::default();
        outbox.add("a", vec![of(1)]);
        let batch = outbox.take().unwrap();
        assert_eq!(outbox.add("b", vec![of(2)]), (2, false));
        assert!(outbox.failed(batch.token) && !outbox.failed(batch.token), "said once");
        assert_eq!(outbox.add("b", vec![of(3)]), (3, true));
        let batch = outbox.take().unwrap();
        assert_eq!(batch.notices, [notice("a", of(1)), notice("b", of(2)), notice("b", of(3))]);
        assert!(outbox.took(batch.token), "it is back");
    }

    #[test]
    fn of_many_as_many_are_told_at_once_as_fit_and_the_last_says_so() {
        let mut outbox = Outbox::default();
        outbox.add("a", (0..).take(AT_ONCE + 1).map(of).collect());
        let (first, second) = (outbox.take().unwrap(), outbox.take().unwrap());
        assert_eq!((first.notices.len(), first.last, second.notices.len(), second.last), (AT_ONCE, None, 1, Some(1)));
    }

    #[test]
    fn what_there_is_no_room_for_takes_everything_of_its_provider() {
        let mut outbox = Outbox::default();
        outbox.add("a", vec![of(1)]);
        outbox.add("b", vec![of(0), About::PurgeAll]);
        let sent = outbox.take().unwrap();
        outbox.took(sent.token);
        outbox.add("b", (0..).take(MOST - 3).map(of).collect());
        assert_eq!(outbox.len(), MOST);
        outbox.add("b", vec![of(9)]);
        let left = outbox.take().unwrap().notices;
        let of_b = [notice("b", About::All { revoking: true }), notice("b", About::PurgeAll)];
        assert!(left.len() == 3 && left.contains(&notice("a", of(1))) && of_b.iter().all(|notice| left.contains(notice)), "{left:?}");
        // Many providers may have something each.
        for provider in 0..5 {
            outbox.add(&provider.to_string(), (0..).take(MOST / 4).map(of).collect());
        }
        assert!(outbox.len() <= MOST, "{}", outbox.len());
    }
}
