//! A whole provider in one file, to begin from: the client of a service that does not exist, and below it its fake and its tests.
//! It is there for tests and documentation alone, and is no `type` of a provider.
//!
//! The service answers `GET /devices?limit=100&search=…&after=…` with `{"devices": […], "more": true}`. A search is for a part of
//! a serial number or of a UDID, and `after` is the id of the last device that came. A device that left stays, with the status
//! `left`. Of other services, another module is the example: see [Models](crate#models).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use posture::identity::{IdentifierKind, normal, same};
use posture::record::{Fact, Field, Fields, Form, Record, User};
use posture::secret::Secret;
use posture::time::UnixTime;
use serde_json::Value;
use settings::{SecretSource, Section};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::{Answer, Unavailable};
use crate::http::{Client, Endpoint, LOOKUP, PAGE, RECORDS, Reply, secret_header};
use crate::inventory::{Finding, Inventory, Listed, Listing, Question, State};
use crate::leftovers::Leftovers;
use crate::lenient;
use crate::setup::{Defaults, Setup};
use crate::shown::{Row, Shown};

/// The service's word in `type = "…"`.
pub(crate) const NAME: &str = "example";

/// `[provider.<name>]` with `type = "example"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Source of an API token.
    pub token: SecretSource,
}

impl Setup for Settings {
    fn name(&self) -> &'static str {
        NAME
    }

    fn defaults() -> Defaults {
        // Each customer has an own address. The service bears 30 requests a second.
        Defaults { base_url: None, connections: 3, per_second: 20 }
    }

    fn read(section: &mut Section<'_>, base: &Path) -> Option<Self> {
        Some(Self { token: SecretSource::required(section, "token", base)? })
    }

    fn secrets(&self) -> Vec<&SecretSource> {
        vec![&self.token]
    }

    fn open(&self, endpoint: &Endpoint, secrets: &[Secret]) -> Result<Arc<dyn Inventory>, String> {
        let token = secret_header("token", "Bearer ", secrets.first())?;
        Ok(Arc::new(Example { client: Client::new(endpoint)?, token }))
    }

    fn fields(&self) -> Fields {
        FIELDS
    }
}

/// A customer of the service.
#[derive(Debug)]
pub struct Example {
    client: Client,
    /// Value of the header with the token; marked as sensitive, so it does not print.
    token: HeaderValue,
}

#[async_trait]
impl Inventory for Example {
    fn fields(&self) -> Fields {
        FIELDS
    }

    fn asks(&self, kind: IdentifierKind) -> bool {
        matches!(kind, IdentifierKind::Serial | IdentifierKind::Udid)
    }

    // No document says whether the search minds the case of letters.
    fn minds_spelling(&self) -> bool {
        true
    }

    async fn lookup(&self, question: &Question) -> Answer {
        if !self.asks(question.device.kind()) {
            return Answer::InvalidIdentifier;
        }
        self.find(question).await.unwrap_or_else(Answer::Unavailable)
    }

    fn listing(&self) -> Listing {
        Listing::Whole
    }

    async fn list(&self, _since: Option<UnixTime>, _need: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        let mut walk = Walk::new(self, None);
        let mut leftovers = Leftovers::default();
        let mut complete = true;
        // A page without a new device is the last one, so this bound on devices is one on pages as well.
        while walk.seen.len() < RECORDS {
            let page = walk.next(Instant::now() + PAGE_TIME, PAGE).await?;
            complete &= !page.gap && walk.seen.len() <= RECORDS;
            let mut records = leftovers.sift(page.rows.iter().map(|row| (has_left(row), of_row(row))));
            if page.last {
                records.extend(std::mem::take(&mut leftovers).rest());
            }
            // The receiver may have gone.
            if !records.is_empty() && pages.send(records).await.is_err() {
                break;
            }
            if page.last {
                return Ok(Listed { complete });
            }
        }
        Ok(Listed { complete: false })
    }

    async fn probe(&self, deadline: Instant) -> Vec<Finding> {
        let reply = match self.get(&[("limit", "1")], deadline, LOOKUP).await {
            Ok(reply) => reply,
            Err(fault) => return vec![faulty(fault)],
        };
        let clock = reply.clock_skew().map(|(skew, ahead)| Finding::clock(skew, ahead));
        let mut findings = match reply.ok().and_then(|reply| devices(&reply)) {
            Ok(_) => vec![Finding::good("address", "it answers"), Finding::good("credentials", "the token is taken")],
            Err(fault) => return [Some(faulty(fault)), clock].into_iter().flatten().collect(),
        };
        findings.extend(clock);
        findings.push(match Walk::new(self, Some(NO_SERIAL)).next(deadline, LOOKUP).await {
            Ok(page) if page.rows.is_empty() => Finding::good("search", "a search for a serial number that nobody has finds none"),
            Ok(_) => Finding {
                check: "search".to_owned(),
                state: State::Doubtful,
                detail: "a search for one serial number finds other devices, so that no device is known to be absent".to_owned(),
                fix: "write [provider.<name>.sync], so that lookups are answered from a list".to_owned(),
            },
            Err(fault) => faulty(fault),
        });
        findings
    }
}

