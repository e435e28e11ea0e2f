//! An Apple device that enrols by ACME `device-attest-01`, attested under a root of our own.

use std::path::Path;

use ciborium::Value;
use instant_acme::{Account, ChallengeType, DeviceAttestation, Error, Identifier, NewAccount, NewOrder, OrderStatus, Problem, RetryPolicy};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::pki::{Authority, Credential, Leaf, certificates};
use crate::step::StepCa;

/// OID of the serial number in an attestation of Apple.
const SERIAL: &[u64] = &[1, 2, 840, 113_635, 100, 8, 9, 1];
/// OID of the freshness code in an attestation of Apple: SHA-256 of the challenge's token.
const FRESHNESS: &[u64] = &[1, 2, 840, 113_635, 100, 8, 11, 1];

/// A maker of devices: the root that attests them.
#[derive(Debug)]
pub struct Maker(Authority);

impl Default for Maker {
    fn default() -> Self {
        Self(Authority::new("Test Attestation Root"))
    }
}

impl Maker {
    /// Writes the root to a file from which a provisioner can read it.
    pub fn write_root(&self, path: &Path) {
        std::fs::write(path, self.0.pem()).unwrap();
    }

    /// The CBOR that proves to step-ca that this key belongs to the device.
    fn attest(&self, serial: &str, token: &str, key: &KeyPair) -> Vec<u8> {
        let leaf = Leaf::new(serial).extension(SERIAL, serial.as_bytes()).extension(FRESHNESS, &Sha256::digest(token));
        let chain = vec![Value::Bytes(self.0.certify(&leaf, key))];
        let object = Value::Map(vec![
            (Value::Text("fmt".to_owned()), Value::Text("apple".to_owned())),
            (Value::Text("attStmt".to_owned()), Value::Map(vec![(Value::Text("x5c".to_owned()), Value::Array(chain))])),
        ]);
        let mut bytes = Vec::new();
        ciborium::into_writer(&object, &mut bytes).unwrap();
        bytes
    }

    /// Enrols a device: account, order, attestation, certificate.
    ///
    /// # Errors
    /// The error of step-ca, which [`refusal`] reads.
    pub async fn enrol(&self, ca: &StepCa, provisioner: &str, serial: &str) -> Result<Credential, Error> {
        crate::client::crypto();
        let account = NewAccount { contact: &[], terms_of_service_agreed: true, only_return_existing: false };
        let (account, _) = Account::builder_with_root(ca.root())?.create(&account, ca.directory(provisioner), None).await?;
        let identifiers = [Identifier::PermanentIdentifier(serial.to_owned())];
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
        let key = KeyPair::generate().unwrap();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            let mut challenge = authorization.challenge(ChallengeType::DeviceAttest01).ok_or(Error::Str("no device-attest-01"))?;
            let object = self.attest(serial, &challenge.token, &key);
            challenge.send_device_attestation(&DeviceAttestation { att_obj: object.into() }).await?;
        }
        let status = order.poll_ready(&quick()).await?;
        assert_eq!(status, OrderStatus::Ready, "the attestation of {serial}");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, serial);
        order.finalize_csr(params.serialize_request(&key).unwrap().der()).await?;
        let chain = order.poll_certificate(&quick()).await?;
        Ok(Credential { chain, key: key.serialize_pem() })
    }
}

/// The type of the problem with which step-ca refused a device, and the types of its subproblems.
///
/// # Panics
/// Panics if the device was enrolled, or failed in another way.
pub fn refusal(result: Result<Credential, Error>) -> (String, Vec<String>) {
    match result {
        Err(Error::Api(Problem { r#type, subproblems, .. })) => {
            (r#type.unwrap_or_default(), subproblems.into_iter().filter_map(|problem| problem.r#type).collect())
        }
        other => panic!("a refusal was expected, not {:?}", other.map(|credential| credential.chain)),
    }
}

/// The subject of a chain's leaf, as text.
pub fn subject(credential: &Credential) -> String {
    let chain = certificates(&credential.chain);
    X509Certificate::from_der(&chain[0]).unwrap().1.subject().to_string()
}

fn quick() -> RetryPolicy {
    RetryPolicy::new().initial_delay(std::time::Duration::from_millis(20)).backoff(1.5)
}
