//! The order in which a service was asked: what was learned of a device counts by the moment of its question, and nothing that
//! was asked earlier overtakes what was asked later, whatever arrives last.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::entry::Mark;

/// The moment at which something was asked or heard, as a number that grows: two moments are never equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Moment(u64);

/// The moments of one service's questions and events.
#[derive(Debug)]
pub(super) struct Order {
    inner: Mutex<Inner>,
    most: usize,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    /// Questions that were not answered yet.
    open: BTreeSet<Moment>,
    /// The newest question that was answered about each device, for as long as an older one is open.
    answered: HashMap<Mark, Moment>,
    /// Answers to questions before this are dropped: what they would have to be compared with was forgotten.
    forgotten: Moment,
    /// Answers that are kept before it is looked which are still of use.
    tidy_at: usize,
}

/// A question that is open until it is dropped.
#[derive(Debug)]
pub(super) struct Open {
    order: Arc<Order>,
    moment: Moment,
}

impl Order {
    /// An order with room for the answers about so many devices; beyond it, the questions that are open come to nothing.
    pub(super) fn new(most: usize) -> Self {
        Self { inner: Mutex::default(), most }
    }

    /// A moment later than all before.
    pub(super) fn moment(&self) -> Moment {
        self.lock().next()
    }

    /// Begins a question.
    pub(super) fn ask(self: &Arc<Self>) -> Open {
        let mut inner = self.lock();
        let moment = inner.next();
        inner.open.insert(moment);
        Open { order: Arc::clone(self), moment }
    }

    /// Takes the answer to a question of `asked` about the devices with these marks, unless a later question about any of them
    /// was answered already; `learn` runs before any other answer is taken.
    pub(super) fn take<R>(&self, asked: Moment, marks: &[Mark], learn: impl FnOnce() -> R) -> Option<R> {
        let mut inner = self.lock();
        if inner.is_overtaken(asked, marks) {
            return None;
        }
        inner.answer(asked, marks, self.most);
        Some(learn())
    }

    /// Takes the answer that one of these has several owners. What was asked later about one of the owners takes nothing of it
    /// back, so `learn` has to look whether the service was asked later by the identifier itself.
    pub(super) fn take_doubt<R>(&self, asked: Moment, mark: Mark, learn: impl FnOnce() -> Option<R>) -> Option<R> {
        let mut inner = self.lock();
        if inner.is_overtaken(asked, &[]) {
            return None;
        }
        inner.answer(asked, &[mark], self.most);
        learn()
    }

    /// The same for one record of a list: it is compared with later questions, and an earlier one is compared with the record
    /// that it left, so nothing of it is kept here.
    pub(super) fn take_listed<R>(&self, asked: Moment, marks: &[Mark], learn: impl FnOnce() -> R) -> Option<R> {
        let inner = self.lock();
        (!inner.is_overtaken(asked, marks)).then(learn)
    }

    /// A list of everything that was asked for at this moment is known: answers to earlier questions come to nothing.
    pub(super) fn supersede(&self, asked: Moment) {
        let mut inner = self.lock();
        inner.forgotten = inner.forgotten.max(asked);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    const fn next(&mut self) -> Moment {
        self.last = self.last.saturating_add(1);
        Moment(self.last)
    }

    fn is_overtaken(&self, asked: Moment, marks: &[Mark]) -> bool {
        asked < self.forgotten || marks.iter().any(|mark| self.answered.get(mark).is_some_and(|newest| *newest > asked))
    }

    /// Remembers that these were asked about, if an older question is still open: the newest needs no entry of its own.
    fn answer(&mut self, asked: Moment, marks: &[Mark], most: usize) {
        if self.open.first().is_some_and(|oldest| *oldest < asked) {
            for mark in marks {
                let newest = self.answered.entry(*mark).or_default();
                *newest = asked.max(*newest);
            }
            self.tidy(most);
        }
    }

    fn tidy(&mut self, most: usize) {
        if self.answered.len() <= self.tidy_at.max(LEAST) {
            return;
        }
        let oldest = self.open.first().copied().unwrap_or(Moment(u64::MAX));
        self.answered.retain(|_, newest| *newest > oldest);
        if self.answered.len() > most {
            self.forgotten = Moment(self.last.saturating_add(1));
            self.answered = HashMap::new();
        }
        self.tidy_at = self.answered.len().saturating_mul(2);
    }
}

impl Open {
    /// When it was asked.
    pub(super) const fn moment(&self) -> Moment {
        self.moment
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut inner = self.order.lock();
        inner.open.remove(&self.moment);
        if inner.open.is_empty() && !inner.answered.is_empty() {
            inner.answered = HashMap::new();
            inner.tidy_at = 0;
        }
    }
}

/// Answers that are kept without a look at whether they are of use.
const LEAST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(text: &str) -> Mark {
        Mark::identifier(text)
    }

    #[test]
    fn an_answer_is_overtaken_by_one_that_was_asked_later_and_by_no_other() {
        let order = Arc::new(Order::new(100));
        let (first, second) = (order.ask(), order.ask());
        let take = |open: &Open, text| order.take(open.moment(), &[mark(text)], || ()).is_some();
        assert!(take(&second, "a"));
        assert!(!take(&first, "a"), "what was asked later is known already");
        assert!(take(&first, "b"), "nobody asked about it since");
        assert!(take(&second, "b"), "the later question may answer last");
        let third = order.ask();
        assert!(take(&third, "a") && !take(&second, "a"));
    }

    #[test]
    fn nothing_is_kept_once_no_older_question_is_open() {
        let order = Arc::new(Order::new(100));
        let first = order.ask();
        for number in 0..1000 {
            let open = order.ask();
            order.take(open.moment(), &[mark(&format!("d{}", number % 50))], || ()).unwrap();
        }
        assert_eq!(order.lock().answered.len(), 50);
        drop(first);
        assert!(order.lock().answered.is_empty());
        let alone = order.ask();
        order.take(alone.moment(), &[mark("a")], || ()).unwrap();
        assert!(order.lock().answered.is_empty());
    }

    #[test]
    fn what_there_is_no_room_to_compare_with_comes_to_nothing() {
        let order = Arc::new(Order::new(100));
        let first = order.ask();
        for number in 0..1000 {
            let open = order.ask();
            assert!(order.take(open.moment(), &[mark(&format!("d{number}"))], || ()).is_some());
        }
        assert!(order.lock().answered.len() <= 300);
        assert!(order.take(first.moment(), &[mark("never asked")], || ()).is_none());
        assert!(order.take(order.ask().moment(), &[mark("d0")], || ()).is_some());
    }

    #[test]
    fn a_list_is_compared_with_later_questions_and_ends_earlier_ones() {
        let order = Arc::new(Order::new(100));
        let (early, list, late) = (order.ask(), order.ask(), order.ask());
        order.take(late.moment(), &[mark("a")], || ()).unwrap();
        assert!(order.take_listed(list.moment(), &[mark("a")], || ()).is_none());
        assert!(order.take_listed(list.moment(), &[mark("b")], || ()).is_some());
        order.supersede(list.moment());
        assert!(order.take(early.moment(), &[mark("c")], || ()).is_none());
        assert!(order.take(late.moment(), &[mark("c")], || ()).is_some());
    }
}
