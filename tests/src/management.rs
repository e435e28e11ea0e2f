//! A device management of the test, and Stepward before it.

use fakes::jamf::{CLIENT_ID, CLIENT_SECRET, Jamf, webhook};
use fakes::{Device, Fake};
use serde_json::Value;

use crate::client::{Outgoing, post};
use crate::deployment::Plan;

/// A Jamf Pro that the provider `jamf` asks.
#[derive(Debug)]
pub struct Management {
    /// The server: its devices, its faults, and what it was asked.
    pub server: Fake,
}

/// What proves an event.
pub const EVENTS: &str = "the-secret-of-events";

impl Management {
    /// Starts one with these devices.
    pub async fn of(devices: &[Device]) -> Self {
        let server = Fake::start(Jamf::new()).await;
        server.set(devices.to_vec());
        Self { server }
    }

    /// Adds the provider `jamf` to a plan. `lines` are keys and tables of `[provider.jamf]`, and tables after it.
    pub fn join(&self, plan: &mut Plan, lines: &str) {
        let url = self.server.url();
        plan.secrets.extend([("jamf", CLIENT_SECRET), ("jamf-events", EVENTS)]);
        plan.more += &format!(
            "[provider.jamf]\ntype = \"jamf\"\nbase_url = \"{url}\"\nclient_id = \"{CLIENT_ID}\"\nclient_secret = {{ file = \"secrets/jamf\" }}\n{lines}\n"
        );
    }

    /// How often a device was looked for: the searches of computers, and those of mobile devices.
    pub fn searches(&self) -> (usize, usize) {
        let lookups = self.server.lookups();
        let count = |part: &str| lookups.iter().filter(|seen| seen.path.contains(part) && seen.query("filter").is_some()).count();
        (count("computers-inventory"), count("mobile-devices"))
    }
}

/// Lines of `[provider.jamf]` that let events in which carry [`EVENTS`].
pub const PUSH: &str = "[provider.jamf.push]\nsecret = { file = \"secrets/jamf-events\" }";

/// An event as Jamf Pro posts it, with a secret.
pub fn push(name: &str, event: Value, secret: &str) -> Outgoing {
    post("/push/jamf", webhook(name, event).to_string().into()).header("authorization", &format!("Bearer {secret}"))
}
