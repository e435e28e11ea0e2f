//! Devices of a JSON file: `{"devices":[{"identifier":"…","data":{…}}]}`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::iter;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::devices::{Builder, Parsed};
use super::mistake::{Mistake, Mistakes, Warning, shown};
use super::settings::Settings;

/// Reads a JSON file. Names of members ignore case, as they do where the connector reads them (Go, `encoding/json`).
///
/// # Errors
/// All that is wrong with the file; after the first place where it is no JSON, nothing more is found.
pub(super) fn read(settings: &Settings, text: &str) -> Result<Parsed, Mistakes> {
    let mut builder = Builder::new(settings, text);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let document = Document { text, builder: &mut builder, passed: Passed::default() };
    let read = document.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    if let Err(error) = read {
        builder.findings.add(offset_of_error(text, &error), Mistake::Json(message(&error)));
    }
    builder.finish(None)
}

/// Names of members that are not read, each once however many devices have it.
#[derive(Default)]
struct Passed<'t>(BTreeSet<Cow<'t, str>>);

impl<'t> Passed<'t> {
    /// Warns of a member that is passed over, at the place where its name stands first.
    fn over(&mut self, at: usize, name: Cow<'t, str>, known: &'static str, builder: &mut Builder<'_>) {
        // A file of ever different names gives no more warnings than this bound.
        if self.0.len() < MOST_PASSED && !self.0.contains(&name) {
            builder.findings.warn(at, || Warning::UnknownMember { name: shown(&name), known });
            self.0.insert(name);
        }
    }
}

/// Number of names that are remembered, and warned of.
const MOST_PASSED: usize = 1_000;

/// Reads the whole file.
struct Document<'b, 't> {
    text: &'t str,
    builder: &'b mut Builder<'t>,
    passed: Passed<'t>,
}

impl<'t> DeserializeSeed<'t> for Document<'_, 't> {
    type Value = ();

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'t> Visitor<'t> for Document<'_, 't> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the member `devices`")
    }

    fn visit_map<M: MapAccess<'t>>(self, mut map: M) -> Result<(), M::Error> {
        let Self { text, builder, mut passed } = self;
        let mut found = false;
        while let Some(key) = map.next_key::<&RawValue>()? {
            let name = string(key).ok_or_else(|| M::Error::custom("a member's name is no text"))?;
            if !name.eq_ignore_ascii_case("devices") {
                passed.over(offset(text, key), name, "of the file `devices` alone is read", builder);
            } else if found {
                builder.findings.add(offset(text, key), Mistake::DuplicateMember(shown(&name)));
            } else {
                found = true;
                map.next_value_seed(List { text, builder: &mut *builder, passed: &mut passed })?;
                continue;
            }
            map.next_value::<IgnoredAny>()?;
        }
        if !found {
            builder.findings.add(text.find('{').unwrap_or(0), Mistake::DevicesMissing);
        }
        Ok(())
    }
}

/// Reads the list of devices.
struct List<'b, 't> {
    text: &'t str,
    builder: &'b mut Builder<'t>,
    passed: &'b mut Passed<'t>,
}

impl<'t> DeserializeSeed<'t> for List<'_, 't> {
    type Value = ();

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'t> Visitor<'t> for List<'_, 't> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of devices")
    }

    fn visit_seq<S: SeqAccess<'t>>(self, mut list: S) -> Result<(), S::Error> {
        while let Some(raw) = list.next_element::<&RawValue>()? {
            device(self.text, raw, self.builder, self.passed);
        }
        Ok(())
    }
}

/// Adds a device, or the mistakes in it.
fn device<'t>(text: &'t str, raw: &'t RawValue, builder: &mut Builder<'t>, passed: &mut Passed<'t>) {
    let at = offset(text, raw);
    if !raw.get().starts_with('{') {
        return builder.findings.add(at, Mistake::DeviceNotObject);
    }
    let members = match serde_json::Deserializer::from_str(raw.get()).deserialize_map(Members { text, builder, passed }) {
        Ok(members) => members,
        Err(error) => return builder.findings.add(at + offset_of_error(raw.get(), &error), Mistake::Json(message(&error))),
    };
    let data = members.data.filter(|data| data.get() != "null").map_or(Some(""), |data| {
        let at = offset(text, data);
        if !data.get().starts_with('{') {
            builder.findings.add(at, Mistake::DataNotObject);
            return None;
        }
        let read = Checked { levels: DEEPEST }.deserialize(&mut serde_json::Deserializer::from_str(data.get()));
        if let Err(error) = read {
            builder.findings.add(at + offset_of_error(data.get(), &error), Mistake::Json(message(&error)));
            return None;
        }
        Some(data.get())
    });
    let Some(identifier) = members.identifier else {
        return builder.findings.add(at, Mistake::IdentifierMissing);
    };
    let at = offset(text, identifier);
    match (string(identifier), data) {
        (None, _) => builder.findings.add(at, Mistake::IdentifierNotString),
        (Some(_), None) => {}
        (Some(identifier), Some(data)) => builder.add(at, &identifier, iter::once(data)),
    }
}

