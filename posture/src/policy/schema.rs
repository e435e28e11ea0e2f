//! The names that an expression may use, the type of each, and where its value is read.

use std::borrow::Cow;
use std::time::Duration;

use super::inputs::{Inputs, Request};
use super::types::Type;
use super::value::{LONGEST_LIST, List, Value};
use crate::identity::{IdentifierKind, Trust};
use crate::record::{Compliance, Fact, Field, FieldType, Fields, Form, Group, Record};
use crate::time::UnixTime;

/// A name that an expression can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Path {
    Device(Field),
    GroupIds,
    /// Keys below `device.data`, outermost first.
    Data(Box<[String]>),
    Webhook,
    Kind,
    Identifier,
    IdentifierKind,
    CallerName,
    CallerNames,
    Trust,
    Now,
    /// Time at which the record was fetched, which no expression can name.
    FetchedAt,
}

/// Fixed names other than those of the record's fields.
const OTHERS: &[(&str, Path)] = &[
    ("device.group_ids", Path::GroupIds),
    ("request.webhook", Path::Webhook),
    ("request.kind", Path::Kind),
    ("request.identifier", Path::Identifier),
    ("request.identifier_kind", Path::IdentifierKind),
    ("caller.name", Path::CallerName),
    ("caller.names", Path::CallerNames),
    ("trust", Path::Trust),
    ("now", Path::Now),
];

const FORMS: &[&str] = &[Form::Computer.as_str(), Form::MobileDevice.as_str()];
const COMPLIANCES: &[&str] = &[
    Compliance::Compliant.as_str(),
    Compliance::NonCompliant.as_str(),
    Compliance::GracePeriod.as_str(),
    Compliance::Undetermined.as_str(),
];
const KINDS: &[&str] = &["enriching", "authorizing", "scep_challenge", "notifying", "query", "ext_authz"];
const IDENTIFIER_KINDS: &[&str] = &[
    IdentifierKind::Serial.as_str(),
    IdentifierKind::Udid.as_str(),
    IdentifierKind::Yubico.as_str(),
    IdentifierKind::Tpm.as_str(),
    IdentifierKind::Hostname.as_str(),
    IdentifierKind::Email.as_str(),
];

impl Path {
    /// The path of this name, dots included; free columns are found by the compiler.
    pub(super) fn named(name: &str) -> Option<Self> {
        if let Some(field) = name.strip_prefix("device.").and_then(|name| Field::ALL.iter().find(|field| field.as_str() == name)) {
            return Some(Self::Device(*field));
        }
        OTHERS.iter().find(|(known, _)| *known == name).map(|(_, path)| path.clone())
    }

    /// All names, for suggestions.
    pub(super) fn names() -> Vec<String> {
        let fields = Field::ALL.iter().map(|field| format!("device.{}", field.as_str()));
        fields.chain(OTHERS.iter().map(|(name, _)| (*name).to_owned())).collect()
    }

    /// The name of the path.
    pub(super) fn name(&self) -> Cow<'static, str> {
        match self {
            Self::Device(field) => format!("device.{}", field.as_str()).into(),
            Self::Data(keys) => keys.iter().fold("device.data".to_owned(), |name, key| format!("{name}.{key}")).into(),
            Self::FetchedAt => "fetched_at".into(),
            other => OTHERS.iter().find(|(_, path)| path == other).map_or("", |(name, _)| name).into(),
        }
    }

    /// The type of the path's value.
    pub(super) const fn holds(&self) -> Type {
        match self {
            Self::Device(Field::Form) => Type::Word(FORMS),
            Self::Device(Field::Compliance) => Type::Word(COMPLIANCES),
            Self::Device(field) => match field.holds() {
                FieldType::Text => Type::Text,
                FieldType::Flag => Type::Bool,
                FieldType::Time => Type::Time,
                FieldType::Groups => Type::List(&Type::Text),
                FieldType::Data => Type::Free,
            },
            Self::GroupIds | Self::CallerNames => Type::List(&Type::Text),
            Self::Data(_) => Type::Free,
            Self::Webhook | Self::Identifier | Self::CallerName => Type::Text,
            Self::Kind => Type::Word(KINDS),
            Self::IdentifierKind => Type::Word(IDENTIFIER_KINDS),
            Self::Trust => Type::Trust,
            Self::Now | Self::FetchedAt => Type::Time,
        }
    }

    /// The field of the record that must be known to read the path.
    pub(super) const fn field(&self) -> Option<Field> {
        match self {
            Self::Device(field) => Some(*field),
            Self::GroupIds => Some(Field::Groups),
            Self::Data(_) => Some(Field::Data),
            _ => None,
        }
    }

    /// Returns whether the path's value may be about a person.
    pub(super) const fn is_personal(&self) -> bool {
        match self {
            Self::Data(_) => true,
            Self::Device(field) => field.is_personal(),
            _ => false,
        }
    }

    /// The path's value; `None` if it is known not to exist. Free columns are read elsewhere.
    pub(super) fn read<'v>(&self, inputs: &Inputs<'v>) -> Option<Value<'v>> {
        let Inputs { record, trust, request, caller, now, fetched_at } = inputs;
        let Request { webhook, kind, identifier, identifier_kind } = request;
        match self {
            Self::Device(field) => of_record(record, *field, *now),
            Self::GroupIds => record.groups.value().map(|groups| Value::List(List::GroupIds(groups))),
            Self::Data(_) => None,
            Self::Webhook => webhook.map(Value::text),
            Self::Kind => Some(Value::text(kind.as_str())),
            Self::Identifier => Some(Value::text(identifier)),
            Self::IdentifierKind => Some(Value::text(identifier_kind.as_str())),
            Self::CallerName => caller.name.map(Value::text),
            Self::CallerNames => Some(Value::List(List::Texts(caller.names))),
            Self::Trust => Some(Value::Trust(*trust)),
            Self::Now => Some(Value::time(*now)),
            Self::FetchedAt => time(*fetched_at, *now),
        }
    }
}

