//! Fields that are asked for and never come: a service, or its version or edition, may not have what its description promises.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use posture::record::{Field, Fields};

/// Which fields the records of one service have had so far.
#[derive(Debug, Default)]
pub(super) struct Unsaid(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    /// Fields that some record had.
    known: Fields,
    /// Fields that were reported as those that no record had.
    told: Fields,
    /// Number of records so far in which a field was asked for that no record had.
    without: BTreeMap<Field, u64>,
}

impl Unsaid {
    /// Takes what `records` more records have of the fields that were asked for; `whole`: they are all that there are. Returns
    /// the fields that no record had, each once, with the number of records that were asked for it, as soon as that says
    /// something.
    pub(super) fn take(&self, asked: Fields, known: Fields, records: u64, whole: bool) -> Vec<(Field, u64)> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.known = said.known.union(known);
        if records == 0 {
            return Vec::new();
        }
        let mut never = Vec::new();
        for field in asked.without(said.known).without(said.told).iter() {
            let count = said.without.entry(field).or_default();
            *count = count.saturating_add(records);
            if whole || *count >= ENOUGH {
                never.push((field, *count));
            }
        }
        said.told = said.told.union(never.iter().map(|(field, _)| *field).collect());
        never
    }
}

/// Records without a field that suffice to say that none has it: a few devices may be odd.
const ENOUGH: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Fields = Fields::of(&[Field::Managed, Field::Groups]);
    const GROUPS: Fields = Fields::of(&[Field::Groups]);

    #[test]
    fn d1_a_field_that_never_comes_is_told_once_after_enough_records() {
        let unsaid = Unsaid::default();
        for _ in 1..ENOUGH {
            assert_eq!(unsaid.take(ASKED, GROUPS, 1, false), []);
        }
        assert_eq!(unsaid.take(ASKED, GROUPS, 1, false), [(Field::Managed, ENOUGH)]);
        assert_eq!(unsaid.take(ASKED, GROUPS, 500, true), []);
    }

    #[test]
    fn d1_a_whole_list_without_a_field_says_that_it_never_comes_however_few_there_are() {
        assert_eq!(Unsaid::default().take(ASKED, GROUPS, 3, true), [(Field::Managed, 3)]);
        assert_eq!(Unsaid::default().take(ASKED, GROUPS, 3, false), []);
        assert_eq!(Unsaid::default().take(ASKED, Fields::NONE, 0, true), []);
        assert_eq!(Unsaid::default().take(Fields::NONE, Fields::NONE, 500, true), []);
    }

    #[test]
    fn d1_a_field_that_one_device_has_comes() {
        let unsaid = Unsaid::default();
        assert_eq!(unsaid.take(ASKED, ASKED, 1, false), []);
        assert_eq!(unsaid.take(ASKED, Fields::NONE, 500, true), []);
    }
}
