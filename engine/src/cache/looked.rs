//! The answer of a provider, with the evidence by which the provider knows later whether it still holds.

use std::time::Duration;

use inventory::{Answer, Source};
use posture::record::Form;

use super::entry::Key;
use super::knowledge::Basis;
use super::order::Moment;

/// The answer of a provider, and where the provider has it from.
#[derive(Clone, Debug)]
pub struct Looked {
    /// The answer.
    pub answer: Answer,
    /// Where the provider has the answer from.
    pub source: Source,
    /// Age of a remembered answer; `None`: it was given now.
    pub age: Option<Duration>,
    /// The evidence by which the provider knows later whether the answer still holds.
    pub evidence: Evidence,
}

impl Looked {
    /// A live answer that cannot become another one.
    pub const fn live(answer: Answer) -> Self {
        Self { answer, source: Source::Live, age: None, evidence: Evidence::Fixed }
    }
}

/// The evidence by which a provider knows later whether an answer still holds: see [`super::Cache::stands`].
#[derive(Clone, Debug)]
pub enum Evidence {
    /// The answer cannot become another one.
    Fixed,
    /// The answer of a file, and the number of its reading.
    File(u64),
    /// The answer of a service.
    Cached(Cached),
    /// The identifier is in no list that was whole, and nothing was heard of it since.
    Unlisted,
    /// The service could not say, to a question of this hint.
    Silence(Option<Form>),
    /// The service could not say of this device alone, to a question of this hint: about others it answers.
    Alone(Option<Form>),
    /// The answer about the device's last known serial number, which by now is another device's or nobody's: the service cannot
    /// be asked about this device.
    Moved(Cached),
    /// The answer was overtaken by that to a later question.
    Overtaken,
}

/// The basis of a remembered answer. It is made by [`super::Cache::lookup`] and read by [`super::Cache::stands`].
#[derive(Clone, Debug)]
pub struct Cached {
    /// The identifier by which the service was asked, which need not be the one that the request states.
    pub(super) key: Key,
    pub(super) basis: Basis,
    /// Moment at which the request came.
    pub(super) came: Moment,
}
