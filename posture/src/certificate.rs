//! Names in DER: in certificates (RFC 5280), in certificate requests (RFC 2986), and in the parts of either that step-ca
//! sends alone. One reader serves all of them, so that every step reads the same names.
//!
//! A string is decoded by its ASN.1 type, or refused: the bytes of one encoding are never read as another. An encoding that
//! DER does not allow is refused as well, since the signer or the verifier may read it differently.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use der::asn1::{AnyRef, BitStringRef, ObjectIdentifier, OctetStringRef};
use der::{Decode, Reader as _, Sequence, SliceReader, Tag, TagNumber, Tagged as _};

/// Error: a DER structure cannot be read; holds the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unreadable(String);

/// OID of `commonName`, an attribute of a subject.
pub(crate) const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// OID of `serialNumber`, an attribute of a subject.
pub(crate) const SERIAL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.5");
/// OID of `subjectAltName`, the extension with the subject alternative names.
pub(crate) const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
/// OID of `extKeyUsage`, the extension that lists the purposes of a certificate's key.
pub(crate) const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
/// OID of `extensionRequest`, the attribute of a request that holds the extensions it asks for (RFC 2985, 5.4.2).
const EXTENSION_REQUEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.14");
/// OID of `permanentIdentifier`, an `otherName` that names a device (RFC 4043).
const PERMANENT_IDENTIFIER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.8.3");

/// An RFC 5280 certificate, read as far as its names, its usage and its key. It was verified before it comes here.
#[derive(Sequence)]
pub(crate) struct Certificate<'a> {
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
    issuer_unique_id: Option<BitStringRef<'a>>,
    #[asn1(context_specific = "2", tag_mode = "IMPLICIT", optional = "true")]
    subject_unique_id: Option<BitStringRef<'a>>,
    #[asn1(context_specific = "3", optional = "true")]
    extensions: Option<Vec<Extension<'a>>>,
}

/// An RFC 2986 certificate request, read as far as its names. step-ca has verified its signature.
#[derive(Sequence)]
pub(crate) struct Request<'a> {
    body: RequestBody<'a>,
    algorithm: AnyRef<'a>,
    signature: AnyRef<'a>,
}

#[derive(Sequence)]
struct RequestBody<'a> {
    version: AnyRef<'a>,
    subject: AnyRef<'a>,
    public_key: AnyRef<'a>,
    // DER requires the members of a SET to be sorted; clients write attributes in any order, and step-ca accepts that.
    attributes: AnyRef<'a>,
}

#[derive(Sequence)]
struct Extension<'a> {
    id: ObjectIdentifier,
    #[asn1(default = "Default::default")]
    critical: bool,
    value: &'a OctetStringRef,
}

impl<'a> Certificate<'a> {
    /// Reads a DER certificate.
    pub(crate) fn from_der(der: &'a [u8]) -> Result<Self, Unreadable> {
        decode(der)
    }

    /// The certificate's subject, a Name.
    pub(crate) const fn subject(&self) -> AnyRef<'a> {
        self.body.subject
    }

    /// The certificate's SubjectPublicKeyInfo.
    pub(crate) const fn public_key(&self) -> AnyRef<'a> {
        self.body.public_key
    }

    /// The certificate's serial number: the octets of an INTEGER.
    pub(crate) fn serial_number(&self) -> &'a [u8] {
        self.body.serial_number.value()
    }

    /// The value of an extension; an error if the certificate has the extension twice.
    pub(crate) fn extension(&self, id: ObjectIdentifier) -> Result<Option<&'a [u8]>, Unreadable> {
        one(self.body.extensions.iter().flatten(), id)
    }
}

impl<'a> Request<'a> {
    /// Reads a DER certificate request.
    pub(crate) fn from_der(der: &'a [u8]) -> Result<Self, Unreadable> {
        let request: Self = decode(der)?;
        let is_set = request.body.attributes.tag() == Tag::ContextSpecific { constructed: true, number: TagNumber(0) };
        if is_set { Ok(request) } else { Err(unreadable("the attributes of a certificate request are no set")) }
    }

