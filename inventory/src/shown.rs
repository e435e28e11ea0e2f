//! Rows that the pages of one answer have shown so far: which rows came again, and whether the pages agree on the count. Lists
//! and single calls judge by the same rules.

#![expect(clippy::disallowed_types, reason = "banned for wasm, where it is constant; the sidecar never runs there")]

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash, RandomState};

/// Rows by the service's name for their device. Only a digest of each row is kept.
#[derive(Debug)]
pub(super) struct Shown<K> {
    rows: HashMap<K, u64>,
    /// Digests of rows that contradict an earlier row.
    others: HashSet<u64>,
    digests: RandomState,
}

/// A row in comparison with the rows before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// The device was not shown before.
    New,
    /// The same row came again: rows before it came or went, and it slipped to this place.
    Slipped,
    /// A different row of the same device came. One of the two is not true.
    Contradiction,
}

impl<K> Default for Shown<K> {
    fn default() -> Self {
        Self { rows: HashMap::new(), others: HashSet::new(), digests: RandomState::new() }
    }
}

impl<K: Eq + Hash> Shown<K> {
    /// Takes a row, and compares it with the rows before.
    pub(super) fn take(&mut self, device: K, row: &(impl Hash + ?Sized)) -> Row {
        let digest = self.digests.hash_one(row);
        let judged = self.judge(&device, digest);
        match judged {
            Row::New => _ = self.rows.insert(device, digest),
            Row::Slipped => {}
            Row::Contradiction => _ = self.others.insert(digest),
        }
        judged
    }

    /// Compares a row with those before, without taking it.
    pub(super) fn look(&self, device: &K, row: &(impl Hash + ?Sized)) -> Row {
        self.judge(device, self.digests.hash_one(row))
    }

    fn judge(&self, device: &K, digest: u64) -> Row {
        match self.rows.get(device) {
            None => Row::New,
            Some(before) if *before == digest || self.others.contains(&digest) => Row::Slipped,
            Some(_) => Row::Contradiction,
        }
    }

    /// Number of devices that were shown.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Names of the devices that were shown.
    pub(super) fn devices(&self) -> impl Iterator<Item = &K> {
        self.rows.keys()
    }
}

/// The number of rows, as each page says it.
#[derive(Debug, Default)]
pub(super) struct Totals {
    said: Option<u64>,
    differ: bool,
}

impl Totals {
    /// Takes the total of a page, if the page has one.
    pub(super) fn take(&mut self, total: Option<u64>) {
        self.differ |= total.is_some() && self.said.is_some() && self.said != total;
        self.said = total.or(self.said);
    }

    /// The total on which all pages agree. Where two differ it is `None`: devices came or went meanwhile, and some may have been
    /// missed.
    pub(super) fn agreed(&self) -> Option<u64> {
        self.said.filter(|_| !self.differ)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_that_comes_again_is_the_same_or_a_contradiction() {
        let mut shown = Shown::default();
        assert_eq!(shown.take("1", &json!({"lost": false, "serial": "A"})), Row::New);
        assert_eq!(shown.take("2", &json!({"lost": false, "serial": "A"})), Row::New);
        assert_eq!(shown.take("1", &json!({"serial": "A", "lost": false})), Row::Slipped);
        assert_eq!(shown.take("1", &json!({"lost": true, "serial": "A"})), Row::Contradiction);
        assert_eq!(shown.take("1", &json!({"lost": false, "serial": "A"})), Row::Slipped);
        assert_eq!(shown.len(), 2);
    }

    #[test]
    fn counts_that_differ_prove_nothing() {
        let agreed = |said: &[Option<u64>]| {
            let mut totals = Totals::default();
            said.iter().for_each(|said| totals.take(*said));
            totals.agreed()
        };
        assert_eq!(agreed(&[]), None);
        assert_eq!(agreed(&[Some(4), None, Some(4)]), Some(4));
        assert_eq!(agreed(&[Some(4), Some(3)]), None);
        assert_eq!(agreed(&[Some(3), Some(4), Some(3)]), None);
    }
}
