//! Compiles the text of an expression to checked parts: names, types and functions are checked before any device is judged.

use std::collections::BTreeSet;

use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators};

use super::data::Template;
use super::expression::Node;
use super::problem::Problem;
use super::schema::Path;
use super::types::Type;
use super::value::Value;
use crate::record::{Field, Fields};

mod calls;
mod syntax;

/// Longest expression, in bytes.
const LONGEST: usize = 4096;
/// Most names, literals and operators in one expression. Together with a loop over the longest list this bounds the time of a
/// check.
const MOST_PARTS: usize = 256;
/// Deepest nesting of parts.
const DEEPEST: usize = 48;

/// A compiled expression, and what it needs.
#[derive(Clone, Debug)]
pub(super) struct Compiled<T> {
    pub(super) root: T,
    pub(super) fields: Fields,
    /// First place of each field in the expression, in bytes.
    pub(super) offsets: Vec<(Field, usize)>,
    /// Every name in the expression, each once.
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
    // Without macros, so that `has` and `exists` stay calls in the parsed tree.
    let (root, places) = cel::Env::default().parser().parse_with_source_info(source).map_err(|errors| syntax::problems(source, &errors))?;
    let mut compiler = Compiler {
        source,
        places,
        problems: Vec::new(),
        fields: Fields::NONE,
        offsets: Vec::new(),
        paths: Vec::new(),
        item: None,
        parts: 0,
        depth: 0,
    };
    let read = read(&mut compiler, &root);
    let Compiler { mut problems, fields, offsets, paths, .. } = compiler;
    problems.sort_by_key(|problem| problem.offset);
    match read {
        Some(root) if problems.is_empty() => Ok(Compiled { root, fields, offsets, paths }),
        // An error, since a policy without this check would let more devices pass.
        None if problems.is_empty() => Err(vec![Problem { offset: 0, message: "this expression cannot be read".to_owned() }]),
        _ => Err(problems),
    }
}

pub(super) struct Compiler<'s> {
    source: &'s str,
    places: SourceInfo,
    problems: Vec<Problem>,
    fields: Fields,
    offsets: Vec<(Field, usize)>,
    paths: Vec<Path>,
    /// The variable of a loop: its name, and the type of the items.
    item: Option<(String, Type)>,
    parts: usize,
    depth: usize,
}

/// Message for a chain of names that has no meaning, and for null beside anything else.
const NO_FIELDS: &str = "only device, request and caller have fields, and only they can be asked for with has(…) or null";
/// Message for anything else in [ ].
const NO_ITEM: &str = "in [ ] stands the name of a free column, as in device.data['Asset Tag'], or behind a list the place of an item, as in device.groups[0]";

/// A checked part, its type, and its offset in the expression, in bytes.
type Part = (Node, Type, usize);

