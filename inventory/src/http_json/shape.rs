//! Places of the values in an answer, and the records that they make.

use posture::identity::IdentifierKind;
use posture::record::{Alias, Compliance, Fact, Field, Fields, Form, Record};
use serde_json::Value;

use crate::answer::Unavailable;
use crate::lenient::{fails, flag, groups, text, time};

/// A JSON pointer (RFC 6901); the empty one is the whole value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pointer(String);

impl Pointer {
    /// Parses a pointer such as `/mdm/enrolled`; `~0` stands for `~` and `~1` for `/`.
    ///
    /// # Errors
    /// The fault of the pointer, in words for the operator.
    pub fn parse(pointer: &str) -> Result<Self, String> {
        let escapes = pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        if (pointer.is_empty() || pointer.starts_with('/')) && escapes {
            Ok(Self(pointer.to_owned()))
        } else {
            Err(format!("`{pointer}` is no JSON pointer: it is empty or begins with /, and ~ is only in ~0 and ~1"))
        }
    }

    /// The value at this place.
    pub(super) fn find<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        value.pointer(&self.0)
    }

    /// The values around this place, the whole first.
    fn around<'v>(&self, value: &'v Value) -> impl Iterator<Item = &'v Value> {
        self.0.match_indices('/').filter_map(|(end, _)| value.pointer(self.0.get(..end)?))
    }
}

/// Places of the values in an answer, and in one item of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Place of the items in the answer: a list, or the only item.
    pub items: Pointer,
    /// Place of the identifier in an item.
    pub identifier: Pointer,
    /// Place of the number of items in the answer, shown or not.
    pub total: Option<Pointer>,
    /// Places of the fields in an item.
    pub fields: Vec<(Field, Pointer)>,
    /// Place of an object with free columns in an item.
    pub data: Option<Pointer>,
}

impl Shape {
    /// Fields that a record can have.
    pub(super) fn known(&self, kind: IdentifierKind) -> Fields {
        let own = match kind {
            IdentifierKind::Serial => Some(Field::Serial),
            IdentifierKind::Udid => Some(Field::Udid),
            _ => None,
        };
        self.fields.iter().map(|(field, _)| *field).chain(own).chain(self.data.as_ref().map(|_| Field::Data)).collect()
    }

    /// The identifier of an item.
    ///
    /// # Errors
    /// [`Unavailable::Protocol`] where the item has none: it may be the device that was asked for.
    pub(super) fn identifier<'v>(&self, item: &'v Value) -> Result<&'v str, Unavailable> {
        self.identifier.find(item).and_then(Value::as_str).ok_or(Unavailable::Protocol)
    }

    /// An item as a record.
    ///
    /// # Errors
    /// The errors of [`Shape::identifier`].
    pub(super) fn record(&self, item: &Value, kind: IdentifierKind) -> Result<Record, Unavailable> {
        let identifier = self.identifier(item)?.trim_ascii().to_owned();
        let mut record = Record::default();
        for (field, pointer) in &self.fields {
            set(&mut record, *field, pointer.find(item));
        }
        // The identifier that found the item is certain, so it is the record's own, and the device can be locked by it.
        match kind {
            IdentifierKind::Serial => record.serial = Fact::Value(identifier),
            IdentifierKind::Udid => record.udid = Fact::Value(identifier),
            _ => record.aliases.push(Alias::of(kind, identifier)),
        }
        if let Some(pointer) = &self.data {
            record.data = data(pointer.find(item));
        }
        Ok(record)
    }
}

/// The items of an answer: a list, a single item, or none where there is null.
///
/// # Errors
/// [`Unavailable::Protocol`] for anything else, and for an answer with an error around the items, as GraphQL answers with null in
/// their place.
pub(super) fn items<'v>(answer: &'v Value, pointer: &Pointer) -> Result<&'v [Value], Unavailable> {
    if pointer.around(answer).any(fails) {
        return Err(Unavailable::Protocol);
    }
    match pointer.find(answer) {
        Some(Value::Array(items)) => Ok(items),
        Some(item @ Value::Object(_)) => Ok(std::slice::from_ref(item)),
        Some(Value::Null) => Ok(&[]),
        _ => Err(Unavailable::Protocol),
    }
}

