//! From the text of an expression to checked parts: all names, types and functions are looked at before any device is.

use std::collections::BTreeSet;

use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators};
use regex::RegexBuilder;

use super::data::Template;
use super::expression::{Comparison, Conversion, Node, Operator, TextTest};
use super::schema::{self, Path, Type};
use super::value::Value;
use crate::record::Fields;

/// Longest expression, in bytes.
const LONGEST: usize = 4096;
/// Most names, literals and operators of one expression. With a loop over the longest list it bounds the time of a check.
const MOST_PARTS: usize = 256;
/// Furthest that one part may be inside others.
const DEEPEST: usize = 48;
/// Bytes that a compiled pattern may take.
const LARGEST_PATTERN: usize = 1 << 18;

/// One thing that is wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, in bytes from the start of the expression.
    pub offset: usize,
    /// What, and what to do about it.
    pub message: String,
}

/// An expression that can be evaluated, and what it needs.
#[derive(Clone, Debug)]
pub(super) struct Compiled<T> {
    pub(super) root: T,
    pub(super) fields: Fields,
    /// Every name in it, each once.
    pub(super) paths: Vec<Path>,
}

/// Compiles the expression of a check.
pub(super) fn check(source: &str) -> Result<Compiled<Node>, Vec<Problem>> {
    compile(source, |compiler, root| {
        let part = compiler.part(root)?;
        compiler.want(part, Type::Bool, "a check must be")
    })
}

/// Compiles a `data` expression.
pub(super) fn data(source: &str) -> Result<Compiled<Template>, Vec<Problem>> {
    compile(source, |compiler, root| {
        let template = compiler.template(root)?;
        if matches!(template, Template::Map(_)) {
            return Some(template);
        }
        compiler.wrong(root, "`data` must be a map, as in {'user': device.user.name}");
        None
    })
}

fn compile<T>(source: &str, read: impl FnOnce(&mut Compiler<'_>, &IdedExpr) -> Option<T>) -> Result<Compiled<T>, Vec<Problem>> {
    if source.len() > LONGEST {
        return Err(vec![Problem { offset: LONGEST, message: format!("an expression has at most {LONGEST} bytes") }]);
    }
    if source.trim().is_empty() {
        return Err(vec![Problem { offset: 0, message: "the expression is empty".to_owned() }]);
    }
    // Without macros, so that `has` and `exists` stay as they are written.
    let (root, places) = cel::Env::default().parser().parse_with_source_info(source).map_err(|errors| syntax(source, &errors))?;
    let mut compiler =
        Compiler { source, places, problems: Vec::new(), fields: Fields::NONE, paths: Vec::new(), item: None, parts: 0, depth: 0 };
    let read = read(&mut compiler, &root);
    let Compiler { mut problems, fields, paths, .. } = compiler;
    problems.sort_by_key(|problem| problem.offset);
    match read {
        Some(root) if problems.is_empty() => Ok(Compiled { root, fields, paths }),
        _ => Err(problems),
    }
}

fn syntax(source: &str, errors: &cel::ParseErrors) -> Vec<Problem> {
    let read = |error: &cel::ParseError| {
        let number = |number: isize| usize::try_from(number).unwrap_or_default().saturating_sub(1);
        let (line, column) = (number(error.pos.0), number(error.pos.1));
        let before: usize = source.split_inclusive('\n').take(line).map(str::len).sum();
        let within: usize = source.split_inclusive('\n').nth(line).unwrap_or_default().chars().take(column).map(char::len_utf8).sum();
        // The list of all that could stand there says nothing to a person.
        let message = error.msg.split(" expecting ").next().unwrap_or_default();
        let message = message.strip_prefix("Syntax error: ").unwrap_or(message).replace("'<EOF>'", "the end");
        Problem { offset: before + within, message: format!("this is not CEL: {message}") }
    };
    let mut problems: Vec<_> = errors.errors.iter().map(read).collect();
    if problems.is_empty() {
        problems.push(Problem { offset: 0, message: "this is not CEL".to_owned() });
    }
    problems
}

pub(super) struct Compiler<'s> {
    source: &'s str,
    places: SourceInfo,
    problems: Vec<Problem>,
    fields: Fields,
    paths: Vec<Path>,
    /// The name that a loop gives to its item.
    item: Option<String>,
    parts: usize,
    depth: usize,
}

/// A checked part, its type, and where it stands.
type Part = (Node, Type, usize);