impl Compiler<'_> {
    fn offset(&self, expression: &IdedExpr) -> usize {
        let start = self.places.offset_for(expression.id).map_or(0, |(start, _)| start as usize);
        match &expression.expr {
            // The parser's position is the point, with the name behind it, or the bracket, with the name before it.
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

    /// The node of `part` if its type is the wanted one, or may turn out to be.
    fn want(&mut self, (node, of_type, offset): Part, wanted: Type, what: &str) -> Option<Node> {
        match (of_type, wanted) {
            (one, other) if one == other => Some(node),
            (Type::Word(_), Type::Text) => Some(node),
            (one, Type::Number) if one.is_number() => Some(node),
            (Type::List(one), Type::List(Type::Number)) if one.is_number() => Some(node),
            (Type::Free, Type::Bool | Type::Text | Type::List(Type::Bool | Type::Text | Type::Number | Type::Free))
            | (Type::List(Type::Free), Type::List(_)) => Some(Node::Must(wanted, Box::new(node))),
            (Type::Free | Type::Number, wanted) if wanted.is_number() => Some(Node::Must(wanted, Box::new(node))),
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

    /// Compiles a part of a check, or a value of `data`.
    fn part(&mut self, expression: &IdedExpr) -> Option<Part> {
        self.parts += 1;
        if self.parts > MOST_PARTS || self.depth >= DEEPEST {
            // One message is enough.
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
            Expr::Ident(name)
                if let Some((item, of_type)) = &self.item
                    && name == item =>
            {
                (Node::Item, *of_type)
            }
            Expr::Ident(_) | Expr::Select(_) => {
                let path = self.path(expression)?;
                let of_type = path.holds();
                (Node::Path(path), of_type)
            }
            Expr::Call(call) => self.call(expression, &call.func_name, call.target.as_deref(), &call.args)?,
            Expr::List(list) => self.list(expression, &list.elements)?,
            Expr::Map(_) => {
                self.wrong(expression, "a map stands in `data` alone, and cannot be calculated with");
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
            LiteralValue::UInt(number) => (Value::Uint(*number.inner()), Type::Uint),
            LiteralValue::Bytes(_) => {
                self.wrong(expression, "there are no bytes here: write 'text'");
                return None;
            }
        };
        Some((Node::Literal(value), of_type))
    }

    fn list(&mut self, expression: &IdedExpr, elements: &[IdedExpr]) -> Option<(Node, Type)> {
        let parts: Vec<_> = elements.iter().map(|element| self.part(element)).collect();
        let parts: Vec<_> = parts.into_iter().collect::<Option<_>>()?;
        let common = |one: Type, (_, other, _): &Part| one.common(*other);
        // Without a common type, each item is compared with the first.
        let first = parts.first().map_or(Type::Free, |(_, of_type, _)| plain(*of_type));
        let of_type = parts.iter().try_fold(first, common).unwrap_or(first);
        let Some(listed @ Type::List(element)) = of_type.listed() else {
            self.wrong(expression, format!("a list cannot hold {}", of_type.name()));
            return None;
        };
        let nodes: Vec<_> = parts.into_iter().map(|part| self.want(part, *element, "an item of this list must be")).collect();
        Some((Node::List(nodes.into_iter().collect::<Option<_>>()?), listed))
    }

    /// The path that a chain of names means.
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
                        self.wrong(key, NO_ITEM);
                        return None;
                    };
                    keys.push(name.inner().to_owned());
                    at = operand;
                }
                _ => {
                    self.wrong(expression, NO_FIELDS);
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
            if !self.fields.contains(field) {
                self.offsets.push((field, self.offset(expression)));
            }
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
        let message = if let Some(word) = syntax::literal(name) {
            format!("there is no `{name}`: write {word}")
        } else if inner.is_empty() {
            format!("there is no `{name}`; {}", suggestion(name, &names))
        } else {
            let inner: Vec<_> = inner.into_iter().collect();
            format!("`{name}` alone is nothing to judge by; it has {}", inner.join(", "))
        };
        self.wrong(expression, message);
    }

    /// Compiles a part of `data`: maps, lists and conditions of values.
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

/// The type of a word as a text; only a literal beside it makes it a word.
const fn plain(of_type: Type) -> Type {
    match of_type {
        Type::Word(_) => Type::Text,
        other => other,
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A suggestion for an unknown word: ``did you mean `…`?`` or the whole list.
fn suggestion(given: &str, known: &[String]) -> String {
    // A field may be written without the `device.` before it.
    let last = |word: &str| word.rfind('.').map_or(0, |point| point + 1);
    let distance = |word: &String| {
        let whole = strsim::damerau_levenshtein(given, word);
        if given.contains('.') { whole } else { whole.min(strsim::damerau_levenshtein(given, word.get(last(word)..).unwrap_or(word))) }
    };
    let near = known.iter().map(|word| (distance(word), word)).filter(|(distance, _)| *distance <= 1 + given.len() / 4).min();
    // A field that was written alone, or in another place.
    let tail = || known.iter().find(|word| word.rsplit('.').next() == given.rsplit('.').next());
    match near.map(|(_, word)| word).or_else(tail) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("there are {}", known.join(", ")),
    }
}
