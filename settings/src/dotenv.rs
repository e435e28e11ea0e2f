//! `.env` files, as step-posture-connector reads them: by godotenv 1.5, whose dialect no crate has.

use std::collections::BTreeMap;

/// Reads `NAME=value` or `NAME: value`, one after another; blank lines and `#` comments are skipped, and `export` is allowed.
///
/// A value in single quotes is taken as it is. One in double quotes may have `\n` and `\r`, and any other character after a
/// backslash stands for itself. Both may go over several lines. A value without quotes ends with its line, or before its last `
/// #`. Outside single quotes, `$NAME` and `${NAME}` in upper case are replaced by the value that the file gave them further up,
/// or by nothing, and `\$` is a dollar sign.
///
/// # Errors
/// The line, from 1, where the first mistake begins, and the mistake. The line's text is left out: it may be a secret.
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, (usize, &'static str)> {
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let mut variables = BTreeMap::new();
    let mut rest = statement(&text);
    while !rest.is_empty() {
        let before = text.strip_suffix(rest).unwrap_or_default();
        let line = before.matches('\n').count().saturating_add(1);
        let (name, after) = name(rest).map_err(|why| (line, why))?;
        let (value, after) = if after.starts_with(['"', '\'']) {
            quoted(after, &variables).ok_or((line, "has a quote without its end"))?
        } else {
            unquoted(after, &variables)
        };
        variables.insert(name.to_owned(), value);
        rest = statement(after);
    }
    Ok(variables)
}

/// The text from its next statement on.
fn statement(text: &str) -> &str {
    let mut rest = text.trim_start();
    while rest.starts_with('#') {
        rest = rest.find('\n').and_then(|end| rest.get(end..)).unwrap_or_default().trim_start();
    }
    rest
}

/// The name at the beginning of a statement, and the text after the sign that ends the name.
fn name(statement: &str) -> Result<(&str, &str), &'static str> {
    let exported = statement.strip_prefix("export").filter(|rest| rest.starts_with(is_blank));
    let statement = exported.unwrap_or(statement).trim_start_matches(is_blank);
    let no_name = |letter: char| !(letter.is_alphanumeric() || matches!(letter, '_' | '.' | '-') || is_blank(letter));
    let end = statement.find(no_name).filter(|end| statement.get(*end..).is_some_and(|rest| rest.starts_with(['=', ':'])));
    let (name, after) = end.and_then(|end| statement.split_at_checked(end)).ok_or("is not NAME=value")?;
    let name = name.trim_end();
    if name.is_empty() {
        return Err("does not begin with the name of a variable");
    }
    Ok((name, after.get(1..).unwrap_or_default().trim_start_matches(is_blank)))
}

fn unquoted<'t>(text: &'t str, variables: &BTreeMap<String, String>) -> (String, &'t str) {
    let (line, after) = text.find(['\n', '\r']).and_then(|end| text.split_at_checked(end)).unwrap_or((text, ""));
    let comment = line.char_indices().zip(line.chars().skip(1)).filter(|((_, before), letter)| *letter == '#' && is_blank(*before)).last();
    let value = comment.and_then(|((blank, _), _)| line.get(..blank)).unwrap_or(line);
    (expanded(value.trim_matches(is_blank), variables), after)
}

/// Reads the value of a text that begins with a quote, and returns the text after it; `None`: the quote has no end.
fn quoted<'t>(text: &'t str, variables: &BTreeMap<String, String>) -> Option<(String, &'t str)> {
    let quote = text.chars().next()?;
    let (end, _) = text.match_indices(quote).skip(1).find(|(at, _)| text.get(..*at).is_some_and(|before| !before.ends_with('\\')))?;
    // godotenv takes all quotes off both ends, even those that belong to the value.
    let value = text.get(..end)?.trim_matches(quote);
    let value = if quote == '"' { expanded(&unescaped(value), variables) } else { value.to_owned() };
    Some((value, text.get(end.saturating_add(1)..)?))
}

/// Resolves backslashes, except before a dollar sign, where a backslash says that no variable follows.
fn unescaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut rest = value.chars();
    while let Some(letter) = rest.next() {
        match (letter, rest.as_str().chars().next()) {
            ('\\', Some(next)) if next != '$' => {
                rest.next();
                text.push(match next {
                    'n' => '\n',
                    'r' => '\r',
                    other => other,
                });
            }
            _ => text.push(letter),
        }
    }
    text
}

