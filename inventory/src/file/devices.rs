//! Devices in one block of bytes, found through one table of hashes: no allocation and no pointer for each.

use std::fmt;
use std::hash::BuildHasher as _;

use posture::identity::{IdentifierKind, normal};
use posture::outcome::Data;
use serde::ser::{Error as _, Serialize, Serializer};

use super::header::Header;
use super::mistake::{Collector, LONGEST_IDENTIFIER, Mistake, Mistakes, Warning, Warnings, shown};
use super::settings::Settings;
use super::spelling;

#[expect(clippy::disallowed_types, reason = "banned for wasm, where it is constant; the sidecar never runs there")]
type Seed = std::hash::RandomState;

/// The content of a device file.
#[derive(Debug)]
pub struct Parsed {
    /// The devices.
    pub devices: Devices,
    /// Findings that an operator should look at.
    pub warnings: Warnings,
    /// The header of a CSV file, and how it was understood.
    pub header: Option<Header>,
}

/// The devices of a file, by identifier.
pub struct Devices {
    /// Records end to end: identifier, then the JSON text of the data or the cells of the row, each with its length before it.
    records: Box<[u8]>,
    /// Hash table with open addressing, half full. The upper half of a slot is the lower half of the hash, the lower one the
    /// record's offset.
    slots: Box<[u64]>,
    len: usize,
    /// Names of a CSV file's cells; `None`: the records are JSON.
    columns: Option<Box<[String]>>,
    /// The hash's seed, different for each file, so that nobody can choose identifiers that collide.
    seed: Seed,
}

impl Devices {
    /// Number of devices.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is no device.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of bytes that the devices take in memory.
    pub fn bytes(&self) -> usize {
        let columns = self.columns.iter().flatten().map(|name| size_of::<String>() + name.capacity()).sum::<usize>();
        size_of::<Self>() + self.records.len() + size_of_val::<[u64]>(&self.slots) + columns
    }

    /// Finds a device by the normal form of its identifier.
    pub fn find(&self, normal: &str) -> Option<Found<'_>> {
        let (_, offset) = self.slot(normal.as_bytes()).ok()?;
        let mut rest = self.records.get(offset as usize..)?;
        take(&mut rest)?;
        Some(Found { rest, columns: self.columns.as_deref() })
    }

    /// Finds the slot of an identifier: `Ok` has the slot that holds it and the record's offset, `Err` the free slot where it
    /// belongs and the upper half of the slot's value.
    fn slot(&self, identifier: &[u8]) -> Result<(usize, u32), (usize, u64)> {
        let hash = self.seed.hash_one(identifier);
        let tag = hash << 32;
        // The upper half of the hash chooses the first slot.
        #[expect(clippy::cast_possible_truncation, reason = "the product's upper half is below the number of slots")]
        let mut at = ((u128::from(hash) * self.slots.len() as u128) >> 64) as usize;
        loop {
            // Half of the slots are free, so the search ends; a table without slots finds nothing.
            let Some(slot) = self.slots.get(at).copied() else { return Err((at, tag)) };
            if slot == FREE {
                return Err((at, tag));
            }
            #[expect(clippy::cast_possible_truncation, reason = "the lower half is the offset")]
            let offset = slot as u32;
            if slot & UPPER == tag && self.identifier(offset) == Some(identifier) {
                return Ok((at, offset));
            }
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
    }

    fn identifier(&self, offset: u32) -> Option<&[u8]> {
        take(&mut self.records.get(offset as usize..)?)
    }
}

impl fmt::Debug for Devices {
    // The devices do not print, since they hold people's names and addresses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Devices({} devices, {} bytes)", self.len, self.bytes())
    }
}

/// The record of one device.
pub struct Found<'d> {
    rest: &'d [u8],
    columns: Option<&'d [String]>,
}

impl Found<'_> {
    /// The data: as it stands in a JSON file, or an object of strings made of a CSV file's row. `None` does not happen.
    pub fn data(&self) -> Option<Data> {
        if self.columns.is_some() {
            return Data::from_value(self).ok();
        }
        match std::str::from_utf8(take(&mut { self.rest })?).ok()? {
            "" => Some(Data::empty()),
            json => Data::from_json(json).ok(),
        }
    }
}

impl Serialize for Found<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let columns = self.columns.unwrap_or_default();
        let mut rest = self.rest;
        let mut map = serializer.serialize_map(Some(columns.len()))?;
        for column in columns {
            let cell = take(&mut rest).and_then(|cell| std::str::from_utf8(cell).ok());
            map.serialize_entry(column, cell.ok_or_else(|| S::Error::custom("no such cell"))?)?;
        }
        map.end()
    }
}

/// Collects the devices of a text.
pub(super) struct Builder<'t> {
    settings: &'t Settings,
    records: Vec<u8>,
    entries: Vec<Entry>,
    /// Number of identifiers that are nothing but digits, by their length.
    numbers: [u32; LONGEST_IDENTIFIER + 1],
    pub(super) findings: Collector<'t>,
}

/// The places of a device.
struct Entry {
    /// Offset of its record in the records.
    record: u32,
    /// Offset of its identifier in the text.
    source: u32,
}

