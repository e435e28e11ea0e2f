//! `[provider.<name>]` with `type = "mosyle"`: the settings of a tenant.

use std::path::Path;

use posture::record::{Field, Fields};

use settings::{SecretSource, Section};

/// `[provider.<name>]` with `type = "mosyle"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Product of the tenant; default business.
    pub product: Product,
    /// Source of the API integration's access token.
    pub access_token: SecretSource,
    /// Mail address of the administrator whose login the integration takes.
    pub email: String,
    /// Source of that administrator's password.
    pub password: SecretSource,
    /// Values of `status` that mean that a device is managed; default `INSTALLED` and `IN`.
    pub managed_statuses: Vec<String>,
    /// Families of systems that are asked for; default `mac` and `ios`, which has iPads too.
    pub families: Vec<String>,
    /// Custom attributes, by name or unique id, that go into the record's data; default none.
    pub attributes: Vec<String>,
}

/// One of Mosyle's products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// The product for companies.
    Business,
    /// The product for schools.
    Manager,
}

impl Product {
    /// Address of the product's API.
    pub(super) const fn address(self) -> &'static str {
        match self {
            Self::Business => BUSINESS,
            Self::Manager => "https://managerapi.mosyle.com/v2",
        }
    }
}

pub(super) const BUSINESS: &str = "https://businessapi.mosyle.com/v1";
const FAMILIES: &[&str] = &["mac", "ios", "tvos", "visionos"];

/// Fields that a record can always hold; custom attributes come besides.
const FIELDS: Fields = Fields::of(&[
    Field::ProviderId,
    Field::Form,
    Field::Serial,
    Field::Udid,
    Field::Name,
    Field::Platform,
    Field::OsVersion,
    Field::OsBuild,
    Field::Model,
    Field::Managed,
    Field::Supervised,
    Field::Ownership,
    Field::Groups,
    Field::Lost,
    Field::Compromised,
    Field::Attestation,
    Field::UserId,
    Field::UserName,
    Field::UserEmail,
    Field::EnrolledAt,
    Field::LastSeen,
    Field::InventoryAt,
]);

impl Settings {
    /// Reads the keys that are the service's own. Returns `None` where a needed one is missing or wrong, after reporting it.
    pub(super) fn of(section: &mut Section<'_>, base: &Path) -> Option<Self> {
        let product = section.text("product", |text| match text {
            "business" => Ok(Product::Business),
            "manager" => Ok(Product::Manager),
            _ => Err(format!("`{text}` is no product; there are business, manager")),
        });
        let access_token = SecretSource::required(section, "access_token", base);
        if !section.has("email") {
            section.missing("email", "email = \"api@example.org\", the administrator whose login the integration takes");
        }
        let email = section
            .text("email", |text| if text.contains('@') { Ok(text.to_owned()) } else { Err(format!("`{text}` is not a mail address")) });
        let password = SecretSource::required(section, "password", base);
        let place = section.place().clone();
        let texts = |section: &mut Section<'_>, key: &'static str, default: &[&str]| {
            let texts = section.texts(key).unwrap_or_else(|| default.iter().map(|text| (*text).to_owned()).collect());
            if texts.is_empty() && !default.is_empty() {
                section.report().mistake(&place, format!("`{key}` is empty, and then there would be no device"));
            }
            texts
        };
        let managed_statuses = texts(section, "managed_statuses", &["INSTALLED", "IN"]);
        let families = texts(section, "families", &["mac", "ios"]);
        for family in &families {
            if !FAMILIES.contains(&family.as_str()) {
                section.report().mistake(&place, format!("`{family}` is no family; there are {}", FAMILIES.join(", ")));
            }
        }
        let attributes = texts(section, "attributes", &[]);
        Some(Self {
            product: product.unwrap_or(Product::Business),
            access_token: access_token?,
            email: email?,
            password: password?,
            managed_statuses,
            families,
            attributes,
        })
    }

    /// Fields that a record can ever hold.
    pub(super) fn known(&self) -> Fields {
        let data = if self.attributes.is_empty() { Fields::NONE } else { Fields::of(&[Field::Data]) };
        FIELDS.union(data)
    }

    /// Sources of the access token and the password.
    pub(super) fn sources(&self) -> Vec<&SecretSource> {
        vec![&self.access_token, &self.password]
    }
}
