//! What is known of one device, in one form whatever inventory said it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::{IdentifierKind, normal};
use crate::time::UnixTime;

/// One thing that may be known. That it is not known is never taken for that it is not so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact<T> {
    /// The inventory says so.
    Value(T),
    /// The inventory says that there is none.
    Absent,
    /// Nobody asked, nobody may say, or what was said cannot be read.
    #[default]
    Unknown,
}

impl<T> Fact<T> {
    /// What the inventory says.
    pub const fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Unknown => None,
        }
    }

    /// Whether the inventory says anything, be it that there is none.
    pub const fn is_known(&self) -> bool {
        !matches!(self, Self::Unknown)
    }

    /// What `change` makes of the value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Fact<U> {
        match self {
            Self::Value(value) => Fact::Value(change(value)),
            Self::Absent => Fact::Absent,
            Self::Unknown => Fact::Unknown,
        }
    }

    /// A value, or that there is none: for a field that the inventory did answer.
    pub fn known(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Self::Value)
    }
}

impl Fact<String> {
    /// A text that was answered; blank is the same as none.
    pub fn text(text: Option<&str>) -> Self {
        Self::known(text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned))
    }
}

/// What is known of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How the inventory itself names it; empty where it has no such name.
    pub provider_id: String,
    /// Computer or mobile device.
    pub form: Fact<Form>,
    /// Serial number of the maker, as it stands in the inventory.
    pub serial: Fact<String>,
    /// Unique device identifier.
    pub udid: Fact<String>,
    /// Other identifiers of the same device: by each of them it can be locked.
    pub aliases: Vec<Alias>,
    /// Name that people see.
    pub name: Fact<String>,
    /// As the inventory spells it, such as `Mac` or `Windows`.
    pub platform: Fact<String>,
    /// Version of the operating system, such as `15.4.1`.
    pub os_version: Fact<String>,
    /// Its build, such as `24E263`.
    pub os_build: Fact<String>,
    /// Identifier of the model, such as `Mac15,3`.
    pub model: Fact<String>,
    /// Whether the device is under management now. A record outlives its enrolment.
    pub managed: Fact<bool>,
    /// Whether it is supervised.
    pub supervised: Fact<bool>,
    /// As the inventory spells it: whose the device is, or how it was enrolled.
    pub ownership: Fact<String>,
    /// What the inventory thinks of it.
    pub compliance: Fact<Compliance>,
    /// Groups, tags, labels, blueprints: whatever the inventory sorts devices into.
    pub groups: Fact<Vec<Group>>,
    /// Whether it is reported lost.
    pub lost: Fact<bool>,
    /// Whether it is about to be wiped or retired.
    pub wipe_pending: Fact<bool>,
    /// Whether its protection was broken: jailbreak, system integrity protection switched off.
    pub compromised: Fact<bool>,
    /// Whether its storage is encrypted.
    pub encrypted: Fact<bool>,
    /// What the inventory says of the device's own attestation, as it spells it.
    pub attestation: Fact<String>,
    /// Who uses it.
    pub user: User,
    /// When it was last enrolled.
    pub enrolled_at: Fact<UnixTime>,
    /// When the inventory last heard of it.
    pub last_seen: Fact<UnixTime>,
    /// When what is known of it was last collected.
    pub inventory_at: Fact<UnixTime>,
    /// Free columns: a JSON object, as it stands in a file or was picked from an inventory.
    pub data: Fact<String>,
}

/// Another identifier of a device, beside its serial number and its unique device identifier.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Alias {
    /// What the identifier is; `None` where it is of no kind that requests state.
    pub kind: Option<IdentifierKind>,
    /// The identifier, as it stands in the inventory.
    pub text: String,
}

impl Alias {
    /// An identifier of a kind that requests state.
    pub fn of(kind: IdentifierKind, text: impl Into<String>) -> Self {
        Self { kind: Some(kind), text: text.into() }
    }

    /// An identifier that an inventory has for itself.
    pub fn of_no_kind(text: impl Into<String>) -> Self {
        Self { kind: None, text: text.into() }
    }
}

/// Who uses a device.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Login name, or how the inventory names the person.
    pub id: Fact<String>,
    /// Name that people see.
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
    /// Nobody, and the inventory says so.
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
    // It is a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("User(..)")
    }
}

/// What a device is, for inventories that keep two kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Form {
    /// Desktop or laptop.
    Computer,
    /// Phone, tablet, television, headset.
    MobileDevice,
}

impl Form {
    /// For policies and people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Computer => "computer",
            Self::MobileDevice => "mobile_device",
        }
    }
}

/// What an inventory thinks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Compliance {
    /// It keeps the rules.
    Compliant,
    /// It does not.
    NonCompliant,
    /// It does not, and still has time to.
    GracePeriod,
    /// The inventory has come to no conclusion.
    Undetermined,
}

impl Compliance {
    /// For policies and people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Compliant => "compliant",
            Self::NonCompliant => "non_compliant",
            Self::GracePeriod => "grace_period",
            Self::Undetermined => "undetermined",
        }
    }
}

/// One group that a device is in. A policy may name it by either.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Group {
    /// Stays when the group is renamed; empty where the inventory gives none.
    pub id: String,
    /// Name that people see; empty where nobody said it. An inventory whose groups have no names calls them by their ids.
    pub name: String,
}

/// A field that a policy can use. Its name there is `device.` and [`Field::as_str`].
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

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// A text.
    Text,
    /// Yes or no.
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

    /// Whether it may be about a person: all of the user, and what people name or an operator keeps as they like.
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

    /// As policies, settings and documents spell it.
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

    /// What it holds.
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
    /// None.
    pub const NONE: Self = Self(0);

    /// These.
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

    /// Whether the field is in it.
    pub const fn contains(self, field: Field) -> bool {
        self.0 & Self::bit(field) != 0
    }

    /// Those of either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are in both.
    #[must_use]
    pub const fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that `other` lacks.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether any field is in both.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether it has no field.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its fields, in the order of [`Field::ALL`].
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
    /// A record of which nothing is known but its free columns, a JSON object.
    pub fn of_data(json: String) -> Self {
        Self { data: Fact::Value(json), ..Self::default() }
    }

    /// Fields of which something is known, be it that there is none.
    pub fn known(&self) -> Fields {
        Field::ALL.iter().copied().filter(|field| self.knows(*field)).collect()
    }

    /// Whether something is known of a field, be it that there is none.
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

    /// Every identifier by which somebody may mean this device, with its kind, in the form in which identifiers are compared.
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
                // However often it is named.
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
