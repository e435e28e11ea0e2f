//! The record of a device: what is known of it, in one form for all inventories.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::{IdentifierKind, normal};
use crate::time::UnixTime;

/// A fact that may be unknown. An unknown fact is never taken for a negative one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact<T> {
    /// The inventory states this value.
    Value(T),
    /// The inventory states that there is no value.
    Absent,
    /// The fact was not asked for, may not be read, or was stated in a form that cannot be read.
    #[default]
    Unknown,
}

impl<T> Fact<T> {
    /// The value that the inventory states, if any.
    pub const fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Unknown => None,
        }
    }

    /// Returns whether the inventory states anything, even that there is no value.
    pub const fn is_known(&self) -> bool {
        !matches!(self, Self::Unknown)
    }

    /// Maps the value with `change`.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Fact<U> {
        match self {
            Self::Value(value) => Fact::Value(change(value)),
            Self::Absent => Fact::Absent,
            Self::Unknown => Fact::Unknown,
        }
    }

    /// A fact for a field that the inventory answered: the value, or its absence.
    pub fn known(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Self::Value)
    }
}

impl Fact<String> {
    /// A fact for a text that the inventory answered; a blank text counts as absent.
    pub fn text(text: Option<&str>) -> Self {
        Self::known(text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned))
    }
}

/// Everything that is known of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The inventory's own id of the device; empty if it has none.
    pub provider_id: String,
    /// Form of the device: computer or mobile device.
    pub form: Fact<Form>,
    /// Serial number given by the manufacturer, as it stands in the inventory.
    pub serial: Fact<String>,
    /// Unique device identifier (UDID).
    pub udid: Fact<String>,
    /// Other identifiers of the device, each of which can be locked.
    pub aliases: Vec<Alias>,
    /// Display name of the device.
    pub name: Fact<String>,
    /// Platform as the inventory spells it, such as `Mac` or `Windows`.
    pub platform: Fact<String>,
    /// Version of the operating system, such as `15.4.1`.
    pub os_version: Fact<String>,
    /// Build of the operating system, such as `24E263`.
    pub os_build: Fact<String>,
    /// Identifier of the model, such as `Mac15,3`.
    pub model: Fact<String>,
    /// Whether the device is under management now. A record outlives its enrolment.
    pub managed: Fact<bool>,
    /// Whether the device is supervised.
    pub supervised: Fact<bool>,
    /// Ownership as the inventory spells it: whose the device is, or how it was enrolled.
    pub ownership: Fact<String>,
    /// Compliance as the inventory judges it.
    pub compliance: Fact<Compliance>,
    /// Groups, tags, labels, blueprints: whatever the inventory sorts devices into.
    pub groups: Fact<Vec<Group>>,
    /// Whether the device is reported lost.
    pub lost: Fact<bool>,
    /// Whether the device is about to be wiped or retired.
    pub wipe_pending: Fact<bool>,
    /// Whether the device's protection was broken: jailbreak, system integrity protection switched off.
    pub compromised: Fact<bool>,
    /// Whether the device's storage is encrypted.
    pub encrypted: Fact<bool>,
    /// What the inventory says of the device's own attestation, in its spelling.
    pub attestation: Fact<String>,
    /// The device's user.
    pub user: User,
    /// Time of the last enrolment.
    pub enrolled_at: Fact<UnixTime>,
    /// Time at which the inventory last heard of the device.
    pub last_seen: Fact<UnixTime>,
    /// Time at which the inventory last collected this data from the device.
    pub inventory_at: Fact<UnixTime>,
    /// Free columns: a JSON object, as it stands in a file or was picked from an inventory.
    pub data: Fact<String>,
}

/// Another identifier of a device, besides its serial number and its UDID.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Alias {
    /// Kind of the identifier; `None` if it is of no kind that requests state.
    pub kind: Option<IdentifierKind>,
    /// The identifier, as it stands in the inventory.
    pub text: String,
}

impl Alias {
    /// Makes an alias of a kind that requests state.
    pub fn of(kind: IdentifierKind, text: impl Into<String>) -> Self {
        Self { kind: Some(kind), text: text.into() }
    }

    /// Makes an alias that only the inventory uses.
    pub fn of_no_kind(text: impl Into<String>) -> Self {
        Self { kind: None, text: text.into() }
    }
}

