//! Microsoft Intune as Microsoft Graph serves it: the token endpoint of Microsoft Entra ID, managed devices with OData
//! options, devices and users of the directory, and `$batch`.
//!
//! Deliberate quirks: a `$filter` that cannot be applied is ignored; `udid` is null in a list; properties of the beta,
//! including `managementState`, are unknown in v1.0, and selecting them is an error; an application without a permission sees
//! groups without their names.

mod filter;
mod login;
mod rows;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use http::Method;
use serde_json::{Map, Value, json};

use crate::server::Answer;
use crate::{Device, RetryAfter, Seen, Service};

pub use rows::{group_id, user_id};

/// Id of the fake's tenant.
pub const TENANT: &str = "6f1b2c3d-0000-4000-8000-00000000aaaa";

/// Id of the fake's application, whose secret is `secret`.
pub const CLIENT: &str = "6f1b2c3d-0000-4000-8000-00000000bbbb";

/// Permission to read managed devices.
pub const MANAGED_DEVICES: &str = "DeviceManagementManagedDevices.Read.All";
/// Permission to read devices of the directory and their memberships.
pub const DEVICES: &str = "Device.Read.All";
/// Permission to read the names of groups.
pub const GROUPS: &str = "GroupMember.Read.All";
/// Permission to read users.
pub const USERS: &str = "User.Read.All";

/// The fake, and a handle to change its behaviour while it runs.
#[derive(Clone)]
pub struct Intune(Arc<Mutex<Inner>>);

type Assertion = Box<dyn Fn(&str) -> bool + Send>;

struct Inner {
    assertion: Option<Assertion>,
    permissions: BTreeSet<String>,
    expires_in: Value,
    /// Number of tokens that were issued, and of the first that is valid.
    issued: usize,
    good_from: usize,
    page_size: usize,
    next_link: NextLink,
    strict_filters: bool,
    exact_case: bool,
    unknown_properties: BTreeSet<String>,
    deleted_users: BTreeSet<String>,
    disabled_users: BTreeSet<String>,
    /// Faults for requests within a batch whose address contains the text.
    items: Vec<(String, u16, RetryAfter)>,
    broken: bool,
    literals: Vec<String>,
    /// Pairs of groups, the first of which is a member of the second.
    nested: Vec<(String, String)>,
    /// Index of devices by every id that leads to them, as of the last time that an id was not found.
    index: RefCell<HashMap<String, usize>>,
}

/// The link to the next page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextLink {
    /// The right link.
    Proper,
    /// A link to the same page, for ever.
    Loop,
    /// The right path at another host.
    Foreign(String),
    /// The right link, to a page that begins with the last row of this one.
    Overlapping,
    /// The right link, and after the last page an empty one.
    EmptyLast,
}

impl Default for Intune {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Intune {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Intune")
    }
}

impl Intune {
    /// Makes a tenant with one application, which may read everything.
    pub fn new() -> Self {
        let permissions = [MANAGED_DEVICES, DEVICES, GROUPS, USERS].map(str::to_owned);
        Self(Arc::new(Mutex::new(Inner {
            assertion: None,
            permissions: BTreeSet::from(permissions),
            expires_in: json!(3599),
            issued: 0,
            good_from: 0,
            page_size: 1000,
            next_link: NextLink::Proper,
            strict_filters: false,
            exact_case: false,
            unknown_properties: BTreeSet::new(),
            deleted_users: BTreeSet::new(),
            disabled_users: BTreeSet::new(),
            items: Vec::new(),
            broken: false,
            literals: Vec::new(),
            nested: Vec::new(),
            index: RefCell::default(),
        })))
    }

    /// Accepts client assertions for which `check` returns true, and no longer the secret.
    pub fn take_assertions(&self, check: impl Fn(&str) -> bool + Send + 'static) {
        self.lock().assertion = Some(Box::new(check));
    }

