//! Files of tests for policies: devices, each with the decision that is expected. The policies stand in the file, or in a
//! configuration.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use posture::identity::{IdentifierKind, Trust};
use posture::policy::RequestKind;
use posture::record::{Alias, Compliance, Fact, Field, FieldType, Form, Group, Record};
use posture::time::UnixTime;
use posture::webhook::Kind;
use serde_json::Value as Json;
use settings::document::{self, Data, Entry, Value};
use settings::words::{suggestion, word};
use settings::{Mistakes, Place, Report, Section};

use super::hints::HINTS;
use super::policy::{self, Policy};

/// Rules of a policy, and whether their default data says who uses the device.
#[derive(Clone, Debug)]
pub(crate) struct Judge {
    pub(crate) policy: Arc<posture::policy::Policy>,
    pub(crate) enrich: bool,
}

/// One test: a device, and the decision that is expected.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// Line of the file on which the test stands.
    pub(crate) line: usize,
    pub(crate) judge: Judge,
    pub(crate) record: Record,
    pub(crate) trust: Trust,
    /// Time of the decision. Default: when the tests run.
    pub(crate) now: Option<UnixTime>,
    /// Time at which the record was fetched. Default: `now`.
    pub(crate) fetched_at: Option<UnixTime>,
    pub(crate) webhook: Option<String>,
    pub(crate) kind: RequestKind,
    pub(crate) identifier: String,
    pub(crate) identifier_kind: IdentifierKind,
    pub(crate) caller: Option<String>,
    /// Code of the expected denial; `None`: the device is allowed.
    pub(crate) expect: Option<String>,
    /// Data that a template must get.
    pub(crate) data: Option<Json>,
}

/// Reads a file of tests; `configured` are policies that it may use beside its own.
pub(crate) fn read(text: &str, path: &Path, configured: &BTreeMap<String, Policy>) -> Result<Vec<Case>, Mistakes> {
    let report = Report::of(path, text).hinting(HINTS);
    let cases = document::parse(text, &report).map(|root| {
        let mut root = Section::new("the file", root, &report);
        let judges = judges(&mut root, configured);
        let cases = match root.take("test") {
            Some(Value { data: Data::List(items), .. }) if !items.is_empty() => {
                items.into_iter().filter_map(|item| case(item, &judges, &report)).collect()
            }
            Some(value) => {
                report.mistake(&value.place, "`test` must be a list of tables, each under [[test]]");
                Vec::new()
            }
            None => {
                root.missing("test", "[[test]] with policy, device and expect");
                Vec::new()
            }
        };
        root.finish();
        cases
    });
    report.finish(cases).map(|(cases, _)| cases)
}

/// Reads the policies by name; `None` for a policy with a mistake, which is reported already.
fn judges(root: &mut Section<'_>, configured: &BTreeMap<String, Policy>) -> BTreeMap<String, Option<Judge>> {
    let of_configuration =
        |(name, policy): (&String, &Policy)| (name.clone(), Some(Judge { policy: policy.policy.clone(), enrich: policy.enrich }));
    let mut judges: BTreeMap<_, _> = configured.iter().map(of_configuration).collect();
    let Some(section) = root.section("policy") else { return judges };
    let report = section.report();
    for (name, place, value) in section.rest() {
        if configured.contains_key(&name) {
            report.mistake(&place, format!("policy `{name}` stands in the configuration too: which one is meant?"));
        }
        let judge = match value.data {
            Data::Table(table) => {
                let mut section = Section::new(format!("[policy.{name}]"), table, report);
                // Keys about providers are allowed and have no effect: a test names its record itself.
                for key in ["providers", "on_not_found", "on_unavailable", "combine"] {
                    section.take(key);
                }
                let enrich = section.flag("enrich").unwrap_or(false);
                let rules = policy::rules(&mut section);
                section.finish();
                rules.map(|policy| Judge { policy: Arc::new(policy), enrich })
            }
            other => {
                report.mistake(&value.place, format!("`{name}` must be a table [policy.{name}], not {}", other.name()));
                None
            }
        };
        judges.insert(name, judge);
    }
    judges
}

