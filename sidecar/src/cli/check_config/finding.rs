//! Findings of opening what a configuration names, as the start of the service does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use posture::secret::Secret;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use settings::{Mistake, Place, files};

use crate::cli::keys::fits;
use crate::cli::validity::{Stage, Used, Validity};
use crate::config::{Config, Entrance, Envoy, Loaded, Secrets, Sidecars};
use crate::server::certificates::Certificates;
use crate::{server, users};
use engine::plan::Own;
use engine::provider::{self, ProviderSettings};
use inventory::file::FileError;
use inventory::http::Client;

/// Findings of a check.
#[derive(Clone, Debug, Default)]
pub struct Finding {
    /// Configuration, where it could be read.
    pub config: Option<Config>,
    /// Mistakes, which have to be changed.
    pub mistakes: Vec<Mistake>,
    /// Warnings, which should be looked at.
    pub warnings: Vec<Mistake>,
    /// Notes on what could not be looked at from here, and need not be.
    pub notes: Vec<Mistake>,
    /// Every certificate that was read, each once, with the mistake or the warning about its dates.
    pub(crate) dated: Vec<(Validity, Option<Mistake>)>,
}

impl Finding {
    /// Looks at the files that a configuration names, secrets aside.
    pub(crate) fn files(&mut self, config: &Config, now: SystemTime) {
        self.tls(config, now);
        for provider in config.providers.values() {
            let file = match provider {
                ProviderSettings::File(settings) => Some(&settings.path),
                ProviderSettings::Remote(remote) => remote.endpoint.ca_file.as_ref(),
            };
            if let Some(path) = file
                && let Err(error) = files::open(path)
            {
                self.wrong(path, format!("cannot be read: {error}"));
            }
        }
        if let Some(store) = &config.store.path {
            match store::examine(store) {
                Ok(()) => {}
                Err(_) if store.exists() && !store.is_file() => self.wrong(store, "is not a regular file, and the store is one"),
                Err(error) => self.mistakes.push(Mistake::of_whole(provider::chain(&error))),
            }
        }
        let wasm = &config.envoy.wasm;
        match std::fs::metadata(wasm) {
            Ok(found) if found.is_file() => {}
            Ok(_) => self.wrong(wasm, "is not a regular file, and the filter is one"),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => self.note(wasm, ENVOYS),
            Err(_) => self.warnings.push(Mistake::of_file(wasm, "the filter is not there; Envoy needs it, the service does not")),
        }
    }

    /// Looks, for root, whether the users of the service and of Envoy may read their files: root may read everything, so nothing
    /// else would show it.
    pub(crate) fn as_service(&mut self, loaded: &Loaded) {
        if nix::unistd::Uid::effective().is_root()
            && let Some(service) = users::of_service(&loaded.config).filter(|service| service.account.uid != 0)
        {
            let envoy = users::of_envoy(&loaded.config, &service.account);
            self.as_users(loaded, &service, envoy.as_ref());
        }
    }

    pub(super) fn as_users(&mut self, loaded: &Loaded, service: &users::Found, envoy: Option<&users::Found>) {
        let config = &loaded.config;
        let (user, by) = (users::user(service.account.uid), service.by.display());
        let envoys = envoy.map(|envoy| {
            let (user, by) = (users::user(envoy.account.uid), envoy.by.display());
            format!("; and of Envoy, {user}, who is in the group of {by}")
        });
        self.notes.push(Mistake::of_whole(format!(
            "root may read everything, so it was looked at what others may read: the user of the service, {user}, who owns {by}{}",
            envoys.unwrap_or_default()
        )));
        let authorities = config.providers.values().filter_map(|provider| match provider {
            ProviderSettings::File(_) => None,
            ProviderSettings::Remote(remote) => remote.endpoint.ca_file.clone(),
        });
        let services: BTreeSet<PathBuf> = loaded.files.iter().cloned().chain(config.watched_files()).chain(authorities).collect();
        let Envoy { certificate, private_key, client_ca, wasm, sidecars, .. } = &config.envoy;
        let of_sidecars: Vec<_> = sidecars.iter().flat_map(Sidecars::files).collect();
        let envoys = [certificate, private_key, wasm].into_iter().chain(client_ca).chain(&of_sidecars);
        let of_service = services.iter().map(|path| (path, service, "the service"));
        let of_envoy = envoy.into_iter().flat_map(|envoy| envoys.clone().map(move |path| (path, envoy, "Envoy")));
        for (path, found, who) in of_service.chain(of_envoy) {
            if let Some(why) = found.account.kept_from(path) {
                self.wrong(path, format!("{}, the user of {who}, may not read it: {why}", users::user(found.account.uid)));
            }
        }
    }

