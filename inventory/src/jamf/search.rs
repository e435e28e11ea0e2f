//! The search for one device among records of one kind. The server's filter is never trusted: each row is compared.

use std::borrow::Cow;
use std::collections::BTreeSet;

use posture::identity::{DeviceId, IdentifierKind, same};
use posture::record::Form;
use serde_json::Value;
use tokio::time::Instant;

use super::api::{Api, Filter};
use super::record;
use crate::answer::Unavailable;
use crate::http::LOOKUP;
use crate::shown::{Row, Shown};

/// The identifier that is looked for.
#[derive(Debug)]
pub(super) struct Wanted {
    filter: Filter,
    kind: IdentifierKind,
    /// Normal form of the identifier.
    normal: String,
    stands: fn(Form, &Value) -> Option<Cow<'_, str>>,
}

impl Wanted {
    /// A serial number to look for; `None` where the text can be none.
    pub(super) fn serial(device: &DeviceId) -> Option<Self> {
        Some(Self {
            filter: Filter::Serial(literal(device.stated())?),
            kind: device.kind(),
            normal: device.normal().to_owned(),
            stands: record::serial,
        })
    }

    /// A unique device identifier to look for; `None` where the text can be none.
    pub(super) fn udid(device: &DeviceId) -> Option<Self> {
        Some(Self {
            filter: Filter::Udid(literal(device.stated())?),
            kind: device.kind(),
            normal: device.normal().to_owned(),
            stands: record::udid,
        })
    }
}

/// A literal of RSQL in quotes. `None` for a text that no device has: `*` stands for anything in RSQL and cannot be escaped, and
/// a database may take a letter outside ASCII for another one.
fn literal(stated: &str) -> Option<String> {
    let stated = stated.trim_ascii();
    let fits = stated.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'*');
    fits.then(|| format!("\"{}\"", stated.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// The result of a search among records of one kind.
#[derive(Debug)]
pub(super) enum Hit {
    /// The only record that fits.
    One(Value),
    /// The answer was complete, and no record fits.
    None,
    /// Several records fit.
    Many,
    /// The answer held all its rows, but only other devices. They are no doubles of a device of the other kind, and do not prove
    /// that the device is missing.
    Others,
}

/// Looks for a device.
///
/// # Errors
/// [`Unavailable::FilterIgnored`] where other devices came and not all of them could be looked through: the device, or a double
/// of it, may be among the rest.
pub(super) async fn find(api: &Api, form: Form, wanted: &Wanted, deadline: Instant) -> Result<Hit, Unavailable> {
    let mut fitting: Vec<Value> = Vec::new();
    let mut shown = Shown::default();
    let (mut seen, mut total, mut ignored, mut unreadable) = (0_u64, 0, false, false);
    for number in 0..PAGES {
        let page = api.page(form, &wanted.filter, (number, PAGE_SIZE), deadline, LOOKUP).await?;
        if page.contradicts_itself() {
            return Err(Unavailable::Protocol);
        }
        let empty = page.rows.is_empty();
        let mut here = BTreeSet::new();
        for row in page.rows {
            // Devices that enrol meanwhile push others onto the next page, where they come again; a record that comes twice on
            // one page contradicts itself.
            if let Some(id) = record::id(form, &row) {
                if !here.insert(id.clone()) {
                    return Err(Unavailable::Protocol);
                }
                match shown.take(id, &row) {
                    Row::New => {}
                    Row::Slipped => continue,
                    Row::Contradiction => return Err(Unavailable::Protocol),
                }
            }
            seen += 1;
            match (wanted.stands)(form, &row) {
                Some(stands) if same(wanted.kind, &stands, &wanted.normal) => fitting.push(row),
                Some(_) => ignored = true,
                None => unreadable = true,
            }
        }
        if fitting.len() > 1 {
            return Ok(Hit::Many);
        }
        total = total.max(page.total.ok_or(Unavailable::Protocol)?);
        if empty || seen >= total {
            return match fitting.pop() {
                // A row that cannot be read may have the same identifier.
                Some(row) if seen >= total && !unreadable => Ok(Hit::One(row)),
                None if seen >= total && !unreadable => Ok(if ignored { Hit::Others } else { Hit::None }),
                _ => Err(if ignored { Unavailable::FilterIgnored } else { Unavailable::Protocol }),
            };
        }
    }
    Err(Unavailable::FilterIgnored)
}

const PAGE_SIZE: usize = 100;

/// Most pages that are read for one device when the filter seems ignored.
const PAGES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_is_one_literal_whatever_stands_in_it() {
        assert_eq!(literal(" C02X "), Some("\"C02X\"".to_owned()));
        assert_eq!(literal(r#"a\"b"#), Some(r#""a\\\"b""#.to_owned()));
        for never in ["C02*", "*", "С02X", "a\u{e9}"] {
            assert_eq!(literal(never), None, "{never}");
        }
    }
}
