//! Findings of an examination.

use inventory::{Finding, State};

/// Findings about one subject, such as `provider jamf`.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) subject: String,
    pub(super) findings: Vec<Finding>,
}

/// Makes a finding about something that works, and should be looked at.
pub(super) fn doubtful(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { state: State::Doubtful, ..Finding::bad(check, detail, fix) }
}
