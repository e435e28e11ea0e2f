//! A row of `managedDevices`, as a record.

use posture::record::{Alias, Compliance, Fact, Form, Record, User};
use posture::time::UnixTime;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::settings::Version;
use crate::answer::Unavailable;

/// Properties that are asked for in every version.
pub(super) const SELECT: &[&str] = &[
    "id",
    "serialNumber",
    "deviceName",
    "operatingSystem",
    "osVersion",
    "model",
    "managementAgent",
    "managedDeviceOwnerType",
    "complianceState",
    "isSupervised",
    "isEncrypted",
    "jailBroken",
    "azureADDeviceId",
    "azureADRegistered",
    "userId",
    "userPrincipalName",
    "userDisplayName",
    "emailAddress",
    "enrolledDateTime",
    "lastSyncDateTime",
];

/// Properties that are asked for in one version alone. The `managedDevice` of v1.0 has no `managementState` (Microsoft's SDKs of
/// v1.0, `msgraph-sdk-go`, `models/managed_device.go`), and to select it is an error there; orders to a device are in its
/// `deviceActionResults` instead. The beta has both states.
pub(super) const fn own(version: Version) -> &'static [&'static str] {
    match version {
        Version::V1 => &["deviceActionResults"],
        Version::Beta => &["managementState", "lostModeState"],
    }
}

/// A row as a record, with the ids of the objects that have the rest.
#[derive(Debug)]
pub(super) struct Row {
    /// Record of what the row says by itself.
    pub(super) record: Record,
    /// Id of the directory's object for this device; `None` where there is none or it is unknown.
    pub(super) entra_id: Option<String>,
    /// Id of the directory's object for the user; `None` where there is none or it is unknown.
    pub(super) user_id: Option<String>,
}

impl Row {
    /// Reads a row. A property that is missing, or of an unexpected kind, is unknown.
    ///
    /// # Errors
    /// [`Unavailable::Protocol`] without an id, or without a readable serial number: the row could then be the device that was
    /// asked for.
    pub(super) fn read(row: Map<String, Value>, version: Version) -> Result<Self, Unavailable> {
        let row = Properties(row);
        let Fact::Value(provider_id) = row.text("id") else { return Err(Unavailable::Protocol) };
        let serial = row.text("serialNumber");
        if !serial.is_known() {
            return Err(Unavailable::Protocol);
        }
        let entra_id = row.object("azureADDeviceId");
        let user_id = row.object("userId");
        let by_intune = agent(row.word("managementAgent"));
        let (managed, wipe_pending) = match version {
            Version::V1 => ordered(by_intune, row.0.get("deviceActionResults"), &row.time("lastSyncDateTime")),
            Version::Beta => management(row.word("managementState"), by_intune),
        };
        let record = Record {
            provider_id,
            form: row.word("operatingSystem").map_or(Fact::Unknown, form),
            // The serial number is not trimmed: it stays as the inventory holds it.
            serial: row.verbatim("serialNumber"),
            aliases: entra_id.value().cloned().map(Alias::of_no_kind).into_iter().collect(),
            name: row.text("deviceName"),
            platform: row.text("operatingSystem"),
            os_version: row.text("osVersion"),
            model: row.text("model"),
            managed,
            supervised: row.flag("isSupervised"),
            ownership: match row.text("managedDeviceOwnerType") {
                Fact::Value(owner) if owner == "unknown" => Fact::Unknown,
                owner => owner,
            },
            compliance: row.word("complianceState").map_or(Fact::Unknown, compliance),
            groups: groups(&entra_id, &row.flag("azureADRegistered")),
            lost: match row.word("lostModeState") {
                Some("enabled") if version == Version::Beta => Fact::Value(true),
                Some("disabled") if version == Version::Beta => Fact::Value(false),
                _ => Fact::Unknown,
            },
            wipe_pending,
            compromised: match row.word("jailBroken").map(str::to_ascii_lowercase).as_deref() {
                Some("true") => Fact::Value(true),
                Some("false") => Fact::Value(false),
                _ => Fact::Unknown,
            },
            encrypted: row.flag("isEncrypted"),
            user: user(&row, &user_id),
            enrolled_at: row.time("enrolledDateTime"),
            last_seen: row.time("lastSyncDateTime"),
            ..Record::default()
        };
        Ok(Self { record, entra_id: entra_id.value().cloned(), user_id: user_id.value().cloned() })
    }
}