impl Example {
    /// Gets devices.
    ///
    /// # Errors
    /// The errors of [`Client::send`].
    async fn get(&self, query: &[(&str, &str)], deadline: Instant, most: usize) -> Result<Reply, Unavailable> {
        let request = self.client.get(self.client.url("/devices", query)).header(AUTHORIZATION, self.token.clone());
        self.client.send(request, deadline, most).await
    }

    async fn find(&self, question: &Question) -> Result<Answer, Unavailable> {
        let (kind, wanted) = (question.device.kind(), question.device.normal());
        let mut walk = Walk::new(self, Some(question.device.stated().trim_ascii()));
        let (mut current, mut left, mut foreign) = (Vec::new(), Vec::new(), false);
        for _ in 0..MOST_LOOKUP_PAGES {
            let page = walk.next(question.deadline, LOOKUP).await?;
            // A device that was missed may be the one, or another one of the same identifier.
            if page.gap {
                return Err(Unavailable::Protocol);
            }
            for row in page.rows {
                match identifier(&row, kind) {
                    Fact::Value(text) if same(kind, &text, wanted) && has_left(&row) => left.push(row),
                    Fact::Value(text) if same(kind, &text, wanted) => current.push(row),
                    // An identifier that cannot be read may be this one.
                    Fact::Unknown => return Err(Unavailable::Protocol),
                    Fact::Value(_) | Fact::Absent => foreign |= !has(&row, wanted),
                }
            }
            if page.last {
                let found = if current.is_empty() { left } else { current };
                return match found.as_slice() {
                    // The search did nothing, and no count proves that these were all devices.
                    [] if foreign => Err(Unavailable::FilterIgnored),
                    [] => Ok(Answer::NotFound),
                    [row] => Ok(Answer::Found(of_row(row).into())),
                    _ => Ok(Answer::Ambiguous),
                };
            }
        }
        Err(Unavailable::FilterIgnored)
    }
}

/// The devices of the service, page by page.
struct Walk<'s> {
    service: &'s Example,
    /// The text that is searched for; `None`: all devices are asked for.
    search: Option<&'s str>,
    /// Id of the last device that came.
    after: Option<String>,
    seen: Shown<String>,
}

/// A page of devices.
struct Page {
    rows: Vec<Value>,
    /// Whether this is the last page.
    last: bool,
    /// Whether a device came again, or an announced page brought no new one: another device may have been missed.
    gap: bool,
}

impl<'s> Walk<'s> {
    fn new(service: &'s Example, search: Option<&'s str>) -> Self {
        Self { service, search, after: None, seen: Shown::default() }
    }

    /// Reads the next page.
    ///
    /// # Errors
    /// The errors of [`Example::get`] and [`Reply::ok`]; [`Unavailable::Protocol`] where a device has no id.
    async fn next(&mut self, deadline: Instant, most: usize) -> Result<Page, Unavailable> {
        let mut query = vec![("limit", PER_PAGE)];
        query.extend(self.search.map(|text| ("search", text)));
        query.extend(self.after.as_deref().map(|id| ("after", id)));
        let reply = self.service.get(&query, deadline, most).await?;
        let (items, more) = devices(&if self.search.is_some() { reply.about_one() } else { reply.ok() }?)?;
        let before = self.seen.len();
        let (mut rows, mut gap) = (Vec::with_capacity(items.len()), false);
        for item in items {
            let id = id(&item).ok_or(Unavailable::Protocol)?;
            let row = self.seen.take(id.clone(), &item);
            gap |= row != Row::New;
            // Both rows of a contradiction are sent, so that neither is believed.
            if row != Row::Slipped {
                rows.push(item);
            }
            self.after = Some(id);
        }
        let stuck = more && self.seen.len() == before;
        Ok(Page { rows, last: !more || stuck, gap: gap || stuck })
    }
}

