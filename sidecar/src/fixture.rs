//! A service's folder for tests: a configuration with one webhook and one device file, and what it names.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// Makes the folder: `stepward.toml`, `devices.json`, `secrets/webhook`, and in `tls/` and `client/` the certificates of Envoy and
/// of step-ca, from `tls/ca.crt`.
pub(crate) fn make(folder: &Path) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let ca = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let server = vec![SanType::DnsName("localhost".try_into().unwrap()), SanType::IpAddress([127, 0, 0, 1].into())];
    let client =
        vec![SanType::DnsName("ca.example.org".try_into().unwrap()), SanType::URI("spiffe://example.org/step-ca".try_into().unwrap())];
    let [server, client] = [
        certificate(&issuer, "localhost", server, vec![Usage::ServerAuth]),
        certificate(&issuer, "step-ca", client, vec![Usage::ClientAuth, Usage::ServerAuth]),
    ];
    for (name, content, mode) in [
        ("stepward.toml", CONFIGURATION, 0o644),
        ("devices.json", DEVICES, 0o644),
        ("secrets/webhook", SECRET, 0o600),
        ("tls/ca.crt", &ca, 0o644),
        ("tls/server.crt", &server.0, 0o644),
        ("tls/server.key", &server.1, 0o600),
        ("client/client.crt", &client.0, 0o644),
        ("client/client.key", &client.1, 0o600),
    ] {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).unwrap();
        std::io::Write::write_all(&mut file, content.as_bytes()).unwrap();
    }
}

/// Makes a certificate and its key, PEM.
fn certificate(issuer: &Issuer<'_, KeyPair>, name: &str, sans: Vec<SanType>, usages: Vec<Usage>) -> (String, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = sans;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

const CONFIGURATION: &str = r#"[listen]
sockets = "run"
admin = "127.0.0.1:9464"

[envoy]
webhook_address = "127.0.0.1:9443"
certificate = "tls/server.crt"
private_key = "tls/server.key"
client_ca = "tls/ca.crt"
wasm = "filter.wasm"

[[webhook]]
id = "11111111-2222-4333-8444-555555555555"
secrets = [{ file = "secrets/webhook" }]
callers = ["uri:spiffe://example.org/step-ca"]
providers = ["staff"]

[provider.staff]
type = "file"
path = "devices.json"
"#;

const DEVICES: &str = r#"{
  "devices": [
    { "identifier": "C02XL0GYJGH5", "data": { "user": "alice@example.org", "department": "Engineering" } },
    { "identifier": "PF3ABCDE", "data": { "user": "bob@example.org", "department": "Support" } }
  ]
}
"#;

/// 32 bytes in base64, as step-ca prints a secret.
const SECRET: &str = "c3RlcHdhcmQgc2lnbnMgaW4gdGVzdHMgYnkgdGhpcyE=\n";
