//! Questions to device managements, their answers, and a client for each service.
//!
//! A service implements [`Inventory`], and its settings implement [`setup::Setup`]. Lifetimes, single flight, limits and outages
//! are its callers' matter; what both go by, how long a service may be silent and how many witnesses are asked, is in [`errand`].
//!
//! # Writing a provider
//!
//! The module of a service has `NAME`, its word in `type = "…"`; `Settings`, which implement [`setup::Setup`]; and a client, which
//! implements [`Inventory`]. [`example`] is one in a single file. A module that grows past that has a folder beside it: requests,
//! pages, records and the doctor's checks are a file each.
//!
//! ## Settings
//!
//! [`read`](setup::Setup::read) takes the service's own keys out of a [`Section`](settings::Section) by `text`, `flag`, `number`,
//! `duration`, `texts` and the like, and secrets by [`SecretSource::required`](settings::SecretSource::required). Keys that all
//! services have, such as `base_url`, `ca_file`, `limits`, `sync` and `push`, are read elsewhere. A base URL may have a path.
//! [`secrets`](setup::Setup::secrets) names the places of the secrets, and [`open`](setup::Setup::open) gets the secrets in that
//! order. [`defaults`](setup::Setup::defaults) are the values where the configuration says nothing: `base_url` is
//! `Some("https://api.example.org")` where all customers have one address, and `None` where each has an own;
//! [`fields`](setup::Setup::fields) are what a record can ever hold. The other methods of [`setup::Setup`] have defaults that fit
//! most services.
//!
//! ## Requests
//!
//! [`http::Client`] bounds bodies, follows no redirect to another host, and prints no secret.
//! [`get`](http::Client::get) and [`post`](http::Client::post) begin a [`reqwest::RequestBuilder`], which takes `header(name,
//! value)`, `json(&body)` and `form(&fields)`. [`url`](http::Client::url) puts a path behind the base URL, and encodes the query;
//! an identifier in a path goes through [`http::escaped`]. [`send`](http::Client::send) takes the deadline, and the most bytes of
//! an answer: [`http::LOOKUP`] or [`http::PAGE`].
//!
//! A request that names an identifier is judged by [`about_one`](http::Reply::about_one), any other by [`ok`](http::Reply::ok).
//! Both take 404 for an answer that makes no sense: a service that says 404 of a device it does not have is asked for
//! [`status`](http::Reply::status) before, and its body tells it from a gateway's 404. An address that an answer gives, such as that
//! of the next page, is asked only where [`is_own`](http::Client::is_own) says so.
//!
//! A header with a fixed key is made once, in `open`, by [`http::secret_header`]: `secret_header("token", "Bearer ",
//! secrets.first())?`. HTTP Basic needs the name and the password in base64:
//!
//! ```
//! use base64::Engine as _;
//! use base64::engine::general_purpose::STANDARD;
//! use inventory::http::secret_header;
//! use posture::secret::Secret;
//!
//! // Here the key is the name, and the password is empty.
//! let key = Secret::new(b"key\n".to_vec());
//! let pair = Secret::new([key.expose().trim_ascii(), b":"].concat());
//! let encoded = Secret::new(STANDARD.encode(pair.expose()).into_bytes());
//! let header = secret_header("api_key", "Basic ", Some(&encoded))?;
//! assert_eq!(header.as_bytes(), b"Basic a2V5Og==");
//! assert!(header.is_sensitive());
//! # Ok::<_, String>(())
//! ```
//!
//! A service that gives tokens for a login has a [`token::Login`], which sends its request by [`http::Client::apart`], and
//! [`token::Tokens`]. [`Tokens::send`](token::Tokens::send) logs in where that is needed, and once more where a token is refused.
//!
//! ## Answers
//!
//! [`Reply::json`](http::Reply::json) refuses JSON that says something twice. [`lenient::fails`] says whether an answer reports an
//! error. Each field of a row is read by its kind:
//!
//! | read by | takes | null, or a blank text |
//! |---|---|---|
//! | [`lenient::text`] | a text of at most 4096 bytes, or a number, such as an id | absent |
//! | [`lenient::flag`] | true and false, 1 and 0, and each as a text | absent |
//! | [`lenient::time`] | RFC 3339 with any offset, or with none, which is UTC; seconds or milliseconds since 1970 | absent, and so is 0 |
//! | [`lenient::groups`] | a list of names, or of objects with `id` and `name`; a text with names between commas | absent, but a blank text is no group |
//!
//! What is missing or of another form is [`Unknown`](posture::record::Fact::Unknown), and never false.
//! [`Absent`](posture::record::Fact::Absent) says that the service states that there is none. Where a service writes null for what
//! it does not know, take null out before: `row.get("lost").filter(|lost| !lost.is_null())`. Of an identifier leave null in: a
//! row that states no serial number is not the device that is asked for. A group that is an `id` alone has no name that could be
//! read; where a service never tells names, read the ids as a list of names. [`lenient::latest`] is the latest of several times.
//!
//! ## Records
//!
//! A [`Record`](posture::record::Record) has these fields. A provider sets those that its service states, and leaves the others to
//! `..Record::default()`; in [`Fields`](posture::record::Fields) each has the name of its
//! [`Field`](posture::record::Field), but for `aliases`, which is in no set.
//!
//! ```
//! use posture::identity::IdentifierKind;
//! use posture::record::{Alias, Compliance, Fact, Form, Group, Record, User};
//! use posture::time::UnixTime;
//!
//! let text = |text: &str| Fact::Value(text.to_owned());
//! let time = |text| UnixTime::parse(text).map_or(Fact::Unknown, Fact::Value);
//! let record = Record {
//!     provider_id: "121".to_owned(), // the service's own id; empty if there is none
//!     form: Fact::Value(Form::Computer), // or `MobileDevice`
//!     serial: text("C02XL0GYJGH5"),
//!     udid: text("00008103-000012345678901A"),
//!     aliases: vec![Alias::of(IdentifierKind::Hostname, "ada.example.org")], // a device can be locked by each
//!     name: text("Ada's laptop"),
//!     platform: text("macOS"), // in the service's words
//!     os_version: text("15.4.1"),
//!     os_build: text("24E263"),
//!     model: text("Mac15,3"),
//!     managed: Fact::Value(true), // now: a record outlives its enrolment
//!     supervised: Fact::Value(true),
//!     ownership: text("automated_device_enrollment"), // whose it is, or how it was enrolled
//!     compliance: Fact::Value(Compliance::Compliant), // or `NonCompliant`, `GracePeriod`, `Undetermined`
//!     groups: Fact::Value(vec![
//!         Group { id: "37".to_owned(), name: "Staff".to_owned() }, // a policy may say either
//!         Group { id: String::new(), name: "Berlin".to_owned() }, // the service has no ids
//!         Group { id: "38".to_owned(), name: String::new() }, // the name could not be read
//!         Group { id: "39".to_owned(), name: "39".to_owned() }, // names are never read, so ids are names
//!     ]),
//!     lost: Fact::Value(false),
//!     wipe_pending: Fact::Value(false),
//!     compromised: Fact::Value(false), // jailbreak, system integrity protection switched off
//!     encrypted: Fact::Value(true),
//!     attestation: Fact::Unknown, // what the service says of the device's own attestation
//!     user: User {
//!         id: text("ada"), // login name, or the service's id of the person
//!         name: text("Ada Lovelace"),
//!         email: text("ada@example.org"),
//!         department: Fact::Unknown,
//!         title: Fact::Unknown,
//!         active: Fact::Value(true),
//!     }, // `User::none()`: the service states that there is no user
//!     enrolled_at: time("2025-02-01T09:00:00+01:00"),
//!     last_seen: time("2026-11-24T08:00:00Z"), // when the service last heard of the device
//!     inventory_at: Fact::Unknown, // when the service last collected these data
//!     data: Fact::Unknown, // free columns, a JSON object as text
//! };
//! assert!(record.last_seen.is_known());
//! ```
//!
//! ## Lookups
//!
//! A question has the kind of its identifier, such as [`Serial`](posture::identity::IdentifierKind::Serial) or
//! [`Udid`](posture::identity::IdentifierKind::Udid); there is none of an IMEI or a MAC address. It has the identifier as it was
//! [`stated`](posture::identity::DeviceId::stated) and in the form in which it is compared,
//! [`normal`](posture::identity::DeviceId::normal).
//!
//! A lookup may send several requests, all before the question's deadline. Of a device that nobody knows, each two count as one
//! guess. Each request of a lookup that finds nothing asks for the identifier; a request for more about a device that was found may
//! name its id.
//!
//! - Compare identifiers by [`posture::identity::same`], whatever the service's search says. A service that searches for parts
//!   answers with other devices: skip them.
//! - Read the answer to its end, every page. [`Answer::NotFound`] needs an answer that was complete, and a search that was applied:
//!   where no row fits and one of them does not have the text that was searched for, say [`Unavailable::FilterIgnored`]. Where
//!   a service searches in more than identifiers, look for the text in all that the row shows. Where the service says how many
//!   devices the answer has, and as many came, the device is missing whatever the search did.
//! - A row whose identifier cannot be read may be the device: [`Unavailable::Protocol`].
//! - Two rows that fit are [`Answer::Ambiguous`], unless one is the record of an earlier enrolment.
//! - Where the service may mind upper and lower case, [`minds_spelling`](Inventory::minds_spelling) is true.
//!
//! ## Lists
//!
//! [`shown::Shown`] takes each row with the service's name for its device: [`New`](shown::Row::New) is a device that was not there
//! before; [`Slipped`](shown::Row::Slipped) is the same row once more, so another may have been missed;
//! [`Contradiction`](shown::Row::Contradiction) is a row that says something else of a device, and both rows are sent, so that
//! neither is believed. A list in which a device came again is not complete. [`shown::Totals`] takes the number of devices that
//! a page states, an `Option<u64>`; [`agreed`](shown::Totals::agreed) is the number where no two pages differ, and `None` where
//! none stated any. A list with numbers is complete where that is the number of devices that came, and is taken for complete
//! though one device may have gone and another come meanwhile. Believe every sign of more pages, a full page too; a number below
//! the rows that came so far is [`Unavailable::Protocol`]. A list ends at [`http::RECORDS`], and is not complete
//! then.
//!
//! [`leftovers::Leftovers`] is for a service that keeps the records of earlier enrolments. [`sift`](leftovers::Leftovers::sift)
//! takes the records of a page, each with whether it was left behind, and returns the others, to be sent at once.
//! [`rest`](leftovers::Leftovers::rest) returns, at the list's end, those whose device has no current record.
//!
//! ## Events
//!
//! A service that sends events implements [`Inventory::parse_push`], which reads the body by [`strict::read`]. Whoever calls it has
//! proven the sender. [`Inventory::changes`] is for a service that keeps a log of them.
//!
//! ## Models
//!
//! [`example`] finds devices by a search over pages with a cursor, sends a fixed token, and keeps earlier enrolments apart. Look
//! into another module only for what that one has not:
//!
//! | your service | model |
//! |---|---|
//! | takes questions as a JSON body, numbers its pages, says how many devices there are | [`addigy`] |
//! | has pages at offsets, a log of changes, or a limit for each hour | [`kandji`] |
//! | logs in with a name and a password | [`mosyle`] |
//! | logs in with OAuth's client credentials, lists what changed since a moment, keeps two inventories | [`jamf`] |
//! | gives the address of the next page, answers several questions at once, has fields that cost a request each | [`intune`] |
//! | has a path for each device, and a 404 of its own | [`fleet`] |
//! | sends events | [`fleet`], [`jamf`] |
#![allow(rustdoc::private_intra_doc_links, reason = "the part about writing a provider is for those who have the source before them")]

pub mod addigy;
mod answer;
pub mod errand;
#[cfg(any(test, doc))]
pub mod example;
pub mod file;
pub mod fleet;
pub mod http;
pub mod http_json;
pub mod intune;
mod inventory;
pub mod jamf;
pub mod kandji;
mod leftovers;
mod lenient;
pub mod mosyle;
mod placeholders;
mod push;
mod service;
pub mod setup;
mod shown;
pub mod shrink;
pub mod strict;
pub mod token;

pub use answer::{Answer, AnswerKind, Blame, Source, Unavailable};
pub use inventory::{Change, Finding, Inventory, Listed, Listing, Logged, NotAnEvent, Question, State, Subject, Way};
pub use placeholders::Placeholders;
pub use push::{Proof, Push};
pub use service::Service;
