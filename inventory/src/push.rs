//! `[provider.<name>.push]`: how the events of a service prove where they come from.

use std::path::Path;

use settings::{SecretSource, Section};

/// The proof that the service's own events carry, and its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// The part of an event that is compared with the secret.
    pub proof: Proof,
    /// The secret that the proof is checked with.
    pub secret: SecretSource,
}

impl Push {
    /// Reads the keys of the table. Returns `None` where the secret is missing or wrong, after reporting it.
    pub fn read(mut section: Section<'_>, base: &Path) -> Option<Self> {
        let report = section.report();
        if !section.has("secret") {
            section.missing("secret", "secret = { file = \"secrets/events\" }: events without proof are never taken");
        }
        let secret = section.take("secret").and_then(|value| SecretSource::of(value, "secret", base, report));
        let header = |text: &str| match http::HeaderName::from_bytes(text.as_bytes()) {
            Ok(name) => Ok(name.as_str().to_owned()),
            Err(_) => Err(format!("`{text}` is not the name of a header")),
        };
        let username = section.text("username", |text| Ok(Proof::Basic(text.to_owned())));
        let header_name = section.text("header", header).map(Proof::Header);
        let hmac = section.text("hmac_header", header).map(Proof::Hmac);
        let proofs: Vec<Proof> = [username, header_name, hmac].into_iter().flatten().collect();
        if proofs.len() > 1 {
            report.mistake(section.place(), "events have one proof: `username`, `header` or `hmac_header`, and without any a bearer token");
        }
        section.finish();
        Some(Self { proof: proofs.into_iter().next().unwrap_or(Proof::Bearer), secret: secret? })
    }
}

/// The proof that an event carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The header `Authorization: Basic` with this user name.
    Basic(String),
    /// The header `Authorization: Bearer`.
    Bearer,
    /// The named header, whose value is the secret.
    Header(String),
    /// The named header, whose value is the HMAC-SHA256 of the body, hexadecimal or base64.
    Hmac(String),
}
