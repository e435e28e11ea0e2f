//! One device as the cache keeps it: encoded, so that a million of them fit, and with the marks by which it is invalidated.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use posture::identity::{DeviceId, IdentifierKind, UDID_SHAPES, normal, undashed};
use posture::record::{Fields, Form, Record};

use super::mark::Mark;
use super::order::Moment;

/// Key of an identifier: its kind and its normal form. A short identifier stands in the key itself: an allocation for each of a
/// million would count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// Kind, length, and the text filled up with zeros.
    Short(IdentifierKind, u8, [u8; SHORT]),
    Long(IdentifierKind, Box<str>),
}

/// Longest text that makes a key no larger than one with an allocation; the serial numbers of all makers fit.
const SHORT: usize = 21;

impl Key {
    /// Key of a device's identifier. A UDID has the same key with and without its dashes; dashes in other places make another
    /// key, as they make another question to the service.
    pub(super) fn of(device: &DeviceId) -> Self {
        match device.kind() {
            IdentifierKind::Udid => Self::new(IdentifierKind::Udid, &undashed(device.normal())),
            kind => Self::new(kind, device.normal()),
        }
    }

    pub(super) const fn kind(&self) -> IdentifierKind {
        let (Self::Short(kind, ..) | Self::Long(kind, _)) = self;
        *kind
    }

    fn new(kind: IdentifierKind, identifier: &str) -> Self {
        let mut short = [0; SHORT];
        match (short.get_mut(..identifier.len()), u8::try_from(identifier.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(identifier.as_bytes());
                Self::Short(kind, length, short)
            }
            _ => Self::Long(kind, identifier.into()),
        }
    }

    fn identifier(&self) -> &str {
        match self {
            Self::Short(_, length, text) => text.get(..usize::from(*length)).and_then(|text| str::from_utf8(text).ok()).unwrap_or_default(),
            Self::Long(_, text) => text,
        }
    }

    /// Mark of the identifier as events state it: without its kind, in any spelling.
    pub(super) fn mark(&self) -> Mark {
        Mark::identifier(self.identifier())
    }

    /// Mark of a question by this very identifier.
    pub(super) fn question(&self) -> Mark {
        Mark::hash(b'q', self.to_string().as_bytes())
    }

    /// Mark under which the owner of this very identifier is kept.
    pub(super) fn owner(&self) -> Mark {
        Mark::hash(b'o', self.to_string().as_bytes())
    }

    /// Mark of the device that has this identifier, where nothing else tells devices apart.
    fn device(&self) -> Mark {
        Mark::hash(b'd', self.to_string().as_bytes())
    }
}

/// The key as operators read it: `serial C02XL0GYJGH5`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind().as_str(), self.identifier())
    }
}

/// The newest record of a device, shared by all identifiers that lead to it.
#[derive(Debug)]
pub(super) struct Slot(Mutex<Stored>);

/// A record in the cache, with what tells whether it still counts.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// The [`Record`], encoded.
    bytes: Arc<[u8]>,
    /// Time of the question for the record, in milliseconds of the cache's clock.
    pub(super) at: u64,
    /// Moment of the question, among all questions and events.
    pub(super) moment: Moment,
    /// Moment of the answer.
    pub(super) landed: Moment,
    /// Whether an event named the device between the question and the answer: the record was never good for a moment.
    pub(super) overtaken: bool,
    /// Fields that were asked for: what is unknown of these, the inventory cannot say.
    pub(super) asked: Fields,
    /// Whether one list had the device twice, and not alike: nothing of the record is believed.
    pub(super) contradicted: bool,
    marks: [Mark; 7],
}

/// An identifier that leads to a device, since the service was asked by it or a whole list proved that it is one device's alone.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    pub(super) slot: Arc<Slot>,
    /// Time of the question or list, in milliseconds of the cache's clock.
    pub(super) at: u64,
    /// Moment of the question or list, among all questions and events.
    pub(super) moment: Moment,
    /// Number of the last full list at that time; 0: there was none.
    pub(super) sweep: u32,
    /// Hint of the only questions that the binding counts for: [`Learned::hint`].
    pub(super) hint: Option<Form>,
}

