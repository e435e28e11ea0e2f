//! Jamf Pro: the parts of its API that are about devices, after its OpenAPI descriptions of 11.23 to 11.30, which give the
//! names of paths, filters, sections and fields.
//!
//! A path in [`Device::raw`], such as `general.supervised`, replaces the value at that path in the record.

mod records;
mod rsql;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Map, Value, json};

use crate::Device;
use crate::server::{Answer, Seen, Service};
pub use rsql::Filter;

/// Client id that is accepted.
pub const CLIENT_ID: &str = "client";

/// Client secret that is accepted.
pub const CLIENT_SECRET: &str = "secret";

/// All privileges that an API role needs here.
pub const PRIVILEGES: &[&str] = &["Read Computers", "Read Mobile Devices", "Read Departments", "Read Device Compliance Information"];

/// A Jamf Pro server. Clones share its state, so that a test can change the settings of a running server.
#[derive(Clone, Debug, Default)]
pub struct Jamf(Arc<Mutex<Knobs>>);

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// Whether `/api/v1/oauth/token` exists.
    pub token: bool,
    /// Whether `/api/oauth/token` exists.
    pub old_token: bool,
    /// Value of `expires_in`; null omits it.
    pub expires_in: Value,
    /// Whether a token is valid only together with the cookie that came with it.
    pub sticky: bool,
    /// Versions of `computers-inventory` that exist: 4 came with 11.30.
    pub versions: BTreeSet<u8>,
    /// Whether mobile devices have `lastContactDate`, as a field and as a filter: since 11.30. An older server answers 400.
    pub mobile_contact: bool,
    /// Privileges of the API role.
    pub privileges: BTreeSet<&'static str>,
    /// Whether every request gets 503, as while the server starts.
    pub starting: bool,
    /// Serial numbers of mobile devices whose records fail: 500, or null sections with `LENIENT`.
    pub broken: BTreeSet<String>,
    /// Value of `totalCount` in place of the true one.
    pub total: Option<u64>,
    /// Rows at the end of a page with which the next page begins again.
    pub overlap: usize,
    /// Whether compliance was ever set up.
    pub compliance: bool,
    tokens: Vec<String>,
    issued: usize,
    filters: Vec<String>,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            token: true,
            old_token: true,
            expires_in: json!(1200),
            sticky: false,
            versions: BTreeSet::from([1, 2, 3, 4]),
            mobile_contact: true,
            privileges: PRIVILEGES.iter().copied().collect(),
            starting: false,
            broken: BTreeSet::new(),
            total: None,
            overlap: 0,
            compliance: true,
            tokens: Vec::new(),
            issued: 0,
            filters: Vec::new(),
        }
    }
}

impl Jamf {
    /// A server in which everything exists and everything is allowed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes the settings.
    pub fn set(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.lock());
    }

    /// Refuses every token issued so far.
    pub fn revoke(&self) {
        self.lock().tokens.clear();
    }

    /// The filters of the requests so far, as they arrived.
    pub fn filters(&self) -> Vec<String> {
        self.lock().filters.clone()
    }

    /// The literals of each filter; `None` for a filter with a syntax error.
    pub fn literals(&self) -> Vec<Option<Vec<String>>> {
        self.filters().iter().map(|filter| Filter::parse(filter).map(|filter| filter.literals())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Knobs> {
        self.0.lock().unwrap()
    }
}

impl Service for Jamf {
    fn is_login(&self, request: &Seen) -> bool {
        request.path.ends_with("/oauth/token")
    }

    /// The literal if there is one filter with one; otherwise the filter as it came, which is no identifier.
    fn asked(&self, request: &Seen) -> Option<String> {
        let mut filters = request.query.iter().filter(|(name, _)| name == "filter").map(|(_, filter)| filter);
        let filter = filters.next()?;
        match Filter::parse(filter) {
            Some(Filter::Compare { mut literals, .. }) if literals.len() == 1 && filters.next().is_none() => literals.pop(),
            _ => Some(filter.clone()),
        }
    }

    fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
        let mut knobs = self.lock();
        if knobs.starting {
            return Answer::status(503, Value::String("<html><body>Jamf Pro is starting</body></html>".to_owned()));
        }
        match request.path.as_str() {
            "/api/v1/health-check" => return Answer::status(204, Value::Null),
            "/api/v1/oauth/token" if knobs.token => return knobs.log_in(request),
            "/api/oauth/token" if knobs.old_token => return knobs.log_in(request),
            path if path.ends_with("/oauth/token") => return not_found(),
            _ => {}
        }
        if !knobs.is_logged_in(request) {
            return error(401, "INVALID_TOKEN", "Unauthorized");
        }
        knobs.route(request, devices, ignore_filter)
    }
}

