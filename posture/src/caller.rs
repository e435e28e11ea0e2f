//! Step 2, the caller: the names in the TLS peer's certificate, and the rules over them.
//!
//! Envoy has verified the chain before a byte reaches the filter. Its properties give the first subject alternative name
//! only, so the certificate itself is read here: in the filter, and once more in the sidecar.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Encode as _, pem};
use sha2::{Digest as _, Sha256};

use crate::certificate::{Certificate, EXTENDED_KEY_USAGE, SUBJECT_ALT_NAME, San, Unreadable, sans, usages};

/// A name in a certificate, or a rule that asks for that name: `uri:`, `dns:`, `email:`, `ip:` or `sha256:` and a value.
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
    /// SHA-256 of the DER subject, of a certificate without subject alternative names. No rule can ask for it: a common name
    /// is no name to authorize by (RFC 9525).
    Subject([u8; 32]),
    /// SHA-256 of the DER SubjectPublicKeyInfo, of a certificate whose subject is empty too. No rule can ask for it.
    Key([u8; 32]),
    /// SHA-256 of a subject alternative name of another kind, its tag first, such as an `otherName`. No rule can ask for it.
    Other([u8; 32]),
}

/// Error: a caller rule cannot be read.
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
            Self::Key(digest) => hex(f, "key:", digest),
            Self::Other(digest) => hex(f, "other:", digest),
        }
    }
}

