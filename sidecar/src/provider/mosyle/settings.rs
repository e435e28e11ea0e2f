//! What the configuration says of a tenant.

use std::path::Path;

use posture::record::Fields;
use url::Url;

use crate::config::{SecretSource, Section, list_of_texts, one_secret};

/// `[provider.<name>]` with `type = "mosyle"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Default business.
    pub product: Product,
    /// Access token of the API integration.
    pub access_token: SecretSource,
    /// Mail address of the administrator whose login the integration takes.
    pub email: String,
    /// That administrator's password.
    pub password: SecretSource,
    /// Values of `status` that say that a device is managed; default `INSTALLED` and `IN`.
    pub managed_statuses: Vec<String>,
    /// Families of systems that are asked for; default `mac` and `ios`, which has iPads too.
    pub families: Vec<String>,
    /// Custom attributes, by name or unique id, that go into the record's data; default none.
    pub attributes: Vec<String>,
}

/// Which of Mosyle's products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// For companies.
    Business,
    /// For schools.
    Manager,
}

impl Product {
    /// Where it is.
    pub(super) const fn address(self) -> &'static str {
        match self {
            Self::Business => BUSINESS,
            Self::Manager => "https://managerapi.mosyle.com/v2",
        }
    }
}

pub(super) const BUSINESS: &str = "https://businessapi.mosyle.com/v1";
const FAMILIES: &[&str] = &["mac", "ios", "tvos", "visionos"];

impl Settings {
    /// That of Business; Manager has its own, which is taken where this one was not changed.
    pub const BASE_URL: Option<&'static str> = Some(BUSINESS);
    /// Requests at once: Mosyle names no limit, so few.
    pub const CONNECTIONS: usize = 3;
    /// Lookups in a second.
    pub const PER_SECOND: u32 = 20;

    pub(crate) fn read(section: &mut Section<'_>, base: &Path) -> Option<Self> {
        let product = section.text("product", |text| match text {
            "business" => Ok(Product::Business),
            "manager" => Ok(Product::Manager),
            _ => Err(format!("`{text}` is no product; there are business, manager")),
        });
        let access_token = one_secret(section, "access_token", base);
        if !section.has("email") {
            section.missing("email", "email = \"api@example.org\", the administrator whose login the integration takes");
        }
        let email = section
            .text("email", |text| if text.contains('@') { Ok(text.to_owned()) } else { Err(format!("`{text}` is not a mail address")) });
        let password = one_secret(section, "password", base);
        let place = section.place().clone();
        let texts = |section: &mut Section<'_>, key: &'static str, default: &[&str]| {
            let texts = list_of_texts(section, key).unwrap_or_else(|| default.iter().map(|text| (*text).to_owned()).collect());
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

    /// The address of the product, unless another was given.
    pub(crate) fn address(&self, base_url: Url) -> Url {
        let given = base_url.as_str() != BUSINESS;
        if given { base_url } else { self.product.address().parse().unwrap_or(base_url) }
    }

    /// Fields that a record can ever hold.
    pub fn fields(&self) -> Fields {
        super::record::fields(self)
    }

    /// Access token and password.
    pub fn secrets(&self) -> Vec<&SecretSource> {
        vec![&self.access_token, &self.password]
    }
}
