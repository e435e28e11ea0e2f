//! A device as a fake keeps it, in fields that every management has.

use serde_json::{Map, Value};

/// A device. Each fake writes it in its own schema.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// Id of the device in the management; derived from the serial number if it is empty.
    pub id: String,
    /// Serial number, as it stands in the inventory.
    pub serial: String,
    /// Unique device identifier.
    pub udid: String,
    /// Display name.
    pub name: String,
    /// Whether the device is a phone or tablet, if the management keeps those apart.
    pub mobile: bool,
    /// Whether the device is under management; a record stays after that ends.
    pub managed: bool,
    /// Whether the device is reported lost.
    pub lost: bool,
    /// Version of the operating system.
    pub os_version: String,
    /// Compliance as the management judges it: `Some(true)` compliant, `None` undecided.
    pub compliant: Option<bool>,
    /// Groups, tags or labels, by name.
    pub groups: Vec<String>,
    /// The user: login name, name, mail address and department.
    pub user: Option<User>,
    /// Time at which the management last heard of the device, RFC 3339; `None`: never.
    pub last_seen: Option<String>,
    /// Fields of the management's own schema that replace what the fake would write, for states that only this management has.
    pub raw: Map<String, Value>,
}

/// The user of a device.
#[derive(Clone, Debug, Default)]
pub struct User {
    /// Login name.
    pub id: String,
    /// Display name.
    pub name: String,
    /// Mail address.
    pub email: String,
    /// Department.
    pub department: String,
}

impl Device {
    /// A managed, compliant computer of the user Ada.
    pub fn computer(serial: &str) -> Self {
        Self {
            id: String::new(),
            serial: serial.to_owned(),
            udid: format!("00008103-{:0>16}", serial.chars().filter(char::is_ascii_alphanumeric).take(16).collect::<String>()),
            name: format!("Computer {serial}"),
            mobile: false,
            managed: true,
            lost: false,
            os_version: "15.4.1".to_owned(),
            compliant: Some(true),
            groups: vec!["All Managed".to_owned()],
            user: Some(User {
                id: "ada".to_owned(),
                name: "Ada Lovelace".to_owned(),
                email: "ada@example.org".to_owned(),
                department: "Engines".to_owned(),
            }),
            last_seen: Some("2026-11-24T08:00:00.123Z".to_owned()),
            raw: Map::new(),
        }
    }

    /// A managed, compliant phone of the user Ada.
    pub fn phone(serial: &str) -> Self {
        Self { mobile: true, name: format!("Phone {serial}"), os_version: "18.4".to_owned(), ..Self::computer(serial) }
    }

    /// Puts the device into these groups only.
    #[must_use]
    pub fn in_groups(mut self, groups: &[&str]) -> Self {
        self.groups = groups.iter().map(|group| (*group).to_owned()).collect();
        self
    }

    /// Sets another value in the management's own schema.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.raw.insert(field.to_owned(), value);
        self
    }
}

impl Device {
    /// Parses a JSON list of devices. Only `serial` is required; the other fields default to those of [`Device::computer`]
    /// or, with `mobile`, [`Device::phone`]. A `user` of null means no user, and `raw` holds fields of the management's own
    /// schema.
    ///
    /// # Errors
    /// A text that says which entry is wrong, and why.
    pub fn list(text: &str) -> Result<Vec<Self>, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let entries = value.as_array().ok_or("devices are a list in [ ]")?;
        let read = |(number, entry)| Self::read(entry).map_err(|error| format!("device {}: {error}", number + 1));
        entries.iter().enumerate().map(read).collect()
    }

    fn read(entry: &Value) -> Result<Self, String> {
        let entry = entry.as_object().ok_or("is not an object")?;
        let serial = entry.get("serial").and_then(Value::as_str).ok_or("has no `serial`")?;
        let mobile = entry.get("mobile").and_then(Value::as_bool).unwrap_or_default();
        let mut device = if mobile { Self::phone(serial) } else { Self::computer(serial) };
        for (key, value) in entry {
            let text = || value.as_str().map(str::to_owned).ok_or(format!("`{key}` must be a string"));
            let flag = || value.as_bool().ok_or(format!("`{key}` must be true or false"));
            match key.as_str() {
                "serial" | "mobile" => {}
                "id" => device.id = text()?,
                "udid" => device.udid = text()?,
                "name" => device.name = text()?,
                "managed" => device.managed = flag()?,
                "lost" => device.lost = flag()?,
                "os_version" => device.os_version = text()?,
                "compliant" => device.compliant = if value.is_null() { None } else { Some(flag()?) },
                "groups" => {
                    let names = value.as_array().ok_or("`groups` must be a list")?.iter().map(|name| name.as_str().map(str::to_owned));
                    device.groups = names.collect::<Option<_>>().ok_or("`groups` lists strings")?;
                }
                "user" => device.user = if value.is_null() { None } else { Some(User::read(value)?) },
                "last_seen" => device.last_seen = if value.is_null() { None } else { Some(text()?) },
                "raw" => device.raw = value.as_object().ok_or("`raw` must be an object")?.clone(),
                other => return Err(format!("has no key `{other}`")),
            }
        }
        Ok(device)
    }
}

impl User {
    fn read(value: &Value) -> Result<Self, String> {
        let mut user = Self::default();
        for (key, value) in value.as_object().ok_or("`user` must be an object or null")? {
            let text = value.as_str().ok_or(format!("`user.{key}` must be a string"))?.to_owned();
            match key.as_str() {
                "id" => user.id = text,
                "name" => user.name = text,
                "email" => user.email = text,
                "department" => user.department = text,
                other => return Err(format!("`user` has no key `{other}`")),
            }
        }
        Ok(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_list_of_devices() {
        let text = r#"[{"serial":"A","groups":["g"],"user":{"id":"u"}},{"serial":"B","mobile":true,"managed":false,"user":null,"compliant":null}]"#;
        let devices = Device::list(text).unwrap();
        assert_eq!((devices[0].groups.as_slice(), devices[0].mobile, devices[0].managed), (["g".to_owned()].as_slice(), false, true));
        assert_eq!((devices[1].mobile, devices[1].managed, devices[1].compliant), (true, false, None));
        for (text, error) in [
            ("{}", "devices are a list in [ ]"),
            (r#"[{"serial":"A"},{}]"#, "device 2: has no `serial`"),
            (r#"[{"serial":"A","colour":1}]"#, "device 1: has no key `colour`"),
            (r#"[{"serial":"A","managed":"yes"}]"#, "device 1: `managed` must be true or false"),
        ] {
            assert_eq!(Device::list(text).unwrap_err(), error);
        }
    }
}
