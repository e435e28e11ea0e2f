//! The certificate of a TLS peer, DER or PEM, read by us and by x509-parser.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use posture::caller::{Callers, Name, Peer};
use posture::identity::{Field, IdentifierKind, Source};
use posture::webhook::Webhook;
use x509_parser::prelude::*;

/// Whenever both can read it, both find the same names and the same use.
pub fn body(data: &[u8]) {
    if let Ok((from_pem, der)) = Peer::from_pem(data) {
        assert_eq!(from_pem.names(), Peer::from_der(&der).unwrap().names());
        compare(&der);
    }
    compare(data);
    x5c(data);
}

fn compare(der: &[u8]) {
    let (Ok(peer), Ok((b"", certificate))) = (Peer::from_der(der), X509Certificate::from_der(der)) else { return };
    if let Ok(sans) = certificate.subject_alternative_name() {
        let names = peer.names().iter().filter(|name| !matches!(name, Name::Sha256(_) | Name::Subject(_)));
        let mut theirs: Vec<Name> = sans.iter().flat_map(|sans| &sans.value.general_names).filter_map(name).collect();
        let ours: Vec<Name> = names.cloned().collect();
        if constructed(&certificate) {
            theirs.retain(|name| ours.contains(name));
        }
        assert_eq!(ours, theirs);
    }
    if let Ok(usage) = certificate.extended_key_usage() {
        let client = usage.is_some_and(|usage| usage.value.client_auth);
        assert_eq!(Callers::AnyVerified.admit(Some(&peer)).is_some(), client);
    }
}

/// Whether a name may be encoded in parts, which is not DER: x509-parser does not look, and Stepward does not read such a name.
fn constructed(certificate: &X509Certificate<'_>) -> bool {
    let extension = certificate.get_extension_unique(&oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME);
    extension.is_ok_and(|sans| sans.is_some_and(|sans| sans.value.iter().any(|byte| matches!(byte, 0xa1 | 0xa2 | 0xa6 | 0xa7))))
}

fn name(san: &GeneralName<'_>) -> Option<Name> {
    match san {
        GeneralName::RFC822Name(address) if address.is_ascii() => Some(Name::Email((*address).to_owned())),
        GeneralName::DNSName(name) if name.is_ascii() => Some(Name::Dns(name.to_ascii_lowercase())),
        GeneralName::URI(uri) if uri.is_ascii() => Some(Name::Uri((*uri).to_owned())),
        GeneralName::IPAddress(octets) => {
            let v4 = <[u8; 4]>::try_from(*octets).map(|v4| Name::Ip(v4.into()));
            v4.or_else(|_| <[u8; 16]>::try_from(*octets).map(|v6| Name::Ip(v6.into()))).ok()
        }
        _ => None,
    }
}

/// The certificate behind an X5C request is read by the sidecar with another reader yet.
fn x5c(der: &[u8]) {
    let json = format!(r#"{{"timestamp":"2026-11-23T00:00:00Z","x5cCertificate":{{"raw":"{}"}}}}"#, STANDARD.encode(der));
    let webhook: Webhook<'_> = serde_json::from_str(&json).unwrap();
    for field in Field::ALL {
        let Ok(identity) = Source::Certificate(*field).identify(&webhook, IdentifierKind::Hostname) else { continue };
        let Ok((b"", certificate)) = X509Certificate::from_der(der) else { continue };
        let stated = identity.device.stated();
        let sans = certificate.subject_alternative_name();
        let sans = |pick: fn(&GeneralName<'_>) -> Option<String>| {
            let Ok(sans) = &sans else { return };
            let found: Vec<_> = sans.iter().flat_map(|sans| &sans.value.general_names).filter_map(pick).collect();
            assert_eq!(found, [stated]);
        };
        match field {
            Field::SanDns => sans(|name| if let GeneralName::DNSName(name) = name { Some((*name).to_owned()) } else { None }),
            Field::SanEmail => sans(|name| if let GeneralName::RFC822Name(name) = name { Some((*name).to_owned()) } else { None }),
            Field::SanUri => sans(|name| if let GeneralName::URI(name) = name { Some((*name).to_owned()) } else { None }),
            Field::SubjectCommonName => {
                let found: Vec<_> = certificate.subject().iter_common_name().map(|name| name.attr_value().data).collect();
                assert_eq!(found, [stated.as_bytes()]);
            }
            _ => {}
        }
    }
}