impl Knobs {
    fn log_in(&mut self, request: &Seen) -> Answer {
        let form = request.form();
        let has = |name: &str, value: &str| form.iter().any(|(known, given)| known == name && given == value);
        if !has("grant_type", "client_credentials") {
            return Answer::status(400, json!({"error": "unsupported_grant_type"}));
        }
        if !has("client_id", CLIENT_ID) || !has("client_secret", CLIENT_SECRET) {
            // `OAuthTokenEndpointErrorResponse` is described only for 400.
            return Answer::status(400, json!({"error": "invalid_client", "error_description": "Client authentication failed"}));
        }
        self.issued += 1;
        let token = format!("token-{}", self.issued);
        self.tokens.push(token.clone());
        let mut body = json!({"access_token": token, "token_type": "Bearer", "scope": "api-role:1"});
        if !self.expires_in.is_null() {
            body["expires_in"] = self.expires_in.clone();
        }
        Answer::json(body).with("set-cookie", format!("jpro-ingress=node-{}; Path=/; HttpOnly", self.issued))
    }

    fn is_logged_in(&self, request: &Seen) -> bool {
        let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        let known = self.tokens.iter().any(|known| known == token);
        let node = token.trim_start_matches("token-");
        let stuck = request.header("cookie").is_some_and(|cookie| cookie.contains(&format!("jpro-ingress=node-{node}")));
        known && (stuck || !self.sticky)
    }

    fn route(&mut self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
        let privilege =
            |privilege| if self.privileges.contains(privilege) { Ok(()) } else { Err(error(403, "INVALID_PRIVILEGE", "Forbidden")) };
        let path = request.path.as_str();
        let computers = path.strip_prefix("/api/v").and_then(|rest| rest.strip_suffix("/computers-inventory")).map(str::parse::<u8>);
        if let Some(Ok(version)) = computers
            && self.versions.contains(&version)
        {
            return privilege("Read Computers").map_or_else(|no| no, |()| self.computers(request, devices, version, ignore_filter));
        }
        if path == "/api/v2/mobile-devices/detail" {
            return privilege("Read Mobile Devices").map_or_else(|no| no, |()| self.mobile_devices(request, devices, ignore_filter));
        }
        if path == "/api/v1/departments" {
            return privilege("Read Departments").map_or_else(|no| no, |()| self.departments(request, devices));
        }
        if let Some(rest) = path.strip_prefix("/api/v1/conditional-access/device-compliance-information/")
            && self.compliance
        {
            return privilege("Read Device Compliance Information").map_or_else(|no| no, |()| compliance(rest, devices));
        }
        not_found()
    }

    fn computers(&mut self, request: &Seen, devices: &[Device], version: u8, ignore_filter: bool) -> Answer {
        let records = devices.iter().filter(|device| !device.mobile).map(|device| records::computer(device, version));
        let contact = if version >= 4 { "general.lastContact" } else { "general.lastContactTime" };
        let known = ["id", "udid", "general.name", "hardware.serialNumber", "general.remoteManagement.managed", contact];
        let field = |name: &str| known.contains(&name).then(|| name.to_owned());
        self.page(request, records.collect(), ignore_filter, &["id", "udid"], "id", &field, |record, _| Ok(record))
    }

    fn mobile_devices(&mut self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
        let contact = self.mobile_contact;
        let records = devices.iter().filter(|device| device.mobile).map(|device| records::mobile(device, contact));
        let lenient = request.query("exception-handling") == Some("LENIENT");
        let field = |name: &str| {
            let path = match name {
                "mobileDeviceId" => "mobileDeviceId",
                "serialNumber" => "hardware.serialNumber",
                "udid" => "general.udid",
                "displayName" => "general.displayName",
                "managed" => "general.managed",
                "lastContactDate" if contact => "general.lastContactDate",
                "lastInventoryUpdateDate" => "general.lastInventoryUpdateDate",
                _ => return None,
            };
            Some(path.to_owned())
        };
        let broken = self.broken.clone();
        let whole = |mut record: Value, sections: &BTreeSet<&str>| {
            if broken.contains(records::at(&record, "hardware.serialNumber").as_str().unwrap_or_default()) {
                if !lenient {
                    return Err(error(500, "DATA_PROCESSING", "The record of a device cannot be processed"));
                }
                for section in ["groups", "security", "userAndLocation"] {
                    if sections.contains(section) {
                        record[section] = Value::Null;
                    }
                }
            }
            Ok(record)
        };
        self.page(request, records.collect(), ignore_filter, &["mobileDeviceId", "deviceType"], "mobileDeviceId", &field, whole)
    }

    fn departments(&mut self, request: &Seen, devices: &[Device]) -> Answer {
        let names: BTreeSet<_> = devices.iter().filter_map(|device| Some(device.user.as_ref()?.department.clone())).collect();
        let records = names.into_iter().map(|name| json!({"id": records::id_of(&name), "name": name}));
        let field = |name: &str| matches!(name, "id" | "name").then(|| name.to_owned());
        self.page(request, records.collect(), false, &["id", "name"], "id", &field, |record, _| Ok(record))
    }