fn case(item: Value, judges: &BTreeMap<String, Option<Judge>>, report: &Report) -> Option<Case> {
    let Data::Table(table) = item.data else {
        report.mistake(&item.place, format!("a test must be a table, not {}", item.data.name()));
        return None;
    };
    let mut section = Section::new("[[test]]", table, report);
    for (key, example) in [("policy", "policy = \"staff\""), ("device", "device = { managed = true }"), ("expect", "expect = \"allow\"")] {
        if !section.has(key) {
            section.missing(key, example);
        }
    }
    let names: Vec<&str> = judges.keys().map(String::as_str).collect();
    let name = section.text("name", |text| Ok(text.to_owned()));
    let judge = section.text("policy", |name| {
        let missing =
            if names.is_empty() { "write [policy.…], or name a configuration by --config".to_owned() } else { suggestion(name, &names) };
        judges.get(name).cloned().ok_or_else(|| format!("there is no policy `{name}`; {missing}"))
    });
    let mut record = Record::default();
    if let Some(device) = section.take("device") {
        match device.data {
            Data::Table(table) => table.entries.into_iter().for_each(|(key, entry)| field(&mut record, "", &key, entry, report)),
            other => report.mistake(&device.place, format!("`device` must be a table of fields, not {}", other.name())),
        }
    }
    section.list("absent", |item| match &item.data {
        Data::Text(name) => match Field::ALL.iter().find(|field| field.as_str() == name) {
            Some(field) if *field != Field::ProviderId => {
                absent(&mut record, *field);
                Some(())
            }
            _ => {
                report.mistake(&item.place, format!("`{name}` is no field that can be absent; {}", fields(name)));
                None
            }
        },
        other => {
            report.mistake(&item.place, format!("`absent` lists names of fields, not {}", other.name()));
            None
        }
    });
    let time = |text: &str| UnixTime::parse(text).ok_or_else(|| format!("`{text}` is not a time; write 2026-01-31T00:00:00Z"));
    let trust = section.text("trust", |text| word(text, Trust::ALL.iter().map(|trust| (trust.as_str(), *trust))));
    let now = section.text("now", time);
    let fetched_at = section.text("fetched_at", time);
    let expect = section.text("expect", |text| Ok((text != "allow").then(|| text.to_owned())));
    let caller = section.text("caller", |text| Ok(text.to_owned()));
    let (mut webhook, mut kind, mut identifier, mut identifier_kind) = (None, None, None, None);
    if let Some(mut request) = section.section("request") {
        let kinds = [Kind::Enriching, Kind::Authorizing, Kind::ScepChallenge, Kind::Notifying].map(RequestKind::Webhook);
        let kinds = kinds.into_iter().chain([RequestKind::Query, RequestKind::ExtAuthz]).map(|kind| (kind.as_str(), kind));
        webhook = request.text("webhook", |text| Ok(text.to_owned()));
        kind = request.text("kind", |text| word(text, kinds));
        identifier = request.text("identifier", |text| Ok(text.to_owned()));
        identifier_kind = request.text("identifier_kind", |text| word(text, IdentifierKind::ALL.iter().map(|kind| (kind.as_str(), *kind))));
        request.finish();
    }
    let data = section.take("data").and_then(|value| json(value, report));
    let place = section.place().clone();
    section.finish();
    Some(Case {
        name: name.unwrap_or_else(|| "without a name".to_owned()),
        line: if let Place::Line(line, _) = place { line } else { 0 },
        judge: judge??,
        identifier: identifier.or_else(|| record.serial.value().cloned()).unwrap_or_default(),
        record,
        trust: trust.unwrap_or(Trust::Attested),
        now,
        fetched_at,
        webhook,
        kind: kind.unwrap_or(RequestKind::Webhook(Kind::Enriching)),
        identifier_kind: identifier_kind.unwrap_or(IdentifierKind::Serial),
        caller,
        expect: expect?,
        data,
    })
}

fn fields(given: &str) -> String {
    let names: Vec<_> = Field::ALL.iter().map(|field| field.as_str()).collect();
    suggestion(given, &names)
}

/// Sets one field of a record; `user` has fields of its own, and `groups` lists names, or pairs of a name and an id.
fn field(record: &mut Record, prefix: &str, key: &str, entry: Entry, report: &Report) {
    let name = format!("{prefix}{key}");
    let value = entry.value;
    match (name.as_str(), value.data) {
        ("user", Data::Table(table)) => table.entries.into_iter().for_each(|(key, entry)| field(record, "user.", &key, entry, report)),
        ("aliases", Data::List(items)) => {
            record.aliases = items.into_iter().filter_map(|item| text(item, report)).map(Alias::of_no_kind).collect();
        }
        (_, data) => {
            let Some(field) = Field::ALL.iter().find(|field| field.as_str() == name) else {
                report.mistake(&entry.place, format!("a device has no field `{name}`; {}", fields(&name)));
                return;
            };
            if let Err(message) = set(record, *field, Value { place: value.place.clone(), data }, report) {
                report.mistake(&value.place, format!("`{name}` {message}"));
            }
        }
    }
}

fn text(item: Value, report: &Report) -> Option<String> {
    match item.data {
        Data::Text(text) => Some(text),
        other => {
            report.mistake(&item.place, format!("must be a string, not {}", other.name()));
            None
        }
    }
}