    /// Reads the device files by the code that the service reads them by. Missing ones are reported already.
    pub(super) fn devices(&mut self, config: &Config) {
        for provider in config.providers.values() {
            let ProviderSettings::File(settings) = provider else { continue };
            if files::open(&settings.path).is_err() {
                continue;
            }
            match settings.read() {
                Ok(parsed) => self.warnings.extend(of_devices(&settings.path, &parsed.warnings)),
                Err(FileError::Invalid { path, mistakes }) => self.mistakes.extend(of_devices(&path, &mistakes)),
                Err(error) => self.mistakes.push(Mistake::of_whole(provider::chain(&error))),
            }
        }
    }

    /// Opens what the service opens at its start, by the same code, and leaves nothing behind: clients, certificates, groups,
    /// folders, sockets and addresses.
    pub(super) fn opened(&mut self, config: &Config, secrets: Option<&Secrets>) {
        for (name, settings) in &config.providers {
            let ProviderSettings::Remote(remote) = settings else { continue };
            let wrong = |error: String| Mistake::of_whole(format!("provider `{name}`: {error}"));
            let own = Own::of_service(&remote.service, remote.cache.negative);
            self.mistakes.extend(own.err().map(|error| wrong(error.to_string())));
            // A missing file is reported already.
            if remote.endpoint.ca_file.as_ref().is_some_and(|path| files::open(path).is_err()) {
                continue;
            }
            match (Client::new(&remote.endpoint), secrets.and_then(|secrets| secrets.providers.get(name))) {
                (Err(error), _) => self.mistakes.push(wrong(error)),
                (Ok(_), Some(secrets)) => self.mistakes.extend(remote.service.open(&remote.endpoint, secrets).err().map(wrong)),
                (Ok(_), None) => {}
            }
        }
        for (entrance, tcp) in Entrance::all_of(config) {
            let files = tcp.files().map(|path| path.display().to_string());
            let is_named = self.mistakes.iter().any(|mistake| mistake.file.as_ref().is_some_and(|file| files.contains(file)));
            if let Some(error) = Certificates::open(tcp).err().filter(|_| !is_named) {
                self.mistakes.push(Mistake::of_whole(format!("{}: {error}", entrance.section())));
            }
        }
        let found = server::examine(&config.listen, &Entrance::addresses(config));
        self.mistakes.extend(found.mistakes.into_iter().map(Mistake::of_whole));
        self.notes.extend(found.notes.into_iter().map(Mistake::of_whole));
    }

    /// Adds to mistakes about files that may not be read here who may.
    pub(super) fn says_as_whom(&mut self) {
        let denied = std::io::Error::from_raw_os_error(nix::libc::EACCES).to_string();
        for mistake in self.mistakes.iter_mut().filter(|mistake| mistake.message.contains(&denied)) {
            let uid = nix::unistd::Uid::effective();
            mistake.message.push_str(&format!("; this is uid {uid}: run it as the service's user, or let that user read it"));
        }
    }

    fn wrong(&mut self, path: &Path, message: impl Into<String>) {
        self.mistakes.push(Mistake::of_file(path, message));
    }

    fn note(&mut self, path: &Path, message: impl Into<String>) {
        self.notes.push(Mistake::of_file(path, message));
    }

