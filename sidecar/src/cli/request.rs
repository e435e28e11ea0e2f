//! A captured request, as files and arguments have it: its headers, and its caller's certificate.

use std::path::Path;

use anyhow::{Context as _, bail};
use posture::caller::Peer;
use settings::files;

/// Reads the caller's certificate from a PEM file: the peer, and the file's bytes.
///
/// # Errors
/// Where the file cannot be read, or holds no certificate.
pub(super) fn peer(file: &Path) -> anyhow::Result<(Peer, Vec<u8>)> {
    let pem = files::read(file, files::CONFIGURATION).with_context(|| format!("read {}", file.display()))?;
    Ok(Peer::from_pem(&pem)?)
}

/// Reads headers from a file with one a line, and from arguments.
///
/// # Errors
/// Where the file cannot be read, or a line is no header.
pub(super) fn headers(file: Option<&Path>, given: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let text = match file {
        Some(file) => files::text(file, files::CONFIGURATION).with_context(|| format!("read {}", file.display()))?,
        None => String::new(),
    };
    text.lines().chain(given.iter().map(String::as_str)).filter_map(|line| header(line).transpose()).collect()
}

/// Parses a header line: the name in lower case, and the value without the blanks and tabs around it, as Envoy hands it to the
/// filter (RFC 9110, 5.5); `None` for a blank line and a request line.
///
/// # Errors
/// Where the line is no header.
pub(super) fn header(line: &str) -> anyhow::Result<Option<(String, String)>> {
    if line.trim().is_empty() || line.starts_with("POST ") {
        return Ok(None);
    }
    match line.split_once(':') {
        Some((name, value)) if !name.is_empty() => Ok(Some((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))),
        _ => bail!("`{line}` is no header"),
    }
}
