//! The certificate of a TLS peer, DER or PEM, and the parts of requests and certificates that step-ca sends in DER, read by
//! Stepward and by x509-parser.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use posture::caller::{Callers, Name, Peer};
use posture::identity::{Field, IdentifierKind, Source, normal};
use posture::webhook::Webhook;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension, SubjectAlternativeName};
use x509_parser::prelude::*;
use x509_parser::x509::X509Name;

/// Asserts that both readers find the same names and the same usage in what both can read.
pub fn body(data: &[u8]) {
    if let Ok((from_pem, der)) = Peer::from_pem(data) {
        assert_eq!(from_pem.names(), Peer::from_der(&der).unwrap().names());
        compare(&der);
    }
    compare(data);
    for read in READERS {
        read(data);
    }
}

/// Readers of DER, each of which returns how many devices it found.
const READERS: [fn(&[u8]) -> usize; 4] = [x5c, subject, alternative_names, request];

fn compare(der: &[u8]) {
    let (Ok(peer), Ok((b"", certificate))) = (Peer::from_der(der), X509Certificate::from_der(der)) else { return };
    if let Ok(sans) = certificate.subject_alternative_name() {
        let read = |name: &&Name| !matches!(name, Name::Sha256(_) | Name::Subject(_) | Name::Key(_) | Name::Other(_));
        let ours: Vec<Name> = peer.names().iter().filter(read).cloned().collect();
        let theirs: Vec<Name> = sans.iter().flat_map(|sans| &sans.value.general_names).filter_map(name).collect();
        assert_eq!(ours, theirs);
    }
    if let Ok(usage) = certificate.extended_key_usage() {
        let client = usage.is_some_and(|usage| usage.value.client_auth);
        assert_eq!(Callers::AnyVerified.admit(Some(&peer)).is_some(), client);
    }
    let other = Peer::from_der(der).unwrap();
    assert_eq!(Callers::AnyVerified.admit(Some(&peer)), Callers::AnyVerified.admit(Some(&other)));
}

fn name(san: &GeneralName<'_>) -> Option<Name> {
    match san {
        GeneralName::RFC822Name(address) => Some(Name::Email((*address).to_owned())),
        GeneralName::DNSName(name) => Some(Name::Dns(name.to_ascii_lowercase())),
        GeneralName::URI(uri) => Some(Name::Uri((*uri).to_owned())),
        GeneralName::IPAddress(octets) => {
            let v4 = <[u8; 4]>::try_from(*octets).map(|v4| Name::Ip(v4.into()));
            v4.or_else(|_| <[u8; 16]>::try_from(*octets).map(|v6| Name::Ip(v6.into()))).ok()
        }
        _ => None,
    }
}