    /// Grants these application permissions, and no others.
    pub fn permit(&self, permissions: &[&str]) {
        self.lock().permissions = permissions.iter().map(|name| (*name).to_owned()).collect();
    }

    /// Sets `expires_in` of the next tokens; null omits it.
    pub fn expires_in(&self, value: Value) {
        self.lock().expires_in = value;
    }

    /// Refuses every token issued so far.
    pub fn revoke(&self) {
        let mut inner = self.lock();
        inner.good_from = inner.issued;
    }

    /// Sets the number of rows in a page.
    pub fn page_size(&self, rows: usize) {
        self.lock().page_size = rows;
    }

    /// Sets the form of the link to the next page.
    pub fn next_link(&self, next_link: NextLink) {
        self.lock().next_link = next_link;
    }

    /// Sets whether a filter that cannot be applied is an error; otherwise it is ignored.
    pub fn strict_filters(&self, strict: bool) {
        self.lock().strict_filters = strict;
    }

    /// Sets whether `eq` is case-sensitive.
    pub fn exact_case(&self, exact: bool) {
        self.lock().exact_case = exact;
    }

    /// Makes `$select` of this property an error.
    pub fn forget_property(&self, property: &str) {
        self.lock().unknown_properties.insert(property.to_owned());
    }

    /// Removes a user from the directory, but not its devices.
    pub fn delete_user(&self, login: &str) {
        self.lock().deleted_users.insert(user_id(login));
    }

    /// Disables the account of a user.
    pub fn disable_user(&self, login: &str) {
        self.lock().disabled_users.insert(user_id(login));
    }

    /// Answers with this status to requests within a batch whose address contains the text.
    pub fn fail_items(&self, containing: &str, status: u16, retry_after: RetryAfter) {
        self.lock().items.push((containing.to_owned(), status, retry_after));
    }

    /// Makes a group a member of another one.
    pub fn nest(&self, inner: &str, outer: &str) {
        self.lock().nested.push((inner.to_owned(), outer.to_owned()));
    }

    /// Removes all faults for requests within a batch.
    pub fn mend_items(&self) {
        self.lock().items.clear();
    }

    /// Sets whether Intune itself fails with 500, with a message that is JSON in a string.
    pub fn break_down(&self, broken: bool) {
        self.lock().broken = broken;
    }

    /// The serial numbers in the filters so far, as the fake parsed them.
    pub fn literals(&self) -> Vec<String> {
        self.lock().literals.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }
}

impl Service for Intune {
    fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
        let mut inner = self.lock();
        if self.is_login(request) {
            return inner.login(request);
        }
        let bearer = request.header("authorization").and_then(|value| value.strip_prefix("Bearer token-")).and_then(|n| n.parse().ok());
        if !bearer.is_some_and(|number: usize| (inner.good_from..inner.issued).contains(&number)) {
            return error(401, "InvalidAuthenticationToken", "Access token has expired or is not yet valid.");
        }
        let Some((version, path)) = split_version(&request.path) else { return not_found() };
        if path == "/$batch" {
            return if request.method == Method::POST {
                inner.batch(version, request, devices)
            } else {
                error(405, "BadRequest", "POST it.")
            };
        }
        if request.method != Method::GET {
            return error(405, "Request_BadRequest", "Specified HTTP method is not allowed for the request target.");
        }
        let host = request.header("host").unwrap_or_default().to_owned();
        inner.get(&Get { version, path, query: &request.query, host: &host }, devices, ignore_filter)
    }

    fn is_login(&self, request: &Seen) -> bool {
        request.path.ends_with("/oauth2/v2.0/token")
    }

    /// The serial number if there is one filter with one; otherwise the filter as it came, which is no identifier.
    fn asked(&self, request: &Seen) -> Option<String> {
        let mut filters = request.query.iter().filter(|(name, _)| name == "$filter").map(|(_, filter)| filter);
        let filter = filters.next()?;
        let understood = filter::parse(filter);
        let mut serials = understood.iter().flat_map(filter::Filter::serials);
        match (serials.next(), serials.next(), filters.next()) {
            (Some(serial), None, None) => Some(serial.to_owned()),
            _ => Some(filter.clone()),
        }
    }
}

