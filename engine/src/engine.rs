//! The engine of decisions: the current snapshot, what operators ruled, and what is remembered, counted and kept.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use posture::caller::Caller;
use posture::shape::Mode;
use store::{Sent, Store, StoreError};

use crate::digest::bytes_of;
use crate::fleet::Fleet;
use crate::locks::Locks;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::replay::{Elsewhere, Key, Replay, ReplayMemory, Ticket};
use crate::snapshot::Snapshot;
use crate::webhooks::Webhook;

/// Everything that a decision goes by, for as long as the process lives.
#[derive(Debug)]
pub struct Engine {
    snapshot: ArcSwap<Snapshot>,
    /// The replay memory: webhooks that were decided.
    pub memory: Arc<ReplayMemory>,
    /// The certificates of callers that were read.
    pub peers: Peers,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// The store, which outlives the process; none until [`Engine::keep_in`] gives one.
    pub store: Store,
    /// The rulings of operators about single devices.
    pub locks: Arc<Locks>,
    /// The caches of the services on the store.
    pub fleet: Arc<Fleet>,
}

impl Engine {
    /// An engine with this snapshot, no store, and a replay memory of these bounds for the webhook ids of each `[[webhook]]`.
    pub fn new(snapshot: Snapshot, locks: Arc<Locks>, bounds: Replay, tables: &[Vec<&str>], metrics: Arc<Metrics>) -> Self {
        let memory = Arc::new(ReplayMemory::new(bounds));
        memory.set_bounds(bounds, tables);
        let (peers, store, fleet) = (Peers::default(), Store::none(), Arc::default());
        Self { snapshot: ArcSwap::from_pointee(snapshot), memory, peers, metrics, store, locks, fleet }
    }

    /// The engine with the fleet that its caches are among.
    #[must_use]
    pub fn among(mut self, fleet: Arc<Fleet>) -> Self {
        self.fleet = fleet;
        self
    }

    /// The current snapshot.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Puts another snapshot in the place of the current one.
    pub fn replace(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }

    /// Takes the rulings that a store has, and keeps new rulings and decisions there.
    ///
    /// # Errors
    /// [`StoreError`]: rulings or decisions cannot be read. Without the rulings, locked devices would be let in.
    pub async fn keep_in(&mut self, store: Store) -> Result<(), StoreError> {
        let now = clock::now();
        // The rulings go into the locks that are there, since whoever learns of identifiers has these already.
        self.locks.keep_in(store.clone(), now).await?;
        self.fleet.keep_in(&store).await?;
        self.store = store;
        self.recall().await
    }

    /// Asks the other services on the store about a webhook of this caller that is new here, and is remembered for `keep`. Those that
    /// cannot be asked are told later, and the webhook is decided here.
    pub async fn elsewhere(
        &self,
        ticket: &Ticket,
        webhook: &Webhook,
        (caller, mode): (&Caller, Option<Mode>),
        keep: Duration,
    ) -> Elsewhere {
        ticket.claim(&self.store, (caller, mode), keep, webhook.settings.deadline / 2).await.unwrap_or_else(|_| {
            self.metrics.replay_unshared.inc();
            Elsewhere::Nobody
        })
    }

    /// Whether webhooks that are new here are asked about elsewhere.
    pub fn shares_replay(&self) -> bool {
        self.store.is_shared() && self.memory.bounds().shared
    }

    /// Takes into the replay memory what earlier processes decided, so that no other caller can send it again.
    ///
    /// # Errors
    /// [`StoreError`]: the decisions cannot be read.
    pub async fn recall(&self) -> Result<(), StoreError> {
        if !self.store.keeps_decisions() {
            return Ok(());
        }
        let window = self.snapshot().webhooks.values().map(|webhook| webhook.settings.keep()).max().unwrap_or_default();
        // New webhooks need room as well.
        let most = u32::try_from(self.memory.bounds().max_entries / 2).unwrap_or(u32::MAX);
        let forgotten = remember(&self.memory, &self.store.sent(window, most).await?, window);
        if forgotten > 0 {
            tracing::warn!(forgotten, "the replay memory has no room for all that was decided before the start: raise [replay]");
        }
        Ok(())
    }
}

/// Takes sent webhooks into the replay memory; returns for how many there was no room.
pub(crate) fn remember(memory: &ReplayMemory, sent: &[Sent], window: Duration) -> usize {
    let kept = sent.iter().filter_map(|sent| Some((Key::of_digest(&sent.webhook, &bytes_of(&sent.inputs)?), sent.caller)));
    kept.map(|(key, caller)| memory.recall(key, caller, window)).filter(|recalled| !recalled).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::digest;

    #[test]
    fn g8_what_a_start_has_no_room_for_is_counted_and_what_has_no_digest_is_passed_over() {
        let memory = ReplayMemory::new(Replay { max_entries: 1, max_bytes: 1 << 20, shared: false });
        let sent = |inputs: String| Sent { webhook: "one".to_owned(), inputs, caller: store::Sender::of("anonymous") };
        let [first, second] = ["first", "second"].map(|body| sent(digest(body.as_bytes())));
        let window = Duration::from_secs(40);
        assert_eq!(remember(&memory, &[sent(String::new()), first.clone(), first.clone()], window), 0);
        assert_eq!(remember(&memory, &[first, second.clone(), second], window), 2);
        assert_eq!(memory.usage().entries, 1);
    }
}
