//! Files that Envoy reads, and files that are written for it.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use posture::secret::Secret;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use settings::files;

use super::admin::Admin;
use super::bootstrap::Rendered;
use super::unusable::Unusable;
use crate::cli::keys::fits;
use crate::config::{Config, Entrance, Envoy, Listen, Loaded, Sidecars};
use crate::users;
use engine::provider::ProviderSettings;

/// Checks that Envoy can read what it serves with, where this runs as its user: Envoy would listen without, and end every
/// connection with no word of the cause. Returns warnings of files that are not there yet.
///
/// # Errors
/// [`Unusable`] for a file that cannot be read, and for a key of another certificate.
pub(super) fn readable(config: &Config) -> Result<Vec<String>, Unusable> {
    let Envoy { certificate, private_key, client_ca, sidecars, .. } = &config.envoy;
    let user = nix::unistd::Uid::effective().as_raw();
    // The service need not be able to read Envoy's key, and may well be what runs this, as it is with Compose.
    let is_service = users::of_service(config).is_some_and(|service| service.account.uid == user);
    let mut warnings = Vec::new();
    let mut read = |path: &Path| match files::read(path, files::CERTIFICATES) {
        Ok(pem) => Ok(Some(Secret::new(pem))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            warnings.push(format!("{} is not there yet, and until it is, Envoy ends every connection", path.display()));
            Ok(None)
        }
        Err(error) if is_service && error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(Unusable::Unreadable { path: path.to_owned(), user: users::user(user), error: error.to_string() }),
    };
    let mut pairs = vec![(certificate, private_key)];
    pairs.extend(sidecars.as_ref().map(|sidecars| (&sidecars.certificate, &sidecars.private_key)));
    for (certificate, private_key) in pairs {
        if let (Some(chain), Some(key)) = (read(certificate)?, read(private_key)?) {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.expose()).flatten().collect();
            fits(&chain, &key, certificate).map_err(|why| Unusable::NoKey { path: private_key.clone(), why })?;
        }
    }
    for authority in client_ca.iter().chain(sidecars.as_ref().map(|sidecars| &sidecars.ca)) {
        read(authority)?;
    }
    Ok(warnings)
}

/// Checks that nothing is written over what the service or Envoy reads, nor the bootstrap over the files that it names.
///
/// # Errors
/// [`Unusable::Overwrites`].
pub(super) fn spare(loaded: &Loaded, output: Option<&Path>, rendered: &Rendered, admin: Option<&Admin>) -> Result<(), Unusable> {
    let Config { envoy, store, listen, providers, .. } = &loaded.config;
    let of = |is: &'static str, paths: Vec<PathBuf>| paths.into_iter().map(move |path| (is, path));
    let certificates = [&envoy.certificate, &envoy.private_key].into_iter().chain(&envoy.client_ca).cloned();
    let certificates = certificates.chain(envoy.sidecars.iter().flat_map(Sidecars::files));
    let certificates = certificates.chain(Entrance::all_of(&loaded.config).flat_map(|(_, tcp)| tcp.files())).collect();
    let authorities = providers.values().filter_map(|provider| match provider {
        ProviderSettings::File(_) => None,
        ProviderSettings::Remote(remote) => remote.endpoint.ca_file.clone(),
    });
    let sockets = Listen::ROLES.iter().map(|role| listen.socket(role));
    let sockets = sockets.chain(admin.and_then(|admin| if let Admin::Socket(path) = admin { Some(path.clone()) } else { None }));
    let read: Vec<(&'static str, PathBuf)> = of("a part of the configuration", loaded.files.clone())
        .chain(of("a file that the service reads", loaded.config.watched_files()))
        .chain(of("a certificate, a key or an authority", certificates))
        .chain(of("an authority of a provider", authorities.collect()))
        .chain(of("the filter", vec![envoy.wasm.clone()]))
        .chain(of("the store", store.path.iter().cloned().collect()))
        .chain(of("a socket", sockets.collect()))
        .collect();
    let sds = rendered.sds.iter().map(|(path, _)| ("an SDS file", path.as_path()));
    let written = sds.clone().chain(output.map(|output| ("the bootstrap", output)));
    for (what, path) in written {
        if let Some((is, _)) = read.iter().find(|(_, other)| is_same(path, other)) {
            return Err(Unusable::Overwrites { what, path: path.to_owned(), is });
        }
    }
    match output.filter(|output| rendered.sds.iter().any(|(path, _)| is_same(output, path))) {
        Some(output) => {
            Err(Unusable::Overwrites { what: "the bootstrap", path: output.to_owned(), is: "one of the SDS files that it names" })
        }
        None => Ok(()),
    }
}

/// Returns whether two paths name one file, be it by a link, or would once it is there.
fn is_same(one: &Path, other: &Path) -> bool {
    let found = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    if let (Some(one), Some(other)) = (found(one), found(other)) {
        return one == other;
    }
    let resolved = |path: &Path| {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        folder.and_then(|folder| Some(folder.join(path.file_name()?))).unwrap_or_else(|| path.to_owned())
    };
    resolved(one) == resolved(other)
}

/// Writes a file beside its place and renames it: Envoy watches for that, and never sees half a file.
///
/// # Errors
/// Where it cannot be written; nothing is left behind then.
pub(super) fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{:016x}.new", rand::random::<u64>()));
    let write = || {
        // The folder may belong to Envoy's user, who would have root write wherever a link of a known name leads.
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&beside))).with_context(|| format!("write {}", path.display()))
}
