//! One answer with devices. Its own status stands on two levels; the status of HTTP is 200 almost always.

use serde_json::Value;

use crate::answer::Unavailable;
use crate::lenient;

/// Devices of one page, and the counts that the page gives.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Page {
    pub(super) devices: Vec<Value>,
    /// Number of devices on all pages of the answer.
    pub(super) rows: Option<u64>,
    /// Number of devices that a page can have.
    pub(super) size: Option<u64>,
}

impl Page {
    /// Reads an answer of either product: Business puts Manager's answer into a list.
    ///
    /// # Errors
    /// [`Unavailable::Protocol`] for a status other than success or not found, and for any other form.
    pub(super) fn read(mut answer: Value) -> Result<Self, Unavailable> {
        if lenient::fails(&answer) {
            return Err(Unavailable::Protocol);
        }
        match status(&answer)? {
            Some(OK) => {}
            Some(NOT_FOUND) => return Self::none(&answer),
            _ => return Err(Unavailable::Protocol),
        }
        match answer.get_mut("response").map(Value::take) {
            Some(payload @ Value::Object(_)) => Self::payload(payload),
            Some(Value::Array(payloads)) => {
                let mut payloads = payloads.into_iter();
                match (payloads.next(), payloads.next()) {
                    (Some(payload @ Value::Object(_)), None) => Self::payload(payload),
                    _ => Err(Unavailable::Protocol),
                }
            }
            _ => Err(Unavailable::Protocol),
        }
    }

    fn payload(mut payload: Value) -> Result<Self, Unavailable> {
        match status(&payload)? {
            None | Some(OK) => {}
            Some(NOT_FOUND) => return Self::none(&payload),
            _ => return Err(Unavailable::Protocol),
        }
        let devices = match payload.get_mut("devices").map(Value::take) {
            Some(Value::Array(devices)) if devices.iter().all(Value::is_object) => devices,
            _ => return Err(Unavailable::Protocol),
        };
        let rows = number(payload.get("rows"))?;
        // A count below the number of devices contradicts them.
        if rows.is_some_and(|rows| rows < u64::try_from(devices.len()).unwrap_or(u64::MAX)) {
            return Err(Unavailable::Protocol);
        }
        Ok(Self { devices, rows, size: number(payload.get("page_size"))?.filter(|size| *size > 0) })
    }

    /// An empty page, for an answer that says that no device was found, and shows none.
    fn none(said: &Value) -> Result<Self, Unavailable> {
        if has_devices(said) { Err(Unavailable::Protocol) } else { Ok(Self::default()) }
    }
}

/// Returns whether an answer, or a payload of one, has devices.
fn has_devices(said: &Value) -> bool {
    let some = |list: Option<&Value>| list.and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    match said.get("response") {
        Some(Value::Array(payloads)) => payloads.iter().any(|payload| some(payload.get("devices"))),
        Some(payload) => some(payload.get("devices")),
        None => some(said.get("devices")),
    }
}

const OK: &str = "OK";
const NOT_FOUND: &str = "DEVICES_NOTFOUND";

fn status(value: &Value) -> Result<Option<&str>, Unavailable> {
    match value.get("status") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(status)) => Ok(Some(status)),
        Some(_) => Err(Unavailable::Protocol),
    }
}

/// Reads a count, as number or text; a page may leave it out.
fn number(value: Option<&Value>) -> Result<Option<u64>, Unavailable> {
    let number = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(_) => None,
    };
    number.map(Some).ok_or(Unavailable::Protocol)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_both_products_and_both_levels_of_status() {
        let one = Page { devices: vec![json!({"serial_number": "A"})], rows: Some(1), size: Some(50) };
        let payload = json!({"devices": [{"serial_number": "A"}], "rows": "1", "page_size": 50, "page": 1});
        assert_eq!(Page::read(json!({"status": "OK", "response": payload})), Ok(one));
        assert!(Page::read(json!({"status": "OK", "response": [payload]})).is_ok());
        for nothing in [
            json!({"status": "OK", "response": [{"status": "DEVICES_NOTFOUND", "info": "none"}]}),
            json!({"status": "OK", "response": {"status": "DEVICES_NOTFOUND"}}),
            json!({"status": "DEVICES_NOTFOUND"}),
            json!({"status": "OK", "response": {"devices": []}}),
        ] {
            assert_eq!(Page::read(nothing.clone()), Ok(Page::default()), "{nothing}");
        }
    }

    #[test]
    fn anything_else_is_no_answer() {
        for answer in [
            json!({"status": "OK", "response": [{"status": "MISSING_DATA"}]}),
            json!({"status": "OK", "response": [{"status": "UNKNOWN_COLUMNS", "devices": []}]}),
            json!({"status": "OK", "response": []}),
            json!({"status": "OK", "response": [{"devices": []}, {"devices": []}]}),
            json!({"status": "OK", "response": {"devices": null}}),
            json!({"status": "OK", "response": {"devices": ["A"]}}),
            json!({"status": "OK", "response": {"devices": [], "rows": "many"}}),
            json!({"status": "OK"}),
            json!({"status": "ERROR", "response": {"devices": []}}),
            json!({"response": {"devices": []}}),
            json!({"error": "API Token or Bearer Token are incorrect"}),
            json!([]),
            json!(null),
        ] {
            assert_eq!(Page::read(answer.clone()), Err(Unavailable::Protocol), "{answer}");
        }
    }
}