/// Visits the members of a device.
struct Members<'b, 't> {
    text: &'t str,
    builder: &'b mut Builder<'t>,
    passed: &'b mut Passed<'t>,
}

/// The members of a device that are read.
#[derive(Default)]
struct Found<'t> {
    identifier: Option<&'t RawValue>,
    data: Option<&'t RawValue>,
}

impl<'t> Visitor<'t> for Members<'_, 't> {
    type Value = Found<'t>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a device")
    }

    fn visit_map<M: MapAccess<'t>>(self, mut map: M) -> Result<Found<'t>, M::Error> {
        let mut found = Found::default();
        while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            let name = string(key).ok_or_else(|| M::Error::custom("a member's name is no text"))?;
            let member = if name.eq_ignore_ascii_case("identifier") {
                &mut found.identifier
            } else if name.eq_ignore_ascii_case("data") {
                &mut found.data
            } else {
                let known = "of a device `identifier` and `data` are read";
                self.passed.over(offset(self.text, key), name, known, self.builder);
                continue;
            };
            if member.is_some() {
                self.builder.findings.add(offset(self.text, key), Mistake::DuplicateMember(shown(&name)));
            }
            *member = Some(value);
        }
        Ok(found)
    }
}

/// Checks a value to the last digit: step-ca must be able to read what Stepward passes on.
struct Checked {
    /// Levels of lists and objects that the value may still nest.
    levels: u32,
}

/// Levels of lists and objects in `data`. Readers of the reply stop somewhere, serde_json at 128.
const DEEPEST: u32 = 64;

impl Checked {
    fn inside<E: serde::de::Error>(&self) -> Result<impl Fn() -> Self + use<E>, E> {
        let levels = self.levels.checked_sub(1).ok_or_else(|| E::custom(format_args!("`data` nests deeper than {DEEPEST} levels")))?;
        Ok(move || Self { levels })
    }
}

impl<'t> DeserializeSeed<'t> for Checked {
    type Value = ();

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'t> Visitor<'t> for Checked {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'t>>(self, mut list: S) -> Result<(), S::Error> {
        let inside = self.inside()?;
        while list.next_element_seed(inside())?.is_some() {}
        Ok(())
    }

    fn visit_map<M: MapAccess<'t>>(self, mut map: M) -> Result<(), M::Error> {
        let inside = self.inside()?;
        let mut names = Names::default();
        while let Some(name) = map.next_key_seed(Text)? {
            if let Some(twice) = names.add(name) {
                return Err(M::Error::custom(Mistake::DuplicateMember(shown(&twice))));
            }
            map.next_value_seed(inside())?;
        }
        Ok(())
    }
}

/// The names of an object's members: a list while they are few, since most objects are small.
#[derive(Default)]
struct Names<'t> {
    few: Vec<Cow<'t, str>>,
    many: BTreeSet<Cow<'t, str>>,
}

impl<'t> Names<'t> {
    /// Adds a name; returns it if it is there already.
    fn add(&mut self, name: Cow<'t, str>) -> Option<Cow<'t, str>> {
        const FEW: usize = 16;
        if self.few.contains(&name) || self.many.contains(&name) {
            return Some(name);
        }
        if self.few.len() < FEW {
            self.few.push(name);
        } else {
            self.many.insert(name);
        }
        None
    }
}

/// Reads a string, borrowed unless it has escapes.
struct Text;

impl<'t> DeserializeSeed<'t> for Text {
    type Value = Cow<'t, str>;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<Cow<'t, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'t> Visitor<'t> for Text {
    type Value = Cow<'t, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'t str) -> Result<Cow<'t, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cow<'t, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// Reads a raw value as a string; `None` if it is no string, or has half a surrogate pair.
fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    Text.deserialize(&mut serde_json::Deserializer::from_str(raw.get())).ok()
}

/// Offset of a raw value in the text that it was borrowed from.
fn offset(text: &str, raw: &RawValue) -> usize {
    raw.get().as_ptr().addr().saturating_sub(text.as_ptr().addr())
}

/// Offset of an error in the text that was read.
fn offset_of_error(text: &str, error: &serde_json::Error) -> usize {
    let line_start = text.match_indices('\n').nth(error.line().wrapping_sub(2)).map_or(0, |(at, _)| at + 1);
    (line_start + error.column().saturating_sub(1)).min(text.len())
}

/// The message of an error, without its place, and without the value that it is about: the value may be somebody's address.
fn message(error: &serde_json::Error) -> String {
    let whole = error.to_string();
    let text = whole.strip_suffix(&format!(" at line {} column {}", error.line(), error.column())).unwrap_or(&whole);
    let parts = text.split_once(": ").zip(text.rsplit_once(", expected "));
    match parts {
        Some(((what @ ("invalid type" | "invalid value"), found), (_, expected))) => {
            let found = found.split(['"', '`', ',']).next().unwrap_or_default().trim_end();
            format!("{what}: {found}, expected {expected}")
        }
        _ => text.to_owned(),
    }
}
