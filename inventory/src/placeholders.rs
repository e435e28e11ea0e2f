//! Texts that stand in the place of an identifier and identify nobody.
//!
//! A maker who writes no serial number leaves what the board came with, an inventory that knows none writes `None`, a spreadsheet
//! `#N/A`. Such a text is the same on many devices, so the record of one must never answer for another: a placeholder is never
//! looked up, remembered or locked.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use posture::identity::{DeviceId, IdentifierKind, Identity, normal};
use posture::outcome::Denial;
use posture::record::{Fact, Record};

/// Placeholder texts, compared as identifiers are. A text of zeros counts as `0`, however many they are and whatever separates
/// them.
#[derive(Clone, PartialEq, Eq)]
pub struct Placeholders(Arc<Texts>);

#[derive(PartialEq, Eq)]
struct Texts {
    /// The texts in the normal form of identifiers of any kind.
    all: BTreeSet<Box<str>>,
    /// The texts that look like a UDID, without their dashes, as UDIDs are compared.
    udids: BTreeSet<Box<str>>,
}

impl Placeholders {
    /// The texts that hold where the configuration says nothing: what boards and virtual machines report (SMBIOS, DMTF DSP0134,
    /// types 1 to 3), what programs write for nothing, and what spreadsheets write for an error.
    pub const DEFAULT: &'static [&'static str] = &[
        "0",
        "-1",
        "-",
        "None",
        "Null",
        "N/A",
        "NA",
        "#N/A",
        "#REF!",
        "#VALUE!",
        "Unknown",
        "Undefined",
        "Empty",
        "INVALID",
        "Not Available",
        "Not Applicable",
        "Not Specified",
        "Not Provided",
        "Default string",
        "To be filled by O.E.M.",
        "O.E.M.",
        "OEM",
        "System Serial Number",
        "Chassis Serial Number",
        "Base Board Serial Number",
        "Serial Number",
        "SerialNumber",
        "0123456789",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "03000200-0400-0500-0006-000700080009",
    ];

    /// Takes these texts and no others.
    pub fn new<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Self {
        let (mut all, mut udids) = (BTreeSet::new(), BTreeSet::new());
        for text in texts {
            let text = zero(text.as_ref());
            all.insert(normal(text).into());
            let udid = IdentifierKind::Udid.without_any_dashes(text);
            if udid.len() >= SHORTEST_UDID && udid.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                udids.insert(udid.into());
            }
        }
        Self(Arc::new(Texts { all, udids }))
    }

    /// Returns whether a text is a placeholder for an identifier of this kind; `None`: of any kind.
    pub fn has(&self, kind: Option<IdentifierKind>, text: &str) -> bool {
        let Texts { all, udids } = &*self.0;
        let text = zero(text);
        let may_be_udid = kind.is_none_or(|kind| kind == IdentifierKind::Udid);
        all.contains(&*normal(text)) || (may_be_udid && udids.contains(&*IdentifierKind::Udid.without_any_dashes(text)))
    }

    /// The device with the identifier that somebody states.
    ///
    /// # Errors
    /// The errors of [`DeviceId::new`], and [`Denial::IDENTIFIER_MISSING`] for a placeholder.
    pub fn device(&self, kind: IdentifierKind, stated: &str) -> Result<DeviceId, Denial> {
        let device = DeviceId::new(kind, stated)?;
        if self.has(Some(kind), device.normal()) { Err(Denial::IDENTIFIER_MISSING) } else { Ok(device) }
    }

    /// The identity that a request gave, unless its identifier is a placeholder.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_MISSING`] for a placeholder, however well it is proven.
    pub fn identity(&self, identity: Identity) -> Result<Identity, Denial> {
        let device = &identity.device;
        if self.has(Some(device.kind()), device.normal()) { Err(Denial::IDENTIFIER_MISSING) } else { Ok(identity) }
    }

    /// Takes placeholders out of a record: by one of them it would be found, remembered and locked as another device.
    pub fn strip(&self, record: &mut Record) {
        for (kind, fact) in [(IdentifierKind::Serial, &mut record.serial), (IdentifierKind::Udid, &mut record.udid)] {
            if fact.value().is_some_and(|text| self.has(Some(kind), text)) {
                // The fact is absent, not unknown: the inventory has asked the device, and the device has no identifier.
                *fact = Fact::Absent;
            }
        }
        record.aliases.retain(|alias| !self.has(alias.kind, &alias.text));
    }
}

impl Default for Placeholders {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}

impl fmt::Debug for Placeholders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Placeholders({} texts)", self.0.all.len())
    }
}

/// Number of letters of the shortest UDID, that of newer devices of Apple.
const SHORTEST_UDID: usize = 24;

/// Returns `0` for a text of zeros, else the text.
fn zero(text: &str) -> &str {
    let zeros = text.bytes().all(|byte| matches!(byte, b'0' | b'-' | b':' | b' '));
    if zeros && text.contains('0') { "0" } else { text }
}