impl Compiler<'_> {
    fn offset(&self, expression: &IdedExpr) -> usize {
        let start = self.places.offset_for(expression.id).map_or(0, |(start, _)| start as usize);
        match &expression.expr {
            // Placed at the point or the bracket: the name is behind the one and before the other.
            Expr::Select(_) => start + 1,
            Expr::Call(call) => {
                let name = start.saturating_sub(call.func_name.len());
                if self.source.get(name..start) == Some(&call.func_name) { name } else { start }
            }
            _ => start,
        }
    }

    fn wrong(&mut self, expression: &IdedExpr, message: impl Into<String>) {
        let offset = self.offset(expression);
        self.wrong_at(offset, message);
    }

    fn wrong_at(&mut self, offset: usize, message: impl Into<String>) {
        self.problems.push(Problem { offset: offset.min(self.source.len()), message: message.into() });
    }

    /// `part` where it is of the type that is wanted, or may turn out to be.
    fn want(&mut self, (node, of_type, offset): Part, wanted: Type, what: &str) -> Option<Node> {
        match (of_type, wanted) {
            (one, other) if one == other => Some(node),
            (Type::Word(_), Type::Text) => Some(node),
            (Type::List(Type::Word(_)), Type::List(Type::Text)) => Some(node),
            (Type::Free, Type::Bool | Type::Int | Type::Double | Type::Text | Type::List(Type::Text)) => {
                Some(Node::Must(wanted, Box::new(node)))
            }
            (Type::Free, Type::Time) => self.refuse(offset, format!("{what} a point in time: write timestamp(…) around the free column")),
            (Type::Free, Type::Duration) => self.refuse(offset, format!("{what} a duration: write duration(…) around the free column")),
            (Type::Text | Type::Free, Type::Version) => self.refuse(offset, format!("{what} a version: write version(…) around the text")),
            _ => self.refuse(offset, format!("{what} {}, and this is {}", wanted.name(), of_type.name())),
        }
    }

    fn refuse<T>(&mut self, offset: usize, message: String) -> Option<T> {
        self.wrong_at(offset, message);
        None
    }

    /// A part of a check, or a value of `data`.
    fn part(&mut self, expression: &IdedExpr) -> Option<Part> {
        self.parts += 1;
        if self.parts > MOST_PARTS || self.depth >= DEEPEST {
            // Once is enough.
            if self.parts <= MOST_PARTS + 1 {
                self.wrong(expression, format!("the expression is too long or too deep: it may have {MOST_PARTS} parts, {DEEPEST} inside each other; write several checks"));
                self.parts = MOST_PARTS + 1;
            }
            return None;
        }
        self.depth += 1;
        let part = self.inner(expression);
        self.depth -= 1;
        part
    }

    fn inner(&mut self, expression: &IdedExpr) -> Option<Part> {
        let offset = self.offset(expression);
        let (node, of_type) = match &expression.expr {
            Expr::Literal(literal) => self.literal(expression, literal)?,
            Expr::Ident(name) if Some(name) == self.item.as_ref() => (Node::Item, Type::Text),
            Expr::Ident(_) | Expr::Select(_) => {
                let path = self.path(expression)?;
                let of_type = path.holds();
                (Node::Path(path), of_type)
            }
            Expr::Call(call) => self.call(expression, &call.func_name, call.target.as_deref(), &call.args)?,
            Expr::List(list) => self.list(expression, &list.elements)?,
            Expr::Map(_) => {
                self.wrong(expression, "a map stands in `data` alone");
                return None;
            }
            Expr::Struct(_) | Expr::Comprehension(_) | Expr::Unspecified => {
                self.wrong(expression, "this kind of expression is not allowed here");
                return None;
            }
        };
        Some((node, of_type, offset))
    }

    fn literal(&mut self, expression: &IdedExpr, literal: &LiteralValue) -> Option<(Node, Type)> {
        let (value, of_type) = match literal {
            LiteralValue::Boolean(flag) => (Value::Bool(*flag.inner()), Type::Bool),
            LiteralValue::Int(number) => (Value::Int(*number.inner()), Type::Int),
            LiteralValue::Double(number) => (Value::Double(*number.inner()), Type::Double),
            LiteralValue::String(text) => (Value::Text(text.inner().to_owned().into()), Type::Text),
            LiteralValue::Null => {
                self.wrong(expression, "null can only be compared with == or !=: has(…) says whether there is a value");
                return None;
            }
            LiteralValue::Bytes(_) | LiteralValue::UInt(_) => {
                self.wrong(expression, "there are no bytes and no unsigned numbers here: write 'text' or 1");
                return None;
            }
        };
        Some((Node::Literal(value), of_type))
    }

    fn list(&mut self, expression: &IdedExpr, elements: &[IdedExpr]) -> Option<(Node, Type)> {
        let parts: Vec<_> = elements.iter().map(|element| self.part(element)).collect();
        let parts: Vec<_> = parts.into_iter().collect::<Option<_>>()?;
        let of_type = match parts.first() {
            Some((_, of_type, _)) => plain(*of_type),
            None => {
                self.wrong(expression, "the list is empty, so nothing is ever in it");
                return None;
            }
        };
        let element: &'static Type = match of_type {
            Type::Bool => &Type::Bool,
            Type::Int => &Type::Int,
            Type::Double => &Type::Double,
            Type::Time => &Type::Time,
            Type::Duration => &Type::Duration,
            Type::Version => &Type::Version,
            Type::Text | Type::Word(_) | Type::Free => &Type::Text,
            Type::Trust | Type::List(_) => {
                self.wrong(expression, format!("a list cannot hold {}", of_type.name()));
                return None;
            }
        };
        let nodes: Vec<_> = parts.into_iter().map(|part| self.want(part, *element, "an item of this list must be")).collect();
        Some((Node::List(nodes.into_iter().collect::<Option<_>>()?), Type::List(element)))
    }

    /// The thing that a chain of names means.
    fn path(&mut self, expression: &IdedExpr) -> Option<Path> {
        let mut keys = Vec::new();
        let mut at = expression;
        loop {
            match &at.expr {
                Expr::Ident(name) => {
                    keys.push(name.clone());
                    break;
                }
                Expr::Select(select) => {
                    keys.push(select.field.clone());
                    at = &select.operand;
                }
                // A free column may have a name with blanks: device.data['Asset Tag'].
                Expr::Call(call) if call.func_name == operators::INDEX => {
                    let [operand, key] = call.args.as_slice() else { return None };
                    let Expr::Literal(LiteralValue::String(name)) = &key.expr else {
                        self.wrong(key, "only the name of a free column can stand in [ ], as in device.data['Asset Tag']; of lists, use `in`, exists or all");
                        return None;
                    };
                    keys.push(name.inner().to_owned());
                    at = operand;
                }
                _ => {
                    self.wrong(expression, "only device, request and caller have fields");
                    return None;
                }
            }
        }
        keys.reverse();
        let path = match keys.as_slice() {
            [device, data, columns @ ..] if device == "device" && data == "data" => Some(Path::Data(columns.to_vec().into())),
            keys => Path::named(&keys.join(".")),
        };
        let Some(path) = path else {
            self.unknown(expression, &keys.join("."));
            return None;
        };
        if let Some(field) = path.field() {
            self.fields = self.fields.union(Fields::of(&[field]));
        }
        if !self.paths.contains(&path) {
            self.paths.push(path.clone());
        }
        Some(path)
    }

    fn unknown(&mut self, expression: &IdedExpr, name: &str) {
        let names = Path::names();
        let inner: BTreeSet<&str> = names
            .iter()
            .filter_map(|known| known.strip_prefix(name)?.strip_prefix('.').map(|field| field.split('.').next().unwrap_or(field)))
            .collect();
        let message = if inner.is_empty() {
            format!("there is no `{name}`; {}", suggestion(name, &names))
        } else {
            let inner: Vec<_> = inner.into_iter().collect();
            format!("`{name}` alone is nothing to judge by; it has {}", inner.join(", "))
        };
        self.wrong(expression, message);
    }

    fn call(&mut self, at: &IdedExpr, name: &str, target: Option<&IdedExpr>, args: &[IdedExpr]) -> Option<(Node, Type)> {
        match (target, args) {
            (None, [_, _]) if name == operators::INDEX => {
                let path = self.path(at)?;
                let of_type = path.holds();
                Some((Node::Path(path), of_type))
            }
            (None, [inner]) if name == operators::LOGICAL_NOT => {
                let part = self.part(inner)?;
                Some((Node::Not(Box::new(self.want(part, Type::Bool, "behind ! stands what is")?)), Type::Bool))
            }
            (None, [inner]) if name == operators::NEGATE => {
                let (node, of_type, offset) = self.part(inner)?;
                if !matches!(of_type, Type::Int | Type::Double | Type::Duration) {
                    return self.refuse(offset, format!("behind - stands a number, and this is {}", of_type.name()));
                }
                Some((Node::Negate(Box::new(node)), of_type))
            }
            (None, [one, other]) if name == operators::LOGICAL_AND || name == operators::LOGICAL_OR => {
                let (one, other) = (self.part(one), self.part(other));
                let one = one.and_then(|part| self.want(part, Type::Bool, "on either side of && and || stands what is"));
                let other = other.and_then(|part| self.want(part, Type::Bool, "on either side of && and || stands what is"));
                let sides = Box::new((one?, other?));
                Some((if name == operators::LOGICAL_AND { Node::And(sides) } else { Node::Or(sides) }, Type::Bool))
            }
            (None, [condition, one, other]) if name == operators::CONDITIONAL => self.conditional(condition, one, other),
            (None, [item, list]) if name == operators::IN => self.within(item, list),
            (None, [one, other]) => match (comparison(name), operator(name)) {
                (Some(comparison), _) => self.compare(at, comparison, one, other),
                (_, Some(operator)) => self.calculate(at, operator, one, other),
                _ => self.no_function(at, name, false),
            },
            (None, [inner]) if name == "has" => Some((Node::Has(self.path(inner)?), Type::Bool)),
            (None, [inner]) if name == "size" => self.size(inner),
            (Some(target), []) if name == "size" => self.size(target),
            (None, [inner]) => match Conversion::named(name) {
                Some(conversion) => self.convert(at, conversion, inner),
                None => self.no_function(at, name, false),
            },
            (Some(target), [pattern]) if name == "matches" => self.matches(target, pattern),
            (Some(target), [other]) if text_test(name).is_some() => {
                let (text, other) = (self.part(target), self.part(other));
                let text = text.and_then(|part| self.want(part, Type::Text, &format!("before {name} stands")));
                let other = other.and_then(|part| self.want(part, Type::Text, &format!("in {name} stands")));
                Some((Node::Test(text_test(name)?, Box::new((text?, other?))), Type::Bool))
            }
            (Some(target), []) if name == "lowerAscii" => {
                let part = self.part(target)?;
                Some((Node::LowerAscii(Box::new(self.want(part, Type::Text, "before lowerAscii stands")?)), Type::Text))
            }
            (Some(list), [item, body]) if name == "exists" || name == "all" => self.repeat(at, name == "all", list, item, body),
            (target, _) => self.no_function(at, name, target.is_some()),
        }
    }

    fn no_function<T>(&mut self, at: &IdedExpr, name: &str, method: bool) -> Option<T> {
        let (known, form): (&[&str], _) = if method { (METHODS, "x.f(…)") } else { (FUNCTIONS, "f(…)") };
        let message = if known.contains(&name) {
            format!("`{name}` is not called so: see docs/policy.md for what it takes")
        } else {
            let known: Vec<_> = known.iter().map(|name| (*name).to_owned()).collect();
            format!("there is no function `{name}` to be written {form}; {}", suggestion(name, &known))
        };
        self.wrong(at, message);
        None
    }

    fn conditional(&mut self, condition: &IdedExpr, one: &IdedExpr, other: &IdedExpr) -> Option<(Node, Type)> {
        let (condition, one, other) = (self.part(condition), self.part(one), self.part(other));
        let condition = condition.and_then(|part| self.want(part, Type::Bool, "before ? stands what is"));
        let (one, other) = (one?, other?);
        let of_type = match (plain(one.1), plain(other.1)) {
            (Type::Free, of_type) | (of_type, _) => of_type,
        };
        let (one, other) = (self.want(one, of_type, "both results must be"), self.want(other, of_type, "both results must be"));
        Some((Node::If(Box::new((condition?, one?, other?))), of_type))
    }

    fn within(&mut self, item: &IdedExpr, list: &IdedExpr) -> Option<(Node, Type)> {
        if self.item.is_some() && !matches!(list.expr, Expr::List(_)) {
            self.wrong(list, "in a loop, `in` takes a list that is written out: another list would be a loop in a loop");
            return None;
        }
        let (item, list) = (self.part(item), self.part(list));
        let ((item_node, item_type, item_offset), list) = (item?, list?);
        let element: Type = match list.1 {
            Type::List(element) => *element,
            Type::Free => Type::Text,
            other => return self.refuse(list.2, format!("behind `in` stands a list, and this is {}", other.name())),
        };
        let item = self.want((item_node, item_type, item_offset), element, "what may be in this list is");
        if let (Type::Word(words), Node::List(items)) = (item_type, &list.0) {
            for item in items {
                if let Node::Literal(Value::Text(word)) = item
                    && !words.contains(&word.as_ref())
                {
                    let message = format!("it is never `{word}`; {}", suggestion(word, &owned(words)));
                    self.wrong_at(list.2, message);
                }
            }
        }
        let list =
            self.want(list, Type::List(if element == Type::Text { &Type::Text } else { static_type(element) }), "behind `in` stands");
        Some((Node::In(Box::new((item?, list?))), Type::Bool))
    }

    fn compare(&mut self, at: &IdedExpr, comparison: Comparison, one: &IdedExpr, other: &IdedExpr) -> Option<(Node, Type)> {
        let equality = matches!(comparison, Comparison::Equal | Comparison::NotEqual);
        for (null, value) in [(one, other), (other, one)] {
            if matches!(null.expr, Expr::Literal(LiteralValue::Null)) && equality {
                let has = Node::Has(self.path(value)?);
                return Some((if comparison == Comparison::Equal { Node::Not(Box::new(has)) } else { has }, Type::Bool));
            }
        }
        let (one, other) = (self.part(one), self.part(other));
        let (one, other) = self.words(one?, other?)?;
        let of_type = match (plain(one.1), plain(other.1)) {
            (Type::Free, Type::Free) => {
                self.wrong(at, "the types of free columns are not known: write string(…), int(…) or timestamp(…) around them");
                return None;
            }
            (Type::Free, of_type) | (of_type, _) => of_type,
        };
        let refused = match of_type {
            Type::List(_) => Some("lists do not compare: use `in`, exists or all"),
            Type::Bool if !equality => Some("true and false have no order: use == or !="),
            Type::Text if !equality => {
                Some("texts have no order, and '9' would come after '15': write version(…), int(…) or timestamp(…) around them")
            }
            _ => None,
        };
        if let Some(message) = refused {
            self.wrong(at, message);
            return None;
        }
        let (one, other) = (self.want(one, of_type, "this must be"), self.want(other, of_type, "this must be"));
        Some((Node::Compare(comparison, Box::new((one?, other?))), Type::Bool))
    }

    /// Reads texts that stand beside a word or a level of trust as such.
    fn words(&mut self, one: Part, other: Part) -> Option<(Part, Part)> {
        let other = self.word(one.1, other)?;
        Some((self.word(other.1, one)?, other))
    }

    fn word(&mut self, beside: Type, part: Part) -> Option<Part> {
        let (node, of_type, offset) = part;
        let Node::Literal(Value::Text(word)) = &node else { return Some((node, of_type, offset)) };
        match beside {
            Type::Word(words) if !words.contains(&word.as_ref()) => {
                self.refuse(offset, format!("it is never `{word}`; {}", suggestion(word, &owned(words))))
            }
            Type::Trust if of_type == Type::Text => match schema::trust(word) {
                Some(trust) => Some((Node::Literal(Value::Trust(trust)), Type::Trust, offset)),
                None => {
                    let known: Vec<_> = crate::identity::Trust::ALL.iter().map(|trust| trust.as_str().to_owned()).collect();
                    self.refuse(offset, format!("there is no trust `{word}`; {}", suggestion(word, &known)))
                }
            },
            _ => Some((node, of_type, offset)),
        }
    }

    fn calculate(&mut self, at: &IdedExpr, operator: Operator, one: &IdedExpr, other: &IdedExpr) -> Option<(Node, Type)> {
        let (one, other) = (self.part(one), self.part(other));
        let (one, other) = (one?, other?);
        let (left, right) = match (plain(one.1), plain(other.1)) {
            (Type::Free, Type::Free) => {
                self.wrong(at, "the types of free columns are not known: write string(…) or int(…) around them");
                return None;
            }
            (Type::Free, of_type) | (of_type, Type::Free) => (of_type, of_type),
            types => types,
        };
        let sum = matches!(operator, Operator::Add | Operator::Subtract);
        let result = match (left, right) {
            (Type::Int, Type::Int) => Type::Int,
            (Type::Double, Type::Double) if operator != Operator::Remainder => Type::Double,
            (Type::Text, Type::Text) if operator == Operator::Add => Type::Text,
            (Type::Time, Type::Time) if operator == Operator::Subtract => Type::Duration,
            (Type::Time, Type::Duration) if sum => Type::Time,
            (Type::Duration, Type::Time) if operator == Operator::Add => Type::Time,
            (Type::Duration, Type::Duration) if sum => Type::Duration,
            (left, right) => {
                self.wrong(at, format!("this cannot be calculated with {} and {}", left.name(), right.name()));
                return None;
            }
        };
        let (one, other) = (self.want(one, left, "this must be"), self.want(other, right, "this must be"));
        Some((Node::Calculate(operator, Box::new((one?, other?))), result))
    }

    fn size(&mut self, inner: &IdedExpr) -> Option<(Node, Type)> {
        let (node, of_type, offset) = self.part(inner)?;
        if !matches!(of_type, Type::Text | Type::Word(_) | Type::List(_) | Type::Free) {
            return self.refuse(offset, format!("texts and lists have a size, and this is {}", of_type.name()));
        }
        Some((Node::Size(Box::new(node)), Type::Int))
    }

    fn convert(&mut self, at: &IdedExpr, conversion: Conversion, inner: &IdedExpr) -> Option<(Node, Type)> {
        let (node, of_type, offset) = self.part(inner)?;
        let into = conversion.into_type();
        if !conversion.takes(of_type) {
            return self.refuse(offset, format!("{} cannot be made into {}", of_type.name(), into.name()));
        }
        // What is written out can be read now, and a mistake in it is one of the policy.
        if let Node::Literal(value) = &node {
            return match conversion.apply(value.clone()) {
                Ok(value) => Some((Node::Literal(value), into)),
                Err(fault) => {
                    self.wrong(at, fault.0);
                    None
                }
            };
        }
        Some((Node::Convert(conversion, Box::new(node)), into))
    }

    fn matches(&mut self, target: &IdedExpr, pattern: &IdedExpr) -> Option<(Node, Type)> {
        let target = self.part(target);
        let target = target.and_then(|part| self.want(part, Type::Text, "before matches stands"));
        self.parts += 1;
        let Expr::Literal(LiteralValue::String(text)) = &pattern.expr else {
            self.wrong(pattern, "a pattern must be written out: one that a device could choose is refused");
            return None;
        };
        match RegexBuilder::new(text.inner()).size_limit(LARGEST_PATTERN).dfa_size_limit(LARGEST_PATTERN).build() {
            Ok(pattern) => Some((Node::Matches(Box::new(target?), pattern), Type::Bool)),
            Err(error) => {
                let text = error.to_string();
                let why = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
                self.wrong(pattern, format!("this is not a pattern: {why}"));
                None
            }
        }
    }

    fn repeat(&mut self, at: &IdedExpr, all: bool, list: &IdedExpr, item: &IdedExpr, body: &IdedExpr) -> Option<(Node, Type)> {
        if self.item.is_some() {
            self.wrong(at, "a loop in a loop is refused: with many groups it would take too long");
            return None;
        }
        let list = self.part(list);
        let list = list.and_then(|part| self.want(part, Type::List(&Type::Text), "exists and all go over"));
        let name = match &item.expr {
            Expr::Ident(name) if !matches!(name.as_str(), "device" | "request" | "caller" | "trust" | "now") => name.clone(),
            _ => {
                self.wrong(item, "here stands a new name for an item of the list, as in device.groups.exists(group, group == 'Staff')");
                return None;
            }
        };
        self.item = Some(name);
        let body_part = self.part(body);
        let body = body_part.and_then(|part| self.want(part, Type::Bool, "what is asked of each item must be"));
        self.item = None;
        Some((Node::Loop { all, list: Box::new(list?), body: Box::new(body?) }, Type::Bool))
    }

    /// A part of `data`: maps, lists and conditions of values.
    fn template(&mut self, expression: &IdedExpr) -> Option<Template> {
        let deeper = |compiler: &mut Self, expression: &IdedExpr| {
            compiler.depth += 1;
            let template = if compiler.depth < DEEPEST { compiler.template(expression) } else { None };
            if compiler.depth >= DEEPEST {
                compiler.wrong(expression, "`data` is too deep");
            }
            compiler.depth -= 1;
            template
        };
        match &expression.expr {
            Expr::Map(map) => {
                let mut entries: Vec<(String, Template)> = Vec::new();
                let mut whole = true;
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { return None };
                    let key = match &entry.key.expr {
                        Expr::Literal(LiteralValue::String(key)) => key.inner().to_owned(),
                        _ => {
                            self.wrong(&entry.key, "a key of `data` must be a text that is written out");
                            whole = false;
                            continue;
                        }
                    };
                    if entries.iter().any(|(known, _)| *known == key) {
                        self.wrong(&entry.key, format!("the key `{key}` stands there twice"));
                    }
                    match deeper(self, &entry.value) {
                        Some(value) => entries.push((key, value)),
                        None => whole = false,
                    }
                }
                whole.then_some(Template::Map(entries))
            }
            Expr::List(list) => {
                let items: Vec<_> = list.elements.iter().map(|element| deeper(self, element)).collect();
                items.into_iter().collect::<Option<_>>().map(Template::List)
            }
            Expr::Literal(LiteralValue::Null) => Some(Template::Null),
            Expr::Call(call) if call.func_name == operators::CONDITIONAL => {
                let [condition, one, other] = call.args.as_slice() else { return None };
                let condition = self.part(condition).and_then(|part| self.want(part, Type::Bool, "before ? stands what is"));
                let (one, other) = (deeper(self, one), deeper(self, other));
                Some(Template::If(Box::new((condition?, one?, other?))))
            }
            _ => {
                let (node, of_type, offset) = self.part(expression)?;
                if of_type == Type::Version {
                    return self.refuse(offset, "a version is for comparing: write the text itself".to_owned());
                }
                Some(Template::Value(node))
            }
        }
    }
}