/// A GET, alone or within a batch.
struct Get<'r> {
    version: &'r str,
    path: &'r str,
    query: &'r [(String, String)],
    host: &'r str,
}

impl Get<'_> {
    fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Inner {
    fn batch(&mut self, version: &str, request: &Seen, devices: &[Device]) -> Answer {
        let body = request.json();
        let Some(requests) = body["requests"].as_array() else { return error(400, "BadRequest", "Invalid batch payload format.") };
        let ids: BTreeSet<_> = requests.iter().filter_map(|item| item["id"].as_str()).map(str::to_lowercase).collect();
        if requests.len() > 20 || ids.len() != requests.len() {
            return error(400, "BadRequest", "Number of batch request steps exceeds the maximum value of 20, or their ids are not unique.");
        }
        let host = request.header("host").unwrap_or_default().to_owned();
        let mut responses: Vec<Value> = requests
            .iter()
            .map(|item| {
                let answer = self.item(version, item, &host, devices);
                let headers: Map<String, Value> = answer.headers.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
                json!({"id": item["id"], "status": answer.status, "headers": headers, "body": answer.body})
            })
            .collect();
        // Graph answers in any order.
        responses.reverse();
        Answer::json(json!({"responses": responses}))
    }

    fn item(&mut self, version: &str, item: &Value, host: &str, devices: &[Device]) -> Answer {
        let address = item["url"].as_str().unwrap_or_default();
        if let Some((_, status, retry_after)) = self.items.iter().find(|(containing, ..)| address.contains(containing.as_str())) {
            let answer = error(*status, "TooManyRequests", "an error of this request alone");
            return match retry_after.value() {
                Some(value) => answer.with("Retry-After", value),
                None => answer,
            };
        }
        if item["method"] != "GET" {
            return error(405, "Request_BadRequest", "Specified HTTP method is not allowed for the request target.");
        }
        let (path, query) = address.split_once('?').unwrap_or((address, ""));
        let query: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        self.get(&Get { version, path, query: &query, host }, devices, false)
    }

    fn get(&mut self, request: &Get<'_>, devices: &[Device], ignore_filter: bool) -> Answer {
        let path = request.path;
        if path == "/deviceManagement/managedDevices" {
            return match self.intune(request) {
                Some(refusal) => refusal,
                None => self.list(request, devices, ignore_filter),
            };
        }
        if let Some(id) = path.strip_prefix("/deviceManagement/managedDevices/") {
            return self.intune(request).unwrap_or_else(|| match self.find(devices, id) {
                Some(device) => {
                    Answer::json(Value::Object(rows::select(rows::device(device), request.query("$select").unwrap_or(rows::LISTED))))
                }
                None => error(404, "ResourceNotFound", "{\"_version\":3,\"Message\":\"An error has occurred\"}"),
            });
        }
        let membership = path.strip_prefix("/devices(deviceId='").and_then(|rest| rest.strip_suffix("')/transitiveMemberOf"));
        if let Some(id) = membership {
            return if self.may(DEVICES) { self.memberships(request, id, devices) } else { denied() };
        }
        if let Some(id) = path.strip_prefix("/users/") {
            return if self.may(USERS) { self.user(request, id, devices) } else { denied() };
        }
        let permission = match path {
            "/devices" => DEVICES,
            "/groups" => GROUPS,
            "/users" => USERS,
            _ => return not_found(),
        };
        if self.may(permission) { Answer::json(json!({"value": []})) } else { denied() }
    }

    /// The device with this id as its own, as that of its object in the directory, or as that of its user.
    fn find<'d>(&self, devices: &'d [Device], id: &str) -> Option<&'d Device> {
        let id = id.to_lowercase();
        let known = |index: &HashMap<String, usize>| devices.get(*index.get(&id)?).filter(|device| rows::ids(device).any(|own| own == id));
        let found = known(&self.index.borrow());
        if found.is_some() {
            return found;
        }
        // The devices have changed since, or none has this id.
        let all = devices.iter().enumerate().rev().flat_map(|(at, device)| rows::ids(device).map(move |own| (own, at)));
        self.index.replace(all.collect());
        known(&self.index.borrow())
    }

    fn may(&self, permission: &str) -> bool {
        self.permissions.contains(permission)
    }

    /// The error of Intune for a request, if any.
    fn intune(&self, request: &Get<'_>) -> Option<Answer> {
        if self.broken {
            let nested = json!({
                "_version": 3,
                "Message": "An error has occurred - Operation ID (for customer support): 00000000-0000-0000-0000-000000000000",
                "CustomApiErrorPhrase": "",
                "RetryAfter": null,
                "ErrorSourceService": "",
                "HttpHeaders": "{}",
            });
            return Some(error(500, "InternalServerError", &nested.to_string()));
        }
        if !self.may(MANAGED_DEVICES) {
            let nested = json!({
                "_version": 3,
                "Message": format!("Application is not authorized to perform this operation. It must have one of these scopes: {MANAGED_DEVICES}"),
                "CustomApiErrorPhrase": "",
                "RetryAfter": null,
            });
            return Some(error(403, "Forbidden", &nested.to_string()));
        }
        let selected = request.query("$select").unwrap_or_default().split(',').filter(|name| !name.is_empty());
        let unknown = |name: &&str| {
            self.unknown_properties.contains(*name)
                || !(rows::KNOWN.contains(name) || request.version == "beta" && rows::BETA.contains(name))
        };
        let unknown = selected.into_iter().find(unknown)?;
        let text = format!(
            "Parsing OData Select and Expand failed: Could not find a property named '{unknown}' on type 'microsoft.graph.managedDevice'."
        );
        Some(error(400, "BadRequest", &text))
    }

    fn list(&mut self, request: &Get<'_>, devices: &[Device], ignore_filter: bool) -> Answer {
        // A link to a next page continues the list as the first page began it.
        let token = request.query("$skiptoken").unwrap_or("some-0");
        let (kind, start) = token.split_once('-').unwrap_or(("some", "0"));
        let filter = match request.query("$filter").map(filter::parse) {
            None => None,
            Some(Some(filter)) => Some(filter),
            Some(None) if self.strict_filters => return error(400, "BadRequest", "Invalid filter clause"),
            Some(None) => None,
        };
        if let (Some(filter), "0") = (&filter, start) {
            self.literals.extend(filter.serials().map(str::to_owned));
        }
        let ignored = ignore_filter || kind == "all";
        let exact_case = self.exact_case;
        let fitting: Vec<&Device> = match filter.filter(|_| !ignored) {
            Some(filter) => devices.iter().filter(|device| filter.fits(device, exact_case)).collect(),
            None => devices.iter().collect(),
        };
        let chosen = request.query("$select").unwrap_or(rows::LISTED).to_owned();
        let row = |device: &&Device| {
            let mut row = rows::device(device);
            for hidden in rows::HIDDEN_IN_LISTS {
                row.insert((*hidden).to_owned(), Value::Null);
            }
            Value::Object(rows::select(row, &chosen))
        };
        self.page(request, if ignored { "all" } else { "some" }, start, &fitting, row)
    }

    fn page<T>(&self, request: &Get<'_>, kind: &str, start: &str, rows: &[T], write: impl Fn(&T) -> Value) -> Answer {
        let start: usize = start.parse().unwrap_or(0);
        let size = request.query("$top").and_then(|top| top.parse().ok()).unwrap_or(self.page_size).min(self.page_size).max(1);
        let end = (start + size).min(rows.len());
        let value: Vec<Value> = rows.get(start..end).unwrap_or_default().iter().map(write).collect();
        let mut body = json!({"@odata.context": "metadata", "@odata.count": rows.len(), "value": value});
        let next = match &self.next_link {
            NextLink::Loop => Some(start),
            NextLink::EmptyLast if start < rows.len() => Some(end),
            NextLink::Overlapping if end < rows.len() => Some(end - usize::from(size > 1)),
            _ if end < rows.len() => Some(end),
            _ => None,
        };
        if let Some(next) = next {
            let host = if let NextLink::Foreign(host) = &self.next_link { host } else { request.host };
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.extend_pairs(request.query.iter().filter(|(name, _)| name != "$skiptoken"));
            query.append_pair("$skiptoken", &format!("{kind}-{next}"));
            let (version, path) = (request.version, request.path);
            body["@odata.nextLink"] = json!(format!("http://{host}/{version}{path}?{}", query.finish()));
        }
        Answer::json(body)
    }

    fn memberships(&self, request: &Get<'_>, id: &str, devices: &[Device]) -> Answer {
        let Some(device) = self.find(devices, id) else { return missing(id) };
        let name = |name: &str| if self.may(GROUPS) { json!(name) } else { Value::Null };
        let unit = json!({"@odata.type": "#microsoft.graph.administrativeUnit", "id": group_id("unit"), "displayName": null});
        let mut all = device.groups.clone();
        let mut at = 0;
        while let Some(inner) = all.get(at).cloned() {
            let outer = self.nested.iter().filter(|(known, outer)| *known == inner && !all.contains(outer)).map(|(_, outer)| outer.clone());
            all.extend(outer.collect::<Vec<_>>());
            at += 1;
        }
        let groups =
            all.iter().map(|group| json!({"@odata.type": "#microsoft.graph.group", "id": group_id(group), "displayName": name(group)}));
        let start = request.query("$skiptoken").and_then(|token| token.split_once('-')).map_or("0", |(_, start)| start).to_owned();
        self.page(request, "some", &start, &std::iter::once(unit).chain(groups).collect::<Vec<_>>(), Value::clone)
    }

    fn user(&self, request: &Get<'_>, id: &str, devices: &[Device]) -> Answer {
        let known = self.find(devices, id);
        let Some(user) = known.and_then(|device| device.user.as_ref()).filter(|_| !self.deleted_users.contains(id)) else {
            return missing(id);
        };
        let row = json!({
            "id": id,
            "displayName": user.name,
            "mail": user.email,
            "userPrincipalName": user.email,
            "department": user.department,
            "jobTitle": "Analyst",
            "accountEnabled": !self.disabled_users.contains(id),
        });
        let Value::Object(row) = row else { return missing(id) };
        Answer::json(Value::Object(rows::select(row, request.query("$select").unwrap_or("id,displayName,mail,jobTitle"))))
    }
}

fn split_version(path: &str) -> Option<(&str, &str)> {
    let (version, _) = path.strip_prefix('/')?.split_once('/')?;
    ["v1.0", "beta"].contains(&version).then(|| (version, &path[version.len() + 1..]))
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    let body = json!({"error": {"code": code, "message": message, "innerError": {
        "date": "2026-11-24T08:00:00",
        "request-id": "00000000-0000-4000-8000-000000000003",
        "client-request-id": "00000000-0000-4000-8000-000000000003",
    }}});
    Answer::status(status, body).with("request-id", "00000000-0000-4000-8000-000000000003")
}

fn denied() -> Answer {
    error(403, "Authorization_RequestDenied", "Insufficient privileges to complete the operation.")
}

fn missing(id: &str) -> Answer {
    let text = format!("Resource '{id}' does not exist or one of its queried reference-property objects are not present.");
    error(404, "Request_ResourceNotFound", &text)
}

fn not_found() -> Answer {
    error(404, "BadRequest", "Resource not found for the segment.")
}
