//! Templates in YAML, and the values that are filled in.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::unusable::Unusable;

/// Puts values in the place of `${name}`. A name that stands alone on its line takes a whole block, at the same depth;
/// an empty one takes the line away.
pub(super) fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut text = String::new();
    for line in template.lines() {
        let indent = line.len() - line.trim_start().len();
        let alone = values.iter().find(|(name, _)| line.trim() == format!("${{{name}}}"));
        if let Some((_, block)) = alone {
            for line in block.lines() {
                let _ = writeln!(text, "{:indent$}{line}", "");
            }
            continue;
        }
        let mut rest = line;
        while let Some((before, (value, after))) = placeholder(rest, values) {
            text.push_str(before);
            text.push_str(value);
            rest = after;
        }
        text.push_str(rest);
        text.push('\n');
    }
    text
}

/// Returns the first `${name}` that has a value: what stands before it, the value, what follows. Values are never looked into.
fn placeholder<'l, 'v>(line: &'l str, values: &'v [(&str, String)]) -> Option<(&'l str, (&'v str, &'l str))> {
    let (before, from) = line.split_once("${")?;
    let (name, after) = from.split_once('}')?;
    let (_, value) = values.iter().find(|(known, _)| *known == name)?;
    Some((before, (value, after)))
}

/// Returns a text as JSON, so that no character of a path means anything to YAML.
pub(super) fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

/// Returns a path as [`quote`] has it.
///
/// # Errors
/// [`Unusable::NotUnicode`], where `what` names the path.
pub(super) fn quote_path(what: &'static str, path: &Path) -> Result<String, Unusable> {
    unicode(what, path).map(quote)
}

/// Returns a path as text.
///
/// # Errors
/// [`Unusable::NotUnicode`], where `what` names the path.
pub(super) fn unicode<'p>(what: &'static str, path: &'p Path) -> Result<&'p str, Unusable> {
    path.to_str().ok_or_else(|| Unusable::NotUnicode(what, path.to_owned()))
}

/// Returns the folder that a file is in.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