const FUNCTIONS: &[&str] = &["has", "size", "int", "double", "string", "timestamp", "duration", "version"];
const METHODS: &[&str] = &["startsWith", "endsWith", "contains", "matches", "lowerAscii", "size", "exists", "all"];

/// A word is a text to everything but a literal beside it.
const fn plain(of_type: Type) -> Type {
    match of_type {
        Type::Word(_) => Type::Text,
        other => other,
    }
}

/// The type for as long as the program runs, as lists of it hold it.
const fn static_type(of_type: Type) -> &'static Type {
    match of_type {
        Type::Bool => &Type::Bool,
        Type::Int => &Type::Int,
        Type::Double => &Type::Double,
        Type::Time => &Type::Time,
        Type::Duration => &Type::Duration,
        Type::Version => &Type::Version,
        Type::Trust => &Type::Trust,
        Type::Free => &Type::Free,
        Type::Text | Type::Word(_) | Type::List(_) => &Type::Text,
    }
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        operators::EQUALS => Comparison::Equal,
        operators::NOT_EQUALS => Comparison::NotEqual,
        operators::LESS => Comparison::Less,
        operators::LESS_EQUALS => Comparison::LessOrEqual,
        operators::GREATER => Comparison::Greater,
        operators::GREATER_EQUALS => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

