//! Words of a closed set: finding one, and guessing the one that a wrong text was meant to be.

/// Finds the value of `known` whose word is `text`.
///
/// # Errors
/// The fault of the text, for people, with the word that was probably meant or with all of them.
pub fn word<T>(text: &str, known: impl Iterator<Item = (&'static str, T)>) -> Result<T, String> {
    let mut names = Vec::new();
    for (name, value) in known {
        if name == text {
            return Ok(value);
        }
        names.push(name);
    }
    Err(format!("`{text}` is not known; {}", suggestion(text, &names)))
}

/// The word of `known` that `given` is most likely meant to be.
pub fn meant<'k>(given: &str, known: &[&'k str]) -> Option<&'k str> {
    let given = given.to_lowercase();
    known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(&given, word), *word))
        .filter(|(distance, word)| *distance <= 1 + word.len() / 4)
        .min()
        .map(|(_, word)| word)
}

/// The end of a message about a wrong word: ``did you mean `…`?``, or the whole list.
pub fn suggestion(given: &str, known: &[&str]) -> String {
    match meant(given, known) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("there are {}", known.join(", ")),
    }
}

/// The message that no `what` has the name `given`, with the name that was probably meant.
pub fn no_such(what: &str, given: &str, known: &[&str]) -> String {
    // The name is cut to what a person needs to see the mistake; a caller over a socket may send more.
    let given = given.get(..given.floor_char_boundary(LONGEST_SHOWN)).unwrap_or_default();
    let hint = match known {
        [] => "there is none".to_owned(),
        [only] if meant(given, known).is_none() => format!("there is {only} alone"),
        known => suggestion(given, known),
    };
    format!("there is no {what} `{given}`; {hint}")
}

/// Most bytes of a wrong name that are shown and compared.
const LONGEST_SHOWN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e23_a_name_that_there_is_not_is_answered_with_those_that_there_are_and_at_no_great_cost() {
        assert_eq!(no_such("provider", "stuff", &["jamf", "staff"]), "there is no provider `stuff`; did you mean `staff`?");
        assert_eq!(no_such("provider", "x", &["jamf", "staff"]), "there is no provider `x`; there are jamf, staff");
        assert_eq!(no_such("provider", "x", &[]), "there is no provider `x`; there is none");
        let long = no_such("provider", &"é".repeat(1 << 20), &["staff"]);
        assert_eq!(long, format!("there is no provider `{}`; there is staff alone", "é".repeat(32)));
    }
}
