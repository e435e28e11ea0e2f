//! Folders and files that somebody else may write to: who can write a file, or put another in its place, chooses what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::config::{Config, Provider, Tcp};
use crate::server;

/// A warning for each folder and file that others may write to; `files` are those of the configuration itself.
pub fn warnings(config: &Config, files: &[PathBuf]) -> Vec<String> {
    warnings_by(config, files, &Owners::of(config))
}

fn warnings_by(config: &Config, files: &[PathBuf], owners: &Owners) -> Vec<String> {
    let mut folders: BTreeMap<PathBuf, Named> = BTreeMap::new();
    let mut open: BTreeSet<String> = BTreeSet::new();
    for (what, path) in named(config, files) {
        let named = Named { what: BTreeSet::from([what]), is_envoys: owners.is_envoys(config, &path) };
        // Who makes a folder that is not there yet owns what will be in it.
        for folder in ways(&path).iter().filter_map(|folder| folder.ancestors().find(|folder| folder.exists())) {
            Named::add(&mut folders, folder, &named);
        }
        open.extend(written_by_others(&path, &named, owners));
    }
    let mut above: BTreeMap<PathBuf, Named> = BTreeMap::new();
    for (folder, named) in &folders {
        for ancestor in folder.ancestors().skip(1).filter(|ancestor| !folders.contains_key(*ancestor)) {
            Named::add(&mut above, ancestor, named);
        }
    }
    let nearest = folders.iter().filter_map(|(folder, named)| warning(folder, named, owners, true));
    nearest.chain(above.iter().filter_map(|(folder, named)| warning(folder, named, owners, false))).chain(open).collect()
}

/// What is in a folder.
#[derive(Clone, Debug)]
struct Named {
    what: BTreeSet<&'static str>,
    /// Whether all of it is Envoy's alone.
    is_envoys: bool,
}

impl Named {
    fn add(folders: &mut BTreeMap<PathBuf, Self>, folder: &Path, named: &Self) {
        match folders.get_mut(folder) {
            Some(there) => {
                there.what.extend(&named.what);
                there.is_envoys &= named.is_envoys;
            }
            None => drop(folders.insert(folder.to_owned(), named.clone())),
        }
    }

    fn words(&self) -> String {
        self.what.iter().copied().collect::<Vec<_>>().join(", ")
    }
}

/// Users to whom files may belong: whoever owns a file or folder may write to it, whatever its mode says now.
#[derive(Clone, Debug)]
struct Owners {
    /// Root, and the user of the service.
    own: BTreeSet<u32>,
    /// Whoever has Envoy's key, Envoy's user or the one who renews it, may have what only Envoy reads.
    envoy: Option<u32>,
}

impl Owners {
    fn of(config: &Config) -> Self {
        let owner = |path: &Path| std::fs::metadata(path).ok().map(|metadata| metadata.uid());
        let user = nix::unistd::geteuid();
        // Root may look at the files of a service that runs as another user, and whose store is that one's.
        let store = config.store.path.as_deref().filter(|_| user.is_root()).and_then(owner);
        Self { own: [0, user.as_raw()].into_iter().chain(store).collect(), envoy: owner(&config.envoy.private_key) }
    }

    fn is_envoys(&self, config: &Config, path: &Path) -> bool {
        let envoy = &config.envoy;
        [&envoy.certificate, &envoy.private_key, &envoy.wasm].into_iter().chain(&envoy.client_ca).any(|file| file == path)
    }

    /// The owner, where that is somebody else.
    fn other(&self, metadata: &std::fs::Metadata, is_envoys: bool) -> Option<u32> {
        let owner = metadata.uid();
        (!(self.own.contains(&owner) || is_envoys && self.envoy == Some(owner))).then_some(owner)
    }
}

/// The folders that a path leads through to its file: of the file itself, and of each link on the way.
fn ways(path: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let mut left: Vec<PathBuf> = vec![std::path::absolute(path).unwrap_or_else(|_| path.to_owned())];
    // As many links as the system itself follows (path_resolution(7)).
    for _ in 0..=40 {
        let Some(path) = left.pop() else { break };
        let mut walked = PathBuf::new();
        let mut parts = path.components();
        while let Some(part) = parts.next() {
            if part == Component::ParentDir {
                walked.pop();
                continue;
            }
            let folder = walked.clone();
            walked.push(part);
            if let Ok(target) = std::fs::read_link(&walked) {
                left.push(folder.join(target).join(parts.as_path()));
                folders.insert(folder);
                break;
            }
        }
        if left.is_empty() {
            folders.extend(walked.parent().map(Path::to_owned));
        }
    }
    folders
}