fn hex(f: &mut fmt::Formatter<'_>, kind: &str, digest: &[u8; 32]) -> fmt::Result {
    f.write_str(kind)?;
    digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// The TLS peer, as its certificate describes it.
#[derive(Clone, Debug)]
pub struct Peer {
    names: Vec<Name>,
    /// All names but the digest, which changes with every certificate: sorted, in the form of [`listed`].
    listed: Arc<str>,
    client_auth: bool,
}

/// Error: the peer's certificate cannot be read. Such a peer is not allowed to call.
#[derive(Debug, thiserror::Error)]
#[error("the peer's certificate cannot be read: {0}")]
pub struct BadCertificate(String);

impl Peer {
    /// Reads a DER certificate.
    ///
    /// # Errors
    /// [`BadCertificate`] if the certificate, its names or its extended key usage are not DER of RFC 5280, if it is larger
    /// than [`LARGEST_CERTIFICATE`], or if it has more than [`MOST_NAMES`] names.
    pub fn from_der(der: &[u8]) -> Result<Self, BadCertificate> {
        if der.len() > LARGEST_CERTIFICATE {
            return Err(bad(format_args!("it has {} bytes, and may have {LARGEST_CERTIFICATE}", der.len())));
        }
        let certificate = Certificate::from_der(der)?;
        let mut names = vec![Name::Sha256(Sha256::digest(der).into())];
        if let Some(value) = certificate.extension(SUBJECT_ALT_NAME)? {
            let sans = sans(value)?;
            if sans.len() > MOST_NAMES {
                return Err(bad(format_args!("it has {} names, and may have {MOST_NAMES}", sans.len())));
            }
            names.extend(sans.into_iter().map(Name::of).collect::<Result<Vec<_>, _>>()?);
        }
        if names.len() == 1 {
            names.push(nameless(&certificate)?);
        }
        let usages = certificate.extension(EXTENDED_KEY_USAGE)?.map(usages).transpose()?;
        let lasting = names.iter().filter(|name| !matches!(name, Name::Sha256(_)));
        let listed = listed(lasting).into();
        Ok(Self { names, listed, client_auth: usages.is_some_and(|usages| usages.contains(&CLIENT_AUTH)) })
    }

    /// The peer's names, as rules write them.
    pub fn names(&self) -> &[Name] {
        &self.names
    }

    /// All names but the digest, as one text: equal for two certificates of one client.
    pub fn lasting(&self) -> Arc<str> {
        Arc::clone(&self.listed)
    }

    /// Returns whether the certificate's extended key usage names client authentication. Without it the peer may call nothing.
    pub const fn is_for_clients(&self) -> bool {
        self.client_auth
    }

    /// The peer's size in memory, in bytes, for a bound on the peers that are remembered.
    pub fn size(&self) -> usize {
        let text = |name: &Name| match name {
            Name::Uri(text) | Name::Dns(text) | Name::Email(text) => text.len().saturating_add(ALLOCATED),
            Name::Ip(_) | Name::Sha256(_) | Name::Subject(_) | Name::Key(_) | Name::Other(_) => 0,
        };
        let names = self.names.iter().map(|name| size_of::<Name>().saturating_add(text(name)));
        names.fold(size_of::<Self>().saturating_add(self.listed.len()), usize::saturating_add)
    }

    /// Reads a PEM certificate, the form in which Envoy hands it out; returns its DER as well.
    ///
    /// # Errors
    /// The errors of [`Self::from_der`].
    pub fn from_pem(pem: &[u8]) -> Result<(Self, Vec<u8>), BadCertificate> {
        let der = der(pem)?;
        Ok((Self::from_der(&der)?, der))
    }
}

/// Decodes a PEM certificate to DER, without reading the certificate.
///
/// # Errors
/// [`BadCertificate`] if the text is not PEM, or is larger than any certificate that is read.
pub fn der(pem: &[u8]) -> Result<Vec<u8>, BadCertificate> {
    // Base64 writes three bytes as four, and PEM adds line ends.
    if pem.len() / 2 > LARGEST_CERTIFICATE {
        return Err(bad(format_args!("it has {} bytes of PEM", pem.len())));
    }
    pem::decode_vec(pem).map(|(_, der)| der).map_err(bad)
}

/// Largest certificate of a peer, in bytes. TLS accepts more than six times as much, and one certificate is kept for each
/// connection.
pub const LARGEST_CERTIFICATE: usize = 16 << 10;

/// Most subject alternative names of a certificate: a name of a few letters takes twenty times its bytes in memory.
pub const MOST_NAMES: usize = 256;

/// Bytes that an allocator adds to each string.
const ALLOCATED: usize = 16;

impl Name {
    fn of(san: San<'_>) -> Result<Self, BadCertificate> {
        Ok(match san {
            San::Email(address) => Self::Email(address.to_owned()),
            San::Dns(name) => Self::Dns(name.to_ascii_lowercase()),
            San::Uri(uri) => Self::Uri(uri.to_owned()),
            San::Ip(address) => Self::Ip(address),
            San::Other(name) => Self::Other(digest(name)?),
        })
    }
}

/// A name for a certificate without subject alternative names: its subject, which stays the same when the certificate is
/// renewed. Without a subject it is the public key, which a renewal may change.
fn nameless(certificate: &Certificate<'_>) -> Result<Name, BadCertificate> {
    if certificate.subject().value().is_empty() {
        digest(certificate.public_key()).map(Name::Key)
    } else {
        digest(certificate.subject()).map(Name::Subject)
    }
}

fn digest(part: AnyRef<'_>) -> Result<[u8; 32], BadCertificate> {
    Ok(Sha256::digest(part.to_der().map_err(bad)?).into())
}

/// Writes names as one text, which differs for any two sets of names: sorted, without duplicates, separated by commas. A
/// comma, a backslash or a control character inside a name is escaped with a backslash.
fn listed<'n>(names: impl Iterator<Item = &'n Name>) -> String {
    let names: BTreeSet<String> = names.map(|name| escaped(&name.to_string())).collect();
    names.into_iter().collect::<Vec<_>>().join(",")
}

fn escaped(name: &str) -> String {
    name.chars().fold(String::with_capacity(name.len()), |mut text, letter| {
        match letter {
            ',' | '\\' => text.extend(['\\', letter]),
            letter if letter.is_control() => text.extend(letter.escape_unicode()),
            letter => text.push(letter),
        }
        text
    })
}

const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

impl From<Unreadable> for BadCertificate {
    fn from(unreadable: Unreadable) -> Self {
        bad(unreadable)
    }
}

fn bad(error: impl fmt::Display) -> BadCertificate {
    BadCertificate(error.to_string())
}

