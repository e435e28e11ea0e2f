//! Stand-ins for device managements. Each reproduces one service from its published description, including its quirks, and
//! can be told to fail, request by request. This crate knows nothing of Stepward's clients.
//!
//! A fake keeps [`Device`]s, counts and records its requests ([`Seen`]), and misbehaves as a [`Fault`] says.
//!
//! # Writing a fake
//!
//! A fake is a [`Service`]. [`Fake::start`] serves it on a free port, keeps its devices, and plays the faults, so that the service
//! itself only answers requests:
//!
//! ```
//! use std::sync::{Arc, Mutex, MutexGuard};
//!
//! use fakes::server::{Answer, Seen, Service, decoded};
//! use fakes::{Device, Fake};
//! use serde_json::{Value, json};
//!
//! /// A customer of the service, whose token is `secret`. Clones share its state, so that a test can change the settings of a
//! /// running fake.
//! #[derive(Clone, Debug, Default)]
//! pub struct Example(Arc<Mutex<Knobs>>);
//!
//! /// The settings of a customer: each quirk that not every customer sees.
//! #[derive(Clone, Debug, Default)]
//! pub struct Knobs {
//!     /// Whether the token has no right to read devices.
//!     pub forbidden: bool,
//! }
//!
//! impl Example {
//!     /// The customer's settings.
//!     pub fn knobs(&self) -> MutexGuard<'_, Knobs> {
//!         self.0.lock().unwrap()
//!     }
//! }
//!
//! impl Service for Example {
//!     fn answer(&self, request: &Seen, devices: &[Device], ignore_filter: bool) -> Answer {
//!         if request.header("authorization") != Some("Bearer secret") {
//!             return Answer::status(401, json!({"error": "unauthorized"}));
//!         }
//!         if self.knobs().forbidden {
//!             return Answer::status(403, json!({"error": "forbidden"}));
//!         }
//!         let serial = self.asked(request);
//!         let fits = |device: &&Device| ignore_filter || serial.as_ref().is_none_or(|serial| device.serial == *serial);
//!         let found: Vec<Value> = devices.iter().filter(fits).map(row).collect();
//!         Answer::json(json!({"devices": found}))
//!     }
//!
//!     fn asked(&self, request: &Seen) -> Option<String> {
//!         request.path.strip_prefix("/devices/").map(decoded)
//!     }
//! }
//!
//! fn row(device: &Device) -> Value {
//!     let mut row = json!({
//!         "id": if device.id.is_empty() { format!("id-{}", device.serial) } else { device.id.clone() },
//!         "serial": device.serial, "udid": device.udid, "name": device.name, "os_version": device.os_version,
//!         "platform": if device.mobile { "iOS" } else { "macOS" }, "status": if device.managed { "enrolled" } else { "left" },
//!         "lost": device.lost, "groups": device.groups, "mail": device.user.as_ref().map(|user| &user.email),
//!         "compliant": device.compliant, "seen": device.last_seen,
//!     });
//!     for (name, value) in &device.raw {
//!         row[name] = value.clone();
//!     }
//!     row
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let example = Example::default();
//! let fake = Fake::start(example.clone()).await;
//! fake.add(Device::computer("C02XL0GYJGH5").with("lost", json!("unknown")));
//! example.knobs().forbidden = true;
//! # });
//! ```
//!
//! - The fake itself checks the key, and nothing else does. In tests every secret is `secret`.
//! - [`Seen::path`](server::Seen::path) is the path as it was sent: percent-encoded, and with that of `base_url`. A part of it is
//!   read by [`decoded`](server::decoded). [`Seen::query`](server::Seen::query()) gives the first value of a parameter, decoded;
//!   [`header`](server::Seen::header), [`json`](server::Seen::json) and [`form`](server::Seen::form) read the rest.
//! - [`asked`](Service::asked) gives the identifier that a request asks for, decoded. Without it the contract of all providers
//!   fails. A request for a list asks for none.
//! - [`is_login`](Service::is_login) is for a service that gives tokens: faults of other requests do not apply to logins.
//! - `ignore_filter` is [`Fault::FilterIgnored`]: the answer has every device, in pages as ever. A service without a filter ignores
//!   it.
//! - [`Answer::json`](server::Answer::json) has the status 200, [`Answer::status`](server::Answer::status) another one, and
//!   [`with`](server::Answer::with) adds a header.
//! - An answer with a device has at least ten members, since the contract says ten of them twice, one after the other. Where the
//!   service's own has fewer, the fake adds members that the provider does not read, and says so.
//! - [`Fault::Counted`] replaces members with the names `total`, `totalCount`, `count` and `rows`, and headers whose name ends with
//!   `count`. If the service's name for the number of records is another, it is added in `fakes/src/server.rs`.
//!
//! A [`Device`] has what every management has; the type of each field is in the example or follows from it, but
//! [`compliant`](Device::compliant) is `Option<bool>`, where `None` is undecided, and [`last_seen`](Device::last_seen) is a date of
//! RFC 3339, or `None` for never. Its `user` has `id`, `name`, `email` and `department`, each a text, and is Ada Lovelace where a
//! test says nothing. An empty [`id`](Device::id) is made from the serial number, and stays when other devices come and
//! go; a test that has two devices of one serial number gives them ids. [`groups`](Device::groups) are names; where the service's
//! devices name their groups by ids alone, they are ids. [`raw`](Device::raw) has members of the service's own schema, which
//! replace what the fake would write: say in the module's documentation which member a name means. A field that the service has
//! not is left out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::needless_pass_by_value,
    reason = "test code: a panic with its place is the report"
)]

pub mod addigy;
pub mod device;
pub mod fault;
pub mod fleet;
pub mod intune;
pub mod inventory;
pub mod jamf;
pub mod kandji;
pub mod mosyle;
pub mod server;
pub mod services;

pub use device::{Device, User};
pub use fault::{Fault, RetryAfter};
pub use server::{Fake, Seen, Service};