    /// The request's subject, a Name.
    pub(crate) const fn subject(&self) -> AnyRef<'a> {
        self.body.subject
    }

    /// The value of an extension that the request asks for; an error if it asks for the extension twice.
    pub(crate) fn extension(&self, id: ObjectIdentifier) -> Result<Option<&'a [u8]>, Unreadable> {
        let mut asked: Vec<Extension<'a>> = Vec::new();
        for attribute in each(self.body.attributes.value())? {
            let [kind, values] = parts(attribute, Tag::Sequence)?;
            if identifier(kind)? == EXTENSION_REQUEST {
                for value in members(values, Tag::Set)? {
                    asked.extend(value.decode_as::<Vec<Extension<'a>>>().map_err(unreadable)?);
                }
            }
        }
        one(asked.iter(), id)
    }
}

fn one<'a: 'e, 'e>(extensions: impl Iterator<Item = &'e Extension<'a>>, id: ObjectIdentifier) -> Result<Option<&'a [u8]>, Unreadable> {
    let mut found = None;
    for extension in extensions {
        if shortest(extension.id)? == id && found.replace(extension.value.as_bytes()).is_some() {
            return Err(unreadable(format_args!("the extension {id} stands there twice")));
        }
    }
    Ok(found)
}

/// The key purposes in an extendedKeyUsage extension.
pub(crate) fn usages(value: &[u8]) -> Result<Vec<ObjectIdentifier>, Unreadable> {
    members(decode(value)?, Tag::Sequence)?.into_iter().map(identifier).collect()
}

fn identifier(value: AnyRef<'_>) -> Result<ObjectIdentifier, Unreadable> {
    shortest(value.decode_as::<ObjectIdentifier>().map_err(unreadable)?)
}

/// Returns the object identifier if its arcs are as short as DER requires (X.690, 8.19.2). Other readers take an arc with
/// leading zeros for the same identifier; here it would compare as another one.
fn shortest(id: ObjectIdentifier) -> Result<ObjectIdentifier, Unreadable> {
    let mut begins = true;
    for byte in id.as_bytes() {
        if begins && *byte == 0x80 {
            return Err(unreadable("a part of an object identifier has zeros before it"));
        }
        begins = byte & 0x80 == 0;
    }
    Ok(id)
}

/// Reads a Name that stands alone, outside a certificate.
pub(crate) fn name(der: &[u8]) -> Result<AnyRef<'_>, Unreadable> {
    decode(der)
}

/// All values of an attribute in a Name, in their order.
pub(crate) fn attributes<'a>(name: AnyRef<'a>, id: ObjectIdentifier) -> Result<Vec<Cow<'a, str>>, Unreadable> {
    let mut found = Vec::new();
    for relative in members(name, Tag::Sequence)? {
        for attribute in members(relative, Tag::Set)? {
            let [kind, value] = parts(attribute, Tag::Sequence)?;
            if identifier(kind)? == id {
                found.push(text(value)?);
            }
        }
    }
    Ok(found)
}

/// One subject alternative name, a GeneralName of RFC 5280.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum San<'a> {
    Email(&'a str),
    Dns(&'a str),
    Uri(&'a str),
    Ip(IpAddr),
    /// A name of a kind that no rule and no field uses.
    Other(AnyRef<'a>),
}

/// All names in a subjectAltName extension, in their order.
pub(crate) fn sans(value: &[u8]) -> Result<Vec<San<'_>>, Unreadable> {
    members(decode(value)?, Tag::Sequence)?.into_iter().map(san).collect()
}

fn san(name: AnyRef<'_>) -> Result<San<'_>, Unreadable> {
    let Tag::ContextSpecific { constructed, number: TagNumber(kind) } = name.tag() else {
        return Err(unreadable("a subject alternative name has no kind"));
    };
    // otherName, x400Address, directoryName and ediPartyName are constructed; the other kinds are primitive.
    if constructed != matches!(kind, 0 | 3 | 4 | 5) {
        return Err(unreadable("a subject alternative name is encoded otherwise than its kind is"));
    }
    let text = || ascii(name.value());
    Ok(match kind {
        1 => San::Email(text()?),
        2 => San::Dns(text()?),
        6 => San::Uri(text()?),
        7 => San::Ip(address(name.value())?),
        _ => San::Other(name),
    })
}

fn address(octets: &[u8]) -> Result<IpAddr, Unreadable> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    let either = v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from));
    either.map_err(|_| unreadable("an IP address has neither 4 nor 16 octets"))
}