/// Replaces the variables in a text by their values.
fn expanded(value: &str, variables: &BTreeMap<String, String>) -> String {
    let mut text = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('$') {
        // godotenv takes an opening bracket as a part of the name.
        let opened = after.strip_prefix('(').unwrap_or(after);
        let braced = opened.strip_prefix('{').unwrap_or(opened);
        let name = braced.trim_start_matches(|letter: char| letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_');
        let end = name.strip_prefix('}').unwrap_or(name);
        let [named, whole] = [(braced, name), (after, end)].map(|(all, end)| all.strip_suffix(end).unwrap_or_default());
        if let Some(before) = before.strip_suffix('\\') {
            text.extend([before, "$", whole]);
        } else if named.is_empty() {
            text.extend([before, "$", whole]);
        } else {
            text.extend([before, variables.get(named).map_or("", String::as_str)]);
        }
        rest = end;
    }
    text.push_str(rest);
    text
}

/// Returns whether godotenv takes a character for a blank within a line.
const fn is_blank(letter: char) -> bool {
    matches!(letter, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ' | '\u{85}' | '\u{a0}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str, name: &str) -> Option<String> {
        parse(text).unwrap_or_else(|error| panic!("{text:?}: {error:?}")).remove(name)
    }

    /// Values that godotenv 1.5.1 gave for each text when it was run.
    #[test]
    fn d8_values_are_what_godotenv_reads() {
        for (text, value) in [
            ("A=b", "b"),
            ("  A = b  ", "b"),
            ("export A=b", "b"),
            ("export\tA=b", "b"),
            ("A: b", "b"),
            ("A:b", "b"),
            ("A=b # comment", "b"),
            ("A=b # c # d", "b # c"),
            ("A=b#c", "b#c"),
            ("A= # c", "# c"),
            ("A=b c", "b c"),
            ("A=", ""),
            ("A=\nB=c", ""),
            ("A='b # c'", "b # c"),
            ("A=\"b # c\" # d", "b # c"),
            (r#"A="a\"b\\c\$d""#, "a\"b\\c$d"),
            (r#"A="a\nb\tc""#, "a\nbtc"),
            (r#"A="a\\nb""#, r"a\nb"),
            (r#"A="a\\$B""#, r"a$B"),
            (r"A='a\nb'", r"a\nb"),
            (r"A='it\'s'", r"it\'s"),
            ("A='one\ntwo'\nB=c", "one\ntwo"),
            ("A=\"one\ntwo\"", "one\ntwo"),
            ("A=''", ""),
            ("A=\"\"", ""),
            ("A=b=c==", "b=c=="),
            (r"A=a\$bc", "a$bc"),
            ("A=a$bc", "a$bc"),
            ("A=a$$bc$", "a$$bc$"),
            ("B=base\nA=${B}/x", "base/x"),
            ("B=base\nA=$B/x", "base/x"),
            ("B=base\nA=\"${B}/x\"", "base/x"),
            ("B=base\nA='${B}/x'", "${B}/x"),
            (r"A=\${B}", "${B}"),
            ("A=a${B}c", "ac"),
            ("B=b\nA=a$(B)", "ab)"),
            ("A=a$(b)", "a$(b)"),
            ("A=a${b}", "a${b}"),
            ("# nothing\n\nA=b", "b"),
            ("A=a\nA=b", "b"),
            ("A=b\r\nB=c", "b"),
            ("A=b\u{a0}", "b"),
            ("B='x' A=y", "y"),
        ] {
            assert_eq!(of(text, "A").as_deref(), Some(value), "{text:?}");
        }
        assert_eq!(of("\u{feff}A=b", "A").as_deref(), Some("b"), "godotenv refuses it");
    }

    #[test]
    fn d8_what_is_wrong_is_named_by_its_line() {
        for (text, line) in [
            ("A=b\nhello", 2),
            ("hello\nA=b", 1),
            ("=b", 1),
            ("A+B=c", 1),
            ("A='b", 1),
            ("A='b'\n\nB='b", 3),
            ("A=\"b\\\"", 1),
            ("A='one\ntwo' c\n", 2),
            ("export A", 1),
        ] {
            assert_eq!(parse(text).unwrap_err().0, line, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "(?s).{0,200}|([AB=:'\"\\\\$({})# \n]{0,40})") {
            let _ = parse(&text);
        }

        #[test]
        fn gives_back_any_value_in_single_quotes(value in "[^'\\\\]*") {
            let variables = parse(&format!("A='{value}'")).unwrap();
            prop_assert_eq!(variables.get("A"), Some(&value.replace("\r\n", "\n")));
        }
    }
}
