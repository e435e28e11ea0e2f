//! Bounds on how much a list of devices may lose.

/// Returns whether so few rows are gone that their share of a short list says nothing. Where no row is left, or `max_shrink` is
/// 0, each lost row counts: an emptied list is mostly a failed export.
pub fn is_few(lost: usize, has: usize, max_shrink: f64) -> bool {
    lost <= FEW && has > 0 && max_shrink > 0.0
}

/// Number of rows that any list may lose.
pub const FEW: usize = 5;