/// The devices of an answer, and whether there are more. An answer of another shape is none.
fn devices(reply: &Reply) -> Result<(Vec<Value>, bool), Unavailable> {
    let mut answer: Value = reply.json()?;
    if lenient::fails(&answer) {
        return Err(Unavailable::Protocol);
    }
    let more = answer.get("more").and_then(Value::as_bool).ok_or(Unavailable::Protocol)?;
    match answer.get_mut("devices").map(Value::take) {
        Some(Value::Array(items)) => Ok((items, more)),
        _ => Err(Unavailable::Protocol),
    }
}

/// The service's id of a device: a text or a number.
fn id(row: &Value) -> Option<String> {
    lenient::text(row.get("id")).value().filter(|id| id.len() <= 128).cloned()
}

/// The identifier of one kind; unknown where a device may have one that cannot be read.
fn identifier(row: &Value, kind: IdentifierKind) -> Fact<String> {
    lenient::text(row.get(if kind == IdentifierKind::Udid { "udid" } else { "serial" }))
}

/// Returns whether a search for this text should find the device.
fn has(row: &Value, part: &str) -> bool {
    let has = |kind| identifier(row, kind).value().is_some_and(|text| normal(text).contains(part));
    has(IdentifierKind::Serial) || has(IdentifierKind::Udid)
}

/// Returns whether the device left: a later enrolment of it takes the place of this row.
fn has_left(row: &Value) -> bool {
    managed(row) == Fact::Value(false)
}

/// Whether the device is managed; a status that no document names says nothing.
fn managed(row: &Value) -> Fact<bool> {
    match row.get("status").and_then(Value::as_str) {
        Some("enrolled") => Fact::Value(true),
        Some("left") => Fact::Value(false),
        _ => Fact::Unknown,
    }
}

fn of_row(row: &Value) -> Record {
    Record {
        provider_id: id(row).unwrap_or_default(),
        form: match row.get("platform").and_then(Value::as_str) {
            Some("macOS") => Fact::Value(Form::Computer),
            Some("iOS" | "iPadOS") => Fact::Value(Form::MobileDevice),
            _ => Fact::Unknown,
        },
        serial: identifier(row, IdentifierKind::Serial),
        udid: identifier(row, IdentifierKind::Udid),
        name: lenient::text(row.get("name")),
        os_version: lenient::text(row.get("os_version")),
        managed: managed(row),
        groups: lenient::groups(row.get("groups")),
        // The service writes null for what a device has not reported.
        encrypted: lenient::flag(row.get("encrypted").filter(|said| !said.is_null())),
        user: User { email: lenient::text(row.get("mail")), ..User::default() },
        last_seen: lenient::time(row.get("seen")),
        ..Record::default()
    }
}

/// What an operator should do about a question that was not answered.
fn faulty(fault: Unavailable) -> Finding {
    Finding::fault(fault, "make a token in the console, and put it into the file that `token` names", "let the token read devices")
}

/// Fields that a record can hold: those that [`of_row`] sets.
const FIELDS: Fields = Fields::of(&[
    Field::ProviderId,
    Field::Form,
    Field::Serial,
    Field::Udid,
    Field::Name,
    Field::OsVersion,
    Field::Managed,
    Field::Groups,
    Field::Encrypted,
    Field::UserEmail,
    Field::LastSeen,
]);
/// Devices on a page, the most that the service gives.
const PER_PAGE: &str = "100";
/// Most pages of a search: 2,000 devices, where the search does nothing.
const MOST_LOOKUP_PAGES: usize = 20;
/// Time for a page of a list.
const PAGE_TIME: Duration = Duration::from_secs(30);
/// A serial number that no maker gives.
const NO_SERIAL: &str = "stepward-no-such-device";

#[cfg(test)]
mod tests {
    use fakes::server::{Answer as Said, Seen, Service};
    use fakes::{Device, Fake, Fault};
    use posture::identity::DeviceId;
    use posture::record::Group;
    use serde_json::json;

    use super::*;
    use crate::inventory::Way;

    /// The fake, which a real provider has in `fakes/src/`.
    struct Management;

    impl Service for Management {
        fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Said {
            if request.header("authorization") != Some("Bearer secret") {
                return Said::status(401, json!({"error": "unauthorized"}));
            }
            if request.path != "/devices" {
                return Said::status(404, json!({"error": "not found"}));
            }
            let search = request.query("search").filter(|_| !ignore_filter).unwrap_or_default().to_lowercase();
            let after = request.query("after").unwrap_or_default();
            let fits = |device: &&Device| {
                let has = |text: &str| text.to_lowercase().contains(&search);
                id(device).as_str() > after && (has(&device.serial) || has(&device.udid))
            };
            let mut found: Vec<&Device> = devices.iter().filter(fits).collect();
            found.sort_by_key(|device| id(device));
            let limit = request.query("limit").and_then(|limit| limit.parse().ok()).unwrap_or(10).clamp(1, 100);
            let page: Vec<Value> = found.iter().take(limit).map(|device| row(device)).collect();
            Said::json(json!({"devices": page, "more": found.len() > limit}))
        }