/// The user of a device.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Login name, or the inventory's id of the person.
    pub id: Fact<String>,
    /// Display name.
    pub name: Fact<String>,
    /// Mail address.
    pub email: Fact<String>,
    /// Department.
    pub department: Fact<String>,
    /// Title or position.
    pub title: Fact<String>,
    /// Whether the account may be used.
    pub active: Fact<bool>,
}

impl User {
    /// No user, as the inventory states.
    pub const fn none() -> Self {
        Self {
            id: Fact::Absent,
            name: Fact::Absent,
            email: Fact::Absent,
            department: Fact::Absent,
            title: Fact::Absent,
            active: Fact::Absent,
        }
    }
}

impl fmt::Debug for User {
    // The fields describe a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("User(..)")
    }
}

/// The form of a device, for inventories that keep two kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Form {
    /// Desktop or laptop.
    Computer,
    /// Phone, tablet, television, headset.
    MobileDevice,
}

impl Form {
    /// The form's name for policies and people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Computer => "computer",
            Self::MobileDevice => "mobile_device",
        }
    }
}

/// An inventory's judgement of a device's compliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Compliance {
    /// The device keeps the rules.
    Compliant,
    /// The device breaks the rules.
    NonCompliant,
    /// The device breaks the rules, and still has time to comply.
    GracePeriod,
    /// The inventory has come to no conclusion.
    Undetermined,
}

impl Compliance {
    /// The judgement's name for policies and people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Compliant => "compliant",
            Self::NonCompliant => "non_compliant",
            Self::GracePeriod => "grace_period",
            Self::Undetermined => "undetermined",
        }
    }
}

/// A group that a device is in. A policy may name it by its id or its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Group {
    /// Id, which stays when the group is renamed; empty if the inventory gives none.
    pub id: String,
    /// Display name; empty if it is not known. An inventory whose groups have no names uses their ids as names.
    pub name: String,
}

/// A field that a policy can use, under the name `device.` and [`Field::as_str`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is the field of `Record` of that name")]
pub enum Field {
    ProviderId,
    Form,
    Serial,
    Udid,
    Name,
    Platform,
    OsVersion,
    OsBuild,
    Model,
    Managed,
    Supervised,
    Ownership,
    Compliance,
    Groups,
    Lost,
    WipePending,
    Compromised,
    Encrypted,
    Attestation,
    UserId,
    UserName,
    UserEmail,
    UserDepartment,
    UserTitle,
    UserActive,
    EnrolledAt,
    LastSeen,
    InventoryAt,
    Data,
}

/// The type of a field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// A text.
    Text,
    /// True or false.
    Flag,
    /// A point in time.
    Time,
    /// Names and ids of groups.
    Groups,
    /// A JSON object.
    Data,
}

impl Field {
    /// All fields.
    pub const ALL: &'static [Self] = &[
        Self::ProviderId,
        Self::Form,
        Self::Serial,
        Self::Udid,
        Self::Name,
        Self::Platform,
        Self::OsVersion,
        Self::OsBuild,
        Self::Model,
        Self::Managed,
        Self::Supervised,
        Self::Ownership,
        Self::Compliance,
        Self::Groups,
        Self::Lost,
        Self::WipePending,
        Self::Compromised,
        Self::Encrypted,
        Self::Attestation,
        Self::UserId,
        Self::UserName,
        Self::UserEmail,
        Self::UserDepartment,
        Self::UserTitle,
        Self::UserActive,
        Self::EnrolledAt,
        Self::LastSeen,
        Self::InventoryAt,
        Self::Data,
    ];

    /// Returns whether the field may be about a person: all fields of the user, the name of the device, and free columns.
    pub const fn is_personal(self) -> bool {
        matches!(
            self,
            Self::Name
                | Self::UserId
                | Self::UserName
                | Self::UserEmail
                | Self::UserDepartment
                | Self::UserTitle
                | Self::UserActive
                | Self::Data
        )
    }

    /// The field's name in policies, settings and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProviderId => "provider_id",
            Self::Form => "form",
            Self::Serial => "serial",
            Self::Udid => "udid",
            Self::Name => "name",
            Self::Platform => "platform",
            Self::OsVersion => "os_version",
            Self::OsBuild => "os_build",
            Self::Model => "model",
            Self::Managed => "managed",
            Self::Supervised => "supervised",
            Self::Ownership => "ownership",
            Self::Compliance => "compliance",
            Self::Groups => "groups",
            Self::Lost => "lost",
            Self::WipePending => "wipe_pending",
            Self::Compromised => "compromised",
            Self::Encrypted => "encrypted",
            Self::Attestation => "attestation",
            Self::UserId => "user.id",
            Self::UserName => "user.name",
            Self::UserEmail => "user.email",
            Self::UserDepartment => "user.department",
            Self::UserTitle => "user.title",
            Self::UserActive => "user.active",
            Self::EnrolledAt => "enrolled_at",
            Self::LastSeen => "last_seen",
            Self::InventoryAt => "inventory_at",
            Self::Data => "data",
        }
    }

    /// The type of the field's value.
    pub const fn holds(self) -> FieldType {
        match self {
            Self::Managed | Self::Supervised | Self::Lost | Self::WipePending | Self::Compromised | Self::Encrypted | Self::UserActive => {
                FieldType::Flag
            }
            Self::EnrolledAt | Self::LastSeen | Self::InventoryAt => FieldType::Time,
            Self::Groups => FieldType::Groups,
            Self::Data => FieldType::Data,
            _ => FieldType::Text,
        }
    }
}

