//! Users and groups of this machine: their names, the user of a service, and whether another user may read a file.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::config::{Config, Listen};

/// Returns a user in words: by the name where there is one.
pub(crate) fn user(uid: u32) -> String {
    name_of(uid).map_or_else(|| format!("the user {uid}"), |name| format!("`{name}`"))
}

/// Returns a group in words: by the name where there is one.
pub(crate) fn group(gid: u32) -> String {
    let found = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    found.map_or_else(|| format!("the group {gid}"), |group| format!("the group `{}`", group.name))
}

/// Returns a user as `chown` takes it.
pub(crate) fn word(uid: u32) -> String {
    name_of(uid).unwrap_or_else(|| uid.to_string())
}

fn name_of(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

/// A user with its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    gid: u32,
    groups: BTreeSet<u32>,
}

impl Account {
    /// Returns the user of this id; one that the system has no name for is in the group of the same id.
    pub(crate) fn of(uid: u32) -> Self {
        let Some(user) = User::from_uid(Uid::from_raw(uid)).ok().flatten() else {
            return Self { uid, gid: uid, groups: BTreeSet::from([uid]) };
        };
        let listed = CString::new(user.name).ok().and_then(|name| getgrouplist(&name, user.gid).ok()).unwrap_or_default();
        let gid = user.gid.as_raw();
        Self { uid, gid, groups: listed.into_iter().map(Gid::as_raw).chain([gid]).collect() }
    }

    /// Returns what keeps this user from reading a file, in words; `None` where nothing does, or where the file is not there.
    pub(crate) fn kept_from(&self, path: &Path) -> Option<String> {
        let path = path.canonicalize().ok()?;
        let closed = self.closed_by_modes(&path)?;
        // Access control lists, as systemd sets them on credentials, are beside the modes.
        if self.asked(&path) {
            return None;
        }
        let metadata = closed.metadata().ok()?;
        let (owner, mode) = (user(metadata.uid()), metadata.mode() & 0o7777);
        Some(format!("{} belongs to {owner} and {}, with the mode {mode:o}", closed.display(), group(metadata.gid())))
    }

    /// Returns the folder on the way that this user does not get through, or the file itself.
    fn closed_by_modes(&self, path: &Path) -> Option<PathBuf> {
        let mut folders: Vec<&Path> = path.ancestors().skip(1).collect();
        folders.reverse();
        let closed = |place: &Path, wanted: u32| place.metadata().is_ok_and(|metadata| !self.may(&metadata, wanted));
        folders.into_iter().find(|folder| closed(folder, 0o1)).or_else(|| closed(path, 0o4).then_some(path)).map(Path::to_owned)
    }

    /// Returns whether the mode lets this user do it; `wanted` are bits as others have them (path_resolution(7)).
    fn may(&self, metadata: &std::fs::Metadata, wanted: u32) -> bool {
        let mode = metadata.mode();
        let bits = if metadata.uid() == self.uid {
            mode >> 6
        } else if self.groups.contains(&metadata.gid()) {
            mode >> 3
        } else {
            mode
        };
        self.uid == 0 || bits & wanted == wanted
    }

    /// Returns whether the system lets this user read the file. Root alone can ask for another user.
    fn asked(&self, path: &Path) -> bool {
        let mut test = Command::new("/usr/bin/test");
        test.arg("-r").arg(path).env_clear().current_dir("/").uid(self.uid).gid(self.gid);
        test.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Uid::effective().is_root() && test.status().is_ok_and(|status| status.success())
    }
}

/// User of the service or of Envoy, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) account: Account,
    /// Path whose owner or group tells the user.
    pub(crate) by: PathBuf,
}

/// Returns the user of a configuration's service: the owner of its store and sockets, or of the folders for them. `None` where all
/// of these are root's or not there yet.
pub(crate) fn of_service(config: &Config) -> Option<Found> {
    let owner = |path: &Path| path.metadata().ok().map(|metadata| metadata.uid());
    let sockets = Listen::ROLES.iter().map(|role| config.listen.socket(role));
    let made = config.store.path.iter().cloned().chain(sockets);
    let folders = Listen::ROLES.iter().map(|role| config.listen.folder(role));
    let folders = folders.chain(config.store.path.iter().filter_map(|store| Some(store.parent()?.to_owned())));
    // A folder may be made by root for somebody else; what the service itself made is its own.
    let of_folders = folders.filter_map(|path| Some((owner(&path).filter(|uid| *uid != 0)?, path)));
    let (uid, by) = made.filter_map(|path| Some((owner(&path)?, path))).chain(of_folders).next()?;
    Some(Found { account: Account::of(uid), by })
}

