//! A device file in JSON, read by us and as a plain value.

use posture::identity::normal;
use sidecar::provider::file::{Format, parse};

use crate::devices_csv::placed;

/// A file that is taken has every device of the list, each with its data as it stands there.
pub fn body(data: &[u8]) {
    let devices = match parse(Format::Json, data) {
        Ok(devices) => devices,
        Err(mistakes) => return placed(data, &mistakes),
    };
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let whole: serde_json::Value = serde_json::from_slice(data).expect("taken, and not JSON");
    let list = whole["devices"].as_array().unwrap();
    assert_eq!(devices.len(), list.len());
    for device in list {
        let identifier = normal(device["identifier"].as_str().unwrap());
        let found = devices.find(&identifier).unwrap_or_else(|| panic!("{identifier:?} is not found"));
        let data: serde_json::Value = serde_json::from_str(found.data().unwrap().as_json()).unwrap();
        assert_eq!(data, device.get("data").cloned().unwrap_or_else(|| serde_json::json!({})));
    }
}
