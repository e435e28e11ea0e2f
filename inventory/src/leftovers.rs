//! Records that an earlier enrolment left behind. A record that took their place replaces them in a list, as it does in an answer
//! about one device.

use std::collections::BTreeSet;

use posture::identity::normal;
use posture::record::Record;

/// Left-behind records of one list, which are held back until its end.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// Identifiers of the records that are not left behind.
    taken: BTreeSet<String>,
    held: Vec<Record>,
}

impl Leftovers {
    /// Takes the records of a page, each with whether it was left behind, and returns those that are not.
    pub(super) fn sift(&mut self, records: impl IntoIterator<Item = (bool, Record)>) -> Vec<Record> {
        let mut kept = Vec::new();
        for (left, record) in records {
            if left {
                self.held.push(record);
            } else {
                self.taken.extend(identifiers(&record));
                kept.push(record);
            }
        }
        kept
    }

    /// Held records for which no current enrolment was seen.
    pub(super) fn rest(self) -> Vec<Record> {
        let Self { taken, held } = self;
        held.into_iter().filter(|record| identifiers(record).all(|identifier| !taken.contains(&identifier))).collect()
    }
}

/// Identifiers by which one record takes the place of another: serial number and UDID.
fn identifiers(record: &Record) -> impl Iterator<Item = String> {
    let named = |kind: char, text: &String| format!("{kind}{}", normal(text));
    let serial = record.serial.value().map(|text| named('s', text));
    serial.into_iter().chain(record.udid.value().map(|text| named('u', text)))
}
