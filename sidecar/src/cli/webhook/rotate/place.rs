//! Place of a new secret, so that the service has it: beside the old one, or where systemd loads the old one from.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, eaccess};
use settings::files;

use crate::folders;

/// The place of a secret in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// File to write, or to remove.
    pub(super) file: PathBuf,
    /// Path of the secret as the configuration names it.
    pub(super) configured: PathBuf,
    /// Unit to which systemd hands the secret; `None`: the service reads the file itself.
    pub(super) unit: Option<Unit>,
}

/// A unit that has its secrets from systemd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) name: String,
    /// Setting to add to the unit for a new file; `None` where it loads a whole folder.
    pub(super) setting: Option<String>,
    /// Name of the credential under which the file is kept encrypted; `None`: it is not encrypted.
    pub(super) encrypted: Option<String>,
}

impl Place {
    /// Finds the place of a file that the configuration names.
    pub(super) fn of(configured: &Path, units: &[PathBuf]) -> Self {
        let Some((unit, name)) = files::credential(configured) else {
            return Self { file: configured.to_owned(), configured: configured.to_owned(), unit: None };
        };
        let loads = loads(unit, units);
        let of_folder = |load: &Load| name.strip_prefix(&load.id)?.strip_prefix('_').filter(|_| load.path.is_dir()).map(str::to_owned);
        let (file, setting, is_encrypted) = if let Some((load, file)) = loads.iter().find_map(|load| Some((load, of_folder(load)?))) {
            (load.path.join(file), None, load.is_encrypted)
        } else if let Some(load) = loads.iter().find(|load| load.id == name) {
            (load.path.clone(), Some(format!("{}={name}:{}", load.setting(), load.path.display())), load.is_encrypted)
        } else {
            (Path::new("FOLDER").join(name), Some("LoadCredential= in `systemctl cat` says where it is loaded from".to_owned()), false)
        };
        let unit = Unit { name: unit.to_owned(), setting, encrypted: is_encrypted.then(|| name.to_owned()) };
        Self { file, configured: configured.to_owned(), unit: Some(unit) }
    }

    /// Returns the place of another secret, beside this one; `next` names a file that does not exist yet.
    pub(super) fn next(&self, next: impl Fn(&str, &Path) -> String) -> Self {
        let folder = self.file.parent().unwrap_or(Path::new(""));
        let old = self.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let new = next(&old, folder);
        let file = folder.join(&new);
        let Some(Unit { name, setting, encrypted }) = &self.unit else {
            return Self { configured: file.clone(), file, unit: None };
        };
        let credential = self.configured.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A credential from a folder has the names of folder and file; one from a single file has a name of its own.
        let renamed = match (setting, credential.strip_suffix(&old)) {
            (None, Some(prefix)) => format!("{prefix}{new}"),
            _ => next(&credential, self.configured.parent().unwrap_or(Path::new(""))),
        };
        let setting = setting.as_ref().map(|setting| match setting.split_once('=') {
            Some((key, _)) if !setting.contains(' ') => format!("{key}={renamed}:{}", file.display()),
            _ => setting.clone(),
        });
        let encrypted = encrypted.as_ref().map(|_| renamed.clone());
        Self { file, configured: self.configured.with_file_name(&renamed), unit: Some(Unit { name: name.clone(), setting, encrypted }) }
    }

    /// Returns why nothing can be written to the folder of the file from here; `None` where it can.
    pub(super) fn shut(&self) -> Option<Shut> {
        shut(self.file.parent()?)
    }
}

/// Reason why nothing can be written to a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shut {
    /// The folder is mounted so that it can only be read, as into a container.
    Mounted,
    /// This user may not write to the folder.
    Denied,
}

impl Shut {
    /// Describes what is to be done with a file that was written elsewhere.
    pub(super) fn said(self, folder: &Path, written: &str) -> String {
        let (folder, as_the_old_one) = (folder.display(), "with the owner and the mode of the old secret");
        match self {
            Self::Mounted => format!(
                "# {folder} is mounted here so that it can only be read: put the file {written} into the folder that is mounted there,\n\
                 # {as_the_old_one}.\n"
            ),
            Self::Denied => format!("# {folder} is closed to this user: put the file {written} there as root, {as_the_old_one}.\n"),
        }
    }
}

/// Returns why nothing can be written to a folder, as [`Place::shut`] does.
pub(super) fn shut(folder: &Path) -> Option<Shut> {
    if folders::is_read_only(folder) {
        return Some(Shut::Mounted);
    }
    let denied = matches!(eaccess(folder, AccessFlags::W_OK | AccessFlags::X_OK), Err(Errno::EACCES | Errno::EPERM));
    denied.then_some(Shut::Denied)
}

/// One `LoadCredential=` of a unit (systemd.exec(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Load {
    id: String,
    path: PathBuf,
    is_encrypted: bool,
}

impl Load {
    const fn setting(&self) -> &'static str {
        if self.is_encrypted { "LoadCredentialEncrypted" } else { "LoadCredential" }
    }
}

/// Reads all `LoadCredential=` of a unit, from the first of these folders that has it, and of its drop-ins.
fn loads(unit: &str, units: &[PathBuf]) -> Vec<Load> {
    let main = units.iter().map(|folder| folder.join(unit)).find(|file| file.exists());
    let mut more: Vec<PathBuf> = units
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder.join(format!("{unit}.d"))).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
        .collect();
    more.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    let texts = main.into_iter().chain(more).filter_map(|path| files::text(&path, files::CONFIGURATION).ok());
    texts.flat_map(|text| text.lines().filter_map(load).collect::<Vec<_>>()).collect()
}

fn load(line: &str) -> Option<Load> {
    let (key, value) = line.trim().split_once('=')?;
    let is_encrypted = match key.trim_end() {
        "LoadCredential" => false,
        "LoadCredentialEncrypted" => true,
        _ => return None,
    };
    let (id, path) = value.trim().split_once(':')?;
    path.starts_with('/').then(|| Load { id: id.to_owned(), path: path.into(), is_encrypted })
}

/// Folders in which systemd has units, the first before the others (systemd.unit(5)).
pub(super) const UNITS: [&str; 5] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e33_a_folder_that_is_mounted_to_be_read_alone_is_told_from_one_that_is_closed() {
        let mounted = Shut::Mounted.said(Path::new("/etc/stepward/secrets"), "laptops2");
        assert!(
            mounted.starts_with("# /etc/stepward/secrets is mounted here so that it can only be read: put the file laptops2 into "),
            "{mounted}"
        );
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(shut(folder.path()), None);
        assert_eq!(shut(&folder.path().join("none")), None, "whoever writes there finds out");
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert_eq!(shut(&folder.path().join("file")), Some(Shut::Denied));
    }
}