/// A set of fields.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Fields(u32);

impl Fields {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// The set of these fields.
    pub const fn of(fields: &[Field]) -> Self {
        let mut set = 0;
        let mut rest = fields;
        while let [first, more @ ..] = rest {
            set |= Self::bit(*first);
            rest = more;
        }
        Self(set)
    }

    const fn bit(field: Field) -> u32 {
        1 << (field as u32)
    }

    /// Returns whether the set has the field.
    pub const fn contains(self, field: Field) -> bool {
        self.0 & Self::bit(field) != 0
    }

    /// The union of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The intersection of both sets.
    #[must_use]
    pub const fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// This set without the fields of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Returns whether the sets have a field in common.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Returns whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The fields of the set, in the order of [`Field::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Field> {
        Field::ALL.iter().copied().filter(move |field| self.contains(*field))
    }
}

impl FromIterator<Field> for Fields {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        fields.into_iter().fold(Self::NONE, |set, field| Self(set.0 | Self::bit(field)))
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Field::as_str)).finish()
    }
}

impl Record {
    /// Makes a record of which only the free columns are known, a JSON object.
    pub fn of_data(json: String) -> Self {
        Self { data: Fact::Value(json), ..Self::default() }
    }

    /// Fields of which a value or its absence is known.
    pub fn known(&self) -> Fields {
        Field::ALL.iter().copied().filter(|field| self.knows(*field)).collect()
    }

    /// Returns whether a value of the field, or its absence, is known.
    pub fn knows(&self, field: Field) -> bool {
        match field {
            Field::ProviderId => !self.provider_id.is_empty(),
            Field::Form => self.form.is_known(),
            Field::Serial => self.serial.is_known(),
            Field::Udid => self.udid.is_known(),
            Field::Name => self.name.is_known(),
            Field::Platform => self.platform.is_known(),
            Field::OsVersion => self.os_version.is_known(),
            Field::OsBuild => self.os_build.is_known(),
            Field::Model => self.model.is_known(),
            Field::Managed => self.managed.is_known(),
            Field::Supervised => self.supervised.is_known(),
            Field::Ownership => self.ownership.is_known(),
            Field::Compliance => self.compliance.is_known(),
            Field::Groups => self.groups.is_known(),
            Field::Lost => self.lost.is_known(),
            Field::WipePending => self.wipe_pending.is_known(),
            Field::Compromised => self.compromised.is_known(),
            Field::Encrypted => self.encrypted.is_known(),
            Field::Attestation => self.attestation.is_known(),
            Field::UserId => self.user.id.is_known(),
            Field::UserName => self.user.name.is_known(),
            Field::UserEmail => self.user.email.is_known(),
            Field::UserDepartment => self.user.department.is_known(),
            Field::UserTitle => self.user.title.is_known(),
            Field::UserActive => self.user.active.is_known(),
            Field::EnrolledAt => self.enrolled_at.is_known(),
            Field::LastSeen => self.last_seen.is_known(),
            Field::InventoryAt => self.inventory_at.is_known(),
            Field::Data => self.data.is_known(),
        }
    }

