//! `[policy.<name>]`: the providers that are asked, and the rules for the device that they know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use posture::identity::Trust;
use posture::policy::{At, LeastOs, NAMED, Part, Rule, Rules, Use};
use posture::record::Compliance;
use settings::document::{Data, Value};
use settings::words::word;
use settings::{Place, Report, Section};

use super::chain::chain;
use engine::plan::{Combine, OnNotFound, OnUnavailable};
use engine::provider::ProviderSettings;

/// A policy, and the chain of providers whose devices it judges.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Names of the providers, at least one.
    pub providers: Vec<String>,
    /// Reaction to a provider that does not have the device. Default next.
    pub on_not_found: OnNotFound,
    /// Reaction to a provider that cannot say. Default fail.
    pub on_unavailable: OnUnavailable,
    /// Choice of the provider whose record of the device is judged. Default first_found.
    pub combine: Combine,
    /// Whether the data that a template gets without a `data` expression says who uses the device. Default false.
    pub enrich: bool,
    /// The compiled rules.
    pub policy: Arc<posture::policy::Policy>,
    /// Place of the policy in the configuration.
    pub place: Place,
}

/// Longest and then shortest `max_silence` and `max_age`.
const LONGEST: (Duration, &str) = (Duration::from_secs(3650 * 86_400), "3650d");
const SHORTEST: (Duration, &str) = (Duration::from_secs(1), "1s");

/// Reads all policies: those that can be used, and the places of all. `providers`: those that a chain may name; `known`: those of
/// them that could be read.
pub(super) fn read(
    section: Option<Section<'_>>,
    providers: &BTreeMap<String, Place>,
    known: &BTreeMap<String, ProviderSettings>,
) -> (BTreeMap<String, Policy>, BTreeMap<String, Place>) {
    let (mut policies, mut places) = (BTreeMap::new(), BTreeMap::new());
    let Some(section) = section else { return (policies, places) };
    let report = section.report();
    for (name, place, value) in section.rest() {
        places.insert(name.clone(), place.clone());
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')) {
            report.mistake(&place, format!("`{name}` cannot name a policy: use up to 64 of a-z, 0-9, _ and -"));
        }
        match value.data {
            Data::Table(table) => {
                if let Some(policy) = policy(Section::new(format!("[policy.{name}]"), table, report), place, providers, known) {
                    policies.insert(name, policy);
                }
            }
            other => report.mistake(&value.place, format!("`{name}` must be a table [policy.{name}], not {}", other.name())),
        }
    }
    (policies, places)
}

fn policy(
    mut section: Section<'_>,
    place: Place,
    providers: &BTreeMap<String, Place>,
    known: &BTreeMap<String, ProviderSettings>,
) -> Option<Policy> {
    let report = section.report();
    let chain = chain(&mut section, providers);
    if chain.as_ref().is_none_or(|chain| chain.count == 0) {
        let at = chain.as_ref().map_or(&place, |chain| &chain.place);
        report
            .mistake(at, "the policy asks no provider, so there is no device to judge: write providers = [\"staff\"] and [provider.staff]");
    }
    let on_not_found = section.text("on_not_found", |text| word(text, OnNotFound::ALL.iter().map(|way| (way.as_str(), *way))));
    let on_unavailable = section.text("on_unavailable", |text| word(text, OnUnavailable::ALL.iter().map(|way| (way.as_str(), *way))));
    let combine = section.text("combine", |text| word(text, Combine::ALL.iter().map(|way| (way.as_str(), *way)))).unwrap_or_default();
    if combine == Combine::AllOf && (on_not_found == Some(OnNotFound::Next) || on_unavailable == Some(OnUnavailable::Next)) {
        report.mistake(
            &place,
            "combine = \"all_of\" wants the device from every provider, and \"next\" does without one of them: remove either",
        );
    }
    let enrich = section.flag("enrich").unwrap_or(false);
    let compiled = compiled(&mut section);
    section.finish();
    let (chain, (policy, places)) = (chain?, compiled?);
    let asked: Option<Vec<_>> = chain.names.iter().map(|name| Some((name.as_str(), known.get(name)?))).collect();
    // The fields of a provider with a mistake, or of one that is none, are not known.
    if let Some(asked) = asked.filter(|asked| asked.len() == chain.count) {
        policy.uses().for_each(|used| fits(&used, &asked, combine, &places, report));
    }
    Some(Policy {
        providers: chain.names,
        on_not_found: on_not_found.unwrap_or_default(),
        on_unavailable: on_unavailable.unwrap_or_default(),
        combine,
        enrich,
        policy: Arc::new(policy),
        place,
    })
}

