//! Webhooks as step-ca sends them: each with its own body, timestamp and signature.

use std::fmt::Write as _;

use anyhow::Context as _;
use bytes::Bytes;
use e2e::webhook::Registered;
use posture::secret::Secret;
use posture::shape::{SIGNATURE, WEBHOOK_ID};
use posture::verify::SigningKeys;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P384_SHA384};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Number of devices that the sidecar knows.
pub(crate) const DEVICES: usize = 1_000;

/// The kind of a request, and the reply that it must get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A signed request about a known device: 200 and `allow:true`.
    Allowed,
    /// A signed request about an unknown device: 200 and `allow:false`.
    Denied,
    /// A request with a wrong signature: 401.
    Forged,
}

impl Wanted {
    /// Returns whether a reply is the right one.
    pub(crate) fn is(self, status: u16, body: &[u8]) -> bool {
        let says = |allow: &[u8]| body.starts_with(allow);
        match self {
            Self::Allowed => status == 200 && says(b"{\"allow\":true"),
            Self::Denied => status == 200 && says(b"{\"allow\":false"),
            Self::Forged => status == 401 && says(b"{\"allow\":false"),
        }
    }
}

/// A maker of requests.
#[derive(Debug)]
pub(crate) struct Signer {
    id: String,
    keys: SigningKeys,
    /// End of a body, after the public key.
    tail: String,
    made: u64,
}

impl Signer {
    /// Makes a signer for a registered webhook.
    pub(crate) fn new(webhook: &Registered) -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(vec!["mac-0042.devices.example.org".to_owned()])?;
        // A title takes the place of the common name, which differs for each device: `raw` and `rawSubject` stay the same.
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 12]), "C02XL0GYJGH5");
        params.distinguished_name.push(DnType::OrganizationName, "Example Organization");
        let request = params.serialize_request(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?)?.pem()?;
        let raw: String = request.lines().filter(|line| !line.starts_with('-')).collect();
        let tail = format!(r#"","publicKeyAlgorithm":"ECDSA","raw":"{raw}"}},"provisionerName":"devices"}}"#);
        let keys = SigningKeys::new(&[Secret::from_base64(&webhook.secret).context("the webhook's secret")?]);
        Ok(Self { id: webhook.id.clone(), keys, tail, made: 0 })
    }

    /// Makes a request that was never made before.
    pub(crate) fn request(&mut self, wanted: Wanted) -> anyhow::Result<http::Request<Bytes>> {
        self.made = self.made.wrapping_add(1);
        let body = self.body(wanted)?;
        let mut signature = self.keys.sign(body.as_bytes()).context("sign")?.to_hex();
        if wanted == Wanted::Forged {
            signature = signature.chars().rev().collect();
        }
        let request = http::Request::post("https://localhost/webhook/device-attest")
            .header("content-type", "application/json")
            .header("content-length", body.len())
            .header("user-agent", "Go-http-client/2.0")
            .header("x-request-id", format!("{:032x}", self.made))
            .header(WEBHOOK_ID, &self.id)
            .header(SIGNATURE, signature);
        Ok(request.body(Bytes::from(body))?)
    }

    /// The body of an ENRICHING webhook after a `device-attest-01` challenge, with the fields of `webhook/types.go`.
    fn body(&self, wanted: Wanted) -> anyhow::Result<String> {
        let device = match wanted {
            Wanted::Denied => format!("UNKNOWN{:05}", self.made % 100_000),
            Wanted::Allowed | Wanted::Forged => device(usize::try_from(self.made)? % DEVICES),
        };
        let mut body = String::with_capacity(2_048);
        let now = OffsetDateTime::now_utc().format(&Rfc3339)?;
        write!(
            body,
            r#"{{"timestamp":"{now}","attestationData":{{"permanentIdentifier":"{device}"}},"x509CertificateRequest":{{"version":0,"subject":{{"country":"DE","organization":"Example Organization","organizationalUnit":"Devices","locality":"Berlin","commonName":"{device}"}},"rawSubject":"MGsxCzAJBgNVBAYTAkRFMQ8wDQYDVQQHEwZCZXJsaW4xHTAbBgNVBAoTFEV4YW1wbGUgT3JnYW5pemF0aW9uMRAwDgYDVQQLEwdEZXZpY2VzMRowGAYDVQQMExFDMDJYTDBHWUpHSDUwMDAwMA==","dnsNames":["mac-0042.devices.example.org"],"emailAddresses":null,"ipAddresses":null,"uris":null,"sans":[{{"type":"permanentIdentifier","value":"{device}"}}],"extensions":[{{"id":"2.5.29.17","critical":false,"value":"MB6CHG1hYy0wMDQyLmRldmljZXMuZXhhbXBsZS5vcmc="}}],"keyUsage":null,"extKeyUsage":null,"unknownExtKeyUsage":null,"basicConstraints":null,"signatureAlgorithm":"","challengePassword":"","publicKey":"MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"#
        )?;
        // Each body has a key of its own: digits, which are base64 too, as many as a point of P-256 has, with the end of the
        // base64.
        let mut state = self.made;
        for _ in 0..5 {
            state = state.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31) ^ self.made;
            write!(body, "{state:016x}")?;
        }
        body.push_str("00000A==");
        body.push_str(&self.tail);
        Ok(body)
    }
}

