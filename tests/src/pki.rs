//! Certificates: good ones, and every kind of bad one.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

/// A certificate authority, a root.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// Makes a root with CA:TRUE and a path length, without which `step ca provisioner add` refuses it.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// The root's certificate, in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Issues a leaf certificate with a new key.
    pub fn issue(&self, leaf: &Leaf) -> Credential {
        let key = KeyPair::generate().unwrap();
        let pem = leaf.params.signed_by(&key, &self.issuer).unwrap().pem();
        Credential { chain: pem, key: key.serialize_pem() }
    }

    /// Issues a leaf certificate for an existing key, in DER.
    pub fn certify(&self, leaf: &Leaf, key: &KeyPair) -> Vec<u8> {
        leaf.params.signed_by(key, &self.issuer).unwrap().der().to_vec()
    }
}

/// The contents of a leaf certificate, valid from an hour ago for a day.
#[derive(Debug)]
pub struct Leaf {
    params: CertificateParams,
}

impl Leaf {
    /// A leaf for a server at `localhost` and 127.0.0.1.
    pub fn server() -> Self {
        Self::new("localhost").usage(Some(ExtendedKeyUsagePurpose::ServerAuth)).dns("localhost")
    }

    /// A leaf for a client with this DNS name.
    pub fn client(name: &str) -> Self {
        Self::new(name).usage(Some(ExtendedKeyUsagePurpose::ClientAuth)).dns(name)
    }

    /// A leaf with only a common name.
    pub fn new(common_name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        // step-ca accepts an X5C token only from such a key.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let leaf = Self { params };
        leaf.valid_from(-Duration::HOUR)
    }

    /// Adds a DNS name.
    pub fn dns(mut self, name: &str) -> Self {
        self.params.subject_alt_names.push(SanType::DnsName(name.try_into().unwrap()));
        self
    }

    /// Adds a URI.
    pub fn uri(mut self, uri: &str) -> Self {
        self.params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        self
    }

    /// Replaces the extended key usage; `None` leaves the extension out.
    pub fn usage(mut self, usage: Option<ExtendedKeyUsagePurpose>) -> Self {
        self.params.extended_key_usages = usage.into_iter().collect();
        self
    }

    /// Makes the leaf valid for a day from a moment relative to now.
    pub fn valid_from(mut self, offset: Duration) -> Self {
        self.params.not_before = OffsetDateTime::now_utc() + offset;
        self.params.not_after = self.params.not_before + Duration::DAY;
        self
    }

    /// Adds an extension whose value is not wrapped.
    pub fn extension(mut self, oid: &[u64], value: &[u8]) -> Self {
        self.params.custom_extensions.push(CustomExtension::from_oid_content(oid, value.to_vec()));
        self
    }
}

/// A certificate chain and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The chain, leaf first.
    pub chain: String,
    /// The key, PKCS #8 or SEC 1.
    pub key: String,
}

impl Credential {
    /// Reads chain and key from files.
    pub fn read(chain: &Path, key: &Path) -> Self {
        Self { chain: fs::read_to_string(chain).unwrap(), key: fs::read_to_string(key).unwrap() }
    }

    /// Chain and key in DER, for rustls.
    pub fn der(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (certificates(&self.chain), PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap())
    }
}

/// The certificates of a PEM text.
pub fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}
