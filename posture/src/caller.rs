//! Step 2: who calls. The names of the TLS peer's certificate, and the rules over them.
//!
//! Envoy has verified the chain before a byte reaches us. Its properties give the first subject alternative name only, so
//! the certificate itself is read here, in the filter and once more in the sidecar.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use der::asn1::{AnyRef, ObjectIdentifier, OctetStringRef};
use der::{Decode as _, Sequence, Tag, TagNumber, Tagged as _, pem};
use sha2::{Digest as _, Sha256};

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
    /// SHA-256 of the DER subject, of a certificate that has no other name. No rule can ask for it: a common name is no
    /// name to authorize by (RFC 9525).
    Subject([u8; 32]),
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
            Self::Sha256(digest) => hex(f, "sha256:", digest),
            Self::Subject(digest) => hex(f, "subject:", digest),
        }
    }
}

fn hex(f: &mut fmt::Formatter<'_>, kind: &str, digest: &[u8; 32]) -> fmt::Result {
    f.write_str(kind)?;
    digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// What is known of the TLS peer from its certificate.
#[derive(Clone, Debug)]
pub struct Peer {
    names: Vec<Name>,
    /// All names but the digest, which ends with the certificate: sorted, with commas between them.
    listed: Arc<str>,
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
        let certificate = Certificate::from_der(der).map_err(bad)?.body;
        let mut names = vec![Name::Sha256(Sha256::digest(der).into())];
        if let Some(value) = certificate.extension(SUBJECT_ALT_NAME)? {
            names.extend(Vec::<AnyRef<'_>>::from_der(value).map_err(bad)?.into_iter().filter_map(name));
        }
        let usages = certificate.extension(EXTENDED_KEY_USAGE)?.map(Vec::<ObjectIdentifier>::from_der).transpose().map_err(bad)?;
        if names.len() == 1 {
            names.push(Name::Subject(Sha256::digest(certificate.subject.value()).into()));
        }
        let lasting: BTreeSet<_> = names.iter().filter(|name| !matches!(name, Name::Sha256(_))).map(ToString::to_string).collect();
        let listed = lasting.into_iter().collect::<Vec<_>>().join(",").into();
        Ok(Self { names, listed, client_auth: usages.is_some_and(|usages| usages.contains(&CLIENT_AUTH)) })
    }

    /// Its names, as rules write them.
    pub fn names(&self) -> &[Name] {
        &self.names
    }

    /// Whether its extended key usage names client authentication, without which it may call nothing.
    pub const fn is_for_clients(&self) -> bool {
        self.client_auth
    }

    /// Reads a PEM certificate, the form in which Envoy hands it out; returns its DER as well.
    ///
    /// # Errors
    /// As [`Self::from_der`].
    pub fn from_pem(pem: &[u8]) -> Result<(Self, Vec<u8>), BadCertificate> {
        let (_, der) = pem::decode_vec(pem).map_err(bad)?;
        Ok((Self::from_der(&der)?, der))
    }
}

/// An RFC 5280 certificate as far as its names and its usage go. Envoy has read and verified the whole of it.
#[derive(Sequence)]
struct Certificate<'a> {
    body: Body<'a>,
    algorithm: AnyRef<'a>,
    signature: AnyRef<'a>,
}

#[derive(Sequence)]
struct Body<'a> {
    #[asn1(context_specific = "0", optional = "true")]
    version: Option<AnyRef<'a>>,
    serial_number: AnyRef<'a>,
    algorithm: AnyRef<'a>,
    issuer: AnyRef<'a>,
    validity: AnyRef<'a>,
    subject: AnyRef<'a>,
    public_key: AnyRef<'a>,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    issuer_unique_id: Option<der::asn1::BitStringRef<'a>>,
    #[asn1(context_specific = "2", tag_mode = "IMPLICIT", optional = "true")]
    subject_unique_id: Option<der::asn1::BitStringRef<'a>>,
    #[asn1(context_specific = "3", optional = "true")]
    extensions: Option<Vec<Extension<'a>>>,
}

#[derive(Sequence)]
struct Extension<'a> {
    id: ObjectIdentifier,
    #[asn1(default = "Default::default")]
    critical: bool,
    value: &'a OctetStringRef,
}

const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

impl<'a> Body<'a> {
    fn extension(&self, id: ObjectIdentifier) -> Result<Option<&'a [u8]>, BadCertificate> {
        let mut found = self.extensions.iter().flatten().filter(|extension| extension.id == id);
        match (found.next(), found.next()) {
            (first, None) => Ok(first.map(|extension| extension.value.as_bytes())),
            (_, Some(_)) => Err(bad(format_args!("the extension {id} stands there twice"))),
        }
    }
}

/// A GeneralName of RFC 5280, where it is of a kind that a rule can ask for.
fn name(san: AnyRef<'_>) -> Option<Name> {
    let Tag::ContextSpecific { constructed: false, number: TagNumber(kind) } = san.tag() else { return None };
    let text = || std::str::from_utf8(san.value()).ok().filter(|text| text.is_ascii());
    match kind {
        1 => Some(Name::Email(text()?.to_owned())),
        2 => Some(Name::Dns(text()?.to_ascii_lowercase())),
        6 => Some(Name::Uri(text()?.to_owned())),
        7 => match san.value().len() {
            4 => <[u8; 4]>::try_from(san.value()).ok().map(|v4| Name::Ip(v4.into())),
            _ => <[u8; 16]>::try_from(san.value()).ok().map(|v6| Name::Ip(v6.into())),
        },
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
pub struct Caller(Arc<str>);

impl Caller {
    /// The caller where no certificate is asked for.
    pub fn anonymous() -> Self {
        Self("anonymous".into())
    }

    /// The rule that let it in; without rules its names, sorted; `anonymous` without a certificate.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a caller is let in.
enum Grounds<'c> {
    NoneAsked,
    Verified(&'c Arc<str>),
    Rule(&'c Name),
}

impl Callers {
    /// Judges a peer; `None` is one without a certificate.
    ///
    /// A certificate without the extended key usage clientAuth is refused: Envoy 1.40 lets it pass where it has no
    /// extended key usage at all.
    pub fn admit(&self, peer: Option<&Peer>) -> Option<Caller> {
        Some(match self.judge(peer)? {
            Grounds::NoneAsked => Caller::anonymous(),
            Grounds::Verified(names) => Caller(Arc::clone(names)),
            Grounds::Rule(rule) => Caller(rule.to_string().into()),
        })
    }

    /// Whether [`Self::admit`] lets a peer in, for those who need not know as whom.
    pub fn let_in(&self, peer: Option<&Peer>) -> bool {
        self.judge(peer).is_some()
    }

    fn judge<'c>(&'c self, peer: Option<&'c Peer>) -> Option<Grounds<'c>> {
        let peer = match (self, peer) {
            (Self::Anonymous, _) => return Some(Grounds::NoneAsked),
            (_, peer) => peer.filter(|peer| peer.client_auth)?,
        };
        match self {
            Self::Named(rules) => rules.iter().find(|rule| peer.names.contains(rule)).map(Grounds::Rule),
            _ => Some(Grounds::Verified(&peer.listed)),
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
    fn a_certificate_without_names_is_known_by_its_subject() {
        let before = Callers::AnyVerified.admit(Some(&peer(vec![]))).unwrap();
        assert_eq!(Callers::AnyVerified.admit(Some(&peer(vec![]))).unwrap(), before);
        assert!(before.as_str().parse::<Name>().is_err(), "{before:?}");
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
