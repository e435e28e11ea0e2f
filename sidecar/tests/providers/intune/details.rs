//! Tests of what is asked for in batches, and of what becomes of a lookup where a part of one fails.

use std::time::Duration;

use fakes::RetryAfter;
use fakes::intune::{DEVICES, GROUPS, USERS, group_id};
use serde_json::json;

use super::*;

const NOBODYS: &str = "00000000-0000-0000-0000-000000000000";

const GROUPS_FIELD: Fields = Fields::of(&[Field::Groups]);
const USER_FIELDS: Fields = Fields::of(&[Field::UserDepartment, Field::UserTitle, Field::UserActive]);

async fn asked(stand: &Stand, need: Fields) -> Answer {
    stand.ask(IdentifierKind::Serial, "C02A", need).await
}

async fn found(stand: &Stand, need: Fields) -> Arc<Record> {
    match asked(stand, need).await {
        Answer::Found(record) => record,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nothing_is_asked_for_that_nobody_needs() {
    let (_, stand) = with_devices(vec![Device::computer("C02A")]).await;
    let record = found(&stand, Fields::of(&[Field::Managed, Field::UserEmail])).await;
    assert_eq!(stand.fake.lookups().len(), 1);
    assert_eq!((&record.groups, &record.user.department, &record.udid), (&Fact::Unknown, &Fact::Unknown, &Fact::Unknown));
    found(&stand, stand.inventory.fields()).await;
    let seen = stand.fake.lookups();
    assert_eq!(seen.len(), 3, "one list and one batch");
    assert_eq!(seen[2].json()["requests"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn any_number_of_groups_is_read() {
    for count in [0, 1, 2_500] {
        let names: Vec<String> = (0..count).map(|number| format!("Group {number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (intune, stand) = with_devices(vec![Device::computer("C02A").in_groups(&names)]).await;
        intune.page_size(999);
        let record = found(&stand, GROUPS_FIELD).await;
        let groups = record.groups.value().unwrap();
        assert_eq!(groups.len(), count);
        assert!(groups.iter().zip(&names).all(|(group, name)| group.name == *name && group.id == group_id(name)));
    }
}

#[tokio::test]
async fn a_device_is_in_the_groups_that_its_groups_are_in() {
    let (intune, stand) = with_devices(vec![Device::computer("C02A").in_groups(&["Macs"])]).await;
    intune.nest("Macs", "Devices");
    intune.nest("Devices", "Everything");
    let record = found(&stand, GROUPS_FIELD).await;
    let names: Vec<_> = record.groups.value().unwrap().iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["Macs", "Devices", "Everything"]);
}

#[tokio::test]
async fn a_fault_within_a_batch_is_that_of_the_lookup_that_needs_it() {
    let after = |seconds| RetryAfter::Seconds(seconds);
    for (status, retry_after, error) in [
        (429, RetryAfter::Absent, Unavailable::RateLimited(None)),
        (429, after(5), Unavailable::RateLimited(Some(Duration::from_secs(5)))),
        (429, RetryAfter::Malformed("soon".to_owned()), Unavailable::RateLimited(None)),
        (500, RetryAfter::Absent, Unavailable::ServerError(None)),
        (503, after(2), Unavailable::ServerError(Some(Duration::from_secs(2)))),
        (401, RetryAfter::Absent, Unavailable::AuthRejected),
        (403, RetryAfter::Absent, Unavailable::Forbidden),
        (400, RetryAfter::Absent, Unavailable::Protocol),
    ] {
        let (intune, stand) = with_devices(vec![Device::computer("C02A")]).await;
        intune.fail_items("transitiveMemberOf", status, retry_after);
        assert_eq!(asked(&stand, GROUPS_FIELD).await, Answer::Unavailable(error));
        assert_eq!(found(&stand, USER_FIELDS).await.user.department, text("Engines"), "who needs no groups does without");
        intune.mend_items();
        assert!(found(&stand, GROUPS_FIELD).await.groups.is_known());
    }
}

#[tokio::test]
async fn permissions_are_missed_only_by_who_needs_them() {
    let (intune, stand) = with_devices(vec![Device::computer("C02A")]).await;
    intune.permit(&[MANAGED_DEVICES, GROUPS, USERS]);
    assert_eq!(asked(&stand, GROUPS_FIELD).await, Answer::Unavailable(Unavailable::Forbidden));
    intune.permit(&[MANAGED_DEVICES, DEVICES, USERS]);
    assert_eq!(asked(&stand, GROUPS_FIELD).await, Answer::Unavailable(Unavailable::Forbidden), "groups without names");
    intune.permit(&[MANAGED_DEVICES, DEVICES, GROUPS]);
    assert_eq!(asked(&stand, USER_FIELDS).await, Answer::Unavailable(Unavailable::Forbidden));
    assert!(found(&stand, GROUPS_FIELD).await.groups.is_known());
}

#[tokio::test]
async fn a_deleted_user_has_no_department() {
    let (intune, stand) = with_devices(vec![Device::computer("C02A")]).await;
    intune.delete_user("ada");
    let user = &found(&stand, USER_FIELDS).await.user;
    assert_eq!((&user.department, &user.title, &user.active), (&Fact::Absent, &Fact::Absent, &Fact::Absent));
    assert_eq!(user.id, text("ada"), "what the device's record says stays");
}

#[tokio::test]
async fn a_disabled_account_is_not_active() {
    let (intune, stand) = with_devices(vec![Device::computer("C02A")]).await;
    intune.disable_user("ada");
    assert_eq!(found(&stand, USER_FIELDS).await.user.active, Fact::Value(false));
}

#[tokio::test]
async fn a_device_without_a_user_has_none() {
    for id in ["", NOBODYS] {
        let device = Device { user: None, ..Device::computer("C02A") }.with("userId", json!(id));
        let (_, stand) = with_devices(vec![device]).await;
        assert!(found(&stand, USER_FIELDS).await.user == posture::record::User::none());
        assert_eq!(stand.fake.lookups().len(), 1);
    }
}

#[tokio::test]
async fn a_device_that_was_never_registered_is_in_no_group() {
    let zeros = || Device::computer("C02A").with("azureADDeviceId", json!(NOBODYS));
    for (device, groups) in [
        (zeros().with("azureADRegistered", json!(false)), Fact::Value(vec![])),
        (zeros(), Fact::Unknown),
        (zeros().with("azureADRegistered", json!(null)), Fact::Unknown),
        (Device::computer("C02A").with("azureADDeviceId", json!("')/owners?x=")), Fact::Unknown),
        (Device::computer("C02A").with("azureADDeviceId", json!(["a"])), Fact::Unknown),
    ] {
        let (_, stand) = with_devices(vec![device]).await;
        let record = found(&stand, GROUPS_FIELD).await;
        assert_eq!(record.groups, groups);
        assert!(record.aliases.is_empty());
        assert_eq!(stand.fake.lookups().len(), 1, "there is nobody to ask about");
    }
}

#[tokio::test]
async fn a_device_that_the_directory_does_not_have_is_in_unknown_groups() {
    let (intune, stand) = with_devices(vec![Device::computer("C02A")]).await;
    intune.fail_items("transitiveMemberOf", 404, RetryAfter::Absent);
    assert_eq!(found(&stand, GROUPS_FIELD).await.groups, Fact::Unknown);
}

#[tokio::test]
async fn names_of_people_may_hold_anything() {
    let long = "x".repeat(4096);
    for name in ["{{ .Token }}", "Zoë \"Z\" O'Hara", "👩‍🔬", long.as_str()] {
        let record = one(Device::computer("C02A").with("userDisplayName", json!(name))).await;
        assert_eq!(record.user.name, text(name));
    }
}

#[tokio::test]
async fn a_batch_without_an_answer_is_none() {
    let (_, stand) = with_devices(vec![Device::computer("C02A")]).await;
    for body in [&br#"{"responses":[]}"#[..], br#"{"responses":[{"id":"7","status":200}]}"#, br#"{"responses":[{"id":"0","status":200}]}"#]
    {
        stand.fake.pass_next(1);
        stand.fake.fail_next(1, Fault::Body(body.to_vec()));
        assert_eq!(asked(&stand, GROUPS_FIELD).await, Answer::Unavailable(Unavailable::Protocol));
    }
}