/// Reports a field that providers never give. A mistake where no device could pass: no provider has the field, or every one
/// has to. Else the devices of some can, and those of the others are a warning.
fn fits(used: &Use, asked: &[(&str, &ProviderSettings)], combine: Combine, places: &Places, report: &Report) {
    let (lacking, having): (Vec<_>, Vec<_>) = asked.iter().partition(|(_, provider)| !provider.fields().contains(used.field));
    let Some((_, first)) = lacking.first() else { return };
    let (place, key) = places.of(&used.at);
    let place = report.within(&place, used.offset);
    let names = lacking.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let field = used.field.as_str();
    let never = format!("`{key}` needs `device.{field}`, which {names} never {}", if lacking.len() == 1 { "gives" } else { "give" });
    let remedy = match first {
        ProviderSettings::File(_) => "a file has columns alone, which are device.data.…".to_owned(),
        ProviderSettings::Remote(remote) => format!("docs/providers/{}.md says what it can give", remote.service.name()),
    };
    if having.is_empty() || combine == Combine::AllOf {
        report.mistake(&place, format!("{never}, so every device would be denied: use another field or another provider; {remedy}"));
    } else {
        report.warn(&place, format!("{never}, so every device that is judged by what it says of it is denied; {remedy}"));
    }
}

/// Takes the rules of a policy and compiles them; what is wrong with one is reported where it stands.
pub(crate) fn rules(section: &mut Section<'_>) -> Option<posture::policy::Policy> {
    compiled(section).map(|(policy, _)| policy)
}

fn compiled(section: &mut Section<'_>) -> Option<(posture::policy::Policy, Places)> {
    let report = section.report();
    let keys = NAMED.iter().filter_map(|named| Some((named.key, section.place_of(named.key)?))).collect();
    let mut places = Places { whole: section.place().clone(), keys, ..Places::default() };
    let rules = Rules {
        managed: section.flag("managed").unwrap_or(false),
        groups_any: groups(section, "groups_any"),
        groups_all: groups(section, "groups_all"),
        groups_none: groups(section, "groups_none"),
        min_os: section.take("min_os").and_then(|value| min_os(value, report, &mut places)),
        max_silence: section.duration("max_silence", SHORTEST, LONGEST),
        max_age: section.duration("max_age", SHORTEST, LONGEST),
        compliance: section.text("compliance", |text| {
            word(text, [Compliance::Compliant, Compliance::GracePeriod].into_iter().map(|state| (state.as_str(), state)))
        }),
        trust: section.text("trust", |text| word(text, Trust::ALL.iter().map(|trust| (trust.as_str(), *trust)))),
        not_lost: section.flag("not_lost"),
        not_wiping: section.flag("not_wiping"),
        require: checks(section, "require", &mut places.require),
        deny_if: checks(section, "deny_if", &mut places.deny_if),
        data: placed(section, "data", &mut places.data),
        remediation_url: placed(section, "remediation_url", &mut places.remediation_url),
    };
    match posture::policy::Policy::compile(&rules) {
        Ok(policy) => Some((policy, places)),
        Err(mistakes) => {
            for mistake in mistakes {
                let (place, key) = places.of(&mistake.at);
                let place =
                    if mistake.offset > 0 || matches!(key, "expr" | "data") { report.within(&place, mistake.offset) } else { place };
                report.mistake(&place, format!("`{key}`: {}", mistake.message));
            }
            None
        }
    }
}

/// Places of the texts of a policy.
#[derive(Default)]
struct Places {
    whole: Place,
    /// Places of the rules that have a name.
    keys: BTreeMap<&'static str, Place>,
    platforms: BTreeMap<String, Place>,
    require: Vec<CheckPlaces>,
    deny_if: Vec<CheckPlaces>,
    data: Option<Place>,
    remediation_url: Option<Place>,
}

#[derive(Clone, Default)]
struct CheckPlaces {
    whole: Place,
    expr: Option<Place>,
    code: Option<Place>,
    message: Option<Place>,
    remediation_url: Option<Place>,
}