    fn tls(&mut self, config: &Config, now: SystemTime) {
        let envoy = &config.envoy;
        self.identity(&envoy.certificate, &envoy.private_key, Reader::Envoy, now);
        if let Some(ca) = &envoy.client_ca {
            self.certificates(ca, Reader::Envoy, Used::Authority, now);
        }
        if let Some(Sidecars { ca, certificate, private_key, .. }) = &envoy.sidecars {
            self.identity(certificate, private_key, Reader::Envoy, now);
            self.certificates(ca, Reader::Envoy, Used::Authority, now);
        }
        for (_, tcp) in Entrance::all_of(config) {
            self.identity(&tcp.certificate, &tcp.private_key, Reader::Service, now);
            self.certificates(&tcp.client_ca, Reader::Service, Used::Authority, now);
        }
    }

    /// Checks a chain and its key.
    fn identity(&mut self, certificate: &Path, private_key: &Path, reader: Reader, now: SystemTime) {
        let used = if reader == Reader::Envoy { Used::Envoy } else { Used::Service };
        let chain = self.certificates(certificate, reader, used, now);
        let Some(pem) = self.read(private_key, reader).map(Secret::new) else { return };
        if let Err(unfit) = fits(&chain, &pem, certificate) {
            self.wrong(private_key, unfit.to_string());
        }
    }

    /// Reads a PEM file. What Envoy alone has to read may well be closed to whoever runs this.
    fn read(&mut self, path: &Path, reader: Reader) -> Option<Vec<u8>> {
        match files::read(path, files::CERTIFICATES) {
            Ok(pem) => Some(pem),
            Err(error) if reader == Reader::Envoy && error.kind() == std::io::ErrorKind::PermissionDenied => {
                self.note(path, ENVOYS);
                None
            }
            Err(error) => {
                self.wrong(path, format!("cannot be read: {error}"));
                None
            }
        }
    }

    /// Reads all certificates of a PEM file and looks at their dates; `used` says what they are for.
    fn certificates(&mut self, path: &Path, reader: Reader, used: Used, now: SystemTime) -> Vec<CertificateDer<'static>> {
        let Some(pem) = self.read(path, reader) else { return Vec::new() };
        let read = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let chain: Vec<CertificateDer<'static>> = match read {
            Ok(chain) => chain,
            Err(error) => {
                self.wrong(path, format!("no certificate can be read: {error}"));
                return Vec::new();
            }
        };
        if chain.is_empty() {
            self.wrong(path, "there is no certificate in it");
        }
        for der in &chain {
            match Validity::of(der, Some(path.to_owned()), used) {
                Ok(validity) => self.dates(path, validity, now),
                Err(error) => self.wrong(path, format!("a certificate in it cannot be read: {error}")),
            }
        }
        chain
    }

    fn dates(&mut self, path: &Path, validity: Validity, now: SystemTime) {
        if self.dated.iter().any(|(known, _)| *known == validity) {
            return;
        }
        let said = Mistake::of_file(path, validity.said(now));
        let told = match validity.stage(now) {
            Stage::Good => None,
            Stage::Soon => Some(&mut self.warnings),
            Stage::Ended | Stage::NotYet => Some(&mut self.mistakes),
        };
        let told = told.map(|told| {
            told.push(said.clone());
            said
        });
        self.dated.push((validity, told));
    }
}

/// Process that has to read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Service,
    Envoy,
}

/// Note on a file that Envoy alone reads, and this user cannot.
const ENVOYS: &str = "not looked at, since this user may not read it: the service does not either, Envoy alone does";

/// Returns what was found in a device file, each with its place.
fn of_devices<T: std::fmt::Display>(path: &Path, found: &inventory::file::Findings<T>) -> Vec<Mistake> {
    let at = |place: &inventory::file::Place<T>| Mistake {
        place: Place::Line(place.line, place.column),
        ..Mistake::of_file(path, place.what.to_string())
    };
    let more = (found.more() > 0).then(|| Mistake::of_file(path, format!("and {} more", found.more())));
    found.places().iter().map(at).chain(more).collect()
}
