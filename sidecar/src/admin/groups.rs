//! Check of the groups that policies name against those of remembered devices: a misspelt group changes decisions without a word.

use std::collections::{BTreeMap, BTreeSet};

use posture::record::Fact;
use proto::v1::{CheckGroupsResponse, UnknownGroup};

use crate::misspelt::meant;
use engine::snapshot::Snapshot;

/// Returns the groups of all policies that no remembered device of their providers is in. Blocks: every record is read.
///
/// A policy is left out where its providers remember no device with groups, and where one has too many groups to keep: there is
/// nothing to compare with.
pub(super) fn check(snapshot: &Snapshot) -> CheckGroupsResponse {
    let mut of_providers: BTreeMap<&str, Known> = BTreeMap::new();
    let named: Vec<_> = snapshot
        .plans
        .iter()
        .flat_map(|(policy, plan)| {
            let rules = plan.rules.iter().flat_map(|rules| rules.groups());
            rules.map(move |(rule, names)| (policy, plan, rule, names))
        })
        .collect();
    for link in named.iter().flat_map(|(_, plan, ..)| &plan.links) {
        let Some(cache) = link.provider.cache() else { continue };
        of_providers.entry(&link.name).or_insert_with(|| {
            let mut known = Known::default();
            cache.each_record(|record| known.learn(&record.groups));
            known
        });
    }
    let mut groups = Vec::new();
    for (policy, plan, rule, names) in named {
        let known: Vec<&Known> =
            plan.links.iter().filter_map(|link| of_providers.get(&*link.name)).filter(|known| known.devices > 0).collect();
        if known.is_empty() || known.iter().any(|known| known.is_cut) {
            continue;
        }
        let all: Vec<&str> = known.iter().flat_map(|known| known.names.iter().map(String::as_str)).collect();
        let is_unknown = |name: &&String| !known.iter().any(|known| known.names.contains(*name) || known.ids.contains(*name));
        groups.extend(names.iter().filter(is_unknown).map(|name| UnknownGroup {
            policy: policy.to_string(),
            rule: rule.to_owned(),
            group: name.clone(),
            meant: meant(name, &all).unwrap_or_default().to_owned(),
        }));
    }
    CheckGroupsResponse { groups, records: of_providers.values().map(|known| known.devices).sum() }
}

/// Groups of one provider's devices.
#[derive(Default)]
struct Known {
    names: BTreeSet<String>,
    ids: BTreeSet<String>,
    /// Number of devices whose groups are known.
    devices: u64,
    /// Whether the provider has more groups than are kept.
    is_cut: bool,
}

impl Known {
    fn learn(&mut self, groups: &Fact<Vec<posture::record::Group>>) {
        let Fact::Value(groups) = groups else { return };
        self.devices += 1;
        for group in groups {
            if self.names.len() + self.ids.len() >= MOST {
                self.is_cut = true;
                return;
            }
            for (text, known) in [(&group.name, &mut self.names), (&group.id, &mut self.ids)] {
                if !text.is_empty() && !known.contains(text) {
                    known.insert(text.clone());
                }
            }
        }
    }
}

/// Largest number of names and ids of groups that are kept of one provider.
const MOST: usize = 100_000;
