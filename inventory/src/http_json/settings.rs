//! `[provider.<name>]` with `type = "http"`: its settings, and the requests that they make.

use http::{HeaderName, Method, StatusCode};
use posture::identity::IdentifierKind;
use posture::record::{Field, Fields};
use serde_json::Value;
use settings::document::Data;
use settings::{SecretSource, Section};
use url::Url;

use super::shape::{Pointer, Shape};
use crate::http::{Client, Reply, escaped};

/// The requests to an inventory, and the shape of its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Kind of the inventory's identifiers; default serial. The inventory is asked by no other kind.
    pub kind: IdentifierKind,
    /// Method of a lookup, GET or POST; default GET.
    pub method: Method,
    /// Path and query below `base_url`, with `{identifier}`.
    pub path: Path,
    /// Body of a POST: JSON, in whose texts `{identifier}` is replaced.
    pub body: Option<Value>,
    /// Secret that is sent as `Authorization: Bearer`.
    pub token: Option<SecretSource>,
    /// Other headers of every request.
    pub headers: Vec<(HeaderName, HeaderSource)>,
    /// Statuses that mean that there is no such device; default 404.
    pub not_found_status: Vec<u16>,
    /// Body that an answer with such a status has to have; default JSON.
    pub not_found_body: NotFoundBody,
    /// Places of the values in an answer.
    pub shape: Shape,
    /// `[provider.<name>.list]`: the way to list all devices.
    pub list: Option<List>,
}

/// The mark by which the service's own "no such device" is told from an answer of something before the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotFoundBody {
    /// The body is JSON, an object or a list; with 204 it may be empty.
    Json,
    /// The body is JSON with a value in this place.
    At(Pointer),
    /// The body is anything but a page for people.
    Any,
}

impl NotFoundBody {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "any" => Ok(Self::Any),
            text if text.starts_with('/') => Pointer::parse(text).map(Self::At),
            _ => Err(format!("`{text}` is neither \"json\", \"any\" nor a JSON pointer such as \"/error/code\"")),
        }
    }

    /// Returns whether an answer comes from the service itself.
    pub(super) fn is_of(&self, reply: &Reply) -> bool {
        let body = reply.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&reply.body);
        let json = || reply.json::<Value>().ok().filter(|body| body.is_object() || body.is_array());
        match self {
            Self::Any => !body.trim_ascii_start().starts_with(b"<"),
            Self::Json if reply.status == StatusCode::NO_CONTENT => true,
            Self::Json => json().is_some(),
            Self::At(pointer) => json().is_some_and(|body| pointer.find(&body).is_some_and(|said| !said.is_null())),
        }
    }
}

/// Value of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderSource {
    /// The value as it stands.
    Text(String),
    /// A secret, read from a file or variable.
    Secret(SecretSource),
}

/// The way to list all devices, with GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// Path and query below `base_url`; without `{page}` one answer has all devices.
    pub path: Path,
    /// Number of the first page; default 1.
    pub first_page: u64,
    /// Place of the items; default as in a lookup.
    pub items: Pointer,
    /// Place of the number of devices. Without it a device never counts as gone because it was not listed.
    pub total: Option<Pointer>,
}