/// A moment as OData writes it, to the second.
pub(super) fn date(moment: UnixTime) -> String {
    let seconds = moment.as_nanos().div_euclid(1_000_000_000);
    OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|date| date.format(&Rfc3339).ok()).unwrap_or_default()
}

/// Says whether Intune manages a device, by the words of `managementAgentType`.
fn agent(agent: Option<&str>) -> Fact<bool> {
    match agent {
        // Intune manages Android Enterprise by Google's controller.
        Some(
            "mdm"
            | "easMdm"
            | "intuneClient"
            | "easIntuneClient"
            | "configurationManagerClientMdm"
            | "configurationManagerClientMdmEas"
            | "googleCloudDevicePolicyController"
            | "intuneAosp"
            | "microsoft365ManagedMdm",
        ) => Fact::Value(true),
        // Intune has a record of these devices, but another system manages them.
        Some("eas" | "configurationManagerClient" | "jamf") => Fact::Value(false),
        _ => Fact::Unknown,
    }
}

/// Says whether a device is managed, and whether the end of the management was ordered, by the words of `managementState`.
fn management(state: Option<&str>, by_intune: Fact<bool>) -> (Fact<bool>, Fact<bool>) {
    match state {
        Some("managed" | "retireCanceled" | "wipeCanceled") => (by_intune, Fact::Value(false)),
        Some("retirePending" | "retireIssued" | "wipePending" | "wipeIssued" | "deletePending") => (Fact::Value(false), Fact::Value(true)),
        // A failed order may have been carried out in part, but the end of the management was wanted.
        Some("retireFailed" | "wipeFailed") => (Fact::Unknown, Fact::Value(true)),
        Some("discovered") => (Fact::Value(false), Fact::Value(false)),
        Some("unhealthy") => (Fact::Unknown, Fact::Value(false)),
        // The agent alone proves no management; that of another system disproves it.
        _ if by_intune == Fact::Value(false) => (by_intune, Fact::Unknown),
        _ => (Fact::Unknown, Fact::Unknown),
    }
}

/// Says the same as [`management`], by the results of actions (`deviceActionResult`). A device that synchronised after it was
/// wiped or retired is back. A missing result is no proof that no action was ordered.
fn ordered(by_intune: Fact<bool>, results: Option<&Value>, synchronised: &Fact<UnixTime>) -> (Fact<bool>, Fact<bool>) {
    let results = match results {
        None | Some(Value::Null) => &[],
        Some(Value::Array(results)) => results.as_slice(),
        // A value of another form may hide an order.
        Some(_) => return (not_certain(by_intune), Fact::Unknown),
    };
    let (mut leaving, mut doubt) = (false, false);
    for result in results {
        let word = |name: &str| result.get(name).and_then(Value::as_str).unwrap_or_default();
        if !LEAVING.iter().any(|action| action.eq_ignore_ascii_case(word("actionName"))) {
            continue;
        }
        match word("actionState") {
            "none" | "canceled" | "notSupported" => {}
            "pending" | "active" => leaving = true,
            "done" => {
                let done = UnixTime::parse(word("lastUpdatedDateTime"));
                leaving |= done.is_none_or(|done| synchronised.value().is_none_or(|seen| *seen <= done));
            }
            // An unclear order may have been carried out in part, but the end of the management was wanted.
            _ => doubt = true,
        }
    }
    match (leaving, doubt) {
        (true, _) => (Fact::Value(false), Fact::Value(true)),
        (false, true) => (not_certain(by_intune), Fact::Value(true)),
        (false, false) => (by_intune, Fact::Unknown),
    }
}