    /// One page of the records that pass the filter, with the requested sections.
    #[expect(clippy::too_many_arguments, reason = "one list, told apart by what is looked up in it")]
    fn page(
        &mut self,
        request: &Seen,
        mut records: Vec<Value>,
        ignore_filter: bool,
        always: &[&str],
        id: &str,
        field: &dyn Fn(&str) -> Option<String>,
        whole: impl Fn(Value, &BTreeSet<&str>) -> Result<Value, Answer>,
    ) -> Answer {
        if let Some(filter) = request.query("filter").filter(|filter| !filter.is_empty()) {
            self.filters.push(filter.to_owned());
            let Some(filter) = Filter::parse(filter) else { return error(400, "INVALID_FILTER", "The filter cannot be read") };
            if filter.fields().into_iter().any(|name| field(name).is_none()) {
                return error(400, "INVALID_FIELD", "A field of the filter is not known");
            }
            if !ignore_filter {
                let at = |record: &Value, name: &str| field(name).map(|path| records::at(record, &path)).unwrap_or_default();
                records.retain(|record| filter.passes(&|name| at(record, name)));
            }
        }
        match request.query("sort") {
            None => {}
            Some(sort) if sort == format!("{id}:asc") => {
                records.sort_by_key(|record| record[id].as_str().unwrap_or_default().parse::<u64>().unwrap_or(u64::MAX));
            }
            Some(_) => return error(400, "INVALID_FIELD", "A field of the sort is not known"),
        }
        let number = |name: &str, default: usize| request.query(name).map_or(Some(default), |text| text.parse::<usize>().ok());
        let (Some(page), Some(size)) = (number("page", 0), number("page-size", 100)) else {
            return error(400, "INVALID_PAGE", "A page is a number");
        };
        let size = size.clamp(1, 2000);
        let asked: Vec<_> = request.query.iter().filter(|(name, _)| name == "section").map(|(_, value)| value.as_str()).collect();
        if asked.iter().any(|section| records::SECTIONS.iter().all(|(name, _)| name != section)) {
            return error(400, "INVALID_FIELD", "A section is not known");
        }
        let asked = if asked.is_empty() { vec!["GENERAL"] } else { asked };
        let sections: BTreeSet<_> =
            records::SECTIONS.iter().filter(|(name, _)| asked.contains(name)).flat_map(|(_, fields)| fields.iter().copied()).collect();
        let total = self.total.unwrap_or(records.len() as u64);
        let start = (page * size).saturating_sub(if page > 0 { self.overlap } else { 0 });
        let mut results = Vec::new();
        for record in records.into_iter().skip(start).take(size) {
            let record = match whole(record, &sections) {
                Ok(record) => record,
                Err(answer) => return answer,
            };
            let Value::Object(fields) = record else { continue };
            let kept: Map<_, _> =
                fields.into_iter().filter(|(name, _)| always.contains(&name.as_str()) || sections.contains(name.as_str())).collect();
            results.push(Value::Object(kept));
        }
        Answer::json(json!({"totalCount": total, "results": results}))
    }
}

fn compliance(rest: &str, devices: &[Device]) -> Answer {
    let Some((kind, id)) = rest.split_once('/') else { return not_found() };
    let found = devices.iter().find(|device| device.mobile == (kind == "mobile") && records::id(device) == id);
    let Some(device) = found else { return not_found() };
    let state = match device.compliant {
        Some(true) => "COMPLIANT",
        Some(false) => "NON_COMPLIANT",
        None => "UNKNOWN",
    };
    let answer = json!([{
        "deviceId": id, "applicable": true, "complianceState": state, "complianceVendor": "Vendor",
        "complianceVendorDeviceInformation": [{"deviceIds": []}],
    }]);
    Answer::json(device.raw.get("compliance").cloned().unwrap_or(answer))
}

/// A webhook of Jamf Pro, in the form in which it is posted.
pub fn webhook(name: &str, event: Value) -> Value {
    json!({"webhook": {"eventTimestamp": 1_795_500_000_000_u64, "id": 1, "name": "Stepward", "webhookEvent": name}, "event": event})
}

/// The part of a webhook that is about a device.
pub fn event(device: &Device) -> Value {
    let id: u64 = records::id(device).parse().unwrap_or_default();
    let user = device.user.clone().unwrap_or_default();
    json!({
        "deviceName": device.name, "jssID": id, "model": "Apple", "osBuild": "24E263", "osVersion": device.os_version,
        "serialNumber": device.serial, "udid": device.udid, "userDirectoryID": "-1", "username": user.id,
    })
}

/// The inventory's own id of a device.
pub fn id(device: &Device) -> String {
    records::id(device)
}

fn not_found() -> Answer {
    error(404, "NOT_FOUND", "There is nothing at this address")
}

fn error(status: u16, code: &str, description: &str) -> Answer {
    Answer::status(
        status,
        json!({
            "httpStatus": status, "errors": [{"code": code, "field": null, "description": description, "id": "0"}],
        }),
    )
}