/// The identifier in a body with these fields.
fn named(fields: &str, source: Source) -> Option<String> {
    let json = format!(r#"{{"timestamp":"2026-11-23T00:00:00Z",{fields}}}"#);
    let webhook: Webhook<'_> = serde_json::from_str(&json).unwrap();
    source.identify(&webhook, IdentifierKind::Hostname).ok().map(|identity| identity.device.stated().to_owned())
}

/// Reads the certificate of an X5C request.
fn x5c(der: &[u8]) -> usize {
    let mut found = 0;
    let fields = format!(r#""x5cCertificate":{{"raw":"{}"}}"#, STANDARD.encode(der));
    for field in Field::ALL {
        let Some(stated) = named(&fields, Source::Certificate(*field)) else { continue };
        found += 1;
        let Ok((b"", certificate)) = X509Certificate::from_der(der) else { continue };
        if let Ok(sans) = certificate.subject_alternative_name() {
            of_sans(*field, &stated, sans.as_ref().map(|sans| sans.value));
        }
        of_subject(*field, &stated, certificate.subject());
    }
    found
}

/// Reads `rawSubject`: x509-parser must find the name that Stepward finds, and no other.
fn subject(der: &[u8]) -> usize {
    let raw = STANDARD.encode(der);
    let Ok((b"", subject)) = X509Name::from_der(der) else { return 0 };
    let mut found = 0;
    for field in [Field::SubjectCommonName, Field::SubjectSerialNumber] {
        let first = attributes(field, &subject).into_iter().flatten().next().unwrap_or_default();
        let field_name = if field == Field::SubjectCommonName { "commonName" } else { "serialNumber" };
        let told = serde_json::json!({ field_name: first });
        for half in ["x509CertificateRequest", "x509Certificate"] {
            let fields = format!(r#""{half}":{{"subject":{told},"rawSubject":"{raw}"}}"#);
            if let Some(stated) = named(&fields, Source::Claimed(field)) {
                of_subject(field, &stated, &subject);
                found += 1;
            }
        }
    }
    found
}

/// Reads a subjectAltName among `extensions`, with the same assertion as [`subject`].
fn alternative_names(der: &[u8]) -> usize {
    let mut found = 0;
    let extensions = format!(r#""extensions":[{{"id":"2.5.29.17","value":"{}"}}]"#, STANDARD.encode(der));
    let Ok((b"", sans)) = SubjectAlternativeName::from_der(der) else { return 0 };
    for (field, list) in LISTS {
        // Without the names in the fields, fields and extension do not agree.
        assert_eq!(named(&format!(r#""x509Certificate":{{{extensions}}}"#), Source::Claimed(field)), None);
        let told: Vec<String> = of_sort(field, Some(&sans)).into_iter().take(1).collect();
        let told = serde_json::json!(told);
        if let Some(stated) = named(&format!(r#""x509Certificate":{{"{list}":{told},{extensions}}}"#), Source::Claimed(field)) {
            of_sans(field, &stated, Some(&sans));
            found += 1;
        }
    }
    found
}

/// Reads `raw` of a request, with the same assertion as [`subject`].
fn request(der: &[u8]) -> usize {
    let raw = STANDARD.encode(der);
    let Ok((b"", request)) = X509CertificationRequest::from_der(der) else { return 0 };
    let mut found = 0;
    let sans = request.requested_extensions().into_iter().flatten().find_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(sans) => Some(sans),
        _ => None,
    });
    for (field, list) in LISTS {
        let told: Vec<String> = of_sort(field, sans).into_iter().take(1).collect();
        let fields = format!(r#""x509CertificateRequest":{{"{list}":{},"raw":"{raw}"}}"#, serde_json::json!(told));
        if let Some(stated) = named(&fields, Source::Claimed(field)) {
            of_sans(field, &stated, sans);
            found += 1;
        }
    }
    let subject = &request.certification_request_info.subject;
    let first = attributes(Field::SubjectCommonName, subject).into_iter().flatten().next().unwrap_or_default();
    let told = serde_json::json!({ "commonName": first });
    let fields = format!(r#""x509CertificateRequest":{{"subject":{told},"raw":"{raw}"}}"#);
    if let Some(stated) = named(&fields, Source::Claimed(Field::SubjectCommonName)) {
        of_subject(Field::SubjectCommonName, &stated, subject);
        found += 1;
    }
    found
}

/// Asserts that every name of the field's sort is the stated one.
fn of_sans(field: Field, stated: &str, sans: Option<&SubjectAlternativeName<'_>>) {
    if LISTS.iter().any(|(other, _)| *other == field) {
        let found = of_sort(field, sans);
        assert!(!found.is_empty(), "{stated}");
        assert!(found.iter().all(|name| normal(name) == normal(stated)), "{stated}: {found:?}");
    }
}

fn of_sort(field: Field, sans: Option<&SubjectAlternativeName<'_>>) -> Vec<String> {
    let names = sans.iter().flat_map(|sans| &sans.general_names).filter_map(|san| match (field, name(san)?) {
        (Field::SanDns, Name::Dns(name)) | (Field::SanEmail, Name::Email(name)) | (Field::SanUri, Name::Uri(name)) => Some(name),
        (Field::SanIp, Name::Ip(address)) => Some(address.to_canonical().to_string()),
        _ => None,
    });
    names.filter(|name| !name.is_empty()).collect()
}

/// Asserts that every value of the attribute is the stated one.
fn of_subject(field: Field, stated: &str, subject: &X509Name<'_>) {
    if matches!(field, Field::SubjectCommonName | Field::SubjectSerialNumber) {
        let found: Vec<String> = attributes(field, subject).into_iter().map(|value| value.expect("what another cannot read")).collect();
        let found: Vec<&String> = found.iter().filter(|name| !name.is_empty()).collect();
        assert!(!found.is_empty(), "{stated}");
        assert!(found.iter().all(|name| normal(name) == normal(stated)), "{stated}: {found:?}");
    }
}

/// The values of an attribute; `None` for a value that is not a text.
fn attributes(field: Field, subject: &X509Name<'_>) -> Vec<Option<String>> {
    let id = if field == Field::SubjectCommonName { oid_registry::OID_X509_COMMON_NAME } else { oid_registry::OID_X509_SERIALNUMBER };
    let values = subject.iter_by_oid(&id).map(|attribute| attribute.attr_value());
    let read = |value: &x509_parser::der_parser::asn1_rs::Any<'_>| match value.header.tag().0 {
        30 => {
            let (pairs, []) = value.data.as_chunks::<2>() else { return None };
            String::from_utf16(&pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect::<Vec<_>>()).ok()
        }
        12 | 18 | 19 | 20 | 22 | 26 => std::str::from_utf8(value.data).ok().map(str::to_owned),
        _ => None,
    };
    values.map(read).collect()
}

const LISTS: [(Field, &str); 4] =
    [(Field::SanDns, "dnsNames"), (Field::SanEmail, "emailAddresses"), (Field::SanIp, "ipAddresses"), (Field::SanUri, "uris")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f_the_corpus_reaches_every_reader() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/certificate");
        let mut found = [0; READERS.len()];
        for file in std::fs::read_dir(folder).unwrap() {
            let data = std::fs::read(file.unwrap().path()).unwrap();
            found.iter_mut().zip(READERS).for_each(|(found, read)| *found += read(&data));
        }
        assert!(found.iter().all(|found| *found > 0), "{found:?}");
    }
}