/// Returns Envoy's user, where one user alone is in the group of the filter's socket, as the package has it.
pub(crate) fn of_envoy(config: &Config, service: &Account) -> Option<Found> {
    let by = config.listen.folder("filter");
    let gid = by.metadata().ok()?.gid();
    let members = Group::from_gid(Gid::from_raw(gid)).ok().flatten()?.mem;
    let users = members.iter().filter_map(|name| User::from_name(name).ok().flatten()).map(|user| user.uid.as_raw());
    let users: BTreeSet<u32> = users.filter(|uid| *uid != 0 && *uid != service.uid).collect();
    let only = users.first().filter(|_| users.len() == 1 && gid != 0 && gid != service.gid)?;
    Some(Found { account: Account::of(*only), by })
}

#[cfg(test)]
mod tests {
    use settings::Environment;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn e31_users_and_groups_have_their_names() {
        assert_eq!((user(0), group(0), word(0)), ("`root`".to_owned(), "the group `root`".to_owned(), "root".to_owned()));
        let nobody = 3_999_999_999;
        assert_eq!(
            (user(nobody), group(nobody), word(nobody)),
            ("the user 3999999999".to_owned(), "the group 3999999999".to_owned(), "3999999999".to_owned())
        );
    }

    #[test]
    fn e31_what_keeps_a_user_from_a_file_is_named_with_its_owner_and_mode() {
        let folder = tempfile::tempdir().unwrap();
        let (inner, file) = (folder.path().join("inner"), folder.path().join("inner/file"));
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(&file, "").unwrap();
        let metadata = file.metadata().unwrap();
        let (uid, gid) = (metadata.uid(), metadata.gid());
        let account = |uid, gid| Account { uid, gid, groups: BTreeSet::from([gid]) };
        let (owner, member, other) = (account(uid, 77_777), account(77_777, gid), account(77_777, 77_777));
        let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(folder.path(), 0o755);
        for (of_folder, of_file, closed) in [
            (0o755, 0o644, [None, None, None]),
            (0o755, 0o640, [None, None, Some(&file)]),
            (0o755, 0o600, [None, Some(&file), Some(&file)]),
            (0o750, 0o644, [None, None, Some(&inner)]),
            (0o700, 0o644, [None, Some(&inner), Some(&inner)]),
            // The owner goes by the owner's bits alone.
            (0o755, 0o044, [(uid != 0).then_some(&file), None, None]),
        ] {
            mode(&inner, of_folder);
            mode(&file, of_file);
            let canonical = |path: Option<&PathBuf>| path.map(|path| path.canonicalize().unwrap());
            let path = file.canonicalize().unwrap();
            let found = [&owner, &member, &other].map(|account| account.closed_by_modes(&path));
            assert_eq!(found, closed.map(canonical), "{of_folder:o} {of_file:o}");
        }
        mode(&inner, 0o755);
        mode(&file, 0o600);
        let said = other.kept_from(&file).unwrap();
        assert!(said.contains("file belongs to ") && said.ends_with(", with the mode 600"), "{said}");
        assert_eq!(other.kept_from(&inner.join("nothing")), None);
        assert!(account(0, 0).kept_from(&file).is_none(), "root may");
    }

    #[test]
    fn e31_whose_the_store_the_sockets_or_their_folders_are_runs_the_service() {
        let folder = tempfile::tempdir().unwrap();
        let config = || {
            let text = "[listen]\nsockets = \"run\"\nrole_folders = true\n[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\n\
                        [[webhook]]\nid = \"one\"\nsecrets = [{ env = \"S\" }]\ncallers = [\"dns:a\"]\nproviders = [\"it\"]\n\
                        [provider.it]\ntype = \"file\"\npath = \"d.json\"\n";
            Config::parse(text, Path::new("stepward.toml"), &Environment::new(folder.path())).unwrap().config
        };
        let by = || of_service(&config()).map(|found| found.by.strip_prefix(folder.path()).unwrap().display().to_string());
        assert_eq!(by(), None);
        std::fs::create_dir_all(folder.path().join("run/query")).unwrap();
        std::fs::create_dir_all(folder.path().join("state")).unwrap();
        let is_root = folder.path().metadata().unwrap().uid() == 0;
        // Root makes folders for others.
        assert_eq!(by(), (!is_root).then(|| "run/query".to_owned()));
        if is_root {
            std::os::unix::fs::chown(folder.path().join("run/query"), Some(77_777), None).unwrap();
            assert_eq!((by().as_deref(), of_service(&config()).unwrap().account), (Some("run/query"), Account::of(77_777)));
        }
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("run/query/query.sock")).unwrap();
        assert_eq!(by().as_deref(), Some("run/query/query.sock"));
        std::fs::write(folder.path().join("state/stepward.db"), "").unwrap();
        assert_eq!(by().as_deref(), Some("state/stepward.db"));
    }
}