/// Whether an answer for questions of `hint`, or for all where that is `None`, counts for a question of the hint `asked`.
pub(super) fn counts(hint: Option<Form>, asked: Option<Form>) -> bool {
    hint.is_none() || hint == asked
}

/// The question by which something was learned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Learned {
    /// Time of the question, in milliseconds of the cache's clock.
    pub(super) at: u64,
    /// Moment of the question, among all questions and events.
    pub(super) moment: Moment,
    /// Fields that were asked for.
    pub(super) asked: Fields,
    /// The only hint of questions that the answer counts for; `None`: it counts for all.
    pub(super) hint: Option<Form>,
}

impl Slot {
    pub(super) const fn new(stored: Stored) -> Self {
        Self(Mutex::new(stored))
    }

    /// The newest record of the device.
    pub(super) fn read(&self) -> Stored {
        self.lock().clone()
    }

    /// Takes a newer record. Another record from the same question contradicts the known one.
    pub(super) fn update(&self, stored: Stored) {
        let mut known = self.lock();
        if stored.moment > known.moment {
            *known = stored;
        } else if stored.moment == known.moment && stored.bytes != known.bytes {
            known.contradicted = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stored> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stored {
    /// A record as the cache keeps it; `None` where it cannot be encoded, which no record of ours is. `kind`:
    /// [`Inventory::item_kind`].
    ///
    /// [`Inventory::item_kind`]: inventory::Inventory::item_kind
    pub(super) fn new(record: &Record, learned: Learned, kind: Option<IdentifierKind>) -> Option<Self> {
        let mark = |text: Option<&String>| Mark::identifier(text.map_or("", String::as_str));
        let bytes: Arc<[u8]> = postcard::to_allocvec(record).ok()?.into();
        let key = |kind| keys(record, &[kind]).into_iter().next();
        let item = kind.and_then(key);
        // Where the inventory has no id of its own for a device, the device is the one that has its identifier, whatever else
        // changes. Without such an identifier, a record is of the same device only while it does not change.
        let own = match (record.provider_id.as_str(), &item) {
            ("", Some(item)) => item.device(),
            ("", None) => Mark::content(&bytes),
            (id, _) => Mark::provider_id(id),
        };
        let named = item.as_ref().map_or(own, Key::mark);
        let question = |key: Option<Key>| key.map_or(own, |key| key.question());
        let [serial, udid] = [IdentifierKind::Serial, IdentifierKind::Udid].map(|kind| question(key(kind)));
        Some(Self {
            bytes,
            at: learned.at,
            moment: learned.moment,
            landed: Moment::now(),
            overtaken: false,
            asked: learned.asked,
            contradicted: false,
            marks: [own, mark(record.serial.value()), mark(record.udid.value()), named, serial, udid, question(item)],
        })
    }

    pub(super) fn record(&self) -> Option<Record> {
        postcard::from_bytes(&self.bytes).ok()
    }

    /// Whether both records say the same of the device.
    pub(super) fn says_as(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }

    /// Mark that tells the device from all others of the service.
    pub(super) const fn own_mark(&self) -> Mark {
        let [own, ..] = self.marks;
        own
    }

    /// Marks by which an event may mean the device, and by which the service may be asked for it.
    pub(super) const fn marks(&self) -> [Mark; 7] {
        self.marks
    }
}

/// Identifiers of these kinds by which the record's device can be asked for, as the record spells them.
pub(super) fn identifiers<'r>(record: &'r Record, kinds: &'r [IdentifierKind]) -> impl Iterator<Item = DeviceId> + 'r {
    let alias = |kind| record.aliases.iter().find(|alias| alias.kind == Some(kind)).map(|alias| &alias.text);
    let text = move |kind| match kind {
        IdentifierKind::Serial => record.serial.value(),
        IdentifierKind::Udid => record.udid.value(),
        kind => alias(kind),
    };
    kinds.iter().filter_map(move |kind| DeviceId::new(*kind, text(*kind)?).ok())
}

/// Keys of a record's identifiers of these kinds.
pub(super) fn keys(record: &Record, kinds: &[IdentifierKind]) -> Vec<Key> {
    identifiers(record, kinds).map(|device| Key::of(&device)).collect()
}

/// Keys of a kind that records have no field of their own for: those by which [`is_of`] accepts the record.
pub(super) fn names(record: &Record, kind: IdentifierKind) -> impl Iterator<Item = Key> {
    texts(record, kind).filter_map(move |text| DeviceId::new(kind, text).ok()).map(|device| Key::of(&device))
}

fn texts(record: &Record, kind: IdentifierKind) -> impl Iterator<Item = &String> {
    let of_its_kind = record.aliases.iter().filter(move |alias| alias.kind.is_none_or(|of| of == kind));
    record.serial.value().into_iter().chain(of_its_kind.map(|alias| &alias.text))
}

/// Kinds of identifiers that a list of any inventory can prove to be one device's: records have fields of their own for them.
pub(super) const OWN_KINDS: &[IdentifierKind] = &[IdentifierKind::Serial, IdentifierKind::Udid];

/// A device as inventories write it: a unique device identifier without its dashes gets them.
pub(super) fn as_written(device: &DeviceId) -> DeviceId {
    let stated = device.stated().trim_ascii();
    let shape = UDID_SHAPES.iter().find(|lengths| lengths.iter().sum::<usize>() == stated.len());
    let Some(lengths) = shape.filter(|_| device.kind() == IdentifierKind::Udid && stated.bytes().all(|byte| byte.is_ascii_hexdigit()))
    else {
        return device.clone();
    };
    let (mut parts, mut rest) = (Vec::new(), stated);
    for length in *lengths {
        let Some((part, behind)) = rest.split_at_checked(*length) else { break };
        parts.push(part);
        rest = behind;
    }
    DeviceId::new(device.kind(), &parts.join("-")).unwrap_or_else(|_| device.clone())
}

/// Whether a record is of the device that was asked for. No inventory is believed in this.
pub(super) fn is_of(record: &Record, device: &DeviceId) -> bool {
    let same = |identifier: &String| normal(identifier) == device.normal();
    match device.kind() {
        IdentifierKind::Serial => record.serial.value().is_some_and(same),
        IdentifierKind::Udid => record.udid.value().is_some_and(|udid| undashed(&normal(udid)) == undashed(device.normal())),
        kind => texts(record, kind).any(same),
    }
}

#[cfg(test)]
mod tests {
    use posture::record::{Alias, Fact};

    use super::*;

    fn record(serial: &str, udid: &str) -> Record {
        Record { serial: Fact::text(Some(serial)), udid: Fact::text(Some(udid)), provider_id: "7".to_owned(), ..Record::default() }
    }

    #[test]
    fn a_record_reads_back() {
        let record = Record {
            aliases: vec![Alias::of_no_kind("a"), Alias::of(IdentifierKind::Yubico, "7")],
            managed: Fact::Value(true),
            lost: Fact::Absent,
            ..record("C02A", "AB-1")
        };
        let learned = Learned { at: 5, moment: Moment::default(), asked: Fields::NONE, hint: None };
        assert_eq!(Stored::new(&record, learned, None).unwrap().record().unwrap(), record);
    }

    #[test]
    fn a_key_is_its_identifier_short_or_long_and_takes_no_more_than_a_text_beside_a_kind() {
        for length in [1, SHORT - 1, SHORT, SHORT + 1, 60] {
            let text = "A".repeat(length);
            let key = |kind, text: &str| Key::of(&DeviceId::new(kind, text).unwrap());
            assert_eq!(key(IdentifierKind::Serial, &text).to_string(), format!("serial {text}"));
            assert_ne!(key(IdentifierKind::Serial, &text), key(IdentifierKind::Udid, &text));
            assert_ne!(key(IdentifierKind::Serial, &text), key(IdentifierKind::Serial, &format!("{text}A")));
        }
        assert_eq!(size_of::<Key>(), size_of::<(IdentifierKind, Box<str>)>());
    }

    #[test]
    fn what_was_learned_for_one_hint_counts_for_that_alone() {
        let (computer, phone) = (Some(Form::Computer), Some(Form::MobileDevice));
        for asked in [None, computer, phone] {
            assert!(counts(None, asked));
            assert_eq!(counts(computer, asked), asked == computer);
        }
    }

    #[test]
    fn is_found_under_every_kind_that_is_asked_by() {
        let record = record(" c02a ", "00008103-001a2b3c4d5e6f70");
        let key = |kind, text| Key::of(&DeviceId::new(kind, text).unwrap());
        let kinds = [IdentifierKind::Serial, IdentifierKind::Udid, IdentifierKind::Email];
        assert_eq!(keys(&record, &kinds), [key(IdentifierKind::Serial, "C02A"), key(IdentifierKind::Udid, "00008103001A2B3C4D5E6F70")]);
        assert_eq!(keys(&record, &kinds[..1]), [key(IdentifierKind::Serial, "c02a")]);
    }

    #[test]
    fn a_unique_identifier_is_asked_for_with_its_dashes() {
        for (kind, stated, written) in [
            (IdentifierKind::Udid, "00008103001a2b3c4d5e6f70", "00008103-001a2b3c4d5e6f70"),
            (IdentifierKind::Udid, "4C4C454400435A108036B4C04F4E3233", "4C4C4544-0043-5A10-8036-B4C04F4E3233"),
            (IdentifierKind::Udid, "00008103-001A2B3C4D5E6F70", "00008103-001A2B3C4D5E6F70"),
            (IdentifierKind::Udid, "0123456789abcdef0123456789abcdef01234567", "0123456789abcdef0123456789abcdef01234567"),
            (IdentifierKind::Udid, "not hexadecimal, 24 long", "not hexadecimal, 24 long"),
            (IdentifierKind::Serial, "00008103001A2B3C4D5E6F70", "00008103001A2B3C4D5E6F70"),
        ] {
            assert_eq!(as_written(&DeviceId::new(kind, stated).unwrap()).stated(), written);
        }
    }

    #[test]
    fn only_the_device_that_was_asked_for_is_it() {
        let record = record("C02A", "4C4C4544-0043-5A10-8036-B4C04F4E3233");
        let is = |kind, text| is_of(&record, &DeviceId::new(kind, text).unwrap());
        assert!(is(IdentifierKind::Serial, "c02a") && is(IdentifierKind::Udid, "4c4c454400435a108036b4c04f4e3233"));
        assert!(
            !is(IdentifierKind::Serial, "C02")
                && !is(IdentifierKind::Serial, "4C4C4544-0043-5A10-8036-B4C04F4E3233")
                && !is(IdentifierKind::Serial, "C-02A")
        );
        assert!(!is(IdentifierKind::Udid, "4C4C45440043-5A10-8036-B4C04F4E-3233"), "with dashes elsewhere it is asked for as another one");
        assert!(!is(IdentifierKind::Hostname, "other"));
    }

    #[test]
    fn a3_only_another_record_of_the_same_question_contradicts_one() {
        let stored = |moment, serial: &str| {
            Stored::new(&record(serial, "U"), Learned { at: 1, moment, asked: Fields::NONE, hint: None }, None).unwrap()
        };
        let (earlier, asked) = (Moment::now(), Moment::now());
        for (moment, serial, contradicts) in [(earlier, "C02B", false), (asked, "C02A", false), (asked, "C02B", true)] {
            let slot = Slot::new(stored(asked, "C02A"));
            slot.update(stored(moment, serial));
            assert_eq!((slot.read().contradicted, slot.read().moment), (contradicts, asked), "{serial}");
        }
    }
}