impl<'a> San<'a> {
    /// The permanent identifier in this name; `None` if the name is of another kind, or has no identifier.
    pub(crate) fn permanent_identifier(&self) -> Result<Option<Cow<'a, str>>, Unreadable> {
        let Self::Other(name) = self else { return Ok(None) };
        if name.tag() != (Tag::ContextSpecific { constructed: true, number: TagNumber(0) }) {
            return Ok(None);
        }
        let [kind, value] = all(name.value())?;
        if identifier(kind)? != PERMANENT_IDENTIFIER {
            return Ok(None);
        }
        let explicit = Tag::ContextSpecific { constructed: true, number: TagNumber(0) };
        let [identifier] = parts(value, explicit)?;
        let first = members(identifier, Tag::Sequence)?.into_iter().next();
        first.filter(|part| part.tag() != Tag::ObjectIdentifier).map(text).transpose()
    }
}

/// A string, decoded by its ASN.1 type.
pub(crate) fn text(value: AnyRef<'_>) -> Result<Cow<'_, str>, Unreadable> {
    let bytes = value.value();
    match value.tag() {
        Tag::Utf8String => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| unreadable("a UTF8String is not UTF-8")),
        Tag::Ia5String | Tag::VisibleString => ascii(bytes).map(Cow::Borrowed),
        // `*`, `&`, `@` and `_` are not in the type's character set, but certificates have them; they mean what they mean in ASCII.
        Tag::PrintableString => ascii(bytes).map(Cow::Borrowed),
        Tag::NumericString => only(bytes, |byte| byte.is_ascii_digit() || byte == b' '),
        // Only characters that are the same in T.61 and ASCII: readers disagree whether other bytes are T.61 or Latin-1.
        Tag::TeletexString => only(bytes, |byte| byte.is_ascii_alphanumeric() || b" !\"%&'()*+,-./:;<=>?@[]_|".contains(&byte)),
        Tag::BmpString => {
            let (pairs, []) = bytes.as_chunks::<2>() else { return Err(unreadable("a BMPString ends within a character")) };
            // A BMPString has no surrogates, and neither has `char`.
            let letters = pairs.iter().map(|pair| char::from_u32(u16::from_be_bytes(*pair).into()));
            letters.collect::<Option<String>>().map(Cow::Owned).ok_or_else(|| unreadable("a BMPString has surrogates"))
        }
        // A UniversalString does not get here: its tag is refused when the enclosing structure is read.
        tag => Err(unreadable(format_args!("{tag} is no text that can be read"))),
    }
}

fn ascii(bytes: &[u8]) -> Result<&str, Unreadable> {
    std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii()).ok_or_else(|| unreadable("a text has other characters than its type"))
}

fn only(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> Result<Cow<'_, str>, Unreadable> {
    if bytes.iter().all(|byte| belongs(*byte)) {
        ascii(bytes).map(Cow::Borrowed)
    } else {
        Err(unreadable("a text has other characters than its type"))
    }
}

fn decode<'a, T: Decode<'a>>(der: &'a [u8]) -> Result<T, Unreadable>
where
    T::Error: fmt::Display,
{
    T::from_der(der).map_err(unreadable)
}

/// Reads DER elements that follow one another, each with its tag.
fn each(value: &[u8]) -> Result<Vec<AnyRef<'_>>, Unreadable> {
    let mut reader = SliceReader::new(value).map_err(unreadable)?;
    let mut found = Vec::new();
    while !reader.is_finished() {
        found.push(AnyRef::decode(&mut reader).map_err(unreadable)?);
    }
    Ok(found)
}

