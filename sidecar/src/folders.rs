//! Warnings about folders and files that others may write to: who can write a file, or put another in its place, chooses what it
//! says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::config::{Config, Entrance, Listen, Sidecars};
use crate::users;
use engine::provider::ProviderSettings;

/// Warning about a file or folder that others may write to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// Message: what the file or folder is, who the others are, and what they can do.
    pub said: String,
    /// Remedy, in words.
    pub fix: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.said, self.fix)
    }
}

/// Process that looks at the folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looks {
    /// The service, at its start: its user is that of this process.
    Service,
    /// An operator, for a service that may be another user's.
    Operator,
}

/// Returns a warning for each folder and file that others may write to; `files` are those of the configuration itself.
pub fn warnings(config: &Config, files: &[PathBuf], looks: Looks) -> Vec<Warning> {
    warnings_by(config, files, &Owners::of(config, looks))
}

fn warnings_by(config: &Config, files: &[PathBuf], owners: &Owners) -> Vec<Warning> {
    let mut folders: BTreeMap<PathBuf, Named> = BTreeMap::new();
    let mut open: BTreeSet<Warning> = BTreeSet::new();
    for (what, path) in named(config, files) {
        let is_envoys = owners.is_envoys(config, &path);
        let named = Named { what: BTreeSet::from([what]), is_envoys, has_envoys: is_envoys, is_written: WRITTEN.contains(&what) };
        // The user that makes a missing folder owns what will be in it.
        for folder in ways(&path).iter().filter_map(|folder| folder.ancestors().find(|folder| folder.exists())) {
            Named::add(&mut folders, folder, &named);
        }
        open.extend(written_by_others(&path, &named, owners));
    }
    let mut above: BTreeMap<PathBuf, Named> = BTreeMap::new();
    for (folder, named) in &folders {
        // Nobody makes or renews anything so far up.
        let named = Named { has_envoys: false, is_written: false, ..named.clone() };
        for ancestor in folder.ancestors().skip(1).filter(|ancestor| !folders.contains_key(*ancestor)) {
            Named::add(&mut above, ancestor, &named);
        }
    }
    let nearest = folders.iter().filter_map(|(folder, named)| warning(folder, named, owners, true));
    nearest.chain(above.iter().filter_map(|(folder, named)| warning(folder, named, owners, false))).chain(open).collect()
}

/// Files in a folder, by what they are.
#[derive(Clone, Debug)]
struct Named {
    what: BTreeSet<&'static str>,
    /// Whether all of them are Envoy's alone.
    is_envoys: bool,
    /// Whether some of them are Envoy's alone.
    has_envoys: bool,
    /// Whether the service itself makes something there.
    is_written: bool,
}

