//! The bounds on time and memory for the checks of one decision.

use std::cell::Cell;

use super::fault::Fault;
use super::value::Value;

/// Most steps for all checks of a decision, or for its `data`. A step is a part of an expression, an item of a list, or a few
/// bytes of a text. The bound takes ten milliseconds or so; ten checks over ten groups take about a hundred steps.
pub(super) const MOST_STEPS: usize = 500_000;

/// Most bytes of texts and lists that the checks of a decision may make.
pub(super) const MOST_BYTES: usize = 16 << 20;

/// Items of a list, or bytes of a text, for one step: those that are compared, searched, matched with a pattern, or written
/// from a number or a time.
pub(super) const ITEMS: usize = 8;
pub(super) const COMPARED: usize = 64;
pub(super) const SEARCHED: usize = 16;
pub(super) const MATCHED: usize = 4;
pub(super) const WRITTEN: usize = 4;

const TOO_MUCH: Fault = Fault::new("it takes too long, or too much memory, with what this device has");

/// The steps and bytes that the checks of a decision have left, of [`MOST_STEPS`] and [`MOST_BYTES`].
pub(super) struct Work {
    steps: Cell<usize>,
    bytes: Cell<usize>,
}

impl Work {
    pub(super) const fn new() -> Self {
        Self { steps: Cell::new(MOST_STEPS), bytes: Cell::new(MOST_BYTES) }
    }

    /// Takes steps. Once they are used up, nothing can be evaluated any more, so that no part of an expression decides
    /// without the others.
    pub(super) fn spend(&self, steps: usize) -> Result<(), Fault> {
        take(&self.steps, steps)
    }

    /// Takes bytes, before the text or list is made.
    pub(super) fn make(&self, bytes: usize) -> Result<(), Fault> {
        take(&self.bytes, bytes)?;
        self.spend(bytes / COMPARED)
    }

    /// Takes the bytes of a list with so many items.
    pub(super) fn list(&self, items: usize) -> Result<(), Fault> {
        self.make(items.saturating_mul(size_of::<Value<'_>>()))
    }

    /// Steps and bytes that were taken.
    #[cfg(test)]
    pub(super) fn spent(&self) -> (usize, usize) {
        (MOST_STEPS - self.steps.get(), MOST_BYTES - self.bytes.get())
    }
}

fn take(left: &Cell<usize>, wanted: usize) -> Result<(), Fault> {
    match left.get().checked_sub(wanted) {
        Some(rest) => {
            left.set(rest);
            Ok(())
        }
        None => {
            left.set(0);
            Err(TOO_MUCH)
        }
    }
}
