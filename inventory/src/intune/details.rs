//! Details that a list of managed devices does not hold: groups, more of the user, and the UDID. They are asked for in batches,
//! each object once.

use std::collections::BTreeMap;

use posture::record::{Fact, Field, Fields, Group};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::graph::{Graph, Page};
use super::row::{Row, is_guid};
use crate::answer::Unavailable;

/// Fields that are asked for in batches.
pub(super) const FIELDS: Fields = Fields::of(&[Field::Groups, Field::Udid, Field::UserDepartment, Field::UserTitle, Field::UserActive]);

/// Completes records by the fields in `need`. A field that could not be asked for stays unknown.
///
/// # Errors
/// The first fault. Unless a whole batch failed, every record was completed as far as it could be.
pub(super) async fn complete(graph: &Graph, rows: &mut [Row], need: Fields, deadline: Instant) -> Result<(), Unavailable> {
    let asked: Vec<Vec<Asked>> = rows.iter().map(|row| Asked::of(row, need)).collect();
    let mut answers: BTreeMap<Asked, Result<Known, Unavailable>> =
        asked.iter().flatten().cloned().map(|asked| (asked, Err(Unavailable::Protocol))).collect();
    if answers.is_empty() {
        return Ok(());
    }
    let addresses: Vec<String> = answers.keys().map(Asked::address).collect();
    let items = graph.batch(&addresses, deadline).await?;
    for ((asked, known), item) in answers.iter_mut().zip(items) {
        *known = match item.found() {
            Ok(body) => asked.read(graph, body, deadline).await,
            Err(error) => Err(error),
        };
    }
    for (row, asked) in rows.iter_mut().zip(&asked) {
        for known in asked.iter().filter_map(|asked| answers.get(asked)?.as_ref().ok()) {
            known.apply(row);
        }
    }
    answers.into_values().find_map(Result::err).map_or(Ok(()), Err)
}

/// One question about one object, by the object's id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Groups(String),
    User(String),
    Udid(String),
}

impl Asked {
    fn of(row: &Row, need: Fields) -> Vec<Self> {
        let user = Fields::of(&[Field::UserDepartment, Field::UserTitle, Field::UserActive]);
        let id = &row.record.provider_id;
        [
            row.entra_id.clone().filter(|_| need.contains(Field::Groups)).map(Self::Groups),
            row.user_id.clone().filter(|_| need.meets(user)).map(Self::User),
            (need.contains(Field::Udid) && is_guid(id)).then(|| Self::Udid(id.clone())),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn address(&self) -> String {
        match self {
            Self::Groups(id) => format!("/devices(deviceId='{id}')/transitiveMemberOf?$select=id,displayName&$top=999"),
            Self::User(id) => format!("/users/{id}?$select=id,department,jobTitle,accountEnabled"),
            Self::Udid(id) => format!("/deviceManagement/managedDevices/{id}?$select=id,udid"),
        }
    }

    /// Reads an answer; a `body` of `None` means that there is no such object.
    async fn read(&self, graph: &Graph, body: Option<Value>, deadline: Instant) -> Result<Known, Unavailable> {
        match (self, body) {
            (Self::Groups(_), Some(body)) => groups(graph, body, deadline).await.map(Known::Groups),
            // The device is gone from the directory, or not there yet: its groups are unknown, not none.
            (Self::Groups(_), None) => Ok(Known::Nothing),
            (Self::User(_), None) => Ok(Known::User { department: Fact::Absent, title: Fact::Absent, active: Fact::Absent }),
            (Self::User(id), Some(body)) => {
                let body = of_object(id, &body)?;
                let active = body.get("accountEnabled").and_then(Value::as_bool);
                Ok(Known::User {
                    department: text(body, "department"),
                    title: text(body, "jobTitle"),
                    active: active.map_or(Fact::Unknown, Fact::Value),
                })
            }
            (Self::Udid(id), Some(body)) => Ok(Known::Udid(text(of_object(id, &body)?, "udid"))),
            // The device was on the list a moment ago, so its absence is a fault.
            (Self::Udid(_), None) => Err(Unavailable::Protocol),
        }
    }
}

/// The answer about an object.
enum Known {
    Groups(Vec<Group>),
    User { department: Fact<String>, title: Fact<String>, active: Fact<bool> },
    Udid(Fact<String>),
    Nothing,
}

impl Known {
    fn apply(&self, row: &mut Row) {
        let record = &mut row.record;
        match self {
            Self::Groups(groups) => record.groups = Fact::Value(groups.clone()),
            Self::User { department, title, active } => {
                record.user.department = department.clone();
                record.user.title = title.clone();
                record.user.active = active.clone();
            }
            Self::Udid(udid) => record.udid = udid.clone(),
            Self::Nothing => {}
        }
    }
}

/// All groups of a device, nested ones included.
async fn groups(graph: &Graph, body: Value, deadline: Instant) -> Result<Vec<Group>, Unavailable> {
    let page = Page::read(body, 0)?;
    let (mut groups, rows) = (Vec::new(), page.value.len());
    collect(page.value, &mut groups)?;
    if let Some(next) = page.next {
        let mut pages = graph.follow(&next, rows, GROUP_PAGES)?;
        while let Some(rows) = pages.next(deadline).await? {
            collect(rows, &mut groups)?;
        }
    }
    Ok(groups)
}

fn collect(rows: Vec<Map<String, Value>>, groups: &mut Vec<Group>) -> Result<(), Unavailable> {
    for row in rows {
        match row.get("@odata.type").and_then(Value::as_str) {
            Some("#microsoft.graph.group") => {}
            // Administrative units and roles are no groups that a policy could name.
            Some(_) => continue,
            None => return Err(Unavailable::Protocol),
        }
        let Fact::Value(id) = text(&row, "id") else { return Err(Unavailable::Protocol) };
        // Without the permission to read groups Graph gives only their ids, and a rule over names would overlook them.
        let Fact::Value(name) = text(&row, "displayName") else { return Err(Unavailable::Forbidden) };
        groups.push(Group { id, name });
    }
    Ok(())
}

/// The body, if it is that of the object that was asked for.
fn of_object<'b>(id: &str, body: &'b Value) -> Result<&'b Map<String, Value>, Unavailable> {
    let body = body.as_object().ok_or(Unavailable::Protocol)?;
    let same = body.get("id").and_then(Value::as_str).is_some_and(|own| own.eq_ignore_ascii_case(id));
    if same { Ok(body) } else { Err(Unavailable::Protocol) }
}

fn text(body: &Map<String, Value>, name: &str) -> Fact<String> {
    match body.get(name) {
        Some(Value::Null) => Fact::Absent,
        Some(Value::String(text)) => Fact::text(Some(text)),
        _ => Fact::Unknown,
    }
}

/// Most pages of groups after the first: ten thousand groups.
const GROUP_PAGES: usize = 9;