impl Named {
    fn add(folders: &mut BTreeMap<PathBuf, Self>, folder: &Path, named: &Self) {
        match folders.get_mut(folder) {
            Some(there) => {
                there.what.extend(&named.what);
                there.is_envoys &= named.is_envoys;
                there.has_envoys |= named.has_envoys;
                there.is_written |= named.is_written;
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
    /// The user of the service, where it is known.
    service: Option<u32>,
    /// Owner of Envoy's key, which is Envoy's user or the one that renews it, and may own what only Envoy reads.
    envoy: Option<u32>,
}

impl Owners {
    fn of(config: &Config, looks: Looks) -> Self {
        let owner = |path: &Path| std::fs::metadata(path).ok().map(|metadata| metadata.uid());
        let user = nix::unistd::geteuid();
        let this = (looks == Looks::Service || !user.is_root()).then_some(user.as_raw());
        let found = if looks == Looks::Operator { users::of_service(config).map(|found| found.account.uid) } else { None };
        // The service may not look into a folder that is for Envoy, and the owner of that folder owns the key as well.
        let key = &config.envoy.private_key;
        let envoy = owner(key).or_else(|| key.parent().and_then(owner));
        let service = found.or(this);
        Self { own: service.into_iter().chain([0]).collect(), service, envoy }
    }

    fn is_envoys(&self, config: &Config, path: &Path) -> bool {
        let envoy = &config.envoy;
        [&envoy.certificate, &envoy.private_key, &envoy.wasm].into_iter().chain(&envoy.client_ca).any(|file| file == path)
    }

    /// Returns the owner of a file, where that is somebody else.
    fn other(&self, metadata: &std::fs::Metadata, is_envoys: bool) -> Option<u32> {
        let owner = metadata.uid();
        (!(self.own.contains(&owner) || is_envoys && self.envoy == Some(owner))).then_some(owner)
    }
}

/// Returns the folders that a path leads through to its file: that of the file itself, and of each link on the way.
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

/// Returns the warning about a file itself.
fn written_by_others(path: &Path, named: &Named, owners: &Owners) -> Option<Warning> {
    let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let Others { who, fix } = others(path, &metadata, owners, named)?;
    if is_read_only(path) {
        return None;
    }
    Some(Warning { said: format!("{}: {who} may write to this file of {}", path.display(), named.words()), fix })
}

/// Users who may write to a file or folder, in words, and the remedy.
struct Others {
    who: String,
    fix: String,
}

fn others(path: &Path, metadata: &std::fs::Metadata, owners: &Owners, named: &Named) -> Option<Others> {
    let shown = path.display();
    if let Some(owner) = owners.other(metadata, named.is_envoys) {
        return Some(Others { who: format!("{}, who owns it,", users::user(owner)), fix: of_owner(path, owner, owners, named) });
    }
    let (who, letters) = match metadata.mode() & 0o022 {
        0 => return None,
        0o020 => (users::group(metadata.gid()), "g"),
        0o002 => ("everybody".to_owned(), "o"),
        _ => (format!("everybody, and {},", users::group(metadata.gid())), "go"),
    };
    let shut = format!("chmod {letters}-w {shown}");
    // The service may be one of the group, and makes something there.
    let fix = match owners.service {
        Some(service) if named.is_written && metadata.uid() != service && letters != "o" => {
            format!("chown {} {shown}, then {shut}", users::word(service))
        }
        _ => shut,
    };
    Some(Others { who, fix })
}

/// Returns the remedy where somebody else owns a file or folder, so that the service and Envoy go on.
fn of_owner(path: &Path, owner: u32, owners: &Owners, named: &Named) -> String {
    let (shown, user) = (path.display(), users::user(owner));
    match owners.service {
        Some(service) if named.is_written => format!("chown {} {shown}", users::word(service)),
        Some(_) if named.has_envoys && !named.is_envoys => {
            format!("if {user} renews Envoy's certificate, keep what Envoy reads in a folder of its own; then chown root {shown}")
        }
        Some(_) if named.is_envoys => format!("unless {user} is to renew Envoy's certificate, chown root {shown}"),
        Some(_) => format!("chown root {shown}"),
        None if named.is_written => "let the user of the service own it".to_owned(),
        None => format!("unless {user} is the user of the service, chown root {shown}"),
    }
}

/// Returns whether nobody can write to a path, as on a mount that can only be read.
pub(crate) fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|system| system.flags().contains(FsFlags::ST_RDONLY))
}

/// Returns the files that the service goes by, with what each is.
fn named(config: &Config, files: &[PathBuf]) -> Vec<(&'static str, PathBuf)> {
    let of = |what: &'static str, paths: Vec<PathBuf>| paths.into_iter().map(move |path| (what, path));
    let lists = config.providers.values().filter_map(|provider| match provider {
        ProviderSettings::File(settings) => Some(settings.path.clone()),
        ProviderSettings::Remote(remote) => remote.endpoint.ca_file.clone(),
    });
    let envoy = &config.envoy;
    let tls = [&envoy.certificate, &envoy.private_key].into_iter().chain(&envoy.client_ca).cloned();
    let tls = tls.chain(envoy.sidecars.iter().flat_map(Sidecars::files));
    let tls = tls.chain(Entrance::all_of(config).flat_map(|(_, tcp)| tcp.files())).collect();
    let sockets = Listen::ROLES.iter().map(|role| config.listen.socket(role)).collect();
    of("the configuration", files.to_vec())
        .chain(of("secrets", config.secret_files()))
        .chain(of("lists and authorities of providers", lists.collect()))
        .chain(of("certificates and keys", tls))
        .chain(of("the filter", vec![envoy.wasm.clone()]))
        .chain(of("the store", config.store.path.iter().cloned().collect()))
        .chain(of("sockets", sockets))
        .collect()
}

/// Returns the warning about one folder; `nearest`: files are in it, and not only folders. There is none about a folder that does
/// not exist, that nobody can write to, or that, further up, others may add to and take nothing from.
fn warning(folder: &Path, named: &Named, owners: &Owners, nearest: bool) -> Option<Warning> {
    let metadata = std::fs::metadata(folder).ok()?;
    let Others { who, fix } = others(folder, &metadata, owners, named)?;
    // The sticky bit holds everybody but the folder's owner.
    let is_sticky = metadata.mode() & 0o1000 != 0 && owners.other(&metadata, named.is_envoys).is_none();
    if is_read_only(folder) || (is_sticky && !nearest) {
        return None;
    }
    let (shown, what) = (folder.display(), named.words());
    let (place, or) = if is_sticky { ("what is not there yet", "keep them in a folder of their own, or ") } else { ("what is there", "") };
    Some(Warning {
        said: format!("{shown}: {who} may write to this folder of {what}, and can put what they like in the place of {place}"),
        fix: format!("{or}{fix}"),
    })
}

/// Files that the service makes itself, and has to be able to write.
const WRITTEN: [&str; 2] = ["the store", "sockets"];

#[cfg(test)]
mod tests {
    use settings::Environment;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

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
            warnings(&loaded.config, &loaded.files, Looks::Operator).iter().map(|warning| warning.to_string().replace(&here, "")).collect()
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
                (0o775, users::group(gid), "g"),
                (0o777, format!("everybody, and {},", users::group(gid)), "go"),
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
        // This is the folder of the configuration, which all the others are in.
        place.mode("", 0o777);
        assert!(place.warnings().iter().any(|warning| warning.contains("the configuration")), "{:?}", place.warnings());
    }