/// Keeps a no; a yes becomes unknown.
fn not_certain(by_intune: Fact<bool>) -> Fact<bool> {
    if by_intune == Fact::Value(false) { by_intune } else { Fact::Unknown }
}

/// Actions after which Intune no longer manages a device: their names in the API, and those in results.
const LEAVING: &[&str] = &["retire", "removeCompanyData", "wipe", "factoryReset", "delete"];

fn compliance(state: &str) -> Fact<Compliance> {
    Fact::Value(match state {
        "compliant" => Compliance::Compliant,
        // A device does not keep rules that contradict each other or could not be applied.
        "noncompliant" | "conflict" | "error" => Compliance::NonCompliant,
        "inGracePeriod" => Compliance::GracePeriod,
        "unknown" | "configManager" => Compliance::Undetermined,
        _ => return Fact::Unknown,
    })
}

fn form(system: &str) -> Fact<Form> {
    let system = system.to_ascii_lowercase();
    if ["macos", "windows", "linux", "chromeos", "chrome os"].contains(&system.as_str()) {
        Fact::Value(Form::Computer)
    } else if ["ios", "ipados", "tvos", "visionos"].contains(&system.as_str()) || system.starts_with("android") {
        Fact::Value(Form::MobileDevice)
    } else {
        Fact::Unknown
    }
}

/// Groups of the directory's device. A device that was never registered there is in none; one that is registered but has no id
/// yet is in groups that cannot be asked for.
fn groups(entra_id: &Fact<String>, registered: &Fact<bool>) -> Fact<Vec<posture::record::Group>> {
    if *entra_id == Fact::Absent && *registered == Fact::Value(false) { Fact::Value(Vec::new()) } else { Fact::Unknown }
}

fn user(row: &Properties, user_id: &Fact<String>) -> User {
    let login = row.text("userPrincipalName");
    if *user_id == Fact::Absent && login == Fact::Absent {
        return User::none();
    }
    User {
        id: if login == Fact::Absent { user_id.clone() } else { login },
        name: row.text("userDisplayName"),
        email: row.text("emailAddress"),
        department: Fact::Unknown,
        title: Fact::Unknown,
        active: Fact::Unknown,
    }
}

/// Properties of a row, by name.
struct Properties(Map<String, Value>);

impl Properties {
    fn word(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    fn text(&self, name: &str) -> Fact<String> {
        match self.0.get(name) {
            Some(Value::Null) => Fact::Absent,
            Some(Value::String(text)) => Fact::text(Some(text)),
            Some(Value::Number(number)) => Fact::Value(number.to_string()),
            _ => Fact::Unknown,
        }
    }

    fn verbatim(&self, name: &str) -> Fact<String> {
        match (self.text(name), self.word(name)) {
            (Fact::Value(_), Some(text)) => Fact::Value(text.to_owned()),
            (text, _) => text,
        }
    }

    fn flag(&self, name: &str) -> Fact<bool> {
        self.0.get(name).and_then(Value::as_bool).map_or(Fact::Unknown, Fact::Value)
    }

    /// Reads a date; Graph writes a date that never came as the first day of the year 1.
    fn time(&self, name: &str) -> Fact<UnixTime> {
        match self.word(name) {
            Some(text) if text.starts_with("0001-01-01") => Fact::Absent,
            Some(text) => UnixTime::parse(text).map_or(Fact::Unknown, Fact::Value),
            None => Fact::Unknown,
        }
    }

    /// Reads the id of an object of the directory; an id of zeros means that there is none.
    fn object(&self, name: &str) -> Fact<String> {
        match self.text(name) {
            Fact::Value(id) if !is_guid(&id) => Fact::Unknown,
            Fact::Value(id) if id.bytes().all(|byte| matches!(byte, b'0' | b'-')) => Fact::Absent,
            id => id,
        }
    }
}

/// Returns whether a text may stand in an address as the id of an object.
pub(super) fn is_guid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| if matches!(at, 8 | 13 | 18 | 23) { byte == b'-' } else { byte.is_ascii_hexdigit() })
}
