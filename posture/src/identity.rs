//! Step 6, the device: which device a request is about, and how well that is proven.

mod device;
mod field;
mod names;
#[cfg(test)]
mod tests;
mod word;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use self::names::{Half, Names};
use crate::outcome::Denial;
use crate::webhook::Webhook;

pub use self::device::{DeviceId, IdentifierKind, UDID_SHAPES, normal, same, undashed};
pub use self::field::Field;
pub use self::word::UnknownWord;
pub use crate::key::PublicKey;

/// The level of proof that a request comes from the device, from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// The request itself states the identifier.
    Claimed,
    /// A certificate that step-ca accepted states the identifier (X5C).
    Certificate,
    /// The device's hardware attested the identifier.
    Attested,
}

impl Trust {
    /// All levels, from worst to best.
    pub const ALL: &'static [Self] = &[Self::Claimed, Self::Certificate, Self::Attested];

    /// The level's name in logs and policies, such as `attested`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Certificate => "certificate",
            Self::Attested => "attested",
        }
    }
}

/// A device, and the level of proof for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The device's identifier.
    pub device: DeviceId,
    /// The level of proof.
    pub trust: Trust,
}

/// The place in a webhook's body that holds the device's identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The attested identifier, `attestationData.permanentIdentifier`.
    Attested,
    /// A field of the certificate request, or of the certificate made of it.
    Claimed(Field),
    /// A field of the certificate that authorized an X5C request.
    Certificate(Field),
    /// `authorizationPrincipal`: the owner of the request's token, as step-ca understood it. The level is
    /// [`Trust::Certificate`] with an X5C certificate, whose common name must be the same, and [`Trust::Claimed`] without
    /// one.
    Principal,
}

impl Source {
    /// Finds the device that a verified webhook is about.
    ///
    /// All names in the body count that will be signed, or that are asked to be.
    ///
    /// # Errors
    /// A [`Denial`] if the webhook names no device, several, an impossible one, or two that disagree, and if its subject
    /// alternative names cannot be read. With an attestation, every other name of the device must be the attested one: the
    /// common names of a request, which may be empty, and every permanent identifier. A template may change the subject
    /// afterwards, so a certificate's common name is not compared with it; it only has to be the same in every field that
    /// states it.
    pub fn identify(self, webhook: &Webhook<'_>, kind: IdentifierKind) -> Result<Identity, Denial> {
        let attested = webhook.attestation_data.as_ref().map(|data| data.permanent_identifier.as_ref());
        for half in halves(webhook) {
            let named = half.permanent_identifiers()?;
            if let Some(attested) = attested {
                conforms(half, &named, attested)?;
            }
        }
        let (stated, trust) = match self {
            Self::Attested => (attested.ok_or(Denial::ATTESTATION_MISSING)?.to_owned(), Trust::Attested),
            Self::Claimed(field) => (claimed(webhook, field)?, Trust::Claimed),
            Self::Certificate(field) => (certified(webhook, field)?, Trust::Certificate),
            Self::Principal => principal(webhook)?,
        };
        Ok(Identity { device: DeviceId::new(kind, &stated)?, trust })
    }
}

fn halves<'w>(webhook: &'w Webhook<'w>) -> impl Iterator<Item = Half<'w>> {
    let request = webhook.x509_certificate_request.as_ref().map(Half::Request);
    request.into_iter().chain(webhook.x509_certificate.as_ref().map(Half::Certificate))
}

fn conforms(half: Half<'_>, named: &[String], attested: &str) -> Result<(), Denial> {
    let common_names = Names::of(half, Field::SubjectCommonName)?;
    let fits = match half {
        Half::Request(_) => common_names.all().all(|name| name == attested),
        Half::Certificate(_) => common_names.agree(),
    };
    if fits && named.iter().all(|name| normal(name) == normal(attested)) { Ok(()) } else { Err(Denial::IDENTIFIER_MISMATCH) }
}

fn claimed(webhook: &Webhook<'_>, field: Field) -> Result<String, Denial> {
    match field {
        Field::SshKeyId => present(webhook.ssh().and_then(|ssh| ssh.key_id.as_deref())),
        Field::SshPrincipal => webhook.ssh().map(|ssh| Names::of_list(&ssh.principals)).unwrap_or_default().one(),
        _ => halves(webhook).next().map(|half| Names::of(half, field)).transpose()?.unwrap_or_default().one(),
    }
}

fn certified(webhook: &Webhook<'_>, field: Field) -> Result<String, Denial> {
    let raw = webhook.x5c_certificate.as_ref().ok_or(Denial::IDENTIFIER_MISSING)?;
    let der = STANDARD.decode(raw.raw.as_bytes()).map_err(|_| Denial::IDENTIFIER_INVALID)?;
    field.of_certificate(&der)
}

/// The `authorizationPrincipal` and its trust. For an X5C token it is the common name of the certificate; for any other token
/// the cloud states it.
fn principal(webhook: &Webhook<'_>) -> Result<(String, Trust), Denial> {
    let principal = present(webhook.authorization_principal.as_deref())?;
    if webhook.x5c_certificate.is_none() {
        return Ok((principal, Trust::Claimed));
    }
    let certified = certified(webhook, Field::SubjectCommonName)?;
    if certified == principal { Ok((principal, Trust::Certificate)) } else { Err(Denial::IDENTIFIER_MISMATCH) }
}

impl Field {
    /// Reads this field of a DER certificate that was verified elsewhere.
    ///
    /// # Errors
    /// [`Denial::IDENTIFIER_MISSING`] if the certificate does not have the field, [`Denial::IDENTIFIER_AMBIGUOUS`] if it has
    /// more than one, [`Denial::IDENTIFIER_INVALID`] if it cannot be read.
    pub fn of_certificate(self, der: &[u8]) -> Result<String, Denial> {
        // A certificate that a second parser cannot read is not believed.
        Certificate::from_der(der).map_err(|_| Denial::IDENTIFIER_INVALID)?;
        Names::of_certificate(der, self)?.one()
    }
}

fn present(value: Option<&str>) -> Result<String, Denial> {
    value.filter(|value| !value.is_empty()).map(str::to_owned).ok_or(Denial::IDENTIFIER_MISSING)
}
