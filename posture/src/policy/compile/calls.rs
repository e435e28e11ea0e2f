//! Operators and functions of expressions, and the types that each takes.

use cel::common::ast::{Expr, IdedExpr, LiteralValue, operators};

use super::{Compiler, NO_ITEM, Part, owned, plain, suggestion, syntax};
use crate::policy::expression::{Comparison, Conversion, Holds, Node, Operator, TextTest};
use crate::policy::functions::{SIGNATURES, Signature};
use crate::policy::moment::{self, TimePart};
use crate::policy::pattern;
use crate::policy::schema::{self, Path};
use crate::policy::types::Type;
use crate::policy::value::Value;
use crate::record::Field;

const FUNCTIONS: &[&str] = &["has", "size", "bool", "int", "uint", "double", "string", "timestamp", "duration", "version", "dyn"];
const METHODS: &[&str] = &["startsWith", "endsWith", "contains", "matches", "size", "exists", "all", "exists_one", "filter", "map"];

impl Compiler<'_> {
    pub(super) fn call(&mut self, at: &IdedExpr, name: &str, target: Option<&IdedExpr>, args: &[IdedExpr]) -> Option<(Node, Type)> {
        match (target, args) {
            (None, [_, _]) if name == operators::INDEX => self.index(at, args),
            (None, [inner]) if name == operators::LOGICAL_NOT => {
                let part = self.part(inner)?;
                Some((Node::Not(Box::new(self.want(part, Type::Bool, "behind ! stands what is")?)), Type::Bool))
            }
            (None, [inner]) if name == operators::NEGATE => {
                let (node, of_type, offset) = self.part(inner)?;
                match of_type {
                    Type::Int | Type::Double | Type::Number => Some((Node::Negate(Box::new(node)), of_type)),
                    Type::Duration => {
                        self.refuse(offset, "CEL turns no duration round: write duration('0s') - … for one before now".to_owned())
                    }
                    _ => self.refuse(offset, format!("behind - stands a number, and this is {}", of_type.name())),
                }
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
            // `dyn` changes nothing: a type is known here, or checked when a device is judged.
            (None, [inner]) if name == "dyn" => self.part(inner).map(|(node, of_type, _)| (node, of_type)),
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
            (Some(list), [item, body]) if let Some(holds) = holds(name) => self.repeat(at, holds, list, item, body),
            (Some(list), [item, test]) if name == "filter" => self.gather(at, list, item, Some(test), None),
            (Some(list), [item, value]) if name == "map" => self.gather(at, list, item, None, Some(value)),
            (Some(list), [item, test, value]) if name == "map" => self.gather(at, list, item, Some(test), Some(value)),
            (Some(target), args)
                if let Some(part) = TimePart::named(name)
                    && args.len() < 2 =>
            {
                self.time_part(part, target, args.first())
            }
            (Some(target), args) => match SIGNATURES.iter().find(|signature| signature.name == name) {
                Some(signature) if (signature.least..=signature.takes.len()).contains(&args.len()) => self.method(signature, target, args),
                _ => self.no_function(at, name, true),
            },
            (None, _) => self.no_function(at, name, false),
        }
    }

    fn no_function<T>(&mut self, at: &IdedExpr, name: &str, method: bool) -> Option<T> {
        let (known, form): (Vec<&str>, _) = if method {
            let others = SIGNATURES.iter().map(|signature| signature.name).chain(TimePart::names());
            (METHODS.iter().copied().chain(others).collect(), "x.f(…)")
        } else {
            (FUNCTIONS.to_vec(), "f(…)")
        };
        let message = if known.contains(&name) {
            format!("`{name}` is not called so: see docs/policy.md for what it takes")
        } else if let Some(operator) = syntax::operator(name).filter(|_| !method) {
            format!("`{name}` is no operator of CEL: write {operator}")
        } else {
            format!("there is no function `{name}` to be written {form}; {}", suggestion(name, &owned(&known)))
        };
        self.wrong(at, message);
        None
    }

    /// Compiles `[ ]`: a free column by its name, or an item of a list by its place.
    fn index(&mut self, at: &IdedExpr, args: &[IdedExpr]) -> Option<(Node, Type)> {
        let [list, place] = args else { return None };
        if matches!(place.expr, Expr::Literal(LiteralValue::String(_))) {
            let path = self.path(at)?;
            let of_type = path.holds();
            return Some((Node::Path(path), of_type));
        }
        let (list, place) = (self.part(list), self.part(place));
        let (list, place) = (list?, self.want(place?, Type::Int, "the place of an item must be")?);
        let of_type = match (list.1, &list.0) {
            (Type::Free, Node::Path(Path::Data(keys))) if keys.is_empty() => return self.refuse(list.2, NO_ITEM.to_owned()),
            (Type::List(element), _) => *element,
            (Type::Free, _) => Type::Free,
            (other, _) => return self.refuse(list.2, format!("before [ ] stands a list, and this is {}", other.name())),
        };
        let list = self.want(list, of_type.listed()?, "before [ ] stands")?;
        Some((Node::At(Box::new((list, place))), of_type))
    }

    fn method(&mut self, signature: &Signature, target: &IdedExpr, args: &[IdedExpr]) -> Option<(Node, Type)> {
        let name = signature.name;
        let target = self.part(target);
        let args: Vec<_> = args.iter().map(|arg| self.part(arg)).collect();
        let mut nodes = vec![target.and_then(|part| self.want(part, signature.on, &format!("before {name} stands")))];
        for (arg, wanted) in args.into_iter().zip(signature.takes) {
            nodes.push(arg.and_then(|part| self.want(part, *wanted, &format!("in {name} stands"))));
        }
        Some((Node::Call(signature.function, nodes.into_iter().collect::<Option<_>>()?), signature.gives))
    }

    fn time_part(&mut self, part: TimePart, target: &IdedExpr, zone: Option<&IdedExpr>) -> Option<(Node, Type)> {
        let target = self.part(target);
        let seconds = match zone {
            None => Some(0),
            Some(zone) => {
                self.parts += 1;
                let written = if let Expr::Literal(LiteralValue::String(text)) = &zone.expr { moment::zone(text.inner()) } else { None };
                if written.is_none() {
                    self.wrong(zone, "here stands an offset that is written out, as in '+02:00', or 'UTC': names of places are not known");
                }
                written
            }
        };
        let target = target?;
        let wanted = if target.1 == Type::Duration && part.is_of_duration() && zone.is_none() { Type::Duration } else { Type::Time };
        let target = self.want(target, wanted, "this must be")?;
        Some((Node::TimePart(part, seconds?, Box::new(target)), Type::Int))
    }

    fn conditional(&mut self, condition: &IdedExpr, one: &IdedExpr, other: &IdedExpr) -> Option<(Node, Type)> {
        let (condition, one, other) = (self.part(condition), self.part(one), self.part(other));
        let condition = condition.and_then(|part| self.want(part, Type::Bool, "before ? stands what is"));
        let (one, other) = (one?, other?);
        let of_type = match (plain(one.1), plain(other.1)) {
            (Type::Free, of_type) | (of_type, Type::Free) => of_type,
            (one, other) => one.common(other).unwrap_or(one),
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
        let of_list = match list.1 {
            Type::List(element) => *element,
            Type::Free => Type::Free,
            other => return self.refuse(list.2, format!("behind `in` stands a list, and this is {}", other.name())),
        };
        let element = match (plain(item_type), of_list) {
            (Type::Free, Type::Free) => Type::Text,
            (item, list) => item.common(list).unwrap_or(list),
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
        let list = element.listed().and_then(|listed| self.want(list, listed, "behind `in` stands"));
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
            (one, other) => one.common(other).unwrap_or(one),
        };
        let words = matches!((one.1, other.1), (Type::Word(_), _) | (_, Type::Word(_)));
        let refused = match of_type {
            _ if equality => None,
            Type::List(_) => Some("lists have no order: use == or !=, `in`, exists or all"),
            Type::Text if words => Some("these words have no order: use ==, != or `in`"),
            Type::Text if is_version(&one.0) || is_version(&other.0) => {
                Some("as texts, '9' comes after '15': write version(…), int(…), double(…) or timestamp(…) around both sides")
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

    /// Reads a text literal beside a word or a level of trust as one of these.
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
            Type::Trust => match schema::trust(word) {
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
            (Type::List(_), Type::Free) | (Type::Free, Type::List(_)) | (Type::List(_), Type::List(_)) => {
                return self.both(at, operator, one, other);
            }
            (Type::Free, Type::Number) | (Type::Number, Type::Free) => (Type::Number, Type::Number),
            (Type::Free | Type::Number, of_type) | (of_type, Type::Free | Type::Number) => (of_type, of_type),
            types => types,
        };
        let sum = matches!(operator, Operator::Add | Operator::Subtract);
        let result = match (left, right) {
            (Type::Int, Type::Int) => Type::Int,
            (Type::Uint, Type::Uint) => Type::Uint,
            (Type::Number, Type::Number) => Type::Number,
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

    /// Compiles the sum of two lists.
    fn both(&mut self, at: &IdedExpr, operator: Operator, one: Part, other: Part) -> Option<(Node, Type)> {
        let of_type = match (one.1, other.1) {
            (Type::Free, list) | (list, Type::Free) => Type::List(&Type::Free).common(list),
            (one, other) => one.common(other),
        };
        let Some(of_type) = of_type.filter(|_| operator == Operator::Add) else {
            self.wrong(at, "lists can be added, where both hold the same, and nothing else");
            return None;
        };
        let (one, other) = (self.want(one, of_type, "this must be"), self.want(other, of_type, "this must be"));
        Some((Node::Calculate(operator, Box::new((one?, other?))), of_type))
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
        // A literal is converted now, so that a mistake in it is a mistake of the policy.
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
        let text = text.inner();
        match pattern::compile(text) {
            Ok(pattern) => Some((Node::Matches(Box::new(target?), pattern), Type::Bool)),
            Err(refusal) => {
                let offset = self.place(pattern, text, refusal.offset);
                self.refuse(offset, format!("this is not a pattern: {}", refusal.message))
            }
        }
    }

    /// The offset in the expression of a place in a text literal; the offset of the literal if it is written with escapes.
    fn place(&self, literal: &IdedExpr, text: &str, within: usize) -> usize {
        let start = self.offset(literal);
        let quoted = self.source.get(start..).unwrap_or_default();
        let quotes = quoted.len() - quoted.trim_start_matches(['r', 'R', '\'', '"']).len();
        let begins = quoted.get(quotes..).is_some_and(|written| written.starts_with(text));
        if begins { start + quotes + within } else { start }
    }

    /// Compiles the list of a loop, and returns it with the type of its items.
    fn items(&mut self, list: &IdedExpr) -> Option<(Node, Type)> {
        let list = self.part(list)?;
        let of_type = if let Type::List(element) = list.1 { *element } else { Type::Free };
        Some((self.want(list, of_type.listed()?, "what is gone over must be")?, of_type))
    }

    /// Compiles parts that are evaluated for each item of a list, under the name that is given to the item.
    fn each<T>(&mut self, item: &IdedExpr, of_type: Type, parts: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let name = match &item.expr {
            Expr::Ident(name) if !matches!(name.as_str(), "device" | "request" | "caller" | "trust" | "now") => name.clone(),
            _ => {
                self.wrong(item, "here stands a new name for an item of the list, as in device.groups.exists(group, group == 'Staff')");
                return None;
            }
        };
        self.item = Some((name, of_type));
        let parts = parts(self);
        self.item = None;
        parts
    }

    fn is_nested(&mut self, at: &IdedExpr) -> bool {
        let nested = self.item.is_some();
        if nested {
            self.wrong(at, "a loop in a loop is refused: with many groups it would take too long");
        }
        nested
    }

    fn asked(&mut self, body: &IdedExpr) -> Option<Node> {
        let part = self.part(body)?;
        self.want(part, Type::Bool, "what is asked of each item must be")
    }

    fn repeat(&mut self, at: &IdedExpr, holds: Holds, list: &IdedExpr, item: &IdedExpr, body: &IdedExpr) -> Option<(Node, Type)> {
        if self.is_nested(at) {
            return None;
        }
        let list = self.items(list);
        let of_type = list.as_ref().map_or(Type::Free, |(_, of_type)| *of_type);
        let body = self.each(item, of_type, |compiler| compiler.asked(body));
        Some((Node::Loop { holds, list: Box::new(list?.0), body: Box::new(body?) }, Type::Bool))
    }

    fn gather(
        &mut self,
        at: &IdedExpr,
        list: &IdedExpr,
        item: &IdedExpr,
        test: Option<&IdedExpr>,
        value: Option<&IdedExpr>,
    ) -> Option<(Node, Type)> {
        if self.is_nested(at) {
            return None;
        }
        let (list, of_type) = self.items(list)?;
        let (test, value) = self.each(item, of_type, |compiler| {
            let test = test.map(|test| compiler.asked(test));
            let value = value.map(|value| compiler.part(value));
            Some((test, value))
        })?;
        let test = match test {
            Some(test) => Some(Box::new(test?)),
            None => None,
        };
        let (value, of_type) = match value {
            Some(value) => {
                let (node, of_type, offset) = value?;
                if of_type.listed().is_none() {
                    return self.refuse(offset, format!("a list cannot hold {}", of_type.name()));
                }
                (Some(Box::new(node)), of_type)
            }
            None => (None, of_type),
        };
        Some((Node::Gather { list: Box::new(list), test, value }, of_type.listed()?))
    }
}

/// Returns whether the node is a text with numbers in it, such as a version: as numbers they have another order.
fn is_version(node: &Node) -> bool {
    match node {
        Node::Literal(Value::Text(text)) => text.starts_with(|first: char| first.is_ascii_digit()),
        Node::Path(path) => matches!(path, Path::Device(Field::OsVersion | Field::OsBuild)),
        _ => false,
    }
}

fn holds(name: &str) -> Option<Holds> {
    Some(match name {
        "all" => Holds::All,
        "exists" => Holds::Any,
        "exists_one" => Holds::One,
        _ => return None,
    })
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
