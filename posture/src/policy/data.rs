//! What a template gets: the `data` expression of a policy, or what is known of the device in the usual form.

use serde_json::{Map, Value as Json, json};

use super::expression::{Evaluation, Node};
use super::value::{Fault, rfc3339};
use crate::outcome::{Data, Denial};
use crate::record::{Fact, Record};
use crate::time::UnixTime;

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
    let keys = Keys { nulls };
    let mut data = Map::new();
    data.insert("device".to_owned(), device(record, keys));
    if enrich {
        data.insert("user".to_owned(), user(record));
    }
    let groups = record.groups.value().map(Vec::as_slice).unwrap_or_default();
    let names = groups.iter().map(|group| if group.name.is_empty() { &group.id } else { &group.name });
    data.insert("groups".to_owned(), names.map(String::as_str).collect());
    match sized(&data) {
        Err(denial) if denial == Denial::DATA_TOO_LARGE => {
            data.insert("groups".to_owned(), json!([]));
            data.insert("groups_omitted".to_owned(), json!(true));
            sized(&data)
        }
        result => result,
    }
}

/// Encodes data, unless it is too large.
pub(super) fn sized(data: &impl serde::Serialize) -> Result<Data, Denial> {
    let data = Data::from_value(data).map_err(|_| Denial::POLICY_ERROR)?;
    if data.as_json().len() > LARGEST_DATA { Err(Denial::DATA_TOO_LARGE) } else { Ok(data) }
}

fn device(record: &Record, keys: Keys) -> Json {
    let mut device = Map::new();
    for (key, text) in [("udid", &record.udid), ("serial_number", &record.serial), ("name", &record.name)] {
        device.insert(key.to_owned(), filled(text));
    }
    let text = |fact: &Fact<String>| fact.value().map(|text| Json::from(text.as_str()));
    let flag = |fact: &Fact<bool>| fact.value().map(|flag| Json::from(*flag));
    let time = |fact: &Fact<UnixTime>| fact.value().map(|time| Json::from(rfc3339(*time)));
    for (key, value) in [
        ("form", record.form.value().map(|form| form.as_str().into())),
        ("platform", text(&record.platform)),
        ("os_version", text(&record.os_version)),
        ("os_build", text(&record.os_build)),
        ("model", text(&record.model)),
        ("managed", flag(&record.managed)),
        ("supervised", flag(&record.supervised)),
        ("ownership", text(&record.ownership)),
        ("compliance", record.compliance.value().map(|compliance| compliance.as_str().into())),
        ("encrypted", flag(&record.encrypted)),
        ("last_seen", time(&record.last_seen)),
    ] {
        keys.add(&mut device, key, value);
    }
    device.into()
}

fn user(record: &Record) -> Json {
    let user = &record.user;
    json!({
        "username": filled(&user.id),
        "realname": filled(&user.name),
        "email_address": filled(&user.email),
        "position": filled(&user.title),
        "department": filled(&user.department),
    })
}

fn filled(text: &Fact<String>) -> Json {
    text.value().map_or("", String::as_str).into()
}

#[derive(Clone, Copy)]
struct Keys {
    nulls: bool,
}

impl Keys {
    fn add(self, to: &mut Map<String, Json>, key: &str, value: Option<Json>) {
        if self.nulls || value.is_some() {
            to.insert(key.to_owned(), value.unwrap_or_default());
        }
    }
}
