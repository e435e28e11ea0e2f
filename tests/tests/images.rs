//! The images of deploy/docker/: built from their Dockerfiles of what is in dist/, on other base images than those that would be
//! pulled. `docs/compose.md` runs them, in documents.rs.

use std::collections::BTreeMap;
use std::process::Command;

use e2e::process::run;
use e2e::tools::{filter, root, sandbox, stepward};
use sha2::{Digest as _, Sha256};

#[test]
fn e1_images_have_one_program_the_folders_it_writes_to_and_no_shell() {
    let printed = run(sandbox().args(["bash", "-euc"]).arg(
        r#"
cd "$STEPWARD_REPO/deploy/docker"
docker compose build
for image in runtime stepward envoy stepward-envoy; do
    echo "IMAGE $image"
    tar --create --numeric-owner --directory "$(docker image mount $image)" . | tar --list --verbose --numeric-owner
done
sha256sum "$(docker image mount stepward)/usr/bin/stepward" "$(docker image mount stepward-envoy)/usr/lib/stepward/stepward_filter.wasm"
"#,
    ));
    let images: Vec<_> = printed.split("IMAGE ").skip(1).map(entries).collect();
    let [runtime, service, envoy, with_filter] = &images[..] else { panic!("{printed}") };
    assert!(runtime.keys().any(|path| path.ends_with("/libc.so.6")), "{printed}");
    let expected = [
        "drwxr-xr-x 65532/65532 ./run/stepward/",
        "drwxr-x--- 65532/65532 ./run/stepward/admin/",
        "drwxr-x--- 65532/65530 ./run/stepward/filter/",
        "drwxr-x--- 65532/65530 ./run/stepward/push/",
        "drwxr-x--- 65532/65532 ./run/stepward/query/",
        "drwxr-xr-x 65532/65532 ./run/stepward-envoy/",
        "-rwxr-xr-x 0/0 ./usr/bin/stepward",
        "drwxr-xr-x 0/0 ./usr/lib/stepward/",
        "-rw-r--r-- 0/0 ./usr/lib/stepward/stepward_filter.wasm",
        "drwx------ 65532/65532 ./var/lib/stepward/",
    ];
    assert_eq!(added(runtime, service), sorted(&expected));
    let expected = ["drwxr-xr-x 0/0 ./usr/lib/stepward/", "-rw-r--r-- 0/0 ./usr/lib/stepward/stepward_filter.wasm"];
    assert_eq!(added(envoy, with_filter), sorted(&expected));
    for path in service.keys().chain(with_filter.keys()) {
        let name = path.rsplit_once("bin/").map_or("", |(_, name)| name);
        assert!(!["sh", "bash", "dash", "busybox", "apt-get", "dpkg"].contains(&name), "{path}");
    }
    for file in [stepward(), filter()] {
        let digest: String = Sha256::digest(std::fs::read(&file).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(printed.contains(&digest), "the image has another {}:\n{printed}", file.display());
    }
}

#[test]
fn e1_a_build_in_a_container_gets_every_member_of_the_workspace() {
    let printed = run(sandbox().args(["bash", "-euc"]).arg(
        r#"
printf 'FROM scratch\nCOPY . /\n' > Dockerfile
docker build --file Dockerfile --tag context "$STEPWARD_REPO"
tar --create --numeric-owner --directory "$(docker image mount context)" . | tar --list --verbose --numeric-owner
"#,
    ));
    let context = entries(&printed);
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, members) = manifest.split_once("members = [").unwrap();
    let members: Vec<_> = members.split_once(']').unwrap().0.split('"').skip(1).step_by(2).collect();
    assert!(members.contains(&"sidecar"), "{members:?}");
    let files = run(Command::new("git").args(["ls-files", "Cargo.toml", "Cargo.lock", "envoy"]).args(members).current_dir(root()));
    for file in files.lines() {
        assert!(context.contains_key(&format!("./{file}")), ".dockerignore leaves {file} out");
    }
    for (folder, but) in [(".git", ""), ("target", ""), ("docs", ""), ("dist", "./dist/stepward")] {
        let mut inside = context.keys().filter(|path| path.starts_with(&format!("./{folder}/")) && !path.ends_with('/'));
        assert!(inside.all(|path| !but.is_empty() && path.starts_with(but)), "the context has what nothing is built of, of {folder}");
    }
}

/// Paths, and mode and owner of each, of what `tar --list --verbose` printed.
fn entries(printed: &str) -> BTreeMap<String, String> {
    let mut entries = BTreeMap::new();
    for line in printed.lines().filter(|line| line.contains(" ./")) {
        let mut words = line.split_whitespace();
        let (mode, owner) = (words.next().unwrap(), words.next().unwrap());
        let path = line.split_once(" ./").unwrap().1.split(" -> ").next().unwrap();
        entries.insert(format!("./{path}"), format!("{mode} {owner}"));
    }
    entries
}

fn added(base: &BTreeMap<String, String>, image: &BTreeMap<String, String>) -> Vec<String> {
    let new = image.iter().filter(|(path, _)| !base.contains_key(*path)).map(|(path, about)| format!("{about} {path}"));
    sorted(&new.collect::<Vec<_>>())
}

fn sorted(lines: &[impl ToString]) -> Vec<String> {
    let mut lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
    lines.sort();
    lines
}
