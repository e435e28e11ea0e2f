//! Mosyle Business and Mosyle Manager, after the API articles in their consoles ("Devices Operations - List Devices") and
//! clients of both. Columns that the article of Manager does not name are only in Business here.
//!
//! Quirks: the token comes in a header of the answer to the login; Business names an operation and wants the access token in
//! a header, Manager wants it in the body; Business answers with a list around the devices, Manager with an object; every
//! scalar is a text; one call covers one family of systems; a page is counted from 0 or from 1; an empty result is reported
//! one level below an `OK`, with 200.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::server::{Answer, Seen, Service};
use crate::{Device, User};

/// A Mosyle account. Access token and password are `secret`, and the user is `api@example.org`.
#[derive(Clone, Debug)]
pub struct Mosyle {
    /// The product: Business or Manager.
    pub product: Product,
    /// Number of the first page.
    pub first_page: u64,
    /// Form of the token in the answer to a login.
    pub header: Header,
    /// Whether `rows`, `page` and `page_size` are texts.
    pub numbers_as_text: bool,
    /// Devices in a page.
    pub page_size: u64,
    /// Whether there is a filter for UDIDs: no article names one.
    pub udid_filter: bool,
    /// Number of logins so far, in all clones together: only the newest token is valid.
    pub logins: Arc<AtomicU64>,
}

/// A product of Mosyle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// Mosyle Business, for companies.
    Business,
    /// Mosyle Manager, for schools.
    Manager,
}

/// The form of the token in the answer to a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// `Bearer …`, as usual.
    Bearer,
    /// `bearer …`, in lower case.
    LowerCase,
    /// The token without a scheme.
    Bare,
    /// No header.
    Missing,
}

impl Mosyle {
    /// An account as its console describes it.
    pub fn new(product: Product) -> Self {
        Self {
            product,
            first_page: 0,
            header: Header::Bearer,
            numbers_as_text: true,
            page_size: 100,
            udid_filter: false,
            logins: Arc::default(),
        }
    }

    /// Refuses every token issued so far.
    pub fn revoke(&self) {
        self.logins.fetch_add(1, Ordering::SeqCst);
    }

    fn log_in(&self, request: &Seen) -> Answer {
        let body = request.json();
        let header = self.product == Product::Manager || request.header("accesstoken") == Some("secret");
        let known = body["accessToken"] == "secret" && body["email"] == "api@example.org" && body["password"] == "secret";
        if !known || !header {
            return refused();
        }
        let token = format!("jwt-{}", self.logins.fetch_add(1, Ordering::SeqCst) + 1);
        let answer = Answer::json(json!({"UserID": "7", "email": "api@example.org"}));
        match self.header {
            Header::Bearer => answer.with("authorization", format!("Bearer {token}")),
            Header::LowerCase => answer.with("authorization", format!("bearer {token}")),
            Header::Bare => answer.with("authorization", token),
            Header::Missing => answer,
        }
    }

    fn knows(&self, request: &Seen) -> bool {
        let token = format!("Bearer jwt-{}", self.logins.load(Ordering::SeqCst));
        let access = match self.product {
            Product::Business => request.header("accesstoken") == Some("secret"),
            Product::Manager => request.json()["accessToken"] == "secret",
        };
        request.header("authorization") == Some(&token) && access
    }

    /// The answer with this content of `response`.
    fn payload(&self, payload: Value) -> Answer {
        let response = match self.product {
            Product::Business => json!([payload]),
            Product::Manager => payload,
        };
        Answer::json(json!({"status": "OK", "response": response}))
    }

