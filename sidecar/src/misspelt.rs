//! Suggestions for names that were spelled wrong.

/// Returns the name among these that was probably meant by another one: the case of letters aside, few of them differ.
pub(crate) fn meant<'n>(given: &str, names: &[&'n str]) -> Option<&'n str> {
    let plain = given.to_lowercase();
    let near = names.iter().map(|name| (strsim::damerau_levenshtein(&plain, &name.to_lowercase()), *name));
    near.filter(|(distance, name)| *distance <= 1 + given.chars().count() / 5 && *name != given).min().map(|(_, name)| name)
}
