//! Tests of the device that a request is about, in every field that names one.

use proptest::prelude::*;
use rcgen::PublicKeyData as _;

use super::*;
use crate::certificate::tests::{extension_request, request, subject, tlv};
use crate::certificate::{COMMON_NAME, SERIAL_NUMBER, SUBJECT_ALT_NAME};
use crate::webhook::X509;

const SANS: &[Field] = &[Field::SanDns, Field::SanEmail, Field::SanIp, Field::SanUri];

/// The name in a claimed field of a certificate.
fn certificate(field: Field, fields: &str) -> Result<String, Denial> {
    identify(Source::Claimed(field), &format!(r#""x509Certificate":{{{fields}}}"#)).map(|(device, _)| device)
}

/// The name in a claimed field of a request.
fn asked(field: Field, fields: &str) -> Result<String, Denial> {
    identify(Source::Claimed(field), &format!(r#""x509CertificateRequest":{{{fields}}}"#)).map(|(device, _)| device)
}

/// The field `rawSubject` with these common names.
fn raw_subject(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| (COMMON_NAME, 0x0c, name.as_bytes())).collect();
    format!(r#""rawSubject":"{}""#, STANDARD.encode(subject(&names)))
}

/// A subjectAltName extension with these names, a tag and a value each.
fn names(names: &[(u8, &[u8])]) -> Vec<u8> {
    tlv(0x30, &[&names.iter().map(|(tag, value)| tlv(*tag, &[value])).collect::<Vec<_>>().concat()])
}

/// The field `extensions` with these subjectAltName extensions.
fn extensions(values: &[&[u8]]) -> String {
    let each = |value: &&[u8]| format!(r#"{{"id":"2.5.29.17","critical":false,"value":"{}"}}"#, STANDARD.encode(value));
    format!(r#""extensions":[{}]"#, values.iter().map(each).collect::<Vec<_>>().join(","))
}

/// The field `raw` of a request for these common names and subject alternative names.
fn raw(common_names: &[&str], sans: Option<&[u8]>) -> String {
    let common_names: Vec<_> = common_names.iter().map(|name| (COMMON_NAME, 0x0c, name.as_bytes())).collect();
    let asked = sans.map(|sans| extension_request(&[(SUBJECT_ALT_NAME, sans)]));
    format!(r#""raw":"{}""#, STANDARD.encode(request(&subject(&common_names), &[&asked.unwrap_or_default()])))
}

/// An `otherName` with a permanent identifier.
fn permanent_identifier(identifier: &str) -> Vec<u8> {
    let parts = tlv(0x30, &[&tlv(0x0c, &[identifier.as_bytes()])]);
    [&[6, 8, 43, 6, 1, 5, 5, 7, 8, 3], &tlv(0xa0, &[&parts])[..]].concat()
}

fn identify(source: Source, fields: &str) -> Result<(String, Trust), Denial> {
    let body = format!(r#"{{"timestamp":"2026-11-23T00:00:00Z",{fields}}}"#);
    let webhook: Webhook<'_> = serde_json::from_str(&body).unwrap();
    source.identify(&webhook, IdentifierKind::Serial).map(|identity| (identity.device.normal().to_owned(), identity.trust))
}

const ATTESTED: &str = r#""attestationData":{"permanentIdentifier":"C02a"}"#;

#[test]
fn takes_the_attested_identifier() {
    assert_eq!(identify(Source::Attested, ATTESTED), Ok(("C02A".to_owned(), Trust::Attested)));
    assert_eq!(
        identify(Source::Attested, r#""x509CertificateRequest":{"subject":{"commonName":"C02A"}}"#),
        Err(Denial::ATTESTATION_MISSING)
    );
}

#[test]
fn a_common_name_must_be_the_attested_identifier_or_empty() {
    let with =
        |name: &str| identify(Source::Attested, &format!(r#"{ATTESTED},"x509CertificateRequest":{{"subject":{{"commonName":"{name}"}}}}"#));
    assert!(with("C02a").is_ok());
    assert!(with("").is_ok());
    assert_eq!(with("C02A"), Err(Denial::IDENTIFIER_MISMATCH));
    assert_eq!(with("other"), Err(Denial::IDENTIFIER_MISMATCH));
}

#[test]
fn a_template_may_change_the_subject_that_authorizing_sees() {
    assert!(identify(Source::Attested, &format!(r#"{ATTESTED},"x509Certificate":{{"subject":{{"commonName":"Alice's Mac"}}}}"#)).is_ok());
}

#[test]
fn a_claim_cannot_contradict_an_attestation() {
    let fields = format!(r#"{ATTESTED},"x509CertificateRequest":{{"subject":{{"commonName":"other"}}}}"#);
    assert_eq!(identify(Source::Claimed(Field::SubjectCommonName), &fields), Err(Denial::IDENTIFIER_MISMATCH));
}

#[test]
fn takes_a_claimed_field_if_there_is_exactly_one() {
    let request = r#""x509CertificateRequest":{"subject":{"commonName":"a","serialNumber":"s"},"dnsNames":["d"],"emailAddresses":["e1","e2"],"uris":null,"ipAddresses":["192.0.2.1"]}"#;
    for (field, expected) in [
        (Field::SubjectCommonName, Ok("A")),
        (Field::SubjectSerialNumber, Ok("S")),
        (Field::SanDns, Ok("D")),
        (Field::SanIp, Ok("192.0.2.1")),
        (Field::SanEmail, Err(Denial::IDENTIFIER_AMBIGUOUS)),
        (Field::SanUri, Err(Denial::IDENTIFIER_MISSING)),
        (Field::SshKeyId, Err(Denial::IDENTIFIER_MISSING)),
        (Field::SshPrincipal, Err(Denial::IDENTIFIER_MISSING)),
    ] {
        assert_eq!(identify(Source::Claimed(field), request), expected.map(|id| (id.to_owned(), Trust::Claimed)), "{field:?}");
    }
    let ssh = r#""sshCertificateRequest":{"type":"host","keyID":"k","principals":["p"]}"#;
    assert_eq!(identify(Source::Claimed(Field::SshKeyId), ssh).unwrap().0, "K");
    assert_eq!(identify(Source::Claimed(Field::SshPrincipal), ssh).unwrap().0, "P");
}

#[test]
fn takes_a_field_of_the_certificate_that_authorized_the_request() {
    let mut params = rcgen::CertificateParams::new(["host.example.org".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "c02a");
    let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let fields = format!(r#""x5cCertificate":{{"raw":"{}"}}"#, STANDARD.encode(certificate.der()));
    assert_eq!(identify(Source::Certificate(Field::SubjectCommonName), &fields), Ok(("C02A".to_owned(), Trust::Certificate)));
    assert_eq!(identify(Source::Certificate(Field::SanDns), &fields).unwrap().0, "HOST.EXAMPLE.ORG");
    assert_eq!(identify(Source::Certificate(Field::SanUri), &fields), Err(Denial::IDENTIFIER_MISSING));
    assert_eq!(
        identify(Source::Certificate(Field::SubjectCommonName), r#""x5cCertificate":{"raw":"AAAA"}"#),
        Err(Denial::IDENTIFIER_INVALID)
    );
    assert_eq!(
        identify(Source::Certificate(Field::SubjectCommonName), r#""x509CertificateRequest":{"subject":{"commonName":"c02a"}}"#),
        Err(Denial::IDENTIFIER_MISSING)
    );
}

#[test]
fn refuses_identifiers_that_no_device_has() {
    for bad in ["", " ", "\t", "a\nb", "a\u{0}", "\u{85}", &"a".repeat(65)] {
        assert_eq!(DeviceId::new(IdentifierKind::Serial, bad), Err(Denial::IDENTIFIER_INVALID), "{bad:?}");
    }
    assert!(DeviceId::new(IdentifierKind::Hostname, &"a".repeat(65)).is_ok());
}

#[test]
fn only_a_udid_is_compared_without_its_dashes() {
    for kind in IdentifierKind::ALL {
        for stated in ["a1-b2-c3", " A1-B2-C3 "] {
            assert_eq!(kind.without_any_dashes(stated), if *kind == IdentifierKind::Udid { "A1B2C3" } else { "A1-B2-C3" }, "{kind:?}");
        }
        assert_eq!(kind.without_any_dashes("a1"), "A1");
    }
}

#[test]
fn a_key_is_the_digest_that_was_kept_of_it() {
    let digest = std::array::from_fn(|at| u8::try_from(at).unwrap());
    assert_eq!(PublicKey::of_digest(digest).as_bytes(), &digest);
}

#[test]
fn the_key_that_a_webhook_asks_for_is_that_of_the_certificate() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let sent = STANDARD.encode(key.subject_public_key_info());
        let body = format!(r#"{{"publicKey":"{sent}"}}"#);
        let x509: X509<'_> = serde_json::from_str(&body).unwrap();
        assert_eq!(x509.key(), Some(PublicKey::of_certificate(certificate.der()).unwrap()));
    }
}

#[test]
fn what_no_certificate_can_have_is_no_key() {
    let der = rcgen::KeyPair::generate().unwrap().subject_public_key_info();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(&der));
    let long = [&der[..], b"a"].concat();
    for sent in ["", "!", "AAAA", &STANDARD.encode(pem), &STANDARD.encode(long), &STANDARD.encode(&der[..der.len() - 1])] {
        let body = format!(r#"{{"publicKey":"{sent}"}}"#);
        let x509: X509<'_> = serde_json::from_str(&body).unwrap();
        assert_eq!(x509.key(), None, "{sent}");
    }
    assert_eq!(serde_json::from_str::<X509<'_>>(r#"{"publicKey":null}"#).unwrap().key(), None);
    assert_eq!(PublicKey::of_certificate(b"no certificate"), Err(Denial::IDENTIFIER_INVALID));
}

#[test]
fn look_alikes_are_not_the_same() {
    let normal = |text| DeviceId::new(IdentifierKind::Serial, text).unwrap().normal().to_owned();
    assert_eq!(normal(" c02a "), "C02A");
    assert_ne!(normal("ſ1"), normal("S1"));
    assert_ne!(normal("\u{a0}C02A"), "C02A");
    assert_ne!(normal("С02A"), "C02A");
}

proptest! {
    #[test]
    fn normalising_twice_changes_nothing(text in "\\PC{0,70}") {
        let once = normal(&text).into_owned();
        prop_assert_eq!(normal(&once), once.as_str());
    }
}

#[test]
fn a10_names_in_sans_are_read_where_the_fields_by_type_are_null() {
    // step-ca's default template leaves the fields like this.
    let body = |kind: &str, value: &str| {
        format!(
            r#""dnsNames":null,"emailAddresses":null,"ipAddresses":null,"uris":null,"extensions":null,"raw":null,
               "sans":[{{"type":"{kind}","value":"{value}"}}]"#
        )
    };
    for (field, kind, value, expected) in [
        (Field::SanDns, "dns", "laptop.example.org", "LAPTOP.EXAMPLE.ORG"),
        (Field::SanEmail, "email", "a@example.org", "A@EXAMPLE.ORG"),
        (Field::SanIp, "ip", "2001:DB8::1", "2001:DB8::1"),
        (Field::SanUri, "uri", "spiffe://x/y", "SPIFFE://X/Y"),
    ] {
        assert_eq!(certificate(field, &body(kind, value)).as_deref(), Ok(expected));
        for other in SANS.iter().filter(|other| **other != field) {
            assert_eq!(certificate(*other, &body(kind, value)), Err(Denial::IDENTIFIER_MISSING), "{other:?}");
        }
        // The case of the type does not matter.
        assert_eq!(certificate(field, &body(&kind.to_uppercase(), value)).as_deref(), Ok(expected));
    }
}

#[test]
fn a10_a_type_is_guessed_as_step_ca_guesses_it() {
    let of = |value: &str| {
        let body = |kind| format!(r#""sans":[{{{kind}"value":{}}}]"#, serde_json::json!(value));
        let found: Vec<_> = SANS.iter().map(|field| certificate(*field, &body(r#""type":"auto","#))).collect();
        assert_eq!(SANS.iter().map(|field| certificate(*field, &body(""))).collect::<Vec<_>>(), found);
        let places: Vec<_> = SANS.iter().zip(&found).filter(|(_, found)| found.is_ok()).map(|(field, _)| *field).collect();
        if places.is_empty() { Err(found[0].clone().unwrap_err()) } else { Ok(places) }
    };
    for (value, field) in [
        ("laptop.example.org", Field::SanDns),
        ("1a:b", Field::SanDns),
        (":b", Field::SanDns),
        ("a b:c", Field::SanDns),
        ("192.0.2.1", Field::SanIp),
        ("2001:db8::1", Field::SanIp),
        ("a@example.org", Field::SanEmail),
        ("spiffe://example.org:8443/a?b=c#d", Field::SanUri),
        ("spiffe://u:p@example.org/a:b", Field::SanUri),
        ("urn:uuid:1", Field::SanUri),
        ("mailto:a@example.org", Field::SanUri),
        ("laptop.example.org:8443", Field::SanUri),
    ] {
        assert_eq!(of(value), Ok(vec![field]), "{value}");
    }
    for value in ["x:%zz", "http://[::1]/", "http://a:b/", "http://u@a:b/", "x:a b", "x:é", "x:\u{7f}", "x:a\\b"] {
        assert_eq!(of(value), Err(Denial::IDENTIFIER_INVALID), "{value}");
    }
}

#[test]
fn a10_every_name_that_will_be_signed_is_judged() {
    let both = r#""dnsNames":["laptop.example.org"],"sans":[{"type":"dns","value":"vip.example.org"}]"#;
    assert_eq!(certificate(Field::SanDns, both), Err(Denial::IDENTIFIER_AMBIGUOUS));
    let guessed = r#""dnsNames":["laptop.example.org"],"sans":[{"value":"vip.example.org"}]"#;
    assert_eq!(certificate(Field::SanDns, guessed), Err(Denial::IDENTIFIER_AMBIGUOUS));
    for (field, list, san) in [
        (Field::SanEmail, "emailAddresses", r#"{"type":"email","value":"b@example.org"}"#),
        (Field::SanIp, "ipAddresses", r#"{"type":"ip","value":"192.0.2.2"}"#),
        (Field::SanUri, "uris", r#"{"type":"uri","value":"urn:b"}"#),
    ] {
        let one = if field == Field::SanIp { "192.0.2.1" } else { "urn:a" };
        assert!(certificate(field, &format!(r#""{list}":"{one}""#)).is_ok());
        assert_eq!(certificate(field, &format!(r#""{list}":"{one}","sans":[{san}]"#)), Err(Denial::IDENTIFIER_AMBIGUOUS), "{field:?}");
    }
    // Names of another sort, or of a type that no field reads, do not count.
    let mixed = r#""dnsNames":["laptop.example.org"],"sans":[{"type":"email","value":"a@b"},{"type":"permanentIdentifier","value":"C02"},
        {"type":"1.2.3","value":"vip.example.org"},{"type":"dns","value":""}]"#;
    assert_eq!(certificate(Field::SanDns, mixed).as_deref(), Ok("LAPTOP.EXAMPLE.ORG"));
}

#[test]
fn a10_one_name_told_twice_is_one_name() {
    let twice = r#""dnsNames":["laptop.example.org","LAPTOP.example.org"],"sans":[{"type":"dns","value":"Laptop.Example.Org"}]"#;
    assert_eq!(certificate(Field::SanDns, twice).as_deref(), Ok("LAPTOP.EXAMPLE.ORG"));
    let twice = r#""ipAddresses":["2001:db8::1"],"sans":[{"type":"ip","value":"2001:DB8:0::1"},{"type":"ip","value":"2001:db8:0:0::1"}]"#;
    assert_eq!(certificate(Field::SanIp, twice).as_deref(), Ok("2001:DB8::1"));
    let mapped = r#""ipAddresses":["192.0.2.1"],"sans":[{"type":"ip","value":"::ffff:192.0.2.1"}]"#;
    assert_eq!(certificate(Field::SanIp, mapped).as_deref(), Ok("192.0.2.1"));
    assert_eq!(certificate(Field::SanIp, r#""ipAddresses":["host"]"#), Err(Denial::IDENTIFIER_INVALID));
    let principals = r#""sshCertificate":{"type":"host","keyId":"k","principals":["p","P"]}"#;
    assert_eq!(identify(Source::Claimed(Field::SshPrincipal), principals).unwrap().0, "P");
    let principals = r#""sshCertificate":{"type":"host","keyId":"k","principals":["p","q"]}"#;
    assert_eq!(identify(Source::Claimed(Field::SshPrincipal), principals), Err(Denial::IDENTIFIER_AMBIGUOUS));
    // `keyId`, as a certificate spells it.
    assert_eq!(identify(Source::Claimed(Field::SshKeyId), principals).unwrap().0, "K");
}

#[test]
fn a10_extra_names_count_with_the_field_that_they_override() {
    let with = |oid: &str, value: &str| {
        format!(r#""subject":{{"commonName":"a","serialNumber":"s","extraNames":[{{"type":"{oid}","value":{value}}}]}}"#)
    };
    for oid in ["2.5.4.3", "2.05.4.3"] {
        assert_eq!(certificate(Field::SubjectCommonName, &with(oid, r#""b""#)), Err(Denial::IDENTIFIER_AMBIGUOUS), "{oid}");
        assert_eq!(certificate(Field::SubjectCommonName, &with(oid, r#""A""#)).as_deref(), Ok("A"));
        assert_eq!(certificate(Field::SubjectSerialNumber, &with(oid, r#""b""#)).as_deref(), Ok("S"));
        for no_text in ["1", "null", "true", r#"["b"]"#] {
            assert_eq!(certificate(Field::SubjectCommonName, &with(oid, no_text)), Err(Denial::IDENTIFIER_INVALID), "{no_text}");
        }
    }
    assert_eq!(certificate(Field::SubjectSerialNumber, &with("2.5.4.5", r#""b""#)), Err(Denial::IDENTIFIER_AMBIGUOUS));
    for other in ["2.5.4.4", "2.5.4", "2.5.4.3.1", "", "2.5.4.", "2.5.4.x"] {
        assert_eq!(certificate(Field::SubjectCommonName, &with(other, r#""b""#)).as_deref(), Ok("A"), "{other}");
    }
    let alone = r#""subject":{"extraNames":[{"type":"2.5.4.3","value":"b"}]}"#;
    assert_eq!(certificate(Field::SubjectCommonName, alone).as_deref(), Ok("B"));
    let several = r#""subject":{"extraNames":[{"type":"2.5.4.3","value":"a"},{"type":"2.5.4.3","value":"b"}]}"#;
    assert_eq!(certificate(Field::SubjectCommonName, several), Err(Denial::IDENTIFIER_AMBIGUOUS));
    // The empty name is signed, in place of the field.
    let empty = r#""subject":{"commonName":"a","extraNames":[{"type":"2.5.4.3","value":""}]}"#;
    assert_eq!(certificate(Field::SubjectCommonName, empty), Err(Denial::IDENTIFIER_AMBIGUOUS));
    let empty = r#""subject":{"commonName":"","extraNames":[{"type":"2.5.4.3","value":"a"}]}"#;
    assert_eq!(certificate(Field::SubjectCommonName, empty).as_deref(), Ok("A"), "an empty field is not signed");
    // Go never writes null here.
    assert_eq!(certificate(Field::SubjectCommonName, r#""subject":{"commonName":"a","extraNames":null}"#).as_deref(), Ok("A"));
}

#[test]
fn a10_the_raw_subject_must_say_what_the_subject_says() {
    let with = |names: &[&str]| format!(r#""subject":{{"commonName":"a"}},{}"#, raw_subject(names));
    for judge in [certificate, asked] {
        assert_eq!(judge(Field::SubjectCommonName, &with(&["A"])).as_deref(), Ok("A"));
        assert_eq!(judge(Field::SubjectCommonName, &with(&["b"])), Err(Denial::IDENTIFIER_AMBIGUOUS));
        assert_eq!(judge(Field::SubjectCommonName, &with(&["b", "a"])), Err(Denial::IDENTIFIER_AMBIGUOUS));
        assert_eq!(judge(Field::SubjectCommonName, &with(&[])), Err(Denial::IDENTIFIER_MISMATCH));
        let alone = format!(r#""subject":{{}},{}"#, raw_subject(&["a"]));
        assert_eq!(judge(Field::SubjectCommonName, &alone), Err(Denial::IDENTIFIER_MISMATCH));
        for bad in ["!", "AAAA", &STANDARD.encode(subject(&[(COMMON_NAME, 0x04, b"a")]))] {
            let body = format!(r#""subject":{{"commonName":"a"}},"rawSubject":"{bad}""#);
            assert_eq!(judge(Field::SubjectCommonName, &body), Err(Denial::IDENTIFIER_INVALID), "{bad}");
        }
        for nothing in ["null", r#""""#] {
            let body = format!(r#""subject":{{"commonName":"a"}},"rawSubject":{nothing},"raw":{nothing}"#);
            assert_eq!(judge(Field::SubjectCommonName, &body).as_deref(), Ok("A"));
        }
    }
}

#[test]
fn a10_f_a_request_with_two_common_names_names_nobody() {
    // step-ca takes the last of them for the subject, and a template can sign both.
    let body = |names: &[&str]| format!(r#""subject":{{"commonName":"a"}},{}"#, raw(names, None));
    assert_eq!(asked(Field::SubjectCommonName, &body(&["a"])).as_deref(), Ok("A"));
    assert_eq!(asked(Field::SubjectCommonName, &body(&["b", "a"])), Err(Denial::IDENTIFIER_AMBIGUOUS));
    assert_eq!(asked(Field::SubjectCommonName, &body(&[])), Err(Denial::IDENTIFIER_MISMATCH));
    let attested = |names: &[&str]| {
        identify(
            Source::Attested,
            &format!(r#"{ATTESTED},"x509CertificateRequest":{{"subject":{{"commonName":"C02a"}},{}}}"#, raw(names, None)),
        )
    };
    assert!(attested(&["C02a"]).is_ok());
    for (names, source) in [(["", "C02a"], attested(&["", "C02a"])), (["C02a", ""], attested(&["C02a", ""]))] {
        assert_eq!(source, Err(Denial::IDENTIFIER_AMBIGUOUS), "{names:?}: to Go the last one counts");
    }
    assert!(attested(&["", ""]).is_ok(), "an empty name is none");
    assert_eq!(attested(&["other", "C02a"]), Err(Denial::IDENTIFIER_MISMATCH));
    let by_subject =
        |names: &[&str]| identify(Source::Attested, &format!(r#"{ATTESTED},"x509CertificateRequest":{{{}}}"#, raw_subject(names)));
    assert!(by_subject(&["C02a"]).is_ok());
    assert_eq!(by_subject(&["other", "C02a"]), Err(Denial::IDENTIFIER_MISMATCH));
}

#[test]
fn a10_an_extension_is_read_and_overrides() {
    let vip = names(&[(0x82, b"vip.example.org")]);
    let laptop = names(&[(0x82, b"LAPTOP.example.org")]);
    let neither = names(&[(0x81, b"a@example.org")]);
    for judge in [certificate, asked] {
        let with = |values: &[&[u8]]| format!(r#""dnsNames":["laptop.example.org"],{}"#, extensions(values));
        assert_eq!(judge(Field::SanDns, &with(&[&laptop])).as_deref(), Ok("LAPTOP.EXAMPLE.ORG"));
        assert_eq!(judge(Field::SanDns, &with(&[&vip])), Err(Denial::IDENTIFIER_AMBIGUOUS));
        assert_eq!(judge(Field::SanDns, &with(&[&neither])), Err(Denial::IDENTIFIER_MISMATCH));
        assert_eq!(judge(Field::SanDns, &extensions(&[&laptop])), Err(Denial::IDENTIFIER_MISMATCH));
        // The extension twice, not DER, of another type, in parts, or without a value: an error for every field.
        for field in [Field::SanDns, Field::SubjectCommonName] {
            for bad in [
                with(&[&laptop, &laptop]),
                with(&[b"!"]),
                with(&[&tlv(0x31, &[])]),
                with(&[&names(&[(0xa2, &tlv(0x16, &[b"laptop.example.org"]))])]),
                with(&[b""]),
                r#""extensions":[{"id":"2.5.29.17","value":"!"}]"#.to_owned(),
                r#""extensions":[{"id":"2.5.29.17"}]"#.to_owned(),
                r#""extensions":[{"id":"2.5.29.017","value":""}]"#.to_owned(),
            ] {
                let body = format!(r#""subject":{{"commonName":"a"}},{bad}"#);
                assert_eq!(judge(field, &body), Err(Denial::IDENTIFIER_INVALID), "{bad}");
            }
        }
        let other = format!(r#""dnsNames":["laptop.example.org"],"extensions":[{{"id":"2.5.29.18","value":"{}"}}]"#, STANDARD.encode(&vip));
        assert_eq!(judge(Field::SanDns, &other).as_deref(), Ok("LAPTOP.EXAMPLE.ORG"));
    }
    for (field, list, tag, value, expected) in [
        (Field::SanEmail, "emailAddresses", 0x81, &b"a@example.org"[..], "a@example.org"),
        (Field::SanIp, "ipAddresses", 0x87, &[192, 0, 2, 1], "192.0.2.1"),
        (Field::SanUri, "uris", 0x86, b"urn:a", "urn:a"),
    ] {
        let with = |values: &[(u8, &[u8])]| format!(r#""{list}":["{expected}"],{}"#, extensions(&[&names(values)]));
        assert!(certificate(field, &with(&[(tag, value), (0x82, b"laptop")])).is_ok(), "{field:?}");
        let mut other = value.to_vec();
        *other.last_mut().unwrap() = b'9';
        assert_eq!(certificate(field, &with(&[(tag, value), (tag, &other)])), Err(Denial::IDENTIFIER_AMBIGUOUS), "{field:?}");
    }
}

#[test]
fn a10_the_whole_request_counts() {
    let sans = names(&[(0x82, b"laptop.example.org")]);
    let both = names(&[(0x82, b"laptop.example.org"), (0x82, b"vip.example.org")]);
    let with = |sans: Option<&[u8]>| format!(r#""dnsNames":["laptop.example.org"],{}"#, raw(&[], sans));
    assert_eq!(asked(Field::SanDns, &with(Some(&sans))).as_deref(), Ok("LAPTOP.EXAMPLE.ORG"));
    assert_eq!(asked(Field::SanDns, &with(Some(&both))), Err(Denial::IDENTIFIER_AMBIGUOUS));
    assert_eq!(asked(Field::SanDns, &with(None)), Err(Denial::IDENTIFIER_MISMATCH));
    for bad in ["!", "AAAA"] {
        assert_eq!(asked(Field::SanDns, &format!(r#""dnsNames":["a"],"raw":"{bad}""#)), Err(Denial::IDENTIFIER_INVALID));
        assert_eq!(
            asked(Field::SubjectCommonName, &format!(r#""subject":{{"commonName":"a"}},"raw":"{bad}""#)),
            Err(Denial::IDENTIFIER_INVALID)
        );
    }
}

#[test]
fn a10_whatever_names_the_attested_device_must_be_it() {
    let with =
        |half: &str, fields: &str| identify(Source::Attested, &format!(r#"{ATTESTED},"{half}":{{{fields}}}"#)).map(|(device, _)| device);
    for half in ["x509CertificateRequest", "x509Certificate"] {
        for (named, fits) in [("C02A", true), ("other", false)] {
            let expected = if fits { Ok("C02A".to_owned()) } else { Err(Denial::IDENTIFIER_MISMATCH) };
            let typed = format!(r#""sans":[{{"type":"permanentIdentifier","value":"{named}"}}]"#);
            assert_eq!(with(half, &typed), expected);
            let parts = format!(r#""sans":[{{"type":"permanentIdentifier","value":"C02A","asn1Value":{{"identifier":"{named}"}}}}]"#);
            assert_eq!(with(half, &parts), expected);
            let extension = extensions(&[&names(&[(0x82, b"any"), (0xa0, &permanent_identifier(named))])]);
            assert_eq!(with(half, &extension), expected);
        }
        assert!(with(half, r#""sans":[{"type":"permanentIdentifier","value":"","asn1Value":{"assigner":"1.2"}}]"#).is_ok());
        assert!(with(half, r#""dnsNames":["anything.example.org"],"sans":[{"type":"dns","value":"else.example.org"}]"#).is_ok());
    }
    let asked = raw(&[], Some(&names(&[(0xa0, &permanent_identifier("other"))])));
    assert_eq!(with("x509CertificateRequest", &asked), Err(Denial::IDENTIFIER_MISMATCH));
    // A template may change the common name; it must then be the same in all fields.
    let renamed = |names: &[&str]| with("x509Certificate", &format!(r#""subject":{{"commonName":"Alice's Mac"}},{}"#, raw_subject(names)));
    assert!(renamed(&["Alice's Mac"]).is_ok());
    assert_eq!(renamed(&["C02B", "Alice's Mac"]), Err(Denial::IDENTIFIER_MISMATCH));
    assert_eq!(renamed(&[]), Err(Denial::IDENTIFIER_MISMATCH));
}

#[test]
fn a11_the_certificate_of_a_request_is_read_by_the_types_of_its_texts() {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let stolen = rcgen::string::BmpString::from_utf16be(b"C02SERIAL001".to_vec()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, rcgen::DnValue::BmpString(stolen));
    let der = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec();
    assert_eq!(Field::SubjectCommonName.of_certificate(&der).as_deref(), Ok("䌰㉓䕒䥁䰰〱"));
    let fields = format!(r#""x5cCertificate":{{"raw":"{}"}}"#, STANDARD.encode(&der));
    assert_eq!(identify(Source::Certificate(Field::SubjectCommonName), &fields).unwrap().0, "䌰㉓䕒䥁䰰〱");
    let request = format!(
        r#""subject":{{"commonName":"C02SERIAL001"}},"rawSubject":"{}""#,
        STANDARD.encode(subject(&[(COMMON_NAME, 0x1e, b"C02SERIAL001")]))
    );
    assert_eq!(asked(Field::SubjectCommonName, &request), Err(Denial::IDENTIFIER_AMBIGUOUS));
}

#[test]
fn f_a_certificate_is_read_field_by_field_and_not_the_last_or_the_first_of_several() {
    let of = |names: &[(rcgen::DnType, &str)]| {
        let attributes: Vec<_> = names
            .iter()
            .map(|(kind, value)| {
                let id = if *kind == rcgen::DnType::CommonName { COMMON_NAME } else { SERIAL_NUMBER };
                (id, 0x0c, value.as_bytes())
            })
            .collect();
        issued(&subject(&attributes), &[])
    };
    let serial = rcgen::DnType::CustomDnType(vec![2, 5, 4, 5]);
    let one = of(&[(rcgen::DnType::CommonName, "name"), (serial.clone(), "C02")]);
    assert_eq!(Field::SubjectCommonName.of_certificate(&one).as_deref(), Ok("name"));
    assert_eq!(Field::SubjectSerialNumber.of_certificate(&one).as_deref(), Ok("C02"));
    let two = of(&[(rcgen::DnType::CommonName, "a"), (rcgen::DnType::CommonName, "b"), (serial, "C02")]);
    assert_eq!(Field::SubjectCommonName.of_certificate(&two), Err(Denial::IDENTIFIER_AMBIGUOUS));
    assert_eq!(Field::SubjectSerialNumber.of_certificate(&two).as_deref(), Ok("C02"));
    let names = |host: &str| names(&[(0x82, host.as_bytes())]);
    let (laptop, vip) = (names("laptop"), names("vip"));
    assert_eq!(Field::SanDns.of_certificate(&issued(&subject(&[]), &[&laptop])).as_deref(), Ok("laptop"));
    assert_eq!(Field::SanDns.of_certificate(&issued(&subject(&[]), &[&laptop, &vip])), Err(Denial::IDENTIFIER_INVALID));
    assert_eq!(Field::SanDns.of_certificate(&issued(&subject(&[]), &[&vip, &laptop])), Err(Denial::IDENTIFIER_INVALID));
    let parts = self::names(&[(0xa2, &tlv(0x16, &[b"laptop"]))]);
    assert_eq!(Field::SanDns.of_certificate(&issued(&subject(&[]), &[&parts])), Err(Denial::IDENTIFIER_INVALID));
    let address = self::names(&[(0x87, &[192, 0, 2, 1])]);
    assert_eq!(Field::SanIp.of_certificate(&issued(&subject(&[]), &[&address])).as_deref(), Ok("192.0.2.1"));
    assert_eq!(Field::SshKeyId.of_certificate(&one), Err(Denial::IDENTIFIER_MISSING));
    assert_eq!(Field::SshPrincipal.of_certificate(&one), Err(Denial::IDENTIFIER_MISSING));
}

/// An unsigned certificate with this subject and these subjectAltName extensions.
fn issued(subject: &[u8], sans: &[&[u8]]) -> Vec<u8> {
    let extension = |value: &&[u8]| tlv(0x30, &[&[6, 3, 0x55, 0x1d, 0x11], &tlv(0x04, &[value])]);
    let extensions = tlv(0xa3, &[&tlv(0x30, &[&sans.iter().map(extension).collect::<Vec<_>>().concat()])]);
    let algorithm = tlv(0x30, &[&[6, 1, 42]]);
    let validity = tlv(0x30, &[&tlv(0x17, &[b"260101000000Z"]), &tlv(0x17, &[b"270101000000Z"])]);
    let key = rcgen::KeyPair::generate().unwrap().subject_public_key_info();
    let empty = tlv(0x30, &[]);
    let extensions = if sans.is_empty() { Vec::new() } else { extensions };
    let body = tlv(0x30, &[&tlv(0xa0, &[&[2, 1, 2]]), &[2, 1, 1], &algorithm, &empty, &validity, subject, &key, &extensions]);
    tlv(0x30, &[&body, &algorithm, &tlv(0x03, &[&[0]])])
}

#[test]
fn d10_the_principal_of_a_token_names_the_device() {
    let principal = |fields: &str| identify(Source::Principal, &format!(r#""authorizationPrincipal":"i-0123"{fields}"#));
    assert_eq!(principal(""), Ok(("I-0123".to_owned(), Trust::Claimed)));
    let with = |name: &str| {
        let der = issued(&subject(&[(COMMON_NAME, 0x0c, name.as_bytes())]), &[]);
        principal(&format!(r#","x5cCertificate":{{"raw":"{}"}}"#, STANDARD.encode(der)))
    };
    assert_eq!(with("i-0123"), Ok(("I-0123".to_owned(), Trust::Certificate)));
    assert_eq!(with("i-0124"), Err(Denial::IDENTIFIER_MISMATCH));
    let two = issued(&subject(&[(COMMON_NAME, 0x0c, b"i-0124"), (COMMON_NAME, 0x0c, b"i-0123")]), &[]);
    assert_eq!(principal(&format!(r#","x5cCertificate":{{"raw":"{}"}}"#, STANDARD.encode(two))), Err(Denial::IDENTIFIER_AMBIGUOUS));
    assert_eq!(principal(r#","x5cCertificate":{"raw":"AAAA"}"#), Err(Denial::IDENTIFIER_INVALID));
    for nobody in [r#""authorizationPrincipal":"""#, r#""authorizationPrincipal":null"#, r#""provisionerName":"aws""#] {
        assert_eq!(identify(Source::Principal, nobody), Err(Denial::IDENTIFIER_MISSING));
    }
}

#[test]
fn a10_d10_bodies_of_a_real_step_ca_name_what_they_are_about() {
    let of = |body: &str, field| {
        let webhook: Webhook<'_> = serde_json::from_str(body).unwrap();
        Source::Claimed(field).identify(&webhook, IdentifierKind::Hostname).map(|identity| identity.device.stated().to_owned())
    };
    for (body, name, host) in [
        (include_str!("../../testdata/step-ca/enriching.success.json"), "SANDEV", Some("sandev.example")),
        (include_str!("../../testdata/step-ca/authorizing.success.json"), "SANDEV", Some("sandev.example")),
        (include_str!("../../testdata/step-ca/jwk.enriching.json"), "jwk1.example", Some("jwk1.example")),
        (include_str!("../../testdata/step-ca/jwk.authorizing.json"), "jwk1.example", Some("jwk1.example")),
        (include_str!("../../testdata/step-ca/notifying.success.json"), "SANDEV", Some("sandev.example")),
        (include_str!("../../testdata/step-ca/notifying.failure.authorizing-denied.json"), "AUTHDENY", None),
    ] {
        assert_eq!(of(body, Field::SubjectCommonName).as_deref(), Ok(name));
        assert_eq!(of(body, Field::SanDns), host.map(str::to_owned).ok_or(Denial::IDENTIFIER_MISSING));
        assert_eq!(of(body, Field::SanEmail), Err(Denial::IDENTIFIER_MISSING));
    }
}

#[test]
fn every_word_of_the_configuration_reads_back_and_no_other_does() {
    for field in Field::ALL {
        assert_eq!(field.as_str().parse::<Field>().unwrap(), *field);
    }
    for kind in IdentifierKind::ALL {
        assert_eq!(kind.to_string().parse::<IdentifierKind>().unwrap(), *kind);
    }
    assert_eq!("san".parse::<Field>().unwrap_err().to_string().split(',').count(), Field::ALL.len());
    assert_eq!(Field::SanDns.as_str(), "san.dns");
    assert_eq!(IdentifierKind::Serial.to_string(), "serial");
}

#[test]
fn a3_one_udid_has_two_spellings_and_no_more() {
    let (dashed, plain) = ("00008110-001A2B3C4D5E6F70", "00008110001a2b3c4d5e6f70");
    assert!(same(IdentifierKind::Udid, dashed, plain) && same(IdentifierKind::Udid, " 00008110001A2B3C4D5E6F70 ", dashed));
    assert!(same(IdentifierKind::Udid, "4c4c4544-0043-5a10-8036-b4c04f4e3233", "4C4C454400435A108036B4C04F4E3233"));
    assert!(!same(IdentifierKind::Serial, dashed, plain), "a serial number keeps its dashes");
    for other in ["0000-8110001A2B3C4D5E6F70", "-00008110-001A2B3C4D5E6F70", "00008110--001A2B3C4D5E6F70", "00008110-001A2B3C4D5E6F71"] {
        assert!(!same(IdentifierKind::Udid, other, plain), "{other}");
    }
}
