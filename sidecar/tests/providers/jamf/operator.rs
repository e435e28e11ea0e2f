//! Tests of settings, of events, and of what `stepward doctor` finds.

use std::time::Duration;

use fakes::jamf::{Jamf, event, id, webhook};
use fakes::{Device, Fake};
use http::HeaderMap;
use inventory::{Change, State, Subject};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::Stand;

use super::{LINES, two};

#[tokio::test]
async fn webhooks_of_the_server_name_the_records_of_its_inventory() {
    let (_, stand) = two().await;
    let read = |body: Value| stand.inventory.parse_push(&HeaderMap::new(), body.to_string().as_bytes());
    let phone = Device::phone("F2LX");
    let record = stand.record("F2LX").await;
    let subjects = |changes: Vec<Change>| changes.into_iter().map(|change| change.device).collect::<Vec<_>>();
    let gone = read(webhook("MobileDeviceUnEnrolled", event(&phone))).unwrap();
    assert!(gone.iter().all(|change| change.revoking));
    let named = subjects(gone);
    assert!(named.contains(&Subject::ProviderId(record.provider_id.clone())));
    assert!(named.contains(&Subject::Identifier("F2LX".to_owned())) && named.contains(&Subject::Identifier(phone.udid.clone())));
    let number: u64 = id(&Device::computer("C02X")).parse().unwrap();
    let members = json!({"groupAddedDevicesIds": [], "groupRemovedDevicesIds": [number], "name": "x", "jssid": 3});
    let computer = stand.record("C02X").await;
    let left = read(webhook("SmartGroupComputerMembershipChange", members)).unwrap();
    assert_eq!(left, [Change { device: Subject::ProviderId(computer.provider_id.clone()), revoking: true }]);
    assert!(stand.inventory.parse_push(&HeaderMap::new(), b"<JSSEvent/>").is_err());
}

#[tokio::test]
async fn doctor_names_each_privilege_that_is_missing() {
    let (jamf, stand) = two().await;
    let soon = || Instant::now() + Duration::from_secs(5);
    let findings = stand.inventory.probe(soon()).await;
    assert!(findings.iter().all(|finding| finding.state == State::Good), "{findings:?}");
    let checks: Vec<_> = findings.iter().map(|finding| finding.check.as_str()).collect();
    for check in ["address", "credentials", "privilege Read Computers", "privilege Read Mobile Devices", "privilege Read Departments"] {
        assert!(checks.contains(&check), "{check}: {checks:?}");
    }
    for missing in fakes::jamf::PRIVILEGES {
        jamf.set(|knobs| knobs.privileges = fakes::jamf::PRIVILEGES.iter().copied().filter(|name| name != missing).collect());
        let findings = stand.inventory.probe(soon()).await;
        let wrong: Vec<_> = findings.iter().filter(|finding| finding.state != State::Good).collect();
        assert_eq!(wrong.len(), 1, "{missing}: {findings:?}");
        assert!(wrong[0].check.ends_with(missing) && wrong[0].fix.contains(missing), "{wrong:?}");
    }
    jamf.set(|knobs| knobs.starting = true);
    assert!(stand.inventory.probe(soon()).await.iter().any(|finding| finding.check == "address" && finding.state == State::Bad));
}

#[tokio::test]
async fn doctor_tells_an_address_from_credentials() {
    let soon = || Instant::now() + Duration::from_secs(5);
    let stand = Stand::open(Fake::start(Jamf::new()).await, &LINES.replace("\"client\"", "\"stranger\""));
    let findings = stand.inventory.probe(soon()).await;
    let last = findings.last().unwrap();
    assert_eq!((last.check.as_str(), last.state), ("credentials", State::Bad));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stand = Stand::open(Fake::start(Jamf::new()).await, &LINES.replace("{url}", &format!("http://{nobody}")));
    let findings = stand.inventory.probe(soon()).await;
    assert_eq!((findings.len(), findings[0].check.as_str(), findings[0].state), (1, "address", State::Bad));
}

#[test]
#[allow(irrefutable_let_patterns, reason = "where no other service is built in")]
fn the_settings_of_step_posture_connector_are_there() {
    let remote = crate::remote(&format!(
        "{}\ndevice_group = \"Compliant iPads\"\ncomputer_group = \"12\"\ncomputer_enrich = true",
        LINES.replace("{url}", "https://x.example.org")
    ));
    let inventory::Service::Jamf(settings) = &remote.service else { panic!("{remote:?}") };
    assert_eq!((settings.device_group.as_deref(), settings.computer_group.as_deref()), (Some("Compliant iPads"), Some("12")));
    assert_eq!((settings.device_enrich, settings.computer_enrich), (false, true));
    assert_eq!((remote.endpoint.connections, settings.kinds.len()), (5, 2));
}
