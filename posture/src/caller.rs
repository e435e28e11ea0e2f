//! Step 2: who calls. The names of the TLS peer's certificate, and the rules over them.
//!
//! Envoy has verified the chain before a byte reaches us. Its properties give the first subject alternative name only, so
//! the certificate itself is read here, in the filter and once more in the sidecar.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::oid::db::rfc5280::ID_KP_CLIENT_AUTH;
use x509_cert::der::{Decode as _, DecodePem as _, Encode as _};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{ExtendedKeyUsage, SubjectAltName};

/// One name of a certificate, or the rule that asks for it: `uri:`, `dns:`, `email:`, `ip:` or `sha256:` and a value.
///
/// DNS names compare without ASCII case and without wildcards; everything else is exact.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// A URI, such as a SPIFFE id.
    Uri(String),
    /// A DNS name, in lower case.
    Dns(String),
    /// A mail address.
    Email(String),
    /// An IP address.
    Ip(IpAddr),
    /// SHA-256 of the DER certificate: pins one certificate, and step-ca makes itself a new one every day.
    Sha256([u8; 32]),
}

/// A rule that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a caller rule: write uri:, dns:, email:, ip: or sha256: (64 hexadecimal digits) before the name")]
pub struct NotARule(String);

impl FromStr for Name {
    type Err = NotARule;