    fn list(&self, options: &Value, devices: &[Device], ignore_filter: bool) -> Answer {
        let Some(family) = options["os"].as_str() else {
            return self.payload(json!({"status": "MISSING_DATA", "info": "Missing key: os"}));
        };
        let fits = |device: &&Device| {
            let wanted = |option: &str, value: &str| match options[option].as_array() {
                Some(wanted) if !ignore_filter => {
                    wanted.iter().filter_map(Value::as_str).any(|wanted| wanted.trim().eq_ignore_ascii_case(value.trim()))
                }
                _ => true,
            };
            let by_udid = !self.udid_filter || wanted("deviceudids", &device.udid);
            family == self::family(device) && wanted("serial_numbers", &device.serial) && by_udid
        };
        let found: Vec<&Device> = devices.iter().filter(fits).collect();
        let asked = options["page"].as_u64().unwrap_or(self.first_page);
        let index = asked.saturating_sub(self.first_page);
        let start = usize::try_from(index * self.page_size).unwrap();
        let shown: Vec<Value> = found
            .iter()
            .skip(start)
            .take(usize::try_from(self.page_size).unwrap())
            .map(|device| self::device(device, self.product))
            .collect();
        if shown.is_empty() {
            return self.payload(json!({"status": "DEVICES_NOTFOUND", "info": "No devices were found."}));
        }
        let number = |number: u64| if self.numbers_as_text { json!(number.to_string()) } else { json!(number) };
        self.payload(json!({
            "devices": shown,
            "rows": number(found.len() as u64),
            "page_size": number(self.page_size),
            "page": number(index + self.first_page),
        }))
    }
}

impl Service for Mosyle {
    fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
        if self.is_login(request) {
            return self.log_in(request);
        }
        if !self.knows(request) {
            return refused();
        }
        let body = request.json();
        match self.product {
            Product::Business if request.path.ends_with("/devices") && body["operation"] == "list" => {}
            Product::Manager if request.path.ends_with("/listdevices") => {}
            _ => return Answer::status(404, json!({"error": "Not Found"})),
        }
        self.list(&body["options"], devices, ignore_filter)
    }

    fn is_login(&self, request: &Seen) -> bool {
        request.path.ends_with("/login")
    }

    fn asked(&self, request: &Seen) -> Option<String> {
        let options = &request.json()["options"];
        let first = |option: &str| options[option].as_array().and_then(|wanted| wanted.first()).and_then(Value::as_str);
        first("serial_numbers").or_else(|| first("deviceudids")).map(str::to_owned)
    }
}

fn refused() -> Answer {
    Answer::status(401, json!({"error": "API Token or Bearer Token are incorrect"}))
}

fn family(device: &Device) -> &str {
    let own = device.raw.get("os").and_then(Value::as_str);
    own.unwrap_or(if device.mobile { "ios" } else { "mac" })
}

fn device(device: &Device, product: Product) -> Value {
    let mac = !device.mobile;
    let User { id, name, email, .. } = device.user.clone().unwrap_or_default();
    let tags = if device.groups.is_empty() { Value::Null } else { json!(device.groups.join(",")) };
    let seen = device.last_seen.as_deref().and_then(seconds).map(|seconds| seconds.to_string());
    let lost = match (device.lost, mac) {
        (true, _) => json!("ENABLED"),
        (false, false) => json!("DISABLED"),
        (false, true) => Value::Null,
    };
    let mut item = json!({
        "serial_number": device.serial,
        "deviceudid": device.udid,
        "device_name": device.name,
        "device_model": if mac { "Mac15,3" } else { "iPhone16,1" },
        "device_model_name": if mac { "MacBook Pro" } else { "iPhone 15 Pro" },
        "os": family(device),
        "osversion": device.os_version,
        "BuildVersion": "24E263",
        "is_supervised": "1",
        "is_deleted": "0",
        "status": if device.managed { "INSTALLED" } else { "REMOVED" },
        "enrollment_type": "AUTOMATIC",
        "userid": id,
        "username": name,
        "useremail": email,
        "usertype": "ENDUSER",
        "tags": tags,
        "date_last_beat": seen,
        "date_info": seen,
        "date_enroll": "1710266724",
        "lostmode_status": lost,
        "SystemIntegrityProtectionEnabled": if mac { json!("1") } else { Value::Null },
        "DeviceAttestationStatus": "Attested",
        "CustomDeviceAttributes": json!([{"Name": "Desk", "CustomAttributeUniqueID": "desk", "Value": "4.12"}]).to_string(),
    });
    let columns = item.as_object_mut().unwrap();
    if product == Product::Manager {
        for column in ["is_deleted", "date_enroll"] {
            columns.remove(column);
        }
    }
    columns.extend(device.raw.clone());
    item
}

/// Seconds since 1970 of an RFC 3339 date in UTC.
fn seconds(date: &str) -> Option<i64> {
    let number = |from: usize, to: usize| date.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    // Days of the civil calendar, with years that begin in March, so that the leap day is their last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?)
}