/// The warning about a file itself.
fn written_by_others(path: &Path, named: &Named, owners: &Owners) -> Option<String> {
    let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let Others { who, fix } = others(&metadata, owners, named.is_envoys)?;
    if is_read_only(path) {
        return None;
    }
    let (shown, what) = (path.display(), named.words());
    Some(format!("{shown}: {who} may write to this file of {what}: {fix} {shown}"))
}

/// Who may write to a file or folder, and what is to be called with its path.
struct Others {
    who: String,
    fix: String,
}

fn others(metadata: &std::fs::Metadata, owners: &Owners, is_envoys: bool) -> Option<Others> {
    if let Some(owner) = owners.other(metadata, is_envoys) {
        return Some(Others { who: format!("the user {owner}, who owns it,"), fix: "chown root".to_owned() });
    }
    let (who, letters) = match metadata.mode() & 0o022 {
        0 => return None,
        0o020 => (format!("the group {}", metadata.gid()), "g"),
        0o002 => ("everybody".to_owned(), "o"),
        _ => (format!("everybody, and the group {},", metadata.gid()), "go"),
    };
    Some(Others { who, fix: format!("chmod {letters}-w") })
}

fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|system| system.flags().contains(FsFlags::ST_RDONLY))
}

/// What the service goes by, and where it is.
fn named(config: &Config, files: &[PathBuf]) -> Vec<(&'static str, PathBuf)> {
    let of = |what: &'static str, paths: Vec<PathBuf>| paths.into_iter().map(move |path| (what, path));
    let lists = config.providers.values().filter_map(|provider| match provider {
        Provider::File(settings) => Some(settings.path.clone()),
        Provider::Remote(remote) => remote.endpoint.ca_file.clone(),
    });
    let envoy = &config.envoy;
    let tls = [&envoy.certificate, &envoy.private_key].into_iter().chain(&envoy.client_ca).cloned();
    let tls = tls.chain(config.query.tcp.iter().flat_map(Tcp::files)).collect();
    let sockets = server::ROLES.iter().map(|role| config.listen.socket(role)).collect();
    of("the configuration", files.to_vec())
        .chain(of("secrets", config.secret_files()))
        .chain(of("lists and authorities of providers", lists.collect()))
        .chain(of("certificates and keys", tls))
        .chain(of("the filter", vec![envoy.wasm.clone()]))
        .chain(of("the store", config.store.path.iter().cloned().collect()))
        .chain(of("sockets", sockets))
        .collect()
}

