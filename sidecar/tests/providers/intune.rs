//! Tests of what is Intune's own: the states of a device, filters that are ignored, pages, batches, and how an application logs
//! in.

mod credentials;
mod details;
mod listing;
mod search;

use std::sync::Arc;

use fakes::intune::{CLIENT, Intune, MANAGED_DEVICES, TENANT};
use fakes::{Device, Fake, Fault};
use inventory::{Answer, State, Unavailable};
use posture::identity::{IdentifierKind, normal};
use posture::record::{Compliance, Fact, Field, Fields, Form, Group, Record};
use posture::time::UnixTime;
use serde_json::{Value, json};

use crate::Stand;

/// A provider with everything that Intune can say: the beta alone knows whether a device is lost.
pub(crate) async fn stand() -> Stand {
    with(&Intune::new(), "api_version = \"beta\"").await
}

async fn with(intune: &Intune, lines: &str) -> Stand {
    Stand::open(Fake::start(intune.clone()).await, &format!("{}\nclient_secret = {{ env = \"SECRET\" }}\n{lines}", common()))
}

async fn with_devices(devices: Vec<Device>) -> (Intune, Stand) {
    let intune = Intune::new();
    let stand = with(&intune, "").await;
    stand.fake.set(devices);
    (intune, stand)
}

fn common() -> String {
    format!("type = \"intune\"\ntenant_id = \"{TENANT}\"\nclient_id = \"{CLIENT}\"\nlogin_url = \"{{url}}\"\ngraph_url = \"{{url}}\"")
}

async fn one(device: Device) -> Arc<Record> {
    let serial = device.serial.clone();
    let (_, stand) = with_devices(vec![device]).await;
    stand.record(&serial).await
}

fn moment(text: &str) -> Fact<UnixTime> {
    Fact::Value(UnixTime::parse(text).unwrap())
}

fn text(text: &str) -> Fact<String> {
    Fact::Value(text.to_owned())
}

#[tokio::test]
async fn d13_a_miss_by_one_spelling_says_nothing_of_another() {
    let (intune, stand) = with_devices(vec![Device::computer("VMware-56 4d")]).await;
    intune.exact_case(true);
    for guess in ["VMWARE-56 4D", "vmware-56 4d"] {
        let cache = stand.cache();
        assert_eq!(stand.ask_through(&cache, guess).await, Answer::NotFound);
        let found = stand.ask_through(&cache, "VMware-56 4d").await;
        assert!(matches!(found, Answer::Found(_)), "{guess}: {found:?}");
    }
}

#[tokio::test]
async fn a_record_has_all_that_intune_says() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A").in_groups(&["Staff"]), Device::phone("F1B")]);
    let record = stand.record("C02A").await;
    assert_eq!(record.form, Fact::Value(Form::Computer));
    assert_eq!(record.serial, text("C02A"));
    assert_eq!(record.udid, text(&Device::computer("C02A").udid));
    assert_eq!(record.name, text("Computer C02A"));
    assert_eq!((&record.platform, &record.os_version, &record.model), (&text("macOS"), &text("15.4.1"), &text("MacBook Pro")));
    assert_eq!((&record.managed, &record.wipe_pending, &record.lost), (&Fact::Value(true), &Fact::Value(false), &Fact::Value(false)));
    assert_eq!((&record.supervised, &record.encrypted), (&Fact::Value(true), &Fact::Value(true)));
    assert_eq!((&record.compromised, &record.ownership), (&Fact::Unknown, &text("company")));
    assert_eq!(record.compliance, Fact::Value(Compliance::Compliant));
    assert_eq!(record.groups, Fact::Value(vec![Group { id: fakes::intune::group_id("Staff"), name: "Staff".to_owned() }]));
    assert_eq!((&record.user.id, &record.user.name), (&text("ada"), &text("Ada Lovelace")));
    assert_eq!((&record.user.email, &record.user.department), (&text("ada@example.org"), &text("Engines")));
    assert_eq!((&record.user.title, &record.user.active), (&text("Analyst"), &Fact::Value(true)));
    assert_eq!(record.enrolled_at, moment("2026-01-05T10:00:00Z"));
    assert_eq!(record.last_seen, moment("2026-11-24T08:00:00.123Z"));
    assert_eq!(record.aliases.len(), 1, "the directory's id of the device");
    let phone = stand.record("F1B").await;
    assert_eq!((&phone.form, &phone.compromised), (&Fact::Value(Form::MobileDevice), &Fact::Value(false)));
    let able = stand.inventory.fields();
    assert!(able.without(record.known()).without(Fields::of(&[Field::Compromised])).is_empty(), "{:?}", able.without(record.known()));
}

