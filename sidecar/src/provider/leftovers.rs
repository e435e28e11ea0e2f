//! Records that an earlier enrolment left behind. In an answer about one device they give way to the record that took their
//! place, so they do in a list.

use std::collections::BTreeSet;

use posture::identity::normal;
use posture::record::Record;

/// Left-behind records of one list, which are kept back until its end.
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

    /// Those in whose place there is no other record.
    pub(super) fn rest(self) -> Vec<Record> {
        let Self { taken, held } = self;
        held.into_iter().filter(|record| identifiers(record).all(|identifier| !taken.contains(&identifier))).collect()
    }
}

/// By what one record takes the place of another.
fn identifiers(record: &Record) -> impl Iterator<Item = String> {
    let named = |kind: char, text: &String| format!("{kind}{}", normal(text));
    let serial = record.serial.value().map(|text| named('s', text));
    serial.into_iter().chain(record.udid.value().map(|text| named('u', text)))
}