    #[test]
    fn a_folder_further_up_is_named_where_what_is_in_it_can_be_moved_away() {
        let place = Place::new();
        place.mode("run", 0o757);
        let warnings = place.warnings();
        assert!(matches!(&warnings[..], [one] if one.starts_with("run: everybody may write to this folder of sockets")), "{warnings:?}");
        // With the sticky bit, as folders for temporary files have it, the folder below belongs to somebody, and stays.
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
        let warnings = |service, envoy| -> Vec<String> {
            let owners = Owners { own: BTreeSet::from_iter(service), service, envoy };
            let warnings = warnings_by(&loaded.config, &loaded.files, &owners);
            let warnings = warnings.into_iter().map(|warning| warning.to_string()).filter(|warning| warning.starts_with(&here));
            warnings.map(|warning| warning.replace(&here, "")).collect()
        };
        let owner = place.at("").metadata().unwrap().uid();
        let other = users::word(owner + 1);
        let user = users::user(owner);
        assert_eq!(warnings(Some(owner), None), [""; 0]);
        let of_another = warnings(Some(owner + 1), None);
        for named in [
            format!(
                "lists: {user}, who owns it, may write to this folder of lists and authorities of providers, and can put what they like in the place of what is there: chown root lists"
            ),
            format!(
                "lists/devices.json: {user}, who owns it, may write to this file of lists and authorities of providers: chown root lists/devices.json"
            ),
            format!("stepward.toml: {user}, who owns it, may write to this file of the configuration: chown root stepward.toml"),
            // With root as the owner, the service could write there no more.
            format!(
                "run/query: {user}, who owns it, may write to this folder of sockets, and can put what they like in the place of what is there: chown {other} run/query"
            ),
            format!(
                "state: {user}, who owns it, may write to this folder of the store, and can put what they like in the place of what is there: chown {other} state"
            ),
            format!(
                "tls/server.key: {user}, who owns it, may write to this file of certificates and keys: unless {user} is to renew Envoy's certificate, chown root tls/server.key"
            ),
        ] {
            assert!(of_another.contains(&named), "{named}: {of_another:#?}");
        }
        let above = |warning: &String| warning.starts_with("run: ") && warning.ends_with(": chown root run");
        assert!(of_another.iter().any(above), "further up as well: {of_another:#?}");
        // Where the user of the service is not known, no command may take its folders from it.
        let of_nobody = warnings(None, None);
        assert!(
            of_nobody.iter().any(|warning| warning.starts_with("run/query: ") && warning.ends_with(": let the user of the service own it"))
        );
        assert!(of_nobody.iter().any(|warning| warning.ends_with(&format!("unless {user} is the user of the service, chown root lists"))));
        // The sticky bit holds others, and not the folder's owner.
        place.mode("run", 0o1755);
        assert!(warnings(Some(owner + 1), None).iter().any(|warning| warning.starts_with("run: ")));
        // What Envoy alone reads may be its user's, with the folder that has nothing else in it.
        let but_envoys = warnings(Some(owner + 1), Some(owner));
        assert!(!but_envoys.iter().any(|warning| warning.starts_with("tls")), "{but_envoys:#?}");
        assert!(but_envoys.iter().any(|warning| warning.starts_with("lists/devices.json: ")), "{but_envoys:#?}");
        assert_eq!(Owners::of(&loaded.config, Looks::Operator).envoy, Some(owner));
        // Where the key cannot be looked at, the owner of its folder counts.
        std::fs::remove_file(place.at("tls/server.key")).unwrap();
        assert_eq!(Owners::of(&loaded.config, Looks::Service).envoy, Some(owner));
        // The service goes by its own user, and an operator by the owner of what the service makes.
        assert_eq!(Owners::of(&loaded.config, Looks::Service).service, Some(nix::unistd::geteuid().as_raw()));
        std::fs::write(place.at("state/stepward.db"), "").unwrap();
        assert_eq!(Owners::of(&loaded.config, Looks::Operator).service, Some(owner));
    }

    #[test]
    fn e31_a_folder_that_the_service_writes_to_as_one_of_its_group_becomes_its_own_first() {
        let place = Place::new();
        let owner = place.at("").metadata().unwrap().uid();
        place.mode("run/query", 0o775);
        let (path, metadata) = (place.at("run/query"), place.at("run/query").metadata().unwrap());
        let fix = |service| {
            let owners = Owners { own: BTreeSet::from([owner, service]), service: Some(service), envoy: None };
            let named = Named { what: BTreeSet::from(["sockets"]), is_envoys: false, has_envoys: false, is_written: true };
            others(&path, &metadata, &owners, &named).unwrap().fix
        };
        let (shown, other) = (path.display(), users::word(owner + 1));
        assert_eq!(fix(owner), format!("chmod g-w {shown}"));
        assert_eq!(fix(owner + 1), format!("chown {other} {shown}, then chmod g-w {shown}"));
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