#[tokio::test]
async fn a_device_is_managed_in_some_states_alone() {
    let stand = stand().await;
    let (yes, no, unknown) = (Fact::Value(true), Fact::Value(false), Fact::Unknown);
    for (state, managed, wipe_pending) in [
        (json!("managed"), &yes, &no),
        (json!("retireCanceled"), &yes, &no),
        (json!("wipeCanceled"), &yes, &no),
        (json!("retirePending"), &no, &yes),
        (json!("retireIssued"), &no, &yes),
        (json!("wipePending"), &no, &yes),
        (json!("wipeIssued"), &no, &yes),
        (json!("deletePending"), &no, &yes),
        (json!("retireFailed"), &unknown, &yes),
        (json!("wipeFailed"), &unknown, &yes),
        (json!("unhealthy"), &unknown, &no),
        (json!("discovered"), &no, &no),
        (json!("somethingNew"), &unknown, &unknown),
        (json!(7), &unknown, &unknown),
        (Value::Null, &unknown, &unknown),
    ] {
        stand.fake.set(vec![Device::computer("C02A").with("managementState", state.clone())]);
        let record = stand.record("C02A").await;
        assert_eq!((&record.managed, &record.wipe_pending), (managed, wipe_pending), "{state}");
    }
}

#[tokio::test]
async fn a_device_that_another_system_manages_is_not_managed() {
    for (agent, managed) in [
        ("mdm", Fact::Value(true)),
        ("easMdm", Fact::Value(true)),
        ("intuneClient", Fact::Value(true)),
        ("easIntuneClient", Fact::Value(true)),
        ("configurationManagerClientMdm", Fact::Value(true)),
        ("configurationManagerClientMdmEas", Fact::Value(true)),
        ("googleCloudDevicePolicyController", Fact::Value(true)),
        ("intuneAosp", Fact::Value(true)),
        ("microsoft365ManagedMdm", Fact::Value(true)),
        ("msSense", Fact::Unknown),
        ("eas", Fact::Value(false)),
        ("jamf", Fact::Value(false)),
        ("configurationManagerClient", Fact::Value(false)),
        ("unknown", Fact::Unknown),
        ("somethingNew", Fact::Unknown),
    ] {
        assert_eq!(one(Device::computer("C02A").with("managementAgent", json!(agent))).await.managed, managed, "{agent}");
    }
}

#[tokio::test]
async fn compliance_that_is_not_certain_is_never_compliant() {
    for (state, compliance) in [
        ("compliant", Fact::Value(Compliance::Compliant)),
        ("noncompliant", Fact::Value(Compliance::NonCompliant)),
        ("conflict", Fact::Value(Compliance::NonCompliant)),
        ("error", Fact::Value(Compliance::NonCompliant)),
        ("inGracePeriod", Fact::Value(Compliance::GracePeriod)),
        ("unknown", Fact::Value(Compliance::Undetermined)),
        ("configManager", Fact::Value(Compliance::Undetermined)),
        ("Compliant!", Fact::Unknown),
    ] {
        assert_eq!(one(Device::computer("C02A").with("complianceState", json!(state))).await.compliance, compliance, "{state}");
    }
}

