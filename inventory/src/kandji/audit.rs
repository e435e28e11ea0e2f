//! Kandji's audit log, as a feed of changes.
//!
//! The description says that the log reports enrolment, deletion, the removal of management and changes of blueprint, but not in
//! which words. So every event of a device counts, and all but an enrolment are revoking.

use posture::time::UnixTime;
use serde_json::Value;

use super::api::{Api, next_cursor, page_deadline, rfc3339};
use crate::answer::Unavailable;
use crate::http::PAGE;
use crate::inventory::{Change, Logged, Subject};
use crate::lenient;

/// The changes of devices after `since`.
///
/// # Errors
/// The errors of [`Api::get`] and [`crate::http::Reply::ok`].
pub(super) async fn changes(api: &Api, since: UnixTime) -> Result<Vec<Logged>, Unavailable> {
    let since = rfc3339(since)?;
    let mut changes = Vec::new();
    let mut cursor: Option<String> = None;
    for _ in 0..MOST_PAGES {
        api.spare()?;
        let mut query = vec![("limit", "500"), ("sort_by", "occurred_at"), ("start_date", since.as_str())];
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let page: Value = api.get("/api/v1/audit/events", &query, page_deadline(), PAGE).await?.ok()?.json()?;
        let Some(events) = page.get("results").and_then(Value::as_array) else { return Err(Unavailable::Protocol) };
        events.iter().for_each(|event| read(event, &mut changes));
        match next_cursor(page.get("next"))? {
            // The last page also has a cursor, for reading on later.
            Some(next) if Some(&next) != cursor.as_ref() && !events.is_empty() => cursor = Some(next),
            _ => return Ok(changes),
        }
    }
    // The rest of the log is unread, so no earlier knowledge may be relied on.
    changes.push(Logged { event: String::new(), change: Change { device: Subject::Everything, revoking: true } });
    Ok(changes)
}

fn read(event: &Value, changes: &mut Vec<Logged>) {
    let word = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
    let id = event.get("id").and_then(Value::as_str).unwrap_or_default();
    let mut add = |device, revoking| changes.push(Logged { event: id.to_owned(), change: Change { device, revoking } });
    let (kind, action, component) = (word("target_type"), word("action"), word("target_component"));
    if kind.contains("device") || kind.contains("computer") {
        let enrolled = matches!(action.as_str(), "create" | "enroll" | "enrolled" | "enrollment");
        let revoking = !enrolled || !component.is_empty() && !component.contains("enrollment");
        let target = lenient::text(event.get("target_id")).value().cloned().map(Subject::ProviderId);
        let serial = event.get("new_state").and_then(|state| state.get("serial_number"));
        let serial = lenient::text(serial).value().cloned().map(Subject::Identifier);
        // A device that is not named in a readable form may be any device.
        let any = (target.is_none() && serial.is_none()).then_some(Subject::Everything);
        target.into_iter().chain(serial).chain(any).for_each(|device| add(device, revoking));
    } else if kind == "blueprint" && component.is_empty() && action != "create" {
        // The blueprint was renamed or deleted, and the log does not name the devices in it.
        add(Subject::Everything, action != "update");
    }
}

/// Most pages of the log in one reading: 10,000 events.
const MOST_PAGES: usize = 20;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(kind: &str, action: &str, component: &str) -> Vec<Change> {
        let mut changes = Vec::new();
        read(
            &json!({"target_type": kind, "action": action, "target_component": component, "target_id": "a", "new_state": {}}),
            &mut changes,
        );
        changes.into_iter().map(|logged| logged.change).collect()
    }

    #[test]
    fn all_but_an_enrolment_revokes() {
        let change = |revoking| vec![Change { device: Subject::ProviderId("a".to_owned()), revoking }];
        for (action, component, revoking) in [
            ("create", "", false),
            ("enroll", "", false),
            ("create", "enrollment", false),
            ("create", "mdm_removal", true),
            ("delete", "", true),
            ("delete", "enrollment", true),
            ("update", "blueprint", true),
            ("update", "mdm", true),
            ("", "", true),
        ] {
            assert_eq!(of("device", action, component), change(revoking), "{action} {component}");
        }
    }

    #[test]
    fn names_the_device_by_its_serial_number_too() {
        let mut changes = Vec::new();
        let event =
            json!({"target_type": "Device", "action": "delete", "target_id": "a", "new_state": {"serial_number": "C02"}, "id": "e1"});
        read(&event, &mut changes);
        let change = Change { device: Subject::Identifier("C02".to_owned()), revoking: true };
        assert!(changes.contains(&Logged { event: "e1".to_owned(), change }), "{changes:?}");
    }

    #[test]
    fn only_a_blueprint_itself_touches_everything() {
        let everything = |revoking| vec![Change { device: Subject::Everything, revoking }];
        assert_eq!(of("blueprint", "update", ""), everything(false));
        assert_eq!(of("blueprint", "delete", ""), everything(true));
        assert_eq!(of("blueprint", "create", ""), vec![]);
        assert_eq!(of("blueprint", "update", "library_items"), vec![]);
        assert_eq!(of("api_token", "update", ""), vec![]);
        assert_eq!(of("", "", ""), vec![]);
    }
}
