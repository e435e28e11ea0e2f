//! `.env` files, as step-posture-connector reads them.

use std::collections::BTreeMap;

/// Reads `NAME=value` lines: blank lines and `#` comments are skipped, `export` is allowed, and a value may stand in
/// single quotes (as it is) or double quotes (`\n`, `\r`, `\t`, `\"`, `\\`, `\$`); an unquoted one ends before ` #`.
///
/// # Errors
/// The first line, from 1, that is none of these, and why. Its text is left out: it may be a secret.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, String>, (usize, &'static str)> {
    let mut variables = BTreeMap::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t'])).unwrap_or(line);
        let wrong = |why| (index + 1, why);
        let (name, value) = line.split_once('=').ok_or_else(|| wrong("is not NAME=value"))?;
        let name = name.trim();
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(wrong("does not begin with the name of a variable"));
        }
        let value = value.trim();
        let value = match value.chars().next() {
            Some('\'') => single(value).ok_or_else(|| wrong("has a single quote without its end"))?,
            Some('"') => double(value).ok_or_else(|| wrong("has a double quote without its end"))?,
            _ => value.split_once(" #").or_else(|| value.split_once("\t#")).map_or(value, |(before, _)| before).trim_end().to_owned(),
        };
        variables.insert(name.to_owned(), value);
    }
    Ok(variables)
}

fn single(value: &str) -> Option<String> {
    let (inner, after) = value.strip_prefix('\'')?.split_once('\'')?;
    nothing_but_a_comment(after).then(|| inner.to_owned())
}

fn double(value: &str) -> Option<String> {
    let mut inner = String::new();
    let mut rest = value.strip_prefix('"')?.chars();
    loop {
        match rest.next()? {
            '"' => return nothing_but_a_comment(rest.as_str()).then_some(inner),
            '\\' => inner.push(match rest.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                other => other,
            }),
            other => inner.push(other),
        }
    }
}

fn nothing_but_a_comment(after: &str) -> bool {
    let after = after.trim_start();
    after.is_empty() || after.starts_with('#')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_lines() {
        for (line, value) in [
            ("A=b", "b"),
            ("  A = b  ", "b"),
            ("export A=b", "b"),
            ("export\tA=b", "b"),
            ("A=b # comment", "b"),
            ("A=b#c", "b#c"),
            ("A=", ""),
            ("A='b # c'", "b # c"),
            ("A=\"b # c\" # d", "b # c"),
            (r#"A="a\"b\\c\$d""#, "a\"b\\c$d"),
            (r"A='a\nb'", r"a\nb"),
            ("A=b=c==", "b=c=="),
            ("\u{feff}A=b\r", "b"),
            ("# nothing\n\nA=b", "b"),
            ("A=a\nA=b", "b"),
        ] {
            let variables = parse(line).unwrap();
            assert_eq!(variables.get("A").map(String::as_str), Some(value), "{line}");
            assert_eq!(variables.len(), 1, "{line}");
        }
    }

    #[test]
    fn names_the_line_that_it_cannot_read() {
        for (text, line) in [("A=b\nhello", 2), ("=b", 1), ("A-B=c", 1), ("A='b", 1), ("A=\"b\\\"", 1), ("A='b' c", 1), ("export A", 1)] {
            assert_eq!(parse(text).unwrap_err().0, line, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "(?s).{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn gives_back_any_value_in_double_quotes(value in "[^\r\n\u{0}]*") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let variables = parse(&format!("A=\"{quoted}\"")).unwrap();
            prop_assert_eq!(variables.get("A"), Some(&value));
        }
    }
}