/// Reads a count, also where it is written as text.
///
/// # Errors
/// [`Unavailable::Protocol`] where there is no count.
pub(super) fn number(value: Option<&Value>) -> Result<u64, Unavailable> {
    let number = match value {
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    number.ok_or(Unavailable::Protocol)
}

fn set(record: &mut Record, field: Field, value: Option<&Value>) {
    match field {
        Field::ProviderId => record.provider_id = text(value).value().cloned().unwrap_or_default(),
        Field::Form => record.form = word(value, &[Form::Computer, Form::MobileDevice], Form::as_str),
        Field::Serial => record.serial = text(value),
        Field::Udid => record.udid = text(value),
        Field::Name => record.name = text(value),
        Field::Platform => record.platform = text(value),
        Field::OsVersion => record.os_version = text(value),
        Field::OsBuild => record.os_build = text(value),
        Field::Model => record.model = text(value),
        Field::Managed => record.managed = flag(value),
        Field::Supervised => record.supervised = flag(value),
        Field::Ownership => record.ownership = text(value),
        Field::Compliance => record.compliance = compliance(value),
        Field::Groups => record.groups = groups(value),
        Field::Lost => record.lost = flag(value),
        Field::WipePending => record.wipe_pending = flag(value),
        Field::Compromised => record.compromised = flag(value),
        Field::Encrypted => record.encrypted = flag(value),
        Field::Attestation => record.attestation = text(value),
        Field::UserId => record.user.id = text(value),
        Field::UserName => record.user.name = text(value),
        Field::UserEmail => record.user.email = text(value),
        Field::UserDepartment => record.user.department = text(value),
        Field::UserTitle => record.user.title = text(value),
        Field::UserActive => record.user.active = flag(value),
        Field::EnrolledAt => record.enrolled_at = time(value),
        Field::LastSeen => record.last_seen = time(value),
        Field::InventoryAt => record.inventory_at = time(value),
        Field::Data => record.data = data(value),
    }
}

/// Reads one of our own words, in any case.
fn word<T: Copy>(value: Option<&Value>, known: &[T], name: impl Fn(T) -> &'static str) -> Fact<T> {
    match text(value) {
        Fact::Value(word) => {
            let found = known.iter().copied().find(|item| name(*item).eq_ignore_ascii_case(&word));
            found.map_or(Fact::Unknown, Fact::Value)
        }
        Fact::Absent => Fact::Absent,
        Fact::Unknown => Fact::Unknown,
    }
}

/// Reads compliance: one of our own words, or a flag.
fn compliance(value: Option<&Value>) -> Fact<Compliance> {
    const ALL: &[Compliance] = &[Compliance::Compliant, Compliance::NonCompliant, Compliance::GracePeriod, Compliance::Undetermined];
    match flag(value) {
        Fact::Value(true) => Fact::Value(Compliance::Compliant),
        Fact::Value(false) => Fact::Value(Compliance::NonCompliant),
        Fact::Absent => Fact::Absent,
        Fact::Unknown => word(value, ALL, Compliance::as_str),
    }
}

fn data(value: Option<&Value>) -> Fact<String> {
    match value {
        Some(Value::Null) => Fact::Absent,
        Some(object @ Value::Object(_)) => {
            let json = object.to_string();
            if json.len() <= LARGEST_DATA { Fact::Value(json) } else { Fact::Unknown }
        }
        _ => Fact::Unknown,
    }
}

/// Most bytes of free columns; they go into every answer to step-ca.
const LARGEST_DATA: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pointer(text: &str) -> Pointer {
        Pointer::parse(text).unwrap()
    }

    #[test]
    fn reads_pointers_as_rfc_6901_has_them() {
        let value = json!({"foo": ["bar", "baz"], "": 0, "a/b": 1, "m~n": 8, " ": 7});
        for (text, expected) in [
            ("", Some(value.clone())),
            ("/foo/0", Some(json!("bar"))),
            ("/", Some(json!(0))),
            ("/a~1b", Some(json!(1))),
            ("/m~0n", Some(json!(8))),
            ("/ ", Some(json!(7))),
            ("/foo/2", None),
            ("/foo/01", None),
            ("/none", None),
        ] {
            assert_eq!(pointer(text).find(&value), expected.as_ref(), "{text}");
        }
        for bad in ["foo", "#/foo", "/a~b", "/a~", "/a~2"] {
            assert!(Pointer::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_field_can_be_set_and_is_unknown_where_it_is_not_there() {
        for field in Field::ALL.iter().copied() {
            let value = match field {
                Field::Form => json!("Computer"),
                Field::Compliance => json!("grace_period"),
                Field::Groups => json!(["a"]),
                Field::Data => json!({"a": 1}),
                field => match field.holds() {
                    posture::record::FieldType::Flag => json!(true),
                    posture::record::FieldType::Time => json!("2026-11-24T08:00:00Z"),
                    _ => json!("x"),
                },
            };
            let mut record = Record::default();
            set(&mut record, field, Some(&value));
            assert_eq!(record.known(), Fields::of(&[field]));
            set(&mut record, field, None);
            assert_eq!(record.known(), Fields::NONE, "{}", field.as_str());
        }
    }

    #[test]
    fn a_word_that_is_not_ours_is_unknown() {
        for (value, expected) in [
            (json!("Compliant"), Fact::Value(Compliance::Compliant)),
            (json!("non_compliant"), Fact::Value(Compliance::NonCompliant)),
            (json!(false), Fact::Value(Compliance::NonCompliant)),
            (json!(null), Fact::Absent),
            (json!("fine"), Fact::Unknown),
            (json!({}), Fact::Unknown),
        ] {
            assert_eq!(compliance(Some(&value)), expected, "{value}");
        }
    }

    #[test]
    fn data_that_is_too_large_is_unknown() {
        assert_eq!(data(Some(&json!({"a": "b".repeat(LARGEST_DATA)}))), Fact::Unknown);
        assert_eq!(data(Some(&json!("text"))), Fact::Unknown);
        assert_eq!(data(Some(&json!({"a": 1}))), Fact::Value("{\"a\":1}".to_owned()));
    }
}
