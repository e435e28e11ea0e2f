//! A device as a fake keeps it, in words that every management has one for.

use serde_json::{Map, Value};

/// One device. A fake writes it in its own schema.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// How the management names it; made up from the serial number where it is empty.
    pub id: String,
    /// Serial number, as it stands in the inventory.
    pub serial: String,
    /// Unique device identifier.
    pub udid: String,
    /// Name that people see.
    pub name: String,
    /// Whether it is a phone or tablet, where the management keeps those apart.
    pub mobile: bool,
    /// Whether it is under management; a record stays after that ends.
    pub managed: bool,
    /// Whether it is reported lost.
    pub lost: bool,
    /// Version of the operating system.
    pub os_version: String,
    /// What the management thinks of it: `Some(true)` compliant, `None` undecided.
    pub compliant: Option<bool>,
    /// Groups, tags or labels, by name.
    pub groups: Vec<String>,
    /// Login name, name, mail address and department of its user.
    pub user: Option<User>,
    /// When it was last heard of, RFC 3339; `None`: never.
    pub last_seen: Option<String>,
    /// Fields of the management's own schema that replace what the fake would write; for states that only it has.
    pub raw: Map<String, Value>,
}

/// Who uses a device.
#[derive(Clone, Debug, Default)]
pub struct User {
    /// Login name.
    pub id: String,
    /// Name that people see.
    pub name: String,
    /// Mail address.
    pub email: String,
    /// Department.
    pub department: String,
}

impl Device {
    /// A managed, compliant computer of Ada's.
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

    /// A managed, compliant phone of Ada's.
    pub fn phone(serial: &str) -> Self {
        Self { mobile: true, name: format!("Phone {serial}"), os_version: "18.4".to_owned(), ..Self::computer(serial) }
    }

    /// In these groups and no others.
    #[must_use]
    pub fn in_groups(mut self, groups: &[&str]) -> Self {
        self.groups = groups.iter().map(|group| (*group).to_owned()).collect();
        self
    }

    /// With another value in the management's own schema.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.raw.insert(field.to_owned(), value);
        self
    }
}
