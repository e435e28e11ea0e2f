//! Devices in the schemas of Jamf Pro.

use serde_json::{Map, Value, json};

use crate::Device;
use crate::device::User;

/// The id of a device: its own, or a number derived from the serial number. Computers and mobile devices are numbered apart.
pub(super) fn id(device: &Device) -> String {
    if device.id.is_empty() {
        let hash = device.serial.bytes().fold(7_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
        (hash % 1_000_000_007).to_string()
    } else {
        device.id.clone()
    }
}

/// The id of a department or group: the same for the same name.
pub(super) fn id_of(name: &str) -> String {
    (name.bytes().fold(5_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte))) % 100_000).to_string()
}

/// A whole record of `computers-inventory`.
pub(super) fn computer(device: &Device, version: u8) -> Value {
    let user = |pick: fn(&User) -> &str| device.user.as_ref().map(|user| pick(user).to_owned());
    let contact = if version >= 4 { "lastContact" } else { "lastContactTime" };
    let mut record = json!({
        "id": id(device),
        "udid": device.udid,
        "general": {
            "name": device.name,
            "platform": "Mac",
            "remoteManagement": {"managed": device.managed, "managementUsername": null},
            "supervised": device.managed,
            "mdmCapable": {"capable": device.managed, "capableUsers": []},
            "enrolledViaAutomatedDeviceEnrollment": true,
            "userApprovedMdm": device.managed,
            "reportDate": device.last_seen,
            "lastEnrolledDate": "2026-01-02T03:04:05.678Z",
            "mdmProfileExpiration": "2030-01-02T03:04:05Z",
            "initialEntryDate": "2026-01-02",
            "site": {"id": "-1", "name": "None"},
            contact: device.last_seen,
        },
        "hardware": {"make": "Apple", "model": "MacBook Pro", "modelIdentifier": "Mac15,3", "serialNumber": device.serial},
        "operatingSystem": {
            "name": "macOS", "version": device.os_version, "build": "24E263", "supplementalBuildVersion": "24E263",
            "rapidSecurityResponse": null, "fileVault2Status": "BOOT_ENCRYPTED",
        },
        "userAndLocation": {
            "username": user(|user| &user.id), "realname": user(|user| &user.name), "email": user(|user| &user.email),
            "position": null, "phone": null, "departmentId": user(|user| &user.department).map(|name| id_of(&name)), "buildingId": null,
            "room": null,
        },
        "security": {
            "sipStatus": "ENABLED", "secureBootLevel": "FULL_SECURITY", "firewallEnabled": true, "attestationStatus": "SUCCESS",
            "lastSuccessfulAttestation": "2026-11-01T00:00:00Z",
        },
        "groupMemberships": device.groups.iter().map(|name| json!({
            "groupId": id_of(name), "groupName": name, "groupDescription": "", "smartGroup": true,
        })).collect::<Vec<_>>(),
    });
    if version >= 4 {
        replace(&mut record, "general.lastCheckIn", Value::Null);
    }
    for (path, value) in &device.raw {
        replace(&mut record, path, value.clone());
    }
    record
}

/// A whole record of `mobile-devices/detail`; `contact` tells whether the version has the last contact.
pub(super) fn mobile(device: &Device, contact: bool) -> Value {
    let user = |pick: fn(&User) -> &str| device.user.as_ref().map(|user| pick(user).to_owned());
    let mut record = json!({
        "mobileDeviceId": id(device),
        "deviceType": "iOS",
        "general": {
            "udid": device.udid, "displayName": device.name, "osVersion": device.os_version, "osBuild": "22E240", "managed": device.managed,
            "supervised": device.managed, "deviceOwnershipType": "Institutional",
            "lastInventoryUpdateDate": device.last_seen, "lastEnrolledDate": "2026-01-02T03:04:05.678Z",
            "mdmProfileExpirationDate": "2030-01-02T03:04:05Z", "siteId": "-1",
        },
        "hardware": {"serialNumber": device.serial, "model": "iPhone 16", "modelIdentifier": "iPhone17,3"},
        "userAndLocation": {
            "username": user(|user| &user.id), "realName": user(|user| &user.name), "emailAddress": user(|user| &user.email),
            "position": null, "departmentId": user(|user| &user.department).map(|name| id_of(&name)),
            "department": user(|user| &user.department), "building": null, "room": null,
        },
        "security": {
            "dataProtected": true, "passcodeCompliant": true, "jailBreakDetected": false, "lostModeEnabled": device.lost,
            "attestationStatus": "SUCCESS", "lastSuccessfulAttestationDate": "2026-11-01T00:00:00Z",
        },
        "groups": device.groups.iter().map(|name| json!({
            "groupId": id_of(name), "groupName": name, "groupDescription": "", "smart": true,
        })).collect::<Vec<_>>(),
    });
    if contact {
        replace(&mut record, "general.lastContactDate", json!(device.last_seen));
    }
    for (path, value) in &device.raw {
        replace(&mut record, path, value.clone());
    }
    record
}

/// Sets the value at a path such as `general.supervised`.
fn replace(record: &mut Value, path: &str, value: Value) {
    let mut at = record;
    for part in path.split('.') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = at.as_object_mut().unwrap().entry(part).or_insert(Value::Null);
    }
    *at = value;
}

/// The value at a path, or null.
pub(super) fn at(record: &Value, path: &str) -> Value {
    path.split('.').try_fold(record, |value, part| value.get(part)).cloned().unwrap_or_default()
}

/// The sections of an answer for each name of a section in a query.
pub(super) const SECTIONS: &[(&str, &[&str])] = &[
    ("GENERAL", &["general"]),
    ("HARDWARE", &["hardware"]),
    ("OPERATING_SYSTEM", &["operatingSystem"]),
    ("USER_AND_LOCATION", &["userAndLocation"]),
    ("SECURITY", &["security"]),
    ("GROUP_MEMBERSHIPS", &["groupMemberships"]),
    ("GROUPS", &["groups"]),
];