fn operator(name: &str) -> Option<Operator> {
    Some(match name {
        operators::ADD => Operator::Add,
        operators::SUBSTRACT => Operator::Subtract,
        operators::MULTIPLY => Operator::Multiply,
        operators::DIVIDE => Operator::Divide,
        operators::MODULO => Operator::Remainder,
        _ => return None,
    })
}

fn text_test(name: &str) -> Option<TextTest> {
    Some(match name {
        "startsWith" => TextTest::StartsWith,
        "endsWith" => TextTest::EndsWith,
        "contains" => TextTest::Contains,
        _ => return None,
    })
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// ``did you mean `…`?`` or the whole list.
fn suggestion(given: &str, known: &[String]) -> String {
    // A field may be meant on its own, without the `device.` before it.
    let last = |word: &str| word.rfind('.').map_or(0, |point| point + 1);
    let distance = |word: &String| {
        let whole = strsim::damerau_levenshtein(given, word);
        if given.contains('.') { whole } else { whole.min(strsim::damerau_levenshtein(given, word.get(last(word)..).unwrap_or(word))) }
    };
    let near = known.iter().map(|word| (distance(word), word)).filter(|(distance, _)| *distance <= 1 + given.len() / 4).min();
    // A field that was looked for on its own, or in another place.
    let tail = || known.iter().find(|word| word.rsplit('.').next() == given.rsplit('.').next());
    match near.map(|(_, word)| word).or_else(tail) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("there are {}", known.join(", ")),
    }
}