/// The callers that a webhook allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callers {
    /// The listener asks for no certificate (`ENABLE_MTLS=0` of step-posture-connector).
    Anonymous,
    /// Any caller whose certificate Envoy verified.
    AnyVerified,
    /// A caller whose certificate has one of these names.
    Named(Vec<Name>),
}

/// The caller of one request, under a name that stays the same when its certificate is renewed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller(Arc<str>);

impl Caller {
    /// The caller on a listener that asks for no certificate.
    pub fn anonymous() -> Self {
        Self("anonymous".into())
    }

    /// The rule that admitted the caller; without rules, the caller's names, sorted and separated by commas; `anonymous`
    /// without a certificate.
    ///
    /// Different sets of names give different texts: a comma inside a name is escaped with a backslash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a caller is admitted.
enum Grounds<'c> {
    NoneAsked,
    Verified(&'c Arc<str>),
    Rule(&'c Name),
}

impl Callers {
    /// Judges a peer, and returns the caller if it is admitted; a `peer` of `None` has no certificate.
    ///
    /// A certificate without the extended key usage clientAuth is refused: Envoy 1.40 accepts one that has no extended key
    /// usage at all.
    pub fn admit(&self, peer: Option<&Peer>) -> Option<Caller> {
        Some(match self.judge(peer)? {
            Grounds::NoneAsked => Caller::anonymous(),
            Grounds::Verified(names) => Caller(Arc::clone(names)),
            Grounds::Rule(rule) => Caller(listed(std::iter::once(rule)).into()),
        })
    }

    /// Returns whether [`Self::admit`] admits the peer, without naming the caller.
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
    use crate::certificate::tests::tlv;

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

    /// An unsigned certificate with this subject and these names; this module checks no signature.
    fn der(subject: &[u8], sans: Option<&[&[u8]]>) -> Vec<u8> {
        let certificate = certificate(&[ExtendedKeyUsagePurpose::ClientAuth], vec![]);
        let usage = tlv(0x30, &[&tlv(0x06, &[&[0x55, 0x1d, 0x25]]), &tlv(0x04, &[&tlv(0x30, &[&CLIENT_AUTH.to_der().unwrap()])])]);
        let names = sans.map(|sans| tlv(0x30, &[&tlv(0x06, &[&[0x55, 0x1d, 0x11]]), &tlv(0x04, &[&tlv(0x30, sans)])]));
        let extensions = tlv(0xa3, &[&tlv(0x30, &[&usage, &names.unwrap_or_default()])]);
        let key = Certificate::from_der(certificate.der()).unwrap().public_key().to_der().unwrap();
        let empty = tlv(0x30, &[]);
        let body = tlv(0x30, &[&tlv(0xa0, &[&[2, 1, 2]]), &[2, 1, 1], &empty, &empty, &empty, &tlv(0x30, &[subject]), &key, &extensions]);
        tlv(0x30, &[&body, &empty, &tlv(0x03, &[&[0]])])
    }

    fn subject(name: &str) -> Vec<u8> {
        tlv(0x31, &[&tlv(0x30, &[&[6, 3, 0x55, 4, 3], &tlv(0x0c, &[name.as_bytes()])])])
    }

    fn caller(der: &[u8]) -> Caller {
        Callers::AnyVerified.admit(Some(&Peer::from_der(der).unwrap())).unwrap()
    }

    fn uri(uri: &str) -> Vec<u8> {
        tlv(0x86, &[uri.as_bytes()])
    }

    #[test]
    fn c4_certificates_without_names_are_one_caller_only_where_their_subject_is_one() {
        let before = caller(&der(&subject("one"), None));
        assert_eq!(caller(&der(&subject("one"), None)), before, "renewed, with another key");
        assert_eq!(caller(&der(&subject("one"), Some(&[]))), before);
        assert_ne!(caller(&der(&subject("two"), None)), before);
        assert!(before.as_str().starts_with("subject:"), "{before:?}");
        assert!(before.as_str().parse::<Name>().is_err(), "no rule asks for a subject");
    }

    #[test]
    fn c4_certificates_that_name_nothing_at_all_are_told_apart_by_their_key() {
        let one = der(&[], None);
        assert_eq!(caller(&one), caller(&one));
        assert_ne!(caller(&one), caller(&der(&[], None)));
        assert!(caller(&one).as_str().starts_with("key:"));
    }

    #[test]
    fn c4_names_of_another_kind_tell_callers_apart_too() {
        let directory = |name| der(&[], Some(&[&tlv(0xa4, &[&tlv(0x30, &[&subject(name)])])]));
        assert_eq!(caller(&directory("a")), caller(&directory("a")));
        assert_ne!(caller(&directory("a")), caller(&directory("b")));
        assert!(caller(&directory("a")).as_str().starts_with("other:"));
        let with = |name| der(&[], Some(&[&uri("spiffe://x"), &tlv(0x88, &[name])]));
        assert_ne!(caller(&with(&[42, 3])), caller(&with(&[42, 4])));
    }

    #[test]
    fn c4_a_comma_within_a_name_is_not_the_one_between_two_names() {
        let one = caller(&der(&[], Some(&[&uri("spiffe://x,uri:spiffe://y")])));
        let two = caller(&der(&[], Some(&[&uri("spiffe://x"), &uri("spiffe://y")])));
        assert_ne!(one, two);
        assert_eq!(one.as_str(), r"uri:spiffe://x\,uri:spiffe://y");
        assert_eq!(two.as_str(), "uri:spiffe://x,uri:spiffe://y");
        // A rule for the one name does not match the list of the two either.
        let rule = named(&["uri:spiffe://x,uri:spiffe://y"]);
        let peer = Peer::from_der(&der(&[], Some(&[&uri("spiffe://x,uri:spiffe://y")]))).unwrap();
        assert_eq!(rule.admit(Some(&peer)), Some(one));
        assert_eq!(rule.admit(Some(&Peer::from_der(&der(&[], Some(&[&uri("spiffe://x"), &uri("spiffe://y")]))).unwrap())), None);
    }

    #[test]
    fn c4_a_caller_is_one_line_that_can_be_printed() {
        let caller = caller(&der(&[], Some(&[&uri("urn:a\tb\n")])));
        assert_eq!(caller.as_str(), r"uri:urn:a\u{9}b\u{a}");
    }

    #[test]
    fn whoever_is_let_in_is_who_is_admitted() {
        let clients = peer(step_ca());
        let servers = Peer::from_der(certificate(&[ExtendedKeyUsagePurpose::ServerAuth], step_ca()).der()).unwrap();
        assert!(clients.is_for_clients() && !servers.is_for_clients());
        for callers in [Callers::Anonymous, Callers::AnyVerified, named(&["dns:ca.example.org"]), named(&["dns:other.example.org"])] {
            for peer in [None, Some(&clients), Some(&servers)] {
                assert_eq!(callers.let_in(peer), callers.admit(peer).is_some(), "{callers:?} {peer:?}");
            }
        }
    }

    #[test]
    fn f_a_certificate_with_an_extension_that_stands_twice_is_refused() {
        let certificate = certificate(&[ExtendedKeyUsagePurpose::ClientAuth], vec![]);
        let key = Certificate::from_der(certificate.der()).unwrap().public_key().to_der().unwrap();
        let empty = tlv(0x30, &[]);
        let names =
            |host: &str| tlv(0x30, &[&tlv(0x06, &[&[0x55, 0x1d, 0x11]]), &tlv(0x04, &[&tlv(0x30, &[&tlv(0x82, &[host.as_bytes()])])])]);
        let usage = || tlv(0x30, &[&tlv(0x06, &[&[0x55, 0x1d, 0x25]]), &tlv(0x04, &[&tlv(0x30, &[&CLIENT_AUTH.to_der().unwrap()])])]);
        let with = |extensions: &[&[u8]]| {
            let extensions = tlv(0xa3, &[&tlv(0x30, extensions)]);
            let body = tlv(0x30, &[&tlv(0xa0, &[&[2, 1, 2]]), &[2, 1, 1], &empty, &empty, &empty, &empty, &key, &extensions]);
            Peer::from_der(&tlv(0x30, &[&body, &empty, &tlv(0x03, &[&[0]])]))
        };
        assert!(with(&[&usage(), &names("ca.example.org")]).is_ok());
        assert!(with(&[&usage(), &names("ca.example.org"), &names("ca.example.org")]).is_err());
        assert!(with(&[&usage(), &names("other.example.org"), &names("ca.example.org")]).is_err());
        assert!(with(&[&usage(), &usage(), &names("ca.example.org")]).is_err());
    }

    #[test]
    fn f_a_name_that_is_encoded_in_parts_is_none() {
        let name = b"ca.example.org";
        assert!(Peer::from_der(&der(&[], Some(&[&tlv(0x82, &[name])]))).unwrap().names().contains(&"dns:ca.example.org".parse().unwrap()));
        for tag in [0xa1, 0xa2, 0xa6, 0xa7] {
            assert!(Peer::from_der(&der(&[], Some(&[&tlv(tag, &[&tlv(0x16, &[name])])]))).is_err(), "{tag:x}");
        }
        assert!(Peer::from_der(&der(&[], Some(&[&tlv(0x80, &[name])]))).is_err());
        // A name without a kind, one with characters that its kind does not have, and addresses of a wrong length.
        for bad in [tlv(0x16, &[name]), tlv(0x82, &["é".as_bytes()]), tlv(0x87, &[&[1, 2, 3]]), tlv(0x87, &[&[0; 17]])] {
            assert!(Peer::from_der(&der(&[], Some(&[&bad]))).is_err());
        }
    }

    #[test]
    fn f7_a_certificate_has_a_largest_size_and_so_many_names_and_no_more_than_so_many_bytes_in_memory() {
        let short: Vec<u8> = tlv(0x82, &[b"a"]);
        let with = |count: usize, name: &[u8]| Peer::from_der(&der(&[], Some(vec![name; count].as_slice())));
        assert_eq!(with(MOST_NAMES, &short).unwrap().names().len(), MOST_NAMES + 1);
        assert!(with(MOST_NAMES + 1, &short).unwrap_err().to_string().contains("257 names"));
        let long = tlv(0x82, &[&[b'a'; 1000]]);
        assert!(with(14, &long).is_ok());
        assert!(with(17, &long).unwrap_err().to_string().contains("may have 16384"));
        let sized = |size: usize| {
            let around = der(&[], Some(&[&uri(&"a".repeat(1000))])).len() - 1000;
            der(&[], Some(&[&uri(&"a".repeat(size - around))]))
        };
        assert_eq!(sized(LARGEST_CERTIFICATE).len(), LARGEST_CERTIFICATE);
        assert!(Peer::from_der(&sized(LARGEST_CERTIFICATE)).is_ok());
        assert!(Peer::from_der(&sized(LARGEST_CERTIFICATE + 1)).unwrap_err().to_string().contains("has 16385 bytes, and may have 16384"));
        // The size counts each name in the list, each once more in the one text, and the overhead of both.
        for peer in [with(MOST_NAMES, &short).unwrap(), with(14, &long).unwrap()] {
            assert!(peer.size() > size_of_val(peer.names()) && peer.size() < 3 * LARGEST_CERTIFICATE, "{}", peer.size());
        }
        // PEM within the bound is decoded, and fails for not being PEM; beyond the bound it is refused for its size.
        for (bytes, too_large) in [(2 * LARGEST_CERTIFICATE + 1, false), (2 * LARGEST_CERTIFICATE + 2, true), (1 << 20, true)] {
            let error = super::der(&vec![b'a'; bytes]).unwrap_err().to_string();
            assert_eq!(error.contains(&format!("{bytes} bytes of PEM")), too_large, "{error}");
        }
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
        fn c4_two_lists_are_equal_only_where_the_names_are(
            one in proptest::collection::btree_set("[a,:\\\\\t]{1,4}", 0..4), other in proptest::collection::btree_set("[a,:\\\\\t]{1,4}", 0..4),
        ) {
            let list = |names: &BTreeSet<String>| listed(names.iter().cloned().map(Name::Uri).collect::<Vec<_>>().iter());
            prop_assert_eq!(list(&one) == list(&other), one == other, "{} {}", list(&one), list(&other));
        }

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
