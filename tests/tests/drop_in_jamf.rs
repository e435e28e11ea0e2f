//! What was set up for step-posture-connector and Jamf Pro runs Stepward: its variables alone.

use e2e::client::Client;
use e2e::management::Management;
use e2e::process::Process;
use e2e::wait::{STARTUP, until};
use fakes::Device;
use fakes::jamf::{CLIENT_ID, CLIENT_SECRET};
use serde_json::{Value, json};

use crate::drop_in::Setup;

const MAC: &str = "C02XL0GYJGH5";
const PHONE: &str = "F2LWD0ABCDEF";

/// Jamf Pro with a computer and a phone, and Stepward with the variables of step-posture-connector.
struct Running {
    management: Management,
    setup: Setup,
    client: Client,
    _processes: [Process; 2],
}

impl Running {
    /// `more` are those of `JAMF_*` that not everybody sets.
    async fn with(more: &[(&'static str, &str)]) -> Self {
        let management = Management::of(&[
            Device::computer(MAC).in_groups(&["Compliant Macs", "All Managed"]),
            Device::phone(PHONE).in_groups(&["Compliant Phones", "All Managed"]),
        ])
        .await;
        let setup = Setup::new();
        let url = management.server.url();
        let jamf = [("PROVIDER", "jamf"), ("JAMF_BASE_URL", &url), ("JAMF_CLIENT_ID", CLIENT_ID), ("JAMF_CLIENT_SECRET", CLIENT_SECRET)];
        let variables = jamf.iter().chain(more).map(|(name, value)| (*name, (*value).to_owned()));
        let processes = setup.start(&setup.with(variables)).await;
        let client = setup.client(Some(&setup.tls.client));
        until("the webhook is answered", STARTUP, async || {
            client.send(setup.webhooks[1].ask("STRANGER01")).await.ok().filter(|reply| reply.status == 200)
        })
        .await;
        management.server.forget();
        Self { management, setup, client, _processes: processes }
    }

    /// The verdict on a device, and the data that comes with it.
    async fn asks(&self, device: &str, query: &str) -> (String, Value) {
        let request = self.setup.webhooks[0].ask(device).path(&format!("/webhook/device-attest{query}"));
        let reply = self.client.send(request).await.unwrap();
        assert_eq!(reply.status, 200, "{device} {query}: {reply:?}");
        (reply.verdict().1, reply.data())
    }

    /// Which of the two inventories were looked through since, in their order.
    fn looked_through(&self) -> Vec<&'static str> {
        let lookups = self.management.server.lookups();
        self.management.server.forget();
        let kind = |path: &str| if path.contains("mobile-devices") { "mobile devices" } else { "computers" };
        lookups.iter().filter(|seen| seen.query("filter").is_some()).map(|seen| kind(&seen.path)).collect()
    }
}

const GROUPS: [(&str, &str); 2] = [("JAMF_DEVICE_GROUP", "Compliant Phones"), ("JAMF_COMPUTER_GROUP", "Compliant Macs")];

#[tokio::test(flavor = "multi_thread")]
async fn a_device_in_its_group_is_allowed_with_who_uses_it() {
    let running = Running::with(&[&GROUPS[..], &[("JAMF_DEVICE_ENRICH", "1"), ("JAMF_COMPUTER_ENRICH", "1")]].concat()).await;
    for (device, query) in [(PHONE, "?mode=mobiledevice"), (MAC, "?mode=computer")] {
        let (verdict, data) = running.asks(device, query).await;
        assert_eq!(verdict, "allow", "{device}");
        assert_eq!(data["device"]["serial_number"], device);
        assert_eq!((&data["user"]["username"], &data["user"]["realname"]), (&json!("ada"), &json!("Ada Lovelace")));
        assert_eq!((&data["user"]["email_address"], &data["user"]["department"]), (&json!("ada@example.org"), &json!("Engines")));
        assert!(data["groups"].as_array().is_some_and(|groups| groups.contains(&json!("All Managed"))), "{data}");
        let mut looked_through = running.looked_through();
        looked_through.sort_unstable();
        assert_eq!(looked_through, ["computers", "mobile devices"], "a device of the other kind would be its double");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_outside_its_group_is_refused_and_told_why() {
    let running = Running::with(&GROUPS).await;
    running.management.server.change(PHONE, |phone| phone.groups = vec!["Compliant Macs".to_owned()]);
    running.management.server.change(MAC, |mac| mac.groups.clear());
    for (device, query) in [(PHONE, "?mode=mobiledevice"), (MAC, "?mode=computer")] {
        assert_eq!(running.asks(device, query).await, ("group_required".to_owned(), Value::Null), "{device}");
    }
    assert_eq!(running.asks("STRANGER02", "?mode=computer").await.0, "device_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_is_enriched_by_its_own_variable() {
    let running = Running::with(&[("JAMF_DEVICE_ENRICH", "0"), ("JAMF_COMPUTER_ENRICH", "1")]).await;
    let (verdict, phone) = running.asks(PHONE, "?mode=mobiledevice").await;
    assert_eq!((verdict.as_str(), phone["user"].is_object()), ("allow", false), "{phone}");
    let (verdict, mac) = running.asks(MAC, "?mode=computer").await;
    assert_eq!((verdict.as_str(), &mac["user"]["username"]), ("allow", &json!("ada")), "{mac}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a13_a_device_of_the_other_kind_than_the_mode_names_is_not_found() {
    for groups in [&GROUPS[..], &GROUPS[..1], &GROUPS[1..], &[]] {
        let running = Running::with(groups).await;
        for (device, query) in [(MAC, "?mode=mobiledevice"), (PHONE, "?mode=computer")] {
            assert_eq!(running.asks(device, query).await.0, "device_not_found", "{device} {groups:?}");
        }
        // Without one, step-posture-connector means a mobile device.
        assert_eq!(running.asks(MAC, "").await.0, "device_not_found", "{groups:?}");
        for (device, query) in [(MAC, "?mode=computer"), (PHONE, "?mode=mobiledevice"), (PHONE, "")] {
            assert_eq!(running.asks(device, query).await.0, "allow", "{device} {query} {groups:?}");
        }
    }
}
