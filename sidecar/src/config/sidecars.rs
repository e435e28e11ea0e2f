//! `sidecars` in `[envoy]`: the sidecars that Envoy's filters attach to over TCP.

use std::path::{Path, PathBuf};

use rustls::pki_types::ServerName;
use settings::Section;
use settings::document::Data;

/// Sidecars over TCP, and what Envoy proves itself to them with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecars {
    /// The sidecars, at least one, each once.
    pub all: Vec<Sidecar>,
    /// PEM authorities that the sidecars' certificates must come from.
    pub ca: PathBuf,
    /// PEM chain that Envoy shows to the sidecars.
    pub certificate: PathBuf,
    /// PEM key of the chain.
    pub private_key: PathBuf,
}

/// Name and port of a sidecar. Its certificate has to have the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// DNS name.
    pub name: String,
    /// Port of its `[filter]`.
    pub port: u16,
}

impl Sidecars {
    /// Returns the files of authorities, certificate and key.
    pub fn files(&self) -> [PathBuf; 3] {
        [self.ca.clone(), self.certificate.clone(), self.private_key.clone()]
    }
}

/// Takes the sidecars of `[envoy]`; `None`: filters attach to `filter.sock` of their machine.
pub(super) fn read(section: &mut Section<'_>, base: &Path) -> Option<Sidecars> {
    let named = section.has("sidecars");
    let idle: Vec<_> = FILES.iter().map(|(key, _)| *key).filter(|key| !named && section.has(key)).collect();
    if !idle.is_empty() {
        let keys = idle.join("`, `");
        section.missing("sidecars", &format!("sidecars = [\"{EXAMPLE}\"] to attach to them over TCP, or remove `{keys}`"));
    }
    let report = section.report();
    let mut seen: Vec<Sidecar> = Vec::new();
    let mut count = 0;
    let given = section.list("sidecars", |item| {
        count += 1;
        let read = match &item.data {
            Data::Text(text) => sidecar(text),
            other => Err(format!("`sidecars` lists strings such as \"{EXAMPLE}\", not {}", other.name())),
        };
        let read = read.and_then(|one| {
            if seen.contains(&one) {
                return Err(format!("`{}:{}` stands twice: remove one", one.name, one.port));
            }
            seen.push(one.clone());
            Ok(one)
        });
        read.map_err(|message| report.mistake(&item.place, message)).ok()
    });
    if let Some((place, _)) = given.as_ref().filter(|_| count == 0) {
        report.mistake(
            place,
            format!("`sidecars` is empty: name one, as in sidecars = [\"{EXAMPLE}\"], or remove the line for filter.sock of this machine"),
        );
    }
    let [ca, certificate, private_key] = FILES.map(|(key, example)| {
        if named && !section.has(key) {
            section.missing(key, example);
        }
        section.path(key, base)
    });
    Some(Sidecars { all: given?.1, ca: ca?, certificate: certificate?, private_key: private_key? })
}

/// Reads a name and port. An address is refused: Envoy compares the name with that of the sidecar's certificate.
fn sidecar(text: &str) -> Result<Sidecar, String> {
    let wrong = || format!("`{text}` is not a name and port; write {EXAMPLE}");
    let (name, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    match ServerName::try_from(name.trim_start_matches('[').trim_end_matches(']')) {
        Ok(ServerName::DnsName(_)) if !name.starts_with('[') && !name.ends_with(['.', ']']) => {
            Ok(Sidecar { name: name.to_ascii_lowercase(), port })
        }
        Ok(ServerName::IpAddress(_)) => {
            Err(format!("`{text}` is an address, and a sidecar proves a name: write the DNS name of its certificate, as in {EXAMPLE}"))
        }
        _ => Err(wrong()),
    }
}

const EXAMPLE: &str = "a.example.org:9446";

/// Files that Envoy needs for sidecars, and what to write where one is missing.
const FILES: [(&str, &str); 3] = [
    ("sidecar_ca", "the PEM file of the authorities that the sidecars' certificates come from, as in sidecar_ca = \"tls/ca.crt\""),
    (
        "client_certificate",
        "the PEM file of the chain that Envoy shows to the sidecars, with a name of `names` in their [filter], as in client_certificate = \"tls/envoy.crt\"",
    ),
    ("client_private_key", "the PEM file of its key, as in client_private_key = \"tls/envoy.key\""),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_ports_and_nothing_that_a_certificate_could_not_prove() {
        let good = |text: &str| sidecar(text).map(|one| (one.name, one.port));
        assert_eq!(good("a.example.org:9446"), Ok(("a.example.org".to_owned(), 9446)));
        assert_eq!(good("Stepward-A:1"), Ok(("stepward-a".to_owned(), 1)));
        for (text, words) in [
            ("", "is not a name and port"),
            ("a.example.org", "is not a name and port"),
            (":9446", "is not a name and port"),
            ("a.example.org:0", "is not a name and port"),
            ("a.example.org:65536", "is not a name and port"),
            ("a.example.org.:9446", "is not a name and port"),
            ("*.example.org:9446", "is not a name and port"),
            ("a b:9446", "is not a name and port"),
            ("https://a.example.org:9446", "is not a name and port"),
            ("/run/filter.sock", "is not a name and port"),
            ("10.0.0.1:9446", "is an address"),
            ("[::1]:9446", "is an address"),
            ("::1:9446", "is an address"),
        ] {
            let error = sidecar(text).unwrap_err();
            assert!(error.contains(words) && error.ends_with("a.example.org:9446"), "{text}: {error}");
        }
    }
}
