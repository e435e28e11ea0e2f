//! Messages for text that is not CEL. The parser names the token that it did not expect; common mistakes are looked for
//! first, so that people read what to write instead.

use crate::policy::problem::Problem;

/// The problems of a text that the parser does not take.
pub(super) fn problems(source: &str, errors: &cel::ParseErrors) -> Vec<Problem> {
    let meant = meant(source);
    if !meant.is_empty() {
        return meant;
    }
    // Errors from the parser's own recovery say nothing more.
    let errors = errors.errors.iter().filter(|error| !error.msg.contains("Context`"));
    let mut problems: Vec<_> = errors.map(|error| of_parser(source, error)).collect();
    problems.dedup_by_key(|problem| problem.offset);
    if problems.is_empty() {
        problems.push(Problem { offset: 0, message: "this is not CEL".to_owned() });
    }
    problems
}

fn of_parser(source: &str, error: &cel::ParseError) -> Problem {
    let number = |number: isize| usize::try_from(number).unwrap_or_default().saturating_sub(1);
    let (line, column) = (number(error.pos.0), number(error.pos.1));
    let before: usize = source.split_inclusive('\n').take(line).map(str::len).sum();
    let within: usize = source.split_inclusive('\n').nth(line).unwrap_or_default().chars().take(column).map(char::len_utf8).sum();
    let offset = before + within;
    // The list of all tokens that could stand there does not help a person.
    let message = error.msg.split(" expecting ").next().unwrap_or_default();
    let message = message.strip_prefix("Syntax error: ").unwrap_or(message);
    let of_grammar = ["mismatched input ", "extraneous input ", "no viable alternative at input ", "missing "];
    let message = if !of_grammar.iter().any(|begin| message.starts_with(begin)) {
        format!("this is not CEL: {message}")
    } else if source.get(offset..).is_none_or(|rest| rest.trim().is_empty()) {
        "this is not CEL: something must follow where the expression ends".to_owned()
    } else {
        let here: String =
            source.get(offset..).unwrap_or_default().split_whitespace().next().unwrap_or_default().chars().take(20).collect();
        format!("this is not CEL: `{here}` cannot stand here, or something is missing before it")
    };
    Problem { offset, message }
}

/// Finds what people write who know other languages, and texts and brackets that are not closed.
fn meant(source: &str) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut wrong = |offset, message: String| found.push(Problem { offset, message });
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut unbalanced = None;
    let mut at = 0;
    while let Some(rest) = source.get(at..).filter(|rest| !rest.is_empty()) {
        let word = rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
        let name = rest.get(..word).unwrap_or_default();
        let quoted = rest.get(word..).unwrap_or_default().starts_with(['\'', '"']);
        if quoted && (name.is_empty() || name.bytes().all(|byte| b"rRbB".contains(&byte)) && word <= 2) {
            match text_end(rest, word, name.contains(['r', 'R'])) {
                Some(end) => at += end,
                None => {
                    let quote = rest.get(word..=word).unwrap_or_default();
                    wrong(
                        at + word,
                        format!(
                            "the text that begins at this {quote} has no end: write another {quote} behind it, and \\{quote} for one inside of it"
                        ),
                    );
                    return found;
                }
            }
            continue;
        }
        if word > 0 {
            let after_point = source.get(..at).unwrap_or_default().trim_end().ends_with('.');
            if let Some(operator) = operator(name).filter(|_| !after_point) {
                wrong(at, format!("`{name}` is no operator of CEL: write {operator}"));
            }
            at += word;
            continue;
        }
        let Some(first) = rest.chars().next() else { break };
        let mut length = first.len_utf8();
        if let Some((written, instead)) = SIGNS.iter().find(|(sign, _)| rest.starts_with(sign)) {
            if let Some(instead) = instead {
                wrong(at, format!("`{written}` is no operator of CEL: write {instead}"));
            }
            length = written.len();
        } else if "‘’‚‛“”„‟«»`´".contains(first) {
            wrong(at, format!("`{first}` is no quote of CEL: texts stand in straight ones, as in 'Mac'"));
        } else if rest.starts_with("//") {
            length = rest.find('\n').unwrap_or(rest.len());
        } else if "([{".contains(first) {
            open.push((first, at));
        } else if let Some(opening) = opening(first)
            && open.pop().is_none_or(|(opened, _)| opened != opening)
            && unbalanced.is_none()
        {
            unbalanced = Some((at, format!("`{first}` closes what was not opened: count the brackets before it")));
        }
        at += length;
    }
    if found.is_empty() {
        let left = open.pop().map(|(opened, offset)| (offset, format!("`{opened}` is not closed again")));
        found.extend(unbalanced.or(left).map(|(offset, message)| Problem { offset, message }));
    }
    found
}

/// Signs, the longest first, with what to write instead if CEL does not have the sign.
const SIGNS: &[(&str, Option<&str>)] = &[
    ("===", Some("==")),
    ("!==", Some("!=")),
    ("==", None),
    ("!=", None),
    ("<=", None),
    (">=", None),
    ("=>", Some(">=")),
    ("=<", Some("<=")),
    ("=~", Some(".matches('…') behind a text")),
    ("<>", Some("!=")),
    ("&&", None),
    ("||", None),
    ("=", Some("==, which compares")),
    ("&", Some("&&")),
    ("|", Some("||")),
    ("≠", Some("!=")),
    ("≤", Some("<=")),
    ("≥", Some(">=")),
];

/// The CEL operator for a word that is an operator in other languages.
pub(super) fn operator(word: &str) -> Option<&'static str> {
    Some(match word.to_ascii_lowercase().as_str() {
        "and" => "&&",
        "or" => "||",
        "not" => "! before what must not be so",
        _ => return None,
    })
}

/// The CEL literal for a word that means true, false or null in other languages.
pub(super) fn literal(word: &str) -> Option<&'static str> {
    Some(match word {
        "True" | "TRUE" => "true",
        "False" | "FALSE" => "false",
        "None" | "nil" | "NULL" | "Null" | "undefined" => "null",
        _ => return None,
    })
}

const fn opening(closing: char) -> Option<char> {
    match closing {
        ')' => Some('('),
        ']' => Some('['),
        '}' => Some('{'),
        _ => None,
    }
}

/// The end of the text literal whose quotes follow these letters, in bytes from the letters; `None` if it is not closed.
fn text_end(source: &str, letters: usize, raw: bool) -> Option<usize> {
    let quoted = source.get(letters..)?;
    let quote = quoted.get(..1)?;
    let long = quote.repeat(3);
    let (close, mut at) = if quoted.starts_with(&long) { (long.as_str(), 3) } else { (quote, 1) };
    loop {
        let rest = quoted.get(at..)?;
        if rest.starts_with(close) {
            return Some(letters + at + close.len());
        }
        let mut letters = rest.chars();
        let first = letters.next()?;
        if matches!(first, '\n' | '\r') && close.len() == 1 {
            return None;
        }
        let escaped = if first == '\\' && !raw { letters.next()?.len_utf8() } else { 0 };
        at += first.len_utf8() + escaped;
    }
}
