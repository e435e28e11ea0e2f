//! Data for templates: the `data` expression of a policy, or the record in its usual form.

use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use super::expression::{Evaluation, Node};
use super::fault::Fault;
use super::value::rfc3339;
use crate::outcome::{Data, Denial};
use crate::record::{Fact, Record};

/// Largest `data`, in bytes of JSON. Every answer carries it, and step-ca keeps it with the order.
pub const LARGEST_DATA: usize = 16 << 10;

/// A compiled `data` expression. Its maps, and so its keys, are known before any device is judged.
#[derive(Clone, Debug)]
pub(super) enum Template {
    Map(Vec<(String, Template)>),
    List(Vec<Template>),
    If(Box<(Node, Template, Template)>),
    Null,
    Value(Node),
}

impl Template {
    /// Evaluates the expression; a name without a value is null.
    pub(super) fn fill(&self, evaluation: &Evaluation<'_>) -> Result<Json, Fault> {
        Ok(match self {
            Self::Map(entries) => {
                Json::Object(entries.iter().map(|(key, value)| Ok((key.clone(), value.fill(evaluation)?))).collect::<Result<_, _>>()?)
            }
            Self::List(items) => Json::Array(items.iter().map(|item| item.fill(evaluation)).collect::<Result<_, _>>()?),
            Self::If(parts) => if evaluation.holds(&parts.0)? { &parts.1 } else { &parts.2 }.fill(evaluation)?,
            Self::Null => Json::Null,
            Self::Value(node) => evaluation.json(node)?.unwrap_or(Json::Null),
        })
    }

    /// Evaluates the expression with all its keys, and null for every value that cannot be had.
    pub(super) fn fill_or_null(&self, evaluation: &Evaluation<'_>) -> Json {
        match self {
            Self::Map(entries) => entries.iter().map(|(key, value)| (key.clone(), value.fill_or_null(evaluation))).collect(),
            Self::List(items) => items.iter().map(|item| item.fill_or_null(evaluation)).collect(),
            other => other.fill(evaluation).unwrap_or(Json::Null),
        }
    }
}

/// Data for a template if the policy has no `data`. A record with free columns gives exactly these; any other gives `device`,
/// `groups`, and with `enrich` `user`, in the form of step-posture-connector, and more keys besides.
///
/// The keys of that form are always there, as with step-posture-connector: `""` if nothing is known, so that a template
/// prints nothing. The other keys are there if the inventory states a value.
///
/// # Errors
/// [`Denial::DATA_TOO_LARGE`] if the data is larger than [`LARGEST_DATA`] even without its groups, which are left out first;
/// `groups_omitted` says so.
pub fn default_data(record: &Record, enrich: bool) -> Result<Data, Denial> {
    build(record, enrich, false)
}

/// [`default_data`] with every key that it can have, and null if nothing is known: for a device that is let through although
/// its policy denies it, and whose record may lack what a template reads.
///
/// # Errors
/// The errors of [`default_data`].
pub fn full_data(record: &Record, enrich: bool) -> Result<Data, Denial> {
    build(record, enrich, true)
}

fn build(record: &Record, enrich: bool, nulls: bool) -> Result<Data, Denial> {
    if let Some(columns) = record.data.value() {
        if columns.len() > LARGEST_DATA {
            return Err(Denial::DATA_TOO_LARGE);
        }
        // The columns were parsed before they were stored; text that cannot be parsed now was never a set of columns.
        return Data::from_json(columns).map_err(|_| Denial::POLICY_ERROR);
    }
    let groups = record.groups.value().map(Vec::as_slice).unwrap_or_default();
    let names = groups.iter().map(|group| if group.name.is_empty() { group.id.as_str() } else { &group.name });
    let mut data = vec![("device", device(record, nulls)), ("groups", Item::List(names.collect()))];
    if enrich {
        data.push(("user", user(record)));
    }
    // Encoding cannot fail, so an error here means that the data is too large.
    sized(&Item::Map(data.clone())).or_else(|_| {
        data.retain(|(key, _)| *key != "groups");
        data.extend([("groups", Item::List(Vec::new())), ("groups_omitted", Item::Flag(true))]);
        data.sort_unstable_by_key(|(key, _)| *key);
        sized(&Item::Map(data))
    })
}

/// Encodes data; an error if it is too large.
pub(super) fn sized(data: &impl Serialize) -> Result<Data, Denial> {
    let data = Data::from_value(data).map_err(|_| Denial::POLICY_ERROR)?;
    if data.as_json().len() > LARGEST_DATA { Err(Denial::DATA_TOO_LARGE) } else { Ok(data) }
}

/// A value of the usual form. It borrows from the record, since it is made for every answer. Keys of a map are sorted.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum Item<'r> {
    Text(&'r str),
    Time(String),
    Flag(bool),
    Null(()),
    List(Vec<&'r str>),
    #[serde(serialize_with = "map")]
    Map(Vec<(&'static str, Self)>),
}

fn map<S: Serializer>(entries: &[(&'static str, Item<'_>)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(entries.iter().map(|(key, value)| (key, value)))
}

fn device(record: &Record, nulls: bool) -> Item<'_> {
    let flag = |fact: &Fact<bool>| fact.value().map(|flag| Item::Flag(*flag));
    let entries = [
        ("compliance", record.compliance.value().map(|compliance| Item::Text(compliance.as_str()))),
        ("encrypted", flag(&record.encrypted)),
        ("form", record.form.value().map(|form| Item::Text(form.as_str()))),
        ("last_seen", record.last_seen.value().map(|time| Item::Time(rfc3339(*time)))),
        ("managed", flag(&record.managed)),
        ("model", text(&record.model)),
        ("name", Some(filled(&record.name))),
        ("os_build", text(&record.os_build)),
        ("os_version", text(&record.os_version)),
        ("ownership", text(&record.ownership)),
        ("platform", text(&record.platform)),
        ("serial_number", Some(filled(&record.serial))),
        ("supervised", flag(&record.supervised)),
        ("udid", Some(filled(&record.udid))),
    ];
    let known = entries.into_iter().filter_map(|(key, value)| Some((key, value.or(nulls.then_some(Item::Null(())))?)));
    Item::Map(known.collect())
}

fn user(record: &Record) -> Item<'_> {
    let user = &record.user;
    Item::Map(vec![
        ("department", filled(&user.department)),
        ("email_address", filled(&user.email)),
        ("position", filled(&user.title)),
        ("realname", filled(&user.name)),
        ("username", filled(&user.id)),
    ])
}

fn text(fact: &Fact<String>) -> Option<Item<'_>> {
    fact.value().map(|text| Item::Text(text))
}

fn filled(text: &Fact<String>) -> Item<'_> {
    Item::Text(text.value().map_or("", String::as_str))
}
