//! The cost of requests, and the mistakes in their replies.

use serde::Serialize;

use crate::load::Outcome;

/// The cost of one scenario in one round, in microseconds of CPU for each request.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Cost {
    pub(crate) envoy: f64,
    /// CPU of the sidecar, or of the server that allows everything.
    pub(crate) service: f64,
    pub(crate) generator: f64,
}

impl Cost {
    pub(crate) fn both(self) -> f64 {
        self.envoy + self.service
    }
}

/// Notes the lost and wrong replies of a scenario.
pub(crate) fn check(name: &str, outcome: &Outcome, mistakes: &mut Vec<String>) {
    if outcome.lost + outcome.wrong > 0 {
        let first = outcome.first.as_deref().unwrap_or_default();
        mistakes.push(format!("{name}: {} lost and {} wrong of {}; the first: {first}", outcome.lost, outcome.wrong, outcome.sent));
    }
}

/// The median of some values; without values it is not a number.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
