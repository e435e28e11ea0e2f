//! The order in which a service was asked: what was learned of a device counts by the moment of its question, and nothing that
//! was asked earlier overtakes what was asked later, whatever arrives last.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::mark::Mark;

/// The moment at which something was asked or heard in this process, as a number that grows: two moments are never equal, and
/// those of one service compare with those of another and of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// A moment later than all before.
    pub fn now() -> Self {
        Self(LAST.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// The moment after which nothing comes.
    pub const NEVER: Self = Self(u64::MAX);
}

static LAST: AtomicU64 = AtomicU64::new(0);

/// The order of one service's questions, and what their answers told.
#[derive(Debug)]
pub(super) struct Order {
    told: Mutex<Told>,
}

/// Answers that are kept for comparison while older questions are open.
#[derive(Debug)]
pub(super) struct Told {
    /// Moments of the questions that are open.
    open: BTreeSet<Moment>,
    /// The newest question that told something of each mark, and the device that it told of.
    newest: HashMap<Mark, (Moment, Option<Mark>)>,
    /// Moment before which questions come to nothing: what their answers would be compared with was not kept.
    void: Moment,
    /// Number of marks at which the next clean-up runs.
    tidy_at: usize,
    most: usize,
}

/// A question that is open until it is dropped.
#[derive(Debug)]
pub(super) struct Open {
    order: Arc<Order>,
    moment: Moment,
}

impl Order {
    /// An order with room for `most` marks; beyond it, the questions that are open come to nothing.
    pub(super) fn new(most: usize) -> Self {
        let told = Told { open: BTreeSet::new(), newest: HashMap::new(), void: Moment::default(), tidy_at: 0, most };
        Self { told: Mutex::new(told) }
    }

    /// Opens a question, at a new moment.
    pub(super) fn ask(self: &Arc<Self>) -> Open {
        let mut told = self.lock();
        let moment = Moment::now();
        told.open.insert(moment);
        Open { order: Arc::clone(self), moment }
    }

    /// Takes the answer to the question of this moment. `learn` compares it with what was told since; no other answer is taken
    /// meanwhile. `None` where the answer comes to nothing.
    pub(super) fn take<R>(&self, asked: Moment, learn: impl FnOnce(&mut Told) -> Option<R>) -> Option<R> {
        let mut told = self.lock();
        if asked < told.void { None } else { learn(&mut told) }
    }

    /// Voids all questions from before this moment, at which a list was asked for: the list has more records than could be kept
    /// for a comparison.
    pub(super) fn supersede(&self, asked: Moment) {
        let mut told = self.lock();
        told.void = told.void.max(asked);
    }

    /// Whether the question of this moment comes to nothing, as it stands.
    pub(super) fn is_void(&self, asked: Moment) -> bool {
        asked < self.lock().void
    }

    /// Whether half of the room for comparisons is taken: a question that can be given up should be.
    pub(super) fn is_crowded(&self) -> bool {
        let told = self.lock();
        told.newest.len() > told.most / 2
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    /// The device that a question after this moment told of the mark. `None`: there was no such question; `Some(None)`: it told
    /// of no single device.
    pub(super) fn since(&self, mark: Mark, asked: Moment) -> Option<Option<Mark>> {
        self.newest.get(&mark).filter(|(newest, _)| *newest > asked).map(|(_, device)| *device)
    }

    /// Notes what the question of this moment told of a mark: a device, or that there is none or more than one.
    pub(super) fn tell(&mut self, asked: Moment, mark: Mark, device: Option<Mark>) {
        // Only an older question can be overtaken, so without one that is open nothing has to be kept.
        if self.open.range(self.void..).next().is_none_or(|oldest| *oldest >= asked) {
            return;
        }
        let newest = self.newest.entry(mark).or_default();
        if asked >= newest.0 {
            *newest = (asked, device);
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        if self.newest.len() <= self.tidy_at.max(LEAST) {
            return;
        }
        let oldest = self.open.first().copied().unwrap_or(Moment::NEVER);
        self.newest.retain(|_, (newest, _)| *newest > oldest);
        if self.newest.len() > self.most {
            self.void = Moment::now();
            self.newest = HashMap::new();
        }
        self.tidy_at = self.newest.len().saturating_mul(2);
    }
}

impl Open {
    /// Moment of the question.
    pub(super) const fn moment(&self) -> Moment {
        self.moment
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut told = self.order.lock();
        told.open.remove(&self.moment);
        if told.open.is_empty() && !told.newest.is_empty() {
            told.newest = HashMap::new();
            told.tidy_at = 0;
        }
    }
}

/// Number of marks below which nothing is cleaned up.
const LEAST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(text: &str) -> Mark {
        Mark::identifier(text)
    }

    /// Takes an answer about a device; returns whether no later question had told of it.
    fn take(order: &Order, open: &Open, text: &str) -> bool {
        order
            .take(open.moment(), |told| {
                let overtaken = told.since(mark(text), open.moment()).is_some();
                told.tell(open.moment(), mark(text), Some(mark(text)));
                (!overtaken).then_some(())
            })
            .is_some()
    }

    #[test]
    fn an_answer_is_overtaken_by_one_that_was_asked_later_and_by_no_other() {
        let order = Arc::new(Order::new(100));
        let (first, second) = (order.ask(), order.ask());
        assert!(take(&order, &second, "a"));
        assert!(!take(&order, &first, "a"), "what was asked later is known already");
        assert!(take(&order, &first, "b"), "nobody asked about it since");
        assert!(take(&order, &second, "b"), "the later question may answer last");
        let third = order.ask();
        assert!(take(&order, &third, "a") && !take(&order, &second, "a"));
    }

    #[test]
    fn nothing_is_kept_once_no_older_question_is_open() {
        let order = Arc::new(Order::new(100));
        let first = order.ask();
        for number in 0..1000 {
            let open = order.ask();
            assert!(take(&order, &open, &format!("d{}", number % 50)));
        }
        assert_eq!(order.lock().newest.len(), 50);
        drop(first);
        assert!(order.lock().newest.is_empty());
        let alone = order.ask();
        assert!(take(&order, &alone, "a"));
        assert!(order.lock().newest.is_empty());
    }

    #[test]
    fn what_there_is_no_room_to_compare_with_comes_to_nothing() {
        let order = Arc::new(Order::new(100));
        let first = order.ask();
        for number in 0..1000 {
            let open = order.ask();
            assert!(take(&order, &open, &format!("d{number}")));
        }
        assert!(order.lock().newest.len() <= 300);
        assert!(!take(&order, &first, "never asked"));
        let later = order.ask();
        assert!(take(&order, &later, "d0"));
    }

    #[test]
    fn a_list_is_compared_with_later_questions_and_ends_earlier_ones() {
        let order = Arc::new(Order::new(100));
        let (early, list, late) = (order.ask(), order.ask(), order.ask());
        assert!(take(&order, &late, "a"));
        assert!(!take(&order, &list, "a"));
        order.supersede(list.moment());
        assert!(take(&order, &list, "b"));
        assert!(!take(&order, &early, "c"));
        assert!(take(&order, &late, "c"));
    }

    #[test]
    fn what_no_question_that_is_open_can_be_compared_with_is_given_up() {
        let order = Arc::new(Order::new(1000));
        let tell = |many: usize, name: &str| {
            for number in 0..many {
                assert!(take(&order, &order.ask(), &format!("{name}{number}")));
            }
        };
        let oldest = order.ask();
        tell(LEAST - 4, "d");
        let older = order.ask();
        drop(oldest);
        tell(4, "e");
        assert_eq!(order.lock().newest.len(), LEAST, "there is no clean-up below that");
        tell(1, "f");
        assert_eq!(order.lock().newest.len(), 5);
        drop(older);
    }

    #[test]
    fn there_is_room_for_as_many_as_it_says() {
        let order = Arc::new(Order::new(LEAST + 1));
        let first = order.ask();
        for number in 0..=LEAST {
            assert!(take(&order, &order.ask(), &format!("d{number}")));
        }
        assert!(take(&order, &first, "never asked") && !take(&order, &first, "d0"));
    }

    #[test]
    fn what_one_list_told_overtakes_nothing_of_the_same_list() {
        let order = Arc::new(Order::new(100));
        let (_earlier, list) = (order.ask(), order.ask());
        assert!(take(&order, &list, "a") && take(&order, &list, "a"));
    }

    #[test]
    fn a_list_takes_no_room_though_an_older_question_stays_open() {
        let order = Arc::new(Order::new(100));
        let (standing, list) = (order.ask(), order.ask());
        order.supersede(list.moment());
        for number in 0..1000 {
            assert!(take(&order, &list, &format!("d{number}")));
        }
        assert!(order.lock().newest.is_empty() && order.is_void(standing.moment()) && !order.is_void(list.moment()));
        for number in 0..51 {
            assert!(!order.is_crowded());
            assert!(take(&order, &order.ask(), &format!("e{number}")));
        }
        assert!(order.is_crowded());
    }
}
