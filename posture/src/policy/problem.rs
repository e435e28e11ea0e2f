//! The problems that an expression may have.

/// One problem in an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Byte offset in the expression.
    pub offset: usize,
    /// What is wrong, and what to do about it.
    pub message: String,
}
