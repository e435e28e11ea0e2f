//! The chain of providers that a webhook or a policy asks, as the configuration names it.

use std::collections::BTreeMap;

use settings::document::Data;
use settings::words::suggestion;
use settings::{Place, Section};

/// The list `providers` of a webhook or a policy.
pub(super) struct Chain {
    /// Place of the list.
    pub(super) place: Place,
    /// Number of entries, the wrong ones included.
    pub(super) count: usize,
    /// Names in the list, in order, the unknown ones included.
    pub(super) names: Vec<String>,
}

/// Takes the list `providers` out of a section, and reports unknown names and those that stand there twice.
pub(super) fn chain(section: &mut Section<'_>, known: &BTreeMap<String, Place>) -> Option<Chain> {
    let report = section.report();
    let names: Vec<&str> = known.keys().map(String::as_str).collect();
    let (mut count, mut asked) = (0, Vec::<String>::new());
    let (place, _) = section.list("providers", |item| {
        count += 1;
        let Data::Text(name) = item.data else {
            report.mistake(&item.place, format!("a provider must be named by a string, not {}", item.data.name()));
            return None;
        };
        if asked.contains(&name) {
            report.mistake(&item.place, format!("provider `{name}` stands there twice"));
        } else if !known.contains_key(&name) {
            let hint = if names.is_empty() { format!("write [provider.{name}]") } else { suggestion(&name, &names) };
            report.mistake(&item.place, format!("there is no provider `{name}`; {hint}"));
        }
        asked.push(name);
        Some(())
    })?;
    Some(Chain { place, count, names: asked })
}
