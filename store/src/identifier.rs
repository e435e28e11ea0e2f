//! The forms in which identifiers from operators are compared; the kind of some is not known.

use std::borrow::Cow;

use posture::identity::{IdentifierKind, normal};
use posture::shown::clean;

/// The text that finds the rulings on an identifier. Whether a ruling is really about it, [`same`] decides.
pub fn key(identifier: &str) -> Cow<'_, str> {
    IdentifierKind::Udid.without_any_dashes(clean(identifier))
}

/// Returns whether two texts are one identifier of this kind. An identifier of no known kind may be a UDID, where it looks like
/// one.
pub fn same(kind: Option<IdentifierKind>, one: &str, other: &str) -> bool {
    match kind {
        Some(IdentifierKind::Udid) => key(one) == key(other),
        _ => plain(one) == plain(other),
    }
}

/// The form of an identifier whose kind is not known to be UDID: a text with the shape of a UDID loses its dashes.
pub fn plain(identifier: &str) -> Cow<'_, str> {
    let normal = normal(identifier);
    let hexadecimal = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<&str> = if normal.len() <= LONGEST_UDID { normal.split('-').collect() } else { Vec::new() };
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    if UDID_SHAPES.contains(&lengths.as_slice()) && parts.iter().all(|part| hexadecimal(part)) {
        Cow::Owned(parts.concat())
    } else {
        normal
    }
}

/// Lengths of the parts of an identifier whose dashes do not count: a UDID of Apple's newer devices, and a UUID.
const UDID_SHAPES: &[&[usize]] = &[&[8, 16], &[8, 4, 4, 4, 12]];
const LONGEST_UDID: usize = 36;