fn set(record: &mut Record, field: Field, value: Value, report: &Report) -> Result<(), String> {
    let of_type = value.data.name();
    match (field.holds(), value.data) {
        (FieldType::Flag, Data::Boolean(flag)) => *flag_of(record, field).ok_or("is no flag")? = Fact::Value(flag),
        (FieldType::Time, Data::Text(text)) => {
            let time = UnixTime::parse(&text).ok_or_else(|| format!("is not a time: `{text}`; write \"2026-01-31T00:00:00Z\""))?;
            *time_of(record, field).ok_or("is no time")? = Fact::Value(time);
        }
        (FieldType::Groups, Data::List(items)) => {
            record.groups = Fact::Value(items.into_iter().filter_map(|item| group(item, report)).collect());
        }
        (FieldType::Data, Data::Table(table)) => {
            let data = json(Value { place: value.place, data: Data::Table(table) }, report);
            record.data = Fact::Value(data.unwrap_or_default().to_string());
        }
        (FieldType::Text, Data::Text(text)) => match field {
            Field::ProviderId => record.provider_id = text,
            Field::Form => {
                let forms = [Form::Computer, Form::MobileDevice];
                record.form = Fact::Value(word(&text, forms.into_iter().map(|form| (form.as_str(), form)))?);
            }
            Field::Compliance => {
                let states = [Compliance::Compliant, Compliance::NonCompliant, Compliance::GracePeriod, Compliance::Undetermined];
                record.compliance = Fact::Value(word(&text, states.into_iter().map(|state| (state.as_str(), state)))?);
            }
            field => *text_of(record, field).ok_or("is no text")? = Fact::Value(text),
        },
        (holds, _) => {
            let wanted = match holds {
                FieldType::Text => "a string",
                FieldType::Flag => "true or false",
                FieldType::Time => "a time in a string",
                FieldType::Groups => "a list of groups",
                FieldType::Data => "a table",
            };
            return Err(format!("must be {wanted}, not {of_type}"));
        }
    }
    Ok(())
}

fn group(item: Value, report: &Report) -> Option<Group> {
    match item.data {
        Data::Text(name) => Some(Group { id: String::new(), name }),
        Data::Table(table) => {
            let mut section = Section::new("a group", table, report);
            let id = section.text("id", |text| Ok(text.to_owned())).unwrap_or_default();
            let name = section.text("name", |text| Ok(text.to_owned())).unwrap_or_default();
            section.finish();
            Some(Group { id, name })
        }
        other => {
            report.mistake(&item.place, format!("a group must be its name, or {{ id = \"…\", name = \"…\" }}, not {}", other.name()));
            None
        }
    }
}

fn absent(record: &mut Record, field: Field) {
    match field {
        Field::Form => record.form = Fact::Absent,
        Field::Compliance => record.compliance = Fact::Absent,
        Field::Groups => record.groups = Fact::Absent,
        field => {
            if let Some(flag) = flag_of(record, field) {
                *flag = Fact::Absent;
            } else if let Some(time) = time_of(record, field) {
                *time = Fact::Absent;
            } else if let Some(text) = text_of(record, field) {
                *text = Fact::Absent;
            }
        }
    }
}

fn flag_of(record: &mut Record, field: Field) -> Option<&mut Fact<bool>> {
    Some(match field {
        Field::Managed => &mut record.managed,
        Field::Supervised => &mut record.supervised,
        Field::Lost => &mut record.lost,
        Field::WipePending => &mut record.wipe_pending,
        Field::Compromised => &mut record.compromised,
        Field::Encrypted => &mut record.encrypted,
        Field::UserActive => &mut record.user.active,
        _ => return None,
    })
}

fn time_of(record: &mut Record, field: Field) -> Option<&mut Fact<UnixTime>> {
    Some(match field {
        Field::EnrolledAt => &mut record.enrolled_at,
        Field::LastSeen => &mut record.last_seen,
        Field::InventoryAt => &mut record.inventory_at,
        _ => return None,
    })
}

fn text_of(record: &mut Record, field: Field) -> Option<&mut Fact<String>> {
    Some(match field {
        Field::Serial => &mut record.serial,
        Field::Udid => &mut record.udid,
        Field::Name => &mut record.name,
        Field::Platform => &mut record.platform,
        Field::OsVersion => &mut record.os_version,
        Field::OsBuild => &mut record.os_build,
        Field::Model => &mut record.model,
        Field::Ownership => &mut record.ownership,
        Field::Attestation => &mut record.attestation,
        Field::UserId => &mut record.user.id,
        Field::UserName => &mut record.user.name,
        Field::UserEmail => &mut record.user.email,
        Field::UserDepartment => &mut record.user.department,
        Field::UserTitle => &mut record.user.title,
        Field::Data => &mut record.data,
        _ => return None,
    })
}

/// Converts a value of TOML to JSON, which has no dates.
fn json(value: Value, report: &Report) -> Option<Json> {
    Some(match value.data {
        Data::Text(text) => text.into(),
        Data::Integer(Some(number)) => number.into(),
        Data::Float(Some(number)) => number.into(),
        Data::Boolean(flag) => flag.into(),
        Data::List(items) => items.into_iter().filter_map(|item| json(item, report)).collect(),
        Data::Table(table) => table.entries.into_iter().filter_map(|(key, entry)| Some((key, json(entry.value, report)?))).collect(),
        other => {
            report.mistake(&value.place, format!("{} has no JSON form: write a string", other.name()));
            return None;
        }
    })
}
