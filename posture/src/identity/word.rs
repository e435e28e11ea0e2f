//! The error for a word that is not in a fixed set.

/// Error: a word is not in its fixed set.
#[derive(Debug, thiserror::Error)]
#[error("`{given}` is none of {}", known.join(", "))]
pub struct UnknownWord {
    /// The word that was given.
    pub given: String,
    /// The words of the set.
    pub known: Vec<&'static str>,
}

pub(super) fn one_of<T: Copy>(text: &str, all: &[T], name: impl Fn(&T) -> &'static str) -> Result<T, UnknownWord> {
    all.iter()
        .copied()
        .find(|item| name(item) == text)
        .ok_or_else(|| UnknownWord { given: text.to_owned(), known: all.iter().map(name).collect() })
}