    fn from_str(text: &str) -> Result<Self, NotARule> {
        let bad = || NotARule(text.to_owned());
        let (kind, value) = text.split_once(':').ok_or_else(bad)?;
        if value.is_empty() || value.trim() != value {
            return Err(bad());
        }
        match kind {
            "uri" => Ok(Self::Uri(value.to_owned())),
            "dns" => Ok(Self::Dns(value.to_ascii_lowercase())),
            "email" => Ok(Self::Email(value.to_owned())),
            "ip" => value.parse().map(Self::Ip).map_err(|_| bad()),
            "sha256" => crate::verify::decode_hex(value.to_ascii_lowercase().as_bytes()).map(Self::Sha256).ok_or_else(bad),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(uri) => write!(f, "uri:{uri}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Email(address) => write!(f, "email:{address}"),
            Self::Ip(address) => write!(f, "ip:{address}"),
            Self::Sha256(digest) => {
                f.write_str("sha256:")?;
                digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// What is known of the TLS peer from its certificate.
#[derive(Clone, Debug)]
pub struct Peer {
    names: Vec<Name>,
    subject: String,
    client_auth: bool,
}

/// A certificate that cannot be read; it is not allowed to call.
#[derive(Debug, thiserror::Error)]
#[error("the peer's certificate cannot be read: {0}")]
pub struct BadCertificate(String);

impl Peer {
    /// Reads a DER certificate.
    ///
    /// # Errors
    /// [`BadCertificate`] where it, its names or its extended key usage are not DER of RFC 5280.
    pub fn from_der(der: &[u8]) -> Result<Self, BadCertificate> {
        Self::read(&Certificate::from_der(der).map_err(bad)?, der)
    }

    /// Reads a PEM certificate, the form in which Envoy hands it out; returns its DER as well.
    ///
    /// # Errors
    /// As [`Self::from_der`].
    pub fn from_pem(pem: &[u8]) -> Result<(Self, Vec<u8>), BadCertificate> {
        let certificate = Certificate::from_pem(pem).map_err(bad)?;
        let der = certificate.to_der().map_err(bad)?;
        Ok((Self::read(&certificate, &der)?, der))
    }

    fn read(certificate: &Certificate, der: &[u8]) -> Result<Self, BadCertificate> {
        let body = certificate.tbs_certificate();
        let mut names = vec![Name::Sha256(Sha256::digest(der).into())];
        if let Some((_, SubjectAltName(sans))) = body.get_extension().map_err(bad)? {
            names.extend(sans.iter().filter_map(name));
        }
        let client_auth =
            body.get_extension::<ExtendedKeyUsage>().map_err(bad)?.is_some_and(|(_, usage)| usage.0.contains(&ID_KP_CLIENT_AUTH));
        Ok(Self { names, subject: body.subject().to_string(), client_auth })
    }

    /// The subject, for logs (RFC 4514). Rules do not see it: a common name is no name to authorize by (RFC 9525).
    pub fn subject(&self) -> &str {
        &self.subject
    }
}

fn name(san: &GeneralName) -> Option<Name> {
    match san {
        GeneralName::UniformResourceIdentifier(uri) => Some(Name::Uri(uri.as_str().to_owned())),
        GeneralName::DnsName(name) => Some(Name::Dns(name.as_str().to_ascii_lowercase())),
        GeneralName::Rfc822Name(address) => Some(Name::Email(address.as_str().to_owned())),
        GeneralName::IpAddress(address) => {
            let bytes = address.as_bytes();
            if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
                Some(Name::Ip(v4.into()))
            } else {
                <[u8; 16]>::try_from(bytes).ok().map(|v6| Name::Ip(v6.into()))
            }
        }
        _ => None,
    }
}

fn bad(error: impl fmt::Display) -> BadCertificate {
    BadCertificate(error.to_string())
}

/// Who may call a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callers {
    /// The listener asks for no certificate (`ENABLE_MTLS=0` of step-posture-connector).
    Anonymous,
    /// Anyone whose certificate Envoy verified.
    AnyVerified,
    /// Whoever has one of these names.
    Named(Vec<Name>),
}

/// The caller of one request, as far as it matters: the same after its certificate was renewed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller(String);

impl Caller {
    /// The caller where no certificate is asked for.
    pub fn anonymous() -> Self {
        Self("anonymous".to_owned())
    }

    /// The rule that let it in; without rules its names, sorted; `anonymous` without a certificate.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Callers {
    /// Judges a peer; `None` is one without a certificate.
    ///
    /// A certificate without the extended key usage clientAuth is refused: Envoy 1.40 lets it pass where it has no
    /// extended key usage at all.
    pub fn admit(&self, peer: Option<&Peer>) -> Option<Caller> {
        let peer = match (self, peer) {
            (Self::Anonymous, _) => return Some(Caller::anonymous()),
            (_, peer) => peer.filter(|peer| peer.client_auth)?,
        };
        match self {
            Self::Named(rules) => rules.iter().find(|rule| peer.names.contains(rule)).map(|rule| Caller(rule.to_string())),
            _ => {
                let mut names: Vec<_> = peer.names.iter().filter(|name| !matches!(name, Name::Sha256(_))).map(Name::to_string).collect();
                names.sort();
                if names.is_empty() {
                    names.push(format!("subject:{}", peer.subject));
                }
                Some(Caller(names.join(",")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};

    use super::*;

    fn certificate(usages: &[ExtendedKeyUsagePurpose], sans: Vec<SanType>) -> rcgen::Certificate {
        let mut params = CertificateParams::default();
        params.extended_key_usages = usages.to_vec();
        params.subject_alt_names = sans;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    fn step_ca() -> Vec<SanType> {
        vec![
            SanType::DnsName("CA.example.org".try_into().unwrap()),
            SanType::IpAddress("192.0.2.1".parse().unwrap()),
            SanType::URI("spiffe://example.org/step-ca".try_into().unwrap()),
            SanType::Rfc822Name("ca@example.org".try_into().unwrap()),
        ]
    }

    fn named(rules: &[&str]) -> Callers {
        Callers::Named(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    fn peer(sans: Vec<SanType>) -> Peer {
        Peer::from_der(certificate(&[ExtendedKeyUsagePurpose::ClientAuth], sans).der()).unwrap()
    }

    #[test]
    fn any_of_the_names_will_do() {
        let peer = peer(step_ca());
        for rule in ["dns:ca.EXAMPLE.org", "ip:192.0.2.1", "uri:spiffe://example.org/step-ca", "email:ca@example.org"] {
            assert!(named(&["dns:other.example.org", rule]).admit(Some(&peer)).is_some(), "{rule}");
        }
    }

    #[test]
    fn nothing_but_an_exact_name_will_do() {
        let peer = peer(step_ca());
        for rule in [
            "dns:example.org",
            "dns:*.example.org",
            "uri:spiffe://example.org/step-ca/",
            "uri:SPIFFE://example.org/step-ca",
            "email:CA@example.org",
            "ip:192.0.2.2",
            "uri:ca.example.org",
        ] {
            assert_eq!(named(&[rule]).admit(Some(&peer)), None, "{rule}");
        }
    }

    #[test]
    fn a_pin_is_the_certificate_and_not_its_name() {
        let certificate = certificate(&[ExtendedKeyUsagePurpose::ClientAuth], step_ca());
        let pin = Name::Sha256(Sha256::digest(certificate.der()).into()).to_string();
        assert!(named(&[&pin]).admit(Some(&Peer::from_der(certificate.der()).unwrap())).is_some());
        assert_eq!(named(&[&pin]).admit(Some(&peer(step_ca()))), None);
    }

    #[test]
    fn refuses_a_certificate_that_is_not_for_clients() {
        for usages in [vec![], vec![ExtendedKeyUsagePurpose::ServerAuth], vec![ExtendedKeyUsagePurpose::Any]] {
            let peer = Peer::from_der(certificate(&usages, step_ca()).der()).unwrap();
            assert_eq!(Callers::AnyVerified.admit(Some(&peer)), None, "{usages:?}");
            assert_eq!(named(&["dns:ca.example.org"]).admit(Some(&peer)), None, "{usages:?}");
        }
    }

    #[test]
    fn a_peer_without_a_certificate_is_nobody() {
        assert_eq!(Callers::AnyVerified.admit(None), None);
        assert_eq!(named(&["dns:ca.example.org"]).admit(None), None);
        assert_eq!(Callers::Named(vec![]).admit(None), None);
        assert_eq!(Callers::Anonymous.admit(None), Some(Caller::anonymous()));
    }

    #[test]
    fn no_rules_at_all_admit_nobody() {
        assert_eq!(Callers::Named(vec![]).admit(Some(&peer(step_ca()))), None);
    }

    #[test]
    fn the_caller_is_the_same_with_a_renewed_certificate() {
        let mut sans = step_ca();
        let before = peer(sans.clone());
        sans.reverse();
        let after = peer(sans);
        assert_eq!(Callers::AnyVerified.admit(Some(&before)), Callers::AnyVerified.admit(Some(&after)));
        let other = peer(vec![SanType::DnsName("other.example.org".try_into().unwrap())]);
        assert_ne!(Callers::AnyVerified.admit(Some(&before)), Callers::AnyVerified.admit(Some(&other)));
    }

    #[test]
    fn pem_and_der_say_the_same() {
        let certificate = certificate(&[ExtendedKeyUsagePurpose::ClientAuth], step_ca());
        let (peer, der) = Peer::from_pem(certificate.pem().as_bytes()).unwrap();
        assert_eq!(der, certificate.der().as_ref());
        assert_eq!(peer.names, Peer::from_der(&der).unwrap().names);
    }

    #[test]
    fn names_the_rule_that_cannot_be_read() {
        for bad in ["", "dns", "dns:", "dns: a", "cn:step-ca", "ip:example.org", "sha256:00", "spiffe://example.org/a"] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_rule_reads_back(host in "[a-z]{1,10}\\.example", digest in any::<[u8; 32]>(), ip in any::<IpAddr>()) {
            for name in [Name::Dns(host.clone()), Name::Uri(format!("spiffe://{host}/a")), Name::Email(format!("a@{host}")), Name::Ip(ip), Name::Sha256(digest)] {
                prop_assert_eq!(name.to_string().parse::<Name>().unwrap(), name);
            }
        }

        #[test]
        fn never_panics_on_a_damaged_certificate(at in 0usize..400, bit in 0u8..8) {
            let certificate = certificate(&[ExtendedKeyUsagePurpose::ClientAuth], step_ca());
            let mut der = certificate.der().to_vec();
            if let Some(byte) = der.get_mut(at) {
                *byte ^= 1 << bit;
            }
            let _ = Peer::from_der(&der);
            der.truncate(at);
            prop_assert!(Peer::from_der(&der).is_err());
        }
    }
}
