//! RSQL as Jamf Pro applies it: `==` ignores case, and `*` in a literal stands for any text.

use serde_json::Value;

/// A parsed filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Both filters hold, joined by `;`.
    And(Vec<Filter>),
    /// Either filter holds, joined by `,`.
    Or(Vec<Filter>),
    /// One comparison.
    Compare {
        /// Name of the field, as it was spelled.
        field: String,
        /// Name of the operator, as it was spelled.
        operator: String,
        /// Literals of the comparison, without quotes and escapes.
        literals: Vec<String>,
    },
}

impl Filter {
    /// Parses a filter; `None` is a syntax error.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let filter = either(&mut rest)?;
        rest.trim_start().is_empty().then_some(filter)
    }

    /// All literals, from left to right.
    pub fn literals(&self) -> Vec<String> {
        match self {
            Self::And(parts) | Self::Or(parts) => parts.iter().flat_map(Self::literals).collect(),
            Self::Compare { literals, .. } => literals.clone(),
        }
    }

    /// All fields, from left to right.
    pub fn fields(&self) -> Vec<&str> {
        match self {
            Self::And(parts) | Self::Or(parts) => parts.iter().flat_map(Self::fields).collect(),
            Self::Compare { field, .. } => vec![field],
        }
    }

    /// Whether a record passes the filter; `value` gives the record's value of a field.
    pub fn passes(&self, value: &dyn Fn(&str) -> Value) -> bool {
        match self {
            Self::And(parts) => parts.iter().all(|part| part.passes(value)),
            Self::Or(parts) => parts.iter().any(|part| part.passes(value)),
            Self::Compare { field, operator, literals } => {
                let text = match value(field) {
                    Value::String(text) => text,
                    Value::Null => return operator == "!=",
                    other => other.to_string(),
                };
                let equal = literals.iter().any(|literal| matches(&literal.to_lowercase(), &text.to_lowercase()));
                let moment = |text: &str| text.trim_end_matches('Z').to_owned();
                let order = literals.first().map(|literal| moment(&text).cmp(&moment(literal)));
                match operator.as_str() {
                    "==" | "=in=" => equal,
                    "!=" | "=out=" => !equal,
                    ">" | "=gt=" => order.is_some_and(std::cmp::Ordering::is_gt),
                    ">=" | "=ge=" => order.is_some_and(std::cmp::Ordering::is_ge),
                    "<" | "=lt=" => order.is_some_and(std::cmp::Ordering::is_lt),
                    _ => order.is_some_and(std::cmp::Ordering::is_le),
                }
            }
        }
    }
}

fn either(rest: &mut &str) -> Option<Filter> {
    let mut parts = vec![both(rest)?];
    while take(rest, ",") {
        parts.push(both(rest)?);
    }
    Some(if parts.len() == 1 { parts.remove(0) } else { Filter::Or(parts) })
}

fn both(rest: &mut &str) -> Option<Filter> {
    let mut parts = vec![one(rest)?];
    while take(rest, ";") {
        parts.push(one(rest)?);
    }
    Some(if parts.len() == 1 { parts.remove(0) } else { Filter::And(parts) })
}

fn one(rest: &mut &str) -> Option<Filter> {
    if take(rest, "(") {
        let filter = either(rest)?;
        return take(rest, ")").then_some(filter);
    }
    let field = word(rest)?;
    let operators = ["==", "!=", "=in=", "=out=", "=gt=", "=ge=", "=lt=", "=le=", ">=", "<=", ">", "<"];
    let operator = operators.into_iter().find(|operator| take(rest, operator))?;
    let literals = if take(rest, "(") {
        let mut literals = vec![literal(rest)?];
        while take(rest, ",") {
            literals.push(literal(rest)?);
        }
        if !take(rest, ")") {
            return None;
        }
        literals
    } else {
        vec![literal(rest)?]
    };
    Some(Filter::Compare { field, operator: operator.to_owned(), literals })
}

fn literal(rest: &mut &str) -> Option<String> {
    *rest = rest.trim_start();
    let quote = rest.chars().next().filter(|first| matches!(first, '"' | '\''));
    let Some(quote) = quote else { return word(rest) };
    let mut text = String::new();
    let mut letters = rest.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => text.push(letters.next()?.1),
            letter if letter == quote => {
                *rest = &rest[at + 1..];
                return Some(text);
            }
            letter => text.push(letter),
        }
    }
    None
}

/// Reads a text of letters that need no quotes.
fn word(rest: &mut &str) -> Option<String> {
    *rest = rest.trim_start();
    let end = rest.find(|letter: char| " \"'();,=!~<>".contains(letter)).unwrap_or(rest.len());
    let (word, behind) = rest.split_at(end);
    *rest = behind;
    (!word.is_empty()).then(|| word.to_owned())
}

fn take(rest: &mut &str, token: &str) -> bool {
    match rest.trim_start().strip_prefix(token) {
        Some(behind) => {
            *rest = behind;
            true
        }
        None => false,
    }
}

/// Whether the pattern equals the text, with `*` standing for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, behind)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(first) else { return false };
    (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| matches(behind, &text[at..]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn passes(filter: &str, value: Value) -> bool {
        Filter::parse(filter).unwrap().passes(&move |_| value.clone())
    }

    #[test]
    fn equality_ignores_case_and_knows_wildcards() {
        for (filter, value, expected) in [
            (r#"a=="C02X""#, "C02X", true),
            (r#"a=="c02x""#, "C02X", true),
            (r#"a=="C02*""#, "C02X", true),
            (r#"a=="*2X""#, "C02X", true),
            (r#"a=="C*X*""#, "C02X", true),
            (r#"a=="C02""#, "C02X", false),
            (r#"a=in=("A","C02X")"#, "C02X", true),
            (r#"a!="A""#, "C02X", true),
            (r#"a>"2026-01-01T00:00:00Z""#, "2026-01-01T00:00:00.001Z", true),
            (r#"a>"2026-01-01T00:00:00Z""#, "2026-01-01T00:00:00Z", false),
            (r#"a=="x",a=="C02X""#, "C02X", true),
            (r#"a=="x";a=="C02X""#, "C02X", false),
            (r#"(a=="x",a=="C*");a=="*X""#, "C02X", true),
        ] {
            assert_eq!(passes(filter, json!(value)), expected, "{filter}");
        }
        assert!(!passes(r#"a>"2026""#, Value::Null));
    }

    #[test]
    fn quotes_hold_a_literal_together() {
        let literals = |filter: &str| Filter::parse(filter).map(|filter| filter.literals());
        assert_eq!(literals(r#"a=="x,y;z (=in=)'""#), Some(vec!["x,y;z (=in=)'".to_owned()]));
        assert_eq!(literals(r#"a=="x\"\\y""#), Some(vec![r#"x"\y"#.to_owned()]));
        assert_eq!(literals("a=='x\"y'"), Some(vec!["x\"y".to_owned()]));
        assert_eq!(literals(r#"a=="x",b=="y""#), Some(vec!["x".to_owned(), "y".to_owned()]));
        for broken in ["", "a", "a==", r#"a=="x"#, r#"a=="x"y"#, r#"a=="x" or b=="y""#, "(a==b", "a=in=(b"] {
            assert_eq!(literals(broken), None, "{broken}");
        }
    }
}
