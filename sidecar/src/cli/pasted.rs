//! Commands that an operator pastes into a shell: their words, and names that may stand in them.

use posture::shown;

/// Returns a text quoted, where it has to be, so that a POSIX shell takes it for one word.
pub(super) fn shell_word(text: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+=:@%,".contains(letter);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Checks that a name that step-ca told may stand in lines that a shell runs, and in the comments of these and of TOML.
///
/// # Errors
/// A name that would be an option, or has a character that ends a line or is not seen.
pub(super) fn may_be_printed(name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        !name.starts_with('-') && !name.contains(shown::is_hidden),
        "`{}` of step-ca cannot stand in a command: it begins with a dash, or has a character that is not seen",
        shown::cell(name)
    );
    Ok(())
}

/// Returns the first name that is not taken: the same with the next number behind it, as in `posture2` after `posture`.
pub(super) fn next_name(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let stem = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let number = name.strip_prefix(stem).and_then(|digits| digits.parse::<u32>().ok()).unwrap_or(1);
    (number.saturating_add(1)..).map(|number| format!("{stem}{number}")).find(|name| !taken(name)).unwrap_or_default()
}
