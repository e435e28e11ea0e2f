//! A device management for a test, and the provider that asks it.

use fakes::jamf::{CLIENT_ID, CLIENT_SECRET, Jamf, webhook};
use fakes::{Device, Fake};
use serde_json::Value;

use crate::client::{Outgoing, post};
use crate::deployment::Plan;

/// A Jamf Pro server that the provider `jamf` asks.
#[derive(Debug)]
pub struct Management {
    /// The fake server, with its devices, its faults, and the requests that it got.
    pub server: Fake,
}

/// Secret that proves an event.
pub const EVENTS: &str = "the-secret-of-events";

impl Management {
    /// Starts a server with these devices.
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

    /// The number of searches for a device: among computers, and among mobile devices.
    pub fn searches(&self) -> (usize, usize) {
        let lookups = self.server.lookups();
        let count = |part: &str| lookups.iter().filter(|seen| seen.path.contains(part) && seen.query("filter").is_some()).count();
        (count("computers-inventory"), count("mobile-devices"))
    }
}

/// Lines of `[provider.jamf]` for events that carry [`EVENTS`].
pub const PUSH: &str = "[provider.jamf.push]\nsecret = { file = \"secrets/jamf-events\" }";

/// An event as Jamf Pro posts it, with a secret.
pub fn push(name: &str, event: Value, secret: &str) -> Outgoing {
    post("/push/jamf", webhook(name, event).to_string().into()).header("authorization", &format!("Bearer {secret}"))
}