/// The identifier of a known device.
pub(crate) fn device(number: usize) -> String {
    format!("C02{:09X}", number.wrapping_mul(7_919))
}

/// The data of a device in the list.
pub(crate) fn data(number: usize) -> serde_json::Value {
    serde_json::json!({
        "udid": format!("00008103-{number:016X}"),
        "name": format!("mac-{number}"),
        "username": format!("user{number}"),
        "realname": "Vera Nachname",
        "email_address": format!("user{number}@example.org"),
        "department": "Engineering",
        "floor": "3",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_what_stepward_takes_for_an_enriching_webhook_and_as_long_as_step_cas() {
        let signer = Signer::new(&Registered::random("one")).unwrap();
        let body = signer.body(Wanted::Allowed).unwrap();
        let parsed: posture::webhook::Webhook<'_> = serde_json::from_str(&body).unwrap();
        assert!(parsed.check_kind(posture::webhook::Kind::Enriching).is_ok());
        assert!((1_500..2_048).contains(&body.len()), "{}", body.len());
        assert!(parsed.x509().and_then(posture::webhook::X509::key).is_some(), "a key that is known from then on");
        let identity = posture::identity::Source::Attested.identify(&parsed, posture::identity::IdentifierKind::Serial);
        assert_eq!(identity.unwrap().device.normal(), device(0), "one device, wherever it is named");
    }

    #[test]
    fn no_two_requests_are_alike() {
        let mut signer = Signer::new(&Registered::random("one")).unwrap();
        let (one, two) = (signer.request(Wanted::Allowed).unwrap(), signer.request(Wanted::Allowed).unwrap());
        assert_ne!(one.headers()[SIGNATURE], two.headers()[SIGNATURE]);
        assert_ne!(one.body(), two.body());
    }

    #[test]
    fn a_reply_is_judged_by_status_and_verdict() {
        assert!(Wanted::Allowed.is(200, br#"{"allow":true,"data":{}}"#));
        assert!(!Wanted::Allowed.is(200, br#"{"allow":false}"#));
        assert!(!Wanted::Allowed.is(503, br#"{"allow":true}"#));
        assert!(Wanted::Denied.is(200, br#"{"allow":false,"error":{}}"#));
        assert!(Wanted::Forged.is(401, br#"{"allow":false,"error":{}}"#));
        assert!(!Wanted::Forged.is(200, br#"{"allow":false,"error":{}}"#));
    }
}