fn members(value: AnyRef<'_>, tag: Tag) -> Result<Vec<AnyRef<'_>>, Unreadable> {
    if value.tag() == tag { each(value.value()) } else { Err(unreadable(format_args!("{} where {tag} belongs", value.tag()))) }
}

fn parts<const N: usize>(value: AnyRef<'_>, tag: Tag) -> Result<[AnyRef<'_>; N], Unreadable> {
    members(value, tag)?.try_into().map_err(|_| unreadable(format_args!("{tag} has not its {N} parts")))
}

fn all<const N: usize>(value: &[u8]) -> Result<[AnyRef<'_>; N], Unreadable> {
    each(value)?.try_into().map_err(|_| unreadable(format_args!("there are not {N} parts")))
}

fn unreadable(why: impl fmt::Display) -> Unreadable {
    Unreadable(why.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use der::Encode as _;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, SanType};

    use super::*;

    /// A DER element made of these parts.
    pub(crate) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let value = parts.concat();
        let length = u16::try_from(value.len()).unwrap();
        let head = match length {
            ..128 => vec![tag, length.to_be_bytes()[1]],
            128..256 => vec![tag, 0x81, length.to_be_bytes()[1]],
            _ => [&[tag, 0x82], &length.to_be_bytes()[..]].concat(),
        };
        [head, value].concat()
    }

    /// A Name with one attribute in each relative name.
    pub(crate) fn subject(attributes: &[(ObjectIdentifier, u8, &[u8])]) -> Vec<u8> {
        let relative =
            |(id, tag, value): &(ObjectIdentifier, u8, &[u8])| tlv(0x31, &[&tlv(0x30, &[&id.to_der().unwrap(), &tlv(*tag, &[value])])]);
        tlv(0x30, &[&attributes.iter().map(relative).collect::<Vec<_>>().concat()])
    }

    /// An unsigned certificate request with this subject and these attributes.
    pub(crate) fn request(subject: &[u8], attributes: &[&[u8]]) -> Vec<u8> {
        let empty = tlv(0x30, &[]);
        tlv(0x30, &[&tlv(0x30, &[&[2, 1, 0], subject, &empty, &tlv(0xa0, attributes)]), &empty, &tlv(0x03, &[&[0]])])
    }

    /// The attribute of a request that asks for extensions, each an id and a value.
    pub(crate) fn extension_request(extensions: &[(ObjectIdentifier, &[u8])]) -> Vec<u8> {
        let each = |(id, value): &(ObjectIdentifier, &[u8])| tlv(0x30, &[&id.to_der().unwrap(), &tlv(0x04, &[value])]);
        let list = tlv(0x30, &[&extensions.iter().map(each).collect::<Vec<_>>().concat()]);
        tlv(0x30, &[&EXTENSION_REQUEST.to_der().unwrap(), &tlv(0x31, &[&list])])
    }

    fn read(tag: u8, value: &[u8]) -> Option<String> {
        let der = tlv(tag, &[value]);
        AnyRef::from_der(&der).ok().and_then(|any| text(any).ok().map(Cow::into_owned))
    }

    #[test]
    fn a11_a_text_is_decoded_by_its_type_or_refused() {
        for (tag, value, expected) in [
            (0x0c, "Zoë".as_bytes(), Some("Zoë")),
            (0x0c, b"\xff", None),
            (0x13, b"C02SERIAL001", Some("C02SERIAL001")),
            (0x13, b"a@b_*", Some("a@b_*")),
            (0x13, "ë".as_bytes(), None),
            (0x16, b"a@b", Some("a@b")),
            (0x16, b"\xe9", None),
            (0x1a, b"visible", Some("visible")),
            (0x1a, b"\xe9", None),
            (0x12, b"123 4", Some("123 4")),
            (0x12, b"12a", None),
            (0x14, b"C02SERIAL001", Some("C02SERIAL001")),
            // A currency sign in T.61, a dollar in ASCII; an e with an accent in Latin-1, a slash in T.61; an escape.
            (0x14, b"$", None),
            (0x14, b"\xe9", None),
            (0x14, b"\x1b", None),
            (0x1e, &[0, b'C', 0, b'0'], Some("C0")),
            (0x1e, &[0x43, 0x30], Some("䌰")),
            (0x1e, &[0, b'C', 0], None),
            (0x1e, &[0xd8, 0, 0xdc, 0], None),
            (0x1e, &[], Some("")),
            // UniversalString, GeneralString, VideotexString, OCTET STRING, INTEGER.
            (0x1c, &[0, 0, 0, b'C'], None),
            (0x1b, b"C02", None),
            (0x15, b"C02", None),
            (0x04, b"C02", None),
            (0x02, &[1], None),
        ] {
            assert_eq!(read(tag, value).as_deref(), expected, "{tag:x} {value:x?}");
        }
    }

    #[test]
    fn c5_an_object_identifier_with_zeros_before_a_part_is_refused_and_not_another_one() {
        let padded = [6, 4, 0x55, 0x80, 4, 3];
        let subject = |id: &[u8]| tlv(0x30, &[&tlv(0x31, &[&tlv(0x30, &[id, &tlv(0x0c, &[b"a"])])])]);
        assert_eq!(attributes(name(&subject(&[6, 3, 0x55, 4, 3])).unwrap(), COMMON_NAME).unwrap(), ["a"]);
        for asked in [COMMON_NAME, SERIAL_NUMBER] {
            assert!(attributes(name(&subject(&padded)).unwrap(), asked).is_err());
        }
        let names = tlv(0x30, &[&tlv(0x82, &[b"a.example.org"])]);
        let asked = |id: &[u8]| {
            let list = tlv(0x30, &[&tlv(0x30, &[id, &tlv(0x04, &[&names])])]);
            request(&tlv(0x30, &[]), &[&tlv(0x30, &[&EXTENSION_REQUEST.to_der().unwrap(), &tlv(0x31, &[&list])])])
        };
        assert!(Request::from_der(&asked(&[6, 3, 0x55, 0x1d, 17])).unwrap().extension(SUBJECT_ALT_NAME).unwrap().is_some());
        let padded = asked(&[6, 4, 0x55, 0x80, 0x1d, 17]);
        assert!(Request::from_der(&padded).and_then(|request| request.extension(SUBJECT_ALT_NAME).map(|_| ())).is_err());
        // An arc of several octets whose first octet is not a leading zero.
        assert!(usages(&tlv(0x30, &[&[6, 3, 0x2b, 0x81, 0x00]])).is_ok());
        assert!(usages(&tlv(0x30, &[&[6, 4, 0x2b, 0x80, 0x81, 0x00]])).is_err());
    }

    #[test]
    fn a11_a_name_in_bmp_is_not_the_bytes_that_it_is_made_of() {
        // Read as ASCII, the bytes of each pair are two characters.
        let der = subject(&[(COMMON_NAME, 0x1e, b"C02SERIAL001")]);
        assert_eq!(attributes(name(&der).unwrap(), COMMON_NAME).unwrap(), ["䌰㉓䕒䥁䰰〱"]);
        let latin: Vec<u8> = "C02SERIAL001".bytes().flat_map(|byte| [0, byte]).collect();
        let der = subject(&[(COMMON_NAME, 0x1e, &latin)]);
        assert_eq!(attributes(name(&der).unwrap(), COMMON_NAME).unwrap(), ["C02SERIAL001"]);
    }

    #[test]
    fn reads_every_value_of_an_attribute_and_no_other() {
        let der = subject(&[(COMMON_NAME, 0x0c, b"a"), (SERIAL_NUMBER, 0x13, b"s"), (COMMON_NAME, 0x13, b"b")]);
        assert_eq!(attributes(name(&der).unwrap(), COMMON_NAME).unwrap(), ["a", "b"]);
        assert_eq!(attributes(name(&der).unwrap(), SERIAL_NUMBER).unwrap(), ["s"]);
        // Two attributes in one relative name.
        let both = [(b"a", 0x0c_u8), (b"b", 0x0c)].map(|(value, tag)| tlv(0x30, &[&COMMON_NAME.to_der().unwrap(), &tlv(tag, &[value])]));
        let der = tlv(0x30, &[&tlv(0x31, &[&both[0], &both[1]])]);
        assert_eq!(attributes(name(&der).unwrap(), COMMON_NAME).unwrap(), ["a", "b"]);
        // An attribute that is asked for must be readable; any other does not matter.
        let der = subject(&[(COMMON_NAME, 0x0c, b"a"), (SERIAL_NUMBER, 0x04, b"s")]);
        assert_eq!(attributes(name(&der).unwrap(), COMMON_NAME).unwrap(), ["a"]);
        assert!(attributes(name(&der).unwrap(), SERIAL_NUMBER).is_err());
        for bad in [tlv(0x31, &[]), tlv(0x30, &[&tlv(0x30, &[])]), tlv(0x30, &[&tlv(0x31, &[&tlv(0x30, &[])])])] {
            assert!(attributes(name(&bad).unwrap(), COMMON_NAME).is_err(), "{bad:x?}");
        }
    }

    #[test]
    fn reads_a_request_in_whatever_order_its_attributes_stand() {
        let names = tlv(0x30, &[&tlv(0x82, &[b"a.example.org"])]);
        let asked = extension_request(&[(EXTENDED_KEY_USAGE, b"0"), (SUBJECT_ALT_NAME, &names)]);
        let challenge = tlv(0x30, &[&[6, 1, 42], &tlv(0x31, &[&tlv(0x13, &[b"c"])])]);
        for attributes in [[&asked[..], &challenge], [&challenge[..], &asked]] {
            let der = request(&subject(&[]), &attributes);
            let found = Request::from_der(&der).unwrap().extension(SUBJECT_ALT_NAME).unwrap().unwrap();
            assert_eq!(sans(found).unwrap(), [San::Dns("a.example.org")]);
        }
        let der = request(&subject(&[]), &[&challenge]);
        assert_eq!(Request::from_der(&der).unwrap().extension(SUBJECT_ALT_NAME), Ok(None));
        // The same extension twice in one attribute, and once in each of two.
        let twice = extension_request(&[(SUBJECT_ALT_NAME, &names), (SUBJECT_ALT_NAME, &names)]);
        for attributes in [vec![&twice[..]], vec![&asked[..], &asked]] {
            let der = request(&subject(&[]), &attributes);
            assert!(Request::from_der(&der).unwrap().extension(SUBJECT_ALT_NAME).is_err());
        }
        let no_set = tlv(0x30, &[&tlv(0x30, &[&[2, 1, 0], &subject(&[]), &tlv(0x30, &[]), &tlv(0x31, &[])]), &tlv(0x30, &[]), &[3, 1, 0]]);
        assert!(Request::from_der(&no_set).is_err());
    }

    #[test]
    fn finds_a_permanent_identifier_among_other_names() {
        let other = |id: ObjectIdentifier, value: &[u8]| tlv(0xa0, &[&id.to_der().unwrap(), &tlv(0xa0, &[value])]);
        let of = |value: &[u8]| {
            let names = tlv(0x30, &[&other(PERMANENT_IDENTIFIER, value)]);
            sans(&names).unwrap()[0].permanent_identifier().map(|found| found.map(Cow::into_owned))
        };
        let assigner = [6, 1, 42];
        assert_eq!(of(&tlv(0x30, &[&tlv(0x0c, &[b"C02"])])), Ok(Some("C02".to_owned())));
        assert_eq!(of(&tlv(0x30, &[&tlv(0x0c, &[b"C02"]), &assigner])), Ok(Some("C02".to_owned())));
        assert_eq!(of(&tlv(0x30, &[&assigner])), Ok(None));
        assert_eq!(of(&tlv(0x30, &[])), Ok(None));
        assert!(of(&tlv(0x30, &[&tlv(0x04, &[b"C02"])])).is_err());
        assert!(of(&tlv(0x0c, &[b"C02"])).is_err());
        let names = tlv(0x30, &[&other(COMMON_NAME, &tlv(0x0c, &[b"C02"])), &tlv(0x82, &[b"a"]), &tlv(0xa4, &[&tlv(0x30, &[])])]);
        assert!(sans(&names).unwrap().iter().all(|san| san.permanent_identifier() == Ok(None)));
    }

    #[test]
    fn reads_what_others_write() {
        let mut params = CertificateParams::new(["host.example.org".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, DnValue::BmpString("Zoë".try_into().unwrap()));
        params.subject_alt_names.push(SanType::IpAddress("192.0.2.1".parse().unwrap()));
        params.serial_number = Some(vec![0x7f, 0x01].into());
        let key = KeyPair::generate().unwrap();
        let expected = [San::Dns("host.example.org"), San::Ip("192.0.2.1".parse().unwrap())];
        let issued = params.self_signed(&key).unwrap();
        let certificate = Certificate::from_der(issued.der()).unwrap();
        assert_eq!(certificate.serial_number(), [0x7f, 0x01]);
        assert_eq!(attributes(certificate.subject(), COMMON_NAME).unwrap(), ["Zoë"]);
        assert_eq!(sans(certificate.extension(SUBJECT_ALT_NAME).unwrap().unwrap()).unwrap(), expected);
        params.serial_number = None;
        let asked = params.serialize_request(&key).unwrap();
        let request = Request::from_der(asked.der()).unwrap();
        assert_eq!(attributes(request.subject(), COMMON_NAME).unwrap(), ["Zoë"]);
        assert_eq!(sans(request.extension(SUBJECT_ALT_NAME).unwrap().unwrap()).unwrap(), expected);
    }

    proptest! {
        #[test]
        fn never_panics(der in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = sans(&der).map(|sans| sans.iter().try_for_each(|san| san.permanent_identifier().map(|_| ())));
            let _ = name(&der).and_then(|name| attributes(name, COMMON_NAME));
            let _ = Request::from_der(&der).and_then(|request| request.extension(SUBJECT_ALT_NAME).map(|_| ()));
        }

        #[test]
        fn what_is_written_in_bmp_reads_back(written in "[\\u{20}-\\u{d7ff}]{0,20}") {
            let bytes: Vec<u8> = written.encode_utf16().flat_map(u16::to_be_bytes).collect();
            prop_assert_eq!(read(0x1e, &bytes), Some(written));
        }
    }
}
