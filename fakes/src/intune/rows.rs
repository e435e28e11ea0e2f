//! Devices in the schema of `managedDevice`.

use serde_json::{Map, Value, json};

use crate::Device;

/// Properties of v1.0 that a list has if nothing is selected.
pub(super) const LISTED: &str = "id,userId,deviceName,managedDeviceOwnerType,enrolledDateTime,lastSyncDateTime,operatingSystem,\
    complianceState,jailBroken,managementAgent,osVersion,azureADRegistered,deviceEnrollmentType,emailAddress,azureADDeviceId,\
    deviceRegistrationState,isSupervised,isEncrypted,userPrincipalName,model,manufacturer,imei,serialNumber,userDisplayName,udid,\
    deviceActionResults";

/// All properties of v1.0, as Microsoft's SDKs of v1.0 have them (`msgraph-sdk-go`, `models/managed_device.go`).
pub(super) const KNOWN: &[&str] = &[
    "id",
    "userId",
    "deviceName",
    "managedDeviceOwnerType",
    "deviceActionResults",
    "enrolledDateTime",
    "lastSyncDateTime",
    "operatingSystem",
    "complianceState",
    "jailBroken",
    "managementAgent",
    "osVersion",
    "easActivated",
    "azureADRegistered",
    "deviceEnrollmentType",
    "emailAddress",
    "azureADDeviceId",
    "deviceRegistrationState",
    "isSupervised",
    "isEncrypted",
    "userPrincipalName",
    "model",
    "manufacturer",
    "imei",
    "meid",
    "serialNumber",
    "userDisplayName",
    "wiFiMacAddress",
    "managedDeviceName",
    "udid",
    "iccid",
    "notes",
    "physicalMemoryInBytes",
];

/// Properties that only the beta has.
pub(super) const BETA: &[&str] = &["managementState", "lostModeState", "deviceType", "chassisType", "hardwareInformation"];

/// Properties that are always null in a list.
pub(super) const HIDDEN_IN_LISTS: &[&str] = &["udid", "iccid", "notes", "hardwareInformation"];

/// The directory's id of a group.
pub fn group_id(name: &str) -> String {
    guid("group", name)
}

/// The directory's id of a user.
pub fn user_id(login: &str) -> String {
    guid("user", login)
}

/// Intune's id of a device.
fn managed_id(device: &Device) -> String {
    match device.raw.get("id").and_then(Value::as_str) {
        Some(id) => id.to_owned(),
        None if device.id.is_empty() => guid("managed", &device.serial),
        None => device.id.clone(),
    }
}

/// The directory's id of a device; `None` if the property is not a text.
fn entra_id(device: &Device) -> Option<String> {
    match device.raw.get("azureADDeviceId") {
        Some(value) => value.as_str().map(str::to_owned),
        None => Some(guid("entra", &device.serial)),
    }
}

/// All ids that lead to a device, in lower case.
pub(super) fn ids(device: &Device) -> impl Iterator<Item = String> {
    let user = device.user.as_ref().map(|user| user_id(&user.id));
    [Some(managed_id(device)), entra_id(device), user].into_iter().flatten().map(|id| id.to_lowercase())
}

/// A device with all its properties.
pub(super) fn device(device: &Device) -> Map<String, Value> {
    let user = device.user.as_ref();
    let compliance = match device.compliant {
        Some(true) => "compliant",
        Some(false) => "noncompliant",
        None => "unknown",
    };
    let text = |value: Option<&str>| Value::from(value.unwrap_or_default());
    let row = json!({
        "id": managed_id(device),
        "userId": text(user.map(|user| user_id(&user.id)).as_deref()),
        "deviceName": device.name,
        "managedDeviceOwnerType": "company",
        "managementState": if device.managed { "managed" } else { "discovered" },
        "deviceActionResults": actions(device),
        "enrolledDateTime": "2026-01-05T10:00:00Z",
        "lastSyncDateTime": device.last_seen.as_deref().unwrap_or("0001-01-01T00:00:00Z"),
        "operatingSystem": if device.mobile { "iOS" } else { "macOS" },
        "complianceState": compliance,
        "jailBroken": if device.mobile { "False" } else { "Unknown" },
        "managementAgent": "mdm",
        "osVersion": device.os_version,
        "easActivated": false,
        "azureADRegistered": true,
        "deviceEnrollmentType": "appleBulkWithUser",
        "emailAddress": text(user.map(|user| user.email.as_str())),
        "azureADDeviceId": entra_id(device),
        "deviceRegistrationState": "registered",
        "isSupervised": true,
        "isEncrypted": true,
        "userPrincipalName": text(user.map(|user| user.id.as_str())),
        "model": if device.mobile { "iPhone 16" } else { "MacBook Pro" },
        "manufacturer": "Apple",
        "imei": "",
        "meid": "",
        "serialNumber": device.serial,
        "userDisplayName": text(user.map(|user| user.name.as_str())),
        "wiFiMacAddress": "",
        "managedDeviceName": device.name,
        "udid": device.udid,
        "iccid": "",
        "notes": "",
        "physicalMemoryInBytes": 0,
        "lostModeState": if device.lost { "enabled" } else { "disabled" },
    });
    let Value::Object(mut row) = row else { return Map::new() };
    row.extend(device.raw.clone());
    row
}

/// The actions that were ordered for a device (`deviceActionResult`): for a device that is no longer managed, its retirement.
fn actions(device: &Device) -> Value {
    if device.managed {
        return json!([]);
    }
    json!([{
        "actionName": "removeCompanyData", "actionState": "done", "startDateTime": "2026-01-06T10:00:00Z",
        "lastUpdatedDateTime": device.last_seen.as_deref().unwrap_or("2026-01-06T10:00:00Z"),
    }])
}

/// The selected properties of a row.
pub(super) fn select(row: Map<String, Value>, names: &str) -> Map<String, Value> {
    row.into_iter().filter(|(name, _)| names.split(',').any(|chosen| chosen == name)).collect()
}

/// An id that is always the same for a name.
fn guid(kind: &str, name: &str) -> String {
    // FNV-1a is enough, since ids only have to differ.
    let hash = |seed: u64| {
        kind.bytes().chain(*b"/").chain(name.bytes()).fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let (one, two) = (hash(0xcbf2_9ce4_8422_2325), hash(0x8422_2325_cbf2_9ce4));
    format!("{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}", one >> 32, one >> 16 & 0xffff, one & 0xfff, two >> 48 & 0xfff, two & 0xffff_ffff_ffff)
}
