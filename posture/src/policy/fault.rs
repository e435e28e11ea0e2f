//! The error of an evaluation.

use std::borrow::Cow;

/// Error: a value cannot be had; the check that needs it denies. Holds the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault(pub(super) Cow<'static, str>);

impl Fault {
    pub(super) const fn new(why: &'static str) -> Self {
        Self(Cow::Borrowed(why))
    }
}

pub(super) const TYPES_DIFFER: Fault = Fault::new("two values are of different types");
pub(super) const OVERFLOW: Fault = Fault::new("a number is too large");