#[cfg(test)]
mod tests {
    use posture::identity::Trust;
    use posture::record::Alias;

    use super::*;

    #[test]
    fn d5_texts_that_boards_and_programs_write_identify_nobody() {
        let placeholders = Placeholders::default();
        for text in [
            "0",
            "-1",
            "none",
            " N/A ",
            "UNKNOWN",
            "default STRING",
            "To Be Filled By O.E.M.",
            "system serial number",
            "Not Specified",
            "Not Applicable",
            "Chassis Serial Number",
            "invalid",
            "00000000",
            "00000000-0000-0000-0000-000000000000",
            "00:00:00:00:00:00",
        ] {
            for kind in IdentifierKind::ALL {
                assert!(placeholders.has(Some(*kind), text), "{text} as {kind}");
                assert_eq!(placeholders.device(*kind, text), Err(Denial::IDENTIFIER_MISSING), "{text}");
            }
            assert!(placeholders.has(None, text), "{text}");
        }
        for text in ["C02XL0GYJGH5", "10000000", "0000000A", "1", "none1", "--", "6F1C2B3A-0D4E-4F5A-8B6C-7D8E9F0A1B2C"] {
            assert!(IdentifierKind::ALL.iter().all(|kind| !placeholders.has(Some(*kind), text)), "{text}");
            assert!(!placeholders.has(None, text), "{text}");
        }
        assert_eq!(placeholders.device(IdentifierKind::Serial, ""), Err(Denial::IDENTIFIER_INVALID));
        assert_eq!(placeholders.device(IdentifierKind::Serial, "C02A").unwrap().normal(), "C02A");
    }

    #[test]
    fn d5_a_udid_is_a_placeholder_with_its_dashes_and_without() {
        let placeholders = Placeholders::default();
        for udid in ["03000200-0400-0500-0006-000700080009", "03000200040005000006000700080009", "ffffffffffffffffffffffffffffffff"] {
            assert!(placeholders.has(Some(IdentifierKind::Udid), udid) && placeholders.has(None, udid), "{udid}");
        }
        let apple = Placeholders::new(["00008103-001A2B3C4D5E6F70"]);
        assert!(apple.has(Some(IdentifierKind::Udid), "00008103001a2b3c4d5e6f70"));
        // A serial number with a dash is another serial number.
        assert!(!placeholders.has(Some(IdentifierKind::Serial), "03000200040005000006000700080009"));
        assert!(!placeholders.has(Some(IdentifierKind::Serial), "1"));
    }

    #[test]
    fn d5_a_list_of_ones_own_takes_the_place_of_the_usual_one() {
        let own = Placeholders::new(["spare", "TEST-1"]);
        assert!(own.has(Some(IdentifierKind::Serial), " SPARE") && own.has(None, "test-1"));
        assert!(!own.has(Some(IdentifierKind::Serial), "Default string") && !own.has(None, "0000"));
        assert!(!Placeholders::new([""; 0]).has(None, "0"));
        assert_eq!(Placeholders::new(["a", "B"]), Placeholders::new(["b", " A"]));
        assert_ne!(own, Placeholders::default());
    }

    #[test]
    fn d5_however_well_it_is_proven_a_placeholder_is_nobody() {
        let placeholders = Placeholders::default();
        for trust in Trust::ALL {
            let identity = |text: &str| Identity { device: DeviceId::new(IdentifierKind::Serial, text).unwrap(), trust: *trust };
            assert_eq!(placeholders.identity(identity("Default string")), Err(Denial::IDENTIFIER_MISSING));
            assert_eq!(placeholders.identity(identity("C02A")), Ok(identity("C02A")));
        }
    }

    #[test]
    fn d5_a_record_loses_what_is_no_identifier_and_nothing_else() {
        let text = |text: &str| Fact::Value(text.to_owned());
        let mut record = Record {
            provider_id: "0".to_owned(),
            serial: text("Default string"),
            udid: text("00000000-0000-0000-0000-000000000000"),
            name: text("Unknown"),
            aliases: vec![Alias::of(IdentifierKind::Hostname, "none"), Alias::of_no_kind("N/A"), Alias::of(IdentifierKind::Hostname, "a")],
            ..Record::default()
        };
        Placeholders::default().strip(&mut record);
        assert_eq!((&record.serial, &record.udid), (&Fact::Absent, &Fact::Absent));
        assert_eq!(record.aliases, [Alias::of(IdentifierKind::Hostname, "a")]);
        assert_eq!((record.provider_id.as_str(), &record.name), ("0", &text("Unknown")));
        let whole = Record { serial: text("C02A"), udid: Fact::Unknown, ..Record::default() };
        let mut same = whole.clone();
        Placeholders::default().strip(&mut same);
        assert_eq!(same, whole);
    }
}