#[tokio::test]
async fn a_property_of_another_kind_than_expected_is_unknown() {
    let odd = ["isSupervised", "isEncrypted", "jailBroken", "deviceName", "osVersion", "lastSyncDateTime", "enrolledDateTime", "userId"];
    let device = odd.iter().fold(Device::computer("C02A"), |device, name| device.with(name, json!({"new": [1]})));
    let record = one(device).await;
    assert_eq!((&record.supervised, &record.encrypted, &record.compromised), (&Fact::Unknown, &Fact::Unknown, &Fact::Unknown));
    assert_eq!((&record.name, &record.os_version), (&Fact::Unknown, &Fact::Unknown));
    assert_eq!((&record.last_seen, &record.enrolled_at), (&Fact::Unknown, &Fact::Unknown));
    assert_eq!(record.user.department, Fact::Unknown);
    assert_eq!(one(Device::computer("77").with("serialNumber", json!(77))).await.serial, text("77"));
    assert_eq!(one(Device::computer("C02A").with("jailBroken", json!("True"))).await.compromised, Fact::Value(true));
}

#[tokio::test]
async fn dates_are_read_as_graph_writes_them() {
    for (date, seen) in [
        (json!("2026-11-24T08:00:00Z"), moment("2026-11-24T08:00:00Z")),
        (json!("2017-01-01T00:02:49.3205976-08:00"), moment("2017-01-01T08:02:49.3205976Z")),
        (json!("0001-01-01T00:00:00Z"), Fact::Absent),
        (json!("9999-12-31T23:59:59Z"), Fact::Unknown),
        (json!(""), Fact::Unknown),
        (json!("yesterday"), Fact::Unknown),
        (json!(1_700_000_000), Fact::Unknown),
        (Value::Null, Fact::Unknown),
    ] {
        assert_eq!(one(Device::computer("C02A").with("lastSyncDateTime", date.clone())).await.last_seen, seen, "{date}");
    }
}

#[tokio::test]
async fn the_first_version_says_nothing_of_lost_devices() {
    let (_, stand) = with_devices(vec![Device { lost: true, ..Device::phone("F1A") }]).await;
    assert_eq!(stand.record("F1A").await.lost, Fact::Unknown);
    assert!(!stand.inventory.fields().contains(Field::Lost));
    let beta = self::stand().await;
    beta.fake.set(vec![Device { lost: true, ..Device::phone("F1A") }]);
    assert_eq!(beta.record("F1A").await.lost, Fact::Value(true));
}

#[tokio::test]
async fn d1_the_first_version_says_by_its_agent_whether_a_device_is_managed() {
    let devices = vec![
        Device::computer("C02A"),
        Device::computer("C02B").with("managementAgent", json!("jamf")),
        Device::computer("C02C").with("managementAgent", json!("unknown")),
        Device { managed: false, ..Device::computer("C02D") },
    ];
    let (_, stand) = with_devices(devices).await;
    let managed = async |serial| stand.record(serial).await.managed.clone();
    assert_eq!(managed("C02A").await, Fact::Value(true));
    assert_eq!((managed("C02B").await, managed("C02C").await), (Fact::Value(false), Fact::Unknown));
    assert_eq!(managed("C02D").await, Fact::Value(false), "it was retired");
    assert!(!stand.inventory.fields().contains(Field::WipePending));
    for seen in stand.fake.lookups() {
        assert!(!seen.query("$select").unwrap_or_default().contains("managementState"), "the first version has no such property");
    }
}

#[tokio::test]
async fn d1_what_was_ordered_of_a_device_ends_its_management_in_the_first_version_too() {
    let action =
        |name: &str, state: &str, updated: &str| json!([{"actionName": name, "actionState": state, "lastUpdatedDateTime": updated}]);
    let (before, after) = ("2026-11-01T00:00:00Z", "2026-11-24T09:00:00Z");
    let (yes, no, unknown) = (Fact::Value(true), Fact::Value(false), Fact::Unknown);
    for (results, managed, wipe_pending) in [
        (action("wipe", "pending", before), &no, &yes),
        (action("retire", "active", before), &no, &yes),
        (action("factoryReset", "done", after), &no, &yes),
        (action("removeCompanyData", "done", before), &yes, &unknown),
        (action("delete", "done", "soon"), &no, &yes),
        (action("retire", "failed", after), &unknown, &yes),
        (action("wipe", "somethingNew", after), &unknown, &yes),
        (action("wipe", "canceled", after), &yes, &unknown),
        (action("remoteLock", "pending", after), &yes, &unknown),
        (json!([]), &yes, &unknown),
        (json!(null), &yes, &unknown),
        (json!("wipe"), &unknown, &unknown),
    ] {
        let record = one(Device::computer("C02A").with("deviceActionResults", results.clone())).await;
        assert_eq!((&record.managed, &record.wipe_pending), (managed, wipe_pending), "{results}");
    }
}

