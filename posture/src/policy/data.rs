//! What a template gets: the `data` expression of a policy, or what is known of the device in the usual form.

use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use super::expression::{Evaluation, Node};
use super::value::{Fault, rfc3339};
use crate::outcome::{Data, Denial};
use crate::record::{Fact, Record};

/// Largest `data`, in bytes of JSON. It goes into every answer, and step-ca keeps it with the order.
pub const LARGEST_DATA: usize = 16 << 10;

/// A `data` expression. Its maps, and so its keys, are known before any device is.
#[derive(Clone, Debug)]
pub(super) enum Template {
    Map(Vec<(String, Template)>),
    List(Vec<Template>),
    If(Box<(Node, Template, Template)>),
    Null,
    Value(Node),
}

impl Template {
    /// What it comes to; a name that has no value is null.
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

    /// The same with all its keys, and null for whatever cannot be had.
    pub(super) fn fill_or_null(&self, evaluation: &Evaluation<'_>) -> Json {
        match self {
            Self::Map(entries) => entries.iter().map(|(key, value)| (key.clone(), value.fill_or_null(evaluation))).collect(),
            Self::List(items) => items.iter().map(|item| item.fill_or_null(evaluation)).collect(),
            other => other.fill(evaluation).unwrap_or(Json::Null),
        }
    }
}

/// What a template gets unless the policy says otherwise. A record with free columns gives exactly these; any other
/// `device`, `groups`, and with `enrich` `user`, in the form that step-posture-connector gives, and more beside it.
///
/// The keys of that form are always there, as they are with step-posture-connector: `""` where nothing is known, so that a
/// template prints nothing. Keys beyond it are there where the inventory says something.
///
/// # Errors
/// [`Denial::DATA_TOO_LARGE`] where it is beyond [`LARGEST_DATA`]; groups are left out, and `groups_omitted` says so, before
/// it comes to that.
pub fn default_data(record: &Record, enrich: bool) -> Result<Data, Denial> {
    build(record, enrich, false)
}

/// [`default_data`] with every key that it can have, and null where nothing is known: for a device that is let through
/// although its policy says no, and whose record may lack what a template reads.
///
/// # Errors
/// As for [`default_data`].
pub fn full_data(record: &Record, enrich: bool) -> Result<Data, Denial> {
    build(record, enrich, true)
}

fn build(record: &Record, enrich: bool, nulls: bool) -> Result<Data, Denial> {
    if let Some(columns) = record.data.value() {
        if columns.len() > LARGEST_DATA {
            return Err(Denial::DATA_TOO_LARGE);
        }
        // Read before it was kept; what cannot be read now was never a set of columns.
        return Data::from_json(columns).map_err(|_| Denial::POLICY_ERROR);
    }
    let groups = record.groups.value().map(Vec::as_slice).unwrap_or_default();
    let names = groups.iter().map(|group| if group.name.is_empty() { group.id.as_str() } else { &group.name });
    let mut data = vec![("device", device(record, nulls)), ("groups", Item::List(names.collect()))];
    if enrich {
        data.push(("user", user(record)));
    }
    // All of it can be encoded, so it is refused for its size alone.
    sized(&Item::Map(data.clone())).or_else(|_| {
        data.retain(|(key, _)| *key != "groups");
        data.extend([("groups", Item::List(Vec::new())), ("groups_omitted", Item::Flag(true))]);
        data.sort_unstable_by_key(|(key, _)| *key);
        sized(&Item::Map(data))
    })
}

/// Encodes data, unless it is too large.
pub(super) fn sized(data: &impl Serialize) -> Result<Data, Denial> {
    let data = Data::from_value(data).map_err(|_| Denial::POLICY_ERROR)?;
    if data.as_json().len() > LARGEST_DATA { Err(Denial::DATA_TOO_LARGE) } else { Ok(data) }
}

/// A value of the usual form, which borrows from the record: it is made for every answer. Keys of a map are in their order.
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
