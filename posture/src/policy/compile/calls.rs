//! Operators and functions: which there are, and what each takes.

use cel::common::ast::{Expr, IdedExpr, LiteralValue, operators};

use super::{Compiler, Part, owned, plain, suggestion, syntax};
use crate::policy::expression::{Comparison, Conversion, Node, Operator, TextTest};
use crate::policy::pattern;
use crate::policy::schema::{self, Type};
use crate::policy::value::Value;

const FUNCTIONS: &[&str] = &["has", "size", "int", "double", "string", "timestamp", "duration", "version"];
const METHODS: &[&str] = &["startsWith", "endsWith", "contains", "matches", "lowerAscii", "size", "exists", "all"];

impl Compiler<'_> {
    pub(super) fn call(&mut self, at: &IdedExpr, name: &str, target: Option<&IdedExpr>, args: &[IdedExpr]) -> Option<(Node, Type)> {
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
        } else if let Some(operator) = syntax::operator(name).filter(|_| !method) {
            format!("`{name}` is no operator of CEL: write {operator}")
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
        let element = match list.1 {
            Type::List(element) => element,
            Type::Free => &Type::Text,
            other => return self.refuse(list.2, format!("behind `in` stands a list, and this is {}", other.name())),
        };
        let item = self.want((item_node, item_type, item_offset), *element, "what may be in this list is");
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
        let list = self.want(list, Type::List(element), "behind `in` stands");
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
        let text = text.inner();
        match pattern::compile(text) {
            Ok(pattern) => Some((Node::Matches(Box::new(target?), pattern), Type::Bool)),
            Err(refusal) => {
                let offset = self.place(pattern, text, refusal.offset);
                self.refuse(offset, format!("this is not a pattern: {}", refusal.message))
            }
        }
    }

    /// Where a place in a text stands in the expression, or the text itself where it is not written as it is read.
    fn place(&self, literal: &IdedExpr, text: &str, within: usize) -> usize {
        let start = self.offset(literal);
        let quoted = self.source.get(start..).unwrap_or_default();
        let quotes = quoted.len() - quoted.trim_start_matches(['r', 'R', '\'', '"']).len();
        let begins = quoted.get(quotes..).is_some_and(|written| written.starts_with(text));
        if begins { start + quotes + within } else { start }
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