#[tokio::test]
async fn a_property_that_this_graph_does_not_have_is_named_by_the_doctor() {
    let (intune, stand) = with_devices(vec![Device::computer("C02A")]).await;
    intune.forget_property("managementAgent");
    assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::Rejected));
    let findings = stand.inventory.probe(tokio::time::Instant::now() + std::time::Duration::from_secs(3)).await;
    assert!(findings.iter().any(|finding| finding.state == State::Bad && finding.detail.contains("'managementAgent'")), "{findings:?}");
}

#[tokio::test]
async fn only_serial_numbers_are_searched_for() {
    let (_, stand) = with_devices(vec![Device::computer("C02A")]).await;
    for kind in IdentifierKind::ALL.iter().filter(|kind| **kind != IdentifierKind::Serial) {
        assert_eq!(stand.ask(*kind, "C02A", Fields::NONE).await, Answer::InvalidIdentifier, "{kind}");
    }
    assert!(stand.fake.lookups().is_empty() && stand.fake.logins() == 0);
}

#[tokio::test]
async fn a_missing_permission_is_no_missing_device() {
    let (intune, stand) = with_devices(vec![]).await;
    intune.permit(&[]);
    assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::Forbidden));
}

#[tokio::test]
async fn an_error_of_intune_is_one_whatever_stands_in_it() {
    let (intune, stand) = with_devices(vec![Device::computer("C02A")]).await;
    intune.break_down(true);
    assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::ServerError(None)));
    intune.break_down(false);
    assert!(matches!(stand.serial("C02A").await, Answer::Found(_)));
}

#[tokio::test]
async fn the_probe_names_each_permission_that_is_missing() {
    let (intune, stand) = with_devices(vec![]).await;
    let probe = || stand.inventory.probe(tokio::time::Instant::now() + std::time::Duration::from_secs(3));
    assert!(probe().await.iter().all(|finding| finding.state == State::Good), "{:?}", probe().await);
    intune.permit(&[MANAGED_DEVICES]);
    let findings = probe().await;
    for name in [fakes::intune::DEVICES, fakes::intune::GROUPS, fakes::intune::USERS] {
        let finding = findings.iter().find(|finding| finding.check == format!("permission {name}")).unwrap();
        assert_eq!(finding.state, State::Doubtful);
        assert!(finding.fix.contains(name), "{finding:?}");
    }
    intune.permit(&[]);
    let findings = probe().await;
    let bad = findings.iter().find(|finding| finding.state == State::Bad).unwrap();
    assert!(bad.fix.contains(MANAGED_DEVICES), "{bad:?}");
}

#[tokio::test]
async fn the_probe_says_why_there_is_no_token() {
    let fake = Fake::start(Intune::new()).await;
    let lines = common().replace(CLIENT, "another");
    let stand = Stand::open(fake, &format!("{lines}\nclient_secret = {{ env = \"SECRET\" }}"));
    let findings = stand.inventory.probe(tokio::time::Instant::now() + std::time::Duration::from_secs(3)).await;
    assert_eq!(findings.len(), 1);
    assert!(findings[0].detail.contains("AADSTS700016") && findings[0].fix.contains("/error?code=700016"), "{findings:?}");
}

#[tokio::test]
async fn a_wrong_device_is_never_taken_for_the_right_one() {
    let (_, stand) = with_devices(vec![Device::computer("C02A")]).await;
    stand.fake.fail(Some(Fault::WrongDevice));
    assert!(!matches!(stand.serial("C02A").await, Answer::Found(_)));
    assert!(normal("XC02A") != "C02A");
}
