//! `[provider.<name>]` with `type = "file"`: the file, and the way to read it.

use std::path::{Path, PathBuf};

use posture::identity::IdentifierKind;
use settings::Section;
use settings::words::word;

use crate::placeholders::Placeholders;

/// `[provider.<name>]` with `type = "file"`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Path of the file.
    pub path: PathBuf,
    /// Format of the file; where the configuration does not give it, the name of the file does.
    pub format: Format,
    /// Kind of the file's identifiers; default serial numbers. A question for another kind finds nothing in the file.
    pub identifier: IdentifierKind,
    /// Header of the CSV column with the identifiers, without white space at its ends, case ignored; default `Identifier`, or a
    /// header that is known from the exports of managements.
    pub identifier_column: Option<String>,
    /// Texts that identify nobody.
    pub placeholders: Placeholders,
    /// Share of the rows that a reload may lose, 0 to 1; default 0.1.
    pub max_shrink: f64,
}

/// Format of a device file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An object of devices: `{"devices":[{"identifier":"…","data":{…}}]}`.
    Json,
    /// A header and rows: one column has the identifiers, the others are data.
    Csv,
}

impl Settings {
    /// The settings of a file for which the configuration gives nothing but path and format.
    pub fn new(path: PathBuf, format: Format) -> Self {
        Self {
            path,
            format,
            identifier: IdentifierKind::Serial,
            identifier_column: None,
            placeholders: Placeholders::default(),
            max_shrink: MAX_SHRINK,
        }
    }

    /// Reads the keys of the table; a relative path is relative to `base`. Returns `None` where path or format is not known,
    /// after reporting it.
    pub fn of(mut section: Section<'_>, placeholders: &Placeholders, base: &Path) -> Option<Self> {
        let described = section.has("path");
        let place = section.place().clone();
        if !described {
            section.missing("path", "path = \"devices.json\"");
        }
        let path = section.path("path", base);
        let has_format = section.has("format");
        let format = section.text("format", |text| {
            [("json", Format::Json), ("csv", Format::Csv)]
                .into_iter()
                .find_map(|(name, format)| (name == text).then_some(format))
                .ok_or_else(|| format!("`{text}` is no format; there are json, csv"))
        });
        let format = format.or_else(|| {
            let path = path.as_deref()?;
            let named = match path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
                Some("json") => Some(Format::Json),
                Some("csv") => Some(Format::Csv),
                _ => None,
            };
            if named.is_none() && !has_format {
                let shown = path.display();
                section
                    .report()
                    .mistake(&place, format!("the name {shown} does not tell the format: write format = \"json\" or format = \"csv\""));
            }
            named
        });
        let identifier = section
            .text("identifier", |text| word(text, IdentifierKind::ALL.iter().map(|kind| (kind.as_str(), *kind))))
            .unwrap_or(IdentifierKind::Serial);
        let place = section.place_of("identifier_column");
        let identifier_column = section.text("identifier_column", |text| match text.trim() {
            "" => Err("is empty: write the header of the column".to_owned()),
            name => Ok(name.to_owned()),
        });
        if let Some(place) = place.filter(|_| format == Some(Format::Json)) {
            section.report().mistake(&place, "`identifier_column` belongs to csv: in json a device has the member `identifier`");
        }
        let max_shrink = section.share("max_shrink");
        section.finish();
        let default = Self::new(path?, format?);
        let max_shrink = max_shrink.unwrap_or(default.max_shrink);
        Some(Self { identifier, identifier_column, placeholders: placeholders.clone(), max_shrink, ..default })
    }
}

/// Share of the rows that a reload may lose where the configuration says nothing.
const MAX_SHRINK: f64 = 0.1;
