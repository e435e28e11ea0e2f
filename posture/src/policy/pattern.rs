//! Patterns of `matches`, with the meaning that they have in RE2, whose syntax CEL prescribes
//! (<https://github.com/google/re2/wiki/Syntax>). `regex` accepts more, and reads some of it differently, so each part of a
//! pattern is checked: what RE2 lacks is refused, and classes that are ASCII in RE2 are written out.

use regex::{Regex, RegexBuilder};
use regex_syntax::ast::{self, Ast, Span};

/// Largest compiled pattern, in bytes.
const LARGEST: usize = 1 << 18;
/// Most repetitions that RE2 accepts.
const MOST_REPETITIONS: u32 = 1000;

/// Error: a text is not a pattern.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Byte offset in the pattern.
    pub(super) offset: usize,
    /// What is wrong, and what to do about it.
    pub(super) message: String,
}

/// Compiles a pattern.
pub(super) fn compile(text: &str) -> Result<Regex, Refusal> {
    let ast = ast::parse::Parser::new().parse(text).map_err(|error| refusal(error.span(), format!("{}", error.kind())))?;
    let pieces = ast::visit(&ast, Reader { text, pieces: Vec::new() })?;
    let mut written = String::with_capacity(text.len());
    let mut end = 0;
    for (span, piece) in pieces {
        written.push_str(text.get(end..span.start.offset).unwrap_or_default());
        written.push_str(piece);
        end = span.end.offset;
    }
    written.push_str(text.get(end..).unwrap_or_default());
    RegexBuilder::new(&written).size_limit(LARGEST).dfa_size_limit(LARGEST).build().map_err(|error| {
        let message = match error {
            regex::Error::CompiledTooBig(most) => format!("it takes more than {most} bytes: repeat less"),
            other => other.to_string().lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned(),
        };
        Refusal { offset: 0, message }
    })
}

fn refusal(span: &Span, message: impl Into<String>) -> Refusal {
    Refusal { offset: span.start.offset, message: message.into() }
}

/// A visitor of a pattern that collects the parts to be written differently for `regex`.
struct Reader<'t> {
    text: &'t str,
    pieces: Vec<(Span, &'static str)>,
}

impl Reader<'_> {
    fn written(&self, span: &Span) -> &str {
        self.text.get(span.start.offset..span.end.offset).unwrap_or_default()
    }

    fn repetition(&self, repetition: &ast::Repetition) -> Result<(), Refusal> {
        let span = &repetition.op.span;
        let written = self.written(span);
        if matches!(&*repetition.ast, Ast::Repetition(_)) {
            let message = format!("`{written}` behind another repetition means other things elsewhere: put what it repeats into (?:…)");
            return Err(refusal(span, message));
        }
        if written.bytes().any(|byte| byte.is_ascii_whitespace()) {
            return Err(refusal(span, format!("`{written}` is no repetition in RE2: write it without blanks, or \\{{ for the character")));
        }
        match repetition.op.kind {
            ast::RepetitionKind::Range(
                ast::RepetitionRange::Exactly(most) | ast::RepetitionRange::AtLeast(most) | ast::RepetitionRange::Bounded(_, most),
            ) if most > MOST_REPETITIONS => Err(refusal(span, format!("nothing is repeated more than {MOST_REPETITIONS} times"))),
            _ => Ok(()),
        }
    }

    fn flags(flags: &ast::Flags) -> Result<(), Refusal> {
        use ast::Flag::{CRLF, CaseInsensitive, DotMatchesNewLine, IgnoreWhitespace, MultiLine, SwapGreed, Unicode};
        for item in &flags.items {
            if let ast::FlagsItemKind::Flag(flag) = item.kind {
                match flag {
                    CaseInsensitive | MultiLine | DotMatchesNewLine | SwapGreed => {}
                    Unicode | CRLF | IgnoreWhitespace => return Err(refusal(&item.span, "the flags are i, m, s and U: RE2 has no other")),
                }
            }
        }
        Ok(())
    }

    fn literal(&self, literal: &ast::Literal) -> Result<(), Refusal> {
        match &literal.kind {
            ast::LiteralKind::HexFixed(kind) | ast::LiteralKind::HexBrace(kind) if *kind != ast::HexLiteralKind::X => {
                let message = format!("`{}` is unknown to RE2: write the character itself, or \\x{{…}}", self.written(&literal.span));
                Err(refusal(&literal.span, message))
            }
            _ => Ok(()),
        }
    }

    fn assertion(&mut self, assertion: &ast::Assertion) -> Result<(), Refusal> {
        use ast::AssertionKind::{EndLine, EndText, NotWordBoundary, StartLine, StartText, WordBoundary};
        match assertion.kind {
            StartLine | EndLine | StartText | EndText => {}
            WordBoundary => self.pieces.push((assertion.span, r"(?-u:\b)")),
            NotWordBoundary => self.pieces.push((assertion.span, r"(?-u:\B)")),
            _ => {
                let message = format!("`{}` is no boundary in RE2, which has \\b and \\B", self.written(&assertion.span));
                return Err(refusal(&assertion.span, message));
            }
        }
        Ok(())
    }

    /// Writes a Perl class out: those of RE2 are ASCII, and none of them has the vertical tab.
    fn perl(&mut self, class: &ast::ClassPerl) {
        let piece = match (&class.kind, class.negated) {
            (ast::ClassPerlKind::Digit, false) => "[0-9]",
            (ast::ClassPerlKind::Digit, true) => "[^0-9]",
            (ast::ClassPerlKind::Word, false) => "[0-9A-Za-z_]",
            (ast::ClassPerlKind::Word, true) => "[^0-9A-Za-z_]",
            (ast::ClassPerlKind::Space, false) => r"[\t\n\f\r ]",
            (ast::ClassPerlKind::Space, true) => r"[^\t\n\f\r ]",
        };
        self.pieces.push((class.span, piece));
    }

    fn unicode(&self, class: &ast::ClassUnicode) -> Result<(), Refusal> {
        let known = match &class.kind {
            ast::ClassUnicodeKind::OneLetter(letter) => CATEGORIES.contains(&letter.to_string().as_str()),
            ast::ClassUnicodeKind::Named(name) => CATEGORIES.contains(&name.as_str()) || is_script(name),
            ast::ClassUnicodeKind::NamedValue { .. } => false,
        };
        if known {
            return Ok(());
        }
        let message = format!(
            "`{}` is unknown to RE2: write a category, as in \\p{{Lu}}, or a script, as in \\p{{Greek}}",
            self.written(&class.span)
        );
        Err(refusal(&class.span, message))
    }

    fn bracketed(class: &ast::ClassBracketed) -> Result<(), Refusal> {
        let is_hyphen = |item: Option<&ast::ClassSetItem>| {
            matches!(item, Some(ast::ClassSetItem::Literal(ast::Literal { kind: ast::LiteralKind::Verbatim, c: '-', .. })))
        };
        match &class.kind {
            // In RE2 this is a range that begins with a hyphen.
            ast::ClassSet::Item(ast::ClassSetItem::Union(union))
                if union.items.len() > 2 && is_hyphen(union.items.first()) && is_hyphen(union.items.get(1)) =>
            {
                Err(refusal(&class.span, "`--` in a class means other things elsewhere: write \\- for the character"))
            }
            _ => Ok(()),
        }
    }
}