/// The warning about one folder; `nearest`: files are in it, and not only folders. Nothing is to be said of one that is not
/// there, that nobody can write to, or that, further up, others may add to and take nothing from.
fn warning(folder: &Path, named: &Named, owners: &Owners, nearest: bool) -> Option<String> {
    let metadata = std::fs::metadata(folder).ok()?;
    let Others { who, fix } = others(&metadata, owners, named.is_envoys)?;
    // That holds everybody but its owner.
    let is_sticky = metadata.mode() & 0o1000 != 0 && owners.other(&metadata, named.is_envoys).is_none();
    if is_read_only(folder) || (is_sticky && !nearest) {
        return None;
    }
    let (shown, what) = (folder.display(), named.words());
    let (place, or) = if is_sticky { ("what is not there yet", "keep them in a folder of their own, or ") } else { ("what is there", "") };
    Some(format!(
        "{shown}: {who} may write to this folder of {what}, and can put what they like in the place of {place}: {or}{fix} {shown}"
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::config::Environment;

    const CONFIG: &str = r#"
[listen]
sockets = "run"
role_folders = true
[envoy]
certificate = "tls/server.crt"
private_key = "tls/server.key"
client_ca = "tls/ca.crt"
wasm = "dist/filter.wasm"
[[webhook]]
id = "one"
secrets = [{ file = "secrets/webhook" }]
providers = ["staff"]
[provider.staff]
type = "file"
path = "lists/devices.json"
"#;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            for folder in ["run/filter", "run/query", "run/push", "run/admin", "tls", "dist", "secrets", "lists", "state"] {
                std::fs::create_dir_all(place.at(folder)).unwrap();
            }
            for folder in ["", "run", "run/filter", "run/query", "run/push", "run/admin", "tls", "dist", "secrets", "lists", "state"] {
                place.mode(folder, 0o755);
            }
            std::fs::write(place.at("stepward.toml"), CONFIG).unwrap();
            place
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }

        fn mode(&self, name: &str, mode: u32) {
            std::fs::set_permissions(self.at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }

        fn warnings(&self) -> Vec<String> {
            let env = Environment::new(self.at(""));
            let loaded = Config::load(Some(Path::new("stepward.toml")), &env).unwrap();
            let here = format!("{}/", self.0.path().canonicalize().unwrap().display());
            warnings(&loaded.config, &loaded.files).iter().map(|warning| warning.replace(&here, "")).collect()
        }
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_named_with_what_is_in_it_and_the_repair() {
        let place = Place::new();
        assert_eq!(place.warnings(), Vec::<String>::new());
        for (folder, what) in [
            ("tls", "certificates and keys"),
            ("dist", "the filter"),
            ("secrets", "secrets"),
            ("lists", "lists and authorities of providers"),
            ("state", "the store"),
            ("run/query", "sockets"),
        ] {
            let gid = place.at(folder).metadata().unwrap().gid();
            for (mode, who, letter) in [
                (0o757, "everybody".to_owned(), "o"),
                (0o775, format!("the group {gid}"), "g"),
                (0o777, format!("everybody, and the group {gid},"), "go"),
            ] {
                place.mode(folder, mode);
                let expected = format!(
                    "{folder}: {who} may write to this folder of {what}, and can put what they like in the place of what is there: chmod {letter}-w {folder}"
                );
                assert_eq!(place.warnings(), [expected]);
            }
            place.mode(folder, 0o1757);
            let expected = format!(
                "{folder}: everybody may write to this folder of {what}, and can put what they like in the place of what is not there yet: keep them in a folder of their own, or chmod o-w {folder}"
            );
            assert_eq!(place.warnings(), [expected]);
            place.mode(folder, 0o755);
        }
        // Of the configuration's own folder, which all the others are in.
        place.mode("", 0o777);
        assert!(place.warnings().iter().any(|warning| warning.contains("the configuration")), "{:?}", place.warnings());
    }

    #[test]
    fn a_folder_further_up_is_named_where_what_is_in_it_can_be_moved_away() {
        let place = Place::new();
        place.mode("run", 0o757);
        let warnings = place.warnings();
        assert!(matches!(&warnings[..], [one] if one.starts_with("run: everybody may write to this folder of sockets")), "{warnings:?}");
        // As the folder for temporary files has it: the folder below belongs to somebody, and stays.
        place.mode("run", 0o1757);
        assert_eq!(place.warnings(), Vec::<String>::new());
    }

    #[test]
    fn where_a_link_leads_counts_too() {
        let place = Place::new();
        std::fs::create_dir(place.at("elsewhere")).unwrap();
        std::fs::write(place.at("elsewhere/ca"), "").unwrap();
        std::os::unix::fs::symlink(place.at("elsewhere/ca"), place.at("tls/ca.crt")).unwrap();
        place.mode("elsewhere", 0o757);
        let warnings = place.warnings();
        assert!(
            matches!(&warnings[..], [one] if one.starts_with("elsewhere: everybody may write to this folder of certificates")),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_link_in_the_middle_of_the_way_counts_too() {
        let place = Place::new();
        std::fs::create_dir_all(place.at("store/real")).unwrap();
        std::fs::create_dir(place.at("links")).unwrap();
        std::fs::write(place.at("store/real/devices.json"), "[]").unwrap();
        std::os::unix::fs::symlink("../store/real", place.at("links/now")).unwrap();
        std::os::unix::fs::symlink("../links/now/devices.json", place.at("lists/devices.json")).unwrap();
        for folder in ["store", "store/real", "links", "lists"] {
            place.mode(folder, 0o755);
        }
        std::fs::set_permissions(place.at("store/real/devices.json"), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(place.warnings(), Vec::<String>::new());
        for folder in ["links", "store/real", "lists"] {
            place.mode(folder, 0o757);
            let warnings = place.warnings();
            let expected = format!("{folder}: everybody may write to this folder of lists");
            assert!(matches!(&warnings[..], [one] if one.starts_with(&expected)), "{warnings:?}");
            place.mode(folder, 0o755);
        }
        // Links that lead round in a circle end.
        std::os::unix::fs::symlink("circle", place.at("tls/circle")).unwrap();
        assert_eq!(ways(&place.at("tls/circle/ca.crt")).into_iter().collect::<Vec<_>>(), [place.at("tls")]);
    }

    #[test]
    fn where_the_folder_is_not_there_yet_the_one_above_it_counts() {
        let place = Place::new();
        std::fs::remove_dir(place.at("state")).unwrap();
        std::fs::remove_dir(place.at("lists")).unwrap();
        place.mode("", 0o1757);
        let here = place.at("").display().to_string();
        let warnings = place.warnings();
        assert!(
            warnings.iter().any(|warning| warning.starts_with(here.trim_end_matches('/')) && warning.contains("not there yet")),
            "{warnings:?}"
        );
    }

    #[test]
    fn e17_who_owns_a_folder_or_a_file_may_write_to_it_whatever_its_mode_says() {
        let place = Place::new();
        for file in ["lists/devices.json", "tls/server.key", "tls/ca.crt"] {
            std::fs::write(place.at(file), "[]").unwrap();
            place.mode(file, 0o600);
        }
        let env = Environment::new(place.at(""));
        let loaded = Config::load(Some(Path::new("stepward.toml")), &env).unwrap();
        let here = format!("{}/", place.at("").display()).replace("//", "/");
        let warnings = |own: &[u32], envoy| -> Vec<String> {
            let owners = Owners { own: own.iter().copied().collect(), envoy };
            let warnings = warnings_by(&loaded.config, &loaded.files, &owners);
            warnings.into_iter().filter(|warning| warning.starts_with(&here)).map(|warning| warning.replace(&here, "")).collect()
        };
        let owner = place.at("").metadata().unwrap().uid();
        assert_eq!(warnings(&[0, owner], None), [""; 0]);
        let of_another = warnings(&[owner + 1], None);
        for named in [
            format!(
                "lists: the user {owner}, who owns it, may write to this folder of lists and authorities of providers, and can put what they like in the place of what is there: chown root lists"
            ),
            format!(
                "lists/devices.json: the user {owner}, who owns it, may write to this file of lists and authorities of providers: chown root lists/devices.json"
            ),
            format!("stepward.toml: the user {owner}, who owns it, may write to this file of the configuration: chown root stepward.toml"),
        ] {
            assert!(of_another.contains(&named), "{named}: {of_another:#?}");
        }
        assert!(of_another.iter().any(|warning| warning.starts_with("run: ")), "further up as well: {of_another:#?}");
        assert!(of_another.iter().any(|warning| warning.starts_with("tls/server.key: ")), "{of_another:#?}");
        // The sticky bit holds others alone.
        place.mode("run", 0o1755);
        assert!(warnings(&[owner + 1], None).iter().any(|warning| warning.starts_with("run: ")));
        // What Envoy alone reads may be its user's, with the folder that has nothing else in it.
        let but_envoys = warnings(&[owner + 1], Some(owner));
        assert!(!but_envoys.iter().any(|warning| warning.starts_with("tls")), "{but_envoys:#?}");
        assert!(but_envoys.iter().any(|warning| warning.starts_with("lists/devices.json: ")), "{but_envoys:#?}");
        let real = Owners::of(&loaded.config);
        assert!(real.own.contains(&0) && real.own.contains(&nix::unistd::geteuid().as_raw()));
        assert_eq!(real.envoy, Some(owner));
    }

    #[test]
    fn a_file_that_others_may_write_to_is_named_itself() {
        let place = Place::new();
        std::fs::write(place.at("lists/devices.json"), "[]").unwrap();
        for (mode, expected) in [(0o644, None), (0o646, Some("everybody")), (0o664, Some("the group"))] {
            std::fs::set_permissions(place.at("lists/devices.json"), std::fs::Permissions::from_mode(mode)).unwrap();
            let warnings = place.warnings();
            assert_eq!(warnings.len(), usize::from(expected.is_some()), "{warnings:?}");
            for (warning, who) in warnings.iter().zip(expected) {
                assert!(
                    warning.starts_with(&format!("lists/devices.json: {who}")) && warning.contains("may write to this file of lists"),
                    "{warning}"
                );
            }
        }
    }
}