/// A path and query with a place to be filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The address with `value`, percent-encoded, in every such place.
    pub(super) fn url(&self, client: &Client, place: &str, value: &str) -> Url {
        let filled = self.0.replace(place, &escaped(value));
        let (path, query) = filled.split_once('?').map_or((filled.as_str(), None), |(path, query)| (path, Some(query)));
        let mut url = client.url(path, &[]);
        url.set_query(query);
        url
    }

    /// Returns whether the path or query has such a place.
    pub(super) fn has(&self, place: &str) -> bool {
        self.0.contains(place)
    }

    fn parse(text: &str, place: &str) -> Result<Self, String> {
        if !text.starts_with('/') || !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains(['#', '\\']) {
            return Err(format!("`{text}` is no path: it begins with / and has no spaces, # or \\"));
        }
        if text.replace(place, "").contains(['{', '}']) {
            return Err(format!("`{text}` has a place other than {place}"));
        }
        if text.split(['/', '?']).any(|part| part == "." || part == "..") {
            return Err(format!("`{text}` leads to another path"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A body with the identifier in its texts. It is filled in as JSON, so that no identifier can end a text.
pub(super) fn filled(body: &Value, identifier: &str) -> Value {
    match body {
        Value::String(text) => Value::String(text.replace("{identifier}", identifier)),
        Value::Array(items) => items.iter().map(|item| filled(item, identifier)).collect(),
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), filled(value, identifier))).collect(),
        other => other.clone(),
    }
}

impl Settings {
    /// Reads the keys that are the service's own. Returns `None` where a needed one is missing or wrong, after reporting it.
    pub(super) fn of(section: &mut Section<'_>, base: &std::path::Path) -> Option<Self> {
        let kind = section.text("kind", |text| {
            let found = IdentifierKind::ALL.iter().copied().find(|kind| kind.as_str() == text);
            let known = || IdentifierKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
            found.ok_or_else(|| format!("`{text}` is no kind of identifier; there are {}", known()))
        });
        let method = section.text("method", |text| match text {
            "GET" => Ok(Method::GET),
            "POST" => Ok(Method::POST),
            _ => Err(format!("`{text}` is neither GET nor POST")),
        });
        let method = method.unwrap_or(Method::GET);
        if !section.has("path") {
            section.missing("path", "path = \"/devices/{identifier}\"");
        }
        let path = section.text("path", |text| Path::parse(text, "{identifier}"));
        let place = section.place().clone();
        let body = section.text("body", |text| serde_json::from_str::<Value>(text).map_err(|error| format!("is not JSON: {error}")));
        if body.is_some() && method != Method::POST {
            section.report().mistake(&place, "`body` needs method = \"POST\"");
        }
        let named = |body: &Value| filled(body, "") != *body;
        if path.as_ref().is_some_and(|path| !path.has("{identifier}")) && !body.as_ref().is_some_and(named) {
            section.report().mistake(&place, "neither `path` nor `body` has the place {identifier}, so no device would be named");
        }
        let token = if section.has("token") { SecretSource::required(section, "token", base) } else { None };
        let headers = headers(section, base);
        if token.is_some() && headers.iter().any(|(name, _)| *name == http::header::AUTHORIZATION) {
            section.report().mistake(&place, "`token` is the header Authorization already: remove either");
        }
        let not_found_status = statuses(section).unwrap_or_else(|| vec![404]);
        let not_found_body = section.text("not_found_body", NotFoundBody::parse).unwrap_or(NotFoundBody::Json);
        let shape = shape(section);
        let list = list(section, shape.as_ref());
        Some(Self {
            kind: kind.unwrap_or(IdentifierKind::Serial),
            method,
            path: path?,
            body,
            token,
            headers,
            not_found_status,
            not_found_body,
            shape: shape?,
            list,
        })
    }

    /// Fields that a record can ever hold.
    pub(super) fn known(&self) -> Fields {
        self.shape.known(self.kind)
    }

    /// Sources of the token and of the secret headers, in order.
    pub(super) fn sources(&self) -> Vec<&SecretSource> {
        let headers = self.headers.iter().filter_map(|(_, source)| match source {
            HeaderSource::Secret(source) => Some(source),
            HeaderSource::Text(_) => None,
        });
        self.token.iter().chain(headers).collect()
    }
}

/// Headers that the client itself sets, or that would make an answer unreadable.
const OURS: &[&str] = &["host", "connection", "content-length", "content-type", "transfer-encoding", "accept-encoding", "te", "upgrade"];

fn headers(section: &mut Section<'_>, base: &std::path::Path) -> Vec<(HeaderName, HeaderSource)> {
    let report = section.report();
    let Some(given) = section.section("headers") else { return Vec::new() };
    let mut headers = Vec::new();
    for (key, place, value) in given.rest() {
        let Ok(name) = HeaderName::from_bytes(key.as_bytes()) else {
            report.mistake(&place, format!("`{key}` is not the name of a header"));
            continue;
        };
        if OURS.contains(&name.as_str()) {
            report.mistake(&place, format!("the header `{name}` cannot be set"));
            continue;
        }
        if headers.iter().any(|(known, _)| *known == name) {
            report.mistake(&place, format!("the header `{name}` stands there twice"));
            continue;
        }
        let guarded = ["authorization", "cookie", "key", "token", "secret", "password"].iter().any(|word| name.as_str().contains(word));
        let source = match &value.data {
            Data::Text(text) if !guarded => {
                if http::HeaderValue::from_str(text).is_err() {
                    report.mistake(&value.place, format!("the value of `{name}` holds characters that no header can"));
                }
                Some(HeaderSource::Text(text.clone()))
            }
            _ => SecretSource::of(value, &key, base, report).map(HeaderSource::Secret),
        };
        headers.extend(source.map(|source| (name, source)));
    }
    headers
}

/// Reads the statuses that mean that there is no such device. Those of missing rights, limits and faults are never taken.
fn statuses(section: &mut Section<'_>) -> Option<Vec<u16>> {
    let report = section.report();
    let (_, statuses) = section.list("not_found_status", |item| {
        let status = match &item.data {
            Data::Integer(Some(number)) => u16::try_from(*number).ok(),
            _ => None,
        };
        let status = status.filter(|status| matches!(status, 204 | 400..=499) && ![401, 403, 407, 408, 421, 425, 429].contains(status));
        if status.is_none() {
            report.mistake(
                &item.place,
                "a status of `not_found_status` is 204 or from 400 to 499, and not one of 401, 403, 407, 408, 421, 425, 429",
            );
        }
        status
    })?;
    Some(statuses)
}

fn shape(section: &mut Section<'_>) -> Option<Shape> {
    let items = section.text("items", Pointer::parse).unwrap_or_default();
    if !section.has("identifier") {
        section.missing("identifier", "identifier = \"/serial\", where an item says which device it is");
    }
    let identifier = section.text("identifier", Pointer::parse);
    let total = section.text("total", Pointer::parse);
    let data = section.text("data", Pointer::parse);
    let report = section.report();
    let mut fields = Vec::new();
    if let Some(given) = section.section("fields") {
        let mut waiting: Vec<_> = given.rest().collect();
        waiting.reverse();
        while let Some((key, place, value)) = waiting.pop() {
            match value.data {
                // TOML reads `user.name = …` as a table.
                Data::Table(table) if key == "user" => {
                    let inner = Section::new("`user`", table, report).rest();
                    waiting.extend(inner.map(|(part, place, value)| (format!("user.{part}"), place, value)));
                }
                Data::Text(text) => {
                    let field = Field::ALL.iter().copied().find(|field| field.as_str() == key && *field != Field::Data);
                    match (field, Pointer::parse(&text)) {
                        (Some(field), Ok(pointer)) => fields.push((field, pointer)),
                        (None, _) => report.mistake(&place, format!("a device has no field `{key}`; there are {}", names())),
                        (_, Err(message)) => report.mistake(&value.place, format!("`{key}`: {message}")),
                    }
                }
                other => {
                    report.mistake(&value.place, format!("`{key}` must be a JSON pointer such as \"/mdm/enrolled\", not {}", other.name()))
                }
            }
        }
    }
    fields.sort_by_key(|(field, _)| *field);
    Some(Shape { items, identifier: identifier?, total, fields, data })
}

fn names() -> String {
    let names = Field::ALL.iter().filter(|field| **field != Field::Data).map(|field| field.as_str());
    names.collect::<Vec<_>>().join(", ")
}

fn list(section: &mut Section<'_>, shape: Option<&Shape>) -> Option<List> {
    let mut given = section.section("list")?;
    if !given.has("path") {
        given.missing("path", "path = \"/devices?page={page}\"");
    }
    let path = given.text("path", |text| Path::parse(text, "{page}"));
    let first_page = given.number("first_page", 0, 1, "").map_or(1, i64::unsigned_abs);
    let items = given.text("items", Pointer::parse);
    let total = given.text("total", Pointer::parse);
    given.finish();
    let items = items.or_else(|| shape.map(|shape| shape.items.clone())).unwrap_or_default();
    Some(List { path: path?, first_page, items, total })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_body_stays_json_whatever_the_identifier_is() {
        let body = json!({"filter": [{"serial": "{identifier}", "exact": true}], "{identifier}": 1});
        assert_eq!(
            filled(&body, r#"X","admin":"1"#),
            json!({"filter": [{"serial": r#"X","admin":"1"#, "exact": true}], "{identifier}": 1})
        );
    }

    #[test]
    fn a_path_has_one_kind_of_place() {
        for good in ["/devices/{identifier}", "/devices?serial={identifier}&again={identifier}", "/devices"] {
            assert!(Path::parse(good, "{identifier}").is_ok(), "{good}");
        }
        for bad in [
            "devices/{identifier}",
            "",
            "/{serial}",
            "/a b/{identifier}",
            "/{identifier}#x",
            "/../{identifier}",
            "/{identifier",
            "/ä/{identifier}",
        ] {
            assert!(Path::parse(bad, "{identifier}").is_err(), "{bad}");
        }
    }
}