        fn asked(&self, request: &Seen) -> Option<String> {
            request.query("search").map(str::to_owned)
        }
    }

    fn id(device: &Device) -> String {
        if device.id.is_empty() { format!("id-{}", device.serial) } else { device.id.clone() }
    }

    fn row(device: &Device) -> Value {
        let mut row = json!({
            "id": id(device), "serial": device.serial, "udid": device.udid, "name": device.name, "os_version": device.os_version,
            "platform": if device.mobile { "iOS" } else { "macOS" }, "status": if device.managed { "enrolled" } else { "left" },
            "groups": device.groups, "encrypted": if device.mobile { Value::Null } else { json!(true) },
            "mail": device.user.as_ref().map(|user| &user.email), "seen": device.last_seen,
        });
        for (name, value) in &device.raw {
            row[name] = value.clone();
        }
        row
    }

    /// A provider and the fake that it asks, which a real provider has from `Stand::open` in `sidecar/tests/providers/main.rs`.
    async fn stand() -> (Arc<dyn Inventory>, Fake) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let fake = Fake::start(Management).await;
        let endpoint = Endpoint { base_url: fake.url().parse().unwrap(), ca_file: None, connections: 3 };
        let settings = Settings { token: SecretSource::Env("TOKEN".to_owned()) };
        (settings.open(&endpoint, &[Secret::new(b"secret".to_vec())]).unwrap(), fake)
    }

    async fn ask(inventory: &Arc<dyn Inventory>, kind: IdentifierKind, identifier: &str) -> Answer {
        let device = DeviceId::new(kind, identifier).unwrap();
        let deadline = Instant::now() + Duration::from_secs(3);
        inventory.lookup(&Question { device, need: FIELDS, hint: None, deadline, way: Way::Webhook }).await
    }

    async fn serial(inventory: &Arc<dyn Inventory>, serial: &str) -> Answer {
        ask(inventory, IdentifierKind::Serial, serial).await
    }

    fn found(answer: Answer) -> Arc<Record> {
        let Answer::Found(record) = answer else { panic!("{answer:?}") };
        record
    }

    async fn list(inventory: &Arc<dyn Inventory>) -> (Vec<Record>, Result<Listed, Unavailable>) {
        let (sender, mut pages) = mpsc::channel(100);
        let listed = inventory.list(None, FIELDS, sender).await;
        let mut records = Vec::new();
        while let Some(page) = pages.recv().await {
            records.extend(page);
        }
        (records, listed)
    }

    #[tokio::test]
    async fn reads_every_field() {
        let (inventory, fake) = stand().await;
        fake.add(Device::computer("C02A").in_groups(&["Staff"]));
        let record = found(serial(&inventory, "C02A").await);
        assert_eq!(record.known(), inventory.fields());
        assert_eq!((&record.form, &record.managed), (&Fact::Value(Form::Computer), &Fact::Value(true)));
        assert_eq!(record.groups, Fact::Value(vec![Group { id: String::new(), name: "Staff".to_owned() }]));
        assert_eq!(record.user.email, Fact::Value("ada@example.org".to_owned()));
        fake.set(vec![Device::phone("C02A").with("status", json!("pending"))]);
        let phone = found(serial(&inventory, "C02A").await);
        assert_eq!((&phone.encrypted, &phone.managed), (&Fact::Unknown, &Fact::Unknown));
    }

    #[tokio::test]
    async fn finds_a_device_by_either_identifier_and_by_no_part_of_one() {
        let (inventory, fake) = stand().await;
        let device = Device::computer("C02AB");
        let udid = device.udid.clone();
        fake.add(device);
        assert_eq!(found(serial(&inventory, "c02ab").await).serial, Fact::Value("C02AB".to_owned()));
        assert_eq!(found(ask(&inventory, IdentifierKind::Udid, &udid).await).udid, Fact::Value(udid));
        assert_eq!(serial(&inventory, "C02A").await, Answer::NotFound);
        assert_eq!(ask(&inventory, IdentifierKind::Hostname, "C02AB").await, Answer::InvalidIdentifier);
    }

    #[tokio::test]
    async fn a_search_that_does_nothing_proves_no_absence() {
        let (inventory, fake) = stand().await;
        fake.set((0..250).map(|number| Device::computer(&format!("C02{number:03}"))).collect());
        fake.fail(Some(Fault::FilterIgnored));
        assert_eq!(found(serial(&inventory, "C02249").await).serial, Fact::Value("C02249".to_owned()));
        assert_eq!(serial(&inventory, "DEF").await, Answer::Unavailable(Unavailable::FilterIgnored));
        fake.set((0..2001).map(|number| Device::computer(&format!("C02{number:04}"))).collect());
        assert_eq!(serial(&inventory, "C022000").await, Answer::Unavailable(Unavailable::FilterIgnored));
    }

    #[tokio::test]
    async fn an_enrolment_takes_the_place_of_an_earlier_one() {
        let (inventory, fake) = stand().await;
        let left = |id: &str| Device { id: id.to_owned(), managed: false, ..Device::computer("C02A") };
        let current = |id: &str| Device { id: id.to_owned(), ..Device::computer("C02A") };
        fake.set(vec![left("1"), current("2"), left("3")]);
        assert_eq!(found(serial(&inventory, "C02A").await).provider_id, "2");
        let (records, listed) = list(&inventory).await;
        assert_eq!((records.len(), records[0].provider_id.as_str(), listed), (1, "2", Ok(Listed { complete: true })));
        fake.set(vec![left("1")]);
        assert_eq!(found(serial(&inventory, "C02A").await).managed, Fact::Value(false));
        assert_eq!(list(&inventory).await.0.len(), 1);
        for twins in [[left("1"), left("2")], [current("1"), current("2")]] {
            fake.set(twins.to_vec());
            assert_eq!(serial(&inventory, "C02A").await, Answer::Ambiguous);
        }
    }

    #[tokio::test]
    async fn a_list_is_complete_only_where_every_page_came_and_no_device_twice() {
        let (inventory, fake) = stand().await;
        fake.set((0..250).map(|number| Device::computer(&format!("C02{number:03}"))).collect());
        let (records, listed) = list(&inventory).await;
        assert_eq!((records.len(), listed), (250, Ok(Listed { complete: true })));
        fake.pass_next(2);
        fake.fail_next(1, Fault::Status(500));
        let (records, listed) = list(&inventory).await;
        assert_eq!((records.len(), listed), (200, Err(Unavailable::ServerError(None))));
        // The same page for ever.
        fake.fail(Some(Fault::Body(json!({"devices": [row(&Device::computer("C02A"))], "more": true}).to_string().into_bytes())));
        let (records, listed) = list(&inventory).await;
        assert_eq!((records.len(), listed), (1, Ok(Listed { complete: false })));
        assert_eq!(serial(&inventory, "C02A").await, Answer::Unavailable(Unavailable::Protocol));
    }

    #[tokio::test]
    async fn an_answer_of_another_shape_is_none() {
        let (inventory, fake) = stand().await;
        for body in [
            "{}",
            "[]",
            r#"{"devices":[]}"#,
            r#"{"devices":null,"more":false}"#,
            r#"{"devices":[{}],"more":false}"#,
            r#"{"devices":[],"more":false,"error":"timed out"}"#,
            r#"{"devices":[{"id":1,"serial":["C02A"]}],"more":false}"#,
            r#"{"devices":[{"id":1,"serial":"B","serial":"C02A"}],"more":false}"#,
        ] {
            fake.fail(Some(Fault::Body(body.as_bytes().to_vec())));
            assert_eq!(serial(&inventory, "C02A").await, Answer::Unavailable(Unavailable::Protocol), "{body}");
        }
        fake.fail(Some(Fault::Status(422)));
        assert_eq!(serial(&inventory, "C02A").await, Answer::Unavailable(Unavailable::Rejected));
    }

    #[tokio::test]
    async fn the_doctor_tries_the_token_and_the_search() {
        let (inventory, fake) = stand().await;
        fake.add(Device::computer("C02A"));
        let probe = || async { inventory.probe(Instant::now() + Duration::from_secs(3)).await };
        let is_good = |findings: &[Finding], check: &str| findings.iter().any(|it| it.check == check && it.state == State::Good);
        let findings = probe().await;
        assert!(["address", "credentials", "search"].iter().all(|check| is_good(&findings, check)), "{findings:?}");
        fake.fail(Some(Fault::FilterIgnored));
        assert!(!is_good(&probe().await, "search"));
        for (fault, check) in [(Fault::Status(401), "credentials"), (Fault::Status(403), "privilege"), (Fault::Reset, "address")] {
            fake.fail(Some(fault));
            let findings = probe().await;
            assert!(findings[0].check == check && findings[0].state == State::Bad, "{findings:?}");
        }
    }
}