impl ast::Visitor for Reader<'_> {
    type Output = Vec<(Span, &'static str)>;
    type Err = Refusal;

    fn finish(self) -> Result<Self::Output, Refusal> {
        Ok(self.pieces)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Refusal> {
        match ast {
            Ast::Empty(_) | Ast::Dot(_) | Ast::Alternation(_) | Ast::Concat(_) => Ok(()),
            Ast::Flags(flags) => Self::flags(&flags.flags),
            Ast::Literal(literal) => self.literal(literal),
            Ast::Assertion(assertion) => self.assertion(assertion),
            Ast::ClassUnicode(class) => self.unicode(class),
            Ast::ClassPerl(class) => {
                self.perl(class);
                Ok(())
            }
            Ast::ClassBracketed(class) => Self::bracketed(class),
            Ast::Repetition(repetition) => self.repetition(repetition),
            Ast::Group(group) => match &group.kind {
                ast::GroupKind::NonCapturing(flags) => Self::flags(flags),
                ast::GroupKind::CaptureIndex(_) | ast::GroupKind::CaptureName { .. } => Ok(()),
            },
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), Refusal> {
        use ast::ClassSetItem::{Ascii, Bracketed, Empty, Literal, Perl, Range, Unicode, Union};
        match item {
            Empty(_) | Ascii(_) | Union(_) => Ok(()),
            Literal(literal) => self.literal(literal),
            Range(range) => self.literal(&range.start).and_then(|()| self.literal(&range.end)),
            Unicode(class) => self.unicode(class),
            Perl(class) => {
                self.perl(class);
                Ok(())
            }
            Bracketed(class) => Err(refusal(&class.span, "a class in a class is none in RE2: write \\[ for the character")),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, operation: &ast::ClassSetBinaryOp) -> Result<(), Refusal> {
        let message = "`&&`, `--` and `~~` in a class are characters in RE2: write \\&, \\- or \\~ for them";
        Err(refusal(&operation.span, message))
    }
}

/// Returns whether the text is the name of a script, and not another property or value of one.
fn is_script(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && regex_syntax::parse(&format!(r"\p{{sc={name}}}")).is_ok()
}

/// General categories of RE2. `C` is missing, since in RE2 it does not have unassigned code points.
const CATEGORIES: &[&str] = &[
    "Any", "Cc", "Cf", "Co", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N", "Nd", "Nl", "No", "P", "Pc", "Pd", "Pe", "Pf",
    "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        compile(pattern).unwrap_or_else(|refusal| panic!("{pattern}: {refusal:?}")).is_match(text)
    }

    #[test]
    fn d12_classes_of_perl_are_ascii() {
        for (pattern, text, expected) in [
            (r"^\d+$", "123", true),
            (r"^\d+$", "١٢٣", false),
            (r"^\D+$", "١٢٣", true),
            (r"^\D$", "1", false),
            (r"^\w+@example[.]org$", "ada_1@example.org", true),
            (r"^\w+@example[.]org$", "аda@example.org", false),
            (r"^\W$", "é", true),
            (r"^\W$", "_", false),
            (r"^[\w.-]+$", "a.b-c", true),
            (r"^[\w.-]+$", "a.б", false),
            (r"^[^\w]+$", "éб", true),
            (r"^[\D]$", "١", true),
            (r"^[^\D]$", "1", true),
            (r"^[\d_]$", "_", true),
            (r"^\s$", "\u{a0}", false),
            (r"^\s$", "\u{b}", false),
            (r"^[[:space:]]$", "\u{b}", true),
            (r"^\s+$", " \t\n\r\u{c}", true),
            (r"^\S+$", "\u{a0}\u{b}é", true),
            (r"\bada\b", "éada", true),
            (r"\bada\b", "xada", false),
            (r"a\Bd", "ad", true),
            (r"é\Bд", "éд", true),
            // RE2 folds letters of all scripts.
            (r"(?i)^É$", "é", true),
            (r"^.$", "é", true),
            (r"^.$", "\n", false),
            (r"(?s)^.$", "\n", true),
            (r"(?m)^b$", "a\nb", true),
            (r"^b$", "a\nb", false),
            (r"^\p{Greek}\pL\p{Lu}$", "αбÉ", true),
            (r"^\P{Lu}$", "a", true),
            (r"^[[:alpha:]]$", "é", false),
            (r"^[[:^alpha:]]$", "é", true),
            (r"^(?P<one>a)(?<two>b)(?:c)(?i:D)$", "abcd", true),
            (r"^a{2,3}?$", "aaa", true),
            (r"^(?:a+)+$", "aaa", true),
            (r"^\x41\x{e9}\.\_$", "Aé._", true),
            (r"^[a-]$|^[-a]$|^[]a]$", "]", true),
            (r"^[--]$", "-", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text:?}");
        }
    }

    #[test]
    fn d12_what_re2_lacks_or_reads_otherwise_is_refused_where_it_stands() {
        let mut wrong = Vec::new();
        for (pattern, offset, word) in [
            ("x[A&&B]", 2, "in a class"),
            ("[a--b]", 1, "in a class"),
            ("[a~~b]", 1, "in a class"),
            ("[--a]", 0, "in a class"),
            ("[a[bc]]", 2, "a class in a class"),
            ("[a[:alpha:]x[^b]]", 12, "a class in a class"),
            ("a++", 2, "(?:…)"),
            ("a**", 2, "(?:…)"),
            ("a+*?", 2, "(?:…)"),
            ("a{2}{3}", 4, "(?:…)"),
            ("a?{3}", 2, "(?:…)"),
            ("a{,3}", 2, "decimal"),
            ("a{ 2 }", 1, "no repetition"),
            ("a{1001}", 1, "1000"),
            ("a{0,1001}", 1, "1000"),
            ("a{1001,}", 1, "1000"),
            ("(?x)a b", 2, "i, m, s and U"),
            ("(?i-u)a", 4, "i, m, s and U"),
            ("(?R:a)", 2, "i, m, s and U"),
            (r"a\<b", 1, "boundary"),
            (r"a\b{start}", 1, "boundary"),
            (r"\u0041", 0, "RE2"),
            (r"[\u{41}-\x42]", 1, "RE2"),
            (r"\U00000041", 0, "RE2"),
            (r"\p{Alphabetic}", 0, "RE2"),
            (r"\p{Letter}", 0, "RE2"),
            (r"\p{greek}", 0, "RE2"),
            (r"\p{sc=Greek}", 0, "RE2"),
            (r"[\pC]", 1, "RE2"),
            (r"(?=a)", 0, "look"),
            (r"(a)\1", 3, "backreference"),
            (r"\Qa.b\E", 0, "escape"),
            ("(", 0, "unclosed"),
            ("*", 0, "repetition"),
        ] {
            let refusal = compile(pattern).map(|_| ()).unwrap_err();
            if refusal.offset != offset || !refusal.message.contains(word) {
                wrong.push(format!("{pattern}: {refusal:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        for most in ["a{1000}", "a{0,1000}"] {
            assert!(compile(most).is_ok(), "{most}");
        }
        assert!(compile("(a{1000}){1000}").unwrap_err().message.contains("repeat less"));
    }
}
