//! News of rulings: what other services changed in a store that they share.

use crate::id::DecisionId;
use crate::mark::Mark;
use crate::ruling::Ruling;

/// The last change of a ruling that a service has heeded. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Number of changes up to this one.
    pub(crate) version: i64,
    /// Random number of the change. `None`: there was no change, or it was made before changes had one.
    pub(crate) token: Option<i64>,
}

/// The news since a change.
#[derive(Debug)]
pub struct News {
    /// The last change that is among the news: from here the next news go on.
    pub heard: Heard,
    /// Whether there was more, which did not fit.
    pub more: bool,
    /// The news.
    pub told: Told,
}

/// What is told of rulings.
#[derive(Debug)]
pub enum Told {
    /// Nothing has changed.
    Nothing,
    /// These changes.
    Changes(Changes),
    /// Every ruling, since what had changed is not known any more.
    All(Rulings),
}

/// Changes of rulings. What was made and forgotten in them is among the forgotten alone.
#[derive(Debug, Default)]
pub struct Changes {
    /// The rulings that were made.
    pub made: Vec<Ruling>,
    /// Identifiers that locks have come to cover besides their own, of new and of old locks.
    pub covered: Vec<(DecisionId, Mark)>,
    /// The rulings that were taken back.
    pub forgotten: Vec<DecisionId>,
}

/// All rulings of a store at one moment.
#[derive(Debug, Default)]
pub struct Rulings {
    /// The last change that was made to them.
    pub heard: Heard,
    /// The rulings.
    pub rulings: Vec<Ruling>,
    /// Identifiers that each lock covers besides its own.
    pub covered: Vec<(DecisionId, Mark)>,
    /// Whether changes that were heard before are lost, as where a standby took over that did not have them yet.
    pub went_back: bool,
    /// Where changes are lost: the rulings that the store remembers as taken back, in the last day.
    pub forgotten: Vec<DecisionId>,
}