fn of_record(record: &Record, field: Field, now: UnixTime) -> Option<Value<'_>> {
    match field {
        Field::ProviderId => Some(Value::text(&record.provider_id)).filter(|_| !record.provider_id.is_empty()),
        Field::Form => record.form.value().map(|form| Value::text(form.as_str())),
        Field::Compliance => record.compliance.value().map(|compliance| Value::text(compliance.as_str())),
        Field::Groups => record.groups.value().map(|groups| Value::List(List::GroupNames(groups))),
        Field::Data => None,
        Field::Managed => flag(&record.managed),
        Field::Supervised => flag(&record.supervised),
        Field::Lost => flag(&record.lost),
        Field::WipePending => flag(&record.wipe_pending),
        Field::Compromised => flag(&record.compromised),
        Field::Encrypted => flag(&record.encrypted),
        Field::UserActive => flag(&record.user.active),
        Field::EnrolledAt => record.enrolled_at.value().and_then(|at| time(*at, now)),
        Field::LastSeen => record.last_seen.value().and_then(|at| time(*at, now)),
        Field::InventoryAt => record.inventory_at.value().and_then(|at| time(*at, now)),
        Field::Serial => some(&record.serial),
        Field::Udid => some(&record.udid),
        Field::Name => some(&record.name),
        Field::Platform => some(&record.platform),
        Field::OsVersion => some(&record.os_version),
        Field::OsBuild => some(&record.os_build),
        Field::Model => some(&record.model),
        Field::Ownership => some(&record.ownership),
        Field::Attestation => some(&record.attestation),
        Field::UserId => some(&record.user.id),
        Field::UserName => some(&record.user.name),
        Field::UserEmail => some(&record.user.email),
        Field::UserDepartment => some(&record.user.department),
        Field::UserTitle => some(&record.user.title),
    }
}

fn some(text: &Fact<String>) -> Option<Value<'_>> {
    text.value().map(|text| Value::text(text))
}

fn flag(flag: &Fact<bool>) -> Option<Value<'static>> {
    flag.value().map(|flag| Value::Bool(*flag))
}

/// The value of a time; `None` if it lies further ahead than [`FURTHEST_AHEAD`].
fn time(at: UnixTime, now: UnixTime) -> Option<Value<'static>> {
    (!lies_ahead(at, now)).then_some(Value::time(at))
}

/// Returns whether a time lies so far ahead that it counts as not known: a report dated tomorrow says nothing about today.
pub(super) fn lies_ahead(at: UnixTime, now: UnixTime) -> bool {
    at > now.saturating_add(FURTHEST_AHEAD)
}

/// Furthest that an inventory's clock may be ahead of ours.
const FURTHEST_AHEAD: Duration = Duration::from_secs(600);

/// The fields of a record that are known. Groups count as not known if there are too many, since no rule over them ends in
/// time, and so do times that lie ahead.
pub(super) fn known(inputs: &Inputs<'_>) -> Fields {
    let record = inputs.record;
    let many = record.groups.value().is_some_and(|groups| groups.len() > LONGEST_LIST);
    let groups = if many { Fields::of(&[Field::Groups]) } else { Fields::NONE };
    record.known().without(groups).without(ahead(inputs))
}

/// Returns whether the name of one of the groups is unknown: it may be any name, also the one that a rule forbids.
pub(super) fn is_any_unnamed(groups: &Fact<Vec<Group>>) -> bool {
    groups.value().is_some_and(|groups| groups.iter().any(|group| group.name.is_empty()))
}

/// What a check reports as not known if the name of a group is unknown.
pub(super) const UNNAMED: &str = "the name of one of device.groups";

/// The fields of a record whose times lie ahead.
pub(super) fn ahead(inputs: &Inputs<'_>) -> Fields {
    let Inputs { record, now, .. } = inputs;
    let times =
        [(Field::EnrolledAt, &record.enrolled_at), (Field::LastSeen, &record.last_seen), (Field::InventoryAt, &record.inventory_at)];
    let ahead = times.into_iter().filter(|(_, time)| time.value().is_some_and(|time| lies_ahead(*time, *now)));
    ahead.fold(Fields::NONE, |fields, (field, _)| fields.union(Fields::of(&[field])))
}

/// The level of trust with that name.
pub(super) fn trust(word: &str) -> Option<Trust> {
    Trust::ALL.iter().copied().find(|trust| trust.as_str() == word)
}
