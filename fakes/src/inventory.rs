//! An inventory that a company wrote itself: JSON over HTTP, in one of the forms that such services have.

use http::Method;
use serde_json::{Map, Value, json};

use crate::Device;
use crate::server::{Answer, Seen, Service, decoded};

/// The form of requests and answers. The secret is `secret`, as a bearer token or in `X-Api-Key`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inventory {
    /// `GET /devices?serial=…`: a list of the matching devices, and their number.
    #[default]
    Listed,
    /// `GET /devices/…`: the device itself, or 404.
    Single,
    /// `POST /query` with `{"filter": {"serial": "…"}}`: a list somewhere inside the answer, null if it is empty, without a number.
    Posted,
}

/// Devices in a page.
const PAGE: usize = 100;

impl Service for Inventory {
    fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
        let known = [request.header("authorization"), request.header("x-api-key")];
        if !known.contains(&Some("Bearer secret")) && !known.contains(&Some("secret")) {
            return Answer::status(401, json!({"message": "who are you?"}));
        }
        if request.path == "/all" {
            let number: usize = request.query("page").and_then(|page| page.parse().ok()).unwrap_or(1);
            return page(&devices.iter().collect::<Vec<_>>(), number);
        }
        let Some(wanted) = self.asked(request) else { return Answer::status(400, json!({"message": "which device?"})) };
        let fits = |device: &&Device| ignore_filter || device.serial.trim().eq_ignore_ascii_case(wanted.trim());
        let found: Vec<&Device> = devices.iter().filter(fits).collect();
        match self {
            Self::Listed => page(&found, 1),
            Self::Single => match found.first() {
                Some(device) => Answer::json(item(device)),
                None => Answer::status(404, json!({"message": "no such device"})),
            },
            Self::Posted if found.is_empty() => Answer::json(json!({"result": {"items": null}})),
            Self::Posted => Answer::json(json!({"result": {"items": found.into_iter().map(item).collect::<Vec<_>>()}})),
        }
    }

    fn asked(&self, request: &Seen) -> Option<String> {
        match self {
            Self::Listed => request.query("serial").map(str::to_owned),
            Self::Single => request.path.strip_prefix("/devices/").map(decoded),
            Self::Posted if request.method == Method::POST => request.json()["filter"]["serial"].as_str().map(str::to_owned),
            Self::Posted => None,
        }
    }
}

fn page(devices: &[&Device], number: usize) -> Answer {
    let start = number.saturating_sub(1) * PAGE;
    let shown: Vec<Value> = devices.iter().skip(start).take(PAGE).map(|device| item(device)).collect();
    Answer::json(json!({"devices": shown, "total": devices.len()}))
}

fn item(device: &Device) -> Value {
    let user = device.user.clone().unwrap_or_default();
    let mut item = json!({
        "id": device.id,
        "serial": device.serial,
        "udid": device.udid,
        "name": device.name,
        "form": if device.mobile { "mobile_device" } else { "computer" },
        "os": {"name": if device.mobile { "iOS" } else { "macOS" }, "version": device.os_version},
        "mdm": {"enrolled": device.managed, "lost": device.lost},
        "compliant": device.compliant,
        "groups": device.groups,
        "owner": {"login": user.id, "name": user.name, "mail": user.email, "department": user.department},
        "seen": device.last_seen,
        "custom": {"desk": "4.12"},
    });
    let fields: &mut Map<String, Value> = item.as_object_mut().unwrap();
    fields.extend(device.raw.clone());
    item
}