impl<'t> Builder<'t> {
    pub(super) fn new(settings: &'t Settings, text: &'t str) -> Self {
        let numbers = [0; LONGEST_IDENTIFIER + 1];
        Self { settings, records: Vec::new(), entries: Vec::new(), numbers, findings: Collector::new(text) }
    }

    /// Adds a device; `source` is the offset of its identifier in the text.
    pub(super) fn add<'p>(&mut self, source: usize, identifier: &str, parts: impl Iterator<Item = &'p str>) {
        let clean = spelling::clean(identifier);
        let name = normal(clean);
        let mistake = if name.is_empty() {
            Mistake::IdentifierBlank
        } else if name.len() > LONGEST_IDENTIFIER {
            Mistake::IdentifierTooLong(name.len())
        } else if clean.chars().any(char::is_control) {
            Mistake::IdentifierControl
        } else if self.settings.placeholders.has(Some(self.settings.identifier), &name) {
            return self.findings.warn(source, || Warning::Placeholder(shown(clean)));
        } else if let (Ok(record), Ok(place)) = (u32::try_from(self.records.len()), u32::try_from(source))
            // The greatest offset would make a slot look free.
            && record != u32::MAX
        {
            self.entries.push(Entry { record, source: place });
            put(&mut self.records, &name);
            parts.for_each(|part| put(&mut self.records, part));
            return self.look_at(source, identifier, &name);
        } else {
            Mistake::TooMuch
        };
        self.findings.add(source, mistake);
    }

    /// Warns of what a spreadsheet may have done to an identifier.
    fn look_at(&mut self, source: usize, stated: &str, name: &str) {
        if let Some(letter) = spelling::cut(stated) {
            self.findings.warn(source, || Warning::Cut(letter));
        }
        if spelling::is_rounded(name) {
            self.findings.warn(source, || Warning::Rounded(shown(name)));
        }
        if is_number(name)
            && let Some(count) = self.numbers.get_mut(name.len())
        {
            *count = count.saturating_add(1);
        }
    }

    /// The usual number of digits of identifiers that are nothing but digits; `None` where none is usual, or none
    /// has fewer.
    fn usual_digits(&self) -> Option<usize> {
        // Serial numbers of YubiKeys are numbers of any length.
        if self.settings.identifier == IdentifierKind::Yubico {
            return None;
        }
        let most = self.numbers.iter().enumerate().max_by_key(|(digits, count)| (**count, *digits));
        let (usual, _) = most.filter(|(_, count)| **count >= USUAL)?;
        self.numbers.iter().take(usual).any(|count| *count > 0).then_some(usual)
    }

    /// Makes the hash table, and reports duplicates and shortened numbers.
    pub(super) fn finish(self, columns: Option<Box<[String]>>) -> Result<Parsed, Mistakes> {
        let usual = self.usual_digits();
        let Self { records, entries, mut findings, .. } = self;
        let len = entries.len();
        let slots = vec![FREE; len * 2].into_boxed_slice();
        let mut devices = Devices { records: records.into_boxed_slice(), slots, len, columns, seed: Seed::new() };
        for entry in &entries {
            let identifier = devices.identifier(entry.record).unwrap_or_default();
            if let Some(usual) = usual
                && identifier.len() < usual
                && let Some(number) = std::str::from_utf8(identifier).ok().filter(|text| is_number(text))
            {
                findings.warn(entry.source as usize, || Warning::Shortened { identifier: number.to_owned(), usual });
            }
            match devices.slot(identifier) {
                Err((at, tag)) => {
                    if let Some(slot) = devices.slots.get_mut(at) {
                        *slot = tag | u64::from(entry.record);
                    }
                }
                Ok((_, first)) => {
                    // Entries are in the order of their records.
                    let first = entries.binary_search_by_key(&first, |entry| entry.record).ok().and_then(|at| entries.get(at));
                    let identifier = String::from_utf8_lossy(identifier);
                    findings.add_duplicate(entry.source as usize, first.map_or(0, |first| first.source as usize), &identifier);
                }
            }
        }
        Ok(Parsed { warnings: findings.finish()?, devices, header: None })
    }
}

fn is_number(identifier: &str) -> bool {
    identifier.bytes().all(|byte| byte.is_ascii_digit())
}

/// Number of identifiers of one length that make it a usual one.
const USUAL: u32 = 3;

/// A slot that holds nothing.
const FREE: u64 = u64::MAX;

/// The half of a slot that comes from the hash.
const UPPER: u64 = !0 << 32;

/// Appends a text after its length, in groups of seven bits, lowest first; all but the last have the eighth bit set.
fn put(records: &mut Vec<u8>, text: &str) {
    let mut rest = text.len();
    while rest > 0x7f {
        records.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    records.push(rest as u8);
    records.extend_from_slice(text.as_bytes());
}

/// Takes off the text that [`put`] put first.
fn take<'r>(records: &mut &'r [u8]) -> Option<&'r [u8]> {
    let mut len = 0_usize;
    for shift in (0..usize::BITS).step_by(7) {
        let (first, rest) = records.split_first()?;
        *records = rest;
        len |= usize::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            break;
        }
    }
    let (text, rest) = records.split_at_checked(len)?;
    *records = rest;
    Some(text)
}