impl Places {
    /// Returns the place of a text, and the key that it is under.
    fn of(&self, at: &At) -> (Place, &'static str) {
        let check = |list: &[CheckPlaces], number: usize, part: Part| {
            let places = list.get(number).cloned().unwrap_or_else(|| CheckPlaces { whole: self.whole.clone(), ..CheckPlaces::default() });
            let (place, key) = match part {
                Part::Expression => (places.expr, "expr"),
                Part::Code => (places.code, "code"),
                Part::Message => (places.message, "message"),
                Part::RemediationUrl => (places.remediation_url, "remediation_url"),
            };
            (place.unwrap_or(places.whole), key)
        };
        let or_whole = |place: &Option<Place>| place.clone().unwrap_or_else(|| self.whole.clone());
        match at {
            At::MinOs(platform) => {
                let of_platform = platform.as_ref().and_then(|platform| self.platforms.get(platform)).cloned();
                (of_platform.unwrap_or_else(|| or_whole(&self.keys.get("min_os").cloned())), "min_os")
            }
            At::Key(key) => (or_whole(&self.keys.get(key).cloned()), key),
            At::Require(number, part) => check(&self.require, *number, *part),
            At::DenyIf(number, part) => check(&self.deny_if, *number, *part),
            At::Data => (or_whole(&self.data), "data"),
            At::RemediationUrl => (or_whole(&self.remediation_url), "remediation_url"),
        }
    }
}

/// Takes a text as it stands, and remembers its place.
fn placed(section: &mut Section<'_>, key: &'static str, place: &mut Option<Place>) -> Option<String> {
    *place = section.place_of(key);
    section.text(key, |text| Ok(text.to_owned()))
}

fn groups(section: &mut Section<'_>, key: &'static str) -> Vec<String> {
    let report = section.report();
    section.refuse_empty(key, "name a group, or leave the line out");
    let names = section.list(key, |item| match item.data {
        Data::Text(name) => Some(name),
        other => {
            report.mistake(&item.place, format!("`{key}` lists names or ids of groups, which are strings, not {}", other.name()));
            None
        }
    });
    names.map(|(_, names)| names).unwrap_or_default()
}

fn min_os(value: Value, report: &Report, places: &mut Places) -> Option<LeastOs> {
    match value.data {
        Data::Text(version) | Data::Given(version) => Some(LeastOs::One(version)),
        Data::Table(table) => {
            let mut versions = BTreeMap::new();
            for (platform, entry) in table.entries {
                match entry.value.data {
                    Data::Text(version) => {
                        places.platforms.insert(platform.clone(), entry.value.place);
                        versions.insert(platform, version);
                    }
                    other => {
                        report.mistake(&entry.value.place, format!("a version must be a string such as \"15.4\", not {}", other.name()))
                    }
                }
            }
            Some(LeastOs::ByPlatform(versions))
        }
        other => {
            let message =
                format!("`min_os` must be a version such as \"15.4\", or {{ Mac = \"15.4\", iPhone = \"18.4\" }}, not {}", other.name());
            report.mistake(&value.place, message);
            None
        }
    }
}

fn checks(section: &mut Section<'_>, key: &'static str, places: &mut Vec<CheckPlaces>) -> Vec<Rule> {
    let report = section.report();
    let read = |item: Value| {
        let Data::Table(table) = item.data else {
            let example = "{ expr = \"device.supervised\", code = \"not_supervised\", message = \"…\" }";
            report.mistake(&item.place, format!("`{key}` lists checks such as {example}, not {}", item.data.name()));
            return None;
        };
        let mut check = Section::new(format!("a check in `{key}`"), table, report);
        for (key, example) in [
            ("expr", "expr = \"device.supervised\""),
            ("code", "code = \"not_supervised\""),
            ("message", "message = \"the device is not supervised\""),
        ] {
            if !check.has(key) {
                check.missing(key, example);
            }
        }
        let mut at = CheckPlaces { whole: item.place, ..CheckPlaces::default() };
        let expression = placed(&mut check, "expr", &mut at.expr);
        let code = placed(&mut check, "code", &mut at.code);
        let message = placed(&mut check, "message", &mut at.message);
        let remediation_url = placed(&mut check, "remediation_url", &mut at.remediation_url);
        check.finish();
        let rule = Rule { expression: expression?, code: code?, message: message?, remediation_url };
        places.push(at);
        Some(rule)
    };
    section.refuse_empty(key, "write a check into it, or leave the line out");
    section.list(key, read).map(|(_, checks)| checks).unwrap_or_default()
}

#[cfg(test)]
mod tests;