    /// All identifiers that may be used for this device, with their kinds, in the form in which identifiers are compared.
    pub fn identifiers(&self) -> impl Iterator<Item = (Option<IdentifierKind>, String)> {
        let serial = self.serial.value().map(|serial| (Some(IdentifierKind::Serial), serial));
        let udid = self.udid.value().map(|udid| (Some(IdentifierKind::Udid), udid));
        let aliases = self.aliases.iter().map(|alias| (alias.kind, &alias.text));
        let all = serial.into_iter().chain(udid).chain(aliases);
        all.map(|(kind, text)| (kind, normal(text).into_owned())).filter(|(_, text)| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_listed_once_and_fits_into_a_set() {
        let names: std::collections::BTreeSet<_> = Field::ALL.iter().map(|field| field.as_str()).collect();
        assert_eq!(names.len(), Field::ALL.len());
        for (number, field) in Field::ALL.iter().enumerate() {
            assert_eq!(*field as usize, number);
            assert!(Fields::of(&[*field]).iter().eq([*field]));
        }
    }

    #[test]
    fn sets_of_fields_are_put_together_and_compared() {
        let (one, other) = (Fields::of(&[Field::Name, Field::Lost]), Fields::of(&[Field::Lost, Field::Data]));
        assert_eq!(one.union(other), Fields::of(&[Field::Name, Field::Lost, Field::Data]));
        assert_eq!((one.both(other), one.without(other)), (Fields::of(&[Field::Lost]), Fields::of(&[Field::Name])));
        assert!(one.meets(other) && !one.without(other).meets(other) && one.both(Fields::NONE).is_empty());
    }

    #[test]
    fn all_of_the_user_and_what_people_name_is_personal() {
        let personal = |name: &str| name.starts_with("user.") || name == "name" || name == "data";
        for field in Field::ALL {
            assert_eq!(field.is_personal(), personal(field.as_str()), "{}", field.as_str());
        }
    }

    #[test]
    fn nothing_is_known_of_an_empty_record() {
        assert_eq!(Record::default().known(), Fields::NONE);
        assert_eq!(Record::of_data("{}".to_owned()).known(), Fields::of(&[Field::Data]));
        let nobody = Record { user: User::none(), ..Record::default() };
        assert!(nobody.knows(Field::UserEmail) && nobody.user.email.value().is_none());
    }

    #[test]
    fn a_blank_text_is_none() {
        assert_eq!(Fact::text(Some("  ")), Fact::Absent);
        assert_eq!(Fact::text(None), Fact::Absent);
        assert_eq!(Fact::text(Some(" a ")), Fact::Value("a".to_owned()));
    }

    #[test]
    fn what_is_changed_is_known_as_it_was() {
        assert_eq!(Fact::Value(1).map(|number| number + 1), Fact::Value(2));
        assert_eq!(Fact::Absent.map(|number: u8| number + 1), Fact::Absent);
        assert_eq!(Fact::Unknown.map(|number: u8| number + 1), Fact::Unknown);
    }

    #[test]
    fn sets_of_fields_meet_where_a_field_is_in_both() {
        for one in Field::ALL {
            for other in Field::ALL {
                let (alone, both) = (Fields::of(&[*one]), Fields::of(&[*one, *other]));
                assert_eq!(alone.meets(Fields::of(&[*other])), one == other);
                assert!(both.meets(alone) && alone.meets(both));
                assert!(!both.without(alone).meets(alone) && !both.meets(Fields::NONE));
                // Repeated fields make no difference.
                assert_eq!([*one, *other, *one].into_iter().collect::<Fields>(), both);
            }
        }
    }

    #[test]
    fn a6_a_device_is_meant_by_any_of_its_identifiers_each_of_its_kind() {
        let record = Record {
            serial: Fact::Value(" c02a ".to_owned()),
            udid: Fact::Value("ab-cd".to_owned()),
            aliases: vec![Alias::of_no_kind("x"), Alias::of(IdentifierKind::Hostname, " a.example "), Alias::of_no_kind(" ")],
            ..Record::default()
        };
        let expected = [
            (Some(IdentifierKind::Serial), "C02A"),
            (Some(IdentifierKind::Udid), "AB-CD"),
            (None, "X"),
            (Some(IdentifierKind::Hostname), "A.EXAMPLE"),
        ];
        assert!(record.identifiers().eq(expected.map(|(kind, text)| (kind, text.to_owned()))));
    }

    #[test]
    fn a_person_does_not_print() {
        let record = Record { user: User { name: Fact::Value("Ada".to_owned()), ..User::default() }, ..Record::default() };
        assert!(!format!("{record:?}").contains("Ada"));
    }
}
