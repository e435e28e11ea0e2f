//! A device file in JSON, read by Stepward and as a plain JSON value.

use inventory::file::{Format, parse};
use posture::identity::normal;
use serde_json::Value;

use crate::devices_csv::{clean, placed, settings, text};

/// Asserts that an accepted file has every device of the list, each with its data unchanged.
pub fn body(data: &[u8]) {
    let parsed = match parse(&settings(Format::Json), data) {
        Ok(parsed) => parsed,
        Err(mistakes) => return placed(data, &mistakes),
    };
    let whole: Value = match serde_json::from_str(&text(data)) {
        Ok(whole) => whole,
        // An ignored member may be nested deeper, or have a greater number, than a plain value can.
        Err(_) if !parsed.warnings.places().is_empty() => return,
        Err(error) => panic!("taken, and not JSON: {error}"),
    };
    let list = member(&whole, "devices").unwrap().as_array().unwrap();
    assert_eq!(parsed.devices.len(), list.len());
    for device in list {
        let identifier = normal(clean(member(device, "identifier").unwrap().as_str().unwrap()));
        let found = parsed.devices.find(&identifier).unwrap_or_else(|| panic!("{identifier:?} is not found"));
        let data: Value = serde_json::from_str(found.data().unwrap().as_json()).unwrap();
        assert_eq!(data, member(device, "data").filter(|data| !data.is_null()).cloned().unwrap_or_else(|| serde_json::json!({})));
    }
}

/// A member of an object by its name, in upper or lower case.
fn member<'v>(object: &'v Value, name: &str) -> Option<&'v Value> {
    object.as_object().unwrap().iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}
